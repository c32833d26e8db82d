"""What Mixpanel is asked to delete: ids that wait to be requested, and requests that it works on."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from adapter.store import counts
from adapter.store.engine import Reading
from adapter.store.erasure import note
from adapter.store.portable import among, insert
from adapter.store.tables import deletion, request, tally
from adapter.store.writer import Writer

#: Answers of Mixpanel after which it will say nothing else (mixpanel.md 5.1).
FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED", "NOT_FOUND"})
#: The endpoint under which deletions that ended are tallied.
DELETIONS = "deletions"
_WAIT_S = 30.0

_REQUEST = insert(request)
_PUT_REQUEST = _REQUEST.on_conflict_do_update(
    index_elements=[request.c.tracking_id],
    set_={"status": _REQUEST.excluded.status, "asked_at_ms": _REQUEST.excluded.asked_at_ms},
)
_THESE = among(deletion.c.id, "numbers")


class Deletions:
    """The store's verbs for what Mixpanel is asked to delete."""

    def __init__(self, reading: Reading, writer: Writer) -> None:
        self._reading = reading
        self._writer = writer

    def to_request(self, limit: int) -> list[tuple[int, str]]:
        """The oldest (number, distinct id) that Mixpanel has not been asked to delete."""
        waiting = sa.select(deletion.c.id, deletion.c.distinct_id).where(deletion.c.tracking_id.is_(None))
        with self._reading.connect() as connection:
            rows = connection.execute(waiting.order_by(deletion.c.id).limit(limit))
            return [(number, an_id) for number, an_id in rows]

    def requested(self, numbers: Sequence[int], tracking_id: str) -> None:
        """Mixpanel has taken a request for these."""
        self._writer.run(_requested, (numbers, tracking_id), wait_s=_WAIT_S)

    def to_ask(self, before_ms: int) -> str | None:
        """The request whose status was asked for the longest ago, if that was before a time."""
        due = sa.select(request.c.tracking_id).where(request.c.asked_at_ms < before_ms)
        with self._reading.connect() as connection:
            found: str | None = connection.scalar(due.order_by(request.c.asked_at_ms).limit(1))
        return found

    def answered(self, tracking_id: str, status: str) -> None:
        """Mixpanel has said how far a request is; with a final answer its ids are let go."""
        self._writer.run(_answered, (tracking_id, status), wait_s=_WAIT_S)


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


def _note_all(connection: sa.Connection, where: Any, step: str, detail: str) -> int:
    """A step for everybody who has an id among these deletions; returns how many ids these are."""
    rows = connection.execute(sa.select(deletion.c.user_key, deletion.c.message_id).where(where)).all()
    for user_key, message_id in dict.fromkeys((row.user_key, row.message_id) for row in rows):
        note(connection, user_key, message_id, step, detail)
    return len(rows)


def _requested(connection: sa.Connection, calls: Sequence[tuple[Sequence[int], str]]) -> list[None]:
    now_ms = int(time.time() * 1000)
    for numbers, tracking_id in calls:
        connection.execute(deletion.update().where(_THESE).values(tracking_id=tracking_id), {"numbers": numbers})
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
                counts.add(connection, Counter({(DELETIONS, status.lower(), ""): n_ids}))
        if status in FINAL:
            connection.execute(deletion.delete().where(theirs))
            connection.execute(request.delete().where(one))
        else:
            connection.execute(request.update().where(one).values(status=status, asked_at_ms=now_ms))
    return [None] * len(calls)
