"""From the store to the endpoint: what is sent, and what becomes of it by each answer."""

import dataclasses
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from adapter import ingestion, intake, mapping, rounds, wire
from adapter.config import Settings
from adapter.delivery import FLOOR_EVERY_S, Delivery, Line
from adapter.errors import StoreUnavailable
from adapter.pace import Limits, Pace
from adapter.parcels import Parcel, batches
from adapter.records import Options
from adapter.rounds import backoff_s
from adapter.sending import MAX_TURNED_DOWN, TRUST_S
from adapter.store import Arrival, EndpointReport, Entry, Store, read_report
from adapter.store.tables import lease, worker
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS, IMPORT
from tests.conftest import on_both, raw, rows
from tests.endpoint import Answer, Endpoint, Got, stored
from tests.processes import wait_until

ROOT = Path(__file__).parent.parent
FAULT_WAIT_S = ingestion.FAULT_WAIT_S
Uniform = Callable[[float, float], float]
JITTER_S = 1.0


def shortest(low: float, _high: float) -> float:
    """The shortest jitter, so that what `work` returns is a round number."""
    return low


class Recorder(ingestion.Client):
    """A client that keeps the bodies it posts."""

    def __init__(self, settings: Settings, base_url: str) -> None:
        super().__init__(settings, base_url)
        self.bodies: list[bytes] = []

    def post(self, request: ingestion.Request, n_records: int) -> ingestion.Verdict:
        self.bodies.append(request.body)
        return super().post(request, n_records)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Tireless(Pace):
    """Of an endpoint whose circuit never opens, so that who works a line by hand need not wait."""

    is_open = False


class House:
    """A store, an endpoint, and lines between them that are worked by hand."""

    def __init__(self, database_url: str, endpoint: Endpoint) -> None:
        self.database_url = database_url
        self.endpoint = endpoint
        self.settings = Settings(database_url=database_url, ingestion_url=endpoint.url, mixpanel_token="tok-3f9a")
        self.clock = Clock()
        self.reopen(Store(database_url))
        self._clients = ExitStack()

    def close(self) -> None:
        self._clients.close()
        self.store.close()

    def reopen(self, store: Store | None = None) -> None:
        """As after a restart."""
        if store is None:
            self.store.close()
        self.store = store or Store(self.database_url)
        self.paces: dict[str, Pace] = {}
        self.store.leases.renew()

    def line(self, to: str = IMPORT, part: int = 0, parts: int = 1, uniform: Uniform = shortest) -> Line:
        client = Recorder(self.settings, self.endpoint.url)
        self._clients.callback(client.close)
        pace = self.paces.setdefault(to, Tireless(Limits(), clock=self.clock))
        how = {"uniform": uniform, "clock": self.clock}
        return Line(self.store, to, self.settings, client, pace, part=part, parts=parts, **how)

    def take(self, *messages: dict[str, Any]) -> None:
        receipt = intake.accept([raw(message) for message in messages], self.store, Options.of(self.settings))
        assert (receipt.accepted, receipt.rejected) == (len(messages), ())

    def report(self, to: str = IMPORT) -> EndpointReport:
        one = read_report(self.database_url).endpoints[to]
        ended = one.delivered + sum(sum(counts.values()) for counts in (one.refused, one.nothing, one.filtered))
        assert one.acknowledged == one.waiting + ended
        return one

    def waiting(self, to: str = IMPORT) -> int:
        return read_report(self.database_url).endpoints[to].waiting

    def refusals(self) -> list[tuple[Any, ...]]:
        return rows(self.database_url, "SELECT reason, detail, body FROM refusal ORDER BY id")

    def refused_names(self, to: str) -> list[str]:
        return [name_of(to, json.loads(body)) for _, _, body in self.refusals()]


@pytest.fixture
def house(database_url: str, endpoint: Endpoint) -> Iterator[House]:
    house = House(database_url, endpoint)
    yield house
    house.close()


def call(to: str, name: str, **fields: Any) -> dict[str, Any]:
    """A message that makes one record at an endpoint, with a name to know it by."""
    base = {"messageId": f"id-{name}", "userId": "user-1", "timestamp": "2026-03-01T12:00:00Z"}
    return {
        IMPORT: {"type": "track", **base, "event": name},
        ENGAGE: {"type": "identify", **base, "userId": name, "traits": {"plan": "free"}},
        GROUPS: {"type": "group", **base, "groupId": name, "traits": {"plan": "free"}},
    }[to] | fields


def name_of(to: str, record: dict[str, Any]) -> str:
    """Of a message or of its record."""
    spelt = {IMPORT: ("event",), ENGAGE: ("$distinct_id", "userId"), GROUPS: ("$group_id", "groupId")}[to]
    return next(record[key] for key in spelt if key in record)


def names_of(got: Got) -> list[str]:
    return [name_of(got.path.strip("/"), record) for record in got.records]


def work_until_nothing_waits(line: Line, rounds: int = 10) -> None:
    for _ in range(rounds):
        if line.work() is None:
            return
    raise AssertionError(f"something still waits after {rounds} rounds")


class Mixpanel:
    """Scripts of an endpoint, and the names of what it has stored."""

    def __init__(self) -> None:
        self.stored: list[str] = []

    def spoilt_by(self, bad: Sequence[str], answer: Answer) -> Callable[[Got], Answer]:
        """Turns down any batch with one of the bad in it, and does not say which."""

        def script(got: Got) -> Answer:
            if not set(bad).isdisjoint(names_of(got)):
                return answer
            self.stored += names_of(got)
            return stored(got)

        return script

    def refusing(self, bad: Sequence[str]) -> Callable[[Got], Answer]:
        """Stores the good and names the bad, as /import?strict=1 does."""
        known = set(bad)

        def script(got: Got) -> Answer:
            failed = [
                {
                    "index": index,
                    "$insert_id": record["properties"]["$insert_id"],
                    "field": "properties.time",
                    "message": "'properties.time' is invalid: must be specified as seconds since epoch",
                }
                for index, record in enumerate(got.records)
                if record["event"] in known
            ]
            self.stored += [name for name in names_of(got) if name not in known]
            if not failed:
                return stored(got)
            n_stored = len(got.records) - len(failed)
            return Answer(
                400, {"code": 400, "error": "some", "failed_records": failed, "num_records_imported": n_stored}
            )

        return script


