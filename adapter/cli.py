"""The command `adapter`: results on standard output, everything else on standard error."""

import dataclasses
import datetime as dt
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click

from adapter import app, census, changes, check, declared, demo, dossier, doubts, ingestion, logs, refusals
from adapter.archive import Archive
from adapter.config import Settings
from adapter.errors import AdapterError, ConfigError, StoreLocked
from adapter.parcels import Rules
from adapter.preview import preview
from adapter.records import Options
from adapter.replay import command as replay
from adapter.sandbox import counting, drawing
from adapter.sandbox import funnel as funnels
from adapter.sandbox.project import Project
from adapter.store import DeletionReport, EndpointReport, Report, Store, read_report
from adapter.store import migrate as migrate_store
from schemas import table

#: Requests that wait for one commit together: measured best of 5, 8 and 16 (tests/benchmarks).
BLOCKING_THREADS = 16
SHUTDOWN_S = 25
#: How often a long command tells how far it is.
PROGRESS_S = 0.5


class Commands(click.Group):
    """The commands: an error of the house ends one with exit code 2 and its text, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (AdapterError, ValueError, FileNotFoundError) as error:
            click.echo(f"adapter: {error}", err=True)
            sys.exit(2)


@click.group(cls=Commands)
@click.version_option(package_name="segment-mixpanel-adapter")
def main() -> None:
    """Take Segment calls in, and deliver them to Mixpanel with every person's identity right."""


def command(function: Callable[..., Any]) -> click.Command:
    """A subcommand by the function's name."""
    return main.command(name=function.__name__.strip("_"))(function)


main.add_command(refusals.refused)
main.add_command(replay.replay)


@command
def serve() -> None:
    """Run the webhook, delivery and, on loopback, the sandbox, in one process."""
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces
    from granian.log import LogLevels

    logs.configure()
    _tell_misspelt()
    settings = Settings.from_environment()
    if doubt := doubts.of_disk(settings):
        click.echo(f"adapter: {doubt}", err=True)
    _claim_address(settings)
    # Opened and closed again here, so that a fault is told at once and not by a process that keeps dying.
    app.open_house(settings).close()
    click.echo(f"webhook {settings.url}/webhook -> {app.ingestion_address(settings)}", err=True)
    Granian(
        "adapter.app:serve",
        factory=True,
        interface=Interfaces.WSGI,
        address=settings.host,
        port=settings.port,
        # One process owns the store; see adapter.store.writer.
        workers=1,
        blocking_threads=BLOCKING_THREADS,
        # What a platform's router speaks; over HTTP/2 one connection could be a hundred that keep us waiting.
        http=HTTPModes.http1,
        respawn_failed_workers=True,
        workers_kill_timeout=SHUTDOWN_S,
        # Its warning that these are many threads for the cores is right for views that only compute.
        log_level=LogLevels.error,
    ).serve()


@command
@click.option("--keep", is_flag=True, help="Leave the server up until interrupted, and print its addresses.")
def demo_(keep: bool) -> None:
    """Run the main job on bundled messages and answer the question behind it all."""
    with tempfile.TemporaryDirectory(prefix="adapter-demo-") as name, demo.serving(Path(name)) as server:
        lines = demo.messages()
        totals = demo.send(server, lines)
        report = demo.wait_until_delivered(server)
        click.echo(
            f"Sent {len(lines)} messages through the signed webhook: {totals['accepted']} accepted, "
            f"{totals['duplicates']} seen before, {totals['rejected']} rejected"
        )
        for why in report.endpoints["intake"].last_refused.values():
            click.echo(f"  rejected: {why}")
        click.echo(_one_line(report) + "\n")
        with closing(_sandbox(Settings.from_environment(server.environment))) as project:
            for line in demo.tell(project):
                click.echo(line)
        if keep:
            click.echo(f"\nwebhook  {server.url}/webhook\nsandbox  {server.url}{app.SANDBOX_PREFIX}")
            for variable in ("WEBHOOK_TOKEN", "SEGMENT_SHARED_SECRET", "DATABASE_URL"):
                click.echo(f"{variable}={server.environment[variable]}")
            with suppress(KeyboardInterrupt):
                click.echo("Interrupt to stop.")
                server.process.wait()


