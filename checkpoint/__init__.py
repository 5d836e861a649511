"""Store how far an incremental sync has come: where a job stopped, and what it is safely past."""

from importlib import import_module

TYPE_CHECKING = False  # type checkers know this name; importing typing's own is slow

if TYPE_CHECKING:
    from checkpoint.entries import Change as Change
    from checkpoint.entries import Entry as Entry
    from checkpoint.entries import Receipt as Receipt
    from checkpoint.errors import CheckpointError as CheckpointError
    from checkpoint.errors import CommitUnknown as CommitUnknown
    from checkpoint.errors import Conflict as Conflict
    from checkpoint.errors import CorruptState as CorruptState
    from checkpoint.errors import CursorExpired as CursorExpired
    from checkpoint.errors import CursorRegressed as CursorRegressed
    from checkpoint.errors import CursorStuck as CursorStuck
    from checkpoint.errors import LeaseLost as LeaseLost
    from checkpoint.errors import Locked as Locked
    from checkpoint.errors import PartialCommit as PartialCommit
    from checkpoint.errors import StateMissing as StateMissing
    from checkpoint.errors import StoreError as StoreError
    from checkpoint.errors import StoreUnavailable as StoreUnavailable
    from checkpoint.errors import Unauthorized as Unauthorized
    from checkpoint.errors import ValueTooLarge as ValueTooLarge
    from checkpoint.run.aio import AsyncCheckpointer as AsyncCheckpointer
    from checkpoint.run.checkpointer import Checkpointer as Checkpointer
    from checkpoint.run.checkpointer import Commit as Commit
    from checkpoint.run.groups import Group as Group
    from checkpoint.run.runs import Run as Run
    from checkpoint.stores import open_store as open_store
    from checkpoint.stores.base import Store as Store
    from checkpoint.stores.memory import MemoryStore as MemoryStore
    from checkpoint.stores.objects import ObjectStore as ObjectStore
    from checkpoint.stores.postgres import PostgresStore as PostgresStore
    from checkpoint.stores.server import ServerStore as ServerStore
    from checkpoint.stores.sqlite import SQLiteStore as SQLiteStore
    from checkpoint.stores.truto import TrutoStore as TrutoStore
    from checkpoint.streams.incremental import Incremental as Incremental
    from checkpoint.streams.spellings import CursorFormat as CursorFormat
    from checkpoint.streams.windows import Window as Window

# The module of each name. It is imported when the name is first used.
_HOMES = {
    "AsyncCheckpointer": "checkpoint.run.aio",
    "Checkpointer": "checkpoint.run.checkpointer",
    "Commit": "checkpoint.run.checkpointer",
    "CheckpointError": "checkpoint.errors",
    "CommitUnknown": "checkpoint.errors",
    "Conflict": "checkpoint.errors",
    "CorruptState": "checkpoint.errors",
    "CursorExpired": "checkpoint.errors",
    "CursorRegressed": "checkpoint.errors",
    "CursorStuck": "checkpoint.errors",
    "LeaseLost": "checkpoint.errors",
    "Locked": "checkpoint.errors",
    "PartialCommit": "checkpoint.errors",
    "StateMissing": "checkpoint.errors",
    "StoreError": "checkpoint.errors",
    "StoreUnavailable": "checkpoint.errors",
    "Unauthorized": "checkpoint.errors",
    "ValueTooLarge": "checkpoint.errors",
    "Group": "checkpoint.run.groups",
    "Run": "checkpoint.run.runs",
    "CursorFormat": "checkpoint.streams.spellings",
    "Incremental": "checkpoint.streams.incremental",
    "open_store": "checkpoint.stores",
    "Change": "checkpoint.entries",
    "Entry": "checkpoint.entries",
    "Receipt": "checkpoint.entries",
    "Store": "checkpoint.stores.base",
    "MemoryStore": "checkpoint.stores.memory",
    "ObjectStore": "checkpoint.stores.objects",
    "PostgresStore": "checkpoint.stores.postgres",
    "SQLiteStore": "checkpoint.stores.sqlite",
    "ServerStore": "checkpoint.stores.server",
    "TrutoStore": "checkpoint.stores.truto",
    "Window": "checkpoint.streams.windows",
}

__all__ = [
    "AsyncCheckpointer",
    "Change",
    "CheckpointError",
    "Checkpointer",
    "Commit",
    "CommitUnknown",
    "Conflict",
    "CorruptState",
    "CursorExpired",
    "CursorFormat",
    "CursorRegressed",
    "CursorStuck",
    "Entry",
    "Group",
    "Incremental",
    "LeaseLost",
    "Locked",
    "MemoryStore",
    "ObjectStore",
    "PartialCommit",
    "PostgresStore",
    "Receipt",
    "Run",
    "SQLiteStore",
    "ServerStore",
    "StateMissing",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "TrutoStore",
    "Unauthorized",
    "ValueTooLarge",
    "Window",
    "open_store",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(import_module(_HOMES[name]), name)
    except ImportError:
        if name != "PostgresStore":  # the only name whose module cannot be imported without its extra
            raise
        found = _without_its_extra(name)
    globals()[name] = found
    return found


def _without_its_extra(name: str) -> type:
    """Return a stand-in for a class whose extra is missing: listing all names must not fail, only using the class."""

    def new(_: type, *args: object, **options: object) -> object:
        return getattr(import_module(_HOMES[name]), name)(*args, **options)  # raises, and says what to install

    return type(name, (), {"__new__": new, "__doc__": "A store whose extra is not installed.", "__module__": __name__})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
