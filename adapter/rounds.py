"""Work in rounds, until it is stopped: what the threads of delivery have in common."""

import logging
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from adapter import logs
from adapter.errors import StoreUnavailable, place_of

logger = logging.getLogger(__name__)
#: Of all threads: a database that is away is away for each of them.
away = logs.Seldom(logger)

#: How long to sleep when nothing waits and nobody says that something came.
IDLE_S = 1.0
FIRST_BACKOFF_S = 2.0
MAX_BACKOFF_S = 60.0


class Rounds(ABC):
    """`work` does one round; `run` does rounds until `stopping` is set."""

    def __init__(self, name: str, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self.name = name
        self.awake = threading.Event()
        self.stopping = threading.Event()
        self._uniform = uniform

    @abstractmethod
    def work(self) -> float | None:
        """One round. Returns seconds to wait: 0 for more at once, None if nothing waits."""

    @abstractmethod
    def hang_up(self) -> None:
        """Shut the connections, whatever is under way on them."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connections; the rounds have ended."""

    def run(self) -> None:
        while not self.stopping.is_set():
            self.awake.clear()
            try:
                wait_s = self.work()
            except StoreUnavailable as error:
                away.say("away", "the store did not answer delivery", detail=str(error))
                wait_s = FIRST_BACKOFF_S
            except Exception as error:
                # A fault of ours must not end the thread: what it held still waits and is sent again.
                logger.error("delivery failed", extra={"endpoint": self.name, "error": place_of(error)})
                wait_s = MAX_BACKOFF_S
            if wait_s is None:
                self.awake.wait(IDLE_S)
            elif wait_s > 0:
                self.stopping.wait(wait_s)


def backoff_s(failures: int, wanted_s: float | None, uniform: Callable[[float, float], float]) -> float:
    """How long to wait before the next try: 2 s doubling to 60 s, what the endpoint wants, and jitter of 1-5 s
    so that many senders do not come back as one (mixpanel.md 2.2.3).
    """
    doubled = min(FIRST_BACKOFF_S * 2.0 ** (min(failures, 10) - 1), MAX_BACKOFF_S)
    return max(doubled, wanted_s or 0.0) + uniform(1.0, 5.0)
