"""What Segment sends: one marshmallow schema for each call, and the Message they load into.

Fields and their shapes are those of reference segment.md 1.1-1.4. Unknown fields are kept; null and absent are the
same. Errors name the field and what was expected.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import orjson
from marshmallow import INCLUDE, Schema, ValidationError, fields

from schemas.fields import Object, Part, Text, Timestamp, flag, kind_of, number, object_, text

#: What changes when a message is sent again, and so does not belong to its content (design 3.4).
_ENVELOPE = ("sentAt", "receivedAt", "writeKey", "_metadata")


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One Segment call, validated. Names are Segment's, in snake_case; times are milliseconds since the epoch."""

    type: str  #: identify, track, page, screen, group, alias or delete
    message_id: str  #: Segment's unique id; made from the content where there was none
    anonymous_id: str | None = None  #: the device's id; this or user_id is present
    user_id: str | None = None
    previous_id: str | None = None  #: alias: the id known until now
    group_id: str | None = None
    event: str | None = None  #: track: the event's name
    name: str | None = None  #: page and screen
    category: str | None = None  #: page and screen
    properties: dict[str, Any] = field(default_factory=dict)
    traits: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    integrations: dict[str, Any] = field(default_factory=dict)
    project_id: str | None = None  #: Segment's source
    timestamp: int | None = None  #: when it happened, clock skew corrected by Segment
    original_timestamp: int | None = None  #: the client's own clock
    received_at: int | None = None  #: when Segment took it
    sent_at: int | None = None
    unknown: dict[str, Any] = field(default_factory=dict)  #: top-level fields that no schema declares


class _Open(Schema):
    class Meta:
        unknown = INCLUDE

    error_messages = {"type": "expected an object"}


class App(_Open):
    name = text()
    version = text()
    build = text()
    namespace = text()


class Campaign(_Open):
    name = text()
    source = text()
    medium = text()
    term = text()
    content = text()


class Device(_Open):
    id = text()
    advertisingId = text()
    adTrackingEnabled = flag()
    manufacturer = text()
    model = text()
    name = text()
    type = text()
    version = text()
    token = text()


class Library(_Open):
    name = text()
    version = text()


class Location(_Open):
    city = text()
    country = text()
    region = text()
    latitude = number()
    longitude = number()
    speed = number()


class Network(_Open):
    bluetooth = flag()
    carrier = text()
    cellular = flag()
    wifi = flag()


class OperatingSystem(_Open):
    name = text()
    version = text()


class Page(_Open):
    path = text()
    referrer = text()
    search = text()
    title = text()
    url = text()


class Referrer(_Open):
    id = text()
    type = text()
    name = text()
    url = text()
    link = text()


class Screen(_Open):
    width = number()
    height = number()
    density = number()


class UserAgentData(_Open):
    mobile = flag()
    platform = text()
    architecture = text()
    bitness = text()
    model = text()
    platformVersion = text()
    uaFullVersion = text()
    wow64 = flag()


class Context(_Open):
    active = flag()
    app = Part(App, allow_none=True)
    campaign = Part(Campaign, allow_none=True)
    device = Part(Device, allow_none=True)
    ip = text()
    library = Part(Library, allow_none=True)
    locale = text()
    location = Part(Location, allow_none=True)
    network = Part(Network, allow_none=True)
    os = Part(OperatingSystem, allow_none=True)
    page = Part(Page, allow_none=True)
    referrer = Part(Referrer, allow_none=True)
    screen = Part(Screen, allow_none=True)
    timezone = text()
    groupId = text()
    traits = object_()
    userAgent = text()
    userAgentData = Part(UserAgentData, allow_none=True)
    amp = object_()
    externalIds = fields.List(object_(), allow_none=True, error_messages={"invalid": "expected an array"})
    integration = object_()
    personas = object_()
    consent = object_()
    channel = text()


class _Call(_Open):
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


class Batch(_Open):
    """The tracking API's batch form: what stands beside the messages holds for each of them (segment.md 4.1)."""

    batch = fields.List(
        Object(),
        required=True,
        error_messages={"required": "missing; expected an array", "invalid": "expected an array"},
    )
    context = object_()
    integrations = object_()
    sentAt = Timestamp(allow_none=True)
    writeKey = text()


def load(data: Any) -> Message:
    """Validate one parsed call. Raises marshmallow's ValidationError; `flat` names its fields by their paths."""
    if not isinstance(data, dict):
        raise ValidationError({"message": [f"expected an object, got {kind_of(data)}"]})
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in CALLS:
        raise ValidationError({"type": [f"expected one of {', '.join(CALLS)}"]})
    schema = CALLS[kind]
    loaded = {name: value for name, value in schema.load(data).items() if value is not None}
    anonymous_id, user_id = loaded.get("anonymousId") or None, loaded.get("userId") or None
    if anonymous_id is None and user_id is None:
        raise ValidationError({"userId": ["expected userId, anonymousId or both"]})
    if kind == "alias" and not (loaded.get("previousId") or anonymous_id):
        raise ValidationError({"previousId": ["missing; expected the id known until now"]})
    return Message(
        type=kind,
        message_id=loaded.get("messageId") or "content:" + content_hash(data).hex(),
        anonymous_id=anonymous_id,
        user_id=user_id,
        # Where an alias does not say who it was, Segment's browser library means the visitor (segment.md 1.3).
        previous_id=(loaded.get("previousId") or anonymous_id) if kind == "alias" else None,
        group_id=loaded.get("groupId"),
        event=loaded.get("event"),
        name=loaded.get("name"),
        category=loaded.get("category"),
        properties=loaded.get("properties", {}),
        traits=loaded.get("traits", {}),
        context=loaded.get("context", {}),
        integrations=loaded.get("integrations", {}),
        project_id=loaded.get("projectId"),
        timestamp=loaded.get("timestamp"),
        original_timestamp=loaded.get("originalTimestamp"),
        received_at=loaded.get("receivedAt"),
        sent_at=loaded.get("sentAt"),
        unknown={name: value for name, value in loaded.items() if name not in schema.fields},
    )


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
