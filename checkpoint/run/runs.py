"""The recorded runs of a namespace: the history of the entry `__run__`.

A run is written twice, at its beginning and end, by separate commits without a comparison. A record without an end
belongs to a run that is still running or was killed. The record also has what is known about the streams of the
namespace (`Known`); each record continues the one before it.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from checkpoint import codec
from checkpoint.entries import RUN_KEY, check_text, head_key
from checkpoint.errors import CheckpointError, StoreUnavailable
from checkpoint.stores.base import host, utc_now

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from checkpoint.entries import Change, Entry
    from checkpoint.stores.base import KeepsHistory

logger: logging.Logger = logging.getLogger("checkpoint")

AIRFLOW = ("AIRFLOW_CTX_DAG_ID", "AIRFLOW_CTX_TASK_ID", "AIRFLOW_CTX_DAG_RUN_ID", "AIRFLOW_CTX_TRY_NUMBER")
"""Environment variables of Airflow that identify a task's try."""


class Run(NamedTuple):
    """One run of a job."""

    run_id: str
    """The id of the run, recorded in every entry that it wrote."""
    host: str
    """The name of its machine."""
    process: int
    """Its process id on that machine."""
    started: str
    """Time of the beginning: ISO 8601 with `Z`, by the clock of its machine."""
    ended: str | None = None
    """Time of the end; None: not recorded, because the run is still running or was killed."""
    outcome: str | None = None
    """`done`, `failed` or `stopped`; None as with `ended`."""
    error: str | None = None
    """The class name of the exception that ended it; None without one."""
    commits: int = 0
    """Commits that sent something."""
    streams: Mapping[str, Mapping[str, int]] = {}
    """Rows seen, delivered, dropped and late, by stream; a group counts all its members."""
    read: Sequence[str] = ()
    """Streams known to have been read to their end, without members of groups."""


class Did(NamedTuple):
    """What a run did, as recorded at its end; see `Run`."""

    commits: int
    streams: Mapping[str, Mapping[str, int]]
    read: Sequence[str]


ROWS = ("seen", "delivered", "dropped", "late")
"""The counts of a stream's rows that a record contains."""

MOST_NAMED = 200
"""The most members of a group in a record."""


class Known(NamedTuple):
    """What the records say about the streams of a namespace; members count under their group's name.

    Overlapping runs may overwrite each other's part: it is only for display, and no stream depends on it.
    """

    formats: Mapping[str, str] = {}
    """The latest `cursor_format` of each, if it is a name or a pattern."""
    reads: Mapping[str, Mapping[str, Any]] = {}
    """When a successful run read each to its end (`at`); for groups with the members that it read (`only`) or did not
    read (`but`).
    """

    @classmethod
    def of(cls, entry: Entry | None) -> Known:
        """Return what the entry `__run__` says."""
        return told_by(None if entry is None else entry.value)[0]

    @classmethod
    def of_record(cls, stored: Mapping[str, Any], run: Run | None) -> Known:
        """Return what a record says, given its run."""
        formats, reads = (_dict(stored.get(field)) for field in cls._fields)
        of_groups = {name: read for name, each in reads.items() if isinstance((read := _dict(each)).get("at"), str)}
        by_moment = {name: {"at": at} for at, names in _dict(stored.get("at")).items() for name in _texts(names)}
        ended = run.ended if run is not None and run.outcome == "done" else None
        just_now = {name: {"at": ended} for name in (() if run is None or ended is None else run.read)}
        return cls(_by_name(formats), {**by_moment, **just_now, **of_groups})

    def told(self, run: Run) -> dict[str, Any]:
        """Return this in the form of a run's record, without the streams that the run itself read to their end."""
        own = {*run.read} if run.outcome == "done" else set[str]()
        formats: dict[str, list[str]] = {}
        moments: dict[str, list[str]] = {}
        groups: dict[str, Mapping[str, Any]] = {}
        for name, form in self.formats.items():
            formats.setdefault(form, []).append(name)
        for name, read in self.reads.items():
            if len(read) > 1:
                groups[name] = read
            elif name not in own:
                moments.setdefault(read["at"], []).append(name)
        told = {"formats": formats, "at": moments, "reads": groups}
        return {field: value for field, value in told.items() if value}

    def of_those(self, stored: Container[str], streams: Container[str]) -> Known:
        """Return the part for stored keys and groups and for these streams; the rest no longer exists."""

        def is_there(name: str) -> bool:
            return name in stored or head_key(name) in stored or name in streams

        formats = {name: form for name, form in self.formats.items() if is_there(name)}
        return Known(formats, {name: read for name, read in self.reads.items() if is_there(name)})

    def read_at(self, key: str, member: str | None = None) -> str | None:
        """Return the end of the run that read a key or member to its end; None: unknown."""
        read = self.reads.get(key)
        if read is None:
            return None
        only, but = read.get("only"), read.get("but")
        if member is None:
            is_read = only is None and but is None
        else:
            is_read = (isinstance(only, list) and member in only) or (isinstance(but, list) and member not in but)
        return read["at"] if is_read else None

    def and_then(self, later: Known) -> Known:
        """Return this updated by a later run, whose streams keep only the formats that it gave them."""
        formats = {**self.formats, **later.formats}
        return Known({name: form for name, form in formats.items() if form}, {**self.reads, **later.reads})


def told_by(value: str | None) -> tuple[Known, Run | None]:
    """Return what a value of `__run__` says about the streams, and its run; unreadable parts are left out."""
    try:
        stored: dict[str, Any] = {} if value is None else codec.decode(value)
    except ValueError:
        stored = {}
    run = next(iter(_runs_in(stored)), None)
    return Known.of_record(stored, run), run


