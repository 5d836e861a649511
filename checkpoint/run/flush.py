"""Sends claims to the store: batches, partial results, and writes with an unknown outcome."""

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
    from checkpoint.run.conflicts import ConflictPolicy
    from checkpoint.run.layers import Layers
    from checkpoint.run.lease import Lease
    from checkpoint.stores.base import Store

logger: logging.Logger = logging.getLogger("checkpoint")

LATE_WRITES = 3
"""How many of its own late writes, besides one per key, a flush accepts before it raises a conflict."""


class Commit(NamedTuple):
    """The result of a commit: what was sent. It is false if nothing was sent."""

    keys: tuple[str, ...] = ()
    """The keys that were written or deleted; for a group, its entries."""
    requests: int = 0
    """Requests to the service, including retries; 0 for a local store."""
    retries: int = 0
    """Requests sent again after a failure."""
    seconds: float = 0.0
    """Time from the first request to the last response."""

    def __bool__(self) -> bool:
        return bool(self.keys)


class MinInterval:
    """Holds back commits that come sooner than `min_interval` seconds after the last flush."""

    def __init__(self, min_interval: float) -> None:
        self._held: set[str] | None = set()
        """Keys of held-back commits (None: all waiting ones); the next flush sends them."""
        self.flushed_at: float = float("-inf")
        self.claimed_at: float = float("-inf")
        self._min_interval = min_interval

    def due(self) -> bool:
        """Whether the last flush is long enough ago; also true if the clock went back, as in tests."""
        self.claimed_at = time.monotonic()
        return not 0 <= self.claimed_at - self.flushed_at < self._min_interval

    def hold(self, keys: set[str] | None) -> None:
        """Hold keys back (None: all waiting ones)."""
        if keys is None:
            self._held = None
        elif self._held is not None:
            self._held |= keys

    def let_go(self, waiting: Iterable[str]) -> frozenset[str]:
        """Return and release the held-back keys."""
        held, self._held = self._held, set()
        return frozenset(waiting if held is None else held)


class _Step:
    """A part of a batch that one commit sends, and what is left of it after an attempt."""

    def __init__(
        self,
        batch: Changes,
        watched: Changes,
        base: dict[str, Entry | None],
        landed: dict[str, Entry | None],
        whole: Changes,
    ) -> None:
        self.batch = batch
        """The changes that are not written yet."""
        self.watched = watched
        """The entries that must be unchanged although a later step may write them."""
        self.base = base
        """The entries that must still be stored, None for absent ones."""
        self.landed = landed
        """The confirmed changes of all steps."""
        self.whole = whole
        """The batch of all steps; members that other runs packed are merged into it."""
        self.rounds = LATE_WRITES + len(watched)
        """How many more own late writes are accepted."""

    def leave_out(self, committed: Mapping[str, Entry | None], found: Mapping[str, Entry | None]) -> None:
        """Remove what was committed, and continue on the base of the entries found."""
        self.batch = {key: self.whole[key] for key in self.batch if key not in committed}
        self.base = {key: found.get(key, entry) for key, entry in self.base.items() if key not in committed}
        self.rounds -= 1


