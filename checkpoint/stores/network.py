"""The network layer below httpx: name resolution, sockets, and one deadline for both.

It is a network backend as documented by httpcore, and wraps httpcore's own. httpx limits only each single read or
write: a service that sends a byte now and then, or a name with many silent addresses, never reaches that limit.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from checkpoint.stores.retrying import Telling

if TYPE_CHECKING:
    import httpcore

    from checkpoint.stores.retrying import Deadline, Operation
else:
    try:
        import httpcore2 as httpcore
    except ImportError:
        import httpcore

_CHUNK = 16 * 1024  # bytes per write, under one timeout; httpcore applies the timeout again to each further part
_NEXT_ADDRESS = 0.25  # seconds after which the next address of a host is tried in parallel
_LEAST = 0.001  # shortest wait in seconds: 0 means non-blocking, and raises another error

_ADDRESS = re.compile(r"[\d.]+|[\da-fA-F.]*:[\da-fA-F:.]*(%.*)?")

KEPT = 60.0
"""Seconds after which an idle connection is not reused: services close it after about that time."""

Addresses: TypeAlias = list[Any]
"""What `socket.getaddrinfo` returns."""


class Limit(NamedTuple):
    """The limits of a thread's request: its deadline, seconds per step, and the operation that logs a long wait."""

    operation: Operation
    deadline: Deadline
    timeout: float

    def left(self) -> float:
        """Return the seconds for the next step; nearly 0 after the deadline, see `check`."""
        return max(_LEAST, min(self.timeout, self.deadline.left()))

    def check(self, error: type[Exception]) -> None:
        """Raise an error after the deadline: data in small pieces never reaches a step's timeout."""
        if self.deadline.left() <= 0:
            raise error("timed out")

    def quiet(self) -> float:
        """Return the seconds of the next step before a long wait is logged."""
        return max(_LEAST, self.operation.quiet(self.deadline))

    def tell(self) -> None:
        """Log that the response takes long."""
        self.operation.tell(self.deadline, "no answer yet")

    def telling(self, host: str | None) -> Telling:
        """Return a context manager that logs when connecting to a host takes long."""
        return Telling(self.operation, self.deadline, f"{host} cannot be reached yet")


