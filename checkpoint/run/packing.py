"""How the members of a run's open groups are stored: a `Form` for each group.

A form returns the last claimed value of a member, and turns changes of members into changes of entries; see
`checkpoint.run.forms` for the entries.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from checkpoint import codec
from checkpoint.entries import GROUP_PREFIX, head_key, named
from checkpoint.errors import Conflict, CorruptState, command_line, listed
from checkpoint.run import forms
from checkpoint.run.claims import decoded, value_of
from checkpoint.run.groups import Group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from checkpoint.entries import Entry
    from checkpoint.run.claims import Changes, Claims
    from checkpoint.run.groups import Keys

logger: logging.Logger = logging.getLogger("checkpoint")


class Form:
    """How the members of one open group are stored, as last claimed.

    A group in the layout of version 1 has `old` members until its head is claimed.
    """

    def __init__(self, claims: Claims, name: str, old: Mapping[str, str], old_keys: Iterable[str]) -> None:
        self.name = name
        self.head: str = head_key(name)
        self.old_keys: tuple[str, ...] = tuple(old_keys)
        """Entries of version 1, which the first commit deletes."""
        self._claims = claims
        self._old = old

    @property
    def exists(self) -> bool:
        """Whether the group's head is claimed or stored."""
        return self._claims.below(self.head) is not None

    @property
    def shards(self) -> int | None:
        """Number of shards that the members are packed into; None: one entry per member."""
        return None

    @property
    def goes_together(self) -> bool:
        """Whether all claimed entries are sent together: the group is being created or moved."""
        return self.head in self._claims.waiting or any(key in self._claims.waiting for key in self.old_keys)

    def below(self, member: str) -> str | None:
        """Return a member's value, None if absent."""
        return self._old.get(member) if self._old and not self.exists else self._claims.below(self._entry(member))

    def is_unsure(self, member: str) -> bool:
        """Whether the store may hold another value of a member than the known one."""
        return self._claims.is_unsure(self._entry(member))

    def members(self) -> list[str]:
        """Return the names of the members."""
        if self._old and not self.exists:
            return [*self._old]
        start = len(self.head) + 1
        return [key[start:] for key in self._claims.keys_from(f"{self.head}/")]

    def lower(self, changes: Changes) -> Changes:
        """Return the changes of entries for changes of members."""
        lowered: Changes = {}
        if not self.exists:
            lowered[self.head] = forms.ENTRIES
            lowered |= {self._entry(member): value for member, value in self._old.items()}
        lowered |= {self._entry(member): value for member, value in changes.items()}
        return self._without_absent(lowered) | self._leftovers()

    def owns(self, key: str) -> bool:
        """Whether an entry belongs to the group."""
        return key == self.head or key.startswith(f"{self.head}/") or key in self.old_keys

    def relies_on(self, keys: Iterable[str]) -> list[str]:  # the head always has the same content
        """Return the entries that must be unchanged when these are written."""
        return []

    @property
    def shard_entries(self) -> list[str]:
        """The keys of the shards."""
        return []

    def moved_into(self, key: str) -> dict[str, str]:
        """Return the members from version 1 that go into an entry."""
        return {member: value for member, value in self._old.items() if self._entry(member) == key}

    def _entry(self, member: str) -> str:
        return f"{self.head}/{member}"

    def _without_absent(self, changes: Changes) -> Changes:
        """Leave out deletions of absent entries."""
        return {
            key: value for key, value in changes.items() if value is not None or self._claims.below(key) is not None
        }

    def _leftovers(self) -> Changes:
        return {key: None for key in self.old_keys if self._claims.below(key) is not None}


