"""Who is there? Everybody of a project, with the ids that are theirs. Source: reference/mixpanel.md 1.2.6, 1.3.8."""

from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from adapter.sandbox import tables
from adapter.sandbox.ids import DEVICE_PREFIX
from adapter.sandbox.tables import events, members, profiles


@dataclass(frozen=True, kw_only=True)
class Person:
    """One cluster of ids."""

    id: str  #: the canonical one
    members: tuple[str, ...]  #: the others, as they stand in a distinct_id
    properties: dict[str, Any]  #: of the profile kept under the canonical id; those of the others are hidden
    events: int

    @property
    def devices(self) -> tuple[str, ...]:
        """The members without the prefix that marks a device."""
        return tuple(member.removeprefix(DEVICE_PREFIX) for member in self.members)


def read(connection: sa.Connection, *, retroactive: bool, after: str = "", limit: int | None = None) -> list[Person]:
    """The people whose canonical id comes after this one, by that id, at most so many.

    Who has events, a profile or several ids is somebody. Where links are not retroactive an alias that had events
    or a profile before is somebody still.
    """
    seen = (
        sa.select(events.c.distinct_id.label("id"), sa.func.count().label("n"))
        .group_by(events.c.distinct_id)
        .union_all(
            sa.select(profiles.c.id, sa.literal(0)).where(profiles.c.group_key == tables.PEOPLE),
            sa.select(members.c.person, sa.literal(0)),
        )
        .subquery()
    )
    person: sa.ColumnElement[str] = seen.c.id
    source: sa.FromClause = seen
    if retroactive:
        source = seen.outerjoin(members, members.c.id == seen.c.id)
        person = sa.func.coalesce(members.c.person, seen.c.id)
    page = (
        sa.select(person, sa.func.sum(seen.c.n))
        .select_from(source)
        .where(person > after)  # after "": nobody is left out but nobody
        .group_by(person)
        .order_by(person)
        .limit(limit)
    )
    counts: dict[str, int] = tables.values(connection, page)
    last = next(reversed(counts), "")
    in_page = members.c.person.between(after, last)
    theirs: dict[str, list[str]] = {}
    for id, owner in connection.execute(sa.select(members).where(in_page).order_by(members.c.id)):
        theirs.setdefault(owner, []).append(id)
    kept = sa.select(profiles.c.id, profiles.c.properties)
    kept = kept.where(profiles.c.group_key == tables.PEOPLE, profiles.c.id.between(after, last))
    properties: dict[str, bytes] = tables.values(connection, kept)
    return [
        Person(
            id=id,
            members=tuple(theirs.get(id, ())),
            properties=orjson.loads(properties.get(id, b"{}")),
            events=count,
        )
        for id, count in counts.items()
    ]
