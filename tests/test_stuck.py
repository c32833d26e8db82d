"""A record by which its batch fails again and again, while others pass: it is found, waits by itself, is given up."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from adapter import delivery, ingestion, keys, parcels, sending
from adapter.apart import IN_A_ROW, PROBES
from adapter.delivery import GIVEN_UP_AFTER, GIVEN_UP_AFTER_S, HALVED_AFTER
from adapter.pace import OPENS_AFTER, Limits, Pace
from adapter.sending import MAX_FAILED, TRIED
from adapter.store import share_of
from schemas.mixpanel import COUNTERS, ENGAGE
from tests.conftest import rows
from tests.endpoint import Answer, Endpoint, Got, stored
from tests.test_delivery import (
    FAULT_WAIT_S,
    House,
    Mixpanel,
    call,
    counting,
    names_of,
    paid,
    work_until_nothing_waits,
)

BUSY = Answer(503, {"error": "busy"})
#: Longer than any backoff.
LONG_S = 70.0


@pytest.fixture
def house(database_url: str, endpoint: Endpoint) -> Iterator[House]:
    house = House(database_url, endpoint)
    yield house
    house.close()


@pytest.fixture
def mixpanel() -> Mixpanel:
    return Mixpanel()


def names(count: int, part: int = 0, prefix: str = "u") -> list[str]:
    """Users with a lane each, all of one of two lines."""
    found: dict[int, str] = {}
    for name in (f"{prefix}-{n}" for n in itertools.count()):
        if share_of(lane := keys.lane(name)) % 2 == part:
            found.setdefault(lane, name)
        if len(found) == count:
            break
    return list(found.values())


class Weather:
    """Two lines to /engage: the first has a record that fails, the second passes when it is told to."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.line = house.line(ENGAGE, 0, 2)
        self._other = house.line(ENGAGE, 1, 2)
        self._passing = iter(names(100, part=1, prefix="other"))

    def another_passes(self) -> None:
        self.house.take(call(ENGAGE, next(self._passing)))
        self._other.work()

    def fail(self, times: int) -> None:
        """Until so many rounds in a row have failed."""
        for _ in range(times):
            self.another_passes()
            assert self.line.work()

    def wait(self) -> None:
        self.house.clock.now_s += LONG_S


@pytest.fixture
def weather(house: House) -> Weather:
    return Weather(house)


def waiting(house: House) -> list[str]:
    found = rows(house.database_url, "SELECT body FROM message ORDER BY id")
    return [name for (body,) in found for name in [body.decode().partition('"userId":"')[2].partition('"')[0]]]


def tries(house: House) -> list[int]:
    return [found for (found,) in rows(house.database_url, "SELECT tries FROM entry WHERE tries > 0")]


@pytest.mark.parametrize("answer", [BUSY, Answer(500), Answer(0)], ids=["503", "500", "no answer"])
@pytest.mark.parametrize("at", [0, 7, 19])
def test_a_batch_that_fails_five_times_while_others_pass_is_halved_to_the_record_that_fails_alone(
    house: House, mixpanel: Mixpanel, weather: Weather, answer: Answer, at: int
) -> None:
    users = names(20)
    bad = users[at]
    house.endpoint.default = mixpanel.spoilt_by([bad], answer)
    house.take(*(call(ENGAGE, name) for name in users))
    weather.fail(HALVED_AFTER)
    assert not set(mixpanel.stored) & set(users), "it is sent whole, five times"
    weather.another_passes()
    assert weather.line.work() == 0.0
    assert [name for name in mixpanel.stored if name in users] == [name for name in users if name != bad]
    assert waiting(house) == [bad]
    assert house.report(ENGAGE).refused == {}


def test_where_no_other_passes_nothing_is_halved(house: House, mixpanel: Mixpanel, weather: Weather) -> None:
    weather.another_passes()
    users = names(8)
    house.endpoint.default = mixpanel.spoilt_by(users[:1], BUSY)
    house.take(*(call(ENGAGE, name) for name in users))
    for _ in range(3 * HALVED_AFTER):
        assert weather.line.work()
    assert [len(got.records) for got in house.endpoint.got[1:]] == [8] * 3 * HALVED_AFTER


