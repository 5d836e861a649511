"""What is done with the rows of a source: judged, handed out, counted for the position.

A row that follows the last one as the rows of this stream do passes without being judged: its key lies in `low … top`,
the window that the last judged row opened for its reading. Whatever else is fed, claimed or finished closes the window.
"""

from __future__ import annotations

import reprlib
from bisect import bisect_left
from dataclasses import dataclass, fields
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from checkpoint import codec
from checkpoint.errors import CursorRegressed, CursorStuck
from checkpoint.streams.boundary import Boundary
from checkpoint.streams.holding import here
from checkpoint.streams.holding import local as thread
from checkpoint.streams.position import NO_MARK, Marked, Position, Reading, Recent
from checkpoint.streams.ranges import HIGHEST, LOWEST, Range
from checkpoint.streams.rows import check_primary, getter, primary_getter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from checkpoint.streams.options import Options
    from checkpoint.streams.position import Mark
    from checkpoint.streams.stored import Resume, Seen
    from checkpoint.streams.values import Key


def nobody() -> None:
    """Take note of a touch that no commit asks for."""


class Above:
    """A bound that leaves out its own value."""

    __slots__ = ("_key",)

    def __init__(self, key: Key) -> None:
        self._key = key

    def __le__(self, key: Key) -> bool:
        return bool(self._key < key)


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
    unremembered: int = 0
    """Delivered ones inside the lookback or above the ceiling that are not remembered, for there were too many."""

    def __add__(self, other: Stats) -> Stats:
        return Stats(*map(add, _COUNTS(self), _COUNTS(other)))


_COUNTS = attrgetter(*(field.name for field in fields(Stats)))
NO_ROWS = Stats(0, 0, 0, 0)


class Verdict(NamedTuple):
    """What is to be done with a row."""

    deliver: bool
    late: Mark | None = None
    """The row, where it lies before the start."""
    row: Marked | None = None
    """None: it does not count for the position."""
    identity: Any = None
    """What tells whether the reading hands it out again; None where that does not matter."""


