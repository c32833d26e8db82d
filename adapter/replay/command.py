"""`adapter replay`: archived Segment messages, sent again."""

import hashlib
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import click
import msgspec
import orjson

from adapter import app, archive, check, ingestion, refusals
from adapter.config import Settings
from adapter.errors import AdapterError, ConfigError, place_of
from adapter.parcels import Rules
from adapter.replay import fold, forgetting, phases, telling
from adapter.replay.choice import Choice
from adapter.replay.job import Job
from adapter.replay.journal import Journal, Kept, StateUnavailable
from adapter.replay.posting import Faulty, Stopped, hung_up
from adapter.replay.run import Run
from schemas.mixpanel import COUNTERS
from schemas.segment import CALLS

#: Why what counts and was refused is not for another replay.
NOT_AGAIN = "what counts may count twice; look at the profile, and add by hand what it lacks"
#: Exit codes beside 0, all was sent, and 2, it could not begin.
SOME_LEFT_OUT, UNFINISHED, INTERRUPTED = 1, 3, 130


def _writable(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    """The file of an option if it can be written, of which nothing is left behind."""
    try:
        if path is not None and not path.exists():
            TemporaryFile(dir=path.absolute().parent).close()
        elif path is not None and (path.is_file() or path.is_dir()):  # of a pipe it would end what reads it
            path.open("ab").close()
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be written: {error.strerror}") from error
    return path


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--since", metavar="T", help="Only what Segment received since: 2026-03-01, 2026-03-01T12:00Z, 2h.")
@click.option("--until", metavar="T", help="Only what Segment received before then.")
@click.option("--source", "of_sources", multiple=True, metavar="ID", help="Only of this Segment source.")
@click.option("--type", "types", multiple=True, type=click.Choice(list(CALLS)), help="Send only such calls.")
@click.option("--event", "events", multiple=True, metavar="NAME", help="Send only track calls of this name.")
@click.option("--user", "users", multiple=True, metavar="ID", help="Send only what this user did.")
@click.option("--limit", type=click.IntRange(1), help="Send so many messages, in the order of the files.")
@click.option("--plan-only", is_flag=True, help="Show the identity plan, and send nothing.")
@click.option("--plan-json", type=click.Path(path_type=Path), callback=_writable, help="Write the plan as JSON.")
@click.option("--links-only", is_flag=True, help="Send every link, and nothing else.")
@click.option(
    "--profiles",
    type=click.Choice([fold.OFF, fold.MISSING, fold.LATEST]),
    default=fold.MISSING,
    show_default=True,
    help="Fill gaps in profiles, or set what was latest in these logs, or leave profiles alone.",
)
@click.option("--counters", is_flag=True, help="Also count and append on profiles: for a project that has none yet.")
@click.option("--processes", type=click.IntRange(1, 64), default=os.cpu_count() or 1, show_default="cores")
@click.option(
    "--rate", type=click.FloatRange(1), metavar="N", help="At most so many records a second: events, links, profiles."
)
@click.option(
    "--yield-to-live",
    is_flag=True,
    help="Send nothing while messages wait in the store; for those of which none goes, two minutes at most.",
)
@click.option("--memory-mb", type=click.IntRange(16), default=256, show_default=True, help="For the plan.")
@click.option("--state", type=click.Path(path_type=Path), help="Where to keep how far it is [adapter-replay-...].")
@click.option("--dry-run", is_flag=True, help="Do everything but send, leave no trace, and say what would go.")
@click.option("--again", is_flag=True, help="Begin anew, whatever was settled before.")
def replay(
    sources: tuple[str, ...],
    since: str | None,
    until: str | None,
    of_sources: tuple[str, ...],
    types: tuple[str, ...],
    events: tuple[str, ...],
    users: tuple[str, ...],
    limit: int | None,
    plan_only: bool,
    plan_json: Path | None,
    links_only: bool,
    profiles: str,
    counters: bool,
    processes: int,
    rate: float | None,
    yield_to_live: bool,
    memory_mb: int,
    state: Path | None,
    dry_run: bool,
    again: bool,
) -> None:
    """Send archived Segment messages again, identities first.

    A SOURCE is a file, a folder, a glob, s3://... or - for standard input; plain or gzip; Segment's own layout is
    understood. Interrupted or killed, the same command goes on where it was.

    Exit codes: 0 all was sent, 1 some was refused or is no message, or a file could not be read to its end, 2 it
    cannot begin, 3 it is not finished, 130 it was interrupted.
    """
    settings = Settings.from_environment()
    os.umask(0o077)  # whatever is written here is of its owner alone

    def choice(now_s: float) -> Choice:
        return Choice(
            since_ms=refusals.time_ms(since, now_s) if since else None,
            until_ms=refusals.time_ms(until, now_s) if until else None,
            sources=frozenset(of_sources),
            types=frozenset(types),
            events=frozenset(events),
            users=frozenset(users),
            limit=limit,
        )

    job = Job(
        names=sources,
        choice=choice(0),  # "2h" is the same when it is asked for again
        profiles=profiles,
        counters=counters,
        links_only=links_only,
        dry_run=dry_run,
        processes=processes,
        rate=rate,
        yield_to_live=yield_to_live,
        memory_mb=memory_mb,
    )
    now_s = time.time()
    logs = [name for name in sources if name != archive.STDIN]
    try:
        _find(logs, choice(now_s))  # before there is a folder
        with ExitStack() as stack:
            if dry_run:
                state = stack.enter_context(_scratch(state))
            piped = stack.enter_context(_spooled(state)) if len(logs) < len(sources) else None
            if piped is not None:
                job = msgspec.structs.replace(job, names=(*logs, piped.name))
            key = job.key(settings)
            journal = stack.enter_context(closing(Journal(state or Path(f"adapter-replay-{key}"))))
            if again:
                journal.forget()
            _claim(journal, key)
            now_ms = journal.recall("now_ms")
            if now_ms is None:
                now_ms = int(now_s * 1_000)
                journal.remember(now_ms=now_ms)
            if piped is not None:
                logs.append(str(piped.keep(journal.folder)))
            job = msgspec.structs.replace(job, now_ms=now_ms, choice=choice(now_ms / 1_000))
            files = _find(logs, job.choice)
            status = _run(job, settings, journal, files, plan_only=plan_only, plan_json=plan_json)
    except KeyboardInterrupt:
        click.echo("Interrupted: nothing was sent", err=True)
        status = INTERRUPTED
    except sqlite3.Error as error:
        click.echo(f"adapter: how far it is cannot be written: {error}; nothing was sent", err=True)
        status = UNFINISHED
    sys.exit(status)


def _find(names: list[str], choice: Choice) -> list[archive.File]:
    if choice.since_ms is not None and choice.until_ms is not None and choice.since_ms >= choice.until_ms:
        raise ValueError("expected --until to be after --since")
    files = archive.find(names, since_ms=choice.since_ms, until_ms=choice.until_ms, sources=choice.sources)
    for file in files:
        if "://" not in file.name and not Path(file.name).is_file():
            raise ValueError(f"{file.name} can be read only once: expected a file, or - for standard input")
    return files


@contextmanager
def _scratch(state: Path | None) -> Iterator[Path]:
    """A folder of a dry run, which leaves nothing behind: on the disk where the replay would have its own."""
    disk = next(one for one in (state or Path("here")).absolute().parents if one.is_dir())
    try:
        folder = TemporaryDirectory(prefix=".adapter-dry-run-", dir=disk)
    except OSError as error:
        raise StateUnavailable(f"{disk} cannot hold what a dry run writes down: {error.strerror}") from error
    with folder as name:
        yield Path(name)


class _Spooled(msgspec.Struct, frozen=True):
    """Standard input in a file, for it is read twice, and perhaps again: named by what is in it."""

    path: Path
    name: str

    def keep(self, folder: Path) -> Path:
        kept = folder / self.name
        if not kept.exists():
            self.path.rename(kept)
        return kept


@contextmanager
def _spooled(state: Path | None) -> Iterator[_Spooled]:
    path = (state or Path()) / f".adapter-stdin-{os.getpid()}"
    digest = hashlib.blake2b(digest_size=4)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as copy:
                while piece := sys.stdin.buffer.read(1_000_000):
                    digest.update(piece)
                    copy.write(piece)
        except OSError as error:
            raise StateUnavailable(f"standard input cannot be kept in {path.parent}: {error.strerror}") from error
        yield _Spooled(path, f"stdin-{digest.hexdigest()}")
    finally:
        with suppress(OSError):
            path.unlink()


def _claim(journal: Journal, key: str) -> None:
    """Raise StateUnavailable if the folder is that of another replay."""
    if journal.recall("key") not in (None, key):
        raise StateUnavailable(
            f"{journal.folder} is of a replay with other options, settings or logs, or to another project: expected"
            " another --state, or --again to begin anew"
        )
    journal.remember(key=key)


def _run(
    job: Job,
    settings: Settings,
    journal: Journal,
    files: list[archive.File],
    *,
    plan_only: bool,
    plan_json: Path | None,
) -> int:
    stopping, progress = threading.Event(), telling.Progress()

    def stop(number: int, _frame: Any) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)  # who insists does not wait

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    run = Run(
        job=job,
        settings=settings,
        rules=Rules.of(settings),
        address=app.ingestion_address(settings),
        journal=journal,
        stopping=stopping,
        told=progress,
    )
    try:
        return _sent(run, progress, files, plan_only=plan_only, plan_json=plan_json)
    except ConfigError:
        raise
    except Exception as error:
        progress.end()
        with suppress(sqlite3.Error, OSError, AdapterError):
            _write(run)
        go_on = f"run the same command to go on ({journal.folder})" if not job.dry_run else "begin anew"
        if isinstance(error, Stopped):
            click.echo(f"Interrupted: {go_on}", err=True)
            return INTERRUPTED
        why = str(error)
        if isinstance(error, Faulty):
            why = f"the endpoint takes nothing: {error}"
        elif isinstance(error, (sqlite3.Error, OSError)):
            why = f"what was settled cannot be written: {error}"
        elif not isinstance(error, AdapterError):
            why = f"the replay failed: {place_of(error)}"
        click.echo(f"adapter: {why}; once that is mended {go_on}", err=True)
        return UNFINISHED


