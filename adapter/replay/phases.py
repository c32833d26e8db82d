"""A replay from its plan to its end. Each step goes on where it was settled; what is settled twice is the same."""

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

from adapter import archive
from adapter.archive import File
from adapter.census.sweeps import seldom_swept
from adapter.config import Settings
from adapter.errors import AdapterError, Rewritten, StoreUnavailable, place_of
from adapter.replay import linking, people, planning
from adapter.replay.job import Job
from adapter.replay.journal import Begun, Progress
from adapter.replay.plan import Plan
from adapter.replay.polite import Gate, Live
from adapter.replay.posting import Faulty, Stopped
from adapter.replay.run import Run
from adapter.replay.work import Worker
from adapter.store import Reader, read_report

#: How often live traffic is looked after.
LIVE_EVERY_S = 1.0
#: How often the processes are told what changed, and how long they have to end.
TOLD_EVERY_S, END_S = 0.1, 10.0


def take_plan(run: Run, files: Sequence[File]) -> dict[str, Any]:
    """The identity plan of these files: taken, unless it is there and stands. Returns the report, also in lines."""
    planned: dict[str, Any] | None = run.journal.recall("report") if run.journal.is_planned(files) else None
    if planned is not None and run.journal.recall("finished"):
        return planned
    with run.known_store() as store:
        if planned is not None and _stands(run, store):
            return planned
        files = [archive.marked(one) for one in files]
        report, read = planning.take(run.journal.plan_path, files, run.job, run.rules, store, _planning(run, files))
        damaged = {one.part.file.name: one.damaged for one in read if one.damaged}
        told = {"lines": list(report.lines()), "json": report.as_dict() | {"damaged": damaged}}
        planned = json.loads(json.dumps(told))
        run.journal.remember(report=planned)  # before it counts as taken
        with closing(Plan(run.journal.plan_path, run.job.now_ms)) as taken:
            run.journal.begin(files, read, forgets=taken.forgets)
        return planned


def _stands(run: Run, store: Reader | None) -> bool:
    """Whether nobody of whom the plan knows was erased from the store since it was taken."""
    with closing(Plan(run.journal.plan_path, run.job.now_ms)) as taken:
        return store is None or taken.is_current(store)


def _planning(run: Run, files: Sequence[File]) -> planning.Told:
    # How large standard input is, and what says nothing of its size, is not known before.
    bytes_there = sum(file.n_bytes for file in files) if all(file.n_bytes for file in files) else 0
    there = {"files_there": len(files), "bytes_there": bytes_there}

    def told(n_messages: int, n_files: int, n_bytes: int) -> None:
        if run.stopping.is_set():
            raise Stopped("stopped while the plan was taken; nothing was sent")
        run.told("plan", n_messages, None, Counter(there | {"files": n_files, "bytes_read": n_bytes}))

    return told


@seldom_swept()
def send(run: Run) -> None:
    """Send all that the plan is about, from where it was settled. Raises Stopped, Faulty, AdapterError."""
    with closing(Plan(run.journal.plan_path, run.job.now_ms)) as found, ExitStack() as stack:
        if run.job.yield_to_live and not run.job.dry_run:
            stack.callback(_watch_live(run))
        linking.check(run, found)
        linking.send(run, found)
        if not run.job.links_only:
            try:
                _events(run)
            except Rewritten:
                run.journal.remember(files=None)  # the next run takes another plan
                raise
            linking.send_left_out(run, found)
            people.release(run, found)
            people.send(run)
            if run.job.counters:
                people.count(run)
            if not run.job.dry_run:  # nothing comes after it that would ask
                linking.tell_rest(run, found)
    if run.stopping.is_set():  # what was under way last is refused
        raise Stopped("stopped when all was sent")
    run.journal.remember(finished=True)


def _events(run: Run) -> None:
    """Every part that is not finished, by as many processes as wanted."""
    every = run.journal.parts()
    parts = [one for one in every if not one.finished]
    if not parts:
        return
    total = sum(one.read.n_messages for one in every)
    reads = {one.number: one.read for one in every}
    done = {one.number: one.done for one in every}
    n_done = sum(done.values())
    # Kept as it goes: of thousands of files it would take seconds to find anew each time.
    left = Counter(read.part.file.name for number, read in reads.items() if done[number] < read.n_messages)
    n_there = len({read.part.file.name for read in reads.values()})
    n_files = n_there - len(left)
    with closing(_worked(run, parts)) as worked:
        for progress in worked:
            run.journal.settle(progress)
            read, before = reads[progress.number], done[progress.number]
            done[progress.number] = progress.done
            n_done += progress.done - before
            if before < read.n_messages <= progress.done:
                left[read.part.file.name] -= 1
                n_files += not left[read.part.file.name]
            tally = run.journal.tally()
            tally["waiting"] = total - n_done
            tally["files"] = n_files
            tally["files_there"] = n_there
            run.told("events", n_done, total, tally)


