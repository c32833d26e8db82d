"""All that messages say of one profile, as few updates. Pure.

A year of identify calls says the same most of the time. What it comes to is found by applying what was said in the
order in which it was:

    $set       the latest wins; it stands over whatever was set once
    $set_once  the first wins, and nothing that was set
    $unset     takes away what was there before it
    $union     all that was added, in the order in which it was

How that is sent is `--profiles`: a replay of March in June must not roll back what June says, so by default it only
fills gaps.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from schemas import raw
from schemas.mixpanel import GROUPS

Record = dict[str, Any]

#: --profiles
OFF, MISSING, LATEST = "off", "missing", "latest"
OPERATIONS = ("$set", "$set_once", "$unset", "$union")
#: Marks what was refused before, which is what that replay's --profiles made of it: it is sent as it is.
AS_IT_IS = "$as_it_is"
#: A replay says nothing of where and when somebody was last seen.
_UNSEEN = {"$ip": "0", "$ignore_time": True}


def content(records: Iterable[Record], profiles: str, *, as_it_is: bool = False) -> bytes:
    """What the updates of one message do, without whom they are for, so that what is said again is equal."""
    said: Record = {AS_IT_IS: True} if as_it_is else {}
    for record in records:
        said |= {name: value for name, value in record.items() if name in OPERATIONS}
        if (profiles == LATEST or as_it_is) and "$ip" in record:
            said["$ip"] = record["$ip"]
    return raw.dumped(said)


def profile_of(record: Record) -> str:
    """Whose profile an update is for: a distinct id, or a group key and id."""
    if "$distinct_id" in record:
        return str(record["$distinct_id"])
    return orjson.dumps([record["$group_key"], record["$group_id"]]).decode()


def updates(
    endpoint: str, profile: str, said: Iterable[tuple[bytes, bytes]], token: str, profiles: str
) -> list[Record]:
    """The updates that all of it comes to; `said` is (place, content), in any order, each content once or twice."""
    is_group = endpoint == GROUPS
    values, once, gone, united, ip, fixed = _applied(said)
    if profiles == MISSING:
        once |= {name: value for name, value in values.items() if name not in fixed}
        values = {name: value for name, value in values.items() if name in fixed}
        gone = [name for name in gone if name in fixed]
    operations: Record = {"$set": values, "$set_once": once, "$unset": gone, "$union": united}
    group_key, group_id = orjson.loads(profile) if is_group else ("", "")
    key: Record = {"$group_key": group_key, "$group_id": group_id} if is_group else {"$distinct_id": profile}
    if not is_group:
        key |= {"$ip": ip, "$ignore_time": True} if (profiles == LATEST or fixed) and ip else _UNSEEN
    return [{"$token": token, **key, name: value} for name, value in operations.items() if value]


def _applied(said: Iterable[tuple[bytes, bytes]]) -> tuple[Record, Record, list[str], Record, str | None, set[str]]:
    """What is set, set once, unset and united in the end, the IP address, and the names set or unset as it is."""
    values: Record = {}
    once: Record = {}
    gone: dict[str, None] = {}
    united: dict[str, list[Any]] = {}
    ip: str | None = None
    fixed: set[str] = set()
    for _place, one in sorted(said):
        does = orjson.loads(one)
        ip = does.get("$ip", ip)
        if AS_IT_IS in does:
            fixed |= {*does.get("$set", ()), *does.get("$unset", ())}
        for name, value in does.get("$set_once", {}).items():
            if name in gone:
                del gone[name]
                values[name] = value  # whatever Mixpanel has there is older than what took it away
            elif name not in values and name not in united:
                once.setdefault(name, value)
        for name, value in does.get("$set", {}).items():
            values[name] = value
            for others in (once, gone, united):
                others.pop(name, None)
        for name, added in does.get("$union", {}).items():
            into = values[name] if isinstance(values.get(name), list) else united.setdefault(name, [])
            into += [value for value in added if value not in into]
        for name in does.get("$unset", ()):
            for others in (values, once, united):
                others.pop(name, None)
            gone[name] = None
    return values, once, list(gone), united, ip, fixed
