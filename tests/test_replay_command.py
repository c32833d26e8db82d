"""`adapter replay` as it is used: killed, interrupted, turned down, without room, and beside whoever serves."""

import json
import os
import pty
import random
import resource
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from adapter.replay.telling import Progress
from adapter.replay.work import BATCHES_UNDER_WAY
from tests.conftest import raw
from tests.endpoint import Answer, Endpoint, Got, stored
from tests.processes import adapter, environment, serving, wait_until

TOKEN = "a-token-that-nobody-may-see"  # noqa: S105 no secret
LINK = "Identity Linked"
#: Longer than a stop may take here, shorter than a request may take by itself.
STOP_S = 12.0


def at(second: int) -> str:
    return f"2026-03-{1 + second // 86_400:02}T{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}Z"


def track(number: int, user: str | None, device: str, **fields: Any) -> dict[str, Any]:
    ids = {"userId": user} if user else {}
    call = {
        "type": "track",
        "event": "Paid",
        "messageId": f"m-{number}",
        "anonymousId": device,
        "timestamp": at(number),
    }
    return {**call, **ids, "properties": {"coins": 1}, **fields}


def identify(number: int, user: str, device: str) -> dict[str, Any]:
    return {**track(number, user, device), "type": "identify", "traits": {"plan": user}}


class World:
    """A folder with logs, a store that nobody serves, and an endpoint."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        self.folder, self.endpoint = folder, endpoint
        self.variables = {"INGESTION_URL": endpoint.url, "MIXPANEL_TOKEN": TOKEN}

    def log(self, name: str, calls: list[dict[str, Any]]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(raw(call) + b"\n" for call in calls))

    def run(self, *arguments: str, input: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        return adapter(self.folder, "replay", *arguments, input=input, **self.variables | variables)

    @contextmanager
    def started(self, *arguments: str, stderr: Any = subprocess.PIPE, **variables: str) -> Iterator["Replay"]:
        """The command while it runs, leader of a group of its own."""
        popen = subprocess.Popen(
            [sys.executable, "-m", "adapter", "replay", *arguments],
            cwd=self.folder,
            env=environment(self.folder, **self.variables | variables),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        with popen:
            try:
                yield Replay(popen)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(popen.pid, signal.SIGKILL)

    def records(self, path: str) -> list[dict[str, Any]]:
        """Of all requests in their order, without the event by which the credentials are checked."""
        found = [one for got in self.endpoint.got if got.path == path for one in got.records]
        return [one for one in found if one.get("event") != "Adapter Check"]

    def sent(self) -> Counter[str]:
        """How often each event was sent, by its $insert_id."""
        return Counter(one["properties"]["$insert_id"] for one in self.records("/import"))

    def state(self, name: str = "adapter-replay-*") -> Path:
        (found,) = self.folder.glob(name)
        return found


class Replay:
    """A replay that runs."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen

    def workers(self) -> list[int]:
        """The processes that send, without those that look after others."""
        pids = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def kill_workers(self) -> None:
        """All of them, for one that has nothing more to do is missed by nobody."""
        for pid in self.workers():
            with suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def end(self, seconds: float = 60.0) -> tuple[int, str]:
        """Wait for its end; exit code and standard error."""
        _, told = self.popen.communicate(timeout=seconds)
        return self.popen.returncode, told or ""


@pytest.fixture
def world(tmp_path: Path, endpoint: Endpoint) -> World:
    endpoint.default = takes
    return World(tmp_path, endpoint)


def is_check(got: Got) -> bool:
    return got.records[0].get("event") == "Adapter Check"


def takes(got: Got) -> Answer:
    """What Mixpanel answers when all is well: the event that asks for the credentials is refused."""
    failed = [{"index": 0, "message": "no time"}]
    return Answer(400, {"code": 400, "failed_records": failed}) if is_check(got) else stored(got)


def is_events(got: Got) -> bool:
    return got.path == "/import" and got.records[0]["event"] == "Paid"


