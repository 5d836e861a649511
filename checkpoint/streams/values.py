"""Cursor values: compared as what they are, moved by a step, and spelled as they came.

    number    int, float and Decimal, exactly with each other
    instant   aware datetimes, and ISO 8601 text such as `2024-05-01T10:00:00Z`
    wall      the same without a zone, and dates as their midnight; instants where `timezone=` says whose clock it is
    text      text by code point, where `cursor_format` says so

Within one of these four every value is *exact*, a number, a moment (see `keys`) or text, and has a *key* that compares
as a plain Python value. How a value is written is its spelling (see `spellings`).
"""

from __future__ import annotations

import math
import time
from datetime import date, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias
from zoneinfo import ZoneInfo

from checkpoint.streams.keys import (
    DAY,
    LAST_TEXT,
    MICRO,
    TEXTS,
    Clock,
    KeyForm,
    Kind,
    Moment,
    ToKey,
    begin_of_repeated,
    is_fixed,
)  # fmt: skip
from checkpoint.streams.plain import plain_python, read_day, read_time
from checkpoint.streams.spellings import UNITS, CursorFormat, Epoch, formats_for, is_probable, spelling

if TYPE_CHECKING:
    from collections.abc import Mapping

Key: TypeAlias = Any
"""What a value compares by; see the module."""
Amount: TypeAlias = "timedelta | float | Decimal"

EASTERNMOST = 14 * 3_600
"""Seconds that the first clock on Earth to show a moment is ahead of UTC."""
SHOWN = 40
"""Characters of a value that an error shows."""


_NOBODYS = Clock(None)
_PLAIN = spelling(None, _NOBODYS)  # shared: there may be thousands of streams


