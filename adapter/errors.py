"""Every error of the house, and what follows from it.

AdapterError
├── ConfigError       the settings cannot work        -> the start is refused, exit 2, every fault named
├── StoreLocked       another process writes the store -> the start is refused, exit 2
├── StoreUnavailable  the disk is full or too slow     -> 503 with Retry-After: Segment sends it again for 4 h
├── Busy              too much is in hand             -> 503 with Retry-After
├── SourceUnavailable where logs are cannot be listed -> nothing is read, exit 2
├── Damaged           a log cannot be read to its end -> all before is taken, the log is named
│   └── Unreached     this time, or it was rewritten   -> a replay ends, for the next run may read it whole
│       └── Rewritten what the plan is of is gone      -> the same, and the next run takes another plan
├── LanesLost         the lanes are another worker's  -> what is in hand is left to whoever has the lanes next
├── RequestRefused    unsigned, too large, not JSON    -> 4xx: Segment drops it, so only what can never be right
└── Refused           this message can never be sent   -> set aside with its reason, shown, never dropped

What an endpoint answers is no error but a value: see `adapter.ingestion`.
"""

import traceback
from collections.abc import Mapping, Sequence


class AdapterError(Exception):
    """The base of all."""


class ConfigError(AdapterError):
    """The settings cannot work. `faults` has a sentence for each, by variable name."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{name}: {fault}" for name, fault in faults.items()))
        self.faults = dict(faults)


class StoreLocked(AdapterError):
    """Another process has the store open for writing; one process owns a SQLite file."""


class StoreUnavailable(AdapterError):
    """The store cannot take this now; later it may."""


class Busy(AdapterError):
    """So much is in hand that no more is begun; in a moment it may be."""


class SourceUnavailable(AdapterError):
    """Where logs are kept cannot be looked at: no library for it, no credentials, no network."""


class Damaged(AdapterError):
    """What follows in this log cannot be read. The text says why."""


class Unreached(Damaged):
    """Not for what is in it: the connection broke, or it is another log by now."""


class Rewritten(Unreached):
    """What the plan of a replay was taken of is not there any more."""


class LanesLost(AdapterError):
    """What is in hand may not be sent by this process any more; it waits as before."""


class RequestRefused(AdapterError):
    """A request that can never be accepted as it is."""

    def __init__(
        self, status: int, code: str, message: str, fields: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status  #: the HTTP status to answer
        self.code = code  #: a stable word for programs
        self.fields = dict(fields or {})  #: path of a field -> what was wrong with it


class Refused(AdapterError):
    """A message that can never be sent as it is: never, not later."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason  #: a stable word, counted in the tallies
        self.detail = detail  #: a sentence for a person; names fields, carries no payload


def place_of(error: BaseException) -> str:
    """An unexpected error's class and where it was raised. Its own text may carry a payload, so that is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        f"{type(error).__name__} in {frames[-1].name}, line {frames[-1].lineno}" if frames else type(error).__name__
    )
