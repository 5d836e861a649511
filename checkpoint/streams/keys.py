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
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from checkpoint.streams.iso import DAY, EPOCH_DAY, HOUR, MINUTE, read_time, write_day

Kind: TypeAlias = Literal["number", "instant", "wall", "text"]
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
    if type(key) is Finer:  # not isinstance: where a clock is frozen, datetime may be a class that says yes to all
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


def begin_of_repeated(local: int, zone: tzinfo) -> int | None:
    """Return when the span begins that a clock shows twice, where what it shows lies in one; None: it does not."""
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


class Form(Protocol):
    """What the keys of moments are."""

    def key(self, moment: Moment) -> Any:
        """Return the key of a moment."""
        ...

    def moment(self, key: Any) -> Moment:
        """Return the moment that a key was made of."""
        ...


class Texts:
    """Keys that are text."""

    def key(self, moment: Moment) -> str:
        """See `Form`."""
        return text_key(moment)

    def moment(self, key: str) -> Moment:
        """See `Form`."""
        return moment_of(key)


TEXTS = Texts()


class Datetimes(NamedTuple):
    """Keys that are datetimes of one zone; None: naive ones."""

    zone: tzinfo | None

    def key(self, moment: Moment) -> datetime:
        """See `Form`."""
        return datetime_key(moment, self.zone)

    def moment(self, key: datetime) -> Moment:
        """See `Form`."""
        return moment_of(key)


