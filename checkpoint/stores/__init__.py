"""The stores, and `open_store`, which finds the one that a URL names."""

from __future__ import annotations

import os
import re
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.stores.base import Store

ENTRY_POINTS = "checkpoint.stores"
"""The entry-point group for further URL schemes: name = scheme, object = a callable from URL to Store."""

# Dotted names, resolved when a URL asks for them: no store is imported before it is used.
_OPENERS = {
    "az": "checkpoint.stores.objects:ObjectStore",
    "gs": "checkpoint.stores.objects:ObjectStore",
    "s3": "checkpoint.stores.objects:ObjectStore",
    "memory": "checkpoint.stores.memory:MemoryStore.from_url",
    "sqlite": "checkpoint.stores.sqlite:SQLiteStore.from_url",
    "http": "checkpoint.stores.truto:TrutoStore",
    "https": "checkpoint.stores.truto:TrutoStore",
    "postgres": "checkpoint.stores.postgres:PostgresStore",
    "postgresql": "checkpoint.stores.postgres:PostgresStore",
}


def open_store(url: str | None = None) -> Store:
    """Return the store that a URL names.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, `memory://name`, `postgresql://user@host/database`,
    `https://api.truto.one`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, and every scheme that
    an installed package adds through the entry-point group `checkpoint.stores`. None: `$CHECKPOINT_STORE`, else SQLite
    in the platform's user state folder.

    Raises:
        ValueError: no store has this scheme, the rest of the URL is not what it expects, or it is empty.
        StoreError: the default folder cannot be had.

    """
    if url is None:
        url = os.environ.get("CHECKPOINT_STORE")
    if url == "":  # what a template made of a missing variable must not be a fresh start in another place
        raise ValueError("the store's URL is empty: give one, or leave it (and CHECKPOINT_STORE) out for the default")
    if url is None:
        return _resolve("checkpoint.stores.sqlite:SQLiteStore")()
    scheme = _scheme(url)
    if scheme in _OPENERS:
        given = [url]
        del url  # so that no rendered traceback shows its password
        return _resolve(_OPENERS[scheme])(given.pop())
    from importlib.metadata import entry_points  # slow to import, and rarely asked

    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if scheme in found:
        opener: Callable[[str], Store] = found[scheme].load()
        return opener(url)
    known = ", ".join(f"{name}:" for name in sorted({*_OPENERS, *found}))
    url = shown(url)  # a mistyped scheme does not make a password less of one
    hint = "" if ":" in url else f"; a file is sqlite:///{url}"
    raise ValueError(f"no store opens {url!r}: its URL begins with one of {known}{hint}")


def shown(url: str) -> str:
    """Return a store's URL, or its scheme alone where the rest may hold a password."""
    return f"{_scheme(url)}://***" if re.search("[@?=]", url) else url


def _scheme(url: str) -> str:
    return url.partition("://")[0] if "://" in url else ""


def _resolve(name: str) -> Callable[..., Store]:
    module, _, path = name.partition(":")
    opener: Callable[..., Store] = attrgetter(path)(import_module(module))
    return opener
