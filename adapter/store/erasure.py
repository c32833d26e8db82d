"""What is erased of a person, step by step.

A link is Mixpanel's too, and for good: it stays, by its keys. What goes are the plain ids beside them, what is held,
and what was refused.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from adapter.links import key
from adapter.store import facts, refused
from adapter.store.counts import Tallies
from adapter.store.engine import Reading
from adapter.store.graph import NOBODY
from adapter.store.portable import among, position
from adapter.store.shapes import Erasure, Settled
from adapter.store.sqlite import ERASED
from adapter.store.tables import HOLDING, conflict, deletion, entry, erasure, held, link, login, message, refusal
from adapter.store.writer import Writer

#: For more deletes than these the ids in each refused message are read: to look for one in all of them takes as long.
FEW = 3
#: Rows in memory of such a pass; a body can be a megabyte.
ROWS_AT_ONCE = 50
#: Ids looked for at once.
_NEEDLES = 100
_WAIT_S = 30.0

#: The step after which nothing of the person is left here.
_ERASED_HERE = "erased_here"
_ERASED = (
    sa.select(erasure.c.user_key, sa.func.max(erasure.c.at_ms))
    .where(among(erasure.c.user_key, "keys"), erasure.c.step == _ERASED_HERE)
    .group_by(erasure.c.user_key)
)
_ONE: sa.BindParameter[bytes] = sa.bindparam("one")
_FORGET_LINK = link.update().where(link.c.key == _ONE, link.c.user_key == sa.bindparam("whose"))
_FORGET_LINK = _FORGET_LINK.values(device=None, user=None)
_FORGET_LOGIN = login.update().where(login.c.key == _ONE, login.c.sent_as == sa.bindparam("itself"))
_FORGET_LOGIN = _FORGET_LOGIN.values(sent_as=None)
_SOME_REFUSED = (
    sa.select(refusal).where(refusal.c.id > sa.bindparam("after")).order_by(refusal.c.id).limit(ROWS_AT_ONCE)
)
_HAS_ERASED = sa.select(sa.exists().where(erasure.c.step == _ERASED_HERE))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that was done to forget a person."""

    at_ms: int
    step: str  #: a stable word
    detail: str  #: a sentence; names no id of the person


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What deletes will take along, looked for before the commit that all others wait for."""

    newest: int  #: number of the newest refusal there was
    refused: dict[int, set[int]]  #: message id of the delete -> numbers of the person's


class Erasures:
    """The store's verbs for deletes on their way."""

    def __init__(self, reading: Reading, writer: Writer) -> None:
        self._reading = reading
        self._writer = writer

    def look_for(self, settled: Sequence[Settled]) -> Found | None:
        """The refused entries that these deletes will take along; None if there is no delete."""
        erasures = {one.entry.message_id: one.erasure for one in settled if one.erasure is not None}
        if not erasures:
            return None
        with self._reading.connect() as connection:
            newest = connection.scalar(sa.select(sa.func.max(refusal.c.id))) or 0
            if len(erasures) > FEW:
                theirs = _refused_of_many(connection, erasures)
            else:
                theirs = {number: _refused(connection, one) for number, one in erasures.items()}
        return Found(newest=newest, refused=theirs)

    def begins_to_wait(self, user: str, message_id: str) -> None:
        """Note, once for each delete, that older entries of the person are still on their way."""
        self._writer.run(_begin_to_wait, (key(user), message_id), wait_s=_WAIT_S)


def steps(connection: sa.Connection, user_key: bytes) -> tuple[Step, ...]:
    """What was done to forget the person with this key, oldest first."""
    found = sa.select(erasure.c.at_ms, erasure.c.step, erasure.c.detail).where(erasure.c.user_key == user_key)
    return tuple(Step(**row._asdict()) for row in connection.execute(found.order_by(erasure.c.id)))


def has_erased(connection: sa.Connection) -> bool:
    """Whether anybody was ever erased here."""
    return bool(connection.scalar(_HAS_ERASED))


def erased(connection: sa.Connection, user_keys: Iterable[bytes]) -> dict[bytes, int]:
    """When the users with these keys were erased, the last time; one that never was is missing."""
    wanted = list(user_keys)
    rows = connection.execute(_ERASED, {"keys": wanted}).all() if wanted else []
    return {user_key: at_ms for user_key, at_ms in rows}


def note(connection: sa.Connection, user_key: bytes, message_id: str, step: str, detail: str) -> None:
    """Note what was done for a delete, now."""
    row = {"user_key": user_key, "message_id": message_id, "step": step, "detail": detail}
    connection.execute(erasure.insert(), {**row, "at_ms": int(time.time() * 1000)})


def settle(
    connection: sa.Connection, settled: Sequence[Settled], found: Found | None, tallies: Tallies
) -> list[tuple[str, int]]:
    """What deletes that have now ended bring about; `found` by `look_for` before.

    Returns the entries, as (endpoint, message id), that end with them.
    """
    ended = []
    for one in settled:
        if one.erasure is None or found is None:
            continue
        if one.state == "refused":
            detail = f"{one.reason}: the delete is kept among the refused, and nothing was erased"
            note(connection, key(one.erasure.user), one.erasure.message_id, "profile_not_deleted", detail)
        else:
            theirs = found.refused.get(one.entry.message_id, set())
            theirs = theirs | _refused(connection, one.erasure, found.newest)
            n_refused = refused.let_go(connection, sorted(theirs), "erased", tallies)
            # Only now: what somebody puts back at this moment is behind the delete, or was refused and is gone.
            behind = _put_back_behind(connection, one, one.erasure)
            tallies.update((endpoint, "erased", "put_back") for endpoint, _ in behind)
            _erase(connection, one.erasure, n_refused + len(behind), tallies)
            ended += behind
    return ended


