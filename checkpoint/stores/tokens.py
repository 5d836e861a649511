"""Tokens: where they come from, and how they are hidden in texts."""

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


_TELLING = 8  # base64 letters: a shorter match could be a coincidence


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
        raise TypeError("a secret cannot be pickled")

    def fits_a_header(self) -> bool:
        """Whether a header can hold it: printable ASCII without spaces, not empty."""
        return bool(self._text) and self._text.isascii() and self._text.isprintable() and " " not in self._text

    def reveal(self) -> str:
        """Return the string itself."""
        return self._text

    def follow(self, before: Secret) -> None:
        """Hide the previous token, too: a service may still echo it. Older ones are forgotten."""
        self._before, before._before = before, None

    def hide(self, text: str) -> str:
        r"""Replace it by `***` in a text, in every encoding: JSON (`\/`, `\u0041`), HTML, percent, base64."""
        before = self._before  # another thread may reset it
        if before is not None:
            text = before.hide(text)
        if self._spellings is None:
            self._spellings = re.compile("|".join(["".join(map(_spellings, self._text)), *_base64(self._text)]))
        return self._spellings.sub("***", text)


def _for_another_server(variable: str) -> str:
    """Return a hint if the token variable of another service is set."""
    if variable != "CHECKPOINT_TOKEN" and {"CHECKPOINT_TOKEN", "CHECKPOINT_TOKEN_FILE"} & os.environ.keys():
        return (
            "; CHECKPOINT_TOKEN is only for `checkpoint serve`, whose URLs begin with server+https:// or server+http://"
        )
    return ""


class Token:
    """The token of a service: a str, a callable that returns one, or the contents of an environment variable or file.

    A file is read at once, a callable is called when a token is first needed, and both again after the service has
    refused the token. The call counts towards the caller's deadline, but the deadline cannot interrupt it.
    """

    def __init__(self, given: str | Callable[[], str] | None, variable: str) -> None:
        """Take the given token, else `$VARIABLE`, else the contents of the file `$VARIABLE_FILE`.

        Raises:
            ValueError: there is no token, or a header cannot hold it; it is not shown.
            TypeError: it is neither a str nor a callable.
            Unauthorized: the file is empty.

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
        """Return the token; the first call asks the callable.

        Raises:
            Unauthorized: the callable failed, or returned no token.

        """
        with self._lock:
            if self._secret is None and self._source is not None:
                self._secret = self._asked(self._source)
            assert self._secret is not None, "there is a token or a source of one"  # noqa: S101 - for type checkers
            return self._secret

    def renewed(self, refused: Secret) -> Secret | None:
        """Return the token to use after this one was refused, None if there is no other.

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
            failure = Unauthorized(self.hide(f"the API token{self._origin} is not available: {said}"))
        else:
            try:
                return _secret_of(held, self._origin)
            except (TypeError, ValueError) as error:
                failure = Unauthorized(str(error))
        raise failure  # raised here, without a context: frames of a context may hold a token

    def forked(self) -> None:
        """Replace the lock in a forked child: a thread of the parent may hold it."""
        self._lock = Lock()


def _secret_of(held: list[Any], origin: str) -> Secret:
    """Take the secret out of a list, so that no rendered traceback shows it."""
    if not isinstance(held[0], str):
        raise TypeError(f"the API token{origin} must be a str, not {type(held.pop()).__name__}")
    secret = Secret(held.pop(), origin)
    if not secret.fits_a_header():
        raise ValueError(
            f"the API token{origin} must be printable ASCII without spaces, and not empty (it is not shown here)"
        )
    return secret


def _text_in(name: str) -> str:
    return Path(name).read_text("latin-1").strip()


@lru_cache(128)
def _spellings(char: str) -> str:
    """Return a pattern for every encoding of an ASCII character."""
    from html.entities import html5  # two thousand names, needed only for errors

    code = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{ord(char):02x}")
    names = sorted((name.rstrip(";") for name, value in html5.items() if value == char), key=len, reverse=True)
    named = "".join(f"|{name};?" for name in names)
    entity = rf"&(?:amp;)*(?:#0*{ord(char)};?|#[xX]0*{code};?{named})"
    return rf"(?:\\*{re.escape(char)}|\\+(?:u00|x){code}|%(?:25)*{code}|{entity})"


def _base64(text: str) -> list[str]:
    """Return patterns for a text in base64, one for each of the three offsets within a group."""
    found: list[str] = []
    for before in range(3):
        letters = b64encode(bytes(before) + text.encode()).decode()
        inner = letters[-(-before * 8 // 6) : len(letters) - 4 * ((before + len(text)) % 3 > 0)]
        if len(inner) >= _TELLING:
            found.append("".join({"+": "[+-]", "/": "[/_]"}.get(letter, letter) for letter in inner) + "[\\w+/=-]*")
    return found