def _worked(run: Run, parts: Sequence[Begun]) -> Generator[Progress]:
    """What is settled of these parts, as it is."""
    # A process that is not needed has no share of what may be sent.
    job = msgspec.structs.replace(run.job, processes=min(run.job.processes, len(parts)))
    with ExitStack() as stack:
        if job.processes == 1:
            worker = Worker(job, run.settings, run.address, run.journal.plan_path, run.stopping, run.gate)
            stack.callback(worker.close)
            for part in parts:
                yield from worker.run(part)
            return
        stopping = threading.Event()
        workers: dict[Connection, BaseProcess] = {}
        orders: list[Connection] = []
        stack.callback(_pass_on(orders, run.stopping, stopping, run.gate.paused))
        stack.callback(_end, workers, stopping)
        waiting = iter(parts)
        for _ in range(job.processes):
            ours, process, order = _start(job, run)
            workers[ours] = process
            orders.append(order)
            ours.send(next(waiting))
        yield from _gathered(workers, waiting, stopping)


def _start(job: Job, run: Run) -> tuple[Connection, BaseProcess, Connection]:
    """A process that works: what it is given and tells, itself, and what it is told."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    listens, order = context.Pipe(duplex=False)
    arguments = (theirs, listens, job, run.settings, run.address, str(run.journal.plan_path))
    process = context.Process(target=_work, args=arguments, daemon=True)
    resource_tracker.ensure_running()  # it would let through what is blocked here
    # Ctrl-C and a service that is stopped signal all processes: who started these says when to stop.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        listens.close()
    return ours, process, order


def _gathered(
    workers: dict[Connection, BaseProcess], waiting: Iterator[Begun], stopping: threading.Event
) -> Iterator[Progress]:
    error: AdapterError | None = None
    busy = set(workers)
    while busy:
        for connection in wait(busy):
            assert isinstance(connection, Connection)  # noqa: S101 for the type alone
            told: Any
            try:
                told = connection.recv()
            except (EOFError, OSError):
                told = AdapterError("a process of the replay ended by itself")
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
                    continue
                with suppress(OSError):  # it has ended: that is told next
                    connection.send(following)
    if error is not None:
        raise error


@seldom_swept()
def _work(
    connection: Connection, orders: Connection, job: Job, settings: Settings, address: str, plan_path: str
) -> None:
    """A process of its own: parts come in, what is settled goes out."""
    stopping, gate = threading.Event(), Gate()
    threading.Thread(target=_obey, args=(orders, stopping, gate.paused), daemon=True).start()
    with suppress(EOFError, OSError):  # nobody asks or listens any more
        try:
            with closing(Worker(job, settings, address, Path(plan_path), stopping, gate)) as worker:
                while True:
                    for progress in worker.run(connection.recv()):
                        connection.send(progress)
        except (EOFError, OSError):
            raise
        except (Stopped, Faulty, Rewritten) as error:
            connection.send(error)
        except AdapterError as error:
            connection.send(AdapterError(str(error)))
        except Exception as error:
            connection.send(AdapterError(f"a process of the replay failed: {place_of(error)}"))


def _obey(orders: Connection, stopping: threading.Event, paused: threading.Event) -> None:
    """Do as the process says that started this one, and end with it, however it ends.

    No lock is shared with it, for one that is killed would never give it back.
    """
    with suppress(EOFError, OSError):
        while True:
            stops, pauses = orders.recv()
            if stops:
                stopping.set()
            (paused.set if pauses else paused.clear)()
    os._exit(1)


def _end(workers: dict[Connection, BaseProcess], stopping: threading.Event) -> None:
    stopping.set()
    for connection in workers:
        connection.close()
    for process in workers.values():
        process.join(END_S)
        if process.is_alive():
            process.kill()
            process.join()


def _pass_on(
    orders: Sequence[Connection], ours: threading.Event, theirs: threading.Event, paused: threading.Event
) -> Callable[[], None]:
    """Have the processes stop when they are to, or this one is, and pause. Returns what ends that."""
    told: dict[Connection, tuple[bool, bool]] = {}

    def look() -> None:
        wanted = ours.is_set() or theirs.is_set(), paused.is_set()
        for order in [one for one in orders if told.get(one) != wanted]:
            told[order] = wanted
            with suppress(OSError):
                order.send(wanted)

    return _repeated(look, TOLD_EVERY_S)


def _watch_live(run: Run) -> Callable[[], None]:
    """Pause while live messages wait in the store and move, from now on. Returns what ends that."""
    live, paused = Live(), run.gate.paused

    def look() -> None:
        try:
            n_waiting = read_report(run.settings.database_url).waiting
        except StoreUnavailable:
            n_waiting = 0
        if live.holds_up(n_waiting):
            paused.set()
            run.told("waiting for live messages", n_waiting, None, Counter())
        else:
            paused.clear()

    look()
    return _repeated(look, LIVE_EVERY_S)


def _repeated(look: Callable[[], None], every_s: float) -> Callable[[], None]:
    """Have it done now and then. Returns what ends that."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            look()

    threading.Thread(target=watch, daemon=True).start()
    return ended.set
