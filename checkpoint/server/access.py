"""Who may do what: the tokens of the server."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Literal, TypeAlias

from checkpoint.server.messages import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

Wish: TypeAlias = Literal["read", "write"]


class Access:
    """The tokens that the server accepts.

    Raises:
        ValueError: the token is empty, or holds what a header cannot carry.

    """

    def __init__(self, token: str) -> None:
        if not (token and token.isascii() and token.isprintable() and " " not in token):
            raise ValueError("the token must be printable ASCII without spaces, and not empty")
        self._token = token.encode()

    def allow(self, headers: Iterable[tuple[bytes, bytes]], wish: Wish, state_key: str | None = None) -> str | None:
        """Return the name of whoever sent a request with these headers, as it is stored with a commit.

        `headers` are those of the ASGI scope. `state_key` None: no namespace is concerned. The name is None where the
        token has none.

        Raises:
            Refusal: 401 without a valid token; 403 where it does not allow the wish, or not in this namespace.

        """
        scheme, _, token = dict(headers).get(b"authorization", b"").partition(b" ")
        if not (hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"):
            raise Refusal(401, "a valid bearer token is required", {"WWW-Authenticate": "Bearer"})
        return None
