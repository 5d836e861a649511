"""Charts of any values over time, as text and as SVG."""

from __future__ import annotations

from datetime import datetime, timezone
from html import escape
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_ROWS = 8
_LARGE = 1e15  # larger numbers are written with an exponent
_TOP, _GAP = 40, 60


class Point(NamedTuple):
    """A value that holds from a time on."""

    at: float
    """Seconds since 1970."""
    value: float


class Panel(NamedTuple):
    """One chart: its points by time, at least one, and the format of its values."""

    title: str
    points: list[Point]
    label: Callable[[float], str]
    ends: list[Point]
    """The end of the line that begins at each point: the time of the next point, or now for the last one. Without an
    entry for the last point, the line ends at that point.
    """
    floor: float | None = None
    """The start of the axis, unless a value is lower; None: the lowest value."""

    @property
    def extents(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The first and the last time, and the lowest and the highest value."""
        places = [*self.points, *self.ends]
        values = [place.value for place in places] + ([] if self.floor is None else [self.floor])
        return _extent([place.at for place in places]), _extent(values)


def time_label(seconds: float) -> str:
    """Return a time as a label."""
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return number_label(seconds)


def number_label(value: float) -> str:
    """Return a number as a label."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < _LARGE else f"{value:g}"


def text(title: str, panels: list[Panel], width: int) -> str:
    """Return the charts as lines of at most this many characters."""
    return "\n\n".join([title, *("\n".join(_lines(panel, width)) for panel in panels)])


def _lines(panel: Panel, width: int) -> list[str]:
    """Draw a dot where a value begins, and a line while it lasts."""
    _, (low, high) = panel.extents
    labels = {_ROWS - 1: panel.label(low)}
    if high > low:
        labels[0] = panel.label(high)
    margin = max(len(label) for label in labels.values())
    columns = max(10, width - margin - 2)
    grid = _grid(panel, columns)
    drawn = [f"{labels.get(row, ''):>{margin}} │{cells}".rstrip() for row, cells in enumerate(grid)]
    return [panel.title, *drawn, f"{'':{margin}}  {_axis(panel, columns)}"]


def _grid(panel: Panel, columns: int) -> list[str]:
    """Return the rows of a panel, the highest values first."""
    (begin, end_of), (low, high) = panel.extents
    grid = [[" "] * columns for _ in range(_ROWS)]
    places = [
        (_cell(point.at, begin, end_of, columns - 1), _ROWS - 1 - _cell(point.value, low, high, _ROWS - 1))
        for point in panel.points
    ]
    ends = [
        (_cell(end.at, begin, end_of, columns - 1), _ROWS - 1 - _cell(end.value, low, high, _ROWS - 1))
        for end in panel.ends
    ]
    for begun, ended in zip(places, ends, strict=False):
        _draw_line(grid, begun, ended)
    is_now = len(ends) == len(places)
    if is_now and ends[-1][1] != places[-1][1]:
        grid[ends[-1][1]][columns - 1] = "○"
    for column, row in places:
        grid[row][column] = "●"
    return ["".join(cells) for cells in grid]


def _draw_line(grid: list[list[str]], begun: tuple[int, int], ended: tuple[int, int]) -> None:
    """Draw a line from next to its point: a ramp up to its end, a level line up to the next point or the edge."""
    (column, row), (last, end) = begun, ended
    is_short = end == row and last < len(grid[0]) - 1
    for each in range(column + 1, last + (not is_short)):
        grid[row + round((end - row) * (each - column) / (last - column))][each] = "─"


def _axis(panel: Panel, columns: int) -> str:
    """Return the labels of the first time and, if there is room, of the last one."""
    (begin, end), _ = panel.extents
    first, last = time_label(begin), time_label(end)
    room = columns - len(first)
    return f"{first}{last:>{room}}" if end > begin and room > len(last) else first


class Look(NamedTuple):
    """The look of a drawing: lengths in pixels, colors in SVG notation."""

    width: int = 800
    height: int = 160
    """The height of one chart."""
    left: int = 150
    """The part of the width that the labels beside the chart take."""
    ink: str = "black"
    axis: str = "#888"
    line: str = "#2563eb"


PAPER = Look()


def svg(title: str, panels: list[Panel]) -> str:
    """Return the charts as an SVG image with a title on white, one below the other."""
    height = _TOP + len(panels) * (PAPER.height + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{PAPER.width}" height="{height}">',
        f'<g font-family="sans-serif" font-size="12"><rect width="{PAPER.width}" height="{height}" fill="white"/>',
        _label(title, PAPER.left, 18, "start", ' font-weight="bold"'),
    ]
    for index, panel in enumerate(panels):
        parts += _drawing(panel, _TOP + index * (PAPER.height + _GAP), PAPER)
    return "\n".join([*parts, "</g></svg>\n"])


def drawing(panels: list[Panel], look: Look) -> str:
    """Return the charts as an SVG element for a page, one below the other, on the page's own background."""
    step = look.height + _GAP
    size = len(panels) * step
    parts = [
        f'<svg viewBox="0 0 {look.width} {size}" width="{look.width}" height="{size}">',
        f'<g font-size="12" fill="{look.ink}">',
        *(line for index, panel in enumerate(panels) for line in _drawing(panel, 20 + index * step, look)),
    ]
    return "\n".join([*parts, "</g></svg>"])


def _drawing(panel: Panel, top: int, look: Look) -> list[str]:
    (begin, end), (low, high) = panel.extents
    if low == high:  # in the middle, clear of the axis
        low, high = low - 1, high + 1
        labels = [(panel.label(low + 1), top + look.height // 2)]
    else:
        labels = [(panel.label(high), top), (panel.label(low), top + look.height)]
    left, right, bottom = look.left, look.width - 20, top + look.height
    places, ends = (
        [
            (left + _share(at, begin, end) * (right - left), bottom - _share(value, low, high) * look.height)
            for at, value in each
        ]
        for each in (panel.points, panel.ends)
    )
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for (x, y), after in zip_longest(ends, places[1:]):
        path += f"L{x:.1f} {y:.1f}" + (f"V{after[1]:.1f}" if after is not None else "")
    return [
        _label(panel.title, left, top - 6, "start"),
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{look.axis}"/>',
        *(_label(words, left - 8, y + 4, "end") for words, y in labels),
        _label(time_label(begin), left, bottom + 18, "start"),
        *([_label(time_label(end), right, bottom + 18, "end")] if end > begin else []),
        f'<path d="{path}" fill="none" stroke="{look.line}" stroke-width="1.5"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{look.line}"/>' for x, y in places),
    ]


def _label(words: str, x: int, y: int, anchor: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def _extent(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0


def _cell(value: float, low: float, high: float, steps: int) -> int:
    return round(_share(value, low, high) * steps)
