"""Many cursors in one entry, or in a few: what tens of thousands of partitions are kept in.

A group of one shard is the entry `name`; one of 16 is the entries `name.16-00` … `name.16-15`, and a member is in the
one that `crc32(utf-8) % 16` tells. Each holds a plain JSON object of its members; all entries of a layout exist, the
empty ones as `{}`.

Opened with another number of shards a group moves, on a store that writes key by key in an order that can be cut
anywhere: every entry of the new layout is written with what the old one held, then the old ones go, and only then
anything is changed. So of the layouts that are found complete any may be read: they hold the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any
from zlib import crc32

from checkpoint import codec
from checkpoint.codec import Cursor
from checkpoint.errors import CheckpointError, CorruptState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from checkpoint.entries import Entry
    from checkpoint.run.holders import Stream

logger = logging.getLogger("checkpoint")

MAX_SHARDS = 1_000
"""More would cost more requests than a commit should have."""

_EMPTY = codec.encode({})


class Group(MutableMapping[str, Cursor]):
    """Member → cursor: what is set is copied, what is read may be changed in place, and a commit finds it.

        accounts = cp.group("accounts", shards=16)
        for account in api.accounts():
            accounts[account.id] = {"updated_at": sync(account, since=accounts.get(account.id))}
        cp.commit()  # at most 16 writes

    Made by `Checkpointer.group`, whose commits take it along. Members of one shard are stored together or not at all.
    """

    def __init__(
        self, state_key: str, name: str, shards: int, stored: Callable[[], Mapping[str, str]], *, key_by_key: bool
    ) -> None:
        self.name = name
        """The key the group is stored under, or the beginning of its keys."""
        self.shards = shards
        """In how many entries."""
        self._state_key = state_key
        self._stored = stored
        self._key_by_key = key_by_key
        self._streams: dict[str, Stream] = {}
        self._lock = threading.RLock()
        self._detached = False
        self._shards: dict[str, _Shard]
        self._by_index: list[_Shard]
        self._leftovers: list[str]
        self._exists: bool
        self._pending: dict[_Shard, tuple[str, dict[str, Cursor | None]]]
        self._claiming: list[Stream]
        self._seat()

    def __repr__(self) -> str:
        return f"Group({self.name!r}, shards={self.shards})"

    # The mapping

    def __getitem__(self, member: str) -> Cursor:
        with self._used():
            shard = self._shard_of(member)
            held = member in self._held()  # and what is read of it a copy
            cursor = shard.draft[member] if member in shard.draft and not held else self.cursor(member)
            if cursor is None:
                raise KeyError(member)
            if not held:
                shard.draft[member] = cursor
            return cursor

    def __setitem__(self, member: str, cursor: Cursor) -> None:
        snapshot = codec.decode(codec.encode(cursor))
        with self._used():
            self._check_free(member)
            self._shard_of(member).draft[member] = snapshot

    def __delitem__(self, member: str) -> None:
        with self._used():
            if member not in self:
                raise KeyError(member)
            self._check_free(member)
            self._shard_of(member).draft[member] = None

    def setdefault(self, member: str, default: Cursor) -> Cursor:  # pyright: ignore[reportIncompatibleMethodOverride] - None is no cursor
        """Return the cursor of a member, set to `default` first where it is absent; changing it is a change."""
        with self._used():
            if member not in self:
                self[member] = default
            return self[member]

    def __contains__(self, member: object) -> bool:
        with self._used():
            return isinstance(member, str) and member in self._shard_of(member).members()

    def __iter__(self) -> Iterator[str]:
        with self._used():
            return iter([member for shard in self._shards.values() for member in shard.members()])

    def __len__(self) -> int:
        with self._used():
            return sum(len(shard.members()) for shard in self._shards.values())

    # What a Checkpointer does with a group

    @property
    def live(self) -> bool:
        """Whether commits claim the group: not once it was opened again, or its run has ended."""
        return not self._detached

    def owns(self, key: str) -> bool:
        """Tell whether a key of the namespace is an entry of this group, of whatever layout."""
        return shards_of(self.name, key) > 0

    def cursor(self, member: str) -> Cursor | None:
        """Return a copy of a member's cursor as the group's user sees it, None where there is none."""
        with self._lock:
            shard = self._shard_of(member)
            found = shard.draft[member] if member in shard.draft else shard.cursor(member)
            return None if found is None else codec.decode(codec.encode(found))

    def hold(self, stream: Stream) -> None:
        """Let a stream set the member of its key from here on, in the place of any earlier one."""
        with self._lock:
            if earlier := self._held().get(stream.key):
                earlier.detach()
            self._streams[stream.key] = stream
            draft = self._shard_of(stream.key).draft
            if stream.key in draft:
                draft[stream.key] = self.cursor(stream.key)  # no longer to be changed in place

    def streams(self) -> Iterable[Stream]:
        """Return the live streams that hold members."""
        return self._held().values()

    def stream(self, key: str) -> Stream | None:
        """Return the live stream that holds a member, None where there is none."""
        stream = self._streams.get(key)
        return stream if stream is not None and stream.live else None

    def claim(self, members: Collection[str] | None = None) -> dict[str, str | None]:
        """Return what the group's entries are to hold, None for those that are to go.

        `members` names the members to claim, those that streams hold; the others go out as last claimed. It becomes the
        last claim with `claimed`.

        Raises:
            TypeError, ValueError: a cursor changed in place is none any more.

        """
        with self._lock:
            held = self._held()
            self._claiming = [held[member] for member in (held if members is None else members) if member in held]
            said: dict[_Shard, dict[str, Cursor | None]] = {}
            for shard in self._shards.values() if members is None else ():
                if shard.draft:
                    said[shard] = dict(shard.draft)
            for stream in self._claiming:
                said.setdefault(self._shard_of(stream.key), {})[stream.key] = stream.claim()
            self._pending = {shard: (shard.value_with(changes), changes) for shard, changes in said.items()}
            changed = any(value != shard.value for shard, (value, _) in self._pending.items())
            if not (self._exists or changed):
                return {}
            values: dict[str, str | None] = dict.fromkeys(self._leftovers)
            for entry, shard in self._shards.items():
                values[entry] = self._pending[shard][0] if shard in self._pending else shard.value
            return values

    def claimed(self) -> None:
        """Take what `claim` returned for said."""
        with self._lock:
            for shard, (value, changes) in self._pending.items():
                self._exists = self._exists or value != shard.value
                shard.take(value, changes)
            for stream in self._claiming:
                stream.claimed()
                self._shard_of(stream.key).draft.pop(stream.key, None)

    def changed(self) -> bool:
        """Tell whether anything was set that is not claimed; a member that was spoilt in place was."""
        with self._lock:
            try:
                return any(
                    shard.value_with(shard.draft) != shard.value for shard in self._shards.values() if shard.draft
                )
            except (CheckpointError, TypeError, ValueError):
                return True

    def back(self) -> None:
        """Go back to what the namespace says, and go on from there; what cannot is detached.

        Raises:
            CorruptState: entries are missing, and the group is detached; or a stream's member is no cursor.

        """
        with self._lock:
            try:
                self._seat()
            except BaseException:
                self.detach()
                raise
            failure: CheckpointError | ValueError | None = None
            for member, stream in self._held().items():
                try:
                    stream.back(self._shard_of(member).cursor(member))
                except (CheckpointError, ValueError) as error:  # noqa: PERF203 - the others go back all the same
                    stream.detach()
                    failure = failure or error
            if failure is not None:
                raise failure

    def detach(self) -> None:
        """Go back to the last claim, for good, streams too."""
        with self._lock:
            for stream in self._held().values():
                stream.detach()
            self._detached = True

    def end(self) -> None:
        """Refuse to be used any more; what its streams can tell stays readable."""
        for stream in self._held().values():
            stream.end()
        self._detached = True

    def forked(self) -> None:
        """Start over in a forked child: with no lock held by a thread that is gone."""
        self._lock = threading.RLock()

    def _seat(self) -> None:
        stored = self._stored()
        values = laid_out(self._state_key, self.name, self.shards, stored, key_by_key=self._key_by_key)
        self._shards = {entry: _Shard(self._state_key, entry, value) for entry, value in values.items()}
        self._by_index = list(self._shards.values())
        self._leftovers = [key for key in stored if self.owns(key) and key not in self._shards]
        self._exists = bool(self._leftovers) or any(entry in stored for entry in self._shards)
        self._pending = {}
        self._claiming = []

    def _shard_of(self, member: str) -> _Shard:
        if not isinstance(member, str):
            raise TypeError(f"a member must be a str, not {type(member).__name__}")
        return self._by_index[_index(member, self.shards)]

    def _held(self) -> dict[str, Stream]:
        return {member: stream for member, stream in self._streams.items() if stream.live}

    def _check_free(self, member: str) -> None:
        if member in self._held():
            raise ValueError(f"{member!r} of {self.name!r} is held by a live stream, which sets it")

    def _used(self) -> threading.RLock:
        """Return the lock, unless the group is detached."""
        if self._detached:
            raise RuntimeError(f"the group {self.name!r} was opened again, or its run has ended")
        return self._lock


class _Shard:
    """One entry: what it was last claimed to hold, decoded when it is asked for, and what was read or set since."""

    __slots__ = ("_entry", "_last", "_state_key", "draft", "value")

    def __init__(self, state_key: str, entry: str, value: str) -> None:
        self.value = value
        self.draft: dict[str, Cursor | None] = {}  # live; None: deleted
        self._last: dict[str, Any] | None = None
        self._state_key = state_key
        self._entry = entry

    def last(self) -> dict[str, Any]:
        """Return the members as last claimed; not to be changed, nor handed out."""
        if self._last is None:
            try:
                self._last = codec.decode(self.value)
            except ValueError as reason:
                raise CorruptState(self._state_key, self._entry, self.value) from reason
        return self._last

    def cursor(self, member: str) -> Cursor | None:
        """Return a copy of a member's cursor as last claimed, None where there is none."""
        if member not in self.last():
            return None
        cursor = self.last()[member]
        if not isinstance(cursor, dict):
            reason = ValueError(f"its member {member!r} is no object")
            raise CorruptState(self._state_key, self._entry, self.value) from reason
        return codec.decode(codec.encode(cursor))  # pyright: ignore[reportUnknownArgumentType] - JSON is of unknown type

    def members(self) -> dict[str, None]:
        """Return the names of the members, with what was set and deleted since the last claim."""
        members = dict.fromkeys(self.last())
        for member, cursor in self.draft.items():
            if cursor is None:
                members.pop(member, None)
            else:
                members[member] = None
        return members

    def value_with(self, changes: Mapping[str, Cursor | None]) -> str:
        """Return the value with these members set or deleted; where that changes nothing, as it is spelled."""
        members = {**self.last(), **changes}
        value = codec.encode({member: cursor for member, cursor in members.items() if cursor is not None})
        return self.value if codec.same(value, self.value) else value

    def take(self, value: str, changes: Mapping[str, Cursor | None]) -> None:
        """Take a value, made with these changes, for the last claim; drafts stay, for they are live."""
        if value != self.value:
            self.value, self._last = value, None
        for member, cursor in changes.items():
            if cursor is None:
                self.draft.pop(member, None)


