"""The data of each web page, read from the store; HTML and HTTP are in `ui`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from checkpoint.entries import RUN_KEY
from checkpoint.errors import CorruptState
from checkpoint.overview import chart, words
from checkpoint.overview.freshness import (
    ALARMING,
    Ends,
    Summary,
    age_of,
    ends_of,
    holder_of,
    how_far,
    lease_of,
    runs_of,
    slowest_of,
    summary_of,
    worst_first,
    wrong_in,
)
from checkpoint.overview.moments import instant, seconds_since
from checkpoint.overview.namespaces import AbsentError, Name, Namespace, is_pattern
from checkpoint.overview.past import before_ahead, is_cursor, is_damaged, last_good, past_of
from checkpoint.overview.plotted import drawn_field, panels, plotted, standing_until
from checkpoint.overview.positions import is_ahead, lag_of, position_of
from checkpoint.stores.base import KeepsHistory
from checkpoint.streams.stored import BESIDE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from checkpoint.entries import Change, Entry
    from checkpoint.overview.commands import Commands
    from checkpoint.overview.freshness import Holder, Released
    from checkpoint.overview.plotted import PlottedChange
    from checkpoint.run.runs import Run
    from checkpoint.stores.base import Store

T = TypeVar("T")

PAGE = 100
"""At most this many rows in a table."""

PAST = 25
"""At most this many commits of a key's history, or runs, on a page."""

SORTS = ("name", "slowest")

READING = 0.7
"""Time limit in seconds for reading all namespaces in order to sort them, unless the request asks for that order."""


