"""The cursor that a claim stores: the position, and what stands beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.streams.boundary import merged
from checkpoint.streams.stored import BESIDE, RESUME, SEEN, WINDOWS, Seen, read
from checkpoint.streams.values import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from checkpoint.codec import Cursor
    from checkpoint.streams.options import Options
    from checkpoint.streams.reading import Scan


class Claim(NamedTuple):
    """What a commit says of a stream."""

    cursor: Cursor | None
    position: Any
    reached: Any = None
    """The highest value covered that may become the position; None: nothing was covered."""
    too_many: bool = False
    """More rows lie at the position than are remembered."""
    unremembered: int = 0
    """Rows inside the lookback or above the ceiling that are not remembered."""


def claim(scan: Scan, options: Options, base: Cursor | None, position: Any) -> Claim:
    """Return what a stream's key is to hold once all rows handed out are delivered.

    Args:
        scan: what the stream was fed.
        options: what it was opened with.
        base: the last claim, or what was stored.
        position: the position in it.

    """
    reached = scan.reached()
    moved = reached is not None and (position is None or scan.range.key_of(reached) > scan.range.key_of(position))
    place = _place(scan, options)
    ended = scan.fetched or (scan.position.finished and RESUME in (base or {}))
    if not (moved or place or ended or not scan.boundary.empty):
        return Claim(base, position, reached)
    return _with(scan, options, base, reached if moved else position, moved=moved, reached=reached, place=place)


def claim_windows(
    scan: Scan, options: Options, base: Cursor | None, position: Any, reached: Any, islands: list[list[Any]]
) -> Claim:
    """Return the same of a stream that is cut into windows: finished up to `reached`, and in `islands` beyond it."""
    claimed = Claim(base, position)
    if reached is not None:
        claimed = _with(scan, options, base, reached, moved=True, reached=None, place=None)
    cursor = dict(claimed.cursor or {})
    before = cursor.pop(WINDOWS, None)
    if islands:
        cursor[WINDOWS] = islands
    elif before is None and reached is None:
        return claimed
    return claimed._replace(cursor=cursor)


def _with(
    scan: Scan,
    options: Options,
    base: Cursor | None,
    position: Any,
    *,
    moved: bool,
    reached: Any,
    place: dict[str, Any] | None,
) -> Claim:
    """Return a claim of the base with another position, what is remembered with it, and the place to resume."""
    memory = _memory(scan, options, base, position, moved=moved)
    cursor: Cursor = {options.field: wire(position)} if moved else {}
    cursor |= {name: value for name, value in (base or {}).items() if name not in (SEEN, *cursor)}
    if moved or scan.fetched or scan.position.finished:
        cursor.pop(RESUME, None)
    if moved:
        cursor[WINDOWS] = _beyond(scan, cursor.pop(WINDOWS, ()), position)
    cursor |= {SEEN: memory.stored, RESUME: place or cursor.get(RESUME)}
    for name in BESIDE:
        if not cursor.get(name):
            cursor.pop(name, None)
    same = cursor == (base or {})
    return Claim(base if same else cursor or None, position, reached, memory.too_many, memory.unremembered)


class _Memory(NamedTuple):
    """What is remembered of boundary rows."""

    stored: dict[str, Any] | None
    too_many: bool = False
    unremembered: int = 0


def _memory(scan: Scan, options: Options, base: Cursor | None, position: Any, *, moved: bool) -> _Memory:
    """Return what is remembered with a position: rows that are asked for again from it, and rows above it."""
    if not options.keyed:
        return _Memory(None if moved or base is None else base.get(SEEN))
    before = read(scan.name, base, options.field).seen
    rows = [] if position is None else scan.boundary.digests(position)
    rows = merged(_carried(scan, position) if moved else before.rows, rows)
    kept = rows[-options.max_seen :] if moved else rows[: options.max_seen]
    ahead = _ahead(scan, before, position)
    above, room = [one for one in ahead.ahead if one not in kept], options.max_seen - len(kept)
    seen: dict[str, Any] = {"at": None if position is None else wire(position), "rows": kept}
    if above and room and ahead.span is not None:
        seen["ahead"] = {"from": wire(ahead.span[0]), "to": wire(ahead.span[1]), "rows": above[:room]}
    stored = seen if kept or "ahead" in seen else None
    if len(rows) > len(kept) and options.lookback is None:
        return _Memory(stored, too_many=True)
    forgotten = scan.boundary.forgotten(position)
    return _Memory(stored, unremembered=max(len(above) - room, 0) + len(rows) - len(kept) + forgotten)


def _carried(scan: Scan, position: Any) -> list[str]:
    """Return the digests that came with the place of a reading, where they are asked for again from a position."""
    resumed, span = scan.resumed, scan.range
    if resumed is None or resumed.high is None or span.key_of(resumed.high) < span.key_of(span.floor(position)):
        return []
    return resumed.rows


def _ahead(scan: Scan, before: Seen, position: Any) -> Seen:
    """Return what is remembered of rows above a position, of earlier runs too while they may come yet."""
    ahead = scan.boundary.digests_ahead(position)
    if before.span is None or scan.position.finished:
        return ahead
    return Seen([], merged(before.ahead, ahead.ahead), scan.range.joined(before.span, ahead.span))


def _place(scan: Scan, options: Options) -> dict[str, Any] | None:
    """Return where a `fetch` that is under way goes on, as it is stored; None: at the beginning."""
    reading = next((one for one in reversed(scan.position.readings) if one.fetches), None)
    if reading is None or reading.place is None or scan.position.finished:
        return None
    if options.asc and options.lookback is not None:
        return None
    high = scan.range.highest(scan.resumed and scan.resumed.high, scan.position.high()[1])
    if high is None and options.row_order == "desc":
        return None  # nothing tells what is newer than what was handed out
    place = {
        "at": reading.place,
        "field": options.field,
        "start": wire(scan.range.asked),
        "end": wire(options.end_value),
        "ceiling": scan.range.ceiling_value(),
        "high": wire(high),
        "rows": _at_the_top(scan, options, high) or None,
    }
    return {name: value for name, value in place.items() if value is not None}


def _at_the_top(scan: Scan, options: Options, high: Any) -> list[str]:
    """Return digests of the rows that are asked for again once the highest value is the position."""
    if high is None or not options.keyed:
        return []
    return merged(_carried(scan, high), scan.boundary.digests(high))[-options.max_seen :]


def _beyond(scan: Scan, islands: Iterable[Any], position: Any) -> list[Any]:
    """Return the finished windows that end beyond a position."""
    key = scan.range.key_of(position)
    return [island for island in islands if scan.range.key_of(island[1]) > key]
