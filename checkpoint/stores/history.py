"""Which changes of a key stores keep, and for how long.

The last `keep` changes of a key are kept. Of the older ones the last of each hour is kept for three days, and the last
of each day (UTC) for `keep_days`. The limits apply to each key separately, so a busy key never removes the history of a
quiet one.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from checkpoint.entries import RESERVED, Change, Writer, check_text, has_history, head_key, named
from checkpoint.stores.base import check_name, host, time_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from checkpoint.entries import Entry

KEEP = 100
"""Number of changes of a key that are kept regardless of age."""

KEEP_DAYS = 90
"""Days for which the last change of each day is kept beyond that number."""

HOURLY = timedelta(days=3)
"""How long the last change of each hour is kept."""

_HOUR, _DAY = len("2024-05-01T10"), len("2024-05-01")  # length of the hour and of the day in a time text


def check_keep(keep: int, keep_days: int) -> None:
    """Refuse invalid limits of a history; 0 changes: no history.

    Raises:
        TypeError: one is not an int.
        ValueError: one is negative, or above the range of databases or dates.

    """
    for what, number, most in (("keep", keep, (1 << 63) - 1), ("keep_days", keep_days, timedelta.max.days)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{what} must be an int, not {type(number).__name__}")
        if number < 0:
            raise ValueError(f"{what} must be 0 or more, not {number}")
        if number > most:
            raise ValueError(f"{what} must be at most {most}, not {number}")


def check_question(state_key: str, key: str | None, limit: int | None) -> None:
    """Refuse invalid arguments of `history`.

    Raises:
        TypeError, ValueError: as `check_name`, or the limit is not an int of at least 0.

    """
    check_name("state_key", state_key)
    if key is not None:
        check_name("key", key)
    if limit is not None:
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise TypeError(f"limit must be an int, not {type(limit).__name__}")
        if limit < 0:
            raise ValueError(f"limit must be 0 or more, not {limit}")


def writer_of(reasons: Mapping[str, str], writer: Writer | None) -> Writer:
    """Return the writer of a commit (default: this process), and refuse reasons and names that are not text.

    Raises:
        TypeError, ValueError: one is not a str, or some store cannot hold it; the process is not an int.

    """
    for key, reason in reasons.items():
        check_text(f"the reason for {key!r}", reason)
    if writer is None:
        return Writer(host(), os.getpid())
    check_text("host", writer.host)
    if writer.by is not None:
        check_text("by", writer.by)
    if not isinstance(writer.process, int) or isinstance(writer.process, bool):
        raise TypeError(f"process must be an int, not {type(writer.process).__name__}")
    if not 0 <= writer.process < 1 << 63:
        raise ValueError(f"process must be a process id, not {writer.process}")
    return writer


def replaced_values(changes: Mapping[str, str | None], stored: Mapping[str, Entry]) -> dict[str, str | None]:
    """Return the changes of a commit for the history: each changed key with its old value; None: it was absent."""
    return {
        key: stored[key].value if key in stored else None
        for key, value in changes.items()
        if has_history(key) and (value is not None or key in stored)
    }


def answers(stored_key: str, key: str | None) -> bool:
    """Whether a history of `key` includes a stored key; see `KeepsHistory.history`."""
    if key is None:
        return not stored_key.startswith(RESERVED) or named(stored_key)[1] is not None
    return stored_key == key or stored_key.startswith(f"{head_key(key)}/")


class Memory:
    """Decides which changes of one key are kept, from the newest on; `now` is the time text of the newest.

    A damaged time never removes a change: a change with one is kept, and a damaged `now` is replaced by the time of
    this machine.
    """

    def __init__(self, keep: int, keep_days: int, now: str) -> None:
        moment = datetime_of(now) or datetime.now(timezone.utc)
        self._left = keep
        self._hourly, self._daily = time_text(_ago(moment, HOURLY)), time_text(_ago(moment, timedelta(days=keep_days)))
        self._seen: set[str] = set()  # hours and days that already have a kept change

    def keeps(self, at: str) -> bool:
        """Whether the next older change is kept, by its time."""
        if not isinstance(at, str):  # pyright: ignore[reportUnnecessaryIsInstance] - SQLite may hold other types
            return True
        hour, day, seen = at[:_HOUR], at[:_DAY], self._seen
        self._left -= 1
        kept = self._left >= 0 or (at >= self._daily and (day not in seen or (at >= self._hourly and hour not in seen)))
        seen.add(hour)
        seen.add(day)
        return kept


def forgotten(times: Sequence[tuple[int, str]], keep: int, keep_days: int) -> list[int]:
    """Return the versions of a key's changes that are no longer kept.

    `times` has the version and time of each, newest first. A `keep` of 0 keeps none.
    """
    if not keep:
        return [version for version, _ in times]
    if len(times) <= keep:
        return []
    memory = Memory(keep, keep_days, times[0][1])
    return [version for version, at in times if not memory.keeps(at)]


def datetime_of(at: object) -> datetime | None:
    """Parse a stored time; None if it is invalid or has no time zone."""
    try:
        moment = datetime.fromisoformat(at.replace("Z", "+00:00")) if isinstance(at, str) else None
    except ValueError:
        return None
    return None if moment is None or moment.tzinfo is None else moment


def _ago(now: datetime, age: timedelta) -> datetime:
    return now - min(age, now - datetime.min.replace(tzinfo=timezone.utc))


def change_of(row: Sequence[Any]) -> Change:
    """Build a change from the key of its entry and the other fields of `Change`, in order, without the member."""
    stored_key, *rest = row
    key, member = named(stored_key)
    return Change._make((key, *rest[:7], member, *rest[7:]))
