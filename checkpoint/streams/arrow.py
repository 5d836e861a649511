"""Pages that are pyarrow tables or record batches; the only import of pyarrow."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pyarrow  # noqa: ICN001 - its name  # pyright: ignore[reportMissingTypeStubs] - it has none
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs] - as above

if TYPE_CHECKING:
    from checkpoint.streams.values import Lane

pa: Any = pyarrow  # which has no types
pc: Any = pyarrow.compute  # pyright: ignore[reportUnknownMemberType] - as above


def rows(batch: Any) -> list[dict[str, Any]]:
    """Return a table's rows as dicts; times of nanoseconds, for which Python has no type, as text."""
    found: list[dict[str, Any]] = plain(batch).to_pylist()
    return found


def plain(batch: Any) -> Any:
    """Return a table whose columns all have values in Python."""
    for index, column in enumerate(batch.schema):
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            batch = batch.set_column(index, column.name, pc.cast(batch.column(index), pa.string()))
    return batch


def choose(batch: Any, mask: list[bool]) -> Any:
    """Return the table with the rows that the mask names."""
    return batch.filter(pa.array(mask, pa.bool_()))


def extremes(batch: Any, name: str, lane: Lane, *, ordered: bool) -> tuple[Any, Any] | None:
    """Return the lowest and highest value of a column that is spelled as the lane's; None where it is not.

    `ordered`: nor where it does not rise.
    """
    if name not in batch.schema.names or not batch.num_rows:
        return None
    column = plain(batch.select([name])).column(0)
    if column.null_count or (lane.type is str and not _spelled(column, lane)):
        return None
    if pa.types.is_floating(column.type) and not pc.all(pc.is_finite(column)).as_py():
        return None
    if ordered and not pc.all(pc.greater_equal(column[1:], column[:-1])).as_py():
        return None
    found = pc.min_max(column).as_py()
    lowest, highest = found["min"], found["max"]
    return (lowest, highest) if lane.holds(lowest) and lane.holds(highest) else None


def at(batch: Any, name: str, value: Any) -> list[dict[str, Any]]:
    """Return the rows that have a value in a column."""
    batch = plain(batch)
    column = batch.column(name)
    return rows(batch.filter(pc.equal(column, pa.scalar(value, column.type))))


def _spelled(column: Any, lane: Lane) -> bool:
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return False
    if lane.text:
        return not pc.any(pc.match_substring(column, ":")).as_py()
    shape = lane.shape.decode()
    pattern = re.escape(shape[: len(shape) - len(lane.tail)]).replace("0", "[0-9]") + re.escape(lane.tail)
    return bool(pc.all(pc.match_substring_regex(column, f"^{pattern}$")).as_py())
