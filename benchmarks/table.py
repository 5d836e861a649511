"""The results as Markdown and as a picture: all of them, a row for each case, and a few for the project's README.

python benchmarks/table.py                   write all pages and pictures anew from results/*.json
python benchmarks/table.py --print [FOLDER]  print the tables of the results in a folder
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness import OURS, RESULTS, spell
from plots import Bar, standing

NAMES = (
    "flush",
    "server",
    "cold",
    "unchanged",
    "group",
    "soon",
    "rows",
    "scale",
    "commit",
    "imports",
    "load",
    "encode",
)
ROOT = Path(__file__).parent.parent
PAGE, BEGIN, END = (
    ROOT / "docs" / "reference" / "speed.md",
    "<!-- speed: from benchmarks/results -->\n",
    "<!-- end of speed -->\n",
)
ROWS = ("<!-- rows: from benchmarks/results -->\n", "<!-- end of rows -->\n")
README = ROOT / "README.md"
FIRST, LAST = "<!-- comparison: from benchmarks/results -->\n", "<!-- end of comparison -->\n"
DECISIONS = ROOT / "docs" / "explanation" / "decisions.md"
MEASURED = ("<!-- decisions: from benchmarks/results -->\n", "<!-- end of decisions -->\n")
COMPARED = {
    "100 keys, 50 ms": "commit of 100 changed keys over HTTP, 50 ms away",
    "10,000 partitions, 50 ms": "commit of 10,000 changed partitions, in a group, 500 requests in 10 s allowed",
    "plain, pages": "one row of a sorted stream",
    "1 key of 1,000, truncate": "commit of one key to SQLite, on disk",
    "100,000 keys from SQLite": "load of 100,000 keys",
}
"""Cases that the project's README shows, and what it calls them."""
DECIDED = (
    "100 keys, 50 ms",
    "100 keys, nothing changed",
    "10,000 partitions, 50 ms",
    "plain, pages",
    "primary key, pages",
    "1 key of 1,000, truncate",
)
"""Cases that the records of decisions speak of."""
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
        put(DECISIONS, *MEASURED, decided(found))
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
    """Return a row for each case: every contestant, the fastest first, and whether the goal is met."""
    rows = ["| | the fastest first | goal |", "|---|---|---|"]
    for result in found:
        for case in (case for case in result["cases"] if case.get("headline", True)):
            goal = case["goal"]
            met = "" if goal is None else f"{goal['text']}: {'met' if goal['met'] else '**missed**'}"
            rows.append(f"| {case['name']} | {_contestants(case['figures'])} | {met} |")
    return "\n".join(rows) + "\n"


def decided(found: list[dict[str, Any]]) -> str:
    """Return the rows that the records of decisions speak of."""
    cases = {case["name"]: case for result in found for case in result["cases"]}
    rows = ["| | the fastest first |", "|---|---|"]
    rows += [f"| {name} | {_contestants(cases[name]['figures'])} |" for name in DECIDED if name in cases]
    return "\n".join(rows) + "\n"


def comparison(found: list[dict[str, Any]]) -> str:
    """Return the rows of the project's README: ours, the fastest peer, and how many times as long as ours it takes."""
    rows = ["| | `checkpoint` | the fastest peer | its time ÷ ours |", "|---|--:|--:|--:|"]
    for case in (case for result in found for case in result["cases"] if case["name"] in COMPARED):
        figures = case["figures"]
        peer = min(_peers(figures), key=lambda name: figures[name]["median"])
        rows.append(
            f"| {COMPARED[case['name']]} | {_ours(figures[OURS])} | {spell(figures[peer]['median'])}, {peer} "
            f"| {figures[peer]['ratio']:.2f} |"
        )
    return "\n".join(rows) + "\n"


def _contestants(figures: dict[str, Any]) -> str:
    """Return all contestants of a case, the fastest first and ours in bold."""
    said = []
    for name in sorted(figures, key=lambda name: figures[name]["median"]):
        text = f"{name} {_ours(figures[name])}"
        said.append(f"**{text}**" if name == OURS else text)
    return " · ".join(said)


def _peers(figures: dict[str, Any]) -> list[str]:
    """Return who does the same: not ours in another setting, no floor, and nobody who leaves the disk's sync out."""
    left_out = ("floor", "not synced", BEFORE)
    return [name for name in figures if not name.startswith(OURS) and not any(word in name for word in left_out)]


HOWS = ("pages", "filter", "track", "observe")


def by_shape(found: list[dict[str, Any]]) -> str:
    """Return what a row takes: a line for each kind of row, a column for each way to feed it, and all others."""
    (cases,) = [result["cases"] for result in found if result["benchmark"] == "rows"] or [[]]
    lines: dict[str, dict[str, Any]] = {}
    for case in cases:
        shape, _, how = case["name"].rpartition(", ")
        if how in HOWS:
            lines.setdefault(shape, {})[how] = case["figures"]
    rows = [
        f"| a row of | {' | '.join(HOWS)} | the others, the fastest first | version 1 (pages, track) |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    for shape, line in lines.items():
        ours = [spell(line[how][OURS]["median"]) if how in line else "" for how in HOWS]
        peers = {name: row for row in line.values() for name, row in row.items() if name not in (OURS, BEFORE)}
        others = [f"{name} {spell(peers[name]['median'])}" for name in sorted(peers, key=lambda x: peers[x]["median"])]
        older = [spell(line[how][BEFORE]["median"]) for how in ("pages", "track") if BEFORE in line.get(how, {})]
        rows.append(f"| {shape} | {' | '.join(ours)} | {' · '.join(others)} | {', '.join(older)} |")
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
    if sys.argv[1:2] == ["--print"]:
        results = read(Path(sys.argv[2]) if sys.argv[2:] else RESULTS)
        print(by_shape(results))
        print(summary(results))
    else:
        write(RESULTS, readme=True)
