"""What SQLite and PostgreSQL say in different words."""

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from operator import itemgetter
from typing import Any, Self

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, Insert
from sqlalchemy.dialects.postgresql import insert as insert  # SQLite took over ON CONFLICT, word for word
from sqlalchemy.dialects.sqlite import dialect as SQLiteDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.sql.visitors import InternalTraversal

#: How the names of tables begin that `empty` has left.
_GONE = "gone_"


#: Rows that SQLite takes in one statement; its driver remembers the statements for every number of them.
ROWS_TOGETHER = 32


class _Joined(sa.TypeDecorator[Any]):
    """Keys of one length, one after another."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Iterable[bytes] | None, dialect: sa.Dialect) -> bytes:
        return b"".join(value or ())


class _Numbers(sa.TypeDecorator[Any]):
    """Integers as a JSON array."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Iterable[int] | None, dialect: sa.Dialect) -> str:
        return orjson.dumps(list(value or ())).decode()


#: The keys that stand one after another in a value, each of so many bytes.
_PARTS = (
    "WITH RECURSIVE given(keys) AS (SELECT {asked}), part(start) AS (SELECT 1 FROM given WHERE length(keys) > 0"
    " UNION ALL SELECT start + {size} FROM part, given WHERE start + {size} < length(keys))"
    " SELECT substr(keys, start, {size}) FROM part, given"
)


class among(sa.ColumnElement[bool]):  # noqa: N801  # it is written like a function of SQLAlchemy
    """Whether a column of numbers, or of keys of one length, has one of the values of a list parameter.

    They go as one value, in PostgreSQL an array: to write a parameter for each takes longer than the answer.
    """

    inherit_cache = True
    type = sa.Boolean()
    _traverse_internals = [
        ("column", InternalTraversal.dp_clauseelement),
        ("name", InternalTraversal.dp_string),
    ]

    def __init__(self, column: sa.ColumnElement[Any], name: str) -> None:
        self.column = column
        self.name = name

    def self_group(self, against: Any = None) -> Self:
        """As it is: SQLAlchemy would write `= 1` behind it for SQLite, which then reads the whole table."""
        return self


@compiles(among)
def _in(element: among, compiler: Any, **how: Any) -> str:
    column, size = compiler.process(element.column, **how), getattr(element.column.type, "length", None)
    asked = compiler.process(sa.bindparam(element.name, type_=_Joined() if size else _Numbers()), **how)
    values = _PARTS if size else "SELECT value FROM json_each({asked})"
    return f"{column} IN ({values.format(asked=asked, size=size)})"


@compiles(among, "postgresql")
def _any(element: among, compiler: Any, **how: Any) -> str:
    asked: sa.BindParameter[Any] = sa.bindparam(element.name, type_=ARRAY(element.column.type))
    return str(compiler.process(element.column == sa.any_(asked), **how))


class position(GenericFunction[int]):  # noqa: N801  # a function of SQL
    """Where bytes stand in other bytes, from 1; 0: they do not."""

    type = sa.Integer()
    inherit_cache = True


@compiles(position)
def _position(element: position, compiler: Any, **how: Any) -> str:
    return f"position({' IN '.join(compiler.process(one, **how) for one in reversed(list(element.clauses)))})"


@compiles(position, "sqlite")
def _instr(element: position, compiler: Any, **how: Any) -> str:
    return f"instr({', '.join(compiler.process(one, **how) for one in element.clauses)})"