class Packed(Form):
    """Members packed into shards."""

    def __init__(
        self, claims: Claims, name: str, old: Mapping[str, str], old_keys: Iterable[str], *, state_key: str, shards: int
    ) -> None:
        super().__init__(claims, name, old, old_keys)
        self._state_key = state_key
        self._shards = shards
        self._keys = [forms.shard_key(name, index) for index in range(shards)]
        self._read: dict[str, tuple[str, dict[str, Any]]] = {}  # decoded shards, with their values

    @property
    def shards(self) -> int:
        """The number of shards."""
        return self._shards

    @property
    def goes_together(self) -> bool:
        """Whether all claimed entries are sent together: one shard holds many members."""
        return True

    def below(self, member: str) -> str | None:
        """Return a member's value, None if absent."""
        if self._old and not self.exists:
            return self._old.get(member)
        items = self._items(self._entry(member))
        return forms.value_of_item(items[member]) if member in items else None

    def members(self) -> list[str]:
        """Return the names of the members."""
        if self._old and not self.exists:
            return [*self._old]
        return [member for key in self._keys for member in self._items(key)]

    def lower(self, changes: Changes) -> Changes:
        """Return the changes of shards for changes of members."""
        lowered: Changes = {}
        if not self.exists:
            lowered[self.head] = forms.packed_head(self._shards, self.old_keys)
            # Left over from a move that was killed before it wrote the head.
            lowered |= dict.fromkeys(forms.shard_keys(self.name, self._claims.known))
            changes = {**self._old, **changes}
        by_shard: dict[str, Changes] = {}
        for member, value in changes.items():
            by_shard.setdefault(self._entry(member), {})[member] = value
        for key, items in by_shard.items():
            lowered[key] = self._with(key, items)
        return self._without_absent(lowered) | self._leftovers()

    def owns(self, key: str) -> bool:
        """Whether an entry belongs to the group."""
        return key == self.head or key in self._keys or key in self.old_keys

    def relies_on(self, keys: Iterable[str]) -> list[str]:
        """Return the head if shards are written: their number must be unchanged."""
        return [self.head] if any(key in self._keys for key in keys) else []

    @property
    def shard_entries(self) -> list[str]:
        """The keys of the shards."""
        return self._keys

    def _entry(self, member: str) -> str:
        return self._keys[forms.index_of(member, self._shards)]

    def _items(self, key: str) -> dict[str, Any]:
        """Return the items of a shard, read-only."""
        value = self._claims.below(key)
        if value is None:
            return {}
        read = self._read.get(key)
        if read is None or read[0] != value:
            items = decoded(self._state_key, key, value)
            # Members of another shard are left over from a `checkpoint reshard` that was killed.
            own = {member: item for member, item in items.items() if self._entry(member) == key}
            read = self._read[key] = value, own
        return read[1]

    def _with(self, key: str, changes: Changes) -> str:
        """Return a shard's value with changed members."""
        items = dict(self._items(key)) if self.exists or not self._old else {}
        for member, value in changes.items():
            if value is None:
                items.pop(member, None)
            else:
                items[member] = forms.item_of(value)
        value = codec.encode(items)
        self._read[key] = value, items
        return value


