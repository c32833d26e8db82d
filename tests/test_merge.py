"""From messages to people: what the adapter sends makes the sandbox join whom it should, and nobody else."""

import dataclasses
import gzip
import itertools
import json
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from adapter import dossier, ingestion, links, parcels
from adapter.cli import main
from adapter.errors import StoreUnavailable
from adapter.store import Entry, graph
from schemas.mixpanel import ENGAGE, GROUPS, IMPORT
from tests.conftest import Databases, raw, rows
from tests.world import LINK, World

A, B, K = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222", "kiosk-7"


@pytest.fixture
def database_url(either_url: str) -> str:
    return either_url


# Link events


def test_s26_a_track_after_login_joins_and_no_second_link_is_sent(world: World) -> None:
    world.track("read", A)
    world.deliver()
    world.track("bought", A, "ada")
    world.identify(A, "ada", plan="pro")
    world.deliver()
    assert world.persons() == {"read": "ada", "bought": "ada"}
    assert world.names() == ["read", "bought"]
    assert world.report().nothing == {"linked_already": 1}


def test_s27_a_visitor_who_logs_in_and_leaves_is_one_person(world: World) -> None:
    world.track("read", A)
    world.identify(A, "ada", plan="pro")
    world.deliver()
    assert world.persons() == {"read": "ada"}
    assert world.clusters() == {"ada": {A}}
    [link] = [one for one in world.project.events() if one.event == LINK]
    assert set(link.properties) == {"$device_id", "$user_id", "distinct_id", "time", "$insert_id"}
    assert link.time_ms == 1_772_366_402_000


def test_only_the_first_identify_of_a_device_sends_a_link(world: World) -> None:
    for _ in range(3):
        world.identify(A, "ada", plan="pro")
    world.deliver()
    world.identify(A, "ada", plan="max")
    world.deliver()
    assert world.names() == [LINK]
    assert world.profile("ada")["plan"] == "max"


def test_a_login_of_a_second_user_is_no_link_and_is_counted(world: World) -> None:
    world.identify(A, "ada", plan="pro")
    world.identify(A, "bob", plan="free")
    world.track("bobs", A, "bob")
    world.deliver()
    assert world.names() == [LINK, "bobs"]
    assert world.persons() == {"bobs": "bob"}
    assert world.clusters() == {"ada": {A}}
    assert world.report().nothing == {"device_of_another": 1}
    assert world.report().notes["device_of_another"] == 2
    [(user, count)] = rows(world.settings.database_url, 'SELECT "user", count FROM conflict')
    assert (user, count) == ("bob", 1)


def test_a_refused_record_makes_no_link_and_the_next_message_does(world: World, monkeypatch) -> None:
    post = world.client.post
    refused = ingestion.Verdict(outcome=ingestion.Outcome.DONE, refused={0: "no"})
    monkeypatch.setattr(world.client, "post", lambda *_: refused)
    world.identify(A, "ada")
    world.deliver()
    monkeypatch.setattr(world.client, "post", post)
    assert rows(world.settings.database_url, "SELECT * FROM link") == []
    world.track("read", A)
    world.identify(A, "ada")
    world.deliver()
    assert world.persons() == {"read": "ada"}


def test_a_conflict_within_one_claim_waits_for_the_answer_of_the_other(world: World, monkeypatch) -> None:
    """But nobody else does."""
    sent = _posted(world, monkeypatch)
    world.track("a1", A, "ada")
    world.track("a2", A, "ada")
    world.track("b1", A, "bob")
    world.track("nobody", A)
    world.track("other", B, "bob")
    world.deliver()
    assert sent == [["a1", "a2", "other"], ["b1", "nobody"]], "nothing overtakes in its lane"
    assert world.clusters() == {"ada": {A}, "bob": {B}}


def test_of_many_who_log_in_twice_within_one_claim_nobody_has_a_batch_of_their_own(world: World, monkeypatch) -> None:
    sent = _posted(world, monkeypatch)
    for _ in range(2):
        for number in range(20):
            world.track(f"read-{number}", f"device-{number}", context={"campaign": {"source": "mail"}})
            world.identify(f"device-{number}", f"user-{number}")
    world.deliver()
    assert len(sent) == 1
    assert world.clusters() == {f"user-{number}": {f"device-{number}"} for number in range(20)}


@pytest.mark.parametrize("shared_devices", ["first-user", "split"])
def test_a_device_of_everybody_has_no_batch_for_each_of_them(
    tmp_path: Path, database_url: str, monkeypatch, shared_devices: str
) -> None:
    """Such as a constant that a server sends for an anonymousId."""
    with closing(World(tmp_path, database_url, shared_devices=shared_devices)) as world:
        sent = _posted(world, monkeypatch)
        for number in range(20):
            world.identify(A, f"user-{number}")
            world.track(f"did-{number}", A, f"user-{number}")
        world.deliver()
        assert len(sent) == 2, "whose it is, then all others"
        assert world.persons() == {f"did-{number}": f"user-{number}" for number in range(20)}
        assert A in world.clusters()["user-0"]


