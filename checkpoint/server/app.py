"""The ASGI application: everything that the server answers, behind one gate."""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from time import perf_counter
from typing import TYPE_CHECKING, cast

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from checkpoint.errors import CheckpointError, CommitUnknown, StoreUnavailable, ValueTooLarge
from checkpoint.server import metrics, v1, vendor
from checkpoint.server.access import Access
from checkpoint.server.calls import Calls, UnderWay
from checkpoint.server.health import Health
from checkpoint.server.messages import PlainRoute, Refusal, json_response
from checkpoint.server.ui import DEFAULT, Page, Shown
from checkpoint.server.ui import PATH as UI
from checkpoint.server.vendor import DEFAULTS, PATH, Api, Switches
from checkpoint.stores import wire

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from checkpoint.stores.base import Store

logger: logging.Logger = logging.getLogger("checkpoint")
access_logger: logging.Logger = logging.getLogger("checkpoint.access")

DOCUMENT, HEALTH, METRICS = "/openapi.json", "/healthz", "/metrics"
SHOWN = 200
"""How many characters of an unknown path the answer repeats."""
PUBLIC = frozenset({DOCUMENT, HEALTH})
"""Paths that need no token."""
FOR_BROWSERS = frozenset({"/", UI})
"""Paths of the page, which checks the token by itself."""

COMMITS = frozenset({("POST", PATH), ("PATCH", f"{PATH}/{{id}}"), ("DELETE", f"{PATH}/{{id}}"), ("POST", wire.COMMIT)})
"""The routes that commit."""


def create_app(
    store: Store,
    token: str | Access,
    options: Switches = DEFAULTS,
    *,
    page: Shown = DEFAULT,
    root_path: str = "",
    folder: str | None = None,
) -> FastAPI:
    """Return the ASGI application that serves a store to clients with a token.

    The options can be replaced while it runs: `app.state.api.options = ...`. `app.state.busy()` tells whether its
    threads still have calls to finish, and `app.state.stop()` ends the threads after these. The caller closes the
    store. Each request is one line of the logger `checkpoint.access`, at INFO.

    Args:
        store: the store to serve.
        token: a token that may do everything, or an `Access`, which says who may do what.
        options: see `Switches`.
        page: how the page for people is shown.
        root_path: the path below which a gateway serves the application, such as `/state`; requests may come with it or
            without.
        folder: a folder in which several processes that serve the same store share their counters.

    Raises:
        ValueError: the token is empty, or contains characters that a header cannot carry; the root path is not a path.

    """
    if root_path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", root_path):
        raise ValueError(f"a root path has the form /state, not {root_path!r}")
    access = token if isinstance(token, Access) else Access.of_token(token)
    api, health = Api(store, access, options), Health(store)
    told, telling = metrics.Metrics(store, folder), Calls("metrics", threads=1)
    app = FastAPI(
        title="checkpoint serve",
        version=version("checkpoint-store"),
        openapi_url=DOCUMENT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": root_path}] if root_path else None,
        # For the OpenAPI document only: the gate has checked the token.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        exception_handlers=dict.fromkeys(
            (Refusal, HTTPException, CheckpointError, ClientDisconnect, Exception), _on_error
        ),
    )
    app.state.api = api
    app.router.route_class = PlainRoute
    vendor.add_calls(app, api)
    v1.add_calls(app, v1.V1(store, access, api.read, api.write, lambda: api.options.max_commit))

    async def healthz(_: Request) -> Response:
        if await health.answers():
            return json_response({"status": "ok"})
        return json_response({"status": "the store does not answer"}, 503)

    async def of_metrics(request: Request) -> Response:
        readable = partial(access.readable, request.scope["headers"])
        return Response(await telling(told.text, readable), media_type=metrics.CONTENT_TYPE)

    for path, endpoint in ((HEALTH, healthz), (METRICS, of_metrics)):
        app.add_route(path, endpoint, ["GET"], include_in_schema=False)

    app.router.routes += Page(store, access, page, api.reading).routes()

    threads = (api.reading, api.writing, health.asking, telling)
    app.state.busy = lambda: any(each.unanswered for each in threads)

    def stop() -> None:
        for each in threads:
            each.stop()

    app.state.stop = stop
    app.add_middleware(_Gate, api=api, access=access, told=told, root_path=root_path)
    return app