class Asked(NamedTuple):
    """The query of a request for a list."""

    search: str = ""
    """Part of a name, or a pattern such as `crm_*`; empty: all."""
    sort: str = ""
    """One of `SORTS`; empty: the default of the list."""
    page: int = 1
    only: str = ""
    """For namespaces: only those with this problem; empty: all."""

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Return the names that match the query."""
        if not self.search:
            return [*names]
        if is_pattern(self.search):
            return [name for name in names if fnmatchcase(name, self.search) or name == self.search]
        return [name for name in names if self.search.lower() in name.lower()]


class Paged(NamedTuple):
    """One page of a list."""

    items: Sequence[Any]
    number: int
    """The number of the page, from 1."""
    pages: int
    total: int
    """The number of items in the whole list."""


def paged(items: Sequence[T], number: int, size: int = PAGE) -> Paged:
    """Return a page of a list; a number beyond the last page gives the last page."""
    pages = max(1, -(-len(items) // size))
    number = min(max(1, number), pages)
    return Paged(items[(number - 1) * size : number * size], number, pages, len(items))


class Broken(NamedTuple):
    """A namespace that cannot be read."""

    state_key: str
    why: str


def namespaces_shown(store: Store, names: list[str], asked: Asked) -> dict[str, Any]:
    """Return the list of namespaces; `names` are those that exist and may be read.

    All matching namespaces are read, as failed and slow ones come first. If that takes too long and the request does
    not ask for that order, only those of the page are read, sorted by name.
    """
    chosen = asked.chosen(names)
    is_whole = asked.sort == "slowest" or bool(asked.only)
    rows = _all_summed(store, chosen, None if is_whole else READING) if is_whole or not asked.sort else None
    if rows is None:
        page = paged(chosen, asked.page)
        page = page._replace(items=[_summed(store, name) for name in page.items])
    else:
        shown = [row for row in rows if not asked.only or asked.only in _wrong([row])]
        page = paged(sorted(shown, key=_by_name if asked.sort == "name" else _worst_first), asked.page)
    return {
        "page": page,
        "asked": asked,
        "sort": "name" if rows is None or asked.sort == "name" else "slowest",
        "wrong": None if rows is None else _wrong(rows),
        "alarming": {"cannot be shown", *ALARMING},
        "known": len(names),
    }


def _all_summed(store: Store, names: list[str], seconds: float | None) -> list[Summary | Broken] | None:
    """Sum up namespaces; None: that would take longer than this many seconds."""
    until = None if seconds is None else monotonic() + seconds
    rows: list[Summary | Broken] = []
    for name in names:
        if until is not None and monotonic() > until and len(names) > PAGE:
            return None
        rows.append(_summed(store, name))
    return rows


def _wrong(rows: Sequence[Summary | Broken]) -> dict[str, int]:
    """Return the number of namespaces with each problem; problems of none are left out."""
    summed = [row for row in rows if isinstance(row, Summary)]
    broken = len(rows) - len(summed)
    counted = {what: len(names) for what, names in wrong_in(summed).items()}
    return ({"cannot be shown": broken} if broken else {}) | counted


def _summed(store: Store, name: str) -> Summary | Broken:
    try:
        return summary_of(Namespace(store, name)) or Broken(name, "It holds no keys.")
    except CorruptState as error:
        return Broken(name, str(error))


def _worst_first(row: Summary | Broken) -> tuple[Any, ...]:
    """Sort key: unreadable namespaces first, the rest in the order of `checkpoint list`."""
    return (-1, 0, row.state_key) if isinstance(row, Broken) else worst_first(row)


def _by_name(row: Summary | Broken) -> tuple[Any, ...]:
    return (row.state_key,)


class Rows(NamedTuple):
    """The row counts of the last run, for a stream or for all members of a group."""

    seen: int
    delivered: int
    dropped: int
    late: int


class Aged(NamedTuple):
    """The age of a key, a member or a group."""

    seconds: float | None
    """None: unknown."""
    written: str | None = None
    """The time of the last write; None: unknown."""
    read: str | None = None
    """The end of a run that read it to its end, if at least a minute after the last write."""
    shared: str | None = None
    """The time of the last write of its shared entry; None: it has its own entry."""
    name: Name | None = None
    """For a group: the member with this age."""


class KeyRow(NamedTuple):
    """A key, a member or a group in a list."""

    name: Name
    entry: Entry
    """For a group: the member written last."""
    shown: str
    lag: float | None
    aged: Aged
    rows: Rows | None
    members: int | None = None
    """None: it is not a group."""
    ends: Ends | None = None


def keys_shown(there: Namespace, asked: Asked, commands: Commands) -> dict[str, Any]:
    """Return the data for the page of a namespace."""
    run = there.run
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
    """Return the holder of a namespace and the result of its last run, with the commands for repair."""
    lease, held = lease_of(there), holder_of(there)
    failed = run is not None and run.outcome == "failed" and isinstance(there.store, KeepsHistory)
    return {
        "lease": lease,
        "state": None if run is None else how_far(run, lease),
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
    return KeyRow(name, entry, shown, lag, _aged(there, name, entry), rows)


def _aged(there: Namespace, name: Name, entry: Entry, changed: str | None = None) -> Aged:
    """Return the age of a key or member; in a shared entry, the history may give the time of its last change."""
    shared = entry.updated_at if there.shares(name) else None
    written = entry.updated_at if shared is None else changed
    ages = [age for age in (age_of(there, name, entry), seconds_since(written)) if age is not None]
    read = there.known.read_at(*name)
    since_read, since_written = seconds_since(read), seconds_since(written)
    is_later = since_read is not None and (since_written is None or since_written - since_read > 60)
    return Aged(min(ages, default=None), written, read if is_later else None, None if written or is_later else shared)


def _group_row(there: Namespace, key: str, run: Run | None) -> KeyRow:
    members = there.groups[key].members
    ends, last = (
        ends_of(members, there.form_of(Name(key))),
        max(members.values(), key=lambda entry: entry.updated_at or ""),
    )
    every = {Name(key, member): age_of(there, Name(key, member), entry) for member, entry in members.items()}
    ages = {name: age for name, age in every.items() if age is not None}
    oldest = max(ages, key=lambda name: ages[name], default=None)
    shared = last.updated_at if len(ages) < len(members) else None
    aged = Aged(None if oldest is None else ages[oldest], shared=shared, name=oldest)
    lag = None if ends is None else ends.lag
    return KeyRow(Name(key), last, "", lag, aged, _rows_of(run, key), len(members), ends)


def members_shown(there: Namespace, key: str, asked: Asked) -> dict[str, Any]:
    """Return the data for the page of a group: its members, slowest first unless sorted by name.

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
        chosen.sort(key=lambda member: slowest_of(layout.members[member].value, form))
    page = paged(chosen, asked.page)
    rows = [_key_row(there, Name(key, member), layout.members[member], None) for member in page.items]
    run = there.run
    return {
        "namespace": there.state_key,
        "group": key,
        "page": page._replace(items=rows),
        "asked": asked,
        "sort": sort,
        "known": len(layout.members),
        "rows": _rows_of(run, key),
        "run": run,
    }


