"""A person asks to be forgotten: what goes, what stays, in which order, and what can be told of it afterwards."""

import dataclasses
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from adapter import changes, deletes, delivery, dossier, ingestion, links, persons
from adapter.cli import main
from adapter.config import Settings
from adapter.deletions import FAULT_WAIT_S, MAX_IDS, MAX_WAIT_S, PACE_S, Deletions
from adapter.delivery import Delivery
from adapter.errors import ConfigError
from adapter.links import Effect, Login, Shared, key
from adapter.parcels import released
from adapter.persons import Person
from adapter.records import Options
from adapter.store import Erasure, Settled, Store, beside, read_report
from schemas.mixpanel import ENGAGE, GROUPS, IMPORT
from tests.conftest import raw, rows
from tests.endpoint import Answer, Endpoint, Got
from tests.test_merge import A, B, _die_before_settling, told
from tests.world import World

IMPORTS, UPDATES = 0, 1  # the lines of a World
TOKEN = "canary-oauth-token"  # noqa: S105 no secret


def delete(world: World, user: str, **fields: Any) -> None:
    world.send("delete", userId=user, **fields)


def steps(world: World, user: str) -> list[str]:
    return [one.step for one in dossier.look_up(world.settings.database_url, user).steps]


def refusing(world: World, monkeypatch: pytest.MonkeyPatch, *calls: Callable[[], Any]) -> None:
    """Make these calls, every record of which Mixpanel refuses."""
    refused = ingestion.Verdict(outcome=ingestion.Outcome.DONE, refused={n: "no" for n in range(100)})
    with monkeypatch.context() as patched:
        patched.setattr(world.client, "post", lambda *_: refused)
        for call in calls:
            call()
        world.deliver()


def kept(world: World) -> list[str]:
    """Names of the events that are refused."""
    return [json.loads(body)["event"] for (body,) in rows(world.settings.database_url, "SELECT body FROM refusal")]


def plain(world: World) -> str:
    """Everything readable in the tables that speak of people."""
    tables = ("message", "refusal", "link", "login", "conflict", "held", "erasure", "deletion", "fact")
    return str([rows(world.settings.database_url, f"SELECT * FROM {table}") for table in tables])  # noqa: S608


def test_the_steps_of_a_delete_are_told_in_json_too(world: World) -> None:
    delete(world, "ada")
    world.deliver()
    asked = ["identity", "ada", "--json"]
    found = CliRunner().invoke(main, asked, env={"DATABASE_URL": world.settings.database_url})
    [one] = json.loads(found.output)
    assert [step["step"] for step in one["steps"]] == steps(world, "ada")
    assert one["steps"][0].keys() == {"at_ms", "step", "detail"}


# The order


def test_a_delete_waits_for_older_entries_of_its_user_on_a_device_that_is_not_linked_yet(world: World) -> None:
    world.track("bought", A, "ada")
    delete(world, "ada")
    assert world.lines[UPDATES].work() == 0.0
    assert world.lines[UPDATES].work() == 1.0, "only a delete that must wait is there: come back in a second"
    assert world.report(ENGAGE).waiting == 1
    world.deliver()
    assert steps(world, "ada")[:2] == ["waits", "profile_deleted"]
    assert rows(world.settings.database_url, 'SELECT device, "user" FROM link') == [(None, None)]


def test_a_delete_waits_for_older_entries_of_linked_devices_that_name_no_user(world: World) -> None:
    world.track("login", A, "ada")
    world.deliver()
    world.track("read", A)
    delete(world, "ada")
    world.lines[UPDATES].work()
    assert world.report(ENGAGE).waiting == 1
    world.deliver()
    assert world.report(ENGAGE).waiting == 0


def test_a_delete_waits_for_a_group_of_its_user(world: World) -> None:
    world.send("group", userId="ada", groupId="acme", traits={"plan": "pro"})
    delete(world, "ada")
    world.lines[UPDATES].work()
    world.lines[UPDATES].work()
    assert world.report(ENGAGE).waiting == 1
    assert world.report(GROUPS).waiting == 1
    world.deliver()
    assert world.project.profile("ada") is None


def test_that_a_delete_waits_is_told_once_whoever_starts_again(world: World) -> None:
    world.track("bought", A, "ada")
    delete(world, "ada")
    for _ in range(2):
        world.lines[UPDATES].work()
        world.restart()
    assert steps(world, "ada") == ["waits"]


