"""What was refused is found, shown, retried and discarded by command, beside a serving process and without one."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adapter import changes
from adapter.app import House
from adapter.cli import main
from adapter.config import Settings
from adapter.store import INTAKE, Put, Refusal, Report, Settled, Store, Wanted, beside, read_report
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS, IMPORT
from tests.conftest import raw, rows
from tests.endpoint import Answer, Endpoint, Got, stored
from tests.processes import Process, adapter, environment, serving, wait_until
from tests.test_merge import A
from tests.test_store import assert_sums_hold
from tests.world import World

ACCEPTED_MS = 1_774_000_000_000  # after what the messages say of their time
UPDATES = 1  # the line of a World


@pytest.fixture
def database_url(either_url: str) -> str:
    return either_url


def refuse(store: Store, body: bytes, endpoint: str = INTAKE, reason: str = "invalid") -> int:
    """Keep a message as refused; an entry of an endpoint takes the way of all entries."""
    refusal = Refusal(endpoint=endpoint, reason=reason, detail="so it is", accepted_at_ms=ACCEPTED_MS, body=body)
    store.put([], [refusal])
    return next(store.find_refused(Wanted())).number


def command(url: str, *arguments: str, **how: Any) -> Any:
    """Run `adapter refused` in this process."""
    return CliRunner().invoke(main, ["refused", *arguments], env={"DATABASE_URL": url}, **how)


def listed(url: str, *arguments: str) -> list[dict[str, Any]]:
    found = command(url, "list", "--json", *arguments)
    assert found.exit_code == 0, found.output
    rows: list[dict[str, Any]] = json.loads(found.stdout)
    return rows


def numbers(url: str, *arguments: str) -> list[int]:
    return [one["number"] for one in listed(url, *arguments)]


def report(url: str) -> Report:
    found = read_report(url)
    assert_sums_hold(found)
    return found


# Found again


def test_the_list_has_numbers_and_reasons_newest_first_and_no_message(database_url: str, store: Store) -> None:
    refuse(store, b'{"secret": "s3cret"}')
    refuse(store, b"{}", IMPORT, "no_id")
    found = command(database_url, "list")
    assert [line.split()[0] for line in found.output.splitlines()] == ["number", "2", "1"]
    assert "import    no_id" in found.output
    assert "s3cret" not in found.output
    assert set(listed(database_url)[0]) == {"number", "endpoint", "reason", "detail", "accepted_at", "refused_at"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [3, 2, 1]),
        (["--reason", "no_id"], [3, 2]),
        (["--endpoint", "engage"], [3]),
        (["--reason", "no_id", "--endpoint", "import"], [2]),
        (["--since", "1h"], [3, 2, 1]),
        (["--until", "1h"], []),
        (["--since", "2100-01-01"], []),
        (["--until", "2100-01-01T00:00Z"], [3, 2, 1]),
        (["--contains", "ada"], [3, 1]),
        (["--contains", "Zoë"], [2, 1]),
        (["--contains", "nobody"], []),
        (["--limit", "2"], [3, 2]),
    ],
)
def test_what_is_refused_is_found_by(
    options: list[str], expected: list[int], database_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapter.store.refused.PAGE", 1)
    refuse(store, '{"userId": "ada", "name": "Zoë", '.encode())
    refuse(store, rb'{"name": "Zo\u00eb"}', IMPORT, "no_id")
    refuse(store, b'{"userId": "ada"}', ENGAGE, "no_id")
    assert numbers(database_url, *options) == expected


def test_the_list_says_that_there_are_more(database_url: str, store: Store) -> None:
    refuse(store, b"1")
    refuse(store, b"2")
    assert "more than these 1" in command(database_url, "list", "--limit", "1").stderr
    assert command(database_url, "list", "--limit", "2").stderr == ""


def test_a_list_of_nothing_says_so_and_which_reasons_there_are(database_url: str, store: Store) -> None:
    nothing = "adapter: nothing is refused that was asked for"
    found = command(database_url, "list")
    assert (found.exit_code, found.stdout, found.stderr) == (0, "", f"{nothing}\n")
    refuse(store, b"1")
    refuse(store, b"2", IMPORT, "no_id")
    refuse(store, b"3", ENGAGE, "no_id")
    found = command(database_url, "list", "--reason", "no-id")
    assert (found.stdout, found.stderr) == ("", f"{nothing}; by reason there are: no_id 2, invalid 1\n")
    assert command(database_url, "list", "--reason", "no_id").stderr == ""


def test_a_message_cannot_command_the_terminal(database_url: str, store: Store) -> None:
    store.put([], [Refusal(endpoint=INTAKE, reason="r", detail="a\x1b[2J\nb", accepted_at_ms=5, body=b"\x1b[2J\xff")])
    for found in (command(database_url, "list"), command(database_url, "show", "1")):
        assert "\x1b" not in found.output
        assert "\\x1b[2J" in found.output
        assert "a\\x1b[2J\\nb" in found.output
    assert json.loads(command(database_url, "show", "1", "--json").output)["message"] == "\x1b[2J\\xff"


def test_one_is_shown_as_it_was_received_and_as_it_would_be_sent_now(
    database_url: str, store: Store, message
) -> None:
    body = raw(message(userId="ada"))
    refuse(store, body, IMPORT, "mapping_failed")
    refuse(store, raw(message(event=None)))
    found = json.loads(command(database_url, "show", "1", "--json").output)
    assert (found["reason"], found["message"]) == ("mapping_failed", body.decode())
    [request] = found["now"]["requests"]
    assert request["body"][0]["properties"]["$user_id"] == "ada"
    text = command(database_url, "show", "2").output
    assert raw(message(event=None)).decode() in text
    assert "missing; expected a string" in text


def test_what_would_become_of_it_depends_on_what_is_known_of_its_device(database_url: str, world: World) -> None:
    """Shown as if nothing were known, this alias would be sent."""
    world.track("login", A, "ada")
    world.alias(A, "bob")
    world.deliver()
    with beside(world.settings.database_url) as store:
        [kept] = store.find_refused(Wanted())
    found = command(database_url, "show", str(kept.number), "--json")
    now = json.loads(found.output)["now"]
    assert now["requests"] == []
    assert [one["reason"] for one in now["refused"]] == [kept.reason] == ["alias_of_anothers_device"]


def test_what_was_to_carry_held_traits_is_shown_with_them(database_url: str, world: World) -> None:
    world.identify(A, None, plan="pro")
    world.track("login", A, "ada")
    world.lines[0].work()
    [entry] = world.store.claim(ENGAGE, 10)
    world.store.settle([Settled(entry=entry, state="refused", reason="refused_by_mixpanel", detail="no")])
    found = json.loads(command(database_url, "show", "1", "--json").output)
    assert found["now"]["requests"][0]["body"][0]["$set_once"] == {"plan": "pro"}
    changes.retry(world.store, world.settings, numbers=[1], vouched=True)
    world.deliver()
    assert world.profile("ada")["plan"] == "pro"
    assert (world.report().held, world.report(ENGAGE).refused) == (0, {})


@pytest.mark.parametrize("arguments", [["show", "7"], ["retry", "7"], ["discard", "7", "--yes"]])
def test_a_number_that_none_has_is_said(arguments: list[str], database_url: str, store: Store) -> None:
    found = command(database_url, *arguments)
    assert (found.exit_code, found.stderr) == (2, "adapter: no refused message has the number 7\n")


def test_a_time_that_is_none_is_said(database_url: str, store: Store) -> None:
    found = command(database_url, "list", "--since", "tomorrow")
    assert (found.exit_code, "expected 2026-03-01" in found.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [[], ["1", "--all"], ["1", "--reason", "r"], ["--all", "--endpoint", "import"]])
@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_what_is_meant_must_be_said_in_one_way(verb: str, arguments: list[str], sqlite_url: str) -> None:
    with Store(sqlite_url) as store:
        refuse(store, b"{}")
    found = command(sqlite_url, verb, *arguments)
    assert (found.exit_code, "name messages by number" in found.stderr) == (2, True)
    assert numbers(sqlite_url) == [1]


# Retried


def test_a_retried_entry_is_the_same_entry_and_waits_behind_all_others(
    database_url: str, house: House, message
) -> None:
    refuse(house.store, raw(message(userId="ada")), IMPORT, "no_id")
    house.close()
    assert command(database_url, "retry", "1").output == "1 waiting to be sent\n"
    one = report(database_url).endpoints[IMPORT]
    assert (one.acknowledged, one.waiting, one.refused) == (1, 1, {})
    assert rows(house.settings.database_url, "SELECT accepted_at_ms, body FROM message") == [
        (ACCEPTED_MS, raw(message(userId="ada")))
    ]


def test_retried_entries_keep_their_order(database_url: str, message) -> None:
    with Store(database_url) as store:
        for at in (3, 1, 2):
            body = raw(message(messageId=f"m-{at}"))
            store.put([], [Refusal(endpoint=IMPORT, reason="r", detail="", accepted_at_ms=at, body=body)])
    command(database_url, "retry", "--all")
    assert [at for (at,) in rows(database_url, "SELECT accepted_at_ms FROM message ORDER BY id")] == [1, 2, 3]


def test_a_message_of_the_door_is_judged_anew_and_becomes_ordinary_entries(database_url: str, message) -> None:
    """As after an upgrade that mended the schema."""
    with Store(database_url) as store:
        refuse(store, raw(message("group", userId="ada")))
        refuse(store, raw(message(event=None)))
    found = command(database_url, "retry", "--reason", "invalid")
    assert (found.exit_code, found.output) == (1, "1 waiting to be sent, 1 refused again\n")
    endpoints = report(database_url).endpoints
    assert endpoints[INTAKE].nothing == {"taken_after_all": 1}
    assert endpoints[INTAKE].refused == {"invalid": 1}
    assert [endpoints[name].waiting for name in (IMPORT, ENGAGE, GROUPS)] == [1, 1, 1]
    assert numbers(database_url) == [3], "refused again under a number of its own"


def test_a_message_of_the_door_that_was_taken_meanwhile_is_not_taken_twice(
    database_url: str, house: House, app, message
) -> None:
    refuse(house.store, raw(message()))
    assert app.test_client().post("/webhook", json=message()).json["accepted"] == 1
    refuse(house.store, raw(message(event="Other")))
    house.close()
    assert command(database_url, "retry", "--all").output == "1 waiting to be sent, 1 taken in meanwhile\n"
    endpoints = report(database_url).endpoints
    assert endpoints[INTAKE].nothing == {"seen_before": 1, "taken_after_all": 1}
    assert endpoints[INTAKE].notes == {"same_id_other_content": 1}
    assert endpoints[IMPORT].waiting == 2


def test_what_was_retried_at_the_door_is_seen_before_when_segment_sends_it_again(
    database_url: str, house: House, app, message
) -> None:
    """Also if the retry is the first thing of the day."""
    refuse(house.store, raw(message()))
    assert changes.retry(house.store, house.settings, numbers=[1], vouched=False)["waiting"] == 1
    assert app.test_client().post("/webhook", json=message(messageId="m-2")).json["accepted"] == 1
    assert app.test_client().post("/webhook", json=message()).json["duplicates"] == 1


@pytest.mark.parametrize("kind", ["delete", "alias"])
def test_who_sent_a_delete_or_alias_to_the_door_nobody_knows_so_it_must_be_named(
    kind: str, database_url: str, message
) -> None:
    with Store(database_url) as store:
        refuse(store, raw(message(kind)), reason="unauthenticated")
    found = command(database_url, "retry", "--all")
    assert (found.exit_code, found.output) == (1, "1 refused again\n")
    assert [one["reason"] for one in listed(database_url)] == ["unauthenticated"]
    assert command(database_url, "retry", str(numbers(database_url)[0])).output == "1 waiting to be sent\n"


@pytest.mark.parametrize(
    ("reason", "asking"),
    [
        ("may_have_been_applied", ["--all", "--counters"]),
        ("may_have_been_applied", ["--reason", "may_have_been_applied", "--counters"]),
        ("destination_changed", ["--reason", "destination_changed"]),
        ("ends_the_process", ["--reason", "ends_the_process"]),
        ("may_have_been_applied", ["1"]),
        ("destination_changed", ["1"]),
        ("ends_the_process", ["1"]),
        ("damaged", ["--reason", "damaged"]),
    ],
)
def test_what_could_do_harm_is_retried_only_if_asked_for(
    reason: str, asking: list[str], database_url: str, message
) -> None:
    with Store(database_url) as store:
        refuse(store, raw(message(userId="ada")), COUNTERS, reason)
    ways = [["--all"], ["--endpoint", "counters"], ["--since", "1d"]]
    for way in ways + ([["--reason", reason]] if "--counters" in asking else []):
        found = command(database_url, "retry", *way)
        assert found.exit_code == 0
        assert f"1 left alone: {reason}: they" in found.stderr
        assert numbers(database_url) == [1]
    assert command(database_url, "retry", *asking).output == "1 waiting to be sent\n"
    assert numbers(database_url) == []


def test_an_entry_that_cannot_be_read_or_is_of_no_use_now_is_refused_or_ends_by_delivery(world: World) -> None:
    refuse(world.store, b"{broken", IMPORT, "mapping_failed")
    refuse(world.store, raw({"type": "track", "messageId": "m", "userId": "u", "event": "E"}), ENGAGE, "no_id")
    changes.retry(world.store, world.settings, numbers=[1, 2], vouched=True)
    world.deliver()
    assert world.report(IMPORT).refused == {"mapping_failed": 1}
    assert world.report(ENGAGE).waiting == 0


def test_of_two_who_judged_the_same_message_one_puts_it_back(
    database_url: str, store: Store, settings: Settings
) -> None:
    refuse(store, b"{}", IMPORT, "no_id")
    [kept] = store.find_refused(Wanted())
    judged = [(kept, Put(endpoint=IMPORT, lane=1, time_ms=1, body=b"{}"))]
    assert [store.put_back(judged), store.put_back(judged), store.put_back(judged * 2)] == [
        ["waiting"],
        ["gone"],
        ["gone", "gone"],
    ]
    assert report(database_url).endpoints[IMPORT].waiting == 1


def test_large_messages_are_put_back_a_few_at_a_time(
    store: Store, settings: Settings, message, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [raw(message(messageId=f"m-{n}", properties={"text": n * "x"})) for n in (10, 400, 10, 10)]
    for body in bodies:
        refuse(store, body, IMPORT, "no_id")
    monkeypatch.setattr(changes, "MAX_BYTES", 400)
    sizes: list[int] = []
    put_back = store.put_back

    def counting(judged: Any) -> list[str]:
        sizes.append(len(judged))
        return put_back(judged)

    monkeypatch.setattr(store, "put_back", counting)
    assert changes.retry(store, settings, numbers=[1, 2, 9, 3, 4], vouched=False) == {"waiting": 4, "gone": 1}
    assert sizes == [1, 1, 2]


# Let go


def test_discarding_asks_and_is_counted(database_url: str) -> None:
    with Store(database_url) as store:
        refuse(store, b"{}")
        refuse(store, b"{}", IMPORT, "no_id")
        refuse(store, b"{}", IMPORT, "other")
    assert command(database_url, "discard", "--all").exit_code == 1, "nobody said yes"
    assert len(numbers(database_url)) == 3
    assert "2 discarded" in command(database_url, "discard", "1", "2", "--yes").output
    endpoints = report(database_url).endpoints
    assert (endpoints[INTAKE].discarded, endpoints[IMPORT].discarded) == ({"invalid": 1}, {"no_id": 1})
    told = CliRunner().invoke(main, ["status"], env={"DATABASE_URL": database_url})
    assert "import: discarded 1: refused as no_id" in told.output
    assert command(database_url, "discard", "--endpoint", "import", input="y\n").stdout == "1 discarded\n"
    assert numbers(database_url) == []


def test_a_number_is_never_given_to_another(database_url: str, store: Store) -> None:
    """Whoever discards number 1 from a list of yesterday must not hit another."""
    refuse(store, b"{}")
    assert store.discard([1]) == 1
    assert refuse(store, b"{}") == 2
    assert (store.discard([1]), numbers(database_url)) == (0, [2])


def test_what_is_refused_too_long_expires_by_the_hourly_look_and_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("adapter.store.refused.PAGE", 2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 30 * 86_400 - 1)
    for n in range(5):
        refuse(world.store, b"%d" % n, (IMPORT, INTAKE)[n % 2], "no_id")
    monkeypatch.setattr(time, "time", lambda: now - 30 * 86_400 + 60)
    refuse(world.store, b"not yet")
    monkeypatch.undo()
    world.lines[UPDATES].work()
    assert [one.number for one in world.store.find_refused(Wanted())] == [6]
    found = world.report(IMPORT)
    assert (found.expired, found.expired_refused, found.refused) == (3, {"no_id": 3}, {})
    assert_sums_hold(read_report(world.settings.database_url))
    assert "let go" in caplog.text


def test_a_delete_takes_along_what_is_retried_while_it_waits(world: World) -> None:
    """By a retry it is behind the delete, and would begin the profile of a forgotten person anew."""
    for user in ("ada", "bob"):
        refuse(world.store, raw({"type": "identify", "messageId": user, "userId": user}), ENGAGE, "no_id")
    world.send("delete", userId="ada")
    world.identify(None, "ada", plan="new")
    changes.retry(world.store, world.settings, numbers=[1, 2], vouched=False)
    world.lines[UPDATES].work()
    world.deliver()
    assert (world.report(ENGAGE).erased, world.report(ENGAGE).refused) == (1, {})
    assert world.profile("ada") == {"plan": "new"}, "what came after the delete is sent"
    assert rows(world.settings.database_url, "SELECT count(*) FROM message") == [(0,)]


def test_a_delete_erases_what_is_retried_in_the_midst_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look for what is refused, and the commit."""
    refuse(world.store, raw({"type": "identify", "messageId": "1", "userId": "ada", "traits": {"a": 1}}), ENGAGE)
    world.send("delete", userId="ada")
    look_for = world.store.erasures.look_for

    def then_somebody_retries(settled: Any) -> Any:
        found = look_for(settled)
        if found is not None:
            changes.retry(world.store, world.settings, numbers=[1], vouched=True)
        return found

    monkeypatch.setattr(world.store.erasures, "look_for", then_somebody_retries)
    world.deliver()
    found = world.report(ENGAGE)
    assert (found.erased, found.waiting, found.refused, found.delivered) == (1, 0, {}, 1)
    assert world.project.profile("ada") is None


