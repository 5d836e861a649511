"""Positions for operators: which field of a cursor is the position, how it compares, and how far it lags."""

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
    """The position of a cursor."""

    field: str
    """The field of the cursor."""
    value: Any
    """The stored form."""
    scale: float
    """The position as a number: for a time, seconds since 1970."""
    kind: str
    """`number`, `instant`, or `wall` (a time without a zone)."""

    @property
    def lag(self) -> float | None:
        """Seconds from the position to now; None: it is not an instant."""
        return now().timestamp() - self.scale if self.kind == "instant" else None


def measured(value: Any, form: str | None = None) -> tuple[float, str] | None:
    """Return a cursor value as a number, and its kind; None if it has no scale."""
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
    """Return the fields of a cursor that could be a stream's position and that have a scale."""
    return [
        Measured(field, value, *found)
        for field, value in cursor.items()
        if field not in BESIDE and (found := measured(value, form)) is not None
    ]


def position_of(value: str | None, form: str | None = None) -> Measured | None:
    """Return the position in a stored value; None: it is not a cursor, or not exactly one field can be the position."""
    cursor = None if value is None else cursor_of(value)
    found = [] if cursor is None else positions_in(cursor, form)
    instants = [one for one in found if one.kind == "instant"]
    return instants[0] if len(instants) == 1 else found[0] if len(found) == 1 else None


def lag_of(value: str | None, form: str | None = None) -> float | None:
    """Return how many seconds a stored cursor's position is behind; None: it is not an instant, or there are several.

    ISO 8601 with a zone needs no format; the format is for cursors without such a field. A position that does not fit
    the format is not an instant.
    """
    cursor = None if value is None else cursor_of(value)
    for each in (None, form):
        instants = [one for one in positions_in(cursor or {}, each) if one.kind == "instant"]
        if instants:
            only = instants[0] if len(instants) == 1 else None
            return None if only is None or misread(only.value, each) else only.lag
    return None


AHEAD = 86_400.0
"""Seconds by which a position may be ahead of the clock: local times of another zone can be, by up to a day."""


def is_ahead(lag: float | None) -> bool:
    """Tell whether a position is ahead of the clock, so that rows up to it may be missed."""
    return lag is not None and lag < -AHEAD


def before_now(position: Measured, form: str | None, days: int) -> str | None:
    """Return the time this many days before now, or up to a day earlier, in the format of a position.

    None: the position is not an instant, or its format cannot express another one.
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
"""Plausible positions lie after the first, in seconds since 1970, and at most the second in seconds ahead of now."""


def misread(value: Any, form: str | None) -> str | None:
    """Return why a position is not in the given cursor format; None: it may be.

    It is not if an epoch format gives an implausible time while another one gives a plausible time, or if a pattern
    gives a time in the future.
    """
    if form is None or (read := measured(value, form)) is None or _is_probable(read[0]):
        return None
    if "%" in form and read[0] > now().timestamp():
        return f"{value} is {datetime.fromtimestamp(read[0], timezone.utc):%Y-%m-%d} in {form}, which is in the future"
    if form not in UNITS:
        return None
    for other in UNITS:
        if (better := measured(value, other)) is not None and _is_probable(better[0]):
            when, then = (f"{datetime.fromtimestamp(each[0], timezone.utc):%Y-%m-%d}" if abs(each[0]) < 1e11 else
                          "an impossible time" for each in (read, better))  # fmt: skip
            return f"{value} is {when} in {form}, but {then} in {other}: is that its format?"
    return None


def _is_probable(seconds: float) -> bool:
    return _FIRST <= seconds <= now().timestamp() + _LATER


def epoch_hint(value: Any) -> str:
    """Return a hint for a number that may be an epoch time; empty if it does not look like one."""
    name = epoch_like(value)
    return f": if {value} counts time, add --cursor-format {name}" if name else ""


def epoch_like(value: Any) -> str | None:
    """Return the epoch format of a number that may be an epoch time; None: it does not look like one."""
    return epoch_named(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
