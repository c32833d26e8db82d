"""The counting tables: a temporary SQLite file, so that tens of millions of devices need no more memory than a few.

The file has no name: it lies where SQLite puts temporary files (TMPDIR, else /var/tmp or /tmp) and goes with the
process. What is counted is gathered in memory and written in order of its keys, which keeps the writes together.
"""

import sqlite3
from typing import Any

from adapter.census import decision
from adapter.census.decision import EARLIER
from adapter.census.report import Graph
from adapter.census.said import NEVER, Said
from adapter.identity import is_guid
from adapter.records import Options

#: What one line of what is gathered takes beside its ids.
_ROW_BYTES = 400
#: What the key of a message takes.
_KEY_BYTES = 100

_SCHEMA = """
CREATE TABLE seen (key INTEGER PRIMARY KEY);  -- 8 bytes of a message's key
CREATE TABLE person (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE device (
    id TEXT PRIMARY KEY,
    seen INTEGER,                             -- 0: the settings call it junk
    events INTEGER,                           -- without a user, as the adapter sends them
    their_events INTEGER,                     -- the same as Segment's destination sends them
    wanted INTEGER                            -- a message of it is to be sent
) WITHOUT ROWID;
CREATE TABLE claim (
    device TEXT,
    user TEXT,
    place BLOB,                               -- of the first message by which the adapter joins the two
    identified BLOB,                          -- of the first identify with both
    by_event INTEGER,                         -- Segment's destination sends an event with both
    time_ms INTEGER,                          -- of the message at `place`, and of the latest that joins the two
    last_ms INTEGER,
    carried INTEGER,                          -- an event that is to be sent has both
    identifies INTEGER,                       -- how often an identify asks for it, as the adapter sends it
    aliases INTEGER DEFAULT 0,                -- how many aliases asked for it
    PRIMARY KEY (device, user)
) WITHOUT ROWID;
CREATE TABLE alias (
    device TEXT,                              -- or a user
    user TEXT,
    place BLOB,
    time_ms INTEGER,
    last_ms INTEGER,
    calls INTEGER,
    PRIMARY KEY (device, user)
) WITHOUT ROWID;
CREATE TABLE deleted (user TEXT PRIMARY KEY, time_ms INTEGER) WITHOUT ROWID;
"""
#: Every use of a device by a user: who had a shared one when. Only a replay asks.
_USES = "CREATE TABLE use (device TEXT, time_ms INTEGER, user TEXT, joins INTEGER)"

_PUT_PERSON = "INSERT OR IGNORE INTO person VALUES (?)"
_PUT_DEVICE = """
INSERT INTO device VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
SET events = events + excluded.events, their_events = their_events + excluded.their_events,
    wanted = max(wanted, excluded.wanted)
"""
_PUT_CLAIM = f"""
INSERT INTO claim (device, user, place, time_ms, last_ms, identified, by_event, carried, identifies)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
SET {EARLIER}, identified = min(identified, excluded.identified), by_event = max(by_event, excluded.by_event),
    carried = max(carried, excluded.carried), identifies = identifies + excluded.identifies
"""  # noqa: S608 our own words alone
_PUT_ALIAS = f"""
INSERT INTO alias VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET {EARLIER}, calls = calls + excluded.calls
"""  # noqa: S608 our own words alone
_PUT_DELETED = """
INSERT INTO deleted VALUES (?, ?) ON CONFLICT DO UPDATE SET time_ms = max(time_ms, excluded.time_ms)
"""


