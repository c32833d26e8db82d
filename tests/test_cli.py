"""The commands of the first hour, run as a user runs them."""

import json
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from adapter.app import House
from adapter.cli import main
from adapter.ingestion import Client, Outcome, Verdict
from adapter.intake import accept
from adapter.records import Options
from adapter.sandbox.project import Project
from adapter.store import INTAKE, Refusal, Store, read_report
from tests.conftest import on_sqlite, raw, rows
from tests.endpoint import Answer, Endpoint, stored
from tests.postgresql import Server
from tests.processes import adapter, environment, free_port, serving, wait_until
from tests.scenarios import Doors

REFUSED = {"code": 400, "error": "some data points in the request failed validation", "num_records_imported": 0}
MISSING_TIME = {
    "index": 0,
    "$insert_id": "adapter-check",
    "field": "properties.time",
    "message": "'properties.time' is invalid",
}
MISSING_ID = {
    "index": 0,
    "field": "properties.distinct_id",
    "message": "'properties.distinct_id' is invalid: must not be missing",
}

ALL_STORED = Answer(200, {"code": 200, "num_records_imported": 1, "status": "OK"})


def remote(endpoint: Endpoint) -> dict[str, str]:
    return {"INGESTION_URL": endpoint.url, "MIXPANEL_TOKEN": "canary-token"}


def turned_down(record: dict) -> Answer:
    return Answer(400, {**REFUSED, "failed_records": [record]})


