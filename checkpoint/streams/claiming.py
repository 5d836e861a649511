"""The cursor that a claim stores: the position, and what is stored beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.streams.boundary import merged
from checkpoint.streams.stored import BESIDE, RESUME, SEEN, WINDOWS, Seen, read_state
from checkpoint.streams.values import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from checkpoint.codec import Cursor
    from checkpoint.streams.options import Options
    from checkpoint.streams.reading import Scan
    from checkpoint.streams.stored import Resume


class Claimed(NamedTuple):
    """The content of one claim of a stream."""

    cursor: Cursor | None
    position: Any
    reached: Any = None
    """The highest value covered that may become the position; None: nothing was covered."""
    too_many: bool = False
    """More rows lie at the position than are remembered."""
    unremembered: int = 0
    """Rows inside the lookback or above the ceiling that are not remembered."""


class Said:
    """The claims of a stream: the last one, and the pending one."""

    __slots__ = ("base", "commits", "delivered", "last", "pending", "position")

    def __init__(self, stored: Cursor | None) -> None:
        self.last = stored
        """The last claim, or the stored cursor; a stream that goes back returns to it."""
        self.base = stored
        """The cursor that the next claim builds on: the last claim, or the one that a rewind made."""
        self.position: Any = None
        """The position in it, as the source spelled it."""
        self.pending: Claimed = Claimed(stored, None)
        """The claim that is made and not yet taken as the last one."""
        self.commits: int = 0
        self.delivered: int = 0
        """Rows delivered by the last claim."""

    def commit(self, delivered: int) -> Claimed:
        """Make the pending claim the last one, and return it."""
        self.last = self.base = self.pending.cursor
        self.position = self.pending.position
        self.commits += 1
        self.delivered = delivered
        return self.pending


def claim(scan: Scan, options: Options, base: Cursor | None, position: Any) -> Claimed:
    """Return the cursor to store once all rows handed out are delivered.

    Args:
        scan: what the stream was fed.
        options: what it was opened with.
        base: the last claim, or what was stored.
        position: the position in it.

    """
    reached = scan.reached()
    moved = reached is not None and (position is None or scan.range.key_of(reached) > scan.range.key_of(position))
    place = _place(scan, options, reached)
    ended = scan.fetches > 0 or (scan.position.finished and RESUME in (base or {}))
    if not (moved or place or ended or not scan.boundary.empty):
        return Claimed(base, position, reached)
    return _with(scan, options, base, reached if moved else position, moved=moved, reached=reached, place=place)


def claim_windows(
    scan: Scan, options: Options, base: Cursor | None, position: Any, reached: Any, islands: list[list[Any]]
) -> Claimed:
    """Return the same for a stream cut into windows: finished up to `reached`, and in the `islands` beyond it."""
    claimed = Claimed(base, position)
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
) -> Claimed:
    """Return a claim of the base with another position, what is remembered with it, and the place to resume."""
    before = base or {}
    memory = _memory(scan, options, base, position, moved=moved)
    beside: Cursor = {SEEN: memory.stored, RESUME: place, WINDOWS: before.get(WINDOWS)}
    if moved:
        beside[WINDOWS] = _beyond(scan, before.get(WINDOWS, ()), position)
    elif not (scan.fetches or scan.position.finished):
        beside[RESUME] = before.get(RESUME)
    cursor: Cursor = {options.field: wire(position)} if moved else {}
    cursor |= {name: value for name, value in before.items() if name not in (*BESIDE, *cursor)}
    cursor |= {name: value for name, value in beside.items() if value}
    same = cursor == before
    return Claimed(base if same else cursor or None, position, reached, memory.too_many, memory.unremembered)


class _Memory(NamedTuple):
    """What is remembered of boundary rows."""

    stored: dict[str, Any] | None
    too_many: bool = False
    unremembered: int = 0


def _memory(scan: Scan, options: Options, base: Cursor | None, position: Any, *, moved: bool) -> _Memory:
    """Return what is remembered with a position: rows that are asked for again from it, and rows above it."""
    if not options.keyed:
        return _Memory(None if moved or base is None else base.get(SEEN))
    before = read_state(scan.name, base, options.field).seen
    stays = not moved and options.lookback is None  # at one value: the first ones are kept, else the highest
    rows = merged(_carried(scan, position) if moved else before.rows, _at(scan, position), stays=stays)
    kept = rows[: options.max_seen] if stays else rows[-options.max_seen :]
    ahead = _ahead(scan, before, position)
    above, room = [one for one in ahead.ahead if one not in kept], options.max_seen - len(kept)
    stored = _remembered(position, ahead._replace(rows=kept, ahead=above[:room]))
    if len(rows) > len(kept) and options.lookback is None:
        return _Memory(stored, too_many=True)
    forgotten = scan.boundary.forgotten(position)
    return _Memory(stored, unremembered=max(len(above) - room, 0) + len(rows) - len(kept) + forgotten)


def _at(scan: Scan, position: Any) -> list[str]:
    """Return the digests of rows of this run that are asked for again from a position."""
    return [] if position is None else scan.boundary.digests(position)


def _remembered(position: Any, seen: Seen) -> dict[str, Any] | None:
    """Return what is remembered as it is stored; None: nothing is."""
    stored: dict[str, Any] = {"at": None if position is None else wire(position), "rows": seen.rows}
    if seen.ahead and seen.span is not None:
        stored["ahead"] = {"from": wire(seen.span[0]), "to": wire(seen.span[1]), "rows": seen.ahead}
    return stored if seen.rows or "ahead" in stored else None


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


def _place(scan: Scan, options: Options, reached: Any) -> dict[str, Any] | None:
    """Return the place to resume of a `fetch` that is not finished, as it is stored; None: start at the beginning.

    Once the last page was handed out it is that page's own, for an unsorted position moves no earlier than at the end.
    """
    at = next((one.place for one in reversed(scan.position.readings) if one.fetches), None)
    if at is None and not options.asc:
        at = scan.page_at
    if at is None or scan.position.finished or (options.asc and options.lookback is not None):
        return None
    high = _high(scan)
    if high is None and options.row_order == "desc":
        return None  # nothing tells what is newer than what was handed out
    place = {
        "at": at,
        "field": options.field,
        "start": wire(scan.range.asked),
        "end": wire(options.end_value),
        "ceiling": scan.range.ceiling_value(),
        "high": wire(high),
        "rows": _at_the_top(scan, options, high, reached) or None,
    }
    return {name: value for name, value in place.items() if value is not None}


def _high(scan: Scan) -> Any:
    """Return the highest value that a reading handed out, in earlier runs too; None: there was none."""
    high = scan.position.high()[1]
    return high if scan.resumed is None else scan.range.highest(scan.resumed.high, high)


def _at_the_top(scan: Scan, options: Options, high: Any, reached: Any) -> list[str]:
    """Return digests of the rows that are asked for again once the highest value is the position."""
    if high is None or not options.keyed:
        return []
    if options.asc and reached is not None and scan.range.key_of(reached) == scan.range.key_of(high):
        return []  # it is the position, which they are stored with
    return merged(_carried(scan, high), scan.boundary.digests(high))[-options.max_seen :]


def _beyond(scan: Scan, islands: Iterable[Any], position: Any) -> list[Any]:
    """Return the finished windows that end beyond a position."""
    key = scan.range.key_of(position)
    return [island for island in islands if scan.range.key_of(island[1]) > key]


def differs(place: Resume, scan: Scan, options: Options) -> str | None:
    """Return the argument that has changed since the place was stored, so the place is not used; None: none has."""
    span = scan.range

    def same(stored: Any, now: Any) -> bool:
        if stored is None or now is None or stored == now:
            return bool(stored == now)
        try:
            return span.compare(stored, now) == 0
        except (TypeError, ValueError):
            return False

    if place.field != options.field:
        return "cursor_field"
    follows = options.asc and span.position is not None  # the position, which moved since that question
    for what, stored, now in (
        ("start_value", place.start, place.start if follows else wire(span.start)),
        ("end_value", place.end, wire(options.end_value)),
    ):
        if not same(stored, now):
            return what
    return None
