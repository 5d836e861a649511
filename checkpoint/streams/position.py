"""The position that the rows handed out so far allow."""

from __future__ import annotations

from bisect import insort
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from checkpoint.streams.boundary import NO_MARK
from checkpoint.streams.holding import is_over
from checkpoint.streams.keys import LOWEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checkpoint.streams.boundary import Boundary, Mark
    from checkpoint.streams.holding import Caller
    from checkpoint.streams.options import Options
    from checkpoint.streams.ranges import Range
    from checkpoint.streams.values import Key


NOWHERE: set[int] = set()  # of a reading that fetches nothing


class Reading:
    """One call of `pages`, `track` or `fetch`; or all of `filter` and `observe`, which hold nothing and never end.

    begun       held, no row in hand        `hand` None
    in hand     held, of a `track`          `hand` is the row that no claim covers yet
    closed      abandoned; held until its holder has committed the stream
    exhausted   held by nobody, and forgotten: its highest value goes to the loose one
    """

    __slots__ = (
        "closed", "echo", "fetches", "hand", "high", "holder", "last", "low", "pins", "place", "recent", "stale", "top",
    )  # fmt: skip

    def __init__(self, high: Mark) -> None:
        self.high: Mark = high
        """The highest row that a claim covers, as far as this reading knows; its memo is not yet in the memory."""
        self.low: Key = LOWEST
        self.top: Key = LOWEST
        """Between `low` and `top` a row needs no judging; see `reading`."""
        self.hand: Mark | None = None
        """The row in hand, which no claim covers yet."""
        self.last: Mark | None = None
        """Its last row, which orders the next one."""
        self.pins: bool = False
        """It handed out rows: while it is not exhausted, a sorted position goes no further than its rows did."""
        self.closed: bool = False
        self.holder: Caller = None
        self.fetches: bool = False
        """Whether it is a `fetch`, which goes on at a place."""
        self.place: Any = None
        """Of a `fetch`: where the page begins that follows the last one handed out; None: at the beginning."""
        self.echo: list[Any] | None = None
        """Of a `fetch`: the rows of a page that named itself as the next one."""
        self.stale: set[int] = NOWHERE
        """Of a `fetch`: hashes of the places of the pages since the last new row."""
        self.recent: Recent | None = None
        """What this reading handed out, where a row that comes again is dropped."""


class Recent:
    """Rows that a reading handed out lately: at least the last `limit`, and at most twice as many."""

    __slots__ = ("_before", "_limit", "_rows")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: set[Any] = set()
        self._before: set[Any] = set()

    def __contains__(self, row: Any) -> bool:
        return row in self._rows or row in self._before

    def widen(self, rows: int) -> None:
        """Remember at least so many rows: as many as a page holds."""
        self._limit = max(self._limit, rows)

    def add(self, row: Any) -> None:
        """Remember a row."""
        if len(self._rows) >= self._limit:
            self._before, self._rows = self._rows, set()
        self._rows.add(row)


