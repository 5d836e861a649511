"""Exclusive runs: one at a time per namespace, and a late one commits nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
from freezegun import freeze_time

from checkpoint import (
    AsyncCheckpointer,
    Checkpointer,
    Commit,
    Conflict,
    CorruptState,
    LeaseLost,
    Locked,
    MemoryStore,
    SQLiteStore,
    StateMissing,
    Store,
    StoreUnavailable,
    codec,
)
from checkpoint.run import lease

if TYPE_CHECKING:
    from pathlib import Path

A, B = {"at": "a"}, {"at": "b"}


@pytest.fixture
def store(every_store):
    return every_store


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A lease of less than a second, so that the tests wait for none that takes fifteen."""
    for name, seconds in {"TIME": 0.6, "BEAT": 0.1, "LOOK": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)


def held(store: Store) -> lease.LeaseState:
    return lease.lease_state("run", store.load("run").get(lease.KEY))


def fenced(store: Store) -> bool:
    return store.commit("versions", {"a": "1"}).entries["a"].version is not None


def abandon(store: Store, monkeypatch: pytest.MonkeyPatch) -> Checkpointer:
    """Return a run that has the lease and does not renew it, as one that was stopped."""
    with monkeypatch.context() as patch:
        patch.setattr(lease, "BEAT", 3600)
        cp = Checkpointer("run", store, exclusive=True, run_id="stopped")
        cp.__enter__()
    return cp


def test_the_lease_is_one_reserved_entry(store):
    with freeze_time("2024-05-01T10:00:00Z"), Checkpointer("run", store, exclusive=True, run_id="r-1") as cp:
        now = held(store)
        assert now.owner is not None
        assert re.search(rf", process {os.getpid()}, run r-1, [0-9a-f]{{8}}$", now.owner)
        assert (now.since, now.epoch) == ("2024-05-01T10:00:00.000Z", 1)
        assert dict(cp) == {}
        cp["a"] = A
        cp.commit()
    assert held(store)[:4] == (None, None, 1, held(store).beat)
    assert set(store.load("run")) == {lease.KEY, "a"}


def test_the_next_run_enters_at_once_with_the_next_epoch(store):
    for epoch in (1, 2, 3):
        with Checkpointer("run", store, exclusive=True):
            assert held(store).epoch == epoch


def test_a_second_run_is_locked_and_told_by_whom_since_when(store):
    with Checkpointer("run", store, exclusive=True, run_id="first"):
        now = held(store)
        with pytest.raises(Locked) as caught, Checkpointer("run", store, exclusive=True, run_id="second"):
            pass
        assert (caught.value.state_key, caught.value.owner, caught.value.since) == ("run", now.owner, now.since)
        assert held(store)[:3] == now[:3]


def test_a_run_that_waits_for_a_lease_says_so_once(store, monkeypatch, caplog):
    abandoned = abandon(store, monkeypatch)
    owner = held(store).owner
    with caplog.at_level(logging.INFO, "checkpoint"):
        caplog.clear()
        with Checkpointer("run", store, exclusive=True):
            pass
    assert [message for message in caplog.messages if "waiting" in message] == [
        f"waiting for the lease of 'run', held by {owner}"
    ]
    with suppress(LeaseLost):
        abandoned.__exit__(None, None, None)


@pytest.mark.parametrize("seconds", [0.5, 15.0, 120.0])
def test_it_is_taken_when_its_time_is_over_and_soon(monkeypatch, seconds):
    """Not before its time, and at the latest 5 s after it; the clock is moved by whoever waits for it."""
    moments = [0.0]
    store = MemoryStore()
    monkeypatch.setattr(lease, "LOOK", 1.0)
    monkeypatch.setattr(lease, "monotonic", lambda: moments[-1])
    silent = lease.LeaseState("somebody who was stopped", "2024-05-01T10:00:00Z", 1, 0, seconds)
    store.commit("run", {lease.KEY: silent.value()})
    with monkeypatch.context() as patch:
        patch.setattr(lease.time, "sleep", lambda pause: moments.append(moments[-1] + pause))
        next_one = lease.Lease(store, "run", "next")
        next_one.acquire()
    next_one.release()
    assert seconds <= moments[-1] <= seconds + 5


