"""Door 1: Segment's Webhooks destinations, classic (one object) and Actions (an object or an array).

What we answer decides what Segment does next (segment.md 3.4):

    200  everything is on disk; the receipt says what was taken, known already, or rejected
    400  nothing of it can ever be taken; the rejected message is kept and shown
    401, 413, 415  this request can never be taken as it is: Segment drops it
    503  the store cannot take it now: Segment sends it again for four hours
"""

import hashlib
import hmac
import logging
from collections import Counter
from collections.abc import Callable, Collection

import orjson
from flask import Blueprint, Response, current_app, request
from werkzeug.exceptions import RequestEntityTooLarge

from adapter import intake, logs
from adapter.config import Settings
from adapter.errors import RequestRefused
from adapter.records import Options
from adapter.store import Store
from schemas import raw

logger = logging.getLogger(__name__)

#: Segment sends at most 4,000 messages or about 4 MB in one body (segment.md 3.2).
MAX_BODY_BYTES = 8_000_000


Wake = Callable[[Collection[tuple[str, int]]], None]


def blueprint(store: Store, settings: Settings, wake: Wake) -> Blueprint:
    """`POST /webhook`. `wake` is called after each commit that brought something, with its endpoints and lanes."""
    views, options = Blueprint("webhook", __name__), Options.of(settings)
    rejected = logs.Seldom(logger)

    @views.post("/webhook")
    def webhook() -> Response:
        if request.mimetype != "application/json":
            raise RequestRefused(415, "unsupported_media_type", "expected Content-Type: application/json")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise RequestRefused(415, "unsupported_encoding", "expected a body without Content-Encoding")
        # Before the body is read: who has no token must not keep a thread waiting for a body that never comes.
        check_token(request.headers.get("Authorization"), settings)
        # A body that does not say how long it is gets cut at the limit without a word: one byte more tells.
        request.max_content_length = MAX_BODY_BYTES + 1
        body = request.get_data(cache=False)
        if len(body) > MAX_BODY_BYTES:
            raise RequestEntityTooLarge
        if request.content_length is not None and len(body) != request.content_length:
            raise RequestRefused(400, "incomplete", f"expected {request.content_length} bytes, got {len(body)}")
        unauthenticated_from = check_signature(body, request.headers.get("X-Signature"), settings)
        try:
            raws = raw.elements(body)
        except raw.TooMany as error:
            raise RequestRefused(413, "too_many_messages", str(error)) from None
        except raw.Malformed as error:
            raise RequestRefused(400, "malformed", str(error)) from None
        del body  # there are its messages, and a commit can take a while
        receipt = intake.accept(raws, store, options, unauthenticated_from=unauthenticated_from)
        if receipt.accepted:
            wake(receipt.lanes)
        if receipt.rejected:
            reasons = Counter(one.reason for one in receipt.rejected)
            rejected.say(" ".join(sorted(reasons)), "messages were rejected", **reasons)
        if not receipt.accepted and not receipt.duplicates:
            raise _nothing_taken(receipt)
        return _answer(receipt)

    return views


def check_token(authorization: str | None, settings: Settings) -> None:
    """Prove that a request comes from Segment by the bearer token, where one is configured.

        WEBHOOK_TOKEN   SEGMENT_SHARED_SECRET   what must hold
        -               -                       nothing: only on loopback does the adapter start so
        set             -                       the bearer token
        -               set                     the signature; it may cover only an array's first element
        set             set                     both

    Every secret is compared, in constant time, so that several can be in use while they rotate. Raises RequestRefused
    with 401.
    """
    if settings.webhook_tokens:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not _matches(token.strip(), settings.webhook_tokens):
            what = "expected the header Authorization: Bearer and a token, one of WEBHOOK_TOKEN"
            raise RequestRefused(401, "unauthorized", what)


def check_signature(body: bytes, signature: str | None, settings: Settings) -> int | None:
    """The same by the signature, where a shared secret is configured. Raises RequestRefused with 401.

    Returns the index from which on elements are authenticated by nobody, or None if all are.
    """
    if not settings.shared_secrets:
        return None
    given = signature or ""
    if _matches(given, [_sign(secret, body) for secret in settings.shared_secrets]):
        return None
    # Of a batch Segment signs the first element alone, and its raw bytes (segment.md 3.2).
    first = raw.first_element(body) if body.lstrip()[:1] == b"[" else b""
    if not first or not _matches(given, [_sign(secret, first) for secret in settings.shared_secrets]):
        what = "the HMAC-SHA1 of the body, or of an array's first element, in lower-case hex"
        raise RequestRefused(401, "unauthorized", f"expected X-Signature: {what}")
    return None if settings.webhook_tokens else 1


def _sign(secret: str, message: bytes) -> str:
    return hmac.new(secret.encode(), message, hashlib.sha1).hexdigest()


def _matches(given: str, expected: "list[str] | tuple[str, ...]") -> bool:
    # A list, not a generator: any() would stop at the first that matches, and the time would tell which.
    return any([hmac.compare_digest(given.encode(errors="replace"), one.encode()) for one in expected])


def _nothing_taken(receipt: intake.Receipt) -> RequestRefused:
    """What was wrong by path; behind its place in the body where there are several messages."""
    first, *others = receipt.rejected
    if not others:
        text = "; ".join(f"{path}: {', '.join(faults)}" for path, faults in first.fields.items())
        return RequestRefused(400, first.reason, text, first.fields)
    fields = {f"{one.index}.{path}": faults for one in receipt.rejected for path, faults in one.fields.items()}
    text = f"none of the {len(receipt.rejected)} messages can be taken"
    return RequestRefused(400, first.reason, text, fields)


def _answer(receipt: intake.Receipt) -> Response:
    rejected = [{"index": one.index, "reason": one.reason, "errors": one.fields} for one in receipt.rejected]
    said = {"success": True, "accepted": receipt.accepted, "duplicates": receipt.duplicates, "rejected": rejected}
    body = orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)  # for whoever reads it in a terminal
    return current_app.response_class(body, mimetype="application/json")
