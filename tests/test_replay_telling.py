"""What a replay says, before, while and after it sends; and that each option means what it says."""

import gzip
import json
import os
import pty
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adapter.cli import main
from adapter.replay import phases, telling
from adapter.replay.job import Job
from adapter.replay.journal import Journal
from adapter.replay.telling import Progress
from adapter.store import Store
from tests.endpoint import Answer, Endpoint, Got
from tests.processes import adapter
from tests.test_replay import erase
from tests.test_replay_command import LINK, World, at, identify, is_check, is_counter, takes, track


@pytest.fixture
def world(tmp_path: Path, endpoint: Endpoint) -> World:
    endpoint.default = takes
    return World(tmp_path, endpoint)


def page(number: int, user: str | None, device: str, **fields: Any) -> dict[str, Any]:
    return {**track(number, user, device), "type": "page", "name": "Home", **fields}


def group(number: int, user: str, group_id: str, **traits: Any) -> dict[str, Any]:
    return {**track(number, user, "device-1"), "type": "group", "groupId": group_id, "traits": traits}


def told(text: str) -> dict[str, int]:
    """The counts of a summary, by their words."""
    rows = [line.strip().split("  ", 1) for line in text.splitlines() if line.startswith("   ")]
    return {row[1].strip(): int(row[0].replace(",", "")) for row in rows if len(row) == 2 and row[0][0].isdigit()}


# --- a dry run ------------------------------------------------------------------------------------------------------


def everything() -> list[dict[str, Any]]:
    order = {"products": [{"product_id": "1"}, {"product_id": "2"}], "coins": 1}
    return [
        track(1, "ada", "kiosk"),
        track(2, "ben", "kiosk"),
        identify(3, "eve", "device-3"),
        page(4, None, "device-3"),
        track(5, "ada", "kiosk", event="Order Completed", properties=order),
        group(6, "ada", "acme", seats=3),
        track(7, "ada", "kiosk", event="$identify"),
        track(8, "null", "null"),
        track(9, "ada", "kiosk", event="x" * 300),
        {"type": "purchase"},
    ]


def test_a_dry_run_says_what_a_replay_then_sends_and_changes_nothing(world: World) -> None:
    world.log("a.log", everything())
    command = ("a.log", "--counters", "--state", "state/of/it")
    found = world.run(*command, "--dry-run", PROPERTY_INCREMENTS="coins")
    assert (found.returncode, world.endpoint.got) == (1, [])
    assert [path.name for path in world.folder.iterdir()] == ["a.log"]
    would = told(found.stdout)
    sent = told(world.run(*command, PROPERTY_INCREMENTS="coins").stdout)
    assert {name: n for name, n in would.items() if not name.startswith("would be sent: ")} == sent
    # And that is what arrived.
    events = [one["event"] for one in world.records("/import")]
    names = {name.removeprefix("would be sent: "): n for name, n in would.items() if name.startswith("would be ")}
    assert names == {name: events.count(name) for name in {*events} - {LINK}}
    assert set(names) >= {"Viewed Home", "Product Purchased", "Paid"}
    assert (would["links sent by themselves"], would["events"]) == (events.count(LINK), len(events) - 2)
    updates = [one for one in world.records("/engage") if "$add" not in one]
    assert (would["updates of people"], would["updates of groups"]) == (len(updates), 1)
    assert would["updates that count"] == len(list(filter(is_counter, world.endpoint.got))) == 2
    assert (would["refused"], would["identity_verb"], would["no_id"]) == (3, 1, 2)


def test_a_dry_run_after_a_replay_leaves_its_state_and_the_store_as_they_are(world: World) -> None:
    world.log("a.log", everything())
    assert world.run("a.log", "--state", "state").returncode == 1

    def there() -> dict[str, bytes]:
        paths = [path for path in world.folder.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in paths if not path.name.endswith(("-shm", "-wal"))}

    before, n_requests = there(), len(world.endpoint.got)
    found = world.run("a.log", "--dry-run", "--state", "state")
    assert (there(), len(world.endpoint.got)) == (before, n_requests)
    assert "Viewed Home" in found.stdout
    piped = world.run("-", "--dry-run", input=json.dumps(track(1, "ada", "device-1")))
    assert (piped.returncode, there()) == (0, before)