def test_of_a_device_the_latest_changes_of_user_are_kept_and_all_are_counted(split: World, monkeypatch) -> None:
    monkeypatch.setattr(graph, "MAX_LOGINS", 3)
    for user in ("ada", "bob", "ada", "cem", "bob", "ada", "bob"):
        split.track(f"by-{user}", A, user)
        split.deliver()
    split.track("nobody's", A)
    split.deliver()
    kept = rows(split.settings.database_url, 'SELECT "user" FROM login ORDER BY time_ms')
    assert kept == [("bob",), ("ada",), ("bob",)]
    told = rows(split.settings.database_url, 'SELECT "user", count FROM conflict ORDER BY 1')
    assert told == [("bob", 3), ("cem", 1)]
    assert split.persons()["nobody's"] == "bob"


def test_an_alias_that_waits_for_an_answer_is_not_overtaken_by_what_would_have_it_refused(world: World) -> None:
    """In another lane its previousId becomes a user."""
    world.track("a1", "carl", "ada")
    world.alias("carl", "ada")
    world.track("c1", B, "carl")
    world.deliver()
    assert (world.report().refused, world.report().nothing) == ({}, {"linked_already": 1})


def _posted(world: World, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The events of each batch that is posted from now on."""
    sent: list[list[str]] = []
    post = world.client.post

    def read_along(request: ingestion.Request, n_records: int) -> ingestion.Verdict:
        if request.endpoint == IMPORT:
            sent.append([record["event"] for record in json.loads(gzip.decompress(request.body))])
        return post(request, n_records)

    monkeypatch.setattr(world.client, "post", read_along)
    return sent


# Alias


def test_an_alias_links_a_device_of_nobody(world: World) -> None:
    world.track("read", A)
    world.alias(A, "ada")
    world.alias(A, "ada")
    world.deliver()
    assert world.persons() == {"read": "ada"}
    assert world.report().nothing == {"linked_already": 1}


@pytest.mark.parametrize(("previous", "reason"), [("ada", "alias_of_a_user"), (A, "alias_of_anothers_device")])
def test_an_alias_that_mixpanel_cannot_merge_is_refused_with_the_reason(world: World, previous, reason) -> None:
    world.identify(A, "ada")
    world.deliver()
    world.alias(previous, "bob")
    world.deliver()
    assert world.report().refused == {reason: 1}
    assert world.clusters() == {"ada": {A}}


# What waits with a visitor


def test_s24_and_s25_a_visitors_traits_end_on_the_person(world: World) -> None:
    world.identify(A, None, plan="free", firstName="Ada")
    world.deliver()
    assert world.report().held == 1
    assert world.project.profile(A) is None
    world.identify(A, None, plan="trial")
    world.track("bought", A, "ada")
    world.deliver()
    assert world.profile("ada") == {"plan": "trial", "$first_name": "Ada"}
    assert (world.report().held, world.report().nothing) == (0, {"released": 2})
    assert world.report(ENGAGE).delivered == 1


def test_what_was_held_never_overwrites_what_the_person_has(world: World) -> None:
    world.identify(None, "ada", plan="pro")
    world.identify(A, None, plan="free", seats=5)
    world.deliver()
    world.identify(A, "ada")
    world.deliver()
    assert world.profile("ada") == {"plan": "pro", "seats": 5}


def test_no_more_waits_with_a_device_than_is_written_in_a_moment(world: World, monkeypatch) -> None:
    """Anybody can say new things of a visitor without end."""
    monkeypatch.setattr(graph, "MAX_HELD_BYTES", 100)
    world.identify(A, None, plan="free", a="a" * 40)
    world.deliver()
    for letter in "bc":
        world.identify(A, None, **{letter: letter * 40})
    world.identify(A, None, plan="pro")
    world.identify(A, None, plan="max")
    world.deliver()
    assert (world.report().held, world.report().notes) == (5, {"too_much_held": 2})
    world.track("bought", A, "ada")
    world.deliver()
    assert world.profile("ada") == {"plan": "max", "a": "a" * 40}
    assert (world.report().held, world.report().nothing) == (0, {"released": 5})


def test_what_was_held_on_a_shared_device_goes_to_the_next_user_of_it(world: World) -> None:
    world.track("a", A, "ada")
    world.deliver()
    world.identify(A, None, plan="free")
    world.deliver()
    world.track("b", A, "bob")
    world.deliver()
    assert (world.profile("ada"), world.profile("bob")) == ({}, {"plan": "free"})


@pytest.mark.parametrize("user", [None, "null"])
def test_what_a_visitor_says_after_a_user_does_not_go_to_that_user(world: World, monkeypatch, user) -> None:
    """It was held while the user's message, which came before it, still waited for its answer."""
    world.track("Opened", A, "ada")
    world.deliver()
    world.track("Closed", A, "ada")
    world.identify(A, user, plan="pro")
    post = world.client.post
    monkeypatch.setattr(world.client, "post", lambda *_: ingestion.Verdict(outcome=ingestion.Outcome.LATER))
    world.lines[0].work()
    monkeypatch.setattr(world.client, "post", post)
    world.deliver()
    assert (world.profile("ada"), world.report().held) == ({}, 1)


def test_a_login_that_is_delivered_before_the_traits_it_releases_still_gets_them(world: World) -> None:
    """Lines of delivery keep no order between them."""
    world.identify(A, None, plan="free")
    world.track("bought", A, "ada")
    world.lines[0].work()
    world.deliver()
    assert world.profile("ada") == {"plan": "free"}


def test_the_first_touch_of_the_visitor_is_the_persons_also_if_the_login_has_one(world: World) -> None:
    def page(referrer: str) -> dict[str, Any]:
        return {"page": {"url": "https://blog.example/post", "referrer": referrer}}

    world.track("read", A, context=page("https://news.example/today"))
    world.track("bought", A, "ada", context=page("https://accounts.example/oauth"))
    world.deliver()
    world.track("again", A, "ada", context=page("https://ads.example/"))
    world.deliver()
    assert world.profile("ada")["$initial_referrer"] == "https://news.example/today"


def test_a_group_of_a_user_releases_what_is_held_and_links_nothing(world: World) -> None:
    world.identify(A, None, plan="free")
    world.send("group", anonymousId=A, userId="ada", groupId="acme", traits={"seats": 5})
    world.deliver()
    assert world.profile("ada") == {"plan": "free", "$group_id": ["acme"]}
    assert (world.report().held, world.report().nothing) == (0, {"released": 1, "group_links_nothing": 1})
    assert (world.names(), rows(world.settings.database_url, "SELECT * FROM link")) == ([], [])


def test_what_brought_the_person_is_known_from_a_group_as_well(world: World) -> None:
    world.track("read", A, context={"campaign": {"source": "mail"}})
    world.send("group", anonymousId=A, userId="ada", groupId="acme", context={"campaign": {"source": "ads"}})
    world.deliver()
    assert world.profile("ada")["initial_utm_source"] == "mail"
    world.send("group", anonymousId=B, userId="bob", groupId="acme", context={"campaign": {"source": "ads"}})
    world.deliver()
    assert world.profile("bob")["initial_utm_source"] == "ads"


@pytest.mark.parametrize("kind", ["group", "identify"])
def test_what_a_visitor_was_brought_by_goes_to_the_next_user_also_of_a_message_that_sends_nothing(
    world: World, kind: str
) -> None:
    """It was on its way with a visitor's event while that message, in the same claim, had ended."""
    world.track("a", A, "ada")
    world.deliver()
    world.track("read", A, context={"campaign": {"source": "mail"}})
    world.send(kind, anonymousId=A, userId="ada", groupId="acme")
    world.track("c", A, "cem")
    world.deliver()
    assert world.profile("ada")["initial_utm_source"] == "mail"
    assert world.profile("cem") == {}


def test_what_waits_goes_to_the_next_user_also_if_the_one_behind_them_sends_nothing(world: World) -> None:
    """What sends nothing ends before what is in the batch."""
    world.track("a", A, "ada")
    world.identify(A, None, plan="pro")
    world.deliver()
    world.track("b", A, "bob")
    world.identify(A, "cem")
    world.deliver()
    assert (world.profile("bob"), world.profile("cem")) == ({"plan": "pro"}, {})


def test_what_a_visitor_says_after_a_group_does_not_go_to_its_user(world: World) -> None:
    world.send("group", anonymousId=A, userId="ada", groupId="acme")
    world.identify(A, None, plan="pro")
    world.deliver()
    assert (world.profile("ada"), world.report().held) == ({"$group_id": ["acme"]}, 1)


def test_what_is_held_expires_and_is_counted(world: World) -> None:
    world.identify(A, None, plan="free")
    world.identify(A, None, seats=1)
    world.deliver()
    world.store.expire_held(0)
    assert world.report().held == 2
    world.store.expire_held(2**60)
    assert (world.report().held, world.report().expired) == (0, 2)
    world.track("bought", A, "ada")
    world.deliver()
    assert world.profile("ada") == {}


def test_a_visitors_traits_that_break_a_limit_take_along_no_others(world: World) -> None:
    world.identify(A, None, cart=[[[[1]]]])
    world.identify(A, None, plan="free")
    world.track("bought", A, "ada")
    world.deliver()
    assert world.profile("ada") == {"plan": "free"}
    assert (world.report().refused, world.report().held) == ({"nested_too_deep": 1}, 0)


def test_what_was_refused_to_be_given_to_somebody_expires_as_well(world: World) -> None:
    user, day_ms = "u" * 300, 86_400_000
    world.identify(A, None, plan="free")
    world.send("group", anonymousId=A, userId=user, groupId="acme")
    world.deliver()
    assert world.report(ENGAGE).refused == {"id_too_long": 2}
    now_ms = int(time.time() * 1000)
    world.store.expire_held(now_ms - day_ms)
    assert world.report().held == 1
    world.store.expire_held(now_ms + day_ms)
    assert (world.report().held, world.report().expired) == (0, 1)


@pytest.mark.parametrize(("how", "profile"), [("send", {"plan": "free"}), ("drop", None)])
def test_a_visitors_profile_is_sent_or_dropped_where_the_setting_says_so(
    tmp_path: Path, database_url: str, how, profile
) -> None:
    with closing(World(tmp_path, database_url, anonymous_profiles=how)) as world:
        world.identify(A, None, plan="free")
        world.deliver()
        assert world.project.profile(f"$device:{A}") == profile
        assert world.report().held == 0


@pytest.mark.parametrize("now", ["send", "drop"])
def test_what_was_taken_in_to_wait_waits_also_if_the_setting_has_changed(world: World, now: str) -> None:
    world.identify(A, None, plan="free")
    world.settings = dataclasses.replace(world.settings, anonymous_profiles=now)
    world.restart()
    world.deliver()
    world.track("bought", A, "ada")
    world.deliver()
    assert world.profile("ada") == {"plan": "free"}


def test_a_profile_that_was_taken_in_to_be_sent_is_kept_if_it_may_not_be_sent_now(
    tmp_path: Path, database_url: str
) -> None:
    with closing(World(tmp_path, database_url, anonymous_profiles="send")) as world:
        world.identify(A, None, plan="free")
        world.settings = dataclasses.replace(world.settings, anonymous_profiles="hold")
        world.restart()
        world.deliver()
        assert world.report(ENGAGE).refused == {"visitors_profile": 1}


# Ids that are none


def test_an_id_of_the_deny_list_links_nobody(tmp_path: Path, database_url: str) -> None:
    with closing(World(tmp_path, database_url, junk_ids=("Test-User",))) as world:
        world.identify(A, " test-USER ", plan="x")
        world.track("read", A, "test-user")
        world.track("nobody", None, "TEST-user")
        world.deliver()
        assert world.persons() == {"read": f"$device:{A}"}
        assert world.report().refused == {"no_id": 1}


# Shared devices


def test_s5_with_split_each_has_their_own_anonymous_events(split: World) -> None:
    split.track("1", A)
    split.track("2", A, "ada")
    split.track("3", A)
    split.track("4", A, "bob")
    split.track("5", A)
    split.track("6", A, "ada")
    split.track("7", A)
    split.deliver()
    assert split.persons() == {"1": "ada", "2": "ada", "3": "ada", "4": "bob", "5": "bob", "6": "ada", "7": "ada"}
    assert split.clusters() == {"ada": {A}, "bob": {links.split_id(A, "bob")}}


def test_s29_with_split_a_kiosk_has_as_many_people_as_log_in(split: World) -> None:
    for user in ("ada", "bob", "cem"):
        split.identify(K, user)
        split.track(f"after {user}", K)
    split.deliver()
    assert split.persons() == {"after ada": "ada", "after bob": "bob", "after cem": "cem"}
    assert split.names().count(LINK) == 3


@pytest.mark.parametrize("kind", ["track", "identify"])
def test_with_split_a_group_is_a_login_and_the_next_message_makes_its_link(split: World, kind: str) -> None:
    split.track("ada", A, "ada")
    split.send("group", anonymousId=A, userId="bob", groupId="acme")
    split.track("read", A)
    split.send(kind, anonymousId=A, userId="bob", event="bob")
    split.deliver()
    assert split.persons()["read"] == "bob"
    assert split.clusters() == {"ada": {A}, "bob": {links.split_id(A, "bob")}}
    known = rows(split.settings.database_url, 'SELECT device, "user" FROM link')
    assert dict(known) == {A: "ada", links.split_id(A, "bob"): "bob"}


def test_with_split_a_device_that_stands_in_userid_is_the_same_device(split: World) -> None:
    split.track("ada", A, "ada")
    split.track("bob", A, "bob")
    split.track("read", None, f"$device:{A}")
    split.deliver()
    assert split.persons()["read"] == "bob"


def test_with_split_it_is_the_messages_time_that_decides(split: World) -> None:
    """Not when it was delivered: a message that was sent again or replayed goes where it went before."""
    split.track("ada", A, "ada", timestamp="2026-03-01T10:00:00Z")
    split.track("bob", A, "bob", timestamp="2026-03-01T11:00:00Z")
    split.deliver()
    split.track("between", A, timestamp="2026-03-01T10:30:00Z")
    split.track("before", A, timestamp="2026-03-01T09:00:00Z")
    split.track("after", A, timestamp="2026-03-01T11:30:00Z")
    split.deliver()
    assert split.persons() == {"ada": "ada", "bob": "bob", "between": "ada", "before": "ada", "after": "bob"}


def test_a_login_that_comes_after_what_it_would_have_claimed_is_counted(split: World) -> None:
    split.track("ada", A, "ada", timestamp="2026-03-01T10:00:00Z")
    split.track("nobody", A, timestamp="2026-03-01T11:00:00Z")
    split.deliver()
    split.track("bob", A, "bob", timestamp="2026-03-01T10:30:00Z")
    split.deliver()
    assert split.report().notes["late_login"] == 1


# Original and Legacy


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [
        ([], (K, "ada"), "errAnonDistinctIdNonGUIDForm"),
        ([], ("ada", "ada"), "errSameIDs"),
        ([(A, "ada")], (A, "bob"), "errAnonDistinctIdAssignedAlready"),
        ([(A, B)], (B, "bob"), "errAnonDistinctIdAssignedAlready"),
    ],
)
def test_what_original_would_refuse_is_refused_here_by_its_own_name(
    tmp_path: Path, database_url: str, first, then, reason
) -> None:
    with closing(World(tmp_path, database_url, identity_api="original")) as world:
        sent = Recorded(world)
        for device, user in [*first, then]:
            world.identify(device, user)
        world.deliver()
        assert world.report().refused == {reason: 1}
        assert sent.names == ["$identify"] * len(first)


