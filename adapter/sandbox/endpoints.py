"""How does Mixpanel's ingestion API answer? POST /import, /track, /engage and /groups of one sandbox project.

Each door reads the body under a ceiling, judges record by record (`validation`), keeps what is good
(`project`) and words the answer. Source: reference/mixpanel.md 2.2 (import), 2.3 (track), 2.4-2.5 (profiles).
"""

import base64
import hmac
import time
import uuid
import zlib
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import parse_qs

import flask
import orjson
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from adapter.sandbox import validation
from adapter.sandbox.project import Project

MAX_RECORDS = 2_000
#: Uncompressed. The documents say 2 MiB here and 10 MB there; for /engage and /groups nothing at all.
MAX_BODY_BYTES = 2_097_152
TRACK_WINDOW_MS = 5 * 86_400_000
STATUS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 413: "Request Entity Too Large"}


class Refused(Exception):
    """The request as a whole is refused: 400 unreadable, 413 too large, 200 where bad content is a 200."""

    def __init__(self, code: int, error: str) -> None:
        super().__init__(error)
        self.code, self.error = code, error


def blueprint(
    project: Project,
    *,
    token: str,
    service_account: tuple[str, str, str] | None,
    clock: Callable[[], float] = time.time,
) -> flask.Blueprint:
    """The four doors of a project. `service_account`: user name, secret, project id; None: there is none."""
    doors = flask.Blueprint("sandbox", __name__)

    def now_ms() -> int:
        return int(clock() * 1000)

    @doors.post("/import")
    def import_events() -> flask.Response:
        error = _credentials_error(token, service_account)
        if error is not None:
            return _answer(401, error=error)
        try:
            records = _import_records()
        except Refused as refused:
            return _answer(refused.code, error=refused.error)
        now, good = now_ms(), []
        failed: list[str | dict[str, Any]] = []
        for index, record in enumerate(records):
            failure = validation.event_error(record, now)
            if failure is None:
                good.append(record)
            else:
                failed.append(_failed_record(index, record, failure) if failure.field else failure.message)
        project.ingest_events(good)
        # What becomes of bad events with strict=0 is UNCONFIRMED: here they are left out without a word.
        if failed and flask.request.args.get("strict") != "0":
            error = "some data points in the request failed validation"
            return _answer(400, error=error, failed_records=failed, num_records_imported=len(good))
        return _answer(200, num_records_imported=len(good))

    @doors.post("/track")
    def track() -> flask.Response:
        try:
            records = _client_records(gzip_is_read=True)
        except Refused as refused:
            return _client_answer(refused)
        now, good, valid, error = now_ms(), [], 0, "no events"
        for record in records:
            _complete(record, now)
            failure = validation.event_error(record, now)
            if failure is not None and failure.field:
                error = failure.message
                continue
            properties = record["properties"]
            if not isinstance(properties.get("token"), str):
                error = "'properties.token' is invalid: must not be missing"
                continue
            valid += 1
            # Dropped behind a good answer: an identity verb (UNCONFIRMED), a strange token, an old event.
            is_ours = failure is None and _same(properties["token"], token)
            if is_ours and now - validation.time_ms(properties["time"]) <= TRACK_WINDOW_MS:
                good.append(record)
        project.ingest_events(good)
        # The documents conflict on whether 1 means one valid event or all of them; here one.
        return _client_answer(None if valid else Refused(200, error))

    def update(kind: Literal["engage", "groups"], apply: Callable[[list[dict[str, Any]]], None]) -> flask.Response:
        try:
            records = _client_records(gzip_is_read=False)
        except Refused as refused:
            return _client_answer(refused)
        good, error = [], None if records else "no updates"
        for index, record in enumerate(records):
            failure = validation.update_error(record, kind)
            if failure is None and _same(record["$token"], token):
                good.append(record)
            elif error is None:
                reason = failure.message if failure else "'$token' is invalid: not of this project"
                error = f"update {index}: {reason}"
        # Whether the good ones of a bad batch are applied with strict=1 is UNCONFIRMED. Here none is: who
        # took it for granted would lose them.
        if error is None or (good and flask.request.args.get("strict") != "1"):
            apply(good)
            return _client_answer(None)
        return _client_answer(Refused(200, error))

    @doors.post("/engage")
    def engage() -> flask.Response:
        return update("engage", project.update_profiles)

    @doors.post("/groups")
    def groups() -> flask.Response:
        return update("groups", project.update_groups)

    return doors