def _sent(
    run: Run, progress: telling.Progress, files: list[archive.File], *, plan_only: bool, plan_json: Path | None
) -> int:
    """Take the plan, show it, send what it is about and sum up. Returns the exit code."""
    job, journal, begun_at = run.job, run.journal, time.monotonic()
    is_finished = journal.is_planned(files) and journal.recall("finished")
    sends = not (plan_only or job.dry_run or is_finished)
    if sends:
        _check(run)  # before what takes long
    planned = phases.take_plan(run, files)
    n_before = journal.tally()["messages"]
    progress.end()
    nothing = "" if files else ": what is there is empty, or of other days or sources"
    click.echo(f"{len(files)} file{'s' if len(files) != 1 else ''} -> {run.address}{nothing}")
    for line in planned["lines"]:
        click.echo(line)
    if plan_json is not None:
        plan_json.write_text(json.dumps(planned["json"], indent=2, ensure_ascii=False))
    if plan_only:
        return 0
    if is_finished:
        click.echo(
            f"\nThis replay is finished: nothing was sent now. --again begins anew ({journal.folder}). What it sent:"
        )
    else:
        phases.send(run)
    progress.end()
    click.echo()
    if not job.dry_run:
        _write(run)
    for line in telling.summary(job, journal, time.monotonic() - begun_at, n_before):
        click.echo(line)
    tally = journal.tally()
    if not job.dry_run:
        _tell_written(journal, tally)
    became = {file.name: archive.since(file) for file in {one.read.part.file for one in journal.parts()}}
    grown = [name for name, now in became.items() if now is archive.Now.GROWN]
    if grown:
        how = "the same command sends it, and the whole file again" if not job.dry_run else "a replay sends it"
        click.echo(f"{_have(grown)} grown since the plan was taken. What was appended is left out: {how}")
    if rewritten := [name for name, now in became.items() if now is archive.Now.ANOTHER]:
        how = "the same command sends what is there now" if not job.dry_run else "a replay sends what is there then"
        click.echo(f"{_have(rewritten)} changed since it was read: {how}")
    # What had no end yet may have one now.
    damaged = {name: why for name, why in planned["json"]["damaged"].items() if name not in grown}
    for name, why in damaged.items():
        click.echo(f"adapter: {name}: could not be read to its end: {why}", err=True)
    return SOME_LEFT_OUT if tally["refused"] or tally["broken"] or damaged else 0


