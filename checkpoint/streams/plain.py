"""Values that say themselves what they are: numbers, dates, datetimes and ISO 8601 text."""

from __future__ import annotations

import math
from calendar import monthrange
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from checkpoint.streams import keys
from checkpoint.streams.iso import DAY, EPOCH_DAY, read_day, read_time, write_day, write_time
from checkpoint.streams.keys import EPOCH, MICRO, UTC, Clock, Form, Kind, Moment, ToKey, moment_of
from checkpoint.streams.numbers import number_below

YEAR_ONE = (date.min.toordinal() - EPOCH_DAY) * DAY


class Plain:
    """The spelling of values without a `cursor_format`; see `spellings.Spelling`."""

    kind: Kind | None = None

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def read(self, value: Any) -> tuple[Kind, Any]:
        """Return the kind of a value, and what it is exactly.

        Raises:
            TypeError, ValueError: it is none.
            LookupError: it is text that says not what it is.

        """
        if isinstance(value, str):
            return self._read_text(value)
        if isinstance(value, bool):
            raise TypeError(f"a bool is no cursor value: {value!r}")
        if isinstance(value, int):
            return "number", value
        if isinstance(value, float | Decimal):
            if not math.isfinite(value):
                raise ValueError(f"{value!r} is no cursor value")
            return "number", value
        if isinstance(value, datetime):
            return self._read_datetime(value)
        if isinstance(value, date):
            return self._clock.timed((value.toordinal() - EPOCH_DAY) * DAY, "", None)
        if hasattr(value, "dtype") and hasattr(value, "item"):  # a numpy scalar
            return self.read(_from_numpy(value))
        raise TypeError(
            f"a {type(value).__name__} is no cursor value: int, float, Decimal, date, datetime and str are; "
            "pass a callable that makes one of them"
        )

    def _read_text(self, value: str) -> tuple[Kind, Moment]:
        written = read_time(value)
        if written is not None:
            return self._clock.timed(written.local, written.fraction, written.offset)
        day = read_day(value)
        if day is None:
            raise LookupError(value)
        return self._clock.timed((day.toordinal() - EPOCH_DAY) * DAY, "", None)

    def _read_datetime(self, value: datetime) -> tuple[Kind, Moment]:
        if getattr(value, "nanosecond", 0):  # pandas: its isoformat() has all digits
            return self.read(value.isoformat())
        if value.tzinfo is None and self._clock.zone is not None:
            value = value.replace(tzinfo=self._clock.zone)
        return "wall" if value.utcoffset() is None else "instant", moment_of(value)

    def write(self, exact: Any, like: Any) -> Any:
        """Return the greatest value in the type and spelling of `like` that is not above `exact`."""
        if isinstance(like, str):
            return self._write_text(exact, like)
        if not isinstance(like, date):
            return number_below(exact, like)
        seconds, fraction = exact
        if not isinstance(like, datetime):
            return date.fromordinal(self._clock.local(seconds) // DAY + EPOCH_DAY)
        micros = int(fraction[:MICRO].ljust(MICRO, "0"))
        if like.tzinfo is None:
            return EPOCH + timedelta(seconds=self._clock.local(seconds), microseconds=micros)
        at = EPOCH.replace(tzinfo=UTC) + timedelta(seconds=seconds, microseconds=micros)
        return at.astimezone(like.tzinfo)

    def _write_text(self, exact: Any, like: str) -> str:
        written = read_time(like)
        if written is None:
            return str(exact) if read_day(like) is None else write_day(self._clock.local(exact[0]) // DAY)
        seconds, fraction = exact
        local = self._clock.local(seconds) if written.offset is None else seconds + written.offset
        return write_time(local, fraction, written)

    def check_writes(self, name: str) -> None:
        """Accept: all values can be written."""

    def naive(self, value: Any) -> int | None:
        """Return what the clock of a value shows, in seconds since 1970, where it does not say whose it is."""
        if isinstance(value, str):
            written = read_time(value)
            return None if written is None or written.offset is not None else written.local
        if isinstance(value, datetime) and value.tzinfo is None:
            return moment_of(value.replace(fold=0))[0]
        return None

    def lowest(self, like: Any) -> Any:
        """Return the first moment of year 1 as its own clock shows it, in the type and spelling of `like`."""
        if isinstance(like, str):
            written = read_time(like)
            return date.min.isoformat() if written is None else write_time(YEAR_ONE, "", written)
        return datetime.min.replace(tzinfo=like.tzinfo) if isinstance(like, datetime) else date.min

    def months(self, value: Any, count: int) -> Any:
        """Return a value moved by calendar months of its own clock; a day the month lacks becomes its last one."""
        day = read_day(value[:10]) if isinstance(value, str) else value
        if not isinstance(day, date):
            raise TypeError(f"{value!r} cannot be moved by months")
        moved = months_after(day, count)
        if isinstance(value, str):
            return moved.isoformat() + value[10:]
        return day.replace(year=moved.year, month=moved.month, day=moved.day)

    def form(self, first: Any) -> Form:
        """Return what keys of moments are, where the first row has this value; None: there is none yet."""
        if isinstance(first, datetime):
            return keys.Datetimes(keys.home_of(first, self._clock.zone))
        if isinstance(first, date):
            return keys.Datetimes(None if self._clock.zone is None else UTC)
        return keys.TEXTS

    def quick(self, slow: ToKey, first: Any) -> ToKey:
        """Return what makes the keys of values like the first one."""
        if isinstance(first, datetime):
            return keys.of_datetimes(slow, first, self._clock.zone)
        if isinstance(first, date):
            return keys.remembering(slow, date)
        if isinstance(first, str):
            is_time = read_time(first) is not None
            return keys.of_iso_text(slow, first, self._clock.zone) if is_time else keys.remembering(slow, str)
        return keys.of_numbers(slow, first)


def _from_numpy(value: Any) -> Any:
    """Return a numpy scalar as what Python has for it; times as text, of all their digits."""
    return str(value) if value.dtype.kind == "M" else value.item()


def months_after(day: date, count: int) -> date:
    """Return the day some calendar months later, or the last one of that month.

    Raises:
        ValueError, OverflowError: outside the years 1 to 9999.

    """
    years, month = divmod(day.month - 1 + count, 12)
    year, month = day.year + years, month + 1
    return date(year, month, min(day.day, monthrange(year, month)[1]))


def months_later(seconds: int, count: int, clock: Clock) -> int:
    """Return the moment some calendar months later, at the same time of day of a clock; UTC where it is nobody's.

    Raises:
        ValueError, OverflowError: outside the years 1 to 9999.

    """
    days, rest = divmod(clock.local(seconds), DAY)
    moved = months_after(date.fromordinal(days + EPOCH_DAY), count)
    return clock.timed((moved.toordinal() - EPOCH_DAY) * DAY + rest, "", None)[1][0]


def plain_python(value: Any) -> Any:
    """Return a value without numpy's types, which JSON does not have."""
    return _from_numpy(value) if hasattr(value, "dtype") and hasattr(value, "item") else value
