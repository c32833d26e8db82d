"""How fast one endpoint may be sent to, and whether at all: shared by all that send to it in this process.

what is seen                    what follows
429                             half as many senders, one at least; after 30 s of calm one more
5 failures in a row             the circuit opens: nothing is sent for 2 s, then one probe; doubling to 60 s
a fault a person must mend      the same at once, with a minute between probes
any answer but these            the circuit is closed
2 GB or 1.8 million records     in the last minute: wait until they are a minute old (mixpanel.md 2.2.3)
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from adapter.ingestion import Outcome, Verdict
from adapter.rounds import backoff_s

OPENS_AFTER = 5
CALM_S = 30.0
#: Answers to what was sent before the senders were halved say nothing new.
HALVES_EVERY_S = 2.0
WINDOW_S = 60.0
#: How long to wait for another sender to end.
TURN_S = 0.05


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes together may do; zero: as much as they can."""

    senders: int = 20
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
        self._senders = float("inf")  # as many as 429s have left
        self._changed_at = float("-inf")  # when that was changed
        self._failures = 0
        self._open_until = float("-inf")
        self._sent: deque[tuple[float, int, int]] = deque()  # when, records, bytes
        self._taken = 0
        self._took_at = float("-inf")

    @property
    def taken(self) -> int:
        """How many POSTs the endpoint has taken something of."""
        return self._taken

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
            if (wait_s := self._window_s(now, n_records, n_bytes)) > 0:
                return wait_s
            self._under_way += 1
            self._sent.append((now, n_records, n_bytes))
            return 0.0

    def ended(self, verdict: Verdict, n_records: int = 1, *, is_down: bool = True) -> None:
        """A POST of so many records that was admitted has its verdict; `is_down` if that it failed says something of
        the endpoint, and not of a record that is being looked for.
        """
        with self._lock:
            now = self._clock()
            self._under_way -= 1
            if verdict.outcome is not Outcome.LATER:
                self._failures = 0
                if verdict.outcome is Outcome.DONE and len(verdict.refused) < n_records:
                    self._taken += 1
                    self._took_at = now
            elif verdict.too_many:
                self._calm_down(now)
                if now - self._changed_at >= HALVES_EVERY_S:
                    self._senders, self._changed_at = max(self.senders // 2, 1), now
            elif is_down or verdict.fault:
                self._failures = max(self._failures + 1, OPENS_AFTER if verdict.fault else 0)
                if self.is_open:
                    since = self._failures - OPENS_AFTER + 1
                    self._open_until = now + backoff_s(since, verdict.wait_s, self._uniform)

    def _calm_down(self, now: float) -> None:
        while self._senders != float("inf") and now - self._changed_at >= CALM_S:
            self._senders += 1
            self._changed_at += CALM_S
            if self._senders > self._limits.senders:
                self._senders = float("inf")

    def _window_s(self, now: float, n_records: int, n_bytes: int) -> float:
        """Until so much more is within the limits of a rolling minute; a POST that is above them alone may go."""
        while self._sent and self._sent[0][0] <= now - WINDOW_S:
            self._sent.popleft()
        n_records += sum(one[1] for one in self._sent)
        n_bytes += sum(one[2] for one in self._sent)
        wait_s = 0.0
        for at, records_then, bytes_then in self._sent:
            if self._is_within(n_records, n_bytes):
                break
            wait_s, n_records, n_bytes = at + WINDOW_S - now, n_records - records_then, n_bytes - bytes_then
        return wait_s

    def _is_within(self, n_records: int, n_bytes: int) -> bool:
        processes, limits = self._processes(), self._limits
        return (not limits.records_a_minute or n_records * processes <= limits.records_a_minute) and (
            not limits.bytes_a_minute or n_bytes * processes <= limits.bytes_a_minute
        )
