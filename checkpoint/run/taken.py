"""Resources that entering a run took and leaving releases, also when it is interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Taken:
    """Callbacks that release resources, in reverse order.

    An exception of a signal handler may come at any bytecode, so a callback is forgotten only when it has returned, and
    is called a second time where it raised: each must be safe to call twice.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], object]] = []

    def add(self, callback: Callable[[], object]) -> None:
        """Add a callback for the release."""
        self._callbacks.append(callback)

    def let_go(self) -> None:
        """Call all callbacks, and raise the first failure at the end."""
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
