"""Real signals whose handlers raise at random bytecodes: fault rows 95 and 96.

`CHECKPOINT_INTERRUPTIONS=5000` makes it about that many exceptions over all scenarios; the number that came is printed
with `-s`. What the simulator does at every place one after the other, this does with CPython's own signals, locks,
sockets and files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint.testing import ApiServer

TIMES = int(os.environ.get("CHECKPOINT_INTERRUPTIONS", "40"))
SEED = int(os.environ.get("CHECKPOINT_SIMULATOR_SEED", "0"))
SCENARIOS = ("sqlite", "sqlite exclusive", "http", "http exclusive")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs setitimer")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fault_95_96_an_exception_at_any_bytecode(scenario, tmp_path):
    """Nothing is left held, the exception is the one that comes out, and the next operation works."""
    with ApiServer() as api:
        url = api.url if "http" in scenario else str(tmp_path / "state.db")
        order = {
            "scenario": scenario, "url": url, "token": api.token, "seed": SEED,
            "times": max(10, TIMES * 3 // (2 * len(SCENARIOS))),  # not every one comes while the job runs
        }  # fmt: skip
        ran = subprocess.run(
            [sys.executable, Path(__file__).with_name("interrupted_job.py"), json.dumps(order)],
            capture_output=True, text=True, timeout=60 + TIMES, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, f"seed {SEED}: {ran.stderr[-6000:]}"
    told = json.loads(ran.stdout.splitlines()[-1])
    print(f"{scenario}: {told['came']} exceptions, {told['ignored']} where Python cannot raise")
    assert not told["wrong"], f"seed {SEED}: " + "\n".join(told["wrong"])
    assert told["came"] > order["times"] // 8  # the rounds that set their length were the slowest
