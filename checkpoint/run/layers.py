"""The layers of a run's keys, and the step that turns drafts into claims.

A key is held in up to three layers, where an upper one hides the lower ones:

    drafts    what the job set, deleted or read in place; local to the job, not yet claimed
    waiting   committed snapshots on their way to the store (`Claims`)
    known     the entries as the store is known to hold them (`Claims`)

A member of a group is a key like any other, `__group__.NAME/MEMBER`; `Groups` decides how it is stored. A key that a
live stream holds has no draft: the stream supplies its value at a claim.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, TypeGuard, cast

from checkpoint.entries import GROUP_PREFIX, RESERVED, head_key, member_key, named
from checkpoint.run.claims import Claims, decoded
from checkpoint.run.drafts import Drafts
from checkpoint.run.groups import Group
from checkpoint.run.holders import Holders, KeyHolder, Scope
from checkpoint.run.packing import Groups
from checkpoint.run.runs import members_read
from checkpoint.stores.base import check_name

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable

    from checkpoint.codec import Cursor
    from checkpoint.entries import Entry
    from checkpoint.run.claims import Changes
    from checkpoint.run.holders import Stream
    from checkpoint.run.rollback import Rollback
    from checkpoint.streams.holding import Caller

logger: logging.Logger = logging.getLogger("checkpoint")

LARGE = 1_000_000
"""Length of a stored value from which a warning is logged: 1 MB."""


class Layers:
    """The state of a run's namespace. Callers hold `claims.lock`."""

    def __init__(self, state_key: str, run_id: str | None) -> None:
        self.state_key = state_key
        self.claims: Claims = Claims(run_id)
        self.groups: Groups = Groups(state_key, self.claims)
        self.drafts: Drafts = Drafts(self.groups)
        self.holders: Holders = Holders()
        self._below = self.groups.below  # one for thousands of streams
        self.rollback: Rollback | None = None
        """Set if the store writes in the caller's transactions."""
        self.phase: Literal["new", "open", "closed"] = "new"

    @property
    def lock(self) -> threading.RLock:
        """The lock over the layers; a fork replaces it."""
        return self.claims.lock

    def check_member(self, member: str) -> None:
        """Check that the name of a member can be a key."""
        check_name("a member", member)

    def check_open(self) -> None:
        """Raise an error before or after the run's block."""
        if self.phase != "open":
            why = "has not been entered" if self.phase == "new" else "has ended"
            raise RuntimeError(f"use a Checkpointer inside its with block: this one {why}")

    # The mapping

    def shows(self, key: object) -> TypeGuard[str]:
        """Whether a key belongs to the mapping: neither reserved nor a group."""
        return isinstance(key, str) and not key.startswith(RESERVED) and not self.groups.hides(key)

    def keys(self) -> list[str]:
        """Return the keys of the mapping, without decoding any."""
        keys = dict.fromkeys(self.claims.known)
        waiting = [(key, value is not None) for key, value in self.claims.waiting.items()]
        for key, there in (*waiting, *self.drafts.edits()):
            if there:
                keys[key] = None
            else:
                keys.pop(key, None)
        if self.groups.opened():
            return [key for key in keys if self.shows(key)]
        return [key for key in keys if not key.startswith(RESERVED)]

    def read(self, key: str) -> Cursor:
        """Return the cursor of a key or member: the live dict, unless a stream holds the key.

        Raises:
            KeyError: it is absent.
            CorruptState: the value is not a cursor.

        """
        if (live := self.drafts.live(key)) is not None:
            return live
        value = self.drafts.value(key)
        if value is None:
            raise KeyError(key)
        cursor = decoded(self.state_key, key, value)
        if self.holders.get(key) is None:  # else it is a copy of the stream's cursor
            self.drafts.hand_out(key, cursor)
        return cursor

    def put(self, key: str, value: str, *, anyhow: bool) -> None:
        """Set a key; a value equal to the one below is not a change, unless `anyhow`.

        Raises:
            TypeError, ValueError: the key is invalid, or a stream or group holds it.

        """
        check_key(key)
        self.check_free(key)
        # A key written in a transaction that may be rolled back is always set again.
        undoable = self.rollback is not None and self.rollback.is_written(key)
        self.drafts.put(key, value, anyhow=anyhow or undoable)

    def changed(self) -> set[str]:
        """Return the keys with changes that are not flushed; a group counts by its name."""
        return {self.groups.owner(key) or key for key in {*self.claims.waiting, *self.drafts.changed()}}

    def check_free(self, key: str) -> None:
        """Refuse to set an invalid key, or one that a stream or group holds."""
        check_name("key", key)
        self._check_ungrouped(key)
        if self.holders.get(key) is not None:
            raise ValueError(
                f"{key!r} is held by a live stream and cannot be set: rewind() or reset() the stream, or "
                "set the key before opening it"
            )

    def _check_ungrouped(self, key: str) -> None:
        if self.groups.hides(key):
            raise ValueError(f"{key!r} stores the group {self.groups.owner(key)!r}: set the members of the group")
        if self.claims.below(head_key(key)) is not None:
            raise ValueError(
                f"{key!r} is the name of a group: open it with cp.group, or choose another name for the key"
            )

    # Streams and groups

    def key_of(self, key: str, group: Group | str | None) -> str:
        """Return the key for a stream to hold: a key of the mapping, or a member of a group."""
        if group is None:
            check_key(key)
            self._check_ungrouped(key)
            return key
        self.check_member(key)
        if not isinstance(group, str | Group):
            raise TypeError(f"group must be a Group of this run, or its name, not {group!r}")
        name = group if isinstance(group, str) else group.name
        owner = self.groups.get(name)
        if not isinstance(group, str) and owner is not group:
            raise ValueError(f"{group!r} is not a live group of this run")
        if owner is None:
            self.open_group(name, None)
        return member_key(name, key)

    def stored_cursor(self, key: str) -> Cursor | None:
        """Return the cursor that a stream starts from; a dict that was read before becomes a copy."""
        self.drafts.freeze(key)
        value = self.drafts.value(key)
        return None if value is None else decoded(self.state_key, key, value)

    def hold(self, stream: Stream, key: str) -> None:
        """Let a stream hold a key."""
        group = named(key)[0] if key.startswith(GROUP_PREFIX) else None
        packed = self.groups.key_by_key and group is not None
        self.holders.open(KeyHolder(stream, key, group, self.state_key, self._below, packed=packed))

    def open_group(self, name: str, shards: int | None) -> Group:
        """Open a group, replacing an open one of the same name."""
        check_key(name)
        if self.drafts.is_edited(name) or self.holders.get(name) is not None:
            raise ValueError(f"{name!r} is a key of this run: choose another name for the group")
        group = self.groups.open(self, name, shards)
        self.drop_members(name)
        self.drafts.drop([key for key in self.drafts.touched() if self.groups.hides(key)])
        return group

    def members_read(self) -> dict[str, dict[str, list[str]]]:
        """Return the members of groups that were read to their end; see `runs.members_read`."""
        found: dict[str, dict[str, list[str]]] = {}
        for name, read in self.holders.members_read().items():
            prefix = member_key(name, "")
            every = {key.removeprefix(prefix) for key in self.claims.known if key.startswith(prefix)}
            if (told := members_read(read, every | read)) is not None:
                found[name] = told
        return found

    def drop_members(self, name: str) -> None:
        """Forget the drafts of a group's members, and detach the streams that hold members."""
        prefix = member_key(name, "")
        self.holders.detach(prefix)
        self.drafts.drop([key for key in self.drafts.touched() if key.startswith(prefix)])

    # Claiming

    def claim(self, only: tuple[object, ...], by: Caller) -> set[str] | None:
        """Claim what the commit includes, all or none; return the entries to flush (None: all waiting ones).

        Streams that changed since their last claim supply the values of their keys. The drafts of the other keys are
        added. The differences are claimed, members as the entries that hold them. Then streams and drafts are notified.
        Unchanged keys cost nothing.

        Raises:
            TypeError, ValueError: something cannot be claimed; nothing was claimed.

        """
        if self.rollback is not None:
            self.rollback.look(self.claims, self._note_undone)
        scope = self._scope(only, by)
        keys = {holder.key: None for holder in scope.holders}
        try:
            for holder in scope.holders:
                self.holders.untouch(holder)
            return self._take(scope)
        except BaseException:  # also of a signal handler, anywhere in the loop
            self.holders.touch_all(keys)
            raise

    def _note_undone(self, keys: Iterable[str]) -> None:
        """Note that the layer below changes for these keys: their commits were rolled back."""
        self.drafts.moved_below(keys)
        self.holders.touch_all(dict.fromkeys(keys))

    def _take(self, scope: Scope) -> set[str] | None:
        said = {holder.key: holder.claim() for holder in scope.holders}
        if self.rollback is not None:
            self.rollback.check_claims(said)
        changes = {**self.drafts.changes(scope.keys, besides=said), **self.groups.differing(said)}
        lowered = self.groups.lower(changes)
        asked = None if scope.keys is None else {*scope.keys, *lowered}
        if asked is not None:
            asked |= self.groups.entries_of(asked, scope.groups)
        self.claims.take(lowered, asked)
        for holder in scope.holders:
            if holder.stream.reason is not None and holder.key in lowered:
                self.claims.reasons[holder.key] = holder.stream.reason
            holder.claimed()
            holder.stream.let_go(scope.by)
        self.drafts.drop(said)
        self.drafts.claimed(changes)
        self._warn_of_size(lowered)
        return asked

    def _scope(self, only: tuple[object, ...], by: Caller) -> Scope:
        """Return the scope of a commit.

        Raises:
            ValueError: an argument is neither a key nor a live stream or group of this run.

        """
        if not only:
            return Scope(by, None, [one for one in self.holders.touched() if not one.stream.held_elsewhere(by)], set())
        scope = Scope(by, set(), [], set())
        for one in only:
            if isinstance(one, Group) or self.groups.get(one) is not None:
                self._add_group(scope, one)
            elif isinstance(one, str):
                self._add_key(scope, one, self.holders.get(one))
            elif (holder := self.holders.of(one)) is not None:
                self._add_key(scope, holder.key, holder)
            else:
                raise ValueError(f"{one!r} is neither a key nor a live stream of this run")
        return scope

    def _add_group(self, scope: Scope, one: object) -> None:
        group = one if isinstance(one, Group) else self.groups.get(one)
        if group is None or self.groups.get(group.name) is not group:
            raise ValueError(f"{one!r} is not a live group of this run")
        prefix = member_key(group.name, "")
        scope.groups.add(group.name)
        cast("set[str]", scope.keys).update(key for key in self.drafts.touched() if key.startswith(prefix))
        scope.holders.extend(
            one
            for one in self.holders.touched()
            if one.key.startswith(prefix) and not one.stream.held_elsewhere(scope.by)
        )

    def _add_key(self, scope: Scope, key: str, holder: KeyHolder | None) -> None:
        if holder is not None:
            if holder.stream.held_elsewhere(scope.by):
                raise RuntimeError(
                    f"{holder.stream.key!r} was read by another thread or task, which still has rows of it in hand: "
                    "iterate over its pages in the thread or task that writes and commits them; to read ahead, let a "
                    "thread fetch from the source, and pass what it fetched to pages(), track() or fetch() here"
                )
            scope.holders.append(holder)
        elif not (self.drafts.has(key) or self.drafts.is_edited(key) or key in self.claims.known):
            self._check_no_member(key)
        cast("set[str]", scope.keys).add(key)

    def _check_no_member(self, key: str) -> None:
        """Refuse to commit a member by its key: it is not in the mapping."""
        for holder in self.holders.live(GROUP_PREFIX):
            if holder.stream.key == key:
                group = named(holder.key)[0]
                raise ValueError(f"{key!r} is a member of the group {group!r}: commit the stream, or the group")

    def _warn_of_size(self, changes: Changes) -> None:
        for key, value in changes.items():
            if value is not None and len(value) >= LARGE:
                logger.warning(
                    "%r: the value of %r is %d bytes: store less in one cursor, or use more shards for a group",
                    self.state_key, key, len(value),
                    extra={
                        "checkpoint_event": "value_large", "checkpoint_namespace": self.state_key,
                        "checkpoint_bytes": len(value),
                    },
                )  # fmt: skip

    # Going back

    def discard(self, loaded: dict[str, Entry] | None = None) -> None:
        """Drop unclaimed changes, adopt the entries that conflicts found or a fresh listing, and reset the holders.

        Raises:
            CorruptState: a holder cannot be reset, and is detached; the others were reset.

        """
        self.drafts.clear()
        self.claims.discard()
        if self.rollback is not None:
            self.rollback.discard()
        if loaded is not None:
            self.claims.adopt(loaded)
        try:
            self.groups.back(self.drop_members)
        finally:
            self.holders.back()

    def check(self) -> None:
        """Raise AssertionError where the layers contradict each other; for tests."""
        self.claims.check()
        self.drafts.check()
        self.holders.check()
        if read := [holder.key for holder in self.holders.live() if self.drafts.live(holder.key) is not None]:
            raise AssertionError(f"held, and given out to be changed in place: {read}")


def check_key(key: str) -> None:
    """Refuse a key that is invalid in the mapping.

    Raises:
        TypeError, ValueError: as `check_name`, or it is reserved.

    """
    check_name("key", key)
    if key.startswith(RESERVED):
        raise ValueError(f"keys beginning with {RESERVED} are reserved: {key!r}")
