"""`checkpoint list` and `checkpoint get`: what is stored."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from checkpoint import codec
from checkpoint.cli import screen
from checkpoint.cli.options import as_json, checked, complete_key, complete_namespace, namespace, reading, store_option
from checkpoint.entries import RESERVED
from checkpoint.errors import CorruptState
from checkpoint.neighbours.copying import namespaces
from checkpoint.run.forms import members_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from checkpoint.entries import Entry
    from checkpoint.stores.base import Store


@click.command("list")
@click.argument("namespace", required=False, callback=checked, shell_complete=complete_namespace)
@click.option("--all", "ours", is_flag=True, help=f"Show reserved keys too, which begin with {RESERVED}.")
@as_json
@store_option()
def list_(namespace: str | None, *, ours: bool, as_json: bool, url: str | None) -> None:
    """List the namespaces, or the keys of one.

    Shows the age of the last write, and the run that made it. Values in quotes are not cursors: another program stored
    that text.
    """
    with reading(url) as store:
        if namespace is None:
            _list_namespaces(store, ours=ours, as_json=as_json)
        else:
            _list_keys(store, namespace, ours=ours, as_json=as_json)


def _list_namespaces(store: Store, *, ours: bool, as_json: bool) -> None:
    names = namespaces_of(store)
    rows: list[tuple[str, int, Entry]] = []
    with screen.progress("reading") as told:
        for done, name in enumerate(names):
            told(done, len(names), name)
            entries = _entries_shown(store, name, ours=ours)
            if entries:
                rows.append((name, len(entries), max(entries, key=lambda entry: entry.updated_at or "")))
    if as_json:
        screen.document(
            [
                {"namespace": name, "keys": keys, "updated_at": last.updated_at, "run_id": last.sync_job_run_id}
                for name, keys, last in rows
            ]
        )
    elif rows:
        table = [
            (name, f"{keys:,}", screen.age(last.updated_at), last.sync_job_run_id or "-") for name, keys, last in rows
        ]
        screen.show_table(("namespace", "keys", "age", "last run"), table, wide="last run", right=("keys", "age"))
    else:
        screen.say(f"{store!r} holds nothing.")


def _list_keys(store: Store, namespace: str, *, ours: bool, as_json: bool) -> None:
    entries = _entries_shown(store, namespace, ours=ours)
    if as_json:
        screen.document([screen.told_entry(namespace, entry) for entry in entries])
    elif entries:
        rows = [(e.key, screen.readable(e.value), screen.age(e.updated_at), e.sync_job_run_id or "-") for e in entries]
        screen.show_table(("key", "cursor", "age", "last run"), rows, wide="cursor", right=("age",))
    else:
        screen.say(f"{nothing(store, namespace)}.")


def _entries_shown(store: Store, namespace: str, *, ours: bool) -> list[Entry]:
    return [entry for key, entry in sorted(store.load(namespace).items()) if ours or not key.startswith(RESERVED)]


def namespaces_of(store: Store) -> list[str]:
    """Return the namespaces of a store, or end with the sentence that it cannot tell."""
    try:
        return namespaces(store)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@click.command()
@namespace
@click.argument("key", callback=checked, shell_complete=complete_key)
@click.argument("member", required=False)
@click.option("--raw", is_flag=True, help="Print the stored text unchanged, and a newline.")
@as_json
@store_option()
def get(namespace: str, key: str, member: str | None, *, raw: bool, as_json: bool, url: str | None) -> None:
    """Print the cursor of a key as JSON.

    On one line when another program reads it, ready for `checkpoint set`. Where KEY is a group, MEMBER names the cursor
    to print. Exits with 1 if there is no such key, or if it holds no cursor and --raw is not given.
    """
    if raw and member is not None:
        raise click.UsageError("--raw is for the text of a KEY, which a MEMBER does not have")
    if raw and as_json:
        raise click.UsageError("--raw and --json do not go together")
    with reading(url) as store:
        entries = store.load(namespace)
        if member is None:
            entry = existing(store, entries, namespace, key)
        else:
            entry = _member(store, entries, namespace, key, member)
    if as_json:
        screen.document(screen.told_entry(namespace, entry))
    elif raw:
        screen.write_text(entry.value)
    else:
        cursor = cursor_in(namespace, entry)
        screen.write_text(screen.json_of(cursor, indent=2 if sys.stdout.isatty() else None))


def existing(store: Store, entries: Mapping[str, Entry], namespace: str, key: str) -> Entry:
    """Return the entry of a key of a namespace, or end with the sentence that there is none."""
    if not entries:
        raise click.ClickException(nothing(store, namespace))
    if key not in entries:
        raise click.ClickException(_absent(entries, namespace, key))
    return entries[key]


def _absent(entries: Mapping[str, Entry], namespace: str, key: str) -> str:
    """Return the sentence that there is no such key, but a group, or a member of one, where there is."""
    groups = members_of(namespace, entries)
    if key in groups:
        return (
            f"{key!r} in {namespace!r} is a group of {len(groups[key]):,} members: "
            f"`checkpoint get {namespace} {key} MEMBER` prints the cursor of a member"
        )
    for name, members in groups.items():
        if key in members:
            return (
                f"there is no key {key!r} in {namespace!r}, but a member of the group {name!r}: "
                f"`checkpoint get {namespace} {name} {key}` prints its cursor"
            )
    return f"there is no {key!r} in {namespace!r}: see `checkpoint list {namespace}`"


def _member(store: Store, entries: Mapping[str, Entry], namespace: str, name: str, member: str) -> Entry:
    """Return the entry of a group that a member is in, with the member's cursor alone, or end with one sentence."""
    groups = members_of(namespace, entries)
    if name not in groups:
        existing(store, entries, namespace, name)
    if member not in groups.get(name, {}):
        raise click.ClickException(f"{name!r} in {namespace!r} has no member {member!r}")
    return groups[name][member]


def nothing(store: Store, namespace: str) -> str:
    """Return the sentence that a namespace holds nothing, and where: another store may be the one that was meant."""
    return f"{namespace!r} holds nothing in {store!r}"


def cursor_in(namespace: str, entry: Entry) -> dict[str, object]:
    """Return the cursor of an entry.

    Raises:
        CorruptState: it holds none.

    """
    try:
        return codec.decode(entry.value)
    except ValueError as reason:
        raise CorruptState(namespace, entry.key, entry.value) from reason