def test_original_joins_no_more_than_its_cap(tmp_path: Path, database_url: str, monkeypatch) -> None:
    monkeypatch.setattr("adapter.verbs.MAX_LINKS", 3)
    with closing(World(tmp_path, database_url, identity_api="original")) as world:
        sent = Recorded(world)
        for number in range(5):
            world.identify(f"{number}{A[1:]}", "ada")
        world.deliver()
        assert world.report().refused == {"errManyIDs": 2}
        assert sent.names == ["$identify"] * 3


@pytest.mark.parametrize("system", ["original", "legacy"])
def test_a_user_is_made_an_alias_once(tmp_path: Path, database_url: str, system: str) -> None:
    with closing(World(tmp_path, database_url, identity_api=system)) as world:
        sent = Recorded(world)
        world.alias(A, "ada")
        world.alias(A, "ada")
        world.alias(B, "ada")
        world.deliver()
        assert world.report().refused == {"errAliasAlreadyExists": 1}
        assert world.report().nothing == {"linked_already": 1}
        assert sent.records == [("$create_alias", A, "ada")]


class Recorded:
    """An endpoint that takes everything, in place of a sandbox project of one system."""

    def __init__(self, world: World) -> None:
        self.records: list[tuple[str, str, str | None]] = []
        world.client.post = self._post  # type: ignore[method-assign]

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.records]

    def _post(self, request: ingestion.Request, n_records: int) -> ingestion.Verdict:
        import json

        if request.endpoint == IMPORT:
            for one in json.loads(gzip.decompress(request.body)):
                properties = one["properties"]
                self.records.append((one["event"], properties["distinct_id"], properties.get("alias")))
        return ingestion.Verdict(outcome=ingestion.Outcome.DONE)


