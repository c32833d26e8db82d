"""Whether so many are read as are to be sent."""

from itertools import islice

from adapter import identity, keys
from adapter.census.tables import Tables
from adapter.identity import bare
from adapter.records import Options
from adapter.replay import again, fold, gone
from adapter.replay.job import Job
from adapter.store import Reader
from schemas.mixpanel import COUNTERS
from schemas.segment import Message

#: With a limit, what counts for it.
TABLES = ("CREATE TABLE sent (user TEXT, device TEXT, time_ms INTEGER)",)
#: What counts for the limit and is of who was deleted; what of a visitor is, is of who used the device first.
_LEFT_OUT = """
DELETE FROM sent WHERE time_ms <= (
    SELECT until_ms FROM gone WHERE is_user = 0 AND id = sent.device AND sent.user IS NULL
) OR time_ms <= (
    SELECT until_ms FROM gone WHERE is_user = 1 AND id = coalesce(sent.user, (
        SELECT user FROM (
            SELECT user, place FROM claim WHERE device = sent.device AND place < X'FF'
            UNION ALL SELECT user, place FROM alias
            WHERE device = sent.device AND NOT EXISTS (SELECT 1 FROM person WHERE id = device)
        ) ORDER BY place LIMIT 1
    ))
)
"""


class Limit:
    """Whether so many are read as are to be sent. What is left out for its person was deleted is not among them."""

    def __init__(self, job: Job, tables: Tables, options: Options, store: Reader | None) -> None:
        self.message: Message | None = None  #: the last that was looked at
        self._limit = job.choice.limit
        self._job = job
        self._tables = tables
        self._options = options
        self._store = store if store is not None and store.has_erased() else None
        self._n_counted = self._n_left = 0  #: as the tables count; without those that are left out

    @property
    def is_set(self) -> bool:
        return self._limit is not None

    def count(self, update: again.Update | None) -> None:
        """Count what was just read, a refused update or a message, if it is to be sent."""
        if update is not None:
            if update.endpoint == COUNTERS or not self._job.choice.is_all or self._job.profiles == fold.OFF:
                return
            is_user = identity.is_user(update.profile)
            row: tuple[str | None, str | None, int]
            row = (update.profile, None, -1) if is_user else (None, bare(update.profile), -1)
        elif self.message is None or self._tables.n_sent == self._n_counted:
            return
        else:
            who = identity.resolve(self.message, self._options.denied)
            row = who.user_id, who.device_id, keys.time_ms(self.message, self._job.now_ms)
        self._n_counted = self._tables.n_sent
        self._n_left += 1
        self._tables.file.execute("INSERT INTO sent VALUES (?, ?, ?)", row)

    def is_reached(self) -> bool:
        if self._limit is None or self._n_left < self._limit:
            return False
        self._leave_out()
        return self._n_left >= self._limit

    def _leave_out(self) -> None:
        file = self._tables.file
        self._tables.write()
        gone.put(file, self._store)
        devices = file.execute("SELECT DISTINCT device FROM sent WHERE user IS NULL")
        while self._store is not None and (some := [device for (device,) in islice(devices, gone.ASKED)]):
            gone.put_devices(file, self._store, self._store.known(some), self._job.now_ms)
        file.execute(_LEFT_OUT)
        (self._n_left,) = file.execute("SELECT count(*) FROM sent").fetchone()
