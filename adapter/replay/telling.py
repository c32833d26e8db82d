"""How far a replay is, while it runs, and what became of it."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import click

from adapter.replay.job import Job
from adapter.replay.journal import Journal

#: How often a terminal is told, and how often whatever else reads it.
TERMINAL_S, LINES_S = 0.5, 10.0
MAX_WIDTH = 118


class Progress:
    """Tells standard error how far it is: one line that changes on a terminal, else a line now and then."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._every_s = TERMINAL_S if self._is_terminal else LINES_S
        self._quiet = quiet
        self._told_at = time.monotonic()
        self._step = ""
        self._begun_at, self._begun_with, self._events_before = time.monotonic(), 0, 0

    def __call__(self, step: str, done: int, total: int | None, tally: Mapping[str, int]) -> None:
        now = time.monotonic()
        if step != self._step:
            self._step, self._begun_at, self._begun_with = step, now, done
            self._events_before = tally.get("events", 0)
        if self._quiet or now - self._told_at < self._every_s:
            return
        self._told_at = now
        spent_s = max(now - self._begun_at, 0.001)
        rate, events = (done - self._begun_with) / spent_s, tally.get("events", 0) - self._events_before
        parts = [f"{step}: {done:,}" + (f" of {total:,} ({done / max(total, 1):.0%})" if total is not None else "")]
        parts += [f"{rate:,.0f}/s"] + ([f"{events / spent_s:,.0f} events/s"] if events else [])
        parts += [f"{tally[name]:,} {text}" for name, text in _SHOWN.items() if tally.get(name)]
        if total is not None and rate > 0:
            parts.append(f"{_duration((total - done) / rate)} left")
        line = ", ".join(parts)
        if self._is_terminal:
            # A line that is wrapped could not be rewritten.
            width = min((os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1, MAX_WIDTH)
            line = f"\r{line[:width]}\033[K"
        click.echo(line, err=True, nl=not self._is_terminal)

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self._is_terminal and not self._quiet:
            click.echo("\r\033[K", err=True, nl=False)


_SHOWN = {
    "files": "files done",
    "events": "events",
    "event_bytes": "bytes",
    "refused": "refused",
    "broken": "broken",
    "waiting": "waiting",
}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


#: What is summed up, in its order: tally -> words. An event is counted once it was taken.
_SUMMARY = {
    "links": "links sent by themselves",
    "events": "events",
    "profiles": "profiles brought up to date",
    "counted": "updates that count",
    "broken": "lines that are no message",
    "refused": "refused",
    "erased": "left out: of people whose data somebody asked to delete",
    "deletes": "deletes: nothing of theirs was sent",
    "not_chosen": "left out: not chosen by the options",
    "counters left out": "left out: counters, without --counters",
    "nobody came": "visitors' traits and first touches of whom nobody is known",
    "expired": "visitors' traits and first touches older than HELD_DAYS at the login",
}


def summary(job: Job, journal: Journal, seconds: float) -> Iterator[str]:
    """What became of all messages, over all runs of this replay."""
    tally: Counter[str] = journal.tally()
    would = "would be " if job.dry_run else ""
    rate = f"; {tally['messages'] / seconds:,.0f} messages/s in this run" if seconds >= 1 and not job.dry_run else ""
    yield f"{tally['messages']:,} messages read{rate}"
    for name, text in _SUMMARY.items():
        if tally[name]:
            yield f"{tally[name]:>12,}  {text}"
    for name in sorted(tally):
        kind, _, what = name.partition(": ")
        if kind in ("filtered", "nothing", "event") and tally[name]:
            said = {"filtered": "filtered", "nothing": "nothing to send", "event": f"{would}sent"}[kind]
            yield f"{tally[name]:>12,}  {said}: {what}"
