"""The sandbox's answers over HTTP: what is stored, what is refused and with which words."""

import base64
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlencode

import flask
import pytest

from adapter.sandbox import bodies, endpoints, ids
from adapter.sandbox.project import Project

NOW_S = 1_790_000_000
DAY_S = 86_400
TOKEN = "the-token"
BY_TOKEN = {"auth": (TOKEN, "")}


@pytest.fixture
def http(project):
    app = flask.Flask("test")
    account = ("robot", "robot-secret", "4711")
    app.register_blueprint(
        endpoints.blueprint(project, token=TOKEN, service_account=account, clock=lambda: NOW_S + 0.5)
    )
    return app.test_client()


def event(name="Read", **properties):
    defaults = {"time": NOW_S, "$insert_id": "i-1", "$device_id": "D1"}
    kept = {key: value for key, value in (defaults | properties).items() if value is not ...}
    return {"event": name, "properties": kept}


def post_import(http, events, **options):
    return http.post("/import", json=events, **(BY_TOKEN | options))


def stored(project):
    return [(kept.event, kept.person) for kept in project.events()]


# ---- /import: credentials


@pytest.mark.parametrize(
    ("auth", "query"),
    [((TOKEN, ""), ""), (("robot", "robot-secret"), "?project_id=4711")],
    ids=["token", "service account"],
)
def test_the_token_or_the_service_account_opens_import(http, project, auth, query):
    answer = http.post(f"/import{query}", json=[event()], auth=auth)
    assert answer.status_code == 200
    assert answer.json == {"code": 200, "num_records_imported": 1, "status": "OK"}
    assert stored(project) == [("Read", "$device:D1")]


@pytest.mark.parametrize(
    ("auth", "query", "error"),
    [
        (None, "", "Invalid credentials"),
        (("other", ""), "", "Invalid credentials"),
        ((TOKEN, "x"), "", "Invalid credentials"),
        (("robot", "robot-secret"), "", "Invalid credentials"),
        ((TOKEN, ""), "?project_id=4711", "Invalid service account credentials"),
        (("robot", "wrong"), "?project_id=4711", "Invalid service account credentials"),
        (("robot", "robot-secret"), "?project_id=4712", "Invalid service account credentials"),
        (("röbot", ""), "", "Invalid credentials"),
    ],
)
def test_other_credentials_are_answered_401_and_store_nothing(http, project, auth, query, error):
    answer = http.post(f"/import{query}", json=[event()], auth=auth)
    assert answer.status_code == 401
    assert answer.json == {"code": 401, "error": error, "status": "Unauthorized"}
    assert stored(project) == []


@pytest.mark.parametrize("header", ["Basic", "Basic !!", "Basic /w==", "Bearer the-token", "Digest a=b"])
def test_a_strange_authorization_header_is_answered_401(http, header):
    assert http.post("/import", json=[event()], headers={"Authorization": header}).status_code == 401


def test_without_a_service_account_no_project_id_opens_import(tmp_path):
    with closing(Project.open(tmp_path / "p.sqlite")) as project:
        app = flask.Flask("test")
        app.register_blueprint(endpoints.blueprint(project, token=TOKEN, service_account=None))
        assert app.test_client().post("/import?project_id=", json=[], auth=("", "")).status_code == 401


# ---- /import: bodies


def test_ndjson_and_gzip_are_read(http, project):
    lines = b"\n".join(json.dumps(event(f"E{n}")).encode() for n in range(3)) + b"\n\n"
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    answer = http.post("/import", data=gzip.compress(lines), headers=headers, **BY_TOKEN)
    assert (answer.status_code, answer.json["num_records_imported"]) == (200, 3)
    assert [name for name, _ in stored(project)] == ["E0", "E1", "E2"]


def test_a_gzip_bomb_is_answered_413_and_never_inflated_past_the_ceiling(http, monkeypatch):
    inflated = []

    class Watched:
        def __init__(self, wbits):
            self.real = REAL_DECOMPRESSOBJ(wbits=wbits)

        def decompress(self, data, max_length):
            out = self.real.decompress(data, max_length)
            inflated.append(len(out))
            return out

    bomb = gzip.compress(b"[" + b" " * 50_000_000)
    monkeypatch.setattr(bodies.zlib, "decompressobj", Watched)
    answer = http.post("/import", data=bomb, headers={"Content-Encoding": "gzip"}, **BY_TOKEN)
    assert answer.status_code == 413
    assert answer.json["error"] == "request exceeds max limit of 2097152 bytes"
    assert inflated == [2_097_153]


