"""Funnels: the check cases of reference/mixpanel.md 7.5 by number, and some from the database across login.

Case 9 holds a property constant, which a funnel here cannot.
"""

from contextlib import closing

import orjson
import pytest

from adapter.sandbox.attempts import Occurrence
from adapter.sandbox.counting import OTHER, StepCount, count
from adapter.sandbox.funnel import Question, Step, parse_range, parse_step, parse_window, property_text
from adapter.sandbox.project import Project
from tests.scenarios import TOKEN, Doors

HOUR_S, MINUTE_MS = 3600, 60_000
DAY_MS = 24 * 60 * MINUTE_MS


def ask(names, history, **options):
    """The report of a funnel over (event, ms), (event, ms, person) or, with by, (event, ms, value)."""
    if "entries_ms" in options:
        options["from_ms"], options["to_ms"] = options.pop("entries_ms")
    question = Question(steps=tuple(map(Step, names)), **({"window_s": HOUR_S} | options))
    occurrences = []
    for name, time_ms, *rest in history:
        steps = sum(1 << k for k, step in enumerate(question.steps) if step.event == name)
        who = ["P", *rest] if "by" in options else (rest or ["P"])
        occurrences.append(Occurrence(who[0], time_ms, steps, *who[1:]))
    return count(question, sorted(occurrences, key=lambda one: one[:2]))


def reached(names, history, **options):
    """How many people, or with totals entries, reach each of the steps."""
    return [step.count for step in ask(names, history, **options).steps]


def by_segment(names, history, **options):
    """The same for each value of the property "by"; the history is of (event, ms, value), all of one person."""
    segments = ask(names, history, by="by", **options).segments
    return {value: [step.count for step in counts] for value, counts in segments.items()}


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


def test_case_7_totals_count_an_entry_once_the_one_before_was_left():
    assert reached("AB", minutes(("A", 0), ("A", 1), ("B", 2)), totals=True) == [1, 1]
    assert reached("AB", minutes(("A", 0), ("B", 1), ("A", 2), ("B", 3)), totals=True) == [2, 2]
    assert reached("AB", minutes(("A", 0), ("A", 90), ("B", 91)), totals=True) == [2, 1]


def test_case_8_a_person_enters_once_and_a_later_entry_does_not_convert():
    assert reached("AB", minutes(("A", 0), ("A", 90), ("B", 91))) == [1, 0]


def test_case_8_with_optimized_reentry_a_later_entry_converts():
    assert reached("AB", minutes(("A", 0), ("A", 90), ("B", 91)), optimized=True) == [1, 1]
    assert reached("AB", minutes(("A", 0), ("A", 90)), optimized=True) == [1, 0]
    assert reached("AB", minutes(("A", 0), ("A", 90), ("B", 91)), optimized=True, entries_ms=(0, 1)) == [1, 0]


def test_with_optimized_reentry_the_first_that_converts_counts_from_its_latest_entry():
    report = ask("AB", minutes(("A", 0), ("A", 5), ("B", 6), ("A", 7), ("B", 8)), optimized=True)
    assert report.steps[1].median_s == 60
    with pytest.raises(ValueError, match="optimized"):
        ask("AB", [], optimized=True, totals=True)


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
    """That the very end is inside is UNCONFIRMED."""
    assert reached("AB", [("A", 0), ("B", HOUR_S * 1000 + late_ms)]) == counts


def test_the_window_is_seven_days_if_not_said():
    for late_ms, converted in ((0, 1), (1, 0)):
        assert reached("AB", [("A", 0), ("B", 7 * DAY_MS + late_ms)], window_s=7 * 86_400) == [1, converted]
    assert Question(steps=(Step("A"), Step("B"))).window_s == 7 * 86_400


@pytest.mark.parametrize(("gap_ms", "counts"), [(2000, [1, 1]), (2001, [1, 0])])
def test_the_grace_is_two_seconds(gap_ms, counts):
    """That exactly two seconds are inside is UNCONFIRMED."""
    assert reached("AB", [("B", 0), ("A", gap_ms)]) == counts


def test_the_grace_holds_between_every_two_consecutive_steps():
    assert reached("ABC", [("A", 0), ("C", 9000), ("B", 10_000)]) == [1, 1, 1]
    assert reached("ABC", [("A", 0), ("C", 7000), ("B", 10_000)]) == [1, 1, 0]


def test_each_step_needs_an_occurrence_of_its_own():
    assert reached("AA", [("A", 0)]) == [1, 0]
    assert reached("AA", [("A", 0), ("A", 1)]) == [1, 1]
    assert reached("ABAB", [("A", 0), ("B", 1), ("A", 2)]) == [1, 1, 1, 0]


