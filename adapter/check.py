"""Is the endpoint there, does it take our credentials, and which ID system does the project use?"""

import time
import uuid
from dataclasses import dataclass

from adapter import ingestion
from adapter.config import Settings
from adapter.ingestion import Outcome
from adapter.records import LEGACY, ORIGINAL, SIMPLIFIED
from schemas.mixpanel import IMPORT


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    good: bool
    text: str


def credentials(client: ingestion.Client) -> Finding:
    """Send one event that can only be refused, for it has no time: nothing is stored, and the answer tells all.

    Good credentials get 400 with the record named, bad ones 401 (mixpanel.md 2.2.2).
    """
    event = {"event": "Adapter Check", "properties": {"distinct_id": "adapter-check", "$insert_id": "adapter-check"}}
    verdict = client.post(client.request(IMPORT, [ingestion.encode(event)]), 1)
    if verdict.outcome is not Outcome.DONE:
        why = hint(verdict.text)
        return Finding(name="credentials" if why else "endpoint", good=False, text=verdict.text + why)
    if not verdict.refused:
        return Finding(name="endpoint", good=False, text="it took an event without a time, so it is not Mixpanel")
    return Finding(name="credentials", good=True, text="the endpoint answers and takes the credentials")


def hint(text: str) -> str:
    """What to look at where an answer is about the credentials; else nothing."""
    is_denied = text.startswith(("401", "403"))
    return "; is it the token of this project, and the project of this region?" if is_denied else ""


def identity_system(client: ingestion.Client, settings: Settings) -> Finding:
    """Store one event that has both ids but no distinct_id: only a Simplified project takes it (mixpanel.md 1.1)."""
    event = {
        "event": "Adapter Probe",
        "properties": {
            "time": int(time.time() * 1000),
            "$insert_id": str(uuid.uuid4()),
            "$device_id": str(uuid.uuid4()),
            "$user_id": "adapter-probe",
        },
    }
    verdict = client.post(client.request(IMPORT, [ingestion.encode(event)]), 1)
    if verdict.outcome is not Outcome.DONE:
        return Finding(name="identity", good=False, text=verdict.text)
    refusal = verdict.refused.get(0)
    if refusal is not None and "distinct_id" not in refusal:
        return Finding(name="identity", good=False, text=f"cannot be told; the probe was refused: {refusal}")
    wanted = settings.identity_api
    # Original and Legacy want a distinct_id alike.
    possible = (SIMPLIFIED,) if refusal is None else (ORIGINAL, LEGACY)
    found = f"the project's ID system is {' or '.join(possible)}"
    found += "" if refusal is None else ", which a probe cannot tell apart (Project Settings, Identity Merge)"
    if wanted in possible:
        return Finding(name="identity", good=True, text=f"{found}; IDENTITY_API says {wanted}")
    text = f"{found}, but IDENTITY_API says {wanted}: people would not be joined"
    return Finding(name="identity", good=False, text=text)
