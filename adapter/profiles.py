"""What a message changes on the profile of a person or a group. Pure.

An update that can be applied twice without harm goes to /engage and /groups as ENGAGE and GROUPS; one that counts
(`$add`, `$append`) goes to /engage as COUNTERS, on a line of its own where each is sent once (design 3.9).
"""

import math
from collections.abc import Callable
from typing import Any

from marshmallow import Schema

from adapter import identity, keys, persons, touch
from adapter.errors import Refused
from adapter.identity import Identity
from adapter.limits import MAX_CHARS
from adapter.links import Effect, Known
from adapter.records import Mapped, Options, Record
from schemas import compiled, mixpanel, people, segment
from schemas.segment import Message


def _dumpers(schema: Schema, *calls: str) -> dict[str, Callable[..., Record]]:
    return {call: compiled.dumper(schema, segment.STRUCTS[call]) for call in calls}


#: From here on a number is as exact without its last digits, and as an integer might be none that can be written.
EXACT = 2**53

_UPDATE = _dumpers(people.UserUpdateContext(), *segment.CALLS)
_CONTEXT = _dumpers(people.PersonContext(), "identify")

_SCHEMAS: dict[str, Schema] = {"identify": people.UserTraits(), "group": people.GroupTraits()}
_TRAITS = {call: compiled.dumper(schema, people.Spelled) for call, schema in _SCHEMAS.items()}
_NAMES = {call: people.trait_names(schema) for call, schema in _SCHEMAS.items()}
_SPELLINGS = {call: people.Spellings(schema) for call, schema in _SCHEMAS.items()}