def test_totals_give_each_attempt_events_of_its_own():
    assert reached("AB", [("A", 0), ("B", 500), ("A", 1000)], totals=True) == [2, 1]
    assert reached("AB", [("A", 0), ("B", 500), ("A", 1000), ("B", 1500)], totals=True) == [2, 2]
    assert reached("AA", minutes(("A", 0), ("A", 1), ("A", 2), ("A", 3), ("A", 4)), totals=True) == [3, 2]


def test_totals_limit_entries_to_the_range_and_not_their_conversion():
    history = [("A", 0), ("B", 1), ("A", DAY_MS), ("B", DAY_MS + 1)]
    assert reached("AB", history, totals=True, entries_ms=(0, DAY_MS)) == [1, 1]
    assert reached("AB", history, totals=True, entries_ms=(0, DAY_MS + 1)) == [2, 2]


def test_people_are_kept_apart():
    history = [("B", 2, "P"), ("A", 1, "Q"), ("A", 1, "P"), ("B", 9000, "R")]
    assert reached("AB", history) == [2, 1]


def test_events_of_nobody_are_left_out():
    assert reached("AB", [("A", 0, ""), ("B", 1, ""), ("A", 0, "P")]) == [1, 0]


def test_shares_are_of_the_step_before_and_of_the_start_and_times_are_in_seconds():
    history = [("A", 0, p) for p in "PQRS"] + [("B", ms, p) for p, ms in (("P", 1000), ("Q", 2000), ("R", 6000))]
    first, second, third = ask("ABC", [*history, ("C", 5000, "P")]).steps
    assert first == StepCount(step=Step("A"), count=4, from_previous=1.0, from_start=1.0)
    assert second == StepCount(
        step=Step("B"),
        count=3,
        from_previous=0.75,
        from_start=0.75,
        average_s=3.0,
        median_s=2.0,
        average_from_start_s=3.0,
        median_from_start_s=2.0,
    )
    assert third == StepCount(
        step=Step("C"),
        count=1,
        from_previous=1 / 3,
        from_start=0.25,
        average_s=4.0,
        median_s=4.0,
        average_from_start_s=5.0,
        median_from_start_s=5.0,
    )
    nobody = [StepCount(step=Step(name), count=0, from_previous=0.0, from_start=0.0) for name in "ABC"]
    assert ask("ABC", []).steps == nobody


def test_a_step_within_the_grace_before_its_predecessor_took_no_time():
    _, second = ask("AB", [("B", 0), ("A", 1500)]).steps
    assert (second.average_s, second.median_from_start_s) == (0.0, 0.0)


def test_a_breakdown_counts_a_person_once_a_segment():
    history = [("A", 0, "x"), ("B", 1, "x"), ("A", 5000, "y"), ("A", 9_000_000, "x"), ("B", 9_000_001, None)]
    assert by_segment("AB", history) == {"x": [1, 1], "y": [1, 0]}
    assert by_segment("AB", history, totals=True) == {"x": [2, 2], "y": [1, 0]}
    assert reached("AB", history, by="by") == [1, 1]
    assert reached("AB", history, by="by", totals=True) == [3, 2]


def test_a_segment_can_be_entered_only_after_the_attempt_before_was_left():
    """The documents' own example: browse a shirt, browse jeans, add, browse shoes."""
    history = [
        ("Browse", 0, "shirt"),
        ("Browse", 10_000, "jeans"),
        ("Add", 20_000, None),
        ("Browse", 30_000, "shoes"),
    ]
    assert by_segment(["Browse", "Add"], history) == {"shirt": [1, 1], "shoes": [1, 0]}


def test_a_segment_is_the_first_value_along_the_steps():
    history = [("A", 0, None), ("B", 1, "x"), ("C", 2, "y")]
    assert by_segment("ABC", history) == {"x": [1, 1, 1]}
    assert by_segment("AB", [("A", 0, None)]) == {None: [1, 0]}


