"""What became of everything, read beside the process that serves."""

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from adapter.store import deletions, facts
from adapter.store.engine import moment
from adapter.store.shapes import INTAKE
from adapter.store.tables import ENDPOINTS, entry, message, refusal, tally

_WAITS = (
    sa.select(entry.c.endpoint, sa.func.count().label("count"), sa.func.min(entry.c.message_id).label("oldest"))
    .group_by(entry.c.endpoint)
    .subquery()
)
_WAITING = sa.select(_WAITS.c.endpoint, _WAITS.c.count, message.c.accepted_at_ms).join(
    message, message.c.id == _WAITS.c.oldest
)
_TALLIES = sa.select(tally.c.endpoint, tally.c.state, tally.c.reason, tally.c.count).where(
    tally.c.endpoint.in_((INTAKE, *ENDPOINTS)), tally.c.count != 0
)
_LAST_REFUSED = sa.select(refusal.c.endpoint, refusal.c.reason, refusal.c.detail).where(
    refusal.c.id.in_(sa.select(sa.func.max(refusal.c.id)).group_by(refusal.c.endpoint, refusal.c.reason))
)


@dataclass(frozen=True, kw_only=True)
class EndpointReport:
    """One endpoint's entries. acknowledged is always the sum of waiting and of how the others ended: delivered,
    refused, held, expired, discarded, erased, nothing, filtered.
    """

    acknowledged: int = 0
    waiting: int = 0
    delivered: int = 0
    refused: dict[str, int] = field(default_factory=dict)  #: reason -> how many
    last_refused: dict[str, str] = field(default_factory=dict)  #: reason -> the latest refusal's detail
    nothing: dict[str, int] = field(default_factory=dict)  #: why there was nothing to send -> how many
    held: int = 0  #: of visitors, waiting for the person they become
    expired: int = 0  #: held or refused too long
    expired_refused: dict[str, int] = field(default_factory=dict)  #: reason -> how many of these were refused
    discarded: dict[str, int] = field(default_factory=dict)  #: reason of the refusal -> how many
    erased: int = 0  #: refused or held, of people who are forgotten
    filtered: dict[str, int] = field(default_factory=dict)  #: which setting or wish kept it back -> how many
    notes: dict[str, int] = field(default_factory=dict)  #: what was dropped or changed on the way
    duplicates: int = 0  #: acknowledged again, not stored again
    oldest_ms: int | None = None  #: acceptance of the oldest that waits
    last_answer: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class DeletionReport:
    """What Mixpanel is asked to delete."""

    waiting: int = 0  #: ids to be requested
    pending: int = 0  #: requests that Mixpanel works on
    ended: dict[str, int] = field(default_factory=dict)  #: Mixpanel's last word -> how many ids
    last_answer: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All endpoints, and `intake` for what was refused at the door."""

    endpoints: dict[str, EndpointReport]
    deletions: DeletionReport = DeletionReport()

    @property
    def waiting(self) -> int:
        return sum(one.waiting for one in self.endpoints.values())


def read_report(database_url: str) -> Report:
    """Read the tallies. Raises StoreUnavailable if there is no store."""
    with moment(database_url) as connection:
        asked = DeletionReport(
            **deletions.report(connection),
            last_answer=facts.recall(connection, f"last_answer_{deletions.DELETIONS}"),
        )
        waiting = {name: (count, oldest_ms) for name, count, oldest_ms in connection.execute(_WAITING)}
        counts: dict[str, dict[str, dict[str, int]]] = {name: {} for name in (INTAKE, *ENDPOINTS)}
        for name, state, reason, count in connection.execute(_TALLIES):
            counts[name].setdefault(state, {})[reason] = count
        details: dict[str, dict[str, str]] = {name: {} for name in counts}
        for name, reason, detail in connection.execute(_LAST_REFUSED):
            details[name][reason] = detail
        endpoints = {
            name: EndpointReport(
                acknowledged=sum(states.get("acknowledged", {}).values()),
                waiting=waiting.get(name, (0, None))[0],
                delivered=sum(states.get("delivered", {}).values()),
                refused=states.get("refused", {}),
                last_refused=details[name],
                nothing=states.get("nothing", {}),
                held=sum(states.get("held", {}).values()),
                expired=sum(states.get("expired", {}).values()),
                expired_refused={reason: n for reason, n in states.get("expired", {}).items() if reason},
                discarded=states.get("discarded", {}),
                erased=sum(states.get("erased", {}).values()),
                filtered=states.get("filtered", {}),
                notes=states.get("note", {}),
                duplicates=sum(states.get("duplicate", {}).values()),
                oldest_ms=waiting.get(name, (0, None))[1],
                last_answer=facts.recall(connection, f"last_answer_{name}"),
            )
            for name, states in counts.items()
        }
        return Report(endpoints=endpoints, deletions=asked)
