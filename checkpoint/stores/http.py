"""Requests and answers over HTTP: with `network`, the only files that know the HTTP library.

httpx reads URLs, proxies and certificates, keeps the connections and speaks HTTP/2; beneath its surface there is one
thing of ours, the network backend in `network`. httpx2 and httpcore2, their maintained continuations with the same
interface, are used where they are installed.

Two clients, for two protocols. Over HTTP/1.1 each request has a connection to itself, in the thread that asks: a plain
`httpx.Client`. Over HTTP/2 all requests share one connection, which httpx does not protect from threads: two that begin
at once can mix up their headers, and so write one key's value under another (pydantic/httpx2, pull request 1153). There
an `httpx.AsyncClient`, on an event loop in a thread of its own, does all that is done on the connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
import sys
import threading
import zlib
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import getproxies
from weakref import WeakSet, finalize

from checkpoint.errors import StoreError, printable
from checkpoint.stores.network import Limit, Loop, Network, behind, interruption, is_a_librarys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx

    from checkpoint.stores.retrying import Deadline, Operation
    from checkpoint.stores.tokens import Secret
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx

MAX_BODY = 64 * 1024 * 1024
"""Bytes of an answer, after decompression, from which on it is refused."""

KEPT = 60.0
"""Seconds after which an idle connection is not used again: services close them after about as long."""

_STEP = 64 * 1024  # bytes decompressed at once
_NEEDS_LOGIN = 407  # Proxy Authentication Required

_MISTAKES = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL, UnicodeError)
_FAILURES = (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError)
_NOT_REACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


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
    """The way to one service: a client for each process, and HTTP/2 where the service speaks it.

    Over TLS the first answer tells which it speaks. Where that is HTTP/1.1, the connection that brought it goes on with
    one request at a time, and those beside it have others. After a fork the child starts with no client, and leaves the
    parent's connections alone.
    """

    def __init__(self, base_url: str, timeout: float, concurrency: int) -> None:
        self._base_url = base_url
        self._timeout = timeout
        self._concurrency = concurrency
        self._multiplexes: bool | None = None if base_url.startswith("https:") and find_spec("h2") else False
        # Held for good without TLS; else while a request goes over the connection by which HTTP/1.1 was found out.
        self._first = threading.Lock()
        if self._multiplexes is False:
            self._first.acquire()
        self._made: dict[tuple[int, bool], _Plain | _Multiplexing] = {}  # by process, and by whether it multiplexes
        self._making = threading.Lock()

    def send(
        self, operation: Operation, deadline: Deadline, token: Secret, method: str, url: str, body: bytes | None
    ) -> Response:
        """Send one request and read its answer, not later than the deadline.

        Raises:
            TransportError: there was no whole answer.
            StoreError: a proxy or certificates that the environment names cannot be used.

        """
        if deadline.left() <= 0:
            raise TransportError("the deadline has passed", reached=False)
        _hidden.secrets.add(token)
        outer, alone = sys.exc_info()[1], self._multiplexes is False and self._first.acquire(blocking=False)
        client = self._client(multiplexes=self._multiplexes is not False or alone)
        try:
            response, version = client.send(
                _request(token, method, url, body), Limit(operation, deadline, self._timeout)
            )
        except TransportError:
            raise
        except Exception as error:  # noqa: BLE001 - the libraries let errors of their parts out, h2's and idna's
            links, cause = behind(error, outer), None
            failure = interruption(links)
            if failure is None and (isinstance(error, _FAILURES) or is_a_librarys(error)):
                failure, cause = _translated(links, client.proxy, token), _bare(error, token)
            if failure is None:
                failure = error
            if cause is None or isinstance(error, httpx.ProxyError):  # httpcore forgets sockets that a proxy refused
                self._drop(client)
        except BaseException:
            self._drop(client)
            raise
        else:
            if self._multiplexes is None:
                self._multiplexes = version == "HTTP/2"
            if response.status == _NEEDS_LOGIN and client.proxy is not None:
                raise TransportError(client.proxy.wants_login(), reached=False, again=False)
            return response
        finally:
            if alone:
                self._first.release()
        raise failure from cause  # out here, where it keeps no context, whose frames hold the token

    def close(self) -> None:
        """Close this process's connections."""
        for which, client in list(self._made.items()):
            if which[0] == os.getpid():
                del self._made[which]
                client.close()

    def forked(self) -> None:
        """Make the locks anew in a forked child: a thread that the child does not have may hold them."""
        self._making, self._first = threading.Lock(), threading.Lock()
        if not self._base_url.startswith("https:"):
            self._first.acquire()

    def _client(self, *, multiplexes: bool) -> _Plain | _Multiplexing:
        which = (os.getpid(), multiplexes)
        client = self._made.get(which)
        if client is None:
            with self._making:
                client = self._made.get(which)
                if client is None:
                    make = _Multiplexing if multiplexes else _Plain
                    client = self._made[which] = make(self._base_url, self._concurrency)
        return client

    def _drop(self, client: _Plain | _Multiplexing) -> None:
        """Use a client no more that a signal handler's exception may have interrupted, with its locks held for ever."""
        if isinstance(client, _Multiplexing):  # its own thread, which nothing interrupts, does all the work
            return
        for which in [which for which, each in list(self._made.items()) if each is client]:
            self._made.pop(which, None)
        client.abandon()


