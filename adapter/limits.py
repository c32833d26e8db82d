"""What Mixpanel's limits make of a record, before it is sent, so that one record never spoils its batch. Pure.

What can be repaired without lying is repaired in place and noted; what cannot is refused, the field named, never its
value. Source: mixpanel.md 2.4, 2.5, 3.1, 3.2. Lengths are in characters, sizes in bytes of JSON.

    what                                    event               update
    the event's name                        1 to 255, then cut
    a property's name; of equals the first  255, then cut       255, then cut
    time                                    from 1971-01-01
    an id, a group id                       255                 255
    properties                              254                 2,000
    levels of lists and objects             3                   3
    elements of a list, keys of an object   254
    one list or object                      8 KB, then noted    256 KB
    the whole record                        below 1 MB          below 1 MB

Where the reference is silent or in conflict nothing may be lost. So long texts (Mixpanel cuts them, at 255 characters
or bytes), long names inside an object, lists of objects with more levels and, on events, lists above 8 KB go out as
they are: a strict /import names what it refuses. Above 256 KB on a profile they are refused, for /engage answers 200
whatever it drops; so are long ids, for two that are cut alike are one for good.
"""

from typing import Annotated, Any, NamedTuple

import msgspec
import orjson
from msgspec import Meta

from adapter.errors import Refused
from schemas import mixpanel

MAX_CHARS = 255  #: of a name, of an id
MAX_DEPTH = 3
MAX_RECORD_BYTES = 1_000_000  #: the first size that is too large; MB and KB are not said to be binary
EARLIEST_MS = 365 * 86_400_000  #: 1971-01-01
#: Until March 1973 a time in ms may be read as seconds, and so as the far future: where Mixpanel has the line is said
#: nowhere (3.2). Such a time goes out in seconds, which can be read in one way only.
LATEST_IN_SECONDS_MS = 100_000_000_000


class _Bounds(NamedTuple):
    properties: int
    elements: int
    property_bytes: int
    ids: tuple[str, ...]


MAX_EVENT_PROPERTIES = 254
MAX_USUAL_PROPERTIES = 200  #: whatever is around them, together they are not too many
_EVENT = _Bounds(MAX_EVENT_PROPERTIES, 254, 8_000, ("distinct_id", "$device_id", "$user_id", mixpanel.GROUP_KEY))
_PROFILE = _Bounds(2_000, MAX_RECORD_BYTES, 256_000, (mixpanel.GROUP_KEY,))

# Two looks at an event by the checks of msgspec's types, in C. One that is _Small, as most are, breaks no limit: JSON
# needs at most 6 bytes a character, so a list is below 8 KB and the event below 1 MB. Of one that is _Shaped, as with
# products or a long address, only the ids and the bytes are left to look at.
_Text = Annotated[str, Meta(max_length=MAX_CHARS)]
_Scalar = int | float | bool | None
_Some, _Few = Meta(min_length=1), Meta(max_length=_EVENT.elements)
_Short = Annotated[list[Annotated[str, Meta(max_length=64)] | _Scalar], Meta(max_length=16)]
_Object = Annotated[dict[str, str | _Scalar | Annotated[list[str | _Scalar], _Few]], _Few]
_Light = Annotated[dict[_Text, _Text | _Scalar | _Short], Meta(max_length=100)]
_Usual = Annotated[dict[_Text, str | _Scalar | _Object | Annotated[list[str | _Scalar | _Object], _Few]], _Few]
_Small = msgspec.defstruct("_Small", [("event", Annotated[_Text, _Some]), ("properties", _Light)])
_Shaped = msgspec.defstruct("_Shaped", [("event", Annotated[_Text, _Some]), ("properties", _Usual)])
# The first look again, for the caller's part alone.
_Own = msgspec.defstruct("_Own", [("own", _Light)])
# The same look at an update: a handful of properties, and so few operations that all of it is below 1 MB.
_Handful = Annotated[dict[_Text, _Text | _Scalar | _Short], Meta(max_length=20)]
_Update = Annotated[dict[str, _Text | _Scalar | _Handful], Meta(max_length=6)]
_SmallUpdate = msgspec.defstruct("_SmallUpdate", [("update", _Update)])


