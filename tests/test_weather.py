"""Delivery as it runs, in several lines at once, to an endpoint of moods: how much, how often, in which order."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from adapter import delivery, ingestion, intake, pace
from adapter.config import Settings
from adapter.delivery import LINES, Delivery
from adapter.pace import OPENS_AFTER
from adapter.records import Options
from adapter.store import Store, read_report
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS, IMPORT
from tests.conftest import raw
from tests.endpoint import Answer, Endpoint, Got, stored
from tests.processes import wait_until
from tests.test_delivery import call

BUSY = Answer(503, {"error": "busy"})


class Running:
    """A store and its delivery threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.database_url)
        self.delivery = Delivery(self.store, settings, settings.ingestion_url or "")

    def take(self, *messages: dict[str, Any]) -> None:
        assert intake.accept(list(map(raw, messages)), self.store, Options.of(self.settings)).rejected == ()
        self.delivery.wake_all()

    def report(self, to: str) -> Any:
        return read_report(self.settings.database_url).endpoints[to]

    def is_done(self) -> bool:
        return read_report(self.settings.database_url).waiting == 0


@pytest.fixture
def run(either_url: str, endpoint: Endpoint) -> Callable[..., Any]:
    @contextmanager
    def run(**settings: Any) -> Iterator[Running]:
        how = Settings(database_url=either_url, ingestion_url=endpoint.url, mixpanel_token="tok-3f9a", **settings)
        running = Running(how)
        running.delivery.start()
        try:
            yield running
        finally:
            running.delivery.stop(wait_s=5.0)
            running.store.close()

    return run


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Backoffs as short as a test has time for, whatever the endpoint asks for."""

    def impatient(circuit_s: float) -> None:
        monkeypatch.setattr(delivery, "backoff_s", lambda *_: 0.01)
        monkeypatch.setattr(pace, "backoff_s", lambda *_: circuit_s)

    return impatient


class Crowd:
    """Counts how many POSTs are under way at once; the first are kept until as many have come as are expected."""

    def __init__(self, expected: int) -> None:
        self.most = 0
        self._now = 0
        self._expected = expected
        self._lock = threading.Lock()
        self._are_here = threading.Event()

    def __call__(self, got: Got) -> Answer:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            if self.most >= self._expected:
                self._are_here.set()
        self._are_here.wait(5)
        time.sleep(0.02)
        with self._lock:
            self._now -= 1
        return stored(got)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "MAX_BATCH_RECORDS", 1)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize(("senders", "most"), [(1, 1), (3, 3), (20, LINES)])
def test_no_more_posts_are_under_way_than_there_are_senders(
    run: Any, endpoint: Endpoint, senders: int, most: int
) -> None:
    crowd = endpoint.default = Crowd(most)
    with run(senders=senders) as running:
        running.take(*(call(ENGAGE, f"u-{n}") for n in range(40)))
        wait_until(running.is_done)
    assert crowd.most == most
    assert len(endpoint.got) == 40


@pytest.mark.usefixtures("one_by_one")
def test_a_429_halves_the_senders(run: Any, endpoint: Endpoint, impatient: Any) -> None:
    impatient(0.01)
    crowd = Crowd(2)
    endpoint.default = crowd
    endpoint.answers.append(Answer(429))
    with run(senders=4) as running:
        running.take(call(ENGAGE, "first"))
        wait_until(running.is_done)
        running.take(*(call(ENGAGE, f"u-{n}") for n in range(40)))
        wait_until(running.is_done)
    assert crowd.most == 2


@pytest.mark.usefixtures("one_by_one")
def test_updates_and_those_that_count_go_to_one_place_and_are_one_crowd(run: Any, endpoint: Endpoint) -> None:
    crowd = Crowd(2)
    endpoint.default = lambda got: crowd(got) if got.path == "/engage" else stored(got)
    with run(senders=2, event_increments=("buy",)) as running:
        for n in range(20):
            running.take(call(ENGAGE, f"u-{n}"), call(IMPORT, "Buy", messageId=f"b-{n}", userId=f"u-{n}"))
        wait_until(running.is_done)
    assert running.report(COUNTERS).delivered == 20
    assert crowd.most == 2


def test_a_429_that_says_how_long_stops_every_line_to_its_endpoint(run: Any, endpoint: Endpoint) -> None:
    endpoint.answers.append(Answer(429, headers=(("Retry-After", "60"),)))
    with run(event_increments=("buy",)) as running:
        running.take(call(ENGAGE, "first"))
        wait_until(lambda: running.store.recall("last_answer_engage") is not None)
        for n in range(40):
            running.take(call(ENGAGE, f"u-{n}"), call(IMPORT, "Buy", messageId=f"b-{n}", userId=f"u-{n}"))
        wait_until(lambda: running.report(IMPORT).waiting == 0)
        time.sleep(0.5)
        assert sum(got.path == "/engage" for got in endpoint.got) == 1


def test_of_all_processes_together_no_more_arrives_in_a_minute_than_the_limit(
    postgresql_url: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one joins, and one goes and starts again; a minute is two seconds here."""
    limit, window_s, n_all = 200, 2.0, 600
    monkeypatch.setattr(pace, "WINDOW_S", window_s)
    monkeypatch.setattr(ingestion, "MAX_BATCH_RECORDS", 5)
    monkeypatch.setattr(Settings, "delivers_to_loopback", False)
    arrived: list[tuple[float, int]] = []

    def note(got: Got) -> Answer:
        arrived.append((time.monotonic(), len(got.records)))
        return stored(got)

    endpoint.default = note
    how = Settings(
        database_url=postgresql_url,
        ingestion_url=endpoint.url,
        mixpanel_token="tok-3f9a",
        max_records_a_minute=limit,
    )
    processes = [Running(how), Running(how)]
    try:
        processes[0].take(*(call(ENGAGE, f"u-{n}") for n in range(n_all)))
        processes[0].delivery.start()
        wait_until(lambda: sum(size for _, size in arrived) > 100)
        processes[1].delivery.start()
        wait_until(lambda: sum(size for _, size in arrived) > 350)
        processes[0].delivery.stop()
        processes[0].store.close()
        processes[0] = Running(how)
        processes[0].delivery.start()
        wait_until(processes[0].is_done)
    finally:
        for one in processes:
            one.delivery.stop(wait_s=5.0)
            one.store.close()
    assert sum(size for _, size in arrived) == n_all
    for at, _ in arrived:
        assert sum(size for when, size in arrived if at <= when < at + window_s - 0.05) <= limit


