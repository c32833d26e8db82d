"""What would be sent for these messages: the same reading, mapping and requests as in earnest, and no POST."""

import time
from collections.abc import Iterator
from typing import Any

import orjson
from marshmallow import ValidationError

from adapter import delivery, ingestion, intake, mapping, parcels
from adapter.config import Settings
from adapter.devices import Devices
from adapter.links import UNKNOWN, Known
from adapter.store import INTAKE, Entry, Kept, Reader, Settled
from schemas import raw, segment
from schemas.mixpanel import IMPORT


def preview(text: bytes, settings: Settings, address: str) -> dict[str, Any]:
    """{requests, refused, nothing, filtered, held} for Segment messages: an object, an array, a batch, or JSON lines.

    Each request is complete: url, params, headers, and the records of its body. Credentials are named, not shown.
    """
    shown, now_ms = _Preview(settings, address), int(time.time() * 1000)
    for index, one in enumerate(_messages(text)):
        shown.add(index, one, now_ms)
    return shown.result()


def again(kept: Kept, body: bytes, settings: Settings, address: str, store: Reader) -> dict[str, Any]:
    """The same for a refused message if it were retried now, with what is known of its device."""
    shown = _Preview(settings, address, store)
    if kept.endpoint == INTAKE:
        shown.add(0, body, kept.accepted_at_ms)
    else:
        shown.add_entry(0, kept.endpoint, body, kept.accepted_at_ms)
    return shown.result()


class _Preview:
    """What becomes of messages; of `store` what is known of their devices, of which without it nothing is."""

    def __init__(self, settings: Settings, address: str, store: Reader | None = None) -> None:
        self._settings = settings
        self._client = ingestion.Client(settings, address)
        self._rules = parcels.Rules.of(settings)
        self._store = store
        self._found: dict[str, list[parcels.Parcel]] = {endpoint: [] for endpoint in delivery.ENDPOINTS}
        self._ends: dict[str, list[dict[str, Any]]] = {"refused": [], "nothing": [], "filtered": [], "held": []}

    def add(self, index: int, body: bytes, accepted_at_ms: int) -> None:
        """Take in a raw message, for each endpoint it can reach."""
        try:
            message, _content = intake.read(body)
        except intake.Invalid as error:
            self._ends["refused"].append({"index": index, "reason": error.reason, "errors": error.fields})
            return
        for to in mapping.destinations(message, self._rules.options):
            self.add_entry(index, to.endpoint, body, accepted_at_ms)

    def add_entry(self, index: int, endpoint: str, body: bytes, accepted_at_ms: int) -> None:
        """Take in a message for one endpoint."""
        entry = Entry(endpoint=endpoint, message_id=index, accepted_at_ms=accepted_at_ms, time_ms=0, body=body)
        parcel = self._prepared(entry)
        if isinstance(parcel, Settled):
            end = {"index": index, "endpoint": endpoint, "reason": parcel.reason}
            self._ends[parcel.state].append(end | ({"detail": parcel.detail} if parcel.detail else {}))
        else:
            self._found[endpoint].append(parcel)

    def _prepared(self, entry: Entry) -> parcels.Parcel | Settled:
        if self._store is None:
            return parcels.prepare(entry, self._rules)
        try:
            message = segment.read(entry.body)
            if message.type == segment.HELD:
                message = parcels.Waits(self._store).fill(message)
            known = self._known(entry.endpoint, message, self._store)
        except Exception as error:
            return parcels.failed(entry, error)
        return parcels.ready(entry, message, self._rules, known)

    def _known(self, endpoint: str, message: segment.Message, store: Reader) -> Known:
        if message.type == "delete":
            return Known(devices=store.devices_of(message.user_id or ""))
        if endpoint != IMPORT:
            return UNKNOWN
        devices = Devices(store, self._rules.options)
        devices.begin([message])
        return devices.of(message) or UNKNOWN

    def result(self) -> dict[str, Any]:
        """All of it, in batches as they would be sent."""
        requests = [
            self._shown(endpoint, batch)
            for endpoint, waiting in self._found.items()
            for batch in parcels.batches(waiting)
        ]
        return {"requests": requests, **self._ends}

    def _shown(self, endpoint: str, batch: list[parcels.Parcel]) -> dict[str, Any]:
        records = [record for parcel in batch for record in parcel.records]
        request = self._client.request(endpoint, records)
        headers = dict(request.headers)
        if endpoint == IMPORT:
            account = self._settings.service_account
            headers["Authorization"] = "Basic (service account)" if account else "Basic (token)"
        body = [orjson.loads(record) for record in records]
        for record in body:
            if "$token" in record:
                record["$token"] = "(token)"
        return {"method": "POST", "url": request.url, "params": request.params, "headers": headers, "body": body}


def _messages(text: bytes) -> Iterator[bytes]:
    """Raw messages, each to be judged alone."""
    text = text.strip()
    try:
        whole = raw.parse(text)
    except raw.Malformed:
        whole = None
    if isinstance(whole, dict) and "batch" in whole:
        try:
            yield from (orjson.dumps(message) for message in segment.messages(whole))
        except ValidationError as error:
            raise intake.Invalid("invalid", segment.flat(error)) from None
    elif isinstance(whole, dict) or text[:1] in (b"[", b""):
        yield from raw.elements(text)
    else:
        yield from (line for line in text.splitlines() if line.strip())
