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
    begin = bisect_left(times, from_ms)
    while (entry := _find(history, 0, begin, last_entry_ms, used)) is not None:
        taken = _from_entry(steps, history, times, window_s, entry, used)
        yield [history[i] for i in taken]
        left_ms = times[entry] + window_s * 1000
        begin = max(taken) + 1 if len(taken) == steps else bisect_right(times, left_ms)


def furthest(
    steps: int, history: Sequence[Occurrence], window_s: int, from_ms: int = 0, to_ms: int | None = None
) -> Iterator[list[Occurrence]]:
    """With optimized re-entry, the one attempt that counts, if there is any: every first step may be its entry.

    It is the one that got furthest, of those the first to get there, and of its entries the latest.
    """
    times = [one.time_ms for one in history]
    last_entry_ms = times[-1] if to_ms is None else to_ms - 1
    entries = range(bisect_left(times, from_ms), bisect_right(times, last_entry_ms))
    tried = [
        _from_entry(steps, history, times, window_s, entry, set()) for entry in entries if history[entry].steps & 1
    ]
    if tried:
        best = max(tried, key=lambda taken: (len(taken), -times[taken[-1]], taken[0]))
        yield [history[i] for i in best]


def _from_entry(
    steps: int, history: Sequence[Occurrence], times: Sequence[int], window_s: int, entry: int, used: set[int]
) -> list[int]:
    """Where in the history stands what is taken for each step that is reached from an entry; it is used up."""
    taken = [entry]
    used.add(entry)
    latest_ms = times[entry] + window_s * 1000  # that the end itself is inside is UNCONFIRMED
    for step in range(1, steps):
        found = _find(history, step, bisect_left(times, times[taken[-1]] - GRACE_MS), latest_ms, used)
        if found is None:
            break
        taken.append(found)
        used.add(found)
    return taken


def _find(history: Sequence[Occurrence], step: int, begin: int, latest_ms: int, used: set[int]) -> int | None:
    bit = 1 << step
    for i in range(begin, len(history)):
        if history[i].time_ms > latest_ms:
            return None
        if history[i].steps & bit and i not in used:
            return i
    return None
