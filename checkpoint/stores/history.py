"""What stores remember of each key's changes, and for how long.

The last `keep` changes of a key are kept. Of the older ones the last of each hour is kept for three days, and the last
of each day (UTC) for `keep_days`. The bound counts for each key alone, so a busy key never drops the history of a quiet
one.
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
"""Changes of a key that are kept whatever their age."""

KEEP_DAYS = 90
"""Days for which the last change of each day is kept beyond them."""

HOURLY = timedelta(days=3)
"""For how long the last change of each hour is kept."""

_HOUR, _DAY = len("2024-05-01T10"), len("2024-05-01")  # how much of a time names its hour, and its day


def check_keep(keep: int, keep_days: int) -> None:
    """Refuse numbers that do not bound a history; 0 changes: none is kept at all.

    Raises:
        TypeError: one is not an int.
        ValueError: one is negative, or higher than databases or dates go.

    """
    for what, number, most in (("keep", keep, (1 << 63) - 1), ("keep_days", keep_days, timedelta.max.days)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{what} must be an int, not {type(number).__name__}")
        if number < 0:
            raise ValueError(f"{what} must be a number from 0 on, not {number}")
        if number > most:
            raise ValueError(f"{what} must be a number up to {most}, not {number}")


def check_question(state_key: str, key: str | None, limit: int | None) -> None:
    """Refuse what asks for no history.

    Raises:
        TypeError, ValueError: as `check_name`, or the limit is not a number from 0 on.

    """
    check_name("state_key", state_key)
    if key is not None:
        check_name("key", key)
    if limit is not None:
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise TypeError(f"limit must be an int, not {type(limit).__name__}")
        if limit < 0:
            raise ValueError(f"limit must be a number from 0 on, not {limit}")


def writer_of(reasons: Mapping[str, str], writer: Writer | None) -> Writer:
    """Return who commits, this process where nobody is named, and refuse reasons and names that are not text.

    Raises:
        TypeError, ValueError: one is not a str, or holds what not every store can; the process is not an int.

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


def told(changes: Mapping[str, str | None], stored: Mapping[str, Entry]) -> dict[str, str | None]:
    """Return what history tells of a commit: each key that it changes, and the value it had; None: it was absent."""
    return {
        key: stored[key].value if key in stored else None
        for key, value in changes.items()
        if has_history(key) and (value is not None or key in stored)
    }


def answers(stored_key: str, key: str | None) -> bool:
    """Tell whether a history of `key` tells of a stored key; see `KeepsHistory.history`."""
    if key is None:
        return not stored_key.startswith(RESERVED) or named(stored_key)[1] is not None
    return stored_key == key or stored_key.startswith(f"{head_key(key)}/")


class Memory:
    """Judges the changes of one key, the newest first; `now` is the time of that one, as text.

    A damaged time bounds nothing: the change is kept, or `now` is the time of this machine.
    """

    def __init__(self, keep: int, keep_days: int, now: str) -> None:
        moment = moment_of(now) or datetime.now(timezone.utc)
        self._left = keep
        self._hourly, self._daily = time_text(_ago(moment, HOURLY)), time_text(_ago(moment, timedelta(days=keep_days)))
        self._seen: set[str] = set()  # hours and days of which a later change is kept

    def keeps(self, at: str) -> bool:
        """Tell whether the next older change is kept, by its time."""
        if not isinstance(at, str):  # pyright: ignore[reportUnnecessaryIsInstance] - as SQLite may hold it
            return True
        hour, day, seen = at[:_HOUR], at[:_DAY], self._seen
        self._left -= 1
        kept = self._left >= 0 or (at >= self._daily and (day not in seen or (at >= self._hourly and hour not in seen)))
        seen.add(hour)
        seen.add(day)
        return kept


def forgotten(times: Sequence[tuple[int, str]], keep: int, keep_days: int) -> list[int]:
    """Return the versions of a key's changes that are kept no longer.

    `times` are the version and time of each, the newest first. 0 as `keep`: none is kept.
    """
    if not keep:
        return [version for version, _ in times]
    if len(times) <= keep:
        return []
    memory = Memory(keep, keep_days, times[0][1])
    return [version for version, at in times if not memory.keeps(at)]


def moment_of(at: object) -> datetime | None:
    """Return the moment of a stored time; None: it is none, or lacks a zone."""
    try:
        moment = datetime.fromisoformat(at.replace("Z", "+00:00")) if isinstance(at, str) else None
    except ValueError:
        return None
    return None if moment is None or moment.tzinfo is None else moment


def _ago(now: datetime, age: timedelta) -> datetime:
    return now - min(age, now - datetime.min.replace(tzinfo=timezone.utc))


def change_of(row: Sequence[Any]) -> Change:
    """Return a change from the key of its entry and, in the order of `Change`, all else but the member."""
    stored_key, *rest = row
    key, member = named(stored_key)
    return Change._make((key, *rest[:7], member, *rest[7:]))
