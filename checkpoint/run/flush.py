"""The way from claims to the store: one batch at a time, its partial results, and writes whose outcome is unknown."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from checkpoint.errors import (
    CheckpointError,
    CommitUnknown,
    Conflict,
    LeaseLost,
    PartialCommit,
    StoreError,
    Unauthorized,
)
from checkpoint.run.claims import value_of
from checkpoint.stores.base import KeepsHistory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from checkpoint.entries import Entry, Receipt
    from checkpoint.run.claims import Changes
    from checkpoint.run.layers import Layers
    from checkpoint.run.lease import Lease
    from checkpoint.stores.base import Store

logger = logging.getLogger("checkpoint")

LATE_WRITES = 3
"""How many late writes of its own, beside one a key, a flush accepts before it calls them a conflict."""


class Commit(NamedTuple):
    """What a commit sent; falsy when it sent nothing."""

    keys: tuple[str, ...] = ()
    """The keys that were written or deleted; of a group, its entries."""
    requests: int = 0
    """Requests to the service, retries included; 0 for a local store."""
    retries: int = 0
    """Requests sent again after a failure."""
    seconds: float = 0.0
    """Time from the first request to the last answer."""

    def __bool__(self) -> bool:
        return bool(self.keys)


class Pace:
    """Holds commits back that come sooner than `min_interval` seconds after the last."""

    def __init__(self, min_interval: float) -> None:
        self.held: frozenset[str] = frozenset()
        """Keys of commits that were held back; they go out with the next one."""
        self.flushed_at = float("-inf")
        self.claimed_at = float("-inf")
        self._min_interval = min_interval

    def due(self) -> bool:
        """Tell whether the last flush is long enough ago; a clock that went back, as tests' do, holds nothing back."""
        self.claimed_at = time.monotonic()
        return not 0 <= self.claimed_at - self.flushed_at < self._min_interval


