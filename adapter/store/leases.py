"""Which lanes this process may send for, so that of many processes one at a time does.

Lanes go in shares. A worker holds a share until a time by the database's clock, and renews it; one that is gone lets
go by the passing of time alone. Each taking begins an epoch, and what a worker settles counts only in the epoch in
which it claimed: one that was frozen and comes back settles nothing that has become another's.

Who ends in order gives its shares up. Those that were not given up tell whoever takes them that the process before
ended otherwise, perhaps by what it had in hand. Where only one process writes, a note in the store says the same.
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import sqlalchemy as sa

from adapter.store import facts
from adapter.store.portable import among
from adapter.store.tables import SHARES, lease, sequence, worker
from adapter.store.writer import Writer

#: How long a share stays with a worker that says nothing.
LEASE_S = 15.0
RENEW_EVERY_S = 2.0

Epochs = dict[int, int]  # share -> epoch

#: The fact that says, where only one process writes, that it delivers and has not ended.
_DELIVERS = "delivers"

_NEWEST = sa.select(sequence.c.next - 1).where(sequence.c.name == "message")
_CLOCK = sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()) * 1000, sa.BigInteger)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the database says of a worker."""

    epochs: Epochs  #: of the shares it holds
    workers: int  #: how many are alive, it included
    until: float  #: on the monotonic clock of this process


