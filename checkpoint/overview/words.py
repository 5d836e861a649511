"""What is stored, in words for people and documents for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from checkpoint import codec
from checkpoint.errors import printable
from checkpoint.overview.moments import seconds_since
from checkpoint.streams.stored import SEEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from checkpoint.entries import Entry


def cursor_of(value: str) -> codec.Cursor | None:
    """Return the cursor that a value is, None where it is opaque."""
    try:
        return codec.decode(value)
    except ValueError:
        return None


def json_of(content: Any, indent: int | None = None) -> str:
    """Return JSON, on one line or on lines of its own, in which nothing is left that a terminal would obey."""
    if indent is None:
        return printable(_IN_A_LINE(content))
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=(",", ": "))
    return "\n".join(map(printable, text.split("\n")))  # the newlines between members


_IN_A_LINE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def readable(value: str) -> str:
    """Return a value as people read it: the cursor's JSON, or an opaque value as a JSON string."""
    cursor = cursor_of(value)
    return json_of(value if cursor is None else cursor)


def readable_in_short(value: str) -> str:
    """Return a value as people read it in a line: of the rows that a stream remembers only how many there are."""
    cursor = cursor_of(value)
    return readable(value) if cursor is None else json_of(in_short(cursor))


def in_short(cursor: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a cursor with the number of the rows that a stream remembers in the place of these rows."""
    seen: Any = cursor.get(SEEN)
    try:
        count = len(seen["rows"]) + (len(seen["ahead"]["rows"]) if "ahead" in seen else 0)
    except (TypeError, KeyError):  # none are remembered, or it is no stream's cursor
        return cursor
    return {**cursor, SEEN: count}


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


def count(number: int, what: str) -> str:
    """Return a number and what it is of, such as `3 keys`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def some(keys: list[str], most: int = 3) -> str:
    """Return the first of some keys, and how many more there are."""
    return first([repr(key) for key in keys], most)


def first(said: list[str], most: int = 3) -> str:
    """Return the first of some texts, and how many more there are."""
    more = [f"{len(said) - most:,} more"] if len(said) > most else []
    return ", ".join([*said[:most], *more])


def age(moment: str | None) -> str:
    """Return how long ago an ISO 8601 time was; a dash where nobody told."""
    seconds = seconds_since(moment)
    return "-" if seconds is None else span(seconds)


_UNITS = (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1), ("s", 1, "", 1))


def span(seconds: float) -> str:
    """Return a length of time such as `40 s`, `3 h 20 min` or `12 d`; one of the future as `in 3 min`.

    In its largest unit, and where that is below ten in the next one too.
    """
    left = int(abs(seconds))
    unit, size, smaller, least = next((each for each in _UNITS if left >= each[1]), _UNITS[-1])
    number, rest = divmod(left, size)
    more = rest // least if number < 10 else 0
    whole = f"{number:,} {unit} {more} {smaller}" if more else f"{number:,} {unit}"
    return f"in {whole}" if seconds <= -1 else whole