@pytest.fixture
def mixpanel() -> Mixpanel:
    return Mixpanel()


# When all is well


@pytest.mark.parametrize("to", [IMPORT, ENGAGE, GROUPS])
def test_what_waits_is_delivered(house: House, to: str) -> None:
    house.take(call(to, "a"), call(to, "b"))
    line = house.line(to)
    assert line.work() == 0.0
    assert line.work() is None
    [got] = house.endpoint.got
    assert (got.path, names_of(got)) == (f"/{to}", ["a", "b"])
    report = house.report(to)
    assert (report.acknowledged, report.delivered, report.waiting, report.refused) == (2, 2, 0, {})
    assert report.last_answer is not None
    assert report.last_answer["text"].startswith("200")
    assert report.last_answer["fault"] is None
    assert abs(report.last_answer["at"] - time.time()) < 60


def test_nothing_waits_nothing_is_sent(house: House) -> None:
    assert house.line().work() is None
    assert house.endpoint.got == []


def test_a_message_for_two_endpoints_reaches_both(house: House) -> None:
    house.take(call(GROUPS, "acme", traits={"plan": "pro"}))
    for to in (ENGAGE, GROUPS):
        work_until_nothing_waits(house.line(to))
    assert [(got.path, got.records[0].get("$union"), got.records[0].get("$set")) for got in house.endpoint.got] == [
        ("/engage", {"$group_id": ["acme"]}, None),
        ("/groups", None, {"plan": "pro"}),
    ]


def test_a_batch_has_at_most_2000_records(house: House) -> None:
    house.take(*(call(IMPORT, f"e-{n}") for n in range(1_999)))
    house.take(*(call(IMPORT, f"e-{n}") for n in range(1_999, 2_001)))
    work_until_nothing_waits(house.line())
    assert [len(got.records) for got in house.endpoint.got] == [2_000, 1]
    assert [name for got in house.endpoint.got for name in names_of(got)] == [f"e-{n}" for n in range(2_001)]
    assert house.report().delivered == 2_001


@pytest.mark.parametrize("to", [IMPORT, ENGAGE])
def test_a_batch_has_at_most_1_9_mb(house: House, to: str) -> None:
    field = {IMPORT: "properties", ENGAGE: "traits"}[to]
    house.take(*(call(to, f"e-{n}", **{field: {"text": "x" * 50_000}}) for n in range(100)))
    line = house.line(to)
    work_until_nothing_waits(line)
    bodies = [gzip.decompress(body) if to == IMPORT else body for body in line._sender.client.bodies]
    assert [len(body) <= 1_900_000 for body in bodies] == [True] * 3
    assert [name for got in house.endpoint.got for name in names_of(got)] == [f"e-{n}" for n in range(100)]


def parcel(sizes: Sequence[int]) -> Parcel:
    entry = Entry(endpoint=IMPORT, message_id=1, accepted_at_ms=0, time_ms=0, body=b"")
    return Parcel(entry=entry, records=tuple(b"x" * size for size in sizes), notes=())


@given(st.lists(st.lists(st.integers(0, 700), min_size=1, max_size=6).map(parcel), max_size=30))
def test_batches_keep_the_order_cut_no_parcel_and_are_as_full_as_they_may_be(parcels: list[Parcel]) -> None:
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr(ingestion, "MAX_BATCH_RECORDS", 8)
        limits.setattr(ingestion, "MAX_BATCH_BYTES", 2_000)
        cut = batches(parcels)

    def fits(batch: Sequence[Parcel]) -> bool:
        return sum(len(one.records) for one in batch) <= 8 and sum(one.n_bytes for one in batch) <= 2_000

    assert [one for batch in cut for one in batch] == parcels
    assert all(batch and (fits(batch) or len(batch) == 1) for batch in cut)
    assert not any(fits([*batch, after[0]]) for batch, after in zip(cut, cut[1:], strict=False))


def test_messages_claimed_together_go_out_by_time_then_arrival(house: House) -> None:
    times = {"c": "12:00:03", "a": "12:00:01", "b1": "12:00:02", "b2": "12:00:02", "z": "11:59:59"}
    for name, at in times.items():
        house.take(call(ENGAGE, "u", messageId=name, timestamp=f"2026-03-01T{at}Z", traits={"step": name}))
    house.line(ENGAGE).work()
    [got] = house.endpoint.got
    assert [record["$set"]["step"] for record in got.records] == ["z", "a", "b1", "b2", "c"]


# Messages that end without being sent


ALIAS = {"type": "alias", "messageId": "m-1", "timestamp": "2026-03-01T12:00:00Z"}


@pytest.mark.parametrize(
    ("to", "message", "reason"),
    [
        (ENGAGE, {"type": "delete", "messageId": "m-1", "userId": "null"}, "no_id"),
        (ENGAGE, {"type": "delete", "messageId": "m-1", "userId": "$device:u"}, "delete_of_a_device"),
        (ENGAGE, call(ENGAGE, "x", userId=None, anonymousId="null"), "no_id"),
        (IMPORT, call(IMPORT, "$identify"), "identity_verb"),
        (IMPORT, call(IMPORT, "x", userId="null", anonymousId="undefined"), "no_id"),
        (IMPORT, {**ALIAS, "userId": "$device:u", "previousId": "v"}, "alias_to_a_device"),
        (IMPORT, {**ALIAS, "userId": "$device:d", "previousId": "v"}, "alias_to_a_device"),
    ],
)
def test_a_message_that_can_never_be_sent_is_refused_alone(
    house: House, to: str, message: dict[str, Any], reason: str
) -> None:
    house.take(call(to, "before"), message, call(to, "after"))
    work_until_nothing_waits(house.line(to))
    assert [name for got in house.endpoint.got for name in names_of(got)] == ["before", "after"]
    [(found, detail, body)] = house.refusals()
    assert (found, body) == (reason, raw(message))
    assert len(detail) > 10
    assert house.report(to).refused == {reason: 1}
    assert house.report(to).delivered == 2


