"""The tables of the store.

Bodies are bytes, never text: text columns cannot hold all that Segment sends. A message waits as one entry for each
endpoint it can reach; the entries share its body, and the last of them to be settled takes it along.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

#: Raised with every change of a table's shape.
SCHEMA_VERSION = 2
#: What an entry waits for: a line of delivery. Updates that count have one of their own.
ENDPOINTS = ("import", "engage", "counters", "groups")
#: One table a day: today's, yesterday's, and the one that will be tomorrow's.
SEEN_TABLES = 3

message = sa.Table(
    "message",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False, comment="order of arrival"),
    sa.Column("accepted_at_ms", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False, comment="as received, byte for byte"),
)

entry = sa.Table(
    "entry",
    metadata,
    sa.Column("endpoint", sa.String, primary_key=True, comment="import, engage, counters or groups"),
    sa.Column("message_id", sa.Integer, primary_key=True, autoincrement=False, comment="message.id"),
    sa.Column("lane", sa.Integer, nullable=False, comment="0-1023: keeps order for one device or profile"),
    sa.Column("time_ms", sa.BigInteger, nullable=False, comment="when it happened; orders updates claimed together"),
    sa.Column("attempted", sa.Boolean, nullable=False, comment="a POST was begun that must not be made twice"),
    sqlite_with_rowid=False,
)

refusal = sa.Table(
    "refusal",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("endpoint", sa.String, nullable=False, comment="import, engage, groups, or intake: never an entry"),
    sa.Column("reason", sa.String, nullable=False, comment="a stable word"),
    sa.Column("detail", sa.String, nullable=False, comment="a sentence; names fields, carries no payload"),
    sa.Column("accepted_at_ms", sa.BigInteger, nullable=False),
    sa.Column("refused_at_ms", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("refusal_by_reason", "endpoint", "reason"),
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

seen = [
    sa.Table(
        f"seen_{number}",
        metadata,
        sa.Column("key", sa.LargeBinary(16), primary_key=True, comment="project, type and messageId, hashed"),
        sa.Column("content", sa.LargeBinary(16), primary_key=True, comment="the rest of the message, hashed"),
        sqlite_with_rowid=False,
    )
    for number in range(SEEN_TABLES)
]
