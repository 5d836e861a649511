"""What a run is unsure of: writes with an unknown outcome, and entries that conflicts found.

    sent       open   found     when
    values     yes    -         the last commit of the key got no response
    values     no     -         a later commit was confirmed; an earlier attempt may still land
    -          yes    -         as the first line, after its values have expired
    any        any    an entry  a conflict found it, or found the key deleted; `discard` adopts it

A value expires two deadlines after its last attempt: by then no request that carried it can still land. A key without
any of these is dropped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Entry

NOTHING: Final = object()
"""No conflict found anything; None means that one found the key deleted."""


class Doubt:
    """What a run is unsure of about one key."""

    __slots__ = ("found", "open", "sent")

    def __init__(self) -> None:
        self.sent: dict[str | None, float] = {}
        """Own values that may have landed or may land yet (None: a deletion), with the monotonic time of expiry."""
        self.open: bool = False
        """Whether the store may hold another value than the one known."""
        self.found: object = NOTHING
        """The entry that the last conflict found, None for a deleted key."""

    @property
    def settled(self) -> bool:
        """Whether no doubt is left."""
        return not (self.sent or self.open) and self.found is NOTHING


class Doubts:
    """The doubts of a run, by key."""

    def __init__(self, run_id: str | None) -> None:
        self.lasting: float = 120.0
        """Seconds for which a value that was sent may still land: two deadlines of the store."""
        self._run_id = run_id
        self._by_key: dict[str, Doubt] = {}

    def is_open(self, key: str) -> bool:
        """Whether the store may hold another value than the known one."""
        return key in self._by_key and self._by_key[key].open

    def send(self, batch: Mapping[str, str | None], *, unknown: Iterable[str] = ()) -> None:
        """Remember values that may still land.

        For keys in `unknown`, the store may hold another value than the known one.
        """
        until = time.monotonic() + self.lasting
        for key, value in batch.items():
            self._by_key.setdefault(key, Doubt()).sent[value] = until
        for key in unknown:
            self._by_key.setdefault(key, Doubt()).open = True

    def sent(self, key: str) -> list[str | None]:
        """Return the values of a key that may have landed or may still land."""
        return [*self._by_key[key].sent] if key in self._by_key else []

    def find(self, conflicts: Mapping[str, Entry | None]) -> None:
        """Remember the entries that conflicts found."""
        for key, entry in conflicts.items():
            self._by_key.setdefault(key, Doubt()).found = entry

    def is_own(self, key: str, entry: Entry | None) -> bool:
        """Whether a stored entry comes from a write of this run whose outcome was unknown."""
        doubt = self._by_key.get(key)
        if doubt is None:
            return False
        now = time.monotonic()
        doubt.sent = {value: until for value, until in doubt.sent.items() if now < until}
        if (entry.value if entry is not None else None) not in doubt.sent:
            return False
        # The API records no run id. A store with versions records it in every entry.
        return entry is None or entry.version is None or entry.sync_job_run_id == self._run_id

    def confirm(self, keys: Iterable[str]) -> None:
        """Mark the stored values of these keys as known again; earlier attempts may still land."""
        for key in keys:
            if doubt := self._by_key.get(key):
                doubt.open, doubt.found = False, NOTHING
                if doubt.settled:
                    del self._by_key[key]

    def take_found(self) -> dict[str, Entry | None]:
        """Return and forget the entries that conflicts found."""
        found: dict[str, Entry | None] = {}
        for key, doubt in [*self._by_key.items()]:
            if doubt.found is not NOTHING:
                found[key], doubt.found = doubt.found, NOTHING  # type: ignore[assignment] # pyright: ignore[reportArgumentType] - a sentinel beside entries
                if doubt.settled:
                    del self._by_key[key]
        return found

    def close(self, keys: Iterable[str]) -> None:
        """Note that the store holds the known values of these keys."""
        for key in keys:
            if doubt := self._by_key.get(key):
                doubt.open = False
                if doubt.settled:
                    del self._by_key[key]

    def opened(self) -> set[str]:
        """Return the keys whose stored value may differ from the known one."""
        return {key for key, doubt in self._by_key.items() if doubt.open}

    def check(self) -> None:
        """Raise AssertionError where the state is not in the table above; for tests."""
        if settled := [key for key, doubt in self._by_key.items() if doubt.settled]:
            raise AssertionError(f"settled, and still doubted: {settled}")
