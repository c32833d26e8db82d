"""The commands about what was refused: list, show, retry, discard."""

import datetime as dt
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import click

from adapter import app, changes, delivery
from adapter.config import Settings
from adapter.dossier import utc
from adapter.preview import again
from adapter.sandbox.funnel import parse_window
from adapter.store import INTAKE, Kept, Reader, Wanted, beside, read_report

#: What a filter does not retry unasked, and how to ask: reason -> both.
LEFT_ALONE = {
    "may_have_been_applied": "would count twice if they were applied; name them by number, or say --counters",
    "destination_changed": "are another project's; name them by number, or say --reason destination_changed",
    "damaged": "are not as they were received; name them by number, or say --reason damaged",
    "ends_the_process": "may end this one as well; name them by number, or say --reason ends_the_process",
}
NOTHING = "nothing is refused that was asked for"
NUMBER = click.IntRange(1, 2**63 - 1)  #: what a database takes


def chosen(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose among what is refused."""
    for option in (
        click.option("--contains", metavar="TEXT", help="Only messages with this text in them."),
        click.option("--until", metavar="T", help="Only what was refused before then."),
        click.option("--since", metavar="T", help="Only what was refused since: 2026-03-01, 2026-03-01T12:00Z, 2h."),
        click.option("--endpoint", type=click.Choice((INTAKE, *delivery.ENDPOINTS)), help="Only of this endpoint."),
        click.option("--reason", metavar="R", help="Only with this reason."),
    ):
        function = option(function)
    return function


@click.group()
def refused() -> None:
    """List, show, retry or discard what was refused.

    It is kept for REFUSED_DAYS. INTAKE is the endpoint of what was refused at the door.
    """


@refused.command("list")
@chosen
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="So many of the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(limit: int, as_json: bool, **chosen: str | None) -> None:
    """List what is refused, newest first.

    Number, time, endpoint, reason, detail. The messages are not shown.
    """
    address = Settings.of_store().database_url
    with beside(address) as store:
        found = list(islice(store.find_refused(_wanted(**chosen)), limit + 1))
    if not found:
        counts = sum((Counter(one.refused) for one in read_report(address).endpoints.values()), Counter())
        there = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
        click.echo(f"adapter: {NOTHING}{'; by reason there are: ' * bool(there)}{there}", err=True)
    if as_json:
        click.echo(json.dumps([_as_dict(one) for one in found[:limit]], indent=2))
    elif found:
        click.echo(f"{'number':>7}  {'refused':<20}  {'endpoint':<8}  {'reason':<24}detail")
        for one in found[:limit]:
            told = f"{one.number:>7}  {utc(one.refused_at_ms)}  {one.endpoint:<8}  {one.reason:<23} {one.detail}"
            click.echo(_printable(told))
    if len(found) > limit:
        click.echo(f"adapter: there are more than these {limit}; --limit shows them", err=True)


@refused.command()
@click.argument("number", type=NUMBER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(number: int, as_json: bool) -> None:
    """Show a refused message, why, and what would become of it now."""
    settings = Settings.from_environment()
    with beside(settings.database_url) as store:
        if (found := store.refused(number)) is None:
            raise _none_by(number)
        kept, body = found
        now = again(kept, body, settings, app.ingestion_address(settings), store)
    message = body.decode(errors="backslashreplace")
    if as_json:
        click.echo(json.dumps(_as_dict(kept) | {"message": message, "now": now}, indent=2))
        return
    for name, value in _as_dict(kept).items():
        click.echo(f"{name:<12} {_printable(str(value))}")
    ends = json.dumps({end: what for end, what in now.items() if what}, indent=2, ensure_ascii=False)
    click.echo(_printable(f"\nAs it was received:\n{message}\n\nIf it were retried now:\n{ends}", keep="\n"))


@refused.command()
@click.argument("numbers", nargs=-1, type=NUMBER)
@chosen
@click.option("--all", "everything", is_flag=True, help="All that is refused.")
@click.option("--counters", is_flag=True, help="Also updates that count and may have been applied already.")
def retry(numbers: tuple[int, ...], everything: bool, counters: bool, **chosen: str | None) -> None:
    """Let refused messages be sent again, mapped anew.

    They wait behind what waits already. Name them by number, or choose them by options. What was refused at the door
    is judged anew; a delete or an alias among it only if named by number, for nobody knows any more whether it
    came from Segment. Exit code 1 if anything is refused at once again; what delivery makes of the others,
    `adapter status` tells.
    """
    settings = Settings.from_environment()
    asked = {chosen["reason"]} - {"may_have_been_applied"} | ({"may_have_been_applied"} if counters else set())
    left: Counter[str] = Counter()
    with beside(settings.database_url) as store:
        meant = []
        for one in _meant(store, numbers, _wanted(**chosen), everything):
            if not numbers and one.reason in LEFT_ALONE.keys() - asked:
                left[one.reason] += 1
            else:
                meant.append((one.accepted_at_ms, one.number))
    became = _change(settings, "retry", [number for _, number in sorted(meant)], vouched=bool(numbers))
    for reason, count in left.items():
        click.echo(f"adapter: {count} left alone: {reason}: they {LEFT_ALONE[reason]}", err=True)
    if became["refused"]:
        sys.exit(1)


@refused.command()
@click.argument("numbers", nargs=-1, type=NUMBER)
@chosen
@click.option("--all", "everything", is_flag=True, help="All that is refused.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(numbers: tuple[int, ...], everything: bool, yes: bool, **chosen: str | None) -> None:
    """Let go of refused messages for good. Asks first."""
    settings = Settings.of_store()
    with beside(settings.database_url) as store:
        meant = [one.number for one in _meant(store, numbers, _wanted(**chosen), everything)]
    if meant and not yes:
        click.confirm(f"Discard {len(meant)} refused messages? They cannot be brought back.", abort=True, err=True)
    _change(settings, "discard", meant)


#: What became of a message -> how it is told.
_TOLD = {
    "waiting": "waiting to be sent",
    "duplicate": "taken in meanwhile",
    "refused": "refused again",
    "discarded": "discarded",
    "gone": "refused no longer",
}


def _change(settings: Settings, verb: str, numbers: list[int], **arguments: Any) -> Counter[str]:
    """Have it done part by part, and tell what was done, also if it cannot be done to the end."""
    became: Counter[str] = Counter()
    try:
        for start in range(0, len(numbers), changes.MAX_NUMBERS):
            some = numbers[start : start + changes.MAX_NUMBERS]
            became.update(changes.make(settings, verb, numbers=some, **arguments))
    finally:
        told = [f"{became[what]} {text}" for what, text in _TOLD.items() if became[what]]
        click.echo(", ".join(told) or NOTHING)
    return became


def _meant(store: Reader, numbers: Iterable[int], wanted: Wanted, everything: bool) -> Iterator[Kept]:
    """What a command is about: what was named, or chosen, or all if that was said."""
    if sum((bool(numbers), wanted != Wanted(), everything)) != 1:
        raise click.UsageError("name messages by number, or choose them by options, or say --all")
    if not numbers:
        yield from store.find_refused(wanted)
    for number in numbers:
        if (found := store.refused(number)) is None:
            raise _none_by(number)
        yield found[0]


def _none_by(number: int) -> ValueError:
    return ValueError(f"no refused message has the number {number}")


def _wanted(*, since: str | None, until: str | None, **chosen: str | None) -> Wanted:
    return Wanted(since_ms=time_ms(since) if since else None, until_ms=time_ms(until) if until else None, **chosen)


def time_ms(text: str, now_s: float | None = None) -> int:
    """A time, UTC if it does not say, or so long ago. Raises ValueError."""
    with suppress(ValueError):
        return int(((time.time() if now_s is None else now_s) - parse_window(text)) * 1000)
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"cannot read {text!r}: expected 2026-03-01, 2026-03-01T12:00Z, or 2h for two hours ago"
        ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp() * 1000)


def _as_dict(one: Kept) -> dict[str, Any]:
    return {
        "number": one.number,
        "endpoint": one.endpoint,
        "reason": one.reason,
        "detail": one.detail,
        "accepted_at": utc(one.accepted_at_ms),
        "refused_at": utc(one.refused_at_ms),
    }


def _printable(text: str, keep: str = "") -> str:
    """A message may hold what would command the terminal, or look like a line of ours."""
    return "".join(one if one.isprintable() or one in keep else one.encode("unicode_escape").decode() for one in text)