def test_an_endpoint_that_is_down_is_asked_seldom_and_gets_everything_when_it_is_back(
    run: Any, endpoint: Endpoint, impatient: Any
) -> None:
    """By themselves the lines would ask a hundred times a second each."""
    probe_s = 0.4
    impatient(probe_s)
    endpoint.default = lambda _got: BUSY
    with run() as running:
        began = time.monotonic()
        running.take(*(call(ENGAGE, f"u-{n}") for n in range(100)))
        wait_until(lambda: len(endpoint.got) >= OPENS_AFTER + LINES + 2)
        down_s = time.monotonic() - began
        assert len(endpoint.got) <= OPENS_AFTER + LINES + 1 + down_s / probe_s
        assert running.report(ENGAGE).refused == {}
        endpoint.default = stored
        wait_until(running.is_done)
    assert running.report(ENGAGE).delivered == 100


def test_a_bad_credential_stops_sending_with_a_probe_a_minute_and_goes_on_accepting(
    run: Any, endpoint: Endpoint
) -> None:
    endpoint.default = lambda got: Answer(401, {"error": "no"}) if got.path == "/import" else stored(got)
    with run() as running:
        running.take(*(call(IMPORT, f"e-{n}", userId=f"u-{n}") for n in range(50)))
        wait_until(lambda: running.store.recall("last_answer_import") is not None)
        wait_until(lambda: running.delivery._lines[IMPORT][0]._pace._under_way == 0)
        n_asked = len(endpoint.got)
        assert n_asked <= LINES, "those that were under way"
        assert running.delivery._lines[IMPORT][0]._pace.closed_s() > 55
        for n in range(20):
            running.take(call(IMPORT, f"more-{n}", userId=f"u-{n}"), call(ENGAGE, f"u-{n}"))
        wait_until(lambda: running.report(ENGAGE).waiting == 0)
        assert sum(got.path == "/import" for got in endpoint.got) == n_asked
        report = running.report(IMPORT)
        assert (report.waiting, report.refused, report.last_answer["fault"]) == (70, {}, "401: no")


@pytest.mark.parametrize("down", [IMPORT, ENGAGE, GROUPS])
@pytest.mark.parametrize("answer", [BUSY, Answer(401)], ids=["503", "401"])
def test_an_endpoint_that_is_down_holds_up_no_other(run: Any, endpoint: Endpoint, down: str, answer: Answer) -> None:
    endpoint.default = lambda got: answer if got.path == f"/{down}" else stored(got)
    others = {IMPORT, ENGAGE, GROUPS} - {down}
    with run() as running:
        running.take(call(IMPORT, "a"), call(ENGAGE, "u"), call(GROUPS, "g"))
        wait_until(lambda: sum(running.report(to).waiting for to in others) == 0)
        assert running.report(down).delivered == 0
        assert running.report(down).waiting > 0


