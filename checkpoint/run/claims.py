"""Claims on their way to the store, and the entries that the store is known to hold.

    waiting  key → value: committed snapshots that are not stored yet
    failed   which of these keys have a claim whose last flush failed
    known    key → Entry: what the store is known to hold

A claim that has not failed is sent by the next flush. A failed claim is sent again only when a commit asks for it, and
`discard` drops it. A flush sends claims to the store, and puts their entries into `known` once the store confirms them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias

from checkpoint import codec
from checkpoint.entries import Entry
from checkpoint.errors import CorruptState
from checkpoint.run.doubts import Doubts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

Changes: TypeAlias = dict[str, str | None]
"""Values by key; None deletes."""


class Claims:
    """The two lower layers of a run's keys, their lock, and the run's doubts."""

    def __init__(self, run_id: str | None) -> None:
        self.waiting: Changes = {}
        self.failed: set[str] = set()
        """Waiting keys whose last flush failed."""
        self.known: dict[str, Entry] = {}
        self.reasons: dict[str, str] = {}
        """The reasons given for changes of waiting keys; for the history."""
        self.doubts: Doubts = Doubts(run_id)
        self.lock: threading.RLock = threading.RLock()
        """Guards all layers of the run; never held during a request."""

    def below(self, key: str) -> str | None:
        """Return the value of a key as last claimed, else as known; None if absent."""
        if self.waiting and key in self.waiting:
            return self.waiting[key]
        return value_of(self.known.get(key))

    def is_unsure(self, key: str) -> bool:
        """Whether the store may hold another value than the known one."""
        return self.doubts.is_open(key)

    def keys_from(self, prefix: str) -> list[str]:
        """Return the keys with a prefix."""
        keys = dict.fromkeys(key for key in self.known if key.startswith(prefix))
        for key, value in self.waiting.items():
            if key.startswith(prefix):
                if value is None:
                    keys.pop(key, None)
                else:
                    keys[key] = None
        return [*keys]

    def take(self, changes: Changes, asked: Iterable[str] | None) -> None:
        """Add changes. Failed claims of these keys, and of the keys in `asked` (None: all), become due again."""
        self.waiting.update(changes)  # atomically
        if asked is None:
            self.failed.clear()
        else:
            self.failed.difference_update(asked, changes)

    def fail(self, batch: Mapping[str, str | None]) -> None:
        """Mark claims as failed, unless a newer one of the same key is waiting."""
        for key, value in batch.items():
            if key in self.waiting and self.waiting[key] == value:
                self.failed.add(key)

    def batch(self, only: Collection[str] | None) -> Changes:
        """Return the claims to send: those of some keys; None: all but failed ones.

        Claims that equal the known entry are dropped: a later claim restored the value before a flush.
        """
        batch: Changes = {}
        for key, value in [*self.waiting.items()]:
            if key in self.failed if only is None else key not in only:
                continue
            if value_of(self.known.get(key)) == value and not self.doubts.is_open(key):
                self._settle(key)
            else:
                batch[key] = value
        return batch

    def confirm(self, batch: Mapping[str, str | None], confirmed: Mapping[str, Entry | None]) -> None:
        """Move keys that the store confirmed from `waiting` to `known`, unless a newer claim is waiting."""
        self.know(confirmed)
        self.doubts.confirm(confirmed)
        for key in confirmed:
            if key in self.waiting and self.waiting[key] == batch[key]:
                self._settle(key)

    def _settle(self, key: str) -> None:
        """Drop the claim of a key: the store holds it."""
        self.failed.discard(key)
        self.reasons.pop(key, None)
        del self.waiting[key]

    def know(self, entries: Mapping[str, Entry | None]) -> None:
        """Set known entries; None: absent."""
        for key, entry in entries.items():
            if entry is None:
                self.known.pop(key, None)
            else:
                self.known[key] = entry

    def discard(self) -> None:
        """Drop failed claims, and adopt the entries that conflicts found.

        A key with a claim that still waits keeps the base it was claimed on, see `adopt`.
        """
        self.waiting = {key: value for key, value in self.waiting.items() if key not in self.failed}
        self.failed.clear()
        self.reasons = {key: reason for key, reason in self.reasons.items() if key in self.waiting}
        self.know({key: entry for key, entry in self.doubts.take_found().items() if key not in self.waiting})

    def adopt(self, loaded: dict[str, Entry]) -> None:
        """Take a fresh listing as known.

        A key that is claimed and not flushed yet keeps the base it was claimed on, so that a foreign change to it is
        still a `Conflict` and not overwritten.
        """
        kept = {key: self.known.get(key) for key in self.waiting}
        self.known = loaded
        self.know(kept)
        self.doubts.close(self.doubts.opened() - kept.keys())

    def forked(self) -> None:
        """Reset in a forked child: a new lock, and no claims; the parent sends them."""
        self.lock = threading.RLock()
        for key, value in self.waiting.items():
            if value is None:
                self.known.pop(key, None)
            else:
                self.known[key] = self.known.get(key, Entry(key, value))._replace(value=value)
        self.doubts.close(self.waiting)
        self.waiting.clear()
        self.failed.clear()
        self.reasons.clear()

    def check(self) -> None:
        """Raise AssertionError where the layers contradict each other; for tests."""
        self.doubts.check()
        if lost := {*self.failed, *self.reasons} - self.waiting.keys():
            raise AssertionError(f"failed, or changed for a reason, and not waiting: {lost}")
        if wrong := [key for key, entry in self.known.items() if entry.key != key]:
            raise AssertionError(f"known under another key: {wrong}")


def value_of(entry: Entry | None) -> str | None:
    """Return the value of an entry, None without an entry."""
    return entry.value if entry is not None else None


def decoded(state_key: str, key: str, value: str) -> codec.Cursor:
    """Return the JSON object in a value.

    Raises:
        CorruptState: it is not a JSON object.

    """
    try:
        return codec.decode(value)
    except ValueError as reason:
        raise CorruptState(state_key, key, value) from reason
