"""What Mixpanel takes and answers. The dump schemas are the mapping table: one line a property.

Each line reads: Mixpanel's name, the Segment path it comes from, what it means, where that is said. "Actions" is
Segment's current Mixpanel destination, "Classic" its older one (reference segment.md 6.9-6.11); "Mixpanel" the
vendor's own list of names (reference mixpanel.md 4).
"""

from typing import Any

from marshmallow import Schema

from schemas import derived
from schemas.fields import But, Property, Said

IMPORT, ENGAGE, GROUPS = "import", "engage", "groups"
#: Updates that count: they go to /engage as well, on a line of their own.
COUNTERS = "counters"
#: Events that only link ids; a Simplified project answers 400 to them (mixpanel.md 1.2.5).
IDENTIFY, CREATE_ALIAS, MERGE = "$identify", "$create_alias", "$merge"
VERBS = frozenset({IDENTIFY, CREATE_ALIAS, MERGE})
#: Which source an event came from, in the user's own words (segment.md 6.1).
SOURCE_NAME = "segment_source_name"
#: What a setting can make of a trait (mixpanel.md 2.4). The first three can be repeated without changing anything,
#: the counting ones cannot.
TRAIT_OPERATIONS = ("set_once", "union", "unset", "add", "append")
COUNTING = ("add", "append")
#: The order, what a product of it becomes, and what is true of the order alone (segment.md 6.5).
ORDER, PRODUCT = "Order Completed", "Product Purchased"
ORDER_ONLY = frozenset(
    {
        *("affiliation", "subtotal", "total", "revenue", "shipping", "tax", "discount", "coupon", "currency"),
        *("order_number", "products"),
    }
)
#: Orders whose total stands in for their revenue: 1 where it is earned, -1 where it goes back (segment.md 1.8).
ORDERS = {ORDER: 1, "Completed Order": 1, "Order Refunded": -1, "Order Cancelled": -1}
#: The group key: on events, on the person and of the group's profile, as Segment Actions names it by default.
GROUP_KEY = "$group_id"


def _segment_library(value: Any) -> Any:
    return f"Segment: {value}"


def _source(integration: dict[str, Any]) -> str:
    return "Iterable" if integration.get("name") == "Iterable" else "segment"


