"""A namespace as a document, and back: what `checkpoint export` writes and `import` reads.

    json, values      {"contacts": …, "__group__": {"accounts": {"a17": …}}}
                      in json a cursor is an object, and any other value its text
    other systems'    as in `checkpoint.formats`; without groups
    several           {"__namespaces__": {"crm_a": …, "crm_b": …}}, each in its format

`__group__` and `__namespaces__` are reserved, so a group is never taken for a cursor that holds objects, nor several
namespaces for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from checkpoint import codec
from checkpoint.entries import GROUP_PREFIX, RESERVED
from checkpoint.neighbours import documents as formats
from checkpoint.neighbours.positions import positions
from checkpoint.overview import words
from checkpoint.overview.namespaces import Name
from checkpoint.stores.base import check_changes, check_name

if TYPE_CHECKING:
    from checkpoint.neighbours.positions import Tool
    from checkpoint.overview.namespaces import Namespace

VALUES = "values"
"""The format that holds every value as its stored text, opaque values included."""

GROUPS = GROUP_PREFIX.rstrip(".")
"""The field of a document that holds the groups."""


NAMESPACES = f"{RESERVED}namespaces__"
"""The only field of a document that holds several namespaces."""


def document_of(there: Namespace, form: str) -> Any:
    """Return a namespace as a document; end with an error if the format cannot hold something in it."""
    values = {name: entry.value for name, entry in sorted(there.names.items(), key=lambda item: item[0].said)}
    if form == VALUES:
        return _folded(values)
    if form == "json":
        return _folded({name: _content(value) for name, value in values.items()})
    cursors = {name: cursor for name, value in values.items() if (cursor := words.cursor_of(value)) is not None}
    for name in values.keys() - cursors.keys():
        raise click.ClickException(
            f"{name.quoted} in {there.state_key!r} holds no cursor, and the format {form} holds nothing else: "
            f"export --format {VALUES}"
        )
    return _dumped(there, cursors, form)


def _content(value: str) -> codec.Cursor | str:
    cursor = words.cursor_of(value)
    return value if cursor is None else cursor


def _dumped(there: Namespace, cursors: dict[Name, codec.Cursor], form: str) -> Any:
    """Return a document in another system's format."""
    for name in cursors:
        if name.member is not None:
            raise click.ClickException(
                f"{name.key!r} in {there.state_key!r} is a group, and the format {form} has none: export --format json"
            )
    try:
        return formats.dump({name.key: cursor for name, cursor in cursors.items()}, cast("formats.Format", form))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def names_in(document: Any, form: str) -> dict[Name, str]:
    """Return the values in a document; end with an error if it is not in its format."""
    try:
        if form not in {VALUES, "json"}:
            cursors = formats.load(document, cast("formats.Format", form))
            return {Name(key): codec.encode(cursor) for key, cursor in cursors.items()}
        plain, groups = _plain_and_groups(document, form)
        if form == "json":
            formats.load({key: value for key, value in plain.items() if not isinstance(value, str)}, "json")
        values = {Name(key): _stored_value(value, form) for key, value in plain.items()}
        for group, members in groups.items():
            values |= {Name(group, member): _stored_value(value, form) for member, value in members.items()}
        for name, value in values.items():
            check_name("key", name.key)
            check_changes(VALUES, {name.member or name.key: value})
    except (ValueError, TypeError, RecursionError) as error:
        raise click.ClickException(f"this is not a document of the format {form}: {error}") from error
    return values


def tool_positions(document: Any, tool: Tool) -> dict[str, Any]:
    """Return the positions in a tool's state as a document in the format json; end with an error if it is not one."""
    try:
        return positions(document, tool)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"this is not a state of {tool}: {error}") from error


def _folded(values: dict[Name, Any]) -> dict[str, Any]:
    document = {name.key: value for name, value in values.items() if name.member is None}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name.member is not None:
            groups.setdefault(name.key, {})[name.member] = value
    return document | ({GROUPS: groups} if groups else {})


def _plain_and_groups(document: Any, form: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the plain keys of a document and the members of its groups."""
    if not isinstance(document, dict):
        raise ValueError("its values must be texts" if form == VALUES else "it must be an object")
    plain = dict(cast("dict[str, Any]", document))
    groups: Any = plain.pop(GROUPS, {})
    if not isinstance(groups, dict) or not all(
        isinstance(each, dict) for each in cast("dict[str, Any]", groups).values()
    ):
        raise ValueError(f"its {GROUPS!r} must hold, for each group, an object of its members")
    for key in (*plain, *cast("dict[str, Any]", groups)):
        if key.startswith(RESERVED):
            raise ValueError(f"{key!r} is reserved: it belongs to the library")
    return plain, cast("dict[str, dict[str, Any]]", groups)


def _stored_value(value: Any, form: str) -> str:
    if form == VALUES:
        if not isinstance(value, str):
            raise ValueError("its values must be texts")
        return value
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"a cursor must be an object, not {value!r:.40}")
    return codec.encode(cast("dict[str, Any]", value))