def is_counter(got: Got) -> bool:
    return got.path == "/engage" and "$add" in got.records[0]


# --- killed, interrupted --------------------------------------------------------------------------------------------


def test_a_replay_killed_at_any_moment_sends_everything_and_counts_nothing_twice(world: World) -> None:
    chance = random.Random(5)
    calls = [track(100 + n, f"u{n % 40}", f"device-{n % 40}") for n in range(600)]
    calls += [track(1000 + n, f"u{n % 7}", "kiosk") for n in range(40)]
    calls += [identify(50 + n, f"u{n}", "kiosk" if n == 39 else f"device-{n}") for n in reversed(range(40))]
    for number in range(4):
        world.log(f"logs/{number}.log", calls[number::4])
    lock, linked, too_early = threading.Lock(), set[str](), list[Got]()
    codes, killed = [], list[Got]()
    kill: Callable[[], None] | None = None  # once in a run
    may_kill: Callable[[Got], bool] = is_events
    n_left = chance.randint(1, 4)

    def answer(got: Got) -> Answer:
        nonlocal kill, n_left
        with lock:
            if got.path == "/import" and any(one["event"] == LINK for one in got.records):
                linked.update(one["properties"]["$device_id"] for one in got.records if one["event"] == LINK)
            elif any(one.get("properties", {}).get("$device_id") == "kiosk" for one in got.records):
                too_early.extend([] if "kiosk" in linked else [got])
            n_left -= may_kill(got)
            # The first request that counts ends its run, whichever that is; from then on nothing does.
            if kill is not None and (n_left == 0 or is_counter(got)):
                killed.append(got)
                kill()
                kill = None
        return takes(got)

    world.endpoint.default = answer
    command = ("logs", "--counters", "--processes", "2", "--rate", "500")
    while not codes or (codes[-1] != 1 and len(codes) < 9):
        with world.started(*command, PROPERTY_INCREMENTS="coins") as replay:
            with lock:
                if not any(map(is_counter, killed)):
                    kill = replay.popen.kill if codes else replay.kill_workers
            code, told = replay.end()
        with lock:
            codes.append(code)
            kill, may_kill, n_left = None, lambda _: True, chance.randint(1, 4) if len(codes) < 4 else -1
        assert "Traceback" not in told
        assert (code == 3) == ("a process of the replay ended by itself" in told)
    assert codes == [3, *[-signal.SIGKILL] * (len(killed) - 1), 1]
    assert [is_counter(one) for one in killed[-2:]] == [False, True]
    # Everything is there, and what is there twice is the same.
    events = {json.dumps(one, sort_keys=True) for one in world.records("/import")}
    assert len(events) == len(world.sent()) == 640 + len(linked)
    assert sum(one["event"] == "Paid" for one in map(json.loads, events)) == 640
    assert (too_early, "kiosk" in linked) == ([], True)
    plans = {one["$distinct_id"]: one["$set_once"]["plan"] for one in world.records("/engage") if "$set_once" in one}
    assert plans == {f"u{n}": f"u{n}" for n in range(40)}
    # What counts was sent once, and what was under way when it was killed is kept.
    wanted = Counter(call["userId"] for call in calls if call["type"] == "track")
    counted = [(one["$distinct_id"], one["$add"]["coins"]) for one in world.records("/engage") if "$add" in one]
    assert len(counted) == len(dict(counted))
    assert counted == [(user, wanted[user]) for user, _ in counted]
    refused = [json.loads(line) for line in (world.state() / "refused.jsonl").read_bytes().splitlines()]
    kept = {one["message"]["profile"]: one["message"]["counts"] for one in refused}
    assert {one["reason"] for one in refused} == {"may_have_been_applied"}
    assert 1 <= len(kept) <= BATCHES_UNDER_WAY
    assert kept == {user: [{"$add": {"coins": wanted[user]}}] for user in kept}
    assert kept.keys() | dict(counted).keys() == wanted.keys()


