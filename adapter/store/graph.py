"""Which device is whose, who used a shared one, and what waits with a device for its next user.

Mixpanel keeps the same table: the first user of a device has it for good, so a link is decided by the insert. Ids
stand beside their keys, so that they can be erased and the link, which Mixpanel keeps, still be known.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import orjson
import sqlalchemy as sa

from adapter.links import Effect, Known, Login, key
from adapter.store.portable import among, insert, put_each, remove
from adapter.store.tables import alias, conflict, held, link, login
from schemas import raw

#: The user key of what waits for whoever comes.
NOBODY = b""
#: Traits that wait with one device, as JSON. Anybody can send a visitor's, and all of them are written each time.
MAX_HELD_BYTES = 256_000
#: So many changes of user are kept of a device: a constant that a server sends for one would have no end of them.
MAX_LOGINS = 1_000
#: No traits, or no touch, as JSON.
NOTHING = b"{}"

_PUT_LINK = insert(link).on_conflict_do_nothing()
_PUT_LOGIN = insert(login).on_conflict_do_nothing()
_PUT_ALIAS = insert(alias).on_conflict_do_nothing()
# Made once: to compile one anew for each claim would cost more than its answer.
_OWNERS = sa.select(link.c.key, link.c.user_key, link.c.device).where(among(link.c.key, "keys"))
_LOGINS = (
    sa.select(login.c.key, login.c.time_ms, login.c.user_key, login.c.sent_as)
    .where(among(login.c.key, "keys"))
    .order_by(login.c.time_ms)
)
_USERS = (
    sa.select(login.c.key, login.c.time_ms, login.c.user_key, login.c.user)
    .where(among(login.c.key, "keys"))
    .order_by(login.c.time_ms)
)
_FIRST = sa.select(link.c.key, link.c.time_ms, link.c.user_key, link.c.user, link.c.message_id).where(
    among(link.c.key, "keys")
)
_HELD_OF = sa.select(held).where(among(held.c.key, "keys"))
_HELD_TO_CHANGE = _HELD_OF.with_for_update()
_HOLDING = sa.select(held.c.key).where(among(held.c.key, "keys"), held.c.user_key == NOBODY)
_ALIASES = sa.select(alias.c.user_key).where(among(alias.c.user_key, "keys"))
_LINKS_OF = (
    sa.select(link.c.user_key, sa.func.count()).where(among(link.c.user_key, "keys")).group_by(link.c.user_key)
)
_CONFLICT = insert(conflict)
_PUT_CONFLICT = _CONFLICT.on_conflict_do_update(
    index_elements=list(conflict.primary_key), set_={"count": conflict.c.count + _CONFLICT.excluded.count}
)
_HELD = insert(held)
_PUT_HELD = _HELD.on_conflict_do_update(
    index_elements=list(held.primary_key),
    set_={column.name: _HELD.excluded[column.name] for column in held.c if column.name not in ("key", "user_key")},
)


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """What waits with a device."""

    device: str
    traits: bytes  #: as JSON, later over earlier
    traits_ms: int  #: time of the latest of them
    touch: bytes  #: as JSON, the earliest
    touch_ms: int
    held_at_ms: int
    n_entries: int  #: how many entries ended as held for it


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What waits with a device is now somebody's, and has to be sent."""

    device: str
    user: str
    time_ms: int


def known(connection: sa.Connection, devices: Iterable[str]) -> dict[str, Known]:
    """What is known of each of these devices; one of which nothing is known is missing."""
    names = {key(device): device for device in devices}
    rows = _rows(connection, _OWNERS, names)
    owners = {one: user for one, user, _ in rows}
    erased = {one for one, _, device in rows if device is None}
    holding = _holding(connection, names)
    logins: dict[bytes, list[Login]] = {}
    found = _rows(connection, _LOGINS, owners)
    made = {key(sent_as) for _, _, _, sent_as in found if sent_as is not None} - owners.keys()
    linked = owners.keys() | {row[0] for row in _rows(connection, _OWNERS, made)}
    for one, time_ms, user, sent_as in found:
        is_linked = sent_as is None or key(sent_as) in linked
        logins.setdefault(one, []).append(Login(time_ms, user, sent_as or names[one], is_linked))
    return {
        names[one]: Known(
            owner=owners.get(one),
            logins=tuple(logins.get(one, ())),
            held=one in holding,
            erased=one in erased,
        )
        for one in owners.keys() | holding
    }


