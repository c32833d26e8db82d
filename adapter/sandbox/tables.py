"""What does the file of a sandbox project look like?

Nothing stored is rewritten when ids are joined: an event keeps the distinct_id that it arrived with, and whose it
is follows from `members`, a small table with one row an id that has been joined to another. So a question asked of
a million events costs one look-up an event, and a link costs one row however old the events are that it moves.
"""

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from adapter.sandbox import funnel

#: The group_key of user profiles; a real one is never empty.
PEOPLE = ""
#: Goes up when a file that was made before can no longer be read.
FORMAT = 2

metadata = sa.MetaData()
about = sa.Table(
    "about",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # order of arrival
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("time_ms", sa.Integer, nullable=False),
    sa.Column("distinct_id", sa.Text, nullable=False, index=True),  # as stored at arrival; empty: nobody
    sa.Column("insert_id", sa.Text, nullable=False),
    sa.Column("properties", sa.LargeBinary, nullable=False),
    sa.Column("times_received", sa.Integer, nullable=False, server_default="1"),
    # Also the index by event name. Duplicates are those that Mixpanel sees at once (3.4); compaction, which may look
    # past the time of day and may never run, is not imitated. That distinct_id counts as stored is UNCONFIRMED.
    sa.UniqueConstraint("event", "time_ms", "distinct_id", "insert_id"),
)
members = sa.Table(
    "members",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # any id of a cluster but the canonical one
    sa.Column("person", sa.Text, nullable=False, index=True),  # the canonical one
    sqlite_with_rowid=False,
)
marks = sa.Table(
    "marks",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("mark", sa.Text, primary_key=True),  # see clusters.py
    sqlite_with_rowid=False,
)
profiles = sa.Table(
    "profiles",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # a distinct_id or a group id
    sa.Column("group_key", sa.Text, primary_key=True),  # PEOPLE: a user profile
    sa.Column("properties", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

_insert_event = insert(events)
#: A duplicate replaces what was stored before it.
INSERT_OR_REPLACE_EVENT = _insert_event.on_conflict_do_update(
    index_elements=["event", "time_ms", "distinct_id", "insert_id"],
    set_={"properties": _insert_event.excluded.properties, "times_received": events.c.times_received + 1},
)


def resolved(retroactive: bool) -> tuple[sa.FromClause, sa.ColumnElement[str]]:
    """The events, and the column that says whose each is: by all links known now, or as filed at arrival."""
    if not retroactive:
        return events, events.c.distinct_id.label("person")
    joined = events.outerjoin(members, members.c.id == events.c.distinct_id)
    return joined, sa.func.coalesce(members.c.person, events.c.distinct_id).label("person")


def create(engine: sa.Engine) -> None:
    """Stamp the file with the format, and make what is absent of a project's tables."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"pragma user_version={FORMAT}")  # first: who reads beside us looks at it first
    metadata.create_all(engine)


def check_format(engine: sa.Engine, path: Path) -> None:
    """Raise ValueError if the file holds a project of another format."""
    with engine.connect() as connection:
        version = connection.exec_driver_sql("pragma user_version").scalar_one()
        is_empty = not connection.exec_driver_sql("select count(*) from sqlite_master").scalar_one()
    if not is_empty and version != FORMAT:
        raise ValueError(
            f"the sandbox project {path} was made by another version of the adapter:"
            " remove the file and say `adapter destination new`"
        )


def engine(path: Path, mode: str) -> sa.Engine:
    """An engine over the file; mode: "rwc" to write, made if absent, or "ro"."""

    def connect() -> sqlite3.Connection:
        uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        connection.create_function("property_text", 2, funnel.property_text, deterministic=True)
        if mode != "ro":
            connection.execute("pragma journal_mode=wal")
            connection.execute("pragma synchronous=full")
        return connection

    return sa.create_engine("sqlite://", creator=connect, poolclass=sa.QueuePool)


def has_rows(connection: sa.Connection, table: sa.Table) -> bool:
    """Whether a table has any row; counting a million takes its time."""
    return connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None


def values(connection: sa.Connection, query: sa.Select[Any, Any]) -> dict[str, Any]:
    """What a query of two columns finds, the second by the first."""
    return {row[0]: row[1] for row in connection.execute(query)}
