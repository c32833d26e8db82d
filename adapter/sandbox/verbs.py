"""What does an identity verb say? Pure. Source: reference/mixpanel.md 1.3.2-1.3.5."""

from typing import Any

from adapter.sandbox.ids import CREATE_ALIAS, MERGE, VERBS, Failure, id_error, invalid


def pair(name: str, properties: dict[str, Any]) -> tuple[str, str]:
    """The two ids of a verb that passed `ids_error`, the one it is about first.

        $identify       $identified_id, else distinct_id   $anon_id, else $anon_distinct_id
        $create_alias   distinct_id                        alias
        $merge          the first of $distinct_ids         the second

    How the server reconciles the two names of an anonymous id is UNCONFIRMED; SDKs send the second.
    """
    one, other = (
        properties["$distinct_ids"] if name == MERGE else [properties[key] for key in _keys(name, properties)]
    )
    return one, other


def ids_error(name: str, properties: dict[str, Any]) -> Failure | None:
    """Why the ids of this event are refused where verbs are known; $device_id and $user_id are not looked at.

    That a verb without its two ids is refused at once, not stored with a reason, is UNCONFIRMED.
    """
    if name == MERGE:
        both = properties.get("$distinct_ids")
        if not isinstance(both, list) or len(both) != 2 or not all(isinstance(id, str) for id in both):
            return invalid("properties.$distinct_ids", "must be an array of exactly 2 strings")
        entries = {"$distinct_ids": both[0]}, {"$distinct_ids": both[1]}
        return next((error for each in entries if (error := _required(each, "$distinct_ids"))), None)
    if name in VERBS:
        return next((error for key in _keys(name, properties) if (error := _required(properties, key))), None)
    if properties.get("distinct_id") is None:
        return invalid("properties.distinct_id", "must not be missing")
    return id_error(properties, "distinct_id")  # empty: it belongs to nobody


def refusal(reason: str, description: str) -> dict[str, str]:
    """The properties that a refused verb is stored with: ingestion itself does not fail (1.3.5)."""
    return {"$failure_reason": reason, "$failure_description": description}


def alias_exists() -> dict[str, str]:
    return refusal("errAliasAlreadyExists", "alias already exists with the id")


def _keys(name: str, properties: dict[str, Any]) -> tuple[str, str]:
    """The properties that hold the two ids of $create_alias or $identify."""
    if name == CREATE_ALIAS:
        return "distinct_id", "alias"
    return _set(properties, "$identified_id", "distinct_id"), _set(properties, "$anon_id", "$anon_distinct_id")


def _set(properties: dict[str, Any], name: str, other: str) -> str:
    return other if properties.get(other) and not properties.get(name) else name


def _required(properties: dict[str, Any], key: str) -> Failure | None:
    if properties.get(key) in (None, ""):
        return invalid(f"properties.{key}", "must not be missing")
    return id_error(properties, key)
