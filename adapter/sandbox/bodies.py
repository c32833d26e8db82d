"""How do a request's bytes become records? Read under a ceiling, packed or not, and parsed.

Source: reference/mixpanel.md 2.2.1, 2.3, 2.4.
"""

import base64
import zlib
from typing import Any
from urllib.parse import parse_qs

import flask
import orjson
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

MAX_RECORDS = 2_000
#: Uncompressed. The documents say 2 MiB here and 10 MB there; for /engage and /groups nothing at all.
MAX_BODY_BYTES = 2_097_152


class Refused(Exception):
    """The request as a whole is refused: 400 unreadable, 413 too large, 200 where bad content is a 200."""

    def __init__(self, code: int, error: str) -> None:
        super().__init__(error)
        self.code, self.error = code, error


def import_records() -> list[Any]:
    """The records of a request to /import: a JSON array, or one record a line. Raises Refused."""
    body = _body(gzip_is_read=True)
    if flask.request.mimetype == "application/x-ndjson":
        return _limited([_json(line) for line in body.split(b"\n") if line.strip()])
    records = _json(body)
    if not isinstance(records, list):
        raise Refused(400, "the body must be a JSON array of events")
    return _limited(records)


def client_records(*, gzip_is_read: bool) -> list[Any]:
    """A JSON array, or in the form field `data` JSON or base64 of it. One object alone will do. Raises Refused."""
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
