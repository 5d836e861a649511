"""The runs of a namespace, as they are recorded: the entry `__run__`, whose history is their list.

A run is written twice, when it has begun and when it ends, by commits of its own that compare nothing. A record without
an end is of a run that is still going, or was killed.
"""

from __future__ import annotations

import logging
import os
from secrets import token_hex
from typing import TYPE_CHECKING, NamedTuple

from checkpoint import codec
from checkpoint.entries import RUN_KEY
from checkpoint.errors import CheckpointError, StoreUnavailable
from checkpoint.stores.base import check_text, host, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from checkpoint.entries import Change
    from checkpoint.stores.base import KeepsHistory

logger = logging.getLogger("checkpoint")

AIRFLOW = ("AIRFLOW_CTX_DAG_ID", "AIRFLOW_CTX_TASK_ID", "AIRFLOW_CTX_DAG_RUN_ID", "AIRFLOW_CTX_TRY_NUMBER")
"""What Airflow tells a task of itself, in the environment."""


class Run(NamedTuple):
    """One run of a job."""

    run_id: str
    """The run, as it is named with every entry that it wrote."""
    host: str
    """The name of its machine."""
    process: int
    """Its process id there."""
    started: str
    """When: ISO 8601 with `Z`, by the clock of its machine."""
    ended: str | None = None
    """Likewise; None: no end is recorded, for it is still going or was killed."""
    outcome: str | None = None
    """`done`, `failed` or `stopped`; None as with `ended`."""
    error: str | None = None
    """The name of the class of what ended it; None: nothing did."""
    commits: int = 0
    """Commits that sent something."""
    streams: Mapping[str, Mapping[str, int]] = {}
    """By stream, and for all members of a group together: rows seen, delivered, dropped and late."""
    read: Sequence[str] = ()
    """Streams that were read to their end, where that is known; members of groups are not told."""


class Did(NamedTuple):
    """What a run did until its end, as it is recorded; see `Run`."""

    commits: int
    streams: Mapping[str, Mapping[str, int]]
    read: Sequence[str]


def run_id_of(given: str | None) -> str:
    """Return the id of a run: as given, else `$CHECKPOINT_RUN_ID`, else as Airflow names it, else a random one.

    Raises:
        TypeError, ValueError: it is not text, is empty, or holds what not every store can.

    """
    if given is None:
        given = os.environ.get("CHECKPOINT_RUN_ID") or "/".join(
            filter(None, (os.environ.get(name) for name in AIRFLOW))
        )
        given = given or token_hex(8)
    check_text("run_id", given)
    if not given or "\0" in given:
        raise ValueError(f"run_id must not be empty or hold a NUL: {given!r}")
    return given


class Record:
    """Records one run in a store that keeps history; a failure to is one warning, and nothing more."""

    def __init__(self, store: KeepsHistory, state_key: str, run_id: str) -> None:
        self._store = store
        self._state_key = state_key
        self._run: Run | None = Run(run_id, host(), os.getpid(), utc_now())

    def begin(self) -> None:
        """Record that the run has begun."""
        if self._run is not None:
            self._write(self._run)

    def end(self, error: BaseException | None, did: Did, *, stopped: bool) -> None:
        """Record how the run ended, once."""
        run, self._run = self._run, None
        if run is None or run.process != os.getpid():  # the child of a fork is not the run
            return
        outcome = "failed" if error is not None else "stopped" if stopped else "done"
        name = None if error is None else type(error).__name__
        ended = run._replace(ended=utc_now(), outcome=outcome, error=name, **did._asdict())
        if isinstance(error, StoreUnavailable):
            logger.warning("%r: the end of the run was not recorded: %s", self._state_key, error)
        else:
            self._write(ended)

    def _write(self, run: Run) -> None:
        try:
            self._store.commit(self._state_key, {RUN_KEY: codec.encode(run._asdict())}, run_id=run.run_id)
        except CheckpointError as error:
            logger.warning("%r: the run was not recorded: %s", self._state_key, error)
            self._run = None


def recorded(changes: Iterable[Change]) -> list[Run]:
    """Return the runs in the history of `__run__`, the one that began last first.

    What cannot be read as a run is left out: a later release may record more.
    """
    runs: dict[tuple[str, str], Run] = {}
    for change in changes:  # newest first, so the record of an end comes before that of its beginning
        cursor = change.cursor_after
        if cursor is None or not isinstance(cursor.get("run_id"), str) or not isinstance(cursor.get("started"), str):
            continue
        run = Run(**{name: cursor[name] for name in Run._fields if name in cursor})
        run = run._replace(read=tuple(run.read))
        earlier = runs.get((run.run_id, run.started))
        if earlier is None or (earlier.ended is None and run.ended is not None):
            runs[run.run_id, run.started] = run
    return sorted(runs.values(), key=lambda run: run.started, reverse=True)
