"""How fast a replay sends, and whom it lets go first: whatever it is that it sends."""

import os
import pty
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from adapter import intake
from adapter.config import Settings
from adapter.parcels import Parcel
from adapter.records import Options
from adapter.replay.job import Job
from adapter.replay.polite import BATCHES_UNDER_WAY, STUCK_S, Gate, Live, Polite
from adapter.replay.posting import Posting
from adapter.store import Entry, Store
from schemas import raw
from schemas.mixpanel import IMPORT
from tests.conftest import raw as as_raw
from tests.endpoint import Answer, Endpoint, Got, stored
from tests.processes import wait_until
from tests.test_replay_command import World, identify, is_check, is_counter, is_events, takes, track

RATE = 40


@pytest.fixture
def world(tmp_path: Path, endpoint: Endpoint) -> World:
    endpoint.default = takes
    return World(tmp_path, endpoint)


# --- --rate ---------------------------------------------------------------------------------------------------------


def orders() -> list[dict[str, Any]]:
    """Each is ten events."""
    products = {"products": [{"product_id": str(n)} for n in range(9)]}
    return [track(n, "ada", "device-1", event="Order Completed", properties=products) for n in range(12)]


def logins() -> list[dict[str, Any]]:
    return [identify(n, f"u{n}", f"device-{n}") for n in range(120)]


def groups() -> list[dict[str, Any]]:
    call = {"type": "group", "traits": {"seats": 3}}
    return [{**track(n, "ada", "device-1"), **call, "groupId": f"g{n}"} for n in range(120)]


def payments() -> list[dict[str, Any]]:
    return [track(n, f"u{n}", "device-1") for n in range(120)]


@pytest.mark.parametrize(
    ("calls", "options", "path", "counts"),
    [
        (orders, ["--processes", "1"], "/import", lambda got: not is_check(got)),
        (orders, ["--processes", "2"], "/import", lambda got: not is_check(got)),
        (logins, ["--links-only"], "/import", lambda got: not is_check(got)),
        (logins, [], "/engage", lambda got: True),
        (groups, [], "/groups", lambda got: True),
        (payments, ["--counters"], "/engage", is_counter),
    ],
    ids=["orders", "two-processes", "links", "profiles", "groups", "counters"],
)
def test_at_most_so_many_records_go_a_second_whatever_they_are(
    world: World,
    calls: Callable[[], list[dict[str, Any]]],
    options: list[str],
    path: str,
    counts: Callable[[Got], bool],
) -> None:
    for number in range(2):
        world.log(f"logs/{number}.log", calls()[number::2])
    came: list[tuple[float, int]] = []

    def answer(got: Got) -> Answer:
        if got.path == path and counts(got):
            came.append((time.monotonic(), len(got.records)))
        return takes(got)

    world.endpoint.default = answer
    found = world.run("logs", "--rate", str(RATE), *options, PROPERTY_INCREMENTS="coins")
    assert (found.returncode, sum(n for _, n in came)) == (0, 120), found.stderr
    assert max(n for _, n in came) <= RATE
    # Whatever went before the last second took its time.
    assert came[-1][0] - came[0][0] > 0.9 * (120 - RATE) / RATE


# --- 429 ------------------------------------------------------------------------------------------------------------


