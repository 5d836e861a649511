"""`python -m checkpoint.cli`: the command, for when its script is not on the path."""

from checkpoint.cli import main

main()
