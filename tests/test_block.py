"""What a run takes when it is entered, and releases when it is left, once or twice."""

from __future__ import annotations

import signal

import pytest

from checkpoint import Checkpointer
from checkpoint.run.block import Settings
from checkpoint.run.taken import Taken
from checkpoint.stores.memory import MemoryStore


def test_settings_show_nothing():
    """A rendered traceback shows locals, and the store's URL may hold a password."""
    settings = Settings("postgresql://me:hunter2@db/app", "new", exclusive=False, record_run=True, run_id="hunter2")
    assert repr(settings) == str(settings) == f"{settings}" == "Settings()"


def test_what_was_taken_is_released_in_reverse_order():
    calls, taken = [], Taken()
    for name in "abc":
        taken.add(lambda name=name: calls.append(name))
    taken.let_go()
    taken.let_go()
    assert calls == ["c", "b", "a"]


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_release_that_fails_is_tried_twice(failing, times):
    """The second time may succeed after an interruption; the others are released in any case, each once."""
    calls, taken = [], Taken()

    def release(number):
        calls.append(number)
        if number == failing and calls.count(number) <= times:
            raise OSError(calls.count(number))

    for number in range(3):
        taken.add(lambda number=number: release(number))
    with pytest.raises(OSError, match="1"):  # the first failure
        taken.let_go()
    assert calls == sorted([0, 1, 2, failing], reverse=True)
    taken.let_go()  # nothing is left
    assert len(calls) == 4


def test_each_release_that_fails_is_tried_twice():
    calls, taken = [], Taken()

    def fail(name):
        calls.append(name)
        raise OSError(name)

    for name in "abc":
        taken.add(lambda name=name: fail(name))
    with pytest.raises(OSError, match="c"):
        taken.let_go()
    assert calls == ["c", "c", "b", "b", "a", "a"]


def test_an_interrupted_release_goes_on_where_it_was():
    calls, taken = [], Taken()
    for name in "ab":
        taken.add(lambda name=name: calls.append(name))

    def interrupted():
        calls.append("c")
        if calls.count("c") == 1:
            raise KeyboardInterrupt

    taken.add(interrupted)
    with pytest.raises(KeyboardInterrupt):
        taken.let_go()
    assert calls == ["c", "c", "b", "a"]


class CountingStore(MemoryStore):
    """Counts how often it is closed."""

    closed = 0

    def close(self):
        self.closed += 1


def test_ending_a_block_twice_releases_once(monkeypatch):
    store = CountingStore()
    monkeypatch.setattr("checkpoint.run.block.open_store", lambda _: store)
    before = signal.getsignal(signal.SIGTERM)
    with Checkpointer("run", "memory://named", exclusive=True, stop_signals=(signal.SIGTERM,)) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        stream.filter([{"at": 1}])
        assert signal.getsignal(signal.SIGTERM) != before
    lease = store.load("run")["__lease__"]
    assert (store.closed, signal.getsignal(signal.SIGTERM)) == (1, before)
    theirs = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        cp._block.end()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # set since, by somebody else
    finally:
        signal.signal(signal.SIGTERM, theirs)
    assert store.closed == 1
    assert store.load("run")["__lease__"] == lease  # not written again
