"""`checkpoint list` and `checkpoint get`: what is stored."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from checkpoint.cli import screen
from checkpoint.cli.options import (
    as_json,
    checked,
    complete_key,
    complete_namespace,
    cursor_format,
    member_or_word,
    namespace,
    reading,
    store_option,
)
from checkpoint.cli.sentences import replacing, say_ahead, say_damaged, say_failed, say_held, tell
from checkpoint.entries import GROUP_PREFIX, RESERVED
from checkpoint.errors import CorruptState
from checkpoint.overview import words
from checkpoint.overview.freshness import (
    age_of,
    ends_of,
    lease_of,
    run_in_short,
    slowest_first,
    slowest_of,
    summary_of,
    worst_first,
    wrong_in,
    wrong_with,
)
from checkpoint.overview.moments import seconds_since
from checkpoint.overview.namespaces import Name, Namespace, cursor_in, names_of_namespaces, nothing
from checkpoint.overview.past import is_damaged, run_fields
from checkpoint.overview.positions import is_ahead, lag_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from checkpoint.entries import Entry
    from checkpoint.overview.freshness import Summary
    from checkpoint.overview.namespaces import Layout
    from checkpoint.stores.base import Store

T = TypeVar("T")

MOST = 100
"""At most this many lines of a table are shown, and sorted by name, unless the options say otherwise."""


@click.command("list")
@click.argument("namespace", required=False, callback=checked, shell_complete=complete_namespace)
@click.argument("key", metavar="[GROUP]", required=False, callback=checked, shell_complete=complete_key)
@click.option("--member", "like", metavar="PATTERN", help="Only the members of GROUP that match, such as 'acct-1*'.")
@click.option(
    "--order",
    type=click.Choice(["name", "slowest"]),
    help=f"slowest: problems first, then the largest lag. Default: name; slowest if there are more than {MOST}.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    help=f"List at most N. Default: {MOST}; all with --json.",
)
@click.option("--all", "ours", is_flag=True, help=f"Also show reserved keys, which begin with {RESERVED}.")
@cursor_format
@as_json
@store_option()
def list_(
    namespace: str | None,
    key: str | None,
    *,
    like: str | None,
    order: str | None,
    limit: int | None,
    ours: bool,
    cursor_format: str | None,
    as_json: bool,
    url: str | None,
) -> None:
    """List namespaces, keys, or the members of a group.

    Lag is how far a position is behind the clock; "in 3 d" means that it is ahead. Age is the time since the last
    write, or since a successful run last read the key to its end. A namespace and a group show the largest of their
    lags and ages. "moved" is the time since the last write, where that is longer than the age. "last run" is the
    run that began last. A value in quotes is not a cursor: another program stored that text.

    Example: checkpoint list crm_acme
    """
    if like is not None and key is None:
        raise click.UsageError("--member needs GROUP: list NAMESPACE GROUP --member PATTERN")
    how = _How(cursor_format, order, limit, ours=ours, as_json=as_json)
    with reading(url) as store:
        if namespace is None:
            _list_namespaces(store, how)
        elif key is None:
            _list_keys(Namespace(store, namespace), how)
        else:
            _list_members(Namespace(store, namespace), key, like, how)


class _How(NamedTuple):
    """How to show a list."""

    form: str | None
    """The cursor format of positions that are not ISO 8601, where no run has recorded one."""
    order: str | None
    """`name`, `slowest`, or None: by how many there are."""
    limit: int | None
    """How many to show; None: `MOST` in a table, all in a document."""
    ours: bool
    """Whether to show reserved keys, too."""
    as_json: bool

    def ordered(self, there: Namespace, names: Iterable[tuple[Name, str | None]]) -> list[Name]:
        """Return names with their values, None for a group, in the requested order."""
        every = sorted(names, key=lambda item: item[0].said)
        if self.is_slowest_first(len(every)):
            every.sort(key=lambda item: self._place(there, *item))
        return [name for name, _ in every]

    def is_slowest_first(self, number: int) -> bool:
        """Tell whether this many lines are sorted by lag, rather than by name."""
        return (self.order or ("slowest" if number > MOST else "name")) == "slowest"

    def _place(self, there: Namespace, name: Name, value: str | None) -> tuple[bool, bool, float]:
        form = there.form_of(name, self.form)
        if value is not None:
            return slowest_of(value, form)
        ends = ends_of(there.groups[name.key].members, form)
        return slowest_first(None if ends is None else ends.lag)

    def shown(self, lines: list[T]) -> list[T]:
        """Return the lines to show."""
        return lines[: self.limit or (None if self.as_json else MOST)]

    def say_rest(self, number: int, what: str) -> None:
        """Say how many lines are not shown, and how to see them."""
        if rest := number - (self.limit or MOST) if number > (self.limit or MOST) else 0:
            by = "slowest first" if self.is_slowest_first(number) else "by name"
            more = ", --member selects by name" if what == "member" else ""
            screen.say_wrapped(f"{words.count(rest, f'more {what}')} ({by}): --limit {number} shows all{more}.")


def _list_namespaces(store: Store, how: _How) -> None:
    names = names_of_namespaces(store)
    rows: list[Summary] = []
    damaged: list[CorruptState] = []  # reported after the others
    with screen.progress("reading") as told:
        for done, name in enumerate(names):
            told(done, len(names), name)
            try:
                there = Namespace(store, name)
                row = summary_of(there, _reserved(there).values() if how.ours else (), how.form)
            except CorruptState as error:
                damaged.append(error)
            else:
                rows += [row] if row is not None else []
    if how.is_slowest_first(len(rows)):
        rows.sort(key=worst_first)
    shown = how.shown(rows)
    if how.as_json:
        screen.document([_summary_fields(row) for row in shown])
    elif rows:
        marks = ["!" if wrong_with(row) else "" for row in shown]
        marked = any(marks)  # usually nothing is wrong, and the column is left out
        table = [(*([mark] if marked else []), *_summary_row(row)) for mark, row in zip(marks, shown, strict=True)]
        columns = (*([""] if marked else []), "namespace", "keys", "lag", "age", "last run")
        screen.show_table(columns, table, wide="last run", right=("keys", "lag", "age"))
        how.say_rest(len(rows), "namespace")
        for row in shown:
            say_held(store, row.state_key, row.held)
        if any(map(wrong_with, rows)):
            screen.say_wrapped(_sum(rows))
    elif not damaged:
        screen.say(f"{store!r} holds nothing.")
    if damaged:
        tell(damaged[:-1])
        for line in replacing(store, damaged[:-1]):
            screen.warn(line)
        raise damaged[-1]


def _sum(rows: list[Summary]) -> str:
    """Return how many namespaces need attention, and the worst of each kind."""
    wrong = "; ".join(f"{len(names):,} {what} ({words.first(names, 2)})" for what, names in wrong_in(rows).items())
    return f"! {words.count(len(rows), 'namespace')}: {wrong}."


def _summary_row(row: Summary) -> tuple[str, ...]:
    lag = row.lag if row.lead is None else -row.lead  # the lead explains the mark
    return row.state_key, f"{row.keys:,}", _span(lag), _span(row.age), run_in_short(row.run, row.state)


def _summary_fields(row: Summary) -> dict[str, Any]:
    return {
        "namespace": row.state_key,
        "keys": row.keys,
        "updated_at": row.last.updated_at,
        "run_id": row.last.sync_job_run_id,
        "lag": row.lag,
        "slowest": None if row.slowest is None else row.slowest.fields(),
        "age": row.age,
        "last_run": None if row.run is None else run_fields(row.run),
        "held_by": None if row.held is None else row.held.fields(),
    }


def _list_keys(there: Namespace, how: _How) -> None:
    if not there.stored:
        raise click.ClickException(nothing(there.store, there.state_key))
    form = how.form
    plain = {name.key: entry for name, entry in there.shown().items() if name.member is None}
    plain |= _reserved(there) if how.ours else {}
    groups = {name: layout for name, layout in there.groups.items() if name not in plain}
    values = [*((Name(key), entry.value) for key, entry in plain.items()), *((Name(key), None) for key in groups)]
    every = how.ordered(there, values)
    keys = [name.key for name in how.shown(every)]
    if how.as_json:
        screen.document(
            [
                _entry_fields(there, Name(key), plain[key], form)
                if key in plain
                else _group_fields(there, groups[key], form)
                for key in keys
            ]
        )
    elif keys:
        rows = [
            _entry_row(there, Name(key), plain[key], form) if key in plain else _group_row(there, groups[key], form)
            for key in keys
        ]
        damaged = _damaged(there, there.shown())
        _show_rows("key", rows, {name.key for name in damaged})
        how.say_rest(len(every), "key")
        say_damaged(there, damaged)
        _say_ahead(there, [*there.shown()], form)
    else:
        screen.say(f"{there.state_key!r} holds no keys.")
    if not how.as_json:
        say_failed(there.state_key, there.run)
        say_held(there.store, there.state_key, lease_of(there))


def _list_members(there: Namespace, key: str, like: str | None, how: _How) -> None:
    layout = there.groups.get(key)
    if layout is None:
        if Name(key) in there.names:
            raise click.ClickException(f"{key!r} in {there.state_key!r} is not a group: `checkpoint get` prints it")
        raise click.ClickException(there.absent(key))
    members = {
        Name(key, member): entry
        for member, entry in layout.members.items()
        if like is None or fnmatchcase(member, like)
    }
    names = how.ordered(there, ((name, entry.value) for name, entry in members.items()))
    if how.as_json:
        screen.document([_entry_fields(there, name, members[name], how.form) for name in how.shown(names)])
    elif members:
        damaged = _damaged(there, members)
        rows = [_entry_row(there, name, members[name], how.form) for name in how.shown(names)]
        _show_rows("member", rows, {name.member for name in damaged})
        how.say_rest(len(names), "member")
        say_damaged(there, damaged)
        _say_ahead(there, names, how.form)
    elif like is not None:
        raise click.ClickException(f"no member of {key!r} in {there.state_key!r} matches {like!r}")
    else:
        screen.say(f"the group {key!r} in {there.state_key!r} has no members.")


def _damaged(there: Namespace, entries: Mapping[Name, Entry]) -> list[Name]:
    return [name for name, entry in entries.items() if is_damaged(there, name, entry.value)]


def _say_ahead(there: Namespace, names: list[Name], form: str | None) -> None:
    say_ahead(there, [n for n in names if is_ahead(lag_of(there.value(n), there.form_of(n, form)))], form)


class _Row(NamedTuple):
    """A key, member or group in a table."""

    name: str
    said: str
    lag: float | None
    age: float | None
    moved: float | None
    """Seconds since the last write; None: unknown."""
    by: str


STOOD = 60.0
"""The table shows the last write if it is older than the key's age by at least this many seconds."""


