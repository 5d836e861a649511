"""How far the rows that were handed out allow a stream to say it is."""

from __future__ import annotations

import copy
from bisect import insort
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.streams.boundary import copies
from checkpoint.streams.feed import NOTHING, Feed, Run, extremes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checkpoint.streams.boundary import Boundary, Memo
    from checkpoint.streams.options import Options
    from checkpoint.streams.ranges import Range
    from checkpoint.streams.values import Key, Lane


class Row(NamedTuple):
    """A row that counts for the position."""

    key: Key
    value: Any
    memo: Memo


class Position:
    """The highest values that were handed out, by feed, and which of them a claim may store.

    A feed that was begun and is not exhausted has a highest value of its own: of a sorted stream, rows that it did not
    come to must not be passed, until another feed had them.
    """

    __slots__ = (
        "_ahead", "_boundary", "_least", "_name", "_options", "_range", "_top", "_under", "above", "bound", "delivered",
        "feeds", "finished", "loose", "unfinished",
    )  # fmt: skip

    def __init__(self, name: str | None, options: Options, span: Range, boundary: Boundary) -> None:
        self._name = name
        self._options = options
        self._range = span
        self._boundary = boundary
        self.loose = Feed(name, None, keyed=options.keyed)
        """That of `filter` and `observe`; it takes over what others covered that are exhausted."""
        self.feeds: list[Feed] = []
        """A `track` or `pages` each: under way, or abandoned."""
        self.delivered = 0
        """Rows handed out, without those that the feeds count."""
        self.above: Any = None
        """The highest value above the ceiling that was handed out."""
        self.bound: tuple[Key, Any] | None = None
        """What this run last claimed of a sorted stream, which no row may go behind."""
        self.finished = self.unfinished = False
        self._ahead: list[Row] = []  # above the ceiling, lowest first
        self._top: Row | None = None  # the last one that was the highest: its key need not be made again
        self._under: Any = None  # the highest value but one
        self._least: Row | None = None  # the lowest row that no earlier run can have handed out

    # What feeds covered

    def begin(self) -> Feed:
        """Begin a `track` or `pages`: there is more, so what was finished is not any longer."""
        self.finished = False
        self._sync()
        self.loose.close()  # a lane knows of one feed
        feed = Feed(self._name, self._range.highest(self.highs()), keyed=self._options.keyed)
        self.feeds.append(feed)
        return feed

    def exhaust(self, feed: Feed) -> None:
        """Take over what a feed covered that came to its end."""
        self._sync()
        self.loose.close()
        self.feeds.remove(feed)
        self.loose.high = self._range.highest((self.loose.high, feed.high))

    def highs(self) -> Iterator[Any]:
        """Yield the highest value that each feed covered, None where there is none."""
        self.settle()
        yield self.loose.high
        for feed in self.feeds:
            yield feed.high

    def highest(self) -> Any:
        """Return the highest value handed out, None where there was none."""
        hands = [feed.hand for feed in self.feeds if feed.hand is not NOTHING]
        return self._range.highest((self.above, *self.highs(), *hands))

    def settle(self) -> None:
        """Bring in what feeds have not told yet, for speed."""
        self._sync()
        for feed in self.feeds:
            self.settle_run(feed)

    def count(self) -> int:
        """Return how many rows were handed out."""
        self.settle()
        return self.delivered + int(self.loose.delivered)

    def start_run(self, feed: Feed, rows: list[Any]) -> Run | None:
        """Take records in hand, all that there are, where the lane holds them; None: it does not."""
        values = feed.values_in(rows, ordered=self._options.asc)
        if values is None:
            return None
        feed.run = Run(rows, values, copies(rows) if feed.keyed else None)
        return feed.run

    def settle_run(self, feed: Feed, *, done: bool = False) -> None:
        """Cover what was taken from the run in hand; the last of it is in hand still, unless the run is done."""
        run = feed.run
        if run is None:
            return
        taken = run.taken()
        covered = taken if done else max(taken - 1, 0)
        feed.hand = run.values[taken - 1] if covered < taken else NOTHING
        feed.memo = run.memos[taken - 1] if covered < taken and run.memos else None
        if taken > run.counted:
            self._reach(self._range.key(run.values[run.counted]), feed)
            self.delivered += taken - run.counted
            run.counted = taken
        if covered > run.settled:
            part = slice(run.settled, covered)
            run.settled = covered
            self.cover_values(run.values[part], run.memos and run.memos[part], feed)
        if done:
            feed.run = None

    def cover_values(self, values: list[Any], memos: list[Memo] | None, feed: Feed) -> None:
        """Cover rows that are in the lane; `memos` are the rows themselves, copies where the memory is coarse."""
        highest = values[-1] if self._options.asc else extremes(values)[1]
        rises = highest > feed.high
        if feed.keyed and memos is not None:
            self._remember(values, memos, highest, feed)
        if rises:
            feed.high = highest

    def _remember(self, values: list[Any], memos: list[Memo], highest: Any, feed: Feed) -> None:
        if self._boundary.coarse:
            self._boundary.add_all(values, memos)
            return
        beside = self._range.highest(other.high for other in (self.loose, *self.feeds) if other is not feed)
        if highest < feed.high or (beside is not None and self._range.key(beside) > self._range.key(highest)):
            return
        rises = highest > feed.high and (beside is None or self._range.key(beside) < self._range.key(highest))
        at = [index for index, value in enumerate(values) if value == highest]
        for index in at[: self._options.max_seen + 1]:
            self._boundary.add(highest, copy.copy(memos[index]), rises=rises and index == at[0])

    def remember(self, value: Any, row: Any) -> None:
        """Remember a row of the lane that `observe` found beside others, or that is one of many to remember."""
        self._sync()
        high = self.loose.high
        if self._boundary.coarse or value >= high:
            self._boundary.add(value, copy.copy(row), rises=value > high)

    def take(self, row: Row, feed: Feed) -> None:
        """Take a row in hand."""
        self._reach(row.key, feed)
        feed.hand, feed.memo = row.value, row.memo

    def release(self, feed: Feed) -> None:
        """Cover the row in hand: the next one was asked for."""
        value, feed.hand = feed.hand, NOTHING
        if value is not NOTHING:
            self.cover(Row(self._range.key(value), value, feed.memo), feed, deliver=True)
            self.open_lane(feed)

    def cover(self, row: Row, feed: Feed, *, deliver: bool) -> None:
        """Count a row for the position: a claim says that it is delivered."""
        self.settle()
        self._reach(row.key, feed)
        if self._boundary.is_old(row.key):
            self._boundary.add_old(row.value, row.memo)
            row = row._replace(memo=None)
        if not deliver:  # delivered by an earlier run, so not above the position
            return
        ceiling = self._range.ceiling()
        if ceiling is not None and row.key > ceiling:
            self.above = self._range.highest((self.above, row.value))
            if self._options.asc and len(self._ahead) < self._options.max_seen:
                insort(self._ahead, row, key=lambda one: one.key)
            return
        self._rise(row, feed)

    def _rise(self, row: Row, feed: Feed) -> None:
        high = self._range.highest(self.highs())
        top = self._top
        before = None if high is None else top.key if top is not None and high is top.value else self._range.key(high)
        if not self._boundary.is_old(row.key) and (self._least is None or row.key < self._least.key):
            self._least = row
        rises = before is None or row.key > before
        if rises:
            self._top = row
            if self._options.range_start == "open" and high is not None:
                self._under = high
                self._boundary.step()
            if feed is self.loose:
                feed.close()
        if rises or feed.high is None or (feed.high is not high and row.key > self._range.key(feed.high)):
            feed.high = row.value
        if row.memo is not None and (self._boundary.coarse or rises or row.key == before):
            self._boundary.add(row.value, row.memo, rises=rises)

    def _reach(self, key: Key, feed: Feed) -> None:
        """Let go of feeds that stopped at a row which is read again, or after it: this one has the rest."""
        for other in self.feeds:
            if other is feed:
                other.pins = True
            elif other.pins:
                at = other.high if other.hand is NOTHING else other.hand
                other.pins = at is None or key > self._range.key(at)

    def _sync(self) -> None:
        """Remember the row that `observe` left where it was quickest to leave."""
        loose = self.loose
        if loose.single is not None:
            memo, loose.single = loose.single, None
            self._boundary.add(loose.high, memo, rises=True)

    # Lanes

    def open_lane(self, feed: Feed) -> None:
        """Open a lane behind the rows handed out so far, which is the only one."""
        lane = self._new_lane(feed)
        for other in (self.loose, *self.feeds):
            if lane is None or other is not feed:
                other.close()
        if lane is not None:
            feed.open(lane, alone=not self._boundary.coarse)

    def close_lanes(self) -> None:
        """Let every row go the slow way."""
        self._sync()
        for feed in (self.loose, *self.feeds):
            feed.close()

    def _new_lane(self, feed: Feed) -> Lane | None:
        """Return the lane of rows that are spelled as the highest one; low enough for all that were handed out."""
        self._sync()
        if self.finished or self._name is None or any(other is not feed for other in self.feeds):
            return None  # what was finished is not any longer when a row comes, which the slow way takes note of
        if feed.high is None or self._least is None:
            return None
        key = self._range.key(feed.high)
        if self._boundary.is_old(key) or (self.loose.high is not None and self._range.key(self.loose.high) > key):
            return None
        ends = [key for key in (self._range.end_key, self._range.ceiling()) if key is not None]
        lane = self._range.scale.lane(feed.high, min(ends, default=None), to_the_day=self._range.end_key is not None)
        if lane is None or self._options.asc:
            return lane
        lane.low = self._least.value
        return lane if lane.holds(lane.low) else None

    # What a claim may say

    def reached(self) -> Any:
        """Return the highest value that the rows handed out allow as the position; None: there is none."""
        asc = self._options.asc
        if not (asc or self.finished):
            return None
        self._cover_ahead()
        self.settle()
        if self.finished:
            for feed in self.feeds:
                self.release(feed)
        high = self._range.highest(self.highs())
        ceiling = self._range.ceiling()
        if high is None or (ceiling is not None and self._range.key(high) > ceiling):
            return None
        return high if self.finished or not asc else self._reached_so_far(high)

    def _reached_so_far(self, high: Any) -> Any:
        """Return what a sorted stream may say while there may be more."""
        key, is_open = self._range.key, self._options.range_start == "open"
        if is_open and not self._ahead:
            top = key(high)
            if not any(key(feed.hand) > top for feed in self.feeds if feed.hand is not NOTHING):
                high = self._under
        for feed in self.feeds:
            if feed.pins and high is not None and (feed.high is None or key(feed.high) < key(high)):
                high = None if is_open else feed.high
        return high

    def _cover_ahead(self) -> None:
        """Count rows that were above the ceiling when they came, and are not any more."""
        ceiling = self._range.ceiling()
        while self._ahead and ceiling is not None and self._ahead[0].key <= ceiling:
            self._rise(self._ahead.pop(0), self.loose)

    def claimed(self, reached: Any) -> None:
        """Let no row of a sorted stream go behind what was claimed."""
        if self._options.asc and reached is not None:
            self.bound = self._range.key(reached), reached
            for feed in (self.loose, *self.feeds):
                if feed.lane is not None:
                    feed.low = feed.high