def test_a_delete_waits_for_nobody_elses_entries(world: World) -> None:
    world.track("read", B, "bob")
    delete(world, "ada")
    world.lines[UPDATES].work()
    assert world.report(ENGAGE).waiting == 0
    assert "waits" not in steps(world, "ada")


def test_a_delete_that_waits_holds_up_nobody_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "CLAIM_ENTRIES", 2)
    for user in ("ada", "bob", "cem"):
        world.track("read", None, user)
        delete(world, user)
    world.identify(None, "dora", plan="pro")
    for _ in range(4):
        world.lines[UPDATES].work()
    assert world.profile("dora") == {"plan": "pro"}
    assert world.report(ENGAGE).waiting == 3
    world.deliver()
    assert [steps(world, user)[-1] for user in ("ada", "bob", "cem")] == ["deletion_not_requested"] * 3


def test_what_the_person_does_after_the_delete_comes_after_it(world: World) -> None:
    world.track("bought", None, "ada")
    delete(world, "ada")
    world.identify(None, "ada", plan="new")
    world.lines[UPDATES].work()
    assert world.project.profile("ada") is None, "the newer update waits behind the delete"
    world.deliver()
    assert world.profile("ada") == {"plan": "new"}


def test_traits_that_were_on_their_way_to_the_person_do_not_bring_the_profile_back(world: World) -> None:
    world.identify(A, None, plan="free")
    world.deliver()
    world.track("bought", A, "ada")
    delete(world, "ada")
    world.deliver()
    assert world.project.profile("ada") is None
    assert world.report().erased == 1
    assert world.report(ENGAGE).nothing == {"released_before": 1}


def test_a_delete_that_died_before_it_was_settled_is_done_again(world: World) -> None:
    world.identify(A, "ada", plan="pro")
    world.deliver()
    delete(world, "ada")
    _die_before_settling(world)
    assert steps(world, "ada") == []
    world.deliver()
    assert world.project.profile("ada") is None
    assert steps(world, "ada") == ["profile_deleted", "erased_here", "deletion_not_requested"]


def test_a_link_that_is_made_while_older_entries_are_looked_for_is_not_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.track("bought", A, "ada")
    delete(world, "ada")
    devices_of = world.store.devices_of
    late = [world.lines[IMPORTS].work]

    def and_then_the_event_is_taken(user: str) -> tuple[str, ...]:
        found = devices_of(user)
        while late:
            late.pop()()
        return found

    monkeypatch.setattr(world.store, "devices_of", and_then_the_event_is_taken)
    world.lines[UPDATES].work()
    world.deliver()
    assert rows(world.settings.database_url, "SELECT device FROM link") == [(None,)]


def test_a_second_delete_waits_for_the_first_and_finds_nothing_left(world: World) -> None:
    world.identify(A, "ada", plan="pro")
    delete(world, "ada")
    delete(world, "ada")
    world.deliver()
    assert steps(world, "ada").count("profile_deleted") == 2
    assert world.report(ENGAGE).delivered == 3


# What goes, and what stays


