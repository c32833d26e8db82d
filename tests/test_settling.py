"""What becomes of three entries by each answer an endpoint may give (design 3.9), from the store to its books."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adapter import ingestion, rounds, wire
from adapter.errors import StoreUnavailable
from adapter.logs import LineFormatter, Seldom
from schemas.mixpanel import ENGAGE, GROUPS, IMPORT
from tests.endpoint import Answer, Endpoint, Got, Script, stored
from tests.test_delivery import House, call, names_of, work_until_nothing_waits

FAULT_WAIT_S = ingestion.FAULT_WAIT_S
EVERYWHERE = (IMPORT, ENGAGE, GROUPS)
#: /groups is /engage by another name, as far as an answer without a word goes.
EITHER = (IMPORT, ENGAGE)
PAGE = b"<!doctype html><h1>Busy</h1>"


@pytest.fixture
def house(database_url: str, endpoint: Endpoint) -> Iterator[House]:
    house = House(database_url, endpoint)
    yield house
    house.close()


class Books:
    """What an endpoint has written down: events once each by Mixpanel's own rule, updates as they came."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self._seen: set[tuple[Any, ...]] = set()

    def enter(self, got: Got) -> None:
        for name, record in zip(names_of(got), got.records, strict=True):
            own = record.get("properties", {})
            key = (name, own.get("time"), own.get("distinct_id"), own.get("$insert_id"))
            if got.path != "/import" or key not in self._seen:
                self.kept.append(name)
            self._seen.add(key)

    def good(self, got: Got) -> Answer:
        self.enter(got)
        return stored(got)

    def after_entering(self, answer: Answer) -> Script:
        def script(got: Got) -> Answer:
            self.enter(got)
            return answer

        return script

    def naming(self, bad: str, name: Callable[[int, dict[str, Any]], Any]) -> Script:
        """Enter all but the bad ones, and name these in `failed_records` in a way of its own."""

        def script(got: Got) -> Answer:
            names = names_of(got)
            failed = [name(n, record) for n, record in enumerate(got.records) if names[n] == bad]
            good = Got(got.path, {}, {}, [record for n, record in enumerate(got.records) if names[n] != bad])
            self.enter(good)
            if not failed:
                return stored(got)
            body = {"code": 400, "error": "some", "failed_records": failed, "num_records_imported": len(good.records)}
            return Answer(400, body)

        return script

    def spoilt_by(self, bad: str, answer: Callable[[Got], Answer]) -> Script:
        """Enter nothing of a batch with a bad one in it, and do not say which."""
        return lambda got: answer(got) if bad in names_of(got) else self.good(got)


@pytest.fixture
def books(endpoint: Endpoint) -> Books:
    books = Books()
    endpoint.default = books.good
    return books


def named(n: int, record: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"index": n, "field": "properties.time", "message": "must be seconds since epoch", **fields}


def insert_id(record: dict[str, Any]) -> str:
    return str(record["properties"]["$insert_id"])


NAMED = {
    "objects with $insert_id": lambda n, record: named(n, record, **{"$insert_id": insert_id(record)}),
    "objects with insert_id": lambda n, record: named(n, record, insert_id=insert_id(record)),
    "objects with no insert id": named,
    "objects with the insert id of another": lambda n, record: named(n, record, insert_id="id-a"),
    "objects with an index alone": lambda n, record: {"index": n},
    "objects with a wrong index": lambda n, record: named(n + 100, record),
    "objects with no index": lambda n, record: {"insert_id": insert_id(record), "message": "bad"},
    "strings": lambda n, record: "identity events are not allowed",
}


@pytest.mark.parametrize("how", NAMED)
def test_whatever_way_a_400_names_the_bad_event_it_is_refused_and_its_neighbours_are_done(
    house: House, books: Books, how: str
) -> None:
    house.endpoint.default = books.naming("b", NAMED[how])
    house.take(*(call(IMPORT, name) for name in "abc"))
    work_until_nothing_waits(house.line())
    assert books.kept == ["a", "c"]
    assert house.refused_names(IMPORT) == ["b"]
    report = house.report()
    assert (report.delivered, report.refused) == (2, {"refused_by_mixpanel": 1})


UNNAMED = {
    "400 with no detail": (EVERYWHERE, Answer(400, {"code": 400, "error": "bad"})),
    "400 with an empty list": (EVERYWHERE, Answer(400, {"failed_records": [], "num_records_imported": 0})),
    "400 with no JSON": (EVERYWHERE, Answer(400, PAGE)),
    "400 with half its JSON": (EVERYWHERE, Answer(400, b'{"failed_records": [{"index": 1')),
    "413": (EVERYWHERE, Answer(413, {"error": "request exceeds max limit of 2097152 bytes"})),
    "200 with an error": ((ENGAGE, GROUPS), Answer(200, {"status": 0, "error": "some data objects were not valid"})),
    "200 with 0": ((ENGAGE, GROUPS), Answer(200, b"0")),
    "200 that counts too few": ((ENGAGE, GROUPS), Answer(200, {"status": 1, "num_good_events": 0})),
}


