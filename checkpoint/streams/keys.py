"""Comparable keys of instants and wall clocks, and the functions that make them quickly for one column.

A moment is `(seconds since 1970, fraction digits without trailing zeros)`: exact at any number of digits. Rows are
compared by a key that costs less to make:

    text       `2024-05-01T10:00:00.12`, in UTC for instants: trailing zeros are left out, so text order is time order
    datetimes  datetimes; `Finer` where a datetime cannot hold the moment

The first value of a column chooses one of them. A function made here takes the shape of that first value at full
speed, and gives every other value to `slow`, which returns the same keys, or None for a missing value.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, TypeAlias

from checkpoint.streams.spellings import DAY, EPOCH_DAY, HOUR, MINUTE, Written, read_time, write_day

Moment: TypeAlias = tuple[int, str]
ToKey: TypeAlias = Callable[[Any], Any]

MICRO = 6
"""Fraction digits of a datetime."""
REMEMBERED = 1 << 15
"""Hours or days whose keys are kept; then the memory begins anew."""

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - of a wall clock
_FIRST_DAY, _LAST_DAY = date.min.toordinal() - EPOCH_DAY, date.max.toordinal() - EPOCH_DAY
_TO_HOUR, _TO_MINUTE, _TO_SECOND = len("2024-05-01T10"), len("2024-05-01T10:00"), len("2024-05-01T10:00:00")


# Text


def text_key(moment: Moment) -> str:
    """Return a moment as text that sorts as it does.

    An offset may carry a time out of the years 1 to 9999 by less than a day: those are hours beyond 23 of the last
    day, and the day before the first.
    """
    seconds, fraction = moment
    days, rest = divmod(seconds, DAY)
    if days > _LAST_DAY:
        days, rest = _LAST_DAY, rest + (days - _LAST_DAY) * DAY
    day = write_day(days) if days >= _FIRST_DAY else "0000-12-31"
    clock = f"{day}T{rest // HOUR:02}:{rest % HOUR // MINUTE:02}:{rest % MINUTE:02}"
    return f"{clock}.{fraction}" if fraction else clock


def _moment_of_text(key: str) -> Moment:
    day = key[:10]
    days = _FIRST_DAY - 1 if day == "0000-12-31" else date.fromisoformat(day).toordinal() - EPOCH_DAY
    return days * DAY + int(key[11:13]) * HOUR + int(key[14:16]) * MINUTE + int(key[17:19]), key[20:]


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
    seconds, fraction = moment
    if len(fraction) > MICRO:
        return Finer.of(moment, zone)
    try:
        naive = EPOCH + timedelta(seconds=seconds, microseconds=int(fraction.ljust(MICRO, "0")))
        return naive if zone is None else naive.replace(tzinfo=UTC).astimezone(zone)
    except OverflowError:
        return Finer.of(moment, zone)


def moment_of(key: str | datetime) -> Moment:
    """Return what a key was made of."""
    if isinstance(key, str):
        return _moment_of_text(key)
    if isinstance(key, Finer):
        return key.moment
    since = key.replace(tzinfo=None) - EPOCH - (key.utcoffset() or timedelta())
    fraction = f"{since.microseconds:06}".rstrip("0") if since.microseconds else ""
    return since.days * DAY + since.seconds, fraction


def is_fixed(zone: tzinfo | None) -> bool:
    """Tell whether a clock is never put forward or back."""
    return zone is None or isinstance(zone, timezone) or getattr(zone, "key", None) in ("UTC", "Etc/UTC")


def offset_at(local: int, zone: tzinfo) -> timedelta:
    """Return the offset of a zone at what its clock shows; of two such moments the earlier's."""
    try:
        return (EPOCH + timedelta(seconds=local)).replace(tzinfo=zone).utcoffset() or timedelta()
    except OverflowError:
        return timedelta()


# Columns of datetimes and dates


def of_datetimes(slow: ToKey, first: datetime, zone: tzinfo | None) -> tuple[ToKey, tzinfo | None]:
    """Return what makes the keys of datetimes, and the zone that they are in: None for naive ones."""
    if first.tzinfo is None:
        return (_of_naive(slow), None) if zone is None else (_of_naive_in(slow, zone), UTC)
    home = first.tzinfo if type(first) is datetime and is_fixed(first.tzinfo) else UTC

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

    return aware, home


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


# Columns of text