def _holding(connection: sa.Connection, keys: Iterable[bytes]) -> set[bytes]:
    """Those of these devices with which something waits for whoever comes."""
    return {row[0] for row in _rows(connection, _HOLDING, keys)}


def _rows(connection: sa.Connection, statement: sa.Select[Any], keys: Iterable[bytes]) -> Sequence[Any]:
    wanted = list(keys)
    return connection.execute(statement, {"keys": wanted}).all() if wanted else []


def links_of(connection: sa.Connection, users: Iterable[str]) -> dict[str, int]:
    """How many devices each of these ids has as a user; one that has none is missing."""
    names = {key(user): user for user in users}
    return {names[one]: count for one, count in _rows(connection, _LINKS_OF, names)}


def aliases(connection: sa.Connection, users: Iterable[str]) -> set[str]:
    """Which of these users were made an alias."""
    names = {key(user): user for user in users}
    return {names[row[0]] for row in _rows(connection, _ALIASES, names)}


def apply(
    connection: sa.Connection, effects: Sequence[tuple[Effect, bool]], now_ms: int
) -> tuple[list[Release], int, int]:
    """Write down what accepted messages add, in their order; each with whether its entry ended as held.

    Returns what is now to be sent to somebody, for how many held entries that has been done, and of how many effects
    the traits had no room.
    """
    releases: list[Release] = []
    n_released = 0
    _make_links(connection, [effect for effect, _ in effects if effect.links], now_ms)
    book = _Book(connection, [effect for effect, _ in effects])
    for effect, is_entry in effects:
        if effect.delivers is not None:
            n_released += book.delivered(effect)
            continue
        if effect.holds:
            releases += book.hold(effect, now_ms, is_entry)
        if effect.user is not None:
            if effect.revives:
                book.revive(effect)
            if effect.alias:
                connection.execute(_PUT_ALIAS, {"user_key": key(effect.user)})
            if effect.login:
                book.log_in(effect)
            releases += book.release(effect)
    n_cut = book.write()
    return list({(one.device, one.user): one for one in reversed(releases)}.values())[::-1], n_released, n_cut


def _make_links(connection: sa.Connection, effects: Sequence[Effect], now_ms: int) -> None:
    """In their order: of two users of one device the first has it."""
    if effects:
        made = [
            {
                **_used(effect),
                "key": key(effect.sent_as or effect.device),
                "device": effect.sent_as or effect.device,
                "made_at_ms": now_ms,
                "how": effect.how,
            }
            for effect in effects
        ]
        put_each(connection, _PUT_LINK, made)


def _used(effect: Effect) -> dict[str, Any]:
    user = effect.user or ""
    return {"user_key": key(user), "user": user, "time_ms": effect.time_ms, "message_id": effect.message_id}


def waiting(connection: sa.Connection, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Waiting]:
    """What waits with devices, each for a user: by (device, user); missing where nothing does."""
    names = {(key(device), key(user)): (device, user) for device, user in wanted}
    rows = _rows(connection, _HELD_OF, {device for device, _ in names})
    return {names[one]: waits for one, waits in _waiting(rows) if one in names}


def _waiting(rows: Iterable[Any]) -> Iterator[tuple[tuple[bytes, bytes], Waiting]]:
    """Rows of `held` by (key of the device, key of the user)."""
    for one, user, device, traits, traits_ms, touch, touch_ms, held_at_ms, n_entries in rows:
        yield (
            (one, user),
            Waiting(
                device=device,
                traits=traits,
                traits_ms=traits_ms,
                touch=touch,
                touch_ms=touch_ms,
                held_at_ms=held_at_ms,
                n_entries=n_entries,
            ),
        )


