"""What the verbs show: tables and lines for people, documents for programs."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from secrets import token_hex
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from checkpoint.errors import printable
from checkpoint.overview import words

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.text import Text


_WIDE = 10_000
_LEAST = 10
_SHARE = 4
"""The wide column of a table has at least this part of the terminal's width: names beside it are cut instead."""

_PADDED = 60
"""Columns to which the wide column of a table is padded in a file; a longer cell pushes what comes after it."""


def console(*, stderr: bool = False) -> Console:
    """Return the screen: as wide as the terminal, and without an end where its text goes to another program."""
    from rich.console import Console  # slow, and a program's document needs none

    wide = None if os.environ.get("COLUMNS") or (sys.stderr if stderr else sys.stdout).isatty() else _WIDE

    class Screen(Console):
        """One that leaves a reader who has gone to whoever writes, where rich would end the program."""

        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704 - it is called where the error is handled

    return Screen(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr, width=wide)


def told(show: Callable[[], object]) -> bool:
    """Show something; False: whoever read it has gone, and what is shown from here on goes nowhere."""
    try:
        show()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end, too
        return False
    return True


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, wide: str, right: Sequence[str] = ()) -> None:
    """Show a table; the column `wide` is cut where the terminal is too narrow, the columns `right` are numbers.

    Where lines have no end `wide` is padded up to a limit only. Names that are still too long for the terminal are cut
    in their middle. Put together here: rich's own table takes half a millisecond a row.
    """
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    screen = console()
    cells = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    index = columns.index(wide)
    room = max(screen.width - sum(widths) - 2 * (len(widths) - 1) + widths[index], _LEAST, screen.width // _SHARE)
    widths[index] = min(widths[index], _PADDED if screen.width == _WIDE else room)
    _narrow(cells, widths, screen.width, [n for n, column in enumerate(columns) if column not in right and n != index])
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


def _narrow(cells: list[list[str]], widths: list[int], width: int, columns: Sequence[int]) -> None:
    """Cut cells of these columns in the middle until a line fits if it can; those of the first, which name it, last."""
    from rich.cells import cell_len, chop_cells

    def cut(cell: str, room: int) -> str:
        if cell_len(cell) <= room:
            return cell
        end = chop_cells(cell[::-1], (room - 1) // 2)[0][::-1]
        return f"{chop_cells(cell, room - 1 - cell_len(end))[0]}…{end}"

    for some in (columns[1:], columns[:1]):
        room = width - 2 * (len(widths) - 1) - sum(each for n, each in enumerate(widths) if n not in some)
        most = max((widths[n] for n in some), default=0)
        while most > _LEAST and sum(min(widths[n], most) for n in some) > room:
            most -= 1
        for column in some:
            widths[column] = min(widths[column], most)
            for row in cells:
                row[column] = cut(row[column], widths[column])


def document(content: Any) -> None:
    """Write a document for a program: JSON in UTF-8."""
    write_text(words.json_of(content, indent=2))


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


Changed = tuple[str, "str | None", "str | None"]
"""What is changed, the value it had, and the value it gets; None: absent."""


def show_changes(changes: Iterable[Changed]) -> None:
    """Show changes the way `diff` does: a line that goes, a line that comes.

    Of the rows that a stream remembers only their number is shown; where nothing else differs, that they do.
    """
    from rich.text import Text

    screen = console()
    changes = list(changes)
    width = max((len(printable(key)) for key, _, _ in changes), default=0)
    for key, before, after in changes:
        old, new = (None if value is None else words.readable_in_short(value) for value in (before, after))
        other = "  (other rows)" if old == new and before != after else ""
        for sign, value, style in (("-", old, "red"), ("+", new and f"{new}{other}", "green")):
            if value is not None:
                screen.print(Text(f"{sign} {printable(key):{width}}  {printable(value)}", style=style))


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


def say_wrapped(text: str) -> None:
    """Say a sentence that may be long, in lines that the terminal has room for."""
    for line in wrap(printable(text), console().width, break_on_hyphens=False):
        say(line)