REAL_DECOMPRESSOBJ = bodies.zlib.decompressobj


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("extra", "code"), [(0, 200), (1, 413)])
def test_two_mebibytes_uncompressed_are_the_most(http, packed, extra, code):
    body = json.dumps([event()]).encode().ljust(2_097_152 + extra)
    data, headers = (gzip.compress(body), {"Content-Encoding": "gzip"}) if packed else (body, {})
    answer = http.post("/import", data=data, headers=headers, **BY_TOKEN)
    assert answer.status_code == code
    assert answer.json["status"] == ("OK" if code == 200 else "Request Entity Too Large")


def test_two_thousand_events_are_the_most(http, project):
    events = [event(**{"$insert_id": f"i-{n}"}) for n in range(2001)]
    assert post_import(http, events).status_code == 413
    assert project.counts()["events"] == 0
    assert post_import(http, events[:2000]).json["num_records_imported"] == 2000
    assert project.counts()["events"] == 2000


UNREADABLE = {
    "nothing": b"",
    "cut short": b'[{"event":',
    "NaN": b'[{"event": NaN}]',
    "infinity": b"[1e999]",
    "lone surrogate": b'["\\ud83d"]',
    "not UTF-8": b'["\xff"]',
    "nesting bomb": b"[" * 100_000,
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_malformed_json_is_answered_400_without_failed_records(http, body):
    for content_type in ("application/json", "application/x-ndjson"):
        if not body and content_type != "application/json":
            continue  # no line is no event
        answer = http.post("/import", data=body, content_type=content_type, **BY_TOKEN)
        assert answer.status_code == 400
        assert answer.json.keys() == {"code", "error", "status"}
        assert "malformed JSON" in answer.json["error"]


@pytest.mark.parametrize("body", ["{}", "1", "null", '"text"', json.dumps(event())])
def test_a_body_that_is_no_array_is_answered_400(http, body):
    answer = http.post("/import", data=body, **BY_TOKEN)
    assert (answer.status_code, answer.json["error"]) == (400, "the body must be a JSON array of events")


BAD_GZIP = {
    "not gzip": b"[]",
    "cut short": gzip.compress(b"[]")[:-3],
    "two members": gzip.compress(b"[") + gzip.compress(b"]"),
}


@pytest.mark.parametrize("body", BAD_GZIP.values(), ids=BAD_GZIP.keys())
def test_bad_gzip_is_answered_400(http, body):
    answer = http.post("/import", data=body, headers={"Content-Encoding": "gzip"}, **BY_TOKEN)
    assert (answer.status_code, "gzip" in answer.json["error"]) == (400, True)


def test_an_unknown_content_encoding_is_answered_400(http):
    answer = http.post("/import", data=b"[]", headers={"Content-Encoding": "br"}, **BY_TOKEN)
    assert "'br' is not supported" in answer.json["error"]


# ---- /import: events


def test_bad_events_are_listed_and_the_good_ones_are_stored(http, project):
    batch = [event("Good"), event(time="now"), event("Also good"), "no event"]
    answer = post_import(http, batch)
    assert answer.status_code == 400
    assert answer.json == {
        "code": 400,
        "error": "some data points in the request failed validation",
        "failed_records": [
            {
                "index": 1,
                "$insert_id": "i-1",
                "field": "properties.time",
                "message": "'properties.time' is invalid: must be specified as seconds since epoch",
            },
            {
                "index": 3,
                "$insert_id": "",
                "field": "event",
                "message": "'event' is invalid: must be an object",
            },
        ],
        "num_records_imported": 2,
        "status": "Bad Request",
    }
    assert [name for name, _ in stored(project)] == ["Good", "Also good"]


def test_without_strict_bad_events_are_left_out_and_the_answer_is_200(http, project):
    answer = http.post("/import?strict=0", json=[event(time=0), event()], **BY_TOKEN)
    assert (answer.status_code, answer.json["num_records_imported"]) == (200, 1)
    assert len(stored(project)) == 1


def nested(levels):
    return {"deeper": nested(levels - 1)} if levels > 1 else {"leaf": 1}


TIME = "properties.time"
INSERT_ID = "properties.$insert_id"
REFUSED_EVENTS = {
    "null": (None, "event"),
    "list": ([], "event"),
    "no name": ({"properties": {}}, "event"),
    "empty name": (event(""), "event"),
    "number as name": (event(7), "event"),
    "long name": (event("x" * 256), "event"),
    "no properties": ({"event": "Read"}, "properties"),
    "properties a list": ({"event": "Read", "properties": []}, "properties"),
    "no time": (event(time=...), TIME),
    "time a float": (event(time=NOW_S + 0.5), TIME),
    "time true": (event(time=True), TIME),
    "time huge": (event(time=10**18), TIME),
    "time negative": (event(time=-NOW_S), TIME),
    "1970, seconds": (event(time=31_535_999), TIME),
    "1 h 1 s ahead, seconds": (event(time=NOW_S + 3602), TIME),
    "1 h 1 s ahead, ms": (event(time=(NOW_S + 3602) * 1000), TIME),
    "no insert id": (event(**{"$insert_id": ...}), INSERT_ID),
    "insert id a number": (event(**{"$insert_id": 7}), INSERT_ID),
    "insert id empty": (event(**{"$insert_id": ""}), INSERT_ID),
    "insert id of 37": (event(**{"$insert_id": "x" * 37}), INSERT_ID),
    "insert id with an underscore": (event(**{"$insert_id": "a_b"}), INSERT_ID),
    "insert id with a line end": (event(**{"$insert_id": "a\n"}), INSERT_ID),
    "insert id junk": (event(**{"$insert_id": "Undefined"}), INSERT_ID),
    "no id": (event(**{"$device_id": ...}), "properties.distinct_id"),
    "only null ids": (event(**{"$device_id": None, "distinct_id": None}), "properties.distinct_id"),
    "only empty device": (event(**{"$device_id": ""}), "properties.distinct_id"),
    "device a number": (event(**{"$device_id": 7}), "properties.$device_id"),
    "user a list": (event(**{"$user_id": []}), "properties.$user_id"),
    "user a device": (event(**{"$user_id": "$device:D1"}), "properties.$user_id"),
    "device junk": (event(**{"$device_id": "NULL"}), "properties.$device_id"),
    "device junk, prefixed": (event(**{"$device_id": "$device:null"}), "properties.$device_id"),
    "device a bare prefix": (event(**{"$device_id": "$device:"}), "properties.$device_id"),
    "user junk": (event(**{"$user_id": "Anonymous"}), "properties.$user_id"),
    "distinct id junk beside a good device": (event(distinct_id="-1"), "properties.distinct_id"),
    "255 properties": (event(**{f"p{n}": n for n in range(252)}), "properties"),
    "255 elements": (event(list=list(range(255))), "properties.list"),
    "255 keys": (event(map={str(n): n for n in range(255)}), "properties.map"),
    "4 levels": (event(deep=nested(4)), "properties.deep"),
    "4 levels of lists": (event(deep=[[[[]]]]), "properties.deep"),
    "a megabyte": (event(text="x" * 1_000_000), "properties"),
}


@pytest.mark.parametrize(("bad", "field"), REFUSED_EVENTS.values(), ids=REFUSED_EVENTS.keys())
def test_a_bad_event_is_refused_by_its_field_and_costs_its_neighbour_nothing(http, project, bad, field):
    answer = post_import(http, [bad, event("Neighbour")])
    assert (answer.status_code, answer.json["num_records_imported"]) == (400, 1)
    assert [(failed["index"], failed["field"]) for failed in answer.json["failed_records"]] == [(0, field)]
    assert [name for name, _ in stored(project)] == ["Neighbour"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (event(**{"$device_id": ...}), "'properties.distinct_id' is invalid: must not be missing"),
        (
            event(**{"$insert_id": "a:b"}),
            "'$insert_id' is invalid: must only contain alphanumeric or hyphen '-' characters",
        ),
    ],
)
def test_messages_are_mixpanels_own_words_where_they_are_known(http, bad, message):
    assert post_import(http, [bad]).json["failed_records"][0]["message"] == message


