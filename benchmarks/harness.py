"""What the benchmarks share: interleaved rounds, statistics, the table and the results file.

Each script is a module with `cases(quick) -> list[Case]`, and a call of `main`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

OURS = "checkpoint"
RESULTS = Path(__file__).parent / "results"

missing: dict[str, str] = {}
"""Peers that could not be imported, and why."""

settings = argparse.Namespace(before=None, seconds=0.0)
"""What the command line said. `before`: a checkout of an older revision, which some measure beside this one.

`seconds`: for how long some keep a server busy.
"""

only: set[str] = set()
"""Where it is not empty, the only contestants that run beside ours."""


@dataclass(frozen=True)
class Figures:
    """Seconds that one contestant took, and what else was counted."""

    rounds: int
    median: float
    p99: float
    min: float
    ratio: float
    """Its median by ours: above 1, ours is faster."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Such as `requests` or `peak MB`."""


@dataclass(frozen=True)
class Goal:
    """What a case is to show."""

    text: str
    met: bool


@dataclass(frozen=True)
class Case:
    """All contestants under one condition."""

    name: str
    figures: Mapping[str, Figures]
    goal: Goal | None = None
    headline: bool = True
    """Whether it stands in the table of the project's README."""


def main(
    script: str,
    description: str,
    cases: Callable[[bool], list[Case]],
    packages: Sequence[str] = (),
    *,
    before: bool = False,
    seconds: float | None = None,
) -> None:
    """Run a script from its command line: measure, print the table, write `results/NAME.json`.

    With `before`, `--before PATH` names a checkout of an older revision; with `seconds`, `--seconds N` says how long it
    keeps a server busy.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that it runs; nothing is written")
    parser.add_argument("--results", type=Path, help="folder to write to, also what --quick measured")
    if before:
        parser.add_argument("--before", type=Path, metavar="PATH", help="a checkout of an older revision, beside ours")
    if seconds is not None:
        parser.add_argument("--seconds", type=float, default=seconds, help=f"default: {seconds:g}")
    options = parser.parse_args()
    if seconds is not None:
        settings.seconds = options.seconds
    if before and options.before is not None:
        settings.before = options.before.resolve(strict=True)
    results = _results(Path(script).stem, description, cases(options.quick), packages)
    _show(results)
    folder = options.results or (None if options.quick else RESULTS)
    if folder is not None:
        folder.mkdir(exist_ok=True)
        (folder / f"{results['benchmark']}.json").write_text(json.dumps(results, indent=2) + "\n")


def compare(
    name: str,
    rounds: int,
    contestants: Mapping[str, Callable[[], float]],
    goal: tuple[str, Callable[[Mapping[str, Figures]], bool]] | None = None,
    counts: Mapping[str, Mapping[str, float]] | None = None,
) -> Case:
    """Run every contestant once a round, in turn, so that a drift of the machine meets them all alike.

    A contestant returns the seconds it measured. `counts` is read after the last round.
    """
    contestants = {name: run for name, run in contestants.items() if chosen(name)}
    seconds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for run in contestants.values():
        run()  # warm
    for _ in range(rounds):
        for contestant, run in contestants.items():
            seconds[contestant].append(run())
    return case(name, seconds, goal, counts)


def case(
    name: str,
    seconds: Mapping[str, Sequence[float]],
    goal: tuple[str, Callable[[Mapping[str, Figures]], bool]] | None = None,
    counts: Mapping[str, Mapping[str, float]] | None = None,
    *,
    headline: bool = True,
) -> Case:
    """Sum up what each contestant took; of a goal, its text and whether the figures meet it."""
    ours = statistics.median(seconds[OURS])
    figures = {
        contestant: Figures(
            len(times), median, _p99(times), min(times), median / ours, dict((counts or {}).get(contestant, {}))
        )
        for contestant, times in seconds.items()
        for median in [statistics.median(times)]
    }
    said = None if goal is None else Goal(goal[0], bool(goal[1](figures)))
    return Case(name, figures, said, headline)


def within(limit: float, peer: str, at: float) -> tuple[str, Callable[[Mapping[str, Figures]], bool]]:
    """Return the goal of a median, in seconds, set on a machine on which the peer took `at`.

    On another one it is met by the same part of the peer's time, too.
    """
    return (
        f"≤ {spell(limit)}, or {limit / at:.2f} × {peer}",
        lambda figures: figures[OURS].median <= limit or (peer in figures and figures[peer].ratio >= at / limit),
    )


def chosen(contestant: str) -> bool:
    """Tell whether a contestant is to run."""
    return not only or contestant == OURS or contestant in only


@contextmanager
def peer(name: str) -> Generator[None]:
    """Leave a contestant out, and say so, where its package is missing."""
    try:
        yield
    except ImportError as error:
        missing[name] = str(error)


def alone(module: str, call: str) -> Any:
    """Return what a function of a benchmark gives in a process whose `checkpoint` is the older one."""
    script = f"import json, {module}; print(json.dumps({module}.{call}))"
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(settings.before)},
    )  # fmt: skip
    return json.loads(found.stdout)


def spell(seconds: float) -> str:
    """Write a time in the unit that suits it, such as `1.23 s` or `85.0 ns`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(seconds) * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def fail(message: str) -> NoReturn:
    """End with a sentence: what was measured is not what was meant."""
    sys.exit(f"benchmark: {message}")


def _results(name: str, description: str, cases: list[Case], packages: Sequence[str]) -> dict[str, Any]:
    return {
        "benchmark": name,
        "description": description.partition("\n")[0],
        "command": f"python benchmarks/{name}.py",
        "machine": _machine(),
        "versions": _versions(["checkpoint-store", *packages]),
        "missing": missing,
        "unit": "seconds; ratio: median by ours, above 1 ours is faster",
        "cases": [asdict(case) for case in cases],
    }


def _show(results: dict[str, Any]) -> None:
    print(results["command"])
    for key in ("machine", "versions", "missing"):
        print(f"{key}: " + ", ".join(f"{what} {value}" for what, value in results[key].items()))
    print(f"\n{'case':<44}{'contestant':<32}{'rounds':>7}{'median':>10}{'p99':>10}{'min':>10}{'ratio':>8}")
    for found in results["cases"]:
        for contestant, figures in found["figures"].items():
            times = "".join(f"{spell(figures[which]):>10}" for which in ("median", "p99", "min"))
            counts = "".join(f"  {value:g} {what}" for what, value in figures["counts"].items())
            print(f"{found['name']:<44}{contestant:<32}{figures['rounds']:>7}{times}{figures['ratio']:>8.2f}{counts}")
        if found["goal"]:
            print(f"{found['name']:<44}goal: {found['goal']['text']}: {'met' if found['goal']['met'] else 'MISSED'}")
    print()


def _p99(times: Sequence[float]) -> float:
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
