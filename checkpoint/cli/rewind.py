"""`checkpoint rewind`: move a position back, so that a stream reads again from an earlier place."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from checkpoint import codec
from checkpoint.cli.options import (
    as_json,
    cursor_format,
    dry_run,
    key,
    member_or_word,
    namespace,
    reading,
    store_option,
    yes,
)
from checkpoint.cli.writing import carry_out, counted, planned
from checkpoint.errors import CheckpointError, quoted
from checkpoint.overview import words
from checkpoint.overview.commands import BACK_DAYS
from checkpoint.overview.moments import instant, seconds_in
from checkpoint.overview.namespaces import Name, Namespace, chosen
from checkpoint.overview.past import changes_of
from checkpoint.overview.positions import before_now, is_ahead, measured, misread, position_of
from checkpoint.stores.base import KeepsHistory
from checkpoint.streams.spellings import UNITS
from checkpoint.streams.stored import BESIDE, RESUME, is_value
from checkpoint.streams.values import Amount, Scale, likelier_epoch, shorten, wire

if TYPE_CHECKING:
    from checkpoint.cli.writing import Plan
    from checkpoint.entries import Change
    from checkpoint.overview.positions import Measured

_FORMATS = (
    "name its format with --cursor-format: epoch_s (or _ms, _us, _ns), number, text, or a pattern such as %m/%d/%Y"
)


def step_given(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Amount | None:
    """Parse an amount: an age such as `2d`, or a number."""
    if value is None:
        return None
    seconds = seconds_in(value)
    if seconds is not None:
        return timedelta(seconds=seconds)
    if re.fullmatch(r"[0-9]{1,30}(\.[0-9]{1,30})?", value):
        return int(value) if value.isdecimal() else Decimal(value)
    raise click.BadParameter(f"{value!r} is neither an age such as 2d nor a number such as 1000.")


@click.command()
@namespace
@key
@member_or_word
@click.option("--to", "to", metavar="VALUE", help="The position to go back to, written as the source writes it.")
@click.option(
    "--by", "by", callback=step_given, metavar="AMOUNT", help="How far to go back: an age such as 2d, or a number."
)
@click.option("--field", metavar="NAME", help="The field of the cursor that is the position, if it has several.")
@cursor_format
@click.option("--reason", metavar="TEXT", help="The reason, kept in the history.")
@yes
@dry_run
@as_json
@store_option()
def rewind(
    namespace: str,
    key: str,
    *,
    member: str | None,
    to: str | None,
    by: Amount | None,
    field: str | None,
    cursor_format: str | None,
    reason: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Move a position back: the next run reads from there again.

    Either --to or --by is needed. A position is never moved ahead. What belongs to the old position is deleted:
    boundary rows, finished windows, and the page token of an interrupted reading. If the source refuses that token,
    --by 0 deletes it and keeps the position.

    A KEY that is a group stands for all of its members, and NAMESPACE may be a pattern such as 'crm_*'. It asks
    before it changes more than one position, and prints the command that undoes it.

    Example: checkpoint rewind crm_acme contacts --by 2d
    """
    if to is not None and by is not None:
        raise click.UsageError("give --to VALUE or --by AMOUNT, not both")
    if to is None and by is None:
        raise click.UsageError("how far? Give --to VALUE, or --by AMOUNT such as 2d")
    with reading(url) as store:
        how = _How(to, by, field, cursor_format)
        names = [(there, name) for there in chosen(store, namespace, [key]) for name in _names_of(there, key, member)]
        plans = _plans(names, how._replace(is_alone=len(names) == 1), reason or f"rewound {how.amount}")
        changed = [name for plan in plans for name in plan.changes]

        def ask(number: int) -> str | None:
            return f"Rewind {counted(changed)} of {namespace!r} {how.amount}?" if number > 1 else None

        carry_out(plans, namespace, dry_run=dry_run, as_json=as_json, ask=ask, yes=yes)


class AheadError(ValueError):
    """The value to go back to lies after the position."""


class _How(NamedTuple):
    """How far to go back."""

    to: str | None
    by: Amount | None
    """One of the two is None."""
    field: str | None
    form: str | None
    is_alone: bool = True
    """Whether only one cursor goes back."""

    @property
    def amount(self) -> str:
        """The amount, as sentences show it."""
        return f"to {self.to}" if self.by is None else f"by {_step_said(self.by)}"


def _step_said(by: Amount) -> str:
    return words.span(by.total_seconds()) if isinstance(by, timedelta) else str(by)


