"""Moments and lengths of time: `2024-05-01T10:00Z`, `2h`."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from functools import lru_cache
from typing import NamedTuple

_UNITS = {
    1: ("s", "sec", "second", "seconds"),
    60: ("m", "min", "minute", "minutes"),
    3_600: ("h", "hour", "hours"),
    86_400: ("d", "day", "days"),
    604_800: ("w", "week", "weeks"),
}
_SECONDS = {spelling: seconds for seconds, spellings in _UNITS.items() for spelling in spellings}


class When(NamedTuple):
    """A point in a namespace's history: after the commit of a version, or at a time."""

    text: str
    version: int | None = None
    at: datetime | None = None

    @property
    def said(self) -> str:
        """The moment in a sentence: `at version 12`, `at 2024-05-01T10:00Z` or `2h ago`."""
        if self.version is None and seconds_in(self.text) is not None:
            return f"{self.text} ago"
        return f"at {self.text}" if self.version is None else f"at version {self.text}"

    def is_reached_by(self, version: int | None, at: str | None) -> bool:
        """Tell whether a commit, given by its version and time, lies at or before this point."""
        if self.version is not None:
            return (version or 0) <= self.version
        then = instant(at)
        return then is not None and self.at is not None and then <= self.at


def seconds_in(text: str) -> int | None:
    """Parse a length of time such as `2h` or `2 hours` into seconds; None: it is not one."""
    found = re.fullmatch(r"([0-9]{1,6}) ?([a-z]+)", text)
    return None if found is None or found[2] not in _SECONDS else int(found[1]) * _SECONDS[found[2]]


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(timezone.utc)


@lru_cache(4_096)  # cached: one commit gives many entries the same time
def instant(moment: str | None) -> datetime | None:
    """Parse the time of an entry; None if it is missing or unreadable."""
    try:
        then = datetime.fromisoformat((moment or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    return then if then.tzinfo is not None else then.replace(tzinfo=timezone.utc)


def seconds_since(moment: str | None) -> float | None:
    """Return how many seconds ago an ISO 8601 time was; None if it is unknown."""
    then = instant(moment)
    return None if then is None else (now() - then).total_seconds()
