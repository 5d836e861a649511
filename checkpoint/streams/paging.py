"""Pages of rows. A page of new rows, in range and in order, passes as a whole; others are judged by row."""

from __future__ import annotations

import reprlib
from bisect import bisect_left
from itertools import compress
from typing import TYPE_CHECKING, Any, cast

from checkpoint import codec
from checkpoint.errors import CursorStuck
from checkpoint.streams.holding import here
from checkpoint.streams.keys import Counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from checkpoint.streams.boundary import Mark
    from checkpoint.streams.position import Reading, Recent
    from checkpoint.streams.reading import Judgement, Scan
    from checkpoint.streams.values import Key


def answered(scan: Scan, answer: Any, reading: Reading) -> Any:
    """Return the new rows of a fetched page, and store where the next page begins.

    Raises:
        CursorStuck: nothing of it is new, and it leads back to itself, or to a page since which nothing was new.
        TypeError, ValueError: the answer is not rows and a place that JSON can have; nothing was observed.

    """
    if not isinstance(answer, tuple | list) or len(cast("list[Any]", answer)) != 2:
        raise TypeError(f"{scan.name!r}: page(at) must return (rows, next), not {reprlib.repr(cast('Any', answer))}")
    page, place = cast("tuple[Any, Any]", answer)
    if place is not None:
        try:
            place = codec.decode(codec.encode({"at": place}))["at"]
        except (TypeError, ValueError) as error:
            raise type(error)(f"{scan.name!r}: the next that page(at) returns must fit into JSON: {error}") from error
    rows = feed(scan, page, reading)
    at, reading.place = reading.place, place
    scan.page_at = at if scan.fetches == 1 else None
    scan.touch()
    if place is not None and _leads_back(scan, reading, page, at, new=len(rows) > 0):
        scan.torn = False  # they are the rows of before
        raise CursorStuck(scan.name, at)
    return rows


def _leads_back(scan: Scan, reading: Reading, page: Any, at: Any, *, new: bool) -> bool:
    """Tell whether a page without new rows leads back to a place where it, or another such page, began."""
    here, following = (hash(codec.encode({"at": place})) for place in (at, reading.place))
    if new:
        reading.stale.clear()
        if here != following:
            return False
        again = scan.options.primary_key is None and isinstance(page, list) and reading.echo == page
        reading.echo = page if isinstance(page, list) else None
        return again
    reading.stale.add(here)
    return following in reading.stale


def filter_page(scan: Scan, batch: Any) -> Any:
    """Return the new rows of a batch."""
    rows = feed(scan, batch, scan.position.loose)
    scan.torn = False
    return rows


def feed(scan: Scan, batch: Any, reading: Reading) -> Any:
    """Return the new rows of a batch; all or nothing. A descending stream may end with it: `reading.closed`.

    Whoever hands the rows out sets `torn` to False as the last thing before.
    """
    scan.check()
    reading.hand = None
    if not isinstance(batch, list) and _is_table(batch):
        from checkpoint.streams import arrow  # an extra

        page = arrow.TablePage(batch)
        options = scan.options
        in_order = options.asc and options.cursor_format is None and not scan.boundary.keyed
        mask = _feed(scan, page, page.values(options.cursor_field, counted=in_order), reading)
        return page.table if mask is None else page.choose(mask)
    rows: list[Any] = batch if isinstance(batch, list) else list(batch)  # pyright: ignore[reportUnknownVariableType] - any iterable
    mask = _feed(scan, rows, scan.fields.read_all(rows), reading)
    return rows[:] if mask is None else [*compress(rows, mask)]


def _feed(scan: Scan, rows: Sequence[Any], values: Sequence[Any], reading: Reading) -> list[bool] | None:
    """Observe a page; return which rows to deliver, None: all of them."""
    if not scan.range.bound:
        scan.bind(values)
    scan.range.wake()
    key_of = scan.range.key
    keys = values.keys(key_of) if isinstance(values, Counted) else list(map(key_of, values))
    scan.shut()
    if reading is not scan.position.loose:
        reading.holder = here()
    try:
        highest = _passing(scan, keys, rows, reading)
    except TypeError:  # keys do not compare with None, which a row without a value has
        highest = None
    if highest is None:
        if isinstance(values, Counted):
            values = [*values]
            keys = list(map(key_of, values))
        judgements = _judge_all(scan, rows, values, keys, reading)
        _cover_judged(scan, judgements, reading)
        return [judgement.deliver for judgement in judgements]
    scan.torn = True
    scan.touch()  # a commit is to tell of it, should it stay so
    try:
        marks = scan.boundary.taken(keys, values, rows, highest) if scan.boundary.keyed else []
    except Exception:  # a row is refused, and nothing was covered
        scan.torn = False
        raise
    _cover(scan, values, keys, highest, marks, reading)
    scan.position.finished = False
    scan.delivered += len(rows)
    scan.touch()
    return None