def _have(names: Iterable[str]) -> str:
    name, *others = sorted(names)
    return f"{name} and {len(others)} more have" if others else f"{name} has"


def _tell_written(journal: Journal, tally: Counter[str]) -> None:
    for name in ("refused", "broken"):
        if tally[name]:
            click.echo(f"What is {name} is in {journal.folder / f'{name}.jsonl'}")
    if n_counters := sum(one.endpoint == COUNTERS for one in journal.kept(is_broken=False)):
        click.echo(f"{n_counters} of it count on profiles, and a replay of that file leaves them out: {NOT_AGAIN}")


def _check(run: Run) -> None:
    """Raise Faulty if the endpoint is not there or does not take the credentials."""
    with closing(ingestion.Client(run.settings, run.address)) as client, hung_up([client], run.stopping):
        finding = check.credentials(client)
    if run.stopping.is_set():
        raise Stopped("stopped before anything was sent")
    if not finding.good:
        raise Faulty(finding.text)


def _write(run: Run) -> None:
    """Write what was refused, a message a line with its reason, and the lines that are no message, as they are.

    What is of people who were deleted since is let go.
    """
    journal = run.journal
    if journal.plan_path.exists():
        forgetting.forget(run)
    _put(journal.folder / "refused.jsonl", (_line(one) for one in journal.kept(is_broken=False)))
    _put(journal.folder / "broken.jsonl", (one.body for one in journal.kept(is_broken=True)))


def _line(one: Kept) -> bytes:
    try:
        message = orjson.loads(one.body)
    except orjson.JSONDecodeError:
        message = one.body.decode(errors="replace")
    reason = {"reason": one.reason, "detail": one.detail, "endpoint": one.endpoint}
    if one.endpoint == COUNTERS:
        reason["not_again"] = NOT_AGAIN
    return orjson.dumps({**reason, "message": message})


def _put(path: Path, lines: Iterable[bytes]) -> None:
    """A file of its owner alone; none if there is nothing."""
    unfinished = path.with_suffix(".unfinished")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.writelines(line + b"\n" for line in lines)
        is_empty = not file.tell()
    if is_empty:
        unfinished.unlink()
        path.unlink(missing_ok=True)
    else:
        unfinished.replace(path)
