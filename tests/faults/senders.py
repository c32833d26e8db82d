"""Senders like Segment: a message is sent until it was answered 200, then the next of its device.

What a message is about - device, user, group - is locked until then, so that the order in which messages of each were
acknowledged is known, whoever sends them. An acknowledged message is an obligation; it stands in the journal.
"""

import datetime as dt
import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import requests

Call = dict[str, Any]

SENDERS = 6
OWN_DEVICES, OWN_USERS, SHARED_DEVICES, SHARED_USERS, GROUPS = 12, 5, 5, 3, 3
#: What is sent, and how often.
KINDS = {
    **{"visit": 26, "page": 10, "visitor": 5, "track": 20, "count": 2, "user's track": 6},
    **{"identify": 12, "user's identify": 6, "group": 6, "alias": 5},
}
#: How long a message is sent again after the end of the run, before the sender gives up.
GIVE_UP_S = 90.0
#: Bodies that may be sent again much later.
KEPT_BODIES = 300


@dataclass(frozen=True)
class Plan:
    """What a message is to be about, before it has its place in the order."""

    kind: str
    device: str | None
    user: str | None
    group: str | None
    fate: str | None

    @property
    def names(self) -> set[str]:
        return {name for name in (self.device, self.user, self.group) if name}


@dataclass
class Journal:
    """What all senders sent."""

    acknowledged: list[Call] = field(
        default_factory=list
    )  #: in an order in which those of a device follow each other
    issued: int = 0  #: messages that were sent at all
    duplicates: int = 0  #: bodies that were sent again after their 200, or twice at once
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  #: answers that no sender should get


class World:
    """What the senders of one run have in common."""

    def __init__(self, seed: int, webs: Sequence[str], seconds: float) -> None:
        self.seed, self.webs = seed, webs
        self.journal = Journal()
        self.stopping = threading.Event()
        self.started = time.monotonic()
        self.seconds = seconds
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._now_ms = 0

    def lock(self, names: set[str]) -> ExitStack:
        """Nobody else sends anything about these until the stack is closed."""
        held = ExitStack()
        with self._lock:
            locks = [self._locks[name] for name in sorted(names)]
        for one in locks:
            held.enter_context(one)
        return held

    def stamp(self) -> tuple[int, int]:
        """A number and a time, each greater than all before."""
        with self._lock:
            self._now_ms = max(self._now_ms + 1, int(time.time() * 1000))
            self.journal.issued += 1
            return next(self._numbers), self._now_ms

    def acknowledge(self, calls: Sequence[Call]) -> None:
        with self._lock:
            self.journal.acknowledged += calls

    def count_duplicate(self) -> None:
        with self._lock:
            self.journal.duplicates += 1

    def count_answer(self, status: int, fault: str | None) -> None:
        with self._lock:
            self.journal.answers[str(status or "none")] += 1
            self.journal.faults += [fault] if fault else []

    @property
    def is_early(self) -> bool:
        """Whether there is time for what makes the adapter wait for a minute."""
        return time.monotonic() - self.started < 0.4 * self.seconds


