"""Batches sent to one endpoint, in halves where an answer asks for that, to find the records it turns down."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adapter import ingestion
from adapter.errors import LanesLost
from adapter.ingestion import Outcome, Verdict
from adapter.pace import Pace
from adapter.parcels import Parcel
from adapter.store import Settled

#: A record may be refused on a bare 400 only if the same endpoint took another one so recently (design 3.9).
TRUST_S = 600.0
#: So many parts of one batch may be turned down, and none taken, before the endpoint is held to be at fault.
MAX_TURNED_DOWN = 200
#: Then so many of its records are tried alone.
TRIED = 16
#: So many parts of one batch may fail, and none be taken, before the endpoint is held to be down: a record that fails
#: at the front of a full batch does so in twelve.
MAX_FAILED = 12


@dataclass(kw_only=True)
class Sent:
    """What became of a batch, or of a part of it."""

    verdict: Verdict  #: LATER if some of it must be sent again
    settled: list[Settled] = field(default_factory=list)
    suspects: list[tuple[Parcel, str]] = field(default_factory=list)  #: turned down alone, and with which words
    stuck: list[Parcel] = field(default_factory=list)  #: failed alone, while others were taken


class Sender:
    """Sends one batch at a time. `may_send` says whether the lanes of the batch in hand are still ours."""

    def __init__(
        self,
        endpoint: str,
        client: ingestion.Client,
        pace: Pace,
        stopping: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self.client = client
        self.may_send: Callable[[], bool] = lambda: True
        self._pace = pace
        self._stopping = stopping
        self._clock = clock
        self._took_one_at: float | None = None
        self._turned_down = 0  # parts of the batch in hand that got no for an answer
        self._failed = 0  # parts of it that got none
        self._took_one = False  # a record of it was taken
        self._halves_failures = False
        self._stuck: set[int] = set()  # lanes whose first entry failed: nothing overtakes it

    def deliver(self, batch: Sequence[Parcel], *, halve_failures: bool = False) -> Sent:
        """Send a batch; `halve_failures` looks for the record by which it fails again and again.

        Raises LanesLost, with nothing known of what was sent since the last answer.
        """
        self._turned_down, self._failed, self._took_one = 0, 0, False
        self._halves_failures, self._stuck = halve_failures, set()
        sent = self._send(batch, batch)
        if sent.suspects and (self._took_one or (len(batch) == 1 and self.took_one_lately())):
            sent.settled += [refused(parcel, text) for parcel, text in sent.suspects]
        elif sent.suspects and sent.verdict.outcome is not Outcome.LATER:
            # Nothing at all was taken, so it may well be the endpoint that is at fault, not the record.
            sent.verdict = all_turned_down(sent.suspects[0][1])
        return sent

    def post(self, parcels: Sequence[Parcel]) -> Verdict:
        """One POST, when it is its turn. Raises LanesLost instead if it may not be made any more."""
        records = [record for parcel in parcels for record in parcel.records]
        n_bytes = sum(parcel.n_bytes for parcel in parcels)
        while wait_s := self._pace.admit(len(records), n_bytes):
            if self._stopping.wait(min(wait_s, 1.0)) or not self.may_send():
                raise LanesLost("delivery was stopped, or the lanes have gone to another process")
        if not self.may_send():
            self._pace.ended(Verdict(outcome=Outcome.HALVE))
            raise LanesLost("the lanes have gone to another process")
        verdict = self.client.post(self.client.request(self.endpoint, records), len(records))
        self._pace.ended(verdict)
        if verdict.outcome is Outcome.DONE and len(verdict.refused) < len(records):
            self._took_one, self._took_one_at = True, self._clock()
        return verdict

    def took_one_lately(self) -> bool:
        """Whether the endpoint took a record so recently that a no is the record's own fault."""
        return self._took_one_at is not None and self._clock() - self._took_one_at < TRUST_S

    def _send(self, part: Sequence[Parcel], batch: Sequence[Parcel]) -> Sent:
        """Post a part of a batch, in halves where its answer asks for that."""
        verdict = self.post(part)
        if verdict.outcome is Outcome.DONE:
            return Sent(verdict=verdict, settled=settled(part, verdict))
        if verdict.outcome is Outcome.LATER:
            self._failed += 1
            is_down = verdict.too_many or verdict.fault or (self._failed > MAX_FAILED and not self._took_one)
            if is_down or not self._halves_failures:
                return Sent(verdict=verdict)
            if len(part) == 1:
                self._stuck.add(part[0].entry.lane)
                return Sent(verdict=Verdict(outcome=Outcome.HALVE, text=verdict.text), stuck=[part[0]])
        else:
            self._turned_down += 1
            if self._turned_down > MAX_TURNED_DOWN and not self._took_one:
                self._try_some(batch)
                if not self._took_one:
                    return Sent(verdict=all_turned_down(verdict.text))
            if len(part) == 1:
                return Sent(verdict=verdict, suspects=[(part[0], verdict.text)])
        return self._halves(part, batch)

    def _halves(self, part: Sequence[Parcel], batch: Sequence[Parcel]) -> Sent:
        middle = len(part) // 2
        sent = self._send(part[:middle], batch)
        if sent.verdict.outcome is not Outcome.LATER:
            rest = [parcel for parcel in part[middle:] if parcel.entry.lane not in self._stuck]
            more = self._send(rest, batch) if rest else Sent(verdict=sent.verdict)
            sent = Sent(
                verdict=more.verdict,
                settled=sent.settled + more.settled,
                suspects=sent.suspects + more.suspects,
                stuck=sent.stuck + more.stuck,
            )
        return sent

    def _try_some(self, batch: Sequence[Parcel]) -> None:
        """Is it the endpoint, or just this end of the batch? Post a few of it alone, far from each other.

        They are sent again in their turn: what is taken twice here is removed or the same (an event, a `$set`).
        """
        for parcel in batch[:: max(1, len(batch) // TRIED)]:
            if self._took_one:
                return
            self.post([parcel])


def settled(batch: Sequence[Parcel], verdict: Verdict) -> list[Settled]:
    """What was done. An entry of several records is refused with the first of them that is."""
    ended, index = [], 0
    notes = verdict.notes
    for parcel in batch:
        after = index + len(parcel.records)
        reasons = [verdict.refused[i] for i in range(index, after) if i in verdict.refused] if verdict.refused else []
        index = after
        if reasons:
            ended.append(refused(parcel, reasons[0]))
        else:
            ended.append(
                Settled(
                    entry=parcel.entry,
                    state="delivered",
                    notes=parcel.notes + notes,
                    effect=parcel.effect,
                    erasure=parcel.erasure,
                )
            )
            notes = ()  # of the batch, so counted once
    return ended


def refused(parcel: Parcel, detail: str, reason: str = "refused_by_mixpanel") -> Settled:
    return Settled(
        entry=parcel.entry, state="refused", reason=reason, detail=detail, notes=parcel.notes, erasure=parcel.erasure
    )


def all_turned_down(text: str) -> Verdict:
    """Another batch may fare better; a person must look."""
    fault = f"nothing is taken; the last answer was {text}"
    return Verdict(outcome=Outcome.LATER, turned_down=True, wait_s=ingestion.FAULT_WAIT_S, fault=fault, text=fault)
