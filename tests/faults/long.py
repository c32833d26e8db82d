"""What takes minutes to hours, each with the figures that it must keep; `scale` 0.1 takes a tenth of the time.

overload   three times as many senders as keep it busy, for 10 minutes: it says 200 or 503, in time, and recovers
forgeries  10,000 requests a minute with a bad signature beside good ones, for 5 minutes: these are hardly slower
soak       100 messages a second for 8 hours: memory, files and disk stay as they are
backlog    the endpoint is away until MAX_WAITING, five million, wait: 503 from there on; then all of it goes out
bloat      500 messages a second for an hour, while somebody looks at the database for 20 minutes without a pause

Each ends with everything delivered, and the adapter's counts, the senders' and the endpoint's in agreement.
"""

import hashlib
import hmac
import itertools
import shutil
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import requests

from adapter.delivery import LINES
from adapter.store import SHARES, Store, engine, entries, read_report
from adapter.store.sqlite import database_path
from schemas.mixpanel import IMPORT
from tests.benchmarks import drain, servers
from tests.conftest import rows
from tests.faults.fleet import Fleet, Process
from tests.faults.judge import Verdict
from tests.postgresql import running
from tests.processes import free_port

#: Segment gives up after so long.
PATIENCE_S = 5.0
MAX_RSS_MB = 300
SECRET = "the-secret"
USERS = 5_000
MESSAGE = b'{"type":"track","event":"Did","userId":"u-%%d","messageId":"m-%%d-%%d","properties":{"text":"%s"}}' % (
    b"x" * 1_000
)
#: What is remembered of each message for two days, at the most, beside what waits.
REMEMBERED_BYTES = 150
DRAIN_S = 3_600.0
N_CLAIMS = 300
OF_A_LINE = range(0, SHARES, LINES)


class Figures(Verdict):
    """A verdict by figures, each with its bound."""

    def hold(self, name: str, figure: float, bound: float, *, at_least: bool = False) -> None:
        """A figure, and what it may be at the most or has to be at least."""
        self.figures[name] = f"{short(figure):<10}{'at least' if at_least else 'at most'} {short(bound)}"
        self.expect(figure >= bound if at_least else figure <= bound, f"{name}: {figure}, and not {bound}")


def short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


@dataclass
class Sent:
    """What senders were told, and after how long."""

    answers: Counter[int] = field(default_factory=Counter)  #: 0: none
    seconds: list[float] = field(default_factory=list)
    n_taken: int = 0
    first_503_at: int | None = None  #: how many messages had been taken then

    def at(self, percent: int) -> float:
        return statistics.quantiles(self.seconds, n=100)[percent - 1]


