"""Limits of a connection: seconds for the head and the body of a request, and for reading an answer.

uvicorn has no such limits. A connection is in one of three states:

    waiting     for a request, or for the rest of its head. A new connection has HEAD seconds for its first head; a kept
                one has HEAD seconds from the first byte of the next head. Before that byte uvicorn's own limit for idle
                connections applies
    uploading   for the rest of the body: BODY seconds after the head
    answering   the application has the whole request

If more connections than `most` are waiting or uploading, the one that began first is closed. A normal client sends its
request at once. Clients that send half a request on hundreds of connections close only each other's.
"""

from __future__ import annotations

import sys
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

HEAD = 10.0
"""Seconds for the head of a request."""

BODY = 30.0
"""Seconds for the whole body of a request."""

UNREAD = 30.0
"""Seconds within which a client must read some more of an answer."""

MAX_HEAD = 64 * 2**10
"""The largest head of a request, in bytes."""

ROOM = 64
"""File descriptors that are kept free for the store and for connections that are being answered."""


def most_waiting() -> int:
    """Return how many connections may wait or upload at once."""
    if sys.platform == "win32":
        return 1_000
    import resource  # not on Windows

    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10_000 if most == resource.RLIM_INFINITY else max(8, min(10_000, most - ROOM))


def limited(most: int | None = None) -> type[LimitedProtocol]:
    """Return the protocol class of one server, of which at most so many connections may wait or upload."""
    waiting: dict[LimitedProtocol, None] = {}
    return type("Limited", (LimitedProtocol,), {"waiting": waiting, "most": most or most_waiting()})


class LimitedProtocol(H11Protocol):
    """A connection with limits."""

    waiting: dict[LimitedProtocol, None]
    """The connections of the server that wait or upload; the one that began first comes first."""
    most: int
    """How many of them there may be."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._limit: str | None = None  # "head" or "body", for which the timer runs; None: there is no timer
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start to wait for a head."""
        super().connection_made(transport)
        self.waiting[self] = None
        self._start("head", HEAD)
        while len(self.waiting) > self.most:
            next(iter(self.waiting)).end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop()
        self._unwatch()
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle received bytes, and start or stop the timer."""
        super().data_received(data)
        self._look()

    def _should_upgrade(self) -> bool:
        """Ignore the wish for another protocol (RFC 9110, section 7.8), without uvicorn's warning in the log."""
        return False

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request, and close; uvicorn's own way fails if an answer came before the body."""
        self._say(HTTPStatus.BAD_REQUEST, "the request is not valid HTTP/1.1, or its head is too long")
        self.transport.close()
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """Start to wait for the client to read."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Stop to wait for the client to read."""
        super().resume_writing()
        self._unwatch()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, after the client has read what was written."""
        super().timeout_keep_alive_handler()
        self._watch()

    def cut(self) -> None:
        """Close the connection when the server stops: now if its answer has begun, else after the answer was sent."""
        if self.conn.our_state is h11.SEND_BODY:
            self.end()
        else:
            self.loop.call_later(0.5, self.transport.abort)

    def end(self) -> None:
        """Close the connection now, even if something is still to be written."""
        self.waiting.pop(self, None)
        self.transport.abort()

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        match self.conn.their_state:
            case h11.IDLE:  # nothing of the next head has come, or only a part
                self.waiting.setdefault(self)
                if self.conn.trailing_data[0]:
                    self._start("head", HEAD)
            case h11.SEND_BODY:
                self.waiting.setdefault(self)
                self._start("body", BODY)
            case _:
                self.waiting.pop(self, None)
                self._stop()

    def _start(self, limit: str, seconds: float) -> None:
        if self._limit != limit:
            self._stop()
            self._limit, self._timer = limit, self.loop.call_later(seconds, self._too_late, limit, seconds)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._limit = self._timer = None

    def _too_late(self, limit: str, seconds: float) -> None:
        """Answer that the request took too long, and close; a connection that sent nothing gets no answer."""
        if limit == "body" or self.conn.trailing_data[0]:
            self._say(HTTPStatus.REQUEST_TIMEOUT, f"the {limit} of a request must not take longer than {seconds:g} s")
        self.transport.close()  # the application sees it from `receive`
        self._watch()

    def _say(self, status: HTTPStatus, message: str) -> None:
        """Refuse a request, in the form of every other refusal, if its answer has not begun."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        body = orjson.dumps({"statusCode": status, "error": status.phrase, "message": message})
        head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)

    def _watch(self, before: float = inf) -> None:
        """Close the connection if the client has read nothing since the last look; else look again later."""
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        elif left:
            self._unwatch()
            self._unread = self.loop.call_later(UNREAD, self._watch, left)

    def _unwatch(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
