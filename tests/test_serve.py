"""`adapter serve` as a user runs it: real processes, real signals."""

import json
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.conftest import raw
from tests.endpoint import Answer, Endpoint, Got, stored
from tests.postgresql import Server
from tests.processes import ROOT, Process, adapter, environment, free_port, serving, started, wait_until


def worker_of(process: Process) -> int:
    children = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children").read_text().split()
    return int(children[-1])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def statuses(folder: Path) -> dict[str, dict[str, int]]:
    answer = adapter(folder, "status", "--json")
    assert answer.returncode == 0, answer.stderr
    endpoints: dict[str, dict[str, int]] = json.loads(answer.stdout)["endpoints"]
    return endpoints


def test_it_needs_no_settings_and_delivers_to_its_own_sandbox(tmp_path: Path, message) -> None:
    with serving(tmp_path) as process:
        answer = process.post(raw(message(userId="user-1")))
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
        wait_until(lambda: statuses(tmp_path)["import"]["delivered"] == 1)
        found = adapter(tmp_path, "funnel", "Signed Up", "Signed Up", "--json")
        assert [step["count"] for step in json.loads(found.stdout)["steps"]] == [1, 0]
        assert requests.get(f"{process.url}/healthz", timeout=5).json() == {"status": "ok"}


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path, message, endpoint: Endpoint) -> None:
    """Killed five times in the middle of it all; every id that got a 200 is at the endpoint in the end."""
    rnd = random.Random(20261123)  # noqa: S311 a seed, not a secret
    variables = {"INGESTION_URL": endpoint.url, "MIXPANEL_TOKEN": "token"}
    endpoint.default = lambda got: Answer(503, {"error": "not yet"})
    acknowledged: set[str] = set()

    def post_until_it_dies(process: Process, sender: str) -> None:
        for number in range(10_000):
            name = f"{sender}-{number}"
            try:
                answer = process.post(raw(message(messageId=name, userId=name)))
            except requests.RequestException:
                return
            if answer.status_code == 200:
                acknowledged.add(name)

    for life in range(5):
        with serving(tmp_path, **variables) as process:
            senders = [
                threading.Thread(target=post_until_it_dies, args=(process, f"{life}-{sender}")) for sender in range(4)
            ]
            for sender in senders:
                sender.start()
            enough = len(acknowledged) + rnd.randrange(20, 60)
            wait_until(lambda enough=enough: len(acknowledged) >= enough)
            process.kill()
            for sender in senders:
                sender.join()
    arrived: set[str] = set()

    def take(got):
        arrived.update(record["properties"]["$insert_id"] for record in got.records)
        return Answer(body={"code": 200, "num_records_imported": len(got.records), "status": "OK"})

    endpoint.default = take
    with serving(tmp_path, **variables):
        wait_until(lambda: arrived >= acknowledged)
        wait_until(lambda: statuses(tmp_path)["import"]["waiting"] == 0)
    assert len(acknowledged) >= 100


def test_a_database_that_is_frozen_makes_it_unready_at_once_and_for_no_longer(
    tmp_path: Path, message, postgresql: Server, postgresql_url: str
) -> None:
    with serving(tmp_path, DATABASE_URL=postgresql_url) as process:
        process.post(raw(message(userId="user-1")))

        def ask(_: int) -> tuple[int, float]:
            began = time.monotonic()
            answer = requests.get(f"{process.url}/readyz", timeout=60)
            return answer.status_code, time.monotonic() - began

        with postgresql.frozen(), ThreadPoolExecutor(12) as pool:
            time.sleep(1.5)  # delivery, too, has asked
            found = list(pool.map(ask, range(12)))
        assert {status for status, _ in found} == {503}
        assert max(seconds for _, seconds in found) < 5
        process.wait_until_ready()
        assert process.post(raw(message(messageId="m-2"))).status_code == 200


def test_a_second_process_on_the_same_store_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path):
        second = adapter(tmp_path, "serve", PORT=str(free_port()))
    assert second.returncode == 2
    assert "is in use by process" in second.stderr


def test_an_address_that_is_taken_is_refused_not_shared(tmp_path: Path) -> None:
    with serving(tmp_path) as process:
        other = tmp_path / "other"
        other.mkdir()
        second = adapter(other, "serve", PORT=str(process.port))
    assert second.returncode == 2
    assert second.stderr.startswith(f"adapter: HOST, PORT: 127.0.0.1:{process.port} cannot be listened on")
    assert not (other / "adapter.db").exists()


def test_sigterm_ends_it_in_order(tmp_path: Path, message) -> None:
    with serving(tmp_path) as process:
        process.post(raw(message()))
        worker = worker_of(process)
        assert process.terminate() == 0
        assert not is_alive(worker)
    # The last connection to close moves the write-ahead log into the file and removes it.
    assert not (tmp_path / "adapter.db-wal").exists()
    assert statuses(tmp_path)["import"]["acknowledged"] == 1


def test_what_a_disk_that_may_not_last_would_lose_is_said_at_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        start = adapter(tmp_path, "serve", RENDER="true", PORT=str(taken.getsockname()[1]))
    assert "every restart loses all messages that still wait" in start.stderr


