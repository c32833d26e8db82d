"""What is known of one id: everything, for whoever asks; and the devices of a user who is to be forgotten."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import sqlalchemy as sa

from adapter.links import Login, Shared, key
from adapter.store import erasure
from adapter.store.engine import moment
from adapter.store.portable import position
from adapter.store.tables import alias, conflict, held, link, login, refusal

#: What joins ids was an entry of this endpoint.
JOINING = "import"
#: Conflicts that are told, of one id.
MAX_CONFLICTS = 20


@dataclass(frozen=True, kw_only=True)
class Link:
    """A device given to its first user. An id that was erased is None."""

    device: str | None
    user: str | None
    time_ms: int  #: of the message that made it
    made_at_ms: int  #: when Mixpanel had taken it
    message_id: str
    how: str  #: the type of that message


@dataclass(frozen=True, kw_only=True)
class Use:
    """A change of user on a shared device."""

    device: str
    user: str | None
    time_ms: int
    message_id: str
    sent_as: str  #: the device id under which that user's messages go out with SHARED_DEVICES=split
    times: int  #: how often it went over to a user who is not its first; 0: the first user


@dataclass(frozen=True, kw_only=True)
class Held:
    """What waits with a device. Names alone: the values are the person's own business."""

    device: str
    is_for: str | None  #: who gets it; None: whoever logs in there next
    traits: tuple[str, ...]
    first_touch: bool
    held_at_ms: int
    n_entries: int


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """A refused message that names the id and would have joined it to another."""

    number: int  #: of the refused message
    reason: str
    detail: str
    refused_at_ms: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of an id: conflicts are refused messages of these reasons that name it."""

    id: str
    needle: bytes  #: stands in every body for which `is_named_in` may be true
    is_named_in: Callable[[bytes], bool]
    reasons: Collection[str]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of one id, as a user and as a device."""

    id: str
    devices: tuple[Link, ...] = ()  #: as a user: the devices that are theirs
    link: Link | None = None  #: as a device: whose it is
    others: tuple[Link, ...] = ()  #: as a device: what else is of the same user
    is_alias: bool = False  #: as a user: a `$create_alias` has named it (Original, Legacy)
    uses: tuple[Use, ...] = ()  #: on this device, or by this user on devices of others
    held: tuple[Held, ...] = ()
    conflicts: tuple[Conflict, ...] = ()  #: newest first
    steps: tuple[erasure.Step, ...] = ()  #: by which the person was forgotten


def read_id(database_url: str, asked: Asked) -> Known:
    """Look an id up, in any form. Raises StoreUnavailable if there is no store."""
    with moment(database_url) as connection:
        return _read(connection, asked)


def _read(connection: sa.Connection, asked: Asked) -> Known:
    one = key(asked.id)
    owner = connection.scalar(sa.select(link.c.user_key).where(link.c.key == one))
    return Known(
        id=asked.id,
        devices=_links(connection, link.c.user_key == one),
        link=next(iter(_links(connection, link.c.key == one)), None),
        others=() if owner is None else _links(connection, (link.c.user_key == owner) & (link.c.key != one)),
        is_alias=connection.scalar(sa.select(alias.c.user_key).where(alias.c.user_key == one)) is not None,
        uses=_uses(connection, one, asked.id),
        held=_held(connection, one),
        conflicts=tuple(islice(_conflicts(connection, asked), MAX_CONFLICTS)),
        steps=erasure.steps(connection, one),
    )


def _links(connection: sa.Connection, where: sa.ColumnElement[bool]) -> tuple[Link, ...]:
    found = sa.select(link.c.device, link.c.user, link.c.time_ms, link.c.made_at_ms, link.c.message_id, link.c.how)
    return tuple(Link(**row._asdict()) for row in connection.execute(found.where(where).order_by(link.c.time_ms)))


def _conflicts(connection: sa.Connection, asked: Asked) -> Iterator[Conflict]:
    # An id may be written with escapes.
    may_name_it = sa.or_(*(position(refusal.c.body, one) > 0 for one in (asked.needle, sa.literal(rb"\u00"))))
    found = sa.select(refusal.c.id, refusal.c.reason, refusal.c.detail, refusal.c.refused_at_ms, refusal.c.body)
    found = found.where(refusal.c.endpoint == JOINING, refusal.c.reason.in_(asked.reasons), may_name_it)
    for number, reason, detail, refused_at_ms, body in connection.execute(found.order_by(refusal.c.id.desc())):
        if asked.is_named_in(body):
            yield Conflict(number=number, reason=reason, detail=detail, refused_at_ms=refused_at_ms)


def _uses(connection: sa.Connection, one: bytes, an_id: str) -> tuple[Use, ...]:
    times = sa.select(conflict.c.count).where(conflict.c.key == login.c.key, conflict.c.user_key == login.c.user_key)
    device = sa.select(link.c.device).where(link.c.key == login.c.key)
    found = sa.select(login, times.scalar_subquery().label("times"), device.scalar_subquery().label("device"))
    rows = connection.execute(found.where((login.c.key == one) | (login.c.user_key == one)).order_by(login.c.time_ms))
    return tuple(
        Use(
            device=row.device or (an_id if row.key == one else ""),
            user=row.user,
            time_ms=row.time_ms,
            message_id=row.message_id,
            sent_as=row.sent_as or row.device or (an_id if row.key == one else ""),
            times=row.times or 0,
        )
        for row in rows
    )


def _held(connection: sa.Connection, one: bytes) -> tuple[Held, ...]:
    user = sa.func.coalesce(
        sa.select(link.c.user).where(link.c.user_key == held.c.user_key).limit(1).scalar_subquery(),
        sa.select(login.c.user).where(login.c.user_key == held.c.user_key).limit(1).scalar_subquery(),
    )
    rows = connection.execute(
        sa.select(held, user.label("user")).where((held.c.key == one) | (held.c.user_key == one))
    )
    return tuple(
        Held(
            device=row.device,
            is_for=row.user,
            traits=tuple(json.loads(row.traits)),
            first_touch=row.touch != b"{}",
            held_at_ms=row.held_at_ms,
            n_entries=row.n_entries,
        )
        for row in rows
    )


def devices_of(connection: sa.Connection, user_key: bytes) -> tuple[str, ...]:
    """The devices of a user whose ids are still known: by the links, and by the logins, where the id that was made
    for a further user of a shared device stays, being a hash.
    """
    linked = connection.scalars(sa.select(link.c.device).where(link.c.user_key == user_key)).all()
    logins = connection.execute(sa.select(login.c.key, login.c.sent_as).where(login.c.user_key == user_key))
    made = {sent_as for device_key, sent_as in logins if sent_as is not None and key(sent_as) != device_key}
    return tuple(sorted({one for one in linked if one is not None} | made))


def shared_by(connection: sa.Connection, user_key: bytes) -> tuple[Shared, ...]:
    """The devices that a user and others log in on, each with all who do."""
    theirs = sa.select(login.c.key).where(login.c.user_key == user_key)
    rows = connection.execute(
        sa.select(login.c.key, link.c.device, login.c.time_ms, login.c.user_key, login.c.sent_as)
        .outerjoin(link, link.c.key == login.c.key)
        .where(login.c.key.in_(theirs))
        .order_by(login.c.key, login.c.time_ms)
    )
    return tuple(
        Shared(
            key=device_key,
            device=(of_one := list(logins))[0].device,
            logins=tuple(Login(one.time_ms, one.user_key, one.sent_as or one.device or "") for one in of_one),
        )
        for device_key, logins in groupby(rows, key=lambda row: row.key)
    )
