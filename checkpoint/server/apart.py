"""Read a SQLite file through one connection and write it through another, so that writes do not stop reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from checkpoint.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Change, Entry, Receipt
    from checkpoint.stores.base import Store


def apart(store: Store) -> Store:
    """Return a store whose waiting commits do not stop reads: a `ReadsApart` for a SQLite file, else the store."""
    return ReadsApart(store) if isinstance(store, SQLiteStore) and store.path is not None else store


def kind(store: Store) -> str:
    """Return the name of a store's public class."""
    return SQLiteStore.__name__ if isinstance(store, ReadsApart) else type(store).__name__


class ReadsApart:
    """A SQLite store with a second connection for reading, because a connection serves one thread at a time."""

    atomic = True

    def __init__(self, store: SQLiteStore) -> None:
        self._writing = store
        self._reading = SQLiteStore(store.path, deadline=store.deadline)

    def __repr__(self) -> str:
        return repr(self._writing)

    @property
    def deadline(self) -> float:
        """Seconds for one load or commit; see `HasDeadline`."""
        return self._writing.deadline

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`."""
        return self._reading.load(state_key)

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys; see `ReadsKeys.read`."""
        return self._reading.read(state_key, keys)

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold a key; see `ListsNamespaces.namespaces`."""
        return self._reading.namespaces()

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what was changed; see `KeepsHistory.history`."""
        return self._reading.history(state_key, key, limit=limit)

    def facts(self) -> dict[str, str]:
        """Return facts about SQLite; see `TellsFacts.facts`."""
        return self._reading.facts()

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        **options: Any,
    ) -> Receipt:
        """Write the changed keys, all or none; see `KeepsHistory.commit`."""
        return self._writing.commit(state_key, changes, base, **options)

    def replace(self, state_key: str, key: str, value: str, **options: Any) -> Receipt:
        """Write a value in place of a damaged row; see `ReplacesRows.replace`."""
        return self._writing.replace(state_key, key, value, **options)

    def close(self) -> None:
        """Close both connections."""
        self._reading.close()
        self._writing.close()
