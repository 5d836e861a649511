"""One stream's cursor: what to ask the source for, what was handed out, and how far it is safe to say.

    Options    what it was opened with
    Range      from where to where it reads, and what kind its values are
    Feed       a way by which rows come in, and the lane in which they pass without a look at their keys
    Boundary   the memory of rows at the position
    Position   how far the rows that were handed out allow a stream to say it is
    Reading    all of these, and how a row is judged

Incremental and Window are what a job sees of them. A stream that goes back begins another Reading; what is under way
in the one before is refused.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, cast, overload

from checkpoint.streams.boundary import stored_digests
from checkpoint.streams.feed import OUTSIDE
from checkpoint.streams.options import SEEN, WINDOWS, Options
from checkpoint.streams.reading import Reading
from checkpoint.streams.values import Step, wire
from checkpoint.streams.windows import Frontier, Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from typing_extensions import Self, TypeVar

    from checkpoint.codec import Cursor
    from checkpoint.streams.feed import Feed

    T = TypeVar("T", default=Any)
    Table = TypeVar("Table", bound="Tabular")
else:
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["Incremental", "Options", "Stats"]

logger = logging.getLogger("checkpoint")

WENT_BACK = "went back to its last claim: ask the source again from start_value"
DETACHED = "is detached: open it again with cp.incremental"
ENDED = "is used after its run has ended: open it in a Checkpointer's with block"
CUT = "is cut into windows: feed those, or open it again to go on row by row"


class Tabular(Protocol):
    """A pyarrow Table or RecordBatch."""

    num_rows: Any
    schema: Any
    to_pylist: Any


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

    def plus(self, delivered: int, dropped: int, late: int) -> Stats:
        """Return these and some more."""
        return Stats(
            self.seen + delivered + dropped, self.delivered + delivered, self.dropped + dropped, self.late + late
        )


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a commit says of a stream."""

    cursor: Cursor | None
    position: Any
    reached: Any
    """The highest value covered that may become the position; None: nothing was covered."""