def test_too_many_halves_what_is_under_way_at_once(endpoint: Endpoint) -> None:
    lock, under_way = threading.Lock(), 0
    most = {"before": 0, "after": 0}
    all_there, is_slowed = threading.Barrier(BATCHES_UNDER_WAY), threading.Event()

    def answer(got: Got) -> Answer:
        nonlocal under_way
        with lock:
            under_way += 1
            time_of = "after" if is_slowed.is_set() else "before"
            most[time_of] = max(most[time_of], under_way)
        if time_of == "before":
            all_there.wait(10)
            is_slowed.set()
        else:
            time.sleep(1.0)
        with lock:
            under_way -= 1
        return stored(got) if time_of == "after" else Answer(429, {"error": "slow down"})

    endpoint.default = answer
    settings = Settings(ingestion_url=endpoint.url, mixpanel_token="t")
    pace = Polite(Job(names=()), settings, Gate())
    with closing(Posting(IMPORT, settings, endpoint.url, pace, threading.Event(), BATCHES_UNDER_WAY)) as posting:
        entry = Entry(endpoint=IMPORT, message_id=0, lane=0, accepted_at_ms=0, time_ms=0, body=b"")
        batch = [Parcel(entry=entry, records=(b"{}",), notes=())]
        futures = [posting.send(batch) for _ in range(3 * BATCHES_UNDER_WAY)]
        assert [len(one.result(30).taken) for one in futures] == [1] * len(futures)
    assert most == {"before": BATCHES_UNDER_WAY, "after": BATCHES_UNDER_WAY // 2}


# --- --yield-to-live ------------------------------------------------------------------------------------------------


def lets_one_wait(world: World) -> None:
    """A live message waits, and nobody delivers it."""
    live = {**track(9_000, None, "device-live"), "event": "Live"}
    with Store(f"sqlite:///{world.folder / 'adapter.db'}") as store:
        intake.accept(raw.elements(as_raw(live)), store, Options(token="t"))


def takes_it_away(world: World) -> None:
    with closing(sqlite3.connect(world.folder / "adapter.db", timeout=10)) as file, file:
        file.execute("DELETE FROM entry")


def is_link(got: Got) -> bool:
    return got.path == "/import" and got.records[0]["event"] == "Identity Linked"


def is_profile(got: Got) -> bool:
    return got.path == "/engage" and "$set_once" in got.records[0]


@pytest.mark.parametrize(
    ("after", "waits", "options"),
    [
        (None, is_link, ["--links-only"]),
        (is_link, is_events, ["--processes", "1"]),
        (is_events, is_profile, []),
        (is_profile, is_counter, []),
    ],
    ids=["links", "events", "profiles", "counters"],
)
def test_whatever_is_next_waits_while_live_messages_wait(
    world: World, after: Callable[[Got], bool] | None, waits: Callable[[Got], bool], options: list[str]
) -> None:
    world.log("a.log", [identify(1, "ada", "device-1"), track(2, "ben", "device-2")])
    is_waiting = threading.Event()

    def answer(got: Got) -> Answer:
        if after is not None and after(got) and not is_waiting.is_set():
            lets_one_wait(world)
            time.sleep(1.5)  # that it is seen
            is_waiting.set()
        return takes(got)

    world.endpoint.default = answer
    if after is None:
        lets_one_wait(world)
        is_waiting.set()
    terminal, theirs = pty.openpty()
    command = ("a.log", "--yield-to-live", "--counters", *options)
    with world.started(*command, stderr=theirs, PROPERTY_INCREMENTS="coins") as replay:
        os.close(theirs)
        assert is_waiting.wait(30)
        wait_until(lambda: any(map(is_check, world.endpoint.got)))
        with pytest.raises(subprocess.TimeoutExpired):
            replay.popen.wait(2.0)
        assert not any(map(waits, world.endpoint.got))
        takes_it_away(world)
        told = b""
        with suppress(OSError):  # it has ended
            while piece := os.read(terminal, 10_000):
                told += piece
        assert replay.end()[0] == 0
    os.close(terminal)
    assert any(map(waits, world.endpoint.got))
    assert "waiting for live messages: 1" in told.decode()


def held_up(*waiting: int) -> list[bool]:
    """What it says in each second in which so many wait."""
    now_s = 0.0
    live = Live(lambda: now_s)
    said = []
    for now_s, n in enumerate(waiting):  # noqa: B007 the clock reads it
        said.append(live.holds_up(n))
    return said


def test_messages_that_are_stuck_hold_a_replay_up_for_two_minutes_and_no_longer() -> None:
    n_seconds = int(STUCK_S)
    assert held_up(*[1] * 2 * n_seconds) == [True] * n_seconds + [False] * n_seconds
    # Whatever comes beside them is waited for.
    assert held_up(*[1] * n_seconds, 1, 2, 1, 3, 1)[n_seconds:] == [False, True, False, True, False]


def test_messages_that_go_are_waited_for_however_long_that_takes() -> None:
    assert all(held_up(*range(1_000, 0, -1)))
    assert all(held_up(*(n // 20 for n in range(20_000, 20, -1))))
    assert held_up(*[0] * 300, 5, 4, 0, 7)[300:] == [True, True, False, True]
    assert all(held_up(*range(5, 1_000))[1:])
