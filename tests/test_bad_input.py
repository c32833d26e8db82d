"""Whatever is posted gets a clear answer, costs its neighbours nothing, and is never a fault of ours."""

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as examples_of
from hypothesis import strategies as st

from adapter import logs
from adapter.app import ErrorAnswer, House, create_app
from adapter.config import Settings
from tests.conftest import raw, rows, stored_bodies

#: What no answer may ever show: tracebacks, code, places in our file system.
INSIDES = re.compile(r'Traceback|File "|\.py\b|site-packages|/work\b|/tmp\b|/usr\b|sqlite|marshmallow|orjson|msgspec')


@dataclass(frozen=True)
class Bad:
    """A message that cannot be taken: its bytes, and what the answer must say of it."""

    body: bytes
    reason: str
    path: str
    said: str


def malformed(body: bytes, said: str = "expected JSON") -> Bad:
    return Bad(body, "malformed", "message", said)


def call(**fields: Any) -> dict[str, Any]:
    base = {"type": "track", "messageId": "bad", "userId": "u", "event": "E"}
    return {name: value for name, value in {**base, **fields}.items() if value != "absent"}


def invalid(path: str, said: str, **fields: Any) -> Bad:
    return Bad(json.dumps(call(**fields), separators=(",", ":")).encode(), "invalid", path, said)


def with_property(value: bytes) -> bytes:
    """A valid call but for the bytes of one property."""
    return b'{"type":"track","event":"E","userId":"u","properties":{"a":' + value + b"}}"


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + b"1" + closing * levels


TYPES = "expected one of identify, track, page, screen, group, alias, delete"
TIME = "expected an ISO 8601 time"
LONG = "expected integers of at most 64 bits"
DEEP = "expected at most 128 levels of nesting"

