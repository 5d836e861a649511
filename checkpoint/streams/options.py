"""What a stream is opened with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, cast

from checkpoint.streams.stored import BESIDE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from checkpoint.streams.rows import Field, Primary
    from checkpoint.streams.spellings import CursorFormat
    from checkpoint.streams.values import Amount

RowOrder: TypeAlias = Literal["asc", "desc"] | None


@dataclass(frozen=True, slots=True)
class Options:
    """What a stream was opened with; see `Checkpointer.incremental`. `check_options` judges it."""

    cursor_field: Field
    initial_value: Any = None
    end_value: Any = None
    lookback: Amount | None = None
    primary_key: Primary | None = None
    row_order: RowOrder = None
    range_start: Literal["closed", "open"] = "closed"
    on_cursor_value_missing: Literal["raise", "include", "exclude"] = "raise"
    timezone: str | tzinfo | None = None
    oldest_available: Any = None
    max_seen: int = 1_000
    cursor_format: str | CursorFormat | None = None
    version_fields: Sequence[str] | None = None

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


def check_options(name: str, options: Options) -> None:
    """Check the arguments that can be checked before the first row; errors name the stream.

    Raises:
        TypeError, ValueError: one of them is wrong.

    """
    try:
        _check_choice("row_order", options.row_order, (None, "asc", "desc"))
        _check_choice("range_start", options.range_start, ("closed", "open"))
        _check_choice("on_cursor_value_missing", options.on_cursor_value_missing, ("raise", "include", "exclude"))
        _check_field(options.cursor_field)
        if options.lookback is not None:
            check_amount("lookback", options.lookback)
        _check_most(options.max_seen)
        _check_primary(options.primary_key)
        _check_versions(options.version_fields, options.primary_key)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name!r}: {error}") from error


def _check_field(field: object) -> None:
    if not callable(field) and not isinstance(field, str):
        raise TypeError(f"cursor_field must be a name, a path or a callable, not {field!r}")
    if field in ("", *BESIDE):
        raise ValueError(f"cursor_field must not be {field!r}: pass a callable that reads the field")


def _check_most(most: object) -> None:
    if not isinstance(most, int) or isinstance(most, bool):
        raise TypeError(f"max_seen must be an int, not {most!r}")
    if most < 0:
        raise ValueError(f"max_seen must be 0 or more, not {most!r}")


def is_length(amount: object) -> TypeGuard[timedelta | float | Decimal]:
    """Tell whether something is a timedelta or a number."""
    return isinstance(amount, timedelta | int | float | Decimal) and not isinstance(amount, bool)


def check_amount(what: str, amount: object) -> None:
    """Check that an argument is a timedelta or a number, and not negative.

    Raises:
        TypeError, ValueError: it is not.

    """
    if not is_length(amount):
        raise TypeError(f"{what} must be a timedelta or a number, not {amount!r}")
    if not isinstance(amount, timedelta) and not math.isfinite(amount):
        raise ValueError(f"{what} must be finite, not {amount!r}")
    if cast("Any", amount) < type(amount)():
        raise ValueError(f"{what} must not be negative: {amount!r}")


def _check_primary(primary: object) -> None:
    """Refuse what names no primary key."""
    if primary is None or callable(primary):
        return
    names = [primary] if isinstance(primary, str) else primary
    if not _is_names(names):
        raise TypeError(f"primary_key must be a name, several names or a callable, not {primary!r}")


def _check_versions(versions: object, primary: object) -> None:
    if versions is None:
        return
    if isinstance(versions, str) or not _is_names(versions):
        raise TypeError(f"version_fields must be several names, such as ('etag',), not {versions!r}")
    if primary is None:
        raise ValueError(
            "version_fields need a primary_key: without one, a row cannot be recognised when it comes again"
        )


def _is_names(names: object) -> bool:
    """Tell whether something is one name or more."""
    if not isinstance(names, list | tuple) or not names:
        return False
    return all(isinstance(name, str) and name for name in cast("list[object]", names))


def _check_choice(what: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, not {value!r}")
