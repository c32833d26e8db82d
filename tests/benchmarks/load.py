"""Keep-alive connections that post as fast as they are answered, from one thread."""

import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

CONNECTIONS = 32


@dataclass
class _Connection:
    socket: socket.socket
    answer: bytearray = field(default_factory=bytearray)


def rate(port: int, path: str, bodies: Iterator[bytes], *, seconds: float = 3.0) -> float:
    """Answers a second from 127.0.0.1:port. Raises AssertionError for an answer that is not 200."""
    selector = selectors.DefaultSelector()
    clients = []
    for _ in range(CONNECTIONS):
        client = _Connection(socket.create_connection(("127.0.0.1", port)))
        clients.append(client)
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.socket.sendall(_request(path, next(bodies)))
    answered, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for key, _ in selector.select(0.5):
            client = key.data
            client.answer += client.socket.recv(65_536)
            if not _complete(client.answer):
                continue
            assert client.answer.startswith(b"HTTP/1.1 200"), bytes(client.answer[:500])
            client.answer.clear()
            answered += 1
            client.socket.sendall(_request(path, next(bodies)))
    for client in clients:
        client.socket.close()
    return answered / elapsed


def _request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _complete(answer: bytearray) -> bool:
    head, found, body = bytes(answer).partition(b"\r\n\r\n")
    if not found:
        return False
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) >= int(length.split(b":")[1])