class Scale:
    """How the values of one column are read, compared and written.

    Its kind is that of the `cursor_format`, else of the first value it meets; errors say `where` it is, and name the
    values that are `known` by a name, such as initial_value. Values that do not compare are a TypeError; what does not
    say what it is, and infinities, a ValueError.

    Attributes:
        where: the stream and field, as errors name them.
        kind: what the values are; None: not known yet.

    """

    __slots__ = ("_clock", "_form", "_is_plain", "_known", "_sample", "_spelling", "kind", "where")

    def __init__(
        self,
        where: str,
        zone: tzinfo | str | None = None,
        known: Mapping[str, Any] = {},
        cursor_format: str | CursorFormat | None = None,
    ) -> None:
        self.where: str = where
        self._known = known
        try:
            self._clock = _NOBODYS if zone is None else Clock(zone_of(zone))
            self._spelling = _PLAIN if zone is cursor_format is None else spelling(cursor_format, self._clock)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error
        self._is_plain = cursor_format is None
        self.kind: Kind | None = self._spelling.kind
        self._sample: Any = None
        self._form: KeyForm = self._spelling.form(None) if self.kind is not None else TEXTS

    def settle(self, *values: Any, written: bool = False) -> bool:
        """Take the kind of the first of these that is not None; tell whether there is a kind now.

        `written`: they are stored ones, of which text may be what a Decimal was stored as; that tells no kind.
        """
        for value in values:
            if value is not None and self.kind is None and not (written and self._may_be_decimal(value)):
                self.kind, self._sample = self._read(value)[0], value
        return self.kind is not None

    def _may_be_decimal(self, value: Any) -> bool:
        return self._is_plain and isinstance(value, str) and _decimal(value) is not None

    # Keys

    def begin(self, value: Any) -> ToKey | None:
        """Return a function that makes the keys of rows' values quickly; `value` is the first one.

        None where this one is missing. Keys made earlier do not compare with the keys of the function.
        """
        if is_missing_value(value):
            return None
        self._exact(value)  # settles the kind, or refuses
        self._form = self._spelling.form(value)
        return self._spelling.quick(self.key, value)

    def key(self, value: Any) -> Key:
        """Return the key of a row's value; None of a missing one."""
        return None if is_missing_value(value) else self.key_of(value)

    def key_of(self, value: Any, *, written: bool = False) -> Key:
        """Return the key of a value, however it is spelled.

        `written` reads a string as what a Decimal was stored as, too.
        """
        exact = self._exact(value, written=written)
        return self._form.key(exact) if self.has_clock else exact

    def adopted(self, key: Key, other: Scale) -> Key:
        """Return a key of another scale of the same column as one of this scale's."""
        if not self.has_clock or self._form == other._form:
            return key
        return self._form.key(other._form.moment(key))

    @property
    def limits(self) -> tuple[Key, Key]:
        """Keys below and above those that rows usually have."""
        if self.has_clock:
            return self._form.low, self._form.high
        return ("", LAST_TEXT) if self.kind == "text" else (-math.inf, math.inf)

    @property
    def has_clock(self) -> bool:
        """Whether the values are moments, so that one may lie in the future."""
        return self.kind in ("instant", "wall")

    def _exact(self, value: Any, *, written: bool = False) -> Any:
        if written and self.kind in (None, "number") and self._may_be_decimal(value):
            return _decimal(value)  # where the kind is not known yet, the first row judges
        kind, exact = self._read(value)
        if kind == self.kind:
            return exact
        if self.kind is None:
            self.kind, self._sample = kind, value
            return exact
        raise self._apart(value, kind)

    def _read(self, value: Any) -> tuple[Kind, Any]:
        """Return the kind of a value, and what it is exactly."""
        try:
            return self._spelling.read(value)
        except LookupError:
            raise self._unread(value) from None
        except TypeError as error:
            raise TypeError(self._told(value, error)) from error
        except (ValueError, OverflowError) as error:
            raise ValueError(self._told(value, error)) from error

    def _told(self, value: Any, error: Exception) -> str:
        """Return the error text for an unreadable value: where it is, and for an argument how to write it."""
        name = next((name for name, known in self._known.items() if known is value), None)
        if name is None:
            is_iso = isinstance(value, str) and (read_time(value) is not None or read_day(value) is not None)
            return f"{self.where}: {error}" + (": leave out cursor_format, ISO 8601 text needs none" if is_iso else "")
        advice = f": write {name}='0' or an aware datetime" if isinstance(self._spelling, Epoch) else ""
        return f"{self.where}: {name}: {error}{advice}"

    def _unread(self, text: str) -> ValueError:
        """Return the error for text without a known format."""
        return ValueError(
            f"{self.where}: {self._named(text)} is text without a known format, so it cannot be compared. "
            f"Say what it is: {', or '.join(formats_for(text))}"
        )

    def _apart(self, value: Any, kind: Kind) -> TypeError:
        """Return the error for a value that cannot be compared with the earlier ones."""
        one, other = self._named(value), self._named(self._sample)
        if {kind, self.kind} == {"instant", "wall"}:
            naive, aware = (one, other) if kind == "wall" else (other, one)
            return TypeError(
                f"{self.where}: {naive} has no time zone and {aware} has one: pass the time zone of the first, "
                "such as timezone='UTC' or timezone='Europe/Berlin'"
            )
        number = value if kind == "number" else self._sample
        is_number = self._is_plain and "number" in (kind, self.kind) and isinstance(number, int | float | Decimal)
        units = [name for name in UNITS if is_probable(number, name)] if is_number else []
        advice = f": if it is a time, write cursor_format={units[0]!r}" if units else ""
        return TypeError(
            f"{self.where}: {one} ({_type_of(value)}) cannot be compared with {other} "
            f"({_type_of(self._sample)}){advice}"
        )

    def _named(self, value: Any) -> str:
        shown = shorten(value)
        return next((f"{name} {shown}" for name, known in self._known.items() if known is value), shown)

    # Spelling and moving

    def spell(self, key: Key, like: Any) -> Any:
        """Return the greatest value in the type and spelling of `like` whose key is not above this one."""
        return self._spelling.write(self._form.moment(key) if self.has_clock else key, like)

    def spelled(self, value: Any, like: Any = None) -> Any:
        """Return a bound as the source spells values: the date or datetime beside a `cursor_format`, as `like`."""
        if self._is_plain or not isinstance(value, date):
            return value
        return self._spelling.write(self._exact(value), value if like is None else like)

    def shift(self, value: Any, step: Amount, times: int = 1, *, written: bool = False) -> Any:
        """Return a value moved by `times` steps, in its own type and spelling, rounded down.

        A timedelta is a length of time, also where a clock is put forward or back meanwhile. What lies before year 1
        becomes year 1; past year 9999 is an OverflowError.
        """
        if written and self.kind == "number" and self._may_be_decimal(value):
            value = _decimal(value)
        kind, exact = self._read(value)
        if kind == "text" or (kind == "number") == isinstance(step, timedelta):
            raise TypeError(f"{self.where}: {self._named(value)} ({_type_of(value)}) cannot be moved by {step!r}")
        if not isinstance(step, timedelta):
            return self._spelling.write(Fraction(exact) + times * Fraction(step), value)
        moved = _moment_after(exact, times * step)
        try:
            return self._spelling.write(moved, value)
        except (ValueError, OverflowError) as error:
            if moved[0] > 0:
                raise OverflowError(
                    f"{self.where}: the result lies after the year 9999{self.unit_advice(value)}"
                ) from error
            return self._spelling.lowest(value)

    def unit_advice(self, value: Any) -> str:
        """Return the end of an error text that names a likelier epoch format; empty: there is none."""
        format_ = self._spelling.name if isinstance(self._spelling, Epoch) else None
        likelier = likelier_epoch(value, format_)
        return f": cursor_format={format_!r} reads it so, did you mean {likelier!r}?" if likelier else ""

    def check_step(self, name: str, step: Amount | None) -> None:
        """Refuse a step, the argument `name`, by which values of this kind cannot be moved.

        Raises:
            TypeError: it goes with another kind.

        """
        if step is None or self.kind is None:
            return
        wanted = "a number" if self.kind == "number" else "a timedelta"
        if self.kind == "text":
            raise TypeError(f"{self.where}: text cannot be moved: leave out {name}")
        if (self.kind == "number") == isinstance(step, timedelta):
            sample = "" if self._sample is None else f" for values such as {self._named(self._sample)}"
            likely = [*likely_epochs(self._sample), "epoch_s"][0]
            epochs = f", or a timedelta with a cursor_format such as {likely!r}" if self.kind == "number" else ""
            raise TypeError(f"{self.where}: {name} must be {wanted}{sample}{epochs}, not {step!r}")
        self._spelling.check_writes(f"{self.where}: {name}")

    def repeats(self, value: Any) -> bool:
        """Tell whether a value is of a clock that shows some hours twice."""
        return not is_fixed(self._clock.zone) and self._spelling.naive(value) is not None

    def first_pass(self, value: Any) -> Any:
        """Return the beginning of the span that a clock shows twice, if a naive value lies in it; else None."""
        zone, naive = self._clock.zone, self._spelling.naive(value)
        if zone is None or naive is None or is_fixed(zone):
            return None
        begin = begin_of_repeated(naive, zone)
        return None if begin is None else self._spelling.write(self._clock.timed(begin, "", None)[1], value)

    def months(self, value: Any, count: int) -> Any:
        """Return a value moved by calendar months of its own clock; a day the month lacks becomes its last one."""
        try:
            return self._spelling.months(value, count)
        except TypeError as error:
            raise TypeError(f"{self.where}: {error}") from error

    def now(self, ahead: int = 0, at: Moment | None = None) -> Key | None:
        """Return the key of a moment (default: now) and some seconds; None for values without a clock.

        Where nobody said whose clock it is, it is the one that shows a moment first.
        """
        if not self.has_clock:
            return None
        seconds, fraction = clock() if at is None else at
        if self.kind == "wall":
            seconds += EASTERNMOST
        return self._form.key((seconds + ahead, fraction[:MICRO].rstrip("0")))  # as fine as keys are compared quickly

    def digestible(self, key: Key) -> str:
        """Return a key as text: one for all spellings of a value."""
        if not self.has_clock:
            return key if isinstance(key, str) else str(Fraction(key))
        seconds, fraction = self._form.moment(key)
        return f"{seconds}.{fraction}"

    def digestible_before(self, value: Any, key: Key) -> list[str]:
        """Return what version 1 may have made of a value, in place of `digestible`."""
        found = [self.digestible(key)]
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, int | float | Decimal):
            found.append(str(Fraction(value)))
        return found


