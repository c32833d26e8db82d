"""Which ids are one person? The clusters that one batch of events touches, read, joined and written back.

A cluster has one canonical id, its *person*; a lone id is its own. Which of two persons stays the canonical one is
for the system to say. Two marks are kept: "alias" at an id that was used as an alias, and "identified" at a person
one of whose ids was used as an identified id. Source: reference/mixpanel.md 9.1-9.2.
"""

from collections.abc import Iterable
from typing import Literal, Self

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from adapter.sandbox import tables
from adapter.sandbox.tables import marks, members, profiles

Mark = Literal["alias", "identified"]


class Clusters:
    """The clusters of some ids, as they are and as a batch changes them; nothing is written before `save`."""

    def __init__(self, person: dict[str, str], sizes: dict[str, int], marked: set[tuple[str, str]]) -> None:
        self._person, self._sizes, self._marked = person, sizes, marked
        self._joined: list[tuple[str, str]] = []  # (person that was, person that stays), in order
        self._new_marks: list[tuple[str, str]] = []

    @classmethod
    def load(cls, connection: sa.Connection, ids: Iterable[str]) -> Self:
        """The clusters of these ids: ten thousand at the most, for SQLite takes 32,766 values in a question."""
        named = set(ids)
        if not named:
            return cls({}, {}, set())
        person = tables.values(connection, sa.select(members).where(members.c.id.in_(named)))
        persons = {person.get(id, id) for id in named}
        others = sa.select(members.c.person, sa.func.count()).group_by(members.c.person)
        sizes = tables.values(connection, others.where(members.c.person.in_(persons)))
        marked = connection.execute(sa.select(marks).where(marks.c.id.in_(named | persons)))
        return cls(person, sizes, {(row.id, row.mark) for row in marked})

    def person(self, id: str) -> str:
        """The canonical id of the cluster that this id is in: itself if it is alone."""
        while id in self._person:
            id = self._person[id]
        return id

    def joint_size(self, one: str, other: str) -> int:
        """How many ids would be in one cluster if these two were."""
        persons = {self.person(one), self.person(other)}
        return sum(1 + self._sizes.get(person, 0) for person in persons)

    def join(self, stays: str, goes: str) -> None:
        """Make the clusters of two ids one, whose canonical id is that of the first. Same cluster: nothing."""
        kept, gone = self.person(stays), self.person(goes)
        if kept == gone:
            return
        self._sizes[kept] = self.joint_size(kept, gone) - 1
        self._person[gone] = kept
        self._joined.append((gone, kept))
        if self.has(gone, "identified"):
            self.mark(kept, "identified")

    def has(self, id: str, mark: Mark) -> bool:
        """Whether this very id has a mark; ask for "identified" at a person."""
        return (id, mark) in self._marked

    def mark(self, id: str, mark: Mark) -> None:
        if (id, mark) not in self._marked:
            self._marked.add((id, mark))
            self._new_marks.append((id, mark))

    def save(self, connection: sa.Connection, *, profile_moves: bool) -> None:
        """Write what changed. `profile_moves`: a joined person's profile goes to one that has none."""
        if self._joined:
            steps = [{"gone": gone, "kept": kept} for gone, kept in self._joined]
            last = [{"gone": gone, "kept": self.person(gone)} for gone, _ in self._joined]
            gone, kept = sa.bindparam("gone", type_=sa.Text), sa.bindparam("kept", type_=sa.Text)
            connection.execute(sa.update(members).where(members.c.person == gone).values(person=kept), last)
            connection.execute(insert(members), [{"id": each["gone"], "person": each["kept"]} for each in last])
            if profile_moves:
                own = (profiles.c.id == gone) & (profiles.c.group_key == tables.PEOPLE)
                # "or ignore": where both have a profile the other one stays behind, hidden.
                connection.execute(sa.update(profiles).prefix_with("or ignore").where(own).values(id=kept), steps)
        if self._new_marks:
            rows = [{"id": id, "mark": mark} for id, mark in self._new_marks]
            connection.execute(insert(marks), rows)
