"""The Checkpointer for asyncio: the same names, without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from checkpoint.codec import Cursor
from checkpoint.run.background import add_note
from checkpoint.run.checkpointer import Checkpointer
from checkpoint.run.flush import Commit
from checkpoint.run.holders import caller
from checkpoint.stores.base import joined

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from checkpoint.run.groups import Group
    from checkpoint.streams.incremental import Incremental

P = ParamSpec("P")
T = TypeVar("T")


def _like(
    method: Callable[Concatenate[Checkpointer, P], T],
) -> Callable[[Callable[..., T]], Callable[Concatenate[AsyncCheckpointer, P], T]]:
    """Copy the signature and the docstring of the Checkpointer's method."""
    return wraps(method)


def _awaited(
    method: Callable[Concatenate[Checkpointer, P], T],
) -> Callable[
    [Callable[..., Coroutine[Any, Any, T]]], Callable[Concatenate[AsyncCheckpointer, P], Coroutine[Any, Any, T]]
]:
    """Copy the signature and the docstring of the Checkpointer's method to a coroutine."""
    return wraps(method)


def _constructor(
    _: Callable[Concatenate[Checkpointer, P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[AsyncCheckpointer, P], None]]:
    """Copy the signature of the Checkpointer's constructor."""
    return wraps(Checkpointer.__init__)


class AsyncCheckpointer(MutableMapping[str, Cursor]):
    """A `Checkpointer` for asyncio, with the same arguments, names and errors.

        async with AsyncCheckpointer("sync_job_123") as cp:
            cp["contacts"] = {"updated_at": "2024-05-01T10:00:00Z"}
            await cp.commit()

    Entering, leaving, `commit`, `flush` and `reload` are awaited; each is one hop to the run's own worker thread, in
    the order of the calls. Cancelling one of them first waits until the outcome of the write is known, within the
    store's deadline, and then raises the cancellation. All other methods are synchronous, and return at once.
    """

    @_constructor(Checkpointer.__init__)
    def __init__(self, state_key: str, store: Any = None, **options: Any) -> None:
        if joined(store) is not None:
            raise ValueError("with connection= a commit runs in the calling thread: use a Checkpointer")
        given = [store]
        del store  # a URL may hold a password, and a rendered traceback shows locals
        self._cp = Checkpointer(state_key, given.pop(), **options)
        self._block = self._cp._block

    def __repr__(self) -> str:
        return f"Async{self._cp!r}" if hasattr(self, "_cp") else "AsyncCheckpointer()"

    async def __aenter__(self) -> Self:
        self._cp._enter_once()
        try:
            self._block.enter()
            await self._hop(self._block.load)
        except BaseException:
            if self._block.leave_load():
                self._block.end_load()
            else:
                await self._end()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            try:
                await self._hop(self._block.leave, exc, caller())
            finally:
                await self._end()
        except BaseException:
            self._block.end()  # left over after an interruption
            raise

    if not TYPE_CHECKING:  # type checkers report it without this

        def __enter__(self) -> None:
            raise TypeError("an AsyncCheckpointer is entered with `async with`")

        def __exit__(self, *_: object) -> None:
            pass

    async def _end(self) -> None:
        try:
            await self._hop(self._block.release)  # which may wait for the store
        finally:
            self._block.end()

    @property
    def state_key(self) -> str:
        """The namespace of this run."""
        return self._cp.state_key

    @property
    def run_id(self) -> str:
        """The id of this run; see `Checkpointer.run_id`."""
        return self._cp.run_id

    @property
    def stopping(self) -> bool:
        """Whether a stop signal came: finish the page in hand, then leave."""
        return self._cp.stopping

    @property
    def raw(self) -> MutableMapping[str, str]:
        """The same namespace as value strings; see `Checkpointer.raw`."""
        return self._cp.raw

    @property
    def changed(self) -> set[str]:
        """The keys with changes that are not flushed; a group counts by its name."""
        return self._cp.changed

    def __iter__(self) -> Iterator[str]:
        return iter(self._cp)

    def __len__(self) -> int:
        return len(self._cp)

    def setdefault(self, key: str, default: Cursor) -> Cursor:  # pyright: ignore[reportIncompatibleMethodOverride] - None is not a cursor
        """Return the cursor of a key; an absent key is set to `default` first. It may be changed in place."""
        return self._cp.setdefault(key, default)

    def clear(self) -> None:
        """Delete every key, without decoding any."""
        self._cp.clear()

    def __getitem__(self, key: str) -> Cursor:
        return self._cp[key]

    def __setitem__(self, key: str, cursor: Cursor) -> None:
        self._cp[key] = cursor

    def __delitem__(self, key: str) -> None:
        del self._cp[key]

    def __contains__(self, key: object) -> bool:
        return key in self._cp

    @_like(Checkpointer.entry)
    def entry(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.entry`."""
        return self._cp.entry(*args, **options)

    @_like(Checkpointer.group)
    def group(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.group`."""
        return self._cp.group(*args, **options)

    @_like(Checkpointer.incremental)
    def incremental(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.incremental`."""
        return self._cp.incremental(*args, **options)

    @_like(Checkpointer.commit_soon)
    def commit_soon(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.commit_soon`."""
        return self._cp.commit_soon(*args, **options)

    @_like(Checkpointer.discard)
    def discard(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.discard`."""
        return self._cp.discard(*args, **options)

    @_awaited(Checkpointer.flush)
    async def flush(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.flush`."""
        return await self._run(self._cp.flush, *args, **options)

    @_awaited(Checkpointer.reload)
    async def reload(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.reload`."""
        return await self._run(self._cp.reload, *args, **options)

    @_awaited(Checkpointer.history)
    async def history(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.history`."""
        return await self._run(self._cp.history, *args, **options)

    @_awaited(Checkpointer.runs)
    async def runs(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.runs`."""
        return await self._run(self._cp.runs, *args, **options)

    @_awaited(Checkpointer.restore)
    async def restore(self, *args: Any, **options: Any) -> Any:
        """See `Checkpointer.restore`."""
        return await self._run(self._cp.restore, *args, **options)

    def commit(self, *only: str | Incremental[Any] | Group) -> Coroutine[Any, Any, Commit]:
        """Claim all changes at the call, and flush them when awaited; see `Checkpointer.commit`."""
        return self._flush(self._cp._begin_commit(only))

    async def _flush(self, keys: frozenset[str] | None) -> Commit:
        self._cp._check_open()  # there is no worker thread outside the block
        return Commit() if keys is None else await self._hop(self._cp._commits.flush, keys)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._cp._check_open()  # there is no worker thread outside the block
        return await self._hop(call, *args, **kwargs)

    async def _hop(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call on the run's worker thread; a cancellation waits for a write to end, and is then raised."""
        outcome: list[tuple[T | None, BaseException | None]] = []

        def run() -> None:
            try:
                outcome.append((call(*args, **kwargs), None))
            except BaseException as error:  # noqa: BLE001 - raised below
                outcome.append((None, error))

        try:
            await self._queue(run)
        except asyncio.CancelledError as cancelled:
            if not self._block.leave_load():
                await self._settle()
            if outcome and (failure := outcome.pop()[1]):
                add_note(cancelled, f"checkpoint: {self.state_key!r}: {failure}")
            raise
        result, error = outcome.pop()
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback leads to this frame
        return cast("T", result)

    async def _settle(self) -> None:
        """Wait for the calls queued so far despite cancellations: the outcome of the write must be known.

        It queues a new call each time: stopping the event loop may have lost the result of the earlier one.
        """
        settled = False
        while not settled:
            with suppress(asyncio.CancelledError):
                await self._queue(_nothing)
                settled = True

    async def _queue(self, call: Callable[[], None]) -> None:
        """Queue a call for the run's worker thread, and wait until it has run."""
        loop = asyncio.get_running_loop()
        ran: asyncio.Future[None] = loop.create_future()

        def run() -> None:
            call()
            with suppress(RuntimeError):  # the loop is closed: no caller waits any more
                # Not a Python function: if a signal handler raised in it, the loop would log that, and `ran` would
                # never end.
                loop.call_soon_threadsafe(ran.set_result, None)

        self._cp._commits.background.submit(run)
        await asyncio.shield(ran)


def _nothing() -> None:
    pass
