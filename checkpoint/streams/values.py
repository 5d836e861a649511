"""Cursor values: compared as what they are, moved by a step, and spelled as they came.

    number    int, float and Decimal, exactly with each other
    instant   aware datetimes, and ISO 8601 text such as `2024-05-01T10:00:00Z`
    wall      the same without a zone, and dates as their midnight; instants where `timezone=` says whose clock it is
    text      any other string, by code point

Within one of these four every value is *exact*, a number, a moment (see `keys`) or text, and has a *key* that compares
as a plain Python value.
"""

from __future__ import annotations

import math
import time
from calendar import monthrange
from datetime import date, datetime, timedelta, tzinfo
from decimal import ROUND_FLOOR, Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

from checkpoint.streams import keys
from checkpoint.streams.keys import EPOCH, MICRO, UTC, Moment, ToKey, is_fixed, moment_of, offset_at
from checkpoint.streams.spellings import DAY, EPOCH_DAY, read_day, read_time, write_day, write_time

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind: TypeAlias = Literal["number", "instant", "wall", "text"]
Key: TypeAlias = Any
"""What a value compares by; see the module."""
Step: TypeAlias = "timedelta | float | Decimal"

_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
EASTERNMOST = 14 * 3_600
"""Seconds that the first clock on Earth to show a moment is ahead of UTC."""


