"""What the steps of one run of a replay share."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

import msgspec

from adapter import changes
from adapter.config import Settings
from adapter.errors import StoreUnavailable
from adapter.links import Known
from adapter.parcels import Rules
from adapter.replay import polite
from adapter.replay.job import Job
from adapter.replay.journal import Journal
from adapter.replay.polite import Gate, Polite
from adapter.replay.posting import Posting, Unsent
from adapter.store import Reader, beside

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
        if self.job.dry_run:
            return Unsent()
        pace = Polite(self._alone, self.settings, self.gate)
        return Posting(endpoint, self.settings, self.address, pace, self.stopping, n_senders)

    @property
    def tells(self) -> Settings:
        """Where links are told: a dry run has a store of its own, for what it would have told the real one."""
        if not self.job.dry_run:
            return self.settings
        return replace(self.settings, database_url=f"sqlite:///{self.journal.folder / 'told.db'}")

    @contextmanager
    def store(self) -> Iterator[Reader]:
        """What the store knows, once it was told of something.

        Raises StoreUnavailable, and to a dry run, which tells it nothing, ConfigError if it is of another project.
        """
        with ExitStack() as stack:
            told = stack.enter_context(beside(self.tells.database_url))
            if not self.job.dry_run:
                yield told
                return
            try:
                there = stack.enter_context(beside(self.settings.database_url))
                known = there.recall("destination")
            except StoreUnavailable:  # there is none yet
                yield told
                return
            if known is not None:
                changes.compare_destination(known, self.settings.destination)
            yield _Both(there, told)

    @contextmanager
    def known_store(self) -> Iterator[Reader | None]:
        """What the store knows, before it is told anything; None if there is none, or it is of no project yet."""
        with ExitStack() as stack:
            store: Reader | None = None
            with suppress(StoreUnavailable):  # there is none yet
                found = stack.enter_context(beside(self.settings.database_url))
                store = found if found.recall("destination") is not None else None
            yield store

    @property
    def batch_records(self) -> int:
        """The records of a full batch, when no other process sends."""
        return polite.batch_records(self._alone)

    @property
    def _alone(self) -> Job:
        return msgspec.structs.replace(self.job, processes=1)


class _Both(Reader):
    """What a store knows of links, and over it what it was not told."""

    def __init__(self, there: Reader, told: Reader) -> None:
        self._there, self._told = there, told

    def known(self, devices: Iterable[str]) -> dict[str, Known]:
        devices = list(devices)
        return self._there.known(devices) | self._told.known(devices)

    def links_of(self, users: Iterable[str]) -> dict[str, int]:
        users = list(users)
        return dict(Counter(self._there.links_of(users)) + Counter(self._told.links_of(users)))

    def aliases(self, users: Iterable[str]) -> set[str]:
        users = list(users)
        return self._there.aliases(users) | self._told.aliases(users)
