"""One message to its records for one endpoint. Pure: same message, same options, same records.

Which property comes from where is the table in `schemas`; this room decides what becomes of each call:

    call          /import                  /engage                    /engage, counting       /groups
    track         the event; an order's    `$set_once` of what        `$append` of revenue,
                  products, an event each  brought the person         `$add` by setting
    page, screen  the event, named by      the same
                  the settings
    identify      the event that links     `$set`, `$unset` of        `$add`, `$append` of
                                           traits, the same           traits by setting
    group         nothing: what waits      `$union` of the group key                          `$set`, `$unset`
                  with the device is
                  released
    alias         the event that links
    delete                                 `$delete` of the person
"""

from collections.abc import Callable
from typing import Any

import msgspec

from adapter import identity, keys, limits, links, profiles, surroundings, touch, verbs
from adapter.errors import Refused
from adapter.identity import Identity
from adapter.links import UNKNOWN, Known
from adapter.records import NOTHING_AROUND, ONE_GROUP_KEY, SIMPLIFIED, Destination, Mapped, Options, Record
from schemas import compiled, mixpanel, segment
from schemas.segment import Message

#: An order of more products, or whose products repeat more than this, stays one event: it all is in there.
MAX_PRODUCTS, MAX_PRODUCTS_BYTES = 254, 500_000
_GUARDED_PREFIX = "$failure_"
_GUARDED = mixpanel.names(mixpanel.EventOwned()) | mixpanel.NEVER_SENT
#: Names that a caller may set, so that each is looked at once; and how many of them are kept.
_SEEN: set[str] = set()
REMEMBERED = 65_536

_put_owned = compiled.writer(mixpanel.EventOwned())
_VIEWS = frozenset({"track", "page", "screen"})


def endpoints(message: Message, options: Options) -> tuple[str, ...]:
    """Every endpoint a message may have something for, whatever is known of its ids."""
    kind = message.type
    try:
        who = identity.resolve(message, options.denied, options.form)
    except Refused:
        who = None  # it will be refused on its way
    may_hold = who is not None and profiles.holds(who, options)
    visitor = who is not None and who.user_id is None and may_hold
    may_link = kind == "identify" and who is not None and who.user_id is not None and message.anonymous_id
    found: tuple[str, ...] = ()
    if kind in _VIEWS or kind == "alias" or may_link or (may_hold and kind in ("identify", "group")):
        found += (mixpanel.IMPORT,)
    if kind == "group":
        found += (mixpanel.GROUPS,)
    update = kind == "delete" or (kind in ("identify", "group") and not visitor)
    if update or (kind in _VIEWS and profiles.may_change_the_person(message, who, options)):
        found += (mixpanel.ENGAGE,)
    if profiles.may_count(message, options):
        found += (mixpanel.COUNTERS,)
    return found


def destinations(message: Message, options: Options) -> tuple[Destination, ...]:
    """The same, each with the lane that keeps its order there.

    The lane of an event is its device's, else its user's; that of an update the profile's it changes.
    """
    person = message.user_id or message.anonymous_id or ""
    whose = {
        mixpanel.IMPORT: message.previous_id or message.anonymous_id or person,
        mixpanel.GROUPS: f"{mixpanel.GROUP_KEY}\0{message.group_id}",
    }
    return tuple(
        Destination(endpoint=endpoint, lane=keys.lane(whose.get(endpoint, person)))
        for endpoint in endpoints(message, options)
    )


def map_message(message: Message, endpoint: str, accepted_at_ms: int, options: Options) -> Mapped:
    """The records of a message for one of its endpoints, with nothing known of its device. Raises Refused."""
    return map_apart(message, endpoint, accepted_at_ms, options).whole()


def map_apart(
    message: Message, endpoint: str, accepted_at_ms: int, options: Options, known: Known = UNKNOWN
) -> Mapped:
    """The same, given what is known of its device; what is around an event is apart, and written already."""
    if endpoint == mixpanel.IMPORT:
        return _EVENTS[message.type](message, accepted_at_ms, options, known)
    if message.type == "delete":
        return profiles.delete(message, options, known)
    return _UPDATES[endpoint, message.type](message, accepted_at_ms, options)


def device_of(message: Message) -> str | None:
    """The device that a message is about, as far as what is known of it can matter."""
    device = message.previous_id if message.type == "alias" else message.anonymous_id
    if device is None and message.user_id is not None and message.user_id.startswith(identity.DEVICE_PREFIX):
        device = message.user_id
    return device and identity.bare(device)


