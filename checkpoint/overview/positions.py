"""Positions as operators see them: which part of a cursor it is, what it compares by, and how far it lags."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.overview.moments import now
from checkpoint.overview.words import cursor_of
from checkpoint.streams.keys import Clock
from checkpoint.streams.spellings import UNITS, Spelling, spelling
from checkpoint.streams.stored import BESIDE
from checkpoint.streams.values import Scale, epoch_named, wire

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

    ISO 8601 with a zone says itself what it is; the format is of the cursors that have no such part. A position that it
    misreads is no instant.
    """
    cursor = None if value is None else cursor_of(value)
    for each in (None, form):
        instants = [one for one in positions_in(cursor or {}, each) if one.kind == "instant"]
        if instants:
            only = instants[0] if len(instants) == 1 else None
            return None if only is None or misread(only.value, each) else only.lag
    return None


AHEAD = 86_400.0
"""Seconds that a position may be ahead of the clock: times of another zone are, for up to a day."""


def is_ahead(lag: float | None) -> bool:
    """Tell whether a position is ahead of the clock, so that rows until then may not be delivered."""
    return lag is not None and lag < -AHEAD


def before_now(position: Measured, form: str | None, days: int) -> str | None:
    """Return the time so many days before now, or up to a day earlier, as the source of a position spells it.

    None: the position is no instant, or its format cannot spell another one.
    """
    if position.lag is None:
        return None
    ahead = max(0, ceil(-position.lag / 86_400))
    scale = Scale("it", known={"the position": position.value}, cursor_format=form)
    try:
        scale.settle(position.value, written=True)
        return str(wire(scale.shift(position.value, timedelta(days=days + ahead), -1, written=True)))
    except (TypeError, ValueError, OverflowError):
        return None


_FIRST, _LATER = datetime(1990, 1, 1, tzinfo=timezone.utc).timestamp(), 2 * 86_400
"""Positions of jobs lie after this, in seconds since 1970, and no more than so many seconds ahead."""


def misread(value: Any, form: str | None) -> str | None:
    """Return why a position is not in the cursor format that somebody named; None: it may be.

    It is not where an epoch format makes it an improbable time, and another one a probable time, or where a pattern
    makes it one that is still to come.
    """
    if form is None or (read := measured(value, form)) is None or _is_probable(read[0]):
        return None
    if "%" in form and read[0] > now().timestamp():
        return f"{value} is {datetime.fromtimestamp(read[0], timezone.utc):%Y-%m-%d} in {form}, which is still to come"
    if form not in UNITS:
        return None
    for other in UNITS:
        if (better := measured(value, other)) is not None and _is_probable(better[0]):
            when, then = (f"{datetime.fromtimestamp(each[0], timezone.utc):%Y-%m-%d}" if abs(each[0]) < 1e11 else
                          "out of all time" for each in (read, better))  # fmt: skip
            return f"{value} is {when} in {form}, but {then} in {other}: is that its format?"
    return None


def _is_probable(seconds: float) -> bool:
    return _FIRST <= seconds <= now().timestamp() + _LATER


def epoch_hint(value: Any) -> str:
    """Return what to add about a number that may count the seconds since 1970; empty where it does not seem so."""
    name = epoch_like(value)
    return f": if {value} counts time, add --cursor-format {name}" if name else ""


def epoch_like(value: Any) -> str | None:
    """Return the format of a number that may count the seconds since 1970; None: it does not seem so."""
    return epoch_named(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
