"""`python -m adapter` is the command `adapter`."""

from adapter.cli import main

main()
