"""Which messages of the archives are meant. Pure.

What is not read has no part in the identity plan either. What is read and not sent has: a replay of one person's
events must not give them a device that is somebody else's.
"""

import msgspec

from schemas.fields import milliseconds
from schemas.segment import Message


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Empty is everything."""

    since_ms: int | None = None  #: when Segment received it, as its own folders have it; else when it happened
    until_ms: int | None = None  #: before then
    sources: frozenset[str] = frozenset()  #: projectId, or the source of Segment's layout
    types: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()  #: names of track calls
    users: frozenset[str] = frozenset()
    limit: int | None = None  #: so many of those that are sent, in the order of the files

    @property
    def is_all(self) -> bool:
        """Whether it chooses nothing, whatever the limit."""
        return msgspec.structs.replace(self, limit=None) == Choice()

    def reads(self, message: Message, source: str | None) -> bool:
        """Whether a message is looked at; `source` is that of its file."""
        if self.sources and source not in self.sources and message.project_id not in self.sources:
            return False
        if self.since_ms is None and self.until_ms is None:
            return True
        at = message.received_at or message.timestamp or message.original_timestamp or message.sent_at
        if at is None:
            return False
        ms = milliseconds(at)
        return (self.since_ms is None or ms >= self.since_ms) and (self.until_ms is None or ms < self.until_ms)

    def sends(self, message: Message) -> bool:
        """Whether a message that is looked at is to be sent."""
        return (
            (not self.types or message.type in self.types)
            and (not self.events or message.event in self.events)
            and (not self.users or message.user_id in self.users)
        )
