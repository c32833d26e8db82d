"""How is a funnel drawn as text? Pure."""

from collections.abc import Iterator

from adapter.sandbox.counting import Report, StepCount
from adapter.sandbox.funnel import DAY_S

BAR = 30
FULL = "█"
NOT_SET = "(not set)"


def lines(report: Report, full: str = FULL) -> Iterator[str]:
    """A table with a bar of `full` for each step; under it, where the funnel is divided, one for each segment."""
    question = report.question
    steps = [f"{number} {step}" for number, step in enumerate(question.steps, 1)]
    width = max(map(len, steps)) + 2
    who = "entries" if question.totals else "people"
    yield f"{'':<{width}}{who:>8}{'of all':>9}{'of step':>9}{'average':>10}{'median':>10}"
    for name, one in zip(steps, report.steps, strict=True):
        yield _line(name, width, one, full)
    for value, counts in report.segments.items():
        yield ""
        yield f"{question.by} = {NOT_SET if value is None else value}"
        for name, one in zip(steps, counts, strict=True):
            yield _line(name, width, one, full)


def duration(seconds: float | None) -> str:
    """Seconds in the largest unit that fits, or nothing."""
    if seconds is None:
        return ""
    for unit, length in (("d", DAY_S), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _line(name: str, width: int, one: StepCount, full: str) -> str:
    numbers = f"{one.count:>8}{one.from_start:>9.1%}{one.from_previous:>9.1%}"
    times = f"{duration(one.average_s):>10}{duration(one.median_s):>10}"
    bar = full * max(round(BAR * one.from_start), one.count > 0)
    return f"{name:<{width}}{numbers}{times}  {bar}".rstrip()
