"""What Mixpanel's limits make of a record (mixpanel.md 3), at their edges; the sandbox judges independently."""

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter import limits, mapping
from adapter.errors import Refused
from adapter.records import Options
from adapter.sandbox.validation import event_error, update_error
from schemas import segment

NOW_MS = 1_772_366_400_000  # 2026-03-01T12:00:00Z
NOTES = {"event_name_cut", "time_in_seconds", "property_name_cut", "property_name_twice", "large_property"}


def an_event(properties: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    own = {"time": NOW_MS, "distinct_id": "u", "$device_id": "d", "$user_id": "u", "$insert_id": "i-1"}
    return {"event": "Signed Up", "properties": {**(properties or {}), **own}} | fields


def an_update(values: Any = None, operation: str = "$set", **fields: Any) -> dict[str, Any]:
    return {"$token": "t", "$distinct_id": "u", "$ip": "0", operation: values or {}} | fields


def with_id(name: str, value: Any) -> dict[str, Any]:
    event = an_event()
    event["properties"][name] = value
    return event


def at(time_ms: int) -> dict[str, Any]:
    return with_id("time", time_ms)


def numbered(n: int) -> dict[str, int]:
    return {f"p{i}": i for i in range(n)}


def nested(kinds: str) -> Any:
    """A value of lists and objects inside each other: "lo" is a list with an object in it."""
    value: Any = 1
    for kind in reversed(kinds):
        value = [value] if kind == "l" else {kind: value}
    return value


def text_of_bytes(n: int, character: str = "x") -> str:
    """A text that needs so many bytes as JSON, quotes included."""
    a_character = len(orjson.dumps(character)) - 2
    count, rest = divmod(n - 2, a_character)
    return character * count + "x" * rest


def event_of_bytes(n: int, **properties: Any) -> dict[str, Any]:
    empty = len(orjson.dumps(an_event({**properties, "text": ""})))
    return an_event({**properties, "text": "x" * (n - empty)})


def update_of_bytes(n: int) -> dict[str, Any]:
    empty = len(orjson.dumps(an_update({"text": ""})))
    return an_update({"text": "x" * (n - empty)})


WITHIN_EVENTS = {
    "a name of 1": an_event(event="x"),
    "a name of 255": an_event(event="é" * 255),
    "a name with blanks": an_event(event=" Viewed  "),
    "a property's name of 255": an_event({"é" * 255: 1}),
    "a long name inside an object": an_event({"cart": {"x" * 300: 1}}),
    "254 properties": an_event(numbered(249)),
    "a list of 254": an_event({"list": [1] * 254}),
    "an object of 254": an_event({"object": numbered(254)}),
    "an inner list of 254": an_event({"cart": {"items": [1] * 254}}),
    "3 levels of objects": an_event({"a": nested("abc")}),
    "3 levels of lists": an_event({"a": nested("lll")}),
    "3 levels of lists of objects": an_event({"a": nested("lalblc")}),
    "8 KB in a list": an_event({"list": [text_of_bytes(7_998)]}),
    "8 KB in a list of control characters": an_event({"list": [text_of_bytes(7_998, "\0")]}),
    "a text above 8 KB": an_event({"text": "x" * 9_000}),
    "below 1 MB": event_of_bytes(999_999),
    "below 1 MB of control characters": an_event({"text": text_of_bytes(999_700, "\0")}),
    "ids of 255": an_event() | {"properties": an_event()["properties"] | {"$device_id": "d" * 255}},
    "group ids of 255": with_id("$group_id", ["g" * 255, "h"]),
    "milliseconds that are clear": at(100_000_000_001),
    "no text": an_event({"": ""}),
}

REFUSED_EVENTS = {
    "no name": (an_event(event=""), "no_event_name", "event "),
    "255 properties": (an_event(numbered(250)), "too_many_properties", "properties "),
    "a list of 255": (an_event({"list": [1] * 255}), "too_many_elements", "properties.list "),
    "an object of 255": (an_event({"object": numbered(255)}), "too_many_elements", "properties.object "),
    "an inner list of 255": (
        an_event({"cart": {"items": [1] * 255}}),
        "too_many_elements",
        "properties.cart.items ",
    ),
    "an inner object of 255": (
        an_event({"cart": [1, {"item": numbered(255)}]}),
        "too_many_elements",
        "properties.cart.1.item ",
    ),
    "4 levels of objects": (an_event({"a": nested("bcde")}), "nested_too_deep", "properties.a.b.c.d "),
    "4 levels of lists": (an_event({"a": nested("llll")}), "nested_too_deep", "properties.a.0.0.0 "),
    "4 levels with lists of objects": (
        an_event({"a": nested("lblcldle")}),
        "nested_too_deep",
        "properties.a.0.b.0.c.0.d ",
    ),
    "a bomb": (an_event({"a": nested("l" * 2_000)}), "nested_too_deep", "properties.a.0.0.0 "),
    "1 MB": (event_of_bytes(1_000_000), "record_too_large", "properties "),
    "1 MB with a list": (event_of_bytes(1_000_000, list=[1]), "record_too_large", "properties "),
    "1 MB of control characters": (an_event({"text": "\0" * 170_000}), "record_too_large", "properties "),
    "1970": (at(365 * 86_400_000 - 1), "time_before_1971", "properties.time "),
    "before the epoch": (at(-1), "time_before_1971", "properties.time "),
    **{
        f"a {name} of 256": (with_id(name, "x" * 256), "id_too_long", f"properties.{name} ")
        for name in ("distinct_id", "$device_id", "$user_id", "$group_id")
    },
    "a group id of 256 in a list": (with_id("$group_id", ["g", "x" * 256]), "id_too_long", "properties.$group_id "),
    "a long id beside a list of objects": (
        an_event({"cart": [{"sku": 1}], "$group_id": "x" * 256}),
        "id_too_long",
        "properties.$group_id ",
    ),
}

WITHIN_UPDATES = {
    "2,000 properties": an_update(numbered(2_000)),
    "a name of 255": an_update({"x" * 255: 1}),
    "ids of 255": an_update({"a": 1}, **{"$distinct_id": "u" * 255, "$group_id": "g" * 255}),
    "3 levels": an_update({"a": nested("abc")}),
    "a list of 255": an_update({"list": [1] * 255}),
    "256 KB in a list": an_update({"list": ["x" * (256_000 - 4)]}),
    "a text above 256 KB": an_update({"text": "x" * 300_000}),
    "below 1 MB": update_of_bytes(999_999),
    "2,000 names to unset": an_update([*numbered(2_000)], "$unset"),
    "a group id of 255": an_update({"$group_id": ["g" * 255]}, "$union"),
    "a deletion": an_update("null", "$delete"),
}

REFUSED_UPDATES = {
    "2,001 properties": (an_update(numbered(2_001)), "too_many_properties", "$set "),
    "a $distinct_id of 256": (an_update({"a": 1}, **{"$distinct_id": "u" * 256}), "id_too_long", "$distinct_id "),
    "a $group_id of 256": (an_update({"a": 1}, **{"$group_id": "g" * 256}), "id_too_long", "$group_id "),
    "4 levels": (an_update({"a": nested("bcde")}, "$set_once"), "nested_too_deep", "$set_once.a.b.c.d "),
    "above 256 KB in a list": (
        an_update({"list": ["x" * (256_000 - 3)]}, "$append"),
        "property_too_large",
        "$append.list ",
    ),
    "above 256 KB in an object": (an_update({"o": {"a": "x" * 256_000}}), "property_too_large", "$set.o "),
    "1 MB": (update_of_bytes(1_000_000), "record_too_large", "$set "),
    "2,001 names to unset": (an_update([*numbered(2_001)], "$unset"), "too_many_properties", "$unset "),
    "a group id of 256": (an_update({"$group_id": ["g" * 256]}, "$union"), "id_too_long", "$union.$group_id "),
}

REPAIRED_EVENTS = {
    "an event's name": (an_event(event="x" * 256), ("event_name_cut",), an_event(event="x" * 255)),
    "a property's name": (
        an_event({"a": 1, "x" * 256: 2, "b": [3]}),
        ("property_name_cut",),
        an_event({"a": 1, "x" * 255: 2, "b": [3]}),
    ),
    "two names that become one": (
        an_event({"x" * 256: 1, "x" * 255: 2, "x" * 255 + "y": 3}),
        ("property_name_cut", "property_name_twice"),
        an_event({"x" * 255: 1}),
    ),
    "names that become few enough": (
        an_event({**numbered(248), "x" * 256: 1, "x" * 257: 2}),
        ("property_name_cut", "property_name_twice"),
        an_event({**numbered(248), "x" * 255: 1}),
    ),
    "1971": (at(365 * 86_400_000), ("time_in_seconds",), at(365 * 86_400)),
    "March 1973": (at(100_000_000_000), ("time_in_seconds",), at(100_000_000)),
    "a list above 8 KB": (
        an_event({"list": [text_of_bytes(7_999)]}),
        ("large_property",),
        an_event({"list": [text_of_bytes(7_999)]}),
    ),
    "an object above 8 KB of short texts": (
        an_event({"o": {"a": ["x" * 250] * 40}}),
        ("large_property",),
        an_event({"o": {"a": ["x" * 250] * 40}}),
    ),
    "a short list above 8 KB of control characters": (
        an_event({"list": ["\0" * 84] * 16}),
        ("large_property",),
        an_event({"list": ["\0" * 84] * 16}),
    ),
    "a list above 8 KB of short control characters": (
        an_event({"list": ["\0" * 64] * 21}),
        ("large_property",),
        an_event({"list": ["\0" * 64] * 21}),
    ),
    "all at once": (
        an_event({"x" * 256: ["y" * 9_000]}, event="z" * 300),
        ("event_name_cut", "property_name_cut", "large_property"),
        an_event({"x" * 255: ["y" * 9_000]}, event="z" * 255),
    ),
}

REPAIRED_UPDATES = {
    "a property's name": (an_update({"x" * 256: 1}), ("property_name_cut",), an_update({"x" * 255: 1})),
    "two names that become one": (
        an_update({"x" * 256: 1, "x" * 257: 2}),
        ("property_name_cut", "property_name_twice"),
        an_update({"x" * 255: 1}),
    ),
    "a name to unset, as $set has cut it": (
        an_update(["a", "x" * 256, "x" * 257], "$unset"),
        ("property_name_cut", "property_name_twice"),
        an_update(["a", "x" * 255], "$unset"),
    ),
}


def cases(table: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in table.items()])


