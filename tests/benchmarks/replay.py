"""How fast archived messages are sent again: the plan, the sending by one process and by two, and their memory."""

import gzip
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import drain, messages, servers

#: Logs are cut as Segment cuts them: by size.
LINES_A_FILE = 100_000
#: Each is measured so often, in turn, so that a slow moment of the machine hits all.
ROUNDS = 2
#: How often it is looked how much memory it has, and whether it has ended.
LOOKED_EVERY_S = 0.05


class _Ran(NamedTuple):
    seconds: float
    peak_mb: int  #: of the process that took most
    n_events: int  #: that it says it sent


def measure(count: int, line_to_request: Callable[[], tuple[float, float]]) -> Iterator[str]:
    """Lines: the rates of `count` lines from gzip to an endpoint that reads and counts; medians."""
    with tempfile.TemporaryDirectory() as name, drain.nowhere() as endpoint:
        folder = Path(name)
        _write(folder / "logs", count)
        start_s = _run(folder, endpoint, "nothing", "--limit", "1", "--processes", "1").seconds
        planned: list[_Ran] = []
        sent: dict[int, list[_Ran]] = {1: [], 2: []}
        whole = []
        for number in range(ROUNDS):
            for processes, ran in sent.items():
                options = (f"{processes}-{number}", "--processes", str(processes))
                planned.append(_run(folder, endpoint, *options, "--plan-only"))
                before = drain.counted(endpoint)[0]
                ran.append(_run(folder, endpoint, *options))
                if (n_events := drain.counted(endpoint)[0] - before) != ran[-1].n_events:
                    raise RuntimeError(f"{ran[-1].n_events} events were sent, and {n_events} arrived")
                whole.append(line_to_request()[1])
                took = f"planned in {planned[-1].seconds:.1f} s, sent in {ran[-1].seconds:.1f} s"
                yield f"round {number + 1}, processes {processes}: {took}"
        plan_s, one_s, two_s = (
            statistics.median(one.seconds for one in ran) - start_s for ran in (planned, sent[1], sent[2])
        )
        plan_mb, one_mb, two_mb = (max(one.peak_mb for one in ran) for ran in (planned, sent[1], sent[2]))
        n_events, limit = sent[1][0].n_events, drain.BATCH / statistics.median(whole)
        one = f"{count / one_s:.0f} messages/s, {n_events / one_s:.0f} events/s, {one_mb} MB"
        two = f"{count / two_s:.0f} messages/s, {n_events / two_s:.0f} events/s, {two_mb} MB"
        yield f"replay : line to request   {count / one_s / limit:.2f}   ({one})"
        yield f"sending : plan             {one_s / plan_s:.1f}x  ({count / plan_s:.0f} messages/s, {plan_mb} MB)"
        cores = f"on {os.cpu_count()} cores, the endpoint's too"
        yield f"two processes : one        {one_s / two_s:.2f}   ({two}; {cores})"


def _write(folder: Path, count: int) -> None:
    folder.mkdir()
    for number, start in enumerate(range(0, count, LINES_A_FILE)):
        lines = messages.lines(min(LINES_A_FILE, count - start), seed=number)
        with gzip.open(folder / f"{number:03}.gz", "wb", compresslevel=1) as file:
            file.writelines(line + b"\n" for line in lines)


def _run(folder: Path, endpoint: str, state: str, *options: str) -> _Ran:
    environment = os.environ | {"INGESTION_URL": endpoint, "MIXPANEL_TOKEN": "token", "PYTHONPATH": os.getcwd()}
    environment["DATABASE_URL"] = f"sqlite:///{folder / state}.db"
    command = [sys.executable, "-m", "adapter", "replay", "logs", "--state", state, *options]
    with (folder / "told").open("w+") as told:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=told, stderr=told)
        peak_mb = 0
        while process.poll() is None:
            with suppress(OSError, StopIteration):  # one has just ended
                peak_mb = max(peak_mb, servers.peak_mb(process.pid))
            time.sleep(LOOKED_EVERY_S)
        seconds = time.perf_counter() - begin
        told.seek(0)
        said = told.read()
    if process.returncode:
        raise RuntimeError(said)
    counts = re.findall(r"^ *([\d,]+)  (?:links sent by themselves|events)$", said, re.MULTILINE)
    return _Ran(seconds, peak_mb, sum(int(one.replace(",", "")) for one in counts))