def address(value: Any) -> Any:
    """The person's IP address, or "0", so that nobody is placed where our server stands."""
    return "0" if value in ("", "0.0.0.0") else value  # noqa: S104 the spelling of "no address"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _scalar(value: Any) -> str | None:
    """A campaign's values are texts; SDKs pass on whatever the page's author put there."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _utm(name: str, key: str, origin: str) -> Property:
    return Property(f"utm_{name}", f"context.campaign.{key}", "campaign", origin, convert=But(str, _scalar))


class Campaign(Schema):
    """Which campaign brought the person; any other key of context.campaign is sent with `utm_` before it."""

    utm_source = _utm("source", "source", "Actions, Classic, Mixpanel")
    utm_medium = _utm("medium", "medium", "Actions, Classic, Mixpanel")
    utm_campaign = _utm("campaign", "name", "Actions, Classic, Mixpanel")
    utm_term = _utm("term", "term", "Actions, Classic, Mixpanel")
    utm_content = _utm("content", "content", "Actions, Classic, Mixpanel")
    utm_id = _utm("id", "id", "Mixpanel")
    utm_source_platform = _utm("source_platform", "source_platform", "Mixpanel")
    utm_creative = _utm("creative_format", "creative_format", "Mixpanel")
    utm_tactic = _utm("marketing_tactic", "marketing_tactic", "Mixpanel")


#: The keys of context.campaign that have a line of their own.
CAMPAIGN_KEYS = frozenset(str(one.attribute).rpartition(".")[2] for one in Campaign().fields.values())


def other_campaign(campaign: dict[str, Any]) -> dict[str, str]:
    """Any other key of context.campaign, by the name its parameter had; mostly there is none."""
    if CAMPAIGN_KEYS.issuperset(campaign):
        return {}
    found = {f"utm_{key}": _scalar(value) for key, value in campaign.items() if key not in CAMPAIGN_KEYS}
    return {name: value for name, value in found.items() if value is not None}


class EventContext(Campaign):
    """Properties of an event that come from around the caller's own; the caller's win over them."""

    ip = Property(
        "ip",
        "context.ip",
        "where the person is; read by Mixpanel, not stored",
        "Actions, Classic",
        convert=address,
        absent="0",
    )
    app_name = Property("$app_name", "context.app.name", "the app", "Actions")
    app_version = Property("$app_version_string", "context.app.version", "the app's version", "Actions, Mixpanel")
    app_build = Property("$app_build_number", "context.app.build", "the app's build", "Actions, Mixpanel")
    app_platform = Property("app_platform", "context.app.platform", "the app's platform", "Actions")
    app_namespace = Property("$app_namespace", "context.app.namespace", "the app's bundle name", "Actions")
    os_name = Property(
        "$os",
        "context.os.name",
        "operating system",
        "Actions, Classic, Mixpanel",
        also=(("context.userAgent", Said(derived.agent, "os")),),
    )
    os_version = Property(
        "$os_version",
        "context.os.version",
        "its version",
        "Actions, Classic, Mixpanel",
        also=(("context.userAgent", Said(derived.agent, "os_version")),),
    )
    browser = Property(
        "$browser",
        "context.userAgent",
        "the browser",
        "Actions, Classic, Mixpanel",
        convert=Said(derived.agent, "browser"),
    )
    browser_version = Property(
        "$browser_version",
        "context.userAgent",
        "its version, a text as Actions sends it",
        "Actions, Classic, Mixpanel",
        convert=Said(derived.agent, "browser_version"),
    )
    device_name = Property(
        "$device",
        "context.device.name",
        "the device's name",
        "Actions, Classic, Mixpanel",
        also=(("context.userAgent", Said(derived.agent, "device")),),
    )
    device_type = Property("$device_type", "context.device.type", "ios, android, ...", "Actions")
    manufacturer = Property("$manufacturer", "context.device.manufacturer", "maker", "Actions, Mixpanel")
    model = Property(
        "$model", "context.device.model", "model", "Actions, Mixpanel", also=("context.userAgentData.model",)
    )
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
        convert=derived.country_code,
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
        convert=Said(derived.referrer, "domain"),
    )
    search_engine = Property(
        "$search_engine",
        "context.page.referrer",
        "the search engine the person came from",
        "Classic, Mixpanel",
        convert=Said(derived.referrer, "search_engine"),
    )
    ua_mobile = Property("$mobile", "context.userAgentData.mobile", "a mobile browser", "Actions")
    ua_platform = Property("$platform", "context.userAgentData.platform", "the browser's platform", "Actions")
    ua_platform_version = Property(
        "$platformVersion", "context.userAgentData.platformVersion", "the platform's version", "Actions"
    )
    ua_full_version = Property(
        "$uaFullVersion", "context.userAgentData.uaFullVersion", "the browser's full version", "Actions"
    )
    ua_bitness = Property("$bitness", "context.userAgentData.bitness", "32 or 64", "Actions")
    ua_wow64 = Property("$wow64", "context.userAgentData.wow64", "32 bits on 64-bit Windows", "Actions")
    ua_architecture = Property(
        "$architecture", "context.userAgentData.architecture", "processor", "Actions declares it and never sends it"
    )
    source = Property(
        "$source",
        "context.integration",
        "Iterable if it made the call, else segment",
        "Actions",
        convert=_source,
        absent="segment",
    )
    library = Property(
        "mp_lib", "context.library.name", "the SDK that made the call", "Classic", convert=_segment_library
    )
    library_version = Property("$lib_version", "context.library.version", "its version", "Actions, Mixpanel")
    group = Property(GROUP_KEY, "context.groupId", "the account it happened in", "Actions")
    name = Property("name", "name", "of the page or screen", "Classic")
    category = Property("category", "category", "of the page or screen", "Classic")


class PageContext(EventContext):
    """A page call of a server has no context.page; what the call is about stands in its own properties as well."""

    url = Property(
        "$current_url",
        "context.page.url",
        "the page's address",
        "Actions, Classic, Mixpanel",
        also=(("properties.url", _text),),
    )
    referrer = Property(
        "$referrer",
        "context.page.referrer",
        "the page before",
        "Actions, Classic, Mixpanel",
        also=(("properties.referrer", _text),),
    )


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


class Identify(Schema):
    """What `$identify` joins, in Original (mixpanel.md 1.3.2)."""

    identified_id = Property("$identified_id", "identified_id", "userId", "Mixpanel")
    anon_id = Property("$anon_id", "anon_id", "anonymousId, a GUID", "Mixpanel")


class CreateAlias(Schema):
    """The new id of `$create_alias`; the one known until now is its distinct_id (mixpanel.md 1.3.3)."""

    alias = Property("alias", "alias", "userId", "Mixpanel")


class Merge(Schema):
    """What `$merge` joins for good, by setting, in Original (mixpanel.md 1.3.4)."""

    distinct_ids = Property("$distinct_ids", "distinct_ids", "userId and anonymousId", "Mixpanel")


#: Names that mean something to Mixpanel's ingestion, which we never send for a caller (design 3.7, mixpanel.md 4.6).
NEVER_SENT = frozenset(
    {
        *("token", "$anon_id", "$identified_id", "$distinct_ids", "$anon_distinct_id", "$distinct_id", "$time"),
        *("$ignore", "$bucket", "bucket", "$had_persisted_distinct_id", "$identity_failure_reason"),
    }
)


def names(schema: Schema) -> frozenset[str]:
    """The Mixpanel names that a dump schema may write."""
    return frozenset(field.data_key for field in schema.fields.values() if field.data_key)


def trait_names(schema: Schema) -> dict[str, str]:
    """The traits that a dump schema reads -> their names in Mixpanel: they are not sent under their own as well."""
    properties = (field for field in schema.fields.values() if isinstance(field, Property))
    return {path.removeprefix("traits."): one.data_key or "" for one in properties for path, _ in one.sources}
