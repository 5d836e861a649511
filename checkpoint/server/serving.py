"""Run the server: the socket, uvicorn, signals, and several processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import uvicorn

from checkpoint.server.apart import apart
from checkpoint.server.app import create_app
from checkpoint.server.limits import MAX_HEAD, limited
from checkpoint.server.ui import DEFAULT, Shown
from checkpoint.server.vendor import DEFAULTS, Switches
from checkpoint.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from fastapi import FastAPI

    from checkpoint.server.access import Access
    from checkpoint.server.limits import LimitedProtocol
    from checkpoint.stores.base import Store

logger: logging.Logger = logging.getLogger("checkpoint")

DRAIN = 7.0
"""Seconds for requests under way after a signal to stop."""

KILL = 10.0
"""Seconds after which a worker that has not ended is killed."""


def serve(
    store: Store,
    token: str | Access,
    host: str = "127.0.0.1",
    port: int = 8080,
    options: Switches = DEFAULTS,
    *,
    page: Shown = DEFAULT,
    root_path: str = "",
    workers: int = 1,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a store until SIGTERM or SIGINT: requests under way are finished, then the store is closed.

    Requests that take longer than 7 s after the signal are answered with 503 or 504, and the process ends within 10 s.
    Call it in the main thread. Port 0 takes a free port. `ready` is called with the base URL when the socket listens.
    Several `workers` are forked from this process; one that ends is started again.

    Raises:
        OSError: the server cannot listen on this host and port.
        ValueError: as `create_app`, or several `workers` where only one is possible.

    """
    store = apart(store)
    signals, busy = Signals(), False
    try:
        if workers > 1:
            _check_workers(store, options)
        make = partial(create_app, store, token, options, page=page, root_path=root_path)
        app = make()
        with _listening(host, port) as listener, signals:
            if ready is not None:
                ready(_base_url(listener))
            if workers == 1:
                busy = _run(app, listener, signals)
            else:
                with TemporaryDirectory(prefix="checkpoint-") as folder:
                    parent = os.getpid()
                    _supervise(lambda: _run(make(folder=folder), listener, signals, parent), workers, signals)
    finally:
        if not busy:  # else closing would wait for calls that the store has not finished
            store.close()


def _check_workers(store: Store, options: Switches) -> None:
    if not hasattr(os, "fork"):
        raise ValueError("several workers need a system that forks processes")
    if isinstance(store, MemoryStore):
        raise ValueError("several workers need a store that they share: in memory each would have its own")
    if options.rate is not None:
        raise ValueError(
            "a rate is counted per process: with several workers, limit it in the gateway in front of them"
        )


class Signals:
    """A context in which SIGTERM and SIGINT ask the server to stop.

    uvicorn has its own handlers while it runs, and raises the signals that they caught again afterwards. The handlers
    of this context also notice a signal just before uvicorn runs, and make the process exit with 0 after the repeated
    one.
    """

    def __init__(self) -> None:
        self.asked: bool = False
        self.workers: dict[int, float] = {}
        """When each worker was started, by its process id. Workers get the signal too."""

    def __enter__(self) -> None:
        self._earlier = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True
        for worker in [*self.workers]:
            os.kill(worker, signal.SIGTERM)


class _Server(uvicorn.Server):
    """uvicorn's server, extended: it stops in time, and a worker stops when its parent ends."""

    def __init__(self, config: uvicorn.Config, signals: Signals, parent: int | None) -> None:
        super().__init__(config)
        self._signals = signals
        self._parent = parent

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server should stop."""
        if self._signals.asked or self._parent not in {None, os.getppid()}:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests under way finish, answer those that take too long, and close."""
        asyncio.get_running_loop().call_later(DRAIN, self._cut)
        await super().shutdown(sockets)

    def _cut(self) -> None:
        for connection in [*self.server_state.connections]:
            cast("LimitedProtocol", connection).cut()
        for task in [*self.server_state.tasks]:
            task.cancel()  # the application answers with 503 or 504


def _run(app: FastAPI, listener: socket.socket, signals: Signals, parent: int | None = None) -> bool:
    """Run until the server should stop; return whether the store is still busy.

    `parent` is the parent process of a worker, which stops with it. Without workers no parent is watched, because a
    shell may start a server and exit.
    """
    config = uvicorn.Config(
        app,
        http=limited(),
        h11_max_incomplete_event_size=MAX_HEAD,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than clients keep a connection, so that none writes to a closed one
        timeout_graceful_shutdown=9,
    )
    _Server(config, signals, parent).run(sockets=[listener])
    return bool(app.state.busy())


def _supervise(work: Callable[[], bool], workers: int, signals: Signals) -> None:
    """Keep so many worker processes running until the server should stop."""
    while not signals.asked:
        while len(signals.workers) < workers and not signals.asked:
            _start(work, signals)
        ended, status = os.waitpid(-1, 0)
        started = signals.workers.pop(ended, 0.0)
        if not signals.asked:
            code, extra = os.waitstatus_to_exitcode(status), {"checkpoint_event": "worker_ended"}
            logger.error("worker %d ended with %d: another is started", ended, code, extra=extra)
            time.sleep(max(0.0, started + 1 - time.monotonic()))  # at most one start a second of a worker that fails
    until = time.monotonic() + KILL
    while signals.workers:
        ended, _ = os.waitpid(-1, os.WNOHANG)
        signals.workers.pop(ended, None)
        if time.monotonic() > until:
            for worker in signals.workers:
                os.kill(worker, signal.SIGKILL)
        time.sleep(0.02)


def _start(work: Callable[[], bool], signals: Signals) -> None:
    worker = os.fork()
    if worker:
        signals.workers[worker] = time.monotonic()
        if signals.asked:  # the signal came before the worker was in the list
            os.kill(worker, signal.SIGTERM)
        return
    code = 1
    try:
        signals.workers.clear()
        work()
        code = 0
    except BaseException:
        logger.exception("a worker failed", extra={"checkpoint_event": "worker_failed"})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the child must not return into the parent's code


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # Without this option every answer waits 40 ms for a delayed acknowledgement. asyncio sets it only for sockets that
    # name their protocol, which this one does not. Accepted sockets inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
