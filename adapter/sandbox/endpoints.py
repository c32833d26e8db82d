"""How does Mixpanel's ingestion API answer? POST /import, /track, /engage and /groups of one sandbox project.

Each door reads the body (`bodies`), judges record by record (`validation`), keeps what is good (`project`) and
words the answer. Source: reference/mixpanel.md 2.2 (import), 2.3 (track), 2.4-2.5 (profiles).
"""

import hmac
import time
import uuid
from collections.abc import Callable
from typing import Any, Literal

import flask
import orjson

from adapter.sandbox import bodies, questions, validation
from adapter.sandbox.bodies import Refused
from adapter.sandbox.ids import MERGE, VERBS, Failure
from adapter.sandbox.project import Project

TRACK_WINDOW_MS = 5 * 86_400_000
STATUS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 413: "Request Entity Too Large"}


def blueprint(
    project: Project,
    *,
    token: str,
    service_account: tuple[str, str, str] | None,
    clock: Callable[[], float] = time.time,
) -> flask.Blueprint:
    """The doors of a project. `service_account`: user name, secret, project id; None: there is none.

    Whether the token alone opens /import for $merge, too, is UNCONFIRMED: here it does.
    """
    doors = flask.Blueprint("sandbox", __name__)
    system = project.system

    def now_ms() -> int:
        return int(clock() * 1000)

    @doors.post("/import")
    def import_events() -> flask.Response:
        error = _credentials_error(token, service_account)
        if error is not None:
            return _answer(401, error=error)
        try:
            records = bodies.import_records()
        except Refused as refused:
            return _answer(refused.code, error=refused.error)
        now, good = now_ms(), []
        failed: list[str | dict[str, Any]] = []
        for index, record in enumerate(records):
            if _name(record) in VERBS:  # Mixpanel's own examples of them have neither time nor insert id
                _complete(record, now)
            failure = validation.event_error(record, now, system)
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
            records = bodies.client_records(gzip_is_read=True)
        except Refused as refused:
            return _client_answer(refused)
        now, good, valid, error = now_ms(), [], 0, "no events"
        for record in records:
            _complete(record, now)
            failure = validation.event_error(record, now, system)
            if failure is not None and failure.field:
                error = failure.message
                continue
            properties = record["properties"]
            if not isinstance(properties.get("token"), str):
                error = "'properties.token' is invalid: must not be missing"
                continue
            valid += 1
            # Dropped behind a good answer: a verb in a Simplified project and $merge in any (that they are not
            # stored is UNCONFIRMED), a strange token, an old event.
            is_ours = failure is None and record["event"] != MERGE and _same(properties["token"], token)
            if is_ours and now - validation.time_ms(properties["time"]) <= TRACK_WINDOW_MS:
                good.append(record)
        project.ingest_events(good)
        # The documents conflict on whether 1 means one valid event or all of them; here one.
        return _client_answer(None if valid else Refused(200, error))

    def update(kind: Literal["engage", "groups"], apply: Callable[[list[dict[str, Any]]], None]) -> flask.Response:
        try:
            records = bodies.client_records(gzip_is_read=False)
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

    @doors.before_request
    def only_with_credentials() -> flask.Response | None:
        """Reading wants what /import wants; the doors for clients want the token in each record."""
        if flask.request.method == "POST":
            return None
        error = _credentials_error(token, service_account)
        return None if error is None else _answer(401, error=error)

    questions.add(doors, project)
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


def _name(event: Any) -> str | None:
    name = event.get("event") if isinstance(event, dict) else None
    return name if isinstance(name, str) else None


def _complete(event: Any, now_ms: int) -> None:
    """Give an event of /track, or a verb, what a client may leave out.

    Without any id Mixpanel hashes the request's address, for Simplified UNCONFIRMED: here it is nobody's event.
    """
    properties = event.get("properties") if isinstance(event, dict) else None
    if not isinstance(properties, dict):
        return
    for name, value in {"time": now_ms, "$insert_id": uuid.uuid4().hex, "distinct_id": ""}.items():
        if properties.get(name) is None:
            properties[name] = value


def _failed_record(index: int, event: Any, failure: Failure) -> dict[str, Any]:
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