def _names_of(there: Namespace, key: str, member: str | None) -> list[Name]:
    """Return the named cursor, or all members of a group."""
    if member is None and key in there.groups and Name(key) not in there.names:
        if not there.groups[key].members:
            raise click.ClickException(f"the group {key!r} in {there.state_key!r} has no members")
        return [Name(key, each) for each in there.groups[key].members]
    there.existing(Name(key, member))
    return [Name(key, member)]


def _plans(names: list[tuple[Namespace, Name]], how: _How, reason: str) -> list[Plan]:
    """Return the plans; with several cursors, those already before the value stay as they are."""
    changes: dict[Namespace, dict[Name, str | None]] = {there: {} for there, _ in names}
    before: dict[Namespace, list[Name]] = {there: [] for there in changes}
    for there, name in names:
        value = _tried(there, name, how)
        if not isinstance(value, AheadError):
            changes[there][name] = value
        elif len(names) > 1:
            before[there].append(name)
        else:
            raise click.ClickException(str(value)) from value
    said = {t: [f"{counted(left)} already before {how.to}: not changed."] if left else [] for t, left in before.items()}
    plans = [planned(there, values, reason=reason, said=said[there]) for there, values in changes.items()]
    return [plan._replace(after=_standing(plan, how)) for plan in plans]


def _standing(plan: Plan, how: _How) -> list[str]:
    """Describe the positions after a plan: for one, its distance from now; for several, which are ahead of now."""
    found: list[tuple[float, Name, Measured, str | None]] = []
    for name, value in plan.changes.items():
        form = plan.there.form_of(name, how.form)
        position = position_of(value, form)
        if position is not None and position.lag is not None:
            found.append((position.lag, name, position, form))
    ahead = [one for one in found if is_ahead(one[0])]
    if not found or (len(plan.changes) > 1 and not ahead):
        return []
    lag, name, position, form = min(ahead or found, key=lambda one: one[0])
    apart = f"{words.span(-lag)} ahead of" if lag < 0 else f"{words.span(lag)} behind"
    where = f"That leaves {name.quoted} at {shorten(position.value)}, {apart} the clock"
    if not ahead:
        return [f"{where}."]
    others = f", and {counted([one[1] for one in ahead if one[1] != name])} ahead of it too" if len(ahead) > 1 else ""
    earlier = before_now(position, form, BACK_DAYS)
    hint = "" if earlier is None else f": --to {quoted(earlier)} is two days before now"
    return [f"{where}{others}. Rows until then may not be delivered. --to VALUE takes a position back to a time{hint}."]


def _tried(there: Namespace, name: Name, how: _How) -> str | AheadError | None:
    try:
        return _rewound(there, name, how)
    except AheadError as error:
        return error


def _rewound(there: Namespace, name: Name, how: _How) -> str | None:
    """Return the new value of a name, or end with the error that it cannot go back this way."""
    where = f"{name.quoted} in {there.state_key!r}"
    cursor = words.cursor_of(there.value(name) or "")
    if cursor is None:
        raise click.ClickException(f"{where} holds no cursor, so it has no position to move back")
    if how.by is not None and not how.by:
        cursor.pop(RESUME, None)
        return codec.encode(cursor) if cursor else None
    field = _position_field(where, cursor, how.field)
    how = how._replace(form=_form_of(there, name, field, cursor[field], how))
    scale = Scale(where, known={"the position": cursor[field]}, cursor_format=how.form)
    try:
        back = _moved_back(scale, cursor[field], how) if how.by is not None else _given(scale, cursor[field], how)
    except AheadError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise click.ClickException(_in_words_of_a_prompt(str(error))) from error
    rest = {part: value for part, value in cursor.items() if part not in BESIDE}
    return codec.encode({**rest, field: back})


def _form_of(there: Namespace, name: Name, field: str, position: Any, how: _How) -> str | None:
    """Return the cursor format of a position, or end with the error that the given format does not fit."""
    where, known, given = f"{name.quoted} in {there.state_key!r}", there.form_of(name), how.form
    if given is None or known is not None:
        if given not in {None, known}:
            raise click.ClickException(f"the job reads {where} as {known}, not {given}: leave --cursor-format out")
        return known
    if why := misread(position, given):
        raise click.ClickException(f"{where}: {why}")
    for change in _kept(there, name) if how.is_alone and "%" in given else ():
        value: Any = (change.cursor_after or {}).get(field)
        if isinstance(value, str) and measured(value, given) is None:
            raise click.ClickException(
                f"{where}: {given} does not match {shorten(value)}, its value in version {change.version}"
            )
    return given


