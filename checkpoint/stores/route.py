"""How a service is reached: the proxy and certificates from the environment, and the errors of a connection.

The variables are those of httpx, but `NO_PROXY` is evaluated here: httpx's rules differ between releases. Each error
names the party that failed, and the variable to correct.
"""

from __future__ import annotations

import os
import re
import ssl
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.request import getproxies

from checkpoint.errors import StoreError, printable
from checkpoint.stores.network import KEPT, HandshakeFailed, is_a_librarys, links_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from checkpoint.stores.tokens import Secret
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx

E = TypeVar("E", bound=BaseException)

PROXY_AUTHENTICATION_REQUIRED = 407

_PORTS = {"http": 80, "https": 443}
_EXEMPTED = re.compile(r"(?:(?P<scheme>\w+)://)?(?P<host>\[.*\](?:/\d+)?|[^:]*|.*:.*:.*)(?::(?P<port>\d+))?")

_MISTAKES = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL, UnicodeError)
_FAILURES = (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError)
_NOT_REACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class TransportError(Exception):
    """A request without a complete response.

    `reached`: whether the service may have received and executed it. `again`: whether a retry makes sense.
    """

    def __init__(self, text: str, *, reached: bool, again: bool = True) -> None:
        super().__init__(text)
        self.reached = reached
        self.again = again


class Proxy(NamedTuple):
    """The proxy that the environment sets for a service."""

    variable: str
    url: str
    """The URL as set, including user and password: never shown."""

    @property
    def address(self) -> str:
        """Host and port."""
        return self.url.rpartition("@")[2].rpartition("://")[2].rstrip("/")

    @property
    def host(self) -> str:
        """The name or address alone."""
        return httpx.URL(self.url).host

    def __repr__(self) -> str:
        return f"the proxy {self.address} ({self.variable})"

    def wants_login(self) -> str:
        """Return the text of the error for a proxy that asks for a login."""
        return (
            f"{self} asks for a user and a password, or refused the given ones (407 Proxy Authentication Required): "
            f"write them into {self.variable} as http://USER:PASSWORD@{self.address}"
        )


class Route(NamedTuple):
    """The way to a service."""

    host: str
    port: int
    tls: bool
    proxy: Proxy | None

    def transport(self, make: Callable[..., Any], connections: int, **options: Any) -> Any:
        """Return an httpx transport for the service.

        Raises:
            StoreError: the proxy or the certificates that the environment names cannot be used.

        """
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEPT)
        proxy = None
        if self.proxy is not None:
            own = _context("proxy") if self.proxy.url.startswith("https:") else None
            proxy = httpx.Proxy(self.proxy.url, ssl_context=own)
        try:
            return make(verify=self.context(make), limits=limits, proxy=proxy, **options)
        except ImportError as error:
            raise StoreError(
                f"{self.proxy} speaks SOCKS, which needs another package: pip install 'httpx[socks]'"
            ) from error

    def context(self, make: Callable[..., Any]) -> ssl.SSLContext | None:
        """Return the SSL context of a kind of httpx transport, None for `http:`."""
        return _context(make.__name__) if self.tls else None  # building one takes longer than a request


def route_to(base_url: str) -> Route:
    """Return the way to a service.

    Raises:
        StoreError: the proxy in the environment is invalid.

    """
    url, proxies = httpx.URL(base_url), getproxies()
    exempted = any(_is_exempted(url, item.strip()) for item in proxies.get("no", "").split(","))
    proxy = None if exempted else _named_proxy(url.scheme, proxies)
    if proxy is not None:
        try:
            httpx.Proxy(proxy.url)
        except (ValueError, httpx.InvalidURL) as error:
            raise StoreError(f"the proxy in {proxy.variable} cannot be used: {type(error).__name__}") from None
    return Route(url.raw_host.decode(), url.port or _PORTS[url.scheme], url.scheme == "https", proxy)


