"""One stream's cursor: what to ask the source for, what was handed out, and how far it is safe to say.

Every row is judged by its key (see `checkpoint.values`). That is the slow way, and the truth. After a row was handed
out a `Lane` is opened behind it: rows that are spelled alike, and fall inside it, are handed out as well without a
look at their keys. What the lane does not know goes the slow way.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from operator import length_hint
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, cast, overload

from checkpoint.errors import CursorExpired, CursorRegressed
from checkpoint.rows import Field, Primary, digest, getter, primary_getter
from checkpoint.values import Key, Lane, Scale, Step, clock, wire
from checkpoint.windows import Frontier, Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from datetime import tzinfo
    from types import TracebackType

    from typing_extensions import Self, TypeVar

    from checkpoint.codec import Cursor

    T = TypeVar("T", default=Any)
    Table = TypeVar("Table", bound="Tabular")
else:
    from typing import TypeVar

    T = TypeVar("T")

logger = logging.getLogger("checkpoint")


class Tabular(Protocol):
    """A pyarrow Table or RecordBatch."""

    num_rows: Any
    schema: Any
    to_pylist: Any


RowOrder: TypeAlias = Literal["asc", "desc"] | None
Memo: TypeAlias = Any
"""A delivered row to remember: its digest, or a copy to digest when it is claimed; None where there is no key."""

SKEW = 300
"""Seconds that a source's clock may be ahead of ours."""

SEEN, WINDOWS = "seen", "windows"

RUN = 1_000
"""Records of a list that are tracked at once."""

_NOTHING: Any = object()


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


@dataclass(frozen=True, slots=True)
class Options:
    """What a stream was opened with; see `Checkpointer.incremental`."""

    cursor_field: Field
    initial_value: Any = None
    end_value: Any = None
    lookback: Step | None = None
    primary_key: Primary | None = None
    row_order: RowOrder = None
    range_start: Literal["closed", "open"] = "closed"
    on_cursor_value_missing: Literal["raise", "include", "exclude"] = "raise"
    timezone: str | tzinfo | None = None
    oldest_available: Any = None
    max_seen: int = 1_000

    def __post_init__(self) -> None:
        _check("row_order", self.row_order, (None, "asc", "desc"))
        _check("range_start", self.range_start, ("closed", "open"))
        _check("on_cursor_value_missing", self.on_cursor_value_missing, ("raise", "include", "exclude"))
        if not callable(self.cursor_field) and not isinstance(cast("object", self.cursor_field), str):
            raise TypeError(f"cursor_field must be a name, a path or a callable, not {self.cursor_field!r}")
        if self.cursor_field in ("", SEEN, WINDOWS):
            raise ValueError(f"cursor_field must not be {self.cursor_field!r}: pass a callable")
        if self.lookback is not None and cast("Any", self.lookback) < type(self.lookback)():
            raise ValueError(f"lookback must not be negative: {self.lookback!r}")
        if self.max_seen < 0:
            raise ValueError(f"max_seen must be 0 or more, not {self.max_seen!r}")

    @property
    def field(self) -> str:
        """The name the position is stored under."""
        return self.cursor_field if isinstance(self.cursor_field, str) else "cursor"


