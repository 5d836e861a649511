"""How fresh a namespace is: age and lag of its keys, its last runs, and which run holds it.

    age       the time since a key was last written, or since the end of a successful run that read it to its end
    lag       how far its position is behind the clock
    last run  the run that began last, and how it ended

For several keys, age and lag are the largest values.
"""

from __future__ import annotations

import re
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from checkpoint.entries import RUN_KEY, Change
from checkpoint.errors import CheckpointError, CorruptState
from checkpoint.overview import words
from checkpoint.overview.moments import seconds_since
from checkpoint.overview.namespaces import Name
from checkpoint.overview.past import is_damaged
from checkpoint.overview.positions import epoch_like, is_ahead, lag_of, misread, position_of, positions_in
from checkpoint.run import lease
from checkpoint.run.runs import Known, Run, recorded, told_by
from checkpoint.stores.base import KeepsHistory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Entry
    from checkpoint.overview.namespaces import Namespace

Freshness: TypeAlias = Literal["DAMAGED", "fresh", "STALE", "unknown", "-"]
"""The verdicts on a key; `-`: no limit was given. A position ahead of the clock is stale under any limit, and a value
that is no cursor any more is damaged.
"""


class Limits(NamedTuple):
    """The limits for each key."""

    age: float | None
    """The largest age allowed, in seconds."""
    lag: float | None
    """The largest lag allowed, in seconds."""
    form: str | None
    """The cursor format of positions that are not ISO 8601, where no run has recorded one."""
    is_named: bool
    """Whether one key was named: then an unknown lag or age counts."""


class Judged(NamedTuple):
    """The verdict on one key or member."""

    namespace: str
    name: Name
    verdict: Freshness
    age: float | None
    lag: float | None
    why: str
    """What exceeds which limit, or is unknown; empty if the key is fresh."""


def age_of(there: Namespace, name: Name, entry: Entry) -> float | None:
    """Return the age of a key or member in seconds, by the entry and the last run's record; None: unknown.

    A shared entry was written for any of its members, so it does not give the age of one.
    """
    written = None if there.shares(name) else seconds_since(entry.updated_at)
    ages = (written, seconds_since(there.known.read_at(*name)))
    return min((age for age in ages if age is not None), default=None)


def judged(there: Namespace, key: str | None, member: str | None, limits: Limits) -> list[Judged]:
    """Judge all keys and members of a namespace, those of one key, or one member; missing ones are left out."""
    names = _names_asked(there, key, member)
    done = _Done(there) if limits.age is not None else None
    return [_judge(there, name, entry, limits, done) for name in names if (entry := there.entry(name)) is not None]


def _names_asked(there: Namespace, key: str | None, member: str | None) -> Iterable[Name]:
    if key is not None and member is not None:
        return [Name(key, member)]
    return [name for name in there.shown() if key in {None, name.key}]


def _judge(there: Namespace, name: Name, entry: Entry, limits: Limits, done: _Done | None) -> Judged:
    form = there.form_of(name, limits.form)
    age, lag = _age_judged(there, name, entry, limits, done), _lag_judged(entry, form, limits)
    if lag.seconds is None and is_damaged(there, name, entry.value):
        return Judged(there.state_key, name, "DAMAGED", age.seconds, None, NO_CURSOR)
    verdict: Freshness = next(one for one in WORST_FIRST if one in {age.verdict, lag.verdict})
    said = [part.why for part in (age, lag) if part.verdict == verdict]
    if lag.verdict == verdict == "unknown":
        said += _why_no_time(entry.value, form)
    return Judged(there.state_key, name, verdict, age.seconds, lag.seconds, "; ".join(filter(None, said)))


NO_CURSOR = "its value is not a cursor any more, and a run that reads it ends with CorruptState"


class _Part(NamedTuple):
    """The verdict on the age or the lag of a key."""

    verdict: Freshness
    seconds: float | None
    why: str = ""


def _age_judged(there: Namespace, name: Name, entry: Entry, limits: Limits, done: _Done | None) -> _Part:
    age = age_of(there, name, entry)
    if done is not None and _against(age, limits.age) != "fresh":
        known = done.read_since(name) if age is None else [age, *done.read_since(name)]
        age = min(known, default=None)
    is_anothers = age is None and there.shares(name)
    if is_anothers and _against(at_least := seconds_since(entry.updated_at), limits.age) == "STALE":
        age = at_least  # no member is newer than the entry
    verdict = _against(age, limits.age)
    if verdict == "STALE":
        return _Part(verdict, age, f"neither written nor read to its end for {words.span(age or 0)}")
    beside = ": members share an entry" if is_anothers else ""
    return _Part(verdict, age, f"when it was written is not known{beside}" if verdict == "unknown" else "")