def test_a_dry_run_finds_what_a_replay_could_not_begin_with(world: World) -> None:
    world.log("a.log", everything())
    for option in ("--dry-run", "--counters"):
        found = world.run("a.log", option, LINK_EVENT="no")
        assert (found.returncode, world.records("/import")) == (2, [])
        assert "LINK_EVENT: 1 devices have several users" in found.stderr
    with Store(f"sqlite:///{world.folder / 'adapter.db'}") as store:
        store.remember("destination", {"endpoint": "api.mixpanel.com", "project": "x", "system": "simplified"})
    found = world.run("a.log", "--dry-run")
    assert (found.returncode, "adapter destination" in found.stderr) == (2, True)


# --- how far it is --------------------------------------------------------------------------------------------------

FIELDS = {
    "messages": "events: 1,234,567 of 12,345,678 (10%)",
    "time left": "1:30:00 left",
    "events a second": "1,815 events/s",
    "waiting": "11,111,111 waiting",
    "refused": "12 refused",
    "files": "36 of 365 files",
    "bytes": "1.5 GB",
}


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    """The line of a long replay, 10 minutes after its begin, on a terminal so wide."""
    now_s = 0.0
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patched:
        patched.setattr("sys.stderr", stderr)
        patched.setattr(time, "monotonic", lambda: now_s)
        progress = Progress()
        progress("events", 0, 12_345_678, {})
        now_s = 600.0
        tally = {"events": 1_089_000, "waiting": 11_111_111, "refused": 12, "files": 36, "files_there": 365}
        progress("events", 1_234_567, 12_345_678, {**tally, "event_bytes": 1_500_000_000})
        stderr.flush()
        line = os.read(terminal, 10_000).decode()
    os.close(terminal)
    return line.strip("\r\033[K")


@pytest.mark.parametrize("field", FIELDS)
def test_a_wide_terminal_is_told_all_that_there_is(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    fields = on_a_terminal(monkeypatch, 160).split(", ")
    assert FIELDS[field] in fields


def test_a_narrow_one_is_told_the_most_important_of_it_and_no_number_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_a_terminal(monkeypatch, 80) == "events: 1,234,567 of 12,345,678 (10%), 1:30:00 left, 1,815 events/s"
    assert len(on_a_terminal(monkeypatch, 20)) == 19


def test_the_plan_tells_bytes_files_and_the_time_that_is_left(world: World) -> None:
    for name in ("a.log", "b.log"):
        world.log(name, [track(n, f"u{n}", f"device-{n}", noise="x" * 300) for n in range(40_000)])
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    with world.started("a.log", "b.log", "--plan-only", stderr=theirs) as replay:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # it has ended
            while piece := os.read(terminal, 10_000):
                shown += piece
        assert replay.end()[0] == 0
    os.close(terminal)
    lines = [line.split(", ") for line in shown.decode().replace("\033[K", "").split("\r") if "plan" in line]
    assert any("%" in line[0] and "left" in line[1] for line in lines)
    assert any({"0 of 2 files", "1 of 2 files"} & {*line} and "MB" in " ".join(line) for line in lines)


# --- what was refused, and sent again -------------------------------------------------------------------------------


def turns_down(*paths: str) -> Callable[[Got], Answer]:
    """Refuses all updates that say `bad` of somebody, as long as others pass."""

    def answer(got: Got) -> Answer:
        if got.path in paths and any("bad" in json.dumps(one) for one in got.records):
            return Answer(400, {"status": 0, "error": "bad value"})
        return takes(got)

    return answer


@pytest.mark.parametrize("profiles", ["missing", "latest"])
def test_a_refused_update_is_sent_again_as_it_was_meant(world: World, profiles: str) -> None:
    variables = {"TRAIT_OPERATIONS": "teams=union,since=set_once"}
    traits = {"plan": "pro", "teams": ["a", "b"], "since": "bad", "gone": None}
    world.log(
        "a.log",
        [
            {**identify(1, "ada", "device-1"), "traits": {**traits, "gone": 1}},
            {**identify(2, "ada", "device-1"), "traits": traits},
            identify(3, "ben", "device-2"),
            group(4, "ben", "acme", seats=3, teams=["bad"], gone=None),
            group(5, "ben", "good", seats=4),
        ],
    )
    options = ("--profiles", profiles)
    world.endpoint.default = turns_down("/engage", "/groups")
    found = world.run("a.log", "--state", "state", *options, **variables)
    assert found.returncode == 1, found.stdout + found.stderr
    refused = [json.loads(line) for line in (world.folder / "state/refused.jsonl").read_bytes().splitlines()]
    assert sorted(one["endpoint"] for one in refused) == ["engage", "groups"]
    n_before = len(world.endpoint.got)
    meant = [one for got in world.endpoint.got for one in got.records if is_of(one, "ada", "acme")]
    world.endpoint.default = takes
    again = world.run("state/refused.jsonl", **variables)
    assert (again.returncode, "broken" in again.stdout) == (0, False), again.stdout + again.stderr
    got = [one for got in world.endpoint.got[n_before:] for one in got.records if not is_check(got)]
    assert unique(got) == unique(meant)
    assert all(is_of(one, "ada", "acme") for one in got)
    assert {
        operation for one in got for operation in one if operation in ("$union", "$set", "$unset", "$set_once")
    } == ({"$union", "$set_once"} if profiles == "missing" else {"$union", "$set", "$unset", "$set_once"})


def test_who_was_deleted_since_leaves_the_files_of_a_finished_replay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"property {n}": n for n in range(300)}
    world.log("a.log", [track(1, "ada", "device-1", properties=many), track(2, "ben", "device-2")])
    monkeypatch.chdir(world.folder)
    url = f"sqlite:///{world.folder / 'adapter.db'}"
    replay = ["replay", "a.log", "--processes", "1", "--state", "state"]
    assert CliRunner().invoke(main, replay, env={**world.variables, "DATABASE_URL": url}).exit_code == 1
    assert b"ada" in Path("state/refused.jsonl").read_bytes()
    with Store(url) as store:
        erase(store, "ada", monkeypatch)
    found = CliRunner().invoke(main, replay, env={**world.variables, "DATABASE_URL": url})
    assert (found.exit_code, "This replay is finished" in found.output) == (0, True), found.output
    assert not Path("state/refused.jsonl").exists()
    assert told(found.output)["left out: of people whose data somebody asked to delete"] == 1


