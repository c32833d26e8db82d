"""Whose each device is, and who used a shared one when: decided before anything is sent, from all messages at once.

What counts is when a message happened, (time, receivedAt, messageId), not where it stands: the same logs in other
files, or read by more processes, give the same people. A link that the store already has stands: Mixpanel keeps it.

The tables are those of the census, in a file of the replay, and besides:

stored   what the store knows of these devices
run      of a device that several use, or of which a group call tells who does: who, from when to when
gone     users and devices whose data somebody asked to delete: what came before is not sent again
absent   with SHARED_DEVICES=split, when who used a shared device is one of these
"""

import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

import msgspec

from adapter import links
from adapter.identity import bare
from adapter.links import UNKNOWN, Known, Login
from adapter.records import SIMPLIFIED, Options
from adapter.replay.gone import ASKED, NEVER_MS
from adapter.store import Reader

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


class Plan:
    """A plan that was taken."""

    def __init__(self, path: Path, now_ms: int) -> None:
        self._now_ms = now_ms
        self._file = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
        # A device that one person uses needs no look: most are.
        self.known = lru_cache(65_536)(self._known)
        #: Of a user or device nothing is sent again that happened up to then; before any time of most.
        self.gone_until = lru_cache(65_536)(self._gone_until)
        self._absent = lru_cache(65_536)(self._absences)

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
        return any(self.gone_until(bare(profile), is_user) > NEVER_MS for is_user in (True, False))

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
        return self._file.execute("SELECT 1 FROM gone UNION ALL SELECT 1 FROM absent").fetchone() is not None

    def is_of_gone(self, device: str, time_ms: int) -> bool:
        """Whether what named nobody on a device at this time is of somebody who was deleted since."""
        if absent := self._absent(device):
            return any(from_ms <= time_ms <= until_ms for from_ms, until_ms in absent)
        return time_ms <= self.gone_until(device, False)

    def _absences(self, device: str) -> list[tuple[int, int]]:
        return self._file.execute("SELECT from_ms, until_ms FROM absent WHERE device = ?", (device,)).fetchall()

    def _gone_until(self, an_id: str, is_user: bool) -> int:
        query = "SELECT until_ms FROM gone WHERE id = ? AND is_user = ?"
        found = self._file.execute(query, (an_id, is_user)).fetchone()
        return NEVER_MS if found is None else int(found[0])


def _key(stored: tuple[bytes] | None, link: tuple[str] | None) -> bytes | None:
    """The key of whose a device is: the store's word stands over that of the logs."""
    return stored[0] if stored else None if link is None else links.key(link[0])