#: Bad messages that stand between two commas without moving them.
MESSAGES = {
    # No JSON.
    "an unknown word": malformed(b"undefined"),
    "nothing at all": malformed(b""),
    "single quotes": malformed(b"{'type':'track'}"),
    "a comma too many": malformed(b'{"type":"track","event":"E","userId":"u",}'),
    "no quotes around a name": malformed(b'{type:"track"}'),
    "garbage behind": malformed(raw(call()) + b" garbage"),
    "two documents": malformed(raw(call()) + raw(call())),
    "a byte order mark": malformed(b"\xef\xbb\xbf" + raw(call())),
    "UTF-16": malformed('{"type":"track"}'.encode("utf-16")),
    "UTF-16, no mark": malformed('{"type":"track"}'.encode("utf-16-le")),
    "Latin-1": malformed(with_property('"é"'.encode("latin-1"))),
    "a comment": malformed(b'{"type":"track"/* no */}'),
    "NaN": malformed(with_property(b"NaN")),
    "Infinity": malformed(with_property(b"Infinity")),
    "minus Infinity": malformed(with_property(b"-Infinity")),
    "1e999": malformed(with_property(b"1e999")),
    "minus 1e999": malformed(with_property(b"-1e999")),
    "a lone high surrogate": malformed(with_property(rb'"\ud83d"')),
    "a lone low surrogate": malformed(with_property(rb'"\ude00 x"')),
    "surrogates in the wrong order": malformed(with_property(rb'"\ude00\ud83d"')),
    "a surrogate in UTF-8": malformed(with_property(b'"\xed\xa0\xbd"')),
    "a lone surrogate in an id": malformed(rb'{"type":"track","event":"E","userId":"\ud83d"}'),
    "a lone surrogate in a name": malformed(rb'{"type":"track","event":"E","userId":"u","\ud83d":1}'),
    "a raw NUL": malformed(with_property(b'"a\0b"')),
    "a raw NUL in an id": malformed(b'{"type":"track","event":"E","userId":"a\0"}'),
    "a raw line feed": malformed(with_property(b'"a\nb"')),
    "an unknown escape": malformed(with_property(rb'"\x41"')),
    "hexadecimal": malformed(with_property(b"0x10")),
    "a leading zero": malformed(with_property(b"007")),
    # Numbers that no parser here keeps.
    "2**64": malformed(with_property(b"18446744073709551616"), LONG),
    "-2**63 - 1": malformed(with_property(b"-9223372036854775809"), LONG),
    "2**64 as an id": malformed(b'{"type":"track","event":"E","userId":18446744073709551616}', LONG),
    "300 digits": malformed(with_property(b"1" * 300), LONG),
    "5,000 digits": malformed(with_property(b"1" * 5_000)),
    "500,000 digits": malformed(with_property(b"1" * 500_000)),
    # Nesting.
    "129 arrays": malformed(with_property(nested(127)), DEEP),
    "129 objects": malformed(with_property(nested(127, b'{"a":', b"}")), DEEP),
    "1,000 arrays": malformed(with_property(nested(1_000)), DEEP),
    "1,000 objects": malformed(with_property(nested(1_000, b'{"a":', b"}")), DEEP),
    "100,000 arrays": malformed(with_property(nested(100_000))),
    "100,000 objects": malformed(with_property(nested(100_000, b'{"a":', b"}"))),
    "100,000 arrays and no call": Bad(nested(100_000), "invalid", "message", "expected an object, got an array"),
    "1,000 objects and no call": malformed(nested(1_000, b'{"a":', b"}"), DEEP),
    # Too large.
    "1.5 MB": Bad(with_property(b'"' + b"x" * 1_500_000 + b'"'), "too_large", "message", "at most 1000000 bytes"),
    # JSON, but no call.
    "a string": Bad(b'"text"', "invalid", "message", "expected an object, got a string"),
    "a number": Bad(b"5", "invalid", "message", "expected an object, got a number"),
    "null": Bad(b"null", "invalid", "message", "expected an object, got null"),
    "true": Bad(b"true", "invalid", "message", "expected an object, got a boolean"),
    "an array": Bad(b"[[]]", "invalid", "message", "expected an object, got an array"),
    "a call within an array": Bad(
        b"[" + raw(call()) + b"]", "invalid", "message", "expected an object, got an array"
    ),
    "an empty object": Bad(b"{}", "invalid", "type", TYPES),
    "a batch": Bad(b'{"batch":[' + raw(call()) + b"]}", "invalid", "type", TYPES),
    "an unknown type": invalid("type", TYPES, type="telepathy"),
    "the type in capitals": invalid("type", TYPES, type="TRACK"),
    "the type a number": invalid("type", TYPES, type=5),
    "the type null": invalid("type", TYPES, type=None),
    "the type an array": invalid("type", TYPES, type=["track"]),
    "two types": Bad(b'{"type":"track","event":"E","userId":"u","type":"x"}', "invalid", "type", TYPES),
    # Ids.
    "no ids": invalid("userId", "expected userId, anonymousId or both", userId="absent"),
    "ids that are null": invalid("userId", "expected userId, anonymousId or both", userId=None, anonymousId=None),
    "ids that are empty": invalid("userId", "expected userId, anonymousId or both", userId="", anonymousId=""),
    "an id that is an object": invalid("userId", "expected a string, got an object", userId={"id": 1}),
    "an id that is a boolean": invalid("anonymousId", "expected a string, got a boolean", anonymousId=True),
    "an id that is an array": invalid("messageId", "expected a string, got an array", messageId=["m"]),
    "an id beyond 2**53 as a float": invalid("userId", "too large to be exact", userId=1e20),
    "an escaped NUL in userId": invalid("userId", "without NUL", userId="a\0b"),
    "an escaped NUL in anonymousId": invalid("anonymousId", "without NUL", anonymousId="\0"),
    "an escaped NUL in messageId": invalid("messageId", "without NUL", messageId="m\0"),
    "no event": invalid("event", "missing; expected a string", event="absent"),
    "an event that is null": invalid("event", "expected a string, got null", event=None),
    "an event that is empty": invalid("event", "expected a string that is not empty", event=" "),
    "a group without id": invalid("groupId", "missing; expected a string", type="group"),
    "an alias without userId": invalid("userId", "missing; expected", type="alias", userId="absent", previousId="p"),
    "an alias without previousId": invalid("previousId", "missing; expected", type="alias"),
    "a delete without userId": invalid(
        "userId", "missing; expected", type="delete", userId="absent", anonymousId="a"
    ),
    # Wrong types at every level.
    "properties": invalid("properties", "expected an object", properties="text"),
    "properties, full array": invalid("properties", "expected an object", properties=[1]),
    "traits": invalid("traits", "expected an object", type="identify", traits=5),
    "integrations": invalid("integrations", "expected an object", integrations=True),
    "context": invalid("context", "expected an object", context="text"),
    "context.app": invalid("context.app", "expected an object", context={"app": "Shop"}),
    "context.app.name": invalid("context.app.name", "expected a string, got an", context={"app": {"name": {}}}),
    "context.screen.width": invalid("context.screen.width", "expected a number", context={"screen": {"width": "w"}}),
    "context.active": invalid("context.active", "expected true or false", context={"active": "perhaps"}),
    "context.externalIds": invalid("context.externalIds", "expected an array", context={"externalIds": {}}),
    "context.externalIds.0": invalid("context.externalIds.0", "expected an object", context={"externalIds": [1]}),
    "timestamp": invalid("timestamp", TIME, timestamp="yesterday"),
    "originalTimestamp": invalid("originalTimestamp", TIME, originalTimestamp=1e300),
    "sentAt": invalid("sentAt", TIME, sentAt={}),
    "receivedAt": invalid("receivedAt", TIME, receivedAt=True),
    "_metadata": invalid("_metadata", "expected an object", _metadata="text"),
}
each_bad_message = pytest.mark.parametrize("bad", MESSAGES.values(), ids=MESSAGES.keys())