class Position:
    """The highest values that were handed out, by reading, and which of them a claim may store.

    A reading that was begun and is not exhausted has a highest value of its own: of a sorted stream, rows that it did
    not come to must not be passed, until another reading had them.
    """

    __slots__ = (
        "_ahead", "_boundary", "_options", "_range", "above", "bound", "finished", "loose", "lowest_above",
        "readings", "under",
    )  # fmt: skip

    def __init__(self, options: Options, span: Range, boundary: Boundary) -> None:
        self._options = options
        self._range = span
        self._boundary = boundary
        self.loose: Reading = Reading(NO_MARK)
        """That of `filter` and `observe`; it takes over what others covered that are exhausted."""
        self.readings: list[Reading] = []
        """Under way, or abandoned."""
        self.above: Mark = NO_MARK
        """The highest row above the ceiling that was handed out."""
        self.lowest_above: Mark | None = None
        """The lowest one."""
        self.bound: Mark = NO_MARK
        """What this run last claimed of a sorted stream, less the lookback, which no row may go behind."""
        self.finished: bool = False
        self._ahead: list[Mark] = []  # above the ceiling, lowest first
        self.under: Mark = NO_MARK  # the highest value but one

    # What readings covered

    def begin(self) -> Reading:
        """Begin a reading; a stream that was finished no longer is."""
        self.finished = False
        reading = Reading(self.high())
        self.readings.append(reading)
        return reading

    def exhaust(self, reading: Reading) -> None:
        """Add the highest row of a reading that came to its end."""
        if reading in self.readings:
            if reading.high[0] > self.loose.high[0]:
                self.loose.high = reading.high
            self.readings.remove(reading)  # last: an exception of a signal handler may come in between

    def high(self) -> Mark:
        """Return the highest row that is covered."""
        high = self.loose.high
        for reading in self.readings:
            if reading.high[0] > high[0]:
                high = reading.high
        return high

    def highest(self) -> Any:
        """Return the highest value handed out, None where there was none."""
        return max((self.above, self.high(), *self._hands()), key=lambda mark: mark[0])[1]

    def _hands(self) -> Iterator[Mark]:
        for reading in self.readings:
            if reading.hand is not None:
                yield reading.hand

    def release(self, reading: Reading) -> None:
        """Cover the row in hand: the next one was asked for."""
        hand, reading.hand = reading.hand, None
        if hand is not None:
            reading.last = hand
            self.cover(hand, reading)

    def cover_passed(self, row: Mark, reading: Reading) -> None:
        """Cover a row that passed unjudged."""
        if self._boundary.deep and row[2] is not None:
            self._boundary.add(row)
        if row[0] >= reading.high[0]:
            self.remember(reading)
        if row[0] > reading.high[0]:
            self.under, reading.high = reading.high, row
        elif row[0] == reading.high[0] and row[2] is not None and not self._boundary.deep:
            self._boundary.add(row)

    def remember(self, reading: Reading) -> None:
        """Take the highest row of a reading to the memory: of rows that passed only the last of these is taken there.

        Where the memory is deep all of them are taken, as they are covered.
        """
        if reading.high[2] is not None:
            if not self._boundary.deep:
                self._boundary.add(reading.high)
            reading.high = (*reading.high[:2], None)

    def cover(self, row: Mark, reading: Reading) -> None:
        """Count a row for the position: a claim says that it is delivered."""
        key, _, memo = row
        if memo is not None and key <= self._range.opened_key:
            self._boundary.add_old(row)
        elif key > self._range.ceiling():
            self._cover_above(row)
            return
        elif memo is not None:
            self._boundary.add(row)
        self.rise((*row[:2], None), reading)

    def _cover_above(self, row: Mark) -> None:
        """Count a row above the ceiling."""
        if row[2] is not None:
            self._boundary.add_ahead(row)
        if row[0] > self.above[0]:
            self.above = row
        if self.lowest_above is None or row[0] < self.lowest_above[0]:
            self.lowest_above = row
        if self._options.row_order is not None and len(self._ahead) < max(self._options.max_seen, 1):
            insort(self._ahead, row, key=itemgetter(0))

    def rise(self, row: Mark, reading: Reading) -> None:
        """Note a covered row as the highest one, if it is."""
        if row[0] > reading.high[0]:
            high = self.high()
            if row[0] > high[0]:
                self.under = high
            reading.high = row

    def pass_by(self, key: Key, reading: Reading) -> None:
        """Forget abandoned readings that stopped at this row or after it: the current reading covers their rest."""
        reading.pins = True
        for other in self.readings:
            if other is not reading and other.pins:
                at = other.high if other.hand is None else other.hand
                other.pins = bool(key > at[0])

    # Who holds them

    def held_elsewhere(self, by: Caller) -> bool:
        """Tell whether rows are in the hands of a thread or task other than `by`."""
        return any(
            reading.holder is not None and reading.holder is not by and not is_over(reading.holder)
            for reading in self.readings
        )

    def let_go(self, by: Caller, *, closed: bool) -> None:
        """Release the readings of `by`; with `closed`, only those that were closed."""
        for reading in self.readings:
            if reading.holder is by and (reading.closed or not closed):
                reading.holder = None

    # What a claim may say

    @property
    def waits(self) -> bool:
        """Whether rows above the ceiling count for the position once the clock has passed them."""
        return bool(self._ahead)

    def reached(self) -> Any:
        """Return the highest value that the rows handed out allow as the position; None: there is none."""
        asc = self._options.asc
        if not (asc or self.finished):
            return None
        self._cover_ahead()
        if self.finished:
            for reading in self.readings:
                self.release(reading)
        high = self.high()
        return high[1] if self.finished or not asc else self._reached_so_far(high)[1]

    def _reached_so_far(self, high: Mark) -> Mark:
        """Return the position of a sorted stream that is not read to its end."""
        is_open = self._options.range_start == "open"
        if is_open and not self._ahead and not any(hand[0] > high[0] for hand in self._hands()):
            high = self.under
        for reading in self.readings:
            if reading.pins and reading.high[0] < high[0]:
                high = NO_MARK if is_open else reading.high
        return high

    def _cover_ahead(self) -> None:
        """Count rows that were above the ceiling when they came, and are not any more."""
        while self._ahead and self._ahead[0][0] <= self._range.ceiling():
            self.rise((*self._ahead.pop(0)[:2], None), self.loose)
