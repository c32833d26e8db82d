"""When it happened, the key of duplicate removal, the lane that keeps order. Pure: equal for a message sent again."""

import datetime as dt
import hashlib
import re
import uuid

from adapter import identity
from schemas.fields import milliseconds
from schemas.segment import Message

LANES = 1024
HOUR_MS = 3_600_000
_HOUR = dt.timedelta(milliseconds=HOUR_MS)
#: Fixed for ever: another value would give every message sent again another insert id.
INSERT_ID_NAMESPACE = uuid.UUID("6f1d3c0e-7a54-5c1b-9b0e-2f4f2f6a9d10")
_NAMESPACE = INSERT_ID_NAMESPACE.bytes

MAX_INSERT_ID = 36
_LEGAL_INSERT_ID = re.compile(r"[A-Za-z0-9-]+")
_UUID_VARIANT = {digit: f"{int(digit, 16) & 3 | 8:x}" for digit in "0123456789abcdef"}


def lane(key: str) -> int:
    """10 bits of blake2b of the id without its prefix. Fixed for ever: entries on disk carry it."""
    digest = hashlib.blake2b(identity.bare(key).encode(), digest_size=2).digest()
    return int.from_bytes(digest) % LANES


def time_ms(message: Message, accepted_at_ms: int) -> int:
    """When it happened; a time over an hour after its arrival, which Mixpanel refuses, becomes the arrival."""
    received, known = message.received_at, _said(message)
    if known is None:
        return accepted_at_ms
    time = milliseconds(known)
    if received is None:
        return accepted_at_ms if time > accepted_at_ms + HOUR_MS else time
    # Comparing is cheaper than subtracting, and few times are after their arrival at all.
    return milliseconds(received) if known > received and known - received > _HOUR else time


def ahead(message: Message, time_ms: int) -> tuple[str, ...]:
    """A note if `time_ms`, at which it is taken to have happened, is not what the message says, which was to come."""
    received, known = message.received_at, _said(message)
    is_ahead = known is not None and (received is None or known > received) and milliseconds(known) > time_ms
    return ("time_in_the_future",) if is_ahead else ()


def _said(message: Message) -> dt.datetime | None:
    return message.timestamp or message.original_timestamp or message.received_at or message.sent_at


def insert_id(message_id: str, *, as_segment: bool = False) -> str:
    """The messageId where Mixpanel takes it, else a UUIDv5 of it (mixpanel.md 3.3).

    `as_segment` sends every messageId of legal characters as it is, whatever its length: for projects that
    Segment's own destination has fed.
    """
    may_be_legal = as_segment or len(message_id) <= MAX_INSERT_ID
    if may_be_legal and _LEGAL_INSERT_ID.fullmatch(message_id) and not identity.is_junk(message_id):
        return message_id
    # uuid.uuid5 by hand, for it takes a third of the whole mapping; a test holds the two equal.
    digest = hashlib.sha1(_NAMESPACE + message_id.encode(), usedforsecurity=False).hexdigest()
    variant = _UUID_VARIANT[digest[16]]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"
