"""`cursor_format`: how to read values whose meaning their form does not show.

    "epoch_s" and its like    numbers or digits since 1970    moments
    "number"                  numbers, or digits as text      numbers
    "text"                    text by code point              text
    a pattern with %          as `datetime.strptime`          moments, read by `patterns`
    CursorFormat              what its `parse` gives

A spelling reads a value exactly, as a number, a moment or text (see `values`), and writes one as another value of the
column is written. What it does not read is a ValueError or TypeError that says what it reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable  # noqa: TC003 - dataclasses' users ask for its fields' types
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

from checkpoint.errors import is_of_handler
from checkpoint.streams import keys
from checkpoint.streams.keys import TEXTS, YEAR_ONE, Clock, KeyForm, Kind, Moment, ToKey, months_later
from checkpoint.streams.numbers import decimal_of, number_below
from checkpoint.streams.patterns import Pattern
from checkpoint.streams.plain import Plain

UNITS = {"epoch_s": 0, "epoch_ms": 3, "epoch_us": 6, "epoch_ns": 9}
"""Digits after the second that a unit counts in."""
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class CursorFormat:
    """A cursor format of your own, made of two functions.

        lsn = CursorFormat(
            parse=lambda text: int(text.split("/")[0], 16) << 32 | int(text.split("/")[1], 16),
            format=lambda number: f"{number >> 32:X}/{number & 0xFFFFFFFF:X}",
        )

    `parse` is called with values of rows, with stored ones, and with `initial_value` and its like; None and empty
    text are missing values, and not given to it.
    """

    parse: Callable[[Any], Any]
    """Return a number, a date, a datetime or ISO 8601 text for a value as the source spells it."""
    format: Callable[[Any], Any] | None = None
    """Spell again what `parse` gave, moved by a step; None: no lookback, no windows, no rewind by an amount."""


class Spelling(Protocol):
    """How the values of one column are written."""

    kind: Kind | None
    """The kind of all values; None: it depends on each value."""

    def read(self, value: Any) -> tuple[Kind, Any]:
        """Return the kind of a value, and what it is exactly.

        Raises:
            TypeError, ValueError: it is not written so.

        """
        ...

    def write(self, exact: Any, like: Any) -> Any:
        """Return the greatest value written as `like` that is not above `exact`.

        Raises:
            ValueError, OverflowError: there is no such value.

        """
        ...

    def check_writes(self, name: str) -> None:
        """Refuse the argument `name`, which needs moved values, where none can be written.

        Raises:
            TypeError: they cannot.

        """
        ...

    def naive(self, value: Any) -> int | None:
        """Return what the clock of a value shows, in seconds since 1970, where it does not say whose it is."""
        ...

    def lowest(self, like: Any) -> Any:
        """Return the first moment that there is, written as `like`."""
        ...

    def months(self, value: Any, count: int) -> Any:
        """Return a value moved by calendar months of its own clock; a day the month lacks becomes its last one.

        Raises:
            TypeError: it has no calendar.
            ValueError, OverflowError: outside the years 1 to 9999.

        """
        ...

    def form(self, first: Any) -> KeyForm:
        """Return what keys of moments are, where the first row has this value; None: there is none yet."""
        ...

    def quick(self, slow: ToKey, first: Any) -> ToKey:
        """Return what makes the keys of values like the first one."""
        ...


class _Writes:
    """Base of spellings whose values can be moved and that have no local clock."""

    def check_writes(self, name: str) -> None:
        """See `Spelling`."""

    def naive(self, value: Any) -> int | None:
        """See `Spelling`."""
        return None


class Epoch(_Writes):
    """Numbers, or digits as text, since 1970 in UTC."""

    kind: Kind | None = "instant"
    low: float = -math.inf
    high: float = math.inf

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self.places: int = UNITS[name]

    def read(self, value: Any) -> tuple[Kind, Moment]:
        """See `Spelling`; an aware datetime is a moment, too."""
        if isinstance(value, datetime):
            return Plain(self._clock).read(value)
        return "instant", self.moment(_number(value, self.name))

    def write(self, exact: Moment, like: Any) -> Any:
        """See `Spelling`."""
        number = self.key(exact)
        return math.floor(number) if isinstance(like, date) else _written_below(number, like)

    def lowest(self, like: Any) -> Any:
        """See `Spelling`."""
        return self.write((YEAR_ONE, ""), like)

    def months(self, value: Any, count: int) -> Any:
        """See `Spelling`."""
        _, (seconds, fraction) = self.read(value)
        return self.write((months_later(seconds, count, self._clock), fraction), value)

    def form(self, first: Any) -> KeyForm:
        """See `Spelling`: the numbers are."""
        return self

    def quick(self, slow: ToKey, first: Any) -> ToKey:
        """See `Spelling`."""
        return keys.of_numbers(slow, first)

    def key(self, moment: Moment) -> int | Decimal:
        """Return the number of a moment, exactly."""
        seconds, fraction = moment
        whole = seconds * 10**self.places + int(fraction[: self.places].ljust(self.places, "0") or 0)
        rest = fraction[self.places :]
        return decimal_of(whole + Fraction(int(rest), 10 ** len(rest))) if rest else whole

    def moment(self, key: float | Decimal) -> Moment:
        """Return the moment of a number, exactly."""
        of = Fraction(key) / 10**self.places
        seconds = math.floor(of)
        return seconds, str(decimal_of(of - seconds)).partition(".")[2].rstrip("0")


class _Timeless(_Writes):
    """Base of spellings without a clock."""

    def lowest(self, like: Any) -> Any:
        """See `Spelling`."""
        raise TypeError(f"{like!r} has no clock")

    def months(self, value: Any, count: int) -> Any:
        """See `Spelling`."""
        raise TypeError(f"{value!r} cannot be moved by months: only dates and times can")

    def form(self, first: Any) -> KeyForm:
        """See `Spelling`: of no moments."""
        return TEXTS


class Numbers(_Timeless):
    """Numbers, or text such as `-12.50`, of any length."""

    kind: Kind | None = "number"

    def read(self, value: Any) -> tuple[Kind, Any]:
        """See `Spelling`."""
        return "number", _number(value, "number")

    def write(self, exact: Any, like: Any) -> Any:
        """See `Spelling`."""
        return _written_below(exact, like)

    def quick(self, slow: ToKey, first: Any) -> ToKey:
        """See `Spelling`."""
        return keys.of_numbers(slow, first)


class Text(_Timeless):
    """Text by code point."""

    kind: Kind | None = "text"

    def read(self, value: Any) -> tuple[Kind, str]:
        """See `Spelling`."""
        if not isinstance(value, str):
            raise TypeError(f"cursor_format 'text' reads text, not {value!r}")
        return "text", value

    def write(self, exact: str, like: Any) -> str:
        """See `Spelling`."""
        return exact

    def quick(self, slow: ToKey, first: Any) -> ToKey:
        """See `Spelling`."""
        return keys.of_text(slow)


class Custom:
    """What a `CursorFormat` reads and writes."""

    kind: Kind | None = None

    def __init__(self, of: CursorFormat, clock: Clock) -> None:
        self._of = of
        self._as = Plain(clock)

    def _plain(self, value: Any) -> Any:
        """Return what `parse` gives; an aware datetime that it does not take is what it is."""
        try:
            return self._of.parse(value)
        except Exception as error:
            if is_of_handler(error):
                raise
            if isinstance(value, datetime) and value.tzinfo is not None:
                return value
            raise ValueError(f"the parse function of cursor_format failed on {value!r}: {error!r}") from error

    def read(self, value: Any) -> tuple[Kind, Any]:
        """See `Spelling`."""
        if not isinstance(value, str | int | float | Decimal | date):
            raise TypeError(
                f"a {type(value).__name__} cannot be stored: {value!r}; pass a cursor_field callable that returns a "
                "number, a date, a datetime or text"
            )
        plain = self._plain(value)
        try:
            return self._as.read(plain)
        except (TypeError, ValueError, LookupError) as error:
            raise TypeError(
                "the parse function of cursor_format must return a number, a date, a datetime or ISO 8601 text, but "
                f"returned {plain!r} for {value!r}"
            ) from error

    def write(self, exact: Any, like: Any) -> Any:
        """See `Spelling`."""
        return self._spelled(self._as.write(exact, self._plain(like)))

    def check_writes(self, name: str) -> None:
        """See `Spelling`."""
        if self._of.format is None:
            raise TypeError(f"{name} needs a format function, which writes moved values: CursorFormat(parse, format)")

    def naive(self, value: Any) -> int | None:
        """See `Spelling`."""
        return self._as.naive(self._plain(value))

    def _spelled(self, plain: Any) -> Any:
        if self._of.format is None:
            raise TypeError(
                "a CursorFormat without a format function cannot write values: pass CursorFormat(parse, format)"
            )
        try:
            return self._of.format(plain)
        except Exception as error:
            if is_of_handler(error):
                raise
            raise ValueError(f"the format function of cursor_format failed on {plain!r}: {error!r}") from error

    def lowest(self, like: Any) -> Any:
        """See `Spelling`."""
        return self._spelled(self._as.lowest(self._plain(like)))

    def months(self, value: Any, count: int) -> Any:
        """See `Spelling`."""
        return self._spelled(self._as.months(self._plain(value), count))

    def form(self, first: Any) -> KeyForm:
        """See `Spelling`."""
        return self._as.form(None if first is None else self._plain(first))

    def quick(self, slow: ToKey, first: Any) -> ToKey:
        """See `Spelling`."""
        parse, plain = self._of.parse, self._plain(first)
        kind, form = self._as.read(plain)[0], self._as.form(plain)

        def slow_of_plain(value: Any) -> Any:
            of, exact = self._as.read(value)
            if of != kind:
                raise LookupError(value)
            return form.key(exact) if of in ("instant", "wall") else exact

        key_of = self._as.quick(slow_of_plain, plain)

        def custom(value: Any) -> Any:
            try:
                return key_of(parse(value)) if value else slow(value)
            except Exception as error:  # whatever it is, the slow way says it in the right words
                if is_of_handler(error):
                    raise
                return slow(value)

        return custom


def spelling(cursor_format: Any, clock: Clock) -> Spelling:
    """Return the spelling that a `cursor_format` names; None names that of values which say themselves what they are.

    Raises:
        TypeError, ValueError: it names none.

    """
    if cursor_format is None:
        return Plain(clock)
    if isinstance(cursor_format, CursorFormat):
        return Custom(cursor_format, clock)
    if not isinstance(cursor_format, str):
        raise TypeError(f"cursor_format must be a name, a pattern or a CursorFormat, not {cursor_format!r}")
    if cursor_format in UNITS:
        return Epoch(cursor_format, clock)
    if cursor_format == "number":
        return Numbers()
    if cursor_format == "text":
        return Text()
    if "%" in cursor_format:
        return Pattern(cursor_format, clock)
    raise ValueError(
        f"cursor_format must be {', '.join(map(repr, UNITS))}, 'number', 'text', a pattern such as '%m/%d/%Y', or a "
        f"CursorFormat, not {cursor_format!r}"
    )


_NOBODYS = Clock(None)


def formats_for(text: str) -> list[str]:
    """Return the cursor formats that would read a text, as a job writes them, the likeliest first.

    Digits may be a number too: a format that makes them a time between 1990 and 2100 comes before "number".
    "text" reads everything, and is not named where it may sort otherwise: "9" comes after "10" there, and the first of
    February after the second of January of the next year.
    """
    read = [Pattern(pattern, _NOBODYS) for pattern in _COMMON]
    patterns = [pattern for pattern in read if pattern.matches(text)]
    sorts = all(pattern.name.startswith(("%Y", "%G")) for pattern in patterns)
    found = [_as_argument(pattern.name) for pattern in patterns]
    if _NUMBER.fullmatch(text):
        times = [repr(name) for name in UNITS if is_probable(Decimal(text), name)]
        times += [_as_argument(each.name) for each in patterns if is_probable(each.read(text)[1][0], "epoch_s")]
        zero = ["'epoch_s'", "'epoch_ms'"] if Decimal(text) == 0 else []  # the initial_value of either
        found = [*times, "'number'", *zero, *(each for each in found if each not in times)]
        sorts = False
    if sorts:
        found.append("'text' (by code point)")
    return [*(f"cursor_format={each}" for each in found), "a CursorFormat(parse, format)"]


def _as_argument(pattern: str) -> str:
    return repr(pattern) + (", timezone='UTC'" if pattern.endswith(("GMT", "Z")) else "")


def is_probable(number: float | Decimal, name: str) -> bool:
    """Tell whether an epoch format makes a number a time between 1990 and 2100, as most cursor values are."""
    unit: int = 10 ** UNITS[name]
    return _YEAR_1990 * unit <= number < _YEAR_2100 * unit


_YEAR_1990, _YEAR_2100 = 631_152_000, 4_102_444_800
"""Seconds since 1970 at the begin of these years, UTC."""
_COMMON = (
    "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p",
    "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%d.%m.%Y", "%d.%m.%Y %H:%M:%S", "%d-%m-%Y", "%d-%m-%Y %H:%M:%S",
    "%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S %z", "%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S %z %Y",
    "%d %b %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%Y %H:%M:%S",
    "%Y%m%d", "%Y%m%dT%H%M%SZ", "%Y%m%dT%H%M%S%z", "%Y%m%dT%H%M%S", "%Y%m%d%H%M%S", "%Y-%m", "%G-W%V-%u",
)  # fmt: skip
"""Patterns that an error suggests for text without a format."""


def _number(value: Any, name: str) -> Any:
    """Return a number, or the number that digits stand for."""
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            raise ValueError(f"cursor_format {name!r} reads numbers and digits such as '-12.50', not {value!r}")
        return Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError(f"cursor_format {name!r} reads numbers and digits as text, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"cursor_format {name!r} reads finite numbers, not {value!r}")
    return value


def _written_below(number: Any, like: Any) -> Any:
    """Write a number in the type of `like`; of text with as many places, and zeros before it where it has those."""
    if not isinstance(like, str):
        return number_below(number, like)
    whole, point, places = like.partition(".")
    of = Fraction(number)
    scaled = math.floor(of * 10 ** len(places))
    digits = str(decimal_of(Fraction(abs(scaled)))).rjust(len(places) + 1, "0")
    head, tail = (digits[: -len(places)], digits[-len(places) :]) if places else (digits, "")
    padded = whole.lstrip("+-")
    if padded.startswith("0") and len(padded) > 1:
        head = head.zfill(len(padded))
    sign = "-" if scaled < 0 else "+" if like.startswith("+") else ""
    return f"{sign}{head}{point}{tail}"