JUNK = ["00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na"]
JUNK += ["undefined", "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}"]


@pytest.mark.parametrize("junk", JUNK)
def test_every_published_junk_value_is_refused_as_an_id_in_any_case(http, junk):
    names, values = ("distinct_id", "$device_id", "$user_id"), (junk, junk.upper())
    batch = [event(**{"$device_id": ...} | {name: value}) for name in names for value in values]
    assert len(post_import(http, batch).json["failed_records"]) == 6


ACCEPTED_EVENTS = {
    "1971, seconds": event(time=31_536_000),
    "an hour ahead": event(time=NOW_S + 3600),
    "milliseconds": event(time=NOW_S * 1000 + 7),
    "name of 255": event("x" * 255),
    "insert id of 36": event(**{"$insert_id": "x" * 36}),
    "both ids and no distinct_id": event(**{"$user_id": "U1"}),
    "user only": event(**{"$device_id": ..., "$user_id": "U1"}),
    "empty distinct_id": event(**{"$device_id": ..., "distinct_id": ""}),
    "254 properties": event(**{f"p{n}": n for n in range(251)}),
    "254 elements": event(list=list(range(254))),
    "3 levels": event(deep=nested(3)),
    "objects in lists in objects": event(order={"items": [{"price": {"value": 1}}]}),
    "NUL in every text": event("a\0b", **{"$device_id": "D\0", "p\0": "\0"}),
    "gigantic integer": event(big=10**400),
    "unknown root key nested deeply": event() | {"extra": json.loads("[" * 500 + "]" * 500)},
}


