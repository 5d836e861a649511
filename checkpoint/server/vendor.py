"""The vendor's state API, served from any `Store`: the five calls, their limits and their errors.

Calls, fields and statuses are those of the vendor's reference for "Sync Job Run State". Where the reference is silent
or contradicts itself, `Switches` has a field. Its default is what a service should do; other values are for testing
clients.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from zlib import crc32

from pydantic import BaseModel
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotations of the calls
from starlette.responses import Response

from checkpoint.entries import Writer
from checkpoint.errors import Conflict, ValueTooLarge
from checkpoint.server.calls import Calls
from checkpoint.server.messages import (
    Problem,
    Refusal,
    asked_state_key,
    json_object,
    json_response,
    query_of,
    unquoted,
    valid_name,
)
from checkpoint.stores.base import ReadsKeys, history_of, host

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from fastapi import FastAPI

    from checkpoint.entries import Entry
    from checkpoint.server.access import Access
    from checkpoint.stores.base import Store

    Result = TypeVar("Result")

PATH = "/sync-job-run-state"
NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class Switches:
    """How the server answers where the API's reference leaves it open, and its limits."""

    patch_missing: Literal[404, "creates"] = 404
    """What PATCH of a missing key does."""
    post_existing: Literal["overwrites", 409, 400] = "overwrites"
    """What POST of an existing key does."""
    delete_missing: Literal[404, 200] = 404
    """The answer to DELETE of a missing key; 200 has an empty object."""
    unknown_namespace: Literal["empty", 404] = "empty"
    """The answer to a list of a namespace without entries."""
    write_answer: Literal[200, 201, 204, "empty", "wrong key", "wrong value"] = 200
    """The answer to POST, PATCH and DELETE: a status with the entry, no body (204, or "empty": 200), a wrong echo."""
    page_size: int | None = None
    """The most entries on a page of a list, with `next_cursor`. None: one page, unless the request has a `limit`."""
    empty_page: bool = False
    """After every page but the last, send an empty page that has a `next_cursor`."""
    repeated_cursor: bool = False
    """Every page but the first names itself as the next one; needs a `page_size`."""
    shuffled: bool = False
    """Lists are not sorted; the order is the same for every page."""
    duplicates: bool = False
    """Every entry is listed with older duplicates, before and after it."""
    stale_list: bool = False
    """Lists repeat the first answer for their namespace since this was set."""
    extra_fields: bool = False
    """Entries and lists have fields that the reference does not name, and timestamps are written in another way."""
    envelope: Any = ...
    """Answer a list with this JSON instead; `...`: with the list."""
    latency: float = 0.0
    """Seconds between applying a request and its answer."""
    rate: tuple[int, float] | None = None
    """(requests, seconds): more requests in any such time get 429 with Retry-After. None: no limit."""
    max_value: int | None = None
    """The largest value in bytes of UTF-8; a larger one gets 413. None: as large as the body may be."""
    max_body: int = 16 * 2**20
    """The largest body of a request in bytes; a larger one gets 413, and is not kept in memory."""
    max_commit: int = 64 * 2**20
    """The largest body of a commit through `/v1`, which has all of its keys in one body; as `max_body`."""
    in_threads: bool = True
    """Call the store in worker threads; False: on the event loop, for a store that never blocks."""


DEFAULTS = Switches()


