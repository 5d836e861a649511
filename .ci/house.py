"""Measure the code: sizes, complexity, suppressions, names, imports. Needs nothing but Python.

    python .ci/house.py                    this checkout
    python .ci/house.py ec72e3c .          a git revision beside it
    python .ci/house.py --details          and what is behind each figure
    python .ci/house.py --check            fails at a suppression without a reason, and at a long name of a test

The limits are aims. A miss is explained, and not forced: a function that is split to please a script is worse.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "checkpoint"
NAME = 60
"""The most characters that the name of a test may have."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SUPPRESSION = re.compile(r"(?:ruff: )?noqa\b|type: ignore|pyright: ignore|pragma: no cover")
REASON = re.compile(
    r"(?:noqa: [A-Z][A-Z0-9, ]*[0-9]|ignore\[[\w, -]+\]|no cover)(?: - | +# )(?!noqa:|pyright:|type:)\S"
)
"""A code, and behind it a reason after ` - ` or `  # `; mypy allows only the second. One reason does for a line."""
ROOMS = {
    "run/": "aio checkpointer groups lease ledger worker",
    "streams/": "arrow boundary feed incremental options position ranges reading rows values windows",
    "neighbours/": "copying formats meltano",
    "server/": "server",
    "testing/": "crashing pytest_plugin testing",
}
MOVED = {f"{name}.py": room for room, names in ROOMS.items() for name in names.split()}


class Function(NamedTuple):
    """A function or method."""

    place: str
    lines: int
    complexity: int


class Class(NamedTuple):
    """A class, with the number of its attributes whose names begin with an underscore."""

    place: str
    lines: int
    private: int


class Measure(NamedTuple):
    """A figure, what it should be at most, and what is behind it."""

    name: str
    figure: str
    limit: str
    details: list[str]


