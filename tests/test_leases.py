"""Several processes on one PostgreSQL: each lane is one's at a time, and a deploy finds its tables."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from adapter.errors import ConfigError, StoreUnavailable
from adapter.links import Effect, key
from adapter.parcels import released
from adapter.store import Entry, Epochs, Settled, Store, leases, migrate, read_report, share_of
from adapter.store.tables import LANES_A_SHARE, SHARES, refusal
from tests.conftest import rows
from tests.postgresql import Server
from tests.test_store import arrival, assert_sums_hold, delivered, digest

ALL = set(range(SHARES))


@pytest.fixture
def two(postgresql_url: str) -> Iterator[tuple[Store, Store]]:
    with Store(postgresql_url) as one, Store(postgresql_url) as other:
        yield one, other


def held(store: Store) -> set[int]:
    with store.leases.use(0, 1) as epochs:
        return set(epochs)


def test_who_is_alone_holds_everything_at_once(two: tuple[Store, Store]) -> None:
    one, other = two
    assert held(one) == set()
    assert one.leases.renew() is True
    assert held(one) == ALL
    assert held(other) == set(), "who has not asked holds nothing"


def test_two_come_to_share_evenly_and_never_hold_the_same(two: tuple[Store, Store]) -> None:
    one, other = two
    one.leases.renew()
    assert other.leases.renew() is False, "nothing is free yet"
    for _ in range(2):
        one.leases._renewed_at = float("-inf")
        one.leases.renew()
        other.leases.renew()
        assert held(one) & held(other) == set()
    assert len(held(one)) == len(held(other)) == SHARES / 2
    assert held(one) | held(other) == ALL
    assert one.leases.workers == other.leases.workers == 2


def test_a_share_in_use_is_not_given_up_until_its_batch_has_ended(two: tuple[Store, Store]) -> None:
    one, other = two
    one.leases.renew()
    with one.leases.use(0, 1) as epochs:
        other.leases.renew()
        for _ in range(3):
            one.leases._renewed_at = float("-inf")
            one.leases.renew()
            other.leases.renew()
        assert held(other) == set()
        assert one.leases.still(epochs)
        assert len(held(one)) == SHARES / 2, "no new batch is begun for what is to be given up"
    one.leases.renew()
    other.leases.renew()
    assert len(held(other)) == SHARES / 2


def test_who_gives_up_is_followed_at_once(two: tuple[Store, Store]) -> None:
    one, other = two
    one.leases.renew()
    other.leases.renew()
    one.leases.give_up()
    assert held(one) == set()
    assert other.leases.renew() is True
    assert held(other) == ALL


def test_who_says_nothing_is_followed_when_the_lease_is_over(
    two: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    one, other = two
    one.leases.renew()
    with one.leases.use(0, 1) as epochs:
        assert one.leases.still(epochs)
        assert other.leases.renew() is False
        time.sleep(0.5)
        assert not one.leases.still(epochs), "it knows by its own clock, without asking"
        other.leases.renew()
        assert held(other) == ALL


def test_a_worker_that_was_frozen_settles_nothing_that_is_anothers_by_now(
    two: tuple[Store, Store], postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    frozen, other = two
    frozen.put([arrival(n, lanes=(("import", n * LANES_A_SHARE),)) for n in range(8)])
    frozen.leases.renew()
    with frozen.leases.use(0, 1) as stale:
        claimed = frozen.claim("import", 10)
        time.sleep(0.5)
        monkeypatch.setattr(leases, "LEASE_S", 15.0)
        other.leases.renew()
        refused = [Settled(entry=entry, state="refused", reason="late") for entry in claimed]
        frozen.settle(refused, epochs=stale)
        assert not frozen.mark_attempt(claimed[0], True, stale)
    assert read_report(postgresql_url).waiting == 8
    with other.leases.use(0, 1) as epochs:
        entries = other.claim("import", 10)
        assert not any(entry.attempted for entry in entries)
        other.settle(delivered(entries), epochs=epochs)
    report = read_report(postgresql_url)
    assert (report.waiting, report.endpoints["import"].delivered, report.endpoints["import"].refused) == (0, 8, {})


def test_a_share_that_went_away_and_came_back_is_of_another_epoch(
    two: tuple[Store, Store], postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    one.put([arrival("m")])
    one.leases.renew()
    with one.leases.use(0, 1) as stale:
        claimed = one.claim("import", 10)
        one.leases.give_up()
        other.leases.renew()
        other.leases.give_up()
        one.leases.renew()
        assert held(one) == ALL
        assert not one.leases.still(stale)
        one.settle(delivered(claimed), epochs=stale)
    assert read_report(postgresql_url).waiting == 1


def test_a_claim_is_of_the_lanes_that_are_asked_for(two: tuple[Store, Store]) -> None:
    store, _ = two
    store.put([arrival(lane, lanes=(("import", lane),)) for lane in (0, 15, 16, 1023)])
    found = {share: [entry.lane for entry in store.claim("import", 10, shares=[share])] for share in (0, 1, 2, 63)}
    assert found == {0: [0, 15], 1: [16], 2: [], 63: [1023]}


WORKERS = st.integers(0, 2)
LANES = st.integers(0, SHARES * LANES_A_SHARE - 1)
HELD_NOW = "SELECT share, epoch FROM lease WHERE until_ms > extract(epoch FROM clock_timestamp()) * 1000"


class Workers(RuleBasedStateMachine):
    """Random histories of three workers, each of which may sleep through its leases with anything in hand."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.url = self.stack.enter_context(server.database())
        self.stores = [self.stack.enter_context(Store(self.url)) for _ in range(3)]
        self.beside = self.stack.enter_context(psycopg.connect(self.url, autocommit=True))
        self.n_put = 0
        self.in_hand: list[tuple[int, list[Entry], Epochs]] = []
        self.waiting: set[int] = set()  # message ids
        self.owners: dict[int, tuple[str | None, int]] = {}  # share -> who had it last, and the epoch

    @rule(who=WORKERS, lanes=st.lists(LANES, max_size=3), limit=st.integers(1, 4))
    def take_up(self, who: int, lanes: list[int], limit: int) -> None:
        """Something comes in, and it claims some of what is there."""
        names = range(self.n_put, self.n_put + len(lanes))
        self.stores[who].put(
            [arrival(name, lanes=(("import", lane),)) for name, lane in zip(names, lanes, strict=True)]
        )
        self.n_put += len(lanes)
        self.waiting.update(name + 1 for name in names)
        self.renew(who)
        with self.stores[who].leases.use(0, 1) as epochs:
            if entries := self.stores[who].claim("import", limit, shares=epochs.keys()) if epochs else []:
                self.in_hand.append((who, entries, epochs))

    @rule(who=WORKERS)
    def renew(self, who: int) -> None:
        self.stores[who].leases._renewed_at = float("-inf")
        self.stores[who].leases.renew()

    @rule(who=WORKERS, heir=WORKERS)
    def sleep(self, who: int, heir: int) -> None:
        """Its time is over, which it does not know: its own clock stood still."""
        me = self.stores[who].leases._me
        self.beside.execute("UPDATE lease SET until_ms = 0 WHERE worker = %s", [me])
        self.beside.execute("UPDATE worker SET until_ms = 0 WHERE id = %s", [me])
        if heir != who:
            self.renew(heir)

    @rule(who=WORKERS)
    def give_up(self, who: int) -> None:
        self.stores[who].leases.give_up()

    @rule(which=st.integers(0, 5), again=st.booleans())
    def settle(self, which: int, again: bool) -> None:
        if not self.in_hand:
            return
        who, entries, epochs = self.in_hand[which % len(self.in_hand)]
        held = dict(self.beside.execute(HELD_NOW).fetchall())
        ours = {one.message_id for one in entries if held.get(share_of(one.lane)) == epochs[share_of(one.lane)]}
        self.stores[who].settle(delivered(entries), epochs=epochs)
        self.waiting -= ours
        if not again:
            self.in_hand.remove((who, entries, epochs))

    @invariant()
    def just_what_its_owner_settles_has_ended(self) -> None:
        assert {number for (number,) in self.beside.execute("SELECT message_id FROM entry")} == self.waiting

    @invariant()
    def each_taking_begins_an_epoch(self) -> None:
        for share, worker, epoch in self.beside.execute("SELECT share, worker, epoch FROM lease"):
            before, epoch_before = self.owners.get(share, (None, epoch))
            assert epoch >= epoch_before
            assert worker in (None, before) or epoch > epoch_before or share not in self.owners
            self.owners[share] = (worker or before, epoch)

    def teardown(self) -> None:
        report = read_report(self.url)
        assert_sums_hold(report)
        assert report.endpoints["import"].delivered == self.n_put - len(self.waiting)
        self.stack.close()


