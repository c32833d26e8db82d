"""Does it cost more to know millions of devices than to know none?"""

import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from adapter.links import Effect
from adapter.store import Store, graph

BATCH = 2_000
ROUNDS = 15


def compare(devices: int) -> Iterator[str]:
    """Lines: reading what is known of 2,000 devices and linking 2,000 new ones, in a full table and an empty one."""
    with tempfile.TemporaryDirectory() as folder:
        empty, full = Store(f"sqlite:///{folder}/empty.db"), Store(f"sqlite:///{folder}/full.db")
        with empty, full:
            began = time.perf_counter()
            for first in range(0, devices, 50_000):
                _link(full, [(_device(n), f"user-{n // 3}") for n in range(first, first + 50_000)])
            size = Path(folder, "full.db").stat().st_size
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