class _Gate:
    """The outermost layer: it checks the token, keeps the path as it was sent, counts and logs."""

    def __init__(self, app: ASGIApp, api: Api, access: Access, told: metrics.Metrics, root_path: str) -> None:
        self._app = app
        self._api = api
        self._access = access
        self._told = told
        self._root = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._api.options.latency:
            send = _late(send, self._api.options.latency)
        # The path is routed undecoded, because decoded `a/b` and `a%2Fb` would be the same.
        root, path = self._root, scope["raw_path"].decode("latin-1")
        path = path.removeprefix(root) if path.startswith(f"{root}/") else path  # the gateway may have removed it
        scope = cast("Scope", {**scope, "root_path": root, "path": root + path})
        answer, began, name = _Answer(send), perf_counter(), None
        try:
            # The page checks the token by itself, because browsers need another challenge and another answer.
            if path not in PUBLIC and not (path in FOR_BROWSERS or path.startswith(f"{UI}/")):
                name = self._access.allow(scope["headers"], "read")
                self._api.count()
            await self._app(scope, receive, answer)
        except Refusal as refusal:
            await refusal.response()(scope, receive, answer)
        except asyncio.CancelledError as cancelled:  # the server is stopping, and the request took too long
            if answer.status is None:
                await _stopped(cancelled).response()(scope, receive, answer)
        finally:
            self._note(scope, answer.status or 500, perf_counter() - began, name)

    def _note(self, scope: Scope, status: int, seconds: float, name: str | None) -> None:
        method, route = scope["method"], scope.get("route")
        path = route.path if isinstance(route, Route) else "other"
        self._told.observe(method, path, status, seconds, commits=(method, path) in COMMITS)
        if not access_logger.isEnabledFor(logging.INFO):
            return
        client = (scope.get("client") or ("-",))[0]
        asked = re.search(rb"(?:^|&)(state_key=[^&]*)", scope["query_string"])  # the rest might contain a token
        target = scope["path"] + (f"?{asked[1].decode('latin-1')}" if asked else "")
        extra = {"checkpoint_event": "request", "checkpoint_status": status, "checkpoint_seconds": seconds}
        told = (client, name or "-", method, target, status, seconds * 1_000)
        access_logger.info("%s %s %s %s %d %.1f ms", *told, extra=extra)


def _stopped(cancelled: asyncio.CancelledError) -> Refusal:
    """Return the answer to a request that the server did not finish.

    503 says that nothing was done. 504 says that it may still be done, as the 504 of a gateway does; clients of both
    APIs know that.
    """
    if isinstance(cancelled, UnderWay):
        return Refusal(
            504, "the server is stopping, and the store has not answered: the request may still be carried out"
        )
    return Refusal(503, "the server is stopping: nothing was done")


class _Answer:
    """Sends an answer, and keeps its status; None: no answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _late(send: Send, seconds: float) -> Send:
    async def late(message: Message) -> None:
        if message["type"] == "http.response.start":
            await asyncio.sleep(seconds)
        await send(message)

    return late


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        # Without `statusCode`, so that a client with a wrong URL does not take it for a missing entry.
        said = f"nothing is served under {request.url.path[:SHOWN]!r}"
        return json_response({"error": "no such path", "message": said}, error.status_code)
    refusal = _refusal(request, error)
    if isinstance(error, CheckpointError) and refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        extra = {"checkpoint_event": "request_failed", "checkpoint_status": refusal.status}
        logger.error("%s %s: %s", request.method, refusal.status, error, extra=extra)
    return refusal.response()


_STATUSES = (
    (ClientDisconnect, 400),
    (ValueTooLarge, 413),
    (StoreUnavailable, 503),
    (CommitUnknown, 504),
    (CheckpointError, 500),
)


def _refusal(request: Request, error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = _allowed(request)
            return Refusal(405, f"this path takes {allowed}", {"Allow": allowed})
        return Refusal(error.status_code, error.detail)
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return Refusal(status, str(error))
    return Refusal(500, "the server failed")


def _allowed(request: Request) -> str:
    """Return the methods that a path takes; each of them has its own route."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    methods = [route.methods or () for route in routes if route.matches(request.scope)[0] != Match.NONE]
    return ", ".join(sorted({method for some in methods for method in some}))