def is_missing_value(value: Any) -> bool:
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


def _moment_after(moment: Moment, by: timedelta) -> Moment:
    seconds, fraction = moment
    digits = max(len(fraction), MICRO)
    micros = (by.days * DAY + by.seconds) * 10**MICRO + by.microseconds
    total = seconds * 10**digits + int(fraction.ljust(digits, "0")) + micros * 10 ** (digits - MICRO)
    seconds, rest = divmod(total, 10**digits)
    return seconds, f"{rest:0{digits}}".rstrip("0")


def zone_of(zone: tzinfo | str | None) -> tzinfo | None:
    """Return the zone that a name names.

    Raises:
        TypeError, ValueError: there is none of this name.

    """
    if zone is None or isinstance(zone, tzinfo):
        return zone
    if not isinstance(zone, str):
        raise TypeError(f"timezone must be a tzinfo or a name such as 'Europe/Berlin', not {zone!r}")
    try:
        return ZoneInfo(zone)
    except (LookupError, ValueError, OSError) as error:
        raise ValueError(
            f"timezone: there is no time zone {zone!r}; write a name such as 'Europe/Berlin' (if the system "
            "has no time zones, install tzdata)"
        ) from error


def epoch_named(number: Any) -> str | None:
    """Return the cursor format of a number that looks like a moment between 30 days ago and tomorrow.

    None: it does not. One that does may count something else all the same.
    """
    now = time.time()
    for name, places in UNITS.items():
        if now - 30 * DAY <= number / 10**places <= now + DAY:
            return name
    return None


