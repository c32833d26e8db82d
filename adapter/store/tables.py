"""The tables of the store, the same in SQLite and in PostgreSQL.

Bodies are bytes, never text: text columns cannot hold all that Segment sends. A message waits as one entry for each
endpoint it can reach; the entries share its body, and the last of them to be settled takes it along.
"""

import re

import sqlalchemy as sa

from adapter import keys

metadata = sa.MetaData()

#: Raised with every change of a table's shape; `migrations` says how an older store gets there.
SCHEMA_VERSION = 6
#: What an entry waits for: a line of delivery. Updates that count have one of their own.
ENDPOINTS = ("import", "engage", "counters", "groups")
#: Where what waits with a device was an entry: in the order of the device's events.
HOLDING = "import"
#: One table a day: today's, yesterday's, and the one that will be tomorrow's.
SEEN_TABLES = 3

#: Lanes are leased in shares of so many.
LANES_A_SHARE = 16
SHARES = keys.LANES // LANES_A_SHARE


def share_of(lane: int) -> int:
    """The share that a lane is in."""
    return lane // LANES_A_SHARE


#: SQLite numbers rows by an INTEGER alone.
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


class Bytes(sa.LargeBinary):
    """Both drivers take and give bytes as they are; to wrap each of them and copy it takes a while."""

    def bind_processor(self, dialect: sa.Dialect) -> None:
        """As they are."""

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        """As they are."""


