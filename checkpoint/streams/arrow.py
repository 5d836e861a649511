"""Pages that are pyarrow tables or record batches; the only import of pyarrow."""

from __future__ import annotations

from typing import Any

import pyarrow  # noqa: ICN001 - its name  # pyright: ignore[reportMissingTypeStubs] - it has none
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs] - as above

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