@pytest.mark.parametrize(
    ("hangs", "processes"),
    [(is_check, 1), (is_events, 1), (is_events, 2), (is_counter, 1)],
    ids=["check", "events", "two-processes", "counters"],
)
def test_ctrl_c_hangs_up_and_the_next_run_goes_on(world: World, hangs: Callable[[Got], bool], processes: int) -> None:
    for number in range(2):
        world.log(f"logs/{number}.log", [track(10 * number + n, f"u{number}", f"device-{number}") for n in range(5)])
    over = threading.Event()

    def answer(got: Got) -> Answer:
        if hangs(got):
            over.wait(60)
        return takes(got)

    world.endpoint.default = answer
    command = ("logs", "--counters", "--processes", str(processes))
    with world.started(*command, PROPERTY_INCREMENTS="coins") as replay:
        wait_until(lambda: any(map(hangs, world.endpoint.got)))
        replay.interrupt()
        code, told = replay.end(STOP_S)
    over.set()
    assert (code, "Traceback" in told) == (130, False)
    assert f"run the same command to go on ({world.state().name})" in told
    events_before, n_counted = len(world.records("/import")), sum(map(is_counter, world.endpoint.got))
    assert world.run(*command, PROPERTY_INCREMENTS="coins").returncode == (1 if hangs is is_counter else 0)
    assert len(world.sent()) == 10
    assert sum(map(is_counter, world.endpoint.got)) == 2
    if n_counted:
        assert len(world.records("/import")) == events_before
    # What is finished says so.
    n_requests = len(world.endpoint.got)
    again = world.run(*command, PROPERTY_INCREMENTS="coins")
    assert "This replay is finished: nothing was sent" in again.stdout
    assert (again.returncode, len(world.endpoint.got)) == (1 if hangs is is_counter else 0, n_requests)
    if hangs is is_check:
        assert world.run(*command, "--again", PROPERTY_INCREMENTS="coins").returncode == 0
        assert set(world.sent().values()) == {2}


# --- what the endpoint does -----------------------------------------------------------------------------------------


def test_an_endpoint_in_trouble_gets_everything_in_the_end(world: World) -> None:
    world.log("a.log", [track(n, f"u{n % 5}", f"device-{n % 5}") for n in range(50)])
    world.endpoint.answers.extend(
        [
            takes,
            Answer(429, {"error": "slow down"}, (("Retry-After", "1"),)),
            Answer(503, {"error": "busy"}),
            Answer(body={"code": 200, "num_records_imported": 50}, reset_after=5),
        ]
    )
    begun = time.monotonic()
    found = world.run("a.log", "--rate", "20")  # so that the batches are in trouble side by side
    assert time.monotonic() - begun > 2.0
    assert (found.returncode, len(world.sent())) == (0, 50), found.stderr
    assert "50  events" in found.stdout


def test_what_a_person_must_mend_ends_it_at_once_and_it_goes_on_afterwards(world: World) -> None:
    world.log("a.log", [track(n, f"u{n}", f"device-{n}") for n in range(30)])
    # Nobody listens.
    found = world.run("a.log", INGESTION_URL="http://127.0.0.1:9")
    assert (found.returncode, found.stdout) == (3, "")
    assert "the endpoint takes nothing: no answer" in found.stderr
    # The credentials are wrong, from the beginning or from some time on.
    for answers in ([Answer(401, {"error": "bad token"})], [takes, takes, Answer(401, {"error": "bad token"})]):
        world.endpoint.answers.extend(answers)
        found = world.run("a.log", "--rate", "5")
        assert found.returncode == 3
        assert "401: bad token" in found.stderr
        assert "is it the token of this project" in found.stderr
        assert "once that is mended run the same command to go on" in found.stderr
    assert world.run("a.log").returncode == 0
    assert len(world.sent()) == 30