class Flush:
    """Sends claims to the store, one batch at a time."""

    def __init__(
        self, layers: Layers, interval: MinInterval, on_conflict: ConflictPolicy, *, run_id: str | None
    ) -> None:
        self.lease: Lease | None = None
        self.lock: threading.Lock = threading.Lock()
        """Held during a flush; taken before the claims' lock."""
        self.commits: int = 0
        """Commits of the run that sent something."""
        self._layers = layers
        self._claims = layers.claims
        self._interval = interval
        self._store: Store | None = None
        self._on_conflict = on_conflict
        self._run_id = run_id

    @property
    def store(self) -> Store:
        """The store of the run, once it is open."""
        if self._store is None:
            raise RuntimeError("use a Checkpointer inside its with block")
        return self._store

    def open(self, store: Store) -> None:
        """Use a store."""
        self._store = store

    def forked(self) -> None:
        """Reset in a forked child: new locks, and no lease."""
        self.lock = threading.Lock()
        if self.lease is not None:
            self.lease.forked()

    def __call__(self, only: frozenset[str] | None = None) -> Commit:
        """Send these claims (None: all but failed ones)."""
        with self.lock:
            with self._claims.lock:
                batch = self._claims.batch(only)
                steps = self._layers.groups.steps(batch)
                due_at = self._interval.claimed_at
            if not batch:
                return Commit()
            started = time.monotonic()
            requests, retries = self._send_all(batch, steps)
            self._interval.flushed_at = due_at
            self.commits += 1
            commit = Commit(tuple(batch), requests, retries, time.monotonic() - started)
            if logger.isEnabledFor(logging.DEBUG):
                self._log(commit)
            return commit

    def _log(self, commit: Commit) -> None:
        namespace, keys = self._layers.state_key, len(commit.keys)
        logger.debug(
            "%r: committed keys=%d requests=%d retries=%d seconds=%.3f",
            namespace, keys, commit.requests, commit.retries, commit.seconds,
            extra={
                "checkpoint_event": "committed", "checkpoint_namespace": namespace, "checkpoint_keys": keys,
                "checkpoint_requests": commit.requests, "checkpoint_retries": commit.retries,
                "checkpoint_seconds": commit.seconds,
            },
        )  # fmt: skip

    def _send_all(self, batch: Changes, steps: list[Changes]) -> tuple[int, int]:
        """Send a batch step by step; return requests and retries."""
        requests = retries = 0
        landed: dict[str, Entry | None] = {}
        try:
            for keys in steps:
                step = {key: batch[key] for key in keys}
                # The whole batch is compared before the first write, so that a conflict leaves nothing written.
                watched = {**step, **batch} if keys is steps[0] else step
                base = self._base(watched)
                sent = self._send(_Step(step, watched, base, landed, batch))
                requests, retries = requests + sent[0], retries + sent[1]
        except BaseException as error:
            with self._claims.lock:
                self._claims.fail(batch)
            if isinstance(error, CheckpointError):
                raise self._told(_partial(error, batch, landed)) from error.__cause__
            raise
        return requests, retries

    def _send(self, step: _Step) -> tuple[int, int]:
        """Commit a step, accepting own late writes; return requests and retries."""
        try:
            while (receipt := self._attempt(step)) is None:
                pass
        except CheckpointError:
            raise
        except BaseException:
            with self._claims.lock:  # interrupted: any part may have landed, even if only the result was lost
                self._claims.doubts.send(step.batch, unknown=step.batch)
            raise
        return receipt.requests, receipt.retries

    def _attempt(self, step: _Step) -> Receipt | None:
        """Commit the rest of a step; None: an own write landed late, so try again."""
        try:
            receipt = self._commit(step.batch, step.base)
        except CheckpointError as error:
            if self._fail(step, error):
                return None
            self._find_groups(_conflicts(error))
            raise
        with self._claims.lock:
            self._claims.doubts.send({key: step.batch[key] for key in receipt.unsettled})
            self._confirm(step, {key: receipt.entries.get(key) for key in step.batch})
        return receipt

    def _commit(self, batch: Changes, base: Mapping[str, Entry | None]) -> Receipt:
        """Commit under the lease, if there is one.

        Raises:
            LeaseLost: another run has the lease.

        """
        lease = self.lease
        if lease is None:
            return self._write(batch, base)
        while True:
            held = lease.base()
            try:
                return self._write(batch, {**held, **base})
            except Conflict as conflict:
                if conflict.key not in held:
                    raise
                if not lease.keeps(conflict.found):  # else it was renewed meanwhile
                    raise LeaseLost(self._layers.state_key) from conflict

    def _write(self, batch: Changes, base: Mapping[str, Entry | None]) -> Receipt:
        """Commit, with reasons if the store keeps them."""
        state_key, reasons = self._layers.state_key, self._claims.reasons
        given = {key: reasons[key] for key in batch if key in reasons} if reasons else {}
        if given and isinstance(self.store, KeepsHistory):
            return self.store.commit(state_key, batch, base, run_id=self._run_id, reasons=given)
        return self.store.commit(state_key, batch, base, run_id=self._run_id)

    def _base(self, watched: Changes) -> dict[str, Entry | None]:
        """Return the entries that must be unchanged: those to write, and those that they rely on."""
        groups = self._layers.groups
        with self._claims.lock:
            keys = (watched.keys() - groups.uncompared()) | {*groups.relied_on(watched)}
            keys = self._on_conflict.compared(keys, groups)
            return {key: self._claims.known.get(key) for key in [*watched, *groups.relied_on(watched)] if key in keys}

    def _told(self, error: CheckpointError) -> CheckpointError:
        """Return the error for the job: a conflict in a group's entry becomes one in its member."""
        with self._claims.lock:
            if isinstance(error, Conflict):
                return self._layers.groups.told(error)
            if isinstance(error, PartialCommit):
                for key, one in error.errors.items():
                    if isinstance(one, Conflict):
                        error.errors[key] = self._layers.groups.told(one)
        return error

    def _find_groups(self, conflicts: Iterable[Conflict]) -> None:
        """Read the groups with conflicts again, so that `discard` can adopt all of their entries."""
        with self._claims.lock:
            groups = [one.key for one in conflicts if self._layers.groups.owner(one.key) is not None]
        if not groups:
            return
        try:
            loaded = self.store.load(self._layers.state_key)
        except CheckpointError as error:
            namespace = self._layers.state_key
            extra = {"checkpoint_event": "group_not_read", "checkpoint_namespace": namespace}
            logger.warning("%r: a group could not be read again after a conflict: %s", namespace, error, extra=extra)
            return
        with self._claims.lock:
            for key in groups:
                self._claims.doubts.find(self._layers.groups.read_again(key, loaded))

    def _confirm(self, step: _Step, confirmed: Mapping[str, Entry | None]) -> None:
        """Move confirmed changes to the known entries."""
        if self._layers.rollback is not None:
            self._layers.rollback.wrote({key: self._claims.known.get(key) for key in confirmed})
        step.landed.update(confirmed)
        self._claims.confirm(step.batch, confirmed)

    def _fail(self, step: _Step, error: CheckpointError) -> bool:
        """Record what landed despite the error, what it leaves in doubt, and what it found.

        True if it found only own late writes and members to take over: the rest of the step is then tried again.
        """
        claims = self._claims
        with claims.lock:
            claims.doubts.send({key: step.batch[key] for key in error.unsettled})
            self._confirm(step, error.committed)
            conflicts = _conflicts(error)
            found = {one.key: one.found for one in conflicts}
            if step.rounds and len(conflicts) == len(_errors(error)) and self._passes_over(step, conflicts):
                claims.know(found)
                step.leave_out(error.committed, found)
                return True
            claims.doubts.find(found)
            self._doubt(step, error)
        return False

    def _doubt(self, step: _Step, error: CheckpointError) -> None:
        """Remember which keys may hold what was sent; after an error of an unknown kind, all may."""
        left = step.batch.keys() - error.committed.keys()
        errors = error.errors if isinstance(error, PartialCommit) else dict.fromkeys(left, error)
        unknown = {key for key, one in errors.items() if type(one) in {StoreError, CommitUnknown}} & left
        self._claims.doubts.send({key: step.batch[key] for key in unknown}, unknown=unknown | (error.unsettled & left))

    def _passes_over(self, step: _Step, conflicts: list[Conflict]) -> bool:
        """Whether all conflicts are with own late writes or members to take over; merge the latter."""
        groups = self._layers.groups
        foreign = [one for one in conflicts if not self._is_ours(one, step.watched)]
        if not all(self._on_conflict.takes_over(one, groups) for one in foreign):
            return False
        for one in foreign:
            step.whole[one.key] = groups.over(one.key, step.whole[one.key], one.found)
        return True

    def _is_ours(self, conflict: Conflict, watched: Changes) -> bool:
        """Whether a conflict is with an own late write.

        Without versions, a stored value equal to the new one is not a conflict either.
        """
        key, found, expected = conflict.key, conflict.found, conflict.expected
        if self._claims.doubts.is_own(key, found):
            return True
        versions = {entry.version for entry in (found, expected) if entry is not None}
        return versions <= {None} and key in watched and value_of(found) == watched[key]


def _errors(error: CheckpointError) -> list[CheckpointError]:
    return [*error.errors.values()] if isinstance(error, PartialCommit) else [error]


def _conflicts(error: CheckpointError) -> list[Conflict]:
    return [one for one in _errors(error) if isinstance(one, Conflict)]


def _partial(error: CheckpointError, batch: Changes, landed: Mapping[str, Entry | None]) -> CheckpointError:
    """Return the error of a batch whose later step failed after an earlier step had landed."""
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
