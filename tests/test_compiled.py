"""The fast way and marshmallow's own give the same, for every input; what is not known to be equal is refused."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marshmallow import EXCLUDE, INCLUDE, Schema, ValidationError, fields, post_load, validate

from adapter import mapping
from adapter.errors import Refused
from adapter.records import Options
from schemas import compiled, mixpanel, people, segment
from schemas.fields import Number, Object, Part, Property, Said, Text, Timestamp, text
from tests.benchmarks import messages

VALUES = [
    *(None, True, False, 0, 1, -1, 7, 2**53, 2**63 - 1, 2**64 - 1, 0.0, -0.0, 1.0, 1.5, 1e22, 1e300),
    *("", " ", "x", "7", "1.5", "true", "false", "on", "nan", "1e5", "é", "a\0b", "undefined"),
    *("2026-03-01T12:00:00.123Z", "2026-03-01T12:00:00.123456789+02:00", "2026-03-01T12:00:00", "2026-03-01"),
    *("2026-03-01 12:00:00 +0000 UTC", "2026-02-30T00:00:00Z", "20260301T120000Z", "2026-W09-7"),
    *([], [1], ["x"], [{}], [None], {}, {"a": 1}, {"name": "x"}, {"name": None}, {"name": 5}, {"width": "3"}),
]
ABSENT = object()


def full_call(kind: str) -> dict[str, Any]:
    """A valid call with every declared field, so that one fault at a time can be put into it."""
    return {**_full(segment.CALLS[kind]), "type": kind}


def _full(schema: Schema) -> dict[str, Any]:
    samples = {Text: "x", Number: 1.5, fields.Boolean: True, Timestamp: "2026-03-01T12:00:00.123Z", fields.Raw: 2}
    return {
        name: _full(one.schema)
        if isinstance(one, Part)
        else [{}]
        if isinstance(one, fields.List)
        else {"a": [1, {"b": None}]}
        if type(one) is Object
        else samples[type(one)]
        for name, one in schema.fields.items()
    }


def paths(schema: Schema, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, one in schema.fields.items():
        yield (*above, name)
        if isinstance(one, Part):
            yield from paths(one.schema, (*above, name))


def with_one_fault(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A full call with one field replaced or left out, and which; every field by every value."""
    for path in paths(segment.CALLS[kind]):
        for value in (*VALUES, ABSENT):
            data = full_call(kind)
            at = data
            for name in path[:-1]:
                at = at[name]
            if value is ABSENT:
                del at[path[-1]]
            else:
                at[path[-1]] = value
            yield f"{'.'.join(path)} = {value!r}", data


def faulty(kind: str, structs: Any = segment.STRUCTS) -> Iterator[str]:
    """Every such call in which the two ways differ."""
    for fault, data in with_one_fault(kind):
        if difference := differs(data, kind, structs):
            yield f"{fault}: {difference}"


def differs(data: dict[str, Any], kind: str, structs: Any = segment.STRUCTS) -> str | None:
    """How what the typed decoder accepts differs from what marshmallow loads; None where it does not."""
    try:
        fast = msgspec.convert(data, structs[kind])
    except msgspec.ValidationError:
        return None  # marshmallow's turn, in both ways
    try:
        slow = segment.load_slowly(data, kind)
    except (ValidationError, msgspec.ValidationError) as error:
        return f"only the fast way accepts it: {error}"
    decoded = msgspec.json.decode(orjson.dumps(data), type=structs[kind])
    if not repr(fast) == repr(slow) == repr(decoded):
        return f"{fast} is not {slow} or {decoded}"
    for schema, made in DUMPERS.get(kind, ()):
        if list(made(fast).items()) != list(schema.dump(fast).items()):
            return f"{type(schema).__name__} dumps {made(fast)}, marshmallow {schema.dump(fast)}"
    return None


DUMPERS = {
    kind: [
        (schema, compiled.dumper(schema, segment.STRUCTS[kind]))
        for schema in (
            mixpanel.Campaign(),
            *([mixpanel.EventContext()] if kind in ("track", "page", "screen") else []),
            *([mixpanel.PageContext()] if kind == "page" else []),
            *([people.PersonContext()] if kind == "identify" else []),
            *([people.UserUpdateContext()] if kind in ("identify", "group") else []),
            *([people.UserTraits()] if kind == "identify" else []),
            *([people.GroupTraits()] if kind == "group" else []),
        )
    ]
    for kind in segment.CALLS
}


@pytest.mark.parametrize("kind", segment.CALLS)
def test_a_call_with_any_single_fault_is_read_alike(kind: str) -> None:
    assert list(faulty(kind)) == []


@pytest.mark.parametrize(("kind", "schema"), [("track", mixpanel.EventContext), ("page", mixpanel.PageContext)])
def test_what_is_around_an_event_is_what_the_table_says_whatever_came_before(kind: str, schema: type[Schema]) -> None:
    table, options = schema(), Options(token="t")
    for fault, data in with_one_fault(kind):
        try:
            message = segment.load(data)
            (record,) = mapping.map_message(message, "import", 0, options).records
        except (ValidationError, Refused):
            continue
        said = {name: value for name, value in record["properties"].items() if name in mixpanel.names(table)}
        own = {name: value for name, value in (message.properties or {}).items() if name in said}
        expected = {**table.dump(message), **own}
        assert sorted(map(repr, said.items())) == sorted(map(repr, expected.items())), fault