class _Feed:
    """A `track` or `pages` under way, or abandoned."""

    __slots__ = (
        "counted",
        "hand",
        "high",
        "lane",
        "memo",
        "memos",
        "pins",
        "rows",
        "run",
        "settled",
        "stale",
        "values",
    )

    def __init__(self, high: Any) -> None:
        self.high = high  # the highest value that a claim covers, as far as this feed knows
        self.hand: Any = _NOTHING  # the value of the row in hand, which no claim covers yet
        self.memo: Memo = None
        self.pins = False  # it handed out rows: while it is not exhausted, "asc" goes no further than its rows did
        self.lane: Lane | None = None
        self.stale = False  # its stream went back to its last claim
        self.run: Iterator[Any] | None = None  # over `rows`; how far it is, it tells by its length
        self.rows: list[Any] = []
        self.values: list[Any] = []
        self.memos: list[Any] | None = None
        self.settled = 0  # how many of them are covered
        self.counted = 0  # how many were counted as delivered


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that counts for the position."""

    key: Key
    value: Any
    memo: Memo


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

    # More attributes than a dict of instances shares, and some are read for every row.
    __slots__ = (
        "_ahead", "_asc", "_base", "_bound", "_coarse", "_delivered", "_detached", "_dropped", "_end_key", "_feeds",
        "_finished", "_get", "_get_primary", "_high", "_highest", "_holds", "_keyed", "_lane", "_last", "_late",
        "_least", "_left", "_light", "_low", "_mark", "_name", "_old_ties", "_open", "_opened_at", "_opened_key",
        "_options", "_pending", "_plain", "_position", "_remembered", "_scale", "_single", "_start", "_start_key",
        "_stops", "_ties", "_top", "_under", "_under_ties", "_unexhausted", "_unfinished", "_warned", "_windows", "key",
    )  # fmt: skip

    _position: Any  # the last one claimed or stored, as it came
    _last: Cursor | None  # the last claim, or what was stored
    _base: Cursor | None  # what the next claim starts from: the same, until the stream is rewound
    _start: Any
    _scale: Scale
    _start_key: Key | None  # _NOTHING while no value has told what kind they are
    _end_key: Key | None
    _opened_key: Key | None
    _bound: tuple[Key, Any] | None  # what this run last claimed of a sorted stream
    _opened_at: Key
    _remembered: frozenset[str]
    _coarse: bool  # the memory reaches back before the position
    _high: Any  # the highest value covered that may become the position, of what no feed holds
    _highest: Any  # the highest of the others that were handed out
    _under: Any  # the highest but one
    _ties: list[tuple[Any, Memo]]
    _under_ties: list[tuple[Any, Memo]]
    _old_ties: list[tuple[Any, Memo]]  # of rows at the position the stream was opened with, or before it
    _ahead: list[_Row]  # above the ceiling, lowest first
    _feeds: list[_Feed]
    _unexhausted: int
    _finished: bool
    _unfinished: bool
    _least: tuple[Key, Any] | None  # the lowest row handed out in this run that no earlier run can have handed out
    _lane: Lane | None  # of `filter` and `observe`; what follows is its own, for speed, and `_low` moves
    _low: Any
    _top: Any
    _mark: int
    _plain: type | None
    _holds: Callable[[Any], bool]
    _light: bool  # no row is remembered
    _single: Any  # the row at the highest value, where `observe` found it alone there
    _pending: _Claim
    _windows: Frontier | None

    def __init__(self, key: str, options: Options, stored: Cursor | None, stops: Sequence[object] = ()) -> None:
        self.key = key
        """The key the cursor is stored under."""
        self._options = options
        self._stops = stops  # not empty: the run is to stop
        self._asc = options.row_order == "asc"
        self._open = options.range_start == "open"
        self._get = getter(options.cursor_field)
        field = options.cursor_field
        self._name = field if isinstance(field, str) and "." not in field and not self._open else None
        self._get_primary = primary_getter(options.primary_key)
        self._keyed = self._get_primary is not None and options.max_seen > 0
        self._delivered = self._dropped = self._late = 0
        self._detached = self._left = self._warned = False
        self._high = self._highest = self._lane = self._single = None
        self._feeds = []
        self._last = stored
        self._seat(stored)

    def __repr__(self) -> str:
        return f"Incremental({self.key!r}, {self._options.field!r})"

    # Where to start

    @property
    def start_value(self) -> Any:
        """What to ask the source for: rows at this value and after it; None: all.

        The stored position less `lookback`, or `initial_value`; in the type of `initial_value`.
        """
        return self._start

    @property
    def end_value(self) -> Any:
        """Rows before this value are read; None: all there are."""
        return self._options.end_value

    @property
    def last_value(self) -> Any:
        """The highest value handed out in this run, as it came; None: there was none."""
        values = [self._highest, *self._highs(), *(feed.hand for feed in self._feeds)]
        return self._max(value for value in values if value is not None and value is not _NOTHING)

    @property
    def stats(self) -> Stats:
        """How many rows were seen, delivered and dropped in this run."""
        for feed in self._feeds:
            self._settle(feed)
        return Stats(self._delivered + self._dropped, self._delivered, self._dropped, self._late)

    # Feeding

    @overload
    def pages(self, batches: AsyncIterable[Table]) -> AsyncIterator[Table]: ...  # type: ignore[overload-overlap,unused-ignore]
    @overload
    def pages(self, batches: Iterable[Table]) -> Iterator[Table]: ...  # type: ignore[overload-overlap,unused-ignore]
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
            return self._pages_async(cast("AsyncIterable[Any]", batches))  # type: ignore[redundant-cast]
        return self._pages(batches)

    def _pages(self, batches: Iterable[Any]) -> Iterator[Any]:
        feed = self._begin()
        for batch in batches:
            rows, ended = self._page(batch, feed)
            if len(rows):
                yield rows
            if ended:
                break
        self._exhaust(feed)

    async def _pages_async(self, batches: AsyncIterable[Any]) -> AsyncIterator[Any]:
        feed = self._begin()
        async for batch in batches:
            rows, ended = self._page(batch, feed)
            if len(rows):
                yield rows
            if ended:
                break
        self._exhaust(feed)

    @overload
    def filter(self, batch: Table) -> Table: ...  # type: ignore[overload-overlap,unused-ignore]
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
        return self._page(batch, None)[0]

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
        return self._track(records)

    def _track(self, records: Iterable[T]) -> Iterator[T]:
        feed = self._begin()
        if isinstance(records, list):
            yield from self._track_list(feed, records)
        else:
            yield from self._track_each(feed, records)
        self._exhaust(feed)

    def _track_list(self, feed: _Feed, records: list[T]) -> Generator[T, None, None]:
        """Track what is in memory already: whole runs of it at once, where a lane holds them."""
        index, size = 0, 1
        while index < len(records):
            rows = records[index : index + size]
            index += size
            if self._begin_run(feed, rows):
                yield from cast("Iterator[T]", feed.run)
                self._end_run(feed)
            elif (yield from self._track_each(feed, rows)):
                return
            size = RUN if feed.lane is not None else 1

    def _track_each(  # noqa: C901, PLR0912 - a loop over millions, without calls
        self, feed: _Feed, records: Iterable[T]
    ) -> Generator[T, None, bool]:
        """Track one by one; return whether a descending stream ended."""
        name, keyed, asc = self._name, self._keyed, self._asc
        row: Any
        lane: Lane | None = None
        low: Any = None
        top: Any = None
        value: Any = None
        mark, plain, memo = 0, None, None
        for record in records:
            row = record
            if feed.lane is not lane:
                lane = feed.lane
                if lane is not None:
                    low, top, mark, plain = lane.low, lane.top, lane.mark, lane.plain
            if lane is not None:
                try:
                    value = row[name]
                    inside = low <= value < top and (
                        value[mark] == "Z" if mark else type(value) is plain or lane.holds(value)
                    )
                    if keyed and inside:
                        memo = row.copy()
                except (LookupError, TypeError, AttributeError, ArithmeticError):
                    inside = False
                if inside:
                    feed.hand, feed.memo = value, memo
                    self._delivered += 1
                    yield record
                    if feed.stale:
                        self._refuse_stale()
                    feed.hand = _NOTHING
                    if value >= feed.high:
                        if keyed:
                            self._tie(value, memo, rises=value > feed.high)
                        feed.high = value
                        if asc:
                            low = value
                    elif self._coarse and keyed:
                        self._tie(value, memo, rises=False)
                    continue
            verdict = self._offer(feed, record)
            if verdict:
                yield record
                self._take(feed)
            elif verdict is None:
                return True
        return False

    def _begin_run(self, feed: _Feed, rows: list[Any]) -> bool:
        """Take a run of records in hand, where the lane holds all of them."""
        lane = feed.lane
        values = None if lane is None else self._values_in(lane, rows, feed.high)
        if values is None:
            return False
        feed.values, feed.rows = values, rows
        feed.memos = [row.copy() for row in rows] if self._keyed else None
        feed.run, feed.settled, feed.counted = iter(rows), 0, 0
        return True

    def _end_run(self, feed: _Feed) -> None:
        if feed.stale:
            self._refuse_stale()
        self._settle(feed, done=True)
        feed.run = None

    def _settle(self, feed: _Feed, *, done: bool = False) -> None:
        """Count what was taken from the run in hand; the last of it is in hand still, unless the run is done."""
        if feed.run is None:
            return
        taken = len(feed.rows) - length_hint(feed.run)
        covered = taken if done else max(taken - 1, 0)
        feed.hand = feed.values[taken - 1] if covered < taken else _NOTHING
        feed.memo = feed.memos[taken - 1] if covered < taken and feed.memos else None
        self._delivered += taken - feed.counted
        feed.counted = taken
        if covered > feed.settled:
            part = slice(feed.settled, covered)
            feed.settled = covered
            self._cover_values(feed.values[part], feed.memos and feed.memos[part], feed)

    async def _track_async(self, records: AsyncIterable[T]) -> AsyncIterator[T]:
        feed = self._begin()
        async for record in records:
            verdict = self._offer(feed, record)
            if verdict:
                yield record
                self._take(feed)
            elif verdict is None:
                break
        self._exhaust(feed)

    def observe(self, record: T) -> bool:
        """Tell whether a record is new, and is to be delivered; the next claim covers it.

        Raises:
            As `filter`.

        """
        row: Any = record
        try:
            value = row[self._name]
            if self._low <= value < self._top and (
                value[self._mark] == "Z" if self._mark else type(value) is self._plain or self._holds(value)
            ):
                if self._light:
                    if self._asc:
                        self._low = value
                    elif value > self._high:
                        self._high = value
                elif value > (self._low if self._asc else self._high) and not self._coarse:
                    self._single = row.copy()
                    self._low, self._high = (value if self._asc else self._low), value
                else:
                    self._observe_tie(value, row.copy())
                self._delivered += 1
                return True
        except (LookupError, TypeError, AttributeError, ArithmeticError):
            pass  # there is no lane, or it is something else: its key tells
        self._check_fed()
        deliver, late, judged = self._judge(record)
        self._resume()
        self._count(deliver, late)
        if judged is not None:
            self._cover(judged, None, deliver=deliver)
            self._enter_lane(None)
        return deliver

    def _observe_tie(self, value: Any, memo: Memo) -> None:
        """Cover a row that is remembered beside others, or after which is no telling."""
        self._sync()
        if value > self._high:
            self._tie(value, memo, rises=True)
            self._high = value
            if self._asc:
                self._low = value
        elif self._coarse or value == self._high:
            self._tie(value, memo, rises=False)

    def _sync(self) -> None:
        """Bring in what `observe` left where it was quickest to leave: the highest value, and its row."""
        if self._lane is not None and self._asc:
            self._high = self._low
        if self._single is not None:
            self._ties, self._single = [(self._high, self._single)], None

    def _begin(self) -> _Feed:
        self._check_fed()
        self._resume()
        self._leave_lane()  # which knows of one feed
        self._unexhausted += 1
        feed = _Feed(self._max(self._highs()))
        self._feeds.append(feed)
        return feed

    def _exhaust(self, feed: _Feed) -> None:
        if feed.stale:
            self._refuse_stale()
        self._unexhausted = max(0, self._unexhausted - 1)
        self._high = self._max(value for value in (self._high, feed.high) if value is not None)
        self._feeds.remove(feed)
        self._leave_lane()

    def _check_fed(self) -> None:
        if self._detached:
            raise RuntimeError(f"{self.key!r} is detached: open it again with cp.incremental")
        if self._windows is not None:
            raise RuntimeError(f"{self.key!r} is cut into windows: feed those, or open it again to go on row by row")

    def _refuse_stale(self) -> None:
        self._check_fed()
        raise RuntimeError(f"{self.key!r} went back to its last claim: ask the source again from start_value")

    def _resume(self) -> None:
        """Take note that there is more: what was finished is not any longer."""
        self._finished = False

    # One row: judged, then covered

    def _judge(self, record: Any, index: int | None = None) -> tuple[bool, bool, _Row | None]:
        """Tell whether to deliver a record, whether it is late, and what of it counts for the position."""
        value = self._get(record)
        if value is None:
            if self._options.on_cursor_value_missing == "raise":
                where = "" if index is None else f" (row {index} of the batch)"
                raise ValueError(
                    f"{self.key!r}: a row has no {self._options.field!r}{where}: filter it out, or choose "
                    "on_cursor_value_missing='include' or 'exclude'"
                )
            return self._options.on_cursor_value_missing == "include", False, None
        key = self._key(value)
        if self._start_key is not None and key < self._start_key:
            return False, True, None
        if self._end_key is not None and key >= self._end_key:
            return False, False, None
        if self._bound is not None and key < self._bound[0]:
            raise CursorRegressed(self.key, self._bound[1], value)
        if self._options.initial_value is not None and type(value) is not type(self._options.initial_value):
            self._coarse = self._coarse or not isinstance(value, str)
        memo: Memo = None
        if self._keyed:
            if self._remembered and key <= self._opened_key:
                memo = self._digest(record, key)
                if memo in self._remembered:
                    return False, False, _Row(key, value, memo)
            else:
                memo = copy.copy(record)
        return True, False, _Row(key, value, memo)

    def _offer(self, feed: _Feed, record: Any) -> bool | None:
        """Judge a record of a `track` and take it in hand; None: a descending stream ends here."""
        if feed.stale:
            self._refuse_stale()
        deliver, late, row = self._judge(record)
        self._resume()
        self._count(deliver, late)
        if row is not None and not deliver:
            self._cover(row, feed, deliver=False)
        elif row is not None:
            self._reach(row.key, feed)
            feed.hand, feed.memo = row.value, row.memo
        return None if late and self._options.row_order == "desc" else deliver

    def _take(self, feed: _Feed) -> None:
        """Cover the row in hand: the next one was asked for."""
        if feed.stale:
            self._refuse_stale()
        value, feed.hand = feed.hand, _NOTHING
        if value is not _NOTHING:
            self._cover(_Row(self._key(value), value, feed.memo), feed, deliver=True)
            self._enter_lane(feed)

    def _page(self, batch: Any, feed: _Feed | None) -> tuple[Any, bool]:
        """Return what is new of a batch, and whether a descending stream ends with it."""
        if feed is not None and feed.stale:
            self._refuse_stale()
        if type(batch).__module__.partition(".")[0] == "pyarrow":
            return self._arrow_page(batch, feed)
        rows: list[Any] = batch if isinstance(batch, list) else list(batch)  # pyright: ignore[reportUnknownVariableType]
        self._sync()
        lane = self._lane if feed is None else feed.lane
        values = None if lane is None else self._values_in(lane, rows, self._high if feed is None else feed.high)
        if values is not None:
            self._delivered += len(rows)
            self._cover_values(values, [copy.copy(row) for row in rows] if self._coarse else rows, feed)
            return rows[:], False
        mask, ended = self._judge_page(rows, feed)
        return [row for row, deliver in zip(rows, mask, strict=True) if deliver], ended

    def _arrow_page(self, batch: Any, feed: _Feed | None) -> tuple[Any, bool]:
        """As `_page`, of a table or record batch: looked at as columns in a lane, as rows outside it."""
        self._sync()
        from checkpoint import arrow  # noqa: PLC0415 - an extra

        lane, name = (self._lane if feed is None else feed.lane), self._name
        found = None
        if lane is not None and name is not None and not self._coarse:
            found = arrow.extremes(batch, name, lane, ordered=self._asc)
        if lane is not None and found is not None and lane.low <= found[0] and found[1] < lane.top:
            high = self._high if feed is None else feed.high
            if not self._asc or found[0] >= high:
                memos = arrow.at(batch, cast("str", name), found[1]) if self._keyed and found[1] >= high else [None]
                self._delivered += batch.num_rows
                self._cover_values([found[1]] * len(memos), memos, feed)
                return batch, False
        mask, ended = self._judge_page(arrow.rows(batch), feed)
        kept = batch if all(mask) else arrow.choose(batch, mask)
        return kept, ended

    def _judge_page(self, rows: list[Any], feed: _Feed | None) -> tuple[list[bool], bool]:
        """Judge the rows of a page and cover them; return which to deliver, and whether a descending stream ends."""
        self._check_fed()
        judged = [self._judge(record, index) for index, record in enumerate(rows)]
        covered = [(row, deliver) for deliver, _, row in judged if row is not None]
        if self._asc:
            for (row, _), (after, _) in pairwise(covered):
                if after.key < row.key:
                    raise CursorRegressed(self.key, row.value, after.value)
        self._resume()
        for deliver, late, _ in judged:
            self._count(deliver, late)
        for row, deliver in covered:
            self._cover(row, feed, deliver=deliver)
        self._enter_lane(feed)
        ended = self._options.row_order == "desc" and any(late for _, late, _ in judged)
        return [deliver for deliver, _, _ in judged], ended

    def _values_in(self, lane: Lane, rows: list[Any], high: Any) -> list[Any] | None:
        """Return the cursor values of rows that the lane holds, all of them; None: it does not."""
        name = self._name
        try:
            values = [row[name] for row in rows]
            if not values or not lane.holds_all(values):
                return None
            if self._asc:
                if sorted(values) != values:
                    return None
                lowest, highest = values[0], values[-1]
            else:
                lowest, highest = _extremes(values)
            low = max(lane.low, high) if self._asc else lane.low
            return values if low <= lowest and highest < lane.top else None
        except (LookupError, TypeError, AttributeError, ArithmeticError):
            return None

    def _cover_values(self, values: list[Any], memos: list[Memo] | None, feed: _Feed | None) -> None:
        """Cover rows that are in the lane; `memos` are the rows themselves."""
        highest = values[-1] if self._asc else _extremes(values)[1]
        high = self._high if feed is None else feed.high
        if self._keyed and memos is not None:
            if self._coarse:
                self._ties.extend(zip(values, memos, strict=True))
                self._thin()
            elif highest >= high:
                at = [index for index, value in enumerate(values) if value == highest]
                for index in at[: self._options.max_seen + 1]:
                    self._tie(highest, copy.copy(memos[index]), rises=index == at[0] and highest > high)
        if highest > high:
            if feed is None:
                self._high = highest
                if self._asc:
                    self._low = highest
            else:
                feed.high = highest

    def _count(self, deliver: bool, late: bool) -> None:
        if deliver:
            self._delivered += 1
        else:
            self._dropped += 1
            self._late += late

    def _reach(self, key: Key, feed: _Feed | None) -> None:
        """Let go of feeds that stopped at a row which is read again, or after it: this one has the rest."""
        for other in self._feeds:
            if other is feed:
                other.pins = True
            elif other.pins:
                at = other.high if other.hand is _NOTHING else other.hand
                other.pins = at is None or key > self._key(at)

    def _cover(self, row: _Row, feed: _Feed | None, *, deliver: bool) -> None:
        """Count a row for the position: a claim says that it is delivered."""
        self._reach(row.key, feed)
        if self._is_old(row.key):
            if len(self._old_ties) <= self._options.max_seen:
                self._old_ties.append((row.value, row.memo))
            row = replace(row, memo=None)
        if not deliver:  # delivered by an earlier run, so not above the position
            return
        ceiling = self._ceiling_key()
        if ceiling is not None and row.key > ceiling:
            self._highest = self._max(value for value in (self._highest, row.value) if value is not None)
            if self._asc and len(self._ahead) < self._options.max_seen:
                self._ahead.append(row)
            return
        self._rise(row, feed)

    def _rise(self, row: _Row, feed: _Feed | None) -> None:
        high = self._max(self._highs())
        before = None if high is None else self._key(high)
        if not self._is_old(row.key) and (self._least is None or row.key < self._least[0]):
            self._least = row.key, row.value
        rises = before is None or row.key > before
        if rises:
            if self._open and high is not None:
                self._under, self._under_ties = high, self._ties
            if feed is None:
                self._leave_lane()
                self._high = row.value
            else:
                feed.high = row.value
        if row.memo is not None and (self._coarse or rises or row.key == before):
            self._tie(row.value, row.memo, rises=rises)

    def _enter_lane(self, feed: _Feed | None) -> None:
        """Open a lane behind the rows handed out so far."""
        lane = self._new_lane(feed)
        if feed is not None:
            feed.lane = lane
        elif lane is None:
            self._leave_lane()
        else:
            self._lane, self._low, self._top = lane, lane.low, lane.top
            self._mark, self._plain, self._holds = lane.mark, lane.plain, lane.holds
            self._light = not self._keyed

    def _leave_lane(self) -> None:
        self._sync()
        self._lane = self._low = self._top = None

    def _new_lane(self, feed: _Feed | None) -> Lane | None:
        """Return the lane of rows that are spelled as the highest one; low enough for all that were handed out."""
        self._sync()
        high = self._high if feed is None else feed.high
        if self._name is None or high is None or self._least is None or any(other is not feed for other in self._feeds):
            return None
        if self._is_old(self._key(high)):
            return None
        ends = [key for key in (self._end_key, self._ceiling_key()) if key is not None]
        lane = self._scale.lane(high, min(ends, default=None), to_the_day=self._end_key is not None)
        if lane is None or self._asc:
            return lane
        lane.low = self._least[1]
        return lane if lane.holds(lane.low) else None

    # The memory of boundary rows

    def _is_old(self, key: Key) -> bool:
        """Tell whether a row may have been handed out by an earlier run."""
        return self._keyed and self._opened_key is not None and bool(key <= self._opened_key)

    def _tie(self, value: Any, memo: Memo, *, rises: bool) -> None:
        """Remember a row at the highest value so far, or near enough to it to be asked for again."""
        self._sync()
        if self._coarse:
            self._ties.append((value, memo))
            if len(self._ties) > 4 * self._options.max_seen + 1_000:
                self._thin()
        elif rises:
            self._ties = [(value, memo)]
        elif len(self._ties) <= self._options.max_seen:
            self._ties.append((value, memo))

    def _thin(self) -> None:
        """Keep the highest rows of the memory: one more than it may hold, which tells that there were too many."""
        self._ties.sort(key=lambda tie: self._key(tie[0]))
        del self._ties[: -self._options.max_seen - 1]

    def _digest(self, record: Any, key: Key) -> str:
        get = cast("Callable[[Any], Any]", self._get_primary)
        return digest(get(record), self._scale.digestible(key), record)

    # The position

    def finish(self) -> None:
        """Say that the source was read to its end: everything from `start_value` on was handed out."""
        self._check_fed()
        self._finished, self._unfinished = True, False
        self._drop_lanes()

    def unfinished(self) -> None:
        """Say that the source was not read to its end, so that leaving the block does not finish the stream."""
        self._finished, self._unfinished = False, True

    def rewind(self, value: Any, reason: str) -> None:
        """Move the position back to `value`; the next commit stores it.

        Raises:
            ValueError: it lies after the position.

        """
        self._check_fed()
        if self._position is not None and self._compare(value, self._position) > 0:
            raise ValueError(f"{self.key!r}: {value!r} lies after the position {self._position!r}: that is no rewind")
        logger.info("%r: rewound: %s", self.key, reason)
        self._seat({**(self._base or {}), self._options.field: wire(value)}, fresh=True)

    def reset(self, reason: str) -> None:
        """Forget the position, and start from `initial_value` again; the next commit deletes or replaces it."""
        self._check_fed()
        logger.info("%r: reset: %s", self.key, reason)
        self._seat(None)

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
            ValueError: there is no start or no end, the end is in the future, or the step is none.

        """
        self._check_fed()
        until = self._options.end_value if until is None else until
        if self._start is None or until is None:
            raise ValueError(f"{self.key!r}: windows need a start (initial_value) and an end (until, or end_value)")
        if step != "month" and (isinstance(step, str) or not cast("Any", step) > type(step)()):
            raise ValueError(f"step must be a timedelta or number above zero, or 'month', not {step!r}")
        scale = self._new_scale()
        scale.settle(self._start, until)
        end, now = scale.key(until), scale.now()
        if now is not None and end > now:
            raise ValueError(f"{self.key!r}: until={until!r} is in the future: what happens until then would be lost")
        scale.shift(self._start, step, written=True) if step != "month" else scale.months(self._start, 1)
        islands: list[list[Any]] = (self._base or {}).get(WINDOWS) or []
        frontier = Frontier(scale, self._start, [(self._typed(start), self._typed(end)) for start, end in islands])
        self._windows = frontier
        return (self._window(frontier, start, end) for start, end in frontier.cut(step, until))

    def _typed(self, value: Any) -> Any:
        """Return a stored value in the type of `initial_value`, where that is exact."""
        initial = self._options.initial_value
        if initial is None or isinstance(initial, str):
            return value
        key = self._key_written(value)
        typed = self._scale.spell(key, initial)
        return typed if self._key(typed) == key else value

    def _window(self, frontier: Frontier, start: Any, end: Any) -> Window[T]:
        def begin() -> Incremental[T]:
            if self._detached or self._windows is not frontier:
                raise RuntimeError(f"{self.key!r} was opened again or went back to its last claim: cut new windows")
            options = replace(
                self._options,
                initial_value=start, end_value=end, lookback=None, oldest_available=None, range_start="closed",
            )  # fmt: skip
            rows: Incremental[T] = Incremental(self.key, options, None, self._stops)
            rows._bind(start)
            rows._remembered, rows._opened_key = self._remembered, self._opened_key
            return rows

        def end_(window: Window[T], rows: Incremental[T], *, failed: bool) -> None:
            if not failed:
                rows.leave()
                if rows._finished:
                    frontier.finish((window.start, window.end))
            with frontier.lock:
                self._delivered += rows._delivered
                self._dropped += rows._dropped
                self._late += rows._late
                self._highest = self._max(value for value in (self._highest, rows.last_value) if value is not None)

        return Window(start, end, begin, end_)

    def _claim_windows(self, frontier: Frontier) -> Cursor | None:
        reached, islands = frontier.reach()
        moved = reached is not None and (
            self._position is None or self._key_written(reached) > self._key_written(self._position)
        )
        cursor: Cursor = dict(self._base or {})
        before = cursor.pop(WINDOWS, None)
        if moved:
            cursor[self._options.field] = wire(reached)
            cursor.pop(SEEN, None)
        position = reached if moved else self._position
        left = [
            [wire(start), wire(end)]
            for start, end in islands
            if position is None or self._key_written(end) > self._key_written(position)
        ]
        if left:
            cursor[WINDOWS] = left
        elif before is None and not moved:
            return self._base
        return cursor

    def __enter__(self) -> Self:
        self._check_fed()
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
        if not (self._stops or self._unexhausted or self._unfinished or self._windows is not None):
            self.finish()

    def detach(self) -> None:
        """Go back to the last claim, for good."""
        self._seat(self._last)
        self._detached = True

    def back(self, cursor: Cursor | None) -> None:
        """Go back to a claim, and go on from there."""
        self._last = cursor
        self._seat(cursor)

    def claim(self) -> Cursor | None:
        """Return what the stream's key is to hold once all rows handed out are delivered; None: nothing.

        It becomes the last claim with `claimed`.
        """
        if self._windows is not None:
            cursor = self._claim_windows(self._windows)
            self._pending = _Claim(cursor, (cursor or {}).get(self._options.field), None)
            return cursor
        reached = self._covered()
        position, moved = self._position, False
        if reached is not None and (position is None or self._key(reached) > self._key_written(position)):
            position, moved = reached, True
        cursor = self._base
        if moved or (position is not None and (self._ties or self._old_ties)):
            cursor = self._cursor(position, moved=moved)
        self._pending = _Claim(cursor, position, reached)
        return cursor

    def claimed(self) -> None:
        """Take what `claim` returned for said."""
        claim = self._pending
        self._last = self._base = claim.cursor
        self._position = claim.position
        if self._asc and claim.reached is not None:
            self._bound = self._key(claim.reached), claim.reached

    def _covered(self) -> Any:
        """Return the highest value that the rows handed out allow as the position; None: there is none."""
        if not (self._asc or self._finished):
            return None
        self._settle_ahead()
        high = self._max(self._highs())
        if self._finished:
            self._cover_hands()
            high = self._max(self._highs())
        hands = [feed.hand for feed in self._feeds if feed.hand is not _NOTHING]
        ceiling = self._ceiling_key()
        if high is None or (ceiling is not None and self._key(high) > ceiling):
            return None
        if not self._asc:
            return high
        if self._open and not self._finished and not self._ahead:
            key = self._key(high)
            if not any(self._key(hand) > key for hand in hands):
                high = self._under
        pins = [feed.high for feed in self._feeds if feed.pins and not self._finished]
        for pin in pins:
            if high is not None and (pin is None or self._key(pin) < self._key(high)):
                high = None if self._open else pin
        return high

    def _cover_hands(self) -> None:
        for feed in self._feeds:
            if feed.hand is not _NOTHING:
                self._take(feed)

    def _settle_ahead(self) -> None:
        """Count rows that were above the ceiling when they came, and are not any more."""
        ceiling = self._ceiling_key()
        while self._ahead and ceiling is not None and self._ahead[0].key <= ceiling:
            self._rise(self._ahead.pop(0), None)

    def _cursor(self, position: Any, *, moved: bool) -> Cursor:
        cursor: Cursor = dict(self._base or {})
        seen = [] if moved else self._seen(self._base)
        cursor.pop(SEEN, None)
        if moved:
            cursor[self._options.field] = wire(position)
        if self._keyed and position is not None:
            seen = [*dict.fromkeys([*seen, *self._digests(position)])]
            if len(seen) > self._options.max_seen:
                self._warn()
                seen = seen[-self._options.max_seen :] if moved else seen[: self._options.max_seen]
        if seen:
            cursor[SEEN] = {"at": cursor[self._options.field], "rows": seen}
        if moved and WINDOWS in cursor:
            self._drop_passed(cursor, position)
        return cursor

    def _digests(self, position: Any) -> list[str]:
        """Return the digests of the rows that are asked for again from a position, in the order of their keys."""
        key, floor = self._key_written(position), self._key_written(self._floor(position))
        digests: list[tuple[Key, str]] = []
        for ties in (self._old_ties, self._under_ties, self._ties):
            for index, (value, memo) in enumerate(ties):
                at = self._key(value)
                if floor <= at <= key:
                    if not isinstance(memo, str):
                        memo = self._digest(memo, at)  # noqa: PLW2901 - kept, so that it is made once
                        ties[index] = value, memo
                    digests.append((at, memo))
        digests.sort(key=lambda pair: pair[0])
        return [digest for _, digest in digests]

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%r: more than %d rows at its position: the next run hands some of them out again; raise max_seen",
                self.key, self._options.max_seen,
            )  # fmt: skip

    def _drop_passed(self, cursor: Cursor, position: Any) -> None:
        """Leave out finished windows that the position has passed."""
        key = self._key(position)
        left = [island for island in cursor[WINDOWS] if self._key_written(island[1]) > key]
        if left:
            cursor[WINDOWS] = left
        else:
            del cursor[WINDOWS]

    # Values and their keys

    def _highs(self) -> Iterator[Any]:
        self._sync()
        for feed in self._feeds:
            self._settle(feed)
        return (value for value in (self._high, *(feed.high for feed in self._feeds)) if value is not None)

    def _max(self, values: Iterable[Any]) -> Any:
        return max(values, key=self._key, default=None)

    def _ceiling_key(self) -> Key | None:
        """Return the key above which nothing becomes the position; None: there is no such bound."""
        if self._options.end_value is not None:
            return None  # nothing at it or above is handed out
        if self._asc:
            return self._scale.now(SKEW)
        return self._opened_at if self._scale.kind == "instant" else None

    def _key(self, value: Any) -> Key:
        if self._start_key is _NOTHING:
            self._bind(value)
        return self._scale.key(value)

    def _key_written(self, value: Any) -> Key:
        if self._start_key is _NOTHING:
            self._bind(value)
        return self._scale.key(value, written=True)

    def _compare(self, one: Any, other: Any) -> int:
        scale = self._new_scale()
        scale.settle(one, other)
        key, against = scale.key(one, written=True), scale.key(other, written=True)
        return int(key > against) - int(key < against)

    def _bind(self, value: Any) -> None:
        """Fix what kind the values are, and with it the keys of the bounds."""
        scale = self._scale
        known = scale.kind is not None
        try:
            if not scale.settle(value):
                scale.key(value)  # text, for all that is known
            start, end = self._start, self._options.end_value
            start_key = None if start is None else scale.key(start, written=True)
            self._end_key = None if end is None else scale.key(end)
            self._opened_key = None if self._position is None else scale.key(self._position, written=True)
            self._start_key = start_key
        except BaseException:
            if not known:
                scale.kind = None
            raise

    def _new_scale(self) -> Scale:
        options = self._options
        scale = Scale(f"{self.key!r}, {options.field!r}", options.timezone)
        step = None if isinstance(options.lookback, timedelta) else options.lookback
        scale.settle(options.initial_value, options.end_value, options.oldest_available, step)
        return scale

    def _floor(self, position: Any) -> Any:
        """Return what a run that starts from a position asks the source for."""
        options = self._options
        start = position
        if options.lookback is not None:
            start = self._scale.shift(position, options.lookback, -1, written=True)
            floors = (options.initial_value, options.oldest_available)
            for floor in floors:
                if floor is not None and self._compare(start, floor) < 0:
                    start = floor
            if self._compare(start, position) > 0:
                start = position
        initial = options.initial_value
        if initial is None or isinstance(initial, str):
            return start
        return self._scale.spell(self._scale.key(start, written=True), initial)

    # Opening, and going back

    def _seat(self, stored: Cursor | None, *, fresh: bool = False) -> None:
        """Start from a stored cursor; None: from `initial_value`. Rows handed out and not claimed are forgotten."""
        options = self._options
        position = self._position_of(stored)
        highest = self.last_value
        scale = self._new_scale()
        scale.settle(position)
        oldest = options.oldest_available
        self._scale = scale
        if position is not None and oldest is not None and self._compare(position, oldest) < 0:
            raise CursorExpired(self.key, position, oldest)
        self._coarse = options.lookback is not None
        self._start = options.initial_value if position is None else self._floor(position)
        self._position, self._base = position, stored
        self._remembered = frozenset[str]() if fresh or not self._keyed else frozenset(self._seen(stored))
        if fresh and stored is not None:
            self._base = {self._options.field: stored[self._options.field]}
        self._opened_at = clock()
        self._start_key = _NOTHING
        self._end_key = self._opened_key = self._bound = None
        if scale.kind is not None:
            self._bind(None)
        for feed in self._feeds:
            feed.stale, feed.lane = True, None
            feed.rows.clear()  # which ends its run
        self._feeds = []
        self._single = None
        self._leave_lane()
        self._least = None
        self._high, self._highest = None, highest
        self._under = None
        self._ties = []
        self._under_ties = []
        self._old_ties = []
        self._ahead = []
        self._unexhausted = 0
        self._finished = self._unfinished = False
        self._windows = None

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

    def _seen(self, stored: Cursor | None) -> list[str]:
        """Return the digests stored with a position; those of another position count for nothing."""
        seen: Any = (stored or {}).get(SEEN)
        if not isinstance(seen, dict) or stored is None:
            return []
        memory = cast("dict[str, Any]", seen)
        rows = memory.get("rows")
        if memory.get("at") != stored.get(self._options.field) or not isinstance(rows, list):
            return []
        return cast("list[str]", rows)

    def _drop_lanes(self) -> None:
        self._leave_lane()
        for feed in self._feeds:
            feed.lane = None


def _check(what: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, not {value!r}")


def _extremes(values: list[Any]) -> tuple[Any, Any]:
    """Return the lowest and the highest."""
    if values[0] <= values[len(values) // 2] <= values[-1]:  # in order, by the look of it: then sorting is one pass
        values = sorted(values)
        return values[0], values[-1]
    return min(values), max(values)
