"""Runs the main thread's calls on a second thread, where no signal handler runs."""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from checkpoint.stores.threads import Worker, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.stores.retrying import Operation

T = TypeVar("T")

Answers: TypeAlias = "SimpleQueue[tuple[T | None, BaseException | None]]"


class Aside:
    """A thread for the main thread's calls, started by the first one; other threads run their calls themselves.

    `afterwards` is called behind a call that was abandoned.
    """

    def __init__(self, afterwards: Callable[[], None] = lambda: None) -> None:
        self._afterwards = afterwards
        self._workers: dict[int, Worker] = {}  # per process: threads do not survive a fork

    def call(self, operation: Operation, call: Callable[[], T], *, settles: bool) -> T:
        """Run one call, and return its result or raise its error.

        An exception of a signal handler stops the operation and is raised; with `settles` only after the requests in
        flight have ended, unless a second exception comes.

        Raises:
            RuntimeError: the thread cannot be started; nothing was called.

        """
        if threading.current_thread() is not threading.main_thread():
            return call()
        worker = self._workers.get(os.getpid())
        if worker is None:
            worker = self._workers[os.getpid()] = Worker("checkpoint-calls")
        answers: Answers[T] = SimpleQueue()
        try:
            worker.submit(lambda: _answer(operation, call, answers))
            result, error = take(answers)
        except BaseException:
            operation.stop()
            self._leave(worker, settles=settles)
            raise
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback leads to this frame
        return cast("T", result)

    def close(self) -> None:
        """End the thread, and wait for it."""
        worker = self._workers.pop(os.getpid(), None)
        if worker is not None:
            worker.stop()

    @property
    def running(self) -> bool:
        """Whether there is a thread."""
        return os.getpid() in self._workers

    def _leave(self, worker: Worker, *, settles: bool) -> None:
        """Wait for the interrupted call, which may not be queued yet, or abandon its thread."""
        settled = False
        try:
            if settles:
                worker.drain()
                settled = True
        finally:
            if not settled:
                self._workers.pop(os.getpid(), None)
                worker.abandon(self._afterwards)


def _answer(operation: Operation, call: Callable[[], T], answers: Answers[T]) -> None:
    if operation.stopped:  # before it began
        return
    try:
        answers.put((call(), None))
    except BaseException as error:  # noqa: BLE001 - raised in the main thread
        answers.put((None, error))
