"""How instants and days are written as ISO 8601 text.

A time is a date, a `T`, `t` or space, and a clock: `2024-05-01T10:00:00.123Z`. The fraction may have any number of
digits, after `.` or `,`; `24:00` is the end of the day; the zone is `Z`, `z`, `UTC`, or `±hh[[:]mm]`, with or without
a space before it. The basic form (`20240501T100000Z`) and week dates are not read.
"""

from __future__ import annotations

import re
from datetime import date
from typing import NamedTuple

DAY, HOUR, MINUTE = 86_400, 3_600, 60
EPOCH_DAY = date(1970, 1, 1).toordinal()

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)([Tt ])(\d\d):(\d\d)(?::(\d\d)(?:([.,])(\d+))?)?( ?(?:[Zz]|UTC|[+-]\d\d(?::?\d\d)?))?", re.ASCII
)
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


def read_time(text: str) -> Written | None:
    """Read a time; None where the text is none."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    day, separator, hour, minute, second, point, fraction, zone = match.groups()
    that_day = read_day(day)
    hours, minutes, seconds = int(hour), int(minute), int(second or 0)
    if that_day is None or not _on_a_clock(hours, minutes, seconds, fraction):
        return None
    offset = _offset(zone)
    if offset is not None and abs(offset) >= DAY:
        return None
    local = (that_day.toordinal() - EPOCH_DAY) * DAY + hours * HOUR + minutes * MINUTE + seconds
    digits = None if second is None else len(fraction or "")
    return Written(local, (fraction or "").rstrip("0"), offset, separator, point or ".", digits, zone or "")


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


def write_day(days: int) -> str:
    """Write a day, counted since 1970, as `YYYY-MM-DD`.

    Raises:
        ValueError, OverflowError: outside the years 1 to 9999.

    """
    return date.fromordinal(days + EPOCH_DAY).isoformat()


def _on_a_clock(hours: int, minutes: int, seconds: int, fraction: str | None) -> bool:
    """Tell whether there is such a time of day; 60 is a leap second, and 24:00 the end of the day."""
    if hours == 24:
        return not (minutes or seconds or (fraction or "").strip("0"))
    return hours < 24 and minutes < MINUTE and seconds <= MINUTE


def _offset(zone: str | None) -> int | None:
    if zone is None:
        return None
    zone = zone.strip()
    if zone in ("Z", "z", "UTC"):
        return 0
    seconds = int(zone[1:3]) * HOUR + int(zone[3:].lstrip(":") or 0) * MINUTE
    return -seconds if zone[0] == "-" else seconds