def view_name(message: Message, how: str) -> str | None:
    """The event's name for a page or screen call; None if this way has no name for it.

        how            with name and category          without either
        actions        Viewed {name}                   "Viewed " with a blank, as Segment's destination sends it
        consolidated   Loaded a Page                   Loaded a Page
        categorized    Viewed {category} {name} Page   none without a category
        named          Viewed {name} Page              none without a name
        anything else  is a template with {name}, {category} and {type}

    Source: segment.md 6.2 (actions) and 6.7 (the classic ones).
    """
    name, category, kind = message.name or "", message.category or "", message.type.capitalize()
    if how == "actions":
        return f"Viewed {name}"
    if how == "consolidated":
        return f"Loaded a {kind}"
    if how == "categorized":
        return " ".join(["Viewed", category, *name.split(), kind]) if category else None
    if how == "named":
        return f"Viewed {name} {kind}" if name else None
    filled = how.replace("{name}", name).replace("{category}", category).replace("{type}", kind)
    return " ".join(filled.split()) or None


def _track(message: Message, accepted_at_ms: int, options: Options, known: Known) -> Mapped:
    mapped = _event(message.event or "", message, accepted_at_ms, options, known)
    if message.event == mixpanel.ORDER and options.product_events:
        mapped = mapped.whole()
        order = mapped.records[0]["properties"]
        return msgspec.structs.replace(mapped, records=(*mapped.records, *_products(message, order)), own=None)
    return mapped


def _products(message: Message, order: Record) -> list[Record]:
    """An event for each product of an order, just before it and in its order, with what holds for all of them.

    Segment's destination keeps twelve properties of a product; here all are (segment.md 6.5).
    """
    listed = (message.properties or {}).get("products")
    products = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    shared = {name: value for name, value in order.items() if name not in mixpanel.ORDER_ONLY}
    if len(products) > MAX_PRODUCTS or len(products) * len(msgspec.json.encode(shared)) > MAX_PRODUCTS_BYTES:
        return []
    return [
        {
            "event": mixpanel.PRODUCT,
            "properties": {
                **shared,
                **_callers_own(product),
                "time": order["time"] - len(products) + index,
                "$insert_id": keys.insert_id(f"{message.message_id}:product:{index}"),
            },
        }
        for index, product in enumerate(products)
    ]


def _viewed(message: Message, accepted_at_ms: int, options: Options, known: Known) -> Mapped:
    name = view_name(message, options.view_names)
    if name is None:
        return Mapped(nothing="unnamed_view")
    return _event(name, message, accepted_at_ms, options, known)


def _event(name: str, message: Message, accepted_at_ms: int, options: Options, known: Known) -> Mapped:
    if name in mixpanel.VERBS:
        raise Refused("identity_verb", f"{name} only links ids; the adapter sends the links itself")
    who = identity.resolve(message, options.denied, options.form)
    time_ms = keys.time_ms(message, accepted_at_ms)
    sent = links.place(who, known, time_ms, split=options.split)
    properties = touch.campaign(message)
    brought = _brought(message, who, known, options, properties)
    # Whatever else we write ourselves is a scalar, under a name of the table.
    is_plain = len("".join(properties)) <= limits.MAX_CHARS
    surroundings.PUT[message.type](message, properties)
    around = surroundings.around(message)
    if options.event_traits and (context := message.context) and context.traits:
        properties = {**_callers_own(context.traits), **around.properties, **properties}
        around, is_plain = NOTHING_AROUND, False
    if options.source_name is not None:
        properties[mixpanel.SOURCE_NAME] = options.source_name
    if options.group_keys != ONE_GROUP_KEY:
        properties.update(_group_ids(properties.pop(mixpanel.GROUP_KEY, None), message, options))
        is_plain = False
    own = _callers_own(message.properties) if message.properties else {}
    properties.update(own)
    if not (is_plain and around.names.isdisjoint(own)):
        properties, around, is_plain = {**around.properties, **properties}, NOTHING_AROUND, False
    _own(properties, message, sent, time_ms, options)
    effect = links.used(who, sent, known, message, time_ms, links=options.system == SIMPLIFIED)
    effect = links.waits(effect, who, message, time_ms, {}, brought)
    return Mapped(
        records=({"event": name, "properties": properties},),
        notes=who.notes + _odd(who, known) + keys.ahead(message, time_ms),
        effect=effect,
        around=around,
        own=own if is_plain else None,
    )


def _brought(
    message: Message, who: Identity, known: Known, options: Options, campaign: Record | None = None
) -> Record:
    """What brought the person, if it waits with the device: whoever is known there has been here before."""
    if not profiles.holds(who, options) or (who.user_id is not None and links.knows_link(known, who.user_id)):
        return {}
    return touch.first_touch(message, options, campaign)


def _grouped(message: Message, accepted_at_ms: int, options: Options, known: Known) -> Mapped:
    """A group of a user sends no event: it tells who uses the device, to whom goes what waits there."""
    who = identity.resolve(message, options.denied, options.form)
    if who.user_id is None:
        return _visitor(message, accepted_at_ms, options, known)
    time_ms = keys.time_ms(message, accepted_at_ms)
    sent = links.place(who, known, time_ms, split=options.split)
    effect = links.used(who, sent, known, message, time_ms, links=False)
    effect = links.waits(effect, who, message, time_ms, {}, _brought(message, who, known, options))
    return Mapped(nothing="group_links_nothing", notes=_odd(who, known), effect=effect)


