"""Whether a message is sent at all (segment.md 1.5; design 3.15)."""

import fnmatch
import itertools
import sys
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter import filters
from adapter.filters import CARRIERS, Filters, reason
from schemas import segment
from schemas.segment import CALLS, Message

ABSENT = object()
#: Neither yes nor no.
ODD = ["false", "true", "", 0, 1, 0.0, None, [], [True]]

scalars = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3)
json = st.recursive(scalars, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=3), one))


def loaded(type: str = "track", **fields: Any) -> Message:
    base = {"type": type, "messageId": "m-1", "anonymousId": "a", "userId": "u", "projectId": "source-1"}
    base |= {"track": {"event": "Signed Up"}, "group": {"groupId": "g"}, "alias": {"previousId": "a"}}.get(type, {})
    return segment.load({**base, **{name: value for name, value in fields.items() if value is not ABSENT}})


def about(message: Message, **context: Any) -> Message:
    """The message with a context of anything, whatever the schema would say of it."""
    message.context = SimpleNamespace(**context)
    return message


def consenting(preferences: Any) -> Message:
    return loaded(context={"consent": {"categoryPreferences": preferences}})


def test_with_no_filter_every_type_passes() -> None:
    for type in CALLS:
        for message in (loaded(type), loaded(type, integrations={}), loaded(type, integrations=None)):
            assert reason(message, Filters()) is None


# Types, sources


@pytest.mark.parametrize("type", CALLS)
def test_a_type_is_dropped_and_the_others_are_not(type: str) -> None:
    chosen = Filters(drop_types=frozenset({type}))
    assert {one: reason(loaded(one), chosen) for one in CALLS} == {**dict.fromkeys(CALLS), type: "type"}


@pytest.mark.parametrize(
    ("source", "expected"), [("source-1", "source"), ("source-2", None), ("Source-1", None), (ABSENT, None)]
)
def test_a_source_is_dropped_by_its_exact_id(source: Any, expected: str | None) -> None:
    message = segment.load({"type": "page", "userId": "u", **({} if source is ABSENT else {"projectId": source})})
    assert reason(message, Filters(drop_sources=frozenset({"source-1", "source-3"}))) == expected


# Names of events


@pytest.mark.parametrize(
    ("keep", "drop", "sent", "dropped"),
    [
        (["Signed Up"], [], ["Signed Up"], ["signed up", "Signed Up ", "Signed", "Signed Up Now", "Not Signed Up"]),
        ([], ["Signed Up"], ["signed up", "Signed Up Now"], ["Signed Up"]),
        (["Order *"], [], ["Order Completed", "Order ", "Order a\nb"], ["Order", "order x", "My Order x"]),
        (["*"], [], ["", "anything"], []),
        ([], ["*"], [], ["anything", "\n"]),
        ([], ["*Viewed*"], ["viewed"], ["Viewed", "Product Viewed", "Viewed Home"]),
        ([], ["Step ?"], ["Step", "Step ", "Step 10"], ["Step 1", "Step ?", "Step \n"]),
        ([], ["Step [12]"], ["Step 3", "Step 12"], ["Step 1", "Step 2", "Step [12]"]),
        ([], ["Step [!12]"], ["Step 1"], ["Step 3", "Step [!12]"]),
        ([], ["[Beta] Opened"], ["Opened", "Beta Opened"], ["[Beta] Opened", "B Opened"]),
        ([], ["a[*]b"], ["axb"], ["a*b"]),
        ([], ["Open [", "a.c", "x+", "(y"], ["abc", "xx", "Open"], ["Open [", "a.c", "x+", "(y"]),
        (["Order *", "Signed Up"], [], ["Order 1", "Signed Up"], ["Page 1"]),
        (["Order *"], ["Order Test*", "* Debug"], ["Order 1"], ["Order Test 1", "Order Debug", "Other"]),
        (["Order 1"], ["Order 1"], [], ["Order 1"]),
        ([], ["Überweisung *", "注文*"], ["überweisung 1"], ["Überweisung 1", "注文", "注文した"]),
    ],
)
def test_events_are_chosen_by_name(keep: list[str], drop: list[str], sent: list[str], dropped: list[str]) -> None:
    chosen = Filters(keep_events=tuple(keep), drop_events=tuple(drop))
    for again in range(2):  # the second time from what is remembered
        for name in (*sent, *dropped):
            message = msgspec.structs.replace(loaded(), event=name)
            assert reason(message, chosen) == ("event" if name in dropped else None), (name, again)