def check_shards(shards: int) -> None:
    """Refuse what is no number of shards."""
    if not isinstance(shards, int) or isinstance(shards, bool):
        raise TypeError(f"shards must be an int, not {type(shards).__name__}")
    if not 1 <= shards <= MAX_SHARDS:
        raise ValueError(f"shards must be from 1 to {MAX_SHARDS}, not {shards}")


def entries_of(name: str, shards: int) -> tuple[str, ...]:
    """Return the keys of a layout: the name itself for one shard."""
    return (name,) if shards == 1 else tuple(f"{name}.{shards:02d}-{index:02d}" for index in range(shards))


def laid_out(state_key: str, name: str, shards: int, stored: Mapping[str, str], *, key_by_key: bool) -> dict[str, str]:
    """Return what the entries of a layout hold: as they are stored, or made of another layout that is.

    On a store that writes key by key a first commit may have been cut off: what it left counts.

    Raises:
        CorruptState: entries are stored, and no layout is complete.

    """
    found = _layouts(name, stored)
    complete = [count for count, entries in found.items() if len(entries) == count]
    entries = entries_of(name, shards)
    if not found:
        return dict.fromkeys(entries, _EMPTY)
    if shards in complete:
        source = shards
    elif complete:
        source = complete[0]
    else:
        source = max(found, key=lambda count: len(found[count]) / count)
        missing = [entry for entry in entries_of(name, source) if entry not in found[source]]
        # Of a first layout the last entry is written after the others, see `steps`.
        if not (key_by_key and len(found) == 1 and missing[-1] == entries_of(name, source)[-1]):
            said = f"the group {name!r} is stored in {source} entries, and is missing {', '.join(missing)}"
            raise CorruptState(state_key, missing[0], None) from ValueError(said)
        logger.warning("%r: the first commit of the group %r was cut off; what it left counts", state_key, name)
    if source == shards:
        return {entry: stored.get(entry, _EMPTY) for entry in entries}
    laid: list[dict[str, Any]] = [{} for _ in entries]
    for entry, value in found[source].items():
        for member, cursor in _Shard(state_key, entry, value).last().items():
            laid[_index(member, shards)][member] = cursor
    return {entry: codec.encode(members) for entry, members in zip(entries, laid, strict=True)}


