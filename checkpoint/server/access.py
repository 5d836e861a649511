"""Who may do what: the server's tokens, from the environment or from a file."""

from __future__ import annotations

import hmac
import logging
import os
import re
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from checkpoint.server.messages import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

logger: logging.Logger = logging.getLogger("checkpoint")

Wish: TypeAlias = Literal["read", "write"]
Header: TypeAlias = "tuple[bytes, bytes]"

TOKEN = "CHECKPOINT_SERVER_TOKEN"  # noqa: S105 - the name of a variable
READ_TOKEN = "CHECKPOINT_SERVER_READ_TOKEN"  # noqa: S105 - likewise
TOKENS = "CHECKPOINT_SERVER_TOKENS"
EVERYTHING = "*"

_CHALLENGE = {"WWW-Authenticate": 'Bearer, Basic realm="checkpoint", charset="UTF-8"'}


class Grant(NamedTuple):
    """What a token allows."""

    name: str | None
    """The name of its holder. None: the token is from the environment."""
    wish: Wish
    """What it allows. `write` includes reading."""
    prefix: str
    """The prefix of the namespaces that it reaches. Empty: all."""
    digest: bytes
    """SHA-256 of the token."""

    def allows(self, wish: Wish, state_key: str | None) -> bool:
        """Return whether a request is allowed; `state_key` None: it concerns no namespace."""
        return wish in {"read", self.wish} and (state_key is None or state_key.startswith(self.prefix))

    @property
    def line(self) -> str:
        """The line for this grant in a file of tokens."""
        return f"{self.name} {self.wish} {self.prefix or EVERYTHING} {self.digest.hex()}"


