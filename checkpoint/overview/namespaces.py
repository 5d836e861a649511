"""The contents of a namespace by key and by member of its groups, for every layout.

Verbs use names, `contacts` or `accounts / a17`; only this file knows whether a member has its own entry, shares a
packed one, or is stored in the form of version 1. The entries of a version 1 group are ordinary keys until a job opens
the group: they have names themselves, and so do their members.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from heapq import nsmallest
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from checkpoint import codec
from checkpoint.entries import GROUP_PREFIX, RESERVED, RUN_KEY, head_key, member_key, named
from checkpoint.errors import CheckpointError, CorruptState, command_line
from checkpoint.run import forms
from checkpoint.run.runs import told_by
from checkpoint.stores.base import Atomic, ListsNamespaces
from checkpoint.streams.stored import BESIDE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from checkpoint.entries import Change, Entry
    from checkpoint.run.runs import Known, Run
    from checkpoint.stores.base import Store


class AbsentError(CheckpointError):
    """The requested thing does not exist, or the store cannot tell; the text is a sentence for the user."""


class Name(NamedTuple):
    """The name of a cursor for operators: a key, or a group and its member."""

    key: str
    member: str | None = None

    @property
    def said(self) -> str:
        """The name for display."""
        return self.key if self.member is None else f"{self.key} / {self.member}"

    @property
    def quoted(self) -> str:
        """The name, quoted for sentences."""
        return repr(self.key) if self.member is None else f"{self.member!r} of {self.key!r}"

    def fields(self) -> dict[str, str]:
        """Return the name as a document; a plain key has no member."""
        return {"key": self.key} if self.member is None else {"key": self.key, "member": self.member}


NamedChanges = dict[Name, "str | None"]
"""The new value of each name; None: it is deleted."""


class Layout(NamedTuple):
    """How a group is stored.

    one entry a member  `shards` is None
    packed              `shards` is the number of shards; a missing shard is empty
    version 1           like packed, without a head: the entry `NAME`, or entries such as `NAME.16-00`
    """

    name: str
    shards: int | None
    is_version_1: bool
    members: dict[str, Entry]
    """Each with its own value, and the times and version of the entry that stores it."""

    def entry_key(self, member: str) -> str:
        """Return the key of the entry that stores a member."""
        if self.shards is None:
            return member_key(self.name, member)
        index = forms.index_of(member, self.shards)
        if not self.is_version_1:
            return forms.shard_key(self.name, index)
        return self.name if self.shards == 1 else f"{self.name}.{self.shards:02d}-{index:02d}"

    def shared_keys(self) -> list[str]:
        """Return the keys of the entries that each hold several members."""
        if self.shards is None:
            return []
        if not self.is_version_1:
            return [forms.shard_key(self.name, index) for index in range(self.shards)]
        indices = range(self.shards)
        return [self.name] if self.shards == 1 else [f"{self.name}.{self.shards:02d}-{i:02d}" for i in indices]


class Namespace:
    """A namespace as it was loaded.

    Args:
        store: its store.
        state_key: its name.

    Raises:
        CorruptState: the head or a shard of a group cannot be read.
        StoreError: the store refused or failed.

    """

    def __init__(self, store: Store, state_key: str) -> None:
        self.store = store
        self.state_key = state_key
        self.stored: dict[str, Entry] = store.load(state_key)
        """The entries as stored, including reserved ones."""
        record = self.stored.get(RUN_KEY)
        known, run = told_by(None if record is None else record.value)
        self.known: Known = known
        """What the runs recorded about the streams."""
        self.run: Run | None = run
        """The last recorded run; None: there is none."""
        self.groups: dict[str, Layout] = {}
        """The groups, including those of version 1: both forms of a group may be stored while it moves to version 2."""
        for layout in (*self._layouts(), *self._of_version_1()):
            self.groups.setdefault(layout.name, layout)
        self.names: dict[Name, Entry] = {
            Name(key): entry for key, entry in self.stored.items() if not key.startswith(RESERVED)
        }
        """Every key, and every member except those of version 1: together they cover everything stored."""
        for layout in self.groups.values():
            if not layout.is_version_1:
                self.names |= {Name(layout.name, member): entry for member, entry in layout.members.items()}

    def entry(self, name: Name) -> Entry | None:
        """Return the entry of a name; None: there is none."""
        if name.member is not None and name.key in self.groups:
            return self.groups[name.key].members.get(name.member)
        return self.names.get(name)

    def shares(self, name: Name) -> bool:
        """Tell whether a name is a member in a shared entry, whose time may come from another member."""
        return name.member is not None and name.key in self.groups and self.groups[name.key].shards is not None

    def form_of(self, name: Name, given: str | None = None) -> str | None:
        """Return the cursor format that the job uses for a name; if no run has recorded it, the given one."""
        return self.known.formats.get(name.key, given)

    def value(self, name: Name) -> str | None:
        """Return the stored value of a name; None: there is none."""
        entry = self.entry(name)
        return None if entry is None else entry.value

    def under(self, key: str) -> list[Name]:
        """Return the names that a key stands for: itself, or all members of a group."""
        if key in self.groups and Name(key) not in self.names:
            layout = self.groups[key]
            if layout.is_version_1:
                return [Name(each) for each in layout.shared_keys() if each in self.stored]
            return [Name(key, member) for member in layout.members]
        return [Name(key)] if Name(key) in self.names else []

    def existing(self, name: Name) -> Entry:
        """Return the entry of a name.

        Raises:
            AbsentError: there is none.

        """
        entry = self.entry(name)
        if entry is None:
            raise AbsentError(self.absent(*name))
        return entry

    def absent(self, key: str, member: str | None = None) -> str:
        """Return the sentence that a cursor does not exist, with the likely intended name."""
        where, layout = self.state_key, self.groups.get(key)
        if not (self.names or self.groups):
            return nothing(self.store, where)
        if layout is not None:
            return _absent_in(where, layout, member)
        if member is not None and Name(key) in self.names:
            return f"{key!r} in {where!r} is not a group: leave --member out"
        for group in (name for name, each in self.groups.items() if key in each.members):
            return (
                f"there is no key {key!r} in {where!r}, but a group has a member of this name: {group} --member {key}"
            )
        near = meant(key, {name.key for name in self.shown()} | self.groups.keys())
        return f"there is no {key!r} in {where!r}" + (near or f": see `{command_line('list', [where])}`")

    def inside_version_1(self) -> set[str]:
        """Return the keys of the entries in which version 1 packed the members of groups.

        An entry with a single member is left out: it looks like a cursor, and is shown as one.
        """
        groups = (layout for layout in self.groups.values() if layout.is_version_1 and len(layout.members) > 1)
        return {key for layout in groups for key in layout.shared_keys()}

    def shown(self) -> dict[Name, Entry]:
        """Return every key and member as shown to people, including those of version 1, in order."""
        inside = self.inside_version_1()
        found = {name: entry for name, entry in self.names.items() if name.key not in inside}
        for layout in self.groups.values():
            if layout.is_version_1 and not inside.isdisjoint(layout.shared_keys()):
                found |= {Name(layout.name, member): entry for member, entry in layout.members.items()}
        return dict(sorted(found.items(), key=lambda item: item[0].said))

    # Writing

    def entries_for(self, changes: Mapping[Name, str | None]) -> dict[str, str | None]:
        """Return the entries to write for changes of names, each group in its own layout.

        Raises:
            ValueError: the value for a member of a packed group is not JSON.

        """
        written: dict[str, str | None] = {}
        groups: dict[str, dict[str, str | None]] = {}
        for name, value in changes.items():
            if name.member is None:
                written[name.key] = value
            else:
                groups.setdefault(name.key, {})[name.member] = value
        for group, members in groups.items():
            layout = self.groups.get(group) or self._new(group)
            everyone = {member: entry.value for member, entry in layout.members.items()} | members
            left = {member: value for member, value in everyone.items() if value is not None}
            written |= self._head_of(layout, left) | self._entries_of(layout, members, left)
        return written

    def base_for(self, written: Iterable[str]) -> dict[str, Entry | None]:
        """Return the base for a commit of these entries: the entries and the heads of packed groups, as loaded."""
        heads = {head_key(layout.name) for layout in self.groups.values() if layout.shards and not layout.is_version_1}
        keys = [*written]
        relied = {head for head in heads if any(key.startswith(f"{head}.") for key in keys)}
        return {key: self.stored.get(key) for key in (*keys, *sorted(relied - {*keys}))}

    def _new(self, group: str) -> Layout:
        return Layout(group, None if isinstance(self.store, Atomic) else forms.SHARDS, False, {})

    def _entries_of(
        self, layout: Layout, members: Mapping[str, str | None], left: Mapping[str, str]
    ) -> dict[str, str | None]:
        """Return the entries to write for changes of some members; `left` are all members afterwards."""
        if layout.shards is None:
            return {layout.entry_key(member): value for member, value in members.items()}
        packs: dict[str, dict[str, str | None]] = {layout.entry_key(member): {} for member in members}
        for member, value in left.items():
            if (key := layout.entry_key(member)) in packs:
                packs[key][member] = value
        # A missing entry among others of version 1 would count as a loss.
        stays = layout.is_version_1 and bool(left)
        return {key: forms.pack(pack) if pack or stays else None for key, pack in packs.items()}

    def _head_of(self, layout: Layout, left: Mapping[str, str]) -> dict[str, str | None]:
        """Return the entries to write for a group's head when these members are left."""
        head = head_key(layout.name)
        if layout.is_version_1:
            return {}
        if left:
            new = forms.ENTRIES if layout.shards is None else forms.packed_head(layout.shards)
            return {} if head in self.stored else {head: new}
        # Other stores may split a commit, and shards must not be left without their head.
        return {head: None} if isinstance(self.store, Atomic) else {}

    # Reading

    def _layouts(self) -> Iterator[Layout]:
        values = {key: entry.value for key, entry in self.stored.items() if key.startswith(GROUP_PREFIX)}
        by_head: dict[str, dict[str, Entry]] = {}
        for key, entry in self.stored.items():
            if key.startswith(GROUP_PREFIX) and "/" in key:
                by_head.setdefault(key.partition("/")[0], {})[key.partition("/")[2]] = entry
        for head, shards in forms.stored_groups(self.state_key, values).items():
            group = named(f"{head}/")[0]
            if shards is None:
                yield Layout(group, None, False, by_head.get(head, {}))
            else:
                found = forms.packed_members(self.state_key, group, values, shards)
                packed = Layout(group, shards, False, {})
                for member, value in found.items():
                    packed.members[member] = self.stored[packed.entry_key(member)]._replace(value=value)
                yield packed

    def _of_version_1(self) -> Iterator[Layout]:
        """Yield the groups that version 1 stored; if two runs stored one differently, the latest first."""
        found: dict[tuple[str, int], list[str]] = {}
        for key in self.stored:
            name = key.rpartition(".")[0]
            if key.startswith((RESERVED, "$")):  # `$`: fields other than streams in documents of other systems
                continue
            shards = forms.version_1_shards(name, key)
            found.setdefault((name, shards) if shards > 1 else (key, 1), []).append(key)
        for (name, shards), keys in sorted(found.items(), key=lambda item: self._written_at(item[1]), reverse=True):
            layout = self._version_1(name, shards, keys)
            if layout is not None:
                yield layout

    def _version_1(self, name: str, shards: int, keys: list[str]) -> Layout | None:
        """Return a group of version 1; None: an entry is missing, or does not hold members."""
        layout = Layout(name, shards, True, {})
        for key in keys:
            entry = self.stored[key]
            members = members_in(entry.value)
            if members is None:
                return None
            layout.members.update({member: entry._replace(value=value) for member, value in members.items()})
        return layout if layout.members and len(keys) == shards else None

    def _written_at(self, keys: Iterable[str]) -> str:
        return max(self.stored[key].updated_at or "" for key in keys)


