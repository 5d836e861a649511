"""Requests and answers over HTTP: the only file that knows the HTTP library.

httpx reads URLs, proxies and certificates; httpcore, the engine inside it, is driven directly, one connection at a
time: what httpx and a connection pool add to each request costs as much again as the request. httpx2 and httpcore2,
their maintained continuations with the same interface, are used where they are installed.
"""

from __future__ import annotations

import os
import ssl
import zlib
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from checkpoint.errors import StoreError
from checkpoint.stores.retrying import monotonic

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping

    import httpcore
    import httpx
else:
    try:
        import httpcore2 as httpcore
        import httpx2 as httpx
    except ImportError:
        import httpcore
        import httpx

MAX_BODY = 64 * 1024 * 1024
"""Bytes of an answer, after decompression, from which on it is refused."""

KEPT = 60.0
"""Seconds after which an idle connection is not used again: services close them after about as long."""

TRUSTED = 1.0
"""Seconds for which an idle connection is taken to be open without looking."""

EARLY = 2.0
"""Seconds that a connection may take that is opened before it is needed."""

_CHUNK = 64 * 1024

_MISTAKES = (
    httpcore.LocalProtocolError,
    httpcore.UnsupportedProtocol,
    httpx.InvalidURL,
    ImportError,  # of what speaks to SOCKS proxies
    UnicodeError,  # of a host name that is none
)
_FAILURES = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.RemoteProtocolError,
    httpcore.ProxyError,
    *_MISTAKES,
)


class Secret:
    """A string that no repr, log or pickle shows; `origin` says where it came from, such as ` from $VARIABLE`."""

    __slots__ = ("_text", "origin")

    def __init__(self, text: str, origin: str = "") -> None:
        self._text = text
        self.origin = origin

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")

    def fits_a_header(self) -> bool:
        """Tell whether it can be sent: printable ASCII without spaces, and not empty."""
        return bool(self._text) and self._text.isascii() and self._text.isprintable() and " " not in self._text

    def reveal(self) -> str:
        """Return the string itself."""
        return self._text


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)
    """Not shown: a service may echo what it was sent."""


class TransportError(Exception):
    """A request that got no whole answer.

    `reached` tells whether the service may have received and done it; `again` whether it makes sense to try again.
    """

    def __init__(self, text: str, *, reached: bool, again: bool = True) -> None:
        super().__init__(text)
        self.reached = reached
        self.again = again


class Clients:
    """Keep-alive connections to one service, lent to one thread at a time: a shared pool costs twice the time.

    After a fork the child starts with none, and leaves the parent's connections alone.
    """

    def __init__(self, base_url: str, token: Secret, timeout: float) -> None:
        self._route = _route(base_url, token, timeout)
        self._made: dict[int, list[_Client]] = {}  # by process
        self._idle: dict[int, deque[_Client]] = {}  # by process; the last one used is the first one lent

    def send(self, method: str, url: str, body: bytes | None, until: float) -> Response:
        """Send one request and read its answer, not later than `until` (monotonic seconds).

        Raises:
            TransportError: there was no whole answer.

        """
        idle = self._idle.setdefault(os.getpid(), deque())
        try:
            client = idle.pop()
        except IndexError:
            client = self._make()
        try:
            return client.send(method, url, body, until)
        finally:
            idle.append(client)

    def lacking(self, count: int) -> list[Callable[[], None]]:
        """Add what is missing to so many connections; return what opens each of them, to be called in any thread.

        A request that comes sooner waits for its connection, or opens it; so does one whose connection was not to be
        opened.
        """
        missing = count - len(self._made.get(os.getpid(), ()))
        if missing <= 0:  # as after the first commit, for each key that is set
            return []
        added = [self._make() for _ in range(missing)]
        self._idle.setdefault(os.getpid(), deque()).extendleft(added)
        return [client.open for client in added]

    def close(self) -> None:
        """Close this process's connections."""
        self._idle.pop(os.getpid(), None)
        for client in self._made.pop(os.getpid(), ()):
            client.close()

    def _make(self) -> _Client:
        client = _Client(self._route)
        self._made.setdefault(os.getpid(), []).append(client)
        return client


