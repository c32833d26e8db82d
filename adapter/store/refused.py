"""What was refused: found again, put back to be sent, discarded, and let go once it is old.

Whoever takes a refusal out of its table decides what becomes of it, so that two who want the same one do it once.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec
import orjson
import sqlalchemy as sa

from adapter.store import facts, portable, seen
from adapter.store.counts import Tallies
from adapter.store.shapes import INTAKE, Arrival, Kept, Put, Refusal
from adapter.store.tables import refusal

#: Refusals that are looked at, discarded or let go in one go.
PAGE = 500
#: The fact that holds the newest message id under which something was put back.
PUT_BACK = "put_back"

_COLUMNS = [refusal.c.id.label("number"), *(column for column in refusal.c if column.name not in ("id", "body"))]
_ONE = sa.select(refusal.c.body, *_COLUMNS).where(refusal.c.id == sa.bindparam("number"))
_THESE = sa.select(*_COLUMNS).where(portable.among(refusal.c.id, "numbers"))
_BODY = sa.select(refusal.c.body).where(refusal.c.id == sa.bindparam("number"))
_TAKE = refusal.delete().where(refusal.c.id == sa.bindparam("number"))

#: What a retry makes of a refusal: an entry again, at the door a message after all, or refused again.
Judged = Put | Arrival | Refusal
#: A message to be put in: (accepted_at_ms, body, (endpoint, lane) of each entry, time_ms).
Arrived = tuple[int, bytes, Iterable[tuple[str, int]], int]
#: Puts messages in, and returns the id of the last, 0 if there is none.
Insert = Callable[[sa.Connection, Sequence[Arrived]], int]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which refused messages are meant; all that is given must hold."""

    reason: str | None = None
    endpoint: str | None = None
    since_ms: int | None = None  #: refused then or later
    until_ms: int | None = None  #: refused before
    contains: str | None = None  #: a text in the message as received


def page(connection: sa.Connection, wanted: Wanted, before: int | None) -> list[Kept]:
    """The newest of them with numbers below `before`, a page; what they contain is not looked at."""
    where = [
        column == value
        for column, value in ((refusal.c.reason, wanted.reason), (refusal.c.endpoint, wanted.endpoint))
        if value is not None
    ]
    where += [] if wanted.since_ms is None else [refusal.c.refused_at_ms >= wanted.since_ms]
    where += [] if wanted.until_ms is None else [refusal.c.refused_at_ms < wanted.until_ms]
    where += [] if before is None else [refusal.c.id < before]
    found = sa.select(*_COLUMNS).where(*where).order_by(refusal.c.id.desc()).limit(PAGE)
    return [Kept(**row._asdict()) for row in connection.execute(found)]


def contains(connection: sa.Connection, number: int, text: str | None) -> bool:
    """True if the body has the text, or has it once escapes such as \\u00e9 are read."""
    if text is None:
        return True
    body = connection.scalar(_BODY, {"number": number}) or b""
    if text.encode() in body:
        return True
    try:
        return b"\\" in body and text.encode() in orjson.dumps(orjson.loads(body))
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return False


def get(connection: sa.Connection, number: int) -> tuple[Kept, bytes] | None:
    """A refusal and its body."""
    if (row := connection.execute(_ONE, {"number": number}).one_or_none()) is None:
        return None
    found = row._asdict()
    body: bytes = found.pop("body")
    return Kept(**found), body


def add(connection: sa.Connection, refusals: Iterable[Refusal], tallies: Tallies) -> None:
    """Keep what is refused, and count it."""
    now_ms = int(time.time() * 1000)
    rows = []
    for one in refusals:
        tallies[one.endpoint, "refused", one.reason] += 1
        rows.append(
            {
                "endpoint": one.endpoint,
                "reason": one.reason,
                "detail": one.detail,
                "accepted_at_ms": one.accepted_at_ms,
                "refused_at_ms": now_ms,
                "body": one.body,
            }
        )
    portable.add(connection, refusal, rows)


def put_back(
    connection: sa.Connection, judged: Sequence[tuple[Kept, Judged]], insert: Insert, tallies: Tallies
) -> list[str]:
    """Do as was judged; says what came of each: waiting, duplicate, refused, or gone if it is refused no longer.

    An entry is the same entry, no second one was acknowledged. It waits behind all others, under a new message id.
    """
    became: list[str] = []
    again: list[Arrived] = []
    for kept, verdict in judged:
        if not _take(connection, kept, tallies):
            became.append("gone")
        elif isinstance(verdict, Refusal):
            add(connection, [verdict], tallies)
            became.append("refused")
        elif isinstance(verdict, Arrival) and not _is_new(connection, verdict, tallies):
            became.append("duplicate")
        else:
            lanes = verdict.lanes if isinstance(verdict, Arrival) else ((verdict.endpoint, verdict.lane),)
            again.append((kept.accepted_at_ms, verdict.body, lanes, verdict.time_ms))
            became.append("waiting")
    if newest := insert(connection, again):
        facts.remember(connection, PUT_BACK, newest)
    return became


def expire(connection: sa.Connection, before_ms: int, tallies: Tallies) -> int:
    """Let go of a page of what was refused before a time. Numbers rise with it, so only the oldest are looked at."""
    oldest = sa.select(refusal.c.id, refusal.c.refused_at_ms).order_by(refusal.c.id).limit(PAGE)
    old = [number for number, refused_at_ms in connection.execute(oldest) if refused_at_ms < before_ms]
    return let_go(connection, old, "expired", tallies)


def let_go(connection: sa.Connection, numbers: Sequence[int], state: str, tallies: Tallies) -> int:
    """Let go of these for good, in a state that is counted; returns how many there still were."""
    rows = connection.execute(_THESE, {"numbers": numbers}).all()
    ended = [one for one in (Kept(**row._asdict()) for row in rows) if _take(connection, one, tallies)]
    for one in ended:
        tallies[one.endpoint, state, one.reason] += 1
    return len(ended)


def _take(connection: sa.Connection, kept: Kept, tallies: Tallies) -> bool:
    """Take a refusal out of the table; False if somebody did so before."""
    taken = connection.execute(_TAKE, {"number": kept.number}).rowcount
    tallies[kept.endpoint, "refused", kept.reason] -= taken
    return bool(taken)


def _is_new(connection: sa.Connection, one: Arrival, tallies: Tallies) -> bool:
    """Remember a message of the door as seen today, and count its entries; False if it was taken in meanwhile."""
    today = int(time.time() * 1000) // seen.DAY_MS
    seen.begin_day(connection, today)
    contents = seen.known(connection, [one.key]).get(one.key, set())
    if one.content in contents or not seen.add(connection, [(one.key, one.content)], today):
        tallies[INTAKE, "nothing", "seen_before"] += 1
        return False
    tallies[INTAKE, "nothing", "taken_after_all"] += 1
    tallies[INTAKE, "note", "same_id_other_content"] += bool(contents)
    for endpoint, _ in one.lanes:
        tallies[endpoint, "acknowledged", ""] += 1
    return True