def _absent_in(where: str, layout: Layout, member: str | None) -> str:
    """Return the sentence that a group has no such member, or that a member must be named."""
    name, members = layout.name, layout.members
    if member is not None:
        return f"{name!r} in {where!r} has no member {member!r}{meant(member, members)}"
    some = f"--member, such as {min(members)}" if members else "--member"
    count = f"{len(members):,} member{'' if len(members) == 1 else 's'}"
    return f"{name!r} in {where!r} is a group of {count}: name one with {some}"


def members_in(value: str | None) -> dict[str, str] | None:
    """Return the members in a packed entry of version 1 or in a shard; None: it is neither."""
    if value is None:
        return {}
    try:
        items = codec.decode(value)
    except ValueError:
        return None
    if not all(isinstance(item, dict) for item in items.values()) or (items and items.keys() <= {*BESIDE}):
        return None
    return {member: codec.encode(item) for member, item in items.items()}


def unfolded(changes: Iterable[Change], layout: Layout | None) -> list[Change]:
    """Return changes, newest first; those of a shared entry are split by member."""
    shared: set[str] = set() if layout is None else {*layout.shared_keys()}
    told: list[Change] = []
    for change in changes:
        before, after = members_in(change.before), members_in(change.after)
        if layout is None or change.key not in shared or before is None or after is None:
            told.append(change)
            continue
        for member in sorted({*before, *after}):
            old, new = before.get(member), after.get(member)
            if old != new:
                told.append(change._replace(key=layout.name, member=member, before=old, after=new))
    return sorted(told, key=lambda change: -change.version)


