"""How a group is stored: one entry per member, or packed into shards. Plain functions of keys and values.

    __group__.NAME             the head: how the group is stored, `{"members": "entries"}` or `{"shards": 16}`
    __group__.NAME/MEMBER      one entry per member: its cursor
    __group__.NAME.00 …        packed: the members whose `crc32(utf-8) % shards` is the number, as one JSON object; a
                               shard that is not there is empty

The head of a group whose members are entries always has the same content, so that two runs that create it agree. The
head of a packed group that was moved from version 1 lists the old entries in `"moved"`: they are left over if the move
was killed.

Version 1 stored a group as one entry `NAME`, or as `NAME.16-00` … `NAME.16-15`.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

from checkpoint import codec
from checkpoint.entries import GROUP_PREFIX, head_key, named
from checkpoint.errors import CorruptState
from checkpoint.run.claims import decoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Entry

MAX_SHARDS = 1_000
"""The most shards; more would take too many requests per commit."""

SHARDS = 16
"""Default number of shards of a packed group."""

ENTRIES = codec.encode({"members": "entries"})
"""The head's value for a group with one entry per member."""


def check_shards(shards: int) -> None:
    """Refuse an invalid number of shards."""
    if not isinstance(shards, int) or isinstance(shards, bool):
        raise TypeError(f"shards must be an int, not {type(shards).__name__}")
    if not 1 <= shards <= MAX_SHARDS:
        raise ValueError(f"shards must be from 1 to {MAX_SHARDS}, not {shards}")


def packed_head(shards: int, moved: Iterable[str] = ()) -> str:
    """Return the value of the head of a packed group."""
    return codec.encode({"shards": shards} | ({"moved": [*moved]} if moved else {}))


def read_head(state_key: str, key: str, value: str) -> tuple[int | None, list[str]]:
    """Return the number of shards (None: one entry per member), and the entries that the group was moved from.

    Raises:
        CorruptState: the value is not a head.

    """
    head = decoded(state_key, key, value)
    shards: Any = head.get("shards")
    moved: Any = head.get("moved", [])
    if head.get("members") == "entries" and shards is None:
        return None, []
    if type(shards) is int and 1 <= shards <= MAX_SHARDS and isinstance(moved, list):
        return shards, cast("list[str]", moved)
    raise CorruptState(state_key, key, value) from ValueError("it does not say how its group is stored")


def shard_key(name: str, index: int) -> str:
    """Return the key of a shard."""
    return f"{head_key(name)}.{index:02d}"


def shard_keys(name: str, keys: Iterable[str]) -> list[str]:
    """Return the keys that are shards of a group."""
    prefix = f"{head_key(name)}."
    return [key for key in keys if key.startswith(prefix) and key[len(prefix) :].isdecimal()]


def index_of(member: str, shards: int) -> int:
    """Return the number of the shard that a member is in."""
    return crc32(member.encode()) % shards


def pack(members: Mapping[str, str | None]) -> str:
    """Return the value of a shard with these members, None without members."""
    return codec.encode({member: item_of(value) for member, value in members.items() if value is not None})


def item_of(value: str) -> Any:
    """Return the item of a shard for a member's value: its cursor, or other JSON, see `value_of_item`."""
    try:
        return codec.decode(value)
    except ValueError:
        return json.loads(b64decode(value))


def value_of_item(item: Any) -> str:
    """Return the value of a member from its item in a shard.

    An item that is not a cursor gives a value that is not one.
    """
    return (
        codec.encode(cast("codec.Cursor", item))
        if isinstance(item, dict)
        else b64encode(json.dumps(item).encode()).decode()
    )


def unpack(state_key: str, key: str, value: str) -> dict[str, str]:
    """Return the members in a shard, or in an entry of version 1.

    Raises:
        CorruptState: it is not a JSON object.

    """
    return {member: value_of_item(item) for member, item in decoded(state_key, key, value).items()}


def packed_members(state_key: str, name: str, values: Mapping[str, str], shards: int) -> dict[str, str]:
    """Return the members of a packed group; members found in the wrong shard are leftovers and are ignored.

    Raises:
        CorruptState: a shard cannot be read.

    """
    members: dict[str, str] = {}
    for index in range(shards):
        key = shard_key(name, index)
        if key in values:
            found = unpack(state_key, key, values[key])
            members |= {member: value for member, value in found.items() if index_of(member, shards) == index}
    return members


# Version 1


