"""The cursor that a claim stores: the position, and what stands beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.streams.boundary import merged
from checkpoint.streams.stored import RESUME, SEEN, WINDOWS, read
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
    place = _place(scan, options, reached)
    if not (moved or place or scan.fetched or not scan.boundary.empty):
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
    cursor: Cursor = dict(base or {})
    seen, too_many, unremembered = _seen(scan, options, base, position, moved=moved)
    for name, value in ((SEEN, seen), (RESUME, place)):
        if name == SEEN or moved or scan.fetched:
            cursor.pop(name, None)
        if value:
            cursor[name] = value
    if moved:
        cursor = {
            options.field: wire(position),
            **{key: value for key, value in cursor.items() if key != options.field},
        }
        if left := _beyond(scan, cursor.pop(WINDOWS, ()), position):
            cursor[WINDOWS] = left
    same = cursor == (base or {})
    return Claim(base if same else cursor or None, position, reached, too_many, unremembered)


def _seen(
    scan: Scan, options: Options, base: Cursor | None, position: Any, *, moved: bool
) -> tuple[dict[str, Any] | None, bool, int]:
    """Return what is remembered with a position, whether ties there are too many, and how many others are."""
    before = read(scan.name, base, options.field).seen
    if not options.keyed:
        return (None if moved or base is None else base.get(SEEN)), False, 0
    boundary, limit = scan.boundary, options.max_seen
    rows = merged([] if moved else before.rows, [] if position is None else boundary.digests(position))
    ahead = boundary.digests_ahead(position)
    above, span = ahead.ahead, ahead.span
    if before.span is not None and not scan.position.finished:  # they may come yet
        above = merged(before.ahead, above)
        span = scan.range.joined(before.span, span)
    too_many = len(rows) > limit
    kept = rows[-limit:] if moved else rows[:limit]
    above = [one for one in above if one not in kept]
    room = limit - len(kept)
    unremembered = max(len(above) - room, 0) + (len(rows) - len(kept)) + boundary.forgotten(position)
    seen: dict[str, Any] = {"at": None if position is None else wire(position), "rows": kept}
    if above and room and span is not None:
        seen["ahead"] = {"from": wire(span[0]), "to": wire(span[1]), "rows": above[:room]}
    tied = too_many and options.lookback is None
    return (seen if kept or "ahead" in seen else None), tied, 0 if tied else unremembered


def _place(scan: Scan, options: Options, reached: Any) -> dict[str, Any] | None:
    """Return where a `fetch` that is under way goes on, as it is stored; None: at the beginning."""
    reading = next((one for one in reversed(scan.position.readings) if one.fetches), None)
    if (
        reading is None
        or reading.place is None
        or scan.position.finished
        or (options.asc and options.lookback is not None)
    ):
        return None
    high = scan.range.highest(scan.resumed, scan.position.high()[1])
    if high is None and options.row_order == "desc":
        return None  # nothing tells what is newer than what was handed out
    place = {
        "at": reading.place,
        "field": options.field,
        "start": wire(scan.range.start),
        "end": wire(options.end_value),
        "ceiling": scan.range.ceiling_value(),
        "high": wire(reached if options.asc else high),
    }
    return {name: value for name, value in place.items() if value is not None}


def _beyond(scan: Scan, islands: Iterable[Any], position: Any) -> list[Any]:
    """Return the finished windows that end beyond a position."""
    key = scan.range.key_of(position)
    return [island for island in islands if scan.range.key_of(island[1]) > key]
