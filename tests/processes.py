"""Real processes of the adapter, started and ended by the tests."""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parent.parent
START_S = 60.0
COMMAND_S = 120.0


@dataclass
class Process:
    """A running command, leader of a group of its own."""

    popen: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, body: bytes, **headers: str) -> requests.Response:
        return requests.post(
            f"{self.url}/webhook", data=body, headers={"Content-Type": "application/json", **headers}, timeout=10
        )

    def kill(self) -> None:
        """SIGKILL to the whole group, as a machine that loses its power would."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(10)

    def terminate(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(30)

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.popen.poll() is None, self.popen.stderr.read() if self.popen.stderr else "ended"
            try:
                return requests.get(f"{self.url}/readyz", timeout=5).status_code == 200
            except requests.RequestException:
                return False

        wait_until(ready, START_S)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return once the condition holds; fail if it has not for so long that it never will, on the slowest machine."""
    deadline = time.monotonic() + seconds
    while True:
        asked_at = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < deadline, f"{condition} did not hold within {seconds} s"
        time.sleep(max(0.01, 3 * (now - asked_at)))  # to ask may cost those something of whom it is asked


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Only what a fresh machine has, the checkout, and these variables."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return {**kept, "PYTHONPATH": str(ROOT), "DATABASE_URL": f"sqlite:///{folder / 'adapter.db'}", **variables}


@contextmanager
def started(command: list[str], folder: Path, port: int | None = None, **variables: str) -> Iterator[Process]:
    """Run a command in a folder; whatever of its group is left at the end is killed."""
    port = port or free_port()
    popen = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder, PORT=str(port), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield Process(popen, port)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait(10)
        if popen.stdout:
            popen.stdout.close()


@contextmanager
def serving(folder: Path, **variables: str) -> Iterator[Process]:
    """`adapter serve`, ready."""
    with started([sys.executable, "-m", "adapter", "serve"], folder, **variables) as process:
        process.wait_until_ready()
        yield process


def adapter(
    folder: Path, *arguments: str, input: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the adapter to its end, in a process of its own."""
    with tempfile.TemporaryDirectory() as kept:
        names = [str(Path(kept, name)) for name in ("in", "out", "err")]
        Path(names[0]).write_text(input or "")
        question = {
            "arguments": arguments,
            "folder": str(folder),
            "environment": environment(folder, **variables),
            "names": names,
        }
        code = _warm().ask(question)
        told, faults = (Path(name).read_text() for name in names[1:])
    return subprocess.CompletedProcess(["adapter", *arguments], code, told, faults)


class _Warm:
    """A process that has everything imported, and forks for each command: most take less time than to import."""

    code = """
import json, os, sys
from adapter import cli

for line in sys.stdin:
    question = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for number, name in enumerate(question["names"]):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.chdir(question["folder"])
    os.environ.clear()
    os.environ.update(question["environment"])
    sys.argv[1:] = question["arguments"]
    cli.main(prog_name="adapter")
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self._end)

    def ask(self, question: dict[str, Any]) -> int:
        """The exit code of a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], COMMAND_S)[0], f"no end within {COMMAND_S} s"
        return int(self._process.stdout.readline())

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()


_warm = cache(_Warm)
