"""Groups: cursors of tens of thousands of partitions, by member.

To the layers of a run a member is a key like any other, `__group__.NAME/MEMBER`: it has drafts, a stream may hold it.
`checkpoint.run.packing` decides how it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Literal, Protocol

from checkpoint import codec
from checkpoint.codec import Cursor
from checkpoint.entries import member_key

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from checkpoint.run.drafts import Drafts
    from checkpoint.run.holders import Holders


class Keys(Protocol):
    """The part of a run's layers that a group uses."""

    phase: Literal["new", "open", "closed"]
    drafts: Drafts
    holders: Holders

    @property
    def lock(self) -> AbstractContextManager[object]:
        """The lock over the layers."""
        ...

    def read(self, key: str) -> Cursor:
        """Return the cursor of a key (the live dict, unless a stream holds the key), or raise KeyError."""
        ...

    def check_member(self, member: str) -> None:
        """Check that the name of a member can be a key."""
        ...


class Members(Protocol):
    """The members of a group, as they are stored."""

    @property
    def name(self) -> str:
        """The name of the group."""
        ...

    @property
    def head(self) -> str:
        """The key of its head."""
        ...

    @property
    def shards(self) -> int | None:
        """Number of entries that the members are packed into; None: one entry per member."""
        ...

    def members(self) -> list[str]:
        """Return the names of the members, as last claimed."""
        ...


class Group(MutableMapping[str, Cursor]):
    """A mapping of member → cursor. Setting copies; a cursor that was read may be changed in place.

        accounts = cp.group("accounts")
        for account in api.accounts():
            accounts[account.id] = {"updated_at": sync(account, since=accounts.get(account.id))}
        cp.commit()

    `Checkpointer.group` makes it, and the commits of the run include it. On the HTTP API members are packed into
    shards, and each shard is written atomically; other stores have one entry per member.
    """

    def __init__(self, keys: Keys, form: Members) -> None:
        self.name: str = form.name
        """The name of the group."""
        self._keys = keys
        self._form = form
        self._detached = False

    def __repr__(self) -> str:
        return f"Group({self.name!r})" if self.shards is None else f"Group({self.name!r}, shards={self.shards})"

    @property
    def shards(self) -> int | None:
        """Number of entries that the members are packed into; None: one entry per member."""
        return self._form.shards

    @property
    def live(self) -> bool:
        """Whether it may be used: False after it was opened again, or after its run has ended."""
        return not self._detached and self._keys.phase == "open"

    def detach(self) -> None:
        """Detach: refuse any further use."""
        self._detached = True

    def store_as(self, form: Members) -> None:
        """Set the stored form of the members, after reading it again."""
        self._form = form

    def __getitem__(self, member: str) -> Cursor:
        with self._keys.lock:
            key = self._key(member)
            try:
                return self._keys.read(key)
            except KeyError:
                raise KeyError(member) from None

    def __setitem__(self, member: str, cursor: Cursor) -> None:
        value = codec.encode(cursor)
        with self._keys.lock:
            key = self._key(member)
            self._keys.check_member(member)
            self._check_free(member, key)
            self._keys.drafts.put(key, value)

    def __delitem__(self, member: str) -> None:
        with self._keys.lock:
            key = self._key(member)
            if not self._keys.drafts.has(key):
                raise KeyError(member)
            self._check_free(member, key)
            self._keys.drafts.delete(key)

    def setdefault(self, member: str, default: Cursor) -> Cursor:  # pyright: ignore[reportIncompatibleMethodOverride] - None is not a cursor
        """Return the cursor of a member; an absent member is set to `default` first. It may be changed in place."""
        with self._keys.lock:
            if member not in self:
                self[member] = default
            return self[member]

    def __contains__(self, member: object) -> bool:
        with self._keys.lock:
            self._check_used()
            return isinstance(member, str) and self._keys.drafts.has(member_key(self.name, member))

    def __iter__(self) -> Iterator[str]:
        return iter(self._members())

    def __len__(self) -> int:
        return len(self._members())

    def _members(self) -> dict[str, None]:
        with self._keys.lock:
            self._check_used()
            members = dict.fromkeys(self._form.members())
            start = len(self._form.head) + 1
            for key, there in self._keys.drafts.edits():
                if key.startswith(f"{self._form.head}/"):
                    if there:
                        members[key[start:]] = None
                    else:
                        members.pop(key[start:], None)
            return members

    def clear(self) -> None:
        """Delete every member, without decoding any."""
        with self._keys.lock:
            for member in (members := self._members()):
                self._check_free(member, self._key(member))
            for member in members:
                self._keys.drafts.delete(self._key(member))

    def _key(self, member: str) -> str:
        """Return the key that a member has in the layers."""
        self._check_used()
        if not isinstance(member, str):
            raise TypeError(f"a member must be a str, not {type(member).__name__}")
        try:
            member.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"a member must not hold lone surrogates: {member!r}") from error
        return f"{self._form.head}/{member}"

    def _check_free(self, member: str, key: str) -> None:
        if self._keys.holders.get(key) is not None:
            raise ValueError(
                f"{member!r} of {self.name!r} is held by a live stream and cannot be set: rewind() or reset() the "
                "stream, or set the member before opening it"
            )

    def _check_used(self) -> None:
        if not self.live:
            raise RuntimeError(
                f"the group {self.name!r} was opened again, or its run has ended: use what the last cp.group() returned"
            )
