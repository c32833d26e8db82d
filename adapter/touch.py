"""What brought a person: the campaign, and the page before. Pure."""

from functools import lru_cache
from typing import Any

import msgspec
import orjson

from adapter.limits import MAX_CHARS
from adapter.records import Options, Record
from schemas import compiled, derived, mixpanel, people
from schemas.segment import Message


class _Context(msgspec.Struct):
    campaign: Record


class _Brought(msgspec.Struct):
    context: _Context


_CAMPAIGN = compiled.dumper(mixpanel.Campaign(), _Brought)
#: Distinct campaigns remembered.
REMEMBERED = 4_096


def campaign(message: Message) -> Record:
    """The campaign that brought the person, by the names of its parameters; a dict of its own.

    What the context says of it outweighs the page's address.
    """
    context = message.context
    if context is None:
        return {}
    page, named = context.page, context.campaign
    found: Record = derived.campaign(page.url) if page is not None and page.url else {}
    if named:
        said = orjson.dumps(named)
        found.update(_said(said) if len(said) <= MAX_CHARS else _said.__wrapped__(said))
    return found


@lru_cache(REMEMBERED)
def _said(campaign: bytes) -> Record:
    """What a context's campaign says: many messages say the same."""
    named = orjson.loads(campaign)
    return {**mixpanel.other_campaign(named), **_CAMPAIGN(_Brought(context=_Context(campaign=named)))}


_FROM_NOWHERE = people.DIRECT, people.DIRECT


class _InitialNames(dict[str, str | None]):
    """A campaign's parameter -> its name as what brought the person; None for a click id, which brings nobody."""

    def __missing__(self, name: str) -> str | None:
        found = f"{people.INITIAL}{name}" if name.startswith("utm_") else None
        if len(self) < REMEMBERED and len(name) <= MAX_CHARS:
            self[name] = found
        return found


_INITIAL = _InitialNames()


def begins(context: Any) -> bool:
    """True if the context has a campaign or a referrer outside the page's own site: so begins a visit."""
    if context is None:
        return False
    page = context.page
    if context.campaign or page is None:
        return bool(context.campaign)
    return bool((page.url and "utm_" in page.url) or _outside(page))


def _outside(page: Any) -> tuple[str, str] | None:
    """The page's referrer and its host, unless that is the page's own, or one a subdomain of the other."""
    url, referrer = page.url or "", page.referrer
    if not referrer:
        return None
    # Most begin alike up to the path: reading their hosts takes several times as long.
    end = url.find("/", 8) + 1
    if end and referrer.startswith(url[:end]) and url.startswith(("https://", "http://")):
        return None
    here, there = derived.host(url), derived.host(referrer)
    if not there:
        return None
    if here and here[-1] == there[-1]:  # what ends otherwise is of another domain
        one, other = f".{here.removeprefix('www.')}", f".{there.removeprefix('www.')}"
        if one.endswith(other) or other.endswith(one):
            return None
    return referrer, there


def first_touch(message: Message, options: Options, found: Record | None = None) -> Record:
    """What brought the person, as properties of the profile that are to be set once; none inside a visit.

    `found` is what `campaign` says of the message, for whoever has asked already.
    """
    context = message.context
    if context is None or not options.first_touch:
        return {}
    page = context.page
    if found is None:
        found = campaign(message)
    initial = {name: value for key, value in found.items() if (name := _INITIAL[key]) is not None}
    outside = _outside(page) if page is not None else None
    if not initial and outside is None:
        return {}
    referrer, domain = outside or _FROM_NOWHERE
    return {people.INITIAL_REFERRER: referrer, people.INITIAL_DOMAIN: domain, **initial}
