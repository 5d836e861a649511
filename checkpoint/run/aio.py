"""The Checkpointer for asyncio: the same names, and no call that waits on the event loop's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from checkpoint.codec import Cursor
from checkpoint.run.checkpointer import Checkpointer, Commit, add_note
from checkpoint.stores.base import joined

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta, tzinfo
    from decimal import Decimal
    from types import TracebackType

    from typing_extensions import Self

    from checkpoint.entries import Change, Entry
    from checkpoint.run.groups import Group
    from checkpoint.stores.base import Store
    from checkpoint.streams.incremental import Incremental

P = ParamSpec("P")
T = TypeVar("T")


class AsyncCheckpointer(MutableMapping[str, Cursor]):
    """A `Checkpointer` for asyncio, with the same arguments, names and errors.

        async with AsyncCheckpointer("sync_job_123") as cp:
            cp["contacts"] = {"updated_at": "2024-05-01T10:00:00Z"}
            await cp.commit()

    Entering, leaving, `commit`, `flush` and `reload` are awaited; each is one hop to the run's own worker thread, in
    the order of the calls. Cancelling one of them never leaves it half told: the write is settled, within the store's
    deadline, and then the cancellation goes on. Everything else is plain, and returns at once.
    """

    def __init__(
        self,
        state_key: str,
        store: Store | str | None = None,
        *,
        on_conflict: Literal["raise", "overwrite"] = "raise",
        missing: Literal["new", "raise"] = "new",
        exclusive: bool = False,
        min_interval: float = 0.0,
        stop_signals: Iterable[int] = (),
        run_id: str | None = None,
    ) -> None:
        if joined(store) is not None:
            raise ValueError("with connection= a commit runs in the calling thread: use a Checkpointer")
        self._cp = Checkpointer(
            state_key,
            store,
            on_conflict=on_conflict,
            missing=missing,
            exclusive=exclusive,
            min_interval=min_interval,
            stop_signals=stop_signals,
            run_id=run_id,
        )

    def __repr__(self) -> str:
        return f"Async{self._cp!r}"

    async def __aenter__(self) -> Self:
        self._cp._enter_once()
        try:
            self._cp._watch_signals()
            await self._hop(self._cp._load)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._hop(self._cp._leave, exc)
            self._cp._tell_failure(exc)
        except BaseException as error:
            self._cp._tell_failure(error)
            raise
        finally:
            await self._end()

    if not TYPE_CHECKING:  # type checkers say it by themselves

        def __enter__(self) -> None:
            raise TypeError("an AsyncCheckpointer is entered with `async with`")

        def __exit__(self, *_: object) -> None:
            pass

    async def _end(self) -> None:
        try:
            await self._hop(self._cp._taken.close)  # which may wait for the store
        finally:
            self._cp._end()

    @property
    def state_key(self) -> str:
        """The namespace of this run."""
        return self._cp.state_key

    @property
    def stopping(self) -> bool:
        """Whether a stop signal came: finish the page in hand, then leave."""
        return self._cp.stopping

    # The mapping

    def __getitem__(self, key: str) -> Cursor:
        return self._cp[key]

    def __setitem__(self, key: str, cursor: Cursor) -> None:
        self._cp[key] = cursor

    def __delitem__(self, key: str) -> None:
        del self._cp[key]

    def __contains__(self, key: object) -> bool:
        return key in self._cp

    def __iter__(self) -> Iterator[str]:
        return iter(self._cp)

    def __len__(self) -> int:
        return len(self._cp)

    def setdefault(self, key: str, default: Cursor) -> Cursor:  # pyright: ignore[reportIncompatibleMethodOverride] - None is no cursor
        """Return the cursor of a key, set to `default` first where the key is absent."""
        return self._cp.setdefault(key, default)

    def clear(self) -> None:
        """Delete every key, decoding none."""
        self._cp.clear()

    @property
    def raw(self) -> MutableMapping[str, str]:
        """The same namespace as value strings; see `Checkpointer.raw`."""
        return self._cp.raw

    def entry(self, key: str) -> Entry | None:
        """Return the entry of a key as the store is known to hold it, None where it holds none."""
        return self._cp.entry(key)

    @property
    def changed(self) -> set[str]:
        """The keys that were set, changed or deleted, and are not flushed."""
        return self._cp.changed

    # Groups and streams

    def group(self, name: str, shards: int = 1) -> Group:
        """Open the group whose members are stored together under `name`; see `Checkpointer.group`."""
        return self._cp.group(name, shards)

    def incremental(
        self,
        key: str,
        cursor_field: str | Callable[[Any], Any],
        *,
        initial_value: Any = None,
        end_value: Any = None,
        lookback: timedelta | float | Decimal | None = None,
        primary_key: str | Sequence[str] | Callable[[Any], Any] | None = None,
        row_order: Literal["asc", "desc"] | None = None,
        range_start: Literal["closed", "open"] = "closed",
        on_cursor_value_missing: Literal["raise", "include", "exclude"] = "raise",
        timezone: str | tzinfo | None = None,
        oldest_available: Any = None,
        max_seen: int = 1_000,
        group: Group | str | None = None,
    ) -> Incremental[Any]:
        """Open the stream whose cursor is stored under `key`; see `Checkpointer.incremental`."""
        return self._cp.incremental(
            key,
            cursor_field,
            initial_value=initial_value,
            end_value=end_value,
            lookback=lookback,
            primary_key=primary_key,
            row_order=row_order,
            range_start=range_start,
            on_cursor_value_missing=on_cursor_value_missing,
            timezone=timezone,
            oldest_available=oldest_available,
            max_seen=max_seen,
            group=group,
        )

    # Committing

    def commit(self, *only: str | Incremental[Any] | Group) -> Coroutine[Any, Any, Commit]:
        """Claim what changed, at the call, and flush it, when awaited; see `Checkpointer.commit`."""
        return self._flush(self._cp._begin_commit(only))

    async def _flush(self, keys: frozenset[str] | None) -> Commit:
        with self._cp._open():
            pass  # outside the block there is no worker to hop to
        return Commit() if keys is None else await self._hop(self._cp._ledger.flush, keys)

    def commit_soon(self, *only: str | Incremental[Any] | Group) -> None:
        """Claim what changed and return at once; see `Checkpointer.commit_soon`."""
        self._cp.commit_soon(*only)

    async def flush(self) -> None:
        """Wait until everything claimed so far is stored; see `Checkpointer.flush`."""
        with self._cp._open():
            pass  # as in _flush
        await self._hop(self._cp.flush)

    def discard(self) -> None:
        """Drop what was set and not committed; see `Checkpointer.discard`."""
        self._cp.discard()

    async def reload(self) -> None:
        """Discard, and list the namespace again; see `Checkpointer.reload`."""
        with self._cp._open():
            pass  # as in _flush
        await self._hop(self._cp.reload)

    async def history(self, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what the latest commits changed, newest first; see `Checkpointer.history`."""
        with self._cp._open():
            pass  # as in _flush
        return await self._hop(self._cp.history, key, limit=limit)

    async def restore(self, key: str, version: int) -> Commit:
        """Commit to a key the value of an earlier commit; see `Checkpointer.restore`."""
        with self._cp._open():
            pass  # as in _flush
        return await self._hop(self._cp.restore, key, version)

    async def _hop(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call on the run's worker thread; a cancellation waits for it to end, and then goes on."""
        future = asyncio.wrap_future(self._cp._worker.submit(call, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError as cancelled:
            while not future.done():
                with suppress(asyncio.CancelledError):  # asked again: the write is still to be settled
                    await asyncio.wait([future])
            if failure := future.exception():
                add_note(cancelled, f"checkpoint: {self.state_key!r}: {failure}")
            raise