# Beside the process that serves


def picky(got: Got) -> Answer:
    """Refuse every event."""
    failed = [{"index": n, "message": "not today"} for n in range(len(got.records))]
    return Answer(400, {"code": 400, "error": "some data points failed", "failed_records": failed})


def remote(endpoint: Endpoint) -> dict[str, str]:
    return {"INGESTION_URL": endpoint.url, "MIXPANEL_TOKEN": "t"}


def fill(process: Process, count: int, message: Callable[..., Any]) -> None:
    for start in range(0, count, 1_000):
        batch = [message(messageId=f"m-{n}") for n in range(start, min(start + 1_000, count))]
        assert process.post(raw(batch)).status_code == 200


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'adapter.db'}"


def n_refused(folder: Path) -> int:
    return sum(report(url_of(folder)).endpoints[IMPORT].refused.values())


def test_a_retry_by_command_is_delivered_by_the_process_that_serves(
    tmp_path: Path, endpoint: Endpoint, message
) -> None:
    endpoint.default = picky
    with serving(tmp_path, **remote(endpoint)) as process:
        fill(process, 30, message)
        wait_until(lambda: n_refused(tmp_path) == 30)
        endpoint.default = stored
        told = adapter(tmp_path, "refused", "retry", "--reason", "refused_by_mixpanel").stdout
        assert told == "30 waiting to be sent\n"
        fill(process, 1, lambda messageId: message(messageId="meanwhile"))
        wait_until(lambda: report(url_of(tmp_path)).endpoints[IMPORT].delivered == 31)
        assert process.terminate() == 0
    assert not (tmp_path / "adapter.db.sock").exists()
    sent = [record["properties"]["$insert_id"] for got in endpoint.got for record in got.records]
    assert Counter(sent) == Counter([f"m-{n}" for n in range(30)] * 2 + ["meanwhile"])