@pytest.mark.parametrize("good", ACCEPTED_EVENTS.values(), ids=ACCEPTED_EVENTS.keys())
def test_an_event_at_the_edge_of_the_rules_is_stored(http, project, good):
    if "big" in good["properties"]:
        body = json.dumps([event(big=0)]).replace('"big": 0', '"big": 1' + "0" * 300)
        answer = http.post("/import", data=body, **BY_TOKEN)
    else:
        answer = post_import(http, [good])
    assert (answer.status_code, answer.json["num_records_imported"]) == (200, 1)
    assert [kept.event for kept in project.events()] == [good["event"]]


def test_seconds_and_milliseconds_are_the_same_time(http, project):
    times = (NOW_S, NOW_S * 1000, 10**11 + 1)  # the last: milliseconds in 1973
    post_import(http, [event(f"E{n}", time=time) for n, time in enumerate(times)])
    assert [kept.time_ms for kept in project.events()] == [NOW_S * 1000, NOW_S * 1000, 10**11 + 1]


@pytest.mark.parametrize("verb", ["$identify", "$create_alias", "$merge"])
def test_identity_verbs_are_refused_with_a_plain_string(http, project, verb):
    answer = post_import(http, [event(verb), event()])
    assert answer.status_code == 400
    assert answer.json["failed_records"] == [
        "identity events are not allowed when project is using simplified identity management"
    ]
    assert stored(project) == [("Read", "$device:D1")]


def test_a_duplicate_replaces_the_event_and_is_counted(http, project):
    post_import(http, [event(plan="free"), event(plan="paid")])
    post_import(http, [event(plan="late", time=NOW_S * 1000)])
    (kept,) = project.events()
    assert (kept.times_received, kept.properties["plan"]) == (3, "late")
    assert project.counts()["duplicates"] == 2


@pytest.mark.parametrize(
    "other",
    [event("Other"), event(time=NOW_S + 1), event(**{"$insert_id": "i-2"}), event(**{"$device_id": "D2"})],
    ids=["event", "time", "insert id", "distinct id"],
)
def test_an_event_that_differs_in_one_part_of_the_key_is_no_duplicate(http, project, other):
    post_import(http, [event(), other])
    assert [kept.times_received for kept in project.events()] == [1, 1]


def test_an_ignored_event_is_counted_as_imported_and_not_stored(http, project):
    batch = [event(f"Ignore {value!r}", **{"$ignore": value}) for value in (True, "bot", False, "")]
    assert post_import(http, batch).json["num_records_imported"] == 4
    assert [name for name, _ in stored(project)] == ["Ignore False", "Ignore ''"]


def test_address_and_token_are_not_kept_with_the_event(http, project):
    post_import(http, [event(ip="1.2.3.4", token=TOKEN)])
    (kept,) = project.events()
    assert kept.properties == event(distinct_id="$device:D1")["properties"]


# ---- /track


def test_track_takes_the_token_from_the_event(http, project):
    answer = http.post("/track", json=[event(token=TOKEN)])
    assert (answer.status_code, answer.text, answer.mimetype) == (200, "1", "text/plain")
    assert stored(project) == [("Read", "$device:D1")]


