"""Requests and answers over HTTP: the only file that knows the HTTP library.

httpx2, the maintained continuation of httpx with the same interface, is used where it is installed.
"""

from __future__ import annotations

import os
import ssl
import time
import zlib
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from checkpoint.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    import httpx
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx

MAX_BODY = 64 * 1024 * 1024
"""Bytes of an answer, after decompression, from which on it is refused."""

_CHUNK = 64 * 1024

# A job commits the same keys again and again, and parsing their URLs costs an eighth of a request.
_url = lru_cache(1024)(httpx.URL)


def monotonic(_read: Callable[[], float] = time.monotonic) -> float:
    """Return the seconds of the real monotonic clock: before a test's frozen one no pause would ever end."""
    return _read()


class Secret:
    """A string that no repr, log or pickle shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

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
    """Keep-alive clients of one service, lent to one thread at a time: a shared one costs twice the time.

    After a fork the child starts with none, and leaves the parent's connections alone.
    """

    def __init__(self, base_url: str, token: Secret, timeout: float) -> None:
        self._token = token
        self._timeout = timeout
        self._proxy = _proxy(base_url)
        self._idle: dict[int, deque[_Client]] = {}  # by process; the last one used is the first one lent
        self._context = _context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))

    def send(self, method: str, url: str, body: bytes | None, until: float) -> Response:
        """Send one request and read its answer, not later than `until` (monotonic seconds).

        Raises:
            TransportError: there was no whole answer.

        """
        with self._lent() as client:
            return client.send(method, url, body, until)

    def close(self) -> None:
        """Close this process's connections."""
        idle = self._idle.pop(os.getpid(), deque[_Client]())
        while idle:
            idle.pop().close()

    @contextmanager
    def _lent(self) -> Generator[_Client]:
        idle = self._idle.setdefault(os.getpid(), deque())
        try:
            client = idle.pop()
        except IndexError:
            client = _Client(self._token, self._timeout, self._context, self._proxy)
        try:
            yield client
        finally:
            idle.append(client)


class _Client:
    """A connection pool of one thread, with a deadline for a request as a whole.

    httpx limits each single read; a service that drips a byte now and then would never trip it. Its transport is used
    without its client: what that adds, redirects and cookies, is not wanted here.
    """

    def __init__(self, token: Secret, timeout: float, context: ssl.SSLContext, proxy: str | None) -> None:
        self._timeout = timeout
        self._until = 0.0
        self._transport = httpx.HTTPTransport(
            verify=context, proxy=proxy, limits=httpx.Limits(max_connections=1, keepalive_expiry=60.0)
        )
        # Each header is checked by every layer on its way: only the needed ones are sent.
        always = {"Authorization": f"Bearer {token.reveal()}", "User-Agent": "checkpoint"}
        self._headers = httpx.Headers({**always, "Accept-Encoding": "gzip"})
        self._headers_of_json = httpx.Headers({**always, "Content-Type": "application/json"})

    def send(self, method: str, url: str, body: bytes | None, until: float) -> Response:
        self._until = until
        limit = min(self._timeout, until - monotonic())
        if limit <= 0:
            raise TransportError("the deadline has passed", reached=False)
        timeout = {"connect": limit, "read": limit, "write": limit, "pool": limit}
        extensions = {"timeout": timeout, "trace": self._trace}
        try:
            headers = self._headers if body is None else self._headers_of_json
            request = httpx.Request(method, _url(url), headers=headers, content=body, extensions=extensions)
            response = self._transport.handle_request(request)
            try:
                told = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers.raw}
                return Response(response.status_code, told, _read(response, told))
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _translated(error) from _bare(error)

    def close(self) -> None:
        self._transport.close()

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Put the deadline on each connection as it is made (the "trace" request extension of httpcore)."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            stream = info["return_value"]
            read, write, unsent = stream.read, stream.write, bytearray()

            def read_in_time(size: int, timeout: float | None = None) -> Any:
                send(timeout)
                return read(size, self._left(timeout))

            def write_in_time(data: bytes, timeout: float | None = None) -> None:
                unsent.extend(data)  # head and body go out in one packet
                if not data or len(unsent) > _CHUNK:  # nothing: the request has ended
                    send(timeout)

            def send(timeout: float | None) -> None:
                data = bytes(unsent)
                unsent.clear()
                for start in range(0, len(data), _CHUNK):  # one call may wait for every packet anew
                    write(data[start : start + _CHUNK], self._left(timeout))

            stream.read, stream.write = read_in_time, write_in_time

    def _left(self, timeout: float | None) -> float:
        left = max(0.001, self._until - monotonic())
        return left if timeout is None else min(timeout, left)


@lru_cache(8)
def _context(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    """Return what trusts the certificates that these variables of the environment name, or the usual ones."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise StoreError(f"no trusted certificates: {error}; see SSL_CERT_FILE and SSL_CERT_DIR") from error


def _proxy(base_url: str) -> str | None:
    """Return the proxy that the environment names for a URL (HTTPS_PROXY, NO_PROXY), None for none."""
    parts = urlsplit(base_url)
    proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _read(response: httpx.Response, headers: Mapping[str, str]) -> bytes:
    """Return the body, decompressed in small steps: a few bytes may stand for gigabytes."""
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise TransportError(f"the answer has the unwanted encoding {encoding!r}", reached=True, again=False)
    inflate = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
    parts: list[bytes] = []
    size, began = 0, False
    try:
        for chunk in response.iter_raw(_CHUNK):
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
    if isinstance(error, httpx.ConnectError) and "WRONG_VERSION_NUMBER" in text:
        return TransportError(f"no TLS is spoken there, so try http://: {text}", reached=False, again=False)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError):
        return TransportError(text, reached=False)
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.InvalidURL):
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
