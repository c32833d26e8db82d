"""What Segment sends is understood: every call, every field, every shape, and errors that say what was expected."""

import datetime as dt
import json
import tracemalloc

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError

from schemas import raw, segment
from schemas.fields import milliseconds
from schemas.segment import Message


def seeded(examples=100):
    """The same cases every time: a run that fails here fails everywhere."""
    return settings(derandomize=True, database=None, deadline=None, max_examples=examples)


NOON = "2026-03-01T12:00:00.000Z"
NOON_MS = 1_772_366_400_000

#: segment.md 1.4, every key and member, and members that only the wire knows (idfa, brands, utm suffixes).
CONTEXT = {
    "active": True,
    "app": {"name": "Shop", "version": "1.2", "build": "45", "namespace": "com.shop", "platform": "ios"},
    "campaign": {"name": "n", "source": "s", "medium": "m", "term": "t", "content": "c", "referrer": "r"},
    "device": {
        **{"id": "i", "advertisingId": "ad", "adTrackingEnabled": False, "manufacturer": "Apple", "model": "m"},
        **{"name": "iPhone", "type": "ios", "version": "17", "token": "tk", "idfa": "old"},
    },
    "ip": "8.8.8.8",
    "direct": True,
    "library": {"name": "analytics.js", "version": "next-1.84.0"},
    "locale": "en-US",
    "location": {
        **{"city": "Paris", "country": "France", "region": "IDF"},
        **{"latitude": 48.85, "longitude": 2, "speed": 0},
    },
    "network": {"bluetooth": False, "carrier": "T-Mobile", "cellular": True, "wifi": False},
    "os": {"name": "iOS", "version": "17.1"},
    "page": {"path": "/", "referrer": "", "search": "?q", "title": "Ü", "url": "https://e.com/?q"},
    "referrer": {
        **{"id": "i", "type": "t", "name": "n", "url": "u", "link": "l"},
        **{"btid": "b", "urid": "r"},
    },
    "screen": {"width": 320, "height": 568, "density": 2.5},
    "timezone": "Europe/Paris",
    "groupId": "g-1",
    "traits": {"email": "a@b.c", "age": 3},
    "userAgent": "Mozilla/5.0",
    "userAgentData": {
        **{"brands": [{"brand": "Chromium", "version": "120"}], "mobile": False, "platform": "macOS"},
        **{"architecture": "arm", "bitness": "64", "model": "", "platformVersion": "14.0"},
        **{"uaFullVersion": "120.0.1", "fullVersionList": [], "wow64": False},
    },
    "amp": {"id": "amp-1"},
    "externalIds": [{"id": "1", "type": "t", "collection": "users", "encoding": "none"}],
    "integration": {"name": "Iterable", "version": "1"},
    "personas": {
        **{"computation_class": "audience", "computation_id": "c", "computation_key": "k"},
        **{"namespace": "n", "space_id": "s"},
    },
    "consent": {"categoryPreferences": {"Advertising": True}},
    "channel": "browser",
}

#: segment.md 1.1, every common field.
ENVELOPE = {
    "anonymousId": "device-1",
    "userId": "user-1",
    "messageId": "ajs-next-1772366400000-01234567-89ab-cdef-0123-456789abcdef",
    "timestamp": NOON,
    "originalTimestamp": "2026-03-01T12:00:01.000Z",
    "sentAt": "2026-03-01T12:00:02.000Z",
    "receivedAt": "2026-03-01T12:00:03.000Z",
    "context": CONTEXT,
    "integrations": {"All": False, "Mixpanel": {"option": 1}},
    "channel": "browser",
    "version": 2,
    "projectId": "source-1",
    "writeKey": "key",
    "_metadata": {"bundled": ["Segment.io"], "unbundled": [], "retryCount": 1},
    "options": {"context": {}},
}

#: segment.md 1.3: the call's own fields -> what the Message says of them.
CALLS = {
    "identify": ({"traits": {"email": "a@b.c"}}, {"traits": {"email": "a@b.c"}}),
    "track": (
        {"event": "Order Completed", "properties": {"revenue": 9.5, "currency": "EUR", "value": 1}},
        {"event": "Order Completed", "properties": {"revenue": 9.5, "currency": "EUR", "value": 1}},
    ),
    "page": (
        {"name": "Home", "category": "Docs", "properties": {"url": "u", "keywords": ["k"]}},
        {"name": "Home", "category": "Docs", "properties": {"url": "u", "keywords": ["k"]}},
    ),
    "screen": (
        {"name": "Cart", "category": "Shop", "properties": {"name": "Cart"}},
        {"name": "Cart", "category": "Shop", "properties": {"name": "Cart"}},
    ),
    "group": (
        {"groupId": "group-1", "traits": {"employees": 5}},
        {"group_id": "group-1", "traits": {"employees": 5}},
    ),
    "alias": ({"previousId": "old-1"}, {"previous_id": "old-1"}),
    "delete": ({}, {}),
}

