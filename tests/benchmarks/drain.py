"""How fast what waits goes out, and whether it costs more to have much of it: on SQLite and on PostgreSQL."""

import itertools
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests
import sqlalchemy as sa
from isal import igzip

from adapter import intake
from adapter.config import Settings
from adapter.delivery import Delivery
from adapter.records import Options
from adapter.store import Store, engine, read_report
from adapter.store.seen import DAY_MS
from adapter.store.tables import entry
from schemas import raw
from tests import postgresql
from tests.benchmarks import messages, servers

BATCH = 2_000
POLL_S = 0.05
#: In which a store is filled for a long time, to tell how far it is.
PARTS = 10
EMPTY = sa.select(~sa.exists().select_from(entry))
OPTIONS = Options(token="token")


class Null(BaseHTTPRequestHandler):
    """Reads a batch to its end, counts its events and says that all of it was taken.

    `GET` tells how many events it has had, and in how many batches.
    """

    protocol_version = "HTTP/1.1"
    answer = json.dumps({"code": 200, "num_records_imported": BATCH, "status": 1}).encode()
    #: To the one event by which credentials are checked, which can only be refused.
    refusal = json.dumps({"code": 400, "failed_records": [{"index": 0, "message": "no time"}]}).encode()

    counting = threading.Lock()
    n_events = n_batches = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        plain = igzip.decompress(body) if body[:1] == b"\x1f" else body  # in a tenth of the time that packing takes
        is_check = len(body) < 500 and b"adapter-check" in plain
        if self.path.startswith("/import") and not is_check:
            with self.counting:
                Null.n_events += plain.count(b'"$insert_id":')
                Null.n_batches += 1
        self._say(400 if is_check else 200, self.refusal if is_check else self.answer)

    def do_GET(self) -> None:
        self._say(200, b"%d %d" % (Null.n_events, Null.n_batches))

    def _say(self, status: int, answer: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def take_everything(port: int) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", port), Null)
    print(server.server_port, flush=True)
    server.serve_forever()


@contextmanager
def nowhere(port: int = 0) -> Iterator[str]:
    """The address of an endpoint in a process of its own."""
    code = f"from tests.benchmarks import drain; drain.take_everything({port})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def counted(endpoint: str) -> tuple[int, int]:
    """How many events it has read, and in how many batches."""
    n_events, n_batches = requests.get(endpoint, timeout=10).text.split()
    return int(n_events), int(n_batches)


@contextmanager
def databases() -> Iterator[dict[str, Callable[[], str]]]:
    """Makes empty stores: name of a database -> how. PostgreSQL waits for its disk, as SQLite does."""
    with ExitStack() as stack:
        folder, numbers = stack.enter_context(tempfile.TemporaryDirectory()), itertools.count()
        server = stack.enter_context(postgresql.running(fsync=True))
        yield {
            "SQLite": lambda: f"sqlite:///{folder}/{next(numbers)}.db",
            "PostgreSQL": lambda: server.create(f"drained_{next(numbers)}", "ready"),
        }


def fill(store: Store, count: int, seed: int = 0) -> None:
    """Take in so many generated messages."""
    put(store, messages.lines(count, seed))


def put(store: Store, lines: Iterator[bytes]) -> None:
    while some := list(itertools.islice(lines, BATCH)):
        intake.accept(raw.elements(b"[" + b",".join(some) + b"]"), store, OPTIONS)


def wait_until(database_url: str, enough: sa.Select[Any]) -> None:
    """Ask until the answer is yes, by a question that costs the store next to nothing."""
    with engine.beside(database_url) as reading:
        while True:
            with reading.connect() as connection:
                if connection.scalar(enough):
                    return
            time.sleep(POLL_S)


def drained_s(database_url: str, endpoint: str, lines: Iterator[bytes]) -> float:
    """Seconds in which one process sends these messages once they wait."""
    with Store(database_url) as store:
        put(store, lines)
        delivery = Delivery(store, Settings(mixpanel_token="token", ingestion_url=endpoint), endpoint)  # noqa: S106
        begin = time.perf_counter()
        delivery.start()
        wait_until(database_url, EMPTY)
        spent = time.perf_counter() - begin
        delivery.stop()
        return spent


def by_workers(database_url: str, endpoint: str, count: int, n_workers: int) -> tuple[float, int]:
    """Seconds in which so many worker processes send what waits, and the most memory that one of them took, in MB."""
    with Store(database_url) as store:
        fill(store, count)
        before = read_report(database_url).waiting
        environment = os.environ | {
            "DATABASE_URL": database_url,
            "INGESTION_URL": endpoint,
            "MIXPANEL_TOKEN": "token",
        }
        command = [sys.executable, "-m", "adapter", "worker"]
        workers = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(n_workers)]
        try:
            # From when all of them deliver, so that nobody's start is measured.
            wait_until(database_url, sa.select(sa.func.count() < before * 0.9).select_from(entry))
            begin, left = time.perf_counter(), read_report(database_url).waiting
            wait_until(database_url, EMPTY)
            spent = (time.perf_counter() - begin) * before / left
            return spent, max(servers.peak_mb(worker.pid) for worker in workers)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait(30)


