"""What survives a crash: put, claim and settle on real files, and what is true of them whatever happens."""

import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy.dialects.sqlite import dialect as SQLiteDialect

from adapter.errors import ConfigError, StoreLocked, StoreUnavailable
from adapter.store import (
    INTAKE,
    Arrival,
    Entry,
    Put,
    Refusal,
    Report,
    Settled,
    Store,
    Wanted,
    read_report,
    room,
    writer,
)
from adapter.store import entries as what_waits
from adapter.store import seen as seen_before
from adapter.store.engine import database, moment
from adapter.store.portable import among
from adapter.store.seen import DAY_MS
from adapter.store.sqlite import database_path
from adapter.store.tables import ENDPOINTS, held, link, message, seen
from tests.conftest import Databases, rows
from tests.postgresql import Server
from tests.processes import wait_until

ROOT = Path(__file__).parent.parent
DAY = 20_513  # any day
IMPORT_ONLY, GROUP_CALL = (("import", 7),), (("groups", 3), ("engage", 5))


@pytest.fixture
def database_url(either_url: str) -> str:
    return either_url


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[Store]:
    with Store(sqlite_url) as store:
        yield store


def digest(name: Any) -> bytes:
    return f"{name}".encode().ljust(16, b".")[:16]


def arrival(name: Any, content: Any = "same", *, day: float = DAY, time_ms: int = 0, **fields: Any) -> Arrival:
    return Arrival(
        **{
            "key": digest(name),
            "content": digest(content),
            "body": f"body of {name} {content}".encode(),
            "accepted_at_ms": int(day * DAY_MS),
            "time_ms": time_ms,
            "lanes": IMPORT_ONLY,
            **fields,
        }
    )


def refusal(reason: str = "invalid", endpoint: str = INTAKE, body: bytes = b"{") -> Refusal:
    return Refusal(endpoint=endpoint, reason=reason, detail="expected JSON", accepted_at_ms=DAY * DAY_MS, body=body)


def bodies(entries: list[Entry]) -> list[bytes]:
    return [entry.body for entry in entries]


def delivered(entries: list[Entry]) -> list[Settled]:
    return [Settled(entry=entry, state="delivered") for entry in entries]


def assert_sums_hold(report: Report) -> None:
    for name, one in report.endpoints.items():
        ended = one.delivered + one.held + one.expired + one.erased
        ended += sum(sum(counts.values()) for counts in (one.refused, one.discarded, one.nothing, one.filtered))
        assert one.acknowledged == one.waiting + ended, name


def test_a_message_waits_byte_for_byte_until_it_is_settled(store: Store) -> None:
    body = bytes(range(256)) + "\ud83d".encode(errors="surrogatepass")
    assert store.put([arrival("m", body=body, time_ms=5)]) == [True]
    [entry] = store.claim("import", 10)
    assert (entry.body, entry.time_ms, entry.accepted_at_ms) == (body, 5, DAY * DAY_MS)
    assert store.claim("import", 10) == [entry], "claiming changes nothing"
    store.settle(delivered([entry]))
    assert store.claim("import", 10) == []


def test_nothing_put_is_nothing_stored(store: Store, database_url: str) -> None:
    assert store.put([]) == []
    store.settle([])
    assert read_report(database_url).waiting == 0


def test_the_oldest_are_claimed_first_and_lie_by_time_then_arrival(store: Store) -> None:
    for name, time_ms in [("a", 9), ("b", 3), ("c", 9), ("d", 3), ("e", 1)]:
        store.put([arrival(name, time_ms=time_ms)])
    assert [entry.body[8:9] for entry in store.claim("import", 4)] == [b"b", b"d", b"a", b"c"]
    assert [entry.body[8:9] for entry in store.claim("import", 5)] == [b"e", b"b", b"d", b"a", b"c"]


def test_order_of_arrival_goes_on_after_a_reopen(database_url: str) -> None:
    for name in "abc":
        with Store(database_url) as store:
            store.put([arrival(name)])
    with Store(database_url) as store:
        assert [entry.body[8:9] for entry in store.claim("import", 2)] == [b"a", b"b"]


def test_a_claim_is_for_one_endpoint(store: Store) -> None:
    store.put([arrival("event"), arrival("profile", lanes=(("engage", 1),))])
    assert [len(store.claim(name, 10)) for name in ENDPOINTS] == [1, 1, 0, 0]


def test_a_claim_holds_at_most_8_mb_but_never_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert what_waits.MAX_CLAIM_BYTES == 8_000_000
    monkeypatch.setattr(what_waits, "MAX_CLAIM_BYTES", 100)
    store.put([arrival(n, body=b"x" * size) for n, size in enumerate([60, 40, 1, 101, 5])])
    sizes = []
    while entries := store.claim("import", 10):
        sizes.append([len(entry.body) for entry in entries])
        store.settle(delivered(entries))
    assert sizes == [[60, 40], [1], [101], [5]]


@pytest.mark.parametrize("first", ["groups", "engage"])
def test_a_message_for_two_endpoints_stays_until_the_last_of_them_is_done(
    store: Store, database_url: str, first: str
) -> None:
    second = {"groups": "engage", "engage": "groups"}[first]
    store.put([arrival("g", lanes=GROUP_CALL), arrival("other")])
    store.settle(delivered(store.claim(first, 10)))
    assert store.claim(first, 10) == []
    [entry] = store.claim(second, 10)
    assert entry.body == b"body of g same"
    store.settle([Settled(entry=entry, state="refused", reason="why", detail="because")])
    assert rows(database_url, "SELECT body FROM message") == [(b"body of other same",)]


