"""The commands that only tell: what became of the messages, who is who, what would be sent, what is set."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, BinaryIO

import click

from adapter import app, census, declared, dossier, doubts
from adapter.archive import Archive
from adapter.config import Settings
from adapter.parcels import Rules
from adapter.preview import preview
from adapter.records import Options
from adapter.sandbox import counting, drawing
from adapter.sandbox import funnel as funnels
from adapter.sandbox.project import Project
from adapter.store import DeletionReport, EndpointReport, read_report
from schemas import table

#: How often a long command tells how far it is.
PROGRESS_S = 0.5

json_instead = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@json_instead
def status(as_json: bool) -> None:
    """Show what became of all messages; also beside a server."""
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


@click.command()
@click.argument("steps", nargs=-1, required=True, metavar="STEP STEP [STEP...]")
@click.option("--window", default="7d", show_default=True, help="From the first step to the last: 90s, 30m, 12h, 7d.")
@click.option("--totals", is_flag=True, help="Count every entry, not every person once.")
@click.option("--optimized", is_flag=True, help="Let any first step be a person's entry: the best one counts.")
@click.option("--by", metavar="PROPERTY", help="Also divide by the values of a property.")
@click.option(
    "--from", "start", metavar="DAY", help="Count who entered on this day or later, such as 2026-03-01 (UTC)."
)
@click.option("--to", "end", metavar="DAY", help="Count who entered on this day or earlier.")
@json_instead
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
    """Count the people in the sandbox who took step after step.

    All STEPs, in this order and in time. A STEP is EVENT, or EVENT[property=value] to count only, say, one post;
    [a=b][c=d] asks for both.
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
    with closing(Project.open_read_only(app.sandbox_path(settings))) as project:
        report = project.funnel(question)
        for name in dict.fromkeys(step.event for step in question.steps):
            if not project.has_event(name):
                click.echo(f"adapter: no event is called {json.dumps(name, ensure_ascii=False)}", err=True)
    if as_json:
        click.echo(json.dumps(counting.as_json(report), indent=2, ensure_ascii=False))
        return
    for line in drawing.lines(report, drawing.FULL if _can_write(drawing.FULL) else "#"):
        click.echo(line)


def _can_write(text: str) -> bool:
    """Whether standard output has these letters."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


@click.command("map")
@click.argument("files", nargs=-1, type=click.File("rb"), metavar="[FILE...]")
def map_(files: tuple[BinaryIO, ...]) -> None:
    """Print the requests that messages become, sending nothing.

    Segment messages are read from each FILE, or from standard input, which - names as well: an object, an array, a
    batch of the tracking API, or JSON lines. Exit code 1 if anything is refused.
    """
    settings = Settings.from_environment()
    texts = [file.read() for file in files or (sys.stdin.buffer,)]
    found = preview(texts, settings, app.ingestion_address(settings))
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    if found["refused"]:
        sys.exit(1)


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="ID... | report LOG...")
@json_instead
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
    """Tell all that is known of each ID, or what logs will do.

    Of an ID: whose it is, since when, by which message, and what waits for it.

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


@click.command()
@click.option("--markdown", is_flag=True, help="Print the table as the README has it: without current values.")
@json_instead
def settings(markdown: bool, as_json: bool) -> None:
    """Show every setting: its meaning, default and value.

    Secrets are masked.
    """
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
    tell_misspelt()
    for variable, fault in faults.items():
        click.echo(f"adapter: {variable}: {fault}", err=True)


@click.command()
@click.option("--markdown", is_flag=True, help="Print the table as the README has it.")
@json_instead
def mapping(markdown: bool, as_json: bool) -> None:
    """Show which Segment field becomes which Mixpanel property."""
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


def tell_misspelt() -> None:
    """Name the variables that nearly spell a setting, on standard error."""
    for name, meant in doubts.misspelt().items():
        click.echo(f"adapter: {name} is no setting and does nothing: is {meant} meant?", err=True)


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
        lines.append(f"oldest waiting since {dossier.utc(one.oldest_ms)}")
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
    return [f"last answer {dossier.utc(answer['at'] * 1000)} {answer['text']}", *fault]
