"""What can be asked of a sandbox project, and which ID system it has."""

import sqlite3
from contextlib import closing

import pytest

from adapter.app import House
from adapter.config import Settings
from adapter.errors import ConfigError
from adapter.sandbox import drawing
from adapter.sandbox.project import OtherSystem, Project
from tests.scenarios import TOKEN, Doors


@pytest.fixture
def doors(project):
    return Doors(project)


@pytest.mark.parametrize("auth", [None, ("other", ""), (TOKEN, "x")])
def test_who_reads_needs_the_credentials_of_import(doors, auth):
    doors.arrive(doors.event(u="U1"))
    for method, path in (("GET", "/people"), ("GET", "/events"), ("GET", "/funnel"), ("DELETE", "/events")):
        answer = doors.http.open(path, method=method, auth=auth)
        assert (answer.status_code, answer.json["error"]) == (401, "Invalid credentials")
    assert len(doors.export()) == 1


def test_people_are_told_with_their_ids_profile_and_number_of_events(doors):
    doors.arrive(doors.event(d="D1"), doors.event(d="D1", u="U1"), doors.event(id=""))
    doors.set_profile("U1", plan="pro")
    doors.set_profile("U2", plan="free")
    assert doors.get("/people").json == {
        "identity": "simplified",
        "people": [
            {"id": "U1", "members": ["$device:D1"], "properties": {"plan": "pro"}, "events": 2},
            {"id": "U2", "members": [], "properties": {"plan": "free"}, "events": 0},
        ],
        "next": None,
    }


def test_people_come_in_pages(doors, project):
    doors.arrive(*[doors.event(d=f"D{n}", u=f"U{n}") for n in range(7)])
    pages, after = [], ""
    while after is not None:
        found = doors.get("/people", limit=3, after=after).json
        pages.append([(one["id"], one["members"]) for one in found["people"]])
        after = found["next"]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert sum(pages, []) == [(f"U{n}", [f"$device:D{n}"]) for n in range(7)]
    assert [one.id for one in project.people()] == [f"U{n}" for n in range(7)]


def test_a_question_with_a_parameter_that_it_does_not_take_is_400(doors):
    for door, slip in (("/people", {"limt": 3}), ("/funnel", {"step": ["A", "B"], "windows": "1d"})):
        answer = doors.http.get(door, query_string=slip, auth=(TOKEN, ""))
        assert (answer.status_code, answer.json["error"].rpartition(" ")[2]) == (400, list(slip)[-1])


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "many", "", "9" * 5000])
def test_a_page_has_from_1_to_1000_people(doors, limit):
    answer = doors.http.get("/people", query_string={"limit": limit}, auth=(TOKEN, ""))
    assert (answer.status_code, answer.json["error"]) == (400, "limit must be a number from 1 to 1000")


def test_events_are_exported_once_each_a_line(doors):
    read = doors.event("Read", d="D1", slug="a")
    doors.arrive(read), doors.arrive(read)
    answer = doors.get("/events")
    assert answer.mimetype == "application/x-ndjson"
    assert doors.export() == [
        {"event": "Read", "properties": read["properties"] | {"$device_id": "D1", "distinct_id": "$device:D1"}}
    ]


@pytest.mark.parametrize("system", ["simplified", "original", "legacy"])
def test_a_project_keeps_the_system_it_was_made_with(tmp_path, system):
    path = tmp_path / "p.db"
    with closing(Project.open(path, system)):
        pass
    with closing(Project.open_read_only(path)) as project:
        assert project.identity == system
        assert Doors(project).get("/people").json["identity"] == system


def test_a_project_without_data_may_become_another_one(tmp_path):
    for system in ("simplified", "original"):
        with closing(Project.open(tmp_path / "p.db", system)) as project:
            assert project.identity == system
    with closing(Project.open_read_only(tmp_path / "p.db")) as project:
        assert project.identity == "original"


@pytest.mark.parametrize("filled_by", ["event", "profile", "link"])
def test_a_project_with_data_cannot_become_another_one(tmp_path, filled_by):
    path = tmp_path / "p.db"
    with closing(Project.open(path, "original")) as project:
        doors = Doors(project)
        if filled_by == "profile":
            doors.set_profile("U1", plan="pro")
        else:
            doors.arrive(doors.event("$merge", **{"$distinct_ids": ["U1", "U2"]}))
        if filled_by == "link":
            project.delete_events()
    with pytest.raises(
        OtherSystem, match="has data of original ID Merge and cannot become simplified: to begin anew remove"
    ):
        Project.open(path)
    with closing(Project.open(path, "original")) as project:
        assert len(project.people()) == 1


def test_there_are_three_systems(tmp_path):
    with pytest.raises(ValueError, match="'v3' is no ID system: expected simplified, original, legacy"):
        Project.open(tmp_path / "p.db", "v3")
    assert not (tmp_path / "p.db").exists()


def test_a_file_of_another_version_is_not_misread(tmp_path):
    with closing(sqlite3.connect(tmp_path / "p.db")) as connection:
        connection.execute("create table links (device, user)")
    for open_it in (Project.open, Project.open_read_only):
        with pytest.raises(ValueError, match="by another version of the adapter: remove the file and say `adapter"):
            open_it(tmp_path / "p.db")


def test_serving_names_the_setting_that_asks_for_another_system(database_url, tmp_path):
    wanted = Settings(database_url=database_url, identity_api="original")
    house = House.open(wanted)
    Doors(house.project).set_profile("U1", plan="pro")
    house.close()
    with pytest.raises(ConfigError) as raised:
        House.open(Settings(database_url=database_url))
    assert "has data of original ID Merge and cannot become simplified" in raised.value.faults["IDENTITY_API"]
    House.open(wanted).close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0, "0.0 s"), (59.94, "59.9 s"), (90, "1.5 min"), (5400, "1.5 h"), (129_600, "1.5 d")],
)
def test_a_duration_is_told_in_the_largest_unit_that_fits(seconds, text):
    assert drawing.duration(seconds) == text
