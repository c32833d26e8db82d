"""The profiles, when all events are sent: what was said of each comes to a few updates.

What waited with a visitor's device is of whoever used it next, and fills gaps (design 3.5).
"""

from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from itertools import groupby, islice
from typing import Any, NamedTuple

import orjson

from adapter import ingestion, limits, profiles
from adapter.errors import Refused
from adapter.parcels import Load, Parcel
from adapter.records import Record
from adapter.replay import again, fold
from adapter.replay.found import digest, kept
from adapter.replay.journal import BEGUN, TO_COUNT, Kept, Waits
from adapter.replay.plan import Plan
from adapter.replay.polite import BATCHES_UNDER_WAY
from adapter.replay.posting import Ended
from adapter.replay.run import Run
from adapter.sending import refused
from adapter.store import Entry
from schemas import segment
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS

DAY_MS = 86_400_000
#: What is written down at once of what was released.
SOME = 2_000
_HELD: Any = segment.STRUCTS[segment.HELD]


def release(run: Run, plan: Plan) -> None:
    """Add what waits with devices to the profile of whoever used them next. Done again it is the same."""
    if run.journal.recall("released"):
        return
    tally: Counter[str] = Counter()
    with closing(_released(run, plan, tally)) as found:
        while some := list(islice(found, SOME)):
            run.journal.put_said(some)
    run.journal.note(tally, released=True)


def _released(run: Run, plan: Plan, tally: Counter[str]) -> Generator[tuple[str, str, bytes, bytes, bytes, bytes]]:
    n_seen = 0
    for device, waits in run.journal.waits():
        users: dict[str, list[tuple[int, int, Any]]] = {}
        n_seen += len(waits)
        for one in waits:
            to = _whose(run, plan, device, one, tally)
            if to is not None:
                users.setdefault(to, []).append((one.first_ms, one.last_ms, one.content))
        for user, some in users.items():
            traits: Record = {}
            for _, _, content in sorted(some, key=lambda one: one[1]):
                traits |= content.get("traits", {})
            touches = sorted((first_ms, orjson.dumps(one["touch"])) for first_ms, _, one in some if "touch" in one)
            touch = orjson.loads(touches[0][1]) if touches else {}
            at_ms = min(first_ms for first_ms, _, _ in some)
            message = _HELD(
                type=segment.HELD,
                message_id=segment.HELD,
                anonymous_id=device,
                user_id=user,
                traits=traits,
                touch=touch,
                n_entries=len(some),
                held_at_ms=at_ms,
            )
            records = profiles.release(message, run.job.now_ms, run.rules.options).records
            if not records:
                continue
            content = fold.content(records, fold.MISSING)
            # Its place is its time; where two devices say of one person the same at once, the devices decide.
            place = (at_ms * 1_000 + 2**63).to_bytes(8) + device.encode()
            tally["released"] += len(some)
            yield ENGAGE, user, digest(content), place, place, content
    tally["nobody came"] += run.journal.n_waits() - n_seen


def _whose(run: Run, plan: Plan, device: str, one: Waits, tally: Counter[str]) -> str | None:
    """Whose it is that waits: a user's own touch theirs, until they were known on the device; else the next one's."""
    if one.user:
        is_first = one.user_first_ms is None or one.first_ms <= one.user_first_ms
        return one.user if is_first else None
    use = None
    if one.n_runs:
        use = plan.next_use(device, one.first_ms)
    elif one.owner is not None and one.first_ms <= (one.owner_last_ms or 0):
        use = one.owner, max(one.owner_first_ms or 0, one.first_ms)
    if use is None:
        tally["nobody came"] += 1
    elif use[1] - one.first_ms > run.settings.held_days * DAY_MS:
        tally["expired"] += 1
    else:
        return use[0]
    return None


def send(run: Run) -> None:
    """Send the updates of each profile, people first, from where it was settled."""
    done: dict[str, str] = run.journal.recall("profiles") or {}
    total = run.journal.n_profiles()
    sent = 0
    for endpoint in (ENGAGE, GROUPS):
        with closing(run.posting(endpoint, BATCHES_UNDER_WAY)) as posting:
            under_way: deque[tuple[Future[Ended] | None, str, Counter[str], list[Kept]]] = deque()
            batches = _batches(run, endpoint, done.get(endpoint, ""))
            while True:
                some = next(batches, None)
                if some is not None:
                    batch, last, tally, refused = some
                    under_way.append((posting.send(batch) if batch else None, last, tally, refused))
                if not under_way:
                    break
                if some is not None and len(under_way) <= BATCHES_UNDER_WAY:
                    continue
                future, last, tally, refused = under_way.popleft()
                if future is not None:
                    for one in future.result().refused:
                        refused.append(kept(one.entry.body, endpoint, one.reason, one.detail))
                done[endpoint] = last
                run.journal.note(tally, refused, profiles=done)
                sent += tally["profiles"]
                run.told("profiles", sent, total, run.journal.tally())


