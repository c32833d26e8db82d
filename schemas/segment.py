"""What Segment sends: one marshmallow schema for each call, and the Message they load into.

Fields and their shapes are those of reference segment.md 1.1-1.4; unknown fields are allowed; null and absent are the
same. Errors name the field and what was expected. Most calls are read by a typed decoder made from these schemas.
"""

import datetime as dt
import hashlib
import re
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
from marshmallow import Schema, ValidationError, fields

from schemas import compiled
from schemas.context import Context, Open
from schemas.fields import Object, Part, Text, Timestamp, kind_of, number, object_, text

#: What changes when a message is sent again, and so does not belong to its content (design 3.4).
_ENVELOPE = ("sentAt", "receivedAt", "writeKey", "_metadata")


class Message:
    """One Segment call, validated. Names are Segment's, in snake_case; None is what a call does not have.

    Each call has a Struct of its own below this class, made from its schema.
    """

    __slots__ = ()

    type: str  #: identify, track, page, screen, group, alias or delete
    message_id: str  #: Segment's unique id; made from the content where there was none
    anonymous_id: str | None = None  #: the device's id; this or user_id is present
    user_id: str | None = None
    previous_id: str | None = None  #: alias: the id known until now
    group_id: str | None = None
    event: str | None = None  #: track: the event's name
    name: str | None = None  #: page and screen
    category: str | None = None  #: page and screen
    properties: dict[str, Any] | None = None
    traits: dict[str, Any] | None = None
    touch: dict[str, Any] | None = None  #: held: what brought the person, ready to be sent
    n_entries: int | None = None  #: held: how many entries ended as held for it
    held_at_ms: int | None = None  #: held: when it last grew
    context: Any = None  #: a Struct with what the schema Context declares
    integrations: dict[str, Any] | None = None
    project_id: str | None = None  #: Segment's source
    timestamp: dt.datetime | None = None  #: when it happened, clock skew corrected by Segment
    original_timestamp: dt.datetime | None = None  #: the client's own clock
    received_at: dt.datetime | None = None  #: when Segment took it
    sent_at: dt.datetime | None = None


def _snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


#: Ids and names, on the wire and here: nothing downstream could carry a NUL in them.
_NAMES = [
    (one, _snake(one))
    for one in ("messageId", "anonymousId", "userId", "previousId", "groupId", "projectId", "event")
]


class _Call(Open):
    type = text()
    anonymousId = text()
    userId = text()
    messageId = text()
    timestamp = Timestamp(allow_none=True)
    originalTimestamp = Timestamp(allow_none=True)
    sentAt = Timestamp(allow_none=True)
    receivedAt = Timestamp(allow_none=True)
    context = Part(Context, allow_none=True)
    integrations = object_()
    channel = text()
    version = fields.Raw(allow_none=True)
    projectId = text()
    writeKey = text()
    _metadata = object_()
    options = object_()


class Identify(_Call):
    traits = object_()


class Track(_Call):
    event = Text(required=True)
    properties = object_()


class PageCall(_Call):
    name = text()
    category = text()
    properties = object_()


class ScreenCall(PageCall):
    pass


class Group(_Call):
    groupId = Text(required=True)
    traits = object_()


class Alias(_Call):
    userId = Text(required=True)
    previousId = text()


class Delete(_Call):
    userId = Text(required=True)


#: The call's `type` -> its schema.
CALLS: dict[str, Schema] = {
    "identify": Identify(),
    "track": Track(),
    "page": PageCall(),
    "screen": ScreenCall(),
    "group": Group(),
    "alias": Alias(),
    "delete": Delete(),
}


class Batch(Open):
    """The tracking API's batch form: what stands beside the messages holds for each of them (segment.md 4.1)."""

    batch = fields.List(
        Object(),
        required=True,
        error_messages=dict.fromkeys(("required", "null", "invalid"), "expected an array of messages"),
    )
    context = object_()
    integrations = object_()
    sentAt = Timestamp(allow_none=True)
    writeKey = text()


class Held(_Call):
    """No call of Segment's: what waited with a visitor's device, put in for the person the visitor became."""

    userId = Text(required=True)
    traits = object_()
    touch = object_()
    nEntries = number()
    heldAtMs = number()


class Glance(_Call):
    """What of any call tells whose it is, when it was and whether it is sent."""

    class Meta(Open.Meta):
        fields = (
            *("type", "messageId", "anonymousId", "userId", "previousId", "groupId", "event", "name", "category"),
            *("timestamp", "originalTimestamp", "sentAt", "receivedAt", "integrations", "projectId", "context"),
        )

    type = Text(required=True)
    previousId = text()
    groupId = text()
    event = text()
    name = text()
    category = text()
    context = Part(Context, only=("protocols", "violations", "consent"), allow_none=True)


HELD = "held"
#: The call's `type` -> the Struct it becomes; attributes in snake_case.
STRUCTS = {
    kind: compiled.struct(schema, bases=(Message,), rename={name: _snake(name) for name in schema.fields})
    for kind, schema in {**CALLS, HELD: Held()}.items()
}
#: The type as it stands in the bytes -> the type, and the decoder of its Struct.
_DECODERS: dict[bytes, tuple[str, Callable[[bytes], Any]]] = {
    kind.encode(): (kind, msgspec.json.Decoder(call).decode) for kind, call in STRUCTS.items()
}
_GLANCE = msgspec.json.Decoder(
    compiled.struct(Glance(), bases=(Message,), rename={name: _snake(name) for name in Glance().fields})
).decode
#: What a call of a type cannot be without.
_NEEDED = {"track": "event", "group": "group_id", "alias": "user_id", "delete": "user_id"}
_BACKSLASH = ord("\\")
_TYPE = re.compile(rb'"type"\s*:\s*"(' + "|".join(STRUCTS).encode() + rb')"')


