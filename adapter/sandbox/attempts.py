"""How far did one person get, each time? Pure. Source: reference/mixpanel.md 7.1-7.2."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

#: Consecutive steps closer than this count in either order. That exactly 2 s does is UNCONFIRMED.
GRACE_MS = 2_000


class Occurrence(NamedTuple):
    """One event; duplicates are gone before."""

    person: str  #: canonical id, by all links known; empty: nobody
    time_ms: int
    steps: int  #: a bit for each step that it is, the lowest for the first
    segment: str | None = None  #: its value of the property that the funnel is divided by, as `funnel.text_of` has it


def attempts(
    steps: int, history: Sequence[Occurrence], window_s: int, from_ms: int = 0, to_ms: int | None = None
) -> Iterator[list[Occurrence]]:
    """Every attempt at a funnel of so many steps: what was seen at each step that was reached, the entry first.

    The history is one person's, by time, and not empty. An attempt begins at the first entry after the one before
    was left, by conversion or because its window passed, not before `from_ms` and before `to_ms`; every step takes
    an event of its own.
    """
    times = [one.time_ms for one in history]
    last_entry_ms = times[-1] if to_ms is None else to_ms - 1
    used: set[int] = set()

    def find(step: int, begin: int, latest_ms: int) -> int | None:
        bit = 1 << step
        for i in range(begin, len(history)):
            if times[i] > latest_ms:
                return None
            if history[i].steps & bit and i not in used:
                return i
        return None

    begin = bisect_left(times, from_ms)
    while (entry := find(0, begin, last_entry_ms)) is not None:
        taken = [entry]
        used.add(entry)
        latest_ms = times[entry] + window_s * 1000  # that the end itself is inside is UNCONFIRMED
        for step in range(1, steps):
            found = find(step, bisect_left(times, times[taken[-1]] - GRACE_MS), latest_ms)
            if found is None:
                break
            taken.append(found)
            used.add(found)
        yield [history[i] for i in taken]
        begin = max(taken) + 1 if len(taken) == steps else bisect_right(times, latest_ms)
