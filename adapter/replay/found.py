"""What some messages of a log came to, beside their events: gathered, until it is written down."""

import hashlib
from collections import Counter
from collections.abc import Iterable

import msgspec

from adapter.replay.journal import Kept, Progress


class Found(msgspec.Struct):
    """What some messages came to, beside their events."""

    n_messages: int = 0
    n_bytes: int = 0
    n_events: int = 0
    n_event_bytes: int = 0
    tally: Counter[str] = msgspec.field(default_factory=Counter)
    said: dict[tuple[str, str, bytes], tuple[bytes, bytes, bytes]] = {}  #: first and last place, content
    waits: dict[tuple[str, str, bytes], tuple[int, int, bytes]] = {}
    counted: list[tuple[bytes, str, bytes, bytes]] = []
    kept: list[Kept] = []

    def add(self, other: "Found") -> None:
        self.n_messages += other.n_messages
        self.n_bytes += other.n_bytes
        self.n_events += other.n_events
        self.n_event_bytes += other.n_event_bytes
        self.tally.update(other.tally)
        for key, (first, last, content) in other.said.items():
            self.say(key, first, last, content)
        for key, (first_ms, last_ms, content) in other.waits.items():
            self.wait(key, first_ms, last_ms, content)
        self.counted += other.counted
        self.kept += other.kept

    def note(self, notes: Iterable[str]) -> None:
        """What was dropped or changed of a message."""
        for one in notes:
            self.tally[f"note: {one}"] += 1

    def say(self, key: tuple[str, str, bytes], first: bytes, last: bytes, content: bytes) -> None:
        before = self.said.get(key, (first, last, content))
        self.said[key] = (min(first, before[0]), max(last, before[1]), content)

    def wait(self, key: tuple[str, str, bytes], first_ms: int, last_ms: int, content: bytes) -> None:
        """Of two under one key the content of the earlier one waits."""
        before = self.waits.get(key)
        if before is not None:
            content = content if first_ms < before[0] else before[2]
            first_ms, last_ms = min(first_ms, before[0]), max(last_ms, before[1])
        self.waits[key] = (first_ms, last_ms, content)

    def learn(self, other: "Found") -> None:
        """Add what messages say beside their events, of some that are settled."""
        self.add(Found(said=other.said, waits=other.waits, counted=other.counted))

    @property
    def is_empty(self) -> bool:
        return not (self.n_messages or self.said or self.waits or self.counted)

    def progress(self, number: int, done: int) -> Progress:
        return Progress(
            number=number,
            done=done,
            tally={
                "messages": self.n_messages,
                "bytes": self.n_bytes,
                "events": self.n_events,
                "event_bytes": self.n_event_bytes,
                **self.tally,
            },
            said=[(*named, *row) for named, row in sorted(self.said.items())],
            waits=[(*named, *row) for named, row in sorted(self.waits.items())],
            counted=self.counted,
            kept=self.kept,
        )


def kept(one: bytes, endpoint: str, reason: str, detail: str, *, is_broken: bool = False) -> Kept:
    """What is not sent, to be kept with the reason."""
    key = digest(endpoint.encode() + b"\0" + one)
    return Kept(key=key, is_broken=is_broken, reason=reason, detail=detail, endpoint=endpoint, body=one)


def digest(content: bytes) -> bytes:
    """8 bytes that are equal for equal content."""
    return hashlib.blake2b(content, digest_size=8).digest()
