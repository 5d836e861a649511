"""`checkpoint restore`: back to what was stored at a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from checkpoint import codec
from checkpoint.cli import screen
from checkpoint.cli.moments import when_given
from checkpoint.cli.options import as_json, confirm, dry_run, keys, member, namespace, reading, store_option, yes
from checkpoint.cli.writing import Plan, carry_out, counted, planned
from checkpoint.entries import named
from checkpoint.errors import CorruptState
from checkpoint.overview import words
from checkpoint.overview.namespaces import Name, Namespace, chosen
from checkpoint.overview.past import changes_of, kept_at, kept_of_member, past_of_row
from checkpoint.stores.base import KeepsHistory, ReplacesRows
from checkpoint.streams.stored import RESUME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from checkpoint.overview.moments import When
    from checkpoint.overview.past import Kept
    from checkpoint.stores.base import Store


@click.command()
@namespace
@keys
@member
@click.option(
    "--to", "moment", callback=when_given, metavar="MOMENT", required=True, help="A version, a time or an age."
)
@click.option("--delete", is_flag=True, help="Delete keys that did not exist at the moment.")
@click.option("--reason", metavar="TEXT", help="The reason, kept in the history.")
@yes
@dry_run
@as_json
@store_option()
def restore(
    namespace: str,
    keys: tuple[str, ...],
    *,
    member: str | None,
    moment: When,
    delete: bool,
    reason: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Bring keys back to what they were at a moment.

    It shows the changes, and asks. Without KEY, it restores all keys. A KEY that is a group stands for all of its
    members, and NAMESPACE may be a pattern such as 'crm_*'. The store must keep history, as SQLite and PostgreSQL
    do.

    MOMENT is a version (the state after that commit, see `checkpoint history`), a time such as 2024-05-01T10:00Z
    (UTC if it has no zone), or an age such as 2h. The newest state kept at or before that moment is restored, and
    its version is printed. It is written as a new commit: the history is kept. Keys created after the moment stay
    as they are, unless --delete is given.

    The page token of an interrupted reading is not restored, because the source may refuse an old one. The stream
    reads on from its position.

    Example: checkpoint restore crm_acme contacts --to 2h
    """
    if member is not None and len(keys) != 1:
        raise click.UsageError("--member needs KEY: the name of its group")
    why = reason or f"restored to {moment.text}"
    with reading(url) as store:
        try:
            plans = [
                _restored(each, keys, member, moment, why, delete=delete) for each in _with_past(store, namespace, keys)
            ]
        except CorruptState as error:
            if error.where is None or (error.state_key, *named(error.key)) != (namespace, *_only(keys, member)):
                raise
            _replace(store, error, moment, why, yes=yes, dry_run=dry_run, as_json=as_json)
            return
        losses = [plan.loss for plan in plans if plan.loss]
        if not delete and losses and not any(plan.changes for plan in plans):
            raise click.ClickException(f"{' '.join(losses)} Nothing was written.")
        for loss in losses if not delete or yes or dry_run else ():  # no question is asked
            screen.warn(loss)
        question = f"Change {counted([name for plan in plans for name in plan.changes])} of {namespace!r}?"

        def ask(_number: int) -> str:
            return " ".join([*(losses if delete else ()), question])

        carry_out(plans, namespace, dry_run=dry_run, as_json=as_json, ask=ask, yes=yes)


def _only(keys: tuple[str, ...], member: str | None) -> Sequence[str | None]:
    """Return the key and the member that are asked for; the member may also be given as a word after its group."""
    return (keys[0], member) if len(keys) == 1 else keys


