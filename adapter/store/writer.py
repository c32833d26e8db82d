"""One thread and one connection that write for everybody: whoever waits shares the next commit.

Two connections that write are slower than one, and every SQLite before 3.51.3 can lose committed pages when two
checkpoint at once (reliability.md 2.2).
"""

import queue
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from typing import Any

import sqlalchemy as sa

from adapter.errors import StoreUnavailable
from adapter.store.engine import said

#: Segment waits 5 s for an answer; a commit that takes longer than this is answered 503 (design 3.8).
COMMIT_WAIT_S = 3.0

#: What several changes together may bring: a database's driver holds all of it, more than once.
MAX_TOGETHER_BYTES = 4_000_000

#: Takes the payloads of all who wait for this change, returns a result for each.
Change = Callable[[sa.Connection, Sequence[Any]], Sequence[Any]]


class _Job:
    def __init__(self, change: Change, payload: Any, wait_s: float, n_bytes: int) -> None:
        self.change = change
        self.payload = payload
        self.wait_s = wait_s
        self.n_bytes = n_bytes
        self.done = threading.Event()
        self.result: Any = None
        self.error: Exception | None = None
        self.abandoned = False  #: whoever waited has given up; not to be begun any more


class Writer:
    """Runs changes in the order they are handed in, several in one transaction when several wait."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, change: Change, payload: Any, *, wait_s: float = COMMIT_WAIT_S, n_bytes: int = 0) -> Any:
        """Apply a change of so many bytes durably and return its result.

        Raises StoreUnavailable if the database refuses it or the commit takes longer than `wait_s`; in the second
        case it may be committed all the same if it had begun.
        """
        job = _Job(change, payload, wait_s, n_bytes)
        self._jobs.put(job)
        if not job.done.wait(wait_s):
            job.abandoned = True
            raise StoreUnavailable(f"the store did not commit within {wait_s:g} s")
        if isinstance(job.error, sa.exc.DBAPIError):
            raise StoreUnavailable(f"the store refused to commit: {said(job.error)}") from job.error
        if job.error is not None:
            raise job.error
        return job.result

    def close(self) -> None:
        """Finish what waits and stop; a database that hangs is left to itself."""
        self._jobs.put(None)
        self._thread.join(COMMIT_WAIT_S)
        self._engine.dispose()

    def _run(self) -> None:
        waiting: deque[_Job] = deque()
        open_for_jobs = True
        with self._engine.connect() as connection:
            while open_for_jobs or waiting:
                while not waiting or not self._jobs.empty():
                    job = self._jobs.get()
                    if job is None:
                        open_for_jobs = False
                        break
                    waiting.append(job)
                # All that cannot wait share a commit; what can, such as a settlement, follows one at a time.
                urgent = [job for job in waiting if job.wait_s <= COMMIT_WAIT_S]
                patient = [job for job in waiting if job.wait_s > COMMIT_WAIT_S]
                sums = list(accumulate(job.n_bytes for job in urgent))
                together = max(bisect_right(sums, MAX_TOGETHER_BYTES), 1)
                waiting = deque(urgent[together:] + patient[1:])
                for jobs in (urgent[:together], patient[:1]):
                    self._finish(connection, [job for job in jobs if not job.abandoned])

    def _finish(self, connection: sa.Connection, jobs: list[_Job]) -> None:
        if jobs and not self._commit(connection, jobs):
            # One change spoilt the transaction of all, or another process came between, or the connection was lost:
            # each alone, so that only the guilty one fails. Every change can be made twice.
            for job in jobs:
                job.error = None
                self._commit(connection, [job])
        for job in jobs:
            job.done.set()

    def _commit(self, connection: sa.Connection, jobs: list[_Job]) -> bool:
        try:
            transaction = connection.begin()
        except sa.exc.DBAPIError as error:
            for job in jobs:
                job.error = error
            return True  # nobody's own fault: trying each alone would only take as many times as long
        try:
            with transaction:
                for change, together in groupby(jobs, key=lambda job: job.change):
                    same = list(together)
                    for job, result in zip(same, change(connection, [job.payload for job in same]), strict=True):
                        job.result = result
        except Exception as error:  # whatever it is, it belongs to the thread that handed the change in
            for job in jobs:
                job.error = error
            return False
        return True
