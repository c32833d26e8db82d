"""The whole mapping as a table, made from the schemas that do it; and what is not sent, with the reason."""

from marshmallow import Schema

from schemas import people
from schemas.fields import Property
from schemas.mixpanel import (
    GROUP_KEY,
    PRODUCT,
    SOURCE_NAME,
    EventContext,
    EventOwned,
)

NOT_SENT = "not sent"

#: (on, Segment path, Mixpanel name, meaning, source, setting): what no single line of a schema can say.
_BESIDE = (
    ("event", "event", "event", "the event's name", "Actions, Classic", ""),
    ("event", "name, category", "event", 'name of a page or screen event: "Viewed Home"', "Actions", "VIEW_NAMES"),
    ("event", "properties.*", "*", "every property of the caller's, under its own name", "Actions, Classic", ""),
    ("event", "context.campaign.*", "utm_*", "any other key of the campaign", "Mixpanel", ""),
    (
        "event",
        "context.page.url",
        "utm_*, gclid, fbclid, ...",
        "campaign and click ids in the address",
        "Mixpanel",
        "",
    ),
    ("event", "ours", SOURCE_NAME, "name of the source, in your words", "Actions", "SOURCE_NAME"),
    ("event", "context.traits.*", "*", "the person's traits at that time", "Classic", "EVENT_TRAITS"),
    (
        "event",
        "context.*",
        "context_*",
        "what of the context is not in this table, flat",
        "RudderStack",
        "EVENT_CONTEXT",
    ),
    ("event", "properties.KEY, context.traits.KEY", "KEY", "further group keys", "Classic", "GROUP_KEYS"),
    ("event", "properties.products", PRODUCT, "an event for each product of an order", "Actions", "PRODUCT_EVENTS"),
    (
        "person",
        "traits.*",
        "*",
        "every other trait, under its own name; null unsets it",
        "Actions",
        "TRAIT_OPERATIONS",
    ),
    ("person", "context.device.token", "$ios_devices, $android_devices", "push tokens, $union", "Classic", ""),
    ("person", "groupId", GROUP_KEY, "the groups the person is in, $union", "Mixpanel", "GROUP_KEYS"),
    (
        *("person", "context.page.referrer", people.INITIAL_REFERRER),
        *("who sent the person here first, $set_once", "Mixpanel", "FIRST_TOUCH"),
    ),
    (
        *("person", "context.page.referrer", people.INITIAL_DOMAIN),
        *("its host, $set_once", "Mixpanel", "FIRST_TOUCH"),
    ),
    (
        *("person", "context.campaign, context.page.url", f"{people.INITIAL}utm_*"),
        *("the first campaign, $set_once", "Mixpanel", "FIRST_TOUCH"),
    ),
    (
        *("person", "properties.revenue, else properties.total of an order", people.TRANSACTIONS),
        *("$append; less than zero for a refund or cancellation", "Classic", "TRANSACTIONS"),
    ),
    ("person", "event", "*", "$add 1 under the event's name", "Classic", "EVENT_INCREMENTS"),
    ("person", "event", f"{people.LAST}*", "when it last happened, $set", "Classic", "EVENT_INCREMENTS"),
    (
        "person",
        "properties.*",
        "*",
        "$add of a number, or of an object's numbers",
        "Actions, Classic",
        "PROPERTY_INCREMENTS",
    ),
    ("group", "groupId, or a trait", "$group_id", "the group's id", "Actions, Classic", "GROUP_KEYS"),
    ("group", "traits.*", "*", "every other trait, under its own name", "Actions, Classic", "TRAIT_OPERATIONS"),
    # What a peer sends and this does not.
    *(
        (NOT_SENT, path, name, why, origin, "")
        for path, name, why, origin in (
            ("event", "event_original_name", "the event's name again; a view's name is `name`", "Actions"),
            ("userId, anonymousId", "id", "distinct_id again", "Actions"),
            ("anonymousId", "$anon_id", "means something on $identify alone; $device_id says it", "Actions"),
            ("userId", "$identified_id", "means something on $identify alone; $user_id says it", "Actions"),
            (
                "context.device.id",
                "$device_id",
                "the hardware, not the visitor: Mixpanel's $device_id is anonymousId",
                "",
            ),
            ("context.device.name", "$device_name", "$device again, which is Mixpanel's name for it", "Actions"),
            (
                "context.device.advertisingId",
                "$ios_ifa",
                "says iOS for Android too; it is in advertising_id",
                "Actions",
            ),
            ("context.device.idfa", "$ios_ifa", "an old spelling of advertisingId", "Actions"),
            ("context.network.wifi", "$wifi_enabled", "Mixpanel's name is $wifi", "Actions"),
            ("context.network.cellular", "$has_telephone", "a capability, not a connection", "Classic"),
            ("context.screen.density", "$screen_dpi", "a ratio, not dots an inch", "Classic"),
            ("context.app.version", "$app_version", "Mixpanel's name is $app_version_string", "Classic"),
            ("context.app.build", "$app_release", "Mixpanel's name is $app_build_number", "Classic"),
            (
                "context.app.version",
                "$ios_app_version, $android_app_version",
                "$app_version_string says it",
                "Classic",
            ),
            ("context.app.build", "$ios_app_release, $android_version_code", "$app_build_number says it", "Classic"),
            ("context.os.version", "$ios_version, $android_os_version", "$os and $os_version say it", "Classic"),
            ("context.os.name", "$android_os", "$os says it", "Classic"),
            ("context.device.model", "$ios_device_model, $android_model", "$model says it", "Classic"),
            ("context.device.manufacturer", "$android_manufacturer", "$manufacturer says it", "Classic"),
            (
                "traits.name, traits.email",
                "mp_name_tag",
                "a label of the old reports; $name is the person's",
                "Classic",
            ),
            ("properties.username", "$username", "sent under its own name; a trait of the person", "Classic"),
            ("properties.searchEngine", "$search_engine", "sent under its own name; the referrer says it", "Classic"),
            (
                *("traits.*", "peopleProperties, setAllTraitsByDefault"),
                *("settings that name the traits to send: every trait is sent", "Classic"),
            ),
            (
                *("context.traits.*", "legacySuperProperties"),
                *("a setting that puts $ before a trait's name: it keeps its own", "Classic"),
            ),
            ("context.device.manufacturer", "$brand", "$manufacturer says it; Segment has no brand", "Classic"),
            ("context.library.version", "$library_version", "Mixpanel's name is $lib_version", "Classic"),
            ("token", "token", "the POST carries the credentials", "Classic"),
            ("traits.lastSeen", "$last_seen", "Mixpanel sets it itself; sent under its own name", "Classic"),
            ("traits.token", "trait_token", "nothing to keep it from: sent under its own name", "Classic"),
            ("timestamp", "$time", "not for profiles: what it does there is said nowhere", "Classic"),
            ("context.library.name", "mp_lib of a profile", "not among a profile's properties", "Classic"),
            ("alias, identify", "$create_alias, $identify", "a Simplified project refuses them", "Actions, Classic"),
        )
    ),
)


def table() -> list[dict[str, str]]:
    """The whole mapping, a line a property: {on, from, name, meaning, origin, setting}."""
    parts: tuple[tuple[str, Schema], ...] = (
        ("event", EventOwned()),
        ("event", EventContext()),
        ("person", people.UserUpdateContext()),
        ("person", people.UserTraits()),
        ("person", people.PersonContext()),
        ("group", people.GroupTraits()),
    )
    declared = [
        {
            "on": on,
            "from": "ours" if isinstance(schema, EventOwned) else ", else ".join(path for path, _ in one.sources),
            "name": one.data_key or "",
            "meaning": one.metadata["meaning"],
            "origin": one.metadata["origin"],
            "setting": one.metadata["setting"],
        }
        for on, schema in parts
        for one in schema.fields.values()
        if isinstance(one, Property)
    ]
    columns = ("on", "from", "name", "meaning", "origin", "setting")
    beside = [dict(zip(columns, row, strict=True)) for row in _BESIDE]
    order = ("event", "person", "group", NOT_SENT)
    return sorted(declared + beside, key=lambda row: order.index(row["on"]))
