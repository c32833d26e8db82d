"""The store's verbs: put, claim, settle."""

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from adapter import links
from adapter.errors import AdapterError, StoreUnavailable
from adapter.links import Known
from adapter.store import engine as engines
from adapter.store import erasure, facts, graph, seen
from adapter.store.shapes import INTAKE, Arrival, Entry, Put, Refusal, Settled
from adapter.store.tables import ENDPOINTS, HOLDING, SCHEMA_VERSION, entry, message, metadata, refusal, tally
from adapter.store.writer import Writer

#: What one claim may hold in memory.
MAX_CLAIM_BYTES = 8_000_000
#: Kept free on the disk, for without room no settlement can be written and the disk never drains.
RESERVE_BYTES = 32_000_000
#: A settlement is worth waiting for: without it the batch is sent again.
SETTLE_WAIT_S = 30.0

_PUT_MESSAGE, _PUT_ENTRY, _PUT_REFUSAL, _PUT_TALLY = message.insert(), entry.insert(), refusal.insert(), insert(tally)
_COUNT = _PUT_TALLY.on_conflict_do_update(
    index_elements=list(tally.primary_key), set_={"count": tally.c.count + _PUT_TALLY.excluded.count}
)
_CLAIM = (
    sa.select(entry.c.message_id, message.c.accepted_at_ms, entry.c.time_ms, entry.c.attempted, message.c.body)
    .join(message, message.c.id == entry.c.message_id)
    .where(entry.c.endpoint == sa.bindparam("endpoint"), entry.c.message_id > sa.bindparam("after"))
    .order_by(entry.c.message_id)
    .limit(sa.bindparam("limit"))
)
_OLDER = (
    sa.select(entry.c.message_id, message.c.body)
    .join(message, message.c.id == entry.c.message_id)
    .where(
        entry.c.endpoint == sa.bindparam("endpoint"),
        entry.c.message_id < sa.bindparam("before"),
        (entry.c.endpoint == "groups")  # whose lane is the group's
        | entry.c.lane.in_(sa.bindparam("lanes", expanding=True))
        | (sa.func.instr(message.c.body, sa.bindparam("needle", type_=sa.LargeBinary)) > 0)
        | (sa.func.instr(message.c.body, rb"\u00") > 0),  # it may be written so
    )
    .order_by(entry.c.message_id)
)
_STILL_WAITING = sa.select(entry.c.message_id).where(
    (entry.c.endpoint == sa.bindparam("endpoint")) & entry.c.message_id.in_(sa.bindparam("numbers", expanding=True))
)
_MARK_ATTEMPT = entry.update().where(
    (entry.c.endpoint == sa.bindparam("e")) & (entry.c.message_id == sa.bindparam("m"))
)
_END_ENTRY = entry.delete().where((entry.c.endpoint == sa.bindparam("e")) & (entry.c.message_id == sa.bindparam("m")))
#: A message goes with the last of its entries; naming the endpoints lets the database look up the primary key.
_END_MESSAGE = message.delete().where(
    (message.c.id == sa.bindparam("m"))
    & ~sa.or_(
        *(
            sa.exists().where((entry.c.endpoint == endpoint) & (entry.c.message_id == message.c.id))
            for endpoint in ENDPOINTS
        )
    )
)

Tallies = Counter[tuple[str, str, str]]  # (endpoint, state, reason) -> how many
_Put = tuple[Sequence[Arrival], Sequence[Refusal]]
#: Makes of what a device releases the message that carries it to its user.
Releasing = Callable[[graph.Release], Put]


