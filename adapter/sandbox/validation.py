"""Which records does Mixpanel refuse, with which words, and whose event is this? Pure.

Source: reference/mixpanel.md 1.2.1 and 1.2.5 (ids), 2.2.2 (messages), 2.4-2.5 (updates), 3.1-3.5 (events).
Where a message's exact text is known it is used; the others are worded alike.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

DEVICE_PREFIX = "$device:"
VERBS = frozenset({"$identify", "$create_alias", "$merge"})
VERB_MESSAGE = "identity events are not allowed when project is using simplified identity management"

#: Never an id, in any case of letters. The 17 published ones; comparing them without case is UNCONFIRMED.
JUNK_IDS = frozenset(
    ("00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na")
    + ("undefined", "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}")
)

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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one record is refused."""

    field: str  #: e.g. properties.time; empty for an identity verb, which Mixpanel answers with a bare string
    message: str


class Ids(NamedTuple):
    """Whose event it is, before any link is followed."""

    device: str | None
    user: str | None
    distinct_id: str  #: as stored; empty: the event belongs to nobody


def ids(properties: dict[str, Any]) -> Ids:
    """The effective device, user and stored distinct_id of an event that passed `event_error`.

        $user_id  $device_id  distinct_id   device  user  stored
        U         D           any           D       U     U
        U         -           any           -       U     U
        -         D           any           D       -     $device:D
        -         -           $device:D     D       -     $device:D
        -         -           X             -       X     X
        -         -           "" or none    -       -     ""

    Exactly one prefix is stripped from a supplied $device_id; a second one makes the phantom it makes at
    Mixpanel. An empty $device_id or $user_id counts as none (UNCONFIRMED). Source: the reference, 1.2.1.
    """
    user = properties.get("$user_id") or None
    device = (properties.get("$device_id") or "").removeprefix(DEVICE_PREFIX) or None
    if user or device:
        return Ids(device, user, user or f"{DEVICE_PREFIX}{device}")
    sent = properties.get("distinct_id") or ""
    if sent.startswith(DEVICE_PREFIX):
        return Ids(sent.removeprefix(DEVICE_PREFIX), None, sent)
    return Ids(None, sent or None, sent)


def time_ms(time: int) -> int:
    """A time in seconds or in milliseconds since the epoch, as milliseconds."""
    return time if abs(time) > MILLISECONDS_ABOVE else time * 1000


def event_error(event: Any, now_ms: int) -> Failure | None:
    """Why /import refuses this event in a Simplified project; None: it does not. Takes any JSON value."""
    if not isinstance(event, dict):
        return _invalid("event", "must be an object")
    name, properties = event.get("event"), event.get("properties")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        return _invalid("event", f"must be a string of 1 to {MAX_NAME_CHARS} characters")
    if not isinstance(properties, dict):
        return _invalid("properties", "must be an object")
    if name in VERBS:
        return Failure(field="", message=VERB_MESSAGE)
    return (
        _time_error(properties.get("time"), now_ms)
        or _insert_id_error(properties.get("$insert_id"))
        or _ids_error(properties)
        or _shape_error("properties", properties, MAX_ELEMENTS)
        or _size_error("properties", properties)
    )


def update_error(update: Any, kind: Literal["engage", "groups"]) -> Failure | None:
    """Why /engage or /groups refuses this update; None: it does not. Whose $token it is, the caller knows.

    UNCONFIRMED, so refused: several operations in one update, junk ids, ids that are no strings.
    """
    if not isinstance(update, dict):
        return _invalid("update", "must be an object")
    known = USER_OPERATIONS if kind == "engage" else GROUP_OPERATIONS
    for field in ("$token", "$distinct_id") if kind == "engage" else ("$token", "$group_key", "$group_id"):
        value = update.get(field)
        if not isinstance(value, str) or not value:
            return _invalid(field, "must be a string that is not empty")
        if field in ("$distinct_id", "$group_id") and _is_junk(value.removeprefix(DEVICE_PREFIX)):
            return _invalid(field, f"must not be {value!r}")
    operation, *more = sorted(update.keys() - MODIFIERS) or ["none"]
    if more or operation not in known:
        has = ", ".join([operation, *more])[:100]
        return _invalid("update", f"must have one operation of {', '.join(known)}; has {has}")
    value, kinds = update[operation], known[operation]
    if operation == "$delete":
        return None
    if operation == "$unset":
        is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
        return None if is_names else _invalid(operation, "must be an array of property names")
    if not isinstance(value, dict):
        return _invalid(operation, "must be an object")
    for name, item in value.items():
        if not isinstance(item, kinds) or (operation == "$add" and isinstance(item, bool)):
            expected = "a number" if operation == "$add" else "a list"
            return _invalid(f"{operation}.{name}", f"must be {expected}")
    return _shape_error(operation, value, None) or _size_error(operation, value)