def _show_rows(first: str, rows: list[_Row], wrong: Collection[str | None]) -> None:
    stood = any(row.age is not None and row.moved is not None and row.moved - row.age > STOOD for row in rows)
    marked = any(row.name in wrong for row in rows)
    mark = [""] if marked else []
    columns = (*mark, first, "cursor", "lag", "age", *(["moved"] if stood else []), "written by")
    table = [
        (
            *(["!" if row.name in wrong else ""] if marked else []),
            row.name,
            row.said,
            _span(row.lag),
            _span(row.age),
            *([_ago(row.moved)] if stood else []),
            row.by,
        )
        for row in rows
    ]
    screen.show_table(columns, table, wide="cursor", right=("lag", "age", "moved"))


def _entry_row(there: Namespace, name: Name, entry: Entry, form: str | None) -> _Row:
    lag, age = lag_of(entry.value, there.form_of(name, form)), age_of(there, name, entry)
    said, by = words.readable_in_short(entry.value), entry.sync_job_run_id or "-"
    return _Row(name.member or name.key, said, lag, age, _moved(there, name, entry), by)


def _moved(there: Namespace, name: Name, entry: Entry) -> float | None:
    return None if there.shares(name) else seconds_since(entry.updated_at)


def _ago(seconds: float | None) -> str:
    return "-" if seconds is None else f"{words.span(max(0.0, seconds))} ago"


