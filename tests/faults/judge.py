"""What must hold after a run: every obligation in one counted state, once in effect, in order.

conservation   each entry of an acknowledged message is at the endpoint, refused, held, or nothing had to be sent
no invention   the endpoint has nothing that no sender sent
integrity      what it has is what mapping yields for the message as it was sent
once           an event is there once by (event, time, distinct_id, $insert_id); a counter was
                   applied at most once
order          of two messages of one device, person or group the one that was acknowledged first, and did not
               happen later, is there first; so a profile ends in the state of its last update
identity       a device is the user's whose message with both ids was acknowledged first: at the endpoint, and in
               the adapter's own table; an identify or alias made the one event that links, or none was needed
held           what a visitor said reached the next user of the device, and nobody else
sums           what the adapter counts is what there is
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from adapter import mapping, parcels
from adapter.config import Settings
from adapter.parcels import Parcel, Rules
from adapter.store import Entry
from schemas import segment
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS, IMPORT
from tests.conftest import raw
from tests.faults.endpoint import Record
from tests.faults.senders import Call, Journal

Key = tuple[str, str]  # (endpoint, messageId)
#: (endpoint, whom it is about) -> messages as they were acknowledged: time, place at the endpoint, message
Lanes = dict[tuple[str, str], list[tuple[str, int, Call]]]
#: After a frozen process goes on it may still end the request it was in.
THAW_S = 5.0
#: No time of a message is so long after its acceptance that the acceptance stands in for it.
LATER_MS = 4_000_000_000_000
PATHS = {IMPORT: "/import", ENGAGE: "/engage", COUNTERS: "/engage", GROUPS: "/groups"}


@dataclass
class Found:
    """What a run left behind."""

    journal: Journal
    posts: list[dict[str, Any]]  #: the endpoint's log
    status: dict[str, Any]  #: `adapter status --json`
    refused: list[tuple[str, str, bytes]]  #: endpoint, reason, body
    links: dict[str, str]  #: the adapter's own table
    thaws: list[float]


@dataclass
class Verdict:
    """The figures of a run, and what is wrong."""

    figures: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.wrong.append(text)


@dataclass
class Expected:
    """What is to become of the entries of messages, by the rules alone."""

    records: dict[Key, list[bytes]] = field(default_factory=dict)
    refused: dict[Key, str] = field(default_factory=dict)  #: with which reason
    nothing: set[Key] = field(default_factory=set)
    held: set[Key] = field(default_factory=set)  #: also what was released
    owners: dict[str, str] = field(default_factory=dict)
    releases: dict[str, str] = field(default_factory=dict)  #: messageId of what a visitor said -> user


class Seen:
    """What the endpoint stored, by key and in order."""

    def __init__(self, posts: Iterable[dict[str, Any]]) -> None:
        self.at: dict[tuple[str, bytes], list[int]] = defaultdict(list)  # (path, identity) -> positions
        self.records: list[tuple[str, Record]] = []
        self.bodies: dict[tuple[str, bytes], set[bytes]] = defaultdict(set)
        self.times: list[float] = []
        for post in posts:
            for record in post["stored"]:
                path, name = post["path"], identity(post["path"], record)
                self.at[path, name].append(len(self.records))
                self.bodies[path, name].add(canonical(record))
                self.records.append((path, record))
                self.times.append(post["at"])

    def first(self, endpoint: str, records: Sequence[bytes]) -> int | None:
        """When the first record of an entry arrived first; None unless all of them are there."""
        found = [self.at.get((PATHS[endpoint], identity(PATHS[endpoint], orjson.loads(one)))) for one in records]
        return found[0][0] if all(found) and found[0] else None


def identity(path: str, record: Record) -> bytes:
    """By what the endpoint tells records apart."""
    if path != "/import":
        return canonical(record)
    own = record["properties"]
    return canonical([record["event"], own["time"], own["distinct_id"], own["$insert_id"]])


def canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def judge(found: Found, settings: Settings) -> Verdict:
    verdict = Verdict()
    calls = found.journal.acknowledged
    n_given_up = found.journal.issued - len(calls)
    verdict.expect(not n_given_up, f"{n_given_up} messages got no 200 although all was well again")
    expected, seen = expect(calls, Rules.of(settings)), Seen(found.posts)
    verdict.figures |= {
        "acknowledged": len(calls),
        "duplicates sent": found.journal.duplicates,
        "requests": len(found.posts),
        "records stored": len(seen.records),
        "of them again": len(seen.records) - len(seen.at),
    }
    ended = _conservation(verdict, found, expected, seen)
    _no_invention(verdict, found, expected, seen)
    _once(verdict, seen)
    _order(verdict, found, expected, seen)
    _identity(verdict, found, expected, seen)
    _held(verdict, expected, seen)
    _counted(verdict, found, expected, seen, ended)
    return verdict


def expect(calls: Sequence[Call], rules: Rules) -> Expected:
    """By the rules of design 3.4 and 3.5, message by message in the order in which they were acknowledged."""
    expected = Expected()
    waiting: dict[str, list[str]] = defaultdict(list)  # device -> what visitors said
    for call in calls:
        body, name = raw(call), call["messageId"]
        message = segment.read(body)
        for to in mapping.destinations(message, rules.options):
            entry = Entry(endpoint=to.endpoint, message_id=1, accepted_at_ms=LATER_MS, time_ms=0, body=body)
            prepared = parcels.prepare(entry, rules)
            if isinstance(prepared, Parcel):
                expected.records[to.endpoint, name] = list(prepared.records)
            elif prepared.state == "held":
                expected.held.add((to.endpoint, name))
            else:
                expected.nothing.add((to.endpoint, name))
        device, user = call.get("previousId") or call.get("anonymousId"), call.get("userId")
        if device is None:
            continue
        if user is None:
            waiting[device] += [name] if call["type"] == "identify" else []
            continue
        if call["type"] == "group":
            expected.releases.update(dict.fromkeys(waiting.pop(device, []), user))
            continue
        is_free = device not in expected.owners
        owner = expected.owners.setdefault(device, user)
        if call["type"] == "alias" and owner != user:
            del expected.records[IMPORT, name]
            expected.refused[IMPORT, name] = "alias_of_anothers_device"
            continue
        if call["type"] in ("alias", "identify") and not is_free:
            del expected.records[IMPORT, name]
            expected.nothing.add((IMPORT, name))
        expected.releases.update(dict.fromkeys(waiting.pop(device, []), user))
    return expected


def _conservation(verdict: Verdict, found: Found, expected: Expected, seen: Seen) -> Counter[tuple[str, str]]:
    """Each entry in exactly one state; returns how many are in each: (endpoint, state)."""
    refused: dict[Key, list[str]] = defaultdict(list)
    fates = {}
    for endpoint, reason, body in found.refused:
        refused[endpoint, orjson.loads(body)["messageId"]].append(reason)
    for call in found.journal.acknowledged:
        fates[call["messageId"]] = (call.get("properties") or call.get("traits") or {}).get("fate")
    ended: Counter[tuple[str, str]] = Counter()
    lost = twice = 0
    for key, records in expected.records.items():
        is_there, reasons = seen.first(key[0], records) is not None, refused.pop(key, [])
        may_be_both = reasons == ["may_have_been_applied"]
        ended[key[0], "refused" if reasons else "delivered"] += 1
        lost += not is_there and not reasons
        twice += (is_there and bool(reasons) and not may_be_both) or len(reasons) > 1
        verdict.expect(is_there or bool(reasons), f"lost: {key}")
        verdict.expect(not (is_there and reasons) or may_be_both, f"refused and there: {key}")
        good = not reasons or may_be_both or (fates[key[1]] and reasons == ["refused_by_mixpanel"])
        verdict.expect(bool(good), f"refused as {reasons} without need: {key}")
        if is_there:
            _intact(verdict, key, records, seen)
    for key, reason in expected.refused.items():
        ended[key[0], "refused"] += 1
        verdict.expect(refused.pop(key, None) == [reason], f"not refused as {reason}: {key}")
    verdict.expect(not refused, f"refused without need: {dict(itertools.islice(refused.items(), 5))}")
    ended.update((endpoint, "nothing") for endpoint, _ in expected.nothing)
    verdict.figures |= {
        "entries": len(expected.records) + len(expected.refused),
        "lost": lost,
        "in two states": twice,
    }
    verdict.figures["refused"] = sum(n for (_, state), n in ended.items() if state == "refused")
    return ended


def _intact(verdict: Verdict, key: Key, records: Sequence[bytes], seen: Seen) -> None:
    path = PATHS[key[0]]
    for one in records:
        record = orjson.loads(one)
        bodies = seen.bodies[path, identity(path, record)]
        verdict.expect(bodies == {canonical(record)}, f"changed: {key}: {bodies}")


def _no_invention(verdict: Verdict, found: Found, expected: Expected, seen: Seen) -> None:
    paths = {post["path"] for post in found.posts}
    verdict.expect(paths <= set(PATHS.values()), f"a redirect was followed: {paths}")
    known = {
        (PATHS[to], identity(PATHS[to], orjson.loads(one)))
        for (to, _), records in expected.records.items()
        for one in records
    }
    said = {f"held_{name}" for _, name in expected.held}
    invented = [
        (path, name)
        for (path, name), (first, *_) in seen.at.items()
        if (path, name) not in known and not seen.records[first][1].get("$set_once", {"": 0}).keys() <= said
    ]
    verdict.expect(not invented, f"{len(invented)} invented: {invented[:3]}")


def _once(verdict: Verdict, seen: Seen) -> None:
    names: dict[str, set[bytes]] = defaultdict(set)
    for (path, name), positions in seen.at.items():
        record = seen.records[positions[0]][1]
        if path == "/import":
            names[record["properties"]["$insert_id"]].add(name)
        verdict.expect("$add" not in record or len(positions) == 1, f"added {len(positions)} times: {record}")
    several = {name: keys for name, keys in names.items() if len(keys) > 1}
    verdict.expect(not several, f"an event with several keys: {several}")


def _order(verdict: Verdict, found: Found, expected: Expected, seen: Seen) -> None:
    lanes: Lanes = defaultdict(list)
    for call in found.journal.acknowledged:
        own = call.get("properties") or call.get("traits") or {}
        if "fate" in own:
            continue  # it went behind, if it was retried
        lane = {
            IMPORT: call.get("previousId") or call.get("anonymousId") or call.get("userId", ""),
            ENGAGE: call.get("userId", ""),
            GROUPS: call.get("groupId", ""),
        }
        if call["type"] == "group":
            del lane[ENGAGE]  # it says what another may have said before
        for to, about in lane.items():
            records = expected.records.get((to, call["messageId"]))
            position = records and seen.first(to, records)
            if records and position is not None:
                lanes[to, about].append((call["timestamp"], position, call))
    turned = [
        (to, about, one[2]["messageId"], other[2]["messageId"])
        for (to, about), sequence in lanes.items()
        for one, other in itertools.combinations(sequence, 2)
        if one[0] <= other[0] and one[1] > other[1] and not _thawed(found, seen.times[one[1]], seen.times[other[1]])
    ]
    verdict.expect(not turned, f"{len(turned)} out of order: {turned[:3]}")
    verdict.figures["in order"] = sum(map(len, lanes.values()))
    if not found.thaws:
        _folded(verdict, lanes, seen)


def _thawed(found: Found, *times: float) -> bool:
    return any(thaw <= time <= thaw + THAW_S for thaw in found.thaws for time in times)


def _folded(verdict: Verdict, lanes: Lanes, seen: Seen) -> None:
    """What profiles came to is what their updates give in the order in which they were acknowledged."""
    profiles: dict[tuple[str, str], Record] = defaultdict(dict)
    for path, record in seen.records:
        if "$set" in record:
            about = record.get("$distinct_id") or record.get("$group_id")
            slots = {name: value for name, value in record["$set"].items() if name.startswith("slot")}
            profiles[path, str(about)].update(slots)
    n_profiles = 0
    for (to, about), sequence in lanes.items():
        if to == IMPORT:
            continue
        state: Record = {}
        for _, _, call in sequence:
            state.update((k, v) for k, v in call["traits"].items() if k.startswith("slot"))
        n_profiles += 1
        verdict.expect(profiles[PATHS[to], about] == state, f"{to} {about}: {profiles[PATHS[to], about]} != {state}")
    verdict.figures["profiles"] = n_profiles


def _identity(verdict: Verdict, found: Found, expected: Expected, seen: Seen) -> None:
    there: dict[str, str] = {}
    for path, record in seen.records:
        own = record.get("properties", {})
        if path == "/import" and own.get("$device_id") and own.get("$user_id"):
            there.setdefault(own["$device_id"], own["$user_id"])
    for name, links in (("the endpoint", there), ("the adapter", found.links)):
        differs = {
            device: (links.get(device), expected.owners.get(device))
            for device in links.keys() | expected.owners.keys()
            if links.get(device) != expected.owners.get(device)
        }
        verdict.expect(not differs, f"{len(differs)} devices are another's at {name}: {list(differs.items())[:3]}")
    verdict.figures["devices with a user"] = len(expected.owners)
    verdict.figures["users on them"] = len(set(expected.owners.values()))


def _held(verdict: Verdict, expected: Expected, seen: Seen) -> None:
    reached: dict[str, set[str]] = defaultdict(set)
    for _, record in seen.records:
        for name in record.get("$set_once", ()):
            reached[name.removeprefix("held_")].add(record["$distinct_id"])
    wanted = {name: {user} for name, user in expected.releases.items()}
    differs = {n: (reached.get(n), wanted.get(n)) for n in reached.keys() | wanted if reached.get(n) != wanted.get(n)}
    verdict.expect(not differs, f"{len(differs)} visitors' traits astray: {list(differs.items())[:3]}")
    verdict.figures["traits released"] = len(wanted)


def _counted(verdict: Verdict, found: Found, expected: Expected, seen: Seen, ended: Counter[tuple[str, str]]) -> None:
    """The adapter's own counts."""
    counts = found.status["endpoints"]
    # What a visitor said goes out by an entry of its own, which says what waits then: two may say the same, and for
    # the second nothing may be left.
    sent = [at for at in seen.at.values() if "$set_once" in seen.records[at[0]][1]]
    n_own = counts[ENGAGE]["acknowledged"] - sum(n for (to, _), n in ended.items() if to == ENGAGE)
    n_idle = total(counts[ENGAGE]["nothing"]) - ended[ENGAGE, "nothing"]
    most = sum(map(len, sent))
    verdict.expect(len(sent) <= n_own - n_idle <= most, f"{n_own} updates, {n_idle} idle: {len(sent)} to {most}")
    verdict.expect(0 <= n_idle <= n_own, f"{n_idle} updates of {n_own} had nothing to say")
    ended.update({(ENGAGE, "delivered"): n_own - n_idle, (ENGAGE, "nothing"): n_idle})
    n_held = sum(to == IMPORT for to, _ in expected.held)
    ended[IMPORT, "held"] = n_held - len(expected.releases)
    ended[IMPORT, "nothing"] += len(expected.releases)
    for to in (IMPORT, ENGAGE, COUNTERS, GROUPS):
        own = {state: total(counts[to][state]) for state in ("waiting", "delivered", "refused", "held", "nothing")}
        is_so = {state: ended[to, state] for state in own}
        verdict.expect(own == is_so, f"{to}: the adapter counts {own}, but it is {is_so}")
    for fault in unbalanced(found.status):
        verdict.expect(False, fault)


def unbalanced(status: dict[str, Any]) -> list[str]:
    """Endpoints of which not all that was acknowledged is in a counted state."""
    states = ("waiting", "delivered", "refused", "held", "expired", "discarded", "erased", "nothing", "filtered")
    return [
        f"{to}: {one['acknowledged']} acknowledged are not {sum(total(one[state]) for state in states)}: {one}"
        for to, one in status["endpoints"].items()
        if one["acknowledged"] != sum(total(one[state]) for state in states)
    ]


def total(counts: int | dict[str, int]) -> int:
    return counts if isinstance(counts, int) else sum(counts.values())
