"""Windows of a stream: slices of its range that are read in any order, and how far they reach without a gap."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from checkpoint.streams.counts import NO_ROWS, Stats
from checkpoint.streams.feeding import Feeding, T
from checkpoint.streams.options import is_length
from checkpoint.streams.values import wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from checkpoint.streams.options import Options
    from checkpoint.streams.reading import Scan
    from checkpoint.streams.values import Amount, Key, Scale

MINUTE = 60


class Window(Feeding[T]):
    """Rows from `start` to before `end`, read on their own: in any order, in a thread or task of their own.

        for window in contacts.windows(timedelta(days=1), until=midnight):
            with window:
                for rows in window.pages(api.contacts(window.start, window.end)):
                    sink.write(rows)

    It is finished when its block is left cleanly and a `pages`, `track` or `fetch` was read to its end. It is not
    finished after an exception, while the run is stopping, or while one of these was begun and not read to its end.
    Where it was fed in another way, or read elsewhere, call `finish()`, which needs no block. A window that is not
    finished may be entered again.
    """

    __slots__ = ("_frontier", "end", "start")

    def __init__(self, start: Any, end: Any, frontier: Frontier) -> None:
        self.start: Any = start
        """Its first value, in the type of the stream's `start_value`."""
        self.end: Any = end
        """The first value after it."""
        self._frontier = frontier
        self._scan = frontier.idle

    def __repr__(self) -> str:
        return f"Window({self.start!r}, {self.end!r})"

    def __enter__(self) -> Self:
        if self._scan is not self._frontier.idle:
            raise RuntimeError(f"{self!r} is already entered: read a window in one block at a time")
        self._scan = self._frontier.begin(self.start, self.end)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        scan, self._scan = self._scan, self._frontier.idle
        self._frontier.leave(self.start, self.end, scan, failed=exc_type is not None)

    def finish(self) -> None:
        """Say that the window was read to its end: everything in it was handed out, here or elsewhere.

        Raises:
            RuntimeError: the stream was opened again, went back, or its run has ended.

        """
        if self._scan is self._frontier.idle:
            self._frontier.finish(self.start, self.end)
        else:
            self._scan.check()
            self._scan.finish()


class Island(NamedTuple):
    """A finished part of a stream."""

    start: Key
    end: Key
    until: Any
    """The value of its end."""
    stored: list[Any]
    """Its two values as they are stored."""


def frontier_of(
    scan: Scan,
    options: Options,
    islands: list[list[Any]],
    stops: Sequence[object],
    step: Amount | Literal["month"],
    until: Any,
) -> Frontier:
    """Return what the windows of a stream are cut from.

    Raises:
        ValueError: it has no start or no end, the end has not come or lies after `end_value`, or the step is none.
        TypeError: the step does not go with the values.

    """
    start = scan.range.start
    if start is None or until is None:
        raise ValueError(f"{scan.name!r}: windows need a start (initial_value) and an end (until, or end_value)")
    if step != "month" and (not is_length(step) or not cast("Any", step) > type(step)()):
        raise ValueError(f"{scan.name!r}: step must be a timedelta or a number above zero, or 'month', not {step!r}")
    scale = scan.range.new_scale()
    scale.settle(start, until)
    _check_until(scan.name, scale, options, until)
    scale.check_step("step", None if step == "month" else step)
    with suppress(OverflowError, ValueError):  # longer than there are years: one window
        scale.shift(start, step, written=True) if step != "month" else scale.months(start, 1)
    return Frontier(scan, scale, options, islands, until, stops)


def _check_until(name: str, scale: Scale, options: Options, until: Any) -> None:
    """Refuse an end that is in the future, or after the end of the stream."""
    end, now = scale.key_of(until), scale.now(MINUTE)
    if scale.kind == "wall":
        raise ValueError(
            f"{name!r}: until={until!r} has no time zone, so nothing tells whether it has passed: pass its time zone, "
            "such as timezone='UTC'"
        )
    if now is not None and end > now:
        advice = scale.unit_advice(until) or ": rows that appear before then would be lost; end at now or earlier"
        raise ValueError(f"{name!r}: until={until!r} is in the future{advice}")
    if options.end_value is not None and end > scale.key_of(options.end_value):
        raise ValueError(
            f"{name!r}: until={until!r} lies after end_value, where the stream ends: pass at most end_value"
        )


