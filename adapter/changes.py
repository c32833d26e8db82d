"""The changes that commands ask for, and who makes them."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from adapter import control, intake, keys, mapping
from adapter.config import Settings
from adapter.errors import ConfigError, StoreLocked
from adapter.links import Effect
from adapter.parcels import released
from adapter.records import Options
from adapter.store import INTAKE, Judged, Kept, Put, Store
from adapter.store.sqlite import database_path
from schemas import segment

logger = logging.getLogger(__name__)

#: Refused messages that one change is about: soon done, for others wait.
MAX_NUMBERS = 500
#: Bodies that are held at once, and written in one commit.
MAX_BYTES = 8_000_000
#: How long a process that has the store and does not answer, such as one that is starting, is waited for.
WAIT_S = 10.0
POLL_S = 0.1


def make(settings: Settings, verb: str, **arguments: Any) -> dict[str, int]:
    """Have a change made. Raises StoreLocked, StoreUnavailable, AdapterError.

    A SQLite file has one process that writes: if one serves, it makes the change, with its settings. If it ends
    before it answers, the change is asked for again: what it had done is found done.
    """
    give_up_at = time.monotonic() + WAIT_S
    while True:
        if settings.uses_file:
            answer: dict[str, int] | None = control.ask(database_path(settings.database_url), verb, arguments)
            if answer is not None:
                return answer
        try:
            with Store(settings.database_url) as store:
                return apply(store, settings, verb, arguments)
        except StoreLocked as error:
            if time.monotonic() > give_up_at:
                raise StoreLocked(f"{error}, and that one answers no command: stop it first") from None
        time.sleep(POLL_S)


def apply(store: Store, settings: Settings, verb: str, arguments: dict[str, Any]) -> dict[str, int]:
    """Make a change to a store of one's own."""
    became = VERBS[verb](store, settings, **arguments)
    # A replay tells of links by the hundreds.
    level = logging.DEBUG if verb == "learn" else logging.INFO
    logger.log(level, "a command changed the store", extra={"verb": verb, **became})
    return became


def retry(store: Store, settings: Settings, *, numbers: list[int], vouched: bool) -> dict[str, int]:
    """Put refused messages back, to be mapped anew; how many became waiting, duplicate, refused, or were gone.

    What was refused at the door is judged anew, by today's rules; `vouched` says that somebody looked at each, so
    that a delete or an alias, whose sender is not known any more, may be among them.
    """
    options, became = Options.of(settings), Counter[str]()
    for judged in _judged(store, numbers, options, vouched):
        became.update(store.put_back(judged))
    became["gone"] = len(numbers) - became["waiting"] - became["duplicate"] - became["refused"]
    return dict(became)


def discard(store: Store, _settings: Settings, *, numbers: list[int]) -> dict[str, int]:
    """Let go of refused messages for good; how many were discarded, or gone before."""
    n_discarded = store.discard(numbers)
    return {"discarded": n_discarded, "gone": len(numbers) - n_discarded}


def forget_seen(store: Store, _settings: Settings, *, since_ms: int) -> dict[str, int]:
    """Forget which messages were seen since a time, from the beginning of its day; how many."""
    return {"forgotten": store.forget_seen(since_ms)}


def learn(
    store: Store, settings: Settings, *, destination: dict[str, Any], effects: list[dict[str, Any]]
) -> dict[str, int]:
    """Write down what was sent to this destination by somebody else, such as a replay, adds to what is known.

    Raises ConfigError if the store belongs to another one; a new store learns it.
    """
    check_destination(store, destination)
    store.learn([msgspec.convert(effect, Effect) for effect in effects], released)
    return {"learned": len(effects)}


VERBS: dict[str, Callable[..., dict[str, int]]] = {
    "retry": retry,
    "discard": discard,
    "forget_seen": forget_seen,
    "learn": learn,
}


def check_destination(store: Store, wanted: dict[str, Any]) -> None:
    """Raise ConfigError if the store belongs to another endpoint or project (design 3.12); a new store learns it."""
    known = store.recall("destination")
    if known is None:
        store.remember("destination", wanted)
    else:
        compare_destination(known, wanted)


def compare_destination(known: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ConfigError if what a store was filled for is another endpoint or project."""
    if known != wanted:
        differs = next(name for name in ("endpoint", "project", "system") if known.get(name) != wanted[name])
        variable, how = {
            "endpoint": ("INGESTION_URL", ""),
            "project": ("MIXPANEL_TOKEN", " with another token"),
            "system": ("IDENTITY_API", " with another ID system"),
        }[differs]
        was = f"for {known['endpoint']}{how}"
        say = "`adapter destination new` if this is another project, `adapter destination same` if it is not"
        raise ConfigError({variable: f"the store was filled {was}; say {say}"})


def _judged(
    store: Store, numbers: Sequence[int], options: Options, vouched: bool
) -> Iterator[list[tuple[Kept, Judged]]]:
    """These messages, with what is to be made of them; few enough at once to hold."""
    some: list[tuple[Kept, Judged]] = []
    n_bytes = 0
    for number in numbers:
        if (found := store.refused(number)) is None:
            continue
        kept, body = found
        if some and n_bytes + len(body) > MAX_BYTES:
            yield some
            some, n_bytes = [], 0
        some.append((kept, _judge(kept, body, options, vouched)))
        n_bytes += len(body)
    if some:
        yield some


def _judge(kept: Kept, body: bytes, options: Options, vouched: bool) -> Judged:
    if kept.endpoint != INTAKE:
        return _entry(kept, body, options)
    try:
        return intake.judged(body, kept.accepted_at_ms, options, authenticated=vouched)
    except intake.Invalid as error:
        return intake.refusal(body, kept.accepted_at_ms, error)


def _entry(kept: Kept, body: bytes, options: Options) -> Put:
    """The entry that it was; in the lane of its user where today's settings have nothing for its endpoint."""
    lane, time_ms = 0, kept.accepted_at_ms
    try:
        message = segment.read(body)
        lanes = {to.endpoint: to.lane for to in mapping.destinations(message, options)}
        lane = lanes.get(kept.endpoint, keys.lane(message.user_id or message.anonymous_id or ""))
        time_ms = keys.time_ms(message, kept.accepted_at_ms)
    except Exception:  # noqa: S110 delivery meets the same fault, and refuses it with its place
        pass
    return Put(endpoint=kept.endpoint, lane=lane, time_ms=time_ms, body=body)
