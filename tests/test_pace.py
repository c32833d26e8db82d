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

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
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


@pytest.mark.parametrize(
    ("limits", "size"), [({"records_a_minute": 100}, (10, 1)), ({"bytes_a_minute": 1_000}, (1, 100))]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_in_no_rolling_minute_more_is_sent_than_allowed(
    limits: dict[str, int], size: tuple[int, int], processes: int
) -> None:
    paced = Paced(**limits)
    paced.processes = processes
    sent: list[float] = []
    for _ in range(600):
        if paced.pace.admit(*size) == 0.0:
            paced.pace.ended(TAKEN)
            sent.append(paced.clock.now_s)
        paced.clock.now_s += 0.7
    for at in sent:
        assert sum(at <= one < at + WINDOW_S for one in sent) <= 10 // processes
    assert len(sent) >= 600 * 0.7 / WINDOW_S * 10 / processes * 0.95, "and hardly less"


def test_how_long_to_wait_for_room_in_the_minute_is_known() -> None:
    paced = Paced(records_a_minute=100)
    paced.sends(TAKEN, 60)
    paced.clock.now_s += 10
    paced.sends(TAKEN, 40)
    paced.clock.now_s += 10
    assert paced.pace.admit(50, 1) == pytest.approx(40.0)
    assert paced.pace.admit(70, 1) == pytest.approx(50.0)
    paced.clock.now_s += 40.0
    assert paced.pace.admit(50, 1) == 0.0


def test_what_is_above_the_limits_alone_goes_when_nothing_else_did() -> None:
    paced = Paced(records_a_minute=100)
    paced.sends(TAKEN, 500)
    assert paced.pace.admit(500, 1) == pytest.approx(WINDOW_S)
