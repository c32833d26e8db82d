"""One HTTP request and its answer, whatever they are about: bounded in time and size, and it can be hung up on."""

import http.client
import io
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, SSLError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 15.0
#: A request must end before a platform's SIGTERM turns into SIGKILL.
DEADLINE_S = 20.0
MAX_ANSWER_BYTES = 65_536
#: So much of an answer is read at all, with its head and all that frames it, packed as it is.
MAX_WIRE_BYTES = 500_000
#: How often to hang up on a request whose time is over.
AGAIN_S = 0.1
#: A shorter one could stand in an answer by chance.
MIN_SECRET = 8


class PrivateAddress(NewConnectionError):
    """The connection was made to an address that must not be reached; nothing was sent."""


#: How it is told that nothing came back; behind it stands why, and no colon: what follows one stays out of the log.
NO_ANSWER = "no answer"
#: What the commonest faults mean.
_MEANINGS = {
    "gaierror": " (the host's name leads nowhere)",
    "ConnectionRefusedError": " (nobody listens there)",
    "TimeoutError": " (it took too long)",
}
#: Where one of these is the cause, nothing can have been read by anybody.
_NOT_CONNECTED = (NewConnectionError, ConnectTimeoutError, SSLError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back; the secrets that the endpoint repeated are taken out of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoAnswer(Exception):
    """Nothing came back. Says of what kind the fault was, and no more: its own words may carry an address."""

    def __init__(self, error: BaseException) -> None:
        chain = list(_chain(error))
        name = type(chain[-1]).__name__
        super().__init__(f"{NO_ANSWER}, {name}{_MEANINGS.get(name, '')}")
        self.unknown = not any(isinstance(one, _NOT_CONNECTED) for one in chain)  #: it may have been read
        self.is_private = any(isinstance(one, PrivateAddress) for one in chain)


class Wire:
    """A session with its connections. One for each thread. `may_reach` is asked for the address of each."""

    def __init__(self, secrets: Sequence[str | None], may_reach: Callable[[str], bool]) -> None:
        self._secrets = [secret.encode() for secret in secrets if secret and len(secret) >= MIN_SECRET]
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Watched(self._sockets, may_reach))
        # A proxy or .netrc of the machine must not see or change the credentials.
        self._session.trust_env = False

    def send(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Answer:
        """Send it and read the answer. Raises NoAnswer, whatever the network or the endpoint does."""
        # A byte now and then keeps every other timeout from running out.
        deadline = _Deadline(DEADLINE_S, self.hang_up)
        deadline.start()
        try:
            with self._session.request(
                method,
                url,
                params=params,
                data=body,
                headers=headers,
                auth=auth,
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                # Credentials never follow a redirect.
                allow_redirects=False,
                stream=True,
            ) as response:
                answer = b""
                for chunk in response.iter_content(8_192):
                    answer += chunk
                    if len(answer) > MAX_ANSWER_BYTES:
                        # Cut off it is no JSON: a 400 that names too many records to read makes the batch halve.
                        break
        except requests.RequestException as error:
            raise NoAnswer(error) from None
        finally:
            deadline.cancel()
        for secret in self._secrets:
            # What an endpoint says is kept and shown; it must not say our secrets.
            answer = answer.replace(secret, b"(secret)")
        return Answer(status=response.status_code, headers=response.headers, body=answer)

    def hang_up(self) -> None:
        """Shut the connections, whatever is under way on them: it ends as if there had been no answer."""
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._session.close()


class _Deadline(threading.Timer):
    """Again and again: a connection that is just being made cannot be shut yet."""

    def run(self) -> None:
        while not self.finished.wait(self.interval):
            self.function()
            self.interval = AGAIN_S


class _Counted(io.RawIOBase):
    """What comes over a connection, until it is too much."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream
        self._left = MAX_WIRE_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_bytes: int = self._stream.readinto(buffer)
        self._left -= n_bytes
        if self._left < 0:
            raise OSError("too long an answer")
        return n_bytes

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Counted(self.fp.detach()))

    def _read_status(self) -> tuple[str, int, str]:
        # Behind any other answer that is not final (103) the final one would be taken for that of the next request.
        version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, http.client.CONTINUE if http.client.SWITCHING_PROTOCOLS < status < 200 else status, reason


class _Watched(HTTPAdapter):
    """Connects to addresses that may be reached, and keeps the sockets, so that they can be shut from outside."""

    def __init__(self, sockets: WeakSet[socket.socket], may_reach: Callable[[str], bool]) -> None:
        self._sockets = sockets
        self._may_reach = may_reach
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {
            "http": type("Pool", (HTTPConnectionPool,), {"ConnectionCls": self._watched(HTTPConnection)}),
            "https": type("Pool", (HTTPSConnectionPool,), {"ConnectionCls": self._watched(HTTPSConnection)}),
        }

    def _watched(self, base: type[HTTPConnection]) -> type[HTTPConnection]:
        sockets, may_reach = self._sockets, self._may_reach

        class Connection(base):  # type: ignore[valid-type, misc]
            response_class = _Response

            def connect(self) -> None:
                try:
                    super().connect()
                except TimeoutError as error:  # of TLS, which otherwise counts as one of the answer
                    raise ConnectTimeoutError(self, "no connection in time") from error
                sockets.add(self.sock)

            def _new_conn(self) -> socket.socket:
                # Not the name is asked for but the address that is connected to: another look could find another.
                found: socket.socket = super()._new_conn()
                if not may_reach(found.getpeername()[0]):
                    found.close()
                    raise PrivateAddress(self, "an address that must not be reached")
                return found

        return Connection


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those within it: the outer ones all say that there was no connection, the last one why."""
    inner: object = error
    while isinstance(inner, BaseException):
        yield inner
        inner = getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
