"""The links of a plan: those that must come first are sent first, and the store is told of all.

A device that several use goes to whoever used it first only if that link arrives first. So it is sent, and answered,
before anything else is; every other link may come with the events that carry it, in any order. Where one of these
was refused, the link follows by itself.
"""

import datetime as dt
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import msgspec
import orjson

from adapter import changes, identity, links, mapping
from adapter.devices import Devices
from adapter.errors import ConfigError
from adapter.links import Effect
from adapter.parcels import Parcel, ready
from adapter.records import SIMPLIFIED
from adapter.replay.found import kept
from adapter.replay.journal import Kept
from adapter.replay.plan import Link, Plan
from adapter.replay.posting import Posting, Stopped
from adapter.replay.run import Run
from adapter.store import Entry, Settled
from schemas import segment
from schemas.fields import EPOCH
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS, IMPORT
from schemas.segment import Message

#: Links looked at together, which is about a batch.
SOME = 2_000
#: The store is told of so many at once: a question to who serves is no larger than control.MAX_QUESTION_BYTES.
TOLD = 500


def check(run: Run, plan: Plan) -> None:
    """Raise ConfigError if nothing could give the devices that several use to the right one."""
    options = run.rules.options
    if options.system == SIMPLIFIED and options.link_event is None and (n_shared := plan.n_shared()):
        fault = f"{n_shared} devices have several users, and without link events whoever arrives first has them"
        raise ConfigError({"LINK_EVENT": fault})


def send(run: Run, plan: Plan) -> None:
    """Send the links that must come first, in the order in which they happened, each answered before the next."""
    tell_store(run, [])  # before anything is sent: it is of this project, or new
    _send(run, plan.links(run.rules.options, everything=run.job.links_only), "links")


def send_left_out(run: Run, plan: Plan) -> None:
    """Send the links that events were to make which were refused, when all others are sent.

    Whether an event that was taken has made one is not known; of such a link nothing is changed by another.
    """
    if run.rules.options.system == SIMPLIFIED and (left_out := _left_out(run)):
        found = plan.links(run.rules.options, everything=True)
        _send(run, (link for link in found if link.device in left_out), "late_links")


def _send(run: Run, every: Iterable[Link], step: str) -> None:
    done: int = run.journal.recall(step) or 0
    found = islice(every, done, None)
    with closing(run.posting(IMPORT, 1)) as posting, run.store() as store:
        devices = Devices(store, run.rules.options)
        while some := list(islice(found, min(SOME, run.batch_records))):
            tally, refused = _send_some(run, some, devices, posting)
            done += len(some)
            run.journal.note(tally, refused, **{step: done})
            run.told("links", done, None, run.journal.tally())


def _send_some(run: Run, some: Sequence[Link], devices: Devices, posting: Posting) -> tuple[Counter[str], list[Kept]]:
    tally: Counter[str] = Counter()
    refused: list[Kept] = []
    entries = [_entry(run, number, link) for number, link in enumerate(some)]
    waiting = deque((entry, segment.read(entry.body)) for entry in entries)
    devices.begin([message for _, message in waiting])
    while waiting:
        batch: list[Parcel] = []
        ended: list[Settled] = []
        while waiting and (known := devices.of(waiting[0][1])) is not None:
            entry, message = waiting.popleft()
            one = ready(entry, message, run.rules, known)
            if isinstance(one, Parcel):
                batch.append(one)
            else:
                ended.append(one)
            devices.take(message, entry.time_ms, one.effect)
        if batch:
            answer = posting.send(batch).result()
            tally["links"] += len(answer.taken)
            tally.update(f"note: {note}" for one in answer.taken for note in one.notes)
            ended += [*answer.taken, *answer.refused]
        accepted = [(one.effect, some[one.entry.message_id]) for one in ended if one.state != "refused"]
        tell_store(
            run,
            [msgspec.structs.replace(effect, message_id=link.message_id) for effect, link in accepted if effect],
        )
        for one in ended:
            if one.state == "refused":
                refused.append(kept(one.entry.body, IMPORT, one.reason, one.detail))
            elif one.state == "nothing":
                tally[f"nothing: {one.reason}"] += 1
        devices.answered()
    return tally, refused


