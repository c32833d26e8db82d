"""What is erased of a person, step by step, and what Mixpanel is asked to delete.

A link is Mixpanel's too, and for good: it stays, by its keys. What goes are the plain ids beside them, what is held,
and what was refused.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec
import sqlalchemy as sa

from adapter.links import Login, Shared, key
from adapter.store import facts
from adapter.store.counts import Tallies
from adapter.store.engine import Reading, moment
from adapter.store.graph import NOBODY
from adapter.store.portable import among, insert, position
from adapter.store.refused import PUT_BACK
from adapter.store.shapes import Erasure, Settled
from adapter.store.tables import (
    HOLDING,
    conflict,
    deletion,
    entry,
    erasure,
    held,
    link,
    login,
    message,
    refusal,
    request,
    tally,
)
from adapter.store.writer import Writer

#: Answers of Mixpanel after which it will say nothing else (mixpanel.md 5.1).
FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED", "NOT_FOUND"})
#: The endpoint under which deletions that ended are tallied.
DELETIONS = "deletions"
#: Ids looked for in one pass over the refused.
_NEEDLES = 100
_WAIT_S = 30.0

_REQUEST = insert(request)
_PUT_REQUEST = _REQUEST.on_conflict_do_update(
    index_elements=[request.c.tracking_id],
    set_={"status": _REQUEST.excluded.status, "asked_at_ms": _REQUEST.excluded.asked_at_ms},
)

#: The step after which nothing of the person is left here.
_ERASED_HERE = "erased_here"
_ERASED = (
    sa.select(erasure.c.user_key, sa.func.max(erasure.c.at_ms))
    .where(among(erasure.c.user_key, "keys"), erasure.c.step == _ERASED_HERE)
    .group_by(erasure.c.user_key)
)
_HAS_ERASED = sa.select(sa.exists().where(erasure.c.step == _ERASED_HERE))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that was done to forget a person."""

    at_ms: int
    step: str  #: a stable word
    detail: str  #: a sentence; names no id of the person


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A refused entry that is to be erased."""

    id: int
    endpoint: str
    reason: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What deletes will take along, looked for before the commit that all others wait for."""

    newest: int  #: number of the newest refusal there was
    refused: dict[int, list[Refused]]  #: message id of the delete -> the person's


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request for deletion that Mixpanel works on."""

    tracking_id: str
    status: str


class Erasures:
    """The store's verbs for what Mixpanel is asked to delete, and for the steps that `adapter identity` lists."""

    def __init__(self, reading: Reading, writer: Writer) -> None:
        self._reading = reading
        self._writer = writer

    def devices_of(self, user: str) -> tuple[str, ...]:
        """The devices linked to a user, as far as their ids are still known."""
        with self._reading.connect() as connection:
            return devices_of(connection, user)

    def shared_by(self, user: str) -> tuple[Shared, ...]:
        """The devices that a user and others log in on."""
        with self._reading.connect() as connection:
            return _shared_by(connection, key(user))

    def look_for(self, settled: Sequence[Settled]) -> Found | None:
        """The refused entries that these deletes will take along; None if there is no delete."""
        erasures = {one.entry.message_id: one.erasure for one in settled if one.erasure is not None}
        if not erasures:
            return None
        with self._reading.connect() as connection:
            newest = connection.scalar(sa.select(sa.func.max(refusal.c.id))) or 0
            theirs = {number: _refused(connection, one) for number, one in erasures.items()}
        return Found(newest=newest, refused=theirs)

    def begins_to_wait(self, user: str, message_id: str) -> None:
        """Note, once for each delete, that older entries of the person are still on their way."""
        self._writer.run(_begin_to_wait, (key(user), message_id), wait_s=_WAIT_S)

    def to_request(self, limit: int) -> list[tuple[int, str]]:
        """The oldest (number, distinct id) that Mixpanel has not been asked to delete."""
        with self._reading.connect() as connection:
            found = sa.select(deletion.c.id, deletion.c.distinct_id).where(deletion.c.tracking_id.is_(None))
            return [
                (number, an_id) for number, an_id in connection.execute(found.order_by(deletion.c.id).limit(limit))
            ]

    def requested(self, numbers: Sequence[int], tracking_id: str) -> None:
        """Mixpanel has taken a request for these."""
        self._writer.run(_requested, (list(numbers), tracking_id), wait_s=_WAIT_S)

    def to_ask(self, before_ms: int) -> Request | None:
        """The request whose status was asked for the longest ago, if that was before a time."""
        with self._reading.connect() as connection:
            due = sa.select(request).where(request.c.asked_at_ms < before_ms).order_by(request.c.asked_at_ms).limit(1)
            row = connection.execute(due).one_or_none()
        return None if row is None else Request(tracking_id=row.tracking_id, status=row.status)

    def answered(self, tracking_id: str, status: str) -> None:
        """Mixpanel has said how far a request is; with a final answer its ids are let go."""
        self._writer.run(_answered, (tracking_id, status), wait_s=_WAIT_S)