def _batches(run: Run, endpoint: str, after: str) -> Iterator[tuple[list[Parcel], str, Counter[str], list[Kept]]]:
    batch: list[Parcel] = []
    load, last, tally, refused = Load(run.batch_records), after, Counter[str](), list[Kept]()
    for number, (profile, said) in enumerate(run.journal.said(endpoint, after)):
        records = fold.updates(endpoint, profile, said, run.settings.token, run.job.profiles)
        parcel = _parcel(endpoint, number, records, tally, refused)
        if parcel is not None and not load.takes(parcel):
            yield batch, last, tally, refused
            batch, load, tally, refused = [], Load(run.batch_records), Counter(), []
            load.takes(parcel)
        if parcel is not None:
            batch.append(parcel)
            tally["updates"] += len(parcel.records)
            tally[f"updates: {endpoint}"] += len(parcel.records)
        tally["profiles"] += 1
        last = profile
    if last != after:
        yield batch, last, tally, refused


def _parcel(
    endpoint: str, number: int, records: list[Record], tally: Counter[str], refused: list[Kept]
) -> Parcel | None:
    body = again.update(endpoint, records)
    try:
        for record in records:
            tally.update(f"note: {note}" for note in limits.update(record))
    except Refused as error:
        refused.append(kept(body, endpoint, error.reason, error.detail))
        return None
    entry = Entry(endpoint=endpoint, message_id=number, lane=number, accepted_at_ms=0, time_ms=0, body=body)
    encoded = tuple(ingestion.encode(record) for record in records)
    return Parcel(entry=entry, records=encoded, notes=()) if encoded else None


class _Counts(NamedTuple):
    """What counts on a profile, so much that it is one POST."""

    profile: str
    keys: list[bytes]  #: of the messages it is made of
    records: list[Record]


def count(run: Run) -> None:
    """Send what counts, each message at most once: an attempt is written down before it is made."""
    if some := list(_counts(run, BEGUN)):  # by a run that did not see their end
        _end(run, some, [_unknown(_counting(run, number, one)) for number, one in enumerate(some)])
    with closing(run.posting(COUNTERS, BATCHES_UNDER_WAY)) as posting:
        while some := _together(_counts(run, TO_COUNT)):
            run.journal.begin_counting(key for one in some for key in one.keys)
            futures = [posting.send_once(_counting(run, number, one)) for number, one in enumerate(some)]
            wait(futures)
            sent = [number for number, one in enumerate(futures) if one.exception() is None]
            _end(run, [some[number] for number in sent], [futures[number].result() for number in sent])
            for one in futures:
                one.result()  # raises what kept it from being sent


def _counts(run: Run, state: int) -> Iterator[_Counts]:
    """What is in this state, in the order of profiles and messages, cut to what one POST may carry."""
    for profile, rows in groupby(run.journal.counted(state), key=lambda row: row[1]):
        keys, records, n_bytes = list[bytes](), list[Record](), 0
        around = len(ingestion.encode(_whose_it_counts(run, profile)))
        for key, _, content in rows:
            more = orjson.loads(content)
            n_more = len(content) + len(more) * around
            n_records = len(records) + len(more)
            if keys and (n_records > ingestion.MAX_BATCH_RECORDS or n_bytes + n_more > ingestion.MAX_BATCH_BYTES):
                yield _Counts(profile, keys, records)
                keys, records, n_bytes = [], [], 0
            keys.append(key)
            records += more
            n_bytes += n_more
        yield _Counts(profile, keys, records)


def _together(found: Iterator[_Counts]) -> list[_Counts]:
    """The first that may be under way together: as many as there are senders, of each profile one."""
    some: dict[str, _Counts] = {}
    for one in islice(found, BATCHES_UNDER_WAY):
        if one.profile in some:
            break
        some[one.profile] = one
    return list(some.values())


def _end(run: Run, some: list[_Counts], ended: list[Ended]) -> None:
    turned_down = [kept(one.entry.body, COUNTERS, one.reason, one.detail) for each in ended for one in each.refused]
    tally = {"counted": sum(len(each.taken) for each in ended)}
    run.journal.end_counting((key for one in some for key in one.keys), tally, turned_down)


def _unknown(parcel: Parcel) -> Ended:
    return Ended([], [refused(parcel, "the replay ended before the answer", "may_have_been_applied")])


def _counting(run: Run, number: int, one: _Counts) -> Parcel:
    added: dict[str, list[float]] = {}
    appended: list[Record] = []
    for operation in one.records:
        for name, amount in operation.get("$add", {}).items():
            added.setdefault(name, []).append(amount)
        if "$append" in operation:
            appended.append({"$append": operation["$append"]})
    key = _whose_it_counts(run, one.profile)
    sums = {name: sum(amounts) for name, amounts in added.items()}
    operations = ([{"$add": sums}] if sums else []) + appended
    body = again.counters(one.profile, operations)
    entry = Entry(endpoint=COUNTERS, message_id=number, lane=number, accepted_at_ms=0, time_ms=0, body=body)
    return Parcel(entry=entry, records=tuple(ingestion.encode({**key, **each}) for each in operations), notes=())


def _whose_it_counts(run: Run, profile: str) -> Record:
    return {"$token": run.settings.token, "$distinct_id": profile, "$ip": "0", "$ignore_time": True}
