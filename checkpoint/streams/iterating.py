"""The iterators over a source's rows. They get their scan at the first row: the stream may be reset before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from checkpoint.streams import paging, passing

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from checkpoint.streams.reading import Scan
    from checkpoint.streams.stored import Resume

GetPage: TypeAlias = "Callable[[Any], tuple[Any, Any]]"
"""Returns the rows of the page that begins at a place, None: the first one; and where the next one begins."""
GetPageAsync: TypeAlias = "Callable[[Any], Awaitable[tuple[Any, Any]]]"


def pages(scan_of: Callable[[], Scan], batches: Iterable[Any]) -> Iterator[Any]:
    """Yield what is new of each page."""
    scan = scan_of()
    reading = scan.begin()
    try:
        for batch in batches:
            rows = paging.feed(scan, batch, reading)
            some = len(rows) > 0
            scan.torn = False  # no handler runs between this and handing them out
            if some:
                yield rows
            if reading.closed:
                break
        scan.exhaust(reading)
    finally:
        scan.leave(reading)


async def pages_async(scan_of: Callable[[], Scan], batches: AsyncIterable[Any]) -> AsyncIterator[Any]:
    """Yield what is new of each page."""
    scan = scan_of()
    reading = scan.begin()
    try:
        async for batch in batches:
            rows = paging.feed(scan, batch, reading)
            some = len(rows) > 0
            scan.torn = False  # no handler runs between this and handing them out
            if some:
                yield rows
            if reading.closed:
                break
        scan.exhaust(reading)
    finally:
        scan.leave(reading)


def track(scan_of: Callable[[], Scan], records: Iterable[Any]) -> Iterator[Any]:
    """Yield what is new, one by one."""
    scan = scan_of()
    reading = scan.begin()
    try:
        yield from passing.track(scan, reading, records)
        scan.exhaust(reading)
    finally:
        scan.leave(reading)


async def track_async(scan_of: Callable[[], Scan], records: AsyncIterable[Any]) -> AsyncIterator[Any]:
    """Yield what is new, one by one."""
    scan = scan_of()
    reading = scan.begin()
    step = passing.taker(scan, reading)
    try:
        async for record in records:
            if step(record):
                yield record
            elif reading.closed:
                break
        scan.exhaust(reading)
    finally:
        scan.leave(reading)


def fetch(scan_of: Callable[[], Scan], resume_of: Callable[[], Resume | None], page: GetPage) -> Iterator[Any]:
    """Yield the new rows of each page that `page(at)` returns, until a page names no next one."""
    scan = scan_of()
    reading = scan.begin_fetch(resume_of())
    try:
        while not reading.closed:
            rows = paging.answered(scan, page(reading.place), reading)
            some = len(rows) > 0
            scan.torn = False  # no handler runs between this and handing them out
            if some:
                yield rows
            if reading.place is None:
                break
        scan.exhaust(reading)
    finally:
        scan.leave(reading)


async def fetch_async(
    scan_of: Callable[[], Scan], resume_of: Callable[[], Resume | None], page: GetPageAsync
) -> AsyncIterator[Any]:
    """Yield the new rows of each page that `await page(at)` returns, until a page names no next one."""
    scan = scan_of()
    reading = scan.begin_fetch(resume_of())
    try:
        while not reading.closed:
            rows = paging.answered(scan, await page(reading.place), reading)
            some = len(rows) > 0
            scan.torn = False  # no handler runs between this and handing them out
            if some:
                yield rows
            if reading.place is None:
                break
        scan.exhaust(reading)
    finally:
        scan.leave(reading)
