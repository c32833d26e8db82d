"""What an event takes from its context. Pure.

Most of it is alike in many messages: that is dumped and written once for all of them, and left apart from the record.
The campaign is in `touch`.
"""

import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import msgspec
import orjson

from adapter import limits
from adapter.records import NOTHING_AROUND, Around, Mapped, Record
from schemas import compiled, mixpanel, segment
from schemas.segment import Message

#: What of a context stays as it is while a visitor does things, and is alike for many of them. No numbers are among
#: it: 1 and 1.0 would be one key.
_STEADY = ("app", "device", "library", "locale", "network", "os", "timezone", "userAgent", "userAgentData")
_steady_of = attrgetter(*_STEADY)
_STEADY_NAMES = compiled.steady(mixpanel.EventContext(), _STEADY)
_around_of = compiled.dumper(mixpanel.EventContext(only=_STEADY_NAMES), segment.STRUCTS["track"])
#: What is around the messages of late, and how much is kept of it.
_AROUND: dict[tuple[Any, ...], Around] = {}
KEPT_AROUND, MAX_AROUND_BYTES = 4_096, 4_000
#: What an event takes from the rest of its context, but for its campaign, put into the properties given.
PUT: dict[str, Callable[..., Record]] = {
    call: compiled.dumper(schema(exclude=[*mixpanel.Campaign().fields, *_STEADY_NAMES]), segment.STRUCTS[call])
    for call, schema in (
        ("track", mixpanel.EventContext),
        ("page", mixpanel.PageContext),
        ("screen", mixpanel.EventContext),
    )
}
#: Where in the context stands what has a name of its own, or a setting.
_NAMED = {path for one in mixpanel.EventContext().fields.values() for path, _ in getattr(one, "sources", ())} | {
    *("context.campaign", "context.traits", "context.device.id", "context.device.token", "context.active"),
}
_CAPITAL = re.compile(r"(?<=[a-z0-9])([A-Z])")


def around(message: Message) -> Around:
    """What is around a message, from memory where it was around another one before."""
    if (context := message.context) is None:
        return NOTHING_AROUND
    key = _steady_of(context)
    found = _AROUND.get(key)
    if found is None:
        properties = _around_of(message)
        text = b"," + orjson.dumps(properties)[1:-1]
        found = Around(properties, frozenset(properties), text) if properties else NOTHING_AROUND
        if len(_AROUND) >= KEPT_AROUND:
            _AROUND.clear()
        if len(msgspec.json.encode(key)) <= MAX_AROUND_BYTES:
            _AROUND[key] = found
    return found


def add_context(mapped: Mapped, context: Record) -> Mapped:
    """Add what else is in the context to every event, flat, where there is room for it; whatever is there wins."""
    mapped = mapped.whole()
    rest, notes = _flat("context", context), mapped.notes
    for record in mapped.records:
        properties = record["properties"]
        more = [name for name in rest if name not in properties]
        room = limits.MAX_EVENT_PROPERTIES - len(properties)
        properties.update((name, rest[name]) for name in more[:room])
        notes += ("context_cut",) if len(more) > room else ()
    return msgspec.structs.replace(mapped, notes=notes, own=None)


def _flat(path: str, value: Record) -> Record:
    """`context.page.tabId` -> `context_page_tab_id`, as Segment's warehouses name it; without what has a name."""
    found: Record = {}
    for name, one in value.items():
        inner = f"{path}.{name}"
        if inner in _NAMED:
            continue
        if isinstance(one, dict):
            found.update(_flat(inner, one))
        elif one is not None:
            found[_CAPITAL.sub(r"_\1", inner).replace(".", "_").lower()] = one
    return found
