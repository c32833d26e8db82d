"""The README says what is true."""

import json
import re
import subprocess
from pathlib import Path

from click import Context

from adapter.cli import main
from schemas import mixpanel
from tests.processes import ROOT, adapter

README = (ROOT / "README.md").read_text()


def between(start: str, end: str) -> str:
    return README.split(start, 1)[1].split(end, 1)[0].strip()


def test_the_settings_table_is_what_the_command_prints(tmp_path: Path) -> None:
    printed = adapter(tmp_path, "settings", "--markdown", MIXPANEL_TOKEN="not-in-the-table")
    assert between("<!-- settings -->", "<!-- /settings -->") == printed.stdout.strip()


def test_the_mapping_table_is_what_the_command_prints(tmp_path: Path) -> None:
    printed = adapter(tmp_path, "mapping", "--markdown")
    assert between("<!-- mapping -->", "<!-- /mapping -->") == printed.stdout.strip()


def test_the_mapping_table_has_every_property_in_every_form(tmp_path: Path) -> None:
    rows = json.loads(adapter(tmp_path, "mapping", "--json").stdout)
    text = adapter(tmp_path, "mapping").stdout
    schemas = (mixpanel.EventOwned, mixpanel.EventContext, mixpanel.UserTraits, mixpanel.UserUpdateContext)
    declared = [name for schema in (*schemas, mixpanel.GroupTraits) for name in mixpanel.names(schema())]
    assert sorted(row["name"] for row in rows) == sorted(declared)
    assert all(row["meaning"] and row["origin"] and row["name"] in text for row in rows)


def test_every_command_is_in_the_readme_and_none_else() -> None:
    table = between("## Commands", "## Work")
    assert set(re.findall(r"^\| `adapter (\w+)", table, re.MULTILINE)) == set(main.list_commands(Context(main)))


def test_ci_runs_the_readmes_own_test_command() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    extracts = next(line for line in lines if line.startswith("command="))
    found = subprocess.run(
        ["bash", "-c", f'{extracts}; echo "$command"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip().endswith(".venv/bin/python -m pytest")
    assert found.stdout.strip() in README


def test_no_pinned_file_names_a_host() -> None:
    for name in ("requirements.txt", "pyproject.toml"):
        assert "://" not in (ROOT / name).read_text()


def test_requirements_pin_every_dependency_of_the_project() -> None:
    lines = (ROOT / "requirements.txt").read_text().lower().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    project = (ROOT / "pyproject.toml").read_text().split("dependencies = [", 1)[1].split("]", 1)[0]
    assert set(re.findall(r'"([a-z-]+)', project)) <= pinned
    assert lines[-1] == "."
