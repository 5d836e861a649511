"""`checkpoint status`: is what is stored fresh? The answer is the exit status."""

from __future__ import annotations

import sys
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import click

from checkpoint.cli import screen
from checkpoint.cli.moments import age_given
from checkpoint.cli.namespaces import Name, Namespace, matching, names_of_namespaces, nothing
from checkpoint.cli.options import (
    as_json,
    checked,
    checked_keys,
    complete_key,
    complete_namespace,
    member,
    reading,
    store_option,
)
from checkpoint.cli.past import fields_of
from checkpoint.cli.positions import cursor_format, lag_of
from checkpoint.cli.writing import held_by
from checkpoint.entries import RUN_KEY, Change
from checkpoint.errors import CheckpointError
from checkpoint.run.runs import Run, recorded
from checkpoint.stores.base import KeepsHistory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from checkpoint.entries import Entry

STALE, UNKNOWN = 1, 3
"""Exit statuses; 0 is fresh, and 2 stays the command line's."""

Freshness: TypeAlias = Literal["fresh", "STALE", "unknown", "-"]
"""What a key is found to be; `-`: nothing was asked of it."""


class Limits(NamedTuple):
    """What is asked of each key."""

    age: float | None
    """Seconds since it was last written, or read to its end without anything new."""
    lag: float | None
    """Seconds between its position and now."""
    form: str | None
    """The cursor format of positions that are not ISO 8601."""
    is_named: bool
    """Whether one key was named: then what cannot be told counts."""


class Judged(NamedTuple):
    """One key or member, and what was found."""

    namespace: str
    name: Name
    verdict: Freshness
    age: float | None
    lag: float | None
    why: str
    """What is over which limit, or cannot be told; empty where it is fresh."""


