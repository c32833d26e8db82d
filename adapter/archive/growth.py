"""Whether a log is still what it was when it was found.

A local log may be written on while it is read, and is no other for that: it is read as far as it went. One that was
rewritten in place may be longer as well: that is told by its ends, as far as it went then.
"""

import os
from enum import Enum
from io import FileIO

import msgspec
from isal.isal_zlib import crc32

from adapter.archive import files, remote
from adapter.archive.files import STDIN, File

#: So much of each end of a log is looked at.
END_BYTES = 4_096


class Now(Enum):
    """What has become of a log."""

    SAME = "same"
    GROWN = "grown"
    ANOTHER = "another"


def marked(file: File) -> File:
    """The same file with its ends, if it is a local one, so that growth can be told from a rewriting."""
    if not _is_local(file):
        return file
    try:
        with FileIO(file.name) as log:
            return msgspec.structs.replace(file, ends=_ends(file, log))
    except OSError:
        return file  # whoever reads it is told


def since(file: File) -> Now:
    """What has become of a local log since it was found. What cannot be looked at is told to whoever reads it."""
    if not _is_local(file):
        return Now.SAME
    try:
        with FileIO(file.name) as log:
            return compared(file, log)
    except OSError:
        return Now.SAME


def compared(file: File, log: FileIO) -> Now:
    """The same of a log that is open. Raises OSError."""
    now = files.version(os.fstat(log.fileno()))
    if now == file.version:
        return Now.SAME
    (size, _, inode), (size_now, _, inode_now) = (one.replace("--", "-").split("-") for one in (file.version, now))
    is_longer = inode == inode_now and int(size) < int(size_now)
    return Now.GROWN if is_longer and file.ends in (None, _ends(file, log)) else Now.ANOTHER


def _is_local(file: File) -> bool:
    """Whether it is a file on disk, with a content that stays."""
    return not (file.name == STDIN or remote.is_url(file.name)) and bool(file.n_bytes and file.version)


def _ends(file: File, log: FileIO) -> int:
    """Equal for equal first and last bytes, as far as the log went when it was found."""
    n_bytes = min(file.n_bytes, END_BYTES)
    first = os.pread(log.fileno(), n_bytes, 0)
    return crc32(os.pread(log.fileno(), n_bytes, file.n_bytes - n_bytes), crc32(first))
