"""Whose event is it in a project from before ID Merge? Pure but for the clusters it is given.

Only $create_alias does anything: what is sent to the alias from then on is filed under the id it was given to, and
nothing moves that is stored. An id is aliased once; chains are followed. Source: reference/mixpanel.md 1.4, 9.3.
"""

from typing import Any

from adapter.sandbox import verbs
from adapter.sandbox.clusters import Clusters
from adapter.sandbox.ids import CREATE_ALIAS, VERBS

NAME = "legacy"
RETROACTIVE = False
PROFILE_MOVES = False

ids_error = verbs.ids_error


def named(name: str, properties: dict[str, Any]) -> tuple[str, ...]:
    """The ids whose clusters `file` asks for."""
    return verbs.pair(name, properties) if name in VERBS else (properties["distinct_id"],)


def file(name: str, properties: dict[str, Any], clusters: Clusters) -> dict[str, Any]:
    """The properties that the event is stored with over its own: first of all the id it is filed under.

    That $identify and $merge are stored, though they have no effect, is UNCONFIRMED.
    """
    if name not in VERBS:
        return {"distinct_id": clusters.person(properties["distinct_id"])}
    one, other = verbs.pair(name, properties)
    refusal: dict[str, str] = {}
    if name == CREATE_ALIAS:
        if clusters.has(other, "alias"):
            refusal = verbs.alias_exists()
        else:
            # An alias that leads back to itself joins nothing: it is its own person already.
            clusters.join(one, other)
            clusters.mark(other, "alias")
    return {"distinct_id": clusters.person(one)} | refusal
