"""One message to its records. The golden pairs in tests/data are written by hand: they are the documentation."""

import dataclasses
import datetime as dt
import inspect
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter import keys, links, mapping, surroundings, touch
from adapter.config import Settings
from adapter.errors import Refused
from adapter.ingestion import encode
from adapter.links import UNKNOWN, Known, Login
from adapter.parcels import Parcel, Rules, ready
from adapter.records import Options
from adapter.store import Entry
from schemas import mixpanel, segment

DATA = Path(__file__).parent / "data"
OPTIONS = Options(token="project-token")
ACCEPTED_AT_MS = 1_772_366_400_000  # 2026-03-01T12:00:00Z
HOUR_MS = 3_600_000


def mapped(call: dict[str, Any], options: Options = OPTIONS) -> dict[str, list[dict[str, Any]]]:
    message = segment.load(call)
    return {
        to.endpoint: list(mapping.map_message(message, to.endpoint, ACCEPTED_AT_MS, options).records)
        for to in mapping.destinations(message, options)
    }


def event(call: dict[str, Any]) -> dict[str, Any]:
    (record,) = mapped(call)["import"]
    return record


def refusal(call: dict[str, Any]) -> str:
    with pytest.raises(Refused) as refused:
        mapped(call)
    return refused.value.reason


def known_of(device: dict[str, Any]) -> Known:
    """What is known of a message's device: its first user, and who logged in there when, under which device id."""
    logins = (
        Login(int(dt.datetime.fromisoformat(one["time"]).timestamp() * 1000), links.key(one["user"]), one["sent_as"])
        for one in device["logins"]
    )
    return Known(owner=links.key(device["owner"]), logins=tuple(logins))


def prepared(body: bytes, variables: dict[str, str], known: Known) -> dict[str, list[dict[str, Any]]]:
    """What goes out for a message, by endpoint, under these settings."""
    settings = Settings.from_environment(
        {"MIXPANEL_TOKEN": "project-token", "INGESTION_URL": "http://127.0.0.1:1", **variables}
    )
    rules = Rules.of(settings)
    found: dict[str, list[dict[str, Any]]] = {}
    for to in mapping.destinations(segment.read(body), rules.options):
        entry = Entry(endpoint=to.endpoint, message_id=1, accepted_at_ms=ACCEPTED_AT_MS, time_ms=0, body=body)
        parcel = ready(entry, segment.read(body), rules, known)
        if isinstance(parcel, Parcel):
            found[to.endpoint] = [json.loads(record) for record in parcel.records]
        elif parcel.state == "filtered":
            found |= {to.endpoint: [], "filtered": [parcel.reason]}
        if parcel.effect is not None and parcel.effect.holds:
            effect = parcel.effect
            waits = {"device": effect.device, "traits": effect.traits or None, "touch": effect.touch or None}
            found["held"] = [{name: value for name, value in waits.items() if value is not None}]
    return found


@pytest.mark.parametrize("name", sorted(path.name.split(".")[0] for path in DATA.glob("*.segment.json")))
def test_the_golden_pair(name: str) -> None:
    variables, device = DATA / f"{name}.settings.json", DATA / f"{name}.known.json"
    found = prepared(
        (DATA / f"{name}.segment.json").read_bytes(),
        json.loads(variables.read_text()) if variables.exists() else {},
        known_of(json.loads(device.read_text())) if device.exists() else UNKNOWN,
    )
    assert found == json.loads((DATA / f"{name}.mixpanel.json").read_text())


def test_every_setting_that_changes_what_is_sent_has_a_golden_pair() -> None:
    shown = {name for path in DATA.glob("*.settings.json") for name in json.loads(path.read_text())}
    read = re.findall(r"settings\.(\w+)", inspect.getsource(Options.of) + inspect.getsource(Rules.of))
    changes = {one.metadata["env"] for one in dataclasses.fields(Settings) if one.name in read}
    assert {"SHARED_DEVICES", "CONSENT_MISSING"} < changes
    assert changes <= shown


@pytest.mark.parametrize("name", sorted(mixpanel.names(mixpanel.EventOwned()) | mixpanel.NEVER_SENT))
def test_no_caller_can_set_what_is_ours(name: str, message: Callable[..., dict[str, Any]]) -> None:
    plain = event(message())
    spoofed = event(message(properties={name: "mallory", "$failure_reason": "x", "$failure_description": "y"}))
    assert spoofed == plain