def _layouts(name: str, stored: Mapping[str, str]) -> dict[int, dict[str, str]]:
    """Return the entries of a group by the number of shards of the layout they belong to."""
    found: dict[int, dict[str, str]] = {}
    for key, value in stored.items():
        if count := shards_of(name, key):
            found.setdefault(count, {})[key] = value
    return found


def steps(
    state_key: str,
    batch: Mapping[str, str | None],
    known: Mapping[str, Entry],
    layouts: Mapping[str, int],
    doubts: Callable[[str], bool],
) -> Iterator[dict[str, str | None]]:
    """Cut a batch into what must have landed before the rest is sent, for a store that writes key by key.

    A group that moves is written as it was first; then its old entries go. The last entry of a layout is written after
    the others, so that a first commit that was cut off before it is known for what it is; before such a layout is left
    it is made complete. `layouts` are the numbers of shards that the batch was claimed for, by group; `doubts` tells of
    which keys the store may hold something else than what is known.
    """
    completed: dict[str, str | None] = {}
    lasts: dict[str, str | None] = {}
    relaid: dict[str, str | None] = {}
    leaving: dict[str, str | None] = {}
    finals: dict[str, str | None] = {}
    rest = dict(batch)
    for name, shards in layouts.items():
        entries = entries_of(name, shards)
        gone = {key: None for key, value in batch.items() if value is None and shards_of(name, key)}
        stored = {key: entry.value for key, entry in known.items() if shards_of(name, key)} if gone else {}
        if stored:
            before = laid_out(state_key, name, shards, stored, key_by_key=True)
            found = _layouts(name, stored)
            missing = [key for key in entries_of(name, *found) if key not in stored] if len(found) == 1 else []
            if missing and shards not in found:
                completed |= dict.fromkeys(missing[:-1], _EMPTY)
                lasts[missing[-1]] = _EMPTY
            relaid |= {entry: value for entry, value in before.items() if stored.get(entry) != value or doubts(entry)}
            gone |= {key: None for key in (*stored, *completed, *lasts) if shards_of(name, key) and key not in before}
            for entry in [entry for entry, value in before.items() if rest.get(entry) == value]:
                del rest[entry]
        elif entries[-1] in rest and entries[-1] not in known and len(entries) > 1:
            finals[entries[-1]] = rest.pop(entries[-1])
        leaving |= gone
        for key in gone:
            rest.pop(key, None)
    return (step for step in (completed, lasts, relaid, leaving, rest, finals) if step)