def test_what_is_refused_is_kept_and_sent_again_once_its_cause_is_mended(world: World) -> None:
    calls = [track(n, "ada", "device-1", context={"ip": f"198.51.100.{n}"}) for n in range(20)]
    world.log("a.log", [*calls, {"type": "purchase"}])
    turned_down = {"m-3", "m-7"}

    def answer(got: Got) -> Answer:
        ids = [one.get("properties", {}).get("$insert_id") for one in got.records]
        failed = [
            {"index": index, "insert_id": one, "field": "ip", "message": "bad ip"}
            for index, one in enumerate(ids)
            if one in turned_down
        ]
        return Answer(400, {"code": 400, "failed_records": failed}) if failed else takes(got)

    world.endpoint.default = answer
    before = os.umask(0)
    found = world.run("a.log", "--state", "new/state")
    os.umask(before)
    state = world.folder / "new/state"
    assert (found.returncode, f"What is refused is in {Path('new/state/refused.jsonl')}" in found.stdout) == (1, True)
    assert (state / "broken.jsonl").read_bytes() == b'{"type":"purchase"}\n'
    refused = [json.loads(line) for line in (state / "refused.jsonl").read_bytes().splitlines()]
    assert {one["message"]["messageId"] for one in refused} == turned_down
    assert {(one["reason"], one["detail"]) for one in refused} == {("refused_by_mixpanel", "bad ip (ip)")}
    # Nobody else reads it, and there is no secret in it.
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for path in state.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in found.stdout + found.stderr
    turned_down, sent = set(), world.sent()
    assert world.run("new/state/refused.jsonl").returncode == 0
    assert world.sent() - sent == Counter({"m-3": 1, "m-7": 1})


# --- beside others --------------------------------------------------------------------------------------------------


def test_beside_who_serves_the_links_are_told_and_live_traffic_goes_first(world: World) -> None:
    long = "x" * 180
    calls = [track(n, f"user-{long}-{n}", f"device-{long}-{n}", messageId=f"m-{long}-{n}") for n in range(2500)]
    world.log("a.log", calls)
    open_again = threading.Event()

    def answer(got: Got) -> Answer:
        if got.path == "/import" and got.records[0]["event"] == "Live":
            open_again.wait(60)
        return takes(got)

    world.endpoint.default = answer
    live = {**track(9_000, "eve", "device-live"), "event": "Live"}
    with serving(world.folder, **world.variables) as server:
        assert server.post(raw(live)).status_code == 200
        wait_until(lambda: world.records("/import"))
        with world.started("a.log", "--yield-to-live", stderr=subprocess.DEVNULL) as replay:
            plan = lambda: list(world.folder.glob("adapter-replay-*/plan.db"))  # noqa: E731
            wait_until(plan)
            assert server.post(raw({**live, "messageId": "m-9001"})).status_code == 200
            time.sleep(1.0)  # time enough to be wrong
            assert not any(one["event"] == "Paid" for one in world.records("/import"))
            open_again.set()
            assert replay.end()[0] == 0
        events = [one["properties"]["$insert_id"] for one in world.records("/import") if one["event"] == "Paid"]
        assert len(set(events)) == 2500
        device, user = calls[7]["anonymousId"], calls[7]["userId"]
        known = adapter(world.folder, "identity", device, **world.variables)
        assert user in known.stdout


def test_one_process_at_a_time_is_at_a_replay_and_a_folder_is_of_one_replay(world: World) -> None:
    world.log("a.log", [track(n, "ada", "device-1") for n in range(3)])
    over = threading.Event()
    world.endpoint.default = lambda got: (over.wait(60), takes(got))[1]
    with world.started("a.log", "--state", "state") as replay:
        wait_until(lambda: world.endpoint.got)
        second = world.run("a.log", "--state", "state")
        assert (second.returncode, second.stderr) == (2, "adapter: another process is at this replay: state\n")
        over.set()
        assert replay.end()[0] == 0
    another = world.run("a.log", "--state", "state", MIXPANEL_TOKEN="of-another-project")
    assert another.returncode == 2
    assert "expected another --state, or --again to begin anew" in another.stderr
    assert len(world.sent()) == 3


# --- the options ----------------------------------------------------------------------------------------------------