def test_the_callers_properties_win_over_the_context(message) -> None:
    call = message(
        properties={"$os": "mine", "ip": "192.0.2.1"}, context={"os": {"name": "theirs"}, "ip": "192.0.2.2"}
    )
    properties = event(call)["properties"]
    assert (properties["$os"], properties["ip"]) == ("mine", "192.0.2.1")


@pytest.mark.parametrize("name", ["$identify", "$create_alias", "$merge"])
def test_an_event_named_like_an_identity_verb_is_refused(name: str, message) -> None:
    assert refusal(message(event=name)) == "identity_verb"


@pytest.mark.parametrize(("name", "expected"), [("Home", "Viewed Home"), (None, "Viewed ")])
@pytest.mark.parametrize("type", ["page", "screen"])
def test_views_are_named_as_segments_destination_names_them(type: str, name, expected: str, message) -> None:
    assert event(message(type, name=name))["event"] == expected


@pytest.mark.parametrize(
    ("how", "both", "name_only", "category_only", "neither"),
    [
        ("actions", "Viewed Home", "Viewed Home", "Viewed ", "Viewed "),
        ("consolidated", *["Loaded a Page"] * 4),
        ("categorized", "Viewed Docs Home Page", None, "Viewed Docs Page", None),
        ("named", "Viewed Home Page", "Viewed Home Page", None, None),
        ("{type}: {category} / {name}", "Page: Docs / Home", "Page: / Home", "Page: Docs /", "Page: /"),
        ("{category} {name}", "Docs Home", "Home", "Docs", None),
    ],
)
def test_views_are_named_as_the_setting_says(how, both, name_only, category_only, neither, message) -> None:
    options = Options(token="t", view_names=how)
    for (name, category), expected in {
        ("Home", "Docs"): both,
        ("Home", None): name_only,
        (None, "Docs"): category_only,
        (None, None): neither,
    }.items():
        call = segment.load(message("page", name=name, category=category))
        found = mapping.map_message(call, "import", ACCEPTED_AT_MS, options)
        assert [record["event"] for record in found.records] == ([] if expected is None else [expected])
        assert found.nothing == ("unnamed_view" if expected is None else None)


def test_products_are_not_sent_one_by_one_if_the_setting_says_so(message) -> None:
    call = message(event="Order Completed", properties={"products": [{"sku": "a"}]})
    assert len(mapped(call)["import"]) == 2
    assert len(mapped(call, Options(token="t", product_events=False))["import"]) == 1


@pytest.mark.parametrize("products", [None, "x", 5, {}, [], [None, "x", 5], {"a": 1}])
def test_an_order_without_products_is_an_event_like_any_other(products, message) -> None:
    assert len(mapped(message(event="Order Completed", properties={"products": products}))["import"]) == 1


@pytest.mark.parametrize(
    "properties", [{"products": [{}] * 255}, {"products": [{}] * 100, "note": "x" * 6_000}], ids=["many", "heavy"]
)
def test_an_order_that_would_swell_stays_one_event(properties, message) -> None:
    (order,) = mapped(message(event="Order Completed", properties=properties))["import"]
    assert order["properties"]["products"] == properties["products"]


def test_no_product_can_set_what_is_ours(message) -> None:
    product = {"sku": "a", "$user_id": "mallory", "time": 1, "$insert_id": "x", "distinct_id": "mallory"}
    order, sold = mapped(message(event="Order Completed", properties={"products": [product]}))["import"]
    ours = ("$device_id", "distinct_id")
    assert {name: sold["properties"][name] for name in ours} == {name: order["properties"][name] for name in ours}
    assert "$user_id" not in sold["properties"]
    assert sold["properties"]["time"] == order["properties"]["time"] - 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"timestamp": "2026-03-01T11:00:00Z", "originalTimestamp": "2026-03-01T10:00:00Z"}, -HOUR_MS),
        ({"timestamp": None, "originalTimestamp": "2026-03-01T10:00:00Z"}, -2 * HOUR_MS),
        ({"timestamp": None, "receivedAt": "2026-03-01T11:30:00Z", "sentAt": "2026-03-01T09:00:00Z"}, -HOUR_MS // 2),
        ({"timestamp": None, "sentAt": "2026-03-01T09:00:00Z"}, -3 * HOUR_MS),
        ({"timestamp": None}, 0),
        ({"timestamp": "2026-03-01T13:00:00Z"}, HOUR_MS),
        ({"timestamp": "2026-03-01T13:00:00.001Z"}, 0),
        ({"timestamp": "2099-01-01T00:00:00Z", "receivedAt": "2026-03-01T11:30:00Z"}, -HOUR_MS // 2),
    ],
)
def test_when_it_happened(fields: dict[str, Any], expected: int, message) -> None:
    assert event(message(**fields))["properties"]["time"] == ACCEPTED_AT_MS + expected