@pytest.mark.parametrize("type", sorted(set(CALLS) - {"track"}))
def test_names_of_events_choose_among_tracks_only(type: str) -> None:
    chosen = Filters(keep_events=("Order *",), drop_events=("*",))
    assert reason(loaded(type, name="Home", category="x"), chosen) is None


names = st.text(st.sampled_from("ab*?[]!-^.\\\n"), max_size=8) | st.text(max_size=5)


@given(patterns=st.lists(names, max_size=5), name=names)
def test_a_name_matches_as_fnmatch_has_it_or_literally(patterns: list[str], name: str) -> None:
    expected = any(name == one or fnmatch.fnmatchcase(name, one) for one in patterns)
    matches = filters._matcher(tuple(patterns))
    assert matches(name) == expected == matches(name)


def test_no_name_makes_a_glob_slow() -> None:
    drops = Filters(drop_events=("*a" * 40 + "*b",)).drops
    assert not any(drops("a" * length) for length in (*range(filters.MAX_CHARS), 3_000))


def test_long_names_are_not_remembered() -> None:
    """Otherwise some thousand of them would fill the machine."""
    drops = Filters(drop_events=("a*",)).drops
    for length, kept in ((filters.MAX_CHARS, True), (filters.MAX_CHARS + 1, False)):
        name = "a" * length
        before = sys.getrefcount(name)
        assert drops(name)
        assert (sys.getrefcount(name) > before) == kept


# The integrations object


@pytest.mark.parametrize(
    ("integrations", "expected"),
    [
        ({}, None),
        ({"All": True}, None),
        ({"All": False}, "integrations"),
        ({"All": {}}, None),
        ({"all": False, "ALL": False}, None),
        ({"Segment.io": True}, None),
        ({"All": False, "Segment.io": True, "Salesforce": True}, "integrations"),
        ({"Mixpanel": False}, "integrations"),
        ({"Mixpanel (Actions)": False}, "integrations"),
        ({"Mixpanel (Legacy)": False}, "integrations"),
        ({"mixpanel": False, "MIXPANEL": False, "Mixpanel ": False}, None),
        ({"All": True, "Mixpanel": False}, "integrations"),
        ({"All": False, "Mixpanel": True}, None),
        ({"All": False, "Mixpanel (Actions)": True}, None),
        ({"All": False, "mixpanel": True}, "integrations"),
        ({"All": False, "Mixpanel": {}}, None),
        ({"All": False, "Mixpanel": {"enabled": False}}, None),
        ({"Mixpanel": False, "Mixpanel (Actions)": True}, "integrations"),
        ({"Mixpanel": True, "Mixpanel (Actions)": False}, "integrations"),
        ({"All": False, "Mixpanel": True, "Mixpanel (Legacy)": False}, "integrations"),
        ({"All": True, "Mixpanel": {"x": 1}, "Mixpanel (Legacy)": False}, "integrations"),
        *(({"Mixpanel": odd}, None) for odd in ODD),
        *(({"All": odd}, None) for odd in ODD),
        *(({"All": False, "Mixpanel": odd}, "integrations") for odd in ODD),
    ],
)
def test_a_message_says_itself_whether_it_is_for_mixpanel(integrations: Any, expected: str | None) -> None:
    assert reason(loaded(integrations=integrations), Filters()) == expected
    assert reason(loaded(integrations=integrations), Filters(drop_types=frozenset({"page"}))) == expected


@pytest.mark.parametrize("carrier", ["Webhooks", "Webhooks (Actions)", "Extensible Webhook"])
def test_what_segment_replays_to_a_webhook_is_sent(carrier: str) -> None:
    """Segment's replay marks each message for its target alone, and the target of ours is a webhook."""
    assert reason(loaded(integrations={"All": False, carrier: True}), Filters()) is None
    assert reason(loaded(integrations={"All": False, carrier: False}), Filters()) == "integrations"
    assert reason(loaded(integrations={carrier: False}), Filters()) is None
    assert reason(loaded(integrations={"All": False, carrier: True, "Mixpanel": False}), Filters()) == "integrations"


def test_the_names_of_this_destination_are_a_setting() -> None:
    chosen = Filters(integration_names=("My Function (My Workspace)",))
    assert reason(loaded(integrations={"My Function (My Workspace)": False}), chosen) == "integrations"
    assert reason(loaded(integrations={"Mixpanel": False}), chosen) is None
    assert reason(loaded(integrations={"All": False, "Mixpanel": True}), chosen) == "integrations"
    assert reason(loaded(integrations={"All": False}), Filters(integration_names=())) == "integrations"