@cases(WITHIN_EVENTS)
def test_an_event_at_the_limit_goes_out_as_it_is(case) -> None:
    before = orjson.dumps(case)
    assert limits.event(case) == ()
    assert orjson.dumps(case) == before


@cases(WITHIN_UPDATES)
def test_an_update_at_the_limit_goes_out_as_it_is(case) -> None:
    before = orjson.dumps(case)
    assert limits.update(case) == ()
    assert orjson.dumps(case) == before


@cases(REFUSED_EVENTS)
def test_an_event_one_beyond_is_refused_with_its_field(case) -> None:
    record, reason, field = case
    with pytest.raises(Refused) as refused:
        limits.event(record)
    assert refused.value.reason == reason
    assert refused.value.detail.startswith(field)


@cases(REFUSED_UPDATES)
def test_an_update_one_beyond_is_refused_with_its_field(case) -> None:
    record, reason, field = case
    with pytest.raises(Refused) as refused:
        limits.update(record)
    assert refused.value.reason == reason
    assert refused.value.detail.startswith(field)


@cases(REPAIRED_EVENTS)
def test_an_event_is_repaired_where_that_is_no_lie(case) -> None:
    record, notes, repaired = case
    assert limits.event(record) == notes
    assert orjson.dumps(record) == orjson.dumps(repaired)


