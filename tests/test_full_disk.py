"""A disk that is full to the last byte: a small one in memory, real processes, and an endpoint that takes nothing."""

import base64
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import requests

from adapter.store import Store, read_report
from adapter.store.sqlite import RESERVE_BYTES
from tests.conftest import raw, rows
from tests.endpoint import Answer, Endpoint, Got, stored
from tests.postgresql import Server, running
from tests.processes import Process, serving, wait_until
from tests.test_store import arrival, delivered

MB = 1_000_000
#: Messages in one body, and the bytes of each: 3.2 MB, of the 4 MB that Segment sends at most.
MESSAGES, MESSAGE_BYTES = 8, 400_000
SENDERS = 4


class Disk:
    """A file system of its own, and a file in it that takes its room."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, n_bytes: int | None = None) -> None:
        """Take so many bytes, or all there are."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            left = self.free_bytes if n_bytes is None else n_bytes
            while left > 0:
                left -= file.write(b"x" * min(left, MB))
            while n_bytes is None:
                file.write(b"x")

    def relieve(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk() -> Iterator[Callable[[int], Disk]]:
    """Makes a small disk of so many bytes; it is gone after the test."""
    folder = Path(tempfile.mkdtemp(prefix="adapter-disk-"))

    def mount(size: int) -> Disk:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", folder], capture_output=True, text=True
        )
        assert made.returncode == 0, f"a full disk needs a small one, and a tmpfs cannot be mounted: {made.stderr}"
        return Disk(folder)

    yield mount
    subprocess.run(["umount", "--lazy", folder], capture_output=True)
    folder.rmdir()


class Segment:
    """Sends bodies of many bytes, knows which were acknowledged, and sends the others again."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.acknowledged: set[str] = set()
        self.turned_away: list[list[str]] = []

    @property
    def sent(self) -> set[str]:
        return self.acknowledged.union(*self.turned_away)

    def send(self, names: list[str]) -> int:
        """Send messages in one body, the same bytes each time; the status of the answer."""
        text = base64.b64encode(random.Random(names[0]).randbytes(MESSAGE_BYTES * 3 // 4)).decode()
        calls = [
            {
                "type": "track",
                "event": "Visited",
                "messageId": name,
                "anonymousId": name,
                "properties": {"text": text},
            }
            for name in names
        ]
        answer = self._process.post(raw(calls))
        if answer.status_code == 200:
            assert answer.json()["rejected"] == []
            self.acknowledged.update(names)
        else:
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["Retry-After"]) > 0
            self.turned_away.append(names)
        return answer.status_code

    def send_until_turned_away(self, life: str) -> None:
        """By several at once: what all of them are about to write counts as well."""

        def send(sender: int) -> None:
            for n in range(1000):
                if self.send([f"{life}-{sender}-{n}-{part}" for part in range(MESSAGES)]) != 200:
                    return

        with ThreadPoolExecutor(SENDERS) as pool:
            list(pool.map(send, range(SENDERS)))

    def send_again(self) -> bool:
        """What was turned away, once more; whether all of it was taken."""
        names, self.turned_away = self.turned_away, []
        for one in names:
            self.send(one)
        return not self.turned_away


class Mixpanel:
    """An endpoint that is down until it is told otherwise."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.arrived: set[str] = set()
        self.takes = False
        endpoint.default = self._answer
        self.variables = {"INGESTION_URL": endpoint.url, "MIXPANEL_TOKEN": "the-token"}

    def _answer(self, got: Got) -> Answer:
        if not self.takes:
            return Answer(503, {"error": "not yet"})
        self.arrived.update(record["properties"]["$insert_id"] for record in got.records)
        return stored(got)


def names_in(url: str) -> set[str]:
    return {json.loads(body)["messageId"] for (body,) in rows(url, "SELECT body FROM message")}


def write_log(server: Server) -> None:
    """The write-ahead log of PostgreSQL, for ever."""
    while True:
        server.run("SELECT pg_logical_emit_message(true, 'test', 'more'), pg_switch_wal()")


def assert_up_and_turning_away(process: Process, segment: Segment) -> None:
    wait_until(lambda: [segment.send([f"full-{len(segment.sent)}"]) for _ in range(3)] == [503] * 3)
    assert process.popen.poll() is None
    assert requests.get(f"{process.url}/healthz", timeout=10).status_code == 200


def assert_all_arrives(url: str, segment: Segment, mixpanel: Mixpanel) -> None:
    """Once each, after deduplication, by the endpoint's own count and the adapter's."""
    mixpanel.takes = True
    wait_until(segment.send_again)
    wait_until(lambda: read_report(url).waiting == 0)
    assert mixpanel.arrived == segment.acknowledged
    assert read_report(url).endpoints["import"].delivered == len(segment.acknowledged)


def test_a_full_disk_answers_503_and_loses_nothing_with_sqlite(
    disk: Callable[[int], Disk], endpoint: Endpoint
) -> None:
    small, mixpanel = disk(96 * MB), Mixpanel(endpoint)
    url = f"sqlite:///{small.folder / 'adapter.db'}"
    with serving(small.folder, **mixpanel.variables) as process:
        segment = Segment(process)
        segment.send_until_turned_away("first")
        assert 0 < small.free_bytes < 2 * RESERVE_BYTES, "before the disk is full, but not long before"
        assert segment.acknowledged <= names_in(url) <= segment.sent
        small.fill()
        assert small.free_bytes == 0
        assert_up_and_turning_away(process, segment)
        assert segment.acknowledged <= names_in(url) <= segment.sent
        small.relieve()
        assert_all_arrives(url, segment, mixpanel)
        # What has drained left its room in the file: that of the disk is not needed any more.
        small.fill()
        segment.turned_away = [[f"second-{n}"] for n in range(5)]
        assert_all_arrives(url, segment, mixpanel)
        assert small.free_bytes < RESERVE_BYTES
        assert process.terminate() == 0
    assert rows(url, "PRAGMA integrity_check") == [("ok",)]


def test_a_write_ahead_log_that_cannot_grow_does_not_hold_up_a_file_with_room(disk: Callable[[int], Disk]) -> None:
    small = disk(128 * MB)
    url = f"sqlite:///{small.folder / 'adapter.db'}"
    body = b"x" * MB
    with Store(url) as store:
        for n in range(50):
            store.put([arrival(n, body=body)])
        while waiting := store.claim("import", 100):
            store.settle(delivered(waiting))
    with Store(url) as store:  # with a new log
        store.put([arrival(f"{n} more", body=body) for n in range(5)])
        small.fill()
        assert [store.put([arrival(f"{n} at last", body=body)]) for n in range(12)] == [[True]] * 12


def test_a_full_disk_answers_503_and_loses_nothing_with_postgresql(
    disk: Callable[[int], Disk], endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # for the lock of who starts it
    small, mixpanel = disk(208 * MB), Mixpanel(endpoint)
    small.fill(48 * MB)  # given back in the end: by itself a database that has filled its disk cannot even start
    with running(small.folder, fsync=True) as server:
        url = server.create("small", "ready")
        with serving(tmp_path, DATABASE_URL=url, **mixpanel.variables) as process:
            segment = Segment(process)
            segment.send_until_turned_away("first")
            small.fill()
            segment.send_until_turned_away("last")
            assert_up_and_turning_away(process, segment)
            with pytest.raises(psycopg.OperationalError):  # without room for its log it panics
                write_log(server)
            assert_up_and_turning_away(process, segment)
            small.relieve()
            server.start()  # if it gave up; the adapter goes on as it is
            assert_all_arrives(url, segment, mixpanel)
            assert process.terminate() == 0