@pytest.mark.parametrize(
    ("message_id", "uuid_mode", "segment_mode"),
    [
        ("0a1b2c3d-0000-4000-8000-000000000001", True, True),
        ("x", True, True),
        ("a" * 37, False, True),
        ("ajs-next-1772366400000-2d81ea1e-a226-4866-a204-b2e2cf3edda1", False, True),
        ("with:colon", False, False),
        ("emoji-🎈", False, False),
        ("anonymous", False, False),
        ("NULL", False, False),
    ],
)
def test_a_message_id_goes_out_as_it_is_where_mixpanel_takes_it(message_id, uuid_mode, segment_mode) -> None:
    for as_segment, verbatim in ((False, uuid_mode), (True, segment_mode)):
        found = keys.insert_id(message_id, as_segment=as_segment)
        assert (found == message_id) == verbatim
        if not verbatim:
            assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", found)


def test_a_message_without_an_id_gets_one_from_its_content(message) -> None:
    first = event(message(messageId=None, sentAt="2026-03-01T12:00:01Z"))
    again = event(message(messageId=None, sentAt="2026-03-01T14:00:00Z", receivedAt="2026-03-01T15:00:00Z"))
    other = event(message(messageId=None, properties={"n": 1}))
    assert first == again
    assert other["properties"]["$insert_id"] != first["properties"]["$insert_id"]


def test_without_traits_there_is_nothing_to_send(message) -> None:
    found = mapping.map_message(segment.load(message("identify", userId="u")), "engage", ACCEPTED_AT_MS, OPTIONS)
    assert (found.records, found.nothing) == ((), "no_traits")


def test_the_source_and_traits_are_on_the_event_if_the_settings_say_so(message) -> None:
    traits = {"plan": "pro", "$user_id": "mallory", "form": "theirs", "$os": "theirs"}
    call = message(properties={"form": "mine"}, context={"traits": traits, "os": {"name": "iOS"}})
    plain = event(call)["properties"]
    assert not {"plan", "segment_source_name"} & set(plain)
    options = Options(token="t", source_name="Shop", event_traits=True)
    (record,) = mapped(call, options)["import"]
    assert record["properties"] == {**plain, "plan": "pro", "segment_source_name": "Shop"}


def test_an_identify_whose_ids_are_equal_links_nothing(message) -> None:
    found = mapped(message("identify", anonymousId="a", userId="a", traits={"plan": "pro"}))
    assert found["import"] == []
    assert [update["$distinct_id"] for update in found["engage"]] == ["a"]


def test_several_group_keys_take_the_group_id_or_a_trait(message) -> None:
    options = Options(token="t", group_keys=(("company", None), ("workspace", "space"), ("team", "team")))
    found = mapped(message("group", userId="u", traits={"space": 1, "team": None, "plan": "pro"}), options)
    assert [(update["$group_key"], update["$group_id"]) for update in found["groups"]][::2] == [
        ("company", "group-1"),
        ("workspace", 1),
    ]
    assert found["engage"][0]["$union"] == {"company": ["group-1"], "workspace": [1]}
    (record,) = mapped(message(context={"groupId": "group-1"}), options)["import"]
    assert record["properties"]["company"] == "group-1"
    assert not {"workspace", "$group_id"} & set(record["properties"])