def test_o1_a_login_joins_the_two_streams_in_original(tmp_path: Path, database_url: str) -> None:
    with closing(World(tmp_path, database_url, identity_api="original")) as world:
        world.track("read", A)
        world.identify(A, "ada", plan="pro")
        world.track("bought", A, "ada")
        world.deliver()
        persons = world.persons()
        assert persons["read"] == persons["bought"]
        assert len({one.id for one in world.project.people() if one.events}) == 1


def test_o4_a_device_that_a_second_user_identifies_stays_the_first_ones_in_original(
    tmp_path: Path, database_url: str
) -> None:
    with closing(World(tmp_path, database_url, identity_api="original")) as world:
        world.track("read", A)
        world.identify(A, "ada")
        world.identify(A, "bob")
        world.track("bobs", A, "bob")
        world.track("adas", A, "ada")
        world.deliver()
        persons = world.persons()
        assert persons["read"] == persons["adas"] != persons["bobs"]


@pytest.mark.parametrize("system", ["original", "legacy"])
def test_an_event_of_a_second_user_on_a_device_is_no_link_of_theirs(
    tmp_path: Path, database_url: str, system: str
) -> None:
    """What becomes of the verbs is what Mixpanel makes of them, whatever was done on the device before."""
    with closing(World(tmp_path, database_url, identity_api=system)) as world:
        world.alias(A, "ada")
        world.track("bobs", A, "bob")
        world.deliver()
        world.identify(A, "bob")
        world.alias(A, "bob")
        world.track("later", None, "bob")
        world.track("adas", None, "ada")
        world.deliver()
        assert world.persons()["later"] == world.persons()["adas"]
        refused = {"errAnonDistinctIdAssignedAlready": 1} if system == "original" else {}
        assert world.report().refused == refused


