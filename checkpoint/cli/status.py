"""`checkpoint status`: tell by the exit status whether the stored keys are fresh."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from checkpoint.cli import screen
from checkpoint.cli.moments import age_given
from checkpoint.cli.options import (
    as_json,
    checked,
    checked_keys,
    complete_key,
    complete_namespace,
    cursor_format,
    member_or_word,
    reading,
    store_option,
)
from checkpoint.cli.sentences import replacing, say_ahead, say_damaged, say_failed, say_held, sentence_of, tell
from checkpoint.errors import CorruptState
from checkpoint.overview import words
from checkpoint.overview.freshness import BEHIND, WORST_FIRST, Judged, Limits, holder_of, in_order, judged
from checkpoint.overview.namespaces import Namespace, matching, names_of_namespaces, nothing
from checkpoint.overview.past import run_fields
from checkpoint.overview.positions import is_ahead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from checkpoint.overview.freshness import Holder
    from checkpoint.overview.namespaces import Name
    from checkpoint.run.runs import Run
    from checkpoint.stores.base import Store


NAMED = 20
"""At most this many members of a group are named for each verdict; more fresh keys than this share one line."""

STALE, UNKNOWN = 1, 3
"""Exit statuses; 0 means fresh, 2 is an error in the command line."""


@click.command()
@click.argument("namespace", required=False, callback=checked, shell_complete=complete_namespace)
@click.argument("key", required=False, callback=checked_keys, shell_complete=complete_key)
@member_or_word
@click.option(
    "--max-age",
    "max_age",
    metavar="AGE",
    callback=age_given,
    help="Stale if no write, and no successful run that read it to its end, is this recent: 90min, 1d.",
)
@click.option(
    "--max-lag",
    "max_lag",
    metavar="AGE",
    callback=age_given,
    help="Stale if the position is further behind the clock: 90min, 1d.",
)
@cursor_format
@as_json
@store_option()
def status(
    namespace: str | None,
    key: str | None,
    *,
    member: str | None,
    max_age: float | None,
    max_lag: float | None,
    cursor_format: str | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Judge whether keys are fresh, and name each stale one.

    It looks at all namespaces, at one, or at those that match a pattern such as 'crm_*'; with KEY at one key or
    group, with MEMBER at one member. A key is stale if it exceeds --max-age or --max-lag, and always if its
    position is more than a day ahead of the clock. --max-lag skips positions that are not times, unless KEY is
    given. A failed run and a dead lease are shown, but make nothing stale.

    Exits with 0 if no key is stale, with 1 if one is, and with 3 if it cannot tell: a key cannot be judged, a
    key or a namespace is damaged, or there is no such key.

    Example: checkpoint status --max-age 1d
    """
    if member is not None and key is None:
        raise click.UsageError("--member needs KEY: the name of its group")
    limits = Limits(max_age, max_lag, cursor_format, key is not None)
    with reading(url) as store:
        spaces = names_of_namespaces(store) if namespace is None else matching(store, namespace)
        looked = [_look(store, each, key, member, limits) for each in spaces]
        damaged = [one for one in looked if isinstance(one, CorruptState)]
        found = [one for one in looked if not isinstance(one, CorruptState)]
        judgements = [each for one in found for each in one.judgements]
        if not (judgements or damaged):
            raise click.ClickException(_absence(found, namespace, key, member) or f"{store!r} holds nothing")
        repairs = replacing(store, damaged)
    beside = [one.beside for one in found]
    code = _exit_status(judgements, beside, damaged, limits)
    if as_json:
        screen.document(_document(judgements, beside, damaged, code))
    elif judgements:
        _show_judged(store, judgements, beside, limits)
        for one in found:
            say_damaged(one.there, [each.name for each in one.judgements if each.verdict == "DAMAGED"])
            say_ahead(one.there, [each.name for each in one.judgements if is_ahead(each.lag)], cursor_format)
        screen.say_wrapped(_sum(judgements, limits))
        if damaged:
            screen.say(f"{words.count(len(damaged), 'namespace')} could not be read.")
    tell(damaged)
    for line in repairs:
        screen.warn(line)
    sys.exit(code)


class _Beside(NamedTuple):
    """What is reported of a namespace in addition to its keys."""

    namespace: str
    holder: Holder | None
    """The exclusive run that holds it."""
    last: Run | None
    """The last recorded run."""
    is_empty: bool
    """Whether it holds no key."""

    @property
    def has_failed(self) -> bool:
        """Whether its last run failed."""
        return self.last is not None and self.last.outcome == "failed"


class _Found(NamedTuple):
    """A namespace that was read without error."""

    there: Namespace
    judgements: list[Judged]
    beside: _Beside


def _look(store: Store, state_key: str, key: str | None, member: str | None, limits: Limits) -> _Found | CorruptState:
    """Judge the keys of a namespace; return the error if it is damaged."""
    try:
        there = Namespace(store, state_key)
        judgements = judged(there, key, member, limits)
        return _Found(there, judgements, _Beside(state_key, holder_of(there), there.run, not there.names))
    except CorruptState as error:
        return error


def _absence(found: list[_Found], namespace: str | None, key: str | None, member: str | None) -> str:
    if namespace is None or not found:
        return ""
    if key is None:
        return nothing(found[0].there.store, namespace)
    return found[0].there.absent(key, member)


def _exit_status(judgements: list[Judged], beside: list[_Beside], damaged: list[CorruptState], limits: Limits) -> int:
    verdicts = {one.verdict for one in judgements}
    if "STALE" in verdicts:
        return STALE
    if damaged or not verdicts.isdisjoint({"DAMAGED", "unknown"}):
        return UNKNOWN
    is_asked = (limits.age, limits.lag) != (None, None)
    has_none = any(one.is_empty and one.has_failed for one in beside)  # a job that never reached its first key
    return UNKNOWN if is_asked and (verdicts == {"-"} or has_none) else 0