def stick(house: House, mixpanel: Mixpanel, weather: Weather, bad: str) -> None:
    """Let it be found that one record fails alone."""
    house.endpoint.default = mixpanel.spoilt_by([bad], BUSY)
    house.take(call(ENGAGE, bad))
    weather.fail(HALVED_AFTER)
    weather.another_passes()
    weather.line.work()
    assert waiting(house) == [bad]
    assert tries(house) == [1]


def test_its_lane_waits_by_itself_and_nothing_overtakes_it(
    house: House, mixpanel: Mixpanel, weather: Weather
) -> None:
    bad, *others = names(30)
    stick(house, mixpanel, weather, bad)
    house.take(call(ENGAGE, bad, messageId="later"), *(call(ENGAGE, name) for name in others))
    n_before = len(house.endpoint.got)
    work_until_passed_over(weather)
    assert [names_of(got) for got in house.endpoint.got[n_before:]] == [others], "it was not even tried"
    weather.wait()
    house.take(call(ENGAGE, others[0], messageId="again"))
    work_until_passed_over(weather)
    assert [names_of(got) for got in house.endpoint.got[n_before + 1 :]] == [[others[0]], [bad]], "alone, and last"
    weather.wait()
    house.endpoint.default = mixpanel.spoilt_by([], BUSY)
    work_until_nothing_waits(weather.line)
    assert mixpanel.stored[-2:] == [bad, bad]
    assert waiting(house) == []


def work_until_passed_over(weather: Weather) -> None:
    while weather.line.work() == 0.0:
        pass


def test_nor_in_a_later_batch_of_the_round_that_found_it(house: House, mixpanel: Mixpanel, weather: Weather) -> None:
    """What is claimed at once may make several batches."""
    bad, *others = names(80)
    house.endpoint.default = mixpanel.spoilt_by([bad], BUSY)
    large = {"text": "x" * 50_000}
    house.take(*(call(ENGAGE, name, traits=large) for name in (bad, *others)), call(ENGAGE, bad, messageId="later"))
    weather.fail(HALVED_AFTER)
    weather.another_passes()
    weather.line.work()
    assert [name for name in mixpanel.stored if name in others] == others
    assert waiting(house) == [bad, bad]


def test_those_that_fail_side_by_side_in_front_are_all_found(
    house: House, mixpanel: Mixpanel, weather: Weather
) -> None:
    """No more than a few in a row may fail before the endpoint is held to be down: others are asked for."""
    users = names(500)
    bad = users[:6]
    house.endpoint.default = mixpanel.spoilt_by(bad, BUSY)
    house.take(*(call(ENGAGE, name) for name in users))
    weather.fail(HALVED_AFTER)
    weather.another_passes()
    weather.line.work()
    assert waiting(house) == bad
    assert set(mixpanel.stored) >= set(users[6:])


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_an_endpoint_that_goes_down_while_a_batch_is_halved_is_down_and_no_record_is_at_fault(
    house: House, mixpanel: Mixpanel, weather: Weather, taken: int
) -> None:
    users = names(300)
    good = house.endpoint.default = mixpanel.spoilt_by([users[40]], BUSY)
    house.take(*(call(ENGAGE, name) for name in users))
    weather.fail(HALVED_AFTER)
    weather.another_passes()
    n_before, left = len(mixpanel.stored), [None] * taken
    failed: list[Got] = []

    def going_down(got: Got) -> Answer:
        answer = good(got) if left else BUSY
        if answer.status == 200:
            left.pop()
        elif not left:
            failed.append(got)
        return answer

    house.endpoint.default = going_down
    assert weather.line.work(), "it waits"
    assert bool(len(mixpanel.stored) - n_before) is bool(taken)
    assert len(failed) <= MAX_FAILED + 1 + TRIED
    n_asked = len(failed)
    for _ in range(5):
        weather.line.work()
    assert len(failed) == n_asked + 5, "while it is down it is asked once a round"
    assert tries(house) == []
    house.endpoint.default = mixpanel.spoilt_by([], BUSY)
    work_until_nothing_waits(weather.line)
    assert (house.report(ENGAGE).refused, waiting(house)) == ({}, [])


