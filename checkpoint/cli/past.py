"""`checkpoint history`, `restore`, `diff` and `plot`: what was stored, and what changed."""

from __future__ import annotations

import re
import sys
from datetime import datetime, timedelta, timezone
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from checkpoint.cli import chart, screen
from checkpoint.cli.change import equal, write
from checkpoint.cli.look import nothing
from checkpoint.cli.options import (
    as_json,
    checked,
    checked_keys,
    complete_key,
    complete_namespace,
    confirm,
    dry_run,
    key,
    keys,
    namespace,
    reading,
    store_option,
    yes,
)
from checkpoint.entries import RESERVED, head_key, member_key, named
from checkpoint.errors import printable
from checkpoint.stores.base import KeepsHistory
from checkpoint.streams.keys import moment_of
from checkpoint.streams.values import Scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from checkpoint.entries import Change, Entry
    from checkpoint.stores.base import Store

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class When(NamedTuple):
    """A point in a namespace's history: after the commit of a version, or at a time."""

    text: str
    version: int | None = None
    at: datetime | None = None


def parsed_when(_ctx: click.Context, _param: click.Parameter, value: str | None) -> When | None:
    """Return the moment that a version (`12`), a time (`2024-05-01T10:00Z`) or an age (`2h`) names."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,18}", value):
        return When(value, version=int(value))
    ago = re.fullmatch(rf"([0-9]{{1,6}}) ?({'|'.join(_UNITS)})", value)
    try:
        seconds = int(ago[1]) * _UNITS[ago[2]] if ago else None
        at = screen.instant(value) if seconds is None else datetime.now(timezone.utc) - timedelta(seconds=seconds)
    except OverflowError:  # before the first year
        at = None
    if at is None:
        raise click.BadParameter(f"{value!r} is no version (12), time (2024-05-01T10:00Z) or age (2h).")
    return When(value, at=at)


@click.command()
@namespace
@click.argument("key", required=False, callback=checked_keys, shell_complete=complete_key)
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Show at most N changes.", metavar="N"
)
@as_json
@store_option()
def history(namespace: str, key: str | None, *, limit: int, as_json: bool, url: str | None) -> None:
    """Show what the latest commits changed, newest first.

    For one key, or for all. Each change begins with its version, which `checkpoint restore --to` and `checkpoint diff
    --since` take.
    """
    with reading(url) as store:
        changes = _keeping(store).history(namespace, key, limit=limit)
    if as_json:
        screen.document([_change_fields(change) for change in changes])
        return
    if not changes:
        what = f"{key!r} in {namespace!r}" if key else repr(namespace)
        screen.say(f"No history of {what} in {store!r}.")
    for number, (version, group) in enumerate(groupby(changes, key=lambda change: change.version)):
        commit = list(group)
        one = commit[0]
        by = f"run {one.run_id}, " if one.run_id else ""
        if one.by:
            by += f"by {one.by}, "
        if number:
            screen.say("")
        screen.say(f"version {version}, {one.at}, {by}{one.host} process {one.process}")
        for reason in dict.fromkeys(change.reason for change in commit if change.reason):
            screen.say(f"reason: {reason}")
        screen.show_changes((_name(change.key, change.member), change.before, change.after) for change in commit)


def _name(key: str, member: str | None) -> str:
    """Return what a key or a member is called on the screen."""
    return key if member is None else f"{key} / {member}"


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
        **screen.told_change((change.key, change.before, change.after)),
    }


@click.command()
@namespace
@keys
@click.option("--to", "moment", callback=parsed_when, metavar="MOMENT", required=True, help="A version, time or age.")
@yes
@dry_run
@as_json
@store_option()
def restore(
    namespace: str,
    keys: tuple[str, ...],
    *,
    moment: When,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Bring keys back to what they were at a moment.

    All keys, if none is named. MOMENT is a version that `checkpoint history` shows (as it was after that commit), a
    time such as 2024-05-01T10:00Z (UTC if it has no zone), or an age such as 2h. The old values are written as a new
    commit; the history is kept.
    """
    with reading(url) as store:
        found = store.load(namespace)
        now = {name for name in found if _is_told(name)}
        then = _kept(store, namespace, moment, lambda name: not keys or named(name)[0] in keys)
        if missing := [key for key in keys if key not in {named(name)[0] for name in {*then, *now}}]:
            raise click.ClickException(f"there is no {missing[0]!r} in {namespace!r}, now or at {moment.text}")
        changes = {name: kept.value for name, kept in sorted(then.items())}
        gone = [name for name in changes if name in now and not then[name].version]
        loss = _loss(moment, gone, len(now), every=not any(kept.version for kept in then.values()))
        if loss and (yes or dry_run):  # nobody is asked
            click.echo(loss, err=True)

        def ask(number: int) -> None:
            confirm(f"{loss} Change {screen.count(number, 'key')} of {namespace!r}?".lstrip(), sure=yes)

        changed = [name for name, value in changes.items() if not equal(_value(found.get(name)), value)]
        if not as_json:
            _say_which({name: then[name] for name in changed})
        told = {name: {"as_of": {"version": then[name].version, "at": then[name].at}} for name in changed}
        changes |= _heads(store, namespace, changes, found)
        reason = f"restored to {moment.text}"
        write(store, namespace, changes, found, dry_run=dry_run, as_json=as_json, ask=ask, reason=reason, told=told)


