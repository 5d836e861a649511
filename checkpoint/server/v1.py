"""Our own API, `/v1`: load, commit, history and namespaces in one request each, over an atomic store.

`checkpoint.stores.server` is its client, and the fields are those of `checkpoint.stores.wire`. Calls of the store and
the parsing of bodies run in the same threads as calls of the vendor's API.
"""

from __future__ import annotations

import logging
import re
from functools import partial, wraps
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson
from pydantic import BaseModel
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotations of the calls
from starlette.responses import StreamingResponse

from checkpoint.entries import Writer
from checkpoint.errors import CheckpointError, CommitUnknown, Conflict, StoreUnavailable, ValueTooLarge
from checkpoint.server.apart import kind
from checkpoint.server.messages import Problem, Refusal, asked_state_key, body_of, json_response, query_of, valid_name
from checkpoint.stores import wire
from checkpoint.stores.base import Atomic, ListsNamespaces, ReadsKeys, TellsFacts, history_of, utc_now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping

    from fastapi import FastAPI
    from starlette.responses import Response

    from checkpoint.entries import Entry
    from checkpoint.server.access import Access
    from checkpoint.stores.base import KeepsHistory, Store

    Call = Callable[..., Awaitable[Any]]
    Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("checkpoint")

PIECE = 2_000
"""How many items of a list are encoded at once; a longer list is sent in pieces."""

MAX_COUNT = 10**15
"""The largest number that is accepted as a limit or a process id."""

MAX_QUESTION = 16 * 2**20
"""The largest body of a request that reads, in bytes."""


class V1:
    """The calls of the API over one store.

    `read` and `write` call a function in a thread; `most` returns how many bytes a commit may have.
    """

    def __init__(self, store: Store, access: Access, read: Call, write: Call, most: Callable[[], int]) -> None:
        self._store = store
        self._access = access
        self._read = read
        self._write = write
        self._most = most

    def answered(self, call: Endpoint) -> Endpoint:
        """Return a call whose answers have two more headers: the time, and whether history is kept."""

        @wraps(call)
        async def answer(request: Request) -> Response:
            try:
                response = await call(request)
            except Refusal as refusal:
                response = refusal.response()
            response.headers[wire.TIME] = utc_now()
            response.headers[wire.KEEPS_HISTORY] = "none" if history_of(self._store) is None else "kept"
            return response

        return answer

    async def about(self, request: Request) -> Response:
        """Return the server's release and, if the token reaches all namespaces, its store and facts about it."""
        headers = request.scope["headers"]
        self._access.allow(headers, "read")
        return await self._do(self._read, self._about, self._access.reaches_all(headers))

    async def state(self, request: Request) -> Response:
        """Return all entries of a namespace, or those of some keys; keys that do not exist are left out."""
        fields = await self._question(request, "state_key", "key", "keys")
        state_key, keys = asked_state_key(fields), _asked_keys(fields)
        self._access.allow(request.scope["headers"], "read", state_key)
        entries = await self._do(self._read, self._entries, state_key, keys)
        return await self._listing(entries.values(), wire.entry_fields)

    async def commit(self, request: Request) -> Response:
        """Commit changes, all or none, if the stored entries are those in `base`."""
        self._access.allow(request.scope["headers"], "write")  # before a body of many megabytes is read
        body = await body_of(request, self._most())
        client = request.client.host if request.client is not None else ""
        return await self._do(self._write, self._commit, request.scope["headers"], body, client)

    async def history(self, request: Request) -> Response:
        """Return the changes of a namespace or a key, newest first."""
        fields = await self._question(request, "state_key", "key", "limit")
        state_key, limit = asked_state_key(fields), _count(fields, "limit")
        key = valid_name("key", fields["key"]) if "key" in fields else None
        self._access.allow(request.scope["headers"], "read", state_key)
        changes = await self._do(self._read, lambda: self._kept().history(state_key, key, limit=limit))
        return await self._listing(changes, wire.change_fields)

    async def namespaces(self, request: Request) -> Response:
        """Return the namespaces that hold a key and that the token reaches, sorted."""
        headers = request.scope["headers"]
        self._access.allow(headers, "read")
        query_of(request)
        return await self._do(self._read, self._namespaces, headers)

    def _about(self, reaches_all: bool) -> Response:
        release, name = version("checkpoint-store"), self._name if reaches_all else None
        facts = self._store.facts() if reaches_all and isinstance(self._store, TellsFacts) else {}
        return json_response({"release": release, "store": name, "facts": facts})

    def _entries(self, state_key: str, keys: list[str] | None) -> dict[str, Entry]:
        if keys is None:
            return self._store.load(state_key)
        if isinstance(self._store, ReadsKeys):
            return self._store.read(state_key, keys)
        entries = self._store.load(state_key)
        return {key: entries[key] for key in keys if key in entries}

    def _commit(self, headers: Iterable[tuple[bytes, bytes]], body: bytes, client: str) -> Response:
        fields = _known(_object_of(body), _CHANGES)
        state_key = asked_state_key(fields)
        by = self._access.allow(headers, "write", state_key)
        changes, base = _mapping(fields, "changes"), _base_of(_mapping(fields, "base", {}))
        run_id, reasons = fields.get("run_id"), _mapping(fields, "reasons", {})
        writer = Writer(fields.get("host", client), _count(fields, "process") or 0, by)
        keeping = history_of(self._store)
        if keeping is not None:
            receipt = keeping.commit(state_key, changes, base, run_id=run_id, reasons=reasons, writer=writer)
        else:
            receipt = self._store.commit(state_key, changes, base, run_id=run_id)
        return json_response({"result": [wire.written_fields(entry) for entry in receipt.entries.values()]})

    def _namespaces(self, headers: Iterable[tuple[bytes, bytes]]) -> Response:
        if not isinstance(self._store, ListsNamespaces):
            raise _unsupported(f"the {self._name} behind this server does not list its namespaces")
        return json_response({"result": self._access.readable(headers, self._store.namespaces())})

    def _kept(self) -> KeepsHistory:
        keeping = history_of(self._store)
        if keeping is None:
            raise _unsupported(f"the {self._name} behind this server keeps no history")
        return keeping

    @property
    def _name(self) -> str:
        return kind(self._store)

    async def _question(self, request: Request, *names: str) -> dict[str, Any]:
        """Return the parameters of a request, from the query or the body of a POST."""
        if request.method == "POST":
            body = await body_of(request, MAX_QUESTION)
            fields = cast("dict[str, Any]", await self._read(_object_of, body))
        else:
            fields = dict(query_of(request))
            if "keys" in fields:
                raise Refusal(400, "send keys in the body of a POST")
        return _known(fields, names)

    async def _do(self, call: Call, function: Callable[..., T], *args: Any) -> T:
        """Call the store, and turn its errors into error answers."""
        if not isinstance(self._store, Atomic):
            raise _unsupported(
                f"the {self._name} behind this server writes key by key, and /v1 needs a store whose commits are all "
                "or nothing: use the other API of this server, with its https:// URL"
            )
        try:
            return cast("T", await call(function, *args))
        except CheckpointError as error:
            refusal = _refusal(error)
        if refusal.status >= 500:
            extra = {"checkpoint_event": "request_failed", "checkpoint_status": refusal.status}
            logger.error("/v1 %s: %s", refusal.status, refusal.message, extra=extra)
        raise refusal

    async def _listing(self, items: Iterable[T], fields_of: Callable[[T], dict[str, Any]]) -> Response:
        left = iter(items)

        def piece() -> list[bytes]:
            return [orjson.dumps(fields_of(item)) for item in islice(left, PIECE)]

        first = cast("list[bytes]", await self._read(piece))
        if len(first) < PIECE:
            return json_response({"result": [orjson.Fragment(item) for item in first]})

        async def pieces() -> AsyncIterator[bytes]:
            yield b'{"result":[' + b",".join(first)
            while more := cast("list[bytes]", await self._read(piece)):
                yield b"," + b",".join(more)
            yield b"]}"

        return StreamingResponse(pieces(), media_type="application/json")


