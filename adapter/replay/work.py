"""The messages of one part of a file: read, mapped, sent in batches side by side, and settled in their order."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import orjson

from adapter import archive, filters, identity, intake, keys, limits, links, mapping, profiles, touch
from adapter.census.said import NEVER, place_of
from adapter.config import Settings
from adapter.errors import AdapterError, Refused, Rewritten
from adapter.errors import place_of as fault_of
from adapter.identity import Identity
from adapter.links import UNKNOWN, Effect, Known
from adapter.parcels import Load, Parcel, Rules, ready
from adapter.records import Record
from adapter.replay import again, fold
from adapter.replay.found import Found, digest, kept
from adapter.replay.job import Job
from adapter.replay.journal import Begun, Progress
from adapter.replay.plan import Plan
from adapter.replay.polite import BATCHES_UNDER_WAY, Gate, Polite, batch_records
from adapter.replay.posting import Ended, Posting, Stopped, Unsent
from adapter.replay.read import check, is_half
from adapter.store import Entry
from schemas import raw
from schemas.mixpanel import COUNTERS, IMPORT
from schemas.segment import Message

#: What is settled is written down about so often; after a crash so much is sent again, and removed as duplicate.
CHECKPOINT_S = 1.0
#: Messages that are looked at without anything to send before that is written down.
IDLE_MESSAGES = 20_000
#: First touches that are remembered, so that of many alike only those are written down that are earlier.
TOUCHES_REMEMBERED = 100_000
_NEVER = 2**63
_VIEWS = frozenset({"track", "page", "screen"})


class Worker:
    """One process of a replay, or its only one."""

    def __init__(
        self,
        job: Job,
        settings: Settings,
        address: str,
        plan_path: Path,
        stopping: threading.Event,
        gate: Gate,
    ) -> None:
        self._job = job
        self._rules = Rules.of(settings)
        self._options = self._rules.options
        self._is_all = job.choice.is_all
        self._stopping = stopping
        self._plan = Plan(plan_path, job.now_ms)
        self._forgets = self._plan.forgets
        n_senders = min(BATCHES_UNDER_WAY, max(settings.senders // job.processes, 1))
        pace = Polite(job, settings, gate)
        self._posting = Unsent() if job.dry_run else Posting(IMPORT, settings, address, pace, stopping, n_senders)
        self._touched: dict[tuple[str, str, bytes], int] = {}  # when the earliest of a touch was that is written down

    def close(self) -> None:
        self._posting.close()
        self._plan.close()

    def run(self, part: Begun) -> Iterator[Progress]:
        """Send a part from where it was settled, and tell now and then what was.

        Raises Stopped or Faulty, after what was settled until then has been told.
        """
        number, done = part.number, part.done
        settled, told_at = Found(), time.monotonic()
        under_way: deque[tuple[Future[Ended] | None, list[Parcel], Found]] = deque()
        error: AdapterError | None = None
        batches = self._batches(part)
        try:
            for batch, found in batches:
                under_way.append((self._send(batch), batch, found))
                while under_way and (len(under_way) > BATCHES_UNDER_WAY or _is_done(under_way[0][0])):
                    _settle(settled, *under_way[0])
                    under_way.popleft()
                if time.monotonic() - told_at > CHECKPOINT_S and not settled.is_empty:
                    done += settled.n_messages
                    yield settled.progress(number, done)
                    settled, told_at = Found(), time.monotonic()
            while under_way:
                _settle(settled, *under_way[0])
                under_way.popleft()
        except AdapterError as caught:
            error = caught
        done += settled.n_messages
        progress = settled.progress(number, done)
        progress.finished = error is None
        yield progress
        if error is not None:
            raise error

    def _batches(self, part: Begun) -> Iterator[tuple[list[Parcel], Found]]:
        """Batches of events, each with what else its messages came to."""
        batch: list[Parcel] = []
        found, load = Found(), Load(batch_records(self._job))
        read, n_again = part.read, 0
        if archive.since(read.part.file) is archive.Now.GROWN:
            check(read, self._stopping.is_set)
        messages = archive.read(read.part)
        index = -1
        for index, one in enumerate(islice(messages, read.n_messages)):
            if index < part.done:
                if not part.gathered:
                    self._take(one, index, read.part.file.source, again := Found())
                    found.learn(again)
                    n_again += 1
                    if not n_again % IDLE_MESSAGES:
                        yield batch, found
                        found = Found()
                continue
            if index == read.n_messages - 1 and is_half(one, read):
                found.n_messages += 1
                continue
            parcel = self._take(one, index, read.part.file.source, found)
            # What is not put off with it may be found again, and is the same.
            is_full = parcel is not None and not load.takes(parcel)
            if is_full or found.n_messages >= IDLE_MESSAGES:
                yield batch, found
                batch, found, load = [], Found(), Load(batch_records(self._job))
                if parcel is not None:
                    load.takes(parcel)
            found.n_messages += 1
            found.n_bytes += len(one)
            if parcel is not None:
                batch.append(parcel)
                found.n_events += len(parcel.records)
                found.n_event_bytes += parcel.n_bytes
                if self._job.dry_run:
                    found.tally.update(f"event: {orjson.loads(one)['event']}" for one in parcel.records)
        if index + 1 < read.n_messages:
            raise Rewritten(f"{read.part.file.name} has changed since the plan was taken")
        yield batch, found

    def _send(self, batch: list[Parcel]) -> "Future[Ended] | None":
        if self._stopping.is_set():
            raise Stopped("stopped")
        return self._posting.send(batch) if batch else None

    def _take(self, one: bytes, index: int, source: str | None, found: Found) -> Parcel | None:
        """One message: its event, if it has one to be sent; what else it comes to is put into `found`."""
        if (update := again.read(one)) is not None:
            self._repeat(update, found)
            return None
        try:
            message = intake.message_of(one)
        except intake.Invalid as error:
            found.kept.append(kept(one, "intake", error.reason, str(error), is_broken=True))
            return None
        except Exception as error:
            self._refuse(found, one, "intake", "validation_failed", fault_of(error))
            return None
        if not (self._is_all or (self._job.choice.reads(message, source) and self._job.choice.sends(message))):
            found.tally["not_chosen"] += 1
            return None
        try:
            return self._mapped(message, one, index, found)
        except Exception as error:
            self._refuse(found, one, message.type, "mapping_failed", fault_of(error))
        return None

    def _repeat(self, update: again.Update, found: Found) -> None:
        """Updates of one profile that were refused before."""
        if update.endpoint == COUNTERS:
            found.tally["counters again"] += 1
        elif not self._is_all or self._job.profiles == fold.OFF:
            found.tally["not_chosen"] += 1
        elif self._forgets and self._plan.is_gone(update.profile):
            found.tally["erased"] += 1
        else:
            content = fold.content(update.records, self._job.profiles, as_it_is=True)
            found.say((update.endpoint, update.profile, digest(content)), NEVER, NEVER, content)

    def _refuse(self, found: Found, one: bytes, endpoint: str, reason: str, detail: str) -> None:
        found.kept.append(kept(one, endpoint, reason, detail))

    def _mapped(self, message: Message, one: bytes, index: int, found: Found) -> Parcel | None:
        if why := filters.reason(message, self._rules.filters):
            found.tally[f"filtered: {why}"] += 1
            return None
        if self._forgets and self._is_gone(message):
            found.tally["erased"] += 1
            return None
        if message.type == "delete":
            found.tally["deletes"] += 1  # done by leaving out what came before it
            return None
        parcel = None
        for endpoint in mapping.endpoints(message, self._options):
            try:  # what one endpoint cannot have, another may
                if endpoint == IMPORT:
                    parcel = self._event(message, one, index, found)
                elif endpoint == COUNTERS:
                    self._count(message, found)
                elif self._job.profiles != fold.OFF:
                    self._say(message, endpoint, found)
            except Refused as error:
                self._refuse(found, one, endpoint, error.reason, error.detail)
            except Exception as error:
                self._refuse(found, one, endpoint, "mapping_failed", fault_of(error))
        return parcel

    def _is_gone(self, message: Message) -> bool:
        """Whether somebody asked for it to be deleted, later than it happened."""
        if message.type == "delete":
            return False
        time_ms = keys.time_ms(message, self._job.now_ms)
        try:
            who = identity.resolve(message, self._options.denied)
        except Refused:
            return False
        if message.type == "alias":
            previous = identity.bare(message.previous_id or "")
            if time_ms <= self._plan.gone_until(previous, True):
                return True
        if who.user_id is not None:
            return time_ms <= self._plan.gone_until(who.user_id, True)
        return self._plan.is_of_gone(who.device_id or "", time_ms)

    def _event(self, message: Message, one: bytes, index: int, found: Found) -> Parcel | None:
        """The event of a track, page or screen.

        An identify or alias links by the plan: of the one only what waits is left, of the other why it joins nothing.
        """
        if message.type not in _VIEWS and message.type != "alias":
            who = identity.resolve(message, self._options.denied)
            if who.user_id is None:
                mapped = mapping.map_message(message, IMPORT, self._job.now_ms, self._options)
                self._wait(mapped.effect, found)
                found.note(mapped.notes)
            else:
                self._wait_for_user(who, message, found)
            return None
        known = self._met(message)
        if known is None:
            return None
        entry = Entry(
            endpoint=IMPORT, message_id=index, lane=index, accepted_at_ms=self._job.now_ms, time_ms=0, body=one
        )
        parcel = ready(entry, message, self._rules, known)
        self._wait(parcel.effect, found)
        if isinstance(parcel, Parcel):
            parcel.effect = None  # the plan knows it
            return parcel if message.type != "alias" else None
        if parcel.state == "refused":
            self._refuse(found, one, IMPORT, parcel.reason, parcel.detail)
        else:
            found.tally[f"nothing: {parcel.reason}"] += 1
            found.note(parcel.notes)
        return None

    def _met(self, message: Message) -> Known | None:
        """What an event or alias meets on its device; None of an alias that is judged with the links of the plan."""
        device = mapping.device_of(message)
        if message.type == "alias":
            ids = device or "", message.user_id or ""
            return self._plan.aliased(*ids, place_of(message), self._options.system)
        return self._plan.known(device) if self._options.split and device is not None else UNKNOWN

    def _wait_for_user(self, who: Identity, message: Message, found: Found) -> None:
        """What brought the user of an identify or group, unless an earlier touch is written down."""
        time_ms = keys.time_ms(message, self._job.now_ms)
        before_ms = self._touched.get((who.device_id or "", who.user_id or "", b""), _NEVER)
        if time_ms < before_ms and profiles.holds(who, self._options):
            brought = touch.first_touch(message, self._options)
            self._wait(links.waits(None, who, message, time_ms, {}, brought), found)

    def _wait(self, effect: Effect | None, found: Found) -> None:
        """What of a message is for whoever uses its device next; of a user's own touches the first alone."""
        if effect is None or self._job.profiles == fold.OFF:
            return
        for name, value in (("traits", effect.traits), ("touch", effect.touch)):
            if value:
                content = raw.dumped({name: value})
                key = effect.device, effect.user or "", b"" if effect.user is not None else digest(content)
                if name == "traits" or effect.time_ms < self._touched.get(key, _NEVER):
                    if len(self._touched) >= TOUCHES_REMEMBERED:
                        self._touched.clear()
                    self._touched[key] = effect.time_ms
                    found.wait(key, effect.time_ms, effect.time_ms, content)

    def _say(self, message: Message, endpoint: str, found: Found) -> None:
        said: dict[str, list[Record]] = {}
        for record in self._updates(message, endpoint, found):
            said.setdefault(fold.profile_of(record), []).append(record)
        place = place_of(message)
        for profile, some in said.items():
            content = fold.content(some, self._job.profiles)
            found.say((endpoint, profile, digest(content)), place, place, content)

    def _updates(self, message: Message, endpoint: str, found: Found) -> tuple[Record, ...]:
        mapped = mapping.map_message(message, endpoint, self._job.now_ms, self._options)
        # What is odd about the ids of a message is noted once, with its event if it is one.
        notes = () if endpoint == COUNTERS or message.type in _VIEWS else mapped.notes
        for record in mapped.records:
            notes += limits.update(record)
        found.note(notes)
        return mapped.records

    def _count(self, message: Message, found: Found) -> None:
        if not self._job.counters:
            found.tally["counters left out"] += 1
            return
        if records := self._updates(message, COUNTERS, found):
            counting = [{name: record[name] for name in ("$add", "$append") if name in record} for record in records]
            profile, place = fold.profile_of(records[0]), place_of(message)
            found.counted.append((intake.key(message), profile, place, raw.dumped(counting)))


def _is_done(future: "Future[Ended] | None") -> bool:
    return future is None or future.done()


def _settle(settled: Found, future: "Future[Ended] | None", batch: list[Parcel], found: Found) -> None:
    """Add what a batch came to, once it has ended. Raises what ended it, with nothing added."""
    ended = future.result() if future is not None else Ended([], [])
    for done in ended.taken:
        found.note(done.notes)
    refused = {one.entry.message_id: one for one in ended.refused}
    for parcel in batch if refused else ():
        if (one := refused.get(parcel.entry.message_id)) is not None:
            found.n_events -= len(parcel.records)
            found.n_event_bytes -= parcel.n_bytes
            found.kept.append(kept(one.entry.body, IMPORT, one.reason, one.detail))
    settled.add(found)
