"""One message to its records for one endpoint. Pure: same message, same options, same records.

Which property comes from where is the table in `schemas.mixpanel`; this room decides what becomes of each call:

    call          /import                  /engage                    /groups
    track         the event; an order's
                  products, an event each
    page, screen  the event, named by
                  the settings
    identify                               $set, $unset of traits
    group                                  $union of the group key    $set, $unset of traits
    alias         the link event
    delete                                 refused for now
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from marshmallow import Schema

from adapter import identity, keys
from adapter.errors import Refused
from schemas import compiled, derived, mixpanel, segment
from schemas.segment import Message

Record = dict[str, Any]

#: An order of more products, or whose products repeat more than this, stays one event: it all is in there.
MAX_PRODUCTS, MAX_PRODUCTS_BYTES = 254, 500_000
_GUARDED_PREFIX = "$failure_"
_GUARDED = mixpanel.names(mixpanel.EventOwned()) | mixpanel.NEVER_SENT


_ONE_GROUP_KEY = ((mixpanel.GROUP_KEY, None),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The settings that change what is sent."""

    token: str  #: of the Mixpanel project; profile updates carry it
    link_event: str = "Identity Linked"  #: name of the event that only links
    segment_insert_ids: bool = False  #: send messageIds as Segment's own destination does
    view_names: str = "actions"  #: how events of pages and screens are named; see `view_name`
    product_events: bool = True  #: an event for each product of an order
    source_name: str | None = None  #: said on every event, as Segment's own destination does
    event_traits: bool = False  #: send context.traits as properties of the event
    #: (group key, trait of the group that is its id; None: the groupId)
    group_keys: tuple[tuple[str, str | None], ...] = _ONE_GROUP_KEY
    trait_operations: tuple[tuple[str, str], ...] = ()  #: (trait, set_once, union or unset); others are set


