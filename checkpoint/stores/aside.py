"""The main thread's calls, made on a thread where no signal handler runs.

CPython runs signal handlers in the main thread, between any two bytecodes. What one raises there leaves a Condition,
an Event or a Future locked for ever, and a client in the middle of a request. The main thread touches nothing but
`SimpleQueue`, which is not of Python code: it either takes an answer or it does not.
"""

from __future__ import annotations

import _thread
import os
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast
from weakref import finalize

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.stores.retrying import Operation

T = TypeVar("T")

Calls: TypeAlias = "SimpleQueue[Callable[[], None] | None]"
Answers: TypeAlias = "SimpleQueue[tuple[T | None, BaseException | None]]"


class Aside:
    """A thread for the main thread's calls, started with the first of them; other threads make theirs themselves."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Calls, threading.Thread]] = {}  # by process: threads do not survive a fork

    def call(self, operation: Operation, call: Callable[[], T], *, settles: bool) -> T:
        """Make one call, and return or raise what it does.

        What a signal handler raises meanwhile stops the operation and comes out; with `settles` once what is in flight
        is answered, which a second exception does not wait for.

        Raises:
            RuntimeError: the thread cannot be started; nothing was called.

        """
        if threading.current_thread() is not threading.main_thread():
            return call()
        calls = self._started()
        answers: Answers[T] = SimpleQueue()
        try:
            calls.put(lambda: _answer(operation, call, answers))
            result, error = _taken(answers)
        except BaseException:
            operation.stop()
            self._leave(calls, settles=settles)
            raise
        try:
            _raise(error)
        finally:
            del error  # whose traceback leads to this frame
        return cast("T", result)

    def close(self) -> None:
        """End the thread, and wait for it."""
        made = self._made.pop(os.getpid(), None)
        if made is not None:
            calls, thread = made
            calls.put(None)
            thread.join()

    @property
    def running(self) -> bool:
        """Whether there is a thread."""
        return os.getpid() in self._made

    def _leave(self, calls: Calls, *, settles: bool) -> None:
        """Wait for the call that was interrupted, which may not even have been queued, or leave its thread to it."""
        settled = False
        try:
            if settles:
                after: SimpleQueue[None] = SimpleQueue()
                calls.put(lambda: after.put(None))
                _taken(after)
                settled = True
        finally:
            if not settled:
                self._made.pop(os.getpid(), None)
                calls.put(None)

    def _started(self) -> Calls:
        made = self._made.get(os.getpid())
        if made is not None:
            return made[0]
        calls: Calls = SimpleQueue()
        told: SimpleQueue[BaseException | None] = SimpleQueue()
        thread = threading.Thread(target=_work, args=[calls], name="checkpoint-calls", daemon=True)
        try:
            # Not `thread.start()` here: it waits for an Event, which an exception would leave locked.
            _thread.start_new_thread(_start, (thread, told))
            _raise(_taken(told))
            self._made[os.getpid()] = calls, thread
            finalize(self, calls.put, None).atexit = False
        except BaseException:
            self._made.pop(os.getpid(), None)
            calls.put(None)
            raise
        return calls


def _taken(queue: SimpleQueue[T]) -> T:
    """Take what comes next, and let signal handlers run meanwhile.

    A signal that another thread got, or that came just before the wait, does not end the wait: CPython asks for signals
    between bytecodes, of which there is one a second here.
    """
    while True:
        with suppress(Empty):
            return queue.get(timeout=1.0)


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _start(thread: threading.Thread, told: SimpleQueue[BaseException | None]) -> None:
    try:
        thread.start()
    except BaseException as error:  # noqa: BLE001 - raised by whoever wanted the thread
        told.put(error)
    else:
        told.put(None)


def _work(calls: Calls) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # it holds the store, and must not until the next one comes


def _answer(operation: Operation, call: Callable[[], T], answers: Answers[T]) -> None:
    if operation.stopped:  # before it began
        return
    try:
        answers.put((call(), None))
    except BaseException as error:  # noqa: BLE001 - raised in the main thread
        answers.put((None, error))