TEXTS = [
    *("anonymousId", "userId", "messageId", "channel", "projectId", "writeKey"),
    *(f"context.{name}" for name in ("ip", "locale", "timezone", "groupId", "userAgent", "channel")),
    *(f"context.app.{name}" for name in ("name", "version", "build", "namespace")),
    *(f"context.device.{name}" for name in ("id", "advertisingId", "manufacturer", "model", "name")),
    *(f"context.device.{name}" for name in ("type", "version", "token")),
    *(f"context.library.{name}" for name in ("name", "version")),
    *(f"context.location.{name}" for name in ("city", "country", "region")),
    "context.network.carrier",
    *(f"context.os.{name}" for name in ("name", "version")),
    *(f"context.page.{name}" for name in ("path", "referrer", "search", "title", "url")),
    *(f"context.referrer.{name}" for name in ("id", "type", "name", "url", "link")),
    *(f"context.userAgentData.{name}" for name in ("platform", "architecture", "bitness", "model")),
    *(f"context.userAgentData.{name}" for name in ("platformVersion", "uaFullVersion")),
]
FLAGS = [
    *("context.active", "context.device.adTrackingEnabled", "context.network.bluetooth"),
    *("context.network.cellular", "context.network.wifi"),
    *("context.userAgentData.mobile", "context.userAgentData.wow64"),
]
NUMBERS = [
    *(f"context.location.{name}" for name in ("latitude", "longitude", "speed")),
    *(f"context.screen.{name}" for name in ("width", "height", "density")),
]
OBJECTS = [
    *("context", "integrations", "properties", "_metadata", "options"),
    *(f"context.{name}" for name in ("app", "campaign", "device", "library", "location", "network", "os")),
    *(f"context.{name}" for name in ("page", "referrer", "screen", "traits", "userAgentData", "amp")),
    *(f"context.{name}" for name in ("integration", "personas", "consent")),
]
TIMES = ["timestamp", "originalTimestamp", "sentAt", "receivedAt"]

ATTRIBUTES = {
    "anonymousId": "anonymous_id",
    "userId": "user_id",
    "messageId": "message_id",
    "projectId": "project_id",
    "originalTimestamp": "original_timestamp",
    "sentAt": "sent_at",
    "receivedAt": "received_at",
}


def call(kind="track", **fields):
    base = {"type": kind, "messageId": "m-1", "userId": "user-1", "anonymousId": "device-1", "event": "Signed Up"}
    return base | fields


def put(path, value, kind="track"):
    """A valid call with one value put at a dotted path."""
    built = call(kind)
    *above, last = path.split(".")
    at = built
    for name in above:
        at = at.setdefault(name, {})
    at[last] = value
    return built


