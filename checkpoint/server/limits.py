"""What a connection may take: seconds for a request's head and body, and for reading an answer.

uvicorn has none of these. A connection is in one of three states:

    waiting     for a request, or the rest of its head: HEAD seconds from its first byte, the first one from the
                connection on; one that is kept after an answer waits as long as uvicorn lets it, until a byte comes
    uploading   the rest of the body is to come: BODY seconds from the head on
    answering   the application has the whole request

Where more than MOST are waiting or uploading, the one that began the longest ago is closed. An honest client sends its
request at once, so those who send half of one by the hundred close each other.
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
"""Seconds for all of its body."""

UNREAD = 30.0
"""Seconds for a client to go on reading an answer."""

MAX_HEAD = 64 * 2**10
"""Bytes of a head."""

ROOM = 64
"""Descriptors that are left for the store and for those who are answered."""


def most_waiting() -> int:
    """Return how many connections may wait for a request."""
    if sys.platform == "win32":
        return 1_000
    import resource  # not on Windows

    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10_000 if most == resource.RLIM_INFINITY else max(8, min(10_000, most - ROOM))


def limited(most: int | None = None) -> type[LimitedProtocol]:
    """Return the protocol of one server, of whose connections so many may wait or upload."""
    waiting: dict[LimitedProtocol, None] = {}
    return type("Limited", (LimitedProtocol,), {"waiting": waiting, "most": most or most_waiting()})


class LimitedProtocol(H11Protocol):
    """One connection, with limits."""

    waiting: dict[LimitedProtocol, None]
    """The connections of the server that wait or upload, the one that began the longest ago first."""
    most: int
    """How many may."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._limit: str | None = None  # what the timer is for; None: there is none
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a head."""
        super().connection_made(transport)
        self.waiting[self] = None
        self._start("head", HEAD)
        while len(self.waiting) > self.most:
            next(iter(self.waiting)).end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop()
        self._unwatch()
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and see what is still to come."""
        super().data_received(data)
        self._look()

    def _should_upgrade(self) -> bool:
        """Answer in HTTP/1.1 who asks for another protocol (RFC 9110, section 7.8), and log no advice of uvicorn."""
        return False

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, and close; uvicorn fails where an answer was given before the body had come."""
        self._say(HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1 as it should be, or its head is too long")
        self.transport.close()
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """End waiting for it."""
        super().resume_writing()
        self._unwatch()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that nobody uses, once what was written has been read."""
        super().timeout_keep_alive_handler()
        self._watch()

    def cut(self) -> None:
        """Close the connection as the server ends: now where its answer has begun, else once the last one was sent."""
        if self.conn.our_state is h11.SEND_BODY:
            self.end()
        else:
            self.loop.call_later(0.5, self.transport.abort)

    def end(self) -> None:
        """Close the connection now, whatever is still to be written."""
        self.waiting.pop(self, None)
        self.transport.abort()

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        match self.conn.their_state:
            case h11.IDLE:  # of the next head nothing has come, or a part
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
        """Say that it took too long, and close; one that never sent anything is told nothing."""
        if limit == "body" or self.conn.trailing_data[0]:
            self._say(HTTPStatus.REQUEST_TIMEOUT, f"the {limit} of a request must not take longer than {seconds:g} s")
        self.transport.close()  # the application's `receive` tells it
        self._watch()

    def _say(self, status: HTTPStatus, message: str) -> None:
        """Refuse a request to which no answer has begun, in the form of every other refusal."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        body = orjson.dumps({"statusCode": status, "error": status.phrase, "message": message})
        head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)

    def _watch(self, before: float = inf) -> None:
        """Close a connection whose client has read nothing of what was written before."""
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