def test_all_is_never_a_name_of_ours() -> None:
    chosen = Filters(integration_names=("Mixpanel", "All"))
    assert reason(loaded(integrations={"All": False, "Mixpanel": True}), chosen) is None


def test_what_is_odd_is_as_good_as_not_said() -> None:
    keys = ("All", "Mixpanel", "Mixpanel (Actions)", "Webhooks")
    for values in itertools.product([ABSENT, True, False, "no", 0, None], repeat=len(keys)):
        said = {key: value for key, value in zip(keys, values, strict=True) if value is not ABSENT}
        clear = {key: value for key, value in said.items() if isinstance(value, bool)}
        dropped = reason(loaded(integrations=said), Filters())
        assert dropped == reason(loaded(integrations=clear), Filters())
        ours = [clear.get("Mixpanel"), clear.get("Mixpanel (Actions)")]
        assert (dropped is not None) >= (False in ours), "a false of ours always drops"
        assert (dropped is None) >= (True in ours and False not in ours), "a true of ours is enough"


# Violations of a tracking plan

VIOLATION = {"type": "Required", "field": "properties.products", "description": "properties.products is required"}


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({}, None),
        ({"protocols": None, "violations": None}, None),
        ({"protocols": {}}, None),
        ({"protocols": {"event_version": 2}}, None),
        ({"protocols": {"omitted": ["coupon"]}}, None),
        ({"protocols": {"violations": []}}, None),
        ({"protocols": {"violations": [VIOLATION]}}, "violations"),
        ({"protocols": {"violations": {"0": VIOLATION}}}, "violations"),
        ({"violations": []}, None),
        ({"violations": [VIOLATION]}, "violations"),
        ({"violations": {"properties.products": "required"}}, "violations"),
        ({"protocols": {"violations": []}, "violations": [VIOLATION]}, "violations"),
        *(({"protocols": {"violations": odd}, "violations": odd}, None) for odd in (True, "x", 1, 0.5)),
        *(({"protocols": odd}, None) for odd in (True, "x", 1, [VIOLATION])),
    ],
)
def test_a_breach_of_the_tracking_plan_is_dropped_by_setting_only(context: Any, expected: str | None) -> None:
    assert reason(about(loaded(), **context), Filters()) is None
    assert reason(about(loaded(), **context), Filters(drop_violations=True)) == expected


def test_a_message_without_context_breaks_no_plan() -> None:
    assert reason(loaded(), Filters(drop_violations=True)) is None
    assert reason(loaded(context={}), Filters(drop_violations=True)) is None


@pytest.mark.parametrize("name", ["protocols", "violations"])
def test_the_schema_keeps_what_is_asked_for(name: str) -> None:
    context = {"protocols": {"violations": [VIOLATION]}} if name == "protocols" else {"violations": [VIOLATION]}
    assert reason(loaded(context=context), Filters(drop_violations=True)) == "violations"


# Consent

ANALYTICS = Filters(consent_categories=("analytics",))
BOTH = Filters(consent_categories=("analytics", "ads"))


@pytest.mark.parametrize(
    ("preferences", "one", "both"),
    [
        ({"analytics": True}, None, "consent"),
        ({"analytics": True, "ads": True}, None, None),
        ({"analytics": True, "ads": False}, None, "consent"),
        ({"analytics": False, "ads": True}, "consent", "consent"),
        ({"ads": True}, "consent", "consent"),
        ({"Analytics": True, "ads": True}, "consent", "consent"),
        ({}, "consent", "consent"),
        *(({"analytics": odd, "ads": True}, "consent", "consent") for odd in (*ODD, {})),
    ],
)
def test_all_categories_must_be_agreed_to(preferences: Any, one: str | None, both: str | None) -> None:
    assert reason(consenting(preferences), Filters()) is None, "nobody asked for it"
    assert reason(consenting(preferences), ANALYTICS) == one
    assert reason(consenting(preferences), BOTH) == both
    lenient = Filters(consent_categories=("analytics", "ads"), consent_required=False)
    assert reason(consenting(preferences), lenient) == both, "what is left out of preferences is refused, as ever"


@pytest.mark.parametrize(
    "context",
    [
        ABSENT,
        None,
        {},
        {"consent": None},
        {"consent": {}},
        {"consent": {"categories": {"analytics": True}}},
        *({"consent": {"categoryPreferences": odd}} for odd in (None, True, "analytics", 1, [], ["analytics"])),
    ],
)
def test_a_message_without_preferences_is_dropped_unless_the_setting_says_otherwise(context: Any) -> None:
    message = loaded(context=context)
    assert reason(message, ANALYTICS) == "consent_missing"
    assert reason(message, Filters(consent_categories=("analytics",), consent_required=False)) is None


