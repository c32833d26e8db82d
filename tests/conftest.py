"""Real parts for every test: SQLite files, the web application, an endpoint on loopback."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask

from adapter.app import House, create_app
from adapter.config import Settings
from adapter.sandbox.project import Project
from adapter.store.engine import database_path
from tests.endpoint import Endpoint


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'adapter.db'}"


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Loopback, no secrets, the sandbox: what `adapter serve` has on a fresh machine."""
    return Settings(database_url=database_url)


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    """An open house whose delivery has not been started."""
    house = House.open(settings)
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
    """What a store's file holds, read beside whoever has it open."""
    path = quote(str(database_path(database_url)))
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def stored_bodies(database_url: str) -> list[bytes]:
    return [body for (body,) in rows(database_url, "SELECT body FROM message ORDER BY id")]
