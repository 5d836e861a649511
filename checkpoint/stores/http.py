"""Requests and responses over HTTP: with `network` and `route`, the only files that know the HTTP library.

httpx's transports keep the connections and speak HTTP/2; the network backend beneath them is our own, in `network`.
httpx2 and httpcore2, their maintained continuations with the same interface, are used if installed.

The two protocols use two kinds of connections. Over HTTP/1.1 each request has a connection to itself. Each connection
has its own transport: one transport with fifty connections scans all fifty for each request, which takes longer than
the request. Over HTTP/2 all requests share one connection, which httpx does not protect from threads: two that begin at
once can mix up their headers, and so write one key's value under another (pydantic/httpx2, pull request 1153). So a
single event loop, in its own thread, does all work on that connection.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import sys
import threading
import zlib
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakSet, finalize

from checkpoint.errors import StoreError, printable
from checkpoint.stores.network import Limit, Loop, LoopNetwork, Network, Single
from checkpoint.stores.retrying import Deadline, Operation
from checkpoint.stores.route import PROXY_AUTHENTICATION_REQUIRED, Route, TransportError, by_way_of, failed, route_to

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    import httpx

    from checkpoint.stores.tokens import Secret
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx

__all__ = ["Clients", "Response", "TransportError", "check_host"]

T = TypeVar("T")

MAX_BODY = 64 * 1024 * 1024
"""Default size limit of a response in bytes, after decompression."""

EARLY = 2.0
"""Seconds that opening a connection ahead of its request may take."""

_HOST = re.compile(r"[a-z0-9._-]+", re.IGNORECASE)
_STEP = 64 * 1024  # bytes decompressed at once


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)
    """Not in the repr: a service may echo the request."""


class Clients:
    """The connections to one service: one shared connection over HTTP/2, else one for each parallel request.

    Over TLS the first response shows which protocol the service speaks. After a fork the child starts without
    connections, and does not touch those of the parent.
    """

    def __init__(self, base_url: str, timeout: float, concurrency: int, max_body: int = MAX_BODY) -> None:
        self._base_url = base_url
        self._max_body = max_body
        self._timeout = timeout
        self._concurrency = concurrency
        self._multiplexes: bool | None = None if base_url.startswith("https:") and find_spec("h2") else False
        """None until the first response."""
        self._route: Route | None = None  # set with the first connection
        self._shared: _Shared | None = None
        self._idle: list[_Own | _Shared] = []  # last in, first out
        self._made: set[_Own | _Shared] = set()
        self._making = threading.Lock()
        self._parents: list[object] = []

    def send(
        self, operation: Operation, deadline: Deadline, token: Secret, method: str, url: str, body: bytes | None
    ) -> Response:
        """Send one request and read its response before the deadline.

        Raises:
            TransportError: there was no complete response.
            StoreError: a proxy or certificates that the environment names cannot be used.

        """
        if deadline.left() <= 0:
            raise TransportError("the deadline has passed", reached=False)
        _hidden.secrets.add(token)
        outer, proxy = sys.exc_info()[1], self._way().proxy
        try:
            response = self._sent(_request(token, method, url, body), Limit(operation, deadline, self._timeout))
        except (StoreError, TransportError):
            raise
        except Exception as error:  # noqa: BLE001 - the libraries let errors of their parts out, h2's and idna's
            failure, cause = failed(error, outer, proxy, token)
        else:
            if response.status == PROXY_AUTHENTICATION_REQUIRED and proxy is not None:
                raise TransportError(proxy.wants_login(), reached=False, again=False)
            return response
        raise failure from cause  # raised here, without a context: frames of a context hold the token

    def lacking(self, requests: int) -> list[Callable[[], None]]:
        """Add the connections that so many parallel requests lack; return what opens each of them, in any thread.

        A request that comes sooner waits for it. Over HTTP/2, or through a proxy, nothing is added.
        """
        if self._multiplexes is not False or self._way().proxy is not None:
            return []
        added = [_Own(self._way(), self._max_body) for _ in range(requests - len(self._made))]
        self._made.update(added)
        self._idle[:0] = added
        return [partial(own.open, self._timeout) for own in added]

    def close(self) -> None:
        """Close this process's connections."""
        with self._making:
            made, self._made, self._idle, self._shared = self._made, set(), [], None
        for connection in made:
            connection.close()

    def forked(self) -> None:
        """Reset connections and lock in a forked child."""
        self._parents += [self._made, self._idle]  # keep a reference: closing them would close the parent's
        self._made, self._idle, self._shared, self._making = set(), [], None, threading.Lock()

    def _way(self) -> Route:
        if self._route is None:
            self._route = route_to(self._base_url)
        return self._route

    def _sent(self, request: httpx.Request, limit: Limit) -> Response:
        connection = self._lent()
        try:
            response, version = connection.send(request, limit)
        except BaseException:  # includes what a signal handler raised, which may have left locks held
            if connection is not self._shared:
                self._made.discard(connection)
                connection.close()
            raise
        if self._multiplexes is None:
            self._multiplexes = version == "HTTP/2"
        if connection not in self._made:  # closed meanwhile
            connection.close()
        elif not self._multiplexes:
            self._idle.append(connection)
        return response

    def _lent(self) -> _Own | _Shared:
        if self._multiplexes is False:
            try:
                return self._idle.pop()
            except IndexError:
                own = _Own(self._way(), self._max_body)
                self._made.add(own)
                return own
        with self._making:
            if self._shared is None:
                self._shared = _Shared(self._way(), self._concurrency, self._max_body)
                self._made.add(self._shared)
            return self._shared


