"""A store in this process's memory: for tests, and for runs that need not be resumed."""

from __future__ import annotations

import os
from collections import deque
from datetime import timedelta
from itertools import chain, islice
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakSet

from checkpoint.entries import Change, Entry, Receipt
from checkpoint.stores.base import (
    KEEP,
    before,
    check_base,
    check_changes,
    check_history,
    check_keep,
    check_name,
    host,
    kept_since,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class MemoryStore:
    """Namespaces in a dict: atomic commits with compare-and-swap, gone with the process.

    `keep` bounds the history of each namespace: a number of commits (0: none is kept) or an age.
    """

    atomic = True

    def __init__(self, *, keep: int | timedelta = KEEP) -> None:
        check_keep(keep)
        self._keep = keep
        self._namespaces: dict[str, dict[str, Entry]] = {}
        self._versions: dict[str, int] = {}
        self._commits: dict[str, deque[list[Change]]] = {}  # the oldest first
        self._lock = Lock()
        _stores.add(self)

    def __repr__(self) -> str:
        return "MemoryStore()"

    @classmethod
    def from_url(cls, url: str) -> MemoryStore:
        """Return the store of `memory://name`: the same one for every caller in this process."""
        name = url.removeprefix("memory://")
        if name in {url, ""}:
            raise ValueError(f"a memory store's URL is memory://name, not {url!r}")
        return _named.setdefault(name, cls())

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`."""
        check_name("state_key", state_key)
        with self._lock:
            return dict(self._namespaces.get(state_key, {}))

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
    ) -> Receipt:
        """Write the changed keys, all or none; see `Store.commit`."""
        check_changes(state_key, changes, run_id)
        with self._lock:
            stored = self._namespaces.get(state_key, {})
            check_base(state_key, changes, base, stored)
            now, version = utc_now(), self._versions.get(state_key, 0) + 1
            written: dict[str, Entry] = {}
            after = dict(stored)
            for key, value in changes.items():
                if value is None:
                    after.pop(key, None)
                else:
                    created_at = after[key].created_at if key in after else now
                    after[key] = written[key] = Entry(key, value, created_at, now, run_id, version)
            if changes:
                self._namespaces[state_key], self._versions[state_key] = after, version
                self._remember(
                    state_key,
                    [
                        Change(key, value, changes[key], version, now, run_id, host(), os.getpid())
                        for key, value in before(changes, stored).items()
                    ],
                )
            return Receipt(written)

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold a key; see `ListsNamespaces.namespaces`."""
        with self._lock:
            return sorted(state_key for state_key, entries in self._namespaces.items() if entries)

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what was changed; see `KeepsHistory.history`."""
        check_history(state_key, key, limit)
        with self._lock:
            changes = chain.from_iterable(reversed(self._commits.get(state_key, ())))
            return list(islice((change for change in changes if key in {None, change.key}), limit))

    def _remember(self, state_key: str, changes: list[Change]) -> None:
        if not changes:
            return
        commits = self._commits.setdefault(state_key, deque())
        commits.append(changes)
        if isinstance(self._keep, timedelta):
            since = kept_since(self._keep)
            while commits and commits[0][0].at < since:
                commits.popleft()
        else:
            while len(commits) > self._keep:
                commits.popleft()

    def close(self) -> None:
        """Do nothing: the entries live as long as the store."""


_named: dict[str, MemoryStore] = {}
_stores: WeakSet[MemoryStore] = WeakSet()


def _after_fork() -> None:
    for store in _stores:
        store._lock = Lock()  # noqa: SLF001 - it may be held by a thread that the child does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