def _time_error(time: Any, now_ms: int) -> Failure | None:
    if not isinstance(time, int):
        return _invalid("properties.time", "must be specified as seconds since epoch")
    # Within the hour ahead it may be replaced by the present (UNCONFIRMED). Kept: a resend must be the same.
    if not EARLIEST_MS <= time_ms(time) <= now_ms + LATEST_AHEAD_MS:
        return _invalid("properties.time", "must be after 1971-01-01 and at most 1 hour in the future")
    return None


def _insert_id_error(value: Any) -> Failure | None:
    field = "properties.$insert_id"
    if value is None:
        return Failure(field=field, message="'$insert_id' is invalid: must not be missing")
    if not isinstance(value, str) or not re.fullmatch("[A-Za-z0-9-]+", value):
        message = "'$insert_id' is invalid: must only contain alphanumeric or hyphen '-' characters"
        return Failure(field=field, message=message)
    # Longer ones are documented as invalid; whether they are refused is UNCONFIRMED.
    if len(value) > 36 or _is_junk(value):
        message = "'$insert_id' is invalid: must be 1 to 36 characters and none of the refused values"
        return Failure(field=field, message=message)
    return None


def _ids_error(properties: dict[str, Any]) -> Failure | None:
    for name in ("$user_id", "$device_id", "distinct_id"):
        value = properties.get(name)
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            return _invalid(f"properties.{name}", "must be a string")
        # Whether the server refuses this prefix in $user_id, and junk outside distinct_id, is UNCONFIRMED.
        if name == "$user_id" and value.startswith(DEVICE_PREFIX):
            return _invalid(f"properties.{name}", f"must not begin with {DEVICE_PREFIX}")
        if _is_junk(value.removeprefix(DEVICE_PREFIX)):
            return _invalid(f"properties.{name}", f"must not be {value[:50]!r}")
    sent = properties.get
    if sent("distinct_id") is None and not (sent("$user_id") or sent("$device_id")):
        return _invalid("properties.distinct_id", "must not be missing")
    return None


def _shape_error(field: str, properties: dict[str, Any], max_elements: int | None) -> Failure | None:
    """Nested too deep or, in an event, too many elements. No recursion: the input may be a nesting bomb."""
    limit = max_elements or MAX_PROFILE_PROPERTIES
    if len(properties) > limit:
        return _invalid(field, f"must have at most {limit} properties")
    waiting = [(value, 1, name) for name, value in properties.items() if isinstance(value, (dict, list))]
    while waiting:
        value, depth, name = waiting.pop()
        if depth > MAX_DEPTH:
            return _invalid(f"{field}.{name}", f"must not be nested deeper than {MAX_DEPTH}")
        if max_elements and len(value) > max_elements:
            return _invalid(f"{field}.{name}", f"must have at most {max_elements} elements")
        for child in value.values() if isinstance(value, dict) else value:
            if isinstance(child, (dict, list)):  # a list of objects is one level together with them
                one_level = isinstance(value, list) and isinstance(child, dict)
                waiting.append((child, depth if one_level else depth + 1, name))
    return None


def _size_error(field: str, properties: dict[str, Any]) -> Failure | None:
    if len(orjson.dumps(properties)) >= MAX_RECORD_BYTES:
        return _invalid(field, "must be smaller than 1 MB of JSON")
    return None


def _is_junk(value: str) -> bool:
    return not value or value.lower() in JUNK_IDS


def _invalid(field: str, message: str) -> Failure:
    field = field[:100]  # a sender's property name may be a megabyte long
    return Failure(field=field, message=f"'{field}' is invalid: {message}")
