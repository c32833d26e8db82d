"""What has one sandbox project taken in, and who is one person?

Three tables in a SQLite file: events, links (device -> its first user, by arrival, for good) and profiles.
Nothing stored is rewritten when a link appears: an event keeps its own device and user, and its person is
looked up when asked, by all links known then. Source: reference/mixpanel.md 1.2, 2.4, 3.4, 3.7, 9.1.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from adapter.sandbox import funnel, profiles, validation

CONFLICT = "errAnonDistinctIdAssignedAlready"
#: The group_key of user profiles; a real one is never empty.
PEOPLE = ""

metadata = sa.MetaData()
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # order of arrival
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("time_ms", sa.Integer, nullable=False),
    sa.Column("distinct_id", sa.Text, nullable=False),  # as stored at arrival
    sa.Column("insert_id", sa.Text, nullable=False),
    sa.Column("device", sa.Text),
    sa.Column("user", sa.Text),
    sa.Column("properties", sa.LargeBinary, nullable=False),
    sa.Column("times_received", sa.Integer, nullable=False, server_default="1"),
    # Also the index by event name. That distinct_id counts as stored, not as resolved, is UNCONFIRMED.
    sa.UniqueConstraint("event", "time_ms", "distinct_id", "insert_id"),
)
links = sa.Table(
    "links",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("user", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
kept_profiles = sa.Table(
    "profiles",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # a distinct_id or a group id
    sa.Column("group_key", sa.Text, primary_key=True),  # PEOPLE: a user profile
    sa.Column("properties", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
#: An event's own user is final; else its device's user; else the device itself; else nobody.
PERSON = sa.func.coalesce(
    events.c.user, links.c.user, sa.literal(validation.DEVICE_PREFIX) + events.c.device, ""
).label("person")
EVENTS_AND_LINKS = events.outerjoin(links, links.c.device == events.c.device)
#: Consumed at arrival: the address becomes a place (not here), the token is a secret.
NOT_KEPT = frozenset({"ip", "token"})

_insert_event = insert(events)
#: A duplicate replaces what was stored before it.
INSERT_OR_REPLACE_EVENT = _insert_event.on_conflict_do_update(
    index_elements=["event", "time_ms", "distinct_id", "insert_id"],
    set_={name: _insert_event.excluded[name] for name in ("device", "user", "properties")}
    | {"times_received": events.c.times_received + 1},
)


@dataclass(frozen=True, kw_only=True)
class Person:
    """One cluster of ids."""

    id: str  #: the canonical id: the user, or $device:... while the device has none
    devices: tuple[str, ...]  #: the devices linked to the user
    properties: dict[str, Any]  #: of the profile kept under the canonical id
    events: int


@dataclass(frozen=True, kw_only=True)
class StoredEvent:
    """One event as it is now understood."""

    event: str
    time_ms: int
    distinct_id: str  #: as stored at arrival
    insert_id: str
    person: str  #: the canonical id by all links known; empty: nobody
    properties: dict[str, Any]
    times_received: int


class Project:
    """One sandbox project. One connection writes, guarded by a lock; any number read beside it."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._lock = threading.Lock()
        self._writer = _engine(path, "rwc") if writes else None
        if self._writer is not None:
            metadata.create_all(self._writer)
        self._reader = _engine(path, "ro")

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open it for writing, made if absent. That only one process does so is the caller's to ensure."""
        return cls(Path(path), writes=True)

    @classmethod
    def open_read_only(cls, path: str | Path) -> Self:
        """Open it beside a process that writes. FileNotFoundError if there is none."""
        if not Path(path).exists():
            raise FileNotFoundError(f"no sandbox project at {path}")
        return cls(Path(path), writes=False)

    def close(self) -> None:
        self._reader.dispose()
        if self._writer is not None:
            self._writer.dispose()

    def ingest_events(self, valid: list[dict[str, Any]]) -> None:
        """Store events that passed `validation.event_error`, in their order, in one transaction."""
        rows, new_links = [], []
        with self._write() as connection:
            ids = [validation.ids(event["properties"]) for event in valid]
            both = {device for device, user, _ in ids if device and user}
            known = connection.execute(sa.select(links).where(links.c.device.in_(both)))
            owners: dict[str, str] = {row.device: row.user for row in known}
            for event, (device, user, distinct_id) in zip(valid, ids, strict=True):
                properties = event["properties"]
                ignored = properties.get("$ignore")
                if ignored is True or (ignored and isinstance(ignored, str)):
                    continue  # dropped without a word
                decided = {"$device_id": device, "$user_id": user, "distinct_id": distinct_id}
                stored = {name: value for name, value in properties.items() if name not in NOT_KEPT}
                stored |= {name: value for name, value in decided.items() if value}
                if device and user and device not in owners:
                    owners[device] = user
                    new_links.append({"device": device, "user": user})
                if device and user and owners[device] != user:
                    stored["$identity_failure_reason"] = CONFLICT
                rows.append(
                    {
                        "event": event["event"],
                        "time_ms": validation.time_ms(properties["time"]),
                        "distinct_id": distinct_id,
                        "insert_id": properties["$insert_id"],
                        "device": device,
                        "user": user,
                        "properties": orjson.dumps(stored),
                    }
                )
            if new_links:
                connection.execute(insert(links), new_links)
            if rows:
                connection.execute(INSERT_OR_REPLACE_EVENT, rows)

    def update_profiles(self, valid: list[dict[str, Any]]) -> None:
        """Apply updates that passed `validation.update_error`, in their order, in one transaction.

        Each changes the profile of the very id it names. Whether one to a linked device reaches its user's
        profile is UNCONFIRMED, so here it does not.
        """
        self._update([((update["$distinct_id"], PEOPLE), update) for update in valid])

    def update_groups(self, valid: list[dict[str, Any]]) -> None:
        """The same for group profiles."""
        self._update([((update["$group_id"], update["$group_key"]), update) for update in valid])

    def _update(self, updates: list[tuple[tuple[str, str], dict[str, Any]]]) -> None:
        with self._write() as connection:
            named = kept_profiles.c.id.in_({key[0] for key, _ in updates})
            now: dict[tuple[str, str], dict[str, Any] | None] = {
                (row.id, row.group_key): orjson.loads(row.properties)
                for row in connection.execute(sa.select(kept_profiles).where(named))
            }
            for key, update in updates:
                now[key] = profiles.updated(now.get(key), update)
            connection.execute(sa.delete(kept_profiles).where(named))
            kept = [
                {"id": key[0], "group_key": key[1], "properties": orjson.dumps(properties)}
                for key, properties in now.items()
                if properties is not None
            ]
            if kept:
                connection.execute(insert(kept_profiles), kept)

    def people(self) -> list[Person]:
        """Everybody, by canonical id. The profile of a linked device is hidden, not merged (1.2.6)."""
        with self._reader.connect() as connection:
            connection.exec_driver_sql("begin")  # one view for all three reads
            per_person = sa.select(PERSON, sa.func.count()).select_from(EVENTS_AND_LINKS).group_by("person")
            counts: dict[str, int] = {row[0]: row[1] for row in connection.execute(per_person)}
            linked = connection.execute(sa.select(links).order_by(links.c.device)).all()
            kept = sa.select(kept_profiles).where(kept_profiles.c.group_key == PEOPLE)
            properties: dict[str, bytes] = {row.id: row.properties for row in connection.execute(kept)}
        devices: dict[str, list[str]] = {}
        for device, user in linked:
            devices.setdefault(user, []).append(device)
        hidden = {f"{validation.DEVICE_PREFIX}{device}" for device, _ in linked}
        return [
            Person(
                id=person,
                devices=tuple(devices.get(person, ())),
                properties=orjson.loads(properties.get(person, b"{}")),
                events=counts.get(person, 0),
            )
            for person in sorted((counts.keys() | devices.keys() | properties.keys()) - hidden - {""})
        ]

    def events(self) -> Iterator[StoredEvent]:
        """Every event once, in order of arrival."""
        query = sa.select(events, PERSON).select_from(EVENTS_AND_LINKS).order_by(events.c.id)
        with self._reader.connect() as connection:
            for row in connection.execute(query):
                yield StoredEvent(
                    event=row.event,
                    time_ms=row.time_ms,
                    distinct_id=row.distinct_id,
                    insert_id=row.insert_id,
                    person=row.person,
                    properties=orjson.loads(row.properties),
                    times_received=row.times_received,
                )

    def profile(self, distinct_id: str) -> dict[str, Any] | None:
        """The properties of the user profile kept under this very id."""
        return self.group(PEOPLE, distinct_id)

    def group(self, group_key: str, group_id: str) -> dict[str, Any] | None:
        """The properties of a group profile."""
        query = sa.select(kept_profiles.c.properties).where(
            kept_profiles.c.group_key == group_key, kept_profiles.c.id == group_id
        )
        with self._reader.connect() as connection:
            stored = connection.execute(query).scalar()
        return None if stored is None else orjson.loads(stored)

    def counts(self) -> dict[str, int]:
        """How much is kept: events, duplicates (received again), links, profiles, groups."""
        count, is_person = sa.func.count(), kept_profiles.c.group_key == PEOPLE
        queries = {
            "events": sa.select(count).select_from(events),
            "duplicates": sa.select(sa.func.coalesce(sa.func.sum(events.c.times_received - 1), 0)),
            "links": sa.select(count).select_from(links),
            "profiles": sa.select(count).select_from(kept_profiles).where(is_person),
            "groups": sa.select(count).select_from(kept_profiles).where(~is_person),
        }
        with self._reader.connect() as connection:
            return {name: connection.execute(query).scalar_one() for name, query in queries.items()}

    def funnel(self, steps: Sequence[funnel.Step], window_s: int = funnel.WINDOW_S) -> list[funnel.StepCount]:
        """`funnel.uniques` over what is stored; only the named events are read."""
        query = (
            sa.select(PERSON, events.c.time_ms, events.c.event, events.c.properties)
            .select_from(EVENTS_AND_LINKS)
            .where(events.c.event.in_({step.event for step in steps}))
        )
        with self._reader.connect() as connection:
            rows = (funnel.Occurrence(*row) for row in connection.execute(query))
            return funnel.uniques(steps, rows, window_s)

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        if self._writer is None:
            raise RuntimeError("this sandbox project is open for reading only")
        with self._lock, self._writer.begin() as connection:
            yield connection


def _engine(path: Path, mode: str) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        if mode != "ro":
            connection.execute("pragma journal_mode=wal")
            connection.execute("pragma synchronous=full")
        return connection

    return sa.create_engine("sqlite://", creator=connect, poolclass=sa.QueuePool)
