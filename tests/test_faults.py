"""Nothing is lost, whatever fails: a short run on each database. `python -m tests.faults` makes longer ones."""

import pytest

from tests.faults.run import FLEETS, run

SECONDS = 25


@pytest.mark.parametrize("database", FLEETS)
def test_nothing_is_lost_invented_or_out_of_order_whatever_fails(database: str) -> None:
    verdict = run(database, SECONDS, seed=1)
    print(verdict.figures)
    assert not verdict.wrong, (verdict.figures, verdict.wrong[:20])
