"""Serve the state API on a loopback port of this process, with scripted faults."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import formatdate
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import orjson

from checkpoint.stores.memory import MemoryStore
from checkpoint.testing.faults import Exchange, Fault, Pass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import Message, Receive, Scope, Send
    from typing_extensions import Self

    from checkpoint.server.vendor import Switches
    from checkpoint.stores.base import Store


@dataclass(frozen=True, slots=True)
class Call:
    """One request as the server received it."""

    method: str
    path: str
    """The path as it was sent, percent-encoded, without the query."""
    query: str
    """The query as it was sent, without the `?`."""
    headers: Mapping[str, str]
    """The headers; names are in lower case. Of a repeated header the last one."""
    body: bytes = b""
    """The body, as far as it was read."""
    status: int | None = None
    """The status of the answer. None: there is no answer yet, or none at all, or raw bytes were sent."""

    @property
    def state_key(self) -> str | None:
        """The namespace that the query names."""
        return parse_qs(self.query).get("state_key", [None])[0]

    @property
    def key(self) -> str | None:
        """The key that the path or the body names; None if there is none, as for a list."""
        _, _, *rest = self.path.split("/")
        if rest:
            return unquote(rest[0])
        try:
            return str(orjson.loads(self.body)["key"])
        except (ValueError, KeyError, TypeError):
            return None


class ApiServer:
    """A server of the state API on a loopback port, in a daemon thread of this process; a context manager.

        with ApiServer(page_size=2) as server:
            store = TrutoStore(server.url, server.token)
            server.script(Answer(429, headers={"Retry-After": "1"}), Drop(applied=True), method="PATCH")

    It serves both APIs of `checkpoint serve`. `switches` are fields of `checkpoint.server.Switches`; `set` changes them
    later. Port 0 takes a free port. With a certificate it serves TLS. The default store is a `MemoryStore`; a store
    that you pass is not closed.

    A test may freeze time with freezegun after the server was made. Delays and the rate limit use the real clock; the
    `Date` header and the stored times use the frozen one.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        token: str = "test-token",  # noqa: S107 - guards nothing
        port: int = 0,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        **switches: Any,
    ) -> None:
        from checkpoint.server import Switches, create_app  # the contract needs no web framework

        switches.setdefault("in_threads", store is not None)
        self.store: Store = store if store is not None else MemoryStore()
        self.token = token
        self.url: str = ""
        """The base URL; empty before the server is entered."""
        self._app = create_app(self.store, token, Switches(**switches))
        self._port = port
        self._certfile = ssl_certfile
        self._keyfile = ssl_keyfile
        self._transports: dict[Any, asyncio.Transport] = {}
        self._recorded: list[_Recorded] = []
        self._scripts: list[_Script] = []

    def __enter__(self) -> Self:
        import uvicorn
        from uvicorn.server import ServerState

        protocol, self._state = _recording_protocol(self._transports), ServerState()
        config = uvicorn.Config(
            self._serve,
            http=protocol,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=60,
            ssl_certfile=self._certfile,
            ssl_keyfile=self._keyfile,
        )
        config.load()
        self._loop = _RealTimeLoop()
        self._thread = Thread(target=self._loop.run_forever, name="ApiServer", daemon=True)
        self._thread.start()

        def connected() -> Any:
            return protocol(config, self._state, {})

        self._listening = self._in_loop(
            self._loop.create_server(connected, "127.0.0.1", self._port, ssl=config.ssl, backlog=1024)
        )
        port = self._listening.sockets[0].getsockname()[1]
        self.url = f"{'https' if config.ssl else 'http'}://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._in_loop(self._close())
        self._app.state.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def options(self) -> Switches:
        """The current switches; assign to change them from the next request on."""
        options: Switches = self._app.state.api.options
        return options

    @options.setter
    def options(self, options: Switches) -> None:
        self._app.state.api.options = options

    def set(self, **switches: Any) -> None:
        """Change some switches from the next request on."""
        self.options = replace(self.options, **switches)

    @property
    def requests(self) -> list[Call]:
        """A copy of the list of requests so far, in the order of their arrival."""
        return [recorded.call() for recorded in self._recorded]

    @property
    def pending(self) -> int:
        """The number of scripted faults that no request has taken yet."""
        return sum(len(script.faults) for script in self._scripts)

    def clear(self) -> None:
        """Forget the requests so far and the scripted faults."""
        self._recorded = []
        self._scripts = []

    def script(
        self,
        *faults: Fault | None,
        method: str | None = None,
        key: str | None = None,
        match: Callable[[Call], bool] | None = None,
        forever: bool = False,
    ) -> None:
        """Give each matching request the next of these faults; None lets a request through.

        A request must match all of what is given: the method, the key (in the path, or in the body of a POST), and the
        function `match`. If several scripts match, the earliest one is used. With `forever` the last fault stays.
        """
        if faults:
            self._scripts.append(_Script(deque(faults), method, key, match, forever))

    def _in_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _close(self) -> None:
        self._listening.close()
        for _ in range(10):  # turns of the loop, so that connections accepted last get their transport
            await asyncio.sleep(0)
        for transport in list(self._transports.values()):
            transport.abort()
        while self._transports:  # noqa: ASYNC110 - a turn or two of the loop
            await asyncio.sleep(0)
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()  # hooks of faults

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(asyncio.CancelledError):  # the server is being closed: the connection has gone already
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        recorded = _Recorded(scope)
        self._recorded.append(recorded)
        receive, send = recorded.receiving(receive), recorded.sending(send)
        transport = self._transports.get(scope["client"])  # None: the client has gone already
        if not self._scripts or transport is None:
            await self._app(scope, receive, send)
            return
        body = await _body_of(receive)
        fault = self._next_fault(recorded.call()) or Pass()
        await fault(Exchange(self._app, scope, body, receive, send, transport))

    def _next_fault(self, call: Call) -> Fault | None:
        for script in self._scripts:
            if script.matches(call):
                last = len(script.faults) == 1
                if last and not script.forever:
                    self._scripts.remove(script)
                return script.faults[0] if last else script.faults.popleft()
        return None


class _Recorded:
    """A request while it is under way."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._body = bytearray()
        self._status: int | None = None

    def call(self) -> Call:
        scope = self._scope
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        return Call(scope["method"], path, query, headers, bytes(self._body), self._status)

    def receiving(self, receive: Receive) -> Receive:
        async def received() -> Message:
            message = await receive()
            self._body += message.get("body", b"")
            return message

        return received

    def sending(self, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]  # set before it is sent, so that the client does not know it earlier
                if b"date" not in dict(message["headers"]):
                    date = (b"date", formatdate(usegmt=True).encode())
                    message = {**message, "headers": [*message["headers"], date]}
            await send(message)

        return sent


@dataclass(slots=True)
class _Script:
    faults: deque[Fault | None]
    method: str | None
    key: str | None
    match: Callable[[Call], bool] | None
    forever: bool

    def matches(self, call: Call) -> bool:
        return (
            self.method in {None, call.method}
            and (self.key is None or self.key == call.key)
            and (self.match is None or self.match(call))
        )


class _RealTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that freezegun does not stop: it replaces functions in modules, not in classes."""

    _monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        return self._monotonic()


def _recording_protocol(transports: dict[Any, asyncio.Transport]) -> type[Any]:
    """Return uvicorn's protocol, extended: it keeps the transport of each open connection by the address of its peer.

    A connection whose peer has already gone has no address. It is kept too, so that it can be closed.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Recording(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transports[self.client or id(self)] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if transports.get(self.client or id(self)) is self.transport:
                del transports[self.client or id(self)]

    return Recording


async def _body_of(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)