@command
@click.option("--probe", is_flag=True, help="Also find out the project's ID system, by storing one event.")
def check_(probe: bool) -> None:
    """Check the settings, the endpoint, the credentials and, with --probe, the project's ID system."""
    _tell_misspelt()
    settings = Settings.from_environment()
    click.echo(f"settings     ok; records go to {app.ingestion_address(settings)} ({settings.region})")
    with closing(ingestion.Client(settings, app.ingestion_address(settings))) as client:
        findings = [check.credentials(client)]
        if probe and findings[0].good:
            click.echo("probe        one event 'Adapter Probe' will now be stored in the project")
            findings.append(check.identity_system(client, settings))
    for finding in findings:
        click.echo(f"{finding.name:<12} {'ok; ' if finding.good else 'WRONG; '}{finding.text}")
    if not all(finding.good for finding in findings):
        sys.exit(1)


@command
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show what became of everything that was acknowledged; also beside a serving process."""
    report = read_report(Settings.of_store().database_url)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), indent=2))
        return
    states = (
        f"{'acknowledged':>13}{'waiting':>9}{'delivered':>11}{'refused':>9}{'nothing to send':>17}{'filtered':>10}"
        f"{'held':>7}{'expired':>9}{'discarded':>11}{'erased':>8}"
    )
    click.echo(f"{'':<8}{states}")
    for name, one in report.endpoints.items():
        refused, nothing, filtered, discarded = (
            sum(counts.values()) for counts in (one.refused, one.nothing, one.filtered, one.discarded)
        )
        counts = f"{one.acknowledged:>13}{one.waiting:>9}{one.delivered:>11}{refused:>9}{nothing:>17}{filtered:>10}"
        click.echo(f"{name:<8}{counts}{one.held:>7}{one.expired:>9}{discarded:>11}{one.erased:>8}")
    for name, one in report.endpoints.items():
        for line in _details(one):
            click.echo(f"{name}: {line}")
    for line in _deletions(report.deletions):
        click.echo(f"deletions: {line}")


@command
@click.argument("steps", nargs=-1, required=True, metavar="STEP STEP [STEP...]")
@click.option("--window", default="7d", show_default=True, help="From the first step to the last: 90s, 30m, 12h, 7d.")
@click.option("--totals", is_flag=True, help="Count every entry, not every person once.")
@click.option("--optimized", is_flag=True, help="Let any first step be a person's entry: the best one counts.")
@click.option("--by", metavar="PROPERTY", help="Also divide by the values of a property.")
@click.option(
    "--from", "start", metavar="DAY", help="Count who entered on this day or later, such as 2026-03-01 (UTC)."
)
@click.option("--to", "end", metavar="DAY", help="Count who entered on this day or earlier.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def funnel(
    steps: tuple[str, ...],
    window: str,
    totals: bool,
    optimized: bool,
    by: str | None,
    start: str | None,
    end: str | None,
    as_json: bool,
) -> None:
    """Count the people in the sandbox who took each STEP, in this order, in time.

    A STEP is EVENT, or EVENT[property=value] to count only, say, one post; [a=b][c=d] asks for both.
    """
    from_ms, to_ms = funnels.parse_range(start, end)
    question = funnels.Question(
        steps=tuple(funnels.parse_step(step) for step in steps),
        window_s=funnels.parse_window(window),
        totals=totals,
        optimized=optimized,
        by=by,
        from_ms=from_ms,
        to_ms=to_ms,
    )
    settings = Settings.of_store()
    if not settings.uses_sandbox:
        click.echo("adapter: this reads the sandbox alone; events went to INGESTION_URL", err=True)
    with closing(_sandbox(settings)) as project:
        report = project.funnel(question)
        for name in dict.fromkeys(step.event for step in question.steps):
            if not project.has_event(name):
                click.echo(f"adapter: no event is called {json.dumps(name, ensure_ascii=False)}", err=True)
    if as_json:
        click.echo(json.dumps(counting.as_json(report), indent=2, ensure_ascii=False))
        return
    for line in drawing.lines(report):
        click.echo(line)


@command
def map_() -> None:
    """Read Segment messages on standard input; print the exact requests they become, sending nothing.

    Takes an object, an array, a batch of the tracking API, or JSON lines. Exit code 1 if anything is refused.
    """
    settings = Settings.from_environment()
    found = preview(sys.stdin.buffer.read(), settings, app.ingestion_address(settings))
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    if found["refused"]:
        sys.exit(1)


@command
@click.argument("arguments", nargs=-1, required=True, metavar="ID... | report LOG...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--worst",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Name so many of the most shared devices, and of the people with most devices.",
)
@click.option(
    "--memory-mb",
    type=click.IntRange(16),
    default=256,
    show_default=True,
    help="Memory for what is counted; the rest is in a temporary file (TMPDIR).",
)
def identity(arguments: tuple[str, ...], as_json: bool, worst: int, memory_mb: int) -> None:
    """Tell everything that is known of each ID: whose it is, since when, by which message, and what waits for it.

    `report LOG...` shows what a set of Segment logs will do to the identity graph, before anything is sent. A LOG is
    a file, a folder, a glob, a URL such as s3://bucket/folder, or - for standard input; plain or gzip; a message a
    line, or an array. Exit code 1 if one of them could not be read to its end.
    """
    settings, faults = Settings.read()
    for variable, fault in faults.items():
        click.echo(f"adapter: {variable}: {fault}", err=True)
    first, *logs = arguments
    if first == "report":
        if not logs:
            raise click.UsageError("expected `adapter identity report LOG...`")
        _report(logs, settings, as_json, worst, memory_mb)
        return
    address = Settings.of_store().database_url
    found = [dossier.look_up(address, an_id) for an_id in arguments]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2, ensure_ascii=False))
        return
    denied = Options.of(settings).denied
    for one in found:
        for line in dossier.tell(one, settings.held_days, denied):
            click.echo(line)


def _report(logs: list[str], settings: Settings, as_json: bool, worst: int, memory_mb: int) -> None:
    archive = Archive(logs)
    report = census.take(_watched(archive), Rules.of(settings), memory_mb=memory_mb, worst=worst)
    if as_json:
        click.echo(json.dumps({**report.as_dict(), "damaged": archive.damaged}, indent=2, ensure_ascii=False))
    else:
        for line in report.lines():
            click.echo(line)
    for name, why in archive.damaged.items():
        click.echo(f"adapter: {name}: could not be read to its end: {why}", err=True)
    if archive.damaged:
        sys.exit(1)


def _watched(archive: Archive) -> Iterator[bytes]:
    """The messages of an archive; how far it is, is told on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield from archive
        return
    begun = told = time.monotonic()
    for count, one in enumerate(archive, 1):
        yield one
        if (now := time.monotonic()) > told + PROGRESS_S:
            told = now
            share = f"{archive.position / archive.n_bytes:.0%}, " if archive.n_bytes else ""
            click.echo(f"\r{count:,} messages, {share}{count / (now - begun):,.0f}/s ", err=True, nl=False)
    click.echo(f"\r{'':60}\r", err=True, nl=False)