def measure(count: int, line_to_request: Callable[[], tuple[float, float]]) -> Iterator[str]:
    """Lines: a full store drained by one process, and on PostgreSQL by two."""
    with nowhere() as endpoint, databases() as made:
        for name, make in made.items():
            spent = []
            for _ in range(3):
                spent.append(drained_s(make(), endpoint, messages.lines(count)))
                yield f"{count:,} messages drained in {spent[-1]:.1f} s, {name}"
            whole = [line_to_request()[1] for _ in range(2)]
            rate, limit = count / statistics.median(spent), BATCH / statistics.median(whole)
            yield f"draining a full store : line to request, {name:<11} {rate / limit:.2f}   ({rate:.0f} messages/s)"
            n_events, n_batches = counted(endpoint)
            visits_s = drained_s(make(), endpoint, messages.visits(count))
            in_each = (counted(endpoint)[0] - n_events) / (counted(endpoint)[1] - n_batches)
            rates = f"{count / visits_s:.0f} messages/s, {in_each:.0f} events a POST"
            yield f"draining visits : line to request, {name:<15} {count / visits_s / limit:.2f}   ({rates})"
        make = made["PostgreSQL"]
        one, peak = by_workers(make(), endpoint, count, 1)
        yield f"{count:,} messages drained in {one:.1f} s, by a worker"
        two, peak_of_two = by_workers(make(), endpoint, count, 2)
        cores = f"on {os.cpu_count()} cores, the database's and the endpoint's too"
        yield f"two workers : one, PostgreSQL   {one / two:.2f}   ({cores}; {peak} and {peak_of_two} MB at most)"


def days(count: int) -> Iterator[str]:
    """Lines: the first put of a day that forgets so many keys, against one that forgets none."""
    for name, n_keys in (("none", 0), (f"{count:,}", count)):
        with tempfile.TemporaryDirectory() as folder, Store(f"sqlite:///{folder}/a.db") as store:
            lines = list(messages.lines(4))
            one = intake.judged(lines[0], 0, OPTIONS, authenticated=True)
            store.put([one])
            rows = ((os.urandom(16), bytes(16)) for _ in range(n_keys))
            with sqlite3.connect(f"{folder}/a.db") as filling:
                filling.executemany("INSERT INTO seen_0 VALUES (?, ?)", rows)
            filling.close()
            begin = time.perf_counter()
            store.put([intake.judged(lines[1], 3 * DAY_MS, OPTIONS, authenticated=True)])
            yield f"the first put of a day that forgets {name:<10} {(time.perf_counter() - begin) * 1e3:.1f} ms"


def backlog(count: int) -> Iterator[str]:
    """Lines: putting in and claiming with so many messages waiting, against none."""
    seeds = itertools.count()
    with databases() as made:
        for name, make in made.items():
            with Store(make()) as empty, Store(make()) as full:
                for part in range(PARTS):
                    fill(full, count // PARTS, next(seeds))
                    yield f"{count // PARTS * (part + 1):,} messages wait, {name}"
                for work, step in (
                    ("putting 2,000", lambda store: fill(store, BATCH, next(seeds))),
                    ("claiming 2,000", lambda store: store.claim("import", BATCH)),
                ):
                    costs: dict[Store, list[float]] = {empty: [], full: []}
                    for _ in range(9):
                        for store, spent in costs.items():
                            begin = time.perf_counter()
                            step(store)
                            spent.append(time.perf_counter() - begin)
                    none, many = (statistics.median(spent) for spent in costs.values())
                    yield f"{work}, {count:,} waiting : none, {name:<11} {many / none:.2f}   ({many * 1e3:.0f} ms)"
