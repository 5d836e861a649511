"""Real signals whose handlers raise at random bytecodes: fault rows 95 and 96.

`CHECKPOINT_INTERRUPTIONS=5000` makes it about that many exceptions over all scenarios; the number that came is printed
with `-s`. What the simulator does at every place one after the other, this does with CPython's own signals, locks,
sockets and files.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from checkpoint import Checkpointer, MemoryStore, PartialCommit, StoreError, TrutoStore, codec
from checkpoint.testing import ApiServer

TIMES = int(os.environ.get("CHECKPOINT_INTERRUPTIONS", "40"))
SEED = int(os.environ.get("CHECKPOINT_SIMULATOR_SEED", "0"))
SCENARIOS = tuple(
    f"{store}{how}" for store in ("sqlite", "http") for how in ("", " exclusive", " async", " async exclusive")
)

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


# One place after the other


class Interrupted(Exception):
    """What a signal handler raises."""


class Interrupting:
    """Raises where the nth function of `checkpoint.run` begins, as the exception of a handler may."""

    def __init__(self, place: int) -> None:
        self._left = place

    @property
    def came(self) -> bool:
        return self._left <= 0

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame, _event, _arg):
        if f"{os.sep}checkpoint{os.sep}run{os.sep}" in frame.f_code.co_filename and frame.f_code.co_name[0] != "<":
            self._left -= 1
            if self._left == 0:
                raise Interrupted


class HalfStore(MemoryStore):
    """Commits one of two keys, until it is repaired."""

    broken = True

    def commit(self, state_key, changes, base=None, **options):
        if not self.broken or len(changes) < 2:
            return super().commit(state_key, changes, base or {}, **options)
        first = min(changes)
        done = super().commit(state_key, {first: changes[first]}, base or {}, **options)
        rest = {key: StoreError("disk on fire") for key in changes if key != first}
        raise PartialCommit(done.entries, rest, rest)


@pytest.mark.parametrize("kind", ["all lands", "half lands", "API"])
def test_fault_95_an_interrupted_commit_is_no_conflict(kind, api):
    """Interrupted wherever it may be, answer in hand or not, what a commit wrote is still known as the run's own."""
    made = {"all lands": MemoryStore, "half lands": HalfStore, "API": lambda: TrutoStore(api.url, api.token)}[kind]
    for place in itertools.count(1):
        interrupting = Interrupting(place)
        with closing(made()) as store:
            with Checkpointer("run", store) as cp:
                cp["a"] = cp["b"] = {"n": place}
                with suppress(Interrupted, PartialCommit), interrupting:
                    cp.commit()
                store.broken = False
                cp["a"] = cp["b"] = {"n": -place}
                cp.commit()
            assert {codec.decode(entry.value)["n"] for entry in store.load("run").values()} == {-place}
        if not interrupting.came:
            break
    assert place > 20