def test_both_endpoints_of_a_message_may_end_in_one_commit(store: Store, database_url: str) -> None:
    store.put([arrival("g", lanes=GROUP_CALL)])
    store.settle(delivered(store.claim("groups", 10) + store.claim("engage", 10)))
    assert rows(database_url, "SELECT * FROM message") == []
    assert_sums_hold(read_report(database_url))


def test_the_same_message_again_is_acknowledged_counted_and_not_stored(store: Store, database_url: str) -> None:
    assert store.put([arrival("m")]) == [True]
    assert store.put([arrival("m", body=b"with another sentAt"), arrival("n")]) == [False, True]
    assert bodies(store.claim("import", 10)) == [b"body of m same", b"body of n same"]
    intake = read_report(database_url).endpoints[INTAKE]
    assert (intake.duplicates, intake.notes) == (1, {})


def test_a_message_twice_in_one_body_is_stored_once(store: Store, database_url: str) -> None:
    assert store.put([arrival("m"), arrival("m"), arrival("m")]) == [True, False, False]
    assert len(store.claim("import", 10)) == 1
    assert read_report(database_url).endpoints[INTAKE].duplicates == 2


def test_the_same_id_with_other_content_is_stored_and_noted(store: Store, database_url: str) -> None:
    assert store.put([arrival("m", "one")]) == [True]
    assert store.put([arrival("m", "two"), arrival("m", "one"), arrival("m", "two")]) == [True, False, False]
    assert bodies(store.claim("import", 10)) == [b"body of m one", b"body of m two"]
    intake = read_report(database_url).endpoints[INTAKE]
    assert (intake.duplicates, intake.notes) == (2, {"same_id_other_content": 1})


def test_a_delivered_message_is_still_remembered_after_a_reopen(database_url: str) -> None:
    with Store(database_url) as store:
        store.put([arrival("m")])
        store.settle(delivered(store.claim("import", 10)))
    with Store(database_url) as store:
        assert store.put([arrival("m")]) == [False]
        assert store.claim("import", 10) == []


@pytest.mark.parametrize("reopened", [False, True], ids=["in one process", "each time reopened"])
@pytest.mark.parametrize(
    ("days", "new"),
    [
        ([0, 0.999], False),
        ([0.999, 1], False),
        ([0, 1.999], False),
        ([0, 1, 2], False),
        ([0, 2.999], False),
        ([0, 1, 2, 3], True),
        ([0, 3], True),
        ([0, 6], True),
    ],
)
def test_a_message_is_remembered_across_midnight_and_forgotten_when_the_ring_has_turned(
    database_url: str, days: list[float], new: bool, reopened: bool
) -> None:
    store = Store(database_url)
    for day in days[:-1]:
        store.put([arrival("first" if day == days[0] else f"on day {day}", day=DAY + day)])
        if reopened:
            store.close()
            store = Store(database_url)
    assert store.put([arrival("first", day=DAY + days[-1])]) == [new]
    store.close()


def test_a_day_that_goes_on_after_a_reopen_forgets_nothing(database_url: str) -> None:
    for n in range(3):
        with Store(database_url) as store:
            store.put([arrival(n, day=DAY + n / 4)])
    with Store(database_url) as store:
        assert store.put([arrival(n, day=DAY + 0.9) for n in range(4)]) == [False, False, False, True]


def test_a_day_that_begins_with_messages_seen_before_forgets_nothing_of_itself(database_url: str) -> None:
    """Nothing of the first put is new; what comes later that day must be remembered across a restart all the same."""
    with Store(database_url) as store:
        store.put([arrival("old", day=DAY)])
        store.put([arrival("old", day=DAY + 3)])
        store.put([arrival("today", day=DAY + 3.1)])
    with Store(database_url) as store:
        store.put([arrival("another", day=DAY + 3.2)])
        assert store.put([arrival("today", day=DAY + 3.3)]) == [False]


