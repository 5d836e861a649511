"""Values that say themselves what they are: numbers, dates, datetimes and ISO 8601 text.

A time as text is a date, a `T`, `t` or space, and a clock: `2024-05-01T10:00:00.123Z`. The fraction may have any
number of digits, after `.` or `,`; `24:00` is the end of the day; the zone is `Z`, `z`, `UTC`, or `±hh[[:]mm]`, with or
without a space before it. The basic form (`20240501T100000Z`) and week dates are not read.
"""

from __future__ import annotations

import math
import re
import sys
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

from checkpoint.streams import keys
from checkpoint.streams.keys import (
    DAY,
    EPOCH,
    EPOCH_DAY,
    HOUR,
    MICRO,
    MINUTE,
    REMEMBERED,
    UTC,
    YEAR_ONE,
    Clock,
    KeyForm,
    Kind,
    Moment,
    ToKey,
    write_day,
)  # fmt: skip
from checkpoint.streams.numbers import number_below

if TYPE_CHECKING:
    from collections.abc import Callable


# ISO 8601 text


_TIME = re.compile(r"(\d{4}-\d\d-\d\d)([Tt ])(\d\d):(\d\d)(?::(\d\d)(?:([.,])(\d+))?)?([ UTCZz+-].*)?", re.ASCII)
_ZONE = re.compile(r" ?(?:[Zz]|UTC|([+-])(\d\d)(?::?(\d\d))?)", re.ASCII)
_TAIL = re.compile(r"(\d+)(.*)", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class Written(NamedTuple):
    """A time as ISO 8601 text has it."""

    local: int
    """Seconds since 1970 as the clock shows them."""
    fraction: str
    """Digits of the second, without trailing zeros."""
    offset: int | None
    """Seconds east of UTC; None: naive."""
    separator: str
    """What stands between date and clock."""
    point: str
    digits: int | None
    """How many fraction digits are written, after `point`; None: not even seconds."""
    zone: str
    """The zone as written; empty: naive."""


@lru_cache(maxsize=64)  # a claim reads the same few positions again and again
def read_time(text: str) -> Written | None:
    """Read a time; None where the text is none."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    day, separator, hour, minute, second, point, fraction, zone = match.groups("")
    that_day, offset = read_day(day), _seconds_east(zone)
    clock = _seconds_of(int(hour), int(minute), int(second or 0), fraction)
    if that_day is None or clock is None or (zone and offset is None):
        return None
    local = (that_day.toordinal() - EPOCH_DAY) * DAY + clock
    return Written(
        local, fraction.rstrip("0"), offset, separator, point or ".", len(fraction) if second else None, zone
    )


def write_time(local: int, fraction: str, like: Written) -> str:
    """Write what a clock shows as `like` is written; digits it has no place for are left out.

    Raises:
        ValueError, OverflowError: outside the years 1 to 9999.

    """
    days, rest = divmod(local, DAY)
    clock = f"{write_day(days)}{like.separator}{rest // HOUR:02}:{rest % HOUR // MINUTE:02}"
    if like.digits is None:
        return clock + like.zone
    digits = like.point + fraction[: like.digits].ljust(like.digits, "0") if like.digits else ""
    return f"{clock}:{rest % MINUTE:02}{digits}{like.zone}"


def read_day(text: str) -> date | None:
    """Read `YYYY-MM-DD`; None where it is no such day."""
    if _DATE.fullmatch(text):
        try:
            return date(int(text[:4]), int(text[5:7]), int(text[8:]))
        except ValueError:
            pass
    return None


def _seconds_of(hours: int, minutes: int, seconds: int, fraction: str) -> int | None:
    """Return the seconds of a time of day; 60 is a leap second, and 24:00 the end of the day. None: there is none."""
    if hours == 24 and (minutes or seconds or fraction.strip("0")):
        return None
    if hours > 24 or minutes >= MINUTE or seconds > MINUTE:
        return None
    return hours * HOUR + minutes * MINUTE + seconds


def _seconds_east(zone: str) -> int | None:
    """Return how far a zone as written lies east of UTC; None: it is none."""
    found = _ZONE.fullmatch(zone)
    if found is None:
        return None
    sign, hours, minutes = found.groups()
    if sign is None:
        return 0
    seconds = int(hours) * HOUR + int(minutes or 0) * MINUTE
    return None if seconds >= DAY else -seconds if sign == "-" else seconds


# Columns of text


if sys.version_info >= (3, 11):
    _parse = datetime.fromisoformat
else:

    def _parse(text: str) -> datetime:
        """Parse what Python 3.10 can: times with `Z`, and a fraction of three or six digits."""
        return datetime.fromisoformat(f"{text[:-1]}+00:00" if text[-1:] == "Z" else text)


_TO_SECOND = len("2024-05-01T10:00:00")
_TO_MICRO = len("2024-05-01T10:00:00.123456")
_SIZES = frozenset((len("2024-05-01T10:00"), _TO_SECOND, *range(_TO_MICRO - 5, _TO_MICRO + 1)))
"""Lengths of what Python parses as we do, without its zone."""
_SIZES_Z = frozenset(size + 1 for size in _SIZES)
_MARKS = frozenset(
    f"--{separator}:{rest}"
    for separator in "Tt "
    for rest in ("", ":", ":.", ":,", ":Z", "Z", ":+", ":-", ": ", "+:", "-:", "+", "-")
)
"""What stands at every third place from the first `-` on, where it is no digit; up to what follows the seconds."""


def of_times(slow: ToKey, first: str, written: Written, zone: tzinfo | None) -> ToKey:
    """Return what makes the keys of times as text; `zone` is whose clock naive ones are."""
    mark = _mark(first)
    if (written.digits or 0) > MICRO:
        return _of_fine_text(slow, mark, zoned=bool(written.zone)) if written.zone or zone is None else slow
    if written.zone:
        return _of_utc_text(slow, mark) if written.zone == "Z" else _of_offset_text(slow, mark, len(written.zone))
    return _of_naive_text(slow, mark, zone)


_FINE = "--T::."


def _mark(text: str) -> str:
    return text[4:20:3]


def _of_utc_text(slow: ToKey, mark: str) -> ToKey:
    """Return what makes aware keys, of times with `Z`; quickest where there is no fraction."""
    whole, size = mark[:5] + "Z", _TO_SECOND + 1
    low = high = ""  # text between them begins with an hour whose marks were seen
    others = 0  # texts of other hours: where there is another one in each row, to remember it would cost more
    naive_of: ToKey | None = None  # of times with an offset, which most such columns never have

    def utc(value: Any) -> Any:
        nonlocal low, high, others, naive_of
        try:
            if low <= value < high:
                if value[_TO_SECONDS] == ":" and (len(value) == size or (value[-1] == "Z" and len(value) in _SIZES_Z)):
                    return _parse(value)
            elif value[-1] == "Z" and len(value) in _SIZES_Z:
                found = value[4:20:3]
                if found == whole or found in _MARKS:
                    key = _parse(value)
                    others += 1
                    if not others % _SOME:
                        low, high = _hour(value)
                    return key
            naive_of = naive_of or _of_offset_text(slow, mark, len("+00:00"))
            key = naive_of(value)
        except (TypeError, ValueError, LookupError):
            return slow(value)
        return key.replace(tzinfo=UTC) if isinstance(key, datetime) and key.tzinfo is None else key

    return utc


_TO_MINUTE = len("2024-05-01T10:")
_TO_SECONDS = len("2024-05-01T10:00")
_SOME = 8
"""Texts of another hour after which one of them is remembered."""


def _hour(value: str) -> tuple[str, str]:
    """Return the least text that begins with the same hour, and what follows all such text."""
    hour = value[:_TO_MINUTE]
    return hour, hour[:-1] + ";"


class _Offset:
    """An offset as written, and the last hour before it whose marks were seen."""

    __slots__ = ("east", "high", "low", "others")

    def __init__(self, east: timedelta) -> None:
        self.east = east
        self.low = self.high = ""
        self.others = 0


def _of_offset_text(slow: ToKey, mark: str, width: int) -> ToKey:
    """Return what makes naive keys in UTC, of times with offsets of this width."""
    offsets: dict[str, _Offset] = {}
    seconds = f"--{mark[2]}::"

    def offset(value: Any) -> Any:
        try:
            known = offsets.get(value[_TO_SECOND:])
            if known is not None:
                if known.low <= value < known.high and value[_TO_SECONDS] == ":":
                    return _parse(value[:_TO_SECOND]) - known.east
                if value[4:17:3] == seconds:
                    key = _parse(value[:_TO_SECOND]) - known.east
                    known.others += 1
                    if not known.others % _SOME:
                        known.low, known.high = _hour(value)
                    return key
            return fraction(value)
        except (TypeError, ValueError, LookupError, OverflowError):
            return slow(value)

    def fraction(value: str) -> Any:
        """Make the key of a time with a fraction, with `Z`, or with an offset that is new."""
        zone = "Z" if value[-1] == "Z" else value[-width:]
        known = offsets.get(zone)
        if known is None:
            known = offsets[zone] = _Offset(_offset_of(zone))
        size = len(value) - len(zone)
        at = _parse(value[:size])
        if at.tzinfo is not None or size not in _SIZES or _mark(value) not in _MARKS:
            return slow(value)
        return at - known.east

    return offset


def _offset_of(zone: str) -> timedelta:
    """Return the offset of a zone as written.

    Raises:
        LookupError: it is none.

    """
    east = _seconds_east(zone)
    if east is None:
        raise LookupError(zone)
    return timedelta(seconds=east)


def _of_naive_text(slow: ToKey, mark: str, zone: tzinfo | None) -> ToKey:
    offset_at = None if zone is None or zone is UTC else _offsets_of(zone)

    def naive(value: Any) -> Any:
        try:
            found = value[4:20:3]
            if (found == mark or found in _MARKS) and len(value) in _SIZES:
                at = _parse(value)
                if at.tzinfo is None:
                    return at if offset_at is None else at - offset_at(at)
        except (TypeError, ValueError, OverflowError):
            pass
        return slow(value)

    return naive


def _offsets_of(zone: tzinfo) -> Callable[[datetime], Any]:
    """Return what tells the offset of a zone at what its clock shows; of two such moments the earlier's."""
    if type(zone) in (ZoneInfo, timezone):  # which need no datetime of their own
        return zone.utcoffset
    return lambda at: at.replace(tzinfo=zone).utcoffset()


class _Tails(dict[str, "tuple[str, timedelta]"]):
    """Digits beyond microseconds, and the offset, by how they are written: all with a zone, or all without one."""

    def __init__(self, *, zoned: bool) -> None:
        self._zoned = zoned

    def __missing__(self, tail: str) -> tuple[str, timedelta]:
        found = _TAIL.fullmatch(tail)
        if found is None or bool(found[2]) != self._zoned:
            raise LookupError(tail)
        offset = _offset_of(found[2]) if self._zoned else timedelta()
        if len(self) >= REMEMBERED:
            self.clear()
        known = self[tail] = found[1].rstrip("0"), offset
        return known


def _of_fine_text(slow: ToKey, mark: str, *, zoned: bool) -> ToKey:
    """Return what makes keys that are text, of times with more digits than a datetime has."""
    tails = _Tails(zoned=zoned)

    def fine(value: Any) -> Any:
        try:
            if value[4:20:3] == mark:
                text = value[:_TO_MICRO]
                at = _parse(text)
                digits, offset = tails[value[_TO_MICRO:]]
                if digits and at.tzinfo is None:
                    return (text if not offset else (at - offset).isoformat(timespec="microseconds")) + digits
        except (TypeError, ValueError, LookupError, OverflowError):
            pass
        return slow(value)

    return fine if mark == _FINE else slow


# All of them


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
        if isinstance(value, date):
            return self._clock.dated(value)
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
        return keys.clock_of(value) if isinstance(value, datetime) else None

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
        moved = keys.months_after(day, count)
        if isinstance(value, str):
            return moved.isoformat() + value[10:]
        return day.replace(year=moved.year, month=moved.month, day=moved.day)

    def form(self, first: Any) -> KeyForm:
        """Return what keys of moments are, where the first row has this value; None: there is none yet."""
        zone = self._clock.zone
        if isinstance(first, datetime):
            return keys.Datetimes(keys.home_of(first, zone))
        if isinstance(first, date):
            return keys.Datetimes(None if zone is None else UTC)
        written = read_time(first) if isinstance(first, str) else None
        if written is None or (written.digits or 0) > MICRO:
            return keys.TEXTS
        return keys.Datetimes(UTC if written.zone == "Z" else None)

    def quick(self, slow: ToKey, first: Any) -> ToKey:
        """Return what makes the keys of values like the first one."""
        if isinstance(first, datetime):
            return keys.of_datetimes(slow, first, self._clock.zone)
        if isinstance(first, date):
            return keys.remembering(slow, date)
        if not isinstance(first, str):
            return keys.of_numbers(slow, first)
        written = read_time(first)
        return keys.remembering(slow, str) if written is None else of_times(slow, first, written, self._clock.zone)


def _from_numpy(value: Any) -> Any:
    """Return a numpy scalar as what Python has for it; times as text, of all their digits."""
    return str(value) if value.dtype.kind == "M" else value.item()


def plain_python(value: Any) -> Any:
    """Return a value without numpy's types, which JSON does not have."""
    return _from_numpy(value) if hasattr(value, "dtype") and hasattr(value, "item") else value