def version_1_shards(name: str, key: str) -> int:
    """Return the number of version 1 entries in the layout that a key belongs to, 0 for a key of another group."""
    if not key.startswith(name):
        return 0
    if key == name:
        return 1
    numbers = key[len(name) + 1 :].split("-")
    if len(numbers) != 2 or not all(number.isascii() and number.isdecimal() for number in numbers):
        return 0
    shards, index = map(int, numbers)
    return shards if index < shards > 1 and key == f"{name}.{shards:02d}-{index:02d}" else 0


def version_1(state_key: str, name: str, stored: Mapping[str, str], known: Mapping[str, Entry]) -> dict[str, str]:
    """Return the members of a group as version 1 stored them.

    If several layouts are complete, different runs wrote them: each may hold members that the others lack, so they are
    merged, and the member written last wins.

    Raises:
        CorruptState: entries are missing or cannot be decoded.
        ValueError: the key of the group's name holds a cursor, or something else.

    """
    layouts: dict[int, list[str]] = {}
    for key in stored:
        layouts.setdefault(version_1_shards(name, key), []).append(key)
    complete = [keys for count, keys in layouts.items() if len(keys) == count]
    if not complete:
        complete = [_cut_off(state_key, name, layouts)]
    members: dict[str, str] = {}
    for keys in sorted(complete, key=lambda keys: _written_at(keys, known)):
        for key in keys:
            members |= unpack(state_key, key, stored[key])
    if name in stored and not all(isinstance(item, dict) for item in decoded(state_key, name, stored[name]).values()):
        raise ValueError(f"{name!r} in {state_key!r} holds a cursor, not a group: choose another name for the group")
    return members


def _cut_off(state_key: str, name: str, layouts: Mapping[int, list[str]]) -> list[str]:
    """Return the entries of a layout whose first commit was cut off.

    A complete layout wrote its last entry after all others.
    """
    count = max(layouts, key=lambda count: len(layouts[count]) / count)
    there = layouts[count]
    missing = [key for index in range(count) if (key := f"{name}.{count:02d}-{index:02d}") not in there]
    if len(layouts) > 1 or missing[-1] != f"{name}.{count:02d}-{count - 1:02d}":
        said = f"the group {name!r} is stored in {count} entries, and these are missing: {', '.join(missing)}"
        raise CorruptState(state_key, missing[0], None) from ValueError(said)
    return there


def _written_at(keys: Iterable[str], known: Mapping[str, Entry]) -> str:
    return max((known[key].updated_at or "" for key in keys if key in known), default="")


# Whole namespaces


def stored_groups(state_key: str, values: Mapping[str, str]) -> dict[str, int | None]:
    """Return the groups of a namespace: the key of the head, and the number of shards (None: one entry per member).

    Raises:
        CorruptState: a head cannot be read.

    """
    heads: dict[str, int | None] = {}
    for key in sorted(key for key in values if key.startswith(GROUP_PREFIX) and "/" not in key):
        before, _, number = key.rpartition(".")
        if number.isdecimal() and heads.get(before) is not None:
            continue  # a shard, or a leftover
        heads[key] = read_head(state_key, key, values[key])[0]
    return heads


def laid_out(
    state_key: str, values: Mapping[str, str], *, atomic: bool, there: Mapping[str, int | None] | None = None
) -> dict[str, str]:
    """Return the entries of a namespace, with its groups in the layout of another store.

    Args:
        state_key: the namespace, for errors.
        values: its entries.
        atomic: whether the other store is `Atomic`, and so has one entry per member.
        there: the groups already in the other store, from `stored_groups`.

    Raises:
        CorruptState: a head or a shard cannot be read.

    """
    laid = {key: value for key, value in values.items() if not key.startswith(GROUP_PREFIX)}
    for head, shards in stored_groups(state_key, values).items():
        if shards is None:
            members = {key[len(head) + 1 :]: value for key, value in values.items() if key.startswith(f"{head}/")}
        else:
            members = packed_members(state_key, named(f"{head}/")[0], values, shards)
        laid |= _group_laid_out(head, members, {head: None if atomic else shards or SHARDS, **(there or {})}[head])
    return laid


def _group_laid_out(head: str, members: Mapping[str, str], shards: int | None) -> dict[str, str]:
    if shards is None:
        return {head: ENTRIES, **{f"{head}/{member}": value for member, value in members.items()}}
    packs: dict[int, dict[str, str | None]] = {}
    for member, value in members.items():
        packs.setdefault(index_of(member, shards), {})[member] = value
    return {head: packed_head(shards), **{f"{head}.{index:02d}": pack(packs[index]) for index in sorted(packs)}}
