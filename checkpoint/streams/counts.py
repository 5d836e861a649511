"""How many rows a stream was fed, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import add, attrgetter


@dataclass(frozen=True, slots=True)
class Stats:
    """Rows of this run."""

    seen: int
    """All that were fed."""
    delivered: int
    """Handed out."""
    dropped: int
    """Not handed out: `seen - delivered`."""
    late: int
    """Of the dropped ones, those before `start_value`."""
    unremembered: int = 0
    """Delivered ones inside the lookback or above the ceiling that are not remembered, for there were too many."""

    def __add__(self, other: Stats) -> Stats:
        return Stats(*map(add, _COUNTS(self), _COUNTS(other)))


_COUNTS = attrgetter(*(field.name for field in fields(Stats)))
NO_ROWS = Stats(0, 0, 0, 0)