@dataclass(frozen=True, slots=True)
class _Route:
    """How a service is reached, and what every request to it says."""

    origin: httpcore.Origin
    proxy: httpcore.Proxy | None = field(repr=False)
    context: ssl.SSLContext
    timeout: float
    token: Secret
    always: tuple[tuple[bytes, bytes], ...]

    def headers(self, body: bytes | None) -> list[tuple[bytes, bytes]]:
        """Return the headers of a request: each is checked on its way, so only those that are needed."""
        return [
            *self.always,
            (b"Authorization", b"Bearer " + self.token.reveal().encode()),
            *(
                ((b"Accept-Encoding", b"gzip"),)
                if body is None
                else ((b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body)))
            ),
        ]


class _Client:
    """A connection that is opened when it is needed, and again when it was closed."""

    def __init__(self, route: _Route) -> None:
        self._route = route
        self._network = _Network()
        self._connection: httpcore.ConnectionInterface | None = None
        self._used = 0.0
        self._lock = Lock()  # held while it is used, or being opened

    def open(self) -> None:
        """Open the connection, if that goes quickly, and say nothing where it does not go at all."""
        if self._lock.acquire(blocking=False):
            try:
                self._network.limit(monotonic() + EARLY, EARLY)
                self._ready()
            except _FAILURES:
                pass
            finally:
                self._lock.release()

    def send(self, method: str, url: str, body: bytes | None, until: float) -> Response:
        with self._lock:
            if until <= monotonic():
                raise TransportError("the deadline has passed", reached=False)
            self._network.limit(until, self._route.timeout)
            try:
                return self._send(
                    httpcore.Request(method, _target(url), headers=self._route.headers(body), content=body)
                )
            except _FAILURES as error:
                self._drop()
                raise _translated(error) from _bare(error)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _send(self, request: httpcore.Request) -> Response:
        response = self._ready().handle_request(request)
        try:
            told = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
            return Response(response.status, told, _read(response, told))
        finally:
            response.close()
            self._used = monotonic()

    def _ready(self) -> httpcore.ConnectionInterface:
        """Return an open connection: what is written to a closed one leaves in doubt whether it arrived."""
        if self._connection is not None:
            idle = monotonic() - self._used
            if self._connection.is_closed() or idle > KEPT or (idle > TRUSTED and self._network.gone()):
                self._drop()
        if self._connection is None:
            self._connection, self._used = self._connect(), monotonic()
        return self._connection

    def _connect(self) -> httpcore.ConnectionInterface:
        route, origin = self._route, self._route.origin
        if route.proxy is not None:  # connects with the first request
            pool = httpcore.ConnectionPool(route.context, route.proxy, network_backend=self._network)
            return pool.create_connection(origin)
        host = origin.host.decode("ascii")
        stream = self._network.connect_tcp(host, origin.port)
        if origin.scheme == b"https":
            stream = stream.start_tls(route.context, host)
        return httpcore.HTTP11Connection(origin, stream)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Network(httpcore.NetworkBackend):
    """Opens a connection's sockets, and ends everything on them at one deadline.

    A limit for each single read would never stop a service that drips a byte now and then.
    """

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        """The last one opened."""
        self._until = self._timeout = 0.0

    def limit(self, until: float, timeout: float) -> None:
        """Let everything end then (monotonic seconds), and each single step after so many seconds."""
        self._until, self._timeout = until, timeout

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline stands for all timeouts
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        stream = httpcore.SyncBackend().connect_tcp(host, port, self.left(), local_address, socket_options)
        return _Stream(stream, self)

    def left(self) -> float:
        """Return the seconds for the next step."""
        return min(self._timeout, max(0.001, self._until - monotonic()))

    def gone(self) -> bool:
        """Tell whether the service has closed the idle connection, or sent what nobody asked for.

        That something can be read does not tell it: over TLS that may be tickets for later sessions.
        """
        if self.socket is None:
            return False
        try:
            self.socket.settimeout(0)
            self.socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            pass
        return True


