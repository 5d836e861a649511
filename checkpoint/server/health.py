"""Answer `/healthz`: whether the store answers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from checkpoint.errors import CheckpointError
from checkpoint.server.calls import Calls
from checkpoint.stores.base import ReadsKeys

if TYPE_CHECKING:
    from checkpoint.stores.base import Store

logger: logging.Logger = logging.getLogger("checkpoint")

NAME = "checkpoint serve"
"""The namespace, and its key, that the question reads. Nobody writes it."""

SECONDS = 4.0
"""Seconds for the store to answer."""

FRESH = 1.0
"""Seconds for which an answer is used again: anybody may ask, and must not keep the store busy."""


class Health:
    """Asks the store one question at a time, in its own thread, however many clients ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asking: Calls = Calls("health", threads=1)
        self._asked: asyncio.Task[bool] | None = None
        self._at = 0.0

    async def answers(self) -> bool:
        """Return whether the store answers in time."""
        now = asyncio.get_running_loop().time()
        if self._asked is None or (self._asked.done() and now - self._at >= FRESH):
            self._asked, self._at = asyncio.ensure_future(self._ask()), now
        try:
            # While a question is open, no second one is asked.
            return await asyncio.wait_for(asyncio.shield(self._asked), max(0.0, self._at + SECONDS - now))
        except asyncio.TimeoutError:
            return False

    async def _ask(self) -> bool:
        try:
            await self.asking(self._question)
        except CheckpointError as error:
            extra = {"checkpoint_event": "unhealthy"}
            logger.error("/healthz: %s", error, extra=extra)  # noqa: TRY400 - no traceback
            return False
        return True

    def _question(self) -> None:
        if isinstance(self._store, ReadsKeys):
            self._store.read(NAME, [NAME])
        else:
            self._store.load(NAME)
