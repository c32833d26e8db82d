"""`adapter replay`: archived Segment messages, sent again."""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import click
import msgspec
import orjson

from adapter import app, archive, check, ingestion, refusals
from adapter.config import Settings
from adapter.errors import AdapterError, ConfigError
from adapter.parcels import Rules
from adapter.replay import fold, phases, telling
from adapter.replay.choice import Choice
from adapter.replay.job import Job
from adapter.replay.journal import Journal, Kept
from adapter.replay.posting import Faulty, Stopped
from adapter.replay.run import Run
from schemas.segment import CALLS

#: Exit codes beside 0, all was sent, and 2, it could not begin.
SOME_LEFT_OUT, UNFINISHED, INTERRUPTED = 1, 3, 130


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
@click.option("--plan-json", type=click.Path(path_type=Path), help="Write the plan as JSON.")
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
@click.option("--rate", type=click.FloatRange(1), metavar="N", help="At most so many events a second.")
@click.option("--yield-to-live", is_flag=True, help="Wait while messages wait in the store.")
@click.option("--memory-mb", type=click.IntRange(16), default=256, show_default=True, help="For the plan.")
@click.option("--state", type=click.Path(path_type=Path), help="Where to keep how far it is [adapter-replay-...].")
@click.option("--dry-run", is_flag=True, help="Do everything but send, and say what would go.")
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
    """Send archived Segment messages, each person's identity decided before anything is sent.

    A SOURCE is a file, a folder, a glob, s3://... or - for standard input; plain or gzip; Segment's own layout is
    understood. Interrupted or killed, the same command goes on where it was.

    Exit codes: 0 all was sent, 1 some was refused or is no message, 2 it cannot begin, 3 it is not finished, 130 it
    was interrupted.
    """
    settings = Settings.from_environment()
    choice = Choice(
        since_ms=refusals.time_ms(since) if since else None,
        until_ms=refusals.time_ms(until) if until else None,
        sources=frozenset(of_sources),
        types=frozenset(types),
        events=frozenset(events),
        users=frozenset(users),
        limit=limit,
    )
    job = Job(
        names=tuple(_from_stdin(state or Path(), name) if name == archive.STDIN else name for name in sources),
        choice=choice,
        profiles=profiles,
        counters=counters,
        links_only=links_only,
        dry_run=dry_run,
        processes=processes,
        rate=rate,
        yield_to_live=yield_to_live,
        memory_mb=memory_mb,
    )
    folder = state or Path(f"adapter-replay-{job.key(settings)}")
    files = archive.find(job.names, since_ms=choice.since_ms, until_ms=choice.until_ms, sources=choice.sources)
    with closing(Journal(folder)) as journal:
        if again:
            journal.forget()
        sys.exit(_run(job, settings, journal, files, plan_only=plan_only, plan_json=plan_json))


def _from_stdin(folder: Path, name: str) -> str:
    """Standard input in a file, for it is read twice, and perhaps again: named by what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    under_way, digest = folder / f"adapter-stdin-{os.getpid()}", hashlib.blake2b(digest_size=4)
    with os.fdopen(os.open(under_way, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as copy:
        while piece := sys.stdin.buffer.read(1_000_000):
            digest.update(piece)
            copy.write(piece)
    kept = folder / f"adapter-stdin-{digest.hexdigest()}"
    if kept.exists():
        under_way.unlink()
    else:
        under_way.rename(kept)
    return str(kept)


def _run(
    job: Job,
    settings: Settings,
    journal: Journal,
    files: list[archive.File],
    *,
    plan_only: bool,
    plan_json: Path | None,
) -> int:
    begun_at = time.monotonic()
    job = _dated(job, journal)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    progress = telling.Progress()
    run = Run(
        job=job,
        settings=settings,
        rules=Rules.of(settings),
        address=app.ingestion_address(settings),
        journal=journal,
        stopping=stopping,
        told=progress,
    )
    go_on = f"run the same command to go on ({journal.folder})"
    try:
        planned = phases.take_plan(run, files)
        progress.end()
        click.echo(f"{len(files)} files")
        for line in planned["lines"]:
            click.echo(line)
        if plan_json is not None:
            plan_json.write_text(json.dumps(planned["json"], indent=2, ensure_ascii=False))
        if plan_only:
            return 0
        if journal.recall("finished"):
            click.echo(f"\nThis replay is finished: nothing was sent. --again begins anew ({journal.folder})")
        else:
            if not job.dry_run:
                _check(run)
            phases.send(run)
    except Stopped:
        progress.end()
        click.echo(f"Interrupted: {go_on}", err=True)
        return INTERRUPTED
    except Faulty as error:
        progress.end()
        click.echo(f"adapter: the endpoint takes nothing: {error}; then {go_on}", err=True)
        return UNFINISHED
    except AdapterError as error:
        progress.end()
        if isinstance(error, ConfigError):
            raise
        click.echo(f"adapter: {error}; {go_on}", err=True)
        return UNFINISHED
    finally:
        _write(journal)
    progress.end()
    click.echo()
    for line in telling.summary(job, journal, time.monotonic() - begun_at):
        click.echo(line)
    tally = journal.tally()
    for name in ("refused", "broken"):
        if tally[name]:
            click.echo(f"What is {name} is in {journal.folder / f'{name}.jsonl'}")
    for name, why in planned["json"]["damaged"].items():
        click.echo(f"adapter: {name}: could not be read to its end: {why}", err=True)
    return SOME_LEFT_OUT if tally["refused"] or tally["broken"] or planned["json"]["damaged"] else 0


def _dated(job: Job, journal: Journal) -> Job:
    """The same with the time at which it was first begun, so that what has no time is the same when it is gone on."""
    now_ms = journal.recall("now_ms")
    if now_ms is None:
        now_ms = int(time.time() * 1_000)
        journal.remember(now_ms=now_ms)
    return msgspec.structs.replace(job, now_ms=now_ms)


def _check(run: Run) -> None:
    """Raise Faulty if the endpoint is not there or does not take the credentials."""
    with closing(ingestion.Client(run.settings, run.address)) as client:
        finding = check.credentials(client)
    if not finding.good:
        raise Faulty(finding.text)


def _write(journal: Journal) -> None:
    """Write what was refused, a message a line with its reason, and the lines that are no message, as they are."""
    _put(journal.folder / "refused.jsonl", (_line(one) for one in journal.kept(is_broken=False)))
    _put(journal.folder / "broken.jsonl", (one.body for one in journal.kept(is_broken=True)))


def _line(one: Kept) -> bytes:
    try:
        message = orjson.loads(one.body)
    except orjson.JSONDecodeError:
        message = one.body.decode(errors="replace")
    reason = {"reason": one.reason, "detail": one.detail, "endpoint": one.endpoint}
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
