"""Whose event is it in a project with Original ID Merge? Pure but for the clusters it is given.

An event is its distinct_id's, and only the verbs join ids, whole clusters at a time. A verb that is refused is
stored with the reason. Source: reference/mixpanel.md 1.3 and 9.2.

Mixpanel picks the canonical id and says no more than that (1.3.7). Here it is the canonical id of the cluster that
the verb is about: of $identified_id, of the alias's distinct_id, of the first of $distinct_ids.
"""

import re
from typing import Any

from adapter.sandbox import verbs
from adapter.sandbox.clusters import Clusters
from adapter.sandbox.ids import CREATE_ALIAS, DEVICE_PREFIX, IDENTIFY, VERBS

NAME = "original"
RETROACTIVE = True
#: Of two profiles the canonical one shows; one alone is kept (1.3.8).
PROFILE_MOVES = True

#: One id and the 500 joined to it. The documents conflict; this is what was observed (1.3.6).
MAX_MEMBERS = 501
#: The pattern is unpublished; this is the guard of Mixpanel's PHP library and what its other SDKs send (1.3.2).
GUID = re.compile(rf"(?:{re.escape(DEVICE_PREFIX)})?[0-9A-Za-z]+(?:-[0-9A-Za-z]+){{4}}")

ids_error = verbs.ids_error


def named(name: str, properties: dict[str, Any]) -> tuple[str, ...]:
    """The ids whose clusters `file` asks for."""
    return verbs.pair(name, properties) if name in VERBS else ()


def file(name: str, properties: dict[str, Any], clusters: Clusters) -> dict[str, Any]:
    """The properties that the event is stored with over its own; a verb that nothing speaks against joins."""
    if name not in VERBS:
        return {"distinct_id": properties["distinct_id"]}
    one, other = verbs.pair(name, properties)
    refusal = _refusal(name, one, other, clusters)
    if not refusal:
        clusters.join(one, other)
        if name == IDENTIFY:
            clusters.mark(clusters.person(one), "identified")
        if name == CREATE_ALIAS:
            clusters.mark(other, "alias")
    return {"distinct_id": one} | refusal


def _refusal(name: str, one: str, other: str, clusters: Clusters) -> dict[str, str]:
    """Why a verb joins nothing, by the first check that fails; empty: none does."""
    if name == IDENTIFY:
        if one == other:
            return verbs.refusal("errSameIDs", f"Identified and anon ID are same in the identify request {one}")
        if not GUID.fullmatch(other):
            text = f"$anon_distinct_id didn't match expected GUID pattern: {other}"
            return verbs.refusal("errAnonDistinctIdNonGUIDForm", text)
        # That an id inherits this from what it was merged with is UNCONFIRMED (scenario O12).
        if clusters.has(clusters.person(other), "identified"):
            text = f"$anon_distinct_id already identified: {other}"
            return verbs.refusal("errAnonDistinctIdAssignedAlready", text)
    if name == CREATE_ALIAS and clusters.has(other, "alias"):
        return verbs.alias_exists()
    size = clusters.joint_size(one, other)
    if size > MAX_MEMBERS:
        text = f"too many distinctIDs mapped together, Cluster size: {size} Max limit: 500"
        return verbs.refusal("errManyIDs", text)
    return {}
