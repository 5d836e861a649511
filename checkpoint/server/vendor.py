"""The state API over HTTP, served from any `Store`: the five calls, their limits and their errors.

Calls, fields and statuses are those of the vendor's reference for "Sync Job Run State". Where the reference is silent
or contradicts itself, `Switches` has a switch: the defaults are what a service should do, the other positions are for
testing clients.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import signal
import socket
from collections import deque
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import unquote_to_bytes
from zlib import crc32

import orjson
import uvicorn
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from checkpoint.errors import CheckpointError, Conflict, StoreUnavailable, ValueTooLarge
from checkpoint.stores.base import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from types import FrameType

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from checkpoint.entries import Entry
    from checkpoint.stores.base import Store

    Result = TypeVar("Result")

logger = logging.getLogger("checkpoint")

PATH = "/sync-job-run-state"
DOCUMENT = "/openapi.json"
NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class Switches:
    """How the server answers where the API's reference leaves it open, and what it takes at most."""

    patch_missing: Literal[404, "creates"] = 404
    """PATCH of a key that is not there."""
    post_existing: Literal["overwrites", 409, 400] = "overwrites"
    """POST of a key that is there."""
    delete_missing: Literal[404, 200] = 404
    """DELETE of a key that is not there; 200 answers an empty object."""
    unknown_namespace: Literal["empty", 404] = "empty"
    """List of a namespace without entries."""
    write_answer: Literal[200, 201, 204, "empty", "wrong key", "wrong value"] = 200
    """Answer to POST, PATCH and DELETE: the entry with this status, no body (204, or 200 and "empty"), a wrong echo."""
    page_size: int | None = None
    """Entries of a list's page at most; None: one page, unless the request says `limit`. Pages carry `next_cursor`."""
    empty_page: bool = False
    """An empty page, with a cursor that goes on, follows every page but the last."""
    repeated_cursor: bool = False
    """Every page but the first names itself as the next one; needs a `page_size`."""
    shuffled: bool = False
    """Lists come in an order of their own, the same for every page."""
    duplicates: bool = False
    """Every entry is listed with older duplicates, before and after it."""
    stale_list: bool = False
    """Lists repeat the first answer that their namespace got since this was set."""
    extra_fields: bool = False
    """Entries and lists carry fields the reference does not name, and timestamps another spelling."""
    envelope: Any = ...
    """What a list answers instead, as JSON; `...`: the list."""
    latency: float = 0.0
    """Seconds between a call's effect and its answer."""
    rate: tuple[int, float] | None = None
    """Requests in any so many seconds; one more gets 429 with Retry-After. None: no limit."""
    max_value: int | None = None
    """Bytes of a value's UTF-8 at most; a longer one gets 413. None: what the body may hold."""
    max_body: int = 16 * 2**20
    """Bytes of a request's body at most; a longer one gets 413 and is not kept."""
    in_threads: bool = True
    """Call the store in worker threads; False: on the event loop, for a store that never blocks."""


DEFAULTS = Switches()