def _kept(there: Namespace, name: Name) -> list[Change]:
    """Return the kept changes of a name; empty if the store keeps no history."""
    if not isinstance(there.store, KeepsHistory):
        return []
    try:
        return [change for change in changes_of(there, *name) if Name(change.key, change.member) == name]
    except CheckpointError:  # a server whose store keeps no history
        return []


def _position_field(where: str, cursor: codec.Cursor, field: str | None) -> str:
    """Return the field of a cursor that is its position, or end with an error that asks which one it is."""
    fields = [part for part, value in cursor.items() if part not in BESIDE and is_value(value)]
    if field is not None and field in fields:
        return field
    if field is None and len(fields) == 1:
        return fields[0]
    if not fields:
        raise click.ClickException(f"{where} has no field that could be a position")
    raise click.ClickException(
        f"which field of {where} is its position? It has {', '.join(fields)}: choose one with --field"
    )


def _moved_back(scale: Scale, position: Any, how: _How) -> Any:
    """Return a position moved back by an amount.

    Raises:
        TypeError, ValueError: the amount does not fit the position, or leads out of range.

    """
    by, shown = how.by or 0, shorten(position)
    scale.settle(position, written=True)
    if scale.kind in {"instant", "wall"} and not isinstance(by, timedelta):
        raise ValueError(f"the position {shown} is a time: give --by an age such as 2d")
    if isinstance(by, timedelta) and scale.kind not in {"instant", "wall"}:
        raise ValueError(
            f"the position {shown} is not known to be a time, so it cannot go back by {_step_said(by)}: {_FORMATS}"
        )
    if how.form is None and scale.kind is None and _is_decimal(position):
        scale = Scale(scale.where, cursor_format="number")
    moved = wire(scale.shift(position, by, -1, written=True))
    if moved == position:
        raise ValueError(f"{shown} moved back by {_step_said(by)} is the same value")
    return moved


def _given(scale: Scale, position: Any, how: _How) -> Any:
    """Parse a text into a value of the position's type.

    Raises:
        TypeError, ValueError: it does not compare with the position, or lies after it.

    """
    text = how.to or ""
    if seconds_in(text) is not None and how.form != "text":
        raise ValueError(f"{text!r} is an age: give it with --by, not with --to")
    value: Any = text
    at = instant(text)
    if at is not None and how.form in UNITS and not _is_decimal(text):
        value = wire(scale.spelled(at, position))
    elif isinstance(position, int | float):
        if not _is_decimal(text):
            raise ValueError(f"{shorten(text)} is not a number, and the position {position!r} is one")
        value = int(text) if "." not in text else float(text)
    elif how.form is None and _is_decimal(position) and _is_decimal(text):
        scale = Scale(scale.where, cursor_format="number")
    _check_zones(scale, position, value)
    likelier = likelier_epoch(value, how.form)
    if likelier is not None and likelier_epoch(position, how.form) is None:
        raise ValueError(
            f"{shorten(value)} looks like {likelier}, and the position {shorten(position)} is {how.form}: write it in "
            "that unit, or as a time such as 2024-05-01T10:00Z"
        )
    if scale.key_of(value) > scale.key_of(position):
        raise AheadError(
            f"{shorten(value)} is after the position {shorten(position)}, and rewind only moves back; `checkpoint set` "
            "stores any position"
        )
    return value


def _check_zones(scale: Scale, position: Any, value: Any) -> None:
    """Refuse to compare a time without a zone with one that has a zone.

    Raises:
        ValueError: they do not compare.

    """
    scale.settle(position)
    try:
        scale.key_of(value)
    except TypeError as error:
        if scale.has_clock and instant(str(value)) is not None:
            said = f"the position {shorten(position)} has no time zone, and {shorten(value)} has one: leave it out"
            if scale.kind == "instant":
                utc = wire(scale.spelled(instant(value), position))
                said = f"the position {shorten(position)} has a time zone: write {shorten(utc)}, if UTC is meant"
            raise ValueError(said) from error
        raise


def _is_decimal(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", text) is not None


def _in_words_of_a_prompt(said: str) -> str:
    """Return a sentence of the library with options of the command in place of arguments in a job."""
    before, found, _ = said.partition("Say what it is: ")
    return f"{before}{_FORMATS[0].upper()}{_FORMATS[1:]}" if found else said
