"""Has this message been here before? Remembered for two days at least, one table a day, emptied whole."""

from collections.abc import Sequence

import sqlalchemy as sa

from adapter.store import facts
from adapter.store.tables import seen

DAY_MS = 86_400_000

Known = dict[bytes, set[bytes]]  # key -> the contents seen under it

_LOOK_UP = sa.union_all(*(sa.select(day).where(day.c.key.in_(sa.bindparam("keys", expanding=True))) for day in seen))
_ADD = [day.insert() for day in seen]


def known(connection: sa.Connection, keys: Sequence[bytes]) -> Known:
    """What was seen under each of these keys."""
    found: Known = {}
    for key, content in connection.execute(_LOOK_UP, {"keys": keys}):
        found.setdefault(key, set()).add(content)
    return found


def add(connection: sa.Connection, pairs: Sequence[tuple[bytes, bytes]], day: int) -> None:
    """Remember (key, content) pairs among those of a day that has begun."""
    connection.execute(_ADD[day % len(seen)], [{"key": key, "content": content} for key, content in pairs])


def begin_day(connection: sa.Connection, day: int) -> None:
    """Empty the table that still holds the keys of three days before; a day that has begun stays as it is."""
    table = seen[day % len(seen)]
    if facts.recall(connection, table.name) != day:
        connection.execute(table.delete())
        facts.remember(connection, table.name, day)


def forget(connection: sa.Connection) -> None:
    """Forget everything."""
    for table in seen:
        connection.execute(table.delete())
