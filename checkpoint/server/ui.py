"""The web page under `/ui`: the contents of the store as HTML.

It only reads. There is no script, no cookie and no request to another host: a token is the password of HTTP Basic
(RFC 7617), the Host header must name this server (DNS rebinding), and the content security policy allows nothing but
the style sheet, by its hash.
"""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from hashlib import sha256
from http import HTTPStatus
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from checkpoint.errors import CheckpointError, CorruptState, StoreUnavailable, printable
from checkpoint.overview import words
from checkpoint.overview.commands import Commands
from checkpoint.overview.moments import instant, now, seconds_since
from checkpoint.overview.namespaces import AbsentError, Name, Namespace, meant
from checkpoint.server import views
from checkpoint.server.messages import Refusal, query_of, valid_name
from checkpoint.stores.base import Atomic, ListsNamespaces

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from starlette.types import Receive, Scope, Send

    from checkpoint.server.access import Access
    from checkpoint.stores.base import Store

    Call = Callable[..., Awaitable[Any]]

logger: logging.Logger = logging.getLogger("checkpoint")

PATH = "/ui"

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = (_TEMPLATES / "style.css").read_text("utf-8")

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; "
    f"style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every response of the page."""

_CHALLENGE = {"WWW-Authenticate": 'Basic realm="checkpoint", charset="UTF-8"'}


class Shown(NamedTuple):
    """Settings of the page."""

    host_names: tuple[str, ...] = ()
    """Names allowed in the Host header, in addition to loopback names and the address of the connection; ports are
    ignored.
    """
    commands: Commands | None = None
    """The commands on the page; None: commands with this server as the store, at the requested address."""


DEFAULT = Shown()