@pytest.mark.parametrize(("how", "to"), [(how, to) for how, (at, _) in UNNAMED.items() for to in at])
def test_a_bad_record_that_no_answer_names_is_found_and_its_neighbours_are_done(
    house: House, books: Books, how: str, to: str
) -> None:
    house.endpoint.default = books.spoilt_by("b", lambda _got: UNNAMED[how][1])
    house.take(*(call(to, name) for name in "abc"))
    work_until_nothing_waits(house.line(to))
    assert books.kept == ["a", "c"]
    assert house.refused_names(to) == ["b"]
    assert house.report(to).refused == {"refused_by_mixpanel": 1}


def of_a_strict_endpoint(got: Got) -> Answer:
    """Updates that are good are done, also beside one that is not; a strict answer counts them."""
    return Answer(body={"status": 1, "error": None, "num_good_events": sum(name != "b" for name in names_of(got))})


@pytest.mark.parametrize("to", [ENGAGE, GROUPS])
def test_the_one_bad_update_is_found_where_its_neighbours_are_done_beside_it(
    house: House, books: Books, to: str
) -> None:
    def script(got: Got) -> Answer:
        books.kept += [name for name in names_of(got) if name != "b"]
        return of_a_strict_endpoint(got)

    house.endpoint.default = script
    house.take(*(call(to, name) for name in "abc"))
    work_until_nothing_waits(house.line(to))
    assert set(books.kept) == {"a", "c"}
    assert house.refused_names(to) == ["b"]
    assert house.report(to).delivered == 2


GOOD_BODY = b'{"code": 200, "num_records_imported": 3, "status": 1}'


#: What happens once, and whether the records were stored all the same.
PASSING = {
    "429": (Answer(429, {"error": "slow down"}), False),
    "429 with Retry-After in seconds": (Answer(429, None, (("Retry-After", "30"),)), False),
    "429 with Retry-After as a date": (Answer(429, None, (("Retry-After", "Sun, 01 Mar 2099 12:00:00 GMT"),)), False),
    "408": (Answer(408), False),
    "500 that stored it": (Answer(500, PAGE), True),
    "502": (Answer(502, PAGE), False),
    "503 with Retry-After": (Answer(503, PAGE, (("Retry-After", "30"),)), False),
    "504 that stored it": (Answer(504), True),
    "hung up before it stored it": (Answer(0), False),
    "hung up after it stored it": (Answer(0), True),
    "reset in the head of its answer": (Answer(200, GOOD_BODY, reset_after=0), True),
    "reset in the middle of its answer": (Answer(200, GOOD_BODY, reset_after=20), True),
    "slow-loris": (Answer(200, GOOD_BODY, drips=True), True),
    "500 in drips": (Answer(500, GOOD_BODY, drips=True), False),
}
WAITS_S = {
    "429 with Retry-After in seconds": 30.0,
    "429 with Retry-After as a date": ingestion.MAX_RETRY_AFTER_S,
    "503 with Retry-After": 30.0,
}


@pytest.mark.parametrize("to", EITHER)
@pytest.mark.parametrize("how", PASSING)
def test_what_passes_is_waited_for_and_changes_nothing_in_the_end(
    house: House, books: Books, monkeypatch: pytest.MonkeyPatch, how: str, to: str
) -> None:
    monkeypatch.setattr(wire, "DEADLINE_S", 0.3)
    answer, stores = PASSING[how]
    house.endpoint.answers.append(books.after_entering(answer) if stores else answer)
    house.take(*(call(to, name) for name in "abc"))
    line = house.line(to)
    assert (line.work() or 0.0) >= WAITS_S.get(how, 2.0)
    report = house.report(to)
    assert (report.waiting, report.delivered, report.refused) == (3, 0, {})
    assert report.last_answer is not None
    assert report.last_answer["fault"] is None
    monkeypatch.undo()
    house.clock.now_s += WAITS_S.get(how, 0.0) + 5.0  # and the jitter
    work_until_nothing_waits(line)
    assert house.report(to).delivered == 3
    assert books.kept == (["a", "b", "c"] * 2 if stores and to != IMPORT else ["a", "b", "c"])


#: What a person must look at: each is waited for, and said on every surface.
FAULTS = {
    **{str(status): Answer(status, {"error": "no"}) for status in (401, 403, 404, 405)},
    "200 that is no JSON": Answer(200, PAGE),
    "200 with half its JSON": Answer(200, b'{"code": 200, "num_rec'),
    "200 that is empty": Answer(200, b""),
    "201": Answer(201, GOOD_BODY),
}


