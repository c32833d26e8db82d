"""Measure, and print ratios.

python -m tests.benchmarks            the three figures, and what the web process takes
python -m tests.benchmarks days [KEYS]    the first put of a day that forgets three million keys, against one without
python -m tests.benchmarks mapping    where the microseconds go from a line to a request
python -m tests.benchmarks servers    the same two views on each WSGI server; needs the extra: .[bench]
python -m tests.benchmarks links [DEVICES]    millions of devices known against none, on both databases; minutes, 4 GB
python -m tests.benchmarks drain [MESSAGES]    10,000 drained, on both databases, by one worker and two, in minutes
python -m tests.benchmarks backlog [MESSAGES]    100,000 (the aim: 1000000) waiting against none, in minutes
python -m tests.benchmarks replay [LINES]    a million archived lines planned and sent, by one process and by two
python -m tests.benchmarks sandbox [EVENTS]    a funnel over a million events in the sandbox, in a minute or two
"""

import itertools
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable

import orjson
from isal import igzip

from adapter import ingestion, intake, mapping, parcels
from adapter.cli import BLOCKING_THREADS
from adapter.config import Settings
from adapter.records import Options
from adapter.store import Entry, Store
from schemas import mixpanel, raw, segment
from tests.benchmarks import drain, links, load, messages, replay, sandbox, servers

ROUNDS = 5
OPTIONS = Options(token="token")
BATCH = 2_000
#: Messages that go through the steps from a line to its request.
STAGED = 100_000
#: Entries that go through a step together: few, as one goes through all of them in earnest.
TOGETHER = 16


def interleaved(*works: Callable[[], object]) -> list[float]:
    """Median seconds of each, taken in turn so that a slow moment of the machine hits all."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, taken in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def webhook(database_url: str, server: str = "granian", threads: int = BLOCKING_THREADS) -> tuple[float, float, int]:
    """Answers a second of the bare view and of the durable webhook, on one server; and the most it took, in MB."""
    with servers.running(server, threads, database_url) as (port, pid):
        bodies = itertools.chain.from_iterable(messages.lines(20_000, seed) for seed in itertools.count())
        load.rate(port, "/bare", bodies, seconds=1)
        load.rate(port, "/webhook", bodies, seconds=1)
        bare, durable = [], []
        for _ in range(3):
            bare.append(load.rate(port, "/bare", bodies))
            durable.append(load.rate(port, "/webhook", bodies))
        return statistics.median(bare), statistics.median(durable), servers.peak_mb(pid)


def batch(database_url: str) -> tuple[float, float]:
    """Seconds to parse a body of 2,000 messages, and to take it in durably."""
    source = messages.lines(BATCH * (ROUNDS + 1))
    bodies = iter([b"[" + b",".join(itertools.islice(source, BATCH)) + b"]" for _ in range(ROUNDS + 1)])
    fixed = next(bodies)
    with Store(database_url) as store:
        parse, take = interleaved(
            lambda: orjson.loads(fixed), lambda: intake.accept(raw.elements(next(bodies)), store, OPTIONS)
        )
    return parse, take


def line_to_request() -> tuple[float, float]:
    """Seconds from 2,000 raw messages to gzipped requests, and for parse + serialise + gzip of the same bytes.

    The messages of each round are new.
    """
    settings = Settings(mixpanel_token="token", ingestion_url="http://127.0.0.1:1")
    rules = parcels.Rules.of(settings)
    client = ingestion.Client(settings, "http://127.0.0.1:1")
    rounds = [_entries(list(messages.lines(BATCH, seed))) for seed in range(ROUNDS + 1)]
    written = [[record for entry in entries for record in _records(entry, rules)] for entries in rounds]
    turns = itertools.cycle(rounds), itertools.cycle(zip(rounds, written, strict=True))

    def mapped() -> list[ingestion.Request]:
        found: dict[str, list[parcels.Parcel]] = {}
        for entry in next(turns[0]):
            parcel = parcels.prepare(entry, rules)
            if isinstance(parcel, parcels.Parcel):
                found.setdefault(entry.endpoint, []).append(parcel)
        return [
            client.request(endpoint, [record for parcel in cut for record in parcel.records])
            for endpoint, waiting in found.items()
            for cut in parcels.batches(waiting)
        ]

    def limit() -> bytes:
        entries, records = next(turns[1])
        for line in {entry.message_id: entry.body for entry in entries}.values():
            orjson.loads(line)
        return igzip.compress(b",".join([orjson.dumps(record) for record in records]), 1, mtime=0)

    limit_s, mapped_s = interleaved(limit, mapped)
    return limit_s, mapped_s


def bare_node() -> float | None:
    """Messages a second that Node, where there is one, parses and writes again: peers are measured by it."""
    if (node := shutil.which("node")) is None:
        return None
    script = """
        const lines = require("fs").readFileSync(0, "utf8").split("\\n");
        const turn = () => { for (const line of lines) JSON.stringify(JSON.parse(line)); };
        const rates = [];
        for (let n = 0; n < 5; n++) {
            const begin = process.hrtime.bigint(); turn();
            rates.push(lines.length / (Number(process.hrtime.bigint() - begin) / 1e9));
        }
        console.log(rates.sort((a, b) => a - b)[2]);
    """
    done = subprocess.run(
        [node, "-e", script], input=b"\n".join(messages.lines(20_000)), capture_output=True, check=True
    )
    return float(done.stdout)


def stages() -> None:
    """Print microseconds an entry for each step from its line to its gzipped request, and memory at both ends."""
    rules = parcels.Rules.of(Settings(mixpanel_token="token", ingestion_url="http://127.0.0.1:1"))
    spent: Counter[str] = Counter()
    n_entries, memory = 0, []
    for start in range(0, STAGED, BATCH):
        entries = _entries(list(messages.lines(BATCH, seed=start)))
        n_entries += len(entries)
        clock, records = time.perf_counter, []
        for first in range(0, len(entries), TOGETHER):
            begin = clock()
            read = [(entry, segment.read(entry.body)) for entry in entries[first : first + TOGETHER]]
            spent["typed read"] += clock() - begin
            begin = clock()
            mapped = [
                (entry, mapping.map_apart(message, entry.endpoint, 0, rules.options))
                for entry, message in read
                if entry.endpoint == "import" or message.user_id
            ]
            spent["identity and map"] += clock() - begin
            begin = clock()
            for entry, one in mapped:
                records += parcels.written(one, entry, rules.options)[0]
            spent["limits and serialise"] += clock() - begin
        begin = clock()
        igzip.compress(b",".join(records), 1, mtime=0)
        spent["gzip"] += clock() - begin
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    for step, seconds in spent.items():
        print(f"{step:<20}{seconds / n_entries * 1e6:>7.2f} us")
    total = sum(spent.values())
    rates = f"{n_entries / total:.0f} entries/s   {STAGED / total:.0f} messages/s"
    print(f"{'together':<20}{total / n_entries * 1e6:>7.2f} us   {rates}")
    print(f"peak memory after the first tenth {memory[len(memory) // 10]} MB, at the end {memory[-1]} MB")


def marshmallow_itself() -> tuple[float, float]:
    """Seconds for 500 tracks by the schemas' own load and dump, and by what is compiled from them."""
    tracks = [line for line in messages.lines(1_000) if b'"type":"track"' in line][:500]
    context, owned = mixpanel.EventContext(), mixpanel.EventOwned()

    def slow() -> None:
        for line in tracks:
            message = segment.load_slowly(raw.parse(line), "track")
            record = mapping.map_message(message, "import", 0, OPTIONS).records[0]
            ingestion.encode({**context.dump(message), **message.properties, **owned.dump(record)})

    def fast() -> None:
        for line in tracks:
            ingestion.encode(mapping.map_message(segment.read(line), "import", 0, OPTIONS).records[0])

    slow_s, fast_s = interleaved(slow, fast)
    return slow_s - fast_s / 2, fast_s  # the slow way maps as well, to have ids to dump


