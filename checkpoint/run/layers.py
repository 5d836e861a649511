"""The layers of a run's keys, and the claim that takes what is above down to what is below.

A key is held in up to three layers, the upper hiding the lower:

    drafts    what the job set, deleted or read in place; local to the job, not yet claimed
    waiting   snapshots that the job said are safe, on their way to the store (`Claims`)
    known     the entries as the store is known to hold them (`Claims`)

The keys of live streams and groups have no draft: their holders say at a claim what they are to hold.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from checkpoint.entries import RESERVED
from checkpoint.run.claims import Claims
from checkpoint.run.drafts import Drafts
from checkpoint.run.groups import Group, Layouts, shards_of
from checkpoint.run.holders import Holders, KeyHolder, decoded
from checkpoint.stores.base import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from checkpoint.codec import Cursor
    from checkpoint.entries import Entry
    from checkpoint.run.claims import Changes
    from checkpoint.run.holders import Caller, Scope, Stream
    from checkpoint.run.rollback import Rollback

logger = logging.getLogger("checkpoint")

LARGE = 1_000_000
"""Characters of a stored value from which on a warning is logged: 1 MB."""


class Layers:
    """What a run holds of its namespace. Callers hold `claims.lock`."""

    def __init__(self, state_key: str, run_id: str | None) -> None:
        self.state_key = state_key
        self.claims = Claims(run_id)
        self.drafts = Drafts(self.claims)
        self.holders = Holders()
        self.layouts = Layouts()
        self.rollback: Rollback | None = None
        """Set where the store writes in the caller's own transactions."""
        self.phase: Literal["new", "open", "closed"] = "new"
        self.atomic = True
        """Whether commits of the store are all or nothing."""

    def check_open(self) -> None:
        """Refuse to be used before or after the run's block."""
        if self.phase != "open":
            raise RuntimeError(f"a Checkpointer is used inside its with block; this one is {self.phase}")

    def groups(self) -> list[Group]:
        """Return the live groups."""
        return [holder for holder in self.holders.groups() if isinstance(holder, Group)]

    # The mapping

    def shows(self, key: object) -> TypeGuard[str]:
        """Tell whether a key is the mapping's: not a reserved one, and no group's."""
        if not isinstance(key, str) or key.startswith(RESERVED):
            return False
        return not any(group.owns(key) for group in self.groups())

    def value(self, key: str) -> str | None:
        """Return the value of a key of the mapping, None where it is absent."""
        return self.drafts.value(key) if self.shows(key) else None

    def keys(self) -> list[str]:
        """Return the keys of the mapping, decoding none."""
        keys = dict.fromkeys(self.claims.known)
        waiting = [(key, claim.value is not None) for key, claim in self.claims.waiting.items()]
        for key, there in (*waiting, *self.drafts.edits()):
            if there:
                keys[key] = None
            else:
                keys.pop(key, None)
        if self.groups():
            return [key for key in keys if self.shows(key)]
        return [key for key in keys if not key.startswith(RESERVED)]

    def read(self, key: str) -> Cursor:
        """Return the cursor of a key, live where nothing else sets the key.

        Raises:
            KeyError: there is none.
            CorruptState: the value is not a cursor.

        """
        if (live := self.drafts.live(key)) is not None:
            return live
        cursor = decoded(self.state_key, key, self.value(key))
        if cursor is None:
            raise KeyError(key)
        if self.holders.get(key) is None:  # else this is a copy of the stream's
            self.drafts.hand_out(key, cursor)
        return cursor

    def put(self, key: str, value: str, *, anyhow: bool) -> None:
        """Set a key; equal to what lies below it is no change, unless `anyhow`.

        Raises:
            TypeError, ValueError: the key is not one, or a stream or group holds it.

        """
        check_key(key)
        self.check_free(key)
        # What was written in a transaction that may be rolled back is set again in any case.
        undoable = self.rollback is not None and self.rollback.is_written(key)
        self.drafts.put(key, value, anyhow=anyhow or undoable)

    def changed(self) -> set[str]:
        """Return the keys that were set, changed or deleted, and are not flushed; of a group, its name."""
        groups = self.groups()
        keys = {*self.claims.waiting, *self.drafts.changed()}
        if groups:
            keys = {next((group.name for group in groups if group.owns(key)), key) for key in keys}
        return keys.union(group.name for group in groups if group.changed())

    def check_free(self, key: str) -> None:
        """Refuse to set a key that a stream or group holds."""
        self._check_ungrouped(key)
        if self.holders.get(key) is not None:
            raise ValueError(f"{key!r} is held by a live stream, which sets it: open it again after it, or rewind it")

    def _check_ungrouped(self, key: str) -> None:
        for group in self.groups():
            if group.owns(key):
                raise ValueError(f"{key!r} holds the group {group.name!r}: set its members")

    # Streams and groups

    def stored_cursor(self, key: str, group: Group | None) -> Cursor | None:
        """Return the cursor that a stream of this key, or of this member of a group, starts from."""
        if group is not None:
            return group.cursor(key)
        check_key(key)
        self._check_ungrouped(key)
        self.drafts.freeze(key)
        return decoded(self.state_key, key, self.drafts.value(key))

    def hold(self, stream: Stream, group: Group | None) -> None:
        """Let a stream hold its key, or its member of a group."""
        if group is not None:
            group.hold(stream)
        else:
            self.holders.open(KeyHolder(stream, self.state_key, self.claims.below))

    def open_group(self, name: str, shards: int) -> Group:
        """Open a group, in the place of one of its name."""
        check_key(name)
        for other in self.groups():
            if other.name != name and (other.owns(name) or shards_of(name, other.name)):
                raise ValueError(f"{name!r} would share entries with the group {other.name!r}: name it otherwise")
        group = Group(self.state_key, name, shards, lambda: self._stored_of(name), key_by_key=not self.atomic)
        self.holders.open(group)
        self.drafts.drop([key for key in self.drafts.touched() if group.owns(key)])
        return group

    def group_of(self, group: Group | str) -> Group:
        """Return the live group that a stream is opened in; one not opened yet has the shards it is stored in."""
        name = group if isinstance(group, str) else group.name
        live = self.holders.get(name)
        if not isinstance(group, str) and group != live:
            raise ValueError(f"{group!r} is not a live group of this run")
        if isinstance(live, Group):
            return live
        return self.open_group(name, max((shards_of(name, key) for key in self._stored_of(name)), default=1))

    def _stored_of(self, name: str) -> dict[str, str]:
        """Return the values of a group's entries, for any number of shards, as the job sees them."""
        keys = dict.fromkeys((*self.claims.known, *self.claims.waiting, *(key for key, _ in self.drafts.edits())))
        values = {key: self.drafts.value(key) for key in keys if shards_of(name, key)}
        return {key: value for key, value in values.items() if value is not None}

    # Claiming

    def claim(self, only: tuple[Any, ...], by: Caller) -> frozenset[str]:
        """Claim what was asked for, all or none; return its keys.

        The holders say what their keys are to hold. The drafts of the other keys are added. What differs is claimed.
        Then the holders are told, and the drafts.

        Raises:
            TypeError, ValueError: something cannot be claimed; nothing was.

        """
        if self.rollback is not None:
            self.drafts.moved_below(self.rollback.look(self.claims))
        scope = self.holders.scope(only, by, self._is_key)
        said, streamed = self.holders.claim(scope)
        if self.rollback is not None:
            self.rollback.check_claims(streamed)
        changes = {**self.drafts.changes(scope.keys, besides=said), **self.claims.differing(said)}
        asked = None if scope.keys is None else self._asked(scope, scope.keys, said)
        self.claims.take(changes, asked)
        self.layouts.claimed([group for group in self.groups() if group.name in scope.holders], changes)
        self.holders.claimed(scope)
        self.drafts.drop(said)
        self.drafts.claimed(changes)
        self._warn_of_size(changes)
        return frozenset(self.claims.waiting if asked is None else asked)

    def _is_key(self, key: str) -> bool:
        return self.drafts.has(key) or self.drafts.is_edited(key) or key in self.claims.known

    def _asked(self, scope: Scope, keys: set[str], said: Iterable[str]) -> set[str]:
        """Return the keys that a commit names, those of its groups with what they had claimed before."""
        groups = [group for group in self.groups() if group.name in scope.holders]
        return {*keys, *said, *(key for key in self.claims.waiting if any(group.owns(key) for group in groups))}

    def _warn_of_size(self, changes: Changes) -> None:
        for key, value in changes.items():
            if value is not None and len(value) >= LARGE:
                logger.warning(
                    "%r: the value of %r is %d bytes; a cursor should be small (and a group have more shards)",
                    self.state_key, key, len(value),
                )  # fmt: skip

    # Going back

    def discard(self, loaded: dict[str, Entry] | None = None) -> None:
        """Drop what was not claimed, and adopt what conflicts found, or a fresh listing; holders go back.

        Raises:
            CorruptState: a holder cannot go back, and is detached; the others went back.

        """
        self.drafts.clear()
        self.claims.discard()
        if self.rollback is not None:
            self.rollback.discard()
        if loaded is not None:
            self.claims.adopt(loaded)
        self.holders.back()

    def steps(self, batch: Changes) -> list[Changes]:
        """Cut a batch into what must land one after the other, where a store writes key by key."""
        if self.atomic:
            return [batch]
        return [*self.layouts.steps(self.state_key, batch, self.claims.known, self.claims.doubts.is_open)]

    def forked(self) -> None:
        """Start over in a forked child."""
        self.claims.forked()
        self.holders.forked()

    def check(self) -> None:
        """Raise AssertionError where something cannot be; for tests."""
        self.claims.check()
        self.drafts.check()
        if read := [holder.name for holder in self.holders.live() if self.drafts.live(holder.name) is not None]:
            raise AssertionError(f"held, and given out to be changed in place: {read}")


def check_key(key: str) -> None:
    """Refuse a key that the mapping cannot have.

    Raises:
        TypeError, ValueError: as `check_name`, or it is reserved.

    """
    check_name("key", key)
    if key.startswith(RESERVED):
        raise ValueError(f"keys beginning with {RESERVED} are reserved: {key!r}")
