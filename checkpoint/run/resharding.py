"""`checkpoint reshard`: packs a group into another number of shards, in an order that is safe to interrupt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checkpoint.entries import head_key
from checkpoint.run import forms
from checkpoint.run.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Mapping

    from checkpoint.entries import Entry
    from checkpoint.stores.base import Store

RUN_ID = "checkpoint reshard"


def reshard(store: Store, state_key: str, name: str, shards: int) -> tuple[int, int]:
    """Pack a group into another number of shards; return the number before, and the number of members.

    It takes the namespace's lease. First each shard gets its new members in addition to its old ones. Then the head
    gets the new number. Then the old members are removed from the shards. Readers ignore members in the wrong shard, so
    the group is complete, with the old or the new number, wherever this is killed, and it can be called again.

    Raises:
        ValueError, TypeError: there is no such packed group, or the number is invalid.
        Locked: a run holds the namespace.
        Conflict: a run that takes no lease changed the group meanwhile; call again.
        CorruptState, StoreError: what is stored is not a group; the store refused or failed.

    """
    forms.check_shards(shards)
    _shards_of(state_key, name, _loaded(store, state_key))  # before the lease is taken
    lease = Lease(store, state_key, RUN_ID)
    try:
        lease.acquire()
        known = store.load(state_key)
        values = {key: entry.value for key, entry in known.items()}
        before = _shards_of(state_key, name, values)
        members = forms.packed_members(state_key, name, values, before)
        packs: dict[int, dict[str, str | None]] = {index: {} for index in range(shards)}
        for member, value in members.items():
            packs[forms.index_of(member, shards)][member] = value
        grown: dict[str, str | None] = {}
        trimmed: dict[str, str | None] = dict.fromkeys(forms.shard_keys(name, values))
        for index, pack in packs.items():
            key = forms.shard_key(name, index)
            old = forms.unpack(state_key, key, values[key]) if key in values else {}
            grown[key] = forms.pack({**pack, **{m: v for m, v in old.items() if index < before and m not in pack}})
            trimmed[key] = forms.pack(pack)
        for changes in (grown, {head_key(name): forms.packed_head(shards)}, trimmed):
            _write_differing(store, state_key, name, changes, known)
        return before, len(members)
    finally:
        lease.release()


def _loaded(store: Store, state_key: str) -> dict[str, str]:
    return {key: entry.value for key, entry in store.load(state_key).items()}


def _shards_of(state_key: str, name: str, values: Mapping[str, str]) -> int:
    head = head_key(name)
    if head not in values:
        raise ValueError(
            f"there is no group {name!r} in {state_key!r}; a group of version 1 is converted by its next commit"
        )
    shards, _ = forms.read_head(state_key, head, values[head])
    if shards is None:
        raise ValueError(f"the group {name!r} in {state_key!r} has one entry per member, so it has no shards to change")
    return shards


def _write_differing(
    store: Store, state_key: str, name: str, changes: Mapping[str, str | None], known: dict[str, Entry]
) -> None:
    """Write the differences if the group still equals `known`, and update `known`."""
    differing = {key: value for key, value in changes.items() if (known[key].value if key in known else None) != value}
    if differing:
        base = {key: known.get(key) for key in {*differing, *forms.shard_keys(name, known), head_key(name)}}
        known.update(store.commit(state_key, differing, base, run_id=RUN_ID).entries)
