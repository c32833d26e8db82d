"""What survives a crash: messages that wait, refusals, tallies.

The verbs: `put` takes messages in, `claim` reads the oldest that wait, `settle` ends them. Nothing is deleted before
its end is known: a process that dies between claim and settle finds the same entries again. The store knows keys,
lanes and bodies; it has never heard of Segment or Mixpanel.

core.py     the Store and its verbs
shapes.py   what goes in and comes out: Arrival, Refusal, Entry, Settled
from adapter.store.tables import SHARES, share_of
seen.py     messages seen before
graph.py    which device is whose, and what waits with it
erasure.py  what is erased of a person, step by step, and what Mixpanel is asked to delete
facts.py    single values
person.py   everything known of one id
report.py   what `adapter status` shows, read beside the serving process
leases.py   which lanes this process may send for
tables.py   the tables
migrations.py  the tables made, and brought from an older release to this one
writer.py   the one connection that writes, for all who wait
engine.py   the database that DATABASE_URL names: sqlite.py, or postgresql.py
portable.py what the two say in different words
"""

from adapter.store.core import Store
from adapter.store.erasure import DELETIONS, Step, read_steps
from adapter.store.graph import Release
from adapter.store.leases import Epochs
from adapter.store.migrations import migrate
from adapter.store.person import Known, read_id
from adapter.store.report import DeletionReport, EndpointReport, Report, read_report
from adapter.store.shapes import INTAKE, Arrival, Entry, Erasure, Put, Refusal, Settled
from adapter.store.tables import SHARES, share_of

__all__ = [
    "DELETIONS",
    "INTAKE",
    "SHARES",
    "Arrival",
    "DeletionReport",
    "EndpointReport",
    "Entry",
    "Epochs",
    "Erasure",
    "Known",
    "Put",
    "Refusal",
    "Release",
    "Report",
    "Settled",
    "Step",
    "Store",
    "migrate",
    "read_id",
    "read_report",
    "read_steps",
    "share_of",
]