@pytest.mark.parametrize(
    ("to", "message", "reason"),
    [
        (ENGAGE, call(ENGAGE, "u", traits={}), "no_traits"),
        (GROUPS, call(GROUPS, "acme", traits=None), "no_traits"),
        (IMPORT, {**ALIAS, "userId": "u", "previousId": "u"}, "alias_of_equal_ids"),
    ],
)
def test_where_there_is_nothing_to_send_that_is_counted(
    house: House, to: str, message: dict[str, Any], reason: str
) -> None:
    house.take(message)
    work_until_nothing_waits(house.line(to))
    assert house.endpoint.got == []
    assert house.report(to).nothing == {reason: 1}
    assert house.refusals() == []


def test_what_was_dropped_on_the_way_is_counted_once_it_has_arrived(house: House) -> None:
    house.take(
        call(IMPORT, "a", anonymousId="null"),
        call(IMPORT, "b", userId="undefined", anonymousId="d"),
        call(IMPORT, "c", anonymousId="anonymous"),
        call(ENGAGE, "u", anonymousId="none", traits={}),
    )
    house.endpoint.answers.append(Answer(503))
    line = house.line()
    line.work()
    assert house.report().notes == {}, "it will be sent again, and counted then"
    work_until_nothing_waits(line)
    work_until_nothing_waits(house.line(ENGAGE))
    assert house.report(IMPORT).notes == {"junk_anonymous_id": 2, "junk_user_id": 1}
    assert house.report(ENGAGE).notes == {"junk_anonymous_id": 1}


def test_a_mapping_that_raises_costs_its_own_message_alone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(message: Any, *_: Any) -> mapping.Mapped:
        raise KeyError(f"cannot map {message.name}")

    monkeypatch.setitem(mapping._EVENTS, "page", stumble)
    page = {"type": "page", "messageId": "m-1", "userId": "u", "name": "s3cret page"}
    house.take(call(IMPORT, "before"), page, call(IMPORT, "after"))
    work_until_nothing_waits(house.line())
    [got] = house.endpoint.got
    assert names_of(got) == ["before", "after"]
    [(reason, detail, body)] = house.refusals()
    assert (reason, body) == ("mapping_failed", raw(page))
    assert "KeyError" in detail
    assert "stumble" in detail
    assert "s3cret" not in detail


def test_a_body_that_cannot_be_read_any_more_costs_its_own_message_alone(house: House) -> None:
    body = b'{"type": "track", "event": "s3cret'
    house.store.put(
        [Arrival(key=b"k" * 16, content=b"c" * 16, body=body, accepted_at_ms=0, time_ms=0, lanes=((IMPORT, 1),))]
    )
    house.take(call(IMPORT, "after"))
    work_until_nothing_waits(house.line())
    assert house.report().delivered == 1
    [(reason, detail, kept)] = house.refusals()
    assert (reason, kept) == ("mapping_failed", body)
    assert re.match(r"\w+Error in \w+", detail)
    assert "s3cret" not in detail


# Records that the endpoint does not take


@pytest.mark.parametrize(
    ("n", "n_bad", "at_most"),
    [(1, 1, 0), (2_000, 1, 1), (2_000, 2, 1), (2_000, 17, 1), (2_000, 1_999, 4), (2_000, 2_000, 0)],
)
def test_a_400_that_names_records_refuses_these_and_delivers_the_rest(
    house: House, mixpanel: Mixpanel, n: int, n_bad: int, at_most: int
) -> None:
    """Once each; only an answer too long to be read (64 KB) makes the batch go out again in halves."""
    bad = [f"e-{k * n // n_bad}" for k in range(n_bad)]
    house.endpoint.default = mixpanel.refusing(bad)
    house.take(*(call(IMPORT, f"e-{k}") for k in range(n)))
    work_until_nothing_waits(house.line())
    assert house.refused_names(IMPORT) == bad
    assert {reason for reason, _, _ in house.refusals()} == {"refused_by_mixpanel"}
    assert all("must be specified as seconds since epoch" in detail for _, detail, _ in house.refusals())
    report = house.report()
    assert (report.delivered, report.refused) == (n - n_bad, {"refused_by_mixpanel": n_bad})
    times = Counter(mixpanel.stored)
    assert set(times) == {f"e-{k}" for k in range(n)} - set(bad)
    assert max(times.values(), default=0) <= at_most


NONE_STORED = Answer(200, {"code": 200, "num_records_imported": 0, "status": "OK"})


@pytest.mark.parametrize(("times", "notes"), [(1, {}), (9, {"imported_fewer_than_sent": 1})])
def test_what_is_taken_with_the_word_that_none_was_stored_is_sent_once_more(
    house: House, times: int, notes: dict[str, int]
) -> None:
    """All may have been lost; or it had them before, and says so by the same count."""
    house.endpoint.answers.extend([NONE_STORED] * times)
    house.take(*(call(IMPORT, f"e-{n}") for n in range(5)))
    work_until_nothing_waits(house.line())
    first, second = house.endpoint.got
    assert first.records == second.records
    assert (house.report().delivered, house.report().notes) == (5, notes)


@pytest.mark.parametrize("then", [Answer(503), Answer(0)])
def test_where_the_second_answer_is_lost_it_waits_to_be_sent_again(house: House, then: Answer) -> None:
    house.endpoint.answers.extend([NONE_STORED, then])
    house.take(call(IMPORT, "e"))
    assert house.line().work()
    assert house.waiting() == 1


NAMELESS = [
    pytest.param(IMPORT, Answer(400, {"code": 400, "error": "no"}), id="import-400"),
    pytest.param(IMPORT, Answer(413, {"error": "request exceeds max limit of 2097152 bytes"}), id="import-413"),
    pytest.param(ENGAGE, Answer(200, {"status": 0, "error": "not valid"}), id="engage-0"),
    pytest.param(ENGAGE, Answer(400, b"<html>"), id="engage-400"),
    pytest.param(GROUPS, Answer(200, {"status": 0, "error": "not valid"}), id="groups-0"),
]


