"""SQLite: one file, owned by the one process that writes it.

An error of the disk while a commit is made durable (EIO of fsync) fails the commit, and the writer tries each of its
changes once more: that writes the same frames of the log again, and relies on nothing that the failed fsync may have
lost. If it fails again, those who wait are answered 503.

The file is not checked at the start: `PRAGMA quick_check` reads all of it, minutes for a large one, in which nothing
could be taken. A page that is damaged is an error of the statement that meets it and answered 503; a message whose
bytes are not those that were put in is refused. Other values come as the file has them by then. `sqlite3 adapter.db
'PRAGMA integrity_check'` may be asked at any time beside the process that serves.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from adapter.errors import StoreLocked, StoreUnavailable

#: What is acknowledged has reached the disk: with less, a power cut may take the last commits.
SYNCHRONOUS = "FULL"

#: Pages in the write-ahead log before a commit moves them into the file; the writer pays for it.
CHECKPOINT_PAGES = 4_000

#: Prepared statements that are kept: those that insert are one for each number of rows.
STATEMENTS = 256

#: Of pages: links come in no order, and with the 2 MB of SQLite itself each would be read from the disk.
CACHE_KB = 64_000

#: Set on a connection whose commit erases a person.
ERASED = "erased"

#: Kept free on the disk, for without room no settlement can be written and the disk never drains.
RESERVE_BYTES = 32_000_000

#: Gives a connection that reads.
Connect = Callable[[], AbstractContextManager[sa.Connection]]


class SQLite:
    """A database file."""

    #: Whether several processes may write.
    shared = False

    def __init__(self, url: str) -> None:
        self.path = database_path(url)
        self._lock: Lock | None = None
        self._opened: list[int | None] = []  # inodes of the files that are written; none: nobody writes here

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Whether there is a file yet. Raises StoreUnavailable if there cannot be one."""
        if not self.path.parent.is_dir():
            raise StoreUnavailable(f"there is no folder {self.path.parent} for the store")
        return self.path.exists()

    def own(self) -> "Lock":
        """Become the process that writes. Raises StoreLocked, StoreUnavailable."""
        self.exists()
        self._lock = Lock(self.path)
        return self._lock

    def writing(self) -> sa.Engine:
        """An engine for the one connection that writes."""
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(self.path)), connect_args={"cached_statements": STATEMENTS}
        )

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: Any) -> None:
            # The library would begin at the first change; "begin" below says what we mean.
            connection.isolation_level = None
            for pragma in (
                "journal_mode=WAL",
                f"synchronous={SYNCHRONOUS}",
                "busy_timeout=5000",
                f"wal_autocheckpoint={CHECKPOINT_PAGES}",
                f"cache_size=-{CACHE_KB}",
                "journal_size_limit=67108864",
                "secure_delete=ON",  # what is erased is overwritten; Debian's SQLite does so anyway, others do not
            ):
                connection.execute(f"PRAGMA {pragma}")

        @sa.event.listens_for(engine, "handle_error")
        def note(context: sa.engine.ExceptionContext) -> None:
            code = getattr(context.original_exception, "sqlite_errorcode", None)
            if context.connection is not None and code == sqlite3.SQLITE_FULL:
                context.connection.info["disk_was_full"] = True

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            if connection.info.pop("disk_was_full", False) | connection.info.pop(ERASED, False):
                # The log is only moved into the file after a commit, and none succeeds: its room is needed now. And
                # it has what was erased until as much was written behind it.
                with suppress(sa.exc.OperationalError):
                    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            self._refuse_others()
            # Not deferred: a lock that was taken for reading cannot wait when it becomes one for writing.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            self._opened = self._opened or self._inodes()

        return engine

    def reading(self) -> sa.Engine:
        """An engine that can only read, beside a process that writes. Raises StoreUnavailable if there is no file."""
        if not self.path.exists():
            raise StoreUnavailable(f"there is no store at {self.path}; `adapter serve` makes one")
        address = f"file:{quote(str(self.path))}"
        engine = sa.create_engine(sa.URL.create("sqlite", database=address, query={"mode": "ro", "uri": "true"}))
        sa.event.listen(engine, "begin", lambda _: self._refuse_others())
        return engine

    def _refuse_others(self) -> None:
        """Raise OperationalError where the file, or its log, was moved, removed or replaced since it was opened.

        SQLite would go on in what nobody opens again, and all that it then takes would be lost. The same where its
        lock was removed, and another process has taken it: of two that write it is the first that stops.
        """
        if not self._opened:
            return
        fault = None
        if self._inodes() != self._opened:
            fault = "or its -wal was moved, removed or replaced"
        elif self._lock is not None and self._lock.is_anothers():
            fault = "is another process's by now, for its lock was removed"
        if fault is not None:
            raise sa.exc.OperationalError(None, None, sqlite3.OperationalError(f"{self.path} {fault}: restart"))

    def _inodes(self) -> list[int | None]:
        return [_inode(path) for path in (self.path, self.path.with_name(f"{self.path.name}-wal"))]

    def fix_moment(self, connection: sa.Connection) -> None:
        """All that is read on this connection from now on is of one moment."""
        connection.exec_driver_sql("BEGIN")

    def lacks_room(self, n_bytes: int, connect: Connect) -> str | None:
        """What is lacking before the disk is full, if it is once so many bytes more are stored."""
        needed = RESERVE_BYTES + 2 * n_bytes  # they are in the write-ahead log first, then in the file as well
        disk = os.statvfs(self.path.parent)
        free = disk.f_bavail * disk.f_frsize
        if free <= needed:
            # The file never shrinks: what has drained left its room there.
            with connect() as connection:
                pages, page_bytes = (
                    connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                    for name in ("freelist_count", "page_size")
                )
            free += pages * page_bytes
        return f"less than {needed} bytes are free in {self.path.parent}" if free <= needed else None


class Lock:
    """Held by the one process that may write; the system frees it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock beside a database file. Raises StoreLocked, StoreUnavailable."""
        self._path = beside = path.with_name(path.name + ".lock")
        try:
            self._file = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"{beside} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._file, 20, 0).decode() or "unknown"
            os.close(self._file)
            raise StoreLocked(f"{path} is in use by process {owner}; one process owns a SQLite file") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def is_anothers(self) -> bool:
        """Whether its file was removed, and there is one that another process has made since."""
        return _inode(self._path) not in (None, os.fstat(self._file).st_ino)

    def release(self) -> None:
        os.close(self._file)


def _inode(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_ino
    return None


def database_path(url: str) -> Path:
    """The file behind sqlite:///PATH, by one name: a lock beside a link to it would lock nothing."""
    return Path(url.removeprefix("sqlite:///")).resolve()
