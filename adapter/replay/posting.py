"""Batches sent side by side to one endpoint, each to its end.

what becomes of a batch                     what is done
taken, or some of it refused                it has ended; what was refused is kept
no answer, 429, 5xx                         again after a wait, for as long as it takes
one message fails alone, time and again     refused as given_up, for it can be replayed by itself
credentials, address, everything is wrong   the replay stops and says so
"""

import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import msgspec

from adapter.check import hint
from adapter.config import Settings
from adapter.delivery import GIVEN_UP_AFTER, HALVED_AFTER
from adapter.errors import AdapterError, LanesLost
from adapter.ingestion import Client, Outcome, Verdict
from adapter.pace import Pace
from adapter.parcels import Parcel
from adapter.rounds import backoff_s
from adapter.sending import Sender, refused, settled
from adapter.store import Settled

#: How long anything waits before it looks whether it is to stop.
GLANCE_S = 0.1


class Stopped(AdapterError):
    """The replay was told to stop; what is in hand was not settled."""


class Faulty(AdapterError):
    """The endpoint takes nothing, and a person must mend that; the text says what it said."""


class Ended(msgspec.Struct):
    """What became of a batch: all that is not refused was taken."""

    taken: list[Settled]
    refused: list[Settled]


@contextmanager
def hung_up(clients: Sequence[Client], *signs: threading.Event) -> Iterator[None]:
    """Meanwhile the clients are hung up as long as one of the signs is set, whatever they wait for."""
    left = threading.Event()

    def watch() -> None:
        while not left.wait(GLANCE_S):
            if any(sign.is_set() for sign in signs):
                for client in clients:
                    client.hang_up()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


class Posting:
    """So many batches at once, to one endpoint."""

    def __init__(
        self, endpoint: str, settings: Settings, address: str, pace: Pace, stopping: threading.Event, n_senders: int
    ) -> None:
        self._stopping = stopping
        self._closing = threading.Event()
        self._fault: Faulty | None = None  # what one batch has met, others need not wait for
        self._pace = pace
        self._clients = [Client(settings, address) for _ in range(n_senders)]
        self._senders: queue.SimpleQueue[Sender] = queue.SimpleQueue()
        for client in self._clients:
            sender = Sender(endpoint, client, pace, stopping)
            sender.may_send = lambda: not self._is_over()
            self._senders.put(sender)
        self._watched = ExitStack()
        self._watched.enter_context(hung_up(self._clients, stopping, self._closing))
        self._threads = ThreadPoolExecutor(n_senders, thread_name_prefix=f"replay-{endpoint}")

    def send(self, batch: Sequence[Parcel]) -> "Future[Ended]":
        """Have a batch sent, when one of the senders is free. Its result raises Stopped or Faulty."""
        return self._threads.submit(self._send, batch)

    def send_once(self, parcel: Parcel) -> "Future[Ended]":
        """Have one parcel that counts sent, at most once: with no answer it is refused as `may_have_been_applied`."""
        return self._threads.submit(self._send_once, parcel)

    def close(self) -> None:
        """Hang up what is under way, which is nothing unless the replay ends early: it will be sent again."""
        self._closing.set()
        self._threads.shutdown(cancel_futures=True)
        self._watched.close()
        for client in self._clients:
            client.close()

    def _send(self, batch: Sequence[Parcel]) -> Ended:
        sender = self._senders.get()
        try:
            return self._to_its_end(sender, batch)
        except LanesLost:
            raise self._fault or Stopped("stopped before the answer") from None
        finally:
            self._senders.put(sender)

    def _to_its_end(self, sender: Sender, batch: Sequence[Parcel]) -> Ended:
        ended, left, failures = Ended([], []), list(batch), 0
        tries: dict[int, int] = {}
        before = self._pace.taken
        while True:
            self._wait_until_open()
            others_pass = failures >= HALVED_AFTER and self._pace.taken > before
            before = self._pace.taken if others_pass else before
            sent = sender.deliver(left, halve_failures=others_pass)
            for parcel in sent.stuck:
                number = parcel.entry.message_id
                tries[number] = tries.get(number, 0) + 1
                if tries[number] >= GIVEN_UP_AFTER:
                    sent.settled.append(
                        refused(parcel, f"failed {tries[number]} times: {sent.verdict.text}", "given_up")
                    )
            for one in sent.settled:
                (ended.refused if one.state == "refused" else ended.taken).append(one)
            over = {one.entry.message_id for one in sent.settled}
            left = [parcel for parcel in left if parcel.entry.message_id not in over]
            if not left:
                return ended
            if sent.verdict.fault is not None:
                raise self._faulty(sent.verdict.fault)
            if sent.verdict.outcome is Outcome.LATER or sent.stuck:
                failures += 1
                self._wait(backoff_s(failures, sent.verdict.wait_s, random.uniform))

    def _send_once(self, parcel: Parcel) -> Ended:
        sender, failures = self._senders.get(), 0
        try:
            while True:
                self._wait_until_open()
                verdict = sender.post([parcel])
                if verdict.unknown:
                    return Ended([], [refused(parcel, verdict.text, "may_have_been_applied")])
                if verdict.outcome is Outcome.HALVE:
                    return Ended([], [refused(parcel, verdict.text)])
                if verdict.outcome is Outcome.DONE:
                    ended = settled([parcel], verdict)
                    return Ended([], ended) if verdict.refused else Ended(ended, [])
                if verdict.fault is not None:
                    raise self._faulty(verdict.fault)
                failures += 1
                self._wait(backoff_s(failures, verdict.wait_s, random.uniform))
        except LanesLost:
            raise self._fault or Stopped("stopped before it was sent") from None
        finally:
            self._senders.put(sender)

    def _wait_until_open(self) -> None:
        while wait_s := self._pace.closed_s():
            self._wait(min(wait_s, GLANCE_S))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_over() and (left := until - time.monotonic()) > 0:
            self._stopping.wait(min(left, GLANCE_S))
        if self._is_over():
            raise self._fault or Stopped("stopped while the endpoint was waited for")

    def _faulty(self, fault: str) -> Faulty:
        self._fault = Faulty(fault + hint(fault))
        return self._fault

    def _is_over(self) -> bool:
        return self._stopping.is_set() or self._closing.is_set() or self._fault is not None


class Unsent(Posting):
    """Of a dry run: takes everything, and sends nothing."""

    def __init__(self) -> None:
        pass

    def send(self, batch: Sequence[Parcel]) -> "Future[Ended]":
        future: Future[Ended] = Future()
        future.set_result(Ended(settled(batch, Verdict(outcome=Outcome.DONE)), []))
        return future

    def send_once(self, parcel: Parcel) -> "Future[Ended]":
        return self.send([parcel])

    def close(self) -> None:
        pass
