"""The command `adapter`: results on standard output, everything else on standard error."""

import errno
import os
import signal
import socket
import sys
import tempfile
from contextlib import closing, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from adapter import app, changes, check, demo, doubts, ingestion, logs, refusals, reports
from adapter.config import Settings
from adapter.errors import AdapterError, ConfigError, StoreLocked
from adapter.replay import command as replay
from adapter.sandbox.project import Project
from adapter.store import Store, read_report
from adapter.store import migrate as migrate_store
from adapter.values import without_password

#: Requests that wait for one commit together: measured best of 5, 8 and 16 (tests/benchmarks).
BLOCKING_THREADS = 16
SHUTDOWN_S = 25


class Commands(click.Group):
    """The commands: an error of the house ends one with exit code 2 and its text, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):  # a terminal may lack letters of a name
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except (AdapterError, ValueError, FileNotFoundError) as error:
            click.echo(f"adapter: {error}", err=True)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            click.echo(f"adapter: {error.strerror}", err=True)
            # What could not be written would be tried again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(2)


@click.group(cls=Commands)
@click.version_option(package_name="segment-mixpanel-adapter")
def main() -> None:
    """Take Segment calls in, and deliver them to Mixpanel with every person's identity right."""


for one in (
    reports.status,
    reports.funnel,
    reports.map_,
    reports.identity,
    reports.settings,
    reports.mapping,
    refusals.refused,
    replay.replay,
):
    main.add_command(one)


@main.command()
def serve() -> None:
    """Run the webhook and delivery, in one process.

    With them the sandbox, where that is the endpoint.
    """
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces
    from granian.log import LogLevels

    logs.configure()
    reports.tell_misspelt()
    settings = Settings.from_environment()
    if doubt := doubts.of_disk(settings):
        click.echo(f"adapter: {doubt}", err=True)
    _claim_address(settings)
    # Opened and closed again here, so that a fault is told at once and not by a process that keeps dying.
    app.open_house(settings).close()
    heard = f", listening on {settings.host}," if settings.on_every_address else ""
    click.echo(f"webhook {settings.url}/webhook{heard} -> {app.ingestion_address(settings)}", err=True)
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


@main.command("demo")
@click.option("--keep", is_flag=True, help="Leave the server up until interrupted, and print its addresses.")
def demo_(keep: bool) -> None:
    """Run the main job on bundled messages, and show what it gives."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the folder and the server would be left
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
        delivered = [f"{one.delivered} to /{name}" for name, one in report.endpoints.items() if one.delivered]
        click.echo(f"Delivered {', '.join(delivered)}\n")
        settings = Settings.from_environment(server.environment)
        with closing(Project.open_read_only(app.sandbox_path(settings))) as project:
            for line in demo.tell(project):
                click.echo(line)
        if keep:
            click.echo(f"\nwebhook  {server.url}/webhook\nsandbox  {server.url}{app.SANDBOX_PREFIX}")
            for variable in ("WEBHOOK_TOKEN", "SEGMENT_SHARED_SECRET", "DATABASE_URL"):
                click.echo(f"{variable}={server.environment[variable]}")
            with suppress(KeyboardInterrupt):
                click.echo("Interrupt to stop.")
                server.process.wait()


@main.command("check")
@click.option("--probe", is_flag=True, help="Also find out the project's ID system, by storing one event.")
def check_(probe: bool) -> None:
    """Check the settings, the store, the endpoint, the credentials."""
    reports.tell_misspelt()
    settings = Settings.from_environment()
    click.echo(f"settings     ok; records go to {app.ingestion_address(settings)} ({settings.region})")
    with closing(ingestion.Client(settings, app.ingestion_address(settings))) as client:
        findings = [_store(settings), check.credentials(client)]
        if probe and findings[1].good:
            click.echo("probe        one event 'Adapter Probe' will now be stored in the project")
            findings.append(check.identity_system(client, settings))
    for finding in findings:
        click.echo(f"{finding.name:<12} {'ok; ' if finding.good else 'WRONG; '}{finding.text}")
    if not all(finding.good for finding in findings):
        sys.exit(1)


def _store(settings: Settings) -> check.Finding:
    """Whether `serve` would take the store."""
    try:
        there = app.look(settings)
    except (AdapterError, ValueError) as error:
        return check.Finding(name="store", good=False, text=str(error))
    where = without_password(settings.database_url)
    return check.Finding(name="store", good=True, text=where if there else f"none yet at {where}")


@main.command()
def worker() -> None:
    """Deliver, and nothing else.

    Beside web processes, on PostgreSQL, in as many processes as you like.
    """
    reports.tell_misspelt()
    app.work(Settings.from_environment())


@main.command()
def migrate() -> None:
    """Bring the store's tables to this release.

    Safe to run again. The release step of a deploy on PostgreSQL.
    """
    found = migrate_store(Settings.of_store().database_url)
    click.echo("the tables are made" if found is None else f"the tables had schema {found} and are ready")


@main.group()
def seen() -> None:
    """What is remembered, so that a message is stored once."""


@seen.command()
@click.option("--since", required=True, metavar="T", help="2026-03-01, 2026-03-01T12:00Z, or 2h for two hours ago.")
def forget(since: str) -> None:
    """Take messages again that were acknowledged since a time.

    Before a Segment Replay of that time. They are remembered by the day, in UTC, on which they were acknowledged: all
    of the first day is forgotten.
    """
    forgotten = changes.make(Settings.from_environment(), "forget_seen", since_ms=refusals.time_ms(since))
    click.echo(f"messages forgotten, and taken again if they come again: {forgotten['forgotten']}")


@main.command()
@click.argument("which", type=click.Choice(["new", "same"]))
def destination(which: str) -> None:
    """Say that the endpoint or the token was changed on purpose.

    same: it is the same project, under another address or with a rotated token. new: it is another project; what
    was seen before is forgotten, and messages that still wait for the old one are refused and kept.
    """
    wanted = Settings.from_environment()
    with Store(wanted.database_url) as store:
        if n_alive := store.leases.n_alive():
            raise StoreLocked(f"processes that deliver from this store: {n_alive}; stop them first")
        waiting = read_report(wanted.database_url).waiting if which == "new" else 0
        if which == "new":
            store.forget_destination()
        store.remember("destination", wanted.destination)
    kept = f"; refused and kept of what waited for the one before: {waiting}" if waiting else ""
    token = "MIXPANEL_TOKEN is set" if wanted.mixpanel_token else "MIXPANEL_TOKEN is not set"
    taken = f"{wanted.destination['endpoint']} ({token}, IDENTITY_API is {wanted.identity_api})"
    click.echo(f"the store now belongs to {taken}{kept}")


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
