"""Rows of a store's tables and objects as entries and changes, and the error for a row that no release wrote."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from checkpoint.entries import Entry, check_unicode
from checkpoint.errors import CorruptState, StoreError
from checkpoint.stores.history import moment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAX_VERSION = (1 << 63) - 2
"""The highest version from which a commit can count on, in every store."""


def entries_by_key(rows: Iterable[tuple[Any, ...]]) -> dict[str, Entry] | None:
    """Return entries by their key from rows in the order of `Entry`; None: one is damaged, `refuse_rows` says which.

    Fast, for there may be hundreds of thousands.
    """
    collecting = gc.isenabled()
    entries: dict[str, Entry] = {}
    make = Entry._make
    try:
        gc.disable()  # entries are in no cycles, and looking for some takes a sixth of the time
        for row in rows:
            key, value, created, updated, run, version = row
            texts = type(key) is type(value) is type(created) is type(updated) is str
            if not (texts and type(version) is int and version > 0 and (run is None or type(run) is str)):
                return None
            entries[key] = make(row)
        return entries
    finally:
        if collecting:
            gc.enable()


def check_entry(where: str, state_key: str, row: Sequence[object]) -> None:
    """Refuse a row, in the order of `Entry`, that is no entry; `where` names the file, table or object that holds it.

    Raises:
        CorruptState: a field is not what it must be.

    """
    for (field, wanted, fits), value in zip(_ENTRY, row, strict=True):
        if not fits(value):
            refuse_row(where, state_key, row, f"its {field} is {_kind(value)}, not {wanted}")


def check_change(where: str, state_key: str, row: Sequence[object]) -> None:
    """Refuse a row, in the order of `history.change_of`, that is no change; `where` as above.

    Raises:
        CorruptState: a field is not what it must be.

    """
    for (field, wanted, fits), value in zip(_CHANGE, row, strict=True):
        if not fits(value):
            refuse_row(where, state_key, row, f"in its history, the {field} is {_kind(value)}, not {wanted}")


def refuse_rows(
    where: str,
    state_key: str,
    rows: Iterable[Sequence[object]],
    check: Callable[[str, str, Sequence[object]], None] = check_entry,
) -> NoReturn:
    """Raise the error for the first damaged one of some rows; they are never taken for none.

    Raises:
        CorruptState: a field is not what it must be.
        StoreError: none is damaged any more.

    """
    for row in rows:
        check(where, state_key, row)
    raise StoreError(f"what is stored of {state_key!r} in {where} was damaged a moment ago, and is not now: try again")


def refuse_row(where: str, state_key: str, row: Sequence[object], said: str) -> NoReturn:
    """Raise the error for a damaged row; the first of its fields are the key and the value."""
    key = row[0] if isinstance(row[0], str) else repr(row[0])
    value = row[1] if isinstance(row[1], str) and is_text(row[1]) else None
    raise CorruptState(state_key, key, value, where) from ValueError(said)


def is_text(value: object) -> bool:
    """Tell whether a value is text that UTF-8 can carry."""
    try:
        check_unicode("it", value)  # type: ignore[arg-type]  # which is what it tells
    except (TypeError, ValueError):
        return False
    return True


def is_version(value: object) -> bool:
    """Tell whether a value is a version that a commit may have given."""
    return type(value) is int and 0 < value <= MAX_VERSION + 1


def _is_text_or_none(value: object) -> bool:
    return value is None or is_text(value)


def _is_time(value: object) -> bool:
    return moment_of(value) is not None


def _is_number(value: object) -> bool:
    return type(value) is int


def _kind(value: object) -> str:
    """Return what a value is, in words; text is not shown."""
    if value is None or value is ...:
        return "missing"
    if isinstance(value, str):
        return "other text" if is_text(value) else "text that is not UTF-8"
    if isinstance(value, int | float):
        return f"the {'number' if type(value) is not bool else 'word'} {value!r:.40}"
    return _KINDS.get(type(value).__name__, type(value).__name__)


_KINDS = {"list": "a list", "dict": "an object"}


_Field: TypeAlias = "tuple[str, str, Callable[[object], bool]]"

_TEXT, _VERSION = ("text", is_text), ("a version", is_version)
_MAYBE = ("text or nothing", _is_text_or_none)
_ENTRY: tuple[_Field, ...] = (
    ("key", *_TEXT),
    ("value", *_TEXT),
    ("created_at", *_TEXT),
    ("updated_at", *_TEXT),
    ("run", *_MAYBE),
    ("version", *_VERSION),
)
_CHANGE: tuple[_Field, ...] = (
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
)