@pytest.mark.parametrize("to_all", [False, True], ids=["to the process", "to the whole group"])
def test_sigterm_again_and_again_ends_it_as_one_does(
    tmp_path: Path, message, endpoint: Endpoint, to_all: bool
) -> None:
    """A platform may send it several times, and to every process there is."""
    opened = threading.Event()

    def slow(got: Got) -> Answer:
        opened.wait(10)
        return stored(got)

    endpoint.default = slow
    with serving(tmp_path, INGESTION_URL=endpoint.url, MIXPANEL_TOKEN="token") as process:
        process.post(raw(message(userId="user-1")))
        wait_until(lambda: len(endpoint.got) == 1)
        for _ in range(4):
            (os.killpg if to_all else os.kill)(process.popen.pid, signal.SIGTERM)
            time.sleep(0.3)
        opened.set()
        assert process.popen.wait(25) == 0
    assert statuses(tmp_path)["import"]["delivered"] == 1, "what was under way was settled"
    assert len(endpoint.got) == 1


def test_sigterm_ends_it_in_order_while_somebody_keeps_a_connection_busy(tmp_path: Path, message) -> None:
    """The WSGI server itself waits for as long as a connection is in use."""
    with serving(tmp_path) as process, socket.create_connection(("127.0.0.1", process.port)) as client:
        client.sendall(b"POST /webhook HTTP/1.1\r\nHost: a\r\n")
        process.post(raw(message()))
        assert process.terminate() == 0
    assert not (tmp_path / "adapter.db-wal").exists()
    assert statuses(tmp_path)["import"]["acknowledged"] == 1


def test_a_killed_worker_is_replaced(tmp_path: Path, message) -> None:
    with serving(tmp_path) as process:
        first = worker_of(process)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not is_alive(first))
        process.wait_until_ready()
        assert process.post(raw(message())).status_code == 200


def test_a_worker_never_outlives_the_main_process(tmp_path: Path, message) -> None:
    with serving(tmp_path) as process:
        worker = worker_of(process)
        os.kill(process.popen.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(worker))
    with serving(tmp_path) as process:
        assert process.post(raw(message())).status_code == 200


def test_off_loopback_every_missing_protection_is_named(tmp_path: Path) -> None:
    refused = adapter(tmp_path, "serve", HOST="0.0.0.0", DYNO="web.1")  # noqa: S104 refused before it binds
    assert refused.returncode == 2
    for variable in ("INGESTION_URL", "MIXPANEL_TOKEN", "WEBHOOK_TOKEN", "DATABASE_URL"):
        assert f"{variable}: " in refused.stderr
    assert not (tmp_path / "adapter.db").exists()


def test_another_destination_is_refused_until_it_is_said_to_be_meant(tmp_path: Path, endpoint: Endpoint) -> None:
    with serving(tmp_path):
        pass
    elsewhere = {"INGESTION_URL": endpoint.url, "MIXPANEL_TOKEN": "token"}
    refused = adapter(tmp_path, "serve", **elsewhere)
    assert refused.returncode == 2
    assert "the store was filled for sandbox" in refused.stderr
    assert adapter(tmp_path, "destination", "new", **elsewhere).returncode == 0
    with serving(tmp_path, **elsewhere):
        pass


def test_the_procfile_runs_under_a_procfile_runner(tmp_path: Path, message) -> None:
    shutil.copy(ROOT / "Procfile", tmp_path)
    port = free_port()
    variables = {
        "INGESTION_URL": "sandbox",
        "MIXPANEL_TOKEN": "project",
        "WEBHOOK_TOKEN": "secret",
        "PATH": f"{_with_adapter(tmp_path)}:{environment(tmp_path)['PATH']}",
    }
    command = [sys.executable, "-m", "honcho", "start", "-p", str(port), "web"]
    with started(command, tmp_path, port=port, **variables) as process:
        process.wait_until_ready()
        body = raw(message(userId="user-1"))
        assert process.post(body).status_code == 401
        assert process.post(body, Authorization="Bearer secret").status_code == 200
        wait_until(lambda: statuses(tmp_path)["import"]["delivered"] == 1)
        process.terminate()


def _with_adapter(folder: Path) -> Path:
    """A folder with the command `adapter` of this checkout, as an installation puts it on the PATH."""
    script = folder / "bin" / "adapter"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom adapter.cli import main\nmain()\n")
    script.chmod(0o755)
    return script.parent


def test_the_demo_answers_the_question_across_login_stays_up_and_leaves_nothing(tmp_path: Path) -> None:
    """It ends by itself without --keep: see tests/test_wheel.py."""
    with started([sys.executable, "-m", "adapter", "demo", "--keep"], tmp_path, TMPDIR=str(tmp_path)) as process:
        assert process.popen.stdout is not None
        lines: list[str] = []
        for line in process.popen.stdout:
            lines.append(line.rstrip())
            if line.startswith("Interrupt"):
                break
        address = next(line.split()[1] for line in lines if line.startswith("webhook"))
        assert requests.post(address, timeout=5).status_code in (401, 415)
        assert list(tmp_path.glob("adapter-demo-*"))
        assert process.terminate() == 0
    assert list(tmp_path.iterdir()) == []
    assert "Sent 40 messages through the signed webhook: 38 accepted, 1 seen before, 1 rejected" in lines
    assert "  4 of 8: 50.0%" in lines
    assert "  Had the two streams not been joined: 0 of 8" in lines
    assert any(line.startswith("  ada") and "ecd6f079" in line and "2acd68fd" in line for line in lines)