class _Ahead(Operation):
    """Opening a connection ahead of its request, which tells if that takes long."""

    def quiet(self, deadline: Deadline) -> float:
        return math.inf


class _Own:
    """A connection of HTTP/1.1, used by one thread at a time."""

    def __init__(self, route: Route, max_body: int) -> None:
        self._max_body = max_body
        self._lock = threading.Lock()  # held while it is opened or used
        self._network = Network()
        self._transport = route.transport(httpx.HTTPTransport, 1)
        self._single = Single(self._network, route.host, route.port, route.context(httpx.HTTPTransport))
        if route.proxy is None:
            self._transport._pool = self._single  # noqa: SLF001 - httpx has no parameter for it
        else:
            self._transport._pool._network_backend = self._network  # noqa: SLF001 - as above

    def open(self, timeout: float) -> None:
        """Open the connection ahead of its first request, which waits for it."""
        with self._lock:
            self._network.limit = Limit(_Ahead(""), Deadline(EARLY), timeout)
            self._single.open_ahead()

    def send(self, request: httpx.Request, limit: Limit) -> tuple[Response, str]:
        """Send a request; return the response and its HTTP version."""
        if not self._lock.acquire(timeout=limit.left()):
            raise httpx.ConnectTimeout("timed out")
        try:
            return self._sent(request, limit)
        finally:
            self._lock.release()

    def _sent(self, request: httpx.Request, limit: Limit) -> tuple[Response, str]:
        self._network.limit = limit
        response = self._transport.handle_request(request)
        try:
            body = _Body(response, self._max_body)
            for piece in response.stream:
                body.take(piece)
        finally:
            response.close()
        return body.whole(), response.http_version

    def close(self) -> None:
        """Close the connection without httpx, whose locks may be held."""
        self._network.close()


class _Shared:
    """An HTTP/2 connection that all requests share, on an event loop in its own thread.

    Nothing interrupts that thread: signal handlers run in the main thread, which only waits. If the service turns out
    to speak HTTP/1.1, one thread at a time uses the connection.
    """

    def __init__(self, route: Route, concurrency: int, max_body: int) -> None:
        self._max_body = max_body
        self._route = route
        self._concurrency = concurrency
        self._network = LoopNetwork()
        self._transport = self._made()
        self._loop = Loop()
        self._thread = threading.Thread(target=_turn_loop, args=[self._loop], name="checkpoint-http2", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise
        self._stop = finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        self._stop.atexit = False  # the thread ends with the interpreter

    def send(self, request: httpx.Request, limit: Limit) -> tuple[Response, str]:
        """Send a request; return the response and its HTTP version."""
        answer = self._begun(self._send(request, limit))
        try:
            if limit.quiet() < limit.deadline.left() and not wait([answer], limit.quiet()).done:
                limit.tell()
            return answer.result()
        except CancelledError:
            raise TransportError("the connection was closed", reached=True) from None
        except BaseException:
            answer.cancel()
            raise

    def _begun(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop)
        except RuntimeError:  # the loop is closed
            call.close()
            raise TransportError("the connection was closed", reached=False) from None

    def _made(self) -> httpx.AsyncHTTPTransport:
        transport: httpx.AsyncHTTPTransport = self._route.transport(
            httpx.AsyncHTTPTransport, self._concurrency, http2=True
        )
        transport._pool._network_backend = self._network  # noqa: SLF001 - as above
        return transport

    async def _send(self, request: httpx.Request, limit: Limit) -> tuple[Response, str]:
        wire = self._network.wire
        if wire is not None and not wire.open:  # closed by the service; httpcore notices only when a request fails
            self._network.wire, self._transport = None, self._made()
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write"), limit.timeout)
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        late = self._loop.call_later(limit.deadline.left(), task.cancel)
        try:
            return await self._exchange(request)
        except asyncio.CancelledError:
            if limit.deadline.left() > 0:  # the caller has stopped waiting
                raise
            reached = self._network.wire is not None
            text = f"no whole answer by the deadline{by_way_of(self._route.proxy)}"
            raise TransportError(text, reached=reached) from None
        finally:
            late.cancel()

    async def _exchange(self, request: httpx.Request) -> tuple[Response, str]:
        response = await self._transport.handle_async_request(request)
        try:
            body = _Body(response, self._max_body)
            async for piece in cast("httpx.AsyncByteStream", response.stream):
                body.take(piece)
        finally:
            await response.aclose()
        return body.whole(), response.http_version

    def close(self) -> None:
        """Close the connection, and end the thread."""
        if self._stop.alive:
            with suppress(CancelledError, TransportError):  # another thread closes it too
                self._begun(self._close()).result()
            self._stop()
            self._thread.join()

    async def _close(self) -> None:
        await self._transport.aclose()
        for _ in range(5):  # iterations of the loop, in which closed sockets are released
            await asyncio.sleep(0)


def _turn_loop(loop: Loop) -> None:
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)  # its caller would wait for ever
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.close()


