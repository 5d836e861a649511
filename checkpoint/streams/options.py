"""What a stream is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

if TYPE_CHECKING:
    from datetime import tzinfo

    from checkpoint.streams.rows import Field, Primary
    from checkpoint.streams.values import Step

RowOrder: TypeAlias = Literal["asc", "desc"] | None

SEEN, WINDOWS = "seen", "windows"
"""What a cursor holds beside its position."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a stream was opened with; see `Checkpointer.incremental`."""

    cursor_field: Field
    initial_value: Any = None
    end_value: Any = None
    lookback: Step | None = None
    primary_key: Primary | None = None
    row_order: RowOrder = None
    range_start: Literal["closed", "open"] = "closed"
    on_cursor_value_missing: Literal["raise", "include", "exclude"] = "raise"
    timezone: str | tzinfo | None = None
    oldest_available: Any = None
    max_seen: int = 1_000
    cursor_format: Any = None
    version_fields: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check("row_order", self.row_order, (None, "asc", "desc"))
        _check("range_start", self.range_start, ("closed", "open"))
        _check("on_cursor_value_missing", self.on_cursor_value_missing, ("raise", "include", "exclude"))
        if not callable(self.cursor_field) and not isinstance(cast("object", self.cursor_field), str):
            raise TypeError(f"cursor_field must be a name, a path or a callable, not {self.cursor_field!r}")
        if self.cursor_field in ("", SEEN, WINDOWS):
            raise ValueError(f"cursor_field must not be {self.cursor_field!r}: pass a callable")
        if self.lookback is not None and cast("Any", self.lookback) < type(self.lookback)():
            raise ValueError(f"lookback must not be negative: {self.lookback!r}")
        if self.max_seen < 0:
            raise ValueError(f"max_seen must be 0 or more, not {self.max_seen!r}")

    @property
    def field(self) -> str:
        """The name the position is stored under."""
        return self.cursor_field if isinstance(self.cursor_field, str) else "cursor"

    @property
    def asc(self) -> bool:
        """Whether the source sorts by the cursor field, so that the position follows the rows."""
        return self.row_order == "asc"

    @property
    def keyed(self) -> bool:
        """Whether rows are remembered."""
        return self.primary_key is not None and self.max_seen > 0


def _check(what: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, not {value!r}")