class Page:
    """The page over one store: an ASGI application for `/ui` and what is below it.

    Args:
        store: the store to show; it is only read.
        access: decides who may read which namespace.
        shown: how.
        call: calls a function that reads the store, in a thread.

    Raises:
        ValueError: one of the host names is invalid.

    """

    def __init__(self, store: Store, access: Access, shown: Shown = DEFAULT, call: Call = run_in_threadpool) -> None:
        self._store = store
        self._access = access
        self._host_names = {host_name(name) for name in shown.host_names}
        self._commands = shown.commands
        self._call = call

    def routes(self) -> list[Route]:
        """Return the routes of the page, for an application that includes it."""
        return [
            Route("/", _to_page, methods=["GET"], include_in_schema=False),
            Route(PATH, self, include_in_schema=False),
            Route(f"{PATH}/{{page:path}}", self, include_in_schema=False),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        response = await self._answer(Request(scope, receive))
        response.headers.update(HEADERS)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            _check(request, self._host_names)
            if "page" not in request.path_params:
                return RedirectResponse(f"{PATH.rpartition('/')[2]}/", HTTPStatus.PERMANENT_REDIRECT)
            return await self._shown(request, request.path_params["page"])
        except Refusal as refusal:
            headers = _CHALLENGE if refusal.status == HTTPStatus.UNAUTHORIZED else refusal.headers
            return _html(
                "refused.html",
                {"status": refusal.status, "why": refusal.message, "replace": None},
                refusal.status,
                headers,
            )
        except CheckpointError as error:
            status = _status_of(error)
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                extra = {"checkpoint_event": "request_failed", "checkpoint_status": status}
                logger.error("%s %s: %s", PATH, status, error, extra=extra)  # noqa: TRY400 - no traceback
            replace = await self._call(self._replacing, request, error) if isinstance(error, CorruptState) else None
            return _html("refused.html", {"status": status, "why": str(error), "replace": replace}, status)

    def _replacing(self, request: Request, error: CorruptState) -> str | None:
        # At the store itself: a server replaces no row.
        return (self._commands or Commands()).replace(self._store, error)

    async def _shown(self, request: Request, page: str) -> Response:
        headers, query = request.scope["headers"], query_of(request)
        commands = self._commands or _commands_for(request, self._store)
        if page == "":
            self._access.allow(headers, "read")
            context = await self._call(self._namespaces, headers, query)
            return _html("namespaces.html", context)
        show = _PAGES.get(page)
        namespace = valid_name("namespace", query["namespace"]) if "namespace" in query else None
        self._access.allow(headers, "read", namespace)
        if show is None:
            raise Refusal(404, "there is no such page")
        if namespace is None:
            raise Refusal(400, "namespace is required")
        context = await self._call(show, self, headers, namespace, query, commands)
        return _html(f"{page}.html", context)

    # One function for each page, called in a thread.

    def _namespaces(self, headers: Any, query: Mapping[str, str]) -> dict[str, Any]:
        if not isinstance(self._store, ListsNamespaces):
            return {"lists": False, "store": repr(self._store)}
        names = self._access.readable(headers, self._store.namespaces())
        shown = views.namespaces_shown(self._store, names, _asked(query))
        return {"lists": True, "store": repr(self._store), **shown}

    def _namespace(self, headers: Any, name: str, query: Mapping[str, str], commands: Commands) -> dict[str, Any]:
        return views.keys_shown(self._loaded(headers, name), _asked(query), commands)

    def _group(self, headers: Any, name: str, query: Mapping[str, str], _: Commands) -> dict[str, Any]:
        return views.members_shown(self._loaded(headers, name), _needed(query, "key"), _asked(query))

    def _key(self, headers: Any, name: str, query: Mapping[str, str], commands: Commands) -> dict[str, Any]:
        member = valid_name("member", query["member"]) if "member" in query else None
        there, key = Namespace(self._store, name), _needed(query, "key")
        return views.key_shown(there, Name(key, member), _asked(query).page, commands)

    def _runs(self, headers: Any, name: str, query: Mapping[str, str], commands: Commands) -> dict[str, Any]:
        return views.runs_shown(self._loaded(headers, name), _asked(query).page, commands)

    def _loaded(self, headers: Any, name: str) -> Namespace:
        """Return a namespace that is not empty.

        Raises:
            AbsentError: it is empty; only readable names are suggested.

        """
        there = Namespace(self._store, name)
        if not there.stored:
            listed = self._store.namespaces() if isinstance(self._store, ListsNamespaces) else []
            raise AbsentError(f"{name!r} holds nothing{meant(name, self._access.readable(headers, listed))}")
        return there


async def _to_page(request: Request) -> Response:
    """Redirect a browser to the page; a root request with a query is from a client with a wrong path.

    Raises:
        HTTPException: 404.

    """
    if request.url.query:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return RedirectResponse(f"{PATH.rpartition('/')[2]}/", HTTPStatus.TEMPORARY_REDIRECT)


_PAGES = {"namespace": Page._namespace, "group": Page._group, "key": Page._key, "runs": Page._runs}  # noqa: SLF001 - ours


def _check(request: Request, names: set[str]) -> None:
    """Check that a request is a GET and addresses this server by name: a page of another host may have sent it.

    Raises:
        Refusal: 400, 405.

    """
    given = [value.decode("latin-1") for name, value in request.scope["headers"] if name == b"host"]
    host = _host_of(given[0]) if len(given) == 1 else ""
    server = request.scope.get("server")
    here: set[str] = {"localhost", *names, *([str(server[0])] if server else [])}
    if host not in here and not _is_same_address(host, here):
        raise Refusal(400, f"this server does not answer for the host {host!r}: add it with --host-name")
    if request.method != "GET":
        raise Refusal(405, "the page is read-only: use GET", {"Allow": "GET"})


def host_name(given: str) -> str:
    """Parse the name out of a host setting, such as `state.example.com` or `gateway:8443`.

    Raises:
        ValueError: it is not a host name.

    """
    name = _host_of(given) or given.lower()
    if (":" in name or not _host_of(given)) and _address(name) is None:
        raise ValueError(
            f"{given!r} is not a host name: give one such as state.example.com, without https:// and without a path"
        )
    return name


def _host_of(header: str) -> str:
    """Return the name in a Host header; empty: the header is invalid."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]*)?", header.lower())
    return "" if found is None else found[1] or found[2].removesuffix(".")


def _is_same_address(host: str, names: Iterable[str]) -> bool:
    """Tell whether a host is a loopback address, or equal to one of these addresses in any spelling."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or any(address == _address(name) for name in names)


def _address(name: str) -> Any:
    try:
        address = ip_address(name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _commands_for(request: Request, store: Store) -> Commands:
    """Return the commands with this server as the store, at the address that the browser uses."""
    scheme = "https" if request.headers.get("x-forwarded-proto") == "https" else request.scope["scheme"]
    own = "server+" if isinstance(store, Atomic) else ""
    return Commands(f"{own}{scheme}://{request.headers['host']}{request.scope.get('root_path', '')}")


def _status_of(error: CheckpointError) -> int:
    if isinstance(error, AbsentError):
        return 404
    return 503 if isinstance(error, StoreUnavailable) else 500


def _asked(query: Mapping[str, str]) -> views.Asked:
    """Parse the query of a list.

    Raises:
        Refusal: its page is not a number, or its sort is unknown.

    """
    page, sort = query.get("page") or "1", query.get("sort") or ""
    if not re.fullmatch("[0-9]{1,9}", page):
        raise Refusal(400, "page must be a number")
    if sort not in {"", *views.SORTS}:
        raise Refusal(400, f"sort must be one of {', '.join(views.SORTS)}")
    return views.Asked(query.get("search", "").strip(), sort, int(page), query.get("only", ""))


def _needed(query: Mapping[str, str], name: str) -> str:
    if name not in query:
        raise Refusal(400, f"{name} is required")
    return valid_name(name, query[name])


# HTML


def _html(
    template: str, context: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    text = _ENVIRONMENT.get_template(template).render({"at": now(), **context})
    return Response(text, status, headers, "text/html")


def _link(page: str, /, **query: object) -> str:
    """Return a relative address: a gateway may serve the page under any path."""
    given = {name: str(value) for name, value in query.items() if value not in {None, ""}}
    return f"{page or './'}{'?' if given else ''}{urlencode(given, quote_via=quote, safe='')}"


def _shown(value: Any) -> Any:
    """Return a value for the page; in text, characters that reverse or break a line are escaped."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _exact(value: str) -> Markup:
    """Return a form value that the browser sends back unchanged: unprintable characters become numeric references."""
    letters = (letter if letter.isprintable() else f"&#{ord(letter)};" for letter in str(escape(value)))
    return Markup("".join(letters))  # noqa: S704 - it is escaped


def _utc(moment: str | None) -> str:
    """Return a time for people, to the second; unchanged if it cannot be parsed."""
    then = instant(moment)
    return f"{then:%Y-%m-%d %H:%M:%S} UTC" if then is not None else moment or ""


def _since(moment: str | None) -> str:
    seconds = seconds_since(moment)
    return "unknown" if seconds is None else _past(seconds)


def _past(seconds: float) -> str:
    return words.span(seconds) if seconds <= -1 else f"{words.span(seconds)} ago"


def _behind(seconds: float) -> str:
    return f"{words.span(-seconds)} ahead".removeprefix("in ") if seconds <= -1 else f"{words.span(seconds)} behind"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "ago": _since,
        "behind": _behind,
        "exact": _exact,
        "past": _past,
        "span": words.span,
        "svg": Markup,
        "utc": _utc,
    }
    known: dict[str, Any] = {
        "count": words.count,
        "link": _link,
        "style": Markup(_STYLE),  # noqa: S704 - the package's own file
        "version": version("checkpoint-store"),
    }
    environment.filters.update(filters)
    environment.globals.update(known)
    return environment


_ENVIRONMENT = _environment()
