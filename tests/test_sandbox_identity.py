"""Who becomes whom in the sandbox: scenarios of reference/mixpanel.md 9.1, by number, over HTTP."""

import flask
import pytest

from adapter.sandbox import endpoints

NOW_S = 1_790_000_000
MONTH_S = 30 * 86_400
TOKEN = "the-token"
CONFLICT = "errAnonDistinctIdAssignedAlready"


@pytest.fixture
def http(project):
    app = flask.Flask("test")
    app.register_blueprint(endpoints.blueprint(project, token=TOKEN, service_account=None, clock=lambda: NOW_S))
    return app.test_client()


def send(d=None, u=None, id=None, ago_s=0):
    """One event of a scenario; the letters are those of the reference."""
    ids = {"$device_id": d, "$user_id": u, "distinct_id": id}
    return {"ago_s": ago_s, "ids": {name: value for name, value in ids.items() if value is not None}}


def arrive(http, arrivals, *, one_batch):
    """Import events in order, each with an insert id that tells its number (from 1)."""
    records = []
    for n, arrival in enumerate(arrivals, 1):
        properties = {"time": NOW_S - 60 + n - arrival["ago_s"], "$insert_id": f"n-{n}"} | arrival["ids"]
        records.append({"event": "E", "properties": properties})
    for batch in [records] if one_batch else [[record] for record in records]:
        answer = http.post("/import", json=batch, auth=(TOKEN, ""))
        assert (answer.status_code, answer.json["num_records_imported"]) == (200, len(batch))


def persons(project):
    return [event.person for event in project.events()]


def clusters(project):
    return {person.id: set(person.devices) for person in project.people()}


def marked(project):
    """The numbers of the events that say why their ids could not be joined."""
    reasons = {
        event.insert_id: event.properties["$identity_failure_reason"]
        for event in project.events()
        if "$identity_failure_reason" in event.properties
    }
    assert set(reasons.values()) <= {CONFLICT}
    return [int(insert_id.removeprefix("n-")) for insert_id in reasons]


D1, D2, U1 = send(d="D1"), send(d="D2"), send(u="U1")
D1_U1, D1_U2, D2_U1 = send(d="D1", u="U1"), send(d="D1", u="U2"), send(d="D2", u="U1")

#: Scenario -> arrivals, the person of each, the clusters, the numbers of the marked events.
SCENARIOS = {
    "S1": ([D1, D1, D1_U1], ["U1"] * 3, {"U1": {"D1"}}, []),
    "S2": (
        [D1, D1, D1_U1, D2, D2],
        ["U1"] * 3 + ["$device:D2"] * 2,
        {"U1": {"D1"}, "$device:D2": set()},
        [],
    ),
    "S3": ([D1, D1, D1_U1, D2, D2, D2_U1], ["U1"] * 6, {"U1": {"D1", "D2"}}, []),
    "S4": (
        [D1, D1_U1, D2, D2, send(d="D2", u="U2")],
        ["U1", "U1", "U2", "U2", "U2"],
        {"U1": {"D1"}, "U2": {"D2"}},
        [],
    ),
    "S5": ([D1, D1_U1, D1_U2, D1], ["U1", "U1", "U2", "U1"], {"U1": {"D1"}, "U2": set()}, [3]),
    "S6": (
        [D1, D1_U1, send(d="D1", u="U2", ago_s=3600), D1],
        ["U1", "U1", "U2", "U1"],
        {"U1": {"D1"}, "U2": set()},
        [3],
    ),
    "S7": ([D1_U1, send(d="D1", ago_s=MONTH_S)], ["U1", "U1"], {"U1": {"D1"}}, []),
    "S8": ([D1, send(d="D1", u="U1", ago_s=MONTH_S)], ["U1", "U1"], {"U1": {"D1"}}, []),
    "S10": ([U1, D1], ["U1", "$device:D1"], {"U1": set(), "$device:D1": set()}, []),
    "S11": ([send(id="charlie")], ["charlie"], {"charlie": set()}, []),
    "S12": ([send(id="$device:A"), send(d="A", u="U1")], ["U1", "U1"], {"U1": {"A"}}, []),
    "S13": ([send(id="A"), send(d="A", u="U1")], ["A", "U1"], {"A": set(), "U1": {"A"}}, []),
    "S14": ([send(d="$device:A"), send(d="A", u="U1")], ["U1", "U1"], {"U1": {"A"}}, []),
    "S15": (
        [send(d="$device:$device:A"), send(d="A", u="U1")],
        ["$device:$device:A", "U1"],
        {"$device:$device:A": set(), "U1": {"A"}},
        [],
    ),
    "S16": (
        [send(d="phone", u="charlie"), send(u="phone")],
        ["charlie", "phone"],
        {"charlie": {"phone"}, "phone": set()},
        [],
    ),
    "S17": (
        [send(d="D1", u="a@x"), send(d="D1", u="b@x")],
        ["a@x", "b@x"],
        {"a@x": {"D1"}, "b@x": set()},
        [2],
    ),
    "S21": (
        [send(d=f"D{n}", u="U1") for n in range(600)],
        ["U1"] * 600,
        {"U1": {f"D{n}" for n in range(600)}},
        [],
    ),
    "S22": ([send(d="D1", id="U1")], ["$device:D1"], {"$device:D1": set()}, []),
    "S23": ([send(id="")], [""], {}, []),
    "S29": (
        [send(d="K", u="U1"), send(d="K", u="U2"), send(d="K", u="U3"), send(d="K")],
        ["U1", "U2", "U3", "U1"],
        {"U1": {"K"}, "U2": set(), "U3": set()},
        [2, 3],
    ),
    "S32": ([D1_U1, U1, D1], ["U1"] * 3, {"U1": {"D1"}}, []),
}