class Scan:
    """What a stream or a window was fed since it was opened, or last went back.

    Args:
        name: the stream's key.
        options: what it was opened with.
        position: where it starts.
        seen: digests of boundary rows that were delivered before.
        touch: called after whatever a claim may depend on has changed.

    """

    __slots__ = (
        "_get", "_options", "_primary", "boundary", "delivered", "dropped", "exhausted", "fetched", "late",
        "late_top", "low", "name",
        "position", "range", "refusal", "resumed", "top", "torn", "touch", "turn", "unremembered",
    )  # fmt: skip

    def __init__(
        self, name: str, options: Options, position: Any, seen: Seen, touch: Callable[[], object] = nobody
    ) -> None:
        self.name = name
        self.touch = touch
        self._options = options
        self._get: Callable[[Any], Any] = self._first_get
        self._primary = None if options.primary_key is None else primary_getter(options.primary_key)
        self.refusal: str | None = None
        """Why it takes no more rows."""
        self.delivered = self.dropped = self.late = self.unremembered = 0
        self.torn = False
        """Rows were covered that may not have been handed out: an exception of a signal handler came in between."""
        self.exhausted = self.fetched = False
        """Whether a `pages`, `track` or `fetch` came to its end; whether a `fetch` was begun."""
        self.resumed: Resume | None = None
        """Of a `fetch` that an earlier run began: where that was interrupted, and what it had handed out."""
        self.late_top: Mark = NO_MARK
        """The highest of the late rows."""
        self.range = Range(name, options, position, seen.span)
        self.boundary = Boundary(options, self.range, seen)
        self.position = Position(options, self.range, self.boundary)
        self.turn: Reading | None = None
        """The reading whose rows between `low` and `top` need no judging; None: none."""
        self.low: Key = HIGHEST
        self.top: Key = LOWEST

    @property
    def stats(self) -> Stats:
        """How many rows were fed and handed out."""
        return Stats(self.delivered + self.dropped, self.delivered, self.dropped, self.late, self.unremembered)

    def close(self, why: str) -> None:
        """Take no more rows, of what is under way neither."""
        self.refusal = why
        self.turn = None

    def check(self) -> None:
        """Raise RuntimeError where no more rows are taken."""
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        if self.torn:
            raise RuntimeError(
                f"{self.name!r} was interrupted while it handed out rows: cp.discard() takes it back to its last claim"
            )

    def recall(self, other: Scan) -> None:
        """Know the rows that another scan of the stream knew when it was opened."""
        self.range.reopen(other.range)
        self.boundary = Boundary(self._options, self.range, other.boundary.seen)
        self.boundary.deep = other.boundary.deep
        self.position = Position(self._options, self.range, self.boundary)

    def finish(self) -> None:
        """Count everything as handed out, until another row comes."""
        self.position.finished = True
        self.turn = None
        self.touch()

    def reached(self) -> Any:
        """Return the highest value that the rows handed out allow as the position; None: there is none."""
        reached = self.position.reached()
        return self.range.highest(reached, self.resumed.high) if self.resumed and self.position.finished else reached

    def claimed(self, reached: Any) -> None:
        """Let no row of a sorted stream go behind what was claimed, less the lookback."""
        self.turn = None
        if self._options.asc and reached is not None:
            self.position.bound = self.range.key_of(self.range.back(reached)), reached, None
        if self.position.waits:
            self.touch()  # it moves on with the clock

    # Readings

    def begin(self) -> Reading:
        """Begin a `pages`, `track` or `fetch`."""
        self.check()
        self.turn = None
        reading = self.position.begin()
        reading.holder = here()
        if self._options.row_order == "desc" and self._primary is not None:
            reading.recent = Recent(self._options.max_seen)
        return reading

    def begin_fetch(self, resume: Resume | None) -> Reading:
        """Begin a `fetch`, where an earlier run was interrupted if there is such a place."""
        reading = self.begin()
        reading.fetches = self.fetched = True
        if self._primary is not None:
            reading.recent = Recent(self._options.max_seen)
        if resume is not None:
            reading.place = resume.at
            self.range.cap(resume.high if self._options.row_order == "desc" else resume.ceiling)
            self.resumed = resume
        return reading

    def exhaust(self, reading: Reading) -> None:
        """Take note that a reading came to its end."""
        self.check()
        self.position.release(reading)
        self.position.exhaust(reading)
        self.turn = None
        self.exhausted = True

    def leave(self, reading: Reading) -> None:
        """Take note that nobody asks a reading for rows any more, at its end or before it."""
        reading.closed = True
        self.touch()

    # Rows one by one

    def observe(self, record: Any) -> bool:
        """Judge a record and cover it; return whether to deliver it."""
        try:
            value = self._get(record)
        except TypeError as error:
            self._refuse(error)
        key = self.range.key(value)
        loose = self.position.loose
        if self.turn is loose and key is not None and self.low <= key < self.top:
            if self.boundary.keyed:
                self.boundary.add(key, self.boundary.take(record))
            if key > loose.high[0]:
                self.position.under, loose.high = loose.high, (key, value, None)
                if self._options.asc:
                    self.low = key
            self.delivered += 1
            return True
        self.check()
        verdict = self._judge(record, value, key, loose, None)
        self._count(verdict)
        if verdict.row is not None:
            self.position.pass_by(verdict.row.key, loose)
            self.position.cover(verdict.row, loose)
            self._open(loose, verdict.row.key)
        return verdict.deliver

    def tracker(self, reading: Reading) -> Callable[[Any], bool]:
        """Return what takes the next record of a `track` in hand, and covers the one before; False: it is dropped."""
        get, span, position = self._get, self.range, self.position
        asc, keyed = self._options.asc, self.boundary.keyed
        desc = self._options.row_order == "desc"
        add, take, recent, primary = self.boundary.add, self.boundary.take, reading.recent, self._primary
        key_of = span.key

        def step(record: Any) -> bool:
            nonlocal get, key_of
            if thread.holder is not reading.holder:
                reading.holder = here()
            if self.turn is not reading:
                self.check()
                position.release(reading)
                get, key_of = self._get, span.key
            elif (hand := reading.hand) is not None:
                reading.hand = None
                if keyed:
                    add(hand[0], hand[2])
                if hand[0] > reading.high[0]:
                    position.under, reading.high = reading.high, hand
            try:
                value = get(record)
            except TypeError as error:
                self._refuse(error)
            key = key_of(value)
            if self.turn is not reading or key is None or not (self.low <= key < self.top):
                get, key_of = self._get, span.key
                return self._offer(record, value, key, reading)
            reading.hand = hand = (key, value, take(record) if keyed else None)
            if asc:
                self.low, reading.last = key, hand
            elif desc:
                self.top, reading.last = key, hand
                if recent is not None:
                    recent.add(_row_identity(primary, record, key))
            self.delivered += 1
            return True

        return step

    def _offer(self, record: Any, value: Any, key: Key, reading: Reading) -> bool:
        """Judge a record of a `track`, and take it in hand where it is delivered."""
        verdict = self._judge(record, value, key, reading, reading.last)
        self._count(verdict)
        row = verdict.row
        if row is not None:
            self.position.pass_by(row.key, reading)
            reading.last = row
            if verdict.identity is not None and reading.recent is not None:
                reading.recent.add(verdict.identity)
            if verdict.deliver:
                reading.hand = row
            else:
                self.position.cover(row, reading)
            self._open(reading, row.key)
        elif self._ends(verdict):
            reading.closed = True
        return verdict.deliver

    def _open(self, reading: Reading, key: Key) -> None:
        """Let the rows pass that come after this one as they should, and need no look at what is remembered."""
        span = self.range
        top = min(span.end_key, span.ceiling(), span.ahead[0])
        low = span.start_key
        if self.boundary.keyed and span.opened_key is not LOWEST and not low > span.opened_key:
            low = Above(span.opened_key)
        fits = bool(low <= key < top)
        if self._options.asc:
            fits = fits and bool(self.position.high()[0] <= key >= self.position.bound[0])
            low = key
        elif self._options.row_order == "desc" and reading is not self.position.loose:
            top = key
        self.turn = reading if fits else None
        self.low, self.top = low, top

    def _ends(self, verdict: Verdict) -> bool:
        """Tell whether a descending stream ends with a row."""
        return verdict.late is not None and self._options.row_order == "desc"

    # Pages

    def answered(self, answer: Any, reading: Reading) -> Any:
        """Return what is new of a page that was fetched, and take note of where the next one begins.

        Raises:
            CursorStuck: nothing of it is new, and the next one is the same.
            TypeError, ValueError: the answer is not rows and a place that JSON can have; nothing was observed.

        """
        if not isinstance(answer, tuple | list) or len(cast("list[Any]", answer)) != 2:
            raise TypeError(f"{self.name!r}: page(at) returns (rows, next), not {reprlib.repr(cast('Any', answer))}")
        page, place = cast("tuple[Any, Any]", answer)
        if place is not None:
            try:
                place = codec.decode(codec.encode({"at": place}))["at"]
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self.name!r}: what page(at) returns as next is stored as JSON: {error}") from error
        rows = self.page(page, reading)
        at, reading.place = reading.place, place
        self.touch()
        if place is not None and codec.encode({"at": at}) == codec.encode({"at": place}):
            same = self._primary is None and isinstance(page, list) and reading.echo == page
            if same or not len(rows):
                raise CursorStuck(self.name, at)
            reading.echo = page if isinstance(page, list) else None
        return rows

    def filter(self, batch: Any) -> Any:
        """Return what is new of a batch."""
        rows = self.page(batch, self.position.loose)
        self.torn = False
        return rows

    def page(self, batch: Any, reading: Reading) -> Any:
        """Return what is new of a batch; all or nothing. A descending stream may end with it: `reading.closed`.

        Whoever hands the rows out sets `torn` to False as the last thing before.
        """
        self.check()
        reading.hand = None
        if not isinstance(batch, list) and _is_table(batch):
            from checkpoint.streams import arrow  # an extra

            page = arrow.Page(batch)
            mask = self._page(page, page.values(self._options.cursor_field), reading)
            return page.table if mask is None else page.choose(mask)
        rows: list[Any] = batch if isinstance(batch, list) else list(batch)  # pyright: ignore[reportUnknownVariableType] - any iterable
        mask = self._page(rows, self._values(rows), reading)
        return rows[:] if mask is None else [row for row, deliver in zip(rows, mask, strict=True) if deliver]

    def _values(self, rows: list[Any]) -> list[Any]:
        """Return the cursor values of rows."""
        try:
            if rows and self._get == self._first_get:
                self._get(rows[0])
            return list(map(self._get, rows))
        except TypeError as error:
            self._refuse(error)

    def _page(self, rows: Sequence[Any], values: list[Any], reading: Reading) -> list[bool] | None:
        """Observe a page; return which rows to deliver, None: all of them."""
        if not self.range.bound:
            self._bind(values)
        keys = list(map(self.range.key, values))
        if reading is not self.position.loose:
            reading.holder = here()
        try:
            passes = bool(keys) and keys[0] is not None and self._passes(keys, rows, reading)
        except TypeError:  # keys do not compare with None, which a row without a value has
            passes = False
        if not passes:
            return self._judge_page(rows, values, keys, reading)
        self.torn = True
        self.touch()  # a commit is to tell of it, should it stay so
        try:
            self._cover_page(rows, values, keys, reading)
        except (TypeError, ValueError):  # it has no key to be remembered by, and was not covered
            self.torn = False
            raise
        self.position.finished = False
        self.turn = None
        self.delivered += len(rows)
        self.touch()
        return None

    def _passes(self, keys: list[Key], rows: Sequence[Any], reading: Reading) -> bool:
        """Tell whether rows need no judging one by one: all are new, inside the range, and in order."""
        span = self.range
        if self._options.asc:
            if not self._are_in_order(keys, reading):
                return False
            lowest, highest = keys[0], keys[-1]
        else:
            lowest, highest = min(keys), max(keys)
        if lowest < span.start_key or (self.boundary.keyed and lowest <= span.opened_key):
            return False
        if not highest < min(span.end_key, span.ceiling(), span.ahead[0]):
            return False
        if self._options.row_order == "desc" and not self._are_in_order(keys, reading):
            return False
        return reading.recent is None or self._are_fresh(keys, rows, reading.recent)

    def _are_in_order(self, keys: list[Key], reading: Reading) -> bool:
        """Tell whether keys go on as the rows of a sorted stream do."""
        last = None if reading is self.position.loose else reading.last
        if self._options.asc:
            at_least = self.position.bound[0] if last is None else max(self.position.bound[0], last[0])
            return bool(keys[0] >= at_least) and sorted(keys) == keys
        if reading is self.position.loose:
            return True
        return (last is None or bool(keys[0] < last[0])) and sorted(keys, reverse=True) == keys

    def _are_fresh(self, keys: list[Key], rows: Sequence[Any], recent: Recent) -> bool:
        """Take note of rows that the reading has not handed out; False, and none is noted, where it has."""
        recent.widen(len(rows))
        found = [_row_identity(self._primary, row, key) for row, key in zip(rows, keys, strict=True)]
        if None in found or len(set(found)) < len(found) or any(map(recent.__contains__, found)):
            return False
        for identity in found:
            recent.add(identity)
        return True

    def _cover_page(self, rows: Sequence[Any], values: list[Any], keys: list[Key], reading: Reading) -> None:
        """Cover a page whose rows all passed."""
        asc, position = self._options.asc, self.position
        highest = keys[-1] if asc else max(keys)
        if self.boundary.keyed:  # which may refuse the first row
            self.boundary.add_page(keys, rows, highest)
        first = bisect_left(keys, highest) if asc else keys.index(highest)
        if asc:
            position.pass_by(keys[0], reading)
            if first:
                position.rise((keys[first - 1], values[first - 1], None), reading)
        if reading is not position.loose:
            reading.last = keys[-1], values[-1], None
        position.rise((highest, values[first], None), reading)

    def _judge_page(self, rows: Sequence[Any], values: list[Any], keys: list[Key], reading: Reading) -> list[bool]:
        """Judge the rows of a page one by one, and cover them; return which to deliver."""
        is_loose = reading is self.position.loose
        last = None if is_loose else reading.last
        repeats: set[Any] = set()
        if reading.recent is not None:
            reading.recent.widen(len(rows))
        verdicts: list[Verdict] = []
        for index, (record, value, key) in enumerate(zip(rows, values, keys, strict=True)):
            verdict = self._judge(record, value, key, reading, last, index)
            if verdict.identity is not None:
                if verdict.identity in repeats:
                    verdict = Verdict(deliver=False)
                repeats.add(verdict.identity)
            verdicts.append(verdict)
            if self._options.asc or not is_loose:  # `filter` takes newest first in any order
                last = verdict.row or last
        self.turn = None
        self.torn = True
        for verdict in verdicts:
            self._count(verdict)
            if verdict.row is not None:
                self.position.pass_by(verdict.row.key, reading)
                self.position.cover(verdict.row, reading)
            if verdict.identity is not None and reading.recent is not None:
                reading.recent.add(verdict.identity)
            if self._ends(verdict):
                reading.closed = not is_loose
        if not is_loose:
            reading.last = last
        return [verdict.deliver for verdict in verdicts]

    # One row

    def _bind(self, values: Iterable[Any]) -> None:
        """Let the first value that there is tell how all of them compare."""
        for value in values:
            if self.range.key(value) is not None:
                self.boundary.settle(value)
                return

    def _first_get(self, record: Any) -> Any:
        """Read the cursor field of the first row, which tells how rows are read."""
        get = getter(self._options.cursor_field, record)
        value = get(record)
        if self._options.primary_key is not None:
            try:
                check_primary(self._options.primary_key, record)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self.name!r}: {error}") from error
        self._get = get
        return value

    def _refuse(self, error: TypeError) -> NoReturn:
        """Raise for what is no row."""
        if callable(self._options.cursor_field):
            raise error
        raise TypeError(f"{self.name!r}: {error}") from error

    def _judge(
        self, record: Any, value: Any, key: Key, reading: Reading, last: Mark | None, index: int | None = None
    ) -> Verdict:
        """Tell whether to deliver a record, whether it is late, and what of it counts for the position.

        `last` is the row before it in the same reading or batch, None where there is none.
        """
        options, span = self._options, self.range
        if key is None:
            if options.on_cursor_value_missing == "raise":
                where = "" if index is None else f" (row {index} of the batch)"
                raise ValueError(
                    f"{self.name!r}: a row has no {options.field!r}{where}: filter it out, or choose "
                    "on_cursor_value_missing='include' or 'exclude'"
                )
            return Verdict(options.on_cursor_value_missing == "include")
        if key < span.start_key:
            return Verdict(deliver=False, late=(key, value, None) if key < span.late_key else None)
        if key >= span.end_key:
            return Verdict(deliver=False)
        identity = None if reading.recent is None else _row_identity(self._primary, record, key)
        if identity is not None and reading.recent is not None and identity in reading.recent:
            return Verdict(deliver=False)
        self._check_order(value, key, last)
        memo, known = None, False
        if self.boundary.keyed:
            self.boundary.settle(value)
            memo = self.boundary.take(record)
            if self.boundary.knows(key):
                memo, known = self.boundary.recognise(memo, key, value)
        return Verdict(not known, row=Marked(key, value, memo), identity=identity)

    def _check_order(self, value: Any, key: Key, last: Mark | None) -> None:
        """Raise CursorRegressed where a sorted stream went back."""
        if self._options.asc:
            for mark in (self.position.bound, last or NO_MARK):
                if key < mark[0]:
                    raise CursorRegressed(self.name, mark[1], value)
        elif self._options.row_order == "desc" and last is not None and key > last[0]:
            raise CursorRegressed(self.name, last[1], value, "desc")

    def _count(self, verdict: Verdict) -> None:
        """Count a row; that there is one means that what was finished is not any longer."""
        self.touch()
        self.position.finished = False
        if verdict.deliver:
            self.delivered += 1
        else:
            self.dropped += 1
            if verdict.late is not None:
                self.late += 1
                self.late_top = max(self.late_top, verdict.late, key=lambda mark: mark[0])


def _row_identity(primary: Callable[[Any], Any] | None, record: Any, key: Key) -> Any:
    """Return what tells a row of a reading from others, its primary key at its cursor value; None: nothing does."""
    found = None if primary is None else primary(record)
    if found is None:
        return None
    try:
        hash(found)
    except TypeError:
        found = repr(found)
    return found, key


def _is_table(batch: Any) -> bool:
    """Tell whether a batch is an Arrow table, or gives one over the PyCapsule interface."""
    return type(batch).__module__.partition(".")[0] == "pyarrow" or hasattr(batch, "__arrow_c_stream__")
