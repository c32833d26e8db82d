"""What Mixpanel takes and answers. The dump schemas are the mapping table: one line a property.

Each line reads: Mixpanel's name, the Segment path it comes from, what it means, where that is said. "Actions" is
Segment's current Mixpanel destination, "Classic" its older one (reference segment.md 6.9-6.11); "Mixpanel" the
vendor's own list of names (reference mixpanel.md 4).
"""

from typing import Any

from marshmallow import EXCLUDE, Schema, fields, missing, validate

from schemas import derived
from schemas.fields import Property, Text

IMPORT, ENGAGE, GROUPS = "import", "engage", "groups"
#: Events that only link ids; a Simplified project answers 400 to them (mixpanel.md 1.2.5).
VERBS = frozenset({"$identify", "$create_alias", "$merge"})
#: Which source an event came from, in the user's own words (segment.md 6.1).
SOURCE_NAME = "segment_source_name"
#: Where a person's push tokens are kept, by the type of the device (segment.md 6.10).
PUSH_TOKENS = {"ios": "$ios_devices", "android": "$android_devices"}
#: What a setting can make of a trait; all of them can be repeated without changing anything (mixpanel.md 2.4).
TRAIT_OPERATIONS = ("set_once", "union", "unset")
#: The order, what a product of it becomes, and what is true of the order alone (segment.md 6.5).
ORDER, PRODUCT = "Order Completed", "Product Purchased"
ORDER_ONLY = frozenset(
    {
        *("affiliation", "subtotal", "total", "revenue", "shipping", "tax", "discount", "coupon", "currency"),
        *("order_number", "products"),
    }
)
#: The group key: on events, on the person and of the group's profile, as Segment Actions names it by default.
GROUP_KEY = "$group_id"


def _segment_library(value: Any) -> Any:
    return f"Segment: {value}"


def _country_code(value: Any) -> Any:
    """Two letters, for Mixpanel's maps know nothing else; a country's name is left out."""
    return value.upper() if isinstance(value, str) and len(value) == 2 and value.isalpha() else None


def _address(value: Any) -> Any:
    """The person's IP address, or "0" so that nobody is placed where our server stands."""
    return "0" if value in ("", "0.0.0.0") else value  # noqa: S104 the spelling of "no address"


def _nobodys_doing(active: Any) -> Any:
    return None if active else True


class FullName(Property):
    """The name, else first and last name put together."""

    def serialize(self, attr: str, obj: Any, accessor: Any = None, **kwargs: Any) -> Any:
        name = super().serialize(attr, obj, accessor, **kwargs)
        if name is missing:
            traits = obj.traits or {}
            parts = [traits.get(a) or traits.get(b) for a, b in _NAME_PARTS]
            texts = [part for part in parts if isinstance(part, str)]
            name = " ".join(texts) if len(texts) == len(parts) else missing
        return name


_NAME_PARTS = (("firstName", "first_name"), ("lastName", "last_name"))


