"""The command line; one file per family of verbs, and nothing imported before its verb runs."""

from __future__ import annotations

import io
import os
import sys
from typing import cast


def main() -> None:
    """Run the command `checkpoint`."""
    _open_what_is_closed()
    if isinstance(output := cast("object", sys.stdout), io.TextIOWrapper):
        cast("io.TextIOWrapper", output).reconfigure(errors="backslashreplace")  # as on stderr: letters may be lacking
    try:
        from checkpoint.cli.command import checkpoint  # noqa: PLC0415 - click and rich are an extra
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit(f"The command line needs {error.name}: pip install 'checkpoint-store[cli]'")
    except KeyboardInterrupt:
        sys.exit("Aborted!")
    checkpoint(prog_name="checkpoint")


def _open_what_is_closed() -> None:
    """Put the null device where a standard stream was closed, so that no file of ours gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - it stays open
