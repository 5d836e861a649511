"""The command line; one file per family of verbs, and nothing imported before its verb runs."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command `checkpoint`."""
    try:
        from checkpoint.cli.command import checkpoint  # noqa: PLC0415 - click and rich are an extra
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit(f"The command line needs {error.name}: pip install 'checkpoint-store[cli]'")
    checkpoint(prog_name="checkpoint")