def _loss(moment: When, gone: list[str], of: int, *, every: bool) -> str:
    """Return what it means to go back to when keys were not there yet; empty where none is lost by it."""
    if not gone:
        return ""
    what = f"{'all ' if len(gone) == of > 1 else ''}{screen.count(len(gone), 'key')}"
    if every:
        return f"{moment.text} is before the first commit that history has: this deletes {what}."
    return f"{screen.some([_name(*named(name)) for name in gone])} came after {moment.text}: this deletes {what}."


def _say_which(kept: Mapping[str, Kept]) -> None:
    """Say which kept state each key is brought back to: the newest one that is not later than the moment."""
    by_version: dict[tuple[int, str | None], list[str]] = {}
    for name, state in kept.items():
        if state.version:
            by_version.setdefault((state.version, state.at), []).append(_name(*named(name)))
    for (version, at), names in sorted(by_version.items(), key=lambda item: item[0][0]):
        screen.say(f"as of version {version}{f', {at}' if at else ''}: {', '.join(names)}")


def _heads(
    store: Store, namespace: str, changes: Mapping[str, str | None], found: Mapping[str, Entry]
) -> dict[str, str]:
    """Return the heads of groups whose members are brought back, where they are missing."""
    groups = {named(name)[0] for name, value in changes.items() if value is not None and named(name)[1] is not None}
    missing = {head_key(group) for group in groups} - found.keys()
    past = {
        head: (change.after or change.before for change in _keeping(store).history(namespace, head)) for head in missing
    }
    last = {head: next((value for value in values if value is not None), None) for head, values in past.items()}
    return {head: value for head, value in last.items() if value is not None}


def values_at(store: Store, namespace: str, moment: When | None) -> dict[str, str]:
    """Return the values of a namespace as they were at a moment, None: as they are; reserved entries are left out.

    Ends with one sentence where the history does not reach back so far.
    """
    if moment is None:
        return {key: entry.value for key, entry in store.load(namespace).items() if _is_told(key)}
    kept = _kept(store, namespace, moment, lambda _name: True)
    return {key: state.value for key, state in kept.items() if state.value is not None}


class Kept(NamedTuple):
    """A state of a key that history has."""

    value: str | None
    """None: the key was absent."""
    version: int = 0
    """Of the commit that made it; 0: no commit had yet."""
    at: str | None = None


