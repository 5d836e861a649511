"""One reading of a stream: rows are judged, handed out, and counted for the position."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from checkpoint.errors import CursorRegressed
from checkpoint.streams.boundary import Boundary, copies
from checkpoint.streams.feed import NOTHING, OUTSIDE, Feed
from checkpoint.streams.position import Position, Row
from checkpoint.streams.ranges import Range
from checkpoint.streams.rows import getter, no_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator

    from checkpoint.streams.options import Options

RUN = 1_000
"""Records of a list that are tracked at once."""


class Verdict(NamedTuple):
    """What is to be done with a row."""

    deliver: bool
    late: bool
    row: Row | None
    """None: it does not count for the position."""


class Reading:
    """A stream from where it was opened, or last went back to, until it goes back or is left.

    Args:
        name: the stream's key.
        options: what it was opened with.
        position: where it starts.
        seen: digests of boundary rows that were delivered before.

    """

    def __init__(self, name: str, options: Options, position: Any, seen: list[str]) -> None:
        self.name = name
        self._options = options
        self.refusal: str | None = None
        """Why it takes no more rows."""
        self.dropped = self.late = 0
        field = options.cursor_field
        plain = isinstance(field, str) and "." not in field and options.range_start == "closed"
        self._field = cast("str", field) if plain else None  # what lanes look at
        self._get = getter(field)
        self.range = Range(name, options, position)
        self.boundary = Boundary(options, self.range, seen)
        self.position = Position(self._field, options, self.range, self.boundary)

    def close(self, why: str) -> None:
        """Take no more rows, of what is under way neither."""
        self.refusal = why
        self.position.close_lanes()

    def recall(self, other: Reading) -> None:
        """Know the rows that another reading of the stream knew when it was opened."""
        self.boundary.seen = other.boundary.seen
        self.boundary.coarse = other.boundary.coarse
        self.range.reopen(other.range.position)

    def finish(self) -> None:
        """Count everything as handed out, until another row comes."""
        self.position.finished, self.position.unfinished = True, False
        self.position.close_lanes()

    def check(self) -> None:
        """Raise RuntimeError where no more rows are taken."""
        if self.refusal is not None:
            raise RuntimeError(self.refusal)

    # Rows one by one

    def observe(self, record: Any) -> bool:
        """Judge a record and cover it; return whether to deliver it."""
        self.check()
        verdict = self._judge(record)
        self._count(verdict)
        if verdict.row is not None:
            self.position.cover(verdict.row, self.position.loose, deliver=verdict.deliver)
            self.position.open_lane(self.position.loose)
        return verdict.deliver

    def runs(self, records: list[Any]) -> Iterator[Iterable[Any]]:
        """Track what is in memory already: yield parts of it, each in hand until the next is asked for."""
        self.check()
        position = self.position
        feed = position.begin()
        index, size = 0, 1
        while index < len(records):
            rows = records[index : index + size]
            if run := position.start_run(feed, rows):
                yield run.records
                self.check()
                position.settle_run(feed, done=True)
            else:
                for record in rows:
                    verdict = self._offer(feed, record)
                    if verdict.deliver:
                        yield (record,)
                        self._release(feed)
                    elif self._ends(verdict):
                        position.exhaust(feed)
                        return
            index += len(rows)  # a run may have been cut
            size = RUN if feed.lane is not None else 1
        position.exhaust(feed)

    def each(self, records: Iterable[Any]) -> Generator[Any, None, None]:
        """Track one by one."""
        self.check()
        position, boundary = self.position, self.boundary
        feed = position.begin()
        name, keyed = self._field, feed.keyed
        value: Any = None
        memo, rises = None, False
        for record in records:
            try:
                value, mark = record[name], feed.mark
                rises = value > feed.high
                inside = (value < feed.top if rises else value >= feed.low) and (
                    value[mark] == "Z" if mark else feed.spelled(value)
                )
                if keyed and inside:
                    memo = record.copy()
            except OUTSIDE:
                inside = False
            if inside:
                feed.hand, feed.memo = value, memo
                position.delivered += 1
                yield record
                if feed.lane is None:  # something else was fed meanwhile, or the stream went back
                    self._release(feed)
                    continue
                feed.hand = NOTHING
                if keyed and (rises or boundary.coarse or value == feed.high):
                    boundary.add(value, memo, rises=rises)
                if rises:
                    feed.high = value
                continue
            verdict = self._offer(feed, record)
            if verdict.deliver:
                yield record
                self._release(feed)
            elif self._ends(verdict):
                break
        position.exhaust(feed)

    async def each_async(self, records: AsyncIterable[Any]) -> AsyncIterator[Any]:
        """Track one by one."""
        self.check()
        feed = self.position.begin()
        async for record in records:
            verdict = self._offer(feed, record)
            if verdict.deliver:
                yield record
                self._release(feed)
            elif self._ends(verdict):
                break
        self.position.exhaust(feed)

    def _offer(self, feed: Feed, record: Any) -> Verdict:
        """Judge a record of a `track`, and take it in hand where it is delivered."""
        self.check()
        verdict = self._judge(record)
        self._count(verdict)
        if verdict.row is not None and verdict.deliver:
            self.position.take(verdict.row, feed)
        elif verdict.row is not None:
            self.position.cover(verdict.row, feed, deliver=False)
        return verdict

    def _release(self, feed: Feed) -> None:
        self.check()
        self.position.release(feed)

    def _ends(self, verdict: Verdict) -> bool:
        """Tell whether a descending stream ends with a row."""
        return verdict.late and self._options.row_order == "desc"

    # Pages

    def pages(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield what is new of each page."""
        self.check()
        feed = self.position.begin()
        for batch in batches:
            rows, ended = self._page(batch, feed)
            if len(rows):
                yield rows
            if ended:
                break
        self.check()
        self.position.exhaust(feed)

    async def pages_async(self, batches: AsyncIterable[Any]) -> AsyncIterator[Any]:
        """Yield what is new of each page."""
        self.check()
        feed = self.position.begin()
        async for batch in batches:
            rows, ended = self._page(batch, feed)
            if len(rows):
                yield rows
            if ended:
                break
        self.check()
        self.position.exhaust(feed)

    def filter(self, batch: Any) -> Any:
        """Return what is new of a batch."""
        return self._page(batch, self.position.loose)[0]

    def _page(self, batch: Any, feed: Feed) -> tuple[Any, bool]:
        """Return what is new of a batch, and whether a descending stream ends with it."""
        self.check()
        if type(batch).__module__.partition(".")[0] == "pyarrow":
            return self._arrow_page(batch, feed)
        rows: list[Any] = batch if isinstance(batch, list) else list(batch)  # pyright: ignore[reportUnknownVariableType] - any iterable
        values = feed.values_in(rows, ordered=self._options.asc)
        if values is not None:
            self.position.delivered += len(rows)
            self.position.cover_values(values, copies(rows) if self.boundary.coarse and feed.keyed else rows, feed)
            return rows[:], False
        mask, ended = self._judge_page(rows, feed)
        return [row for row, deliver in zip(rows, mask, strict=True) if deliver], ended

    def _arrow_page(self, batch: Any, feed: Feed) -> tuple[Any, bool]:
        """As `_page`, of a table or record batch: looked at as columns in a lane, as rows outside it."""
        from checkpoint.streams import arrow  # an extra

        name, ordered = self._field, self._options.asc
        if feed.lane is not None and name is not None and not self.boundary.coarse:
            found = arrow.extremes(batch, name, feed.lane, ordered=ordered)
            if found is not None and (feed.high if ordered else feed.low) <= found[0] and found[1] < feed.top:
                rises = feed.keyed and found[1] >= feed.high
                memos = arrow.at(batch, name, found[1]) if rises else [None]
                self.position.delivered += batch.num_rows
                self.position.cover_values([found[1]] * len(memos), memos, feed)
                return batch, False
        mask, ended = self._judge_page(arrow.rows(batch), feed)
        return (batch if all(mask) else arrow.choose(batch, mask)), ended

    def _judge_page(self, rows: list[Any], feed: Feed) -> tuple[list[bool], bool]:
        """Judge the rows of a page and cover them; return which to deliver, and whether a descending stream ends."""
        verdicts = [self._judge(record, index) for index, record in enumerate(rows)]
        covered = [(verdict.row, verdict.deliver) for verdict in verdicts if verdict.row is not None]
        if self._options.asc:
            for (row, _), (after, _) in pairwise(covered):
                if after.key < row.key:
                    raise CursorRegressed(self.name, row.value, after.value)
        self.position.finished = False
        for verdict in verdicts:
            self._count(verdict)
        for row, deliver in covered:
            self.position.cover(row, feed, deliver=deliver)
        self.position.open_lane(feed)
        return [verdict.deliver for verdict in verdicts], any(map(self._ends, verdicts))

    # One row

    def _judge(self, record: Any, index: int | None = None) -> Verdict:
        """Tell whether to deliver a record, whether it is late, and what of it counts for the position."""
        options, span = self._options, self.range
        try:
            value = self._get(record)
        except TypeError as error:
            if callable(options.cursor_field) or isinstance(record, Mapping):
                raise
            raise TypeError(f"{self.name!r}: {no_row(record, options.field)}") from error
        if value is None:
            if options.on_cursor_value_missing == "raise":
                where = "" if index is None else f" (row {index} of the batch)"
                raise ValueError(
                    f"{self.name!r}: a row has no {options.field!r}{where}: filter it out, or choose "
                    "on_cursor_value_missing='include' or 'exclude'"
                )
            return Verdict(options.on_cursor_value_missing == "include", late=False, row=None)
        key = span.key(value)
        if span.start_key is not None and key < span.start_key:
            return Verdict(deliver=False, late=True, row=None)
        if span.end_key is not None and key >= span.end_key:
            return Verdict(deliver=False, late=False, row=None)
        bound = self.position.bound
        if bound is not None and key < bound[0]:
            raise CursorRegressed(self.name, bound[1], value)
        memo = self.boundary.memo(record, value, key)
        return Verdict(not self.boundary.holds(memo), late=False, row=Row(key, value, memo))

    def _count(self, verdict: Verdict) -> None:
        """Count a row; that there is one means that what was finished is not any longer."""
        self.position.finished = False
        if verdict.deliver:
            self.position.delivered += 1
        else:
            self.dropped += 1
            self.late += verdict.late