@pytest.mark.parametrize("as_base64", [True, False])
def test_track_reads_the_form_field_data(http, project, as_base64):
    data = json.dumps(event(token=TOKEN))
    data = base64.b64encode(data.encode()).decode() if as_base64 else data
    assert http.post("/track?verbose=1", data={"data": data}).json == {"status": 1, "error": None}
    assert len(stored(project)) == 1


def test_track_fills_in_what_a_client_leaves_out(http, project):
    bare = {"event": "Bare", "properties": {"token": TOKEN}}
    assert http.post("/track", json=[bare, bare]).text == "1"
    first, second = project.events()
    assert (first.time_ms, first.person, first.distinct_id) == (NOW_S * 1000 + 500, "", "")
    assert first.insert_id != second.insert_id  # such events take no part in the removal of duplicates


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        (event(token="another"), "1"),
        (event(token=TOKEN, time=NOW_S - 5 * DAY_S), "1"),
        (event("$identify", token=TOKEN), "1"),
        (event("$identify", token=TOKEN, time="x"), "1"),
        ({"event": "$identify"}, "0"),
        (event(), "0"),
        (event(token=7), "0"),
        (event("", token=TOKEN), "0"),
        (event(token=TOKEN, time="yesterday"), "0"),
        ("text", "0"),
        ([], "0"),
    ],
)
def test_track_drops_what_it_cannot_use(http, project, record, answer):
    assert http.post("/track", json=[record]).text == answer
    assert stored(project) == []


def test_track_keeps_five_days(http, project):
    http.post("/track", json=[event("Kept", token=TOKEN, time=NOW_S - 5 * DAY_S + 1)])
    assert [name for name, _ in stored(project)] == ["Kept"]


def test_one_good_event_makes_track_answer_1_and_verbose_names_the_error(http, project):
    assert http.post("/track", json=[event(), event(token=TOKEN)]).text == "1"
    answer = http.post("/track?verbose=1", json=[event()])
    assert answer.json == {"status": 0, "error": "'properties.token' is invalid: must not be missing"}
    assert len(stored(project)) == 1


# ---- /engage and /groups


def change(distinct_id="U1", token=TOKEN, **operations):
    update = {"$token": token, "$distinct_id": distinct_id}
    return update | {f"${name}": to for name, to in operations.items()}


def group_change(**operations):
    update = {"$token": TOKEN, "$group_key": "company", "$group_id": "acme"}
    return update | {f"${name}": to for name, to in operations.items()}


PROFILE_STORIES = {
    "set": ([{"set": {"a": 1}}, {"set": {"a": 2, "b": 3}}], {"a": 2, "b": 3}),
    "set_once": ([{"set": {"a": 1}}, {"set_once": {"a": 2, "b": 3}}], {"a": 1, "b": 3}),
    "add": ([{"set": {"a": 1}}, {"add": {"a": 2, "b": -3}}], {"a": 3, "b": -3}),
    "add to a text": ([{"set": {"a": "x"}}, {"add": {"a": 2}}], {"a": "x"}),
    "add past 64 bits": ([{"set": {"a": 2**64 - 1}}, {"add": {"a": 2**64 - 1}}], {"a": 2.0**65}),
    "append": ([{"append": {"a": 1}}, {"append": {"a": 1}}], {"a": [1, 1]}),
    "union": ([{"union": {"a": [1, 2, 1]}}, {"union": {"a": [2, 3]}}], {"a": [1, 2, 3]}),
    "union of true and 1": ([{"union": {"a": [1]}}, {"union": {"a": [True, 1]}}], {"a": [1, True]}),
    "a union of very many": ([{"union": {"a": list(range(100_000))}}], {"a": list(range(100_000))}),
    "remove": ([{"set": {"a": [1, 2]}}, {"remove": {"a": 1, "b": 1}}], {"a": [2]}),
    "remove nothing": ([{"set": {"a": [1]}}, {"remove": {"a": 9}}], {"a": [1]}),
    "unset": ([{"set": {"a": 1, "b": 2}}, {"unset": ["a", "c"]}], {"b": 2}),
    "delete": ([{"set": {"a": 1}}, {"delete": "null"}], None),
    "delete, then set": ([{"set": {"a": 1}}, {"delete": None}, {"set_once": {"b": 1}}], {"b": 1}),
    "unset of nobody": ([{"unset": ["a"]}], None),
    "modifiers": ([{"set": {"a": 1}, "ip": "0", "ignore_time": True}], {"a": 1}),
}


