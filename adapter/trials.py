"""An entry that ends whoever has it in hand: out of memory, or by a fault in a library that is no Python.

The next process would claim it, and end, again and for ever. So what a process that did not end in order has left is
tried before it is sent: all is done to each that was claimed but the POST, with a note in the store meanwhile. What
the next one finds such a note of is tried alone. So an innocent stands accused alone for no longer than it takes to
map it, and is refused only if its processes end in just that moment, whoever ends them, two times in a row.

Not found is what ends a process only later: by what is known of its device, by what a delete looks through, by the
answer to its POST. Nor what takes too much memory only together with others: so much is not read together.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from adapter import ingestion
from adapter.parcels import Parcel, Rules, prepare
from adapter.store import Entry, Settled, Store

logger = logging.getLogger(__name__)

#: So many processes in a row may end with an entry on trial, all but the first of them with that entry alone.
MAX_DEATHS = 3
#: So many that passed are remembered: what waits for others is claimed again and again.
MAX_PASSED = 10_000


class Trials:
    """The trials of the entries of one endpoint."""

    def __init__(
        self, store: Store, endpoint: str, client: ingestion.Client, rules: Rules, stopping: threading.Event
    ) -> None:
        self._store = store
        self._endpoint = endpoint
        self._client = client
        self._rules = rules
        self._stopping = stopping
        self._passed: set[int] = set()  # message ids of those tried last

    def acquitted(self, entries: list[Entry], settle: Callable[[Sequence[Settled]], None]) -> list[Entry]:
        """Those of these entries that may be taken in hand; of the others, those that end processes are settled."""
        left_up_to = self._store.leases.left_up_to
        doubtful = [one for one in entries if one.message_id <= left_up_to and one.message_id not in self._passed]
        if not doubtful:
            return entries
        deaths = self._store.deaths(self._endpoint, [one.message_id for one in doubtful])
        guilty = [one for one in doubtful if deaths.get(one.message_id, 0) >= MAX_DEATHS]
        if guilty:
            logger.error("refused what ended processes", extra={"endpoint": self._endpoint, "count": len(guilty)})
            settle([_refused(one, deaths[one.message_id]) for one in guilty])
        innocent = [one for one in doubtful if one.message_id not in deaths]
        alone = [[one] for one in doubtful if 0 < deaths.get(one.message_id, 0) < MAX_DEATHS]
        tried: Sequence[Entry] = guilty
        for together in [*alone, innocent]:
            if self._stopping.is_set():
                break
            self._try_next(tried, together)
            for one in together:
                if self._stopping.is_set():
                    break
                self._try(one)
            tried = together
        self._try_next(tried, [])
        if self._stopping.is_set():
            return []
        if len(self._passed) > MAX_PASSED:
            self._passed.clear()
        self._passed.update(one.message_id for one in doubtful)
        return [one for one in entries if deaths.get(one.message_id, 0) < MAX_DEATHS]

    def _try_next(self, tried: Sequence[Entry], these: Sequence[Entry]) -> None:
        self._store.try_next(self._endpoint, [one.message_id for one in tried], [one.message_id for one in these])

    def _try(self, one: Entry) -> None:
        made = prepare(one, self._rules, self._store)
        if isinstance(made, Parcel):
            self._client.request(self._endpoint, made.records)


def _refused(one: Entry, deaths: int) -> Settled:
    detail = f"{deaths} processes in a row ended while they had it in hand"
    return Settled(entry=one, state="refused", reason="ends_the_process", detail=detail)
