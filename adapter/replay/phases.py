"""A replay from its plan to its end. Each step goes on where it was settled; what is settled twice is the same."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from adapter.archive import File
from adapter.config import Settings
from adapter.errors import AdapterError, StoreUnavailable, place_of
from adapter.replay import linking, people, plan
from adapter.replay.job import Job
from adapter.replay.journal import Progress
from adapter.replay.plan import Plan, Read
from adapter.replay.posting import Faulty, Stopped
from adapter.replay.run import Run
from adapter.replay.work import Worker
from adapter.store import beside, read_report

#: How often live traffic is looked after, and how long an entry may have waited to be in our way.
LIVE_EVERY_S, LIVE_WAITS_S = 1.0, 2.0


def take_plan(run: Run, files: Sequence[File]) -> dict[str, Any]:
    """The identity plan of these files: taken, unless it is there. Returns the report, as JSON and in lines."""
    if not run.journal.is_planned(files):
        try:
            with beside(run.settings.database_url) as store:
                known = store.recall("destination") is not None
                report, read = plan.take(
                    run.journal.plan_path, files, run.job, run.rules, store if known else None, _planning(run)
                )
        except StoreUnavailable:  # there is none yet
            report, read = plan.take(run.journal.plan_path, files, run.job, run.rules, None, _planning(run))
        damaged = {one.part.file.name: one.damaged for one in read if one.damaged}
        told = {"lines": list(report.lines()), "json": report.as_dict() | {"damaged": damaged}}
        run.journal.begin(files, read)
        run.journal.remember(report=json.loads(json.dumps(told)))
    found: dict[str, Any] = run.journal.recall("report")
    return found


def _planning(run: Run) -> Callable[[int], None]:
    def told(n_messages: int) -> None:
        if run.stopping.is_set():
            raise Stopped("stopped while the plan was taken; nothing was sent")
        run.told("plan", n_messages, None, run.journal.tally())

    return told


def send(run: Run) -> None:
    """Send all that the plan is about, from where it was settled. Raises Stopped, Faulty, AdapterError."""
    with closing(Plan(run.journal.plan_path, run.job.now_ms)) as found:
        if not run.job.dry_run:
            linking.check(run, found)
            linking.send(run, found)
        if not run.job.links_only:
            _events(run)
            people.release(run, found)
            if not run.job.dry_run:
                people.send(run)
                if run.job.counters:
                    people.count(run)
                linking.tell_rest(run, found)
    run.journal.remember(finished=True)


def _events(run: Run) -> None:
    """Every part that is not finished, by as many processes as wanted."""
    parts = [(number, read, done) for number, read, done, finished in run.journal.parts() if not finished]
    if not parts:
        return
    every = run.journal.parts()
    total = sum(read.n_messages for _, read, _, _ in every)
    done = {number: count for number, _, count, _ in every}
    for progress in _worked(run, parts):
        run.journal.settle(progress)
        done[progress.number] = progress.done
        tally = run.journal.tally()
        tally["waiting"] = total - sum(done.values())
        run.told("events", sum(done.values()), total, tally)


def _worked(run: Run, parts: Sequence[tuple[int, Read, int]]) -> Iterator[Progress]:
    """What is settled of these parts, as it is."""
    context = multiprocessing.get_context("spawn")
    n_processes = min(run.job.processes, len(parts))
    job = run.job
    with ExitStack() as stack:
        paused = context.Event()
        if job.yield_to_live:
            stack.callback(_watch_live(run, paused))
        if n_processes == 1:
            worker = Worker(job, run.settings, run.address, run.journal.plan_path, run.stopping, paused)  # type: ignore[arg-type]  # as good an Event
            stack.callback(worker.close)
            for number, read, done in parts:
                yield from worker.run(number, read, done)
            return
        stopping = context.Event()
        stack.callback(_pass_on(run.stopping, stopping))
        waiting = iter(parts)
        workers: dict[Connection, BaseProcess] = {}
        for _ in range(n_processes):
            ours, theirs = context.Pipe()
            arguments = (theirs, job, run.settings, run.address, str(run.journal.plan_path), stopping, paused)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            ours.send(next(waiting))
        stack.callback(_end, workers, stopping)
        yield from _gathered(workers, waiting, stopping)


def _gathered(
    workers: dict[Connection, BaseProcess], waiting: Iterator[tuple[int, Read, int]], stopping: Any
) -> Iterator[Progress]:
    error: AdapterError | None = None
    busy = set(workers)
    while busy:
        for connection in wait(busy):
            assert isinstance(connection, Connection)  # noqa: S101 for the type alone
            try:
                told = connection.recv()
            except (EOFError, OSError):
                busy.discard(connection)
                error = error or AdapterError("a process of the replay ended by itself")
                stopping.set()
                continue
            if isinstance(told, AdapterError):
                busy.discard(connection)
                if error is None or isinstance(error, Stopped):
                    error = told
                stopping.set()
                continue
            yield told
            if told.finished:
                following = next(waiting, None) if error is None else None
                if following is None:
                    busy.discard(connection)
                else:
                    connection.send(following)
    if error is not None:
        raise error


def _work(
    connection: Connection,
    job: Job,
    settings: Settings,
    address: str,
    plan_path: str,
    stopping: threading.Event,
    paused: threading.Event,
) -> None:
    """A process of its own: parts come in, what is settled goes out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it says when to stop
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent, stopping), daemon=True).start()
    worker = Worker(job, settings, address, Path(plan_path), stopping, paused)
    try:
        while True:
            number, read, done = connection.recv()
            for progress in worker.run(number, read, done):
                connection.send(progress)
    except EOFError:
        pass
    except AdapterError as error:
        connection.send(type(error)(str(error)) if isinstance(error, (Stopped, Faulty)) else AdapterError(str(error)))
    except Exception as error:
        connection.send(AdapterError(f"a process of the replay failed: {place_of(error)}"))
    finally:
        worker.close()


def _end_with(parent: int, stopping: threading.Event) -> None:
    """End with the process that started this one, however it ends."""
    while not stopping.wait(1.0):
        if os.getppid() != parent:
            os._exit(1)


def _end(workers: dict[Connection, BaseProcess], stopping: Any) -> None:
    stopping.set()
    for connection, process in workers.items():
        connection.close()
        process.join(10)
        if process.is_alive():
            process.kill()


def _pass_on(ours: threading.Event, theirs: Any) -> Callable[[], None]:
    """Have the processes stop when this one is to. Returns what ends that."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            if ours.is_set():
                theirs.set()

    threading.Thread(target=watch, daemon=True).start()
    return ended.set


def _watch_live(run: Run, paused: Any) -> Callable[[], None]:
    """Pause while messages wait in the store. Returns what ends that."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LIVE_EVERY_S):
            try:
                waits = read_report(run.settings.database_url).waiting > 0
            except StoreUnavailable:
                waits = False
            (paused.set if waits else paused.clear)()

    threading.Thread(target=watch, daemon=True).start()
    return ended.set