class _Stream(httpcore.NetworkStream):
    """A socket under its network's deadline, to which head and body of a request go in one packet."""

    def __init__(self, stream: httpcore.NetworkStream, network: _Network) -> None:
        self._stream = stream
        self._network = network
        self._unsent = bytearray()
        network.socket = stream.get_extra_info("socket")

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - as above
        return self._stream.read(max_bytes, self._network.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - as above
        self._unsent += buffer
        if buffer and len(self._unsent) <= _CHUNK:
            return  # nothing to write is how a request ends
        data = bytes(self._unsent)
        self._unsent.clear()
        for start in range(0, len(data), _CHUNK):  # one call may wait for every packet anew
            self._stream.write(data[start : start + _CHUNK], self._network.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - as above
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._network.left()), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _route(base_url: str, token: Secret, timeout: float) -> _Route:
    url = httpx.URL(base_url)
    return _Route(
        _parsed(url).origin,
        _proxy(base_url),
        _context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
        timeout,
        token,
        ((b"Host", url.netloc), (b"User-Agent", b"checkpoint")),
    )


# A job commits the same keys again and again, and parsing their URLs costs a quarter of a request.
@lru_cache(1024)
def _target(url: str) -> httpcore.URL:
    return _parsed(httpx.URL(url))


def _parsed(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


@lru_cache(8)
def _context(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    """Return what trusts the certificates that these variables of the environment name, or the usual ones."""
    try:
        context = httpx.create_ssl_context()
        context.set_alpn_protocols(["http/1.1"])
        return context
    except OSError as error:
        raise StoreError(f"no trusted certificates: {error}; see SSL_CERT_FILE and SSL_CERT_DIR") from error


def _proxy(base_url: str) -> httpcore.Proxy | None:
    """Return the proxy that the environment names for a URL (HTTPS_PROXY, NO_PROXY), None for none."""
    parts = urlsplit(base_url)
    named = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    if not named:
        return None
    proxy = httpx.Proxy(named if "://" in named else f"http://{named}")
    return httpcore.Proxy(_parsed(proxy.url), proxy.raw_auth)


def _read(response: httpcore.Response, headers: Mapping[str, str]) -> bytes:
    """Return the body, decompressed in small steps: a few bytes may stand for gigabytes."""
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise TransportError(f"the answer has the unwanted encoding {encoding!r}", reached=True, again=False)
    inflate = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
    parts: list[bytes] = []
    size, began = 0, False
    try:
        for chunk in response.iter_stream():
            began = True
            for part in _inflated(inflate, chunk) if inflate is not None else (chunk,):
                size += len(part)
                if size > MAX_BODY:
                    raise TransportError(f"the answer is larger than {MAX_BODY:,} bytes", reached=True, again=False)
                parts.append(part)
    except zlib.error as error:
        raise TransportError(f"the answer's gzip is damaged: {error}", reached=True) from error
    if inflate is not None and began and not inflate.eof:
        raise TransportError("the answer's gzip is cut off", reached=True)
    return b"".join(parts)


def _inflated(inflate: Any, chunk: bytes) -> Iterator[bytes]:
    while part := inflate.decompress(chunk, _CHUNK):
        yield part
        chunk = inflate.unconsumed_tail


def _translated(error: Exception) -> TransportError:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if certificate := _caused_by(error, ssl.SSLCertVerificationError):
        return TransportError(f"the service's certificate is not trusted: {certificate}", reached=False, again=False)
    if isinstance(error, httpcore.ConnectError) and "WRONG_VERSION_NUMBER" in text:
        return TransportError(f"no TLS is spoken there, so try http://: {text}", reached=False, again=False)
    if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout | httpcore.ProxyError):
        return TransportError(text, reached=False)
    if isinstance(error, _MISTAKES):
        return TransportError(text, reached=False, again=False)
    return TransportError(text, reached=True)


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _bare(error: BaseException) -> BaseException:
    """Drop an error's frames, whose locals hold the request's headers and so the token, and the errors behind it."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
