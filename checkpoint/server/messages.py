"""What the calls of both APIs share: reading a request, answering it, refusing it."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import orjson
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response

from checkpoint.stores.base import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from starlette.requests import Request


class Problem(BaseModel):
    """An error; `error` is the name of the status."""

    statusCode: int  # noqa: N815 - the API's spelling
    error: str
    message: str


class Refusal(Exception):
    """An error answer in the API's own form, with further fields that a client may need."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None, **fields: Any) -> None:
        super().__init__(status, message, headers)
        self.status = status
        self.message = message
        self.headers = headers
        self._fields = fields

    def response(self) -> Response:
        """Return the answer, such as `{"statusCode": 400, "error": "Bad Request", "message": "key is required"}`."""
        error = HTTPStatus(self.status).phrase
        body = {"statusCode": self.status, "error": error, "message": self.message, **self._fields}
        return json_response(body, self.status, self.headers)


class PlainRoute(APIRoute):
    """A route whose endpoint takes the request and returns the response: nothing is injected or validated."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer whose body is JSON."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def asked_state_key(query: Mapping[str, str]) -> str:
    """Return the namespace that a query names.

    Raises:
        Refusal: it names none, or an invalid one.

    """
    if "state_key" not in query:
        raise Refusal(400, "state_key is required")
    return valid_name("state_key", query["state_key"])


def valid_name(what: str, name: str) -> str:
    """Return a name that every store can hold.

    Raises:
        Refusal: the name is invalid; see `check_name`.

    """
    try:
        check_name(what, name)
    except (TypeError, ValueError) as error:
        raise Refusal(400, str(error)) from error
    return name


def query_of(request: Request) -> dict[str, str]:
    """Return the parameters of a query; `+` is a space, as in forms.

    Raises:
        Refusal: a parameter is given twice, or is not percent-encoded.

    """
    query: dict[str, str] = {}
    for pair in filter(None, request.scope["query_string"].split(b"&")):
        name, _, value = (unquoted(part) for part in pair.replace(b"+", b" ").partition(b"="))
        if name in query:
            raise Refusal(400, f"{name} is given twice")
        query[name] = value
    return query


_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def unquoted(raw: bytes) -> str:
    """Undo percent-encoding (RFC 3986, section 2.1) exactly: two different texts stay different.

    Raises:
        Refusal: it is not percent-encoded UTF-8.

    """
    if _BAD_ESCAPE.search(raw):
        raise Refusal(400, "the URL is not percent-encoded")
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise Refusal(400, "the URL is not percent-encoded UTF-8") from error


async def json_object(request: Request, most: int) -> dict[str, Any]:
    """Return the JSON object in the body of a request, which may have `most` bytes.

    Raises:
        Refusal: the body is longer, or not a JSON object.

    """
    try:
        fields: Any = orjson.loads(await body_of(request, most))
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "the body must be JSON") from error
    if not isinstance(fields, dict):
        raise Refusal(400, "the body must be a JSON object")
    return fields  # pyright: ignore[reportUnknownVariableType]  # JSON


async def body_of(request: Request, most: int) -> bytes:
    """Return the body of a request, which may have `most` bytes; a longer one is not kept in memory.

    Raises:
        Refusal: it is longer.

    """
    too_long = Refusal(413, f"the body must not be longer than {most} bytes")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > most:
            raise too_long
        body += chunk
    return bytes(body)
