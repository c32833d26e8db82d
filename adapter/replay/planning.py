"""The identity plan is taken: all is read once, and then it is decided whose each device is.

While that is done there are two tables more than in `adapter.replay.plan`: `updated`, whose profile an update is for
that was refused before, and, with a limit, `sent`, what counts for it.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import msgspec
from isal.isal_zlib import crc32

from adapter import archive, census, links
from adapter.archive import File
from adapter.census.report import Report
from adapter.census.tables import Tables
from adapter.errors import Damaged, Unreached
from adapter.identity import bare
from adapter.links import Known
from adapter.parcels import Rules
from adapter.records import Options
from adapter.replay import absent, again, gone, limit
from adapter.replay.job import Job
from adapter.replay.limit import Limit
from adapter.replay.read import Read
from adapter.store import Reader
from schemas.mixpanel import ENGAGE
from schemas.segment import Message

#: A plain file is cut into ranges of so many bytes, for several processes to share it.
PART_BYTES = 64_000_000
#: (messages read, files read, bytes read as stored)
Told = Callable[[int, int, int], None]

_DECIDE = (
    """
    CREATE TABLE stored (
        device TEXT PRIMARY KEY, key BLOB, logins BLOB, is_first INTEGER
    ) WITHOUT ROWID
    """,
    "CREATE TABLE run (device TEXT, first_ms INTEGER, last_ms INTEGER, user TEXT, is_login INTEGER)",
)
_USES = """
SELECT device, time_ms, user FROM use
WHERE device IN (
    SELECT device FROM link WHERE people > 1 UNION SELECT device FROM stored WHERE NOT is_first
    UNION SELECT device FROM use WHERE NOT joins
)
ORDER BY device, time_ms, user
"""
#: Who uses a device that is nobody's, by a group call, has it no more for that than live (adapter.links).
_LOG_IN = """
UPDATE run SET is_login = device IN (SELECT device FROM stored)
    OR first_ms >= (SELECT time_ms FROM link WHERE link.device = run.device)
"""


def take(
    path: Path, files: Sequence[File], job: Job, rules: Rules, store: Reader | None, told: Told
) -> tuple[Report, list[Read]]:
    """Read everything once and write the plan. `told` is called now and then.

    Raises census.NoRoom, Unreached.
    """
    under_way = path.with_suffix(".unfinished")
    under_way.unlink(missing_ok=True)
    with (
        census.room(f"make room in {path.parent}"),
        closing(Tables(job.memory_mb, str(under_way), with_uses=True)) as tables,
    ):
        for statement in (*gone.TABLES, *absent.TABLES, *limit.TABLES):
            tables.file.execute(statement)
        reading = _Reading(files, job, tables, told, Limit(job, tables, rules.options, store))
        report = census.count(
            reading,
            rules,
            tables,
            worst=3,
            now_ms=job.now_ms,
            choose=reading.choose,
            in_full=job.choice.limit is not None,
        )
        _decide(tables.file, store, rules.options, job.now_ms)
        tables.file.execute("COMMIT")
    under_way.replace(path)
    return report, reading.parts


class _Reading:
    """The messages of all files in their order, up to the limit; what was found of each part."""

    def __init__(self, files: Sequence[File], job: Job, tables: Tables, told: Told, limit: Limit) -> None:
        self._files = files
        self._choice = job.choice
        self._is_all = job.choice.is_all
        self._file = tables.file
        self._told = told
        self._limit = limit
        self._source: str | None = None
        self._n_bytes = 0
        self.parts: list[Read] = []

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        cut = ((number, part) for number, file in enumerate(self._files) for part in archive.parts(file, PART_BYTES))
        for n_files, part in cut:
            self._source = part.file.source
            found, damaged, checksum = 0, None, 0
            try:
                for one in archive.read(part, self._count):
                    if self._limit.is_reached():
                        break
                    found += 1
                    checksum = crc32(one, checksum)
                    if not (total + found) % 10_000:
                        self._told(total + found, n_files, self._n_bytes)
                    if (update := again.read(one)) is None:
                        yield one
                    elif update.endpoint == ENGAGE:  # it says nothing of ids, but who it is for may be gone
                        self._file.execute("INSERT OR IGNORE INTO updated VALUES (?)", (bare(update.profile),))
                    if self._limit.is_set:
                        self._limit.count(update)
            except Unreached:
                raise  # the next time it may be read whole
            except Damaged as error:
                damaged = str(error)
            total += found
            self.parts.append(Read(part=part, n_messages=found, damaged=damaged, checksum=checksum))
            if self._limit.is_reached():
                break

    def _count(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes

    def choose(self, message: Message) -> bool | None:
        self._limit.message = message
        if self._is_all:
            return True
        return self._choice.sends(message) if self._choice.reads(message, self._source) else None


def _decide(file: sqlite3.Connection, store: Reader | None, options: Options, now_ms: int) -> None:
    for statement in _DECIDE:
        file.execute(statement)
    is_store_erased = store is not None and store.has_erased()
    gone.put(file, store if is_store_erased else None)
    if options.split:
        absent.remember(file)
    forgets = gone.forget(file)
    if store is not None:
        # A visitor's events belong to the latest login, which may be in the store alone; or to who was erased.
        _ask(file, store, "LEFT JOIN" if options.split or is_store_erased or forgets else "JOIN", now_ms)
    if forgets:
        gone.put_lost(file)
    if options.split:
        absent.put(file, store if is_store_erased else None)
    file.executemany("INSERT INTO run VALUES (?, ?, ?, ?, 0)", _runs(file.execute(_USES)))
    file.execute(_LOG_IN)
    file.execute("CREATE INDEX run_device ON run (device, first_ms)")
    file.execute("CREATE INDEX alias_user ON alias (user, place)")
    for done in ("use", "seen", "sent", "updated"):
        file.execute(f"DROP TABLE {done}")


def _ask(file: sqlite3.Connection, store: Reader, joined: str, now_ms: int) -> None:
    """Write down what the store knows of these devices."""
    there = "SELECT id FROM device UNION ALL SELECT id FROM updated WHERE id NOT IN (SELECT id FROM device)"
    devices = file.execute(f"SELECT id, user FROM ({there}) {joined} link ON device = id")  # noqa: S608 our own words
    while some := dict(islice(devices, gone.ASKED)):
        known = [(device, one) for device, one in store.known(some).items() if one.owner is not None]
        file.executemany(
            "INSERT INTO stored VALUES (?, ?, ?, ?)",
            [
                (device, one.owner, msgspec.msgpack.encode(one.logins), _is_first(some[device], one))
                for device, one in known
            ],
        )
        gone.put_devices(file, store, dict(known), now_ms)


def _is_first(user: str | None, known: Known) -> bool:
    return user is not None and known.owner == links.key(user)


def _runs(uses: Iterable[tuple[str, int, str]]) -> Iterator[tuple[str, int, int, str]]:
    """(device, from, to, user), a row a change of user; `uses` is in order of device and time."""
    device, first_ms, last_ms, user = "", 0, 0, ""
    for one, time_ms, who in uses:
        if (one, who) != (device, user):
            if device:
                yield device, first_ms, last_ms, user
            device, user, first_ms = one, who, time_ms
        last_ms = time_ms
    if device:
        yield device, first_ms, last_ms, user