def given_time(house: House, hours: float) -> None:
    """As if the first try had been so long ago."""
    first = f"UPDATE entry SET tried_ms = tried_ms - {int(hours * 3_600_000)} WHERE tries > 0"  # noqa: S608
    house.store._writer.run(lambda connection, _: [connection.exec_driver_sql(first)], None)


def try_again(weather: Weather) -> None:
    weather.wait()
    weather.another_passes()
    work_until_passed_over(weather)


def test_it_is_given_up_only_after_twenty_tries_over_a_day(
    house: House, mixpanel: Mixpanel, weather: Weather
) -> None:
    assert (GIVEN_UP_AFTER, GIVEN_UP_AFTER_S) == (20, 86_400.0)
    (bad,) = names(1)
    stick(house, mixpanel, weather, bad)
    house.take(call(ENGAGE, bad, messageId="later", traits={"step": 2}))
    for expected in range(2, GIVEN_UP_AFTER + 5):
        try_again(weather)
        assert tries(house) == [expected]
    given_time(house, 23.9)
    try_again(weather)
    assert house.report(ENGAGE).refused == {}
    given_time(house, 0.2)
    try_again(weather)
    [(reason, detail, _)] = house.refusals()
    assert (reason, detail) == ("given_up", f"failed {GIVEN_UP_AFTER + 6} times: 503: busy")
    assert waiting(house) == [bad], "what came after it in its lane has its own day"
    house.endpoint.default = mixpanel.spoilt_by([], BUSY)
    work_until_nothing_waits(weather.line)
    assert house.endpoint.got[-1].records[0]["$set"]["step"] == 2


def test_a_day_is_not_enough_without_the_tries(house: House, mixpanel: Mixpanel, weather: Weather) -> None:
    (bad,) = names(1)
    stick(house, mixpanel, weather, bad)
    given_time(house, 100)
    for _ in range(GIVEN_UP_AFTER - 2):
        try_again(weather)
    assert house.report(ENGAGE).refused == {}
    try_again(weather)
    assert house.report(ENGAGE).refused == {"given_up": 1}


def test_an_outage_is_not_held_against_it(house: House, mixpanel: Mixpanel, weather: Weather) -> None:
    (bad,) = names(1)
    stick(house, mixpanel, weather, bad)
    house.endpoint.default = lambda _got: BUSY
    for _ in range(10):
        weather.wait()
        weather.another_passes()
        weather.line.work()
    assert tries(house) == [1]


def test_the_search_for_it_does_not_close_the_endpoint_to_others(house: House, mixpanel: Mixpanel) -> None:
    """Some twelve parts fail in a row, which is more than opens a circuit."""
    house.paces[ENGAGE] = Pace(Limits(), clock=house.clock, uniform=lambda low, _high: low)
    weather = Weather(house)
    users = names(300)
    house.endpoint.default = mixpanel.spoilt_by(users[:1], BUSY)
    house.take(*(call(ENGAGE, name) for name in users))
    assert HALVED_AFTER <= OPENS_AFTER
    weather.fail(HALVED_AFTER)
    weather.another_passes()
    n_before = len(house.endpoint.got)
    weather.line.work()
    assert len(house.endpoint.got) - n_before > OPENS_AFTER
    assert waiting(house) == users[:1]
    assert house.paces[ENGAGE].closed_s() == 0.0


# Turned down, and not failed


def test_a_batch_that_is_turned_down_whole_lets_nothing_of_its_lanes_pass(house: House) -> None:
    first, second = names(38), names(30, prefix="v")
    large = {"text": "x" * 50_000}
    seen: list[str] = []

    def script(got: Got) -> Answer:
        if set(names_of(got)) & set(first):
            return Answer(400)
        seen.extend(names_of(got))
        return stored(got)

    house.endpoint.default = script
    house.take(*(call(ENGAGE, name, traits=large) for name in first))
    house.take(*(call(ENGAGE, name, traits=large) for name in second))
    house.take(*(call(ENGAGE, name, messageId=f"later-{name}") for name in first))
    n_batch = len(first) - 1
    assert (house.line(ENGAGE).work() or 0.0) >= FAULT_WAIT_S
    lanes = {keys.lane(name) for name in first[:n_batch]}
    assert seen
    assert not {keys.lane(name) for name in seen} & lanes
    assert not any("later" in str(got.records) for got in house.endpoint.got)


