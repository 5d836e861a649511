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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
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
    Texts,
    ToKey,
    write_day,
)  # fmt: skip
from checkpoint.streams.numbers import number_below

if TYPE_CHECKING:
    from collections.abc import Callable

OffsetOf: TypeAlias = "Callable[[datetime], Any]"
"""Tells the offset of a zone at what its clock shows."""

# ISO 8601 text


_TIME = re.compile(r"(\d{4}-\d\d-\d\d)([Tt ])(\d\d):(\d\d)(?::(\d\d)(?:([.,])(\d+))?)?([ UTCZz+-].*)?", re.ASCII)
_ZONE = re.compile(r" ?(?:[Zz]|UTC|([+-])(\d\d)(?::?(\d\d))?)", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class IsoTime(NamedTuple):
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
def read_time(text: str) -> IsoTime | None:
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
    return IsoTime(
        local, fraction.rstrip("0"), offset, separator, point or ".", len(fraction) if second else None, zone
    )


def write_time(local: int, fraction: str, like: IsoTime) -> str:
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


_TO_HOUR = len("2024-05-01T10:")
_TO_MINUTE = len("2024-05-01T10:00")
_TO_SECOND = len("2024-05-01T10:00:00")
_TO_MICRO = len("2024-05-01T10:00:00.123456")
_SIZES = frozenset((_TO_SECOND, *range(_TO_MICRO - 5, _TO_MICRO + 1)))
"""Lengths of what Python parses as we do, without its zone."""
_OTHERS = 7
"""Times of other hours after which one of these is remembered: if each row has its own, all of them would cost more.

It is odd, for a source may write offsets in turn."""
_UNREAD = (TypeError, ValueError, LookupError, OverflowError)


def form_of_times(first: IsoTime, zone: tzinfo | None) -> KeyForm:
    """Return what the keys are in a column of times as text; `zone` is whose clock naive ones are."""
    if first.zone == "Z" and first.digits is not None and first.digits <= MICRO:
        return keys.Datetimes(UTC)
    east = first.offset
    if east is None:
        east = 0 if zone is None else round(keys.offset_at(first.local, zone).total_seconds())
    return Texts(first.separator, first.point, first.digits, first.zone, east)


def of_times(slow: ToKey, first: IsoTime, zone: tzinfo | None) -> ToKey:
    """Return what makes the keys of times as text; `zone` is whose clock naive ones are."""
    form = form_of_times(first, zone)
    if not isinstance(form, Texts):
        return _of_utc_text(slow, first.separator)
    return _of_own_text(slow, form, None if first.zone or keys.is_fixed(zone) else zone)


def _of_utc_text(slow: ToKey, separator: str) -> ToKey:
    """Return what makes datetimes in UTC, of times with seconds and `Z`."""
    mark, whole = f"--{separator}::", _TO_SECOND + len("Z")
    low = high = ""  # text between them begins with an hour that was seen
    others = 0

    def utc(value: Any) -> Any:
        try:
            if low <= value < high and value[_TO_MINUTE] == ":" and value[-1] == "Z":
                size = len(value)
                if size == whole or (value[_TO_SECOND] in ".," and size - 1 in _SIZES):
                    return _parse(value)
            return other(value)
        except _UNREAD:
            return slow(value)

    def other(value: str) -> Any:
        """Make the key of a time in another hour, or with an offset such as `+02:00`."""
        nonlocal low, high, others
        is_utc = value[-1] == "Z"
        size = len(value) - len("Z" if is_utc else "+02:00")
        is_known = value[4 : _TO_SECOND - 1 : 3] == mark and (is_utc or value[size] in "+-")
        if not is_known or (size > _TO_SECOND and value[_TO_SECOND] not in ".,") or size not in _SIZES:
            return slow(value)
        key = _parse(value)
        if not is_utc:
            return key.astimezone(UTC)
        others += 1
        if not others % _OTHERS:
            low, high = _hour(value)
        return key

    return utc


def _hour(value: str) -> tuple[str, str]:
    """Return the least text that begins with the same hour, and what follows all such text."""
    return value[:_TO_HOUR], value[: _TO_HOUR - 1] + ";"


def _of_own_text(slow: ToKey, form: Texts, zone: tzinfo | None) -> ToKey:
    """Return what makes the keys of times that are their own keys where they are written as the first one.

    `zone` is whose clock naive times are, if its offset changes.
    """
    offset_of = None if zone is None else _offsets_of(zone)
    exact = _of_any_text(slow, form, offset_of)
    other = exact if form.digits else _of_other_hours(exact, form, offset_of)
    end, home, digits, point = form.end, form.zone, form.digits, form.point
    clocks = _clocks(home, has_seconds=digits is not None)
    size = end + len(home)
    low = high = ""  # text between them begins with an hour that was seen, with the offset of the keys
    others = 0

    def own(value: Any) -> Any:
        nonlocal low, high, others
        try:
            if low <= value < high:
                if not digits:
                    if value[_TO_HOUR:] in clocks:
                        return value
                elif len(value) == size and value[_TO_SECOND] == point:
                    text = value[:end]
                    if text + home == value and _parse(text).tzinfo is None:
                        return value
            key = other(value)
            others += 1
            if not others % _OTHERS and key == value and _is_steady(value, offset_of):
                low, high = _hour(value)
            return key
        except _UNREAD:
            return slow(value)

    return own


def _of_other_hours(exact: ToKey, form: Texts, offset_of: OffsetOf | None) -> ToKey:
    """Return what makes the keys of times without a fraction in other hours; those of other offsets are remembered."""
    end, home, marks = form.end, form.zone, f"--{form.separator}:"
    clocks = _clocks(home, has_seconds=form.digits is not None)
    heads: dict[str, str] = {}  # what keys begin with, by the hour and the offset as they are written

    def other(value: str) -> Any:
        hour, clock, tail = value[:_TO_HOUR], value[_TO_HOUR:end] + home, value[end:]
        if clock in clocks:
            if tail != home or offset_of is not None:
                head = heads.get(hour + tail)
                if head is not None:
                    return head + clock
            elif hour[4::3] == marks and (_parse(hour[:-1]).hour > 0 or hour[-2] == "0"):  # not the hour 24
                return value
        key = exact(value)
        if clock in clocks and key[_TO_HOUR:] == clock and _is_steady(hour, offset_of):
            if len(heads) >= REMEMBERED:
                heads.clear()
            heads[hour + tail] = key[:_TO_HOUR]
        return key

    return other


def _is_steady(value: str, offset_of: OffsetOf | None) -> bool:
    """Tell whether an offset is the same for the whole hour that a text begins with."""
    if offset_of is None:
        return True
    begin = _parse(value[: _TO_HOUR - 1])
    return bool(offset_of(begin) == offset_of(begin + timedelta(seconds=HOUR - 1)))


def _of_any_text(slow: ToKey, form: Texts, offset_of: OffsetOf | None) -> ToKey:
    """Return what makes the keys of times in any hour, with any offset and number of digits."""
    home, zone, point, marks = timedelta(seconds=form.east), form.zone, form.point, f"--{form.separator}::"
    shifts: dict[str, timedelta] = {}  # from an offset as written to that of the keys

    def exact(value: str) -> Any:
        text, shift = value, None
        if zone:
            tail = zone if value.endswith(zone) else "Z" if value[-1] == "Z" else value[-len("+00:00") :]
            shift = shifts.get(tail)
            if shift is None:
                shift = shifts[tail] = home - _offset_of(tail)
            text = value[: -len(tail)]
        whole, fraction = text[:_TO_SECOND], text[_TO_SECOND:]
        if len(whole) == _TO_MINUTE:
            whole += ":00"
        is_time = whole[4::3] == marks and whole[_TO_HOUR - 3 : _TO_HOUR - 1] != "24"
        if fraction:
            is_time = is_time and fraction[0] == point and fraction[1:].isdecimal() and fraction.isascii()
        if not is_time:
            return slow(value)
        at = _parse(whole)
        if offset_of is not None:
            shift = home - offset_of(at)
        return form.written((at + shift).isoformat(form.separator) if shift else whole, fraction[1:].rstrip("0"))

    return exact


@lru_cache(maxsize=16)  # most sources write one or two zones
def _clocks(zone: str, *, has_seconds: bool) -> frozenset[str]:
    """Return all minutes and seconds that there are, as they stand before a zone."""
    seconds = [f":{second:02}" for second in range(MINUTE)] if has_seconds else [""]
    return frozenset(f"{minute:02}{second}{zone}" for minute in range(60) for second in seconds)


def _offset_of(zone: str) -> timedelta:
    """Return the offset of a zone as written.

    Raises:
        LookupError: it is none.

    """
    east = _seconds_east(zone)
    if east is None:
        raise LookupError(zone)
    return timedelta(seconds=east)


def _offsets_of(zone: tzinfo) -> OffsetOf:
    """Return what tells the offset of a zone at what its clock shows; of two such moments the earlier's."""
    if type(zone) in (ZoneInfo, timezone):  # which need no datetime of their own
        return zone.utcoffset
    return lambda at: at.replace(tzinfo=zone).utcoffset()


# All of them


class Plain:
    """The spelling of values without a `cursor_format`; see `spellings.IsoTime`."""

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
            raise TypeError(f"a bool is not a cursor value: {value!r}")
        if isinstance(value, int):
            return "number", value
        if isinstance(value, float | Decimal):
            if not math.isfinite(value):
                raise ValueError(f"{value!r} is not a cursor value: numbers must be finite")
            return "number", value
        if isinstance(value, date):
            return self._clock.dated(value)
        if hasattr(value, "dtype") and hasattr(value, "item"):  # a numpy scalar
            return self.read(_from_numpy(value))
        raise TypeError(
            f"a {type(value).__name__} is not a cursor value: use an int, float, Decimal, date, datetime or str, or a "
            "cursor_field callable that returns one"
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
            raise TypeError(f"{value!r} cannot be moved by months: only dates and times can")
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
        return keys.TEXTS if written is None else form_of_times(written, self._clock.zone)

    def quick(self, slow: ToKey, first: Any) -> ToKey:
        """Return what makes the keys of values like the first one."""
        if isinstance(first, datetime):
            return keys.of_datetimes(slow, first, self._clock.zone)
        if isinstance(first, date):
            return keys.remembering(slow, date)
        if not isinstance(first, str):
            return keys.of_numbers(slow, first)
        written = read_time(first)
        return keys.remembering(slow, str) if written is None else of_times(slow, written, self._clock.zone)


def _from_numpy(value: Any) -> Any:
    """Return a numpy scalar as what Python has for it; times as text, of all their digits."""
    return str(value) if value.dtype.kind == "M" else value.item()


def plain_python(value: Any) -> Any:
    """Return a value without numpy's types, which JSON does not have."""
    return _from_numpy(value) if hasattr(value, "dtype") and hasattr(value, "item") else value
