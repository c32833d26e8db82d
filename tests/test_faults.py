"""Nothing is lost, whatever fails: a short run on each database. `python -m tests.faults` makes longer ones."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from tests.faults import long
from tests.faults.__main__ import main
from tests.faults.judge import Found, judge
from tests.faults.run import FLEETS, SETTINGS, run

SECONDS = 6


def posts(found: Found, path: str) -> list[list[dict[str, Any]]]:
    return [post["stored"] for post in found.posts if post["path"] == path and post["stored"]]


def lose(found: Found) -> None:
    name = posts(found, "/import")[3][0]["properties"]["$insert_id"]
    for stored in posts(found, "/import"):
        stored[:] = [one for one in stored if one["properties"]["$insert_id"] != name]


def invent(found: Found) -> None:
    one = copy.deepcopy(posts(found, "/import")[3][0])
    one["properties"]["$insert_id"] = "invented"
    posts(found, "/import")[-1].append(one)


def change(found: Found) -> None:
    posts(found, "/import")[3][0]["properties"]["more"] = 1


def turn(found: Found) -> None:
    found.posts.reverse()


def repeat_an_old_update(found: Found) -> None:
    updates = [one for stored in posts(found, "/engage") for one in stored if "slot" in one.get("$set", {})]
    latest = {one["$distinct_id"]: one for one in updates}
    old = next(one for one in updates if one["$set"]["slot"] != latest[one["$distinct_id"]]["$set"]["slot"])
    posts(found, "/engage")[-1].append(old)


def refuse_what_was_stored(found: Found) -> None:
    name = posts(found, "/import")[3][0]["properties"]["$insert_id"]
    found.refused.append(("import", "refused_by_mixpanel", f'{{"messageId": "{name}"}}'.encode()))


def link_another(found: Found) -> None:
    found.links[next(iter(found.links))] = "another"


def count_one_more(found: Found) -> None:
    found.status["endpoints"]["import"]["delivered"] += 1


def count_an_update_less(found: Found) -> None:
    found.status["endpoints"]["engage"]["delivered"] -= 1


HARMS: list[tuple[Callable[[Found], None], str]] = [
    (lose, "lost:"),
    (invent, "invented:"),
    (change, "changed:"),
    (turn, "out of order:"),
    (repeat_an_old_update, "engage u-"),
    (refuse_what_was_stored, "refused and there:"),
    (link_another, "are another's at the adapter"),
    (count_one_more, "import: the adapter counts"),
    (count_an_update_less, "engage: the adapter counts"),
]


@pytest.mark.parametrize("database", FLEETS)
def test_nothing_is_lost_invented_or_out_of_order_whatever_fails(database: str) -> None:
    verdict, found = run(database, SECONDS, seed=1)
    print(verdict.figures)
    assert not verdict.wrong, (verdict.figures, verdict.wrong[:20])
    assert verdict.figures["deeds"], "something was killed"
    for harm, word in HARMS:  # and had it been so, it would have been seen
        harmed = copy.deepcopy(found)
        harm(harmed)
        assert any(word in text for text in judge(harmed, SETTINGS).wrong), harm


@pytest.mark.parametrize(("figure", "code"), [(4.9, 0), (5.1, 1)])
def test_a_figure_that_is_not_kept_is_named_and_the_command_ends_in_1(
    monkeypatch: pytest.MonkeyPatch, figure: float, code: int
) -> None:
    figures = long.Figures()
    figures.hold("slowest answer, s", figure, 5.0)
    figures.hold("messages/s", -figure, -5.0, at_least=True)
    monkeypatch.setattr(long, "run", lambda *_: figures)
    done = CliRunner().invoke(main, ["--long", "--scenario", "overload", "--database", "sqlite", "--scale", "0.01"])
    assert done.exit_code == code
    assert done.output.count("WRONG: ") == 2 * code


def test_a_long_scenario_runs_to_its_end_and_its_counts_agree() -> None:
    """Of its figures, which a machine that does other things misses, nothing is asked here."""
    verdict = long.run("forgeries", "sqlite", 0.002)
    assert verdict.figures["acknowledged"]
    assert [text for text in verdict.wrong if "got a 200" in text or "not all is delivered" in text] == []
