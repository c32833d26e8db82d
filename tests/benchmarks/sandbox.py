"""A sandbox project with a million events: how fast they come in, and how long a question takes."""

import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from adapter.sandbox import validation
from adapter.sandbox.funnel import Question, parse_step
from adapter.sandbox.project import Project

BATCH = 2_000
START_MS = 1_772_000_000_000
EVENTS = ["Read", "Read", "Read", "Add", "Buy", "Other"]
FUNNEL = ["Read", "Add", "Buy"]
FILTERED = ["Read[slug=post-7]", "Add", "Buy"]


def events(count: int, seed: int = 1) -> Iterator[list[dict[str, Any]]]:
    """Batches of events of a tenth as many devices; four of ten carry the user, too, and so link the device."""
    rnd = random.Random(seed)  # noqa: S311 not for secrets
    for start in range(0, count, BATCH):
        yield [_event(rnd, number, count // 10) for number in range(start, min(start + BATCH, count))]


def measure(count: int) -> None:
    """Print what a project of so many events takes in a second, and the seconds of each question."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sandbox.db"
        with closing(Project.open(path)) as project:
            spent = 0.0
            for batch in events(count):
                begin = time.perf_counter()
                good = [
                    event for event in batch if validation.event_error(event, START_MS * 2, project.system) is None
                ]
                project.ingest_events(good)
                spent += time.perf_counter() - begin
            kept = project.counts()
            size = sum(each.stat().st_size for each in Path(folder).iterdir()) / 1e6
            print(f"{kept['events']} events, {kept['links']} linked devices, {size:.0f} MB")
            print(f"{'validated and stored':<50}{kept['events'] / spent:>9.0f} events/s")
            steps, filtered = (tuple(map(parse_step, names)) for names in (FUNNEL, FILTERED))
            _timed("funnel of three steps, uniques", lambda: project.funnel(Question(steps=steps)))
            _timed("the same, totals", lambda: project.funnel(Question(steps=steps, totals=True)))
            _timed("the same, divided by a property", lambda: project.funnel(Question(steps=steps, by="slug")))
            _timed("the same, of the readers of one post", lambda: project.funnel(Question(steps=filtered)))
            _timed("a page of 100 people", lambda: project.people(limit=100))
            late = [_event(random.Random(2), count + 1, count // 10)]  # noqa: S311 not for secrets
            late[0]["properties"] |= {"$device_id": "device-0", "$user_id": "user-0"}
            _timed("one more event that links", lambda: project.ingest_events(late))
            print(f"{'peak memory of all of it':<50}{_memory_mb():>9} MB")


def _timed(what: str, work: Callable[[], object]) -> None:
    begin = time.perf_counter()
    work()
    print(f"{what:<50}{time.perf_counter() - begin:>9.2f} s")


def _memory_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _event(rnd: random.Random, number: int, people: int) -> dict[str, Any]:
    person = rnd.randrange(people)
    properties = {
        "time": START_MS + number * 37,
        "$insert_id": f"event-{number}",
        "$device_id": f"device-{person:08d}-7c1e-4a52-9d4f-0242ac12",
        "slug": f"post-{rnd.randrange(20)}",
        "$current_url": "https://shop.example/blue/cotton?utm_source=newsletter",
        "$os": "Mac OS X",
        "$browser": "Chrome",
        "$browser_version": "141",
        "$screen_width": 1728,
        "mp_country_code": "NL",
        "price": 12.5,
    }
    if rnd.random() < 0.4:
        properties["$user_id"] = f"user-{person}"
    return {"event": rnd.choice(EVENTS), "properties": properties}
