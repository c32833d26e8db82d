"""The one way out: claim what waits, map it, send it in batches, settle it by the answer.

A few threads for each endpoint, each with lanes of its own, so that a slow endpoint holds up no other, and so that a
lane is in at most one unanswered batch. Nothing is settled before its end is known: whatever happens in between, it
is sent again.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import msgspec

from adapter import ingestion
from adapter.apart import IN_A_ROW, Apart
from adapter.config import Settings
from adapter.deletes import Deletes
from adapter.deletions import Deletions
from adapter.devices import Devices
from adapter.errors import LanesLost, StoreUnavailable
from adapter.ingestion import Outcome, Verdict
from adapter.links import UNKNOWN, Known
from adapter.pace import Limits, Pace
from adapter.parcels import Load, Parcel, Rules, Waits, at_once, damaged, failed, ready, released
from adapter.rounds import IDLE_S, Rounds, backoff_s
from adapter.sending import Sender, Sent, all_turned_down, refused, settled
from adapter.store import Entry, Epochs, Settled, Store, share_of
from adapter.trials import Trials
from schemas import segment
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS, IMPORT
from schemas.segment import Message

logger = logging.getLogger(__name__)

ENDPOINTS = (IMPORT, ENGAGE, COUNTERS, GROUPS)
#: A claim is as large as a batch: most messages make one record.
CLAIM_ENTRIES = ingestion.MAX_BATCH_RECORDS
#: Threads for each endpoint: with half a second to an answer they send what one core can map.
LINES = 4
#: How often to see to the lanes of this process.
LEASING_S = 1.0
#: How often to look for what has waited for a visitor, been refused, or been remembered too long.
OLD_EVERY_S = 3_600.0
#: How often to look below the floor: a fail-over that lost commits may be noticed by nothing else.
FLOOR_EVERY_S = 60.0
#: How long a POST under way may take when delivery stops: what is settled then still is before 25 s are over.
LAST_POSTS_S = 15.0
#: How long a thread may take to end once its connection was shut.
HANG_UP_S = 2.0
#: A batch that failed so often while others were taken is halved.
HALVED_AFTER = 5
#: An entry that alone fails so often, and for so long, while others are taken is refused.
GIVEN_UP_AFTER, GIVEN_UP_AFTER_S = 20, 86_400.0


class Delivery:
    """The delivery threads of one process."""

    def __init__(self, store: Store, settings: Settings, base_url: str) -> None:
        self._store = store
        self._lines: dict[str, list[Line]] = {}
        limits = Limits(
            senders=settings.senders,
            records_a_minute=0 if settings.delivers_to_loopback else settings.max_records_a_minute,
            bytes_a_minute=0 if settings.delivers_to_loopback else settings.max_bytes_a_minute,
        )
        n_lines = min(LINES, settings.senders)
        mapping = threading.Lock()
        paces = {path: Pace(limits, processes=lambda: store.leases.workers) for path in (IMPORT, ENGAGE, GROUPS)}
        for endpoint in ENDPOINTS:
            pace = paces[ingestion.PATHS.get(endpoint, endpoint)]
            self._lines[endpoint] = [
                Line(
                    store,
                    endpoint,
                    settings,
                    ingestion.Client(settings, base_url),
                    pace,
                    mapping,
                    part=n,
                    parts=n_lines,
                )
                for n in range(n_lines)
            ]
        rounds: list[Rounds] = [line for lines in self._lines.values() for line in lines]
        if settings.deletion_token is not None:
            rounds.append(Deletions(store, settings))
        self._leasing = Leasing(store, self.wake_all)
        self._threads = {one: _thread(one) for one in rounds}
        self._leasing_thread = _thread(self._leasing)

    def start(self) -> None:
        for thread in (self._leasing_thread, *self._threads.values()):
            thread.start()

    def wake(self, put: Collection[tuple[str, int]]) -> None:
        """Something was put into the store, for these endpoints and lanes."""
        for endpoint, part in {(endpoint, share_of(lane) % len(self._lines[endpoint])) for endpoint, lane in put}:
            self._lines[endpoint][part].awake.set()

    def wake_all(self) -> None:
        """There may be something to do anywhere."""
        for one in self._threads:
            one.awake.set()

    def stop(self, wait_s: float = LAST_POSTS_S) -> None:
        """Claim no more; let the POSTs that are under way end within `wait_s` in all and be settled, or hang up.

        Then the lanes are given up, for other processes to go on with at once.
        """
        for one in self._threads:
            one.stopping.set()
            one.awake.set()
        give_up_at = time.monotonic() + wait_s
        for one, thread in self._threads.items():
            if thread.ident is None:
                continue
            thread.join(max(give_up_at - time.monotonic(), 0.0))
            # Again and again: a connection that is just being made cannot be shut yet.
            while thread.is_alive() and time.monotonic() < give_up_at + HANG_UP_S:
                one.hang_up()
                thread.join(0.05)
        self._leasing.stopping.set()
        self._leasing.awake.set()
        if self._leasing_thread.ident is not None:
            self._leasing_thread.join(HANG_UP_S)
        with suppress(StoreUnavailable):  # then they run out by themselves
            self._store.leases.give_up()
        for one in self._threads:
            one.close()


def _thread(one: Rounds) -> threading.Thread:
    return threading.Thread(target=one.run, name=f"delivery-{one.name}", daemon=True)


class Leasing(Rounds):
    """Keeps the lanes of this process, and takes what others leave."""

    def __init__(self, store: Store, taken: Callable[[], None]) -> None:
        super().__init__("leases")
        self._leases = store.leases
        self._taken = taken

    def work(self) -> float | None:
        if self._leases.renew():
            self._taken()
        return LEASING_S

    def hang_up(self) -> None:
        """It waits for the store alone."""

    def close(self) -> None:
        """It holds no connection of its own."""


class Line(Rounds):
    """The way to one endpoint for some of the lanes."""

    def __init__(
        self,
        store: Store,
        endpoint: str,
        settings: Settings,
        client: ingestion.Client,
        pace: Pace | None = None,
        mapping: AbstractContextManager[Any] | None = None,
        *,
        part: int = 0,
        parts: int = 1,
        uniform: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(f"{endpoint}-{part}", uniform)
        self.endpoint = endpoint
        self._store = store
        self._part, self._parts = part, parts
        # One thread of a process maps at a time: together they are no faster, and the store waits for all of them.
        self._mapping = mapping or nullcontext()
        self._pace = pace or Pace(Limits(), clock=clock, uniform=uniform)
        self._sender = Sender(endpoint, client, self._pace, self.stopping)
        self._rules = Rules.of(settings)
        self._trials = Trials(store, endpoint, client, self._rules, self.stopping)
        self._devices = Devices(store, self._rules.options)
        self._deletes = Deletes(store, self._rules.options, requests_deletion=settings.deletion_token is not None)
        self._epochs: Epochs = {}  # of the lanes that this round is for
        self._after = 0  # message id of the newest entry that had to be passed over
        self._floor = 0  # up to this message id nothing waits in these lanes
        self._look_below_at = clock()
        self._once = endpoint == COUNTERS and settings.counters == "at-most-once"
        self._clock = clock
        self._held_s = settings.held_days * 86_400
        self._refused_s = settings.refused_days * 86_400
        self._look_for_old_at = clock()
        self._failures = 0  # rounds in a row that have left something to be sent again
        self._taken = 0  # how much the endpoint had taken, from whomever, when that began
        self._apart = Apart(
            self._pace,
            in_order=endpoint != IMPORT and not self._once,
            patience=IN_A_ROW if self._once else 0,
            clock=clock,
            uniform=uniform,
        )
        #: what the store has not taken yet
        self._unsettled: tuple[Sequence[Settled], dict[str, Any], Epochs] | None = None

    def hang_up(self) -> None:
        self._sender.client.hang_up()

    def close(self) -> None:
        self._sender.client.close()

    def work(self) -> float | None:
        """Claim, send and settle once. Returns seconds to wait: 0 for more at once, None if nothing waits."""
        if self._unsettled is not None:
            # The answer is known but not written yet: sending it all again would be the same once more.
            self._settle(*self._unsettled)
        if wait_s := self._pace.closed_s():
            return wait_s
        with self._store.leases.use(self._part, self._parts) as epochs:
            if epochs.keys() != self._epochs.keys():
                self._after = self._floor = 0
            self._epochs = epochs
            try:
                return self._work() if epochs else None
            except LanesLost:
                return 0.0

    def _work(self) -> float | None:
        if self.endpoint == ENGAGE and 0 in self._epochs and self._clock() >= self._look_for_old_at:
            self._store.expire_held(int((time.time() - self._held_s) * 1000))
            if n_gone := self._store.expire_refused(int((time.time() - self._refused_s) * 1000)):
                logger.warning("refused messages were kept long enough and let go", extra={"count": n_gone})
            self._store.clear_seen()
            self._look_for_old_at = self._clock() + OLD_EVERY_S
        passed_over, self._after = self._after, 0
        if not passed_over:
            self._deletes.begin()
        claimed = self._claim(passed_over)
        if not claimed:
            if passed_over:
                return 0.0 if self._apart.nobody_is_behind() else IDLE_S
            return None
        later: Verdict | None = None
        entries = at_once(claimed)
        was_in_doubt, is_full = self._apart.in_doubt, len(entries) < len(claimed) or _is_full(claimed)
        deliver = self._deliver_once if self._once else self._deliver
        with self._mapping:
            entries = self._trials.acquitted(entries, lambda ended: self._settle(ended, {}, self._epochs))
            waiting = self._read(entries, goes_on=bool(passed_over))
        lanes = {entry.lane for entry, _ in waiting}
        if entries and not waiting:
            # Nothing of it can go out yet, and nobody else's entries shall wait behind it.
            self._after = max(entry.message_id for entry in entries)
        while waiting and not self.stopping.is_set():
            with self._mapping:
                batch, ended = self._next_batch(waiting)
            if ended:
                self._settle(ended, {}, self._epochs)
            if batch:
                verdict = deliver(batch)
                if verdict.outcome is Outcome.LATER:
                    later = verdict
                    if not verdict.turned_down or self._apart.turned_down(_lanes(batch)):
                        break
                if self._apart.held_up:
                    waiting = deque(one for one in waiting if one[0].lane not in self._apart.held_up)
            self._devices.answered()
        self._apart.doubt()
        if later is not None and later.turned_down and is_full:
            self._apart.make_way(lanes & self._apart.held_up | {entry.lane for entry, _ in waiting})
        if later is None or (later.turned_down and was_in_doubt and not self._apart.in_doubt):
            self._failures = 0
            return 0.0
        self._taken = self._taken if self._failures else self._pace.taken
        self._failures += 1
        return backoff_s(self._failures, later.wait_s, self._uniform)

    def _claim(self, passed_over: int) -> list[Entry]:
        """The oldest entries of these lanes; what waits for others before them is not looked at twice."""
        if self._parts == 1 and not self._store.is_shared:
            return self._store.claim(self.endpoint, CLAIM_ENTRIES, after=passed_over)
        newest, now = self._store.newest(), self._clock()
        if newest < self._floor:
            # A fail-over may lose the last commits: then message ids are given again.
            logger.error("the database has gone back: what it took last is lost", extra={"endpoint": self.name})
        if newest < self._floor or now >= self._look_below_at:
            self._floor, self._look_below_at = 0, now + FLOOR_EVERY_S
        after = max(passed_over, self._floor)
        entries = self._store.claim(self.endpoint, CLAIM_ENTRIES, after=after, shares=self._epochs.keys())
        if not passed_over:
            self._floor = min((entry.message_id for entry in entries), default=newest + 1) - 1
        return entries

    def _read(self, entries: Sequence[Entry], *, goes_on: bool) -> deque[tuple[Entry, Message]]:
        """The claimed entries with their messages; what is known of their devices is read once for all."""
        found: deque[tuple[Entry, Message]] = deque()
        unread = []
        self._apart.begin(goes_on=goes_on)
        for entry in entries:
            if entry.lane in self._apart.held_up:
                continue
            if entry.damaged:
                unread.append(damaged(entry))
                continue
            try:
                found.append((entry, segment.read(entry.body)))
            except Exception as error:
                unread.append(failed(entry, error))
        if unread:
            self._settle(unread, {}, self._epochs)
        if self.endpoint == IMPORT:
            self._devices.begin([message for _, message in found])
        ready = self._deletes.sift(found) if self.endpoint == ENGAGE else found
        # What waits by itself goes last, when it is known whether the endpoint takes others.
        return deque(sorted(ready, key=lambda one: self._apart.tries(one[0].lane)))

    def _next_batch(self, waiting: deque[tuple[Entry, Message]]) -> tuple[list[Parcel], list[Settled]]:
        """Take what fits into one batch and depends on none of it, and what ends unsent.

        What depends on the batch stays, and so does what is behind it in its lane.
        """
        batch: list[Parcel] = []
        ended: list[Settled] = []
        passed: list[tuple[Entry, Message]] = []
        lanes: set[int] = set()  # of what was passed over
        load, waits = Load(), Waits(self._store)
        while waiting:
            entry, message = waiting[0]
            if batch and (self._once or self._apart.goes_alone(entry.lane)):
                break  # it goes alone
            known = None if entry.lane in lanes else self._known(entry, message)
            if known is not None and message.type == segment.HELD:
                message = waits.fill(message, (one for _, one in waiting))
            one = None if known is None else ready(entry, message, self._rules, known)
            if one is None or (batch and isinstance(one, Settled) and self._devices.overtakes(one.effect)):
                if self._devices.asks_of_users(message):
                    break  # what is behind it in other lanes may change the answer
                lanes.add(entry.lane)
                passed.append(waiting.popleft())
                continue
            if isinstance(one, Settled):
                ended.append(one)
            elif load.takes(one):
                if message.type == "delete":
                    one.erasure = self._deletes.erasure(entry, message)
                batch.append(one)
            else:
                break
            waiting.popleft()
            if self.endpoint == IMPORT and (late := self._devices.take(message, entry.time_ms, one.effect)):
                one.notes += late
        waiting.extendleft(reversed(passed))
        return batch, ended

    def _known(self, entry: Entry, message: Message) -> Known | None:
        """What is known of a message's device, or of the devices of a delete; None if that is being decided."""
        if self.endpoint == IMPORT:
            return self._devices.of(message)
        if message.type == "delete" and (person := self._deletes.person(entry)) is not None:
            return Known(devices=person.devices)
        return UNKNOWN

    def _settle(self, ended: Sequence[Settled], kept: dict[str, Any], epochs: Epochs) -> None:
        if self.endpoint == COUNTERS:  # elsewhere a POST may be made twice
            ended = [_doubtful(one) if one.entry.attempted and one.state == "refused" else one for one in ended]
        self._unsettled = (ended, kept, epochs)
        self._store.settle(ended, kept, released, epochs)
        self._unsettled = None

    def _may_send(self) -> bool:
        return self._store.leases.still(self._epochs)

    def _deliver_once(self, batch: Sequence[Parcel]) -> Verdict:
        """Send one parcel that counts, at most once: alone, for of a batch that was taken in part nobody knows which.

        The attempt is on disk before the POST, so that not even a death in between makes a second one.
        """
        (parcel,) = batch
        refuses = self._apart.refuses(parcel.entry.lane)
        if parcel.entry.attempted:
            verdict = Verdict(outcome=Outcome.DONE, unknown=True, text="the adapter ended before the answer")
        elif not self._store.mark_attempt(parcel.entry, True, self._epochs):
            raise LanesLost("the lanes have gone to another process")
        else:
            verdict = self._post_once(parcel)
        ended: list[Settled] = []
        if verdict.unknown:
            ended = [refused(parcel, verdict.text, "may_have_been_applied")]
        elif verdict.outcome is Outcome.DONE:
            ended = settled(batch, verdict)
        elif verdict.outcome is Outcome.HALVE and refuses and self._sender.took_one_lately():
            ended = [refused(parcel, verdict.text)]
        else:
            self._store.mark_attempt(parcel.entry, False, self._epochs)
            verdict = verdict if verdict.outcome is Outcome.LATER else all_turned_down(verdict.text)
        if verdict.outcome is not Outcome.LATER:
            self._apart.answered(_lanes(batch), (), all_refused=ended[0].state == "refused")
        self._end(ended, verdict)
        return verdict

    def _post_once(self, parcel: Parcel) -> Verdict:
        self._sender.may_send = self._may_send
        try:
            return self._sender.post([parcel])
        except LanesLost:
            self._store.mark_attempt(parcel.entry, False, self._epochs)  # nothing was sent
            raise

    def _deliver(self, batch: Sequence[Parcel]) -> Verdict:
        """Send one batch and settle what can be; LATER if some of it must be sent again."""
        passed = self._apart.others_passed(batch[0].entry.lane)
        passed_this = self._failures >= HALVED_AFTER and self._pace.taken > self._taken
        others_pass = passed_this if passed is None else passed
        self._sender.may_send = self._may_send
        # What was turned down with many is refused only if another was taken since: the endpoint may be at fault.
        sent = self._sender.deliver(
            batch, halve_failures=others_pass, refuses_alone=self._apart.refuses(batch[0].entry.lane)
        )
        if sent.verdict.outcome is not Outcome.LATER:
            self._answered(sent, _lanes(batch))
        elif not sent.verdict.turned_down and others_pass:
            self._taken = self._pace.taken  # they do not pass any more
        self._end(sent.settled, sent.verdict)
        return sent.verdict

    def _answered(self, sent: Sent, lanes: set[int]) -> None:
        """Let what failed alone wait by itself, and give up what did so for a day."""
        failed, all_refused = set(), all(one.state == "refused" for one in sent.settled)
        for parcel in sent.stuck:
            lane = parcel.entry.lane
            self._apart.held_up.add(lane)
            tries, since_ms = self._store.count_try(parcel.entry)
            if tries >= GIVEN_UP_AFTER and time.time() - since_ms / 1000 >= GIVEN_UP_AFTER_S:
                sent.settled.append(refused(parcel, f"failed {tries} times: {sent.verdict.text}", "given_up"))
            else:
                failed.add(lane)
        self._apart.answered(lanes, failed, all_refused=all_refused)

    def _end(self, ended: Sequence[Settled], verdict: Verdict) -> None:
        """Settle what is known, say in the log how it went, and keep the answer for `adapter status`."""
        if n_refused := sum(one.state == "refused" for one in ended):
            logger.warning("records were refused", extra={"endpoint": self.endpoint, "count": n_refused})
        if verdict.outcome is Outcome.LATER:
            # Not what the endpoint said: it may quote a record. `adapter status` shows it.
            answer = verdict.text.partition(":")[0]
            log = logger.error if verdict.fault else logger.warning
            log("the endpoint did not take a batch", extra={"endpoint": self.endpoint, "answer": answer})
        noted = {"text": verdict.text, "fault": verdict.fault, "at": time.time()}
        self._settle(ended, {f"last_answer_{self.endpoint}": noted}, self._epochs)


def _is_full(claimed: Sequence[Entry]) -> bool:
    """Whether more may wait than could be claimed at once."""
    return len(claimed) >= CLAIM_ENTRIES or sum(len(one.body) for one in claimed) > 2 * ingestion.MAX_BATCH_BYTES


def _lanes(batch: Sequence[Parcel]) -> set[int]:
    return {parcel.entry.lane for parcel in batch}


def _doubtful(one: Settled) -> Settled:
    """Whatever it is refused for by now, a POST of it was begun: to retry it could count twice."""
    return msgspec.structs.replace(one, reason="may_have_been_applied")
