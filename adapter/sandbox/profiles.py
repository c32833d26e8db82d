"""What does one update make of a profile? Pure. Source: reference/mixpanel.md 2.4 and 2.5."""

from typing import Any

import orjson


def updated(profile: dict[str, Any] | None, update: dict[str, Any]) -> dict[str, Any] | None:
    """The profile (None: there is none) after one valid update; the one given is changed.

    UNCONFIRMED: that an operation that does not fit the stored value ($add to a text) changes nothing, that
    $remove takes out every equal value, that every operation but $remove and $unset creates the profile.
    """
    if "$delete" in update or (profile is None and ("$unset" in update or "$remove" in update)):
        return None
    profile = {} if profile is None else profile
    profile.update(update.get("$set", {}))
    for name, value in update.get("$set_once", {}).items():
        profile.setdefault(name, value)
    for name, value in update.get("$add", {}).items():
        if isinstance(profile.setdefault(name, 0), (int, float)):
            total = profile[name] + value
            profile[name] = total if abs(total) < 2**63 else float(total)  # beyond it JSON cannot be written
    for name, value in update.get("$append", {}).items():
        if isinstance(profile.setdefault(name, []), list):
            profile[name].append(value)
    for name, values in update.get("$union", {}).items():
        if isinstance(profile.setdefault(name, []), list):
            there = {_text(value) for value in profile[name]}
            new = {_text(value): value for value in values if _text(value) not in there}
            profile[name] += new.values()
    for name, value in update.get("$remove", {}).items():
        if isinstance(profile.get(name), list):
            profile[name] = [kept for kept in profile[name] if _text(kept) != _text(value)]
    for name in update.get("$unset", ()):
        profile.pop(name, None)
    return profile


def _text(value: Any) -> bytes:
    """A value as what it equals by: in Python true is 1, in JSON it is not."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
