"""What a stream reads: from where to where, and the keys its values compare by."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from checkpoint.errors import CursorExpired
from checkpoint.streams.values import Scale, clock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from checkpoint.streams.options import Options
    from checkpoint.streams.values import Key

SKEW = 300
"""Seconds that a source's clock may be ahead of ours."""


class Range:
    """Values from `start` to before the end; None: there is none.

    What kind they are is told by the first one that leaves no doubt, which may be a row's: the keys of the bounds are
    None until then.

    Raises:
        CursorExpired: the position lies before `oldest_available`.
        TypeError, ValueError: the bounds do not compare with each other.

    """

    __slots__ = (
        "_bound", "_name", "_opened_at", "_options", "end_key", "opened_key", "position", "scale", "start",
        "start_key",
    )  # fmt: skip

    def __init__(self, name: str, options: Options, position: Any) -> None:
        self._name = name
        self._options = options
        self._opened_at = clock()
        self._bound = False
        self.position = position
        """The position that the stream was opened with, as it is stored."""
        self.start_key: Key | None = None
        self.end_key: Key | None = None
        self.opened_key: Key | None = None
        self.scale = self.new_scale()
        self.scale.settle(position)
        oldest = options.oldest_available
        if position is not None and oldest is not None and self.compare(position, oldest) < 0:
            raise CursorExpired(name, position, oldest)
        self.start: Any = options.initial_value if position is None else self.floor(position)
        if self.scale.kind is not None:
            self._bind(None)

    def new_scale(self) -> Scale:
        """Return a scale that knows no more than the stream's options tell."""
        options = self._options
        known = {
            "the stored position": self.position,
            "initial_value": options.initial_value,
            "end_value": options.end_value,
            "oldest_available": options.oldest_available,
        }
        scale = Scale(f"{self._name!r}, {options.field!r}", options.timezone, known)
        step = None if isinstance(options.lookback, timedelta) else options.lookback
        scale.settle(options.initial_value, options.end_value, options.oldest_available, step)
        return scale

    def reopen(self, position: Any) -> None:
        """Take another position for the one that the stream was opened with; `start` stays."""
        self.position = position
        if self._bound:
            self.opened_key = None if position is None else self.key_written(position)

    def key(self, value: Any) -> Key:
        """Return what a row's value compares by."""
        if not self._bound:
            self._bind(value)
        return self.scale.key(value)

    def key_written(self, value: Any) -> Key:
        """Return what a stored value compares by."""
        if not self._bound:
            self._bind(value)
        return self.scale.key_of(value, written=True)

    def compare(self, one: Any, other: Any) -> int:
        """Return -1, 0 or 1 for two bounds, whatever kind the rows will be."""
        scale = self.new_scale()
        scale.settle(one, other)
        key, against = scale.key_of(one, written=True), scale.key_of(other, written=True)
        return int(key > against) - int(key < against)

    def highest(self, values: Iterable[Any]) -> Any:
        """Return the highest of some values, of equal ones the first; None counts for nothing."""
        found = [value for value in values if value is not None]
        return max(found, key=self.key) if len(found) > 1 else found[0] if found else None

    def ceiling(self) -> Key | None:
        """Return the key above which nothing becomes the position; None: there is no such bound."""
        if self._options.end_value is not None:
            return None  # nothing at it or above is handed out
        if self._options.asc:
            return self.scale.now(SKEW)
        return self.scale.now(at=self._opened_at) if self.scale.kind == "instant" else None

    def floor(self, position: Any) -> Any:
        """Return what a run that starts from a position asks the source for."""
        options = self._options
        start = position
        if options.lookback is not None:
            start = self.scale.shift(position, options.lookback, -1, written=True)
            for floor in (options.initial_value, options.oldest_available):
                if floor is not None and self.compare(start, floor) < 0:
                    start = floor
            if self.compare(start, position) > 0:
                start = position
        initial = options.initial_value
        if initial is None or isinstance(initial, str):
            return start
        return self.scale.spell(self.scale.key_of(start, written=True), initial)

    def typed(self, value: Any) -> Any:
        """Return a stored value in the type of `initial_value`, where that is exact."""
        initial = self._options.initial_value
        if initial is None or isinstance(initial, str):
            return value
        key = self.key_written(value)
        typed = self.scale.spell(key, initial)
        return typed if self.key(typed) == key else value

    def _bind(self, value: Any) -> None:
        """Fix what kind the values are, and with it the keys of the bounds."""
        scale, end = self.scale, self._options.end_value
        known = scale.kind is not None
        try:
            if not scale.settle(value):
                scale.key(value)  # text, for all that is known
            keys = [
                None if bound is None else scale.key_of(bound, written=True) for bound in (self.position, self.start)
            ]
            self.end_key = None if end is None else scale.key(end)
            self.opened_key, self.start_key = keys
            self._bound = True
        except BaseException:
            if not known:
                scale.kind = None
            raise
