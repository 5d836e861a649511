"""Boundary rows: delivered rows that the source returns again, and that are then dropped.

Rows are remembered where the next run meets them again: at the position, inside the lookback, and above the ceiling.
A row is kept as a snapshot while the run goes on, and digested when a claim asks for it.
"""

from __future__ import annotations

from itertools import chain, count
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from checkpoint.streams.keys import LOWEST
from checkpoint.streams.rows import IDENTITY, Fingerprint
from checkpoint.streams.stored import NOTHING_SEEN, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from checkpoint.streams.options import Options
    from checkpoint.streams.ranges import Range
    from checkpoint.streams.values import Key

Memo: TypeAlias = Any
"""What a row is remembered by: a snapshot, or its digest once that was made; None where nothing is remembered."""
Mark: TypeAlias = "tuple[Key, Any, Memo]"
"""A row that was handed out: the key of its value, the value as it came, and what the row is remembered by."""
NO_MARK: Mark = (LOWEST, None, None)


_NONE: frozenset[str] = frozenset()  # made once, for there may be thousands of streams


class Boundary:
    """What is known of rows at the position, inside the lookback and above the ceiling.

    `_ties` holds rows of this run: those at the highest value so far, or all near it where the memory is `deep`. Each
    list holds one row more than may be stored, which tells that there were too many.
    """

    __slots__ = (
        "_ahead",
        "_beyond",
        "_in_order",
        "_known",
        "_legacy",
        "_most",
        "_old",
        "_options",
        "_print",
        "_range",
        "_thinned",
        "_thinned_top",
        "_ties",
        "_under",
        "deep",
        "keyed",
        "seen",
    )  # fmt: skip

    def __init__(self, options: Options, span: Range, seen: Seen) -> None:
        self.keyed: bool = options.keyed
        """Whether rows are remembered at all."""
        self.deep: bool = options.lookback is not None
        """Whether the memory reaches back before the highest value."""
        self.seen: Seen = seen if self.keyed else NOTHING_SEEN
        """Rows that were delivered before the stream was opened."""
        self._known = frozenset((*self.seen.rows, *self.seen.ahead)) if self.seen is not NOTHING_SEEN else _NONE
        self._print = Fingerprint(options.primary_key or "", options.version_fields, span.scale.where)
        self._legacy = any(len(digest) == 2 * IDENTITY for digest in self._known)  # as version 1 stored them
        self._options = options
        self._range = span
        self._ties: list[Mark] = []
        self._most = 2 * options.max_seen + 1_000
        """How many ties there may be before the lowest ones have to go, where the memory is deep; see `_thin`."""
        self._in_order = True  # whether ties are, where the memory is deep
        self._under: list[Mark] | None = None  # ties of the highest value but one, where the range is open
        self._old: list[Mark] | None = None  # at the position the stream was opened with, or before it
        self._thinned = 0  # how many rows were too many to be kept, and the highest value of them
        self._thinned_top: Key = LOWEST
        self._beyond = 0  # rows above the ceiling that were too many to be kept
        self._ahead: list[Mark] | None = None  # above the ceiling

    @property
    def empty(self) -> bool:
        """Whether no row was remembered since the stream was opened."""
        return not (self._ties or self._old or self._ahead)

    @property
    def take(self) -> Callable[[Any], Memo]:
        """A function that copies what is remembered of a row, so that later changes by the job do not matter."""
        return self._print.snapshot

    @property
    def quick_take(self) -> Callable[[Any], Memo]:
        """Like `take`, but faster: only for rows of the first row's type. Raises TypeError for others."""
        return self._print.quick

    def settle(self, value: Any) -> None:
        """Look at the first cursor value: `start_value` may lie before the position that it is made of.

        It is rounded down to another type, and to the begin of an hour that a clock shows twice.
        """
        initial = self._options.initial_value
        rounded = initial is not None and not isinstance(initial, str) and type(value) is not type(initial)
        self.deep = self.deep or (self.keyed and (rounded or self._range.scale.repeats(value)))

    def knows(self, key: Key) -> bool:
        """Tell whether an earlier run may have delivered a row with this cursor value."""
        if self.keyed and key <= self._range.opened_key:
            return True
        low, high = self._range.ahead
        return bool(self.seen.ahead) and bool(low <= key <= high)

    def recognise(self, memo: Memo, key: Key, value: Any) -> tuple[Memo, bool]:
        """Return a row's digest, and whether an earlier run delivered it."""
        if not self._known:
            return memo, False
        instant = self._range.scale.digestible(key)
        found = self._print.digest(memo, instant)
        known = found in self._known
        if self._legacy and not known:
            known = not self._known.isdisjoint(
                self._print.legacy(memo, self._range.scale.digestible_before(value, key))
            )
        return found, known

    # What this run delivered

    def add(self, row: Mark) -> None:
        """Remember a row at the highest value so far, or above it; where the memory is deep, at any value."""
        if self.deep:
            self._in_order = self._in_order and self.follows(row[0])
            self._ties.append(row)
            if len(self._ties) > self._most:
                self._thin()
        elif not self._ties or row[0] > self._ties[0][0]:
            if self._options.range_start == "open":
                self._under = self._ties
            self._ties = [row]
        elif row[0] == self._ties[0][0] and len(self._ties) <= self._options.max_seen:
            self._ties.append(row)

    def append(self, row: Mark) -> None:
        """Remember a row that `follows` the last one, where the memory is deep."""
        self._ties.append(row)
        if len(self._ties) > self._most:
            self._thin()

    def follows(self, key: Key) -> bool:
        """Tell whether a row of a sorted stream comes after all that are remembered, where the memory is deep."""
        return not self.deep or not self._ties or bool(key >= self._ties[-1][0])

    def taken(self, keys: Sequence[Key], values: Sequence[Any], rows: Sequence[Any], highest: Key) -> list[Mark]:
        """Prepare what `add_page` remembers of a page; nothing is remembered yet, because a row may be refused."""
        if self.deep:
            self.take(rows[0])  # which chooses how the others are taken
            try:
                return [*zip(keys, values, map(self.quick_take, rows), strict=True)]
            except TypeError:
                return [*zip(keys, values, map(self.take, rows), strict=True)]
        top = self._ties[0][0] if self._ties else LOWEST
        if self._options.range_start == "open" and (lower := [key for key in keys if top < key < highest]):
            return [*self._taken_at(max(lower), keys, values, rows), *self._taken_at(highest, keys, values, rows)]
        return self._taken_at(highest, keys, values, rows) if highest >= top else []

    def _taken_at(self, at: Key, keys: Sequence[Key], values: Sequence[Any], rows: Sequence[Any]) -> list[Mark]:
        found = [(value, row) for key, value, row in zip(keys, values, rows, strict=True) if key == at]
        return [(at, value, self.take(row)) for value, row in found[: self._options.max_seen + 1]]

    def add_page(self, marks: list[Mark]) -> None:
        """Remember rows of a page, in the order of their keys or, where the memory is deep, in any."""
        if self.deep and marks:
            self._in_order = self._in_order and self._options.asc and self.follows(marks[0][0])
            self._ties.extend(marks)
            if len(self._ties) > self._most:
                self._thin()
        else:
            for mark in marks:
                self.add(mark)

    def add_old(self, row: Mark) -> None:
        """Remember a row at the position that the stream was opened with, or before it."""
        self._old = self._old or []
        if len(self._old) <= self._options.max_seen:
            self._old.append(row)

    def add_ahead(self, row: Mark) -> None:
        """Remember a row above the ceiling."""
        self._ahead = self._ahead or []
        if len(self._ahead) <= self._options.max_seen:
            self._ahead.append(row)
        else:
            self._beyond += 1

    def take_over(self, other: Boundary) -> None:
        """Remember the rows of a window that is finished, too, where the memory reaches back into it."""
        if self.keyed:
            self.deep = self.deep or other.deep
            self._ahead = self._ahead or []
            self._ahead += self._adopted(other, other._ahead or ())
            if self.deep:
                self._old = self._old or []
                self._old += self._adopted(other, other._old or ())
                self._ties += self._adopted(other, other._ties)
                self._in_order = False
                self._thin()

    def _adopted(self, other: Boundary, rows: Iterable[Mark]) -> Iterator[Mark]:
        """Return rows of another memory, with keys that compare with ours."""
        adopt = self._range.scale.adopted
        return ((adopt(key, other._range.scale), value, memo) for key, value, memo in rows)

    def forgotten(self, position: Any) -> int:
        """Return how many rows a position asks for again that are not remembered, because there were too many."""
        if (
            self._thinned
            and position is not None
            and self._thinned_top < self._range.key_of(self._range.floor(position))
        ):
            self._thinned = 0
        return self._thinned + self._beyond

    # What a claim stores

    def digests(self, position: Any) -> list[str]:
        """Return the digests of the rows that are asked for again from a position, in the order of their values."""
        if self.empty:
            return []
        span = self._range
        key = span.key_of(position)
        floor = span.key_of(span.floor(position)) if self.deep else key
        if self.deep:
            self._thin()
        found: list[tuple[Key, str]] = []
        for ties in filter(None, (self._old, self._under, self._ties, self._ahead)):
            for index, (at, value, memo) in enumerate(ties):
                if floor <= at <= key:
                    digest = memo
                    if not isinstance(memo, str):
                        digest = self._digest(memo, at)
                        ties[index] = at, value, digest  # kept, so that it is made once
                    found.append((at, digest))
        found.sort(key=itemgetter(0))
        return [digest for _, digest in found]

    def digests_ahead(self, position: Any) -> Seen:
        """Return what is remembered of the rows above a position, None: of all; `rows` is empty."""
        if not self._ahead:
            return NOTHING_SEEN
        key = LOWEST if position is None else self._range.key_of(position)
        found = sorted((one for one in self._ahead if one[0] > key), key=itemgetter(0))
        if not found:
            return NOTHING_SEEN
        return Seen([], [self._digest(memo, at) for at, _, memo in found], (found[0][1], found[-1][1]))

    def _thin(self) -> None:
        """Keep the highest rows."""
        if not self._in_order:
            self._ties.sort(key=itemgetter(0))
            self._in_order = True
        beyond = len(self._ties) - self._options.max_seen - 1
        if beyond > 0:
            self._thinned += beyond
            self._thinned_top = self._ties[beyond - 1][0]
            del self._ties[:beyond]

    def _digest(self, memo: Memo, key: Key) -> str:
        if isinstance(memo, str):
            return memo
        return self._print.digest(memo, self._range.scale.digestible(key))


def merged(*digests: Iterable[str], stays: bool = False) -> list[str]:
    """Return digests without repeats; of a row that came again with other content, the last one.

    It has the place of the last one; where it `stays`, of the first.
    """
    every = [*chain.from_iterable(digests)]
    rows = map(itemgetter(slice(2 * IDENTITY)), every)
    if stays:
        return [*dict(zip(rows, every, strict=True)).values()]
    return [every[place] for place in sorted(dict(zip(rows, count())).values())]