class EventContext(Schema):
    """Properties of an event that come from around the caller's own; the caller's win over them."""

    ip = Property(
        "ip",
        "context.ip",
        "where the person is; read by Mixpanel, not stored",
        "Actions, Classic",
        convert=_address,
        absent="0",
    )
    app_name = Property("$app_name", "context.app.name", "the app", "Actions")
    app_version = Property("$app_version_string", "context.app.version", "the app's version", "Actions, Mixpanel")
    app_build = Property("$app_build_number", "context.app.build", "the app's build", "Actions, Mixpanel")
    app_namespace = Property("$app_namespace", "context.app.namespace", "the app's bundle name", "Actions")
    os_name = Property(
        "$os",
        "context.os.name",
        "operating system",
        "Actions, Classic, Mixpanel",
        also=(("context.userAgent", lambda text: derived.agent(text).os),),
    )
    os_version = Property(
        "$os_version",
        "context.os.version",
        "its version",
        "Actions, Classic, Mixpanel",
        also=(("context.userAgent", lambda text: derived.agent(text).os_version),),
    )
    browser = Property(
        "$browser",
        "context.userAgent",
        "the browser",
        "Actions, Classic, Mixpanel",
        convert=lambda text: derived.agent(text).browser,
    )
    browser_version = Property(
        "$browser_version",
        "context.userAgent",
        "its version, a text as Actions sends it",
        "Actions, Classic, Mixpanel",
        convert=lambda text: derived.agent(text).browser_version,
    )
    device_name = Property(
        "$device",
        "context.device.name",
        "the device's name",
        "Actions, Classic, Mixpanel",
        also=(("context.userAgent", lambda text: derived.agent(text).device),),
    )
    device_type = Property("$device_type", "context.device.type", "ios, android, ...", "Actions")
    manufacturer = Property("$manufacturer", "context.device.manufacturer", "maker", "Actions, Mixpanel")
    model = Property("$model", "context.device.model", "model", "Actions, Mixpanel")
    advertising_id = Property("advertising_id", "context.device.advertisingId", "advertising id", "Actions")
    ad_tracking = Property(
        "ad_tracking_enabled", "context.device.adTrackingEnabled", "may ads be targeted", "Actions; a boolean here"
    )
    bluetooth = Property("$bluetooth_enabled", "context.network.bluetooth", "Bluetooth is on", "Actions, Mixpanel")
    carrier = Property("$carrier", "context.network.carrier", "mobile network", "Actions, Mixpanel")
    cellular = Property("$cellular_enabled", "context.network.cellular", "on a mobile network", "Actions")
    wifi = Property("$wifi", "context.network.wifi", "on a wireless network", "Classic, Mixpanel")
    screen_width = Property("$screen_width", "context.screen.width", "pixels or points", "Actions, Mixpanel")
    screen_height = Property("$screen_height", "context.screen.height", "pixels or points", "Actions, Mixpanel")
    screen_density = Property("$screen_density", "context.screen.density", "pixels a point", "Actions")
    locale = Property("$locale", "context.locale", "language and country", "Actions")
    timezone = Property("timezone", "context.timezone", "tz database name", "Actions")
    country = Property(
        "mp_country_code",
        "context.location.country",
        "two letters",
        "Mixpanel; Actions sends names",
        convert=_country_code,
    )
    region = Property("$region", "context.location.region", "region", "Mixpanel")
    city = Property("$city", "context.location.city", "city", "Mixpanel")
    url = Property("$current_url", "context.page.url", "the page's address", "Actions, Classic, Mixpanel")
    referrer = Property("$referrer", "context.page.referrer", "the page before", "Actions, Classic, Mixpanel")
    referring_domain = Property(
        "$referring_domain",
        "context.page.referrer",
        "the host of the page before",
        "Mixpanel",
        convert=derived.referring_domain,
    )
    search_engine = Property(
        "$search_engine",
        "context.page.referrer",
        "the search engine the person came from",
        "Classic, Mixpanel",
        convert=derived.search_engine,
    )
    utm_source = Property("utm_source", "context.campaign.source", "campaign", "Actions, Classic, Mixpanel")
    utm_medium = Property("utm_medium", "context.campaign.medium", "campaign", "Actions, Classic, Mixpanel")
    utm_campaign = Property("utm_campaign", "context.campaign.name", "campaign", "Actions, Classic, Mixpanel")
    utm_term = Property("utm_term", "context.campaign.term", "campaign", "Actions, Classic, Mixpanel")
    utm_content = Property("utm_content", "context.campaign.content", "campaign", "Actions, Classic, Mixpanel")
    utm_id = Property("utm_id", "context.campaign.id", "campaign", "Mixpanel")
    utm_source_platform = Property("utm_source_platform", "context.campaign.source_platform", "campaign", "Mixpanel")
    utm_creative = Property("utm_creative_format", "context.campaign.creative_format", "campaign", "Mixpanel")
    utm_tactic = Property("utm_marketing_tactic", "context.campaign.marketing_tactic", "campaign", "Mixpanel")
    ua_mobile = Property("$mobile", "context.userAgentData.mobile", "a mobile browser", "Actions")
    ua_platform = Property("$platform", "context.userAgentData.platform", "the browser's platform", "Actions")
    library = Property(
        "mp_lib", "context.library.name", "the SDK that made the call", "Classic", convert=_segment_library
    )
    library_version = Property("$lib_version", "context.library.version", "its version", "Actions, Mixpanel")
    group = Property(GROUP_KEY, "context.groupId", "the account it happened in", "Actions")
    name = Property("name", "name", "of the page or screen", "Classic")
    category = Property("category", "category", "of the page or screen", "Classic")


class EventOwned(Schema):
    """Properties that only we may set: no caller's property of such a name goes out (design 3.7)."""

    time_ms = Property(
        "time", "time_ms", "timestamp, else originalTimestamp, receivedAt, sentAt; milliseconds", "Mixpanel"
    )
    distinct_id = Property("distinct_id", "distinct_id", "userId, else `$device:` and anonymousId", "Mixpanel")
    device_id = Property("$device_id", "device_id", "anonymousId", "Mixpanel")
    user_id = Property("$user_id", "user_id", "userId", "Mixpanel")
    insert_id = Property(
        "$insert_id", "insert_id", "messageId where Mixpanel takes it, else a UUID of it", "Mixpanel"
    )


#: Names that mean something to Mixpanel's ingestion, which we never send for a caller (design 3.7, mixpanel.md 4.6).
NEVER_SENT = frozenset(
    {
        *("token", "$anon_id", "$identified_id", "$distinct_ids", "$anon_distinct_id", "$distinct_id", "$time"),
        *("$ignore", "$bucket", "bucket", "$had_persisted_distinct_id", "$identity_failure_reason"),
    }
)


