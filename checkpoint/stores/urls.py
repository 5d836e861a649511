"""Options of a store that stand in its URL: `https://api.truto.one?timeout=5&deadline=180`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def options(query: str, known: Mapping[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    """Return what the query of a store's URL sets, by name.

    `known` has a function for each option that checks a value: given the option's name and its text, it returns the
    value or raises ValueError.

    Raises:
        ValueError: an option is not known, is named twice or has a bad value. No value is shown: it may be a secret.

    """
    found: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name not in known:
            shown = f" {name!r}" if name.isidentifier() else ""
            raise ValueError(f"the store's URL has an unknown option{shown}; it may have {', '.join(known)}")
        if name in found:
            raise ValueError(f"the store's URL names {name} twice")
        found[name] = known[name](name, unquote(value))
    return found


def seconds(name: str, value: Any) -> float:
    """Return a number of seconds above 0.

    Raises:
        ValueError: it is none.

    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, such as 60")
    return number


def count(name: str, value: Any) -> int:
    """Return a whole number from 0 on.

    Raises:
        ValueError: it is none.

    """
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{name} must be a whole number from 0 on, such as 100")
    return int(text)