def is_of(record: dict[str, Any], *ids: str) -> bool:
    return record.get("$distinct_id") in ids or record.get("$group_id") in ids


def unique(records: list[dict[str, Any]]) -> set[str]:
    return {json.dumps(one, sort_keys=True) for one in records}


def test_what_was_to_be_counted_is_not_for_another_replay_and_says_why(world: World) -> None:
    world.log("a.log", [track(n, f"u{n}", f"device-{n}") for n in range(3)])
    world.endpoint.default = lambda got: Answer(500, {"error": "busy"}) if is_counter(got) else takes(got)
    found = world.run("a.log", "--counters", "--state", "state", PROPERTY_INCREMENTS="coins")
    assert (found.returncode, found.stdout.count("3 of it count on profiles")) == (1, 1), found.stdout
    lines = [json.loads(line) for line in (world.folder / "state/refused.jsonl").read_bytes().splitlines()]
    assert all("may count twice" in one["not_again"] for one in lines)
    again = world.run("state/refused.jsonl", "--counters", PROPERTY_INCREMENTS="coins")
    assert (again.returncode, told(again.stdout)) == (
        0,
        {"left out: what was to be counted and was refused, for it may count twice": 3},
    )


@pytest.mark.parametrize(
    "line",
    [
        '{"type":"$update"}',
        '{"type":"$update","endpoint":"import","updates":[{}]}',
        '{"type":"$update","endpoint":"groups","updates":[{"$distinct_id":3}, 4]}',
        '{"type":"$update","endpoint":"engage","updates":[]}',
        '{"type":"$update","endpoint":"engage","updates":"x"}',
        '{"type":"$else"}',
        '{"type":"$',
    ],
)
def test_a_line_that_is_no_such_update_is_broken(world: World, line: str) -> None:
    (world.folder / "a.log").write_text(f"{line}\n{json.dumps(track(1, 'ada', 'device-1'))}\n")
    found = world.run("a.log")
    assert (found.returncode, told(found.stdout)["lines that are no valid message"], len(world.sent())) == (1, 1, 1)