def _together(parts: Sequence[Waiting]) -> tuple[Waiting, int]:
    """What waits with one device, put together: of traits the later ones win, of touches the earliest.

    Returns also of how many parts the traits had no room.
    """
    if len(parts) == 1:
        return parts[0], 0
    fitting = _fitting(parts)
    traits: dict[str, Any] = {}
    for one in sorted(fitting, key=lambda waits: waits.traits_ms):
        traits |= orjson.loads(one.traits)
    touches = [waits for waits in parts if waits.touch != NOTHING]
    first = min(touches, key=lambda waits: waits.touch_ms, default=parts[0])
    together = Waiting(
        device=parts[0].device,
        traits=raw.dumped(traits),
        traits_ms=max(one.traits_ms for one in parts),
        touch=first.touch,
        touch_ms=first.touch_ms,
        held_at_ms=max(one.held_at_ms for one in parts),
        n_entries=sum(one.n_entries for one in parts),
    )
    return together, len(parts) - len(fitting)


def _fitting(parts: Sequence[Waiting]) -> Sequence[Waiting]:
    """Those whose traits have room beside those before them; what waits already is the first."""
    if sum(len(one.traits) for one in parts) <= MAX_HELD_BYTES:
        return parts
    traits: dict[str, Any] = {}
    fitting: list[Waiting] = []
    for one in parts:
        more = {**traits, **orjson.loads(one.traits)}
        if not traits or len(orjson.dumps(more)) <= MAX_HELD_BYTES:
            traits = more
            fitting.append(one)
    return fitting