def test_a_delete_takes_the_profile_the_refused_and_the_held_and_leaves_hashed_links(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.identify(A, "ada", plan="pro")
    world.track("read", B, "ada")
    world.deliver()
    refusing(
        world,
        monkeypatch,
        lambda: world.track("hers", B, "ada"),
        lambda: world.track("anonymous", f"$device:{A}"),
        lambda: world.track("bobs", A, "bob"),
        lambda: world.track("strangers", "d-9"),
        lambda: world.identify(None, "ada", plan="max"),
    )
    world.identify(B, None, seats=5)
    world.deliver()
    assert (world.report().refused, world.report().held) == ({"refused_by_mixpanel": 4}, 1)
    delete(world, "ada")
    world.deliver()
    assert world.project.profile("ada") is None
    report = world.report()
    assert (report.refused, report.erased, report.held) == ({"refused_by_mixpanel": 2}, 3, 0)
    engage = world.report(ENGAGE)
    assert (engage.refused, engage.erased) == ({}, 1)
    assert kept(world) == ["bobs", "strangers"], "what another did on a shared device is the other's"
    found = rows(world.settings.database_url, 'SELECT key, device, user_key, "user" FROM link ORDER BY key')
    assert sorted(found) == sorted((key(device), None, key("ada"), None) for device in (A, B))
    assert "ada" not in plain(world)
    assert B not in plain(world)


def test_to_forget_a_user_of_many_devices_takes_few_statements(world: World) -> None:
    """Others wait for that commit, and such a user may be the one id that a server sends for everybody."""
    one = Effect(device="", user="ada", time_ms=0, message_id="m", how="track", links=True)
    effects = [msgspec.structs.replace(one, device=f"device-{number}") for number in range(300)]
    world.store.learn(effects, released)
    statements: list[str] = []
    sa.event.listen(world.store._writer._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    delete(world, "ada")
    world.deliver()
    assert world.store.devices_of("ada") == ()
    assert len(statements) < 100


def test_the_refused_of_many_deletes_are_looked_for_in_one_pass(world: World) -> None:
    """Who deletes hundreds at once may have refused messages by the hundred thousand."""
    users = ("ada", "bob", "cem", "dora", "eve")
    for user in users:
        world.track("$identify", None, user)
    world.deliver()
    statements: list[str] = []
    sa.event.listen(world.store._reading._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for user in users[:-1]:
        delete(world, user)
    world.deliver()
    left = [json.loads(body)["userId"] for (body,) in rows(world.settings.database_url, "SELECT body FROM refusal")]
    assert left == ["eve"]
    assert sum("body" in one and "FROM refusal" in one for one in statements) == 2, "the second finds no more"


def test_so_many_deletes_go_out_together_as_are_soon_settled(world: World, monkeypatch) -> None:
    monkeypatch.setattr(deletes, "TOGETHER", 2)
    for user in ("ada", "bob", "cem"):
        delete(world, user)
    world.lines[UPDATES].work()
    assert world.report(ENGAGE).waiting == 1
    world.deliver()
    assert all(steps(world, user)[0] == "profile_deleted" for user in ("ada", "bob", "cem"))


def test_no_byte_of_the_persons_is_left_in_the_files(tmp_path: Path, sqlite_url: str, monkeypatch) -> None:
    """Also where SQLite leaves what is deleted until its room is needed; after the next commit, its log as well."""
    connect = sqlite3.connect

    def careless(*args: Any, **how: Any) -> sqlite3.Connection:
        connection = connect(*args, **how)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection

    monkeypatch.setattr("sqlite3.dbapi2.connect", careless)
    secrets = ("ada-the-canary", "device-of-the-canary", "canary@example.org")
    user, device, email = secrets
    with closing(World(tmp_path, sqlite_url)) as world:
        world.track("bought", device, user, email=email)
        world.deliver()
        refusing(world, monkeypatch, lambda: world.track("refused", device, user, properties={"email": email}))
        world.identify(device, None, email=email)
        world.deliver()
        delete(world, user)
        world.deliver()
        world.store.expire_held(0)  # as is done each hour
        files = {path.name: path.read_bytes() for path in tmp_path.glob("adapter.db*")}
        assert "adapter.db-wal" in files
        assert [(name, one) for name, data in files.items() for one in secrets if one.encode() in data] == []


def test_every_step_is_told_by_the_command_that_tells_of_an_id(world: World) -> None:
    world.track("read", A, "ada")
    delete(world, "ada")
    world.lines[UPDATES].work()
    world.deliver()
    text = told(world, "ada")
    assert "ada asked to be forgotten:" in text
    for step in ("waits", "profile_deleted", "erased_here", "deletion_not_requested"):
        assert f"Z {step}: " in text
    assert "(erased), linked by the track" in text


def test_a_tombstone_still_tells_whose_the_device_is(world: World) -> None:
    world.track("read", A, "ada")
    delete(world, "ada")
    world.deliver()
    assert world.store.known([A])[A].owner == key("ada")
    world.alias(A, "bob")
    world.track("bobs", A, "bob")
    world.deliver()
    assert world.report().refused == {"alias_of_anothers_device": 1}
    assert world.report().notes["device_of_another"] >= 1
    assert "ada" not in plain(world)


def test_a_person_who_comes_back_is_known_again_and_can_be_forgotten_again(world: World) -> None:
    world.track("read", A, "ada")
    delete(world, "ada")
    world.deliver()
    world.identify(A, "ada", plan="new")
    world.deliver()
    assert world.profile("ada") == {"plan": "new"}
    assert world.names().count("Identity Linked") == 0, "the link stands, so none is sent"
    assert world.store.devices_of("ada") == (A,)
    delete(world, "ada")
    world.deliver()
    assert world.project.profile("ada") is None
    assert A not in plain(world)


def test_with_split_a_shared_device_works_on_when_its_users_are_forgotten(split: World) -> None:
    split.track("1", A, "ada")
    split.track("2", A, "bob")
    split.deliver()
    delete(split, "ada")
    delete(split, "bob")
    split.deliver()
    assert "ada" not in plain(split)
    assert "bob" not in plain(split)
    assert A not in plain(split)
    split.track("early", A, timestamp="2026-03-01T12:00:01Z")
    split.track("late", A)
    split.deliver()
    assert (split.persons()["early"], split.persons()["late"]) == ("ada", "bob")
    text = told(split, A)
    assert f"(erased) on {A}" in text
    assert f"sent as {links.split_id(A, 'bob')}" in text


def test_the_id_that_a_further_user_of_a_device_has_there_is_theirs(split: World) -> None:
    split.track("1", A, "ada")
    split.track("2", A, "bob")
    split.deliver()
    assert split.store.devices_of("bob") == (links.split_id(A, "bob"),)
    assert split.store.devices_of("ada") == (A,)


@pytest.fixture
def kiosk(split: World) -> World:
    """A device on which ada logged in at 10, and bob at 11."""
    split.track("ada", A, "ada", timestamp="2026-03-01T10:00:00Z")
    split.track("bob", A, "bob", timestamp="2026-03-01T11:00:00Z")
    return split.deliver()


ADAS, BOBS = {"timestamp": "2026-03-01T10:30:00Z"}, {"timestamp": "2026-03-01T11:30:00Z"}


def nobodys(kiosk: World) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Calls for an anonymous event of ada's and one of bob's."""
    return lambda: kiosk.track("adas", A, **ADAS), lambda: kiosk.track("bobs", A, **BOBS)


def test_with_split_a_delete_waits_for_what_names_nobody_on_a_device_that_is_shared(kiosk: World) -> None:
    kiosk.track("read", A, **BOBS)
    delete(kiosk, "bob")
    kiosk.lines[UPDATES].work()
    assert kiosk.report(ENGAGE).waiting == 1
    kiosk.deliver()
    assert steps(kiosk, "bob")[:2] == ["waits", "profile_deleted"]


@pytest.mark.parametrize(("user", "stays"), [("ada", "bobs"), ("bob", "adas")])
def test_with_split_what_named_nobody_is_of_the_latest_login_before_it(
    kiosk: World, monkeypatch: pytest.MonkeyPatch, user: str, stays: str
) -> None:
    refusing(kiosk, monkeypatch, *nobodys(kiosk))
    delete(kiosk, user)
    kiosk.deliver()
    assert kiosk.report().erased == 1
    assert kept(kiosk) == [stays]


@pytest.mark.parametrize(("user", "n_held"), [("ada", 1), ("bob", 0)])
def test_with_split_what_a_visitor_says_after_a_login_goes_with_that_user(
    kiosk: World, user: str, n_held: int
) -> None:
    kiosk.send("identify", anonymousId=A, traits={"plan": "free"}, **BOBS)
    kiosk.deliver()
    delete(kiosk, user)
    kiosk.deliver()
    assert (kiosk.report().held, kiosk.report().erased) == (n_held, 1 - n_held)


def test_with_split_what_is_retried_behind_a_delete_is_erased_if_it_is_the_persons(
    kiosk: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(kiosk, monkeypatch, *nobodys(kiosk))
    delete(kiosk, "bob")
    changes.retry(kiosk.store, kiosk.settings, numbers=[1, 2], vouched=False)
    kiosk.lines[UPDATES].work()
    kiosk.deliver()
    assert set(kiosk.names()) == {"ada", "bob", "adas"}
    assert kiosk.report().erased == 1


def test_with_split_a_device_that_its_first_user_was_forgotten_on_still_tells_what_is_the_others(
    kiosk: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete(kiosk, "ada")
    kiosk.deliver()
    refusing(kiosk, monkeypatch, *nobodys(kiosk))
    kiosk.track("later", A, **BOBS)
    delete(kiosk, "bob")
    kiosk.lines[UPDATES].work()
    assert kiosk.report(ENGAGE).waiting == 1
    kiosk.deliver()
    assert kiosk.report().erased == 1
    assert kept(kiosk) == ["adas"]


def test_with_split_what_is_no_message_is_of_the_login_before_it_was_taken(kiosk: World) -> None:
    from adapter.intake import accept

    broken = b'{"type":"track","anonymousId":"' + A.encode() + b'","event":'
    accept([broken], kiosk.store, Options.of(kiosk.settings))
    delete(kiosk, "ada")
    kiosk.deliver()
    assert kiosk.report("intake").erased == 0
    delete(kiosk, "bob")
    kiosk.deliver()
    assert kiosk.report("intake").erased == 1


def test_without_split_a_device_of_another_is_not_the_persons(world: World) -> None:
    world.track("1", A, "ada")
    world.track("2", A, "bob")
    world.deliver()
    assert world.store.devices_of("bob") == ()
    delete(world, "bob")
    world.deliver()
    assert rows(world.settings.database_url, 'SELECT device, "user" FROM link') == [(A, "ada")]
    assert rows(world.settings.database_url, 'SELECT "user" FROM conflict') == [(None,)]
    assert sorted(rows(world.settings.database_url, 'SELECT "user", sent_as FROM login'), key=str) == [
        ("ada", A),
        (None, A),
    ]


def test_visitors_profiles_of_the_devices_go_too_where_visitors_have_them(tmp_path: Path, database_url: str) -> None:
    with closing(World(tmp_path, database_url, anonymous_profiles="send")) as world:
        world.identify(A, None, plan="free")
        world.deliver()
        world.track("read", A, "ada")
        world.deliver()
        assert world.project.profile(f"$device:{A}") == {"plan": "free"}
        delete(world, "ada")
        world.deliver()
        assert world.project.profile(f"$device:{A}") is None


def test_an_unknown_user_is_deleted_there_and_unknown_here(world: World) -> None:
    delete(world, "nobody")
    world.deliver()
    assert world.report(ENGAGE).delivered == 1
    assert steps(world, "nobody") == ["profile_deleted", "erased_here", "deletion_not_requested"]


@pytest.mark.parametrize(("user", "reason"), [("null", "no_id"), ("$device:d", "delete_of_a_device")])
def test_a_delete_of_nobody_is_refused_and_erases_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, user: str, reason: str
) -> None:
    refusing(world, monkeypatch, lambda: world.track("read", "d", "null"))
    delete(world, user)
    world.deliver()
    assert world.report(ENGAGE).refused == {reason: 1}
    assert world.report().erased == 0


def test_a_delete_that_mixpanel_refuses_erases_nothing_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.track("read", A, "ada")
    world.deliver()
    refusing(world, monkeypatch, lambda: delete(world, "ada"))
    assert steps(world, "ada") == ["profile_not_deleted"]
    assert rows(world.settings.database_url, 'SELECT device, "user" FROM link') == [(A, "ada")]
    assert world.report(ENGAGE).refused == {"refused_by_mixpanel": 1}


def test_what_was_rejected_at_the_door_is_erased_too(world: World) -> None:
    from adapter.intake import accept

    options = Options.of(world.settings)
    broken = [b'{"type":"track","userId":"ada","event":', b'{"type":"track","userId":"adam","event":']
    accept([raw({"type": "track", "userId": "ada"}), *broken], world.store, options)
    delete(world, "ada")
    world.deliver()
    assert [body for (body,) in rows(world.settings.database_url, "SELECT body FROM refusal")] == broken[1:]
    assert world.report("intake").erased == 2


def test_what_is_refused_while_the_delete_is_settled_is_erased(world: World, monkeypatch) -> None:
    look_for = world.store.erasures.look_for

    def and_then_one_more(settled: list[Settled]) -> Any:
        found = look_for(settled)
        if found is not None:
            world.store._writer.run(_refuse_one_more, None)
        return found

    monkeypatch.setattr(world.store.erasures, "look_for", and_then_one_more)
    delete(world, "ada")
    world.deliver()
    assert rows(world.settings.database_url, "SELECT * FROM refusal") == []


def _refuse_one_more(connection: Any, calls: list[None]) -> list[None]:
    from adapter.store.tables import refusal

    row = {"endpoint": IMPORT, "reason": "why", "detail": "", "accepted_at_ms": 0, "refused_at_ms": 0}
    connection.execute(refusal.insert(), {**row, "body": raw({"type": "track", "userId": "ada"})})
    return [None] * len(calls)


@pytest.mark.parametrize("user", ["ada", "Zoë", "日本", 'a"b\\c/d', "x+1@example.com", "4711", "a b", "\t"])
def test_a_person_is_found_however_the_id_is_written(user: str) -> None:
    ways = [json.dumps({"userId": user}).encode(), raw({"userId": user})]
    ways += [b'{"userId":"' + "".join(f"\\u{ord(one):04x}" for one in user).encode() + b'"}']
    ways += [b'{"userId":' + user.encode() + b"}"] if user.isdecimal() else []
    for body in ways:
        assert Person(user=user).owns(body, 0)
        assert Person(user=user).is_named_in(body)
        assert Person(user=user).named_keys & persons.keys_in(body)
        assert persons.needle(user) in body or rb"\u00" in body or persons.needle(user) == b""
        assert not Person(user=user + "x").owns(body, 0)


def test_an_alias_is_of_both_its_ids() -> None:
    body = raw({"type": "alias", "userId": "bob", "previousId": A})
    assert Person(user="bob").owns(body, 0)
    assert Person(user="ada", devices=(A,)).owns(body, 0)
    assert not Person(user="cem", devices=(B,)).owns(body, 0)


def test_on_a_shared_device_what_is_no_message_is_of_the_latest_login_when_it_was_taken() -> None:
    logins = (Login(1, key("ada"), A), Login(20, key("bob"), B))
    ada = Person(user="ada", devices=(A,), shared=(Shared(key=key(A), device=A, logins=logins),))
    body = raw({"type": "purchase", "anonymousId": A})
    assert (ada.owns(body, 10), ada.owns(body, 30)) == (True, False)
    assert ada.named_keys & persons.keys_in(body)


# Mixpanel's data deletions


class Deleting:
    """A store, and a line of deletions to an endpoint, with a clock that is moved by hand."""

    def __init__(self, database_url: str, endpoint: Endpoint) -> None:
        self.settings = Settings(
            database_url=database_url,
            ingestion_url=endpoint.url,
            mixpanel_token="canary-project",  # noqa: S106 no secret
            deletion_token=TOKEN,
            deletion_url=endpoint.url,
        )
        self.store = Store(database_url)
        self.store.leases.renew()
        self.now_s = 2_000_000_000.0
        self.restart()

    def restart(self) -> None:
        self.line = Deletions(self.store, self.settings, poll_s=600.0, clock=lambda: self.now_s)

    def close(self) -> None:
        self.line.close()
        self.store.close()

    def ask(self, user: str, *ids: str) -> None:
        """As if a delete of this person had been settled."""
        from tests.test_store import arrival

        self.store.put([arrival(f"delete {user}", lanes=((ENGAGE, 0),))])
        [entry] = self.store.claim(ENGAGE, 1)
        erasure = Erasure(
            user=user,
            devices=(),
            message_id=f"m-{user}",
            needles=(),
            named=frozenset(),
            keys_in=lambda _: set(),
            owns=lambda *_: False,
            device_keys=frozenset(),
            has=lambda *_: False,
            distinct_ids=ids or (user,),
        )
        self.store.settle([Settled(entry=entry, state="delivered", erasure=erasure)])

    def steps(self, user: str) -> list[tuple[str, str]]:
        return [(one.step, one.detail) for one in dossier.look_up(self.settings.database_url, user).steps][2:]

    def report(self) -> Any:
        return read_report(self.settings.database_url).deletions


@pytest.fixture
def deleting(database_url: str, endpoint: Endpoint) -> Iterator[Deleting]:
    with closing(Deleting(database_url, endpoint)) as deleting:
        yield deleting


def test_when_somebody_was_erased_is_known_by_their_key(deleting: Deleting) -> None:
    with beside(deleting.settings.database_url) as store:
        assert not store.has_erased()
        before_ms = int(time.time() * 1000)
        deleting.ask("ada")
        assert store.has_erased()
        found = store.erased([links.key("ada"), links.key("ben")])
    assert list(found) == [links.key("ada")]
    assert before_ms <= found[links.key("ada")] <= time.time() * 1000


def taken(tracking_id: str = "t-1") -> Answer:
    return Answer(201, {"status": "ok", "results": {"task_id": tracking_id}})


def says(status: str) -> Answer:
    return Answer(200, {"status": "ok", "results": {"status": status}})


LISTED = Answer(200, [{"status": "PENDING", "tracking_id": "t-1", "compliance_type": "GDPR", "distinct_id_count": 1}])


@pytest.mark.parametrize("answer", [taken(), LISTED, Answer(201, {"results": [{"tracking_id": "t-1"}]})])
def test_a_deletion_is_requested_and_followed_to_its_end(
    deleting: Deleting, endpoint: Endpoint, answer: Answer
) -> None:
    deleting.ask("ada", "ada", f"$device:{A}")
    endpoint.answers.extend([answer, says("PENDING"), says("STAGING"), says("STAGING"), says("SUCCESS")])
    assert deleting.line.work() == PACE_S
    [got] = endpoint.got
    assert (got.method, got.path) == ("POST", "/api/app/data-deletions/v3.0/")
    assert got.query == {"token": "canary-project"}
    assert got.headers["Authorization"] == f"Bearer {TOKEN}"
    assert got.records == {"distinct_ids": ["ada", f"$device:{A}"], "compliance_type": "GDPR"}
    for _ in range(4):
        deleting.now_s += 601
        assert deleting.line.work() == PACE_S
    assert deleting.line.work() is None
    assert [(one.method, one.path) for one in endpoint.got[1:]] == [("GET", "/api/app/data-deletions/v3.0/t-1")] * 4
    assert deleting.steps("ada") == [
        ("deletion_waits", "2 ids wait for their request"),
        ("deletion_requested", "as t-1"),
        ("deletion_staging", "says Mixpanel of t-1"),
        ("deletion_success", "says Mixpanel of t-1"),
    ]
    assert rows(deleting.settings.database_url, "SELECT * FROM deletion") == [], "the ids go with the last word"
    assert deleting.report().ended == {"success": 2}


@pytest.mark.parametrize("status", ["FAILURE", "REVOKED", "NOT_FOUND"])
def test_a_deletion_that_fails_ends_and_is_counted(deleting: Deleting, endpoint: Endpoint, status: str) -> None:
    deleting.ask("ada")
    endpoint.answers.extend([taken(), says(status)])
    deleting.line.work()
    deleting.now_s += 601
    deleting.line.work()
    assert deleting.steps("ada")[-1] == (f"deletion_{status.lower()}", "says Mixpanel of t-1")
    assert deleting.report().ended == {status.lower(): 1}
    assert deleting.line.work() is None


def test_a_status_is_not_asked_for_more_often_than_every_ten_minutes(deleting: Deleting, endpoint: Endpoint) -> None:
    import time

    deleting.now_s = time.time()
    deleting.ask("ada")
    endpoint.answers.append(taken())
    deleting.line.work()
    deleting.now_s += 590
    assert deleting.line.work() is None
    endpoint.answers.append(says("STARTED"))
    deleting.now_s += 20
    assert deleting.line.work() == PACE_S


def test_a_request_names_as_many_ids_as_mixpanel_takes(deleting: Deleting, endpoint: Endpoint) -> None:
    deleting.ask("ada", *(f"d-{number}" for number in range(MAX_IDS + 1)))
    endpoint.answers.extend([taken("t-1"), taken("t-2")])
    assert [deleting.line.work(), deleting.line.work()] == [PACE_S, PACE_S]
    assert [len(got.records["distinct_ids"]) for got in endpoint.got] == [MAX_IDS, 1]
    assert [detail for step, detail in deleting.steps("ada") if step == "deletion_requested"] == ["as t-1", "as t-2"]


def test_several_people_share_a_request_and_each_has_the_steps(deleting: Deleting, endpoint: Endpoint) -> None:
    deleting.ask("ada")
    deleting.ask("bob")
    endpoint.answers.append(taken())
    deleting.line.work()
    assert [got.records["distinct_ids"] for got in endpoint.got] == [["ada", "bob"]]
    assert deleting.steps("ada")[-1] == deleting.steps("bob")[-1] == ("deletion_requested", "as t-1")


@pytest.mark.parametrize(
    "answer", [Answer(429, {"error": "slow down"}), Answer(503, b"busy"), Answer(0)], ids=["429", "503", "none"]
)
def test_a_deletion_that_mixpanel_does_not_take_now_is_tried_again_ever_later(
    deleting: Deleting, endpoint: Endpoint, answer: Answer
) -> None:
    deleting.ask("ada")
    endpoint.answers.extend([answer] * 14)
    waits = [deleting.line.work() for _ in range(14)]
    assert waits[:3] == [2.0, 4.0, 8.0]
    assert waits[-1] == MAX_WAIT_S
    assert deleting.report().last_answer["fault"] is None
    endpoint.answers.append(taken())
    assert deleting.line.work() == PACE_S
    assert deleting.report().waiting == 0


def test_mixpanel_may_say_how_long_it_wants_to_be_left_alone(deleting: Deleting, endpoint: Endpoint) -> None:
    deleting.ask("ada")
    endpoint.answers.append(Answer(429, {}, (("Retry-After", "1800"),)))
    assert deleting.line.work() == 1800.0


@pytest.mark.parametrize(
    "answer", [Answer(401, {"error": f"{TOKEN} is bad"}), Answer(403, {}), Answer(404, b""), Answer(200, b"<html>")]
)
def test_what_a_person_must_mend_is_shown_and_nothing_is_lost(
    deleting: Deleting, endpoint: Endpoint, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    deleting.ask("ada")
    endpoint.answers.append(answer)
    assert deleting.line.work() == FAULT_WAIT_S
    shown = CliRunner().invoke(main, ["status"], env={"DATABASE_URL": deleting.settings.database_url}).output
    assert "deletions: 1 ids wait to be requested" in shown
    assert f"deletions: FAULT {answer.status}" in shown
    assert "canary" not in shown + caplog.text + str(rows(deleting.settings.database_url, "SELECT value FROM fact"))
    deleting.restart()
    endpoint.answers.append(taken())
    assert deleting.line.work() == PACE_S
    assert deleting.report().pending == 1


def test_another_destination_is_not_asked_to_delete_people_of_the_one_before(
    deleting: Deleting, endpoint: Endpoint
) -> None:
    deleting.ask("ada")
    deleting.store.forget_destination()
    assert deleting.line.work() is None
    assert endpoint.got == []
    assert deleting.steps("ada")[-1][0] == "destination_changed"


def test_a_delete_that_comes_in_is_carried_out_to_the_last_step(
    database_url: str, endpoint: Endpoint, message: Callable[..., dict[str, Any]]
) -> None:
    """With real threads and real HTTP, from intake to Mixpanel's first answer."""
    from adapter.intake import accept
    from tests.test_delivery import wait_until

    def answer(got: Got) -> Answer:
        from tests.endpoint import stored

        return taken() if "data-deletions" in got.path else stored(got)

    endpoint.default = answer
    with closing(Deleting(database_url, endpoint)) as deleting:
        calls = [message(userId="user-1"), message("delete", messageId="m-2", anonymousId=None)]
        accept([raw(call) for call in calls], deleting.store, Options.of(deleting.settings))
        running = Delivery(deleting.store, deleting.settings, endpoint.url)
        running.start()
        wait_until(lambda: deleting.report().pending == 1)
        running.stop()
        assert read_report(database_url).waiting == 0
        [got] = [one for one in endpoint.got if "data-deletions" in one.path]
        assert got.records["distinct_ids"] == ["user-1", "$device:device-1"]
        order = [one.path for one in endpoint.got]
        assert order == ["/import", "/engage", got.path]
        told_of = "\n".join(dossier.tell(dossier.look_up(database_url, "user-1"), 30))
        assert "deletion_requested: as t-1" in told_of


@pytest.mark.parametrize(
    ("system", "ids"),
    [
        ("simplified", ("ada", "$device:a", "$device:b")),
        ("original", ("ada", "$device:a", "a", "$device:b", "b")),
        ("legacy", ("ada", "$device:a", "a", "$device:b", "b")),
    ],
)
def test_every_form_in_which_mixpanel_may_know_the_person_is_named(system: str, ids: tuple[str, ...]) -> None:
    options = dataclasses.replace(Options(token="t"), system=system)  # noqa: S106 no secret
    assert Person(user="ada", devices=("a", "b")).distinct_ids(options) == ids


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://api.mixpanel.com", "https://mixpanel.com"),
        ("https://api-eu.mixpanel.com", "https://eu.mixpanel.com"),
        ("https://api-in.mixpanel.com", "https://in.mixpanel.com"),
    ],
)
def test_deletions_are_requested_in_the_region_of_the_project(url: str, address: str) -> None:
    environment = {"INGESTION_URL": url, "MIXPANEL_TOKEN": "t", "MIXPANEL_DELETION_TOKEN": TOKEN}
    settings = Settings.from_environment(environment)
    assert settings.deletion_address == address
    assert TOKEN not in repr(settings)


def test_another_host_needs_to_be_told_where_deletions_are_requested() -> None:
    with pytest.raises(ConfigError, match="DELETION_URL"):
        Settings.from_environment({"MIXPANEL_DELETION_TOKEN": TOKEN})
    told = Settings.from_environment({"MIXPANEL_DELETION_TOKEN": TOKEN, "DELETION_URL": "http://127.0.0.1:1/"})
    assert told.deletion_address == "http://127.0.0.1:1"
