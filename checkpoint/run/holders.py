"""The run's view of streams: which keys they hold, and how they are claimed, reset and detached.

A stream holds a key of the mapping or a member of a group, exclusively: while the stream is live nothing else sets that
key. A `Scope` says what a commit includes; the commit claims all streams in it or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from checkpoint import codec
from checkpoint.entries import named
from checkpoint.errors import CheckpointError, CorruptState
from checkpoint.run.claims import decoded
from checkpoint.streams.holding import here as caller
from checkpoint.streams.stored import WrongShapeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.codec import Cursor
    from checkpoint.streams.counts import Stats
    from checkpoint.streams.holding import Caller
    from checkpoint.streams.telling import Ending

__all__ = ["Holders", "KeyHolder", "Scope", "Stream", "caller"]


class Stream(Protocol):
    """What a run does with a stream; `Incremental` is one."""

    @property
    def key(self) -> str:
        """The key its cursor is stored under."""
        ...

    @property
    def reason(self) -> str | None:
        """Why the position was moved back since the last claim; None: it was not."""
        ...

    @property
    def stats(self) -> Stats:
        """The number of rows seen, delivered and dropped in this run."""
        ...

    @property
    def was_read(self) -> bool:
        """Whether the source was read to its end; False also if unknown."""
        ...

    @property
    def cursor_format(self) -> str | None:
        """The format that it was opened with, if that is a name or a pattern."""
        ...

    @property
    def only_waits(self) -> bool:
        """Whether only time has passed since the last claim, which has to be repeated as the clock moves."""
        ...

    @property
    def live(self) -> bool:
        """Whether commits claim it: False after an exception left it, or after it was opened again."""
        ...

    def claim(self) -> Cursor | None:
        """Return the cursor to store once all rows handed out are delivered; None: nothing to store."""
        ...

    def claimed(self) -> None:
        """Commit the result of `claim()` as the new last claim."""
        ...

    def back(self, cursor: Cursor | None) -> None:
        """Reset to a claim, and continue from there."""
        ...

    def detach(self) -> None:
        """Reset to the last claim, permanently."""
        ...

    def leave(self) -> None:
        """Finish at the end of the block, unless there is a sign that there is more to read."""
        ...

    def end(self) -> None:
        """Take no more rows; positions and counts stay readable."""
        ...

    def ending(self) -> Ending:
        """Return the data from which its end is judged and logged."""
        ...

    def held_elsewhere(self, by: Caller) -> bool:
        """Whether a thread or task other than `by` holds rows of it."""
        ...

    def let_go(self, by: Caller) -> None:
        """Release the closed readings of `by`, which has committed it."""
        ...


class KeyHolder:
    """A stream and the key that it holds: a key of the mapping, or a member of a group."""

    def __init__(
        self,
        stream: Stream,
        key: str,
        group: str | None,
        state_key: str,
        below: Callable[[str], str | None],
        *,
        packed: bool = False,
    ) -> None:
        self.stream = stream
        self.key = key
        self.group = group
        """The group of the key; None for a key of the mapping."""
        self.settled: bool = False
        """Whether its last claim was taken as a whole; False from before the next one begins."""
        self._packed = packed  # with members: other runs may write into the layer below
        self._state_key = state_key
        self._below = below
        self._last = self._pending = below(key) if packed else None  # its last claim
        self._told: str | None = None  # the last claim as it was spelled here

    def below(self) -> str | None:
        """Return the value of the key as last claimed or stored."""
        return self._below(self.key)

    def claim(self) -> str | None:
        """Return the new value of the key, None for no value; an equal value keeps its stored spelling."""
        cursor, below = self.stream.claim(), self.below()
        value = self._pending = None if cursor is None else codec.encode(cursor)
        if self._packed and (value == self._last or (value and self._last and codec.same(value, self._last))):
            return below  # its claim is unchanged: keep what another run wrote meanwhile
        if value is None or below is None or (below == self._told and value != below):  # spelled by the same stream
            return value
        return below if codec.same(value, below) else value

    def claimed(self) -> None:
        """Make the claim the last one."""
        self._last = self._told = self._pending
        self.stream.claimed()
        self.settled = True

    def back(self) -> None:
        """Reset the stream to the value in the layers; if that is not a cursor, detach it.

        Raises:
            CheckpointError, TypeError, ValueError: it cannot continue.

        """
        try:
            value = self._last = self.below()
            try:
                self.stream.back(None if value is None else decoded(self._state_key, self.key, value))
            except WrongShapeError as reason:
                raise CorruptState(self._state_key, self.key, value or "") from reason
        except BaseException:
            self.stream.detach()
            raise


class Scope(NamedTuple):
    """What a commit includes."""

    by: Caller
    """The thread or task that commits."""
    keys: set[str] | None
    """Keys and members; None: all."""
    holders: list[KeyHolder]
    """Streams to claim."""
    groups: set[str]
    """Names of groups whose earlier claims are all sent, too."""


class Holders:
    """The streams of a run by the keys that they hold, and which of them the next commit has to claim.

    held   touched   the stream of a key
    yes    yes       was opened, fed, finished or moved back since it was claimed
    yes    no        its claim already equals the layer below
    no     yes       was detached after that; the next commit drops the mark
    no     no        does not exist, or was detached; its rows stay counted

    A detached stream counts as held until the next look-up removes it. A second exception in an interrupted commit may
    lose marks, so leaving the run also claims the streams that are not `settled`.
    """

    def __init__(self) -> None:
        self._by_key: dict[str, KeyHolder] = {}
        self._by_stream: dict[Stream, KeyHolder] = {}
        self._touched: dict[str, None] = {}  # keys of streams that changed since they were claimed, in order
        self._set_touched = self._touched.setdefault
        self._counts: dict[str, Counter[str]] = {}  # rows of streams that are no longer held

    def __len__(self) -> int:
        return len(self._by_key)

    def live(self, prefix: str = "") -> list[KeyHolder]:
        """Return the live streams of the keys with a prefix."""
        for holder in [holder for holder in self._by_key.values() if not holder.stream.live]:
            self._forget(holder)
        return [holder for key, holder in self._by_key.items() if key.startswith(prefix)]

    def touched(self) -> list[KeyHolder]:
        """Return the streams that changed since they were claimed, including those that were held elsewhere then."""
        found: list[KeyHolder] = []
        for key in [*self._touched]:
            if (holder := self.get(key)) is None:
                self._touched.pop(key, None)
            else:
                found.append(holder)
        return found

    def touch(self, key: str) -> None:
        """Note that the claim of a key's stream may have changed. Any thread may call it, without the lock."""
        self._touched.setdefault(key)

    def touch_all(self, keys: dict[str, None]) -> None:
        """Do the same for these keys, in one step that a signal handler cannot interrupt."""
        self._touched.update(keys)

    def toucher(self, key: str) -> Callable[[], object]:
        """Return the callback for changes of a stream; it holds no reference to the stream."""
        return partial(self._set_touched, key)

    def untouch(self, holder: KeyHolder) -> None:
        """Note that a stream is being claimed: any later change touches it again."""
        holder.settled = False  # first, for a signal handler may raise anywhere
        self._touched.pop(holder.key, None)

    def get(self, key: object) -> KeyHolder | None:
        """Return the live holder of a key, None without one."""
        holder = self._by_key.get(key) if isinstance(key, str) else None
        return holder if holder is not None and holder.stream.live else None

    def of(self, stream: object) -> KeyHolder | None:
        """Return the holder of a live stream of this run, None for anything else."""
        if not isinstance(stream, Hashable):
            return None
        holder = self._by_stream.get(stream)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType,reportCallIssue] - of any type
        return holder if holder is not None and holder.stream.live else None

    def streams(self) -> list[Stream]:
        """Return the live streams."""
        return [holder.stream for holder in self.live()]

    def open(self, holder: KeyHolder) -> None:
        """Let a stream hold its key, replacing an earlier one."""
        if earlier := self._by_key.get(holder.key):
            earlier.stream.detach()
            self._forget(earlier)
        self._by_key[holder.key] = self._by_stream[holder.stream] = holder

    def detach(self, prefix: str = "") -> None:
        """Reset the streams of the keys with a prefix to their last claims, permanently."""
        holders = self.live(prefix)
        self._tell_of_groups(holders, failed=True)
        for holder in holders:
            holder.stream.detach()

    def back(self) -> None:
        """Reset all streams; detach those that cannot be reset, and raise the first failure at the end."""
        failure: Exception | None = None
        for holder in self.live():
            try:
                holder.back()
            except (CheckpointError, TypeError, ValueError) as error:  # noqa: PERF203 - the others go back all the same
                failure = failure or error
        if failure is not None:
            raise failure

    def leave(self) -> None:
        """Finish all streams, unless there is a sign that there is more to read."""
        for holder in self.live():
            holder.stream.leave()
            if not holder.settled:  # at the end those are claimed, too, that an interrupted commit skipped
                self.touch(holder.key)

    def end(self) -> None:
        """Close all streams: the run has ended."""
        holders = self.live()
        self._tell_of_groups(holders, failed=False)
        for holder in holders:
            holder.stream.end()

    def tell_of_held(self, by: Caller) -> None:
        """Log the streams that are not claimed at the end because others than `by` hold rows of them."""
        held = [holder.stream.key for holder in self.live() if holder.stream.held_elsewhere(by)]
        if held:
            from checkpoint.streams.telling import tell_of_holders

            tell_of_holders(held)

    @staticmethod
    def _tell_of_groups(holders: list[KeyHolder], *, failed: bool) -> None:
        """Log the end of each group's streams together."""
        groups: dict[str, list[Ending]] = {}
        for holder in holders:
            if holder.group is not None:
                groups.setdefault(holder.group, []).append(holder.stream.ending())
        if not groups:
            return
        from checkpoint.streams.telling import tell_of_end

        for name, endings in groups.items():
            tell_of_end(name, endings, failed=failed)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the row counts of the run by stream, those of members by group."""
        counts = {name: Counter(rows) for name, rows in self._counts.items()}
        for holder in self._by_key.values():
            _count(counts, holder)
        return {name: dict(rows) for name, rows in counts.items()}

    def read(self) -> list[str]:
        """Return the keys, without members, whose streams were read to their end and then claimed."""
        return [holder.key for holder in self._read() if holder.group is None]

    def members_read(self) -> dict[str, set[str]]:
        """Return the members of each group whose streams were read to their end and then claimed."""
        read: dict[str, set[str]] = {}
        for holder in self._read():
            if holder.group is not None:
                read.setdefault(holder.group, set()).add(holder.stream.key)
        return read

    def _read(self) -> list[KeyHolder]:
        return [
            holder
            for holder in self.live()
            if holder.stream.was_read and (holder.key not in self._touched or holder.stream.only_waits)
        ]

    def formats(self) -> dict[str, str]:
        """Return the format of each stream, for members by group; empty if it has no name."""
        return {holder.group or holder.key: holder.stream.cursor_format or "" for holder in self.live()}

    def check(self) -> None:
        """Raise AssertionError where the state is not in the table above; for tests."""
        if wrong := [key for key, holder in self._by_key.items() if self._by_stream.get(holder.stream) is not holder]:
            raise AssertionError(f"held by streams that do not know it: {wrong}")
        if len(self._by_stream) != len(self._by_key):
            raise AssertionError("streams that hold no key")
        quiet = [holder for holder in self.live() if holder.key not in self._touched]
        if lost := [holder.key for holder in quiet if holder.claim() != holder.below()]:
            raise AssertionError(f"changed since they were claimed, and the next commit does not ask them: {lost}")

    def _forget(self, holder: KeyHolder) -> None:
        _count(self._counts, holder)
        if self._by_key.get(holder.key) is holder:
            del self._by_key[holder.key]
        self._by_stream.pop(holder.stream, None)


def _count(counts: dict[str, Counter[str]], holder: KeyHolder) -> None:
    rows = holder.stream.stats
    total = counts.setdefault(named(holder.key)[0], Counter())
    total.update(seen=rows.seen, delivered=rows.delivered, dropped=rows.dropped, late=rows.late)
