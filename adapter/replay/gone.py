"""Who is gone: whose data somebody asked to delete, by the logs or the adapter, and what of the logs is theirs.

What came before is not sent again, and has no part in whose a device is. The plan keeps it in a table:

gone     users, and devices of them as their first user, up to when nothing of theirs is sent
"""

import sqlite3
from itertools import islice

from adapter import links
from adapter.links import Known
from adapter.store import Reader

#: Of whom nobody asked to delete anything: before any time.
NEVER_MS = -(2**62)
#: Devices or users that the store is asked about at once.
ASKED = 5_000

TABLES = (
    "CREATE TABLE gone (id TEXT, is_user INTEGER, until_ms INTEGER, PRIMARY KEY (id, is_user)) WITHOUT ROWID",
    "CREATE TABLE updated (id TEXT PRIMARY KEY) WITHOUT ROWID",
)
_PUT_GONE = """
INSERT INTO gone VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET until_ms = max(until_ms, excluded.until_ms)
"""
#: What is not sent again links nothing, and has no part in who uses a device. Who came back did so with the first
#: use after it, which may be of any kind; so theirs is a link that no event is known to carry.
_FORGET = (
    """
    CREATE TEMP TABLE lost AS SELECT device, user, until_ms FROM gone JOIN link ON user = gone.id AND is_user
    """,
    "DELETE FROM use WHERE time_ms <= (SELECT max(until_ms) FROM gone WHERE id IN (user, device) AND is_user)",
    """
    CREATE TEMP TABLE stale AS SELECT device, user FROM claim JOIN gone ON id = user AND is_user
    WHERE time_ms <= until_ms
    UNION SELECT device, user FROM alias JOIN gone ON id IN (user, device) AND is_user WHERE time_ms <= until_ms
    """,
    """
    CREATE TEMP TABLE back AS SELECT device, user, min(time_ms) AS time_ms FROM use
    WHERE joins AND (device, user) IN (SELECT device, user FROM stale) GROUP BY device, user
    """,
    "DELETE FROM claim WHERE (device, user) IN (SELECT device, user FROM stale EXCEPT SELECT device, user FROM back)",
    "DELETE FROM alias WHERE (device, user) IN (SELECT device, user FROM stale EXCEPT SELECT device, user FROM back)",
    """
    UPDATE claim SET place = moved(place, back.time_ms), time_ms = back.time_ms, carried = 0,
        identified = CASE WHEN identified < X'FF' THEN moved(identified, back.time_ms) ELSE identified END
    FROM back WHERE back.device = claim.device AND back.user = claim.user
    """,
    """
    UPDATE alias SET place = moved(place, back.time_ms), time_ms = back.time_ms
    FROM back WHERE back.device = alias.device AND back.user = alias.user
    """,
    "DELETE FROM link WHERE device IN (SELECT device FROM stale)",
    """
    INSERT INTO link SELECT device, user, count(*), min(place), time_ms, last_ms, carried FROM claim
    WHERE place < X'FF' AND device IN (SELECT device FROM stale) GROUP BY device
    """,
)
#: Whose a device is in the store, it is in Mixpanel.
_PUT_LOST = """
INSERT INTO gone SELECT device, 0, until_ms FROM lost
WHERE NOT EXISTS (SELECT 1 FROM stored WHERE stored.device = lost.device AND key != key_of(user))
ON CONFLICT DO UPDATE SET until_ms = max(until_ms, excluded.until_ms)
"""


def put(file: sqlite3.Connection, store: Reader | None) -> None:
    """Write down which users were deleted in the logs or erased from the store, as far as read, and when."""
    file.executemany(_PUT_GONE, file.execute("SELECT user, 1, time_ms FROM deleted").fetchall())
    users = file.execute("SELECT id FROM person UNION ALL SELECT id FROM updated")
    while store is not None and (some := {links.key(user): user for (user,) in islice(users, ASKED)}):
        file.executemany(_PUT_GONE, [(some[one], 1, at_ms) for one, at_ms in store.erased(some).items()])


def put_devices(file: sqlite3.Connection, store: Reader, known: dict[str, Known], now_ms: int) -> None:
    """Write down which of these devices were erased from the store with their owner, and when."""
    erased = {device: one.owner or b"" for device, one in known.items() if one.erased}
    at = store.erased(erased.values())
    file.executemany(_PUT_GONE, [(device, 0, at.get(one, now_ms)) for device, one in erased.items()])


def forget(file: sqlite3.Connection) -> bool:
    """Take what is not sent again out of who claims and uses which device. Whether there is anything."""
    if not file.execute("SELECT 1 FROM gone").fetchone():
        return False
    file.create_function("moved", 2, _moved, deterministic=True)
    for statement in _FORGET:
        file.execute(statement)
    return True


def put_lost(file: sqlite3.Connection) -> None:
    """Write down which devices were theirs, once it is known what the store knows of these."""
    file.create_function("key_of", 1, links.key, deterministic=True)
    file.execute(_PUT_LOST)


def _moved(place: bytes, time_ms: int) -> bytes:
    """The place that a message would have at another time."""
    return (time_ms * 1_000 + 2**63).to_bytes(8) * 2 + place[16:]
