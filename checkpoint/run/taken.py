"""Resources that entering a run acquires and leaving releases, even when interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Taken:
    """Callbacks that release resources, in reverse order.

    A signal handler may raise at any bytecode. So a callback is removed only after it has returned, and called again if
    it raised: each must be safe to call twice.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], object]] = []

    def add(self, callback: Callable[[], object]) -> None:
        """Add a callback for the release."""
        self._callbacks.append(callback)

    def let_go(self) -> None:
        """Call all callbacks, then raise the first failure."""
        failure: BaseException | None = None
        again = True
        while self._callbacks:
            try:
                self._callbacks[-1]()
            except BaseException as error:  # noqa: BLE001 - raised below
                failure = failure or error
                if again:
                    again = False
                    continue
            self._callbacks.pop()
            again = True
        if failure is not None:
            raise failure