def plain(value):
    """What a Message holds, without what it does not have; times in milliseconds since the epoch."""
    if isinstance(value, msgspec.Struct):
        named = {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        return {name: one for name, one in named.items() if one is not None}
    return milliseconds(value) if isinstance(value, dt.datetime) else value


def assert_within(part, whole):
    """Every declared field holds what was sent; there are many."""
    assert len(part) > 1
    for name, value in part.items():
        if isinstance(value, dict) and name not in ("traits", "amp", "integration", "personas", "consent"):
            assert_within(value, whole[name])
        else:
            assert value == whole[name]


def read(message, path):
    """What a Message says at the path of the wire."""
    first, *below = path.split(".")
    value = getattr(message, ATTRIBUTES.get(first, first))
    for name in below:
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return plain(value)


def errors(data, load=segment.load):
    with pytest.raises(ValidationError) as caught:
        load(data)
    return segment.flat(caught.value)


def outcome(load, data):
    """(what was loaded, None) or (None, what was expected); any other error is a fault."""
    try:
        return load(data), None
    except ValidationError as error:
        return None, segment.flat(error)


# ---- every call and every field


@pytest.mark.parametrize("kind", CALLS)
def test_every_call_loads_with_every_field(kind):
    sent, own = CALLS[kind]
    data = {"type": kind, **ENVELOPE, **sent}
    said = plain(segment.load(data))
    assert segment.CALLS[kind].load(data)["context"] == CONTEXT
    assert_within(said.pop("context"), CONTEXT)
    assert said == {
        "type": kind,
        "message_id": ENVELOPE["messageId"],
        "anonymous_id": "device-1",
        "user_id": "user-1",
        "integrations": {"All": False, "Mixpanel": {"option": 1}},
        "project_id": "source-1",
        "timestamp": NOON_MS,
        "original_timestamp": NOON_MS + 1_000,
        "sent_at": NOON_MS + 2_000,
        "received_at": NOON_MS + 3_000,
        **{"channel": "browser", "version": 2, "write_key": "key", "options": {"context": {}}},
        "_metadata": ENVELOPE["_metadata"],
        **own,
    }


def test_a_delete_as_segment_emits_it_is_understood():
    """segment.md 1.3: no anonymousId, PHP's empty arrays, and one documented time that is Go's."""
    message = segment.load(
        {
            "type": "delete",
            "channel": "server",
            "userId": "user-1",
            "messageId": "delete-1",
            "projectId": "source-1",
            "context": [],
            "integrations": None,
            "receivedAt": NOON,
            "sentAt": None,
            "timestamp": "2016-11-21 23:06:20.5 +0000 UTC",
            "originalTimestamp": NOON,
        }
    )
    assert plain(message) == {
        "type": "delete",
        "channel": "server",
        "user_id": "user-1",
        "message_id": "delete-1",
        "project_id": "source-1",
        "context": {},
        "received_at": NOON_MS,
        "original_timestamp": NOON_MS,
        "timestamp": 1_479_769_580_500,
    }


def test_the_schemas_keep_unknown_fields_wherever_they_stand():
    loaded = segment.CALLS["track"].load(
        call(
            newField={"a": [1]},
            __proto__={"polluted": True},
            **{"dotted.name": 1, "context.app": 2},
            context={"later": [None], "app.name": "x", "app": {"flavour": "beta", "a.b": 1}, "os": {"arch": None}},
        )
    )
    assert {name: value for name, value in loaded.items() if name not in (*call(), "context")} == {
        **{"newField": {"a": [1]}, "__proto__": {"polluted": True}},
        **{"dotted.name": 1, "context.app": 2},
    }
    assert loaded["context"] == {
        **{"later": [None], "app.name": "x"},
        **{"app": {"flavour": "beta", "a.b": 1}, "os": {"arch": None}},
    }


@pytest.mark.parametrize("version", [2, "2", "1.1", None, {"odd": []}])
def test_the_version_may_have_any_type(version):
    assert segment.load(call(version=version)).version == version


@pytest.mark.parametrize("name", [*ENVELOPE, "properties"])
def test_null_is_the_same_as_absent(name):
    sent = {"type": "track", "event": "E", **ENVELOPE, "properties": {"a": 1}, "messageId": "m-1"}
    absent = {key: value for key, value in sent.items() if key != name}
    one, other = segment.load({**sent, name: None}), segment.load(absent)
    if name == "messageId":  # both are made from the content
        assert one.message_id.startswith("content:")
        assert other.message_id.startswith("content:")
        one.message_id = other.message_id
    assert one == other


@pytest.mark.parametrize("path", [path for path in TEXTS + FLAGS + NUMBERS + OBJECTS if path.count(".")])
def test_null_is_no_error_in_the_context(path):
    assert read(segment.load(put(path, None)), path) is None


# ---- texts


@pytest.mark.parametrize("path", [path for path in TEXTS if path not in ("channel", "writeKey")])
def test_a_text_that_arrives_as_a_number_becomes_a_string(path):
    numbers = [42, 42.0, -7, 0, 1.5, 2**64 - 1]
    texts = ["42", "42", "-7", "0", "1.5", "18446744073709551615"]
    assert [read(segment.load(put(path, number)), path) for number in numbers] == texts


@pytest.mark.parametrize(
    ("kind", "field", "attribute"),
    [("group", "groupId", "group_id"), ("alias", "previousId", "previous_id"), ("track", "event", "event")],
)
def test_the_ids_of_a_call_become_strings_too(kind, field, attribute):
    built = call("group", groupId="g") if kind == "group" else call(kind)
    assert getattr(segment.load(built | {field: 12345678901234567890}), attribute) == "12345678901234567890"


@pytest.mark.parametrize("number", [2.0**53 - 1, -(2.0**53 - 1)])
def test_the_largest_exact_float_is_an_id(number):
    assert segment.load(call(userId=number)).user_id == str(int(number))


@pytest.mark.parametrize("number", [2.0**53, -(2.0**53), 1e22, 1.7976931348623157e308])
def test_a_float_that_may_have_lost_digits_is_no_id(number):
    assert errors(call(userId=number)) == {"userId": ["expected a string; this number is too large to be exact"]}


@pytest.mark.parametrize("path", TEXTS)
def test_what_is_no_text_is_named_with_its_path(path):
    for value, got in [(True, "a boolean"), ({}, "an object"), ({"a": 1}, "an object"), (["a"], "an array")]:
        assert errors(put(path, value)) == {path: [f"expected a string, got {got}"]}


@pytest.mark.parametrize("path", ["userId", "anonymousId", "messageId", "projectId", "event"])
def test_an_id_with_a_nul_character_is_refused(path):
    assert errors(put(path, "a\0b")) == {path: ["expected a string without NUL characters"]}


# ---- flags, numbers, objects


@pytest.mark.parametrize("path", FLAGS)
def test_flags(path):
    assert read(segment.load(put(path, True)), path) is True
    assert read(segment.load(put(path, False)), path) is False
    for value in ("perhaps", 5, [], {}):
        assert errors(put(path, value)) == {path: ["expected true or false"]}


@pytest.mark.parametrize("path", NUMBERS)
def test_numbers(path):
    for value, number in [(320, 320), (2.5, 2.5), ("2.5", 2.5), ("-3", -3), (0, 0)]:
        assert read(segment.load(put(path, value)), path) == number
    for value, got in {"wide": "a string", "": "a string", True: "a boolean"}.items():
        assert errors(put(path, value)) == {path: [f"expected a number, got {got}"]}
    for value, got in [([], "an array"), ({}, "an object")]:
        assert errors(put(path, value)) == {path: [f"expected a number, got {got}"]}


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1e999"])
def test_a_text_that_is_no_finite_number_is_called_a_text(text):
    assert errors(put("context.screen.width", text)) == {"context.screen.width": ["expected a number, got a string"]}


@pytest.mark.parametrize("path", OBJECTS)
def test_objects(path):
    for value in ("text", 5, True, [1], [{}]):
        assert errors(put(path, value)) == {path: ["expected an object"]}


@pytest.mark.parametrize("kind", ["identify", "group"])
def test_traits_are_an_object(kind):
    assert errors(call(kind, groupId="g", traits="x")) == {"traits": ["expected an object"]}


@pytest.mark.parametrize("path", ["context", "integrations", "properties", "context.app", "context.traits"])
def test_an_empty_array_of_php_is_an_empty_object(path):
    assert read(segment.load(put(path, [])), path) == {}


def test_empty_traits_of_php_are_empty():
    assert segment.load(call("identify", traits=[])).traits == {}


def test_external_ids_are_an_array_of_objects():
    assert errors(put("context.externalIds", {"id": "1"})) == {"context.externalIds": ["expected an array"]}
    assert errors(put("context.externalIds", [{}, "x"])) == {"context.externalIds.1": ["expected an object"]}
    assert read(segment.load(put("context.externalIds", [])), "context.externalIds") == []


def test_every_faulty_field_is_named_at_once():
    sent = call(event=None, userId=[], timestamp="soon", context={"app": 5, "os": {"name": {}}, "active": "?"})
    assert set(errors(sent)) == {
        *("event", "userId", "timestamp"),
        *("context.app", "context.os.name", "context.active"),
    }


# ---- times


@pytest.mark.parametrize(
    ("sent", "ms"),
    [
        ("2015-11-10T00:30:08.276Z", 1_447_115_408_276),
        ("2015-11-10T00:30:08.276+00:00", 1_447_115_408_276),
        ("2015-11-10T00:30:08.276123+00:00", 1_447_115_408_276),
        ("2015-11-10T00:30:08.276123456Z", 1_447_115_408_276),
        ("2015-11-10T00:30:08.999999999Z", 1_447_115_409_000),
        ("2015-11-10T00:30:08.2Z", 1_447_115_408_200),
        ("2015-11-10T00:30:08Z", 1_447_115_408_000),
        ("2015-11-10T06:00:08.276+05:30", 1_447_115_408_276),
        ("2015-11-09T22:30:08.276-0200", 1_447_115_408_276),
        ("2015-11-10T00:30:08.276", 1_447_115_408_276),
        ("2015-11-10 00:30:08.276123", 1_447_115_408_276),
        ("2015-11-10", 1_447_113_600_000),
        ("2015-11-10 00:30:08.276123456 +0000 UTC", 1_447_115_408_276),
        ("2015-11-10 00:30:08 +0000 UTC", 1_447_115_408_000),
        ("2015-11-10 00:30:08.276 +0000 UTC m=+0.000001", 1_447_115_408_276),
        ("2015-11-09 19:30:08.276 -0500 EST", 1_447_115_408_276),
        (1_447_115_408, 1_447_115_408_000),
        (1_447_115_408.276, 1_447_115_408_276),
        (1_447_115_408_276, 1_447_115_408_276),
        (1_447_115_408_276.0, 1_447_115_408_276),
        (0, 0),
        (-1, -1_000),
        ("1969-12-31T23:59:59.999Z", -1),
        ("2038-01-19T03:14:08Z", 2_147_483_648_000),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
        (253_402_300_799_999, 253_402_300_799_999),
    ],
)
def test_a_time_of_every_shape_is_understood(sent, ms):
    message = segment.load(call(**dict.fromkeys(TIMES, sent)))
    assert {field: read(message, field) for field in TIMES} == dict.fromkeys(TIMES, ms)


@pytest.mark.parametrize(
    "sent",
    [
        *("", "yesterday", "2026-02-30T00:00:00Z", "2026-13-01", "2026-03-01T25:00:00Z", "Sun Mar 01 2026"),
        *("0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2026-03-01T12:00:00+99:00", "\0", "２０２６"),
        *(253_402_300_800_000, -(10**15), 2**64 - 1, 1e308, -1e300, True, [], {}, [NOON]),
    ],
)
def test_what_is_no_time_is_refused_with_an_example_of_one(sent):
    said = ["expected an ISO 8601 time such as 2026-03-01T12:00:00.000Z"]
    assert errors(call(**dict.fromkeys(TIMES, sent))) == dict.fromkeys(TIMES, said)


def test_a_number_in_quotes_is_never_taken_for_a_date_of_another_century():
    """2021-01-31T19:58:32Z in milliseconds; read as ISO 8601 its digits would be the year 1612."""
    try:
        read_as = segment.load(call(timestamp="1612123112345")).timestamp
    except ValidationError:
        read_as = "refused"
    assert read_as in ("refused", 1_612_123_112_345)


# ---- what a call must have


@pytest.mark.parametrize("kind", ["identify", "track", "page", "screen", "group"])
@pytest.mark.parametrize("ids", [{}, {"userId": None, "anonymousId": None}, {"userId": "", "anonymousId": ""}])
def test_a_call_of_nobody_is_refused(kind, ids):
    sent = {"type": kind, "event": "E", "groupId": "g", **ids}
    assert errors(sent) == {"userId": ["expected userId, anonymousId or both"]}


@pytest.mark.parametrize("kind", ["identify", "track", "page", "screen", "group"])
@pytest.mark.parametrize(("sent", "attribute"), [("userId", "user_id"), ("anonymousId", "anonymous_id")])
def test_one_id_is_enough(kind, sent, attribute):
    message = segment.load({"type": kind, "event": "E", "groupId": "g", sent: "x"})
    ids = {"user_id": message.user_id, "anonymous_id": message.anonymous_id}
    assert ids == {"user_id": None, "anonymous_id": None} | {attribute: "x"}


@pytest.mark.parametrize(
    ("kind", "field"), [("track", "event"), ("group", "groupId"), ("alias", "userId"), ("delete", "userId")]
)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("absent", "missing; expected a string"),
        (None, "expected a string, got null"),
        ("", "expected a string that is not empty"),
        (" \t", "expected a string that is not empty"),
    ],
)
def test_what_a_call_requires_is_named(kind, field, value, said):
    sent = call(kind, previousId="p") | {"groupId": "g", field: value}
    if value == "absent":
        del sent[field]
    assert errors(sent) == {field: [said]}