def test_other_namespaces_and_runs_without_it_are_not_held_back(store):
    with Checkpointer("run", store, exclusive=True), Checkpointer("other", store, exclusive=True):
        with Checkpointer("run", store) as cp:
            cp["a"] = A
        assert "a" in store.load("run")


def test_it_is_renewed_while_the_run_goes_on(store):
    with Checkpointer("run", store, exclusive=True):
        beat = held(store).beat
        for _ in range(1_000):
            if held(store).beat > beat + 2:
                break
            threading.Event().wait(0.02)
        assert held(store).beat > beat + 2
        assert held(store).epoch == 1


def test_a_run_silent_for_its_time_is_replaced(store, monkeypatch):
    late = abandon(store, monkeypatch)
    late["a"] = A
    with Checkpointer("run", store, exclusive=True) as cp:
        assert held(store).epoch == 2
        if fenced(store):
            with pytest.raises(LeaseLost) as caught:
                late.commit()
            assert caught.value.state_key == "run"
            assert "a" not in store.load("run")
            with pytest.raises(LeaseLost):
                late.flush()
        cp["a"] = B
    with pytest.raises(LeaseLost if fenced(store) else Conflict):  # which the HTTP API can detect only
        late.__exit__(None, None, None)
    assert held(store)[:3] == (None, None, 2)
    assert codec.decode(store.load("run")["a"].value) == B


def test_a_run_whose_lease_was_taken_commits_nothing_over_http(api, truto, monkeypatch, caplog):
    with caplog.at_level(logging.ERROR, "checkpoint"):
        cp = Checkpointer("run", truto, exclusive=True)
        cp.__enter__()
        taken = lease.LeaseState("somebody else", "2024-05-01T10:00:00Z", 7, 0)
        truto.commit("run", {lease.KEY: taken.value()})
        while not caplog.messages:
            threading.Event().wait(0.01)
        cp["a"] = A
        with pytest.raises(LeaseLost):
            cp.commit()
        with pytest.raises(LeaseLost):
            cp.__exit__(None, None, None)
    assert held(truto) == taken
    assert "a" not in truto.load("run")
    assert "'run': another run took the lease: no more commits" in caplog.messages


def test_commits_and_renewals_do_not_get_into_each_others_way(store, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.001)
    with Checkpointer("run", store, exclusive=True) as cp:
        for number in range(100):
            cp["a"] = {"at": number}
            assert cp.commit().keys == ("a",)
        assert held(store).epoch == 1
    assert codec.decode(store.load("run")["a"].value) == {"at": 99}


def test_of_two_runs_that_take_it_at_once_one_gets_it():
    store, results = MemoryStore(), []
    barrier = threading.Barrier(4)

    def run():
        barrier.wait()
        try:
            with Checkpointer("run", store, exclusive=True):
                barrier.wait()
                results.append("in")
        except Locked:
            results.append("locked")
            barrier.wait()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["in", "locked", "locked", "locked"]