class Network(httpcore.NetworkBackend):
    """Opens the socket of one connection, and applies the deadline of the request that uses it."""

    limit: Limit
    """The limits of the request that uses the connection."""

    def __init__(self) -> None:
        self._stream: _Stream | None = None

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # the deadline replaces all timeouts
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that answers; all addresses share one step's time."""
        with self.limit.telling(host):
            return self._connected(host, port, local_address, socket_options)

    def _connected(
        self, host: str, port: int, local_address: str | None, socket_options: Any
    ) -> httpcore.NetworkStream:
        addresses = self._resolved(host, port)
        share = self.limit.left() / len(addresses)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                stream = httpcore.SyncBackend().connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:  # noqa: PERF203 - the next may answer
                failure = error
            else:
                return self.adopt(stream)
        raise failure

    def adopt(self, stream: httpcore.NetworkStream) -> httpcore.NetworkStream:
        """Put a stream under the deadline."""
        self._stream = _Stream(stream, self)
        return self._stream

    def is_readable(self) -> bool:
        """Whether the service has closed the connection, which is idle, or has sent what nobody asked for."""
        return self._stream is not None and bool(self._stream.get_extra_info("is_readable"))

    def close(self) -> None:
        """Close the socket, even while another thread waits on it."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()

    def _resolved(self, host: str, port: int) -> list[str]:
        answer, seconds = resolve(host, port), self.limit.left()
        if not wait([answer], seconds).done:
            raise httpcore.ConnectTimeout(f"the name {host} was not resolved within {seconds:.0f} s")
        error = answer.exception()
        if isinstance(error, OSError | UnicodeError):
            raise httpcore.ConnectError(str(error))
        return list(dict.fromkeys(str(address[4][0]) for address in answer.result()))


class Single:
    """The connection of a transport that has only one; a pool of one takes a seventh of a request's time."""

    def __init__(self, network: Network, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._network = network
        self._host, self._port, self._context = host, port, context
        self._origin = httpcore.Origin(b"http" if context is None else b"https", host.encode(), port)
        self._connection: httpcore.HTTP11Connection | None = None

    def open(self) -> httpcore.HTTP11Connection:
        """Return the connection, which is opened if it is not, or no longer."""
        connection, network = self._connection, self._network
        if connection is not None:
            if not (connection.is_closed() or connection.has_expired() or network.is_readable()):
                return connection
            connection.close()
        stream = network.connect_tcp(self._host, self._port)
        if self._context is not None:
            self._context.set_alpn_protocols(["http/1.1"])
            stream = stream.start_tls(self._context, self._host)
        self._connection = httpcore.HTTP11Connection(self._origin, stream, KEPT)
        return self._connection

    def open_ahead(self) -> None:
        """Open it before its first request; if that fails, the request will try again, and tell why."""
        with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
            self.open()

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; the caller reads the response to its end, or closes the connection."""
        return self.open().handle_request(request)


class HandshakeFailed(httpcore.ConnectError):
    """The TLS handshake failed, with the service or with a proxy."""

    def __init__(self, text: str, host: str | None) -> None:
        super().__init__(text)
        self.host = host


class _Stream(httpcore.NetworkStream):
    """A socket under the deadline of the request that uses it.

    Headers and body of a request go in one packet: writes are buffered, and sent before a read.
    """

    def __init__(self, stream: httpcore.NetworkStream, network: Network) -> None:
        self._stream = stream
        self._network = network
        self._unsent = bytearray()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with suppress(httpcore.WriteError):  # the service may have answered before it read everything
            self._flush()
        limit = self._network.limit
        limit.check(httpcore.ReadTimeout)
        if limit.quiet() < limit.left():
            try:
                return self._stream.read(max_bytes, limit.quiet())
            except httpcore.ReadTimeout:
                limit.tell()
        return self._stream.read(max_bytes, limit.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._unsent += buffer
        if len(self._unsent) > _CHUNK:
            self._flush()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, bytearray()
        limit = self._network.limit
        for start in range(0, len(unsent), _CHUNK):
            limit.check(httpcore.WriteTimeout)
            self._stream.write(bytes(unsent[start : start + _CHUNK]), limit.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            with self._network.limit.telling(server_hostname):
                stream = self._stream.start_tls(ssl_context, server_hostname, self._network.limit.left())
        except httpcore.ConnectError as error:
            raise HandshakeFailed(str(error), server_hostname) from error
        return self._network.adopt(stream)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._stream.get_extra_info(info):
            return self._gone()  # readable data may be only TLS session tickets
        return self._stream.get_extra_info(info)

    def _gone(self) -> bool:
        connection = self._stream.get_extra_info("socket")
        try:
            connection.settimeout(0)
            connection.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            pass
        return True


def resolve(host: str, port: int) -> Future[Addresses]:
    """Resolve a name, in a thread that can be abandoned; an address needs no thread.

    `socket.getaddrinfo` has no timeout.
    """
    host = host.replace("%25", "%")  # before the zone of an IPv6 address (RFC 6874)
    answer: Future[Addresses] = Future()
    answer.set_running_or_notify_cancel()  # a caller that stops waiting cannot cancel it

    def look_up() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
            answer.set_exception(error)

    if _ADDRESS.fullmatch(host):
        look_up()
    else:
        threading.Thread(target=look_up, name="checkpoint-dns", daemon=True).start()
    return answer


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock a test cannot freeze, and that does not wait for a silent name server at its end."""

    _monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        """Return the seconds of the real monotonic clock."""
        return self._monotonic()

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Addresses:
        """Resolve a name; see `resolve`."""
        return await asyncio.wrap_future(resolve(host.decode() if isinstance(host, bytes) else host, port), loop=self)


class LoopNetwork(httpcore.AsyncNetworkBackend):
    """Opens sockets on an event loop: with httpcore's own a request takes half as much time again."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        """The socket opened last; with TLS, after the handshake."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # unused
        socket_options: Any = None,  # unused
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of a host that answers."""
        loop = asyncio.get_running_loop()
        connecting = loop.create_task(
            loop.create_connection(lambda: Wire(self), host, port, happy_eyeballs_delay=_NEXT_ADDRESS)
        )
        try:
            if not await _is_done(connecting, timeout):
                raise httpcore.ConnectTimeout(f"{host} does not answer")
            _, wire = connecting.result()
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        finally:
            connecting.cancel()
        return wire


class Wire(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """A socket on an event loop.

    All writes of one iteration of the loop go in one packet. `_came` holds data that was received but not read,
    `_unsent` data written in this iteration. `_reader` is the future of a read that waits for data, `_writer` that of a
    write that waits for the socket; None without one.
    """

    def __init__(self, network: LoopNetwork) -> None:
        self.open: bool = False
        """Whether data can still be sent and received."""
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._came, self._unsent = bytearray(), bytearray()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Buffer received data."""
        self._came += data
        _wake(self._reader)

    def eof_received(self) -> None:
        """Handle the end of the received data."""
        self.open = False
        _wake(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        self._error, self.open = exc, False
        _wake(self._reader)
        self.resume_writing()

    def pause_writing(self) -> None:
        """Make writers wait."""
        self._writer = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let writers continue."""
        writer, self._writer = self._writer, None
        _wake(writer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return received data; empty at the end."""
        if not self._came and self.open:
            self._reader = self._loop.create_future()
            try:
                if not await _is_done(self._reader, timeout):
                    raise httpcore.ReadTimeout
            finally:
                self._reader = None
        if not self._came and self._error is not None:
            raise httpcore.ReadError(str(self._error)) from self._error
        data = bytes(self._came[:max_bytes])
        del self._came[:max_bytes]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send at the end of this iteration of the loop."""
        if not self.open:
            raise httpcore.WriteError("the connection was closed")
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += buffer
        if self._writer is not None and not await _is_done(self._writer, timeout):
            raise httpcore.WriteTimeout

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, bytearray()
        self._transport.write(unsent)

    async def aclose(self) -> None:
        """Close without waiting for the peer's TLS closing message."""
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Do the TLS handshake, and continue encrypted."""
        wire = Wire(self._network)
        try:
            transport = await self._loop.start_tls(
                self._transport, wire, ssl_context, server_hostname=server_hostname, ssl_handshake_timeout=timeout
            )
        except OSError as error:
            self._transport.abort()
            raise HandshakeFailed(str(error), server_hostname) from error
        wire.connection_made(cast("asyncio.Transport", transport))
        self._network.wire = wire
        return wire

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks for: whether an idle connection was closed, and the TLS object."""
        if info == "is_readable":
            return bool(self._came) or not self.open
        return self._transport.get_extra_info(info)


async def _is_done(future: asyncio.Future[Any], timeout: float | None) -> bool:
    """Wait for a future without cancelling it, and return whether it is done.

    `asyncio.wait_for` of Python 3.11 and before loses a cancellation that arrives just as the future is done: the
    deadline would never end a request whose response trickles in.
    """
    done, _ = await asyncio.wait([future], timeout=timeout)
    return bool(done)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def links_of(error: BaseException, outer: BaseException | None) -> list[BaseException]:
    """Return an error and its chain of causes and contexts, up to the error that was being handled before."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link is not outer:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


_LIBRARIES = {
    "anyio",
    "h11",
    "h2",
    "hpack",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "hyperframe",
    "idna",
    "socksio",
}


def is_a_librarys(error: BaseException) -> bool:
    """Whether an error comes from one of the libraries below httpx; some escape httpx's own errors."""
    modules = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    return bool(modules) and modules[-1] in _LIBRARIES
