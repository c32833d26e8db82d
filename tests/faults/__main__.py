"""Run the faults and print the counts.

python -m tests.faults [--seconds 60] [--seed N] [--database sqlite|postgresql] [--long]
"""

import random
import sys

import click

from tests.faults.run import FLEETS, run


@click.command()
@click.option("--seconds", type=click.FloatRange(1), help="How long things fail.  [default: 60; with --long 600]")
@click.option("--seed", type=int, help="Of everything that is drawn; another each time if it is not given.")
@click.option("--database", type=click.Choice(list(FLEETS)), multiple=True, default=list(FLEETS), show_default=True)
@click.option("--long", is_flag=True, help="Also freeze a worker for longer than it holds its lanes.")
def main(seconds: float | None, seed: int | None, database: tuple[str, ...], long: bool) -> None:
    """Everything fails for a while; then nothing may be lost, invented, changed or out of order."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    wrong = 0
    for one in database:
        click.echo(f"{one}, seed {seed}", err=True)
        verdict, _ = run(one, seconds or (600 if long else 60), seed, long=long)
        for name, figure in verdict.figures.items():
            click.echo(f"{name:<24}{figure}")
        for text in verdict.wrong[:20]:
            click.echo(f"WRONG: {text}", err=True)
        wrong += len(verdict.wrong)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
