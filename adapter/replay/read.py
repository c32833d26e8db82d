"""A part of a log as the plan found it, and whether it is still that."""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice

import msgspec
import orjson
from isal.isal_zlib import crc32

from adapter import archive
from adapter.archive import Part
from adapter.errors import Damaged, Rewritten


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """A part as the plan found it."""

    part: Part
    n_messages: int
    damaged: str | None = None  #: why it could not be read to its end
    checksum: int = 0  #: of the messages: tells a file that was appended to from one that was rewritten


def check(read: Read, stops: Callable[[], bool]) -> None:
    """Raise Rewritten if a file to which was appended is not what it was before that. Reads it until `stops`."""
    n_messages = checksum = 0
    with suppress(Damaged):
        for one in islice(archive.read(read.part), read.n_messages):
            n_messages, checksum = n_messages + 1, crc32(one, checksum)
            if stops():
                return
    if (n_messages, checksum) != (read.n_messages, read.checksum):
        raise Rewritten(f"{read.part.file.name} has changed since the plan was taken")


def is_half(one: bytes, read: Read) -> bool:
    """Whether the last line of a file is one that was being written: left, like what was appended after it."""
    if read.part.end is not None:
        return False
    try:
        orjson.loads(one)
    except orjson.JSONDecodeError:
        return archive.since(read.part.file) is archive.Now.GROWN
    return False
