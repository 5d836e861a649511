"""Windows of a stream: slices of its range that are read in any order, and how far they reach without a gap."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, cast, overload

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Self, TypeVar

    from checkpoint.streams.incremental import Incremental
    from checkpoint.streams.values import Key, Scale, Step

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")

Span: TypeAlias = tuple[Any, Any]
"""Two values: from the first to before the second."""


class Window(Generic[T]):
    """Rows from `start` to before `end`, read on their own: in any order, in a thread or task of their own.

        for window in contacts.windows(timedelta(days=1), until=midnight):
            with window:
                for rows in window.pages(api.contacts(window.start, window.end)):
                    sink.write(rows)

    It is finished where its block is left cleanly: not by an exception, not while the run is stopping, not with a
    `track` or `pages` that was begun and is not exhausted. One that is not finished may be entered again.
    """

    def __init__(self, start: Any, end: Any, begin: Callable[[], Incremental[T]], end_: Callable[..., None]) -> None:
        self.start = start
        """Its first value, in the type of the stream's `start_value`."""
        self.end = end
        """The first value after it."""
        self._begin = begin
        self._end = end_
        self._rows: Incremental[T] | None = None

    def __repr__(self) -> str:
        return f"Window({self.start!r}, {self.end!r})"

    def __enter__(self) -> Self:
        self._rows = self._begin()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        rows, self._rows = self._entered(), None
        self._end(self, rows, failed=exc_type is not None)

    @overload
    def pages(self, batches: AsyncIterable[Iterable[T]]) -> AsyncIterator[list[T]]: ...
    @overload
    def pages(self, batches: Iterable[Iterable[T]]) -> Iterator[list[T]]: ...
    def pages(self, batches: Any) -> Any:
        """Yield each page with the rows that are in the window; see `Incremental.pages`."""
        return cast("Any", self._entered()).pages(batches)

    def filter(self, batch: Iterable[T]) -> list[T]:
        """Return the rows of a batch that are in the window; see `Incremental.filter`."""
        return self._entered().filter(batch)

    @overload
    def track(self, records: AsyncIterable[T]) -> AsyncIterator[T]: ...
    @overload
    def track(self, records: Iterable[T]) -> Iterator[T]: ...
    def track(self, records: Any) -> Any:
        """Yield the records that are in the window, one by one; see `Incremental.track`."""
        return cast("Any", self._entered()).track(records)

    def observe(self, record: T) -> bool:
        """Tell whether a record is in the window, and is to be delivered; see `Incremental.observe`."""
        return self._entered().observe(record)

    def _entered(self) -> Incremental[T]:
        if self._rows is None:
            raise RuntimeError(f"{self!r} is fed inside its with block")
        return self._rows


class Frontier:
    """The finished parts of a stream, and how far they reach from its start without a gap."""

    def __init__(self, scale: Scale, start: Any, islands: list[Span]) -> None:
        self._scale = scale
        self._start = start
        self._islands = islands
        self._done: list[Span] = []
        self.lock = threading.RLock()

    def finish(self, span: Span) -> None:
        """Count a part as finished."""
        with self.lock:
            self._done.append(span)

    def reach(self) -> tuple[Any, list[Span]]:
        """Return the end of what is finished from the start on, None where that is nothing, and the parts beyond."""
        with self.lock:
            merged = self._merge([*self._islands, *self._done])
        if merged and self._key(merged[0][0]) <= self._key(self._start) < self._key(merged[0][1]):
            return merged[0][1], merged[1:]
        return None, merged

    def _merge(self, spans: list[Span]) -> list[Span]:
        """Join the parts that touch, in order."""
        merged: list[Span] = []
        for start, end in sorted(spans, key=lambda span: self._key(span[0])):
            if merged and self._key(start) <= self._key(merged[-1][1]):
                merged[-1] = merged[-1][0], max(merged[-1][1], end, key=self._key)
            else:
                merged.append((start, end))
        return merged

    def cut(self, step: Step | Literal["month"], until: Any) -> Iterator[Span]:
        """Yield the parts from the start to `until`, `step` long, without what was finished before."""
        islands = self._merge(self._islands)
        last, edge, count = self._key(until), self._start, 0
        while self._key(edge) < last:
            count += 1
            start, edge = edge, self._edge(step, count, until)
            yield from self._without(islands, start, edge)

    def _edge(self, step: Step | Literal["month"], count: int, until: Any) -> Any:
        try:
            if isinstance(step, str):
                edge = self._scale.months(self._start, count)
            else:
                edge = self._scale.shift(self._start, step, count, written=True)
        except (OverflowError, ValueError):  # past the last year there is
            return until
        return until if self._key(edge) >= self._key(until) else edge

    def _without(self, islands: list[Span], start: Any, end: Any) -> Iterator[Span]:
        for first, after in islands:
            if self._key(after) <= self._key(start) or self._key(first) >= self._key(end):
                continue
            if self._key(start) < self._key(first):
                yield start, first
            start = after
        if self._key(start) < self._key(end):
            yield start, end

    def _key(self, value: Any) -> Key:
        return self._scale.key_of(value, written=True)
