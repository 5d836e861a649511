"""The floor of HTTP from Python: requests written before, over raw sockets, in one thread that only waits."""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from harness import fail
from served import NAMESPACE, TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable


def sockets(url: str, keys: list[str], connections: int) -> Callable[[], float]:
    """Return a round that PATCHes every key over so many connections, opened before the clock starts."""
    address = urlsplit(url)

    def run() -> float:
        with ExitStack() as stack:  # each round anew: the server does not keep idle ones until the next
            opened = [
                stack.enter_context(socket.create_connection((address.hostname or "", address.port or 80)))
                for _ in range(connections)
            ]
            for connection in opened:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            requests = [_request(address.netloc, key, f"eyJpZCI6e{time.time_ns()}fQ==") for key in keys]
            started = time.perf_counter()
            _exchange(opened, deque(requests))
            return time.perf_counter() - started

    return run


def _request(host: str, key: str, value: str) -> bytes:
    body = f'{{"value":"{value}"}}'
    return (
        f"PATCH /sync-job-run-state/{key}?state_key={NAMESPACE} HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def _exchange(connections: list[socket.socket], waiting: deque[bytes]) -> None:
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            if waiting:
                connection.sendall(waiting.popleft())
                selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                connection = key.fileobj
                if not isinstance(connection, socket.socket):
                    raise TypeError
                _answer(connection)
                if waiting:
                    connection.sendall(waiting.popleft())
                else:
                    selector.unregister(connection)


def _answer(connection: socket.socket) -> None:
    """Read one answer; its body may come in a packet of its own."""
    data = connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        fail(f"the server answered {head[:80]!r}")
    (length,) = (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
