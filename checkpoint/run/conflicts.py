"""What a run does when another run has changed a key: the policies of `on_conflict`.

A policy says what is compared with the store before a write, and which differences are no conflict all the same. To add
one, write its class and its name here.
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
        """Return the entries that must be unchanged in the store for a commit to be written."""
        ...

    def takes_over(self, conflict: Conflict, groups: Groups) -> bool:
        """Tell whether another run changed other members of a shard; those are kept beside the members of this run."""
        ...


class Raise:
    """Write nothing over what another run wrote."""

    def compared(self, keys: set[str], groups: Groups) -> set[str]:
        """All of them."""
        return keys

    def takes_over(self, conflict: Conflict, groups: Groups) -> bool:
        """Never."""
        return False


class Overwrite:
    """Write over what another run wrote, but not over members that this one never touched."""

    def compared(self, keys: set[str], groups: Groups) -> set[str]:
        """Those that hold several members."""
        return keys & groups.packed()

    def takes_over(self, conflict: Conflict, groups: Groups) -> bool:
        """For shards."""
        return groups.is_shard(conflict.key)


POLICIES: dict[str, ConflictPolicy] = {"raise": Raise(), "overwrite": Overwrite()}


def policy(name: str) -> ConflictPolicy:
    """Return the policy of a name.

    Raises:
        ValueError: there is none.

    """
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"on_conflict must be {' or '.join(map(repr, POLICIES))}, not {name!r}")
    return POLICIES[name]
