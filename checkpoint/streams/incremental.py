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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from checkpoint.streams.boundary import merged, stored_seen
from checkpoint.streams.feeding import Feeding, T
from checkpoint.streams.options import SEEN, WINDOWS, Options
from checkpoint.streams.reading import NO_ROWS, Scan, Stats
from checkpoint.streams.values import Step, wire
from checkpoint.streams.windows import Frontier, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from checkpoint.codec import Cursor

__all__ = ["Incremental", "Options", "Stats"]

logger = logging.getLogger("checkpoint")

WENT_BACK = "went back to its last claim: ask the source again from start_value"
DETACHED = "is detached: open it again with cp.incremental"
ENDED = "is used after its run has ended: open it in a Checkpointer's with block"
CUT = "is cut into windows: feed those, or open it again to go on row by row"
NEW_WINDOWS = "was opened again or went back to its last claim: cut new windows"


class _Claim(NamedTuple):
    """What a commit says of a stream."""

    cursor: Cursor | None
    position: Any
    reached: Any
    """The highest value covered that may become the position; None: nothing was covered."""


class Incremental(Feeding[T]):
    """One stream of rows with a cursor field: from where to read on, which rows are new, what a commit may say.

        contacts = cp.incremental("contacts", "updated_at", initial_value="1970-01-01T00:00:00Z", primary_key="id")
        for rows in contacts.pages(api.contacts(updated_since=contacts.start_value)):
            sink.write(rows)
            cp.commit()

    Made by `Checkpointer.incremental`, which claims it. As a context manager it is finished where its block is left
    cleanly, and goes back to its last claim, detached, where an exception leaves it. It belongs to one thread at a
    time.
    """

    __slots__ = (
        "__weakref__", "_base", "_counted", "_detached", "_frontier", "_highest", "_last", "_left", "_options",
        "_pending", "_position", "_stops", "_unfinished", "_warned", "key",
    )  # fmt: skip

    _position: Any  # the last one claimed or stored, as it came
    _base: Cursor | None  # what the next claim starts from: the last claim, until the stream is rewound
    _frontier: Frontier | None  # of its windows
    _pending: _Claim

    def __init__(self, key: str, options: Options, stored: Cursor | None, stops: Sequence[object] = ()) -> None:
        self.key = key
        """The key the cursor is stored under."""
        self._options = options
        self._stops = stops  # not empty: the run is to stop
        self._detached = self._warned = False
        self._last = stored  # the last claim, or what was stored
        self._counted = NO_ROWS  # of earlier readings, and of windows
        self._highest: Any = None  # so too
        self._start(stored)
        _streams.add(self)

    def __repr__(self) -> str:
        return f"Incremental({self.key!r}, {self._options.field!r})"

    # Where to start

    @property
    def start_value(self) -> Any:
        """What to ask the source for: rows at this value and after it; None: all.

        The stored position less `lookback`, or `initial_value`; in the type of `initial_value`.
        """
        return self._scan.range.start

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

    def rewind(self, value: Any, reason: str) -> None:
        """Move the position back to `value`; the next commit stores it.

        Raises:
            ValueError: it lies after the position.

        """
        self._scan.check()
        if self._position is not None and self._scan.range.compare(value, self._position) > 0:
            raise ValueError(f"{self.key!r}: {value!r} lies after the position {self._position!r}: that is no rewind")
        self._start({self._options.field: wire(value)})
        logger.info("%r: rewound: %s", self.key, reason)

    def reset(self, reason: str) -> None:
        """Forget the position, and start from `initial_value` again; the next commit deletes or replaces it."""
        self._scan.check()
        self._start(None)
        logger.info("%r: reset: %s", self.key, reason)

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
        if self.start_value is None or until is None:
            raise ValueError(f"{self.key!r}: windows need a start (initial_value) and an end (until, or end_value)")
        if step != "month" and (isinstance(step, str) or not cast("Any", step) > type(step)()):
            raise ValueError(f"step must be a timedelta or number above zero, or 'month', not {step!r}")
        scale = self._scan.range.new_scale()
        scale.settle(self.start_value, until)
        end, now = scale.key_of(until), scale.now()
        if now is not None and end > now:
            raise ValueError(f"{self.key!r}: until={until!r} is in the future: what happens until then would be lost")
        if self._options.end_value is not None and end > scale.key_of(self._options.end_value):
            raise ValueError(f"{self.key!r}: until={until!r} lies after end_value, up to which the stream is read")
        with suppress(OverflowError, ValueError):  # longer than there are years: one window
            scale.shift(self.start_value, step, written=True) if step != "month" else scale.months(self.start_value, 1)
        islands: list[list[Any]] = (self._base or {}).get(WINDOWS) or []
        frontier = Frontier(self._scan, scale, self._options, islands, self._stops)
        self._scan.close(f"{self.key!r} {CUT}")
        self._frontier = frontier
        return frontier.cut(step, until)

    def _claim_windows(self, frontier: Frontier) -> Cursor | None:
        with frontier.lock:
            reached, left = frontier.reach(self._position)
            moved = reached is not None
            cursor = self._cursor(reached, moved=True) if moved else dict(self._base or {})
        before = cursor.pop(WINDOWS, None)
        if left:
            cursor[WINDOWS] = left
        elif before is None and not moved:
            return self._base
        return cursor

    def _passing(self, islands: Iterable[Any], position: Any) -> list[Any]:
        """Return the finished windows that end beyond a position."""
        scale = self._scan.range.new_scale()
        scale.settle(position)
        key = scale.key_of(position, written=True)
        return [island for island in islands if scale.key_of(island[1], written=True) > key]

    def _lies_beyond(self, value: Any) -> bool:
        """Tell whether a value lies after the position."""
        key = self._scan.range.key_of
        return self._position is None or bool(key(value) > key(self._position))

    def __enter__(self) -> Self:
        self._scan.check()
        self._left = False
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
        if not (self._stops or self._scan.position.readings or self._unfinished or self._frontier is not None):
            self.finish()

    def detach(self) -> None:
        """Go back to the last claim, for good."""
        self._start(self._last, DETACHED)
        self._detached = True
        self._close(DETACHED)

    def end(self) -> None:
        """Refuse to be fed any more, for the run has ended; what the stream can tell stays readable."""
        if not self._detached:
            self._detached = True
            self._close(ENDED)

    def back(self, cursor: Cursor | None) -> None:
        """Go back to a claim, and go on from there."""
        self._start(cursor)
        self._last = cursor

    def claim(self) -> Cursor | None:
        """Return what the stream's key is to hold once all rows handed out are delivered; None: nothing.

        It becomes the last claim with `claimed`.
        """
        if self._frontier is not None:
            cursor = self._claim_windows(self._frontier)
            self._pending = _Claim(cursor, (cursor or {}).get(self._options.field), None)
            return cursor
        reached = self._scan.position.reached()
        position, moved = self._position, False
        if reached is not None and self._lies_beyond(reached):
            position, moved = reached, True
        cursor = self._base
        if moved or (position is not None and not self._scan.boundary.empty):
            cursor = self._cursor(position, moved=moved)
        self._pending = _Claim(cursor, position, reached)
        return cursor

    def claimed(self) -> None:
        """Take what `claim` returned for said."""
        claim = self._pending
        self._last = self._base = claim.cursor
        self._position = claim.position
        self._scan.claimed(claim.reached)

    def _cursor(self, position: Any, *, moved: bool) -> Cursor:
        """Return the base with a position in it, and the boundary rows that belong to that."""
        field, limit = self._options.field, self._options.max_seen
        cursor: Cursor = dict(self._base or {})
        before = stored_seen(cursor, field)
        cursor.pop(SEEN, None)
        if moved:
            cursor[field] = wire(position)
        seen = before.rows if not moved else []
        if self._options.keyed:
            seen = merged(seen, self._scan.boundary.digests(position))
            if len(seen) > limit:
                self._warn()
                seen = seen[-limit:] if moved else seen[:limit]
        if seen:
            cursor[SEEN] = {"at": cursor[field], "rows": seen}
        if moved and (left := self._passing(cursor.pop(WINDOWS, ()), position)):
            cursor[WINDOWS] = left
        return cursor

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%r: more than %d rows at its position: the next run hands some of them out again; raise max_seen",
                self.key, self._options.max_seen,
            )  # fmt: skip

    def _start(self, stored: Cursor | None, why: str = WENT_BACK) -> None:
        """Start from a stored cursor; None: from `initial_value`. Rows handed out and not claimed are forgotten."""
        scan = Scan(self.key, self._options, self._position_of(stored), stored_seen(stored, self._options.field))
        if hasattr(self, "_scan"):
            self._counted, self._highest = self.stats, self.last_value
            self._close(why)
        self._scan, self._position, self._base = scan, scan.range.position, stored
        self._frontier = None
        self._left = self._unfinished = False

    def _close(self, why: str) -> None:
        """Take no more rows, in windows neither."""
        self._scan.close(f"{self.key!r} {why}")
        if self._frontier is not None:
            self._frontier.close(f"{self.key!r} {ENDED if why is ENDED else NEW_WINDOWS}")

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


# So that a fork finds them.
_streams: weakref.WeakSet[Incremental[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    """Let the streams of a forked child go back: it cannot say that rows which the parent took are delivered."""
    for stream in list(_streams):
        if stream.live:
            stream._start(stream._last)  # noqa: SLF001 - this module's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
