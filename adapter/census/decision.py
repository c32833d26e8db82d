"""Who has which device in the end, and what cannot be: decided in the tables, once all that was said is in them."""

import sqlite3
from dataclasses import fields
from typing import Any

from adapter.census.report import Graph, Known, Original, Shared, Spread
from adapter.records import LEGACY, ORIGINAL, SIMPLIFIED, Options
from adapter.verbs import MAX_LINKS

#: Of two rows the place of the earlier, its time, and the later time.
EARLIER = """
time_ms = CASE WHEN excluded.place < place THEN excluded.time_ms ELSE time_ms END,
last_ms = max(last_ms, excluded.last_ms), place = min(place, excluded.place)
"""
#: When all is read: an id is a user if it was seen as one, so now aliases can be decided, and then who has a device.
#: X'FF' is NEVER. Of the rows that a min() is taken of, the other columns are those of the smallest: SQLite says so.
_DECIDE = (
    "CREATE VIEW merged AS SELECT * FROM alias WHERE NOT EXISTS (SELECT 1 FROM person WHERE id = device)",
    f"""
    INSERT INTO claim SELECT device, user, place, X'FF', 0, time_ms, last_ms, 0, 0, calls FROM merged WHERE true
    ON CONFLICT DO UPDATE SET {EARLIER}, aliases = excluded.aliases
    """,  # noqa: S608 our own words alone
    "INSERT OR IGNORE INTO device SELECT device, 1, 0, 0, 1 FROM merged",
    """
    CREATE TABLE link (
        device TEXT PRIMARY KEY, user TEXT, people INTEGER, place BLOB, time_ms INTEGER, last_ms INTEGER,
        carried INTEGER
    ) WITHOUT ROWID
    """,
    """
    INSERT INTO link SELECT device, user, count(*), min(place), time_ms, last_ms, carried FROM claim
    WHERE place < X'FF' GROUP BY device
    """,
    "CREATE TABLE joined (device TEXT PRIMARY KEY, user TEXT, place BLOB) WITHOUT ROWID",
    """
    INSERT INTO joined SELECT device, user, min(identified) FROM claim
    WHERE identified < X'FF' AND is_guid(device) GROUP BY device
    """,
    "CREATE TABLE crowded AS SELECT user FROM joined GROUP BY user HAVING count(*) > :most",
    """
    CREATE TABLE orphan AS SELECT device FROM (
        SELECT device, row_number() OVER (PARTITION BY user ORDER BY place) AS nth FROM joined
        WHERE user IN (SELECT user FROM crowded)
    ) WHERE nth > :most
    """,
)
#: Which of these links Mixpanel makes in the project's ID system: in Simplified all of them.
_OWN_SIMPLIFIED = ("CREATE VIEW own AS SELECT device, user, people FROM link",)
#: In the others only verbs link, a user's first alias is the only one, and what is over the cap is nobody's. Of each
#: pair the first call alone is known: not how many identifies came before an alias that gave their device away.
_OWN_BY_VERBS = (
    "CREATE VIEW named AS SELECT device, user, min(place) AS place, calls FROM alias GROUP BY user",
    "CREATE TABLE own (device TEXT PRIMARY KEY, user TEXT, people INTEGER, place BLOB) WITHOUT ROWID",
    """
    INSERT INTO own SELECT device, user, count(DISTINCT user), min(place) FROM (
        SELECT device, user, identified AS place FROM claim
        WHERE :identify AND identified < X'FF' AND place < X'FF' AND (:merge OR is_guid(device))
        UNION ALL
        SELECT device, user, place FROM named WHERE NOT EXISTS (SELECT 1 FROM person WHERE id = device)
    ) GROUP BY device
    """,
    """
    CREATE TABLE surplus AS SELECT device, user FROM (
        SELECT device, user, row_number() OVER (PARTITION BY user ORDER BY place) AS nth FROM own
    ) WHERE nth > :most
    """,
    "DELETE FROM own WHERE device IN (SELECT device FROM surplus)",
)
_OWNER = "CREATE TABLE owner AS SELECT user, count(*) AS devices FROM own GROUP BY user"
_ASKS_FOR_ANOTHERS = "claim JOIN own USING (device) WHERE claim.user != own.user"
#: Calls that cannot be, by reason, in each ID system.
_REFUSED_BY_VERBS = {
    "errAliasAlreadyExists": """
        SELECT total(alias.calls - (named.user IS NOT NULL)) FROM alias
        LEFT JOIN named USING (device, user) LEFT JOIN own USING (device) WHERE own.user IS NOT alias.user
        AND (named.user IS NULL OR NOT EXISTS (SELECT 1 FROM person WHERE id = alias.device))
    """,
    "errManyIDs": "SELECT total(identifies) FROM claim JOIN surplus USING (device, user)",
}
_REFUSED = {
    SIMPLIFIED: {
        "alias_of_a_user": "SELECT total(calls) FROM alias WHERE EXISTS (SELECT 1 FROM person WHERE id = device)",
        "alias_of_anothers_device": f"SELECT total(aliases) FROM {_ASKS_FOR_ANOTHERS}",  # noqa: S608 our own words
    },
    ORIGINAL: {
        **_REFUSED_BY_VERBS,
        "errAnonDistinctIdAssignedAlready": f"SELECT total(identifies) FROM {_ASKS_FOR_ANOTHERS}",  # noqa: S608
        "errAnonDistinctIdNonGUIDForm": """
            SELECT total(identifies) FROM claim WHERE NOT is_guid(device)
            AND device NOT IN (SELECT device FROM own UNION ALL SELECT device FROM surplus)
        """,
    },
    LEGACY: _REFUSED_BY_VERBS,
}
_SUMS = {
    "people": "SELECT count(*) FROM person",
    "devices": "SELECT total(seen) FROM device",
    "links": "SELECT count(*) FROM own",
    "shared": "SELECT count(*) FROM own WHERE people > 1",
    "most_people": "SELECT coalesce(max(people), 0) FROM own WHERE people > 1",
    "not_guid": "SELECT count(*) FROM device WHERE seen AND NOT is_guid(id)",
    "not_guid_identified": """
        SELECT count(*) FROM (SELECT 1 FROM claim WHERE identified < X'FF' AND NOT is_guid(device) GROUP BY device)
    """,
    "crowded": "SELECT count(*) FROM crowded",
    "orphans": "SELECT count(*) FROM orphan",
    "adapter": "SELECT total(events) FROM device WHERE EXISTS (SELECT 1 FROM own WHERE device = id)",
    "segment_simplified": """
        SELECT total(their_events) FROM device
        WHERE their_events AND EXISTS (SELECT 1 FROM claim WHERE device = id AND by_event)
    """,
    "segment_original": """
        SELECT total(their_events) FROM device
        WHERE EXISTS (SELECT 1 FROM joined WHERE device = id) AND id NOT IN (SELECT device FROM orphan)
    """,
}
_SPREAD = "SELECT devices, count(*) FROM owner GROUP BY devices ORDER BY devices"
_MOST_SHARED = """
SELECT device, people, user AS first_user FROM own WHERE people > 1 ORDER BY people DESC, device LIMIT ?
"""
_MOST_DEVICES = "SELECT user, devices FROM owner WHERE devices > 1 ORDER BY devices DESC, user LIMIT ?"


