"""Which of Mixpanel's three systems decides whose event it is? Source: reference/mixpanel.md 1.1."""

from typing import Any, Protocol

from adapter.sandbox import legacy, original, simplified
from adapter.sandbox.clusters import Clusters
from adapter.sandbox.ids import Failure


class System(Protocol):
    """What a module of a system answers."""

    NAME: str
    RETROACTIVE: bool  #: an event's person follows from all links known when asked; else from those at its arrival
    PROFILE_MOVES: bool  #: the only profile of two clusters is that of both, whoever had it

    def ids_error(self, name: str, properties: dict[str, Any]) -> Failure | None:
        """Why the ids of an event are refused."""

    def named(self, name: str, properties: dict[str, Any]) -> tuple[str, ...]:
        """The ids whose clusters `file` asks for."""

    def file(self, name: str, properties: dict[str, Any], clusters: Clusters) -> dict[str, Any]:
        """The properties that an event is stored with over its own, distinct_id among them; joins clusters."""


SIMPLIFIED = simplified.NAME
SYSTEMS: dict[str, System] = {system.NAME: system for system in (simplified, original, legacy)}


def by_name(name: str) -> System:
    """The system of this name: simplified, original or legacy. ValueError if it is none of them."""
    if name not in SYSTEMS:
        raise ValueError(f"{name!r} is no ID system: expected {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
