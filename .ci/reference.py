"""The parts of the reference that are made from the code: public names, the help of every verb, the HTTP API."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PUBLIC = {
    "checkpoint": None,
    "checkpoint.stores.base": (
        "Atomic", "ReadsKeys", "ListsNamespaces", "KeepsHistory", "TellsTime", "TellsFacts", "HasTables", "HasDeadline",
        "JoinsTransactions",
    ),
    "checkpoint.codec": ("encode", "decode", "same", "canonical"),
    "checkpoint.streams.incremental": ("Stats",),
    "checkpoint.testing": None,
    "checkpoint.formats": None,
    "checkpoint.copying": None,
    "checkpoint.server": None,
}  # fmt: skip
"""Each public module, with its names; None: all that it exports."""

PAGES = {
    "api": ("checkpoint", "checkpoint.streams.incremental", "checkpoint.stores.base", "checkpoint.codec"),
    "api-testing": ("checkpoint.testing",),
    "api-more": ("checkpoint.formats", "checkpoint.copying", "checkpoint.server"),
}
"""Pages of the reference, and the modules that each of them describes."""

INTERNAL = {
    "Incremental": {
        "alone", "back", "claim", "claimed", "detach", "end", "ending", "held_elsewhere", "leave", "let_go", "live",
    },
    "Group": {"detach", "end", "live", "store_as"},
}  # fmt: skip
"""What a run calls of its streams and groups, and jobs do not."""

WIDTH = 100
SECTIONS = ("Args:", "Raises:", "Returns:", "Yields:")


def names(module: str) -> list[str]:
    """Return the public names of a module: those listed above, its `__all__`, or what it imports as itself."""
    home = import_module(module)
    if found := PUBLIC[module] or getattr(home, "__all__", None):
        return list(found)
    nodes = [node for node in ast.parse(inspect.getsource(home)).body if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in nodes for alias in node.names if alias.asname == alias.name]


def api(page: str) -> str:
    """Return what a page of the reference says of its modules, as Markdown."""
    parts: list[str] = []
    for module in PAGES[page]:
        doc = inspect.getdoc(import_module(module)) or ""
        parts += [f"## Module `{module}`", prose(doc.partition("\n\n")[0])]
        for name in names(module):
            parts += described(f"{module}.{name}", name, getattr(import_module(module), name))
    return "\n\n".join(parts) + "\n"


def described(path: str, name: str, value: Any) -> list[str]:
    """Return the parts of a page that describe a public name, and its members if it is a class."""
    if not inspect.isroutine(value) and not inspect.isclass(value):
        return [f"### {name}", f"`{path}` is `{_annotation(value)}`."]
    parts = [f"### {name}", code(signature(name, value)), prose(inspect.getdoc(value) or "")]
    if not isinstance(value, type):
        return parts
    internal = INTERNAL.get(name, set())
    if fields := [(field, text) for field, text in documented_fields(value) if field not in internal]:
        parts.append("\n".join(f"* `{field}`: {prose(text)}" for field, text in fields))
    for member, found in ((member, found) for member, found in members(value) if member not in internal):
        label = f"{name}.{member}"
        if isinstance(found, property):
            parts += [f"#### {label}", prose(inspect.getdoc(found) or "")]
        else:
            parts += [f"#### {label}()", code(signature(member, found)), prose(inspect.getdoc(found) or "")]
    return parts


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class, those of our own base classes included."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("checkpoint"):
            continue
        for name, value in vars(base).items():
            plain = getattr(value, "__func__", value)
            if name.startswith("_") or name in seen or not (inspect.isfunction(plain) or isinstance(plain, property)):
                continue
            seen.add(name)
            if inspect.getdoc(plain):
                yield name, plain


def documented_fields(kind: type) -> Iterator[tuple[str, str]]:
    """Yield the attributes of a class that have a string below them, as fields and in its constructor."""
    for base in kind.__mro__:
        if not base.__module__.startswith("checkpoint"):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):
            continue
        bodies = [tree.body, *(node.body for node in tree.body if getattr(node, "name", "") == "__init__")]
        for body in bodies:
            for target, said in itertools.pairwise(body):
                if isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant) and (field := _field(target)):
                    yield field, inspect.cleandoc(str(said.value.value))


def _field(node: ast.stmt) -> str | None:
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    if isinstance(target, ast.Name):
        name = target.id
    elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        name = target.attr
    else:
        return None
    return None if name.startswith("_") else name


def signature(name: str, value: Any) -> str:
    """Return how something is called, on one line where it fits, else an argument a line."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    shown = [each for each in found.parameters.values() if each.name not in ("self", "cls")]
    arguments = [_argument(each) for each in shown]
    if (first := next((at for at, each in enumerate(shown) if each.kind is each.KEYWORD_ONLY), None)) is not None and (
        not any(each.kind is each.VAR_POSITIONAL for each in shown)
    ):
        arguments.insert(first, "*")
    returned = "" if isinstance(value, type) else f" -> {_annotation(found.return_annotation)}"
    line = f"{name}({', '.join(arguments)}){returned}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in arguments) + f"){returned}"


