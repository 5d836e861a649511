"""A durable local commit of one changed key, beside raw sqlite3, other state stores and the disk itself.

All write to files in the same folder. Those that do not wait for the disk say so in their name.
"""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import OURS, Case, compare, fail, main, peer

from checkpoint import Checkpointer
from checkpoint.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[[], float]

PRAGMAS = ("journal_mode", "synchronous", "fullfsync")
RAW = "raw sqlite3"
AT = "2024-05-01T10:00:00Z"
PACKAGES = ("langgraph-checkpoint-sqlite", "meltano", "diskcache")


def cases(quick: bool) -> list[Case]:
    """Measure one key, and one key among a thousand."""
    return [commits(keys, rounds=100 if quick else 1500) for keys in (1, 1000)]


def commits(keys: int, rounds: int) -> Case:
    """Measure in a namespace of so many keys."""
    with ExitStack() as stack:
        # Beside this file: the system's folder for temporary files may be in memory, where syncing costs nothing.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path(__file__).parent)))
        store = stack.enter_context(closing(SQLiteStore(folder / "ours.db")))
        raw = stack.enter_context(closing(sqlite3.connect(folder / "raw.db", isolation_level=None)))
        with Checkpointer("sync_job", store) as cp:
            cp.update({f"stream_{number}": {"id": 0} for number in range(keys)})
        cp = stack.enter_context(Checkpointer("sync_job", store))
        mode = settings(store, raw)
        contestants = {OURS: ours(cp), RAW: upserts(raw, keys), "fdatasync (floor)": synced(stack, folder)}
        if keys == 1:
            contestants |= peers(stack, folder)
        goal = (f"≤ 1.3 × {RAW}", lambda figures: figures[RAW].ratio >= 1 / 1.3)
        return compare(f"1 key of {keys:,}, {mode}", rounds, contestants, goal)


def settings(store: SQLiteStore, raw: sqlite3.Connection) -> str:
    """Give the raw connection the settings of the store's own; return the journal mode."""
    own = store._connection  # noqa: SLF001 - they are known nowhere else
    if own is None:
        fail("the store has no connection")
    for pragma in PRAGMAS:
        (value,) = own.execute(f"PRAGMA {pragma}").fetchone()
        raw.execute(f"PRAGMA {pragma} = {value}")
        if raw.execute(f"PRAGMA {pragma}").fetchone() != (value,):
            fail(f"{pragma} is not {value} on both sides")
    return str(raw.execute("PRAGMA journal_mode").fetchone()[0])


def timed(write: Callable[[int], Any]) -> Run:
    """Return a round of what writes one cursor with this number."""
    numbers = itertools.count(1)

    def run() -> float:
        number = next(numbers)
        started = time.perf_counter()
        write(number)
        return time.perf_counter() - started

    return run


def ours(cp: Checkpointer) -> Run:
    def write(number: int) -> None:
        cp["stream_0"] = {"id": number, "updated_at": AT}
        commit = cp.commit()
        if commit.keys != ("stream_0",):
            fail(f"not the commit that was meant: {commit}")

    return timed(write)


def upserts(raw: sqlite3.Connection, keys: int) -> Run:
    upsert = "INSERT INTO state VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
    raw.execute("CREATE TABLE state (state_key TEXT, key TEXT, value TEXT, PRIMARY KEY (state_key, key)) WITHOUT ROWID")
    raw.execute("BEGIN")
    raw.executemany(upsert, [("sync_job", f"stream_{number}", '{"id": 0}') for number in range(keys)])
    raw.execute("COMMIT")

    def write(number: int) -> None:
        raw.execute("BEGIN IMMEDIATE")
        raw.execute(upsert, ("sync_job", "stream_0", f'{{"id": {number}, "updated_at": "{AT}"}}'))
        raw.execute("COMMIT")

    return timed(write)


def synced(stack: ExitStack, folder: Path) -> Run:
    """Return the disk's floor: 60 bytes to the end of an open file, and one sync."""
    file = stack.enter_context((folder / "floor").open("wb", buffering=0))

    def write(number: int) -> None:
        file.write(b'{"id": %20d, "updated_at": "2024-05-01T10:00:00Z"}' % number)
        getattr(os, "fdatasync", os.fsync)(file.fileno())

    return timed(write)


def peers(stack: ExitStack, folder: Path) -> dict[str, Run]:
    """Return the peers that are installed."""
    found: dict[str, Run] = {}
    with peer("langgraph-checkpoint-sqlite"):
        found["LangGraph SqliteSaver (WAL)"] = langgraph(stack, folder)
    with peer("meltano"):
        found["Meltano's files (not synced)"] = meltano(folder)
    with peer("diskcache"):
        import diskcache  # each peer may be missing

        cache = stack.enter_context(closing(diskcache.Cache(folder / "diskcache")))
        found["diskcache (not synced)"] = timed(lambda number: cache.set("stream_0", {"id": number, "updated_at": AT}))
    return found


def langgraph(stack: ExitStack, folder: Path) -> Run:
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.sqlite import SqliteSaver

    saver = stack.enter_context(SqliteSaver.from_conn_string(str(folder / "langgraph.db")))
    config: Any = {"configurable": {"thread_id": "sync_job", "checkpoint_ns": ""}}

    def write(number: int) -> None:
        state: Any = {**empty_checkpoint(), "channel_values": {"stream_0": {"id": number, "updated_at": AT}}}
        saver.put(config, state, {}, {})

    return timed(write)


def meltano(folder: Path) -> Run:
    """Return what its command does after a run: take its lock, and write the state."""
    import structlog  # one of Meltano's own
    from meltano.core.state_store import filesystem
    from meltano.core.state_store.base import MeltanoState

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    path = folder / "meltano"
    manager = filesystem.LocalFilesystemStateStoreManager(uri=f"file://{path}", lock_timeout_seconds=10)

    def write(number: int) -> None:
        bookmarks = {"stream_0": {"id": number, "updated_at": AT}}
        manager.update(MeltanoState("sync_job", completed_state={"singer_state": {"bookmarks": bookmarks}}))

    return timed(write)


if __name__ == "__main__":
    main(__file__, __doc__, cases, PACKAGES)