def likelier_epoch(value: Any, cursor_format: object) -> str | None:
    """Return the epoch format that reads a value as a time between 1990 and 2100, where the `cursor_format` does not.

    None: the `cursor_format` is no epoch format, or reads such a time, or no other one does.
    """
    likely = likely_epochs(value) if cursor_format in UNITS else []
    return None if not likely or cursor_format in likely else likely[0]


def likely_epochs(value: Any) -> list[str]:
    """Return the epoch formats that read a number, or its text, as a time between 1990 and 2100."""
    number = _decimal(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float | Decimal):
        return []
    return [name for name in UNITS if is_probable(number, name)]


def shorten(value: Any) -> str:
    """Return a value as an error shows it."""
    shown = repr(value)
    return shown if len(shown) <= SHOWN + 2 else f"{shown[:SHOWN]}…"


def _type_of(value: Any) -> str:
    is_text = isinstance(value, str) and read_time(value) is None and read_day(value) is None
    return "text" if is_text else type(value).__name__


def _decimal(text: str) -> Decimal | None:
    """Return the Decimal that was stored as this text; None: none was."""
    try:
        number = Decimal(text)
    except ArithmeticError:
        return None
    return number if number.is_finite() else None


def clock() -> tuple[int, str]:
    """Return the key of the moment, among instants."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return seconds, f"{nanos:09}".rstrip("0")


def wire(value: Any) -> Any:
    """Return a value as JSON has it, every digit kept."""
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else plain_python(value)
