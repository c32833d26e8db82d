"""An ingestion endpoint of a test's own: real HTTP on loopback, answers by script, remembers what it got."""

import gzip
import json
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Got:
    """One request as it arrived."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    records: Any  #: what the body held; None without one
    method: str = "POST"


@dataclass
class Answer:
    """What to answer. `body` is JSON unless it is bytes; status 0 ends the connection without a word."""

    status: int = 200
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    reset_after: int | None = None  #: of its body, so many bytes; then the connection is reset
    hints: bool = False  #: an answer that is not final comes before it
    drips: bool = False  #: its body comes a byte at a time, for as long as somebody listens


def stored(got: Got) -> Answer:
    """What Mixpanel answers when all is well."""
    if got.path == "/import":
        return Answer(body={"code": 200, "num_records_imported": len(got.records), "status": "OK"})
    return Answer(body={"status": 1, "error": None})


Script = Callable[[Got], Answer]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # those whom a test kills
            super().handle_error(request, client_address)


class Endpoint:
    """`answers` are given in order, then `default`; each is an Answer or a function of what arrived."""

    def __init__(self, default: Script = stored) -> None:
        self.default = default
        self.answers: deque[Answer | Script] = deque()
        self.got: list[Got] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(endpoint) -> type[BaseHTTPRequestHandler]:  # noqa: N805 the handler's own self is needed below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else head and body are 40 ms apart

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                n_bytes = int(self.headers["Content-Length"] or 0)
                body = self.rfile.read(n_bytes)
                if len(body) < n_bytes:  # whoever sent it has died, and nothing was asked
                    self.close_connection = True
                    return
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                got = Got(parts.path, query, dict(self.headers), json.loads(body or b"null"), self.command)
                endpoint.got.append(got)
                answer = endpoint.answers.popleft() if endpoint.answers else endpoint.default
                if callable(answer):
                    answer = answer(got)
                if answer.status == 0:
                    self.close_connection = True
                    return
                payload = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                if answer.hints:
                    self.send_response_only(103)
                    self.end_headers()
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                if answer.drips:
                    self._drip()
                self.wfile.write(payload[: answer.reset_after])
                if answer.reset_after is not None:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True

            def _drip(self) -> None:
                with suppress(OSError):
                    while True:
                        self.wfile.write(b" ")
                        time.sleep(0.02)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