def event(record: dict[str, Any]) -> tuple[str, ...]:
    """Repair an event as `mapping` makes it, once; returns what was done, words to be counted. Raises Refused."""
    properties = record["properties"]
    if properties["time"] > LATEST_IN_SECONDS_MS:
        if _is(record, _Small):
            return ()
        if _is(record, _Shaped) and len(orjson.dumps(record)) <= _EVENT.property_bytes:
            _refuse_long_ids("properties.", properties, _EVENT.ids)
            return ()
    notes: tuple[str, ...] = ()
    if not record["event"]:
        raise Refused("no_event_name", "event is empty")
    if len(record["event"]) > MAX_CHARS:
        record["event"], notes = record["event"][:MAX_CHARS], ("event_name_cut",)
    if properties["time"] < EARLIEST_MS:
        raise Refused("time_before_1971", "properties.time is before 1971-01-01")
    if properties["time"] <= LATEST_IN_SECONDS_MS:
        properties["time"], notes = properties["time"] // 1000, (*notes, "time_in_seconds")
    return notes + _look(record, "properties", _EVENT)


def is_usual(record: dict[str, Any], own: dict[str, Any]) -> bool:
    """True for an event that breaks no limit, as most do: `event` would do nothing to it.

    `own` is its caller's part. All else in it, and around it, is known to be scalars under short names, and small.
    """
    properties = record["properties"]
    return (
        0 < len(record["event"]) <= MAX_CHARS
        and len(properties) <= MAX_USUAL_PROPERTIES
        and properties["time"] > LATEST_IN_SECONDS_MS
        # The ids: a user's is the distinct_id.
        and len(properties["distinct_id"]) + len(properties.get("$device_id", "")) <= MAX_CHARS
        and mixpanel.GROUP_KEY not in properties
        and (not own or _is({"own": own}, _Own))
    )


def update(record: dict[str, Any]) -> tuple[str, ...]:
    """The same for an update of /engage or /groups."""
    if _is({"update": record}, _SmallUpdate):
        return ()
    notes: tuple[str, ...] = ()
    _refuse_long_ids("", record, ("$distinct_id", "$group_id"))
    for operation, value in record.items():
        if type(value) is dict:
            notes += _look(record, operation, _PROFILE)
        elif type(value) is list:  # the names of $unset, as $set has cut them
            names = {operation: dict.fromkeys(value)}
            notes += _look(names, operation, _PROFILE)
            record[operation] = list(names[operation])
    return notes


def _is(record: dict[str, Any], kind: type) -> bool:
    try:
        msgspec.convert(record, kind)
    except msgspec.ValidationError:
        return False
    return True


def _look(record: dict[str, Any], field: str, bounds: _Bounds) -> tuple[str, ...]:
    properties: dict[str, Any] = record[field]
    notes: tuple[str, ...] = ()
    if max(map(len, properties), default=0) > MAX_CHARS:
        short: dict[str, Any] = {}
        for name, value in properties.items():
            short.setdefault(name[:MAX_CHARS], value)
        notes = ("property_name_cut", "property_name_twice")[: 1 + (len(short) < len(properties))]
        record[field] = properties = short
    if len(properties) > bounds.properties:
        raise Refused("too_many_properties", f"{field} has {len(properties)}; Mixpanel takes {bounds.properties}")
    _refuse_long_ids(f"{field}.", properties, bounds.ids)
    deep = [name for name, value in properties.items() if type(value) in (dict, list)]
    for name in deep:
        _look_into(properties[name], 1, f"{field}.{name}", bounds.elements)
    if (size := len(orjson.dumps(record))) >= MAX_RECORD_BYTES:
        raise Refused("record_too_large", f"{field} makes the record {MAX_RECORD_BYTES} bytes of JSON or more")
    limit = bounds.property_bytes
    large = [name for name in deep if size > limit and len(orjson.dumps(properties[name])) > limit]
    if large and bounds is _PROFILE:
        raise Refused("property_too_large", f"{field}.{large[0]} is above {limit} bytes of JSON")
    return (*notes, "large_property") if large else notes


def _look_into(value: Any, depth: int, path: str, max_elements: int) -> None:
    if depth > MAX_DEPTH:
        raise Refused("nested_too_deep", f"{path} is nested deeper than {MAX_DEPTH}")
    if len(value) > max_elements:
        raise Refused("too_many_elements", f"{path} has {len(value)}; Mixpanel takes {max_elements}")
    is_list = type(value) is list
    for name, child in enumerate(value) if is_list else value.items():
        if type(child) in (dict, list):
            inner = depth if is_list and type(child) is dict else depth + 1  # a list and its objects are one level
            _look_into(child, inner, f"{path}.{str(name)[:MAX_CHARS]}", max_elements)


def _refuse_long_ids(path: str, fields: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = fields.get(name)
        if value is None or (type(value) is str and len(value) <= MAX_CHARS):
            continue
        if any(type(one) is str and len(one) > MAX_CHARS for one in (value if type(value) is list else [value])):
            raise Refused("id_too_long", f"{path}{name} is longer than {MAX_CHARS} characters")