def _named_proxy(scheme: str, proxies: dict[str, str]) -> Proxy | None:
    for kind in (scheme, "all"):
        if url := proxies.get(kind):
            variables = [name for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY") if os.environ.get(name)]
            variable = f"${variables[0]}" if variables else "of the system's settings"
            return Proxy(variable, url if "://" in url else f"http://{url}")
    return None


def _is_exempted(url: httpx.URL, item: str) -> bool:
    """Whether an item of NO_PROXY matches a service.

    An item is `*`, a name (matches itself and subdomains; `.name` and `*.name` match subdomains only), an address or a
    network. It may begin with a scheme and end with a port.
    """
    named = _EXEMPTED.fullmatch(item.lower())
    if named is None or not named["host"]:
        return False
    name, host = named["host"].replace("[", "").replace("]", ""), url.host.lower()
    if named["scheme"] not in {None, "all", url.scheme}:
        return False
    if named["port"] is not None and int(named["port"]) != (url.port or _PORTS.get(url.scheme)):
        return False
    try:
        return ip_address(host) in ip_network(name, strict=False)
    except ValueError:  # one of them is a name
        below = name.lstrip("*").lstrip(".")
        return host.endswith(f".{below}") or name in {host, "*"}


@lru_cache(8)
def _context_of(_file: str | None, _folder: str | None, _client: str) -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise StoreError(
            f"the trusted certificates cannot be loaded: {error}; check SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error


def _context(kind: str) -> ssl.SSLContext:
    """Return an SSL context that trusts the certificates named in these environment variables, or the default ones.

    Each kind of connection has its own: httpcore sets the offered protocols on it.
    """
    return _context_of(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"), kind)


def failed(
    error: Exception, outer: BaseException | None, proxy: Proxy | None, token: Secret
) -> tuple[Exception, Exception | None]:
    """Return the error to raise for a failed request, and its cause.

    An error from outside the HTTP libraries is raised unchanged. `outer`: the error that was being handled before the
    request.
    """
    if not isinstance(error, _FAILURES) and not is_a_librarys(error):
        return error, None
    links = links_of(error, outer)
    said = printable(token.hide(str(error)))
    bare = type(error)(said) if isinstance(error, httpx.HTTPError) else RuntimeError(f"{type(error).__name__}: {said}")
    return _translated(links, proxy, token), bare  # without its frames and request, which hold the token


def _translated(links: list[BaseException], proxy: Proxy | None, token: Secret) -> TransportError:
    error, text = links[0], _words_of(links, token)
    certificate = _first(links, ssl.SSLCertVerificationError)
    if certificate is not None:
        return _untrusted(certificate, _first(links, HandshakeFailed), proxy)
    if isinstance(error, httpx.ProxyError):
        return _refused_by_proxy(text, proxy)
    if isinstance(error, httpx.ConnectError):
        if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
            return TransportError(f"the service does not speak TLS: try http:// ({text})", reached=False, again=False)
        if proxy is not None and _first(links, ssl.SSLError) is None:
            return TransportError(f"{proxy} cannot be reached: {text}", reached=False, again=False)
    text += by_way_of(proxy)
    again = not isinstance(error, _MISTAKES)
    return TransportError(text, reached=again and not isinstance(error, _NOT_REACHED), again=again)


def by_way_of(proxy: Proxy | None) -> str:
    """Return a phrase that names the proxy in an error; empty without a proxy."""
    return "" if proxy is None else f" (through {proxy})"


def _untrusted(
    certificate: ssl.SSLCertVerificationError, handshake: HandshakeFailed | None, proxy: Proxy | None
) -> TransportError:
    variables = [f"${name}" for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
    named = " or ".join(variables)
    advice = f"only the certificates in {named} are trusted" if named else "for a company's own CA, set SSL_CERT_FILE"
    whose = "the service's certificate"
    if proxy is not None and handshake is not None and handshake.host == proxy.host:
        whose = f"the certificate of {proxy}"
    return TransportError(f"{whose} is not trusted: {certificate}; {advice}", reached=False, again=False)


def _refused_by_proxy(text: str, proxy: Proxy | None) -> TransportError:
    if proxy is not None and str(PROXY_AUTHENTICATION_REQUIRED) in text:
        return TransportError(proxy.wants_login(), reached=False, again=False)
    passes = re.search(r"ProxyError: (408|429|5\d\d)\b|unreachable|connection refused|TTL expired", text, re.IGNORECASE)
    return TransportError(f"{proxy} refused the connection: {text}", reached=False, again=passes is not None)


def _first(links: list[BaseException], kind: type[E]) -> E | None:
    return next((link for link in links if isinstance(link, kind)), None)


def _words_of(links: list[BaseException], token: Secret) -> str:
    """Describe an error: the library's class name, and the system's message if there is one."""
    system = [link for link in links if isinstance(link, OSError) and link.errno is not None]
    said = printable(token.hide(str(system[-1] if system else links[0])))
    return f"{type(links[0]).__name__}: {said}" if said else type(links[0]).__name__
