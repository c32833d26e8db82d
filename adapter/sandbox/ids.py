"""Which strings can be an id, and what does an event say that is refused? Pure.

Source: reference/mixpanel.md 1.2.1 and 3.5. Where a message's exact text is known it is used.
"""

from dataclasses import dataclass
from typing import Any

DEVICE_PREFIX = "$device:"
IDENTIFY, CREATE_ALIAS, MERGE = "$identify", "$create_alias", "$merge"
#: The three events that speak about ids and report nothing that happened.
VERBS = frozenset({IDENTIFY, CREATE_ALIAS, MERGE})

#: Never an id, in any case of letters. The 17 published ones; comparing them without case is UNCONFIRMED.
JUNK_IDS = frozenset(
    ("00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na")
    + ("undefined", "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}")
)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one record is refused."""

    field: str  #: e.g. properties.time; empty for an identity verb, which Mixpanel answers with a bare string
    message: str


def invalid(field: str, message: str) -> Failure:
    """A failure in Mixpanel's words, the field named in them."""
    field = field[:100]  # a sender's property name may be a megabyte long
    return Failure(field=field, message=f"'{field}' is invalid: {message}")


def is_junk(value: str) -> bool:
    """Whether this is empty or on the published list, in any case of letters."""
    return not value or value.lower() in JUNK_IDS


def id_error(properties: dict[str, Any], name: str) -> Failure | None:
    """Why the id under this name is refused; None: it is not, or is absent or empty.

    Whether junk is refused elsewhere than in distinct_id is UNCONFIRMED: here it is.
    """
    value = properties.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        return invalid(f"properties.{name}", "must be a string")
    if is_junk(value.removeprefix(DEVICE_PREFIX)):
        return invalid(f"properties.{name}", f"must not be {value[:50]!r}")
    return None
