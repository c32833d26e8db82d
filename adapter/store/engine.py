"""The database that DATABASE_URL names."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from adapter.errors import StoreUnavailable
from adapter.store.postgresql import PostgreSQL
from adapter.store.sqlite import SQLite

Database = SQLite | PostgreSQL


def database(url: str) -> Database:
    """The database behind sqlite:///PATH, postgresql://... or the postgres://... that a PaaS gives."""
    return SQLite(url) if url.startswith("sqlite:") else PostgreSQL(url)


class Reading:
    """Connections that read, beside whoever writes. Every error of the database is StoreUnavailable."""

    def __init__(self, found: Database) -> None:
        self._found = found
        self._engine = found.reading()

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """A connection for some reads, each as of its own moment in PostgreSQL."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            hint = "; `adapter migrate` makes the tables" if _lacks_table(error) else ""
            raise StoreUnavailable(f"{self._found} cannot be read: {said(error)}{hint}") from error

    @contextmanager
    def moment(self) -> Iterator[sa.Connection]:
        """A connection on which all that is read is of one moment."""
        with self.connect() as connection:
            self._found.fix_moment(connection)
            yield connection

    def dispose(self) -> None:
        self._engine.dispose()


@contextmanager
def beside(url: str) -> Iterator[Reading]:
    """The same for a while. Raises StoreUnavailable if there is nothing to read."""
    reading = Reading(database(url))
    try:
        yield reading
    finally:
        reading.dispose()


@contextmanager
def moment(url: str) -> Iterator[sa.Connection]:
    """A connection to a database as it is at one moment. Raises StoreUnavailable."""
    with beside(url) as reading, reading.moment() as connection:
        yield connection


def _lacks_table(error: Exception) -> bool:
    """Whether nobody has made the tables yet, or not those of this release."""
    cause = getattr(error, "orig", error)
    return getattr(cause, "sqlstate", None) == "42P01" or str(cause).startswith("no such table")


def said(error: Exception) -> str:
    """What the database says is wrong, without the rows that PostgreSQL adds."""
    return str(getattr(error, "orig", error)).partition("\n")[0]