def test_a_group_call_without_any_of_the_ids_is_nothing(message) -> None:
    options = Options(token="t", group_keys=(("workspace", "space"),))
    call = segment.load(message("group", userId="u", traits={"plan": "pro", "space": True}))
    assert mapping.map_message(call, "groups", 0, options).nothing == "no_group_id"
    assert mapping.map_message(call, "engage", 0, options).records == ()


def test_traits_do_what_the_settings_say_and_siblings_stay(message) -> None:
    options = Options(
        token="t",
        trait_operations=(
            *(("firstName", "set_once"), ("tags", "union"), ("role", "union"), ("legacy", "unset")),
            *(("company.plan", "set_once"), ("company.seats.max", "unset"), ("absent", "union"), ("age.x", "union")),
        ),
    )
    company = {"name": "ACME", "plan": "pro", "seats": {"max": 5, "used": 3}}
    traits = {"firstName": "Ada", "tags": ["a", "b"], "role": "admin", "legacy": 1, "age": 36, "company": company}
    call = message("identify", userId="u", traits=traits)
    updates = mapped(call, options)["engage"]
    assert [{name: update[name] for name in update if name in OPERATIONS} for update in updates] == [
        {"$set": {"age": 36, "company": {"name": "ACME", "seats": {"used": 3}}}},
        {"$set_once": {"$first_name": "Ada", "company.plan": "pro"}},
        {"$union": {"tags": ["a", "b"], "role": ["admin"]}},
        {"$unset": ["legacy", "company.seats.max"]},
    ]
    assert call["traits"]["company"] == {"name": "ACME", "plan": "pro", "seats": {"max": 5, "used": 3}}


OPERATIONS = ("$set", "$set_once", "$union", "$unset")


def test_a_delete_ends_the_profile_of_its_user_alone(message) -> None:
    assert mapped(message("delete"))["engage"] == [
        {"$token": OPTIONS.token, "$distinct_id": "user-1", "$ignore_alias": True, "$delete": "null"}
    ]


@pytest.mark.parametrize(("user", "reason"), [(" NULL ", "no_id"), ("$device:d", "delete_of_a_device")])
def test_a_delete_of_nobody_is_refused(user: str, reason: str, message) -> None:
    assert refusal(message("delete", userId=user)) == reason


@pytest.mark.parametrize(
    ("country", "expected"),
    [
        ("nl", "NL"),
        ("US", "US"),
        ("United States", "US"),
        ("uk", "GB"),
        ("USA", "US"),
        ("South Korea", "KR"),
        ("12", None),
        ("Atlantis", None),
    ],
)
def test_a_country_is_two_letters_or_left_out(country: str, expected: str | None, message) -> None:
    properties = event(message(context={"location": {"country": country}}))["properties"]
    assert properties.get("mp_country_code") == expected


@pytest.mark.parametrize(
    ("ids", "identify", "group"),
    [
        ({}, ["import"], ["import", "groups"]),
        ({"userId": "u"}, ["import", "engage"], ["import", "groups", "engage"]),
        ({"userId": "u", "anonymousId": None}, ["engage"], ["groups", "engage"]),
    ],
)
def test_each_call_reaches_its_endpoints(ids, identify, group, message) -> None:
    reached = {
        kind: [to.endpoint for to in mapping.destinations(segment.load(message(kind) | ids), OPTIONS)]
        for kind in segment.CALLS
        if kind not in ("alias", "delete")
    }
    events = dict.fromkeys(("track", "page", "screen"), ["import"])
    assert reached == {**events, "identify": identify, "group": group}


@pytest.mark.parametrize(("kind", "endpoint"), [("alias", "import"), ("delete", "engage")])
def test_an_alias_is_an_event_and_a_delete_an_update(kind: str, endpoint: str, message) -> None:
    assert [to.endpoint for to in mapping.destinations(segment.load(message(kind)), OPTIONS)] == [endpoint]


def test_a_device_keeps_its_lane_through_login_and_alias(message) -> None:
    calls = [
        message(),
        message(userId="user-1"),
        message(anonymousId="$device:device-1"),
        message("alias"),
        message("page", userId="user-2"),
    ]
    lanes = {to.lane for call in calls for to in mapping.destinations(segment.load(call), OPTIONS)}
    assert len(lanes) == 1


