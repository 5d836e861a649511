"""When claims are flushed: at once, later, in the background, or at the end of the block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checkpoint.errors import CheckpointError
from checkpoint.run.background import Background, add_note
from checkpoint.run.flush import Flush, MinInterval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from checkpoint.run.conflicts import ConflictPolicy
    from checkpoint.run.layers import Layers
    from checkpoint.streams.holding import Caller


class Commits:
    """The commits of one run. Claiming requires the lock of the layers; flushing must not hold it."""

    def __init__(self, layers: Layers, on_conflict: ConflictPolicy, *, min_interval: float, run_id: str | None) -> None:
        self.interval: MinInterval = MinInterval(min_interval)
        self.flush: Flush = Flush(layers, self.interval, on_conflict, run_id=run_id)
        self.background: Background = Background(layers.state_key, self.flush)
        self._layers = layers

    def claim(self, only: tuple[object, ...], by: Caller) -> frozenset[str] | None:
        """Claim, and return the keys to flush; None if they are held back."""
        self.background.raise_failure()
        keys = self._layers.claim(only, by)
        self._need_transaction(keys)
        self.interval.hold(keys)
        return self.interval.let_go(self._layers.claims.waiting) if self.interval.due() else None

    def claim_soon(self, only: tuple[object, ...], by: Caller) -> bool:
        """Claim, and return whether a background flush is due.

        Raises:
            ValueError: the store writes in the caller's own transactions.

        """
        self.background.raise_failure()
        if self._layers.rollback is not None:
            raise ValueError("with connection= a commit belongs to the open transaction: use commit()")
        self._layers.claim(only, by)
        return bool(self._layers.claims.waiting) and self.interval.due()

    def waiting(self) -> frozenset[str]:
        """Return all claims so far, including held-back and failed ones."""
        self.background.raise_failure()
        self._need_transaction(None)
        return frozenset(self._layers.claims.waiting)

    def leave(self, error: BaseException | None, by: Caller) -> None:
        """Send the last claims at the end of the block; `error` is the exception that ended it, if any."""
        layers = self._layers
        if error is None:
            try:
                with layers.claims.lock:
                    layers.holders.leave()
                    layers.holders.tell_of_held(by)
                    layers.claim((), by)
                    layers.phase = "closed"
                    self._need_transaction(None)
            except (TypeError, ValueError, RuntimeError, CheckpointError) as refused:
                self.leave(refused, by)  # earlier claims are still valid
                raise
            self.flush(frozenset(layers.claims.waiting))
            return
        layers.phase = "closed"
        layers.holders.detach()
        try:
            if layers.rollback is None:
                self.flush()
        except Exception as failure:  # noqa: BLE001 - the block's own error goes on, with this one told beside it
            add_note(error, f"checkpoint: {layers.state_key!r} was not committed either: {failure}")

    def _need_transaction(self, keys: Iterable[str] | None) -> None:
        """Refuse to flush keys (None: all waiting ones) if the caller has not begun a transaction."""
        claims, rollback = self._layers.claims, self._layers.rollback
        if rollback is None:
            return
        asked = claims.waiting if keys is None else keys
        waiting = {key: claims.waiting[key] for key in asked if key in claims.waiting}
        try:
            rollback.need_transaction(waiting)
        except RuntimeError:
            claims.fail(waiting)
            raise

    def forked(self) -> None:
        """Reset in a forked child: an empty queue, new locks."""
        self.background.forked()
        self.flush.forked()
