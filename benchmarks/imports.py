"""What a start of the interpreter takes with an import, beside one without."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from harness import OURS, Case, Figures, compare, main, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAMES = {"import checkpoint": "import checkpoint", "its Checkpointer": "from checkpoint import Checkpointer"}
PEERS = ("httpx", "dlt")
BARE = "bare interpreter (floor)"
GOAL, HTTPX = 0.04, 0.113
"""Seconds over a bare interpreter, and those that `import httpx` took where the goal was set."""


def cases(quick: bool) -> list[Case]:
    """Measure the package, and the name that every job imports from it."""
    peers = {f"import {name}": started(f"import {name}") for name in PEERS if find_spec(name)}
    said = f"≤ {GOAL * 1000:g} ms over a bare interpreter, or {GOAL / HTTPX:.2f} × httpx"
    missing.update((name, "not installed") for name in PEERS if not find_spec(name))
    return [
        compare(name, 3 if quick else 15, {OURS: started(line), BARE: started("pass"), **peers}, (said, is_met))
        for name, line in NAMES.items()
    ]


def is_met(figures: Mapping[str, Figures]) -> bool:
    over = {name: found.median - figures[BARE].median for name, found in figures.items()}
    return over[OURS] <= max(GOAL, GOAL / HTTPX * over.get("import httpx", 0.0))


def started(line: str) -> Callable[[], float]:
    """Return a round of an interpreter of its own that runs one line, from bytecode: an installer compiles packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", line], check=True, env=environment)
        return time.perf_counter() - begun

    return run


if __name__ == "__main__":
    main(__file__, __doc__, cases, PEERS)
