"""Who is to be forgotten, and which messages are theirs. Pure.

A `delete` names a user; the devices linked to them are theirs as well (segment.md 7). With SHARED_DEVICES=split what
names nobody on a shared device is of the user under whose device id it goes out: of the latest login before it.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
from marshmallow import ValidationError

from adapter import identity, keys, links
from adapter.errors import Refused
from adapter.identity import DEVICE_PREFIX
from adapter.links import Login, Shared, key
from adapter.records import SIMPLIFIED, Options
from schemas import segment
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
    devices: tuple[str, ...] = ()  #: the device ids under which their messages go out
    shared: tuple[Shared, ...] = ()  #: where they and others log in, with `split`
    denied: frozenset[str] = frozenset()  #: ids that are none; casefolded

    @property
    def ids(self) -> frozenset[str]:
        return frozenset((self.user, *self.devices))

    @property
    def named(self) -> frozenset[str]:
        """The ids that messages of theirs may carry: not those that are made for a user of a shared device only."""
        return self.ids | {one.device for one in self.shared if one.device is not None}

    @property
    def lanes(self) -> frozenset[int]:
        return frozenset(keys.lane(an_id) for an_id in self.named)

    @property
    def needles(self) -> tuple[bytes, ...]:
        """One of them is in every body that `is_named_in` or `owns` may be true for.

        A device whose id was erased with its first user is known by its key alone, and may be in any.
        """
        if any(one.device is None for one in self.shared):
            return (b"",)
        return tuple(needle(an_id) for an_id in sorted(self.named))

    @property
    def named_keys(self) -> frozenset[bytes]:
        """Keys of ids, one of which is in every body that `owns` may be true for."""
        return frozenset(map(key, self.ids)) | self._shared.keys()

    @property
    def device_keys(self) -> frozenset[bytes]:
        """Keys of the devices on which something of theirs may be."""
        return frozenset((*map(key, self.devices), *(one.key for one in self.shared)))

    def is_named_in(self, body: bytes) -> bool:
        """True for a message that carries one of the ids, or is of a device they share, whoever it is of."""
        bare = {identity.bare(an_id) for _, an_id in _ids_in(body)[1]}
        return not self.ids.isdisjoint(bare) or not self._shared.keys().isdisjoint(map(key, bare))

    def owns(self, body: bytes, accepted_at_ms: int) -> bool:
        """True for a message that is of this person: it says so, or says no user and is of a device of theirs.

        What another did on a shared device is the other's. An alias says that its two ids are one person.
        """
        kind, found = _ids_in(body)
        users = {one for name, one in found if name == "userId" and identity.is_user(one, self.denied)}
        if users and kind != "alias":
            return self.user in users
        bare = {identity.bare(an_id) for _, an_id in found}
        if kind == "alias" or self._shared.keys().isdisjoint(map(key, bare)):
            return not self.ids.isdisjoint(bare)
        at_ms = time_ms(body, accepted_at_ms)
        return any(self.has(key(one), at_ms) for one in bare)

    def has(self, device: bytes, time_ms: int) -> bool:
        """True if what named nobody on the device with this key was theirs at this time."""
        latest = links.latest_login(self._shared.get(device, ()), time_ms)
        return (device if latest is None else key(latest.sent_as)) in map(key, self.devices)

    def distinct_ids(self, options: Options) -> tuple[str, ...]:
        """Every id under which Mixpanel may have data of the person: of a cluster, each member (mixpanel.md 5.1)."""
        forms = ("",) if options.system != SIMPLIFIED else ()
        devices = (f"{form}{device}" for device in self.devices for form in (DEVICE_PREFIX, *forms))
        return tuple(dict.fromkeys((self.user, *devices)))

    @property
    def _shared(self) -> dict[bytes, tuple[Login, ...]]:
        return {one.key: one.logins for one in self.shared}


def user_of(message: Message, denied: frozenset[str]) -> str:
    """Whom a delete is about. Raises Refused: Segment deletes users, and no id must reach everybody who has none."""
    user = message.user_id or ""
    if user.startswith(DEVICE_PREFIX):
        raise Refused("delete_of_a_device", "userId is a device; a deletion names the user")
    if identity.is_junk(user, denied):
        raise Refused("no_id", "userId is no id that Mixpanel takes")
    return user


def named_in(body: bytes, denied: frozenset[str]) -> tuple[list[str], list[str]]:
    """The users whose a message is, and the devices whose it is where it names none, or where it is an alias."""
    kind, found = _ids_in(body)
    users = [one for name, one in found if name == "userId" and identity.is_user(one, denied)]
    bare = [identity.bare(one) for name, one in found if name != "userId" or one not in users]
    return users, [] if users and kind != "alias" else bare


def keys_in(body: bytes) -> set[bytes]:
    """The keys of all ids in a message."""
    return {key(identity.bare(an_id)) for _, an_id in _ids_in(body)[1]}


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


def time_ms(body: bytes, accepted_at_ms: int) -> int:
    """When it happened; of what is no message, when it was taken."""
    try:
        return keys.time_ms(segment.read(body), accepted_at_ms)
    except (ValueError, ValidationError, msgspec.DecodeError, RecursionError):
        return accepted_at_ms


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