def _lag_judged(entry: Entry, form: str | None, limits: Limits) -> _Part:
    lag = lag_of(entry.value, form)
    if lag is not None and is_ahead(lag):
        text = f"its position is {words.span(-lag)} ahead of the clock: rows until then may not be delivered"
        return _Part("STALE", lag, text)
    verdict = _against(lag, limits.lag)
    if verdict == "STALE":
        return _Part(verdict, lag, f"its position is {words.span(lag or 0)} behind")
    if verdict == "unknown":
        return _Part(verdict, lag, "its position is not a time") if limits.is_named else _Part("-", lag)
    return _Part(verdict, lag)


def _why_no_time(value: str, form: str | None) -> list[str]:
    """Return a further explanation for a position that is not a time."""
    cursor = words.cursor_of(value) or {}
    said = [misread(one.value, form) for one in positions_in(cursor, form)]
    likely = [epoch_like(one) for one in cursor.values()] if form is None else []
    return [each for each in said if each] + [
        f"if it counts time, add --cursor-format {name}" for name in likely if name
    ]


WORST_FIRST: tuple[Freshness, ...] = ("DAMAGED", "STALE", "unknown", "fresh", "-")
"""In order of urgency."""


def _against(seconds: float | None, limit: float | None) -> Freshness:
    if limit is None:
        return "-"
    if seconds is None:
        return "unknown"
    return "STALE" if seconds > limit else "fresh"


class _Done:
    """The successful runs of a namespace, loaded when the first key seems stale.

    The last record may lack what an overlapping run has read: such runs do not see each other's records.
    """

    def __init__(self, there: Namespace) -> None:
        self._there = there
        self._reads: list[Known] | None = None

    def read_since(self, name: Name) -> list[float]:
        """Return the seconds since the end of the last successful run that read a key to its end; empty if unknown."""
        if self._reads is None:
            self._reads = _reads_in(_records(self._there))
        told = (seconds_since(known.read_at(*name)) for known in self._reads)
        return [age for age in told if age is not None][:1]


def _reads_in(records: list[Change]) -> list[Known]:
    """Return what each successful run read, newest first."""
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
    """Return the recorded runs of a namespace, sorted by start, latest first."""
    return recorded(_records(there))


def _records(there: Namespace) -> list[Change]:
    if isinstance(there.store, KeepsHistory):
        try:
            return there.store.history(there.state_key, RUN_KEY)
        except CheckpointError:  # a server whose store keeps no history
            return []
    return []


Ended: TypeAlias = Literal["ended", "running", "killed", "released", "open"]
"""The state of a run. Without a recorded end, the lease decides: renewed (`running`), no longer renewed (`killed`), or
released by hand; `open`: no lease.
"""


def how_far(run: Run, found: Holder | Released | None) -> Ended:
    """Return the state of a run, by its record and the lease of its namespace."""
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
"""The words of tables for a run without an end."""

WHY_NO_END: Mapping[Ended, str] = {
    "running": "running: it renewed its lease {} ago",
    "killed": "probably killed: it has not renewed its lease for {}",
    "released": "its lease was released by hand {} ago",
    "open": "still running, or killed: it has no lease that would show which",
}
"""The words of sentences for it, with the time since the last write of the lease."""


def run_in_short(run: Run | None, state: Ended | None) -> str:
    """Return how a run ended, and how long ago, in a few words; a dash if there is no run."""
    if run is None or state is None:
        return "-"
    if run.outcome is None:
        return f"{NO_END[state]}, began {words.age(run.started)} ago"
    return f"{run.outcome} {words.age(run.ended)} ago{f', {run.error}' if run.error else ''}"


