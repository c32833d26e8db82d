"""What was kept of people who were deleted since: a message is refused, and its person asks to be forgotten.

By a `delete` in logs that a later run reads, or by one that went through the adapter. Who came back is known again
from then on.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice

from adapter import links, persons
from adapter.identity import bare
from adapter.replay import again
from adapter.replay.gone import NEVER_MS
from adapter.replay.journal import Kept
from adapter.replay.plan import Plan
from adapter.replay.run import Run
from adapter.store import Reader

#: What is kept and looked at together.
SOME = 500


def forget(run: Run) -> None:
    """Let go of what was kept of who was deleted, and count it as left out. Raises StoreUnavailable."""
    if not run.journal.has_kept():
        return
    with closing(Plan(run.journal.plan_path, run.job.now_ms)) as plan, run.known_store() as store:
        for is_broken in (False, True):
            kept = run.journal.kept(is_broken=is_broken)
            gone: list[bytes] = []
            while some := list(islice(kept, SOME)):
                gone += _gone(run, some, plan, store)
            if gone:
                run.journal.let_go(gone)


def _gone(run: Run, some: Sequence[Kept], plan: Plan, store: Reader | None) -> Iterator[bytes]:
    """The keys of those that are of people who were deleted no earlier than they happened."""
    whose = {one.key: _whose(run, one) for one in some}
    users = {user for named, _, _ in whose.values() for user in named}
    devices = {device for _, named, _ in whose.values() for device in named}
    owners = {device: plan.owner(device) for device in devices}
    logins = {
        (device, time_ms): login.user
        for _, named, time_ms in whose.values()
        for device in named
        if run.rules.options.split and (login := links.latest_login(plan.known(device).logins, time_ms)) is not None
    }
    known = store.known(devices) if store is not None else {}
    by_key = {links.key(user) for user in (*users, *owners.values()) if user is not None} | {*logins.values()}
    by_key |= {one.owner for one in known.values() if one.erased and one.owner is not None}
    erased = store.erased(by_key) if store is not None else {}

    def is_users(user: str, time_ms: int) -> bool:
        return time_ms <= max(plan.gone_until(user, True), erased.get(links.key(user), NEVER_MS))

    def is_devices(device: str, time_ms: int) -> bool:
        if plan.is_of_gone(device, time_ms):
            return True
        if (login := logins.get((device, time_ms))) is not None:
            return time_ms <= erased.get(login, NEVER_MS)
        owner, one = owners[device], known.get(device)
        if one is not None and one.erased and time_ms <= erased.get(one.owner or b"", run.job.now_ms):
            return True
        return owner is not None and is_users(owner, time_ms)

    for key, (named, on, time_ms) in whose.items():
        if any(is_users(one, time_ms) for one in named) or any(is_devices(one, time_ms) for one in on):
            yield key


def _whose(run: Run, one: Kept) -> tuple[list[str], list[str], int]:
    """The users and the devices whose it is, and when it happened: -1 of what has no time."""
    if (update := again.read(one.body)) is not None:
        return [update.profile], [bare(update.profile)], -1
    named, devices = persons.named_in(one.body, run.rules.options.denied)
    return named, devices, -1 if one.is_broken else persons.time_ms(one.body, run.job.now_ms)
