"""How fast an endpoint is sent to, by a clock that the test turns."""

from typing import Any

import pytest

from adapter.ingestion import Outcome, Verdict
from adapter.pace import CALM_S, OPENS_AFTER, WINDOW_S, Limits, Pace

TAKEN = Verdict(outcome=Outcome.DONE)
FAILED = Verdict(outcome=Outcome.LATER)
TOO_MANY = Verdict(outcome=Outcome.LATER, too_many=True)
FAULT = Verdict(outcome=Outcome.LATER, fault="401: no", wait_s=60.0)


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Paced:
    """A pace, its clock, and as many processes as the test says."""

    def __init__(self, clock: Clock | None = None, **limits: Any) -> None:
        self.clock = clock or Clock()
        self.processes = 1
        self.pace = Pace(
            Limits(**limits), processes=lambda: self.processes, clock=self.clock, uniform=lambda low, _high: low
        )

    def sends(self, verdict: Verdict, n_records: int = 1, n_bytes: int = 1) -> None:
        assert self.pace.admit(n_records, n_bytes) == 0.0
        self.pace.ended(verdict)


def test_no_more_are_under_way_at_once_than_the_setting_says() -> None:
    paced = Paced(senders=2)
    assert [paced.pace.admit(1, 1) > 0 for _ in range(3)] == [False, False, True]
    paced.pace.ended(TAKEN)
    assert paced.pace.admit(1, 1) == 0.0


@pytest.mark.parametrize(("processes", "share"), [(1, 20), (2, 10), (3, 6), (50, 1)])
def test_each_process_takes_its_share_of_the_senders(processes: int, share: int) -> None:
    paced = Paced()
    paced.processes = processes
    assert paced.pace.senders == share


def test_a_429_halves_the_senders_and_calm_brings_them_back_one_by_one() -> None:
    paced = Paced(senders=8)
    found = []
    for _ in range(5):
        paced.sends(TOO_MANY)
        found.append(paced.pace.senders)
        paced.clock.now_s += 5
    assert found == [4, 2, 1, 1, 1]
    for expected in (2, 3, 4):
        paced.clock.now_s += CALM_S
        paced.sends(TAKEN)
        assert paced.pace.senders == expected
    paced.clock.now_s += 100 * CALM_S
    paced.sends(TAKEN)
    assert paced.pace.senders == 8


def test_several_429s_of_one_burst_halve_once() -> None:
    paced = Paced(senders=8)
    for _ in range(4):
        paced.pace.admit(1, 1)
    for _ in range(4):
        paced.pace.ended(TOO_MANY)
    assert paced.pace.senders == 4


def test_a_429_is_no_failure_that_opens_the_circuit() -> None:
    paced = Paced()
    for _ in range(3 * OPENS_AFTER):
        paced.sends(TOO_MANY)
    assert paced.pace.closed_s() == 0.0


def test_failures_in_a_row_open_the_circuit_and_one_probe_at_a_time_closes_it() -> None:
    paced = Paced()
    for _ in range(OPENS_AFTER):
        assert paced.pace.closed_s() == 0.0
        paced.sends(FAILED)
    waits = []
    for _ in range(7):
        waits.append(paced.pace.closed_s())
        assert paced.pace.admit(1, 1) == waits[-1]
        paced.clock.now_s += waits[-1]
        assert paced.pace.closed_s() == 0.0
        assert paced.pace.admit(1, 1) == 0.0, "the probe"
        assert paced.pace.admit(1, 1) > 0.0, "nobody beside it"
        assert paced.pace.closed_s() > 0.0
        paced.pace.ended(FAILED)
    assert waits == [3.0, 5.0, 9.0, 17.0, 33.0, 61.0, 61.0]
    paced.clock.now_s += 61.0
    paced.sends(TAKEN)
    assert [paced.pace.admit(1, 1) for _ in range(3)] == [0.0] * 3


def test_a_success_between_failures_keeps_the_circuit_closed() -> None:
    paced = Paced()
    for _ in range(10):
        for _ in range(OPENS_AFTER - 1):
            paced.sends(FAILED)
        paced.sends(TAKEN)
    assert paced.pace.closed_s() == 0.0


def test_a_credential_that_is_refused_stops_all_senders_at_once() -> None:
    paced = Paced()
    paced.sends(FAULT)
    assert paced.pace.closed_s() == 61.0


def most_in_a_minute(sent: list[tuple[float, int]]) -> int:
    return max(sum(size for when, size in sent if at <= when < at + WINDOW_S) for at, _ in sent)