def test_the_spelling_of_the_first_kotlin_releases_is_understood() -> None:
    old = {"categoryPreference": {"analytics": False}}
    assert reason(loaded(context={"consent": old}), ANALYTICS) == "consent"
    assert reason(loaded(context={"consent": {"categoryPreference": {"analytics": True}}}), ANALYTICS) is None
    both = {**old, "categoryPreferences": {"analytics": True}}
    assert reason(loaded(context={"consent": both}), ANALYTICS) is None


# Together


def test_a_deletion_is_never_held_up_by_what_the_message_says() -> None:
    strict = Filters(drop_violations=True, consent_categories=("analytics",), keep_events=("x",))
    for said in ({"All": False}, {"Mixpanel": False}):
        message = loaded("delete", integrations=said, context={"consent": {"categoryPreferences": {}}})
        assert reason(message, Filters()) is None
        assert reason(message, strict) is None
    assert reason(loaded("delete", integrations=[], context=[]), strict) is None, "as Segment sends it"
    assert reason(loaded("delete"), Filters(drop_types=frozenset({"delete"}))) == "type"
    assert reason(loaded("delete"), Filters(drop_sources=frozenset({"source-1"}))) == "source"


def test_the_first_filter_in_the_order_of_the_table_gives_the_reason() -> None:
    """The tallies must not depend on what else was wrong."""
    message = loaded(integrations={"All": False})
    about(message, violations=[VIOLATION], consent={"categoryPreferences": {}})
    settings: dict[str, Any] = {
        "drop_types": frozenset({"track"}),
        "drop_sources": frozenset({"source-1"}),
        "drop_events": ("Signed *",),
        "drop_violations": True,
        "consent_categories": ("analytics",),
    }
    found = []
    while settings:
        found.append(reason(message, Filters(**settings)))
        settings.pop(next(iter(settings)))
        if found[-1] == "event":
            found.append(reason(message, Filters(**settings)))
            message.integrations = None
    assert found == ["type", "source", "event", "integrations", "violations", "consent"]


def test_filters_are_values() -> None:
    assert Filters(drop_events=("a*",)) == Filters(drop_events=("a*",)) != Filters(drop_events=("b*",))
    assert len({Filters(keep_events=("a",)), Filters(keep_events=("a",))}) == 1
    assert "lambda" not in repr(Filters(keep_events=("a*",)))


WORDS = {"type", "source", "event", "integrations", "violations", "consent", "consent_missing", None}
keys = st.sampled_from(["All", "Mixpanel", "Mixpanel (Actions)", *CARRIERS]) | st.text(max_size=3)
any_filters = st.builds(
    Filters,
    drop_types=st.frozensets(st.sampled_from(sorted(CALLS)), max_size=2),
    keep_events=st.lists(names, max_size=2).map(tuple),
    drop_events=st.lists(names, max_size=2).map(tuple),
    integration_names=st.lists(keys, max_size=3).map(tuple),
    drop_violations=st.booleans(),
    consent_categories=st.lists(st.text(max_size=3), max_size=2).map(tuple),
    consent_required=st.booleans(),
)


@given(
    type=st.sampled_from(sorted(CALLS)),
    integrations=st.none() | st.dictionaries(keys, json, max_size=4),
    consent=json | st.fixed_dictionaries({"categoryPreferences": json}),
    protocols=json | st.fixed_dictionaries({"violations": json}),
    violations=json,
    chosen=any_filters,
)
def test_no_json_is_a_fault(type, integrations, consent, protocols, violations, chosen) -> None:
    message = loaded(type, integrations=integrations)
    about(message, consent=consent, protocols=protocols, violations=violations)
    assert reason(message, chosen) in WORDS
    assert reason(message, Filters()) in ("integrations", None)
    message.integrations = None
    assert reason(message, Filters()) is None


@given(integrations=st.dictionaries(keys, json, max_size=4), consent=st.dictionaries(st.text(max_size=3), json))
def test_the_same_message_read_from_bytes_has_the_same_end(integrations: Any, consent: Any) -> None:
    call = {"type": "page", "userId": "u", "integrations": integrations, "context": {"consent": consent}}
    chosen = Filters(consent_categories=("analytics",))
    assert reason(segment.load(call), chosen) == reason(segment.read(msgspec.json.encode(call)), chosen)
