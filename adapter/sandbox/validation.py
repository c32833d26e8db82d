"""Which records does Mixpanel refuse, and with which words? Pure.

What is asked of an event's ids depends on the project's ID system; the rest does not. Source: reference/mixpanel.md
2.2.2 (messages), 2.4-2.5 (updates), 3.1-3.5 (events).
"""

import re
from typing import Any, Literal

import orjson

from adapter.sandbox import systems
from adapter.sandbox.ids import DEVICE_PREFIX, Failure, invalid, is_junk
from adapter.sandbox.systems import System

MAX_RECORD_BYTES = 1_000_000  # "1 MB" is not said to be binary, so the smaller of the two
MAX_NAME_CHARS = 255  # documented as cut there; UNCONFIRMED for /import, so refused
MAX_ELEMENTS = 254
MAX_DEPTH = 3
MAX_PROFILE_PROPERTIES = 2000
EARLIEST_MS = 365 * 86_400_000  # 1971-01-01
LATEST_AHEAD_MS = 3_600_000
#: Above it a time is milliseconds (as seconds: the year 5138). Where the server has the line is UNCONFIRMED.
MILLISECONDS_ABOVE = 100_000_000_000

#: Operation -> the types that the values of its object may have; the last two take no object.
USER_OPERATIONS: dict[str, type | tuple[type, ...]] = {
    "$set": object,
    "$set_once": object,
    "$add": (int, float),
    "$append": object,
    "$union": list,
    "$remove": object,
    "$unset": (),
    "$delete": (),
}
#: $add on a group: the documents conflict, so it is refused.
GROUP_OPERATIONS = {name: kind for name, kind in USER_OPERATIONS.items() if name not in ("$add", "$append")}
#: Keys at the root of an update that are no operation. The last three come from Mixpanel's browser library.
MODIFIERS = frozenset(
    ("$token", "$distinct_id", "$group_key", "$group_id", "$ip", "$ignore_time", "$ignore_alias", "$time")
    + ("$latitude", "$longitude", "$device_id", "$user_id", "$had_persisted_distinct_id")
)


def time_ms(time: int) -> int:
    """A time in seconds or in milliseconds since the epoch, as milliseconds."""
    return time if abs(time) > MILLISECONDS_ABOVE else time * 1000


def event_error(event: Any, now_ms: int, system: System = systems.SYSTEMS["simplified"]) -> Failure | None:
    """Why /import refuses this event in a project of this system; None: it does not. Takes any JSON value."""
    if not isinstance(event, dict):
        return invalid("event", "must be an object")
    name, properties = event.get("event"), event.get("properties")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        return invalid("event", f"must be a string of 1 to {MAX_NAME_CHARS} characters")
    if not isinstance(properties, dict):
        return invalid("properties", "must be an object")
    return (
        system.ids_error(name, properties)
        or _time_error(properties.get("time"), now_ms)
        or _insert_id_error(properties.get("$insert_id"))
        or _shape_error("properties", properties, MAX_ELEMENTS)
        or _size_error("properties", properties)
    )


def update_error(update: Any, kind: Literal["engage", "groups"]) -> Failure | None:
    """Why /engage or /groups refuses this update; None: it does not. Whose $token it is, the caller knows.

    UNCONFIRMED, so refused: several operations in one update, junk ids, ids that are no strings.
    """
    if not isinstance(update, dict):
        return invalid("update", "must be an object")
    known = USER_OPERATIONS if kind == "engage" else GROUP_OPERATIONS
    for field in ("$token", "$distinct_id") if kind == "engage" else ("$token", "$group_key", "$group_id"):
        value = update.get(field)
        if not isinstance(value, str) or not value:
            return invalid(field, "must be a string that is not empty")
        if field in ("$distinct_id", "$group_id") and is_junk(value.removeprefix(DEVICE_PREFIX)):
            return invalid(field, f"must not be {value!r}")
    operation, *more = sorted(update.keys() - MODIFIERS) or ["none"]
    if more or operation not in known:
        has = ", ".join([operation, *more])[:100]
        return invalid("update", f"must have one operation of {', '.join(known)}; has {has}")
    value, kinds = update[operation], known[operation]
    if operation == "$delete":
        return None
    if operation == "$unset":
        is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
        return None if is_names else invalid(operation, "must be an array of property names")
    if not isinstance(value, dict):
        return invalid(operation, "must be an object")
    for name, item in value.items():
        if not isinstance(item, kinds) or (operation == "$add" and isinstance(item, bool)):
            expected = "a number" if operation == "$add" else "a list"
            return invalid(f"{operation}.{name}", f"must be {expected}")
    return _shape_error(operation, value, None) or _size_error(operation, value)


def _time_error(time: Any, now_ms: int) -> Failure | None:
    if not isinstance(time, int):
        return invalid("properties.time", "must be specified as seconds since epoch")
    # Within the hour ahead it may be replaced by the present (UNCONFIRMED). Kept: a resend must be the same.
    if not EARLIEST_MS <= time_ms(time) <= now_ms + LATEST_AHEAD_MS:
        return invalid("properties.time", "must be after 1971-01-01 and at most 1 hour in the future")
    return None


def _insert_id_error(value: Any) -> Failure | None:
    field = "properties.$insert_id"
    if value is None:
        return Failure(field=field, message="'$insert_id' is invalid: must not be missing")
    if not isinstance(value, str) or not re.fullmatch("[A-Za-z0-9-]+", value):
        message = "'$insert_id' is invalid: must only contain alphanumeric or hyphen '-' characters"
        return Failure(field=field, message=message)
    # Longer ones are documented as invalid; whether they are refused is UNCONFIRMED.
    if len(value) > 36 or is_junk(value):
        message = "'$insert_id' is invalid: must be 1 to 36 characters and none of the refused values"
        return Failure(field=field, message=message)
    return None


def _shape_error(field: str, properties: dict[str, Any], max_elements: int | None) -> Failure | None:
    """Nested too deep or, in an event, too many elements. No recursion: the input may be a nesting bomb."""
    limit = max_elements or MAX_PROFILE_PROPERTIES
    if len(properties) > limit:
        return invalid(field, f"must have at most {limit} properties")
    waiting = [(value, 1, name) for name, value in properties.items() if isinstance(value, (dict, list))]
    while waiting:
        value, depth, name = waiting.pop()
        if depth > MAX_DEPTH:
            return invalid(f"{field}.{name}", f"must not be nested deeper than {MAX_DEPTH}")
        if max_elements and len(value) > max_elements:
            return invalid(f"{field}.{name}", f"must have at most {max_elements} elements")
        for child in value.values() if isinstance(value, dict) else value:
            if isinstance(child, (dict, list)):  # a list of objects is one level together with them
                one_level = isinstance(value, list) and isinstance(child, dict)
                waiting.append((child, depth if one_level else depth + 1, name))
    return None


def _size_error(field: str, properties: dict[str, Any]) -> Failure | None:
    if len(orjson.dumps(properties)) >= MAX_RECORD_BYTES:
        return invalid(field, "must be smaller than 1 MB of JSON")
    return None