class _Zone:
    """What is known of times with one zone as written: their hours as keys, and what follows the hour.

    `cut` is where a value is cut in two: behind the hour, or behind the minute where the offset is no whole hour.
    """

    __slots__ = ("clocks", "cut", "heads", "size")

    def __init__(self, zone: str, cut: int) -> None:
        self.size = len(zone)
        self.cut = cut
        self.heads: dict[str, str] = {}  # up to the cut, as key
        self.clocks: dict[str, str] = {}  # from the cut to the fraction or the end, with the zone where it is the end

    def learn(self, value: str, key: str, written: Written) -> None:
        """Remember the hour of a value, and its place in the hour."""
        cut = self.cut
        if len(self.heads) >= REMEMBERED:
            self.heads.clear()
        self.heads[value[:cut]] = key[:cut]
        clock = value[cut : _TO_MINUTE if written.digits is None else _TO_SECOND]
        self.clocks[clock + written.zone] = key[cut:_TO_SECOND]
        if written.digits:
            self.clocks[clock + "."] = key[cut:_TO_SECOND] + "."


def of_iso_text(slow: ToKey, first: str, zone: tzinfo | None) -> ToKey:
    """Return what makes the keys of ISO 8601 times; `zone` is whose clock naive ones are."""
    zones: dict[str, _Zone] = {}

    def learn(value: Any) -> Any:
        """Make a key the slow way, and remember the hour for the next value."""
        key = slow(value)
        if key is None or not isinstance(value, str) or value[11:13] == "24" or value[17:19] == "60":
            return key
        written = read_time(value)
        offset = None if written is None else _steady_offset(written, zone)
        if written is None or offset is None or offset % MINUTE:
            return key
        cut = _TO_MINUTE if offset % HOUR else _TO_HOUR
        known = zones.setdefault(written.zone, _Zone(written.zone, cut))
        if known.cut in (cut, _TO_MINUTE):
            known.learn(value, key, written)
        return key

    written = read_time(first)
    learn(first)
    home = "" if written is None else written.zone
    return _of_text(learn, zones, home, fractional=written is not None and bool(written.digits))


def _of_text(learn: ToKey, zones: dict[str, _Zone], zone: str, *, fractional: bool) -> ToKey:
    """Return what makes the keys of times: quickest of those in one zone, with a fraction or without one."""
    home = zones.setdefault(zone, _Zone(zone, _TO_HOUR))
    cut, heads, clocks, end = home.cut, home.heads, home.clocks, -home.size or None

    def whole(value: Any) -> Any:
        try:
            clock = clocks.get(value[cut:])
            return fraction(value) if clock is None else heads[value[:cut]] + clock
        except (LookupError, TypeError):
            return learn(value)

    def fraction(value: Any) -> Any:
        try:
            digits = value[20:end]
            if digits.isdecimal() and digits.isascii() and (end is None or value[end:] == zone):
                key = heads[value[:cut]] + clocks[value[cut:20]] + digits
                return key if digits[-1] != "0" else key.rstrip("0").rstrip(".")
            return other(value)
        except (LookupError, TypeError, AttributeError):
            return learn(value)

    def other(value: str) -> Any:
        """Make the key of a time in another zone, or without a fraction."""
        known = zones.get(value[-6:]) or zones.get(value[-1:]) or zones.get(value[-5:]) or home
        heads, cut, end = known.heads, known.cut, -known.size or None
        clock = known.clocks.get(value[cut:])
        if clock is not None:
            return heads[value[:cut]] + clock
        digits = value[20:end]
        if known is not home and digits.isdecimal() and digits.isascii():
            return (heads[value[:cut]] + known.clocks[value[cut:20]] + digits).rstrip("0").rstrip(".")
        return learn(value)

    return fraction if fractional else whole


def _steady_offset(written: Written, zone: tzinfo | None) -> int | None:
    """Return the offset in seconds, where it is the same for the whole hour; None: it is not."""
    if written.offset is not None:
        return written.offset
    if zone is None:
        return 0
    start = written.local - written.local % HOUR
    offset = offset_at(start, zone)
    same = offset == offset_at(start + HOUR - 1, zone) == offset_at(written.local, zone)
    return offset.days * DAY + offset.seconds if same and not offset.microseconds else None


# Columns of numbers


def of_ints(slow: ToKey) -> ToKey:
    """Return what makes the keys of integers, which are their own."""

    def integer(value: Any) -> Any:
        return value if type(value) is int else slow(value)

    return integer


def of_decimals(slow: ToKey) -> ToKey:
    """Return what makes the keys of Decimals, which are their own."""

    def number(value: Any) -> Any:
        return value if type(value) is Decimal and value.is_finite() else slow(value)

    return number


def of_floats(slow: ToKey) -> ToKey:
    """Return what makes the keys of floats and integers, which are their own."""

    def number(value: Any) -> Any:
        if (type(value) is float and value - value == 0) or type(value) is int:
            return value
        return slow(value)

    return number
