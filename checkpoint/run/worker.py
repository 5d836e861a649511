"""The one background thread of a run, and the flushes that run on it."""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("checkpoint")


class Worker:
    """Runs calls one after the other on a thread that starts with the first of them.

    The thread is a daemon: a run that was abandoned keeps no process alive, and commits nothing at its exit. What the
    caller's thread touches is a `SimpleQueue`, which no exception of a signal handler leaves locked; an Event or a
    Future may be.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call, which must not raise.

        Raises:
            RuntimeError: the thread cannot be started; nothing is queued.

        """
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=_work, args=[self._calls], name=self._name, daemon=True)
                thread.start()
                self._thread = thread
        self._calls.put(call)

    def stop(self) -> None:
        """End the thread after the calls queued so far, and wait for it; also a thread whose start was interrupted."""
        thread, calls = self._thread, self._calls
        calls.put(None)
        if thread is not None:
            thread.join()
        self._thread, self._calls = None, SimpleQueue()

    def drain(self) -> None:
        """Wait until the calls queued so far have run."""
        if self._thread is not None and self._thread is not threading.current_thread():
            done: SimpleQueue[None] = SimpleQueue()
            self._calls.put(lambda: done.put(None))
            done.get()

    def abandon(self) -> None:
        """End the thread after the calls queued so far, and do not wait: nobody is left who could."""
        self._calls.put(None)


def _work(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # it holds the result, and must not until the next one comes
    calls.put(None)  # for a thread beside this one, where the start of the first was interrupted


class Background:
    """Flushes on a run's worker thread, and the failure of one that nobody has seen yet."""

    def __init__(self, state_key: str, flush: Callable[[], object]) -> None:
        self._state_key = state_key
        self._flush = flush
        self._lock = threading.Lock()
        self._queued = False  # a flush that has not begun
        self._failure: BaseException | None = None
        self.forked()

    def forked(self) -> None:
        """Start over in a forked child: with a thread of its own, and nothing queued."""
        self.worker = Worker(f"checkpoint {self._state_key}")
        self._lock = threading.Lock()
        self._queued, self._failure = False, None

    def flush_soon(self) -> None:
        """Queue a flush, unless one is queued already.

        Raises:
            RuntimeError: the thread cannot be started; nothing is queued.

        """
        if not self._queued:
            self.worker.submit(self._run)
            self._queued = True  # after what may fail: one flush too many sends nothing

    def wait(self) -> None:
        """Wait until what was queued so far has run."""
        self.worker.drain()

    def stop(self) -> None:
        """End the thread."""
        self.worker.stop()

    def raise_failure(self) -> None:
        """Raise the failure of a background flush, once."""
        if (failure := self._take_failure()) is not None:
            raise failure

    def tell_failure(self, error: BaseException) -> None:
        """Add a failure that nobody has seen yet to the error that goes on, as a note."""
        failure = self._take_failure()
        if failure is not None and failure is not error:
            add_note(error, f"checkpoint: {self._state_key!r} was not committed either: {failure}")

    def _take_failure(self) -> BaseException | None:
        with self._lock:
            failure, self._failure = self._failure, None
        return failure

    def _run(self) -> None:
        with self._lock:
            self._queued = False
        try:
            self._flush()
        except BaseException as error:  # noqa: BLE001 - raised in the job's thread, see raise_failure
            with self._lock:
                if self._failure is None:
                    self._failure = error
                else:
                    add_note(self._failure, f"checkpoint: {self._state_key!r} failed again: {error}")


def add_note(error: BaseException, note: str) -> None:
    """Tell of a second failure beside the error that goes on (PEP 678), and in the log for what shows no notes."""
    logger.error(note)
    error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined,unused-ignore]  # Python 3.10 has no add_note
