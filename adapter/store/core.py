"""The store's verbs: put, claim, settle."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from adapter.errors import AdapterError, StoreUnavailable
from adapter.links import Effect
from adapter.store import (
    counts,
    deletions,
    entries,
    erasure,
    facts,
    graph,
    leases,
    migrations,
    refused,
    seen,
    suspects,
)
from adapter.store.counts import Tallies
from adapter.store.engine import Reading, database, said
from adapter.store.leases import Epochs, Leases
from adapter.store.reader import Reader
from adapter.store.room import Room
from adapter.store.shapes import INTAKE, Arrival, Entry, Kept, Put, Refusal, Settled
from adapter.store.tables import ENDPOINTS, HOLDING, LANES_A_SHARE, entry, message
from adapter.store.writer import Writer

#: What a message may take beside its body: a page of the keys that were seen, and one of the entries.
ROW_BYTES = 8_192
#: A settlement is worth waiting for: without it the batch is sent again.
SETTLE_WAIT_S = 30.0

_Put = tuple[Sequence[Arrival], Sequence[Refusal]]
_Settling = tuple[Sequence[Settled], Mapping[str, Any], "Releasing | None", erasure.Found | None, Epochs | None]
#: Makes of what a device releases the message that carries it to its user.
Releasing = Callable[[graph.Release], Put]


class Store(Reader):
    """The store of a process that writes. `close` it, or use it as a context manager."""

    def __init__(self, database_url: str, *, max_waiting: int = 0) -> None:
        """Open the store; a SQLite file is made if there is none. Raises StoreLocked, StoreUnavailable.

        Nothing is put in while more than `max_waiting` entries wait; zero: any number may.
        """
        self._database = database(database_url)
        self._lock = self._database.own()
        writing, left_up_to = self._database.writing(), 0
        try:
            if self._database.shared:
                migrations.check(writing)
            else:
                migrations.apply(writing)
                with writing.begin() as connection:
                    left_up_to = leases.left_up_to(connection)
        except (sa.exc.DBAPIError, UnicodeDecodeError, AdapterError) as error:  # what SQLite says may be damaged, too
            writing.dispose()
            if self._lock is not None:
                self._lock.release()
            if isinstance(error, AdapterError):
                raise
            raise StoreUnavailable(f"{self._database} cannot be opened: {said(error)}") from error
        self._days: set[int] = set()  # days whose table of seen messages is known to be ready
        super().__init__(Reading(self._database))
        self._room = Room(self._database, self._reading, self.n_waiting, max_waiting)
        self._writer = Writer(writing)
        #: which lanes this process may send for
        self.leases = Leases(self._writer, shared=self._database.shared, left_up_to=left_up_to)
        #: what is erased of a person
        self.erasures = erasure.Erasures(self._reading, self._writer)
        #: what Mixpanel is asked to delete
        self.deletions = deletions.Deletions(self._reading, self._writer)

    @property
    def is_shared(self) -> bool:
        """Whether other processes may write as well."""
        return self._database.shared

    def close(self) -> None:
        with suppress(StoreUnavailable):  # then others wait until they run out
            self.leases.give_up()
        self._reading.dispose()
        self._writer.close()
        if self._lock is not None:
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
        n_bytes = sum(len(one.body) + ROW_BYTES for one in arrivals) + sum(len(one.body) for one in refusals)
        with self._room.taken(n_bytes):
            new: list[bool] = self._writer.run(self._put, (arrivals, refusals), n_bytes=n_bytes)
        self._days.update(_day(arrival) for arrival in arrivals)
        return new

    def claim(self, endpoint: str, limit: int, after: int = 0, shares: Collection[int] | None = None) -> list[Entry]:
        """The oldest entries that wait for an endpoint, at most `limit` of them and 8 MB, by (time, arrival).

        `after` leaves out those up to this message id, `shares` all lanes but those of some.
        Claiming changes nothing: one thread claims for a lane and endpoint, sends and settles.
        """
        with self._reading.connect() as connection:
            return entries.claim(connection, endpoint, limit, after, shares, in_parts=not self._database.shared)

    def n_waiting(self) -> int:
        """How many entries wait, of all endpoints, by the tallies. Raises StoreUnavailable, soon."""
        n_waiting: int = self._writer.run(counts.n_waiting, None)
        return n_waiting

    def newest(self) -> int:
        """A message id that all messages to come exceed."""
        with self._reading.connect() as connection:
            return leases.newest(connection)

    def settle(
        self,
        settled: Sequence[Settled],
        kept: Mapping[str, Any] | None = None,
        releasing: Releasing | None = None,
        epochs: Epochs | None = None,
    ) -> None:
        """End entries, each in its state, and keep facts, in one commit. Raises StoreUnavailable: they still wait.

        With `epochs`, those in which they were claimed: an entry whose lane is another's by now is left to them.

        What they add to what is known of devices is written in the same commit; `releasing` is needed where that
        can release what is held.
        """
        # Looked for before the commit, for which others wait; what is refused meanwhile is looked for in it.
        found = self.erasures.look_for(settled)
        fence = epochs if self._database.shared else None
        self._writer.run(self._settle, (settled, kept or {}, releasing, found, fence), wait_s=SETTLE_WAIT_S)

    def learn(self, effects: Sequence[Effect], releasing: Releasing) -> None:
        """Write down what messages that were accepted say of devices, though they were no entries of this store."""
        self._writer.run(self._learn, (effects, releasing), wait_s=SETTLE_WAIT_S)

    def first_older(
        self, before: int, lanes: Collection[int], needle: bytes, is_named_in: Callable[[bytes], bool]
    ) -> tuple[str, int] | None:
        """An entry, as (endpoint, message id), that came before a message and waits, and that names somebody.

        It is in one of these lanes, or has the needle in its body, or waits for a group.
        """
        with self._reading.connect() as connection:
            return entries.first_older(connection, before, lanes, needle, is_named_in)

    def still_waiting(self, wanted: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
        """Which of these entries, as (endpoint, message id), have not ended."""
        with self._reading.connect() as connection:
            return entries.waiting(connection, wanted)

    def expire_held(self, before_ms: int) -> None:
        """Let go of what has waited with a device since before a time, and count it."""
        self._writer.run(_expire_held, before_ms, wait_s=SETTLE_WAIT_S)

    def put_back(self, judged: Sequence[tuple[Kept, refused.Judged]]) -> list[str]:
        """Take refusals back, each as it was judged, in one commit: waiting, duplicate, refused or gone for each.

        Raises StoreUnavailable; asked again, what was done all the same is found gone.
        """
        with self._room.taken():
            became: list[str] = self._writer.run(_put_back, judged, wait_s=SETTLE_WAIT_S)
        return became

    def discard(self, numbers: Sequence[int]) -> int:
        """Let go of refused messages for good, and count them; returns how many there still were."""
        n_gone: int = self._writer.run(_discard, numbers, wait_s=SETTLE_WAIT_S)
        return n_gone

    def expire_refused(self, before_ms: int) -> int:
        """Let go of what was refused before a time, and count it, a page in a commit; returns how many."""
        n_gone = 0
        while gone := self._writer.run(_expire_refused, before_ms, wait_s=SETTLE_WAIT_S):
            n_gone += gone
        return n_gone

    def clear_seen(self) -> None:
        """Give back the room of what was seen so long ago that it was forgotten, a piece in a commit."""
        while self._writer.run(_clear_seen, None, wait_s=SETTLE_WAIT_S):
            pass

    def mark_attempt(self, one: Entry, attempted: bool, epochs: Epochs | None = None) -> bool:
        """Note, before a POST that must not be made twice, that it is made; or that it did not reach anybody.

        False if its lane is another's by now, so that nothing may be sent. Raises StoreUnavailable.
        """
        fence = epochs if self._database.shared else None
        marked: bool = self._writer.run(entries.mark_attempt, (one, attempted, fence), wait_s=SETTLE_WAIT_S)
        return marked

    def count_try(self, one: Entry) -> tuple[int, int]:
        """Count that an entry failed alone; returns how often it has, and since when in ms."""
        counted: tuple[int, int] = self._writer.run(entries.count_try, one, wait_s=SETTLE_WAIT_S)
        return counted

    def deaths(self, endpoint: str, numbers: Collection[int]) -> dict[int, int]:
        """How many processes in a row have ended with an entry on trial, by message id; missing where none has."""
        with self._reading.connect() as connection:
            return suspects.deaths(connection, endpoint, numbers)

    def try_next(self, endpoint: str, tried: Collection[int], numbers: Collection[int]) -> None:
        """Note that this process has outlived the trial of some entries, and begins that of others."""
        self._writer.run(suspects.try_next, (endpoint, tried, numbers), wait_s=SETTLE_WAIT_S)

    def remember(self, name: str, value: Any) -> None:
        """Keep a fact, such as the last answer of an endpoint, for `adapter status`."""
        self._writer.run(_remember, (name, value))

    def recall_soon(self, names: Sequence[str]) -> dict[str, Any]:
        """These facts, in the turn of a message: raises StoreUnavailable, as soon, when none can be taken."""
        kept: dict[str, Any] = self._writer.run(_recall, names)
        return kept

    def forget_seen(self, since_ms: int) -> int:
        """Forget what was seen on the day of a time and after it, so that it is taken again; returns how many."""
        n_forgotten: int = self._writer.run(_forget_seen, since_ms // seen.DAY_MS, wait_s=SETTLE_WAIT_S)
        return n_forgotten

    def forget_destination(self) -> None:
        """What was seen belongs to the destination before, and so does what still waits: it must not reach another
        project by mistake, so it is refused with that reason. Not for a store in use.
        """
        self._writer.run(_forget_destination, None, wait_s=600)

    def _put(self, connection: sa.Connection, puts: Sequence[_Put]) -> list[list[bool]]:
        for day in sorted({_day(arrival) for arrivals, _ in puts for arrival in arrivals} - self._days):
            seen.begin_day(connection, day)
        tallies: Tallies = Counter()
        known = seen.known(connection, [arrival.key for arrivals, _ in puts for arrival in arrivals])
        fresh: list[Arrival] = []
        for arrivals, _ in puts:
            for arrival in arrivals:
                contents = known.setdefault(arrival.key, set())
                if arrival.content not in contents:
                    if contents:
                        tallies[INTAKE, "note", "same_id_other_content"] += 1
                    contents.add(arrival.content)
                    fresh.append(arrival)
        added = seen.add(connection, [(one.key, one.content) for one in fresh], _day(fresh[0])) if fresh else set()
        fresh = [one for one in fresh if (one.key, one.content) in added]
        entries.put_in(connection, [(one.accepted_at_ms, one.body, one.lanes, one.time_ms) for one in fresh])
        tallies.update((endpoint, "acknowledged", "") for one in fresh for endpoint, _ in one.lanes)
        tallies.update((one.endpoint, "acknowledged", "") for _, refusals in puts for one in refusals)
        results: list[list[bool]] = [[] for _ in puts]
        for new, (arrivals, _) in zip(results, puts, strict=True):
            for one in arrivals:
                new.append((one.key, one.content) in added)
                added.discard((one.key, one.content))  # the first of the same is new
        tallies[INTAKE, "duplicate", ""] += sum(new.count(False) for new in results)
        refused.add(connection, [one for _, refusals in puts for one in refusals], tallies)
        counts.add(connection, tallies)
        return results

    def _settle(
        self,
        connection: sa.Connection,
        batches: Sequence[_Settling],
    ) -> list[None]:
        tallies: Tallies = Counter()
        facts_kept: dict[str, Any] = {}
        for batch, kept, releasing, found, epochs in batches:
            held = None if epochs is None else leases.lock(connection, epochs)
            ours = {
                (one.entry.endpoint, one.entry.message_id): one
                for one in batch
                if held is None or one.entry.lane // LANES_A_SHARE in held
            }
            # A settlement that took too long may have been made all the same: an entry ends once.
            ended = entries.end(connection, ours)
            settled = [one for name, one in ours.items() if name in ended]
            _note(connection, settled, tallies)
            effects = [
                (one.effect, one.state == "held")
                for one in settled
                if one.effect is not None and one.state != "refused"
            ]
            self._apply(connection, effects, releasing, tallies)
            entries.end(connection, erasure.settle(connection, settled, found, tallies))
            facts_kept |= kept
        # Rows that every process writes come last and in order: nobody waits long for them, nor two for each other.
        for name in sorted(facts_kept):
            facts.remember(connection, name, facts_kept[name])
        counts.add(connection, tallies)
        return [None] * len(batches)

    def _learn(self, connection: sa.Connection, learned: Sequence[tuple[Sequence[Effect], Releasing]]) -> list[None]:
        tallies: Tallies = Counter()
        for effects, releasing in learned:
            self._apply(connection, [(effect, False) for effect in effects], releasing, tallies)
        counts.add(connection, tallies)
        return [None] * len(learned)

    def _apply(
        self,
        connection: sa.Connection,
        effects: Sequence[tuple[Effect, bool]],
        releasing: Releasing | None,
        tallies: Tallies,
    ) -> None:
        """Write down what accepted messages say of devices, and put in what that releases."""
        if not effects:
            return
        now_ms = int(time.time() * 1000)
        releases, n_released, n_cut = graph.apply(connection, effects, now_ms)
        if releases and releasing is None:
            raise ValueError("something is released, and nobody says how")
        puts = [releasing(release) for release in releases] if releasing is not None else []
        entries.put_in(connection, [(now_ms, put.body, ((put.endpoint, put.lane),), put.time_ms) for put in puts])
        for put in puts:
            tallies[put.endpoint, "acknowledged", ""] += 1
        tallies[HOLDING, "held", ""] -= n_released
        tallies[HOLDING, "nothing", "released"] += n_released
        tallies[HOLDING, "note", "too_much_held"] += n_cut


def _day(arrival: Arrival) -> int:
    return arrival.accepted_at_ms // seen.DAY_MS


def _remember(connection: sa.Connection, named: Sequence[tuple[str, Any]]) -> list[None]:
    for name, value in named:
        facts.remember(connection, name, value)
    return [None] * len(named)


def _recall(connection: sa.Connection, asked: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    return [{name: facts.recall(connection, name) for name in names} for names in asked]


def _clear_seen(connection: sa.Connection, asked: Sequence[None]) -> list[bool]:
    return [seen.clear(connection)] * len(asked)


def _note(connection: sa.Connection, settled: Sequence[Settled], tallies: Tallies) -> None:
    """Count how entries ended, and keep the refused."""
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
    refused.add(connection, refusals, tallies)


def _expire_held(connection: sa.Connection, calls: Sequence[int]) -> list[None]:
    n_held = graph.expire(connection, max(calls), int(time.time() * 1000))
    counts.add(connection, Counter({(HOLDING, "held", ""): -n_held, (HOLDING, "expired", ""): n_held}))
    return [None] * len(calls)


def _put_back(connection: sa.Connection, calls: Sequence[Sequence[tuple[Kept, refused.Judged]]]) -> list[list[str]]:
    tallies: Tallies = Counter()
    became = [refused.put_back(connection, judged, entries.put_in, tallies) for judged in calls]
    counts.add(connection, tallies)
    return became


def _discard(connection: sa.Connection, calls: Sequence[Sequence[int]]) -> list[int]:
    tallies: Tallies = Counter()
    gone = [refused.let_go(connection, numbers, "discarded", tallies) for numbers in calls]
    counts.add(connection, tallies)
    return gone


def _expire_refused(connection: sa.Connection, calls: Sequence[int]) -> list[int]:
    tallies: Tallies = Counter()
    gone = [refused.expire(connection, before_ms, tallies) for before_ms in calls]
    counts.add(connection, tallies)
    return gone


def _forget_seen(connection: sa.Connection, days: Sequence[int]) -> list[int]:
    return [seen.forget(connection, day) for day in days]


def _forget_destination(connection: sa.Connection, _calls: Sequence[None]) -> list[None]:
    seen.forget(connection)
    for endpoint in (*ENDPOINTS, deletions.DELETIONS):
        facts.remember(connection, f"last_answer_{endpoint}", None)
    waiting = sa.select(
        entry.c.endpoint, entry.c.message_id, entry.c.lane, message.c.accepted_at_ms, entry.c.time_ms, message.c.body
    ).join(message, message.c.id == entry.c.message_id)
    detail, tallies = "it waited for the destination before", Counter[tuple[str, str, str]]()
    while rows := connection.execute(waiting.limit(1_000)).all():
        left = [Entry(**row._asdict()) for row in rows]
        _note(
            connection,
            [Settled(entry=one, state="refused", reason="destination_changed", detail=detail) for one in left],
            tallies,
        )
        entries.end(connection, [(one.endpoint, one.message_id) for one in left])
    deletions.forget(connection)
    n_held = graph.forget(connection)
    tallies[HOLDING, "held", ""] -= n_held
    tallies[HOLDING, "expired", ""] += n_held
    counts.add(connection, tallies)
    return [None]
