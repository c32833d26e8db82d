"""With SHARED_DEVICES=split: when a shared device was used by somebody who is gone, for what names nobody is theirs.

Who used it when, those tell as well who are gone: it is remembered before they are forgotten. In the plan it is:

absent   from when to when what names nobody on a device is not sent again; it stands over what is gone of the device
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import msgspec

from adapter import links
from adapter.links import Login
from adapter.replay.gone import ASKED, NEVER_MS
from adapter.store import Reader

TABLES = (
    """
    CREATE TABLE absent (
        device TEXT, from_ms INTEGER, until_ms INTEGER, PRIMARY KEY (device, from_ms)
    ) WITHOUT ROWID
    """,
)
_REMEMBER = (
    """
    CREATE TEMP TABLE was_used AS SELECT device, time_ms, user FROM use
    WHERE device IN (SELECT device FROM use JOIN gone ON id = user AND is_user)
    """,
    "CREATE INDEX was_used_by ON was_used (device, time_ms, user)",
    """
    CREATE TEMP TABLE was_linked AS SELECT device, user, time_ms FROM link
    WHERE device IN (SELECT device FROM was_used)
    """,
)
#: Which of these were used by others as well, or are known to have been.
_REMEMBERED = """
SELECT device FROM was_used GROUP BY device HAVING count(DISTINCT user) > 1 OR device IN (SELECT device FROM stored)
UNION SELECT device FROM stored WHERE logins != X'90'
"""


def remember(file: sqlite3.Connection) -> None:
    """Keep who used the devices of those who are gone."""
    for statement in _REMEMBER:
        file.execute(statement)


def put(file: sqlite3.Connection, store: Reader | None) -> None:
    """Write down when it is somebody who is gone, once it is known what the store knows of these devices."""
    devices = file.execute(_REMEMBERED)
    while found := [device for (device,) in islice(devices, ASKED)]:
        some = [one for device in found if (one := _used(file, device)) is not None]
        until = dict(store.erased({login.user for one in some for login in one.logins})) if store is not None else {}
        for one in some:
            for user in one.users:
                row = file.execute("SELECT until_ms FROM gone WHERE id = ? AND is_user", (user,)).fetchone()
                if row is not None:
                    until[links.key(user)] = max(row[0], until.get(links.key(user), NEVER_MS))
        rows = [(one.device, *span) for one in some for span in _absent(one.logins, until)]
        file.executemany("INSERT OR REPLACE INTO absent VALUES (?, ?, ?)", rows)


class _Used(NamedTuple):
    """A device before anybody was forgotten."""

    device: str
    users: set[str]  #: of the logs
    logins: Sequence[Login]  #: of its first user, and each change of user since


def _used(file: sqlite3.Connection, device: str) -> _Used | None:
    uses = file.execute("SELECT time_ms, user FROM was_used WHERE device = ? ORDER BY 1, 2", (device,)).fetchall()
    link = file.execute("SELECT user, time_ms FROM was_linked WHERE device = ?", (device,)).fetchone()
    stored = file.execute("SELECT key, logins FROM stored WHERE device = ?", (device,)).fetchone()
    if stored is None and link is None:
        return None
    owner = stored[0] if stored else links.key(link[0])
    known = msgspec.msgpack.decode(stored[1], type=tuple[Login, ...]) if stored else ()
    logins = [Login(at_ms, links.key(user), "") for at_ms, user in uses if stored or at_ms >= link[1]]
    every = sorted((*known, *logins), key=lambda one: one.time_ms)
    return _Used(device, {user for _, user in uses}, [Login(NEVER_MS, owner, ""), *every])


def _absent(logins: Sequence[Login], until: Mapping[bytes, int]) -> Iterator[tuple[int, int]]:
    """From when to when who used a device is gone; one that is no time at all if never."""
    yield 2**62, NEVER_MS
    for one, following in pairwise((*logins, Login(2**62, b"", ""))):
        last_ms = min(until.get(one.user, NEVER_MS), following.time_ms - 1)
        if last_ms >= one.time_ms:
            yield one.time_ms, last_ms
