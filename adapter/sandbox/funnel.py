"""What can be asked of a funnel, and how is it written? Pure. Source: reference/mixpanel.md 7.1-7.3.

Steps in a specific order, a window, uniques or totals, one breakdown, a range of days for the entries. Not here:
steps in any order, exclusions, sessions, holding a property constant, optimized re-entry of totals.
"""

import datetime as dt
import re
from dataclasses import dataclass
from typing import Any

import orjson

DAY_S = 86_400
WINDOW_S = 7 * DAY_S
MAX_WINDOW_S = 366 * DAY_S
UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": DAY_S}


@dataclass(frozen=True)
class Step:
    """One step: an event by name and, with `where`, only if each of these properties has its value."""

    event: str
    where: tuple[tuple[str, str], ...] = ()  #: property, and its value as `text_of` has it

    def __str__(self) -> str:
        return self.event + "".join(f"[{name}={value}]" for name, value in self.where)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a funnel is asked for. ValueError if it has fewer than two steps, or a window that Mixpanel has not."""

    steps: tuple[Step, ...]
    window_s: int = WINDOW_S  #: from the entry to the last step
    totals: bool = False  #: every entry counts; else a person once (with `by`: once a segment)
    optimized: bool = False  #: any first step may be a person's entry, so that the best one counts
    by: str | None = None  #: the property that divides the entries into segments
    from_ms: int = 0  #: the earliest time of an entry
    to_ms: int | None = None  #: entries are before this; None: no end

    def __post_init__(self) -> None:
        if len(self.steps) < 2:
            raise ValueError("a funnel needs two or more steps")
        if not 0 < self.window_s <= MAX_WINDOW_S:
            raise ValueError("a window is 1 second to 366 days long")
        if self.optimized and self.totals:
            raise ValueError("optimized re-entry counts each person once, and totals count every entry")


def parse_step(text: str) -> Step:
    """Read `EVENT` or `EVENT[property=value]`, with more such brackets for more properties.

    A value may hold brackets, but not `][`. ValueError, saying what was expected.
    """
    match = re.fullmatch(r"([^\[\]]*[^\[\]\s])\s*(?:\[(.*)\])?", text.strip(), re.DOTALL)
    parts = match[2].split("][") if match and match[2] is not None else []
    filters = [re.fullmatch(r"\s*([^\[\]=]*[^\[\]=\s])\s*=(.*)", part, re.DOTALL) for part in parts]
    where = tuple((each[1], each[2]) for each in filters if each)
    if match is None or len(where) < len(parts):
        raise ValueError(f"cannot read the step {text!r}: expected EVENT or EVENT[property=value]")
    return Step(match[1], where)


def parse_window(text: str) -> int:
    """Read 90s, 30m, 12h or 7d as seconds. ValueError if it is none of them."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if match is None:
        raise ValueError(f"cannot read the window {text!r}: expected a number with s, m, h or d, such as 7d")
    return int(match[1]) * UNITS_S[match[2]]


def parse_range(start: str | None, end: str | None) -> tuple[int, int | None]:
    """Read the first and the last day of the entries, both included, UTC, as `Question` has them.

    Either may be absent. ValueError if one is no day, such as 2026-03-01, or the last is before the first.
    """
    from_ms = 0 if start is None else _day_ms(start)
    to_ms = None if end is None else _day_ms(end) + DAY_S * 1000
    if to_ms is not None and from_ms >= to_ms:
        raise ValueError(f"the range ends on {end}, before it begins on {start}")
    return from_ms, to_ms


def text_of(value: Any) -> str | None:
    """A property's value as text: a string itself, else its JSON. None for null, which is as good as absent."""
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def property_text(properties: bytes, name: str) -> str | None:
    """`text_of` one property of a JSON object; None if it is absent."""
    return text_of(orjson.loads(properties).get(name))


def _day_ms(text: str) -> int:
    try:
        day = dt.date.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"cannot read the day {text!r}: expected one such as 2026-03-01") from None
    return int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp()) * 1000