def load(data: Any) -> Message:
    """Validate one parsed call. Raises marshmallow's ValidationError; `flat` names its fields by their paths."""
    if not isinstance(data, dict):
        raise ValidationError({"message": [f"expected an object, got {kind_of(data)}"]})
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in CALLS:
        raise ValidationError({"type": [f"expected one of {', '.join(CALLS)}"]})
    try:
        message = msgspec.convert(data, STRUCTS[kind])
    except msgspec.ValidationError:
        message = load_slowly(data, kind)
    for wire, attribute in _NAMES:
        if "\0" in (getattr(message, attribute) or ""):
            raise ValidationError({wire: ["expected a string without NUL characters"]})
    return _finished(message, lambda: data)


def read(raw: bytes) -> Message:
    """The same, straight from bytes that `raw.parse` has accepted before. Raises ValidationError."""
    # An object within may have a type too: what is decoded must be of the type that was guessed.
    if found := _TYPE.search(raw):
        kind, decode = _DECODERS[found[1]]
        try:
            message = decode(raw)
        except msgspec.ValidationError:
            pass
        else:
            # The number of a byte is looked for by memchr; bytes in bytes would first be tried as a number.
            free_of_nul = _BACKSLASH not in raw or raw.find(b"\\u0000") < 0
            if message.type == kind and free_of_nul and _is_complete(message):
                done: Message = message
                return done
    return load(orjson.loads(raw))


def glance(raw: bytes) -> Message | None:
    """Whose a call is, when it was and whether it is sent, in a fraction of the time; None: only `read` can tell.

    What else is in it is not looked at, so that it may be invalid all the same.
    """
    try:
        message: Any = _GLANCE(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    needed = _NEEDED.get(message.type, "message_id")
    is_whole = message.type in CALLS and _is_complete(message) and (getattr(message, needed) or "").strip()
    return message if is_whole and (_BACKSLASH not in raw or raw.find(b"\\u0000") < 0) else None


def load_slowly(data: dict[str, Any], kind: str) -> Any:
    """What marshmallow itself makes of a call: it reads what the typed decoder does not, and words the errors."""
    schema = CALLS[kind]
    loaded = schema.load(data)
    return msgspec.convert({name: loaded.get(name) for name in schema.fields}, STRUCTS[kind])


def _is_complete(message: Any) -> bool:
    """True for a call that `_finished` would not change."""
    anonymous_id, user_id = message.anonymous_id, message.user_id
    return bool(
        (anonymous_id or user_id)
        and message.message_id
        and anonymous_id != ""
        and user_id != ""
        and (message.type != "alias" or message.previous_id)
    )


def _finished(message: Any, data: Callable[[], dict[str, Any]]) -> Message:
    """What no single field can say: which ids there must be, and what stands in for one that is not there."""
    message.anonymous_id, message.user_id = message.anonymous_id or None, message.user_id or None
    if message.anonymous_id is None and message.user_id is None:
        raise ValidationError({"userId": ["expected userId, anonymousId or both"]})
    if message.type == "alias":
        # Where an alias does not say who it was, Segment's browser library means the visitor (segment.md 1.3).
        message.previous_id = message.previous_id or message.anonymous_id
        if message.previous_id is None:
            raise ValidationError({"previousId": ["missing; expected the id known until now"]})
    if not message.message_id:
        message.message_id = "content:" + content_hash(data()).hex()
    done: Message = message
    return done


def messages(batch: Any) -> list[dict[str, Any]]:
    """The messages of a parsed batch of the tracking API, each with the batch's context merged beneath its own.

    Raises ValidationError.
    """
    loaded = Batch().load(batch)
    shared = {name: batch[name] for name in ("context", "integrations", "sentAt", "writeKey") if batch.get(name)}
    return [_merged(shared, message) for message in loaded["batch"]]


def _merged(shared: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    merged = {**shared, **message}
    for name in ("context", "integrations"):
        if isinstance(shared.get(name), dict) and isinstance(message.get(name) or {}, dict):
            merged[name] = {**shared[name], **(message.get(name) or {})}
    return merged


def content_hash(data: dict[str, Any]) -> bytes:
    """16 bytes that are equal for a parsed call sent again, whatever its envelope says the second time."""
    content = {name: value for name, value in data.items() if name not in _ENVELOPE}
    return hashlib.blake2b(orjson.dumps(content, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def flat(error: ValidationError) -> dict[str, list[str]]:
    """Marshmallow's nested messages by dotted path: {"context.app": ["expected an object"]}."""
    found: dict[str, list[str]] = {}

    def walk(messages: Any, path: tuple[str, ...]) -> None:
        if isinstance(messages, dict):
            for name, below in messages.items():
                walk(below, path if name == "_schema" else (*path, str(name)))
        else:
            found.setdefault(".".join(path) or "message", []).extend(messages)

    walk(error.messages, ())
    return found
