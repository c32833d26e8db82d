"""One replay: what of, and how."""

import hashlib
from dataclasses import fields, replace

import msgspec

from adapter.config import Settings
from adapter.parcels import Rules
from adapter.replay.choice import Choice
from adapter.replay.fold import MISSING


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. The first six make it the same replay when it is asked for again."""

    names: tuple[str, ...]  #: files, folders, globs, URLs
    choice: Choice = Choice()
    profiles: str = MISSING  #: off, missing or latest
    counters: bool = False  #: also what counts: for a project that has none of it yet
    links_only: bool = False
    dry_run: bool = False
    processes: int = 1
    rate: float | None = None  #: records a second, of all processes
    yield_to_live: bool = False  #: wait while messages wait in the store
    memory_mb: int = 256  #: for the plan
    now_ms: int = 0  #: when it was begun: the time of a message that has none

    def key(self, settings: Settings) -> str:
        """8 letters that are the same for the same replay to the same project, by settings that send the same."""
        chosen = {name: getattr(self, name) for name in ("names", "choice", "profiles", "counters", "links_only")}
        rules = Rules.of(settings)
        said = {
            "destination": settings.destination,  # which stands for the token
            "options": replace(rules.options, token=""),
            "filters": {one.name: getattr(rules.filters, one.name) for one in fields(rules.filters) if one.init},
            "held_days": settings.held_days,
            "dry": self.dry_run,
        }
        text = msgspec.json.encode({**chosen, **said}, order="deterministic")
        return hashlib.blake2b(text, digest_size=4).hexdigest()
