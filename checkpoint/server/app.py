"""The ASGI application: all that the server answers, behind one gate."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from checkpoint.errors import CheckpointError, StoreUnavailable, ValueTooLarge
from checkpoint.server import v1, vendor
from checkpoint.server.access import Access
from checkpoint.server.messages import PlainRoute, Refusal
from checkpoint.server.vendor import DEFAULTS, Api, Switches

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from checkpoint.stores.base import Store

logger = logging.getLogger("checkpoint")

DOCUMENT = "/openapi.json"


def create_app(store: Store, token: str, options: Switches = DEFAULTS) -> FastAPI:
    """Return the ASGI application that serves a store to whoever bears the token.

    The options can be replaced while it runs: `app.state.api.options = ...`. The caller closes the store.

    Raises:
        ValueError: the token is empty, or holds what a header cannot carry.

    """
    access = Access(token)
    api = Api(store, access, options)
    app = FastAPI(
        title="Sync Job Run State",
        version="1",
        openapi_url=DOCUMENT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # For the document only: the gate has let nobody else in.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        exception_handlers=dict.fromkeys(
            (Refusal, HTTPException, CheckpointError, ClientDisconnect, Exception), _on_error
        ),
    )
    app.state.api = api
    app.router.route_class = PlainRoute
    vendor.add_calls(app, api)
    v1.add_calls(app, v1.V1(store, access, api.call, lambda: api.options.max_commit))
    app.add_middleware(_Gate, api=api, access=access)
    return app


class _Gate:
    """The outermost layer: lets nobody in without the token, and leaves the path as it was sent."""

    def __init__(self, app: ASGIApp, api: Api, access: Access) -> None:
        self._app = app
        self._api = api
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._api.options.latency:
            send = _late(send, self._api.options.latency)
        # Routed undecoded: in the decoded path `a/b` and `a%2Fb` are the same.
        scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        try:
            if scope["path"] != DOCUMENT:
                self._access.allow(scope["headers"], "read")
                self._api.count()
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _late(send: Send, seconds: float) -> Send:
    async def late(message: Message) -> None:
        if message["type"] == "http.response.start":
            await asyncio.sleep(seconds)
        await send(message)

    return late


async def _on_error(request: Request, error: Exception) -> Response:
    refusal = _refusal(request, error)
    if isinstance(error, CheckpointError) and refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        extra = {"checkpoint_event": "request_failed", "checkpoint_status": refusal.status}
        logger.error("%s %s: %s", request.method, refusal.status, error, extra=extra)
    return refusal.response()


_STATUSES = ((ClientDisconnect, 400), (ValueTooLarge, 413), (StoreUnavailable, 503), (CheckpointError, 500))


def _refusal(request: Request, error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        wrong_method = error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
        return Refusal(error.status_code, error.detail, {"Allow": _allowed(request)} if wrong_method else None)
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return Refusal(status, str(error))
    return Refusal(500, "the server failed")


def _allowed(request: Request) -> str:
    """Return the methods of a path, each of which has a route of its own."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    methods = [route.methods or () for route in routes if route.matches(request.scope)[0] != Match.NONE]
    return ", ".join(sorted({method for some in methods for method in some}))
