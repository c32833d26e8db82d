"""Who is to be forgotten, and which messages are theirs. Pure.

A `delete` names a user; the devices linked to them are theirs as well (segment.md 7).
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
from marshmallow import ValidationError

from adapter import identity, keys
from adapter.errors import Refused
from adapter.identity import DEVICE_PREFIX
from adapter.records import SIMPLIFIED, Options
from schemas.fields import Text
from schemas.segment import Message

_IDS = ("userId", "anonymousId", "previousId")
#: An id in a body that is no JSON, or no object.
_ID = re.compile(rb'"(userId|anonymousId|previousId)"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')
#: What every JSON writer writes as itself or as \u00XX.
_PLAIN = re.compile(r"[ -~]+")
_OFTEN_ESCAPED = re.compile(r'["\\/]')
_text = Text()


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """A user and the devices that are theirs."""

    user: str
    devices: tuple[str, ...] = ()
    denied: frozenset[str] = frozenset()  #: ids that are none; casefolded

    @property
    def ids(self) -> frozenset[str]:
        return frozenset((self.user, *self.devices))

    @property
    def lanes(self) -> frozenset[int]:
        return frozenset(keys.lane(an_id) for an_id in self.ids)

    def is_named_in(self, body: bytes) -> bool:
        """True for a message that carries one of the ids, whoever it is of."""
        return not self.ids.isdisjoint(identity.bare(an_id) for _, an_id in _ids_in(body)[1])

    def owns(self, body: bytes) -> bool:
        """True for a message that is of this person: it says so, or says no user and is of a device of theirs.

        What another did on a shared device is the other's. An alias says that its two ids are one person.
        """
        kind, found = _ids_in(body)
        users = {one for name, one in found if name == "userId" and self._is_user(one)}
        if users and kind != "alias":
            return self.user in users
        return not self.ids.isdisjoint(identity.bare(an_id) for _, an_id in found)

    def distinct_ids(self, options: Options) -> tuple[str, ...]:
        """Every id under which Mixpanel may have data of the person: of a cluster, each member (mixpanel.md 5.1)."""
        forms = ("",) if options.system != SIMPLIFIED else ()
        devices = (f"{form}{device}" for device in self.devices for form in (DEVICE_PREFIX, *forms))
        return tuple(dict.fromkeys((self.user, *devices)))

    def _is_user(self, an_id: str) -> bool:
        return not an_id.startswith(DEVICE_PREFIX) and not identity.is_junk(an_id, self.denied)


def user_of(message: Message, denied: frozenset[str] = frozenset()) -> str:
    """Whom a delete is about. Raises Refused: Segment deletes users, and no id must reach everybody who has none."""
    user = message.user_id or ""
    if user.startswith(DEVICE_PREFIX):
        raise Refused("delete_of_a_device", "userId is a device; a deletion names the user")
    if identity.is_junk(user, denied):
        raise Refused("no_id", "userId is no id that Mixpanel takes")
    return user


def needle(an_id: str) -> bytes:
    """Bytes that stand in every body with this id, unless one with a `\\u00` in it: a filter before `is_named_in`.

    Not in one where a number is the id and has an exponent, which no SDK writes.
    """
    runs = [run for plain in _PLAIN.findall(an_id) for run in _OFTEN_ESCAPED.split(plain)]
    return max(runs, key=len, default="").encode()


def _ids_in(body: bytes) -> tuple[Any, list[tuple[str, str]]]:
    """The type of a message and its ids, each with the field it is in; of a refused one too, as far as it goes."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        message = None
    if isinstance(message, dict):
        values = [(name, message.get(name)) for name in _IDS]
        return message.get("type"), list(_texts(values))
    return None, list(_texts([(name.decode(), _value(value)) for name, value in _ID.findall(body)]))


def _texts(values: list[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    for name, value in values:
        try:
            yield name, _text.deserialize(value)
        except ValidationError:
            continue


def _value(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
