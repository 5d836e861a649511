"""Sends requests to a service: rate, deadline, retries, and the meaning of responses."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit
from weakref import WeakSet, WeakValueDictionary

import orjson

from checkpoint.errors import CheckpointError, StoreError, Unauthorized, printable
from checkpoint.stores import complaint_of
from checkpoint.stores.aside import Aside
from checkpoint.stores.http import MAX_BODY, Clients, Response, TransportError, check_host
from checkpoint.stores.rate import Rate, Slot, retry_after
from checkpoint.stores.retrying import Again, Deadline, Operation, Policy, monotonic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from checkpoint.stores.tokens import Secret, Token

logger: logging.Logger = logging.getLogger("checkpoint")

K = TypeVar("K")
T = TypeVar("T")

REFUSED = {408, 425, 429}
"""Statuses that say the request was not executed: it is sent again unchanged."""

TRANSIENT = {500, 502, 503, 504}
"""Temporary statuses that leave the outcome of a write unknown."""

UNANSWERED = {502, 504}
"""Of these, the statuses of a gateway: the service behind it may still be working."""

POLICY = Policy()
"""The retry policy of requests."""

_SAID = 64 * 1024  # bytes of a response that are searched for its message

PAUSE = 1.0
"""Seconds that all requests pause after a 429 without a `Retry-After`."""


class AnswerLost(Again):
    """An attempt that the service may have executed; `late`: or may still execute."""

    def __init__(self, text: str, *, late: bool, pause: float = 0.0) -> None:
        super().__init__(text, pause=pause)
        self.late = late


class Unclear(StoreError):
    """An unreadable response that a retry would not change; the request may have been executed.

    A write reads its outcome back; any other call raises it as a plain StoreError.
    """

    def plain(self) -> StoreError:
        """Return the error as callers get it."""
        return StoreError(*self.args)


class Requests(Operation):
    """One load or commit at a service; its time starts now."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.began: float = monotonic()

    waiting = False
    """Whether a wait for the rate was logged."""
    refused = False
    """Whether the token was refused."""
    renewed = False
    """Whether a request was sent again with another token."""


