"""The tables made, and brought from an older release to this one.

A change only adds: while a deploy lasts, the release before works on the new tables.
"""

from collections.abc import Callable

import sqlalchemy as sa

from adapter.errors import ConfigError, StoreUnavailable
from adapter.store import facts
from adapter.store.engine import database, moment, said
from adapter.store.tables import SCHEMA_VERSION, SHARES, entry, fact, lease, message, metadata, refusal, sequence

#: The oldest release that works on the tables of this one.
WORKS_FROM = 5
#: The oldest tables that are brought to those of this one.
_BROUGHT_FROM = 4
#: Encodings of a PostgreSQL database that take any text; the second takes any bytes.
_HOLDS_ALL = ("UTF8", "SQL_ASCII")
#: Two that migrate at once wait for each other; any number will do that nobody else locks.
_LOCK = 0x5E61_0B1E


def migrate(database_url: str) -> int | None:
    """Bring the tables of a database to this release; returns the schema found, None in an empty database.

    Safe to run twice, and beside processes of the release before. Raises StoreLocked, StoreUnavailable.
    """
    found = database(database_url)
    owned, engine = found.own(), found.writing()
    try:
        return apply(engine)
    except sa.exc.DBAPIError as error:
        raise StoreUnavailable(f"{found} cannot be migrated: {said(error)}") from error
    finally:
        engine.dispose()
        if owned is not None:
            owned.release()


def apply(engine: sa.Engine) -> int | None:
    """The same with an engine. Raises ConfigError for tables from which no step leads here."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        found = _schema(connection)
        if found is None:
            _refuse_others(connection)
        if found is None or _BROUGHT_FROM <= found < SCHEMA_VERSION:
            metadata.create_all(connection)
            for version in range((found or 0) + 1, SCHEMA_VERSION + 1):
                if step := _STEPS.get(version):
                    step(connection)
            facts.remember(connection, "schema", SCHEMA_VERSION)
            facts.remember(connection, "schema_works_from", WORKS_FROM)
        _check(connection)
        return found


def check(engine: sa.Engine) -> None:
    """Make the tables if there are none. Raises ConfigError unless this release can work on those there are."""
    with engine.begin() as connection:
        if _schema(connection) is not None:
            _check(connection)
            return
    apply(engine)


def tables_are_there(database_url: str) -> bool:
    """Whether there are tables yet. Makes none. Raises what a start on them would: ConfigError, StoreUnavailable."""
    found = database(database_url)
    if not found.exists():
        return False
    with moment(database_url) as connection:
        version = _schema(connection)
        # An older file is brought to this release by the start itself.
        if version is not None and (found.shared or not _BROUGHT_FROM <= version < SCHEMA_VERSION):
            _check(connection)
    return version is not None


def _schema(connection: sa.Connection) -> int | None:
    found = facts.recall(connection, "schema") if sa.inspect(connection).has_table(fact.name) else None
    if found is not None and not isinstance(found, int):
        raise ConfigError({"DATABASE_URL": f"the store has schema {found}, which is no number"})
    return found


def _refuse_others(connection: sa.Connection) -> None:
    """Make nothing in a database that cannot hold it, or beside tables of somebody else with names of ours."""
    if connection.dialect.name == "postgresql":
        encoding = connection.scalar(sa.text("SHOW server_encoding"))
        if encoding not in _HOLDS_ALL:
            what = f"the database is in {encoding}, which cannot hold every id: make one in UTF8"
            raise ConfigError({"DATABASE_URL": what})
    there = sa.inspect(connection)
    if theirs := [name for name in sorted(metadata.tables) if there.has_table(name)]:
        what = f"there are tables of somebody else ({', '.join(theirs)}): give the store a database of its own"
        raise ConfigError({"DATABASE_URL": what})


def _check(connection: sa.Connection) -> None:
    found, works_from = _schema(connection) or 0, facts.recall(connection, "schema_works_from") or 0
    if _BROUGHT_FROM <= found < SCHEMA_VERSION:
        raise ConfigError(
            {"DATABASE_URL": f"the store has schema {found}, before {SCHEMA_VERSION}: run `adapter migrate`"}
        )
    if found < SCHEMA_VERSION or works_from > SCHEMA_VERSION:
        raise ConfigError(
            {"DATABASE_URL": f"the store has schema {found}, which this release, {SCHEMA_VERSION}, cannot use"}
        )


def _number_and_lease(connection: sa.Connection) -> None:
    newest = connection.scalar(sa.select(sa.func.max(message.c.id))) or 0
    connection.execute(sequence.insert(), {"name": "message", "next": newest + 1})
    connection.execute(lease.insert(), [{"share": share, "epoch": 0, "until_ms": 0} for share in range(SHARES)])


def _complete(connection: sa.Connection) -> None:
    """Add what stores of version 5 have not, and what the first of them had not yet."""
    for table, name, kind in (
        ("message", "crc", "BIGINT"),
        ("entry", "tries", "INTEGER NOT NULL DEFAULT 0"),
        ("entry", "tried_ms", "BIGINT"),
    ):
        if name not in {one["name"] for one in sa.inspect(connection).get_columns(table)}:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
    _never_number_a_refusal_twice(connection)
    if connection.dialect.name == "postgresql":
        _clear_as_it_goes(connection)


def _clear_as_it_goes(connection: sa.Connection) -> None:
    """PostgreSQL clears up when a fifth of a table has gone: of a large one that is late, and claims read all of it.

    Nor are large bodies packed, for the second that most of them are there.
    """
    by_number = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000"
    for table in (message.name, entry.name):
        connection.exec_driver_sql(f"ALTER TABLE {table} SET ({by_number})")
    of_large_ones = by_number.replace("autovacuum", "toast.autovacuum")
    connection.exec_driver_sql(f"ALTER TABLE {message.name} SET ({of_large_ones})")
    connection.exec_driver_sql(f"ALTER TABLE {message.name} ALTER COLUMN body SET STORAGE EXTERNAL")


def _never_number_a_refusal_twice(connection: sa.Connection) -> None:
    """SQLite gives the number of the newest anew once that is gone, unless the table says AUTOINCREMENT."""
    made = "SELECT sql FROM sqlite_master WHERE name = 'refusal'"
    if connection.dialect.name != "sqlite" or "AUTOINCREMENT" in connection.exec_driver_sql(made).scalar_one():
        return
    connection.exec_driver_sql("ALTER TABLE refusal RENAME TO refusal_before")
    connection.exec_driver_sql("DROP INDEX refusal_by_reason")
    refusal.create(connection)
    connection.exec_driver_sql("INSERT INTO refusal SELECT * FROM refusal_before")
    connection.exec_driver_sql("DROP TABLE refusal_before")


#: What leads to each version, beyond tables that are new.
_STEPS: dict[int, Callable[[sa.Connection], None]] = {5: _number_and_lease, 6: _complete}