#: Bodies of which not one message can be cut: status, code, what the answer must say.
BODIES = {
    "empty": (b"", 400, "malformed", "expected JSON"),
    "blank": (b" \r\n\t", 400, "malformed", "expected JSON"),
    "a string": (b'"text"', 400, "invalid", "expected an object, got a string"),
    "a number": (b"5", 400, "invalid", "expected an object, got a number"),
    "null": (b"null", 400, "invalid", "expected an object, got null"),
    "true": (b"true", 400, "invalid", "expected an object, got a boolean"),
    "NaN": (b"NaN", 400, "malformed", "expected JSON"),
    "a form": (b"data=%7B%7D", 400, "malformed", "expected JSON"),
    "a NUL": (b"\0", 400, "malformed", "expected JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", 400, "malformed", "expected JSON"),
    "UTF-16": ("[{}]".encode("utf-16"), 400, "malformed", "expected JSON"),
    "closing bracket": (b"]", 400, "malformed", "expected JSON"),
    "an empty array": (b"[]", 400, "malformed", "expected at least one message, got an empty array"),
    "an empty array, blanks": (b" [ \n] ", 400, "malformed", "expected at least one message, got an empty array"),
    "cut within an object": (raw(call())[:-5], 400, "malformed", "expected JSON"),
    "cut behind a bracket": (b"[", 400, "malformed", "expected JSON"),
    "cut behind a brace": (b"{", 400, "malformed", "expected JSON"),
    "only commas": (b"[,,,]", 400, "malformed", "none of the 3 messages can be taken"),
    "129 arrays": (nested(129), 400, "invalid", "expected an object, got an array"),
    "130 arrays": (nested(130), 400, "invalid", "expected an object, got an array"),
    "100,000 arrays": (nested(100_000), 400, "invalid", "expected an object, got an array"),
    "100,000 open arrays": (b"[" * 100_000, 400, "invalid", "expected an object, got an array"),
    "100,000 open objects": (b'{"a":' * 100_000, 400, "malformed", "expected JSON"),
    "a quote never closed": (b'["' + b"\\" * 100_001, 400, "malformed", "expected JSON"),
    "10 MB in a string": (with_property(b'"' + b"x" * 10_000_000 + b'"'), 413, "request_entity_too_large", "exceeds"),
    "4,001 messages": (b"[" + b"{}," * 4_000 + b"{}]", 413, "too_many_messages", "at most 4000 messages"),
    "a million commas": (b"[" + b"," * 1_000_000 + b"]", 413, "too_many_messages", "at most 4000 messages"),
    "4 MB of empty arrays": (b"[" + b"[]," * 1_300_000 + b"[]]", 413, "too_many_messages", "at most 4000 messages"),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(database_url=f"sqlite:///{tmp_path_factory.mktemp('bad') / 'adapter.db'}")


@pytest.fixture(scope="module")
def house(settings):
    """One house for all of this table: what no message may ever do is to leave it in disorder."""
    with closing(House.open(settings)) as house:
        yield house


@pytest.fixture(scope="module")
def app(house):
    return create_app(house)


@pytest.fixture(scope="module")
def door(app):
    """A client for all examples of a property."""
    return app.test_client()


@pytest.fixture
def empty(house, settings):
    """The store without messages and without memory of them."""
    path = settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        for table in ("message", "entry", "refusal", "seen_0", "seen_1", "seen_2"):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 the names stand in the line above
        connection.commit()


def send(client, body):
    return client.post("/webhook", data=body, content_type="application/json")


def refused(settings):
    return rows(settings.database_url, "SELECT reason, body FROM refusal ORDER BY id")


def assert_one_shape(answer):
    """A refusal has the one error shape; no answer shows our insides."""
    assert answer.mimetype == "application/json"
    assert not INSIDES.search(answer.text), answer.text
    if answer.status_code != 200:
        assert set(answer.json) == set(ErrorAnswer().fields)
        assert ErrorAnswer().validate(answer.json) == {}
        assert answer.json["success"] is False
        assert answer.json["message"]


def assert_says(errors, bad):
    assert [*errors] == [bad.path]
    (fault,) = errors[bad.path]
    assert bad.said in fault


@pytest.mark.parametrize(("body", "status", "code", "said"), BODIES.values(), ids=BODIES.keys())
@pytest.mark.usefixtures("empty")
def test_a_body_that_holds_nothing_is_refused_clearly(client, settings, body, status, code, said):
    answer = send(client, body)
    assert_one_shape(answer)
    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert said in answer.json["message"]
    assert stored_bodies(settings.database_url) == []


@each_bad_message
@pytest.mark.usefixtures("empty")
def test_a_bad_message_alone_is_400_and_kept(client, settings, bad):
    answer = send(client, bad.body if bad.body.startswith(b"{") else b"[" + bad.body + b"]")
    assert_one_shape(answer)
    assert answer.status_code == 400
    if bad.body:
        assert answer.json["code"] == bad.reason
        assert_says(answer.json["errors"], bad)
        assert refused(settings) == [(bad.reason, bad.body)]
    assert stored_bodies(settings.database_url) == []


@each_bad_message
@pytest.mark.usefixtures("empty")
def test_a_bad_message_between_two_good_ones_costs_them_nothing(client, settings, message, bad):
    before, after = raw(message(messageId="before")), raw(message(messageId="after"))
    answer = send(client, b"[" + b",".join([before, bad.body, after]) + b"]")
    assert_one_shape(answer)
    assert (answer.status_code, answer.json["accepted"], answer.json["duplicates"]) == (200, 2, 0)
    (rejected,) = answer.json["rejected"]
    assert (rejected["index"], rejected["reason"]) == (1, bad.reason)
    assert_says(rejected["errors"], bad)
    assert stored_bodies(settings.database_url) == [before, after]
    assert refused(settings) == [(bad.reason, bad.body)]


@pytest.mark.usefixtures("empty")
def test_all_bad_messages_together_cost_the_good_ones_between_them_nothing(client, settings, message):
    bad = [one.body for name, one in MESSAGES.items() if name != "1.5 MB"]
    good = [raw(message(messageId=f"m-{n}")) for n in range(len(bad))]
    answer = send(client, b"[" + b",".join(one for pair in zip(bad, good, strict=True) for one in pair) + b"]")
    assert (answer.status_code, answer.json["accepted"]) == (200, len(good))
    assert [one["index"] for one in answer.json["rejected"]] == [2 * n for n in range(len(bad))]
    assert stored_bodies(settings.database_url) == good
    assert [body for _, body in refused(settings)] == bad


@pytest.mark.parametrize("tail", [b'{"type":"track","ev', b'{"type":"', b'{"type":"track","event":"\\', b"{", b'"'])
@pytest.mark.usefixtures("empty")
def test_an_array_that_ends_too_early_costs_only_its_last_message(client, settings, message, tail):
    good = [raw(message(messageId=f"m-{n}")) for n in range(2)]
    answer = send(client, b"[" + b",".join([*good, tail]))
    assert_one_shape(answer)
    assert (answer.status_code, answer.json["accepted"]) == (200, 2)
    assert [(one["index"], one["reason"]) for one in answer.json["rejected"]] == [(2, "malformed")]
    assert stored_bodies(settings.database_url) == good
    assert refused(settings) == [("malformed", tail)]


#: Strange, but nothing is wrong with them: taken, and kept byte for byte.
STRANGE = {
    "keys twice": b'{"type":"identify","type":"track","event":"E","event":"F","userId":"u"}',
    "__proto__": b'{"type":"track","event":"E","userId":"u","__proto__":{"type":"x"},"properties":{"__proto__":[]}}',
    "names of methods": b'{"type":"track","event":"E","userId":"u","constructor":1,"__class__":{},"fields":0}',
    "names of our own": b'{"type":"track","event":"E","userId":"u","_schema":{},"a.b":1,"context.app":5,"":null}',
    "256 properties": raw(call(properties={f"p{n}": n for n in range(256)})),
    "20,000 properties": raw(call(properties={f"p{n}": n for n in range(20_000)})),
    "a messageId of 10 KB": raw(call(messageId="m" * 10_240)),
    "a messageId of emoji": raw(call(messageId="🎉👩‍👩‍👧" * 20)),
    "a messageId that is a number": raw(call(messageId=12345678901234567890)),
    "no messageId": raw(call(messageId=None)),
    "an event name of 10 KB": raw(call(event="e" * 10_240)),
    "a property name of 100 KB": raw(call(properties={"n" * 100_000: 1})),
    "an escaped NUL in a property": with_property(rb'"a\u0000b"'),
    "an escaped NUL in a name": with_property(rb'{"\u0000":1}'),
    "the largest integers": with_property(b"[18446744073709551615,-9223372036854775808]"),
    "30 digits behind the point": with_property(b"0.123456789012345678901234567890"),
    "30 digits in quotes": with_property(b'"123456789012345678901234567890"'),
    "128 levels": with_property(nested(126)),
    "deep brackets in a string": with_property(b'"' + b"[{" * 100_000 + b'"'),
    "just under 1 MB": with_property(b'"' + b"x" * 999_900 + b'"'),
    "a year long ago": raw(call(timestamp="0001-01-01T00:00:00Z")),
    "a year to come": raw(call(timestamp="9999-12-31T23:59:59.999-14:00")),
    "controls and escapes": raw(call(userId="\x1b[31m\r\n${jndi:ldap://x}%s{0}")),
}


@pytest.mark.parametrize("body", STRANGE.values(), ids=STRANGE.keys())
@pytest.mark.usefixtures("empty")
def test_what_is_only_strange_is_taken_as_it_is(client, settings, message, body):
    good = raw(message(messageId="good"))
    answer = send(client, b"[" + good + b"," + body + b"]")
    assert (answer.status_code, answer.json["accepted"], answer.json["rejected"]) == (200, 2, [])
    assert stored_bodies(settings.database_url) == [good, body]


@pytest.mark.usefixtures("empty")
def test_neither_answer_nor_log_nor_reason_repeats_what_was_sent(client, settings, caplog, monkeypatch):
    monkeypatch.setattr(logs, "SAID_EVERY_S", 0.0)
    secret = "hunter2-4111111111111111"  # noqa: S105 a canary
    bodies = [
        raw(call(type=secret)),
        raw(call(userId={secret: secret}, timestamp=secret, context={"app": secret, "active": secret})),
        raw(call(properties=secret, event=[secret])),
        b'{"type":"track","userId":"' + secret.encode() + rb'\ud83d"}',
        raw({"type": "track", secret: secret}),
    ]
    answers = [send(client, b"[" + b",".join(bodies) + b"]"), *(send(client, body) for body in bodies)]
    assert [answer.status_code for answer in answers] == [400] * 6
    rejected = [record for record in caplog.records if record.message == "messages were rejected"]
    assert len(rejected) == 6
    details = [detail for (detail,) in rows(settings.database_url, "SELECT detail FROM refusal")]
    assert len(details) == 10
    logged = [repr(record.__dict__) for record in caplog.records]
    assert [text for text in [*(answer.text for answer in answers), *details, *logged] if secret in text] == []


# ---- anything at all


def seeded(examples):
    """The same cases every time: a run that fails here fails everywhere."""
    return examples_of(derandomize=True, database=None, deadline=None, max_examples=examples)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*call(), "context", "app", "traits"]), inner, max_size=4)
    ),
    max_leaves=10,
)
JSONISH = JSON.map(lambda value: json.dumps(value).encode())
SCRAPS = st.lists(
    st.sampled_from(
        [*(bytes([one]) for one in b'[]{},:"\\'), raw(call()), rb"\ud83d", b"NaN", b"1e999", b"\0", b"\xff"]
    )
    | st.binary(max_size=4),
    max_size=12,
).map(b"".join)


