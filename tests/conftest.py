"""Real parts for every test: SQLite files, the web application, an endpoint on loopback."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from adapter.app import House, create_app
from adapter.config import Settings
from adapter.sandbox.project import Project
from adapter.store import Store
from adapter.store.engine import moment
from tests.endpoint import Endpoint
from tests.postgresql import Pooler, Server, running
from tests.world import World

# A law looks at half as many examples as it would: the suite is run often, and each time at others. How long a
# loaded machine takes to draw them decides nothing.
hypothesis_settings.register_profile(
    "suite", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("suite")

#: Files of tests that wait: for a lease, a time-out, a process.
LONG = {"test_faults", "test_workers", "test_full_disk", "test_wheel", "test_replay_pace"}

#: Makes an empty store, and gives its address.
Databases = Callable[[], AbstractContextManager[str]]

#: For what depends on the database behind it.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_both = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database", default="sqlite", help="sqlite, postgresql or pooler, for tests that take any")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is shown on both databases is shown on another one alone, if that is chosen."""
    chosen = metafunc.config.getoption("database")
    for name in {"either_url", "databases"} & set(metafunc.fixturenames):
        metafunc.parametrize(name, ["sqlite", "postgresql"] if chosen == "sqlite" else [chosen], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Begin with what takes long, so that at the end no process waits for another's.

    On another database, leave out what has nothing to do with it, or was on it already.
    """
    items.sort(key=lambda one: one.path.stem not in LONG)
    if config.getoption("database") != "sqlite":
        there = [one for one in items if _takes_any_database(one)]
        config.hook.pytest_deselected(items=set(items) - set(there))
        items[:] = there


def _takes_any_database(test: pytest.Function) -> bool:
    is_told = hasattr(test, "callspec") and "database_url" in test.callspec.params
    return not is_told and not {"database_url", "either_url", "databases"}.isdisjoint(test.fixturenames)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The address of a store with empty tables."""
    return _sqlite_file(tmp_path)


def _sqlite_file(folder: Path | str) -> str:
    path = Path(folder, "adapter.db")
    path.write_bytes(_empty_store())
    return f"sqlite:///{path}"


@cache
def _empty_store() -> bytes:
    """To copy it takes a tenth of the time that making the tables does."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "adapter.db")
        Store(f"sqlite:///{path}").close()
        return path.read_bytes()


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """The address of an empty store: on the database of the option, or that which a test asks for by `indirect`."""
    name = getattr(request, "param", request.config.getoption("database"))
    found: str = request.getfixturevalue(f"{name}_url")
    return found


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A real PostgreSQL server."""
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def pooler(postgresql: Server) -> Iterator[Pooler]:
    """A PgBouncer, which has to be installed."""
    with TemporaryDirectory() as folder, closing(Pooler(postgresql, Path(folder))) as pooler:
        yield pooler


def _url_on(server: str) -> Any:
    @pytest.fixture
    def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """An empty database of its own; the sandbox, which is a file then, is in a folder of its own as well."""
        monkeypatch.chdir(tmp_path)
        with request.getfixturevalue(server).database() as url:
            yield url

    return url


postgresql_url, pooler_url = _url_on("postgresql"), _url_on("pooler")


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Databases:
    """Makes empty stores, on each database in turn: for a law, which needs many."""
    if request.param == "sqlite":
        return _sqlite_files
    server: Server | Pooler = request.getfixturevalue(request.param)
    return server.database


@contextmanager
def _sqlite_files() -> Iterator[str]:
    with TemporaryDirectory() as folder:
        yield _sqlite_file(folder)


@pytest.fixture
def either_url(request: pytest.FixtureRequest) -> str:
    """The address of an empty store, on each database in turn."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An open store with empty tables."""
    with Store(database_url) as store:
        yield store


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> Iterator[World]:
    with closing(World(tmp_path, database_url)) as world:
        yield world


@pytest.fixture
def split(tmp_path: Path, database_url: str) -> Iterator[World]:
    """The same with SHARED_DEVICES=split."""
    with closing(World(tmp_path, database_url, shared_devices="split")) as world:
        yield world


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Loopback, no secrets, the sandbox: what `adapter serve` has on a fresh machine."""
    return Settings(database_url=database_url)


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    """An open house whose delivery has not been started."""
    house = House.open(settings)
    house.store.leases.renew()
    yield house
    house.close()


@pytest.fixture
def app(house: House) -> Flask:
    return create_app(house)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A real HTTP server that answers as the test tells it to."""
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A sandbox project in a file of its own."""
    with closing(Project.open(tmp_path / "sandbox db?#.sqlite")) as project:
        yield project


@pytest.fixture
def message() -> Callable[..., dict[str, Any]]:
    """Builds a small valid Segment call; keywords replace its fields, None removes one."""

    def build(type: str = "track", **fields: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "type": type,
            "messageId": "m-1",
            "anonymousId": "device-1",
            "timestamp": "2026-03-01T12:00:00.000Z",
        }
        base |= {
            "track": {"event": "Signed Up"},
            "alias": {"userId": "user-1", "previousId": "device-1"},
            "group": {"groupId": "group-1"},
            "delete": {"userId": "user-1"},
        }.get(type, {})
        merged = {**base, **fields}
        return {name: value for name, value in merged.items() if value is not None}

    return build


def raw(message: Any) -> bytes:
    """Compact JSON, as Segment sends it."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def rows(database_url: str, query: str) -> list[tuple[Any, ...]]:
    """What a store holds, read beside whoever has it open."""
    with moment(database_url) as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def stored_bodies(database_url: str) -> list[bytes]:
    return [body for (body,) in rows(database_url, "SELECT body FROM message ORDER BY id")]