class Groups:
    """The open groups of a run, and the layer below their members."""

    def __init__(self, state_key: str, claims: Claims) -> None:
        self.key_by_key = False
        """Whether the store writes key by key, so that new groups are packed."""
        self._state_key = state_key
        self._claims = claims
        self._forms: dict[str, Form] = {}  # by head
        self._open: dict[str, Group] = {}  # by name
        self._hidden: dict[str, str] = {}  # entries of version 1 of open groups, with the group's name

    # What the layers ask

    def below(self, key: str) -> str | None:
        """Return the value of a key or member as last claimed, else as known; None if absent."""
        if self._forms and key.startswith(GROUP_PREFIX):
            head, slash, member = key.partition("/")
            if slash and head in self._forms:
                return self._forms[head].below(member)
        return self._claims.below(key)

    def is_unsure(self, key: str) -> bool:
        """Whether the store may hold another value of a key or member than the known one."""
        head, slash, member = key.partition("/")
        if slash and head in self._forms:
            return self._forms[head].is_unsure(member)
        return self._claims.is_unsure(key)

    def differing(self, values: Changes) -> Changes:
        """Return the values that are not yet claimed or stored."""
        return {key: value for key, value in values.items() if value != self.below(key) or self.is_unsure(key)}

    def lower(self, changes: Changes) -> Changes:
        """Return changes of entries for changes of keys and members."""
        if not self._forms:
            return changes
        lowered: Changes = {}
        members: dict[str, Changes] = {}
        for key, value in changes.items():
            head, slash, member = key.partition("/")
            if slash and head in self._forms:
                members.setdefault(head, {})[member] = value
            else:
                lowered[key] = value
        for head, changed in members.items():
            lowered |= self._forms[head].lower(changed)
        return lowered

    def entries_of(self, keys: Iterable[str], whole: Iterable[str]) -> set[str]:
        """Return the claimed entries to send for keys and members, and all entries of the groups in `whole`.

        For a packed group, or one that is being created or moved, these are all its entries.
        """
        heads = {key.partition("/")[0] for key in keys if key.startswith(GROUP_PREFIX)} & self._forms.keys()
        together = [self._forms[head] for head in heads if self._forms[head].goes_together]
        together += [self._forms[head_key(name)] for name in whole]
        return {key for key in self._claims.waiting if any(form.owns(key) for form in together)}

    def steps(self, batch: Changes) -> list[Changes]:
        """Cut a batch into steps that must land one after the other, for a store that writes key by key.

        A head is written before the first shard, so that shards without one are known to be damage. For a group that is
        moved from version 1, the shards are written first: the old entries count until the head exists, then the new
        ones.
        """
        if not self.key_by_key:
            return [batch]
        heads = self._forms.keys() & batch.keys()
        moved = [form.name for form in self._forms.values() if form.head in heads and form.old_keys]
        first = {key for name in moved for key in forms.shard_keys(name, batch)}
        steps: list[Changes] = [{}, {}, {}]
        for key, value in batch.items():
            steps[0 if key in first else 1 if key in heads else 2][key] = value
        return [step for step in steps if step]

    def uncompared(self) -> set[str]:
        """Return the heads with a fixed content, which need no comparison: every run writes the same."""
        return {head for head, form in self._forms.items() if form.shards is None}

    def packed(self) -> set[str]:
        """Return the heads and shards of packed groups: a commit must not overwrite what another run packed."""
        packed = [form for form in self._forms.values() if form.shards is not None]
        moved = {key for form in self._forms.values() for key in form.old_keys}  # all members are written
        return {key for form in packed for key in (form.head, *form.shard_entries)} | moved

    def is_shard(self, key: str) -> bool:
        """Whether an entry is a shard of an open group."""
        return any(key in form.shard_entries for form in self._forms.values())

    def over(self, key: str, value: str | None, found: Entry | None) -> str:
        """Return a shard that another run wrote, with the members that this run changes in `value`.

        A waiting claim of the shard is updated, too.

        Raises:
            CorruptState: the entry found is not a shard.

        """
        claims = self._claims
        theirs = {} if found is None else forms.unpack(self._state_key, key, found.value)
        known, *sent = (self._unpacked(key, v) for v in (value_of(claims.known.get(key)), *claims.doubts.sent(key)))
        for form in self._forms.values():
            if key in form.shard_entries and form.head not in claims.known:
                known = form.moved_into(key)  # this run moves them, and changes others

        def over_theirs(claimed: str | None) -> str:
            ours = self._unpacked(key, claimed)
            members = {*ours, *(member for before in (known, *sent) for member in before)}
            # Of the sent members only those still stored count: for other runs' members it holds earlier values.
            changed = {
                m: ours.get(m)
                for m in members
                if ours.get(m) != known.get(m) or any(ours.get(m) != s.get(m) == theirs.get(m) for s in sent)
            }
            return forms.pack({**theirs, **changed})

        if key in claims.waiting:
            claims.waiting[key] = over_theirs(claims.waiting[key])
        return over_theirs(value)

    def _unpacked(self, key: str, value: str | None) -> dict[str, str]:
        return {} if value is None else forms.unpack(self._state_key, key, value)

    def hides(self, key: str) -> bool:
        """Whether a key belongs to an open group, and so is not in the mapping."""
        return key in self._hidden or key in self._open

    def owner(self, key: str) -> str | None:
        """Return the name of the group that a key, an entry or a member belongs to."""
        if key in self._hidden:
            return self._hidden[key]
        if not key.startswith(GROUP_PREFIX):
            return key if key in self._open else None
        name, member = named(key)
        if member is not None:
            return name
        return next((form.name for form in self._forms.values() if form.owns(key)), key.removeprefix(GROUP_PREFIX))

    def relied_on(self, keys: Iterable[str]) -> list[str]:
        """Return the entries that must be unchanged when these are written."""
        keys = list(keys)
        return [each for form in self._forms.values() if form.shards is not None for each in form.relies_on(keys)]

    def read_again(self, key: str, loaded: Mapping[str, Entry]) -> dict[str, Entry | None]:
        """Return the entries of a key's group from a listing, None for missing ones."""
        form = next((form for form in self._forms.values() if form.owns(key)), None)
        if form is None:
            return {}
        keys = {*loaded, *self._claims.known}
        shards = forms.shard_keys(form.name, keys)  # of any number of shards: the group may have been resharded
        return {each: loaded.get(each) for each in [*shards, *(each for each in keys if form.owns(each))]}

    def told(self, conflict: Conflict) -> Conflict:
        """Return a conflict for the job: for a group's entry it names the group and the member that differs."""
        name = self.owner(conflict.key)
        if name is None:
            return conflict
        member = named(conflict.key)[1]
        if member is None and any(conflict.key in form.shard_entries for form in self._forms.values()):
            member = _first_difference(conflict.expected, conflict.found)
        told = Conflict(conflict.state_key, name, conflict.expected, conflict.found, member)
        told.committed, told.unsettled = conflict.committed, conflict.unsettled
        return told

    # Opening

    def open(self, keys: Keys, name: str, shards: int | None) -> Group:
        """Open a group, replacing an open one of the same name; `shards` applies if it is created.

        Raises:
            CorruptState: the stored value is not a group.
            ValueError: the key of that name holds a cursor.

        """
        form = self._form(name, shards)
        if shards is not None and form.shards not in {shards, None}:
            logger.warning(
                "%r: the group %r is stored in %d shards, not %d: `%s` changes that",
                self._state_key, name, form.shards, shards,
                command_line("reshard", [self._state_key, name], [f"--shards {shards}"]),
                extra=self._fields("other_shards", name),
            )  # fmt: skip
        if form.exists and (beside := self._left_by_version_1(form)):
            logger.warning(
                "%r: a job of release 0.1 stores the group %r in entries of its own (%s), apart from this one: stop "
                "that job, and delete these entries", self._state_key, name, listed(beside),
                extra=self._fields("older_release", name),
            )  # fmt: skip
        self.close(name)
        self._forms[form.head] = form
        self._hidden |= dict.fromkeys(form.old_keys, name)
        group = self._open[name] = Group(keys, form)
        return group

    def get(self, name: object) -> Group | None:
        """Return the live group of a name."""
        group = self._open.get(name) if isinstance(name, str) else None
        return group if group is not None and group.live else None

    def opened(self) -> list[Group]:
        """Return the live groups."""
        return [group for group in self._open.values() if group.live]

    def close(self, name: str) -> None:
        """Detach a group, and release the entries of its members."""
        if (group := self._open.pop(name, None)) is not None:
            group.detach()
            self._forms.pop(head_key(name), None)
            self._hidden = {key: owner for key, owner in self._hidden.items() if owner != name}

    def back(self, lost: Callable[[str], None]) -> None:
        """Read the form of the open groups again; call `lost` for each that cannot be read, and continue.

        Raises:
            CorruptState, ValueError: that of the first such group.

        """
        failure: Exception | None = None
        for name, group in [*self._open.items()]:
            try:
                form = self._form(name, group.shards)
            except (CorruptState, ValueError) as error:
                lost(name)
                self.close(name)
                failure = failure or error
                continue
            self._forms[form.head] = form
            group.store_as(form)
            self._hidden |= dict.fromkeys(form.old_keys, name)
        if failure is not None:
            raise failure

    def _form(self, name: str, shards: int | None) -> Form:
        """Return the form of a group, stored or new."""
        head = head_key(name)
        if self.key_by_key:
            self._check_apart(name)
        if (value := self._claims.below(head)) is not None:
            stored, moved = forms.read_head(self._state_key, head, value)
            if stored is None:
                return Form(self._claims, name, {}, ())
            return Packed(self._claims, name, {}, moved, state_key=self._state_key, shards=stored)
        self._check_no_shard(name)
        old, keys = self._version_1(name)
        if not self.key_by_key:
            return Form(self._claims, name, old, keys)
        if not keys and (lost := forms.shard_keys(name, self._claims.known)):
            said = f"the group {name!r} has {len(lost)} shards, but no head"
            raise CorruptState(self._state_key, head, None) from ValueError(said)
        count = shards or max((forms.version_1_shards(name, key) for key in keys), default=0)
        if count < 2 and shards is None:
            count = forms.SHARDS
        return Packed(self._claims, name, old, keys, state_key=self._state_key, shards=count)

    def _version_1(self, name: str) -> tuple[dict[str, str], list[str]]:
        """Return the members of a group as version 1 stored them, and its entries."""
        keys = {
            key: value
            for key in dict.fromkeys((*self._claims.known, *self._claims.waiting))
            if forms.version_1_shards(name, key) and (value := self._claims.below(key)) is not None
        }
        return (forms.version_1(self._state_key, name, keys, self._claims.known) if keys else {}), [*keys]

    def _fields(self, event: str, group: str) -> dict[str, str]:
        """Return what a log record has beside its text."""
        return {"checkpoint_event": event, "checkpoint_namespace": self._state_key, "checkpoint_stream": group}

    def _left_by_version_1(self, form: Form) -> list[str]:
        """Return version 1 entries that were written although the group has a head, without leftovers of its move."""
        known = self._claims.known
        return sorted(key for key in known if forms.version_1_shards(form.name, key) and key not in form.old_keys)

    def _check_no_shard(self, name: str) -> None:
        """Refuse a name that is a shard of a group of version 1."""
        before, _, _ = name.rpartition(".")
        count = forms.version_1_shards(before, name) if before else 0
        if count > 1 and all(f"{before}.{count:02d}-{i:02d}" in self._claims.known for i in range(count)):
            raise ValueError(f"{name!r} would share entries with the group {before!r}: choose another name")

    def _check_apart(self, name: str) -> None:
        """Refuse a packed group that shares an entry with another group, such as `g` and `g.00`."""
        before, _, number = name.rpartition(".")
        entries = {*self._claims.known, *self._claims.waiting}
        inside = number.isdecimal() and (before in self._open or head_key(before) in entries)
        heads = [key for key in forms.shard_keys(name, entries) if _is_head(self._claims.below(key))]
        names = [other for other in self._open if forms.shard_keys(name, [head_key(other)])]
        if inside or heads or names:
            raise ValueError(f"{name!r} would share entries with another group: choose another name")


def _is_head(value: str | None) -> bool:
    try:
        return value is not None and type(codec.decode(value).get("shards")) is int
    except ValueError:
        return False


def _first_difference(expected: Entry | None, found: Entry | None) -> str | None:
    """Return the first member in which two versions of a shard differ, None if one cannot be read."""
    try:
        ours, theirs = ({} if entry is None else codec.decode(entry.value) for entry in (expected, found))
    except ValueError:
        return None
    nothing = {"": None}  # not a cursor
    differing = (
        member
        for member in sorted({*ours, *theirs})
        if codec.canonical({"": ours.get(member, nothing)}) != codec.canonical({"": theirs.get(member, nothing)})
    )
    return next(differing, None)