def _entry_fields(there: Namespace, name: Name, entry: Entry, form: str | None) -> dict[str, Any]:
    told = words.told_entry(there.state_key, name.fields(), entry)
    return told | {"lag": lag_of(entry.value, there.form_of(name, form)), "age": age_of(there, name, entry)}


def _span(seconds: float | None) -> str:
    return "-" if seconds is None else words.span(seconds)


def _group_row(there: Namespace, layout: Layout, form: str | None) -> _Row:
    members = layout.members
    ends = ends_of(members, there.form_of(Name(layout.name), form))
    if ends is None:
        return _Row(layout.name, "no members", None, None, None, "-")
    ages = (age_of(there, Name(layout.name, member), entry) for member, entry in members.items())
    age = max((age for age in ages if age is not None), default=None)
    slowest, newest = ("slowest", "newest") if ends.by_position else ("written first", "last")
    said = f"{words.count(len(members), 'member')}: {slowest} {ends.slowest}, {newest} {ends.newest}"
    last = _written_last(members.values())
    return _Row(layout.name, said, ends.lag, age, seconds_since(last.updated_at), last.sync_job_run_id or "-")


def _written_last(entries: Iterable[Entry]) -> Entry:
    return max(entries, key=lambda entry: entry.updated_at or "")


def _group_fields(there: Namespace, layout: Layout, form: str | None) -> dict[str, Any]:
    members = layout.members
    ends = ends_of(members, there.form_of(Name(layout.name), form))
    told: dict[str, Any] = {"namespace": there.state_key, "key": layout.name, "members": len(members)}
    for what, one in () if ends is None else (("slowest", ends.slowest), ("newest", ends.newest)):
        told[what] = _entry_fields(there, Name(layout.name, one), members[one], form)
    return told


