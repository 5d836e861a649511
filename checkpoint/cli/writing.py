"""Shared by verbs that change state: show the changes, ask, write them, and sum up."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from checkpoint import codec
from checkpoint.cli import screen
from checkpoint.cli.options import confirm, store_named
from checkpoint.errors import CheckpointError
from checkpoint.overview import words
from checkpoint.overview.commands import Commands
from checkpoint.overview.freshness import holder_of
from checkpoint.stores.base import KeepsHistory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from checkpoint.overview.namespaces import Name, NamedChanges, Namespace


MOST_SHOWN = 50
"""At most this many changes of a namespace are shown."""


class Plan(NamedTuple):
    """The changes to make in one namespace."""

    there: Namespace
    """The namespace as it was loaded: the commit is made on its base."""
    changes: NamedChanges
    """Only the values that differ from the loaded ones."""
    reason: str | None = None
    """The reason, for the history."""
    beside: Mapping[Name, Mapping[str, Any]] = {}
    """Fields of a change in the document in addition to its values."""
    said: Sequence[str] = ()
    """Lines shown to people before the changes."""
    loss: str = ""
    """What is lost, as shown before the question; empty: nothing."""
    after: Sequence[str] = ()
    """Lines shown to people after the changes."""


def planned(
    there: Namespace,
    changes: Mapping[Name, str | None],
    *,
    reason: str | None = None,
    beside: Mapping[Name, Mapping[str, Any]] = {},
    said: Sequence[str] = (),
) -> Plan:
    """Return the plan to give names these values; a value equal to the stored one, in any form, is left out."""
    real = {name: value for name, value in changes.items() if not equal(there.value(name), value)}
    return Plan(there, real, reason, beside, said)


def equal(value: str | None, other: str | None) -> bool:
    """Tell whether a commit would take two values as equal; None equals only None."""
    return codec.same(value, other) if value is not None and other is not None else value is other


def carry_out(
    plans: Sequence[Plan],
    namespace: str,
    *,
    dry_run: bool,
    as_json: bool,
    ask: Callable[[int], str | None] = lambda _number: None,
    yes: bool = False,
) -> None:
    """Show the changes, ask, write them, and report what was done and how to undo it.

    `ask` returns the question for a number of changes; None: no question. If `namespace` is a pattern, the document is
    a list with one item for each namespace.
    """
    many = is_many(plans, namespace)
    shown = as_json or screen.told(lambda: _show_plans(plans, many=many))
    changing = [plan for plan in plans if plan.changes]
    for plan in changing:
        warn_of_lease(plan.there)
    if changing and not dry_run and (question := ask(sum(len(plan.changes) for plan in changing))):
        confirm(question, sure=yes)
    undos: dict[str, str | None] = {}
    for plan in plans:
        if plan.changes and not dry_run:
            _write(plan)
            undos[plan.there.state_key] = _undo(plan)
        if not as_json:
            for sentence in (_sentence_of(plan, dry_run=dry_run), *plan.after):
                if not (shown and screen.told(partial(screen.say_wrapped, sentence))):
                    screen.warn(sentence)  # reported even if stdout has no reader
            if undo := undos.get(plan.there.state_key):
                screen.warn(f"To undo it: {undo}")
    if as_json:
        told = [{"namespace": plan.there.state_key, "dry_run": dry_run, "changes": _changes(plan)} for plan in plans]
        screen.document(told if many else told[0])


def is_many(plans: Sequence[Plan], namespace: str) -> bool:
    """Tell whether plans belong to the namespaces of a pattern, rather than to a namespace of this name."""
    return [plan.there.state_key for plan in plans] != [namespace]


def _show_plans(plans: Sequence[Plan], *, many: bool) -> None:
    for plan in plans:
        if many:
            screen.say(f"{plan.there.state_key}:")
        _show_plan(plan)


def _show_plan(plan: Plan) -> None:
    for line in plan.said:
        screen.say(line)
    shown = islice(plan.changes.items(), MOST_SHOWN)
    screen.show_changes((name.said, plan.there.value(name), value) for name, value in shown)
    if len(plan.changes) > MOST_SHOWN:
        screen.say(f"… and {len(plan.changes) - MOST_SHOWN:,} more (--json tells all).")


def _changes(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            **name.fields(),
            "before": words.told_value(plan.there.value(name)),
            "after": words.told_value(value),
            **plan.beside.get(name, {}),
        }
        for name, value in plan.changes.items()
    ]


def _write(plan: Plan) -> None:
    there = plan.there
    try:
        written = there.entries_for(plan.changes)
    except ValueError as error:
        raise click.ClickException(f"a member of a packed group must be a cursor: {error}") from error
    run_id, base = _run_id(), there.base_for(written)
    if plan.reason is not None and isinstance(there.store, KeepsHistory):
        reasons = dict.fromkeys(written, plan.reason)
        there.store.commit(there.state_key, written, base, run_id=run_id, reasons=reasons)
    else:
        there.store.commit(there.state_key, written, base, run_id=run_id)


def _run_id() -> str:
    return f"checkpoint {click.get_current_context().info_name}"


def _undo(plan: Plan) -> str | None:
    """Return the command that undoes the last write; None: no history, or another run has written."""
    there = plan.there
    if not isinstance(there.store, KeepsHistory):
        return None
    try:
        newest = there.store.history(there.state_key, limit=1)
    except CheckpointError:  # a server whose store keeps no history
        return None
    if not newest or newest[0].run_id != _run_id():
        return None  # another run has written meanwhile
    added = any(there.value(name) is None for name in plan.changes)
    url: str | None = click.get_current_context().params["url"]
    return Commands(store_named(url, there.store)).undo(
        there.state_key, newest[0].version, [*plan.changes], added=added
    )


def _sentence_of(plan: Plan, *, dry_run: bool) -> str:
    namespace = plan.there.state_key
    if not plan.changes:
        return f"Nothing to change in {namespace!r}."
    done = "would change; nothing was written" if dry_run else "changed"
    return f"{counted(plan.changes)} of {namespace!r} {done}."


def counted(names: Sequence[Name] | Mapping[Name, object]) -> str:
    """Return the number of keys and members in words, such as `2 keys and 1 member`."""
    members = sum(name.member is not None for name in names)
    keys = len(names) - members
    parts = [words.count(keys, "key")] if keys or not members else []
    return " and ".join([*parts, words.count(members, "member")] if members else parts)


def warn_of_lease(there: Namespace) -> None:
    """Warn that an exclusive run holds a namespace that is about to be changed."""
    held = holder_of(there)
    if held is not None:
        screen.warn(
            f"{' '.join(held.sentences(there.state_key))} If that run is alive, its next commit of these keys ends "
            "with Conflict: stop it first."
        )
