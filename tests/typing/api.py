"""The public API as a typed job uses it; read by the type checkers, never run."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterable, AsyncIterator, Iterator, KeysView, Mapping, MutableMapping, Sequence
from datetime import timedelta
from signal import SIGTERM
from typing import Any

from typing_extensions import assert_type

import checkpoint
from checkpoint import (
    AsyncCheckpointer,
    Checkpointer,
    Commit,
    Conflict,
    Entry,
    Incremental,
    PartialCommit,
    Receipt,
    Store,
    Window,
)
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.sqlite import SQLiteStore
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import ApiServer


def run_of_one_job() -> None:
    with Checkpointer("ns") as cp:
        assert_type(cp, Checkpointer)
        assert_type(cp["files"], dict[str, Any])
        assert_type(cp.get("files"), dict[str, Any] | None)
        assert_type(cp.get("files", {}), dict[str, Any])
        assert_type(cp.setdefault("files", {"page": 1}), dict[str, Any])
        assert_type(cp.pop("files"), dict[str, Any])
        assert_type(list(cp), list[str])
        assert_type(cp.keys(), KeysView[str])
        assert_type(cp.raw, MutableMapping[str, str])
        assert_type(cp.entry("files"), Entry | None)
        assert_type(cp.changed, set[str])
        assert_type(cp.stopping, bool)
        assert_type(cp.state_key, str)
        cp["files"] = {"updated_at": "2024-05-01T10:00:00Z", "seen": [1, 2.5, None, {"deep": True}]}
        assert_type(cp.commit(), Commit)
        assert_type(cp.commit("files", "users"), Commit)
        cp.commit_soon("files")
        cp.flush()
        cp.discard()
        cp.reload()


def run_with_every_argument(store: Store, url: str | None) -> None:
    Checkpointer("ns", url)
    Checkpointer(
        "ns",
        store,
        on_conflict="overwrite",
        missing="raise",
        min_interval=0.5,
        stop_signals=(SIGTERM,),
        run_id="6f0f9c3e",
    )
    Checkpointer("ns", on_conflict="ignore")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Checkpointer("ns", missing="ignore")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Checkpointer("ns", None, "overwrite")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    Checkpointer(None)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def what_is_no_cursor(cp: Checkpointer) -> None:
    cp["files"] = "2024-05-01"  # type: ignore[assignment] # pyright: ignore[reportArgumentType]
    cp[1] = {}  # type: ignore[index] # pyright: ignore[reportArgumentType]
    cp.raw["files"] = {}  # type: ignore[assignment] # pyright: ignore[reportArgumentType]


def streams(cp: Checkpointer, row: dict[str, int], batches: list[list[dict[str, int]]]) -> None:
    inc: Incremental[dict[str, int]] = cp.incremental("files", "at", primary_key=["id", "org"], lookback=timedelta(1))
    assert_type(inc.pages(batches), Iterator[list[dict[str, int]]])
    assert_type(inc.filter(batches[0]), list[dict[str, int]])
    assert_type(inc.filter(iter(batches[0])), list[dict[str, int]])
    assert_type(inc.track(batches[0]), Iterator[dict[str, int]])
    assert_type(inc.observe(row), bool)
    assert_type(inc.key, str)
    assert_type(inc.live, bool)
    assert_type(inc.start_value, Any)
    assert_type(inc.stats.delivered, int)
    assert_type(inc.finish(), None)
    inc.unfinished()
    inc.rewind(1, "reason")
    inc.reset(reason="reason")
    with inc as entered:
        assert_type(entered, Incremental[dict[str, int]])
    assert_type(cp.commit(inc), Commit)
    assert_type(cp.incremental("users", lambda user: user["at"]), Incremental[Any])
    inc.observe(5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    inc.rewind(by=1, reason="reason")
    inc.rewind(1)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    cp.incremental("files", "at", row_order="up")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    cp.incremental("files", "at", None)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def windows(inc: Incremental[dict[str, int]], row: dict[str, int], batches: list[list[dict[str, int]]]) -> None:
    for window in inc.windows(timedelta(days=1), until="2024-05-01"):
        assert_type(window, Window[dict[str, int]])
        with window as entered:
            assert_type(entered, Window[dict[str, int]])
            assert_type(window.pages(batches), Iterator[list[dict[str, int]]])
            assert_type(window.filter(batches[0]), list[dict[str, int]])
            assert_type(window.track(batches[0]), Iterator[dict[str, int]])
            assert_type(window.observe(row), bool)
            assert_type(window.start, Any)
    inc.windows("month")
    inc.windows("week")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def streams_in_asyncio(
    inc: Incremental[str], window: Window[str], pages: AsyncIterable[list[str]], records: AsyncIterable[str]
) -> None:
    assert_type(inc.pages(pages), AsyncIterator[list[str]])
    assert_type(inc.track(records), AsyncIterator[str])
    assert_type(window.pages(pages), AsyncIterator[list[str]])
    assert_type(window.track(records), AsyncIterator[str])
    async for record in inc.track(records):
        assert_type(record, str)


def streams_of_tables(inc: Incremental[Any], table: OwnTable) -> None:
    assert_type(inc.filter(table), OwnTable)
    assert_type(inc.pages([table]), Iterator[OwnTable])


class OwnTable:
    """What a stream takes for a pyarrow table."""

    num_rows: Any
    schema: Any
    to_pylist: Any


async def run_in_asyncio() -> None:
    async with AsyncCheckpointer("ns", MemoryStore(), stop_signals=[SIGTERM]) as cp:
        assert_type(cp, AsyncCheckpointer)
        assert_type(cp["files"], dict[str, Any])
        assert_type(cp.raw, MutableMapping[str, str])
        assert_type(cp.entry("files"), Entry | None)
        assert_type(await cp.commit("files"), Commit)
        cp.commit_soon()
        await cp.flush()
        cp.discard()
        await cp.reload()
        assert_type(cp.incremental("users", "at"), Incremental[Any])


def what_a_commit_says(commit: Commit) -> None:
    assert_type(bool(commit), bool)
    assert_type(commit.keys, tuple[str, ...])
    assert_type(commit.requests, int)
    assert_type(commit.retries, int)
    assert_type(commit.seconds, float)
    commit.requests = 1  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]


def what_an_entry_says(entry: Entry) -> None:
    assert_type(entry.key, str)
    assert_type(entry.value, str)
    assert_type(entry.created_at, str | None)
    assert_type(entry.updated_at, str | None)
    assert_type(entry.sync_job_run_id, str | None)
    assert_type(entry.version, int | None)


def every_store_is_one() -> Sequence[Store]:
    with ApiServer(latency=0.05) as server:
        truto = TrutoStore(server.url, server.token, timeout=1.0, deadline=5.0, concurrency=4, rate=(10, 1.0))
    assert_type(checkpoint.open_store(), Store)
    SQLiteStore("state.db", keep=50, keep_days=365, deadline=5.0)
    SQLiteStore(connection=sqlite3.connect("sink.db"), keep=0)
    SQLiteStore("state.db", keep="1 day")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    return [MemoryStore(), SQLiteStore("state.db"), truto, checkpoint.open_store("memory://x"), OwnStore()]


def what_a_store_does(store: Store) -> None:
    entries = store.load("ns")
    assert_type(entries, dict[str, Entry])
    receipt = store.commit(
        "ns", {"files": "e30=", "users": None}, {"files": entries["files"], "users": None}, run_id="r"
    )
    assert_type(receipt, Receipt)
    assert_type(receipt.entries, Mapping[str, Entry])
    assert_type(store.close(), None)


class OwnStore:
    """A store of somebody else: no base class."""

    def load(self, state_key: str) -> dict[str, Entry]:
        return {}

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
    ) -> Receipt:
        return Receipt()

    def close(self) -> None: ...


def what_errors_carry(cp: Checkpointer) -> Iterator[str]:
    try:
        cp.commit()
    except Conflict as conflict:
        assert_type(conflict.key, str)
        assert_type(conflict.expected, Entry | None)
        assert_type(conflict.found, Entry | None)
    except PartialCommit as partial:
        assert_type(partial.pending, tuple[str, ...])
        assert_type(partial.committed, Mapping[str, Entry | None])
        assert_type(partial.errors, dict[str, checkpoint.CheckpointError])
    except checkpoint.CommitUnknown as unknown:
        yield from unknown.keys
    except checkpoint.ValueTooLarge as large:
        assert_type(large.size, int)
    except checkpoint.CheckpointError as error:
        assert_type(error.committed, Mapping[str, Entry | None])