class Flush:
    """Sends claims to the store, one batch at a time."""

    def __init__(self, layers: Layers, pace: Pace, *, overwrite: bool, run_id: str | None) -> None:
        self.lease: Lease | None = None
        self.lock = threading.Lock()
        """Held during a flush; taken before the claims' lock."""
        self.commits = 0
        """Commits of the run that sent something."""
        self._layers = layers
        self._claims = layers.claims
        self._pace = pace
        self._store: Store | None = None
        self._overwrite = overwrite
        self._run_id = run_id

    @property
    def store(self) -> Store:
        """The store of the run, once it is open."""
        if self._store is None:
            raise RuntimeError("a Checkpointer is used inside its with block")
        return self._store

    def open(self, store: Store) -> None:
        """Use a store."""
        self._store = store

    def forked(self) -> None:
        """Start over in a forked child: no lock held by a thread that is gone, and no lease."""
        self.lock = threading.Lock()
        if self.lease is not None:
            self.lease.forked()

    def __call__(self, only: frozenset[str] | None = None) -> Commit:
        """Send these claims; None: all but those whose last flush failed."""
        with self.lock:
            with self._claims.lock:
                batch = self._claims.batch(only)
                steps = self._layers.groups.steps(batch)
                due_at = self._pace.claimed_at
            if not batch:
                return Commit()
            started = time.monotonic()
            requests, retries = self._send_all(batch, steps)
            self._pace.flushed_at = due_at
            self.commits += 1
            commit = Commit(tuple(batch), requests, retries, time.monotonic() - started)
            logger.debug(
                "%r: committed keys=%d requests=%d retries=%d seconds=%.3f",
                self._layers.state_key, len(batch), requests, retries, commit.seconds,
            )  # fmt: skip
            return commit

    def _send_all(self, batch: Changes, steps: list[Changes]) -> tuple[int, int]:
        """Send a batch step by step; return requests and retries."""
        requests = retries = 0
        landed: dict[str, Entry | None] = {}
        try:
            for step in steps:
                # Before the first write all of the batch is compared, so that a conflict finds nothing written.
                watched = {**step, **batch} if step is steps[0] else step
                sent = self._send(step, watched, landed)
                requests, retries = requests + sent[0], retries + sent[1]
        except BaseException as error:
            with self._claims.lock:
                self._claims.fail(batch)
            if isinstance(error, CheckpointError):
                raise self._told(_partial(error, batch, landed)) from error.__cause__
            raise
        return requests, retries

    def _send(self, batch: Changes, watched: Changes, landed: dict[str, Entry | None]) -> tuple[int, int]:
        """Commit a step, accepting own writes that landed late; return requests and retries.

        What is `watched` must be as it was, though a later step may write it. `landed` collects what was confirmed.
        """
        claims, lease = self._claims, self.lease
        rounds = LATE_WRITES + len(watched)
        with claims.lock:
            base = self._base(watched)
        while True:
            held = {} if lease is None else lease.base()
            try:
                receipt = self._commit(batch, {**held, **base})
            except CheckpointError as error:
                if lease is not None and isinstance(error, Conflict) and error.key in held:
                    if lease.keeps(error.found):  # renewed meanwhile
                        continue
                    raise LeaseLost(self._layers.state_key) from error
                rounds -= 1
                with claims.lock:
                    own = self._fail(batch, watched, error, landed)
                    if own is not None and rounds >= 0:
                        claims.know(own)
                if own is None or rounds < 0:
                    self._find_groups(_conflicts(error))
                    raise
                batch = {key: value for key, value in batch.items() if key not in error.committed}
                base = {key: own.get(key, entry) for key, entry in base.items() if key not in error.committed}
            except BaseException:
                with claims.lock:  # interrupted half-way: any of it may have landed
                    claims.doubts.send(batch, unknown=batch)
                raise
            else:
                with claims.lock:
                    claims.doubts.send({key: batch[key] for key in receipt.unsettled})
                    self._confirm(batch, {key: receipt.entries.get(key) for key in batch}, landed)
                return receipt.requests, receipt.retries

    def _commit(self, batch: Changes, base: Mapping[str, Entry | None]) -> Receipt:
        """Commit, with the reasons that were given, where the store keeps them."""
        state_key, reasons = self._layers.state_key, self._claims.reasons
        given = {key: reasons[key] for key in batch if key in reasons} if reasons else {}
        if given and isinstance(self.store, KeepsHistory):
            return self.store.commit(state_key, batch, base, run_id=self._run_id, reasons=given)
        return self.store.commit(state_key, batch, base, run_id=self._run_id)

    def _base(self, watched: Changes) -> dict[str, Entry | None]:
        """Return what must be stored as it was: what is written now or later, and what that relies on."""
        groups = self._layers.groups
        keys = (watched.keys() - groups.uncompared()) | {*groups.relied_on(watched)}
        if self._overwrite:  # but not how another run packed a group: members it never touched would be lost
            keys &= groups.packed_heads()
        return {key: self._claims.known.get(key) for key in [*watched, *groups.relied_on(watched)] if key in keys}

    def _told(self, error: CheckpointError) -> CheckpointError:
        """Return an error as the job knows it: conflicts of a group's entries as ones of its members."""
        with self._claims.lock:
            if isinstance(error, Conflict):
                return self._layers.groups.told(error)
            if isinstance(error, PartialCommit):
                for key, one in error.errors.items():
                    if isinstance(one, Conflict):
                        error.errors[key] = self._layers.groups.told(one)
        return error

    def _find_groups(self, conflicts: Iterable[str]) -> None:
        """Read the groups again whose entries conflict, for `discard` to adopt all of their entries."""
        with self._claims.lock:
            groups = [key for key in conflicts if self._layers.groups.owner(key) is not None]
        if not groups:
            return
        try:
            loaded = self.store.load(self._layers.state_key)
        except CheckpointError as error:
            logger.warning("%r: the group could not be read again: %s", self._layers.state_key, error)
            return
        with self._claims.lock:
            for key in groups:
                self._claims.doubts.find(self._layers.groups.read_again(key, loaded))

    def _confirm(self, batch: Changes, confirmed: Mapping[str, Entry | None], landed: dict[str, Entry | None]) -> None:
        """Take what the store confirmed down to what is known."""
        if self._layers.rollback is not None:
            self._layers.rollback.wrote({key: self._claims.known.get(key) for key in confirmed})
        landed.update(confirmed)
        self._claims.confirm(batch, confirmed)

    def _fail(
        self, batch: Changes, watched: Changes, error: CheckpointError, landed: dict[str, Entry | None]
    ) -> dict[str, Entry | None] | None:
        """Take down what landed all the same, and remember what the error leaves open and what it found.

        Return what it found where that is own writes that landed late and nothing else, else None.
        """
        claims = self._claims
        claims.doubts.send({key: batch[key] for key in error.unsettled})
        self._confirm(batch, error.committed, landed)
        left = {key: value for key, value in batch.items() if key not in error.committed}
        errors = error.errors if isinstance(error, PartialCommit) else dict.fromkeys(left, error)
        conflicts = [one for one in errors.values() if isinstance(one, Conflict)]
        found = {one.key: one.found for one in conflicts}
        if len(conflicts) == len(errors) and all(self._is_ours(one, watched) for one in conflicts):
            return found
        claims.doubts.find(found)
        # A store's error that is of no kind we know leaves open whether anything was written.
        unknown = {key for key, one in errors.items() if type(one) in {StoreError, CommitUnknown}}
        claims.doubts.send({key: left[key] for key in unknown & left.keys()})
        claims.doubts.send({}, unknown=(unknown | error.unsettled) & left.keys())
        return None

    def _is_ours(self, conflict: Conflict, watched: Changes) -> bool:
        """Tell whether a conflict is with an own write that landed late.

        Where there are no versions, a value that is the one to be written is no conflict either.
        """
        key, found, expected = conflict.key, conflict.found, conflict.expected
        if self._claims.doubts.is_own(key, found):
            return True
        versions = {entry.version for entry in (found, expected) if entry is not None}
        return versions <= {None} and key in watched and value_of(found) == watched[key]


def _conflicts(error: CheckpointError) -> list[str]:
    errors = error.errors.values() if isinstance(error, PartialCommit) else [error]
    return [one.key for one in errors if isinstance(one, Conflict)]


def _partial(error: CheckpointError, batch: Changes, landed: Mapping[str, Entry | None]) -> CheckpointError:
    """Return the error of a batch whose later step failed after an earlier one had landed."""
    before = {key: entry for key, entry in landed.items() if key in batch and value_of(entry) == batch[key]}
    if not before:
        return error
    committed = {**before, **error.committed}
    if isinstance(error, (Unauthorized, LeaseLost)):
        error.committed = committed
        return error
    pending = [key for key in batch if key not in committed]
    errors = error.errors if isinstance(error, PartialCommit) else {getattr(error, "key", pending[0]): error}
    partial = PartialCommit(committed, pending, errors)
    partial.unsettled = error.unsettled
    return partial
