"""The README says what is true."""

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest
from click import Context

from adapter.cli import main
from adapter.config import Settings
from schemas import mixpanel, people, table
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
    on_events = (mixpanel.EventOwned, mixpanel.EventContext, mixpanel.PageContext)
    on_profiles = (people.UserTraits, people.UserUpdateContext, people.PersonContext, people.GroupTraits)
    declared = {name for schema in (*on_events, *on_profiles) for name in mixpanel.names(schema())}
    assert declared <= {row["name"] for row in rows}
    assert all(row["meaning"] and row["name"] in text and row["setting"] in text for row in rows)
    assert {row["setting"] for row in rows} - {""} <= {one.metadata["env"] for one in dataclasses.fields(Settings)}


#: Every name in the Mixpanel columns of reference segment.md 6.9-6.11 and 6.4, and what 6.7 has besides.
PEERS_SEND = """
    event_original_name time $insert_id distinct_id id $user_id $identified_id $device_id $anon_id $group_id
    ip $app_name $app_version_string $app_version $ios_app_version $android_app_version $android_version_code
    $app_build_number $app_release $ios_app_release $app_namespace app_platform $os $os_version $ios_version
    $android_os $android_os_version $device $device_name $device_type $manufacturer $android_manufacturer
    $model $ios_device_model $android_model $ios_ifa advertising_id ad_tracking_enabled $bluetooth_enabled
    $cellular_enabled $has_telephone $carrier $wifi_enabled $wifi $screen_width $screen_height $screen_density
    $screen_dpi $locale timezone mp_country_code $current_url $referrer $referring_domain $initial_referrer
    $search_engine $browser $browser_version $mobile $platform $bitness $platformVersion $uaFullVersion $wow64
    utm_source utm_medium utm_campaign utm_term utm_content mp_lib $lib_version $source segment_source_name
    mp_name_tag $username token $transactions $ip $email $name $first_name $last_name $phone $created $avatar
    $last_seen trait_token $time $ignore_time $ios_devices $create_alias $identify
    peopleProperties setAllTraitsByDefault legacySuperProperties $brand $library_version
"""


@pytest.mark.parametrize("name", PEERS_SEND.split())
def test_every_name_that_a_peer_sends_has_a_decision(name: str) -> None:
    """Sent, or not sent with the reason."""
    rows = [row for row in table.table() if name in row["name"].split(", ") or name == row["name"].split()[0]]
    assert rows
    assert all(len(row["meaning"]) > 3 for row in rows)


def test_every_command_is_in_the_readme_and_none_else() -> None:
    commands = between("## Commands", "## Work")
    assert set(re.findall(r"^\| `adapter (\w+)", commands, re.MULTILINE)) == set(main.list_commands(Context(main)))


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
    assert all(re.fullmatch(r"[a-z0-9_-]+==[0-9][0-9a-z.]*|#.*", line) for line in lines[:-1])
    assert lines[-1] == "."
