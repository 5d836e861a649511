"""Who holds a reading: the thread or asyncio task that last asked it for rows."""

from __future__ import annotations

import sys
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Caller: TypeAlias = Any
"""An asyncio task, or a weak reference to what dies with a thread; compared by identity."""


class _Life:
    """Lives as long as the thread to whose locals it belongs."""

    __slots__ = ("__weakref__",)


class _Here(threading.local):
    """The current thread as a caller."""

    def __init__(self) -> None:
        self.life: _Life = _Life()
        self.holder: weakref.ref[_Life] = weakref.ref(self.life)


local: _Here = _Here()


def here() -> Caller:
    """Return the current caller: the asyncio task, else the thread."""
    asyncio: Any = sys.modules.get("asyncio")  # where nobody imported it, there is no task
    running = getattr(asyncio, "_get_running_loop", None)  # documented for this, and quick; another thread may import
    if running is not None and running() is not None:
        task = asyncio.current_task()
        if task is not None:
            return task
    return local.holder


def asking(holder: Caller) -> Callable[[], Caller]:
    """Return a quick function for the current caller, valid while callers are of the same kind as `holder`."""
    if holder is None or isinstance(holder, weakref.ref):
        return _HERE
    return partial(sys.modules["asyncio"].current_task, holder.get_loop())


_HERE: Callable[[], Caller] = partial(getattr, local, "holder")


def is_over(holder: Caller) -> bool:
    """Tell whether a thread or task has ended."""
    if isinstance(holder, weakref.ref):
        return holder() is None
    return bool(holder.done())
