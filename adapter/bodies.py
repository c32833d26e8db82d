"""Bodies of requests: how many are read at once and for how long, and how many bytes of them are held.

The server has few threads and no time limit for a body, and whoever reads one waits for as long as the client likes.
So only some of the threads may, and a connection that keeps one waiting is cut: the kernel knows for each how long
nothing was answered. With no room for one more the answer is 503 at once.
"""

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from adapter.errors import Busy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

#: Of the server's 16 threads; the others answer meanwhile, health checks among it.
READERS = 10
#: What requests hold together, four of the largest; a body is held until its request is answered.
MAX_HELD_BYTES = 32_000_000
#: What a body counts that does not say how long it is, until it is read.
UNKNOWN_BYTES = 8_000_000
#: Segment gives up after 5 s (segment.md 3.4); where all readers are taken, the slow have less time.
BODY_S, PRESSED_S = 10.0, 2.0
#: So long somebody waits to be a reader.
MOMENT_S = 0.3
#: A connection is cut if it is late at two looks: the first may have fallen into a request that has just begun.
LOOK_EVERY_S = 0.5


class Bodies:
    """Stands before the application, and hands it bodies that are read within these bounds."""

    def __init__(self, application: "WSGIApplication", port: int) -> None:
        """For a server that listens on a port."""
        self.application = application
        self._port = port
        self._lock = threading.Condition()
        self._began: dict[Body, float] = {}  #: by the body that is being read
        self._held_bytes = 0
        if hasattr(socket, "TCP_INFO"):  # other systems do not say when a connection was answered
            threading.Thread(target=self._watch, name="bodies", daemon=True).start()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        environ["wsgi.input"] = body = Body(environ["wsgi.input"], environ.get("CONTENT_LENGTH", ""), self)
        try:
            return self.application(environ, start_response)
        finally:
            if body.began:
                self.end(body, 0)

    def begin(self, body: "Body", n_bytes: int) -> None:
        """Somebody is about to read a body of so many bytes. Raises Busy if that is more than may be."""
        with self._lock:
            if len(self._began) >= READERS:
                # Most bodies are there already, and read in no time; not if all of these have been read for longer.
                wait_s = max(self._began.values()) + MOMENT_S - time.monotonic()
                self._lock.wait_for(lambda: len(self._began) < READERS, max(wait_s, 0.0))
            if len(self._began) >= READERS or self._held_bytes + n_bytes > MAX_HELD_BYTES:
                raise Busy("as many bodies are being read, or held, as may be")
            self._began[body] = time.monotonic()
            self._held_bytes += n_bytes
            body.held_bytes = n_bytes

    def end(self, body: "Body", n_bytes: int) -> float:
        """It is read no more, and so many bytes of it are held; returns how long it took."""
        with self._lock:
            self._held_bytes += n_bytes - body.held_bytes
            body.held_bytes = n_bytes
            now = time.monotonic()
            began = self._began.pop(body, now)
            self._lock.notify()
            return now - began

    def _watch(self) -> None:
        suspects: set[str] = set()
        while True:
            time.sleep(LOOK_EVERY_S)
            with self._lock:
                began = min(self._began.values(), default=None)
                time_s = PRESSED_S if len(self._began) >= READERS else BODY_S
            if began is None or time.monotonic() - began < time_s:
                suspects = set()
                continue
            found = set()
            for name, connection in unanswered(self._port, time_s):
                found.add(name)
                if name in suspects:
                    with suppress(OSError):  # it has gone by itself
                        connection.shutdown(socket.SHUT_RD)
            suspects = found


class Body:
    """What the application reads a body from."""

    def __init__(self, stream: Any, content_length: str, bodies: Bodies) -> None:
        self._stream = stream
        self._length = int(content_length) if content_length.isdecimal() else None
        self._bodies = bodies
        self._n_read = 0
        self._ended = False
        self.began = False
        self.held_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """As of a file; it waits until there are so many bytes. Raises Busy, also if it had to be cut."""
        if not self.began:
            self._bodies.begin(self, UNKNOWN_BYTES if self._length is None else self._length)
            self.began = True
        chunk: bytes = self._stream.read() if size < 0 else self._stream.read(size)
        self._n_read += len(chunk)
        is_short = size < 0 or len(chunk) < size
        if not self._ended and (is_short or self._n_read == self._length):
            self._ended = True
            seconds = self._bodies.end(self, self._n_read)
            if seconds >= PRESSED_S and self._n_read != self._length:
                raise Busy("the body took too long")
        return chunk


def unanswered(port: int, seconds: float) -> Iterator[tuple[str, socket.socket]]:
    """The connections to this port on which for so long nothing was answered, though something came; by name.

    Linux says so in its `struct tcp_info`, and which connections a process has in /proc.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it was closed meanwhile
            link = os.readlink(f"/proc/self/fd/{name}")
            if not link.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.type != socket.SOCK_STREAM or connection.family not in (
                    socket.AF_INET,
                    socket.AF_INET6,
                ):
                    continue
                if connection.getsockname()[1] != port:
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                sent_ms, received_ms = struct.unpack_from("=I4xI", info, 44)
                if received_ms <= sent_ms >= seconds * 1000:
                    yield link, connection
