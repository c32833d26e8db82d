"""Who did it: the device id, user id and distinct id under which a message goes out. Pure.

Simplified ID Merge: an event that carries both a device and a user joins the two streams for good, first user wins,
and nothing ever unjoins them (mixpanel.md 1.2). So an id that is junk must not go out at all: it would make one
person of everybody who shares it.
"""

import msgspec

from adapter.errors import Refused
from schemas.segment import Message

DEVICE_PREFIX = "$device:"

#: Mixpanel's published list of refused ids (mixpanel.md 3.5); compared in any case, blanks around them ignored.
JUNK_IDS = frozenset(
    {
        *("00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na"),
        *("undefined", "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}", ""),
    }
)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of one record."""

    device_id: str | None
    user_id: str | None
    notes: tuple[str, ...] = ()  #: what was dropped on the way, each a word that is counted

    @property
    def distinct_id(self) -> str:
        """The user id, else the device form: what Mixpanel itself would compute.

        The identity page says to leave it out, the /import page requires it; sending this satisfies both
        (mixpanel.md 1.2.1, 3.1).
        """
        return self.user_id if self.user_id is not None else f"{DEVICE_PREFIX}{self.device_id}"


def resolve(message: Message) -> Identity:
    """Decide under which ids a message goes out, Simplified ID Merge, without memory of earlier messages.

        anonymousId   userId       device_id   user_id   distinct_id
        a             -            a           -         $device:a
        a             u            a           u         u             joins a to u
        -             u            -           u         u
        a             a            -           a         a             joins nothing; noted
        a             $device:x    a           -         $device:a     noted: that is no user
        -             $device:x    x           -         $device:x

    Prefixes of the anonymous id are stripped, all of them; junk ids count as absent and are noted. Raises Refused
    if no id is left.
    """
    notes = []
    device_id, user_id = message.anonymous_id and bare(message.anonymous_id), message.user_id
    if device_id is not None and is_junk(device_id):
        notes.append("junk_anonymous_id")
        device_id = None
    if user_id is not None and user_id.startswith(DEVICE_PREFIX):
        if device_id is not None:
            notes.append("user_id_is_a_device")
        elif not is_junk(bare(user_id)):
            device_id = bare(user_id)
        user_id = None
    elif user_id is not None and is_junk(user_id):
        notes.append("junk_user_id")
        user_id = None
    if device_id is not None and device_id == user_id:
        notes.append("ids_are_equal")
        device_id = None
    if device_id is None and user_id is None:
        raise Refused("no_id", "neither userId nor anonymousId is an id that Mixpanel takes")
    return Identity(device_id=device_id, user_id=user_id, notes=tuple(notes))


def resolve_alias(message: Message) -> Identity | None:
    """The link that an alias asks for; None if both ids are one already.

    Without memory of earlier messages only an id that is plainly a device can be linked: one that equals the
    anonymousId or has the prefix. Raises Refused otherwise, for two users can never be merged (mixpanel.md 1.2.3).
    """
    user_id, previous_id = message.user_id or "", message.previous_id or ""
    device_id = bare(previous_id)
    if user_id.startswith(DEVICE_PREFIX):
        raise Refused("alias_to_a_device", "userId is a device; an alias names the user")
    if is_junk(user_id) or is_junk(device_id):
        raise Refused("no_id", "userId or previousId is no id that Mixpanel takes")
    if device_id == user_id:
        return None
    if device_id != previous_id or (message.anonymous_id and device_id == bare(message.anonymous_id)):
        return Identity(device_id=device_id, user_id=user_id)
    raise Refused("alias_of_unknown_id", "previousId may be a user, and two users cannot be merged in Mixpanel")


def bare(device_id: str) -> str:
    """A device id without its prefix, however often it was put there (mixpanel.md 1.2.1)."""
    while device_id.startswith(DEVICE_PREFIX):
        device_id = device_id[len(DEVICE_PREFIX) :]
    return device_id


def is_junk(an_id: str) -> bool:
    """True for an id that Mixpanel refuses or that would join strangers."""
    return an_id.strip().casefold() in JUNK_IDS
