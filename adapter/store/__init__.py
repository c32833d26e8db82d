"""What survives a crash: messages that wait, refusals, tallies.

The verbs: `put` takes messages in, `claim` reads the oldest that wait, `settle` ends them; `put_back` lets a refused
one wait again. Nothing is deleted before its end is known: a process that dies between claim and settle finds the
same entries again. The store knows keys, lanes and bodies; it has never heard of Segment or Mixpanel.

core.py     the Store and its verbs
entries.py  what waits: put in, claimed, ended
counts.py   how many entries are in each state
reader.py   what the store can tell, also beside the process that writes it
shapes.py   what goes in and comes out: Arrival, Refusal, Entry, Settled
refused.py  what was refused: found, put back, discarded, let go when old
room.py     whether there is room for more
seen.py     messages seen before
graph.py    which device is whose, and what waits with it
erasure.py  what is erased of a person, step by step
deletions.py  what Mixpanel is asked to delete
facts.py    single values
person.py   everything known of one id
report.py   what `adapter status` shows, read beside the serving process
leases.py   which lanes this process may send for
suspects.py what was on trial when a process ended
tables.py   the tables
migrations.py  the tables made, and brought from an older release to this one
writer.py   the one connection that writes, for all who wait
engine.py   the database that DATABASE_URL names: sqlite.py, or postgresql.py
portable.py what the two say in different words
"""

from adapter.store.core import Store
from adapter.store.deletions import DELETIONS
from adapter.store.graph import Release, Waiting
from adapter.store.leases import Epochs
from adapter.store.migrations import migrate, tables_are_there
from adapter.store.person import Asked, Known, read_id
from adapter.store.reader import Reader, beside
from adapter.store.refused import Judged, Wanted
from adapter.store.report import DeletionReport, EndpointReport, Report, read_report
from adapter.store.shapes import INTAKE, Arrival, Entry, Erasure, Kept, Put, Refusal, Settled
from adapter.store.tables import SHARES, share_of

__all__ = [
    "DELETIONS",
    "INTAKE",
    "SHARES",
    "Arrival",
    "Asked",
    "DeletionReport",
    "EndpointReport",
    "Entry",
    "Epochs",
    "Erasure",
    "Judged",
    "Kept",
    "Known",
    "Put",
    "Reader",
    "Refusal",
    "Release",
    "Report",
    "Settled",
    "Store",
    "Waiting",
    "Wanted",
    "beside",
    "migrate",
    "read_id",
    "read_report",
    "share_of",
    "tables_are_there",
]
