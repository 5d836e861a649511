"""Pages of Arrow tables, record batches and Arrow PyCapsule objects; the only module that imports pyarrow.

Only the cursor column becomes Python objects, of sorted times only where they are looked at, and the rows that have
to be remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import groupby
from typing import Any

from checkpoint.errors import is_of_handler
from checkpoint.streams.keys import Counted

try:
    import pyarrow  # noqa: ICN001 - `pa` is the name without types
    import pyarrow.compute
except ImportError as _error:
    raise ImportError("tables and data frames need pyarrow: pip install 'checkpoint-store[arrow]'") from _error

pa: Any = pyarrow  # which has no types
pc: Any = pyarrow.compute  # pyright: ignore[reportUnknownMemberType] - as above


class TablePage(Sequence["Row"]):
    """The rows of a table; a row is only converted when it is accessed.

    Args:
        batch: a pyarrow Table or RecordBatch, or what has `__arrow_c_stream__`.

    Raises:
        TypeError: it has no columns.

    """

    def __init__(self, batch: Any) -> None:
        self.table: Any = _table(batch)
        """The batch as a pyarrow table or record batch."""
        names: list[str] = self.table.schema.names
        self.places: dict[str, int] = {name: place for place, name in reversed([*enumerate(names)])}
        """Columns by name; of several of one name the first."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        return Row(self, index)

    def __iter__(self) -> Iterator[Row]:
        return (Row(self, index) for index in range(len(self)))

    def values(self, field: str | Callable[[Any], Any], *, counted: bool = False) -> Sequence[Any]:
        """Return the value of a field in each row: a name, a path into structs, or a callable of the row.

        `counted`: of moments that datetimes hold it may be `Counted`.
        """
        if callable(field):
            return [field(row) for row in self]
        column = self._column(field)
        if column is None:
            return [None] * len(self)
        return (_moments(column) if counted else None) or _python_values(column)

    def _column(self, field: str) -> Any:
        if field in self.places:
            return self.table.column(self.places[field])
        head, *path = field.split(".")
        if not path or head not in self.places:
            return None
        column = self.table.column(self.places[head])
        for name in path:
            if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
                return None
            column = pc.struct_field(column, name)
        return column

    def choose(self, mask: list[bool]) -> Any:
        """Return a table with the rows that the mask names."""
        try:
            return self.table.filter(pa.array(mask, pa.bool_()))
        except pa.ArrowNotImplementedError:  # a column of a type that is not filtered yet
            return self._sliced(mask)

    def _sliced(self, mask: list[bool]) -> Any:
        parts, start = [self.table.slice(0, 0)], 0
        for deliver, run in groupby(mask):
            size = len([*run])
            if deliver:
                parts.append(self.table.slice(start, size))
            start += size
        if isinstance(self.table, pa.Table):
            return pa.concat_tables(parts)
        [batch] = pa.Table.from_batches(parts).combine_chunks().to_batches() or [parts[0]]
        return batch


class Row(Mapping[str, Any]):
    """One row of a page."""

    __slots__ = ("_index", "_page")

    def __init__(self, page: TablePage, index: int) -> None:
        self._page = page
        self._index = index

    def __getitem__(self, name: str) -> Any:
        column = self._page.table.column(self._page.places[name])
        [value] = _python_values(column.slice(self._index, 1))
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._page.places)

    def __len__(self) -> int:
        return len(self._page.places)


def _table(batch: Any) -> Any:
    if isinstance(batch, pa.Table | pa.RecordBatch):
        return batch
    try:
        return pa.table(batch)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise TypeError(f"a {type(batch).__name__} is not a table of rows: {error}") from error


def _python_values(column: Any) -> list[Any]:
    """Return a column as Python has it; times of nanoseconds, for which it has no type, as text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_time = pa.types.is_timestamp(column.type)
    if is_time and column.type.unit == "ns":
        is_time, column = False, pc.cast(column, pa.string())
    try:
        values: list[Any] = (
            _datetimes(column) if is_time else _integers(column) if column.type == pa.int64() else column.to_pylist()
        )
    except Exception as error:  # whatever it is that one of them has no type in Python for
        if is_of_handler(error):
            raise
        return [_value(scalar) for scalar in column]
    return values


def _datetimes(column: Any) -> list[Any]:
    """Return times as `to_pylist` does, in a tenth of its time."""
    first = next((scalar.as_py() for scalar in column if scalar.is_valid), None)
    if first is None:
        return [None] * len(column)
    at = _at(first.tzinfo, column)
    return [None if count is None else at(count) for count in _micros(column)]


def _moments(column: Any) -> Counted | None:
    """Return times with a zone where each is there, and a datetime in every zone; None: they are something else."""
    is_time = pa.types.is_timestamp(column.type) and column.type.tz is not None and column.type.unit != "ns"
    if not is_time or column.null_count or not len(column):
        return None
    try:
        counts, first = _micros(column), column[0].as_py()
    except Exception as error:  # as in `_python_values`, which says what it is
        if is_of_handler(error):
            raise
        return None
    held = min(counts) >= _LOWEST and max(counts) <= -_LOWEST
    return Counted(counts, _at(first.tzinfo, column)) if held else None


_LOWEST = -(60_000_000_000 * 10**6)
"""Microseconds before 1970 up to which times surely are in the years of a datetime; and, less the sign, after it."""


def _micros(column: Any) -> list[Any]:
    return _integers(column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()))


def _at(zone: Any, column: Any) -> Callable[[int], datetime]:
    """Return a function that turns microseconds since 1970 into a datetime in a zone."""
    if zone is None or column.type.tz == "UTC":
        return partial(_after, datetime(1970, 1, 1, tzinfo=zone))
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    return lambda count: _after(epoch, count).astimezone(zone)


def _after(epoch: datetime, count: int) -> datetime:
    return epoch + timedelta(0, 0, count)


def _integers(column: Any) -> list[Any]:
    """Return 64-bit integers as `to_pylist` does, without a pyarrow scalar for each."""
    found: list[Any] = []
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        if chunk.null_count:
            found += chunk.to_pylist()
        else:
            at, size = chunk.offset, pa.int64().byte_width
            found += memoryview(chunk.buffers()[1])[at * size : (at + len(chunk)) * size].cast("b").cast("q")
    return found


def _value(scalar: Any) -> Any:
    """Return one value, as text or number where Python has no type for it; what it is made of, where it is nested."""
    with suppress(Exception):  # as above
        return scalar.as_py()
    if pa.types.is_struct(scalar.type):
        return {field.name: _value(scalar[place]) for place, field in enumerate(scalar.type)}
    if hasattr(scalar, "values"):
        return [_value(one) for one in scalar.values]
    for simpler in (pa.string(), pa.int64()):
        with suppress(pa.ArrowException):
            return scalar.cast(simpler).as_py()
    return pa.record_batch([pa.repeat(scalar, 1)], ["value"]).serialize().to_pybytes()