@seeded(200)
@given(
    body=st.binary(max_size=200) | JSONISH | SCRAPS,
    content_type=st.sampled_from(["application/json"] * 8 + ["application/json; charset=utf-16", "text/plain", None]),
    encoding=st.sampled_from([None] * 8 + ["gzip", "identity"]),
)
def test_arbitrary_bytes_are_never_a_fault_of_ours(door, body, content_type, encoding):
    headers = {} if encoding is None else {"Content-Encoding": encoding}
    answer = door.post("/webhook", data=body, content_type=content_type, headers=headers)
    assert answer.status_code in (200, 400, 413, 415), answer.text
    assert_one_shape(answer)
    if answer.status_code == 200:
        assert answer.json["accepted"] + answer.json["duplicates"] > 0


#: 1.3 KB, as a browser sends it.
REALISTIC = raw(
    {
        "anonymousId": "5f2c8d52-97a3-4b4e-8a5e-1d2c3b4a5f6e",
        "channel": "browser",
        "context": {
            "active": True,
            "campaign": {"name": "spring", "source": "news", "medium": "email"},
            "externalIds": [{"id": "1", "type": "ga", "collection": "users", "encoding": "none"}],
            "ip": "203.0.113.7",
            "library": {"name": "analytics.js", "version": "next-1.84.0"},
            "locale": "de-AT",
            "page": {"path": "/a", "referrer": "", "search": "?q=ä", "title": "Übersicht", "url": "https://e.com/a"},
            "screen": {"width": 1440, "height": 900, "density": 2},
            "timezone": "Europe/Vienna",
            "userAgent": 'Mozilla/5.0 (Macintosh; Intel "Mac" OS X 10_15_7) AppleWebKit/537.36 \\o/',
            "userAgentData": {"brands": [{"brand": "Chromium", "version": "126"}], "mobile": False},
        },
        "event": "Article Read",
        "integrations": {"Segment.io": True},
        "messageId": "ajs-next-1772366400000-01234567-89ab-cdef-0123-456789abcdef",
        "originalTimestamp": "2026-03-01T12:00:01.000Z",
        "projectId": "source-1",
        "properties": {"title": "Über 🎉", "words": 1250, "share": 0.75, "tags": ["a", "b"], "author": None},
        "receivedAt": "2026-03-01T12:00:03.000Z",
        "sentAt": "2026-03-01T12:00:02.000Z",
        "timestamp": "2026-03-01T12:00:00.000Z",
        "type": "track",
        "userId": "user-1",
        "version": 2,
    }
)