def test_whoever_sleeps_through_a_lease_settles_just_what_is_still_theirs(postgresql: Server) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Workers(postgresql),
        settings=settings(
            max_examples=6,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )


def test_a_file_is_wholly_its_one_process(sqlite_url: str) -> None:
    with Store(sqlite_url) as store:
        assert store.leases.renew() is True
        assert held(store) == ALL
        assert store.leases.renew() is False
        with store.leases.use(1, 4) as epochs:
            assert set(epochs) == set(range(1, SHARES, 4))
            assert store.leases.still(epochs)


def test_processes_that_put_the_same_messages_at_once_store_each_once(
    two: tuple[Store, Store], postgresql_url: str
) -> None:
    """Each in another order, as the senders of one batch would meet: nobody fails, nobody waits for ever."""
    names = list(range(40))
    starts = threading.Barrier(8)

    def put(number: int) -> int:
        starts.wait()
        mine = names[number * 5 :] + names[: number * 5]
        return sum(sum(two[number % 2].put([arrival(name) for name in mine[n : n + 4]])) for n in range(0, 40, 4))

    with ThreadPoolExecutor(8) as pool:
        new = sum(pool.map(put, range(8)))
    report = read_report(postgresql_url)
    assert new == report.waiting == 40
    assert report.endpoints["intake"].duplicates == 7 * 40
    assert_sums_hold(report)


