"""What goes into the store and what comes out."""

from collections.abc import Callable

import msgspec

from adapter.links import Effect

INTAKE = "intake"  #: the endpoint of what was refused or recognised at the door, and so became no entry


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A message to be stored."""

    key: bytes  #: 16 bytes: the same for a message sent again
    content: bytes  #: 16 bytes: the same if nothing in it changed
    body: bytes  #: as received
    accepted_at_ms: int
    time_ms: int  #: when it happened
    lanes: tuple[tuple[str, int], ...]  #: (endpoint, lane) of each entry


class Put(msgspec.Struct, frozen=True, kw_only=True):
    """A message of our own, to be sent in a lane of one endpoint."""

    endpoint: str
    lane: int
    time_ms: int
    body: bytes


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A message set aside, with the reason."""

    endpoint: str
    reason: str
    detail: str
    accepted_at_ms: int
    body: bytes


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A refused message as the store keeps it, without its body."""

    number: int  #: never given to another
    endpoint: str
    reason: str
    detail: str
    accepted_at_ms: int
    refused_at_ms: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A message that waits for one endpoint."""

    endpoint: str
    message_id: int  #: order of arrival; not Segment's messageId
    accepted_at_ms: int
    time_ms: int
    body: bytes
    lane: int = 0
    attempted: bool = False  #: a POST was begun that must not be made twice
    damaged: bool = False  #: the body is not as it was put in


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """Who is to be forgotten when a delete was taken."""

    user: str
    devices: tuple[str, ...]  #: linked to the user
    message_id: str  #: Segment's, of the delete
    needles: tuple[bytes, ...]  #: one of them is in every body that `owns` may be true for
    named: frozenset[bytes]  #: keys of ids, one of which is in every such body
    keys_in: Callable[[bytes], set[bytes]]  #: the keys of the ids in a body
    owns: Callable[[bytes, int], bool]  #: whether a refused message, accepted at a time, is the person's
    device_keys: frozenset[bytes]  #: of the devices on which something of theirs may wait
    has: Callable[[bytes, int], bool]  #: whether what waits on one of these, said at a time, is the person's
    distinct_ids: tuple[str, ...]  #: whose data Mixpanel is to be asked to delete; none: it is not asked


class Settled(msgspec.Struct, kw_only=True):
    """The end of an entry."""

    entry: Entry
    state: str  #: delivered, refused, nothing, filtered or held
    reason: str = ""  #: a stable word, where the state has reasons
    detail: str = ""  #: of a refusal, a sentence
    notes: tuple[str, ...] = ()  #: what was dropped or changed on the way
    effect: Effect | None = None  #: what it adds to what is known of its device, unless it is refused
    erasure: Erasure | None = None  #: of a delete
