"""Sentences of the commands about errors and about the holder of a namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from checkpoint.cli import screen
from checkpoint.cli.options import REPLACE, commands_for
from checkpoint.cli.writing import counted
from checkpoint.entries import GROUP_PREFIX
from checkpoint.errors import Conflict, CorruptState, command_line
from checkpoint.neighbours.copying import said_of
from checkpoint.overview import words
from checkpoint.overview.freshness import NO_CURSOR, Holder, in_order
from checkpoint.overview.past import before_ahead, is_cursor, last_good, past_of
from checkpoint.overview.positions import lag_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from checkpoint.overview.commands import Commands
    from checkpoint.overview.freshness import Released
    from checkpoint.overview.namespaces import Name, Namespace
    from checkpoint.run.runs import Run
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


def replacing(store: Store, errors: Iterable[CorruptState]) -> list[str]:
    """Return lines with the commands that replace damaged rows."""
    commands = (_commands(store).replace(store, error) for error in errors)
    return [f"{REPLACE} {command}" for command in commands if command is not None]


def tell(errors: Iterable[Exception]) -> None:
    """Write one line for each error to stderr."""
    for error in errors:
        screen.warn(f"Error: {sentence_of(error)}")


def say_held(store: Store, namespace: str, found: Holder | Released | None) -> None:
    """Show who holds a namespace and, if that run is probably dead, the command that frees it."""
    if found is not None:
        screen.say_wrapped(" ".join(found.sentences(namespace)))
        say_how_to_free(store, namespace, found)


def say_failed(namespace: str, last: Run | None) -> None:
    """Show when the last run failed, and with which error, if it did."""
    if last is not None and last.outcome == "failed":
        screen.say_wrapped(f"The last run of {namespace!r} failed {words.age(last.ended)} ago ({last.error}).")


def say_ahead(there: Namespace, names: Sequence[Name], form: str | None) -> None:
    """Show which positions are ahead of the clock, and the command that takes back the one furthest ahead."""
    leads = {name: -(lag_of(there.value(name), there.form_of(name, form)) or 0.0) for name in names}
    if not leads:
        return
    worst = max(leads, key=lambda name: in_order(leads[name]))
    others = f", and {counted([name for name in names if name != worst])} more" if len(names) > 1 else ""
    by = f"{words.span(leads[worst])} ahead of the clock{others}"
    screen.say_wrapped(f"{worst.quoted} in {there.state_key!r} is {by}. Rows until then may not be delivered.")
    form = there.form_of(worst, form)
    if (version := before_ahead(past_of(there, worst) or [], form)) is not None:
        undo = _commands(there.store).restore(there.state_key, str(version), worst)
        screen.warn(f"To undo the commit that moved it there: {undo}")
        return
    value = there.value(worst) or ""
    if back := _commands(there.store).rewind(there.state_key, worst, value, form=form):
        screen.warn(f"To read again from two days before now: {back}")
        screen.warn("Rows between the last good position and that moment are not read again, unless --to is older.")


def say_damaged(there: Namespace, names: Sequence[Name]) -> None:
    """Show which values are damaged, and the commands that restore the last readable ones."""
    for name in names[:_NAMED]:
        screen.say_wrapped(f"{name.quoted} in {there.state_key!r} is damaged: {NO_CURSOR}.")
        if (version := last_good(past_of(there, name) or [], is_cursor)) is not None:
            back = _commands(there.store).restore(there.state_key, str(version), name)
            screen.warn(f"To restore its last readable value: {back}")
    if len(names) > _NAMED:
        screen.say(f"{counted(names[_NAMED:])} more of {there.state_key!r} damaged.")


_NAMED = 5
"""At most this many damaged values are named."""


def _commands(store: Store) -> Commands:
    """Return the commands for the store of this command line; without `--store` if the environment names it."""
    return commands_for(click.get_current_context().params["url"], store)


def say_what_changed(store: Store, namespace: str, run: Run) -> None:
    """Show the command that shows what has changed since a run began."""
    screen.warn(f"To see what has changed since it began: {_commands(store).differences(namespace, run.started)}")


def say_how_to_free(store: Store, namespace: str, found: Holder | Released | None) -> None:
    """Show the command that frees a namespace, if its holder is probably dead."""
    if isinstance(found, Holder) and found.is_probably_dead:
        screen.say(f"To release it now: {_commands(store).unlock(namespace)}")
