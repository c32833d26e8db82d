"""A store that an earlier release wrote, with messages that wait: all of it is kept, and goes out.

`tests/data/store-N.sql` are dumps of files that releases of schema N had in use when they were killed. Schema 5 had
grown before it was raised: the dump is of the first that had it.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapter.errors import ConfigError
from adapter.store import Store, Wanted, migrate
from adapter.store.engine import moment
from schemas.mixpanel import COUNTERS, ENGAGE, GROUPS, IMPORT
from tests.conftest import rows
from tests.endpoint import Endpoint
from tests.test_delivery import House
from tests.test_store import arrival, assert_sums_hold, delivered, read_report, refusal

DATA = Path(__file__).parent / "data"
#: Days, so that nothing of the dumps is too old.
FOR_EVER = 100_000


@pytest.fixture(params=[4, 5])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.executescript((DATA / f"store-{request.param}.sql").read_text())
    return f"sqlite:///{tmp_path / 'old.db'}"


@pytest.fixture
def house(old_url: str, endpoint: Endpoint) -> Iterator[House]:
    house = House(old_url, endpoint)
    house.settings = replace(house.settings, held_days=FOR_EVER, refused_days=FOR_EVER)
    yield house
    house.close()


def tables(url: str) -> dict[str, Any]:
    """Each table's columns and keys."""
    with moment(url) as connection:
        look = sa.inspect(connection)
        return {
            name: (
                {column["name"]: (repr(column["type"]), column["nullable"]) for column in look.get_columns(name)},
                look.get_pk_constraint(name)["constrained_columns"],
                sorted(str(index["name"]) for index in look.get_indexes(name)),
            )
            for name in look.get_table_names()
        }


def test_all_that_waited_goes_out_with_what_was_known(house: House) -> None:
    lines = [house.line(to) for to in (IMPORT, ENGAGE, COUNTERS, GROUPS)]
    assert sum(house.waiting(to) for to in (IMPORT, ENGAGE, GROUPS)) == 7
    for _ in range(20):
        for line in lines:
            line.work()
    sent = [record for got in house.endpoint.got for record in got.records]
    events = {(one["event"], one["properties"].get("$user_id")) for one in sent if "event" in one}
    assert events == {("Signed Up", "ada"), ("Identity Linked", "ben"), ("Identity Linked", "cleo")}
    assert [one["$distinct_id"] for one in sent if "$delete" in one] == ["ada"]
    assert {"plan": "free"} in [one.get("$set_once") for one in sent], "what was held for a visitor"
    assert {"size": 6} in [one.get("$set") for one in sent if "$group_key" in one]
    report = read_report(house.database_url)
    assert report.waiting == 0
    assert_sums_hold(report)
    [kept] = house.store.find_refused(Wanted())
    assert (kept.number, kept.reason) == (1, "invalid")
    house.store.discard([1])
    house.store.put([], [refusal()])
    assert [one.number for one in house.store.find_refused(Wanted())] == [2], "no number is given twice"


def test_its_tables_become_those_of_a_new_store(old_url: str, sqlite_url: str) -> None:
    with Store(sqlite_url), Store(old_url) as store:
        assert store.put([arrival("m")]) == [True]
        assert max(entry.message_id for entry in store.claim("import", 20)) == 10, "behind all that waited"
        assert tables(old_url) == tables(sqlite_url)
    assert migrate(old_url) == 6


def test_in_postgresql_they_are_brought_there_by_a_command_and_no_start(postgresql_url: str) -> None:
    with Store(postgresql_url) as store:
        store.put([arrival(n) for n in range(3)])
        now = tables(postgresql_url)
        store.remember("schema", 5)
        with moment(postgresql_url) as connection:
            connection.exec_driver_sql("DROP TABLE suspect")
            connection.exec_driver_sql("ALTER TABLE entry DROP COLUMN tries, DROP COLUMN tried_ms")
            connection.commit()
        with pytest.raises(ConfigError, match="adapter migrate"):
            Store(postgresql_url)
        assert migrate(postgresql_url) == 5
        assert tables(postgresql_url) == now
    with Store(postgresql_url) as store:
        assert store.put([arrival(2), arrival(3)]) == [False, True]
        store.settle(delivered(store.claim("import", 10)))
    assert rows(postgresql_url, "SELECT count(*) FROM entry") == [(0,)]


def test_in_postgresql_what_comes_and_goes_is_cleared_up_by_number_and_not_packed(postgresql_url: str) -> None:
    with Store(postgresql_url):
        pass
    options = (
        "SELECT unnest(reloptions) FROM pg_class WHERE relname = '{}' OR oid = (SELECT reltoastrelid FROM pg_class"
    )
    options += " WHERE relname = '{}')"
    by_number = {"autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=20000"}
    for table, n_relations in (("message", 2), ("entry", 1)):
        found = [one for (one,) in rows(postgresql_url, options.format(table, table))]
        assert sorted(found) == sorted([*by_number] * n_relations)
    packed = "SELECT attname FROM pg_attribute WHERE attrelid = 'message'::regclass AND attstorage IN ('x', 'm')"
    assert rows(postgresql_url, packed) == []