def test_a_plan_and_a_dry_run_send_nothing(world: World) -> None:
    world.log("logs/a.log", [track(n, f"u{n % 3}", f"device-{n % 2}") for n in range(9)])
    world.log("logs/b.log", [identify(20, "ada", "device-9")])
    found = world.run("logs/*.log", "--plan-only", "--plan-json", "plan.json")
    assert (found.returncode, world.endpoint.got) == (0, [])
    plan = json.loads((world.folder / "plan.json").read_text())
    report = adapter(world.folder, "identity", "report", "logs", "--json", **world.variables)
    assert plan["graph"] == json.loads(report.stdout)["graph"]
    found = world.run("logs/*.log", "--dry-run")
    assert found.stdout.splitlines()[0] == f"2 files -> {world.endpoint.url}"
    assert (found.returncode, world.endpoint.got) == (0, [])
    assert "would be sent: Paid" in found.stdout
    assert not (world.folder / "adapter.db").exists()
    # The plan is taken once.
    planned = [path.stat().st_mtime_ns for path in world.folder.glob("*/plan.db")]
    assert world.run("logs/*.log").returncode == 0
    assert [path.stat().st_mtime_ns for path in world.folder.glob("*/plan.db")] == planned
    assert len(world.sent()) == 10 + 2


def test_what_is_piped_is_kept_and_gone_on_with(world: World) -> None:
    world.endpoint.answers.extend([takes, Answer(401)])
    piped = "".join(json.dumps(track(n, "ada", "device-1")) + "\n" for n in range(5))
    assert world.run("-", input=piped).returncode == 3
    assert world.run("-", input=piped).returncode == 0
    assert len(world.sent()) == 5
    assert world.run("-", input=piped).stdout.count("This replay is finished") == 1
    assert [path.name for path in world.folder.iterdir() if path.name not in ("adapter.db", "adapter.db.lock")] == [
        world.state().name
    ]
    (kept,) = world.state().glob("stdin-*")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_two_hours_are_the_same_two_hours_when_it_is_gone_on_with(world: World) -> None:
    world.log("a.log", [track(1, "ada", "device-1"), track(2, "ada", "device-1", receivedAt="2999-01-01T00:00:00Z")])
    assert world.run("a.log", "--since", "2h").returncode == 0
    assert "This replay is finished" in world.run("a.log", "--since", "2h").stdout
    assert world.sent() == {"m-2": 1}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.log"], "there is no file missing.log"),
        (["a.log", ""], "a source is empty"),
        (["a.log", "--since", "2026-03-02", "--until", "2026-03-01"], "expected --until to be after --since"),
        (["-", "missing.log"], "there is no file missing.log"),
        (["a.log", "folder", "--since", "2026-03-01"], "there is no file in folder"),
        (["a.log", "--since", "tomorrow"], "expected 2026-03-01, 2026-03-01T12:00Z, or 2h for two hours ago"),
        (["a.log", "--type", "purchase"], "'purchase' is not one of 'identify', 'track'"),
        (["a.log", "--rate", "0"], "0.0 is not in the range x>=1"),
        (["a.log", "--state", "a.log/state"], "a.log/state cannot hold how far the replay is: Not a directory"),
        (["-", "--plan-json", "missing/plan.json"], "missing/plan.json cannot be written: No such file or directory"),
        (["-", "--plan-json", "."], ". cannot be written: Is a directory"),
        (["missing.log", "--plan-only", "--plan-json", "plan.json"], "there is no file missing.log"),
        (["a.log", "pipe"], "pipe can be read only once: expected a file, or - for standard input"),
    ],
)
def test_what_it_cannot_begin_with_is_named_and_leaves_nothing_behind(
    world: World, arguments: list[str], expected: str
) -> None:
    world.log("a.log", [track(1, "ada", "device-1")])
    (world.folder / "folder").mkdir()
    os.mkfifo(world.folder / "pipe")
    found = world.run(*arguments, input="")
    assert (found.returncode, found.stdout) == (2, "")
    assert expected in found.stderr
    assert {path.name for path in world.folder.iterdir()} == {"a.log", "folder", "pipe"}


