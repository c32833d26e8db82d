"""Of the people who did this, what share went on to do that? Pure.

A funnel counted as Mixpanel counts "uniques": a person enters once, at the first step 1, and converts in the
order of the steps within the window of that entry. Source: reference/mixpanel.md 7.1, 7.2, 7.5.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

WINDOW_S = 7 * 86_400
#: Consecutive steps closer than this count in either order. That exactly 2 s does is UNCONFIRMED.
GRACE_MS = 2_000


@dataclass(frozen=True)
class Step:
    """One step: an event by name and, with `where`, only if a property has a value."""

    event: str
    where: tuple[str, str] | None = None  #: property, and its value as text: a string itself, else its JSON

    def __str__(self) -> str:
        return self.event if self.where is None else f"{self.event}[{self.where[0]}={self.where[1]}]"


class Occurrence(NamedTuple):
    """One event of a person; duplicates are gone before."""

    person: str  #: canonical id, by all links known; empty: nobody
    time_ms: int
    event: str
    properties: bytes  #: a JSON object; parsed only where a step asks for a property


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """How many people reached a step."""

    step: Step
    count: int
    from_previous: float  #: share of those who reached the step before; 0.0 if nobody did
    from_start: float  #: share of those who entered


def parse_step(text: str) -> Step:
    """Read `EVENT` or `EVENT[property=value]`. ValueError, saying what was expected, if it is neither."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[\s*([^\[\]=\s][^\[\]=]*)=(.*)\])?", text.strip(), re.DOTALL)
    if match is None:
        raise ValueError(f"cannot read the step {text!r}: expected EVENT or EVENT[property=value]")
    event, name, value = match.groups()
    return Step(event.strip(), None if name is None else (name.strip(), value))


def uniques(
    steps: Sequence[Step],
    events: Iterable[Occurrence],
    window_s: int = WINDOW_S,
    entries_ms: tuple[int, int] | None = None,
) -> list[StepCount]:
    """How many people reached each step, in this order.

    The events may come in any order and may include others. `entries_ms` limits the entries, not the later
    steps, to a time from (included) to (excluded). ValueError if there are fewer than two steps.
    """
    if len(steps) < 2:
        raise ValueError("a funnel needs two or more steps")
    asked: dict[str, list[tuple[int, tuple[str, str] | None]]] = {}
    for k, step in enumerate(steps):
        asked.setdefault(step.event, []).append((1 << k, step.where))
    histories: dict[str, list[tuple[int, int]]] = {}
    for person, time_ms, event, properties in events:
        matches = 0
        for bit, where in asked.get(event, ()):
            if where is None or _has(properties, *where):
                matches |= bit
        if matches and person:
            histories.setdefault(person, []).append((time_ms, matches))
    reached = [0] * len(steps)
    for history in histories.values():
        history.sort()
        for k in range(_steps_reached(len(steps), history, window_s * 1000, entries_ms)):
            reached[k] += 1
    start = reached[0]
    return [
        StepCount(step=step, count=n, from_previous=_share(n, before), from_start=_share(n, start))
        for step, n, before in zip(steps, reached, [start, *reached], strict=False)
    ]


def _steps_reached(
    steps: int, history: list[tuple[int, int]], window_ms: int, entries_ms: tuple[int, int] | None
) -> int:
    """How many steps one person reached. The history: (time, a bit for each step it matches), sorted."""
    times = [time for time, _ in history]
    used: set[int] = set()  # each step needs an occurrence of its own
    earliest, end = entries_ms or (times[0], times[-1] + 1)
    latest = end - 1
    for k in range(steps):
        for i in range(bisect_left(times, earliest), len(times)):
            if times[i] > latest:
                return k
            if history[i][1] >> k & 1 and i not in used:
                break
        else:
            return k
        used.add(i)
        if k == 0:
            latest = times[i] + window_ms  # that the end itself is inside is UNCONFIRMED
        earliest = times[i] - GRACE_MS
    return steps


def _has(properties: bytes, name: str, wanted: str) -> bool:
    stored = orjson.loads(properties)
    if name not in stored:
        return False
    value = stored[name]
    return wanted == (value if isinstance(value, str) else orjson.dumps(value).decode())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
