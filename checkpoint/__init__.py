"""Incremental-sync checkpoints: where a job stopped, and how far it is safely past."""

from typing import TYPE_CHECKING

from checkpoint.checkpointer import Checkpointer as Checkpointer
from checkpoint.checkpointer import Commit as Commit
from checkpoint.errors import CheckpointError as CheckpointError
from checkpoint.errors import CommitUnknown as CommitUnknown
from checkpoint.errors import Conflict as Conflict
from checkpoint.errors import CorruptState as CorruptState
from checkpoint.errors import CursorExpired as CursorExpired
from checkpoint.errors import CursorRegressed as CursorRegressed
from checkpoint.errors import LeaseLost as LeaseLost
from checkpoint.errors import Locked as Locked
from checkpoint.errors import PartialCommit as PartialCommit
from checkpoint.errors import StateMissing as StateMissing
from checkpoint.errors import StoreError as StoreError
from checkpoint.errors import StoreUnavailable as StoreUnavailable
from checkpoint.errors import Unauthorized as Unauthorized
from checkpoint.errors import ValueTooLarge as ValueTooLarge
from checkpoint.stores import open_store as open_store
from checkpoint.stores.base import Entry as Entry
from checkpoint.stores.base import Receipt as Receipt
from checkpoint.stores.base import Store as Store

if TYPE_CHECKING:
    from checkpoint.aio import AsyncCheckpointer as AsyncCheckpointer

__all__ = [
    "AsyncCheckpointer",
    "CheckpointError",
    "Checkpointer",
    "Commit",
    "CommitUnknown",
    "Conflict",
    "CorruptState",
    "CursorExpired",
    "CursorRegressed",
    "Entry",
    "LeaseLost",
    "Locked",
    "PartialCommit",
    "Receipt",
    "StateMissing",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "Unauthorized",
    "ValueTooLarge",
    "open_store",
]


def __getattr__(name: str) -> object:
    if name == "AsyncCheckpointer":  # asyncio costs more than all the rest, and most jobs do not use it
        from checkpoint.aio import AsyncCheckpointer  # noqa: PLC0415

        return AsyncCheckpointer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