class Store:
    """The store of the one process that writes. `close` it, or use it as a context manager."""

    def __init__(self, database_url: str) -> None:
        """Open or create the store. Raises StoreLocked, StoreUnavailable."""
        path = engines.database_path(database_url)
        if not path.parent.is_dir():
            raise StoreUnavailable(f"there is no folder {path.parent} for the store")
        self._lock = engines.Lock(path)
        writing = engines.writing(path)
        try:
            metadata.create_all(writing)
            with writing.begin() as connection:
                _check_version(connection)
                self._next_id: int = (connection.scalar(sa.select(sa.func.max(message.c.id))) or 0) + 1
        except (sa.exc.DBAPIError, AdapterError) as error:
            writing.dispose()
            self._lock.release()
            if isinstance(error, AdapterError):
                raise
            raise StoreUnavailable(f"{path} cannot be opened: {error.orig}") from error
        self._folder, self._looked_at, self._has_room = path.parent, float("-inf"), True
        self._days: set[int] = set()  # days whose table of seen messages is known to be ready
        self._reading = engines.reading(path)
        self._writer = Writer(writing)
        #: what is erased of a person, and what Mixpanel is asked to delete
        self.erasures = erasure.Erasures(self._reading, self._writer)

    def close(self) -> None:
        self._reading.dispose()
        self._writer.close()
        self._lock.release()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, arrivals: Sequence[Arrival], refusals: Sequence[Refusal] = ()) -> list[bool]:
        """Store messages and refusals in one commit; True for each message that is new.

        One seen before, same key and same content, is not stored again. Raises StoreUnavailable: nothing of it can
        be acknowledged then.
        """
        self._check_room()
        new: list[bool] = self._writer.run(self._put, (arrivals, refusals))
        self._days.update(_day(arrival) for arrival in arrivals)
        return new

    def _check_room(self) -> None:
        """Look at the free space, at most once a second. Raises StoreUnavailable before the disk is full."""
        now = time.monotonic()
        if now - self._looked_at > 1.0:
            disk = os.statvfs(self._folder)
            self._has_room = disk.f_bavail * disk.f_frsize > RESERVE_BYTES
            self._looked_at = now
        if not self._has_room:
            raise StoreUnavailable(f"less than {RESERVE_BYTES} bytes are free in {self._folder}")

    def claim(self, endpoint: str, limit: int, after: int = 0) -> list[Entry]:
        """The oldest entries that wait for an endpoint, at most `limit` of them and 8 MB, by (time, arrival).

        `after` leaves out those up to this message id, which had to be passed over.
        Claiming changes nothing: the one delivery thread of an endpoint claims, sends and settles.
        """
        found: list[Entry] = []
        n_bytes = 0
        with self._reading.connect() as connection:
            rows = connection.execute(_CLAIM, {"endpoint": endpoint, "limit": limit, "after": after})
            for message_id, accepted_at_ms, time_ms, attempted, body in rows:
                n_bytes += len(body)
                if found and n_bytes > MAX_CLAIM_BYTES:
                    break
                found.append(
                    Entry(
                        endpoint=endpoint,
                        message_id=message_id,
                        accepted_at_ms=accepted_at_ms,
                        time_ms=time_ms,
                        attempted=attempted,
                        body=body,
                    )
                )
        return sorted(found, key=lambda one: (one.time_ms, one.message_id))

    def settle(
        self,
        settled: Sequence[Settled],
        kept: Mapping[str, Any] | None = None,
        releasing: Releasing | None = None,
    ) -> None:
        """End entries, each in its state, and keep facts, in one commit. Raises StoreUnavailable: they still wait.

        What they add to what is known of devices is written in the same commit; `releasing` is needed where that
        can release what is held.
        """
        # Looked for before the commit, for which others wait; what is refused meanwhile is looked for in it.
        found = self.erasures.look_for(settled)
        self._writer.run(self._settle, (settled, kept or {}, releasing, found), wait_s=SETTLE_WAIT_S)

    def first_older(
        self, before: int, lanes: Collection[int], needle: bytes, is_named_in: Callable[[bytes], bool]
    ) -> tuple[str, int] | None:
        """An entry, as (endpoint, message id), that came before a message and waits, and that names somebody.

        It is in one of these lanes, or has the needle in its body, or waits for a group.
        """
        with self._reading.connect() as connection:
            for endpoint in ENDPOINTS:
                asked = {"endpoint": endpoint, "before": before, "lanes": list(lanes), "needle": needle}
                for message_id, body in connection.execute(_OLDER, asked):
                    if is_named_in(body):
                        return endpoint, message_id
        return None

    def still_waiting(self, entries: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
        """Which of these entries, as (endpoint, message id), have not ended."""
        with self._reading.connect() as connection:
            return _waiting(connection, entries)

    def known(self, devices: Iterable[str]) -> dict[str, Known]:
        """What is known of each of these devices; one of which nothing is known is missing."""
        with self._reading.connect() as connection:
            return graph.known(connection, devices)

    def links_of(self, users: Iterable[str]) -> dict[str, int]:
        """How many devices each of these ids has as a user; one that has none is missing."""
        with self._reading.connect() as connection:
            return graph.links_of(connection, users)

    def aliases(self, users: Iterable[str]) -> set[str]:
        """Which of these users were made an alias."""
        with self._reading.connect() as connection:
            return graph.aliases(connection, users)

    def waiting(self, device: str, user: str) -> graph.Waiting | None:
        """What waits with a device, to be sent to this user."""
        with self._reading.connect() as connection:
            return graph.waiting(connection, device, links.key(user))

    def expire_held(self, before_ms: int) -> None:
        """Let go of what has waited with a device since before a time, and count it."""
        self._writer.run(_expire_held, before_ms, wait_s=SETTLE_WAIT_S)

    def mark_attempt(self, one: Entry, attempted: bool) -> None:
        """Note, before a POST that must not be made twice, that it is made; or that it did not reach anybody.

        Raises StoreUnavailable.
        """
        self._writer.run(_mark_attempt, (one, attempted), wait_s=SETTLE_WAIT_S)

    def remember(self, name: str, value: Any) -> None:
        """Keep a fact, such as the last answer of an endpoint, for `adapter status`."""
        self._writer.run(_remember, (name, value))

    def recall(self, name: str) -> Any:
        """A fact that was kept, or None."""
        with self._reading.connect() as connection:
            return facts.recall(connection, name)

    def forget_destination(self) -> None:
        """What was seen belongs to the destination before, and so does what still waits: it must not reach another
        project by mistake, so it is refused with that reason. Not for a store in use.
        """
        self._writer.run(_forget_destination, None, wait_s=600)

    def _put(self, connection: sa.Connection, puts: Sequence[_Put]) -> list[list[bool]]:
        for day in {_day(arrival) for arrivals, _ in puts for arrival in arrivals} - self._days:
            seen.begin_day(connection, day)
        tallies: Tallies = Counter()
        known = seen.known(connection, [arrival.key for arrivals, _ in puts for arrival in arrivals])
        messages: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        pairs: list[tuple[bytes, bytes]] = []
        results = []
        for arrivals, refusals in puts:
            new = []
            for arrival in arrivals:
                contents = known.setdefault(arrival.key, set())
                new.append(arrival.content not in contents)
                if not new[-1]:
                    tallies[INTAKE, "duplicate", ""] += 1
                    continue
                if contents:
                    tallies[INTAKE, "note", "same_id_other_content"] += 1
                contents.add(arrival.content)
                pairs.append((arrival.key, arrival.content))
                messages.append({"id": self._next_id, "accepted_at_ms": arrival.accepted_at_ms, "body": arrival.body})
                for endpoint, lane in arrival.lanes:
                    tallies[endpoint, "acknowledged", ""] += 1
                    entries.append(_entry_row(endpoint, self._next_id, lane, arrival.time_ms))
                self._next_id += 1
            for one in refusals:
                tallies[one.endpoint, "acknowledged", ""] += 1
            results.append(new)
        if messages:
            connection.execute(_PUT_MESSAGE, messages)
            connection.execute(_PUT_ENTRY, entries)
            seen.add(connection, pairs, messages[0]["accepted_at_ms"] // seen.DAY_MS)
        _refuse(connection, [one for _, refusals in puts for one in refusals], tallies)
        _count(connection, tallies)
        return results

    def _settle(
        self,
        connection: sa.Connection,
        batches: Sequence[tuple[Sequence[Settled], Mapping[str, Any], Releasing | None, erasure.Found | None]],
    ) -> list[None]:
        tallies: Tallies = Counter()
        # A settlement that took too long may have been made all the same: an entry ends once.
        waiting = _waiting(
            connection, [(one.entry.endpoint, one.entry.message_id) for batch, *_ in batches for one in batch]
        )
        for batch, kept, releasing, found in batches:
            settled = []
            for one in batch:
                if (one.entry.endpoint, one.entry.message_id) in waiting:
                    waiting.remove((one.entry.endpoint, one.entry.message_id))
                    settled.append(one)
            _end(connection, settled, tallies)
            self._learn(connection, settled, releasing, tallies)
            erasure.settle(connection, settled, found, tallies)
            for name, value in kept.items():
                facts.remember(connection, name, value)
        _count(connection, tallies)
        return [None] * len(batches)

    def _learn(
        self, connection: sa.Connection, settled: Sequence[Settled], releasing: Releasing | None, tallies: Tallies
    ) -> None:
        """Write down what accepted messages say of devices, and put in what that releases."""
        effects = [
            (one.effect, one.state == "held") for one in settled if one.effect is not None and one.state != "refused"
        ]
        if not effects:
            return
        now_ms = int(time.time() * 1000)
        releases, n_released = graph.apply(connection, effects, now_ms)
        for release in releases:
            if releasing is None:
                raise ValueError("something is released, and nobody says how")
            put = releasing(release)
            self._put_own(connection, put, now_ms)
            tallies[put.endpoint, "acknowledged", ""] += 1
        tallies[HOLDING, "held", ""] -= n_released
        tallies[HOLDING, "nothing", "released"] += n_released

    def _put_own(self, connection: sa.Connection, put: Put, now_ms: int) -> None:
        number, self._next_id = self._next_id, self._next_id + 1
        connection.execute(_PUT_MESSAGE, [{"id": number, "accepted_at_ms": now_ms, "body": put.body}])
        connection.execute(_PUT_ENTRY, [_entry_row(put.endpoint, number, put.lane, put.time_ms)])


def _entry_row(endpoint: str, message_id: int, lane: int, time_ms: int) -> dict[str, Any]:
    return {"endpoint": endpoint, "message_id": message_id, "lane": lane, "time_ms": time_ms, "attempted": False}


def _day(arrival: Arrival) -> int:
    return arrival.accepted_at_ms // seen.DAY_MS


def _check_version(connection: sa.Connection) -> None:
    found = facts.recall(connection, "schema")
    if found is None:
        facts.remember(connection, "schema", SCHEMA_VERSION)
    elif found != SCHEMA_VERSION:
        raise StoreUnavailable(f"the store has schema {found}; this version reads {SCHEMA_VERSION}")


def _remember(connection: sa.Connection, named: Sequence[tuple[str, Any]]) -> list[None]:
    for name, value in named:
        facts.remember(connection, name, value)
    return [None] * len(named)


def _mark_attempt(connection: sa.Connection, marks: Sequence[tuple[Entry, bool]]) -> list[None]:
    marked = [{"e": one.endpoint, "m": one.message_id, "attempted": attempted} for one, attempted in marks]
    connection.execute(_MARK_ATTEMPT, marked)
    return [None] * len(marks)


def _end(connection: sa.Connection, settled: Sequence[Settled], tallies: Tallies) -> None:
    refusals = []
    for one in settled:
        if one.state == "refused":
            refusals.append(
                Refusal(
                    endpoint=one.entry.endpoint,
                    reason=one.reason,
                    detail=one.detail,
                    accepted_at_ms=one.entry.accepted_at_ms,
                    body=one.entry.body,
                )
            )
        else:
            tallies[one.entry.endpoint, one.state, one.reason] += 1
        for note in one.notes:
            tallies[one.entry.endpoint, "note", note] += 1
    _refuse(connection, refusals, tallies)
    _delete(connection, [(one.entry.endpoint, one.entry.message_id) for one in settled])


def _expire_held(connection: sa.Connection, calls: Sequence[int]) -> list[None]:
    n_held = graph.expire(connection, max(calls))
    _count(connection, Counter({(HOLDING, "held", ""): -n_held, (HOLDING, "expired", ""): n_held}))
    return [None] * len(calls)


def _waiting(connection: sa.Connection, entries: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Which of these entries, as (endpoint, message id), have not ended."""
    found: set[tuple[str, int]] = set()
    asked: dict[str, list[int]] = {}
    for endpoint, number in entries:
        asked.setdefault(endpoint, []).append(number)
    for endpoint, numbers in asked.items():
        rows = connection.scalars(_STILL_WAITING, {"endpoint": endpoint, "numbers": numbers})
        found.update((endpoint, number) for number in rows)
    return found


def _delete(connection: sa.Connection, ended: Sequence[tuple[str, int]]) -> None:
    if not ended:
        return
    connection.execute(_END_ENTRY, [{"e": endpoint, "m": number} for endpoint, number in ended])
    connection.execute(_END_MESSAGE, [{"m": number} for _, number in ended])


def _forget_destination(connection: sa.Connection, _calls: Sequence[None]) -> list[None]:
    seen.forget(connection)
    for endpoint in (*ENDPOINTS, erasure.DELETIONS):
        facts.remember(connection, f"last_answer_{endpoint}", None)
    waiting = sa.select(
        entry.c.endpoint, entry.c.message_id, message.c.accepted_at_ms, entry.c.time_ms, message.c.body
    ).join(message, message.c.id == entry.c.message_id)
    detail, tallies = "it waited for the destination before", Counter[tuple[str, str, str]]()
    while rows := connection.execute(waiting.limit(1_000)).all():
        entries = [Entry(**row._asdict()) for row in rows]
        _end(
            connection,
            [Settled(entry=one, state="refused", reason="destination_changed", detail=detail) for one in entries],
            tallies,
        )
    erasure.forget(connection)
    n_held = graph.forget(connection)
    tallies[HOLDING, "held", ""] -= n_held
    tallies[HOLDING, "expired", ""] += n_held
    _count(connection, tallies)
    return [None]


def _refuse(connection: sa.Connection, refusals: Iterable[Refusal], tallies: Tallies) -> None:
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
    if rows:
        connection.execute(_PUT_REFUSAL, rows)


def _count(connection: sa.Connection, tallies: Tallies) -> None:
    tallies = Counter({name: count for name, count in tallies.items() if count})
    if not tallies:
        return
    connection.execute(
        _COUNT,
        [
            {"endpoint": endpoint, "state": state, "reason": reason, "count": count}
            for (endpoint, state, reason), count in tallies.items()
        ],
    )