def test_two_runs_of_one_id_do_not_share_a_lease():
    looked, decided, results = threading.Barrier(2), threading.Barrier(2), []

    class Together(MemoryStore):
        def load(self, state_key):
            found = super().load(state_key)
            if not found:
                looked.wait(60)
            return found

    store = Together()

    def run():
        try:
            with Checkpointer("run", store, exclusive=True, run_id="nightly"):
                decided.wait(60)
                results.append("in")
        except Locked:
            decided.wait(60)
            results.append("locked")

    threads = [threading.Thread(target=run) for _ in range(2)]
    with freeze_time("2024-05-01T10:00:00Z"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == ["in", "locked"]


def test_a_run_that_fails_to_enter_lets_go(store):
    with pytest.raises(StateMissing), Checkpointer("run", store, exclusive=True, missing="raise"):
        pass
    assert held(store).owner is None


def test_a_run_that_fails_lets_go(store):
    with pytest.raises(ZeroDivisionError), Checkpointer("run", store, exclusive=True):
        1 / 0
    assert held(store).owner is None


def test_with_overwrite_the_lease_still_fences(monkeypatch):
    store = MemoryStore()
    with monkeypatch.context() as patch:
        patch.setattr(lease, "BEAT", 3600)
        late = Checkpointer("run", store, exclusive=True, on_conflict="overwrite")
        late.__enter__()
    store.commit("run", {"a": codec.encode(B)})
    late["a"] = A
    assert late.commit().keys == ("a",)
    lease.unlock(store, "run")
    late["a"] = B
    with pytest.raises(LeaseLost):
        late.commit()
    late.discard()
    late.__exit__(None, None, None)


def test_a_lease_that_is_none_is_corrupt(store):
    store.commit("run", {lease.KEY: "bare text"})
    with pytest.raises(CorruptState) as caught, Checkpointer("run", store, exclusive=True):
        pass
    assert (caught.value.key, caught.value.value) == (lease.KEY, "bare text")
    with pytest.raises(CorruptState):
        lease.unlock(store, "run")
    with Checkpointer("run", store, exclusive=True):
        assert held(store).epoch == 2


def test_unlock_says_who_held_it_and_lets_the_next_run_in(store, monkeypatch):
    assert lease.unlock(store, "run")[:4] == (None, None, 0, 0)
    assert store.load("run") == {}
    late = abandon(store, monkeypatch)
    before = held(store)
    assert lease.unlock(store, "run") == before
    with Checkpointer("run", store, exclusive=True):
        assert held(store).epoch == 3
    late.__exit__(None, None, None)


def test_fault_47_the_clock_does_not_matter(store, monkeypatch):
    late = abandon(store, monkeypatch)
    for moment in ("1999-01-01", "2050-01-01"):
        with freeze_time(moment), Checkpointer("run", store, exclusive=True) as cp:
            cp["a"] = {"at": moment}
            assert cp.commit().keys == ("a",)
    late.__exit__(ValueError, ValueError(), None)


def test_a_store_that_fails_for_a_moment_costs_no_lease(api, truto, caplog):
    from checkpoint.testing import Answer

    with caplog.at_level(logging.WARNING, "checkpoint"), Checkpointer("run", truto, exclusive=True) as cp:
        api.script(Answer(422), method="PATCH", match=lambda call: call.key == lease.KEY)
        while not any("could not be renewed" in message for message in caplog.messages):
            threading.Event().wait(0.01)
        cp["a"] = A
        assert cp.commit().keys == ("a",)


def test_a_forked_child_has_no_lease(tmp_path):
    store = SQLiteStore(tmp_path / "state.db")
    with Checkpointer("run", store, exclusive=True) as cp:
        cp["a"] = A
        pid = os.fork()
        if pid == 0:
            try:
                cp.commit()
            except LeaseLost:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert cp.commit().keys == ("a",)
    assert held(store).owner is None
    store.close()


def test_a_child_forked_amid_a_renewal_can_leave(tmp_path):
    with closing(SQLiteStore(tmp_path / "state.db")) as store, Checkpointer("run", store, exclusive=True) as cp:
        with cp._layers.claims.lock, cp._commits.flush.lock:
            pid = os.fork()
            if pid == 0:  # here the locks are held by nobody who will let go of them, as where a thread held them
                signal.alarm(20)
                threading.Thread(target=lambda: (cp.__exit__(None, None, None), os._exit(7))).start()
                signal.pause()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert held(store).owner is not None


def test_it_works_with_asyncio(store):
    async def run():
        async with AsyncCheckpointer("run", store, exclusive=True) as cp:
            cp["a"] = A
            assert (await cp.commit()).keys == ("a",)
            assert held(store).owner is not None
            with pytest.raises(Locked):
                async with AsyncCheckpointer("run", store, exclusive=True):
                    pass

    asyncio.run(run())
    assert held(store).owner is None


RUN = """
import sys
from checkpoint import Checkpointer, LeaseLost
from checkpoint.run import lease
lease.TIME, lease.BEAT, lease.LOOK = 0.6, 0.1, 0.05
with Checkpointer("run", sys.argv[1], exclusive=True) as cp:
    cp["a"] = {"by": "the stopped one"}
    print("in", flush=True)
    sys.stdin.readline()
    try:
        print(cp.commit(), flush=True)
    except LeaseLost as error:
        print(type(error).__name__, flush=True)
        cp.discard()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_fault_48_a_run_stopped_past_its_lease_commits_nothing(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/state.db"
    with subprocess.Popen(
        [sys.executable, "-c", RUN, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stdout.readline() == "in\n"
        run.send_signal(signal.SIGSTOP)
        with Checkpointer("run", url, exclusive=True) as cp:
            cp["a"] = B
            assert cp.commit().keys == ("a",)
            run.send_signal(signal.SIGCONT)
            run.stdin.write("go\n")
            run.stdin.flush()
            assert run.stdout.readline() == "LeaseLost\n"
            assert run.wait(60) == 0
            assert cp.commit() == Commit()
    with Checkpointer("run", url) as cp:
        assert dict(cp) == {"a": B}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_fault_48_after_a_holder_was_killed_the_next_run_gets_in(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/state.db"
    with subprocess.Popen(
        [sys.executable, "-c", RUN, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "in\n"
        run.kill()
        run.wait(60)
    with Checkpointer("run", url, exclusive=True) as cp:
        assert dict(cp) == {}


def test_a_store_that_cannot_be_reached_is_no_lease():
    from checkpoint import TrutoStore

    store = TrutoStore("http://127.0.0.1:9", "token", timeout=1, deadline=1)
    with pytest.raises(StoreUnavailable), Checkpointer("run", store, exclusive=True):
        pass
    store.close()


class Lossy(MemoryStore):
    """Writes, and says that it did not."""

    lose = False

    def commit(self, *args, **kwargs):
        receipt = super().commit(*args, **kwargs)
        if self.lose:
            self.lose = False
            raise StoreUnavailable("the answer was lost")
        return receipt


def test_a_lease_whose_last_renewal_was_not_answered_is_released(caplog):
    store = Lossy()
    with caplog.at_level(logging.WARNING, "checkpoint"), Checkpointer("run", store, exclusive=True):
        store.lose = True
        while not caplog.messages:
            threading.Event().wait(0.01)
    assert held(store).owner is None


def test_leaving_lets_go_of_everything_whatever_the_store_raises(monkeypatch):
    closed = []
    store = Lossy()
    monkeypatch.setattr("checkpoint.run.block.open_store", lambda _url: store)
    monkeypatch.setattr(store, "close", lambda: closed.append(store))
    with pytest.raises(OSError, match="gone"), Checkpointer("run", "memory://any", exclusive=True) as cp:

        def gone(*_args, **_kwargs):
            raise OSError("gone")

        monkeypatch.setattr(cp._commits.flush.lease, "_write", gone)
    assert closed == [store]


def test_with_asyncio_leaving_does_not_hold_up_the_loop():
    store, loops = MemoryStore(), []
    release = lease.Lease.release

    async def run():
        async with AsyncCheckpointer("run", store, exclusive=True):
            pass

    def noted(self):
        loops.append(threading.current_thread() is threading.main_thread())
        release(self)

    lease.Lease.release = noted
    try:
        asyncio.run(run())
    finally:
        lease.Lease.release = release
    assert loops == [False]
    assert held(store).owner is None


class RenewalsStore(MemoryStore):
    """Tells when a lease was renewed twice."""

    def __init__(self):
        super().__init__()
        self.renewed = threading.Event()

    def commit(self, state_key, changes, *args, **kwargs):
        entry = changes.get(lease.KEY)
        if entry is not None and codec.decode(entry)["beat"] == 2:
            self.renewed.set()
        return super().commit(state_key, changes, *args, **kwargs)


def test_a_lease_of_given_seconds_is_renewed_in_a_third_of_them():
    """Twice within its time: renewed but once, it could be taken from a run that is alive."""
    store = RenewalsStore()
    with Checkpointer("run", store, exclusive=6):
        assert store.renewed.wait(5)
