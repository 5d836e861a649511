"""Store options in the query of its URL: `https://api.truto.one?timeout=5&deadline=180`."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LONGEST = 1e9
"""31 years in seconds: operating systems refuse much longer waits."""


def options(query: str, known: Mapping[str, Callable[[str], Any]]) -> tuple[dict[str, Any], str]:
    """Split a URL's query: return the options that `known` has a reader for, and the rest of the query.

    Raises:
        ValueError: an option occurs twice, or its reader raised ValueError.

    """
    found: dict[str, Any] = {}
    rest: list[str] = []
    for part in query.split("&"):
        name, _, text = part.partition("=")
        if name not in known:
            rest.append(part)
        elif name in found:
            raise ValueError(f"the option {name!r} occurs twice in the store's URL")
        else:
            found[name] = _read_option(name, unquote(text), known[name])
    return found, "&".join(rest)


def _read_option(name: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}={text[:40]!r} in the store's URL cannot be read: {error}") from None


def positive(text: str) -> float:
    """Read an option that is a number of seconds.

    Raises:
        ValueError: it is not a number above 0.

    """
    number = float(text)
    if not 0 < number <= LONGEST:
        raise ValueError("it must be a number greater than 0")
    return number


def check_seconds(name: str, value: float) -> float:
    """Check and return a number of seconds given as an argument.

    Raises:
        ValueError: it is not above 0, or above the longest wait.
        TypeError: it is not a number.

    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 < value <= LONGEST:
        raise ValueError(f"{name} must be more than 0 and at most {LONGEST:.0f} seconds, not {value}")
    return float(value)


def check_count(name: str, value: int) -> int:
    """Check and return a count given as an argument.

    Raises:
        ValueError: it is not above 0.
        TypeError: it is not an int.

    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be greater than 0, not {value}")
    return int(value)
