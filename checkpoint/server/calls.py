"""Call the store in threads, so that a call that waits blocks neither the event loop nor calls of the other kind."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from checkpoint.server.messages import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

THREADS = 16
"""The number of threads for reading, and for writing."""

WAITING = 256
"""How many calls may wait for a thread; more are refused."""


class UnderWay(asyncio.CancelledError):
    """The wait for a call was cancelled after a thread had begun it; the call may still finish."""


@dataclass(slots=True)
class _Call:
    """A call that waits for a thread, or is under way."""

    future: asyncio.Future[Any]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    _taken: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Return True to the first caller only: a thread that will make the call, or the waiter that drops it."""
        return self._taken.acquire(blocking=False)


class Calls:
    """Threads for calls that may block; a thread is started when it is needed.

    They are daemons, so a call that still waits for a database does not keep the process alive when the server stops.
    """

    def __init__(self, name: str, threads: int = THREADS, waiting: int = WAITING) -> None:
        self._name = name
        self._most = threads
        self._room = threads + waiting
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unanswered = 0  # changed in the event loop alone

    @property
    def unanswered(self) -> int:
        """Calls that wait for a thread or are under way."""
        return self._unanswered

    async def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread, and return its result.

        Raises:
            Refusal: 503, too many calls are waiting.
            UnderWay: the wait was cancelled after a thread had begun the call. If it was cancelled before, the call is
                never made.

        """
        if self._unanswered >= self._room:
            raise Refusal(503, "too many requests wait for the store", {"Retry-After": "1"})
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._unanswered += 1
        future.add_done_callback(self._answered)
        call = _Call(future, function, args)
        self._queue.put(call)
        if len(self._threads) < min(self._unanswered, self._most):
            thread = threading.Thread(target=self._work, name=f"checkpoint {self._name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        try:
            return await asyncio.shield(future)  # the future counts until it is answered, also if nobody waits
        except asyncio.CancelledError as cancelled:
            if not call.take():
                raise UnderWay from cancelled
            future.cancel()
            raise

    def stop(self) -> None:
        """End the threads after the queued calls, and wait for that."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join()

    def _answered(self, _: asyncio.Future[Any]) -> None:
        self._unanswered -= 1

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if call.take():
                _answer(call.future, call.function, call.args)
            del call  # do not keep it in memory until the next call


def _answer(future: asyncio.Future[T], function: Callable[..., T], args: tuple[Any, ...]) -> None:
    tell: Callable[[], None]
    try:
        tell = partial(future.set_result, function(*args))
    except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
        tell = partial(future.set_exception, error)
    with suppress(RuntimeError):  # the loop has ended, so nobody waits
        future.get_loop().call_soon_threadsafe(tell)