@cases(REPAIRED_UPDATES)
def test_an_update_is_repaired_where_that_is_no_lie(case) -> None:
    record, notes, repaired = case
    assert limits.update(record) == notes
    assert orjson.dumps(record) == orjson.dumps(repaired)


def test_an_event_that_is_known_at_a_look_is_within_every_size() -> None:
    event = an_event({f"{i:03}" + "\0" * 252: ["\0" * 64] * 16 for i in range(95)}, event="\0" * 255)
    before = orjson.dumps(event)
    assert limits.event(event) == ()
    assert 700_000 < len(before) < limits.MAX_RECORD_BYTES
    assert max(len(orjson.dumps(value)) for value in event["properties"].values()) < 8_000


def test_an_update_that_is_known_at_a_look_is_within_every_size() -> None:
    large = {f"{i:03}" + "\0" * 252: ["\0" * 64] * 16 for i in range(20)}
    update = {name: large for name in ("$set", "$set_once", "$union", "$append", "$remove", "$add")}
    before = orjson.dumps(update)
    assert limits.update(update) == ()
    assert 900_000 < len(before) < limits.MAX_RECORD_BYTES


def test_what_was_refused_is_named_but_never_told() -> None:
    for record, *_ in (
        (an_event({"cart": {"secret " * 100: ["hunter2"] * 255}}),),
        (with_id("$user_id", "hunter2" * 100),),
        (an_event({"a": nested("bcd") | {"b": {"c": {"d": ["hunter2"]}}}}),),
    ):
        with pytest.raises(Refused) as refused:
            limits.event(record)
        assert "hunter2" not in refused.value.detail
        assert len(refused.value.detail) < 400, "a name may be a megabyte long"


