"""How a command asks the process that serves: a socket beside the database file, which its owner alone can open.

One connection, one question, one answer, each a line of JSON: {"verb", "arguments"} -> {"result"} or {"error"}.
"""

import logging
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from adapter.errors import AdapterError, StoreUnavailable, place_of

logger = logging.getLogger(__name__)

#: Who connects and does not say what they want in this time is hung up on: others wait.
QUESTION_S = 5.0
MAX_QUESTION_BYTES = 1_000_000
#: How long a command waits for its answer, and for the questions before its own.
ANSWER_S = 120.0
#: The least that any system takes for the name of a socket.
MAX_NAME_BYTES = 103

#: (verb, arguments) -> result, which must be JSON. May raise AdapterError.
Answer = Callable[[str, dict[str, Any]], Any]


class Control:
    """The socket and the thread that answers, one question after the other. For the owner of the store's lock."""

    def __init__(self, database: Path, answer: Answer) -> None:
        """Listen and answer. Raises OSError if there can be no such socket."""
        self._path = _socket_of(database)
        # Whoever made it is dead: we hold the lock.
        if self._path.is_socket():
            self._path.unlink()
        before = os.umask(0o177)  # the file is there, and open to its owner alone, from one moment on
        try:
            with _address(self._path) as address:
                self._server = _Server(address, answer)
        finally:
            os.umask(before)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the answer under way, and go."""
        self._server.shutdown()
        self._thread.join()
        self._path.unlink(missing_ok=True)
        self._server.server_close()


def ask(database: Path, verb: str, arguments: dict[str, Any]) -> Any:
    """The answer of the process that serves; None if none does, or if it ended before it had answered.

    Raises AdapterError with what it says went wrong, StoreUnavailable if it cannot be asked or is too slow.
    """
    path = _socket_of(database)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(ANSWER_S)
        try:
            with _address(path) as address:
                asking.connect(address)
        except PermissionError as error:
            raise StoreUnavailable(f"{path} is another user's: run the command as the one who serves") from error
        except OSError:
            return None
        try:
            asking.sendall(orjson.dumps({"verb": verb, "arguments": arguments}) + b"\n")
            line = _line(asking, ANSWER_S)
        except TimeoutError:
            raise StoreUnavailable(f"the serving process did not answer within {ANSWER_S:g} s") from None
        except OSError:
            return None
    if not line.endswith(b"\n"):
        return None
    answer = orjson.loads(line)
    if "error" in answer:
        raise AdapterError(answer["error"])
    return answer["result"]


class _Server(socketserver.UnixStreamServer):
    request_queue_size = 64

    def __init__(self, address: str, answer: Answer) -> None:
        self.answer = answer
        super().__init__(address, _Handler)

    def handle_error(self, *_: object) -> None:
        logger.warning("a command went away before it was answered")


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(TimeoutError):
            line = _line(self.request, QUESTION_S, MAX_QUESTION_BYTES)
            if line.endswith(b"\n"):
                self.request.settimeout(QUESTION_S)
                self.request.sendall(orjson.dumps(self._answered(line)) + b"\n")

    def _answered(self, line: bytes) -> dict[str, Any]:
        assert isinstance(self.server, _Server)  # noqa: S101 socketserver cannot say it
        try:
            question = orjson.loads(line)
            return {"result": self.server.answer(question["verb"], question["arguments"])}
        except AdapterError as error:
            return {"error": str(error)}
        except Exception as error:  # a fault of ours must not end the thread
            logger.error("a command failed", extra={"error": place_of(error)})
            return {"error": f"the serving process failed: {place_of(error)}"}


def _line(connection: socket.socket, within_s: float, limit: int | None = None) -> bytes:
    """Read to the end of the line, or of what comes. Raises TimeoutError, however slowly it comes."""
    give_up_at = time.monotonic() + within_s
    found = bytearray()
    while not found.endswith(b"\n") and (limit is None or len(found) < limit):
        connection.settimeout(max(give_up_at - time.monotonic(), 0.001))
        if not (part := connection.recv(65_536)):
            break
        found += part
    return bytes(found)


def _socket_of(database: Path) -> Path:
    return database.with_name(f"{database.name}.sock")


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name of the socket that is short enough: else by its folder, which Linux names when it is open."""
    if len(os.fsencode(path)) <= MAX_NAME_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