def test_messages_of_several_processes_are_numbered_in_the_order_of_their_commits(
    two: tuple[Store, Store], postgresql_url: str
) -> None:
    """What a reader has seen as the newest stays so: no smaller number turns up after it."""
    done = threading.Event()

    def put(number: int) -> None:
        for n in range(60):
            two[number].put([arrival((number, n, part)) for part in range(5)])

    def watch() -> int:
        newest, looks = 0, 0
        seen: set[int] = set()
        while not done.is_set():
            found = {number for (number,) in rows(postgresql_url, "SELECT id FROM message")}
            assert all(number > newest for number in found - seen)
            seen, newest, looks = found, max(found, default=0), looks + 1
        return looks

    with ThreadPoolExecutor(3) as pool:
        watching = pool.submit(watch)
        try:
            for writing in [pool.submit(put, number) for number in range(2)]:
                writing.result()
        finally:
            done.set()  # else a commit that fails would leave the watcher watching for ever
        assert watching.result() > 5
    assert rows(postgresql_url, "SELECT count(*), max(id) FROM message") == [(600, 600)]


def test_of_two_processes_that_link_a_device_the_insert_decides(
    two: tuple[Store, Store], postgresql_url: str
) -> None:
    one, other = two
    one.put([arrival(n) for n in range(40)])
    entries = one.claim("import", 40)
    starts = threading.Barrier(2)

    def link(store: Store, user: str, mine: list[Entry]) -> None:
        starts.wait()
        for n, entry in enumerate(mine):
            device = f"device-{n}"
            effect = Effect(device=device, user=user, time_ms=0, message_id="m", how="track", links=True)
            store.settle([Settled(entry=entry, state="delivered", effect=effect)])

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(link, one, "ada", entries[:20]), pool.submit(link, other, "bob", entries[20:])]
        for linking in both:
            linking.result()
    links = dict(rows(postgresql_url, 'SELECT device, "user" FROM link'))
    assert len(links) == 20
    for store in two:
        assert {device: known.owner for device, known in store.known(links).items()} == {
            device: key(user) for device, user in links.items()
        }


