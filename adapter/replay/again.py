"""Updates that were refused, as they stand in `refused.jsonl`. Pure.

What messages say of a profile is folded, so an update that is refused is no message. It is kept as it was to be sent,
in a form that only a replay reads. What counts is kept for a person to look at: it is not sent again.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from adapter.records import Record
from adapter.replay.fold import profile_of
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """What such a line holds."""

    endpoint: str
    profile: str
    records: tuple[Record, ...]  #: none of what counts


_UPDATE, _COUNTERS = "$update", "$counters"
_PREFIX = b'{"type":"$'


def update(endpoint: str, records: Sequence[Record]) -> bytes:
    """The updates of one profile, as a line."""
    told = [{name: value for name, value in one.items() if name != "$token"} for one in records]
    return orjson.dumps({"type": _UPDATE, "endpoint": endpoint, "updates": told})


def counters(profile: str, counts: Sequence[Record]) -> bytes:
    """What was to be counted on one profile, as a line."""
    return orjson.dumps({"type": _COUNTERS, "profile": profile, "counts": counts})


def read(line: bytes) -> Update | None:
    """What such a line holds; None if it is none."""
    if not line.startswith(_PREFIX):  # no call is of such a type
        return None
    try:
        said: dict[str, Any] = orjson.loads(line)
        if said["type"] == _COUNTERS:
            return Update(endpoint=COUNTERS, profile=said["profile"], records=())
        if said["type"] == _UPDATE:
            records = said["updates"]
            (profile,) = {profile_of(one) for one in records}
            if all(said["endpoint"] == (ENGAGE if "$distinct_id" in one else GROUPS) for one in records):
                return Update(endpoint=said["endpoint"], profile=profile, records=tuple(records))
    except (ValueError, LookupError, TypeError):
        pass
    return None