def test_two_retries_at_once_put_nothing_back_twice(tmp_path: Path, endpoint: Endpoint, message) -> None:
    endpoint.default = picky
    with serving(tmp_path, **remote(endpoint)) as process:
        fill(process, 1_500, message)
        wait_until(lambda: n_refused(tmp_path) == 1_500)
        endpoint.default = stored
        both = [retrying(tmp_path), retrying(tmp_path)]
        told = [one.communicate(timeout=60)[0] for one in both]
        wait_until(lambda: report(url_of(tmp_path)).endpoints[IMPORT].delivered == 1_500)
    assert sum(int(text.split()[0]) for text in told if "waiting to be sent" in text) == 1_500
    assert report(url_of(tmp_path)).endpoints[IMPORT].acknowledged == 1_500


#: A command that kills a process, 0 for itself, in the middle of the second part of what it asks for.
KILLER = """
import os, signal, sys, threading
from adapter import changes
from adapter.cli import main
victim = int(sys.argv.pop(1)) or os.getpid()
make, parts = changes.make, []
def made(*args, **arguments):
    parts.append(arguments)
    if len(parts) == 2:
        threading.Timer(0.005, os.kill, (victim, signal.SIGKILL)).start()
    return make(*args, **arguments)
changes.make = made
main()
"""