def test_check_stores_nothing_and_says_that_all_is_well(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.answers.append(turned_down(MISSING_TIME))
    found = adapter(tmp_path, "check", **remote(endpoint))
    assert found.returncode == 0, found.stderr
    assert "takes the credentials" in found.stdout
    (got,) = endpoint.got
    assert "time" not in got.records[0]["properties"], "an event without a time cannot be stored"
    assert "canary" not in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(401, {"error": "Who is it"}), "credentials  WRONG; 401: Who is it; is it the token of this project"),
        (Answer(404, b"nothing here"), "404"),
        (Answer(301, b"", (("Location", "https://elsewhere.example/"),)), "301"),
        (Answer(200, b"<html>welcome to the hotel</html>"), "not Mixpanel's answer"),
        (ALL_STORED, "it took an event without a time, so it is not Mixpanel"),
    ],
)
def test_check_says_what_is_wrong(answer: Answer, text: str, tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.answers.append(answer)
    found = adapter(tmp_path, "check", "--probe", **remote(endpoint))
    assert found.returncode == 1
    assert text in found.stdout
    assert len(endpoint.got) == 1, "without good credentials there is no probe"


def test_check_says_that_nobody_is_there(tmp_path: Path) -> None:
    found = adapter(tmp_path, "check", INGESTION_URL=f"http://127.0.0.1:{free_port()}", MIXPANEL_TOKEN="t")
    assert found.returncode == 1
    assert "no answer" in found.stdout


@on_sqlite
@pytest.mark.parametrize(
    "variables",
    [
        {"INGESTION_URL": "http://127.0.0.1:9", "MIXPANEL_TOKEN": "t"},
        {"MIXPANEL_TOKEN": "rotated"},
        {"DATABASE_URL": "sqlite:////no/folder/adapter.db"},
        {"IDENTITY_API": "original"},
    ],
)
def test_check_says_of_the_store_what_a_start_would(variables: dict[str, str], house: House, tmp_path: Path) -> None:
    assert house.project is not None
    doors = Doors(house.project)
    doors.arrive(doors.event(d="device-1"))
    house.close()
    started = adapter(tmp_path, "serve", PORT=str(free_port()), **variables)
    found = adapter(tmp_path, "check", PORT=str(free_port()), **variables)
    assert (started.returncode, found.returncode) == (2, 1)
    assert found.stdout.splitlines()[1] == f"store        WRONG; {started.stderr.removeprefix('adapter: ').strip()}"


def test_check_looks_at_a_database_and_makes_no_tables(
    postgresql: Server, postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "post", lambda *_: Verdict(outcome=Outcome.DONE, refused={0: "no time"}))

    def said_of(url: str) -> str:
        found = CliRunner().invoke(main, ["check"], env={"DATABASE_URL": url})
        return found.stdout.splitlines()[1].removeprefix("store        ")

    for empty in (postgresql.url("postgres"), f"sqlite:///{tmp_path / 'adapter.db'}"):
        for _ in range(2):
            assert said_of(empty) == f"ok; none yet at {empty}"
    assert said_of(postgresql_url) == f"ok; {postgresql_url}"
    assert "WRONG; PostgreSQL at" in (missing := said_of(postgresql.url("nosuch")))
    assert 'database "nosuch" does not exist' in missing
    with Store(postgresql_url) as store:
        store.remember("schema", 4)
        assert said_of(postgresql_url).endswith("run `adapter migrate`")


EITHER = "is original or legacy, which a probe cannot tell apart"


@pytest.mark.parametrize(
    ("setting", "answer", "code", "texts"),
    [
        ("simplified", ALL_STORED, 0, ["is simplified; IDENTITY_API says simplified"]),
        ("original", ALL_STORED, 1, ["is simplified, but IDENTITY_API says original: people would not be joined"]),
        ("legacy", ALL_STORED, 1, ["is simplified, but IDENTITY_API says legacy: people would not be joined"]),
        ("simplified", turned_down(MISSING_ID), 1, [EITHER, "but IDENTITY_API says simplified"]),
        ("original", turned_down(MISSING_ID), 0, [EITHER, "IDENTITY_API says original"]),
        ("legacy", turned_down(MISSING_ID), 0, [EITHER, "IDENTITY_API says legacy"]),
        ("simplified", turned_down({**MISSING_TIME, "field": "", "message": "no luck"}), 1, ["cannot be told"]),
        ("simplified", Answer(503, {"error": "busy"}), 1, ["503: busy"]),
    ],
)
def test_the_probe_tells_the_id_system(
    setting: str, answer: Answer, code: int, texts: list[str], tmp_path: Path, endpoint: Endpoint
) -> None:
    endpoint.answers.extend([turned_down(MISSING_TIME), answer])
    found = adapter(tmp_path, "check", "--probe", **remote(endpoint), IDENTITY_API=setting)
    assert found.returncode == code, found.stdout
    assert all(text in found.stdout for text in texts), found.stdout
    assert "one event 'Adapter Probe' will now be stored" in found.stdout
    probe = endpoint.got[1].records[0]["properties"]
    assert {"$device_id", "$user_id", "time", "$insert_id"} == set(probe)


@pytest.mark.parametrize("system", ["simplified", "original", "legacy"])
def test_check_and_probe_against_the_sandbox(system: str, tmp_path: Path) -> None:
    with serving(tmp_path, IDENTITY_API=system) as process:
        found = adapter(tmp_path, "check", "--probe", PORT=str(process.port), IDENTITY_API=system)
    assert found.returncode == 0, found.stdout
    assert "takes the credentials" in found.stdout
    assert f"IDENTITY_API says {system}" in found.stdout


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://api.mixpanel.com", "US"),
        ("https://api-eu.mixpanel.com", "EU"),
        ("https://api-in.mixpanel.com", "India"),
        ("http://127.0.0.1:1", "127.0.0.1"),
        (None, "sandbox"),
    ],
)
def test_check_says_where_records_go_and_of_which_region_that_is(
    url: str | None, region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Verdict(outcome=Outcome.DONE, refused={0: "no time"})
    monkeypatch.setattr(Client, "post", lambda *_: refused)
    where = {"INGESTION_URL": url, "MIXPANEL_TOKEN": "t"} if url else {}
    found = CliRunner().invoke(main, ["check"], env={**where, "PORT": "8080"})
    address = url or "http://127.0.0.1:8080/sandbox"
    assert found.output.splitlines()[0] == f"settings     ok; records go to {address} ({region})"


def test_check_and_settings_name_what_is_misspelt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "post", lambda *_: Verdict(outcome=Outcome.DONE, refused={0: "no time"}))
    for command in ("check", "settings"):
        found = CliRunner().invoke(main, [command], env={"LINK_EVENTS": "no"})
        assert "LINK_EVENTS is no setting and does nothing: is LINK_EVENT meant?" in found.stderr


