"""Checks for values that are stored by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from checkpoint.overview import words
from checkpoint.overview.namespaces import Name, members_in
from checkpoint.streams.stored import BESIDE, WrongShapeError, is_value, read_state
from checkpoint.streams.values import Scale, shorten

if TYPE_CHECKING:
    from checkpoint import codec
    from checkpoint.overview.namespaces import Layout, Namespace


def check_settable(there: Namespace, name: Name, value: str | None, *, raw: bool = False) -> None:
    """Refuse a value that would hide a group, or that the stream of the stored cursor could not read.

    None means the value is not known yet.
    """
    group = there.groups.get(name.key)
    if name.member is None:
        refused = group is not None and _hides(group, value)
    else:
        refused = group is None and Name(name.key) in there.names
    if refused:
        raise click.ClickException(there.absent(*name))
    cursor = None if value is None or raw else words.cursor_of(value)
    if cursor is not None and (why := unreadable(words.cursor_of(there.value(name) or ""), cursor)):
        raise click.ClickException(f"the job's stream could not read this as {name.quoted}: {why}; nothing was written")


def _hides(group: Layout, value: str | None) -> bool:
    """Tell whether a value under a group's name hides its members; in version 1, one with members does not."""
    if not group.is_version_1:
        return True
    return value is not None and len(group.members) > 1 and members_in(value) is None


def unreadable(before: codec.Cursor | None, after: codec.Cursor) -> str | None:
    """Return why the stream that stored a cursor cannot read its replacement; None means it can.

    A stream's cursor has one field for the position and a few known ones; a cursor set by the job may be anything.
    """
    before = before or {}
    fields, known = _position_names(after), _position_names(before)
    if len(fields) > 1 or len(known) > 1:
        return None
    field = next(iter([*fields, *known]), "")
    old = before.get(field)
    if not after:
        return "it has no position; `checkpoint clear` deletes the key" if is_value(old) else None
    was_position = fields == known and is_value(old)
    if was_position or len(fields) < len(after):
        return _wrong_shape(after, field) or (_apart(field, old, after[field]) if was_position else None)
    return None


def _position_names(cursor: codec.Cursor) -> list[str]:
    """Return the fields of a cursor that may be its position."""
    return [name for name in cursor if name not in BESIDE]


def _wrong_shape(cursor: codec.Cursor, field: str) -> str | None:
    """Return why a cursor does not have the shape that a stream stores; None if it has."""
    try:
        read_state("it", cursor, field)
    except WrongShapeError as error:
        return str(error)
    except ValueError:  # belongs to another field
        return None
    return None


def _apart(field: str, old: Any, new: Any) -> str | None:
    """Return why two positions of a field do not compare; None if they do, or if their kinds are unknown."""
    kind, found = _kind(old), _kind(new)
    if kind is None:  # cursor_format= defines what it is
        return f"its {field!r} was text, and is not text now" if isinstance(old, str) != isinstance(new, str) else None
    if found == kind or {kind, found} == {"instant", "wall"}:  # timezone= may define its time zone
        return None
    what = "a number" if kind == "number" else "a time"
    return f"its {field!r} was {what}, {shorten(old)}, and {shorten(new)} is not one"


def _kind(position: Any) -> str | None:
    """Return the kind that a position shows by its form; None if it shows none."""
    scale = Scale("it")
    try:
        scale.settle(position)
    except (TypeError, ValueError):
        return None
    return scale.kind
