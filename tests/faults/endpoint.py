"""An ingestion endpoint that fails in every way, a process of its own; what it stored stands in its log.

A record may say what is wrong with it, in `fate`: poison spoils its batch without a word, named is named, and cured
is named the first time and taken the next. A POST that is answered well, or whose answer is lost or late, stores the
others at once, before anything is answered.
"""

import email.utils
import gzip
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import orjson

Record = dict[str, Any]

#: How often each fault is drawn, beside the others.
NOTHING_STORED = {
    **{"500": 3, "502 html": 2, "503": 3, "503 truncated json": 1, "408": 1},
    **{"429": 2, "429 seconds": 2, "429 date": 2, "reset before": 3, "timeout before": 1},
}
STORED = {"reset after": 3, "reset mid-answer": 3, "truncated": 3, "slow": 3, "slow-loris": 2, "timeout after": 1}
#: They make a batch be halved, so a single record never meets them.
OF_SEVERAL = {"413": 3, "400 bare": 3, "400 truncated json": 1}
OF_EVENTS = {"400 wrong index": 3, "400 string": 2}
OF_UPDATES = {"200 with an error": 5}
#: What a person must mend: nothing is sent there for a minute.
STOPS = ("302", "200 html", "404", "401", "403", "200 truncated json")
#: Where records go.
DOORS = ("/import", "/engage", "/groups")

TIMEOUT_S = 17.0  # the adapter waits 15 s for a byte
#: So few threads of the adapter are left waiting so long at once.
MAX_TIMEOUTS = 2


class Faults:
    """Which POST meets which fault. Drawn in the order in which POSTs arrive."""

    def __init__(self, seed: int) -> None:
        self._random = Random(f"endpoint {seed}")
        self.share = 0.0  #: of the POSTs that meet a fault
        self.may_time_out = False
        self.stops: list[tuple[str, str, float]] = []  #: (path, fault) that comes next there, not before a time
        self.timeouts = 0
        self._cured: set[str] = set()

    def draw(self, path: str, records: list[Record]) -> tuple[str, list[int]]:
        """The fault, or "", and the records that are not to be stored."""
        spoilt = [index for index, one in enumerate(records) if self._is_spoilt(one)]
        for stop in self.stops:
            if stop[0] == path and time.time() >= stop[2]:
                self.stops.remove(stop)
                return stop[1], spoilt
        if self._random.random() >= self.share:
            return "", spoilt
        drawn = {**NOTHING_STORED, **STORED}
        if len(records) > 1:
            drawn |= OF_SEVERAL | (OF_EVENTS if path == "/import" else OF_UPDATES)
        if not self.may_time_out or self.timeouts >= MAX_TIMEOUTS:
            drawn = {kind: weight for kind, weight in drawn.items() if not kind.startswith("timeout")}
        return self._random.choices(list(drawn), list(drawn.values()))[0], spoilt

    def _is_spoilt(self, record: Record) -> bool:
        fate = fate_of(record)
        if fate == "cured":
            name = orjson.dumps(record).decode()
            if name in self._cured:
                return False
            self._cured.add(name)
        return fate is not None

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def choice(self, choices: list[Any]) -> Any:
        return self._random.choice(choices)


