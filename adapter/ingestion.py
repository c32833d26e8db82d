"""What one POST to the ingestion endpoint looks like, and what its answer means. The answer's reading is pure.

answer                              verdict
200, failed_records absent          done; if it says that none of /import were stored they are sent once more
400 with failed_records (/import)   done, the named records refused: the others were stored (mixpanel.md 2.2.2)
400 without detail, 413, status 0   halve: somewhere in the batch is a record that spoils it
408, 429, 5xx, no answer            later, after Retry-After or a backoff
401, 403, any other 4xx, 3xx        later, with a fault a person must mend; nothing is refused for it
an address not to be reached        the same; nothing was sent
"""

import email.utils
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import orjson
from isal import igzip
from marshmallow import ValidationError

from adapter import wire
from adapter.config import Settings
from adapter.wire import Wire
from schemas import answers, mixpanel, raw

#: Where a line of delivery posts to, if not to what it is called.
PATHS = {mixpanel.COUNTERS: mixpanel.ENGAGE}
#: Mixpanel takes 2,000 records; its own pages disagree whether 2 MiB or 10 MB, so we stay below both (2.2.1).
MAX_BATCH_RECORDS = 2_000
MAX_BATCH_BYTES = 1_900_000
MAX_RETRY_AFTER_S = 300.0
_PRIVATE = "INGESTION_URL leads to an address that is not of the internet: INGESTION_PRIVATE=yes if that is meant"
#: How long to leave an endpoint alone whose fault a person must mend.
FAULT_WAIT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One POST, complete but for the credentials."""

    endpoint: str
    url: str
    params: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Outcome(Enum):
    DONE = "done"  #: every record is settled: stored or refused
    HALVE = "halve"  #: some record spoils the batch, the answer does not say which
    LATER = "later"  #: nothing is known to be stored; send it again


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What an answer means for the batch it answers."""

    outcome: Outcome
    refused: dict[int, str] = field(default_factory=dict)  #: index in the batch -> why; only with DONE
    wait_s: float | None = None  #: how long the endpoint wants to be left alone, if it said so
    too_many: bool = False  #: LATER, for the endpoint wants to be sent less
    none_stored: bool = False  #: DONE, though the endpoint says that it stored none: to be asked once more
    fault: str | None = None  #: what a person must mend
    unknown: bool = False  #: LATER or HALVE, and all or some of it may have been applied
    turned_down: bool = False  #: LATER, for every part of a batch was turned down: another batch may fare better
    text: str = ""  #: one line for `adapter status`; may quote the endpoint, so it is not for the log
    notes: tuple[str, ...] = ()  #: words to be counted with what was delivered


class Client:
    """Posts batches. One for each delivery thread: it holds a session with its connections."""

    def __init__(self, settings: Settings, base_url: str) -> None:
        self._settings = settings
        self._base_url = base_url
        self._wire = Wire((settings.token, settings.service_secret), settings.may_reach)

    def close(self) -> None:
        self._wire.close()

    def request(self, endpoint: str, records: Sequence[bytes]) -> Request:
        """The POST that carries these serialised records."""
        body = b"[" + b",".join(records) + b"]"
        headers = {"Content-Type": "application/json"}
        # Without strict a bad update is dropped behind a good answer (mixpanel.md 2.3, 2.4).
        params = {"ip": "0", "strict": "1", "verbose": "1"}
        if endpoint == mixpanel.IMPORT:
            params = {"strict": "1"}
            if self._settings.project_id and self._settings.service_account:
                params["project_id"] = self._settings.project_id
            # /engage and /groups do not take gzip (mixpanel.md 2.4).
            headers["Content-Encoding"] = "gzip"
            body = igzip.compress(body, compresslevel=1, mtime=0)
        return Request(
            endpoint=endpoint,
            url=f"{self._base_url}/{PATHS.get(endpoint, endpoint)}",
            params=params,
            headers=headers,
            body=body,
        )

    def post(self, request: Request, n_records: int) -> Verdict:
        """Send it and read the answer. Never raises for what the network or the endpoint does."""
        auth = None
        if request.endpoint == mixpanel.IMPORT:
            auth = (self._settings.service_account or self._settings.token, self._settings.service_secret or "")
        try:
            answer = self._wire.send(
                "POST", request.url, params=request.params, headers=request.headers, body=request.body, auth=auth
            )
        except wire.NoAnswer as error:
            if error.is_private:
                return Verdict(outcome=Outcome.LATER, wait_s=FAULT_WAIT_S, fault=_PRIVATE, text=_PRIVATE)
            return Verdict(outcome=Outcome.LATER, unknown=error.unknown, text=str(error))
        return read_answer(request.endpoint, answer.status, answer.headers, answer.body, n_records, now=time.time())

    def hang_up(self) -> None:
        """Shut the connections, whatever is under way on them: it ends as if there had been no answer."""
        self._wire.hang_up()


