"""The flushes that a run's worker thread makes in the background."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from checkpoint.stores.threads import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.run.flush import Commit

logger: logging.Logger = logging.getLogger("checkpoint")

LONGEST_REST = 10.0
"""The longest rest before a flush, in seconds."""


def rest_after(commit: Commit, rest: float) -> float:
    """Return the seconds to rest before the next flush.

    A commit that had to be retried shows that other runs write the namespace too. The run then rests to let the others
    commit, and sends what is claimed meanwhile in one larger commit. Without the rest, eight runs on one object of a
    bucket would compete until one of them ran out of attempts.
    """
    if commit.retries:
        return min(LONGEST_REST, rest + commit.seconds)
    return rest * 0.9 if commit else rest


class Background:
    """Flushes on a run's worker thread, and a failure that has not been raised yet."""

    def __init__(self, state_key: str, flush: Callable[[], Commit]) -> None:
        self._state_key = state_key
        self._flush = flush
        self._lock = threading.Lock()
        self._queued = False  # a flush that has not begun
        self._failure: BaseException | None = None
        self.forked()

    def forked(self) -> None:
        """Reset in a forked child: its own thread, an empty queue."""
        self.worker: Worker = Worker(f"checkpoint {self._state_key}")
        self._lock = threading.Lock()
        self._queued, self._failure = False, None
        self._rest = 0.0
        self._hurry: SimpleQueue[None] = SimpleQueue()  # non-empty: queued flushes do not rest

    def flush_soon(self) -> None:
        """Queue a flush, unless one is queued already.

        Raises:
            RuntimeError: the thread cannot be started; nothing is queued.

        """
        if self._queued:
            return
        try:
            with suppress(Empty):
                self._hurry.get_nowait()  # it was meant for earlier flushes
            self._queued = True  # set before the thread can run it
            self.worker.submit(self._run)
        except BaseException:
            self._queued = False  # after an interruption it may be queued twice; a second flush sends nothing
            raise

    def submit(self, call: Callable[[], object]) -> None:
        """Queue a call that a caller waits for; it must not raise."""
        self._end_rest()
        self.worker.submit(call)

    def wait(self) -> None:
        """Wait until all calls queued so far have run."""
        self._end_rest()
        self.worker.drain()

    def stop(self) -> None:
        """End the thread."""
        self._end_rest()
        self.worker.stop()

    def leave(self, last: Callable[[], object]) -> None:
        """Let the thread end after all queued calls and a last one, which must not raise; do not wait."""
        self.worker.submit(last)
        self.worker.abandon()

    def _end_rest(self) -> None:
        """End the rests of the queued flushes, including those that have not begun."""
        if self._hurry.empty():
            self._hurry.put(None)

    def raise_failure(self) -> None:
        """Raise the failure of a background flush, once."""
        if (failure := self._take_failure()) is not None:
            raise failure

    def tell_failure(self, error: BaseException) -> None:
        """Add a failure that was not yet raised to the current error, as a note."""
        failure = self._take_failure()
        if failure is not None and failure is not error:
            add_note(error, f"checkpoint: {self._state_key!r} was not committed either: {failure}")

    def _take_failure(self) -> BaseException | None:
        with self._lock:
            failure, self._failure = self._failure, None
        return failure

    def _run(self) -> None:
        with suppress(Empty):
            self._hurry.put(self._hurry.get(timeout=self._rest))
        with self._lock:
            self._queued = False
        try:
            self._rest = rest_after(self._flush(), self._rest)
        except BaseException as error:  # noqa: BLE001 - raised in the job's thread, see raise_failure
            with self._lock:
                if self._failure is None:
                    self._failure = error
                else:
                    add_note(self._failure, f"checkpoint: {self._state_key!r} failed again: {error}")


def add_note(error: BaseException, note: str) -> None:
    """Add a second failure to the current error as a note (PEP 678), and log it if notes are not shown."""
    logger.error(note, extra={"checkpoint_event": "failed_again"})
    error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined,unused-ignore]  # Python 3.10 has no add_note
