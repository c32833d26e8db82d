"""What a census found, and how it is told."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: Characters of an id that are shown to people.
MAX_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class Known:
    """How many events end on a known person: they have a user of their own, or a device that some message joins."""

    events: int  #: track, page and screen calls
    segment_simplified: int  #: had Segment's own destination sent them
    segment_original: int
    adapter: int

    def share(self, count: int) -> float | None:
        """Of all events, from 0 to 1; None if there are none."""
        return count / self.events if self.events else None


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Devices that several people use."""

    devices: int
    most_people: int  #: on one device
    worst: tuple[dict[str, Any], ...]  #: {device, people, first_user}, most people first


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How many devices a person has, of the people who have any."""

    people: int
    median: int
    p90: int
    p99: int
    most: int
    worst: tuple[dict[str, Any], ...]  #: {user, devices}, most devices first


@dataclass(frozen=True, kw_only=True)
class Original:
    """What a project with Original ID Merge would not join, were it fed by Segment's own destination."""

    not_guid: int  #: devices whose id is no GUID
    not_guid_identified: int  #: of these, how many an identify asks to join
    crowded: int  #: people with more devices than a cluster holds
    orphans: int  #: their devices that are left over


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Who and what is joined."""

    people: int  #: users seen
    devices: int  #: anonymous ids seen
    links: int  #: devices that get a user
    visitors: int  #: devices on which nobody ever logs in
    shared: Shared
    devices_of_a_person: Spread
    original: Original
    known: Known


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it. A message that was read is invalid, a duplicate, left out, or counted by its type."""

    system: str  #: the project's ID system, for which the adapter sends
    read: int
    invalid: dict[str, int]  #: by reason
    duplicates: int  #: of a message that was read before: same source, type and messageId
    left_out: dict[str, int]  #: by the filter that keeps it back
    by_type: dict[str, int]
    graph: Graph
    junk: tuple[dict[str, Any], ...]  #: {id, field, count}, most first
    refused: dict[str, int]  #: calls that would be refused, or whose link would, by reason
    notes: dict[str, int]  #: what the adapter drops of a call, by kind

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the same names, and the shares."""
        found, known = asdict(self), self.graph.known
        return found | {"shares": {name: known.share(getattr(known, name)) for name in _SENDERS}}

    def lines(self) -> Iterator[str]:
        """For people."""
        yield _row("Messages", self.read, _by(self.by_type))
        yield from _row_if("  invalid", sum(self.invalid.values()), _by(self.invalid))
        yield from _row_if("  seen before", self.duplicates, "same source, type and messageId")
        yield from _row_if("  left out", sum(self.left_out.values()), _by(self.left_out))
        yield from _row_if("  refused", sum(self.refused.values()), _by(self.refused))
        yield from _row_if("  noted", sum(self.notes.values()), _by(self.notes))
        yield from self._people()
        yield from self._devices()
        yield from _row_if("Junk ids", len(self.junk), "count as absent, for they would join strangers")
        yield from (_row(f"    {one['field']}", one["count"], _shown(one["id"])) for one in self.junk)
        yield from self._events()

    def _people(self) -> Iterator[str]:
        spread, original = self.graph.devices_of_a_person, self.graph.original
        yield _row("People", self.graph.people, "users seen")
        often = f"half of them 1 to {spread.median:,}" if spread.median > 1 else "half of them 1"
        upper = f"90% up to {spread.p90:,}, 99% up to {spread.p99:,}, the most {spread.most:,}"
        yield from _row_if("  with devices", spread.people, f"{often}, {upper}")
        yield from (_row("", one["devices"], _shown(one["user"])) for one in spread.worst)
        lost = f"with over 501 ids; Original would leave {original.orphans:,} of their devices alone"
        yield from _row_if("  crowded", original.crowded, lost)

    def _devices(self) -> Iterator[str]:
        graph, shared, original = self.graph, self.graph.shared, self.graph.original
        yield _row("Devices", graph.devices, "anonymous ids seen")
        yield _row("  linked", graph.links, "to their first user")
        yield _row("  of visitors", graph.visitors, "who never log in")
        yield from _row_if("  shared", shared.devices, f"by up to {shared.most_people:,} people")
        for one in shared.worst:
            yield _row("", one["people"], f"{_shown(one['device'])}, linked to {_shown(one['first_user'])}")
        lost = f"Original would never join them; an identify asks it to for {original.not_guid_identified:,}"
        yield from _row_if("  no GUID", original.not_guid, lost)

    def _events(self) -> Iterator[str]:
        known = self.graph.known
        yield f"\nEvents that end on a known person, of {known.events:,}"
        for name, sender in _SENDERS.items():
            count, text = getattr(known, name), sender.format(system=self.system.capitalize())
            yield f"  {text:<56}{count:>12,}{'' if not known.events else f'{known.share(count):>8.1%}'}"


_SENDERS = {
    "segment_simplified": "as Segment's own destination sends them, Simplified",
    "segment_original": "as Segment's own destination sends them, Original",
    "adapter": "as the adapter sends them, {system}",
}


def _row(name: str, count: int, text: str = "") -> str:
    return f"{name:<16}{count:>12,}  {text}".rstrip()


def _row_if(name: str, count: int, text: str) -> Iterator[str]:
    if count:
        yield _row(name, count, text)


def _by(counts: Mapping[str, int]) -> str:
    """`page 3, track 2`, most first."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _shown(an_id: str) -> str:
    """An id as a terminal can show it: what it says in full is in the JSON."""
    plain = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in an_id[: MAX_SHOWN + 1])
    return (plain if len(plain) <= MAX_SHOWN else f"{plain[:MAX_SHOWN]}...") or '""'
