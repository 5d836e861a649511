"""One stream's cursor: what to ask the source for, what was handed out, and how far it is safe to say.

    Options    what it was opened with
    Range      from where to where it reads, and how its values compare
    Boundary   the memory of boundary rows
    Position   how far the rows that were handed out allow a stream to say it is
    Scan       all of these, and how a row is judged
    Feeding    what rows are fed through
    Frontier   its windows, and which of them are finished

Incremental and Window are what a job sees of them. A stream that goes back begins another Scan; what is under way in
the one before is refused.
"""

from __future__ import annotations

import logging
import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from checkpoint.streams import telling
from checkpoint.streams.claiming import Claim, claim, claim_windows
from checkpoint.streams.feeding import Feeding, T
from checkpoint.streams.holding import here, is_over
from checkpoint.streams.options import Options
from checkpoint.streams.reading import NO_ROWS, Scan, Stats, nobody
from checkpoint.streams.stored import RESUME, read
from checkpoint.streams.values import Step, epoch_named, wire
from checkpoint.streams.windows import Frontier, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from checkpoint.codec import Cursor
    from checkpoint.streams.holding import Holder
    from checkpoint.streams.stored import Resume

__all__ = ["Incremental", "Options", "Stats"]

logger = logging.getLogger("checkpoint")

MINUTE = 60
WENT_BACK = "went back to its last claim: ask the source again from start_value"
DETACHED = "is detached: open it again with cp.incremental"
ENDED = "is used after its run has ended: open it in a Checkpointer's with block"
CUT = "is cut into windows: feed those, or open it again to go on row by row"
NEW_WINDOWS = "was opened again or went back to its last claim: cut new windows"


