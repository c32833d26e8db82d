"""What became of everything, read beside the process that serves."""

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from adapter.store import erasure, facts
from adapter.store.engine import moment
from adapter.store.shapes import INTAKE
from adapter.store.tables import ENDPOINTS, entry, message, refusal, tally


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
        deletions = DeletionReport(
            **erasure.report(connection), last_answer=facts.recall(connection, f"last_answer_{erasure.DELETIONS}")
        )
        endpoints = {name: _endpoint(connection, name) for name in (INTAKE, *ENDPOINTS)}
        return Report(endpoints=endpoints, deletions=deletions)


def _endpoint(connection: sa.Connection, name: str) -> EndpointReport:
    waiting = connection.scalar(sa.select(sa.func.count()).where(entry.c.endpoint == name)) or 0
    oldest_ms = connection.scalar(
        sa.select(message.c.accepted_at_ms)
        .join(entry, entry.c.message_id == message.c.id)
        .where(entry.c.endpoint == name)
        .order_by(entry.c.message_id)
        .limit(1)
    )
    counts: dict[str, dict[str, int]] = {}
    for state, reason, count in connection.execute(
        sa.select(tally.c.state, tally.c.reason, tally.c.count).where(tally.c.endpoint == name)
    ):
        if count:
            counts.setdefault(state, {})[reason] = count
    last = sa.select(sa.func.max(refusal.c.id)).where(refusal.c.endpoint == name).group_by(refusal.c.reason)
    details = connection.execute(sa.select(refusal.c.reason, refusal.c.detail).where(refusal.c.id.in_(last))).all()
    return EndpointReport(
        acknowledged=sum(counts.get("acknowledged", {}).values()),
        waiting=waiting,
        delivered=sum(counts.get("delivered", {}).values()),
        refused=counts.get("refused", {}),
        last_refused={reason: detail for reason, detail in details},
        nothing=counts.get("nothing", {}),
        held=sum(counts.get("held", {}).values()),
        expired=sum(counts.get("expired", {}).values()),
        expired_refused={reason: n for reason, n in counts.get("expired", {}).items() if reason},
        discarded=counts.get("discarded", {}),
        erased=sum(counts.get("erased", {}).values()),
        filtered=counts.get("filtered", {}),
        notes=counts.get("note", {}),
        duplicates=sum(counts.get("duplicate", {}).values()),
        oldest_ms=oldest_ms,
        last_answer=facts.recall(connection, f"last_answer_{name}"),
    )