def _records(entry: Entry, rules: parcels.Rules) -> list[dict[str, object]]:
    parcel = parcels.prepare(entry, rules)
    return [orjson.loads(record) for record in parcel.records] if isinstance(parcel, parcels.Parcel) else []


def _entries(lines: list[bytes]) -> list[Entry]:
    return [
        Entry(endpoint=to.endpoint, message_id=number, accepted_at_ms=0, time_ms=0, body=line)
        for number, line in enumerate(lines)
        for to in mapping.destinations(segment.read(line), OPTIONS)
    ]


def main() -> None:
    if sys.argv[1:] == ["mapping"]:
        stages()
        limit, mapped = line_to_request()
        print(
            f"parse + serialise + gzip : line to request   {limit / mapped:.2f}   ({BATCH / mapped:.0f} messages/s)"
        )
        if bare := bare_node():
            print(
                f"line to request : bare JSON in Node          {BATCH / mapped / bare:.2f}   ({bare:.0f} messages/s)"
            )
        slow, fast = marshmallow_itself()
        print(f"marshmallow's own load and dump : compiled   {slow / fast:.0f}x")
        return
    if sys.argv[1:2] == ["sandbox"]:
        sandbox.measure(int(sys.argv[2]) if sys.argv[2:] else 1_000_000)
        return
    for name, lines in (
        ("drain", lambda count: drain.measure(count or 10_000, line_to_request)),
        ("replay", lambda count: replay.measure(count or 1_000_000, line_to_request)),
        ("days", lambda count: drain.days(count or 3_000_000)),
        ("backlog", lambda count: drain.backlog(count or 100_000)),
    ):
        if sys.argv[1:2] == [name]:
            for line in lines(int(*sys.argv[2:3])):
                print(line, flush=True)
            return
    if sys.argv[1:2] == ["links"]:
        for line in links.compare(int(*sys.argv[2:3])):
            print(line, flush=True)
        return
    if sys.argv[1:] == ["servers"]:
        for server, threads in itertools.product(servers.COMMANDS, (5, 8, 16)):
            with tempfile.TemporaryDirectory() as folder:
                bare, durable, _ = webhook(f"sqlite:///{folder}/adapter.db", server, threads)
            rates = f"bare {bare:>6.0f}/s   durable {durable:>6.0f}/s   {durable / bare:.2f}"
            print(f"{server:<9} {threads:>2} threads   {rates}")
        return
    with drain.databases() as made:
        for name, make in made.items():
            bare, durable, most_mb = webhook(make())
            rates = f"({durable:.0f}/s : {bare:.0f}/s; {most_mb} MB at most)"
            print(f"durable single-message webhook : bare Flask view   {durable / bare:.2f}   {name} {rates}")
            parse, take = batch(make())
            rate = f"({BATCH / take:.0f} messages/s)"
            print(f"durable batch of 2,000 : parsing its body          {take / parse:.1f}x   {name} {rate}")
    limit, mapped = line_to_request()
    print(
        f"parse + serialise + gzip : line to request         {limit / mapped:.2f}   ({BATCH / mapped:.0f} messages/s)"
    )


if __name__ == "__main__":
    main()
