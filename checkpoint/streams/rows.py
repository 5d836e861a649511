"""What a stream reads of a row: its cursor value, its primary key, and the digest it is remembered by."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias, cast

import orjson

Field: TypeAlias = str | Callable[[Any], Any]
Primary: TypeAlias = str | Sequence[str] | Callable[[Any], Any]


def getter(field: Field) -> Callable[[Any], Any]:
    """Return what reads a field of a record, None where it has none; with dots it is a name first, then a path."""
    if callable(field):
        return field
    path = field.split(".")

    def get(record: Any) -> Any:
        try:
            return record[field]
        except KeyError:
            for name in path if len(path) > 1 else [field]:
                if record is None:
                    return None
                try:
                    record = record[name]
                except KeyError:
                    return None
            return record

    return get


def no_row(record: Any, field: str) -> str:
    """Return why nothing is read of what is no mapping."""
    return (
        f"a row is a mapping with {field!r}, not {type(record).__name__} ({reprlib.repr(record)}): pages() and "
        "filter() take lists of rows, track() and observe() one row; of other rows a callable can read the field"
    )


def primary_getter(primary: Primary | None) -> Callable[[Any], Any] | None:
    """Return what reads the primary key of a record; None where none was named."""
    if primary is None or callable(primary) or isinstance(primary, str):
        return None if primary is None else getter(primary)
    getters = [getter(name) for name in primary]
    return lambda record: [get(record) for get in getters]


def digest(primary: Any, instant: str, record: Any) -> str:
    """Return 8 bytes of BLAKE2b over a row's primary key, cursor instant and content, in hex."""
    return blake2b(_json([primary, instant, record]), digest_size=8).hexdigest()


def _json(content: Any) -> bytes:
    """Return a row as JSON that is the same in every process."""
    try:
        return orjson.dumps(content, _plain, orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # integers beyond 64 bits
        return repr(_canonical(content)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))  # type: ignore[redundant-cast]  # pyright needs it
    if isinstance(value, set | frozenset):
        return sorted(map(repr, cast("set[Any]", value)))
    return cast("Any", vars(value)) if hasattr(value, "__dict__") else str(value)


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)  # type: ignore[redundant-cast]  # pyright needs it
        return sorted((repr(key), repr(_canonical(item))) for key, item in mapping.items())
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in cast("list[Any]", value)]
    if isinstance(value, int | float | str | None):
        return value
    return _canonical(_plain(value))