class Service:
    """One service under one token: sends requests in parallel, at its rate, with retries."""

    def __init__(
        self,
        base_url: str,
        token: Token,
        *,
        timeout: float,
        concurrency: int,
        rate: tuple[int, float],
        patience: float,
        max_body: int = MAX_BODY,
    ) -> None:
        self.base_url = base_url
        self._token = token
        self._clients = Clients(base_url, timeout, concurrency, max_body)
        self._concurrency = concurrency
        self._patience = patience
        self._rate = rate
        self._throttles: dict[Secret, _Throttle] = {}  # of the latest token; the process shares it
        self._aside = Aside(self._abandoned)
        self._closed = False
        self._pools: dict[int, ThreadPoolExecutor] = {}  # per process: threads do not survive a fork
        _services.add(self)

    def request(
        self, run: Requests, deadline: Deadline, method: str, path: str, document: dict[str, str] | None = None
    ) -> Response:
        """Send one request when the rate allows, and return a final response: done, missing or refused.

        Raises:
            Again: it may be tried again.
            Unauthorized, StoreError: it may not.

        """
        body = orjson.dumps(document) if document is not None else None
        return self.judged(self.answer(run, deadline, method, path, body))

    def answer(self, run: Requests, deadline: Deadline, method: str, path: str, body: bytes | None) -> Response:
        """Send one request when the rate allows, and return any response; a refused token is renewed.

        Raises:
            Again: there was no complete response.
            StoreError: there was none, and a retry would not help.

        """
        token = self._token.current()
        response = self._send(run, deadline, token, method, path, body)
        if response.status == 401 and (renewed := self._token.renewed(token)):
            run.renewed = True
            response = self._send(run, deadline, renewed, method, path, body)
        return response

    def _send(
        self, run: Requests, deadline: Deadline, token: Secret, method: str, path: str, body: bytes | None
    ) -> Response:
        throttle = self._pace(token)
        slot = self._wait_for_turn(throttle, run, deadline)
        run.count_request()
        try:
            return self._clients.send(run, deadline, token, method, self.base_url + path, body)
        except TransportError as error:
            failed, cause = self._failure(error), error.__cause__
        finally:
            slot.at = monotonic()
        raise failed from cause

    def _failure(self, error: TransportError) -> Again | StoreError:
        said = self.hide(str(error))
        if not error.again:
            return (Unclear if error.reached else StoreError)(f"{self.base_url}: {said}")
        return AnswerLost(said, late=True) if error.reached else Again(said)

    def load(self, run: Requests, call: Callable[[], T]) -> T:
        """Make a call that only reads; an exception of a signal handler is raised at once."""
        return self._called(run, call, settles=False)

    def commit(self, run: Requests, call: Callable[[], T]) -> T:
        """Make a call that writes; an exception of a signal handler is raised after the requests in flight end."""
        return self._called(run, call, settles=True)

    def _called(self, run: Requests, call: Callable[[], T], *, settles: bool) -> T:
        self._closed = False
        try:
            return self._aside.call(run, call, settles=settles)
        except CheckpointError as error:
            plain = error.plain() if isinstance(error, Unclear) else error
            failure = plain.with_traceback(None)  # its frames hold what the service said
        raise failure

    def each(self, run: Requests, call: Callable[[K], T], items: Iterable[K]) -> dict[K, T | CheckpointError]:
        """Call `call` for every item, at most `concurrency` in parallel; map each item to its result or error.

        A single item needs no thread. When the operation is stopped, as by `Unauthorized`, items that have not begun
        are left out.
        """
        outcomes: dict[K, T | CheckpointError] = {}
        waiting = deque(items)
        if len(waiting) == 1:
            _work_off(run, call, waiting, outcomes)
        elif waiting:
            pool = self._pool()
            futures: list[Future[None]] = []
            try:
                for _ in range(min(self._concurrency, len(waiting))):
                    futures.append(pool.submit(_work_off, run, call, waiting, outcomes))  # noqa: PERF401 - what was submitted is to be waited for
                wait(futures)
            except BaseException as error:
                ending = isinstance(error, RuntimeError) and "shutdown" in str(error)
                if ending:  # at shutdown no new thread can start, so this one does the work
                    _work_off(run, call, waiting, outcomes)
                else:
                    run.stop()  # finish calls in flight, begin no more
                wait(futures)
                if not ending:
                    raise
            for future in futures:
                future.result()
        return outcomes

    def warm(self, requests: int) -> None:
        """Begin to open the connections that so many parallel requests need; a single one needs no second."""
        if requests > 1:
            with suppress(RuntimeError):  # at shutdown no new thread can start: the requests open their connections
                for connect in self._clients.lacking(min(requests, self._concurrency)):
                    self._pool().submit(connect)

    def announce(self, requests: int) -> None:
        """Warn when the rate makes this number of requests take longer than one of its windows."""
        throttle = self._pace(self._token.current())
        seconds = throttle.forecast(requests)
        if seconds > throttle.period and not throttle.warned:
            throttle.warned = True
            logger.warning(
                "%d requests take %.0f s at the rate of this token: commit fewer keys at once", requests, seconds,
                extra={
                    "checkpoint_event": "rate_exceeded", "checkpoint_requests": requests, "checkpoint_seconds": seconds,
                },
            )  # fmt: skip

    def said(self, response: Response) -> str:
        """Return the service's message, shortened, printable, and with tokens hidden."""
        start = response.body[:_SAID]
        try:
            document = orjson.loads(response.body if len(response.body) <= _SAID else b"")
            said = f"{document['error']}: {document['message']}"
        except (orjson.JSONDecodeError, KeyError, TypeError):
            kind = response.headers.get("content-type", "no content type")
            shown = self.hide(start.decode("utf-8", "replace"))[:80]
            said = f"({kind}) {shown!r}" if shown else f"({kind}, empty)"
        return printable(self.hide(f"{response.status} {said}"))[:400]

    def hide(self, text: str) -> str:
        """Replace the tokens in a text that may come from the service, in every encoding; see `Token.hide`."""
        return self._token.hide(text)

    def moment(self, text: str, read: Callable[[str], datetime]) -> datetime:
        """Return the service's time, as `read` extracts it.

        Raises:
            StoreError: the response has no time.

        """
        with suppress(ValueError, OverflowError):
            return read(text)
        raise StoreError(f"{self.base_url} sent no valid time: {text!r}")

    def document(self, response: Response, read: Callable[[bytes], object] = orjson.loads) -> dict[str, Any]:
        """Return what `read` makes of the JSON object in a successful response.

        Raises:
            StoreError: the response is something else; the text says what it was.

        """
        if not 200 <= response.status < 300:
            raise StoreError(f"{self.base_url} answered {self.said(response)}")
        document: object = None
        if "json" in response.headers.get("content-type", ""):
            with suppress(orjson.JSONDecodeError):
                document = read(response.body)
        if not isinstance(document, dict):
            raise StoreError(f"{self.base_url} answered {self.said(response)} instead of a JSON object")
        return cast("dict[str, Any]", document)

    def close(self) -> None:
        """End this process's threads and connections."""
        self._closed = True
        if self._aside.running:
            self._aside.call(Requests(self.base_url), self._close, settles=True)
        else:
            self._close()
        self._aside.close()

    def _abandoned(self) -> None:
        """Close what an abandoned call opened after its store was closed."""
        if self._closed:
            self._close()

    def _close(self) -> None:
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.shutdown()
        self._clients.close()

    def forked(self) -> None:
        """Replace the locks in a forked child."""
        self._clients.forked()
        self._token.forked()

    def _pool(self) -> ThreadPoolExecutor:
        pool = self._pools.get(os.getpid())
        if pool is None:
            # If two threads each create a pool, one pool is kept; the other never starts a thread.
            pool = self._pools.setdefault(os.getpid(), ThreadPoolExecutor(self._concurrency, "checkpoint"))
        return pool

    def _pace(self, token: Secret) -> _Throttle:
        throttle = self._throttles.get(token)
        if throttle is None:
            throttle = _throttle(self.base_url, token, self._rate)
            self._throttles = {token: throttle}
        return throttle

    def _wait_for_turn(self, throttle: _Throttle, run: Requests, deadline: Deadline) -> Slot:
        """Wait for the rate window, which does not count towards the deadline, and for the pause, which does."""
        while True:
            slot, window, gate = throttle.take(run.began, self._patience)
            if slot is not None:
                return slot
            if gate >= deadline.left():
                raise Again(f"the service asked to wait {gate:.0f} s, longer than the deadline", pause=gate)
            if window > 1 and not run.waiting:
                run.waiting = True
                extra = {"checkpoint_event": "waiting_for_rate", "checkpoint_seconds": window}
                logger.info("waiting %.0f s for the rate of this token", window, extra=extra)
            if gate:
                run.tell(deadline, "the service asked to wait", gate)
            run.sleep(max(window, gate))
            if run.stopped:
                raise Again("stopped while waiting for its turn")
            deadline.at += window

    def judged(self, response: Response) -> Response:
        """Return a final response: done, missing or refused.

        Raises:
            Again: it may be tried again.
            Unauthorized, StoreError: it may not.

        """
        status = response.status
        if status in REFUSED or status in TRANSIENT:
            pause = retry_after(response.headers.get("retry-after"), response.headers.get("date"))
            if pause is None and status == 429:
                pause = PAUSE
            said = self.said(response)
            if pause is not None:
                self._pace(self._token.current()).shut(pause, self._patience)
                said += f" (it asks to wait {pause:.0f} s)"
            if status in TRANSIENT:
                raise AnswerLost(said, late=status in UNANSWERED, pause=pause or 0.0)
            raise Again(said, pause=pause or 0.0)
        if status in {401, 403}:
            origin = self._token.current().origin
            raise Unauthorized(f"{self.base_url} refused the token{origin}: {self.said(response)}")
        if 300 <= status < 400:
            raise StoreError(
                f"{self.base_url} redirects ({status}), and redirects are not followed: correct the base URL"
            )
        return response


