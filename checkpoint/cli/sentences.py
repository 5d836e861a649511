"""Sentences of the commands about errors and about the holder of a namespace."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from checkpoint.cli import screen
from checkpoint.cli.options import store_named
from checkpoint.entries import GROUP_PREFIX
from checkpoint.errors import Conflict, CorruptState, command_line
from checkpoint.neighbours.copying import said_of
from checkpoint.overview.commands import Commands
from checkpoint.overview.freshness import Holder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from checkpoint.overview.freshness import Released
    from checkpoint.stores.base import Store


def sentence_of(error: Exception) -> str:
    """Return an error's sentence, with the remedy at a prompt in place of the remedy in a program."""
    if isinstance(error, Conflict):
        what = "deleted" if error.found is None else "created" if error.expected is None else "changed"
        found = error.found
        when = f" at {found.updated_at}" if found is not None and found.updated_at else ""
        run = f" (run {found.sync_job_run_id})" if found is not None and found.sync_job_run_id else ""
        name = said_of(error.key) if error.member is None else f"{error.member!r} of {error.key!r}"
        return (
            f"{name} in {error.state_key!r} was {what} meanwhile by another writer{when}{run}, and was not "
            "overwritten: look at it, then try again"
        )
    if isinstance(error, CorruptState) and error.where is None:
        if error.key.startswith(GROUP_PREFIX):
            look = f"`{command_line('get', [error.state_key, error.key], ['--raw'])}`"
            return f"{said_of(error.key)} in {error.state_key!r} cannot be read ({error.__cause__}): see {look}"
        return (
            f"{error.key!r} in {error.state_key!r} holds no cursor ({error.__cause__}): --raw reads and sets it as text"
        )
    return str(error)


def tell(errors: Iterable[Exception]) -> None:
    """Write one line for each error to stderr."""
    for error in errors:
        screen.warn(f"Error: {sentence_of(error)}")


def say_held(store: Store, namespace: str, found: Holder | Released | None) -> None:
    """Show who holds a namespace and, if that run is probably dead, the command that frees it."""
    if found is not None:
        screen.say_wrapped(" ".join(found.sentences(namespace)))
        say_how_to_free(store, namespace, found)


def say_how_to_free(store: Store, namespace: str, found: Holder | Released | None) -> None:
    """Show the command that frees a namespace, if its holder is probably dead."""
    if isinstance(found, Holder) and found.is_probably_dead:
        url: str | None = click.get_current_context().params["url"]
        named = None if url == os.environ.get("CHECKPOINT_STORE") else store_named(url, store)
        screen.say(f"To release its lease now: {Commands(named).unlock(namespace)}")
