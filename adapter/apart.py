"""The lanes of one line of delivery that wait by themselves, so that nobody waits behind them.

what came of what was sent              its lanes
failed alone, while others were taken   wait, longer each time; then what is first in each goes alone, and last
turned down whole                       send no more in this round; those that may hold others up wait for two rounds,
                                        then the same
taken                                   are as all others
refused alone                           are as all others, or still go alone: what is behind it may be no better
"""

import random
import time
from collections.abc import Callable, Collection

import msgspec

from adapter import ingestion
from adapter.pace import Pace
from adapter.rounds import backoff_s
from adapter.sending import MAX_TURNED_DOWN, TRIED


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """A lane whose first entry failed alone, while others were taken; or of which a whole batch was turned down."""

    failures: int  #: how often since this process knows of it
    taken: int  #: how much the endpoint had taken, from whomever, when it failed last
    until: float  #: when it may be tried again
    turned_down: bool = False


class Apart:
    """`begin` a round: a lane in here goes alone and last, one of `held_up` not at all. Then say what came."""

    def __init__(
        self,
        pace: Pace,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._pace = pace
        self._clock = clock
        self._uniform = uniform
        self._lanes: dict[int, Lane] = {}
        #: lanes of which this round sends nothing more: nothing is overtaken
        self.held_up: set[int] = set()

    def __contains__(self, lane: int) -> bool:
        return lane in self._lanes

    def begin(self) -> None:
        """A round begins."""
        now = self._clock()
        self.held_up = {lane for lane, one in self._lanes.items() if one.until > now}

    def others_passed(self, lane: int) -> bool | None:
        """Whether the endpoint has taken others since this lane waits by itself; None if it does not."""
        one = self._lanes.get(lane)
        return None if one is None else self._pace.taken > one.taken

    def turned_down(self, lanes: Collection[int]) -> None:
        """A batch of these lanes was turned down whole. Another batch may fare better."""
        self.held_up |= set(lanes)

    def set_apart(self, lanes: Collection[int], n_entries: int, *, is_cut: bool) -> None:
        """Let the lanes of such a batch wait by themselves, if there may be others whom they hold up.

        The next round passes over them. Then what is first in each goes alone, after the others: if these are taken,
        it is refused.
        """
        is_cut = is_cut or n_entries > MAX_TURNED_DOWN
        # Of many it is the endpoint that is at fault, and they shall not all go alone when it is mended.
        if len(lanes) <= TRIED and (is_cut or any(lane in self._lanes for lane in lanes)):
            until = self._clock() + 2 * ingestion.FAULT_WAIT_S
            apart = Lane(failures=0, taken=self._pace.taken, until=until, turned_down=True)
            self._lanes.update(dict.fromkeys(lanes, apart))

    def answered(self, lanes: Collection[int], failed: Collection[int], *, all_refused: bool) -> None:
        """A batch of these lanes was answered; what was first in those that `failed` did so alone."""
        before = {lane: self._lanes.pop(lane, None) for lane in lanes}
        if all_refused:
            self._lanes |= {lane: one for lane, one in before.items() if one and one.turned_down}
        for lane in failed:
            failures = 1 + (one.failures if (one := before[lane]) else 0)
            until = self._clock() + backoff_s(failures, None, self._uniform)
            self._lanes[lane] = Lane(failures=failures, taken=self._pace.taken, until=until)
