"""Does it cost more to know millions of devices than to know none? On SQLite and on PostgreSQL."""

import statistics
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from adapter.links import Effect
from adapter.store import Store, graph
from adapter.store.engine import moment
from tests.benchmarks.drain import databases

BATCH = 2_000
ROUNDS = 15
FILLED_AT_ONCE = 50_000
#: How many are known unless that is said: PostgreSQL takes longer to make them, and waits for its disk.
DEVICES = {"SQLite": 10_000_000, "PostgreSQL": 1_000_000}


def compare(devices: int | None) -> Iterator[str]:
    """Lines: reading what is known of 2,000 devices and linking 2,000 new ones, in a full table and an empty one."""
    with databases() as made:
        for name, make in made.items():
            for line in _compare(make(), make(), devices or DEVICES[name]):
                yield f"{name:<11} {line}"


def _compare(empty_url: str, full_url: str, devices: int) -> Iterator[str]:
    with Store(empty_url) as empty, Store(full_url) as full:
        began = time.perf_counter()
        for first in range(0, devices, FILLED_AT_ONCE):
            _link(full, [(_device(n), f"user-{n // 3}") for n in range(first, min(first + FILLED_AT_ONCE, devices))])
        size = _size(full_url)
        yield f"{devices:,} links made in {time.perf_counter() - began:.0f} s, {size / devices:.0f} bytes each"
        for name, step in (("reading 2,000 devices", _read), ("linking 2,000 devices", _make)):
            costs: dict[Store, list[float]] = {store: [] for store in (empty, full)}
            for number in range(ROUNDS):
                for store, spent in costs.items():
                    began = time.perf_counter()
                    step(store, number)
                    spent.append(time.perf_counter() - began)
            none, many = (statistics.median(spent) for spent in costs.values())
            times = f"{none * 1e3:.1f} ms : {many * 1e3:.1f} ms"
            yield f"{name}, none known : all   {times}   {many / none:.1f}x"


def _size(url: str) -> int:
    """Bytes of a store."""
    with moment(url) as connection:
        sizes = {"sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"}
        sizes["postgresql"] = "SELECT pg_database_size(current_database())"
        return int(connection.exec_driver_sql(sizes[connection.dialect.name]).scalar_one())


def _device(number: int) -> str:
    return str(uuid.UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4))


def _read(store: Store, number: int) -> None:
    store.known([_device(n) for n in range(number * 104_729, number * 104_729 + BATCH)])


def _make(store: Store, number: int) -> None:
    first = 2**40 + number * BATCH
    _link(store, [(_device(n), f"user-{n}") for n in range(first, first + BATCH)])


def _link(store: Store, pairs: list[tuple[str, str]]) -> None:
    effects = [
        (Effect(device=device, user=user, sent_as=device, time_ms=0, message_id="m", how="track", links=True), False)
        for device, user in pairs
    ]

    def apply(connection: sa.Connection, jobs: Sequence[None]) -> list[Any]:
        return [graph.apply(connection, effects, 0) for _ in jobs]

    store._writer.run(apply, None, wait_s=60)
