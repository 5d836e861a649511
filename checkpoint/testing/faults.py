"""What a scripted request gets instead of the API's own answer: errors, cut connections, bytes that drip."""
# ruff: noqa: D102 - what a fault does when it is called, its class says

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Exchange:
    """A request that a fault answers, its body already read, and the connection that it came by."""

    def __init__(
        self, app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send, transport: asyncio.Transport
    ) -> None:
        self._app = app
        self._scope = scope
        self._body = body
        self._receive = receive
        self._send = send
        self._transport = transport
        self.after: Callable[[], None] | None = None
        """Called once the API has done its work."""

    async def apply(self) -> Answer:
        """Let the API do its work, and return its answer unsent."""
        messages: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": self._body, "more_body": False}

        async def send(message: Message) -> None:
            messages.append(message)

        await self._app(self._scope, receive, send)
        if self.after is not None:
            await self.run(self.after)
        start, *parts = messages
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], b"".join(part.get("body", b"") for part in parts), headers)

    async def send(self, answer: Answer) -> None:
        """Send an answer, and keep the connection."""
        body = answer.content()
        headers = [(name.encode(), value.encode()) for name, value in answer.fields().items()]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def write(self, data: bytes, interval: float = 0.0) -> None:
        """Write bytes to the connection as they are, with an interval one at a time and so many seconds apart."""
        if not interval:
            self._transport.write(data)
            return
        for byte in data:
            if self._transport.is_closing():
                break
            self._transport.write(bytes([byte]))
            await asyncio.sleep(interval)

    async def end(self, how: End) -> None:
        """End the connection, or wait until the client does."""
        if how == "reset":
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        elif how == "close":
            self._transport.close()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def run(self, hook: Callable[[], None]) -> None:
        """Call a function that may block, or use the server itself."""
        await asyncio.get_running_loop().run_in_executor(None, hook)


End: TypeAlias = Literal["close", "reset", "hang"]
"""How a connection ends: by FIN, by RST, or not before the client goes away."""


Fault: TypeAlias = "Callable[[Exchange], Awaitable[None]]"
"""What becomes of a request: one of the classes below, or any coroutine function."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The API's own answer."""

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(await exchange.apply())


@dataclass(frozen=True, slots=True)
class Answer:
    """Another answer than the API's; what was asked for is not done, unless `applied`."""

    status: int = 200
    body: Any = None
    """Bytes or text as they are, anything else as JSON. None: the API's own form of an error, nothing below 400."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    applied: bool = False

    async def __call__(self, exchange: Exchange) -> None:
        if self.applied:
            await exchange.apply()
        await exchange.send(self)

    def content(self) -> bytes:
        """Return the body's bytes."""
        if isinstance(self.body, bytes):
            return self.body
        if isinstance(self.body, str):
            return self.body.encode()
        if self.body is not None:
            return orjson.dumps(self.body)
        if self.status < HTTPStatus.BAD_REQUEST:
            return b""
        status = HTTPStatus(self.status)
        return orjson.dumps({"statusCode": status, "error": status.phrase, "message": status.description})

    def fields(self) -> dict[str, str]:
        """Return the headers, those that follow from the body included."""
        fields: dict[str, str] = {}
        if self.status != HTTPStatus.NO_CONTENT:
            fields["content-length"] = str(len(self.content()))
        if not isinstance(self.body, bytes):
            fields["content-type"] = "text/plain; charset=utf-8" if isinstance(self.body, str) else "application/json"
        return {**fields, **{name.lower(): value for name, value in self.headers.items()}}

    def head(self, *, chunked: bool = False) -> bytes:
        """Return the status line and the headers as they go over the wire."""
        fields = {**self.fields(), "connection": "close"}
        if chunked:
            del fields["content-length"]
            fields["transfer-encoding"] = "chunked"
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True, slots=True)
class Drop:
    """No answer: the connection is closed."""

    applied: bool = False
    """What was asked for is done before."""
    reset: bool = False
    """By RST; else by FIN."""
    late: float | None = None
    """What was asked for is done so many seconds after; None: not after."""

    async def __call__(self, exchange: Exchange) -> None:
        if self.applied:
            await exchange.apply()
        await exchange.end("reset" if self.reset else "close")
        if self.late is not None:
            await asyncio.sleep(self.late)
            await exchange.apply()


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer, and the connection stays open until the client goes away."""

    applied: bool = False

    async def __call__(self, exchange: Exchange) -> None:
        if self.applied:
            await exchange.apply()
        await exchange.end("hang")


@dataclass(frozen=True, slots=True)
class Raw:
    """These bytes instead of an answer."""

    data: bytes
    then: End = "close"
    applied: bool = False

    async def __call__(self, exchange: Exchange) -> None:
        if self.applied:
            await exchange.apply()
        await exchange.write(self.data)
        await exchange.end(self.then)


@dataclass(frozen=True, slots=True)
class Cut:
    """The API's own answer, announced in full and cut off after so many bytes of its body."""

    length: int = 0
    chunked: bool = False
    """Announced as a chunk's size; else as Content-Length."""
    then: End = "close"

    async def __call__(self, exchange: Exchange) -> None:
        answer = await exchange.apply()
        body = answer.content()
        size = b"%x\r\n" % len(body) if self.chunked else b""
        await exchange.write(answer.head(chunked=self.chunked) + size + body[: self.length])
        await exchange.end(self.then)


@dataclass(frozen=True, slots=True)
class Drip:
    """The API's own answer a byte at a time, so many seconds apart."""

    interval: float
    part: Literal["head", "body"] = "body"
    """From where on: the status line, or the body."""

    async def __call__(self, exchange: Exchange) -> None:
        answer = await exchange.apply()
        await exchange.write(answer.head(), self.interval if self.part == "head" else 0)
        await exchange.write(answer.content(), self.interval)
        await exchange.end("close")


@dataclass(frozen=True, slots=True)
class Delay:
    """Seconds pass before anything is done."""

    seconds: float
    then: Fault = Pass()

    async def __call__(self, exchange: Exchange) -> None:
        await asyncio.sleep(self.seconds)
        await self.then(exchange)


@dataclass(frozen=True, slots=True)
class Hook:
    """Calls functions before the request is applied, and between that and the answer: other writers, say."""

    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    then: Fault = Pass()

    async def __call__(self, exchange: Exchange) -> None:
        if self.before is not None:
            await exchange.run(self.before)
        exchange.after = self.after
        await self.then(exchange)
