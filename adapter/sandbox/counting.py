"""Of the people who did this, what share went on to do that, and how soon? Pure.

Counts a funnel as Mixpanel does. Source: reference/mixpanel.md 7.2-7.5.
"""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from adapter.sandbox.attempts import Seen, attempts
from adapter.sandbox.funnel import Question, Step

#: Segments beyond the largest ones are told together, under this name.
MAX_SEGMENTS = 200
OTHER = "$other"


class Occurrence(NamedTuple):
    """One event; duplicates are gone before."""

    person: str  #: canonical id, by all links known; empty: nobody
    time_ms: int
    event: str
    texts: tuple[str | None, ...] = ()  #: its values of `Question.properties`, as `funnel.text_of` has them


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """How many reached a step, and how soon; times are in seconds, None at the entry and where nobody came."""

    step: Step
    count: int
    from_previous: float  #: share of those who reached the step before; 0.0 if nobody did
    from_start: float  #: share of those who entered
    average_s: float | None = None  #: from the step before
    median_s: float | None = None
    average_from_start_s: float | None = None
    median_from_start_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a funnel found."""

    question: Question
    steps: list[StepCount]  #: over all; a person counts once here even if in several segments
    segments: dict[str | None, list[StepCount]]  #: by value, most entries first; None: the property is not set


def count(question: Question, occurrences: Iterable[Occurrence]) -> Report:
    """Count a funnel. The occurrences of one person come together, in any order; others may be among them.

    A segment's value is the first one that is set along the steps that the attempt reached.
    """
    whole, segments = _Tally(question.steps), dict[str | None, _Tally]()
    for history in _histories(question, occurrences):
        mine = set()
        for number, attempt in enumerate(
            attempts(len(question.steps), history, question.window_s, question.entries_ms)
        ):
            if number == 0 or question.totals:
                whole.add(attempt)
            if question.by is None:
                if not question.totals:
                    break
                continue
            value = next((seen.segment for seen in attempt if seen.segment is not None), None)
            if question.totals or value not in mine:
                mine.add(value)
                segments.setdefault(value, _Tally(question.steps)).add(attempt)
    by_size = sorted(segments.items(), key=lambda each: (-each[1].entries, each[0] is None, each[0] or ""))
    told = {value: tally.counts() for value, tally in by_size[:MAX_SEGMENTS]}
    if by_size[MAX_SEGMENTS:]:
        rest = _Tally(question.steps)
        for _, tally in by_size[MAX_SEGMENTS:]:
            rest.merge(tally)
        told[OTHER] = rest.counts()
    return Report(question=question, steps=whole.counts(), segments=told)


def as_json(report: Report) -> dict[str, Any]:
    """A report as JSON has it."""

    def rows(counts: list[StepCount]) -> list[dict[str, Any]]:
        return [{**asdict(one), "step": str(one.step)} for one in counts]

    question = report.question
    found: dict[str, Any] = {
        "counting": "totals" if question.totals else "uniques",
        "window_s": question.window_s,
        "entries_ms": question.entries_ms,
        "steps": rows(report.steps),
    }
    if question.by is not None:
        segments = [{"value": value, "steps": rows(counts)} for value, counts in report.segments.items()]
        found |= {"by": question.by, "segments": segments}
    return found


def _histories(question: Question, occurrences: Iterable[Occurrence]) -> Iterator[list[Seen]]:
    """What each person who could have entered did of the steps, by time."""
    at = {name: number for number, name in enumerate(question.properties)}
    asked: dict[str, list[tuple[int, tuple[tuple[int, str], ...]]]] = {}
    for k, step in enumerate(question.steps):
        asked.setdefault(step.event, []).append((1 << k, tuple((at[name], value) for name, value in step.where)))
    always = {event: sum(bit for bit, where in each if not where) for event, each in asked.items()}
    filtered = {event: [one for one in each if one[1]] for event, each in asked.items()}
    by = None if question.by is None else at[question.by]
    for person, theirs in groupby(occurrences, key=itemgetter(0)):
        history, all_steps = [], 0
        for _, time_ms, event, texts in theirs:
            steps = always.get(event, 0)
            for bit, where in filtered.get(event, ()):
                if all(texts[number] == value for number, value in where):
                    steps |= bit
            if steps:
                all_steps |= steps
                history.append(Seen(time_ms, steps, None if by is None else texts[by]))
        if person and all_steps & 1:
            history.sort(key=itemgetter(0))
            yield history


class _Tally:
    """Counts of the attempts of one segment, and the milliseconds they took."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self._steps = steps
        self._reached = [0] * len(steps)
        self._from_previous: list[list[int]] = [[] for _ in steps]
        self._from_start: list[list[int]] = [[] for _ in steps]

    @property
    def entries(self) -> int:
        return self._reached[0]

    def add(self, attempt: list[Seen]) -> None:
        start = previous = attempt[0].time_ms
        for k, seen in enumerate(attempt):
            self._reached[k] += 1
            # A step taken within the grace before its predecessor took no time.
            self._from_previous[k].append(max(seen.time_ms - previous, 0))
            self._from_start[k].append(max(seen.time_ms - start, 0))
            previous = seen.time_ms

    def merge(self, other: "_Tally") -> None:
        for k in range(len(self._steps)):
            self._reached[k] += other._reached[k]
            self._from_previous[k] += other._from_previous[k]
            self._from_start[k] += other._from_start[k]

    def counts(self) -> list[StepCount]:
        found, before = [], self.entries
        for k, (step, reached) in enumerate(zip(self._steps, self._reached, strict=True)):
            times: dict[str, float] = {}
            if k and reached:
                previous, start = self._from_previous[k], self._from_start[k]
                times = {
                    "average_s": sum(previous) / reached / 1000,
                    "median_s": statistics.median(previous) / 1000,
                    "average_from_start_s": sum(start) / reached / 1000,
                    "median_from_start_s": statistics.median(start) / 1000,
                }
            shares = {"from_previous": _share(reached, before), "from_start": _share(reached, self.entries)}
            found.append(StepCount(step=step, count=reached, **shares, **times))
            before = reached
        return found


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
