"""AsyncCheckpointer: the same behaviour on an event loop that never waits."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from threading import Event

import pytest

from checkpoint import AsyncCheckpointer, Commit, Conflict, CorruptState, StateMissing, StoreError
from checkpoint.codec import decode, encode
from checkpoint.entries import LEASE_KEY, RUN_KEY
from checkpoint.run.lease import lease_state
from checkpoint.run.runs import recorded
from checkpoint.stores.memory import MemoryStore
from checkpoint.testing import Hook

A, B, C = {"at": 1}, {"at": 2}, {"at": 3}


def stored(store, state_key="run"):
    return {key: decode(entry.value) for key, entry in store.load(state_key).items()}


def test_it_is_the_same_mapping_with_awaited_commits(store):
    async def job():
        async with AsyncCheckpointer("run", store) as cp:
            assert (cp.state_key, cp.stopping) == ("run", False)
            cp["a"] = A
            assert cp.changed == {"a"}
            assert (await cp.commit()).keys == ("a",)
            assert await cp.commit() == Commit()
            assert cp.entry("a") == store.load("run")["a"]
            cp.setdefault("b", {})["at"] = 2
            cp.raw["since"] = "2024"
            cp.commit_soon()
            await cp.flush()
            assert cp.changed == set()
            assert ("b" in cp, len(cp), sorted(cp)) == (True, 3, ["a", "b", "since"])
            with pytest.raises(CorruptState):
                cp["since"]
            cp["b"] = C
            cp.discard()
            assert cp["b"] == B
            del cp["since"]
            await cp.commit("since")
            store.commit("run", {"new": encode(C)})
            await cp.reload()
            assert dict(cp) == {"a": A, "b": B, "new": C}
            cp.clear()
            cp["last"] = C

    asyncio.run(job())
    assert stored(store) == {"last": C}


def test_leaving_by_an_exception_drops_what_was_not_committed(store):
    async def job():
        async with AsyncCheckpointer("run", store) as cp:
            cp["a"] = A
            await cp.commit()
            cp["a"] = B
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(job())
    assert stored(store) == {"a": A}


def test_entered_without_async_it_says_so(store):
    with (
        pytest.raises(TypeError, match="an AsyncCheckpointer is entered with `async with`"),
        AsyncCheckpointer("run", store),
    ):
        pass


def test_errors_are_the_same(store):
    async def job():
        with pytest.raises(StateMissing):
            async with AsyncCheckpointer("run", store, missing="raise"):
                pass
        async with AsyncCheckpointer("run", store) as one, AsyncCheckpointer("run", store) as two:
            one["a"], two["a"] = A, B
            await one.commit()
            with pytest.raises(Conflict):
                await two.commit()
            two.discard()
            assert two["a"] == A
        with pytest.raises(RuntimeError, match="this one has ended"):
            two["a"]
        with pytest.raises(RuntimeError, match="entered only once"):
            async with two:
                pass

    asyncio.run(job())


def test_the_loop_does_not_wait_for_a_commit():
    store = GatedStore()

    async def job():
        async with AsyncCheckpointer("run", store) as cp:
            cp["a"] = A
            commit = asyncio.ensure_future(cp.commit())
            await asyncio.to_thread(store.begun.wait, 10)
            for _ in range(20):  # turns of the loop
                await asyncio.sleep(0)
            assert not commit.done()
            store.go.set()
            return (await commit).keys

    assert asyncio.run(job()) == ("a",)


def test_a_commit_is_a_snapshot_taken_at_the_call():
    store = GatedStore()

    async def job():
        async with AsyncCheckpointer("run", store) as cp:
            cp["a"] = A
            commit = asyncio.ensure_future(cp.commit())
            await asyncio.to_thread(store.begun.wait, 10)
            cp["a"] = B
            store.go.set()
            await commit
            assert decode(cp.entry("a").value) == A
            cp.discard()

    asyncio.run(job())
    assert stored(store) == {"a": A}


def test_a_commit_claims_what_was_handed_out_until_the_call(store):
    async def job():
        async with AsyncCheckpointer("run", store) as cp:
            stream = cp.incremental("s", "at", row_order="asc")
            stream.filter([{"at": 1}])
            commit = asyncio.ensure_future(cp.commit(stream))
            stream.filter([{"at": 2}])
            assert (await commit).keys == ("s",)
            assert stored(store) == {"s": {"at": 1}}
            late = cp.commit()
        with pytest.raises(RuntimeError, match="this one has ended"):
            await late

    asyncio.run(job())
    assert stored(store) == {"s": {"at": 2}}


class GatedStore(MemoryStore):
    """A store whose commits wait for a go."""

    def __init__(self):
        super().__init__()
        self.begun, self.go = Event(), Event()
        self.error = None

    def commit(self, *args, **kwargs):
        self.begun.set()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return super().commit(*args, **kwargs)


@pytest.mark.parametrize("times", [1, 3])
def test_fault_45_cancelling_a_commit_settles_the_write_first(times):
    store = GatedStore()

    async def job():
        async with AsyncCheckpointer("run", store) as cp:
            cp["a"] = A
            task = asyncio.ensure_future(cp.commit())
            await asyncio.to_thread(store.begun.wait, 10)
            for _ in range(times):
                task.cancel()
                for _ in range(5):  # turns of the loop
                    await asyncio.sleep(0)
                assert not task.done()
            store.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert stored(store) == {"a": A}
            assert cp.changed == set()

    asyncio.run(job())


def test_a_cancelled_commit_that_fails_tells_both(caplog):
    store = GatedStore()

    async def job():
        async with AsyncCheckpointer("run", store) as cp:
            cp["a"] = A
            task = asyncio.ensure_future(cp.commit())
            await asyncio.to_thread(store.begun.wait, 10)
            task.cancel()
            await asyncio.sleep(0)
            store.error = StoreError("disk on fire")
            store.go.set()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            note = "checkpoint: 'run': disk on fire"
            assert [record.getMessage() for record in caplog.records if record.name == "checkpoint"] == [note]
            if sys.version_info >= (3, 11):  # before, a task makes a CancelledError of its own
                assert caught.value.__notes__ == [note]
            assert cp.changed == {"a"}
            store.error = None

    asyncio.run(job())
    assert stored(store) == {"a": A}


def test_a_cancelled_job_sends_what_it_had_claimed():
    store, reached = MemoryStore(), asyncio.Event()

    async def job():
        async with AsyncCheckpointer("run", store, min_interval=60) as cp:
            cp["a"] = A
            await cp.commit()
            cp["a"] = B
            assert await cp.commit() == Commit()
            cp["a"] = C
            reached.set()
            await asyncio.Event().wait()

    async def main():
        task = asyncio.ensure_future(job())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert stored(store) == {"a": B}


def test_many_tasks_commit_their_own_key(store):
    async def work(cp, name):
        for at in range(5):
            cp[name] = {"at": at}
            await cp.commit(name)

    async def job():
        async with AsyncCheckpointer("run", store) as cp:
            await asyncio.gather(*(work(cp, f"t{n}") for n in range(10)))
            assert cp.changed == set()

    asyncio.run(job())
    assert stored(store) == {f"t{n}": {"at": 4} for n in range(10)}


def test_stop_signals_work_on_the_loop():
    async def job():
        async with AsyncCheckpointer("run", MemoryStore(), stop_signals=(signal.SIGTERM,)) as cp:
            signal.raise_signal(signal.SIGTERM)
            assert cp.stopping is True

    before = signal.getsignal(signal.SIGTERM)
    asyncio.run(job())
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_thread_is_left_behind(store):
    async def job():
        async with AsyncCheckpointer("leaves nothing", store) as cp:
            cp["a"] = A

    asyncio.run(job())
    assert [thread.name for thread in threading.enumerate() if "leaves nothing" in thread.name] == []


async def cancelled(job, begun):
    """Cancel a coroutine when an event has come; return its task after some turns of the loop."""
    task = asyncio.ensure_future(job)
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def enter(store, **options):
    async with AsyncCheckpointer("run", store, **options):
        raise AssertionError


@pytest.mark.parametrize("exclusive", [False, True])
def test_fault_45_entering_a_silent_service_can_be_cancelled(api, truto, exclusive):
    """With a lease, too, it is a request that reads which is not answered."""
    asked, answered = Event(), Event()
    api.script(Hook(before=lambda: (asked.set(), answered.wait(10))), forever=True)

    async def main():
        task = await cancelled(enter(truto, exclusive=exclusive), asked)
        assert task.cancelled()
        assert not answered.is_set()

    asyncio.run(main())
    [thread] = [thread for thread in threading.enumerate() if thread.name == "checkpoint run"]
    answered.set()
    thread.join()  # it ends when the service has answered
    assert {request.method for request in api.requests} == {"GET"}


def test_fault_45_cancelled_while_it_takes_the_lease_it_waits():
    store = GatedStore()

    async def main():
        task = await cancelled(enter(store, exclusive=True, record_run=True), store.begun)
        assert not task.done()
        store.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert lease_state("run", store.load("run")[LEASE_KEY]).owner is None
    assert store.load("run")[LEASE_KEY].version == 2  # taken and released, and no run was recorded


class SlowStore(MemoryStore):
    """A store whose loads wait, and which tells when a lease is released."""

    def __init__(self):
        super().__init__()
        self.begun, self.go, self.released = Event(), Event(), Event()

    def load(self, state_key):
        self.begun.set()
        assert self.go.wait(10)
        return super().load(state_key)

    def commit(self, state_key, changes, *args, **kwargs):
        receipt = super().commit(state_key, changes, *args, **kwargs)
        if LEASE_KEY in changes and lease_state(state_key, receipt.entries[LEASE_KEY]).owner is None:
            self.released.set()
        return receipt


def test_fault_45_a_cancelled_load_keeps_no_lease():
    store = SlowStore()

    async def main():
        task = await cancelled(enter(store, exclusive=True, record_run=True), store.begun)
        assert task.cancelled()
        assert await asyncio.to_thread(store.released.wait, 10)
        assert not store.go.is_set()
        store.go.set()
        async with AsyncCheckpointer("run", store, exclusive=True, record_run=True) as cp:
            cp["a"] = A

    asyncio.run(main())
    assert stored(store)["a"] == A
    assert len(recorded(store.history("run", RUN_KEY))) == 1
