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


@contextmanager
def moment(url: str) -> Iterator[sa.Connection]:
    """A connection that reads the database as it is at one moment, beside whoever writes. Raises StoreUnavailable."""
    found = database(url)
    engine = found.reading()
    try:
        with engine.connect() as connection:
            found.fix_moment(connection)
            yield connection
    except sa.exc.DBAPIError as error:
        raise StoreUnavailable(f"{found} cannot be read: {said(error)}") from error
    finally:
        engine.dispose()


def said(error: sa.exc.DBAPIError) -> str:
    """What the database says is wrong, without the rows that PostgreSQL adds."""
    return str(error.orig).partition("\n")[0]