@pytest.mark.parametrize("form", ["object", "array", "lines", "batch"])
def test_map_reads_messages_in_every_form(form: str, tmp_path: Path, message) -> None:
    calls = [message(messageId="m-1"), message("page", messageId="m-2", name="Home")]
    text = {
        "object": json.dumps(calls[0]),
        "array": json.dumps(calls),
        "lines": "\n".join(map(json.dumps, calls)) + "\n\n",
        "batch": json.dumps({"batch": calls, "context": {"ip": "192.0.2.9"}}),
    }[form]
    found = adapter(tmp_path, "map", input=text)
    assert found.returncode == 0, found.stderr
    (request,) = json.loads(found.stdout)["requests"]
    assert request["url"].endswith("/import")
    assert request["params"] == {"strict": "1"}
    names = [record["event"] for record in request["body"]]
    assert names == ["Signed Up", "Viewed Home"][: 1 if form == "object" else 2]
    assert request["body"][0]["properties"]["ip"] == ("192.0.2.9" if form == "batch" else "0")


def test_map_shows_the_very_records_that_would_be_delivered(tmp_path: Path, endpoint: Endpoint, message) -> None:
    call = message(userId="user-1", properties={"plan": "free"})
    shown = json.loads(adapter(tmp_path, "map", input=json.dumps(call), **remote(endpoint)).stdout)
    with serving(tmp_path, **remote(endpoint)) as process:
        assert process.post(raw(call)).status_code == 200
        wait_until(lambda: bool(endpoint.got))
    (request,) = shown["requests"]
    assert endpoint.got[0].records == request["body"]
    assert request["url"] == f"{endpoint.url}/import"
    assert endpoint.got[0].headers["Content-Encoding"] == request["headers"]["Content-Encoding"]
    assert request["headers"]["Authorization"] == "Basic (token)", "named, not shown"


def test_map_names_what_would_be_refused_and_why(tmp_path: Path, message, endpoint: Endpoint) -> None:
    nobody = message("delete", userId="null")
    calls = [message(event=None), nobody, message("identify", userId="u"), message(), "{broken"]
    text = "\n".join(call if isinstance(call, str) else json.dumps(call) for call in calls)
    found = adapter(tmp_path, "map", input=text, **remote(endpoint))
    shown = json.loads(found.stdout)
    assert found.returncode == 1
    assert [(one["index"], one["reason"]) for one in shown["refused"]] == [
        (0, "invalid"),
        (1, "no_id"),
        (4, "malformed"),
    ]
    assert shown["refused"][0]["errors"] == {"event": ["missing; expected a string"]}
    assert [(one["index"], one["reason"]) for one in shown["nothing"]] == [(2, "no_traits")]
    assert len(shown["requests"]) == 1
    assert endpoint.got == []
    assert "canary" not in found.stdout


def test_map_takes_files_and_standard_input_alike(tmp_path: Path, message) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(json.dumps(message(messageId=name, event=name)))
    found = adapter(tmp_path, "map", "one", "-", "two", input=json.dumps(message(messageId="m", event="stdin")))
    (request,) = json.loads(found.stdout)["requests"]
    assert [record["event"] for record in request["body"]] == ["one", "stdin", "two"]


def test_map_names_the_line_of_what_cannot_be_read(tmp_path: Path, message) -> None:
    found = adapter(tmp_path, "map", input=f'\n{json.dumps(message())}\n{{"type": "a" x}}\n')
    [refused] = json.loads(found.stdout)["refused"]
    assert refused["index"] == 1
    assert refused["errors"]["message"][0].endswith(": line 3 column 14 (char 13)")


LATER = "2026-03-01T13:00:00Z"
HISTORY = [
    {"type": "identify", "anonymousId": "a", "traits": {"plan": "pro"}},
    {"type": "identify", "anonymousId": "a", "userId": "ada", "timestamp": LATER, "traits": {"n": 2}},
    {"type": "identify", "anonymousId": "a", "userId": "ada", "traits": {"n": 1}},
    {"type": "track", "event": "Read", "anonymousId": "a"},
    {"type": "alias", "previousId": "a", "userId": "bob"},
    {"type": "track", "event": "Bought", "anonymousId": "b", "userId": "bob"},
    {"type": "alias", "previousId": "bob", "userId": "ada"},
    {"type": "track", "event": "Read", "anonymousId": "a", "messageId": "m-3"},
    {"type": "delete", "userId": "cem"},
]