def test_the_callers_own_objects_are_not_changed() -> None:
    properties = {"x" * 256: 1, "time": NOW_MS}
    limits.event({"event": "E", "properties": properties})
    assert properties == {"x" * 256: 1, "time": NOW_MS}


# Sizes around every limit are drawn as often as small ones; what is long is not also deep, for it would be huge.
lengths = st.sampled_from([0, 1, 2, 3, 16, 17, 64, 65, 100, 101, 253, 254, 255, 256, 2_000, 7_990])
texts = st.builds(lambda one, n: one * n, st.sampled_from(["x", "é", "\U0001f600", "\0", '"']), lengths)
names = st.text(max_size=4) | st.builds("n".__mul__, st.sampled_from([254, 255, 256, 257, 300]))
short = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
)
counts = st.sampled_from([15, 16, 17, 253, 254, 255])
flat = (
    short
    | texts
    | st.builds(lambda one, n: [one] * n, texts | short, counts)
    | st.builds(lambda one, n: {f"k{i}": one for i in range(n)}, short, counts)
)
values = st.recursive(
    flat, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
properties = st.dictionaries(names, values, max_size=5) | st.builds(
    lambda one, n, more: {f"p{i}": one for i in range(n)} | more,
    short | texts,
    st.sampled_from([94, 95, 96, 248, 249, 250, 1_999, 2_000, 2_001]),
    st.dictionaries(names, values, max_size=2),
)
edges = st.sampled_from([-1, 0, limits.EARLIEST_MS - 1, limits.EARLIEST_MS, 10**11, 10**11 + 1, NOW_MS])
times = st.one_of(st.just(NOW_MS), st.just(NOW_MS), st.integers(10**11, NOW_MS), edges)
events = st.builds(
    lambda properties, name, time: with_time(an_event(properties, event=name), time),
    properties,
    st.just("E") | names,
    times,
)


def with_time(event: dict[str, Any], time: int) -> dict[str, Any]:
    event["properties"]["time"] = time
    return event


@given(events)
@settings(max_examples=250, deadline=None)
def test_what_goes_out_is_accepted_and_what_was_fine_is_not_touched(event: dict[str, Any]) -> None:
    before = copy.deepcopy(event)
    try:
        notes = limits.event(event)
    except Refused as refused:
        # The sandbox may read as seconds what mapping has said in milliseconds.
        is_early = refused.reason == "time_before_1971"
        assert is_early or event_error(before, NOW_MS) is not None, "nothing is refused that Mixpanel takes"
        return
    assert event_error(event, NOW_MS) is None
    assert set(notes) <= NOTES
    if not set(notes) - {"large_property"}:
        assert orjson.dumps(event) == orjson.dumps(before)
    if "time_in_seconds" not in notes:
        assert limits.event(copy.deepcopy(event)) == notes[-1:] * ("large_property" in notes), "once is enough"


urls = st.builds("https://a.example/?utm_{}=1&gclid={}".format, st.sampled_from(["a", "x" * 251, "y" * 252]), texts)


@given(properties, names, urls, st.dictionaries(names, st.just("x") | texts, max_size=2), texts, st.none() | texts)
@settings(max_examples=120, deadline=None)
def test_what_looks_usual_by_the_callers_part_breaks_no_limit(own, name, url, campaign, an_id, group) -> None:
    context = {"page": {"url": url}, "campaign": campaign, "groupId": group}
    named = {"event": f"E{name}".replace("\0", "0"), "userId": f"u{an_id}".replace("\0", "0")}
    call = {"type": "track", "properties": own, "context": context, **named}
    mapped = mapping.map_apart(segment.load(call), "import", NOW_MS, Options(token="t"))
    if mapped.own is None or not limits.is_usual(mapped.records[0], mapped.own):
        return
    (event,) = mapped.whole().records
    before = copy.deepcopy(event)
    assert (limits.event(event), event) == ((), before)


@given(st.builds(an_update, properties, st.sampled_from(["$set", "$set_once", "$append", "$remove"])))
@settings(max_examples=120, deadline=None)
def test_what_goes_to_a_profile_is_accepted(update: dict[str, Any]) -> None:
    before = copy.deepcopy(update)
    try:
        notes = limits.update(update)
    except Refused as refused:
        is_ours = refused.reason == "property_too_large"
        assert is_ours or update_error(before, "engage") is not None, "nothing is refused that Mixpanel takes"
        return
    assert update_error(update, "engage") is None
    if not notes:
        assert orjson.dumps(update) == orjson.dumps(before)