def steps(connection: sa.Connection, user_key: bytes) -> tuple[Step, ...]:
    """What was done to forget the person with this key, oldest first."""
    found = sa.select(erasure.c.at_ms, erasure.c.step, erasure.c.detail).where(erasure.c.user_key == user_key)
    return tuple(Step(**row._asdict()) for row in connection.execute(found.order_by(erasure.c.id)))


def read_steps(database_url: str, user: str) -> tuple[Step, ...]:
    """The same for a user. Raises StoreUnavailable if there is no store."""
    with moment(database_url) as connection:
        return steps(connection, key(user))


def has_erased(connection: sa.Connection) -> bool:
    """Whether anybody was ever erased here."""
    return bool(connection.scalar(_HAS_ERASED))


def erased(connection: sa.Connection, user_keys: Iterable[bytes]) -> dict[bytes, int]:
    """When the users with these keys were erased, the last time; one that never was is missing."""
    wanted = list(user_keys)
    rows = connection.execute(_ERASED, {"keys": wanted}).all() if wanted else []
    return {user_key: at_ms for user_key, at_ms in rows}


def _refused(connection: sa.Connection, one: Erasure, after: int = 0) -> list[Refused]:
    """The refused entries of a person with numbers above `after`."""
    found: dict[int, Refused] = {}
    escaped = position(refusal.c.body, sa.literal(rb"\u00")) > 0
    for start in range(0, len(one.needles), _NEEDLES):
        may_be = [position(refusal.c.body, needle) > 0 for needle in one.needles[start : start + _NEEDLES]]
        rows = connection.execute(sa.select(refusal).where(refusal.c.id > after, sa.or_(escaped, *may_be)))
        for row in rows:
            if one.owns(row.body, row.accepted_at_ms):
                found[row.id] = Refused(id=row.id, endpoint=row.endpoint, reason=row.reason)
    return list(found.values())


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
            _note(connection, key(one.erasure.user), one.erasure.message_id, "profile_not_deleted", detail)
        else:
            theirs = found.refused.get(one.entry.message_id, [])
            theirs = theirs + _refused(connection, one.erasure, found.newest)
            n_refused = _let_go_of_refused(connection, theirs, tallies)
            # Only now: what somebody puts back at this moment is behind the delete, or was refused and is gone.
            behind = _put_back_behind(connection, one, one.erasure)
            tallies.update((endpoint, "erased", "put_back") for endpoint, _ in behind)
            _erase(connection, one.erasure, n_refused + len(behind), tallies)
            ended += behind
    return ended


def _let_go_of_refused(connection: sa.Connection, found: Sequence[Refused], tallies: Tallies) -> int:
    n_gone = 0
    for one in found:
        gone = connection.execute(refusal.delete().where(refusal.c.id == one.id)).rowcount
        tallies[one.endpoint, "refused", one.reason] -= gone
        tallies[one.endpoint, "erased", one.reason] += gone
        n_gone += gone
    return n_gone


def _put_back_behind(connection: sa.Connection, one: Settled, person: Erasure) -> list[tuple[str, int]]:
    """Entries of the person that were refused when the delete came, and wait behind it since a retry."""
    newest = facts.recall(connection, PUT_BACK) or 0
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
    _note(connection, user_key, one.message_id, "profile_deleted", "Mixpanel took the deletion of the profile")
    n_held = _let_go_of_held(connection, user_key, one)
    tallies[HOLDING, "held", ""] -= n_held
    tallies[HOLDING, "erased", "held"] += n_held
    _forget_ids(connection, user_key, one.devices)
    detail = f"{n_refused} refused and {n_held} held entries erased; {len(one.devices)} links keep their keys alone"
    _note(connection, user_key, one.message_id, _ERASED_HERE, detail)
    if not one.distinct_ids:
        detail = "MIXPANEL_DELETION_TOKEN is not set, so the person's events stay with Mixpanel"
        _note(connection, user_key, one.message_id, "deletion_not_requested", detail)
        return
    rows = [{"user_key": user_key, "message_id": one.message_id, "distinct_id": an_id} for an_id in one.distinct_ids]
    connection.execute(deletion.insert(), rows)
    _note(connection, user_key, one.message_id, "deletion_waits", f"{len(rows)} ids wait for their request")


def forget(connection: sa.Connection) -> None:
    """What was to be deleted is of another destination."""
    _note_all(connection, sa.true(), "destination_changed", "the project before is not asked any more")
    connection.execute(deletion.delete())
    connection.execute(request.delete())


def report(connection: sa.Connection) -> dict[str, Any]:
    """{waiting, pending, ended}: ids to be requested, requests under way, status -> ids that ended with it."""
    waiting = sa.select(sa.func.count()).where(deletion.c.tracking_id.is_(None))
    ended = sa.select(tally.c.state, tally.c.count).where(tally.c.endpoint == DELETIONS)
    return {
        "waiting": connection.scalar(waiting) or 0,
        "pending": connection.scalar(sa.select(sa.func.count()).select_from(request)) or 0,
        "ended": {state: count for state, count in connection.execute(ended)},
    }


