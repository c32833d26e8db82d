"""Which lanes wait by themselves, and until when: by a clock that the test turns."""

import pytest

from adapter.apart import IN_A_ROW, Apart
from adapter.ingestion import FAULT_WAIT_S, Outcome, Verdict
from adapter.pace import Limits, Pace
from adapter.sending import TRIED
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
        assert (rounds.apart.goes_alone(1), rounds.apart.goes_alone(2)) == (True, False)


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
    assert not rounds.apart.goes_alone(1)
    rounds.apart.answered({1}, {1}, all_refused=False)
    assert rounds.after(2.0 + JITTER_S).held_up == set()


def test_of_a_batch_that_was_turned_down_nothing_more_is_sent_in_the_round(rounds: Rounds) -> None:
    assert rounds.apart.turned_down({1, 2}) is False, "another may fare better"
    assert rounds.apart.held_up == {1, 2}
    assert rounds.after(0.0).held_up == set()


def test_while_nothing_is_taken_a_few_go_alone_in_a_round_and_those_that_were_tried_least_go_first(
    rounds: Rounds,
) -> None:
    assert not rounds.apart.in_doubt, "nothing was tried"
    rounds.apart.turned_down({1, 2, 3})
    assert rounds.apart.in_doubt
    assert rounds.apart.goes_alone(9)
    assert [rounds.after(0.0).turned_down({lane}) for lane in (1, 2)] == [False, False], "one in each round"
    rounds.after(0.0)
    assert [rounds.apart.turned_down({lane}) for lane in (3, 1)] == [False, True]
    assert sorted((1, 2, 3, 9), key=rounds.apart.tries) == [9, 2, 3, 1]
    rounds.another_is_taken()
    assert (rounds.apart.in_doubt, rounds.apart.goes_alone(9)) == (False, False)


def test_where_order_does_not_matter_a_lane_may_be_probed_again(rounds: Rounds) -> None:
    events = Apart(rounds._pace, in_order=False, clock=rounds.clock)
    events.turned_down({1})
    assert events.held_up == {1}, "the whole batch"
    events.begin()
    events.turned_down({1})
    assert events.held_up == set()


@pytest.mark.parametrize(("n_lanes", "alone"), [(TRIED, True), (TRIED + 1, False)])
def test_of_those_that_were_turned_down_few_go_alone_once_others_are_taken_and_many_do_not(
    rounds: Rounds, n_lanes: int, alone: bool
) -> None:
    """Of many it was the endpoint that was at fault."""
    rounds.apart.turned_down(set(range(n_lanes)))
    rounds.another_is_taken()
    assert rounds.after(0.0).goes_alone(0) is alone
    assert rounds.apart.others_passed(0) is (True if alone else None)


@pytest.mark.parametrize(("n_lanes", "waits"), [(1, True), (TRIED, True), (TRIED + 1, False)])
def test_those_few_that_fill_a_claim_make_way_for_those_behind_them(
    rounds: Rounds, n_lanes: int, waits: bool
) -> None:
    lanes = set(range(n_lanes))
    rounds.apart.make_way(lanes)
    assert rounds.after(2 * FAULT_WAIT_S - 0.1).held_up == (lanes if waits else set())
    assert rounds.after(0.2).held_up == set()


def test_where_nobody_is_behind_they_are_tried_at_once(rounds: Rounds) -> None:
    rounds.apart.answered({2}, {2}, all_refused=False)
    assert not rounds.apart.nobody_is_behind()
    rounds.apart.make_way({1})
    assert rounds.apart.nobody_is_behind()
    assert rounds.after(0.0).held_up == {2}, "what failed waits all the same"


def test_whom_a_round_has_passed_over_stays_behind_though_its_time_comes(rounds: Rounds) -> None:
    """Else what is claimed next would overtake what was passed over."""
    rounds.apart.make_way({1})
    rounds.after(0.0)
    rounds.clock.now_s += 2 * FAULT_WAIT_S
    rounds.apart.begin(goes_on=True)
    assert rounds.apart.held_up == {1}
    assert rounds.after(0.0).held_up == set()


def test_that_others_were_taken_is_held_against_no_more_than_so_many(rounds: Rounds) -> None:
    """The endpoint may have begun to turn everything down since."""
    rounds.apart.turned_down({1, 2})
    for _ in range(2):
        rounds.another_is_taken()
        for n in range(IN_A_ROW):
            assert rounds.apart.refuses(1 + n % 2)
            rounds.apart.answered({1 + n % 2}, set(), all_refused=True)
        assert (rounds.apart.refuses(1), rounds.apart.refuses(2)) == (False, False)


def test_behind_one_that_was_refused_what_was_turned_down_still_goes_alone(rounds: Rounds) -> None:
    rounds.apart.turned_down({1})
    rounds.another_is_taken()
    rounds.apart.answered({2}, {2}, all_refused=False)
    rounds.apart.answered({1, 2}, set(), all_refused=True)
    assert (rounds.apart.goes_alone(1), rounds.apart.goes_alone(2)) == (True, False)
    rounds.apart.answered({1}, set(), all_refused=False)
    assert not rounds.apart.goes_alone(1)
