"""Bytes that claim to be JSON: parsed strictly, and cut into the raw messages of a body.

A message is kept byte for byte as it arrived, so a body is cut, never parsed and written again. What the parser
accepts, every later step can write: that is why depth and integers are bounded here.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import msgspec
import orjson

#: A batch of Segment's Webhooks (Actions) carries at most 4,000 messages (segment.md 3.2).
MAX_MESSAGES = 4_000
#: Segment itself takes at most 32 KB (segment.md 1.1); Mixpanel less than 1 MB (mixpanel.md 3.1).
MAX_MESSAGE_BYTES = 1_000_000
#: orjson reads 1,024 levels and writes 254; Segment's own messages have fewer than ten.
MAX_DEPTH = 128

#: 64 bits need at most 20 digits, and no fewer than 19 can be too many: a run of so many is looked at twice.
_TO_ZERO, _LONG_RUN = bytes.maketrans(b"123456789", b"000000000"), b"0" * 19
#: Possessive: a string is never given back, so that one of a million escapes needs no memory for each.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+|[\[\]{},]', re.DOTALL)
_WHITESPACE = b" \t\r\n"
#: Eight megabytes of Segment's messages have half as many. More could be as many elements, which are counted before
#: they are made: the decoder counts them when it has them all, 30 bytes of memory for one that was sent.
_MANY_COMMAS = 500_000
_ARRAY = msgspec.json.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_MESSAGES)])


class Malformed(ValueError):
    """The bytes are no JSON, or JSON that could not be passed on unchanged. The text says what was expected."""


class TooMany(ValueError):
    """The array has more elements than one body may carry."""

    def __init__(self) -> None:
        super().__init__(f"expected at most {MAX_MESSAGES} messages in one body")


def parse(raw: bytes) -> Any:
    """Parse one JSON value; NaN, lone surrogates, raw control characters and trailing bytes are refused.

    Integers beyond 64 bits are refused too: the fast parser would turn them into floats without a word.
    Raises Malformed.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"expected JSON: {error}") from None
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise Malformed(f"expected at most {MAX_DEPTH} levels of nesting")
    if _LONG_RUN in raw.translate(_TO_ZERO) and _has_long_integer(raw):
        raise Malformed("expected integers of at most 64 bits; send longer numbers as strings")
    return value


def dumped(value: Any) -> bytes:
    """A value as JSON, to be kept: orjson's own bytes take 4 KB for a few of them, and 8 KB for a record."""
    return b"%b" % orjson.dumps(value)


def is_plain(raw: bytes) -> bool:
    """True for bytes that `parse` accepts if the typed decoder does, but for what is in fields that nobody reads."""
    return raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH and _LONG_RUN not in raw.translate(_TO_ZERO)


def elements(body: bytes) -> list[bytes]:
    """Cut a body into its raw messages: the elements of an array, or all of it, each to be judged alone.

    An array the parser rejects (one cut emoji is enough) is cut at its top-level commas all the same. Raises
    Malformed if it is empty, TooMany past MAX_MESSAGES.
    """
    body = body.strip(_WHITESPACE)
    if body[:1] != b"[":
        return [body]
    if body.count(b",") > _MANY_COMMAS and sum(1 for _ in islice(cut(body), MAX_MESSAGES + 1)) > MAX_MESSAGES:
        raise TooMany
    try:
        found = [bytes(element) for element in _ARRAY.decode(body)]
    except msgspec.ValidationError:
        raise TooMany from None
    except (msgspec.DecodeError, RecursionError):
        found = list(islice(cut(body), MAX_MESSAGES + 1))
        if len(found) > MAX_MESSAGES:
            raise TooMany from None
    if not found:
        raise Malformed("expected at least one message, got an empty array")
    return found


def first_element(body: bytes) -> bytes:
    """The raw bytes of an array's first element: exactly what Segment signs of a batch (segment.md 3.2).

    Whoever asks has not been authenticated yet, so no more is looked at than a message may have.
    """
    return next(cut(body.strip(_WHITESPACE)[: MAX_MESSAGE_BYTES + 2]), b"")


def cut(array: bytes) -> Iterator[bytes]:
    """Yield what stands between the top-level commas of `array`, whatever it is, and what follows it as one more.

    A token is a whole string or one bracket or comma, so that brackets within strings do not count.
    """
    depth, start = 0, 1
    for token in _TOKEN.finditer(array):
        match token[0]:
            case b"[" | b"{":
                depth += 1
            case b"]" | b"}":
                depth -= 1
            case b",":
                if depth == 1:
                    yield array[start : token.start()].strip(_WHITESPACE)
                    start = token.end()
            case _:
                continue
        if depth == 0:
            last, rest = array[start : token.start()].strip(_WHITESPACE), array[token.end() :]
            if last:
                yield last
            if rest.strip(_WHITESPACE):
                yield rest
            return
    yield array[start:].strip(_WHITESPACE)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return True


def _has_long_integer(raw: bytes) -> bool:
    # msgspec keeps long integers as they are; a number too long even for Python is long enough.
    try:
        pending = [msgspec.json.decode(raw)]
    except (msgspec.DecodeError, ValueError):
        return True
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            return True
    return False