def test_map_of_a_history_shows_what_delivery_sends_of_it(tmp_path: Path, endpoint: Endpoint) -> None:
    calls = [
        {"messageId": f"m-{number}", "timestamp": "2026-03-01T12:00:00Z", **call}
        for number, call in enumerate(HISTORY)
    ]
    variables = {**remote(endpoint), "SENDERS": "1"}
    found = adapter(tmp_path, "map", input=json.dumps(calls), **variables)
    shown = json.loads(found.stdout)
    assert endpoint.got == []
    with serving(tmp_path, **variables) as process:
        assert process.post(raw(calls)).json()["duplicates"] == 1
        wait_until(lambda: not read_report(f"sqlite:///{tmp_path / 'adapter.db'}").waiting)
        refused = json.loads(adapter(tmp_path, "refused", "list", "--json", **variables).stdout)
        process.terminate()

    def sent(to: str, requests: list[tuple[str, list[dict]]]) -> list[list[dict]]:
        return [body for url, body in requests if url.endswith(to)]

    asked = [(one["url"], one["body"]) for one in shown["requests"]]
    got = [(f"{endpoint.url}{one.path}", one.records) for one in endpoint.got]
    assert sent("/import", asked) == sent("/import", got)
    updates = [record for body in sent("/engage", asked) for record in body]
    # How these are divided among requests depends on how fast events go out.
    delivered = [{**record, "$token": "(token)"} for body in sent("/engage", got) for record in body]
    assert sorted(map(json.dumps, updates)) == sorted(map(json.dumps, delivered))
    assert [one["$set"] for one in updates if "$set" in one] == [{"n": 1}, {"n": 2}], "by time"
    assert [one["$set_once"] for one in updates if "$set_once" in one] == [{"plan": "pro"}]
    assert [one["$distinct_id"] for one in updates if "$delete" in one] == ["cem"]
    events = [event["event"] for body in sent("/import", asked) for event in body]
    assert events == ["Identity Linked", "Read", "Bought"]
    assert found.returncode == 1
    assert [(one["index"], one["reason"]) for one in shown["refused"]] == [
        (4, "alias_of_anothers_device"),
        (6, "alias_of_a_user"),
    ]
    assert sorted(one["reason"] for one in refused) == ["alias_of_a_user", "alias_of_anothers_device"]
    assert {"index": 7, "endpoint": "intake", "reason": "seen_before"} in shown["nothing"]
    assert [one["index"] for one in shown["held"]] == [0]


def test_map_names_what_a_filter_would_keep_back(tmp_path: Path, message) -> None:
    found = adapter(tmp_path, "map", input=json.dumps(message("screen")), DROP_TYPES="screen")
    assert json.loads(found.stdout)["filtered"] == [{"index": 0, "endpoint": "import", "reason": "type"}]


@pytest.mark.parametrize("text", ["", "[]", '{"batch": 5}', '"x"'])
def test_map_of_what_is_no_message_fails_with_one_clear_line(text: str, tmp_path: Path) -> None:
    found = adapter(tmp_path, "map", input=text)
    assert found.returncode in (1, 2)
    assert "expected" in found.stdout + found.stderr
    assert "Traceback" not in found.stderr


@on_sqlite
def test_status_shows_every_state_beside_an_open_store(house: House, tmp_path: Path, message) -> None:
    calls = [message(messageId="a"), message(messageId="a"), message(event=None), message("group", userId="u")]
    accept([raw(call) for call in calls], house.store, Options.of(house.settings))
    found = json.loads(adapter(tmp_path, "status", "--json").stdout)["endpoints"]
    assert found["intake"]["refused"] == {"invalid": 1}
    assert found["intake"]["duplicates"] == 1
    assert {name: one["waiting"] for name, one in found.items()} == {
        "intake": 0,
        "import": 2,
        "engage": 1,
        "counters": 0,
        "groups": 1,
    }
    text = adapter(tmp_path, "status").stdout
    assert "intake: refused 1: invalid; the last: event: missing; expected a string" in text
    assert "import: oldest waiting since 20" in text