def retrying(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(command or ("-m", "adapter")), "refused", "retry", "--all"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_kill_9_in_the_middle_of_a_retry_loses_and_doubles_nothing(
    tmp_path: Path, endpoint: Endpoint, message
) -> None:
    """Of the command, which is run again. Then of the process that serves; the command finishes alone."""
    endpoint.default = picky
    with serving(tmp_path, **remote(endpoint)) as process:
        fill(process, 2_000, message)
        wait_until(lambda: n_refused(tmp_path) == 2_000)
        endpoint.default = lambda _got: Answer(503)
        with retrying(tmp_path, "-c", KILLER, "0") as command:
            assert command.wait(60) == -signal.SIGKILL
        assert 1_000 <= n_refused(tmp_path) < 2_000
        with retrying(tmp_path, "-c", KILLER, str(process.popen.pid)) as command:
            assert command.wait(60) == 0
    ids = [json.loads(body)["messageId"] for (body,) in rows(url_of(tmp_path), "SELECT body FROM message")]
    assert sorted(ids) == sorted(f"m-{n}" for n in range(2_000))
    found = report(url_of(tmp_path)).endpoints[IMPORT]
    assert (found.acknowledged, found.waiting, found.refused) == (2_000, 2_000, {})


def test_a_store_in_use_by_who_answers_nothing_is_left_alone(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "WAIT_S", 0.2)
    with Store(sqlite_url) as store:
        refuse(store, b"{}")
        found = command(sqlite_url, "discard", "1", "--yes")
    assert (found.exit_code, "answers no command" in found.stderr) == (2, True)
    assert numbers(sqlite_url) == [1]
