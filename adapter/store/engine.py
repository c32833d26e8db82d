"""The database file opened: for the one process that writes it, or beside it for reading."""

import fcntl
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from adapter.errors import StoreLocked, StoreUnavailable

#: Pages in the write-ahead log before a commit moves them into the file; the writer pays for it.
CHECKPOINT_PAGES = 4_000

#: Of pages: links come in no order, and with the 2 MB of SQLite itself each would be read from the disk.
CACHE_KB = 64_000


def database_path(url: str) -> Path:
    """The file behind sqlite:///PATH, by one name: a lock beside a link to it would lock nothing."""
    return Path(url.removeprefix("sqlite:///")).resolve()


def writing(path: Path) -> sa.Engine:
    """An engine for the one connection that writes."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # The library would begin at the first change; "begin" below says what we mean.
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "busy_timeout=5000",
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
            f"cache_size=-{CACHE_KB}",
            "journal_size_limit=67108864",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # Not deferred: a lock that was taken for reading cannot wait when it becomes one for writing.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def reading(path: Path) -> sa.Engine:
    """An engine that can only read, beside a process that writes. Raises StoreUnavailable if there is no file."""
    if not path.exists():
        raise StoreUnavailable(f"there is no store at {path}; `adapter serve` makes one")
    address = f"file:{quote(str(path.absolute()))}"
    return sa.create_engine(sa.URL.create("sqlite", database=address, query={"mode": "ro", "uri": "true"}))


class Lock:
    """Held by the one process that may write; the system frees it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock beside a database file. Raises StoreLocked, StoreUnavailable."""
        beside = path.with_name(path.name + ".lock")
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

    def release(self) -> None:
        os.close(self._file)