def _passing(scan: Scan, keys: Sequence[Key], rows: Sequence[Any], reading: Reading) -> Key | None:
    """Return the highest key of a page whose rows need no judging: all are new, inside the range, and in order.

    None: some have to be judged.
    """
    if not keys or keys[0] is None or not _are_in_order(scan, keys, reading):
        return None
    if scan.options.asc:
        lowest, highest = keys[0], keys[-1]
    elif _is_newest_first(scan, reading):
        lowest, highest = keys[-1], keys[0]
    else:
        lowest, highest = min(keys), max(keys)
    if not _are_inside(scan, lowest, highest):
        return None
    return highest if reading.recent is None or _are_fresh(scan, keys, rows, reading.recent) else None


def _is_newest_first(scan: Scan, reading: Reading) -> bool:
    """Tell whether each row of a page has to lie before the last one; `filter` takes pages in any order."""
    return scan.options.row_order == "desc" and reading is not scan.position.loose


def _are_inside(scan: Scan, lowest: Key, highest: Key) -> bool:
    """Tell whether keys lie inside the range, below the ceiling, and where nothing is remembered of earlier runs."""
    span = scan.range
    if lowest < span.start_key or (scan.boundary.keyed and lowest <= span.opened_key):
        return False
    return bool(highest < min(span.end_key, span.ceiling(), span.ahead[0]))


def _are_in_order(scan: Scan, keys: Sequence[Key], reading: Reading) -> bool:
    """Tell whether keys continue the order of a sorted stream."""
    last = None if reading is scan.position.loose else reading.last
    if scan.options.asc:
        at_least = scan.position.bound[0] if last is None else max(scan.position.bound[0], last[0])
        order = keys.counts if isinstance(keys, Counted) else keys
        return bool(keys[0] >= at_least) and sorted(order) == order
    if not _is_newest_first(scan, reading):
        return True
    return (last is None or bool(keys[0] < last[0])) and sorted(keys, reverse=True) == keys


def _are_fresh(scan: Scan, keys: Sequence[Key], rows: Sequence[Any], recent: Recent) -> bool:
    """Note rows that the reading has not handed out before; False, and note none, if it has."""
    recent.widen(len(rows))
    found = list(map(scan.identity, rows, keys))
    if None in found or len(set(found)) < len(found) or any(map(recent.__contains__, found)):
        return False
    for identity in found:
        recent.add(identity)
    return True


def _cover(
    scan: Scan, values: Sequence[Any], keys: Sequence[Key], highest: Key, marks: list[Mark], reading: Reading
) -> None:
    """Cover a page whose rows all passed."""
    asc, position = scan.options.asc, scan.position
    scan.boundary.add_page(marks)
    first = bisect_left(keys, highest) if asc else keys.index(highest)
    if asc:
        position.pass_by(keys[0], reading)
        if first:
            position.rise((keys[first - 1], values[first - 1], None), reading)
    if reading is not position.loose:
        reading.last = keys[-1], values[-1], None
    position.rise((highest, values[first], None), reading)


def _judge_all(
    scan: Scan, rows: Sequence[Any], values: Sequence[Any], keys: Sequence[Key], reading: Reading
) -> list[Judgement]:
    """Judge the rows of a page one by one; nothing of them is observed."""
    is_loose = reading is scan.position.loose
    last = None if is_loose else reading.last
    in_order = scan.options.asc or not is_loose  # `filter` takes newest first in any order
    repeats: set[Any] = set()
    if reading.recent is not None:
        reading.recent.widen(len(rows))
    judgements: list[Judgement] = []
    for index, (record, value, key) in enumerate(zip(rows, values, keys, strict=True)):
        judgement = scan.judge(record, value, key, reading, last, index)
        if judgement.identity is not None and judgement.identity in repeats:
            judgement = judgement._replace(deliver=False, row=None, identity=None)
        repeats.add(judgement.identity)
        judgements.append(judgement)
        if in_order and judgement.row is not None:
            last = judgement.row
        elif in_order and scan.ends(judgement):
            last = judgement.late  # no new row may follow it
    return judgements


def _cover_judged(scan: Scan, judgements: list[Judgement], reading: Reading) -> None:
    """Count the rows of a page, and cover those that count for the position."""
    is_loose = reading is scan.position.loose
    scan.torn = True
    for judgement in judgements:
        scan.count(judgement)
        if judgement.row is not None:
            scan.position.pass_by(judgement.row[0], reading)
            scan.position.cover(judgement.row, reading)
            if not is_loose:
                reading.last = judgement.row
        if judgement.identity is not None and reading.recent is not None:
            reading.recent.add(judgement.identity)
        if scan.ends(judgement):
            reading.closed = not is_loose


def _is_table(batch: Any) -> bool:
    """Tell whether a batch is an Arrow table, or gives one over the PyCapsule interface."""
    return type(batch).__module__.partition(".")[0] == "pyarrow" or hasattr(batch, "__arrow_c_stream__")
