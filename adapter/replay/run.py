"""What the steps of one run of a replay share."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from adapter.config import Settings
from adapter.parcels import Rules
from adapter.replay import polite
from adapter.replay.job import Job
from adapter.replay.journal import Journal
from adapter.replay.polite import Gate, Polite
from adapter.replay.posting import Posting

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
    gate: Gate = field(default_factory=Gate)

    def posting(self, endpoint: str, n_senders: int) -> Posting:
        """Senders to an endpoint, to be closed; no other process sends meanwhile."""
        pace = Polite(self._alone, self.settings, self.gate)
        return Posting(endpoint, self.settings, self.address, pace, self.stopping, n_senders)

    @property
    def batch_records(self) -> int:
        """The records of a full batch, when no other process sends."""
        return polite.batch_records(self._alone)

    @property
    def _alone(self) -> Job:
        return msgspec.structs.replace(self.job, processes=1)