def _unsupported(message: str) -> Refusal:
    return Refusal(501, message, code=wire.UNSUPPORTED)


def _refusal(error: CheckpointError) -> Refusal:
    match error:
        case Conflict():
            found = None if error.found is None else wire.entry_fields(error.found)
            return Refusal(409, str(error), code=wire.CONFLICT, key=error.key, found=found)
        case ValueTooLarge():
            return Refusal(413, str(error), code=wire.TOO_LARGE, key=error.key, size=error.size)
        case StoreUnavailable():
            return Refusal(503, str(error), code=wire.UNAVAILABLE)
        case CommitUnknown():
            return Refusal(500, str(error), code=wire.UNKNOWN)
        case _:
            return Refusal(500, str(error), code=wire.REFUSED)


def _object_of(body: bytes) -> dict[str, Any]:
    try:
        fields: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "the body must be JSON") from error
    if not isinstance(fields, dict):
        raise Refusal(400, "the body must be a JSON object")
    return cast("dict[str, Any]", fields)


def _known(fields: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    if unknown := fields.keys() - {*names}:
        raise Refusal(400, f"{min(unknown)} is not a parameter of this request")
    return fields


def _asked_keys(fields: Mapping[str, Any]) -> list[str] | None:
    """Return the keys in a question; None: all keys."""
    if not fields.keys() & {"key", "keys"}:
        return None
    keys: object = fields.get("keys", [])
    if not isinstance(keys, list):
        raise Refusal(400, "keys must be a list")
    named = [fields["key"]] if "key" in fields else []
    return [valid_name("key", key) for key in [*named, *cast("list[str]", keys)]]


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    """Return a parameter that is a number from 0 on, which in a query is text; None: it is not given."""
    if name not in fields:
        return None
    told: Any = fields[name]
    is_text = isinstance(told, str) and re.fullmatch("[0-9]{1,16}", told)
    if is_text or (isinstance(told, float) and told.is_integer()):
        told = int(told)
    if type(told) is not int or not 0 <= told <= MAX_COUNT:
        raise Refusal(400, f"{name} must be a number from 0 to {MAX_COUNT}")
    return told


def _mapping(fields: Mapping[str, Any], name: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    value = fields.get(name, default)
    if not isinstance(value, dict):
        raise Refusal(400, f"{name} must be a JSON object")
    return cast("dict[str, Any]", value)


def _base_of(told: Mapping[str, Any]) -> dict[str, Entry | None]:
    try:
        return {valid_name("key", key): wire.expected_of(key, fields) for key, fields in told.items()}
    except ValueError as error:
        raise Refusal(400, f"base: {error}") from error


class StoredEntry(BaseModel):
    """One key of a namespace."""

    key: str
    value: str
    created_at: str | None
    updated_at: str | None
    sync_job_run_id: str | None
    version: int | None


class Entries(BaseModel):
    """Entries of a namespace."""

    result: list[StoredEntry]


class WrittenEntry(BaseModel):
    """One key as a commit wrote it."""

    key: str
    created_at: str | None
    updated_at: str | None
    sync_job_run_id: str | None
    version: int | None


class Written(BaseModel):
    """The entries that a commit wrote; deleted keys are left out."""

    result: list[WrittenEntry]


class KeptChange(BaseModel):
    """What one commit did to one key."""

    key: str
    before: str | None
    after: str | None
    version: int
    at: str
    run_id: str | None
    host: str
    process: int
    member: str | None
    reason: str | None
    by: str | None


class Changes(BaseModel):
    """What was changed, newest first."""

    result: list[KeptChange]


class Namespaces(BaseModel):
    """The namespaces that hold a key, sorted."""

    result: list[str]


class About(BaseModel):
    """The server's release; the store and facts about it are only for tokens that reach all namespaces."""

    release: str
    store: str | None
    facts: dict[str, str]


class CodedProblem(Problem):
    """An error; `code` identifies some errors: see the reference of `/v1`."""

    code: str | None = None


_NAME = {"type": "string", "minLength": 1, "pattern": r"^(?!\.\.?$)[^\u0000-\u001f\u007f-\u009f]+$"}
_TEXT = {"type": "string", "pattern": r"^[^\u0000]*$"}
_VALUE = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0, "maximum": MAX_COUNT}
_KEY = {"name": "key", "in": "query", "schema": _NAME, "description": "One key alone."}
_LIMIT = {"name": "limit", "in": "query", "schema": _COUNT, "description": "So many changes at most."}
_STATE_KEY = {"name": "state_key", "in": "query", "required": True, "schema": _NAME, "description": "The namespace."}
_EXPECTED = {
    "type": ["object", "null"],
    "properties": {
        "value": {"type": "string"},
        "updated_at": {"type": ["string", "null"]},
        "version": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**53},
    },
    "required": ["value"],
}
_NAMED: dict[str, Any] = {"type": "object", "propertyNames": _NAME}
_QUESTION: dict[str, Any] = {"state_key": _NAME, "key": _NAME}
_CHANGES: dict[str, Any] = {
    "state_key": _NAME,
    "changes": {**_NAMED, "additionalProperties": _VALUE},
    "base": {**_NAMED, "additionalProperties": _EXPECTED},
    "run_id": {"type": ["string", "null"], "pattern": r"^[^\u0000]*$"},
    "reasons": {"type": "object", "additionalProperties": _TEXT},
    "host": _TEXT,
    "process": _COUNT,
}


