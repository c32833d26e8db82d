"""What a POST looks like on the wire, and what each answer to it means."""

import contextlib
import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adapter import ingestion
from adapter import wire as wires
from adapter.config import Settings
from adapter.ingestion import Client, Outcome, Verdict, read_answer
from schemas.mixpanel import ENGAGE, GROUPS, IMPORT
from tests.endpoint import Answer, Endpoint
from tests.processes import wait_until

DONE, HALVE, LATER = Outcome.DONE, Outcome.HALVE, Outcome.LATER
NOW = 1_772_366_400.0  # 2026-03-01T12:00:00Z
TOKEN = "tok-3f9a"
FAULT_WAIT_S, MAX_RETRY_AFTER_S = ingestion.FAULT_WAIT_S, ingestion.MAX_RETRY_AFTER_S
PAGE = b"<!doctype html><h1>It works!</h1>"
RECORDS = [b'{"event":"a"}', b'{"event":"b"}']


def answer(endpoint: str, status: int, body: Any = None, n_records: int = 3, **headers: str) -> Verdict:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_answer(endpoint, status, named, raw, n_records, now=NOW)


def failed(*records: Any, n_imported: int = 0) -> dict[str, Any]:
    return {
        "code": 400,
        "error": "some data points in the request failed validation",
        "failed_records": list(records),
        "num_records_imported": n_imported,
        "status": "Bad Request",
    }


def bad_time(**fields: Any) -> dict[str, Any]:
    return {"field": "properties.time", "message": "must be seconds since epoch", **fields}


TIME_REASON = "must be seconds since epoch (properties.time)"
VERB_REASON = "identity events are not allowed when project is using simplified identity management"
ALL_STORED = {"code": 200, "num_records_imported": 3, "status": "OK"}


@pytest.mark.parametrize(
    ("endpoint", "status", "body", "outcome", "faulty"),
    [
        (IMPORT, 200, ALL_STORED, DONE, False),
        (IMPORT, 200, {"num_records_imported": 3}, DONE, False),
        (IMPORT, 200, {**ALL_STORED, "new_field": [1]}, DONE, False),
        # A 200 that is not Mixpanel's own promises nothing.
        (IMPORT, 200, {"code": 200, "status": "OK"}, LATER, True),
        (IMPORT, 200, {"num_records_imported": "many"}, LATER, True),
        (IMPORT, 200, b'{"num_records_imported": NaN}', LATER, True),
        (IMPORT, 200, b'{"num_records_imported": 1e999}', LATER, True),
        (IMPORT, 200, PAGE, LATER, True),
        (IMPORT, 200, b'{"code": 200, "num_records_imp', LATER, True),
        (IMPORT, 200, [], LATER, True),
        (IMPORT, 200, None, LATER, True),
        (IMPORT, 200, 3, LATER, True),
        (IMPORT, 200, b"", LATER, True),
        (IMPORT, 200, b"\xff\xfe\x00", LATER, True),
        (IMPORT, 200, b"[" * 60_000, LATER, True),
        # Something in the batch spoils it, nobody says what.
        (IMPORT, 400, failed(), HALVE, False),
        (IMPORT, 400, {"code": 400, "error": "bad"}, HALVE, False),
        (IMPORT, 400, {"failed_records": None}, HALVE, False),
        (IMPORT, 400, {"failed_records": {"index": 1}}, HALVE, False),
        (IMPORT, 400, {"failed_records": [17]}, HALVE, False),
        (IMPORT, 400, b'{"failed_records": [{"index": 1', HALVE, False),
        (IMPORT, 400, PAGE, HALVE, False),
        (IMPORT, 400, [], HALVE, False),
        (IMPORT, 400, b"", HALVE, False),
        (IMPORT, 400, b"[" * 60_000, HALVE, False),
        (IMPORT, 413, {"error": "request exceeds max limit of 2097152 bytes"}, HALVE, False),
        (IMPORT, 413, PAGE, HALVE, False),
        # Named, but not so that we could know which.
        (IMPORT, 400, failed(bad_time(index=3)), HALVE, False),
        (IMPORT, 400, failed(bad_time(index=-1)), HALVE, False),
        (IMPORT, 400, failed(bad_time(insert_id="m-1")), HALVE, False),
        (IMPORT, 400, failed(bad_time(index=None)), HALVE, False),
        (IMPORT, 400, failed(bad_time(index=0), bad_time(index=3)), HALVE, False),
        (IMPORT, 400, failed(VERB_REASON), HALVE, False),
        # A person must mend it.
        *((endpoint, status, {"error": "no"}, LATER, True) for endpoint in (IMPORT, ENGAGE, GROUPS)
          for status in (401, 402, 403, 404, 405, 410, 422)),
        *((endpoint, status, b"", LATER, True) for endpoint in (IMPORT, ENGAGE)
          for status in (201, 204, 301, 302, 307, 308)),
        # It will pass.
        *((endpoint, status, PAGE, LATER, False) for endpoint in (IMPORT, ENGAGE, GROUPS)
          for status in (408, 429, 500, 501, 502, 503, 504, 599)),
        (IMPORT, 500, b"[" * 60_000, LATER, False),
        # /engage and /groups say it in the body.
        *((endpoint, *row) for endpoint in (ENGAGE, GROUPS) for row in [
            (200, {"status": 1, "error": None}, DONE, False),
            (200, {"status": 1, "error": ""}, DONE, False),
            (200, b"1", DONE, False),
            (200, b"1\n", DONE, False),
            (200, {"status": 0, "error": "some data objects were not valid"}, HALVE, False),
            (200, b"0", HALVE, False),
            (200, b"", LATER, True),
            (200, {}, LATER, True),
            (200, {"status": None}, LATER, True),
            (200, {"status": 2}, LATER, True),
            (200, {"status": "OK", "error": None}, DONE, False),
            (200, {"status": 1, "num_good_events": 3}, DONE, False),
            (200, {"status": "OK", "num_good_events": 3}, DONE, False),
            # Strict counts what it stored: one of three is not all.
            (200, {"status": 1, "num_good_events": 2}, HALVE, False),
            (200, {"status": "OK", "num_good_events": 0}, HALVE, False),
            (200, {"status": 0, "num_good_events": 2}, HALVE, False),
            (200, {"num_good_events": 3}, LATER, True),
            (200, {"status": "error"}, LATER, True),
            (200, b'{"status": NaN}', LATER, True),
            (200, b'{"status": 1', LATER, True),
            (200, b"accepted", LATER, True),
            (200, "1 of 1 accepted", LATER, True),
            (200, PAGE, LATER, True),
            (200, [], LATER, True),
            (200, [1], LATER, True),
            (200, None, LATER, True),
            (200, b"[" * 60_000, LATER, True),
            (400, {"status": 0, "error": "bad"}, HALVE, False),
            (400, failed(bad_time(index=0)), HALVE, False),
            (413, PAGE, HALVE, False),
        ]),
    ],
)  # fmt: skip
def test_an_answer_means(endpoint: str, status: int, body: Any, outcome: Outcome, faulty: bool) -> None:
    verdict = answer(endpoint, status, body)
    assert verdict.outcome is outcome
    assert (verdict.fault is not None) is faulty
    assert verdict.refused == {}
    assert verdict.wait_s == (FAULT_WAIT_S if faulty else None)
    assert str(status) in verdict.text