class Leases:
    """The shares of this process. Where only one process writes it takes them all."""

    def __init__(self, writer: Writer, *, shared: bool, left_up_to: int) -> None:
        #: up to this message id a process that did not end in order may have had entries in hand; 0: none did
        self.left_up_to = left_up_to
        self._writer = writer
        self._shared = shared
        self._me = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._in_use: Counter[int] = Counter()
        self._standing = Standing(epochs={}, workers=1, until=0.0)
        self._renewed_at = float("-inf")

    @property
    def workers(self) -> int:
        """How many processes deliver."""
        return self._standing.workers

    def renew(self) -> bool:
        """Keep what is held, take what is due and free, give up what others are due. Raises StoreUnavailable.

        To be called every second or so; returns whether there are shares now that there were not.
        """
        if not self._shared:
            return self._take_all()
        if time.monotonic() - self._renewed_at < self._wait_s():
            return False
        asked_at = time.monotonic()
        with self._lock:
            surplus = self._surplus()
        epochs, workers, left_up_to = self._writer.run(_renew, (self._me, surplus), wait_s=LEASE_S)
        with self._lock:
            self.left_up_to = max(self.left_up_to, left_up_to)
            new = bool(epochs.keys() - self._standing.epochs.keys())
            self._standing = Standing(epochs=epochs, workers=workers, until=asked_at + LEASE_S)
            self._renewed_at = asked_at
        return new

    def _take_all(self) -> bool:
        """Not before the note is written: who has something in hand may end by it at once."""
        if self._standing.until:
            return False
        self._writer.run(_note, True)
        self._standing = Standing(epochs=dict.fromkeys(range(SHARES), 0), workers=1, until=float("inf"))
        return True

    def _wait_s(self) -> float:
        """Until the next renewal: sooner while shares are still to come, or to go."""
        return RENEW_EVERY_S if len(self._standing.epochs) == self._due() else 0.0

    def _due(self) -> int:
        return -(-SHARES // max(self._standing.workers, 1))

    def _surplus(self) -> list[int]:
        """Shares to give up, for which nobody here is sending."""
        return [share for share in sorted(self._standing.epochs)[self._due() :] if not self._in_use[share]]

    @contextmanager
    def use(self, part: int, parts: int) -> Iterator[Epochs]:
        """The shares of one part of this process, not given up until the end of the block."""
        with self._lock:
            kept = sorted(self._standing.epochs)[: self._due()] if self._is_held() else []
            epochs = {share: self._standing.epochs[share] for share in kept if share % parts == part}
            self._in_use.update(epochs.keys())
        try:
            yield epochs
        finally:
            with self._lock:
                self._in_use.subtract(epochs.keys())

    def still(self, epochs: Epochs) -> bool:
        """Whether these shares are held, in these epochs, so that something may be sent for them."""
        return self._is_held() and epochs.items() <= self._standing.epochs.items()

    def _is_held(self) -> bool:
        return time.monotonic() < self._standing.until

    def n_alive(self) -> int:
        """How many processes hold lanes or ask for some, this one not included. Raises StoreUnavailable."""
        found: int = self._writer.run(_n_alive, self._me) if self._shared else 0
        return found

    def give_up(self) -> None:
        """Let others have it all at once: nothing is sent any more. Raises StoreUnavailable."""
        if self._standing.until:
            self._standing = Standing(epochs={}, workers=1, until=0.0)
            change, payload = (_give_up, self._me) if self._shared else (_note, False)
            self._writer.run(change, payload)


def newest(connection: sa.Connection) -> int:
    """A message id that all messages to come exceed."""
    return connection.scalar(_NEWEST) or 0


def left_up_to(connection: sa.Connection) -> int:
    """Where only one process writes: see `Leases.left_up_to`."""
    return newest(connection) if facts.recall(connection, _DELIVERS) else 0


def lock(connection: sa.Connection, epochs: Epochs) -> set[int]:
    """Those of these shares that are held in these epochs, and stay so until the commit."""
    held = sa.select(lease.c.share, lease.c.epoch).where(among(lease.c.share, "shares"), lease.c.until_ms > _CLOCK)
    rows = connection.execute(held.with_for_update(read=True), {"shares": list(epochs)})
    return {share for share, epoch in rows if epochs[share] == epoch}


def _note(connection: sa.Connection, calls: Sequence[bool]) -> list[None]:
    facts.remember(connection, _DELIVERS, calls[-1])
    return [None] * len(calls)


def _renew(connection: sa.Connection, calls: Sequence[tuple[str, list[int]]]) -> list[tuple[Epochs, int, int]]:
    return [_renew_one(connection, me, surplus) for me, surplus in calls]


def _renew_one(connection: sa.Connection, me: str, surplus: list[int]) -> tuple[Epochs, int, int]:
    """What a worker holds afterwards, how many workers there are, and `Leases.left_up_to` of what it took now."""
    until = _CLOCK + int(LEASE_S * 1000)
    renewed = worker.update().where(worker.c.id == me).values(until_ms=until)
    if not connection.execute(renewed).rowcount:
        connection.execute(worker.insert().values(id=me, until_ms=until))
    connection.execute(worker.delete().where(worker.c.until_ms < _CLOCK))
    workers = connection.scalar(sa.select(sa.func.count()).select_from(worker)) or 1
    mine = (lease.c.worker == me) & (lease.c.until_ms > _CLOCK)
    if surplus:
        connection.execute(lease.update().where(mine, lease.c.share.in_(surplus)).values(worker=None, until_ms=0))
    returning = (lease.c.share, lease.c.epoch)
    held = list(connection.execute(lease.update().where(mine).values(until_ms=until).returning(*returning)))
    lacking, left = -(-SHARES // workers) - len(held), 0
    if lacking > 0:
        free = sa.select(lease.c.share, lease.c.worker).where(lease.c.until_ms <= _CLOCK)
        free = free.order_by(lease.c.share).limit(lacking).with_for_update(skip_locked=True)
        before = {share: whose for share, whose in connection.execute(free)}
        taken = lease.update().where(lease.c.share.in_(before))
        taken = taken.values(worker=me, epoch=lease.c.epoch + 1, until_ms=until)
        held += connection.execute(taken.returning(*returning))
        if set(before.values()) - {None, me}:
            left = newest(connection)
    return {share: epoch for share, epoch in held}, workers, left


def _n_alive(connection: sa.Connection, calls: Sequence[str]) -> list[int]:
    alive = sa.select(sa.func.count()).select_from(worker).where(worker.c.until_ms > _CLOCK)
    return [connection.scalar(alive.where(worker.c.id != me)) or 0 for me in calls]


def _give_up(connection: sa.Connection, calls: Sequence[str]) -> list[None]:
    for me in calls:
        connection.execute(lease.update().where(lease.c.worker == me).values(worker=None, until_ms=0))
        connection.execute(worker.delete().where(worker.c.id == me))
    return [None] * len(calls)