def shards_of(name: str, key: str) -> int:
    """Return in how many shards the layout is that a key belongs to, 0 where the key is no entry of the group."""
    if not key.startswith(name):
        return 0
    if key == name:
        return 1
    numbers = key[len(name) + 1 :].split("-")
    if len(numbers) != 2 or not all(number.isascii() and number.isdecimal() for number in numbers):
        return 0
    shards, index = map(int, numbers)
    return shards if index < shards > 1 and key == f"{name}.{shards:02d}-{index:02d}" else 0


def _index(member: str, shards: int) -> int:
    try:
        return crc32(member.encode()) % shards
    except UnicodeEncodeError as error:
        raise ValueError(f"a member must not hold lone surrogates: {member!r}") from error


class Layouts:
    """In how many shards each group of a run was last claimed, whatever it is opened in."""

    def __init__(self) -> None:
        self._shards: dict[str, int] = {}

    def claimed(self, groups: Iterable[Group], changes: Iterable[str]) -> None:
        """Note in how many shards groups were claimed; entries set through the mapping are no group's."""
        for name in [name for name in self._shards if any(shards_of(name, key) for key in changes)]:
            del self._shards[name]
        for group in groups:
            self._shards[group.name] = group.shards

    def steps(
        self, state_key: str, batch: Mapping[str, str | None], known: Mapping[str, Entry], doubts: Callable[[str], bool]
    ) -> Iterator[dict[str, str | None]]:
        """Cut a batch into what must land one after the other; see `steps`."""
        return steps(state_key, batch, known, self._shards, doubts)
