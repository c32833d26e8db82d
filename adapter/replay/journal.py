"""What was settled of a replay, on disk: whatever ends the process, the same command goes on from here.

One file in the replay's folder, written by one process. A part's progress counts the messages from its beginning that
were all settled, and what they had for profiles is written in the same commit. What became of its messages is counted
with the part, for it goes when the part does, as of a file that has changed: what is there then is sent again whole.
"""

import fcntl
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

from adapter import archive
from adapter.archive import File
from adapter.errors import AdapterError
from adapter.replay.read import Read

#: Facts that say how far it is, in their order; of each the last that was settled, or whether it is done.
STEPS = ("links", "late_links", "released", "profiles", "finished")

#: Another one once the tables are others.
VERSION = 1
#: Where is counted and kept what is of no part: what each new plan does again, and what is done but once.
STEP, ONCE = -1, 0
_SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS part (
    number INTEGER PRIMARY KEY,
    position INTEGER,                         -- in the plan's order
    name TEXT, version TEXT, start INTEGER,   -- of what; another version is another file
    read BLOB,                                -- a Read
    done INTEGER,                             -- so many messages from its beginning are settled
    finished INTEGER,
    gathered INTEGER,                         -- what its messages say beside their events is below
    UNIQUE (name, version, start)
);
CREATE TABLE IF NOT EXISTS tally (part INTEGER, name TEXT, count INTEGER, PRIMARY KEY (part, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS said (            -- of profiles, each content once, with its first and last place
    endpoint TEXT, profile TEXT, digest BLOB, first BLOB, last BLOB, content BLOB,
    PRIMARY KEY (endpoint, profile, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waits (           -- of visitors, for the device's next user
    device TEXT, user TEXT, digest BLOB, first_ms INTEGER, last_ms INTEGER, content BLOB,
    PRIMARY KEY (device, user, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (         -- what counts, a row a message; it stays, so that none counts twice
    key BLOB PRIMARY KEY, profile TEXT, place BLOB, content BLOB,
    state INTEGER DEFAULT 0                   -- TO_COUNT, BEGUN or ENDED
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS counted_profile ON counted (state, profile, place);
CREATE TABLE IF NOT EXISTS kept (            -- what was refused, and lines that are no messages
    key BLOB PRIMARY KEY, is_broken INTEGER, reason TEXT, detail TEXT, endpoint TEXT, body BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept_of (          -- of which parts
    key BLOB, part INTEGER, PRIMARY KEY (key, part)
) WITHOUT ROWID;
"""
_PUT_SAID = """
INSERT INTO said VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
SET first = min(first, excluded.first), last = max(last, excluded.last)
"""
_PUT_WAITS = """
INSERT INTO waits VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
SET content = CASE WHEN excluded.first_ms < first_ms THEN excluded.content ELSE content END,
    first_ms = min(first_ms, excluded.first_ms), last_ms = max(last_ms, excluded.last_ms)
"""
#: By whether it is no message, the name under which what is kept is counted.
_KEPT = ("refused", "broken")
#: Of what counts.
TO_COUNT, BEGUN, ENDED = range(3)
_WAITS = """
SELECT device, waits.user, waits.first_ms, waits.last_ms, link.user, link.time_ms, link.last_ms,
    (SELECT count(*) FROM plan.run WHERE run.device = waits.device) AS n_runs,
    (SELECT claim.time_ms FROM plan.claim WHERE claim.device = waits.device AND claim.user = waits.user
        AND claim.place < X'FF'), content
FROM waits LEFT JOIN plan.link USING (device) WHERE link.user IS NOT NULL OR n_runs ORDER BY device
"""


class Waits(msgspec.Struct, frozen=True, array_like=True):
    """What waits with a device, and what the plan says of that."""

    user: str  #: whose own first touch it is; "" if nobody's is known
    first_ms: int
    last_ms: int
    owner: str | None  #: the device's first user, from when to when; None: group calls alone tell who uses it
    owner_first_ms: int | None
    owner_last_ms: int | None
    n_runs: int  #: so many runs of use does the plan know
    user_first_ms: int | None  #: when `user` was first linked to it
    content: dict[str, Any]


class Busy(AdapterError):
    """Another process is at the same replay."""


class StateUnavailable(AdapterError):
    """What was settled cannot be written down, or read."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was not sent, with the reason."""

    key: bytes  #: equal for the same message refused again at the same endpoint
    is_broken: bool  #: it is no message
    reason: str
    detail: str
    endpoint: str
    body: bytes


class Begun(NamedTuple):
    """A part, and how far it is."""

    number: int
    read: Read
    done: int  #: messages from its beginning that are settled
    finished: bool
    gathered: bool  #: what these say beside their events is in the journal


class Progress(msgspec.Struct, kw_only=True):
    """What has been settled of a part since it was last told."""

    number: int  #: of the part
    done: int  #: messages from its beginning
    finished: bool = False
    tally: dict[str, int] = {}
    said: list[tuple[str, str, bytes, bytes, bytes, bytes]] = []  #: rows of the table
    waits: list[tuple[str, str, bytes, int, int, bytes]] = []
    counted: list[tuple[bytes, str, bytes, bytes]] = []
    kept: list[Kept] = []


class Journal:
    """The journal of one replay. One process has it at a time."""

    def __init__(self, folder: Path) -> None:
        """Open it, made if absent, in a folder that its owner alone can read. Raises Busy, StateUnavailable."""
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateUnavailable(f"{folder} cannot hold how far the replay is: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise Busy(f"another process is at this replay: {folder}") from None
        self._file = sqlite3.connect(folder / "journal.db", isolation_level=None)
        try:
            # What is said of profiles comes in no order: with the usual cache each row would read its page again.
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -32000"):
                self._file.execute(f"PRAGMA {pragma}")
            ((version,),) = self._file.execute("PRAGMA user_version")
            if version != VERSION and self._file.execute("SELECT 1 FROM sqlite_schema").fetchone():
                raise StateUnavailable(f"{folder} is of a replay by another release: expected another --state")
            self._file.executescript(_SCHEMA)
        except StateUnavailable:
            self.close()
            raise
        except sqlite3.Error as error:
            self.close()
            raise StateUnavailable(f"{folder} cannot hold how far the replay is: {error}") from error

    def close(self) -> None:
        self._file.close()
        os.close(self._lock)

    def forget(self) -> None:
        """As if nothing had been settled."""
        with self._file:
            self._file.execute("BEGIN")
            for table in ("fact", "part", "tally", "said", "waits", "counted", "kept", "kept_of"):
                self._file.execute(f"DELETE FROM {table}")  # noqa: S608 our own names
        self.plan_path.unlink(missing_ok=True)

    @property
    def plan_path(self) -> Path:
        return self.folder / "plan.db"

    def recall(self, name: str) -> Any:
        """The value that is kept under a name, or None."""
        row = self._file.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def remember(self, **values: Any) -> None:
        """Keep values under their names, in one commit."""
        rows = [(name, json.dumps(value)) for name, value in values.items()]
        with self._file:
            self._file.execute("BEGIN")
            self._file.executemany("INSERT OR REPLACE INTO fact VALUES (?, ?)", rows)

    def begin(self, files: Iterable[File], read: Iterable[Read], *, forgets: bool = False) -> None:
        """The plan is taken: what is there to be read. A file that changed is another, and is sent again whole.

        What it said before may be of somebody whom Segment has taken out of it since (segment.md 5.1), and stands
        together with what others say; and if the plan `forgets` anybody, so may what any file said. So all of that is
        let go, and gathered again from what is there.
        """
        with self._file:
            self._file.execute("BEGIN")
            self._file.execute("UPDATE part SET position = NULL")
            for position, one in enumerate(read):
                file = one.part.file
                self._file.execute(
                    "INSERT INTO part VALUES (NULL, ?, ?, ?, ?, ?, 0, 0, 1) ON CONFLICT (name, version, start)"
                    " DO UPDATE SET position = excluded.position, read = excluded.read",
                    (position, file.name, file.version, one.part.start, msgspec.msgpack.encode(one)),
                )
            n_gone = self._file.execute("DELETE FROM part WHERE position IS NULL").rowcount
            self._forget_ends()
            if n_gone or forgets:
                for what in ("said", "waits", f"counted WHERE state = {TO_COUNT}"):
                    self._file.execute(f"DELETE FROM {what}")  # noqa: S608 our own names
                self._file.execute("UPDATE part SET finished = 0, gathered = 0 WHERE done > 0")
            there = [msgspec.structs.astuple(one) for one in _each(files)]
            names = [(name, "null") for name in STEPS] + [("files", json.dumps(there))]
            self._file.executemany("INSERT OR REPLACE INTO fact VALUES (?, ?)", names)

    def _forget_ends(self) -> None:
        """What became of messages whose part is gone, and of what is done again; a link that was made is not."""
        gone = f"part = {STEP} OR part > {ONCE} AND part NOT IN (SELECT number FROM part)"  # noqa: S608
        self._file.execute(f"DELETE FROM tally WHERE ({gone}) AND name != 'links'")  # noqa: S608 our own words
        self._file.execute(f"DELETE FROM kept_of WHERE {gone}")  # noqa: S608 our own words
        rest = "DELETE FROM kept WHERE key NOT IN (SELECT key FROM kept_of) RETURNING is_broken"
        for (is_broken,) in self._file.execute(rest).fetchall():
            self._count({_KEPT[is_broken]: -1}, ONCE)

    def is_planned(self, files: Iterable[File]) -> bool:
        """Whether the plan was taken of these very files, or, until all is sent, of what these have grown from."""
        known = self.recall("files")
        if known is None or not self.plan_path.exists():
            return False
        before, now = [File(*one) for one in known], _each(files)
        may_have_grown = not self.recall("finished")
        return len(before) == len(now) and all(
            (one.name, one.version) == (other.name, other.version)
            or (may_have_grown and one.name == other.name and archive.since(one) is archive.Now.GROWN)
            for one, other in zip(before, now, strict=True)
        )

    def parts(self) -> list[Begun]:
        """Every part, in their order."""
        rows = self._file.execute("SELECT number, read, done, finished, gathered FROM part ORDER BY position")
        return [
            Begun(number, msgspec.msgpack.decode(read, type=Read), done, bool(finished), bool(gathered))
            for number, read, done, finished, gathered in rows
        ]

    def settle(self, progress: Progress) -> None:
        """Write down what was settled, in one commit."""
        with self._file:
            self._file.execute("BEGIN")
            self._file.executemany(_PUT_SAID, progress.said)
            self._file.executemany(_PUT_WAITS, progress.waits)
            self._file.executemany("INSERT OR IGNORE INTO counted VALUES (?, ?, ?, ?, 0)", progress.counted)
            self._keep(progress.kept, progress.number)
            self._count(progress.tally, progress.number)
            self._file.execute(
                "UPDATE part SET done = ?1, finished = ?2, gathered = gathered OR ?2 WHERE number = ?3",
                (progress.done, progress.finished, progress.number),
            )

    def note(self, tally: Mapping[str, int], kept: Iterable[Kept] = (), **facts: Any) -> None:
        """Count what was settled outside of the parts, and keep facts, in one commit."""
        with self._file:
            self._file.execute("BEGIN")
            self._keep(kept, STEP)
            self._count(tally, STEP)
            rows = [(name, json.dumps(value)) for name, value in facts.items()]
            self._file.executemany("INSERT OR REPLACE INTO fact VALUES (?, ?)", rows)

    def begin_counting(self, keys: Iterable[bytes]) -> None:
        """What these messages count is about to be sent."""
        with self._file:
            self._file.execute("BEGIN")
            self._file.executemany("UPDATE counted SET state = 1 WHERE key = ?", [(one,) for one in keys])

    def end_counting(self, ended: Iterable[bytes], tally: Mapping[str, int], kept: Iterable[Kept]) -> None:
        """What was begun for these messages has ended, whatever became of it; what else was begun was not sent."""
        with self._file:
            self._file.execute("BEGIN")
            change = "UPDATE counted SET state = 2, content = NULL WHERE key = ?"
            self._file.executemany(change, [(one,) for one in ended])
            self._file.execute("UPDATE counted SET state = 0 WHERE state = 1")
            self._keep(kept, ONCE)
            self._count(tally, ONCE)

    def put_said(self, said: Iterable[tuple[str, str, bytes, bytes, bytes, bytes]]) -> None:
        """Add what waited for somebody to their profile, which may be done again."""
        with self._file:
            self._file.execute("BEGIN")
            self._file.executemany(_PUT_SAID, said)

    def let_go(self, keys: Iterable[bytes]) -> None:
        """Keep these no more, which are of people who are forgotten: nothing of them stays in the file."""
        self._file.execute("PRAGMA secure_delete = ON")
        with self._file:
            self._file.execute("BEGIN")
            for key in keys:
                change = "DELETE FROM kept WHERE key = ? RETURNING is_broken"
                ((is_broken,),) = self._file.execute(change, (key,)).fetchall()
                self._count({_KEPT[is_broken]: -1}, ONCE)
                change = "DELETE FROM kept_of WHERE key = ? RETURNING part"
                (part,) = self._file.execute(change, (key,)).fetchall()[0]
                self._count({"erased": 1}, part)

    def _keep(self, kept: Iterable[Kept], part: int) -> None:
        """Keep and count these, each once: also of what stands there twice."""
        for one in kept:
            row = (one.key, one.is_broken, one.reason, one.detail, one.endpoint, one.body)
            if self._file.execute("INSERT OR IGNORE INTO kept VALUES (?, ?, ?, ?, ?, ?)", row).rowcount:
                self._count({_KEPT[one.is_broken]: 1}, ONCE)
            self._file.execute("INSERT OR IGNORE INTO kept_of VALUES (?, ?)", (one.key, part))

    def _count(self, tally: Mapping[str, int], part: int) -> None:
        self._file.executemany(
            "INSERT INTO tally VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
            [(part, name, count) for name, count in tally.items()],
        )

    def tally(self) -> Counter[str]:
        """What became of all messages, each counted once however often its file was sent."""
        return Counter(dict(self._file.execute("SELECT name, sum(count) FROM tally GROUP BY name")))

    def said(self, endpoint: str, after: str) -> Iterator[tuple[str, list[tuple[bytes, bytes]]]]:
        """(profile, what was said of it with its places) of each profile, in their order."""
        rows = self._file.execute(
            "SELECT profile, first, last, content FROM said WHERE endpoint = ? AND profile > ? ORDER BY profile",
            (endpoint, after),
        )
        for profile, some in groupby(rows, key=lambda row: row[0]):
            yield profile, [(place, content) for _, first, last, content in some for place in {first, last}]

    def n_profiles(self) -> int:
        """How many profiles something was said of."""
        return int(
            self._file.execute("SELECT count(*) FROM (SELECT 1 FROM said GROUP BY endpoint, profile)").fetchone()[0]
        )

    def waits(self) -> Iterator[tuple[str, list[Waits]]]:
        """(device, what waits with it) of each device of which somebody is known, with what the plan says of it."""
        self._file.execute("ATTACH ? AS plan", (str(self.plan_path),))
        try:
            for device, some in groupby(self._file.execute(_WAITS), key=lambda row: row[0]):
                yield device, [msgspec.convert([*row[1:-1], orjson.loads(row[-1])], Waits) for row in some]
        finally:
            with suppress(sqlite3.OperationalError):  # it is still read from, and then goes with the connection
                self._file.execute("DETACH plan")

    def n_waits(self) -> int:
        """How much waits with devices."""
        return int(self._file.execute("SELECT count(*) FROM waits").fetchone()[0])

    def counted(self, state: int) -> Iterator[tuple[bytes, str, bytes]]:
        """(key of a message, profile, what it counts there) of all in this state, by profile and in their order."""
        return self._file.execute(
            "SELECT key, profile, content FROM counted WHERE state = ? ORDER BY profile, place", (state,)
        )

    def has_kept(self) -> bool:
        """Whether anything was kept."""
        return self._file.execute("SELECT 1 FROM kept").fetchone() is not None

    def kept(self, *, is_broken: bool) -> Iterator[Kept]:
        """What was kept, in no order that means anything."""
        rows = self._file.execute(
            "SELECT key, is_broken, reason, detail, endpoint, body FROM kept WHERE is_broken = ?", (is_broken,)
        )
        for key, broken, reason, detail, endpoint, body in rows:
            yield Kept(
                key=key, is_broken=bool(broken), reason=reason, detail=detail, endpoint=endpoint, body=bytes(body)
            )


def _each(files: Iterable[File]) -> list[File]:
    each = {(file.name, file.version): file for file in files}
    return [file for _, file in sorted(each.items())]
