"""`python -m checkpoint`: the command."""

from checkpoint.cli import main

if __name__ == "__main__":
    main()
