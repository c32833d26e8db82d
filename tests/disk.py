"""A disk that can lose its power or fail: what SQLite writes to it goes through here.

The library takes the file system from a table of functions. Put in front of its own, these note each write and each
fsync, and fail where they are told to. So it is known what would be left if the power went at any moment: what was
written before the last fsync of its file that went well; of the rest, nothing or any part of it.
"""

import _sqlite3
import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p, cast
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

OK, IOERR_WRITE, IOERR_FSYNC = 0, 10 | 3 << 8, 10 | 4 << 8


class Deed(NamedTuple):
    """What was done to a file: write, truncate, sync, fail (a sync) or delete."""

    what: str
    path: str
    at: int = 0
    data: bytes = b""


class _FileMethods(ctypes.Structure):
    """sqlite3_io_methods of version 3, which is all of it."""

    _fields_ = [  # noqa: RUF012  # as ctypes wants it
        ("version", c_int),
        *((name, c_void_p) for name in ("close", "read", "write", "truncate", "sync")),
        ("others", c_void_p * 13),
    ]


class _FileSystem(ctypes.Structure):
    """sqlite3_vfs of version 3, which is all of it."""

    _fields_ = [  # noqa: RUF012
        *((name, c_int) for name in ("version", "file_size", "path_size")),
        *((name, c_void_p) for name in ("next", "name", "data", "open", "delete")),
        ("others", c_void_p * 13),
    ]


_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)


class Disk:
    """All that SQLite writes in this process while the disk is `watched`."""

    def __init__(self) -> None:
        self.deeds: list[Deed] = []
        #: whether the next write, or fsync, is to fail
        self.fails: Callable[[str], bool] = lambda _what: False
        self._paths: dict[int, str] = {}
        self._tables: dict[int, _FileMethods] = {}
        self._kept: list[Any] = []  # what only the library refers to
        self._library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))  # with what it is linked to
        find = self._library.sqlite3_vfs_find
        find.argtypes, find.restype = [c_char_p], c_void_p
        self._own = _FileSystem.from_address(find(None))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Files that are opened from now on are on this disk."""
        ours = _FileSystem.from_buffer_copy(self._own)
        name = ctypes.create_string_buffer(b"watched")
        ours.name, ours.next = ctypes.addressof(name), None
        ours.open = self._function(_OPEN, self._open)
        ours.delete = self._function(_DELETE, self._delete)
        assert self._library.sqlite3_vfs_register(ctypes.byref(ours), 1) == OK
        try:
            yield
        finally:
            self._library.sqlite3_vfs_register(ctypes.byref(self._own), 1)
            self._library.sqlite3_vfs_unregister(ctypes.byref(ours))

    def left(self, since: int, every: int, chance: Random | None) -> Iterator[tuple[int, dict[str, bytes]]]:
        """The files, had the power gone after so many deeds: `since`, and `every` so many from there.

        Of what no fsync had made durable nothing is left, or by chance any part. An fsync that fails makes nothing
        durable, and the next one neither: the system holds that to be written. That a file was deleted lasts from
        the next fsync of any, for names are written with the journal of the file system.
        """
        durable: dict[str, bytearray] = {}
        pending: dict[str, list[Deed]] = defaultdict(list)
        for now, deed in enumerate(self.deeds, 1):
            if deed.what == "sync":
                for path in [path for path in pending if pending[path][-1].what == "delete"]:
                    _apply(durable, pending.pop(path))
                _apply(durable, pending.pop(deed.path, []))
            elif deed.what == "fail":
                _apply(durable, _some(pending.pop(deed.path, []), chance))
            else:
                pending[deed.path].append(deed)
            if now >= since and (now - since) % every == 0:
                found = {path: bytearray(content) for path, content in durable.items()}
                for deeds in pending.values():
                    _apply(found, _some(deeds, chance))
                yield now, {path: bytes(content) for path, content in found.items()}

    def _function(self, kind: Any, function: Callable[..., int]) -> int | None:
        self._kept.append(made := kind(function))
        return cast(made, c_void_p).value

    def _open(self, _vfs: int, path: int | None, file: int, flags: int, flags_out: int) -> int:
        code: int = _OPEN(self._own.open)(ctypes.addressof(self._own), path, file, flags, flags_out)
        methods = cast(file, POINTER(c_void_p))
        if code == OK:
            # A file without a name is a temporary one of the library.
            self._paths[file] = ctypes.string_at(path).decode() if path else ""
            methods[0] = ctypes.addressof(self._watching(methods[0]))
        return code

    def _watching(self, address: int) -> _FileMethods:
        if address not in self._tables:
            own = _FileMethods.from_address(address)
            ours = self._tables[address] = _FileMethods.from_buffer_copy(own)
            write, truncate, sync = _WRITE(own.write), _TRUNCATE(own.truncate), _SYNC(own.sync)

            def _write(file: int, data: int, size: int, at: int) -> int:
                if self.fails("write"):
                    return IOERR_WRITE
                self._note("write", file, at, ctypes.string_at(data, size))
                return int(write(file, data, size, at))

            def _truncate(file: int, size: int) -> int:
                self._note("truncate", file, size)
                return int(truncate(file, size))

            def _sync(file: int, flags: int) -> int:
                if self.fails("sync"):
                    self._note("fail", file)
                    return IOERR_FSYNC
                code = int(sync(file, flags))
                self._note("sync", file)
                return code

            ours.write = self._function(_WRITE, _write)
            ours.truncate = self._function(_TRUNCATE, _truncate)
            ours.sync = self._function(_SYNC, _sync)
        return self._tables[address]

    def _delete(self, _vfs: int, path: bytes, sync_folder: int) -> int:
        self.deeds.append(Deed("delete", path.decode()))
        return int(_DELETE(self._own.delete)(ctypes.addressof(self._own), path, sync_folder))

    def _note(self, what: str, file: int, at: int = 0, data: bytes = b"") -> None:
        if path := self._paths[file]:
            self.deeds.append(Deed(what, path, at, data))


def lay(files: dict[str, bytes], folder: Path) -> None:
    """Put files that were left into a folder, in which there are no others."""
    for old in folder.iterdir():
        old.unlink()
    for path, content in files.items():
        (folder / Path(path).name).write_bytes(content)


def _some(deeds: list[Deed], chance: Random | None) -> list[Deed]:
    return [deed for deed in deeds if chance is not None and chance.random() < 0.5]


def _apply(files: dict[str, bytearray], deeds: list[Deed]) -> None:
    for what, path, at, data in deeds:
        if what == "delete":
            files.pop(path, None)
            continue
        content = files.setdefault(path, bytearray())
        content.extend(bytes(max(at + len(data) - len(content), 0)))
        if what == "write":
            content[at : at + len(data)] = data
        else:
            del content[at:]
