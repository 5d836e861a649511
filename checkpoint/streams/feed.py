"""One way by which rows come into a stream, and the lane behind those that came.

Every row is judged by its key (see `values`). That is the slow way, and the truth. After a row was handed
out a `Lane` is opened behind it: rows that are spelled alike, and fall inside it, are handed out as well without a
look at their keys. What the lane does not know goes the slow way.
"""

from __future__ import annotations

from operator import length_hint
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.streams.boundary import Memo
    from checkpoint.streams.values import Lane

NOTHING: Any = object()
"""No row in hand; None is a row's own."""

OUTSIDE = (LookupError, TypeError, AttributeError, ArithmeticError)
"""What a look at a row raises where there is no lane, or the row is something else than the lane's are."""


class Feed:
    """The rows of one `track` or `pages`, or all those of `filter` and `observe`.

    Most of it is read for every row, and `observe` writes here what it has no time to tell anybody.
    """

    __slots__ = (
        "alone", "delivered", "hand", "high", "keyed", "lane", "low", "mark", "memo", "name", "pins", "quick", "run",
        "single", "spelled", "top",
    )  # fmt: skip

    name: Any
    """The field that lanes look at; None: there are no lanes."""
    high: Any
    """The highest value that a claim covers, as far as this feed knows."""
    hand: Any
    """The value of the row in hand, which no claim covers yet, or NOTHING."""
    memo: Memo
    """What the row in hand is remembered by."""
    pins: bool
    """It handed out rows: while it is not exhausted, a sorted position goes no further than its rows did."""
    run: Run | None
    keyed: bool
    """Rows of the lane are remembered."""
    alone: bool
    """Of those, the ones at the highest value only."""
    single: Memo
    """The row at the highest value, where `observe` found it alone there."""
    delivered: float
    """Rows that `observe` found in the lane; a float, for the next integer would have to be allocated for every row."""
    lane: Lane | None
    low: Any
    top: Any
    mark: int
    """As the lane's: the place of the Z at the end of its instants; 0: they are spelled otherwise."""
    quick: int
    """The same, where nothing is remembered; 0: there is more to do."""
    spelled: Callable[[Any], bool]

    def __init__(self, name: str | None, high: Any, *, keyed: bool) -> None:
        self.name, self.high, self.keyed = name, high, keyed
        self.hand, self.memo = NOTHING, None
        self.pins = False
        self.run = self.single = None
        self.alone = keyed
        self.delivered = 0.0
        self.close()

    def open(self, lane: Lane, *, alone: bool) -> None:
        """Let rows inside a lane pass; `alone`: those at the highest value are remembered, and no others."""
        self.alone = self.keyed and alone
        self.quick = 0 if self.keyed else lane.mark
        self.lane, self.low, self.top, self.mark, self.spelled = lane, lane.low, lane.top, lane.mark, lane.holds

    def close(self) -> None:
        """Let every row go the slow way, those of a run under way too."""
        if self.run is not None:
            self.run.cut()
        self.lane = self.low = self.top = None
        self.mark = self.quick = 0

    def values_in(self, rows: list[Any], *, ordered: bool) -> list[Any] | None:
        """Return the cursor values of rows that the lane holds, all of them; None: it does not.

        `ordered`: nor where they do not rise from the highest value on.
        """
        lane = self.lane
        if lane is None:
            return None
        try:
            values = [row[self.name] for row in rows]
            if not values or not lane.holds_all(values):
                return None
            if ordered:
                if sorted(values) != values:
                    return None
                return values if max(self.low, self.high) <= values[0] and values[-1] < self.top else None
            lowest, highest = extremes(values)
            return values if self.low <= lowest and highest < self.top else None
        except OUTSIDE:
            return None


class Run:
    """Records of a list that are handed out at once; how far that is, their iterator tells by its length."""

    __slots__ = ("counted", "memos", "records", "rows", "settled", "values")

    def __init__(self, rows: list[Any], values: list[Any], memos: list[Memo] | None) -> None:
        self.rows = rows
        self.records = iter(rows)
        self.values = values
        self.memos = memos
        self.settled = 0
        """How many of them are covered."""
        self.counted = 0
        """How many were counted as delivered."""

    def taken(self) -> int:
        """Return how many were asked for."""
        return len(self.rows) - length_hint(self.records)

    def cut(self) -> None:
        """Hand out no more of them than were asked for."""
        del self.rows[self.taken() :]


def extremes(values: list[Any]) -> tuple[Any, Any]:
    """Return the lowest and the highest."""
    if values[0] <= values[len(values) // 2] <= values[-1]:  # in order, by the look of it: then sorting is one pass
        values = sorted(values)
        return values[0], values[-1]
    return min(values), max(values)
