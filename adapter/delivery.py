"""The one way out: claim what waits, map it, post it in batches, settle it by the answer.

One thread for each endpoint, so that a slow one holds up no other, and so that a lane is in at most one unanswered
batch. Nothing is settled before its end is known: whatever happens in between, it is sent again.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from adapter import ingestion, wire
from adapter.config import Settings
from adapter.deletes import Deletes
from adapter.deletions import Deletions
from adapter.devices import Devices
from adapter.ingestion import Outcome, Verdict
from adapter.links import UNKNOWN, Known
from adapter.parcels import Load, Parcel, Rules, failed, ready, released
from adapter.rounds import IDLE_S, Rounds, backoff_s
from adapter.store import Entry, Settled, Store
from schemas import segment
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS, IMPORT
from schemas.segment import Message

logger = logging.getLogger(__name__)

ENDPOINTS = (IMPORT, ENGAGE, COUNTERS, GROUPS)
#: A claim is as large as a batch: most messages make one record.
CLAIM_ENTRIES = ingestion.MAX_BATCH_RECORDS
#: How often to look for what has waited for a visitor too long.
OLD_EVERY_S = 3_600.0
#: How long a thread may take to end once its connection was shut.
HANG_UP_S = 2.0
#: A record may be refused on a bare 400 only if the same endpoint took another one so recently (design 3.9).
TRUST_S = 600.0
#: So many parts of one batch may be turned down, and none taken, before the endpoint is held to be at fault.
MAX_TURNED_DOWN = 200
#: Then so many of its records are tried alone.
TRIED = 16


class Delivery:
    """The delivery threads of one process."""

    def __init__(self, store: Store, settings: Settings, base_url: str) -> None:
        self._lines: list[Rounds] = [
            Line(store, endpoint, settings, ingestion.Client(settings, base_url)) for endpoint in ENDPOINTS
        ]
        if settings.deletion_token is not None:
            self._lines.append(Deletions(store, settings))
        self._threads = [
            threading.Thread(target=line.run, name=f"delivery-{line.name}", daemon=True) for line in self._lines
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Something was put into the store."""
        for line in self._lines:
            line.awake.set()

    def stop(self, wait_s: float = wire.DEADLINE_S) -> None:
        """Claim no more; let the POSTs that are under way end within `wait_s` in all and be settled, or hang up."""
        for line in self._lines:
            line.stopping.set()
            line.awake.set()
        give_up_at = time.monotonic() + wait_s
        for line, thread in zip(self._lines, self._threads, strict=True):
            if thread.ident is None:
                continue
            thread.join(max(give_up_at - time.monotonic(), 0.0))
            # Again and again: a connection that is just being made cannot be shut yet.
            while thread.is_alive() and time.monotonic() < give_up_at + HANG_UP_S:
                line.hang_up()
                thread.join(0.05)
        for line in self._lines:
            line.close()


