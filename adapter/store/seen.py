"""Has this message been here before? Remembered for two days at least, one table a day, emptied whole.

To empty one costs the first message of a day nothing; what was in it is cleared away in pieces, later.
"""

from collections.abc import Iterable, Sequence
from functools import cache

import sqlalchemy as sa

from adapter.store import facts, portable
from adapter.store.portable import among
from adapter.store.tables import seen

DAY_MS = 86_400_000
#: Rows that are cleared away in one commit, for which others wait.
PIECE = 5_000

Pair = tuple[bytes, bytes]  # key, content
Known = dict[bytes, set[bytes]]  # key -> the contents seen under it

_LOOK_UP = sa.union_all(*(sa.select(day).where(among(day.c.key, "keys")) for day in seen))


def known(connection: sa.Connection, keys: Sequence[bytes]) -> Known:
    """What was seen under each of these keys."""
    if connection.dialect.name == "sqlite" and 0 < len(keys) <= portable.ROWS_TOGETHER:
        # To take a list apart takes SQLite half a millisecond, twenty times as long as to look up a few keys.
        rows = connection.exec_driver_sql(_look_up_few(len(keys)), tuple(keys) * len(seen))
    else:
        rows = connection.execute(_LOOK_UP, {"keys": keys})
    found: Known = {}
    for key, content in rows:
        found.setdefault(key, set()).add(content)
    return found


@cache
def _look_up_few(count: int) -> str:
    marks = ", ".join("?" * count)
    return " UNION ALL ".join(f"SELECT key, content FROM {day.name} WHERE key IN ({marks})" for day in seen)  # noqa: S608


def add(connection: sa.Connection, pairs: Iterable[Pair], day: int) -> set[Pair]:
    """Remember (key, content) pairs that were not known, among those of a day that has begun.

    Returns those that no other process has added at the same moment.
    """
    return portable.add_missing(connection, seen[day % len(seen)], sorted(pairs))


def begin_day(connection: sa.Connection, day: int) -> None:
    """Empty the table that still holds the keys of three days before; a day that has begun stays as it is."""
    table = seen[day % len(seen)]
    if facts.change(connection, table.name, day):
        portable.empty(connection, table)


def clear(connection: sa.Connection) -> bool:
    """Clear a piece of what was forgotten away; whether there may be more."""
    return portable.clear(connection, PIECE)


def forget(connection: sa.Connection, since_day: int = 0) -> int:
    """Forget what was seen on a day and after it; returns how many messages that were."""
    n_forgotten = 0
    for table in seen:
        if (facts.recall(connection, table.name) or 0) >= since_day:
            n_forgotten += connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            portable.empty(connection, table)
    return n_forgotten
