"""What mapping gives: records for one endpoint; and the settings that change them."""

from dataclasses import dataclass
from typing import Any

import msgspec

from adapter.config import Settings
from adapter.identity import DEVICE_PREFIX
from adapter.links import Effect
from schemas import mixpanel

Record = dict[str, Any]

#: The ID systems a project can have (mixpanel.md 1.1).
SIMPLIFIED, ORIGINAL, LEGACY = "simplified", "original", "legacy"
ONE_GROUP_KEY = ((mixpanel.GROUP_KEY, None),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The settings that change what is sent."""

    token: str  #: of the Mixpanel project; profile updates carry it
    system: str = SIMPLIFIED  #: the project's ID system
    split: bool = False  #: give each user of a shared device their own anonymous events
    denied: frozenset[str] = frozenset()  #: further ids that are none; casefolded
    form: str = DEVICE_PREFIX  #: what stands before a device id in a distinct_id
    original_merge: bool = False  #: link by `$merge` instead of `$identify`
    anonymous_profiles: str = "hold"  #: hold, send or drop the traits of a visitor
    link_event: str | None = "Identity Linked"  #: name of the event that only links; None: none is sent
    segment_insert_ids: bool = False  #: send messageIds as Segment's own destination does
    view_names: str = "actions"  #: how events of pages and screens are named; see `mapping.view_name`
    product_events: bool = True  #: an event for each product of an order
    source_name: str | None = None  #: said on every event, as Segment's own destination does
    event_traits: bool = False  #: send context.traits as properties of the event
    event_context: bool = False  #: send what else is in the context, flat, as properties of the event
    first_touch: bool = True  #: keep on the person what brought them first
    profile_context: bool = False  #: keep on the person their latest browser, system and device
    transactions: bool = False  #: keep revenue, refunds and cancellations as a list on the person
    event_increments: frozenset[str] = frozenset()  #: events counted on the person; casefolded
    property_increments: tuple[str, ...] = ()  #: properties of tracks that are added up on the person
    #: (group key, trait of the group that is its id; None: the groupId)
    group_keys: tuple[tuple[str, str | None], ...] = ONE_GROUP_KEY
    trait_operations: tuple[tuple[str, str], ...] = ()  #: (trait, one of TRAIT_OPERATIONS); others are set

    @classmethod
    def of(cls, settings: Settings) -> "Options":
        return cls(
            token=settings.token,
            system=settings.identity_api,
            split=settings.shared_devices == "split" and settings.identity_api == SIMPLIFIED,
            denied=frozenset(an_id.casefold() for an_id in settings.junk_ids),
            form=DEVICE_PREFIX if settings.identity_api == SIMPLIFIED or settings.anonymous_form == "device" else "",
            original_merge=settings.original_verb == "merge",
            anonymous_profiles=settings.anonymous_profiles,
            link_event=settings.link_event,
            segment_insert_ids=settings.insert_id == "segment",
            view_names=settings.view_names,
            product_events=settings.product_events,
            source_name=settings.source_name,
            event_traits=settings.event_traits,
            event_context=settings.event_context,
            first_touch=settings.first_touch,
            profile_context=settings.profile_context,
            transactions=settings.transactions,
            event_increments=frozenset(name.casefold() for name in settings.event_increments),
            property_increments=settings.property_increments,
            group_keys=settings.group_keys,
            trait_operations=settings.trait_operations,
        )


class Around(msgspec.Struct, frozen=True, gc=False):
    """Properties of events that many messages have in common, written once for all of them."""

    properties: Record
    names: frozenset[str]
    text: bytes  #: as they stand in a record behind other properties


NOTHING_AROUND = Around({}, frozenset(), b"")


class Mapped(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What becomes of a message at one endpoint: records, or none for a reason."""

    records: tuple[Record, ...] = ()
    nothing: str | None = None  #: why there is nothing to send
    notes: tuple[str, ...] = ()  #: what was dropped or changed, each a word that is counted
    effect: Effect | None = None  #: what it adds to what is known of its device
    around: Around = NOTHING_AROUND  #: of a single event: what else belongs to its properties, under other names
    own: Record | None = None  #: of a single event: its caller's part, where all else is scalars under short names

    def whole(self) -> "Mapped":
        """The same with all properties in the records."""
        if self.around is NOTHING_AROUND:
            return self
        (record,) = self.records
        properties = {**self.around.properties, **record["properties"]}
        return msgspec.structs.replace(self, records=({**record, "properties": properties},), around=NOTHING_AROUND)


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """An endpoint that a message can reach, and the lane that keeps its order there."""

    endpoint: str
    lane: int