class Line(Rounds):
    """The way to one endpoint."""

    def __init__(
        self,
        store: Store,
        endpoint: str,
        settings: Settings,
        client: ingestion.Client,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(endpoint, uniform)
        self.endpoint = endpoint
        self.client = client
        self._store = store
        self._rules = Rules.of(settings)
        self._devices = Devices(store, self._rules.options)
        self._deletes = Deletes(store, self._rules.options, requests_deletion=settings.deletion_token is not None)
        self._after = 0  # message id of the newest entry that had to be passed over
        self._once = endpoint == COUNTERS and settings.counters == "at-most-once"
        self._clock = clock
        self._held_s = settings.held_days * 86_400
        self._look_for_old_at = clock()
        self._failures = 0
        self._took_one_at: float | None = None
        self._turned_down = 0  # parts of the batch in hand that got no for an answer
        self._took_one = False  # a record of the batch in hand was taken
        self._unsettled: tuple[Sequence[Settled], dict[str, Any]] | None = None  # what the store has not taken yet

    def hang_up(self) -> None:
        self.client.hang_up()

    def close(self) -> None:
        self.client.close()

    def work(self) -> float | None:
        """Claim, send and settle once. Returns seconds to wait: 0 for more at once, None if nothing waits."""
        if self._unsettled is not None:
            # The answer is known but not written yet: sending it all again would be the same once more.
            self._settle(*self._unsettled)
        if self.endpoint == ENGAGE and self._clock() >= self._look_for_old_at:
            self._store.expire_held(int((time.time() - self._held_s) * 1000))
            self._look_for_old_at = self._clock() + OLD_EVERY_S
        passed_over, self._after = self._after, 0
        if not passed_over:
            self._deletes.begin()
        entries = self._store.claim(self.endpoint, CLAIM_ENTRIES, after=passed_over)
        if not entries:
            return IDLE_S if passed_over else None
        later: Verdict | None = None
        deliver = self._deliver_once if self._once else self._deliver
        waiting = self._read(entries)
        if not waiting:
            # Nothing of it can go out yet, and nobody else's entries shall wait behind it.
            self._after = max(entry.message_id for entry in entries)
        while waiting and not self.stopping.is_set():
            batch, settled = self._next_batch(waiting)
            if settled:
                self._settle(settled, {})
            if batch:
                verdict = deliver(batch)
                if verdict.outcome is Outcome.LATER:
                    later = verdict
                    if not verdict.turned_down:
                        break
            self._devices.answered()
        self._failures = 0 if later is None else self._failures + 1
        return 0.0 if later is None else backoff_s(self._failures, later.wait_s, self._uniform)

    def _read(self, entries: Sequence[Entry]) -> deque[tuple[Entry, Message]]:
        """The claimed entries with their messages; what is known of their devices is read once for all."""
        found: deque[tuple[Entry, Message]] = deque()
        unread = []
        for entry in entries:
            try:
                found.append((entry, segment.read(entry.body)))
            except Exception as error:
                unread.append(failed(entry, error))
        if unread:
            self._settle(unread, {})
        if self.endpoint == IMPORT:
            self._devices.begin([message for _, message in found])
        return deque(self._deletes.sift(found)) if self.endpoint == ENGAGE else found

    def _next_batch(self, waiting: deque[tuple[Entry, Message]]) -> tuple[list[Parcel], list[Settled]]:
        """Take from the front what fits into one batch and depends on none of it, and what ends unsent."""
        batch: list[Parcel] = []
        settled: list[Settled] = []
        load = Load()
        while waiting and not (self._once and batch):
            entry, message = waiting[0]
            known = self._known(entry, message)
            if known is None:
                break
            if message.type == segment.HELD:
                message = self._with_what_waits(message)
            one = ready(entry, message, self._rules, known)
            if isinstance(one, Parcel):
                if not load.takes(one):
                    break
                if message.type == "delete":
                    one.erasure = self._deletes.erasure(entry, message)
                batch.append(one)
            else:
                settled.append(one)
            waiting.popleft()
            if self.endpoint == IMPORT and (late := self._devices.take(message, entry.time_ms, one.effect)):
                one.notes += late
        return batch, settled

    def _known(self, entry: Entry, message: Message) -> Known | None:
        """What is known of a message's device, or of the devices of a delete; None if that is being decided."""
        if self.endpoint == IMPORT:
            return self._devices.of(message)
        if message.type == "delete" and (person := self._deletes.person(entry)) is not None:
            return Known(devices=person.devices)
        return UNKNOWN

    def _with_what_waits(self, message: Message) -> Message:
        waits = self._store.waiting(message.anonymous_id or "", message.user_id or "")
        if waits is None:
            return message
        held: Message = msgspec.structs.replace(  # type: ignore[type-var]  # every Message is a Struct
            message,
            traits=waits.traits,
            touch=waits.touch,
            n_entries=waits.n_entries,
            held_at_ms=waits.held_at_ms,
        )
        return held

    def _settle(self, settled: Sequence[Settled], kept: dict[str, Any]) -> None:
        self._unsettled = (settled, kept)
        self._store.settle(settled, kept, released)
        self._unsettled = None

    def _deliver_once(self, batch: Sequence[Parcel]) -> Verdict:
        """Send one parcel that counts, at most once: alone, for of a batch that was taken in part nobody knows which.

        The attempt is on disk before the POST, so that not even a death in between makes a second one.
        """
        (parcel,) = batch
        if parcel.entry.attempted:
            verdict = Verdict(outcome=Outcome.DONE, unknown=True, text="the adapter ended before the answer")
        else:
            self._store.mark_attempt(parcel.entry, True)
            verdict = self._post(batch)
        settled: list[Settled] = []
        if verdict.unknown:
            settled = [_refused(parcel, verdict.text, "may_have_been_applied")]
        elif verdict.outcome is Outcome.DONE:
            settled = _settled(batch, verdict)
        elif verdict.outcome is Outcome.HALVE and self._took_one_lately():
            settled = [_refused(parcel, verdict.text)]
        else:
            self._store.mark_attempt(parcel.entry, False)
            verdict = verdict if verdict.outcome is Outcome.LATER else _all_turned_down(verdict.text)
        self._end(settled, verdict)
        return verdict

    def _deliver(self, batch: Sequence[Parcel]) -> Verdict:
        """Send one batch and settle what can be; LATER if some of it must be sent again."""
        self._turned_down, self._took_one = 0, False
        settled, suspects, verdict = self._send(batch, batch)
        if suspects and (self._took_one or (len(batch) == 1 and self._took_one_lately())):
            settled += [_refused(parcel, text) for parcel, text in suspects]
        elif suspects and verdict.outcome is not Outcome.LATER:
            # Nothing at all was taken, so it may well be the endpoint that is at fault, not the record.
            verdict = _all_turned_down(suspects[0][1])
        self._end(settled, verdict)
        return verdict

    def _end(self, settled: Sequence[Settled], verdict: Verdict) -> None:
        """Settle what is known, say in the log how it went, and keep the answer for `adapter status`."""
        if refused := sum(one.state == "refused" for one in settled):
            logger.warning("records were refused", extra={"endpoint": self.endpoint, "count": refused})
        if verdict.outcome is Outcome.LATER:
            # Not what the endpoint said: it may quote a record. `adapter status` shows it.
            answer = verdict.text.partition(":")[0]
            log = logger.error if verdict.fault else logger.warning
            log("the endpoint did not take a batch", extra={"endpoint": self.endpoint, "answer": answer})
        noted = {"text": verdict.text, "fault": verdict.fault, "at": time.time()}
        self._settle(settled, {f"last_answer_{self.endpoint}": noted})

    def _send(
        self, part: Sequence[Parcel], batch: Sequence[Parcel]
    ) -> tuple[list[Settled], list[tuple[Parcel, str]], Verdict]:
        """Post a part of a batch, in halves where its answer asks for that.

        Gives what is settled, single parcels that were turned down without detail, and the verdict that ended it.
        """
        verdict = self._post(part)
        if verdict.outcome is Outcome.DONE:
            return _settled(part, verdict), [], verdict
        if verdict.outcome is Outcome.LATER:
            return [], [], verdict
        self._turned_down += 1
        if self._turned_down > MAX_TURNED_DOWN and not self._took_one:
            self._try_some(batch)
            if not self._took_one:
                return [], [], _all_turned_down(verdict.text)
        if len(part) == 1:
            return [], [(part[0], verdict.text)], verdict
        middle = len(part) // 2
        settled, suspects, verdict = self._send(part[:middle], batch)
        if verdict.outcome is not Outcome.LATER:
            more, more_suspects, verdict = self._send(part[middle:], batch)
            settled, suspects = settled + more, suspects + more_suspects
        return settled, suspects, verdict

    def _post(self, parcels: Sequence[Parcel]) -> Verdict:
        records = [record for parcel in parcels for record in parcel.records]
        verdict = self.client.post(self.client.request(self.endpoint, records), len(records))
        if verdict.outcome is Outcome.DONE and len(verdict.refused) < len(records):
            self._took_one, self._took_one_at = True, self._clock()
        return verdict

    def _try_some(self, batch: Sequence[Parcel]) -> None:
        """Is it the endpoint, or just this end of the batch? Post a few of it alone, far from each other.

        They are sent again in their turn: what is taken twice here is removed or the same (an event, a `$set`).
        """
        for parcel in batch[:: max(1, len(batch) // TRIED)]:
            if self._took_one:
                return
            self._post([parcel])

    def _took_one_lately(self) -> bool:
        return self._took_one_at is not None and self._clock() - self._took_one_at < TRUST_S


def _settled(batch: Sequence[Parcel], verdict: Verdict) -> list[Settled]:
    """An entry of several records is refused with the first of them that is."""
    settled, index = [], 0
    notes = verdict.notes
    for parcel in batch:
        after = index + len(parcel.records)
        reasons = [verdict.refused[i] for i in range(index, after) if i in verdict.refused] if verdict.refused else []
        index = after
        if reasons:
            settled.append(_refused(parcel, reasons[0]))
        else:
            settled.append(
                Settled(
                    entry=parcel.entry,
                    state="delivered",
                    notes=parcel.notes + notes,
                    effect=parcel.effect,
                    erasure=parcel.erasure,
                )
            )
            notes = ()  # of the batch, so counted once
    return settled


def _refused(parcel: Parcel, detail: str, reason: str = "refused_by_mixpanel") -> Settled:
    return Settled(
        entry=parcel.entry, state="refused", reason=reason, detail=detail, notes=parcel.notes, erasure=parcel.erasure
    )


def _all_turned_down(text: str) -> Verdict:
    fault = f"nothing is taken; the last answer was {text}"
    return Verdict(outcome=Outcome.LATER, turned_down=True, wait_s=ingestion.FAULT_WAIT_S, fault=fault, text=fault)