@pytest.mark.parametrize("together", [True, False], ids=["one request", "one each"])
@pytest.mark.parametrize(("story", "profile"), PROFILE_STORIES.values(), ids=PROFILE_STORIES.keys())
def test_each_profile_operation_does_what_its_name_says(http, project, story, profile, together):
    updates = [change(**operations) for operations in story]
    for batch in [updates] if together else [[update] for update in updates]:
        answer = http.post("/engage?strict=1&verbose=1", json=batch)
        assert (answer.status_code, answer.json) == (200, {"status": 1, "error": None})
    assert project.profile("U1") == profile
    assert project.profile("U2") is None


def test_group_profiles_are_kept_by_key_and_id(http, project):
    batch = [group_change(set={"name": "Acme"}), group_change(union={"tags": ["x"]})]
    assert http.post("/groups", json=batch).text == "1"
    assert project.group("company", "acme") == {"name": "Acme", "tags": ["x"]}
    assert project.group("project", "acme") is None
    assert project.profile("acme") is None
    assert [person.id for person in project.people()] == []


REFUSED_UPDATES = {
    "no object": ("text", "update"),
    "no token": ({"$distinct_id": "U1", "$set": {}}, "$token"),
    "foreign token": (change(token="other", set={}), "$token"),
    "no id": ({"$token": TOKEN, "$set": {}}, "$distinct_id"),
    "number as id": (change(7, set={}), "$distinct_id"),
    "junk id": (change("None", set={}), "$distinct_id"),
    "no operation": (change(), "update"),
    "unknown operation": (change(sett={}), "update"),
    "two operations": (change(set={}, add={}), "update"),
    "set a list": (change(set=[]), "$set"),
    "add a text": (change(add={"a": "1"}), "$add.a"),
    "add true": (change(add={"a": True}), "$add.a"),
    "union of no list": (change(union={"a": 1}), "$union.a"),
    "unset an object": (change(unset={"a": 1}), "$unset"),
    "unset numbers": (change(unset=[1]), "$unset"),
    "nested too deep": (change(set={"deep": nested(4)}), "$set.deep"),
    "nesting bomb": (change(set={"deep": json.loads("[" * 900 + "]" * 900)}), "$set.deep"),
    "2,001 properties": (change(set={str(n): n for n in range(2001)}), "$set"),
    "a megabyte": (change(set={"a": "x" * 1_000_000}), "$set"),
}


@pytest.mark.parametrize(("bad", "field"), REFUSED_UPDATES.values(), ids=REFUSED_UPDATES.keys())
def test_a_bad_update_is_status_0_and_with_strict_nothing_of_its_batch_is_applied(http, project, bad, field):
    batch = [change(set={"a": 1}), bad]
    answer = http.post("/engage?strict=1&verbose=1", json=batch)
    assert (answer.status_code, answer.json["status"]) == (200, 0)
    assert answer.json["error"].startswith(f"update 1: '{field}' is invalid: ")
    assert http.post("/engage?strict=1", json=batch).text == "0"
    assert project.profile("U1") is None


def test_without_strict_the_good_updates_of_a_batch_are_applied(http, project):
    assert http.post("/engage", json=[change(sett={}), change(set={"a": 1})]).text == "1"
    assert project.profile("U1") == {"a": 1}
    assert http.post("/engage", json=[change(sett={})]).text == "0"


@pytest.mark.parametrize("operation", [{"add": {"a": 1}}, {"append": {"a": 1}}])
def test_groups_take_neither_add_nor_append(http, project, operation):
    assert http.post("/groups?strict=1", json=[group_change(**operation)]).text == "0"
    assert project.group("company", "acme") is None


@pytest.mark.parametrize("key", ["$group_key", "$group_id"])
def test_a_group_update_without_its_key_or_id_is_refused(http, key):
    update = group_change(set={"a": 1})
    del update[key]
    answer = http.post("/groups?strict=1&verbose=1", json=[update])
    assert answer.json["error"] == f"update 0: '{key}' is invalid: must be a string that is not empty"


