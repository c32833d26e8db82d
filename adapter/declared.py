"""The settings: each declared once, with its variable, default and meaning. Secrets never show in a repr."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from adapter import values
from schemas.mixpanel import GROUP_KEY


def _shown(value: Any) -> str:
    if value is None or value in ((), frozenset()):
        return ""
    if isinstance(value, frozenset):
        return ",".join(sorted(value))
    if isinstance(value, tuple):
        return ",".join(one if isinstance(one, str) else "=".join(part for part in one if part) for one in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _setting(
    env: str,
    default: Any,
    help: str,
    read: Callable[[str], Any] = values.text,
    *,
    secret: bool = False,
    shown: Callable[[Any], str] | None = None,
) -> Any:
    how = {"env": env, "help": help, "read": read, "secret": secret, "shown": shown or _shown}
    return field(default=default, repr=not (secret or shown), metadata=how)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What can be set. How it is read, and from which variable, is in the metadata of each; see `describe`."""

    host: str = _setting("HOST", "127.0.0.1", "address to listen on; a PaaS needs 0.0.0.0", values.host)
    port: int = _setting("PORT", 8080, "port to listen on", values.port)
    database_url: str = _setting(
        "DATABASE_URL",
        "sqlite:///adapter.db",
        "the store: sqlite:///PATH, relative to the working directory, for one process; or for as many as you like"
        " postgresql://USER:PASSWORD@HOST/DATABASE, which a PaaS may call postgres://",
        values.database,
        shown=values.without_password,
    )
    ingestion_url: str | None = _setting(
        "INGESTION_URL",
        None,
        "where records go: https://api.mixpanel.com, api-eu.mixpanel.com, api-in.mixpanel.com, your own, or sandbox;"
        " on loopback the sandbox is the default",
        values.ingestion,
    )
    ingestion_private: bool = _setting(
        "INGESTION_PRIVATE",
        False,
        "yes: INGESTION_URL and DELETION_URL may lead into a private network; loopback they may reach anyway where"
        " HOST is on loopback",
        values.yes,
    )
    max_waiting: int = _setting(
        "MAX_WAITING",
        5_000_000,
        "entries that may wait; above it the webhook answers 503 and Segment keeps the messages; 1.5 KB each or so",
        values.count,
    )
    senders: int = _setting(
        "SENDERS",
        20,
        "requests under way at once to one endpoint, of all processes together; each makes 8 at most, and of more"
        " processes than this each rests between its requests, so that it holds on average",
        values.count,
    )
    max_records_a_minute: int = _setting(
        "MAX_RECORDS_A_MINUTE",
        1_800_000,
        "records that all processes together send to one endpoint in any minute, all but a tenth spread evenly over"
        " it; not held to on loopback",
        values.count,
    )
    max_bytes_a_minute: int = _setting(
        "MAX_BYTES_A_MINUTE", 2_000_000_000, "the same in bytes before compression", values.count
    )
    mixpanel_token: str | None = _setting("MIXPANEL_TOKEN", None, "token of the Mixpanel project", secret=True)
    service_account: str | None = _setting(
        "MIXPANEL_SERVICE_ACCOUNT", None, "user name of a service account, for /import instead of the token"
    )
    service_secret: str | None = _setting(
        "MIXPANEL_SERVICE_SECRET", None, "the service account's secret", secret=True
    )
    project_id: str | None = _setting("MIXPANEL_PROJECT_ID", None, "project id; a service account needs it")
    deletion_token: str | None = _setting(
        "MIXPANEL_DELETION_TOKEN",
        None,
        "OAuth token of an owner or admin, valid for a year, to have Mixpanel delete the data of those whom a delete"
        " is about; without it their profiles alone are deleted there",
        secret=True,
    )
    deletion_url: str | None = _setting(
        "DELETION_URL",
        None,
        "where deletions are requested, if that is not told by the host of INGESTION_URL",
        values.address,
    )
    identity_api: str = _setting(
        "IDENTITY_API",
        "simplified",
        "the project's ID system: simplified, original, or legacy; `adapter check --probe` finds out whether it is "
        "simplified, Mixpanel's Project Settings (Identity Merge) which of the three",
        values.one_of("simplified", "original", "legacy"),
    )
    shared_secrets: tuple[str, ...] = _setting(
        "SEGMENT_SHARED_SECRET",
        (),
        "shared secret of the Segment webhook; several, by commas, to rotate",
        values.several,
        secret=True,
    )
    webhook_tokens: tuple[str, ...] = _setting(
        "WEBHOOK_TOKEN",
        (),
        "bearer token that the webhook demands; several, by commas, to rotate",
        values.several,
        secret=True,
    )
    signature_only: bool = _setting(
        "SIGNATURE_ONLY",
        False,
        "yes: start off loopback without WEBHOOK_TOKEN, trusting signatures alone",
        values.yes,
    )
    link_event: str | None = _setting(
        "LINK_EVENT",
        "Identity Linked",
        "name of the event that only links two ids, in a simplified project; no: none is sent",
        values.link_event,
    )
    shared_devices: str = _setting(
        "SHARED_DEVICES",
        "first-user",
        "first-user: a device that several people use stays the first one's, as Mixpanel has it; split: from each"
        " login on its anonymous events are that person's",
        values.one_of("first-user", "split"),
    )
    anonymous_profiles: str = _setting(
        "ANONYMOUS_PROFILES",
        "hold",
        "traits and first touch of a visitor: hold them for the person the visitor becomes, send them to a profile of"
        " the visitor, which Mixpanel never joins, or drop them",
        values.one_of("hold", "send", "drop"),
    )
    held_days: int = _setting("HELD_DAYS", 30, "days after which what is held for a visitor expires", values.days)
    refused_days: int = _setting(
        "REFUSED_DAYS", 30, "days after which a refused message that nobody retried expires", values.days
    )
    junk_ids: tuple[str, ...] = _setting(
        "JUNK_IDS",
        (),
        "further ids that are none, by commas, in any case, such as test-user: they would join strangers",
        values.several,
    )
    anonymous_form: str = _setting(
        "ANONYMOUS_FORM",
        "raw",
        "device: write anonymous ids as `$device:...` in an original or legacy project that a Mixpanel SDK feeds too",
        values.one_of("raw", "device"),
    )
    original_verb: str = _setting(
        "ORIGINAL_VERB",
        "identify",
        "merge: link by `$merge` in an original project, also anonymous ids that are no GUIDs; it cannot be undone",
        values.one_of("identify", "merge"),
    )
    insert_id: str = _setting(
        "INSERT_ID",
        "uuid",
        "uuid: a messageId of up to 36 legal characters goes out as it is, any other as a UUID made from it; segment:"
        " one of legal characters does whatever its length, for projects that Segment's own destination has fed",
        values.one_of("uuid", "segment"),
    )
    view_names: str = _setting(
        "VIEW_NAMES",
        "actions",
        'names of page and screen events: actions ("Viewed Home"), consolidated ("Loaded a Page"), categorized'
        ' ("Viewed Docs Home Page"), named ("Viewed Home Page"), or a template with {name}, {category} and {type}',
        values.view_names,
    )
    product_events: bool = _setting(
        "PRODUCT_EVENTS", True, 'an event "Product Purchased" for each product of an "Order Completed"', values.yes
    )
    group_keys: tuple[tuple[str, str | None], ...] = _setting(
        "GROUP_KEYS",
        ((GROUP_KEY, None),),
        "group keys of the project, by commas: KEY has the groupId for its id, KEY=TRAIT that trait of the group",
        values.group_keys,
    )
    source_name: str | None = _setting(
        "SOURCE_NAME", None, "sent with every event as `segment_source_name`, as Segment's own destination does"
    )
    event_traits: bool = _setting(
        "EVENT_TRAITS", False, "yes: send the traits in an event's context as properties of the event", values.yes
    )
    event_context: bool = _setting(
        "EVENT_CONTEXT",
        False,
        "yes: send what else is in an event's context as its properties, flat: context.os.arch as `context_os_arch`",
        values.yes,
    )
    first_touch: bool = _setting(
        "FIRST_TOUCH",
        True,
        "keep on the person which campaign and outside referrer brought them first, as `initial_utm_*` and"
        " `$initial_referrer`",
        values.yes,
    )
    profile_context: bool = _setting(
        "PROFILE_CONTEXT",
        False,
        "yes: keep on the person the browser, system and device of their latest identify",
        values.yes,
    )
    trait_operations: tuple[tuple[str, str], ...] = _setting(
        "TRAIT_OPERATIONS",
        (),
        "traits not to be $set, by commas: TRAIT=set_once, union, unset, add or append; a dotted TRAIT is taken out"
        " of its object, the rest of which is set",
        values.trait_operations,
    )
    transactions: bool = _setting(
        "TRANSACTIONS",
        False,
        "yes: keep the revenue of a person's tracks as `$transactions`; what an Order Refunded or Order Cancelled"
        " gives back is less than zero",
        values.yes,
    )
    event_increments: tuple[str, ...] = _setting(
        "EVENT_INCREMENTS",
        (),
        "tracks to be counted on the person, by commas, in any case: 1 is added under the event's name, and"
        " `Last EVENT` is set",
        values.several,
    )
    property_increments: tuple[str, ...] = _setting(
        "PROPERTY_INCREMENTS",
        (),
        "properties of tracks to be added up on the person, by commas; of one that is an object, such as Segment's"
        " `increment`, all its numbers",
        values.several,
    )
    counters: str = _setting(
        "COUNTERS",
        "at-most-once",
        "at-most-once: an update that counts ($add, $append) and whose answer was lost is refused and kept, for it"
        " may have been applied; at-least-once: it is sent again",
        values.one_of("at-most-once", "at-least-once"),
    )
    drop_types: frozenset[str] = _setting(
        "DROP_TYPES", frozenset(), "types of messages not to send, by commas, such as screen,alias", values.types
    )
    drop_sources: frozenset[str] = _setting(
        "DROP_SOURCES", frozenset(), "Segment sources (projectId) to send nothing of, by commas", values.names
    )
    keep_events: tuple[str, ...] = _setting(
        "KEEP_EVENTS",
        (),
        "the only tracks to send: names or globs, by commas, such as Order *; all if not set",
        values.several,
    )
    drop_events: tuple[str, ...] = _setting(
        "DROP_EVENTS", (), "tracks not to send: names or globs, by commas; stronger than KEEP_EVENTS", values.several
    )
    integration_names: tuple[str, ...] = _setting(
        "INTEGRATION_NAMES",
        ("Mixpanel", "Mixpanel (Actions)", "Mixpanel (Legacy)"),
        "names under which a message's integrations object speaks of us, by commas",
        values.destinations,
    )
    drop_violations: bool = _setting(
        "DROP_VIOLATIONS", False, "yes: do not send what Segment found to break its tracking plan", values.yes
    )
    consent_categories: tuple[str, ...] = _setting(
        "CONSENT_CATEGORIES",
        (),
        "ids of consent categories, by commas; a message is sent if all are agreed to",
        values.several,
    )
    consent_missing: str = _setting(
        "CONSENT_MISSING",
        "drop",
        "send: with CONSENT_CATEGORIES, what carries no preferences goes out, as from Segment itself",
        values.one_of("drop", "send"),
    )
    ephemeral_disk: str = _setting(
        "EPHEMERAL_DISK",
        "refuse",
        "accept: start on a PaaS whose disk is lost at each restart; no warning on one where it may be",
        values.one_of("refuse", "accept"),
    )
    platform: str | None = _setting("DYNO", None, "set by Heroku itself; says that the disk does not last")


def describe(settings: Declared) -> list[dict[str, str]]:
    """Every setting as {variable, meaning, default, value}; secrets only say that they are set."""
    rows = []
    for declared in fields(settings):
        value = getattr(settings, declared.name)
        shown = declared.metadata["shown"](value)
        if declared.metadata["secret"] and value:
            shown = "(set)"
        rows.append(
            {
                "variable": declared.metadata["env"],
                "meaning": declared.metadata["help"],
                "default": _shown(declared.default),
                "value": shown,
            }
        )
    return rows
