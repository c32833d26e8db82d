"""How fast a replay may send, and when it must wait for others: asked before each POST, whatever is in it.

--rate            so many records a second, each process its share: after a batch the next waits until it is paid for
--yield-to-live   nothing is begun while messages wait in the store, but for those that do not move
429               half as many senders, as in delivery
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from adapter.config import Settings
from adapter.ingestion import MAX_BATCH_RECORDS
from adapter.pace import Limits, Pace
from adapter.replay.job import Job

#: Batches under way of one process: while some are answered the next are mapped.
BATCHES_UNDER_WAY = 8
#: How long whoever may not send waits before it asks again.
GLANCE_S = 0.1
#: Messages that have waited so long, while none of them went, hold a replay up no more.
STUCK_S = 120.0


class Gate:
    """What all that one process sends has to pass, to whichever endpoint it goes."""

    def __init__(self) -> None:
        self.paused = threading.Event()
        self.turn = threading.Lock()
        self.opens_at = float("-inf")


class Polite(Pace):
    """The pace of delivery, behind the gate."""

    def __init__(self, job: Job, settings: Settings, gate: Gate) -> None:
        """`job` has the processes among which it is shared."""
        free = settings.delivers_to_loopback
        limits = Limits(
            senders=min(settings.senders, BATCHES_UNDER_WAY * job.processes),  # those there are, to be halved
            records_a_minute=0 if free else settings.max_records_a_minute,
            bytes_a_minute=0 if free else settings.max_bytes_a_minute,
        )
        super().__init__(limits, processes=lambda: job.processes)
        self._gate = gate
        self._record_s = job.processes / job.rate if job.rate else 0.0

    def admit(self, n_records: int, n_bytes: int) -> float:
        gate = self._gate
        with gate.turn:
            if gate.paused.is_set():
                return GLANCE_S
            now = time.monotonic()
            wait_s = max(gate.opens_at - now, 0.0) or super().admit(n_records, n_bytes)
            if not wait_s:
                gate.opens_at = now + n_records * self._record_s
            return wait_s


def batch_records(job: Job) -> int:
    """The records of a full batch: of one process no more than its share of a second."""
    return min(max(int(job.rate / job.processes), 1), MAX_BATCH_RECORDS) if job.rate else MAX_BATCH_RECORDS


class Live:
    """Whether live messages are to be waited for. Told now and then how many wait.

    A few that are stuck, such as one that fails again and again, would be waited for without end. So those do not
    count that were there all the time: as many as waited at least in the first half of the last STUCK_S, unless there
    were fewer later, which shows that they go.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun_at = clock()
        self._seen: deque[tuple[float, int]] = deque()

    def holds_up(self, n_waiting: int) -> bool:
        now = self._clock()
        self._seen.append((now, n_waiting))
        while self._seen[0][0] < now - STUCK_S:
            self._seen.popleft()
        if now - self._begun_at < STUCK_S:
            return n_waiting > 0
        before = min((n for at, n in self._seen if at < now - STUCK_S / 2), default=0)
        since = min(n for at, n in self._seen if at >= now - STUCK_S / 2)
        return n_waiting > (before if before <= since else 0)
