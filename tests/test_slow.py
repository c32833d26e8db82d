"""Clients that take their time, and more than is good, against the real server."""

import io
import re
import socket
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from adapter.bodies import READERS, Bodies
from adapter.errors import Busy
from schemas import raw as raw_json
from tests.conftest import raw
from tests.processes import Process, serving
from tests.test_serve import worker_of

JSON = {"Content-Type": "application/json"}
HEADERS = b"POST /webhook HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
#: A process under the largest bodies may take so much, and it takes 65 MB with nothing to do.
MAX_RSS_MB = 400


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    with serving(tmp_path) as process:
        yield process


class Slow:
    """A client that begins a request, and then sends a byte now and then, or nothing any more."""

    def __init__(self, port: int, *, drips: bool) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.sendall(HEADERS + b"Content-Length: 1000\r\n\r\n{")
        self.connection.settimeout(0.02)
        self.drips, self.answer, self.is_cut = drips, b"", False

    def go_on(self) -> None:
        try:
            if self.drips:
                self.connection.sendall(b" ")
            said = self.connection.recv(65_536)
            self.answer += said
            self.is_cut = self.is_cut or not said
        except TimeoutError:
            pass
        except OSError:
            self.is_cut = True


def most_mb(pid: int) -> float:
    """The most that a process has taken so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


@pytest.mark.parametrize("drips", [True, False], ids=["drips", "silent"])
def test_slow_bodies_hold_up_nobody_and_are_cut(process: Process, message: Any, drips: bool) -> None:
    statuses, slowest_s, began = [], 0.0, time.monotonic()
    with ExitStack() as stack:
        slow = [Slow(process.port, drips=drips) for _ in range(40)]
        for one in slow:
            stack.callback(one.connection.close)
        while not all(one.is_cut for one in slow):
            assert time.monotonic() < began + 20
            for one in slow:
                one.go_on()
            asked = time.monotonic()
            assert requests.get(f"{process.url}/healthz", timeout=5).status_code == 200
            statuses.append(process.post(raw(message(messageId=f"m-{len(statuses)}"))).status_code)
            slowest_s = max(slowest_s, time.monotonic() - asked)
            time.sleep(0.2)
    assert slowest_s < 1.0
    assert set(statuses) == {200, 503}
    assert process.post(raw(message())).status_code == 200
    assert {one.answer.split(b"\r\n")[0] for one in slow} == {b"HTTP/1.1 503 Service Unavailable"}


def test_a_few_slow_bodies_cost_nobody_an_answer(process: Process, message: Any) -> None:
    with ExitStack() as stack:
        slow = [Slow(process.port, drips=True) for _ in range(READERS // 2)]
        for one in slow:
            stack.callback(one.connection.close)
        for n in range(20):
            assert process.post(raw(message(messageId=f"m-{n}"))).status_code == 200
        assert not any(one.is_cut for one in slow)


def test_many_at_once_are_no_slow_ones(process: Process, message: Any) -> None:
    def send(n: int) -> set[int]:
        with requests.Session() as session:
            sent = [raw(message(messageId=f"m-{n}-{m}")) for m in range(40)]
            return {session.post(f"{process.url}/webhook", one, headers=JSON).status_code for one in sent}

    with ThreadPoolExecutor(32) as pool:
        assert set.union(*pool.map(send, range(32))) == {200}


def array(element: bytes, n_bytes: int) -> bytes:
    return b"[" + b",".join([element] * (n_bytes // (len(element) + 1))) + b"]"


def batch(n: int) -> bytes:
    """As large as Segment sends it."""
    event = b'{"type":"track","event":"E","messageId":"%d-%d","userId":"u","properties":{"text":"%s"}}'
    return b"[" + b",".join(event % (n, k, b"x" * 1_280) for k in range(3_000)) + b"]"


EMPTY = [array(b"[]", 7_900_000), array(b"{}", 7_900_000)]
NESTED = [
    array(b'{"type":"track","event":"E","userId":"u","properties":{"a":%s}}' % array(b"{}", 980_000), 7_900_000)
]
NESTED += [array(array(b"[]", 980_000), 7_900_000), array(array(b"{}", 1_900), 7_500_000)]


@pytest.mark.parametrize(
    "bodies", [EMPTY * 12, NESTED * 4, [batch(n) for n in range(24)]], ids=["empty", "nested", "batches"]
)
def test_memory_is_bounded_whatever_comes_at_once(process: Process, message: Any, bodies: list[bytes]) -> None:
    def send(body: bytes) -> int:
        return requests.post(f"{process.url}/webhook", body, headers=JSON, timeout=60).status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = set(pool.map(send, bodies))
    assert statuses <= {200, 400, 413, 503}
    assert most_mb(worker_of(process)) < MAX_RSS_MB
    assert process.post(raw(message())).status_code == 200


@pytest.mark.parametrize("element", [b"[]", b"{}", b"1"])
def test_elements_that_are_too_many_are_counted_before_they_are_made(element: bytes) -> None:
    body = array(element, 7_900_000)
    tracemalloc.start()
    try:
        with pytest.raises(raw_json.TooMany):
            raw_json.elements(body)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("says_how_long", [True, False])
def test_of_what_is_held_no_more_is_read_and_it_is_given_back(says_how_long: bool) -> None:
    """A body counts until its request is answered."""
    n_bytes, taken = 7_000_000, []

    def view(environ: Any, start_response: Any) -> list[bytes]:
        assert len(environ["wsgi.input"].read(n_bytes + 1)) == n_bytes
        try:
            post()  # while this one is held
            taken.append(True)
        except Busy:
            taken.append(False)
        return []

    def post() -> None:
        length = {"CONTENT_LENGTH": str(n_bytes)} if says_how_long else {}
        bodies({"wsgi.input": io.BytesIO(bytes(n_bytes)), **length}, lambda *_: lambda _: None)

    bodies = Bodies(view, 0)
    for _ in range(2):
        post()
        assert taken == [False, True, True, True], "the fifth is not read"
        taken.clear()