@pytest.mark.parametrize("previous", [{}, {"previousId": None}, {"previousId": ""}])
def test_an_alias_without_previous_id_means_the_visitor(previous):
    assert segment.load({"type": "alias", "userId": "u", "anonymousId": "a", **previous}).previous_id == "a"
    assert errors({"type": "alias", "userId": "u", **previous}) == {
        "previousId": ["missing; expected the id known until now"]
    }


def test_an_alias_says_itself_who_it_was():
    message = segment.load({"type": "alias", "userId": "u", "anonymousId": "a", "previousId": "old"})
    assert (message.previous_id, message.anonymous_id) == ("old", "a")


def test_only_an_alias_has_a_previous_id():
    message = segment.load(call(previousId="old"))
    assert message.previous_id is None


@pytest.mark.parametrize(
    ("kind", "field", "attribute", "value"),
    [
        ("identify", "properties", "properties", "x"),
        ("track", "traits", "traits", [1]),
        ("identify", "event", "event", {"a": 1}),
        ("track", "name", "name", {"a": 1}),
        ("track", "category", "category", 5),
        ("track", "groupId", "group_id", []),
    ],
)
def test_a_field_of_another_call_is_unknown_to_this_one(kind, field, attribute, value):
    """No schema has judged it, so it must not stand where the map expects what a schema has judged."""
    sent = {"type": kind, "userId": "u"} | ({"event": "E"} if kind == "track" else {}) | {field: value}
    for message in (segment.load(sent), segment.read(orjson.dumps(sent))):
        assert getattr(message, attribute) is None