class Incremental(Generic[T]):
    """One stream of rows with a cursor field: from where to read on, which rows are new, what a commit may say.

        contacts = cp.incremental("contacts", "updated_at", initial_value="1970-01-01T00:00:00Z", primary_key="id")
        for rows in contacts.pages(api.contacts(updated_since=contacts.start_value)):
            sink.write(rows)
            cp.commit()

    Made by `Checkpointer.incremental`, which claims it. As a context manager it is finished where its block is left
    cleanly, and goes back to its last claim, detached, where an exception leaves it. It belongs to one thread at a
    time.
    """

    __slots__ = (
        "__weakref__", "_base", "_counted", "_detached", "_frontier", "_highest", "_inner", "_last", "_left", "_loose",
        "_options", "_pending", "_position", "_reading", "_stops", "_warned", "key",
    )  # fmt: skip

    _reading: Reading
    _loose: Feed  # the reading's, for `observe`
    _position: Any  # the last one claimed or stored, as it came
    _base: Cursor | None  # what the next claim starts from: the last claim, until the stream is rewound
    _frontier: Frontier | None  # of its windows
    _pending: _Claim

    def __init__(self, key: str, options: Options, stored: Cursor | None, stops: Sequence[object] = ()) -> None:
        self.key = key
        """The key the cursor is stored under."""
        self._options = options
        self._stops = stops  # not empty: the run is to stop
        self._detached = self._warned = False
        self._last = stored  # the last claim, or what was stored
        self._inner: weakref.WeakSet[Incremental[T]] = weakref.WeakSet()  # what feeds its windows
        self._counted = Stats(0, 0, 0, 0)  # of earlier readings, and of windows
        self._highest: Any = None  # so too
        self._start(stored)
        _streams.add(self)

    def __repr__(self) -> str:
        return f"Incremental({self.key!r}, {self._options.field!r})"

    # Where to start

    @property
    def start_value(self) -> Any:
        """What to ask the source for: rows at this value and after it; None: all.

        The stored position less `lookback`, or `initial_value`; in the type of `initial_value`.
        """
        return self._reading.range.start

    @property
    def end_value(self) -> Any:
        """Rows before this value are read; None: all there are."""
        return self._options.end_value

    @property
    def last_value(self) -> Any:
        """The highest value handed out in this run, as it came; None: there was none."""
        reading = self._reading
        return reading.range.highest((self._highest, reading.position.highest()))

    @property
    def stats(self) -> Stats:
        """How many rows were seen, delivered and dropped in this run."""
        reading = self._reading
        return self._counted.plus(reading.position.count(), reading.dropped, reading.late)

    # Feeding

    @overload
    def pages(self, batches: AsyncIterable[Table]) -> AsyncIterator[Table]: ...  # type: ignore[overload-overlap,unused-ignore]  # Table is Any without pyarrow
    @overload
    def pages(self, batches: Iterable[Table]) -> Iterator[Table]: ...  # type: ignore[overload-overlap,unused-ignore]  # Table is Any without pyarrow
    @overload
    def pages(self, batches: AsyncIterable[Iterable[T]]) -> AsyncIterator[list[T]]: ...
    @overload
    def pages(self, batches: Iterable[Iterable[T]]) -> Iterator[list[T]]: ...
    def pages(self, batches: Any) -> Any:
        """Yield each page with the rows that are new, empty pages left out; pyarrow tables and batches as such.

        A page handed out is covered by the next claim. Of a `"desc"` stream the pages end with the first row before
        `start_value`. Async iterables give async iterators.

        Raises:
            As `filter`.

        """
        if isinstance(batches, AsyncIterable):
            return self._pages_async(cast("AsyncIterable[Any]", batches))  # type: ignore[redundant-cast]  # pyright needs it
        return self._pages(batches)

    def _pages(self, batches: Iterable[Any]) -> Iterator[Any]:
        yield from self._reading.pages(batches)

    async def _pages_async(self, batches: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async for rows in self._reading.pages_async(batches):
            yield rows

    @overload
    def filter(self, batch: Table) -> Table: ...  # type: ignore[overload-overlap,unused-ignore]  # Table is Any without pyarrow
    @overload
    def filter(self, batch: Iterable[T]) -> list[T]: ...
    def filter(self, batch: Any) -> Any:
        """Return the rows of a batch that are new; the next claim covers them. A pyarrow table or batch gives one.

        All or nothing: when it raises, nothing of the batch was observed.

        Raises:
            ValueError: a row has no cursor value, and `on_cursor_value_missing` says raise.
            TypeError: a cursor value does not compare with the others.
            CursorRegressed: the stream is `"asc"`, and the batch is not in order or goes behind the last claim.
            RuntimeError: the stream is detached, or cut into windows.

        """
        return self._reading.filter(batch)

    @overload
    def track(self, records: AsyncIterable[T]) -> AsyncIterator[T]: ...
    @overload
    def track(self, records: Iterable[T]) -> Iterator[T]: ...
    def track(self, records: Iterable[T] | AsyncIterable[T]) -> Iterator[T] | AsyncIterator[T]:
        """Yield the records that are new, one by one.

        A claim covers those before the one in hand. Of a `"desc"` stream they end with the first one before
        `start_value`. Async iterables give async iterators.

        Raises:
            As `filter`, at the record.

        """
        if isinstance(records, AsyncIterable):
            return self._track_async(records)
        return chain.from_iterable(self._track(records))

    def _track(self, records: Iterable[T]) -> Iterator[Iterable[T]]:
        if isinstance(records, list):
            yield from self._reading.runs(records)
        else:
            yield self._reading.each(records)

    async def _track_async(self, records: AsyncIterable[T]) -> AsyncIterator[T]:
        async for record in self._reading.each_async(records):
            yield record

    def observe(self, record: T) -> bool:  # called for every row of millions, and so without calls
        """Tell whether a record is new, and is to be delivered; the next claim covers it.

        Raises:
            As `filter`.

        """
        feed = self._loose
        row: Any = record
        try:
            value = row[feed.name]
            mark = feed.quick
            if mark:
                if value > feed.high:
                    if value < feed.top and value[mark] == "Z":
                        feed.high = value
                        feed.delivered += 1.0
                        return True
                elif value >= feed.low and value[mark] == "Z":
                    feed.delivered += 1.0
                    return True
                return self._reading.observe(record)
            mark = feed.mark
            if value > feed.high:
                if value < feed.top and (value[mark] == "Z" if mark else feed.spelled(value)):
                    if feed.alone:
                        feed.single = row.copy()
                    elif feed.keyed:
                        self._reading.position.remember(value, row)
                    feed.high = value
                    feed.delivered += 1.0
                    return True
            elif value >= feed.low and (value[mark] == "Z" if mark else feed.spelled(value)):
                if feed.keyed:
                    self._reading.position.remember(value, row)
                feed.delivered += 1.0
                return True
        except OUTSIDE:
            pass  # there is no lane, or it is something else: its key tells
        return self._reading.observe(record)

    # The position

    def finish(self) -> None:
        """Say that the source was read to its end: everything from `start_value` on was handed out."""
        self._reading.check()
        self._reading.finish()

    def unfinished(self) -> None:
        """Say that the source was not read to its end, so that leaving the block does not finish the stream."""
        position = self._reading.position
        position.finished, position.unfinished = False, True

    def rewind(self, value: Any, reason: str) -> None:
        """Move the position back to `value`; the next commit stores it.

        Raises:
            ValueError: it lies after the position.

        """
        self._reading.check()
        if self._position is not None and self._reading.range.compare(value, self._position) > 0:
            raise ValueError(f"{self.key!r}: {value!r} lies after the position {self._position!r}: that is no rewind")
        self._start({self._options.field: wire(value)})
        logger.info("%r: rewound: %s", self.key, reason)

    def reset(self, reason: str) -> None:
        """Forget the position, and start from `initial_value` again; the next commit deletes or replaces it."""
        self._reading.check()
        self._start(None)
        logger.info("%r: reset: %s", self.key, reason)

    # Windows

    def windows(self, step: Step | Literal["month"], until: Any = None) -> Iterator[Window[T]]:
        """Cut what is to be read into windows: from `start_value` to `until`, `step` long each, the last one shorter.

        The position is the end of the first windows that are finished without a gap. Those finished beyond it are
        stored beside it; the next run skips them, whatever its step. From here on the windows are fed, and not the
        stream.

        Args:
            step: a timedelta, a number, or `"month"`.
            until: the end of the last window; None: `end_value`.

        Raises:
            ValueError: there is no start or no end, the end is in the future or after `end_value`, or the step is none.

        """
        self._reading.check()
        until = self._options.end_value if until is None else until
        if self.start_value is None or until is None:
            raise ValueError(f"{self.key!r}: windows need a start (initial_value) and an end (until, or end_value)")
        if step != "month" and (isinstance(step, str) or not cast("Any", step) > type(step)()):
            raise ValueError(f"step must be a timedelta or number above zero, or 'month', not {step!r}")
        scale = self._reading.range.new_scale()
        scale.settle(self.start_value, until)
        end, now = scale.key(until), scale.now()
        if now is not None and end > now:
            raise ValueError(f"{self.key!r}: until={until!r} is in the future: what happens until then would be lost")
        if self._options.end_value is not None and end > scale.key(self._options.end_value):
            raise ValueError(f"{self.key!r}: until={until!r} lies after end_value, up to which the stream is read")
        with suppress(OverflowError, ValueError):  # longer than there are years: one window
            scale.shift(self.start_value, step, written=True) if step != "month" else scale.months(self.start_value, 1)
        islands: list[list[Any]] = (self._base or {}).get(WINDOWS) or []
        typed = self._reading.range.typed
        frontier = Frontier(scale, self.start_value, [(typed(start), typed(end)) for start, end in islands])
        self._reading.close(f"{self.key!r} {CUT}")
        self._frontier = frontier
        return (self._window(frontier, start, end) for start, end in frontier.cut(step, until))

    def _window(self, frontier: Frontier, start: Any, end: Any) -> Window[T]:
        def begin() -> Incremental[T]:
            if self._detached or self._frontier is not frontier:
                raise RuntimeError(f"{self.key!r} was opened again or went back to its last claim: cut new windows")
            options = replace(
                self._options,
                initial_value=start, end_value=end, lookback=None, oldest_available=None, range_start="closed",
            )  # fmt: skip
            rows: Incremental[T] = Incremental(self.key, options, None, self._stops)
            rows._reading.recall(self._reading)
            self._inner.add(rows)
            return rows

        def end_(window: Window[T], rows: Incremental[T], *, failed: bool) -> None:
            if not failed:
                rows.leave()
            with frontier.lock:
                if rows._reading.position.finished and not failed and self._frontier is frontier:
                    frontier.finish((window.start, window.end))
                    self._reading.boundary.take_over(rows._reading.boundary)
                self._keep_counts(rows)

        return Window(start, end, begin, end_)

    def _claim_windows(self, frontier: Frontier) -> Cursor | None:
        with frontier.lock:
            reached, islands = frontier.reach()
            moved = reached is not None and self._lies_beyond(reached)
            position = reached if moved else self._position
            cursor = self._cursor(position, moved=True) if moved else dict(self._base or {})
        before = cursor.pop(WINDOWS, None)
        left = [[wire(start), wire(end)] for start, end in self._passing(islands, position)]
        if left:
            cursor[WINDOWS] = left
        elif before is None and not moved:
            return self._base
        return cursor

    def _passing(self, islands: Iterable[Any], position: Any) -> list[Any]:
        """Return the finished windows that end beyond a position."""
        if position is None:
            return list(islands)
        key = self._reading.range.key_written
        return [island for island in islands if key(island[1]) > key(position)]

    def _lies_beyond(self, value: Any) -> bool:
        """Tell whether a value lies after the position."""
        key = self._reading.range.key_written
        return self._position is None or bool(key(value) > key(self._position))

    def _keep_counts(self, rows: Incremental[T]) -> None:
        """Count what was fed to another reading, too."""
        stats = rows.stats
        self._counted = self._counted.plus(stats.delivered, stats.dropped, stats.late)
        self._highest = self._reading.range.highest((self._highest, rows.last_value))

    def __enter__(self) -> Self:
        self._reading.check()
        self._left = False
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.leave()
        else:
            self.detach()

    # What a Checkpointer does with a stream

    @property
    def live(self) -> bool:
        """Whether commits claim the stream: not once it was left by an exception, or opened again."""
        return not self._detached

    def leave(self) -> None:
        """Finish the stream, at the end of its block, unless something says that there is more to read."""
        if self._left or self._detached:
            return
        self._left = True
        position = self._reading.position
        if not (self._stops or position.feeds or position.unfinished or self._frontier is not None):
            self.finish()

    def detach(self) -> None:
        """Go back to the last claim, for good."""
        self._start(self._last, DETACHED)
        self._close(DETACHED)

    def end(self) -> None:
        """Refuse to be fed any more, for the run has ended; what the stream can tell stays readable."""
        self._close(ENDED)

    def _close(self, why: str) -> None:
        if not self._detached:
            self._detached = True
            self._reading.close(f"{self.key!r} {why}")
        for rows in self._inner:
            rows._close(why)  # noqa: SLF001 - another of this class

    def back(self, cursor: Cursor | None) -> None:
        """Go back to a claim, and go on from there."""
        self._start(cursor)
        self._last = cursor

    def claim(self) -> Cursor | None:
        """Return what the stream's key is to hold once all rows handed out are delivered; None: nothing.

        It becomes the last claim with `claimed`.
        """
        if self._frontier is not None:
            cursor = self._claim_windows(self._frontier)
            self._pending = _Claim(cursor, (cursor or {}).get(self._options.field), None)
            return cursor
        reached = self._reading.position.reached()
        position, moved = self._position, False
        if reached is not None and self._lies_beyond(reached):
            position, moved = reached, True
        cursor = self._base
        if moved or (position is not None and not self._reading.boundary.empty):
            cursor = self._cursor(position, moved=moved)
        self._pending = _Claim(cursor, position, reached)
        return cursor

    def claimed(self) -> None:
        """Take what `claim` returned for said."""
        claim = self._pending
        self._last = self._base = claim.cursor
        self._position = claim.position
        self._reading.position.claimed(claim.reached)

    def _cursor(self, position: Any, *, moved: bool) -> Cursor:
        """Return the base with a position in it, and the boundary rows that belong to that."""
        field, limit = self._options.field, self._options.max_seen
        cursor: Cursor = dict(self._base or {})
        seen = [] if moved else stored_digests(cursor, field)
        cursor.pop(SEEN, None)
        if moved:
            cursor[field] = wire(position)
        if self._options.keyed:
            seen = [*dict.fromkeys([*seen, *self._reading.boundary.digests(position)])]
            if len(seen) > limit:
                self._warn()
                seen = seen[-limit:] if moved else seen[:limit]
        if seen:
            cursor[SEEN] = {"at": cursor[field], "rows": seen}
        if moved and (left := self._passing(cursor.pop(WINDOWS, ()), position)):
            cursor[WINDOWS] = left
        return cursor

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%r: more than %d rows at its position: the next run hands some of them out again; raise max_seen",
                self.key, self._options.max_seen,
            )  # fmt: skip

    def _start(self, stored: Cursor | None, why: str = WENT_BACK) -> None:
        """Start from a stored cursor; None: from `initial_value`. Rows handed out and not claimed are forgotten."""
        field = self._options.field
        reading = Reading(self.key, self._options, self._position_of(stored), stored_digests(stored, field))
        if hasattr(self, "_reading"):
            self._counted, self._highest = self.stats, self.last_value
            self._reading.close(f"{self.key!r} {why}")
        self._reading, self._loose = reading, reading.position.loose
        self._position, self._base = reading.range.position, stored
        self._frontier = None
        self._left = False

    def _position_of(self, stored: Cursor | None) -> Any:
        if stored is None:
            return None
        position = stored.get(self._options.field)
        if position is None and WINDOWS not in stored:
            raise ValueError(
                f"{self.key!r} is stored by {', '.join(map(repr, stored)) or 'nothing'}, not by "
                f"{self._options.field!r}: delete the key to start over, or set it to a cursor of this field"
            )
        return position


# So that a fork finds them.
_streams: weakref.WeakSet[Incremental[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    """Let the streams of a forked child go back: it cannot say that rows which the parent took are delivered."""
    for stream in list(_streams):
        if stream.live:
            stream._start(stream._last)  # noqa: SLF001 - this module's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
