"""The tallies: how many entries are in each state, the sums of design 3.15."""

from collections import Counter
from collections.abc import Sequence

import sqlalchemy as sa

from adapter.store.portable import insert
from adapter.store.tables import ENDPOINTS, tally

Tallies = Counter[tuple[str, str, str]]  # (endpoint, state, reason) -> how many

_PUT_TALLY = insert(tally)
_COUNT = _PUT_TALLY.on_conflict_do_update(
    index_elements=list(tally.primary_key), set_={"count": tally.c.count + _PUT_TALLY.excluded.count}
)
_N_WAITING = sa.select(
    sa.func.sum(sa.case((tally.c.state == "acknowledged", tally.c.count), else_=-tally.c.count))
).where(tally.c.endpoint.in_(ENDPOINTS), tally.c.state != "note")


def add(connection: sa.Connection, tallies: Tallies) -> None:
    """Add to the tallies, row by row in one order: no two processes wait for each other."""
    tallies = Counter({name: count for name, count in tallies.items() if count})
    if not tallies:
        return
    connection.execute(
        _COUNT,
        [
            {"endpoint": endpoint, "state": state, "reason": reason, "count": count}
            for (endpoint, state, reason), count in sorted(tallies.items())
        ],
    )


def n_waiting(connection: sa.Connection, calls: Sequence[None]) -> list[int]:
    """How many entries wait, for each who asks."""
    return [int(connection.scalar(_N_WAITING) or 0) for _ in calls]
