"""One run at a time: a reserved entry of the namespace, renewed by the run that holds it.

The entry has the holder (`owner`), the start, the `epoch`, and a `beat` that every renewal increments. It is written
through `Store.commit` only, always on the base of the last known entry. On a store with compare-and-swap every commit
of the run includes the entry in its base, so that a run that lost the lease cannot commit: the entry is the fencing
token (Kleppmann, "How to do distributed locking", 2016). On a store that only detects foreign writes it is advisory.
Clocks of different machines are never compared: a waiting run measures the time without a renewal.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from functools import partial
from queue import Empty, SimpleQueue
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint import codec
from checkpoint.entries import LEASE_KEY
from checkpoint.errors import CheckpointError, Conflict, CorruptState, LeaseLost, Locked
from checkpoint.stores.base import ReadsKeys, host, utc_now
from checkpoint.stores.retrying import monotonic
from checkpoint.stores.threads import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from checkpoint.entries import Entry
    from checkpoint.stores.base import Store

logger: logging.Logger = logging.getLogger("checkpoint")

KEY = LEASE_KEY
"""The reserved entry."""

TIME = 15.0
"""Seconds without a renewal after which a lease may be taken."""

BEAT = 5.0
"""Seconds between two renewals."""

LOOK = 1.0
"""Seconds between two looks at a lease that another run holds."""


class LeaseState(NamedTuple):
    """The contents of the entry."""

    owner: str | None
    """The run that holds the namespace; None: it was released."""
    since: str | None
    """When it got in: ISO 8601 with `Z`, by its own clock."""
    epoch: int
    """Counts the runs that held it; it only grows."""
    beat: int
    """Counts the renewals."""
    seconds: float = TIME
    """Seconds without a renewal after which it may be taken."""
    unlocked: Mapping[str, str] | None = None
    """Of a lease that was released by hand: the owner that it was taken `from`, and `by` whom. None: it was not."""

    def value(self) -> str:
        """Return the value to store."""
        return codec.encode({name: told for name, told in self._asdict().items() if name != "unlocked" or told})


def lease_state(state_key: str, entry: Entry | None) -> LeaseState:
    """Return the lease in an entry; without an entry, a free one.

    Raises:
        CorruptState: it is not a lease.

    """
    if entry is None:
        return LeaseState(None, None, 0, 0)
    try:
        told: dict[str, Any] = codec.decode(entry.value)
        owner, since, epoch, beat = told["owner"], told.get("since"), told["epoch"], told["beat"]
        seconds = told.get("seconds", TIME)
        texts = isinstance(owner, str | None) and isinstance(since, str | None)
        if not (texts and isinstance(epoch, int) and isinstance(beat, int)):
            raise ValueError("its owner, since, epoch or beat has the wrong type")  # noqa: TRY301 - bad data
        if not (isinstance(seconds, int | float) and 0 < seconds <= sys.float_info.max):
            raise ValueError("its seconds are not a number above 0")  # noqa: TRY301 - bad data
    except (ValueError, KeyError) as reason:
        raise CorruptState(state_key, KEY, entry.value) from reason
    return LeaseState(owner, since, epoch, beat, seconds, _unlocked(told.get("unlocked")))


def _unlocked(told: Any) -> dict[str, str] | None:
    """Return who released a lease by hand; None if that is not recorded, or unreadable."""
    match told:
        case {"from": str(owner), "by": str(by)}:
            return {"from": owner, "by": by}
        case _:
            return None


def unlock(store: Store, state_key: str) -> LeaseState:
    """Release the lease of a namespace regardless of its holder; record and return that holder.

    A run that still holds it loses its lease, and on a store with compare-and-swap can no longer commit.

    Raises:
        Conflict: it was renewed or taken at the same moment.
        CorruptState: the entry is not a lease; a released one replaces it.
        StoreError: the store refused or failed.

    """
    entry = store.load(state_key).get(KEY)
    try:
        held = lease_state(state_key, entry)
    except CorruptState:
        store.commit(state_key, {KEY: LeaseState(None, None, 1, 0).value()}, {KEY: entry})
        raise
    if held.owner is not None:
        told = {"from": held.owner, "by": f"{host()}, process {os.getpid()}"}
        store.commit(state_key, {KEY: LeaseState(None, None, held.epoch + 1, 0, unlocked=told).value()}, {KEY: entry})
    return held


def _call(call: Callable[[], bool]) -> bool:
    return call()


class Lease:
    """The lease of one run on one namespace, renewed by its own thread from `acquire` to `release`.

    The thread also releases the lease: signal handlers raise only in the main thread, so they cannot prevent that.
    """

    def __init__(self, store: Store, state_key: str, run_id: str, seconds: float | None = None) -> None:
        self._store = store
        self._state_key = state_key
        self._run_id = run_id
        self._seconds = TIME if seconds is None else seconds
        self._beat = BEAT if seconds is None else seconds / 3
        # Two runs with the same id, in one process or in containers, may write their entries in the same millisecond.
        self._owner = ", ".join([platform.node(), f"process {os.getpid()}", f"run {run_id}", token_hex(4)])
        self._mine: LeaseState | None = None
        self._entry: Entry | None = None
        self._lost = False
        self._told: SimpleQueue[None] = SimpleQueue()  # non-empty: release the lease
        self._worker = Worker(f"checkpoint lease {state_key}")
        self._failure: BaseException | None = None  # of the thread

    def acquire(self, settle: Callable[[Callable[[], bool]], bool] = _call) -> None:
        """Take the lease: at once if it is free, else after its time has passed without a renewal.

        `settle` makes the call that writes.

        Raises:
            Locked: the run that holds it is alive.
            CorruptState: the entry is not a lease.
            StoreError: the store refused or failed.
            RuntimeError: the thread that renews it cannot be started.

        """
        watched: LeaseState | None = None
        since = 0.0
        while True:
            now = monotonic()  # taken before the read: time counts from the end of one read to the start of another
            entry = self._look()
            found = lease_state(self._state_key, entry)
            if watched is None:
                watched, since = found, monotonic()
                if found.owner is not None:
                    extra = self._fields("waiting_for_lease") | {"checkpoint_owner": found.owner}
                    logger.info("waiting for the lease of %r, held by %s", self._state_key, found.owner, extra=extra)
            if found.owner is not None and found != watched:
                raise Locked(self._state_key, found.owner, found.since or "an unknown time")
            is_free = found.owner is None or now - since >= found.seconds
            if is_free and settle(partial(self._take, found, entry)):
                break
            time.sleep(min(LOOK, found.seconds / 3))
        self._worker.submit(self._keep)

    def base(self) -> dict[str, Entry]:
        """Return the base that commits of this run need for the lease; empty on a store without versions.

        Raises:
            LeaseLost: another run has the lease.

        """
        if self._lost:
            raise LeaseLost(self._state_key)
        entry = self._entry
        return {KEY: entry} if entry is not None and entry.version is not None else {}

    def keeps(self, found: Entry | None) -> bool:
        """Record the entry that a commit found instead of the expected one; return whether it is this run's."""
        ours = self._is_ours(found)
        if ours:
            self._entry = found
        self._lost = not ours
        return ours

    def release(self) -> None:
        """Release the lease; the entry stays, with its epoch. A lost lease is not touched."""
        self._told.put(None)
        self._worker.stop()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        self._let_go()  # if there was no thread to do it

    def abandon(self) -> None:
        """Tell the thread to release the lease, without waiting for it."""
        self._told.put(None)

    def forked(self) -> None:
        """Drop the lease in the child of a fork: the parent holds it."""
        self._lost, self._told = True, SimpleQueue()

    def _look(self) -> Entry | None:
        """Return the lease's entry, read by itself if the store can."""
        if isinstance(self._store, ReadsKeys):
            return self._store.read(self._state_key, [KEY]).get(KEY)
        return self._store.load(self._state_key).get(KEY)

    def _take(self, found: LeaseState, entry: Entry | None) -> bool:
        """Try to take a free lease; False if another run was first."""
        self._mine = LeaseState(self._owner, utc_now(), found.epoch + 1, 0, self._seconds)
        self._entry = entry
        try:
            self._write(self._mine)
            if self._entry is not None and self._entry.version is None:  # two runs may have written at the same time
                self._entry = self._look()
            if self._is_ours(self._entry):
                return True
        except Conflict as conflict:
            if self._is_ours(conflict.found):  # an attempt without a response had landed
                self._entry = conflict.found
                return True
        self._mine = None
        return False

    def _keep(self) -> None:
        """Renew the lease in its thread, and release it at the end."""
        try:
            self._renew()
            self._let_go()
        except BaseException as error:  # noqa: BLE001 - raised where the run ends
            self._failure, self._mine = error, None

    def _renew(self) -> None:
        """Renew the lease until it is lost or to be released; retry after a temporary failure of the store."""
        while not self._is_told():
            if self._lost or self._mine is None:
                return
            self._mine = self._mine._replace(beat=self._mine.beat + 1)
            try:
                self._write(self._mine)
            except Conflict as conflict:
                if not self.keeps(conflict.found):
                    extra = self._fields("lease_lost")
                    logger.error("%r: another run took the lease: no more commits", self._state_key, extra=extra)  # noqa: TRY400 - the traceback tells nothing
            except CheckpointError as error:
                extra = self._fields("lease_not_renewed")
                logger.warning(
                    "%r: the lease could not be renewed, and the run tries again: %s",
                    self._state_key,
                    error,
                    extra=extra,
                )

    def _fields(self, event: str) -> dict[str, str]:
        """Return the extra fields of a log record."""
        return {"checkpoint_event": event, "checkpoint_namespace": self._state_key}

    def _is_told(self) -> bool:
        """Wait until the next renewal is due; return whether to release the lease instead."""
        try:
            self._told.get(timeout=self._beat)
        except Empty:
            return False
        return True

    def _let_go(self) -> None:
        """Write a free lease, in one attempt."""
        mine = self._mine
        if mine is None or self._lost:
            return
        released = mine._replace(owner=None, since=None)
        try:
            try:
                self._write(released)
            except Conflict as conflict:
                if self.keeps(conflict.found):  # a renewal whose response was lost
                    self._write(released)
        except CheckpointError as error:
            logger.warning(
                "%r: the lease could not be released, and expires in %.0f s: %s", self._state_key, self._seconds, error,
                extra=self._fields("lease_not_released"),
            )  # fmt: skip
        self._mine = None

    def _write(self, state: LeaseState) -> None:
        receipt = self._store.commit(self._state_key, {KEY: state.value()}, {KEY: self._entry}, run_id=self._run_id)
        self._entry = receipt.entries[KEY]

    def _is_ours(self, found: Entry | None) -> bool:
        try:
            mine, theirs = self._mine, lease_state(self._state_key, found)
        except CorruptState:
            return False
        return mine is not None and (theirs.owner, theirs.epoch) == (mine.owner, mine.epoch)


def check_exclusive(exclusive: object) -> float | None:
    """Return the seconds of a lease, None for the default.

    Raises:
        TypeError, ValueError: it is neither a bool nor seconds above 0.

    """
    if isinstance(exclusive, bool):
        return None
    if not isinstance(exclusive, int | float):
        raise TypeError(f"exclusive must be a bool, or the seconds of the lease, not {type(exclusive).__name__}")
    if not 0 < exclusive < float("inf"):
        raise ValueError(f"exclusive must be True, False or seconds above 0, not {exclusive!r}")
    return float(exclusive)
