"""Which deletes must still wait, and what waits for them.

A delete goes out once no older entry of its person waits anywhere, so that nothing of theirs comes after it; newer
updates of the person stay behind it, so that it does not take them along. Everybody else's pass it.
"""

import time
from collections.abc import Iterable
from itertools import chain

from adapter import identity, persons
from adapter.errors import Refused
from adapter.persons import Person
from adapter.records import Options
from adapter.store import Entry, Erasure, Store
from schemas.segment import Message

#: How long a round may look for older entries; what is not looked at waits for the next.
LOOK_S = 1.0
#: So many deletes go out in a round: all that is erased with them is one commit, for which others wait.
TOGETHER = 100

Waiting = list[tuple[Entry, Message]]


class Deletes:
    """The deletes on a line of updates. `sift` what was claimed, then ask for a `person` or an `erasure`."""

    def __init__(self, store: Store, options: Options, *, requests_deletion: bool) -> None:
        self._store = store
        self._options = options
        self._requests_deletion = requests_deletion
        self._blockers: dict[int, tuple[str, int]] = {}  # delete -> the older entry of its person, found last
        self._persons: dict[int, Person] = {}
        self._first: dict[str, int] = {}  # id of a person -> their oldest delete that was claimed

    def begin(self) -> None:
        """Forget the deletes that were met: the claim starts anew from the oldest entry."""
        self._first = {}

    def sift(self, claimed: Iterable[tuple[Entry, Message]]) -> Waiting:
        """Those of the claimed entries that may go out now, in their order."""
        claimed = list(claimed)
        deletes = sorted(
            ((entry, message) for entry, message in claimed if message.type == "delete"),
            key=lambda one: one[0].message_id,
        )
        if not deletes and not self._first:
            return claimed
        self._persons = {}
        ready = set()
        still = self._store.still_waiting(self._blockers.values())
        self._blockers = {delete: one for delete, one in self._blockers.items() if one in still}
        give_up_at = time.monotonic() + LOOK_S
        for entry, message in deletes:
            try:
                user = persons.user_of(message, self._options.denied)
            except Refused:
                ready.add(entry.message_id)  # mapping refuses it
                continue
            person = self._who(user)
            for an_id in person.ids:
                self._first.setdefault(an_id, entry.message_id)
            may_go = len(self._persons) < TOGETHER and time.monotonic() < give_up_at
            if may_go and self._is_ready(entry, message, person):
                ready.add(entry.message_id)
                self._persons[entry.message_id] = person
        return [
            (entry, message)
            for entry, message in claimed
            if (entry.message_id in ready if message.type == "delete" else not self._is_behind(entry, message))
        ]

    def person(self, entry: Entry) -> Person | None:
        """Whom a delete that may go out is about; None for one that names nobody."""
        return self._persons.get(entry.message_id)

    def erasure(self, entry: Entry, message: Message) -> Erasure | None:
        """What is to be erased when Mixpanel has taken this delete."""
        person = self.person(entry)
        if person is None:
            return None
        return Erasure(
            user=person.user,
            devices=person.devices,
            message_id=message.message_id,
            needles=person.needles,
            named=person.named_keys,
            keys_in=persons.keys_in,
            owns=person.owns,
            device_keys=person.device_keys,
            has=person.has,
            distinct_ids=person.distinct_ids(self._options) if self._requests_deletion else (),
        )

    def _who(self, user: str) -> Person:
        return Person(
            user=user,
            devices=self._store.devices_of(user),
            shared=self._store.shared_by(user) if self._options.split else (),
            denied=self._options.denied,
        )

    def _is_ready(self, entry: Entry, message: Message, person: Person) -> bool:
        if entry.message_id in self._blockers:
            return False
        needle = b"" if b"" in person.needles else persons.needle(person.user)
        blocker = self._store.first_older(entry.message_id, person.lanes, needle, person.is_named_in)
        if blocker is None:
            # The last of them may have made a link just now: then that device's entries are to be looked for as well.
            return self._who(person.user) == person
        self._blockers[entry.message_id] = blocker
        self._store.erasures.begins_to_wait(person.user, message.message_id)
        return False

    def _is_behind(self, entry: Entry, message: Message) -> bool:
        """True for an entry of a person that a claimed delete older than the entry is about."""
        if not self._first:
            return False
        ids = chain((message.user_id or "",), (identity.bare(message.anonymous_id or ""),))
        return any(self._first.get(an_id, entry.message_id) < entry.message_id for an_id in ids)
