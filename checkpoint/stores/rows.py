"""Converts rows of tables and objects into entries and changes, and raises the error for a damaged row."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from checkpoint.entries import Entry, check_unicode
from checkpoint.errors import CorruptState, StoreError
from checkpoint.stores.history import datetime_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAX_VERSION = (1 << 63) - 2
"""The highest version that every store can still increment."""


def is_text(value: object) -> bool:
    """Whether a value is a str that UTF-8 can encode."""
    try:
        check_unicode("it", value)  # type: ignore[arg-type]  # which is what it tells
    except (TypeError, ValueError):
        return False
    return True


def is_version(value: object) -> bool:
    """Whether a value is a valid version."""
    return type(value) is int and 0 < value <= MAX_VERSION + 1


def _is_text_or_none(value: object) -> bool:
    return value is None or is_text(value)


def _is_time(value: object) -> bool:
    return datetime_of(value) is not None


def _is_number(value: object) -> bool:
    return type(value) is int


class Columns(NamedTuple):
    """The fields of a row."""

    whose: str
    """The beginning of an error: what they are fields of."""
    fields: tuple[tuple[str, str, Callable[[object], bool]], ...]
    """The name of each, what it must be, and whether a value is that."""


_TEXT, _VERSION = ("text", is_text), ("a version", is_version)
_MAYBE = ("text or nothing", _is_text_or_none)

ENTRY: Final = Columns(
    "its",
    (
        ("key", *_TEXT),
        ("value", *_TEXT),
        ("created_at", *_TEXT),
        ("updated_at", *_TEXT),
        ("run", *_MAYBE),
        ("version", *_VERSION),
    ),
)
"""Rows in the order of `Entry`."""
CHANGE: Final = Columns(
    "in its history, the",
    (
        ("key", *_TEXT),
        ("value before", *_MAYBE),
        ("value after", *_MAYBE),
        ("version", *_VERSION),
        ("time", "a time", _is_time),
        ("run", *_MAYBE),
        ("host", *_TEXT),
        ("process", "a number", _is_number),
        ("reason", *_MAYBE),
        ("writer", *_MAYBE),
    ),
)
"""Rows in the order of `history.change_of`."""


def entries_by_key(rows: Iterable[tuple[Any, ...]]) -> dict[str, Entry] | None:
    """Return entries by key from rows in the order of `Entry`; None: one is damaged, and `refuse_rows` says which."""
    collects = gc.isenabled()
    try:
        try:
            gc.disable()  # entries form no cycles, and the search for them takes a quarter of the time
            return _collected(rows)
        finally:
            if collects:
                gc.enable()
    finally:  # once more, as a signal handler's exception may have come before the first one
        if collects:
            gc.enable()


def _collected(rows: Iterable[tuple[Any, ...]]) -> dict[str, Entry] | None:
    """Do so fast, because there may be hundreds of thousands."""
    entries: dict[str, Entry] = {}
    make = Entry._make
    for row in rows:
        key, value, created, updated, run, version = row
        texts = type(key) is type(value) is type(created) is type(updated) is str
        if not (texts and type(version) is int and version > 0 and (run is None or type(run) is str)):
            return None
        entries[key] = make(row)
    return entries


def refuse_rows(where: str, state_key: str, rows: Iterable[Sequence[object]], columns: Columns = ENTRY) -> NoReturn:
    """Raise the error for the first damaged row; damaged rows never count as absent.

    Raises:
        CorruptState: a field is invalid.
        StoreError: no row is damaged any more.

    """
    for row in rows:
        check_row(where, state_key, row, columns)
    raise StoreError(f"a stored row of {state_key!r} in {where} was damaged a moment ago, and no longer is: try again")


def check_row(where: str, state_key: str, row: Sequence[object], columns: Columns) -> None:
    """Refuse a row with an invalid field; `where` names the file, table or object.

    Raises:
        CorruptState: a field is invalid.

    """
    for (field, wanted, fits), value in zip(columns.fields, row, strict=True):
        if not fits(value):
            refuse_row(where, state_key, row, f"{columns.whose} {field} is {_kind(value)}, not {wanted}")


def refuse_row(where: str, state_key: str, row: Sequence[object], said: str) -> NoReturn:
    """Raise the error for a damaged row; its first two fields are the key and the value."""
    key = row[0] if isinstance(row[0], str) else repr(row[0])
    value = row[1] if isinstance(row[1], str) and is_text(row[1]) else None
    raise CorruptState(state_key, key, value, where) from ValueError(said)


def _kind(value: object) -> str:
    """Describe a value in words, without showing text."""
    if value is None or value is ...:
        return "missing"
    if isinstance(value, str):
        return "other text" if is_text(value) else "text that is not UTF-8"
    if isinstance(value, int | float):
        return f"the {'number' if type(value) is not bool else 'word'} {value!r:.40}"
    return _KINDS.get(type(value).__name__, type(value).__name__)


_KINDS = {"list": "a list", "dict": "an object"}