@pytest.mark.parametrize("door", ["/engage", "/groups"])
def test_profile_updates_may_not_be_gzipped(http, project, door):
    body = gzip.compress(json.dumps([change(set={"a": 1})]).encode())
    answer = http.post(f"{door}?verbose=1", data=body, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json["status"]) == (400, 0)
    assert project.profile("U1") is None


@pytest.mark.parametrize("door", ["/engage", "/track"])
def test_two_thousand_records_and_two_mebibytes_are_the_most_elsewhere_too(http, door):
    assert http.post(door, json=[{}] * 2001).status_code == 413
    assert http.post(door, data=b" " * 2_097_153).status_code == 413


# ---- all doors


STRANGE_FORMS = [
    b"",
    b"data=",
    b"data=%5B%7B",
    b"data=\xff",
    b"data=abc",
    b"other=1",
    b"&" * 50,
    b"data=" + base64.b64encode(b"\xff\xfe"),
    urlencode({"data": "[" * 5000}).encode(),
]


@pytest.mark.parametrize("door", ["/track", "/engage", "/groups"])
def test_what_cannot_be_read_is_status_0_at_the_client_doors(http, door):
    for body in [*UNREADABLE.values(), b"1", b"null", b'"text"', b"[]"]:
        answer = http.post(f"{door}?verbose=1", data=body, content_type="application/json")
        assert (answer.status_code, answer.json["status"]) == (200, 0), body[:20]
        assert answer.json["error"]
    for body in STRANGE_FORMS:
        answer = http.post(door, data=body, content_type="application/x-www-form-urlencoded")
        assert (answer.status_code, answer.text) == (200, "0"), body[:20]


HOSTILE = [None, True, 0, -1, 10**15, 1.5, "", "x" * 5000, "\0", "$device:", "é"]
HOSTILE += [[], {}, [[[[[[]]]]]], {"$set": {}}]


def test_no_value_in_any_place_is_a_server_error(http):
    templates = [
        event(token=TOKEN, **{"$user_id": "U1", "distinct_id": "U1"}),
        event("$merge", token=TOKEN),
        change(set={"a": 1}),
        change(unset=["a"]),
        group_change(union={"a": [1]}),
    ]
    for template in templates:
        for value in HOSTILE:
            variants = [template | {key: value} for key in template]
            if "properties" in template:
                inner = template["properties"]
                names = [*inner, "$ignore", "new"]
                variants += [template | {"properties": inner | {name: value}} for name in names]
            for door in ("/import", "/track", "/engage", "/groups"):
                assert http.post(door, json=variants, **BY_TOKEN).status_code in (200, 400)


def test_a_project_is_read_while_another_connection_writes(http, project, tmp_path):
    with pytest.raises(FileNotFoundError):
        Project.open_read_only(tmp_path / "absent.sqlite")
    with closing(Project.open_read_only(tmp_path / "sandbox db?#.sqlite")) as reader:
        with project._write():
            assert stored(reader) == []
        post_import(http, [event()])
        assert stored(reader) == [("Read", "$device:D1")]
        with pytest.raises(RuntimeError, match="reading only"):
            reader.ingest_events([event()])


def test_of_many_writers_at_once_one_links_a_device(project):
    def ingest(n):
        project.ingest_events([event(**{"$user_id": f"U{n}", "$insert_id": f"i-{n}"}), event("Read again")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ingest, range(40)))
    kept = list(project.events())
    marked = {each.person for each in kept if "$identity_failure_reason" in each.properties}
    (owner,) = {each.person for each in kept if each.event == "Read again"}
    assert marked == {f"U{n}" for n in range(40)} - {owner}
    assert project.counts()["duplicates"] == 39


def test_a_project_is_found_again_after_it_was_closed(tmp_path):
    path = tmp_path / "p.sqlite"
    with closing(Project.open(path)) as project:
        project.ingest_events([event(**{"$user_id": "U1"})])
        project.update_profiles([change(set={"a": 1})])
    with closing(Project.open_read_only(path)) as reader:
        (person,) = reader.people()
        assert (person.id, person.devices, person.properties, person.events) == ("U1", ("D1",), {"a": 1}, 1)
    with closing(Project.open(path)) as project:
        assert project.counts() == {"events": 1, "duplicates": 0, "links": 1, "profiles": 1, "groups": 0}


def test_the_junk_list_is_the_published_one():
    assert frozenset(JUNK) == ids.JUNK_IDS
    assert len(JUNK) == 17
