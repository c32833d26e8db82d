"""Of the people who did this, what share went on to do that, and how soon? Pure.

Counts a funnel as Mixpanel does. Source: reference/mixpanel.md 7.2-7.5.
"""

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from adapter.sandbox.attempts import Occurrence, attempts, furthest
from adapter.sandbox.funnel import Question, Step

#: Segments beyond the largest ones are told together, under this name.
MAX_SEGMENTS = 200
OTHER = "$other"


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
    """Count a funnel. The occurrences come by person and time; some may be of no step.

    A segment's value is the first one that is set along the steps that the attempt reached.
    """
    whole, segments = _Tally(question.steps), dict[str | None, _Tally]()
    counted = furthest if question.optimized else attempts
    for person, theirs in groupby(occurrences, key=itemgetter(0)):
        if not person:
            continue
        history, mine = list(theirs), set()
        for number, attempt in enumerate(
            counted(len(question.steps), history, question.window_s, question.from_ms, question.to_ms)
        ):
            if number == 0 or question.totals:
                whole.add(attempt)
            if question.by is None:
                if not question.totals:
                    break
                continue
            value = next((one.segment for one in attempt if one.segment is not None), None)
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
        "optimized": question.optimized,
        "window_s": question.window_s,
        "from_ms": question.from_ms,
        "to_ms": question.to_ms,
        "steps": rows(report.steps),
    }
    if question.by is not None:
        segments = [{"value": value, "steps": rows(counts)} for value, counts in report.segments.items()]
        found |= {"by": question.by, "segments": segments}
    return found


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

    def add(self, attempt: list[Occurrence]) -> None:
        start = previous = attempt[0].time_ms
        for k, one in enumerate(attempt):
            self._reached[k] += 1
            # A step taken within the grace before its predecessor took no time.
            self._from_previous[k].append(max(one.time_ms - previous, 0))
            self._from_start[k].append(max(one.time_ms - start, 0))
            previous = one.time_ms

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
