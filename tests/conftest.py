"""Real parts for every test: SQLite files, the web application, an endpoint on loopback."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from adapter.app import House, create_app
from adapter.config import Settings
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
