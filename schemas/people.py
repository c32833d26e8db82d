"""What Mixpanel takes about people and groups: the profile part of the mapping table, one line a property.

Traits are found in any spelling (`first_name`, `First Name`, `firstname`); the lines here name Segment's own.
"""

import datetime as dt
from functools import lru_cache
from typing import Any

import msgspec
from marshmallow import Schema, missing

from schemas import derived
from schemas.fields import EPOCH, SECONDS_BELOW, Property, Said
from schemas.mixpanel import address


def date(value: Any) -> Any:
    """Mixpanel's dates are texts, UTC without saying so: a number of seconds or milliseconds becomes one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    try:
        since = dt.timedelta(seconds=value if abs(value) < SECONDS_BELOW else value / 1000)
        return f"{EPOCH + since:%Y-%m-%dT%H:%M:%S}"
    except OverflowError:
        return value


def _nobodys_doing(active: Any) -> Any:
    return None if active else True


class FullName(Property):
    """The name, else first and last name put together."""

    def serialize(self, attr: str, obj: Any, accessor: Any = None, **kwargs: Any) -> Any:
        name = super().serialize(attr, obj, accessor, **kwargs)
        if name is missing:
            parts = [(obj.traits or {}).get(part) for part in ("firstName", "lastName")]
            texts = [part for part in parts if isinstance(part, str) and part]
            name = " ".join(texts) if len(texts) == len(parts) else missing
        return name


def _created(whose: str, origin: str) -> Property:
    others = (("traits.createdAt", date),)
    return Property("$created", "traits.created", f"when the {whose} began", origin, convert=date, also=others)


class Spelled(msgspec.Struct):
    """Traits under Segment's own spellings: what the schemas of traits read."""

    traits: dict[str, Any]


class UserTraits(Schema):
    """Traits with a name of their own in Mixpanel; all others are sent under the name they came with."""

    email = Property("$email", "traits.email", "e-mail address", "Actions, Mixpanel")
    name = FullName("$name", "traits.name", "name, else first and last", "Actions, Mixpanel")
    first_name = Property("$first_name", "traits.firstName", "first name", "Actions, Mixpanel")
    last_name = Property("$last_name", "traits.lastName", "last name", "Actions, Mixpanel")
    username = Property("$username", "traits.username", "login name", "Actions")
    phone = Property("$phone", "traits.phone", "telephone", "Actions, Mixpanel")
    avatar = Property("$avatar", "traits.avatar", "address of a picture", "Mixpanel; Actions sends avatar")
    created = _created("account", "Actions, Mixpanel")
    city = Property("$city", "traits.address.city", "city; the address itself is sent as well", "Mixpanel")
    region = Property(
        "$region", "traits.address.state", "state or region", "Mixpanel", also=("traits.address.region",)
    )
    country = Property(
        "$country_code",
        "traits.address.country",
        "two letters; a name that no country has is left out",
        "Mixpanel",
        convert=derived.country_code,
    )


class GroupTraits(Schema):
    """Traits of a group with a name of their own in Mixpanel."""

    name = Property("$name", "traits.name", "the group's name", "Actions, Mixpanel")
    created = _created("group", "Actions")


class UserUpdateContext(Schema):
    """What stands beside the operation of a user profile update."""

    ip = Property("$ip", "context.ip", "where the person is", "Actions, Mixpanel 2.4", convert=address, absent="0")
    ignore_time = Property(
        "$ignore_time", "context.active", "leave last seen alone", "Classic, Mixpanel 2.4", convert=_nobodys_doing
    )


class PersonContext(Schema):
    """The person's latest device, on the profile by setting, as the classic destination keeps it."""

    os_name = Property(
        "$os",
        "context.os.name",
        "operating system",
        "Classic, Mixpanel",
        also=(("context.userAgent", Said(derived.agent, "os")),),
        setting="PROFILE_CONTEXT",
    )
    browser = Property(
        "$browser",
        "context.userAgent",
        "the browser",
        "Classic, Mixpanel",
        convert=Said(derived.agent, "browser"),
        setting="PROFILE_CONTEXT",
    )
    browser_version = Property(
        "$browser_version",
        "context.userAgent",
        "its version",
        "Classic, Mixpanel",
        convert=Said(derived.agent, "browser_version"),
        setting="PROFILE_CONTEXT",
    )
    manufacturer = Property(
        "$manufacturer", "context.device.manufacturer", "maker", "Classic", setting="PROFILE_CONTEXT"
    )
    model = Property("$model", "context.device.model", "model", "Classic", setting="PROFILE_CONTEXT")
    carrier = Property("$carrier", "context.network.carrier", "mobile network", "Classic", setting="PROFILE_CONTEXT")
    app_version = Property(
        "$app_version_string", "context.app.version", "the app's version", "Mixpanel", setting="PROFILE_CONTEXT"
    )


#: First touch: what brought the person; DIRECT is what Mixpanel's library says of one who came from nowhere.
INITIAL_REFERRER, INITIAL_DOMAIN, DIRECT = "$initial_referrer", "$initial_referring_domain", "$direct"
#: Before the name of a campaign's parameter.
INITIAL = "initial_"
#: A person's payments, each an object with its amount and time.
TRANSACTIONS, AMOUNT, AT = "$transactions", "$amount", "$time"
#: Before the name of an event that is counted: when it last happened.
LAST = "Last "
#: Where a person's push tokens are kept, by the type of the device (segment.md 6.10).
PUSH_TOKENS = {"ios": "$ios_devices", "android": "$android_devices"}


def trait_names(schema: Schema) -> dict[str, str]:
    """The traits that a dump schema reads -> their names in Mixpanel: they are not sent under their own as well."""
    properties = (field for field in schema.fields.values() if isinstance(field, Property))
    return {path.removeprefix("traits."): one.data_key or "" for one in properties for path, _ in one.sources}


def _plain(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "").replace(" ", "")


class Spellings:
    """Finds Segment's own spelling of a trait's name, for some SDKs and people write `first_name`."""

    def __init__(self, schema: Schema) -> None:
        known = [name for name in trait_names(schema) if "." not in name]
        self._exact = frozenset(known)
        self._plain = {_plain(name): name for name in known}
        self._own = lru_cache(4_096)(self._find)

    def _find(self, name: str) -> str:
        return self._plain.get(_plain(name), name)

    def apply(self, traits: dict[str, Any]) -> dict[str, Any]:
        """The traits under Segment's spellings; of two spellings of one name only the first is taken for it."""
        spelled = {name: value for name, value in traits.items() if name in self._exact}
        for name, value in traits.items():
            if name not in self._exact:
                own = name if len(name) > 64 else self._own(name)
                spelled[name if own in spelled else own] = value
        return spelled
