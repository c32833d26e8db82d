"""Funnels: the check cases of reference/mixpanel.md 7.5, and one from the database across login."""

from contextlib import closing

import orjson
import pytest

from adapter.sandbox.funnel import Occurrence, Step, StepCount, parse_step, uniques
from adapter.sandbox.project import Project

HOUR_S, MINUTE_MS = 3600, 60_000
DAY_MS = 24 * 60 * MINUTE_MS


def reached(names, history, **options):
    """How many people reach each of the steps; the history is (event, ms) or (event, ms, person) pairs."""
    steps = [Step(name) for name in names]
    events = [Occurrence((*rest, "P")[0], time_ms, name, b"{}") for name, time_ms, *rest in history]
    return [step.count for step in uniques(steps, events, **({"window_s": HOUR_S} | options))]


def minutes(*history):
    return [(name, minute * MINUTE_MS) for name, minute in history]


def test_case_1_the_window_is_that_of_the_first_entry():
    assert reached("ABC", minutes(("A", 0), ("A", 30), ("B", 45), ("C", 75))) == [1, 1, 0]


def test_case_2_other_events_may_stand_between():
    assert reached("ABC", minutes(("A", 0), ("F", 1), ("B", 2), ("C", 3))) == [1, 1, 1]


def test_case_3_an_early_step_is_passed_over():
    assert reached("ABC", minutes(("A", 0), ("C", 1), ("B", 2), ("C", 3))) == [1, 1, 1]
    assert reached("ABC", minutes(("A", 0), ("C", 1), ("B", 2))) == [1, 1, 0]


def test_case_4_a_missing_step_stops_the_person():
    assert reached("ABCD", minutes(("A", 0), ("B", 1), ("D", 2))) == [1, 1, 0, 0]


def test_case_5_steps_within_two_seconds_count_in_either_order():
    assert reached("AB", [("B", 0), ("A", 1500)]) == [1, 1]


def test_case_6_three_seconds_are_too_many():
    assert reached("AB", [("B", 0), ("A", 3000)]) == [1, 0]


def test_case_8_a_person_enters_once_and_a_later_entry_does_not_convert():
    assert reached("AB", minutes(("A", 0), ("A", 90), ("B", 91))) == [1, 0]


def test_case_10_only_the_entry_has_to_be_in_the_range():
    last_hour_and_next_day = [("A", DAY_MS - 1), ("B", DAY_MS + 1)]
    assert reached("AB", last_hour_and_next_day, entries_ms=(0, DAY_MS)) == [1, 1]
    assert reached("AB", last_hour_and_next_day, entries_ms=(0, DAY_MS - 1)) == [0, 0]
    assert reached("AB", last_hour_and_next_day, entries_ms=(DAY_MS, 2 * DAY_MS)) == [0, 0]


def test_an_entry_before_the_range_does_not_use_up_the_one_inside():
    history = [("A", 0), ("A", DAY_MS), ("B", DAY_MS + 1)]
    assert reached("AB", history, entries_ms=(DAY_MS, 2 * DAY_MS)) == [1, 1]


@pytest.mark.parametrize(("late_ms", "counts"), [(0, [1, 1]), (1, [1, 0])])
def test_the_window_ends_an_hour_after_the_entry(late_ms, counts):
    assert reached("AB", [("A", 0), ("B", HOUR_S * 1000 + late_ms)]) == counts


def test_the_window_is_seven_days_if_not_said():
    week_ms = 7 * DAY_MS
    steps = [Step("A"), Step("B")]
    for late_ms, count in ((0, 1), (1, 0)):
        events = [Occurrence("P", 0, "A", b"{}"), Occurrence("P", week_ms + late_ms, "B", b"{}")]
        assert uniques(steps, events)[1].count == count


@pytest.mark.parametrize(("gap_ms", "counts"), [(2000, [1, 1]), (2001, [1, 0])])
def test_the_grace_is_two_seconds(gap_ms, counts):
    assert reached("AB", [("B", 0), ("A", gap_ms)]) == counts


def test_the_grace_holds_between_every_two_consecutive_steps():
    assert reached("ABC", [("A", 0), ("C", 9000), ("B", 10_000)]) == [1, 1, 1]
    assert reached("ABC", [("A", 0), ("C", 7000), ("B", 10_000)]) == [1, 1, 0]


def test_each_step_needs_an_occurrence_of_its_own():
    assert reached("AA", [("A", 0)]) == [1, 0]
    assert reached("AA", [("A", 0), ("A", 1)]) == [1, 1]
    assert reached("ABAB", [("A", 0), ("B", 1), ("A", 2)]) == [1, 1, 1, 0]


def test_events_may_come_in_any_order_and_people_are_kept_apart():
    history = [("B", 2, "P"), ("A", 1, "Q"), ("A", 1, "P"), ("B", 9000, "R")]
    assert reached("AB", history) == [2, 1]


def test_events_of_nobody_are_left_out():
    assert reached("AB", [("A", 0, ""), ("B", 1, ""), ("A", 0, "P")]) == [1, 0]