def test_commands_without_a_store_say_so(tmp_path: Path) -> None:
    for arguments in (["status"], ["funnel", "A", "B"]):
        found = adapter(tmp_path, *arguments)
        assert found.returncode == 2
        assert "Traceback" not in found.stderr
        assert "there is no" in found.stderr or "no sandbox" in found.stderr


@pytest.fixture
def read_and_buy(tmp_path: Path) -> None:
    """A sandbox beside an absent store: two read, one of them buys an hour later, and reads and buys again."""
    with closing(Project.open(tmp_path / "adapter-sandbox.db")) as project:
        doors = Doors(project)
        doors.arrive(doors.event("Read", slug="a", u="U1"), doors.event("Read", slug="b", u="U2"))
        doors.arrive(doors.event("Buy", u="U1", ago_s=-3600))
        doors.arrive(doors.event("Read", slug="b", u="U1", ago_s=-7200), doors.event("Buy", u="U1", ago_s=-7300))


def test_a_funnel_is_a_table_with_a_bar_for_each_step(read_and_buy: None, tmp_path: Path) -> None:
    found = adapter(tmp_path, "funnel", "Read", "Buy")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines() == [
        "          people   of all  of step   average    median",
        "1 Read         2   100.0%   100.0%                      " + 30 * "█",
        "2 Buy          1    50.0%    50.0%     1.0 h     1.0 h  " + 15 * "█",
    ]


def test_a_funnel_divides_by_a_property_and_counts_totals(read_and_buy: None, tmp_path: Path) -> None:
    found = adapter(tmp_path, "funnel", "Read", "Buy", "--by", "slug", "--totals")
    lines = [line.split() for line in found.stdout.splitlines()]
    assert lines[0][0] == "entries"
    assert [line[:3] for line in lines] == [
        ["entries", "of", "all"],
        ["1", "Read", "3"],
        ["2", "Buy", "2"],
        [],
        ["slug", "=", "b"],
        ["1", "Read", "2"],
        ["2", "Buy", "1"],
        [],
        ["slug", "=", "a"],
        ["1", "Read", "1"],
        ["2", "Buy", "1"],
    ]


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ([], [2, 1]),
        (["--window", "30m"], [2, 0]),
        (["--window", "30m", "--optimized"], [2, 1]),
        (["--totals"], [3, 2]),
        (["--from", "2026-09-20"], [2, 1]),
        (["--to", "2026-09-19"], [0, 0]),
    ],
)
def test_a_funnel_in_json_has_what_the_options_ask_for(
    options: list[str], counts: list[int], read_and_buy: None, tmp_path: Path
) -> None:
    place = {"DATABASE_URL": f"sqlite:///{tmp_path / 'adapter.db'}"}
    found = CliRunner().invoke(main, ["funnel", "Read", "Buy", "--json", *options], env=place)
    assert [step["count"] for step in json.loads(found.output)["steps"]] == counts


def test_a_funnel_of_what_nobody_did_says_what_no_event_is_called(read_and_buy: None, tmp_path: Path) -> None:
    place = {"DATABASE_URL": f"sqlite:///{tmp_path / 'adapter.db'}"}
    found = CliRunner().invoke(main, ["funnel", "Raed[slug=a]", "Buy", "Raed"], env=place)
    assert (found.exit_code, found.stderr) == (0, 'adapter: no event is called "Raed"\n')


def test_where_events_go_elsewhere_a_funnel_says_that_the_sandbox_has_none_of_them(
    read_and_buy: None, tmp_path: Path
) -> None:
    place = {"DATABASE_URL": f"sqlite:///{tmp_path / 'adapter.db'}", "INGESTION_URL": "https://api.mixpanel.com"}
    found = CliRunner().invoke(main, ["funnel", "Read", "Buy"], env=place)
    assert found.exit_code == 0
    assert found.stderr == "adapter: this reads the sandbox alone; events went to INGESTION_URL\n"


@pytest.mark.parametrize("steps", [["A"], ["A[", "B"], ["A[x]", "B"]])
def test_a_funnel_that_is_none_says_what_was_expected(steps: list[str], tmp_path: Path) -> None:
    found = adapter(tmp_path, "funnel", *steps)
    assert found.returncode == 2
    assert "expected EVENT" in found.stderr or "needs two or more steps" in found.stderr


