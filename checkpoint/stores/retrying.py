"""How all stores retry: a deadline, growing pauses, and a warning in the log after three seconds.

    operation = Operation("PostgreSQL (db.example)")           # one load or commit
    deadline = Deadline(60.0)                                  # of one load, or of one key's write
    return operation.call(attempt, deadline)                   # attempt() raises `Again` to be called once more

**Retried**: an attempt that raises `Again`; the store decides which failures are temporary. Any other exception is
final and is raised at once, including the built-in `TimeoutError` of a signal handler.
**Between attempts**: a random pause from 0 to a limit that doubles from `Policy.first` to `Policy.longest` ("full
jitter"), or the longer pause that the service asked for (`Again.pause`).
**The end**: when the next attempt would begin after the deadline, after `Policy.attempts`, or when the operation was
stopped. `call` raises an error with the number of attempts and seconds. `retry` raises the last `Again`, for a store
that has more to check first and then creates the same error with `gave_up`.
**Logged**: one WARNING per operation, once it has waited for `SILENCE` or is about to. A store that waits inside an
attempt (for a lock or a response) calls `operation.tell(deadline, why)` itself, or waits in a `Telling` block.

The retry library is imported only when needed: a store whose first attempt succeeds does not pay for it.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from checkpoint.errors import StoreUnavailable, is_of_handler
from checkpoint.stores.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

logger: logging.Logger = logging.getLogger("checkpoint")

T = TypeVar("T")

DEADLINE = 60.0
"""Default seconds for a load, or for the write of a key."""

SILENCE = 3.0
"""Seconds without success after which an operation logs that it is still trying."""


def monotonic(_read: Callable[[], float] = time.monotonic) -> float:
    """Return the time of the real monotonic clock in seconds: under a test's frozen clock no pause would end."""
    return _read()


class Again(Exception):
    """A temporary failure of an attempt; stores derive their own classes from it.

    `pause`: the seconds that the service asked for. `longest`: a limit of the random pause below that of the policy.
    """

    def __init__(self, text: str, *, pause: float = 0.0, longest: float = math.inf) -> None:
        super().__init__(text)
        self.pause = pause
        self.longest = longest


class Policy(NamedTuple):
    """The length of pauses, and the number of attempts."""

    first: float = 0.25
    """Limit of the first pause in seconds; it doubles for each later pause."""
    longest: float = 8.0
    """Limit of every pause in seconds, except one that the service asks for."""
    attempts: int | None = None
    """The most attempts; None: as many as fit into the deadline."""


USUAL = Policy()


class Deadline:
    """The time for one load or one key's write, and how much of it is used."""

    def __init__(self, seconds: float) -> None:
        self.began: float = monotonic()
        self.seconds = seconds
        self.at: float = self.began + seconds
        """When it ends, in `monotonic()` seconds; move it later to exclude a wait."""
        self.attempts = 1

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.at - monotonic()

    def used(self) -> float:
        """Return the seconds used, without excluded waits."""
        return self.seconds - self.left()

    def same(self) -> Deadline:
        """Return another deadline with the same end, for one of several parallel tasks."""
        other = Deadline(self.seconds)
        other.began, other.at = self.began, self.at
        return other

    def spent(self) -> str:
        """Return the time used, in words."""
        return f"{self.attempts} attempt{'s' if self.attempts > 1 else ''} in {monotonic() - self.began:.1f} s"


