"""`adapter worker` as a PaaS runs it: several processes on one PostgreSQL, that are told to go, killed, or frozen."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from adapter import app, intake
from adapter.config import Settings
from adapter.errors import ConfigError, StoreUnavailable
from adapter.records import Options
from adapter.store import Store, leases, read_report
from adapter.store.tables import SHARES
from adapter.values import without_password
from schemas.mixpanel import ENGAGE, IMPORT
from tests.conftest import raw, rows
from tests.endpoint import Answer, Endpoint, Got, stored
from tests.postgresql import Server
from tests.processes import Process, started, wait_until
from tests.test_delivery import call, names_of

WORKER = [sys.executable, "-m", "adapter", "worker"]
WEB = [sys.executable, "-m", "adapter", "serve"]
#: The same, with leases that are set here, in seconds.
LEASED = "from adapter.store import leases\nleases.LEASE_S = %f\nfrom adapter.cli import main\nmain()"
SHORT_WORKER = [sys.executable, "-c", LEASED % 5, "worker"]
LONG_WORKER = [sys.executable, "-c", LEASED % 600, "worker"]

Starts = Callable[..., AbstractContextManager[Process]]


class House:
    """The database and the endpoint, and what the test puts into it and sees of it."""

    def __init__(self, url: str, endpoint: Endpoint) -> None:
        self.url = url
        self.endpoint = endpoint
        self.store = Store(url)
        self._options = Options.of(Settings())
        self._names = (f"user-{n}" for n in range(10_000))

    def take(self, count: int) -> list[str]:
        """So many messages, in lanes all over."""
        names = [next(self._names) for _ in range(count)]
        intake.accept([raw(call(ENGAGE, name)) for name in names], self.store, self._options)
        return names

    def holders(self) -> list[int]:
        """How many shares each worker has a lease on."""
        now = "extract(epoch FROM clock_timestamp()) * 1000"
        held = rows(self.url, f"SELECT worker, count(*) FROM lease WHERE until_ms > {now} GROUP BY worker")  # noqa: S608
        return sorted(count for _, count in held)

    def is_done(self) -> bool:
        return read_report(self.url).waiting == 0

    def sent(self) -> Counter[str]:
        return Counter(name for got in self.endpoint.got for name in names_of(got))

    def delivered(self) -> int:
        return read_report(self.url).endpoints[ENGAGE].delivered


@pytest.fixture
def house(postgresql_url: str, endpoint: Endpoint) -> Iterator[House]:
    house = House(postgresql_url, endpoint)
    yield house
    house.store.close()


@pytest.fixture
def starts(house: House, tmp_path: Path) -> Starts:
    @contextmanager
    def start(command: list[str] = WORKER) -> Iterator[Process]:
        variables = {"INGESTION_URL": house.endpoint.url, "MIXPANEL_TOKEN": "tok-3f9a", "DATABASE_URL": house.url}
        with started(command, tmp_path, **variables) as process:
            yield process

    return start


class Gate:
    """An endpoint that keeps its answers back until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, got: Got) -> Answer:
        self.opened.wait(60)
        return stored(got)


def test_of_two_workers_that_share_one_is_killed_and_the_other_delivers_everything_within_20_s(
    house: House, starts: Starts
) -> None:
    with starts() as one, starts():
        wait_until(lambda: house.holders() == [SHARES / 2] * 2)
        gate = house.endpoint.default = Gate()
        names = house.take(60)
        wait_until(lambda: house.sent().keys() == set(names))
        assert max(house.sent().values()) == 1, "each lane is one's"
        one.kill()
        gate.opened.set()
        names += house.take(60)
        wait_until(house.is_done)
        # A clock would measure this machine: a lease runs out so long after the last sign of life, and is asked for.
        assert leases.LEASE_S + leases.RENEW_EVERY_S < 20
        assert (house.sent().keys(), house.delivered()) == (set(names), 120)
        assert house.sent().most_common(1)[0][1] == 2, "what was in the killed one's hands went out again, once"


def test_a_worker_that_is_told_to_go_ends_what_is_under_way_and_leaves_the_rest_to_the_other_at_once(
    house: House, starts: Starts
) -> None:
    with starts(LONG_WORKER) as one, starts(LONG_WORKER):
        wait_until(lambda: house.holders() == [SHARES / 2] * 2)
        gate = house.endpoint.default = Gate()
        names = house.take(60)
        wait_until(lambda: house.sent().keys() == set(names))
        os.kill(one.popen.pid, signal.SIGTERM)
        names += house.take(60)
        gate.opened.set()
        assert one.popen.wait(25) == 0
        wait_until(house.is_done)  # long before a lease would have run out
        assert house.holders() == [SHARES]
        assert house.sent() == dict.fromkeys(names, 1), "what was under way was settled, not sent again"
        assert house.delivered() == 120


