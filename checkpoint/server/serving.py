"""Running the server: the socket, uvicorn, signals."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from checkpoint.server.app import create_app
from checkpoint.server.vendor import DEFAULTS, Switches

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from checkpoint.stores.base import Store


def serve(
    store: Store,
    token: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    options: Switches = DEFAULTS,
    *,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a store until SIGTERM or SIGINT: requests in flight are finished, then the store is closed.

    To be called in the main thread. Port 0 takes a free one; `ready` is given the base URL once the socket listens.

    Raises:
        OSError: host and port cannot be listened on.
        ValueError: as `create_app`.

    """
    try:
        app = create_app(store, token, options)
        with _listening(host, port) as listener:
            config = uvicorn.Config(
                app,
                ws="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                timeout_keep_alive=75,  # longer than clients keep one, so that none writes to a closed connection
                timeout_graceful_shutdown=30,
            )
            server = uvicorn.Server(config)
            _run_until_signalled(server, listener, lambda: ready(_base_url(listener)) if ready else None)
    finally:
        store.close()


def _run_until_signalled(server: uvicorn.Server, listener: socket.socket, started: Callable[[], None]) -> None:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn has handlers of its own while it runs, and raises what they caught again afterwards: these keep a signal
    # that comes just before from being lost, and the repeated one from ending the process with another code than 0.
    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        started()
        server.run(sockets=[listener])
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # asyncio does so only where a socket names its protocol, which this one does not: without it every answer waits
    # 40 ms for a delayed acknowledgement. Accepted sockets inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