def _replace(
    store: Store, error: CorruptState, moment: When, reason: str, *, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Replace the damaged row of a key by its value at a moment, or end with the error."""
    name = Name(*named(error.key))
    if not (isinstance(store, ReplacesRows) and isinstance(store, KeepsHistory)):
        raise error
    past = (change for change in past_of_row(store, error) if moment.is_reached_by(change.version, change.at))
    value = next((change.after for change in past), None)
    value = _without_places({name: value})[0][name]
    if value is None:
        said = f"the history of {name.quoted} in {error.state_key!r} has no value {moment.said}; nothing was written"
        raise click.ClickException(said)
    if not as_json:
        screen.say_wrapped(f"The stored row of {name.quoted} is damaged, and is replaced.")
        screen.show_changes([(name.said, None, value)])
    if not dry_run:
        confirm(f"Replace the row of {name.quoted} in {error.state_key!r}?", sure=yes)
        store.replace(error.state_key, error.key, value, run_id="checkpoint restore", reason=reason)
    if as_json:
        change = {**name.fields(), "before": None, "after": words.told_value(value)}
        screen.document({"namespace": error.state_key, "dry_run": dry_run, "changes": [change]})
    else:
        does = "would change; nothing was written" if dry_run else "changed"
        screen.say(f"{counted([name])} of {error.state_key!r} {does}.")


def _with_past(store: Store, namespace: str, keys: tuple[str, ...]) -> list[Namespace]:
    """Return the namespaces of a name or pattern; of several, those that hold or held something, or one of the keys."""
    found = chosen(store, namespace)
    if len(found) == 1:
        return found
    asked: list[str | None] = [*keys] or [None]
    return [there for there in found if any(_had(there, key) for key in asked)] or found


def _had(there: Namespace, key: str | None) -> bool:
    return bool((there.names if key is None else there.under(key)) or changes_of(there, key))


def _restored(
    there: Namespace, keys: tuple[str, ...], member: str | None, moment: When, reason: str, *, delete: bool
) -> Plan:
    """Return the plan of the restore."""
    keys, member = _with_member(there, keys, member)
    kept = _kept(there, keys, member, moment)
    later = [name for name, state in kept.items() if not state.version and there.value(name) is not None]
    loss = _loss(there, later, moment, delete=delete)
    if not delete:
        kept = {name: state for name, state in kept.items() if name not in {*later}}
    values, dropped = _without_places({name: state.value for name, state in sorted(kept.items())})
    plan = planned(there, values, reason=reason)
    beside = {name: {"as_of": {"version": kept[name].version, "at": kept[name].at}} for name in plan.changes}
    said = [*_which({name: kept[name] for name in plan.changes}), *_places(plan, dropped)]
    return plan._replace(beside=beside, said=said, loss=loss)


def _with_member(there: Namespace, keys: tuple[str, ...], member: str | None) -> tuple[tuple[str, ...], str | None]:
    """Return keys and the member, which may also be given as a word after its group, as with other verbs."""
    if member is None and len(keys) == 2 and keys[0] in there.groups and not _had(there, keys[1]):
        name = Name(*keys)
        if there.entry(name) is not None or changes_of(there, *name):
            return keys[:1], keys[1]
    return keys, member


def _kept(there: Namespace, keys: tuple[str, ...], member: str | None, moment: When) -> dict[Name, Kept]:
    """Return the kept states to restore, or end with the error that a key does not exist."""
    if member is not None:
        name = Name(keys[0], member)
        return {name: kept_of_member(there, name, moment)}
    under = {key: {Name(key), *there.under(key)} for key in keys}  # in version 1 a group's entries have other keys
    wanted = {name for names in under.values() for name in names}
    kept = kept_at(there, moment, lambda name: not keys or name.key in keys or name in wanted)
    for key, names in under.items():
        if not any(name.key == key or name in names for name in kept):
            absent = there.absent(key)
            if "--member" in absent:
                raise click.ClickException(absent)
            _, question, meant = absent.partition(": did you mean ")
            where = f"there is no {key!r} in {there.state_key!r}, now or {moment.said}"
            raise click.ClickException(f"{where}{question}{meant}")
    return kept


def _without_places(values: Mapping[Name, str | None]) -> tuple[dict[Name, str | None], list[Name]]:
    """Return values without the page tokens of interrupted reads, and the names that had one."""
    kept: dict[Name, str | None] = {}
    dropped: list[Name] = []
    for name, value in values.items():
        cursor = None if value is None else words.cursor_of(value)
        kept[name] = value
        if cursor is not None and isinstance(cursor.get(RESUME), dict):
            dropped.append(name)
            del cursor[RESUME]
            kept[name] = codec.encode(cursor) if cursor else None
    return kept, dropped


def _places(plan: Plan, dropped: Sequence[Name]) -> list[str]:
    """Return lines about page tokens that are not restored, and about streams left without a place to continue."""
    names = [name for name in dropped if name in plan.changes]
    gone = [name for name in names if plan.changes[name] is None]
    lines = [("without the page token of an interrupted reading, which is old: ", names)]
    lines += [("without any value, so that the next run starts over: ", gone)]
    return [f"{line}{', '.join(name.said for name in found)}" for line, found in lines if found]


def _which(kept: Mapping[Name, Kept]) -> list[str]:
    """Return lines that say which kept state each key is restored to."""
    by_version: dict[tuple[int, str | None], list[str]] = {}
    for name, state in kept.items():
        if state.version:
            by_version.setdefault((state.version, state.at), []).append(name.said)
    return [
        f"as of version {version}{f', {at}' if at else ''}: {', '.join(names)}"
        for (version, at), names in sorted(by_version.items(), key=lambda item: item[0][0])
    ]


def _loss(there: Namespace, later: Sequence[Name], moment: When, *, delete: bool) -> str:
    """Return what happens to keys created after the moment; empty if there are none."""
    if not later:
        return ""
    what = f"{'all ' if len(later) == len(there.names) > 1 else ''}{counted(later)}"
    does = f"this deletes {what}" if delete else "left as it is; --delete deletes it" if len(later) == 1 else (
        f"{what} are left as they are; --delete deletes them"
    )  # fmt: skip
    return f"{words.some([name.said for name in later])} did not exist {moment.said}: {does}."