# One key


class Line(NamedTuple):
    """A field of a cursor that a commit changed."""

    sign: str
    """`-`: the old value; `+`: the new value."""
    field: str
    """Empty: the value is not a cursor."""
    text: str


class Step(NamedTuple):
    """One commit of a key."""

    change: Change
    lines: list[Line]
    restore: str | None
    """The command that restores its value; None: it is the stored value."""
    undo: str | None = None
    """For the newest commit: the command that undoes it."""


def key_shown(there: Namespace, name: Name, number: int, commands: Commands) -> dict[str, Any]:
    """Return the data for the page of a key or member.

    Raises:
        AbsentError: neither the store nor the history has it.

    """
    entry, past = there.entry(name), _past(there, name)
    if entry is None and not past:
        raise AbsentError(there.absent(*name) if there.names or there.groups else f"{there.state_key!r} holds nothing")
    run, form, lease = there.run, there.form_of(name), lease_of(there)
    lag = None if entry is None else lag_of(entry.value, form)
    before = before_ahead(past or [], form) if is_ahead(lag) else None
    damaged = entry is not None and is_damaged(there, name, entry.value)
    readable = last_good(past or [], is_cursor) if damaged else None
    page = paged(past or [], number, PAST)
    steps = [_step(there, name, change, entry, commands) for change in page.items]
    if steps and page.number == 1 and steps[0].change.before != steps[0].change.after:
        steps[0] = steps[0]._replace(undo=_undo(there, name, steps[0].change, commands))
    return {
        "namespace": there.state_key,
        "name": name,
        "entry": entry,
        "position": None if entry is None else position_of(entry.value, form),
        "form": form,
        "lag": lag,
        "ahead": is_ahead(lag),
        "damaged": damaged,
        "readable": None if readable is None else commands.restore(there.state_key, str(readable), name),
        "before_ahead": None if before is None else commands.restore(there.state_key, str(before), name),
        "latest": past[0] if past else None,
        "run": run,
        "rows": _rows_of(run, name.key),
        "aged": None if entry is None else _aged(there, name, entry, past[0].at if past else None),
        "drawn": _drawn(past or [], name, form),
        "keeps_history": past is not None,
        "page": page._replace(items=steps),
        "lease": lease,
        "held": holder_of(there),
        "state": None if run is None else how_far(run, lease),
        **({} if entry is None else _cursor(entry.value)),
        # Two days before now may be after the last good position: rows between the two would be skipped.
        "rewind": None if entry is None or before is not None else _rewind(there, name, entry, past or [], commands),
    }


def _past(there: Namespace, name: Name) -> list[Change] | None:
    """Return the changes of a key, newest first; None: the store keeps no history."""
    if name.member is None and name.key in there.groups and name not in there.names:
        raise AbsentError(there.absent(name.key))
    return past_of(there, name)


def _rewind(there: Namespace, name: Name, entry: Entry, past: list[Change], commands: Commands) -> str | None:
    position = _only_value(entry.value)
    earlier = (_only_value(change.before) for change in past if change.before is not None)
    before = next((value for value in earlier if value is not None and value != position), None)
    return commands.rewind(there.state_key, name, entry.value, before, there.form_of(name))


def _only_value(value: str) -> Any:
    """Return the value of a cursor's only field, remembered rows aside; None: there is not exactly one."""
    fields = [part for field, part in (words.cursor_of(value) or {}).items() if field not in BESIDE]
    return fields[0] if len(fields) == 1 else None


def _cursor(value: str) -> dict[str, list[str]]:
    """Return a value as lines with the number of the rows that a stream remembers, and these rows separately."""
    cursor = words.cursor_of(value)
    if cursor is None:
        return {"cursor": [words.json_of(value)], "stored": []}
    short = words.in_short(cursor)
    stored = _in_lines(cursor) if short != cursor else []
    return {"cursor": _in_lines(short), "stored": stored}