def _work_off(run: Requests, call: Callable[[K], T], waiting: deque[K], outcomes: dict[K, T | CheckpointError]) -> None:
    """Process items one by one until none is left."""
    while not run.stopped:
        try:
            item = waiting.popleft()
        except IndexError:
            return
        try:
            outcomes[item] = call(item)
        except CheckpointError as error:
            outcomes[item] = error.with_traceback(None)  # its frames hold what the service said
            if isinstance(error, Unauthorized):
                run.refused = True
                run.stop()


class _Throttle:
    """The rate limit of a token, shared in this process."""

    def __init__(self, rate: tuple[int, float]) -> None:
        self.warned = False
        """Whether a warning about a commit that takes longer than a window was logged."""
        self._long_pause = (-math.inf, -math.inf)
        """When the service asked for a pause that is too long to wait for, and when that pause ends."""
        self._pace = Rate(*rate)
        self._lock = threading.Lock()

    @property
    def period(self) -> float:
        return self._pace.period

    def take(self, began: float, patience: float) -> tuple[Slot | None, float, float]:
        """Return a slot, or None and the seconds to wait for the window and for the gate.

        A pause longer than the caller's patience ends the calls that had begun before the service asked for it. Later
        calls send a request anyway: such a pause may be a mistake.
        """
        with self._lock:
            now = monotonic()
            window, gate = self._pace.window(now), self._pace.gate(now)
            asked, until = self._long_pause
            if began <= asked or until - asked < patience:
                gate = max(gate, until - now)
            return (self._pace.take(now) if window == gate == 0 else None), window, gate

    def shut(self, seconds: float, patience: float) -> None:
        with self._lock:
            now = monotonic()
            if seconds < patience:
                self._pace.shut(now + seconds)
            else:
                self._long_pause = now, now + seconds

    def forecast(self, requests: int) -> float:
        with self._lock:
            return self._pace.forecast(monotonic(), requests)

    def tighten(self, rate: tuple[int, float]) -> None:
        with self._lock:
            self._pace.tighten(*rate)

    def forked(self) -> None:
        self._lock = threading.Lock()


