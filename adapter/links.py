"""What is known of a device, what a message adds to it, and under which device id it goes out. Pure.

Mixpanel gives a device to its first user for good (mixpanel.md 1.2.3). The store keeps the same table; here it is
asked. A device that a second person uses is shared; what becomes of it is the setting SHARED_DEVICES:

    message of a shared device   first-user               split
    of the first user            under the device         under the device
    of another user              under the device; the    under a device id made of both, which is that
                                 user keeps the event     user's alone
    of nobody                    under the device, and    under the device id of the latest login before
                                 so the first user's      it, else under the device
"""

import hashlib
import uuid
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from adapter.identity import Identity

#: Fixed for ever: another value would give every shared device other ids.
SPLIT_NAMESPACE = uuid.UUID("0b6b3f0e-6f5c-5d8e-9a53-7f3a4f1f0c77")
#: Distinct ids whose key is remembered, and the longest of them: a message asks nine times for keys on its way.
REMEMBERED = 16_384
MAX_CHARS = 255


class Login(msgspec.Struct, frozen=True):
    """A change of user on a shared device."""

    time_ms: int
    user: bytes  #: key of the user
    sent_as: str  #: the device id under which that user's messages go out
    linked: bool = True  #: that id is somebody's; of a login by a group alone it is not yet


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """A device that several people use."""

    key: bytes
    device: str | None  #: None: it was erased with its first user
    logins: tuple[Login, ...]  #: by time; an erased device id is empty


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one device."""

    owner: bytes | None = None  #: key of its first user
    logins: tuple[Login, ...] = ()  #: by time; none while it had one user
    erased: bool = False  #: its id and its owner's were erased; the link stands
    held: bool = False  #: traits or a first touch wait for its next user
    is_user: bool = False  #: the id is a user's as well; asked for an alias, in Original and Legacy for an identify
    is_alias: bool = False  #: the user of the message was made an alias before; asked in Original and Legacy
    links: int = 0  #: how many devices the user of the message has; asked in Original
    devices: tuple[str, ...] = ()  #: of the user that a delete is about


UNKNOWN = Known()


class Effect(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a message adds to what is known of its device, once it has been accepted."""

    device: str
    time_ms: int
    message_id: str  #: Segment's
    how: str  #: the type of the message
    user: str | None = None  #: who used the device; None: nobody known
    sent_as: str | None = None  #: the device id it went out under
    links: bool = False  #: it gives the device it was sent as to the user, if that has none
    revives: bool = False  #: its owner is back on an erased device, so both ids are known again
    login: bool = False  #: the user changes on a shared device
    alias: bool = False  #: it makes the user an alias (Original, Legacy)
    traits: dict[str, Any] | None = None  #: of a visitor, to wait with the device
    touch: dict[str, Any] | None = None  #: what brought the visitor, to wait with the device
    delivers: int | None = None  #: it carries what waited to the user; for so many entries

    @property
    def holds(self) -> bool:
        return bool(self.traits or self.touch)


def key(an_id: str) -> bytes:
    """16 bytes that stand for an id of any length, also after the id itself was erased."""
    return _remembered(an_id) if len(an_id) <= MAX_CHARS else _hash(an_id)


def _hash(an_id: str) -> bytes:
    return hashlib.blake2b(an_id.encode(), digest_size=16).digest()


_remembered = lru_cache(REMEMBERED)(_hash)


def split_id(device_id: str, user_id: str) -> str:
    """The device id that a further user of a shared device has there."""
    return str(uuid.uuid5(SPLIT_NAMESPACE, f"{device_id}\0{user_id}"))


def place(who: Identity, known: Known, time_ms: int, *, split: bool) -> Identity:
    """The ids under which an event goes out, given what is known of its device."""
    if not split or who.device_id is None or known.owner is None:
        return who
    if who.user_id is not None:
        if key(who.user_id) == known.owner:
            return who
        return msgspec.structs.replace(who, device_id=split_id(who.device_id, who.user_id))
    latest = latest_login(known.logins, time_ms)
    return who if latest is None else msgspec.structs.replace(who, device_id=latest.sent_as)


def latest_login(logins: Sequence[Login], time_ms: int) -> Login | None:
    """The latest of a device's changes of user that is not later than a time."""
    return next((one for one in reversed(logins) if one.time_ms <= time_ms), None)


def is_of_another(known: Known, user_id: str) -> bool:
    """True if the device is another user's for good."""
    return known.owner is not None and known.owner != key(user_id)


def changes_user(known: Known, user_id: str, time_ms: int) -> bool:
    """True if a message of this user is a login to be remembered: the device is, or now becomes, shared."""
    if known.owner is None:
        return False
    user = key(user_id)
    latest = latest_login(known.logins, time_ms)
    return user != (latest.user if latest else known.owner)


def knows_link(known: Known, user_id: str) -> bool:
    """True if this user is linked to the device, or to the id that is theirs there."""
    if known.owner is None and not known.logins:
        return False  # without the key, which takes a while
    user = key(user_id)
    return known.owner == user or any(one.user == user and one.linked for one in known.logins)


def used(who: Identity, sent: Identity, known: Known, message: Any, time_ms: int, *, links: bool) -> Effect | None:
    """What a message of a user on a device adds to what is known; None if that is nothing new.

    `links`: an accepted record of it carries both ids.
    """
    if who.device_id is None or who.user_id is None:
        return None
    new = links and (known.owner is None or (sent.device_id != who.device_id and not knows_link(known, who.user_id)))
    login = changes_user(known, who.user_id, time_ms)
    revives = known.erased and known.owner == key(who.user_id)
    if not (new or login or revives or known.held):
        return None
    return Effect(
        device=who.device_id,
        user=who.user_id,
        sent_as=sent.device_id,
        time_ms=time_ms,
        message_id=message.message_id,
        how=message.type,
        links=new,
        revives=revives,
        login=login,
    )


def aliased(who: Identity, known: Known, message: Any, time_ms: int) -> Effect:
    """What a `$create_alias` adds: its user is an alias, and has the device if nobody has it."""
    return Effect(
        device=who.device_id or "",
        user=who.user_id,
        time_ms=time_ms,
        message_id=message.message_id,
        how=message.type,
        links=known.owner is None,
        alias=True,
    )


def waits(
    effect: Effect | None, who: Identity, message: Any, time_ms: int, traits: dict[str, Any], touch: dict[str, Any]
) -> Effect | None:
    """The same effect, and what of the message is to wait with the device for its next user."""
    if not (traits or touch) or who.device_id is None:
        return effect
    if effect is not None:
        return msgspec.structs.replace(effect, traits=traits, touch=touch)
    return Effect(
        device=who.device_id,
        user=who.user_id,
        time_ms=time_ms,
        message_id=message.message_id,
        how=message.type,
        traits=traits,
        touch=touch,
    )


def after_login(known: Known, effect: Effect) -> Known:
    """What is known once a change of user has happened, as the store will tell it."""
    before = known.logins or (Login(-(2**62), known.owner or b"", effect.device),)
    sent_as = effect.sent_as or effect.device
    login = Login(effect.time_ms, key(effect.user or ""), sent_as, effect.links or sent_as == effect.device)
    at = bisect_right(before, login.time_ms, key=lambda one: one.time_ms)
    return msgspec.structs.replace(known, logins=(*before[:at], login, *before[at:]))
