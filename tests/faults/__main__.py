"""Run the faults and print the counts.

python -m tests.faults [--seconds 60] [--seed N] [--database sqlite|postgresql]
python -m tests.faults --long [--scenario NAME] [--scale 0.1] [--seed N] [--database sqlite|postgresql]
"""

import random
import sys

import click

from tests.faults import long as scenarios
from tests.faults.run import FLEETS, run

#: The faults themselves, for ten minutes.
FAULTS, FAULTS_S = "faults", 600.0


@click.command()
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long things fail.")
@click.option("--seed", type=int, help="Of everything that is drawn; another each time if it is not given.")
@click.option("--database", type=click.Choice(list(FLEETS)), multiple=True, default=list(FLEETS), show_default=True)
@click.option("--long", is_flag=True, help="Run what takes hours instead, each judged by figures of its own.")
@click.option(
    "--scenario", type=click.Choice([FAULTS, *scenarios.SCENARIOS]), multiple=True, help="Of --long: these."
)
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Of --long: 0.1 is a tenth.")
def main(
    seconds: float, seed: int | None, database: tuple[str, ...], long: bool, scenario: tuple[str, ...], scale: float
) -> None:
    """Everything fails for a while; then nothing may be lost, invented, changed or out of order."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    long = long or bool(scenario)
    names = scenario or ((FAULTS, *scenarios.SCENARIOS) if long else (FAULTS,))
    seconds = FAULTS_S * scale if long else seconds
    wrong = 0
    for name in names:
        for one in database:
            click.echo(f"{name}, {one}, seed {seed}", err=True)
            verdict = run(one, seconds, seed, long=long)[0] if name == FAULTS else scenarios.run(name, one, scale)
            for what, figure in verdict.figures.items():
                click.echo(f"{what:<40}{figure}")
            for text in verdict.wrong[:20]:
                click.echo(f"WRONG: {text}", err=True)
            wrong += len(verdict.wrong)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
