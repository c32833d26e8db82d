"""What one message says of ids: as the adapter sends it, and as Segment's own destination does. Pure.

Segment's destination sends whatever ids a message has (mixpanel.md 6.1.1). Of these Mixpanel refuses an event under a
junk id, and takes a user equal to its device for that device's user.
"""

import datetime as dt

import msgspec

from adapter import filters, identity, keys, limits, mapping, persons
from adapter.errors import Refused
from adapter.identity import Identity
from adapter.parcels import Rules
from adapter.records import LEGACY, ORIGINAL, SIMPLIFIED
from schemas.fields import EPOCH
from schemas.mixpanel import VERBS
from schemas.segment import Message

EVENTS = frozenset({"track", "page", "screen"})
#: What joins a device to a user if it carries both; an alias does besides, and Segment's destination leaves it out.
_JOINING = EVENTS | {"identify"}
#: After every place in the order of replay; and what has no time comes after all that has one.
NEVER, _NO_TIME = b"\xff", b"\xf0" * 8
_NOBODY = Identity(device_id=None, user_id=None)
_MICROSECOND = dt.timedelta(microseconds=1)


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a message says of ids."""

    left_out: str | None = None  #: the filter that keeps it back; then it says nothing
    refused: str | None = None  #: why the adapter sends nothing of it, or not the link
    event: bool = False  #: a track, page or screen, whatever becomes of it
    user: str | None = None  #: as the adapter sends it
    device: str | None = None
    joins: bool = False  #: the adapter joins the two
    uses: bool = False  #: it tells that the user uses the device, as what joins them does and a group call too
    alias: bool = False  #: it is an alias; then the device may turn out to be a user
    their_user: str | None = None  #: as Segment's destination sends it; without both Mixpanel refuses the event
    their_device: str | None = None
    identify: bool = False  #: it is an identify, and so a `$identify` in Original
    place: bytes = NEVER  #: in the order of replay, if either joins anything
    time_ms: int = 0  #: of the same, as the adapter sends it; or of a delete
    deletes: str | None = None  #: the user whom it is about
    notes: tuple[str, ...] = ()  #: what the adapter drops of it
    junk: tuple[tuple[str, str], ...] = ()  #: (field, id as it is compared) of each id that is none


def say(message: Message, rules: Rules, now_ms: int = 0) -> Said:
    """What a message says of ids. Only what concerns ids is judged: `adapter map` tells all. Raises nothing.

    `now_ms` is the time of a message that has none.
    """
    if why := filters.reason(message, rules.filters):
        return Said(left_out=why)
    if message.type == "delete":
        return _delete(message, rules, now_ms)
    if message.type == "alias":
        return _alias(message, rules, now_ms)
    event = message.type in EVENTS
    if event:
        name = message.event if message.type == "track" else mapping.view_name(message, rules.options.view_names)
        if name is None:
            return Said(left_out="unnamed_view")
        if name in VERBS:
            return Said(event=True, refused="identity_verb")
    denied, system = rules.options.denied, rules.options.system
    ours = _resolved(message, denied, rules.options.form)
    theirs = _resolved(message, frozenset()) if denied else ours
    their_user, their_device = _as_mixpanel_takes(message, theirs)
    joins = message.type in _JOINING and their_user is not None and their_device is not None
    links = event or system != SIMPLIFIED or rules.options.link_event is not None
    refused, who = (ours.reason, _NOBODY) if isinstance(ours, Refused) else (None, ours)
    link_event = message.type == "identify" and who.user_id is not None and links and system != LEGACY
    if _is_too_long(who, with_device=event or link_event):
        refused, who = "id_too_long", _NOBODY
    elif system == ORIGINAL and message.type == "identify" and "ids_are_equal" in who.notes:
        refused = "errSameIDs"
    uses = who.user_id is not None and who.device_id is not None
    return Said(
        refused=refused,
        event=event,
        user=who.user_id,
        device=who.device_id,
        joins=joins and links and uses,
        uses=uses,
        their_user=their_user,
        their_device=their_device,
        identify=message.type == "identify",
        place=place_of(message) if joins else NEVER,
        time_ms=keys.time_ms(message, now_ms) if joins or uses else 0,
        notes=who.notes,
        junk=_junk(message, denied) if who.notes or refused else (),
    )


def _resolved(message: Message, denied: frozenset[str], form: str = identity.DEVICE_PREFIX) -> Identity | Refused:
    try:
        return identity.resolve(message, denied, form)
    except Refused as error:
        return error


def _is_too_long(who: Identity, *, with_device: bool) -> bool:
    """True if an id of a record is longer than Mixpanel takes; a profile's has no device."""
    if len(who.user_id or "") + len(who.device_id or "") < limits.MAX_CHARS - len(identity.DEVICE_PREFIX):
        return False  # as of nearly all
    if with_device and who is not _NOBODY:
        return max(len(who.distinct_id), len(who.device_id or "")) > limits.MAX_CHARS
    return len(who.user_id or "") > limits.MAX_CHARS


