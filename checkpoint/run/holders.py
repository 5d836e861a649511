"""What holds keys of a run: streams, and groups.

To a run both are the same: a holder owns keys, says at a claim what they are to hold, is told when that was claimed,
goes back to the last claim, and is detached. The keys of a live holder cannot be set through the mapping.

A commit is asked for a `Scope`. It claims the holders in it, all or none.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, runtime_checkable

from checkpoint import codec
from checkpoint.errors import CheckpointError, CorruptState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from checkpoint.codec import Cursor
    from checkpoint.run.claims import Changes


class Stream(Protocol):
    """What a run does with a stream; `Incremental` is one."""

    @property
    def key(self) -> str:
        """The key its cursor is stored under."""
        ...

    @property
    def live(self) -> bool:
        """Whether commits claim it: not once it was left by an exception, or opened again."""
        ...

    def claim(self) -> Cursor | None:
        """Return the cursor once all rows handed out are delivered; None: nothing is to be stored."""
        ...

    def claimed(self) -> None:
        """Commit the result of `claim()` as the new last claim."""
        ...

    def back(self, cursor: Cursor | None) -> None:
        """Go back to a claim, and go on from there."""
        ...

    def detach(self) -> None:
        """Go back to the last claim, for good."""
        ...

    def leave(self) -> None:
        """Finish, at the end of the block, unless something says that there is more to read."""
        ...

    def end(self) -> None:
        """Refuse to be fed any more; what it can tell stays readable."""
        ...


@runtime_checkable
class Holder(Protocol):
    """What holds keys of a run."""

    @property
    def name(self) -> str:
        """The key of a stream; the name of a group."""
        ...

    @property
    def live(self) -> bool:
        """Whether commits claim it."""
        ...

    def owns(self, key: str) -> bool:
        """Tell whether a key is one of the holder's."""
        ...

    def claim(self, members: Collection[str] | None) -> Changes:
        """Return what its keys are to hold, None for those that are to go.

        `members` names the members of a group to claim, None all of them. It becomes the last claim with `claimed`.
        """
        ...

    def claimed(self) -> None:
        """Commit the result of `claim()` as the new last claim."""
        ...

    def back(self) -> None:
        """Go back to what the mapping says.

        Raises:
            CheckpointError, TypeError, ValueError: it cannot go on, or a part of it cannot; that is detached.

        """
        ...

    def detach(self) -> None:
        """Go back to the last claim, for good."""
        ...

    def end(self) -> None:
        """Refuse to be used any more; what it can tell stays readable."""
        ...

    def forked(self) -> None:
        """Start over in a forked child: with no lock held by a thread that is gone."""
        ...

    def streams(self) -> Iterable[Stream]:
        """Return its live streams."""
        ...

    def stream(self, key: str) -> Stream | None:
        """Return its live stream of this key or member, None where there is none."""
        ...


class Caller(NamedTuple):
    """Who asks for a commit: taken at the call, for a wrapper may run the commit elsewhere."""

    thread: int
    task: int | None
    """Identity of the asyncio task; None: there is none."""


def caller() -> Caller:
    """Return who calls."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return Caller(threading.get_ident(), None if task is None else id(task))


class Scope(NamedTuple):
    """What a commit is asked for."""

    by: Caller
    """Who asks."""
    keys: set[str] | None
    """Keys; None: all."""
    holders: dict[str, set[str] | None]
    """Names of streams and groups, of a group with the members asked for; None: all of them."""


class KeyHolder:
    """A stream that holds a key of the namespace."""

    def __init__(self, stream: Stream, state_key: str, below: Callable[[str], str | None]) -> None:
        self._stream = stream
        self._state_key = state_key
        self._below = below

    @property
    def name(self) -> str:
        """The key."""
        return self._stream.key

    @property
    def live(self) -> bool:
        """Whether commits claim the stream."""
        return self._stream.live

    def owns(self, key: str) -> bool:
        """Tell whether a key is the stream's."""
        return key == self._stream.key

    def claim(self, members: Collection[str] | None = None) -> Changes:  # noqa: ARG002 - it has no members
        """Return what the key is to hold; where that is no change, as it is spelled."""
        cursor, below = self._stream.claim(), self._below(self._stream.key)
        if cursor is None:
            return {self._stream.key: None}
        value = codec.encode(cursor)
        return {self._stream.key: below if below is not None and codec.same(value, below) else value}

    def claimed(self) -> None:
        """Commit the result of `claim()` as the new last claim."""
        self._stream.claimed()

    def back(self) -> None:
        """Go back to what the mapping says, or be detached where that is no cursor."""
        try:
            self._stream.back(decoded(self._state_key, self.name, self._below(self.name)))
        except BaseException:
            self._stream.detach()
            raise

    def detach(self) -> None:
        """Go back to the last claim, for good."""
        self._stream.detach()

    def end(self) -> None:
        """Refuse to be fed any more; what it can tell stays readable."""
        self._stream.end()

    def forked(self) -> None:
        """Do nothing: a stream has no lock."""

    def streams(self) -> list[Stream]:
        """Return the stream, while it is live."""
        return [self._stream] if self._stream.live else []

    def stream(self, key: str) -> Stream | None:
        """Return the stream, where it is live and this is its key."""
        return self._stream if self._stream.live and key == self._stream.key else None


