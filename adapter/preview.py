"""What would be sent for these messages: the same reading, mapping and requests as in earnest, and no POST."""

import time
from collections.abc import Iterator
from typing import Any

import orjson
from marshmallow import ValidationError

from adapter import delivery, ingestion, intake, mapping, parcels
from adapter.config import Settings
from adapter.store import Entry, Settled
from schemas import raw, segment


def preview(text: bytes, settings: Settings, address: str) -> dict[str, Any]:
    """{requests, refused, nothing, filtered, held} for Segment messages: an object, an array, a batch, or JSON lines.

    Each request is complete: url, params, headers, and the records of its body. Credentials are named, not shown.
    """
    now_ms, rules = int(time.time() * 1000), parcels.Rules.of(settings)
    found: dict[str, list[parcels.Parcel]] = {endpoint: [] for endpoint in delivery.ENDPOINTS}
    ends: dict[str, list[dict[str, Any]]] = {"refused": [], "nothing": [], "filtered": [], "held": []}
    for index, one in enumerate(_messages(text)):
        try:
            message, _content = intake.read(one)
        except intake.Invalid as error:
            ends["refused"].append({"index": index, "reason": error.reason, "errors": error.fields})
            continue
        for to in mapping.destinations(message, rules.options):
            entry = Entry(endpoint=to.endpoint, message_id=index, accepted_at_ms=now_ms, time_ms=0, body=one)
            parcel = parcels.prepare(entry, rules)
            if isinstance(parcel, Settled):
                end = {"index": index, "endpoint": to.endpoint, "reason": parcel.reason}
                ends[parcel.state].append(end | ({"detail": parcel.detail} if parcel.detail else {}))
            else:
                found[to.endpoint].append(parcel)
    client = ingestion.Client(settings, address)
    requests = [
        _shown(client.request(endpoint, [record for parcel in batch for record in parcel.records]), batch, settings)
        for endpoint, waiting in found.items()
        for batch in parcels.batches(waiting)
    ]
    return {"requests": requests, **ends}


def _shown(request: ingestion.Request, batch: list[parcels.Parcel], settings: Settings) -> dict[str, Any]:
    headers = dict(request.headers)
    if request.endpoint == "import":
        headers["Authorization"] = "Basic (service account)" if settings.service_account else "Basic (token)"
    body = [orjson.loads(record) for parcel in batch for record in parcel.records]
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