# Output


def _show_judged(store: Store, judgements: list[Judged], beside: list[_Beside], limits: Limits) -> None:
    columns = ("", "namespace", "key", "age", "lag")
    screen.show_table(columns, _rows(judgements), wide="key", right=("age", "lag"))
    for one in beside:
        say_failed(one.namespace, one.last)
        if one.has_failed and one.is_empty:
            screen.say(f"{one.namespace!r} holds no keys.")
        say_held(store, one.namespace, one.holder)
    for each in judgements if limits.is_named else ():
        if each.verdict == "unknown":
            screen.say(f"{each.name.said}: {each.why}.")


def _rows(judgements: list[Judged]) -> list[tuple[str, ...]]:
    """Return a line for each key, the worst verdicts first; for a group, lines for its worst stale members."""
    keys: dict[tuple[int, str, str], Judged] = {}
    groups: dict[tuple[int, str, str], list[Judged]] = {}
    for one in judgements:
        place = (WORST_FIRST.index(one.verdict), one.namespace, one.name.key)
        if one.name.member is None:
            keys[place] = one
        else:
            groups.setdefault(place, []).append(one)
    rows: list[tuple[str, ...]] = []
    for verdict, word in enumerate(WORST_FIRST):
        found = [one for place, one in sorted(keys.items()) if place[0] == verdict]
        if word in _WRONG:
            found.sort(key=_worst_first)
        rows += [*map(_row, found)] if len(found) <= NAMED or word in _WRONG else [_row_of_many(found)]
        for place, members in sorted(groups.items()):
            rows += _rows_of_group(members, alone=len(judgements) == 1) if place[0] == verdict else []
    return rows


_WRONG = {"DAMAGED", "STALE", "unknown"}


def _worst_first(one: Judged) -> tuple[bool, int, int, Name]:
    """Sort key: positions ahead of the clock, then by age, lag and name."""
    return not is_ahead(one.lag), -in_order(one.age), -in_order(one.lag), one.name


def _row_of_many(keys: list[Judged]) -> tuple[str, ...]:
    """Return one line for many fresh keys."""
    ages, lags = (_most(getattr(one, what) for one in keys) for what in ("age", "lag"))
    return keys[0].verdict, "", f"{words.count(len(keys), 'key')} outside groups", ages, lags


def _rows_of_group(members: list[Judged], *, alone: bool) -> list[tuple[str, ...]]:
    """Return the lines of a group's members with the same verdict; fresh members share one line."""
    one = members[0]
    is_wrong = one.verdict in _WRONG
    worst = sorted(members, key=_worst_first) if is_wrong or alone else []
    rest = worst[NAMED:] if is_wrong or alone else members
    if not rest:
        return [*map(_row, worst)]
    more = f"{words.count(len(rest), 'member')}" if not worst else f"{len(rest):,} more members"
    ages, lags = (_most(getattr(m, what) for m in rest) for what in ("age", "lag"))
    return [*map(_row, worst[:NAMED]), (one.verdict, one.namespace, f"{one.name.key}: {more}", ages, lags)]


def _row(one: Judged) -> tuple[str, ...]:
    return one.verdict, one.namespace, one.name.said, _since(one.age), _since(one.lag)


def _most(spans: Iterable[float | None]) -> str:
    return _since(max((span for span in spans if span is not None), default=None))


def _since(seconds: float | None) -> str:
    return "-" if seconds is None else words.span(seconds)


def _sum(judgements: list[Judged], limits: Limits) -> str:
    total = words.count(len(judgements), "key")
    is_asked = (limits.age, limits.lag) != (None, None)
    number = {verdict: sum(one.verdict == verdict for one in judgements) for verdict in WORST_FIRST}
    parts = [f"{number['DAMAGED']:,} damaged"] if number["DAMAGED"] else []
    parts += [f"{number['STALE']:,} stale"] if number["STALE"] else []
    parts += [f"{number['unknown']:,} unknown"] if number["unknown"] else []
    parts += [f"{number['-']:,} whose position is not a time"] if number["-"] and is_asked else []
    if is_asked:
        return f"{total}: {', '.join(parts) or 'all fresh'}."
    late = sum(one.lag is not None and one.lag > BEHIND for one in judgements)
    are, them = ("is", "it") if late == 1 else ("are", "them")
    more = f"{late:,} {are} more than a day behind: --max-lag 1d names {them}." if late else _WHAT_IS_STALE
    return f"{total}{': ' if parts else ''}{', '.join(parts)}. {more}"


_WHAT_IS_STALE = "Give --max-age or --max-lag to judge them."


def _document(
    judgements: list[Judged], beside: list[_Beside], damaged: list[CorruptState], code: int
) -> dict[str, Any]:
    word = {0: "fresh", STALE: "stale", UNKNOWN: "unknown"}[code]
    return {
        "status": word,
        "keys": [
            {
                "namespace": one.namespace,
                **one.name.fields(),
                "status": None if one.verdict == "-" else one.verdict.lower(),
                "age": one.age,
                "lag": one.lag,
                "why": one.why or None,
            }
            for one in judgements
        ],
        "namespaces": [
            {
                "namespace": one.namespace,
                "held_by": None if one.holder is None else one.holder.fields(),
                "last_run": None if one.last is None else run_fields(one.last),
            }
            for one in beside
        ],
        "damaged": [{"namespace": error.state_key, "why": sentence_of(error)} for error in damaged],
    }