class _Book:
    """What waits with the devices of a settlement: read at once, changed in hand, and written at once.

    A statement for each event would keep all who wait for a commit waiting. The rows are locked, for events that add
    to them and updates that deliver them are settled by different processes.
    """

    def __init__(self, connection: sa.Connection, effects: Sequence[Effect]) -> None:
        self._connection = connection
        devices = {key(effect.device) for effect in effects}
        # Put together when it is written: to do so for each event would read and write all of it each time.
        self._waits = {names: [one] for names, one in _waiting(_rows(connection, _HELD_TO_CHANGE, devices))}
        self._changed: set[tuple[bytes, bytes]] = set()
        used = {key(one.device) for one in effects if one.login or one.revives or (one.holds and one.user is None)}
        self._logins: dict[bytes, list[tuple[int, bytes, str | None]]] = {one: [] for one in used}  # by time
        for one, *who in _rows(connection, _USERS, used):
            self._logins[one].append(tuple(who))
        self._first = {row.key: row._asdict() for row in _rows(connection, _FIRST, used)}
        self._logged_in: list[dict[str, Any]] = []
        self._conflicts: dict[tuple[bytes, bytes], dict[str, Any]] = {}

    def revive(self, effect: Effect) -> None:
        """The owner of an erased device is back."""
        again = {"device": effect.device, "user": effect.user}
        self._connection.execute(link.update().where(link.c.key == key(effect.device)).values(again))
        self._first[key(effect.device)]["user"] = effect.user

    def log_in(self, effect: Effect) -> None:
        """The user of a device changes; that its first user had it until then is written down, too."""
        first, new = self._first[key(effect.device)], {**_used(effect), "key": key(effect.device)}
        self._put_login({**first, "sent_as": effect.device})
        is_new = self._put_login({**new, "sent_as": effect.sent_as or effect.device})
        if is_new and first["user_key"] != new["user_key"]:
            told = self._conflicts.setdefault((new["key"], new["user_key"]), {**new, "count": 0})
            told["count"] += 1

    def _put_login(self, row: dict[str, Any]) -> bool:
        """Whether it was not there."""
        logins, who = self._logins[row["key"]], (row["time_ms"], row["user_key"])
        place = bisect_left(logins, who, key=lambda login: login[:2])
        if place < len(logins) and logins[place][:2] == who:
            return False
        logins.insert(place, (*who, row["user"]))
        self._logged_in.append(row)
        return True

    def hold(self, effect: Effect, now_ms: int, is_entry: bool) -> list[Release]:
        """Something is to wait: for whoever comes, or for who is known to have come next."""
        user = self._next_user(effect) if effect.user is None else None
        new = Waiting(
            device=effect.device,
            traits=raw.dumped(effect.traits or {}),
            traits_ms=effect.time_ms,
            touch=raw.dumped(effect.touch or {}),
            touch_ms=effect.time_ms,
            held_at_ms=now_ms,
            n_entries=int(is_entry),
        )
        self._add(key(effect.device), NOBODY if user is None else key(user), [new])
        return [] if user is None else [Release(device=effect.device, user=user, time_ms=effect.time_ms)]

    def release(self, effect: Effect) -> list[Release]:
        """What waits with a device for whoever comes is from now on this user's."""
        found = self._take(key(effect.device), NOBODY)
        if not found or effect.user is None:
            return []
        self._add(key(effect.device), key(effect.user), found)
        return [Release(device=effect.device, user=effect.user, time_ms=effect.time_ms)]

    def delivered(self, effect: Effect) -> int:
        """It has been sent, unless it grew meanwhile: then another release will send it whole."""
        one, user = key(effect.device), key(effect.user or "")
        found = self._waits.get((one, user), [])
        n_entries = sum(part.n_entries for part in found)
        if not found or (n_entries, max(part.held_at_ms for part in found)) != (effect.delivers, effect.time_ms):
            return 0
        self._take(one, user)
        return n_entries

    def write(self) -> int:
        """Write what has changed; returns of how many effects the traits had no room."""
        kept = [names for names in self._changed if names in self._waits]
        gone = [{"key": one, "user_key": user} for one, user in self._changed - set(kept)]
        n_cut, rows = 0, []
        for one, user in sorted(kept):
            together, n_without_room = _together(self._waits[one, user])
            rows.append({"key": one, "user_key": user, **msgspec.structs.asdict(together)})
            n_cut += n_without_room
        if rows:
            put_each(self._connection, _PUT_HELD, rows)
        if gone:
            remove(self._connection, held, gone)
        if self._logged_in:
            put_each(self._connection, _PUT_LOGIN, self._logged_in)
        if self._conflicts:
            put_each(self._connection, _PUT_CONFLICT, list(self._conflicts.values()))
        for one in {row["key"] for row in self._logged_in}:
            if len(logins := self._logins[one]) > MAX_LOGINS:
                old = (login.c.key == one) & (login.c.time_ms < logins[-MAX_LOGINS][0])
                self._connection.execute(login.delete().where(old))
        return n_cut

    def _add(self, device: bytes, user: bytes, new: Sequence[Waiting]) -> None:
        self._waits.setdefault((device, user), []).extend(new)
        self._changed.add((device, user))

    def _take(self, device: bytes, user: bytes) -> Sequence[Waiting]:
        found = self._waits.pop((device, user), [])
        if found:
            self._changed.add((device, user))
        return found

    def _next_user(self, effect: Effect) -> str | None:
        """Who used the device first at or after this time, if that is known: messages arrive in any order."""
        one = key(effect.device)
        later = next((user for time_ms, _, user in self._logins[one] if time_ms >= effect.time_ms), None)
        first = self._first.get(one)
        return later or (first["user"] if first is not None and first["time_ms"] >= effect.time_ms else None)


def expire(connection: sa.Connection, before_ms: int, now_ms: int) -> int:
    """Let go of what has waited since before a time; returns how many entries ended as held for it.

    What is somebody's has twice as long: it waits to be sent, or was refused.
    """
    of_somebody = held.c.held_at_ms < 2 * before_ms - now_ms
    old = (held.c.held_at_ms < before_ms) & ((held.c.user_key == NOBODY) | of_somebody)
    count = connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(held.c.n_entries), 0)).where(old))
    connection.execute(held.delete().where(old))
    return int(count or 0)


def forget(connection: sa.Connection) -> int:
    """All of it belongs to another destination; returns how many entries ended as held."""
    n_held = connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(held.c.n_entries), 0)))
    for table in (link, login, alias, conflict, held):
        connection.execute(table.delete())
    return int(n_held or 0)
