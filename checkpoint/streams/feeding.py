"""The methods that take rows, shared by streams and windows."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Protocol, cast, overload

from checkpoint.streams import iterating, paging

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from checkpoint.streams.reading import Scan
    from checkpoint.streams.stored import Resume

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
    """Takes the rows of a source and hands out the new ones.

    A *reading* is one call of `pages`, `track` or `fetch`; it begins when its first row is asked for. A claim covers
    the pages handed out, the records given to `observe`, and of a `track` the records before the one in hand.
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
        """Yield the new rows of each page, and leave out pages without any; tables come back as pyarrow tables.

        A page handed out is covered by the next claim. Of a `"desc"` stream the pages end with the first row before
        `start_value`. Async iterables give async iterators.

        Raises:
            As `filter`.

        """
        if isinstance(batches, AsyncIterable):
            return iterating.pages_async(self._current, cast("AsyncIterable[Any]", batches))  # type: ignore[redundant-cast]  # pyright needs it
        return iterating.pages(self._current, batches)

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
        return paging.filter_page(self._scan, batch)

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
            return iterating.track_async(self._current, records)
        return iterating.track(self._current, records)

    @overload
    def fetch(self, page: Callable[[Any], Awaitable[tuple[Iterable[T], Any]]]) -> AsyncIterator[list[T]]: ...
    @overload
    def fetch(self, page: Callable[[Any], tuple[Iterable[T], Any]]) -> Iterator[list[T]]: ...
    def fetch(self, page: Callable[[Any], Any]) -> Any:
        """Drive a paged source, yield the rows of each page that are new, and go on where a run was interrupted.

            def page(token):
                answer = api.deals(updated_since=deals.start_value, page_token=token)
                return answer["rows"], answer["next"]

        A commit stores the `next` of the last page that it covers; the next run begins there while `cursor_field`,
        `start_value` and `end_value` are the same. With a `primary_key`, rows that come again are dropped. Of a
        `"desc"` stream the pages end with the first row before `start_value`. A coroutine function gives an async
        iterator.

        Args:
            page: returns the rows of the page that begins at a place, and where the next one begins (any JSON, given
                back as JSON gives it; None: there is none). It is called with None for the first page.

        Raises:
            CursorStuck: a page held nothing new, and leads back to itself.
            As `filter`.

        """
        call = getattr(page, "__call__", None)  # noqa: B004 - of an object, whether that is a coroutine function
        if inspect.iscoroutinefunction(page) or inspect.iscoroutinefunction(call):
            return iterating.fetch_async(self._current, self._place, page)
        return iterating.fetch(self._current, self._place, page)

    def _place(self) -> Resume | None:
        """Return the place where a `fetch` starts; None: at the first page."""
        return None

    def observe(self, record: T) -> bool:
        """Tell whether a record is new, and is to be delivered; the next claim covers it.

        Raises:
            As `filter`.

        """
        return self._scan.observe(record)
