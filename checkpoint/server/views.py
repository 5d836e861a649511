"""What each page of the page shows, read from the store: no HTML, no HTTP."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from checkpoint.entries import RUN_KEY
from checkpoint.errors import CheckpointError, CorruptState
from checkpoint.overview import chart, words
from checkpoint.overview.freshness import Ends, ends_of, holder_of, last_run, runs_of, summary_of
from checkpoint.overview.moments import instant
from checkpoint.overview.namespaces import AbsentError, Name, Namespace, is_pattern
from checkpoint.overview.past import changes_of
from checkpoint.overview.plotted import drawn_field, panels, plotted
from checkpoint.overview.positions import lag_of, position_of
from checkpoint.stores.base import KeepsHistory
from checkpoint.streams.stored import BESIDE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from checkpoint.entries import Change, Entry
    from checkpoint.overview.commands import Commands
    from checkpoint.overview.freshness import Summary
    from checkpoint.overview.plotted import PlottedChange
    from checkpoint.run.runs import Run
    from checkpoint.stores.base import Store

T = TypeVar("T")

PAGE = 100
"""Rows of a table at most."""

PAST = 25
"""Commits of a key's history, and runs, on a page at most."""

SORTS = ("name", "slowest")


class Asked(NamedTuple):
    """What a request asks of a list."""

    like: str = ""
    """A part of the names, or a pattern such as `crm_*`; empty: all."""
    sort: str = ""
    """One of `SORTS`; empty: whatever suits the list."""
    page: int = 1

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Return the names that are like what is asked."""
        if not self.like:
            return [*names]
        if is_pattern(self.like):
            return [name for name in names if fnmatchcase(name, self.like) or name == self.like]
        return [name for name in names if self.like.lower() in name.lower()]


class Paged(NamedTuple):
    """A part of a list."""

    items: Sequence[Any]
    number: int
    """Of the page, from 1 on."""
    pages: int
    total: int
    """Items of the whole list."""


def paged(items: Sequence[T], number: int, size: int = PAGE) -> Paged:
    """Return a page of a list; a number beyond the last page is the last one's."""
    pages = max(1, -(-len(items) // size))
    number = min(max(1, number), pages)
    return Paged(items[(number - 1) * size : number * size], number, pages, len(items))


class Broken(NamedTuple):
    """A namespace that cannot be read."""

    state_key: str
    why: str


def namespaces_shown(store: Store, names: list[str], asked: Asked) -> dict[str, Any]:
    """Return what the list of namespaces shows; `names` are those that exist and may be read.

    Reads those that are shown, and all that are asked for where they are to be sorted by what they hold.
    """
    chosen = asked.chosen(names)
    sort = asked.sort or ("slowest" if len(chosen) <= PAGE else "name")
    if sort == "slowest":
        rows = sorted((_summed(store, name) for name in chosen), key=_worst_first)
        page = paged(rows, asked.page)
    else:
        page = paged(chosen, asked.page)
        page = page._replace(items=[_summed(store, name) for name in page.items])
    return {"page": page, "asked": asked._replace(sort=sort, page=page.number), "known": len(names)}


def _summed(store: Store, name: str) -> Summary | Broken:
    try:
        return summary_of(Namespace(store, name)) or Broken(name, "It holds no keys.")
    except CorruptState as error:
        return Broken(name, str(error))


def _worst_first(row: Summary | Broken) -> tuple[Any, ...]:
    """Sort what cannot be read first, then failed runs, then the slowest."""
    if isinstance(row, Broken):
        return (0, 0.0, row.state_key)
    has_failed = row.run is not None and row.run.outcome == "failed"
    behind = row.lag if row.lag is not None else row.age or 0.0
    return (1 if has_failed else 2, -round(behind), row.state_key)  # each was read at another moment


class Rows(NamedTuple):
    """What the last run said of the rows of a stream, or of all members of a group."""

    seen: int
    delivered: int
    dropped: int
    late: int


class KeyRow(NamedTuple):
    """A key, a member or a group in a list."""

    name: Name
    entry: Entry
    """Of a group: its member that was written last."""
    shown: str
    lag: float | None
    rows: Rows | None
    read: str | None
    """When a run ended that read it to its end, where that is later than it was written; None: it is not known."""
    members: int | None = None
    """None: it is no group."""
    ends: Ends | None = None


def keys_shown(there: Namespace, asked: Asked, commands: Commands) -> dict[str, Any]:
    """Return what the page of a namespace shows."""
    run = last_run(there)
    plain, groups = _plain_and_groups(there)
    page = paged(asked.chosen(sorted([*plain, *groups])), asked.page)
    rows = [
        _key_row(there, Name(key), plain[key], run) if key in plain else _group_row(there, key, run)
        for key in page.items
    ]
    return {
        "namespace": there.state_key,
        "page": page._replace(items=rows),
        "asked": asked,
        "known": len(plain) + len(groups),
        "members": sum(len(there.groups[key].members) for key in groups),
        "run": run,
        **_repairs(there, run, commands),
    }


def _plain_and_groups(there: Namespace) -> tuple[dict[str, Entry], list[str]]:
    inside = there.inside_version_1()
    plain = {name.key: entry for name, entry in there.names.items() if name.member is None and name.key not in inside}
    return plain, [name for name, layout in there.groups.items() if name not in plain and layout.members]


def _repairs(there: Namespace, run: Run | None, commands: Commands) -> dict[str, Any]:
    """Return who holds a namespace and how its last run ended, with the commands that one may need then."""
    held = holder_of(there)
    failed = run is not None and run.outcome == "failed" and isinstance(there.store, KeepsHistory)
    return {
        "held": held,
        "unlock": commands.unlock(there.state_key) if held is not None else None,
        "undo": commands.restore(there.state_key, run.started) if failed and run is not None else None,
        "changed": commands.differences(there.state_key, run.started) if failed and run is not None else None,
    }


def _rows_of(run: Run | None, key: str) -> Rows | None:
    stream: Mapping[str, int] | None = None if run is None else run.streams.get(key)
    return None if stream is None else Rows(*(stream.get(what, 0) for what in Rows._fields))


def _key_row(there: Namespace, name: Name, entry: Entry, run: Run | None) -> KeyRow:
    shown, lag = words.readable_in_short(entry.value), lag_of(entry.value, there.form_of(name))
    rows = _rows_of(run, name.key) if name.member is None else None
    return KeyRow(name, entry, shown, lag, rows, _read_later(there, name, entry))


def _read_later(there: Namespace, name: Name, entry: Entry) -> str | None:
    """Return when a name was last read to its end, if that was after it was written."""
    read, written = instant(there.known.read_at(*name)), instant(entry.updated_at)
    is_later = read is not None and (written is None or (read - written).total_seconds() >= 1)
    return there.known.read_at(*name) if is_later else None


def _group_row(there: Namespace, key: str, run: Run | None) -> KeyRow:
    members = there.groups[key].members
    ends, last = (
        ends_of(members, there.form_of(Name(key))),
        max(members.values(), key=lambda entry: entry.updated_at or ""),
    )
    lag = None if ends is None else ends.lag
    return KeyRow(Name(key), last, "", lag, _rows_of(run, key), None, len(members), ends)


def members_shown(there: Namespace, key: str, asked: Asked) -> dict[str, Any]:
    """Return what the page of a group shows: its members, the slowest first unless they are sorted by name.

    Raises:
        AbsentError: there is no such group.

    """
    layout = there.groups.get(key)
    if not (there.names or there.groups):
        raise AbsentError(f"{there.state_key!r} holds no keys")
    if layout is None:
        raise AbsentError(
            f"{key!r} in {there.state_key!r} is not a group" if Name(key) in there.names else there.absent(key)
        )
    chosen = asked.chosen(sorted(layout.members))
    sort = asked.sort or "slowest"
    if sort == "slowest":
        form = there.form_of(Name(key))
        chosen.sort(key=lambda member: _furthest_first(layout.members[member], form))
    page = paged(chosen, asked.page)
    rows = [_key_row(there, Name(key, member), layout.members[member], None) for member in page.items]
    run = last_run(there)
    return {
        "namespace": there.state_key,
        "group": key,
        "page": page._replace(items=rows),
        "asked": asked._replace(sort=sort),
        "known": len(layout.members),
        "rows": _rows_of(run, key),
        "run": run,
    }


def _furthest_first(entry: Entry, form: str | None) -> tuple[bool, float, str]:
    """Sort by position, what has none last, then by when it was written."""
    position = position_of(entry.value, form)
    return position is None, 0.0 if position is None else position.scale, entry.updated_at or ""


# One key


class Line(NamedTuple):
    """A part of a cursor that a commit changed."""

    sign: str
    """`-`: what it was; `+`: what it is."""
    field: str
    """Empty: the value is no cursor."""
    text: str


class Step(NamedTuple):
    """One commit of a key."""

    change: Change
    lines: list[Line]
    restore: str | None
    """The command that brings its value back; None: it is what is stored now."""


def key_shown(there: Namespace, name: Name, number: int, commands: Commands) -> dict[str, Any]:
    """Return what the page of a key or member shows.

    Raises:
        AbsentError: neither the store nor the history knows it.

    """
    entry, past = there.entry(name), _past(there, name)
    if entry is None and not past:
        raise AbsentError(there.absent(*name) if there.names or there.groups else f"{there.state_key!r} holds nothing")
    run, form = last_run(there), there.form_of(name)
    page = paged(past or [], number, PAST)
    steps = [_step(there, name, change, entry, commands) for change in page.items]
    return {
        "namespace": there.state_key,
        "name": name,
        "entry": entry,
        "position": None if entry is None else position_of(entry.value, form),
        "form": form,
        "lag": None if entry is None else lag_of(entry.value, form),
        "latest": past[0] if past else None,
        "run": run,
        "rows": _rows_of(run, name.key),
        "read": None if entry is None else _read_later(there, name, entry),
        "drawn": _drawn(past or [], name, form),
        "keeps_history": past is not None,
        "page": page._replace(items=steps),
        "held": holder_of(there),
        **({} if entry is None else _cursor(entry.value)),
        "rewind": None if entry is None else _rewind(there, name, entry, past or [], commands),
    }


def _past(there: Namespace, name: Name) -> list[Change] | None:
    """Return the changes of a key, the newest first; None: the store keeps none."""
    if not isinstance(there.store, KeepsHistory):
        return None
    if name.member is None and name.key in there.groups and name not in there.names:
        raise AbsentError(there.absent(name.key))
    try:
        return [change for change in changes_of(there, *name) if (change.key, change.member) == name]
    except CheckpointError:  # a server whose store keeps none
        return None


def _rewind(there: Namespace, name: Name, entry: Entry, past: list[Change], commands: Commands) -> str | None:
    position = _only_value(entry.value)
    earlier = (_only_value(change.before) for change in past if change.before is not None)
    before = next((value for value in earlier if value is not None and value != position), None)
    return commands.rewind(there.state_key, name, entry.value, before, there.form_of(name))


def _only_value(value: str) -> Any:
    """Return the value of a cursor's only field beside what a stream remembers; None: there is not just one."""
    fields = [part for field, part in (words.cursor_of(value) or {}).items() if field not in BESIDE]
    return fields[0] if len(fields) == 1 else None


def _cursor(value: str) -> dict[str, list[str]]:
    """Return a value in lines, of the rows that a stream remembers how many there are, and all of them beside."""
    cursor = words.cursor_of(value)
    if cursor is None:
        return {"cursor": [words.json_of(value)], "stored": []}
    short = words.in_short(cursor)
    stored = _in_lines(cursor) if short != cursor else []
    return {"cursor": _in_lines(short), "stored": stored}


def _in_lines(cursor: Mapping[str, Any]) -> list[str]:
    return words.json_of(cursor, indent=2).split("\n")


def _step(there: Namespace, name: Name, change: Change, entry: Entry | None, commands: Commands) -> Step:
    is_now = change.after == (None if entry is None else entry.value)
    command = None if is_now else commands.restore(there.state_key, str(change.version), name)
    return Step(change, difference(change.before, change.after), command)


def difference(before: str | None, after: str | None) -> list[Line]:
    """Return what differs between two values, field by field where both are cursors."""
    old, new = (None if value is None else words.cursor_of(value) for value in (before, after))
    if (before is not None and old is None) or (after is not None and new is None):
        sides = (("-", before), ("+", after))
        return [Line(sign, "", words.readable_in_short(value)) for sign, value in sides if value is not None]
    short_old, short_new = _fields_in_short(old), _fields_in_short(new)
    lines: list[Line] = []
    for field in dict.fromkeys([*short_old, *short_new]):
        if short_old.get(field) != short_new.get(field):
            sides = (("-", short_old.get(field)), ("+", short_new.get(field)))
            lines += [Line(sign, field, text) for sign, text in sides if text is not None]
    return lines


def _fields_in_short(cursor: Mapping[str, Any] | None) -> dict[str, str]:
    return {field: words.json_of(part) for field, part in words.in_short(cursor or {}).items()}


class Drawn(NamedTuple):
    """Position and lag over time."""

    steps: int
    said: str
    """What is to be seen, in words."""
    wide: str
    """SVG for a large screen."""
    narrow: str
    """SVG for a small one."""


_WIDE = chart.Look(width=1120, left=130, ink="currentColor", axis="var(--rule)", line="var(--accent)")
_NARROW = _WIDE._replace(width=380, left=116, height=120)


def _drawn(past: list[Change], name: Name, form: str | None) -> Drawn | None:
    """Draw the position of a key; None: it has none that can be drawn, or it never moved."""
    try:
        steps = plotted(past, drawn_field(past, name, form), form)
    except AbsentError:
        return None
    if len(steps) < 2:
        return None
    drawn = [panel if panel.title != "lag" else panel._replace(floor=0.0) for panel in panels(steps)]
    return Drawn(len(steps), _said(steps), chart.drawing(drawn, _WIDE), chart.drawing(drawn, _NARROW))


def _said(steps: Sequence[PlottedChange]) -> str:
    first, last = steps[0], steps[-1]
    commits, moved = words.count(len(steps), "commit"), f"position from {first.position} to {last.position}"
    said = f"{commits}, from {first.at} to {last.at}: {moved}"
    lags = [step.lag for step in steps if step.lag is not None]
    return f"{said}; lag between {words.span(min(lags))} and {words.span(max(lags))}" if lags else said


# Runs


def runs_shown(there: Namespace, number: int, commands: Commands) -> dict[str, Any]:
    """Return what the page of a namespace's runs shows."""
    found = runs_of(there)
    keeps = isinstance(there.store, KeepsHistory)
    page = paged(found, number, PAST)
    rows = [
        {
            "run": run,
            "took": _took(run),
            "rows": Rows(*(sum(stream.get(what, 0) for stream in run.streams.values()) for what in Rows._fields)),
            "undo": commands.restore(there.state_key, run.started) if run.outcome == "failed" else None,
            "changed": commands.differences(there.state_key, run.started),
        }
        for run in page.items
    ]
    return {
        "namespace": there.state_key,
        "page": page._replace(items=rows),
        "held": holder_of(there),
        "keeps_history": keeps and (bool(found) or RUN_KEY not in there.stored),
    }


def _took(run: Run) -> float | None:
    began, ended = instant(run.started), instant(run.ended)
    return None if began is None or ended is None else (ended - began).total_seconds()
