"""The one way in: validate, store, and only then acknowledge.

One bad message never costs its neighbours: it is kept as refused and named in the receipt, the others are taken.
"""

import hashlib
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

import msgspec
from marshmallow import ValidationError

from adapter import keys, mapping
from adapter.errors import place_of
from adapter.records import Options
from adapter.store import INTAKE, Arrival, Refusal, Store
from schemas import raw, segment

#: Bodies of so many bytes are judged one at a time: threads would not be faster together, and each needs memory.
LARGE_BYTES = 100_000
_judging = threading.Lock()


class Invalid(ValueError):
    """A raw message that is no valid call. `fields` says what was expected, by path."""

    def __init__(self, reason: str, fields: dict[str, list[str]]) -> None:
        super().__init__("; ".join(f"{path}: {', '.join(faults)}" for path, faults in fields.items()))
        self.reason = reason
        self.fields = fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """One message of a body that was not taken."""

    index: int  #: its place in the body, from 0
    reason: str
    fields: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What became of a body. Everything in it is on disk, the rejected too."""

    accepted: int
    duplicates: int  #: acknowledged before, not stored again
    rejected: tuple[Rejection, ...]
    lanes: frozenset[tuple[str, int]] = frozenset()  #: (endpoint, lane) for which something waits now


def accept(
    raws: Sequence[bytes], store: Store, options: Options, *, unauthenticated_from: int | None = None
) -> Receipt:
    """Take raw messages in. Returns after the commit; raises StoreUnavailable if nothing was taken.

    Of messages from index `unauthenticated_from` on nobody has proved that they come from Segment: those that
    delete or join people are rejected (design 3.16).
    """
    now_ms = int(time.time() * 1000)
    arrivals, refusals, rejections = [], [], []
    with _judging if sum(map(len, raws)) > LARGE_BYTES else nullcontext():
        for index, one in enumerate(raws):
            try:
                authenticated = unauthenticated_from is None or index < unauthenticated_from
                arrivals.append(judged(one, now_ms, options, authenticated=authenticated))
            except Invalid as error:
                rejections.append(Rejection(index=index, reason=error.reason, fields=error.fields))
                refusals.append(refusal(one, now_ms, error))
    new = store.put(arrivals, refusals)
    return Receipt(
        accepted=sum(new),
        duplicates=len(new) - sum(new),
        rejected=tuple(rejections),
        lanes=frozenset(chain.from_iterable(one.lanes for one in compress(arrivals, new))),
    )


def judged(one: bytes, accepted_at_ms: int, options: Options, *, authenticated: bool) -> Arrival:
    """A raw message, ready to be stored. Raises Invalid, for a fault of ours too: it must not cost the neighbours."""
    try:
        message, content = read(one)
        if not authenticated and message.type in ("alias", "delete"):
            expected = f"expected a signature or token that covers this {message.type}"
            raise Invalid("unauthenticated", {"type": [expected]})
        return _arrival(one, message, content, accepted_at_ms, options)
    except Invalid:
        raise
    except Exception as error:
        raise Invalid("validation_failed", {"message": [place_of(error)]}) from error


def refusal(one: bytes, accepted_at_ms: int, error: Invalid) -> Refusal:
    """A raw message that is not taken in, to be kept with the reason."""
    return Refusal(endpoint=INTAKE, reason=error.reason, detail=str(error), accepted_at_ms=accepted_at_ms, body=one)


def read(one: bytes) -> tuple[segment.Message, bytes]:
    """Parse and validate one raw message; also its content hash. Raises Invalid."""
    message, parsed = validate(one)
    return message, segment.content_hash(parsed)


def validate(one: bytes) -> tuple[segment.Message, Any]:
    """Parse and validate one raw message; also what was parsed. Raises Invalid."""
    if len(one) > raw.MAX_MESSAGE_BYTES:
        raise Invalid("too_large", {"message": [f"expected at most {raw.MAX_MESSAGE_BYTES} bytes, got {len(one)}"]})
    if one[:1] == b"[":  # however much there is in it
        raise Invalid("invalid", {"message": ["expected an object, got an array"]})
    try:
        parsed = raw.parse(one)
        return segment.read(one), parsed
    except raw.Malformed as error:
        raise Invalid("malformed", {"message": [str(error)]}) from None
    except ValidationError as error:
        raise Invalid("invalid", segment.flat(error)) from None


def message_of(one: bytes) -> segment.Message:
    """The same in less time, for whoever stores nothing of it. Raises Invalid."""
    if len(one) <= raw.MAX_MESSAGE_BYTES and raw.is_plain(one):
        try:
            return segment.read(one)
        except (msgspec.DecodeError, ValidationError, ValueError):
            pass  # it is said below, in words
    return validate(one)[0]


def key(message: segment.Message) -> bytes:
    """16 bytes that are equal for a message that comes again: of its source, type and messageId (design 3.8)."""
    parts = (message.project_id or "", message.type, message.message_id)
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


def _arrival(one: bytes, message: segment.Message, content: bytes, now_ms: int, options: Options) -> Arrival:
    return Arrival(
        key=key(message),
        content=content,
        body=one,
        accepted_at_ms=now_ms,
        time_ms=keys.time_ms(message, now_ms),
        lanes=tuple((to.endpoint, to.lane) for to in mapping.destinations(message, options)),
    )
