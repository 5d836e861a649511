"""Keep Meltano's state in a store: the backend for a `state_backend.uri` that begins with `checkpoint+`.

    checkpoint+sqlite:////var/lib/state.db
    checkpoint+https://api.truto.one#crm
    checkpoint+server+https://checkpoint.example.com

After the `+` comes the URL of the store. After a `#` comes the namespace, percent-encoded; without one it is `meltano`.
Each state id is a key of that namespace, as `checkpoint.formats.key_of` makes it, and its cursor is
`{"completed": …, "partial": …}`. So the namespace has the form that `meltano state export` prints.

There are no lock files. A write is compared with the state that it was made from. If somebody wrote in between, the
partial state is merged into what they wrote, and written again.
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from meltano.core.state_store.base import (
    MeltanoState,
    StateIDLockedError,
    StateStoreManager,
    UnsupportedStateBackendURIError,
)

from checkpoint import codec
from checkpoint.errors import Conflict, CorruptState
from checkpoint.neighbours.documents import key_of, name_of
from checkpoint.stores import open_store
from checkpoint.stores.base import check_name

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from checkpoint.entries import Entry

PREFIX = "checkpoint+"
"""The prefix before the URL of a store."""

NAMESPACE = "meltano"
"""The namespace if the URL names none."""

ATTEMPTS = 100
"""How often a merge is tried again while others keep writing."""


@dataclass(slots=True)
class StoredState(MeltanoState):
    """State that was read, and the partial states that were merged into it since."""

    entry: Entry | None = None
    """The entry that it was read from. None: nothing was stored."""
    merged: list[MeltanoState] = field(default_factory=list[MeltanoState])
    """The merged states, in their order."""

    def merge_partial(self, state: MeltanoState) -> None:
        """Merge partial state onto this one, as Meltano does."""
        partial = deepcopy(state)
        partial.partial_state = partial.partial_state or {}
        self.merged.append(deepcopy(partial))
        super(StoredState, self).merge_partial(partial)


class CheckpointStateStoreManager(StateStoreManager):
    """Meltano's state in a namespace of a store; see the module.

    Failures of the store raise `CheckpointError`.

    Args:
        uri: `checkpoint+` and the URL of a store, with the namespace after a `#`.
        more: Meltano's other settings, which have no effect here, as there are no locks.

    Raises:
        UnsupportedStateBackendURIError: no store opens the URL, or the namespace is invalid.

    """

    label: str = "Checkpoint"  # pyright: ignore[reportIncompatibleMethodOverride] - as Meltano's own backends have it

    def __init__(self, uri: str, **more: Any) -> None:
        super().__init__(**more)
        url, _, fragment = uri.removeprefix(PREFIX).partition("#")
        self.namespace: str = unquote(fragment) or NAMESPACE
        try:
            check_name("its namespace", self.namespace)
            self._store = open_store(url)
        except ValueError as error:
            raise UnsupportedStateBackendURIError(f"state_backend.uri: {error}") from error
        self._listed: dict[str, Entry] | None = None  # the namespace, while its ids are iterated

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def get(self, state_id: str) -> StoredState | None:
        """Return the state of an id; None if nothing is stored.

        Raises:
            CorruptState: what is stored is not a state; it is kept.

        """
        entries = self._store.load(self.namespace) if self._listed is None else self._listed
        entry = entries.get(key_of(state_id))
        return None if entry is None else self._state_of(state_id, entry)

    def set(self, state: MeltanoState) -> None:
        """Write a state: complete state replaces what is stored, partial state alone is merged into it.

        State that was read with `get` replaces only the state that was read. If somebody else wrote in between, what
        was merged into it since `get` is merged into their state.

        Raises:
            StateIDLockedError: somebody else wrote in between, and there is nothing that could be merged again.

        """
        self._listed = None  # merge into what is stored now, in the middle of an iteration too
        if isinstance(state, StoredState):
            self._set_stored(state)
        elif state.is_complete():
            self._write([state])
        else:
            current = self.get(state.state_id) or StoredState(state.state_id, {}, {})
            current.merge_partial(state)
            self._set_stored(current)

    def set_all(self, states: Iterable[MeltanoState]) -> int:
        """Write many states in one commit, each replacing what is stored; return how many."""
        by_id = {state.state_id: state for state in states}
        self._write(by_id.values())
        return len(by_id)

    def delete(self, state_id: str) -> None:
        """Delete the state of an id; a missing state is no error."""
        self._store.commit(self.namespace, {key_of(state_id): None})

    def clear_all(self) -> int:
        """Delete the state of every id in one commit; return how many there were."""
        keys = [key_of(state_id) for state_id in self.get_state_ids()]
        self._store.commit(self.namespace, dict.fromkeys(keys))
        return len(keys)

    def get_state_ids(self, pattern: str | None = None) -> Generator[str]:
        """Yield the ids that have state, sorted; with a glob pattern, only those that match.

        Until the last id is yielded, or something is set, `get` uses the same list, because `meltano state list` asks
        for the state of each id.
        """
        self._listed = self._store.load(self.namespace)
        try:
            for key in sorted(self._listed):
                state_id = name_of(key)
                if key_of(state_id) == key and (pattern is None or fnmatchcase(state_id, pattern)):
                    yield state_id
        finally:
            self._listed = None

    @contextmanager
    def acquire_lock(self, state_id: str, *, retry_seconds: float) -> Generator[None]:
        """Do nothing: what `set` writes is compared with what `get` read."""
        yield

    def _set_stored(self, state: StoredState) -> None:
        merged, conflict = list(state.merged), self._replace(state)
        for _ in range(ATTEMPTS if merged else 0):
            if conflict is None:
                return
            state = self.get(state.state_id) or StoredState(state.state_id, {}, {})
            for partial in merged:
                state.merge_partial(partial)
            conflict = self._replace(state)
        if conflict is not None:
            raise StateIDLockedError(str(conflict)) from conflict

    def _replace(self, state: StoredState) -> Conflict | None:
        """Write a state if the entry that it was read from is still stored; else return the conflict."""
        key = key_of(state.state_id)
        try:
            receipt = self._store.commit(self.namespace, {key: _value_of(state)}, {key: state.entry})
        except Conflict as conflict:
            return conflict
        state.entry = receipt.entries[key]
        return None

    def _write(self, states: Iterable[MeltanoState]) -> None:
        self._store.commit(self.namespace, {key_of(state.state_id): _value_of(state) for state in states})

    def _state_of(self, state_id: str, entry: Entry) -> StoredState:
        try:
            state = codec.decode(entry.value)
            parts = [_part_of(state, part) for part in ("completed", "partial")]
        except ValueError as error:
            raise CorruptState(self.namespace, entry.key, entry.value) from error
        return StoredState(state_id, completed_state=parts[0], partial_state=parts[1], entry=entry)


def _value_of(state: MeltanoState) -> str:
    return codec.encode({"completed": state.completed_state or {}, "partial": state.partial_state or {}})


def _part_of(state: codec.Cursor, part: str) -> codec.Cursor:
    found = state.get(part)
    if not isinstance(found, dict | None):
        raise ValueError(f"its {part!r} is not an object")  # bad data, not a bad call
    return cast("codec.Cursor", found or {})