def identify(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    """/engage: the traits of a person."""
    operations, _counting = _operations(message, options)
    if token := _push_token(message):
        operations.setdefault("$union", {}).update(token)
    if options.profile_context and (context := _CONTEXT["identify"](message)):
        operations["$set"] = {**context, **operations.get("$set", {})}
    return _of_person(message, options, operations)


def event(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    """/engage: what a track, page or screen says of the person."""
    operations: Record = {}
    if _is_counted(message, options):
        at = _seconds(keys.time_ms(message, accepted_at_ms))
        operations["$set"] = {f"{people.LAST}{message.event}": at}
    return _of_person(message, options, operations)


def group_of_person(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    """/engage: the groups a person is in."""
    groups = {key: [group_id] for key, group_id in _groups(message, options)}
    return _of_person(message, options, {"$union": groups} if groups else {})


def visitors_traits(message: Message, options: Options) -> Record:
    """What an identify or group says of a visitor, to wait for the person the visitor becomes."""
    if message.type == "group":
        return {key: [group_id] for key, group_id in _groups(message, options)}
    return {**(message.traits or {}), **_push_token(message)}


def _push_token(message: Message) -> Record:
    device = message.context and message.context.device
    tokens = people.PUSH_TOKENS.get((device.type or "").lower()) if device and device.token else None
    return {tokens: [device.token]} if tokens else {}


def release(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    """/engage: what waited with a visitor's device fills the gaps of the person the visitor became."""
    if message.n_entries is None:
        return Mapped(nothing="released_before")
    spelled = _SPELLINGS["identify"].apply(message.traits or {})
    values = {**_named("identify", spelled), **(message.touch or {})}
    # It says nothing of where and when the person was last seen.
    key = {"$token": options.token, "$distinct_id": message.user_id, "$ip": "0", "$ignore_time": True}
    effect = Effect(
        device=message.anonymous_id or "",
        user=message.user_id,
        time_ms=message.held_at_ms or 0,
        message_id=message.message_id,
        how=message.type,
        delivers=message.n_entries,
    )
    if not values:
        return Mapped(nothing="no_traits", effect=effect)
    return Mapped(records=_updates(key, {"$set_once": values}), effect=effect)


def delete(message: Message, options: Options, known: Known) -> Mapped:
    """/engage: the end of the person's profile, and of those of their devices where visitors have profiles.

    An alias is not followed: each is named by its own id (mixpanel.md 2.4). Raises Refused.
    """
    ids = [persons.user_of(message, options.denied)]
    if options.anonymous_profiles == "send":
        ids += [f"{options.form}{device}" for device in known.devices]
    ends = {"$ignore_alias": True, "$delete": "null"}
    return Mapped(records=tuple({"$token": options.token, "$distinct_id": an_id, **ends} for an_id in ids))


def group(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    """/groups: the traits of a group, under each of its keys."""
    operations, counting = _operations(message, options)
    # Whether a group takes $add is in conflict, $append it does not (mixpanel.md 2.5).
    notes = ("counter_on_a_group",) if counting else ()
    if not operations:
        return Mapped(nothing="no_traits", notes=notes)
    records: list[Record] = []
    for group_key, group_id in _groups(message, options):
        key = {"$token": options.token, "$group_key": group_key, "$group_id": group_id}
        records += _updates(key, operations)
    return Mapped(records=tuple(records), notes=notes) if records else Mapped(nothing="no_group_id", notes=notes)


def counters(message: Message, accepted_at_ms: int, options: Options) -> Mapped:
    """/engage, counting: revenue, counted events, added properties and traits."""
    if message.type == "identify":
        _repeatable, operations = _operations(message, options)
    else:
        operations = {"$add": _increments(message, options), "$append": {}}
        if options.transactions and (paid := _transaction(message, accepted_at_ms)):
            operations["$append"][people.TRANSACTIONS] = paid
    operations = {operation: value for operation, value in operations.items() if value}
    who = identity.resolve(message, options.denied, options.form)
    if not operations:
        return Mapped(nothing="nothing_counted", notes=who.notes)
    if who.user_id is None:
        raise Refused("visitors_counter", "a profile that counts needs a userId: what counts cannot wait for one")
    return Mapped(records=_updates(_key(who, message, options), operations), notes=who.notes)


def may_count(message: Message, options: Options) -> bool:
    """True if `counters` may have something to send for this message."""
    if message.type == "track":
        own = message.properties or {}
        paid = options.transactions and ("revenue" in own or message.event in mixpanel.ORDERS)
        return paid or _is_counted(message, options) or any(name in own for name in options.property_increments)
    counting = any(operation in mixpanel.COUNTING for _, operation in options.trait_operations)
    return bool(counting and message.type == "identify" and message.traits)


def may_change_the_person(message: Message, who: Identity | None, options: Options) -> bool:
    """True if `event` may have something to send for this message."""
    brought = options.first_touch and who is not None and not holds(who, options) and touch.begins(message.context)
    return brought or _is_counted(message, options)


def holds(who: Identity, options: Options) -> bool:
    """True if what comes before a person is known waits with the device, on the way of its events.

    Mixpanel never carries a visitor's profile over to the person (mixpanel.md 1.2.6).
    """
    return options.anonymous_profiles == "hold" and who.device_id is not None


def _of_person(message: Message, options: Options, operations: Record) -> Mapped:
    who = identity.resolve(message, options.denied, options.form)
    if who.user_id is None and options.anonymous_profiles == "drop":
        return Mapped(nothing="visitors_profile_dropped", notes=who.notes)
    if who.user_id is None and holds(who, options):
        # It was taken in under another setting, and is not on the way of the device's events.
        raise Refused("visitors_profile", "a visitor's profile waits with the device only if it was so taken in")
    if not holds(who, options) and (brought := touch.first_touch(message, options)):
        operations["$set_once"] = {**brought, **operations.get("$set_once", {})}
    if not operations:
        return Mapped(nothing="no_traits" if message.type in _NAMES else "no_change", notes=who.notes)
    return Mapped(records=_updates(_key(who, message, options), operations), notes=who.notes)


def _key(who: Identity, message: Message, options: Options) -> Record:
    return {"$token": options.token, "$distinct_id": who.distinct_id, **_UPDATE[message.type](message)}


def _groups(message: Message, options: Options) -> list[tuple[str, Any]]:
    """The groups that a group call is about: (group key, id). Raises Refused."""
    traits = message.traits or {}
    found = [(key, message.group_id if trait is None else traits.get(trait)) for key, trait in options.group_keys]
    for key, group_id in found:
        if type(group_id) is str and len(group_id) > MAX_CHARS:
            raise Refused("id_too_long", f"the id of the group key {key} is longer than {MAX_CHARS} characters")
    return [(key, group_id) for key, group_id in found if type(group_id) in (str, int) and group_id != ""]


def _updates(key: Record, operations: Record) -> tuple[Record, ...]:
    """One update an operation: what several in one do is said nowhere (mixpanel.md 2.4)."""
    return tuple([{**key, operation: value} for operation, value in operations.items()])


def _operations(message: Message, options: Options) -> tuple[Record, Record]:
    """What a call's traits do to a profile: (what can be repeated, what counts).

    Values are set, nulls are unset, but for what the settings say.
    """
    if not message.traits:
        return {}, {}
    names, traits = _NAMES[message.type], _SPELLINGS[message.type].apply(message.traits)
    values = _named(message.type, traits)
    unset = [names.get(name, name) for name, value in traits.items() if value is None]
    operations: Record = {"$set": values, "$set_once": {}, "$union": {}, "$unset": [], "$add": {}, "$append": {}}
    for trait, operation in options.trait_operations:
        name = names.get(trait, trait)
        value = _take(values, name)
        if value is None:
            continue
        if operation == "unset":
            unset.append(name)
        elif operation == "add":
            operations["$add"].update({name: number} if (number := _number(value)) is not None else {})
        elif operation == "union":
            operations["$union"][name] = value if isinstance(value, list) else [value]
        else:
            operations[f"${operation}"][name] = value
    operations["$unset"] = [name for name in dict.fromkeys(unset) if name not in values]
    given: Record = {operation: value for operation, value in operations.items() if value}
    counting: Record = {name: given.pop(name) for name in ("$add", "$append") if name in given}
    return given, counting


def _named(call: str, traits: Record) -> Record:
    """Traits under Mixpanel's names where they have one, else under their own; without nulls."""
    if not traits:
        return {}
    own = {name: value for name, value in traits.items() if name not in _NAMES[call] and value is not None}
    return {**_TRAITS[call](people.Spelled(traits=traits)), **own}


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


def _is_counted(message: Message, options: Options) -> bool:
    return bool(options.event_increments and (message.event or "").casefold() in options.event_increments)


def _increments(message: Message, options: Options) -> Record:
    """What a track adds on the profile: 1 for a counted event, and the numbers of the properties in the settings."""
    added: Record = {message.event or "": 1} if _is_counted(message, options) else {}
    for name in options.property_increments:
        value = (message.properties or {}).get(name)
        numbers = value if isinstance(value, dict) else {name: value}
        added.update((key, number) for key, one in numbers.items() if (number := _number(one)) is not None)
    return added


def _transaction(message: Message, accepted_at_ms: int) -> Record | None:
    """What a track says of money: an order's total stands in for its revenue; what goes back is less than zero."""
    properties = message.properties or {}
    sign = mixpanel.ORDERS.get(message.event or "")
    amount = _number(properties.get("revenue"))
    if amount is None and sign is not None:
        amount = _number(properties.get("total"))
    if not amount:
        return None
    paid: Record = {people.AT: _seconds(keys.time_ms(message, accepted_at_ms))}
    paid[people.AMOUNT] = -abs(amount) if sign == -1 else amount
    return paid | {
        name: properties[name] for name in ("order_id", "currency") if isinstance(properties.get(name), str)
    }


def _number(value: Any) -> int | float | None:
    """A number, or the one a text is; nothing else counts."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value if abs(value) < EXACT else float(value)


def _seconds(time_ms: int) -> str:
    """A time as Mixpanel's profiles have it: to the second, UTC, without saying so."""
    return str(people.date(time_ms / 1000))