# --- what was changed on the way ------------------------------------------------------------------------------------


def test_what_was_changed_on_the_way_is_counted_in_the_summary(world: World) -> None:
    later = {"timestamp": "2027-01-01T00:00:00Z", "receivedAt": at(5)}
    world.log(
        "a.log",
        [
            track(1, "ada", "device-1", event="x" * 300),
            track(2, "ada", "null"),
            track(3, "ada", "device-1", **later),
            {**identify(4, "ada", "device-1"), "traits": {"y" * 300: 1}},
            identify(5, "ada", "null"),
        ],
    )
    found = world.run("a.log")
    assert {name: n for name, n in told(found.stdout).items() if name.startswith("noted: ")} == {
        "noted: event_name_cut": 1,
        "noted: junk_anonymous_id": 2,
        "noted: time_in_the_future": 1,
        "noted: property_name_cut": 1,
    }


# --- what nobody foresaw --------------------------------------------------------------------------------------------


def test_an_unforeseen_fault_ends_it_in_a_sentence_and_it_can_be_gone_on_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.log("a.log", [track(1, "ada", "device-1")])
    monkeypatch.chdir(world.folder)
    environment = {**world.variables, "DATABASE_URL": f"sqlite:///{world.folder / 'adapter.db'}"}

    def fails(*_: Any) -> Iterator[Any]:
        raise KeyError("a secret of somebody")

    with monkeypatch.context() as patched:
        patched.setattr(phases.Worker, "run", fails)
        found = CliRunner().invoke(main, ["replay", "a.log", "--processes", "1"], env=environment)
    assert found.exit_code == 3
    assert "the replay failed: KeyError in fails" in found.output
    assert "run the same command to go on" in found.output
    assert "secret" not in found.output
    assert world.run("a.log").returncode == 0
    assert len(world.sent()) == 1


def test_a_file_that_ends_early_is_told_by_the_exit_code(world: World) -> None:
    packed = gzip.compress(b"".join(json.dumps(track(n, "ada", "device-1")).encode() + b"\n" for n in range(99)))
    (world.folder / "a.gz").write_bytes(packed[:-10])
    found = world.run("a.gz")
    assert (found.returncode, "a.gz: could not be read to its end" in found.stderr) == (1, True)
    words = " ".join(adapter(world.folder, "replay", "--help").stdout.split())
    assert "or a file could not be read to its end" in words


def test_what_was_appended_to_a_log_meanwhile_is_told_and_is_no_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.log("a.log", [track(1, "ada", "device-1")])
    packed = gzip.compress(json.dumps(track(2, "ben", "device-2")).encode() + b"\n")
    (world.folder / "b.gz").write_bytes(packed[:-4])
    monkeypatch.chdir(world.folder)
    take_plan = phases.take_plan

    def writes_on(*arguments: Any) -> Any:
        planned = take_plan(*arguments)
        for name, more in (
            ("a.log", json.dumps(track(3, "ada", "device-1")).encode() + b"\n"),
            ("b.gz", packed[-4:]),
        ):
            with Path(name).open("ab") as log:
                log.write(more)
        return planned

    monkeypatch.setattr(phases, "take_plan", writes_on)
    environment = {**world.variables, "DATABASE_URL": f"sqlite:///{world.folder / 'adapter.db'}"}
    found = CliRunner().invoke(main, ["replay", "a.log", "b.gz", "--processes", "1"], env=environment)
    assert (found.exit_code, set(world.sent())) == (0, {"m-1", "m-2"}), found.output
    assert "a.log and 1 more have grown since the plan was taken. What was appended is left out" in found.output
    assert "could not be read" not in found.output
    monkeypatch.setattr(phases, "take_plan", take_plan)
    found = CliRunner().invoke(main, ["replay", "a.log", "b.gz", "--processes", "1"], env=environment)
    assert (found.exit_code, set(world.sent())) == (0, {"m-1", "m-2", "m-3"}), found.output


