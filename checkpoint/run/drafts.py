"""Changes that the job has made and not yet committed: keys set, deleted or read for changing.

    edited    read    the key
    a value   -       was set
    None      -       was deleted
    -         a dict  was read; the job may change the dict in place
    a value   a dict  was set, and read after that

Every other key has its value in the layer below: as last claimed, else as stored. A claim moves the changes to the
layer below. Dicts that were read stay here, because the job still has them.
"""

from __future__ import annotations

from itertools import compress
from operator import ne
from typing import TYPE_CHECKING, Any, Protocol, cast

from checkpoint import codec
from checkpoint.errors import is_of_handler

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from checkpoint.codec import Cursor
    from checkpoint.run.claims import Changes


class Below(Protocol):
    """The layer that drafts lie on."""

    def below(self, key: str) -> str | None:
        """Return the value of a key as last claimed or stored; None if absent."""
        ...

    def is_unsure(self, key: str) -> bool:
        """Whether the store may hold another value than the known one."""
        ...


class Drafts:
    """The upper layer of a run's keys."""

    def __init__(self, below: Below) -> None:
        self._below = below
        self._edited: Changes = {}
        self._read: dict[str, Cursor] = {}  # the dicts handed out
        self._copies: dict[str, Cursor | None] = {}  # same keys, same order; None: always compare

    def __len__(self) -> int:
        return len(self._edited)

    # The job's side

    def has(self, key: str) -> bool:
        """Whether a key exists, without decoding it."""
        if key in self._edited:
            return self._edited[key] is not None
        return key in self._read or self._below.below(key) is not None

    def is_edited(self, key: str) -> bool:
        """Whether a key was set or deleted."""
        return key in self._edited

    def live(self, key: str) -> Cursor | None:
        """Return the dict that was handed out for a key; None if it was not read."""
        return self._read.get(key)

    def value(self, key: str) -> str | None:
        """Return the value of a key as the job sees it, None where it is absent or deleted.

        Raises:
            TypeError, ValueError: a cursor changed in place can no longer be encoded.

        """
        spelled = self._edited[key] if key in self._edited else self._below.below(key)
        if key not in self._read or (spelled is not None and not self._may_differ(key)):
            return spelled
        value = codec.encode(self._read[key])
        return spelled if spelled is not None and codec.same(value, spelled) else value

    def hand_out(self, key: str, cursor: Cursor) -> None:
        """Note that the decoded cursor of a key was given to the job, which may change it in place."""
        self._read[key], self._copies[key] = cursor, _copy(cursor)

    def put(self, key: str, value: str, *, anyhow: bool = False) -> None:
        """Set a key; a value equal to the one below is not a change, unless `anyhow`."""
        self._forget(key)
        below = None if anyhow or self._below.is_unsure(key) else self._below.below(key)
        if below is not None and codec.same(value, below):
            self._edited.pop(key, None)
        else:
            self._edited[key] = value

    def delete(self, key: str) -> None:
        """Delete a key."""
        self._forget(key)
        self._edited[key] = None

    def freeze(self, key: str) -> None:
        """Fix the current value of a key; later changes to the dict that was read have no effect."""
        if key in self._read:
            self._edited[key] = self.value(key)
            self._forget(key)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget the drafts of some keys."""
        for key in keys:
            self._edited.pop(key, None)
            self._forget(key)

    def clear(self) -> None:
        """Forget all drafts."""
        self._edited.clear()
        self._read.clear()
        self._copies.clear()

    def touched(self) -> set[str]:
        """Return the keys that were set, deleted or read."""
        return {*self._edited, *self._read}

    def edits(self) -> Iterator[tuple[str, bool]]:
        """Yield the keys that were set or deleted, and whether they exist."""
        return ((key, value is not None) for key, value in self._edited.items())

    # The run's side

    def changes(self, keys: Collection[str] | None, besides: Collection[str] = ()) -> Changes:
        """Return the changes against the layer below, of some keys (None: all) without those in `besides`.

        Raises:
            TypeError, ValueError: a cursor changed in place can no longer be encoded.

        """
        changes: Changes = {}
        for key in self._suspects(keys):
            if key not in besides and self._differs(key):
                changes[key] = self.value(key)
        return changes

    def changed(self) -> set[str]:
        """Return the keys that differ from the layer below, including those that can no longer be encoded."""
        return {key for key in self._suspects(None) if self._differs(key)}

    def claimed(self, changes: Changes) -> None:
        """Remove drafts that the layer below now contains."""
        for key, value in changes.items():
            self._edited.pop(key, None)
            if value is None:
                self._forget(key)
            elif key in self._read:
                self._copies[key] = _copy(self._read[key])

    def moved_below(self, keys: Iterable[str]) -> None:
        """Note that the layer below changed, other than by a claim."""
        for key in keys:
            if key in self._read:
                self._copies[key] = None

    def _suspects(self, keys: Collection[str] | None) -> list[str]:
        """Return the keys that were edited, or whose dict was changed."""
        if keys is not None:
            return [key for key in keys if key in self._edited or key in self._read]
        return [*self._edited, *(key for key in self._maybe_changed() if key not in self._edited)]

    def _differs(self, key: str) -> bool:
        below = self._below.below(key)
        if key not in self._read:
            return self._edited[key] != below or self._below.is_unsure(key)
        if below is None or key in self._edited:
            return True
        try:
            value = codec.encode(self._read[key])
        except (TypeError, ValueError):
            return True
        if not codec.same(value, below):
            return True
        self._copies[key] = _copy(self._read[key])  # equal, but formatted differently: do not encode it again
        return False

    def _may_differ(self, key: str) -> bool:
        try:
            return bool(self._read[key] != self._copies[key])
        except Exception as error:  # raised by an object that encoding will refuse
            if is_of_handler(error):
                raise
            return True

    def _maybe_changed(self) -> list[str]:
        """Return the keys whose dict may have been changed. This runs for every dict, so it avoids a Python loop."""
        try:
            return [*compress(self._read, map(ne, self._read.values(), self._copies.values()))]
        except Exception as error:  # as above
            if is_of_handler(error):
                raise
            return list(self._read)

    def _forget(self, key: str) -> None:
        """Forget a dict that was handed out."""
        self._read.pop(key, None)
        self._copies.pop(key, None)

    def check(self) -> None:
        """Raise AssertionError where the state is not in the table above; for tests."""
        if deleted := [key for key in self._read if self._edited.get(key, "") is None]:
            raise AssertionError(f"read after they were deleted: {deleted}")
        if [*self._read] != [*self._copies]:
            raise AssertionError("copies of other dicts than those that were handed out, or in another order")


class _Number:
    """Wraps a number or bool in a copy and equals only the same object, because `1 == 1.0 == True` in Python."""

    __slots__ = ("number",)

    def __init__(self, number: object) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return other is self.number

    __hash__ = None  # type: ignore[assignment] # never a key


def _copy(node: Any) -> Any:
    """Copy containers, with numbers that equal only themselves; strings are shared."""
    if isinstance(node, dict):
        items = cast("dict[str, Any]", node).items()
        return {key: item if type(item) is str else _copy(item) for key, item in items}
    if isinstance(node, list | tuple):
        copies = [_copy(item) for item in cast("list[Any]", node)]
        return copies if isinstance(node, list) else tuple(copies)
    return node if type(node) is str or node is None else _Number(node)
