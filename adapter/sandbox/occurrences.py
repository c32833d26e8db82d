"""Which stored events are steps of a funnel, and whose are they?

Matched and put in order by SQLite, so that Python sees no event twice and one person's at a time.
"""

from collections.abc import Iterator
from functools import reduce
from operator import add

import sqlalchemy as sa

from adapter.sandbox import tables
from adapter.sandbox.attempts import Occurrence
from adapter.sandbox.funnel import Question, Step
from adapter.sandbox.tables import events


def read(connection: sa.Connection, question: Question, *, retroactive: bool) -> Iterator[Occurrence]:
    """The events that a question names, by person and time."""
    source, person = tables.resolved(retroactive)
    steps = reduce(add, [_bit(step, 1 << k) for k, step in enumerate(question.steps)])
    segment = sa.null() if question.by is None else _text(question.by)
    query = (
        sa.select(person, events.c.time_ms, steps, segment)
        .select_from(source)
        .where(events.c.event.in_({step.event for step in question.steps}))
        .order_by(person, events.c.time_ms, events.c.id)
    )
    rows = connection.execution_options(yield_per=10_000).execute(query)
    return map(Occurrence._make, rows)


def _bit(step: Step, bit: int) -> sa.ColumnElement[int]:
    """The bit where an event is this step, else 0. The property is read only where the name is the step's."""
    values = [_text(name) == value for name, value in step.where]
    return sa.case((sa.and_(events.c.event == step.event, *values), bit), else_=0)


def _text(name: str) -> sa.ColumnElement[str | None]:
    return sa.func.property_text(events.c.properties, name)