def test_a_day_begins_without_a_look_at_what_it_forgets(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is cleared away in pieces later; if nobody comes by, the next days begin as fast."""
    monkeypatch.setattr(seen_before, "PIECE", 3)

    def gone() -> list[int]:
        names = [name for (name,) in rows(sqlite_url, "SELECT name FROM sqlite_master WHERE name LIKE 'gone%'")]
        return [count for name in names for (count,) in rows(sqlite_url, f"SELECT count(*) FROM {name}")]  # noqa: S608

    with Store(sqlite_url) as store:
        for day in range(5):
            assert store.put([arrival(f"{n} on day {day}", day=DAY + day) for n in range(10)]) == [True] * 10
        assert gone() == [10, 10]
        again = [arrival(f"{n} on day {day}", day=DAY + 4.9) for day in (1, 2, 3, 4) for n in range(10)]
        assert store.put(again) == [True] * 10 + [False] * 30
        store.clear_seen()
        assert gone() == []
        assert store.put(again) == [False] * 40
    assert rows(sqlite_url, "PRAGMA integrity_check") == [("ok",)]


def test_a_refusal_keeps_body_and_reason_and_is_counted(store: Store, database_url: str) -> None:
    body = b'\xff{"type": "tra'
    assert store.put([arrival("good")], [refusal("malformed", body=body), refusal("too_large")]) == [True]
    found = rows(database_url, "SELECT endpoint, reason, detail, body, accepted_at_ms FROM refusal ORDER BY id")
    assert found[0] == (INTAKE, "malformed", "expected JSON", body, DAY * DAY_MS)
    intake = read_report(database_url).endpoints[INTAKE]
    assert (intake.acknowledged, intake.refused) == (2, {"malformed": 1, "too_large": 1})


def test_a_refused_entry_keeps_its_body_after_the_message_has_gone(store: Store, database_url: str) -> None:
    store.put([arrival("m")])
    [entry] = store.claim("import", 1)
    store.settle([Settled(entry=entry, state="refused", reason="why", detail="it is so", notes=("odd",))])
    assert rows(database_url, "SELECT count(*) FROM message") == [(0,)]
    [(at_ms, *found)] = rows(database_url, "SELECT refused_at_ms, endpoint, reason, detail, body FROM refusal")
    assert found == ["import", "why", "it is so", b"body of m same"]
    assert abs(at_ms / 1000 - time.time()) < 60
    report = read_report(database_url).endpoints["import"]
    assert (report.refused, report.notes) == ({"why": 1}, {"odd": 1})


def test_an_entry_settled_twice_ends_once(store: Store, database_url: str) -> None:
    """So it comes if a settlement took too long to wait for and was committed all the same."""
    store.put([arrival("a"), arrival("b"), arrival("g", lanes=GROUP_CALL)])
    first, second = store.claim("import", 10)
    refused = Settled(entry=second, state="refused", reason="why", detail="because", notes=("odd",))
    for _ in range(2):
        store.settle([*delivered([first]), refused])
    report = read_report(database_url)
    assert_sums_hold(report)
    assert (report.endpoints["import"].delivered, report.endpoints["import"].refused) == (1, {"why": 1})
    assert rows(database_url, "SELECT count(*) FROM refusal") == [(1,)]


def test_facts_are_kept_with_the_settlement_and_alone(database_url: str) -> None:
    with Store(database_url) as store:
        assert store.recall("last_answer_import") is None
        store.put([arrival("m")])
        store.settle(delivered(store.claim("import", 1)), {"last_answer_import": {"text": "200", "fault": None}})
        store.remember("colour", "blue")
        store.remember("colour", ["green"])
    with Store(database_url) as store:
        assert store.recall("colour") == ["green"]
        assert store.recall("last_answer_import") == {"text": "200", "fault": None}
    assert read_report(database_url).endpoints["import"].last_answer == {"text": "200", "fault": None}


def test_the_report_says_how_old_the_oldest_is(store: Store, database_url: str) -> None:
    assert read_report(database_url).endpoints["import"].oldest_ms is None
    store.put([arrival("old", day=DAY)])
    store.put([arrival("new", day=DAY + 0.5)])
    assert read_report(database_url).endpoints["import"].oldest_ms == DAY * DAY_MS
    store.settle(delivered(store.claim("import", 1)))
    assert read_report(database_url).endpoints["import"].oldest_ms == int((DAY + 0.5) * DAY_MS)


def test_a_new_destination_refuses_what_waits_and_forgets_what_was_seen(store: Store, database_url: str) -> None:
    store.put([arrival(n) for n in range(1_500)] + [arrival("g", lanes=GROUP_CALL)])
    store.forget_destination()
    report = read_report(database_url)
    assert report.waiting == 0
    assert_sums_hold(report)
    assert {name: report.endpoints[name].refused.get("destination_changed") for name in ENDPOINTS} == {
        "import": 1_500,
        "engage": 1,
        "counters": None,
        "groups": 1,
    }
    assert rows(database_url, "SELECT count(*) FROM message") == [(0,)]
    assert len(rows(database_url, "SELECT DISTINCT body FROM refusal")) == 1_501
    assert store.put([arrival(1)]) == [True]


def test_the_connection_that_writes_waits_for_the_disk(sqlite_store: Store) -> None:
    """WAL with synchronous=FULL (2): a commit survives the loss of power, NORMAL may lose the last ones."""

    def ask(connection: sa.Connection, payloads: Any) -> list[dict[str, Any]]:
        names = ("journal_mode", "synchronous", "busy_timeout")
        return [{name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names} for _ in payloads]

    pragmas = sqlite_store._writer.run(ask, None)
    assert pragmas["journal_mode"] == "wal"
    assert pragmas["synchronous"] == 2
    assert pragmas["busy_timeout"] > 0


@contextmanager
def slow_disk(store: Store, wait: Callable[[], Any]) -> Iterator[list[float]]:
    """Every commit waits; yields the times of those that happened."""
    commits: list[float] = []

    def on_commit(_connection: sa.Connection) -> None:
        wait()
        commits.append(time.monotonic())

    sa.event.listen(store._writer._engine, "commit", on_commit)
    yield commits
    sa.event.remove(store._writer._engine, "commit", on_commit)


class Disk(threading.Event):
    """No commit ends before the event is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held = threading.Event()  #: a commit is under way

    def wait(self, timeout: float | None = None) -> bool:
        self.is_held.set()
        return super().wait(timeout)


@contextmanager
def held_disk(store: Store) -> Iterator[tuple[Disk, list[float]]]:
    disk = Disk()
    try:
        with slow_disk(store, disk.wait) as commits:
            yield disk, commits
    finally:
        disk.set()


LISTED = [message.c.id, link.c.key, link.c.user_key, held.c.key, seen[0].c.key]


@pytest.mark.parametrize("column", LISTED, ids=str)
@pytest.mark.usefixtures("sqlite_store")
def test_sqlite_looks_up_what_it_has_a_list_of(sqlite_url: str, column: sa.Column[Any]) -> None:
    asked = sa.select(column.table).where(among(column, "values")).compile(dialect=SQLiteDialect())
    plan = rows(sqlite_url, f"EXPLAIN QUERY PLAN {asked}".replace("?", "NULL"))
    assert any(detail.startswith(f"SEARCH {column.table.name} USING") for *_, detail in plan)


@pytest.mark.parametrize("column", LISTED, ids=str)
def test_postgresql_looks_up_what_it_has_a_list_of(postgresql_url: str, column: sa.Column[Any]) -> None:
    values = [1] if column is message.c.id else [b"a key"]
    with moment(postgresql_url) as connection:
        # To read an empty table from end to end is cheaper, so it would be.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        asked = sa.select(column.table).where(among(column, "values")).compile(connection)
        plan = connection.exec_driver_sql(f"EXPLAIN {asked}", {"values": values}).scalars().all()
    assert any(line.strip().startswith(f"Index Cond: ({column.name} = ANY") for line in plan), plan


def test_postgresql_finds_the_devices_of_a_user_among_many_by_the_index(postgresql_url: str) -> None:
    devices = "SELECT sha256(n::text::bytea), n, sha256((n / 3)::text::bytea), 'u', 0, 0, 'm', 'track'"
    asked = sa.select(link.c.device).where(among(link.c.user_key, "keys"))
    engine = database(postgresql_url).writing()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO link {devices} FROM generate_series(1, 20000) n")
        connection.exec_driver_sql("ANALYZE link")
        text = str(asked.compile(connection))
        plan = connection.exec_driver_sql(f"EXPLAIN {text}", {"keys": [b"a key", b"another"]}).scalars().all()
    engine.dispose()
    assert any("link_by_user" in line for line in plan), plan
    assert not any("Seq Scan" in line for line in plan), plan


def test_concurrent_puts_all_land_and_share_commits(store: Store, database_url: str) -> None:
    n_threads, n_each = 16, 8

    def put(thread: int) -> list[bool]:
        return [store.put([arrival((thread, n)), arrival("for all")])[0] for n in range(n_each)]

    with slow_disk(store, lambda: time.sleep(0.003)) as commits, ThreadPoolExecutor(n_threads) as pool:
        assert list(pool.map(put, range(n_threads))) == [[True] * n_each] * n_threads
    found = Counter(bodies(store.claim("import", 1_000)))
    assert len(found) == n_threads * n_each + 1
    assert set(found.values()) == {1}
    assert len(commits) < n_threads * n_each / 4
    report = read_report(database_url)
    assert report.endpoints[INTAKE].duplicates == n_threads * n_each - 1
    assert_sums_hold(report)


def test_one_failing_change_does_not_fail_its_neighbours(store: Store, database_url: str) -> None:
    store.put([arrival("the first of its day")])
    puts = [[arrival(n)] for n in range(6)]
    puts[2] = [arrival("half of it is good"), arrival("bad", time_ms=None)]
    with ThreadPoolExecutor(7) as pool, held_disk(store) as (disk, commits):
        blocker = pool.submit(store.put, [arrival("holds the disk")])
        assert disk.is_held.wait(5)
        results = [pool.submit(store.put, put) for put in puts]
        wait_until(lambda: store._writer._jobs.qsize() == len(puts))
        disk.set()
        assert blocker.result() == [True]
        for n, result in enumerate(results):
            if n == 2:
                with pytest.raises(StoreUnavailable, match="(?i)not.null"):
                    result.result()
            else:
                assert result.result() == [True]
    assert len(commits) == 6, "the blocker, then each good one alone"
    assert [body for body in bodies(store.claim("import", 100)) if b"good" in body or b"bad" in body] == []
    assert len(store.claim("import", 100)) == 7
    assert_sums_hold(read_report(database_url))
    assert store.put([arrival("half of it is good")]) == [True], "it was not remembered as seen either"


def test_of_large_changes_only_some_share_a_commit(store: Store) -> None:
    puts = [[arrival(f"{n}", body=bytes(1_500_000))] for n in range(6)]
    store.put([arrival("the first of its day")])
    with ThreadPoolExecutor(7) as pool, held_disk(store) as (disk, commits):
        blocker = pool.submit(store.put, [arrival("holds the disk")])
        assert disk.is_held.wait(5)
        results = [pool.submit(store.put, put) for put in puts]
        wait_until(lambda: store._writer._jobs.qsize() == len(puts))
        disk.set()
        assert [one.result() for one in (blocker, *results)] == [[True]] * 7
    assert len(commits) == 1 + 3, "two of them are less than 4 MB, three are more"


def test_a_fault_of_a_change_reaches_the_thread_that_handed_it_in(store: Store) -> None:
    def broken(_connection: sa.Connection, _payloads: Any) -> list[None]:
        raise ZeroDivisionError("broken")

    with pytest.raises(ZeroDivisionError, match="broken"):
        store._writer.run(broken, None)
    assert store.put([arrival("m")]) == [True], "the writer goes on"


def test_a_commit_that_takes_too_long_is_not_acknowledged(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writer.COMMIT_WAIT_S <= 3.0, "Segment waits 5 s"
    assert writer.Writer.run.__kwdefaults__["wait_s"] == writer.COMMIT_WAIT_S
    monkeypatch.setitem(writer.Writer.run.__kwdefaults__, "wait_s", 0.05)
    with held_disk(store) as (disk, commits):
        with pytest.raises(StoreUnavailable, match=r"within 0\.05 s"):
            store.put([arrival("m")])
        disk.set()
        wait_until(lambda: len(commits) > 0)
    # It may be there now or not: sent again, it is there once.
    monkeypatch.undo()
    store.put([arrival("m")])
    assert bodies(store.claim("import", 10)) == [b"body of m same"]
    assert read_report(database_url).endpoints["import"].acknowledged == 1


def test_close_finishes_what_waits(database_url: str) -> None:
    store = Store(database_url)
    store.put([arrival("the first of its day")])
    with ThreadPoolExecutor(3) as pool, held_disk(store) as (disk, _):
        puts = [pool.submit(store.put, [arrival("under way")])]
        assert disk.is_held.wait(5)
        puts.append(pool.submit(store.put, [arrival("in the queue")]))
        wait_until(lambda: store._writer._jobs.qsize() == 1)
        close = pool.submit(store.close)
        wait_until(lambda: store._writer._jobs.qsize() == 2)
        disk.set()
        close.result()
        assert [put.result() for put in puts] == [[True], [True]]
    with Store(database_url) as again:
        assert len(again.claim("import", 10)) == 3


# What may go wrong at the start


def test_a_second_store_on_the_same_file_is_refused_and_says_who_has_it(sqlite_store: Store, sqlite_url: str) -> None:
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
        Store(sqlite_url)
    assert sqlite_store.put([arrival("m")]) == [True], "the owner does not notice"


def test_a_closed_store_is_free_again(database_url: str) -> None:
    for _ in range(3):
        Store(database_url).close()


HOLDER = """
import sys, time
from adapter.store import Store
store = Store(sys.argv[1])
print("open", flush=True)
time.sleep(60)
"""


@contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, which does not outlive the test."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_another_process_is_refused_until_the_owner_is_dead(sqlite_url: str) -> None:
    with child(HOLDER, sqlite_url) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        with pytest.raises(StoreLocked, match=f"process {owner.pid}"):
            Store(sqlite_url)
        owner.send_signal(signal.SIGKILL)
    with Store(sqlite_url) as store:
        assert store.put([arrival("m")]) == [True]
        with child(HOLDER, sqlite_url) as second:
            _, errors = second.communicate(timeout=10)
        assert second.returncode != 0
        assert "StoreLocked" in errors


@pytest.mark.parametrize("found", [0, 3, "two"])
def test_another_version_of_the_schema_is_refused_and_left_alone(database_url: str, found: Any) -> None:
    with Store(database_url) as store:
        store.put([arrival("m")])
        store.remember("schema", found)
    for _ in range(2):  # the second time shows that the lock was let go
        with pytest.raises(ConfigError, match=f"schema {found}"):
            Store(database_url)
    assert rows(database_url, "SELECT count(*) FROM message") == [(1,)]


def test_a_database_with_tables_of_somebody_else_is_refused_and_left_alone(
    tmp_path: Path, postgresql: Server
) -> None:
    """They would be taken for its own: it would start, and take nothing."""
    for url in (f"sqlite:///{tmp_path}/theirs.db", postgresql.create("theirs")):
        engine = database(url).writing()
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE link (url text)")
        with pytest.raises(ConfigError, match="somebody else .link."):
            Store(url)
        with engine.begin() as connection:
            assert sa.inspect(connection).get_table_names() == ["link"]
        engine.dispose()


def a_folder_in_its_place(path: Path) -> Path:
    path.mkdir()
    return path


def no_database(path: Path) -> Path:
    path.write_bytes(b"Dear diary, " * 1_000)
    return path


def a_cut_database(path: Path) -> Path:
    with Store(f"sqlite:///{path}") as store:
        store.put([arrival(n, body=b"x" * 3_000) for n in range(20)])
    os.truncate(path, 6_000)
    return path


def a_file_as_folder(path: Path) -> Path:
    path.write_bytes(b"")
    return path / "adapter.db"


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.parent / "nowhere" / "adapter.db",
        a_file_as_folder,
        lambda path: Path("/proc/adapter.db"),  # a folder where nobody may write, root neither
        a_folder_in_its_place,
        no_database,
        a_cut_database,
    ],
    ids=["missing folder", "file as folder", "unwritable folder", "folder as file", "no database", "cut database"],
)
def test_a_file_that_cannot_be_the_store_is_named_in_the_error(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "adapter.db")
    for _ in range(2):  # the second time shows that the lock was let go
        with pytest.raises(StoreUnavailable) as error:
            Store(f"sqlite:///{path}")
        assert str(path) in str(error.value) or str(path.parent) in str(error.value)


