"""Background flushes of runs that write one namespace at once: each gets its turn, and nobody waits for it."""

from __future__ import annotations

import asyncio
import sys
import time
from threading import Event

import pytest

from checkpoint import AsyncCheckpointer, Checkpointer, Commit
from checkpoint.codec import decode
from checkpoint.run import flush
from checkpoint.run.background import LONGEST_REST, rest_after
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.threads import Worker


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def monotonic(self):
        return self.now


class Crowded(MemoryStore):
    """A store in which another run always comes first, so that a commit takes long."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.batches = []
        self.first, self.second = Event(), Event()

    def commit(self, state_key, changes, base={}, *, run_id=None):
        self.clock.now += 100
        receipt = super().commit(state_key, changes, base, run_id=run_id)._replace(retries=1)
        self.batches.append({key: decode(value) for key, value in changes.items()})
        (self.second if self.first.is_set() else self.first).set()
        return receipt


@pytest.fixture
def crowded(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(flush, "time", clock)
    return Crowded(clock)


def commit_three_times(cp, store):
    """Commit in the background; return while two of the three wait, because the first one was overtaken."""
    for at in range(3):
        cp["a"] = {"at": at}
        cp.commit_soon()
        assert store.first.wait(10)
    assert not store.second.wait(0.1)  # others go first


def leave(_):
    """Wait for nothing before the block is left."""


@pytest.mark.parametrize("how", [Checkpointer.flush, Checkpointer.commit, leave], ids=["flush", "commit", "leave"])
def test_an_overtaken_run_rests_until_somebody_waits(crowded, how):
    with Checkpointer("run", crowded, record_run=False) as cp:
        commit_three_times(cp, crowded)
        began = time.monotonic()
        how(cp)
    assert time.monotonic() - began < LONGEST_REST / 2
    assert crowded.batches == [{"a": {"at": 0}}, {"a": {"at": 2}}]  # fewer, and larger


def interrupted(frame, event, _):
    """Trace `Worker.submit`, and raise where it has queued a call."""
    if frame.f_code is not Worker.submit.__code__:
        return None
    if event == "return":
        raise KeyboardInterrupt
    return interrupted


@pytest.mark.parametrize("again", [0, 1])
def test_fault_95_an_interrupted_background_commit_rests_no_more(crowded, again):
    """One that was queued just before the exception of a signal handler, and one that is queued after it."""
    with Checkpointer("run", crowded, record_run=False) as cp:
        cp["a"] = {"at": 0}
        cp.commit_soon()
        assert crowded.first.wait(10)
        cp.flush()
        cp["a"] = {"at": 1}
        before = sys.gettrace()
        sys.settrace(interrupted)
        try:
            with pytest.raises(KeyboardInterrupt):
                cp.commit_soon()
        finally:
            sys.settrace(before)
        for at in range(again):
            cp["a"] = {"at": 2 + at}
            cp.commit_soon()
        began = time.monotonic()
    assert time.monotonic() - began < LONGEST_REST / 2
    assert crowded.batches == [{"a": {"at": 0}}, {"a": {"at": 1 + again}}]


def test_a_rest_is_ended_for_the_flushes_that_somebody_waits_for(crowded):
    with Checkpointer("run", crowded, record_run=False) as cp:
        cp["a"] = {"at": 0}
        cp.commit_soon()
        cp.flush()
        cp.flush()  # nothing is queued
        cp["a"] = {"at": 1}
        cp.commit_soon()
        assert not crowded.second.wait(0.1)


def test_an_awaited_commit_ends_the_rest(crowded):
    async def job():
        async with AsyncCheckpointer("run", crowded, record_run=False) as cp:
            commit_three_times(cp, crowded)
            began = time.monotonic()
            await cp.commit()
            assert time.monotonic() - began < LONGEST_REST / 2

    asyncio.run(job())
    assert crowded.batches == [{"a": {"at": 0}}, {"a": {"at": 2}}]


def test_a_rest_is_as_long_as_others_are_in_the_way():
    overtaken, alone = Commit(("a",), retries=2, seconds=3.0), Commit(("a",), seconds=3.0)
    rests = [0.0]
    for commit in (alone, overtaken, overtaken, Commit(), alone, *[overtaken] * 4):
        rests.append(rest_after(commit, rests[-1]))
    assert rests == [0.0, 0.0, 3.0, 6.0, 6.0, 5.4, 8.4, LONGEST_REST, LONGEST_REST, LONGEST_REST]