def test_shares_are_of_the_step_before_and_of_the_start():
    history = [("A", 0, p) for p in "PQRS"] + [("B", 1, p) for p in "PQ"] + [("C", 2, "P")]
    steps = [Step("A"), Step("B"), Step("C")]
    assert uniques(steps, [Occurrence(p, ms, name, b"{}") for name, ms, p in history]) == [
        StepCount(step=Step("A"), count=4, from_previous=1.0, from_start=1.0),
        StepCount(step=Step("B"), count=2, from_previous=0.5, from_start=0.5),
        StepCount(step=Step("C"), count=1, from_previous=0.5, from_start=0.25),
    ]
    nobody = [StepCount(step=step, count=0, from_previous=0.0, from_start=0.0) for step in steps]
    assert uniques(steps, []) == nobody


def test_one_step_is_no_funnel():
    with pytest.raises(ValueError, match="two or more steps"):
        uniques([Step("A")], [])


@pytest.mark.parametrize(
    ("value", "text", "matches"),
    [
        ("spring", "spring", True),
        ("spring", "Spring", False),
        ("spring", "", False),
        ("", "", True),
        (3, "3", True),
        ("3", "3", True),
        (3, "3.0", False),
        (True, "true", True),
        (None, "null", True),
        (["a", "b"], '["a","b"]', True),
    ],
)
def test_a_step_may_ask_for_the_value_of_a_property(value, text, matches):
    steps = [Step("Read", ("post", text)), Step("Sign up")]
    read = Occurrence("P", 0, "Read", orjson.dumps({"post": value}))
    assert uniques(steps, [read])[0].count == matches
    assert uniques(steps, [read._replace(properties=b"{}")])[0].count == 0
    assert uniques(steps, [read._replace(event="Other")])[0].count == 0


def test_two_steps_may_be_told_apart_by_a_property_alone():
    steps = [Step("Read", ("post", "a")), Step("Read", ("post", "b"))]
    first, second = orjson.dumps({"post": "b"}), orjson.dumps({"post": "a"})
    read = [Occurrence("P", 0, "Read", first), Occurrence("P", 10_000, "Read", second)]
    assert [step.count for step in uniques(steps, read)] == [1, 0]
    assert [step.count for step in uniques(steps[::-1], read)] == [1, 1]


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("Post Read", Step("Post Read")),
        (" Post Read ", Step("Post Read")),
        ("Post Read[slug=hello]", Step("Post Read", ("slug", "hello"))),
        ("Post Read[slug=a=b]", Step("Post Read", ("slug", "a=b"))),
        ("Post Read[tags=[1]]", Step("Post Read", ("tags", "[1]"))),
        ("Post Read[slug=]", Step("Post Read", ("slug", ""))),
        ("$mp_web_page_view[utm source=x y]", Step("$mp_web_page_view", ("utm source", "x y"))),
    ],
)
def test_a_step_is_read_from_text(text, step):
    assert parse_step(text) == step
    assert parse_step(str(step)) == step


@pytest.mark.parametrize(
    "text", ["", " ", "[a=b]", "Read[", "Read[]", "Read[slug]", "Read[=x]", "Read[ =x]", "Read[a=b", "Read]"]
)
def test_a_step_that_cannot_be_read_names_what_was_expected(text):
    with pytest.raises(ValueError, match=r"expected EVENT or EVENT\[property=value\]"):
        parse_step(text)


def test_who_read_the_post_and_signed_up_is_answered_across_login(tmp_path):
    def event(name, n, **properties):
        return {"event": name, "properties": {"time": 1_790_000_000 + n} | properties}

    def device(name):
        return {"$device_id": name}

    visits = [
        event("Read", 0, slug="a", **device("D1")),  # signs up: the link comes with step 2
        event("Sign-up", 60, **device("D1"), **{"$user_id": "U1"}),
        event("Read", 0, slug="a", **device("D2")),  # signs up without the device: linked only afterwards
        event("Sign-up", 60, **{"$user_id": "U2"}),
        event("Login", 120, **device("D2"), **{"$user_id": "U2"}),
        event("Read", 0, slug="a", **device("D3")),  # never signs up
        event("Read", 0, slug="b", **device("D4")),  # reads another post, then signs up
        event("Sign-up", 60, **device("D4"), **{"$user_id": "U4"}),
        event("Read", 0, slug="a", distinct_id=""),  # nobody
    ]
    for n, visit in enumerate(visits):
        visit["properties"]["$insert_id"] = f"i-{n}"
    with closing(Project.open(tmp_path / "sandbox.sqlite")) as project:
        project.ingest_events(visits)
        project.ingest_events(visits)  # resent: duplicates are no second occurrence
        question = [parse_step("Read[slug=a]"), parse_step("Sign-up")]
        assert [step.count for step in project.funnel(question)] == [3, 2]
        assert project.funnel(question)[1].from_start == pytest.approx(2 / 3)
        assert [step.count for step in project.funnel([Step("Read"), Step("Sign-up")])] == [4, 3]
        assert [step.count for step in project.funnel([Step("Read"), Step("Read")])] == [4, 0]
        assert [step.count for step in project.funnel(question, window_s=59)] == [3, 0]