def test_a_lane_is_fixed_for_ever() -> None:
    """Entries on disk carry these numbers."""
    assert [keys.lane(key) for key in ("device-1", "user-1", "")] == LANES


LANES = [255, 405, 510]


@pytest.mark.parametrize(
    ("page", "campaign", "brought"),
    [
        ({"url": "https://a.example/x", "referrer": "https://b.example/"}, None, True),
        ({"url": "https://a.example/x", "referrer": "https://www.a.example/y"}, None, False),
        ({"url": "https://shop.a.example/x", "referrer": "https://a.example/y"}, None, False),
        ({"url": "https://a.example/x", "referrer": ""}, None, False),
        ({"url": "https://a.example/x", "referrer": "not an address"}, None, False),
        ({"url": "https://a.example/x", "referrer": "https://[broken"}, None, False),
        ({"referrer": "https://b.example/"}, None, True),
        ({"url": "https://a.example/x?utm_source=mail"}, None, True),
        ({"url": "https://a.example/x?gclid=1"}, None, False),
        (None, {"source": "mail"}, True),
        (None, {}, False),
        (None, {"source": ["mail"]}, False),
        (None, {"flavour": "x"}, True),
    ],
)
def test_first_touch_needs_a_campaign_or_a_referrer_outside(page, campaign, brought: bool, message) -> None:
    call = message("page", userId="u", anonymousId=None, name="Home", context={"page": page, "campaign": campaign})
    touch = [update["$set_once"] for update in mapped(call).get("engage", [])]
    assert bool(touch) == brought
    if brought:
        assert touch[0]["$initial_referrer"] == (page["referrer"] if page and page.get("referrer") else "$direct")


def test_any_campaign_key_goes_out_as_a_utm_parameter(message) -> None:
    campaign = {"name": "march", "flavour": "mint", "budget": 5, "odd": {"a": 1}}
    call = message(context={"campaign": campaign})
    found = {name: value for name, value in event(call)["properties"].items() if name.startswith("utm_")}
    assert found == {"utm_campaign": "march", "utm_flavour": "mint", "utm_budget": "5"}


def test_a_page_call_without_a_page_context_speaks_of_its_own_page(message) -> None:
    own = {"url": "https://a.example/x", "referrer": "https://b.example/y"}
    page = event(message("page", properties=own))["properties"]
    assert (page["$current_url"], page["$referrer"]) == (own["url"], own["referrer"])
    assert "$current_url" not in event(message(properties=own))["properties"]


def test_what_is_around_an_event_is_written_alike_in_every_process(message) -> None:
    context = {
        "app": {"name": "Blog", "version": "3.2", "build": "8", "namespace": "example.blog"},
        "network": {"wifi": True, "cellular": False, "carrier": "KPN"},
        "library": {"name": "analytics-swift", "version": "1.8"},
        "locale": "nl-NL",
    }
    written = list(surroundings.around(segment.load(message(context=context))).properties)
    declared = [one.data_key for one in mixpanel.EventContext().fields.values()]
    assert len(written) > 8
    assert written == sorted(written, key=declared.index), "not by the order of a set, which is another each time"


def test_what_is_remembered_of_other_messages_does_not_grow_for_ever(message, monkeypatch) -> None:
    kept = {surroundings: surroundings._AROUND, mapping: mapping._SEEN, touch: touch._INITIAL}
    monkeypatch.setattr(surroundings, "KEPT_AROUND", 10)
    for room in (mapping, touch):
        monkeypatch.setattr(room, "REMEMBERED", len(kept[room]) + 10)
    most = {surroundings: 10, mapping: mapping.REMEMBERED, touch: touch.REMEMBERED}
    for n in range(30):
        event(message(properties={f"only-{n}": n}, context={"locale": f"x-{n}", "campaign": {f"only{n}": "x"}}))
    for room, found in kept.items():
        assert 0 < len(found) <= most[room], room
    surroundings._AROUND.clear()
    event(message(context={"locale": "x" * surroundings.MAX_AROUND_BYTES}))
    assert surroundings._AROUND == {}, "what is long is not kept at all"


