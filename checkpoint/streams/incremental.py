"""One stream's cursor: what to ask the source for, what was handed out, and what a claim may cover.

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
import math
import os
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from checkpoint.entries import check_text
from checkpoint.streams import telling
from checkpoint.streams.claiming import Claimed, Said, claim, claim_windows, differs
from checkpoint.streams.counts import NO_ROWS, Stats
from checkpoint.streams.feeding import Feeding, T
from checkpoint.streams.holding import here
from checkpoint.streams.options import Options, check_options, is_length
from checkpoint.streams.reading import Scan, nobody
from checkpoint.streams.stored import RESUME, read_state
from checkpoint.streams.values import Amount, likelier_epoch, wire
from checkpoint.streams.windows import Frontier, Window, frontier_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from checkpoint.codec import Cursor
    from checkpoint.streams.holding import Caller
    from checkpoint.streams.stored import Resume, StreamState

__all__ = ["Incremental", "Options", "Stats"]

logger: logging.Logger = logging.getLogger("checkpoint")

WENT_BACK = "went back to its last claim: ask the source again from start_value"
DETACHED = "is detached: open it again with cp.incremental"
ENDED = "belongs to a run that has ended: open it in the with block of a new Checkpointer"
CUT = "is cut into windows: feed the windows, or open it again to go on row by row"
NEW_WINDOWS = "was opened again or went back to its last claim: cut new windows"


_NOTHING = NO_ROWS, None


class Incremental(Feeding[T]):
    """One stream of rows with a cursor field: where to read on, which rows are new, how far a commit may go.

        contacts = cp.incremental("contacts", "updated_at", initial_value="1970-01-01T00:00:00Z", primary_key="id")
        for rows in contacts.pages(api.contacts(updated_since=contacts.start_value)):
            sink.write(rows)
            cp.commit()

    `Checkpointer.incremental` makes it. Used as a context manager, it is finished when its block is left cleanly and a
    `pages`, `track` or `fetch` was read to its end. An exception takes it back to its last claim, and detaches it: it
    takes no more rows, and no commit asks it. It belongs to one thread at a time.
    """

    __slots__ = (
        "__weakref__", "_before", "_detached", "_frontier", "_left", "_options", "_said", "_state",
        "_stops", "_told", "_touch", "_unfinished", "alone", "key", "reason",
    )  # fmt: skip

    _frontier: Frontier | None  # of its windows
    _state: StreamState  # what it began from; once a `fetch` has begun, without the place to resume

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
        self.key: str = key
        """The key the cursor is stored under."""
        self.alone: bool = alone
        """Whether it logs its own end; a group logs the end of its members together."""
        check_options(key, options)
        self._options = options
        self._stops = stops  # not empty: the run is to stop
        self._touch = touch  # see Scan
        self._detached = False
        self._told: dict[str, str] = {}  # events that are told once, and what more there is to say of each
        self._said = Said(stored)
        self._before: tuple[Stats, Any] = _NOTHING  # rows of earlier scans, and the highest value of them
        self.reason: str | None = None
        """The reason of a rewind since the last claim; None: there was none."""
        self._start(stored)
        _streams.add(self)

    def __repr__(self) -> str:
        position, waiting = repr(self._said.position)[:60], self.stats.delivered - self._said.delivered
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
        highest = scan.range.highest(self._before[1], scan.position.highest())
        return highest if self._frontier is None else scan.range.highest(highest, self._frontier.highest)

    @property
    def stats(self) -> Stats:
        """How many rows were seen, delivered and dropped in this run."""
        stats = self._before[0] + self._scan.stats
        return stats if self._frontier is None else stats + self._frontier.tally

    # The position

    def finish(self) -> None:
        """Say that the source was read to its end: everything from `start_value` on was handed out."""
        self._scan.check()
        self._scan.finish()

    def unfinished(self) -> None:
        """Say that the source was not read to its end, so that leaving the block does not finish the stream."""
        self._touch()
        self._unfinished, self._scan.position.finished = True, False
        self._touch()

    @overload
    def rewind(self, value: Any, reason: str) -> None: ...
    @overload
    def rewind(self, *, by: Amount, reason: str) -> None: ...
    def rewind(self, value: Any = None, reason: str = "", *, by: Amount | None = None) -> None:
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
            raise TypeError("rewind() takes either a value or by=…, and a reason")
        check_text("reason", reason)
        if by is not None:
            self._rewind_by(by)
        elif (position := self._said.position) is not None and self._scan.range.compare(value, position) > 0:
            raise ValueError(
                f"{self.key!r}: {value!r} lies after the position {position!r}, and rewind() only goes back"
            )
        else:
            self._scan.range.compare(value, value)
            self._start({self._options.field: wire(value)})
        self.reason = reason
        extra = {"checkpoint_event": "rewound", "checkpoint_stream": self.key}
        logger.info("%r: rewound: %s", self.key, reason, extra=extra)

    def _rewind_by(self, by: Amount) -> None:
        if not is_length(by) or (not isinstance(by, timedelta) and not math.isfinite(by)):
            raise TypeError(f"{self.key!r}: by must be a timedelta or a finite number, not {by!r}")
        zero: Any = type(by)()
        if by < zero:
            raise ValueError(f"{self.key!r}: by must not be negative: {by!r}; rewind() only goes back")
        if by == zero:
            base = {name: value for name, value in (self._said.base or {}).items() if name != RESUME}
            self._start(base or None)
        elif self._said.position is None:
            raise ValueError(f"{self.key!r} has no position to go back from")
        else:
            scale = self._scan.range.scale
            scale.check_step("by", by)
            moved = scale.shift(self._said.position, cast("Any", by), -1, written=True)
            self._start({self._options.field: wire(moved)})

    def reset(self, reason: str) -> None:
        """Forget the position, and start from `initial_value` again; the next commit deletes or replaces it."""
        self._scan.check()
        check_text("reason", reason)
        self._start(None)
        self.reason = reason
        extra = {"checkpoint_event": "reset", "checkpoint_stream": self.key}
        logger.info("%r: reset: %s", self.key, reason, extra=extra)

    def _place(self) -> Resume | None:
        """Return where a `fetch` continues; None: at the beginning."""
        place = self._state.resume
        self._state = self._state._replace(resume=None)
        if place is None:
            return None
        other = differs(place, self._scan, self._options)
        self._note("resumed" if other is None else "resume_dropped", other or "")
        return place if other is None else None

    def _note(self, event: str, detail: str) -> None:
        """Log an event once per run; the events of a member are logged by its group at the end."""
        if event not in self._told:
            self._told[event] = detail
            if self.alone:
                telling.tell_at_once(self.key, event, detail)

    # Windows

    def windows(self, step: Amount | Literal["month"], until: Any = None) -> Iterator[Window[T]]:
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
        frontier = frontier_of(self._scan, self._options, self._state.windows, self._stops, step, until)
        self._scan.close(f"{self.key!r} {CUT}")
        self._note_other_epoch()
        self._frontier = frontier
        self._touch()
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
            self._scan.shut()  # whoever asks for another row holds it
            self._scan.position.let_go(here(), closed=False)
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
            return (
                "it was fed by filter() and observe() alone, which cannot know whether more rows follow: call finish()"
            )
        return None

    def detach(self) -> None:
        """Reset to the last claim, permanently."""
        if not self._detached:
            self._tell(failed=True)
        self._start(self._said.last, DETACHED)
        self._detached = True
        self._close(DETACHED)

    def end(self) -> None:
        """Take no more rows, because the run has ended; positions and counts stay readable."""
        if not self._detached:
            self._tell(failed=False)
            self._detached = True
            self._close(ENDED)

    def _tell(self, *, failed: bool) -> None:
        if self.alone:
            telling.tell_of_end(self.key, [self.ending()], failed=failed)

    def ending(self) -> telling.Ending:
        """Return the data from which the end of the stream is judged and logged."""
        scan, options = self._scan, self._options
        span = scan.range
        above = scan.position.lowest_above
        why, meant = self._unfinished_now(), bool(self._unfinished or self._stops or self._is_resumed_later())
        return telling.Ending(
            self.key,
            self.stats,
            self._said.commits,
            long_late=telling.are_long_late(scan, options),
            no_range=options.end_value is not None
            and span.start is not None
            and span.compare(span.start, options.end_value) >= 0,
            unfinished=why,
            meant=meant,
            all_ahead=above is not None
            and scan.position.high()[1] is None
            and span.lies_in_future(above[1])
            and "other_epoch" not in self._told,
            epoch=None if self._frontier is None and options.asc else telling.epoch_of(scan, options, self.last_value),
            noted={} if self.alone else self._told,
        )

    def _note_other_epoch(self) -> None:
        """Note the epoch format that the values probably have, if it is not the given one."""
        if self._options.cursor_format is None:
            return
        value, above = self.last_value, self._scan.position.lowest_above
        if value is None:
            value = self._scan.range.start if above is None else above[1]
        if (other := likelier_epoch(value, self._options.cursor_format)) is not None:
            self._note("other_epoch", other)

    def _unfinished_now(self) -> str | None:
        """Return why the stream or some of its windows are unfinished; None: they are finished."""
        if self._frontier is not None:
            return self._frontier.why_unfinished()
        scan = self._scan
        if self._options.asc or scan.position.finished or not (scan.stats.seen or scan.position.readings):
            return None
        return self._why_unfinished()

    @property
    def was_read(self) -> bool:
        """Whether the source was read to its end; False also where that is not known."""
        if self._detached or self._scan.torn:
            return False
        return self._scan.position.finished if self._frontier is None else self._frontier.is_read()

    @property
    def only_waits(self) -> bool:
        """Whether no row came since the last claim, but rows above the ceiling wait for the clock to pass them."""
        return self._scan.position.waits and self._said.delivered == self.stats.delivered

    @property
    def cursor_format(self) -> str | None:
        """The `cursor_format` that the stream was opened with, where it is a name or a pattern."""
        form = self._options.cursor_format
        return form if isinstance(form, str) else None

    def _is_resumed_later(self) -> bool:
        """Tell whether the `fetch` of the next run continues where this one ended."""
        return RESUME in (self._said.last or {})

    # Who holds it

    def held_elsewhere(self, by: Caller) -> bool:
        """Tell whether rows of the stream are in the hands of a thread or task other than `by`."""
        return self._scan.position.held_elsewhere(by)

    def let_go(self, by: Caller) -> None:
        """Release the closed readings of `by`, which has committed the stream or left its block."""
        self._scan.position.let_go(by, closed=True)

    def back(self, cursor: Cursor | None) -> None:
        """Reset to a claim, and continue from there."""
        self._start(cursor)
        self._said.last = cursor

    def claim(self) -> Cursor | None:
        """Return the cursor to store once all rows handed out are delivered; None: no cursor.

        It becomes the last claim with `claimed`.
        """
        frontier, said = self._frontier, self._said
        if self._scan.torn:
            said.pending = Claimed(said.base, said.position)
            self._note("torn", "")
        elif frontier is None:
            said.pending = claim(self._scan, self._options, said.base, said.position)
        else:
            with frontier.lock:
                reached, islands = frontier.reach(said.position)
                said.pending = claim_windows(self._scan, self._options, said.base, said.position, reached, islands)
        self._note_other_epoch()
        if said.pending.too_many:
            self._note("many_at_once", str(self._options.max_seen))
        return said.pending.cursor

    def claimed(self) -> None:
        """Commit the result of `claim()` as the new last claim."""
        claimed = self._said.commit(self.stats.delivered)
        self.reason = None
        self._scan.unremembered = claimed.unremembered
        self._scan.claimed(claimed.reached)

    def _start(self, stored: Cursor | None, why: str = WENT_BACK) -> None:
        """Start from a stored cursor; None: from `initial_value`. Rows handed out and not claimed are forgotten."""
        state = read_state(self.key, stored, self._options.field)
        scan = Scan(self.key, self._options, state.position, state.seen, self._touch)
        if hasattr(self, "_scan"):
            self._before = self.stats, self.last_value
            self._close(why)
        place = state.resume
        if self._options.asc and place is not None:
            if scan.range.reaches_back():
                state = state._replace(resume=None)
            elif differs(place, scan, self._options) is None:
                scan.range.ask(place.start)
        self._touch()
        self._scan, self._state = scan, state
        self._said.position, self._said.base = state.position, stored
        self._frontier = None
        self._left = self._unfinished = False
        self._touch()

    def _close(self, why: str) -> None:
        """Take no more rows, neither here nor in windows."""
        self._scan.close(f"{self.key!r} {why}")
        if self._frontier is not None:
            self._frontier.close(f"{self.key!r} {ENDED if why is ENDED else NEW_WINDOWS}")


# So that a fork finds them.
_streams: weakref.WeakSet[Incremental[Any]] = weakref.WeakSet()


def _go_back_in_child() -> None:
    """Take the streams of a forked child back: it cannot claim rows that the parent has taken."""
    for stream in list(_streams):
        if stream.live:
            stream.back(stream._said.last)  # noqa: SLF001 - this module's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_go_back_in_child)