def test_l1_an_alias_files_the_users_events_under_the_visitor_in_legacy(tmp_path: Path, database_url: str) -> None:
    with closing(World(tmp_path, database_url, identity_api="legacy")) as world:
        world.track("read", A)
        world.alias(A, "ada")
        world.track("bought", None, "ada")
        world.deliver()
        assert {name: person for name, person in world.persons().items() if name[0] != "$"} == {
            "read": A,
            "bought": A,
        }


def test_a_touch_that_comes_with_traits_is_written_down_before_it_is_released(world: World) -> None:
    """An identify that is sent, and whose first touch waits, in one claim with the release of the device."""
    context = {"campaign": {"source": "mail"}}
    world.send("identify", anonymousId=A, userId="ada", traits={"plan": "pro"}, context=context)
    world.lines[0].work()
    world.send("identify", anonymousId=A, userId=None, traits={"seats": 1})
    world.track("read", A, "ada")
    world.deliver()
    assert world.profile("ada") == {
        "plan": "pro",
        "seats": 1,
        "initial_utm_source": "mail",
        "$initial_referrer": "$direct",
        "$initial_referring_domain": "$direct",
    }


# What is known of one id


def told(world: World, an_id: str) -> str:
    return "\n".join(dossier.tell(dossier.look_up(world.settings.database_url, an_id), 30))


def json_of(world: World, an_id: str) -> dict[str, Any]:
    where = {"DATABASE_URL": world.settings.database_url}
    [found] = json.loads(CliRunner().invoke(main, ["identity", an_id, "--json"], env=where).output)
    return found