class Clock(NamedTuple):
    """Whose clock it is that times without a zone were read from."""

    zone: tzinfo | None
    """None: nobody said."""

    def timed(self, local: int, fraction: str, offset: int | None) -> tuple[Kind, Moment]:
        """Return the kind and the moment of what a clock shows, with the offset that stands beside it."""
        if offset is None and self.zone is not None:
            shift = offset_at(local, self.zone)
            offset = shift.days * DAY + shift.seconds
        return ("wall", (local, fraction)) if offset is None else ("instant", (local - offset, fraction))

    def local(self, seconds: int) -> int:
        """Return what the clock shows; UTC where nobody said whose it is."""
        if self.zone is None:
            return seconds
        offset = (EPOCH.replace(tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(self.zone).utcoffset()
        offset = offset or timedelta()
        return seconds + offset.days * DAY + offset.seconds


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


# Columns of text


_MINUTES = len("00")
Span: TypeAlias = Callable[[str], "tuple[int, int, int] | None"]


@lru_cache(maxsize=64)
def _clocks(before: str, between: str | None, end: str) -> dict[str, str]:
    """Return the minutes and seconds that there are, as written and as keys have them; `between` None: no seconds."""
    if between is None:
        return {f"{before}{minute:02}{end}": f":{minute:02}:00" for minute in range(60)}
    return {
        f"{before}{minute:02}{between}{second:02}{end}": f":{minute:02}:{second:02}"
        for minute in range(60)
        for second in range(60)
    }


@lru_cache(maxsize=64)
def _seconds(end: str) -> dict[str, str]:
    """Return the seconds that there are, as written and as keys have them."""
    return {f":{second:02}{end}": f":{second:02}" for second in range(60)} | ({end: ":00"} if end != "." else {})


class _Zone:
    """What is known of times with one zone as written: their hours as keys, and what follows the hour.

    `cut` is where a value is cut in two: behind the hour, or behind the minute where the offset is no whole hour.
    """

    __slots__ = ("_offset", "_whose", "clocks", "cut", "heads", "points", "size")

    def __init__(self, zone: str, offset: int | None, whose: tzinfo | None, cut: int) -> None:
        self.size = len(zone)
        self.cut = cut
        self._offset = None if offset is None else timedelta(seconds=offset)
        self._whose = whose
        self.heads: dict[str, str] = {}
        """Keys up to the cut."""
        self.clocks = _clocks(":", ":", zone) if cut == _TO_HOUR else _seconds(zone)
        """From the cut to the end."""
        self.points = _clocks(":", ":", ".") if cut == _TO_HOUR else _seconds(".")
        """From the cut to the point of a fraction."""

    def learn(self, value: str) -> bool:
        """Remember the hour of a value; False: it was known, or is none, or its offset changes within the hour."""
        head = value[: self.cut]
        if head in self.heads or value[4:14:3] not in _MARKS or value[11:13] == "24":
            return False
        try:
            at = datetime.fromisoformat(value[:_TO_SECOND] if value[16:17] == ":" else value[:_TO_MINUTE])
            offset = self._offset_at(at)
            if offset is None:
                return False
            head_key = f"{value[:10]}T{value[11 : self.cut]}" if not offset else (at - offset).isoformat()[: self.cut]
        except (ValueError, OverflowError):
            return False
        if len(self.heads) >= REMEMBERED:
            self.heads.clear()
        self.heads[head] = head_key
        return True

    def _offset_at(self, at: datetime) -> timedelta | None:
        """Return the offset, where it is the same from the cut to the next one; None: it is not, or no key cuts so."""
        if self._whose is None:
            return self._offset or timedelta()
        start = at.replace(second=0) if self.cut == _TO_MINUTE else at.replace(minute=0, second=0)
        end = start.replace(second=59) if self.cut == _TO_MINUTE else start.replace(minute=59, second=59)
        offset, last = (moment.replace(tzinfo=self._whose).utcoffset() for moment in (start, end))
        whole = timedelta(minutes=1) if self.cut == _TO_MINUTE else timedelta(hours=1)
        return offset if offset is not None and offset == last and not offset % whole else None


_MARKS = frozenset(("--T:", "--t:", "-- :"))
"""What stands between the numbers of a time, up to its minutes."""


@lru_cache(maxsize=64)
def _zone(zone: str, offset: int | None, whose: tzinfo | None, cut: int) -> _Zone:
    """Return what is known of times with a zone as written, or without one and of `whose` clock."""
    return _Zone(zone, offset, whose, cut)


def of_iso_text(slow: ToKey, first: str, zone: tzinfo | None) -> ToKey:
    """Return what makes the keys of ISO 8601 times; `zone` is whose clock naive ones are."""
    zones: dict[str, _Zone] = {}

    def zone_in(value: str) -> _Zone | None:
        if len(zones) == 1 and zone_written and value.endswith(zone_written):
            return home
        for written in sorted(zones, key=len, reverse=True):
            if value.endswith(written):
                return zones[written]
        return add(value)

    def add(value: str) -> _Zone | None:
        written = read_time(value)
        if written is None:
            return None
        offset, whose = written.offset, zone if written.offset is None else None
        shift = timedelta(seconds=offset or 0) if whose is None else offset_at(written.local, whose)
        cut = _TO_MINUTE if shift % timedelta(hours=1) else _TO_HOUR
        return zones.setdefault(written.zone, _zone(written.zone, offset, whose, cut))

    def learn(value: Any) -> Any:
        """Remember the hour of a value, and make its key again; or make it the slow way."""
        known = zone_in(value) if isinstance(value, str) else None
        return quick(value) if known is not None and known.learn(value) else slow(value)

    add(first)
    [(zone_written, home)] = zones.items()
    quick = _of_text(learn, zones, zone_written, fractional="." in first)
    return quick


def _of_text(learn: ToKey, zones: dict[str, _Zone], zone: str, *, fractional: bool) -> ToKey:
    """Return what makes the keys of times: quickest of those in one zone, with a fraction or without one."""
    home = zones[zone]
    cut, heads, clocks, points, end = home.cut, home.heads, home.clocks, home.points, -home.size or None

    def whole(value: Any) -> Any:
        try:
            clock = clocks.get(value[cut:])
            if clock is None:
                return fraction(value)
            return heads[value[:cut]] + clock
        except (LookupError, TypeError):
            return learn(value)

    def fraction(value: Any) -> Any:
        try:
            digits = value[20:end]
            if digits.isdecimal() and digits.isascii() and (end is None or value[end:] == zone):
                head = heads.get(value[:cut])
                if head is None:
                    return learn(value)
                key = f"{head}{points[value[cut:20]]}.{digits}"
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
            return f"{heads[value[:cut]]}{known.points[value[cut:20]]}.{digits}".rstrip("0").rstrip(".")
        return learn(value)

    return fraction if fractional else whole


def steady_offset(local: int, offset: int | None, zone: tzinfo | None) -> int | None:
    """Return the seconds that a clock is ahead of UTC, where they are the same for a whole hour; None: they are not."""
    if offset is not None or zone is None:
        return offset or 0
    start = local - local % HOUR
    shift = offset_at(start, zone)
    same = shift == offset_at(start + HOUR - 1, zone) == offset_at(local, zone)
    return shift.days * DAY + shift.seconds if same and not shift.microseconds else None


def of_split_text(slow: ToKey, first: Any, span: Span, is_whole: Callable[[str], bool]) -> ToKey:
    """Return what makes the keys of times in another form, whose minutes and seconds stand side by side.

    `span` tells of a value where its minutes begin, its seconds end and their fraction ends, counted from the end;
    None where that is in doubt. What stands around them is remembered as an hour, where `is_whole` tells that the
    offset is whole hours for all of it.
    """
    found = span(first)
    if found is None:
        return slow
    begin, end, last = found
    heads: dict[str, str] = {}
    clock = first[-begin : len(first) - end]
    clocks = _clocks("", clock[2:-2] if len(clock) > _MINUTES else None, "")

    def learn(value: Any) -> Any:
        key = slow(value)
        if key is not None and isinstance(value, str) and span(value) == found and is_whole(value):
            if len(heads) >= REMEMBERED:
                heads.clear()
            heads[value[:-begin] + value[len(value) - last :]] = key[:_TO_HOUR]
        return key

    def split(value: Any) -> Any:
        try:
            size = len(value)
            head = heads.get(value[:-begin] + value[size - last :])
            key = clocks.get(value[-begin : size - end])
            if head is not None and key is not None:
                if last == end:
                    return head + key
                digits = value[size - end + 1 : size - last]
                if value[size - end] == "." and digits.isdecimal() and digits.isascii():
                    return f"{head}{key}.{digits}".rstrip("0").rstrip(".")
        except (LookupError, TypeError):
            pass
        return learn(value)

    learn(first)
    return split


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
            whole, point, places = value.partition(".")
            if point and whole.isdecimal() and places.isdecimal():
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