#: A mistake that somebody could make in the table of what is accepted -> a call in which it shows.
PLANTED = {
    "a flag that takes numbers": (fields.Boolean, bool | int),
    "a flag that takes words": (fields.Boolean, bool | str),
    "a text that takes numbers": (Text, str | int),
    "a text that takes anything": (Text, Any),
    "a number that takes words": (Number, int | float | str),
    "a number that is always a float": (Number, float),
    "a time that may lack its zone": (Timestamp, dt.datetime),
    "a time that stays a text": (Timestamp, str),
    "an object that may be an array": (Object, dict[str, Any] | list[Any]),
}


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Structs that are made within are made anew, by what the test has planted, and not kept."""
    compiled._part.cache_clear()
    yield
    compiled._part.cache_clear()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("mistake", PLANTED)
def test_the_table_of_faults_finds_a_planted_mistake(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, accepted = PLANTED[mistake]
    monkeypatch.setitem(compiled._ACCEPTED, field, accepted)
    rename = {name: segment._snake(name) for name in segment.CALLS["track"].fields}
    planted = {"track": compiled.struct(segment.CALLS["track"], bases=(segment.Message,), rename=rename)}
    assert next(faulty("track", planted), None) is not None


def test_the_table_of_faults_finds_a_required_text_that_may_be_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_NOT_BLANK", str)
    rename = {name: segment._snake(name) for name in segment.CALLS["group"].fields}
    planted = {"group": compiled.struct(segment.CALLS["group"], bases=(segment.Message,), rename=rename)}
    assert next(faulty("group", planted), None) is not None


@pytest.mark.parametrize("value", VALUES)
def test_whatever_stands_within_traits_is_dumped_alike(value: Any) -> None:
    data = {"type": "identify", "userId": "u", "messageId": "m"}
    assert differs({**data, "traits": {"address": value}}, "identify") is None
    assert (
        differs({**data, "traits": {"address": {"city": value, "country": value}, "name": value}}, "identify") is None
    )


@pytest.mark.parametrize("value", VALUES)
def test_whatever_stands_within_a_campaign_is_dumped_alike(value: Any) -> None:
    context = {"campaign": {"source": value, "name": value, "other": value}}
    data = {"type": "track", "event": "E", "userId": "u", "messageId": "m", "context": context}
    assert differs(data, "track") is None


anything = st.recursive(
    st.sampled_from([value for value in VALUES if not isinstance(value, (list, dict))]) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A call of any type: full, with some fields left out, some replaced by anything, some added."""
    kind = draw(st.sampled_from(list(segment.CALLS)))
    data = full_call(kind)
    for path in draw(st.lists(st.sampled_from(list(paths(segment.CALLS[kind]))), max_size=4)):
        at = data
        for name in path[:-1]:
            at = at.get(name) if isinstance(at, dict) else None
        if isinstance(at, dict):
            if draw(st.booleans()):
                at.pop(path[-1], None)
            else:
                at[path[-1]] = draw(anything)
    return kind, {**draw(st.dictionaries(st.text(max_size=6), anything, max_size=2)), **data}


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(calls())
def test_whatever_a_call_holds_it_is_read_alike(call: tuple[str, dict[str, Any]]) -> None:
    kind, data = call
    assert differs({**data, "type": kind}, kind) is None


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(calls())
def test_bytes_are_read_as_their_parsed_form_is(call: tuple[str, dict[str, Any]]) -> None:
    """Errors included: the same words by the same paths."""
    _, data = call

    def outcome(load: Any, source: Any) -> Any:
        try:
            return repr(load(source))
        except ValidationError as error:
            return segment.flat(error)

    assert outcome(segment.read, orjson.dumps(data)) == outcome(segment.load, data)


@pytest.mark.parametrize("before", ['{"type":"page"},', '"type",', '"\\"type\\":\\"page\\"",', '{"type" : "alias"},'])
def test_a_type_within_another_object_is_not_the_calls(before: str) -> None:
    raw = f'{{"properties":{{"x":[{before}1]}},"userId":"u","event":"E","type":"track","messageId":"m"}}'.encode()
    assert segment.read(raw).type == "track"


def test_generated_messages_take_the_fast_way_and_become_what_marshmallow_makes_of_them() -> None:
    for line in messages.lines(300):
        data = orjson.loads(line)
        assert differs(data, data["type"]) is None
        msgspec.convert(data, segment.STRUCTS[data["type"]])


def test_what_a_call_declares_is_what_a_message_says() -> None:
    """Message is written by hand for its readers; this holds it to the schemas."""
    declared = {name for struct in segment.STRUCTS.values() for name in struct.__struct_fields__}
    unread = {"channel", "version", "write_key", "_metadata", "options"}
    assert declared - unread == set(segment.Message.__annotations__)


