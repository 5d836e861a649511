"""Faults to script: what a request gets instead of the API's own answer, such as errors and cut connections."""
# ruff: noqa: D102 - the class of a fault says what calling it does

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
    """A request that a fault answers, with its body already read, and its connection."""

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
        """Called after the API has applied the request."""

    async def apply(self) -> Answer:
        """Let the API apply the request, and return its answer without sending it."""
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
        """Send an answer, and keep the connection open."""
        body = answer.content()
        headers = [(name.encode(), value.encode()) for name, value in answer.fields().items()]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def write(self, data: bytes, interval: float = 0.0) -> None:
        """Write bytes to the connection; with an interval, one byte at a time, so many seconds apart."""
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
        """Call a function that may block, or that itself sends requests to the server."""
        await asyncio.get_running_loop().run_in_executor(None, hook)


End: TypeAlias = Literal["close", "reset", "hang"]
"""How a connection ends: with FIN, with RST, or only when the client closes it."""


Fault: TypeAlias = "Callable[[Exchange], Awaitable[None]]"
"""What happens to a request: an object of one of the classes below, or a coroutine function."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Gives the API's own answer."""

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(await exchange.apply())


@dataclass(frozen=True, slots=True)
class Answer:
    """Gives another answer than the API; the request is applied only with `applied`."""

    status: int = 200
    body: Any = None
    """Bytes or text, sent as they are; anything else is sent as JSON. None: from status 400 on an error of the API."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    applied: bool = False
    """Apply the request first."""

    async def __call__(self, exchange: Exchange) -> None:
        if self.applied:
            await exchange.apply()
        await exchange.send(self)

    def content(self) -> bytes:
        """Return the bytes of the body."""
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
        """Return the headers, with those that follow from the body."""
        fields: dict[str, str] = {}
        if self.status != HTTPStatus.NO_CONTENT:
            fields["content-length"] = str(len(self.content()))
        if not isinstance(self.body, bytes):
            fields["content-type"] = "text/plain; charset=utf-8" if isinstance(self.body, str) else "application/json"
        return {**fields, **{name.lower(): value for name, value in self.headers.items()}}

    def head(self, *, chunked: bool = False) -> bytes:
        """Return the status line and the headers as bytes to send."""
        fields = {**self.fields(), "connection": "close"}
        if chunked:
            del fields["content-length"]
            fields["transfer-encoding"] = "chunked"
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True, slots=True)
class Drop:
    """Closes the connection without an answer."""

    applied: bool = False
    """Apply the request first."""
    reset: bool = False
    """Close with RST; else with FIN."""
    late: float | None = None
    """Apply the request so many seconds after closing. None: do not."""

    async def __call__(self, exchange: Exchange) -> None:
        if self.applied:
            await exchange.apply()
        await exchange.end("reset" if self.reset else "close")
        if self.late is not None:
            await asyncio.sleep(self.late)
            await exchange.apply()


@dataclass(frozen=True, slots=True)
class Hang:
    """Gives no answer, and keeps the connection open until the client closes it."""

    applied: bool = False
    """Apply the request first."""

    async def __call__(self, exchange: Exchange) -> None:
        if self.applied:
            await exchange.apply()
        await exchange.end("hang")


@dataclass(frozen=True, slots=True)
class Raw:
    """Sends these bytes instead of an answer."""

    data: bytes
    then: End = "close"
    """How the connection ends."""
    applied: bool = False
    """Apply the request first."""

    async def __call__(self, exchange: Exchange) -> None:
        if self.applied:
            await exchange.apply()
        await exchange.write(self.data)
        await exchange.end(self.then)


@dataclass(frozen=True, slots=True)
class Cut:
    """Sends the head of the API's own answer, and only the first bytes of its body."""

    length: int = 0
    """How many bytes of the body are sent."""
    chunked: bool = False
    """Announce the full length as the size of a chunk; else as Content-Length."""
    then: End = "close"
    """How the connection ends."""

    async def __call__(self, exchange: Exchange) -> None:
        answer = await exchange.apply()
        body = answer.content()
        size = b"%x\r\n" % len(body) if self.chunked else b""
        await exchange.write(answer.head(chunked=self.chunked) + size + body[: self.length])
        await exchange.end(self.then)


@dataclass(frozen=True, slots=True)
class Drip:
    """Sends the API's own answer one byte at a time."""

    interval: float
    """Seconds between two bytes."""
    part: Literal["head", "body"] = "body"
    """Where this begins: at the status line, or at the body."""

    async def __call__(self, exchange: Exchange) -> None:
        answer = await exchange.apply()
        await exchange.write(answer.head(), self.interval if self.part == "head" else 0)
        await exchange.write(answer.content(), self.interval)
        await exchange.end("close")


@dataclass(frozen=True, slots=True)
class Delay:
    """Waits before the request is applied."""

    seconds: float
    then: Fault = Pass()
    """What happens after the wait."""

    async def __call__(self, exchange: Exchange) -> None:
        await asyncio.sleep(self.seconds)
        await self.then(exchange)


@dataclass(frozen=True, slots=True)
class Hook:
    """Calls functions around the request, for example to write as another client."""

    before: Callable[[], None] | None = None
    """Called before the request is applied."""
    after: Callable[[], None] | None = None
    """Called after the request is applied, and before the answer is sent."""
    then: Fault = Pass()
    """What happens to the request."""

    async def __call__(self, exchange: Exchange) -> None:
        if self.before is not None:
            await exchange.run(self.before)
        exchange.after = self.after
        await self.then(exchange)
