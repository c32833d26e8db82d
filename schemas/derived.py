"""What an address, a user agent or a country's name says, read once and remembered. Pure; None where it says nothing.

Browsers and systems have the names that Mixpanel's own library gives them, so that both can feed one project.
"""

import re
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import msgspec
import pycountry
import ua_parser

#: Distinct agents and referrers remembered; real traffic has some thousands.
REMEMBERED = 8_192
#: No more than this of a text is looked at, or kept to be remembered.
MAX_CHARS = 1_000

#: ua-parser's name -> Mixpanel's (segment.md 6.4), where they differ.
_BROWSERS = {
    "Edge": "Microsoft Edge",
    "Edge Mobile": "Microsoft Edge",
    "IE": "Internet Explorer",
    "IE Mobile": "Internet Explorer Mobile",
    "Chrome Mobile": "Chrome",
    "Chrome Mobile WebView": "Chrome",
    "Chrome Mobile iOS": "Chrome iOS",
    "Firefox Mobile": "Firefox",
    "Facebook": "Facebook Mobile",
    "Opera Mobile": "Opera",
    "Android": "Android Mobile",
}
#: Families of ua-parser that name no device a person would know.
_NO_DEVICES = frozenset({"Other", "Mac", "Spider", "Generic Smartphone", "Generic Tablet", "Generic Feature Phone"})
#: Names that people use and the standard's own list does not have.
_COLLOQUIAL = {
    **{"uk": "GB", "great britain": "GB", "england": "GB", "scotland": "GB", "wales": "GB", "northern ireland": "GB"},
    **{"russia": "RU", "turkey": "TR", "brunei": "BN", "macau": "MO", "palestine": "PS", "kosovo": "XK"},
    **{"holland": "NL", "the netherlands": "NL", "ivory coast": "CI", "cape verde": "CV", "burma": "MM"},
    **{"macedonia": "MK", "swaziland": "SZ", "dr congo": "CD", "the united states": "US", "u.s.a.": "US"},
}
#: Most addresses need no more reading than this: urlsplit takes ten times as long, and few are seen twice.
_USUAL_HOST = re.compile(r"https?://([a-z0-9.-]{1,253})(?::[0-9]*)?(?:[/?#]|\Z)")
_SEARCH_ENGINES = re.compile(r"(?:^|\.)(google|bing|yahoo|duckduckgo)\.")
#: mixpanel.md 4.3: any utm_*, and the click ids of the advertising networks.
_CAMPAIGN = re.compile(
    r"[?&](utm_[\w-]+|dclid|fbclid|gclid|ko_click_id|li_fat_id|msclkid|sccid|ttclid|twclid|wbraid)=([^&#]+)"
)


class Agent(msgspec.Struct, frozen=True):
    """What a user agent says of browser, system and device."""

    browser: str | None = None
    browser_version: str | None = None
    os: str | None = None
    os_version: str | None = None
    device: str | None = None


class Referrer(msgspec.Struct, frozen=True):
    """What the address of the page before says."""

    domain: str | None = None
    search_engine: str | None = None


def agent(text: str) -> Agent:
    """Browser, operating system and device of a user agent."""
    return _agent(text[:MAX_CHARS])


@lru_cache(REMEMBERED)
def _agent(text: str) -> Agent:
    found = ua_parser.parse(text)
    browser, system, device = found.user_agent, found.os, found.device
    return Agent(
        browser=_BROWSERS.get(browser.family, browser.family) if browser else None,
        browser_version=_version(browser.major, browser.minor, browser.patch, browser.patch_minor)
        if browser
        else None,
        os=system.family if system else None,
        os_version=_version(system.major, system.minor, system.patch, system.patch_minor) if system else None,
        device=device.family if device and device.family not in _NO_DEVICES else None,
    )


def referrer(address: str) -> Referrer:
    """The host of a page's referrer, and google, bing, yahoo or duckduckgo, if it is one of their hosts."""
    return _of_host(host(address))


@lru_cache(REMEMBERED)
def _of_host(host: str | None) -> Referrer:
    found = _SEARCH_ENGINES.search(host or "")
    return Referrer(domain=host, search_engine=found[1] if found else None)


def host(address: str) -> str | None:
    """The host of an address; None without one."""
    if usual := _USUAL_HOST.match(address):
        return usual[1]
    try:
        return urlsplit(address[:MAX_CHARS]).hostname
    except ValueError:
        return None


def country_code(value: Any) -> str | None:
    """Two letters, for Mixpanel's maps know nothing else: of a code in two or three letters or an English name."""
    if not isinstance(value, str):
        return None
    if len(value) == 2 and value.isascii() and value.isalpha() and value.casefold() != "uk":
        return value.upper()
    return _code_of_name(value[:MAX_CHARS])


@lru_cache(1_024)
def _code_of_name(name: str) -> str | None:
    if colloquial := _COLLOQUIAL.get(name.strip().casefold()):
        return colloquial
    try:
        return str(pycountry.countries.lookup(name).alpha_2)
    except LookupError:
        return None


def campaign(address: str) -> dict[str, str]:
    """The utm_* parameters and click ids of a page's address, a dict of its own."""
    start = address.find("?")
    if start < 0:
        return {}
    found = _CAMPAIGN.findall(address, start)
    if "%" in address or "+" in address:
        found = [(name, unquote_plus(value)) for name, value in found]
    return dict(found)


def _version(*parts: str | None) -> str | None:
    return ".".join(part for part in parts if part) or None
