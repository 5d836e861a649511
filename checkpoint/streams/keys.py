"""Comparable keys of instants and wall clocks, and the functions that make them quickly for one column.

A moment is `(seconds since 1970, fraction digits without trailing zeros)`: exact at any number of digits. Rows are
compared by a key that costs less to make:

    datetimes  datetimes; `Finer` where a datetime cannot hold the moment
    text       `2024-05-01T10:00:00.120+02:00`, all in the zone of the first one; see `Texts`

The first value of a column chooses one of them. A function made here takes the spelling of that first value at full
speed, and gives every other value to `slow`, which returns the same keys, or None for a missing value.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import lru_cache, total_ordering
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Kind: TypeAlias = Literal["number", "instant", "wall", "text"]
Moment: TypeAlias = tuple[int, str]
ToKey: TypeAlias = Callable[[Any], Any]

MICRO = 6
"""Fraction digits of a datetime."""
REMEMBERED = 1 << 15
"""How many spellings are cached; when the cache is full it is emptied."""

DAY, HOUR, MINUTE = 86_400, 3_600, 60
EPOCH_DAY = date(1970, 1, 1).toordinal()
UTC = timezone.utc
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - of a wall clock
_FIRST_DAY, _LAST_DAY = date.min.toordinal() - EPOCH_DAY, date.max.toordinal() - EPOCH_DAY
YEAR_ONE = _FIRST_DAY * DAY


@total_ordering
class _Least:
    """Lower than every key; stands for a bound that does not exist."""

    def __lt__(self, other: object) -> bool:
        return self is not other


@total_ordering
class _Greatest:
    """Above every key."""

    def __gt__(self, other: object) -> bool:
        return self is not other


LOWEST: Any = _Least()
HIGHEST: Any = _Greatest()


def write_day(days: int) -> str:
    """Write a day, counted since 1970, as `YYYY-MM-DD`.

    Raises:
        ValueError, OverflowError: outside the years 1 to 9999.

    """
    return date.fromordinal(days + EPOCH_DAY).isoformat()


# Datetimes


class Finer(datetime):
    """A moment that a datetime cannot hold: of more digits, or outside its years. It compares exactly with them."""

    moment: Moment

    @classmethod
    def of(cls, moment: Moment, zone: tzinfo | None) -> Finer:
        """Return the key of a moment; aware where a zone is given."""
        key = cls(1970, 1, 1, tzinfo=zone)
        key.moment = moment
        return key

    def __lt__(self, other: Any) -> bool:
        return self.moment < moment_of(other) if isinstance(other, datetime) else NotImplemented

    def __le__(self, other: Any) -> bool:
        return self.moment <= moment_of(other) if isinstance(other, datetime) else NotImplemented

    def __gt__(self, other: Any) -> bool:
        return self.moment > moment_of(other) if isinstance(other, datetime) else NotImplemented

    def __ge__(self, other: Any) -> bool:
        return self.moment >= moment_of(other) if isinstance(other, datetime) else NotImplemented

    def __eq__(self, other: object) -> bool:
        return isinstance(other, datetime) and self.moment == moment_of(other)

    def __hash__(self) -> int:
        return hash(self.moment)


def datetime_key(moment: Moment, zone: tzinfo | None) -> datetime:
    """Return a moment as a datetime of a zone; None: naive, as its clock shows it."""
    if len(moment[1]) > MICRO:
        return Finer.of(moment, zone)
    try:
        at = _in_utc(moment)
        return at.replace(tzinfo=None) if zone is None else at if zone is UTC else at.astimezone(zone)
    except OverflowError:
        return Finer.of(moment, zone)


@lru_cache(maxsize=64)  # a claim asks for the same few moments again and again
def _in_utc(moment: Moment) -> datetime:
    seconds, fraction = moment
    return (EPOCH + timedelta(seconds=seconds, microseconds=int(fraction.ljust(MICRO, "0")))).replace(tzinfo=UTC)


def moment_of(key: datetime) -> Moment:
    """Return what a datetime was made of."""
    if type(key) is Finer:  # not isinstance: where a clock is frozen, datetime may be a class that says yes to all
        return key.moment
    since = key.replace(tzinfo=None) - EPOCH - (key.utcoffset() or timedelta())
    nanos = getattr(key, "nanosecond", 0)  # of pandas
    fraction = f"{since.microseconds:06}{nanos:03}".rstrip("0") if since.microseconds or nanos else ""
    return since.days * DAY + since.seconds, fraction


def clock_of(value: datetime) -> int | None:
    """Return a naive datetime as seconds since 1970 on its own clock; None: it has a time zone."""
    return None if value.tzinfo is not None else moment_of(value.replace(fold=0))[0]


def is_fixed(zone: tzinfo | None) -> bool:
    """Tell whether a zone has a fixed offset from UTC."""
    return zone is None or isinstance(zone, timezone) or getattr(zone, "key", None) in ("UTC", "Etc/UTC")


def offset_at(local: int, zone: tzinfo) -> timedelta:
    """Return the offset of a zone at a local time; if the local time occurs twice, that of the earlier moment."""
    try:
        return (EPOCH + timedelta(seconds=local)).replace(tzinfo=zone).utcoffset() or timedelta()
    except OverflowError:
        return timedelta()


def begin_of_repeated(local: int, zone: tzinfo) -> int | None:
    """Return the begin of the repeated span that a local time lies in; None: it lies in none."""
    if not _is_repeated(local, zone):
        return None
    outside = local
    while _is_repeated(outside, zone):
        outside -= HOUR
    while local - outside > 1:
        middle = (local + outside) // 2
        local, outside = (middle, outside) if _is_repeated(middle, zone) else (local, middle)
    return local


def _is_repeated(local: int, zone: tzinfo) -> bool:
    try:
        shown = (EPOCH + timedelta(seconds=local)).replace(tzinfo=zone)
        return (shown.utcoffset() or timedelta()) > (shown.replace(fold=1).utcoffset() or timedelta())
    except OverflowError:
        return False


class KeyForm(Protocol):
    """What the keys of moments are.

    All keys but those of improbable years lie between `low` and `high`.
    """

    @property
    def low(self) -> Any:
        """A key below the usual ones."""
        ...

    @property
    def high(self) -> Any:
        """A key above the usual ones."""
        ...

    def key(self, moment: Moment) -> Any:
        """Return the key of a moment."""
        ...

    def moment(self, key: Any) -> Moment:
        """Return the moment that a key was made of."""
        ...


LAST_TEXT = "\U0010ffff"


class Texts(NamedTuple):
    """Keys that are text: a time with some digits of its second, a zone, and behind it the digits that are left.

    A key ends without zeros behind the zone, so that text order is time order. An offset may carry a value out of the
    years 1 to 9999 by less than two days: those are hours beyond 23 of the last day, and days before the first.
    """

    separator: str = "T"
    """What stands between date and clock."""
    point: str = "."
    digits: int | None = 0
    """How many there are of the fraction before the zone; None: not even seconds."""
    zone: str = ""
    east: int = 0
    """Seconds that the zone is ahead of UTC."""

    @property
    def low(self) -> str:
        """See `KeyForm`."""
        return ""

    @property
    def high(self) -> str:
        """See `KeyForm`."""
        return LAST_TEXT

    @property
    def end(self) -> int:
        """Where the zone stands in a key."""
        return len("2024-05-01T10:00") if self.digits is None else len("2024-05-01T10:00:00") + self._places

    @property
    def _places(self) -> int:
        return self.digits + len(self.point) if self.digits else 0

    def key(self, moment: Moment) -> str:
        """See `KeyForm`."""
        seconds, fraction = moment
        days, rest = divmod(seconds + self.east, DAY)
        if days > _LAST_DAY:
            days, rest = _LAST_DAY, rest + (days - _LAST_DAY) * DAY
        day = write_day(days) if days >= _FIRST_DAY else f"0000-12-{32 + days - _FIRST_DAY}"
        clock = f"{rest // HOUR:02}:{rest % HOUR // MINUTE:02}:{rest % MINUTE:02}"
        return self.written(f"{day}{self.separator}{clock}", fraction)

    def written(self, whole: str, fraction: str) -> str:
        """Return the key of a time to the second, in the zone of the keys, and the digits of its fraction."""
        if self.digits is None:
            return whole[: self.end] + self.zone + (whole[-2:] + fraction).rstrip("0")
        if not self.digits:
            return whole + self.zone + fraction
        places = fraction[: self.digits].ljust(self.digits, "0")
        return whole + self.point + places + self.zone + fraction[self.digits :]

    def moment(self, key: str) -> Moment:
        """See `KeyForm`."""
        day, end = key[:10], self.end
        is_before = day.startswith("0000")
        days = _FIRST_DAY - 32 + int(day[8:]) if is_before else date.fromisoformat(day).toordinal() - EPOCH_DAY
        left = key[end + len(self.zone) :]
        if self.digits is None:
            second, fraction = left[:2].ljust(2, "0"), left[2:]
        else:
            second, fraction = key[17:19], (key[20:end] + left).rstrip("0")
        return days * DAY + int(key[11:13]) * HOUR + int(key[14:16]) * MINUTE + int(second) - self.east, fraction


TEXTS = Texts()


class Datetimes(NamedTuple):
    """Keys that are datetimes of one zone; None: naive ones."""

    zone: tzinfo | None

    @property
    def low(self) -> datetime:
        """See `KeyForm`."""
        return datetime.min.replace(tzinfo=self.zone)

    @property
    def high(self) -> datetime:
        """See `KeyForm`."""
        return datetime.max.replace(tzinfo=self.zone)

    def key(self, moment: Moment) -> datetime:
        """See `KeyForm`."""
        return datetime_key(moment, self.zone)

    def moment(self, key: datetime) -> Moment:
        """See `KeyForm`."""
        return moment_of(key)


class Clock(NamedTuple):
    """The time zone of times that name none."""

    zone: tzinfo | None
    """None: nobody said."""

    def timed(self, local: int, fraction: str, offset: int | None) -> tuple[Kind, Moment]:
        """Return the kind and the moment of what a clock shows, with the offset that stands beside it."""
        if offset is None and self.zone is not None:
            shift = offset_at(local, self.zone)
            offset = shift.days * DAY + shift.seconds
        return ("wall", (local, fraction)) if offset is None else ("instant", (local - offset, fraction))

    def dated(self, value: date) -> tuple[Kind, Moment]:
        """Return the kind and the moment of a date, which is its midnight, or of a datetime."""
        if not isinstance(value, datetime):
            return self.timed((value.toordinal() - EPOCH_DAY) * DAY, "", None)
        if value.tzinfo is None and self.zone is not None:
            value = value.replace(tzinfo=self.zone)
        return "wall" if value.utcoffset() is None else "instant", moment_of(value)

    def local(self, seconds: int) -> int:
        """Return what the clock shows; UTC where nobody said whose it is."""
        if self.zone is None:
            return seconds
        offset = (EPOCH.replace(tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(self.zone).utcoffset()
        offset = offset or timedelta()
        return seconds + offset.days * DAY + offset.seconds


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


# Columns of datetimes and dates


def home_of(first: datetime, zone: tzinfo | None) -> tzinfo | None:
    """Return the zone of the keys in a column of datetimes; None: naive ones, of which nobody said whose they are."""
    if first.tzinfo is None:
        return None if zone is None else UTC
    return first.tzinfo if type(first) is datetime and is_fixed(first.tzinfo) else UTC


def of_datetimes(slow: ToKey, first: datetime, zone: tzinfo | None) -> ToKey:
    """Return what makes the keys of datetimes."""
    if first.tzinfo is None:
        return _of_naive(slow) if zone is None else _of_naive_in(slow, zone)
    home = home_of(first, zone)

    def aware(value: Any) -> Any:
        if type(value) is datetime:
            at = value.tzinfo
            if at is home:
                return value
            if at is not None:
                try:
                    return value.astimezone(home)
                except OverflowError:
                    pass
        return slow(value)

    return aware


def _of_naive(slow: ToKey) -> ToKey:
    def naive(value: Any) -> Any:
        return value if type(value) is datetime and value.tzinfo is None else slow(value)

    return naive


def _of_naive_in(slow: ToKey, zone: tzinfo) -> ToKey:
    def naive(value: Any) -> Any:
        if type(value) is datetime and value.tzinfo is None:
            try:
                return value.replace(tzinfo=zone).astimezone(UTC)
            except OverflowError:
                pass
        return slow(value)

    return naive


def remembering(slow: ToKey, of: type[date | str]) -> ToKey:
    """Return what looks keys up by the whole value: for days, of which there are few."""
    known: dict[Any, Any] = {}

    def day(value: Any) -> Any:
        if type(value) is of:
            key = known.get(value)
            if key is None:
                key = slow(value)
                if len(known) >= REMEMBERED:
                    known.clear()
                if key is not None:
                    known[value] = key
            return key
        return slow(value)

    return day


class Counted(Sequence[Any]):
    """What is made of whole numbers, in whose order it lies; each is made where it is looked at.

    Args:
        counts: the numbers.
        of: makes one.

    """

    __slots__ = ("_of", "counts")

    def __init__(self, counts: list[int], of: Callable[[int], Any]) -> None:
        self.counts: list[int] = counts
        self._of = of

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: Any) -> Any:
        counts: Any = self.counts
        return self._of(counts[index])

    def keys(self, key: ToKey) -> Counted:
        """Return the keys of all of it."""
        of = self._of
        return Counted(self.counts, lambda count: key(of(count)))


# Columns of numbers


def of_numbers(slow: ToKey, first: Any) -> ToKey:
    """Return what makes the keys of numbers, which are their own, and of digits where the first one is text."""
    if isinstance(first, str):
        return _of_digits(slow)
    return _of_decimals(slow) if isinstance(first, Decimal) else _of_floats(slow)


def _of_digits(slow: ToKey) -> ToKey:
    def digits(value: Any) -> Any:
        if type(value) is str and value.isascii():
            if value.isdecimal() and len(value) < _LONG:
                return int(value)
            whole, _, fraction = value.partition(".")
            if whole.isdecimal() and fraction.isdecimal():
                return Decimal(value)
        return slow(value)

    return digits


_LONG = 1_000
"""Digits from which on a number is read as a Decimal, for which Python has no limit."""


def _of_decimals(slow: ToKey) -> ToKey:
    def number(value: Any) -> Any:
        return value if type(value) is Decimal and value.is_finite() else slow(value)

    return number


def _of_floats(slow: ToKey) -> ToKey:
    def number(value: Any) -> Any:
        if (type(value) is float and value - value == 0) or type(value) is int:
            return value
        return slow(value)

    return number


def of_text(slow: ToKey) -> ToKey:
    """Return what makes the keys of text, which is its own."""

    def text(value: Any) -> Any:
        return value if type(value) is str and value else slow(value)

    return text