_throttles: WeakValueDictionary[tuple[str, bytes], _Throttle] = WeakValueDictionary()


def _throttle(base_url: str, token: Secret, rate: tuple[int, float]) -> _Throttle:
    """Return the throttle of a token; if its stores have different rates, the lowest applies."""
    throttle = _throttles.setdefault((base_url, sha256(token.reveal().encode()).digest()), _Throttle(rate))
    throttle.tighten(rate)
    return throttle


def checked_url(base_url: str, what: str, example: str, options: Iterable[str], *, prefix: str = "") -> str:
    """Return a service's base URL with a lower-case scheme, without `prefix` and a trailing slash.

    Raises:
        ValueError: it is invalid, or has a user, a query or a fragment.
        TypeError: it is not a str.

    """
    if not isinstance(base_url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        raise TypeError(f"{what} must be a str such as {example!r}, not {type(base_url).__name__}")
    if base_url[: len(prefix)].lower() == prefix:
        base_url = base_url[len(prefix) :]
    complaint = complaint_of(base_url)
    if "@" in base_url:
        complaint = f"{what} must not have a user (it is not shown here): pass the token instead"
    elif "?" in base_url or "#" in base_url:
        complaint = f"{what} must not have a query or fragment; a store's URL may have the options {', '.join(options)}"
    if complaint is not None:
        del base_url  # so that no rendered traceback shows a password
        raise ValueError(complaint)
    scheme = ""
    with suppress(ValueError):  # an invalid port or address
        parts = urlsplit(base_url)
        scheme = parts.scheme if parts.hostname and parts.port != 0 else ""
    if scheme not in {"http", "https"}:
        raise ValueError(f"{what} must be a URL such as {example}, not {base_url!r}")
    check_host(base_url)
    return (scheme + base_url[len(scheme) :]).rstrip("/")


_services: WeakSet[Service] = WeakSet()


def _forked_services() -> None:
    """Replace locks that a thread of the parent may hold."""
    for throttle in list(_throttles.values()):
        throttle.forked()
    for service in list(_services):
        service.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked_services)