@command
@click.option("--markdown", is_flag=True, help="Print the table as the README has it: without current values.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def settings(markdown: bool, as_json: bool) -> None:
    """Show every setting: environment variable, meaning, default and current value. Secrets are masked."""
    found, faults = (Settings(), {}) if markdown else Settings.read()
    rows = declared.describe(found)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif markdown:
        click.echo("| variable | meaning | default |\n|---|---|---|")
        for row in rows:
            click.echo(
                f"| `{row['variable']}` | {row['meaning']} | {row['default'] and '`' + row['default'] + '`'} |"
            )
    else:
        for row in rows:
            click.echo(
                f"{row['variable']}={row['value']}\n    {row['meaning']} [default: {row['default'] or 'none'}]"
            )
    _tell_misspelt()
    for variable, fault in faults.items():
        click.echo(f"adapter: {variable}: {fault}", err=True)


@command
@click.option("--markdown", is_flag=True, help="Print the table as the README has it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def mapping(markdown: bool, as_json: bool) -> None:
    """Show which Segment field becomes which Mixpanel property, from the schemas that do it."""
    rows = table.table()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif markdown:
        click.echo("| on | Segment | Mixpanel | meaning | named so by | setting |\n|---|---|---|---|---|---|")
        for row in rows:
            cells = (row["on"], f"`{row['from']}`", f"`{row['name']}`", row["meaning"], row["origin"], row["setting"])
            click.echo(f"| {' | '.join(cells)} |")
    else:
        for row in rows:
            setting = f" [{row['setting']}]" if row["setting"] else ""
            click.echo(f"{row['on']:<9}{row['from']:<44}{row['name']:<24}{row['meaning']}{setting}")


@command
def worker() -> None:
    """Deliver, and nothing else: beside web processes, on PostgreSQL, in as many processes as you like."""
    _tell_misspelt()
    app.work(Settings.from_environment())


@command
def migrate() -> None:
    """Bring the store's tables to this release; safe to run again. The release step of a deploy on PostgreSQL."""
    found = migrate_store(Settings.of_store().database_url)
    click.echo("the tables are made" if found is None else f"the tables had schema {found} and are ready")


@main.group()
def seen() -> None:
    """What is remembered of messages so that one that comes twice is stored once."""


@seen.command()
@click.option("--since", required=True, metavar="T", help="2026-03-01, 2026-03-01T12:00Z, or 2h for two hours ago.")
def forget(since: str) -> None:
    """Take messages again that were acknowledged since a time: before a Segment Replay of that time.

    They are remembered by the day, in UTC, on which they were acknowledged: all of the first day is forgotten.
    """
    forgotten = changes.make(Settings.from_environment(), "forget_seen", since_ms=refusals.time_ms(since))
    click.echo(f"{forgotten['forgotten']} messages are forgotten, and taken again if they come again")


@command
@click.argument("which", type=click.Choice(["new", "same"]))
def destination(which: str) -> None:
    """Say that INGESTION_URL or MIXPANEL_TOKEN were changed on purpose.

    same: it is the same project, under another address or with a rotated token. new: it is another project; what
    was seen before is forgotten, and messages that still wait for the old one are refused and kept.
    """
    wanted = Settings.from_environment()
    with Store(wanted.database_url) as store:
        if n_alive := store.leases.n_alive():
            raise StoreLocked(f"{n_alive} processes deliver from this store: stop them first")
        waiting = read_report(wanted.database_url).waiting if which == "new" else 0
        if which == "new":
            store.forget_destination()
        store.remember("destination", wanted.destination)
    kept = f"; {waiting} entries that waited for the one before were refused and kept" if waiting else ""
    click.echo(f"the store now belongs to {wanted.destination['endpoint']}{kept}")


def _tell_misspelt() -> None:
    for name, meant in doubts.misspelt().items():
        click.echo(f"adapter: {name} is no setting and does nothing: is {meant} meant?", err=True)


def _claim_address(settings: Settings) -> None:
    """Raise ConfigError if the address is taken: the server shares it with another instead of failing."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            fault = f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}"
            raise ConfigError({"HOST, PORT": fault}) from error


def _sandbox(settings: Settings) -> Project:
    return Project.open_read_only(app.sandbox_path(settings))


def _one_line(report: Report) -> str:
    delivered = {name: one.delivered for name, one in report.endpoints.items() if one.delivered}
    parts = [f"{count} to /{name}" for name, count in delivered.items()]
    return f"Delivered {', '.join(parts)}"


def _details(one: EndpointReport) -> list[str]:
    lines = [
        f"refused {count}: {reason}"
        + (f"; the last: {one.last_refused[reason]}" if reason in one.last_refused else "")
        for reason, count in one.refused.items()
    ]
    lines += [f"nothing to send {count}: {reason}" for reason, count in one.nothing.items()]
    lines += [f"filtered {count}: {reason}" for reason, count in one.filtered.items()]
    lines += [f"expired {count}: refused as {reason}" for reason, count in one.expired_refused.items()]
    lines += [f"discarded {count}: refused as {reason}" for reason, count in one.discarded.items()]
    lines += [f"noted {count}: {note}" for note, count in one.notes.items()]
    if one.duplicates:
        lines.append(f"seen before {one.duplicates}")
    if one.oldest_ms is not None:
        lines.append(f"oldest waiting since {_utc(one.oldest_ms / 1000)}")
    return lines + _last(one.last_answer)


def _deletions(one: DeletionReport) -> list[str]:
    lines = [f"{one.waiting} ids wait to be requested"] if one.waiting else []
    lines += [f"{one.pending} requests are under way"] if one.pending else []
    lines += [f"{count} ids ended: {status}" for status, count in one.ended.items()]
    return lines + _last(one.last_answer)


def _last(answer: dict[str, Any] | None) -> list[str]:
    if answer is None:
        return []
    fault = [f"FAULT {answer['fault']}"] if answer["fault"] else []
    return [f"last answer {_utc(answer['at'])} {answer['text']}", *fault]


def _utc(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