def test_an_id_is_told_with_its_links_and_the_messages_that_made_them(world: World) -> None:
    world.identify(A, "ada")
    world.track("read", B, "ada")
    world.deliver()
    text = told(world, "ada")
    assert "ada is a user with 2 devices" in text
    assert f"{A}, linked by the identify m-1 of 2026-03-01T12:00:01Z" in text
    assert f"{B}, linked by the track m-2" in text
    assert f"{A} is a device of ada, for good" in told(world, f"$device:{A}")


def test_a_shared_device_is_told_with_every_change_of_user(split: World) -> None:
    split.identify(A, "ada")
    split.track("bob", A, "bob")
    split.track("ada", A, "ada")
    split.track("again", A, "bob")
    split.deliver()
    text = told(split, A)
    assert text.count(" bob on ") == 2
    assert f"sent as {links.split_id(A, 'bob')}, not theirs: it went over to them 2 times" in text
    assert f"bob on {A}" in told(split, "bob")


def test_what_waits_is_told_by_the_names_of_its_traits_alone(world: World) -> None:
    world.identify(A, None, plan="s3cret")
    world.deliver()
    text = told(world, A)
    assert f"With device {A} the traits plan waits until" in text
    assert "s3cret" not in text


def test_a_device_is_told_with_the_other_devices_of_its_user(world: World) -> None:
    world.track("read", A, "ada")
    world.track("bought", B, "ada")
    world.track("looked", K, "bob")
    world.deliver()
    lines = told(world, A).splitlines()
    assert lines[0].startswith(f"{A} is a device of ada, for good")
    assert lines[1:] == [
        "The other devices of ada, all one person with it:",
        *[line for line in told(world, "ada").splitlines() if line.startswith(f"  {B}, linked by the track m-2")],
    ]
    assert [one["device"] for one in json_of(world, A)["others"]] == [B]
    assert "other devices" not in told(world, K)


def test_an_alias_that_was_refused_is_told_at_both_of_its_ids(world: World) -> None:
    world.track("read", A, "ada")
    world.deliver()
    world.alias(A, "bob")
    world.alias("ada", "cem")
    world.deliver()
    for an_id in (A, "bob"):
        text = told(world, an_id)
        assert f"Messages that would have joined {an_id} to another id, and were refused, newest first:" in text
        assert "previousId is a device of another user for good (alias_of_anothers_device)" in text
        assert "`adapter refused show 1` shows it" in text
        assert [one["number"] for one in json_of(world, an_id)["conflicts"]] == [1]
    assert "Nothing is known of bob" in told(world, "bob")
    assert [one["reason"] for one in json_of(world, "ada")["conflicts"]] == ["alias_of_a_user"]
    assert json_of(world, "bo")["conflicts"] == []


@pytest.mark.parametrize("system", ["original", "legacy"])
def test_a_user_that_was_made_an_alias_is_told_so(system: str, tmp_path: Path, database_url: str) -> None:
    with closing(World(tmp_path, database_url, identity_api=system)) as world:
        world.alias(A, "ada")
        world.deliver()
        world.alias(B, "ada")
        world.deliver()
        text = told(world, "ada")
        assert f"{A}, linked by the alias m-1" in text
        assert "ada was made an alias of an id that was there before; Mixpanel takes no second one for it" in text
        assert "userId was made an alias before (errAliasAlreadyExists)" in text
        assert json_of(world, "ada")["is_alias"]
        assert not json_of(world, A)["is_alias"]


def test_an_id_of_which_nothing_is_known_and_one_that_is_none_are_told_so(world: World) -> None:
    assert told(world, "nobody").startswith("Nothing is known of nobody")
    assert "is no id" in told(world, "null")


# The laws

DEVICES, USERS = ["d1", "d2", "d3"], ["ada", "bob", "cem"]
#: Ids that are both, that carry the prefix, or that are none; and a call without one.
ODD_DEVICES, ODD_USERS = ["$device:d1", "$device:$device:d2", "ada", "null", None], ["d1", "$device:d2", "0", None]
JUNK = {"null", "0"}
SAID: dict[str, Any] = {
    "track": lambda number: {"event": f"e{number}"},
    "identify": lambda number: {"traits": {f"said{number}": number, "plan": number}},
    "group": lambda _: {"groupId": "acme"},
    "alias": lambda _: {},
}
Step = tuple[str, str | None, str | None]
steps = st.lists(
    st.tuples(
        st.sampled_from(["track", "track", "identify", "identify", "group", "alias", "deliver", "die"]),
        st.sampled_from([*DEVICES * 3, *ODD_DEVICES]),
        st.sampled_from([*USERS * 2, None, None, None, *ODD_USERS]),
    ),
    max_size=14,
)
slow = hypothesis_settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def live(world: World, history: list[Step], minutes: Iterable[int] = itertools.repeat(0)) -> list[dict[str, Any]]:
    """Send a history, deliver and die where it says; returns the calls. Those of a minute are a second apart."""
    sent = []
    for number, ((kind, device, user), minute) in enumerate(zip(history, minutes, strict=False)):
        if kind == "die":
            _die_before_settling(world)
        elif kind == "deliver":
            world.deliver()
        elif (device and user) or (kind != "alias" and (device or user)):
            ids = {"previousId" if kind == "alias" else "anonymousId": device, "userId": user}
            at = f"2026-03-01T{12 + minute // 60}:{minute % 60:02}:{number:02}Z"
            sent.append(world.send(kind, **ids, **SAID[kind](number), messageId=f"m-{number}", timestamp=at))
    world.deliver()
    return sent


