"""What a namespace holds, by key and by member of its groups, however these are stored.

Verbs speak of names, `contacts` or `accounts / a17`; only this file knows that members have entries of their own, share
packed ones, or are stored as version 1 did. What version 1 stored of a group are keys like any other until a job opens
it: such keys have names of their own, and their members can be named beside them.
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
    """What was asked for is not there, or the store cannot tell; the text is a sentence for whoever asked."""


class Name(NamedTuple):
    """What an operator calls a cursor: a key, or a group and its member."""

    key: str
    member: str | None = None

    @property
    def said(self) -> str:
        """The name as screens show it."""
        return self.key if self.member is None else f"{self.key} / {self.member}"

    @property
    def quoted(self) -> str:
        """The name as sentences show it."""
        return repr(self.key) if self.member is None else f"{self.member!r} of {self.key!r}"

    def fields(self) -> dict[str, str]:
        """Return the name as documents have it; a plain key has no member."""
        return {"key": self.key} if self.member is None else {"key": self.key, "member": self.member}


Changes = dict[Name, "str | None"]
"""The value that each name is to have; None: it is deleted."""


class Layout(NamedTuple):
    """How a group is stored.

    an entry a member   `shards` None
    packed              `shards` is their number; a shard that is not there is empty
    version 1           likewise, without a head: the entry `NAME`, or `NAME.16-00` and its like
    """

    name: str
    shards: int | None
    is_version_1: bool
    members: dict[str, Entry]
    """Each with its own value, and times and version of the entry that it is stored in."""

    def entry_key(self, member: str) -> str:
        """Return the key of the entry that a member is stored in."""
        if self.shards is None:
            return member_key(self.name, member)
        index = forms.index_of(member, self.shards)
        if not self.is_version_1:
            return forms.shard_key(self.name, index)
        return self.name if self.shards == 1 else f"{self.name}.{self.shards:02d}-{index:02d}"

    def shared_keys(self) -> list[str]:
        """Return the keys of the entries that hold several members each."""
        if self.shards is None:
            return []
        if not self.is_version_1:
            return [forms.shard_key(self.name, index) for index in range(self.shards)]
        indices = range(self.shards)
        return [self.name] if self.shards == 1 else [f"{self.name}.{self.shards:02d}-{i:02d}" for i in indices]


class Namespace:
    """A namespace as it was loaded.

    Args:
        store: where it is.
        state_key: how it is called.

    Raises:
        CorruptState: the head or a shard of a group cannot be read.
        StoreError: the store refused or failed.

    """

    def __init__(self, store: Store, state_key: str) -> None:
        self.store = store
        self.state_key = state_key
        self.stored: dict[str, Entry] = store.load(state_key)
        """The entries as they are stored, reserved ones too."""
        record = self.stored.get(RUN_KEY)
        known, run = told_by(None if record is None else record.value)
        self.known: Known = known
        """What the runs recorded of the streams."""
        self.run: Run | None = run
        """The run that was recorded last; None: none was."""
        self.groups: dict[str, Layout] = {}
        """The groups, those of version 1 too: while a group is moved to version 2, both may be stored."""
        for layout in (*self._layouts(), *self._of_version_1()):
            self.groups.setdefault(layout.name, layout)
        self.names: dict[Name, Entry] = {
            Name(key): entry for key, entry in self.stored.items() if not key.startswith(RESERVED)
        }
        """Every key, and every member that is not of version 1: together they are all that is stored."""
        for layout in self.groups.values():
            if not layout.is_version_1:
                self.names |= {Name(layout.name, member): entry for member, entry in layout.members.items()}

    def entry(self, name: Name) -> Entry | None:
        """Return what is stored under a name; None: nothing is."""
        if name.member is not None and name.key in self.groups:
            return self.groups[name.key].members.get(name.member)
        return self.names.get(name)

    def shares(self, name: Name) -> bool:
        """Tell whether a name is a member that shares its entry, whose time may be that of another one."""
        return name.member is not None and name.key in self.groups and self.groups[name.key].shards is not None

    def form_of(self, name: Name, given: str | None = None) -> str | None:
        """Return the cursor format that the job reads a name by; where no run has told it, the given one."""
        return self.known.formats.get(name.key, given)

    def value(self, name: Name) -> str | None:
        """Return the value stored under a name; None: there is none."""
        entry = self.entry(name)
        return None if entry is None else entry.value

    def under(self, key: str) -> list[Name]:
        """Return what a key stands for: itself, or all members of a group."""
        if key in self.groups and Name(key) not in self.names:
            layout = self.groups[key]
            if layout.is_version_1:
                return [Name(each) for each in layout.shared_keys() if each in self.stored]
            return [Name(key, member) for member in layout.members]
        return [Name(key)] if Name(key) in self.names else []

    def existing(self, name: Name) -> Entry:
        """Return what is stored under a name.

        Raises:
            AbsentError: nothing is.

        """
        entry = self.entry(name)
        if entry is None:
            raise AbsentError(self.absent(*name))
        return entry

    def absent(self, key: str, member: str | None = None) -> str:
        """Return the sentence that there is no such cursor, with what may have been meant."""
        where, layout = self.state_key, self.groups.get(key)
        if not (self.names or self.groups):
            return nothing(self.store, where)
        if layout is not None:
            return _absent_in(where, layout, member)
        if member is not None and Name(key) in self.names:
            return f"{key!r} in {where!r} is not a group: leave --member out"
        for group in (name for name, each in self.groups.items() if key in each.members):
            return f"there is no key {key!r} in {where!r}, but a member of a group: {group} --member {key}"
        near = meant(key, {name.key for name in self.shown()} | self.groups.keys())
        return f"there is no {key!r} in {where!r}" + (near or f": see `{command_line('list', [where])}`")

    def inside_version_1(self) -> set[str]:
        """Return the keys of the entries in which version 1 packed the members of groups.

        One with a single member is left out: it looks like a cursor, and is shown as one.
        """
        groups = (layout for layout in self.groups.values() if layout.is_version_1 and len(layout.members) > 1)
        return {key for layout in groups for key in layout.shared_keys()}

    def shown(self) -> dict[Name, Entry]:
        """Return every key and member as people see them, those of version 1 too, in order."""
        inside = self.inside_version_1()
        found = {name: entry for name, entry in self.names.items() if name.key not in inside}
        for layout in self.groups.values():
            if layout.is_version_1 and not inside.isdisjoint(layout.shared_keys()):
                found |= {Name(layout.name, member): entry for member, entry in layout.members.items()}
        return dict(sorted(found.items(), key=lambda item: item[0].said))

    # Writing

    def entries_for(self, changes: Mapping[Name, str | None]) -> dict[str, str | None]:
        """Return which entries are to be written for changes of names, each group in its own form.

        Raises:
            ValueError: a member of a packed group would get what is no JSON.

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
        """Return what a commit of these entries must find: they, and the heads of packed groups, as they were."""
        heads = {head_key(layout.name) for layout in self.groups.values() if layout.shards and not layout.is_version_1}
        keys = [*written]
        relied = {head for head in heads if any(key.startswith(f"{head}.") for key in keys)}
        return {key: self.stored.get(key) for key in (*keys, *sorted(relied - {*keys}))}

    def _new(self, group: str) -> Layout:
        return Layout(group, None if isinstance(self.store, Atomic) else forms.SHARDS, False, {})

    def _entries_of(
        self, layout: Layout, members: Mapping[str, str | None], left: Mapping[str, str]
    ) -> dict[str, str | None]:
        """Return which entries are to be written for changes of some members, where in all these are left."""
        if layout.shards is None:
            return {layout.entry_key(member): value for member, value in members.items()}
        packs: dict[str, dict[str, str | None]] = {layout.entry_key(member): {} for member in members}
        for member, value in left.items():
            if (key := layout.entry_key(member)) in packs:
                packs[key][member] = value
        # An entry of version 1 that is missing among others would be taken for a loss.
        stays = layout.is_version_1 and bool(left)
        return {key: forms.pack(pack) if pack or stays else None for key, pack in packs.items()}

    def _head_of(self, layout: Layout, left: Mapping[str, str]) -> dict[str, str | None]:
        """Return what is to be written of a group's head, where these members are left."""
        head = head_key(layout.name)
        if layout.is_version_1:
            return {}
        if left:
            new = forms.ENTRIES if layout.shards is None else forms.packed_head(layout.shards)
            return {} if head in self.stored else {head: new}
        # Elsewhere a commit may be cut, and shards must not be left without their head.
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
        """Yield the groups that version 1 stored; of one that two runs stored differently, the last one first."""
        found: dict[tuple[str, int], list[str]] = {}
        for key in self.stored:
            name = key.rpartition(".")[0]
            if key.startswith((RESERVED, "$")):  # `$`: what documents of neighbours have beside streams
                continue
            shards = forms.version_1_shards(name, key)
            found.setdefault((name, shards) if shards > 1 else (key, 1), []).append(key)
        for (name, shards), keys in sorted(found.items(), key=lambda item: self._written_at(item[1]), reverse=True):
            layout = self._version_1(name, shards, keys)
            if layout is not None:
                yield layout

    def _version_1(self, name: str, shards: int, keys: list[str]) -> Layout | None:
        """Return a group of version 1; None: an entry is missing, or holds what are no members."""
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
    """Return the sentence that a group has no such member, or that one is to be named."""
    name, members = layout.name, layout.members
    if member is not None:
        return f"{name!r} in {where!r} has no member {member!r}{meant(member, members)}"
    some = f"--member, such as {min(members)}" if members else "--member"
    count = f"{len(members):,} member{'' if len(members) == 1 else 's'}"
    return f"{name!r} in {where!r} is a group of {count}: name one with {some}"


