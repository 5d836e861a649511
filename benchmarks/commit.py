"""A durable local commit of one changed key, against raw sqlite3 doing one upsert in a transaction.

Both write to a file in the same folder, with the same journal mode and the same syncing.
"""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from harness import OURS, Case, compare, fail, options, report

from checkpoint import Checkpointer
from checkpoint.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable

PRAGMAS = ("journal_mode", "synchronous", "fullfsync")


def main() -> None:
    """Measure one key, and one key among a thousand."""
    quick = options(__doc__).quick
    cases = [commits(keys, rounds=20 if quick else 2000) for keys in (1, 1000)]
    report("commit", "ours / raw: 1 is as fast as raw SQLite", cases, ["checkpoint-store"], write=not quick)


def commits(keys: int, rounds: int) -> Case:
    """Measure in a namespace of so many keys."""
    # Beside this file: the system's folder for temporary files may be in memory, where syncing costs nothing.
    with (
        tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder,
        closing(SQLiteStore(Path(folder) / "ours.db")) as store,
        closing(sqlite3.connect(Path(folder) / "raw.db", isolation_level=None)) as raw,
    ):
        with Checkpointer("sync_job", store) as cp:
            cp.update({f"stream_{number}": {"id": 0} for number in range(keys)})
        with Checkpointer("sync_job", store) as cp:
            name = f"1 key of {keys:,}, {settings(store, raw)}"
            contestants = {OURS: ours(cp), "raw sqlite3": upserts(raw, keys)}
            return compare(name, rounds, contestants, lambda ours, peer: ours / peer)


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


def ours(cp: Checkpointer) -> Callable[[], float]:
    """Return a round of ours."""
    numbers = itertools.count(1)

    def run() -> float:
        number = next(numbers)
        started = time.perf_counter()
        cp["stream_0"] = {"id": number, "updated_at": "2024-05-01T10:00:00Z"}
        commit = cp.commit()
        seconds = time.perf_counter() - started
        if commit.keys != ("stream_0",):
            fail(f"not the commit that was meant: {commit}")
        return seconds

    return run


def upserts(raw: sqlite3.Connection, keys: int) -> Callable[[], float]:
    """Return a round of raw SQLite's."""
    upsert = "INSERT INTO state VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
    raw.execute("CREATE TABLE state (state_key TEXT, key TEXT, value TEXT, PRIMARY KEY (state_key, key)) WITHOUT ROWID")
    raw.execute("BEGIN")
    raw.executemany(upsert, [("sync_job", f"stream_{number}", '{"id": 0}') for number in range(keys)])
    raw.execute("COMMIT")
    numbers = itertools.count(1)

    def run() -> float:
        value = f'{{"id": {next(numbers)}, "updated_at": "2024-05-01T10:00:00Z"}}'
        started = time.perf_counter()
        raw.execute("BEGIN IMMEDIATE")
        raw.execute(upsert, ("sync_job", "stream_0", value))
        raw.execute("COMMIT")
        return time.perf_counter() - started

    return run


if __name__ == "__main__":
    main()