@on_sqlite
def test_status_and_settings_work_where_serve_would_not_start(house: House, tmp_path: Path) -> None:
    assert adapter(tmp_path, "status", HOST="0.0.0.0").returncode == 0  # noqa: S104 it binds nothing
    found = adapter(tmp_path, "settings", PORT="http", LINK_EVENT="Linked")
    assert (found.returncode, found.stderr) == (0, "adapter: PORT: expected a port from 1 to 65535\n")
    assert "LINK_EVENT=Linked" in found.stdout


@on_sqlite
def test_what_waited_for_another_project_is_refused_and_said(house: House, tmp_path: Path, message) -> None:
    accept([raw(message())], house.store, Options.of(house.settings))
    house.close()
    found = adapter(tmp_path, "destination", "new", MIXPANEL_TOKEN="other")
    assert "; refused and kept of what waited for the one before: 1" in found.stdout
    status = json.loads(adapter(tmp_path, "status", "--json").stdout)["endpoints"]["import"]
    assert (status["waiting"], status["refused"]) == (0, {"destination_changed": 1})


@on_sqlite
@pytest.mark.parametrize(
    ("variables", "taken"),
    [
        ({}, "sandbox (MIXPANEL_TOKEN is not set, IDENTITY_API is simplified)"),
        (
            {"INGESTION_URL": "https://mp.example", "MIXPANEL_TOKEN": "canary", "IDENTITY_API": "original"},
            "mp.example (MIXPANEL_TOKEN is set, IDENTITY_API is original)",
        ),
    ],
)
def test_a_destination_says_what_it_took_and_shows_no_token(
    variables: dict[str, str], taken: str, house: House, tmp_path: Path
) -> None:
    house.close()
    assert adapter(tmp_path, "destination", "same", **variables).stdout == f"the store now belongs to {taken}\n"


@on_sqlite
def test_a_changed_token_is_named_as_what_changed(house: House, tmp_path: Path) -> None:
    house.close()
    found = adapter(tmp_path, "serve", MIXPANEL_TOKEN="rotated", PORT=str(free_port()))
    assert (found.returncode, found.stderr.split(":")[1]) == (2, " MIXPANEL_TOKEN")


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("127.0.0.1", "webhook http://127.0.0.1:%d/webhook -> "),
        ("0.0.0.0", "webhook http://127.0.0.1:%d/webhook, listening on 0.0.0.0, -> "),  # noqa: S104 for a moment
    ],
)
def test_the_start_says_where_it_listens(
    host: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("granian.Granian", lambda *_, **__: SimpleNamespace(serve=lambda: None))
    monkeypatch.setattr("adapter.logs.configure", lambda: None)
    port = free_port()
    variables = {"INGESTION_URL": "sandbox", "MIXPANEL_TOKEN": "t", "WEBHOOK_TOKEN": "w", "HOST": host}
    there = {**variables, "PORT": str(port), "DATABASE_URL": f"sqlite:///{tmp_path / 'adapter.db'}"}
    assert CliRunner().invoke(main, ["serve"], env=there).stderr.startswith(told % port)


def test_a_terminal_without_the_letters_gets_others(read_and_buy: None, tmp_path: Path) -> None:
    place = {"DATABASE_URL": f"sqlite:///{tmp_path / 'adapter.db'}"}
    found = CliRunner(charset="latin-1").invoke(main, ["funnel", "Read", "Ж"], env=place)
    assert found.exit_code == 0, found.exception
    assert found.stdout.splitlines()[1].endswith("  " + 30 * "#")
    assert found.stdout.splitlines()[2].startswith(r"2 \u0416 ")


def test_output_that_the_disk_has_no_room_for_ends_in_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "adapter", "settings"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(tmp_path),
            text=True,
            timeout=60,
        )
    assert (found.returncode, found.stderr) == (2, "adapter: No space left on device\n")


