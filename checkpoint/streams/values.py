"""Cursor values: compared as what they are, moved by a step, and spelled as they came.

    number    int, float and Decimal, exactly with each other
    instant   aware datetimes, and text such as `2024-05-01T10:00:00Z`
    wall      the same without a zone, and dates as their midnight; instants where `timezone=` says whose clock it is
    text      any other string, by code point

Within one of these four every value has a *key*, and keys compare as plain Python values. An instant's and a wall
clock's is `(seconds since 1970, fraction digits without trailing zeros)`: exact at any number of digits.
"""

from __future__ import annotations

import math
import re
import time
from calendar import monthrange
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import ROUND_FLOOR, Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind: TypeAlias = Literal["number", "instant", "wall", "text"]
Key: TypeAlias = Any
"""What a value compares by; see the module."""
Step: TypeAlias = "timedelta | float | Decimal"

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)([T ])(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - of a wall clock
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_DAY, _HOUR, _MINUTE = 86_400, 3_600, 60
MICRO = 6
"""Fraction digits of a datetime."""


class Scale:
    """What the values of one column have in common, so that they compare.

    Its kind is that of the first value it meets which leaves no doubt (a string may be text, or something written
    down); errors say `where` it is, and name the values that are `known` by a name, such as initial_value. Values that
    do not compare are a TypeError, NaN and infinities a ValueError.
    """

    __slots__ = ("_known", "_sample", "_where", "_zone", "kind")

    def __init__(self, where: str, zone: tzinfo | str | None = None, known: Mapping[str, Any] = {}) -> None:
        self.kind: Kind | None = None
        self._where = where
        self._known = known
        self._zone = ZoneInfo(zone) if isinstance(zone, str) else zone
        self._sample: Any = None

    def settle(self, *values: Any) -> bool:
        """Take the kind of the first of these that is no text; tell whether there is a kind now."""
        for value in values:
            if self.kind is None and value is not None and (kind := self._classify(value)[0]) != "text":
                self.kind, self._sample = kind, value
        return self.kind is not None

    def key(self, value: Any, *, written: bool = False) -> Key:
        """Return the key of a value; `written` reads a string as what a Decimal was stored as, too."""
        kind, key = self._classify(value)
        if kind == self.kind:
            return key
        if self.kind is None:
            self.kind, self._sample = kind, value
            return key
        return self._reconcile(value, kind, written=written)

    def _reconcile(self, value: Any, kind: Kind, *, written: bool) -> Key:
        if kind == "text":
            if self.kind == "number" and written:
                try:
                    return Decimal(value)
                except ArithmeticError:
                    pass
            day = _day(value)
            if day is not None and self.kind in ("instant", "wall"):
                kind, key = self._classify(day)
                if kind == self.kind:
                    return key
        if {kind, self.kind} == {"instant", "wall"}:
            naive, aware = (value, self._sample) if kind == "wall" else (self._sample, value)
            raise TypeError(
                f"{self._where}: {self._named(naive)} has no time zone and {self._named(aware)} has one: "
                "say whose clock the first is, "
                "such as timezone='UTC' or timezone='Europe/Berlin'"
            )
        raise TypeError(
            f"{self._where}: {self._named(value)} ({_type_of(value, kind)}) does not compare with "
            f"{self._named(self._sample)} ({_type_of(self._sample, self.kind)})"
        )

    def _named(self, value: Any) -> str:
        return next((f"{name} {value!r}" for name, known in self._known.items() if known is value), repr(value))

    def _classify(self, value: Any) -> tuple[Kind, Key]:
        if isinstance(value, str):
            parts = _parse(value)
            return ("text", value) if parts is None else self._timed(parts.local, parts.fraction, parts.offset)
        if isinstance(value, bool):
            raise TypeError(f"{self._where}: a bool is no cursor value: {value!r}")
        if isinstance(value, int):
            return "number", value
        if isinstance(value, float | Decimal):
            if not math.isfinite(value):
                raise ValueError(f"{self._where}: {value!r} is no cursor value")
            return "number", value
        if isinstance(value, datetime):
            return self._classify_datetime(value)
        if isinstance(value, date):
            return self._timed((value.toordinal() - _EPOCH_DAY) * _DAY, "", None)
        raise TypeError(
            f"{self._where}: a {type(value).__name__} is no cursor value: "
            "int, float, Decimal, date, datetime and str are; pass a callable that makes one of them"
        )

    def _classify_datetime(self, value: datetime) -> tuple[Kind, Key]:
        if getattr(value, "nanosecond", 0):  # pandas: its isoformat() has all digits
            return self._classify(value.isoformat())
        offset = value.utcoffset()
        if offset is None and self._zone is not None:
            offset = value.replace(tzinfo=self._zone).utcoffset()
        since = value.replace(tzinfo=None) - _EPOCH - (offset or timedelta())
        fraction = f"{since.microseconds:06}".rstrip("0") if since.microseconds else ""
        return "wall" if offset is None else "instant", (since.days * _DAY + since.seconds, fraction)

    def _timed(self, local: int, fraction: str, offset: int | None) -> tuple[Kind, Key]:
        if offset is None and self._zone is not None:
            offset = _offset_at(local, self._zone)
        return ("wall", (local, fraction)) if offset is None else ("instant", (local - offset, fraction))

    def spell(self, key: Key, like: Any) -> Any:
        """Return the greatest value in the type and spelling of `like` whose key is not above this one."""
        return self._spell(key, like, self.kind)

    def _spell(self, key: Key, like: Any, kind: Kind | None) -> Any:  # noqa: PLR0911 - a type each
        if isinstance(like, str):
            return self._spell_text(key, like, kind)
        if isinstance(like, int):
            return math.floor(key)
        if isinstance(like, float):
            return _float_below(key)
        if isinstance(like, Decimal):
            return _decimal_below(Fraction(key), like)
        seconds, fraction = key
        if not isinstance(like, datetime):
            return date.fromordinal(self._local(seconds, kind) // _DAY + _EPOCH_DAY)
        micros = int(fraction[:MICRO].ljust(MICRO, "0"))
        if like.tzinfo is None:
            return _EPOCH + timedelta(seconds=self._local(seconds, kind), microseconds=micros)
        moment = _EPOCH.replace(tzinfo=timezone.utc) + timedelta(seconds=seconds, microseconds=micros)
        return moment.astimezone(like.tzinfo)

    def _spell_text(self, key: Key, like: str, kind: Kind | None) -> str:
        parts = _parse(like)
        if parts is None and _day(like) is None:
            return str(key)
        seconds, fraction = key
        offset = None if parts is None else parts.offset
        local = self._local(seconds, kind) if offset is None else seconds + offset
        days, rest = divmod(local, _DAY)
        day = date.fromordinal(days + _EPOCH_DAY).isoformat()
        if parts is None:
            return day
        clock = f"{day}{parts.separator}{rest // _HOUR:02}:{rest % _HOUR // _MINUTE:02}"
        if parts.digits is None:
            return clock + parts.zone
        digits = "." + fraction[: parts.digits].ljust(parts.digits, "0") if parts.digits else ""
        return f"{clock}:{rest % _MINUTE:02}{digits}{parts.zone}"

    def _local(self, seconds: int, kind: Kind | None) -> int:
        """Return what the wall clock shows, where it is not the key itself."""
        if kind != "instant" or self._zone is None:
            return seconds
        moment = _EPOCH.replace(tzinfo=timezone.utc) + timedelta(seconds=seconds)
        offset = moment.astimezone(self._zone).utcoffset() or timedelta()
        return seconds + math.floor(offset.total_seconds())

    def shift(self, value: Any, step: Step, times: int = 1, *, written: bool = False) -> Any:
        """Return a value moved by `times` steps, in its own type and spelling, rounded down.

        A timedelta is a length of time, also where a clock is put forward or back meanwhile. What lies before year 1
        becomes year 1; past year 9999 is an OverflowError.
        """
        kind, key = self._classify(value)
        if kind == "text" and (day := _day(value)) is not None:
            kind, key = self._classify(day)
        if kind == "text" and written and self.kind == "number":
            kind, key, value = "number", self.key(value, written=True), Decimal(value)
        if kind == "text" or (kind == "number") == isinstance(step, timedelta):
            raise TypeError(f"{self._where}: {_shown(value, kind)} cannot be moved by {step!r}")
        if not isinstance(step, timedelta):
            return self._spell(Fraction(key) + times * Fraction(step), value, kind)
        return self._spell_clamped(_moved(key, times * step), value, kind)

    def _spell_clamped(self, key: Key, like: Any, kind: Kind) -> Any:
        try:
            return self._spell(key, like, kind)
        except (ValueError, OverflowError) as error:
            if key[0] > 0:
                raise OverflowError(f"{self._where}: past the year 9999") from error
            if isinstance(like, str):
                parts = _parse(like)
                return self._spell_text((_YEAR_ONE - ((parts.offset if parts else None) or 0), ""), like, "wall")
            return datetime.min.replace(tzinfo=like.tzinfo) if isinstance(like, datetime) else date.min

    def months(self, value: Any, count: int) -> Any:
        """Return a value moved by calendar months of its own clock; a day the month lacks becomes its last one."""
        kind = self._classify(value)[0]
        head = value[:10] if isinstance(value, str) else value
        day = _day(head) if isinstance(head, str) else head
        if kind == "number" or not isinstance(day, date):
            raise TypeError(f"{self._where}: {_shown(value, kind)} cannot be moved by months")
        years, month = divmod(day.month - 1 + count, 12)
        year, month = day.year + years, month + 1
        moved = date(year, month, min(day.day, monthrange(year, month)[1]))
        if isinstance(value, str):
            return moved.isoformat() + value[10:]
        return day.replace(year=moved.year, month=moved.month, day=moved.day)

    def now(self, ahead: int = 0) -> Key | None:
        """Return the key of the moment, and some seconds; None for values without a clock."""
        seconds, fraction = clock()
        return (seconds + ahead, fraction) if self.kind == "instant" else None

    def digestible(self, key: Key) -> str:
        """Return a key as text: one for all spellings of a value."""
        if self.kind == "number":
            return str(Fraction(key))
        return str(key) if self.kind == "text" else f"{key[0]}.{key[1]}"

    def lane(self, value: Any, top: Key | None, *, to_the_day: bool = False) -> Lane | None:
        """Return the lane of a value up to the key `top`; None: its like are compared by their keys only.

        `to_the_day` makes it end before the day of `top`.
        """
        kind, _ = self._classify(value)
        if kind != self.kind:
            return None
        if isinstance(value, str):
            return self._text_lane(value, top, to_the_day=to_the_day)
        tz = value.tzinfo if isinstance(value, datetime) else None
        if type(value) not in _PLAIN or not _fixed(tz) or not (kind == "number" or _fixed(self._zone)):
            return None
        highest = _highest(value) if top is None else top if kind == "number" else self._spell_or_highest(top, value)
        return Lane(type(value), value, highest, tz=tz)  # pyright: ignore[reportUnknownArgumentType] - any type

    def _text_lane(self, value: str, top: Key | None, *, to_the_day: bool) -> Lane | None:
        parts = _parse(value)
        if parts is None:
            return Lane(str, value, _TEXT_END if top is None else top) if ":" not in value else None
        if parts.offset is None and not _fixed(self._zone):
            return None
        highest = "~" if top is None else self._spell_or_highest(top, value)
        if to_the_day:
            highest = highest[:10]
        shape = value.encode().translate(_DIGITS)
        return Lane(str, value, highest, shape=shape, tail=parts.zone)

    def _spell_or_highest(self, key: Key, like: Any) -> Any:
        try:
            return self.spell(key, like)
        except (ValueError, OverflowError):
            return _highest(like)


class Lane:
    """Values of one type and spelling, from `low` to before `top`, among which plain Python comparison is right.

    It knows too little rather than too much: a value outside it is not wrong, but has to be compared by its key.
    """

    __slots__ = ("low", "mark", "plain", "separator", "shape", "size", "tail", "text", "top", "type", "tz")

    def __init__(
        self, of: type[Any], low: Any, top: Any, *, tz: tzinfo | None = None, shape: bytes = b"", tail: str = ""
    ) -> None:
        self.type = of
        self.plain = of if of in (int, float, Decimal, date) else None
        """The type, where it is all there is to look at."""
        self.low = low
        self.top = top
        self.tz = tz
        self.shape = shape
        self.tail = tail
        self.text = of is str and not shape
        self.mark = len(shape) - 1 if tail == "Z" and shape[10:11] == b"T" else 0
        self.size = len(shape)
        self.separator = chr(shape[10]) if shape else ""

    def holds(self, value: Any) -> bool:
        """Tell whether a value is spelled as the lane's are; its place between low and top is another question."""
        if type(value) is not self.type:
            return False
        if self.tail:  # a valid instant has its offset at the end, and before it the length tells all
            return bool(len(value) == self.size and value[10] == self.separator and value.endswith(self.tail))
        if self.shape:
            return bool(value.isascii() and value.encode().translate(_DIGITS) == self.shape)
        if self.text:
            return ":" not in value
        return self.type is not datetime or value.tzinfo is self.tz

    def holds_all(self, values: list[Any]) -> bool:
        """Tell whether all of them are spelled so."""
        if self.type is str:
            return self._holds_text(values)
        if set(map(type, values)) != {self.type}:
            return False
        if self.type is datetime:
            return all(value.tzinfo is self.tz for value in values)
        return self.type is int or self.type is date or all(map(math.isfinite, values))

    def _holds_text(self, values: list[Any]) -> bool:
        try:
            joined = "".join(values)
        except TypeError:
            return False
        if not self.shape:
            return ":" not in joined
        size, count = self.size, len(values)
        if len(joined) != size * count:
            return False
        if self.mark:  # with one Z in each, this is all of them having one length
            return joined[self.mark :: size] == "Z" * count and joined[10::size] == self.separator * count
        if not joined.isascii() or joined.encode().translate(_DIGITS) != self.shape * count:
            return False
        start = size - len(self.tail)
        return all(joined[start + place :: size] == char * count for place, char in enumerate(self.tail))


class _Parts(NamedTuple):
    """A string that tells a time."""

    local: int
    """Seconds since 1970 as the clock shows them."""
    fraction: str
    """Digits, without trailing zeros."""
    offset: int | None
    """Seconds east of UTC; None: naive."""
    separator: str
    digits: int | None
    """How many fraction digits are written; None: not even seconds."""
    zone: str
    """The offset as written."""


def _parse(text: str) -> _Parts | None:
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    day, separator, hour, minute, second, fraction, zone = match.groups()
    date_ = _day(day)
    hours, minutes, seconds = int(hour), int(minute), int(second or 0)
    if date_ is None or hours > 23 or minutes > 59 or seconds > 60:  # a clock; 60 is a leap second
        return None
    offset = _offset(zone)
    if offset is not None and abs(offset) >= _DAY:
        return None
    local = (date_.toordinal() - _EPOCH_DAY) * _DAY + hours * _HOUR + minutes * _MINUTE + seconds
    digits = None if second is None else len(fraction or "")
    return _Parts(local, (fraction or "").rstrip("0"), offset, separator, digits, zone or "")


def _offset(zone: str | None) -> int | None:
    if zone is None:
        return None
    if zone == "Z":
        return 0
    seconds = int(zone[1:3]) * _HOUR + int(zone[3:].lstrip(":") or 0) * _MINUTE
    return -seconds if zone[0] == "-" else seconds


def _day(text: str) -> date | None:
    """Read `YYYY-MM-DD`; None where it is no such day."""
    if _DATE.fullmatch(text):
        try:
            return date(int(text[:4]), int(text[5:7]), int(text[8:]))
        except ValueError:
            pass
    return None


def _offset_at(local: int, zone: tzinfo) -> int:
    """Return the offset of a zone at what its clock shows; of two such moments the earlier's."""
    try:
        offset = (_EPOCH + timedelta(seconds=local)).replace(tzinfo=zone).utcoffset()
    except OverflowError:
        offset = None
    return math.floor((offset or timedelta()).total_seconds())


def _moved(key: tuple[int, str], by: timedelta) -> tuple[int, str]:
    seconds, fraction = key
    digits = max(len(fraction), MICRO)
    micros = (by.days * _DAY + by.seconds) * 10**MICRO + by.microseconds
    total = seconds * 10**digits + int(fraction.ljust(digits, "0")) + micros * 10 ** (digits - MICRO)
    seconds, rest = divmod(total, 10**digits)
    return seconds, f"{rest:0{digits}}".rstrip("0")


def _float_below(number: Any) -> float:
    nearest = float(number)
    return math.nextafter(nearest, -math.inf) if nearest > number else nearest


def _decimal_below(number: Fraction, like: Decimal) -> Decimal:
    """Return a Decimal with the places of `like`, more where the number needs and has them."""
    places = -int(like.as_tuple().exponent)
    while places < _DECIMAL_PLACES and (number * 10**places).denominator > 1:
        places += 1
    with localcontext() as context:
        context.prec, context.rounding = 4 * _DECIMAL_PLACES, ROUND_FLOOR
        return Decimal(math.floor(number * Fraction(10) ** places)).scaleb(-places)


def _fixed(tz: tzinfo | None) -> bool:
    """Tell whether a clock is never put forward or back."""
    return tz is None or isinstance(tz, timezone) or getattr(tz, "key", None) in ("UTC", "Etc/UTC")


def _highest(like: Any) -> Any:
    if isinstance(like, datetime):
        return datetime.max.replace(tzinfo=like.tzinfo)
    return date.max if isinstance(like, date) else "~" if isinstance(like, str) else math.inf


def _shown(value: Any, kind: Kind | None) -> str:
    return f"{value!r} ({_type_of(value, kind)})"


def _type_of(value: Any, kind: Kind | None) -> str:
    return "text" if kind == "text" else type(value).__name__


def clock() -> tuple[int, str]:
    """Return the key of the moment, among instants."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return seconds, f"{nanos:09}".rstrip("0")


def wire(value: Any) -> Any:
    """Return a value as JSON has it, every digit kept."""
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value


_PLAIN = (int, float, Decimal, date, datetime)
_TEXT_END = "\U0010ffff"
_DECIMAL_PLACES = 100
_YEAR_ONE = (date.min.toordinal() - _EPOCH_DAY) * _DAY