@seeded(200)
@given(
    st.lists(st.tuples(st.integers(0, len(REALISTIC) - 1), st.integers(0, 255)), max_size=6),
    st.sampled_from(["replaced", "inserted", "removed"]),
)
@example([], "replaced")
def test_a_message_with_flipped_bytes_is_taken_or_refused(door, changes, how):
    body = bytearray(REALISTIC)
    for at, byte in sorted(changes, reverse=True):
        body[at : at + (how != "inserted")] = b"" if how == "removed" else bytes([byte])
    answer = send(door, bytes(body))
    assert answer.status_code in (200, 400), answer.text
    assert_one_shape(answer)
    if answer.status_code == 200:
        assert answer.json["accepted"] + answer.json["duplicates"] == 1
    else:
        assert changes


@seeded(60)
@given(st.data())
def test_no_field_of_a_message_can_hold_what_is_a_fault_of_ours(door, data):
    """Anything in any place of a realistic message: taken, or refused by a field's name."""
    sent = json.loads(REALISTIC)
    for _ in range(data.draw(st.integers(1, 3))):
        at = sent
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if not at[key] or not isinstance(at[key], (dict, list)) or data.draw(st.booleans()):
                break
            at = at[key]
        at[key] = data.draw(JSON)
        if sent == {}:
            break
    answer = send(door, json.dumps(sent).encode())
    assert answer.status_code in (200, 400), answer.text
    assert_one_shape(answer)
    if answer.status_code == 400:
        assert answer.json["errors"]
        assert all("expected" in fault for faults in answer.json["errors"].values() for fault in faults)
