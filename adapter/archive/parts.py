"""A log, or a range of a large plain one, to its messages; the same ones in the same order at each reading."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from typing import cast

import msgspec

from adapter.archive import growth, lines, remote
from adapter.archive.files import STDIN, File
from adapter.archive.growth import Now
from adapter.archive.lines import Log, Pieces
from adapter.errors import Damaged, Unreached


class Part(msgspec.Struct, frozen=True):
    """A file, or the lines of a plain one that begin in [start, end)."""

    file: File
    start: int = 0  #: bytes
    end: int | None = None  #: bytes; None is the end of the file


def parts(file: File, part_bytes: int) -> list[Part]:
    """Cut a plain file of a message a line into ranges of `part_bytes`; any other, and a smaller one, stays whole."""
    if file.n_bytes <= part_bytes:
        return [Part(file)]
    try:
        with opened(file, lines.PIECE_BYTES) as log:
            if not lines.is_a_message_a_line(Pieces(log)):
                return [Part(file)]
    except Damaged:
        return [Part(file)]  # whoever reads it is told
    starts = range(0, file.n_bytes, part_bytes)
    return [Part(file, start, start + part_bytes if start + part_bytes < file.n_bytes else None) for start in starts]


def read(part: Part, told: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """The raw messages of a part, each to be judged alone; of a line too long for one the beginning.

    `told` is called with how many bytes were read, as stored, again and again.
    Raises Damaged after all that could be read if the file ends early or is damaged, and Unreached if it cannot be
    read or has changed since it was looked for.
    """
    with opened(part.file) as log:
        yield from lines.messages(Pieces(log, part.start, part.end, told))


class _Stdin:
    """Standard input, which gives what it has, for who writes to it may be slow."""

    def read(self, n_bytes: int) -> bytes:
        return cast(BufferedReader, sys.stdin.buffer).read1(n_bytes)

    def seek(self, position: int) -> int:
        raise OSError("standard input has no parts")


class _AsFound:
    """A local log as far as it went when it was looked for, for somebody may be appending to it."""

    def __init__(self, log: FileIO, n_bytes: int) -> None:
        self._log = log
        self._n_bytes = self._left = n_bytes

    def read(self, n_bytes: int) -> bytes:
        piece = self._log.read(min(n_bytes, self._left))
        self._left -= len(piece)
        return piece

    def seek(self, position: int) -> int:
        self._left = max(self._n_bytes - position, 0)
        return self._log.seek(position)


@contextmanager
def opened(file: File, block_bytes: int = remote.BLOCK_BYTES) -> Iterator[Log]:
    """Open a file to be read as far as it was there when it was found; a remote one by `block_bytes` at a time.

    Raises Unreached if that fails, or if it is another than was found. What was appended to makes it no other.
    """
    if file.name == STDIN:
        yield _Stdin()
        return
    try:
        log = remote.open_url(file.name, block_bytes) if remote.is_url(file.name) else FileIO(file.name)
    except OSError as error:
        raise Unreached(str(error)) from error
    with log:
        if not (file.n_bytes and file.version):  # it has no content that stays
            yield log
            return
        _check(file, log)
        yield _AsFound(log, file.n_bytes) if isinstance(log, FileIO) else log


def _check(file: File, log: FileIO | remote.Remote) -> None:
    try:
        if isinstance(log, remote.Remote):
            is_another = log.version() not in (None, file.version)
        else:
            is_another = growth.compared(file, log) is Now.ANOTHER
    except OSError as error:
        raise Unreached(str(error)) from error
    if is_another:
        raise Unreached(f"{file.name} has changed since it was looked for")