def _credentials_error(token: str, service_account: tuple[str, str, str] | None) -> str | None:
    """Basic: the token and no password without `project_id`; a service account with its `project_id`."""
    sent, project_id = flask.request.authorization, flask.request.args.get("project_id")
    user, secret = (sent.username or "", sent.password or "") if sent and sent.type == "basic" else ("", "")
    if project_id is None:
        return None if _same(user, token) and not secret else "Invalid credentials"
    pairs = zip((user, secret, project_id), service_account or (), strict=False)
    if service_account and all([_same(given, wanted) for given, wanted in pairs]):
        return None
    return "Invalid service account credentials"


def _import_records() -> list[Any]:
    body = _body(gzip_is_read=True)
    if flask.request.mimetype == "application/x-ndjson":
        return _limited([_json(line) for line in body.split(b"\n") if line.strip()])
    records = _json(body)
    if not isinstance(records, list):
        raise Refused(400, "the body must be a JSON array of events")
    return _limited(records)


def _client_records(*, gzip_is_read: bool) -> list[Any]:
    """A JSON array, or in the form field `data` JSON or base64 of it. One object alone will do."""
    body = _body(gzip_is_read=gzip_is_read)
    if flask.request.mimetype == "application/x-www-form-urlencoded":
        try:
            data = parse_qs(body.decode(), max_num_fields=10)["data"][0]
            body = data.encode() if data.lstrip()[:1] in ("[", "{") else base64.b64decode(data, validate=True)
        except (ValueError, KeyError):
            raise Refused(200, "the form must have a field data with JSON or base64 of it") from None
    records = _json(body, 200)
    if isinstance(records, dict):
        records = [records]
    if not isinstance(records, list):
        raise Refused(200, "the body must be a JSON array")
    return _limited(records)


def _limited(records: list[Any]) -> list[Any]:
    if len(records) > MAX_RECORDS:
        raise Refused(413, f"request exceeds max limit of {MAX_RECORDS} records")
    return records


def _body(*, gzip_is_read: bool) -> bytes:
    too_large = Refused(413, f"request exceeds max limit of {MAX_BODY_BYTES} bytes")
    flask.request.max_content_length = MAX_BODY_BYTES
    try:
        body = flask.request.get_data()
    except RequestEntityTooLarge:
        raise too_large from None
    except HTTPException as error:
        raise Refused(400, error.name) from None
    encoding = flask.request.headers.get("Content-Encoding", "identity").lower()
    if encoding == "identity":
        return body
    if encoding != "gzip" or not gzip_is_read:
        raise Refused(400, f"content encoding {encoding[:20]!r} is not supported")
    # One member and never more than the ceiling: a gzip bomb costs two megabytes, not two thousand.
    member = zlib.decompressobj(wbits=31)
    try:
        body = member.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise Refused(400, "the body is not gzip") from None
    if len(body) > MAX_BODY_BYTES:
        raise too_large
    if not member.eof or member.unused_data:
        raise Refused(400, "the body is not one whole gzip member")
    return body


def _json(text: bytes, refused_code: int = 400) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Refused(refused_code, f"malformed JSON: {error.msg}") from None


def _complete(event: Any, now_ms: int) -> None:
    """Give an event of /track what a client may leave out.

    Without any id Mixpanel hashes the request's address; for Simplified that is UNCONFIRMED: nobody's event.
    """
    properties = event.get("properties") if isinstance(event, dict) else None
    if not isinstance(properties, dict):
        return
    for name, value in {"time": now_ms, "$insert_id": uuid.uuid4().hex, "distinct_id": ""}.items():
        if properties.get(name) is None:
            properties[name] = value


def _failed_record(index: int, event: Any, failure: validation.Failure) -> dict[str, Any]:
    properties = event.get("properties") if isinstance(event, dict) else None
    insert_id = properties.get("$insert_id") if isinstance(properties, dict) else None
    return {
        "index": index,
        "$insert_id": insert_id if isinstance(insert_id, str) else "",
        "field": failure.field,
        "message": failure.message,
    }


def _answer(code: int, **fields: Any) -> flask.Response:
    body = orjson.dumps({"code": code, **fields, "status": STATUS[code]})
    return flask.Response(body, code, mimetype="application/json")


def _client_answer(refused: Refused | None) -> flask.Response:
    """The answer of /track, /engage and /groups: 1 or 0, in JSON if asked. Bad records are a 200 too."""
    code = refused.code if refused else 200
    if flask.request.args.get("verbose", "0") != "0":
        body = orjson.dumps({"status": 0 if refused else 1, "error": refused.error if refused else None})
        return flask.Response(body, code, mimetype="application/json")
    return flask.Response("0" if refused else "1", code, mimetype="text/plain")


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
