"""The stores, and `open_store`, which finds the one that a URL names."""

from __future__ import annotations

import os
import re
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from checkpoint.stores.urls import options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from checkpoint.stores.base import Store

ENTRY_POINTS = "checkpoint.stores"
"""The entry-point group for further URL schemes: name = scheme, object = a callable from URL to Store."""

# A new store needs its file, and its scheme here. A store is imported only when a URL names its scheme.
_OPENERS = {
    "az": "checkpoint.stores.objects:ObjectStore",
    "gs": "checkpoint.stores.objects:ObjectStore",
    "s3": "checkpoint.stores.objects:ObjectStore",
    "memory": "checkpoint.stores.memory:MemoryStore.from_url",
    "sqlite": "checkpoint.stores.sqlite:SQLiteStore.from_url",
    "server+http": "checkpoint.stores.server:ServerStore",
    "server+https": "checkpoint.stores.server:ServerStore",
    "http": "checkpoint.stores.truto:TrutoStore",
    "https": "checkpoint.stores.truto:TrutoStore",
    "postgres": "checkpoint.stores.postgres:PostgresStore",
    "postgresql": "checkpoint.stores.postgres:PostgresStore",
}


def open_store(url: str | None = None) -> Store:
    """Return the store that a URL names.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, `memory://name`, `postgresql://user@host/database`,
    `https://api.truto.one`, `server+https://checkpoint.example.com` (our own server), `s3://bucket/prefix`,
    `gs://bucket/prefix`, `az://container/prefix`, and every scheme that an installed package adds through the
    entry-point group `checkpoint.stores`. None: `$CHECKPOINT_STORE`, else SQLite in the platform's user state folder.

    A query holds options of the store, `https://api.truto.one?rate=50/10&deadline=180`. Those in the class's
    `URL_OPTIONS` (a mapping of names to readers) are removed from the URL and passed as keyword arguments. The store
    itself handles the rest of the query.

    Raises:
        ValueError: no store has this scheme, an option or the rest of the URL is not what the store expects, or it is
            empty, or holds control characters or white space around it.
        TypeError: it is not a str; for a path use `SQLiteStore`.
        StoreError: the default folder cannot be determined or created.

    """
    if url is None:
        url = os.environ.get("CHECKPOINT_STORE")
    if url is None:
        return _resolve("checkpoint.stores.sqlite:SQLiteStore")()
    try:
        opener, given, named = _found(url)
    except (TypeError, ValueError) as error:
        failure = error.with_traceback(None)  # frames hold the URL, as this one did, and so its password
        del url
    else:
        del url
        return opener(given.pop(), **named)
    raise failure


def _found(url: str) -> tuple[Callable[..., Store], list[str], dict[str, Any]]:
    """Return the callable that opens a URL, the URL without options in a list, and its options."""
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        example = "sqlite:///state.db"
        if isinstance(url, os.PathLike):
            example = f"sqlite:///{quote(os.fsdecode(url))}"
        raise TypeError(f"a store's URL must be a str such as {example!r}, not {type(url).__name__}")
    if url == "":  # a template with a missing variable must not start afresh in another store
        raise ValueError(
            "the store's URL is empty: pass one, or leave it out and unset CHECKPOINT_STORE for the default"
        )
    if complaint := complaint_of(url):
        raise ValueError(complaint)
    scheme = _scheme(url)
    url = scheme + url[len(scheme) :]
    if scheme.startswith(("postgres+", "postgresql+")):  # SQLAlchemy's spelling, explained by the store's error
        scheme = "postgresql"
    if scheme in _OPENERS:
        opener = _resolve(_OPENERS[scheme])
        return opener, *_options_of(opener, url)
    from importlib.metadata import entry_points  # slow to import, and rarely used

    found = {point.name.lower(): point for point in entry_points(group=ENTRY_POINTS)}
    if scheme in found:
        theirs: Callable[..., Store] = found[scheme].load()
        return theirs, *_options_of(theirs, url)
    known = ", ".join(f"{name}:" for name in sorted({*_OPENERS, *found}))
    url = shown(url)  # a URL with a mistyped scheme may hold a password, too
    hint = "" if ":" in url else f"; a file is sqlite:///{url}"
    raise ValueError(f"no store opens {url!r}: a store's URL begins with one of {known}{hint}")


def complaint_of(url: str) -> str | None:
    """Return what is wrong with a URL's characters; None: nothing.

    URL parsers drop control characters and outer white space, so the URL would open another, empty store.
    """
    if url == url.strip() and not re.search(r"[\x00-\x1f\x7f-\x9f]", url):
        return None
    return (
        "the store's URL holds control characters (a newline, a tab), or white space around it: write it without; "
        "it is not shown here"
    )


def _options_of(opener: Callable[..., Store], url: str) -> tuple[list[str], dict[str, Any]]:
    """Return a URL without the options that a store's class names, in a list, and those options as they were read."""
    known: Mapping[str, Callable[[str], Any]] = getattr(getattr(opener, "__self__", opener), "URL_OPTIONS", {})
    place, mark, query = url.partition("?")
    if not (known and mark):
        return [url], {}
    query, hash_sign, fragment = query.partition("#")
    found, rest = options(query, known)
    return [f"{place}{'?' if rest else ''}{rest}{hash_sign}{fragment}"], found


def shown(url: str) -> str:
    """Return a store's URL, or its scheme alone where the rest may hold a password."""
    return f"{_scheme(url)}://***" if re.search("[@?=]", url) else url


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def _resolve(name: str) -> Callable[..., Store]:
    module, _, path = name.partition(":")
    opener: Callable[..., Store] = attrgetter(path)(import_module(module))
    return opener
