"""What the steps of one run of a replay share."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from adapter.config import Settings
from adapter.pace import Pace
from adapter.parcels import Rules
from adapter.replay.job import Job
from adapter.replay.journal import Journal
from adapter.replay.posting import Posting
from adapter.replay.work import limits_of

#: (what is done, how much of it, of how much if that is known, what it all came to so far)
Told = Callable[[str, int, int | None, Counter[str]], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, from the command to its end or its interruption."""

    job: Job
    settings: Settings
    rules: Rules
    address: str  #: of the endpoint
    journal: Journal
    stopping: threading.Event
    told: Told

    def posting(self, endpoint: str, n_senders: int) -> Posting:
        """Senders to an endpoint, to be closed."""
        pace = Pace(limits_of(self.settings))
        return Posting(endpoint, self.settings, self.address, pace, self.stopping, n_senders)