def _in_lines(cursor: Mapping[str, Any]) -> list[str]:
    return words.json_of(cursor, indent=2).split("\n")


def _undo(there: Namespace, name: Name, change: Change, commands: Commands) -> str:
    return commands.undo(there.state_key, change.version, [name], added=change.before is None)


def _step(there: Namespace, name: Name, change: Change, entry: Entry | None, commands: Commands) -> Step:
    is_now = change.after == (None if entry is None else entry.value)
    command = None if is_now else commands.restore(there.state_key, str(change.version), name)
    return Step(change, difference(change.before, change.after), command)


def difference(before: str | None, after: str | None) -> list[Line]:
    """Return the differences between two values, field by field if both are cursors."""
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
    """The description of the chart in words."""
    wide: str
    """SVG for a large screen."""
    narrow: str
    """SVG for a small one."""


_WIDE = chart.Look(width=1120, left=130, ink="currentColor", axis="var(--rule)", line="var(--accent)")
_NARROW = _WIDE._replace(width=380, left=116, height=120)


def _drawn(past: list[Change], name: Name, form: str | None) -> Drawn | None:
    """Draw the position of a key; None: it cannot be drawn, or it never moved."""
    try:
        steps = plotted(past, drawn_field(past, name, form), form)
    except AbsentError:
        return None
    until = standing_until(past, steps)
    if len(steps) < (1 if until is not None else 2):
        return None
    drawn = panels(steps, until)
    return Drawn(len(steps), _said(steps, until), chart.drawing(drawn, _WIDE), chart.drawing(drawn, _NARROW))


def _said(steps: Sequence[PlottedChange], until: float | None) -> str:
    first, last = steps[0], steps[-1]
    commits, moved = words.count(len(steps), "commit"), f"position from {first.position} to {last.position}"
    said = f"{commits}, from {first.at} to {last.at}: {moved}"
    lags = [step.lag for step in steps if step.lag is not None]
    if lags:
        said += f"; lag between {words.span(min(lags))} and {words.span(max(lags))}"
    if until is None:
        return said
    grown = f", lag {words.span(until - last.scale)}" if lags else ""
    return f"{said}; unchanged for {words.age(last.at)} until now{grown}"


# Runs


class StreamRows(NamedTuple):
    """The results of a run for a stream, or for all members of a group."""

    name: str
    rows: Rows
    read: bool
    """Whether the run is known to have read it to its end."""


STREAMS = 30
"""At most this many streams of a run are named, with rows and without."""


def runs_shown(there: Namespace, number: int, commands: Commands) -> dict[str, Any]:
    """Return the data for the page of a namespace's runs."""
    found, lease = runs_of(there), lease_of(there)
    keeps = isinstance(there.store, KeepsHistory)
    page = paged(found, number, PAST)
    return {
        "namespace": there.state_key,
        "page": page._replace(items=[_run_row(there, run, lease, commands) for run in page.items]),
        "lease": lease,
        "keeps_history": keeps and (bool(found) or RUN_KEY not in there.stored),
    }


def _run_row(there: Namespace, run: Run, lease: Holder | Released | None, commands: Commands) -> dict[str, Any]:
    """Return a run with its results: streams with the most rows first, those without rows by name."""
    read = {*run.read}
    streams = [StreamRows(name, rows, name in read) for name in run.streams if (rows := _rows_of(run, name))]
    busy = sorted((stream for stream in streams if stream.rows.seen), key=lambda stream: -stream.rows.seen)
    quiet = [stream for stream in streams if not stream.rows.seen]
    return {
        "run": run,
        "state": how_far(run, lease),
        "took": _took(run),
        "rows": Rows(*(sum(numbers) for numbers in zip(*(stream.rows for stream in streams), strict=True)))
        if streams
        else Rows(0, 0, 0, 0),
        "busy": busy[:STREAMS],
        "quiet": quiet[:STREAMS],
        "more": len(busy[STREAMS:]) + len(quiet[STREAMS:]),
        "undo": commands.restore(there.state_key, run.started) if run.outcome == "failed" else None,
        "changed": commands.differences(there.state_key, run.started),
    }


def _took(run: Run) -> float | None:
    began, ended = instant(run.started), instant(run.ended)
    return None if began is None or ended is None else (ended - began).total_seconds()
