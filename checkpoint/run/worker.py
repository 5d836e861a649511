"""The one background thread of a run."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs calls one after the other on a thread that starts with the first of them.

    The thread is a daemon: a run that was abandoned keeps no process alive, and commits nothing at its exit.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call, and return the future of its result."""
        from concurrent.futures import Future  # most runs need no thread

        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = call(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is the future's to raise
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        self._calls.put(run)
        return future

    def stop(self) -> None:
        """End the thread after the calls queued so far, and wait for it."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._calls.put(None)
            thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # it holds the result, and must not until the next one comes
