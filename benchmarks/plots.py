"""Pictures of the results, as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

COLOURS = ("#0b6e4f", "#c1440e", "#2a5caa", "#8a5a00")
GREY = "#666"
FONT = "font-family='system-ui, sans-serif' font-size='13'"
ROW = 22


@dataclass(frozen=True)
class Line:
    """Points, joined."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """One peer of one case: how many times as long as ours it takes."""

    case: str
    peer: str
    ratio: float


def lines(title: str, across: str, up: str, drawn: Sequence[Line]) -> str:
    """Draw lines on logarithmic axes."""
    width, height, left, top, right, bottom = 760, 420, 80, 50, 170, 50
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    low, high = math.floor(math.log10(min(ys)) - 0.3), math.ceil(math.log10(max(ys)))
    first, last = math.log10(min(xs)), math.log10(max(xs))

    def x_of(value: float) -> float:
        return left + (math.log10(value) - first) / (last - first) * (width - left - right)

    def y_of(value: float) -> float:
        return height - bottom - (math.log10(value) - low) / (high - low) * (height - top - bottom)

    parts = [_text(left, 26, title, weight="bold")]
    for power in range(low, high + 1):
        y = y_of(10**power)
        parts += [
            _rule(left, y, width - right, y),
            _text(left - 8, y + 4, f"{10.0**power:,g}", anchor="end", fill=GREY),
        ]
    for power in range(math.ceil(first), math.floor(last) + 1):
        x = x_of(10**power)
        parts += [
            _rule(x, top, x, height - bottom),
            _text(x, height - bottom + 18, f"{10**power:,}".replace(",", " "), anchor="middle", fill=GREY),
        ]
    parts += [
        _text((left + width - right) / 2, height - 10, across, anchor="middle", fill=GREY),
        _text(left, top - 8, up, anchor="end", fill=GREY),
    ]
    lowest = float("-inf")
    for line, colour in sorted(zip(drawn, COLOURS, strict=False), key=lambda pair: -pair[0].points[-1][1]):
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2.5'/>")
        lowest = max(lowest + 18, y_of(line.points[-1][1]) + 4)  # names do not stand on each other
        parts.append(_text(x_of(line.points[-1][0]) + 8, lowest, line.name, fill=colour))
    return _svg(width, height, parts)


def standing(title: str, bars: Sequence[Bar]) -> str:
    """Draw how much faster (to the right of 1) or slower (to the left) ours is than each peer, logarithmically."""
    left, top, width = 430, 74, 980
    reach = max(1.0, *(abs(math.log10(bar.ratio)) for bar in bars))
    low = min(-1.0, math.floor(min(math.log10(bar.ratio) for bar in bars))) - 0.8  # room for the figures
    high = max(1.0, math.ceil(reach))

    def x_of(ratio: float) -> float:
        return left + (math.log10(ratio) - low) / (high - low) * (width - left - 70)

    parts = [_text(16, 26, title, weight="bold")]
    height = top + ROW * len(bars) + 20
    for power in range(math.ceil(low), int(high) + 1):
        x = x_of(10**power)
        parts += [
            _rule(x, top - 8, x, height - 16, dark=power == 0),
            _text(x, top - 14, f"{10.0**power:,g}×", anchor="middle", fill=GREY),
        ]
    parts += [
        _text(x_of(1) - 8, 48, "behind", anchor="end", fill=COLOURS[1], weight="bold"),
        _text(x_of(1) + 8, 48, "ahead", fill=COLOURS[0], weight="bold"),
    ]
    earlier = ""
    for number, bar in enumerate(bars):
        y = top + ROW * number
        start, end = sorted((x_of(1), x_of(bar.ratio)))
        wide = max(1.0, end - start)
        colour = COLOURS[0] if bar.ratio >= 1 else COLOURS[1]
        if bar.case != earlier:
            parts += [_rule(16, y - 2, width - 16, y - 2), _text(16, y + 15, bar.case)]
            earlier = bar.case
        parts += [
            _text(left - 10, y + 15, bar.peer, anchor="end", fill=GREY),
            f"<rect x='{start:.1f}' y='{y + 3}' width='{wide:.1f}' height='{ROW - 8}' fill='{colour}'/>",
            _text(
                *((end + 5, y + 15) if bar.ratio >= 1 else (start - 5, y + 15)),
                f"{bar.ratio:,.0f}×" if bar.ratio >= 99.5 else f"{bar.ratio:.2g}×",
                anchor="start" if bar.ratio >= 1 else "end",
                fill=colour,
            ),
        ]
    return _svg(width, height, parts)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    size = f"viewBox='0 0 {width} {height}' width='{width}' height='{height}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT}>"
    return "\n".join([head, "<rect width='100%' height='100%' fill='white'/>", *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#222", weight: str = "normal") -> str:
    look = f"text-anchor='{anchor}' fill='{fill}' font-weight='{weight}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {look}>{escape(text)}</text>"


def _rule(x1: float, y1: float, x2: float, y2: float, *, dark: bool = False) -> str:
    colour = "#888" if dark else "#e2e2e2"
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}'/>"
