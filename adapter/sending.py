"""Batches sent to one endpoint, in halves where an answer asks for that, to find the records it turns down."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from adapter import ingestion
from adapter.errors import LanesLost
from adapter.ingestion import Outcome, Verdict
from adapter.pace import Pace
from adapter.parcels import Parcel
from adapter.store import Settled
from schemas.mixpanel import IMPORT

#: A record may be refused on a bare 400 only if the same endpoint took another one so recently (design 3.9).
TRUST_S = 600.0
#: So many parts of one batch may be turned down, and none taken, before some others are tried alone.
MAX_TURNED_DOWN = 200
#: So many may fail, and nothing be taken from anybody: to find one record in front of a full batch takes twelve.
MAX_FAILED = 12
#: So many others are then tried, to see whether it is the endpoint that is at fault, or down.
TRIED = 16


@dataclass(kw_only=True)
class Sent:
    """What became of a batch, or of a part of it."""

    verdict: Verdict  #: LATER if some of it must be sent again
    settled: list[Settled] = field(default_factory=list)
    suspects: list[tuple[Parcel, str]] = field(default_factory=list)  #: turned down alone, and with which words
    stuck: list[Parcel] = field(default_factory=list)  #: failed alone, while others were taken


class Sender:
    """Sends one batch at a time. `may_send` says whether the lanes of the batch in hand are still ours."""

    def __init__(self, endpoint: str, client: ingestion.Client, pace: Pace, stopping: threading.Event) -> None:
        self.endpoint = endpoint
        self.client = client
        self.may_send: Callable[[], bool] = lambda: True
        self._pace = pace
        self._stopping = stopping
        self._took_one = False  # a record of the batch in hand was taken
        self._taken = 0  # how much the endpoint had taken, from whomever, when that was last looked at
        self._in_vain: Counter[Outcome] = Counter()  # parts of the batch that were not taken
        self._halves_failures = False
        self._stuck: set[int] = set()  # lanes whose first entry failed: nothing overtakes it

    def deliver(self, batch: Sequence[Parcel], *, halve_failures: bool = False, refuses_alone: bool = True) -> Sent:
        """Send a batch; `halve_failures` looks for the record by which it fails again and again.

        With `refuses_alone` a batch of one that is turned down is refused if another was taken lately.

        Raises LanesLost, with nothing known of what was sent since the last answer.
        """
        self._took_one, self._taken = False, self._pace.taken
        self._in_vain, self._stuck = Counter(), set()
        self._halves_failures = halve_failures
        sent = self._send(batch, [])
        if sent.suspects and (self._took_one or (refuses_alone and len(batch) == 1 and self.took_one_lately())):
            sent.settled += [refused(parcel, text) for parcel, text in sent.suspects]
        elif sent.suspects and sent.verdict.outcome is not Outcome.LATER:
            # Nothing at all was taken, so it may well be the endpoint that is at fault, not the record.
            sent.verdict = all_turned_down(sent.suspects[0][1])
        return sent

    def post(self, parcels: Sequence[Parcel]) -> Verdict:
        """One POST, when it is its turn. Raises LanesLost instead if it may not be made any more."""
        records = [record for parcel in parcels for record in parcel.records]
        request = self.client.request(self.endpoint, records)
        self._wait_for_turn(len(records), sum(parcel.n_bytes for parcel in parcels))
        verdict = Verdict(outcome=Outcome.LATER)
        try:
            verdict = self.client.post(request, len(records))
        finally:
            self._pace.ended(verdict, len(records), is_down=not self._halves_failures)
        self._took_one |= verdict.outcome is Outcome.DONE and len(verdict.refused) < len(records)
        return verdict

    def took_one_lately(self) -> bool:
        """Whether the endpoint took a record so recently that a no is the record's own fault."""
        return self._pace.took_within(TRUST_S)

    def _wait_for_turn(self, n_records: int, n_bytes: int) -> None:
        while True:
            if not self.may_send():
                raise LanesLost("the lanes have gone to another process")
            if not (wait_s := self._pace.admit(n_records, n_bytes)):
                return
            if self._stopping.wait(min(wait_s, 1.0)):
                raise LanesLost("delivery was stopped")

    def _send(self, part: Sequence[Parcel], after: Sequence[Parcel]) -> Sent:
        """Post a part of a batch, in halves where its answer asks for that; `after` is the rest of the batch."""
        verdict = self.post(part)
        if verdict.none_stored:
            verdict = self.post(part)
        if verdict.outcome is Outcome.DONE:
            return Sent(verdict=verdict, settled=settled(part, verdict))
        failed = verdict.outcome is Outcome.LATER
        if failed and (not self._halves_failures or verdict.too_many or verdict.fault or self._pace.is_open):
            return Sent(verdict=verdict)
        if self._is_enough(verdict.outcome) and self._is_at_fault(part, after, failed=failed):
            return Sent(verdict=verdict if failed else all_turned_down(verdict.text))
        if len(part) > 1:
            return self._halves(part, after)
        if not failed:
            return Sent(verdict=verdict, suspects=[(part[0], verdict.text)])
        self._stuck.add(part[0].entry.lane)
        return Sent(verdict=Verdict(outcome=Outcome.HALVE, text=verdict.text), stuck=[part[0]])

    def _halves(self, part: Sequence[Parcel], after: Sequence[Parcel]) -> Sent:
        middle = len(part) // 2
        sent = self._send(part[:middle], [*part[middle:], *after])
        if sent.verdict.outcome is not Outcome.LATER:
            rest = [parcel for parcel in part[middle:] if parcel.entry.lane not in self._stuck]
            more = self._send(rest, after) if rest else Sent(verdict=sent.verdict)
            sent = Sent(
                verdict=more.verdict,
                settled=sent.settled + more.settled,
                suspects=sent.suspects + more.suspects,
                stuck=sent.stuck + more.stuck,
            )
        return sent

    def _is_enough(self, outcome: Outcome) -> bool:
        """Whether so much was tried in vain that it may be the endpoint, and not the records."""
        if self._pace.taken > self._taken:
            self._taken = self._pace.taken
            self._in_vain[Outcome.LATER] = 0
        self._in_vain[outcome] += 1
        if outcome is Outcome.LATER:
            return self._in_vain[outcome] > MAX_FAILED
        return self._in_vain[outcome] > MAX_TURNED_DOWN and not self._took_one

    def _is_at_fault(self, part: Sequence[Parcel], after: Sequence[Parcel], *, failed: bool) -> bool:
        """Is it the endpoint, or just this end of the batch? Post a few others alone, far from each other.

        They are sent again in their turn: what is taken twice here is removed or the same (an event, a `$set`).
        """
        # Nothing waits for one that is turned down alone: once another is taken, it is refused.
        passed = self._stuck | ({parcel.entry.lane for parcel in part} if failed or len(part) > 1 else set())
        others = [parcel for parcel in after if parcel.entry.lane not in passed]
        if not failed and not others and len(part) > 1:
            return False  # there is nobody to ask before the one is found behind which its lane goes on
        first = {parcel.entry.lane: parcel for parcel in reversed(after)}
        if self._takes_one({parcel.entry.lane: first[parcel.entry.lane] for parcel in _spread(others)}.values()):
            return False
        # Events are put in order by their time, so of one lane any may be asked.
        return failed or self.endpoint != IMPORT or not self._takes_one(_spread(after))

    def _takes_one(self, tried: Iterable[Parcel]) -> bool:
        return any(not self._pace.is_open and self.post([one]).outcome is Outcome.DONE for one in tried)


def _spread(parcels: Sequence[Parcel]) -> Sequence[Parcel]:
    """A few of them, far from each other."""
    return parcels[:: max(1, -(-len(parcels) // TRIED))]


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