@pytest.mark.parametrize("name", ["with blank.db", "half 50%20.db", "what?.db", "no#1.db", "größe.db"])
def test_the_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    url = f"sqlite:///{tmp_path / name}"
    with Store(url) as store:
        store.put([arrival("m")])
        assert (tmp_path / name).is_file()
        assert read_report(url).waiting == 1


# Reading beside the process that writes


def test_there_is_no_report_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="no store"):
        read_report(f"sqlite:///{tmp_path / 'adapter.db'}")
    assert list(tmp_path.iterdir()) == [], "reading makes no file"


def test_who_reads_before_there_are_tables_is_told_what_makes_them(tmp_path: Path, postgresql: Server) -> None:
    sqlite3.connect(tmp_path / "adapter.db").execute("PRAGMA user_version = 1").connection.close()
    for url in (f"sqlite:///{tmp_path / 'adapter.db'}", postgresql.url("postgres")):
        with pytest.raises(StoreUnavailable, match="adapter migrate"):
            read_report(url)


def test_there_is_no_report_on_a_file_that_is_no_store(tmp_path: Path) -> None:
    path = no_database(tmp_path / "adapter.db")
    with pytest.raises(StoreUnavailable, match="adapter.db"):
        read_report(f"sqlite:///{path}")


def test_a_report_can_be_read_before_while_and_after_somebody_writes(database_url: str) -> None:
    with Store(database_url) as store:
        assert read_report(database_url).waiting == 0
        store.put([arrival("m")])
        assert read_report(database_url).waiting == 1
    assert read_report(database_url).waiting == 1


