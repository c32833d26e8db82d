"""What the store can tell: to the process that writes it, and to a command beside that process."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from adapter.links import Known, Shared, key
from adapter.store import engine, erasure, facts, graph, person, refused
from adapter.store.shapes import Kept


class Reader:
    """Questions to a store; each is answered from one moment."""

    def __init__(self, reading: engine.Reading) -> None:
        self._reading = reading

    def recall(self, name: str) -> Any:
        """The value that is kept under a name, or None."""
        with self._reading.connect() as connection:
            return facts.recall(connection, name)

    def known(self, devices: Iterable[str]) -> dict[str, Known]:
        """What is known of each of these devices; one of which nothing is known is missing."""
        with self._reading.connect() as connection:
            return graph.known(connection, devices)

    def links_of(self, users: Iterable[str]) -> dict[str, int]:
        """How many devices each of these ids has as a user; one that has none is missing."""
        with self._reading.connect() as connection:
            return graph.links_of(connection, users)

    def aliases(self, users: Iterable[str]) -> set[str]:
        """Which of these users were made an alias."""
        with self._reading.connect() as connection:
            return graph.aliases(connection, users)

    def waiting(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], graph.Waiting]:
        """What waits with devices, each to be sent to a user: by (device, user); missing where nothing does."""
        with self._reading.connect() as connection:
            return graph.waiting(connection, wanted)

    def devices_of(self, user: str) -> tuple[str, ...]:
        """The devices linked to a user, as far as their ids are still known."""
        with self._reading.connect() as connection:
            return person.devices_of(connection, key(user))

    def shared_by(self, user: str) -> tuple[Shared, ...]:
        """The devices that a user and others log in on."""
        with self._reading.connect() as connection:
            return person.shared_by(connection, key(user))

    def has_erased(self) -> bool:
        """Whether anybody was ever erased here."""
        with self._reading.connect() as connection:
            return erasure.has_erased(connection)

    def erased(self, user_keys: Iterable[bytes]) -> dict[bytes, int]:
        """When the users with these keys were erased, the last time; one that never was is missing."""
        with self._reading.connect() as connection:
            return erasure.erased(connection, user_keys)

    def find_refused(self, wanted: refused.Wanted) -> Iterator[Kept]:
        """What is refused and wanted, newest first; of any number, for only a page of them is held at once."""
        before: int | None = None
        while True:
            with self._reading.connect() as connection:
                page = refused.page(connection, wanted, before)
                found = [one for one in page if refused.contains(connection, one.number, wanted.contains)]
            yield from found
            if not page:
                return
            before = page[-1].number

    def refused(self, number: int) -> tuple[Kept, bytes] | None:
        """One refused message, and its body as it was received; None if there is none by that number."""
        with self._reading.connect() as connection:
            return refused.get(connection, number)


@contextmanager
def beside(database_url: str) -> Iterator[Reader]:
    """The store read beside whoever writes it. Raises StoreUnavailable if it cannot be."""
    with engine.beside(database_url) as reading:
        yield Reader(reading)