@pytest.mark.parametrize("kind", ["Track", "batch", "", None, 5, True, [], {}, ["track"], "track\0"])
def test_an_unknown_type_is_answered_with_the_known_ones(kind):
    expected = {"type": ["expected one of identify, track, page, screen, group, alias, delete"]}
    assert errors(call(kind)) == expected
    assert errors({"userId": "u", "event": "E"}) == expected


@pytest.mark.parametrize(
    ("data", "got"),
    [(None, "null"), (5, "a number"), (1.5, "a number"), ("x", "a string"), (True, "a boolean"), ([], "an array")],
)
def test_what_is_no_object_is_said_to_be_what_it_is(data, got):
    assert errors(data) == {"message": [f"expected an object, got {got}"]}


# ---- the content


@pytest.mark.parametrize("message_id", [{}, {"messageId": None}, {"messageId": ""}])
def test_a_message_without_id_gets_one_from_its_content(message_id):
    sent = {"type": "track", "event": "E", "userId": "u", **message_id}
    again = {**sent, "sentAt": NOON, "receivedAt": NOON, "writeKey": "k", "_metadata": {"retryCount": 2}}
    assert segment.load(sent).message_id == segment.load(again).message_id
    assert segment.load(sent).message_id != segment.load({**sent, "event": "F"}).message_id