class Api:
    """The five calls over one store; `options` may be replaced at any time."""

    def __init__(self, store: Store, access: Access, options: Switches = DEFAULTS) -> None:
        self.store = store
        self.options = options
        self.reading: Calls = Calls("reading")
        self.writing: Calls = Calls("writing")
        self._access = access
        self._admitted: deque[float] = deque()
        self._stale: dict[str, dict[str, Entry]] = {}

    def count(self) -> None:
        """Count a request, and refuse it if there are more than the rate allows."""
        if self.options.rate is None:
            return
        most, seconds = self.options.rate
        now = asyncio.get_running_loop().time()
        while self._admitted and self._admitted[0] <= now - seconds:
            self._admitted.popleft()
        if len(self._admitted) >= most:
            wait = max(1, ceil(self._admitted[0] + seconds - now))
            raise Refusal(429, f"more than {most} requests in {seconds:g} s", {"Retry-After": str(wait)})
        self._admitted.append(now)

    async def list_entries(self, request: Request) -> Response:
        """Return the entries of a namespace, or a page of them."""
        options, query = self.options, query_of(request)
        state_key = asked_state_key(query)
        self._access.allow(request.scope["headers"], "read", state_key)
        entries = await self.read(self.store.load, state_key)
        if options.stale_list:
            entries = self._stale.setdefault(state_key, entries)
        else:
            self._stale.clear()
        if not entries and options.unknown_namespace == NOT_FOUND:
            raise Refusal(404, f"{state_key!r} holds no entries")
        return await self.read(_list_answer, entries, query, options)

    async def get_entry(self, request: Request) -> Response:
        """Return one entry."""
        state_key, key = _names(request)
        self._access.allow(request.scope["headers"], "read", state_key)
        entry = await self.read(self._entry, state_key, key)
        if entry is None:
            raise _missing(key)
        return json_response(_fields(entry, self.options))

    async def create_entry(self, request: Request) -> Response:
        """Write an entry under the key that the body names."""
        options, state_key = self.options, asked_state_key(query_of(request))
        by = self._access.allow(request.scope["headers"], "write", state_key)
        key, value = await _strings(request, options, "key", "value")
        _check_size(valid_name("key", key), value, options)
        entry = await self.write(self._create, state_key, key, value, options.post_existing, by)
        return _answer_to_write(entry, options)

    async def update_entry(self, request: Request) -> Response:
        """Replace the value of an entry."""
        options, (state_key, key) = self.options, _names(request)
        by = self._access.allow(request.scope["headers"], "write", state_key)
        (value,) = await _strings(request, options, "value")
        _check_size(key, value, options)
        _, entry = await self.write(self._swap, state_key, key, value, options.patch_missing, by)
        return _answer_to_write(entry, options)

    async def delete_entry(self, request: Request) -> Response:
        """Delete an entry, and return what it was."""
        options, (state_key, key) = self.options, _names(request)
        by = self._access.allow(request.scope["headers"], "write", state_key)
        entry, _ = await self.write(self._swap, state_key, key, None, options.delete_missing, by)
        return _answer_to_write(entry, options)

    async def read(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function that reads from the store, in a thread.

        Raises:
            Refusal: 400 if the store refuses the arguments; 503 if too many calls are waiting.

        """
        return await self._call(self.reading, function, *args)

    async def write(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function that writes to the store, in a thread of its own kind, so that it does not block reads.

        Raises:
            Refusal: as `read`.

        """
        return await self._call(self.writing, function, *args)

    async def _call(self, calls: Calls, function: Callable[..., Result], *args: Any) -> Result:
        try:
            return await calls(function, *args) if self.options.in_threads else function(*args)
        except (TypeError, ValueError) as error:
            raise Refusal(400, str(error)) from error

    def _entry(self, state_key: str, key: str) -> Entry | None:
        """Return one entry; without loading the others if the store can."""
        if isinstance(self.store, ReadsKeys):
            return self.store.read(state_key, [key]).get(key)
        return self.store.load(state_key).get(key)

    def _commit(
        self, state_key: str, key: str, value: str | None, base: Mapping[str, Entry | None], by: str | None
    ) -> Entry | None:
        """Write or delete one entry; return it as it is now."""
        keeping = history_of(self.store)
        if by is not None and keeping is not None:
            writer = Writer(host(), os.getpid(), by)
            return keeping.commit(state_key, {key: value}, base, writer=writer).entries.get(key)
        return self.store.commit(state_key, {key: value}, base).entries.get(key)

    def _create(
        self, state_key: str, key: str, value: str, existing: Literal["overwrites", 409, 400], by: str | None
    ) -> Entry | None:
        if existing == "overwrites":
            return self._commit(state_key, key, value, {}, by)
        try:
            # Looked up first, because a commit of the value that is stored already is not a conflict on every store.
            if self._entry(state_key, key) is None:
                return self._commit(state_key, key, value, {key: None}, by)
        except Conflict:
            pass
        raise Refusal(existing, f"{key!r} exists")

    def _swap(
        self, state_key: str, key: str, value: str | None, missing: object, by: str | None
    ) -> tuple[Entry | None, Entry | None]:
        """Write or delete an existing key, also while others write; return its entry before and after."""
        while True:
            found = self._entry(state_key, key)
            if found is None and missing == NOT_FOUND:
                raise _missing(key)
            try:
                return found, self._commit(state_key, key, value, {key: found}, by)
            except Conflict:
                continue


def _missing(key: str) -> Refusal:
    return Refusal(404, f"{key!r} does not exist")


def _names(request: Request) -> tuple[str, str]:
    """Return the state_key and the key that a request is about."""
    return asked_state_key(query_of(request)), valid_name("key", unquoted(request.path_params["id"].encode("latin-1")))


async def _strings(request: Request, options: Switches, *names: str) -> list[str]:
    """Return the named fields of a JSON body."""
    fields = await json_object(request, options.max_body)
    for name in names:
        if name not in fields:
            raise Refusal(400, f"{name} is required")
        if not isinstance(fields[name], str):
            raise Refusal(422, f"{name} must be a string")
    return [fields[name] for name in names]


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


def _list_answer(entries: Mapping[str, Entry], query: Mapping[str, str], options: Switches) -> Response:
    page = _page(_arranged(list(entries.values()), options), query, options)
    return json_response(page if options.envelope is ... else options.envelope)


def _page(entries: list[Entry], query: Mapping[str, str], options: Switches) -> dict[str, Any]:
    """Return a page of a list; a cursor is an offset, with an `e` after it if an empty page comes first."""
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
    """Answer a write with the entry; None: a deleted key that did not exist."""
    fields = _fields(entry, options) if entry is not None else {}
    match options.write_answer:
        case 204:
            return Response(status_code=204)
        case "empty":
            return Response()
        case "wrong key" | "wrong value" as wrong:
            return json_response({**fields, wrong.removeprefix("wrong "): "wrong"})
        case status:
            return json_response(fields, status)


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


class StateEntry(BaseModel):
    """One key of a namespace."""

    key: str
    value: str
    created_at: str | None
    updated_at: str | None
    sync_job_run_id: str | None


class StatePage(BaseModel):
    """A namespace, or a page of it. `next_cursor` is null on the last page, and left out if lists are not paged."""

    result: list[StateEntry]
    next_cursor: str | None = None


_NAME = {"type": "string", "minLength": 1, "pattern": r"^(?!\.\.?$)[^\u0000-\u001f\u007f-\u009f]+$"}
_TEXT = {"type": "string"}
_STATE_KEY = {"name": "state_key", "in": "query", "required": True, "schema": _NAME, "description": "The namespace."}
_ID = {"name": "id", "in": "path", "required": True, "schema": _NAME, "description": "The entry's key."}
_LIMIT = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 10**15 - 1}}
_CURSOR = {"name": "next_cursor", "in": "query", "schema": {"type": "string", "pattern": "^([0-9]{1,15}e?)?$"}}
_LISTED: list[dict[str, Any]] = [_STATE_KEY, _LIMIT, _CURSOR]
_ONE: list[dict[str, Any]] = [_ID, _STATE_KEY]


def add_calls(app: FastAPI, api: Api) -> None:
    """Add the five calls to an application."""
    one, every = PATH + "/{id}", (400, 401, 403, 408, 429, 500, 503, 504)
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
