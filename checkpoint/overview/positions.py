"""Positions as operators see them: which part of a cursor it is, what it compares by, and how far it lags."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.overview.moments import now
from checkpoint.overview.words import cursor_of
from checkpoint.streams.keys import Clock
from checkpoint.streams.spellings import Spelling, spelling
from checkpoint.streams.stored import BESIDE
from checkpoint.streams.values import epoch_named

if TYPE_CHECKING:
    from collections.abc import Mapping


class Measured(NamedTuple):
    """Where a cursor stands."""

    field: str
    """The part of the cursor."""
    value: Any
    """As it is stored."""
    scale: float
    """As a number: seconds since 1970 of a time."""
    kind: str
    """`number`, `instant`, or `wall` (a time without a zone)."""

    @property
    def lag(self) -> float | None:
        """Seconds from the position to now; None: it is no instant."""
        return now().timestamp() - self.scale if self.kind == "instant" else None


def measured(value: Any, form: str | None = None) -> tuple[float, str] | None:
    """Return a cursor value as a number, and its kind; None where it has no scale."""
    try:
        kind, exact = _spelling(form).read(value)
        if kind == "number":
            return float(exact), kind
        if kind == "text":
            return None
        seconds, fraction = exact
        return seconds + float(f"0.{fraction or 0}"), kind
    except (TypeError, ValueError, LookupError, OverflowError):
        return None


@cache
def _spelling(form: str | None) -> Spelling:
    return spelling(form, Clock(None))


def positions_in(cursor: Mapping[str, Any], form: str | None = None) -> list[Measured]:
    """Return the parts of a cursor that a stream could have as its position, and that have a scale."""
    return [
        Measured(field, value, *found)
        for field, value in cursor.items()
        if field not in BESIDE and (found := measured(value, form)) is not None
    ]


def position_of(value: str | None, form: str | None = None) -> Measured | None:
    """Return the position in a stored value; None: it is no cursor, or not just one part of it can be the position."""
    cursor = None if value is None else cursor_of(value)
    found = [] if cursor is None else positions_in(cursor, form)
    instants = [one for one in found if one.kind == "instant"]
    return instants[0] if len(instants) == 1 else found[0] if len(found) == 1 else None


def lag_of(value: str | None, form: str | None = None) -> float | None:
    """Return how many seconds a stored cursor's position is behind; None: it is no instant, or there are several.

    ISO 8601 with a zone says itself what it is; the format is of the cursors that have no such part.
    """
    cursor = None if value is None else cursor_of(value)
    for each in (None, form):
        instants = [one for one in positions_in(cursor or {}, each) if one.kind == "instant"]
        if instants:
            return instants[0].lag if len(instants) == 1 else None
    return None


def epoch_hint(value: Any) -> str:
    """Return what to add about a number that may count the seconds since 1970; empty where it does not seem so."""
    name = epoch_named(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return f": if {value} counts time, add --cursor-format {name}" if name else ""