@pytest.mark.parametrize(
    ("records", "refused"),
    [
        ([bad_time(index=1, insert_id="m-2")], {1: TIME_REASON}),
        ([{"index": 1, "$insert_id": "m-2", **bad_time()}], {1: TIME_REASON}),
        ([bad_time(index=0), bad_time(index=2)], {0: TIME_REASON, 2: TIME_REASON}),
        ([bad_time(index=1), bad_time(index=1)], {1: TIME_REASON}),
        ([{"index": 0, "message": "too old"}], {0: "too old"}),
        ([{"index": 0, "message": "too old", "field": None}], {0: "too old"}),
        ([bad_time(index=n) for n in range(3)], {n: TIME_REASON for n in range(3)}),
    ],
)
def test_a_400_refuses_the_records_it_names_and_no_other(records: list[Any], refused: dict[int, str]) -> None:
    verdict = answer(IMPORT, 400, failed(*records, n_imported=3 - len(refused)))
    assert verdict.outcome is DONE
    assert verdict.refused == refused
    assert verdict.fault is None


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (VERB_REASON, VERB_REASON),
        (bad_time(), TIME_REASON),
        (bad_time(index=7), TIME_REASON),
        (bad_time(insert_id="m-1"), TIME_REASON),
    ],
)
def test_of_a_single_record_there_is_no_doubt_which_failed(record: Any, reason: str) -> None:
    verdict = answer(IMPORT, 400, failed(record), n_records=1)
    assert verdict.outcome is DONE
    assert verdict.refused == {0: reason}


@pytest.mark.parametrize("message", [None, ""])
def test_a_named_record_without_a_message_has_a_reason_all_the_same(message: str | None) -> None:
    verdict = answer(IMPORT, 400, failed({"index": 1, "message": message, "field": None}))
    assert verdict.outcome is DONE
    assert list(verdict.refused) == [1]
    assert isinstance(verdict.refused[1], str)
    assert verdict.refused[1]