@pytest.mark.parametrize("one_batch", [True, False], ids=["one batch", "one each"])
@pytest.mark.parametrize(
    ("arrivals", "who", "expected_clusters", "conflicts"), SCENARIOS.values(), ids=SCENARIOS.keys()
)
def test_scenario(http, project, arrivals, who, expected_clusters, conflicts, one_batch):
    arrive(http, arrivals, one_batch=one_batch)
    assert persons(project) == who
    assert clusters(project) == expected_clusters
    assert marked(project) == conflicts
    assert {person.id: person.events for person in project.people()} == {
        person: who.count(person) for person in expected_clusters
    }


@pytest.mark.parametrize("verb", ["$identify", "$create_alias", "$merge"])
def test_scenario_s9_identify_on_track_joins_nothing(http, project, verb):
    arrive(http, [D1], one_batch=True)
    ids = {"$identified_id": "U1", "$anon_id": "D1", "$device_id": "D1", "$user_id": "U1"}
    answer = http.post("/track", json=[{"event": verb, "properties": {"token": TOKEN} | ids}])
    assert (answer.status_code, answer.text) == (200, "1")
    assert persons(project) == ["$device:D1"]
    assert clusters(project) == {"$device:D1": set()}


def test_an_ordinary_event_on_track_links_as_one_on_import_does(http, project):
    arrive(http, [D1], one_batch=True)
    ids = {"$device_id": "D1", "$user_id": "U1"}
    http.post("/track", json=[{"event": "Login", "properties": {"token": TOKEN} | ids}])
    assert persons(project) == ["U1", "U1"]
    assert clusters(project) == {"U1": {"D1"}}


def test_scenario_s24_an_anonymous_profile_is_not_carried_over_by_a_link(http, project):
    def set_plan(distinct_id):
        update = {"$token": TOKEN, "$distinct_id": distinct_id, "$set": {"plan": "free"}}
        assert http.post("/engage?strict=1", json=[update]).text == "1"

    def profiles():
        return {person.id: person.properties for person in project.people()}

    set_plan("$device:D1")
    assert profiles() == {"$device:D1": {"plan": "free"}}
    arrive(http, [D1_U1], one_batch=True)
    assert persons(project) == ["U1"]
    assert clusters(project) == {"U1": {"D1"}}
    assert profiles() == {"U1": {}}
    set_plan("U1")
    assert profiles() == {"U1": {"plan": "free"}}


@pytest.mark.parametrize(
    ("arrival", "decided"),
    [
        (send(id="charlie"), {"distinct_id": "charlie", "$user_id": "charlie"}),
        (send(id="$device:A"), {"distinct_id": "$device:A", "$device_id": "A"}),
        (send(d="$device:A"), {"distinct_id": "$device:A", "$device_id": "A"}),
        (send(d="A", u="U1", id="else"), {"distinct_id": "U1", "$device_id": "A", "$user_id": "U1"}),
        (send(u="U1", id="else"), {"distinct_id": "U1", "$user_id": "U1"}),
        (send(d="A", id="U1"), {"distinct_id": "$device:A", "$device_id": "A"}),
    ],
)
def test_the_stored_event_shows_the_ids_that_were_decided(http, project, arrival, decided):
    arrive(http, [arrival], one_batch=True)
    (event,) = project.events()
    shown = {name: event.properties.get(name) for name in ("distinct_id", "$device_id", "$user_id")}
    assert {name: value for name, value in shown.items() if value is not None} == decided
    assert event.distinct_id == decided["distinct_id"]


def test_a_resent_link_and_a_resent_conflict_change_nothing(http, project):
    for _ in range(2):
        arrive(http, [D1_U1, D1_U2], one_batch=True)
    assert persons(project) == ["U1", "U2"]
    assert clusters(project) == {"U1": {"D1"}, "U2": set()}
    assert marked(project) == [2]
    assert [event.times_received for event in project.events()] == [2, 2]