def _visitor(message: Message, accepted_at_ms: int, options: Options, known: Known) -> Mapped:
    """What an identify or group says of a visitor waits with the device, in the order of its events."""
    who = identity.resolve(message, options.denied, options.form)
    brought = _brought(message, who, known, options)
    time_ms = keys.time_ms(message, accepted_at_ms)
    traits = profiles.visitors_traits(message, options)
    limits.update({"$set_once": traits})  # what is refused for its limits must not take along what waits beside it
    effect = links.waits(None, who, message, time_ms, traits, brought)
    return Mapped(nothing=None if effect else "no_traits", notes=who.notes, effect=effect)


def _odd(who: Identity, known: Known) -> tuple[str, ...]:
    """What is odd about the device."""
    together = who.user_id is not None and who.device_id is not None
    return ("device_of_another",) if together and links.is_of_another(known, who.user_id or "") else ()


def _group_ids(group_id: Any, message: Message, options: Options) -> Record:
    """The groups an event belongs to: the groupId, or the trait where the event itself or its context says it."""
    own, traits = message.properties or {}, (message.context and message.context.traits) or {}
    found = {
        key: group_id if trait is None else own.get(trait, traits.get(trait)) for key, trait in options.group_keys
    }
    return {key: value for key, value in found.items() if type(value) in (str, int, list) and value != ""}


def _callers_own(properties: Record) -> Record:
    """What a caller may set."""
    if _SEEN.issuperset(properties):
        return properties
    guarded = {name for name in properties if name in _GUARDED or name.startswith(_GUARDED_PREFIX)}
    if len(_SEEN) < REMEMBERED:
        _SEEN.update(name for name in properties if name not in guarded and len(name) <= limits.MAX_CHARS)
    return {name: value for name, value in properties.items() if name not in guarded} if guarded else properties


def _identified(message: Message, accepted_at_ms: int, options: Options, known: Known) -> Mapped:
    """The event that links, for an identify that carries both ids."""
    who = identity.resolve(message, options.denied, options.form)
    if who.user_id is None:
        return _visitor(message, accepted_at_ms, options, known)
    if who.device_id is None and "ids_are_equal" not in who.notes:
        return Mapped(nothing="nothing_to_link")  # what was dropped is counted with the update
    return _link(who, message, accepted_at_ms, options, known)


def _alias(message: Message, accepted_at_ms: int, options: Options, known: Known) -> Mapped:
    who = identity.resolve_alias(message, options.denied, options.form)
    if who is None:
        return Mapped(nothing="alias_of_equal_ids")
    return _link(who, message, accepted_at_ms, options, known)


def _link(who: Identity, message: Message, accepted_at_ms: int, options: Options, known: Known) -> Mapped:
    time_ms = keys.time_ms(message, accepted_at_ms)
    link = verbs.LINKS[options.system](who, known, options, alias=message.type == "alias")
    sent = links.place(who, known, time_ms, split=options.split)
    notes = _odd(who, known) + keys.ahead(message, time_ms)
    effect = links.used(who, sent, known, message, time_ms, links=not isinstance(link, str))
    if message.type == "identify":
        effect = links.waits(effect, who, message, time_ms, {}, _brought(message, who, known, options))
    if isinstance(link, str):
        return Mapped(nothing=link, notes=notes, effect=effect)
    name, properties = link
    if name == mixpanel.CREATE_ALIAS:
        effect = links.aliased(who, known, message, time_ms)
        sent = msgspec.structs.replace(sent, user_id=None)  # its distinct_id is the id known until now
    _own(properties, message, sent, time_ms, options)
    return Mapped(records=({"event": name, "properties": properties},), notes=notes, effect=effect)


def _own(properties: Record, message: Message, who: Identity, time_ms: int, options: Options) -> None:
    """Put what only we may set into an event's properties."""
    _put_owned(
        properties,
        time_ms,
        who.distinct_id,
        who.device_id,
        who.user_id,
        keys.insert_id(message.message_id, as_segment=options.segment_insert_ids),
    )


_EVENTS: dict[str, Callable[[Message, int, Options, Known], Mapped]] = {
    "track": _track,
    "page": _viewed,
    "screen": _viewed,
    "identify": _identified,
    "group": _grouped,
    "alias": _alias,
}
_UPDATES: dict[tuple[str, str], Callable[[Message, int, Options], Mapped]] = {
    (mixpanel.ENGAGE, "track"): profiles.event,
    (mixpanel.ENGAGE, "page"): profiles.event,
    (mixpanel.ENGAGE, "screen"): profiles.event,
    (mixpanel.ENGAGE, "identify"): profiles.identify,
    (mixpanel.ENGAGE, "group"): profiles.group_of_person,
    (mixpanel.ENGAGE, segment.HELD): profiles.release,
    (mixpanel.COUNTERS, "track"): profiles.counters,
    (mixpanel.COUNTERS, "identify"): profiles.counters,
    (mixpanel.GROUPS, "group"): profiles.group,
}
