"""A position over time, from the history, and its charts."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.errors import printable
from checkpoint.overview import chart
from checkpoint.overview.moments import instant, now
from checkpoint.overview.namespaces import AbsentError
from checkpoint.overview.positions import AHEAD, measured
from checkpoint.overview.words import cursor_of, span
from checkpoint.streams.stored import BESIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from checkpoint.entries import Change
    from checkpoint.overview.namespaces import Name

_LABEL = 24
"""A label shows this many characters of a text."""


class PlottedChange(NamedTuple):
    """The position after one commit."""

    version: int
    at: str
    position: Any
    """The stored form."""
    scale: float
    """The position as a number: for a time seconds since 1970, for a text its rank."""
    kind: str
    """`number`, `instant`, `wall` or `text`."""
    lag: float | None
    """Seconds between the position and the commit; None: the position is not an instant."""

    def fields(self) -> dict[str, Any]:
        """Return the change as a document."""
        told = self._asdict()
        return told | {"is_time": told.pop("kind") in {"instant", "wall"}}


def drawn_field(changes: list[Change], name: Name, form: str | None = None) -> str:
    """Return the only field of the newest cursor that can be drawn: a number or a time, else a text.

    If a cursor format is known, return the only field in that format.

    Raises:
        AbsentError: there is no cursor, or not exactly one field can be drawn.

    """
    cursor = next((found for change in changes if (found := _cursor_after(change)) is not None), None)
    if cursor is None:
        raise AbsentError(f"there is no cursor of {name.quoted} in the history")
    fields = _drawable(cursor, form) if form is not None else []
    fields = fields if len(fields) == 1 else _drawable(cursor)
    if len(fields) == 1:
        return fields[0]
    if not fields:
        raise AbsentError(f"{name.quoted} has no field that can be drawn: a number, a time or text")
    raise AbsentError(f"which field of {name.quoted} is to be drawn? {', '.join(fields)}: choose one with --field")


def _drawable(cursor: Mapping[str, Any], form: str | None = None) -> list[str]:
    """Return the fields of a cursor that are numbers or times; if there are none, those that are text."""
    parts = {part: value for part, value in cursor.items() if part not in BESIDE}
    fields = [part for part, value in parts.items() if measured(value, form) is not None]
    return fields or [part for part, value in parts.items() if isinstance(value, str) and value]


def _cursor_after(change: Change) -> Mapping[str, Any] | None:
    return None if change.after is None else cursor_of(change.after)


def _field_values(changes: list[Change], field: str) -> Iterator[tuple[Change, float, Any]]:
    """Yield the changes with a value in a field, and the time of the commit, oldest first."""
    for change in reversed(changes):
        cursor, at = _cursor_after(change), instant(change.at)
        if cursor is not None and cursor.get(field) is not None and at is not None:
            yield change, at.timestamp(), cursor[field]


def plotted(changes: list[Change], field: str, form: str | None) -> list[PlottedChange]:
    """Return the changes of a field whose kind is that of the newest one."""
    values = list(_field_values(changes, field))
    found = _measures([value for _, _, value in values], form)
    kind = next((one[1] for one in reversed(found) if one is not None), None)
    return [
        PlottedChange(change.version, change.at, value, one[0], one[1], at - one[0] if kind == "instant" else None)
        for (change, at, value), one in zip(values, found, strict=True)
        if one is not None and one[1] == kind
    ]


def _measures(values: list[Any], form: str | None) -> list[tuple[float, str] | None]:
    """Return values as numbers, with their kinds; text that is not a time becomes its rank."""
    found = [measured(value, form) for value in values]
    is_text = not any(found) and form in {None, "text"} and all(isinstance(value, str) for value in values)
    return _in_order(values) if is_text else found


def _in_order(texts: list[str]) -> list[tuple[float, str] | None]:
    """Return the rank of each text: in numeric order if all are numbers, else by code point."""
    numbers = [measured(text, "number") for text in texts]
    if all(numbers):
        return numbers
    places = {text: place for place, text in enumerate(sorted({*texts}))}
    return [(places[text], "text") for text in texts]


def standing_until(changes: list[Change], steps: list[PlottedChange]) -> float | None:
    """Return the current time, up to which the last change holds; None: the value stored now was not drawn."""
    moment, last = now().timestamp(), instant(changes[0].at) if changes else None
    is_last = bool(steps) and steps[-1].version == changes[0].version
    return moment if is_last and last is not None and last.timestamp() < moment else None


def panels(steps: list[PlottedChange], until: float | None = None) -> list[chart.Panel]:
    """Return the charts of changes, at least one: the position and, if it is a time, the lag.

    The line extends to `until`, up to which the last change holds. While a position stands still, its lag grows.
    """
    moments = [at.timestamp() for step in steps if (at := instant(step.at)) is not None]
    last, cut = steps[-1], _cut(steps, moments[-1] if until is None else until)
    ended = [*moments[1:], *([] if until is None else [until])]
    points = [chart.Point(at, min(step.scale, cut.at)) for at, step in zip(moments, steps, strict=True)]
    ends = [chart.Point(at, point.value) for at, point in zip(ended, points, strict=False)]
    drawn = [chart.Panel(f"position{cut.said}", points, _axis_label(steps), ends)]
    if last.lag is not None:
        lags = [chart.Point(at, max(at - step.scale, cut.lag)) for at, step in zip(moments, steps, strict=True)]
        grown = [chart.Point(at, max(at - step.scale, cut.lag)) for at, step in zip(ended, steps, strict=False)]
        drawn.append(chart.Panel(f"lag{cut.said}", lags, _lag_label, grown, floor=0.0))
    return drawn


class _Cut(NamedTuple):
    """The limits of the charts, so that one position ahead of the clock does not flatten the others."""

    at: float = inf
    """The highest position that is drawn."""
    lag: float = -inf
    """The lowest lag that is drawn."""
    said: str = ""
    """The note in the title."""


def _cut(steps: list[PlottedChange], now: float) -> _Cut:
    """Return the limits of the charts: a day ahead of the clock, if some positions lie beyond it."""
    ahead = [step.scale for step in steps if step.kind == "instant" and step.scale > now + AHEAD]
    if not ahead or len(ahead) == len(steps):
        return _Cut()
    return _Cut(now + AHEAD, -AHEAD, f", cut off a day ahead of the clock: it went to {chart.time_label(max(ahead))}")


def _lag_label(seconds: float) -> str:
    return f"{span(-seconds)} ahead" if seconds <= -1 else span(seconds)


def _axis_label(steps: list[PlottedChange]) -> Callable[[float], str]:
    """Return the function that writes labels of the position axis."""
    if steps[0].kind == "number":
        return chart.number_label
    if steps[0].kind != "text":
        return chart.time_label
    texts = {step.scale: printable(str(step.position)) for step in steps}
    return lambda place: texts[place] if len(texts[place]) <= _LABEL else f"{texts[place][: _LABEL - 1]}…"