def test_a_report_neither_blocks_the_store_nor_waits_for_it(sqlite_store: Store, sqlite_url: str) -> None:
    sqlite_store.put([arrival("m")])
    with closing(sqlite3.connect(f"file:{database_path(sqlite_url)}?mode=ro", uri=True)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM message").fetchone() == (1,)
        began = time.monotonic()
        assert sqlite_store.put([arrival("n")]) == [True], "while somebody reads"
        sqlite_store.settle(delivered(sqlite_store.claim("import", 1)))
        assert time.monotonic() - began < 5.0
        assert reader.execute("SELECT count(*) FROM message").fetchone() == (1,), "as it was when the reading began"
    with ThreadPoolExecutor(1) as pool, held_disk(sqlite_store) as (disk, _):
        put = pool.submit(sqlite_store.put, [arrival("o")])
        assert disk.is_held.wait(5)
        assert read_report(sqlite_url).waiting == 1, "while somebody commits"
        disk.set()
        put.result()


def test_the_sums_hold_in_every_report_while_messages_come_and_go(store: Store, database_url: str) -> None:
    stop = threading.Event()
    rounds: list[int] = []
    looks: list[int] = []

    def come_and_go() -> None:
        while not stop.is_set():
            rounds.append(len(rounds))
            store.put([arrival((rounds[-1], k), lanes=(*IMPORT_ONLY, *GROUP_CALL)) for k in range(3)])
            for name in ENDPOINTS:
                store.settle(delivered(store.claim(name, 2)))

    def have_come_and_gone() -> bool:
        assert_sums_hold(read_report(database_url))
        looks.append(len(rounds))
        return len(looks) >= 40 and len(rounds) > 10

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(come_and_go)
        try:
            wait_until(have_come_and_gone)
        finally:
            stop.set()
        done.result()


# Whatever happens


class Histories(RuleBasedStateMachine):
    """Random histories against a model of lists and counters."""

    def __init__(self, databases: Databases) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.url = self.stack.enter_context(databases())

    @initialize()
    def open(self) -> None:
        self.store = Store(self.url)
        self.numbers = itertools.count()
        self.waiting: dict[str, list[tuple[int, int, bytes]]] = {name: [] for name in ENDPOINTS}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.seen: set[tuple[bytes, bytes]] = set()

    @rule(
        arrivals=st.lists(
            st.builds(
                arrival,
                st.integers(0, 12),
                st.sampled_from("xy"),
                day=st.sampled_from([DAY, DAY + 0.9, DAY + 1.1]),
                time_ms=st.integers(0, 3),
                lanes=st.sampled_from([IMPORT_ONLY, GROUP_CALL, (("engage", 9),)]),
            ),
            max_size=4,
        ),
        refusals=st.lists(st.builds(refusal, st.sampled_from(["invalid", "malformed"])), max_size=2),
    )
    def put(self, arrivals: list[Arrival], refusals: list[Refusal]) -> None:
        new = []
        for one in arrivals:
            new.append((one.key, one.content) not in self.seen)
            self.seen.add((one.key, one.content))
            number = next(self.numbers)
            if new[-1]:
                for endpoint, _ in one.lanes:
                    self.counts[endpoint, "acknowledged"] += 1
                    self.waiting[endpoint].append((number, one.time_ms, one.body))
            else:
                self.counts[INTAKE, "duplicate"] += 1
        for one in refusals:
            self.counts[INTAKE, "acknowledged"] += 1
            self.counts[INTAKE, one.reason] += 1
        assert self.store.put(arrivals, refusals) == new

    @rule(
        endpoint=st.sampled_from(ENDPOINTS),
        limit=st.integers(1, 5),
        ends=st.lists(
            st.sampled_from([("delivered", ""), ("refused", "why"), ("refused", "how"), ("nothing", "none"), None]),
            min_size=5,
            max_size=5,
        ),
    )
    def claim_and_settle(self, endpoint: str, limit: int, ends: list[tuple[str, str] | None]) -> None:
        oldest = sorted(self.waiting[endpoint][:limit], key=lambda one: (one[1], one[0]))
        entries = self.store.claim(endpoint, limit)
        assert [(entry.time_ms, entry.body) for entry in entries] == [(time_ms, body) for _, time_ms, body in oldest]
        settled = []
        for expected, entry, end in zip(oldest, entries, ends, strict=False):
            if end is not None:
                state, reason = end
                settled.append(Settled(entry=entry, state=state, reason=reason, detail="so it is"))
                self.counts[endpoint, reason or state] += 1
                self.waiting[endpoint].remove(expected)
        self.store.settle(settled)

    @rule(which=st.integers(0, 3), verdict=st.sampled_from(["put back", "refused again", "discarded"]))
    def decide_on_a_refusal(self, which: int, verdict: str) -> None:
        kept = list(self.store.find_refused(Wanted()))
        if not kept or (verdict == "put back" and kept[which % len(kept)].endpoint == INTAKE):
            return
        one, body = self.store.refused(kept[which % len(kept)].number)
        self.counts[one.endpoint, one.reason] -= 1
        if verdict == "discarded":
            assert [self.store.discard([one.number]) for _ in range(2)] == [1, 0]
            self.counts[one.endpoint, "discarded"] += 1
        elif verdict == "refused again":
            assert self.store.put_back([(one, refusal("again", one.endpoint, body))]) == ["refused"]
            self.counts[one.endpoint, "again"] += 1
        else:
            again = Put(endpoint=one.endpoint, lane=1, time_ms=2, body=body)
            assert self.store.put_back([(one, again), (one, again)]) == ["waiting", "gone"]
            self.waiting[one.endpoint].append((next(self.numbers), 2, body))

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.url)

    @rule()
    def forget_destination(self) -> None:
        self.store.forget_destination()
        self.seen.clear()
        for endpoint, waiting in self.waiting.items():
            self.counts[endpoint, "destination_changed"] += len(waiting)
            waiting.clear()

    @invariant()
    def everything_is_counted_once(self) -> None:
        report = read_report(self.url)
        assert_sums_hold(report)
        for name, one in report.endpoints.items():
            counted = {
                "acknowledged": one.acknowledged,
                "delivered": one.delivered,
                "duplicate": one.duplicates,
                "discarded": sum(one.discarded.values()),
                **one.refused,
                **one.nothing,
            }
            expected = {state: n for (endpoint, state), n in self.counts.items() if endpoint == name and n}
            assert {state: n for state, n in counted.items() if n} == expected
            assert one.waiting == len(self.waiting.get(name, ()))
        kept = rows(self.url, "SELECT count(*) FROM message")[0][0]
        assert kept == len({number for waiting in self.waiting.values() for number, _, _ in waiting})

    def teardown(self) -> None:
        self.store.close()
        self.stack.close()