@pytest.mark.parametrize(("to", "answer"), NAMELESS)
def test_records_that_spoil_their_batch_are_found_by_halves_and_refused_alone(
    house: House, mixpanel: Mixpanel, to: str, answer: Answer
) -> None:
    bad = ["e-0", "e-20", "e-21", "e-49"]
    names = [f"e-{n}" for n in range(50)]
    house.endpoint.default = mixpanel.spoilt_by(bad, answer)
    house.take(*(call(to, name) for name in names))
    work_until_nothing_waits(house.line(to))
    assert house.refused_names(to) == bad
    assert mixpanel.stored == [name for name in names if name not in bad], "each once, in their order"
    report = house.report(to)
    assert (report.delivered, report.refused) == (50 - len(bad), {"refused_by_mixpanel": len(bad)})
    assert report.last_answer is not None
    assert report.last_answer["fault"] is None


@pytest.mark.parametrize("bad", [["e-1337"], ["e-0", "e-999", "e-1999"]], ids=["one", "three"])
def test_to_find_spoilers_in_a_full_batch_takes_22_requests_each(
    house: House, mixpanel: Mixpanel, bad: list[str]
) -> None:
    """Two a level."""
    house.endpoint.default = mixpanel.spoilt_by(bad, Answer(400))
    house.take(*(call(IMPORT, f"e-{n}") for n in range(2_000)))
    work_until_nothing_waits(house.line())
    assert house.refused_names(IMPORT) == bad
    assert len(house.endpoint.got) <= 1 + 22 * len(bad)
    assert sorted(mixpanel.stored) == sorted({f"e-{n}" for n in range(2_000)} - set(bad)), "each once"


@pytest.mark.parametrize(
    ("to", "answer", "n"),
    [(*case.values, n) for case in NAMELESS for n in ((1, 100) if case in (NAMELESS[0], NAMELESS[2]) else (2,))],
)
def test_an_endpoint_that_turns_everything_down_is_at_fault_not_the_records(
    house: House, to: str, answer: Answer, n: int
) -> None:
    house.endpoint.default = lambda _got: answer
    house.take(*(call(to, f"e-{k}") for k in range(n)))
    line = house.line(to)
    for _ in range(2):
        asked = len(house.endpoint.got)
        assert (line.work() or 0.0) >= FAULT_WAIT_S
        assert len(house.endpoint.got) - asked <= min(2 * n - 1, MAX_TURNED_DOWN + 1)
    report = house.report(to)
    assert (report.waiting, report.delivered, report.refused) == (n, 0, {})
    assert report.last_answer is not None
    assert "nothing is taken" in report.last_answer["fault"]
    house.endpoint.default = stored
    work_until_nothing_waits(line)
    report = house.report(to)
    assert (report.delivered, report.refused) == (n, {})
    assert report.last_answer is not None
    assert report.last_answer["fault"] is None


@pytest.mark.parametrize(
    ("passed_s", "refused"), [(0.0, True), (TRUST_S - 1, True), (TRUST_S, False), (TRUST_S * 10, False)]
)
def test_a_lone_spoiler_is_refused_only_if_another_was_taken_within_ten_minutes(
    house: House, mixpanel: Mixpanel, passed_s: float, refused: bool
) -> None:
    assert TRUST_S == 600.0
    house.endpoint.default = mixpanel.spoilt_by(["bad"], Answer(400))
    line = house.line()
    house.take(call(IMPORT, "good"))
    line.work()
    house.clock.now_s += passed_s
    house.take(call(IMPORT, "bad"))
    line.work()
    report = house.report()
    assert report.refused == ({"refused_by_mixpanel": 1} if refused else {})
    assert report.waiting == (0 if refused else 1)
    assert report.last_answer is not None
    assert (report.last_answer["fault"] is None) is refused
    # A neighbour that is taken shows whose fault it is.
    house.take(call(IMPORT, "another"))
    work_until_nothing_waits(line)
    assert house.refused_names(IMPORT) == ["bad"]
    assert mixpanel.stored == ["good", "another"]


def test_an_endpoint_that_begins_to_turn_everything_down_has_nothing_refused(house: House) -> None:
    """Design 3.9: when every part fails, the circuit opens, and what it took a minute ago does not change that."""
    line = house.line()
    house.take(call(IMPORT, "good"))
    line.work()
    house.clock.now_s += 60.0
    house.endpoint.default = lambda _got: Answer(400)
    house.take(*(call(IMPORT, f"e-{n}") for n in range(200)))
    asked = len(house.endpoint.got)
    assert (line.work() or 0.0) >= FAULT_WAIT_S
    assert len(house.endpoint.got) - asked <= 2 * MAX_TURNED_DOWN
    report = house.report()
    assert (report.waiting, report.refused) == (200, {})
    assert report.last_answer is not None
    assert report.last_answer["fault"]


@pytest.mark.parametrize(("to", "answer"), [NAMELESS[2]])
def test_many_spoilers_in_front_do_not_hold_up_the_good_behind_them(
    house: House, mixpanel: Mixpanel, to: str, answer: Answer
) -> None:
    """After a restart or a quiet ten minutes nothing was taken lately, and the oldest that wait may all be bad."""
    bad = [f"bad-{n}" for n in range(40)]
    good = [f"good-{n}" for n in range(400)]
    house.endpoint.default = mixpanel.spoilt_by(bad, answer)
    house.take(*(call(to, name) for name in bad + good))
    line = house.line(to)
    for _ in range(6):
        if line.work() is None:
            break
        house.clock.now_s += FAULT_WAIT_S
    assert (len(mixpanel.stored), len(house.refused_names(to))) == (400, 40)


@pytest.mark.parametrize(("to", "answer"), [NAMELESS[2]])
@pytest.mark.parametrize("n_bad", [150, 700])
def test_no_number_of_spoilers_in_front_holds_up_the_good_behind_them(
    house: House, mixpanel: Mixpanel, to: str, answer: Answer, n_bad: int
) -> None:
    bad, good = [f"bad-{n}" for n in range(n_bad)], [f"good-{n}" for n in range(300)]
    house.endpoint.default = mixpanel.spoilt_by(bad, answer)
    house.take(*(call(to, name) for name in bad + good))
    work_until_nothing_waits(house.line(to))
    assert set(mixpanel.stored) == set(good)
    assert sorted(house.refused_names(to)) == sorted(bad)