class House:
    """The package below a folder, read and parsed."""

    def __init__(self, root: Path) -> None:
        """Read `root`/checkpoint."""
        self.root = root / PACKAGE
        if not self.root.is_dir():
            sys.exit(f"{root} has no folder {PACKAGE}")
        self.texts = {path: path.read_text("utf-8") for path in sorted(self.root.rglob("*.py"))}
        self.trees = {path: ast.parse(text) for path, text in self.texts.items()}
        self.modules = {self.module(path): path for path in self.texts}

    def module(self, path: Path) -> str:
        """Return the dotted name of a file."""
        parts = path.relative_to(self.root.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def place(self, path: Path, name: str) -> str:
        """Return how a definition is shown."""
        return f"{path.relative_to(self.root)} {name}"

    @cached_property
    def functions(self) -> list[Function]:
        """Every function and method, not the ones inside them."""
        found: list[Function] = []
        for path, tree in self.trees.items():
            for scope in (tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))):
                name = f"{scope.name}." if isinstance(scope, ast.ClassDef) else ""
                found += [
                    Function(self.place(path, f"{name}{node.name}"), _lines(node), _complexity(node))
                    for node in scope.body
                    if isinstance(node, FUNCTIONS)
                ]
        return found

    @cached_property
    def classes(self) -> list[Class]:
        """Every class."""
        return [
            Class(self.place(path, node.name), _lines(node), len(_private(node)))
            for path, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        ]

    @cached_property
    def files(self) -> dict[str, int]:
        """Each file and its lines."""
        return {str(path.relative_to(self.root)): text.count("\n") for path, text in self.texts.items()}

    @cached_property
    def top(self) -> list[str]:
        """What stands side by side in the package, but for `__init__` and `__main__`."""
        names = {name.partition("/")[0] for name in self.files}
        return sorted(name for name in names if not name.startswith("__"))

    @cached_property
    def rooms(self) -> dict[str, int]:
        """Lines by room; a file that stood at the top once is counted where it went."""
        rooms: Counter[str] = Counter()
        for name, lines in self.files.items():
            first, slash, _ = name.partition("/")
            rooms[first + slash if slash else MOVED.get(first, first)] += lines
        return dict(rooms)

    def imports(self, *, types: bool) -> dict[str, set[str]]:
        """Return which of our modules each one imports: at its import, or in any way, for types too."""
        edges: dict[str, set[str]] = {}
        for path, tree in self.trees.items():
            own = self.module(path)
            package = own if path.name == "__init__.py" else own.rpartition(".")[0]
            nodes = ast.walk(tree) if types else _at_import(tree.body)
            edges[own] = {found for node in nodes for found in self._imported(node, package)} - {own}
        return edges

    def _imported(self, node: ast.AST, package: str) -> set[str]:
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            base = (parent + (node.module or "")).rstrip(".")
            names = {f"{base}.{alias.name}" if f"{base}.{alias.name}" in self.modules else base for alias in node.names}
        else:
            return set()
        return names & self.modules.keys()

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Names that several modules give to a class, a function or a type of their own."""
        where: defaultdict[str, list[str]] = defaultdict(list)
        for path, tree in self.trees.items():
            for name in sorted(_defined(tree)):
                where[name].append(str(path.relative_to(self.root)))
        return {name: places for name, places in where.items() if len(places) > 1}


def _lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _complexity(function: ast.AST) -> int:
    """Return one more than the number of decisions: branches, loops, handlers, conditions, and functions inside."""
    count = 1
    for node in ast.walk(function):
        if isinstance(node, (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
        elif isinstance(node, (*FUNCTIONS, ast.Lambda)) and node is not function:
            count += 1
    return count


def _private(node: ast.ClassDef) -> set[str]:
    """Return the attributes of an instance that begin with an underscore: set by a method, or fields."""
    names: set[str] = set()
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            names.add(field.target.id)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and isinstance(inner.value, ast.Name):
            names |= {inner.attr} if inner.value.id == "self" else set()
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def _at_import(body: list[ast.stmt]) -> list[ast.AST]:
    """Return the statements that run when a module is imported."""
    found: list[ast.AST] = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            found += _at_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            found += _at_import(
                [*node.body, *node.orelse, *node.finalbody, *(s for h in node.handlers for s in h.body)]
            )
    return found


def _defined(tree: ast.Module) -> set[str]:
    """Return what a module defines at its top; verbs of the command line are functions with a decorator."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) or (isinstance(node, FUNCTIONS) and not node.decorator_list):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and "TypeAlias" in ast.dump(node):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("__")}


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules each of which imports, in the end, every other one of its group."""
    reach = {module: _reached(module, edges) for module in edges}
    found: list[set[str]] = []
    for module, others in reach.items():
        group = {other for other in others if module in reach[other]} | {module}
        if len(group) > 1 and group not in found:
            found.append(group)
    return found


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [*edges[start]]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += edges[module]
    return seen


def deepest(edges: dict[str, set[str]]) -> list[str]:
    """Return the longest chain of imports; a circle is followed once round."""
    known: dict[str, list[str]] = {}

    def chain(module: str, above: tuple[str, ...]) -> list[str]:
        if module not in known:
            below = [chain(other, (*above, module)) for other in sorted(edges[module]) if other not in above]
            known[module] = [module, *max(below, key=len, default=[])]
        return known[module]

    return max((chain(module, ()) for module in edges), key=len)


def suppressions(texts: dict[Path, str], root: Path) -> tuple[list[str], list[str]]:
    """Return the comments that suppress something, and those of them that say no reason."""
    found: list[str] = []
    bare: list[str] = []
    for path, text in texts.items():
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and (count := len(SUPPRESSION.findall(token.string))):
                line = f"{path.relative_to(root)}:{token.start[0]}: {token.string}"
                found += [line] * count
                bare += [line] if not REASON.search(token.string) else []
    return found, bare


def measures(house: House) -> list[Measure]:
    """Return what is looked at, one after the other."""
    return [*sizes(house), *imports(house), *words(house)]


def sizes(house: House) -> list[Measure]:
    """Return how large rooms, files, classes and functions are."""
    lengths = sorted(function.lines for function in house.functions)
    middle, most = lengths[len(lengths) // 2], lengths[len(lengths) * 95 // 100]
    classes = sorted(house.classes, key=lambda each: -each.lines)
    fullest = sorted(house.classes, key=lambda each: -each.private)
    large = [each for each in house.functions if each.complexity > 12 or each.lines > 45]
    large.sort(key=lambda each: -each.complexity)
    long = sorted(((lines, name) for name, lines in house.files.items() if lines > 600), reverse=True)
    return [
        Measure("lines", f"{sum(house.files.values()):,}", "", []),
        Measure("rooms and files at the top", str(len(house.top)), "12", house.top),
        Measure("files above 600 lines", str(len(long)), "0", [f"{lines} {name}" for lines, name in long]),
        Measure(
            "largest class, lines",
            str(classes[0].lines),
            "350 (`Checkpointer`: 450)",
            [f"{each.lines} {each.place}" for each in classes[:8]],
        ),
        Measure(
            "most private attributes of a class",
            str(fullest[0].private),
            "12",
            [f"{each.private} {each.place}" for each in fullest[:8]],
        ),
        Measure(
            "functions above complexity 12 or 45 lines",
            str(len(large)),
            "0",
            [f"complexity {each.complexity}, {each.lines} lines: {each.place}" for each in large],
        ),
        Measure("highest complexity", str(max(each.complexity for each in house.functions)), "15", []),
        Measure("lines of a function, median and 95 %", f"{middle}, {most}", "", []),
    ]


def imports(house: House) -> list[Measure]:
    """Return how modules hang together."""
    chain = [name.removeprefix(f"{PACKAGE}.") for name in deepest(house.imports(types=False))]
    found = [", ".join(sorted(group)) for group in circles(house.imports(types=True))]
    return [
        Measure("depth of imports at run time", str(len(chain)), "7", [" > ".join(chain)]),
        Measure("circles of imports, types included", str(len(found)), "0", found),
    ]


def words(house: House) -> list[Measure]:
    """Return suppressions, and names that several modules define."""
    found, bare = suppressions(house.texts, house.root)
    share = 1000 * len(found) / sum(house.files.values())
    names = sorted(house.names.items(), key=lambda item: (-len(item[1]), item[0]))
    shown = [f"{name}: {', '.join(places)}" for name, places in names]
    return [
        Measure("suppressions per 1,000 lines", f"{share:.1f}", "4", found),
        Measure("suppressions without a reason", str(len(bare)), "0", bare),
        Measure("names defined in several modules", str(len(names)), "0", shown),
    ]


def opened(what: str, scratch: Path) -> House:
    """Return the house of a folder, or of a git revision."""
    if Path(what).is_dir():
        return House(Path(what))
    archive = subprocess.run(["git", "-C", ROOT, "archive", what, PACKAGE], capture_output=True, check=False)
    if archive.returncode:
        sys.exit(archive.stderr.decode().strip())
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(scratch / what, filter="data")
    return House(scratch / what)


def long_names(texts: dict[Path, str], root: Path) -> list[str]:
    """Return the tests whose names are longer than a line of a report shows."""
    return [
        f"{path.relative_to(root)}:{node.lineno}: {node.name}"
        for path, text in texts.items()
        if "test_" in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, FUNCTIONS) and node.name.startswith("test_") and len(node.name) > NAME
    ]


def check() -> int:
    """Return 1 where a suppression has no reason or the name of a test is too long.

    Types that a test expects to be wrong are their own reason.
    """
    folders = [ROOT / name for name in (PACKAGE, "tests", "benchmarks", ".ci")]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in sorted(folder.rglob("*.py")))]
    texts = {path: path.read_text("utf-8") for path in paths if path.parent != ROOT / "tests" / "typing"}
    found, bare = suppressions(texts, ROOT)
    for line in bare:
        print(f"{line}: say why, behind ` - ` (a `type: ignore`: behind `  # `)")
    long = long_names(texts, ROOT)
    for line in long:
        print(f"{line}: name it in at most {NAME} characters, and say the rest in a docstring")
    print(f"{len(found)} suppressions, {len(bare)} without a reason; {len(long)} long names of tests")
    return bool(bare or long)


def table(houses: list[tuple[str, House]]) -> str:
    """Return the measures as Markdown, a column for each house."""
    columns = [measures(house) for _, house in houses]
    rows = [["", *(name for name, _ in houses), "at most"]]
    rows += [
        [each[0].name, *(measure.figure for measure in each), each[0].limit] for each in zip(*columns, strict=True)
    ]
    for room in sorted({room for _, house in houses for room in house.rooms}):
        rows.append([f"lines of `{room}`", *(f"{house.rooms.get(room, 0):,}" for _, house in houses), ""])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", default=["."], metavar="PLACE", help="a folder, or a revision of git")
    parser.add_argument("--check", action="store_true", help="only what must hold, and fails where it does not")
    parser.add_argument("--details", action="store_true", help="show what is behind each figure of the last place")
    asked = parser.parse_args()
    if asked.check:
        return check()
    with tempfile.TemporaryDirectory() as scratch:
        houses = [(place if place != "." else "here", opened(place, Path(scratch))) for place in asked.places]
    print(table(houses))
    for measure in measures(houses[-1][1]) if asked.details else ():
        if measure.details:
            print(f"\n{measure.name}", *measure.details, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