class UserTraits(Schema):
    """Traits with a name of their own in Mixpanel; all others are sent under the name they came with."""

    email = Property("$email", "traits.email", "e-mail address", "Actions, Mixpanel")
    name = FullName("$name", "traits.name", "name, else first and last", "Actions, Mixpanel")
    first_name = Property(
        "$first_name", "traits.firstName", "first name", "Actions, Mixpanel", also=("traits.first_name",)
    )
    last_name = Property(
        "$last_name", "traits.lastName", "last name", "Actions, Mixpanel", also=("traits.last_name",)
    )
    username = Property("$username", "traits.username", "login name", "Actions")
    phone = Property("$phone", "traits.phone", "telephone", "Actions, Mixpanel")
    avatar = Property("$avatar", "traits.avatar", "address of a picture", "Mixpanel")
    created = Property(
        "$created",
        "traits.created",
        "when the account began",
        "Actions, Mixpanel",
        also=("traits.createdAt", "traits.created_at"),
    )
    city = Property("$city", "traits.address.city", "city; the address itself is sent as well", "Mixpanel")
    region = Property("$region", "traits.address.state", "state or region", "Mixpanel")
    country = Property(
        "$country_code",
        "traits.address.country",
        "two letters; a name is left out",
        "Mixpanel",
        convert=_country_code,
    )


class GroupTraits(Schema):
    """Traits of a group with a name of their own in Mixpanel."""

    name = Property("$name", "traits.name", "the group's name", "Actions, Mixpanel")
    created = Property(
        "$created",
        "traits.created",
        "when the group began",
        "Actions",
        also=("traits.createdAt", "traits.created_at"),
    )


class UserUpdateContext(Schema):
    """What stands beside the operation of a user profile update."""

    ip = Property("$ip", "context.ip", "where the person is", "Actions, Mixpanel 2.4", convert=_address, absent="0")
    ignore_time = Property(
        "$ignore_time", "context.active", "leave last seen alone", "Classic, Mixpanel 2.4", convert=_nobodys_doing
    )


def names(schema: Schema) -> frozenset[str]:
    """The Mixpanel names that a dump schema may write."""
    return frozenset(field.data_key for field in schema.fields.values() if field.data_key)


def trait_names(schema: Schema) -> dict[str, str]:
    """The traits that a dump schema reads -> their names in Mixpanel: they are not sent under their own as well."""
    properties = (field for field in schema.fields.values() if isinstance(field, Property))
    return {path.removeprefix("traits."): one.data_key or "" for one in properties for path, _ in one.sources}


def table() -> list[dict[str, str]]:
    """The whole mapping, a line a property: {on, from, name, meaning, origin}."""
    parts = (
        ("event", EventOwned()),
        ("event", EventContext()),
        ("person", UserUpdateContext()),
        ("person", UserTraits()),
        ("group", GroupTraits()),
    )
    return [
        {
            "on": on,
            "from": "ours" if isinstance(schema, EventOwned) else ", else ".join(path for path, _ in one.sources),
            "name": one.data_key or "",
            "meaning": one.metadata["meaning"],
            "origin": one.metadata["origin"],
        }
        for on, schema in parts
        for one in schema.fields.values()
        if isinstance(one, Property)
    ]


class FailedRecord(Schema):
    """One record that Mixpanel refused; its id is spelt in two ways (mixpanel.md 2.2.2)."""

    class Meta:
        unknown = EXCLUDE

    index = fields.Integer(strict=True, load_default=None, allow_none=True)
    insert_id = fields.Raw(data_key="$insert_id", load_default=None)
    insert_id_openapi = fields.Raw(data_key="insert_id", load_default=None)
    field = fields.String(load_default="", allow_none=True)
    message = fields.String(load_default="", allow_none=True)


class Failed(fields.Field[Any]):
    """A failed record as an object, or as the bare text that identity verbs get (mixpanel.md 1.2.5)."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, Any]:
        if isinstance(value, str):
            value = {"message": value}
        loaded: dict[str, Any] = FailedRecord().load(value)
        loaded["insert_id"] = loaded["insert_id"] or loaded["insert_id_openapi"]
        return loaded


class ImportAnswer(Schema):
    """The body of an answer by /import (mixpanel.md 2.2.2)."""

    class Meta:
        unknown = EXCLUDE

    code = fields.Integer(load_default=None, allow_none=True)
    num_records_imported = fields.Integer(load_default=None, allow_none=True)
    error = fields.Raw(load_default=None)
    failed_records = fields.List(Failed(), load_default=list)


class UpdateAnswer(Schema):
    """The body of an answer by /engage and /groups: 200 even when the updates failed (mixpanel.md 2.4)."""

    class Meta:
        unknown = EXCLUDE

    status = Text(required=True, validate=validate.OneOf(["0", "1", "OK", "Bad Request"]))
    error = fields.Raw(load_default=None)
    num_good_events = fields.Integer(load_default=None)