class Sender(threading.Thread):
    """One sender with devices and users of its own, and a share in others."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(name=f"sender-{number}")
        self._world, self._random = world, Random(f"sender {world.seed} {number}")
        self._devices = [f"d-{world.seed}-{number}-{n}" for n in range(OWN_DEVICES)]
        self._users = [f"u-{world.seed}-{number}-{n}" for n in range(OWN_USERS)]
        self._shared_devices = [f"d-{world.seed}-all-{n}" for n in range(SHARED_DEVICES)]
        self._shared_users = [f"u-{world.seed}-all-{n}" for n in range(SHARED_USERS)]
        self._groups = [f"g-{world.seed}-{number % 2}-{n}" for n in range(GROUPS)]
        self._user_of: dict[str, str] = {}  # device -> who uses it
        self._session = requests.Session()
        self._pool = ThreadPoolExecutor(2)
        self._sent: list[list[Call]] = []

    def run(self) -> None:
        try:
            while not self._world.stopping.is_set():
                self._turn()
                time.sleep(self._random.uniform(0.0, 0.02))
        except Exception as error:
            self._world.journal.faults.append(f"{self.name} ended: {error!r}")
        self._pool.shutdown()
        self._session.close()

    def _turn(self) -> None:
        if self._sent and self._random.random() < 0.08:
            self._send_again(self._random.choice(self._sent))
            return
        count = 1 if self._random.random() < 0.6 else self._random.randint(2, 12)
        plans = [self._plan() for _ in range(count)]
        with self._world.lock(set().union(*(plan.names for plan in plans))):
            calls = [self._call(plan) for plan in plans]
            if not self._send(calls, twice=self._random.random() < 0.1):
                return
            self._world.acknowledge(calls)
        if len(self._sent) < KEPT_BODIES:
            self._sent.append(calls)
        if self._random.random() < 0.2:
            for _ in range(self._random.randint(1, 3)):
                self._send_again(calls)

    def _plan(self) -> Plan:
        kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
        device: str | None = self._random.choice(self._random.choice([self._devices] * 4 + [self._shared_devices]))
        user: str | None = self._user_of.get(device or "")
        if user is None or self._random.random() < 0.05:
            user = self._random.choice(self._random.choice([self._users] * 4 + [self._shared_users]))
        if kind in ("visit", "page", "visitor"):
            user = None
        elif kind.startswith("user's"):
            device = None
        elif device is not None:
            self._user_of[device] = user
        # Where a refused message would change whose a device is, the outcome would not be known.
        may_be_bad = kind in ("visit", "user's track", "user's identify", "group") and self._random.random() < 0.05
        fates = ["named", "cured"] if kind in ("visit", "user's track") else []
        fates += ["poison", "cured"] if self._world.is_early else []
        fate = self._random.choice(fates) if may_be_bad and fates else None
        return Plan(kind, device, user, self._random.choice(self._groups) if kind == "group" else None, fate)

    def _call(self, plan: Plan) -> Call:
        number, now_ms = self._world.stamp()
        message_id = f"m-{self._world.seed}-{number}"
        # Segment keeps no order: some of what happened before arrives after.
        late_ms = self._random.randint(1, 5_000) if plan.kind == "visit" and self._random.random() < 0.2 else 0
        said: Call = {"said": message_id, "number": number}
        if plan.fate:
            said["fate"] = plan.fate
        slots = {} if plan.fate else {"slot": number, f"slot_{number % 4}": number}
        own: Call = {
            "visit": {"type": "track", "event": "Visited", "properties": said},
            "page": {"type": "page", "name": "Home", "properties": {**said, "text": "\u00e9\u2603" * (number % 9)}},
            "visitor": {"type": "identify", "traits": {f"held_{message_id}": number}},
            "track": {"type": "track", "event": f"Did {number % 7}", "properties": said},
            "count": {"type": "track", "event": "Paid", "properties": {**said, "paid": {f"paid_{message_id}": 1}}},
            "user's track": {"type": "track", "event": "Called", "properties": said},
            "identify": {"type": "identify", "traits": {**said, **slots}},
            "user's identify": {"type": "identify", "traits": {**said, **slots}},
            "group": {"type": "group", "groupId": plan.group, "traits": {**said, **slots}},
            "alias": {"type": "alias", "previousId": plan.device},
        }[plan.kind]
        ids = {"anonymousId": plan.device if plan.kind != "alias" else None, "userId": plan.user}
        call = {**own, **ids, "messageId": message_id, "timestamp": moment(now_ms - late_ms)}
        return {name: value for name, value in call.items() if value is not None}

    def _send(self, calls: Sequence[Call], *, twice: bool) -> bool:
        """Send until there is a 200; False if there was none in the time there is."""
        give_up_at = self._world.started + self._world.seconds + GIVE_UP_S
        while time.monotonic() < give_up_at:
            if twice:
                self._world.count_duplicate()
                webs = self._random.sample(self._world.webs, 2) if len(self._world.webs) > 1 else self._world.webs * 2
                statuses = list(self._pool.map(lambda web: self._post(web, calls), webs))
            else:
                statuses = [self._post(self._random.choice(self._world.webs), calls)]
            if 200 in statuses:
                return True
            time.sleep(self._random.uniform(0.05, 0.4))
        return False

    def _send_again(self, calls: Sequence[Call]) -> None:
        self._world.count_duplicate()
        now = moment(int(time.time() * 1000))
        self._post(self._random.choice(self._world.webs), [{**call, "sentAt": now} for call in calls])

    def _post(self, web: str, calls: Sequence[Call]) -> int:
        body = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False, separators=(",", ":")).encode()
        status, answer = 0, None
        with suppress(requests.RequestException):
            # A session is one thread's; two posts at once need two.
            session = self._session if threading.current_thread() is self else requests
            answer = session.post(
                f"{web}/webhook", data=body, headers={"Content-Type": "application/json"}, timeout=(2, 6)
            )
            status = answer.status_code
        fault = status not in (0, 200, 503) or (answer is not None and status == 200 and answer.json()["rejected"])
        self._world.count_answer(status, f"{status}: {answer.text[:300]}" if fault and answer is not None else None)
        return status


def moment(ms: int) -> str:
    """A time as Segment writes it."""
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
