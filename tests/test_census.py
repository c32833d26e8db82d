"""What a set of logs will do to the identity graph (design 3.4, 3.5, 3.13; mixpanel.md 1.2, 1.3, 6.1.1)."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Set
from contextlib import closing
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter import census, reports, verbs
from adapter.archive import Archive
from adapter.census import decision
from adapter.census.report import Report
from adapter.census.said import say
from adapter.config import Settings
from adapter.parcels import Rules
from tests.conftest import raw, rows
from tests.processes import ROOT, adapter, environment
from tests.world import World

LOG = ROOT / "tests" / "data" / "identities.jsonl"
D1, D2, D3 = (f"{n:08x}-5e6d-4c1b-8a7f-0242ac120002" for n in (1, 2, 3))
RULES = Rules.of(Settings())


def call(type: str, anonymous_id: str | None = None, user_id: str | None = None, **fields: Any) -> dict[str, Any]:
    """A valid call with a messageId of its own unless it has one."""
    ids = {"anonymousId": anonymous_id, "userId": user_id}
    needed = {"track": {"event": "E"}, "group": {"groupId": "g"}}.get(type, {})
    base = {"type": type, "messageId": str(uuid.uuid4()), **needed, **ids, **fields}
    return {name: value for name, value in base.items() if value is not None}


def alias(previous_id: str, user_id: str, **fields: Any) -> dict[str, Any]:
    return call("alias", user_id=user_id, previousId=previous_id, **fields)


def taken(*calls: dict[str, Any], rules: Rules = RULES, worst: int = 100, memory_mb: int = 16) -> Report:
    return census.take(map(raw, calls), rules, worst=worst, memory_mb=memory_mb)


def known(*calls: dict[str, Any]) -> tuple[int, int, int]:
    """Events that end on a known person: by Segment in Simplified, by Segment in Original, by the adapter."""
    found = taken(*calls).graph.known
    assert found.events == sum(one["type"] in ("track", "page", "screen") for one in calls)
    return found.segment_simplified, found.segment_original, found.adapter


# One small log whose every line was written, and whose every number was counted, by hand.


def test_the_small_log_counted_by_hand() -> None:
    found = census.take(LOG.read_bytes().splitlines(), RULES, worst=3)
    assert found.read == 24
    assert found.by_type == {"page": 8, "track": 5, "identify": 3, "alias": 3, "group": 1}
    assert found.invalid == {"malformed": 1, "invalid": 1}
    assert (found.duplicates, found.left_out) == (1, {"integrations": 1})
    assert found.refused == {
        "no_id": 1,
        "identity_verb": 1,
        "alias_of_a_user": 1,
        "alias_of_anothers_device": 1,
    }
    assert found.notes == {"junk_user_id": 1, "user_id_is_a_device": 1}
    assert [tuple(one.values()) for one in found.junk] == [("null", "anonymousId", 1), ("undefined", "userId", 1)]
    graph = found.graph
    # ada, ben, cleo, dan, eve, fay, benjamin and gil; devices 1 to 6 and the kiosk.
    assert (graph.people, graph.devices, graph.links, graph.visitors) == (8, 7, 5, 2)
    assert (graph.shared.devices, graph.shared.most_people) == (2, 3)
    assert graph.shared.worst == (
        {"device": "kiosk-1", "people": 3, "first_user": "cleo"},
        {"device": D2, "people": 2, "first_user": "ben"},
    )
    # ada has devices 1 and 5; ben, cleo and fay one each.
    spread = graph.devices_of_a_person
    assert (spread.people, spread.median, spread.p90, spread.p99, spread.most) == (4, 1, 2, 2, 2)
    assert spread.worst == ({"user": "ada", "devices": 2},)
    original = graph.original
    assert (original.not_guid, original.not_guid_identified, original.crowded, original.orphans) == (1, 1, 0, 0)
    # ben, cleo and eve sign three events. Of the others the adapter knows those of devices 1, 2 (two), kiosk, 4 and
    # 5; Segment in Simplified those of 2 (two) and kiosk; in Original that of 1.
    assert (graph.known.events, graph.known.adapter) == (13, 3 + 6)
    assert (graph.known.segment_simplified, graph.known.segment_original) == (3 + 3, 3 + 1)


def test_the_readme_shows_what_the_command_prints(tmp_path: Path) -> None:
    found = adapter(tmp_path, "identity", "report", str(LOG))
    assert (found.returncode, found.stderr) == (0, "")
    shown = (ROOT / "README.md").read_text().split("identity report tests/data/identities.jsonl\n```\n\n```\n", 1)[1]
    assert shown.split("```", 1)[0] == found.stdout


# Who is joined, by whom.


@pytest.mark.parametrize(
    ("linking", "expected"),
    [
        (call("identify", D1, "ada"), (0, 1, 1)),
        (call("track", D1, "ada"), (2, 1, 2)),
        (call("page", D1, "ada"), (2, 1, 2)),
        (call("screen", D1, "ada"), (2, 1, 2)),
        (call("group", D1, "ada"), (0, 0, 0)),
        (alias(D1, "ada"), (0, 0, 1)),
        (alias(f"$device:{D1}", "ada"), (0, 0, 1)),
        (call("delete", D1, "ada"), (0, 0, 0)),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_what_links_a_visitor(linking: dict[str, Any], expected: tuple[int, int, int], before: bool) -> None:
    visit = call("page", D1)
    assert known(*((linking, visit) if before else (visit, linking))) == expected


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (D1, (0, 1, 1)),
        (D1.upper(), (0, 1, 1)),
        (f"$device:{D1}", (0, 1, 1)),
        ("abc-1-2-3-4", (0, 1, 1)),
        ("session_abc123_v1", (0, 0, 1)),
        ("abc-1-2-3", (0, 0, 1)),
    ],
)
def test_original_joins_only_guids(device: str, expected: tuple[int, int, int]) -> None:
    assert known(call("page", device), call("identify", device, "ada")) == expected


def test_junk_is_nobody_and_joins_nobody() -> None:
    found = taken(
        call("page", "null"),
        call("page", " NULL ", "ada"),
        call("page", D1, "Undefined"),
        call("identify", D2, "0"),
        alias("anonymous", "ada"),
    )
    graph = found.graph
    assert (graph.people, graph.devices, graph.links) == (1, 2, 0)
    assert found.refused == {"no_id": 2}
    assert found.notes == {"junk_anonymous_id": 1, "junk_user_id": 2}
    assert [tuple(one.values()) for one in found.junk] == [
        ("null", "anonymousId", 2),
        ("undefined", "userId", 1),
        ("0", "userId", 1),
        ("anonymous", "previousId", 1),
    ]
    assert (graph.known.events, graph.known.adapter) == (3, 1)


def test_an_event_with_a_junk_user_is_lost_by_segment_and_the_visitors_here() -> None:
    assert known(call("track", D1, "ada"), call("page", D1, "undefined")) == (1, 1, 2)


def test_a_user_id_that_is_a_device_is_no_user() -> None:
    alone, beside = call("page", None, f"$device:{D1}"), call("page", D1, f"$device:{D2}")
    assert taken(alone, beside).graph.people == 0
    assert known(alone, beside, call("track", D1, "ada")) == (1, 1, 3)
    assert taken(alias(D1, f"$device:{D2}")).refused == {"alias_to_a_device": 1}


def test_two_equal_ids_are_joined_by_segment_alone() -> None:
    found = taken(call("page", "x", "x"), call("page", "x"), call("identify", "x", "x"))
    assert found.notes == {"ids_are_equal": 2}
    assert (found.graph.devices, found.graph.links) == (1, 0)
    assert (found.graph.known.segment_simplified, found.graph.known.adapter) == (2, 1)


@pytest.mark.parametrize("name", ["$identify", "$create_alias", "$merge"])
def test_an_event_named_like_an_identity_verb_is_refused_and_links_nothing(name: str) -> None:
    calls = call("page", D1), call("track", D1, "ada", event=name)
    assert taken(*calls).refused == {"identity_verb": 1}
    assert known(*calls) == (0, 0, 0)


def test_an_alias_of_a_user_is_refused_wherever_the_user_is_seen() -> None:
    for seen in (call("track", None, "ada"), alias(D3, "ada"), call("group", D1, "ada")):
        for calls in ((alias("ada", "eve"), seen), (seen, alias("ada", "eve"))):
            found = taken(*calls)
            assert found.refused == {"alias_of_a_user": 1}
            assert found.graph.people == 2
    assert taken(alias("ada", "ada")).notes == {"alias_of_equal_ids": 1}


def test_an_alias_of_anothers_device_is_refused_each_time() -> None:
    first = call("track", D1, "ada", timestamp="2026-03-01T10:00:00Z")
    late = [alias(D1, "eve", timestamp=f"2026-03-01T1{n}:00:00Z") for n in (1, 2)]
    found = taken(*late, first, alias(D1, "ada"))
    assert found.refused == {"alias_of_anothers_device": 2}
    assert found.graph.shared.worst == ({"device": D1, "people": 2, "first_user": "ada"},)


def test_an_alias_of_anothers_device_is_refused_though_its_user_is_seen_there_too() -> None:
    times = [{"timestamp": f"2026-03-01T1{n}:00:00Z"} for n in range(3)]
    calls = call("track", D1, "ada", **times[0]), alias(D1, "eve", **times[1]), call("track", D1, "eve", **times[2])
    assert taken(*calls).refused == {"alias_of_anothers_device": 1}


# Who comes first.


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ({"timestamp": "2026-03-01T10:00:00Z"}, {"timestamp": "2026-03-01T10:00:00.000001Z"}),
        ({"timestamp": "2026-03-01T12:00:00+03:00"}, {"timestamp": "2026-03-01T10:00:00Z"}),
        ({"timestamp": "1969-12-31T23:59:59Z"}, {"timestamp": "1970-01-01T00:00:00Z"}),
        ({"originalTimestamp": "2026-03-01T10:00:00Z"}, {"timestamp": "2026-03-01T10:00:01Z"}),
        ({"timestamp": "2026-03-01T10:00:00Z"}, {}),
        # A clock that runs ahead of its arrival counts as its arrival.
        (
            {"timestamp": "2031-01-01T00:00:00Z", "receivedAt": "2026-03-01T10:00:00Z"},
            {"timestamp": "2026-03-01T10:00:01Z", "receivedAt": "2026-03-01T10:00:02Z"},
        ),
        (
            {"timestamp": "2026-03-01T10:00:00Z", "receivedAt": "2026-03-01T10:00:01Z"},
            {"timestamp": "2026-03-01T10:00:00Z", "receivedAt": "2026-03-01T10:00:02Z"},
        ),
        ({"messageId": "a"}, {"messageId": "b"}),
    ],
)
@pytest.mark.parametrize("memory_mb", [0, 16])
def test_the_first_user_is_the_first_in_the_order_of_replay(early: Any, late: Any, memory_mb: int) -> None:
    first, second = call("track", D1, "zoe", **early), call("identify", D1, "ada", **late)
    for calls in ((first, second), (second, first)):
        (shared,) = taken(*calls, memory_mb=memory_mb).graph.shared.worst
        assert shared == {"device": D1, "people": 2, "first_user": "zoe"}


@pytest.mark.parametrize("memory_mb", [0, 16])
@pytest.mark.parametrize("linking", ["track", "identify", "alias", "both"])
def test_of_several_messages_of_a_user_the_earliest_counts(linking: str, memory_mb: int) -> None:
    def link(user: str, hour: int) -> dict[str, Any]:
        at = {"timestamp": f"2026-03-01T{hour}:00:00Z"}
        if linking == "alias" or (linking == "both" and hour < 12):
            return alias(D1, user, **at)
        return call("track" if linking == "both" else linking, D1, user, **at)

    for calls in permutations([link("zoe", 10), link("ada", 11), link("zoe", 12)]):
        (shared,) = taken(*calls, memory_mb=memory_mb).graph.shared.worst
        assert shared["first_user"] == "zoe"


def test_in_original_the_first_identify_has_the_device_and_a_cluster_has_501_members() -> None:
    devices = [str(uuid.UUID(int=n)) for n in range(1, 511)]
    times = [f"2026-03-01T10:{n // 60:02d}:{n % 60:02d}Z" for n in range(510)]
    identifies = [call("identify", one, "ada", timestamp=at) for one, at in zip(devices, times, strict=True)]
    late = [call("identify", one, "eve", timestamp="2026-03-02T00:00:00Z") for one in devices]
    visits = [call("page", one) for one in devices[:505]]
    found = taken(*late, *visits, *reversed(identifies), worst=1)
    assert (found.graph.original.crowded, found.graph.original.orphans) == (1, 10)
    assert found.graph.devices_of_a_person.worst == ({"user": "ada", "devices": 510},)
    assert (found.graph.known.segment_original, found.graph.known.adapter) == (500, 505)


def test_how_many_devices_people_have() -> None:
    calls = [call("track", f"{user}/{n}", f"user-{user}") for user in range(1, 101) for n in range(user)]
    spread = taken(*calls, worst=2).graph.devices_of_a_person
    assert (spread.people, spread.median, spread.p90, spread.p99, spread.most) == (100, 50, 90, 99, 100)
    assert spread.worst == ({"user": "user-100", "devices": 100}, {"user": "user-99", "devices": 99})


# What is counted once, or not at all.


def test_a_message_counts_once_by_source_type_and_message_id() -> None:
    one = call("page", D1, messageId="m", projectId="p")
    others = one | {"projectId": "q"}, one | {"type": "screen"}, one | {"messageId": "n"}
    found = taken(one, one, *others, one | {"sentAt": "2026-03-01T10:00:00Z"})
    assert (found.read, found.duplicates, sum(found.by_type.values())) == (6, 2, 4)
    unnamed = {name: value for name, value in one.items() if name != "messageId"}
    assert taken(unnamed, unnamed, {**unnamed, "anonymousId": D2}).duplicates == 1


def test_what_the_settings_filter_is_left_out_of_everything() -> None:
    rules = Rules.of(replace(Settings(), drop_types=frozenset({"screen"}), view_names="named"))
    calls = call("screen", D1, "ada"), call("page", D1, "ada"), call("page", D1, name="Home")
    found = taken(*calls, rules=rules)
    assert found.left_out == {"type": 1, "unnamed_view": 1}
    assert (found.graph.people, found.graph.known.events, found.graph.known.adapter) == (0, 1, 0)


def test_ids_that_the_settings_call_junk_are_nobody_here_and_somebody_to_segment() -> None:
    rules = Rules.of(replace(Settings(), junk_ids=("Test-User", "kiosk")))
    found = taken(
        call("page", D1),
        call("track", D1, "test-user"),
        call("page", "kiosk"),
        call("page", "kiosk", "ada"),
        rules=rules,
    )
    assert [tuple(one.values()) for one in found.junk] == [("kiosk", "anonymousId", 2), ("test-user", "userId", 1)]
    assert (found.refused, found.notes) == ({"no_id": 1}, {"junk_user_id": 1, "junk_anonymous_id": 1})
    assert (found.graph.people, found.graph.devices, found.graph.links) == (1, 1, 0)
    assert found.graph.original.not_guid == 0
    assert (found.graph.known.events, found.graph.known.adapter, found.graph.known.segment_simplified) == (4, 1, 4)


def test_without_link_events_only_events_link() -> None:
    rules = Rules.of(replace(Settings(), link_event=None))
    found = taken(call("identify", D1, "ada"), alias(D2, "ada"), call("page", D3, "ada"), rules=rules)
    assert (found.graph.links, found.graph.people, found.notes) == (1, 1, {"link_events_off": 1})


def test_a_fault_of_ours_costs_no_other_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_on_pages(message: Any, rules: Rules, now_ms: int) -> Any:
        return 1 / 0 if message.type == "page" else say(message, rules, now_ms)

    monkeypatch.setattr(census, "say", fails_on_pages)
    found = taken(call("page", D1), call("track", D1))
    assert (found.read, found.invalid, found.by_type) == (2, {"validation_failed": 1}, {"track": 1})


def test_nothing_is_no_reason_to_divide() -> None:
    found = taken()
    assert (found.read, found.graph.known.events) == (0, 0)
    assert set(found.as_dict()["shares"].values()) == {None}
    assert "Events that end on a known person, of 0" in "\n".join(found.lines())


def test_an_id_cannot_write_to_the_terminal() -> None:
    calls = [call("track", "\x1b[2J\nnew\u202eline", user) for user in ("a" * 100, "b")]
    text = "\n".join(taken(*calls).lines())
    assert r"\x1b[2J\nnew\u202eline, linked to " in text
    assert "\x1b" not in text


# What is refused, and what each ID system makes of it: as delivery does.

LONG = "x" * 256 + "-1-1-1-1"  # a GUID, as Original has it
NEVER_SENT = [
    ("delete", {"userId": "null"}, {"no_id": 1}),
    ("delete", {"userId": "$device:x"}, {"delete_of_a_device": 1}),
    ("delete", {"userId": LONG}, {"id_too_long": 1}),
    ("track", {"event": "E", "userId": LONG}, {"id_too_long": 1}),
    ("page", {"anonymousId": LONG}, {"id_too_long": 1}),
    ("page", {"anonymousId": "x" * 255}, {"simplified": {"id_too_long": 1}}),
    ("identify", {"anonymousId": LONG, "userId": "ada"}, {"legacy": {}, "": {"id_too_long": 1}}),
    ("identify", {"anonymousId": LONG, "traits": {"n": 1}}, {}),
    ("group", {"groupId": "g", "userId": LONG}, {"id_too_long": 1}),
    ("alias", {"previousId": D1, "userId": LONG}, {"simplified": {"id_too_long": 1}}),
    ("identify", {"anonymousId": "ada", "userId": "ada"}, {"original": {"errSameIDs": 1}}),
]


def live(folder: Path, calls: Iterable[tuple[str, dict[str, Any]]], **chosen: Any) -> tuple[Counter, int, Report]:
    """What real delivery refused and linked, and the report of the same calls."""
    with closing(World(folder, f"sqlite:///{folder / 'adapter.db'}", **chosen)) as world:
        sent = [world.send(kind, **fields) for kind, fields in calls]
        world.deliver()
        refused = Counter(reason for (reason,) in rows(world.settings.database_url, "SELECT reason FROM refusal"))
        ((links,),) = rows(world.settings.database_url, "SELECT count(*) FROM link")
        return refused, links, taken(*sent, rules=Rules.of(world.settings))


@pytest.mark.parametrize("system", ["simplified", "original", "legacy"])
@pytest.mark.parametrize("kind_and_call", NEVER_SENT, ids=lambda one: f"{one[0]} {list(one[1])}")
def test_a_call_that_would_be_refused_for_its_ids_is_counted(
    kind_and_call: tuple[str, dict[str, Any], dict[str, Any]], system: str, tmp_path: Path
) -> None:
    kind, fields, expected = kind_and_call
    by_system = any(isinstance(value, dict) for value in expected.values())
    refused, links, report = live(tmp_path, [(kind, fields)], identity_api=system)
    assert report.refused == (expected.get(system, expected.get("", {})) if by_system else expected)
    assert report.refused.keys() == refused.keys()
    assert report.graph.links == links


@pytest.mark.parametrize(
    ("chosen", "refused", "known", "links"),
    [
        ({}, {"alias_of_anothers_device": 2}, 4, 5),
        (
            {"identity_api": "original"},
            {
                "errAnonDistinctIdAssignedAlready": 2,
                "errAnonDistinctIdNonGUIDForm": 2,
                "errAliasAlreadyExists": 2,
            },
            2,
            2,
        ),
        (
            {"identity_api": "original", "original_verb": "merge"},
            {"errAnonDistinctIdAssignedAlready": 2, "errAliasAlreadyExists": 2},
            3,
            3,
        ),
        ({"identity_api": "legacy"}, {"errAliasAlreadyExists": 1}, 2, 2),
    ],
    ids=["simplified", "original", "merge", "legacy"],
)
def test_each_id_system_links_and_refuses_in_its_own_way(
    chosen: dict[str, Any], refused: dict[str, int], known: int, links: int, tmp_path: Path
) -> None:
    calls = [
        ("page", {"anonymousId": D1}),
        ("page", {"anonymousId": D2}),
        ("page", {"anonymousId": D3}),
        ("page", {"anonymousId": "no-guid"}),
        ("track", {"event": "E", "anonymousId": "by-event", "userId": "eve"}),
        *[("identify", {"anonymousId": D1, "userId": user}) for user in ("ada", "ada", "bob", "bob")],
        *[("identify", {"anonymousId": "no-guid", "userId": "ada"})] * 2,
        *[("alias", {"previousId": D1, "userId": "cleo"})] * 2,
        ("alias", {"previousId": D2, "userId": "dan"}),
        ("alias", {"previousId": D2, "userId": "dan"}),
        ("alias", {"previousId": D3, "userId": "cleo"}),
    ]
    found, n_links, report = live(tmp_path, calls, link_event="L", **chosen)
    assert report.refused == found
    assert report.graph.links == n_links
    assert (report.refused, report.graph.known.adapter - 1, report.graph.links) == (refused, known, links)
    told = "\n".join(report.lines())
    assert f"as the adapter sends them, {chosen.get('identity_api', 'simplified').capitalize()} " in told
    assert report.as_dict()["system"] == chosen.get("identity_api", "simplified")


def test_original_joins_no_more_devices_than_a_cluster_holds(tmp_path: Path) -> None:
    calls = [("identify", {"anonymousId": device, "userId": "ada"}) for device in (D1, D2, D2, D3)]
    with patch.object(decision, "MAX_LINKS", 1), patch.object(verbs, "MAX_LINKS", 1):
        found, links, report = live(tmp_path, calls, identity_api="original")
    assert report.refused == found == {"errManyIDs": 3}
    assert report.graph.links == links == 1


def test_without_link_events_original_and_legacy_link_all_the_same(tmp_path: Path) -> None:
    calls = [("identify", {"anonymousId": D1, "userId": "ada"}), ("alias", {"previousId": D2, "userId": "ada"})]
    for system, expected in (("original", 2), ("legacy", 1)):
        (tmp_path / system).mkdir()
        _, links, report = live(tmp_path / system, calls, identity_api=system, link_event=None)
        assert report.graph.links == links == expected


# The law: in any order, with any memory, it is what a plain model says that keeps everything.

JUNK = {"null", "0"}
GUID = re.compile(r"\w+(-\w+){4}")
CAP = 1


class Model:
    """The same from dicts and loops over all calls, as slowly as may be."""

    def __init__(self, calls: Iterable[dict[str, Any]], denied: frozenset[str]) -> None:
        self.denied = denied
        self.calls = list({(one.get("projectId"), one["type"], one["messageId"]): one for one in calls}.values())
        self.calls.sort(key=self.order)
        events = [one for one in self.calls if one["type"] in ("track", "page") and one.get("event") != "$merge"]
        identifies = [one for one in self.calls if one["type"] == "identify"]
        aliases = [one for one in self.calls if one["type"] == "alias"]
        people = {self.ours(one)[1] for one in self.calls if one.get("event") != "$merge"} - {None}

        claims: dict[str, list[tuple[dict[str, Any], str]]] = {}
        self.refused = Counter()
        for one in self.calls:
            device, user = self.ours(one)
            if one["type"] == "alias" and (device is None or device == user):
                continue
            if one["type"] == "alias" and device in people:
                self.refused["alias_of_a_user"] += 1
            elif one in events + identifies + aliases and device and user:
                claims.setdefault(device, []).append((one, user))
        self.links = {device: made[0][1] for device, made in claims.items()}
        for device, made in claims.items():
            self.refused["alias_of_anothers_device"] += sum(
                one["type"] == "alias" and user != self.links[device] for one, user in made
            )
        self.refused = +self.refused
        seen = {self.ours(one)[0] for one in self.calls if one["type"] != "alias" and one.get("event") != "$merge"}
        devices = (seen - {None}) | claims.keys()
        self.people, self.devices = len(people), len(devices)
        self.not_guid = sum(not GUID.fullmatch(one) for one in devices)
        self.shared = {
            device: (len({user for _one, user in made}), self.links[device])
            for device, made in claims.items()
            if len({user for _one, user in made}) > 1
        }

        by_event = {self.theirs(one)[0] for one in events if None not in self.theirs(one)}
        clusters: dict[str, list[str]] = {}
        first: dict[str, str] = {}
        for device, user in map(self.theirs, identifies):
            if device and user and device != user and GUID.fullmatch(device) and device not in first:
                first[device] = user
                clusters.setdefault(user, []).append(device)
        joined = {device for made in clusters.values() for device in made[:CAP]}
        self.orphans = len(first) - len(joined)
        self.adapter = sum(bool(self.ours(one)[1]) or self.ours(one)[0] in self.links for one in events)
        self.simplified = sum(bool(self.theirs(one)[1]) or self.theirs(one)[0] in by_event for one in events)
        self.original = sum(bool(self.theirs(one)[1]) or self.theirs(one)[0] in joined for one in events)

    @staticmethod
    def order(one: dict[str, Any]) -> tuple[str, str, str]:
        late = "9999"
        time, received = one.get("timestamp"), one.get("receivedAt")
        return min(time or received or late, received or late), received or late, one["messageId"]

    @staticmethod
    def device(one: dict[str, Any], junk: Set[str] = JUNK) -> str | None:
        an_id = one.get("previousId" if one["type"] == "alias" else "anonymousId")
        bare = an_id and an_id.replace("$device:", "")
        return None if bare in junk else bare

    def ours(self, one: dict[str, Any]) -> tuple[str | None, str | None]:
        junk = JUNK | self.denied
        device, user = self.device(one, junk), one.get("userId")
        if one["type"] == "alias" and (device is None or user in junk or user.startswith("$device:")):
            return None, None
        if user in junk:
            user = None
        if user and user.startswith("$device:"):
            named = user.replace("$device:", "")
            device, user = device or (None if named in junk else named), None
        return (None if device == user and one["type"] != "alias" else device), user

    def theirs(self, one: dict[str, Any]) -> tuple[str | None, str | None]:
        user = one.get("userId")
        return (None, None) if user and (user in JUNK or user.startswith("$device:")) else (self.device(one), user)


devices = st.sampled_from(["a-1-1-1-1", "b-2-2-2-2", "c-3-3-3-3", "$device:a-1-1-1-1", "d", "u", "null"])
users = st.sampled_from(["u", "v", "a-1-1-1-1", "w", "d", "0", "$device:b-2-2-2-2"])
times = st.none() | st.sampled_from([f"2026-03-01T10:00:0{n}.000Z" for n in range(4)])


@st.composite
def logs(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for n in range(draw(st.integers(0, 40))):
        type_ = draw(st.sampled_from(["track", "page", "page", "identify", "identify", "alias", "group"]))
        fields = {"timestamp": draw(times), "receivedAt": draw(times), "messageId": f"m{draw(st.integers(0, 9))}-{n}"}
        if type_ == "alias":
            found.append(alias(draw(devices), draw(users), **fields))
            continue
        if type_ == "track":
            fields["event"] = draw(st.sampled_from(["E", "E", "E", "$merge"]))
        device = draw(st.none() | devices)
        user = draw(users if device is None else st.none() | users)
        found.append(call(type_, device, user, **fields))
    again = draw(st.lists(st.sampled_from(found), max_size=3)) if found else []
    return draw(st.permutations(found + again))


@settings(max_examples=120, deadline=None)
@given(log=logs(), denied=st.sets(st.sampled_from(["w", "b-2-2-2-2"])), memory_mb=st.sampled_from([0, 16]))
def test_any_log_is_counted_as_a_plain_model_counts_it(
    log: list[dict[str, Any]], denied: set[str], memory_mb: int
) -> None:
    model = Model(log, frozenset(denied))
    with patch.object(decision, "MAX_LINKS", CAP):
        found = taken(*log, rules=Rules.of(Settings(junk_ids=tuple(denied))), memory_mb=memory_mb)
    graph = found.graph
    assert found.duplicates == len(log) - len(model.calls)
    assert (graph.people, graph.devices, graph.links) == (model.people, model.devices, len(model.links))
    assert {one["device"]: (one["people"], one["first_user"]) for one in graph.shared.worst} == model.shared
    owned = Counter(model.links.values())
    assert {one["user"]: one["devices"] for one in graph.devices_of_a_person.worst} == {
        user: count for user, count in owned.items() if count > 1
    }
    assert (graph.original.orphans, graph.original.not_guid) == (model.orphans, model.not_guid)
    aliases = {reason: count for reason, count in found.refused.items() if reason.startswith("alias_of")}
    assert aliases == model.refused
    known = graph.known
    assert (known.adapter, known.segment_simplified, known.segment_original) == (
        model.adapter,
        model.simplified,
        model.original,
    )


# The command.


@pytest.mark.parametrize("form", ["lines", "gzip", "array", "stdin", "folder"])
def test_the_command_reads_every_form(form: str, tmp_path: Path) -> None:
    calls = [call("page", D1), call("identify", D1, "ada")]
    lines = "\n".join(map(json.dumps, calls))
    log = tmp_path / "logs" / "one"
    log.parent.mkdir()
    if form == "gzip":
        log.write_bytes(gzip.compress(lines.encode()))
    else:
        log.write_text(json.dumps(calls, indent=2) if form == "array" else lines)
    where = {"stdin": "-", "folder": str(log.parent)}.get(form, str(log))
    found = adapter(tmp_path, "identity", "report", where, "--json", input=lines if form == "stdin" else None)
    assert (found.returncode, found.stderr) == (0, "")
    report = json.loads(found.stdout)
    assert report["read"] == 2
    assert report["shares"] == {"segment_simplified": 0.0, "segment_original": 1.0, "adapter": 1.0}
    assert report["damaged"] == {}


def test_worst_says_how_many_are_named(tmp_path: Path) -> None:
    for worst, named in (("0", 0), ("1", 1), ("9", 2)):
        found = adapter(tmp_path, "identity", "report", str(LOG), "--json", "--worst", worst)
        assert len(json.loads(found.stdout)["graph"]["shared"]["worst"]) == named


def test_the_command_counts_what_it_could_read_and_names_the_rest(tmp_path: Path) -> None:
    whole = gzip.compress(LOG.read_bytes())
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    found = adapter(tmp_path, "identity", "report", str(LOG), "cut.gz", "--json")
    assert found.returncode == 1
    assert "cut.gz: could not be read to its end: Compressed file ended" in found.stderr
    assert json.loads(found.stdout)["graph"]["people"] == 8
    assert "cut.gz" in json.loads(found.stdout)["damaged"]


@pytest.mark.parametrize("arguments", [[], ["report"]])
def test_any_other_use_says_what_was_expected(arguments: list[str], tmp_path: Path) -> None:
    found = adapter(tmp_path, "identity", *arguments)
    assert found.returncode == 2
    assert "report LOG..." in found.stderr


def test_a_log_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    found = adapter(tmp_path, "identity", "report", "gone.gz")
    assert (found.returncode, found.stderr) == (2, "adapter: there is no file gone.gz\n")


def test_a_setting_that_cannot_be_is_named_and_the_rest_counted(tmp_path: Path) -> None:
    found = adapter(tmp_path, "identity", "report", str(LOG), PORT="http", DROP_TYPES="page")
    assert found.returncode == 0
    assert found.stderr.startswith("adapter: PORT: expected a port")
    assert "left out                 9  type 9" in found.stdout


def test_a_full_disk_is_said_without_a_traceback(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        for n in range(40_000):
            log.write(f'{{"type":"page","messageId":"m{n}","anonymousId":"{n:0400}"}}\n')
    command = f"ulimit -f 1000; exec {sys.executable} -m adapter identity report log --memory-mb 16"
    found = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 2
    assert "adapter: the temporary file of the counts:" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_told_to_a_terminal_alone(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(told, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(reports, "PROGRESS_S", 0.0)
    assert len(list(reports._watched(Archive([str(LOG)])))) == 24
    if is_terminal:
        assert re.match(r"\r1 messages, \d+%, [\d,]+/s \r2 messages, \d+%, ", told.getvalue())
        assert "\r24 messages, 100%, " in told.getvalue()
        assert told.getvalue().endswith(" \r"), "the line is wiped in the end"
    else:
        assert told.getvalue() == ""


def test_memory_is_bounded_by_the_option_and_not_by_the_logs(tmp_path: Path) -> None:
    ids = [str(uuid.UUID(int=(n + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)) for n in range(200_000)]
    with (tmp_path / "log").open("w") as log:
        for n, device in enumerate(ids):
            user = f',"userId":"user-{n // 2}"' if n % 2 else ""
            log.write(f'{{"type":"page","messageId":"m{n}","anonymousId":"{device}"{user}}}\n')
    (tmp_path / "empty").write_text("")

    def peak_bytes(log: str) -> int:
        command = [sys.executable, "-m", "adapter", "identity", "report", log, "--json", "--memory-mb=16"]
        with (tmp_path / "out").open("wb") as out:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stdout=out)
            _pid, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss * 1024

    nothing, everything = peak_bytes("empty"), peak_bytes("log")
    graph = json.loads((tmp_path / "out").read_text())["graph"]
    assert (graph["devices"], graph["links"], graph["people"]) == (200_000, 100_000, 100_000)
    in_a_set = sys.getsizeof(set(ids)) + sum(map(sys.getsizeof, ids))
    assert everything - nothing < 20_000_000 < in_a_set, "the devices' ids alone would take more"