@click.command()
@click.argument("namespace", required=False, callback=checked, shell_complete=complete_namespace)
@click.argument("key", required=False, callback=checked_keys, shell_complete=complete_key)
@member
@click.option(
    "--max-age",
    "max_age",
    metavar="AGE",
    callback=age_given,
    help="Stale if last written, or read to its end by a run that ended well, longer ago than this: 90min, 1d.",
)
@click.option(
    "--max-lag",
    "max_lag",
    metavar="AGE",
    callback=age_given,
    help="Stale if the position is further behind the clock than this.",
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
    """Tell whether keys are fresh, and name each stale one.

    Of all namespaces, of one or of those like a pattern, 'crm_*'; of one KEY, or one member of a group. Exits with 0 if
    all are fresh, with 1 if one is stale, else with 3 if it cannot be told, or there is no such key. A position that is
    no time is left out of --max-lag, unless its KEY is named.
    """
    if member is not None and key is None:
        raise click.UsageError("--member is of one group: name it as KEY")
    limits = Limits(max_age, max_lag, cursor_format, key is not None)
    with reading(url) as store:
        spaces = names_of_namespaces(store) if namespace is None else matching(store, namespace)
        found = [Namespace(store, each) for each in spaces]
        judged = [one for there in found for one in _judged(there, key, member, limits)]
        if not judged:
            raise click.ClickException(_absence(found, namespace, key, member) or f"{store!r} holds nothing")
    code = _exit_status(judged, limits)
    beside = [_Beside(there.state_key, held_by(there), _last_run(there)) for there in found]
    if as_json:
        screen.document(_document(judged, beside, code))
    else:
        _show_judged(judged, beside, limits)
    sys.exit(code)


class _Beside(NamedTuple):
    """What is told of a namespace beside its keys."""

    namespace: str
    holder: str | None
    """The exclusive run that holds it."""
    last: Run | None
    """The run that was recorded last."""


def _absence(found: list[Namespace], namespace: str | None, key: str | None, member: str | None) -> str:
    if namespace is None or not found:
        return ""
    if key is None:
        return nothing(found[0].store, namespace)
    return found[0].absent(key, member)


def _exit_status(judged: list[Judged], limits: Limits) -> int:
    verdicts = {one.verdict for one in judged}
    if "STALE" in verdicts:
        return STALE
    if "unknown" in verdicts or (verdicts == {"-"} and (limits.age, limits.lag) != (None, None)):
        return UNKNOWN
    return 0


# Judging


def _judged(there: Namespace, key: str | None, member: str | None, limits: Limits) -> list[Judged]:
    names = _names_asked(there, key, member)
    done = _Done(there) if limits.age is not None else None
    return [_judge(there, name, entry, limits, done) for name in names if (entry := there.entry(name)) is not None]


def _names_asked(there: Namespace, key: str | None, member: str | None) -> Iterable[Name]:
    if key is not None and member is not None:
        return [Name(key, member)]
    return [name for name in there.shown() if key in {None, name.key}]


def _judge(there: Namespace, name: Name, entry: Entry, limits: Limits, done: _Done | None) -> Judged:
    age, lag = _seconds_since(entry.updated_at), lag_of(entry.value, limits.form)
    if age is not None and done is not None and _against(age, limits.age) == "STALE":
        age = min(age, done.read_since(name))
    of_age, of_lag = _against(age, limits.age), _against(lag, limits.lag)
    if of_lag == "unknown" and not limits.is_named:
        of_lag = "-"
    verdict: Freshness = next(one for one in _WORST_FIRST if one in {of_age, of_lag})
    words = [
        _WHY[what, found].format(screen.span(seconds or 0))
        for what, found, seconds in (("age", of_age, age), ("lag", of_lag, lag))
        if found == verdict and found in {"STALE", "unknown"}
    ]
    return Judged(there.state_key, name, verdict, age, lag, "; ".join(words))


_WORST_FIRST: tuple[Freshness, ...] = ("STALE", "unknown", "fresh", "-")

_WHY = {
    ("age", "STALE"): "last written {} ago",
    ("lag", "STALE"): "its position is {} behind",
    ("age", "unknown"): "when it was written is not told",
    ("lag", "unknown"): "its position is no time",
}


def _against(seconds: float | None, limit: float | None) -> Freshness:
    if limit is None:
        return "-"
    if seconds is None:
        return "unknown"
    return "STALE" if seconds > limit else "fresh"


def _seconds_since(at: str | None) -> float | None:
    then = screen.instant(at)
    return None if then is None else (screen.now() - then).total_seconds()


class _Done:
    """The runs of a namespace that ended well, asked for when the first key seems stale.

    Such a run names the streams that it read to their end, also where nothing was new and so nothing was written. Of
    members of groups, and of keys that a job sets itself, no run tells whether they were read: their writes count.
    """

    def __init__(self, there: Namespace) -> None:
        self._there = there
        self._runs: list[Run] | None = None

    def read_since(self, name: Name) -> float:
        """Return how many seconds ago a run ended well that read a key to its end; endless: none is known to have."""
        if name.member is not None:
            return inf
        if self._runs is None:
            self._runs = [run for run in runs_of(self._there) if run.outcome == "done"]
        ages = [age for run in self._runs if name.key in run.read and (age := _seconds_since(run.ended)) is not None]
        return min(ages, default=inf)


def runs_of(there: Namespace) -> list[Run]:
    """Return the runs of a namespace that are recorded, the one that began last first."""
    if isinstance(there.store, KeepsHistory):
        try:
            return recorded(there.store.history(there.state_key, RUN_KEY))
        except CheckpointError:  # a server whose store keeps none
            return []
    return []


def _last_run(there: Namespace) -> Run | None:
    """Return the run that was recorded last, which needs no history."""
    entry = there.stored.get(RUN_KEY)
    if entry is None:
        return None
    change = Change(RUN_KEY, None, entry.value, entry.version or 0, entry.updated_at or "", None, "", 0)
    return next(iter(recorded([change])), None)


# Showing


def _show_judged(judged: list[Judged], beside: list[_Beside], limits: Limits) -> None:
    rows: list[tuple[str, ...]] = [
        (one.verdict, one.namespace, one.name.said, _since(one.age), _since(one.lag))
        for one in judged
        if one.name.member is None or one.verdict in {"STALE", "unknown"}
    ]
    rows += _rest_of_groups(judged)
    order = {verdict: place for place, verdict in enumerate(map(str, _WORST_FIRST))}
    rows.sort(key=lambda row: (order[row[0]], row[1:3]))
    columns = ("", "namespace", "key", "age", "lag")
    screen.show_table(columns, rows, wide="key", right=("age", "lag"))
    for namespace, holder, run in beside:
        if run is not None and run.outcome == "failed":
            screen.say(f"The last run of {namespace!r} failed {screen.age(run.ended)} ago ({run.error}).")
        if holder is not None:
            screen.say(f"{namespace!r} is held by {holder}.")
    screen.say(_sum(judged, limits))


def _rest_of_groups(judged: list[Judged]) -> list[tuple[str, ...]]:
    """Return one line for the members of each group that nothing is wrong with."""
    groups: dict[tuple[str, str, str], list[Judged]] = {}
    for one in judged:
        if one.name.member is not None and one.verdict in {"fresh", "-"}:
            groups.setdefault((one.namespace, one.name.key, one.verdict), []).append(one)
    return [
        (verdict, namespace, f"{key}: {screen.count(len(members), 'member')}", _most(m.age for m in members),
         _most(m.lag for m in members))
        for (namespace, key, verdict), members in groups.items()
    ]  # fmt: skip


def _most(spans: Iterable[float | None]) -> str:
    return _since(max((span for span in spans if span is not None), default=None))


def _since(seconds: float | None) -> str:
    return "-" if seconds is None else screen.span(seconds)


def _sum(judged: list[Judged], limits: Limits) -> str:
    total = screen.count(len(judged), "key")
    if (limits.age, limits.lag) == (None, None):
        return f"{total}. --max-age and --max-lag say what is stale."
    number = {verdict: sum(one.verdict == verdict for one in judged) for verdict in ("STALE", "unknown", "-")}
    parts = [f"{number['STALE']:,} stale"] if number["STALE"] else []
    parts += [f"{number['unknown']:,} unknown"] if number["unknown"] else []
    parts += [f"{number['-']:,} without a time as position"] if number["-"] else []
    return f"{total}: {', '.join(parts) or 'all fresh'}."


def _document(judged: list[Judged], beside: list[_Beside], code: int) -> dict[str, Any]:
    word = {0: "fresh", STALE: "stale", UNKNOWN: "unknown"}[code]
    return {
        "status": word,
        "keys": [
            {
                "namespace": one.namespace,
                **one.name.fields(),
                "status": {"STALE": "stale", "-": None}.get(one.verdict, one.verdict),
                "age": one.age,
                "lag": one.lag,
                "why": one.why or None,
            }
            for one in judged
        ],
        "namespaces": [
            {"namespace": name, "held_by": holder, "last_run": None if run is None else fields_of(run)}
            for name, holder, run in beside
        ],
    }
