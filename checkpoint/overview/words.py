"""Stored values as text for people and as documents for programs."""

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
    """Return the cursor in a value; None if the value is opaque."""
    try:
        return codec.decode(value)
    except ValueError:
        return None


def json_of(content: Any, indent: int | None = None) -> str:
    """Return JSON, on one line or several, with terminal control characters escaped."""
    if indent is None:
        return printable(_IN_A_LINE(content))
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=(",", ": "))
    return "\n".join(map(printable, text.split("\n")))  # the newlines between fields


_IN_A_LINE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def readable(value: str) -> str:
    """Return a value for people: a cursor as JSON, an opaque value as a JSON string."""
    cursor = cursor_of(value)
    return json_of(value if cursor is None else cursor)


def readable_in_short(value: str) -> str:
    """Return a value for people on one line, with only the number of the rows that a stream remembers."""
    cursor = cursor_of(value)
    return readable(value) if cursor is None else json_of(in_short(cursor))


def in_short(cursor: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a cursor with the rows that a stream remembers replaced by their number."""
    seen: Any = cursor.get(SEEN)
    try:
        count = len(seen["rows"]) + (len(seen["ahead"]["rows"]) if "ahead" in seen else 0)
    except (TypeError, KeyError):  # no rows are remembered, or no stream wrote the cursor
        return cursor
    return {**cursor, SEEN: count}


def told_value(value: str | None) -> dict[str, Any] | None:
    """Return a value for programs; None if there is none."""
    return None if value is None else {"value": value, "cursor": cursor_of(value)}


def told_entry(namespace: str, name: Mapping[str, str], entry: Entry) -> dict[str, Any]:
    """Return the entry of a key or member for programs."""
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
    """Return a number with its noun, such as `3 keys`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def some(keys: list[str], most: int = 3) -> str:
    """Return the first few keys, and how many more there are."""
    return first([repr(key) for key in keys], most)


def first(said: list[str], most: int = 3) -> str:
    """Return the first few texts, and how many more there are."""
    more = [f"{len(said) - most:,} more"] if len(said) > most else []
    return ", ".join([*said[:most], *more])


def age(moment: str | None) -> str:
    """Return how long ago an ISO 8601 time was; a dash if it is unknown."""
    seconds = seconds_since(moment)
    return "-" if seconds is None else span(seconds)


_UNITS = (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1), ("s", 1, "", 1))


def span(seconds: float) -> str:
    """Return a length of time such as `40 s`, `3 h 20 min` or `12 d`; a negative one as `in 3 min`.

    Uses the largest unit and, if that is below ten, the next one too.
    """
    left = int(abs(seconds))
    unit, size, smaller, least = next((each for each in _UNITS if left >= each[1]), _UNITS[-1])
    number, rest = divmod(left, size)
    more = rest // least if number < 10 else 0
    whole = f"{number:,} {unit} {more} {smaller}" if more else f"{number:,} {unit}"
    return f"in {whole}" if seconds <= -1 else whole
