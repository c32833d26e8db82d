"""The event that links a device to a user, and when there is one: three ID systems, side by side. Pure.

    system      identify with both ids                      alias                      source in mixpanel.md
    simplified  an event of any name that carries both      the same                   1.2.2
    original    `$identify`; `$merge` by setting            `$create_alias`            1.3.2 to 1.3.4
    legacy      nothing                                     `$create_alias`            1.4

Mixpanel takes a link that it will not make with a friendly 200, so what it would refuse is refused here, with its own
word for the reason (1.3.5). One thing escapes: of a cluster, the devices of one user alone are counted here. Where
aliases join several users, Mixpanel may refuse with errManyIDs what is counted here as delivered.
"""

from collections.abc import Callable
from typing import Any

from adapter import links
from adapter.errors import Refused
from adapter.identity import Identity, is_guid
from adapter.links import Known
from adapter.records import LEGACY, ORIGINAL, SIMPLIFIED, Options
from schemas import compiled, mixpanel

#: A cluster of Original has at most 501 members: a user and 500 devices (mixpanel.md 1.3.6).
MAX_LINKS = 500

_put_identify = compiled.writer(mixpanel.Identify())
_put_create_alias = compiled.writer(mixpanel.CreateAlias())
_put_merge = compiled.writer(mixpanel.Merge())

#: The name of the event and its own properties; or why there is none.
Link = tuple[str, dict[str, Any]] | str


def simplified(who: Identity, known: Known, options: Options, *, alias: bool) -> Link:
    user_id = who.user_id or ""
    if alias and known.is_user:
        raise Refused("alias_of_a_user", "previousId is a user, and two users cannot be merged in Mixpanel")
    if alias and links.is_of_another(known, user_id):
        raise Refused("alias_of_anothers_device", "previousId is a device of another user for good")
    if who.device_id is None:
        return "nothing_to_link"
    if links.is_of_another(known, user_id) and not options.split:
        return "device_of_another"
    if links.knows_link(known, user_id):
        return "linked_already"
    return "link_events_off" if options.link_event is None else (options.link_event, {"ip": "0"})


def original(who: Identity, known: Known, options: Options, *, alias: bool) -> Link:
    if alias:
        return _create_alias(who, known)
    if "ids_are_equal" in who.notes:
        raise Refused("errSameIDs", "anonymousId and userId are the same")
    anonymous_id, user_id = f"{who.form}{who.device_id}", who.user_id or ""
    if links.is_of_another(known, user_id):
        raise Refused("errAnonDistinctIdAssignedAlready", "anonymousId belongs to another user for good")
    if links.knows_link(known, user_id):
        return "linked_already"
    if known.is_user:
        raise Refused("errAnonDistinctIdAssignedAlready", "anonymousId is a user, to whom other ids are joined")
    if known.links >= MAX_LINKS:
        raise Refused("errManyIDs", f"the user has {known.links} ids; Mixpanel joins no more")
    properties: dict[str, Any] = {"ip": "0"}
    if options.original_merge:
        _put_merge(properties, [user_id, anonymous_id])
        return mixpanel.MERGE, properties
    if not is_guid(who.device_id or ""):
        raise Refused("errAnonDistinctIdNonGUIDForm", "anonymousId is no GUID; Original joins no other")
    _put_identify(properties, user_id, anonymous_id)
    return mixpanel.IDENTIFY, properties


def legacy(who: Identity, known: Known, options: Options, *, alias: bool) -> Link:
    return _create_alias(who, known) if alias else "legacy_links_by_alias_alone"


def _create_alias(who: Identity, known: Known) -> Link:
    user_id = who.user_id or ""
    if links.knows_link(known, user_id) and not links.is_of_another(known, user_id):
        return "linked_already"
    if known.is_alias:
        raise Refused("errAliasAlreadyExists", "userId was made an alias before")
    if known.links >= MAX_LINKS:
        raise Refused("errManyIDs", f"the user has {known.links} ids; Mixpanel joins no more")
    properties: dict[str, Any] = {"ip": "0"}
    _put_create_alias(properties, user_id)
    return mixpanel.CREATE_ALIAS, properties


LINKS: dict[str, Callable[..., Link]] = {SIMPLIFIED: simplified, ORIGINAL: original, LEGACY: legacy}
