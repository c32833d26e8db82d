"""A clock that is wrong or set back: a lane stays one process's, nothing is lost or doubled, no wait is long."""

import email.utils
import time
from collections.abc import Iterator

import pytest

from adapter import intake
from adapter.ingestion import MAX_RETRY_AFTER_S
from adapter.records import Options
from adapter.rounds import FIRST_BACKOFF_S
from adapter.store import Store
from adapter.store.seen import DAY_MS
from adapter.store.tables import SHARES
from schemas.mixpanel import IMPORT
from tests.conftest import raw
from tests.endpoint import Answer, Endpoint
from tests.test_delivery import JITTER_S, House, call, names_of, work_until_nothing_waits
from tests.test_leases import held
from tests.test_store import arrival

HOUR_S = 3_600
MIDNIGHT_S = 20_800 * DAY_MS // 1000


class Wall:
    """The clock on the wall, which somebody sets; that which only measures goes on."""

    def __init__(self) -> None:
        self.set(MIDNIGHT_S)

    def set(self, now_s: float) -> None:
        self._ahead_s = now_s - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._ahead_s


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(time, "time", wall)
    return wall


@pytest.fixture
def house(either_url: str, endpoint: Endpoint) -> Iterator[House]:
    house = House(either_url, endpoint)
    yield house
    house.close()


def calls(first: int) -> list[dict[str, object]]:
    return [call(IMPORT, f"e-{n}", timestamp=None) for n in range(first, first + 5)]


def test_a_clock_that_is_set_back_over_midnight_neither_loses_nor_doubles(wall: Wall, house: House) -> None:
    wall.set(MIDNIGHT_S + HOUR_S / 2)
    house.take(*calls(0))
    line = house.line()
    house.endpoint.answers += [Answer(503)]
    assert line.work() > 0
    wall.set(MIDNIGHT_S - HOUR_S / 2)
    house.take(*calls(5))
    work_until_nothing_waits(line)
    for _ in range(2):
        again = [raw(one) for one in calls(0) + calls(5)]
        assert intake.accept(again, house.store, Options.of(house.settings)).duplicates == 10
        house.reopen()
    wall.set(MIDNIGHT_S + HOUR_S / 2)
    house.take(*calls(10))
    work_until_nothing_waits(house.line())
    arrived = [name for got in house.endpoint.got[1:] for name in names_of(got)]
    assert sorted(arrived) == sorted(f"e-{n}" for n in range(15))
    assert (house.report().delivered, house.refusals()) == (15, [])


@pytest.mark.parametrize(("set_s", "wait_s"), [(-HOUR_S, MAX_RETRY_AFTER_S), (HOUR_S, FIRST_BACKOFF_S)])
def test_a_date_to_wait_for_is_waited_for_five_minutes_at_most(
    wall: Wall, house: House, set_s: float, wait_s: float
) -> None:
    date = email.utils.formatdate(wall() + 30, usegmt=True)
    house.endpoint.answers += [Answer(429, headers=(("Retry-After", date),))]
    house.take(*calls(0))
    wall.set(wall() + set_s)
    assert house.line().work() == wait_s + JITTER_S


def test_processes_whose_clocks_differ_by_hours_hold_no_lane_twice(wall: Wall, postgresql_url: str) -> None:
    with Store(postgresql_url) as right, Store(postgresql_url) as ahead:
        for _ in range(4):
            for store, now_s in (right, MIDNIGHT_S - HOUR_S), (ahead, MIDNIGHT_S + HOUR_S):
                wall.set(now_s)
                store.leases._renewed_at = float("-inf")
                store.leases.renew()
                assert held(right) & held(ahead) == set()
        assert len(held(right)) == len(held(ahead)) == SHARES / 2
        today = MIDNIGHT_S * 1000 / DAY_MS
        for day in today - 0.1, today + 0.1, today - 0.05:  # midnight has come for one of them
            store = ahead if day > today else right
            assert store.put([arrival("m", day=day), arrival(day, day=day)]) == [day == today - 0.1, True]
