"""What the benchmarks share: interleaved rounds, statistics, the table and the results file."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OURS = "checkpoint"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figures:
    """Seconds that one contestant took."""

    median: float
    p99: float
    min: float
    ratio: float
    """To ours, as the benchmark defines it."""


@dataclass(frozen=True)
class Case:
    """All contestants under one condition."""

    name: str
    rounds: int
    figures: Mapping[str, Figures]


def options(description: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that it runs; nothing is written")
    return parser.parse_args()


def compare(
    name: str, rounds: int, contestants: Mapping[str, Callable[[], float]], ratio: Callable[[float, float], float]
) -> Case:
    """Run every contestant once a round, in turn, so that a drift of the machine meets them all alike.

    A contestant returns the seconds it measured. `ratio` takes the medians of ours and of a peer.
    """
    seconds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for run in contestants.values():
        run()  # warm
    for _ in range(rounds):
        for contestant, run in contestants.items():
            seconds[contestant].append(run())
    ours = statistics.median(seconds[OURS])
    figures = {
        contestant: Figures(median, _p99(times), min(times), ratio(ours, median))
        for contestant, times in seconds.items()
        for median in [statistics.median(times)]
    }
    return Case(name, rounds, figures)


def report(name: str, ratio: str, cases: list[Case], packages: list[str], *, write: bool) -> None:
    """Print the table; write `results/NAME.json`."""
    results: dict[str, Any] = {
        "benchmark": name,
        "command": f"python benchmarks/{name}.py",
        "machine": _machine(),
        "versions": _versions(packages),
        "ratio": ratio,
        "unit": "seconds",
        "cases": [asdict(case) for case in cases],
    }
    print(results["command"])
    for key in ("machine", "versions"):
        print(f"{key}: " + ", ".join(f"{what} {value}" for what, value in results[key].items()))
    print(f"ratio: {ratio}\n")
    print(f"{'case':<26}{'contestant':<22}{'rounds':>7}{'median':>10}{'p99':>10}{'min':>10}{'ratio':>8}")
    for case in cases:
        for contestant, figures in case.figures.items():
            times = "".join(f"{seconds * 1000:>10.2f}" for seconds in (figures.median, figures.p99, figures.min))
            print(f"{case.name:<26}{contestant:<22}{case.rounds:>7}{times}{figures.ratio:>8.2f}")
    print("\ntimes in milliseconds")
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")


def _p99(times: list[float]) -> float:
    """Return the 99th percentile by nearest rank: of fewer than 100 times, the longest."""
    return sorted(times)[math.ceil(len(times) * 0.99) - 1]


def _machine() -> dict[str, str]:
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _versions(packages: list[str]) -> dict[str, str]:
    installed = {found.name: found.version for found in distributions() if found.name in packages}
    return {"python": platform.python_version(), **dict(sorted(installed.items()))}


def fail(message: str) -> NoReturn:
    """End with a sentence: what was measured is not what was meant."""
    sys.exit(f"benchmark: {message}")