def _reserved(there: Namespace) -> dict[str, Entry]:
    """Return the library's own entries, without those of groups."""
    return {
        key: entry
        for key, entry in there.stored.items()
        if key.startswith(RESERVED) and not key.startswith(GROUP_PREFIX)
    }


@click.command()
@namespace
@click.argument("key", callback=checked, shell_complete=complete_key)
@member_or_word
@click.option("--raw", is_flag=True, help="Print the stored text as it is, and a newline.")
@as_json
@store_option()
def get(namespace: str, key: str, *, member: str | None, raw: bool, as_json: bool, url: str | None) -> None:
    """Print the cursor of a key as JSON.

    If KEY is a group, MEMBER is needed. In a pipe it is one line, as `checkpoint set` takes it. Exits with 1 if
    there is no such key, or if its value is not a cursor; --raw prints that.

    Example: checkpoint get crm_acme contacts
    """
    if raw and as_json:
        raise click.UsageError("give --raw or --json, not both")
    with reading(url) as store:
        there = Namespace(store, namespace)
        name = Name(key, member)
        is_stored = key in there.stored and name.member is None  # includes the library's own keys
        entry = there.stored[key] if is_stored else there.existing(name)
    if as_json:
        screen.document(_entry_fields(there, name, entry, None))
    elif raw:
        screen.write_text(entry.value)
    else:
        cursor = cursor_in(namespace, name, entry)
        screen.write_text(words.json_of(cursor, indent=2 if sys.stdout.isatty() else None))