def _argument(given: inspect.Parameter) -> str:
    stars = {given.VAR_POSITIONAL: "*", given.VAR_KEYWORD: "**"}.get(given.kind, "")
    text = f"{stars}{given.name}: {_annotation(given.annotation)}"
    if given.default is given.empty:
        return text
    default = f'"{given.default}"' if isinstance(given.default, str) else repr(given.default)
    return f"{text} = {'…' if default.startswith('<') else default}"


def _annotation(given: Any) -> str:
    """Return an annotation as it was written, without the modules of its types."""
    text = getattr(given, "__forward_arg__", given)
    text = text if isinstance(text, str) else "None" if text is None else inspect.formatannotation(text)
    return re.sub(r"\b(?:typing|collections\.abc|checkpoint(?:\.\w+)+|datetime|decimal)\.(?=[A-Z])", "", text)


def code(text: str) -> str:
    """Return a block of Python."""
    return f"```python\n{text}\n```"


def prose(doc: str) -> str:
    """Return a docstring as Markdown: its sections as lists, its drawings as they stand."""
    lines = [*inspect.cleandoc(doc).split("\n"), ""]
    parts: list[str] = []
    at = 0
    while at < len(lines):
        if lines[at] in SECTIONS:
            end = at + 1
            while end < len(lines) and (not lines[end] or lines[end].startswith("    ")):
                end += 1
            parts += ["", f"**{lines[at][:-1]}**", "", *_items(lines[at + 1 : end]), ""]
            at = end
        else:
            if lines[at].startswith("    ") and (not parts or not parts[-1].startswith("    ")):
                parts.append("")
            parts.append(lines[at])
            at += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip("\n")


def _items(lines: list[str]) -> Iterator[str]:
    for line in lines:
        text = line[4:]
        if not text.strip():
            continue
        if text.startswith("    "):
            yield f"    {text.strip()}"
        elif found := re.match(r"((?:\*{0,2}\w+(?:, )?)+): (.*)", text):
            yield f"* `{found[1]}`: {found[2]}"
        else:
            yield f"* {text}"


def verbs() -> str:
    """Return the help of every verb, as the command prints it."""
    import click

    from checkpoint.cli.command import checkpoint as command

    parts = []
    context = click.Context(command, info_name="checkpoint", max_content_width=WIDTH, terminal_width=WIDTH)
    for name, verb in [("", command), *command.commands.items()]:
        if verb.hidden:
            continue
        own = click.Context(verb, context, name, max_content_width=WIDTH, terminal_width=WIDTH) if name else context
        parts += [f"## {'checkpoint ' + name if name else 'The command'}", f"```text\n{verb.get_help(own)}\n```"]
    return "\n\n".join(parts) + "\n"


def document() -> dict[str, Any]:
    """Return the OpenAPI document of the server."""
    from checkpoint import MemoryStore
    from checkpoint.server import create_app

    return create_app(MemoryStore(), "a-token-for-the-document").openapi()


def calls() -> str:
    """Return the calls of the server, one a row, from its OpenAPI document."""
    rows = ["| call | | answers |", "|---|---|---|"]
    for path, methods in document()["paths"].items():
        for method, call in methods.items():
            said = " ".join((call.get("summary") or call.get("description") or "").split())
            rows.append(f"| `{method.upper()} {path}` | {said} | {', '.join(call['responses'])} |")
    return "\n".join(rows) + "\n"