def test_the_largest_200_segments_are_told_and_the_rest_together():
    history = [("A", n * 8_000_000, f"v{n:03}") for n in range(203)] + [("A", 203 * 8_000_000, "v202")]
    segments = by_segment("AB", history, totals=True)
    assert list(segments)[:2] == ["v202", "v000"]
    assert (len(segments), segments[OTHER]) == (201, [3, 0])


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"steps": (Step("A"),)}, "two or more steps"),
        ({"window_s": 0}, "1 second to 366 days"),
        ({"window_s": 366 * 86_400 + 1}, "1 second to 366 days"),
    ],
)
def test_a_question_that_is_none_says_why(options, fault):
    with pytest.raises(ValueError, match=fault):
        Question(**{"steps": (Step("A"), Step("B"))} | options)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("spring", "spring"),
        ("", ""),
        (3, "3"),
        ("3", "3"),
        (3.0, "3.0"),
        (True, "true"),
        (None, None),
        (["a", "b"], '["a","b"]'),
    ],
)
def test_a_value_is_asked_for_by_its_text_and_null_is_as_good_as_absent(value, text):
    assert property_text(orjson.dumps({"post": value}), "post") == text
    assert property_text(orjson.dumps({"post": value}), "other") is None


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("Post Read", Step("Post Read")),
        (" Post Read ", Step("Post Read")),
        ("Post Read[slug=hello]", Step("Post Read", (("slug", "hello"),))),
        ("Post Read[slug=a=b]", Step("Post Read", (("slug", "a=b"),))),
        ("Post Read[tags=[1]]", Step("Post Read", (("tags", "[1]"),))),
        ("Post Read[slug=]", Step("Post Read", (("slug", ""),))),
        ("$mp_web_page_view[utm source=x y]", Step("$mp_web_page_view", (("utm source", "x y"),))),
        ("Read[a=b][c=[1]][d=]", Step("Read", (("a", "b"), ("c", "[1]"), ("d", "")))),
    ],
)
def test_a_step_is_read_from_text(text, step):
    assert parse_step(text) == step
    assert parse_step(str(step)) == step


@pytest.mark.parametrize(
    "text",
    ["", " ", "[a=b]", "Read[", "Read[]", "Read[slug]", "Read[=x]", "Read[ =x]", "Read[a=b", "Read]", "Read[a=b][c]"],
)
def test_a_step_that_cannot_be_read_names_what_was_expected(text):
    with pytest.raises(ValueError, match=r"expected EVENT or EVENT\[property=value\]"):
        parse_step(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("12h", 43_200), (" 7d ", 604_800)])
