"""What has one sandbox project taken in, and what can be asked of it?

One SQLite file (`tables`), told at its making which of Mixpanel's three ID systems it has. Source:
reference/mixpanel.md 1.2-1.4, 2.4, 3.4, 3.7.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from adapter.sandbox import counting, occurrences, people, profiles, systems, tables, validation
from adapter.sandbox.clusters import Clusters
from adapter.sandbox.funnel import Question
from adapter.sandbox.people import Person
from adapter.sandbox.systems import System
from adapter.sandbox.tables import PEOPLE, events, members

#: Consumed at arrival: the address becomes a place (not here), the token is a secret.
NOT_KEPT = frozenset({"ip", "token"})


class OtherSystem(ValueError):
    """The project holds data of another ID system than was asked for, and cannot change any more (1.1)."""


@dataclass(frozen=True, kw_only=True)
class StoredEvent:
    """One event as it is now understood."""

    event: str
    time_ms: int
    distinct_id: str  #: as stored at arrival
    insert_id: str
    person: str  #: the canonical id by all links known; empty: nobody
    properties: dict[str, Any]  #: as an export shows them
    times_received: int


class Project:
    """One sandbox project. One connection writes, guarded by a lock; any number read beside it."""

    def __init__(self, path: Path, *, system: str | None, writes: bool) -> None:
        self._lock = threading.Lock()
        self._writer = tables.engine(path, "rwc") if writes else None
        self._reader = tables.engine(path, "ro")
        try:
            if self._writer is not None:
                tables.check_format(self._writer, path)
                tables.create(self._writer)
            tables.check_format(self._reader, path)
            self.system: System = self._settle(path, system)  #: who decides whose event it is
        except Exception:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | Path, system: str = systems.SIMPLIFIED) -> Self:
        """Open it for writing, made if absent. That only one process does so is the caller's to ensure.

        `system`: simplified, original or legacy. Raises OtherSystem if the project holds data of another one, and
        ValueError if there is no such system or the file is of another version.
        """
        return cls(Path(path), system=systems.by_name(system).NAME, writes=True)

    @classmethod
    def open_read_only(cls, path: str | Path, system: str | None = None) -> Self:
        """Open it beside a process that writes. FileNotFoundError if there is none; OtherSystem as in `open`."""
        if not Path(path).exists():
            raise FileNotFoundError(f"no sandbox project at {path}")
        return cls(Path(path), system=system, writes=False)

    @property
    def identity(self) -> str:
        """The name of its ID system: simplified, original or legacy."""
        return self.system.NAME

    def close(self) -> None:
        self._reader.dispose()
        if self._writer is not None:
            self._writer.dispose()

    def ingest_events(self, valid: list[dict[str, Any]]) -> None:
        """Store events that passed `validation.event_error`, in their order, in one transaction."""
        kept = [event for event in valid if not _is_ignored(event["properties"].get("$ignore"))]
        named = [id for event in kept for id in self.system.named(event["event"], event["properties"])]
        with self._write() as connection:
            clusters, rows = Clusters.load(connection, named), []
            for event in kept:
                properties = event["properties"]
                stored = {name: value for name, value in properties.items() if name not in NOT_KEPT}
                stored |= self.system.file(event["event"], properties, clusters)
                rows.append(
                    {
                        "event": event["event"],
                        "time_ms": validation.time_ms(properties["time"]),
                        "distinct_id": stored["distinct_id"],
                        "insert_id": properties["$insert_id"],
                        "properties": orjson.dumps(stored),
                    }
                )
            clusters.save(connection, profile_moves=self.system.PROFILE_MOVES)
            if rows:
                connection.execute(tables.INSERT_OR_REPLACE_EVENT, rows)

    def update_profiles(self, valid: list[dict[str, Any]]) -> None:
        """Apply updates that passed `validation.update_error`, in their order, in one transaction.

        An update to any id of a cluster changes the canonical profile, unless it says `$ignore_alias`. The documents
        say that any id may be used to send; for profiles it is inferred from that, and UNCONFIRMED (1.2.6).
        """
        sent_to = {update["$distinct_id"] for update in valid}
        with self._write() as connection:
            person = tables.values(connection, sa.select(members).where(members.c.id.in_(sent_to)))
            named = []
            for update in valid:
                sent = update["$distinct_id"]
                id = sent if update.get("$ignore_alias") is True else person.get(sent, sent)
                named.append(((id, PEOPLE), update))
            _update(connection, named)

    def update_groups(self, valid: list[dict[str, Any]]) -> None:
        """The same for group profiles."""
        with self._write() as connection:
            _update(connection, [((update["$group_id"], update["$group_key"]), update) for update in valid])

    def delete_events(self) -> None:
        """Delete every event. Who is who stays known, as it does at Mixpanel (1.2.8)."""
        with self._write() as connection:
            connection.execute(sa.delete(events))

    def people(self, after: str = "", limit: int | None = None) -> list[Person]:
        """The people whose canonical id comes after this one, by that id, at most so many."""
        with self._reader.connect() as connection:
            connection.exec_driver_sql("begin")  # one view for all reads
            return people.read(connection, retroactive=self.system.RETROACTIVE, after=after, limit=limit)

    def events(self) -> Iterator[StoredEvent]:
        """Every event once, in order of arrival."""
        source, person = tables.resolved(self.system.RETROACTIVE)
        query = sa.select(events, person).select_from(source).order_by(events.c.id)
        with self._reader.connect() as connection:
            for row in connection.execution_options(yield_per=1_000).execute(query):
                properties = orjson.loads(row.properties)
                if row.person != row.distinct_id:
                    properties |= {"distinct_id": row.person, "$distinct_id_before_identity": row.distinct_id}
                yield StoredEvent(
                    event=row.event,
                    time_ms=row.time_ms,
                    distinct_id=row.distinct_id,
                    insert_id=row.insert_id,
                    person=row.person,
                    properties=properties,
                    times_received=row.times_received,
                )

    def profile(self, distinct_id: str) -> dict[str, Any] | None:
        """The properties of the user profile kept under this very id."""
        return self.group(PEOPLE, distinct_id)

    def group(self, group_key: str, group_id: str) -> dict[str, Any] | None:
        """The properties of a group profile."""
        table = tables.profiles
        query = sa.select(table.c.properties).where(table.c.group_key == group_key, table.c.id == group_id)
        with self._reader.connect() as connection:
            stored = connection.execute(query).scalar()
        return None if stored is None else orjson.loads(stored)

    def counts(self) -> dict[str, int]:
        """How much is kept: events, duplicates (received again), links, profiles, groups."""
        count, is_person = sa.func.count(), tables.profiles.c.group_key == PEOPLE
        queries = {
            "events": sa.select(count).select_from(events),
            "duplicates": sa.select(sa.func.coalesce(sa.func.sum(events.c.times_received - 1), 0)),
            "links": sa.select(count).select_from(members),
            "profiles": sa.select(count).select_from(tables.profiles).where(is_person),
            "groups": sa.select(count).select_from(tables.profiles).where(~is_person),
        }
        with self._reader.connect() as connection:
            return {name: connection.execute(query).scalar_one() for name, query in queries.items()}

    def funnel(self, question: Question, *, joined: bool = True) -> counting.Report:
        """`counting.count` over what is stored, a person at a time. Not `joined`: as if nobody had two ids."""
        with self._reader.connect() as connection:
            found = occurrences.read(connection, question, retroactive=joined and self.system.RETROACTIVE)
            return counting.count(question, found)

    def has_event(self, name: str) -> bool:
        """Whether any event of this name has come."""
        with self._reader.connect() as connection:
            return connection.scalar(sa.select(events.c.event).where(events.c.event == name).limit(1)) is not None

    def _settle(self, path: Path, wanted: str | None) -> System:
        """The system of the project: the one it has, or the wanted one if it holds nothing yet."""
        with self._reader.connect() as connection:
            known = connection.execute(sa.select(tables.about.c.value).filter_by(name="system")).scalar()
            filled = any(tables.has_rows(connection, table) for table in (events, members, tables.profiles))
        if wanted is not None and known not in (None, wanted) and filled:
            raise OtherSystem(
                f"the sandbox project {path} has data of {known} ID Merge and cannot become {wanted}: "
                "to begin anew remove the file and say `adapter destination new`"
            )
        if wanted is not None and wanted != known and self._writer is not None:
            with self._write() as connection:
                row = {"name": "system", "value": wanted}
                connection.execute(insert(tables.about).prefix_with("or replace").values(row))
        return systems.by_name(wanted or known or systems.SIMPLIFIED)

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        if self._writer is None:
            raise RuntimeError("this sandbox project is open for reading only")
        with self._lock, self._writer.begin() as connection:
            yield connection


def _is_ignored(value: Any) -> bool:
    """Whether $ignore drops the event without a word: true or a text that is not empty (3.7)."""
    return value is True or (isinstance(value, str) and value != "")


def _update(connection: sa.Connection, updates: list[tuple[tuple[str, str], dict[str, Any]]]) -> None:
    """Apply updates to the profiles of these ids and group keys."""
    kept = tables.profiles
    named = kept.c.id.in_({key[0] for key, _ in updates})
    now: dict[tuple[str, str], dict[str, Any] | None] = {
        (row.id, row.group_key): orjson.loads(row.properties)
        for row in connection.execute(sa.select(kept).where(named))
    }
    for key, update in updates:
        now[key] = profiles.updated(now.get(key), update)
    connection.execute(sa.delete(kept).where(named))
    rows = [
        {"id": key[0], "group_key": key[1], "properties": orjson.dumps(properties)}
        for key, properties in now.items()
        if properties is not None
    ]
    if rows:
        connection.execute(insert(kept), rows)