@pytest.mark.parametrize(
    ("url", "limited"),
    [
        ("http://127.0.0.1:1", False),
        ("http://[::1]:1", False),
        ("http://localhost:1", False),
        ("sandbox", False),
        ("https://api.mixpanel.com", True),
        ("http://192.0.2.1", True),
        ("https://localhost.example", True),
    ],
)
def test_the_rate_is_limited_to_any_host_but_this_machine(sqlite_url: str, url: str, limited: bool) -> None:
    settings = Settings(database_url=sqlite_url, ingestion_url=url, mixpanel_token="tok-3f9a", max_records_a_minute=9)
    with Store(sqlite_url) as store:
        paces = {line._pace for lines in Delivery(store, settings, url)._lines.values() for line in lines}
    assert len(paces) == 3, "one to a place: updates and those that count go to the same"
    for one in paces:
        assert (one.admit(9, 1) > 0) == limited


# Random words over the answers


class Prescribed:
    """Each record has a word of answers to come; a batch gets the first letter of any of its records that is due."""

    ANSWERS = {
        "busy": BUSY,
        "many": Answer(429),
        "lost": Answer(0),
        "reset": Answer(200, b"{}", reset_after=1),
        "unread": Answer(408),
    }

    def __init__(self, words: dict[str, list[str]], bad: set[str]) -> None:
        self.words = words
        self.bad = bad
        self.applied: dict[str, list[int]] = defaultdict(list)  # by user, in the order in which they came
        self._lock = threading.Lock()

    def __call__(self, got: Got) -> Answer:
        names = [self.name(got, record) for record in got.records]
        with self._lock:
            due = [self.words[name].pop(0) for name in names if self.words.get(name)]
            if not due and self.bad & set(names):
                return Answer(400, {"error": "bad"})
            if not due or due[0] in ("lost", "reset"):
                self._apply([name for name in names if name not in self.bad])
            return self.ANSWERS[due[0]] if due else stored(got)

    def _apply(self, names: list[str]) -> None:
        for name in names:
            user, _, step = name.rpartition("/")
            self.applied[user].append(int(step))

    @staticmethod
    def name(got: Got, record: dict[str, Any]) -> str:
        if got.path == "/import":
            return str(record["event"])
        return f"{record['$distinct_id']}/{record['$set']['step']}"


def step(to: str, user: str, n: int) -> dict[str, Any]:
    at = f"2026-03-01T12:00:{n:02}Z"
    if to == IMPORT:
        return call(IMPORT, f"{user}/{n}", userId=user, timestamp=at)
    return call(ENGAGE, user, messageId=f"{user}-{n}", timestamp=at, traits={"step": n})


@pytest.mark.parametrize(("to", "seed"), [(IMPORT, 1), (ENGAGE, 2), (ENGAGE, 3)])
def test_each_profile_gets_its_own_in_order_and_once_whatever_the_endpoint_answers(
    run: Any, endpoint: Endpoint, impatient: Any, to: str, seed: int
) -> None:
    """After RudderStack's tests of its router: 50 users with some jobs each, and random words over the answers."""
    impatient(0.02)
    rnd = random.Random(seed)  # noqa: S311 a seed, not a secret
    users, n_steps = [f"user-{n}" for n in range(50)], 6
    jobs = [f"{user}/{n}" for n in range(n_steps) for user in users]
    letters = list(Prescribed.ANSWERS)
    words = {job: rnd.choices(letters, k=rnd.randrange(1, 5)) for job in jobs if rnd.random() < 0.1}
    bad = {job for job in jobs if rnd.random() < 0.05}
    told = endpoint.default = Prescribed(words, bad)
    messages = [step(to, user, n) for n in range(n_steps) for user in users]
    with run() as running:
        for begin in range(0, len(messages), 37):
            running.take(*messages[begin : begin + 37])
            time.sleep(0.01)  # so that they are not all claimed at once
        # What is bad is known by what is taken beside it: something always comes.
        more = (step(to, f"later-{n}", 0) for n in range(10_000))

        def is_known() -> bool:
            running.take(next(more))
            return sum(running.report(to).refused.values()) == len(bad)

        wait_until(is_known)
        wait_until(running.is_done)
    first = {user: list(dict.fromkeys(steps)) for user, steps in told.applied.items()}
    for user in users:
        wanted = [n for n in range(n_steps) if f"{user}/{n}" not in bad]
        assert first.get(user, []) == wanted, f"{user}: each comes after those before it"
        assert told.applied[user][-1:] == wanted[-1:], f"{user}: and the last stays the last"
    report = running.report(to)
    assert report.refused == {"refused_by_mixpanel": len(bad)}
    assert report.acknowledged == report.delivered + len(bad)