def _texts(value: object) -> list[str]:
    return [each for each in cast("list[object]", value) if isinstance(each, str)] if isinstance(value, list) else []


def _by_name(formats: Mapping[str, object]) -> dict[str, str]:
    """Return the format of each name; version 1 recorded them by name."""
    by_name = {name: form for name, form in formats.items() if isinstance(form, str)}
    return by_name | {name: form for form, names in formats.items() for name in _texts(names)}


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def members_read(read: set[str], every: set[str]) -> dict[str, list[str]] | None:
    """Return the read members of a group in the form of a record; None: none, or too many to list."""
    but = every - read
    if not read or min(len(read), len(but)) > MOST_NAMED:
        return None
    return {"but": sorted(but)} if len(but) <= len(read) else {"only": sorted(read)}


def run_id_of(given: str | None) -> str:
    """Return the id of a run: the given one, else `$CHECKPOINT_RUN_ID`, else that of Airflow, else a random one.

    Raises:
        TypeError, ValueError: it is not a str, is empty, or some store cannot hold it.

    """
    if given is None:
        given = os.environ.get("CHECKPOINT_RUN_ID") or "/".join(
            filter(None, (os.environ.get(name) for name in AIRFLOW))
        )
        given = given or os.urandom(8).hex()
    check_text("run_id", given)
    if not given or "\0" in given:
        raise ValueError(f"run_id must not be empty or hold a NUL: {given!r}")
    return given


class Record:
    """Records one run in a store that keeps history; a failure only logs one warning."""

    def __init__(self, store: KeepsHistory, state_key: str, run_id: str, known: Known) -> None:
        self._store = store
        self._known = known
        self._state_key = state_key
        self._run: Run | None = Run(run_id, host(), os.getpid(), utc_now())

    def begin(self) -> None:
        """Record that the run has begun."""
        if self._run is not None:
            self._write(self._run)

    def end(
        self, error: BaseException | None, did: Did, known: Known, stored: Container[str], *, stopped: bool
    ) -> None:
        """Record, once, how the run ended and what it says about its streams; `stored` has the entries' keys."""
        run, self._run = self._run, None
        if run is None or run.process != os.getpid():  # the child of a fork is not the run
            return
        outcome = "failed" if error is not None else "stopped" if stopped else "done"
        name = None if error is None else type(error).__name__
        ended = run._replace(ended=utc_now(), outcome=outcome, error=name, **did._asdict())
        read = {key: {"at": ended.ended, **members} for key, members in known.reads.items()}
        later = Known(known.formats, read if outcome == "done" else {})
        self._known = self._known.and_then(later).of_those(stored, did.streams)
        if isinstance(error, StoreUnavailable):
            self._warn("the end of the run was not recorded", error)
        else:
            self._write(ended)

    def _write(self, run: Run) -> None:
        try:
            told = _told(run) | self._known.told(run)
            self._store.commit(self._state_key, {RUN_KEY: codec.encode(told)}, run_id=run.run_id)
        except CheckpointError as error:
            self._warn("the run was not recorded", error)
            self._run = None

    def _warn(self, what: str, error: CheckpointError) -> None:
        extra = {"checkpoint_event": "run_not_recorded", "checkpoint_namespace": self._state_key}
        logger.warning("%r: %s: %s", self._state_key, what, error, extra=extra)


def recorded(changes: Iterable[Change]) -> list[Run]:
    """Return the runs in the history of `__run__`, the latest first.

    Unreadable records are left out: a later release may record more.
    """
    runs: dict[tuple[str, str], Run] = {}
    for change in changes:  # newest first, so a run's end comes before its beginning
        for run in _runs_in(change.cursor_after or {}):
            earlier = runs.get((run.run_id, run.started))
            if earlier is None or (earlier.ended is None and run.ended is not None):
                runs[run.run_id, run.started] = run
    return sorted(runs.values(), key=lambda run: run.started, reverse=True)


def _told(run: Run) -> dict[str, Any]:
    """Return a run in its recorded form; see the top of this file."""
    told = {field: value for field, value in run._asdict().items() if field not in {"streams", "read"}}
    streams = {name: _without_zeros([rows.get(what, 0) for what in ROWS]) for name, rows in run.streams.items()}
    read = {*run.read}
    return told | {"streams": streams, "unread": [name for name in streams if name not in read]}


def _without_zeros(rows: list[int]) -> list[int]:
    """Return numbers without the zeros at the end."""
    while rows and not rows[-1]:
        rows.pop()
    return rows


def _runs_in(stored: Mapping[str, Any]) -> list[Run]:
    """Return the run in a record; none if it is unreadable."""
    told = {**Run._field_defaults, **{name: stored[name] for name in Run._fields if name in stored}}
    if not all(isinstance(told.get(name, ...), kind) for name, kind in _KINDS.items()):
        return []
    streams = {name: _rows(rows) for name, rows in told["streams"].items()}
    unread = {*_texts(stored.get("unread"))}
    read = [name for name in streams if name not in unread] if "unread" in stored else told["read"]
    return [Run(**told)._replace(streams=streams, read=tuple(read))]


def _rows(told: object) -> Mapping[str, int]:
    """Return the row counts of a stream by outcome, as in records of version 1."""
    rows = dict(zip(ROWS, cast("list[object]", told), strict=False)) if isinstance(told, list) else _dict(told)
    return _NO_ROWS | {what: number for what, number in rows.items() if isinstance(number, int)}


_NO_ROWS: dict[str, int] = dict.fromkeys(ROWS, 0)


_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("run_id", "host", "started"), str),
    **dict.fromkeys(("process", "commits"), int),
    **dict.fromkeys(("ended", "outcome", "error"), (str, type(None))),
    "streams": dict,
    "read": (list, tuple),
}
