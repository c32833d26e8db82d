"""Whether there is room for more: on the disk, and within what may wait."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapter.errors import StoreUnavailable
from adapter.store.engine import Database, Reading

#: How old a count of what waits may be.
LOOK_EVERY_S = 1.0


class Room:
    """The disk is looked at before each commit, what waits is counted once a second at most."""

    def __init__(self, database: Database, reading: Reading, n_waiting: Callable[[], int], max_waiting: int) -> None:
        self._database = database
        self._reading = reading
        self._n_waiting = n_waiting
        self._max_waiting = max_waiting
        self._counting = threading.Lock()
        self._counted_at = float("-inf")
        self._too_many: str | None = None
        self._taking = threading.Lock()
        self._taken_bytes = 0  #: by commits that are under way

    @contextmanager
    def taken(self, n_bytes: int = 0) -> Iterator[None]:
        """For a commit of so many bytes. Raises StoreUnavailable if there is no room: what waits must drain first."""
        with self._taking:
            self._taken_bytes += n_bytes
            taken_bytes = self._taken_bytes
        try:
            self._count()
            if lacking := self._database.lacks_room(taken_bytes, self._reading.connect) or self._too_many:
                raise StoreUnavailable(lacking)
            yield
        finally:
            with self._taking:
                self._taken_bytes -= n_bytes

    def _count(self) -> None:
        is_old = self._max_waiting and time.monotonic() - self._counted_at > LOOK_EVERY_S
        if is_old and self._counting.acquire(blocking=False):  # who counts waits for the store, nobody for who counts
            try:
                n_waiting = self._n_waiting()
                is_full = n_waiting >= self._max_waiting
                why = f"{n_waiting} entries wait, and at most {self._max_waiting} may (MAX_WAITING)"
                self._too_many = why if is_full else None
                self._counted_at = time.monotonic()
            finally:
                self._counting.release()