def ids_of(call: dict[str, Any]) -> tuple[str | None, str | None]:
    """The device and the user that a call is of by the rules: without prefixes and junk, and never the same."""
    device, user = call.get("previousId") or call.get("anonymousId"), call["userId"]
    found = {name: an_id and an_id.replace("$device:", "") for name, an_id in (("device", device), ("user", user))}
    found = {name: an_id if an_id not in JUNK else None for name, an_id in found.items()}
    if call["type"] == "alias" and (user != found["user"] or found["device"] is None):
        return None, None
    if user is not None and user.startswith("$device:"):
        return found["device"] or found["user"], None
    return found["device"] if found["device"] != found["user"] else None, found["user"]


class Rules:
    """Whose each device is, what was said of whom, and where events are to end, by the rules alone (design 3.5)."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self.owners: dict[str, str] = {}
        self.logins: dict[str, list[tuple[str, str]]] = {}  # device -> (time, user), by time
        self.said: dict[str, dict[str, Any]] = {}  # user -> traits
        self.gaps: dict[str, list[dict[str, Any]]] = {}  # user -> what waited for them
        self._waits: dict[str, list[dict[str, Any]]] = {}
        self._linked: set[tuple[str, str]] = set()  # (device, user) that had both ids in what was sent
        self._events: list[tuple[str, str | None, str | None, str | None]] = []
        for call in sent:
            self._take(call, *ids_of(call))

    def _take(self, call: dict[str, Any], device: str | None, user: str | None) -> None:
        taken = device in self.owners.values() or self.owners.get(device or "", user) != user
        if call["type"] == "alias" and (device is None or taken):
            return
        if call["type"] == "track" and (device or user):
            self._events.append((call["event"], device, user, self._latest(device, call["timestamp"])))
        if call["type"] == "identify" and user is not None:
            self.said.setdefault(user, {}).update(call["traits"])
        if device is None:
            return
        if user is None:
            self._waits.setdefault(device, []).extend([call["traits"]] if call["type"] == "identify" else [])
            return
        self._linked |= {(device, user)} if call["type"] != "group" else set()
        if device not in self.owners and call["type"] != "group":
            self.owners[device] = user
            self.logins[device] = [(call["timestamp"], user)]
        elif device in self.owners and user != (self._latest(device, call["timestamp"]) or self.owners[device]):
            self.logins[device] = sorted([*self.logins[device], (call["timestamp"], user)])
        self.gaps.setdefault(user, []).extend(self._waits.pop(device, []))

    def _latest(self, device: str | None, at: str) -> str | None:
        """Who had logged in on the device by this time, of those who are known by now."""
        return next((user for time, user in reversed(self.logins.get(device or "", [])) if time <= at), None)

    def clusters(self) -> dict[str, set[str]]:
        return {user: {d for d, u in self.owners.items() if u == user} for user in self.owners.values()}

    def persons(self) -> dict[str, str]:
        """Event -> whose it ends as, with `split`."""
        return {name: user or self._whose(device or "", latest) for name, device, user, latest in self._events}

    def _whose(self, device: str, latest: str | None) -> str:
        """An event of nobody is the latest login's, under a device id of theirs; else the first user's."""
        owner = self.owners.get(device, f"$device:{device}")
        if latest is None or latest == owner:
            return owner
        return latest if (device, latest) in self._linked else f"$device:{links.split_id(device, latest)}"


def _die_before_settling(world: World) -> None:
    """Everything that waits is posted, and nobody remembers the answer."""
    settle = world.store.settle

    def dies(*_: Any) -> None:
        raise StoreUnavailable("killed")

    world.store.settle = dies  # type: ignore[method-assign]
    for line in world.lines:
        with suppress(StoreUnavailable):
            line.work()
    world.store.settle = settle  # type: ignore[method-assign]
    world.restart()


@slow
@given(history=steps)
def test_the_partition_of_people_is_what_the_rules_give_for_the_history(databases: Databases, history) -> None:
    with databases() as url, TemporaryDirectory() as folder, closing(World(Path(folder), url)) as world:
        sent = live(world, history)
        rules = Rules(sent)
        assert world.clusters() == rules.clusters()
        # Whoever logs in later, an event of nobody is the first user's.
        whose = {call["event"]: ids_of(call) for call in sent if call["type"] == "track" and ids_of(call) != NONE}
        assert world.persons() == {
            name: user or rules.owners.get(device or "", f"$device:{device}")
            for name, (device, user) in whose.items()
        }
        known = rows(world.settings.database_url, 'SELECT device, "user" FROM link')
        assert dict(known) == rules.owners, "the store keeps the table that Mixpanel keeps"
        _said_is_as(rules, profiles(world))
        for to in (IMPORT, ENGAGE, GROUPS):
            world.report(to)


def _said_is_as(rules: Rules, found: dict[str, dict[str, Any]]) -> None:
    """What users said is theirs, the latest of it; what visitors said fills gaps of who came next, of nobody else."""
    for user in found.keys() | rules.said.keys() | rules.gaps.keys():
        traits, said, gaps = found.get(user, {}), rules.said.get(user, {}), rules.gaps.get(user, [])
        assert traits.keys() == said.keys() | {name for gap in gaps for name in gap}
        assert said.items() <= traits.items()
        assert all(traits[name] in [gap.get(name) for gap in gaps] for name in traits.keys() - said.keys())


@slow
@given(history=steps, again=st.sets(st.integers(0, 13)))
def test_sending_any_of_it_again_changes_nothing(databases: Databases, history, again: set[int]) -> None:
    with databases() as url, TemporaryDirectory() as folder, closing(World(Path(folder), url)) as world:
        live(world, history)
        before, said = (world.clusters(), events_of(world)), profiles(world)
        assert len(before[1]) == len(world.names()), "each is there once"
        part = [step if number in again else NO_STEP for number, step in enumerate(history)]
        live(world, part)
        assert (world.clusters(), events_of(world)) == before
        assert profiles(world) == said, "as long as it is known what was seen"
        _forget_what_was_seen(world)
        live(world, part)
        assert (world.clusters(), events_of(world)) == before


NO_STEP = ("deliver", "", None)
NONE = (None, None)


def events_of(world: World) -> set[tuple[str, int, str, str]]:
    """Every event after duplicates were removed, and whose it is."""
    return {(one.event, one.time_ms, one.insert_id, one.person) for one in world.project.events()}


def profiles(world: World) -> dict[str, dict[str, Any]]:
    """The traits of everybody, without their groups."""
    return {
        one.id: {name: value for name, value in one.properties.items() if name != "$group_id"}
        for one in world.project.people()
    }


def _forget_what_was_seen(world: World) -> None:
    """As after the days for which it is remembered."""
    from adapter.store import seen

    world.store._writer.run(lambda connection, jobs: [seen.forget(connection)] * len(jobs), None)


@slow
@given(history=steps, minutes=st.lists(st.integers(0, 5), min_size=14, max_size=14))
def test_with_split_no_anonymous_event_goes_to_anybody_but_the_latest_login(
    databases: Databases, history, minutes: list[int]
) -> None:
    """The latest by the times of the messages; of those that are claimed together or were claimed before."""
    history = [("deliver", *ids) if kind == "die" else (kind, *ids) for kind, *ids in history]
    with (
        databases() as url,
        TemporaryDirectory() as folder,
        closing(World(Path(folder), url, shared_devices="split")) as world,
    ):
        sent = live(world, history, minutes)
        claims = list(itertools.accumulate(kind == "deliver" for kind, *_ in history))
        sent.sort(key=lambda call: (claims[int(call["messageId"][2:])], call["timestamp"]))
        assert world.persons() == Rules(sent).persons()


@slow
@given(history=steps)
def test_with_first_user_an_ordinary_events_bytes_depend_on_no_link(databases: Databases, history) -> None:
    """What goes out for a track is what mapping makes of it with nothing known of its device."""
    with databases() as url, TemporaryDirectory() as folder, closing(World(Path(folder), url)) as world:
        posted: set[bytes] = set()
        post = world.client.post

        def read_along(request: ingestion.Request, n_records: int) -> ingestion.Verdict:
            if request.endpoint == IMPORT:
                posted.update(map(bytes, msgspec.json.decode(gzip.decompress(request.body), type=list[msgspec.Raw])))
            return post(request, n_records)

        world.client.post = read_along  # type: ignore[method-assign]
        tracks = [call for call in live(world, history) if call["type"] == "track"]
        entries = [
            Entry(endpoint=IMPORT, message_id=0, accepted_at_ms=LATER_MS, time_ms=0, body=raw(one)) for one in tracks
        ]
        alone = [parcels.prepare(one, parcels.Rules.of(world.settings)) for one in entries]
    assert {one for one in posted if LINK.encode() not in one} == {
        record for one in alone if isinstance(one, parcels.Parcel) for record in one.records
    }


#: No time of a message is so long after its acceptance that the acceptance stands in for it.
LATER_MS = 4_000_000_000_000
VERBED = [A, B, A.replace("1", "3"), K, "ada", "bob"]


@pytest.mark.parametrize("system", ["original", "legacy"])
@slow
@given(
    history=st.lists(
        st.tuples(
            st.sampled_from(["identify", "identify", "alias", "deliver"]),
            st.sampled_from(VERBED),
            st.sampled_from(VERBED),
        ),
        max_size=14,
    )
)
def test_nothing_is_refused_there_that_was_not_refused_here(system: str, history) -> None:
    """Any id may be a device, a user and an alias; only that Mixpanel's clusters are limited is left out."""
    with (
        TemporaryDirectory() as folder,
        closing(World(Path(folder), f"sqlite:///{folder}/adapter.db", identity_api=system)) as world,
    ):
        for kind, device, user in history:
            if kind == "identify":
                world.identify(device, user)
            elif kind == "alias":
                world.alias(device, user)
            else:
                world.deliver()
        world.deliver()
        failed = [one for one in world.project.events() if "$failure_reason" in one.properties]
        assert not failed, [(one.event, one.properties) for one in failed]
