"""Whose event is it in a project with Simplified ID Merge? Pure but for the clusters it is given.

A device belongs for good to the user of the first event, by arrival, that carries both; a person is that user or,
while there is none, `$device:` and the device. Source: reference/mixpanel.md 1.2 and 9.1.
"""

from typing import Any, NamedTuple

from adapter.sandbox.clusters import Clusters
from adapter.sandbox.ids import DEVICE_PREFIX, VERBS, Failure, id_error, invalid

NAME = "simplified"
RETROACTIVE = True
#: An anonymous profile is not carried over to the user (1.2.6).
PROFILE_MOVES = False

VERB_MESSAGE = "identity events are not allowed when project is using simplified identity management"
CONFLICT = "errAnonDistinctIdAssignedAlready"


class Effective(NamedTuple):
    """Whose event it is, before any link is followed."""

    device: str | None
    user: str | None
    distinct_id: str  #: as stored; empty: the event belongs to nobody


def effective(properties: dict[str, Any]) -> Effective:
    """The effective device, user and stored distinct_id of an event that passed `ids_error`.

        $user_id  $device_id  distinct_id   device  user  stored
        U         D           any           D       U     U
        U         -           any           -       U     U
        -         D           any           D       -     $device:D
        -         -           $device:D     D       -     $device:D
        -         -           X             -       X     X
        -         -           "" or none    -       -     ""

    Exactly one prefix is stripped from a supplied $device_id; a second one makes the phantom it makes at
    Mixpanel. An empty $device_id or $user_id counts as none (UNCONFIRMED). Source: the reference, 1.2.1.
    """
    user = properties.get("$user_id") or None
    device = (properties.get("$device_id") or "").removeprefix(DEVICE_PREFIX) or None
    if user or device:
        return Effective(device, user, user or f"{DEVICE_PREFIX}{device}")
    sent = properties.get("distinct_id") or ""
    if sent.startswith(DEVICE_PREFIX):
        return Effective(sent.removeprefix(DEVICE_PREFIX), None, sent)
    return Effective(None, sent or None, sent)


def ids_error(name: str, properties: dict[str, Any]) -> Failure | None:
    """Why the ids of this event are refused; a verb is, whatever it says."""
    if name in VERBS:
        return Failure(field="", message=VERB_MESSAGE)
    for each in ("$user_id", "$device_id", "distinct_id"):
        failure = id_error(properties, each)
        if failure is not None:
            return failure
    user = properties.get("$user_id")
    # Whether the server refuses this is UNCONFIRMED.
    if user and user.startswith(DEVICE_PREFIX):
        return invalid("properties.$user_id", f"must not begin with {DEVICE_PREFIX}")
    if properties.get("distinct_id") is None and not (user or properties.get("$device_id")):
        return invalid("properties.distinct_id", "must not be missing")
    return None


def named(name: str, properties: dict[str, Any]) -> tuple[str, ...]:
    """The ids whose clusters `file` asks for."""
    device, user, _ = effective(properties)
    return (f"{DEVICE_PREFIX}{device}",) if device and user else ()


def file(name: str, properties: dict[str, Any], clusters: Clusters) -> dict[str, Any]:
    """The properties that the event is stored with over its own, and the link it makes."""
    device, user, distinct_id = effective(properties)
    decided = {"$device_id": device, "$user_id": user, "distinct_id": distinct_id}
    if device and user:
        form = f"{DEVICE_PREFIX}{device}"
        owner = clusters.person(form)
        if owner == form:
            clusters.join(user, form)
        elif owner != user:
            decided["$identity_failure_reason"] = CONFLICT
    return {name: value for name, value in decided.items() if value is not None}
