"""The fault matrix: processes and time, where no store's own tests have them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from freezegun import freeze_time

from checkpoint import AsyncCheckpointer, Checkpointer, MemoryStore, SQLiteStore, StoreError, TrutoStore, codec
from checkpoint.testing import Answer, ApiServer, Hang

if TYPE_CHECKING:
    from pathlib import Path

A, B = {"at": "a"}, {"at": "b"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

JOB = """
import os, signal, sqlite3, sys
from checkpoint import Checkpointer

url, sink, die_after = sys.argv[1], sqlite3.connect(sys.argv[2]), int(sys.argv[3])
sink.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER)")
source = [{"id": n, "at": n // 3} for n in range(30)]
with Checkpointer("run", url) as cp:
    stream = cp.incremental("s", "at", initial_value=0, row_order="asc", primary_key="id")
    rows = [row for row in source if row["at"] >= stream.start_value]
    for page in stream.pages(rows[first : first + 7] for first in range(0, len(rows), 7)):
        with sink:
            sink.executemany("INSERT INTO rows VALUES (:id)", page)
        die_after -= 1
        if die_after == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        cp.commit()
"""


@pytest.mark.parametrize("pages", [1, 2, 4])
def test_fault_38_killed_before_our_commit_rows_come_again(pages: int, tmp_path: Path):
    job = [sys.executable, "-c", JOB, f"sqlite:///{tmp_path}/state.db", str(tmp_path / "sink.db")]
    killed = subprocess.run([*job, str(pages)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([*job, "0"], check=True, timeout=60)
    with closing(sqlite3.connect(tmp_path / "sink.db")) as sink:
        found = dict(sink.execute("SELECT id, count(*) FROM rows GROUP BY id").fetchall())
    first = (pages - 1) * 7
    again = range(first, min(first + 7, 30))
    assert found == {n: 2 if n in again else 1 for n in range(30)}


# 40: the disk; what SQLite says of it, a read-only folder and a missing home are in test_sqlite.py


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to mount a tmpfs")
def test_fault_40_a_full_file_system_keeps_what_was_there(tmp_path: Path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        path = folder / "state.db"
        with closing(SQLiteStore(path)) as store:
            with Checkpointer("run", store) as cp:
                cp["a"] = A
                cp.commit()
                cp["a"] = {"at": "x" * 200_000}
                with pytest.raises(StoreError) as caught:
                    cp.commit()
                assert (
                    str(caught.value)
                    == f"the disk of {path} is full, and nothing was written: make room, then try again"
                )
                assert codec.decode(store.load("run")["a"].value) == A
                cp["a"] = B
                assert cp.commit().keys == ("a",)
            assert codec.decode(store.load("run")["a"].value) == B
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


UNSYNCED = """
import sys
from checkpoint import Checkpointer, StoreError

with Checkpointer("run", sys.argv[1]) as cp:
    cp["a"] = {"at": "a"}
    cp.commit()
    print("committed", flush=True)
    sys.stdin.readline()
    cp["a"] = {"at": "b"}
    try:
        cp.commit()
        print("acknowledged")
    except StoreError as error:
        print(error)
    cp.discard()
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_fault_40_a_sync_that_fails_is_no_acknowledgement(tmp_path: Path):
    path = tmp_path / "state.db"
    job = subprocess.Popen(
        [sys.executable, "-c", UNSYNCED, f"sqlite:///{path}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with job:
        assert job.stdin is not None
        assert job.stdout is not None
        assert job.stdout.readline() == "committed\n"
        tracer = subprocess.Popen(
            ["strace", "-f", "-e", "inject=fsync,fdatasync:error=EIO", "-p", str(job.pid), "-o", os.devnull],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with tracer:
            assert tracer.stderr is not None
            attached = "attached" in tracer.stderr.readline()
            said, _ = job.communicate("\n", timeout=60)
    if not attached:
        pytest.skip("tracing is not allowed here")
    assert (job.returncode, said) == (
        0,
        f"{path} could not be read or written (disk I/O error): check the disk, then try again\n",
    )
    with closing(SQLiteStore(path)) as store:
        assert codec.decode(store.load("run")["a"].value) == A


def counting(url: str, token: str | None, times: int) -> None:
    """Count up one key, trying again where another process was first."""
    code = """
import os, sys
from checkpoint import Checkpointer, Conflict, open_store
store = open_store(sys.argv[1])
for _ in range(int(sys.argv[2])):
    while True:
        try:
            with Checkpointer("run", store) as cp:
                cp["n"] = {"n": cp.get("n", {"n": 0})["n"] + 1, "by": os.getpid()}  # the same value is no conflict
            break
        except Conflict:
            pass
store.close()
"""
    environment = {**os.environ, "TRUTO_API_TOKEN": token or "none"}
    children = [subprocess.Popen([sys.executable, "-c", code, url, str(times)], env=environment) for _ in range(8)]
    assert [child.wait(120) for child in children] == [0] * 8


def test_fault_42_of_eight_processes_no_update_is_lost_in_sqlite(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/state.db"
    counting(url, None, 10)
    with Checkpointer("run", url) as cp:
        assert cp["n"]["n"] == 80


@pytest.mark.parametrize("fork_first", [True, False])
def test_fault_43_after_a_fork_both_sides_get_their_own_answers(every_store, fork_first: bool):
    store = every_store
    if isinstance(store, MemoryStore):
        pytest.skip("a store in memory is not shared by processes")
    with Checkpointer("run", store) as cp:
        if not fork_first:
            cp["before"] = A
            cp.commit()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for number in range(5):
                    cp["child"] = {"n": number}
                    cp.commit()
                os.write(writing, json.dumps(cp["child"]).encode())
            finally:
                os._exit(0)
        for number in range(5):
            cp["parent"] = {"n": number}
            cp.commit()
        os.waitpid(pid, 0)
        os.close(writing)
        assert json.loads(os.read(reading, 100)) == {"n": 4}
        os.close(reading)
    found = {key: codec.decode(entry.value) for key, entry in store.load("run").items()}
    assert found == {"child": {"n": 4}, "parent": {"n": 4}, **({} if fork_first else {"before": A})}


# 45: Ctrl-C and cancellation; during a commit and its waits, see test_truto.py, test_sqlite.py and test_postgres.py


def interrupt_when(reached: threading.Event, times: int = 1) -> threading.Thread:
    def interrupt() -> None:
        reached.wait(30)
        for _ in range(times):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_fault_45_ctrl_c_during_the_load_is_at_once():
    with ApiServer() as api:
        asked = threading.Event()
        api.script(hanging(asked), method="GET")
        store = TrutoStore(api.url, api.token, timeout=60, deadline=60)
        thread = interrupt_when(asked)
        with pytest.raises(KeyboardInterrupt), Checkpointer("run", store):
            pytest.fail("it was entered")
        thread.join()
        assert [call.method for call in api.requests] == ["GET"]
        store.close()


def hanging(asked: threading.Event):
    async def hang(exchange) -> None:
        asked.set()
        await Hang()(exchange)

    return hang


def test_fault_45_ctrl_c_in_a_retrys_sleep_ends_at_once():
    with ApiServer() as api:
        answered = threading.Event()

        async def busy(exchange) -> None:
            await Answer(503, headers={"Retry-After": "3000"})(exchange)
            answered.set()

        api.script(busy, forever=True)
        store = TrutoStore(api.url, api.token, deadline=6000)
        thread = interrupt_when(answered)
        with pytest.raises(KeyboardInterrupt), Checkpointer("run", store):
            pytest.fail("it was entered")
        thread.join()
        assert len(api.requests) == 1
        store.close()


def test_fault_45_ctrl_c_in_the_commit_at_exit_settles_it():
    with ApiServer() as api:
        store = TrutoStore(api.url, api.token)
        with pytest.raises(KeyboardInterrupt):  # noqa: SIM117 - the block's own end is what is interrupted
            with Checkpointer("run", store) as cp:
                cp["a"] = A

                async def interrupted(exchange) -> None:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                    await exchange.send(await exchange.apply())

                api.script(interrupted, method="POST")
        assert codec.decode(api.store.load("run")["a"].value) == A
        assert [call.method for call in api.requests].count("POST") == 1
        store.close()


def test_fault_45_cancelling_the_exit_settles_the_write():
    async def job(api: ApiServer, store: TrutoStore) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        async def cancelled(exchange) -> None:
            loop.call_soon_threadsafe(task.cancel)
            await exchange.send(await exchange.apply())

        async with AsyncCheckpointer("run", store) as cp:
            cp["a"] = A
            api.script(cancelled, method="POST")

    with ApiServer() as api:
        store = TrutoStore(api.url, api.token)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(job(api, store))
        assert codec.decode(api.store.load("run")["a"].value) == A
        store.close()


STOPPABLE = """
import signal, sys
from checkpoint import Checkpointer

signals = (signal.SIGTERM,) if sys.argv[2] == "asked" else ()
with Checkpointer("run", sys.argv[1], stop_signals=signals) as cp:
    cp["committed"] = {"n": 1}
    cp.commit()
    cp["finished"] = {"n": 1}
    print("ready", flush=True)
    for line in sys.stdin:
        if cp.stopping:
            break
"""


@pytest.mark.parametrize("how", ["asked", "not asked"])
def test_fault_46_sigterm_ends_the_run_as_it_was_asked_to(how: str, tmp_path: Path):
    url = f"sqlite:///{tmp_path}/state.db"
    with subprocess.Popen(
        [sys.executable, "-c", STOPPABLE, url, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.terminate()
        if how == "asked":
            run.communicate("the page in hand\n", timeout=60)
        code = run.wait(60)
    assert code == (0 if how == "asked" else -signal.SIGTERM)
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        keys = set(store.load("run")) - {"__run__"}
        assert keys == ({"committed", "finished"} if how == "asked" else {"committed"})


@pytest.mark.parametrize("jump", ["2024-04-30", "2024-05-02"])
def test_fault_47_a_clock_that_jumps_disturbs_no_deadline(jump: str):
    with ApiServer() as api, freeze_time("2024-05-01") as clock:
        store = TrutoStore(api.url, api.token, deadline=30)

        async def jumping(exchange) -> None:
            clock.move_to(jump)
            await Answer(503)(exchange)

        with Checkpointer("run", store) as cp:
            cp["a"] = A
            api.script(jumping, jumping, method="POST")
            commit = cp.commit()
            assert (commit.keys, commit.retries) == (("a",), 2)
            cp["a"] = B
            assert cp.commit().keys == ("a",)
        store.close()


@pytest.mark.parametrize("days", [-1, 1])
def test_fault_47_an_interval_ignores_the_wall_clock(days: int, monkeypatch: pytest.MonkeyPatch):
    wall = time.time
    with Checkpointer("run", MemoryStore(), min_interval=3600) as cp:
        cp["a"] = A
        assert cp.commit().keys == ("a",)
        monkeypatch.setattr(time, "time", lambda: wall() + days * 86_400)
        cp["a"] = B
        assert cp.commit().keys == ()
        assert cp.changed == {"a"}