class _Escaped(sa.TypeDecorator[str]):
    """Text in which a NUL is written \\0, and a backslash twice."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value if value is None else value.replace("\\", "\\\\").replace("\0", "\\0")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None or "\\" not in value:
            return value
        return re.sub(r"\\(.)", lambda found: "\0" if found[1] == "0" else "\\", value)


_KEY = Bytes(16)
#: Text that came from outside. PostgreSQL's cannot hold a NUL.
Words = sa.String().with_variant(_Escaped(), "postgresql")


message = sa.Table(
    "message",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True, autoincrement=False, comment="order of arrival"),
    sa.Column("accepted_at_ms", sa.BigInteger, nullable=False),
    sa.Column("body", Bytes, nullable=False, comment="as received, byte for byte"),
    sa.Column("crc", sa.BigInteger, comment="CRC-32 of the body; null: from an earlier release"),
)

entry = sa.Table(
    "entry",
    metadata,
    sa.Column("endpoint", sa.String, primary_key=True, comment="import, engage, counters or groups"),
    sa.Column("message_id", _NUMBER, primary_key=True, autoincrement=False, comment="message.id"),
    sa.Column("lane", sa.Integer, nullable=False, comment="0-1023: keeps order for one device or profile"),
    sa.Column("time_ms", sa.BigInteger, nullable=False, comment="when it happened; orders updates claimed together"),
    sa.Column("attempted", sa.Boolean, nullable=False, comment="a POST was begun that must not be made twice"),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0", comment="how often it failed alone"),
    sa.Column("tried_ms", sa.BigInteger, comment="when it did so first"),
    sqlite_with_rowid=False,
)

refusal = sa.Table(
    "refusal",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True),
    sa.Column("endpoint", sa.String, nullable=False, comment="import, engage, groups, or intake: never an entry"),
    sa.Column("reason", sa.String, nullable=False, comment="a stable word"),
    sa.Column("detail", Words, nullable=False, comment="a sentence; names fields, carries no payload"),
    sa.Column("accepted_at_ms", sa.BigInteger, nullable=False),
    sa.Column("refused_at_ms", sa.BigInteger, nullable=False),
    sa.Column("body", Bytes, nullable=False),
    sa.Index("refusal_by_reason", "endpoint", "reason"),
    # People name refusals by number: one that was let go must not become another's. PostgreSQL never does that.
    sqlite_autoincrement=True,
)

sequence = sa.Table(
    "sequence",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("next", _NUMBER, nullable=False),
    comment="whoever takes numbers holds the row until the commit: a smaller number is never seen after a larger one",
)

worker = sa.Table(
    "worker",
    metadata,
    sa.Column("id", sa.String, primary_key=True, comment="a process that delivers"),
    sa.Column("until_ms", sa.BigInteger, nullable=False, comment="alive until then, by the database's clock"),
)

lease = sa.Table(
    "lease",
    metadata,
    sa.Column("share", sa.Integer, primary_key=True, autoincrement=False, comment="lane // LANES_A_SHARE"),
    sa.Column("worker", sa.String, comment="who may send for these lanes"),
    sa.Column("epoch", sa.BigInteger, nullable=False, comment="how often they went to another"),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
)

suspect = sa.Table(
    "suspect",
    metadata,
    sa.Column("endpoint", sa.String, primary_key=True),
    sa.Column("message_id", _NUMBER, primary_key=True, autoincrement=False, comment="of an entry that is on trial"),
    sa.Column("deaths", sa.Integer, nullable=False, comment="processes that tried it; it goes if they outlive that"),
    sqlite_with_rowid=False,
)

tally = sa.Table(
    "tally",
    metadata,
    sa.Column("endpoint", sa.String, primary_key=True),
    sa.Column("state", sa.String, primary_key=True, comment="acknowledged, delivered, refused, nothing, ..."),
    sa.Column("reason", sa.String, primary_key=True, comment="empty where the state says it all"),
    sa.Column("count", sa.BigInteger, nullable=False),
)

fact = sa.Table(
    "fact",
    metadata,
    sa.Column("name", sa.String, primary_key=True, comment="schema, destination, day of a seen table, last answer"),
    sa.Column("value", sa.String, nullable=False),
)

link = sa.Table(
    "link",
    metadata,
    sa.Column("key", _KEY, primary_key=True, comment="of the device"),
    sa.Column("device", Words, comment="null once it was erased"),
    sa.Column("user_key", _KEY, nullable=False, comment="of its first user, who has it for good"),
    sa.Column("user", Words, comment="null once it was erased"),
    sa.Column("time_ms", sa.BigInteger, nullable=False, comment="of the message that made it"),
    sa.Column("made_at_ms", sa.BigInteger, nullable=False, comment="when that message had been accepted"),
    sa.Column("message_id", Words, nullable=False, comment="Segment's"),
    sa.Column("how", sa.String, nullable=False, comment="the type of that message"),
    sa.Index("link_by_user", "user_key"),
    sqlite_with_rowid=False,
)

login = sa.Table(
    "login",
    metadata,
    sa.Column("key", _KEY, primary_key=True, comment="of a device that several people use"),
    sa.Column("time_ms", sa.BigInteger, primary_key=True, comment="when its user changed"),
    sa.Column("user_key", _KEY, primary_key=True),
    sa.Column("user", Words),
    sa.Column("sent_as", Words, comment="the device id of that user's messages; null: the device, erased"),
    sa.Column("message_id", Words, nullable=False),
    sqlite_with_rowid=False,
)

conflict = sa.Table(
    "conflict",
    metadata,
    sa.Column("key", _KEY, primary_key=True, comment="of a device"),
    sa.Column("user_key", _KEY, primary_key=True, comment="of a user it could not be linked to"),
    sa.Column("user", Words),
    sa.Column("time_ms", sa.BigInteger, nullable=False, comment="of the first such message"),
    sa.Column("message_id", Words, nullable=False),
    sa.Column("count", sa.BigInteger, nullable=False, comment="how often the device went over to them"),
    sqlite_with_rowid=False,
)

alias = sa.Table(
    "alias",
    metadata,
    sa.Column("user_key", _KEY, primary_key=True, comment="of a user that $create_alias named"),
    sqlite_with_rowid=False,
)

held = sa.Table(
    "held",
    metadata,
    sa.Column("key", _KEY, primary_key=True, comment="of a device"),
    sa.Column("user_key", _KEY, primary_key=True, comment="of who is to get it; empty until somebody is"),
    sa.Column("device", Words, nullable=False),
    sa.Column("traits", Bytes, nullable=False, comment="JSON"),
    sa.Column("traits_ms", sa.BigInteger, nullable=False),
    sa.Column("touch", Bytes, nullable=False, comment="JSON"),
    sa.Column("touch_ms", sa.BigInteger, nullable=False),
    sa.Column("held_at_ms", sa.BigInteger, nullable=False, comment="when it last grew"),
    sa.Column("n_entries", sa.Integer, nullable=False, comment="how many entries ended as held for it"),
    sa.Index("held_by_age", "user_key", "held_at_ms"),
    sqlite_with_rowid=False,
)

erasure = sa.Table(
    "erasure",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True),
    sa.Column("user_key", _KEY, nullable=False, comment="of the person who is forgotten"),
    sa.Column("message_id", Words, nullable=False, comment="Segment's, of the delete"),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("step", sa.String, nullable=False, comment="a stable word"),
    sa.Column("detail", Words, nullable=False, comment="a sentence; names no id of the person"),
    sa.Index("erasure_by_user", "user_key"),
)

deletion = sa.Table(
    "deletion",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True),
    sa.Column("user_key", _KEY, nullable=False),
    sa.Column("message_id", Words, nullable=False, comment="Segment's, of the delete"),
    sa.Column("distinct_id", Words, nullable=False, comment="goes with Mixpanel's last word on it"),
    sa.Column("tracking_id", Words, comment="of the request; null until it was made"),
    sa.Index("deletion_by_request", "tracking_id"),
)

request = sa.Table(
    "request",
    metadata,
    sa.Column("tracking_id", Words, primary_key=True, comment="Mixpanel's"),
    sa.Column("status", sa.String, nullable=False, comment="what Mixpanel said last"),
    sa.Column("asked_at_ms", sa.BigInteger, nullable=False, comment="when that was"),
    sqlite_with_rowid=False,
)

seen = [
    sa.Table(
        f"seen_{number}",
        metadata,
        sa.Column("key", _KEY, primary_key=True, comment="project, type and messageId, hashed"),
        sa.Column("content", _KEY, primary_key=True, comment="the rest of the message, hashed"),
        sqlite_with_rowid=False,
    )
    for number in range(SEEN_TABLES)
]
