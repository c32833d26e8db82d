"""Generated messages as analytics.js and the other SDKs send them: about 1.3 KB each, the same for the same seed.

Ids, pages, the pages before, IP addresses and properties hardly ever come twice, so nothing that remembers them would
look better here than it is. What repeats as in life: user agents, libraries, screens, a campaign, names of events.
"""

import datetime as dt
import random
import uuid
from collections.abc import Iterator
from typing import Any

import orjson

TYPES = {"track": 70, "page": 10, "identify": 10, "screen": 5, "group": 3, "alias": 2}
USER_AGENTS = [
    f"Mozilla/5.0 ({platform}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{version}.0.0.0 Safari/537.36"
    for platform in ("Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7", "X11; Linux x86_64")
    for version in range(128, 142)
]
EVENTS = ["Product Viewed", "Product Added", "Signed Up", "Article Read", "Search Performed", "Video Started"]
SITES = [
    "https://search.example/",
    "https://www.google.com/",
    "https://duckduckgo.com/",
    "https://news.example/a?b=c",
]
WORDS = ["blue", "red", "small", "large", "cotton", "paper", "garden", "kitchen", "winter", "summer", "classic"]

#: How many people come again, and how many of their visits are under way at once.
VISITORS, AT_ONCE = 5_000, 300


def lines(count: int, seed: int = 1) -> Iterator[bytes]:
    """Raw messages, one JSON object each."""
    rnd = random.Random(seed)  # noqa: S311 not for secrets
    kinds = rnd.choices(list(TYPES), list(TYPES.values()), k=count)
    for number, kind in enumerate(kinds):
        yield orjson.dumps(_message(rnd, number, kind))


def visits(count: int, seed: int = 1) -> Iterator[bytes]:
    """The same, of people whose visits overlap: ids come again, as they do in life."""
    rnd = random.Random(seed)  # noqa: S311 not for secrets
    logged_in: set[int] = set()
    under_way = [_visit(rnd, logged_in) for _ in range(AT_ONCE)]
    for number in range(count):
        place = rnd.randrange(AT_ONCE)
        while (step := next(under_way[place], None)) is None:
            under_way[place] = _visit(rnd, logged_in)
        kind, person = step
        message = _message(rnd, number, kind)
        user = f"user-{person}" if person in logged_in else None
        yield orjson.dumps(message | {"anonymousId": _device(person), "userId": user})


def _visit(rnd: random.Random, logged_in: set[int]) -> Iterator[tuple[str, int]]:
    """A few pages; whoever is logged in, or now logs in, is identified by each, as most sites do it."""
    person = rnd.randrange(VISITORS)
    for _ in range(rnd.randrange(1, 5)):
        if rnd.random() < 0.2:
            logged_in.add(person)
        if person in logged_in:
            yield "identify", person
        yield "page", person
        for _ in range(rnd.randrange(1, 5)):
            yield "track", person


def _message(rnd: random.Random, number: int, kind: str) -> dict[str, Any]:
    person = rnd.randrange(50_000)
    device = str(uuid.UUID(int=rnd.getrandbits(128), version=4)) if rnd.random() < 0.1 else _device(person)
    at = 1_772_000_000_000 + number * 37
    path = f"/{rnd.choice(WORDS)}/{rnd.choice(WORDS)}-{rnd.randrange(10_000)}"
    url = f"https://shop.example{path}?utm_source=newsletter&ref={rnd.randrange(1_000)}"
    before = f"https://shop.example/{rnd.choice(WORDS)}/{rnd.choice(WORDS)}-{rnd.randrange(10_000)}"
    page = {
        "path": path,
        "referrer": before if rnd.random() < 0.7 else rnd.choice(SITES),
        "search": "?utm_source=newsletter",
        "title": path,
        "url": url,
    }
    message: dict[str, Any] = {
        "timestamp": _iso(at),
        "integrations": {},
        "anonymousId": device,
        "userId": f"user-{person}" if rnd.random() < 0.4 or kind in ("identify", "alias", "group") else None,
        "type": kind,
        "context": {
            "page": page,
            "userAgent": rnd.choice(USER_AGENTS),
            "userAgentData": {
                "brands": [{"brand": "Chromium", "version": "141"}, {"brand": "Not?A_Brand", "version": "8"}],
                "mobile": False,
                "platform": "macOS",
            },
            "locale": "en-GB",
            "timezone": "Europe/Amsterdam",
            "library": {"name": "analytics.js", "version": "next-1.84.3"},
            "campaign": {"source": "newsletter", "medium": "email", "name": "spring"},
            "screen": {"width": 1728, "height": 1117, "density": 2},
            "ip": f"198.51.{rnd.randrange(256)}.{rnd.randrange(256)}",
        },
        "messageId": f"ajs-next-{at}-{uuid.UUID(int=rnd.getrandbits(128), version=4)}",
        "writeKey": "abcdefghijklmnopqrstuvwxyz012345",
        "_metadata": {"bundled": ["Segment.io"], "unbundled": [], "bundledIds": []},
        "sentAt": _iso(at + 20),
        "receivedAt": _iso(at + 250),
        "originalTimestamp": _iso(at),
        "projectId": "generatedProject",
        "version": 2,
        "channel": "browser",
    }
    return message | _body(rnd, kind, page, person, device)


def _body(rnd: random.Random, kind: str, page: dict[str, Any], person: int, device: str) -> dict[str, Any]:
    properties = {
        "product_id": f"P-{rnd.randrange(100_000)}",
        "name": f"{rnd.choice(WORDS)} {rnd.choice(WORDS)}",
        "price": rnd.randrange(10_000) / 100,
        "quantity": rnd.randrange(1, 5),
        "categories": rnd.sample(WORDS, 3),
        "in_stock": rnd.random() < 0.9,
        "position": rnd.randrange(40),
    }
    traits = {
        "email": f"person{person}@example.org",
        "firstName": "Ann",
        "lastName": "Other",
        "plan": "pro",
        "logins": 7,
    }
    return {
        "track": {"event": rnd.choice(EVENTS), "properties": properties},
        "page": {
            "name": "Product",
            "category": "Shop",
            "properties": {**page, "name": "Product", "category": "Shop"},
        },
        "screen": {"name": "Product", "properties": properties},
        "identify": {"traits": traits},
        "group": {
            "groupId": f"group-{person % 500}",
            "traits": {"name": "A Company", "plan": "team", "employees": 120},
        },
        "alias": {"previousId": device},
    }[kind]


def _device(person: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(person)))


def _iso(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"
