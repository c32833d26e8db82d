"""How fast one endpoint may be sent to, and whether at all: shared by all that send to it in this process.

what is seen                    what follows
429                             half as many senders, one at least; after 30 s of calm one more; with a Retry-After
                                nothing is sent before
5 failures in a row             the circuit opens: nothing is sent for 2 s, then one probe; doubling to 60 s
a fault a person must mend      the same at once, with a minute between probes
any answer but these            the circuit is closed
2 GB or 1.8 million records     a minute (mixpanel.md 2.2.3): a tenth of it may go at once, the rest goes evenly
"""

import random
import threading
import time
from collections.abc import Callable

import msgspec

from adapter.ingestion import Outcome, Verdict
from adapter.rounds import backoff_s

OPENS_AFTER = 5
CALM_S = 30.0
#: Answers to what was sent before the senders were halved say nothing new.
HALVES_EVERY_S = 2.0
WINDOW_S = 60.0
#: Of a minute's share so much may go at once, after a rest. Whoever begins has to wait for it first: then what it
#: sends and what was sent by one that has ended, or whose share is smaller now, are within the limit together.
AT_ONCE = 0.1
#: What a clock may be wrong by.
CLOCK_S = 1e-6
#: How long to wait for another sender to end.
TURN_S = 0.05


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes together may do; zero: as much as they can."""

    senders: int = 20  #: where there are more processes each rests between its POSTs, so that it is so on average
    records_a_minute: int = 0
    bytes_a_minute: int = 0


class Pace:
    """`closed_s` before anything is prepared, `admit` before a POST, `ended` after it."""

    def __init__(
        self,
        limits: Limits,
        *,
        processes: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._limits = limits
        self._processes = processes
        self._clock = clock
        self._uniform = uniform
        self._lock = threading.Lock()
        self._under_way = 0
        self._began_at = float("-inf")  # when the last POST began
        self._rests_until = float("-inf")  # where others have their turn
        self._senders = float("inf")  # as many as 429s have left
        self._changed_at = float("-inf")  # when that was changed
        self._failures = 0
        self._open_until = float("-inf")
        self._spent_until: float | None = None  # when the limits will have made up for all that was sent
        self._taken = 0
        self._in_vain = 0
        self._took_at = float("-inf")

    @property
    def taken(self) -> int:
        """How many POSTs the endpoint has taken something of."""
        return self._taken

    @property
    def in_vain(self) -> int:
        """How many POSTs it has turned down since."""
        return self._in_vain

    def took_within(self, seconds: float) -> bool:
        """Whether the endpoint has taken something so recently."""
        return self._clock() - self._took_at < seconds

    @property
    def is_open(self) -> bool:
        """Whether the endpoint is down, as far as is known: no more than a probe at a time is sent."""
        return self._failures >= OPENS_AFTER

    @property
    def senders(self) -> int:
        """How many POSTs may be under way at once."""
        share = max(self._limits.senders // self._processes(), 1)
        return int(min(self._senders, share))

    def closed_s(self) -> float:
        """Seconds until something may be tried; 0: now."""
        with self._lock:
            if (left := self._open_until - self._clock()) > 0:
                return left
            return TURN_S if self.is_open and self._under_way else 0.0

    def admit(self, n_records: int, n_bytes: int) -> float:
        """Begin a POST, for 0; else seconds to wait before asking again."""
        with self._lock:
            now = self._clock()
            if now < self._open_until:
                return self._open_until - now
            self._calm_down(now)
            if self._under_way >= (1 if self.is_open else self.senders):
                return TURN_S
            if now < self._rests_until:
                return self._rests_until - now
            if (wait_s := self._spend(now, n_records, n_bytes)) > 0:
                return wait_s
            self._under_way += 1
            self._began_at = now
            return 0.0

    def ended(self, verdict: Verdict, n_records: int = 1, *, is_down: bool = True) -> None:
        """A POST of so many records that was admitted has its verdict; `is_down` if that it failed says something of
        the endpoint, and not of a record that is being looked for.
        """
        with self._lock:
            now = self._clock()
            self._under_way -= 1
            if (turns := self._processes() / self._limits.senders) > 1:
                self._rests_until = now + (now - self._began_at) * (turns - 1)
            if verdict.outcome is not Outcome.LATER:
                self._failures = 0
                self._in_vain += verdict.outcome is Outcome.HALVE
                if verdict.outcome is Outcome.DONE and len(verdict.refused) < n_records:
                    self._taken += 1
                    self._in_vain = 0
                    self._took_at = now
            elif verdict.too_many:
                self._calm_down(now)
                if now - self._changed_at >= HALVES_EVERY_S:
                    self._senders, self._changed_at = max(self.senders // 2, 1), now
                if verdict.wait_s is not None:
                    self._close(now + backoff_s(1, verdict.wait_s, self._uniform))
            elif is_down or verdict.fault:
                self._failures = max(self._failures + 1, OPENS_AFTER if verdict.fault else 0)
                if self.is_open:
                    since = self._failures - OPENS_AFTER + 1
                    self._close(now + backoff_s(since, verdict.wait_s, self._uniform))

    def _close(self, until: float) -> None:
        self._open_until = max(self._open_until, until)

    def _calm_down(self, now: float) -> None:
        while self._senders != float("inf") and now - self._changed_at >= CALM_S:
            self._senders += 1
            self._changed_at += CALM_S
            if self._senders > self._limits.senders:
                self._senders = float("inf")

    def _spend(self, now: float, n_records: int, n_bytes: int) -> float:
        """Take so much of what may be sent, for 0; else seconds until it may be. One POST may be above the limits."""
        limits = self._limits
        part = self._processes() * max(
            n_records / limits.records_a_minute if limits.records_a_minute else 0.0,
            n_bytes / limits.bytes_a_minute if limits.bytes_a_minute else 0.0,
        )
        if not part:
            return 0.0
        at_once_s = WINDOW_S * AT_ONCE / (1 - AT_ONCE)
        # One that is larger than what may go at once is made up for more slowly; of more than half no two fit.
        spent_s = WINDOW_S * part / (1 - max(part, AT_ONCE)) if part < 0.5 else WINDOW_S
        if self._spent_until is None:
            self._spent_until = now + at_once_s
        wait_s = self._spent_until - now - max(at_once_s - spent_s, 0.0)
        if wait_s > CLOCK_S:
            return wait_s
        self._spent_until = max(self._spent_until, now) + spent_s
        return 0.0
