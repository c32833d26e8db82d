"""How fast archived messages are sent again: the plan, the sending by one process and by two, and their memory."""

import gzip
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks import drain, messages

#: Logs are cut as Segment cuts them: by size.
LINES_A_FILE = 100_000


def measure(count: int, line_to_request: Callable[[], tuple[float, float]]) -> Iterator[str]:
    """Lines: the rates of `count` lines from gzip to an endpoint that reads and counts."""
    with tempfile.TemporaryDirectory() as name, drain.nowhere() as endpoint:
        folder = Path(name)
        _write(folder / "logs", count)
        start_s = _seconds(folder, endpoint, "nothing", "--limit", "1", "--processes", "1")[0]
        plan_s, plan_mb = _seconds(folder, endpoint, "one", "--plan-only", "--processes", "1")
        whole = [line_to_request()[1]]
        one_s, one_mb = _seconds(folder, endpoint, "one", "--processes", "1")
        whole.append(line_to_request()[1])
        _seconds(folder, endpoint, "two", "--plan-only", "--processes", "2")
        two_s, two_mb = _seconds(folder, endpoint, "two", "--processes", "2")
        plan_s, one_s, two_s = plan_s - start_s, one_s - start_s, two_s - start_s
        limit = drain.BATCH / (sum(whole) / len(whole))
        one, two, planned = count / one_s, count / two_s, count / plan_s
        yield f"replay : line to request   {one / limit:.2f}   ({one:.0f} messages/s, {one_mb} MB)"
        yield f"sending : plan             {one_s / plan_s:.1f}x  ({planned:.0f} messages/s, {plan_mb} MB)"
        cores = f"on {os.cpu_count()} cores, the endpoint's too"
        yield f"two processes : one        {one_s / two_s:.2f}   ({two:.0f} messages/s, {two_mb} MB; {cores})"


def _write(folder: Path, count: int) -> None:
    folder.mkdir()
    for number, start in enumerate(range(0, count, LINES_A_FILE)):
        lines = messages.lines(min(LINES_A_FILE, count - start), seed=number)
        with gzip.open(folder / f"{number:03}.gz", "wb", compresslevel=1) as file:
            file.writelines(line + b"\n" for line in lines)


def _seconds(folder: Path, endpoint: str, state: str, *options: str) -> tuple[float, int]:
    """Wall seconds of a run, and the most memory that a process took since the first run, in MB."""
    environment = os.environ | {"INGESTION_URL": endpoint, "MIXPANEL_TOKEN": "token"}
    environment["DATABASE_URL"] = f"sqlite:///{folder / state}.db"
    command = [sys.executable, "-m", "adapter", "replay", "logs", "--state", state, *options]
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