class Site:
    """One process that serves, an endpoint that takes everything or is away, and senders of messages of 1.2 KB."""

    def __init__(self, folder: Path, url: str, **variables: str) -> None:
        self.folder, self.url, self.verdict = folder, url, Figures()
        self.sent = 0
        self._lock = threading.Lock()
        self._bodies = itertools.count()
        self._endpoint, self._port = ExitStack(), free_port()
        how = {"MIXPANEL_TOKEN": "token", "INGESTION_URL": f"http://127.0.0.1:{self._port}", "DATABASE_URL": url}
        self.fleet = Fleet(folder, ["serve"], **how, **variables)
        self.fleet.start()
        self.fleet.wait_until_ready()

    @property
    def process(self) -> Process:
        return self.fleet.processes[0]

    @property
    def pid(self) -> int:
        """Of the process that does the work."""
        pid = self.process.popen.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])

    def open_endpoint(self) -> None:
        self._endpoint.enter_context(drain.nowhere(self._port))

    def close(self) -> None:
        self.fleet.close()
        self._endpoint.close()

    def post(self, session: requests.Session, count: int, sent: Sent, *, forged: bool = False) -> None:
        number = next(self._bodies)
        body = b"[" + b",".join(MESSAGE % ((number * 7 + n) % USERS, number, n) for n in range(count)) + b"]"
        signature = "0" * 40 if forged else hmac.new(SECRET.encode(), body, hashlib.sha1).hexdigest()
        headers = {"Content-Type": "application/json", "X-Signature": signature}
        began, status = time.monotonic(), 0
        with suppress(requests.RequestException):
            answer = session.post(f"{self.process.url}/webhook", body, headers=headers, timeout=2 * PATIENCE_S)
            status = answer.status_code
        with self._lock:
            sent.seconds.append(time.monotonic() - began)
            sent.answers[status] += 1
            if status == 503 and sent.first_503_at is None:
                sent.first_503_at = sent.n_taken
            sent.n_taken += count if status == 200 else 0

    def send(
        self,
        n_senders: int,
        count: int,
        seconds: float,
        *,
        a_second: float | None = None,
        forged: bool = False,
        until: Callable[[Sent], bool] = lambda _: False,
    ) -> Sent:
        """So many senders of bodies of so many messages, as fast as they are answered or `a_second` all together."""
        sent, began = Sent(), time.monotonic()

        def work(number: int) -> None:
            with requests.Session() as session:
                for turn in itertools.count():
                    if a_second is not None:
                        time.sleep(max(began + (turn * n_senders + number) / a_second - time.monotonic(), 0.0))
                    if time.monotonic() > began + seconds or until(sent):
                        return
                    self.post(session, count, sent, forged=forged)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(n_senders)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._lock:
            self.sent += sent.n_taken
        return sent

    def expect_answers(self, sent: Sent, *allowed: int) -> None:
        name = f"answers, of {' and '.join(map(str, allowed))}"
        self.verdict.figures[name] = dict(sent.answers + Counter(self.verdict.figures.get(name)))
        self.verdict.expect(set(sent.answers) <= set(allowed), f"answers {dict(sent.answers)}, not only {allowed}")

    def drained(self) -> float:
        """Seconds until nothing waits; then all counts must agree."""
        began = time.monotonic()
        while (report := read_report(self.url)).waiting and time.monotonic() < began + DRAIN_S:
            time.sleep(0.2)
        counts = report.endpoints[IMPORT]
        arrived, _ = drain.counted(f"http://127.0.0.1:{self._port}")
        self.verdict.figures["acknowledged"] = self.sent
        # A POST whose answer came too late for its sender may have been taken all the same.
        for name, count in {"acknowledged": counts.acknowledged, "there": arrived}.items():
            self.verdict.expect(count >= self.sent, f"{self.sent} got a 200, and {count} are {name}")
        self.verdict.expect(counts.delivered == counts.acknowledged, f"not all is delivered: {counts}")
        return time.monotonic() - began

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def size_mb(self) -> float:
        """Of the database, all of it."""
        if self.url.startswith("postgresql"):
            return rows(self.url, "SELECT pg_database_size(current_database())")[0][0] / 1e6
        path = database_path(self.url)
        return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*")) / 1e6


def overload(site: Site, scale: float) -> None:
    site.open_endpoint()
    busy_s, over_s = max(60 * scale, 5.0), 600 * scale
    busy, over = site.send(16, 100, busy_s), site.send(48, 100, over_s)
    began = time.monotonic()
    calm = site.send(1, 20, 30.0, until=lambda sent: len(sent.seconds) >= 20 and max(sent.seconds[-20:]) < 1.0)
    recovered_s = time.monotonic() - began
    site.expect_answers(busy, 200)
    site.expect_answers(over, 200, 503)
    bound = 0.8 * busy.n_taken / busy_s
    site.verdict.hold("messages/s taken under overload", over.n_taken / over_s, bound, at_least=True)
    site.verdict.hold("slowest answer, s", max(over.seconds), PATIENCE_S)
    site.verdict.hold("seconds to twenty answers within 1 s", recovered_s, 10.0)
    site.verdict.expect(set(calm.answers) == {200}, f"afterwards: {calm.answers}")
    site.verdict.figures["seconds to drain"] = round(site.drained(), 1)


