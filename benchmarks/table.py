"""The results as Markdown and as a picture: all of them, a row for each case, and a few for the project's README."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness import OURS, RESULTS, spell
from plots import Bar, standing

NAMES = ("flush", "cold", "unchanged", "group", "soon", "rows", "scale", "commit", "imports", "load", "encode")
ROOT = Path(__file__).parent.parent
PAGE, BEGIN, END = (
    ROOT / "docs" / "reference" / "speed.md",
    "<!-- speed: from benchmarks/results -->\n",
    "<!-- end of speed -->\n",
)
ROWS = ("<!-- rows: from benchmarks/results -->\n", "<!-- end of rows -->\n")
README = ROOT / "README.md"
FIRST, LAST = "<!-- comparison: from benchmarks/results -->\n", "<!-- end of comparison -->\n"
COMPARED = {
    "100 keys, 50 ms": "commit of 100 changed keys over HTTP, 50 ms away",
    "HTTP/2, 20 keys, 50 ms": "the first commit of a job over TLS and HTTP/2, 20 changed keys, 50 ms away",
    "100 keys, nothing changed": "commit of 100 keys that did not change",
    "10,000 partitions, 50 ms": "commit of 10,000 changed partitions, in a group",
    "plain, pages": "one row of a sorted stream",
    "primary key, track": "the same, with a primary key",
    "10,000 member streams, one by one": "10,000 streams of a group, opened, fed and committed",
    "1 key of 1,000, truncate": "commit of one key to SQLite, on disk",
    "100,000 keys from SQLite": "load of 100,000 keys",
    "import checkpoint": "import",
}
"""Cases that the project's README shows, and what it calls them."""
MAIN = (
    "requests.patch loop",
    "httpx.AsyncClient",
    "raw sqlite3",
    "eager orjson",
    "singer-sdk",
    "import httpx",
    "version 1",
)
"""The peers that goals name, and those nearest to what the library does; the README shows one a case."""

BEFORE = "version 1"


def write(results: Path, *, readme: bool) -> None:
    """Write the folder's README and picture, the page about speed, and the table of the project's README."""
    found = read(results)
    (results / "README.md").write_text(everything(found), "utf-8")
    bars = [
        Bar(case["name"], peer, figures["ratio"])
        for result in found
        for case in result["cases"]
        if case.get("headline", True)
        for peer, figures in case["figures"].items()
        if not peer.startswith(OURS)
    ]
    (results / "standing.svg").write_text(
        standing("How many times as long as checkpoint each peer takes", bars), "utf-8"
    )
    if readme:
        put(PAGE, BEGIN, END, summary(found))
        put(PAGE, *ROWS, by_shape(found))
        put(README, FIRST, LAST, comparison(found))


def put(page: Path, begin: str, end: str, text: str) -> None:
    """Put text between two marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(before + begin + text + end + after, "utf-8")


def read(results: Path = RESULTS) -> list[dict[str, Any]]:
    """Return what the benchmarks wrote, in their order; those that did not run are left out."""
    paths = [results / f"{name}.json" for name in NAMES]
    return [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]


def summary(found: list[dict[str, Any]]) -> str:
    """Return a row for each case: ours, the peer it is held against, and whether the goal is met."""
    rows = ["| | `checkpoint` | beside | times ours | goal |", "|---|---|---|---|---|"]
    for result in found:
        for case in (case for case in result["cases"] if case.get("headline", True)):
            figures, goal = case["figures"], case["goal"]
            peer = next((name for name in MAIN if name in figures), next(name for name in figures if name != OURS))
            met = "" if goal is None else f"{goal['text']}: {'met' if goal['met'] else '**missed**'}"
            rows.append(
                f"| {case['name']} | {_ours(figures[OURS])} | {spell(figures[peer]['median'])}, {peer} "
                f"| {figures[peer]['ratio']:.2f} | {met} |"
            )
    return "\n".join(rows) + "\n"


def comparison(found: list[dict[str, Any]]) -> str:
    """Return the rows of the project's README: ours, and how many times as long the named peer takes."""
    rows = ["| | `checkpoint` | beside it | times ours |", "|---|--:|--:|--:|"]
    for case in (case for result in found for case in result["cases"] if case["name"] in COMPARED):
        figures = case["figures"]
        peer = next((name for name in MAIN if name in figures), next(name for name in figures if name != OURS))
        rows.append(
            f"| {COMPARED[case['name']]} | {_ours(figures[OURS])} | {spell(figures[peer]['median'])}, {peer} "
            f"| {figures[peer]['ratio']:.2f} |"
        )
    return "\n".join(rows) + "\n"