def encode(record: Mapping[str, Any], around: bytes = b"") -> bytes:
    """One record as it stands in a batch; `around` are further members of its last value, an object with some."""
    if not around:
        return raw.dumped(record)
    return b"%b%b}}" % (orjson.dumps(record)[:-2], around)


def read_answer(
    endpoint: str, status: int, headers: Mapping[str, str], body: bytes, n_records: int, *, now: float
) -> Verdict:
    """What an answer means. `now` is in seconds since the epoch, for a Retry-After that is a date."""
    if endpoint == mixpanel.IMPORT and status in (200, 400):
        return _imported(status, body, n_records)
    if status == 200:
        return _updated(body, n_records)
    if status in (400, 413):
        return Verdict(outcome=Outcome.HALVE, text=f"{status}: {said(body)}")
    if status in (408, 429) or status >= 500:
        wait_s = retry_after_s(headers.get("Retry-After"), now)
        too_many, text = status == 429, f"{status}: {said(body)}"
        return Verdict(outcome=Outcome.LATER, unknown=not too_many, too_many=too_many, wait_s=wait_s, text=text)
    fault = f"{status}: {said(body)}"
    return Verdict(outcome=Outcome.LATER, wait_s=FAULT_WAIT_S, fault=fault, text=fault)


def _imported(status: int, body: bytes, n_records: int) -> Verdict:
    """/import: records that failed are named, the others are stored (mixpanel.md 2.2.2)."""
    try:
        answer = answers.ImportAnswer().load(_parsed(body))
    except ValidationError:
        answer = {"failed_records": [], "num_records_imported": None}
    refused = {}
    for one in answer["failed_records"]:
        index = 0 if n_records == 1 else one["index"]
        if index is None or not 0 <= index < n_records:
            return Verdict(outcome=Outcome.HALVE, text=f"{status}: failed_records name no record of the batch")
        refused[index] = (one["message"] or "no reason given") + (f" ({one['field']})" if one["field"] else "")
    stored = answer["num_records_imported"]
    # Whether Mixpanel counts what it had before is not said, so a count that is short is shown; that it is zero may
    # mean the same, or that all was lost, and is asked about once more.
    notes = ("imported_fewer_than_sent",) if stored is not None and stored < n_records - len(refused) else ()
    if refused:
        return Verdict(outcome=Outcome.DONE, refused=refused, notes=notes, text=f"{status}: {len(refused)} refused")
    if status == 400:
        return Verdict(outcome=Outcome.HALVE, text=f"400: {said(body)}")
    if stored is None:
        return _not_mixpanel()
    return Verdict(outcome=Outcome.DONE, none_stored=not stored, notes=notes, text=f"200: {stored} stored")


def _updated(body: bytes, n_records: int) -> Verdict:
    """/engage and /groups answer 200 even when updates failed: the body decides (mixpanel.md 2.4).

    Documented are `1`, `0` and {status, error}; a strict answer may count num_good_events instead.
    """
    parsed = _parsed(body)
    try:
        answer = answers.UpdateAnswer().load(parsed if isinstance(parsed, dict) else {"status": parsed})
    except ValidationError:
        return _not_mixpanel()
    good = answer["num_good_events"]
    if answer["status"] in ("1", "OK") and (good is None or good >= n_records):
        return Verdict(outcome=Outcome.DONE, text="200: all stored")
    # Of a single update it is known that it is the one.
    unknown = n_records > 1 and good != 0
    return Verdict(outcome=Outcome.HALVE, unknown=unknown, text=f"200, but not all stored: {said(body)}")


def _not_mixpanel() -> Verdict:
    """Some proxy's friendly page is no promise that anything was stored."""
    fault = "200, but not Mixpanel's answer: is INGESTION_URL right?"
    return Verdict(outcome=Outcome.LATER, unknown=True, wait_s=FAULT_WAIT_S, fault=fault, text=fault)


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def said(body: bytes) -> str:
    """The endpoint's own words, on one line and short."""
    parsed = _parsed(body)
    error = parsed.get("error") if isinstance(parsed, dict) else None
    words = " ".join(str(error or "no reason given").split())[:200]
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def retry_after_s(value: str | None, now: float, at_most_s: float = MAX_RETRY_AFTER_S) -> float | None:
    """How long to be left alone, in seconds or as a date; what cannot be read is as if it were not there."""
    if value is None:
        return None
    if value.strip().isdecimal():
        seconds = float(value)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 1.0), at_most_s)
