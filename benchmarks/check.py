"""See that nothing has become grossly slower: ratios of short runs within wide bounds, well under a minute.

A bound that is missed is measured again: what a busy machine does passes, what a change did stays.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module

from harness import OURS, Case, only

TRIES = 3
BOUNDS: dict[str, dict[str, dict[str, float]]] = {
    "flush": {"20 keys, 50 ms": {"requests.patch loop": 3.0}},
    "server": {"own server, 20 keys, 50 ms": {"requests.patch loop": 6.0}},
    "unchanged": {"100 keys, nothing changed": {"TrutoStore.commit of all keys": 10.0}},
    "group": {"10,000 partitions, 50 ms": {"one key a partition, simulated": 40.0}},
    "soon": {"5,000 calls, 50 ms": {"requests.patch loop": 100.0}},
    "rows": {"plain, track": {"hand-written loop": 1 / 40}, "mixed offsets, pages": {"hand-written loop": 1 / 10}},
    "scale": {"200 member streams, one by one": {"half as many": 0.2}},
    "commit": {"1 key of 1,000, truncate": {"raw sqlite3": 1 / 4}},
    "imports": {"import checkpoint": {"bare interpreter (floor)": 1 / 5}},
    "load": {"5,000 keys from SQLite": {"eager orjson": 1 / 6}},
    "encode": {"encode a 60-byte cursor": {"json + base64": 0.5}},
}
"""Benchmark, case, peer: how many times as long as ours it takes at the least: a third of the true ratio, or less."""
PROMISES = ("unchanged", "group")
"""Goals that count requests: no machine is too busy for them."""


def main() -> None:
    only.update(peer for cases in BOUNDS.values() for peers in cases.values() for peer in peers)
    failed = [line for name in BOUNDS if (line := checked(name))]
    for line in failed:
        print(f"too slow: {line}", file=sys.stderr)
    sys.exit(bool(failed))


def checked(name: str) -> str:
    """Return what is wrong with a benchmark after so many tries, nothing where one was good."""
    wrong = ""
    for _ in range(TRIES):
        started = time.monotonic()
        wrong = judged(name, import_module(name).cases(True))
        print(f"{name:<14}{time.monotonic() - started:>6.1f} s  {wrong or 'good'}", flush=True)
        if not wrong:
            break
    return wrong


def judged(name: str, cases: list[Case]) -> str:
    """Return what is out of bounds."""
    by_name = {case.name: case for case in cases}
    wrong: list[str] = []
    for case, peers in BOUNDS[name].items():
        figures = by_name[case].figures
        for peer, least in peers.items():
            if peer in figures and figures[peer].ratio < least:
                wrong.append(f"{name}, {case}: {peer} is {figures[peer].ratio:.2f} times {OURS}, not {least:.2f}")
    if name in PROMISES:
        wrong += [f"{name}: not {case.goal.text}" for case in cases if case.goal is not None and not case.goal.met]
    return "; ".join(wrong)


if __name__ == "__main__":
    main()