def test_logs_of_other_days_are_nothing_to_send_and_no_error(world: World) -> None:
    world.log("segment-logs/web/1772323200000/1.log", [track(1, "ada", "device-1")])
    found = world.run("segment-logs", "--since", "2026-03-02")
    assert (found.returncode, found.stderr, world.sent()) == (0, "", {})
    assert "0 files -> " in found.stdout.splitlines()[0]
    assert found.stdout.splitlines()[0].endswith(": what is there is empty, or of other days or sources")


def test_a_full_disk_ends_it_in_a_sentence_and_it_goes_on_once_there_is_room(world: World) -> None:
    calls = [{**identify(n, f"u{n}", f"device-{n}"), "traits": {"about": f"{n}" * 5_000}} for n in range(100)]
    world.log("a.log", [*calls, *(track(200 + n, f"user-{n}", f"device-{n}") for n in range(1_500))])
    told = []
    for n_bytes in (300_000, 1_000_000):  # no room for the plan, for the profiles
        with world.started("a.log", "--state", "state") as replay:
            resource.prlimit(replay.popen.pid, resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
            code, error = replay.end()
            told.append(error)
            assert (code, "Traceback" in error) == (3, False)
    assert "make room in state" in told[0]
    assert "what was settled cannot be written" in told[1]
    assert world.run("a.log", "--state", "state").returncode == 0
    assert sum(not one.endswith("-link") for one in world.sent()) == 1_600
    assert len({one["$distinct_id"] for one in world.records("/engage")}) == 100


def peak_kb(leader: int) -> int:
    """The most memory that any process of a group has had so far."""
    found = [0]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if os.getpgid(int(process.name)) == leader:
                status = (process / "status").read_text()
                found += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    return max(found)


def test_a_large_log_needs_little_memory_and_a_terminal_is_told_in_one_line(world: World) -> None:
    for name in ("a.log", "b.log"):
        first = 30_000 * (name == "b.log")
        world.log(name, [track(first + n, f"u{n % 999}", f"device-{n % 4_995}") for n in range(30_000)])
    command = ("a.log", "b.log", "--memory-mb", "32", "--processes", "2", "--profiles", "off")
    with world.started(*command) as replay:
        wait_until(lambda: list(world.folder.glob("*/plan.unfinished")))
        replay.interrupt()
        code, told = replay.end(STOP_S)
    assert (code, "Traceback" in told, world.records("/import")) == (130, False, [])
    assert f"run the same command to go on ({world.state().name})" in told
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    with world.started(*command, stderr=theirs) as replay:
        os.close(theirs)
        shown, most_kb = b"", 0
        with suppress(OSError):  # it has ended
            while piece := os.read(terminal, 10_000):
                shown += piece
                most_kb = max(most_kb, peak_kb(replay.popen.pid))
        summary = replay.popen.stdout.read() if replay.popen.stdout else ""
        replay.popen.wait(STOP_S)
    os.close(terminal)
    assert (replay.popen.returncode, len(world.sent())) == (0, 60_000)
    assert 0 < most_kb < 230_000
    lines = shown.decode().replace("\033[K", "").split("\r")
    assert {line.partition(":")[0] for line in lines if line} == {"plan", "events"}
    assert (max(map(len, lines)) < 60, "\n" in shown.decode()) == (True, False)
    assert "60,000 messages read" in summary
    assert "      60,000  events" in summary


def test_whoever_is_no_terminal_is_told_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    progress = Progress()
    for second in range(25):
        now_s = float(second)
        progress("events", second * 100, 10_000, {"events": second * 90, "refused": 3})
    progress.end()
    assert capsys.readouterr().err.splitlines() == [
        "events: 1,000 of 10,000 (10%), 0:01:30 left, 90 events/s, 3 refused, 100/s, 900 events",
        "events: 2,000 of 10,000 (20%), 0:01:20 left, 90 events/s, 3 refused, 100/s, 1,800 events",
    ]
