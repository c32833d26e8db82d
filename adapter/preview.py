"""What would be sent for these messages: the same reading, mapping and requests as in earnest, and no POST.

`preview` lets messages go the whole way, through a store of their own and to an endpoint that takes everything: each
meets what those before it said of its device. `again` asks the real store what would become of a single one now.
"""

import gzip
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from marshmallow import ValidationError

from adapter import delivery, ingestion, intake, mapping, parcels
from adapter.config import Settings
from adapter.devices import Devices
from adapter.ingestion import Outcome, Request, Verdict
from adapter.links import UNKNOWN, Known
from adapter.store import INTAKE, Arrival, Entry, Kept, Reader, Settled, Store
from schemas import raw, segment
from schemas.mixpanel import IMPORT


def preview(texts: Iterable[bytes], settings: Settings, address: str) -> dict[str, Any]:
    """{requests, refused, nothing, filtered, held} for texts of Segment messages, each as `_messages` reads it.

    Each request is complete: url, params, headers, and the records of its body. Credentials are named, not shown.
    The index counts through all texts; of what waited for a visitor and is released it is null: it is in none.
    """
    rules, now_ms, ends = parcels.Rules.of(settings), int(time.time() * 1000), _Ends()
    arrivals: dict[int, Arrival] = {}
    for index, (number, one) in enumerate(chain.from_iterable(map(_messages, texts))):
        try:
            arrivals[index] = intake.judged(one, now_ms, rules.options, authenticated=True)
        except intake.Invalid as error:
            ends.invalid(index, error, number)
    with (
        TemporaryDirectory(prefix="adapter-map-") as folder,
        closing(_Watched(f"sqlite:///{folder}/adapter.db")) as store,
        closing(_Taking(settings, address)) as client,
    ):
        new = store.put(list(arrivals.values()))
        store.leases.renew()
        lines = [delivery.Line(store, endpoint, settings, client) for endpoint in delivery.ENDPOINTS]
        while store.n_waiting():
            for line in lines:
                line.work()
    places = {}  # of the same bytes only the first are new
    for (index, arrival), is_new in zip(arrivals.items(), new, strict=True):
        if is_new:
            places[arrival.body] = index
        else:
            ends.add("nothing", index, INTAKE, "seen_before")
    for end in store.ended:
        ends.settled(places.get(end.entry.body), end)
    return {"requests": client.taken, **ends.by_index()}


def again(kept: Kept, body: bytes, settings: Settings, address: str, store: Reader) -> dict[str, Any]:
    """The same for a refused message if it were retried now, with what is known of its device."""
    rules, ends = parcels.Rules.of(settings), _Ends()
    endpoints = [kept.endpoint]
    if kept.endpoint == INTAKE:
        try:
            message, _content = intake.read(body)
            endpoints = [to.endpoint for to in mapping.destinations(message, rules.options)]
        except intake.Invalid as error:
            ends.invalid(0, error)
            endpoints = []
    with closing(_Taking(settings, address)) as client:
        for endpoint in endpoints:
            entry = Entry(endpoint=endpoint, message_id=0, accepted_at_ms=kept.accepted_at_ms, time_ms=0, body=body)
            parcel = _prepared(entry, rules, store)
            if isinstance(parcel, Settled):
                ends.settled(0, parcel)
            else:
                client.post(client.request(endpoint, parcel.records), len(parcel.records))
    return {"requests": client.taken, **ends.by_index()}


def _prepared(entry: Entry, rules: parcels.Rules, store: Reader) -> parcels.Parcel | Settled:
    try:
        message = segment.read(entry.body)
        if message.type == segment.HELD:
            message = parcels.Waits(store).fill(message)
        known = _known(entry.endpoint, message, rules, store)
    except Exception as error:
        return parcels.failed(entry, error)
    return parcels.ready(entry, message, rules, known)


def _known(endpoint: str, message: segment.Message, rules: parcels.Rules, store: Reader) -> Known:
    if message.type == "delete":
        return Known(devices=store.devices_of(message.user_id or ""))
    if endpoint != IMPORT:
        return UNKNOWN
    devices = Devices(store, rules.options)
    devices.begin([message])
    return devices.of(message) or UNKNOWN


class _Ends:
    """What ends without being sent, and why."""

    def __init__(self) -> None:
        self._found: dict[str, list[dict[str, Any]]] = {"refused": [], "nothing": [], "filtered": [], "held": []}

    def invalid(self, index: int, error: intake.Invalid, line: int = 1) -> None:
        errors = {
            path: [fault.replace(": line 1 column ", f": line {line} column ") for fault in faults]
            for path, faults in error.fields.items()
        }
        self._found["refused"].append({"index": index, "reason": error.reason, "errors": errors})

    def settled(self, index: int | None, one: Settled) -> None:
        if one.state != "delivered":
            self.add(one.state, index, one.entry.endpoint, one.reason, one.detail)

    def add(self, state: str, index: int | None, endpoint: str, reason: str, detail: str = "") -> None:
        end = {"index": index, "endpoint": endpoint, "reason": reason}
        self._found[state].append(end | ({"detail": detail} if detail else {}))

    def by_index(self) -> dict[str, list[dict[str, Any]]]:
        """By state; in the order of the messages, and last what is none of them."""
        return {
            state: sorted(ends, key=lambda end: (end["index"] is None, end["index"] or 0))
            for state, ends in self._found.items()
        }


class _Watched(Store):
    """A store that also tells how each entry ended."""

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self.ended: list[Settled] = []

    def settle(self, settled: Sequence[Settled], *rest: Any, **named: Any) -> None:
        super().settle(settled, *rest, **named)
        self.ended += settled


class _Taking(ingestion.Client):
    """A client that posts nothing and keeps what it would post, as if all of it were taken."""

    def __init__(self, settings: Settings, address: str) -> None:
        super().__init__(settings, address)
        self.taken: list[dict[str, Any]] = []

    def post(self, request: Request, n_records: int) -> Verdict:
        headers, body = dict(request.headers), request.body
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if request.endpoint == IMPORT:
            account = self._settings.service_account
            headers["Authorization"] = "Basic (service account)" if account else "Basic (token)"
        records = orjson.loads(body)
        for record in records:
            if "$token" in record:
                record["$token"] = "(token)"
        shown = {"method": "POST", "url": request.url, "params": request.params, "headers": headers, "body": records}
        self.taken.append(shown)
        return Verdict(outcome=Outcome.DONE)


def _messages(whole_text: bytes) -> Iterator[tuple[int, bytes]]:
    """Raw messages of an object, an array, a batch, or JSON lines, each to be judged alone; of lines with its number.

    A parser that is given one counts the lines in it.
    """
    text = whole_text.strip()
    try:
        whole = raw.parse(text)
    except raw.Malformed:
        whole = None
    if isinstance(whole, dict) and "batch" in whole:
        try:
            yield from ((1, orjson.dumps(message)) for message in segment.messages(whole))
        except ValidationError as error:
            raise intake.Invalid("invalid", segment.flat(error)) from None
    elif isinstance(whole, dict) or text[:1] in (b"[", b""):
        yield from ((1, element) for element in raw.elements(text))
    else:
        yield from ((number, line) for number, line in enumerate(whole_text.splitlines(), 1) if line.strip())
