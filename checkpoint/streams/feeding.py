"""What rows are fed through: the same for a stream and for a window of it, typed once."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Protocol, cast, overload

from checkpoint.streams import reading

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from checkpoint.streams.reading import Scan

    T = TypeVar("T", default=Any)
    Table = TypeVar("Table", bound="Tabular")
else:
    from typing import TypeVar

    T = TypeVar("T")


class Tabular(Protocol):
    """A pyarrow Table or RecordBatch."""

    num_rows: Any
    schema: Any
    to_pylist: Any


class Feeding(Generic[T]):
    """Takes the rows of a source, and hands out those that are new.

    A *reading* is one call of `pages` or `track`; it begins when its first row is asked for. A claim covers the pages
    handed out, the records given to `observe`, and of a `track` the records before the one in hand.
    """

    __slots__ = ("_scan",)

    _scan: Scan

    def _current(self) -> Scan:
        return self._scan

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
            return reading.pages_async(self._current, cast("AsyncIterable[Any]", batches))  # type: ignore[redundant-cast]  # pyright needs it
        return reading.pages(self._current, batches)

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
            CursorRegressed: the stream is sorted, and the rows are not, or go behind the last claim.
            RuntimeError: the stream is detached, its run has ended, or it is cut into windows.

        """
        return self._scan.filter(batch)

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
            return reading.track_async(self._current, records)
        return reading.track(self._current, records)

    def observe(self, record: T) -> bool:
        """Tell whether a record is new, and is to be delivered; the next claim covers it.

        Raises:
            As `filter`.

        """
        return self._scan.observe(record)