def test_a_200_that_names_failed_records_does_not_count_them_as_delivered() -> None:
    verdict = answer(IMPORT, 200, {**failed(bad_time(index=1), n_imported=2), "code": 200, "status": "OK"})
    assert not (verdict.outcome is DONE and 1 not in verdict.refused)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        (None, None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 1.0),
        ("1000000000", MAX_RETRY_AFTER_S),
        ("9" * 400, MAX_RETRY_AFTER_S),
        ("Sun, 01 Mar 2026 12:01:30 GMT", 90.0),
        ("Sun, 01 Mar 2026 13:01:30 +0100", 90.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 1.0),
        ("Sun, 01 Mar 2099 12:00:00 GMT", MAX_RETRY_AFTER_S),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1e9", None),
        ("1.5", None),
        ("Sun, 99 Foo", None),
        ("Sun, 01 Mar 99999999999999999999 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_obeyed_within_reason(status: int, retry_after: str | None, wait_s: float | None) -> None:
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    verdict = answer(IMPORT, status, {"error": "slow down"}, **headers)
    assert verdict.outcome is LATER
    assert verdict.wait_s == wait_s
    assert verdict.fault is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": "Project exceeded\n rate limits."}, "429: Project exceeded rate limits."),
        ({"error": "x" * 1_000}, "429: " + "x" * 200),
        ({"error": {"why": "limits"}}, "429: {'why': 'limits'}"),
        ({}, "429: no reason given"),
        ([], "429: no reason given"),
        ("limits", "429: no reason given"),
        (None, "429: no reason given"),
        (PAGE, "429: no reason given"),
    ],
)
def test_the_endpoints_own_words_come_through_on_one_short_line(body: Any, text: str) -> None:
    assert answer(IMPORT, 429, body).text == text


def account(**fields: Any) -> Settings:
    return Settings(
        ingestion_url="https://api.mixpanel.com",
        mixpanel_token=TOKEN,
        service_account="robot",
        service_secret="s3cret",
        project_id="42",
        **fields,
    )


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[Client]:
    client = Client(Settings(ingestion_url=endpoint.url, mixpanel_token=TOKEN), endpoint.url)
    yield client
    client.close()


@pytest.fixture
def service_client(endpoint: Endpoint) -> Iterator[Client]:
    client = Client(account(), endpoint.url)
    yield client
    client.close()


def send(client: Client, endpoint: str = IMPORT) -> Verdict:
    return client.post(client.request(endpoint, RECORDS), len(RECORDS))


@pytest.mark.parametrize(
    ("to", "params", "encoding"),
    [
        (IMPORT, {"strict": "1"}, "gzip"),
        (ENGAGE, {"ip": "0", "strict": "1", "verbose": "1"}, None),
        (GROUPS, {"ip": "0", "strict": "1", "verbose": "1"}, None),
    ],
)
def test_a_request_is_complete_but_for_the_credentials(
    client: Client, to: str, params: dict[str, str], encoding: str | None
) -> None:
    request = client.request(to, RECORDS)
    assert request.url.endswith(f"/{to}")
    assert request.params == params
    assert request.headers == {"Content-Type": "application/json"} | (
        {} if encoding is None else {"Content-Encoding": encoding}
    )
    body = request.body if encoding is None else gzip.decompress(request.body)
    assert body == b'[{"event":"a"},{"event":"b"}]'