def cursor_in(namespace: str, name: Name, entry: Entry) -> codec.Cursor:
    """Return the cursor of an entry.

    Raises:
        CorruptState: it does not hold a cursor.

    """
    try:
        return codec.decode(entry.value)
    except ValueError as reason:
        raise CorruptState(namespace, name.said, entry.value) from reason


# Namespaces


def names_of_namespaces(store: Store) -> list[str]:
    """Return the names of the namespaces in a store.

    Raises:
        AbsentError: the store cannot list them.

    """
    if isinstance(store, ListsNamespaces):
        return store.namespaces()
    raise AbsentError(f"{store!r} cannot list its namespaces: name one")


def matching(store: Store, namespace: str) -> list[str]:
    """Return the namespaces of a name or a pattern such as `crm_*`.

    The name of an existing namespace is not a pattern, even with these characters.

    Raises:
        AbsentError: no namespace matches the pattern.

    """
    if not is_pattern(namespace) or store.load(namespace):
        return [namespace]
    found = [name for name in names_of_namespaces(store) if fnmatchcase(name, namespace)]
    if not found:
        raise AbsentError(f"no namespace of {store!r} matches {namespace!r}: see `checkpoint list`")
    return found


def chosen(store: Store, namespace: str, keys: Sequence[str] = ()) -> list[Namespace]:
    """Return the namespaces of a name or pattern; of several, those that have one of the keys."""
    found = [Namespace(store, each) for each in matching(store, namespace)]
    if len(found) == 1 or not keys:
        return found
    return [there for there in found if any(there.under(key) for key in keys)] or found