class Holder(NamedTuple):
    """The exclusive run that holds a namespace."""

    owner: str
    since: str | None
    """When it took the lease, by its own clock."""
    renewed: str | None
    """When it last renewed its lease; None: unknown."""
    seconds: float
    """Seconds without a renewal after which another run may take the lease."""

    @property
    def who(self) -> str:
        """The run: its host, process and id."""
        return _run_in(self.owner)

    @property
    def is_probably_dead(self) -> bool | None:
        """Whether the lease has expired, allowing for the difference between two clocks; None: unknown."""
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
        """Return the holder as a document."""
        told = {"owner": self.owner, "since": self.since, "renewed": self.renewed}
        return told | {"probably_dead": self.is_probably_dead}


def _run_in(owner: str) -> str:
    """Return an owner without its last word, which is random and only distinguishes leases."""
    return re.sub(", [0-9a-f]{8}$", "", owner)


_CLOCKS = 5.0
"""Seconds by which the clocks of two machines may differ."""


class Released(NamedTuple):
    """A lease that was released by hand and that no run has taken since."""

    owner: str
    """The run that held it."""
    by: str
    """Who released it: host and process."""
    renewed: str | None
    """When; None: the store does not tell."""

    @property
    def who(self) -> str:
        """The run that held it: its host, process and id."""
        return _run_in(self.owner)

    def sentences(self, namespace: str) -> list[str]:
        """Return the sentences that nobody holds a namespace, and who released it."""
        when = f" {words.age(self.renewed)} ago" if self.renewed else ""
        return [
            f"{namespace!r} is not held: its lease was released by hand{when} ({self.by}).",
            f"It was held by {self.who}.",
        ]


def lease_in(state_key: str, entry: Entry | None) -> Holder | Released | None:
    """Return the holder in the entry `__lease__`, or the released lease; None: neither."""
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
    """Return the holder of a namespace, or its released lease; None: neither."""
    return lease_in(there.state_key, there.stored.get(lease.KEY))


def holder_of(there: Namespace) -> Holder | None:
    """Return the exclusive run that holds a namespace; None: there is none, or the stored value is not a lease."""
    found = lease_of(there)
    return found if isinstance(found, Holder) else None


class Ends(NamedTuple):
    """The members of a group that are furthest behind and furthest ahead."""

    slowest: str
    newest: str
    lag: float | None
    """The lag of the slowest one, in seconds; None: its position is not an instant."""
    by_position: bool = True
    """False: their positions do not compare, so these are the ones written first and last."""


def ends_of(members: Mapping[str, Entry], form: str | None = None) -> Ends | None:
    """Return the members of a group that are furthest behind and ahead, by position; None: no members.

    If their positions do not all compare, the time of the last write decides. `form` is the cursor format of the
    positions that are not ISO 8601.
    """
    if not members:
        return None
    for each in dict.fromkeys((form, None, "number")):  # digits as text have an order, whatever their unit
        positions = {member: position_of(entry.value, each) for member, entry in members.items()}
        found = {member: position for member, position in positions.items() if position is not None}
        kinds = {position.kind for position in found.values()}
        if len(found) == len(members) and len(kinds) == 1:
            order = sorted(found, key=lambda member: found[member].scale)
            return Ends(order[0], order[-1], lag_of(members[order[0]].value, form))
    order = sorted(members, key=lambda member: members[member].updated_at or "")
    return Ends(order[0], order[-1], lag_of(members[order[0]].value, form), by_position=False)


def slowest_first(lag: float | None, position: float = inf) -> tuple[bool, bool, float]:
    """Sort key for keys and members: positions ahead of the clock, then by lag, then those without a lag by position.

    Equal ones keep their order, see `in_order`.
    """
    return not is_ahead(lag), lag is None, position if lag is None else -in_order(lag)


def in_order(seconds: float | None) -> int:
    """Return a lag or age as minutes, to sort by it.

    Each is computed at a different moment, so those of one commit differ by the time that reading takes.
    """
    return round((seconds or 0.0) / 60)


def slowest_of(value: str, form: str | None) -> tuple[bool, bool, float]:
    """Return the sort key of a stored value, see `slowest_first`; those without a position come last."""
    lag = lag_of(value, form)
    position = position_of(value, form) if lag is None else None
    return slowest_first(lag, inf if position is None else position.scale)