def _kept(store: Store, namespace: str, moment: When, wanted: Callable[[str], bool]) -> dict[str, Kept]:
    """Return the newest kept state at or before a moment of each key that is wanted, by its stored key."""
    # Loaded first: a commit that comes in between is in the history too.
    entries = store.load(namespace)
    changes = _keeping(store).history(namespace)
    if not changes:
        raise click.ClickException(
            f"{namespace!r} has no history in {store!r}, so what it was at {moment.text} is not known"
            if any(map(_is_told, entries))
            else f"{nothing(store, namespace)}, and has no history there"
        )
    newest = max(changes[0].version, *(entry.version or 0 for entry in entries.values()), 0)
    if moment.version is not None and moment.version > newest:
        raise click.ClickException(f"no version {moment.version} of {namespace!r}: the newest is {newest}")
    past: dict[str, list[Change]] = {name: [] for name in entries if _is_told(name)}
    for change in changes:
        name = change.key if change.member is None else member_key(change.key, change.member)
        past.setdefault(name, []).append(change)
    return {
        name: _state(namespace, name, entries.get(name), of_key, moment)
        for name, of_key in past.items()
        if wanted(name)
    }


def _state(namespace: str, name: str, entry: Entry | None, past: list[Change], moment: When) -> Kept:
    """Return the newest kept state of a key at or before a moment, from its changes, the newest first."""
    for change in past:
        if _is_reached(change.version, change.at, moment):
            return Kept(change.after, change.version, change.at)
    if not past and entry is not None and _is_reached(entry.version or 0, entry.updated_at, moment):
        return Kept(entry.value, entry.version or 0, entry.updated_at)  # written before there was a history
    if past and past[-1].before is None:
        return Kept(None)  # it was created later
    if past and moment.version is not None and past[-1].version == moment.version + 1:
        return Kept(past[-1].before, moment.version)  # what the next commit found
    reach = f"reaches back to version {past[-1].version}, {past[-1].at}" if past else "is empty"
    raise click.ClickException(
        f"the history of {_name(*named(name))!r} in {namespace!r} {reach}: {moment.text} is before that"
    )


def _is_reached(version: int, at: str | None, moment: When) -> bool:
    if moment.version is not None:
        return version <= moment.version
    then = screen.instant(at)
    return then is not None and moment.at is not None and then <= moment.at


def _is_told(name: str) -> bool:
    """Tell whether an entry is the user's: a plain key, or a member of a group."""
    return not name.startswith(RESERVED) or named(name)[1] is not None


def _value(entry: Entry | None) -> str | None:
    return None if entry is None else entry.value


def _keeping(store: Store) -> KeepsHistory:
    if isinstance(store, KeepsHistory):
        return store
    raise click.ClickException(f"{store!r} keeps no history")