class Mapped(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a message at one endpoint: records, or none for a reason."""

    records: tuple[Record, ...] = ()
    nothing: str | None = None  #: why there is nothing to send
    notes: tuple[str, ...] = ()  #: what was dropped or changed, each a word that is counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """An endpoint that a message can reach, and the lane that keeps its order there."""

    endpoint: str
    lane: int


def _dumpers(schema: Schema, *calls: str) -> dict[str, Callable[[Message], Record]]:
    return {call: compiled.dumper(schema, segment.STRUCTS[call]) for call in calls}


_put_owned = compiled.writer(mixpanel.EventOwned())
_CONTEXT = _dumpers(mixpanel.EventContext(), "track", "page", "screen")
_UPDATE = _dumpers(mixpanel.UserUpdateContext(), "identify", "group")
_TRAITS = _dumpers(mixpanel.UserTraits(), "identify") | _dumpers(mixpanel.GroupTraits(), "group")
_TRAIT_NAMES = {
    "identify": mixpanel.trait_names(mixpanel.UserTraits()),
    "group": mixpanel.trait_names(mixpanel.GroupTraits()),
}


def destinations(message: Message) -> tuple[Destination, ...]:
    """Every endpoint a message can reach, whatever the settings and what is known of its ids.

    The lane of an event is its device's, else its user's; that of an update the profile's it changes.
    """
    device = message.previous_id or message.anonymous_id
    person = message.user_id or message.anonymous_id or ""
    if message.type == "group":
        group = f"{mixpanel.GROUP_KEY}\0{message.group_id}"
        return (
            Destination(endpoint=mixpanel.GROUPS, lane=keys.lane(group)),
            Destination(endpoint=mixpanel.ENGAGE, lane=keys.lane(person)),
        )
    if message.type in ("identify", "delete"):
        return (Destination(endpoint=mixpanel.ENGAGE, lane=keys.lane(person)),)
    return (Destination(endpoint=mixpanel.IMPORT, lane=keys.lane(device or person)),)


def map_message(message: Message, endpoint: str, accepted_at_ms: int, options: Options) -> Mapped:
    """The records of a message for one of its endpoints. Raises Refused."""
    return _MAPPINGS[endpoint, message.type](message, accepted_at_ms, options)


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


def _track(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    mapped = _event(message.event or "", message, accepted_at_ms, options)
    if message.event == mixpanel.ORDER and options.product_events:
        order = mapped.records[0]["properties"]
        return Mapped(records=(*mapped.records, *_products(message, order)), notes=mapped.notes)
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


def _viewed(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    name = view_name(message, options.view_names)
    if name is None:
        return Mapped(nothing="unnamed_view")
    return _event(name, message, accepted_at_ms, options)


def _event(name: str, message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    if name in mixpanel.VERBS:
        raise Refused("identity_verb", f"{name} only links ids; the adapter sends the links itself")
    who = identity.resolve(message)
    properties = _CONTEXT[message.type](message)
    context = message.context
    if context and context.page and context.page.url and "?" in context.page.url:
        properties = {**derived.campaign(context.page.url), **properties}
    if options.event_traits and context and context.traits:
        properties = {**_callers_own(context.traits), **properties}
    if options.source_name is not None:
        properties[mixpanel.SOURCE_NAME] = options.source_name
    if options.group_keys != _ONE_GROUP_KEY and (group_id := properties.pop(mixpanel.GROUP_KEY, None)):
        properties.update((key, group_id) for key, trait in options.group_keys if trait is None)
    if message.properties:
        properties.update(_callers_own(message.properties))
    _own(properties, message, who, accepted_at_ms, options)
    return Mapped(records=({"event": name, "properties": properties},), notes=who.notes)


def _callers_own(properties: Record) -> Record:
    """What a caller may set."""
    if _GUARDED.isdisjoint(properties) and _GUARDED_PREFIX not in "\0".join(properties):
        return properties
    return {
        name: value
        for name, value in properties.items()
        if name not in _GUARDED and not name.startswith(_GUARDED_PREFIX)
    }


def _link(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    who = identity.resolve_alias(message)
    if who is None:
        return Mapped(nothing="alias_of_equal_ids")
    properties: Record = {"ip": "0"}
    _own(properties, message, who, accepted_at_ms, options)
    return Mapped(records=({"event": options.link_event, "properties": properties},))


def _own(properties: Record, message: Message, who: identity.Identity, accepted_at_ms: int, options: Options) -> None:
    """Put what only we may set into an event's properties."""
    _put_owned(
        properties,
        keys.time_ms(message, accepted_at_ms),
        who.distinct_id,
        who.device_id,
        who.user_id,
        keys.insert_id(message.message_id, as_segment=options.segment_insert_ids),
    )


def _identify(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    who = identity.resolve(message)
    operations = _operations(message, options)
    device = message.context and message.context.device
    if device and device.token and (tokens := mixpanel.PUSH_TOKENS.get((device.type or "").lower())):
        operations.setdefault("$union", {})[tokens] = [device.token]
    return _user_updates(message, who, options, operations)


def _group_of_person(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    who = identity.resolve(message)
    groups = {key: [group_id] for key, group_id in _groups(message, options)}
    return _user_updates(message, who, options, {"$union": groups} if groups else {})


def _user_updates(message: Message, who: identity.Identity, options: Options, operations: Record) -> Mapped:
    if not operations:
        return Mapped(nothing="no_traits", notes=who.notes)
    if who.user_id is None:
        # Mixpanel never carries a visitor's profile over to the person (mixpanel.md 1.2.6), so sending it loses it.
        raise Refused("anonymous_profile", "a profile needs a userId; traits of a visitor are not held yet")
    key = {"$token": options.token, "$distinct_id": who.user_id, **_UPDATE[message.type](message)}
    return Mapped(records=_updates(key, operations), notes=who.notes)


def _group(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    operations = _operations(message, options)
    if not operations:
        return Mapped(nothing="no_traits")
    records: list[Record] = []
    for group_key, group_id in _groups(message, options):
        key = {"$token": options.token, "$group_key": group_key, "$group_id": group_id}
        records += _updates(key, operations)
    return Mapped(records=tuple(records)) if records else Mapped(nothing="no_group_id")


def _groups(message: Message, options: Options) -> list[tuple[str, Any]]:
    """The groups that a group call is about: (group key, id)."""
    traits = message.traits or {}
    found = [(key, message.group_id if trait is None else traits.get(trait)) for key, trait in options.group_keys]
    return [(key, group_id) for key, group_id in found if type(group_id) in (str, int) and group_id != ""]


def _updates(key: Record, operations: Record) -> tuple[Record, ...]:
    """One update an operation: what several in one do is said nowhere (mixpanel.md 2.4)."""
    return tuple([{**key, operation: value} for operation, value in operations.items()])


def _operations(message: Message, options: Options) -> Record:
    """What a call's traits do to a profile: values are set, nulls are unset, but for what the settings say."""
    traits, names = message.traits or {}, _TRAIT_NAMES[message.type]
    values = _TRAITS[message.type](message)
    values.update((name, value) for name, value in traits.items() if name not in names and value is not None)
    unset = [names.get(name, name) for name, value in traits.items() if value is None]
    operations: Record = {"$set": values, "$set_once": {}, "$union": {}}
    for trait, operation in options.trait_operations:
        name = names.get(trait, trait)
        value = _take(values, name)
        if value is None:
            continue
        if operation == "unset":
            unset.append(name)
        elif operation == "union":
            operations["$union"][name] = value if isinstance(value, list) else [value]
        else:
            operations["$set_once"][name] = value
    operations["$unset"] = [name for name in dict.fromkeys(unset) if name not in values]
    return {operation: value for operation, value in operations.items() if value}


def _take(values: Record, path: str) -> Any:
    """Take a value out of a profile's properties, or out of an object among them, whose other parts stay."""
    if path in values:
        return values.pop(path)
    first, _, rest = path.partition(".")
    inside = values.get(first)
    if not rest or not isinstance(inside, dict):
        return None
    values[first] = dict(inside)
    return _take(values[first], rest)


def _delete(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    raise Refused("delete_not_supported", "a deletion reaches the devices of a person, which are not kept yet")


_MAPPINGS: dict[tuple[str, str], Callable[[Message, int, Options], Mapped]] = {
    (mixpanel.IMPORT, "track"): _track,
    (mixpanel.IMPORT, "page"): _viewed,
    (mixpanel.IMPORT, "screen"): _viewed,
    (mixpanel.IMPORT, "alias"): _link,
    (mixpanel.ENGAGE, "identify"): _identify,
    (mixpanel.ENGAGE, "group"): _group_of_person,
    (mixpanel.ENGAGE, "delete"): _delete,
    (mixpanel.GROUPS, "group"): _group,
}
