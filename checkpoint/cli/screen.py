"""Output of the verbs: tables and lines for people, documents for programs."""

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


_WIDE = 10_000
_LEAST = 10
_SHARE = 4
"""The wide column of a table gets 1/4 of the terminal's width if it needs it; names beside it are cut instead."""

_PADDED = 60
"""In a file, the wide column of a table is padded to this width; a longer cell shifts the cells after it."""


def width() -> int:
    """Return the width of the terminal; unlimited if another program reads the output."""
    if os.environ.get("COLUMNS") or sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return _WIDE


_STYLES = {"bold": "1", "red": "31", "green": "32"}


def write_line(text: str, style: str = "") -> None:
    """Write a line unchanged, in a style if the output is a terminal."""
    # By hand: rich takes a fifth of the time of a short command.
    if style and _has_styles():
        text = f"\x1b[{_STYLES[style]}m{text}\x1b[0m"
    sys.stdout.write(f"{text}\n")


def _has_styles() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in {"dumb", "unknown"} or sys.platform == "win32"
    return sys.stdout.isatty() and not plain


def told(show: Callable[[], object]) -> bool:
    """Write output; False: the reader has gone, and further output is discarded."""
    try:
        show()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # also what Python flushes at exit
        return False
    return True


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    wide: str,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Show a table; the column `wide` is cut if the terminal is too narrow, the columns `right` are right-aligned.

    If lines are unlimited, `wide` is padded up to a limit. Names that are still too long for the terminal are cut in
    the middle, except in the columns `whole`. Written by hand: rich's own table takes half a millisecond a row.
    """
    cells = [list(columns), *(list(map(printable, row)) for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    index, screen = columns.index(wide), width()
    names = [n for n, column in enumerate(columns) if column and column not in (wide, *right, *whole)]
    left = screen - sum(widths) - 2 * (len(widths) - 1) + widths[index]
    from_names = sum(max(widths[n] - _LEAST, 0) for n in names)
    room = max(left, _LEAST, min(screen // _SHARE, left + from_names))
    if widths[index] > room:
        for row in cells:
            if cell_len(row[index]) > room:
                row[index] = f"{_cells(row[index], room - 1)}…"
    widths[index] = min(widths[index], _PADDED if screen == _WIDE else room)
    _narrow(cells, widths, screen, names)
    padded = [
        _padded(column, size, at_right=name in right)
        for name, column, size in zip(columns, zip(*cells, strict=True), widths, strict=True)
    ]
    lines = ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
    write_line(lines[0], "bold")
    if lines[1:]:
        write_line("\n".join(lines[1:]))


def cell_len(text: str) -> int:
    """Return the width of a text in terminal columns."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len as measured  # Chinese characters take two columns, combining marks none

    return measured(text)


def _cells(text: str, room: int) -> str:
    """Return the beginning of a text that fills this many columns."""
    if text.isascii():
        return text[:room]
    from rich.cells import set_cell_size

    return set_cell_size(text, room)


def _padded(column: Sequence[str], size: int, *, at_right: bool) -> list[str]:
    """Return the cells, each padded to its width."""
    pad = str.rjust if at_right else str.ljust
    return [pad(cell, size + len(cell) - cell_len(cell)) for cell in column]


def _narrow(cells: list[list[str]], widths: list[int], width: int, columns: Sequence[int]) -> None:
    """Cut cells of these columns in the middle until a line fits, if it can; the first column, the name, comes last."""

    def cut(cell: str, room: int) -> str:
        if cell_len(cell) <= room:
            return cell
        from rich.cells import chop_cells

        end = chop_cells(cell[::-1], (room - 1) // 2)[0][::-1]
        return f"{chop_cells(cell, room - 1 - cell_len(end))[0]}…{end}"

    for some in (columns[1:], columns[:1]):
        room = width - 2 * (len(widths) - 1) - sum(each for n, each in enumerate(widths) if n not in some)
        most = max((widths[n] for n in some), default=0)
        while most > _LEAST and sum(min(widths[n], most) for n in some) > room:
            most -= 1
        for column in (n for n in some if widths[n] > most):
            widths[column] = most
            for row in cells:
                row[column] = cut(row[column], widths[column])


def document(content: Any) -> None:
    """Write a document for a program: JSON in UTF-8."""
    write_text(words.json_of(content, indent=2))


def write_text(text: str) -> None:
    """Write a text unchanged, and a newline, in UTF-8 whatever the encoding of the terminal."""
    click.echo(text.encode())


def write_file(file: Path, content: bytes) -> None:
    """Write a file atomically; write to devices and pipes directly."""
    if file.exists() and not file.is_file():
        file.write_bytes(content)
        return
    target = file.resolve()  # a link stays a link
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
        raise OSError(error.errno, error.strerror, str(file)) from error  # the draft is not
    finally:
        draft.unlink(missing_ok=True)


Changed = tuple[str, "str | None", "str | None"]
"""The name, its old value and its new value; None: absent."""


def show_changes(changes: Iterable[Changed]) -> None:
    """Show changes like `diff`: a line with the old value, a line with the new one.

    Of the rows that a stream remembers, only the number is shown; if only these rows differ, a line says so.
    """
    changes = list(changes)
    room = max((len(printable(key)) for key, _, _ in changes), default=0)
    for key, before, after in changes:
        old, new = (None if value is None else words.readable_in_short(value) for value in (before, after))
        other = "  (other rows)" if old == new and before != after else ""
        for sign, value, style in (("-", old, "red"), ("+", new and f"{new}{other}", "green")):
            if value is not None:
                write_line(f"{sign} {printable(key):{room}}  {printable(value)}", style)


@contextmanager
def progress(what: str) -> Generator[Callable[[int, int, str], None]]:
    """Show progress if the output is a terminal; call the result with done, total and the current item."""
    if not sys.stderr.isatty():
        yield lambda _done, _total, _name: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def told(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=printable(f"{what} {name}"))

        yield told


def warn(text: str) -> None:
    """Write a warning to stderr, apart from the verb's output."""
    click.echo(printable(text), err=True)


def say(text: str) -> None:
    """Report the outcome in one line."""
    write_line(printable(text))


def say_wrapped(text: str) -> None:
    """Write a long sentence, wrapped to the terminal."""
    for line in wrap(printable(text), width(), break_on_hyphens=False):
        write_line(line)