def forgeries(site: Site, scale: float) -> None:
    site.open_endpoint()
    alone = site.send(1, 1, 300 * scale, a_second=20)
    found: list[Sent] = []

    def forge() -> None:
        found.append(site.send(4, 1, 300 * scale, a_second=10_000 / 60, forged=True))

    forging = threading.Thread(target=forge)
    forging.start()
    beside = site.send(1, 1, 300 * scale, a_second=20)
    forging.join()
    site.expect_answers(beside, 200)
    site.expect_answers(found[0], 401)
    site.verdict.hold("forgeries a minute", found[0].answers[401] / (5 * scale), 9_000, at_least=True)
    # On a machine that does other things a few milliseconds say nothing.
    site.verdict.hold("99% of the good within, s", beside.at(99), max(2 * alone.at(99), 0.05))
    n_lines = sum(log.read_text().count("turned away") for log in site.folder.glob("serve-*.log"))
    site.verdict.hold("log lines a second", n_lines / (300 * scale), 10)
    site.drained()


def soak(site: Site, scale: float) -> None:
    site.open_endpoint()
    hours = 8 * scale
    samples: list[tuple[float, float, int]] = []  # hours, RSS in MB, open files
    stopping = threading.Event()

    def look() -> None:
        began = time.monotonic()
        while not stopping.wait(max(hours * 3_600 / 500, 0.5)):
            n_files = len(list(Path(f"/proc/{site.pid}/fd").iterdir()))
            samples.append(((time.monotonic() - began) / 3_600, site.rss_mb(), n_files))

    looking = threading.Thread(target=look)
    looking.start()
    sent = site.send(4, 20, hours * 3_600, a_second=5)
    stopping.set()
    looking.join()
    later = samples[len(samples) // 2 :]  # the first half fills caches
    slope = statistics.linear_regression([at for at, _, _ in later], [mb for _, mb, _ in later]).slope
    n_files = [n for _, _, n in later]
    site.expect_answers(sent, 200)
    site.verdict.figures["RSS, MB an hour"] = round(slope, 2)
    # Of minutes a few megabytes more or less say nothing.
    site.verdict.hold("RSS, MB more in the second half", slope * hours / 2, max(hours / 2, 4.0))
    site.verdict.hold("RSS at the end, MB", later[-1][1], MAX_RSS_MB)
    site.verdict.hold("open files, more or less", max(n_files) - min(n_files), 5)
    site.drained()
    site.verdict.hold("database, MB", site.size_mb(), 200 + REMEMBERED_BYTES * site.sent / 1e6)


def backlog(site: Site, scale: float) -> None:
    most = max_waiting(scale)
    few = site.send(4, 20, max(60 * scale, 5.0), a_second=25)
    n_senders, n_in_body = 3, 1_000
    filling = site.send(n_senders, n_in_body, 7_200.0, until=lambda sent: site.sent + sent.n_taken >= 0.8 * most)
    many = site.send(4, 20, max(60 * scale, 5.0), a_second=25)
    before = site.sent
    full = site.send(n_senders, n_in_body, 7_200.0, until=lambda sent: sent.answers[503] >= 30)
    site.expect_answers(filling, 200)
    site.expect_answers(many, 200)
    site.expect_answers(full, 200, 503)
    under_way, a_second = n_senders * n_in_body, n_senders * filling.n_taken / sum(filling.seconds)
    site.verdict.hold("taken at the first 503", before + (full.first_503_at or 0), most - under_way, at_least=True)
    # What waits is counted once a second.
    site.verdict.hold("taken at the last", site.sent, most + under_way + 2 * a_second)
    site.verdict.hold("99% taken within, s", many.at(99), 1.2 * few.at(99) + 0.02)
    site.verdict.hold("RSS with all of it, MB", site.rss_mb(), MAX_RSS_MB)
    site.fleet.terminate(site.process, float("inf"))
    if site.url.startswith("postgresql"):
        with psycopg.connect(site.url, autocommit=True) as connection:
            connection.execute("ANALYZE")  # as autovacuum does once a minute: a small run has no minute
    with Store(site.url) as store:
        last, spent = store.newest(), []
        for n in range(N_CLAIMS):
            began = time.perf_counter()
            store.claim(IMPORT, drain.BATCH, after=n * last // N_CLAIMS, shares=OF_A_LINE)
            spent.append(time.perf_counter() - began)
    site.verdict.figures["half of claims within, s"] = short(statistics.median(spent))
    site.verdict.hold("99% of claims within, s", statistics.quantiles(spent, n=100)[98], 0.1)
    site.open_endpoint()
    site.process.start_at = 0.0
    site.fleet.wait_until_ready()
    seconds = site.drained()
    site.verdict.hold("messages/s drained", site.sent / seconds, 5 * 50, at_least=True)
    site.verdict.hold("RSS at the most, MB", servers.peak_mb(site.process.popen.pid), MAX_RSS_MB)


def max_waiting(scale: float) -> int:
    return int(5_000_000 * scale)


def bloat(site: Site, scale: float) -> None:
    site.open_endpoint()
    began, seconds = time.monotonic(), 3_600 * scale
    claims: list[tuple[float, float]] = []  # when, as a share of the whole, and how long
    waiting: list[int] = []
    stopping = threading.Event()

    def claim() -> None:
        is_file = site.url.startswith("sqlite")
        with engine.beside(site.url) as reading:
            while not stopping.wait(0.2):
                with reading.connect() as connection:
                    at = time.monotonic()
                    entries.claim(connection, IMPORT, drain.BATCH, 0, OF_A_LINE, in_parts=is_file)
                    claims.append(((at - began) / seconds, time.monotonic() - at))
                    waiting.append(connection.exec_driver_sql("SELECT count(*) FROM entry").scalar_one())

    def hold() -> None:
        time.sleep(seconds / 3)
        with engine.moment(site.url) as connection:
            connection.exec_driver_sql("SELECT count(*) FROM message").scalar_one()
            time.sleep(seconds / 3)

    others = [threading.Thread(target=work) for work in (claim, hold)]
    for thread in others:
        thread.start()
    sent = site.send(4, 50, seconds, a_second=10)
    stopping.set()
    for thread in others:
        thread.join()
    site.expect_answers(sent, 200)
    thirds = {"before": (0, 1 / 3, 0.05), "during": (1 / 3, 2 / 3, 0.25), "after": (5 / 6, 1, 0.05)}
    for name, (low, high, bound) in thirds.items():
        spent = [took for at, took in claims if low <= at < high]
        site.verdict.hold(f"99% of claims {name}, s", statistics.quantiles(spent, n=100)[98], bound)
    live_mb = max(waiting) * 1_500 / 1e6
    site.drained()
    site.verdict.hold("database, MB", site.size_mb(), 3 * live_mb + 200 + REMEMBERED_BYTES * site.sent / 1e6)


SCENARIOS = {one.__name__: one for one in (overload, forgeries, soak, backlog, bloat)}


def run(name: str, database: str, scale: float) -> Verdict:
    """One scenario on a database. If something is wrong its folder is kept."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-{database}-"))
    with ExitStack() as stack:
        server = stack.enter_context(running(fsync=True)) if database == "postgresql" else None
        url = server.create(name, "ready") if server else f"sqlite:///{folder / 'adapter.db'}"
        with _site(folder, url, name, scale) as site:
            SCENARIOS[name](site, scale)
            site.fleet.stop()
    verdict = site.verdict
    for fault in site.fleet.told.faults:
        verdict.expect(False, fault)
    verdict.figures = {"scenario": name, "database": database, "scale": scale} | verdict.figures
    if verdict.wrong:
        verdict.figures["kept"] = str(folder)
    else:
        shutil.rmtree(folder)
    return verdict


@contextmanager
def _site(folder: Path, url: str, name: str, scale: float) -> Iterator[Site]:
    variables = {"backlog": {"MAX_WAITING": str(max_waiting(scale))}}.get(name, {})
    site = Site(folder, url, SEGMENT_SHARED_SECRET=SECRET, **variables)
    try:
        yield site
    finally:
        site.close()