class Frontier:
    """The windows of a stream: which parts of it are finished, and how far they reach from its start without a gap.

    Args:
        scan: the stream's, of which windows know what it knows.
        scale: what its bounds compare by.
        options: what the stream was opened with.
        islands: two values each, of what earlier runs finished.
        until: where the last window ends.
        stops: not empty: the run is to stop.

    """

    def __init__(
        self,
        scan: Scan,
        scale: Scale,
        options: Options,
        islands: list[list[Any]],
        until: Any,
        stops: Sequence[object],
    ) -> None:
        self._scan = scan
        self._options = replace(options, lookback=None, oldest_available=None, range_start="closed")
        self._start, self._until = scan.range.start, until
        self._stops = stops
        self._scale = scale
        self._open: set[Scan] = set()
        self._starts: list[Key] = []  # of the islands, which lie apart and in order
        self._islands: list[Island] = []
        self.lock: threading.RLock = threading.RLock()
        self.tally: Stats = NO_ROWS
        """Rows of the windows that were left."""
        self.highest: Any = None
        """The highest value that they handed out."""
        self.refusal: str | None = None
        """Why no more windows are entered."""
        self._unfinished: dict[tuple[Key, Key], str] = {}  # windows that were left, and why they are not finished
        self.idle: Scan = scan.part(replace(self._options, initial_value=None, end_value=None))
        """What a window is fed to outside its block: nothing."""
        self.idle.close(f"{scan.name!r}: feed a window inside its with block")
        for first, after in islands:
            self._add(first, after)
        self._before = list(self._islands)

    # One window

    def begin(self, start: Any, end: Any) -> Scan:
        """Return what the rows of a window are fed to."""
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        scan = self._scan.part(replace(self._options, initial_value=start, end_value=end))
        self._open.add(scan)
        return scan

    def leave(self, start: Any, end: Any, scan: Scan, *, failed: bool) -> None:
        """Note what a window was fed, and whether it is finished."""
        why = _why_unfinished(scan, stopped=bool(self._stops), failed=failed)
        with self.lock:
            self._scan.touch()  # before the change, for a signal handler may raise anywhere; a claim waits for the lock
            self._open.discard(scan)
            if scan.range.bound and not self._scan.range.bound:
                self._scan.range.key(scan.range.sample)
            self.tally += scan.stats
            self.highest = self._scan.range.highest(self.highest, scan.position.highest())
            if why is not None:
                self._unfinished[self._key(start), self._key(end)] = why
            elif self.refusal is None:
                self._scan.boundary.take_over(scan.boundary)
                self._add(start, end)

    def finish(self, start: Any, end: Any) -> None:
        """Note that a window was read elsewhere."""
        with self.lock:
            if self.refusal is not None:
                raise RuntimeError(self.refusal)
            self._scan.touch()
            self._add(start, end)

    def why_unfinished(self) -> str | None:
        """Return why windows that were entered are not finished; None: they are."""
        with self.lock:
            left = [why for (start, end), why in self._unfinished.items() if not self._is_done(start, end)]
        return f"{len(left)} windows: {'; '.join(dict.fromkeys(left))}" if left else None

    def is_read(self) -> bool:
        """Tell whether everything from the start to the end of the last window is finished."""
        with self.lock:
            first, last = self._key(self._start), self._key(self._until)
            return last <= first or self._is_done(first, last)

    def _is_done(self, start: Key, end: Key) -> bool:
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and bool(end <= self._islands[index].end)

    def close(self, why: str) -> None:
        """Enter no more windows, and feed none of those that are entered."""
        with self.lock:
            self.refusal = why
            for scan in list(self._open):
                scan.close(why)

    # All of them

    def reach(self, position: Any) -> tuple[Any, list[list[Any]]]:
        """Return how far the position may go, None: nowhere; and the finished parts beyond that, as stored."""
        with self.lock:
            start = self._key(self._start)
            index = bisect_right(self._starts, start) - 1
            reached = None
            at = None if position is None else self._key(position)
            if index >= 0 and start < self._islands[index].end and (at is None or at < self._islands[index].end):
                reached, at = self._islands[index].until, self._islands[index].end
            first = 0 if at is None else bisect_right(self._islands, at, key=lambda island: island.end)
            return reached, [island.stored for island in self._islands[first:]]

    def _add(self, start: Any, end: Any) -> None:
        """Add a finished part, and join it with the parts that it touches."""
        first, after = self._key(start), self._key(end)
        low = bisect_left(self._starts, first)
        if low and first <= self._islands[low - 1].end:
            low -= 1
        high = bisect_right(self._starts, after)
        added = Island(first, after, end, [wire(start), wire(end)])
        if low < high:
            before, behind = self._islands[low], self._islands[high - 1]
            head = before if before.start < first else added
            tail = behind if behind.end > after else added
            added = Island(head.start, tail.end, tail.until, [head.stored[0], tail.stored[1]])
        self._islands[low:high] = [added]
        self._starts[low:high] = [added.start]

    def cut(self, step: Amount | Literal["month"], until: Any) -> Iterator[Window[Any]]:
        """Yield windows from the start to `until`, `step` long, without what was finished before."""
        islands = iter(self._before)
        island = next(islands, None)
        last, edge, after, count = self._key(until), self._start, self._key(self._start), 0
        while after < last:
            start, first = edge, after
            count += 1
            edge = self._edge(step, count, until)
            after = self._key(edge)
            while island is not None and island.end <= first:
                island = next(islands, None)
            while island is not None and island.start < after:
                if first < island.start:
                    yield Window(start, self._typed(island.stored[0]), self)
                start, first = self._typed(island.stored[1]), island.end
                if first > after:
                    break
                island = next(islands, None)
            if first < after:
                yield Window(start, edge, self)

    def _typed(self, stored: Any) -> Any:
        return self._scan.range.typed(stored)

    def _edge(self, step: Amount | Literal["month"], count: int, until: Any) -> Any:
        try:
            if isinstance(step, str):
                edge = self._scale.months(self._start, count)
            else:
                edge = self._scale.shift(self._start, step, count, written=True)
        except (OverflowError, ValueError):  # past the last year there is
            return until
        return until if self._key(edge) >= self._key(until) else edge

    def _key(self, value: Any) -> Key:
        return self._scale.key_of(value, written=True)


def _why_unfinished(scan: Scan, *, stopped: bool, failed: bool) -> str | None:
    """Return why leaving its block does not finish a window; None: it does."""
    if failed or scan.torn:
        return "an exception left the block" if failed else "an exception came while rows were delivered"
    if scan.position.finished:
        return None
    if stopped:
        return "the run was stopped"
    if scan.position.readings:
        return "a pages(), track() or fetch() was begun and not read to its end"
    if not scan.exhausted:
        return "no pages(), track() or fetch() was read to its end, and finish() was not called"
    return None