def test_a_window_is_read_from_text(text, seconds):
    assert parse_window(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7 days", "-1d", "1.5h", "²d"])
def test_a_window_that_cannot_be_read_names_what_was_expected(text):
    with pytest.raises(ValueError, match="expected a number with s, m, h or d"):
        parse_window(text)


def test_a_range_is_read_from_days_that_are_both_inside():
    assert parse_range(None, None) == (0, None)
    assert parse_range("1970-01-02", "1970-01-02") == (DAY_MS, 2 * DAY_MS)
    assert parse_range("1970-01-02", None) == (DAY_MS, None)
    assert parse_range(None, "1970-01-02") == (0, 2 * DAY_MS)


@pytest.mark.parametrize(("start", "end"), [("today", None), (None, "2026-02-30"), ("2026-03-02", "2026-03-01")])
def test_a_range_that_is_none_says_why(start, end):
    with pytest.raises(ValueError, match="expected one such as|ends on 2026-03-01, before"):
        parse_range(start, end)


@pytest.fixture
def doors(project):
    return Doors(project)


def visits(doors):
    """Four who read, three who sign up: at once, before the link, never, and one who read another post."""
    doors.arrive(
        doors.event("Read", slug="a", d="D1"),  # signs up: the link comes with step 2
        doors.event("Sign-up", d="D1", u="U1"),
        doors.event("Read", slug="a", d="D2"),  # signs up without the device: linked only afterwards
        doors.event("Sign-up", u="U2"),
        doors.event("Login", d="D2", u="U2"),
        doors.event("Read", slug="a", d="D3"),  # never signs up
        doors.event("Read", slug="b", d="D4"),  # reads another post, then signs up
        doors.event("Sign-up", d="D4", u="U4"),
        doors.event("Read", slug="a", id=""),  # nobody
    )


def counts(found, steps="steps"):
    return [step["count"] for step in found[steps]]


def test_who_read_the_post_and_signed_up_is_answered_across_login_over_http(doors):
    visits(doors)
    found = doors.get("/funnel", step=["Read[slug=a]", "Sign-up"]).json
    assert counts(found) == [3, 2]
    assert found["steps"][1] == {
        "step": "Sign-up",
        "count": 2,
        "from_previous": pytest.approx(2 / 3),
        "from_start": pytest.approx(2 / 3),
        "average_s": 1.0,
        "median_s": 1.0,
        "average_from_start_s": 1.0,
        "median_from_start_s": 1.0,
    }
    assert (found["counting"], found["window_s"], found["from_ms"], found["to_ms"]) == ("uniques", 604_800, 0, None)
    assert counts(doors.get("/funnel", step=["Read", "Sign-up"]).json) == [4, 3]
    assert counts(doors.get("/funnel", step=["Read", "Read"]).json) == [4, 0]


def test_a_step_may_ask_for_values_of_properties(doors):
    doors.arrive(
        doors.event("Read", post="a", plan="pro", u="U1"),
        doors.event("Read", post="a", plan="free", u="U2"),
        doors.event("Read", post=3, u="U3"),
        doors.event("Other", post="a", plan="pro", u="U4"),
    )
    for step, entries in (("Read", 3), ("Read[post=a]", 2), ("Read[post=a][plan=pro]", 1), ("Read[post=3]", 1)):
        assert counts(doors.get("/funnel", step=[step, "Sign-up"]).json) == [entries, 0]


def test_two_steps_may_be_told_apart_by_a_property_alone(doors):
    doors.arrive(doors.event("Read", post="b", u="U1"), doors.event("Other", u="U1"), doors.event("Other", u="U1"))
    doors.arrive(doors.event("Other", u="U1"), doors.event("Read", post="a", u="U1"))
    steps = ["Read[post=a]", "Read[post=b]"]
    assert counts(doors.get("/funnel", step=steps).json) == [1, 0]
    assert counts(doors.get("/funnel", step=steps[::-1]).json) == [1, 1]


def test_a_funnel_can_be_counted_as_if_nobody_had_been_joined(doors, project):
    visits(doors)
    question = Question(steps=(parse_step("Read[slug=a]"), Step("Sign-up")))
    assert [step.count for step in project.funnel(question, joined=False).steps] == [3, 0]


def test_a_resent_event_is_no_second_occurrence(doors):
    read = doors.event("Read", d="D1")
    doors.arrive(read), doors.arrive(read)
    assert counts(doors.get("/funnel", step=["Read", "Read"]).json) == [1, 0]


def test_every_option_of_a_funnel_can_be_asked_over_http(doors):
    doors.arrive(
        doors.event("Read", slug="a", d="D1"),
        doors.event("Buy", d="D1"),
        doors.event("Read", slug="b", d="D1"),
        doors.event("Buy", d="D1", ago_s=-7200),
    )
    asked = {"step": ["Read", "Buy"]}
    assert counts(doors.get("/funnel", **asked).json) == [1, 1]
    assert counts(doors.get("/funnel", **asked, totals=1).json) == [2, 2]
    assert counts(doors.get("/funnel", **asked, totals=1, window="1h").json) == [2, 1]
    assert doors.get("/funnel", **asked, optimized=1).json["optimized"] is True
    by = doors.get("/funnel", **asked, by="slug", window="1h").json
    assert by["by"] == "slug"
    assert {one["value"]: counts(one) for one in by["segments"]} == {"a": [1, 1], "b": [1, 0]}
    assert counts(doors.get("/funnel", **asked, to="2026-01-01").json) == [0, 0]
    both = {"from": "2026-01-01", "to": "2026-12-31"}
    # The clock of the scenarios stands in September 2026.
    assert counts(doors.get("/funnel", **asked, **both).json) == [1, 1]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("", "two or more steps"),
        ("step=A&step=[", "expected EVENT"),
        ("step=A&step=B&window=long", "expected a number with"),
        ("step=A&step=B&window=400d", "366 days"),
        ("step=A&step=B&from=then", "expected one such as"),
    ],
)
def test_a_funnel_that_is_none_is_answered_400_over_http(doors, query, error):
    answer = doors.http.get(f"/funnel?{query}", auth=(TOKEN, ""))
    assert (answer.status_code, answer.json["status"]) == (400, "Bad Request")
    assert error in answer.json["error"]


@pytest.mark.parametrize(
    ("system", "login", "counted"),
    [
        ("original", {"$identified_id": "U", "$anon_id": "a-a-a-a-a"}, [1, 1]),
        ("legacy", {"$identified_id": "U", "$anon_id": "a-a-a-a-a"}, [1, 0]),
    ],
)
def test_a_funnel_is_counted_by_the_projects_own_system(tmp_path, system, login, counted):
    with closing(Project.open(tmp_path / "sandbox.db", system)) as project:
        doors = Doors(project)
        doors.arrive(doors.event("Read", id="a-a-a-a-a"), doors.event("Sign-up", id="U"))
        doors.arrive(doors.event("$identify", **login))
        assert counts(doors.get("/funnel", step=["Read", "Sign-up"]).json) == counted