@pytest.mark.parametrize("whose", ["bad-{}", "ada"], ids=["of others", "of the same"])
def test_what_is_tried_behind_many_spoilers_keeps_its_order(house: House, whose: str) -> None:
    """A `$set_once` that comes before its time stays for good."""
    bad = [
        call(ENGAGE, whose.format(n), messageId=f"bad-{n}", traits={"step": -1}) for n in range(2 * MAX_TURNED_DOWN)
    ]
    good = [
        call(ENGAGE, name, messageId=f"{name}-{n}", traits={"step": n}) for n in range(60) for name in ("ada", "bo")
    ]
    stored_steps: dict[str, list[int]] = {"ada": [], "bo": []}

    def script(got: Got) -> Answer:
        steps = [(record["$distinct_id"], record["$set"]["step"]) for record in got.records]
        if -1 in (step for _, step in steps):
            return Answer(200, {"status": 0, "error": "not valid"})
        for name, step in steps:
            stored_steps[name].append(step)
        return stored(got)

    house.endpoint.default = script
    house.take(*bad, *good)
    work_until_nothing_waits(house.line(ENGAGE))
    for steps in stored_steps.values():
        assert list(dict.fromkeys(steps)) == list(range(60))
    assert house.report(ENGAGE).refused == {"refused_by_mixpanel": len(bad)}


def test_a_record_that_grew_too_large_is_refused_and_its_neighbours_are_not(house: House, mixpanel: Mixpanel) -> None:
    """Numbers such as 1e15 are four bytes on the way in and eighteen on the way out."""
    house.endpoint.default = mixpanel.spoilt_by([], Answer(413))
    numbers = b"[" + b",".join([b"1e15"] * 250) + b"]"
    swelling = b"{" + b",".join(b'"p%d":%s' % (n, numbers) for n in range(240)) + b"}"
    huge = raw(call(IMPORT, "huge", properties="HERE")).replace(b'"HERE"', swelling)
    assert len(huge) < 1_000_000
    intake.accept([huge, raw(call(IMPORT, "small"))], house.store, Options.of(house.settings))
    work_until_nothing_waits(house.line())
    assert mixpanel.stored == ["small"]
    assert house.report().refused == {"record_too_large": 1}


def test_what_breaks_a_limit_is_repaired_or_refused_before_it_is_sent(house: House) -> None:
    house.take(
        call(IMPORT, "cut", properties={"x" * 300: 1}),
        call(IMPORT, "deep", properties={"a": {"b": {"c": {"d": {"e": 1}}}}}),
    )
    work_until_nothing_waits(house.line())
    report = house.report()
    assert (report.delivered, report.refused) == (1, {"nested_too_deep": 1})
    assert report.notes == {"property_name_cut": 1}
    (got,) = house.endpoint.got
    assert "x" * 255 in got.records[0]["properties"]


def test_halves_that_are_cut_short_lose_nothing_and_keep_what_is_settled(house: House, mixpanel: Mixpanel) -> None:
    names = [f"e-{n}" for n in range(8)]
    spoilt = mixpanel.spoilt_by(["e-0"], Answer(400))
    #        all     0-3     0-1     0       1 taken  2-3 taken, then it is down
    house.endpoint.answers.extend([*[spoilt] * 6, Answer(503)])
    house.endpoint.default = spoilt
    house.take(*(call(IMPORT, name) for name in names))
    line = house.line()
    assert line.work() == 2.0 + JITTER_S
    report = house.report()
    assert (report.delivered, report.refused, report.waiting) == (3, {"refused_by_mixpanel": 1}, 4)
    work_until_nothing_waits(line)
    assert mixpanel.stored == names[1:]


# An endpoint that is down, or closed to us


@pytest.mark.parametrize(
    ("to", "status"),
    [*((IMPORT, status) for status in (401, 402, 403, 404, 405, 302)), (ENGAGE, 401), (GROUPS, 403)],
)
def test_a_fault_that_a_person_must_mend_refuses_nothing_and_is_shown(house: House, to: str, status: int) -> None:
    house.endpoint.default = lambda _got: Answer(status, {"error": "Invalid credentials"})
    house.take(call(to, "a"), call(to, "b"))
    line = house.line(to)
    for _ in range(2):
        assert (line.work() or 0.0) >= FAULT_WAIT_S
    assert len(house.endpoint.got) == 2, "one request a round, no halves"
    report = house.report(to)
    assert (report.waiting, report.refused) == (2, {})
    assert report.last_answer is not None
    assert report.last_answer["fault"] == f"{status}: Invalid credentials"
    house.endpoint.default = stored
    work_until_nothing_waits(line)
    report = house.report(to)
    assert report.delivered == 2
    assert report.last_answer is not None
    assert report.last_answer["fault"] is None


def lost(_got: Got) -> Answer:
    """The records arrive, the answer does not."""
    raise ConnectionAbortedError("the answer is lost")


BUSY = [Answer(status, b"<html>busy</html>") for status in (408, 429, 500, 502, 503, 504)]


@pytest.mark.parametrize(
    ("to", "answer"),
    [*((IMPORT, answer) for answer in [*BUSY, lost]), *((to, lost) for to in (ENGAGE, GROUPS))],
    ids=lambda value: str(getattr(value, "status", getattr(value, "__name__", value))),
)
def test_what_will_pass_is_waited_for(house: House, to: str, answer: Any) -> None:
    house.endpoint.answers.append(answer)
    house.take(call(to, "a"), call(to, "b"))
    line = house.line(to)
    assert line.work() == 2.0 + JITTER_S
    report = house.report(to)
    assert (report.waiting, report.delivered, report.refused) == (2, 0, {})
    assert report.last_answer is not None
    assert report.last_answer["fault"] is None
    work_until_nothing_waits(line)
    assert house.report(to).delivered == 2
    assert [names_of(got) for got in house.endpoint.got] == [["a", "b"]] * 2


