"""`python -m checkpoint.cli`, the command where its script is not on the path."""

from checkpoint.cli import main

main()