class Scale:
    """What the values of one column have in common, so that they compare.

    Its kind is that of the first value it meets which leaves no doubt (a string may be text, or something written
    down); errors say `where` it is, and name the values that are `known` by a name, such as initial_value. Values that
    do not compare are a TypeError, infinities a ValueError.

    Attributes:
        kind: what the values are; None: not known yet.
        key: makes the key of a row's value, None of a missing one. `begin` replaces it by a quicker one, whose keys do
            not compare with those made before.

    """

    __slots__ = ("_datetimes", "_form_zone", "_known", "_sample", "_where", "_zone", "key", "kind")

    def __init__(self, where: str, zone: tzinfo | str | None = None, known: Mapping[str, Any] = {}) -> None:
        self.kind: Kind | None = None
        self._where = where
        self._known = known
        self._zone = ZoneInfo(zone) if isinstance(zone, str) else zone
        self._sample: Any = None
        self._datetimes = False  # whether keys of moments are datetimes, of `_form_zone`; otherwise they are text
        self._form_zone: tzinfo | None = None
        self.key: ToKey = self._row_key

    def settle(self, *values: Any) -> bool:
        """Take the kind of the first of these that is no text; tell whether there is a kind now."""
        for value in values:
            if self.kind is None and value is not None and (kind := self._read(value)[0]) != "text":
                self.kind, self._sample = kind, value
        return self.kind is not None

    # Keys

    def begin(self, value: Any) -> bool:
        """Make `key` quick for values like this one, the first of the rows; False, and nothing, where it is missing.

        Keys of before do not compare with those from here on.
        """
        if is_missing(value):
            return False
        self.key_of(value)  # settles the kind, or refuses
        slow = self._row_key
        if isinstance(value, datetime):
            self._datetimes = True
            self.key, self._form_zone = keys.of_datetimes(slow, value, self._zone)
        elif isinstance(value, date):
            self._datetimes, self._form_zone = True, None if self._zone is None else UTC
            self.key = keys.remembering(slow, date)
        elif isinstance(value, str):
            self.key = self._text_keys(value)
        elif isinstance(value, int):
            self.key = keys.of_ints(slow)
        elif isinstance(value, float):
            self.key = keys.of_floats(slow)
        elif isinstance(value, Decimal):
            self.key = keys.of_decimals(slow)
        return True

    def _text_keys(self, value: str) -> ToKey:
        if read_time(value) is not None:
            return keys.of_iso_text(self._row_key, value, self._zone)
        return keys.remembering(self._row_key, str) if read_day(value) is not None else self._row_key

    def _row_key(self, value: Any) -> Key:
        return None if is_missing(value) else self.key_of(value)

    def key_of(self, value: Any, *, written: bool = False) -> Key:
        """Return the key of a value, whatever it is spelled like.

        `written` reads a string as what a Decimal was stored as, too.
        """
        return self._form(self._exact(value, written=written))

    def _form(self, exact: Any) -> Key:
        if not self.has_clock:
            return exact
        return keys.datetime_key(exact, self._form_zone) if self._datetimes else keys.text_key(exact)

    def _unform(self, key: Key) -> Any:
        """Return what a key was made of."""
        return moment_of(key) if self.has_clock else key

    @property
    def has_clock(self) -> bool:
        """Whether the values are moments, so that one may lie in the future."""
        return self.kind in ("instant", "wall")

    def _exact(self, value: Any, *, written: bool = False) -> Any:
        kind, exact = self._read(value)
        if kind == self.kind:
            return exact
        if self.kind is None:
            self.kind, self._sample = kind, value
            return exact
        return self._reconcile(value, kind, written=written)

    def _reconcile(self, value: Any, kind: Kind, *, written: bool) -> Any:
        if kind == "text" and self.kind == "number" and written:
            try:
                return Decimal(value)
            except ArithmeticError:
                pass
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

    # What a value is

    def _read(self, value: Any) -> tuple[Kind, Any]:
        """Return the kind of a value, and what it is exactly: a number, a moment or text."""
        if isinstance(value, str):
            return self._read_text(value)
        if isinstance(value, bool):
            raise TypeError(f"{self._where}: a bool is no cursor value: {value!r}")
        if isinstance(value, int):
            return "number", value
        if isinstance(value, float | Decimal):
            if not math.isfinite(value):
                raise ValueError(f"{self._where}: {value!r} is no cursor value")
            return "number", value
        if isinstance(value, datetime):
            return self._read_datetime(value)
        if isinstance(value, date):
            return self._timed((value.toordinal() - EPOCH_DAY) * DAY, "", None)
        raise TypeError(
            f"{self._where}: a {type(value).__name__} is no cursor value: "
            "int, float, Decimal, date, datetime and str are; pass a callable that makes one of them"
        )

    def _read_text(self, value: str) -> tuple[Kind, Any]:
        written = read_time(value)
        if written is not None:
            return self._timed(written.local, written.fraction, written.offset)
        day = read_day(value)
        return ("text", value) if day is None else self._read(day)

    def _read_datetime(self, value: datetime) -> tuple[Kind, Moment]:
        if getattr(value, "nanosecond", 0):  # pandas: its isoformat() has all digits
            return self._read(value.isoformat())
        if value.tzinfo is None and self._zone is not None:
            value = value.replace(tzinfo=self._zone)
        return "wall" if value.utcoffset() is None else "instant", moment_of(value)

    def _timed(self, local: int, fraction: str, offset: int | None) -> tuple[Kind, Moment]:
        if offset is None and self._zone is not None:
            offset = math.floor(offset_at(local, self._zone).total_seconds())
        return ("wall", (local, fraction)) if offset is None else ("instant", (local - offset, fraction))

    # Spelling

    def spell(self, key: Key, like: Any) -> Any:
        """Return the greatest value in the type and spelling of `like` whose key is not above this one."""
        return self._spell(self._unform(key), like, self.kind)

    def _spell(self, exact: Any, like: Any, kind: Kind | None) -> Any:
        if isinstance(like, str):
            return self._spell_text(exact, like, kind)
        if isinstance(like, int):
            return math.floor(exact)
        if isinstance(like, float):
            return _float_below(exact)
        if isinstance(like, Decimal):
            return _decimal_below(Fraction(exact), like)
        return self._spell_time(exact, like, kind)

    def _spell_time(self, moment: Moment, like: date, kind: Kind | None) -> date:
        seconds, fraction = moment
        if not isinstance(like, datetime):
            return date.fromordinal(self._local(seconds, kind) // DAY + EPOCH_DAY)
        micros = int(fraction[:MICRO].ljust(MICRO, "0"))
        if like.tzinfo is None:
            return EPOCH + timedelta(seconds=self._local(seconds, kind), microseconds=micros)
        at = EPOCH.replace(tzinfo=UTC) + timedelta(seconds=seconds, microseconds=micros)
        return at.astimezone(like.tzinfo)

    def _spell_text(self, exact: Any, like: str, kind: Kind | None) -> str:
        written = read_time(like)
        if written is None:
            return str(exact) if read_day(like) is None else write_day(self._local(exact[0], kind) // DAY)
        seconds, fraction = exact
        local = self._local(seconds, kind) if written.offset is None else seconds + written.offset
        return write_time(local, fraction, written)

    def _local(self, seconds: int, kind: Kind | None) -> int:
        """Return what the wall clock shows, where it is not the moment itself."""
        if kind != "instant" or self._zone is None:
            return seconds
        offset = (EPOCH.replace(tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(self._zone).utcoffset()
        return seconds + math.floor((offset or timedelta()).total_seconds())

    # Moving

    def shift(self, value: Any, step: Step, times: int = 1, *, written: bool = False) -> Any:
        """Return a value moved by `times` steps, in its own type and spelling, rounded down.

        A timedelta is a length of time, also where a clock is put forward or back meanwhile. What lies before year 1
        becomes year 1; past year 9999 is an OverflowError.
        """
        kind, exact = self._read(value)
        if kind == "text" and written and self.kind == "number":
            kind, exact, value = "number", self._exact(value, written=True), Decimal(value)
        if kind == "text" or (kind == "number") == isinstance(step, timedelta):
            raise TypeError(f"{self._where}: {_shown(value, kind)} cannot be moved by {step!r}")
        if not isinstance(step, timedelta):
            return self._spell(Fraction(exact) + times * Fraction(step), value, kind)
        return self._spell_clamped(_moved(exact, times * step), value, kind)

    def _spell_clamped(self, moment: Moment, like: Any, kind: Kind) -> Any:
        try:
            return self._spell(moment, like, kind)
        except (ValueError, OverflowError) as error:
            if moment[0] > 0:
                raise OverflowError(f"{self._where}: past the year 9999") from error
            if isinstance(like, str):
                written = read_time(like)
                return self._spell_text((_YEAR_ONE - ((written.offset if written else None) or 0), ""), like, "wall")
            return datetime.min.replace(tzinfo=like.tzinfo) if isinstance(like, datetime) else date.min

    def months(self, value: Any, count: int) -> Any:
        """Return a value moved by calendar months of its own clock; a day the month lacks becomes its last one."""
        kind = self._read(value)[0]
        head = value[:10] if isinstance(value, str) else value
        day = read_day(head) if isinstance(head, str) else head
        if kind == "number" or not isinstance(day, date):
            raise TypeError(f"{self._where}: {_shown(value, kind)} cannot be moved by months")
        years, month = divmod(day.month - 1 + count, 12)
        year, month = day.year + years, month + 1
        moved = date(year, month, min(day.day, monthrange(year, month)[1]))
        if isinstance(value, str):
            return moved.isoformat() + value[10:]
        return day.replace(year=moved.year, month=moved.month, day=moved.day)

    def now(self, ahead: int = 0, at: Moment | None = None) -> Key | None:
        """Return the key of a moment (default: now) and some seconds; None for values without a clock.

        Where nobody said whose clock it is, it is the one that shows a moment first.
        """
        if self.kind not in ("instant", "wall"):
            return None
        seconds, fraction = clock() if at is None else at
        if self.kind == "wall":
            seconds += EASTERNMOST
        return self._form((seconds + ahead, fraction))

    def digestible(self, key: Key) -> str:
        """Return a key as text: one for all spellings of a value."""
        if not self.has_clock:
            return key if isinstance(key, str) else str(Fraction(key))
        seconds, fraction = moment_of(key)
        return f"{seconds}.{fraction}"

    def lane(self, value: Any, top: Key | None, *, to_the_day: bool = False) -> Lane | None:
        """Return the lane of a value up to the key `top`; None: its like are compared by their keys only.

        `to_the_day` makes it end before the day of `top`.
        """
        kind, _ = self._read(value)
        if kind != self.kind:
            return None
        if isinstance(value, str):
            return self._text_lane(value, top, to_the_day=to_the_day)
        tz = value.tzinfo if isinstance(value, datetime) else None
        if type(value) not in _PLAIN or not is_fixed(tz) or not (kind == "number" or is_fixed(self._zone)):
            return None
        highest = _highest(value) if top is None else top if kind == "number" else self._spell_or_highest(top, value)
        return Lane(type(value), value, highest, tz=tz)  # pyright: ignore[reportUnknownArgumentType] - any type

    def _text_lane(self, value: str, top: Key | None, *, to_the_day: bool) -> Lane | None:
        parts = read_time(value)
        if parts is None:
            return Lane(str, value, _TEXT_END if top is None else top) if ":" not in value else None
        if parts.offset is None and not is_fixed(self._zone):
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


def is_missing(value: Any) -> bool:
    """Tell whether a row has no cursor value: None, NaN, NaT, pandas' NA, or empty text."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Decimal):
        return value.is_nan()
    return type(value).__name__ in ("NaTType", "NAType") or (
        type(value).__name__ == "datetime64" and str(value) == "NaT"
    )


def _moved(moment: Moment, by: timedelta) -> Moment:
    seconds, fraction = moment
    digits = max(len(fraction), MICRO)
    micros = (by.days * DAY + by.seconds) * 10**MICRO + by.microseconds
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
_YEAR_ONE = (date.min.toordinal() - EPOCH_DAY) * DAY
