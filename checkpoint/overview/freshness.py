"""How fresh a namespace is: age and lag of its keys, its last runs, and which run holds it.

    age       the time since a key was last written, or since a run ended well that read it to its end
    lag       how far its position is behind the clock
    last run  the run that began last, and how it ended

Of several keys age and lag are the largest ones.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from checkpoint.entries import RUN_KEY, Change
from checkpoint.errors import CheckpointError, CorruptState
from checkpoint.overview import words
from checkpoint.overview.moments import seconds_since
from checkpoint.overview.namespaces import Name
from checkpoint.overview.positions import epoch_like, is_ahead, lag_of, misread, position_of, positions_in
from checkpoint.run import lease
from checkpoint.run.runs import Known, Run, recorded, told_by
from checkpoint.stores.base import KeepsHistory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Entry
    from checkpoint.overview.namespaces import Namespace

Freshness: TypeAlias = Literal["fresh", "STALE", "unknown", "-"]
"""What a key is found to be; `-`: nothing was asked of it. What is ahead of the clock is stale, whatever is asked."""


class Limits(NamedTuple):
    """What is asked of each key."""

    age: float | None
    """Seconds that its age may be."""
    lag: float | None
    """Seconds that its lag may be."""
    form: str | None
    """The cursor format of positions that are not ISO 8601, where no run has told it."""
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


def age_of(there: Namespace, name: Name, entry: Entry) -> float | None:
    """Return the age of a key or member in seconds, as the last run's record tells it; None: nobody told.

    The entry that a member shares with others was written for whichever of them: it tells no member's age.
    """
    written = None if there.shares(name) else seconds_since(entry.updated_at)
    ages = (written, seconds_since(there.known.read_at(*name)))
    return min((age for age in ages if age is not None), default=None)


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
    form = there.form_of(name, limits.form)
    age, lag = age_of(there, name, entry), lag_of(entry.value, form)
    if done is not None and _against(age, limits.age) != "fresh":
        known = done.read_since(name) if age is None else [age, *done.read_since(name)]
        age = min(known, default=None)
    of_age, of_lag = _against(age, limits.age), _against(lag, limits.lag)
    is_anothers = of_age == "unknown" and there.shares(name)
    if is_anothers and _against(at_least := seconds_since(entry.updated_at), limits.age) == "STALE":
        age, of_age = at_least, "STALE"  # no member was written after the entry
    is_to_come = is_ahead(lag)
    if is_to_come:
        of_lag = "STALE"
    elif of_lag == "unknown" and not limits.is_named:
        of_lag = "-"
    verdict: Freshness = next(one for one in WORST_FIRST if one in {of_age, of_lag})
    said = [
        _WHY["ahead" if is_to_come and what == "lag" else what, found].format(words.span(abs(seconds or 0)))
        for what, found, seconds in (("age", of_age, age), ("lag", of_lag, lag))
        if found == verdict and found in {"STALE", "unknown"}
    ]
    if is_anothers and verdict == "unknown":
        said[0] += ": members share its entry"
    if of_lag == verdict == "unknown":
        said += _why_no_time(entry.value, form)
    return Judged(there.state_key, name, verdict, age, lag, "; ".join(said))


def _why_no_time(value: str, form: str | None) -> list[str]:
    """Return what more there is to say of a position that is no time."""
    cursor = words.cursor_of(value) or {}
    said = [misread(one.value, form) for one in positions_in(cursor, form)]
    likely = [epoch_like(one) for one in cursor.values()] if form is None else []
    return [each for each in said if each] + [f"if it counts time, --cursor-format {name}" for name in likely if name]


WORST_FIRST: tuple[Freshness, ...] = ("STALE", "unknown", "fresh", "-")
"""In the order in which people want to see them."""

_WHY = {
    ("age", "STALE"): "neither written nor read to its end for {}",
    ("lag", "STALE"): "its position is {} behind",
    ("ahead", "STALE"): "its position is {} ahead of the clock: rows until then may not be delivered",
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

    The last record may lack what another run read meanwhile, for runs that overlap do not know of each other.
    """

    def __init__(self, there: Namespace) -> None:
        self._there = there
        self._reads: list[Known] | None = None

    def read_since(self, name: Name) -> list[float]:
        """Return how many seconds ago a run ended well that read a key to its end; none is known to have: nothing."""
        if self._reads is None:
            self._reads = _reads_in(_records(self._there))
        told = (seconds_since(known.read_at(*name)) for known in self._reads)
        return [age for age in told if age is not None][:1]