def devices_of(connection: sa.Connection, user: str) -> tuple[str, ...]:
    """By the links, and by the logins: the id of a further user of a shared device stays there, being a hash."""
    user_key = key(user)
    linked = connection.scalars(sa.select(link.c.device).where(link.c.user_key == user_key)).all()
    logins = connection.execute(sa.select(login.c.key, login.c.sent_as).where(login.c.user_key == user_key))
    made = {sent_as for device_key, sent_as in logins if sent_as is not None and key(sent_as) != device_key}
    return tuple(sorted({one for one in linked if one is not None} | made))


def _shared_by(connection: sa.Connection, user_key: bytes) -> tuple[Shared, ...]:
    theirs = sa.select(login.c.key).where(login.c.user_key == user_key)
    rows = connection.execute(
        sa.select(login.c.key, link.c.device, login.c.time_ms, login.c.user_key, login.c.sent_as)
        .outerjoin(link, link.c.key == login.c.key)
        .where(login.c.key.in_(theirs))
        .order_by(login.c.key, login.c.time_ms)
    )
    return tuple(
        Shared(
            key=device_key,
            device=(of_one := list(logins))[0].device,
            logins=tuple(Login(one.time_ms, one.user_key, one.sent_as or one.device or "") for one in of_one),
        )
        for device_key, logins in groupby(rows, key=lambda row: row.key)
    )


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
    for device in devices:
        one = key(device)
        connection.execute(
            link.update().where(link.c.key == one, link.c.user_key == user_key).values(device=None, user=None)
        )
        # Where it is the device itself, whoever looks it up has its id in hand; an id made for a user is a hash.
        connection.execute(login.update().where(login.c.key == one, login.c.sent_as == device).values(sent_as=None))
    for table in (login, conflict):
        connection.execute(table.update().where(table.c.user_key == user_key).values(user=None))


def _note(connection: sa.Connection, user_key: bytes, message_id: str, step: str, detail: str) -> None:
    row = {"user_key": user_key, "message_id": message_id, "step": step, "detail": detail}
    connection.execute(erasure.insert(), {**row, "at_ms": int(time.time() * 1000)})


def _note_all(connection: sa.Connection, where: Any, step: str, detail: str) -> int:
    """A step for everybody who has an id among these deletions; returns how many ids these are."""
    rows = connection.execute(sa.select(deletion.c.user_key, deletion.c.message_id).where(where)).all()
    for user_key, message_id in dict.fromkeys((row.user_key, row.message_id) for row in rows):
        _note(connection, user_key, message_id, step, detail)
    return len(rows)


def _begin_to_wait(connection: sa.Connection, calls: Sequence[tuple[bytes, str]]) -> list[None]:
    for user_key, message_id in calls:
        noted = sa.exists().where(
            erasure.c.user_key == user_key, erasure.c.message_id == message_id, erasure.c.step == "waits"
        )
        if not connection.scalar(sa.select(noted)):
            detail = "older messages of the person are still on their way"
            _note(connection, user_key, message_id, "waits", detail)
    return [None] * len(calls)


def _requested(connection: sa.Connection, calls: Sequence[tuple[list[int], str]]) -> list[None]:
    now_ms = int(time.time() * 1000)
    for numbers, tracking_id in calls:
        for some in _parts(numbers):
            connection.execute(deletion.update().where(deletion.c.id.in_(some)).values(tracking_id=tracking_id))
        row = {"tracking_id": tracking_id, "status": "PENDING", "asked_at_ms": now_ms}
        connection.execute(_PUT_REQUEST, row)
        _note_all(connection, deletion.c.tracking_id == tracking_id, "deletion_requested", f"as {tracking_id}")
    return [None] * len(calls)


def _answered(connection: sa.Connection, calls: Sequence[tuple[str, str]]) -> list[None]:
    now_ms = int(time.time() * 1000)
    for tracking_id, status in calls:
        one, theirs = request.c.tracking_id == tracking_id, deletion.c.tracking_id == tracking_id
        if connection.scalar(sa.select(request.c.status).where(one)) != status:
            n_ids = _note_all(connection, theirs, f"deletion_{status.lower()}", f"says Mixpanel of {tracking_id}")
            if status in FINAL:
                _count_ended(connection, status.lower(), n_ids)
        if status in FINAL:
            connection.execute(deletion.delete().where(theirs))
            connection.execute(request.delete().where(one))
        else:
            connection.execute(request.update().where(one).values(status=status, asked_at_ms=now_ms))
    return [None] * len(calls)


def _count_ended(connection: sa.Connection, status: str, n_ids: int) -> None:
    where = (tally.c.endpoint == DELETIONS) & (tally.c.state == status)
    if not connection.execute(tally.update().where(where).values(count=tally.c.count + n_ids)).rowcount:
        row = {"endpoint": DELETIONS, "state": status, "reason": "", "count": n_ids}
        connection.execute(tally.insert(), row)


def _parts(numbers: Iterable[int], size: int = 500) -> Iterator[list[int]]:
    listed = list(numbers)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]