def add_calls(app: FastAPI, v1: V1) -> None:
    """Add the calls of the API to an application."""
    add = partial(_add_call, app, v1)
    add("GET", wire.ABOUT, v1.about, About)
    add("GET", wire.STATE, v1.state, Entries, [_STATE_KEY, _KEY])
    add("POST", wire.STATE, v1.state, Entries, body={**_QUESTION, "keys": {"type": "array", "items": _NAME}})
    add("POST", wire.COMMIT, v1.commit, Written, body=_CHANGES, required=("state_key", "changes"))
    add("GET", wire.HISTORY, v1.history, Changes, [_STATE_KEY, _KEY, _LIMIT])
    add("POST", wire.HISTORY, v1.history, Changes, body={**_QUESTION, "limit": _COUNT})
    add("GET", wire.NAMESPACES, v1.namespaces, Namespaces)


def _add_call(
    app: FastAPI,
    v1: V1,
    method: str,
    path: str,
    call: Endpoint,
    answer: type[BaseModel],
    parameters: Iterable[dict[str, Any]] = (),
    *,
    body: dict[str, Any] | None = None,
    required: tuple[str, ...] = ("state_key",),
) -> None:
    extra: dict[str, Any] = {"parameters": [*parameters]}
    if body is not None:
        schema = {"type": "object", "properties": body, "required": list(required), "additionalProperties": False}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    statuses = (400, 401, 403, 408, 409, 413, 429, 500, 501, 503, 504)
    problems: dict[int | str, dict[str, Any]] = {status: {"model": CodedProblem} for status in statuses}
    app.add_api_route(
        path, v1.answered(call), methods=[method], response_model=answer, responses=problems, openapi_extra=extra
    )