@pytest.mark.parametrize("to", EITHER)
@pytest.mark.parametrize("how", FAULTS)
def test_a_fault_is_shown_until_it_is_mended_and_refuses_nothing(
    house: House, books: Books, how: str, to: str
) -> None:
    house.endpoint.answers.append(FAULTS[how])
    house.take(*(call(to, name) for name in "abc"))
    line = house.line(to)
    assert (line.work() or 0.0) >= FAULT_WAIT_S
    assert len(house.endpoint.got) == 1, "it is not halved"
    report = house.report(to)
    assert (report.waiting, report.refused) == (3, {})
    assert report.last_answer is not None
    assert report.last_answer["fault"]
    work_until_nothing_waits(line)
    assert books.kept == ["a", "b", "c"]
    report = house.report(to)
    assert report.last_answer is not None
    assert (report.delivered, report.last_answer["fault"]) == (3, None)


@pytest.mark.parametrize("to", EVERYWHERE)
@pytest.mark.parametrize("status", [301, 307])
def test_a_redirect_is_a_fault_and_whom_it_names_hears_nothing(
    house: House, books: Books, status: int, to: str
) -> None:
    other = Endpoint()
    house.endpoint.answers.append(Answer(status, b"", (("Location", f"{other.url}/{to}"),)))
    house.take(call(to, "a"))
    line = house.line(to)
    assert (line.work() or 0.0) >= FAULT_WAIT_S
    work_until_nothing_waits(line)
    other.close()
    assert (other.got, books.kept, house.report(to).delivered) == ([], ["a"], 1)


@pytest.mark.parametrize("to", EVERYWHERE)
def test_a_time_out_before_or_after_it_was_stored_ends_in_one_effect(
    house: House, books: Books, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.setattr(wire, "READ_TIMEOUT_S", 0.1)

    def silent(got: Got) -> Answer:
        time.sleep(0.3)
        return Answer(0)

    def silent_but_stored(got: Got) -> Answer:
        books.enter(got)
        return silent(got)

    house.endpoint.answers += [silent, silent_but_stored]
    house.take(*(call(to, name) for name in "abc"))
    line = house.line(to)
    assert [line.work() for _ in range(2)] == [3.0, 5.0]
    monkeypatch.undo()
    work_until_nothing_waits(line)
    assert books.kept[-3:] == ["a", "b", "c"]
    assert len(books.kept) == (3 if to == IMPORT else 6), "an event is one, an update the same twice"
    assert house.report(to).delivered == 3


@pytest.mark.parametrize("status", [200, 400, 401, 413, 429, 503])
@pytest.mark.parametrize("to", EITHER)
def test_what_an_endpoint_quotes_of_a_record_or_makes_up_does_not_reach_the_log(
    house: House, books: Books, caplog: pytest.LogCaptureFixture, status: int, to: str
) -> None:
    said = "canary-1 tok-3f9a\n2026-11-23 ERROR forged \x1b[31m \u2028 \x85"
    named_bad = {"index": 1, "message": said, "field": said, "insert_id": said}
    words = {"error": said, "status": 0, "failed_records": [named_bad] if status == 400 else []}
    house.endpoint.default = lambda got: Answer(status, words)
    house.take(*(call(to, f"canary-{name}") for name in "abc"))
    with caplog.at_level(logging.DEBUG):
        line = house.line(to)
        for _ in range(3):
            line.work()
    lines = [LineFormatter().format(record) for record in caplog.records if record.name.startswith("adapter")]
    assert lines
    for one in lines:
        assert "canary" not in one
        assert "tok-3f9a" not in one
        assert "forged" not in one


def test_a_line_of_the_log_is_one_line_whatever_is_in_it() -> None:
    forged = "a\r\n2026 ERROR b\x0b\x0c\x1b[31m\x85\u2028\u2029\0"
    record = logging.LogRecord(forged, logging.INFO, "", 0, forged, (), None)
    record.detail = forged
    record.__dict__[f"name {forged}"] = forged
    formatted = LineFormatter().format(record)
    assert formatted.isprintable()
    assert len(formatted.splitlines()) == 1


def test_a_store_that_is_away_is_said_once_for_all_threads_that_wait_for_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "away", Seldom(rounds.logger))
    monkeypatch.setattr("adapter.logs.SAID_EVERY_S", 3600.0)

    class Waits(rounds.Rounds):
        def work(self) -> float | None:
            self.stopping.set()
            raise StoreUnavailable("nobody listens there")

        def hang_up(self) -> None: ...

        def close(self) -> None: ...

    for name in ("import", "engage", "groups"):
        Waits(name).run()
    assert [record.detail for record in caplog.records] == ["nobody listens there"]
    assert rounds.away.counts == {"away": 3}


def test_the_log_tells_the_time_as_the_commands_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        record = logging.LogRecord("adapter", logging.INFO, "", 0, "said", (), None)
        record.created, record.msecs = 1_772_323_200.5, 500.0
        assert LineFormatter().format(record) == "2026-03-01T00:00:00.500Z INFO adapter said"
    finally:
        monkeypatch.undo()
        time.tzset()