class _Body:
    """A response body, decompressed in small steps: a few bytes can expand to gigabytes.

    httpx's own decoder expands each chunk at once, and accepts a truncated body.
    """

    def __init__(self, response: httpx.Response, most: int) -> None:
        self._most = most
        self._status = response.status_code
        self._headers = {
            name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers.raw
        }
        self._parts: list[bytes] = []
        self._size = 0
        told = self._headers.get("content-encoding", "identity")
        encoding = told.lower()
        if encoding not in {"identity", "gzip"}:
            raise TransportError(f"the answer has the unsupported encoding {told!r}", reached=True, again=False)
        self._inflate = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        self._whole = True

    def take(self, piece: bytes) -> None:
        """Add a chunk as received."""
        if self._inflate is None:
            self._add(piece)
            return
        try:
            while part := self._inflate.decompress(piece, _STEP):
                self._add(part)
                piece = self._inflate.unconsumed_tail
        except zlib.error as error:
            raise TransportError(f"the answer's gzip is damaged: {error}", reached=True) from error
        self._whole = self._inflate.eof

    def whole(self) -> Response:
        """Return the response after the last chunk."""
        if not self._whole:
            raise TransportError("the answer's gzip is cut off", reached=True)
        return Response(self._status, self._headers, b"".join(self._parts))

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._most:
            raise TransportError(f"the answer is larger than {self._most:,} bytes", reached=True, again=False)
        self._parts.append(part)


def _request(token: Secret, method: str, url: str, body: bytes | None) -> httpx.Request:
    """Return a request with only the headers that it needs: each header costs time."""
    parsed = _url(url)
    headers = [
        (b"Host", parsed.netloc),
        (b"Authorization", b"Bearer " + token.reveal().encode()),
        (b"User-Agent", b"checkpoint"),
    ]
    if body is None:
        headers.append((b"Accept-Encoding", b"gzip"))
    else:
        headers += [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    return httpx.Request(method, parsed, headers=headers, stream=httpx.ByteStream(body or b""))


# A job commits the same keys again and again, and parsing their URLs costs a quarter of a request.
@lru_cache(1024)
def _url(url: str) -> httpx.URL:
    return httpx.URL(url)


def check_host(url: str) -> None:
    """Refuse a URL whose host cannot be looked up.

    Raises:
        ValueError: httpx cannot read it, or a part of the name is empty, too long, or cannot be encoded in ASCII.

    """
    try:
        host = httpx.URL(url).raw_host.decode("ascii")
        if ":" in host:
            ip_address(host.replace("%25", "%"))
        else:
            host.encode("idna")
        wrong = None if ":" in host or _HOST.fullmatch(host) else "a name has letters, digits, '.', '-' and '_'"
    except (httpx.InvalidURL, ValueError) as error:
        wrong = str(error)
    if wrong is not None:
        raise ValueError(f"the host of {url!r} is not a valid name: {printable(wrong)}")


class _Hiding(logging.Filter):
    """Hides tokens in the logs of the HTTP libraries: in sent headers, and where a service echoes them."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: WeakSet[Secret] = WeakSet()

    def filter(self, record: logging.LogRecord) -> bool:
        message = text = record.getMessage()
        for secret in list(self.secrets):
            text = secret.hide(text)
        text = printable(text)
        if text != message:
            record.msg, record.args = text, None
        return True


_hidden = _Hiding()
_LOGGERS = "httpx httpcore.http11 httpcore.http2 httpcore.proxy httpcore.socks hpack.hpack hpack.table"
for _name in [*_LOGGERS.split(), *_LOGGERS.replace("httpx", "httpx2").replace("httpcore", "httpcore2").split()]:
    logging.getLogger(_name).addFilter(_hidden)