def _delete(message: Message, rules: Rules, now_ms: int) -> Said:
    try:
        user = persons.user_of(message, rules.options.denied)
    except Refused as error:
        return Said(refused=error.reason, junk=_junk(message, rules.options.denied))
    if len(user) > limits.MAX_CHARS:
        return Said(refused="id_too_long")
    return Said(deletes=user, time_ms=keys.time_ms(message, now_ms))


def _as_mixpanel_takes(message: Message, who: Identity | Refused) -> tuple[str | None, str | None]:
    """(user, device) of a message that Segment's destination sends with all its ids, resolved without a deny-list."""
    if isinstance(who, Refused) or message.user_id != who.user_id:
        return None, None
    return who.user_id, who.user_id if "ids_are_equal" in who.notes else who.device_id


def _alias(message: Message, rules: Rules, now_ms: int) -> Said:
    options = rules.options
    try:
        who = identity.resolve_alias(message, options.denied, options.form)
    except Refused as error:
        return Said(refused=error.reason, junk=_junk(message, options.denied))
    if who is None:
        return Said(user=message.user_id, notes=("alias_of_equal_ids",))
    if options.system == SIMPLIFIED and options.link_event is None:
        return Said(user=who.user_id, notes=("link_events_off",))
    # A `$create_alias` goes out under the id known until now.
    sent = who if options.system == SIMPLIFIED else msgspec.structs.replace(who, user_id=None)
    if _is_too_long(sent, with_device=True):
        return Said(refused="id_too_long")
    return Said(
        user=who.user_id,
        device=who.device_id,
        joins=True,
        uses=True,
        alias=True,
        place=place_of(message),
        time_ms=keys.time_ms(message, now_ms),
    )


def _junk(message: Message, denied: frozenset[str]) -> tuple[tuple[str, str], ...]:
    other = ("previousId", message.previous_id) if message.type == "alias" else ("anonymousId", message.anonymous_id)
    fields = (other, ("userId", message.user_id))
    bare = [(field, identity.bare(an_id)) for field, an_id in fields if an_id is not None]
    return tuple((field, an_id.strip().casefold()) for field, an_id in bare if identity.is_junk(an_id, denied))


def place_of(message: Message) -> bytes:
    """Where a message stands in the order of replay: bytes that sort as (time, receivedAt, messageId) do.

    The time is no later than receivedAt; what has neither comes last (design 3.13).
    """
    received = message.received_at
    known = message.timestamp or message.original_timestamp or received or message.sent_at
    time = min(known, received) if known and received else known
    return _sortable(time) + _sortable(received) + message.message_id.encode()


def _sortable(time: dt.datetime | None) -> bytes:
    return _NO_TIME if time is None else ((time - EPOCH) // _MICROSECOND + 2**63).to_bytes(8)
