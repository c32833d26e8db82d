"""Single values the store keeps: its schema's version, its destination, the last answer of an endpoint."""

import json
from typing import Any

import sqlalchemy as sa

from adapter.store.portable import insert
from adapter.store.tables import fact

_UPSERT = insert(fact)
_REMEMBER = _UPSERT.on_conflict_do_update(index_elements=[fact.c.name], set_={"value": _UPSERT.excluded.value})
_CHANGE = _UPSERT.on_conflict_do_update(
    index_elements=[fact.c.name],
    set_={"value": _UPSERT.excluded.value},
    where=fact.c.value != _UPSERT.excluded.value,
).execution_options(preserve_rowcount=True)
_RECALL = sa.select(fact.c.value).where(fact.c.name == sa.bindparam("name"))


def remember(connection: sa.Connection, name: str, value: Any) -> None:
    """Keep a JSON value under a name."""
    connection.execute(_REMEMBER, {"name": name, "value": json.dumps(value)})


def change(connection: sa.Connection, name: str, value: Any) -> bool:
    """Keep a value, and say whether it is another than before; of several who do so at once one hears yes."""
    return connection.execute(_CHANGE, {"name": name, "value": json.dumps(value)}).rowcount > 0


def recall(connection: sa.Connection, name: str) -> Any:
    """The value kept under a name, or None."""
    value = connection.scalar(_RECALL, {"name": name})
    return None if value is None else json.loads(value)
