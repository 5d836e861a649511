"""The quick way of rows one by one: a row that passes is handed out, and the one before it is covered, without a call.

What a row has to do to pass stands in `reading`; the first row, and each that does not pass, is judged there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from checkpoint.streams.holding import asking
from checkpoint.streams.holding import local as thread
from checkpoint.streams.rows import UNREAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from checkpoint.streams.boundary import Boundary, Mark
    from checkpoint.streams.options import Options
    from checkpoint.streams.position import Position, Reading
    from checkpoint.streams.ranges import Range
    from checkpoint.streams.rows import FieldReader


class Scan(Protocol):
    """What a `reading.Scan` is to the quick way."""

    boundary: Boundary
    delivered: int
    fields: FieldReader
    options: Options
    position: Position
    range: Range

    def take_judged(self, record: Any, reading: Reading) -> bool:
        """Judge a record; return whether to deliver it."""
        ...

    def take_passed(self, record: Any, row: Mark, reading: Reading) -> bool:
        """Take a row that passes, of any stream; return True."""
        ...


class _Quick:
    """What rows are read and remembered with, as the last judged row left it."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: tuple[Any, ...] = (None,) * 6 + (False,)
        """What reads the value, makes its key, and takes a snapshot; the holder, and what tells who is running; what
        takes a row of a sorted stream to a memory that is deep, and whether it is.

        Before the first row, reading one with it raises one of `UNREAD`.
        """

    def judge(self, scan: Scan, record: Any, reading: Reading) -> bool:
        """Judge a record; return whether to deliver it."""
        delivers = scan.take_judged(record, reading)
        boundary, holder = scan.boundary, reading.holder
        self.known = (
            scan.fields.quick, scan.range.key, boundary.quick_take, holder, asking(holder), boundary.append,
            boundary.deep,
        )  # fmt: skip
        return delivers


def track(scan: Scan, reading: Reading, records: Iterable[Any]) -> Iterator[Any]:
    """Yield the records that are new, each in hand until the next one is asked for."""
    return _rising(scan, reading, records) if _rises(scan) else _any_order(scan, reading, records)


def _rises(scan: Scan) -> bool:
    """Tell whether each row that passes is the highest one so far, and nothing but that is remembered of it."""
    return scan.options.asc and scan.options.range_start == "closed"


def _is_simple(scan: Scan, *, falls: bool) -> bool:
    """Tell whether a row that passes needs no memory but that of rows at the highest value."""
    return not scan.boundary.keyed or (scan.options.range_start == "closed" and not falls)


def _rising(scan: Scan, reading: Reading, records: Iterable[Any]) -> Iterator[Any]:
    keyed, quick = scan.boundary.keyed, _Quick()
    get, key_of, take, holder, caller, remember, deep = quick.known  # where they are read quicker
    key, rises = None, False
    for record in records:
        row: Mark | None = None
        try:
            value = get(record)
            key = key_of(value)
            rises = reading.low < key < reading.top
            if (rises or key == reading.low) and (thread.holder is holder or caller() is holder):
                row = key, value, take(record) if keyed else None
        except UNREAD:
            pass
        if row is None:
            delivers = quick.judge(scan, record, reading)
            get, key_of, take, holder, caller, remember, deep = quick.known
            if delivers:
                yield record
            elif reading.closed:
                break
            continue
        scan.delivered += 1
        if rises:
            reading.low = key
            covered, reading.hand = reading.hand, row
            if covered is not None:
                reading.high = covered
                if deep:
                    remember(covered)
        elif keyed:
            scan.take_passed(record, row, reading)
        elif reading.hand is not None:
            reading.high = reading.hand
        yield record


def _any_order(scan: Scan, reading: Reading, records: Iterable[Any]) -> Iterator[Any]:
    keyed, position, quick = scan.boundary.keyed, scan.position, _Quick()
    asc, falls = scan.options.asc, scan.options.row_order == "desc"
    simple = _is_simple(scan, falls=falls)
    get, key_of, take, holder, caller, _, deep = quick.known  # where they are read quicker
    key = None
    for record in records:
        row: Mark | None = None
        try:
            value = get(record)
            key = key_of(value)
            passes = reading.low < key < reading.top or (asc and key == reading.low)
            if passes and (thread.holder is holder or caller() is holder):
                row = key, value, take(record) if keyed else None
        except UNREAD:
            pass
        if row is None:
            delivers = quick.judge(scan, record, reading)
            get, key_of, take, holder, caller, _, deep = quick.known
            if delivers:
                yield record
            elif reading.closed:
                break
            continue
        scan.delivered += 1
        if deep or not simple:
            scan.take_passed(record, row, reading)
        else:
            if asc:
                reading.low = key
            elif falls:
                reading.top = key
            covered, reading.hand = reading.hand, row
            if covered is not None and covered[0] > reading.high[0]:
                position.under, reading.high = reading.high, covered
            elif keyed and covered is not None:
                position.cover_passed(covered, reading)
        yield record


def taker(scan: Scan, reading: Reading) -> Callable[[Any], bool]:
    """Return what takes the next record in hand, and covers the one before, as `track` does; False: it is dropped."""
    asc, keyed, rises, quick = scan.options.asc, scan.boundary.keyed, _rises(scan), _Quick()
    get, key_of, take, holder, caller, remember, deep = quick.known  # where they are read quicker

    def judged(record: Any) -> bool:
        nonlocal get, key_of, take, holder, caller, remember, deep
        delivers = quick.judge(scan, record, reading)
        get, key_of, take, holder, caller, remember, deep = quick.known
        return delivers

    def step(record: Any) -> bool:
        try:
            value = get(record)
            key = key_of(value)
            passes = reading.low < key < reading.top
            if not (passes or (asc and key == reading.low)) or caller() is not holder:
                return judged(record)
            row = key, value, take(record) if keyed else None
        except UNREAD:
            return judged(record)
        scan.delivered += 1
        if not rises or not passes:
            return scan.take_passed(record, row, reading)
        reading.low = key
        covered, reading.hand = reading.hand, row
        if covered is not None:
            reading.high = covered
            if deep:
                remember(covered)
        return True

    return step


def observer(scan: Scan) -> Callable[[Any], bool]:
    """Return what takes a record of `observe`, which is covered at once; False: it is dropped."""
    loose, asc, keyed, position, quick = (
        scan.position.loose,
        scan.options.asc,
        scan.boundary.keyed,
        scan.position,
        _Quick(),
    )
    simple, rises = _is_simple(scan, falls=False), _rises(scan)
    get, key_of, take, _, _, remember, deep = quick.known  # where they are read quicker

    def judged(record: Any) -> bool:
        nonlocal get, key_of, take, remember, deep
        delivers = quick.judge(scan, record, loose)
        get, key_of, take, _, _, remember, deep = quick.known
        return delivers

    def observe(record: Any) -> bool:
        try:
            value = get(record)
            key = key_of(value)
            passes = loose.low < key < loose.top
            if not (passes or (asc and key == loose.low)):
                return judged(record)
            row = key, value, take(record) if keyed else None
        except UNREAD:
            return judged(record)
        scan.delivered += 1
        if not passes and rises and not keyed:
            return True
        if not (passes and simple) or (deep and not rises):
            return scan.take_passed(record, row, loose)
        if asc:
            loose.low = key
        if rises:
            loose.high = row
            if deep:
                remember(row)
        elif row[0] > loose.high[0]:
            position.under, loose.high = loose.high, row
        elif keyed:
            position.cover_passed(row, loose)
        return True

    return observe
