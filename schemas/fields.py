"""The kinds of fields: Segment's scalars, read generously, with errors that say what was expected; Mixpanel's
properties, each a line of the mapping table.

A text that arrives as a number becomes a string, PHP's empty array is an empty object, a time may have any of the
shapes of reference segment.md 1.2.
"""

import datetime as dt
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any

import msgspec
from marshmallow import fields, missing, utils

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ]|$)")
#: Go prints a time as "2016-11-21 23:06:20.5 +0000 UTC"; one delete message is documented so (segment.md 1.2).
_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) ([+-]\d{4})(?: [A-Z]+)?(?: m=.*)?$")
#: A number below this is in seconds, else in milliseconds: either reading is past 1973 and before 5138.
SECONDS_BELOW = 100_000_000_000


class Text(fields.Field[str]):
    """A string; numbers become strings, for SDKs write versions and ids either way."""

    default_error_messages = {
        "required": "missing; expected a string",
        "null": "expected a string, got null",
        "invalid": "expected a string, got {got}",
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
        if self.required and not text.strip():
            raise self.make_error("blank")
        return text


class Number(fields.Field[float]):
    """A number, or a string that is one."""

    default_error_messages = {"invalid": "expected a number, got {got}"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        number = value
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                raise self.make_error("invalid", got=kind_of(value)) from None
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise self.make_error("invalid", got=kind_of(value))
        return number


class Timestamp(fields.Field[dt.datetime]):
    """A point in time with its zone: ISO 8601, Go's spelling, or a number of seconds or milliseconds.

    Without a zone it is UTC, as Segment's Python library means it.
    """

    default_error_messages = {"invalid": "expected an ISO 8601 time such as 2026-03-01T12:00:00.000Z"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dt.datetime:
        try:
            if isinstance(value, str):
                return _read_time(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                ms = round(value * 1000 if abs(value) < SECONDS_BELOW else value)
                return EPOCH + dt.timedelta(milliseconds=ms)
        except (ValueError, OverflowError):
            pass
        raise self.make_error("invalid")


class Object(fields.Dict):
    """An object of any content."""

    default_error_messages = {"invalid": "expected an object", "null": "expected an object, got null"}

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return super().deserialize({} if value == [] else value, *args, **kwargs)


class Part(fields.Nested):
    """An object with a schema of its own."""

    def deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return super().deserialize({} if value == [] else value, *args, **kwargs)


#: Where a property comes from: a path, and what makes of its value the one to send, or None if that is nothing.
Source = tuple[str, Callable[[Any], Any] | None]


@dataclass(frozen=True)
class Said:
    """One of the things that one reading of a value says, as a convert: whoever wants several reads once for all."""

    read: Callable[[Any], Any]
    name: str  #: the attribute of what is read

    def __call__(self, value: Any) -> Any:
        return getattr(self.read(value), self.name)


@dataclass(frozen=True)
class But:
    """A convert that leaves values of one type as they are: most are, and so are not asked about."""

    kept: type
    convert: Callable[[Any], Any]

    def __call__(self, value: Any) -> Any:
        return value if type(value) is self.kept else self.convert(value)


class Property(fields.Field[Any]):
    """One line of the mapping table: the first of its sources that gives a value.

    `also` names further sources, as paths or as (path, convert); `absent` is sent where no source gives a value;
    `setting` is the one that asks for it, if it is not always sent.
    """

    def __init__(
        self,
        name: str,
        path: str,
        meaning: str,
        origin: str,
        *,
        convert: Callable[[Any], Any] | None = None,
        also: tuple[str | Source, ...] = (),
        absent: Any = None,
        setting: str = "",
    ) -> None:
        super().__init__(
            dump_only=True,
            data_key=name,
            attribute=path,
            metadata={"meaning": meaning, "origin": origin, "setting": setting},
        )
        others = ((one, None) if isinstance(one, str) else one for one in also)
        self.sources: tuple[Source, ...] = ((path, convert), *others)
        self.absent = absent

    def serialize(self, attr: str, obj: Any, accessor: Any = None, **kwargs: Any) -> Any:
        read = accessor or utils.get_value
        for path, convert in self.sources:
            value = read(obj, path, None)
            if value is not None and convert is not None:
                value = convert(value)
            if value is not None:
                return value
        return missing if self.absent is None else self.absent


def kind_of(value: Any) -> str:
    names = {bool: "a boolean", dict: "an object", list: "an array", str: "a string", NoneType: "null"}
    return names.get(type(value), "a number")


def milliseconds(time: dt.datetime) -> int:
    """Whole milliseconds since the epoch."""
    since = time - EPOCH
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def _read_time(text: str) -> dt.datetime:
    try:
        # First as the typed decoder of schemas.compiled reads it, so that both agree to the microsecond.
        time = msgspec.convert(text, dt.datetime)
    except msgspec.ValidationError:
        if go := _GO_TIME.match(text):
            text = "".join(go.groups())
        elif not _ISO_DATE.match(text):
            raise ValueError from None
        time = dt.datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=dt.UTC)


def text() -> Text:
    return Text(allow_none=True)


def flag() -> fields.Boolean:
    return fields.Boolean(allow_none=True, error_messages={"invalid": "expected true or false"})


def number() -> Number:
    return Number(allow_none=True)


def object_() -> Object:
    return Object(allow_none=True)