class Holders:
    """The live holders of a run, by name. A name belongs to one holder, a stream or a group."""

    def __init__(self) -> None:
        self._by_name: dict[str, Holder] = {}

    def live(self) -> list[Holder]:
        """Return the holders that commits claim."""
        if dead := [name for name, holder in self._by_name.items() if not holder.live]:
            for name in dead:
                del self._by_name[name]
        return [*self._by_name.values()]

    def get(self, name: object) -> Holder | None:
        """Return the live holder of a name, None where there is none."""
        holder = self._by_name.get(name) if isinstance(name, str) else None
        return holder if holder is not None and holder.live else None

    def groups(self) -> list[Holder]:
        """Return the live groups."""
        return [one for one in self._by_name.values() if not isinstance(one, KeyHolder) and one.live]

    def streams(self) -> list[Stream]:
        """Return the live streams, those that hold members of groups too."""
        return [stream for holder in self.live() for stream in holder.streams()]

    def open(self, holder: Holder) -> None:
        """Let a holder hold its keys, in the place of those that held them."""
        for earlier in self.live():
            if earlier.name == holder.name or holder.owns(earlier.name):
                earlier.detach()
        self._by_name[holder.name] = holder

    def scope(self, only: tuple[object, ...], by: Caller, is_key: Callable[[str], bool]) -> Scope:
        """Return what a commit is asked for; `is_key` tells of a text that is no holder's whether it is a key.

        Raises:
            ValueError: something is neither a key nor a live stream or group of this run.

        """
        if not only:
            return Scope(by, None, {holder.name: None for holder in self.live()})
        scope = Scope(by, set(), {})
        for one in only:
            if isinstance(one, str) and self.get(one) is None:
                if not is_key(one):
                    self._check_no_member(one)
                cast("set[str]", scope.keys).add(one)
                continue
            name, member = self._named(one)
            members = scope.holders.setdefault(name, set())
            if member is None:
                scope.holders[name] = None
            elif members is not None:
                members.add(member)
        return scope

    def _named(self, one: object) -> tuple[str, str | None]:
        """Return the name of a holder, given as such, as its stream or by its name; of a member's stream both names."""
        if isinstance(one, str):
            return one, None
        for holder in self.live():
            if holder is one:
                return holder.name, None
        key = getattr(one, "key", None)
        if isinstance(key, str):
            for owner in (self.get(key), *self.groups()):
                if owner is not None and owner.stream(key) is one:
                    return owner.name, None if isinstance(owner, KeyHolder) else key
        if isinstance(one, Holder):
            raise ValueError(f"{one!r} is not a live group of this run")  # of the right type, of another run
        raise ValueError(f"{one!r} is no key, and not a live stream of this run")

    def _check_no_member(self, key: str) -> None:
        """Refuse to commit by its name what only a group has, for the mapping has no such key to send."""
        for group in self.groups():
            if group.stream(key) is not None:
                raise ValueError(f"{key!r} is a member of the group {group.name!r}: commit the stream, or the group")

    def claim(self, scope: Scope) -> tuple[Changes, Changes]:
        """Return what the keys of a scope's holders are to hold, and of it what streams say."""
        said: Changes = {}
        streamed: Changes = {}
        for holder, members in self._asked(scope):
            changes = holder.claim(members)
            said |= changes
            if holder.streams():
                streamed |= changes
        return said, streamed

    def claimed(self, scope: Scope) -> None:
        """Tell the scope's holders that what they said was claimed."""
        for holder, _ in self._asked(scope):
            holder.claimed()

    def _asked(self, scope: Scope) -> Iterator[tuple[Holder, set[str] | None]]:
        return ((self._by_name[name], members) for name, members in scope.holders.items())

    def back(self) -> None:
        """Let all holders go back; one that cannot is detached, and the first failure raised at the end."""
        failure: Exception | None = None
        for holder in self.live():
            try:
                holder.back()
            except (CheckpointError, TypeError, ValueError) as error:  # noqa: PERF203 - the others go back all the same
                failure = failure or error
        if failure is not None:
            raise failure

    def leave(self) -> None:
        """Finish all streams, unless something says that there is more to read."""
        for stream in self.streams():
            stream.leave()

    def detach(self) -> None:
        """Take all holders back to their last claims, for good: the run failed."""
        for holder in self.live():
            holder.detach()

    def end(self) -> None:
        """Let no holder be used any more: the run has ended."""
        for holder in self.live():
            holder.end()

    def forked(self) -> None:
        """Start over in a forked child."""
        for holder in self.live():
            holder.forked()


def decoded(state_key: str, key: str, value: str | None) -> Cursor | None:
    """Return the cursor in a value, None for None.

    Raises:
        CorruptState: the value is not a cursor.

    """
    try:
        return None if value is None else codec.decode(value)
    except ValueError as reason:
        raise CorruptState(state_key, key, value or "") from reason