def test_an_endpoint_that_does_not_answer_in_time_is_waited_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "READ_TIMEOUT_S", 0.05)
    patience = threading.Event()

    def slow(got: Got) -> Answer:
        patience.wait(5)
        return stored(got)

    house.endpoint.answers.append(slow)
    house.take(call(IMPORT, "a"))
    line = house.line()
    assert line.work() == 2.0 + JITTER_S
    patience.set()
    assert house.report().waiting == 1
    monkeypatch.undo()
    work_until_nothing_waits(line)
    assert house.report().delivered == 1


def test_an_answer_that_is_not_final_is_no_answer(house: House) -> None:
    house.endpoint.answers.append(Answer(400, {"error": "no"}, hints=True))
    house.take(call(IMPORT, "a"))
    assert house.line().work() == FAULT_WAIT_S + JITTER_S
    answer = house.report().last_answer
    assert answer is not None
    assert answer["text"].endswith("400: no")


def test_an_endpoint_that_is_not_there_is_waited_for(house: House) -> None:
    house.take(call(IMPORT, "a"))
    house.endpoint.close()
    assert house.line().work() == 2.0 + JITTER_S
    assert house.report().waiting == 1


def test_one_answer_of_503_ends_the_round(house: House) -> None:
    house.take(*(call(IMPORT, f"e-{n}", properties={"text": "x" * 50_000}) for n in range(100)))
    house.endpoint.default = lambda _got: Answer(503)
    house.line().work()
    assert len(house.endpoint.got) == 1
    assert house.report().waiting == 100


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [("120", 120.0), ("1", 2.0), ("1000000000", 300.0), ("soon", 2.0), ("-5", 2.0), ("1e9", 2.0)],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(house: House, status: int, retry_after: str, wait_s: float) -> None:
    house.endpoint.answers.append(Answer(status, None, (("Retry-After", retry_after),)))
    house.take(call(IMPORT, "a"))
    assert house.line().work() == wait_s + JITTER_S


def test_a_retry_after_that_is_a_date_is_obeyed(house: House) -> None:
    at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    house.endpoint.answers.append(Answer(429, None, (("Retry-After", at),)))
    house.take(call(IMPORT, "a"))
    assert 95.0 < (house.line().work() or 0.0) <= 100.0 + JITTER_S


@pytest.mark.parametrize(
    ("failures", "wanted_s", "least_s"),
    [
        *((1, None, 2.0), (2, None, 4.0), (3, None, 8.0), (4, None, 16.0), (5, None, 32.0)),
        *((6, None, 60.0), (7, None, 60.0), (50, None, 60.0), (5_000, None, 60.0)),
        *((1, 0.0, 2.0), (1, 1.0, 2.0), (1, 30.0, 30.0), (1, 300.0, 300.0), (4, 10.0, 16.0), (9, 300.0, 300.0)),
    ],
)
def test_the_backoff_doubles_from_2_to_60_s_and_has_a_jitter_of_1_to_5(
    failures: int, wanted_s: float | None, least_s: float
) -> None:
    assert backoff_s(failures, wanted_s, lambda low, _high: low) == least_s + 1.0
    assert backoff_s(failures, wanted_s, lambda _low, high: high) == least_s + 5.0


def test_failures_in_a_row_wait_longer_and_a_success_forgets_them(house: House) -> None:
    house.take(call(IMPORT, "a"))
    line = house.line()
    house.endpoint.answers.extend([Answer(503)] * 7)
    assert [line.work() for _ in range(7)] == [2.0 + 1, 4.0 + 1, 8.0 + 1, 16.0 + 1, 32.0 + 1, 60.0 + 1, 60.0 + 1]
    assert line.work() == 0.0
    house.endpoint.answers.append(Answer(503))
    house.take(call(IMPORT, "b"))
    assert line.work() == 2.0 + 1


# Sent again


@pytest.mark.parametrize("to", [IMPORT, ENGAGE, GROUPS])
def test_what_is_sent_again_is_the_same_bytes_also_after_a_restart(house: House, to: str) -> None:
    """Mixpanel drops the second of two equal events; what it stored before the answer was lost must come equal."""
    house.endpoint.answers.extend([lost, Answer(503)])
    house.take(*(call(to, f"e-{n}", messageId=None, timestamp=None, context={"ip": "8.8.8.8"}) for n in range(20)))
    line = house.line(to)
    line.work()
    line.work()
    house.reopen()
    after = house.line(to)
    after.work()
    first, second, third = line._sender.client.bodies + after._sender.client.bodies
    assert first == second == third
    assert house.report(to).delivered == 20


def test_a_death_between_post_and_settlement_sends_again_and_loses_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(Exception):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Death

    house.take(call(IMPORT, "a"), call(IMPORT, "b"))
    with monkeypatch.context() as dying:
        dying.setattr(house.store, "settle", die)
        with pytest.raises(Death):
            house.line().work()
    assert house.report().waiting == 2
    house.reopen()
    work_until_nothing_waits(house.line())
    first, second = house.endpoint.got
    assert first.records == second.records
    assert house.report().delivered == 2


def after_a_death(database_url: str) -> Store:
    """The store, when the lanes of a process that is gone have been free for a while."""
    store = Store(database_url)
    if store.is_shared:
        store._writer.run(_free_lanes, None)
    return store


def _free_lanes(connection: sa.Connection, _: Sequence[None]) -> list[None]:
    connection.execute(lease.update().values(until_ms=0))
    connection.execute(worker.update().values(until_ms=0))
    return [None]


WORK = """
import sys
from adapter.config import Settings
from adapter.delivery import Line
from adapter.ingestion import Client
from adapter.store import Store

database_url, base_url = sys.argv[1:]
settings = Settings(database_url=database_url, ingestion_url=base_url, mixpanel_token="tok-3f9a")
store = Store(database_url)
store.leases.renew()
Line(store, "import", settings, Client(settings, base_url)).work()
"""


