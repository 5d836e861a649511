"""A store in this process's memory: for tests, and for runs that are never resumed."""

from __future__ import annotations

import os
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from weakref import WeakSet

from checkpoint.entries import Change, Entry, Receipt
from checkpoint.stores.base import check_base, check_changes, check_name, entries_of, utc_now
from checkpoint.stores.history import (
    KEEP,
    KEEP_DAYS,
    answers,
    change_of,
    check_keep,
    check_question,
    forgotten,
    replaced_values,
    writer_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from checkpoint.entries import Writer


THINNED_EVERY = 256
"""The history of a key is thinned whenever its number of changes is a multiple of this."""


class _Cell(NamedTuple):
    """A key: its entry, None if it was deleted, and its history, newest first."""

    entry: Entry | None = None
    changes: tuple[Change, ...] = ()


class MemoryStore:
    """Namespaces in a dict: atomic commits with compare-and-swap, gone with the process.

    `keep` and `keep_days` limit the history of each key, see `checkpoint.stores.history`; a `keep` of 0 keeps none.

    Raises:
        ValueError, TypeError: `keep` or `keep_days` is not an int of at least 0.

    """

    atomic = True
    URL_OPTIONS: ClassVar[Mapping[str, Callable[[str], Any]]] = {"keep": int, "keep_days": int}

    def __init__(self, *, keep: int = KEEP, keep_days: int = KEEP_DAYS) -> None:
        check_keep(keep, keep_days)
        self._keep, self._keep_days = keep, keep_days
        # A commit is one `update` of its namespace's dict, so an interrupted one has written all or nothing. A version
        # is reserved before that, so that it is used only once.
        self._namespaces: dict[str, dict[str, _Cell]] = {}
        self._versions: dict[str, int] = {}
        self._lock = Lock()
        _stores.add(self)

    def __repr__(self) -> str:
        return "MemoryStore()"

    @classmethod
    def from_url(cls, url: str, **options: Any) -> MemoryStore:
        """Return the store of `memory://name`: the same one for every caller in this process."""
        name = url.removeprefix("memory://")
        if name in {url, ""} or "?" in name or "#" in name:
            raise ValueError(f"a memory store's URL must be memory://name, not {url!r}")
        return _named.setdefault(name, cls(**options))

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`."""
        check_name("state_key", state_key)
        return {key: cell.entry for key, cell in self._cells(state_key).items() if cell.entry is not None}

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys, as far as they exist; see `ReadsKeys.read`."""
        check_name("state_key", state_key)
        wanted = {*keys}
        for key in wanted:
            check_name("key", key)
        with self._lock:  # never half of a commit
            return _entries_at(self._namespaces.get(state_key, {}), wanted)

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
        reasons: Mapping[str, str] = {},
        writer: Writer | None = None,
    ) -> Receipt:
        """Write the changed keys, all or none; see `KeepsHistory.commit`."""
        check_changes(state_key, changes, run_id)
        author = writer_of(reasons, writer)
        with self._lock:
            cells = self._namespaces.get(state_key, {})
            stored = _entries_at(cells, {**base, **changes})
            check_base(state_key, changes, base, stored)
            if not changes:
                return Receipt()
            now, version = utc_now(), self._versions.get(state_key, 0) + 1
            self._versions[state_key] = version
            written = entries_of(changes, stored, now, run_id, version)
            past = replaced_values(changes, stored) if self._keep else {}
            new: dict[str, _Cell] = {}
            for key, value in changes.items():
                past_changes = cells[key].changes if key in cells else ()
                if key in past:
                    row = (key, past[key], value, version, now, run_id, author.host, author.process)
                    changed = change_of((*row, reasons.get(key), author.by))
                    past_changes = self._thinned((changed, *past_changes))
                new[key] = _Cell(written.get(key), past_changes)
            self._namespaces.setdefault(state_key, cells).update(new)
            return Receipt(written)

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold a key; see `ListsNamespaces.namespaces`."""
        found = [*self._namespaces.items()]
        return sorted(name for name, cells in found if any(cell.entry is not None for cell in [*cells.values()]))

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return the changes; see `KeepsHistory.history`."""
        check_question(state_key, key, limit)
        changes = [
            (-change.version, stored_key, change)
            for stored_key, cell in self._cells(state_key).items()
            if answers(stored_key, key)
            for change in self._kept(cell.changes)
        ]
        return [change for _, _, change in islice(sorted(changes), limit)]

    def close(self) -> None:
        """Do nothing: the entries live as long as the store."""

    def _cells(self, state_key: str) -> dict[str, _Cell]:
        return self._namespaces.get(state_key, {}).copy()  # in one step: other threads may be writing

    def _thinned(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """Drop the changes of a key that are no longer kept, only now and then: it takes longer than a commit.

        A change that has expired stays expired, so `history` returns the same changes whenever they are dropped.
        """
        return changes if len(changes) % THINNED_EVERY else self._kept(changes)

    def _kept(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """Return the kept changes of a key, newest first."""
        if len(changes) <= self._keep:
            return changes
        gone = forgotten([(change.version, change.at) for change in changes], self._keep, self._keep_days)
        return tuple(change for change in changes if change.version not in gone)


def _entries_at(cells: Mapping[str, _Cell], keys: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of these keys, as far as they exist."""
    found = ((key, cells[key].entry) for key in keys if key in cells)
    return {key: entry for key, entry in found if entry is not None}


_named: dict[str, MemoryStore] = {}
_stores: WeakSet[MemoryStore] = WeakSet()


def _renew_locks() -> None:
    for store in _stores:
        store._lock = Lock()  # noqa: SLF001 - it may be held by a thread that the child does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
