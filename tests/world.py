"""From the webhook's messages to the sandbox's people, in one process and without a socket between."""

import itertools
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import orjson
from flask import Flask

from adapter import ingestion, intake
from adapter.config import Settings
from adapter.delivery import Line
from adapter.records import Options
from adapter.sandbox import endpoints
from adapter.sandbox.project import Project
from adapter.store import EndpointReport, Store, read_report
from schemas.mixpanel import ENGAGE, GROUPS, IMPORT

LINK = "Identity Linked"


class ToSandbox(ingestion.Client):
    """Posts to the sandbox's own views, without a socket between."""

    def __init__(self, settings: Settings, app: Flask) -> None:
        super().__init__(settings, "http://sandbox.test")
        self._http = app.test_client()
        self._auth = (settings.token, "")

    def post(self, request: ingestion.Request, n_records: int) -> ingestion.Verdict:
        answer = self._http.post(
            request.url, query_string=request.params, data=request.body, headers=request.headers, auth=self._auth
        )
        return ingestion.read_answer(
            request.endpoint, answer.status_code, answer.headers, answer.data, n_records, now=0.0
        )


class World:
    """A store, its lines of delivery, and a sandbox project."""

    def __init__(self, folder: Path, database_url: str, **chosen: Any) -> None:
        self.settings = Settings(database_url=database_url, **chosen)
        self._stack = ExitStack()
        self.store = self._stack.enter_context(Store(self.settings.database_url))
        self.store.leases.renew()
        self.project = self._stack.enter_context(
            closing(Project.open(folder / "sandbox.db", self.settings.identity_api))
        )
        app = Flask("sandbox")
        app.register_blueprint(endpoints.blueprint(self.project, token=self.settings.token, service_account=None))
        self.client = self._stack.enter_context(closing(ToSandbox(self.settings, app)))
        self.numbers = itertools.count(1)
        self.restart()

    def close(self) -> None:
        self._stack.close()

    def restart(self) -> None:
        """New lines, which know nothing but what the store tells them."""
        self.lines = [
            Line(self.store, to, self.settings, self.client, uniform=lambda low, _: low)
            for to in (IMPORT, ENGAGE, GROUPS)
        ]

    def send(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Take in one call, a second after the one before."""
        number = next(self.numbers)
        at = f"2026-03-01T12:{number // 60:02}:{number % 60:02}Z"
        call = {
            "type": kind,
            "messageId": f"m-{number}",
            "timestamp": at,
        }
        call |= fields
        receipt = intake.accept([orjson.dumps(call)], self.store, Options.of(self.settings))
        assert not receipt.rejected
        return call

    def track(self, name: str, device: str | None = None, user: str | None = None, **fields: Any) -> dict[str, Any]:
        return self.send("track", event=name, anonymousId=device, userId=user, **fields)

    def identify(self, device: str | None, user: str | None, **traits: Any) -> dict[str, Any]:
        return self.send("identify", anonymousId=device, userId=user, traits=traits)

    def alias(self, device: str, user: str) -> dict[str, Any]:
        return self.send("alias", previousId=device, userId=user)

    def deliver(self) -> "World":
        while self.store.n_waiting():
            for line in self.lines:
                line.work()
        return self

    def persons(self) -> dict[str, str]:
        """Event name -> whose it is; the events that only link are left out."""
        return {one.event: one.person for one in self.project.events() if one.event != LINK}

    def clusters(self) -> dict[str, set[str]]:
        return {one.id: set(one.devices) for one in self.project.people() if one.devices}

    def names(self) -> list[str]:
        return [one.event for one in self.project.events()]

    def profile(self, user: str) -> dict[str, Any]:
        return self.project.profile(user) or {}

    def report(self, to: str = IMPORT) -> EndpointReport:
        one = read_report(self.settings.database_url).endpoints[to]
        ended = one.delivered + one.held + one.expired + one.erased
        ended += sum(sum(counts.values()) for counts in (one.refused, one.discarded, one.nothing, one.filtered))
        assert one.acknowledged == one.waiting + ended, one
        return one