def fate_of(record: Record) -> str | None:
    """What a record of /import, /engage or /groups says is wrong with it."""
    said = record.get("properties") or record.get("$set") or {}
    return said.get("fate")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, log: Path, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults = Faults(seed)
        self.lock = threading.Lock()
        self.log = log.open("ab", buffering=0)

    def shutdown_request(self, request: Any) -> None:
        request.close()  # without the farewell that comes before it otherwise, where a reset is meant

    def handle_error(self, *_: Any) -> None:
        """Whoever posted was killed."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_PUT(self) -> None:
        """Be told how to fail from now on."""
        told = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            for name, value in told.items():
                setattr(self.server.faults, name, value)
        self._answer(200, {})

    def do_GET(self) -> None:
        """Somebody followed a redirect."""
        with self.server.lock:
            self.server.log.write(orjson.dumps({"path": self.path, "fault": "", "stored": []}) + b"\n")
        self._answer(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(length := int(self.headers["Content-Length"]))
        if len(body) < length:
            return  # the sender was killed
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        path, records = urlsplit(self.path).path, orjson.loads(body)
        with self.server.lock:
            fault, spoilt = self.server.faults.draw(path, records)
            waits_s = self.server.faults.uniform(1.0, 2.5)
            style = self.server.faults.choice(["$insert_id", "insert_id", "bare" if _has_poison(records) else ""])
            stores = fault in ("", "400 wrong index", "400 string", "200 with an error") or fault in STORED
            # Updates are taken all, or none: the first that is bad may have spoilt the others.
            whole = path != "/import" and spoilt and self.server.faults.choice([True, False])
            stored = [one for n, one in enumerate(records) if n not in spoilt] if stores and not whole else []
            line = {"at": time.time(), "path": path, "fault": fault, "count": len(records), "spoilt": len(spoilt)}
            self.server.log.write(orjson.dumps({**line, "stored": stored}) + b"\n")
            self.server.faults.timeouts += fault.startswith("timeout")
        try:
            self._fail(fault, path, records, spoilt, waits_s, style)
        finally:
            with self.server.lock:
                self.server.faults.timeouts -= fault.startswith("timeout")

    def _fail(
        self, fault: str, path: str, records: list[Record], spoilt: list[int], waits_s: float, style: str
    ) -> None:
        status, _, how = fault.partition(" ")
        if fault in ("", "slow", "slow-loris", "reset mid-answer", "truncated"):
            if fault == "slow":
                time.sleep(waits_s)
            self._answer(*answer_to(path, records, spoilt, style), cut=fault)
        elif status in ("timeout", "reset"):
            time.sleep(TIMEOUT_S if status == "timeout" else 0)
            self._reset()
        elif status == "429":
            until = email.utils.formatdate(time.time() + 2, usegmt=True)
            wait = {"seconds": ("Retry-After", "1"), "date": ("Retry-After", until)}.get(how)
            self._answer(429, {"error": "too many"}, headers=[wait] if wait else [])
        elif fault == "400 wrong index":
            self._answer(400, {"failed_records": [{"index": len(records) + 3, "message": "wrong", "field": ""}]})
        elif fault == "400 string":
            self._answer(400, {"failed_records": ["a record is bad"], "num_records_imported": len(records) - 1})
        elif fault == "200 with an error":
            self._answer(200, {"status": 0, "error": "an update is bad", "num_good_events": 0})
        elif fault == "302":
            self._answer(302, b"", headers=[("Location", "/followed")])
        elif "html" in how:
            self._answer(int(status), b"<html>hello</html>")
        elif "truncated json" in how:
            self._answer(int(status), b'{"failed_records": [{"index": 0, "mess')
        else:
            self._answer(int(status), {"error": f"told to say {status}"})

    def _answer(self, status: int, body: Any, cut: str = "", headers: Iterable[tuple[str, str]] = ()) -> None:
        payload = body if isinstance(body, bytes) else orjson.dumps(body)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if cut == "slow-loris":
            for n in range(len(payload)):
                self.wfile.write(payload[n : n + 1])
                time.sleep(2.0 / len(payload))
        elif cut in ("reset mid-answer", "truncated"):
            self.wfile.write(payload[: len(payload) // 2])
            self.close_connection = True
            if cut == "reset mid-answer":
                self._reset()
        else:
            self.wfile.write(payload)

    def _reset(self) -> None:
        """End the connection as a crash does, without a farewell."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def _has_poison(records: list[Record]) -> bool:
    return any(fate_of(one) == "poison" for one in records)


def answer_to(path: str, records: list[Record], spoilt: list[int], style: str) -> tuple[int, Any]:
    """What an endpoint that works says of a batch in which these are spoilt."""
    good = len(records) - len(spoilt)
    if path != "/import":
        answer = {"status": 0, "error": "an update is bad"} if spoilt else {"status": 1, "error": None}
        return 200, {**answer, "num_good_events": good}
    if not spoilt:
        return 200, {"code": 200, "num_records_imported": good, "status": "OK"}
    if style == "bare":
        return 400, {"code": 400, "error": "something is bad"}
    style = style or "$insert_id"
    failed: list[Any] = [
        {"index": n, style: records[n]["properties"]["$insert_id"], "field": "fate", "message": "bad"} for n in spoilt
    ]
    return 400, {"code": 400, "error": "some failed", "failed_records": failed, "num_records_imported": good}


def read(log: Path, after: int = 0) -> Iterator[dict[str, Any]]:
    """The POSTs in the log from a byte on; a line that is being written is left out."""
    with log.open("rb") as file:
        file.seek(after)
        for line in file:
            if line.endswith(b"\n"):
                yield orjson.loads(line)


def main() -> None:
    server = Server(Path(sys.argv[1]), int(sys.argv[2]))
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started it has ended, however it did


if __name__ == "__main__":
    main()
