"""Whether there is room for more: on the disk, and within what may wait."""

import threading
import time
from collections.abc import Callable

from adapter.errors import StoreUnavailable
from adapter.store.engine import Database

#: How old an answer may be.
LOOK_EVERY_S = 1.0


class Room:
    """Looked at once a second at most; what is told in between is what was found then."""

    def __init__(self, database: Database, n_waiting: Callable[[], int], max_waiting: int) -> None:
        self._database = database
        self._n_waiting = n_waiting
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._lacking: str | None = None

    def check(self) -> None:
        """Raise StoreUnavailable if there is none: what waits must drain first."""
        is_old = time.monotonic() - self._looked_at > LOOK_EVERY_S
        if is_old and self._lock.acquire(blocking=False):  # who looks waits for the store, nobody for who looks
            try:
                self._lacking = self._database.lacks_room() or self._too_many()
                self._looked_at = time.monotonic()
            finally:
                self._lock.release()
        if self._lacking:
            raise StoreUnavailable(self._lacking)

    def _too_many(self) -> str | None:
        if self._max_waiting and (n_waiting := self._n_waiting()) >= self._max_waiting:
            return f"{n_waiting} entries wait, and at most {self._max_waiting} may (MAX_WAITING)"
        return None