# What a database does, and a deploy


def test_a_process_whose_connections_are_cut_goes_on(two: tuple[Store, Store], postgresql_url: str) -> None:
    store, other = two
    store.put([arrival("before")])
    assert len(store.claim("import", 10)) == 1
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    rows(postgresql_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")  # noqa: S608
    assert store.put([arrival("after")]) == [True]
    assert len(store.claim("import", 10)) == 2
    store.settle(delivered(store.claim("import", 10)))
    assert other.put([arrival("after")]) == [False]
    assert read_report(postgresql_url).waiting == 0


def test_a_server_that_was_read_only_for_a_while_is_written_to_when_it_is_no_longer(
    postgresql: Server, postgresql_url: str
) -> None:
    """As after a fail-over into a standby: a session that began there stays read-only."""
    name = rows(postgresql_url, "SELECT current_database()")[0][0]
    with Store(postgresql_url) as store:
        postgresql.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        postgresql.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="read-only transaction"):
                store.put([arrival("m")])
        postgresql.run(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        assert store.put([arrival("m")]) == [True]


def test_words_that_postgresql_cannot_hold_come_back_as_they_were(two: tuple[Store, Store]) -> None:
    store, _ = two
    for text in ("a\0b", "\\0", "c:\\", "\\\\0\0"):
        store.put([arrival(text, key=digest(repr(text)))])
        store.settle([Settled(entry=store.claim("import", 1)[0], state="refused", reason="why", detail=text)])
        with store._reading.connect() as connection:
            newest = sa.select(refusal.c.detail).order_by(refusal.c.id.desc()).limit(1)
            assert connection.scalar(newest) == text


def test_a_database_of_any_encoding_holds_every_id_or_is_refused(postgresql: Server) -> None:
    """A server that was set up without a locale has SQL_ASCII; and a role may want its texts in another one."""
    device, user = "Gerät-\N{GRINNING FACE}", "大久保"
    links = Effect(device=device, user=user, time_ms=0, message_id="m", how="track", links=True)
    for encoding in ("SQL_ASCII", "UTF8", "LATIN1"):
        name = f"in_{encoding.lower()}"
        postgresql.run(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
        postgresql.run(f"ALTER DATABASE {name} SET client_encoding = 'LATIN1'")
        if encoding == "LATIN1":
            with pytest.raises(ConfigError, match="LATIN1"):
                migrate(postgresql.url(name))
            continue
        with Store(postgresql.url(name)) as store:
            store.learn([links], released)
            assert store.devices_of(user) == (device,)


def test_commits_of_several_processes_do_not_fail_each_other_whatever_the_database_prefers(
    postgresql: Server, postgresql_url: str
) -> None:
    name = postgresql_url.rpartition("/")[2].partition("?")[0]
    postgresql.run(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    with Store(postgresql_url) as store:
        asked = sa.text("SHOW transaction_isolation")
        assert store._writer.run(lambda connection, _: [connection.scalar(asked)], None) == "read committed"


def test_migrating_twice_or_at_once_changes_nothing(postgresql_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(migrate, [postgresql_url] * 4))
    assert found == [6, 6, 6, 6]


def test_processes_that_start_on_an_empty_database_at_once_make_its_tables_once(postgresql: Server) -> None:
    url = postgresql.create("bare")

    def start(_: int) -> bool:
        with Store(url) as store:
            return store.put([arrival("m")])[0]

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(start, range(4))) == [False, False, False, True]
    postgresql.run("DROP DATABASE bare WITH (FORCE)")


def test_a_release_works_on_tables_that_the_next_one_has_added_to(either_url: str) -> None:
    """While a deploy lasts the old processes go on, and may start anew."""
    with Store(either_url) as store:
        store.remember("schema", 7)
    with Store(either_url) as store:
        assert store.put([arrival("m")]) == [True]
        store.remember("schema_works_from", 7)
    with pytest.raises(ConfigError, match="cannot use"):
        Store(either_url)