@pytest.mark.parametrize(("limits", "kind"), [({"records_a_minute": 100}, 0), ({"bytes_a_minute": 100}, 1)])
@pytest.mark.parametrize("size", [1, 7, 10, 25, 50])
@pytest.mark.parametrize("processes", [1, 2])
def test_in_no_rolling_minute_more_is_sent_than_allowed(
    limits: dict[str, int], kind: int, size: int, processes: int
) -> None:
    paced = Paced(**limits)
    paced.processes = processes
    sent: list[tuple[float, int]] = []
    for _ in range(6_000):
        if paced.pace.admit(*((size, 0) if kind == 0 else (0, size))) == 0.0:
            paced.pace.ended(TAKEN)
            sent.append((paced.clock.now_s, size))
        paced.clock.now_s += 0.07
    assert most_in_a_minute(sent) <= max(100 // processes, size)
    fit = max(100 // processes // size * size, size)
    share = 0.8 if size * processes <= 10 else 0.45  # what goes in few POSTs goes more slowly
    assert sum(size for _, size in sent) >= 7 * fit * share, "and hardly less"


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("restarts_at", [[30], [60, 61, 80], [90, 150]])
def test_one_that_restarts_sends_no_more_in_a_minute_than_one_that_goes_on(size: int, restarts_at: list[int]) -> None:
    """It does not know what it sent before; and after a rest it has just sent as much at once as it could."""
    clock, sent = Clock(), []
    paced = Paced(clock, records_a_minute=100)
    for tick in range(240 * 20):
        if tick / 20 in restarts_at:
            paced = Paced(clock, records_a_minute=100)
        rests = any(at - 20 < tick / 20 < at - 0.5 for at in restarts_at)
        while not rests and paced.pace.admit(size, 1) == 0.0:
            paced.pace.ended(TAKEN)
            sent.append((clock.now_s, size))
        clock.now_s += 0.05
    assert most_in_a_minute(sent) <= 100
    assert sum(size for _, size in sent) >= 200


@pytest.mark.parametrize("size", [1, 5])
def test_one_that_joins_brings_no_share_of_the_minute_before(size: int) -> None:
    clock, sent = Clock(), []
    processes = [Paced(clock, records_a_minute=100)]
    for tick in range(300 * 20):
        if tick / 20 in (60, 90, 180):
            processes.append(Paced(clock, records_a_minute=100))
        for one in processes:
            one.processes = len(processes)
            while one.pace.admit(size, 1) == 0.0:
                one.pace.ended(TAKEN)
                sent.append((clock.now_s, size))
        clock.now_s += 0.05
    assert most_in_a_minute(sent) <= 100
    assert sum(size for _, size in sent) >= 300


def test_how_long_to_wait_until_more_may_be_sent_is_known() -> None:
    paced = Paced(records_a_minute=90)
    assert paced.pace.admit(3, 1) == pytest.approx(20 / 9), "who begins waits for what it sends"
    paced.clock.now_s += 100.0
    for _ in range(3):
        paced.sends(TAKEN, 3)
    assert paced.pace.admit(3, 1) == pytest.approx(20 / 9)
    paced.clock.now_s += 20 / 9
    paced.sends(TAKEN, 3)


def test_what_is_above_the_limits_alone_goes_when_nothing_else_did() -> None:
    paced = Paced(records_a_minute=100)
    paced.clock.now_s += paced.pace.admit(500, 1)
    paced.sends(TAKEN, 500)
    assert paced.pace.admit(500, 1) == pytest.approx(WINDOW_S)


def test_of_more_processes_than_senders_each_rests_between_its_posts() -> None:
    """Then as many are under way on average as the setting says."""
    clock = Clock()
    crowd = [Paced(clock, senders=20) for _ in range(50)]
    ends: dict[int, float] = {}
    seen = []
    for _ in range(1_000):
        for number, one in enumerate(crowd):
            one.processes = len(crowd)
            if ends.get(number, clock.now_s) < clock.now_s:
                del ends[number]
                one.pace.ended(TAKEN)
            if number not in ends and one.pace.admit(1, 1) == 0.0:
                ends[number] = clock.now_s + 1.0 + number / 50
        seen.append(len(ends))
        clock.now_s += 0.1
    assert sum(seen) / len(seen) == pytest.approx(20, rel=0.1)


def test_a_429_that_says_how_long_stops_all_senders_for_so_long() -> None:
    paced = Paced(senders=8)
    assert paced.pace.admit(1, 1) == paced.pace.admit(1, 1) == 0.0
    paced.pace.ended(Verdict(outcome=Outcome.LATER, too_many=True, wait_s=60.0))
    assert paced.pace.closed_s() == paced.pace.admit(1, 1) == 61.0
    paced.pace.ended(TAKEN)
    assert paced.pace.closed_s() == 61.0, "what was under way was sent before"
    paced.clock.now_s += 61.0
    assert [paced.pace.admit(1, 1) for _ in range(4)] == [0.0] * 4