def test_a_lone_spoiler_is_refused_where_another_line_had_one_taken(
    house: House, mixpanel: Mixpanel, weather: Weather
) -> None:
    """The lines of an endpoint are one endpoint."""
    (bad,) = names(1)
    house.endpoint.default = mixpanel.spoilt_by([bad], Answer(400, {"error": "bad"}))
    weather.another_passes()
    house.take(call(ENGAGE, bad))
    work_until_nothing_waits(weather.line)
    assert house.refused_names(ENGAGE) == [bad]


def test_a_post_that_cannot_be_made_leaves_the_pace_as_it_was(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is a failure like another, and no sender is lost by it."""
    pace = house.paces[ENGAGE] = Pace(Limits(senders=1), clock=house.clock)
    line = house.line(ENGAGE)
    house.take(call(ENGAGE, "a"))

    def fault(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(line._sender.client, "post", fault)
        with pytest.raises(ZeroDivisionError):
            line.work()
    assert pace.admit(1, 1) == 0.0


class OneBadPerson:
    """All updates of one person are turned down but the last; the other people of the line are well."""

    def __init__(self, house: House, count: int) -> None:
        self.house, self.line = house, house.line(ENGAGE)
        (self.bad,) = names(1)
        self.stored: list[str] = []
        house.endpoint.default = self._answer
        house.take(*(call(ENGAGE, self.bad, messageId=f"bad-{n}", traits={"step": -1}) for n in range(count)))
        house.take(call(ENGAGE, self.bad, messageId="good"))

    def _answer(self, got: Got) -> Answer:
        if any(record["$set"].get("step") == -1 for record in got.records):
            return Answer(200, {"status": 0, "error": "not valid"})
        self.stored += names_of(got)
        return stored(got)

    def pass_minutes(self, minutes: int) -> None:
        for _ in range(minutes):
            while self.line.work() == 0.0:
                pass
            self.house.clock.now_s += LONG_S


@pytest.mark.parametrize(
    ("count", "claimed", "in_batch"),
    [(25, 2_000, 2_000), (35, 30, 2_000), (35, 2_000, 10)],
    ids=["more than are tried in vain", "more than are claimed", "more than fit into a batch"],
)
def test_one_whose_updates_are_all_turned_down_waits_and_holds_up_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch, count: int, claimed: int, in_batch: int
) -> None:
    monkeypatch.setattr(sending, "MAX_TURNED_DOWN", 20)
    monkeypatch.setattr(delivery, "CLAIM_ENTRIES", claimed)
    monkeypatch.setattr(ingestion, "MAX_BATCH_RECORDS", in_batch)
    one = OneBadPerson(house, count)
    one.pass_minutes(3)
    n_before = len(house.endpoint.got)
    one.pass_minutes(10)
    assert len(house.endpoint.got) - n_before <= 10, "a probe a minute at the most"
    assert (one.stored, house.report(ENGAGE).refused) == ([], {})
    assert "nothing is taken" in house.report(ENGAGE).last_answer["fault"]
    house.take(call(ENGAGE, "another"))
    one.pass_minutes(4)
    assert one.stored == ["another", one.bad]
    assert house.report(ENGAGE).refused == {"refused_by_mixpanel": count}


def test_nor_where_of_what_was_claimed_only_theirs_is_read_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "MAX_READ_BYTES", 1)
    one = OneBadPerson(house, 2)
    one.pass_minutes(2)
    house.take(call(ENGAGE, "another"))
    one.pass_minutes(3)
    assert one.stored == ["another", one.bad]


def test_an_endpoint_that_begins_to_turn_everything_down_gets_it_all_when_it_is_mended(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it took another just before says nothing of those that were turned down with many."""
    monkeypatch.setattr(sending, "MAX_TURNED_DOWN", 20)
    line = house.line(ENGAGE)
    house.take(call(ENGAGE, "before"))
    work_until_nothing_waits(line)
    house.endpoint.default = lambda _got: Answer(400, {"error": "no"})
    (user,) = names(1)
    house.take(*(call(ENGAGE, user, messageId=f"m-{n}") for n in range(25)))
    for _ in range(12):
        while line.work() == 0.0:
            pass
        house.clock.now_s += LONG_S
    assert house.report(ENGAGE).refused == {}
    house.endpoint.default = stored
    work_until_nothing_waits(line)
    assert house.report(ENGAGE).delivered == 26


# Updates that count, which go alone as they are


class Payments:
    """Payments to /engage, of which those of some persons are turned down."""

    def __init__(self, house: House, *bad: str) -> None:
        self.house, self.taken = counting(house), Counter[str]()
        self.line = house.line(COUNTERS)
        self.turns_down(*bad)

    def turns_down(self, *bad: str) -> None:
        def script(got: Got) -> Answer:
            [record] = got.records
            if record["$distinct_id"] in bad:
                return Answer(200, {"status": 0, "error": "not valid"})
            self.taken[record["$distinct_id"]] += 1
            return stored(got)

        self.house.endpoint.default = script

    def take(self, *users: str) -> None:
        n_before = self.house.report(COUNTERS).acknowledged
        self.house.take(*({**paid(f"p-{n_before + n}"), "userId": user} for n, user in enumerate(users)))

    def minute(self) -> int:
        """Let a minute pass; how often the endpoint was asked in it."""
        n_before = len(self.house.endpoint.got)
        while self.line.work() == 0.0:
            pass
        self.house.clock.now_s += LONG_S
        return len(self.house.endpoint.got) - n_before


@pytest.mark.parametrize("n", [5, 40])
def test_an_endpoint_that_turns_down_all_that_counts_is_asked_a_few_times_and_refuses_nothing(
    house: House, n: int
) -> None:
    users = names(n)
    payments = Payments(house, *users)
    payments.take(*(users * 2))
    assert payments.minute() <= IN_A_ROW + PROBES
    assert max(payments.minute() for _ in range(5)) <= PROBES
    report = house.report(COUNTERS)
    assert (report.waiting, report.refused) == (2 * n, {})
    assert "nothing is taken" in report.last_answer["fault"]
    payments.turns_down(users[n // 2])
    payments.minute()
    payments.minute()
    report = house.report(COUNTERS)
    assert (report.delivered, report.refused) == (2 * n - 2, {"refused_by_mixpanel": 2})
    assert set(payments.taken.values()) == {2}, "each once"


@pytest.mark.parametrize("claimed", [2_000, 40], ids=["all are claimed", "more than are claimed"])
def test_one_whose_payments_are_all_turned_down_holds_up_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch, claimed: int
) -> None:
    monkeypatch.setattr(delivery, "CLAIM_ENTRIES", claimed)
    bad, *others = names(21)
    payments = Payments(house, bad)
    payments.take(*[bad] * 60, *others)
    payments.minute()
    payments.minute()
    assert dict(payments.taken) == dict.fromkeys(others, 1)
    payments.minute()
    payments.take(*others)
    payments.minute()
    payments.minute()
    assert house.report(COUNTERS).refused == {"refused_by_mixpanel": 60}


@pytest.mark.parametrize("to", [COUNTERS, ENGAGE])
def test_of_what_comes_one_by_one_a_few_are_refused_when_an_endpoint_begins_to_turn_everything_down(
    house: House, to: str
) -> None:
    """That it took another just before says nothing any more."""
    make = (lambda n: paid(f"p-{n}")) if to == COUNTERS else (lambda n: call(ENGAGE, "u", messageId=f"m-{n}"))
    line = counting(house).line(to)
    house.take(make(0))
    line.work()
    house.endpoint.default = lambda _got: Answer(400, {"error": "no"})
    for n in range(1, IN_A_ROW + 10):
        house.take(make(n))
        line.work()
    report = house.report(to)
    assert report.refused == {"refused_by_mixpanel": IN_A_ROW}
    house.endpoint.default = stored
    work_until_nothing_waits(line)
    assert house.report(to).delivered == 10