def _refused(connection: sa.Connection, one: Erasure, after: int = 0) -> set[int]:
    """The numbers above `after` of a person's refused entries."""
    found: set[int] = set()
    if not connection.scalar(sa.select(sa.exists().where(refusal.c.id > after))):
        return found  # with thousands of devices there is a statement for every hundred
    escaped = position(refusal.c.body, sa.literal(rb"\u00")) > 0
    for start in range(0, len(one.needles), _NEEDLES):
        may_be = [position(refusal.c.body, needle) > 0 for needle in one.needles[start : start + _NEEDLES]]
        rows = connection.execute(sa.select(refusal).where(refusal.c.id > after, sa.or_(escaped, *may_be)))
        found |= {row.id for row in rows if one.owns(row.body, row.accepted_at_ms)}
    return found


def _refused_of_many(connection: sa.Connection, erasures: Mapping[int, Erasure]) -> dict[int, set[int]]:
    """All of the same, for each of many deletes, in one pass."""
    found: dict[int, set[int]] = {number: set() for number in erasures}
    whose: dict[bytes, list[int]] = {}
    for number, one in erasures.items():
        for an_id in one.named:
            whose.setdefault(an_id, []).append(number)
    (keys_in,) = {one.keys_in for one in erasures.values()}
    after = 0
    while rows := connection.execute(_SOME_REFUSED, {"after": after}).all():
        for row in rows:
            for number in {number for an_id in keys_in(row.body) for number in whose.get(an_id, ())}:
                if erasures[number].owns(row.body, row.accepted_at_ms):
                    found[number].add(row.id)
        after = rows[-1].id
    return found


def _put_back_behind(connection: sa.Connection, one: Settled, person: Erasure) -> list[tuple[str, int]]:
    """Entries of the person that were refused when the delete came, and wait behind it since a retry."""
    newest = facts.recall(connection, refused.PUT_BACK) or 0
    if newest <= one.entry.message_id:
        return []
    rows = connection.execute(
        sa.select(entry.c.endpoint, entry.c.message_id, message.c.body, message.c.accepted_at_ms)
        .join(message, message.c.id == entry.c.message_id)
        .where(
            entry.c.message_id > one.entry.message_id,
            entry.c.message_id <= newest,
            message.c.accepted_at_ms < one.entry.accepted_at_ms,
        )
    )
    return [(row.endpoint, row.message_id) for row in rows if person.owns(row.body, row.accepted_at_ms)]


def _erase(connection: sa.Connection, one: Erasure, n_refused: int, tallies: Tallies) -> None:
    """Mixpanel has deleted the profile: forget the person here, and note what Mixpanel is still to delete."""
    user_key = key(one.user)
    connection.info[ERASED] = True
    note(connection, user_key, one.message_id, "profile_deleted", "Mixpanel took the deletion of the profile")
    n_held = _let_go_of_held(connection, user_key, one)
    tallies[HOLDING, "held", ""] -= n_held
    tallies[HOLDING, "erased", "held"] += n_held
    _forget_ids(connection, user_key, one.devices)
    detail = f"erased {n_refused} refused and {n_held} held entries; links left as keys alone: {len(one.devices)}"
    note(connection, user_key, one.message_id, _ERASED_HERE, detail)
    if not one.distinct_ids:
        detail = "MIXPANEL_DELETION_TOKEN is not set, so the person's events stay with Mixpanel"
        note(connection, user_key, one.message_id, "deletion_not_requested", detail)
        return
    rows = [{"user_key": user_key, "message_id": one.message_id, "distinct_id": an_id} for an_id in one.distinct_ids]
    connection.execute(deletion.insert(), rows)
    note(connection, user_key, one.message_id, "deletion_waits", f"{len(rows)} ids wait for their request")


def _let_go_of_held(connection: sa.Connection, user_key: bytes, person: Erasure) -> int:
    """What waits for the person, and what of theirs waits for whoever comes; returns how many entries."""
    may_be = (held.c.user_key == user_key) | ((held.c.user_key == NOBODY) & held.c.key.in_(person.device_keys))
    n_held = 0
    for row in connection.execute(sa.select(held).where(may_be)).all():
        if row.user_key != NOBODY or person.has(row.key, row.traits_ms):
            connection.execute(held.delete().where(held.c.key == row.key, held.c.user_key == row.user_key))
            n_held += row.n_entries
    return n_held


def _forget_ids(connection: sa.Connection, user_key: bytes, devices: Sequence[str]) -> None:
    """Leave the keys: later messages must find the device taken, as they do at Mixpanel."""
    if devices:
        connection.execute(_FORGET_LINK, [{"one": key(device), "whose": user_key} for device in devices])
        # Where it is the device itself, whoever looks it up has its id in hand; an id made for a user is a hash.
        connection.execute(_FORGET_LOGIN, [{"one": key(device), "itself": device} for device in devices])
    for table in (login, conflict):
        connection.execute(table.update().where(table.c.user_key == user_key).values(user=None))


def _begin_to_wait(connection: sa.Connection, calls: Sequence[tuple[bytes, str]]) -> list[None]:
    for user_key, message_id in calls:
        noted = sa.exists().where(
            erasure.c.user_key == user_key, erasure.c.message_id == message_id, erasure.c.step == "waits"
        )
        if not connection.scalar(sa.select(noted)):
            detail = "older messages of the person are still on their way"
            note(connection, user_key, message_id, "waits", detail)
    return [None] * len(calls)