def test_an_event_has_no_room_for_more_context_than_mixpanel_takes(message) -> None:
    context = {"page": {f"p{n}": n for n in range(300)}}
    found = surroundings.add_context(
        mapping.map_message(segment.load(message(context=context)), "import", ACCEPTED_AT_MS, OPTIONS), context
    )
    assert len(found.records[0]["properties"]) == 254
    assert found.notes == ("context_cut",)


@pytest.mark.parametrize(
    ("properties", "name", "amount"),
    [
        ({"revenue": 5}, "Tip", 5),
        ({"revenue": "5.50"}, "Tip", 5.5),
        ({"revenue": "1e300"}, "Tip", 1e300),
        ({"revenue": "$5"}, "Tip", None),
        ({"revenue": 0}, "Tip", None),
        ({"revenue": True}, "Tip", None),
        ({"total": 9}, "Tip", None),
        ({"total": 9}, "Order Completed", 9),
        ({"total": 9, "revenue": 7}, "Order Completed", 7),
        ({"total": 9}, "Order Cancelled", -9),
        ({"revenue": -7}, "Order Refunded", -7),
        ({"revenue": 2**64 - 1}, "Order Refunded", -(2.0**64)),
        ({}, "Order Refunded", None),
    ],
)
def test_what_a_track_says_of_money(properties, name: str, amount, message) -> None:
    options = Options(token="t", transactions=True)
    call = message(event=name, userId="u", properties=properties)
    found = mapped(call, options).get("counters") or [{"$append": {"$transactions": {"$amount": None}}}]
    assert json.loads(encode(found[0]))["$append"]["$transactions"]["$amount"] == amount


def test_a_counter_on_a_group_is_left_out_and_noted(message) -> None:
    options = Options(token="t", trait_operations=(("seats", "add"),))
    call = segment.load(message("group", userId="u", traits={"seats": 5, "name": "ACME"}))
    found = mapping.map_message(call, "groups", 0, options)
    assert (found.records[0]["$set"], found.notes) == ({"$name": "ACME"}, ("counter_on_a_group",))


def test_the_counter_of_a_visitor_is_refused_and_kept(message) -> None:
    with pytest.raises(Refused, match="userId"):
        mapped(message(properties={"revenue": 5}), Options(token="t", transactions=True))


@pytest.mark.parametrize("name", ["firstName", "first_name", "FirstName", "First Name", "FIRST-NAME", "firstname"])
def test_a_trait_is_known_in_any_spelling(name: str, message) -> None:
    (update,) = mapped(message("identify", userId="u", traits={name: "Ada"}))["engage"]
    assert update["$set"] == {"$first_name": "Ada"}


def test_of_two_spellings_segments_own_wins_and_the_other_stays(message) -> None:
    traits = {"first_name": "Augusta", "firstName": "Ada"}
    (update,) = mapped(message("identify", userId="u", traits=traits))["engage"]
    assert update["$set"] == {"$first_name": "Ada", "first_name": "Augusta"}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(properties=st.dictionaries(st.text() | st.sampled_from(sorted(mixpanel.NEVER_SENT)), json_values, max_size=6))
def test_the_same_message_becomes_the_same_bytes_and_keeps_every_property(properties: dict[str, Any]) -> None:
    call = {
        "type": "track",
        "event": "E",
        "messageId": "m",
        "userId": "u",
        "anonymousId": "a",
        "properties": properties,
    }
    ours = mixpanel.names(mixpanel.EventOwned()) | mixpanel.NEVER_SENT
    first, second = event(call), event(json.loads(json.dumps(call)))
    assert encode(first) == encode(second)
    for name, value in properties.items():
        if name not in ours and not name.startswith("$failure_"):
            assert first["properties"][name] == value
    assert (first["properties"]["$device_id"], first["properties"]["$user_id"]) == ("a", "u")


@given(st.text(min_size=1, max_size=80))
def test_an_insert_id_is_the_uuid_of_its_message_id(message_id: str) -> None:
    found = keys.insert_id(f"{message_id}:")  # a colon is never legal
    assert found == str(uuid.uuid5(keys.INSERT_ID_NAMESPACE, f"{message_id}:"))


def test_the_end_of_the_calendar_is_a_time_like_any_other(message) -> None:
    last = "9999-12-31T23:59:59.999Z"
    assert event(message(timestamp=last, receivedAt=last))["properties"]["time"] == 253_402_300_799_999
