"""The fields of Segment's calls: scalars read generously, with errors that say what was expected.

A text that arrives as a number becomes a string, PHP's empty array is an empty object, a time may have any of the
shapes of reference segment.md 1.2.
"""

import datetime as dt
import math
import re
from typing import Any

from marshmallow import fields

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
#: Go prints a time as "2016-11-21 23:06:20.5 +0000 UTC"; one delete message is documented so (segment.md 1.2).
_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) ([+-]\d{4})(?: [A-Z]+)?(?: m=.*)?$")
#: A number below this is in seconds, else in milliseconds: either reading is past 1973 and before 5138.
_SECONDS_BELOW = 100_000_000_000
_YEAR_9999_MS = 253_402_300_799_999


class Text(fields.Field[str]):
    """A string; numbers become strings, for SDKs write versions and ids either way."""

    default_error_messages = {
        "required": "missing; expected a string",
        "null": "expected a string, got null",
        "invalid": "expected a string, got {got}",
        "nul": "expected a string without NUL characters",
        "inexact": "expected a string; this number is too large to be exact",
        "blank": "expected a string that is not empty",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.make_error("invalid", got=kind_of(value))
        if isinstance(value, float):
            if not value.is_integer():
                value = repr(value)
            elif abs(value) < 2**53:
                value = int(value)
            else:
                raise self.make_error("inexact")
        text = str(value)
        if "\0" in text:
            raise self.make_error("nul")
        if self.required and not text.strip():
            raise self.make_error("blank")
        return text


class Number(fields.Field[float]):
    """A number, or a string that is one."""

    default_error_messages = {"invalid": "expected a number, got {got}"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise self.make_error("invalid", got="a string") from None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.make_error("invalid", got=kind_of(value))
        return value


class Timestamp(fields.Field[int]):
    """A point in time, loaded as milliseconds since the epoch: ISO 8601, Go's spelling, or a number.

    Without a zone it is UTC, as Segment's Python library means it.
    """

    default_error_messages = {"invalid": "expected an ISO 8601 time such as 2026-03-01T12:00:00.000Z"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        try:
            if isinstance(value, str):
                return _iso_ms(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return _within_calendar(round(value * 1000 if abs(value) < _SECONDS_BELOW else value))
        except (ValueError, OverflowError):
            pass
        raise self.make_error("invalid")


class Object(fields.Dict):
    """An object of any content."""

    default_error_messages = {"invalid": "expected an object"}

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return super().deserialize({} if value == [] else value, *args, **kwargs)


class Part(fields.Nested):
    """An object with a schema of its own."""

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return super().deserialize({} if value == [] else value, *args, **kwargs)


def kind_of(value: Any) -> str:
    names = {bool: "a boolean", dict: "an object", list: "an array", str: "a string"}
    return names.get(type(value), "a number")


def _iso_ms(text: str) -> int:
    if go := _GO_TIME.match(text):
        text = "".join(go.groups())
    time = dt.datetime.fromisoformat(text)
    if time.tzinfo is None:
        time = time.replace(tzinfo=dt.UTC)
    return (time - _EPOCH) // _MILLISECOND


def _within_calendar(ms: int) -> int:
    if abs(ms) > _YEAR_9999_MS:
        raise ValueError
    return ms


def text() -> Text:
    return Text(allow_none=True)


def flag() -> fields.Boolean:
    return fields.Boolean(allow_none=True, error_messages={"invalid": "expected true or false"})


def number() -> Number:
    return Number(allow_none=True)


def object_() -> Object:
    return Object(allow_none=True)
