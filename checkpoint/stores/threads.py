"""Threads that the main thread can use safely although signal handlers run in it.

CPython runs signal handlers in the main thread, between any two bytecodes. An exception of a handler can leave a
Condition, an Event or a Future locked for ever, and a client in the middle of a request. So the main thread uses only
`SimpleQueue`, which is written in C: its calls either happen completely or not at all.
"""

from __future__ import annotations

import _thread
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, TypeVar
from weakref import finalize

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

Tasks: TypeAlias = "SimpleQueue[Callable[[], object] | None]"


class Worker:
    """Runs calls one after the other on a thread, which the first call starts and `stop` ends.

    The thread is a daemon: an abandoned call does not keep the process alive. It also ends when the Worker is
    garbage-collected.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: tuple[Tasks, threading.Thread] | None = None
        self._starting = threading.Lock()
        self._ended = False  # the thread takes no more calls

    def submit(self, call: Callable[[], object]) -> None:
        """Queue a call, which must not raise.

        Raises:
            RuntimeError: the thread cannot be started; nothing is queued.

        """
        with self._starting:
            calls = self._start() if self._running is None or self._ended else self._running[0]
            calls.put(call)

    def drain(self) -> None:
        """Wait until the calls queued so far have run."""
        if self._running is not None and self._running[1] is not threading.current_thread():
            done: SimpleQueue[None] = SimpleQueue()
            with self._starting:
                (calls, thread), ended = self._running, self._ended
                calls.put(lambda: done.put(None))
            if ended:
                thread.join()
            else:
                take(done)

    def stop(self) -> None:
        """End the thread after the calls queued so far, and wait for it; may be called again."""
        self.abandon()
        if self._running is not None:
            self._running[1].join()

    def abandon(self, last: Callable[[], object] | None = None) -> None:
        """End the thread after the calls queued so far, and the `last` one; do not wait."""
        with self._starting:
            if self._running is not None:
                self._ended = True
                if last is not None:
                    self._running[0].put(last)
                self._running[0].put(None)

    def _start(self) -> Tasks:
        calls: Tasks = SimpleQueue()
        thread = threading.Thread(target=_run_calls, args=[calls], name=self._name, daemon=True)
        finalize(self, calls.put, None).atexit = False
        try:
            start_thread(thread)
        except BaseException:
            calls.put(None)  # although interrupted, it may have started
            raise
        self._running, self._ended = (calls, thread), False
        return calls


def take(queue: SimpleQueue[T]) -> T:
    """Take the next item, and let signal handlers run meanwhile.

    A signal received by another thread, or just before the wait, does not end the wait: CPython runs handlers between
    bytecodes. So the wait is renewed once a second.
    """
    while True:
        with suppress(Empty):
            return queue.get(timeout=1.0)


def start_thread(thread: threading.Thread) -> None:
    """Start a thread; if interrupted, it may or may not run.

    Raises:
        RuntimeError: it cannot be started.

    """
    if threading.current_thread() is not threading.main_thread():
        thread.start()
        return
    told: SimpleQueue[BaseException | None] = SimpleQueue()
    _thread.start_new_thread(_start, (thread, told))  # `thread.start()` waits for an Event
    error = take(told)
    if error is not None:
        raise error


def _start(thread: threading.Thread, told: SimpleQueue[BaseException | None]) -> None:
    try:
        thread.start()
    except BaseException as error:  # noqa: BLE001 - raised by whoever wanted the thread
        told.put(error)
    else:
        told.put(None)


def _run_calls(calls: Tasks) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # do not keep the call alive until the next one comes
