"""What ends the process that has it in hand is found and set aside; whoever else was there goes out."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest

from adapter import changes, mapping, parcels
from adapter.store import Entry, Store, Wanted
from adapter.store.tables import SHARES
from adapter.trials import MAX_DEATHS
from schemas.mixpanel import ENGAGE, IMPORT
from tests.conftest import raw, rows
from tests.endpoint import Endpoint
from tests.test_delivery import ROOT, House, after_a_death, call, names_of, work_until_nothing_waits
from tests.test_leases import held
from tests.test_store import arrival

LIVES = """
import itertools, json, os, signal, sys
from adapter import ingestion, mapping
from adapter.config import Settings
from adapter.delivery import Line
from adapter.ingestion import Client
from adapter.store import Store
from adapter.store.tables import lease, worker

database_url, base_url, ends = sys.argv[1:]
settings = Settings(database_url=database_url, ingestion_url=base_url, mixpanel_token="tok-3f9a")
map_apart, igzip = mapping.map_apart, ingestion.igzip

def free(connection, calls):
    for table in lease, worker:
        connection.execute(table.update().values(until_ms=0))
    return [None]

class Packing:
    def __init__(self, end):
        self.end = end
    def compress(self, body, **how):
        if isinstance(self.end, dict) and self.end["packed"].encode() in body:
            os.kill(os.getpid(), signal.SIGKILL)
        return igzip.compress(body, **how)

def live(end):
    mapped = itertools.count(1)
    def deadly(message, *rest):
        if end in (message.event, next(mapped)):
            os.kill(os.getpid(), signal.SIGKILL)
        return map_apart(message, *rest)
    mapping.map_apart = deadly
    ingestion.igzip = Packing(end)
    with Store(database_url) as store:
        store.is_shared and store._writer.run(free, None)
        store.leases.renew()
        for part in 0, 1:
            line = Line(store, "import", settings, Client(settings, base_url), part=part, parts=2)
            while line.work() is not None:
                pass

for end in json.loads(ends):
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        live(end)
        sys.exit(0)
"""
KILLED, LIVED = -9, 0


@pytest.fixture
def house(either_url: str, endpoint: Endpoint) -> Iterator[House]:
    house = House(either_url, endpoint)
    yield house
    house.close()


def live(house: House, ends: Sequence[str | int | dict[str, str]]) -> list[int]:
    """Deliver in one process after another, each killed as it maps or packs this event or after so many messages."""
    house.store.close()
    command = [sys.executable, "-c", LIVES, house.database_url, house.endpoint.url, json.dumps(ends)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    house.reopen(after_a_death(house.database_url))
    assert found.stdout, found.stderr
    return [int(line) for line in found.stdout.split()]


def sent(endpoint: Endpoint) -> set[str]:
    return {name for got in endpoint.got for name in names_of(got)}


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The events that were mapped."""
    names: list[str] = []
    map_apart: Callable[..., mapping.Mapped] = mapping.map_apart

    def note(message, *rest):
        names.append(message.event)
        return map_apart(message, *rest)

    monkeypatch.setattr(mapping, "map_apart", note)
    return names


def test_a_message_that_kills_whoever_has_it_is_refused_after_three_more_tries_and_others_flow(house: House) -> None:
    names = [f"e-{n}" for n in range(30)]
    house.take(*(call(IMPORT, name, userId=name) for name in [*names[:20], "poison", *names[20:]]))
    assert live(house, ["poison"] * 5) == [KILLED] * (1 + MAX_DEATHS) + [LIVED]
    [(reason, detail, body)] = house.refusals()
    assert (reason, detail) == ("ends_the_process", "3 processes in a row ended while they had it in hand")
    assert body == raw(call(IMPORT, "poison", userId="poison"))
    assert sent(house.endpoint) == set(names)
    assert (house.report().delivered, house.waiting()) == (30, 0)
    retry_all(house)
    house.take(call(IMPORT, "later", userId="later"))
    assert live(house, ["poison"] * 5) == [KILLED] * (1 + MAX_DEATHS) + [LIVED], (
        "who retries it has it set aside again"
    )
    assert house.report().refused == {"ends_the_process": 1}
    assert sent(house.endpoint) == {*names, "later"}


def retry_all(house: House) -> None:
    numbers = [one.number for one in house.store.find_refused(Wanted())]
    changes.retry(house.store, house.settings, numbers=numbers, vouched=True)


def test_so_is_one_that_kills_only_when_it_is_packed(sqlite_url: str, endpoint: Endpoint) -> None:
    house = House(sqlite_url, endpoint)
    house.take(*(call(IMPORT, name, userId=name) for name in ["a", "poison", "b"]))
    assert live(house, [{"packed": "poison"}] * 5) == [KILLED] * (1 + MAX_DEATHS) + [LIVED]
    assert (house.report().refused, sent(endpoint)) == ({"ends_the_process": 1}, {"a", "b"})
    house.close()


