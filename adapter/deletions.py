"""Ask Mixpanel to delete the data of people who asked for it, and follow each request to its end.

A request names up to 1,999 distinct ids; Mixpanel takes one a second and works on it for up to 30 days, so the
status of each is asked for every ten minutes (mixpanel.md 5.1). What waits, waits in the store.
"""

import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import orjson
from marshmallow import ValidationError

from adapter import ingestion
from adapter.config import Settings
from adapter.rounds import Rounds
from adapter.store import DELETIONS, SHARES, Store
from adapter.wire import Answer, NoAnswer, Wire
from schemas import answers

logger = logging.getLogger(__name__)

PATH = "/api/app/data-deletions/v3.0/"
#: Mixpanel's pages disagree whether it is one more.
MAX_IDS = 1_999
#: Mixpanel takes one request a second.
PACE_S = 1.0
POLL_S = 600.0
FIRST_WAIT_S = 2.0
#: A limit on what Mixpanel scans can last for hours.
MAX_WAIT_S = 3_600.0
#: How long to leave Mixpanel alone when a person must mend something.
FAULT_WAIT_S = 600.0


class Deletions(Rounds):
    """The way to Mixpanel's data deletions: each round makes one request at most."""

    def __init__(
        self, store: Store, settings: Settings, *, poll_s: float = POLL_S, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(DELETIONS)
        self._store = store.deletions
        self._remember = store.remember
        self._leases = store.leases
        self._poll_s = poll_s
        self._clock = clock
        self._url = f"{settings.deletion_address}{PATH}"
        self._token = settings.token
        self._headers = {
            "Authorization": f"Bearer {settings.deletion_token}",
            "Content-Type": "application/json",
        }
        self._wire = Wire((settings.token, settings.deletion_token), settings.may_reach)
        self._failures = 0

    def hang_up(self) -> None:
        self._wire.hang_up()

    def close(self) -> None:
        self._wire.close()

    def work(self) -> float | None:
        """Make one request: for ids that wait, else for the status that was asked for the longest ago.

        Of many processes the one with the first lanes does it.
        """
        with self._leases.use(0, SHARES) as epochs:
            return self._work() if epochs else None

    def _work(self) -> float | None:
        if waiting := self._store.to_request(MAX_IDS):
            numbers, ids = [number for number, _ in waiting], [an_id for _, an_id in waiting]
            body = {"distinct_ids": list(dict.fromkeys(ids)), "compliance_type": "GDPR"}
            return self._make("POST", self._url, body, lambda answer: self._requested(answer, numbers))
        tracking_id = self._store.to_ask(int((self._clock() - self._poll_s) * 1000))
        if tracking_id is None:
            return None
        url = f"{self._url}{quote(tracking_id, safe='')}"
        return self._make("GET", url, None, lambda answer: self._answered(answer, tracking_id))

    def _make(self, method: str, url: str, body: Any, read: Callable[[bytes], str | None]) -> float:
        """Send a request and have its answer read, which says what it means; None: it is not Mixpanel's."""
        text, wait_s, fault = "", None, True
        try:
            answer = self._wire.send(
                method,
                url,
                params={"token": self._token},
                headers=self._headers,
                body=None if body is None else orjson.dumps(body),
            )
        except NoAnswer as error:
            text, fault = str(error), False
        else:
            if answer.status in (200, 201) and (meaning := read(answer.body)) is not None:
                self._failures = 0
                self._note(f"{answer.status}: {meaning}", None)
                return PACE_S
            text, wait_s, fault = self._not_taken(answer)
        self._failures += 1
        self._note(text, text if fault else None)
        # Not what the endpoint said: it may quote an id.
        log = logger.error if fault else logger.warning
        log("a request for deletion was not taken", extra={"answer": text.partition(":")[0]})
        doubled = min(FIRST_WAIT_S * 2.0 ** min(self._failures - 1, 16), MAX_WAIT_S)
        return max(doubled, wait_s or 0.0, FAULT_WAIT_S if fault else 0.0)

    def _not_taken(self, answer: Answer) -> tuple[str, float | None, bool]:
        """What an answer says, how long it wants us to wait, and whether a person must mend something."""
        if answer.status in (200, 201):
            return f"{answer.status}, but not Mixpanel's answer: is DELETION_URL right?", None, True
        text = f"{answer.status}: {ingestion.said(answer.body)}"
        if answer.status in (408, 429) or answer.status >= 500:
            wait_s = ingestion.retry_after_s(answer.headers.get("Retry-After"), time.time(), MAX_WAIT_S)
            return text, wait_s, False
        return text, None, True

    def _requested(self, body: bytes, numbers: list[int]) -> str | None:
        answer = _read(answers.DeletionAnswer(), body)
        if answer is None or not (tracking_id := answer["task_id"] or answer["tracking_id"]):
            return None
        self._store.requested(numbers, tracking_id)
        return f"{len(numbers)} ids as {tracking_id}"

    def _answered(self, body: bytes, tracking_id: str) -> str | None:
        answer = _read(answers.DeletionStatus(), body)
        if answer is None:
            return None
        self._store.answered(tracking_id, answer["status"])
        return f"{tracking_id} is {answer['status']}"

    def _note(self, text: str, fault: str | None) -> None:
        self._remember(f"last_answer_{DELETIONS}", {"text": text, "fault": fault, "at": time.time()})


def _read(schema: answers.OfDeletions, body: bytes) -> dict[str, Any] | None:
    try:
        loaded: dict[str, Any] = schema.load(orjson.loads(body))
    except (ValidationError, orjson.JSONDecodeError):
        return None
    return loaded