class Access:
    """The tokens that the server accepts: given ones, and those in a file, which is read again when it changes."""

    def __init__(self, grants: Iterable[Grant], file: str | os.PathLike[str] | None = None) -> None:
        """Accept the given grants, and those in the file.

        Raises:
            OSError: the file cannot be read.
            ValueError: a line of it is not `NAME read|write PREFIX SHA256`, or there are neither grants nor a file.

        """
        self._given = tuple(grants)
        self._path = None if file is None else Path(file)
        self._seen = self._identity()
        self._listed = () if self._path is None else _listed(self._path.read_text("utf-8"))
        if not self._given and self._path is None:
            raise ValueError(f"a token is needed: set ${TOKEN}, or ${TOKENS} to a file of tokens")

    @classmethod
    def of_token(cls, token: str) -> Access:
        """Accept one token, which may read and write everything.

        Raises:
            ValueError: it is empty, or contains characters that a header cannot carry.

        """
        return cls([_unnamed("write", token, "the token")])

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Access:
        """Accept the tokens in `$CHECKPOINT_SERVER_TOKEN` and `$CHECKPOINT_SERVER_READ_TOKEN`, and those in the file.

        The file is named by `$CHECKPOINT_SERVER_TOKENS`.

        Raises:
            OSError, ValueError: as the constructor, or a token contains characters that a header cannot carry.

        """
        wishes: tuple[tuple[str, Wish], ...] = ((TOKEN, "write"), (READ_TOKEN, "read"))
        given = [_unnamed(wish, environment[name], f"${name}") for name, wish in wishes if environment.get(name)]
        return cls(given, environment.get(TOKENS) or None)

    def allow(self, headers: Iterable[Header], wish: Wish, state_key: str | None = None) -> str | None:
        """Return the name of the token in the headers of a request, if the token allows the wish; None: it has no name.

        `headers` are those of the ASGI scope, with `Authorization: Bearer TOKEN`. For reading, `Basic` with the token
        as the password is accepted too. It is not accepted for writing, because browsers also add it to a form of
        another site. `state_key` None: the request concerns no namespace.

        Raises:
            Refusal: 400 for two `Authorization` headers; 401 without a valid token; 403 if the token does not allow the
                wish, or not in this namespace, or for writing with `Basic`.

        """
        is_basic, grants = self._grants_of(headers)
        if is_basic and wish == "write":
            raise Refusal(403, "HTTP Basic is for reading: to write, send Authorization: Bearer TOKEN")
        for grant in grants:
            if grant.allows(wish, state_key):
                return grant.name
        name = grants[0].name or "this token"
        if not any(grant.allows(wish, None) for grant in grants):
            raise Refusal(403, f"{name} may only read")
        raise Refusal(403, f"{name} may not {wish} in the namespace {state_key!r}")

    def readable(self, headers: Iterable[Header], state_keys: Iterable[str]) -> list[str]:
        """Return those of the namespaces that the token in the headers may read.

        Raises:
            Refusal: as `allow`.

        """
        _, grants = self._grants_of(headers)
        return [name for name in state_keys if any(grant.allows("read", name) for grant in grants)]

    def reaches_all(self, headers: Iterable[Header]) -> bool:
        """Return whether the token in the headers may read all namespaces.

        Raises:
            Refusal: as `allow`.

        """
        _, grants = self._grants_of(headers)
        return any(not grant.prefix for grant in grants)

    def _grants_of(self, headers: Iterable[Header]) -> tuple[bool, list[Grant]]:
        """Return whether the headers use `Basic`, and the grants of their token: at least one."""
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) > 1:
            raise Refusal(400, "Authorization is given twice")
        is_basic, token = _token_of(given[0]) if given else (False, b"")
        digest = sha256(token).digest()
        # All are compared, also after one was found, so that the time reveals nothing.
        found = [grant for grant in (*self._given, *self._current()) if hmac.compare_digest(grant.digest, digest)]
        if not (token and found):  # a line may have the digest of an empty token, made from an empty variable
            raise Refusal(401, "a valid bearer token is required", _CHALLENGE)
        return is_basic, found

    def _current(self) -> tuple[Grant, ...]:
        """Return the grants in the file; if it cannot be read, those that it had before."""
        if self._path is None or self._identity() == self._seen:
            return self._listed
        self._seen = self._identity()
        try:
            self._listed = _listed(self._path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            extra = {"checkpoint_event": "tokens_not_read"}
            logger.error("%s cannot be read, so the earlier tokens stay valid: %s", self._path, error, extra=extra)  # noqa: TRY400 - no traceback
        else:
            extra = {"checkpoint_event": "tokens_read"}
            logger.info("%s was read again: %d tokens", self._path, len(self._listed), extra=extra)
        return self._listed

    def _identity(self) -> tuple[int, ...] | None:
        """Return values that change when the file changes; None: there is no file."""
        try:
            found = os.stat(self._path) if self._path is not None else None  # noqa: PTH116 - for each request
        except OSError:
            return None
        return found and (found.st_ino, found.st_mtime_ns, found.st_size)


def new_token(name: str, wish: Wish, prefix: str) -> tuple[str, str]:
    """Return a new token, and its line for the server's file of tokens.

    Raises:
        ValueError: the name or the prefix is not one word.

    """
    for what, word in (("the name", name), ("the prefix", prefix)):
        if not word.isprintable() or len(word.split()) != 1 or word.startswith("#"):
            raise ValueError(f"{what} must be one word without spaces, not {word!r}")
    token = token_urlsafe(32)
    return token, Grant(name, wish, prefix.removesuffix(EVERYTHING), sha256(token.encode()).digest()).line


def _unnamed(wish: Wish, token: str, what: str) -> Grant:
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{what} must be printable ASCII without spaces, and not empty")
    return Grant(None, wish, "", sha256(token.encode()).digest())


_LINE = re.compile(r"(?P<name>\S+)\s+(?P<wish>read|write)\s+(?P<prefix>\S+)\s+(?P<digest>[0-9A-Fa-f]{64})")


def _listed(text: str) -> tuple[Grant, ...]:
    """Return the grants in a file of tokens; empty lines, and lines that begin with `#`, are ignored."""
    grants: list[Grant] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None or not found["name"].isprintable():
            raise ValueError(f"line {number} of the tokens is not NAME read|write PREFIX SHA256")
        wish: Wish = "write" if found["wish"] == "write" else "read"
        prefix = found["prefix"].removesuffix(EVERYTHING)
        grants.append(Grant(found["name"], wish, prefix, bytes.fromhex(found["digest"])))
    return tuple(grants)


def _token_of(authorization: bytes) -> tuple[bool, bytes]:
    """Return whether the scheme is `Basic`, and the token of `Basic` or `Bearer`; empty: there is none."""
    scheme, _, credentials = authorization.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return False, credentials.strip()
        case b"basic":
            try:
                return True, b64decode(credentials.strip(), validate=True).partition(b":")[2]
            except ValueError:
                return True, b""
        case _:
            return False, b""