@click.command()
@namespace
@click.argument("other", required=False, callback=checked, shell_complete=complete_namespace)
@click.option("--with", "target", metavar="URL", help="The store of the other side. Default: the same one.")
@click.option("--since", callback=parsed_when, metavar="MOMENT", help="Compare NAMESPACE as it was at that moment.")
@click.option(
    "--until", callback=parsed_when, metavar="MOMENT", help="Compare with the other side at this moment (default: now)."
)
@as_json
@store_option()
def diff(
    namespace: str,
    other: str | None,
    *,
    target: str | None,
    since: When | None,
    until: When | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Compare two namespaces, two stores, or two moments.

    OTHER, --with and --until say how the other side differs. MOMENT is a version, a time or an age, as in `checkpoint
    restore`. Lines with - are on this side, lines with + on the other. Exits with 0 if both are the same, with 1 if
    they differ, and with 2 on an error.
    """
    if not any((other, target, since, until)):
        raise click.UsageError("with what? Give OTHER, --with URL or --since MOMENT")
    with reading(url) as store, reading(target or url, "--with" if target else "--store") as there:
        before = values_at(store, namespace, since)
        after = values_at(there, other or namespace, until)
        if not any((before, after, since, until)):
            raise click.ClickException(f"{nothing(store, namespace)}, nor does {other or namespace!r} in {there!r}")
    changes = _differences(before, after)
    if as_json:
        told = [screen.told_change(change) for change in changes]
        screen.document({"namespace": namespace, "other": other or namespace, "changes": told})
    else:
        screen.show_changes(changes)
    sys.exit(1 if changes else 0)


def _differences(before: dict[str, str], after: dict[str, str]) -> list[tuple[str, str | None, str | None]]:
    pairs = ((name, before.get(name), after.get(name)) for name in sorted({*before, *after}))
    return [(name, old, new) for name, old, new in pairs if not equal(old, new)]


@click.command()
@namespace
@key
@click.option("--field", metavar="NAME", help="The field of the cursor. Default: the only one that can be drawn.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg", help="Draw an SVG image.")
@as_json
@store_option()
def plot(namespace: str, key: str, *, field: str | None, out: Path | None, as_json: bool, url: str | None) -> None:
    """Draw a key's position over time, and its lag.

    As far back as the history reaches. The lag is how far the position was behind the clock at each commit. It is drawn
    if the position is a time.
    """
    if out is not None and out.suffix.lower() != ".svg":
        raise click.UsageError(f"{out} is no SVG file: give --out a name that ends in .svg")
    with reading(url) as store:
        changes = _keeping(store).history(namespace, key)
    steps = _plotted(changes, _field(changes, key) if field is None else field)
    if not steps:
        raise click.ClickException(f"the history of {key!r} in {namespace!r} has no position to draw")
    title = printable(f"{namespace} {key}")
    if as_json:
        screen.document([step._asdict() for step in steps])
    elif out is not None:
        screen.write_file(out, chart.svg(title, _panels(steps)).encode())
        screen.say(f"{screen.count(len(steps), 'commit')} of {title} drawn in {out}.")
    else:
        console = screen.console()
        console.print(chart.text(title, _panels(steps), min(console.width, 120)), soft_wrap=False)


class PlottedChange(NamedTuple):
    """What one commit said of the position."""

    version: int
    at: str
    position: Any
    """As it is stored."""
    scale: float
    """As a number: seconds since 1970 of a time."""
    is_time: bool
    lag: float | None
    """Seconds between the position and the commit; None where it is no instant."""


def _field(changes: list[Change], key: str) -> str:
    """Return the only member of the newest cursor that is a number or a time."""
    cursors = (screen.cursor_of(change.after) for change in changes if change.after is not None)
    cursor = next((cursor for cursor in cursors if cursor is not None), None)
    if cursor is None:
        raise click.ClickException(f"there is no cursor of {key!r} in the history")
    fields = [name for name, value in cursor.items() if _measured(value) is not None]
    if len(fields) == 1:
        return fields[0]
    hint = (
        f"it has {', '.join(fields)}: choose one with --field"
        if fields
        else "none of its members is a number or a time"
    )
    raise click.ClickException(f"what of {key!r} is to be drawn? {hint}")


def _plotted(changes: Iterable[Change], field: str) -> list[PlottedChange]:
    steps: list[PlottedChange] = []
    for change in changes:
        cursor = screen.cursor_of(change.after) if change.after is not None else None
        scaled = _measured(cursor.get(field)) if cursor is not None else None
        at = screen.instant(change.at)
        if cursor is not None and scaled is not None and at is not None:
            scale, kind = scaled
            lag = at.timestamp() - scale if kind == "instant" else None
            steps.append(PlottedChange(change.version, change.at, cursor[field], scale, kind != "number", lag))
    kinds = {step.is_time for step in steps[:1]}
    return [step for step in reversed(steps) if step.is_time in kinds]


def _measured(value: Any) -> tuple[float, str] | None:
    """Return a cursor value as a number, and its kind; None where it has no scale."""
    scale = Scale("the position")
    try:
        found = scale.key_of(value)
        if scale.kind == "number":
            return float(found), "number"
    except (TypeError, ValueError, OverflowError):
        return None
    if scale.kind in {"instant", "wall"}:
        seconds, fraction = moment_of(found)
        return seconds + float(f"0.{fraction or 0}"), scale.kind
    return None


def _panels(steps: list[PlottedChange]) -> list[chart.Panel]:
    moments = [datetime.fromisoformat(step.at.replace("Z", "+00:00")).timestamp() for step in steps]
    label = chart.moment if steps[0].is_time else chart.number
    points = [chart.Point(at, step.scale) for at, step in zip(moments, steps, strict=True)]
    panels = [chart.Panel("position", points, label)]
    lags = [chart.Point(at, step.lag) for at, step in zip(moments, steps, strict=True) if step.lag is not None]
    if lags:
        panels.append(chart.Panel("lag", lags, screen.span))
    return panels
