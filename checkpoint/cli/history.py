"""`checkpoint history` and `diff`: what has changed, and what differs."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from checkpoint.cli import screen
from checkpoint.cli.moments import when_given
from checkpoint.cli.options import (
    as_json,
    checked,
    checked_keys,
    checked_member,
    complete_key,
    complete_namespace,
    member_or_word,
    namespace,
    reading,
    store_option,
)
from checkpoint.cli.writing import equal
from checkpoint.overview import words
from checkpoint.overview.namespaces import Name, Namespace, near_namespace, nothing, unfolded
from checkpoint.overview.past import changes_of, check_known, values_at

if TYPE_CHECKING:
    from checkpoint.entries import Change
    from checkpoint.overview.moments import When


@click.command()
@namespace
@click.argument("key", required=False, callback=checked_keys, shell_complete=complete_key)
@member_or_word
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Show at most N changes.", metavar="N"
)
@as_json
@store_option()
def history(namespace: str, key: str | None, *, member: str | None, limit: int, as_json: bool, url: str | None) -> None:
    """Show what the latest commits changed, newest first.

    Shows one key, one member of a group, or everything in the namespace. Each commit has a version, which
    `checkpoint restore --to` and `checkpoint diff --since` take. Of boundary rows only the number is shown; --json
    has all.

    Example: checkpoint history crm_acme contacts
    """
    if member is not None and key is None:
        raise click.UsageError("--member needs KEY: the name of its group")
    with reading(url) as store:
        there = Namespace(store, namespace)
        changes = changes_of(there, key, member)
        check_known(there, changes, key, member)
        for layout in there.groups.values():
            if layout.is_version_1 and len(layout.members) > 1:
                changes = unfolded(changes, layout)
    if as_json:
        screen.document([_change_fields(change) for change in changes[:limit]])
    elif changes:
        _show_commits(changes[:limit])
        if rest := changes[limit:]:
            same = sum(change.version == changes[limit - 1].version for change in rest)
            of_it = f", {same:,} of them of version {rest[0].version}" if same else ""
            screen.say("")
            screen.say(f"{words.count(len(rest), 'more change')}{of_it}: --limit {len(changes)} shows all.")
    else:
        what = f"{Name(key, member).quoted} in {namespace!r}" if key else repr(namespace)
        screen.say(f"No history of {what} in {store!r}.")


def _show_commits(changes: list[Change]) -> None:
    for number, (_, commit) in enumerate(groupby(changes, key=lambda change: change.version)):
        if number:
            screen.say("")
        _show_commit(list(commit))


def _show_commit(changes: list[Change]) -> None:
    one = changes[0]
    who = [f"run {one.run_id}"] if one.run_id else []
    who += [f"by {one.by}"] if one.by else []
    screen.say(", ".join([f"version {one.version}", one.at, *who, f"{one.host} process {one.process}"]))
    for reason in dict.fromkeys(change.reason for change in changes if change.reason):
        screen.say(f"reason: {reason}")
    screen.show_changes((Name(change.key, change.member).said, change.before, change.after) for change in changes)


def _change_fields(change: Change) -> dict[str, Any]:
    return {
        "version": change.version,
        "at": change.at,
        "run_id": change.run_id,
        "host": change.host,
        "process": change.process,
        "member": change.member,
        "reason": change.reason,
        "by": change.by,
        "key": change.key,
        "before": words.told_value(change.before),
        "after": words.told_value(change.after),
    }


@click.command()
@namespace
@click.argument("other", required=False, callback=checked, shell_complete=complete_namespace)
@click.option("--member", metavar="NAME", callback=checked_member, help="Compare only this member of a group.")
@click.option("--with", "target", metavar="URL", help="The store of the other side. Default: the same store.")
@click.option("--since", callback=when_given, metavar="MOMENT", help="Take NAMESPACE as it was at this moment.")
@click.option(
    "--until", callback=when_given, metavar="MOMENT", help="Take the other side as it was at this moment. Default: now."
)
@as_json
@store_option()
def diff(
    namespace: str,
    other: str | None,
    *,
    member: str | None,
    target: str | None,
    since: When | None,
    until: When | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Compare two namespaces, two stores, or two moments.

    Lines with - show NAMESPACE in --store, now or at --since. Lines with + show OTHER (default: NAMESPACE) in the
    store --with (default: the same), now or at --until. MOMENT is a version, a time or an age, as in `checkpoint
    restore`. Exits with 0 if both sides are equal, with 1 if they differ, and with 2 on an error.

    Example: checkpoint diff crm_acme --since 2h
    """
    if not any((other, target, since, until)):
        raise click.UsageError("compare with what? Give OTHER, --with URL or --since MOMENT")
    with reading(url) as store, reading(target or url, "--with" if target else "--store") as there:
        before = values_at(Namespace(store, namespace), since, member)
        after = values_at(Namespace(there, other or namespace), until, member)
        if not any((before, after, since, until)):
            near = near_namespace(store, namespace)
            raise click.ClickException(
                f"{namespace!r} holds nothing in {store!r}, nor does {other or namespace!r} in {there!r}{near}"
            )
        sides = ((store, namespace, before, since), (there, other or namespace, after, until))
        for where, name, found, moment in sides:
            if not found and moment is not None:
                screen.warn(f"{name!r} held nothing {moment.said}.")
            elif not found and near_namespace(where, name):
                screen.warn(nothing(where, name))
    changes = _differences(before, after, member)
    if as_json:
        screen.document({"namespace": namespace, "other": other or namespace, "changes": _told_differences(changes)})
    else:
        screen.show_changes((name.said, old, new) for name, old, new in changes)
    sys.exit(1 if changes else 0)


def _told_differences(changes: list[tuple[Name, str | None, str | None]]) -> list[dict[str, Any]]:
    return [
        {**name.fields(), "before": words.told_value(old), "after": words.told_value(new)} for name, old, new in changes
    ]


def _differences(
    before: dict[Name, str], after: dict[Name, str], member: str | None
) -> list[tuple[Name, str | None, str | None]]:
    """Return the differences, of all names or of one member; end with an error if no group has the member."""
    names = [name for name in {*before, *after} if member is None or name.member == member]
    if member is not None and not names:
        raise click.ClickException(f"no group on either side has a member {member!r}")
    pairs = ((name, before.get(name), after.get(name)) for name in sorted(names, key=lambda name: name.said))
    return [(name, old, new) for name, old, new in pairs if not equal(old, new)]