def test_whatever_happens_everything_is_counted_once(databases: Databases) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Histories(databases),
        settings=settings(
            max_examples=8,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )


PUTS_FOR_EVER = """
import itertools, os, sys, threading
from adapter.store import Arrival, Store

url, life = sys.argv[1:]
store = Store(url)

def put_for_ever(thread):
    for n in itertools.count():
        name = f"{life}-{thread}-{n}"
        lanes = (("groups", 1), ("engage", 1)) if n % 3 == 0 else (("import", 1),)
        key = name.encode().rjust(16, b".")
        body = (name + " " * 500).encode()
        store.put([Arrival(key=key, content=b"c" * 16, body=body, accepted_at_ms=0, time_ms=n, lanes=lanes)])
        os.write(1, f"{name}\\n".encode())  # the acknowledgement: from here on it must not be lost

threads = [threading.Thread(target=put_for_ever, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
"""


def test_a_process_killed_at_any_moment_has_lost_nothing_it_acknowledged(database_url: str) -> None:
    chance = random.Random(20_261_123)  # noqa: S311 no secret
    acknowledged: list[str] = []
    for life in range(5):
        with child(PUTS_FOR_EVER, database_url, str(life)) as process:
            assert process.stdout is not None
            acknowledged.append(process.stdout.readline().strip())
            threading.Timer(chance.uniform(0.0, 0.25), process.kill).start()
            written = process.stdout.read()
            # The kill may cut the last line, and a cut line acknowledges nothing.
            acknowledged += written.split("\n")[:-1]
        assert process.returncode == -signal.SIGKILL
        report = read_report(database_url)
        assert_sums_hold(report)
        assert report.waiting >= len(acknowledged)
    assert len(set(acknowledged)) == len(acknowledged) > 50
    if database_url.startswith("sqlite"):
        assert rows(database_url, "PRAGMA integrity_check") == [("ok",)]
    with Store(database_url) as store:
        found = Counter(
            (endpoint, entry.body.decode().strip())
            for endpoint in ENDPOINTS
            for entry in store.claim(endpoint, 10**9)
        )
    expected = {
        (endpoint, name)
        for name in acknowledged
        for endpoint in (("groups", "engage") if int(name.split("-")[2]) % 3 == 0 else ("import",))
    }
    assert expected <= set(found)
    assert set(found.values()) == {1}
    [(seen,)] = rows(database_url, "SELECT count(*) FROM seen_0")  # of day 0
    assert seen == len({name for _, name in found}), "what is stored is remembered, what is not is not"


