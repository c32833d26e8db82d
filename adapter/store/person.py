"""Everything known of one id, read from the file, also beside the process that serves."""

import json
from dataclasses import dataclass

import sqlalchemy as sa

from adapter.links import key
from adapter.store import erasure
from adapter.store.engine import moment
from adapter.store.tables import conflict, held, link, login


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
class Known:
    """What is known of one id, as a user and as a device."""

    id: str
    devices: tuple[Link, ...] = ()  #: as a user: the devices that are theirs
    link: Link | None = None  #: as a device: whose it is
    uses: tuple[Use, ...] = ()  #: on this device, or by this user on devices of others
    held: tuple[Held, ...] = ()
    steps: tuple[erasure.Step, ...] = ()  #: by which the person was forgotten


def read_id(database_url: str, an_id: str) -> Known:
    """Look an id up, in any form. Raises StoreUnavailable if there is no store."""
    with moment(database_url) as connection:
        return _read(connection, an_id)


def _read(connection: sa.Connection, an_id: str) -> Known:
    one = key(an_id)
    links = connection.execute(
        sa.select(link).where((link.c.key == one) | (link.c.user_key == one)).order_by(link.c.time_ms)
    ).all()
    names = ("device", "user", "time_ms", "made_at_ms", "message_id", "how")
    as_user = tuple(Link(**{name: getattr(row, name) for name in names}) for row in links if row.user_key == one)
    as_device = [Link(**{name: getattr(row, name) for name in names}) for row in links if row.key == one]
    return Known(
        id=an_id,
        devices=as_user,
        link=as_device[0] if as_device else None,
        uses=_uses(connection, one, an_id),
        held=_held(connection, one),
        steps=erasure.steps(connection, one),
    )


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
