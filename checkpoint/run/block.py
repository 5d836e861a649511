"""The with block of a run: entering acquires and loads, leaving commits and releases."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from checkpoint.entries import LEASE_KEY, RUN_KEY
from checkpoint.errors import StateMissing
from checkpoint.run.runs import Did, Known, Record
from checkpoint.run.taken import Taken
from checkpoint.stores import open_store
from checkpoint.stores.base import Atomic, HasDeadline, Store, history_of, joined

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.run.commits import Commits
    from checkpoint.run.layers import Layers
    from checkpoint.run.stopping import Stops
    from checkpoint.streams.holding import Caller

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("checkpoint")


class Settings(NamedTuple):
    """The arguments of a run."""

    store: Store | str | None
    missing: Literal["new", "raise"]
    exclusive: bool | float
    record_run: bool
    run_id: str

    def __repr__(self) -> str:
        return "Settings()"  # the store's URL may hold a password, and a rendered traceback shows locals


class Block:
    """The one block of a run. An asyncio run loads, leaves and releases on its worker thread."""

    def __init__(self, settings: Settings, layers: Layers, commits: Commits, stops: Stops) -> None:
        self.settings = settings
        self._layers = layers
        self._commits = commits
        self._stops = stops
        self._lock = threading.Lock()
        self._loading = self._writing = False  # during load: only writes must be waited for
        self._taken = Taken()
        self._record: Record | None = None

    def enter(self) -> None:
        """Set the signal handlers, and register the run for forks.

        Raises:
            ValueError: there are signals to watch, and this is not the main thread.

        """
        _entered[id(self)] = self
        self._stops.watch()

    def load(self) -> None:
        """Open the store, take the lease, load the namespace and record that the run has begun."""
        self._loading = True
        try:
            self._load()
        finally:
            self._loading = False

    def _load(self) -> None:
        started = time.monotonic()
        settings, layers = self.settings, self._layers
        store = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
        if store is not settings.store:
            self._taken.add(store.close)
        self._commits.flush.open(store)
        layers.groups.key_by_key = not isinstance(store, Atomic)
        if isinstance(store, HasDeadline):
            layers.claims.doubts.lasting = 2 * store.deadline
        if (transactions := joined(store)) is not None:
            from checkpoint.run.rollback import Rollback  # most runs need none

            layers.rollback = Rollback(transactions, layers.state_key)
        if settings.exclusive is not False:
            self._acquire(store)
        layers.claims.known = store.load(layers.state_key)
        if settings.missing == "raise" and not layers.claims.known.keys() - {RUN_KEY, LEASE_KEY}:
            raise StateMissing(layers.state_key, repr(store))
        keeping = history_of(store)
        if settings.record_run and keeping is not None and layers.rollback is None:
            known = Known.of(layers.claims.known.get(RUN_KEY))
            self._record = Record(keeping, layers.state_key, settings.run_id, known)
            self._settle(self._record.begin)
        if logger.isEnabledFor(logging.INFO):  # counting many takes time
            seconds, count = time.monotonic() - started, len(layers.keys())
            logger.info(
                "%r: loaded keys=%d seconds=%.3f store=%r", layers.state_key, count, seconds, store,
                extra={
                    "checkpoint_event": "loaded", "checkpoint_namespace": layers.state_key, "checkpoint_keys": count,
                    "checkpoint_seconds": seconds,
                },
            )  # fmt: skip

    def _acquire(self, store: Store) -> None:
        from checkpoint.run.lease import Lease, check_exclusive  # most runs need none

        seconds = check_exclusive(self.settings.exclusive)
        lease = Lease(store, self._layers.state_key, self.settings.run_id, seconds)
        self._taken.add(lease.release)
        weakref.finalize(self, lease.abandon).atexit = False  # if leaving was interrupted before it began
        lease.acquire(self._settle)
        self._commits.flush.lease = lease

    def leave(self, error: BaseException | None, by: Caller) -> None:
        """Commit or drop the remaining changes, raise a pending background failure, and record the end of the run."""
        background = self._commits.background
        try:
            self._commits.leave(error, by)
            background.wait()  # a background flush may fail a moment before its thread ends
            if error is None:
                background.raise_failure()
            else:
                background.tell_failure(error)
        except BaseException as failure:
            background.tell_failure(failure)
            self._record_end(failure)
            raise
        self._record_end(error)

    def _record_end(self, error: BaseException | None) -> None:
        if self._record is not None:
            holders = self._layers.holders
            did = Did(self._commits.flush.commits, holders.counts(), holders.read())
            known = Known(holders.formats(), {**{key: {} for key in did.read}, **self._layers.members_read()})
            stored = self._layers.claims.known
            self._record.end(error, did, known, stored, stopped=bool(self._stops.came))

    def end(self) -> None:
        """Release all that entering acquired; after an interruption it may be called twice."""
        try:
            self._layers.phase = "closed"
            self._layers.holders.end()
            self._commits.background.stop()
            self.release()
        finally:
            self._stops.restore()
            _entered.pop(id(self), None)

    def _settle(self, call: Callable[[], T]) -> T:
        """Make a call that writes, unless the run was left; `leave_load` waits for it."""
        with self._lock:
            if self._layers.phase == "closed":
                raise RuntimeError("the run ended before it had begun")
            self._writing = True
        try:
            return call()
        finally:
            self._writing = False

    def leave_load(self) -> bool:
        """Stop a running load from writing; return whether the caller may leave without waiting for it."""
        with self._lock:
            if self._loading:
                self._layers.phase = "closed"
            return self._loading and not self._writing

    def end_load(self) -> None:
        """End a run without waiting for its load; resources are released when the load has ended."""
        try:
            if self._commits.flush.lease is not None:
                self._commits.flush.lease.abandon()  # in its own thread, which does not have to wait for the load
            self._commits.background.leave(self.release)
        finally:
            self._stops.restore()
            _entered.pop(id(self), None)

    def release(self) -> None:
        """Release lease and store; this may wait for the store."""
        self._taken.let_go()

    def forked(self) -> None:
        """Reset in a forked child: new locks, an empty queue."""
        self._stops.restore()
        self._layers.claims.forked()
        self._commits.forked()


# active runs, which a fork resets
_entered: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()


def _fork_runs() -> None:
    for block in list(_entered.values()):
        block.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork_runs)