def members_in(value: str | None) -> dict[str, str] | None:
    """Return the members in an entry that version 1 packed, or that is a shard; None: it is neither."""
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
    """Return changes by member where they are of entries that hold several members of a group, the newest first."""
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
        CorruptState: it holds none.

    """
    try:
        return codec.decode(entry.value)
    except ValueError as reason:
        raise CorruptState(namespace, name.said, entry.value) from reason


# Namespaces


def names_of_namespaces(store: Store) -> list[str]:
    """Return the namespaces of a store.

    Raises:
        AbsentError: it cannot tell.

    """
    if isinstance(store, ListsNamespaces):
        return store.namespaces()
    raise AbsentError(f"{store!r} cannot list its namespaces: name one")


def matching(store: Store, namespace: str) -> list[str]:
    """Return the namespaces that a name or a pattern such as `crm_*` stands for.

    A name with such characters in it that is one is no pattern.

    Raises:
        AbsentError: no namespace is like the pattern.

    """
    if not is_pattern(namespace) or store.load(namespace):
        return [namespace]
    found = [name for name in names_of_namespaces(store) if fnmatchcase(name, namespace)]
    if not found:
        raise AbsentError(f"no namespace of {store!r} is like {namespace!r}: see `checkpoint list`")
    return found


def chosen(store: Store, namespace: str, keys: Sequence[str] = ()) -> list[Namespace]:
    """Return the namespaces that a name or a pattern stands for; of several those that have one of the keys."""
    found = [Namespace(store, each) for each in matching(store, namespace)]
    if len(found) == 1 or not keys:
        return found
    return [there for there in found if any(there.under(key) for key in keys)] or found


def is_pattern(namespace: str) -> bool:
    """Tell whether a name may stand for several."""
    return any(letter in namespace for letter in "*?[")


def nothing(store: Store, namespace: str) -> str:
    """Return the sentence that a namespace holds nothing, where, and what may have been meant."""
    return f"{namespace!r} holds nothing in {store!r}{near_namespace(store, namespace)}"


def near_namespace(store: Store, namespace: str) -> str:
    """Return a question for the namespace that may have been meant; empty where there is none."""
    if not isinstance(store, ListsNamespaces):
        return ""
    try:
        return meant(namespace, store.namespaces())
    except CheckpointError:
        return ""


def meant(name: str, known: Iterable[str]) -> str:
    """Return a question for the known names that are most like one, the likeliest first; empty where none is."""
    from difflib import SequenceMatcher  # most names are right

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
"""From 0 to 1, how like two names are of which one may be meant for the other."""