def is_pattern(namespace: str) -> bool:
    """Tell whether a name may be a pattern."""
    return any(letter in namespace for letter in "*?[")


def nothing(store: Store, namespace: str) -> str:
    """Return the sentence that a namespace is empty, with the store and the likely intended name."""
    return f"{namespace!r} holds nothing in {store!r}{near_namespace(store, namespace)}"


def near_namespace(store: Store, namespace: str) -> str:
    """Return a question with the likely intended namespace; empty if there is none."""
    if not isinstance(store, ListsNamespaces):
        return ""
    try:
        return meant(namespace, store.namespaces())
    except CheckpointError:
        return ""


def meant(name: str, known: Iterable[str]) -> str:
    """Return a question with the known names most similar to one, most similar first; empty if there are none."""
    from difflib import SequenceMatcher  # most names are correct

    matcher: SequenceMatcher[str] = SequenceMatcher(b=name.casefold())
    near: list[tuple[float, int, str]] = []
    for each in known:
        matcher.set_seq1(each.casefold())
        if each != name and matcher.real_quick_ratio() >= _LIKE and matcher.quick_ratio() >= _LIKE:
            alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(name, each, strict=False)))
            near.append((-matcher.ratio(), -alike, each))
    said = [repr(each) for likeness, _, each in nsmallest(3, near) if -likeness >= _LIKE]
    return f": did you mean {' or '.join(said)}?" if said else ""


_LIKE = 0.6
"""From this similarity on, from 0 to 1, one name may be a misspelling of another."""
