"""The one way in which stores try again: a deadline, pauses that grow, and a word to the log after three seconds.

    operation = Operation("PostgreSQL (db.example)")           # one load or commit
    deadline = Deadline(60.0)                                  # of one load, or of one key's write
    return operation.call(attempt, deadline)                   # attempt() raises `Again` to be called once more

**Tried again** is what the store raised as `Again`: the store judges what may pass. Everything else that an attempt
raises is final and comes out at once, the built-in `TimeoutError` of a signal handler included.
**Between attempts** lies a random pause from 0 to a limit that doubles from `Policy.first` to `Policy.longest` ("full
jitter"), or the longer pause that the service asked for (`Again.pause`).
**It ends** when the next attempt would begin past the deadline, after `Policy.attempts`, or when the operation was
stopped. `call` raises the error that counts attempts and seconds; `retry` the last `Again`, for a store that then has
more to find out, and makes the same error with `gave_up`.
**Told** is one WARNING an operation, once it has waited for `SILENCE` or is about to. A store that waits inside an
attempt (for a lock, for an answer) calls `operation.tell(deadline, why)` itself, or waits in a `Telling` block.

Nothing here is imported but when it is needed: a store whose first attempt succeeds pays for no retry policy.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from checkpoint.errors import StoreUnavailable, is_of_handler
from checkpoint.stores.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

logger: logging.Logger = logging.getLogger("checkpoint")

T = TypeVar("T")

DEADLINE = 60.0
"""Seconds for a load, or for the write of a key, where nothing else is asked for."""

SILENCE = 3.0
"""Seconds without success after which an operation says that it goes on trying."""


def monotonic(_read: Callable[[], float] = time.monotonic) -> float:
    """Return the seconds of the real monotonic clock: with a test's frozen clock no pause would ever end."""
    return _read()


class Again(Exception):
    """An attempt failed in a way that may pass; stores derive from it what else they need to know.

    `pause`: the seconds that the service asked for. `longest`: of the random pause, where it is to be shorter than the
    policy's.
    """

    def __init__(self, text: str, *, pause: float = 0.0, longest: float = math.inf) -> None:
        super().__init__(text)
        self.pause = pause
        self.longest = longest


@dataclass(frozen=True, slots=True)
class Policy:
    """How long the pauses are, and how many attempts there may be."""

    first: float = 0.25
    """Seconds: the limit of the first pause; the limits of later ones double."""
    longest: float = 8.0
    """Seconds: the limit that no pause passes, but one that the service asks for."""
    attempts: int | None = None
    """None: as many as the deadline has room for."""


class Deadline:
    """The time for one load or one key's write, and what was spent of it."""

    def __init__(self, seconds: float) -> None:
        self.began: float = monotonic()
        self.seconds = seconds
        self.at: float = self.began + seconds
        """When it ends, in `monotonic()` seconds; move it to leave out a wait that does not count."""
        self.attempts = 1

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.at - monotonic()

    def used(self) -> float:
        """Return the seconds that are spent; waits that do not count are left out."""
        return self.seconds - self.left()

    def same(self) -> Deadline:
        """Return another one that ends at the same time, for one of several things that go on at once."""
        other = Deadline(self.seconds)
        other.began, other.at = self.began, self.at
        return other

    def spent(self) -> str:
        """Return what it took, in words."""
        return f"{self.attempts} attempt{'s' if self.attempts > 1 else ''} in {monotonic() - self.began:.1f} s"


class Operation:
    """One load or commit: its count of requests, whether it was told that it takes long, and whether to stop.

    `where` names the store in what it logs and in its errors. Safe to use from the threads of one commit.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.requests: int = 0
        self.retries: int = 0
        self.stopped: bool = False
        """Whether nothing more is begun, and no pause goes on."""
        self._wake: SimpleQueue[None] = SimpleQueue()  # an Event may be left locked by a signal handler's exception
        self._told = False
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Begin nothing more, and end every pause; from any thread, and more than once."""
        self.stopped = True
        self._wake.put(None)

    def count_request(self) -> None:
        """Count one request sent."""
        with self._lock:
            self.requests += 1

    def call(self, attempt: Callable[[], T], deadline: Deadline, policy: Policy = Policy()) -> T:
        """Call until it succeeds, or the deadline, the attempts or the operation end.

        Raises:
            StoreUnavailable: it did not succeed; the text counts attempts and seconds, the cause is the last one's.

        """
        try:
            return self.retry(attempt, deadline, policy)
        except Again as last:
            error, cause = self.gave_up(deadline, last), last.__cause__
        raise error from cause  # out here, where it keeps no context

    def retry(self, attempt: Callable[[], T], deadline: Deadline, policy: Policy = Policy()) -> T:
        """Call until it succeeds, or the deadline, the attempts or the operation end.

        Raises:
            Again: the last attempt's, when none is left.

        """
        try:
            return attempt()  # most succeed, and need no policy, which costs a tenth of a request
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
        """Wait, but not longer than the operation goes on."""
        with suppress(Empty):
            self._wake.put(self._wake.get(timeout=max(0.0, seconds)))  # put back, for whoever else waits

    def tell(self, deadline: Deadline, why: object, pause: float = 0.0) -> None:
        """Warn once that the operation goes on trying, where it has waited for `SILENCE`, or will after a pause."""
        if self.quiet(deadline) > pause:
            return
        with self._lock:
            told, self._told = self._told, True
        if not told:
            logger.warning(
                "%s: no good answer yet, trying for up to %.0f s: %s", self.where, deadline.seconds, why,
                extra={"checkpoint_event": "no_answer", "checkpoint_seconds": deadline.seconds},
            )  # fmt: skip

    def quiet(self, deadline: Deadline) -> float:
        """Return the seconds for which a wait may go on untold; infinite where it was told already."""
        return math.inf if self._told else SILENCE - deadline.used()

    def gave_up(self, deadline: Deadline, last: Again) -> StoreUnavailable:
        """Return the error that says how many attempts it took and how long, and how the last one ended."""
        return StoreUnavailable(f"{self.where}: gave up after {deadline.spent()}: {last}")


class Telling:
    """Around a call that cannot be woken up: a thread beside it tells that the operation takes its time.

    Without a thread to be had it is not told.
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
        while 0 < (quiet := self._operation.quiet(self._deadline)) < math.inf:  # told by another call, it is no more
            with suppress(Empty):
                self._over.get(timeout=quiet)
                return
        self._operation.tell(self._deadline, self._why)


def _load_tenacity() -> None:
    """Import tenacity in a thread of its own, where no signal handler runs.

    One that raises in the middle of an import leaves half a package behind, which no later import makes whole.
    """
    if "tenacity" not in sys.modules:
        loading = threading.Thread(target=import_module, args=("tenacity",))
        start_thread(loading)
        loading.join()
