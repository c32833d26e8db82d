"""Archived messages sent again: whose each device is, is decided by when messages happened (design 3.13)."""

import dataclasses
import gzip
import itertools
import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from werkzeug.serving import make_server

from adapter import archive, limits, links
from adapter.config import Settings
from adapter.errors import ConfigError, Unreached
from adapter.parcels import Rules
from adapter.replay import again, fold, forgetting, phases, planning
from adapter.replay.choice import Choice
from adapter.replay.job import Job
from adapter.replay.journal import Journal, StateUnavailable
from adapter.replay.run import Run
from adapter.sandbox import endpoints
from adapter.sandbox.project import Project
from adapter.store import Erasure, Settled, Store, beside
from adapter.store import erasure as store_erasure
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS
from tests.conftest import raw
from tests.test_store import arrival

A, B, K = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222", "kiosk-7"
LINK = "Identity Linked"
NOW_MS = 1_780_000_000_000


class Sandbox:
    """A sandbox behind a real server, which can be given a new project."""

    def __init__(self) -> None:
        self.app = Flask("none")
        self._server = make_server("127.0.0.1", 0, lambda *call: self.app(*call), threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def project(self, path: Path, settings: Settings) -> Iterator[Project]:
        with closing(Project.open(path, settings.identity_api)) as project:
            self.app = Flask("sandbox")
            self.app.register_blueprint(endpoints.blueprint(project, token=settings.token, service_account=None))
            yield project


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with closing(Sandbox()) as sandbox:
        yield sandbox


class World:
    """A folder with logs, a store, and a sandbox project that is empty."""

    def __init__(self, folder: Path, sandbox: Sandbox, project: Project, settings: Settings) -> None:
        self.folder, self.project, self.settings = folder, project, settings
        self._address = sandbox.url
        self._numbers = itertools.count()

    def log(self, *calls: dict[str, Any], name: str | None = None, packed: bool = True) -> str:
        """Write a log of these calls."""
        path = self.folder / (name or f"{next(self._numbers)}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = b"".join(raw(call) + b"\n" for call in calls)
        path.write_bytes(gzip.compress(lines) if packed else lines)
        return str(path)

    def replay(self, *names: str, state: str = "state", **chosen: Any) -> Journal:
        """Run a replay to its end; the journal, which is closed."""
        with closing(self.open(state)) as journal:
            run = self.run(*names, journal=journal, **chosen)
            choice = run.job.choice
            found = archive.find(names, since_ms=choice.since_ms, until_ms=choice.until_ms, sources=choice.sources)
            self.report = phases.take_plan(run, found)
            phases.send(run)
            self.tally = journal.tally()
            self.kept = [*journal.kept(is_broken=False), *journal.kept(is_broken=True)]
        return journal

    def open(self, state: str = "state") -> Journal:
        return Journal(self.folder / state)

    def run(self, *names: str, journal: Journal, **chosen: Any) -> Run:
        """A replay that has not begun."""
        return Run(
            job=Job(names=names, now_ms=NOW_MS, **chosen),
            settings=self.settings,
            rules=Rules.of(self.settings),
            address=self._address,
            journal=journal,
            stopping=threading.Event(),
            told=lambda *_: None,
        )

    def events(self) -> list[str]:
        return [one.event for one in self.project.events()]

    def persons(self) -> dict[str, str]:
        """Event name -> whose it is; the events that only link are left out."""
        return {one.event: one.person for one in self.project.events() if one.event != LINK}

    def clusters(self) -> set[frozenset[str]]:
        return {frozenset({one.id, *one.devices}) for one in self.project.people() if one.devices}

    def profile(self, an_id: str) -> dict[str, Any]:
        return next((one.properties for one in self.project.people() if one.id == an_id), {})


@contextmanager
def a_world(folder: Path, sandbox: Sandbox, **chosen: Any) -> Iterator[World]:
    chosen = {"database_url": f"sqlite:///{folder / 'adapter.db'}", **chosen}
    settings = Settings(ingestion_url=sandbox.url, mixpanel_token="the-token", **chosen)
    with sandbox.project(folder / "sandbox.db", settings) as project:
        yield World(folder, sandbox, project, settings)


@pytest.fixture
def world(tmp_path: Path, sandbox: Sandbox) -> Iterator[World]:
    with a_world(tmp_path, sandbox) as world:
        yield world


@pytest.fixture
def make_world(tmp_path: Path, sandbox: Sandbox) -> Iterator[Callable[..., World]]:
    with ExitStack() as stack:
        yield lambda **chosen: stack.enter_context(a_world(tmp_path, sandbox, **chosen))


def call(kind: str, second: int, device: str | None = None, user: str | None = None, **fields: Any) -> dict[str, Any]:
    """A call at so many seconds after noon, with a messageId of its own."""
    at = f"2026-03-01T12:{second // 60:02}:{second % 60:02}Z"
    made = {"type": kind, "messageId": f"m-{kind}-{second}", "timestamp": at, "receivedAt": at}
    made |= {"anonymousId": device, "userId": user, **fields}
    return {name: value for name, value in made.items() if value is not None}


def track(
    name: str, second: int, device: str | None = None, user: str | None = None, **fields: Any
) -> dict[str, Any]:
    return call("track", second, device, user, event=name, **fields)


def identify(second: int, device: str | None, user: str | None, **traits: Any) -> dict[str, Any]:
    return call("identify", second, device, user, traits=traits)


def alias(second: int, device: str, user: str) -> dict[str, Any]:
    return call("alias", second, None, user, previousId=device)


# Whose it is.


def test_who_was_first_has_the_device_though_their_messages_come_last(world: World) -> None:
    world.replay(
        world.log(track("later", 50, K, "ben"), track("visit", 20, K)),
        world.log(track("first", 10, K, "ada")),
    )
    assert world.persons() == {"first": "ada", "later": "ben", "visit": "ada"}
    assert world.clusters() == {frozenset({"ada", K})}


def test_the_link_of_a_shared_device_goes_out_before_everything_else(world: World) -> None:
    world.replay(world.log(track("later", 50, K, "ben"), track("first", 10, K, "ada"), track("other", 1, A, "eve")))
    assert world.events()[0] == LINK
    assert world.events().count(LINK) == 1, "what an event carries needs no link event"


def test_an_identify_alone_links(world: World) -> None:
    world.replay(world.log(track("visit", 5, A), identify(10, A, "ada")))
    assert world.persons() == {"visit": "ada"}
    assert world.events() == [LINK, "visit"]


def test_an_alias_links_a_visitor_and_not_a_user(world: World) -> None:
    world.replay(
        world.log(track("visit", 1, A), alias(2, A, "ada"), track("known", 3, None, "ben"), alias(4, "ben", "eve"))
    )
    assert world.persons() == {"visit": "ada", "known": "ben"}
    assert [one.reason for one in world.kept] == ["alias_of_a_user"]


def test_an_alias_of_anothers_device_is_refused(world: World) -> None:
    world.replay(world.log(track("known", 1, A, "ada")))
    world.replay(world.log(alias(2, A, "ben"), track("theirs", 3, B, "ada"), alias(4, B, "ben")), state="again")
    assert [one.reason for one in world.kept] == ["alias_of_anothers_device"] * 2
    assert world.events() == ["known", LINK, "theirs"]
    assert world.clusters() == {frozenset({"ada", A, B})}


def test_an_alias_of_a_user_whom_only_the_store_knows_is_refused(world: World) -> None:
    world.replay(world.log(track("known", 1, A, "ada")))
    world.replay(world.log(alias(2, "ada", "ben")), state="again")
    assert [one.reason for one in world.kept] == ["alias_of_a_user"]
    assert world.tally["refused"] == 1
    assert world.clusters() == {frozenset({"ada", A})}


@pytest.mark.parametrize("system", ["simplified", "original", "legacy"])
def test_an_alias_of_a_user_who_was_deleted_is_left_out(make_world: Callable[..., World], system: str) -> None:
    world = make_world(identity_api=system)
    world.replay(world.log(track("known", 1, A, "ada"), alias(2, "ada", "ben"), call("delete", 3, None, "ada")))
    assert (world.kept, world.events(), world.tally["erased"]) == ([], [], 2)
    later = [alias(4, "ada", "ben")] if system != "simplified" else []
    world.replay(world.log(alias(2, "ada", "ben"), call("delete", 3, None, "ada"), *later), state="later")
    assert world.events() == ["$create_alias"] * len(later)


def test_a_time_after_its_arrival_wins_no_device(world: World) -> None:
    early = track("early", 30, K, "ada")
    late = track("late", 40, K, "ben") | {"timestamp": "2026-03-01T11:00:00Z"}
    ahead = track("ahead", 10, K, "eve") | {"timestamp": "2027-03-01T12:00:00Z"}
    world.replay(world.log(early, late, ahead))
    assert world.clusters() == {frozenset({"ben", K})}, "its own clock says so, and nothing speaks against it"


@pytest.mark.parametrize("step", [1, -1])
def test_of_two_messages_under_one_message_id_neither_hides_the_other(world: World, step: int) -> None:
    calls = [track("by ada", 10, K, "ada"), track("by ben", 20, K, "ben"), track("visit", 30, K)]
    world.replay(world.log(*[one | {"messageId": "m-1"} for one in calls][::step]))
    assert world.persons() == {"by ada": "ada", "by ben": "ben", "visit": "ada"}
    assert world.report["json"]["duplicates"] == 2


def test_what_the_store_knows_stands(world: World) -> None:
    effect = links.Effect(device=K, user="live", sent_as=K, time_ms=NOW_MS, message_id="m", how="track", links=True)
    with Store(world.settings.database_url) as store:
        store.remember("destination", world.settings.destination)
        store.learn([effect], lambda _: pytest.fail("nothing waits"))
    world.replay(world.log(track("first", 10, K, "ada"), track("visit", 20, K), identify(30, K, "ada")))
    assert LINK not in world.events(), "Mixpanel has that device already, and would not give it to another"


def test_live_traffic_finds_the_links_that_were_sent(world: World) -> None:
    world.replay(
        world.log(track("one", 1, A, "ada"), identify(2, B, "ben"), track("k", 3, K, "ada"), track("k", 4, K, "ben"))
    )
    with beside(world.settings.database_url) as store:
        known = store.known([A, B, K])
    assert {device: one.owner for device, one in known.items()} == {
        A: links.key("ada"),
        B: links.key("ben"),
        K: links.key("ada"),
    }
    assert [one.user for one in known[K].logins] == [links.key("ada"), links.key("ben")]


def test_a_store_of_another_project_is_refused_before_anything_is_sent(world: World) -> None:
    with Store(world.settings.database_url) as store:
        store.remember("destination", {"endpoint": "api.mixpanel.com", "project": "x", "system": "simplified"})
    with pytest.raises(ConfigError, match="adapter destination"):
        world.replay(world.log(track("one", 1, A, "ada")))
    assert world.events() == []


def test_with_split_each_login_has_its_own_visits(make_world: Callable[..., World]) -> None:
    world = make_world(shared_devices="split")
    world.replay(
        world.log(track("visit of ben", 50, K), track("by ben", 45, K, "ben")),
        world.log(track("visit of ada", 20, K), track("by ada", 10, K, "ada")),
    )
    assert world.persons() == {"by ada": "ada", "by ben": "ben", "visit of ada": "ada", "visit of ben": "ben"}


def test_with_split_what_the_store_knows_of_a_device_stands(make_world: Callable[..., World]) -> None:
    world = make_world(shared_devices="split")
    first = {"device": K, "user": "ada", "message_id": "m", "how": "track"}
    with Store(world.settings.database_url) as store:
        store.remember("destination", world.settings.destination)
        made = links.Effect(sent_as=K, time_ms=1_772_366_401_000, links=True, **first)
        store.learn([made], lambda _: pytest.fail("nothing waits"))
    world.replay(world.log(track("by ben", 45, K, "ben"), track("visit", 50, K)))
    assert world.persons() == {"by ben": "ben", "visit": "ben"}
    assert world.clusters() == {frozenset({"ben", links.split_id(K, "ben")})}


def test_with_split_a_group_call_is_a_login_as_it_is_live(make_world: Callable[..., World]) -> None:
    world = make_world(shared_devices="split")
    early = [call("group", 5, K, "eve", groupId="acme"), track("early", 7, K)]
    login = call("group", 20, K, "ben", groupId="acme")
    world.replay(
        world.log(track("later", 30, K), login, track("visit", 15, K), track("by ada", 10, K, "ada"), *early)
    )
    assert world.persons() == {
        "early": "ada",  # whose the device was to be: nobody's yet
        "by ada": "ada",
        "visit": "ada",
        "later": f"$device:{links.split_id(K, 'ben')}",  # a group sends no event that would link
    }
    with beside(world.settings.database_url) as store:
        assert [one.user for one in store.known([K])[K].logins] == [links.key("ada"), links.key("ben")]


def test_without_link_events_a_shared_device_cannot_be_given_to_the_right_one(
    make_world: Callable[..., World],
) -> None:
    world = make_world(link_event=None)
    with pytest.raises(ConfigError, match="LINK_EVENT: 1 devices have several users"):
        world.replay(world.log(track("a", 10, K, "ada"), track("b", 20, K, "ben")))
    assert world.events() == []


def test_links_only_sends_every_link_and_nothing_else(world: World) -> None:
    world.replay(
        world.log(track("a", 10, A, "ada"), identify(11, B, "ben", plan="pro"), track("visit", 12, K)),
        links_only=True,
    )
    assert world.events() == [LINK, LINK]
    assert world.clusters() == {frozenset({"ada", A}), frozenset({"ben", B})}
    assert world.profile("ben") == {}
    with beside(world.settings.database_url) as store:
        assert set(store.known([A, B, K])) == {A, B}


@pytest.mark.parametrize("system", ["original", "legacy"])
def test_the_older_systems_link_by_their_own_verbs(make_world: Callable[..., World], system: str) -> None:
    world = make_world(identity_api=system)
    world.replay(
        world.log(track("visit", 30, A), track("known", 40, None, "ada"), identify(20, A, "ada"), alias(10, B, "ben"))
    )
    verbs = [event for event in world.events() if event.startswith("$")]
    assert verbs == (["$create_alias", "$identify"] if system == "original" else ["$create_alias"])
    assert world.events()[: len(verbs)] == verbs
    assert world.persons()["visit"] == ("ada" if system == "original" else A)


def test_who_asked_to_be_deleted_is_not_brought_back(world: World) -> None:
    world.replay(
        world.log(
            track("before", 10, A, "ada"),
            track("visit", 11, A),
            track("junk", 13, A, "null"),
            identify(12, A, "ada", email="ada@example.org"),
            call("delete", 20, None, "ada"),
            track("after", 30, A, "ada"),
            track("other", 31, B, "ben"),
        )
    )
    assert set(world.persons()) == {"after", "other"}
    assert world.profile("ada") == {}
    assert (world.tally["erased"], world.tally["deletes"]) == (4, 1)


@pytest.mark.parametrize("kind", ["identify", "track", "alias"])
def test_of_who_was_deleted_no_link_is_left(world: World, kind: str) -> None:
    first = {"identify": identify(1, A, "ada"), "track": track("one", 1, A, "ada"), "alias": alias(1, A, "ada")}[kind]
    world.replay(world.log(first, track("visit", 2, A), call("delete", 20, None, "ada"), track("later", 30, A)))
    assert world.persons() == {"later": f"$device:{A}"}
    assert world.events() == ["later"]
    with beside(world.settings.database_url) as store:
        assert store.known([A]) == {}


@pytest.mark.parametrize("back", ["identify", "track"])
def test_who_came_back_after_a_deletion_has_the_device_from_then_on(world: World, back: str) -> None:
    again = {"identify": identify(30, A, "ada"), "track": track("back", 30, A, "ada")}[back]
    gone = [track("one", 1, A, "ada"), track("visit", 2, A), call("delete", 20, None, "ada"), track("later", 25, A)]
    world.replay(world.log(again, *gone))
    assert world.persons() == {"later": "ada"} | ({"back": "ada"} if back == "track" else {})


def test_a_device_is_of_who_came_first_after_a_deletion(world: World) -> None:
    gone = [track("one", 1, K, "ada"), call("delete", 20, None, "ada")]
    world.replay(world.log(track("back", 40, K, "ada"), track("visit", 50, K), track("ben", 30, K, "ben"), *gone))
    assert world.persons() == {"back": "ada", "ben": "ben", "visit": "ben"}


def test_with_split_too_who_was_deleted_has_no_visits(make_world: Callable[..., World]) -> None:
    world = make_world(shared_devices="split")
    gone = [track("ben", 1, K, "ben"), track("one", 10, K, "ada"), call("delete", 20, None, "ada")]
    world.replay(world.log(track("visit", 30, K), *gone, track("back", 40, K, "ada"), track("later", 50, K)))
    assert world.persons() == {"ben": "ben", "visit": "ben", "back": "ada", "later": "ada"}


def erase(store: Store, user: str, monkeypatch: pytest.MonkeyPatch, *devices: str) -> None:
    """As a delete does that is delivered at second 20."""
    monkeypatch.setattr(store_erasure, "time", SimpleNamespace(time=lambda: 1_772_366_420.0))
    erasure = Erasure(
        user=user,
        devices=devices,
        message_id="m-1",
        needles=(),
        named=frozenset(),
        keys_in=lambda _: set(),
        owns=lambda *_: False,
        device_keys=frozenset(),
        has=lambda *_: False,
        distinct_ids=(user,),
    )
    store.leases.renew()
    store.put([arrival(f"delete {user}", lanes=((ENGAGE, 0),))])
    [entry] = store.claim(ENGAGE, 1)
    store.settle([Settled(entry=entry, state="delivered", erasure=erasure)])


def test_who_was_erased_from_the_store_is_left_out_up_to_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = links.Effect(device=A, user="ada", sent_as=A, time_ms=1, message_id="m", how="track", links=True)
    with Store(world.settings.database_url) as store:
        store.remember("destination", world.settings.destination)
        store.learn([made], lambda _: pytest.fail("nothing waits"))
        erase(store, "ada", monkeypatch, A)
    world.replay(
        world.log(
            track("elsewhere", 10, None, "ada"),
            identify(11, B, "ada", email="ada@example.org"),
            track("visit", 12, A),
            track("other", 13, B, "ben"),
            track("back", 34, None, "ada"),
            track("later visit", 35, A),
        )
    )
    assert world.persons() == {"other": "ben", "back": "ada", "later visit": f"$device:{A}"}
    assert world.profile("ada") == {}
    assert LINK not in world.events()


@pytest.mark.parametrize("shared_devices", ["first-user", "split"])
def test_a_device_of_another_in_the_store_goes_with_nobody_who_used_it_later(
    make_world: Callable[..., World], shared_devices: str
) -> None:
    world = make_world(shared_devices=shared_devices)
    world.replay(world.log(track("by ben", 1, K, "ben")))
    calls = [
        track("before", 9, K),
        track("by ada", 10, K, "ada"),
        track("after", 11, K),
        call("delete", 20, None, "ada"),
    ]
    world.replay(world.log(*calls), state="later")
    visits = ["before"] + ["after"] * (shared_devices == "first-user")
    assert world.persons() == dict.fromkeys(["by ben", *visits], "ben")


def test_what_was_refused_of_who_is_deleted_later_is_kept_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"property {n}": n for n in range(300)}
    calls = [
        track(f"E{n}", n, A, user, properties=many) for n, user in ((2, "ada"), (3, None), (4, "ben"), (30, "ada"))
    ]
    log = Path(world.log(track("first", 1, A, "ada"), *calls, packed=False))
    log.write_bytes(log.read_bytes() + b'{"type":"purchase","userId":"ada"}\n{"userId":"ben"}\n')
    world.replay(str(log))
    assert len(world.kept) == 6
    with Store(world.settings.database_url) as store:
        erase(store, "ada", monkeypatch, A)
    with closing(world.open()) as journal:
        forgetting.forget(world.run(str(log), journal=journal))
        kept = [*journal.kept(is_broken=False), *journal.kept(is_broken=True)]
        tally = journal.tally()
    ben = [b'{"userId":"ben"}', raw(calls[2])]
    assert sorted(one.body for one in kept) == sorted([*ben, raw(calls[3])]), "she came back at second 30"
    assert (tally["refused"], tally["broken"], tally["erased"]) == (2, 1, 3)
    assert all(raw(calls[0]) not in path.read_bytes() for path in (world.folder / "state").iterdir())


@pytest.mark.parametrize(("user", "devices", "stays"), [("ada", (), "of ben"), ("ben", (K,), "of ada")])
def test_with_split_a_visit_goes_with_who_was_there_though_the_store_alone_knows_them(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, user: str, devices: tuple[str, ...], stays: str
) -> None:
    world = make_world(shared_devices="split")
    world.replay(world.log(track("by ben", 1, K, "ben"), track("by ada", 10, K, "ada")))
    with Store(world.settings.database_url) as store:
        erase(store, user, monkeypatch, *devices)
    world.replay(world.log(track("of ben", 2, K), track("of ada", 11, K)), state="later")
    assert world.persons().keys() - {"by ben", "by ada"} == {stays}


@pytest.mark.parametrize(("user", "devices", "stays"), [("ada", (), "of ben"), ("ben", (K,), "of ada")])
def test_with_split_what_was_refused_of_a_visit_goes_with_who_was_there(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, user: str, devices: tuple[str, ...], stays: str
) -> None:
    world = make_world(shared_devices="split")
    many = {f"property {n}": n for n in range(300)}
    visits = [track("of ben", 2, K, properties=many), track("of ada", 11, K, properties=many)]
    log = world.log(track("by ben", 1, K, "ben"), track("by ada", 10, K, "ada"), *visits)
    world.replay(log)
    assert len(world.kept) == 2
    with Store(world.settings.database_url) as store:
        erase(store, user, monkeypatch, *devices)
    with closing(world.open()) as journal:
        forgetting.forget(world.run(log, journal=journal))
        assert [json.loads(one.body)["event"] for one in journal.kept(is_broken=False)] == [stays]
        assert (journal.tally()["refused"], journal.tally()["erased"]) == (1, 1)


def test_who_is_deleted_in_later_logs_has_no_profile_brought_back(world: World) -> None:
    world.log(identify(1, A, "ada", plan="pro"), identify(2, B, "ben", plan="free"), name="logs/1.log")
    logs = str(world.folder / "logs")
    world.replay(logs)
    world.project.update_profiles([{"$distinct_id": "ada", "$delete": "", "$token": "the-token"}])
    world.log(call("delete", 20, None, "ada"), name="logs/2.log")
    world.replay(logs)
    assert (world.profile("ada"), world.profile("ben")) == ({}, {"plan": "free"})


def test_who_is_deleted_while_a_replay_is_interrupted_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world.log(track("hers", 1, A, "ada"), track("visit", 2, A), track("his", 3, B, "ben"))
    with Store(world.settings.database_url) as store, closing(world.open()) as journal:
        store.remember("destination", world.settings.destination)
        phases.take_plan(world.run(log, journal=journal), archive.find([log]))
        erase(store, "ada", monkeypatch)
    world.replay(log)
    assert set(world.persons()) == {"his"}


def test_a_refused_update_of_who_was_deleted_is_not_sent_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(world.settings.database_url) as store:
        erase(store, "ada", monkeypatch)
        store.remember("destination", world.settings.destination)
    lines = [
        again.update(ENGAGE, [{"$distinct_id": user, "$set": {"plan": "pro"}}]) for user in ("ada", "ben", "eve")
    ]
    log = world.folder / "refused.jsonl"
    log.write_bytes(b"\n".join(lines))
    world.replay(str(log), choice=Choice(limit=1))
    assert [one.id for one in world.project.people() if one.properties] == ["ben"]
    world.replay(str(log), state="other")
    assert [one.id for one in world.project.people() if one.properties] == ["ben", "eve"]


# The law: the people are what the rules give for the whole history, however the logs are cut.

devices, people = st.sampled_from([A, B, K]), st.sampled_from(["ada", "ben", "eve"])
SPANS = st.integers(0, 600)


@st.composite
def histories(draw: st.DrawFn, unique: bool = False) -> list[dict[str, Any]]:
    made = []
    for number, second in enumerate(draw(st.lists(SPANS, min_size=1, max_size=14, unique=unique))):
        kind = draw(st.sampled_from(["track", "track", "visit", "identify", "alias", "group"]))
        device, user = draw(devices), draw(people)
        if kind == "track":
            one = track(f"event {number}", second, device, user)
        elif kind == "visit":
            one = track(f"event {number}", second, device)
        elif kind == "identify":
            one = identify(second, device, user, n=number)
        elif kind == "group":
            one = call("group", second, device, user, groupId="acme")
        else:
            one = alias(second, device, user)
        made.append(one | {"messageId": f"m-{number:03}"})
    return made


def ruled(history: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Device -> its first user, by (time, messageId); written without a look at the adapter."""
    owners: dict[str, str] = {}
    for one in sorted(history, key=lambda one: (one["timestamp"], one["messageId"])):
        device = one.get("previousId") or one.get("anonymousId")
        if device and one.get("userId") and one["type"] != "group":
            owners.setdefault(device, one["userId"])
    return owners


@given(history=histories(), seed=st.integers(0, 99), n_files=st.integers(1, 4), packed=st.booleans())
@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_the_same_messages_give_the_same_people_wherever_they_stand(
    sandbox: Sandbox, history: list[dict[str, Any]], seed: int, n_files: int, packed: bool
) -> None:
    assert_ruled(sandbox, history, seed, n_files, packed=packed)


@given(
    history=histories(),
    seed=st.integers(0, 99),
    n_files=st.integers(1, 3),
    processes=st.integers(2, 3),
    part_bytes=st.sampled_from([200, 1_000]),
)
@hypothesis_settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_more_processes_that_share_files_give_the_same_people(
    sandbox: Sandbox, history: list[dict[str, Any]], seed: int, n_files: int, processes: int, part_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "PART_BYTES", part_bytes)
        assert_ruled(sandbox, history, seed, n_files, packed=False, processes=processes)


def assert_ruled(
    sandbox: Sandbox, history: list[dict[str, Any]], seed: int, n_files: int, *, packed: bool, processes: int = 1
) -> None:
    owners = ruled(history)
    shuffled = random.Random(seed).sample(history, len(history))
    with TemporaryDirectory() as folder, a_world(Path(folder), sandbox) as world:
        names = [world.log(*shuffled[n::n_files], packed=packed) for n in range(n_files)]
        world.replay(*names, processes=processes)
        expected: dict[str, set[str]] = {}
        for device, user in owners.items():
            expected.setdefault(user, {user}).add(device)
        assert world.clusters() == {frozenset(ids) for ids in expected.values()}
        events = [one for one in history if one["type"] == "track"]
        assert world.persons() == {
            one["event"]: one.get("userId") or owners.get(one["anonymousId"]) or f"$device:{one['anonymousId']}"
            for one in events
        }


@given(history=histories(unique=True), seed=st.integers(0, 99))
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_with_split_a_visit_is_of_the_latest_login_before_it_wherever_it_stands(
    sandbox: Sandbox, history: list[dict[str, Any]], seed: int
) -> None:
    history = [one for one in history if one["type"] != "alias"]
    shuffled = random.Random(seed).sample(history, len(history))
    with TemporaryDirectory() as folder, a_world(Path(folder), sandbox, shared_devices="split") as world:
        world.replay(world.log(*shuffled[::2]), world.log(*shuffled[1::2]))
        owners, expected = ruled(history), {}
        for one in history:
            if one["type"] == "track":
                here = sorted(
                    (other for other in history if other["anonymousId"] == one["anonymousId"] and "userId" in other),
                    key=lambda other: other["timestamp"],
                )
                # A group call is a login on a device that is somebody's, and gives it to nobody.
                logins = list(itertools.dropwhile(lambda other: other["type"] == "group", here))
                before = [other for other in logins if other["timestamp"] <= one["timestamp"]]
                latest = before[-1]["userId"] if before else None
                if latest and all(other["type"] == "group" for other in here if other["userId"] == latest):
                    latest = f"$device:{links.split_id(one['anonymousId'], latest)}"
                visitor = owners.get(one["anonymousId"]) or f"$device:{one['anonymousId']}"
                expected[one["event"]] = one.get("userId") or latest or visitor
        assert world.persons() == expected


def test_processes_share_the_ranges_of_a_plain_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 2_000)
    calls = [track(f"e{n}", 300 - n, K, f"user-{n}") for n in range(30)] + [track(f"v{n}", n, A) for n in range(30)]
    log = world.log(*calls, packed=False)
    world.replay(log, processes=3)
    with closing(world.open()) as journal:
        ended = [(one.read.n_messages, one.done, one.finished) for one in journal.parts()]
    assert len(ended) == -(-Path(log).stat().st_size // 2_000) > 3
    assert all(n_messages == done and finished for n_messages, done, finished in ended)
    assert world.clusters() == {frozenset({"user-29", K})}
    assert len(world.persons()) == 60


def test_more_processes_give_the_same_people(world: World) -> None:
    calls = [track(f"e{n}", 300 - n, K, f"user-{n}") for n in range(30)] + [track(f"v{n}", n, A) for n in range(30)]
    names = [world.log(*calls[n::4]) for n in range(4)]
    world.replay(*names, processes=3)
    assert world.clusters() == {frozenset({"user-29", K})}
    assert len(world.persons()) == 60


# Profiles.


def test_by_default_gaps_are_filled_and_nothing_is_rolled_back(world: World) -> None:
    world.project.update_profiles([{"$distinct_id": "ada", "$set": {"plan": "now"}, "$token": "the-token"}])
    world.replay(
        world.log(identify(2, A, "ada", plan="latest", city="Ghent"), identify(1, A, "ada", plan="first", age=7))
    )
    assert world.profile("ada") == {"plan": "now", "city": "Ghent", "age": 7}
    assert world.tally["profiles"] == 1


def test_latest_sets_what_was_latest_by_time(world: World) -> None:
    world.project.update_profiles([{"$distinct_id": "ada", "$set": {"plan": "now"}, "$token": "the-token"}])
    calls = (
        identify(2, A, "ada", plan="latest"),
        identify(1, A, "ada", plan="first", age=7),
        identify(3, A, "ada", age=None),
    )
    world.replay(world.log(*calls), profiles="latest")
    assert world.profile("ada") == {"plan": "latest"}


def test_off_leaves_profiles_alone(world: World) -> None:
    world.replay(world.log(identify(2, A, "ada", plan="pro")), profiles="off")
    assert world.profile("ada") == {}


def test_what_a_visitor_said_goes_to_who_came_next_on_the_device(world: World) -> None:
    world.replay(
        world.log(
            identify(40, K, None, city="Gent"),
            track("by ben", 50, K, "ben"),
            track("by ada", 10, K, "ada"),
            identify(5, K, None, city="Aalst"),
            identify(90, K, None, city="Brugge"),
        )
    )
    assert (world.profile("ada"), world.profile("ben")) == ({"city": "Aalst"}, {"city": "Gent"})
    assert world.tally["nobody came"] == 1


def test_what_brought_a_visitor_is_the_first_touch_of_the_person(world: World) -> None:
    def came(source: str) -> dict[str, Any]:
        return {"campaign": {"source": source}}

    world.replay(
        world.log(track("again", 30, A, context=came("mail")), track("by ada", 40, A, "ada", context=came("late"))),
        world.log(track("first", 10, A, context=came("search")), track("by ada first", 20, A, "ada")),
    )
    assert world.profile("ada")["initial_utm_source"] == "search"


def test_what_waits_goes_to_who_uses_the_device_by_a_group_call_as_it_does_live(world: World) -> None:
    world.replay(
        world.log(call("group", 9, A, "ada", groupId="acme"), identify(5, A, None, plan="pro")),
        world.log(identify(25, B, None, plan="free"), track("ben", 10, B, "ben")),
        world.log(call("group", 30, B, "eve", groupId="acme")),
    )
    assert (world.profile("ada"), world.profile("eve")) == (
        {"plan": "pro", "$group_id": ["acme"]},
        {"plan": "free", "$group_id": ["acme"]},
    )
    assert world.profile("ben") == {}


def test_what_is_said_under_a_junk_user_id_is_a_visitors(world: World) -> None:
    large = track("large", 7, A, "null", properties={f"property {n}": n for n in range(300)})
    world.replay(world.log(identify(5, A, "null", plan="pro"), large, track("login", 20, A, "ada")))
    assert world.profile("ada") == {"plan": "pro"}
    assert world.events() == ["login"], "which links by itself, whatever of a visitor was refused"


def test_what_an_identify_says_of_what_brought_its_user_is_kept(world: World) -> None:
    context = {"campaign": {"source": "newsletter"}}
    world.replay(world.log(identify(5, A, "ada", plan="pro") | {"context": context}))
    assert world.profile("ada").items() >= {"plan": "pro", "initial_utm_source": "newsletter"}.items()


def test_what_waited_longer_than_held_days_has_expired(world: World) -> None:
    old = identify(1, A, None, city="Gent") | {
        "timestamp": "2026-01-01T00:00:00Z",
        "receivedAt": "2026-01-01T00:00:00Z",
    }
    world.replay(world.log(old, track("by ada", 10, A, "ada")))
    assert (world.profile("ada"), world.tally["expired"]) == ({}, 1)


def test_a_year_of_one_person_is_one_update(world: World) -> None:
    calls = [identify(n, A, "ada", plan="pro", visits=n // 100) for n in range(500)]
    world.replay(world.log(*calls))
    assert (world.tally["profiles"], world.tally["updates"]) == (1, 1)


def test_groups_are_brought_up_to_date_as_well(world: World) -> None:
    calls = [call("group", n, A, "ada", groupId="acme", traits={"seats": n}) for n in (3, 1, 2)]
    world.replay(world.log(*calls), profiles="latest")
    assert world.profile("ada") == {"$group_id": ["acme"]}
    assert world.tally["profiles"] == 2


def test_counters_are_left_out_unless_asked_for_and_each_message_counts_once(
    make_world: Callable[..., World],
) -> None:
    world = make_world(property_increments=("coins",), transactions=True)
    paid = track("Paid", 1, A, "ada", properties={"coins": 2, "revenue": 5})
    log = world.log(paid, track("Paid", 2, A, "ada", properties={"coins": 0.5}), paid)
    world.replay(log)
    assert (world.profile("ada"), world.tally["counters left out"]) == ({}, 3)
    world.replay(log, state="other", counters=True)
    found = world.profile("ada")
    assert found["coins"] == 2.5
    assert [one["$amount"] for one in found["$transactions"]] == [5]


def test_who_paid_very_often_is_counted_in_as_many_requests_as_it_takes(make_world: Callable[..., World]) -> None:
    world = make_world(transactions=True, property_increments=("coins",))
    paid = [
        track("Paid", n % 3600, A, "ada", messageId=f"m-{n}", properties={"coins": 1, "revenue": n})
        for n in range(1, 2_501)
    ]
    world.replay(world.log(*paid), counters=True)
    found = world.profile("ada")
    assert (found["coins"], sorted(one["$amount"] for one in found["$transactions"])) == (2_500, [*range(1, 2_501)])
    assert world.kept == []


def test_what_was_counted_is_not_counted_again_when_its_file_has_changed(make_world: Callable[..., World]) -> None:
    world = make_world(property_increments=("coins",))
    paid = [track("Paid", second, A, f"u{second}", properties={"coins": 1}) for second in range(3)]
    log = world.log(*paid, name="a.log")
    for _ in range(2):
        world.replay(log, counters=True)
        paid.append(track("Paid", 9, A, "u0", properties={"coins": 5}))
        world.log(*paid, name="a.log")
    assert [world.profile(f"u{second}")["coins"] for second in range(3)] == [6, 1, 1]


@given(
    said=st.lists(
        st.dictionaries(
            st.sampled_from(["$set", "$set_once"]),
            st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), min_size=1),
            max_size=2,
        ),
        max_size=8,
    ),
    seed=st.integers(0, 99),
)
def test_folded_in_any_order_it_is_what_applying_it_in_its_order_gives(said: list[Any], seed: int) -> None:
    applied: dict[str, Any] = {}
    for one in said:
        for name, value in one.get("$set_once", {}).items():
            applied.setdefault(name, value)
        applied |= one.get("$set", {})
    rows = [(n.to_bytes(4), json.dumps(one).encode()) for n, one in enumerate(said)]
    random.Random(seed).shuffle(rows)
    found: dict[str, Any] = {}
    for record in fold.updates(ENGAGE, "ada", rows, "t", "latest"):
        found |= record.get("$set", {}) | record.get("$set_once", {})
    assert found == applied


def test_a_value_that_was_taken_away_is_unset_and_a_list_is_united_in_its_order() -> None:
    said = [
        (b"1", b'{"$set":{"plan":"pro"},"$union":{"teams":["a","b"]}}'),
        (b"3", b'{"$unset":["plan"],"$union":{"teams":["c","a"]}}'),
        (b"2", b'{"$set":{"plan":"team"}}'),
    ]
    latest = fold.updates(GROUPS, '["company","acme"]', said, "t", "latest")
    assert [{name: value for name, value in one.items() if name[1:] in ("unset", "union")} for one in latest] == [
        {"$unset": ["plan"]},
        {"$union": {"teams": ["a", "b", "c"]}},
    ]
    assert all((one["$group_key"], one["$group_id"]) == ("company", "acme") for one in latest)


# Which messages.


def test_what_is_not_chosen_is_not_sent_and_still_has_its_part_in_the_plan(world: World) -> None:
    log = world.log(track("by ben", 20, K, "ben"), track("by ada", 10, K, "ada"), identify(30, B, "eve"))
    world.replay(log, choice=Choice(users=frozenset({"ben"})))
    assert world.persons() == {"by ben": "ben"}
    assert world.clusters() == {frozenset({"ada", K})}, "the device is not ben's, whoever else is left out"


def test_types_events_and_a_limit_choose(world: World) -> None:
    log = world.log(*[track(f"e{n % 2}", n, A, "ada") for n in range(6)], call("page", 9, A, "ada", name="Home"))
    world.replay(log, choice=Choice(types=frozenset({"track"}), events=frozenset({"e1"}), limit=2))
    assert world.events() == ["e1", "e1"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_limit_counts_nothing_of_who_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 400)
    with Store(world.settings.database_url) as store:
        erase(store, "cleo", monkeypatch)
        store.remember("destination", world.settings.destination)
    gone = [track("by ada", 1, A, "ada"), track("her visit", 2, A), track("by cleo", 3, B, "cleo")]
    deleted = [call("delete", 9, None, "ada"), track("also hers", 4, A)]
    chosen = [track(f"E{n}", 20 + n, K, "ben") for n in range(4)]
    log = world.log(*gone, *deleted, chosen[0], identify(10, K, "eve"), *chosen[1:], packed=False)
    world.replay(log, processes=processes, choice=Choice(users=frozenset({"ada", "ben", "cleo"}), limit=2))
    assert set(world.persons()) == {"E0", "E1"}
    world.replay(log, processes=processes, state="other", choice=Choice(types=frozenset({"track"}), limit=3))
    assert set(world.persons()) == {"E0", "E1", "E2"}


def test_a_time_and_a_source_choose_what_is_read_at_all(world: World) -> None:
    day = 1_772_323_200_000  # 2026-03-01
    for source, at in (("web", day), ("web", day - 86_400_000), ("app", day)):
        world.log(track(f"{source} {at}", 1, A), name=f"segment-logs/{source}/{at}/1.gz")
    choice = Choice(since_ms=day, until_ms=day + 86_400_000, sources=frozenset({"web"}))
    world.replay(str(world.folder / "segment-logs"), choice=choice)
    assert world.events() == [f"web {day}"]


def test_filters_of_the_settings_hold(make_world: Callable[..., World]) -> None:
    world = make_world(drop_events=("noise",))
    world.replay(
        world.log(track("noise", 1, A), track("kept", 2, A), track("not for us", 3, A, integrations={"All": False}))
    )
    assert world.events() == ["kept"]
    assert (world.tally["filtered: event"], world.tally["filtered: integrations"]) == (1, 1)


# What cannot be sent.


def test_lines_that_are_no_message_are_kept_and_cost_no_other(world: World) -> None:
    path = Path(world.log(track("one", 1, A), packed=False))
    path.write_bytes(path.read_bytes() + b'{"type": "tra\n{"type":"track"}\n' + raw(track("two", 2, A)) + b"\n")
    world.replay(str(path))
    assert sorted(world.events()) == ["one", "two"]
    assert (world.tally["broken"], sorted(one.body for one in world.kept)) == (
        2,
        [b'{"type": "tra', b'{"type":"track"}'],
    )


def test_a_truncated_gzip_gives_all_it_had(world: World) -> None:
    calls = [track(f"e{n}", n, A, properties={"noise": random.Random(n).randbytes(400).hex()}) for n in range(200)]
    path = Path(world.log(*calls))
    path.write_bytes(path.read_bytes()[:-20_000])
    world.replay(str(path))
    assert 100 < len(world.events()) < 200
    assert str(path) in world.report["json"]["damaged"]


@pytest.mark.parametrize("shared_devices", ["first-user", "split"])
def test_the_link_of_an_event_that_was_refused_is_sent_by_itself(
    make_world: Callable[..., World], shared_devices: str
) -> None:
    world = make_world(shared_devices=shared_devices)
    many = {f"property {n}": n for n in range(300)}
    calls = [
        *(track("visit", 1, A), identify(2, A, "ada"), track("large", 3, A, "ada", properties=many)),
        *(track("by ben", 10, K, "ben"), track("large", 11, K, "eve", properties=many), track("later", 12, K)),
    ]
    world.replay(world.log(*calls))
    whose = "eve" if shared_devices == "split" else "ben"
    assert world.persons() == {"visit": "ada", "by ben": "ben", "later": whose}
    assert world.events().count(LINK) == (3 if shared_devices == "split" else 2)
    with beside(world.settings.database_url) as store:
        found = store.known([A, K])
    assert (found[A].owner, [one.user for one in found[K].logins]) == (
        links.key("ada"),
        [links.key("ben"), links.key("eve")],
    )


def test_a_message_of_the_wrong_kind_is_refused_with_its_reason(world: World) -> None:
    world.replay(world.log(track("$identify", 1, A), track("fine", 2, A)))
    assert [(one.reason, one.endpoint) for one in world.kept] == [("identity_verb", "import")]
    assert world.events() == ["fine"]


def test_what_one_endpoint_cannot_have_another_gets(make_world: Callable[..., World]) -> None:
    world = make_world(transactions=True)
    order = track("Order Completed", 1, A, properties={"revenue": 5})
    many = {f"trait {n}": n for n in range(2_001)}
    world.replay(world.log(order, call("group", 2, B, "ben", groupId="acme", traits=many)), counters=True)
    assert world.events() == ["Order Completed"]
    assert world.profile("ben") == {"$group_id": ["acme"]}
    assert {(one.endpoint, one.reason) for one in world.kept} == {
        (COUNTERS, "visitors_counter"),
        (GROUPS, "too_many_properties"),
    }


def test_an_order_that_is_refused_counts_none_of_its_events(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EARLIEST_MS", -9)  # so that it is the endpoint that says no
    order = track("Order Completed", 1, A, properties={"products": [{"sku": "1"}, {"sku": "2"}]})
    turned_down = order | {"messageId": "m-2", "timestamp": "1970-01-01T00:00:00Z"}
    world.replay(world.log(order, turned_down))
    assert [one.reason for one in world.kept] == ["refused_by_mixpanel"]
    assert (world.tally["events"], world.tally["refused"]) == (3, 1)


# Again.


def test_a_replay_that_is_repeated_changes_nothing(world: World) -> None:
    log = world.log(track("e1", 1, A, "ada"), track("e2", 2, K), identify(3, K, "ben", plan="pro"))
    world.replay(log)
    before = ([(one.event, one.person) for one in world.project.events()], world.clusters(), world.profile("ben"))
    world.replay(log, state="other")
    assert (
        [(one.event, one.person) for one in world.project.events()],
        world.clusters(),
        world.profile("ben"),
    ) == before


def test_a_file_that_changed_is_sent_again_whole_and_a_new_one_is_sent(world: World) -> None:
    log = world.log(track("e1", 1, A), name="logs/1.log")
    world.log(track("same", 1, B), name="logs/2.log")
    world.replay(str(world.folder / "logs"))
    sent = world.tally["messages"]
    Path(log).write_bytes(raw(track("e1", 1, A)) + b"\n" + raw(track("e2", 2, A)) + b"\n")
    world.log(track("new", 3, A, "ada"), name="logs/3.log")
    world.replay(str(world.folder / "logs"))
    assert sorted(world.events()) == ["e1", "e2", "new", "same"]
    assert (sent, world.tally["messages"], world.tally["events"]) == (2, 4, 4)
    assert world.clusters() == {frozenset({"ada", A})}


def test_what_was_refused_of_a_file_that_was_mended_is_refused_no_more(make_world: Callable[..., World]) -> None:
    world = make_world(property_increments=("coins",))
    verb, junk, count = track("$identify", 1, A), track("junk", 2, "null"), track("e", 3, A, properties={"coins": 1})
    wrong = [verb, verb, junk, count, identify(4, A, "ada", plan="pro")]
    log = world.log(*wrong, {"type": "purchase"}, name="logs/1.log")
    world.log(verb, track("fine", 9, B), name="logs/2.log")
    logs = str(world.folder / "logs")
    world.replay(logs, counters=True)
    kept = {(one.endpoint, one.reason) for one in world.kept}
    assert kept == {
        *[("import", "identity_verb"), ("import", "no_id")],
        *[(COUNTERS, "visitors_counter"), ("intake", "invalid")],
    }
    assert (world.tally["refused"], world.tally["broken"], len(world.kept)) == (3, 1, 4)
    first = world.tally
    Path(log).touch()  # it is another version, and is sent again whole
    world.replay(logs, counters=True)
    assert (world.tally, len(world.kept)) == (first, 4)
    world.log(*wrong[-1:], name="logs/1.log")
    world.replay(logs, counters=True)
    assert [(one.endpoint, one.reason) for one in world.kept] == [("import", "identity_verb")], "the other file's"
    assert (world.tally["messages"], world.tally["refused"], world.tally["broken"]) == (3, 1, 0)


def test_a_state_folder_of_another_release_is_told_and_left_as_it_is(world: World) -> None:
    world.replay(world.log(track("one", 1, A)))
    with closing(sqlite3.connect(world.folder / "state" / "journal.db")) as file:
        file.execute("PRAGMA user_version = 0")
    with pytest.raises(StateUnavailable, match="by another release: expected another --state"):
        world.open()


def test_what_a_rewritten_file_said_of_somebody_is_not_sent_again(make_world: Callable[..., World]) -> None:
    world = make_world(property_increments=("coins",))
    first = track("by ben", 5, B, "ben", properties={"coins": 2})
    world.log(identify(1, A, None, city="Gent"), track("by ada", 2, A, "ada"), first, name="logs/1.log")
    world.log(identify(3, A, "ada", plan="pro"), identify(4, B, "ben", plan="free"), name="logs/2.log")
    world.log(identify(6, B, None, city="Aalst"), track("again", 7, B, "ben"), name="logs/3.log")
    logs = str(world.folder / "logs")
    world.replay(logs, counters=True)
    assert (world.profile("ada"), world.profile("ben")) == (
        {"city": "Gent", "plan": "pro"},
        {"city": "Aalst", "plan": "free", "coins": 2},
    )
    for user in ("ada", "ben"):
        world.project.update_profiles([{"$distinct_id": user, "$delete": "", "$token": "the-token"}])
    # Segment was asked to delete ada.
    world.log(first, name="logs/1.log")
    world.log(identify(4, B, "ben", plan="free"), name="logs/2.log")
    world.replay(logs, counters=True)
    assert (world.profile("ada"), world.profile("ben")) == ({}, {"city": "Aalst", "plan": "free"})
    assert world.tally["messages"] == 4, "what has not changed is read for its profiles alone"


@pytest.mark.parametrize("written", [1, 3, 4])
def test_a_file_that_was_rewritten_since_the_plan_is_told(world: World, written: int) -> None:
    calls = [track(f"E{n}", n, A, "ada") for n in range(4)]
    log = world.log(*calls, name="a.log", packed=False)
    with closing(world.open()) as journal:
        run = world.run(log, journal=journal)
        phases.take_plan(run, archive.find([log]))
        world.log(*calls[-written:], name="a.log", packed=False)
        with pytest.raises(Unreached, match="has changed since"):
            phases.send(run)
    assert world.persons() == {}
    world.replay(log)
    assert len(world.persons()) == written


def test_what_is_appended_to_a_log_since_the_plan_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 300)
    log = Path(world.log(*[track(f"E{n}", n, A, "ada") for n in range(4)], packed=False))
    later = raw(track("half", 8, A)) + b"\n" + raw(track("later", 9, K)) + b"\n"
    with log.open("ab") as appending, closing(world.open()) as journal:
        appending.write(later[:30])
        appending.flush()
        phases.take_plan(world.run(str(log), journal=journal), archive.find([str(log)]))
        appending.write(later[30:])
    world.replay(str(log))
    assert (sorted(world.events()), world.tally["broken"]) == (["E0", "E1", "E2", "E3"], 0)
    world.replay(str(log))  # it was finished: so this is about all that is there now
    assert set(world.events()) == {"E0", "E1", "E2", "E3", "half", "later"}


def test_a_log_that_was_rewritten_and_is_longer_now_is_planned_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 400)
    log = world.log(*[track(f"E{n}", n, A, "ada") for n in range(5)], name="a.log", packed=False)
    with closing(world.open()) as journal:
        phases.take_plan(world.run(log, journal=journal), archive.find([log]))
    world.log(*[track(f"F{n}", n, A, "ada") for n in range(6)], name="a.log", packed=False)
    world.replay(log, processes=2)
    assert set(world.persons()) == {f"F{n}" for n in range(6)}, "it is another plan"


def test_a_log_that_was_rewritten_in_its_middle_is_told(world: World) -> None:
    calls = [track(f"E{n}", n, A, "ada", of="x" * 3_000) for n in range(5)]
    log = world.log(*calls, name="a.log", packed=False)
    with closing(world.open()) as journal:
        phases.take_plan(world.run(log, journal=journal), archive.find([log]))
    calls[2]["event"] = "F2"
    world.log(*calls, track("F5", 9, A), name="a.log", packed=False)
    with pytest.raises(Unreached, match="has changed since the plan was taken"):
        world.replay(log)
    assert world.persons() == {}
    world.replay(log)
    assert set(world.persons()) == {"E0", "E1", "F2", "E3", "E4", "F5"}


def test_a_dry_run_sends_nothing_and_says_what_would_go(world: World) -> None:
    world.replay(world.log(track("e1", 1, A, "ada"), identify(2, B, "ben", plan="pro")), dry_run=True)
    assert world.events() == []
    assert world.tally["event: e1"] == 1
    assert not Path(world.settings.database_url.removeprefix("sqlite:///")).exists()


def test_a_job_is_the_same_for_the_same_question(world: World) -> None:
    job = Job(names=("a",), now_ms=1, processes=3)
    assert job.key(world.settings) == Job(names=("a",), processes=1).key(world.settings)
    others = [
        Job(names=("b",)),
        Job(names=("a",), profiles="latest"),
        Job(names=("a",), choice=Choice(users=frozenset({"u"}))),
    ]
    changed = [
        {"mixpanel_token": "x"},
        {"view_names": "named"},
        {"junk_ids": ("a", "b")},
        {"drop_events": ("noise",)},
        {"held_days": 7},
    ]
    keys = {one.key(world.settings) for one in others}
    keys |= {job.key(dataclasses.replace(world.settings, **one)) for one in changed}
    assert job.key(world.settings) not in keys
    assert len(keys) == 8
    same = dataclasses.replace(world.settings, junk_ids=("b", "a"), senders=3)
    assert job.key(same) == job.key(dataclasses.replace(world.settings, junk_ids=("a", "b")))
