"""What is known of the devices of the messages in hand: the store's table, with the batch that is under way over it.

A link holds once a record that makes it was accepted. So what depends on one that is under way waits for the next
batch, and its lane with it:

    in the batch            what then waits for its answer
    a first user            an identify or alias of the device, a message of another user
    another link of a user  an identify or alias of the device and that user
    a change of user        with `split`, a message of nobody
    a message of a user     what a visitor says after it: held now, it would go to that user
    a visitor's touch, or   a message of a user that sends nothing: it would release the device before it
    a release of the device
"""

from collections.abc import Sequence

import msgspec

from adapter import identity, links, mapping
from adapter.links import UNKNOWN, Effect, Known
from adapter.records import SIMPLIFIED, Options
from adapter.store import Reader
from schemas.segment import Message

#: Devices whose latest anonymous message is remembered, to tell a login that comes too late for it.
REMEMBERED = 65_536


class Devices:
    """The devices of one line of delivery. `begin` with what was claimed, `take` in a message, `answered` a batch."""

    def __init__(self, store: Reader, options: Options) -> None:
        self._store = store
        self._options = options
        self._known: dict[str, Known] = {}
        self._changing: set[str] = set()  # devices of which something else will be known
        self._claimed: dict[str, str] = {}  # devices that are about to be somebody's for good, and whose
        self._linking: set[tuple[str, str]] = set()  # devices, and users of whom a link with them is under way
        self._logins: set[str] = set()  # devices whose user is about to change
        self._used: set[str] = set()  # devices of which a message of a user is under way
        self._touched: set[str] = set()  # devices with which something is to wait once its event was taken
        self._users: dict[str, int] = {}  # how many devices an id has as a user; Original counts, alias asks
        self._aliases: set[str] = set()
        self._anonymous_ms: dict[str, int] = {}

    def begin(self, messages: Sequence[Message]) -> None:
        """Read what is known of the devices of these messages."""
        # Whatever became of the batch before: the store knows.
        self._forget_what_is_under_way()
        devices = {device for one in messages if (device := mapping.device_of(one)) is not None}
        self._known = self._store.known(devices)
        by_verbs = self._options.system != SIMPLIFIED
        linking = [one for one in messages if self.asks_of_users(one)]
        asked = {device for one in linking if (device := mapping.device_of(one)) is not None}
        asked |= {one.user_id for one in linking if one.user_id} if by_verbs else set()
        self._users = self._store.links_of(asked) if asked else {}
        self._aliases = self._store.aliases(asked) if asked and by_verbs else set()

    def of(self, message: Message) -> Known | None:
        """What is known of its device; None if that depends on the batch under way."""
        device = mapping.device_of(message)
        if device is None:
            return UNKNOWN
        if device in self._used and self._depends(message, device):
            return None
        known = self._known.get(device, UNKNOWN)
        if message.type not in ("identify", "alias"):
            return known
        user = message.user_id or ""
        return msgspec.structs.replace(
            known,
            is_user=device in self._users or device in self._aliases,
            is_alias=user in self._aliases,
            links=self._users.get(user, 0),
        )

    def asks_of_users(self, message: Message) -> bool:
        """True if what becomes of a message depends on what is known of users, whatever their devices."""
        return message.type == "alias" or (message.type == "identify" and self._options.system != SIMPLIFIED)

    def _depends(self, message: Message, device: str) -> bool:
        if self._is_nobodys(message):
            return message.type in ("identify", "group") or (self._options.split and device in self._logins)
        first = self._claimed.get(device)
        if message.type in ("identify", "alias"):
            return first is not None or (device, message.user_id) in self._linking
        return first is not None and first != message.user_id

    def _is_nobodys(self, message: Message) -> bool:
        return message.user_id is None or not identity.is_user(message.user_id, self._options.denied)

    def overtakes(self, effect: Effect | None) -> bool:
        """True if a message that sends nothing would release what one under way is to release, or to leave there."""
        if effect is None or effect.user is None:
            return False
        releases = effect.device in self._changing and self._known.get(effect.device, UNKNOWN).held
        return releases or effect.device in self._touched

    def take(self, message: Message, time_ms: int, effect: Effect | None) -> tuple[str, ...]:
        """A message joins the batch. Returns notes: that it comes too late for what was sent before it."""
        if message.user_id is not None and (used := mapping.device_of(message)):
            self._used.add(used)
        if self._options.split and message.user_id is None and (device := mapping.device_of(message)):
            self._anonymous_ms[device] = max(time_ms, self._anonymous_ms.pop(device, time_ms))
            if len(self._anonymous_ms) > REMEMBERED:
                del self._anonymous_ms[next(iter(self._anonymous_ms))]
        if effect is not None and effect.holds:
            if message.type not in ("identify", "group"):
                self._touched.add(effect.device)
            self._known[effect.device] = msgspec.structs.replace(self._known.get(effect.device, UNKNOWN), held=True)
        if effect is None or effect.user is None:
            return ()
        self._changing.add(effect.device)
        known = self._known.get(effect.device, UNKNOWN)
        if effect.links or effect.revives or effect.alias:
            self._linking.add((effect.device, effect.user))
        if effect.links and known.owner is None:
            self._claimed.setdefault(effect.device, effect.user)
        if effect.links:
            self._users[effect.user] = self._users.get(effect.user, 0) + 1
        if effect.alias:
            self._aliases.add(effect.user)
        if not effect.login:
            return ()
        self._logins.add(effect.device)
        self._known[effect.device] = links.after_login(known, effect)
        late = self._options.split and effect.time_ms < self._anonymous_ms.get(effect.device, effect.time_ms)
        return ("late_login",) if late else ()

    def answered(self) -> None:
        """The batch under way is settled: read what came of it."""
        if self._changing:
            self._known |= dict.fromkeys(self._changing, UNKNOWN) | self._store.known(self._changing)
        self._forget_what_is_under_way()

    def _forget_what_is_under_way(self) -> None:
        self._changing, self._claimed, self._linking, self._logins = set(), {}, set(), set()
        self._used, self._touched = set(), set()