class Operation:
    """One load or commit: its number of requests, whether a long wait was logged, and whether to stop.

    `where` names the store in logs and errors. Safe to use from the threads of one commit.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.requests: int = 0
        self.retries: int = 0
        self.stopped: bool = False
        """Whether it was stopped: no attempt begins, and pauses end."""
        self._wake: SimpleQueue[None] = SimpleQueue()  # an Event may be left locked by a signal handler's exception
        self._told = False
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Begin no more attempts, and end every pause; callable from any thread, repeatedly."""
        self.stopped = True
        self._wake.put(None)

    def count_request(self) -> None:
        """Count one request sent."""
        with self._lock:
            self.requests += 1

    def call(self, attempt: Callable[[], T], deadline: Deadline, policy: Policy = USUAL) -> T:
        """Call until it succeeds, or the deadline, the attempts or the operation end.

        Raises:
            StoreUnavailable: it did not succeed; the text has the number of attempts and seconds, and the cause is that
                of the last attempt.

        """
        try:
            return self.retry(attempt, deadline, policy)
        except Again as last:
            error, cause = self.gave_up(deadline, last), last.__cause__
        raise error from cause  # raised here, without a context

    def retry(self, attempt: Callable[[], T], deadline: Deadline, policy: Policy = USUAL) -> T:
        """Call until it succeeds, or the deadline, the attempts or the operation end.

        Raises:
            Again: that of the last attempt.

        """
        try:
            return attempt()  # most succeed without the policy, which costs a tenth of a request
        except Again as failure:
            last, handed_over = failure, False
        _load_tenacity()
        from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

        def next_attempt() -> T:
            nonlocal last, handed_over
            if not handed_over or deadline.left() <= 0:  # the policy sees the first one; a pause may take too long
                handed_over = True
                raise last
            deadline.attempts += 1
            try:
                return attempt()
            except Again as failure:
                last = failure
                raise

        def pause(state: RetryCallState) -> float:
            longest = min(policy.longest, last.longest)
            return max(wait_random_exponential(multiplier=policy.first, max=longest)(state), last.pause)

        def ended(state: RetryCallState) -> bool:
            spent = policy.attempts is not None and state.attempt_number >= policy.attempts
            return spent or self.stopped or state.upcoming_sleep >= deadline.left()

        def go_on(state: RetryCallState) -> None:
            with self._lock:
                self.retries += 1
            self.tell(deadline, state.outcome and state.outcome.exception(), state.upcoming_sleep)

        retrying = Retrying(
            retry=retry_if_exception_type(Again),
            wait=pause,
            stop=ended,
            sleep=self.sleep,
            before_sleep=go_on,
            reraise=True,
        )
        return retrying(next_attempt)

    def sleep(self, seconds: float) -> None:
        """Wait, at most until the operation is stopped."""
        with suppress(Empty):
            self._wake.put(self._wake.get(timeout=max(0.0, seconds)))  # put back for other waiting threads

    def tell(self, deadline: Deadline, why: object, pause: float = 0.0) -> None:
        """Warn once that the operation is still trying, if it has waited for `SILENCE` or will have after a pause."""
        if self.quiet(deadline) > pause:
            return
        with self._lock:
            told, self._told = self._told, True
        if not told:
            logger.warning(
                "%s: no usable answer yet, trying for up to %.0f s: %s", self.where, deadline.seconds, why,
                extra={"checkpoint_event": "no_answer", "checkpoint_seconds": deadline.seconds},
            )  # fmt: skip

    def quiet(self, deadline: Deadline) -> float:
        """Return the seconds until a wait is logged; infinite if it was logged already."""
        return math.inf if self._told else SILENCE - deadline.used()

    def gave_up(self, deadline: Deadline, last: Again) -> StoreUnavailable:
        """Return the error with the number of attempts, the time, and how the last attempt ended."""
        return StoreUnavailable(f"{self.where}: gave up after {deadline.spent()}: {last}")


class Telling:
    """Wraps a blocking call: a second thread logs that the operation takes long.

    If no thread can be started, nothing is logged.
    """

    def __init__(self, operation: Operation, deadline: Deadline, why: str) -> None:
        self._operation = operation
        self._deadline = deadline
        self._why = why
        self._over: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if self._operation.quiet(self._deadline) < self._deadline.left():
            thread = threading.Thread(target=self._wait, name="checkpoint-telling", daemon=True)
            try:
                start_thread(thread)
                self._thread = thread
            except RuntimeError as error:
                if is_of_handler(error):
                    raise

    def __exit__(self, *_: object) -> None:
        self._over.put(None)
        if self._thread is not None and threading.current_thread() is not threading.main_thread():
            self._thread.join()  # in the main thread a signal handler could raise in it

    def _wait(self) -> None:
        while 0 < (quiet := self._operation.quiet(self._deadline)) < math.inf:  # another call may have logged it
            with suppress(Empty):
                self._over.get(timeout=quiet)
                return
        self._operation.tell(self._deadline, self._why)


def _load_tenacity() -> None:
    """Import tenacity in a thread of its own, where no signal handler runs.

    A handler that raises during an import leaves a half-imported package, which no later import repairs.
    """
    if "tenacity" not in sys.modules:
        loading = threading.Thread(target=import_module, args=("tenacity",))
        start_thread(loading)
        loading.join()