def test_a_setting_that_cannot_be_is_named(tmp_path: Path) -> None:
    found = adapter(tmp_path, "serve", PORT="http", SIGNATURE_ONLY="maybe")
    assert found.returncode == 2
    assert "PORT: expected a port" in found.stderr
    assert "SIGNATURE_ONLY: expected yes or no" in found.stderr


@on_sqlite
def test_an_id_is_told_beside_an_open_store(tmp_path: Path, house: House, message) -> None:
    accept([raw(message("identify", traits={"plan": "s3cret"}))], house.store, Options.of(house.settings))
    for line in house.delivery._threads:
        line.work()
    told = adapter(tmp_path, "identity", "device-1", "nobody")
    assert told.returncode == 0
    assert "With device device-1 the traits plan waits until" in told.stdout
    assert "Nothing is known of nobody" in told.stdout
    assert "s3cret" not in told.stdout
    [found] = json.loads(adapter(tmp_path, "identity", "device-1", "--json").stdout)
    assert found["held"][0]["traits"] == ["plan"]


@pytest.mark.parametrize("group", [[], ["refused"], ["seen"]], ids=str)
def test_the_help_of_80_columns_cuts_no_summary_short(group: list[str]) -> None:
    told = CliRunner().invoke(main, [*group, "--help"], terminal_width=80).output.partition("Commands:\n")[2]
    assert [line for line in told.splitlines() if "..." in line] == []


def test_a_report_needs_a_log(tmp_path: Path) -> None:
    assert "LOG" in adapter(tmp_path, "identity", "report").stderr


def test_a_replay_is_taken_once_what_was_seen_is_forgotten(tmp_path: Path, message) -> None:
    with serving(tmp_path) as process:
        first = process.post(raw(message()))
        assert (first.json()["accepted"], process.post(raw(message())).json()["duplicates"]) == (1, 1)
        told = adapter(tmp_path, "seen", "forget", "--since", "1h")
        assert told.stdout == "messages forgotten, and taken again if they come again: 1\n"
        assert process.post(raw(message())).json()["accepted"] == 1
        process.terminate()
    assert adapter(tmp_path, "seen", "forget", "--since", "2026-01-01").stdout == told.stdout, "alone, too"
    assert adapter(tmp_path, "seen", "forget", "--since", "yesterday").returncode == 2


def test_the_webhook_answers_503_while_too_much_waits_and_takes_again_when_it_has_drained(
    tmp_path: Path, endpoint: Endpoint, message
) -> None:
    endpoint.default = Answer(status=503)
    where = {"INGESTION_URL": endpoint.url, "MIXPANEL_TOKEN": "token", "MAX_WAITING": "3"}
    with serving(tmp_path, **where) as process:
        assert process.post(raw([message(messageId=f"m-{n}") for n in range(3)])).status_code == 200
        time.sleep(1.1)  # it looks once a second
        turned_away = process.post(raw(message(messageId="m-3")))
        assert (turned_away.status_code, turned_away.headers["Retry-After"]) == (503, "30")
        endpoint.default = stored
        wait_until(lambda: process.post(raw(message(messageId="m-3"))).status_code == 200)
        process.terminate()


def test_the_destination_is_not_changed_under_processes_that_deliver(tmp_path: Path, postgresql_url: str) -> None:
    where = {"DATABASE_URL": postgresql_url}
    with Store(postgresql_url) as store:
        store.leases.renew()
        told = adapter(tmp_path, "destination", "new", **where)
        assert (told.returncode, "processes that deliver from this store: 1;" in told.stderr) == (2, True)
    assert adapter(tmp_path, "destination", "new", **where).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["migrate"],
        ["funnel", "A", "B"],
        ["identity", "ada"],
        ["refused", "list"],
        ["refused", "discard", "1", "--yes"],
    ],
)
def test_no_command_takes_the_default_store_for_one_that_is_misspelt(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store("sqlite:///adapter.db") as store:
        store.put([], [Refusal(endpoint=INTAKE, reason="invalid", detail="", accepted_at_ms=1, body=b"{}")])
    found = CliRunner().invoke(main, arguments, env={"DATABASE_URL": "postgress://host/name"})
    assert (found.exit_code, rows("sqlite:///adapter.db", "SELECT count(*) FROM refusal")) == (2, [(1,)])
    assert "DATABASE_URL: expected" in found.output
