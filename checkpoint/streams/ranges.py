"""What a stream reads: from where to where, and the keys its values compare by."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from checkpoint.errors import CursorExpired
from checkpoint.streams.keys import HIGHEST, LOWEST
from checkpoint.streams.values import Scale, clock, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.streams.options import Options
    from checkpoint.streams.values import Key

SKEW = 300
"""Seconds that a source's clock may be away from ours."""
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)


class Range:
    """Values from `start` to before the end; None: there is none.

    The first row tells how its values compare; until then the keys are those of no bounds, and nothing is compared.

    Args:
        name: the stream's key.
        options: what it was opened with.
        position: the stored position, None where there is none.
        ahead: the lowest and highest stored value of remembered rows above the ceiling.

    Raises:
        CursorExpired: the position lies before `oldest_available`.
        TypeError, ValueError: the bounds do not compare with each other.

    """

    __slots__ = (
        "_ahead",
        "_asked",
        "_cap",
        "_name",
        "_opened_at",
        "_opening",
        "_options",
        "ahead",
        "end_key",
        "key",
        "late_key",
        "opened_key",
        "position",
        "sample",
        "scale",
        "start",
        "start_key",
    )  # fmt: skip

    def __init__(self, name: str, options: Options, position: Any, ahead: tuple[Any, Any] | None = None) -> None:
        self._name = name
        self._options = options
        self._opened_at = clock()
        self._opening: Key = HIGHEST  # the ceiling of an unsorted stream
        self._cap: Any = None  # a value that is a ceiling, too: of an earlier part of the reading
        self._ahead = ahead
        self._asked: tuple[Any] | None = None  # what the source is asked from, where that is not `start`
        self.position: Any = position
        """The position that the stream was opened with, as it is stored."""
        self.key: Callable[[Any], Key] = self._first_key
        """Maps a row's value to what it compares by; None: it has none."""
        self.sample: Any = None
        """The first row's value, which told how the values compare; None: there was none."""
        self.start_key: Key = LOWEST
        self.opened_key: Key = LOWEST
        self.late_key: Key = LOWEST
        """Rows before it are late; those from it to `start_key` were delivered before."""
        self.end_key: Key = HIGHEST
        self.ahead: tuple[Key, Key] = (HIGHEST, LOWEST)
        self.scale: Scale = self.new_scale()
        oldest = options.oldest_available
        if position is not None and oldest is not None and self.compare(position, oldest) < 0:
            raise CursorExpired(name, position, oldest)
        self.start: Any = self.scale.spelled(options.initial_value) if position is None else self.floor(position)
        self._check()

    def new_scale(self) -> Scale:
        """Return a scale that knows what the options and the position tell."""
        options = self._options
        known = {
            "the stored position": self.position,
            "initial_value": options.initial_value,
            "end_value": options.end_value,
            "oldest_available": options.oldest_available,
            "lookback": options.lookback,
        }
        scale = Scale(f"{self._name!r}, {options.field!r}", options.timezone, known, options.cursor_format)
        scale.settle(options.initial_value, options.end_value, options.oldest_available)
        scale.settle(self.position, written=True)
        if options.cursor_format is None and not isinstance(options.lookback, timedelta):
            scale.settle(options.lookback)
        return scale

    @property
    def bound(self) -> bool:
        """Whether a row has told how the values compare."""
        return self.sample is not None

    def reopen(self, other: Range) -> None:
        """Recognise the same delivered rows as another range of the stream; `start` stays."""
        self.position, self._ahead = other.position, other._ahead

    def key_of(self, value: Any) -> Key:
        """Return the key by which a bound or a stored value compares."""
        return self.scale.key_of(value, written=True)

    def compare(self, one: Any, other: Any) -> int:
        """Return -1, 0 or 1 for two bounds, whatever kind the rows will be."""
        scale = self.new_scale()
        scale.settle(one, other, written=True)
        key, against = scale.key_of(one, written=True), scale.key_of(other, written=True)
        return int(key > against) - int(key < against)

    def highest(self, one: Any, other: Any) -> Any:
        """Return the higher of two values, None counting for nothing; of equal ones the first."""
        if one is None or other is None:
            return other if one is None else one
        return one if self.key_of(one) >= self.key_of(other) else other

    def ceiling(self) -> Key:
        """Return the key that the position never exceeds."""
        ceiling = HIGHEST  # also of an end_value: nothing at it or above is handed out
        if self._options.end_value is None and self._options.row_order is None:
            ceiling = self._opening
        elif self._options.end_value is None and self.scale.has_clock:
            ceiling = self.scale.now(SKEW)
        return ceiling if self._cap is None else min(ceiling, self.key_of(self._cap))

    def joined(self, one: tuple[Any, Any], other: tuple[Any, Any] | None) -> tuple[Any, Any]:
        """Return the lowest and highest of two such pairs."""
        if other is None:
            return one
        lows, highs = sorted((one[0], other[0]), key=self.key_of), sorted((one[1], other[1]), key=self.key_of)
        return lows[0], highs[1]

    @property
    def asked(self) -> Any:
        """The value to ask the source from: `start`, or the start of the interrupted reading whose place is used."""
        return self.start if self._asked is None else self._asked[0]

    def ask(self, start: Any) -> None:
        """Ask from the start of an earlier run's reading; rows before `start` are then repeats and not late."""
        self._asked = (None if start is None else self._as_asked(start, self.position),)

    def cap(self, value: Any) -> None:
        """Let nothing above a value become the position."""
        self._cap = value

    def ceiling_value(self) -> Any:
        """Return the ceiling of an unsorted stream as it is stored; None: there is none, or no row yet."""
        if self._options.row_order is not None:
            return None
        if not self.bound:
            return self._cap
        if self.ceiling() is HIGHEST:
            return None
        return wire(self.scale.spell(self.ceiling(), self.sample))

    def lies_in_future(self, value: Any) -> bool:
        """Tell whether a value lies in the future in every time zone."""
        return self.scale.has_clock and bool(self.key_of(value) > self.scale.now(SKEW))

    def is_long_before(self, value: Any) -> bool:
        """Tell whether a value lies before the start, a moment by more than a day."""
        if not self.scale.has_clock:
            return True
        try:
            return bool(self.key_of(self.scale.shift(value, DAY)) < self.start_key)
        except (OverflowError, TypeError, ValueError):
            return True

    def floor(self, position: Any) -> Any:
        """Return the `start_value` of a run that starts from a position."""
        options = self._options
        self.scale.check_step("lookback", options.lookback)
        start = self.back(position)
        if options.lookback is not None:
            for floor in (options.initial_value, options.oldest_available):
                if floor is not None and self.compare(start, floor) < 0:
                    start = floor
            if self.compare(start, position) > 0:
                start = position
        return self._as_asked(start, position)

    def _as_asked(self, start: Any, like: Any) -> Any:
        """Return a value, at or before a stored one, in the form in which the source is asked for it."""
        initial = self._options.initial_value
        if self._options.cursor_format is not None:
            return self.scale.spelled(start, like)
        if initial is None or isinstance(initial, str):
            return start
        return self.scale.spell(self.scale.key_of(start, written=True), initial)

    def back(self, value: Any) -> Any:
        """Return a value minus the lookback; in an hour that a clock shows twice, its beginning or just before it."""
        lookback = self._options.lookback
        start = value if lookback is None else self.scale.shift(value, lookback, -1, written=True)
        begin = self.scale.first_pass(start)
        if begin is None:
            return start
        is_open = self._options.range_start == "open"  # the source leaves out rows at the begin itself
        return self.scale.shift(begin, INSTANT, -1) if is_open else begin

    def reaches_back(self) -> bool:
        """Tell whether rows before the position are asked for, too, for some may have come late."""
        if self._options.lookback is not None:
            return True
        return self.position is not None and self.scale.first_pass(self.position) is not None

    def typed(self, value: Any) -> Any:
        """Return a stored value in the type of `initial_value`, where that is exact."""
        initial = self._options.initial_value
        if initial is None or isinstance(initial, str) or self._options.cursor_format is not None:
            return value
        scale = self.new_scale()
        scale.settle(value, written=True)
        key = scale.key_of(value, written=True)
        typed = scale.spell(key, initial)
        return typed if scale.key_of(typed) == key else value

    def _check(self) -> None:
        """Raise an error if the bounds are known not to compare with each other."""
        scale = self.new_scale()
        scale.check_step("lookback", self._options.lookback)
        if scale.kind is not None:
            for bound in (self.position, self._options.end_value, self._options.oldest_available, self.start):
                if bound is not None:
                    scale.key_of(bound, written=True)
        known = self.start if self.position is None else self.position
        if known is not None:
            self._check_clock(scale, known)

    def _check_clock(self, scale: Scale, value: Any) -> None:
        """Raise where an unsorted stream has naive times and no time zone, so that "now" is not known."""
        if scale.kind == "wall" and self._options.row_order is None and self._options.end_value is None:
            raise ValueError(
                f"{self._name!r}: {value!r} has no time zone, so nothing tells which rows may still change: pass its "
                "time zone, such as timezone='UTC', or read up to an end_value"
            )

    def _first_key(self, value: Any) -> Key:
        """Decide how values compare, compute the keys of the bounds, and return the key of the value."""
        scale, key_of = self.scale, self.key_of
        try:
            quick = scale.begin(value)
            if quick is None:
                return None
            found = quick(value)
            scale.check_step("lookback", self._options.lookback)
            if self.position is None:
                self.start = scale.spelled(self._options.initial_value, value)
            if self.position is not None:
                self.opened_key = key_of(self.position)
            if self.start is not None:
                self.start_key = key_of(self.start)
            self.late_key = LOWEST if self.asked is None else key_of(self.asked)
            if self._options.end_value is not None:
                self.end_key = key_of(self._options.end_value)
            if self._ahead is not None:
                self.ahead = key_of(self._ahead[0]), key_of(self._ahead[1])
            if scale.has_clock and self._options.row_order is None:
                self._check_clock(scale, value)
                self._opening = scale.now(-SKEW, at=self._opened_at)
        except BaseException:
            self.scale = self.new_scale()
            raise
        self.key, self.sample = quick, value
        return found

    def rest(self) -> None:
        """Keep what makes keys quickly no longer than rows come: thousands of streams stay open that were read."""
        if self.bound:
            self.key = self._next_key

    def wake(self) -> None:
        """Make the keys of more rows quickly."""
        if self.key == self._next_key:
            self.key = self.scale.begin(self.sample) or self.key

    def _next_key(self, value: Any) -> Key:
        self.wake()
        return self.key(value)
