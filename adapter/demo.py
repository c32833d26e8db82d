"""The main job in one minute: a real server on loopback, a log of messages, and the question answered."""

import hashlib
import hmac
import os
import secrets
import socket
import subprocess  # noqa: S404 the demo starts the adapter itself
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import requests

from adapter.errors import AdapterError
from adapter.sandbox import funnel
from adapter.sandbox.project import Project
from adapter.store import Report, read_report

QUESTION = ("Viewed Post[slug=one-person-two-streams]", "Signed Up")
BATCH = 10
STARTUP_S = 30.0
DELIVERY_S = 60.0


class DemoFailed(AdapterError):
    """The demo could not be finished."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A serving process of the demo's own."""

    url: str
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    @property
    def database_url(self) -> str:
        return self.environment["DATABASE_URL"]


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Run `adapter serve` on a free loopback port, with secrets of its own. Raises DemoFailed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "HOME", "LANG", "PYTHONPATH", "TMPDIR")
        },
        "PORT": str(port),
        "DATABASE_URL": f"sqlite:///{folder / 'adapter.db'}",
        "SEGMENT_SHARED_SECRET": secrets.token_hex(16),
        "WEBHOOK_TOKEN": secrets.token_hex(16),
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 our own interpreter and package
            [sys.executable, "-m", "adapter", "serve"], env=environment, stdout=log, stderr=log
        )
    server = Server(url=f"http://127.0.0.1:{port}", folder=folder, environment=environment, process=process)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def messages() -> list[bytes]:
    """The bundled log: raw Segment messages, one a line."""
    return resources.files("adapter").joinpath("demo.jsonl").read_bytes().splitlines()


def send(server: Server, lines: list[bytes]) -> Counter[str]:
    """Post the log as Segment would: one by one first, then in batches signed by their first element."""
    singles, rest = lines[:BATCH], lines[BATCH:]
    bodies = [(line, line) for line in singles]
    for start in range(0, len(rest), BATCH):
        batch = rest[start : start + BATCH]
        bodies.append((b"[" + b",".join(batch) + b"]", batch[0]))
    totals: Counter[str] = Counter()
    for body, signed in bodies:
        secret = server.environment["SEGMENT_SHARED_SECRET"].encode()
        answer = requests.post(
            f"{server.url}/webhook",
            data=body,
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Bearer {server.environment['WEBHOOK_TOKEN']}",
                "X-Signature": hmac.new(secret, signed, hashlib.sha1).hexdigest(),
            },
            timeout=10,
        )
        if answer.status_code != 200:
            raise DemoFailed(f"the webhook answered {answer.status_code}: {answer.text}")
        receipt = answer.json()
        totals.update(
            accepted=receipt["accepted"], duplicates=receipt["duplicates"], rejected=len(receipt["rejected"])
        )
    return totals


def wait_until_delivered(server: Server) -> Report:
    """The report once nothing waits any more. Raises DemoFailed."""
    deadline = time.monotonic() + DELIVERY_S
    while (report := read_report(server.database_url)).waiting:
        if time.monotonic() > deadline:
            raise DemoFailed(f"{report.waiting} entries were not delivered within {DELIVERY_S:g} s")
        time.sleep(0.1)
    return report


def tell(project: Project) -> Iterator[str]:
    """Who became whom, and the answer, in lines."""
    people = project.people()
    events = list(project.events())
    yield "Who became whom"
    for person in people:
        if not person.id.startswith("$device:"):
            name = person.properties.get("$name") or person.properties.get("$first_name") or ""
            devices = ", ".join(device[:8] for device in person.devices) or "no device"
            yield f"  {person.id:<6} {name:<12} {person.events:>2} events   {devices}"
    visitors = [person for person in people if person.id.startswith("$device:")]
    yield f"  {len(visitors)} visitors never logged in: {', '.join(one.id[8:16] for one in visitors)}"
    joined = sum(1 for event in events if event.person != event.distinct_id)
    yield f"  {joined} of {len(events)} events were anonymous when they happened and belong to a person now"
    yield ""
    question = funnel.Question(steps=tuple(funnel.parse_step(step) for step in QUESTION))
    yield 'What share of the people who read "one-person-two-streams" signed up within 7 days?'
    read, signed_up = project.funnel(question).steps
    yield f"  {signed_up.count} of {read.count}: {signed_up.from_start:.1%}"
    unjoined = project.funnel(question, joined=False).steps
    yield f"  Had the two streams not been joined: {unjoined[1].count} of {unjoined[0].count}"


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if requests.get(f"{server.url}/readyz", timeout=2).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.05)
    log = (server.folder / "server.log").read_text(errors="replace")
    raise DemoFailed(f"the server did not start:\n{log[-2000:]}")
