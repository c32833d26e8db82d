"""Archived Segment logs: their raw messages one after another, however large the files are.

A file is plain or gzip, told by its first bytes, for some programs unpack what they fetch (segment.md 5.1). It holds
a message a line; a line, or all of a file, may also be an array of messages or a batch of the tracking API.
"""

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import cast

import orjson
from marshmallow import ValidationError

from schemas import raw, segment

STDIN = "-"
#: An array or object over several lines is read whole, so there is an end to how large it may be.
MAX_DOCUMENT_BYTES = 32_000_000
#: More than a message may have, with the end of its line.
_LINE_BYTES = raw.MAX_MESSAGE_BYTES + 3
_GZIP = b"\x1f\x8b"


class Archive:
    """Logs to be read once, in the order given. Iterating yields raw messages, each to be judged alone.

    A file that cannot be read to its end costs no other: it is named in `damaged`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are files, folders (all files below them, by path) or `-` for standard input.

        Raises FileNotFoundError if one is not there.
        """
        self._names = [name for given in names for name in _files(given)]
        self.n_bytes = sum(Path(name).stat().st_size for name in self._names if name != STDIN)  #: as stored
        self.damaged: dict[str, str] = {}  #: what could not be read to its end -> why
        self._done = 0
        self._open: BufferedReader | None = None

    @property
    def position(self) -> int:
        """How many of `n_bytes` have been read."""
        return self._done + (self._open.tell() if self._open else 0)

    def __iter__(self) -> Iterator[bytes]:
        for name in self._names:
            try:
                if name == STDIN:
                    yield from messages(cast(BufferedReader, sys.stdin.buffer))
                else:
                    yield from self._of_file(name)
            except (OSError, EOFError, zlib.error, raw.Malformed) as error:
                self.damaged[name] = str(error)

    def _of_file(self, name: str) -> Iterator[bytes]:
        with Path(name).open("rb") as self._open:
            try:
                yield from messages(self._open)
            finally:
                self._done, self._open = self.position, None


def _files(name: str) -> list[str]:
    path = Path(name)
    if name != STDIN and path.is_dir():
        return sorted(str(one) for one in path.rglob("*") if one.is_file())
    if name != STDIN and not path.exists():
        raise FileNotFoundError(f"there is no file {name}")
    return [name]


def messages(log: BufferedReader) -> Iterator[bytes]:
    """The raw messages of one log; of a line too long to be a message only so much that this can be told.

    Raises raw.Malformed if an array or object over several lines is too large, and EOFError or OSError if the
    compressed bytes end early or are damaged.
    """
    stream = gzip.GzipFile(fileobj=log) if log.peek(2)[:2] == _GZIP else log
    lines = _lines(stream)
    first = next(lines, b"")
    if first.strip() == b"{" or (first.lstrip()[:1] == b"[" and not _is_json(first)):
        whole = first + stream.read(MAX_DOCUMENT_BYTES)
        if len(whole) > MAX_DOCUMENT_BYTES:
            raise raw.Malformed(f"expected an array of at most {MAX_DOCUMENT_BYTES} bytes, or a message a line")
        yield from _of(whole.strip())
        return
    for line in chain([first], lines):
        stripped = line.strip()
        if len(stripped) > raw.MAX_MESSAGE_BYTES:
            yield stripped
        elif stripped:
            yield from _of(stripped)


def _lines(stream: gzip.GzipFile | BufferedReader) -> Iterator[bytes]:
    """Lines that are not blank. What of a long one was not yielded is skipped, unless it was read before."""
    while line := stream.readline(_LINE_BYTES):
        if not line.isspace():
            yield line
        while len(line) == _LINE_BYTES and line[-1:] != b"\n":
            line = stream.readline(_LINE_BYTES)


def _of(text: bytes) -> Iterator[bytes]:
    """The messages of an array or a batch; else the text itself."""
    if text[:1] == b"[":
        yield from raw.cut(text)
    elif b'"batch"' in text and _is_json(text) and "batch" in (batch := orjson.loads(text)):
        try:
            yield from (orjson.dumps(message) for message in segment.messages(batch))
        except ValidationError:
            yield text
    else:
        yield text


def _is_json(text: bytes) -> bool:
    try:
        raw.parse(text)
    except raw.Malformed:
        return False
    return True
