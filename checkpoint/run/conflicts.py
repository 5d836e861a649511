"""What a run does when another run has changed a key: the policies of `on_conflict`.

A policy decides what a commit compares with the store, and which differences are accepted. To add one, add its class
and its name here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from checkpoint.errors import Conflict
    from checkpoint.run.packing import Groups

OnConflict: TypeAlias = Literal["raise", "overwrite"]
"""The names of the policies."""


class ConflictPolicy(Protocol):
    """What to do when another run has changed a key."""

    def compared(self, keys: set[str], groups: Groups) -> set[str]:
        """Return the entries that must be unchanged in the store before a commit writes."""
        ...

    def takes_over(self, conflict: Conflict, groups: Groups) -> bool:
        """Whether to accept that another run changed other members of a shard, and to keep those."""
        ...


class Raise:
    """Never overwrite a change of another run."""

    def compared(self, keys: set[str], groups: Groups) -> set[str]:
        """All of them."""
        return keys

    def takes_over(self, conflict: Conflict, groups: Groups) -> bool:
        """Never."""
        return False


class Overwrite:
    """Overwrite changes of other runs, except to members that this run did not touch."""

    def compared(self, keys: set[str], groups: Groups) -> set[str]:
        """Those that hold several members."""
        return keys & groups.packed()

    def takes_over(self, conflict: Conflict, groups: Groups) -> bool:
        """For shards."""
        return groups.is_shard(conflict.key)


POLICIES: dict[str, ConflictPolicy] = {"raise": Raise(), "overwrite": Overwrite()}


def policy(name: str) -> ConflictPolicy:
    """Return the policy with a name.

    Raises:
        ValueError: there is none.

    """
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"on_conflict must be {' or '.join(map(repr, POLICIES))}, not {name!r}")
    return POLICIES[name]
