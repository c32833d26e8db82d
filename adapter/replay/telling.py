"""How far a replay is, while it runs, and what became of it."""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import click

from adapter.replay.job import Job
from adapter.replay.journal import Journal

#: How often a terminal is told, and how often whatever else reads it.
TERMINAL_S, LINES_S = 0.5, 10.0
#: Names of events that a dry run lists, the most frequent ones.
MAX_NAMES = 50


class Progress:
    """Tells standard error how far it is: one line that changes on a terminal, else a line now and then."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._every_s = TERMINAL_S if self._is_terminal else LINES_S
        self._quiet = quiet
        self._lock = threading.Lock()  # who watches live traffic tells as well
        self._told_at = time.monotonic()
        self._step = ""
        self._begun_at, self._begun_with, self._events_before = time.monotonic(), 0, 0
        self._share_before = 0.0

    def __call__(self, step: str, done: int, total: int | None, tally: Mapping[str, int]) -> None:
        """`tally` may have `files` of `files_there` done, and `bytes_read` of `bytes_there`."""
        with self._lock:
            now = time.monotonic()
            share = _share(done, total, tally)
            if step != self._step:
                self._step, self._begun_at, self._begun_with = step, now, done
                self._events_before, self._share_before = tally.get("events", 0), share or 0.0
            if self._quiet or now - self._told_at < self._every_s:
                return
            self._told_at = now
            spent_s = max(now - self._begun_at, 0.001)
            self._say(list(self._fields(spent_s, done, total, share, tally)))

    def _fields(
        self, spent_s: float, done: int, total: int | None, share: float | None, tally: Mapping[str, int]
    ) -> Iterator[str]:
        """What there is to say, the most important first: a narrow terminal shows as much of it as fits."""
        of = f" of {total:,}" if total is not None else ""
        yield f"{self._step}: {done:,}{of}" + (f" ({share:.0%})" if share is not None else "")
        if share is not None and share > self._share_before:
            yield f"{_duration(spent_s * (1 - share) / (share - self._share_before))} left"
        if events := tally.get("events", 0) - self._events_before:
            yield f"{events / spent_s:,.0f} events/s"
        for name in ("waiting", "refused", "broken"):
            if tally.get(name):
                yield f"{tally[name]:,} {name}"
        if "files_there" in tally:
            yield f"{tally['files']:,} of {tally['files_there']:,} files"
        if n_bytes := tally.get("bytes_read") or tally.get("event_bytes"):
            yield _size(n_bytes)
        if done > self._begun_with:
            yield f"{(done - self._begun_with) / spent_s:,.0f}/s"
        if tally.get("events"):
            yield f"{tally['events']:,} events"

    def _say(self, fields: list[str]) -> None:
        if not self._is_terminal:
            click.echo(", ".join(fields), err=True)
            return
        # A line that is wrapped could not be rewritten, and a number that is cut is another one.
        width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
        line = fields[0][:width]
        for field in fields[1:]:
            if len(line) + 2 + len(field) > width:
                break
            line = f"{line}, {field}"
        click.echo(f"\r{line}\033[K", err=True, nl=False)

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self._is_terminal and not self._quiet:
            click.echo("\r\033[K", err=True, nl=False)


def _share(done: int, total: int | None, tally: Mapping[str, int]) -> float | None:
    """How much of a step is done, from 0 to 1; None if that is not known."""
    if total is not None:
        return done / max(total, 1)
    return min(tally["bytes_read"] / tally["bytes_there"], 1.0) if tally.get("bytes_there") else None


def _size(n_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} B"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


#: What is summed up, in its order: tally -> words. An event is counted once it was taken.
_SUMMARY = {
    "links": "links sent by themselves",
    "events": "events",
    "profiles": "profiles brought up to date",
    "updates: engage": "updates of people",
    "updates: groups": "updates of groups",
    "counted": "updates that count",
    "broken": "lines that are no valid message",
    "refused": "refused",
    "erased": "left out: of people whose data somebody asked to delete",
    "deletes": "deletes: nothing of theirs was sent",
    "not_chosen": "left out: not chosen by the options",
    "counters left out": "left out: counters, without --counters",
    "counters again": "left out: what was to be counted and was refused, for it may count twice",
    "nobody came": "visitors' traits and first touches of whom nobody is known",
    "expired": "visitors' traits and first touches older than HELD_DAYS at the login",
}
_KINDS = {"event": "would be sent", "filtered": "filtered", "note": "noted", "nothing": "nothing to send"}


def summary(job: Job, journal: Journal, seconds: float, n_before: int = 0) -> Iterator[str]:
    """What became of all messages that are there, in whatever run; of a dry run, what would become of them.

    `n_before` of them were settled before this run, which took `seconds`.
    """
    tally: Counter[str] = journal.tally()
    if job.dry_run:
        yield f"{tally['messages']:,} messages read, and nothing was sent. It would be:"
    else:
        rate = f"; {(tally['messages'] - n_before) / seconds:,.0f} messages/s in this run" if seconds >= 1 else ""
        yield f"{tally['messages']:,} messages read{rate}"
    for name, text in _SUMMARY.items():
        if tally[name]:
            yield f"{tally[name]:>12,}  {text}"
        if name == "refused":
            reasons = Counter(one.reason for one in journal.kept(is_broken=False))
            yield from (f"{count:>12,}    {reason}" for reason, count in reasons.most_common())
    for kind, text in _KINDS.items():
        found = Counter({name.partition(": ")[2]: n for name, n in tally.items() if name.startswith(f"{kind}: ")})
        for name, count in found.most_common(MAX_NAMES):
            yield f"{count:>12,}  {text}: {_shown(name)}"
        if (rest := found.total() - sum(count for _, count in found.most_common(MAX_NAMES))) > 0:
            yield f"{rest:>12,}  {text}: {len(found) - MAX_NAMES:,} other names"


def _shown(name: str) -> str:
    """A name as a terminal can show it."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in name)