def test_what_waits_with_a_device_is_tried_with_the_message_that_carries_it(
    sqlite_url: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, tried = House(sqlite_url, endpoint), []
    house.take(
        call(ENGAGE, "x", userId=None, anonymousId="d", traits={"colour": "red"}),
        call(IMPORT, "login", anonymousId="d"),
    )
    work_until_nothing_waits(house.line(ENGAGE))
    work_until_nothing_waits(house.line(IMPORT))
    monkeypatch.setattr(mapping, "map_apart", lambda message, *_: tried.append(message.traits))
    house.store.leases.left_up_to = house.store.newest()
    [carrier] = house.store.claim(ENGAGE, 9)
    house.line(ENGAGE)._trials.acquitted([carrier], lambda _: None)
    assert tried == [{"colour": "red"}]
    house.close()


def test_what_takes_much_memory_once_it_is_read_is_not_read_together(sqlite_url: str, endpoint: Endpoint) -> None:
    """Each passes its trial alone, and together they would end every process."""
    house = House(sqlite_url, endpoint)
    traits = {"objects": [{}] * 30_000}  # 90 KB, and 2 MB once it is read
    house.take(*(call(ENGAGE, f"u-{n}", traits=traits) for n in range(24)))
    work_until_nothing_waits(house.line(ENGAGE))
    assert [len(got.records) for got in endpoint.got] == [8, 8, 8]
    house.close()


def test_of_what_is_read_together_the_oldest_is_there_and_all_of_it_gets_its_turn(
    sqlite_url: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "MAX_READ_BYTES", 1)
    house = House(sqlite_url, endpoint)
    house.take(*(call(IMPORT, f"e-{n}", timestamp=f"2026-03-01T12:00:0{9 - n}Z") for n in range(5)))
    work_until_nothing_waits(house.line())
    assert [names_of(got) for got in endpoint.got] == [[f"e-{n}"] for n in range(5)]
    house.close()


def test_who_is_killed_again_and_again_for_another_reason_refuses_nothing(house: House) -> None:
    chance, names = random.Random(7), [f"e-{n}" for n in range(40)]
    house.take(*(call(IMPORT, name, userId=name) for name in names))
    ends = [chance.randrange(2, 20) for _ in range(5)]
    lived = live(house, [*ends, 0])
    assert lived == [KILLED] * 5 + [LIVED]
    assert (house.refusals(), house.waiting()) == ([], 0)
    assert sent(house.endpoint) == set(names)


def test_what_was_left_is_tried_once_and_only_after_a_death(
    house: House, mapped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    house.take(call(IMPORT, "a"))
    house.reopen()  # in order
    house.take(call(IMPORT, "b"))
    work_until_nothing_waits(house.line())
    assert sorted(mapped) == ["a", "b"]
    house.take(call(IMPORT, "c"), call(IMPORT, "d"))
    with monkeypatch.context() as dead:
        dead.setattr(house.store.leases, "give_up", lambda: None)
        house.store.close()
    house.reopen(after_a_death(house.database_url))
    house.take(call(IMPORT, "e"))
    work_until_nothing_waits(house.line())
    assert sorted(mapped[2:]) == ["c", "c", "d", "d", "e"]
    assert rows(house.database_url, "SELECT count(*) FROM suspect") == [(0,)]


def test_what_ended_without_a_trial_is_no_suspect_for_ever(house: House) -> None:
    house.take(call(IMPORT, "a"))
    house.store.try_next(IMPORT, [], [1])  # a process died of something else meanwhile, and the next ended in order
    work_until_nothing_waits(house.line())
    house.store.leases.left_up_to = 2
    house.take(call(IMPORT, "b"))
    work_until_nothing_waits(house.line())
    assert rows(house.database_url, "SELECT count(*) FROM suspect") == [(0,)]


def test_who_is_stopped_tries_no_more_and_suspects_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.take(*(call(IMPORT, name) for name in "abc"))
    house.store.leases.left_up_to = 3
    line, tried = house.line(), []

    def stop(one: Entry) -> None:
        tried.append(one)
        line.stopping.set()

    monkeypatch.setattr(line._trials, "_try", stop)
    line.work()
    assert (len(tried), house.endpoint.got) == (1, [])
    assert rows(house.database_url, "SELECT count(*) FROM suspect") == [(0,)]


def test_what_passed_is_not_tried_again_when_others_were_claimed_meanwhile(house: House, mapped: list[str]) -> None:
    """As what is stuck is, round after round."""
    house.take(*(call(IMPORT, name) for name in "abcd"))
    house.store.leases.left_up_to = 4
    trials, claimed = house.line()._trials, house.store.claim(IMPORT, 4)
    for these in (claimed[:2], claimed[2:], claimed[:2]):
        assert trials.acquitted(these, lambda _: None) == these
    assert mapped == ["a", "b", "c", "d"]


def test_who_takes_lanes_that_were_given_up_tries_nothing(postgresql_url: str) -> None:
    with Store(postgresql_url) as one, Store(postgresql_url) as other:
        one.leases.renew()
        one.put([arrival("m")])
        one.leases.give_up()
        other.leases.renew()
        assert (len(held(other)), other.leases.left_up_to) == (SHARES, 0)


def test_nothing_is_taken_in_hand_before_a_note_says_so(sqlite_url: str) -> None:
    """What ends the process at once would end every one, and none would know."""
    with Store(sqlite_url) as store:
        assert held(store) == set()
        store.leases.renew()
        assert len(held(store)) == SHARES
        assert rows(sqlite_url, "SELECT value FROM fact WHERE name = 'delivers'") == [("true",)]
        store.leases.give_up()
        assert held(store) == set()