class Summary(NamedTuple):
    """A namespace at a glance."""

    state_key: str
    keys: int
    """Keys and members of groups."""
    last: Entry
    """The one written last."""
    slowest: Name | None
    """The key or member furthest behind; None: no position is an instant."""
    lag: float | None
    """Its lag in seconds."""
    oldest: Name | None
    """The key or member whose age is the largest; None: the store does not tell."""
    age: float | None
    """Its age in seconds."""
    run: Run | None
    """The last recorded run."""
    state: Ended | None
    """The state of the last run."""
    held: Holder | None
    """The exclusive run that holds it."""
    ahead: Name | None
    """The key or member whose position is furthest ahead of the clock, if any."""
    lead: float | None
    """How far its position is ahead, in seconds."""
    damaged: Name | None
    """The first key or member whose value is no cursor any more, if any."""

    @property
    def late(self) -> float:
        """The larger of lag and age, in seconds."""
        return max(self.lag or 0.0, self.age or 0.0)


BEHIND = 86_400.0
"""A namespace counts as behind from this lag or age on, in seconds: jobs usually run at least once a day."""

DAMAGED = "with a damaged value"

FAILED, DEAD, AHEAD = "failed", "held by a run that is probably dead", "with a position ahead of the clock"

UNLOCKED = "with a run whose lease was released by hand"

ENDLESS, LATE = "without an end", "behind by more than a day"

ALARMING = (DAMAGED, FAILED, DEAD, UNLOCKED, AHEAD)
"""Problems in any job; namespaces that have one come first."""


def wrong_with(row: Summary) -> list[str]:
    """Return the problems of a namespace, worst first."""
    is_dead = row.held is not None and row.held.is_probably_dead
    found = {
        DAMAGED: row.damaged is not None,
        FAILED: row.run is not None and row.run.outcome == "failed",
        DEAD: is_dead,
        UNLOCKED: row.state == "released",
        AHEAD: row.ahead is not None,
        ENDLESS: not is_dead and row.state in {"open", "killed"},
        LATE: row.late > BEHIND,
    }
    return [what for what, is_so in found.items() if is_so]


def wrong_in(rows: Iterable[Summary]) -> dict[str, list[str]]:
    """Return the problems, each with the namespaces that have it, slowest first."""
    found: dict[str, list[str]] = {what: [] for what in (*ALARMING, ENDLESS, LATE)}
    for row in sorted(rows, key=lambda row: (-in_order(row.late), row.state_key)):
        for what in wrong_with(row):
            found[what].append(f"{row.state_key!r}{_how_much(row, what)}")
    return {what: names for what, names in found.items() if names}


def _how_much(row: Summary, what: str) -> str:
    if what == AHEAD and row.ahead is not None:
        return f" {row.ahead.said} by {words.span(row.lead or 0.0)}"
    if what == DAMAGED and row.damaged is not None:
        return f" {row.damaged.said}"
    return f" {words.span(row.late)}" if what == LATE else ""


def worst_first(row: Summary) -> tuple[bool, int, str]:
    """Sort key for namespaces: first those with problems, then the slowest; by age if there is no lag."""
    is_wrong = any(what in ALARMING for what in wrong_with(row))
    behind = row.lag if row.lag is not None else row.age or 0.0
    return not is_wrong, -in_order(behind), row.state_key


def summary_of(there: Namespace, beside: Iterable[Entry] = (), form: str | None = None) -> Summary | None:
    """Return the summary of a namespace; None: it has no keys.

    `beside` are reserved entries to count too; `form` is the cursor format of positions that are not ISO 8601, where no
    run has recorded one.
    """
    shown = there.shown()
    entries = [*shown.values(), *beside]
    if not entries:
        return None
    every = {name: lag_of(entry.value, there.form_of(name, form)) for name, entry in shown.items()}
    slowest, lag = _largest(every)
    oldest, age = _largest({name: age_of(there, name, entry) for name, entry in shown.items()})
    ahead, before = _largest({name: -lag for name, lag in every.items() if lag is not None and is_ahead(lag)})
    run, found = there.run, lease_of(there)
    return Summary(
        there.state_key,
        len(entries),
        max(entries, key=lambda entry: entry.updated_at or ""),
        slowest,
        lag,
        oldest,
        age,
        run,
        None if run is None else how_far(run, found),
        found if isinstance(found, Holder) else None,
        ahead,
        before,
        next((name for name, lag in every.items() if lag is None and is_damaged(there, name, shown[name].value)), None),
    )


def _largest(seconds: Mapping[Name, float | None]) -> tuple[Name | None, float | None]:
    known = {name: one for name, one in seconds.items() if one is not None}
    name = max(known, key=lambda name: known[name], default=None)
    return name, None if name is None else known[name]
