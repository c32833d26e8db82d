"""What waits: messages and their entries, put in, claimed, ended."""

import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate
from typing import Any

import sqlalchemy as sa
from isal.isal_zlib import crc32

from adapter.store import leases, refused
from adapter.store.leases import Epochs
from adapter.store.portable import add, among, position
from adapter.store.shapes import Entry
from adapter.store.tables import ENDPOINTS, LANES_A_SHARE, entry, message, sequence

#: What one claim may hold in memory.
MAX_CLAIM_BYTES = 8_000_000

_CLAIM = (
    sa.select(
        entry.c.message_id,
        entry.c.lane,
        message.c.accepted_at_ms,
        entry.c.time_ms,
        entry.c.attempted,
        message.c.body,
        message.c.crc,
    )
    .join(message, message.c.id == entry.c.message_id)
    .where(
        entry.c.endpoint == sa.bindparam("endpoint"),
        entry.c.message_id > sa.bindparam("after"),
        # PostgreSQL does not conclude it, and merges the two from the oldest message on.
        message.c.id > sa.bindparam("after"),
    )
    .order_by(entry.c.message_id)
    .limit(sa.bindparam("limit"))
)
_CLAIM_SOME = _CLAIM.where(among(entry.c.lane // LANES_A_SHARE, "shares"))
_TAKE = (
    sequence.update()
    .where(sequence.c.name == "message")
    .values(next=sequence.c.next + sa.bindparam("count"))
    .returning(sequence.c.next)
)
_OLDER = (
    sa.select(entry.c.message_id, message.c.body)
    .join(message, message.c.id == entry.c.message_id)
    .where(
        entry.c.endpoint == sa.bindparam("endpoint"),
        entry.c.message_id < sa.bindparam("before"),
        (entry.c.endpoint == "groups")  # whose lane is the group's
        | among(entry.c.lane, "lanes")
        | (position(message.c.body, sa.bindparam("needle", type_=sa.LargeBinary)) > 0)
        | (position(message.c.body, sa.literal(rb"\u00", sa.LargeBinary)) > 0),  # it may be written so
    )
    .order_by(entry.c.message_id)
)
_STILL_WAITING = sa.select(entry.c.message_id).where(
    (entry.c.endpoint == sa.bindparam("endpoint")) & among(entry.c.message_id, "numbers")
)
_MARK_ATTEMPT = entry.update().where(
    (entry.c.endpoint == sa.bindparam("e")) & (entry.c.message_id == sa.bindparam("m"))
)
_COUNT_TRY = (
    entry.update()
    .where((entry.c.endpoint == sa.bindparam("e")) & (entry.c.message_id == sa.bindparam("m")))
    .values(
        tries=entry.c.tries + 1,
        tried_ms=sa.func.coalesce(entry.c.tried_ms, sa.bindparam("now_ms", type_=sa.BigInteger)),
    )
    .returning(entry.c.tries, entry.c.tried_ms)
)
_END_ENTRIES = (
    entry.delete()
    .where((entry.c.endpoint == sa.bindparam("endpoint")) & among(entry.c.message_id, "numbers"))
    .returning(entry.c.message_id)
)
#: A message goes with the last of its entries; naming the endpoints lets the database look up the primary key.
_END_MESSAGES = message.delete().where(
    among(message.c.id, "numbers")
    & ~sa.or_(
        *(
            sa.exists().where((entry.c.endpoint == endpoint) & (entry.c.message_id == message.c.id))
            for endpoint in ENDPOINTS
        )
    )
)


def put_in(connection: sa.Connection, arrived: Sequence[refused.Arrived]) -> int:
    """Put in messages, numbered in the order of commits; returns the number of the last, 0 if there is none."""
    if not arrived:
        return 0
    first: int = connection.execute(_TAKE, {"count": len(arrived)}).scalar_one() - len(arrived)
    add(
        connection,
        message,
        [
            {"id": number, "accepted_at_ms": accepted_at_ms, "body": body, "crc": crc32(body)}
            for number, (accepted_at_ms, body, _, _) in enumerate(arrived, first)
        ],
    )
    add(
        connection,
        entry,
        [
            {"endpoint": endpoint, "message_id": number, "lane": lane, "time_ms": time_ms, "attempted": False}
            for number, (_, _, lanes, time_ms) in enumerate(arrived, first)
            for endpoint, lane in lanes
        ],
    )
    return first + len(arrived) - 1


def claim(
    connection: sa.Connection,
    endpoint: str,
    limit: int,
    after: int,
    shares: Collection[int] | None,
    *,
    in_parts: bool,
) -> list[Entry]:
    """See `Store.claim`. `in_parts`: the driver fetches rows as they are asked for."""
    asked: dict[str, Any] = {"endpoint": endpoint, "limit": limit, "after": after}
    statement = _CLAIM
    if shares is not None:
        statement, asked["shares"] = _CLAIM_SOME, list(shares)
    if not in_parts:
        # All rows come before the first can be looked at: 2,000 messages can be 2 GB.
        sizes = connection.scalars(statement.with_only_columns(sa.func.length(message.c.body)), asked)
        asked["limit"] = max(bisect_right(list(accumulate(sizes)), MAX_CLAIM_BYTES), 1)
    found: list[Entry] = []
    n_bytes = 0
    for message_id, lane, accepted_at_ms, time_ms, attempted, body, crc in connection.execute(statement, asked):
        n_bytes += len(body)
        if found and n_bytes > MAX_CLAIM_BYTES:
            break
        found.append(
            Entry(
                endpoint=endpoint,
                message_id=message_id,
                lane=lane,
                accepted_at_ms=accepted_at_ms,
                time_ms=time_ms,
                attempted=attempted,
                body=body,
                damaged=crc is not None and crc32(body) != crc,
            )
        )
    return sorted(found, key=lambda one: (one.time_ms, one.message_id))


def first_older(
    connection: sa.Connection,
    before: int,
    lanes: Collection[int],
    needle: bytes,
    is_named_in: Callable[[bytes], bool],
) -> tuple[str, int] | None:
    """See `Store.first_older`."""
    for endpoint in ENDPOINTS:
        asked = {"endpoint": endpoint, "before": before, "lanes": list(lanes), "needle": needle}
        for message_id, body in connection.execute(_OLDER, asked):
            if is_named_in(body):
                return endpoint, message_id
    return None


def mark_attempt(connection: sa.Connection, marks: Sequence[tuple[Entry, bool, Epochs | None]]) -> list[bool]:
    """Note for each of these that it is being sent, or was not; False for one whose lane is another's by now."""
    marked = []
    for one, attempted, epochs in marks:
        ours = epochs is None or one.lane // LANES_A_SHARE in leases.lock(connection, epochs)
        if ours:
            connection.execute(_MARK_ATTEMPT, {"e": one.endpoint, "m": one.message_id, "attempted": attempted})
        marked.append(ours)
    return marked


def count_try(connection: sa.Connection, tried: Sequence[Entry]) -> list[tuple[int, int]]:
    """Count that these failed alone; how often each has, and since when in ms."""
    now_ms = int(time.time() * 1000)
    counted = []
    for one in tried:
        asked = {"e": one.endpoint, "m": one.message_id, "now_ms": now_ms}
        row = connection.execute(_COUNT_TRY, asked).one_or_none()
        counted.append((row.tries, row.tried_ms) if row else (0, now_ms))
    return counted


def waiting(connection: sa.Connection, entries: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Which of these entries, as (endpoint, message id), have not ended."""
    found: set[tuple[str, int]] = set()
    for endpoint, numbers in _by_endpoint(entries).items():
        rows = connection.scalars(_STILL_WAITING, {"endpoint": endpoint, "numbers": numbers})
        found.update((endpoint, number) for number in rows)
    return found


def end(connection: sa.Connection, entries: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """End entries, as (endpoint, message id); returns those that had not ended before."""
    deleted: set[tuple[str, int]] = set()
    for endpoint, numbers in _by_endpoint(entries).items():
        gone = connection.scalars(_END_ENTRIES, {"endpoint": endpoint, "numbers": numbers}).all()
        connection.execute(_END_MESSAGES, {"numbers": gone})
        deleted.update((endpoint, number) for number in gone)
    return deleted


def _by_endpoint(entries: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for endpoint, number in entries:
        numbers.setdefault(endpoint, []).append(number)
    return numbers