def _entry(run: Run, number: int, link: Link) -> Entry:
    """The call that links, with nothing else in it, as its own message would have linked."""
    at = (EPOCH + dt.timedelta(milliseconds=link.time_ms)).isoformat()
    ids: dict[str, Any] = {"userId": link.user}
    ids["previousId" if link.how == "alias" else "anonymousId"] = link.device
    # Two events of one $insert_id would be one to who looks at that alone.
    message_id = f"{link.message_id}-link" if link.by_event else link.message_id
    body = orjson.dumps({"type": link.how, "messageId": message_id, "timestamp": at, **ids})
    return Entry(
        endpoint=IMPORT,
        message_id=number,
        lane=number,
        accepted_at_ms=run.job.now_ms,
        time_ms=link.time_ms,
        body=body,
    )


def tell_store(run: Run, effects: Sequence[Effect]) -> None:
    """Write links that were accepted where live traffic finds them: whoever serves does, if somebody does.

    A dry run tells one of its own, which knows no device that the real one has: of links alone, not of who uses them.
    Raises ConfigError if the store belongs to another project, StoreLocked, StoreUnavailable.
    """
    if run.job.dry_run:
        effects = [msgspec.structs.replace(effect, login=False) for effect in effects]
    told = [msgspec.to_builtins(effect) for effect in effects]
    for some in [told[at : at + TOLD] for at in range(0, len(told), TOLD)] or [[]]:
        changes.make(run.tells, "learn", destination=run.settings.destination, effects=some)


def tell_rest(run: Run, plan: Plan) -> None:
    """Tell the store the links that came with events, and who used the devices that several use.

    Where an event that may be the one that links was refused, its link was sent by itself and told then; if that was
    refused too, the next message of the device will link it.
    """
    if run.rules.options.system != SIMPLIFIED:
        return
    left_out = _left_out(run)
    _tell_all(run, (_effect(link, links=True) for link in plan.carried() if link.device not in left_out))
    _tell_all(run, _logins(run, plan))


def _left_out(run: Run) -> set[str]:
    """The devices of events with both ids that were refused."""
    denied = run.rules.options.denied
    found = (_device_linked_by(one, denied) for one in run.journal.kept(is_broken=False))
    return {device for device in found if device is not None}


def _tell_all(run: Run, effects: Iterable[Effect]) -> None:
    effects = iter(effects)
    while some := list(islice(effects, SOME)):
        if run.stopping.is_set():
            raise Stopped("stopped while the store was told of the links")
        tell_store(run, some)


def _logins(run: Run, plan: Plan) -> Iterable[Effect]:
    with run.store() as store:
        runs = plan.logins()
        while some := list(islice(runs, SOME)):
            known = store.known({one.device for one in some})
            for one in some:
                owner = known[one.device].owner if one.device in known else None
                if owner is not None and owner != links.key(one.user):
                    sent_as = links.split_id(one.device, one.user) if run.rules.options.split else one.device
                    yield _effect(one, login=True, sent_as=sent_as)


def _effect(link: Link, **what: Any) -> Effect:
    return Effect(
        device=link.device, user=link.user, time_ms=link.time_ms, message_id=link.message_id, how="replay", **what
    )


def _device_linked_by(one: Kept, denied: frozenset[str]) -> str | None:
    if one.endpoint in (ENGAGE, GROUPS, COUNTERS):
        return None
    try:
        message: Message = segment.read(one.body)
    except Exception:  # it was none, though it passed for one
        return None
    if message.type == "alias":  # it was no event, and is refused for what it is
        return None
    is_users = message.user_id is not None and identity.is_user(message.user_id, denied)
    return mapping.device_of(message) if is_users else None
