"""The processes of one run, and a hand that kills them at random points; whatever ends is started again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import requests

from tests.postgresql import Server
from tests.processes import environment, free_port

#: A platform kills what has not ended so long after SIGTERM.
TERM_S = 25.0
#: A process that has run for so long knows what to do at a signal.
STARTED_S = 10.0
#: Sooner it is killed, not asked to end.
SIGNALLED_S = 3.0
#: Why a process may end by itself: a command had the file when it started.
NO_START = b"is in use by process"
#: The server ends by itself if a child that it has started again ends within 3.5 s.
CHILD_S = 8.0
#: What the hand does, and how often.
DEEDS = {"kill": 6, "kill child": 2, "terminate": 3, "kill database": 2}


@dataclass
class Process:
    """A command of the adapter that is to run at all times."""

    command: str
    port: int
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    child_killed_at: float = 0.0
    start_at: float = 0.0  #: not before; infinity: not at all
    expected: bool = True  #: whether it may end now
    log_at: int = 0  #: where in its log the words of this start begin

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def runs(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def signal(self, number: int) -> None:
        """To the whole group, as a machine does it."""
        assert self.popen is not None
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)


@dataclass
class Told:
    """What was done, and what should not have happened."""

    deeds: Counter[str] = field(default_factory=Counter)
    failed_starts: int = 0  #: while a command had the file
    slowest_s: float = 0.0  #: from SIGTERM to the end
    faults: list[str] = field(default_factory=list)
    frozen: list[tuple[float, float]] = field(default_factory=list)  #: from, until


class Fleet:
    """Starts, supervises and ends the processes."""

    def __init__(self, folder: Path, commands: list[str], **variables: str) -> None:
        self.folder, self.variables, self.told = folder, variables, Told()
        self.processes = [Process(command, free_port()) for command in commands]
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._supervising = threading.Thread(target=self._supervise, name="supervisor")

    @property
    def webs(self) -> list[str]:
        return [one.url for one in self.processes if one.command == "serve"]

    def start(self) -> None:
        self._supervising.start()

    def wait_until_ready(self, seconds: float = 40.0) -> None:
        give_up_at = time.monotonic() + seconds
        while not all(self._is_ready(one) for one in self.processes):
            assert time.monotonic() < give_up_at, f"not ready in {seconds} s: see {self.folder}"
            time.sleep(0.1)

    def _is_ready(self, one: Process) -> bool:
        if one.command == "worker":
            return one.runs
        with suppress(requests.RequestException):
            return requests.get(f"{one.url}/readyz", timeout=5).status_code == 200
        return False

    def _supervise(self) -> None:
        while not self._ended.wait(0.1):
            for one in self.processes:
                with self._lock:
                    self._look_after(one)

    def _look_after(self, one: Process) -> None:
        if one.runs or time.monotonic() < one.start_at:
            return
        if one.popen is not None and not one.expected:
            said = self._log(one).read_bytes()[one.log_at :]
            if NO_START in said:
                self.told.failed_starts += 1
            else:
                self.told.faults.append(f"{one.command} ended by itself with {one.popen.returncode}: {said[-300:]!r}")
            one.signal(signal.SIGKILL)
        with self._log(one).open("ab") as log:
            one.log_at = log.tell()
            one.popen = subprocess.Popen(
                [sys.executable, "-m", "adapter", one.command],
                cwd=self.folder,
                env=environment(self.folder, **self.variables, PORT=str(one.port), PYTHONFAULTHANDLER="1"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        one.started_at, one.start_at, one.expected = time.monotonic(), time.monotonic() + 0.2, False

    def _log(self, one: Process) -> Path:
        return self.folder / f"{one.command}-{one.port}.log"

    def kill(self, one: Process, away_s: float) -> bool:
        with self._lock:
            if not one.runs:
                return False
            one.expected, one.start_at = True, time.monotonic() + away_s
            one.signal(signal.SIGKILL)
            one.popen.wait(10)
            return True

    def kill_child(self, one: Process) -> bool:
        """The process that does the work, of one that starts it again."""
        with self._lock:
            if not one.runs or time.monotonic() - one.started_at < SIGNALLED_S:
                return False
            if time.monotonic() - one.child_killed_at < CHILD_S:
                return False
            pid = one.popen.pid
            with suppress(FileNotFoundError, ProcessLookupError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if children:
                    os.kill(int(children[-1]), signal.SIGKILL)
                    one.child_killed_at = time.monotonic()
                    return True
            return False

    def terminate(self, one: Process, away_s: float) -> bool:
        """As a deploy does it. It has to end in order, and in time."""
        with self._lock:
            began = time.monotonic()
            if not one.runs or began - one.started_at < SIGNALLED_S:
                return False
            one.expected, one.start_at = True, float("inf")
            one.popen.send_signal(signal.SIGTERM)
        try:
            code: int | str = one.popen.wait(TERM_S)
        except subprocess.TimeoutExpired:
            code = "nothing"
            one.signal(signal.SIGABRT)  # where every thread is goes to its log
            time.sleep(1.0)
        self.told.slowest_s = max(self.told.slowest_s, time.monotonic() - began)
        has_started = began - one.started_at > STARTED_S
        if code != 0 and (has_started or code != -signal.SIGTERM):
            took_s = time.monotonic() - began
            self.told.faults.append(f"{one.command} ended with {code} after {took_s:.1f} s at SIGTERM")
            one.signal(signal.SIGKILL)
            one.popen.wait(10)
        one.start_at = time.monotonic() + away_s
        return True

    def freeze(self, one: Process, seconds: float) -> bool:
        with self._lock:
            if not one.runs:
                return False
            one.signal(signal.SIGSTOP)
        began = time.time()
        time.sleep(seconds)
        one.signal(signal.SIGCONT)
        self.told.frozen.append((began, time.time()))
        return True

    def stop(self) -> None:
        """End all in order."""
        for one in self.processes:
            self.terminate(one, float("inf"))

    def close(self) -> None:
        self._ended.set()
        if self._supervising.ident is not None:
            self._supervising.join()
        for one in self.processes:
            if one.popen is not None:
                one.signal(signal.SIGCONT)
                one.signal(signal.SIGKILL)
                one.popen.wait(10)


class Hand(threading.Thread):
    """Does a deed now and then, until it is stopped."""

    def __init__(self, fleet: Fleet, server: Server | None, seed: int, *, every_s: float, freezes: bool) -> None:
        super().__init__(name="hand")
        self._fleet, self._server, self._random = fleet, server, Random(f"hand {seed}")
        self._every_s = every_s
        self._freezes = freezes and server is not None
        self.stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self.stopping.wait(self._random.uniform(0.3, 2.0) * self._every_s):
                self._do()
        except Exception as error:
            self._fleet.told.faults.append(f"the hand ended: {error!r}")

    def _do(self) -> None:
        one = self._random.choice(self._fleet.processes)
        away_s = self._random.choice([0.0, self._random.uniform(0.0, 2.0)])
        deed = self._random.choices(list(DEEDS), list(DEEDS.values()))[0]
        if self._freezes and self._fleet.told.deeds.total() == 2:
            deed, one, self._freezes = "freeze", self._fleet.processes[-1], False
        deeds: dict[str, Callable[[], bool]] = {
            "kill": lambda: self._fleet.kill(one, away_s),
            "kill child": lambda: one.command == "serve" and self._fleet.kill_child(one),
            "terminate": lambda: self._fleet.terminate(one, away_s),
            "kill database": lambda: self._server is not None and self._kill_database(away_s),
            "freeze": lambda: self._fleet.freeze(one, 25.0),
        }
        if deeds[deed]():
            self._fleet.told.deeds[f"{deed} {one.command}" if deed != "kill database" else deed] += 1

    def _kill_database(self, away_s: float) -> bool:
        assert self._server is not None
        self._server.kill()
        time.sleep(away_s)
        self._server.start()
        return True