def add(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the same columns, in one statement for many.

    PostgreSQL takes an array for each column. SQLite's driver gives up Python's lock at every step, and a thread that
    waits for it again where others compute takes longer than the step; so many rows are one step.
    """
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(_from_arrays(insert(table), tuple(rows[0])), _columns(rows))
        return
    for start in range(0, len(rows), ROWS_TOGETHER):
        some = rows[start : start + ROWS_TOGETHER]
        text, names = _of_many(table, tuple(some[0]), len(some))
        connection.exec_driver_sql(text, tuple(chain.from_iterable(map(itemgetter(*names), some))))


def put_each(connection: sa.Connection, statement: Insert, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the same columns, by a statement that says what happens to those that are there.

    SQLAlchemy looks at each value on its way to SQLite, which takes longer than SQLite itself, and changes none.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_from_arrays(statement, tuple(rows[0])), _columns(rows))
        return
    text, names = _for_sqlite(statement, tuple(rows[0]))
    connection.exec_driver_sql(text, list(map(itemgetter(*names), rows)))


def remove(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Delete the rows with these primary keys."""
    if connection.dialect.name == "postgresql":
        connection.execute(_of_arrays(table), _columns(rows))
        return
    text, names = _for_sqlite(_of_one(table), tuple(rows[0]))
    connection.exec_driver_sql(text, list(map(itemgetter(*names), rows)))


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def add_missing(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Insert rows that were not there a moment ago, each of all columns; returns those that still were not.

    In SQLite nobody else writes. In PostgreSQL this waits for whoever is about to commit the same row: let the rows
    have an order, so that no two wait for each other.
    """
    names = tuple(table.c.keys())
    if connection.dialect.name != "postgresql":
        add(connection, table, [dict(zip(names, row, strict=True)) for row in rows])
        return set(rows)
    if not rows:
        return set()
    statement = _from_arrays(insert(table), names).on_conflict_do_nothing().returning(*table.c)
    return {
        tuple(row) for row in connection.execute(statement, dict(zip(names, zip(*rows, strict=True), strict=True)))
    }


def empty(connection: sa.Connection, table: sa.Table) -> None:
    """Have no rows in a table any more, at once whatever their number.

    SQLite takes a second for three million, so it gets a new table, and the old one waits for `clear`.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"TRUNCATE {table.name}")
    elif connection.execute(sa.select(table).limit(1)).first():
        connection.exec_driver_sql(f"ALTER TABLE {table.name} RENAME TO {_GONE}{table.name}_{time.time_ns()}")
        table.create(connection)


def clear(connection: sa.Connection, n_rows: int) -> bool:
    """Delete so many rows of what `empty` has left; whether there may be more."""
    if connection.dialect.name == "postgresql":
        return False
    made = sa.table("sqlite_master", sa.column("name"))
    name = connection.scalar(sa.select(sa.func.min(made.c.name)).where(made.c.name.startswith(_GONE)))
    if name is None:
        return False
    keys = f"SELECT key FROM {name} LIMIT {n_rows}"  # noqa: S608 no name of others
    deleted = connection.exec_driver_sql(f"DELETE FROM {name} WHERE key IN ({keys})")  # noqa: S608
    if not deleted.rowcount:
        connection.exec_driver_sql(f"DROP TABLE {name}")
    return True


@cache
def _of_many(table: sa.Table, names: tuple[str, ...], count: int) -> tuple[str, Sequence[str]]:
    text, ordered = _for_sqlite(table.insert(), names)
    head, values = text.split(" VALUES ")
    return f"{head} VALUES {', '.join([values] * count)}", ordered


@cache
def _for_sqlite(statement: sa.Insert | sa.Delete, names: tuple[str, ...]) -> tuple[str, Sequence[str]]:
    compiled = statement.compile(dialect=SQLiteDialect(paramstyle="qmark"), column_keys=names)
    return str(compiled), compiled.positiontup or ()


@cache
def _from_arrays(statement: Insert, names: tuple[str, ...]) -> Insert:
    return statement.from_select(names, sa.select(*(_unnested(statement.table.c[name]) for name in names)))


def _unnested(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.func.unnest(sa.bindparam(column.key, type_=ARRAY(column.type)))


@cache
def _of_arrays(table: sa.Table) -> sa.Delete:
    keys = table.primary_key.columns
    return table.delete().where(sa.tuple_(*keys).in_(sa.select(*map(_unnested, keys))))


@cache
def _of_one(table: sa.Table) -> sa.Delete:
    return table.delete().where(*(one == sa.bindparam(one.key, type_=one.type) for one in table.primary_key.columns))
