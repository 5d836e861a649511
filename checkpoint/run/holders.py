"""The run's view of streams: they hold keys, are claimed, go back, and are detached.

A stream holds a key of the mapping or a member of a group, in one way. While it is live nothing else sets that key.
What a commit is asked for is a `Scope`; it claims the streams in it, all or none.
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
from checkpoint.streams.counts import ROWS
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
        """Why the position was taken back since the last claim; None: it was not."""
        ...

    @property
    def stats(self) -> Stats:
        """How many rows were seen, delivered and dropped in this run."""
        ...

    @property
    def was_read(self) -> bool:
        """Whether the source was read to its end; False also where that is not known."""
        ...

    @property
    def cursor_format(self) -> str | None:
        """The format that it was opened with, where that is a name or a pattern."""
        ...

    @property
    def only_waits(self) -> bool:
        """Whether nothing came since the last claim, which is to be made again as the clock moves on."""
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
        """Take no more rows; positions and counts stay readable."""
        ...

    def ending(self) -> Ending:
        """Return what its end is judged and logged by."""
        ...

    def held_elsewhere(self, by: Caller) -> bool:
        """Tell whether rows of it are in the hands of a thread or task other than `by`."""
        ...

    def let_go(self, by: Caller) -> None:
        """Release the closed readings of `by`, which has committed it."""
        ...


class KeyHolder:
    """A stream, and the key of the layers that it holds: a key of the mapping, or a member of a group."""

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
        """The group that the key is a member of; None: it is a key of the mapping."""
        self._packed = packed  # with members that other runs may write into what is below
        self._state_key = state_key
        self._below = below
        self._last = self._pending = below(key) if packed else None  # what it said last

    def below(self) -> str | None:
        """Return the value of the key as last claimed or stored."""
        return self._below(self.key)

    def claim(self) -> str | None:
        """Return the value that the key is to hold, None for none; where that is no change, as it is spelled."""
        cursor, below = self.stream.claim(), self.below()
        value = None if cursor is None else codec.encode(cursor)
        if self._packed:
            self._pending = value
            if value == self._last or (value and self._last and codec.same(value, self._last)):
                return below  # its claim is unchanged: keep what another run wrote meanwhile
        if value is None:
            return None
        return below if below is not None and codec.same(value, below) else value

    def claimed(self) -> None:
        """Make the claim the last one."""
        self._last = self._pending
        self.stream.claimed()

    def back(self) -> None:
        """Let the stream go back to what the layers say; where that is no cursor, it is detached.

        Raises:
            CheckpointError, TypeError, ValueError: it cannot go on.

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
    """What a commit is asked for."""

    by: Caller
    """The thread or task that commits."""
    keys: set[str] | None
    """Keys and members; None: all."""
    holders: list[KeyHolder]
    """Streams to claim."""
    groups: set[str]
    """Names of groups that go out with all that they had claimed before."""


class Holders:
    """The streams of a run by the keys that they hold, and which of them the next commit asks.

    held   touched   the stream of a key
    yes    yes       was opened, fed, finished or taken back since it was claimed
    yes    no        claims what lies below already
    no     yes       was detached after that; the next commit drops the mark
    no     no        does not exist, or was detached; its rows stay counted

    One that was detached counts as held until somebody looks.
    """

    def __init__(self) -> None:
        self._by_key: dict[str, KeyHolder] = {}
        self._by_stream: dict[Stream, KeyHolder] = {}
        self._touched: dict[str, None] = {}  # keys of streams that changed since they were claimed, in order
        self._counts: dict[str, Counter[str]] = {}  # rows of streams that are not held any more

    def __len__(self) -> int:
        return len(self._by_key)

    def live(self, prefix: str = "") -> list[KeyHolder]:
        """Return the streams that commits claim, of the keys that begin with a text."""
        for holder in [holder for holder in self._by_key.values() if not holder.stream.live]:
            self._forget(holder)
        return [holder for key, holder in self._by_key.items() if key.startswith(prefix)]

    def touched(self) -> list[KeyHolder]:
        """Return the streams that changed since they were claimed, those that were held elsewhere then among them."""
        found: list[KeyHolder] = []
        for key in [*self._touched]:
            if (holder := self.get(key)) is None:
                self.untouch(key)
            else:
                found.append(holder)
        return found

    def touch(self, key: str) -> None:
        """Note that what the stream of a key claims may have changed. May be called by any thread, without the lock."""
        self._touched.setdefault(key)

    def touch_all(self, keys: dict[str, None]) -> None:
        """Note the same of these keys, in one step that no signal handler comes into."""
        self._touched.update(keys)

    def toucher(self, key: str) -> Callable[[], object]:
        """Return what a stream calls whenever it changes: without a reference to the stream."""
        return partial(self._touched.setdefault, key)

    def untouch(self, key: str) -> None:
        """Note that the stream of a key is being claimed: what it takes in from here on touches it again."""
        self._touched.pop(key, None)

    def get(self, key: object) -> KeyHolder | None:
        """Return what holds a key, None where nothing live does."""
        holder = self._by_key.get(key) if isinstance(key, str) else None
        return holder if holder is not None and holder.stream.live else None

    def of(self, stream: object) -> KeyHolder | None:
        """Return by what a live stream of this run holds its key, None for anything else."""
        if not isinstance(stream, Hashable):
            return None
        holder = self._by_stream.get(stream)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType,reportCallIssue] - of any type
        return holder if holder is not None and holder.stream.live else None

    def streams(self) -> list[Stream]:
        """Return the live streams."""
        return [holder.stream for holder in self.live()]

    def open(self, holder: KeyHolder) -> None:
        """Let a stream hold its key, in the place of an earlier one."""
        if earlier := self._by_key.get(holder.key):
            earlier.stream.detach()
            self._forget(earlier)
        self._by_key[holder.key] = self._by_stream[holder.stream] = holder

    def detach(self, prefix: str = "") -> None:
        """Take streams back to their last claims, for good: those whose keys begin with a text."""
        holders = self.live(prefix)
        self._tell_of_groups(holders, failed=True)
        for holder in holders:
            holder.stream.detach()

    def back(self) -> None:
        """Let all streams go back; one that cannot is detached, and the first failure raised at the end."""
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
        for holder in self.live():
            holder.stream.leave()
            self.touch(holder.key)  # at the end all are asked, whatever came amid a commit before

    def end(self) -> None:
        """Close all streams: the run has ended."""
        holders = self.live()
        self._tell_of_groups(holders, failed=False)
        for holder in holders:
            holder.stream.end()

    def tell_of_held(self, by: Caller) -> None:
        """Log which streams are not claimed at the end, for others than `by` hold rows of them."""
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
        """Return the rows of the run by stream, of members by group."""
        counts = {name: Counter(rows) for name, rows in self._counts.items()}
        for holder in self._by_key.values():
            _count(counts, holder)
        return {name: {what: rows[what] for what in ROWS} for name, rows in counts.items()}

    def read(self) -> list[str]:
        """Return the keys, not of members, whose streams were read to their end, and claimed since."""
        return [holder.key for holder in self._read() if holder.group is None]

    def members_read(self) -> dict[str, set[str]]:
        """Return the members of each group whose streams were read so."""
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
        """Return the format of each stream, of members by group; empty where it has none that can be named."""
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
    stats = holder.stream.stats
    counts.setdefault(named(holder.key)[0], Counter()).update({what: getattr(stats, what) for what in ROWS})
