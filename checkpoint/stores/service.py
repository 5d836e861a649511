"""How a request gets to a service and back: its pace, its deadline, its retries, and what its answer means.

Knows statuses and headers, and nothing of namespaces and entries.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from checkpoint.errors import CheckpointError, StoreError, StoreUnavailable, Unauthorized
from checkpoint.stores.http import Clients, Response, Secret, TransportError
from checkpoint.stores.rate import Pace, Slot, retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger("checkpoint")

K = TypeVar("K")
T = TypeVar("T")

REFUSED = {408, 425, 429}
"""Answers that say the request was not done: it is sent again as it is."""

TRANSIENT = {500, 502, 503, 504}
"""Answers that leave open whether a write was done, and may pass."""

UNANSWERED = {502, 504}
"""Of these, the ones given by a gateway behind which the service may still be at work."""

ATTEMPTS = 8
"""Attempts of one request before it counts as failed; the deadline may end it earlier."""

PAUSE = 1.0
"""Seconds that all requests pause after a 429 that does not say how long."""


class Again(Exception):
    """An attempt that may be repeated; a step of the retry policy, never seen outside the stores.

    `reached`: the service may have done it. `unanswered`: and it may do it yet. `pause`: the seconds it asked for.
    """

    def __init__(self, text: str, *, reached: bool = False, unanswered: bool = False, pause: float = 0.0) -> None:
        super().__init__(text)
        self.reached = reached
        self.unanswered = unanswered
        self.pause = pause


class Deadline:
    """The time that is left for one thing, and what was spent of it."""

    def __init__(self, seconds: float) -> None:
        self.began = time.monotonic()
        self.at = self.began + seconds
        self.attempts = 1

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.at - time.monotonic()

    def spent(self) -> str:
        """Return what it took, in words."""
        return f"{self.attempts} attempt{'s' if self.attempts > 1 else ''} in {time.monotonic() - self.began:.1f} s"


class Run:
    """What the requests of one load or commit share: their count, and whether to stop."""

    def __init__(self) -> None:
        self.requests = 0
        self.retries = 0
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def count_request(self) -> None:
        """Count one request sent."""
        with self._lock:
            self.requests += 1

    def count_retry(self) -> None:
        """Count one that is sent again."""
        with self._lock:
            self.retries += 1

    def sleep(self, seconds: float) -> None:
        """Wait, but not longer than the run goes on."""
        self.stop.wait(seconds)


class Service:
    """One service under one token: requests at its pace, in parallel, tried again while that makes sense."""

    def __init__(
        self,
        base_url: str,
        token: Secret,
        *,
        timeout: float,
        concurrency: int,
        rate: tuple[int, float],
        patience: float,
    ) -> None:
        self.base_url = base_url
        self._token = token
        self._clients = Clients(base_url, token, timeout)
        self._concurrency = concurrency
        self._patience = patience
        self._throttle = _throttle(base_url, token, rate)
        self._pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork

    def request(
        self, run: Run, deadline: Deadline, method: str, path: str, document: dict[str, str] | None = None
    ) -> Response:
        """Send one request when the pace allows, and return an answer that is final: done, missing or refused.

        Raises:
            Again: it may be tried again.
            Unauthorized, StoreError: it may not.

        """
        body = orjson.dumps(document) if document is not None else None
        slot = self._turn(run, deadline)
        run.count_request()
        try:
            response = self._clients.send(method, self.base_url + path, body, deadline.at)
        except TransportError as error:
            if not error.again:
                raise StoreError(f"{self.base_url}: {error}") from error
            raise Again(str(error), reached=error.reached, unanswered=error.reached) from error
        finally:
            slot.at = time.monotonic()
        return self._judge(response)

    def retry(self, run: Run, deadline: Deadline, attempt: Callable[[], T]) -> T:
        """Call until it succeeds or the attempts, the deadline or the run end: exponential back-off with full jitter.

        Raises:
            Again: the last attempt's, when none is left.

        """

        def ended(state: RetryCallState) -> bool:
            failure = state.outcome.exception() if state.outcome is not None else None
            pause = max(state.upcoming_sleep, failure.pause if isinstance(failure, Again) else 0.0)
            return run.stop.is_set() or state.attempt_number >= ATTEMPTS or pause >= deadline.left()

        def count(state: RetryCallState) -> None:
            deadline.attempts = state.attempt_number + 1
            run.count_retry()

        policy = Retrying(
            retry=retry_if_exception_type(Again),
            wait=wait_random_exponential(multiplier=0.25, max=8.0),
            stop=ended,
            sleep=run.sleep,
            before_sleep=count,
            reraise=True,
        )
        return policy(attempt)

    def each(self, run: Run, call: Callable[[K], T], items: Iterable[K]) -> dict[K, T | CheckpointError]:
        """Call for every item, at most `concurrency` at once; map each to its result or error.

        A single item needs no thread. Items not begun when the run is stopped, as it is by `Unauthorized`, are left
        out.
        """

        def one(item: K) -> None:
            if run.stop.is_set():
                return
            try:
                outcomes[item] = call(item)
            except CheckpointError as error:
                outcomes[item] = error
                if isinstance(error, Unauthorized):
                    run.stop.set()

        outcomes: dict[K, T | CheckpointError] = {}
        items = list(items)
        if len(items) == 1:
            one(items[0])
        elif items:
            pool = self._pools.get(os.getpid())
            if pool is None:
                pool = self._pools[os.getpid()] = ThreadPoolExecutor(self._concurrency, "checkpoint")
            futures = [pool.submit(one, item) for item in items]
            try:
                wait(futures)
            except BaseException:
                run.stop.set()  # what is in flight is settled, nothing more is begun
                wait(futures)
                raise
            for future in futures:
                future.result()
        return outcomes

    def gave_up(self, deadline: Deadline, last: Again) -> StoreUnavailable:
        """Return the error that says how many attempts it took and how long, and how the last one ended."""
        return StoreUnavailable(f"{self.base_url}: gave up after {deadline.spent()}: {last}")

    def announce(self, requests: int) -> None:
        """Warn where the rate alone makes so many requests take longer than one of its windows."""
        seconds = self._throttle.forecast(requests)
        if seconds > self._throttle.period:
            logger.warning("%d requests take %.0f s at this token's rate: commit fewer keys", requests, seconds)

    def said(self, response: Response) -> str:
        """Return what the service said, in a few words and without the token, whatever it echoes."""
        try:
            document = orjson.loads(response.body)
            said = f"{document['error']}: {document['message']}"
        except (orjson.JSONDecodeError, KeyError, TypeError):
            kind = response.headers.get("content-type", "no content type")
            start = response.body[:80].decode("utf-8", "replace")
            said = f"({kind}) {start!r}" if start else f"({kind}, empty)"
        return f"{response.status} {said}".replace(self._token.reveal(), "***")[:400]

    def document(self, response: Response) -> dict[str, Any]:
        """Return the JSON object of a successful answer.

        Raises:
            StoreError: the answer is something else; the text says what came.

        """
        said = self.said(response)
        if not 200 <= response.status < 300:  # noqa: PLR2004
            raise StoreError(f"{self.base_url} answered {said}")
        document: object = None
        if "json" in response.headers.get("content-type", ""):
            with suppress(orjson.JSONDecodeError):
                document = orjson.loads(response.body)
        if not isinstance(document, dict):
            raise StoreError(f"{self.base_url} answered {said}, not the JSON object that was expected")
        return cast("dict[str, Any]", document)

    def close(self) -> None:
        """End this process's threads and connections."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.shutdown()
        self._clients.close()

    def _turn(self, run: Run, deadline: Deadline) -> Slot:
        """Wait for the window, which the deadline does not count, and for the gate, which it does."""
        while True:
            slot, window, gate = self._throttle.take()
            if slot is not None:
                return slot
            if gate >= deadline.left():
                raise Again(f"the service asked to wait {gate:.0f} s, past the deadline", pause=gate)
            run.sleep(max(window, gate))
            if run.stop.is_set():
                raise Again("stopped while waiting for its turn")
            deadline.at += window

    def _judge(self, response: Response) -> Response:
        status = response.status
        if status in REFUSED or status in TRANSIENT:
            pause = retry_after(response.headers.get("retry-after"), response.headers.get("date"))
            if pause is None and status == 429:  # noqa: PLR2004
                pause = PAUSE
            if pause is not None:
                self._throttle.shut(min(pause, self._patience))
            reached, unanswered = status in TRANSIENT, status in UNANSWERED
            raise Again(self.said(response), reached=reached, unanswered=unanswered, pause=pause or 0.0)
        if status in {401, 403}:
            raise Unauthorized(f"{self.base_url} refused the token: {self.said(response)}")
        if 300 <= status < 400:  # noqa: PLR2004
            raise StoreError(f"{self.base_url} redirects ({status}), which is not followed: correct the base URL")
        return response


class _Throttle:
    """The one pace of a token in this process."""

    def __init__(self, rate: tuple[int, float]) -> None:
        self.period = rate[1]
        self._pace = Pace(*rate)
        self._lock = threading.Lock()

    def take(self) -> tuple[Slot | None, float, float]:
        """Return a slot, or None and the seconds to wait for the window and for the gate."""
        with self._lock:
            now = time.monotonic()
            window, gate = self._pace.window(now), self._pace.gate(now)
            return (self._pace.take(now) if window == gate == 0 else None), window, gate

    def shut(self, seconds: float) -> None:
        with self._lock:
            self._pace.shut(time.monotonic() + seconds)

    def forecast(self, requests: int) -> float:
        with self._lock:
            return self._pace.forecast(time.monotonic(), requests)


_throttles: dict[tuple[str, bytes, tuple[int, float]], _Throttle] = {}


def _throttle(base_url: str, token: Secret, rate: tuple[int, float]) -> _Throttle:
    key = (base_url, sha256(token.reveal().encode()).digest(), rate)
    return _throttles.setdefault(key, _Throttle(rate))