class Refusal(Exception):
    """An error answer in the API's own form."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.status = status
        self.message = message
        self.headers = headers

    def response(self) -> Response:
        """Return the answer, such as `{"statusCode": 400, "error": "Bad Request", "message": "key is required"}`."""
        error = HTTPStatus(self.status).phrase
        body = {"statusCode": self.status, "error": error, "message": self.message}
        return _json_response(body, self.status, self.headers)


def create_app(store: Store, token: str, options: Switches = DEFAULTS) -> FastAPI:
    """Return the ASGI application that serves a store to whoever bears the token.

    The options can be replaced while it runs: `app.state.api.options = ...`. The caller closes the store.

    Raises:
        ValueError: the token is empty, or holds what a header cannot carry.

    """
    api = Api(store, token, options)
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
    app.router.route_class = _ApiRoute
    _add_calls(app, api)
    app.add_middleware(_Gate, api=api)
    return app


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


class Api:
    """The five calls over one store; `options` may be replaced at any time."""

    def __init__(self, store: Store, token: str, options: Switches = DEFAULTS) -> None:
        if not (token and token.isascii() and token.isprintable() and " " not in token):
            raise ValueError("the token must be printable ASCII without spaces, and not empty")
        self.store = store
        self.options = options
        self._token = token.encode()
        self._admitted: deque[float] = deque()
        self._stale: dict[str, dict[str, Entry]] = {}

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request without the token, or beyond the rate."""
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if not (hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"):
            raise Refusal(401, "a valid bearer token is required", {"WWW-Authenticate": "Bearer"})
        if self.options.rate is not None:
            self._count(*self.options.rate)

    def _count(self, most: int, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        while self._admitted and self._admitted[0] <= now - seconds:
            self._admitted.popleft()
        if len(self._admitted) >= most:
            wait = max(1, ceil(self._admitted[0] + seconds - now))
            raise Refusal(429, f"more than {most} requests in {seconds:g} s", {"Retry-After": str(wait)})
        self._admitted.append(now)

    async def list_entries(self, request: Request) -> Response:
        """Return the entries of a namespace, or a page of them."""
        options, query = self.options, _query(request)
        state_key = _asked_state_key(query)
        entries = await self._call(self.store.load, state_key)
        if options.stale_list:
            entries = self._stale.setdefault(state_key, entries)
        else:
            self._stale.clear()
        if not entries and options.unknown_namespace == NOT_FOUND:
            raise Refusal(404, f"{state_key!r} holds no entries")
        page = _page(_arranged(list(entries.values()), options), query, options)
        return _json_response(page if options.envelope is ... else options.envelope)

    async def get_entry(self, request: Request) -> Response:
        """Return one entry."""
        state_key, key = _names(request)
        entries = await self._call(self.store.load, state_key)
        if key not in entries:
            raise _missing(key)
        return _json_response(_fields(entries[key], self.options))

    async def create_entry(self, request: Request) -> Response:
        """Write an entry under the key that the body names."""
        options, state_key = self.options, _asked_state_key(_query(request))
        key, value = await _strings(request, options, "key", "value")
        _check_size(_valid_name("key", key), value, options)
        entry = await self._call(self._create, state_key, key, value, options.post_existing)
        return _answer_to_write(entry, options)

    async def update_entry(self, request: Request) -> Response:
        """Replace the value of an entry."""
        options, (state_key, key) = self.options, _names(request)
        (value,) = await _strings(request, options, "value")
        _check_size(key, value, options)
        _, entry = await self._call(self._swap, state_key, key, value, options.patch_missing)
        return _answer_to_write(entry, options)

    async def delete_entry(self, request: Request) -> Response:
        """Delete an entry, and return what it was."""
        options, (state_key, key) = self.options, _names(request)
        entry, _ = await self._call(self._swap, state_key, key, None, options.delete_missing)
        return _answer_to_write(entry, options)

    async def _call(self, function: Callable[..., Result], *args: Any) -> Result:
        try:
            if not self.options.in_threads:
                return function(*args)
            return await asyncio.get_running_loop().run_in_executor(None, function, *args)
        except (TypeError, ValueError) as error:
            raise Refusal(400, str(error)) from error

    def _create(self, state_key: str, key: str, value: str, existing: Literal["overwrites", 409, 400]) -> Entry:
        if existing == "overwrites":
            return self.store.commit(state_key, {key: value}).entries[key]
        try:
            # A commit finds no conflict where the value is there already, so that it alone would not tell.
            if key not in self.store.load(state_key):
                return self.store.commit(state_key, {key: value}, {key: None}).entries[key]
        except Conflict:
            pass
        raise Refusal(existing, f"{key!r} exists")

    def _swap(self, state_key: str, key: str, value: str | None, missing: object) -> tuple[Entry | None, Entry | None]:
        """Write or delete a key that is there, whoever else is writing; return what it was and what it is."""
        while True:
            found = self.store.load(state_key).get(key)
            if found is None and missing == NOT_FOUND:
                raise _missing(key)
            try:
                return found, self.store.commit(state_key, {key: value}, {key: found}).entries.get(key)
            except Conflict:
                continue


class _Gate:
    """The outermost layer: lets nobody in without the token, and leaves the path as it was sent."""

    def __init__(self, app: ASGIApp, api: Api) -> None:
        self._app = app
        self._api = api

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
                self._api.admit(dict(scope["headers"]))
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


class _ApiRoute(APIRoute):
    """A route whose endpoint takes the request and returns the response: nothing is injected or validated."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


async def _on_error(request: Request, error: Exception) -> Response:
    refusal = _refusal(request, error)
    if isinstance(error, CheckpointError) and refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s %s: %s", request.method, refusal.status, error)
    return refusal.response()


_STATUSES = ((ClientDisconnect, 400), (ValueTooLarge, 413), (StoreUnavailable, 503), (CheckpointError, 500))


def _refusal(request: Request, error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        allow = {"Allow": "GET, POST" if request.scope["path"] == PATH else "DELETE, GET, PATCH"}
        wrong_method = error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
        return Refusal(error.status_code, error.detail, allow if wrong_method else None)
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return Refusal(status, str(error))
    return Refusal(500, "the server failed")


def _missing(key: str) -> Refusal:
    return Refusal(404, f"{key!r} does not exist")


def _names(request: Request) -> tuple[str, str]:
    """Return the state_key and the key that a request is about."""
    return _asked_state_key(_query(request)), _valid_name("key", _decoded(request.path_params["id"].encode("latin-1")))


def _asked_state_key(query: Mapping[str, str]) -> str:
    if "state_key" not in query:
        raise Refusal(400, "state_key is required")
    return _valid_name("state_key", query["state_key"])


def _valid_name(what: str, name: str) -> str:
    try:
        check_name(what, name)
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    return name


def _query(request: Request) -> dict[str, str]:
    """Return the parameters of a query, each given once; `+` is a space, as forms encode it."""
    query: dict[str, str] = {}
    for pair in filter(None, request.scope["query_string"].split(b"&")):
        name, _, value = (_decoded(part) for part in pair.replace(b"+", b" ").partition(b"="))
        if name in query:
            raise Refusal(400, f"{name} is given twice")
        query[name] = value
    return query


_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def _decoded(raw: bytes) -> str:
    """Undo percent-encoding (RFC 3986, section 2.1), exactly: two encoded texts never become one."""
    if _BAD_ESCAPE.search(raw):
        raise Refusal(400, "the URL is not percent-encoded")
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise Refusal(400, "the URL is not percent-encoded UTF-8") from error


async def _strings(request: Request, options: Switches, *names: str) -> list[str]:
    """Return the named fields of a JSON body."""
    try:
        fields: Any = orjson.loads(await _body(request, options.max_body))
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "the body must be JSON") from error
    if not isinstance(fields, dict):
        raise Refusal(400, "the body must be a JSON object")
    for name in names:
        if name not in fields:
            raise Refusal(400, f"{name} is required")
        if not isinstance(fields[name], str):
            raise Refusal(422, f"{name} must be a string")
    return [fields[name] for name in names]


async def _body(request: Request, most: int) -> bytes:
    too_long = Refusal(413, f"the body must not be longer than {most} bytes")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > most:
            raise too_long
        body += chunk
    return bytes(body)


def _check_size(key: str, value: str, options: Switches) -> None:
    if options.max_value is not None and (size := len(value.encode())) > options.max_value:
        raise ValueTooLarge(key, size)


def _arranged(entries: list[Entry], options: Switches) -> list[Entry]:
    if options.duplicates:
        older = [entry._replace(value="", updated_at="1970-01-01T00:00:00.000Z") for entry in entries]
        entries = [*older, *entries, *older]
    if options.shuffled:
        entries.sort(key=lambda entry: crc32(f"{entry.updated_at} {entry.key}".encode()))
    return entries


def _page(entries: list[Entry], query: Mapping[str, str], options: Switches) -> dict[str, Any]:
    """Return a page of a list; a cursor is an offset, and one that ends in `e` asks for an empty page before it."""
    cursor, size = query.get("next_cursor") or "0", _page_size(query, options)
    found = re.fullmatch(r"([0-9]{1,15})(e?)", cursor)
    if found is None:
        raise Refusal(400, f"{cursor!r} is not a cursor of this list")
    start = int(found[1])
    end = start if found[2] else len(entries) if size is None else start + size
    page: dict[str, Any] = {"result": [_fields(entry, options) for entry in entries[start:end]]}
    if options.extra_fields:
        page["count"] = len(entries)
    if size is not None:
        after = str(end) + "e" * (options.empty_page and not found[2]) if end < len(entries) else None
        page["next_cursor"] = cursor if options.repeated_cursor and start else after
    return page


def _page_size(query: Mapping[str, str], options: Switches) -> int | None:
    asked = query.get("limit")
    if asked is None:
        return options.page_size
    if not re.fullmatch(r"[0-9]{1,15}", asked) or int(asked) == 0:
        raise Refusal(400, "limit must be a positive integer")
    return min(int(asked), options.page_size or int(asked))


def _answer_to_write(entry: Entry | None, options: Switches) -> Response:
    """Answer a write with the entry; None: a deleted one that was not there."""
    fields = _fields(entry, options) if entry is not None else {}
    match options.write_answer:
        case 204:
            return Response(status_code=204)
        case "empty":
            return Response()
        case "wrong key" | "wrong value" as wrong:
            return _json_response({**fields, wrong.removeprefix("wrong "): "wrong"})
        case status:
            return _json_response(fields, status)


def _fields(entry: Entry, options: Switches) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "key": entry.key,
        "value": entry.value,
        "created_at": entry.created_at,
        "updated_at": entry.updated_at,
        "sync_job_run_id": entry.sync_job_run_id,
    }
    if options.extra_fields:
        fields = {"id": crc32(entry.key.encode()), **fields, "labels": {"origin": None}}
        for stamp in ("created_at", "updated_at"):
            fields[stamp] = fields[stamp] and fields[stamp].replace("Z", "+00:00")
    return fields


def _json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


class StateEntry(BaseModel):
    """One key of a namespace."""

    key: str
    value: str
    created_at: str | None
    updated_at: str | None
    sync_job_run_id: str | None


class StatePage(BaseModel):
    """A namespace, or a page of it: `next_cursor` is null on the last one, and left out where there is but one."""

    result: list[StateEntry]
    next_cursor: str | None = None


class Problem(BaseModel):
    """An error; `error` is the status in words."""

    statusCode: int  # noqa: N815 - the API's spelling
    error: str
    message: str


_NAME = {"type": "string", "minLength": 1, "pattern": r"^(?!\.\.?$)[^\u0000-\u001f\u007f-\u009f]+$"}
_TEXT = {"type": "string"}
_STATE_KEY = {"name": "state_key", "in": "query", "required": True, "schema": _NAME, "description": "The namespace."}
_ID = {"name": "id", "in": "path", "required": True, "schema": _NAME, "description": "The entry's key."}
_LIMIT = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 10**15 - 1}}
_CURSOR = {"name": "next_cursor", "in": "query", "schema": {"type": "string", "pattern": "^([0-9]{1,15}e?)?$"}}
_LISTED: list[dict[str, Any]] = [_STATE_KEY, _LIMIT, _CURSOR]
_ONE: list[dict[str, Any]] = [_ID, _STATE_KEY]


def _add_calls(app: FastAPI, api: Api) -> None:
    one, every = PATH + "/{id}", (400, 401, 429, 500, 503)
    add = partial(_add_call, app)
    add("GET", PATH, api.list_entries, _LISTED, StatePage, (*every, 404))
    add("POST", PATH, api.create_entry, [_STATE_KEY], StateEntry, (*every, 409, 413, 422), key=_NAME, value=_TEXT)
    add("GET", one, api.get_entry, _ONE, StateEntry, (*every, 404))
    add("PATCH", one, api.update_entry, _ONE, StateEntry, (*every, 404, 413, 422), value=_TEXT)
    add("DELETE", one, api.delete_entry, _ONE, StateEntry, (*every, 404))


def _add_call(
    app: FastAPI,
    method: str,
    path: str,
    call: Callable[[Request], Coroutine[Any, Any, Response]],
    parameters: list[dict[str, Any]],
    answer: type[BaseModel],
    errors: tuple[int, ...],
    **body: dict[str, Any],
) -> None:
    extra: dict[str, Any] = {"parameters": parameters}
    if body:
        schema = {"type": "object", "properties": body, "required": list(body)}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    problems: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in errors}
    app.add_api_route(path, call, methods=[method], response_model=answer, responses=problems, openapi_extra=extra)
