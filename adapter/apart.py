"""The lanes of one line of delivery that wait by themselves, so that nobody waits behind them.

what came of what was sent              its lanes
failed alone, while others were taken   wait, longer each time; then what is first in each goes alone, and last
turned down whole                       send no more in this round; then the same: if others are taken, it is refused
taken                                   are as all others
refused alone                           are as all others, or still go alone: what is behind it may be no better

Where nothing is taken of what was tried it may be the endpoint that is at fault. While that is in doubt a few go
alone in a round, first of those lanes that were tried least; once one is taken, of whomever, all is as before.
"""

import random
import time
from collections.abc import Callable, Collection

import msgspec

from adapter import ingestion
from adapter.pace import Pace
from adapter.rounds import backoff_s
from adapter.sending import TRIED

#: So many go alone in a round while the endpoint is in doubt.
PROBES = 2
#: So many that go alone as they are may be turned down in a row, and nothing be taken, before that is in doubt.
IN_A_ROW = 40


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """A lane whose first entry failed alone, while others were taken; or of which a whole batch was turned down."""

    failures: int  #: how often since this process knows of it
    taken: int  #: how much the endpoint had taken, from whomever, when it failed last
    until: float  #: when it may be tried again
    turned_down: bool = False


class Apart:
    """`begin` a round: those of a lane go least tried first, or alone, or not at all. Then say what came."""

    def __init__(
        self,
        pace: Pace,
        *,
        in_order: bool = True,
        patience: int = 0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._pace = pace
        self._in_order = in_order  # of a lane
        self._patience = patience  # so many in a row are turned down before the endpoint is in doubt
        self._clock = clock
        self._uniform = uniform
        self._lanes: dict[int, Lane] = {}
        self._doubted = -1  # how much the endpoint had taken when something was turned down last
        self._in_vain = 0  # probes of this round
        self._n_refused: dict[int, int] = {}  # since the endpoint had taken so much: how many
        self._turned_down: dict[int, int] = {}  # lane -> how much the endpoint had taken, before it is in doubt
        #: lanes of which this round sends nothing more: nothing is overtaken
        self.held_up: set[int] = set()

    @property
    def in_doubt(self) -> bool:
        """Whether the endpoint may be at fault: it turned down whatever was tried last, and took nothing since."""
        return self._pace.taken == self._doubted

    def goes_alone(self, lane: int) -> bool:
        """Whether what is first in a lane makes a batch of its own."""
        return self.in_doubt or lane in self._lanes

    def tries(self, lane: int) -> int:
        """How often it was tried in vain: who was least goes first."""
        return one.failures if (one := self._lanes.get(lane)) else 0

    def begin(self, *, goes_on: bool = False) -> None:
        """A round begins, or goes on with what is behind those whom it passed over."""
        now = self._clock()
        self._trust()
        held_up = {lane for lane, one in self._lanes.items() if one.until > now}
        self.held_up = held_up | self.held_up if goes_on else held_up
        self._in_vain, self._turned_down = 0, {}

    def others_passed(self, lane: int) -> bool | None:
        """Whether the endpoint has taken others since this lane waits by itself; None if it does not."""
        one = self._lanes.get(lane)
        return None if one is None else self._pace.taken > one.taken

    def refuses(self, lane: int) -> bool:
        """Whether one of this lane that is turned down alone is itself at fault, if another was taken lately."""
        passed = self.others_passed(lane)
        # An endpoint that begins to turn everything down has taken others just before.
        return self._pace.in_vain < IN_A_ROW if passed is None else passed

    def turned_down(self, lanes: Collection[int]) -> bool:
        """A batch of these lanes was turned down whole; returns whether enough was in this round.

        Otherwise another batch may fare better.
        """
        is_probe = self.in_doubt
        self._in_vain += is_probe
        self._turned_down |= dict.fromkeys(lanes, self._pace.taken)
        if is_probe or self._pace.in_vain >= self._patience:
            self.doubt()
        return self._in_vain >= PROBES

    def doubt(self) -> None:
        """If the endpoint took nothing since, let the lanes of what it turned down wait by themselves."""
        lanes = {lane for lane, taken in self._turned_down.items() if taken == self._pace.taken}
        self._turned_down = {}
        if lanes:
            if self._in_order or not self.in_doubt:
                self.held_up |= lanes
            self._doubted = self._pace.taken
            self._wait(lanes, self._clock())

    def make_way(self, lanes: Collection[int]) -> None:
        """Where so few lanes fill a whole claim, let the next round pass over them, to those behind."""
        if len(lanes) <= TRIED:  # of many it is the endpoint that is at fault
            self._wait(lanes, self._clock() + 2 * ingestion.FAULT_WAIT_S)

    def nobody_is_behind(self) -> bool:
        """Nobody was found behind those who made way; returns whether there are some, to be tried at once."""
        now = self._clock()
        waiting = [lane for lane, one in self._lanes.items() if one.turned_down and one.until > now]
        for lane in waiting:
            self._lanes[lane] = msgspec.structs.replace(self._lanes[lane], until=now)
        return bool(waiting)

    def answered(self, lanes: Collection[int], failed: Collection[int], *, all_refused: bool) -> None:
        """A batch of these lanes was answered; what was first in those that `failed` did so alone."""
        before = {lane: self._lanes.pop(lane, None) for lane in lanes}
        self._trust()
        if all_refused:
            self._lanes |= {lane: one for lane, one in before.items() if one and one.turned_down}
            self._refused_one()
        for lane in failed:
            failures = 1 + (one.failures if (one := before[lane]) else 0)
            until = self._clock() + backoff_s(failures, None, self._uniform)
            self._lanes[lane] = Lane(failures=failures, taken=self._pace.taken, until=until)

    def _wait(self, lanes: Collection[int], until: float) -> None:
        for lane in lanes:
            failures = 1 + self.tries(lane)
            self._lanes[lane] = Lane(failures=failures, taken=self._pace.taken, until=until, turned_down=True)

    def _refused_one(self) -> None:
        """That others were taken tells of no more than so many; then they have to be again."""
        taken = self._pace.taken
        self._n_refused = {taken: self._n_refused.get(taken, 0) + 1}
        if self._n_refused[taken] >= IN_A_ROW:
            self._n_refused = {}
            for lane, one in self._lanes.items():
                self._lanes[lane] = msgspec.structs.replace(one, taken=taken if one.turned_down else one.taken)

    def _trust(self) -> None:
        """Of many it was the endpoint that was at fault, and they do not all go alone now that it takes others."""
        passed = [lane for lane, one in self._lanes.items() if one.turned_down and self.others_passed(lane)]
        if len(passed) > TRIED:
            for lane in passed:
                del self._lanes[lane]
