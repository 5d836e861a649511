"""What the store is known to hold, what a run has claimed beyond that, and what became of what was sent.

    claimed  snapshots that the job said are safe, on their way to the store
    known    the entries as the store is known to hold them

A flush takes `claimed` to the store and, once it is confirmed there, into `known`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from checkpoint.entries import Entry
from checkpoint.errors import (
    CheckpointError,
    CommitUnknown,
    Conflict,
    LeaseLost,
    PartialCommit,
    StoreError,
    Unauthorized,
)
from checkpoint.stores.base import Atomic, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from checkpoint.run.lease import Lease
    from checkpoint.stores.base import JoinsTransactions, Store

logger = logging.getLogger("checkpoint")

LATE_WRITES = 3
"""How many late writes of its own, beside one a key, a flush puts up with before it calls them a conflict."""

TAKEN_BACK = 1_000
"""How many earlier entries of a key a run recognises when the caller's transaction was rolled back."""

Changes: TypeAlias = dict[str, str | None]


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


class Ledger:
    """The two lower layers of a run's keys, and the way from one to the other.

    `steps` cuts a batch into those that must land one after the other, where the store writes key by key.
    """

    def __init__(
        self, state_key: str, *, overwrite: bool, run_id: str | None, steps: Callable[[Changes], Iterable[Changes]]
    ) -> None:
        self.state_key = state_key
        self.store: Store | None = None
        self.joined: JoinsTransactions | None = None
        """The store, where it writes inside the caller's transactions."""
        self.atomic = False
        """Whether commits of the store are all or nothing."""
        self.lease: Lease | None = None
        self.claimed: Changes = {}  # None deletes
        self.known: dict[str, Entry] = {}
        self.lock = threading.RLock()  # guards the layers; never held during a request
        self.flushing = threading.Lock()  # held by the one flush under way; taken before `lock`
        self._overwrite = overwrite
        self._run_id = run_id
        self._steps = steps
        self._failed: set[str] = set()  # claimed keys whose last flush failed: sent again only when asked
        self._found: dict[str, Entry | None] = {}  # what conflicts found, for `discard` to adopt
        self._unsettled: dict[str, set[str | None]] = {}  # own values that may have landed, or may yet
        self._doubtful: set[str] = set()  # keys of which `known` may be wrong, for the last send was not confirmed
        self._past: dict[str, deque[Entry | None]] = {}  # what was known earlier of keys in the caller's transaction
        self.undone: Changes = {}  # what keys had got in a transaction of the caller's that was rolled back
        self.flushed_at = self.claimed_at = float("-inf")

    def open(self, store: Store) -> None:
        """Use a store."""
        self.store, self.joined, self.atomic = store, joined(store), isinstance(store, Atomic)

    @property
    def opened(self) -> Store:
        """The store, once it is open."""
        if self.store is None:
            raise RuntimeError("a Checkpointer is used inside its with block")
        return self.store

    # Reading and claiming

    def below(self, key: str) -> str | None:
        """Return the value last claimed or known of a key, None where there is none."""
        return self.claimed[key] if key in self.claimed else value_of(self.known.get(key))

    def doubts(self, key: str) -> bool:
        """Tell whether the store may hold something else than what is known, for a write of it was not confirmed."""
        return key in self._doubtful

    def may_be_undone(self, key: str) -> bool:
        """Tell whether what is known of a key was written in a transaction that may be rolled back."""
        return key in self._past

    def claim(self, differences: Changes, only: Collection[str] | None = None) -> None:
        """Take differences over; `only` names the keys that were asked for, None stands for all."""
        self.claimed.update(differences)
        self._failed.difference_update(list(self.claimed) if only is None else only)

    def fail(self, keys: Iterable[str]) -> None:
        """Take claims for ones whose flush failed."""
        self._failed.update(keys)

    def discard(self) -> None:
        """Drop claims whose flush failed, and adopt what conflicts found.

        A key with a claim that still waits keeps the base that was claimed on, see `adopt`.
        """
        for key in self._failed:
            self.claimed.pop(key, None)
        self._failed.clear()
        self._know({key: entry for key, entry in self._found.items() if key not in self.claimed})
        self._found.clear()
        self.undone.clear()

    def adopt(self, loaded: dict[str, Entry]) -> None:
        """Take a fresh listing for known.

        A key claimed and not yet flushed keeps the base it was claimed on, so that a foreign change to it is still a
        `Conflict` and not overwritten.
        """
        waiting = {key: self.known.get(key) for key in self.claimed}
        self.known = loaded
        self._know(waiting)
        self._doubtful.intersection_update(waiting)

    def refresh(self) -> None:
        """Look whether what this run wrote in the caller's transactions is still there, or was rolled back."""
        store = self.joined
        if store is None or not self._past:
            return
        found = store.read(self.state_key, list(self._past))
        for key, past in self._past.items():
            entry = found.get(key)
            if entry != self.known.get(key) and entry in past:
                self.undone[key] = value_of(self.known.get(key))
                self._know({key: entry})

    def forked(self) -> None:
        """Start over in a forked child: no lock held by a thread that is gone, and no lease.

        What the parent has claimed it will send: here it counts as known already.
        """
        self.lock, self.flushing = threading.RLock(), threading.Lock()
        if self.lease is not None:
            self.lease.forked()
        for key, value in self.claimed.items():
            if value is None:
                self.known.pop(key, None)
            else:
                self.known[key] = self.known.get(key, Entry(key, value))._replace(value=value)
        self._doubtful.difference_update(self.claimed)
        self.claimed.clear()
        self._failed.clear()

    # Flushing

    def flush(self, only: frozenset[str] | None = None) -> Commit:
        """Send these claimed keys; None: all but those whose last flush failed."""
        with self.flushing:
            with self.lock:
                batch = {
                    key: value
                    for key, value in self.claimed.items()
                    if (key in only if only is not None else key not in self._failed)
                }
                for key in [key for key, value in batch.items() if self._holds(key, value)]:
                    del batch[key], self.claimed[key]  # taken back before it was ever sent
                    self._failed.discard(key)
                due_at = self.claimed_at
                try:
                    steps = [batch] if self.atomic else list(self._steps(batch))
                except CheckpointError:
                    self._failed.update(batch)
                    raise
            if not batch:
                return Commit()
            started, requests, retries = time.monotonic(), 0, 0
            landed: dict[str, Entry | None] = {}
            try:
                for step in steps:
                    # Before the first write all of the batch is looked at, so that a conflict finds nothing written.
                    sent = self._send(step, {**step, **batch} if step is steps[0] else step, landed)
                    requests, retries = requests + sent[0], retries + sent[1]
            except BaseException as error:
                with self.lock:
                    self._failed.update(key for key, value in batch.items() if self.claimed.get(key, "") == value)
                if isinstance(error, CheckpointError):
                    raise _partial(error, batch, landed) from error.__cause__
                raise
            self.flushed_at = due_at
            commit = Commit(tuple(batch), requests, retries, time.monotonic() - started)
            logger.debug(
                "%r: committed keys=%d requests=%d retries=%d seconds=%.3f",
                self.state_key, len(batch), requests, retries, commit.seconds,
            )  # fmt: skip
            return commit

    def _send(self, batch: Changes, watched: Changes, landed: dict[str, Entry | None]) -> tuple[int, int]:
        """Commit a step, taking own writes that landed late for what they are; return requests and retries.

        What is `watched` must be as it was, though it may be written by a later step. What lands is noted in `landed`.
        """
        store, lease = self.opened, self.lease
        rounds = LATE_WRITES + len(watched)
        with self.lock:
            base = {} if self._overwrite else {key: self.known.get(key) for key in watched}
        while True:
            rounds -= 1
            held = {} if lease is None else lease.base()
            try:
                receipt = store.commit(self.state_key, batch, {**held, **base}, run_id=self._run_id)
            except CheckpointError as error:
                if lease is not None and isinstance(error, Conflict) and error.key in held:
                    if lease.keeps(error.found):  # renewed meanwhile
                        rounds += 1
                        continue
                    raise LeaseLost(self.state_key) from error
                with self.lock:
                    self._unsettle({key: batch[key] for key in error.unsettled})
                    self._settle(batch, error.committed, landed)
                    batch = {key: value for key, value in batch.items() if key not in error.committed}
                    conflicts = self._blame(batch, watched, error)
                    if conflicts is not None and rounds:
                        self._know(conflicts)
                        base = {key: conflicts.get(key, was) for key, was in base.items() if key not in error.committed}
                        continue
                raise
            except BaseException:
                with self.lock:  # interrupted half-way: any of it may have landed
                    self._unsettle(batch)
                    self._doubtful.update(batch)
                raise
            with self.lock:
                self._unsettle({key: batch[key] for key in receipt.unsettled})
                self._settle(batch, {key: receipt.entries.get(key) for key in batch}, landed)
            return receipt.requests, receipt.retries

    def _settle(self, batch: Changes, confirmed: Mapping[str, Entry | None], landed: dict[str, Entry | None]) -> None:
        """Move keys that the store confirmed from `claimed` to `known`, unless a newer claim is waiting."""
        if self.joined is not None:
            for key in confirmed:
                self._past.setdefault(key, deque(maxlen=TAKEN_BACK)).append(self.known.get(key))
        landed.update(confirmed)
        self._know(confirmed)
        for key in confirmed:
            self._found.pop(key, None)
            self.undone.pop(key, None)
            self._doubtful.discard(key)
            if key in self.claimed and self.claimed[key] == batch[key]:
                del self.claimed[key]
                self._failed.discard(key)

    def _blame(self, batch: Changes, watched: Changes, error: CheckpointError) -> dict[str, Entry | None] | None:
        """Remember what an error found of what was watched, and what of the batch it leaves open.

        Return what was found where the error is nothing but own writes that landed late, or what is to be written
        anyway, None where there is more.
        """
        errors = error.errors if isinstance(error, PartialCommit) else dict.fromkeys(batch, error)
        conflicts = {one.key: one.found for one in errors.values() if isinstance(one, Conflict)}
        if all(isinstance(one, Conflict) for one in errors.values()) and all(
            value_of(found) in self._unsettled.get(key, ()) or value_of(found) == watched[key]
            for key, found in conflicts.items()
        ):
            return conflicts
        self._found.update(conflicts)
        # What a store says of a failure it has no name for leaves open whether anything was written.
        doubtful = {key: batch[key] for key, one in errors.items() if type(one) in {StoreError, CommitUnknown}}
        self._unsettle(doubtful)
        self._doubtful.update(key for key in batch if key in doubtful or key in error.unsettled)
        return None

    def _unsettle(self, batch: Changes) -> None:
        """Remember values of our own that may have landed, or may yet."""
        for key, value in batch.items():
            self._unsettled.setdefault(key, set()).add(value)

    def _know(self, entries: Mapping[str, Entry | None]) -> None:
        for key, entry in entries.items():
            if entry is None:
                self.known.pop(key, None)
            else:
                self.known[key] = entry

    def _holds(self, key: str, value: str | None) -> bool:
        return key not in self._doubtful and value_of(self.known.get(key)) == value


def value_of(entry: Entry | None) -> str | None:
    """Return the value of an entry, None for none."""
    return entry.value if entry is not None else None


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