def _reads_in(records: list[Change]) -> list[Known]:
    """Return what each run that ended well read, the newest first."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for change in records:
        for name, read in told_by(change.after)[0].reads.items():
            found.setdefault(read["at"], {})[name] = read
    for run in recorded(records):
        if run.outcome == "done" and run.ended is not None:
            of_run = found.setdefault(run.ended, {})
            found[run.ended] = {**{key: {"at": run.ended} for key in run.read}, **of_run}
    return [Known({}, found[at]) for at in sorted(found, reverse=True)]


def runs_of(there: Namespace) -> list[Run]:
    """Return the runs of a namespace that are recorded, the one that began last first."""
    return recorded(_records(there))


def _records(there: Namespace) -> list[Change]:
    if isinstance(there.store, KeepsHistory):
        try:
            return there.store.history(there.state_key, RUN_KEY)
        except CheckpointError:  # a server whose store keeps none
            return []
    return []


Ended: TypeAlias = Literal["ended", "running", "killed", "released", "open"]
"""Whether a run has ended. Of one that has not, its lease tells: it is renewed (`running`), it is not (`killed`), or it
was released by hand; `open`: there is no lease that tells."""


def how_far(run: Run, found: Holder | Released | None) -> Ended:
    """Return whether a run has ended, as its record and the lease of its namespace tell."""
    if run.ended is not None:
        return "ended"
    if found is None or f"run {run.run_id}" not in found.owner.split(", "):
        return "open"
    if isinstance(found, Released):
        return "released"
    if found.is_probably_dead is None:
        return "open"
    return "killed" if found.is_probably_dead else "running"


NO_END: Mapping[Ended, str] = {
    "running": "running",
    "killed": "killed",
    "released": "unlocked",
    "open": "no end",
}
"""How tables say how a run without an end stands."""

WHY_NO_END: Mapping[Ended, str] = {
    "running": "running: it renewed its lease {} ago",
    "killed": "probably killed: it has not renewed its lease for {}",
    "released": "its lease was released by hand {} ago",
    "open": "still running, or killed: no lease tells",
}
"""How sentences say it; with the time since the lease was written last."""


def run_in_short(run: Run | None, state: Ended | None) -> str:
    """Return how a run ended, and how long ago, in a few words; a dash for none."""
    if run is None or state is None:
        return "-"
    if run.outcome is None:
        return f"{NO_END[state]}, began {words.age(run.started)} ago"
    return f"{run.outcome} {words.age(run.ended)} ago{f', {run.error}' if run.error else ''}"


class Holder(NamedTuple):
    """The exclusive run that holds a namespace."""

    owner: str
    since: str | None
    """When it got in, by its own clock."""
    renewed: str | None
    """When it renewed its lease last; None: the store does not tell."""
    seconds: float
    """Without a renewal, after which the lease may be taken."""

    @property
    def who(self) -> str:
        """The run: its host, process and id."""
        return _run_in(self.owner)

    @property
    def is_probably_dead(self) -> bool | None:
        """Whether the lease was not renewed for its time, as far as the clocks of two machines tell; None: unknown."""
        since = seconds_since(self.renewed)
        return None if since is None else since > self.seconds + _CLOCKS

    def sentences(self, namespace: str) -> list[str]:
        """Return who holds a namespace, since when, and whether that run is alive."""
        since = f" since {self.since}" if self.since else ""
        return [f"{namespace!r} is held by {self.who}{since}.", self._life]

    @property
    def _life(self) -> str:
        if self.is_probably_dead is None:
            return "Whether that run is alive is not known: the store does not tell when it renewed its lease."
        if self.is_probably_dead:
            for_long = f"it has not renewed its lease for {words.age(self.renewed)}"
            return f"It is probably dead: {for_long}. The next exclusive run takes over by itself."
        return f"It is alive: it renewed its lease {words.span(max(0.0, seconds_since(self.renewed) or 0.0))} ago."

    def fields(self) -> dict[str, Any]:
        """Return the holder as documents have it."""
        told = {"owner": self.owner, "since": self.since, "renewed": self.renewed}
        return told | {"probably_dead": self.is_probably_dead}


def _run_in(owner: str) -> str:
    """Return an owner without the random word at its end, which only tells leases apart."""
    return re.sub(", [0-9a-f]{8}$", "", owner)


_CLOCKS = 5.0
"""Seconds by which the clocks of two machines may differ."""


class Released(NamedTuple):
    """A lease that was released by hand, and that no run has taken since."""

    owner: str
    """The run that it was taken from."""
    by: str
    """Who released it: host and process."""
    renewed: str | None
    """When; None: the store does not tell."""

    @property
    def who(self) -> str:
        """The run that it was taken from: its host, process and id."""
        return _run_in(self.owner)

    def sentences(self, namespace: str) -> list[str]:
        """Return that nobody holds a namespace, and who released it."""
        when = f" {words.age(self.renewed)} ago" if self.renewed else ""
        return [
            f"{namespace!r} is not held: its lease was released by hand{when} ({self.by}).",
            f"It was held by {self.who}.",
        ]


def lease_in(state_key: str, entry: Entry | None) -> Holder | Released | None:
    """Return who holds a namespace, by its entry `__lease__`, or that it was released by hand; None: neither."""
    try:
        held = lease.lease_state(state_key, entry)
    except CorruptState:
        return None
    if entry is None:
        return None
    if held.owner is not None:
        return Holder(held.owner, held.since, entry.updated_at, held.seconds)
    told = held.unlocked
    return None if told is None else Released(told["from"], told["by"], entry.updated_at)


def lease_of(there: Namespace) -> Holder | Released | None:
    """Return who holds a namespace, or that its lease was released by hand; None: neither."""
    return lease_in(there.state_key, there.stored.get(lease.KEY))


def holder_of(there: Namespace) -> Holder | None:
    """Return the exclusive run that holds a namespace; None: none does, or what is stored is no lease."""
    found = lease_of(there)
    return found if isinstance(found, Holder) else None


class Ends(NamedTuple):
    """The members of a group that are furthest behind, and furthest ahead."""

    slowest: str
    newest: str
    lag: float | None
    """Of the slowest one, in seconds; None: its position is no instant."""
    by_position: bool = True
    """False: their positions do not compare, and these are the ones that were written first and last."""


def ends_of(members: Mapping[str, Entry], form: str | None = None) -> Ends | None:
    """Return which members of a group are furthest behind and ahead, by position; None: there are no members.

    Where their positions do not all compare, by when they were written. `form` is the cursor format of the positions
    that are not ISO 8601.
    """
    if not members:
        return None
    for each in dict.fromkeys((form, None, "number")):  # digits as text have an order, whatever they count
        positions = {member: position_of(entry.value, each) for member, entry in members.items()}
        found = {member: position for member, position in positions.items() if position is not None}
        kinds = {position.kind for position in found.values()}
        if len(found) == len(members) and len(kinds) == 1:
            order = sorted(found, key=lambda member: found[member].scale)
            return Ends(order[0], order[-1], lag_of(members[order[0]].value, form))
    order = sorted(members, key=lambda member: members[member].updated_at or "")
    return Ends(order[0], order[-1], lag_of(members[order[0]].value, form), by_position=False)


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
    """The key or member whose age is the largest; None: the store does not tell."""
    age: float | None
    """Its age in seconds."""
    run: Run | None
    """The run that was recorded last."""
    state: Ended | None
    """Whether it has ended."""
    held: Holder | None
    """The exclusive run that holds it."""
    ahead: Name | None
    """The key or member whose position is ahead of the clock; of several the one that is furthest."""
    lead: float | None
    """By how many seconds it is."""

    @property
    def late(self) -> float:
        """Seconds of lag or age, whichever is more."""
        return max(self.lag or 0.0, self.age or 0.0)


BEHIND = 86_400.0
"""Seconds of lag or age from which on a namespace is counted as behind: jobs run once a day at least."""

FAILED, DEAD, AHEAD = "failed", "held by a run that is probably dead", "with a position ahead of the clock"

UNLOCKED = "with a run whose lease was released by hand"

ENDLESS, LATE = "without an end", "behind by more than a day"

ALARMING = (FAILED, DEAD, UNLOCKED, AHEAD)
"""What is wrong whatever a job does; namespaces with it come first."""


def wrong_with(row: Summary) -> list[str]:
    """Return what somebody may have to look at, the worst first."""
    is_dead = row.held is not None and row.held.is_probably_dead
    found = {
        FAILED: row.run is not None and row.run.outcome == "failed",
        DEAD: is_dead,
        UNLOCKED: row.state == "released",
        AHEAD: row.ahead is not None,
        ENDLESS: not is_dead and row.state in {"open", "killed"},
        LATE: row.late > BEHIND,
    }
    return [what for what, is_so in found.items() if is_so]


def wrong_in(rows: Iterable[Summary]) -> dict[str, list[str]]:
    """Return what somebody may have to look at, each with the namespaces that have it, the slowest first."""
    found: dict[str, list[str]] = {what: [] for what in (*ALARMING, ENDLESS, LATE)}
    for row in sorted(rows, key=lambda row: (-round(row.late), row.state_key)):
        for what in wrong_with(row):
            found[what].append(f"{row.state_key!r}{_how_much(row, what)}")
    return {what: names for what, names in found.items() if names}


def _how_much(row: Summary, what: str) -> str:
    if what == AHEAD and row.ahead is not None:
        return f" {row.ahead.said} by {words.span(row.lead or 0.0)}"
    return f" {words.span(row.late)}" if what == LATE else ""


def worst_first(row: Summary) -> tuple[bool, float, str]:
    """Sort namespaces: what is wrong whatever the job does first, then the slowest; without a lag by age."""
    is_wrong = any(what in ALARMING for what in wrong_with(row))
    behind = row.lag if row.lag is not None else row.age or 0.0
    return not is_wrong, -round(behind), row.state_key  # each was read at another moment


def summary_of(there: Namespace, beside: Iterable[Entry] = (), form: str | None = None) -> Summary | None:
    """Sum up a namespace; None: it has no keys.

    `beside` are reserved entries that are counted too; `form` is the cursor format of positions that are not ISO 8601
    and of which no run has told it.
    """
    shown = there.shown()
    entries = [*shown.values(), *beside]
    if not entries:
        return None
    every = {name: lag_of(entry.value, there.form_of(name, form)) for name, entry in shown.items()}
    lags = {name: lag for name, lag in every.items() if lag is not None}
    slowest = max(lags, key=lambda name: lags[name], default=None)
    ages = {name: age for name, entry in shown.items() if (age := age_of(there, name, entry)) is not None}
    oldest = max(ages, key=lambda name: ages[name], default=None)
    ahead = min((name for name, lag in lags.items() if is_ahead(lag)), key=lambda name: lags[name], default=None)
    run, found = there.run, lease_of(there)
    return Summary(
        there.state_key,
        len(entries),
        max(entries, key=lambda entry: entry.updated_at or ""),
        slowest,
        None if slowest is None else lags[slowest],
        oldest,
        None if oldest is None else ages[oldest],
        run,
        None if run is None else how_far(run, found),
        found if isinstance(found, Holder) else None,
        ahead,
        None if ahead is None else -lags[ahead],
    )
