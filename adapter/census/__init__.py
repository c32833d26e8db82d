"""What a set of Segment logs will do to the identity graph, counted before anything is sent, in one pass.

said     what one message says of ids; pure
tables   what all of them said, in a temporary file
decision who has which device in the end, and what cannot be
report   what was found, and how it is told
sweeps   how often Python looks for cycles meanwhile

Links are made in the order of replay (design 3.13) whatever the order of the logs: the tables keep the first place at
which a user claims a device, and the first of the claims has it. Links that a store already has are not looked at.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager

from adapter import intake
from adapter.census.report import Report
from adapter.census.said import NEVER, say
from adapter.census.sweeps import seldom_swept
from adapter.census.tables import Tables
from adapter.errors import AdapterError
from adapter.parcels import Rules
from schemas import segment
from schemas.raw import MAX_MESSAGE_BYTES
from schemas.segment import Message


class NoRoom(AdapterError):
    """The temporary file cannot grow."""


def take(raws: Iterable[bytes], rules: Rules, *, memory_mb: int = 256, worst: int = 0) -> Report:
    """Count raw messages, in any order. `worst`: how many shared devices and people with many devices to name.

    `memory_mb` bounds the memory for what is counted; the rest is in a temporary file. Raises NoRoom.
    """
    with room(), closing(Tables(memory_mb)) as tables:
        return count(raws, rules, tables, worst=worst)


@contextmanager
def room(advice: str = "TMPDIR may name a larger disk") -> Iterator[None]:
    """Says it as NoRoom if the tables cannot grow."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise NoRoom(f"the temporary file of the counts: {error}; {advice}") from error


@seldom_swept()
def count(
    raws: Iterable[bytes],
    rules: Rules,
    tables: Tables,
    *,
    worst: int = 0,
    now_ms: int = 0,
    choose: Callable[[Message], bool | None] = lambda _: True,
    in_full: bool = False,
) -> Report:
    """Count raw messages into empty tables, and decide there who has which device.

    A message is judged by whose it is and when it was. In full it is judged only if it may be the first to join two
    ids, so what is invalid elsewhere is counted here by its type all the same. `choose` says whether a message is to
    be sent, and None if it is not to be looked at; `now_ms` is the time of one that has none. `in_full` judges each
    in full, for whoever counts on it that what is valid here can be sent.
    """
    invalid: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    by_type: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    junk: Counter[tuple[str, str]] = Counter()
    duplicates = 0
    for one in raws:
        try:
            glanced = segment.glance(one) if len(one) <= MAX_MESSAGE_BYTES and not in_full else None
            message = glanced or intake.message_of(one)
            if (is_sent := choose(message)) is None:
                left_out["not_chosen"] += 1
                continue
            key, said = intake.key(message), say(message, rules, now_ms)
            if glanced and said.place != NEVER and tables.is_news(said):
                intake.message_of(one)
        except intake.Invalid as error:
            invalid[error.reason] += 1
            continue
        except Exception:
            # A fault of ours must not cost the neighbours; intake gives it the same word.
            invalid["validation_failed"] += 1
            continue
        # One that differs is sent all the same. Whose a device is may not depend on which of the two comes first.
        is_new = tables.is_new(key)
        if not said.left_out:
            tables.add(said, is_sent=is_sent, counts=is_new)
        if not is_new:
            duplicates += 1
            continue
        if said.left_out:
            left_out[said.left_out] += 1
            continue
        by_type[message.type] += 1
        if said.refused:
            refused[said.refused] += 1
        if said.notes:
            notes.update(said.notes)
        if said.junk:
            junk.update(said.junk)
    graph, refused_links = tables.decide(worst, rules.options)
    return Report(
        system=rules.options.system,
        read=sum((*invalid.values(), duplicates, *left_out.values(), *by_type.values())),
        invalid=dict(invalid),
        duplicates=duplicates,
        left_out=dict(left_out),
        by_type=dict(by_type),
        graph=graph,
        junk=tuple({"id": an_id, "field": field, "count": count} for (field, an_id), count in junk.most_common()),
        refused=dict(refused + Counter(refused_links)),
        notes=dict(notes),
    )
