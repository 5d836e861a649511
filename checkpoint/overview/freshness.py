"""How fresh a namespace is: age and lag of its keys, its last runs, and which run holds it."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from checkpoint.entries import RUN_KEY, Change
from checkpoint.errors import CheckpointError, CorruptState
from checkpoint.overview.moments import seconds_since
from checkpoint.overview.namespaces import Name
from checkpoint.overview.positions import lag_of, position_of
from checkpoint.overview.words import span
from checkpoint.run import lease
from checkpoint.run.runs import Run, recorded
from checkpoint.stores.base import KeepsHistory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Entry
    from checkpoint.overview.namespaces import Namespace

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


def judged(there: Namespace, key: str | None, member: str | None, limits: Limits) -> list[Judged]:
    """Judge all keys and members of a namespace, those of one key, or one member; what is not there is left out."""
    names = _names_asked(there, key, member)
    done = _Done(there) if limits.age is not None else None
    return [_judge(there, name, entry, limits, done) for name in names if (entry := there.entry(name)) is not None]


def _names_asked(there: Namespace, key: str | None, member: str | None) -> Iterable[Name]:
    if key is not None and member is not None:
        return [Name(key, member)]
    return [name for name in there.shown() if key in {None, name.key}]


def _judge(there: Namespace, name: Name, entry: Entry, limits: Limits, done: _Done | None) -> Judged:
    age, lag = seconds_since(entry.updated_at), lag_of(entry.value, limits.form)
    if age is not None and done is not None and _against(age, limits.age) == "STALE":
        age = min(age, done.read_since(name))
    of_age, of_lag = _against(age, limits.age), _against(lag, limits.lag)
    if of_lag == "unknown" and not limits.is_named:
        of_lag = "-"
    verdict: Freshness = next(one for one in WORST_FIRST if one in {of_age, of_lag})
    words = [
        _WHY[what, found].format(span(seconds or 0))
        for what, found, seconds in (("age", of_age, age), ("lag", of_lag, lag))
        if found == verdict and found in {"STALE", "unknown"}
    ]
    return Judged(there.state_key, name, verdict, age, lag, "; ".join(words))


WORST_FIRST: tuple[Freshness, ...] = ("STALE", "unknown", "fresh", "-")
"""In the order in which people want to see them."""

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
        ages = [age for run in self._runs if name.key in run.read and (age := seconds_since(run.ended)) is not None]
        return min(ages, default=inf)


def runs_of(there: Namespace) -> list[Run]:
    """Return the runs of a namespace that are recorded, the one that began last first."""
    if isinstance(there.store, KeepsHistory):
        try:
            return recorded(there.store.history(there.state_key, RUN_KEY))
        except CheckpointError:  # a server whose store keeps none
            return []
    return []


def last_run(there: Namespace) -> Run | None:
    """Return the run that was recorded last, which needs no history."""
    entry = there.stored.get(RUN_KEY)
    if entry is None:
        return None
    change = Change(RUN_KEY, None, entry.value, entry.version or 0, entry.updated_at or "", None, "", 0)
    return next(iter(recorded([change])), None)


def holder_of(there: Namespace) -> lease.LeaseState | None:
    """Return the lease by which an exclusive run holds a namespace; None: none does, or what is stored is no lease."""
    try:
        held = lease.lease_state(there.state_key, there.stored.get(lease.KEY))
    except CorruptState:
        return None
    return held if held.owner is not None else None


def held_by(there: Namespace) -> str | None:
    """Return which exclusive run holds a namespace, and since when; None: none does, or what is stored is no lease."""
    held = holder_of(there)
    return held and (f"{held.owner} since {held.since}" if held.since else held.owner)


class Ends(NamedTuple):
    """The members of a group that are furthest behind, and furthest ahead."""

    slowest: str
    newest: str
    lag: float | None
    """Of the slowest one, in seconds; None: its position is no instant."""


def ends_of(members: Mapping[str, Entry]) -> Ends | None:
    """Return which members of a group are furthest behind and ahead, by position; None: there are no members.

    Where their positions do not all compare, by when they were written.
    """
    if not members:
        return None
    positions = {member: position_of(entry.value) for member, entry in members.items()}
    found = {member: position for member, position in positions.items() if position is not None}
    if len(found) == len(members) and len({position.kind for position in found.values()}) == 1:
        order = sorted(found, key=lambda member: found[member].scale)
        return Ends(order[0], order[-1], found[order[0]].lag)
    order = sorted(members, key=lambda member: members[member].updated_at or "")
    slowest = positions[order[0]]
    return Ends(order[0], order[-1], None if slowest is None else slowest.lag)


class Summary(NamedTuple):
    """A namespace at a glance."""

    state_key: str
    keys: int
    """Keys and members of groups."""
    last: Entry
    """The one that was written last."""
    slowest: Name | None
    """The key or member that is furthest behind; None: no position is an instant."""
    lag: float | None
    """By how many seconds it is."""
    oldest: Name | None
    """The key or member that was not written for the longest time; None: the store does not tell."""
    age: float | None
    """Seconds since it was."""
    holder: str | None
    """The exclusive run that holds it, and since when."""
    run: Run | None
    """The run that was recorded last."""


def summary_of(there: Namespace, beside: Iterable[Entry] = ()) -> Summary | None:
    """Sum up a namespace; None: it has no keys.

    `beside` are reserved entries that are counted too.
    """
    shown = there.shown()
    entries = [*shown.values(), *beside]
    if not entries:
        return None
    lags = {name: lag for name, entry in shown.items() if (lag := lag_of(entry.value)) is not None}
    slowest = max(lags, key=lambda name: lags[name], default=None)
    written = {name: entry.updated_at for name, entry in shown.items() if entry.updated_at}
    oldest = min(written, key=lambda name: written[name], default=None)
    return Summary(
        there.state_key,
        len(entries),
        max(entries, key=lambda entry: entry.updated_at or ""),
        slowest,
        None if slowest is None else lags[slowest],
        oldest,
        None if oldest is None else seconds_since(written[oldest]),
        held_by(there),
        last_run(there),
    )