HOWS = ("pages", "filter", "track", "observe")


def by_shape(found: list[dict[str, Any]]) -> str:
    """Return what a row takes: a line for each kind of row, a column for each way to feed it, and the best peer."""
    (cases,) = [result["cases"] for result in found if result["benchmark"] == "rows"] or [[]]
    lines: dict[str, dict[str, Any]] = {}
    for case in cases:
        shape, _, how = case["name"].rpartition(", ")
        if how in HOWS:
            lines.setdefault(shape, {})[how] = case["figures"]
    rows = [
        f"| a row of | {' | '.join(HOWS)} | best peer | version 1 (pages, track) |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    for shape, line in lines.items():
        ours = [spell(line[how][OURS]["median"]) if how in line else "" for how in HOWS]
        peers = {name: row for row in line.values() for name, row in row.items() if name not in (OURS, BEFORE)}
        best = min(peers, key=lambda name: peers[name]["median"], default=None)
        said = "" if best is None else f"{spell(peers[best]['median'])}, {best}"
        older = [spell(line[how][BEFORE]["median"]) for how in ("pages", "track") if BEFORE in line.get(how, {})]
        rows.append(f"| {shape} | {' | '.join(ours)} | {said} | {', '.join(older)} |")
    return "\n".join(rows) + "\n"


def everything(found: list[dict[str, Any]]) -> str:
    """Return all figures of all contestants."""
    parts = [
        "# Results\n",
        "Written by `python benchmarks/run.py`. The ratio is a contestant's median by ours: above 1, ours is faster.\n",
        "![How many times as long as checkpoint each peer takes](standing.svg)\n",
        "![Seconds per commit over the number of partitions, simulated](capacity.svg)\n",
    ]
    for result in found:
        parts.append(f"## {result['benchmark']}\n\n{result['description']}\n")
        if result["benchmark"] == "rows":
            parts.append(by_shape(found))
        said = [", ".join(f"{what} {value}" for what, value in result[key].items()) for key in ("machine", "versions")]
        parts.append(f"`{result['command']}`; {'; '.join(said)}.\n")
        if result["missing"]:
            parts.append("Without " + ", ".join(f"{peer} ({why})" for peer, why in result["missing"].items()) + ".\n")
        rows = ["| | contestant | rounds | median | P99 | min | ratio | |", "|---|---|--:|--:|--:|--:|--:|---|"]
        for case in result["cases"]:
            for number, (name, figures) in enumerate(case["figures"].items()):
                times = " | ".join(spell(figures[which]) for which in ("median", "p99", "min"))
                rows.append(
                    f"| {'' if number else case['name']} | {name} | {figures['rounds']} | {times} "
                    f"| {figures['ratio']:.2f} | {_counts(figures)} |"
                )
            if case["goal"]:
                rows.append(
                    f"| | *goal: {case['goal']['text']}: {'met' if case['goal']['met'] else 'missed'}* |" + " |" * 6
                )
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _ours(figures: dict[str, Any]) -> str:
    counts = _counts(figures)
    return spell(figures["median"]) + (f", {counts}" if counts else "")


def _counts(figures: dict[str, Any]) -> str:
    return ", ".join(f"{value:g} {what}" for what, value in figures["counts"].items())


if __name__ == "__main__":
    found = read(Path(sys.argv[1]) if sys.argv[1:] else RESULTS)
    print(by_shape(found))
    print(summary(found))
