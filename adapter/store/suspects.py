"""Entries that are on trial: should the process end meanwhile, the next one finds them here.

Only what a process that did not end in order may have had in hand is ever tried, so there are none as a rule.
"""

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from adapter.store.portable import among, insert
from adapter.store.tables import entry, suspect

_THESE = (suspect.c.endpoint == sa.bindparam("e")) & among(suspect.c.message_id, "numbers")
_DEATHS = sa.select(suspect.c.message_id, suspect.c.deaths).where(_THESE)
_OUTLIVED = suspect.delete().where(_THESE)
_ENDED = suspect.delete().where(
    suspect.c.endpoint == sa.bindparam("e"),
    ~sa.exists().where(entry.c.endpoint == suspect.c.endpoint, entry.c.message_id == suspect.c.message_id),
)
_BEGIN = insert(suspect).on_conflict_do_update(
    index_elements=list(suspect.primary_key), set_={"deaths": suspect.c.deaths + 1}
)


def deaths(connection: sa.Connection, endpoint: str, numbers: Collection[int]) -> dict[int, int]:
    """See `Store.deaths`."""
    return {number: count for number, count in connection.execute(_DEATHS, {"e": endpoint, "numbers": list(numbers)})}


def try_next(connection: sa.Connection, calls: Sequence[tuple[str, Collection[int], Collection[int]]]) -> list[None]:
    """See `Store.try_next`. A death is counted beforehand: afterwards nobody could."""
    for endpoint, tried, numbers in calls:
        connection.execute(_OUTLIVED, {"e": endpoint, "numbers": list(tried)})
        if numbers:
            rows = [{"endpoint": endpoint, "message_id": number, "deaths": 1} for number in sorted(numbers)]
            connection.execute(_BEGIN, rows)
        else:
            # A process that ended in order before its trials left them untried, and the next had no reason to try.
            connection.execute(_ENDED, {"e": endpoint})
    return [None] * len(calls)
