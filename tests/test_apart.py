"""Which lanes wait by themselves, and until when: by a clock that the test turns."""

import pytest

from adapter.apart import Apart
from adapter.ingestion import FAULT_WAIT_S, Outcome, Verdict
from adapter.pace import Limits, Pace
from adapter.sending import MAX_TURNED_DOWN, TRIED
from tests.test_delivery import JITTER_S, Clock, shortest


class Rounds:
    """Rounds of a line to an endpoint that takes others when it is told to."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._pace = Pace(Limits(), clock=self.clock)
        self.apart = Apart(self._pace, clock=self.clock, uniform=shortest)

    def another_is_taken(self) -> None:
        assert self._pace.admit(1, 1) == 0.0
        self._pace.ended(Verdict(outcome=Outcome.DONE))

    def after(self, seconds: float) -> Apart:
        """A round begins, so much later."""
        self.clock.now_s += seconds
        self.apart.begin()
        return self.apart


@pytest.fixture
def rounds() -> Rounds:
    return Rounds()


def test_what_failed_alone_waits_longer_each_time_and_then_goes_alone(rounds: Rounds) -> None:
    for wait_s in (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        rounds.apart.answered({1, 2}, {1}, all_refused=False)
        assert rounds.after(wait_s + JITTER_S - 0.1).held_up == {1}
        assert rounds.after(0.2).held_up == set()
        assert (1 in rounds.apart, 2 in rounds.apart) == (True, False)


def test_whether_others_pass_is_asked_of_those_that_wait_by_themselves(rounds: Rounds) -> None:
    rounds.another_is_taken()
    rounds.apart.answered({1}, {1}, all_refused=False)
    assert rounds.apart.others_passed(1) is False
    rounds.another_is_taken()
    assert (rounds.apart.others_passed(1), rounds.apart.others_passed(2)) == (True, None)


def test_what_is_taken_is_as_all_others_and_its_failures_are_forgotten(rounds: Rounds) -> None:
    for _ in range(3):
        rounds.apart.answered({1}, {1}, all_refused=False)
    rounds.apart.answered({1}, set(), all_refused=False)
    assert 1 not in rounds.apart
    rounds.apart.answered({1}, {1}, all_refused=False)
    assert rounds.after(2.0 + JITTER_S).held_up == set()


def test_of_a_batch_that_was_turned_down_nothing_more_is_sent_in_the_round(rounds: Rounds) -> None:
    rounds.apart.turned_down({1, 2})
    assert rounds.apart.held_up == {1, 2}
    assert rounds.after(0.0).held_up == set()


@pytest.mark.parametrize(
    ("n_lanes", "n_entries", "is_cut", "waits"),
    [
        (1, 1, False, False),
        (1, 1, True, True),
        (1, MAX_TURNED_DOWN, False, False),
        (1, MAX_TURNED_DOWN + 1, False, True),
        (TRIED, 99, True, True),
        (TRIED + 1, 99, True, False),
    ],
)
def test_those_few_that_may_hold_others_up_wait_for_two_rounds(
    rounds: Rounds, n_lanes: int, n_entries: int, is_cut: bool, waits: bool
) -> None:
    lanes = set(range(n_lanes))
    rounds.apart.set_apart(lanes, n_entries, is_cut=is_cut)
    assert rounds.after(2 * FAULT_WAIT_S - 0.1).held_up == (lanes if waits else set())
    assert rounds.after(0.2).held_up == set()
    assert (0 in rounds.apart) is waits


def test_behind_one_that_was_refused_what_was_turned_down_still_goes_alone(rounds: Rounds) -> None:
    rounds.apart.set_apart({1}, 1, is_cut=True)
    rounds.apart.answered({2}, {2}, all_refused=False)
    rounds.apart.answered({1, 2}, set(), all_refused=True)
    assert (1 in rounds.apart, 2 in rounds.apart) == (True, False)
    rounds.apart.answered({1}, set(), all_refused=False)
    assert 1 not in rounds.apart