@on_both
def test_a_process_killed_while_it_posts_has_lost_nothing(house: House) -> None:
    house.take(call(IMPORT, "a"), call(IMPORT, "b"))
    house.store.close()
    pids: list[int] = []

    def kill_the_sender(got: Got) -> Answer:
        wait_until(lambda: bool(pids))
        os.kill(pids[0], signal.SIGKILL)
        return stored(got)

    house.endpoint.answers.append(kill_the_sender)
    command = [sys.executable, "-c", WORK, house.database_url, house.endpoint.url]
    with subprocess.Popen(command, cwd=ROOT) as process:
        pids.append(process.pid)
        assert process.wait(20) == -signal.SIGKILL
    house.reopen(after_a_death(house.database_url))
    assert house.report().waiting == 2
    work_until_nothing_waits(house.line())
    first, second = house.endpoint.got
    assert first.records == second.records
    assert house.report().delivered == 2


# The threads


def go_back(house: House) -> None:
    """As a fail-over that loses the last commits leaves the database; all that it lost had been sent."""
    with psycopg.connect(house.database_url, autocommit=True) as connection:
        connection.execute("UPDATE sequence SET next = 1")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("n_after", "later_s"), [(5, 0.0), (30, FLOOR_EVERY_S)])
def test_what_comes_after_a_fail_over_that_lost_commits_is_delivered(
    house: House, n_after: int, later_s: float
) -> None:
    """At once where it is seen that message ids have gone back, else within a minute."""
    line = house.line(ENGAGE)
    house.take(*(call(ENGAGE, f"before-{n}") for n in range(20)))
    work_until_nothing_waits(line)
    go_back(house)
    house.take(*(call(ENGAGE, f"after-{n}") for n in range(n_after)))
    house.clock.now_s += later_s
    work_until_nothing_waits(line)
    assert house.waiting(ENGAGE) == 0


@pytest.fixture
def threads(house: House) -> Iterator[Delivery]:
    running = Delivery(house.store, house.settings, house.endpoint.url)
    running.start()
    yield running
    running.stop()


def test_what_is_put_later_is_delivered_at_once_when_delivery_is_woken(
    house: House, threads: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "IDLE_S", 60.0)
    time.sleep(0.05)  # so that the threads have found nothing and sleep
    for name in "abc":
        house.take(call(GROUPS, name))
        threads.wake_all()
        wait_until(lambda: read_report(house.database_url).waiting == 0)
    assert {got.path for got in house.endpoint.got} == {"/engage", "/groups"}


def test_an_endpoint_that_hangs_holds_up_no_other(house: House) -> None:
    release = threading.Event()

    def hanging(got: Got) -> Answer:
        if got.path == "/engage":
            release.wait(10)
        return stored(got)

    house.endpoint.default = hanging
    running = Delivery(house.store, house.settings, house.endpoint.url)
    house.take(call(ENGAGE, "u"))
    running.start()
    wait_until(lambda: len(house.endpoint.got) == 1)
    for name in "abc":
        house.take(call(IMPORT, name))
        running.wake_all()
        wait_until(lambda: house.waiting(IMPORT) == 0)
    assert house.waiting(ENGAGE) == 1
    release.set()
    wait_until(lambda: house.waiting(ENGAGE) == 0)
    running.stop()


def hang(house: House) -> threading.Event:
    """From now on the endpoint answers only once the event is set, or after 10 s."""
    release = threading.Event()

    def hanging(got: Got) -> Answer:
        release.wait(10)
        return stored(got)

    house.endpoint.default = hanging
    return release


def test_stop_lets_the_post_that_is_under_way_end_and_claims_no_more(house: House) -> None:
    release = hang(house)
    running = Delivery(house.store, house.settings, house.endpoint.url)
    house.take(*(call(IMPORT, f"e-{n}", properties={"text": "x" * 50_000}) for n in range(60)))  # two batches
    running.start()
    wait_until(lambda: len(house.endpoint.got) == 1)
    house.take(call(IMPORT, "too late"))
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    wait_until(lambda: all(line.stopping.is_set() for line in running._threads))
    assert stopping.is_alive(), "it waits for the POST"
    release.set()
    stopping.join(5)
    assert not stopping.is_alive()
    [got] = house.endpoint.got
    report = house.report()
    assert (report.delivered, report.waiting) == (len(got.records), 61 - len(got.records))
    assert len(got.records) > 30, "the batch under way was settled"


def test_stop_does_not_sit_out_a_backoff(house: House) -> None:
    house.endpoint.default = lambda _got: Answer(401)
    running = Delivery(house.store, house.settings, house.endpoint.url)
    house.take(call(IMPORT, "a"))
    running.start()
    wait_until(lambda: bool(house.store.recall("last_answer_import")))
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 20.0
    assert house.report().waiting == 1


def test_stop_hangs_up_on_a_post_that_does_not_end_in_time(house: House) -> None:
    release = hang(house)
    running = Delivery(house.store, house.settings, house.endpoint.url)
    house.take(call(IMPORT, "a"))
    running.start()
    wait_until(lambda: len(house.endpoint.got) == 1)
    running.stop(wait_s=0.1)
    assert not any(thread.is_alive() for thread in running._threads.values())
    assert house.report().waiting == 1, "it is sent again"
    release.set()


def test_delivery_that_was_never_started_can_be_stopped(house: House) -> None:
    running = Delivery(house.store, house.settings, house.endpoint.url)
    running.stop()
    assert house.store.claim(IMPORT, 1) == []