def test_the_content_is_the_same_whatever_the_envelope_says():
    sent = {"type": "track", "event": "E", **ENVELOPE}
    again = {
        **dict(reversed(sent.items())),
        **{"sentAt": "later", "receivedAt": None, "writeKey": "other", "_metadata": {"retryCount": 9}},
    }
    bare = {name: sent[name] for name in sent.keys() - {"sentAt", "receivedAt", "writeKey", "_metadata"}}
    assert segment.content_hash(sent) == segment.content_hash(again) == segment.content_hash(bare)
    assert len(segment.content_hash(sent)) == 16


@pytest.mark.parametrize("name", ["messageId", "userId", "timestamp", "originalTimestamp", "context", "unheard"])
def test_any_other_change_is_another_content(name):
    sent = {"type": "track", "event": "E", **ENVELOPE}
    assert segment.content_hash(sent) != segment.content_hash({**sent, name: "changed"})


# ---- the batch form


def test_what_stands_beside_a_batch_holds_for_each_of_its_messages():
    batch = {
        "batch": [
            {"type": "track", "context": {"ip": "1.1.1.1"}, "integrations": {"Mixpanel": True}, "sentAt": "own"},
            {"type": "page", "context": None},
            {"type": "screen", "context": []},
            {"type": "group", "context": "broken"},
        ],
        "context": {"ip": "9.9.9.9", "locale": "fr"},
        "integrations": {"All": False},
        "sentAt": NOON,
        "writeKey": "key",
        "unknown": {"kept": "out"},
    }
    beside = {"integrations": {"All": False}, "sentAt": NOON, "writeKey": "key"}
    shared = {"ip": "9.9.9.9", "locale": "fr"}
    assert segment.messages(batch) == [
        {
            "type": "track",
            "context": {"ip": "1.1.1.1", "locale": "fr"},
            "integrations": {"All": False, "Mixpanel": True},
            "sentAt": "own",
            "writeKey": "key",
        },
        {"type": "page", "context": shared, **beside},
        {"type": "screen", "context": shared, **beside},
        {"type": "group", "context": "broken", **beside},
    ]


@pytest.mark.parametrize("beside", [{}, {"context": None, "sentAt": None}, {"context": []}])
def test_a_batch_with_nothing_beside_it_is_just_its_messages(beside):
    assert segment.messages({"batch": [call(), {}], **beside}) == [call(), {}]


@pytest.mark.parametrize(
    ("batch", "path", "said"),
    [
        ({}, "batch", "expected an array of messages"),
        ({"batch": None}, "batch", "expected an array"),
        ({"batch": {"type": "track"}}, "batch", "expected an array"),
        ({"batch": [{}, 1]}, "batch.1", "expected an object"),
        ({"batch": [{}, None]}, "batch.1", "expected an object"),
        ({"batch": [], "context": "x"}, "context", "expected an object"),
        ({"batch": [], "integrations": 5}, "integrations", "expected an object"),
        ({"batch": [], "sentAt": "soon"}, "sentAt", "expected an ISO 8601 time"),
        ({"batch": [], "writeKey": {}}, "writeKey", "expected a string, got an object"),
        ([], "message", "expected an object"),
        (None, "message", "expected an object"),
    ],
)
def test_a_batch_that_is_none_is_refused_by_its_field(batch, path, said):
    found = errors(batch, segment.messages)
    assert set(found) == {path}
    assert said in found[path][0]


# ---- laws

