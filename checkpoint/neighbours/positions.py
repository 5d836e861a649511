"""Find the positions in other tools' state, for a job that continues where another tool stopped.

`checkpoint.neighbours.documents` keeps a document as it is. This module takes the positions out of it, as the cursors
of streams: `{"updated_at": "2024-05-01T10:00:00Z"}`. The result is a document in the format json, as `checkpoint
import` reads it. Partitions become members of a group; the name of a member is the values of its partition, joined by
`/`.

    singer, meltano   bookmarks; those of the Singer SDK (`replication_key`, `replication_key_value`, `partitions`).
                      If an unsorted stream was interrupted, its progress markers are ignored, and its last bookmark
                      is the position
    airbyte           stream states, and those with a state for each partition (`states`)
    dlt               `state.json` of a pipeline: the `last_value` of each incremental

Rows at a position come once more, because other tools remember delivered rows in other forms.

Sources: `singer_sdk.helpers._state` of the Singer SDK; `PerPartitionCursor` and `ConcurrentPerPartitionCursor` of the
Airbyte CDK; `dlt.common.typing.IncrementalColumnState` and `dlt.common.json` of dlt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from checkpoint import codec
from checkpoint.neighbours import documents
from checkpoint.neighbours.documents import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checkpoint.codec import Cursor

Tool: TypeAlias = Literal["singer", "airbyte", "meltano", "dlt"]
"""The tool that wrote the state."""

TOOLS: tuple[Tool, ...] = get_args(Tool)
"""The tools, by name."""

GROUPS = "__group__"
"""The member of a document that holds groups."""

_MARK = range(0xF026, 0xF02F)
"""dlt writes decimals, times, dates and others as text after one of these characters (`dlt.common.json`)."""


def positions(document: Any, tool: Tool) -> dict[str, Any]:
    """Return the positions in a tool's state as a document in the format json; `document` is not changed.

    Streams without a position are left out. A cursor of another shape than those above is returned as it is.

    Raises:
        ValueError: the document is not a state of that tool, or several positions would become one; the message says
            what is wrong, and where.

    """
    if tool not in TOOLS:
        raise ValueError(f"there is no tool {tool!r}: it is one of {', '.join(TOOLS)}")
    found: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for key, cursor in _dlt(document) if tool == "dlt" else _documented(document, tool):
        members = None if tool == "dlt" else _partitions(key, cursor)
        if members is None and (position := _position(cursor)):
            found[key] = position
        elif members:
            groups[key] = members
    return {**found, **({GROUPS: groups} if groups else {})}


def _documented(document: Any, tool: documents.Format) -> Iterator[tuple[str, Cursor]]:
    cursors = documents.load(document, tool)
    return ((key, cursors[key]) for key in documents.streams(cursors))


def _position(cursor: Cursor) -> Cursor:
    """Return the cursor of a stream; empty if there is no position."""
    if "replication_key" not in cursor and "starting_replication_value" not in cursor:
        return cursor
    field = cursor.get("replication_key")
    value = cursor.get("replication_key_value", cursor.get("starting_replication_value"))
    return {} if field is None or value is None else {field: value}


def _partitions(key: str, cursor: Cursor) -> dict[str, Cursor] | None:
    """Return the positions of a stream's partitions; None if it has no partitions."""
    if cursor.get("use_global_cursor") is True and cursor.get("states"):
        raise ValueError(
            f"{key!r} has one position for all of its partitions, {_state(cursor)}: give it to every member as its "
            "initial_value"
        )
    singer = isinstance(cursor.get("partitions"), list)
    found = cursor.get("partitions") if singer else cursor.get("states")
    if not isinstance(found, list):
        return None
    parts: list[Any] = [*found]
    name, place = ("context", _itself) if singer else ("partition", _cursor)
    members: dict[str, Cursor] = {}
    for number, part in enumerate(parts):
        where = f"partition {number} of {key!r}"
        member = _member(_object(_object(part, where).get(name), f"the {name!r} of {where}"))
        if member in members:
            raise ValueError(f"two partitions of {key!r} would both be the member {member!r}")
        if position := _position(place(part, where)):
            members[member] = position
    return members


def _itself(part: Cursor, _where: str) -> Cursor:
    return {"replication_key": None, **part}


def _cursor(part: Cursor, where: str) -> Cursor:
    return _object(part.get("cursor"), f"the 'cursor' of {where}")


def _state(cursor: Cursor) -> str:
    return codec.canonical(cast("Cursor", cursor.get("state") or {})).decode()


def _member(partition: Cursor) -> str:
    """Return the name of a partition's member; Airbyte's `parent_slice` is left out of it."""
    values = [value for name, value in partition.items() if name != "parent_slice"]
    return key_of("/".join(value if isinstance(value, str) else codec.canonical({"": value}).decode()[4:-1]
                           for value in values))  # fmt: skip


# dlt


def _dlt(document: Any) -> Iterator[tuple[str, Cursor]]:
    """Yield the resources of a pipeline that have a position; if a name comes again, with its source before it."""
    sources = _object(_object(document, "the document").get("sources"), "its 'sources'")
    seen: set[str] = set()
    for source, state in sources.items():
        for resource, cursor in _resources(state, source):
            name = f"{source}/{resource}" if resource in seen else resource
            seen.add(resource)
            if cursor:
                yield key_of(name), cursor


def _resources(state: Any, source: str) -> Iterator[tuple[str, Cursor]]:
    found = _object(_object(state, f"the source {source!r}").get("resources", {}), f"the resources of {source!r}")
    for resource, kept in found.items():
        columns = _object(_object(kept, f"the resource {resource!r}").get("incremental", {}), f"{resource!r}")
        values = {field: _object(column, f"{field!r} of {resource!r}").get("last_value")
                  for field, column in columns.items()}  # fmt: skip
        known = {field: _plain(value) for field, value in values.items() if value is not None}
        if len(known) > 1:
            raise ValueError(f"{resource!r} has several positions: {', '.join(known)}; a stream has one")
        yield resource, known


def _plain(value: Any) -> Any:
    """Return a value without the character that marks its type."""
    return value[1:] if isinstance(value, str) and value and ord(value[0]) in _MARK else value


def _object(value: Any, where: str) -> Cursor:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object")  # bad data
    return cast("Cursor", value)