class _Plain:
    """HTTP/1.1: each request has a connection to itself, in the thread that asks."""

    def __init__(self, base_url: str, concurrency: int) -> None:
        self._network = Network()
        self._client, self.proxy = _made(httpx.Client, base_url, concurrency)
        transport, _ = _transport(self._client, base_url)
        transport._pool._network_backend = self._network  # noqa: SLF001 - httpx has no parameter for httpcore's own

    def send(self, request: httpx.Request, limit: Limit) -> tuple[Response, str]:
        """Send a request; return the answer, and the version of HTTP that brought it."""
        self._network.limit(limit)
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), limit.deadline.left())
        response = self._client.send(request, stream=True)
        try:
            body = _Body(response)
            for piece in response.iter_raw():
                body.take(piece)
        finally:
            response.close()
        return body.whole(), response.http_version

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def abandon(self) -> None:
        """Close the connections without httpx, whose locks may be held."""
        self._network.close()


class _Multiplexing:
    """HTTP/2: all requests share a connection, on an event loop in a thread of its own.

    Nobody interrupts that thread: signal handlers run in the main thread, which only waits.
    """

    def __init__(self, base_url: str, concurrency: int) -> None:
        self._client, self.proxy = _made(httpx.AsyncClient, base_url, concurrency, http2=True)
        self._loop = Loop()
        self._thread = threading.Thread(target=_run, args=[self._loop], name="checkpoint-http2", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise
        self._stop = finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        self._stop.atexit = False  # the interpreter's end takes the thread with it

    def send(self, request: httpx.Request, limit: Limit) -> tuple[Response, str]:
        """Send a request; return the answer, and the version of HTTP that brought it."""
        answer = asyncio.run_coroutine_threadsafe(self._send(request, limit), self._loop)
        try:
            if limit.quiet() < limit.deadline.left() and not wait([answer], limit.quiet()).done:
                limit.tell()
            wait([answer])
            return answer.result()
        except BaseException:
            answer.cancel()
            raise

    async def _send(self, request: httpx.Request, limit: Limit) -> tuple[Response, str]:
        begun = False

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            nonlocal begun
            begun |= event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT"

        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write"), limit.timeout)
        request.extensions["trace"] = trace
        try:
            return await asyncio.wait_for(self._exchange(request), limit.deadline.left())
        except asyncio.TimeoutError:
            raise TransportError("no whole answer by the deadline", reached=begun) from None

    async def _exchange(self, request: httpx.Request) -> tuple[Response, str]:
        response = await self._client.send(request, stream=True)
        try:
            body = _Body(response)
            async for piece in response.aiter_raw():
                body.take(piece)
        finally:
            await response.aclose()
        return body.whole(), response.http_version

    def close(self) -> None:
        """Close the connections, and end the thread."""
        if self._stop.alive:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
            self._stop()
            self._thread.join()

    async def _close(self) -> None:
        await self._client.aclose()
        for _ in range(5):  # turns of the loop, in which transports that were closed let go of their sockets
            await asyncio.sleep(0)


def _run(loop: Loop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


class _Body:
    """An answer's body as it comes, decompressed in small steps: a few bytes may stand for gigabytes.

    httpx's own decoder takes each piece at once, and a cut-off one for a whole one.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._parts: list[bytes] = []
        self._size = 0
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding not in {"identity", "gzip"}:
            raise TransportError(f"the answer has the unwanted encoding {encoding!r}", reached=True, again=False)
        self._inflate = zlib.decompressobj(wbits=31) if encoding == "gzip" else None

    def take(self, piece: bytes) -> None:
        """Take a piece as it came."""
        if self._inflate is None:
            self._add(piece)
            return
        try:
            while part := self._inflate.decompress(piece, _STEP):
                self._add(part)
                piece = self._inflate.unconsumed_tail
        except zlib.error as error:
            raise TransportError(f"the answer's gzip is damaged: {error}", reached=True) from error

    def whole(self) -> Response:
        """Return the answer, once every piece was taken."""
        if self._inflate is not None and not self._inflate.eof and self._response.num_bytes_downloaded:
            raise TransportError("the answer's gzip is cut off", reached=True)
        return Response(self._response.status_code, dict(self._response.headers), b"".join(self._parts))

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_BODY:
            raise TransportError(f"the answer is larger than {MAX_BODY:,} bytes", reached=True, again=False)
        self._parts.append(part)


def _request(token: Secret, method: str, url: str, body: bytes | None) -> httpx.Request:
    wanted = ("Accept-Encoding", "gzip") if body is None else ("Content-Type", "application/json")
    headers = {"Authorization": f"Bearer {token.reveal()}", "User-Agent": "checkpoint", wanted[0]: wanted[1]}
    return httpx.Request(method, _url(url), headers=headers, content=body)


# A job commits the same keys again and again, and parsing their URLs costs a quarter of a request.
@lru_cache(1024)
def _url(url: str) -> httpx.URL:
    return httpx.URL(url)


def check_host(url: str) -> None:
    """Refuse a URL whose host is no name that can be looked up.

    Raises:
        ValueError: httpx cannot read it, or a part of the name is empty, too long, or not to be written in ASCII.

    """
    try:
        host = httpx.URL(url).raw_host.decode("ascii")
        if ":" not in host:  # as an address of IPv6 has
            host.encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"the host of {url!r} is no name that can be looked up: {printable(str(error))}") from None


# Proxies and certificates


class _Proxy(NamedTuple):
    """A proxy that the environment names for a service."""

    variable: str
    address: str
    """Host and port; never the user and password."""

    def __str__(self) -> str:
        return f"the proxy {self.address} ({self.variable})"

    def wants_login(self) -> str:
        """Return what to say where it asks who one is."""
        return (
            f"{self} asks for a user and a password, or refuses those that it got (407 Proxy Authentication Required): "
            f"write them into {self.variable} as http://USER:PASSWORD@{self.address}"
        )


def _made(make: Callable[..., Any], base_url: str, concurrency: int, **options: Any) -> tuple[Any, _Proxy | None]:
    """Return a client of httpx's, and the proxy it goes through.

    Raises:
        StoreError: the proxy or the certificates that the environment names cannot be used.

    """
    url, proxy = httpx.URL(base_url), _named_proxy(base_url)
    if url.scheme == "https":
        files = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        options["verify"] = _context(*files, make.__name__)
    else:
        options["verify"] = None  # no TLS context, which takes longer to build than a request
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency, keepalive_expiry=KEPT)
    try:
        client = make(limits=limits, trust_env=not _in_an_exempted_network(url.host), **options)
    except ImportError as error:
        raise StoreError(f"{proxy} speaks SOCKS, which needs another package: pip install 'httpx[socks]'") from error
    except (ValueError, httpx.InvalidURL) as error:
        where = f"${proxy.variable}" if proxy else "the environment"
        raise StoreError(f"what {where} names is no proxy that can be used: {type(error).__name__}") from None
    return client, proxy if _transport(client, base_url)[1] else None


def _transport(client: Any, base_url: str) -> tuple[Any, bool]:
    """Return what a client reaches a URL by, and whether that is a proxy."""
    transport = client._transport_for_url(httpx.URL(base_url))  # noqa: SLF001 - httpx tells nobody what it will do
    return transport, transport is not client._transport  # noqa: SLF001 - as above


def _named_proxy(base_url: str) -> _Proxy | None:
    """Return the proxy that the environment names for a scheme; NO_PROXY may say that it is not used."""
    proxies, scheme = getproxies(), base_url.partition(":")[0]
    for kind in (scheme, "all"):
        if address := proxies.get(kind):
            variables = [name for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY") if os.environ.get(name)]
            variable = f"${variables[0]}" if variables else "of the system's settings"
            return _Proxy(variable, address.rpartition("@")[2].rpartition("://")[2].rstrip("/"))
    return None


def _in_an_exempted_network(host: str) -> bool:
    """Tell whether NO_PROXY names a network that an address lies in; httpx knows names and addresses only."""
    return any(_lies_in(host, item.strip()) for item in getproxies().get("no", "").split(",") if "/" in item)


def _lies_in(host: str, network: str) -> bool:
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:  # a name, or no network
        return False


@lru_cache(8)
def _context(_file: str | None, _folder: str | None, _client: str) -> ssl.SSLContext:
    """Return what trusts the certificates that these variables of the environment name, or the usual ones.

    One for each kind of client: httpcore writes the protocols that it offers into it.
    """
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise StoreError(f"no trusted certificates: {error}; see SSL_CERT_FILE and SSL_CERT_DIR") from error


# Failures


def _translated(links: list[BaseException], proxy: _Proxy | None, token: Secret) -> TransportError:
    error, text = links[0], _said(links, token)
    if certificate := _first(links, ssl.SSLCertVerificationError):
        trusted = " or ".join(f"${name}" for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name))
        advice = f"trusted is what {trusted} names" if trusted else "a company's own CA is named by SSL_CERT_FILE"
        return TransportError(
            f"the service's certificate is not trusted: {certificate}; {advice}", reached=False, again=False
        )
    if isinstance(error, httpx.ConnectError) and ("WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text):
        return TransportError(f"no TLS is spoken there, so try http://: {text}", reached=False, again=False)
    if isinstance(error, httpx.ProxyError):
        return _refused_by_proxy(text, proxy)
    if isinstance(error, httpx.ConnectError) and proxy is not None and not _first(links, ssl.SSLError):
        return TransportError(f"{proxy} cannot be reached: {text}", reached=False, again=False)
    again = not isinstance(error, _MISTAKES)
    reached = again and not isinstance(error, _NOT_REACHED)
    return TransportError(text, reached=reached, again=again)


def _refused_by_proxy(text: str, proxy: _Proxy | None) -> TransportError:
    if proxy is not None and str(_NEEDS_LOGIN) in text:
        return TransportError(proxy.wants_login(), reached=False, again=False)
    passes = bool(
        re.search(r"ProxyError: (408|429|5\d\d)\b|unreachable|connection refused|TTL expired", text, re.IGNORECASE)
    )
    return TransportError(f"{proxy} refused the connection: {text}", reached=False, again=passes)


def _first(links: list[BaseException], kind: type[BaseException]) -> BaseException | None:
    return next((link for link in links if isinstance(link, kind)), None)


def _said(links: list[BaseException], token: Secret) -> str:
    """Return what went wrong: the library's name for it, and the system's words where it has some."""
    system = [link for link in links if isinstance(link, OSError) and link.errno is not None]
    said = printable(token.hide(str(system[-1] if system else links[0])))
    return f"{type(links[0]).__name__}: {said}" if said else type(links[0]).__name__


def _bare(error: Exception, token: Secret) -> Exception:
    """Return an error anew: without its frames and its request, which hold the token, and what an answer echoed."""
    said = printable(token.hide(str(error)))
    return type(error)(said) if isinstance(error, httpx.HTTPError) else RuntimeError(f"{type(error).__name__}: {said}")


class _Hiding(logging.Filter):
    """Keeps tokens out of what the HTTP libraries log: headers as they are sent, and what services echo."""

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