def test_a_worker_that_was_frozen_past_its_lease_settles_nothing_and_repeats_one_request_a_lane_at_most(
    house: House, starts: Starts
) -> None:
    with starts(SHORT_WORKER) as frozen:
        wait_until(lambda: house.holders() == [SHARES])
        gate = house.endpoint.default = Gate()
        names = house.take(60)
        wait_until(lambda: house.sent().keys() == set(names))
        os.kill(frozen.popen.pid, signal.SIGSTOP)
        later = house.take(60)
        house.endpoint.default = stored
        with starts(SHORT_WORKER):
            wait_until(house.is_done)
            assert house.delivered() == 120
            before = house.sent()
            assert min(before[name] for name in names) >= 2, "what was in the frozen one's hands went out again"
            gate.opened.set()
            os.kill(frozen.popen.pid, signal.SIGCONT)
            wait_until(lambda: house.holders() == [SHARES / 2] * 2)
            last = house.take(60)
            wait_until(house.is_done)
            assert house.delivered() == 180, "nothing was counted twice"
            after = house.sent()
            assert {name: after[name] for name in before} == before, "what another has settled is not sent once more"
            assert after.keys() == {*names, *later, *last}
            assert frozen.popen.poll() is None


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_says_where_it_sends_and_with_nothing_to_do_goes_at_once(
    house: House, starts: Starts, tmp_path: Path, signal_: int
) -> None:
    with starts(["sh", "-c", 'exec "$@" 2>told', "sh", *WORKER]) as one:
        wait_until(lambda: house.holders() == [SHARES])
        os.kill(one.popen.pid, signal_)
        assert one.popen.wait(5) == 0
        assert house.holders() == []
    told = (tmp_path / "told").read_text()
    assert f'the worker delivers store="{without_password(house.url)}" to="{house.endpoint.url}"' in told


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_start_waits_for_a_database_that_is_away(
    command: str, house: House, postgresql: Server, tmp_path: Path
) -> None:
    name = f"late_{command}"
    variables = {
        "INGESTION_URL": house.endpoint.url,
        "MIXPANEL_TOKEN": "tok-3f9a",
        "DATABASE_URL": postgresql.url(name),
    }
    with started([sys.executable, "-m", "adapter", command], tmp_path, **variables) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.popen.wait(3)
        url = postgresql.create(name, "ready")
        wait_until(lambda: rows(url, "SELECT DISTINCT worker FROM lease WHERE until_ms > 0"))
        assert process.terminate() == 0
    postgresql.run(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_start_that_waits_says_once_what_for(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(app.time, "sleep", lambda _: None)
    faults = ["refused", "refused", "refused", "starting up", "starting up"]

    def opens() -> str:
        if faults:
            raise StoreUnavailable(faults.pop(0))
        return "opened"

    assert app._when_there(Settings(database_url="postgresql://h/d"), opens) == "opened"
    assert [record.detail for record in caplog.records] == ["refused", "starting up"]


def test_a_worker_names_the_sandbox_that_it_does_not_have() -> None:
    for ingestion_url in (None, "sandbox"):
        with pytest.raises(ConfigError, match="INGESTION_URL: a worker has no sandbox"):
            app.work(Settings(database_url="postgresql://h/d", ingestion_url=ingestion_url))


def test_one_batch_that_comes_to_two_web_processes_at_once_is_taken_and_sent_once(
    house: House, starts: Starts
) -> None:
    names = [[f"{number}-{n}" for n in range(20)] for number in range(10)]
    with starts(WEB) as one, starts(WEB) as other, ThreadPoolExecutor(2) as pool:
        for web in (one, other):
            web.wait_until_ready()
        for some in names:
            body = raw([call(IMPORT, name, messageId=f"m-{name}") for name in some])
            answers = pool.map(Process.post, (one, other), (body, body))
            assert sum(answer.json()["accepted"] for answer in answers) == 20
        wait_until(house.is_done)
    report = read_report(house.url)
    assert report.endpoints[IMPORT].delivered == 200
    assert report.endpoints["intake"].duplicates == 200
    assert house.sent() == dict.fromkeys((name for some in names for name in some), 1)
