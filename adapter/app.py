"""The web application, put together; and what a serving process holds: store, delivery, sandbox."""

import ctypes
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, TypeVar

import orjson
from flask import Flask, Response
from marshmallow import Schema, fields
from werkzeug.exceptions import HTTPException

from adapter import changes, logs, webhook
from adapter.bodies import Bodies
from adapter.config import Settings
from adapter.control import Control
from adapter.delivery import ENDPOINTS, LAST_POSTS_S, Delivery
from adapter.errors import Busy, ConfigError, RequestRefused, StoreUnavailable, place_of
from adapter.sandbox import endpoints as sandbox
from adapter.sandbox.project import OtherSystem, Project
from adapter.store import DELETIONS, Store, beside, tables_are_there
from adapter.store.sqlite import database_path
from adapter.values import without_password
from adapter.wire import NO_ANSWER
from schemas.raw import MAX_MESSAGES

logger = logging.getLogger(__name__)
Opened = TypeVar("Opened")

SANDBOX_PREFIX = "/sandbox"
#: What Segment is told when it shall send a request again.
LATER = {"Retry-After": "30"}
#: What may be asked for instead, where the library does not know it.
TOLD = {
    404: "nothing is at this address; messages are taken by POST /webhook",
    413: f"the body exceeds the limit of {webhook.MAX_BODY_BYTES:,} bytes, or of {MAX_MESSAGES:,} messages",
}
#: Of glibc's malloc.h.
M_ARENA_MAX = -8
#: How long a start waits for a database server that is away: it may be failing over, and platforms allow a minute.
START_WAIT_S = 30.0
#: How long after a signal requests that are under way may take.
LAST_REQUESTS_S = 5.0


class ErrorAnswer(Schema):
    """The one shape of every error answer; Segment's SDKs look for `code` and `message` (segment.md 4.4)."""

    success = fields.Boolean()
    code = fields.String()
    message = fields.String()
    errors = fields.Dict()


