"""Whose each device is, and who used a shared one when: decided before anything is sent, from all messages at once.

What counts is when a message happened, (time, receivedAt, messageId), not where it stands: the same logs in other
files, or read by more processes, give the same people. A link that the store already has stands: Mixpanel keeps it.

The tables are those of the census, in a file of the replay, and besides:

stored   what the store knows of these devices
run      of a device that several use, or of which a group call tells who does: who, from when to when
gone     users and devices whose data somebody asked to delete: what came before is not sent again

And while it is taken:

updated  whose profile an update is for that was refused before
sent     with a limit, what counts for it
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path

import msgspec
from isal.isal_zlib import crc32

from adapter import archive, census, identity, keys, links
from adapter.archive import File, Part
from adapter.census.report import Report
from adapter.census.tables import Tables
from adapter.errors import Damaged, Rewritten, Unreached
from adapter.identity import bare
from adapter.links import UNKNOWN, Known, Login
from adapter.parcels import Rules
from adapter.records import SIMPLIFIED, Options
from adapter.replay import again, fold
from adapter.replay.job import Job
from adapter.store import Reader
from schemas.mixpanel import COUNTERS, ENGAGE
from schemas.segment import Message

#: A plain file is cut into ranges of so many bytes, for several processes to share it.
PART_BYTES = 64_000_000
#: (messages read, files read, bytes read as stored)
Told = Callable[[int, int, int], None]
#: Devices that the store is asked about at once.
ASKED = 5_000

_DECIDE = """
CREATE TABLE stored (
    device TEXT PRIMARY KEY, key BLOB, logins BLOB, is_first INTEGER
) WITHOUT ROWID;
CREATE TABLE run (device TEXT, first_ms INTEGER, last_ms INTEGER, user TEXT, is_login INTEGER);
"""
_BEGIN = """
CREATE TABLE gone (id TEXT, is_user INTEGER, until_ms INTEGER, PRIMARY KEY (id, is_user)) WITHOUT ROWID;
CREATE TABLE updated (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE sent (user TEXT, device TEXT, time_ms INTEGER);
"""
#: What counts for the limit and is of who was deleted; what of a visitor is, is of who used the device first.
_LEFT_OUT = """
DELETE FROM sent WHERE time_ms <= (
    SELECT until_ms FROM gone WHERE is_user = 0 AND id = sent.device AND sent.user IS NULL
) OR time_ms <= (
    SELECT until_ms FROM gone WHERE is_user = 1 AND id = coalesce(sent.user, (
        SELECT user FROM (
            SELECT user, place FROM claim WHERE device = sent.device AND place < X'FF'
            UNION ALL SELECT user, place FROM alias
            WHERE device = sent.device AND NOT EXISTS (SELECT 1 FROM person WHERE id = device)
        ) ORDER BY place LIMIT 1
    ))
)
"""
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
_PUT_GONE = """
INSERT INTO gone VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET until_ms = max(until_ms, excluded.until_ms)
"""
#: What is not sent again links nothing, and has no part in who uses a device. Who came back did so with the first
#: use after it, which may be of any kind; so theirs is a link that no event is known to carry.
_FORGET = """
INSERT INTO gone SELECT device, 0, until_ms FROM gone JOIN link ON user = gone.id AND is_user
    ON CONFLICT DO UPDATE SET until_ms = max(until_ms, excluded.until_ms);
DELETE FROM use WHERE time_ms <= (SELECT max(until_ms) FROM gone WHERE id IN (user, device) AND is_user);
CREATE TEMP TABLE stale AS SELECT device, user FROM claim JOIN gone ON id = user AND is_user
WHERE time_ms <= until_ms
UNION SELECT device, user FROM alias JOIN gone ON id IN (user, device) AND is_user WHERE time_ms <= until_ms;
CREATE TEMP TABLE back AS SELECT device, user, min(time_ms) AS time_ms FROM use
WHERE joins AND (device, user) IN (SELECT device, user FROM stale) GROUP BY device, user;
DELETE FROM claim WHERE (device, user) IN (SELECT device, user FROM stale EXCEPT SELECT device, user FROM back);
DELETE FROM alias WHERE (device, user) IN (SELECT device, user FROM stale EXCEPT SELECT device, user FROM back);
UPDATE claim SET place = moved(place, back.time_ms), time_ms = back.time_ms, carried = 0,
    identified = CASE WHEN identified < X'FF' THEN moved(identified, back.time_ms) ELSE identified END
FROM back WHERE back.device = claim.device AND back.user = claim.user;
UPDATE alias SET place = moved(place, back.time_ms), time_ms = back.time_ms
FROM back WHERE back.device = alias.device AND back.user = alias.user;
DELETE FROM link WHERE device IN (SELECT device FROM stale);
INSERT INTO link SELECT device, user, count(*), min(place), time_ms, last_ms, carried FROM claim
WHERE place < X'FF' AND device IN (SELECT device FROM stale) GROUP BY device
"""
#: Of an alias alone, and so refused by what it is: previousId may be one whom the store knows as a user.
_BY_ALIAS = "(aliases AND identified = X'FF' AND NOT claim.carried AND NOT by_event)"
_LINKS = f"""
SELECT device, user, link.place, link.time_ms, claim.carried AND NOT aliases AND identified != claim.place,
    iif({_BY_ALIAS}, 'alias', 'identify')
FROM link JOIN claim USING (device, user) JOIN device ON device.id = device
WHERE wanted AND (:all OR people > 1 OR NOT link.carried) AND device NOT IN (SELECT device FROM stored)
UNION ALL
SELECT device, claim.user, claim.place, claim.time_ms, claim.carried AND NOT aliases AND identified != claim.place,
    'identify'
FROM claim JOIN link USING (device) JOIN device ON device.id = claim.device
WHERE :split AND wanted AND claim.place < X'FF' AND (:all OR NOT claim.carried) AND NOT {_BY_ALIAS}
    AND (claim.user != link.user OR claim.device IN (SELECT device FROM stored WHERE NOT is_first))
ORDER BY 3
"""  # noqa: S608 our own words alone
_VERBS = """
SELECT device, user, identified AS place, 'identify' FROM claim JOIN device ON device.id = device
WHERE wanted AND identified < X'FF' AND :identify
UNION ALL SELECT device, user, place, 'alias' FROM alias ORDER BY place
"""
_CARRIED = """
SELECT device, user, place, time_ms FROM link JOIN device ON device.id = device
WHERE wanted AND carried AND device NOT IN (SELECT device FROM stored) ORDER BY place
"""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """Two ids that a message says are one person's."""

    device: str
    user: str
    time_ms: int
    message_id: str
    how: str = "identify"  #: identify or alias
    by_event: bool = False  #: the message is sent as an event of its own


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """A part as the plan found it."""

    part: Part
    n_messages: int
    damaged: str | None = None  #: why it could not be read to its end
    checksum: int = 0  #: of the messages: tells a file that was appended to from one that was rewritten


def check(read: Read, stops: Callable[[], bool]) -> None:
    """Raise Rewritten if a file to which was appended is not what it was before that. Reads it until `stops`."""
    n_messages = checksum = 0
    with suppress(Damaged):
        for one in islice(archive.read(read.part), read.n_messages):
            n_messages, checksum = n_messages + 1, crc32(one, checksum)
            if stops():
                return
    if (n_messages, checksum) != (read.n_messages, read.checksum):
        raise Rewritten(f"{read.part.file.name} has changed since the plan was taken")


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
        _execute(tables.file, _BEGIN)
        reading = _Reading(files, job, tables, told, _Limit(job, tables, rules.options, store))
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

    def __init__(self, files: Sequence[File], job: Job, tables: Tables, told: Told, limit: "_Limit") -> None:
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


class _Limit:
    """Whether so many are read as are to be sent. What is left out for its person was deleted is not among them."""

    def __init__(self, job: Job, tables: Tables, options: Options, store: Reader | None) -> None:
        self.message: Message | None = None  #: the last that was looked at
        self._limit = job.choice.limit
        self._job = job
        self._tables = tables
        self._options = options
        self._store = store if store is not None and store.has_erased() else None
        self._n_counted = self._n_left = 0  #: as the tables count; without those that are left out

    @property
    def is_set(self) -> bool:
        return self._limit is not None

    def count(self, update: again.Update | None) -> None:
        """Count what was just read, a refused update or a message, if it is to be sent."""
        if update is not None:
            if update.endpoint == COUNTERS or not self._job.choice.is_all or self._job.profiles == fold.OFF:
                return
            is_user = identity.is_user(update.profile)
            row: tuple[str | None, str | None, int]
            row = (update.profile, None, -1) if is_user else (None, bare(update.profile), -1)
        elif self.message is None or self._tables.n_sent == self._n_counted:
            return
        else:
            who = identity.resolve(self.message, self._options.denied)
            row = who.user_id, who.device_id, keys.time_ms(self.message, self._job.now_ms)
        self._n_counted = self._tables.n_sent
        self._n_left += 1
        self._tables.file.execute("INSERT INTO sent VALUES (?, ?, ?)", row)

    def is_reached(self) -> bool:
        if self._limit is None or self._n_left < self._limit:
            return False
        self._leave_out()
        return self._n_left >= self._limit

    def _leave_out(self) -> None:
        file = self._tables.file
        self._tables.write()
        _put_gone(file, self._store)
        devices = file.execute("SELECT DISTINCT device FROM sent WHERE user IS NULL")
        while self._store is not None and (some := [device for (device,) in islice(devices, ASKED)]):
            _put_gone_devices(file, self._store, self._store.known(some), self._job.now_ms)
        file.execute(_LEFT_OUT)
        (self._n_left,) = file.execute("SELECT count(*) FROM sent").fetchone()


def _decide(file: sqlite3.Connection, store: Reader | None, options: Options, now_ms: int) -> None:
    _execute(file, _DECIDE)
    is_store_erased = store is not None and store.has_erased()
    _put_gone(file, store if is_store_erased else None)
    if file.execute("SELECT 1 FROM gone").fetchone():
        file.create_function("moved", 2, _moved, deterministic=True)
        _execute(file, _FORGET)
    if store is not None:
        # A visitor's events belong to the latest login, which may be in the store alone; or to who was erased.
        _ask(file, store, "LEFT JOIN" if options.split or is_store_erased else "JOIN", now_ms)
    file.executemany("INSERT INTO run VALUES (?, ?, ?, ?, 0)", _runs(file.execute(_USES)))
    file.execute(_LOG_IN)
    file.execute("CREATE INDEX run_device ON run (device, first_ms)")
    file.execute("CREATE INDEX alias_user ON alias (user, place)")
    for done in ("use", "seen", "sent", "updated"):
        file.execute(f"DROP TABLE {done}")


def _execute(file: sqlite3.Connection, script: str) -> None:
    """Its statements, within the transaction that is open."""
    for statement in script.split(";\n"):
        file.execute(statement)


def _put_gone(file: sqlite3.Connection, store: Reader | None) -> None:
    """Write down which users were deleted in the logs or erased from the store, as far as read, and when."""
    file.executemany(_PUT_GONE, file.execute("SELECT user, 1, time_ms FROM deleted").fetchall())
    users = file.execute("SELECT id FROM person UNION ALL SELECT id FROM updated")
    while store is not None and (some := {links.key(user): user for (user,) in islice(users, ASKED)}):
        file.executemany(_PUT_GONE, [(some[one], 1, at_ms) for one, at_ms in store.erased(some).items()])


def _moved(place: bytes, time_ms: int) -> bytes:
    """The place that a message would have at another time."""
    return (time_ms * 1_000 + 2**63).to_bytes(8) * 2 + place[16:]


def _ask(file: sqlite3.Connection, store: Reader, joined: str, now_ms: int) -> None:
    """Write down what the store knows of these devices."""
    there = "SELECT id FROM device UNION ALL SELECT id FROM updated WHERE id NOT IN (SELECT id FROM device)"
    devices = file.execute(f"SELECT id, user FROM ({there}) {joined} link ON device = id")  # noqa: S608 our own words
    while some := dict(islice(devices, ASKED)):
        known = [(device, one) for device, one in store.known(some).items() if one.owner is not None]
        file.executemany(
            "INSERT INTO stored VALUES (?, ?, ?, ?)",
            [
                (device, one.owner, msgspec.msgpack.encode(one.logins), _is_first(some[device], one))
                for device, one in known
            ],
        )
        _put_gone_devices(file, store, dict(known), now_ms)


def _put_gone_devices(file: sqlite3.Connection, store: Reader, known: dict[str, Known], now_ms: int) -> None:
    """Write down which of these devices were erased from the store with their owner, and when."""
    erased = {device: one.owner or b"" for device, one in known.items() if one.erased}
    at = store.erased(erased.values())
    file.executemany(_PUT_GONE, [(device, 0, at.get(one, now_ms)) for device, one in erased.items()])


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


class Plan:
    """A plan that was taken."""

    def __init__(self, path: Path, now_ms: int) -> None:
        self._now_ms = now_ms
        self._file = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
        # A device that one person uses needs no look: most are.
        self.known = lru_cache(65_536)(self._known)
        #: Of a user or device nothing is sent again that happened up to then; -1 of most.
        self.gone_until = lru_cache(65_536)(self._gone_until)

    def close(self) -> None:
        self._file.close()

    def links(self, options: Options, *, everything: bool) -> Iterator[Link]:
        """What is to be linked before all else, in the order in which it happened.

        In Simplified these are devices that several use, and links that no event of their owner carries, or
        `everything`; in Original and Legacy events link nothing, so it is all that links.
        """
        if options.system == SIMPLIFIED:
            rows = self._file.execute(_LINKS, {"all": everything, "split": options.split})
            for device, user, place, time_ms, by_event, how in rows:
                message_id, sent = place[16:].decode(), bool(by_event)
                yield Link(device=device, user=user, time_ms=time_ms, message_id=message_id, how=how, by_event=sent)
            return
        for device, user, place, how in self._file.execute(_VERBS, {"identify": options.system == "original"}):
            time_ms = min((int.from_bytes(place[:8]) - 2**63) // 1_000, self._now_ms)
            yield Link(device=device, user=user, time_ms=time_ms, message_id=place[16:].decode(), how=how)

    def carried(self) -> Iterator[Link]:
        """The links that events make, in the order in which they happened."""
        for device, user, place, time_ms in self._file.execute(_CARRIED):
            yield Link(device=device, user=user, time_ms=time_ms, message_id=place[16:].decode())

    def logins(self) -> Iterator[Link]:
        """The changes of user on devices that several use, by device and time."""
        for device, first_ms, user in self._file.execute(
            "SELECT device, first_ms, user FROM run WHERE is_login ORDER BY rowid"
        ):
            yield Link(device=device, user=user, time_ms=first_ms, message_id="")

    def n_shared(self) -> int:
        """How many devices several users claim."""
        return int(self._file.execute("SELECT count(*) FROM link WHERE people > 1").fetchone()[0])

    def _known(self, device: str) -> Known:
        """What is known of a device for SHARED_DEVICES=split."""
        runs = self._file.execute(
            "SELECT first_ms, user FROM run WHERE device = ? AND is_login", (device,)
        ).fetchall()
        known = self._file.execute("SELECT key, logins FROM stored WHERE device = ?", (device,)).fetchone()
        before = msgspec.msgpack.decode(known[1], type=tuple[Login, ...]) if known else ()
        if not runs and not before:
            return UNKNOWN
        if known is None:
            (user,) = self._file.execute("SELECT user FROM link WHERE device = ?", (device,)).fetchone()
        owner = known[0] if known else links.key(user)
        logins = [
            Login(first_ms, links.key(user), device if links.key(user) == owner else links.split_id(device, user))
            for first_ms, user in runs
        ]
        return Known(owner=owner, logins=tuple(sorted((*before, *logins), key=lambda one: one.time_ms)))

    def aliased(self, device: str, user: str, place: bytes, system: str) -> Known | None:
        """What an alias at this place meets: one that makes its link itself, a device of nobody.

        None where verbs link, for the first alias of two ids: with what the store knows it is judged when it is sent.
        """
        ask = self._file.execute
        stored = ask("SELECT key FROM stored WHERE device = ?", (device,)).fetchone()
        if system == SIMPLIFIED:
            link = ask("SELECT user FROM link WHERE device = ? AND place != ?", (device, place)).fetchone()
            is_user = ask("SELECT 1 FROM person WHERE id = ?", (device,)).fetchone() is not None
            return Known(owner=_key(stored, link), is_user=is_user)
        if ask("SELECT 1 FROM alias WHERE (device, user, place) = (?, ?, ?)", (device, user, place)).fetchone():
            return None
        link = ask("SELECT user FROM own WHERE device = ?", (device,)).fetchone()
        first = ask("SELECT device FROM alias WHERE user = ? ORDER BY place LIMIT 1", (user,)).fetchone()
        return Known(owner=_key(stored, link or ((user,) if first == (device,) else None)), is_alias=bool(first))

    def next_use(self, device: str, time_ms: int) -> tuple[str, int] | None:
        """Who uses a device of which runs are known from a time on, and when; None if nobody ever does."""
        run = self._file.execute(
            "SELECT user, max(first_ms, ?2) FROM run WHERE device = ?1 AND last_ms >= ?2 ORDER BY first_ms LIMIT 1",
            (device, time_ms),
        ).fetchone()
        return None if run is None else (run[0], run[1])

    def is_gone(self, profile: str) -> bool:
        """Whether a profile is that of a user, or of a visitor, whose data somebody ever asked to delete."""
        return any(self.gone_until(bare(profile), is_user) >= 0 for is_user in (True, False))

    def owner(self, device: str) -> str | None:
        """The first user of a device, as the logs have it."""
        found = self._file.execute("SELECT user FROM link WHERE device = ?", (device,)).fetchone()
        return None if found is None else str(found[0])

    def is_current(self, store: Reader) -> bool:
        """Whether nobody in it was erased from the store since it was taken."""
        if not store.has_erased():
            return True
        users = self._file.execute("SELECT id FROM person")
        while some := {links.key(user): user for (user,) in islice(users, ASKED)}:
            if any(at_ms > self.gone_until(some[one], True) for one, at_ms in store.erased(some).items()):
                return False
        return True

    @property
    def forgets(self) -> bool:
        """Whether anything is gone."""
        return self._file.execute("SELECT 1 FROM gone").fetchone() is not None

    def _gone_until(self, an_id: str, is_user: bool) -> int:
        query = "SELECT until_ms FROM gone WHERE id = ? AND is_user = ?"
        found = self._file.execute(query, (an_id, is_user)).fetchone()
        return -1 if found is None else int(found[0])


def _key(stored: tuple[bytes] | None, link: tuple[str] | None) -> bytes | None:
    """The key of whose a device is: the store's word stands over that of the logs."""
    return stored[0] if stored else None if link is None else links.key(link[0])


def as_json(report: Report, read: Sequence[Read]) -> str:
    """The plan for a program: what `adapter identity report --json` prints."""
    damaged = {one.part.file.name: one.damaged for one in read if one.damaged}
    return json.dumps({**report.as_dict(), "damaged": damaged}, indent=2, ensure_ascii=False)
