"""Encode cursors as the text that is stored, and decode that text; the only serialiser.

A stored value is standard, padded base64 (RFC 4648, section 4) of compact UTF-8 JSON (RFC 8259). Keys keep their order.

orjson handles the common case. But it also turns NaN into null, writes datetimes and UUIDs, reads 2**70 as a float, and
keeps the last of duplicate keys. So its result is used only if it is known to be exact: what it writes must be flat and
of plain types, or be read back as an equal cursor; what it reads must be written back as the same bytes. Everything
else goes through the standard library's json and strict checks.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode
from binascii import Error as BinasciiError
from binascii import a2b_base64, b2a_base64
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

Cursor: TypeAlias = dict[str, Any]
"""A JSON object: str keys, and values of str, int, float, bool, None, list and dict."""

MAX_DEPTH = 254
"""How many levels a cursor may be nested: as many as orjson writes."""


_all_exact = frozenset({str, int, bool, type(None)}).issuperset
"""Whether orjson writes values of all these types exactly or refuses them; not of floats, as it writes NaN as null."""


def encode(cursor: Mapping[str, Any]) -> str:
    """Return a cursor as the text that is stored.

    Raises:
        TypeError: the cursor is not a dict, or contains a value that JSON has no form for.
        ValueError: it contains NaN, an infinity, a cycle, too many levels, or text that is not valid Unicode.

    """
    return b2a_base64(_dumps(cursor), newline=False).decode()


def decode(value: str) -> Cursor:
    """Return the cursor in a stored text.

    URL-safe base64, base64 without padding and base64 with white space are read too. The text inside must be one JSON
    object without duplicate keys.

    Raises:
        ValueError: the value is not a cursor; the message says why.

    """
    return parse(_unbase64(value), "the text in its base64")


def parse(text: bytes, name: str = "it") -> Cursor:
    """Return the cursor in a JSON text (UTF-8), checked as `decode` does; error messages call the text `name`.

    Raises:
        ValueError: the text is not a cursor; the message says why.

    """
    try:
        cursor: Any = orjson.loads(text)
        if orjson.dumps(cursor) == text and isinstance(cursor, dict):
            return cast("Cursor", cursor)
    except (orjson.JSONDecodeError, TypeError):
        pass  # not JSON, or JSON that orjson does not read exactly: the strict way decides
    cursor = _strict_loads(text, name)
    if not isinstance(cursor, dict):
        raise ValueError(f"it is a JSON {_json_name(cursor)}, not an object")  # bad data, not a bad call
    _strict_dumps(cast("Cursor", cursor), sort_keys=False)  # what cannot be written back would fail the next commit
    return cast("Cursor", cursor)


def same(value: str, other: str) -> bool:
    """Return whether two stored texts hold equal cursors, whatever their formatting; `1`, `1.0` and `true` differ.

    A text that is not a cursor equals only itself.
    """
    if value == other:
        return True
    try:
        left, right = decode(value), decode(other)
        return left == right and canonical(left) == canonical(right)  # most differ already for Python
    except ValueError:
        return False


def canonical(cursor: Mapping[str, Any]) -> bytes:
    """Return the JSON of a cursor with sorted keys at every level, to compare cursors."""
    return _dumps(cursor, sort_keys=True)


def _dumps(cursor: Mapping[str, Any], *, sort_keys: bool = False) -> bytes:
    if not isinstance(cursor, dict):
        raise TypeError(f"a cursor is a dict, not {_type_name(cursor)}")
    try:
        data = orjson.dumps(cursor, None, orjson.OPT_SORT_KEYS if sort_keys else None)
        if _all_exact(map(type, cursor.values())) or orjson.loads(data) == cursor:
            return data
    except (TypeError, ValueError):
        pass  # wrong, or beyond orjson: the strict way decides
    return _strict_dumps(cursor, sort_keys=sort_keys)


def _strict_dumps(cursor: Cursor, *, sort_keys: bool) -> bytes:
    tuples = _check(cursor)
    try:
        if tuples:  # written as lists, as which they are read back
            return _dumps(_with_lists(cursor), sort_keys=sort_keys)
        text = json.dumps(cursor, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=sort_keys)
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a cursor's text must be valid Unicode: it holds a lone surrogate") from error
    except RecursionError as error:
        raise ValueError("the cursor is nested too deeply for the rest of the call stack") from error


def _with_lists(node: Any) -> Any:
    """Copy a checked cursor with lists for its tuples."""
    if isinstance(node, dict):
        return {key: _with_lists(item) for key, item in cast("dict[str, Any]", node).items()}
    if isinstance(node, list | tuple):
        return [_with_lists(item) for item in cast("list[Any]", node)]
    return node


def _check(cursor: Cursor) -> bool:
    """Refuse what JSON cannot represent exactly, and name the place; return whether there are tuples.

    It uses a list as a stack instead of recursion, so that deep input cannot exhaust the interpreter's stack.
    """
    stack: list[tuple[Any, str, int]] = [(cursor, "cursor", 1)]
    tuples = False
    while stack:
        node, place, depth = stack.pop()
        if isinstance(node, str | int | None):  # bool is an int
            continue
        if isinstance(node, float):
            if not math.isfinite(node):
                raise ValueError(f"{place} is {node}, which JSON cannot represent")
        elif isinstance(node, dict | list | tuple):
            if depth > MAX_DEPTH:
                raise ValueError(f"a cursor must have at most {MAX_DEPTH} levels, and no cycles: see {place[:80]}")
            if isinstance(node, dict):
                for key, item in cast("dict[object, Any]", node).items():
                    if not isinstance(key, str):
                        raise TypeError(f"{place} has the key {key!r}: keys must be str, not {_type_name(key)}")
                    stack.append((item, f"{place}[{key!r}]", depth + 1))
            else:
                tuples = tuples or isinstance(node, tuple)
                items = enumerate(cast("list[Any]", node))
                stack.extend((item, f"{place}[{index}]", depth + 1) for index, item in items)
        else:
            raise TypeError(f"{place} is a {_type_name(node)}, which JSON cannot represent: {_advice(node)}")
    return tuples


def _advice(node: object) -> str:
    from datetime import date  # for an error only
    from decimal import Decimal

    if isinstance(node, date | Decimal):
        text = "isoformat()" if isinstance(node, date) else "str()"
        return f"store its {text}, or use cp.incremental(), which accepts such values in rows"
    if hasattr(node, "isoformat"):
        return "store its isoformat()"
    if isinstance(node, bytes | bytearray):
        return "store text, such as its hex()"
    if isinstance(node, set | frozenset):
        return "store a sorted list"
    return "store its str()"


def _strict_loads(data: bytes, name: str) -> Any:
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_unique_keys,
            parse_constant=partial(_not_json, name),
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> Cursor:
    cursor = dict(pairs)
    if len(cursor) < len(pairs):
        raise ValueError("its JSON has duplicate keys")
    return cursor


def _not_json(name: str, constant: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: {constant}")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"its number {digits[:40]} is out of range")
    return number


def _unbase64(value: str) -> bytes:
    try:
        data = a2b_base64(value)
        if b2a_base64(data, newline=False) == value.encode("ascii"):
            return data
    except ValueError:
        pass  # not written by encode(): the tolerant way decides whether it is base64 at all
    compact = "".join(value.split()).translate(_URLSAFE)
    digits = compact.rstrip("=")
    padded = digits + "=" * (-len(digits) % 4)
    if compact not in {digits, padded}:
        raise ValueError("it is not base64: wrong padding")
    try:
        return b64decode(padded, validate=True)
    except (BinasciiError, ValueError) as error:
        raise ValueError("it is not base64") from error


_URLSAFE = str.maketrans("-_", "+/")


def _type_name(value: object) -> str:
    return type(value).__name__


def _json_name(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return "array" if isinstance(value, list) else "string" if isinstance(value, str) else "number"