@dataclass
class House:
    """Everything a serving process holds. `close` ends it in order."""

    settings: Settings
    store: Store
    delivery: Delivery
    project: Project | None = None  #: the sandbox, where that is the endpoint
    _control: Control | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    _closing: threading.Lock = field(default_factory=threading.Lock, init=False)

    @classmethod
    def open(cls, settings: Settings) -> "House":
        """Open the store and prepare delivery. Raises ConfigError, StoreLocked, StoreUnavailable."""
        with ExitStack() as opened:
            store = opened.enter_context(Store(settings.database_url, max_waiting=settings.max_waiting))
            # The sandbox first: a start that it refuses must not teach the store another destination.
            project = opened.enter_context(closing(open_sandbox(settings))) if settings.uses_sandbox else None
            changes.check_destination(store, settings.destination)
            opened.pop_all()
        return cls(settings, store, Delivery(store, settings, ingestion_address(settings)), project)

    def start(self) -> None:
        """Deliver; and answer commands, which could not write to the file of this process."""
        if self.settings.uses_file:
            try:
                answer = partial(changes.apply, self.store, self.settings)
                self._control = Control(database_path(self.settings.database_url), answer)
            except OSError as error:
                # Messages are taken all the same; a command says that nobody answers.
                logger.warning("no socket for commands", extra={"detail": error.strerror or str(error)})
        self.delivery.start()

    def stop_delivery(self) -> None:
        # The sandbox's own server is stopping: a POST to it would only wait for its time to run out.
        self.delivery.stop(wait_s=LAST_POSTS_S if self.project is None else 0.0)

    def close(self) -> None:
        """Stop delivery, then close the store; whoever comes second waits for the first."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            if self._control is not None:
                self._control.close()
            self.stop_delivery()
            self.store.close()
            if self.project is not None:
                self.project.close()


def create_app(house: House) -> Flask:
    """The web application over an open house: /webhook, /healthz, /readyz and, if it is the endpoint, the sandbox."""
    app = Flask("adapter")
    app.url_map.merge_slashes = False
    settings = house.settings
    app.register_blueprint(webhook.blueprint(house.store, settings, house.delivery.wake))
    if house.project is not None:
        account = None
        if settings.service_account and settings.service_secret and settings.project_id:
            account = (settings.service_account, settings.service_secret, settings.project_id)
        views = sandbox.blueprint(house.project, token=settings.token, service_account=account)
        app.register_blueprint(views, url_prefix=SANDBOX_PREFIX)

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> dict[str, Any]:
        # A fault of the endpoint does not make us unready: messages are still taken in, and must be.
        answers = house.store.recall_soon([f"last_answer_{endpoint}" for endpoint in (*ENDPOINTS, DELETIONS)])
        last = {name.removeprefix("last_answer_"): answer for name, answer in answers.items() if answer}
        delivery = {
            "faults": [name for name, answer in last.items() if answer["fault"]],
            "no_answer": [name for name, answer in last.items() if answer["text"].startswith(NO_ANSWER)],
        }
        return {"status": "ready", "delivery": delivery, "turned_away": turned_away.counts}

    # A mistyped secret must not look healthy.
    turned_away = logs.Seldom(logger)

    @app.errorhandler(RequestRefused)
    def refused(error: RequestRefused) -> Response:
        # Which of the two secrets is mistyped; what is said of a body may have some of it.
        why = {"detail": str(error)} if error.status == 401 else {}
        turned_away.say(error.code, "a request was turned away", code=error.code, **why)
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return _error(error.status, error.code, str(error), error.fields, headers)

    @app.errorhandler(StoreUnavailable)
    def unavailable(error: StoreUnavailable) -> Response:
        turned_away.say("unavailable", "the store cannot take a message", logging.ERROR, detail=str(error))
        return _error(503, "unavailable", "the store cannot take this now", headers=LATER)

    @app.errorhandler(Busy)
    def busy(error: Busy) -> Response:
        turned_away.say("busy", "a request was turned away", code="busy", detail=str(error))
        return _error(503, "busy", str(error), headers=LATER)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        turned_away.say(str(status), "a request was turned away", code=str(status))
        headers = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
        code = error.name.lower().replace(" ", "_")
        return _error(status, code, TOLD.get(status) or error.description or error.name, headers=headers)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        # 503, not 500: Segment sends it again, and a fault of ours must not cost the message.
        turned_away.say("failed", "a request failed", logging.ERROR, error=place_of(error))
        return _error(503, "failed", "the adapter failed", headers=LATER)

    return app


def _error(status: int, code: str, message: str, errors: Any = None, headers: Any = None) -> Response:
    payload = ErrorAnswer().dump({"success": False, "code": code, "message": message, "errors": errors or {}})
    body = orjson.dumps(payload, option=orjson.OPT_APPEND_NEWLINE)
    return Response(body, status=status, headers=headers, mimetype="application/json")


def serve() -> Callable[..., Any]:
    """The application of a serving process, for the WSGI server: opens the house and starts delivery."""
    logs.configure()
    _share_memory()
    house = open_house(Settings.from_environment())
    app = create_app(house)
    house.start()
    # The server's workers are children that skip atexit; this runs in them too.
    Finalize(None, house.close, exitpriority=10)
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(house, os.getppid(), told), name="end-in-time", daemon=True).start()
    return Bodies(app, house.settings.port)


def _share_memory() -> None:
    """Let threads take memory from two pools, not each from its own, which it would keep: a third less is held."""
    with suppress(OSError, AttributeError):  # only glibc knows of it
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def open_house(settings: Settings) -> House:
    """`House.open`, once the database is there. Raises ConfigError, StoreLocked, StoreUnavailable."""
    return _when_there(settings, lambda: House.open(settings))


def look(settings: Settings) -> bool:
    """Whether there is a store yet. Makes and changes nothing. Raises what `House.open` would at what there is."""
    if settings.uses_sandbox:
        with suppress(FileNotFoundError):
            open_sandbox(settings, Project.open_read_only).close()
    if not tables_are_there(settings.database_url):
        return False
    with beside(settings.database_url) as store:
        if (known := store.recall("destination")) is not None:
            changes.compare_destination(known, settings.destination)
    return True


def work(settings: Settings) -> None:
    """Deliver until a signal, then end in order: what is under way is settled, and the lanes are given up.

    Raises ConfigError, StoreLocked, StoreUnavailable.
    """
    if settings.uses_file:
        raise ConfigError({"DATABASE_URL": "a worker needs PostgreSQL: a file is owned by the process that serves"})
    if settings.uses_sandbox:
        raise ConfigError({"INGESTION_URL": "a worker has no sandbox: `adapter serve` alone delivers to its own"})
    logs.configure()
    with _when_there(settings, lambda: _opened(settings)) as store:
        told = threading.Event()
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda *_: told.set())
        delivery = Delivery(store, settings, ingestion_address(settings))
        delivery.start()
        shown = {"store": without_password(settings.database_url), "to": ingestion_address(settings)}
        logger.info("the worker delivers", extra=shown)
        told.wait()
        delivery.stop()


def _opened(settings: Settings) -> Store:
    with ExitStack() as opened:
        store = opened.enter_context(Store(settings.database_url))
        changes.check_destination(store, settings.destination)
        opened.pop_all()
    return store


def _when_there(settings: Settings, opens: Callable[[], Opened]) -> Opened:
    """What opens the store, tried again for a while: a start that ends because a server fails over is an outage more.

    A file is there or is not.
    """
    began, said = time.monotonic(), ""
    while True:
        try:
            return opens()
        except StoreUnavailable as error:
            if settings.uses_file or time.monotonic() > began + START_WAIT_S:
                raise
            if str(error) != said:
                said = str(error)
                logger.warning("the start waits for the database", extra={"detail": said, "up_to_s": START_WAIT_S})
            time.sleep(1.0)


def _end_in_time(house: House, parent: int, told: int) -> None:
    """End with the server's main process, however it ends, for an orphan would keep the store locked; and in order
    at a signal, also when the server waits for a connection that somebody keeps open.
    """
    while os.getppid() == parent:
        if select.select([told], [], [], 0.5)[0]:
            signalled_at = time.monotonic()
            house.stop_delivery()
            time.sleep(max(signalled_at + LAST_REQUESTS_S - time.monotonic(), 0.0))
            house.close()
            os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def ingestion_address(settings: Settings) -> str:
    """Where delivery posts to: the configured endpoint, or the sandbox of this very server."""
    if settings.ingestion_url is not None and not settings.uses_sandbox:
        return settings.ingestion_url
    return settings.url + SANDBOX_PREFIX


def open_sandbox(settings: Settings, opens: Callable[[Path, str], Project] = Project.open) -> Project:
    """The sandbox's project, with the ID system of the settings. Raises ConfigError if it has another one."""
    try:
        return opens(sandbox_path(settings), settings.identity_api)
    except OtherSystem as error:
        raise ConfigError({"IDENTITY_API": str(error)}) from error


def sandbox_path(settings: Settings) -> Path:
    """The sandbox's own file: beside a store that is a file, else in the working directory."""
    path = database_path(settings.database_url) if settings.uses_file else Path("adapter.db")
    return path.with_name(f"{path.stem}-sandbox.db")
