"""One run: everything is started, everything fails for a while, everything calms down, and the judge looks."""

import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import requests

from adapter.config import Settings
from tests.conftest import rows
from tests.faults import judge
from tests.faults.endpoint import DOORS, STOPS
from tests.faults.endpoint import read as read_log
from tests.faults.fleet import Fleet, Hand
from tests.faults.judge import Found, Verdict
from tests.faults.senders import SENDERS, Sender, World, moment
from tests.postgresql import Server, running
from tests.processes import ROOT, adapter, environment

DRAIN_S = 120.0
#: A run is over when its time is and so many messages were acknowledged and something was killed; or so much later.
ENOUGH, LATE_S = 200, 60.0
#: So many fresh messages have to be there after so long, once all is calm.
FRESH, FRESH_S = 20, 10.0
FLEETS = {"sqlite": ["serve"], "postgresql": ["serve", "serve", "worker", "worker"]}
VARIABLES = {"MIXPANEL_TOKEN": "the-token", "PROPERTY_INCREMENTS": "paid"}
SETTINGS = Settings.from_environment(VARIABLES)


class Endpoint:
    """The endpoint's process, and its log."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.log = folder / "endpoint.log"
        self.log.touch()
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.endpoint", str(self.log), str(seed)],
            cwd=ROOT,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._popen.stdout.readline())}"

    def tell(self, **how: Any) -> None:
        assert requests.put(self.url, json=how, timeout=10).status_code == 200

    def close(self) -> None:
        self._popen.kill()
        self._popen.communicate()


class Weather(threading.Thread):
    """Storms and calms: in a storm two of three POSTs fail, in a calm one of twenty.

    In a run of a minute and more each door also says twice what a person must mend, each time something else: nothing
    is sent there then for a minute, or until the process is killed.
    """

    def __init__(self, endpoint: Endpoint, world: World, *, seconds: float) -> None:
        super().__init__(name="weather")
        self._endpoint, self._world, self._random = endpoint, world, Random(f"weather {world.seed}")
        self._seconds = seconds

    def run(self) -> None:
        if self._seconds >= 60:
            stops = self._random.sample(STOPS, len(STOPS))
            times = sorted(time.time() + self._random.uniform(0.0, self._seconds * 0.8) for _ in stops)
            doors = self._random.sample(DOORS, len(DOORS)) * 2
            self._endpoint.tell(stops=list(zip(doors, stops, times, strict=True)))
        wait_s = 0.0
        while not self._world.stopping.wait(wait_s):
            self._endpoint.tell(share=self._random.choice([0.05, 0.2, 0.65]), may_time_out=self._world.is_early)
            wait_s = self._random.uniform(1.0, 4.0)


class Operator(threading.Thread):
    """Runs commands against the processes that serve: looks at the counts, and retries some of what was refused."""

    def __init__(self, folder: Path, world: World, variables: dict[str, str]) -> None:
        super().__init__(name="operator")
        self._folder, self._world, self._variables = folder, world, variables
        self._random = Random(f"operator {world.seed}")
        self.commands: Counter[str] = Counter()
        self.failed = 0  #: while the database was away
        self.faults: list[str] = []

    def run(self) -> None:
        try:
            while not self._world.stopping.wait(1.0):
                self.status()
                if self._random.random() < 0.5:
                    self.retry(self._random.choice(["named", "cured", "alias"]), self._random.randint(1, 3))
        except Exception as error:
            self.faults.append(f"the operator ended: {error!r}")

    def status(self) -> dict[str, Any] | None:
        said = self._ask("status", "--json")
        if said is None:
            return None
        status: dict[str, Any] = json.loads(said)
        self.faults += judge.unbalanced(status)
        return status

    def retry(self, containing: str, count: int) -> None:
        """Retry some of what was refused and has this text in it."""
        listed = self._ask("refused", "list", "--json", "--limit", "1000", "--contains", f'"{containing}"')
        numbers = [str(one["number"]) for one in json.loads(listed or "[]")]
        if numbers:
            self._ask("refused", "retry", *self._random.sample(numbers, min(count, len(numbers))))

    def _ask(self, *arguments: str) -> str | None:
        done = adapter(self._folder, *arguments, **self._variables)
        self.commands[" ".join(one for one in arguments if one.isalpha())] += 1
        if done.returncode == 0:
            return done.stdout
        self.failed += 1
        if not done.stderr.startswith("adapter: "):
            self.faults.append(f"{arguments}: {done.returncode}: {done.stderr[-600:]}")
        return None


def run(database: str, seconds: float, seed: int, *, long: bool = False) -> tuple[Verdict, Found]:
    """A run on a database. If something is wrong its folder is kept, with what was found, to be judged again."""
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{database}-"))
    with ExitStack() as stack:
        server = stack.enter_context(running(fsync=True)) if database == "postgresql" else None
        url = server.create("faults", "ready") if server else f"sqlite:///{folder / 'adapter.db'}"
        verdict, found = _Run(folder, database, url, server, seed).go(seconds, long=long)
    verdict.figures = {"seed": seed, "database": database, "seconds": seconds} | verdict.figures
    if verdict.wrong:
        verdict.figures["kept"] = str(folder)
        (folder / "wrong").write_text("\n".join(verdict.wrong))
        (folder / "found.pickle").write_bytes(pickle.dumps(found))
    else:
        shutil.rmtree(folder)
    return verdict, found


class _Run:
    def __init__(self, folder: Path, database: str, url: str, server: Server | None, seed: int) -> None:
        self._folder, self._url, self._server, self._seed = folder, url, server, seed
        self._commands = FLEETS[database]

    def go(self, seconds: float, *, long: bool) -> tuple[Verdict, Found]:
        with ExitStack() as stack:
            endpoint = Endpoint(self._folder, self._seed)
            stack.callback(endpoint.close)
            variables = {**VARIABLES, "DATABASE_URL": self._url, "INGESTION_URL": endpoint.url}
            fleet = Fleet(self._folder, self._commands, **variables)
            stack.callback(fleet.close)
            fleet.start()
            fleet.wait_until_ready()
            world = World(self._seed, fleet.webs, seconds)
            operator = Operator(self._folder, world, variables)
            hand = Hand(fleet, self._server, self._seed, every_s=1.8, freezes=long)
            weather = Weather(endpoint, world, seconds=seconds)
            with _all(world, hand, [weather, operator, *(Sender(world, n) for n in range(SENDERS))]):
                time.sleep(seconds)
                give_up_at = time.monotonic() + LATE_S
                while not (fleet.told.deeds and len(world.journal.acknowledged) >= ENOUGH):
                    if time.monotonic() > give_up_at:
                        break
                    time.sleep(0.2)
            endpoint.tell(share=0.0, may_time_out=False, stops=[])
            fleet.wait_until_ready()
            began = time.monotonic()
            operator.retry("cured", 500)
            status = self._drained(operator)
            drained_s = time.monotonic() - began
            posts = list(read_log(endpoint.log))
            fresh_s = self._fresh(fleet, endpoint) if status["waiting"] == 0 else -1.0
            fleet.stop()
            found = Found(
                journal=world.journal,
                posts=posts,
                status=status,
                refused=rows(self._url, "SELECT endpoint, reason, body FROM refusal"),
                links=dict(rows(self._url, 'SELECT device, "user" FROM link')),
                thaws=[until for _, until in fleet.told.frozen],
            )
            verdict = judge.judge(found, SETTINGS)
        for fault in (*world.journal.faults, *operator.faults, *fleet.told.faults):
            verdict.expect(False, fault)
        verdict.expect(status["waiting"] == 0, f"not drained within {DRAIN_S:g} s")
        verdict.expect(fresh_s >= 0, f"{FRESH} fresh messages were not there within {FRESH_S:g} s")
        if self._server is None:
            verdict.expect(rows(self._url, "PRAGMA integrity_check") == [("ok",)], "the file is damaged")
        verdict.figures |= {
            "deeds": dict(fleet.told.deeds),
            "slowest end": round(fleet.told.slowest_s, 1),
            "starts that failed": fleet.told.failed_starts,
            "faults": dict(Counter(post["fault"] for post in found.posts if post["fault"])),
            "answers to senders": dict(world.journal.answers),
            "commands": dict(operator.commands),
            "of them failed": operator.failed,
            "seconds to drain": round(drained_s, 1),
            "seconds for fresh ones": round(fresh_s, 1),
        }
        return verdict, found

    def _drained(self, operator: Operator) -> dict[str, Any]:
        """The counts once nothing waits, or as they are when the time is over."""
        give_up_at = time.monotonic() + DRAIN_S
        while True:
            status = operator.status()
            if status is not None:
                status["waiting"] = sum(one["waiting"] for one in status["endpoints"].values())
                if status["waiting"] == 0 or time.monotonic() > give_up_at:
                    return status
            assert time.monotonic() < give_up_at + 30, f"no status: see {self._folder}"
            time.sleep(0.5)

    def _fresh(self, fleet: Fleet, endpoint: Endpoint) -> float:
        """Seconds until fresh messages are at the endpoint; -1 if they do not get there."""
        names = {f"fresh-{n}" for n in range(FRESH)}
        size, began = endpoint.log.stat().st_size, time.monotonic()
        for n, name in enumerate(sorted(names)):
            call = {"type": "track", "event": "Fresh", "messageId": name, "anonymousId": f"d-{name}"}
            call["timestamp"] = moment(int(time.time() * 1000))
            web = fleet.webs[n % len(fleet.webs)]
            assert requests.post(f"{web}/webhook", json=call, timeout=10).status_code == 200
        while time.monotonic() < began + FRESH_S:
            arrived = {
                one["properties"]["$insert_id"] for post in read_log(endpoint.log, size) for one in post["stored"]
            }
            if names <= arrived:
                return time.monotonic() - began
            time.sleep(0.05)
        return -1.0


@contextmanager
def _all(world: World, hand: Hand, others: list[threading.Thread]) -> Iterator[None]:
    """All of them at work; the hand last, for senders need what it has killed."""
    threads = [*others, hand]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        world.stopping.set()
        hand.stopping.set()
        for thread in threads:
            thread.join()
