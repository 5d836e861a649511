"""Parses the response to a list piece by piece: parsed at once, a list of 24 MB takes 350 MB more."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar, cast

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PIECE = 1 << 20
"""Approximate size of a piece in bytes."""

TRIES = 8
"""Positions tried as the end of a piece before the whole rest is parsed at once."""

_BEGIN = re.compile(rb'\s*\{\s*"result"\s*:\s*\[')


def list_document(body: bytes, make: Callable[[object], T]) -> object:
    """Return the value of a JSON text; in `{"result": […], …}`, each item is replaced by `make(item)`.

    Raises:
        orjson.JSONDecodeError: it is not JSON.

    """
    begin = _BEGIN.match(body)
    made: list[T] = []
    at = begin.end() if begin is not None else 0
    while begin is not None and (piece := _piece(body, at)) is not None:
        items, at = piece
        made.extend(map(make, items))
    document: object = orjson.loads(b'{"result":[' + body[at:] if begin is not None else body)
    if not isinstance(document, dict):
        return document
    fields = cast("dict[str, object]", document)
    if isinstance(result := fields.get("result"), list):
        made.extend(map(make, cast("list[object]", result)))
        fields["result"] = made
    return fields


def _piece(body: bytes, at: int) -> tuple[list[object], int] | None:
    """Return the items of the next piece, and the start of the one after it; None: no end of a piece was found.

    A comma after a brace may be in a string or inside an item: then the part before it is not valid JSON.
    """
    end = at + PIECE
    for _ in range(TRIES):
        end = body.find(b"},", end) + 1
        if not end:
            return None
        try:
            return orjson.loads(b"[" + body[at:end] + b"]"), end + 1
        except orjson.JSONDecodeError:
            continue
    return None
