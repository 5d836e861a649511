"""The memory of boundary rows: delivered ones that the source is asked for again, and which are then dropped."""

from __future__ import annotations

import copy
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from checkpoint.streams.keys import MICRO
from checkpoint.streams.options import SEEN
from checkpoint.streams.rows import digest, primary_getter

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.codec import Cursor
    from checkpoint.streams.options import Options
    from checkpoint.streams.ranges import Range
    from checkpoint.streams.values import Key

Memo: TypeAlias = Any
"""A delivered row to remember: its digest, or a copy to digest when it is claimed; None where there is no key."""


class Boundary:
    """What is known of rows at the position, and inside the lookback.

    `seen` are the digests of the run before. Rows of this run are kept as copies, and only those of the highest value
    so far, or of all values near it where the memory reaches further back; they are digested when a claim asks.
    """

    __slots__ = ("_get_primary", "_limit", "_old", "_options", "_range", "_ties", "_under", "coarse", "keyed", "seen")

    def __init__(self, options: Options, span: Range, seen: list[str]) -> None:
        self.keyed = options.keyed
        """Whether rows are remembered at all."""
        self.coarse = options.lookback is not None
        """Whether the memory reaches back before the highest value."""
        self.seen = frozenset(seen) if self.keyed else frozenset[str]()
        """Digests of rows that were delivered before the stream was opened."""
        primary = options.primary_key
        self._get_primary = None if primary is None else primary_getter(primary)
        self._limit = options.max_seen
        self._options = options
        self._range = span
        self._ties: list[tuple[Any, Memo]] = []  # at the highest value, and near it where it is coarse
        self._under: list[tuple[Any, Memo]] = []  # at the highest value but one, where the range is open
        self._old: list[tuple[Any, Memo]] = []  # at the position the stream was opened with, or before it

    @property
    def empty(self) -> bool:
        """Whether no row was remembered since the stream was opened."""
        return not self._ties and not self._old

    def is_old(self, key: Key) -> bool:
        """Tell whether a row may have been handed out by an earlier run."""
        opened = self._range.opened_key
        return self.keyed and opened is not None and bool(key <= opened)

    def memo(self, record: Any, value: Any, key: Key) -> Memo:
        """Return what a row is remembered by."""
        if not self.keyed:
            return None
        self.coarse = self.coarse or self._is_rounded(value)
        if self.seen and self.is_old(key):
            return self._digest(record, key)
        return copy.copy(record)

    def holds(self, memo: Memo) -> bool:
        """Tell whether a row was delivered before the stream was opened."""
        return isinstance(memo, str) and memo in self.seen

    def add_old(self, value: Any, memo: Memo) -> None:
        """Remember a row at the position that the stream was opened with, or before it."""
        if memo is not None and len(self._old) <= self._limit:
            self._old.append((value, memo))

    def add(self, value: Any, memo: Memo, *, rises: bool) -> None:
        """Remember a row at the highest value so far, which it may raise; where it is coarse, at any."""
        if self.coarse:
            self._ties.append((value, memo))
            if len(self._ties) > 4 * self._limit + 1_000:
                self._thin()
        elif rises:
            self._ties = [(value, memo)]
        elif len(self._ties) <= self._limit:
            self._ties.append((value, memo))

    def add_all(self, values: list[Any], memos: list[Memo]) -> None:
        """Remember rows of any value, copies, where it is coarse."""
        self._ties.extend(zip(values, memos, strict=True))
        self._thin()

    def take_over(self, other: Boundary) -> None:
        """Remember the rows of a window that is finished, too, where the memory reaches back into it."""
        if self.coarse and self.keyed:
            self._old += other._old
            self._ties += other._ties
            self._thin()

    def step(self) -> None:
        """Keep the rows of the highest value as those of the highest but one, too: a higher one comes."""
        self._under = self._ties

    def digests(self, position: Any) -> list[str]:
        """Return the digests of the rows that are asked for again from a position, in the order of their keys."""
        span = self._range
        key, floor = span.key_written(position), span.key_written(span.floor(position))
        digests: list[tuple[Key, str]] = []
        for ties in (self._old, self._under, self._ties):
            for index, (value, memo) in enumerate(ties):
                at = span.key(value)
                if floor <= at <= key:
                    if not isinstance(memo, str):
                        memo = self._digest(memo, at)  # noqa: PLW2901 - kept, so that it is made once
                        ties[index] = value, memo
                    digests.append((at, memo))
        digests.sort(key=lambda pair: pair[0])
        return [digest for _, digest in digests]

    def _is_rounded(self, value: Any) -> bool:
        """Tell whether a position such as this value may be rounded down for `start_value`, in its type."""
        initial = self._options.initial_value
        if initial is None or isinstance(initial, str) or type(value) is type(initial):
            return False
        if not isinstance(value, str) or not isinstance(initial, datetime):
            return True
        digits = value.partition(".")[2]
        return len(digits) - len(digits.lstrip("0123456789")) > MICRO

    def _thin(self) -> None:
        """Keep the highest rows: one more than may be stored, which tells that there were too many."""
        self._ties.sort(key=lambda tie: self._range.key(tie[0]))
        del self._ties[: -self._limit - 1]

    def _digest(self, record: Any, key: Key) -> str:
        get = cast("Callable[[Any], Any]", self._get_primary)
        return digest(get(record), self._range.scale.digestible(key), record)


def copies(rows: list[Any]) -> list[Memo]:
    """Return shallow copies of rows: a job may change what it was handed."""
    try:
        return [row.copy() for row in rows]
    except AttributeError:
        return [copy.copy(row) for row in rows]


def stored_digests(cursor: Cursor | None, field: str) -> list[str]:
    """Return the digests stored with a position; those of another position count for nothing."""
    seen: Any = (cursor or {}).get(SEEN)
    if not isinstance(seen, dict) or cursor is None:
        return []
    memory = cast("dict[str, Any]", seen)
    rows = memory.get("rows")
    if memory.get("at") != cursor.get(field) or not isinstance(rows, list):
        return []
    return cast("list[str]", rows)
