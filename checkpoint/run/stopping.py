"""Signals that ask a run to stop: the first one is recorded, a second one interrupts."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


_UNHEARD: frozenset[signal.Signals] = frozenset(
    getattr(signal, name) for name in ("SIGKILL", "SIGSTOP") if hasattr(signal, name)
)


class Stops:
    """The stop signals of one run.

    Raises:
        TypeError: the argument is a single signal instead of several.
        ValueError: one is not a signal, or a process cannot handle it.

    """

    def __init__(self, numbers: Iterable[int]) -> None:
        if isinstance(numbers, int | str):
            raise TypeError(f"stop_signals must be several signals, such as (signal.SIGTERM,), not {numbers!r}")
        self.came: list[int] = []
        """The received signals; streams read this too."""
        self._numbers = tuple(dict.fromkeys(signal.Signals(number) for number in numbers))
        if unheard := _UNHEARD.intersection(self._numbers):
            raise ValueError(f"stop_signals: a process cannot handle {min(unheard).name}")
        self._handlers: dict[int, Any] = {}

    def watch(self) -> None:
        """Set the handlers.

        Raises:
            ValueError: this is not the main thread.

        """
        if self._numbers and threading.current_thread() is not threading.main_thread():
            raise ValueError("stop_signals work only in the main thread: leave them out, or run the job there")
        for number in self._numbers:
            self._handlers[number] = signal.getsignal(number)  # first: an exception in between must not lose it
            signal.signal(number, self._note)

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number in [*self._handlers]:
            handler = self._handlers[number]
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
            del self._handlers[number]

    def _note(self, number: int, _frame: object) -> None:
        if self.came:
            raise KeyboardInterrupt(f"second {signal.Signals(number).name}")
        self.came.append(number)
