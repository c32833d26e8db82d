"""Who did it: the device id, user id and distinct id under which a message goes out. Pure.

Simplified ID Merge: an event that carries both a device and a user joins the two streams for good, first user wins,
and nothing ever unjoins them (mixpanel.md 1.2). So an id that is junk must not go out at all: it would make one
person of everybody who shares it.
"""

import re

import msgspec

from adapter.errors import Refused
from schemas.segment import Message

DEVICE_PREFIX = "$device:"
_GUID = re.compile(r"[0-9a-z]+(?:-[0-9a-z]+){4}", re.ASCII | re.IGNORECASE)

#: Mixpanel's published list of refused ids (mixpanel.md 3.5); compared in any case, blanks around them ignored.
JUNK_IDS = frozenset(
    {
        *("00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na"),
        *("undefined", "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}", ""),
    }
)


class Identity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The ids of one record."""

    device_id: str | None
    user_id: str | None
    form: str = DEVICE_PREFIX  #: what stands before a device id in a distinct_id
    notes: tuple[str, ...] = ()  #: what was dropped on the way, each a word that is counted

    @property
    def distinct_id(self) -> str:
        """The user id, else the device form: in Simplified what Mixpanel itself would compute.

        The identity page says to leave it out, the /import page requires it; sending this satisfies both
        (mixpanel.md 1.2.1, 3.1). In Original and Legacy it is what counts, and the form is empty (1.3.1).
        """
        return self.user_id if self.user_id is not None else f"{self.form}{self.device_id}"


def resolve(message: Message, denied: frozenset[str] = frozenset(), form: str = DEVICE_PREFIX) -> Identity:
    """Decide under which ids a message goes out, without memory of earlier messages.

        anonymousId   userId       device_id   user_id   distinct_id
        a             -            a           -         $device:a
        a             u            a           u         u             joins a to u
        -             u            -           u         u
        a             a            -           a         a             joins nothing; noted
        a             $device:x    a           -         $device:a     noted: that is no user
        -             $device:x    x           -         $device:x

    Prefixes of the anonymous id are stripped, all of them; junk ids and those in `denied` (casefolded) count as
    absent and are noted. Raises Refused if no id is left.
    """
    notes = []
    device_id, user_id = message.anonymous_id and bare(message.anonymous_id), message.user_id
    if device_id is not None and is_junk(device_id, denied):
        notes.append("junk_anonymous_id")
        device_id = None
    if user_id is not None and user_id.startswith(DEVICE_PREFIX):
        if device_id is not None:
            notes.append("user_id_is_a_device")
        elif not is_junk(bare(user_id), denied):
            device_id = bare(user_id)
        user_id = None
    elif user_id is not None and is_junk(user_id, denied):
        notes.append("junk_user_id")
        user_id = None
    if device_id is not None and device_id == user_id:
        notes.append("ids_are_equal")
        device_id = None
    if device_id is None and user_id is None:
        raise Refused("no_id", "neither userId nor anonymousId is an id that Mixpanel takes")
    return Identity(device_id=device_id, user_id=user_id, form=form, notes=tuple(notes))


def resolve_alias(
    message: Message, denied: frozenset[str] = frozenset(), form: str = DEVICE_PREFIX
) -> Identity | None:
    """The two ids that an alias joins, the one known until now as the device; None if they are one already.

    Raises Refused if one of them is no id.
    """
    user_id, device_id = message.user_id or "", bare(message.previous_id or "")
    if user_id.startswith(DEVICE_PREFIX):
        raise Refused("alias_to_a_device", "userId is a device; an alias names the user")
    if is_junk(user_id, denied) or is_junk(device_id, denied):
        raise Refused("no_id", "userId or previousId is no id that Mixpanel takes")
    return None if device_id == user_id else Identity(device_id=device_id, user_id=user_id, form=form)


def bare(device_id: str) -> str:
    """A device id without its prefix, however often it was put there (mixpanel.md 1.2.1)."""
    while device_id.startswith(DEVICE_PREFIX):
        device_id = device_id[len(DEVICE_PREFIX) :]
    return device_id


def is_junk(an_id: str, denied: frozenset[str] = frozenset()) -> bool:
    """True for an id that Mixpanel refuses or that would join strangers, or that is in `denied`, casefolded."""
    plain = an_id.strip().casefold()
    return plain in JUNK_IDS or plain in denied


def is_user(an_id: str, denied: frozenset[str] = frozenset()) -> bool:
    """True for a userId that names somebody."""
    return not an_id.startswith(DEVICE_PREFIX) and not is_junk(an_id, denied)


def is_guid(an_id: str) -> bool:
    """True for what Original takes as an anonymous id: five groups of letters and digits (mixpanel.md 1.3.2)."""
    return _GUID.fullmatch(an_id) is not None