def test_what_was_rewritten_once_it_was_read_is_told_and_sent_the_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.log("a.log", [track(1, "ada", "device-1")])
    monkeypatch.chdir(world.folder)
    send = phases.send

    def rewritten(*arguments: Any) -> None:
        send(*arguments)
        world.log("a.log", [track(2, "ben", "device-2"), track(3, "ben", "device-2")])

    monkeypatch.setattr(phases, "send", rewritten)
    environment = {**world.variables, "DATABASE_URL": f"sqlite:///{world.folder / 'adapter.db'}"}
    found = CliRunner().invoke(main, ["replay", "a.log", "--processes", "1"], env=environment)
    assert (found.exit_code, set(world.sent())) == (0, {"m-1"}), found.output
    assert "a.log has changed since it was read: the same command sends what is there now" in found.output
    monkeypatch.setattr(phases, "send", send)
    found = CliRunner().invoke(main, ["replay", "a.log", "--processes", "1"], env=environment)
    assert (found.exit_code, set(world.sent())) == (0, {"m-1", "m-2", "m-3"}), found.output


def test_the_rate_is_that_of_this_run(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "state")) as journal:
        journal.note({"messages": 3_000})
        first, *_ = telling.summary(Job(names=("a.log",)), journal, 2.0, n_before=1_000)
    assert first == "3,000 messages read; 1,000 messages/s in this run"


# --- the options ----------------------------------------------------------------------------------------------------


def calls() -> list[dict[str, Any]]:
    return [
        track(1, "ada", "device-1", projectId="web", receivedAt=at(1)),
        track(2, "ben", "device-2", projectId="ios", receivedAt=at(90_000)),
        page(3, "ada", "device-1", projectId="web", receivedAt=at(3)),
        track(4, "ada", "device-1", event="Read", projectId="web", receivedAt=at(4)),
        identify(5, "cleo", "device-5") | {"projectId": "web", "receivedAt": at(5)},
    ]


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ([], {"m-1", "m-2", "m-3", "m-4", "m-5"}),
        (["--since", "2026-03-02"], {"m-2"}),
        (["--until", "2026-03-02"], {"m-1", "m-3", "m-4", "m-5"}),
        (["--source", "ios"], {"m-2"}),
        (["--source", "ios", "--source", "web"], {"m-1", "m-2", "m-3", "m-4", "m-5"}),
        (["--type", "page"], {"m-3"}),
        (["--type", "page", "--type", "identify"], {"m-3", "m-5"}),
        (["--event", "Read"], {"m-4"}),
        (["--user", "ben"], {"m-2"}),
        (["--limit", "2"], {"m-1", "m-2"}),
        (["--links-only"], {"m-1-link", "m-2-link", "m-5"}),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_an_option_chooses_what_is_sent(world: World, options: list[str], sent: set[str]) -> None:
    world.log("a.log", calls())
    found = world.run("a.log", *options)
    assert (found.returncode, set(world.sent())) == (0, sent), found.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], [{"$set_once": {"plan": "cleo"}}]),
        (["--profiles", "missing"], [{"$set_once": {"plan": "cleo"}}]),
        (["--profiles", "latest"], [{"$set": {"plan": "cleo"}}]),
        (["--profiles", "off"], []),
    ],
    ids=lambda one: " ".join(map(str, one)) if isinstance(one, list) else "",
)
def test_an_option_says_what_becomes_of_profiles(
    world: World, options: list[str], said: list[dict[str, Any]]
) -> None:
    world.log("a.log", calls())
    assert world.run("a.log", *options).returncode == 0
    found = [{name: one[name] for name in ("$set", "$set_once") if name in one} for one in world.records("/engage")]
    assert found == said


def test_a_limit_counts_what_is_sent(world: World) -> None:
    nameless = track(3, "ada", "device-1")
    del nameless["event"]
    noise = [track(n, "ada", "device-1", event="Noise") for n in (1, 2)]
    kept = [track(n, "ada", "device-1") for n in (4, 5, 6)]
    other = page(7, "ada", "device-1", messageId="m-7")
    world.log("a.log", [*noise, nameless, {"type": "purchase"}, kept[0], kept[0], other, *kept[1:]])
    world.run("a.log", "--limit", "2", "--type", "track", DROP_EVENTS="Noise")
    assert set(world.sent()) == {"m-4", "m-5"}