def decide(
    file: sqlite3.Connection, worst: int, options: Options, events: int, own: int, their_own: int
) -> tuple[Graph, dict[str, int]]:
    """Who has which device, and how many calls cannot be, by reason. `worst`: how many to name.

    Of the `events` so many have a user of their `own` as the adapter sends them, or as Segment's destination does.
    """
    system = options.system
    given = {"most": MAX_LINKS, "identify": system == ORIGINAL, "merge": options.original_merge}
    for statement in (*_DECIDE, *(_OWN_SIMPLIFIED if system == SIMPLIFIED else _OWN_BY_VERBS), _OWNER):
        file.execute(statement, given)
    sums = {name: _sum(file, query) for name, query in _SUMS.items()}
    refused = {reason: count for reason, query in _REFUSED[system].items() if (count := _sum(file, query))}
    known = Known(
        events=events,
        segment_simplified=their_own + sums["segment_simplified"],
        segment_original=their_own + sums["segment_original"],
        adapter=own + sums["adapter"],
    )
    shared = Shared(devices=sums["shared"], most_people=sums["most_people"], worst=_named(file, _MOST_SHARED, worst))
    graph = Graph(
        people=sums["people"],
        devices=sums["devices"],
        links=sums["links"],
        visitors=sums["devices"] - sums["links"],
        shared=shared,
        devices_of_a_person=_spread(file, worst),
        original=Original(**{one.name: sums[one.name] for one in fields(Original)}),
        known=known,
    )
    return graph, refused


def _sum(file: sqlite3.Connection, query: str) -> int:
    return int(file.execute(query).fetchone()[0])


def _named(file: sqlite3.Connection, query: str, count: int) -> tuple[dict[str, Any], ...]:
    found = file.execute(query, (count,))
    names = [column[0] for column in found.description]
    return tuple(dict(zip(names, row, strict=True)) for row in found)


def _spread(file: sqlite3.Connection, worst: int) -> Spread:
    counted = file.execute(_SPREAD).fetchall()
    people = sum(count for _devices, count in counted)

    def at(percent: int) -> int:
        """The smallest number of devices that so many percent of the people do not exceed."""
        reached = 0
        for devices, count in counted:
            reached += count
            if reached * 100 >= people * percent:
                return int(devices)
        return 0

    return Spread(
        people=people,
        median=at(50),
        p90=at(90),
        p99=at(99),
        most=at(100),
        worst=_named(file, _MOST_DEVICES, worst),
    )
