"""Imports run downhill, and every room stands on a floor."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: From the top down; a room imports from floors below its own. A new room begins with its name here.
FLOORS = [
    {"adapter.__main__"},
    {"adapter.cli"},
    {"adapter.replay", "adapter.reports"},
    {"adapter.refusals"},
    {"adapter.preview", "adapter.census", "adapter.check", "adapter.demo", "adapter.dossier", "adapter.app"},
    {"adapter.doubts"},
    {"adapter.webhook", "adapter.sandbox", "adapter.changes"},
    {"adapter.bodies", "adapter.intake", "adapter.delivery"},
    {"adapter.apart"},
    {"adapter.sending", "adapter.trials"},
    {"adapter.deletes", "adapter.deletions", "adapter.devices", "adapter.pace", "adapter.parcels"},
    {"adapter.mapping", "adapter.ingestion", "adapter.store"},
    {"adapter.profiles", "adapter.rounds", "adapter.surroundings", "adapter.verbs"},
    {"adapter.persons", "adapter.touch"},
    {"adapter.keys", "adapter.filters", "adapter.limits", "adapter.records", "adapter.wire"},
    {"adapter.links"},
    {"adapter.identity"},
    {"adapter.config"},
    {"adapter.declared"},
    {"adapter.values", "adapter.addresses"},
    {"adapter.logs", "adapter.archive", "adapter.control"},
    {"adapter.errors", "schemas"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[Path]:
    return sorted(path for top in ("adapter", "schemas") for path in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    return "schemas" if name.startswith("schemas") else ".".join(name.split(".")[:2])


def imports_of(path: Path) -> set[str]:
    known = {name_of(module) for module in modules()}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
    return {name for name in found if name in known}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_from_floors_below(path: Path) -> None:
    room = room_of(name_of(path))
    if room == "adapter":
        assert imports_of(path) == set(), "the map of the house imports nothing"
        return
    assert room in FLOOR_OF, "a new room needs a floor"
    for imported in imports_of(path):
        other = room_of(imported)
        assert other == room or FLOOR_OF[other] > FLOOR_OF[room], f"{room} imports {imported}"


@pytest.mark.parametrize("house", ["adapter", "adapter/store", "adapter/sandbox", "schemas"])
def test_the_map_at_the_door_names_every_room(house: str) -> None:
    rooms = {path.stem for path in (ROOT / house).iterdir() if path.suffix in ("", ".py")}
    told = re.findall(r"\w+", ast.get_docstring(ast.parse((ROOT / house / "__init__.py").read_text())) or "")
    assert {room for room in rooms if not room.startswith("__")} - set(told) == set()


def test_no_module_imports_itself_through_others() -> None:
    edges = {name_of(path): imports_of(path) for path in modules()}

    def reaches(start: str, seen: set[str]) -> set[str]:
        for target in edges[start] - seen:
            seen |= {target}
            reaches(target, seen)
        return seen

    assert [name for name in edges if name in reaches(name, set())] == []


PURE = ["identity", "links", "keys", "persons", "filters", "limits", "records", "verbs", "profiles", "touch"]
PURE += ["surroundings", "mapping"]
PURE += ["census/said"]


@pytest.mark.parametrize("room", PURE)
def test_the_middle_is_pure(room: str) -> None:
    """No clock, no randomness, no input or output: a message sent again must become the same bytes."""
    tree = ast.parse((ROOT / "adapter" / f"{room}.py").read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported <= {
        "adapter",
        "schemas",
        "bisect",
        "dataclasses",
        "collections",
        "typing",
        "hashlib",
        "fnmatch",
        "orjson",
        "functools",
        "operator",
        "datetime",
        "re",
        "uuid",
        "msgspec",
        "marshmallow",
        "math",
    }
    calls = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not calls & {"uuid1", "uuid4", "time", "now", "open"}


def test_the_sandbox_judges_independently_of_what_it_judges() -> None:
    for path in (ROOT / "adapter" / "sandbox").glob("*.py"):
        assert all(name.startswith("adapter.sandbox") for name in imports_of(path)), path