@pytest.mark.parametrize("error", [StoreUnavailable("the disk is full"), ZeroDivisionError("a fault of ours")])
def test_a_fault_on_our_side_does_not_end_the_thread(
    house: House, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(rounds, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(rounds, "MAX_BACKOFF_S", 0.01)
    settle, faults = house.store.settle, [error]

    def failing_once(*arguments: Any) -> None:
        if faults:
            raise faults.pop()
        settle(*arguments)

    monkeypatch.setattr(house.store, "settle", failing_once)
    house.take(call(IMPORT, "a"))
    running = Delivery(house.store, house.settings, house.endpoint.url)
    running.start()
    wait_until(lambda: house.waiting() == 0)
    running.stop()
    assert faults == []
    assert [names_of(got) for got in house.endpoint.got] == [["a"]], "its answer was known: it is not asked again"


def test_what_a_filter_keeps_back_is_counted_and_never_sent(house: House) -> None:
    """Also what the message itself says: it is not for Mixpanel."""
    settings = dataclasses.replace(house.settings, drop_events=("Secret *",))
    line = Line(house.store, IMPORT, settings, ingestion.Client(settings, house.endpoint.url))
    house.take(
        call(IMPORT, "a", event="Secret Thing"),
        call(IMPORT, "b", integrations={"All": False}),
        call(IMPORT, "c", integrations={"All": True}),
    )
    assert line.work() == 0.0
    report = house.report()
    assert report.filtered == {"event": 1, "integrations": 1}
    assert (report.acknowledged, report.delivered, report.waiting) == (3, 1, 0)
    assert [names_of(got) for got in house.endpoint.got] == [["c"]]
    line._sender.client.close()


def test_an_endpoint_that_goes_down_while_a_batch_is_halved_is_down_not_at_fault(house: House) -> None:
    house.endpoint.answers.extend([Answer(400), Answer(400), Answer(400)])
    house.endpoint.default = lambda _got: Answer(503, {"error": "busy"})
    house.take(*(call(IMPORT, f"e-{n}") for n in range(4)))
    assert (house.line().work() or 0.0) < FAULT_WAIT_S
    report = house.report()
    assert (report.waiting, report.refused) == (4, {})
    assert report.last_answer is not None
    assert (report.last_answer["text"], report.last_answer["fault"]) == ("503: busy", None)


# Updates that count


def counting(house: House, **settings: Any) -> House:
    house.settings = dataclasses.replace(house.settings, transactions=True, **settings)
    return house


def paid(name: str) -> dict[str, Any]:
    return {**call(IMPORT, name), "userId": "u", "properties": {"revenue": 5}}


def applied(house: House) -> list[str]:
    return [got.path for got in house.endpoint.got if got.path == "/engage"]


def test_an_update_that_counts_is_sent_alone_to_engage(house: House) -> None:
    counting(house).take(paid("a"), paid("b"))
    work_until_nothing_waits(house.line(COUNTERS))
    assert [len(got.records) for got in house.endpoint.got] == [1, 1]
    assert applied(house) == ["/engage", "/engage"]
    assert house.report(COUNTERS).delivered == 2


@pytest.mark.parametrize("lost", [Answer(503), Answer(500), Answer(200, body="a friendly page"), Answer(0)])
def test_an_update_that_counts_and_whose_answer_was_lost_is_refused_not_repeated(house: House, lost: Any) -> None:
    house.endpoint.answers.append(lost)
    counting(house).take(paid("a"), paid("b"))
    line = house.line(COUNTERS)
    assert line.work() is not None, "it waits before it risks another"
    work_until_nothing_waits(line)
    report = house.report(COUNTERS)
    assert (report.delivered, report.refused) == (1, {"may_have_been_applied": 1})
    assert len(applied(house)) == 2


@pytest.mark.parametrize("lost", [Answer(503), Answer(0)])
def test_an_update_that_counts_is_sent_again_where_the_setting_says_so(house: House, lost: Any) -> None:
    house.endpoint.answers.append(lost)
    counting(house, counters="at-least-once").take(paid("a"))
    line = house.line(COUNTERS)
    line.work()
    work_until_nothing_waits(line)
    assert (house.report(COUNTERS).delivered, len(applied(house))) == (1, 2)


@pytest.mark.parametrize("answer", [Answer(429), Answer(401), Answer(404)])
def test_an_update_that_counts_is_sent_again_where_it_cannot_have_been_applied(house: House, answer: Answer) -> None:
    house.endpoint.answers.append(answer)
    counting(house).take(paid("a"))
    line = house.line(COUNTERS)
    assert line.work() is not None
    work_until_nothing_waits(line)
    assert house.report(COUNTERS).delivered == 1


def test_an_update_that_counts_waits_for_an_endpoint_that_is_not_there(house: House) -> None:
    counting(house).take(paid("a"))
    house.endpoint.close()
    assert house.line(COUNTERS).work() is not None
    assert house.report(COUNTERS).waiting == 1


@on_both
def test_a_process_killed_while_it_posts_a_counter_does_not_post_it_again(house: House) -> None:
    counting(house).take(paid("a"))
    house.store.close()
    pids: list[int] = []

    def kill_the_sender(got: Got) -> Answer:
        wait_until(lambda: bool(pids))
        os.kill(pids[0], signal.SIGKILL)
        return stored(got)

    house.endpoint.answers.append(kill_the_sender)
    work = WORK.replace('"import"', '"counters"').replace("mixpanel_token=", "transactions=True, mixpanel_token=")
    with subprocess.Popen([sys.executable, "-c", work, house.database_url, house.endpoint.url], cwd=ROOT) as process:
        pids.append(process.pid)
        assert process.wait(20) == -signal.SIGKILL
    house.reopen(after_a_death(house.database_url))
    work_until_nothing_waits(house.line(COUNTERS))
    assert house.report(COUNTERS).refused == {"may_have_been_applied": 1}
    assert len(applied(house)) == 1


def test_a_counter_that_was_posted_and_cannot_be_read_any_more_may_have_been_applied(house: House) -> None:
    """Refused as damaged it would be retried by that reason, and count twice."""
    counting(house).take(paid("a"))
    [posted] = house.store.claim(COUNTERS, 1)
    house.store.mark_attempt(posted, True)
    house.store._writer.run(lambda connection, _: [connection.exec_driver_sql("UPDATE message SET crc = 0")], None)
    work_until_nothing_waits(house.line(COUNTERS))
    assert house.report(COUNTERS).refused == {"may_have_been_applied": 1}
    assert applied(house) == []


def test_a_counter_that_is_turned_down_is_refused_only_if_another_was_taken(house: House) -> None:
    house.endpoint.answers += [Answer(body={"status": 0, "error": "bad"}), stored]
    counting(house).take(paid("a"), paid("b"))
    line = house.line(COUNTERS)
    assert line.work() is not None
    assert (house.report(COUNTERS).delivered, house.report(COUNTERS).waiting) == (1, 1)
    assert line.work() == 0.0
    house.endpoint.answers.append(Answer(body={"status": 0, "error": "bad"}))
    house.take(paid("c"))
    line.work()
    report = house.report(COUNTERS)
    assert (report.delivered, report.refused) == (2, {"refused_by_mixpanel": 1})
