"""PostgreSQL: one database for as many processes as there are, behind any pooler.

No session outlives a transaction here: no LISTEN, no session locks, no prepared statements (reliability.md 1.7).

A statement may take as long as it does: to look for a person in all that waits can take minutes. A server that is
frozen holds whoever reads until it goes on, or until its machine is silent too; the lanes have run out by then, and
what comes in is answered 503 meanwhile.
"""

from typing import Any

import sqlalchemy as sa

#: A connection that hangs is given up after so long; until then commits wait, and what waits 3 s is answered 503.
DEAD_AFTER_S = 15
#: Connections for reading, of one process.
READERS = 4

#: What a server says that takes no writes, or goes away, or is not there yet. A session that began while it was so
#: stays so, and the connection stands: only a new one finds the server that writes now.
USELESS = {"25006", "57P01", "57P02", "57P03"}

_LIBPQ = {
    "prepare_threshold": None,
    "connect_timeout": 5,
    "application_name": "adapter",
    "client_encoding": "utf8",  # whatever the database or the role would have
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": DEAD_AFTER_S * 1000,
}


class PostgreSQL:
    """A database on a server."""

    #: Whether several processes may write.
    shared = True

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url).set(drivername="postgresql+psycopg")

    def __str__(self) -> str:
        return f"PostgreSQL at {self._url.host or self._url.query.get('host', 'localhost')}"

    def exists(self) -> bool:
        """A connection alone would tell."""
        return True

    def own(self) -> None:
        """Nothing is owned: others may write as well."""

    def writing(self) -> sa.Engine:
        """An engine for the one connection by which this process writes."""
        # Not what the database has by default: of stricter ones a commit may fail because of another process.
        engine = self._engine(pool_size=1, max_overflow=0, isolation_level="READ COMMITTED")
        # Many rows go in one INSERT each; the server parses one statement instead of thousands.
        engine.dialect.use_insertmanyvalues_wo_returning = True
        return engine

    def reading(self) -> sa.Engine:
        """An engine that only reads, each statement by itself."""
        return self._engine(pool_size=READERS, max_overflow=0, pool_pre_ping=True, isolation_level="AUTOCOMMIT")

    def fix_moment(self, connection: sa.Connection) -> None:
        """All that is read on this connection from now on is of one moment."""
        connection.execution_options(isolation_level="REPEATABLE READ")

    def lacks_room(self, *_: object) -> None:
        """A server's disk cannot be looked at from here: MAX_WAITING keeps it from being full."""

    def _engine(self, **how: Any) -> sa.Engine:
        engine = sa.create_engine(self._url, connect_args=_LIBPQ, **how)

        @sa.event.listens_for(engine, "connect")
        def write_lists_as_they_are(connection: Any, _: object) -> None:
            # As text each body would be searched for what has to be escaped, which took two thirds of a put.
            from psycopg.types.array import ListBinaryDumper  # imported by whom it serves alone

            connection.adapters.register_dumper(list, ListBinaryDumper)

        @sa.event.listens_for(engine, "handle_error")
        def connect_anew(context: sa.engine.ExceptionContext) -> None:
            if getattr(context.original_exception, "sqlstate", None) in USELESS:
                context.is_disconnect = True

        return engine
