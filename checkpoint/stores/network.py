"""What lies beneath httpx: names, sockets and the deadline over everything that is done with them.

A network backend as httpcore documents it, over httpcore's own. httpx limits each single read or write; a service that
sends a byte now and then, or a name with many silent addresses, never meets such a limit.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from traceback import walk_tb
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast
from weakref import WeakSet

if TYPE_CHECKING:
    import httpcore

    from checkpoint.stores.retrying import Deadline, Operation
else:
    try:
        import httpcore2 as httpcore
    except ImportError:
        import httpcore

_CHUNK = 64 * 1024  # bytes written at once: one call may wait for every packet anew
_LEAST = 0.001  # seconds of a wait: 0 would mean not to wait at all, and so another error

_ADDRESS = re.compile(r"[\d.]+|[\da-fA-F.]*:[\da-fA-F:.]*(%.*)?")

Addresses: TypeAlias = list[Any]
"""What `socket.getaddrinfo` returns."""


class Limit(NamedTuple):
    """What a thread's request may take: its deadline, seconds for each step, and who is told of a long wait."""

    operation: Operation
    deadline: Deadline
    timeout: float

    def left(self) -> float:
        """Return the seconds for the next step."""
        return max(_LEAST, min(self.timeout, self.deadline.left()))

    def quiet(self) -> float:
        """Return the seconds of the next step that may pass untold."""
        return max(_LEAST, self.operation.quiet(self.deadline))

    def tell(self) -> None:
        """Say that the answer takes its time."""
        self.operation.tell(self.deadline, "no answer yet")


class Network(httpcore.NetworkBackend):
    """Opens the sockets of one client, and ends everything on them by the deadline of the thread that waits."""

    def __init__(self) -> None:
        self._threads = threading.local()
        self._streams: WeakSet[_Stream] = WeakSet()

    def limit(self, limit: Limit) -> None:
        """Set what this thread's next request may take."""
        self._threads.limit = limit

    def now(self) -> Limit:
        """Return what this thread's request may take."""
        limit: Limit = self._threads.limit
        return limit

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # the deadline stands for all timeouts
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that answers, all of them within one step's time."""
        limit = self.now()
        addresses = self._resolved(host, port, limit)
        share = limit.left() / len(addresses)
        outer, failure = sys.exc_info()[1], cast("Exception", httpcore.ConnectError(f"{host} has no address"))
        for address in addresses:
            try:
                stream = httpcore.SyncBackend().connect_tcp(
                    address, port, min(share, limit.left()), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:  # noqa: PERF203 - the next may answer
                if interruption(behind(error, outer)) is not None:
                    raise
                failure = error
            else:
                return self.adopt(stream)
        raise failure

    def adopt(self, stream: httpcore.NetworkStream) -> httpcore.NetworkStream:
        """Put a stream under the deadline."""
        adopted = _Stream(stream, self)
        self._streams.add(adopted)
        return adopted

    def close(self) -> None:
        """Close every socket, whoever waits at it."""
        for stream in list(self._streams):
            with suppress(OSError):
                stream.close()

    def _resolved(self, host: str, port: int, limit: Limit) -> list[str]:
        answer = resolve(host, port)
        done, _ = wait([answer], limit.left())
        if not done:
            raise httpcore.ConnectTimeout(f"no address of {host} in {limit.left():.0f} s")
        error = answer.exception()
        if isinstance(error, OSError | UnicodeError):
            raise httpcore.ConnectError(str(error))
        return list(dict.fromkeys(str(address[4][0]) for address in answer.result()))


class _Stream(httpcore.NetworkStream):
    """A socket under the deadline of the thread that uses it."""

    def __init__(self, stream: httpcore.NetworkStream, network: Network) -> None:
        self._stream = stream
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        limit = self._network.now()
        if limit.quiet() < limit.left():
            outer = sys.exc_info()[1]
            try:
                return self._stream.read(max_bytes, limit.quiet())
            except httpcore.ReadTimeout as error:
                if interruption(behind(error, outer)) is not None:
                    raise
                limit.tell()
        return self._stream.read(max_bytes, limit.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _CHUNK):
            self._stream.write(buffer[start : start + _CHUNK], self._network.now().left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        limit = self._network.now()
        return self._network.adopt(self._stream.start_tls(ssl_context, server_hostname, limit.left()))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._stream.get_extra_info(info):
            return self._gone()  # what can be read may be no more than tickets for later TLS sessions
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
    """Look a name up, in a thread that nobody has to wait for; an address needs none.

    `socket.getaddrinfo` cannot be told how long it may take.
    """
    answer: Future[Addresses] = Future()
    answer.set_running_or_notify_cancel()  # whoever no longer waits cannot cancel it

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
    """An event loop whose time a test cannot freeze, and that nobody waits for where a name server is silent."""

    _monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        """Return the seconds of the real monotonic clock."""
        return self._monotonic()

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Addresses:
        """Look a name up; see `resolve`."""
        return await asyncio.wrap_future(resolve(host.decode() if isinstance(host, bytes) else host, port), loop=self)


def behind(error: BaseException, outer: BaseException | None) -> list[BaseException]:
    """Return an error and those that it was made of, up to the one that was being handled before."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link is not outer:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def interruption(links: list[BaseException]) -> BaseException | None:
    """Return what a signal handler raised, where an error is no more than what a library made of that, else None.

    httpcore takes every `TimeoutError` or `OSError` for one of its socket's; what a handler raised went through it.
    """
    handlers = {code for number in signal.valid_signals() if (code := _code_of(signal.getsignal(number)))}
    for link in links:
        if any(frame.f_code in handlers for frame, _ in walk_tb(link.__traceback__)):
            return link
    return None


def _code_of(handler: object) -> CodeType | None:
    """Return the code of a function, a method, a partial of one, or what a callable object's class has."""
    while isinstance(handler, partial):
        handler = handler.func  # pyright: ignore[reportUnknownMemberType] - of whatever type
    for function in (getattr(handler, "__func__", handler), getattr(handler.__class__, "__call__", None)):  # noqa: B004 - its code is wanted
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            return code
    return None


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
    """Tell whether an error was raised by one of the libraries that httpx is made of; they let some out."""
    modules = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    return bool(modules) and modules[-1] in _LIBRARIES
