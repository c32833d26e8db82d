"""The power goes at any moment, or the disk fails, or lies: what was acknowledged is there, and nothing else."""

import sqlite3
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from adapter.errors import AdapterError, StoreUnavailable
from adapter.store import Store
from adapter.store import sqlite as sqlite_store
from schemas.mixpanel import IMPORT
from tests.conftest import raw
from tests.disk import Disk, lay
from tests.endpoint import Endpoint
from tests.test_delivery import House, call, work_until_nothing_waits
from tests.test_store import arrival, delivered

STEPS = 40


@dataclass
class Life:
    """What a store was told, and when, by how much had been done to the disk."""

    disk: Disk
    since: int  #: when the store was open
    taken: dict[bytes, int] = field(default_factory=dict)  #: message -> when it was acknowledged
    begun: dict[bytes, int] = field(default_factory=dict)  #: message -> when it began to be settled
    ended: dict[bytes, int] = field(default_factory=dict)  #: message -> when it was settled

    def live(self, store: Store, chance: Random, steps: int) -> None:
        for step in range(steps):
            with suppress(StoreUnavailable):
                messages = [
                    arrival((step, n), body=b"%d %d " % (step, n) * 300) for n in range(chance.randrange(1, 4))
                ]
                store.put(messages)
                self.taken |= dict.fromkeys((one.body for one in messages), self.now)
            with suppress(StoreUnavailable):
                claimed = store.claim("import", chance.choice([0, 1, 6]))
                bodies = [one.body for one in claimed]
                self.begun |= dict.fromkeys(bodies, self.now)
                store.settle(delivered(claimed))
                self.ended |= dict.fromkeys(bodies, self.now)

    @property
    def now(self) -> int:
        return len(self.disk.deeds)

    def wrong(self, folder: Path, every: int, chance: Random | None = None) -> list[str]:
        """What would be missing, or there again, had the power gone at `every` so many deeds."""
        told = []
        for now, files in self.disk.left(self.since, every, chance):
            lay(files, folder)
            with closing(sqlite3.connect(folder / "adapter.db")) as connection:
                connection.execute("PRAGMA synchronous = OFF")  # of what is looked at once
                assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
                found = {body for (body,) in connection.execute("SELECT body FROM message")}
            must = {body for body, at in self.taken.items() if at <= now and self.begun.get(body, now) >= now}
            may_not = {body for body, at in self.ended.items() if at <= now}
            told += [f"lost after {now}: {body[:5]!r}" for body in must - found]
            told += [f"there again after {now}: {body[:5]!r}" for body in may_not & found]
        return told


def lived(url: str, monkeypatch: pytest.MonkeyPatch, fails: float = 0.0) -> Life:
    """A life on a disk of which so many fsyncs fail, and some writes."""
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 25)
    chance, disk = Random(1), Disk()
    with disk.watched(), Store(url) as store:
        life = Life(disk, since=len(disk.deeds))
        disk.fails = lambda what: chance.random() < (fails if what == "sync" else fails / 20)
        life.live(store, chance, STEPS)
        disk.fails = lambda _what: False
    return life


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "left").mkdir()
    return tmp_path / "left"


@pytest.fixture
def new_url(tmp_path: Path) -> str:
    """The address of a store that is not there yet: what is not on the disk from the beginning would be lost."""
    return f"sqlite:///{tmp_path / 'adapter.db'}"


@pytest.mark.parametrize("fails", [0.0, 0.3])
@pytest.mark.parametrize("chance", [None, Random(1)], ids=["nothing", "a part"])
def test_what_was_acknowledged_is_there_whenever_the_power_goes(
    new_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, fails: float, chance: Random | None
) -> None:
    """Of what no fsync made durable nothing is left, or a part; and also where every third fsync fails."""
    life = lived(new_url, monkeypatch, fails)
    assert len(life.taken) > STEPS < len(life.ended)
    assert (sum(deed.what == "fail" for deed in life.disk.deeds) > STEPS / 3) == (fails > 0)
    assert life.wrong(folder, 11, chance) == []


def test_what_a_disk_is_asked_for_less_loses_would_be_seen(
    new_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "SYNCHRONOUS", "NORMAL")
    assert any(text.startswith("lost") for text in lived(new_url, monkeypatch).wrong(folder, 29))


@pytest.mark.parametrize("what", ["write", "sync"])
def test_nothing_is_acknowledged_while_the_disk_fails_and_all_goes_on_when_it_does_not(
    new_url: str, what: str
) -> None:
    disk = Disk()
    with disk.watched(), Store(new_url) as store:
        store.put([arrival("before")])
        disk.fails = lambda done: done == what
        for n in range(3):
            with pytest.raises(StoreUnavailable, match="disk I/O error"):
                store.put([arrival(n)])
        disk.fails = lambda _: False
        assert store.put([arrival(n) for n in range(3)]) == [True] * 3
        assert len(store.claim("import", 10)) == 4


def test_a_byte_that_the_disk_has_changed_is_never_sent(sqlite_url: str, tmp_path: Path, endpoint: Endpoint) -> None:
    """Wherever in the file: the message is refused, or the store says that it cannot be read, or a thread does."""
    chance, path = Random(1), tmp_path / "adapter.db"
    with Store(sqlite_url) as store:
        store.put([arrival(n, body=raw(call(IMPORT, f"e-{n}", properties={"x": "y" * 400}))) for n in range(60)])
        whole = {one.body for one in store.claim("import", 100)}
    content, found = path.read_bytes(), Counter[str]()
    for _ in range(30):
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        lay({str(path): bytes(changed)}, tmp_path)
        # Where a number has become nothing there is no order: a fault of ours, and nothing is sent.
        with suppress(AdapterError, TypeError), closing(House(sqlite_url, endpoint)) as house:
            claimed = house.store.claim("import", 100)
            assert {one.body for one in claimed if not one.damaged} <= whole
            found["damaged"] += sum(one.damaged for one in claimed)
            if any(one.damaged for one in claimed) and not endpoint.got:
                work_until_nothing_waits(house.line())
                assert (house.report().delivered, house.report().refused) == (59, {"damaged": 1})
    assert found["damaged"] > 5
    assert len(endpoint.got) == 1
