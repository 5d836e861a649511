"""What the verbs show: tables and lines for people, documents for programs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import contextmanager
from datetime import datetime, timezone
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import click

from checkpoint import codec
from checkpoint.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.text import Text

    from checkpoint.entries import Entry

_WIDE = 10_000
_LEAST = 10


def console(*, stderr: bool = False) -> Console:
    """Return the screen: as wide as the terminal, and without an end where its text goes to another program."""
    from rich.console import Console  # slow, and a program's document needs none

    wide = None if os.environ.get("COLUMNS") or (sys.stderr if stderr else sys.stdout).isatty() else _WIDE
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr, width=wide)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, wide: str, right: Sequence[str] = ()) -> None:
    """Show a table; the column `wide` is cut where the terminal is too narrow, the columns `right` are numbers.

    Where lines have no end `wide` is not padded to its longest cell either. Put together here: rich's own table takes
    half a millisecond a row.
    """
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    screen = console()
    cells = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    index = columns.index(wide)
    room = max(screen.width - sum(widths) - 2 * (len(widths) - 1) + widths[index], _LEAST)
    widths[index] = 0 if screen.width == _WIDE else min(widths[index], room)
    lines: list[str] = []
    for row in cells:
        if cell_len(row[index]) > room:
            row[index] = set_cell_size(row[index], room - 1) + "…"
        padded = (
            " " * (width - cell_len(cell)) + cell if column in right else cell + " " * (width - cell_len(cell))
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    screen.print(Text(lines[0], style="bold"))
    if lines[1:]:
        screen.out("\n".join(lines[1:]), highlight=False)


def document(content: Any) -> None:
    """Write a document for a program: JSON in UTF-8."""
    write_text(json_of(content, indent=2))


def write_text(text: str) -> None:
    """Write a text as it is, and a newline, in UTF-8 whatever the terminal speaks."""
    click.echo(text.encode())


def write_file(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all; devices and pipes as they are."""
    if file.exists() and not file.is_file():
        file.write_bytes(content)
        return
    target = file.resolve()  # a link stays one
    draft = target.with_name(f".{token_hex(8)}.new")
    try:
        with draft.open("xb") as new:
            if target.exists():
                shutil.copymode(target, draft)
            new.write(content)
            new.flush()
            os.fsync(new.fileno())
        draft.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error  # which the draft is not
    finally:
        draft.unlink(missing_ok=True)


def json_of(content: Any, indent: int | None = None) -> str:
    """Return JSON, on one line or on lines of its own, in which nothing is left that a terminal would obey."""
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=(",", ": " if indent else ":"))
    return "\n".join(map(printable, text.split("\n")))  # the newlines between members


def cursor_of(value: str) -> codec.Cursor | None:
    """Return the cursor that a value is, None where it is opaque."""
    try:
        return codec.decode(value)
    except ValueError:
        return None


def readable(value: str) -> str:
    """Return a value as people read it: the cursor's JSON, or an opaque value as a JSON string."""
    cursor = cursor_of(value)
    return json_of(value if cursor is None else cursor)


def told_value(value: str | None) -> dict[str, Any] | None:
    """Return a value as programs read it; None where there is none."""
    return None if value is None else {"value": value, "cursor": cursor_of(value)}


def told_entry(namespace: str, name: Mapping[str, str], entry: Entry) -> dict[str, Any]:
    """Return what is stored under a name, a key or a member of one, as programs read it."""
    return {
        "namespace": namespace,
        **name,
        **(told_value(entry.value) or {}),
        "created_at": entry.created_at,
        "updated_at": entry.updated_at,
        "run_id": entry.sync_job_run_id,
        "version": entry.version,
    }


Changed = tuple[str, "str | None", "str | None"]
"""What is changed, the value it had, and the value it gets; None: absent."""


def show_changes(changes: Iterable[Changed]) -> None:
    """Show changes the way `diff` does: a line that goes, a line that comes."""
    from rich.text import Text

    screen = console()
    changes = list(changes)
    width = max((len(printable(key)) for key, _, _ in changes), default=0)
    for key, before, after in changes:
        for sign, value, style in (("-", before, "red"), ("+", after, "green")):
            if value is not None:
                screen.print(Text(f"{sign} {printable(key):{width}}  {printable(readable(value))}", style=style))


def count(number: int, what: str) -> str:
    """Return a number and what it is of, such as `3 keys`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def some(keys: list[str], most: int = 3) -> str:
    """Return the first of some keys, and how many more there are."""
    more = [f"{len(keys) - most:,} more"] if len(keys) > most else []
    return ", ".join([*(repr(key) for key in keys[:most]), *more])


def age(moment: str | None) -> str:
    """Return how long ago an ISO 8601 time was, in its largest unit; a dash where nobody told."""
    then = instant(moment)
    return "-" if then is None else span((now() - then).total_seconds())


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(timezone.utc)


def instant(moment: str | None) -> datetime | None:
    """Return the time that a store told, None where it told none that can be read."""
    try:
        then = datetime.fromisoformat((moment or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    return then if then.tzinfo is not None else then.replace(tzinfo=timezone.utc)


def span(seconds: float) -> str:
    """Return a length of time in its largest whole unit, such as `3 min`; one of the future as `in 3 min`."""
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    unit, size = next((each for each in units if abs(seconds) >= each[1]), units[-1])
    whole = f"{int(abs(seconds) / size):,} {unit}"
    return f"in {whole}" if seconds <= -1 else whole


@contextmanager
def progress(what: str) -> Generator[Callable[[int, int, str], None]]:
    """Show how far something is where somebody is looking; call it with done, total and what is at work."""
    from rich.progress import Progress

    screen = console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def told(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=printable(f"{what} {name}"))

        yield told


def warn(text: str) -> None:
    """Say something beside what the verb shows, where a program that reads that does not see it."""
    click.echo(printable(text), err=True)


def say(text: str | Text) -> None:
    """Say how it went, in a line."""
    console().print(printable(text) if isinstance(text, str) else text)