@pytest.mark.parametrize("to", [IMPORT, ENGAGE, GROUPS])
def test_the_same_records_make_the_same_bytes(client: Client, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = client.request(to, RECORDS)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # gzip likes to write the time into its header
    assert client.request(to, list(RECORDS)) == first


def test_a_service_account_names_its_project_on_import_only(service_client: Client) -> None:
    assert service_client.request(IMPORT, RECORDS).params == {"strict": "1", "project_id": "42"}
    for endpoint in (ENGAGE, GROUPS):
        assert "project_id" not in service_client.request(endpoint, RECORDS).params


def test_a_project_id_alone_does_not_ask_for_service_credentials() -> None:
    client = Client(Settings(mixpanel_token=TOKEN, project_id="42"), "http://127.0.0.1:9")
    assert client.request(IMPORT, RECORDS).params == {"strict": "1"}
    client.close()


@pytest.mark.parametrize(
    ("which", "authorization"),
    [("client", "Basic dG9rLTNmOWE6"), ("service_client", "Basic cm9ib3Q6czNjcmV0")],
    ids=["token as user, no password", "service account"],
)
def test_credentials_go_with_import_and_with_nothing_else(
    endpoint: Endpoint, request: pytest.FixtureRequest, which: str, authorization: str
) -> None:
    client = request.getfixturevalue(which)
    for name in (IMPORT, ENGAGE, GROUPS):
        assert send(client, name).outcome is DONE
    assert [got.path for got in endpoint.got] == ["/import", "/engage", "/groups"]
    assert [got.headers.get("Authorization") for got in endpoint.got] == [authorization, None, None]
    assert all(got.records == [{"event": "a"}, {"event": "b"}] for got in endpoint.got)
    for got in endpoint.got[1:]:
        assert "s3cret" not in str(got)


def test_what_is_posted_is_what_the_request_says(endpoint: Endpoint, service_client: Client) -> None:
    for name in (IMPORT, ENGAGE, GROUPS):
        request = service_client.request(name, RECORDS)
        service_client.post(request, 2)
        got = endpoint.got[-1]
        assert got.query == request.params
        assert {header: got.headers.get(header) for header in request.headers} == request.headers
        assert got.headers["Content-Length"] == str(len(request.body))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_its_target_learns_nothing(
    endpoint: Endpoint, client: Client, status: int
) -> None:
    target = Endpoint()
    endpoint.answers.append(Answer(status, b"", (("Location", f"{target.url}/import"),)))
    verdict = send(client)
    target.close()
    assert target.got == []
    assert len(endpoint.got) == 1
    assert verdict.outcome is LATER
    assert str(status) in (verdict.fault or "")


def test_an_answer_that_unpacks_to_more_than_64_kb_is_read_no_further(endpoint: Endpoint, client: Client) -> None:
    bomb = gzip.compress(b'{"num_records_imported": 2' + b" " * 20_000_000 + b"}")
    assert len(bomb) < wires.MAX_ANSWER_BYTES
    endpoint.answers.append(Answer(200, bomb, (("Content-Encoding", "gzip"),)))
    verdict = send(client)
    assert (verdict.outcome, verdict.refused) == (LATER, {})
    assert send(client).outcome is DONE, "the next request is none the worse for it"


def test_a_400_that_names_more_records_than_can_be_read_is_asked_again_in_halves(
    endpoint: Endpoint, client: Client
) -> None:
    """Mixpanel names each record that failed, in some 200 bytes: waiting would not make it shorter."""
    n = ingestion.MAX_BATCH_RECORDS
    message = "'properties.time' is invalid: must be specified as seconds since epoch"
    names = [{"index": i, "field": "properties.time", "message": message, "$insert_id": f"{i:036}"} for i in range(n)]
    endpoint.answers.append(Answer(400, failed(*names)))
    verdict = client.post(client.request(IMPORT, [b"{}"] * n), n)
    assert (verdict.outcome, verdict.refused) == (HALVE, {})


def test_a_refused_connection_is_no_answer(endpoint: Endpoint, client: Client) -> None:
    endpoint.close()
    verdict = send(client)
    assert (verdict.outcome, verdict.fault) == (LATER, None)
    assert verdict.text == "no answer, ConnectionRefusedError (nobody listens there)"


class Wire:
    """A server of raw bytes, for answers that no HTTP server would give: `talk` gets the socket after a request."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):  # the client may hang up, as it should
                self._read_request(connection)
                self._talk(connection)

    def _read_request(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            length = 0
            while (line := lines.readline()).strip():
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            lines.read(length)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def wire() -> Iterator[Callable[[Callable[[socket.socket], None]], Client]]:
    opened: list[Any] = []

    def connect(talk: Callable[[socket.socket], None]) -> Client:
        server = Wire(talk)
        client = Client(Settings(mixpanel_token=TOKEN), server.url)
        opened.extend((client, server))
        return client

    yield connect
    for part in opened:
        part.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 20",
        b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"num_records_imported": 2}',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\noops",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-More: 1\r\n" * 200 + b"\r\n",
    ],
    ids=["closes at once", "cut status", "cut body", "bad chunk", "bad gzip", "not HTTP", "header flood"],
)
def test_half_an_answer_is_no_answer(wire: Callable[..., Client], sent: bytes) -> None:
    verdict = send(wire(lambda connection: connection.sendall(sent)))
    assert (verdict.outcome, verdict.refused, verdict.fault) == (LATER, {}, None)
    assert verdict.text.startswith("no answer, ")


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (OK + b'Content-Length: 1000000000\r\n\r\n{"num_records_imported": 2', b" "),
        (OK + b"\r\n", b" "),
        (OK, b"X-More: " + b"x" * 65_000 + b"\r\n"),
        (OK + b"X-More: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (CHUNKED, b"1"),
        (CHUNKED, b"1;" + b"x" * 60_000 + b"\r\n \r\n"),
        (CHUNKED + b"0\r\n", b"X-More: 1\r\n"),
        (OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"")),
    ],
    ids=["1 GB", "no length", "headers", "header", "100s", "chunk size", "extensions", "trailers", "empty gzips"],
)
def test_of_an_answer_that_does_not_end_little_is_read(
    wire: Callable[..., Client], begins: bytes, goes_on: bytes
) -> None:
    """S6 of reliability.md: it ends at once, and in a megabyte of memory."""
    flood, cut = goes_on * (100_000 // len(goes_on) + 1), []

    def endless(connection: socket.socket) -> None:
        connection.sendall(begins)
        try:
            for _ in range(1_000):
                connection.sendall(flood)
        except OSError:
            cut.append(True)

    client = wire(endless)
    tracemalloc.start()
    try:
        verdict = send(client)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (verdict.outcome, verdict.refused) == (LATER, {})
    assert peak_bytes < 2_000_000
    wait_until(lambda: bool(cut), 20)


def test_silence_is_no_answer(wire: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "READ_TIMEOUT_S", 0.1)
    verdict = send(wire(lambda connection: connection.recv(1)))
    assert (verdict.outcome, verdict.text) == (LATER, "no answer, TimeoutError (it took too long)")


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 8000\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "],
    ids=["in a body of known length", "in a body without length", "in a header"],
)
def test_an_endpoint_that_drips_does_not_outlast_the_deadline(
    wire: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    """A byte now and then never lets a read time out; the POST must end all the same (reliability.md S6)."""
    monkeypatch.setattr(wires, "DEADLINE_S", 0.1)
    cut: list[bool] = []
    assert send(wire(dripping(head, cut))).outcome is LATER
    wait_until(lambda: cut == [True], 20)


def dripping(head: bytes, cut: list[bool]) -> Callable[[socket.socket], None]:
    """Drips until the connection ends, or for 10 s; says which it was."""

    def drip(connection: socket.socket) -> None:
        until = time.monotonic() + 10
        try:
            connection.sendall(head)
            while time.monotonic() < until:
                connection.sendall(b"x")
                time.sleep(0.02)
        except OSError:
            cut.append(True)
        else:
            cut.append(False)

    return drip


def test_nor_does_one_to_which_connecting_took_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time was over there was no connection yet that could have been shut."""
    monkeypatch.setattr(wires, "DEADLINE_S", 0.05)
    cut: list[bool] = []
    server = Wire(dripping(OK + b"Content-Length: 8000\r\n\r\n", cut))
    client = wires.Wire((), lambda _address: time.sleep(0.2) is None)
    with pytest.raises(wires.NoAnswer):
        client.send("GET", server.url, params={}, headers={})
    wait_until(lambda: cut == [True], 20)
    client.close()
    server.close()


class Greeted(Wire):
    """It has the first bytes of whatever protocol, and then it talks."""

    def _read_request(self, connection: socket.socket) -> None:
        connection.recv(10_000)


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"], ids=["silent", "drips"])
def test_a_tls_handshake_that_stalls_ends_and_nothing_was_read(says: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """So an update that counts can be sent again."""
    monkeypatch.setattr(wires, "CONNECT_TIMEOUT_S", 0.2)
    cut: list[bool] = []
    server = Greeted(dripping(says, cut) if says else lambda connection: connection.recv(1))
    client = Client(Settings(mixpanel_token=TOKEN), server.url.replace("http:", "https:"))
    verdict = send(client)
    assert (verdict.outcome, verdict.unknown) == (LATER, False)
    assert verdict.text == "no answer, TimeoutError (it took too long)"
    client.close()
    server.close()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_sees_nothing(
    endpoint: Endpoint, client: Client, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    proxy = Endpoint()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, proxy.url)
    verdict = send(client)
    proxy.close()
    assert verdict.outcome is DONE
    assert proxy.got == []
    assert len(endpoint.got) == 1


def test_a_netrc_of_the_machine_does_not_change_the_credentials(
    endpoint: Endpoint, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    send(client, ENGAGE)
    assert "Authorization" not in endpoint.got[0].headers


def test_a_message_becomes_the_same_bytes_whatever_its_characters() -> None:
    assert ingestion.encode({"event": "Größe ✓", "n": 1.5}) == '{"event":"Größe ✓","n":1.5}'.encode()