#: Whatever the parser can return: integers of 64 bits, finite floats, text without lone surrogates.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from([NOON, "nan", "\0", "", "2015-11-10 00:30:08 +0000 UTC", "0001-01-01T00:00:00+14:00"])
)
NAMES = st.text(max_size=8) | st.sampled_from([*ENVELOPE, *CONTEXT, "_schema", "a.b"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
#: Calls in which a few fields, here and there, hold anything.
NEARLY_CALLS = st.builds(
    lambda kind, fields, context: {
        **call(kind),
        **fields,
        **({"context": context} if "context" not in fields else {}),
    },
    st.sampled_from([*CALLS]),
    st.dictionaries(
        st.sampled_from([*ENVELOPE, "event", "properties", "traits", "groupId"]) | NAMES, VALUES, max_size=3
    ),
    st.dictionaries(st.sampled_from([*CONTEXT]), VALUES, max_size=3),
)


@seeded(150)
@given(VALUES | NEARLY_CALLS)
def test_whatever_comes_is_a_message_or_says_what_was_expected(data):
    message, found = outcome(segment.load, data)
    if message is None:
        assert found
        assert all(isinstance(path, str) and faults for path, faults in found.items())
        assert all("expected" in fault for faults in found.values() for fault in faults)
        return
    assert isinstance(message, Message)
    assert message.type == data["type"]
    assert message.user_id or message.anonymous_id
    assert message.message_id
    assert all(isinstance(part, dict | None) for part in (message.properties, message.traits))
    assert segment.load(data) == message


@seeded()
@given(VALUES | st.fixed_dictionaries({"batch": st.lists(VALUES, max_size=3)}, optional={"context": VALUES}))
def test_whatever_comes_as_a_batch_is_cut_or_says_what_was_expected(data):
    found, faults = outcome(segment.messages, data)
    if found is None:
        assert faults
    else:
        assert [type(message) for message in found] == [dict] * len(data["batch"])


MESSAGE_TREES = st.recursive(
    st.lists(st.text(max_size=5), min_size=1, max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=5) | st.integers() | st.just("_schema"), inner, min_size=1),
    max_leaves=8,
)


@seeded(50)
@given(MESSAGE_TREES)
def test_flat_is_one_level_and_loses_no_fault(tree):
    def leaves(node):
        return [leaf for below in node.values() for leaf in leaves(below)] if isinstance(node, dict) else node

    found = segment.flat(ValidationError(tree))
    assert all(isinstance(path, str) and path for path in found)
    assert all(isinstance(fault, str) for faults in found.values() for fault in faults)
    assert sorted(fault for faults in found.values() for fault in faults) == sorted(leaves(tree))


# ---- raw: bytes to values


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1}', {"a": 1}),
        (b" [1] \n", [1]),
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b'{"id":"123456789012345678901234567890"}', {"id": "123456789012345678901234567890"}),
        (b"[0.1234567890123456789012345]", [0.1234567890123456789012345]),
        (b"[1.5e300]", [1.5e300]),
        (rb'"\ud83d\ude00\u0000"', "\U0001f600\0"),
        (b"[" * 128 + b"]" * 128, eval("[" * 128 + "]" * 128)),  # noqa: S307 a literal
        (b'"' + b"[{" * 500 + b'"', "[{" * 500),
    ],
)
def test_json_is_parsed_exactly(body, value):
    assert raw.parse(body) == value


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b'{"a":1} x', "expected JSON"),
        (b"{}{}", "expected JSON"),
        (b"\xef\xbb\xbf{}", "expected JSON"),
        ("{}".encode("utf-16"), "expected JSON"),
        (b"{'a':1}", "expected JSON"),
        (b"[1,]", "expected JSON"),
        (b"NaN", "expected JSON"),
        (b'{"a":Infinity}', "expected JSON"),
        (b"1e999", "expected JSON"),
        (rb'"\ud83d"', "expected JSON"),
        (b'"\xff"', "expected JSON"),
        (b'"a\0b"', "expected JSON"),
        (b"18446744073709551616", "at most 64 bits"),
        (b'{"a":[-9223372036854775809]}', "at most 64 bits"),
        (b'{"a":' + b"9" * 100 + b"}", "at most 64 bits"),
        (b"[" * 129 + b"]" * 129, "at most 128 levels"),
        (b'{"a":' * 129 + b"1" + b"}" * 129, "at most 128 levels"),
        (b'[{"a":' * 65 + b"1" + b"}]" * 65, "at most 128 levels"),
        (b"[" * 1_000 + b"]" * 1_000, "at most 128 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"9" * 5_000, "expected"),
    ],
)
def test_what_could_not_be_passed_on_unchanged_is_malformed(body, said):
    with pytest.raises(raw.Malformed, match=said):
        raw.parse(body)


# ---- raw: a body to its messages


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def escaped(value):
    return json.dumps(value, separators=(",", ":")).encode()


