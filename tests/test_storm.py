"""An endpoint that will not have what workers send, for minutes and hours: by a clock that the test turns."""

import heapq
from collections.abc import Iterator
from random import Random

import pytest

from adapter import delivery, ingestion
from adapter.delivery import LINES, Line
from adapter.pace import Limits, Pace
from schemas.mixpanel import ENGAGE, IMPORT
from tests.endpoint import Answer, Endpoint, stored
from tests.test_delivery import House, Mixpanel, Uniform, call

#: How long a POST takes.
POST_S = 1.0


@pytest.fixture
def house(sqlite_url: str, endpoint: Endpoint) -> Iterator[House]:
    house = House(sqlite_url, endpoint)
    yield house
    house.close()


class Workers:
    """Lines that take their turns when it is time; those of one worker have a pace in common."""

    def __init__(self, house: House, n_workers: int, n_lines: int, uniform: Uniform, to: str = IMPORT) -> None:
        self._house, self._began_s = house, house.clock.now_s
        self.posts: list[tuple[float, int]] = []  #: when, since the beginning, and whose
        self._turns: list[tuple[float, int, int, Line]] = []  # when next, of which part, and whose
        for worker in range(n_workers):
            house.paces[to] = Pace(Limits(), clock=house.clock, uniform=uniform)
            for part in range(worker, n_workers * n_lines, n_workers):
                line = house.line(to, part, n_workers * n_lines, uniform)
                heapq.heappush(self._turns, (0.0, part, worker, line))

    def run(self, until_s: float) -> None:
        """Until so long after the beginning."""
        while self._turns[0][0] < until_s:
            at_s, part, worker, line = heapq.heappop(self._turns)
            self._house.clock.now_s = self._began_s + at_s
            n_before = len(self._house.endpoint.got)
            wait_s = line.work()
            n_posts = len(self._house.endpoint.got) - n_before
            self.posts += [(at_s, worker)] * n_posts
            next_s = at_s + POST_S * n_posts + (1.0 if wait_s is None else wait_s)
            heapq.heappush(self._turns, (next_s, part, worker, line))

    def times(self, from_s: float, until_s: float, worker: int | None = None) -> list[float]:
        return [at_s for at_s, whose in self.posts if from_s <= at_s < until_s and worker in (None, whose)]


def take(house: House, count: int) -> None:
    house.take(*(call(IMPORT, f"e-{n}", userId=f"u-{n}") for n in range(count)))


def all_are_delivered(house: House, count: int) -> bool:
    report = house.report()
    return (report.delivered, report.refused) == (count, {})


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "CLAIM_ENTRIES", 1)
    monkeypatch.setattr(ingestion, "MAX_BATCH_RECORDS", 1)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("answer", [Answer(429), Answer(429, headers=(("Retry-After", "30"),))], ids=["", "30 s"])
def test_in_a_storm_of_429_four_workers_ask_seldom_and_not_together(house: House, answer: Answer) -> None:
    take(house, 40)
    workers = Workers(house, 4, 1, Random(1).uniform)
    workers.run(5.0)
    house.endpoint.default = lambda _got: answer
    workers.run(605.0)
    before, storm = len(workers.times(0.0, 5.0)) / 5.0, len(workers.times(65.0, 605.0)) / 540.0
    assert 0 < storm <= before / 10
    tries = zip(*(workers.times(5.0, 605.0, worker) for worker in range(4)), strict=False)
    apart_s = [max(times) - min(times) for times in tries]
    assert min(apart_s[3:]) > POST_S, "though all were turned away at the same time"
    house.endpoint.default = stored
    workers.run(800.0)
    assert all_are_delivered(house, 40)


def test_while_a_secret_is_revoked_there_is_one_probe_a_minute_until_it_is_good_again(house: House) -> None:
    take(house, 200)
    house.endpoint.default = lambda _got: Answer(401, {"error": "no"})
    workers = Workers(house, 1, LINES, Random(1).uniform)
    workers.run(3_600.0)
    probes = workers.times(0.0, 3_600.0)
    assert min(later - sooner for sooner, later in zip(probes, probes[1:], strict=False)) >= 60
    assert len(probes) >= 3_600 / 67, "and hardly less"
    report = house.report()
    assert (report.waiting, report.refused, report.last_answer["fault"]) == (200, {}, "401: no")
    house.endpoint.default = stored
    workers.run(3_700.0)
    assert all_are_delivered(house, 200)


BAD = [f"bad-{n}" for n in range(3)]


def take_bad(house: House, n_each: int = 30) -> None:
    """The updates of a few persons, none of which is ever taken."""
    house.take(*(call(ENGAGE, name, messageId=f"{name}-{n}") for n in range(n_each) for name in BAD))


def test_an_endpoint_that_turns_everything_down_is_asked_seldom_and_gets_it_all_when_it_is_mended(
    house: House,
) -> None:
    """And those that are bad are refused then: the others are taken beside them."""
    good = [f"u-{n}" for n in range(60)]
    take_bad(house)
    house.take(*(call(ENGAGE, name) for name in good))
    house.endpoint.default = lambda _got: Answer(400, {"error": "no"})
    workers, mixpanel = Workers(house, 1, LINES, Random(1).uniform, ENGAGE), Mixpanel()
    workers.run(1_800.0)
    assert len(workers.times(120.0, 1_800.0)) <= 2 * LINES * 28
    report = house.report(ENGAGE)
    assert (report.waiting, report.delivered, report.refused) == (150, 0, {})
    house.endpoint.default = mixpanel.spoilt_by(BAD, Answer(400, {"error": "bad"}))
    workers.run(1_865.0)
    assert set(mixpanel.stored) == set(good), "at the first try of each line"
    workers.run(2_000.0)
    report = house.report(ENGAGE)
    assert (report.waiting, report.delivered, report.refused) == (0, 60, {"refused_by_mixpanel": 90})


def test_a_few_whose_updates_are_all_bad_are_tried_once_a_minute_until_others_come(house: House) -> None:
    take_bad(house)
    mixpanel = Mixpanel()
    house.endpoint.default = mixpanel.spoilt_by(BAD, Answer(400, {"error": "bad"}))
    workers = Workers(house, 1, LINES, Random(1).uniform, ENGAGE)
    workers.run(1_800.0)
    assert len(workers.posts) <= 2 * 90 + len(BAD) * 30, "they are searched through once"
    assert house.report(ENGAGE).refused == {}
    house.take(*(call(ENGAGE, f"u-{n}") for n in range(20)))
    workers.run(1_870.0)
    assert len(mixpanel.stored) == 20
    workers.run(2_000.0)
    assert (house.report(ENGAGE).waiting, house.report(ENGAGE).refused) == (0, {"refused_by_mixpanel": 90})
