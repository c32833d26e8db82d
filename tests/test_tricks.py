"""Paths and headers that no client writes by accident, sent as raw bytes to the real server."""

import socket
from collections.abc import Iterator

import pytest
import requests

from adapter.store import read_report
from tests.conftest import raw
from tests.processes import Process, serving

TOKEN = b"Authorization: Bearer the-token\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, str]]:
    folder = tmp_path_factory.mktemp("tricks")
    with serving(folder, WEBHOOK_TOKEN="the-token") as process:
        yield process, f"sqlite:///{folder / 'adapter.db'}"


def answers(process: Process, request: bytes) -> list[int]:
    """The status of each answer until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
        connection.sendall(request)
        said = b"".join(iter(lambda: connection.recv(65_536), b""))
    return [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]]


def post(body: bytes, *headers: bytes, path: bytes = b"/webhook", length: bytes | None = None) -> bytes:
    lines = b"".join(headers) + b"Content-Length: %s\r\n" % (length or b"%d" % len(body))
    return b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + lines + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(body, JSON, TOKEN, b"Transfer-Encoding: chunked\r\n").replace(b"Content-Length", b"X-Length")


BODY = raw({"type": "track", "event": "E", "messageId": "m-1", "anonymousId": "d-1"})
GOOD = post(BODY, JSON, TOKEN)


@pytest.mark.parametrize(
    "path",
    [b"/WEBHOOK", b"/webhook/", b"/webhook%2f", b"/webhook%00", b"/webhook;a", b"/webhook\\", b"/./webhook", b"*"]
    + [b"/sandbox/../webhook", b"/sandbox/%2e%2e/webhook", b"/..%2f..%2fetc/passwd", b"/webhook%0d%0aX:a"],
)
def test_no_other_spelling_of_the_path_is_it(served: tuple[Process, str], path: bytes) -> None:
    process, _ = served
    assert answers(process, post(BODY, JSON, TOKEN, path=path)) in ([404], [400])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [b"HTTP_AUTHORIZATION: Bearer the-token\r\n"],
        [b"Authorization: Bearer wrong\r\n", TOKEN],
        [TOKEN, b"Authorization: Bearer wrong\r\n"],
        [b"Authorization: Bearer wrong, Bearer the-token\r\n"],
        [b"X-Forwarded-Authorization: Bearer the-token\r\n"],
    ],
)
@pytest.mark.parametrize("path", [b"/webhook", b"//webhook", b"/%77ebhook", b"http://a/webhook", b"/webhook?a#b"])
def test_no_spelling_of_path_or_token_comes_in_without_it(
    served: tuple[Process, str], headers: list[bytes], path: bytes
) -> None:
    process, _ = served
    assert answers(process, post(BODY, JSON, *headers, path=path)) in ([401], [404])


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(BODY, JSON, b"Authorization: Bearer\r\n the-token\r\n"), 400),
        (post(BODY, JSON, b"Authorization : Bearer the-token\r\n"), 400),
        (post(BODY, JSON, TOKEN, b"X-A: a\0b\r\n"), 400),
        (post(BODY, JSON, TOKEN, b"Content-Length: 5\r\n"), 400),
        (post(BODY, JSON, TOKEN, b"Content-Length: %d, 5\r\n" % len(BODY)), 400),
        (post(BODY, JSON, TOKEN, b"X-A: " + b"a" * 100_000 + b"\r\n", path=b"/nowhere"), 404),
        (post(BODY, JSON, TOKEN, *(b"X-%d: a\r\n" % n for n in range(10_000))), 431),
        (GOOD.replace(b"\r\n", b"\n").replace(b"/webhook", b"/nowhere"), 404),
        (chunked(b"%x;%s\r\n%s\r\n0\r\n\r\n" % (len(BODY), b"a" * 100_000, BODY)), 400),
        (chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY) + 2**64, BODY)), 400),
        (post(BODY, JSON, TOKEN, path=b"http://b/nowhere"), 404),
        (post(BODY, JSON, TOKEN, length=b"-1"), 400),
        (post(BODY, JSON, TOKEN, length=b"+%d" % len(BODY)), 400),
        (post(BODY, b"Content-Type: text/plain\r\n", JSON, TOKEN), 415),
        (post(BODY, JSON, TOKEN, b"X-A: " + b"a" * 1_000_000 + b"\r\n"), 431),
        (post(BODY, JSON, TOKEN, *(b"X-%d: a\r\n" % n for n in range(1000))), 431),
        (post(BODY, JSON, TOKEN, b"X-HTTP-Method-Override: POST\r\n").replace(b"POST", b"GET", 1), 405),
        (post(b"0\r\n\r\n" + GOOD, JSON, TOKEN, b"Transfer-Encoding: chunked\r\n"), 400),
        (post(b"0\r\n\r\n" + GOOD, JSON, TOKEN, b"Transfer-Encoding: gzip, chunked\r\n"), 400),
        (post(b"0\r\n\r\n" + GOOD, JSON, TOKEN, b"Transfer-Encoding: xchunked\r\n"), 400),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused_and_is_one_request(
    served: tuple[Process, str], request_: bytes, status: int
) -> None:
    process, _ = served
    assert answers(process, request_) == [status]


def test_of_requests_in_one_go_each_has_its_answer_in_order(served: tuple[Process, str]) -> None:
    process, _ = served
    unsigned, elsewhere = post(BODY, JSON), post(BODY, JSON, TOKEN, path=b"/nowhere")
    several = [unsigned, elsewhere, post(b"", JSON, TOKEN), unsigned]
    kept_open = b"".join(several).replace(b"Connection: close\r\n", b"", len(several) - 1)
    assert answers(process, kept_open) == [401, 404, 400, 401]


def test_after_all_of_it_only_the_honest_request_is_acknowledged(served: tuple[Process, str]) -> None:
    process, url = served
    assert requests.get(f"{process.url}/healthz", timeout=10).status_code == 200
    assert answers(process, GOOD) == [200]
    assert read_report(url).endpoints["import"].acknowledged == 1
