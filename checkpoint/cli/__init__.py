"""The command line: one file for each family of verbs. Slow libraries are imported by the verb that needs them."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import cast


def main() -> None:
    """Run the command `checkpoint`."""
    began = time.monotonic() - _age()
    _open_what_is_closed()
    if isinstance(output := cast("object", sys.stdout), io.TextIOWrapper):
        cast("io.TextIOWrapper", output).reconfigure(errors="backslashreplace")  # as on stderr
    try:
        from checkpoint.cli.command import checkpoint  # click and rich are an extra
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit(f"The command line needs {error.name}: pip install 'checkpoint-store[cli]'")
    except KeyboardInterrupt:
        print("Aborted!", file=sys.stderr)  # noqa: T201 - there may be no click yet
        sys.exit(128 + signal.SIGINT)  # the status a shell reports
    try:
        checkpoint(prog_name="checkpoint", obj=began)
    except OSError as error:  # raised by the help, which is written before a verb runs
        sys.exit(f"Error: {error}")


def _age() -> float:
    """Return the seconds since the process began, from Linux: on a busy machine the interpreter starts slowly."""
    try:
        ticks = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19]
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


def _open_what_is_closed() -> None:
    """Open the null device for each closed standard stream, so that no file of ours gets its descriptor."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - it stays open