class _Hooked(Schema):
    class Meta:
        unknown = INCLUDE

    name = text()

    @post_load
    def change(self, data: Any, **_: Any) -> Any:
        return data


def schema_of(unknown: str = INCLUDE, **declared: Any) -> Schema:
    return Schema.from_dict(declared)(unknown=unknown)


@pytest.mark.parametrize(
    "schema",
    [
        _Hooked(),
        schema_of(unknown=EXCLUDE, name=text()),
        schema_of(name=Text(allow_none=True, data_key="n")),
        schema_of(name=Text(allow_none=True, attribute="n")),
        schema_of(name=Text(allow_none=True, validate=validate.Length(1))),
        schema_of(name=Text(allow_none=True, load_default="x")),
        schema_of(name=Text()),
        schema_of(name=Text(required=True, allow_none=True)),
        schema_of(name=fields.Integer(allow_none=True)),
        schema_of(name=type("MyText", (Text,), {})(allow_none=True)),
        schema_of(name=fields.List(text(), allow_none=True)),
        schema_of(part=Part(_Hooked, allow_none=True)),
    ],
)
def test_what_is_not_known_to_be_equal_is_refused(schema: Schema) -> None:
    with pytest.raises(compiled.CannotCompile):
        compiled.struct(schema)


@pytest.mark.parametrize(
    "path", ["context.unheard", "context.app.unheard", "traits.items", "properties.get", "traits.a.title"]
)
def test_a_path_that_would_be_read_otherwise_is_refused(path: str) -> None:
    schema = Schema.from_dict({"x": Property("$x", path, "", "")})()
    with pytest.raises(compiled.CannotCompile):
        compiled.dumper(schema, segment.STRUCTS["track"] if "traits" not in path else segment.STRUCTS["identify"])


@pytest.mark.parametrize("ids", [("d", "u"), (None, "u"), ("d", None)])
def test_what_is_written_is_what_marshmallow_dumps(ids: tuple[str | None, str | None]) -> None:
    schema = mixpanel.EventOwned()
    values = dict(zip(schema.fields, (1, "x", *ids, "i"), strict=True))
    written: dict[str, Any] = {}
    compiled.writer(schema)(written, *values.values())
    assert list(written.items()) == list(schema.dump(values).items())


def test_only_plain_properties_of_their_own_name_are_written() -> None:
    for one in (Property("$x", "y", "", ""), Property("$x", "x", "", "", absent=0), text()):
        with pytest.raises(compiled.CannotCompile):
            compiled.writer(Schema.from_dict({"x": one})())


def test_a_field_that_nobody_knows_is_asked_itself() -> None:
    class Shout(Property):
        def serialize(self, attr: str, obj: Any, accessor: Any = None, **kwargs: Any) -> Any:
            return super().serialize(attr, obj, accessor, **kwargs).upper()

    schema = Schema.from_dict({"x": Shout("$x", "event", "", "")})()
    message = segment.load({"type": "track", "event": "e", "userId": "u"})
    assert compiled.dumper(schema, segment.STRUCTS["track"])(message) == schema.dump(message) == {"$x": "E"}


def test_what_several_properties_need_is_read_once() -> None:
    read: list[str] = []

    def words(text: str) -> Any:
        read.append(text)
        return dt.date(2026, 3, len(text))

    schema = Schema.from_dict(
        {
            "a": Property("$a", "context.page.title", "", "", convert=Said(words, "day")),
            "b": Property("$b", "context.page.path", "", "", also=(("context.page.title", Said(words, "month")),)),
            "c": Property("$c", "context.page.url", "", "", convert=Said(words, "year"), absent=0),
        }
    )()
    dump = compiled.dumper(schema, segment.STRUCTS["track"])
    for page in ({"title": "x"}, {"title": "xyz", "path": "/"}, {"url": "xy"}, {}, None):
        context = {} if page is None else {"page": page}
        message = segment.load({"type": "track", "event": "e", "userId": "u", "context": context})
        read.clear()
        dumped = dump(message)
        assert len(read) == len(set(read)) == len((page or {}).keys() & {"title", "url"})
        assert list(dumped.items()) == list(schema.dump(message).items())


def test_a_dict_that_is_given_is_filled() -> None:
    dump = compiled.dumper(mixpanel.EventContext(), segment.STRUCTS["track"])
    message = segment.load(
        {"type": "track", "event": "e", "userId": "u", "context": {"locale": "en", "ip": "1.2.3.4"}}
    )
    given = {"$locale": "beneath", "more": 1}
    assert dump(message, given) is given
    assert given == {"more": 1, **mixpanel.EventContext().dump(message)}
    assert dump(message) == mixpanel.EventContext().dump(message)


def test_the_map_uses_what_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marshmallow itself is not asked for a message that the typed decoder reads."""
    monkeypatch.setattr(Schema, "load", None)
    monkeypatch.setattr(Schema, "dump", None)
    options = Options(token="t")
    for line in messages.lines(50):
        message = segment.read(line)
        for to in mapping.destinations(message, options):
            mapping.map_message(message, to.endpoint, 0, options)
