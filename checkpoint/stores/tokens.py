"""Tokens: where they come from, and how none is shown."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from checkpoint.errors import Unauthorized, is_of_handler

if TYPE_CHECKING:
    from collections.abc import Callable


_TELLING = 8  # letters of base64: fewer may stand anywhere


class Secret:
    """A string that no repr, log or pickle shows; `origin` says where it came from, such as ` from $VARIABLE`."""

    __slots__ = ("__weakref__", "_before", "_spellings", "_text", "origin")

    def __init__(self, text: str, origin: str = "") -> None:
        self._text = text
        self._spellings: re.Pattern[str] | None = None
        self._before: Secret | None = None
        self.origin: str = origin

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")

    def fits_a_header(self) -> bool:
        """Tell whether it can be sent: printable ASCII without spaces, and not empty."""
        return bool(self._text) and self._text.isascii() and self._text.isprintable() and " " not in self._text

    def reveal(self) -> str:
        """Return the string itself."""
        return self._text

    def follow(self, before: Secret) -> None:
        """Hide with this one the one before it, too: a service may still speak of it. Those before that are let go."""
        self._before, before._before = before, None

    def hide(self, text: str) -> str:
        r"""Replace it by `***` in a text, however it is written: JSON (`\/`, `\u0041`), HTML, percent, base64."""
        before = self._before  # which another thread may let go
        if before is not None:
            text = before.hide(text)
        if self._spellings is None:
            self._spellings = re.compile("|".join(["".join(map(_spellings, self._text)), *_base64(self._text)]))
        return self._spellings.sub("***", text)


def _for_another_server(variable: str) -> str:
    """Return what may be meant where another variable than this one holds a token."""
    if variable != "CHECKPOINT_TOKEN" and {"CHECKPOINT_TOKEN", "CHECKPOINT_TOKEN_FILE"} & os.environ.keys():
        return (
            "; CHECKPOINT_TOKEN is for a URL that begins with server+https:// or server+http://, of `checkpoint serve`"
        )
    return ""


class Token:
    """The token of a service: a text, a callable that gives one, or what an environment variable or its file holds.

    A file is read at once, and a callable asked when a token is first needed; both again after the service has refused
    the last one. Then it counts towards the caller's deadline, which cannot end it.
    """

    def __init__(self, given: str | Callable[[], str] | None, variable: str) -> None:
        """Take the token given, else that of `$VARIABLE`, else that in the file that `$VARIABLE_FILE` names.

        Raises:
            ValueError: there is none, or it is not one that a header can hold; it is not shown.
            TypeError: it is neither a text nor a callable.
            Unauthorized: the file holds none.

        """
        self._lock = Lock()
        self._secret: Secret | None = None
        self._source: Callable[[], Any] | None = None
        self._origin = " from token="
        if callable(given):
            self._source = given
        elif given is not None or variable in os.environ:
            held, origin = [os.environ.get(variable)], f" from ${variable}"
            if given is not None:
                held, origin = [given], ""
            del given  # so that no rendered traceback shows it
            self._secret = _secret_of(held, origin)
        elif name := os.environ.get(f"{variable}_FILE"):
            self._source, self._origin = partial(_text_in, name), f" from the file that ${variable}_FILE names"
            self._secret = self._asked(self._source)
        else:
            raise ValueError(f"no API token: set {variable}, or pass token={_for_another_server(variable)}")

    def current(self) -> Secret:
        """Return the token, asking for it the first time.

        Raises:
            Unauthorized: the callable failed, or returned no token.

        """
        with self._lock:
            if self._secret is None and self._source is not None:
                self._secret = self._asked(self._source)
            assert self._secret is not None, "there is a token or a source of one"  # noqa: S101 - for type checkers
            return self._secret

    def renewed(self, refused: Secret) -> Secret | None:
        """Return the token that is to be used after this one was refused, None where there is no other.

        Raises:
            Unauthorized: the callable or the file gives no token.

        """
        with self._lock:
            if self._secret is refused and self._source is not None:
                secret = self._asked(self._source)
                if secret.reveal() != refused.reveal():
                    secret.follow(refused)
                    self._secret = secret
            return self._secret if self._secret is not refused else None

    def hide(self, text: str) -> str:
        """Replace the token, and the one before it, by `***` in a text; see `Secret.hide`."""
        secret = self._secret
        return text if secret is None else secret.hide(text)

    def _asked(self, source: Callable[[], Any]) -> Secret:
        try:
            held = [source()]
        except Exception as error:
            if is_of_handler(error):
                raise
            said = f"{type(error).__name__}: {error}".removesuffix(": ")
            failure = Unauthorized(self.hide(f"the API token{self._origin} cannot be had: {said}"))
        else:
            try:
                return _secret_of(held, self._origin)
            except (TypeError, ValueError) as error:
                failure = Unauthorized(str(error))
        raise failure  # out here, where it keeps no context, whose frames may hold a token

    def forked(self) -> None:
        """Make the lock anew in a forked child: a thread that the child does not have may hold it."""
        self._lock = Lock()


def _secret_of(held: list[Any], origin: str) -> Secret:
    """Return the secret that a list holds, and empty the list: so no rendered traceback shows it."""
    if not isinstance(held[0], str):
        raise TypeError(f"the API token{origin} must be a str, not {type(held.pop()).__name__}")
    secret = Secret(held.pop(), origin)
    if not secret.fits_a_header():
        raise ValueError(
            f"the API token{origin} must be printable ASCII without spaces, not empty; it is not shown here"
        )
    return secret


def _text_in(name: str) -> str:
    return Path(name).read_text("latin-1").strip()


@lru_cache(128)
def _spellings(char: str) -> str:
    """Return a pattern for all the ways in which services write a character of ASCII."""
    from html.entities import html5  # two thousand names, wanted by an error at most

    code = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{ord(char):02x}")
    names = sorted((name.rstrip(";") for name, value in html5.items() if value == char), key=len, reverse=True)
    named = "".join(f"|{name};?" for name in names)
    entity = rf"&(?:amp;)*(?:#0*{ord(char)};?|#[xX]0*{code};?{named})"
    return rf"(?:\\*{re.escape(char)}|\\+(?:u00|x){code}|%(?:25)*{code}|{entity})"


def _base64(text: str) -> list[str]:
    """Return patterns for a text as base64 writes it, beginning at each of its three places in a group of letters."""
    found: list[str] = []
    for before in range(3):
        letters = b64encode(bytes(before) + text.encode()).decode()
        inner = letters[-(-before * 8 // 6) : len(letters) - 4 * ((before + len(text)) % 3 > 0)]
        if len(inner) >= _TELLING:
            found.append("".join({"+": "[+-]", "/": "[/_]"}.get(letter, letter) for letter in inner) + "[\\w+/=-]*")
    return found
