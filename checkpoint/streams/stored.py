"""What a stream keeps under its key, read and checked: position, boundary rows, windows, the place to resume.

    {"updated_at": "2024-05-01T10:00:00Z",
     "seen": {"at": "2024-05-01T10:00:00Z", "rows": […],
              "ahead": {"from": …, "to": …, "rows": […]}},
     "windows": [["2024-06-01T00:00:00Z", "2024-07-01T00:00:00Z"]],
     "resume": {"at": …, "field": "updated_at", "start": …, "end": …, "ceiling": …, "high": …, "rows": […]}}

All but the position stand there only while they are in use; where nothing could become the position, it does not stand
there either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from checkpoint.codec import Cursor

SEEN, WINDOWS, RESUME = "seen", "windows", "resume"
BESIDE = (SEEN, WINDOWS, RESUME)
"""What a cursor holds beside its position."""


class WrongShapeError(ValueError):
    """The stored cursor does not have the form of a stream's cursor."""


class Seen(NamedTuple):
    """Digests that are stored with a position."""

    rows: list[str]
    """Of rows at the position and inside the lookback."""
    ahead: list[str]
    """Of rows above the ceiling."""
    span: tuple[Any, Any] | None
    """The lowest and the highest value of those above the ceiling, as stored."""


NOTHING_SEEN = Seen([], [], None)


class Resume(NamedTuple):
    """Where an interrupted `fetch` continues."""

    at: Any
    """What its page is asked for."""
    field: str
    start: Any
    end: Any
    """What the source was asked for: the place counts while these are the same."""
    ceiling: Any
    """What lies above it never becomes the position of this reading; None: there is no such bound."""
    high: Any
    """The highest value that was handed out; None: there was none."""
    rows: list[str]
    """Digests of rows that are asked for again once that value is the position."""


class StreamState(NamedTuple):
    """A stream's stored state."""

    position: Any
    seen: Seen
    windows: list[list[Any]]
    resume: Resume | None


_NOTHING = StreamState(None, NOTHING_SEEN, [], None)


def read_state(name: str, cursor: Cursor | None, field: str) -> StreamState:
    """Return the state in a cursor; digests of another position are ignored.

    Raises:
        WrongShapeError: something in it is not what a stream stores there.
        ValueError: it is stored by another cursor field.

    """
    if cursor is None:
        return _NOTHING
    position = cursor.get(field)
    if field not in cursor and (not cursor or any(key not in BESIDE for key in cursor)):
        raise ValueError(
            f"{name!r} is stored with {', '.join(map(repr, cursor)) or 'no field'}, not with {field!r}: delete the key "
            "to start over, or set it to a cursor of this field"
        )
    if field in cursor and not is_value(position):
        raise WrongShapeError(f"its {field!r} is not a cursor value: {position!r:.40}")
    seen, windows, resume = (cursor.get(key) for key in BESIDE)
    return StreamState(position, _seen(seen, position), _windows(windows), _resume(resume))


def is_value(value: object) -> bool:
    """Tell whether a stored value can be a cursor value."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "nan", "nat", "inf", "-inf", "infinity", "-infinity")
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seen(seen: Any, position: Any) -> Seen:
    if seen is None:
        return NOTHING_SEEN
    memory = _as_object(seen, f"its {SEEN!r}")
    rows, above = _digests(memory.get("rows", [])), list[str]()
    span: tuple[Any, Any] | None = None
    if memory.get("ahead") is not None:
        ahead = _as_object(memory["ahead"], f"the 'ahead' in its {SEEN!r}")
        span, above = (ahead.get("from"), ahead.get("to")), _digests(ahead.get("rows"))
        if not all(map(is_value, span)):
            raise WrongShapeError(f"the 'ahead' in its {SEEN!r} lacks its bounds")
    return Seen(rows, above, span) if memory.get("at") == position else NOTHING_SEEN


def _windows(windows: Any) -> list[list[Any]]:
    found = [] if windows is None else _list(windows, f"its {WINDOWS!r}")
    pairs = [_list(window, f"a window in its {WINDOWS!r}") for window in found]
    if not all(len(pair) == 2 and all(map(is_value, pair)) for pair in pairs):
        raise WrongShapeError(f"its {WINDOWS!r} are not all pairs of values")
    return pairs


def _resume(resume: Any) -> Resume | None:
    if resume is None:
        return None
    place = _as_object(resume, f"its {RESUME!r}")
    if place.get("at") is None or not isinstance(place.get("field"), str):
        raise WrongShapeError(f"its {RESUME!r} is not a place to resume")
    bounds = {name: place.get(name) for name in ("start", "end", "ceiling", "high")}
    for name, value in bounds.items():
        if value is not None and not is_value(value):
            raise WrongShapeError(f"the {name!r} in its {RESUME!r} is not a cursor value")
    return Resume(place["at"], place["field"], **bounds, rows=_digests(place.get("rows", []), RESUME))


def _as_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WrongShapeError(f"{what} is not an object")
    return cast("dict[str, Any]", value)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise WrongShapeError(f"{what} is not a list")
    return cast("list[Any]", value)  # type: ignore[redundant-cast]  # pyright needs it


def _digests(value: Any, where: str = SEEN) -> list[str]:
    found = _list(value, f"the rows in its {where!r}")
    if not all(isinstance(one, str) for one in found):
        raise WrongShapeError(f"the rows in its {where!r} are not digests")
    return found