def test_nothing_is_taken_when_the_disk_is_nearly_full_but_what_waits_can_still_be_settled(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the reserve a full disk could never drain: to end an entry takes room as well."""
    with Store(sqlite_url) as store:
        store.put([arrival(1)])
        monkeypatch.setattr("adapter.store.sqlite.RESERVE_BYTES", 2**62)
        with pytest.raises(StoreUnavailable, match="bytes are free"):
            store.put([arrival(2)])
        (entry,) = store.claim("import", 10)
        store.settle([Settled(entry=entry, state="delivered")])
        monkeypatch.setattr("adapter.store.sqlite.RESERVE_BYTES", 0)
        assert store.put([arrival(2)]) == [True]


def test_no_more_than_so_many_wait_and_room_is_found_again_without_a_restart(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LOOK_EVERY_S", 0.0)
    with Store(database_url, max_waiting=6) as store:
        for n in range(2):
            store.put([arrival((n, part), lanes=GROUP_CALL) for part in range(2)])
        with pytest.raises(StoreUnavailable, match="8 entries wait, and at most 6 may"):
            store.put([arrival("more")])
        store.settle(delivered(store.claim("groups", 3)))
        assert store.put([arrival("more")]) == [True]
        with pytest.raises(StoreUnavailable):
            store.put([arrival("and more")])
        assert store.n_waiting() == read_report(database_url).waiting == 6
        store.settle([Settled(entry=one, state="held") for one in store.claim("engage", 1)])
        store.settle([Settled(entry=one, state="refused", reason="why") for one in store.claim("engage", 1)])
        assert store.n_waiting() == read_report(database_url).waiting == 4


def test_what_was_seen_is_forgotten_from_a_day_on(store: Store) -> None:
    for day in (0, 1):
        store.put([arrival(f"on day {day}", day=DAY + day), arrival(f"also on day {day}", day=DAY + day)])
    noon = int((DAY + 1.5) * DAY_MS)
    assert store.forget_seen(noon) == 2
    assert store.put([arrival(f"on day {day}", day=DAY + 1.9) for day in (0, 1)]) == [False, True]
    assert store.forget_seen(0) == 3
    assert store.put([arrival("on day 0", day=DAY + 1.9)]) == [True]


def test_a_put_that_was_given_up_is_not_begun_afterwards(sqlite_url: str, tmp_path: Path) -> None:
    """It was answered 503: it comes again, and must not have been stored in the meantime."""
    with Store(sqlite_url) as store, closing(sqlite3.connect(tmp_path / "adapter.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        change = store._put
        first = threading.Thread(target=lambda: store._writer.run(change, ([], [])))
        first.start()
        wait_until(store._writer._jobs.empty)
        with pytest.raises(StoreUnavailable):
            store._writer.run(change, ([arrival(1)], []), wait_s=0.1)
        other.rollback()
        first.join()
        store.put([arrival(2)])
        assert len(store.claim("import", 10)) == 1


def test_a_link_to_the_file_is_the_same_file(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "adapter.db")
    with Store(sqlite_url), pytest.raises(StoreLocked):
        Store(f"sqlite:///{tmp_path / 'link.db'}")


@pytest.mark.parametrize("name", ["adapter.db", "adapter.db-wal"])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_nothing_is_taken_into_a_file_that_nobody_opens_again(
    sqlite_url: str, tmp_path: Path, name: str, is_replaced: bool
) -> None:
    """It was moved away, perhaps for a copy of it, while SQLite goes on writing to it as if nothing had happened."""
    path, away = tmp_path / name, tmp_path / "away"
    with Store(sqlite_url) as store:
        store.put([arrival(1)])
        path.rename(away)
        if is_replaced:
            path.write_bytes(away.read_bytes())
        with pytest.raises(StoreUnavailable, match="was moved, removed or replaced"):
            store.put([arrival(2)])
        with pytest.raises(StoreUnavailable):
            store.claim("import", 10)
        with pytest.raises(StoreUnavailable):
            store.recall_soon([])  # and so it is not ready
        away.replace(path)
        assert store.put([arrival(2)]) == [True]
        assert len(store.claim("import", 10)) == 2


def test_of_two_who_write_after_the_lock_was_removed_the_first_stops(sqlite_url: str, tmp_path: Path) -> None:
    """As people do with a lock that they think is a dead process's."""
    with Store(sqlite_url) as first:
        (tmp_path / "adapter.db.lock").unlink()
        assert first.put([arrival(1)]) == [True]
        with Store(sqlite_url) as second:
            with pytest.raises(StoreUnavailable, match="is another process's by now"):
                first.put([arrival(2)])
            with pytest.raises(StoreUnavailable, match="is another process's by now"):
                first.claim("import", 1)
            assert second.put([arrival(2)]) == [True]
