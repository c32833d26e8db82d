"""What the text of a setting means. Each reader raises ValueError that says what was expected."""

import ipaddress
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from schemas.mixpanel import TRAIT_OPERATIONS, VERBS
from schemas.segment import CALLS

SANDBOX = "sandbox"


def text(value: str) -> str:
    return value


def host(value: str) -> str:
    """The server binds addresses, not names."""
    host = "127.0.0.1" if value == "localhost" else value.strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("expected an IP address or localhost") from None
    return host


def port(value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise ValueError("expected a port from 1 to 65535")
    return int(value)


def several(value: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in value.split(","))
    if not all(items):
        raise ValueError("expected values between the commas, found an empty one")
    return items


def yes(value: str) -> bool:
    if value not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return value == "yes"


def one_of(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return value

    return read


def database(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme in ("postgres", "postgresql") and rest:
        return _on_server(f"postgresql://{rest}")  # a PaaS may give the short form
    if scheme != "sqlite" or rest in ("", "/", "/:memory:") or rest[0] != "/":
        raise ValueError("expected sqlite:/// and the path of a file, or postgresql://USER:PASSWORD@HOST/DATABASE")
    return value


def _on_server(url: str) -> str:
    """What is behind an @ counts as the host, which errors name: no part of a password may be there."""
    try:
        make_url(url)
    except (ArgumentError, ValueError):
        is_clear = False
    else:
        is_clear = re.search(r"://[^:/]*:[^@]*@.*@", url) is None
    if not is_clear:
        raise ValueError("expected postgresql://USER:PASSWORD@HOST/DATABASE; write @ in a password as %40")
    return url


def without_password(url: str) -> str:
    """A database's address as it may be shown."""
    return re.sub(r"((?<=://)[^:/]*:).*(?=@)|([?&]\w*password=)[^&]*", r"\1\2***", url)


def address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ValueError("expected an http(s) address without credentials")
    return value.rstrip("/")


def ingestion(value: str) -> str:
    try:
        value = value if value == SANDBOX else address(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 'sandbox'") from None
    if value.endswith(("/import", "/track", "/engage", "/groups")):
        raise ValueError("expected the address without its last part: /import and the others are added")
    return value


def link_event(value: str) -> str | None:
    if value in VERBS:
        raise ValueError("expected an ordinary event name, not an identity verb")
    return None if value == "no" else value


def count(value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) <= 10**12:
        raise ValueError("expected a number from 1")
    return int(value)


def days(value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) <= 3_650:
        raise ValueError("expected a number of days from 1 to 3650")
    return int(value)


def view_names(value: str) -> str:
    others = re.sub(r"\{(name|category|type)\}", "", value)
    # A slip such as {nme} would be the name of every view.
    if value not in ("actions", "consolidated", "categorized", "named") and (
        others == value or set("{}") & set(others)
    ):
        raise ValueError(
            "expected actions, consolidated, categorized, named, or a template with {name}, {category} and {type}"
        )
    return value


def group_keys(value: str) -> tuple[tuple[str, str | None], ...]:
    pairs = [item.partition("=") for item in several(value)]
    if not all(key.strip() and (trait.strip() or not equals) and "=" not in trait for key, equals, trait in pairs):
        raise ValueError("expected KEY or KEY=TRAIT between the commas")
    return tuple((key.strip(), trait.strip() or None) for key, _, trait in pairs)


def trait_operations(value: str) -> tuple[tuple[str, str], ...]:
    pairs = [item.partition("=") for item in several(value)]
    if not all(trait.strip() and operation.strip() in TRAIT_OPERATIONS for trait, _, operation in pairs):
        raise ValueError(f"expected TRAIT=OPERATION between the commas, with {' or '.join(TRAIT_OPERATIONS)}")
    return tuple((trait.strip(), operation.strip()) for trait, _, operation in pairs)


def types(value: str) -> frozenset[str]:
    types = several(value)
    if unknown := [one for one in types if one not in CALLS]:
        raise ValueError(f"expected types among {', '.join(CALLS)}; found {', '.join(unknown)}")
    return frozenset(types)


def names(value: str) -> frozenset[str]:
    return frozenset(several(value))


def destinations(value: str) -> tuple[str, ...]:
    names = several(value)
    if "All" in names:
        raise ValueError("expected names of destinations; All is always understood")
    return names