#: Text full of what could mislead somebody who looks for commas and brackets.
TRICKY = st.text(alphabet=st.sampled_from([*'[]{},:"\\/ é\U0001f600\n\t\0'])) | st.text(max_size=10)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=15,
)
SLICES = st.lists(
    st.builds(lambda write, value: write(value), st.sampled_from([compact, escaped]), TREES), min_size=1
)
#: Elements that the parser rejects and that balance all the same: what a sender with a cut emoji produces.
BROKEN = st.builds(
    lambda value, fault: compact({"tricky": value})[:-1] + b',"broken":' + fault + b"}",
    TREES,
    st.sampled_from(
        [rb'"\ud83d"', rb'"a\udc00,[{\""', b"NaN", b"-Infinity", b"1e999", b'"\x01"', b"'", b"0x10", b""]
    ),
)


@seeded(60)
@given(SLICES)
def test_an_array_is_cut_into_exactly_the_bytes_of_its_elements(slices):
    body = b"[" + b",".join(slices) + b"]"
    assert raw.elements(body) == slices
    assert raw.first_element(body) == slices[0]


@seeded(60)
@given(SLICES, BROKEN, st.data())
def test_a_broken_element_does_not_move_the_cuts_of_its_neighbours(slices, broken, data):
    slices.insert(data.draw(st.integers(0, len(slices))), broken)
    body = b"[" + b",".join(slices) + b"]"
    assert raw.elements(body) == slices
    assert raw.first_element(body) == slices[0]


@seeded(50)
@given(SLICES, st.booleans(), st.text(alphabet=" \t\r\n", max_size=3))
def test_blanks_between_the_elements_belong_to_none_of_them(slices, broken, blank):
    slices += [rb'["\ud83d"]'] if broken else []
    space = blank.encode()
    body = space + b"[" + b",".join(space + one + space for one in slices) + b"]" + space
    assert raw.elements(body) == slices
    assert raw.first_element(body) == slices[0]


@seeded(300)
@given(st.binary(max_size=60) | st.text(alphabet='[]{},"\\ 1').map(lambda text: b"[" + text.encode()))
def test_any_body_is_cut_or_said_to_be_malformed(body):
    try:
        found = raw.elements(body)
    except raw.Malformed:
        assert body.strip(b" \t\r\n")[:1] not in (b"[", b"{") or body.strip(b" \t\r\n[]{}") == b""
    else:
        assert found
        assert all(isinstance(one, bytes) and one in body for one in found)


@pytest.mark.parametrize("body", [b'{"a":[1,2]}', b' \n{"a":1}\t', b"{", b"{}{}", b'{"a":1} rest', b"{},{}"])
def test_an_object_is_one_message_whatever_is_wrong_with_it(body):
    assert raw.elements(body) == [body.strip()]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"[1,,2]", [b"1", b"", b"2"]),
        (b"[1,2,]", [b"1", b"2"]),
        (b"[1,2", [b"1", b"2"]),
        (b'[{"a":1},{"b":"cut', [b'{"a":1}', b'{"b":"cut']),
        (b'[1,"\\', [b"1", b'"\\']),
        (b"[1,2] x", [b"1", b"2", b"x"]),
        (b"[1][2]", [b"1", b"[2]"]),
        (b"[", [b""]),
        (b"[,]", [b""]),
    ],
)
def test_a_broken_array_gives_what_stands_between_its_commas(body, found):
    assert [one.strip() for one in raw.elements(body)] == found


@pytest.mark.parametrize("body", [b"", b"null", b"5", b'"[1]"', b"true", b"\xef\xbb\xbf[1]", b"\0[1]", b"]"])
def test_a_body_that_is_no_array_is_one_raw_message_to_be_judged(body):
    assert raw.elements(b" " + body + b"\r\n") == [body]


@pytest.mark.parametrize("body", [b"[]", b" [ \n ] "])
def test_an_empty_array_is_malformed(body):
    with pytest.raises(raw.Malformed, match="expected at least one message, got an empty array"):
        raw.elements(body)


@pytest.mark.parametrize("last", [b"{}", rb'"\ud83d"'], ids=["well formed", "broken"])
def test_a_body_has_at_most_four_thousand_messages(last):
    assert len(raw.elements(b"[" + b"{}," * 3_999 + last + b"]")) == 4_000
    with pytest.raises(raw.TooMany, match="at most 4000 messages"):
        raw.elements(b"[" + b"{}," * 4_000 + last + b"]")


@pytest.mark.parametrize("element", [b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000])
def test_a_nesting_bomb_is_cut_as_one_element(element):
    assert raw.elements(b"[1," + element + b",2]") == [b"1", element, b"2"]


def test_what_is_kept_takes_little_more_memory_than_its_length() -> None:
    tracemalloc.start()
    try:
        kept = [raw.dumped({"number": number}) for number in range(1_000)]
        size, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept[7] == b'{"number":7}'
    assert size < 150 * len(kept)
