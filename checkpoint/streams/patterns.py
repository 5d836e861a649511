"""Times and days written after a `strptime` pattern, with English names whatever the process's locale is."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from checkpoint.streams import keys
from checkpoint.streams.keys import (
    DAY,
    EPOCH_DAY,
    HOUR,
    MINUTE,
    REMEMBERED,
    YEAR_ONE,
    Clock,
    KeyForm,
    Kind,
    Moment,
    ToKey,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

_LONGHAND = {"c": "%a %b %d %H:%M:%S %Y", "x": "%m/%d/%y", "X": "%H:%M:%S"}
"""What these stand for in English."""
_READS = {
    "d": r"3[01]|[12]\d|0[1-9]|[1-9]| [1-9]", "m": r"1[0-2]|0[1-9]|[1-9]", "y": r"\d\d", "Y": r"\d{4}", "G": r"\d{4}",
    "H": r"2[0-3]|[01]\d|\d", "I": r"1[0-2]|0[1-9]|[1-9]", "M": r"[0-5]\d|\d", "S": r"60|[0-5]\d|\d", "f": r"\d{1,6}",
    "j": r"36[0-6]|3[0-5]\d|[12]\d\d|0[1-9]\d|00[1-9]|[1-9]\d|0[1-9]|[1-9]", "p": "AM|PM", "u": "[1-7]", "w": "[0-6]",
    "U": r"5[0-3]|[0-4]\d|\d", "W": r"5[0-3]|[0-4]\d|\d", "V": r"5[0-3]|0[1-9]|[1-4]\d|\d",
    "z": r"[+-]\d\d:?[0-5]\d(?::?[0-5]\d)?|Z", "A": "|".join(DAYS), "a": "|".join(name[:3] for name in DAYS),
    "B": "|".join(MONTHS), "b": "|".join(name[:3] for name in MONTHS),
}  # fmt: skip
_WIDTHS = {"Y": 4, "G": 4, "j": 3, "f": 6} | dict.fromkeys("dmyHIMSUWV", 2)
_CLOCK = frozenset("HIMSfp")


Edges: TypeAlias = tuple[int, int, int]
"""Where the minutes of a text begin, its seconds end and their fraction ends, counted from its end."""


class _Read(NamedTuple):
    """What a text says."""

    local: int
    """Seconds since 1970 as its clock shows them."""
    fraction: str
    offset: int | None


class Pattern:
    """Text after a pattern as `datetime.strptime` takes it."""

    kind: Kind | None = None

    def __init__(self, pattern: str, clock: Clock) -> None:
        self.name = pattern
        self._clock = clock
        self._parts = _directives(pattern)
        letters = [letter for letter, _ in self._parts if letter]
        _check_directives(pattern, letters)
        self._letters = frozenset(letters)
        self._is_day = not _CLOCK & self._letters
        self._tight = any(
            one[0] in _WIDTHS and other[0] in _WIDTHS for one, other in zip(self._parts, self._parts[1:], strict=False)
        )  # digits beside digits
        self._match = re.compile(_regex(self._parts), re.ASCII | re.IGNORECASE).fullmatch

    def matches(self, text: str) -> bool:
        """Tell whether a text is written so, and in one way only."""
        try:
            self._parse(text)
        except ValueError:
            return False
        return not self._tight or self._is_full(self._shown(text))

    def _is_full(self, shown: dict[str, str]) -> bool:
        """Tell whether all numbers have as many digits as they can have."""
        return all(len(text) == _WIDTHS.get(letter, len(text)) for letter, text in shown.items())

    def read(self, value: Any) -> tuple[Kind, Moment]:
        """See `spellings.Spelling`; dates and datetimes are what they are."""
        if isinstance(value, date):
            return self._clock.dated(value)
        if not isinstance(value, str):
            raise TypeError(f"cursor_format {self.name!r} reads text, not {value!r}")
        read = self._parse(value)
        return self._clock.timed(read.local, read.fraction, read.offset)

    def _parse(self, text: str) -> _Read:
        match = self._match(text)
        if match is None:
            raise ValueError(f"cursor_format {self.name!r} does not match {text!r}")
        said = {name[0]: found for name, found in match.groupdict().items() if found is not None}
        try:
            day = _day(said)
        except ValueError as error:
            raise ValueError(f"cursor_format {self.name!r} does not match {text!r}: {error}") from error
        clock = _hours(said) * HOUR + int(said.get("M", 0)) * MINUTE + int(said.get("S", 0))
        zone = said.get("z")
        offset = None if zone is None else _offset(zone)
        return _Read((day.toordinal() - EPOCH_DAY) * DAY + clock, said.get("f", "").rstrip("0"), offset)

    def write(self, exact: Moment, like: Any) -> str:
        """See `spellings.Spelling`; fields are padded, and names and the zone written, as those of `like` are."""
        shown = self._shown(like)
        local = exact[0] + _offset(shown.get("z", "Z")) if "z" in self._letters else self._clock.local(exact[0])
        return self._written(local, exact[1], shown)

    def _written(self, local: int, fraction: str, shown: dict[str, str]) -> str:
        days, rest = divmod(local, DAY)
        said = _say(date.fromordinal(days + EPOCH_DAY), rest, fraction) | {"z": shown.get("z", "+0000")}
        return "".join(_as(letter, said[letter], shown.get(letter)) if letter else text for letter, text in self._parts)

    def check_writes(self, name: str) -> None:
        """See `spellings.Spelling`."""

    def naive(self, value: Any) -> int | None:
        """See `spellings.Spelling`."""
        if not isinstance(value, str):
            return keys.clock_of(value) if isinstance(value, datetime) else None
        return None if self._is_day or "z" in self._letters else self._parse(value).local

    def lowest(self, like: Any) -> Any:
        """See `spellings.Spelling`."""
        return self._written(YEAR_ONE, "", self._shown(like))

    def months(self, value: Any, count: int) -> Any:
        """See `spellings.Spelling`."""
        _, (seconds, fraction) = self.read(value)
        offset = self._parse(value).offset if isinstance(value, str) else None
        own = self._clock if offset is None else Clock(timezone(timedelta(seconds=offset)))
        return self.write((keys.months_later(seconds, count, own), fraction), value)

    def form(self, first: Any) -> KeyForm:
        """See `spellings.Spelling`."""
        return keys.TEXTS

    def _shown(self, like: Any) -> dict[str, str]:
        match = self._match(like) if isinstance(like, str) else None
        return {} if match is None else {name[0]: text for name, text in match.groupdict().items() if text is not None}

    def quick(self, slow: ToKey, first: Any) -> ToKey:
        """See `spellings.Spelling`."""
        if self._is_day or "M" not in self._letters:
            return keys.remembering(slow, str)

        cut = self._cut(first)

        def is_cut_so(value: Any) -> bool:
            if not isinstance(value, str) or self._cut(value) != cut:
                return False
            read = self._parse(value)
            offset = _steady_offset(read.local, read.offset, self._clock.zone)
            return offset is not None and offset % HOUR == 0

        return slow if cut is None else _of_split_text(slow, first, cut, is_cut_so)

    def _cut(self, value: str) -> Edges | None:
        """Return where the minutes begin, the seconds end and the fraction ends, counted from the end of a value.

        None where these do not stand side by side, or where digits beside each other leave room for two readings.
        """
        match = self._match(value)
        if match is None:
            return None
        begin, end = match.span("M1")
        if "S" in self._letters:
            if match.start("S1") < end or value[end : match.start("S1")].strip(":. "):
                return None
            end = match.end("S1")
        last = end
        if "f" in self._letters:
            if match.start("f1") != end + 1 or value[end] != ".":
                return None
            last = match.end("f1")
        shown = self._shown(value)
        if not self._is_full(shown if self._tight else {letter: shown[letter] for letter in "MS" if letter in shown}):
            return None
        size = len(value)
        return size - begin, size - end, size - last


# Columns of text


_MINUTES = len("00")


@lru_cache(maxsize=64)
def _clocks(between: str | None) -> dict[str, str]:
    """Return the minutes and seconds that there are, as written and as keys have them; `between` None: no seconds."""
    if between is None:
        return {f"{minute:02}": f":{minute:02}:00" for minute in range(60)}
    return {
        f"{minute:02}{between}{second:02}": f":{minute:02}:{second:02}" for minute in range(60) for second in range(60)
    }


def _steady_offset(local: int, offset: int | None, zone: tzinfo | None) -> int | None:
    """Return the seconds that a clock is ahead of UTC, where they are the same for a whole hour; None: they are not."""
    if offset is not None or zone is None:
        return offset or 0
    start = local - local % HOUR
    shift = keys.offset_at(start, zone)
    same = shift == keys.offset_at(start + HOUR - 1, zone) == keys.offset_at(local, zone)
    return shift.days * DAY + shift.seconds if same and not shift.microseconds else None


def _of_split_text(slow: ToKey, first: str, cut: Edges, is_cut_so: Callable[[Any], bool]) -> ToKey:
    """Return what makes the keys of times whose minutes and seconds stand side by side.

    What stands around them is remembered as an hour, where `is_cut_so` tells that a value is cut as the first one is,
    and that its offset is whole hours for all of the hour.
    """
    begin, end, last = cut
    hours: dict[str, str] = {}
    clock = first[-begin : len(first) - end]
    clocks = _clocks(clock[2:-2] if len(clock) > _MINUTES else None)

    def learn(value: Any) -> Any:
        key = slow(value)
        if key is not None and is_cut_so(value):
            if len(hours) >= REMEMBERED:
                hours.clear()
            hours[value[:-begin] + value[len(value) - last :]] = key[:_TO_HOUR]
        return key

    def ending(value: Any) -> Any:
        """Make the key of a time at whose end the seconds stand."""
        try:
            return hours[value[:-begin]] + clocks[value[-begin:]]
        except (LookupError, TypeError):
            return learn(value)

    def split(value: Any) -> Any:
        try:
            size = len(value)
            key = hours[value[:-begin] + value[size - last :]] + clocks[value[-begin : size - end]]
            fraction = value[size - end : size - last]
        except (LookupError, TypeError):
            return learn(value)
        if not fraction:
            return key
        return key + fraction[1:].rstrip("0") if _FRACTION(fraction) else learn(value)

    learn(first)
    return split if end else ending


_FRACTION = re.compile(r"\.\d+", re.ASCII).fullmatch
_TO_HOUR = len("2024-05-01T10")


# Patterns


def _directives(pattern: str) -> list[tuple[str, str]]:
    """Return a pattern as directives, by their letter, and text between them."""
    parts: list[tuple[str, str]] = []
    for directive, text in re.findall(r"%(.|$)|([^%]+)", pattern, re.DOTALL):
        if text:
            parts.append(("", text))
        elif directive in _LONGHAND:
            parts += _directives(_LONGHAND[directive])
        else:
            parts.append(("", "%") if directive == "%" else (directive or " ", ""))
    return parts


def _check_directives(pattern: str, letters: list[str]) -> None:
    unknown = [letter for letter in letters if letter not in _READS and letter != "Z"]
    if unknown:
        raise ValueError(f"cursor_format {pattern!r}: datetime.strptime has no %{unknown[0]}")
    if "Z" in letters:
        raise ValueError(
            f"cursor_format {pattern!r}: %Z is not supported, because names of time zones are ambiguous: use %z for "
            "offsets, or write the name itself in place of %Z and pass timezone="
        )
    twice = [letter for letter in letters if letters.count(letter) > 1]
    if twice:
        raise ValueError(f"cursor_format {pattern!r}: %{twice[0]} occurs twice")
    weeks = {"G", "V"} <= set(letters) and bool({"u", "a", "A", "w"} & set(letters))
    if not weeks and not {"Y", "y"} & set(letters):
        raise ValueError(f"cursor_format {pattern!r} has no year, so its values cannot be compared")


def _regex(parts: list[tuple[str, str]]) -> str:
    return "".join(
        f"(?P<{letter}1>{_READS[letter]})" if letter else re.sub(r"(?:\\?\s)+", r"\\s+", re.escape(text))
        for letter, text in parts
    )


def _offset(zone: str) -> int:
    if zone in ("Z", "z"):
        return 0
    digits = zone[1:].replace(":", "").ljust(6, "0")
    seconds = int(digits[:2]) * HOUR + int(digits[2:4]) * MINUTE + int(digits[4:6])
    return -seconds if zone[0] == "-" else seconds


def _hours(said: dict[str, str]) -> int:
    if "H" in said:
        return int(said["H"])
    hour = int(said.get("I", 0))
    if "p" in said and "I" in said:
        return hour % 12 + (12 if said["p"].upper() == "PM" else 0)
    return hour % 12 if "I" in said else 0


def _day(said: dict[str, str]) -> date:
    """Return the day that a text names; what it does not say is the first of the month or year.

    Raises:
        ValueError: there is no such day.

    """
    if "G" in said and "V" in said:
        return date.fromisocalendar(int(said["G"]), int(said["V"]), _weekday(said) + 1)
    year = int(said["Y"]) if "Y" in said else _century(int(said["y"]))
    if "j" in said:
        day = date(year, 1, 1) + timedelta(days=int(said["j"]) - 1)
        if day.year != year:
            raise ValueError("there is no such day")
        return day
    if ("U" in said or "W" in said) and {"a", "A", "u", "w"} & said.keys():
        return _day_of_week(year, said)
    return date(year, _month(said), int(said.get("d", 1)))


def _century(year: int) -> int:
    """Return a year of two digits in full, as POSIX does."""
    return year + (1900 if year >= 69 else 2000)


def _month(said: dict[str, str]) -> int:
    if "m" in said:
        return int(said["m"])
    name = said.get("b") or said.get("B")
    return 1 if name is None else [month[:3].lower() for month in MONTHS].index(name[:3].lower()) + 1


def _weekday(said: dict[str, str]) -> int:
    """Return the day of the week, Monday is 0."""
    if "u" in said:
        return int(said["u"]) - 1
    if "w" in said:
        return (int(said["w"]) - 1) % 7
    name = said.get("a") or said.get("A") or DAYS[0]
    return [day[:3].lower() for day in DAYS].index(name[:3].lower())


def _day_of_week(year: int, said: dict[str, str]) -> date:
    """Return a day of the weeks that begin on Sunday (%U) or Monday (%W); those before the first one are week 0."""
    sunday = "U" in said
    first = date(year, 1, 1)
    start = (first.weekday() + 1) % 7 if sunday else first.weekday()
    weekday = (_weekday(said) + 1) % 7 if sunday else _weekday(said)
    days = (7 - start) % 7 + 7 * (int(said["U" if sunday else "W"]) - 1) + weekday
    day = first + timedelta(days=days)
    if day.year != year:
        raise ValueError("there is no such day")
    return day


def _say(day: date, seconds: int, fraction: str) -> dict[str, str]:
    """Return what each directive says of a day and the seconds of it."""
    hour, minute, second = seconds // HOUR, seconds % HOUR // MINUTE, seconds % MINUTE
    week_year, week, weekday = day.isocalendar()
    yearday = day.timetuple().tm_yday
    return {
        "d": f"{day.day:02}", "m": f"{day.month:02}", "y": f"{day.year % 100:02}", "Y": f"{day.year:04}",
        "H": f"{hour:02}", "I": f"{(hour - 1) % 12 + 1:02}", "p": "PM" if hour >= 12 else "AM", "M": f"{minute:02}",
        "S": f"{second:02}", "f": fraction[:6].ljust(6, "0"), "j": f"{yearday:03}",
        "A": DAYS[weekday - 1], "a": DAYS[weekday - 1][:3], "B": MONTHS[day.month - 1], "b": MONTHS[day.month - 1][:3],
        "G": f"{week_year:04}", "V": f"{week:02}", "u": str(weekday), "w": str(weekday % 7),
        "U": f"{(yearday + 6 - weekday % 7) // 7:02}", "W": f"{(yearday + 6 - (weekday - 1)) // 7:02}",
    }  # fmt: skip


def _as(letter: str, text: str, like: str | None) -> str:
    """Return what a directive says, written as another time has it."""
    if like is None:
        return text
    if letter == "f":
        return text[: len(like)]
    if letter in "aAbBp":
        return text.upper() if like.isupper() else text.lower() if like.islower() else text
    if letter in _WIDTHS and letter != "y" and len(like) < _WIDTHS[letter]:
        return text.lstrip("0") or "0"
    return text.lstrip("0").rjust(2) if like.startswith(" ") else text
