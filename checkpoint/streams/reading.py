"""Rows one by one: each is judged, handed out, and counted for the position.

A row that follows the last one as the rows of this stream do passes without being judged (see `passing`): its key lies
between `low` and `top` of its reading, a window that the last judged row opened. Of a sorted stream `low` follows the
rows, and a row at it passes, too; of one that is newest first `top` does. Whatever else is fed, claimed or finished
shuts the window.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.errors import CursorRegressed
from checkpoint.streams import passing
from checkpoint.streams.boundary import NO_MARK, Boundary
from checkpoint.streams.counts import Stats
from checkpoint.streams.holding import here
from checkpoint.streams.keys import HIGHEST, LOWEST
from checkpoint.streams.position import Position, Reading, Recent
from checkpoint.streams.ranges import Range
from checkpoint.streams.rows import FieldReader, nested_path, primary_getter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from checkpoint.streams.boundary import Mark
    from checkpoint.streams.options import Options
    from checkpoint.streams.stored import Resume, Seen
    from checkpoint.streams.values import Key


def nobody() -> None:
    """Do nothing; for streams that belong to no run."""


class Judgement(NamedTuple):
    """What is to be done with a row."""

    deliver: bool
    late: Mark | None = None
    """The row, where it lies before the start."""
    row: Mark | None = None
    """None: it does not count for the position."""
    identity: Any = None
    """What tells whether the reading hands it out again; None where that does not matter."""


class Scan:
    """The rows that a stream or a window was fed since it was opened or last reset.

    Args:
        name: the stream's key.
        options: what it was opened with.
        position: where it starts.
        seen: digests of boundary rows that were delivered before.
        touch: called after whatever a claim depends on has changed, and before it where no reading is left meanwhile:
            a signal handler may raise in between.

    """

    __slots__ = (
        "_primary", "_turn", "boundary", "delivered", "dropped", "exhausted", "fetches", "fields", "late",
        "late_top", "name", "observe", "options", "page_at", "position", "range", "refusal", "resumed", "torn", "touch",
        "unremembered",
    )  # fmt: skip

    observe: Callable[[Any], bool]
    """Judges a record, and covers it; returns whether to deliver it."""

    def __init__(
        self, name: str, options: Options, position: Any, seen: Seen, touch: Callable[[], object] = nobody
    ) -> None:
        self.name: str = name
        self.touch: Callable[[], object] = touch
        self.options: Options = options
        self.fields: FieldReader = FieldReader(options.cursor_field, repr(name), options.primary_key)
        self._primary = None if options.primary_key is None else primary_getter(options.primary_key)
        self.refusal: str | None = None
        """Why it takes no more rows."""
        self.delivered: int = 0
        self.dropped: int = 0
        self.late: int = 0
        self.unremembered: int = 0
        self.torn: bool = False
        """Rows were covered that may not have been handed out: an exception of a signal handler came in between."""
        self.exhausted: bool = False
        """Whether a `pages`, `track` or `fetch` came to its end."""
        self.fetches: int = 0
        """How many were begun."""
        self.page_at: Any = None
        """Where the last page of a single `fetch` begins, until it is finished; None: nowhere, or at the beginning."""
        self.resumed: Resume | None = None
        """Of a `fetch` that an earlier run began: where that was interrupted, and what it had handed out."""
        self.late_top: Mark = NO_MARK
        """The highest of the late rows."""
        self.range: Range = Range(name, options, position, seen.span)
        self._turn: Reading | None = None  # the reading whose window is open
        self._remember(Boundary(options, self.range, seen))

    def _remember(self, boundary: Boundary) -> None:
        self.boundary: Boundary = boundary
        self.position: Position = Position(self.options, self.range, boundary)
        self.observe = self._observe_first

    def _observe_first(self, record: Any) -> bool:
        self.observe = passing.observer(self)  # not made before, for most streams are fed otherwise
        return self.observe(record)

    @property
    def stats(self) -> Stats:
        """How many rows were fed and handed out."""
        return Stats(self.delivered + self.dropped, self.delivered, self.dropped, self.late, self.unremembered)

    def close(self, why: str) -> None:
        """Take no more rows, also in readings under way."""
        self.refusal = why
        self.shut()

    def check(self) -> None:
        """Raise RuntimeError where no more rows are taken."""
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        if self.torn:
            raise RuntimeError(
                f"{self.name!r} was interrupted while it delivered rows: call cp.discard(), which takes it back to its "
                "last claim"
            )

    def part(self, options: Options) -> Scan:
        """Return what a part of the stream is fed to; it knows the rows that the stream knew when it was opened."""
        scan = Scan(self.name, options, None, self.boundary.seen)
        scan.range.reopen(self.range)
        boundary = Boundary(options, scan.range, self.boundary.seen)
        boundary.deep = self.boundary.deep
        scan._remember(boundary)
        return scan

    def finish(self) -> None:
        """Mark the stream as finished, until another row comes."""
        self.touch()
        self.shut()
        self.position.finished, self.page_at = True, None
        self.touch()

    def reached(self) -> Any:
        """Return the highest value that the rows handed out allow as the position; None: there is none."""
        self.shut()
        reached = self.position.reached()
        return self.range.highest(reached, self.resumed.high) if self.resumed and self.position.finished else reached

    def claimed(self, reached: Any) -> None:
        """Refuse later rows of a sorted stream that lie before the claim minus the lookback."""
        self.shut()
        if self.options.asc and reached is not None:
            self.position.bound = self.range.key_of(self.range.back(reached)), reached, None
        if self.position.waits:
            self.touch()  # it moves on with the clock

    # Readings

    def begin(self) -> Reading:
        """Begin a `pages`, `track` or `fetch`."""
        self.check()
        self.shut()
        reading = self.position.begin()
        reading.holder = here()
        if self.options.row_order == "desc" and self._primary is not None:
            reading.recent = Recent(self.options.max_seen)
        return reading

    def begin_fetch(self, resume: Resume | None) -> Reading:
        """Begin a `fetch`, where an earlier run was interrupted if there is such a place."""
        reading = self.begin()
        reading.fetches = True
        reading.stale = set()
        self.fetches += 1
        self.page_at = None
        if self._primary is not None:
            reading.recent = Recent(self.options.max_seen)
        if resume is not None:
            reading.place = resume.at
            self.range.cap(resume.high if self.options.row_order == "desc" else resume.ceiling)
            self.resumed = resume
        return reading

    def exhaust(self, reading: Reading) -> None:
        """Note that a reading came to its end."""
        self.check()
        self.shut()
        self.position.release(reading)
        self.position.exhaust(reading)
        self.exhausted = True
        if not self.position.readings:
            self.range.rest()

    def leave(self, reading: Reading) -> None:
        """Close a reading that is asked for no more rows, at its end or before."""
        reading.closed = True
        self.touch()

    # Rows one by one; the quick way of `track` and `observe` is in `passing`

    def take_passed(self, record: Any, row: Mark, reading: Reading) -> bool:
        """Take a row that passes, of any stream; return True."""
        options, position = self.options, self.position
        tied = options.asc and row[0] == reading.low
        if tied:
            row = self._like_the_first(row, reading.high if reading.hand is None else reading.hand)
        if options.asc:
            reading.low = row[0]
        elif options.row_order == "desc" and reading is not position.loose:
            reading.top = row[0]
        if reading.recent is not None:
            reading.recent.add(self.identity(record, row[0]))
        covered: Mark | None = row
        if reading is not position.loose:
            covered, reading.hand = reading.hand, row
        if covered is not None:
            position.cover_passed(covered, reading)
            if tied:
                position.remember(reading)  # for the row in hand may be covered without a look at it
        return True

    def take_judged(self, record: Any, reading: Reading) -> bool:
        """Judge a record, cover it or take it in hand, and open the window; return whether to deliver it."""
        self.check()
        self.shut()
        holds = reading is not self.position.loose
        self.position.release(reading)
        if holds:
            reading.holder = here()
        value = self.fields.read(record)
        key = self.range.key(value)
        judgement = self.judge(record, value, key, reading, reading.last)
        self.count(judgement)
        row = judgement.row
        if row is not None:
            self.position.pass_by(row[0], reading)
            if judgement.identity is not None and reading.recent is not None:
                reading.recent.add(judgement.identity)
            if holds:
                reading.last = row
            if holds and judgement.deliver:
                reading.hand = self._like_the_first(row, self.position.high())
            else:
                self.position.cover(row, reading)
            self._open(reading, row[0])
        elif holds and self.ends(judgement):
            reading.closed = True
        return judgement.deliver

    def _like_the_first(self, row: Mark, first: Mark) -> Mark:
        """Return a row in hand with the value of the first one at the same key, which it may stand for."""
        return (row[0], first[1], row[2]) if row[0] == first[0] else row

    def _open(self, reading: Reading, key: Key) -> None:
        """Open the window for the rows after this one that need no judging."""
        span, asc = self.range, self.options.asc
        low, top = span.scale.limits
        top = min(top, span.end_key, span.ceiling(), span.ahead[0])
        low = max(low, span.start_key)
        if self.boundary.keyed:
            low = max(low, span.opened_key)
        if asc:
            highest, bound = self.position.high()[0], self.position.bound[0]
            fits = (key > low or (key == low and not self.boundary.keyed)) and highest <= key < top and key >= bound
            fits = fits and self.boundary.follows(key)
            low = key
        else:
            fits = low < key < top
            if self.options.row_order == "desc" and reading is not self.position.loose:
                top = key
        if fits:
            reading.low, reading.top, self._turn = low, top, reading

    def shut(self) -> None:
        """Let no row pass unjudged."""
        reading, self._turn = self._turn, None
        if reading is not None:
            reading.low, reading.top = HIGHEST, LOWEST
            self.position.remember(reading)

    def ends(self, judgement: Judgement) -> bool:
        """Tell whether a descending stream ends with a row."""
        return judgement.late is not None and self.options.row_order == "desc"

    # One row

    def bind(self, values: Iterable[Any]) -> None:
        """Decide how values compare, by the first one that is not missing."""
        for value in values:
            if self.range.key(value) is not None:
                self.boundary.settle(value)
                return

    def judge(
        self, record: Any, value: Any, key: Key, reading: Reading, last: Mark | None, index: int | None = None
    ) -> Judgement:
        """Tell whether to deliver a record, whether it is late, and what of it counts for the position.

        `last` is the row before it in the same reading or batch, None where there is none.
        """
        span = self.range
        if key is None:
            return self._judge_missing(record, index)
        if key < span.start_key:
            return Judgement(deliver=False, late=(key, value, None) if key < span.late_key else None)
        if key >= span.end_key:
            return Judgement(deliver=False)
        identity = None if reading.recent is None else self.identity(record, key)
        if identity is not None and reading.recent is not None and identity in reading.recent:
            return Judgement(deliver=False)
        self._check_order(value, key, last)
        memo, known = None, False
        if self.boundary.keyed:
            self.boundary.settle(value)
            memo = self.boundary.take(record)
            if self.boundary.knows(key):
                memo, known = self.boundary.recognise(memo, key, value)
        return Judgement(not known, row=(key, value, memo), identity=identity)

    def _judge_missing(self, record: Any, index: int | None) -> Judgement:
        """Judge a row without a cursor value."""
        if self.options.on_cursor_value_missing == "raise":
            where = "" if index is None else f" (row {index} of the batch)"
            path = nested_path(record, self.options.field)
            advice = f"it has {path!r}, so use that as cursor_field" if path else "filter it out"
            raise ValueError(
                f"{self.name!r}: a row has no {self.options.field!r}{where}: {advice}, or pass "
                "on_cursor_value_missing='include' or 'exclude'"
            )
        return Judgement(self.options.on_cursor_value_missing == "include")

    def _check_order(self, value: Any, key: Key, last: Mark | None) -> None:
        """Raise CursorRegressed where a sorted stream went back."""
        if self.options.asc:
            for mark in (self.position.bound, last or NO_MARK):
                if key < mark[0] and not self._share_a_repeated_hour(value, mark[1]):
                    raise CursorRegressed(self.name, mark[1], value)
        elif self.options.row_order != "desc" or last is None or key <= last[0]:
            return
        elif not self._share_a_repeated_hour(value, last[1]):
            raise CursorRegressed(self.name, last[1], value, "desc")

    def _share_a_repeated_hour(self, one: Any, other: Any) -> bool:
        """Tell whether both values lie in the same repeated hour, so that their order is not known."""
        begins = [None if value is None else self.range.scale.first_pass(value) for value in (one, other)]
        return None not in begins and bool(self.range.key_of(begins[0]) == self.range.key_of(begins[1]))

    def count(self, judgement: Judgement) -> None:
        """Count a row; a stream that was finished no longer is."""
        self.touch()
        self.position.finished = False
        if judgement.deliver:
            self.delivered += 1
        else:
            self.dropped += 1
            if judgement.late is not None:
                self.late += 1
                self.late_top = max(self.late_top, judgement.late, key=itemgetter(0))

    def identity(self, record: Any, key: Key) -> Any:
        """Return a row's primary key and cursor key, by which a reading recognises repeats; None: it has none."""
        found = None if self._primary is None else self._primary(record)
        if found is None:
            return None
        try:
            hash(found)
        except TypeError:
            found = repr(found)
        return found, key