class Incremental(Feeding[T]):
    """One stream of rows with a cursor field: from where to read on, which rows are new, what a commit may say.

        contacts = cp.incremental("contacts", "updated_at", initial_value="1970-01-01T00:00:00Z", primary_key="id")
        for rows in contacts.pages(api.contacts(updated_since=contacts.start_value)):
            sink.write(rows)
            cp.commit()

    Made by `Checkpointer.incremental`, which claims it. As a context manager it is finished where its block is left
    cleanly after a `pages`, `track` or `fetch` that was exhausted, and goes back to its last claim, detached, where an
    exception leaves it. It belongs to one thread at a time.
    """

    __slots__ = (
        "__weakref__", "_base", "_claimed", "_commits", "_counted", "_detached", "_frontier", "_highest", "_last",
        "_left", "_options", "_pending", "_position", "_resume", "_state", "_stops", "_told", "_touch", "_unfinished",
        "alone", "key", "reason",
    )  # fmt: skip

    _position: Any  # the last one claimed or stored, as it came
    _base: Cursor | None  # what the next claim starts from: the last claim, until the stream is rewound
    _frontier: Frontier | None  # of its windows
    _resume: Resume | None  # where a `fetch` was interrupted, as it is stored
    _pending: Claim

    def __init__(
        self,
        key: str,
        options: Options,
        stored: Cursor | None,
        stops: Sequence[object] = (),
        *,
        alone: bool = True,
        touch: Callable[[], object] = nobody,
    ) -> None:
        self.key = key
        """The key the cursor is stored under."""
        self.alone = alone
        """Whether it tells of itself at its end; of a member its group does."""
        self._options = options
        self._stops = stops  # not empty: the run is to stop
        self._touch = touch  # called after whatever a claim may depend on has changed
        self._detached = False
        self._told: set[str] = set()  # what was logged that is logged once
        self._last = stored  # the last claim, or what was stored
        self._commits = self._claimed = 0  # how often it was claimed; rows delivered by then
        self._counted = NO_ROWS  # of earlier scans
        self._highest: Any = None  # so too
        self.reason: str | None = None
        """Why the position was taken back since the last claim; None: it was not."""
        self._start(stored)
        _streams.add(self)

    def __repr__(self) -> str:
        position, waiting = repr(self._position)[:60], self.stats.delivered - self._claimed
        return f"Incremental({self.key!r}, {self._options.field!r}, position={position}, uncommitted={waiting})"

    # Where to start

    @property
    def start_value(self) -> Any:
        """What to ask the source for: rows at this value and after it; None: all.

        The stored position less `lookback`, or `initial_value`; in the type of `initial_value`. Where an interrupted
        `fetch` of an ascending stream goes on, it is what that reading began with, for the place belongs to that
        question; rows before the position are dropped.
        """
        return self._scan.range.asked

    @property
    def end_value(self) -> Any:
        """Rows before this value are read; None: all there are."""
        return self._options.end_value

    @property
    def last_value(self) -> Any:
        """The highest value handed out in this run, as it came; None: there was none."""
        scan = self._scan
        highest = scan.range.highest(self._highest, scan.position.highest())
        return highest if self._frontier is None else scan.range.highest(highest, self._frontier.highest)

    @property
    def stats(self) -> Stats:
        """How many rows were seen, delivered and dropped in this run."""
        stats = self._counted + self._scan.stats
        return stats if self._frontier is None else stats + self._frontier.tally

    # The position

    def finish(self) -> None:
        """Say that the source was read to its end: everything from `start_value` on was handed out."""
        self._scan.check()
        self._scan.finish()

    def unfinished(self) -> None:
        """Say that the source was not read to its end, so that leaving the block does not finish the stream."""
        self._unfinished, self._scan.position.finished = True, False

    @overload
    def rewind(self, value: Any, reason: str) -> None: ...
    @overload
    def rewind(self, *, by: Step, reason: str) -> None: ...
    def rewind(self, value: Any = None, reason: str = "", *, by: Step | None = None) -> None:
        """Move the position back to `value`, or `by` an amount; the next commit stores it.

        The place where a `fetch` was interrupted is forgotten; an amount of 0 forgets only that.

        Args:
            value: the new position.
            reason: why; it is logged.
            by: how far to go back: a timedelta or a number.

        Raises:
            ValueError: it lies after the position, or there is no position to go back from.
            TypeError: neither or both of `value` and `by`, no reason, or an amount that does not go with the position.

        """
        self._scan.check()
        if (value is None) == (by is None) or not reason:
            raise TypeError("rewind() takes a value or by=…, and a reason")
        if by is not None:
            self._rewind_by(by)
        elif self._position is not None and self._scan.range.compare(value, self._position) > 0:
            raise ValueError(f"{self.key!r}: {value!r} lies after the position {self._position!r}: that is no rewind")
        else:
            self._scan.range.compare(value, value)
            self._start({self._options.field: wire(value)})
        self.reason = reason
        logger.info("%r: rewound: %s", self.key, reason)

    def _rewind_by(self, by: Step) -> None:
        zero: Any = type(by)()
        if by < zero:
            raise ValueError(f"{self.key!r}: by={by!r} lies after the position: that is no rewind")
        if by == zero:
            base = {name: value for name, value in (self._base or {}).items() if name != RESUME}
            self._start(base or None)
        elif self._position is None:
            raise ValueError(f"{self.key!r} has no position to go back from")
        else:
            moved = self._scan.range.scale.shift(self._position, cast("Any", by), -1, written=True)
            self._start({self._options.field: wire(moved)})

    def reset(self, reason: str) -> None:
        """Forget the position, and start from `initial_value` again; the next commit deletes or replaces it."""
        self._scan.check()
        self._start(None)
        self.reason = reason
        logger.info("%r: reset: %s", self.key, reason)

    def _place(self) -> Resume | None:
        """Return where a `fetch` goes on; None: at the beginning."""
        resume, self._resume = self._resume, None
        differs = None if resume is None else self._differs(resume)
        if differs is not None:
            telling.tell_of_place(self.key, differs)
        return resume if differs is None else None

    def _differs(self, resume: Resume) -> str | None:
        """Return what the question, to which a stored place belongs, has another one of now; None: nothing."""
        options, start = self._options, wire(self._scan.range.start)
        follows = options.asc and self._position is not None  # the position, which moved since that question
        for what, stored, now in (
            ("cursor_field", resume.field, options.field),
            ("start_value", resume.start, resume.start if follows else start),
            ("end_value", resume.end, wire(options.end_value)),
        ):
            if stored != now:
                return what
        return None

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
        self._scan.check()
        until = self._options.end_value if until is None else until
        start = self._scan.range.start
        if start is None or until is None:
            raise ValueError(f"{self.key!r}: windows need a start (initial_value) and an end (until, or end_value)")
        if step != "month" and (isinstance(step, str) or not cast("Any", step) > type(step)()):
            raise ValueError(f"step must be a timedelta or number above zero, or 'month', not {step!r}")
        scale = self._scan.range.new_scale()
        scale.settle(start, until)
        end, now = scale.key_of(until), scale.now(MINUTE)
        if scale.kind == "wall":
            raise ValueError(
                f"{self.key!r}: until={until!r} has no time zone, so nothing tells whether it has passed: say whose "
                "clock it is, such as timezone='UTC'"
            )
        if now is not None and end > now:
            raise ValueError(f"{self.key!r}: until={until!r} is in the future: what happens until then would be lost")
        if self._options.end_value is not None and end > scale.key_of(self._options.end_value):
            raise ValueError(f"{self.key!r}: until={until!r} lies after end_value, up to which the stream is read")
        with suppress(OverflowError, ValueError):  # longer than there are years: one window
            scale.shift(start, step, written=True) if step != "month" else scale.months(start, 1)
        frontier = Frontier(self._scan, scale, self._options, self._state.windows, self._stops)
        self._scan.close(f"{self.key!r} {CUT}")
        self._frontier = frontier
        return frontier.cut(step, until)

    def __enter__(self) -> Self:
        self._scan.check()
        self._left = False
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.leave()
            for reading in self._scan.position.readings:
                if reading.holder is here():
                    reading.holder = None
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
        if self._frontier is None and not self._scan.position.finished and self._why_unfinished() is None:
            self._scan.finish()

    def _why_unfinished(self) -> str | None:
        """Return why leaving the block does not finish the stream; None: it does."""
        if self._unfinished:
            return "unfinished() was called"
        if self._stops:
            return "the run was stopped"
        if self._scan.position.readings:
            return "a pages(), track() or fetch() was begun and not read to its end"
        if not self._scan.exhausted:
            return "it was fed by filter() and observe() alone, which do not tell whether that was all: call finish()"
        return None

    def detach(self) -> None:
        """Go back to the last claim, for good."""
        if not self._detached:
            self._tell(failed=True)
        self._start(self._last, DETACHED)
        self._detached = True
        self._close(DETACHED)

    def end(self) -> None:
        """Refuse to be fed any more, for the run has ended; what the stream can tell stays readable."""
        if not self._detached:
            self._tell(failed=False)
            self._detached = True
            self._close(ENDED)

    def _tell(self, *, failed: bool) -> None:
        if self.alone:
            telling.tell(self.key, [self.ending()], failed=failed)

    def ending(self) -> telling.Ending:
        """Return what there is to tell of the stream at its end."""
        scan, options = self._scan, self._options
        span = scan.range
        above = scan.position.lowest_above
        why, meant = self._unfinished_now(), bool(self._unfinished or self._stops or self._is_resumed_later())
        return telling.Ending(
            self.key,
            self.stats,
            self._commits,
            long_late=self._is_long_late(),
            no_range=options.end_value is not None
            and span.start is not None
            and span.compare(span.start, options.end_value) >= 0,
            unfinished=why,
            meant=meant,
            all_ahead=above is not None and scan.position.high()[1] is None and span.lies_in_future(above[1]),
            epoch=self._epoch(),
        )

    def _is_long_late(self) -> bool:
        """Tell whether late rows are so by more than a healthy job's: newest first, a reading ends with one."""
        scan = self._scan
        if self._options.row_order == "desc" or scan.resumed is not None:
            return scan.late_top[1] is None
        return scan.late_top[1] is None or scan.range.is_long_before(scan.late_top[1])

    def _epoch(self) -> str | None:
        """Return the format that numbers without a clock look like, where that matters; None: there is none."""
        highest = self.last_value
        if highest is None or self._options.cursor_format is not None or self._scan.range.scale.kind != "number":
            return None
        return epoch_named(highest) if self._frontier is not None or not self._options.asc else None

    def _unfinished_now(self) -> str | None:
        """Return why the stream, or some of its windows, was left unfinished; None: it was not."""
        if self._frontier is not None:
            return self._frontier.why_unfinished()
        scan = self._scan
        if self._options.asc or scan.position.finished or not (scan.stats.seen or scan.position.readings):
            return None
        return self._why_unfinished()

    def _is_resumed_later(self) -> bool:
        """Tell whether the next run's `fetch` goes on where this one was left."""
        return RESUME in (self._last or {})

    # Who holds it

    def held_elsewhere(self, by: Holder) -> bool:
        """Tell whether rows of the stream are in the hands of a thread or task other than `by`."""
        return any(
            reading.holder is not None and reading.holder is not by and not is_over(reading.holder)
            for reading in self._scan.position.readings
        )

    def let_go(self, by: Holder) -> None:
        """Take note that `by` committed the stream, or left its block: what it closed is held by nobody."""
        for reading in self._scan.position.readings:
            if reading.closed and reading.holder is by:
                reading.holder = None

    def back(self, cursor: Cursor | None) -> None:
        """Go back to a claim, and go on from there."""
        self._start(cursor)
        self._last = cursor

    def claim(self) -> Cursor | None:
        """Return what the stream's key is to hold once all rows handed out are delivered; None: nothing.

        It becomes the last claim with `claimed`.
        """
        frontier = self._frontier
        if self._scan.torn:
            self._pending = Claim(self._base, self._position)
            if "torn" not in self._told:
                self._told.add("torn")
                telling.tell_of_torn(self.key)
        elif frontier is None:
            self._pending = claim(self._scan, self._options, self._base, self._position)
        else:
            with frontier.lock:
                reached, islands = frontier.reach(self._position)
                self._pending = claim_windows(self._scan, self._options, self._base, self._position, reached, islands)
        if self._pending.too_many and "ties" not in self._told:
            self._told.add("ties")
            telling.tell_of_ties(self.key, self._options.max_seen)
        return self._pending.cursor

    def claimed(self) -> None:
        """Commit the result of `claim()` as the new last claim."""
        claim = self._pending
        self.reason = None
        self._last = self._base = claim.cursor
        self._position = claim.position
        self._scan.unremembered = claim.unremembered
        self._scan.claimed(claim.reached)
        self._commits += 1
        self._claimed = self.stats.delivered

    def _start(self, stored: Cursor | None, why: str = WENT_BACK) -> None:
        """Start from a stored cursor; None: from `initial_value`. Rows handed out and not claimed are forgotten."""
        state = read(self.key, stored, self._options.field)
        scan = Scan(self.key, self._options, state.position, state.seen, self._touch)
        if hasattr(self, "_scan"):
            self._counted, self._highest = self.stats, self.last_value
            self._close(why)
        self._scan, self._position, self._base = scan, state.position, stored
        self._state = state
        self._resume = None if self._options.asc and scan.range.reaches_back() else state.resume
        if self._options.asc and self._resume is not None and self._differs(self._resume) is None:
            scan.range.ask(self._resume.start)
        self._frontier = None
        self._left = self._unfinished = False
        self._touch()

    def _close(self, why: str) -> None:
        """Take no more rows, in windows neither."""
        self._scan.close(f"{self.key!r} {why}")
        if self._frontier is not None:
            self._frontier.close(f"{self.key!r} {ENDED if why is ENDED else NEW_WINDOWS}")


# So that a fork finds them.
_streams: weakref.WeakSet[Incremental[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    """Let the streams of a forked child go back: it cannot say that rows which the parent took are delivered."""
    for stream in list(_streams):
        if stream.live:
            stream._start(stream._last)  # noqa: SLF001 - this module's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
