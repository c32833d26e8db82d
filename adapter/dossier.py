"""What is known of one id, in the words of somebody who answers a customer."""

import datetime as dt
from collections.abc import Iterator

from adapter import persons
from adapter.identity import bare, is_junk
from adapter.persons import Person
from adapter.store import Asked, Known, read_id
from adapter.store.person import Conflict, Held, Link, Use

ERASED = "(erased)"
#: Why two ids could not be joined; the others are Mixpanel's own words.
CONFLICTS = (
    "alias_of_a_user",
    "alias_of_anothers_device",
    "errAliasAlreadyExists",
    "errAnonDistinctIdAssignedAlready",
    "errAnonDistinctIdNonGUIDForm",
    "errManyIDs",
    "errSameIDs",
)


def look_up(database_url: str, an_id: str) -> Known:
    """Everything known of a user or device; the prefix `$device:` is taken off. Raises StoreUnavailable."""
    plain = bare(an_id)
    named = Person(user=plain).is_named_in
    return read_id(database_url, Asked(id=plain, needle=persons.needle(plain), is_named_in=named, reasons=CONFLICTS))


def tell(known: Known, held_days: int, denied: frozenset[str] = frozenset()) -> Iterator[str]:
    """Lines of text: what the id is, whose, since when, by which message, and what waits."""
    if is_junk(known.id, denied):
        yield f"{known.id} is no id: Mixpanel or JUNK_IDS refuses it, and it is never sent."
        return
    if not (known.devices or known.link or known.is_alias or known.uses or known.held or known.steps):
        yield f"Nothing is known of {known.id}: no link was made with it and nothing waits for it."
        yield "A user who was never seen on a device has no link; their events are theirs all the same."
    if known.devices:
        count = len(known.devices)
        yield f"{known.id} is a user with {count} device{'s' * (count > 1)}, for good:"
        yield from (f"  {one.device or ERASED}, {_made(one)}" for one in known.devices)
    if known.link:
        yield f"{known.id} is a device of {known.link.user or ERASED}, for good: {_made(known.link)}"
        if known.others:
            yield f"The other devices of {known.link.user or ERASED}, all one person with it:"
            yield from (f"  {one.device or ERASED}, {_made(one)}" for one in known.others)
    if known.is_alias:
        yield f"{known.id} was made an alias of an id that was there before; Mixpanel takes no second one for it."
    if known.uses:
        yield "Shared devices, by change of user:"
        yield from (f"  {_used(one)}" for one in known.uses)
    yield from (_waits(one, held_days) for one in known.held)
    if known.conflicts:
        yield f"Messages that would have joined {known.id} to another id, and were refused, newest first:"
        yield from (f"  {_refused(one)}" for one in known.conflicts)
    if known.steps:
        yield f"{known.id} asked to be forgotten:"
        yield from (f"  {utc(one.at_ms)} {one.step}: {one.detail}" for one in known.steps)


def _made(link: Link) -> str:
    return (
        f"linked by the {link.how} {link.message_id} of {utc(link.time_ms)}, which was accepted "
        f"{utc(link.made_at_ms)}"
    )


def _used(use: Use) -> str:
    other = f", not theirs: it went over to them {use.times} time{'s' * (use.times > 1)}" if use.times else ""
    sent = f", sent as {use.sent_as}" if use.sent_as != use.device else ""
    device = use.device or "a device of somebody else"
    return f"{utc(use.time_ms)} {use.user or ERASED} on {device} ({use.message_id}){sent}{other}"


def _refused(one: Conflict) -> str:
    return f"{utc(one.refused_at_ms)} {one.detail} ({one.reason}); `adapter refused show {one.number}` shows it"


def _waits(held: Held, held_days: int) -> str:
    what = [f"the traits {', '.join(held.traits)}"] if held.traits else []
    what += ["the first touch"] if held.first_touch else []
    until = held.held_at_ms + held_days * 86_400_000
    whom = (
        f"is being sent to {held.is_for or 'its user'}"
        if held.is_for
        else f"waits until {utc(until)} for who logs in next"
    )
    return f"With device {held.device} {' and '.join(what)} {whom}."


def utc(ms: float) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
