"""An entry made ready to be sent: read, filtered, mapped, held to the limits, serialised, and put into batches."""

from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec
import orjson

from adapter import filters, ingestion, keys, limits, mapping, surroundings
from adapter.config import Settings
from adapter.errors import Refused, place_of
from adapter.filters import Filters
from adapter.links import UNKNOWN, Effect, Known
from adapter.records import Mapped, Options
from adapter.store import Entry, Erasure, Put, Reader, Release, Settled, Waiting
from schemas import segment
from schemas.mixpanel import ENGAGE, IMPORT
from schemas.segment import Message

#: Whatever such a message says, as JSON it is far below a record's size: a character grows to six, and comes twice.
SMALL_BODY = 64_000
#: What is claimed at once may take so much memory once it is read, and so much each value and object in it.
MAX_READ_BYTES, VALUE_BYTES = 32_000_000, 64
#: What waits is as large as messages are: not all of it need be in memory.
FILLED_AT_ONCE = 200


class Parcel(msgspec.Struct, kw_only=True, gc=False):
    """An entry with its serialised records."""

    entry: Entry
    records: tuple[bytes, ...]
    notes: tuple[str, ...]
    effect: Effect | None = None  #: what it adds to what is known of its device, once it was taken
    erasure: Erasure | None = None  #: of a delete

    @property
    def n_bytes(self) -> int:
        return sum(map(len, self.records)) + len(self.records)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings say of messages: which are sent, and as what."""

    filters: Filters
    options: Options

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        return cls(
            filters=Filters(
                drop_types=settings.drop_types,
                drop_sources=settings.drop_sources,
                keep_events=settings.keep_events,
                drop_events=settings.drop_events,
                integration_names=settings.integration_names,
                drop_violations=settings.drop_violations,
                consent_categories=settings.consent_categories,
                consent_required=settings.consent_missing == "drop",
            ),
            options=Options.of(settings),
        )


def at_once(entries: list[Entry]) -> list[Entry]:
    """Those of these entries, the oldest first, that may be read together, in the order that they are in.

    `[{},{},...]` takes thirty times as much as it does as text: a claim of it, more than a small machine has.
    """
    left, last = MAX_READ_BYTES, 0
    for one in sorted(entries, key=lambda one: one.message_id):
        body = one.body
        left -= len(body) + VALUE_BYTES * (body.count(b",") + body.count(b"{") + body.count(b"["))
        if last and left < 0:
            return [one for one in entries if one.message_id <= last]
        last = one.message_id
    return entries


def prepare(entry: Entry, rules: Rules, store: Reader | None = None) -> Parcel | Settled:
    """Read an entry and make it ready, with nothing known of its device but what the store has waiting there."""
    try:
        message = segment.read(entry.body)
        if message.type == segment.HELD and store is not None:
            message = Waits(store).fill(message)
    except Exception as error:
        return failed(entry, error)
    return ready(entry, message, rules, UNKNOWN)


def ready(entry: Entry, message: Message, rules: Rules, known: Known) -> Parcel | Settled:
    """Map an entry and serialise its records, or say how it ends without being sent."""
    try:
        if why := filters.reason(message, rules.filters):
            return Settled(entry=entry, state="filtered", reason=why)
        mapped = mapping.map_apart(message, entry.endpoint, entry.accepted_at_ms, rules.options, known)
        records, notes = written(mapped, entry, rules.options)
    except Refused as error:
        return Settled(entry=entry, state="refused", reason=error.reason, detail=error.detail)
    except Exception as error:
        return failed(entry, error)
    if records:
        return Parcel(entry=entry, records=records, notes=notes, effect=mapped.effect)
    state = "held" if mapped.nothing is None else "nothing"
    return Settled(entry=entry, state=state, reason=mapped.nothing or "", notes=notes, effect=mapped.effect)


def written(mapped: Mapped, entry: Entry, options: Options) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """The records, held to the limits and serialised, and what was done to them. Raises Refused."""
    check = limits.update
    if entry.endpoint == IMPORT:
        if options.event_context:
            mapped = surroundings.add_context(mapped, orjson.loads(entry.body).get("context") or {})
        if (
            mapped.own is not None
            and len(entry.body) <= SMALL_BODY
            and limits.is_usual(mapped.records[0], mapped.own)
        ):
            return (ingestion.encode(mapped.records[0], mapped.around.text),), mapped.notes
        mapped, check = mapped.whole(), limits.event
    notes = mapped.notes
    for record in mapped.records:
        notes += check(record)
    return tuple([ingestion.encode(record) for record in mapped.records]), notes


def failed(entry: Entry, error: Exception) -> Settled:
    """A fault of ours must not hold up the lane; after an upgrade the message can be tried again."""
    return Settled(entry=entry, state="refused", reason="mapping_failed", detail=place_of(error))


def damaged(entry: Entry) -> Settled:
    """What it says by now may not be what anybody said."""
    detail = "its bytes are not those that were received: the disk has changed them"
    return Settled(entry=entry, state="refused", reason="damaged", detail=detail)


def released(release: Release) -> Put:
    """The message that carries what waits with a device to its user; until then it stays with the device."""
    body = {"type": segment.HELD, "messageId": segment.HELD, "anonymousId": release.device, "userId": release.user}
    return Put(endpoint=ENGAGE, lane=keys.lane(release.user), time_ms=release.time_ms, body=orjson.dumps(body))


class Waits:
    """What still waits to be sent by messages that `released` made, read for some of them at once."""

    def __init__(self, store: Reader) -> None:
        self._store = store
        self._asked: set[tuple[str, str]] = set()
        self._found: dict[tuple[str, str], Waiting] = {}

    def fill(self, message: Message, others: Iterable[Message] = ()) -> Message:
        """Such a message with what still waits for it; `others` may be asked for soon."""
        one = _released_to(message)
        if one not in self._asked:
            to_come = (_released_to(other) for other in others if other.type == segment.HELD)
            self._asked = {one, *islice(to_come, FILLED_AT_ONCE)}
            self._found = self._store.waiting(self._asked)
        if (waits := self._found.get(one)) is None:
            return message
        filled: Message = msgspec.structs.replace(  # type: ignore[type-var]  # every Message is a Struct
            message,
            traits=orjson.loads(waits.traits),
            touch=orjson.loads(waits.touch),
            n_entries=waits.n_entries,
            held_at_ms=waits.held_at_ms,
        )
        return filled


def _released_to(message: Message) -> tuple[str, str]:
    return message.anonymous_id or "", message.user_id or ""


class Load:
    """How much is in a batch."""

    def __init__(self, max_records: int | None = None) -> None:
        self._max_records = max_records or ingestion.MAX_BATCH_RECORDS
        self._n_records = self._n_bytes = 0

    def takes(self, parcel: Parcel) -> bool:
        """Add a parcel, if the batch stays below Mixpanel's limits; an empty one takes any."""
        n_records, n_bytes = self._n_records + len(parcel.records), self._n_bytes + parcel.n_bytes
        if self._n_records and (n_records > self._max_records or n_bytes > ingestion.MAX_BATCH_BYTES):
            return False
        self._n_records, self._n_bytes = n_records, n_bytes
        return True


def batches(parcels: Sequence[Parcel]) -> list[list[Parcel]]:
    """Parcels in their order, cut so that no batch is above Mixpanel's limits. A parcel is never cut."""
    cut: list[list[Parcel]] = []
    load = Load()
    for parcel in parcels:
        if not cut or not load.takes(parcel):
            load = Load()
            load.takes(parcel)
            cut.append([])
        cut[-1].append(parcel)
    return cut