class Tables:
    """What the messages said so far. `memory_mb` bounds, roughly, what is kept in memory; the file is not bounded.

    Raises sqlite3.OperationalError if there is no room for the file.
    """

    def __init__(self, memory_mb: int, path: str = "", *, with_uses: bool = False) -> None:
        """`path` names a file that stays; `with_uses` also keeps every use of a device by a user."""
        self._memory_kb = memory_mb * 1024
        self._with_uses = with_uses
        self._file = sqlite3.connect(path, isolation_level=None)
        self._file.create_function("is_guid", 1, is_guid, deterministic=True)
        # It need not survive anything, so nothing is done for that.
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE"):
            self._file.execute(f"PRAGMA {pragma}")
        self._file.execute(f"PRAGMA cache_size = -{self._memory_kb // 2}")
        self._file.executescript(_SCHEMA + (_USES if with_uses else ""))
        self._file.execute("BEGIN")
        self.n_sent = 0  #: of what was added, so many are to be sent
        self._events = self._own = self._their_own = 0
        self._seen: set[int] = set()
        #: a bit for each key in the file, which several may share: most that are new are told without the file
        self._put_away = bytearray(max(self._memory_kb * 32, 1))
        self._begin()

    def _begin(self) -> None:
        self._people: set[str] = set()
        self._devices: dict[str, list[int]] = {}
        self._claims: dict[tuple[str, str], list[Any]] = {}
        self._aliases: dict[tuple[str, str], list[Any]] = {}
        self._uses: list[tuple[str, int, str, bool]] = []
        self._gathered_bytes = 0

    def close(self) -> None:
        self._file.close()

    @property
    def file(self) -> sqlite3.Connection:
        """Where they are, for more to be decided there."""
        return self._file

    def is_new(self, key: bytes) -> bool:
        """True the first time that a message of this key comes.

        64 bits of it are kept: among a hundred million messages the chance that one is taken for another is 1 in
        3,000.
        """
        if self._gathered_bytes > self._memory_kb * 1024 // 4:
            self._put_away_seen()
            self.write()
        number = int.from_bytes(key[:8], signed=True)
        if number in self._seen:
            return False
        self._seen.add(number)
        self._gathered_bytes += _KEY_BYTES
        if not self._put_away[(number >> 3) % len(self._put_away)] & 1 << (number & 7):
            return True
        return self._file.execute("SELECT 1 FROM seen WHERE key = ?", (number,)).fetchone() is None

    def is_news(self, said: Said) -> bool:
        """True if a message that joins two ids may be the first that does, as far as is told without the file."""
        if said.alias:
            row = self._aliases.get((said.device or "", said.user or ""))
        else:
            row = self._claims.get((said.their_device or "", said.their_user or ""))
        return row is None or said.place < row[0] or (said.identify and said.place < row[3])

    def add(self, said: Said, *, is_sent: bool = True, counts: bool = True) -> None:
        """Take down what a message said; `is_sent` if it is among those that are to be sent.

        Without `counts` it came before by its key, and adds to no figure.
        """
        self.n_sent += is_sent and counts and said.refused is None and said.deletes is None
        user, device, their_user, their_device = said.user, said.device, said.their_user, said.their_device
        if user is not None and user not in self._people:
            self._people.add(user)
            self._gathered_bytes += _ROW_BYTES + len(user)
        counts_event = counts and said.event
        if counts_event:
            self._events += 1
            self._own += user is not None
            self._their_own += their_user is not None
        if said.deletes is not None:
            self._file.execute(_PUT_DELETED, (said.deletes, said.time_ms))
            return
        if self._with_uses and said.uses and device is not None and user is not None:
            self._uses.append((device, said.time_ms, user, said.joins))
            self._gathered_bytes += _ROW_BYTES // 4
        if said.alias:
            asked = self._row(self._aliases, (device, user), (NEVER, 0, 0, 0))
            _take_earlier(asked, said)
            asked[3] += counts
            return
        if device is not None:
            row = self._row(self._devices, device, (1, 0, 0, 0))
            row[1] += counts_event and user is None
            row[3] |= is_sent
        if counts_event and their_user is None and their_device is not None:
            self._row(self._devices, their_device, (0, 0, 0, 0))[2] += 1
        # What the adapter joins, Segment's destination sends with the same two ids.
        if said.place != NEVER:
            claim = self._row(self._claims, (their_device, their_user), (NEVER, 0, 0, NEVER, 0, 0, 0))
            if said.joins:
                _take_earlier(claim, said)
                claim[5] |= said.event and is_sent
                claim[6] += said.identify
            if said.identify and their_device != their_user:
                claim[3] = min(claim[3], said.place)
            claim[4] |= said.event

    def _row(self, rows: dict[Any, list[Any]], key: Any, fresh: tuple[Any, ...]) -> list[Any]:
        row = rows.get(key)
        if row is None:
            row = rows[key] = list(fresh)
            self._gathered_bytes += _ROW_BYTES + (len(key) if isinstance(key, str) else len(key[0]) + len(key[1]))
        return row

    def _put_away_seen(self) -> None:
        self._file.executemany("INSERT OR IGNORE INTO seen VALUES (?)", ((one,) for one in sorted(self._seen)))
        for number in self._seen:
            self._put_away[(number >> 3) % len(self._put_away)] |= 1 << (number & 7)
        self._seen = set()

    def write(self) -> None:
        """Write what is gathered in memory, for the file to have all of it."""
        put = self._file.executemany
        put(_PUT_PERSON, ((user,) for user in sorted(self._people)))
        put(_PUT_DEVICE, ((device, *row) for device, row in sorted(self._devices.items())))
        put(_PUT_CLAIM, ((*pair, *row) for pair, row in sorted(self._claims.items())))
        put(_PUT_ALIAS, ((*pair, *row) for pair, row in sorted(self._aliases.items())))
        if self._uses:
            put("INSERT INTO use VALUES (?, ?, ?, ?)", self._uses)
        self._begin()

    def decide(self, worst: int, options: Options) -> tuple[Graph, dict[str, int]]:
        """Who has which device in the end, and how many calls cannot be, by reason. `worst`: how many to name.

        To be called once, after all was added.
        """
        self.write()
        # What is sorted now takes as much memory again as the cache may.
        self._file.execute(f"PRAGMA cache_size = -{self._memory_kb // 4}")
        self._file.execute("PRAGMA shrink_memory")
        return decision.decide(self._file, worst, options, self._events, self._own, self._their_own)


def _take_earlier(row: list[Any], said: Said) -> None:
    """The first three of a row are the earliest place, its time, and the latest time."""
    if said.place < row[0]:
        row[0], row[1] = said.place, said.time_ms
    row[2] = max(row[2], said.time_ms)
