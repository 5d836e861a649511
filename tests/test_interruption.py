"""Real signals whose handlers raise at random bytecodes, and threads that cannot start: fault rows 95 to 97.

`CHECKPOINT_INTERRUPTIONS=5000` makes it about that many exceptions over all scenarios; the number that came is printed
with `-s`. What the simulator does at every place one after the other, this does with CPython's own signals, locks,
sockets and files.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from checkpoint import (
    AsyncCheckpointer,
    Checkpointer,
    MemoryStore,
    PartialCommit,
    SQLiteStore,
    StoreError,
    TrutoStore,
    codec,
)
from checkpoint.errors import is_of_handler
from checkpoint.stores import rows as row_module
from checkpoint.stores.http import Clients
from checkpoint.testing import ApiServer, Delay

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMES = int(os.environ.get("CHECKPOINT_INTERRUPTIONS", "40"))
SEED = int(os.environ.get("CHECKPOINT_SIMULATOR_SEED", "0"))
SCENARIOS = tuple(
    f"{store}{how}" for store in ("sqlite", "http") for how in ("", " exclusive", " async", " async exclusive")
)

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs setitimer"),
    # Raised in a destructor or a callback of a weak reference, an error is ignored by the interpreter, whatever we do.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fault_95_96_an_exception_at_any_bytecode(scenario, tmp_path):
    """Nothing is left held, the exception is the one that comes out, and the next operation works."""
    with ApiServer() as api:
        url = api.url if "http" in scenario else str(tmp_path / "state.db")
        order = {
            "scenario": scenario, "url": url, "token": api.token, "seed": SEED,
            "times": max(10, TIMES * 3 // (2 * len(SCENARIOS))),  # not every one comes while the job runs
        }  # fmt: skip
        ran = subprocess.run(
            [sys.executable, Path(__file__).with_name("interrupted_job.py"), json.dumps(order)],
            capture_output=True, text=True, timeout=60 + TIMES, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, f"seed {SEED}: {ran.stderr[-6000:]}"
    told = json.loads(ran.stdout.splitlines()[-1])
    print(f"{scenario}: {told['came']} exceptions, {told['ignored']} where Python cannot raise")
    assert not told["wrong"], f"seed {SEED}: " + "\n".join(told["wrong"])
    assert told["came"] > order["times"] // 8  # the rounds that set their length were the slowest


# One place after the other


class Interrupted(Exception):
    """What a signal handler raises."""


class Interrupting:
    """Raises where the nth function of `checkpoint.run` begins, as the exception of a handler may."""

    def __init__(self, place: int, error: BaseException | type[BaseException] = Interrupted) -> None:
        self._left = place
        self._error = error

    @property
    def came(self) -> bool:
        return self._left <= 0

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame, _event, _arg):
        if f"{os.sep}checkpoint{os.sep}run{os.sep}" in frame.f_code.co_filename and frame.f_code.co_name[0] != "<":
            self._left -= 1
            if self._left == 0:
                raise self._error


class HalfStore(MemoryStore):
    """Commits one of two keys, until it is repaired."""

    broken = True

    def commit(self, state_key, changes, base=None, **options):
        if not self.broken or len(changes) < 2:
            return super().commit(state_key, changes, base or {}, **options)
        first = min(changes)
        done = super().commit(state_key, {first: changes[first]}, base or {}, **options)
        rest = {key: StoreError("disk on fire") for key in changes if key != first}
        raise PartialCommit(done.entries, rest, rest)


@pytest.mark.parametrize("kind", ["all lands", "half lands", "API"])
def test_fault_95_an_interrupted_commit_is_no_conflict(kind, api):
    """Interrupted wherever it may be, answer in hand or not, what a commit wrote is still known as the run's own."""
    made = {"all lands": MemoryStore, "half lands": HalfStore, "API": lambda: TrutoStore(api.url, api.token)}[kind]
    for place in itertools.count(1):
        interrupting = Interrupting(place)
        with closing(made()) as store:
            with Checkpointer("run", store) as cp:
                cp["a"] = cp["b"] = {"n": place}
                with suppress(Interrupted, PartialCommit), interrupting:
                    cp.commit()
                store.broken = False
                cp["a"] = cp["b"] = {"n": -place}
                cp.commit()
            assert {codec.decode(entry.value)["n"] for entry in store.load("run").values()} == {-place}
        if not interrupting.came:
            break
    assert place > 20


def test_fault_95_a_commit_that_was_left_leaves_no_threads(api, monkeypatch):
    """A second exception ends the wait for it, and the store is closed before it opens its connections."""
    came, closed, lacking = [], threading.Event(), Clients.lacking

    def lacking_later(*args):
        closed.wait(10)
        return lacking(*args)

    monkeypatch.setattr(Clients, "lacking", lacking_later)

    def handler(*_):
        came.append(None)
        if len(came) == 2:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise Interrupted

    threads = {*threading.enumerate()}
    before = signal.signal(signal.SIGALRM, handler)
    store = TrutoStore(api.url, api.token)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        with pytest.raises(Interrupted):
            store.commit("run", {"a": "1", "b": "2"})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    store.close()
    closed.set()
    assert len(came) == 2
    for thread in {*threading.enumerate()} - threads:
        thread.join(10)
    assert [thread.name for thread in {*threading.enumerate()} - threads] == []


# What a handler raises that looks like a failure of the network or of a file


HANDLERS = [
    TimeoutError("the task's own limit"),
    TimeoutError(errno.ETIMEDOUT, "the task's own limit"),
    ConnectionResetError(errno.ECONNRESET, "the queue is gone"),
    OSError(errno.EIO, "the job's own disk"),
]


@contextmanager
def alarm(seconds: float, error: BaseException) -> Iterator[None]:
    """Have a signal handler raise an error after so many seconds, if the block is not left by then."""

    def handler(*_):
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # once more, should it come where Python ignores it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other connection from writing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture(params=["sqlite", "http"])
def waiting(request, tmp_path):
    """Return a store, and a context in which its writes wait for somebody else."""
    if request.param == "sqlite":
        with closing(SQLiteStore(tmp_path / "state.db", deadline=10)) as store:
            store.commit("run", {"a": codec.encode({"n": 0})})
            yield store, lambda: locked(tmp_path / "state.db")
        return

    @contextmanager
    def slow() -> Iterator[None]:
        api.script(Delay(0.6), forever=True)
        yield
        api.clear()

    with ApiServer() as api, closing(TrutoStore(api.url, api.token)) as store:
        store.commit("run", {"a": codec.encode({"n": 0})})
        yield store, slow


def commit(cp):
    cp["a"] = cp["b"] = cp["c"] = {"n": 1}
    cp.commit()


def commit_soon_and_flush(cp):
    cp["a"] = {"n": 1}
    cp.commit_soon()
    cp.flush()


@pytest.mark.parametrize("error", HANDLERS, ids=repr)
@pytest.mark.parametrize("work", [commit, commit_soon_and_flush])
def test_fault_96_it_comes_out_of_a_commit_that_waits(waiting, work, error):
    store, held = waiting
    with Checkpointer("run", store) as cp:
        with held(), pytest.raises(type(error)) as caught, alarm(0.2, error):
            work(cp)
        assert caught.value is error
        cp["a"] = {"n": 2}
        cp.commit()
    assert codec.decode(store.load("run")["a"].value) == {"n": 2}


@pytest.mark.parametrize("error", HANDLERS, ids=repr)
def test_fault_96_it_comes_out_of_a_run_that_waits_for_a_lease(error):
    store = MemoryStore()
    with Checkpointer("run", store, exclusive=True):
        entered = Checkpointer("run", store, exclusive=True)
        with pytest.raises(type(error)) as caught, alarm(0.2, error), entered:
            pass
        assert caught.value is error
    with Checkpointer("run", store, exclusive=True) as cp:
        cp["a"] = {"n": 1}
    assert not left_over("run")


@pytest.mark.parametrize("error", HANDLERS, ids=repr)
def test_fault_96_it_comes_out_of_an_awaited_commit(waiting, error):
    """Raised in code of ours, for the loop's own would only log it."""
    store, _ = waiting

    async def job():
        async with AsyncCheckpointer("run", store) as cp:
            with Interrupting(3, error):
                cp["a"] = {"n": 1}
                await cp.commit()

    with pytest.raises(type(error)) as caught:
        asyncio.run(job())
    assert caught.value is error
    with Checkpointer("run", store) as cp:
        cp["a"] = {"n": 2}
    assert codec.decode(store.load("run")["a"].value) == {"n": 2}
    assert not left_over("run")


def test_fault_96_it_comes_out_of_every_store(every_store):
    """At random moments of loads and commits; the store goes on."""
    for error in HANDLERS * 3:
        with pytest.raises(type(error)) as caught, alarm(random.uniform(1e-3, 2e-2), error):
            while True:
                every_store.commit("run", {"a": repr(error)})
                every_store.load("run")
        assert caught.value is error
    every_store.commit("run", {"a": "last"})
    assert every_store.load("run")["a"].value == "last"


class Handler:
    """What a signal handler may be beside a function."""

    def __call__(self, *_: object) -> None:
        os.stat("/nowhere")  # noqa: PTH116 - the same for all of them

    def method(self, *_: object) -> None:
        self()


@pytest.mark.parametrize("handler", [Handler(), Handler().method, lambda *_: Handler()()])
def test_fault_96_a_handlers_own_error_is_told_from_others(handler):
    with pytest.raises(FileNotFoundError) as other:
        Handler()()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(FileNotFoundError) as caught:
            signal.raise_signal(signal.SIGALRM)
        assert is_of_handler(caught.value)
        assert is_of_handler(other.value) == isinstance(handler, Handler)  # called by us, its own function looks so
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not is_of_handler(caught.value)


# Threads that cannot start


class Threads:
    """Whether threads can start: not with a stack that none can have, nor where `Thread.start` fails."""

    def __init__(self, how: str) -> None:
        self._how = how
        self._start = threading.Thread.start

    def stop(self) -> None:
        if self._how == "stack":
            threading.stack_size(1 << 46)
        else:
            threading.Thread.start = self._fail

    def go_on(self) -> None:
        threading.stack_size(0)
        threading.Thread.start = self._start

    def _fail(self) -> None:
        raise RuntimeError("can't start new thread")


@pytest.fixture(params=["stack", "start"])
def threads(request) -> Iterator[Threads]:
    threads = Threads(request.param)
    yield threads
    threads.go_on()


def left_over(state_key: str) -> list[str]:
    """Return the names of the threads of a run that go on."""
    until = time.monotonic() + 5
    names = (f"checkpoint {state_key}", f"checkpoint lease {state_key}")
    while (left := [one.name for one in threading.enumerate() if one.name in names]) and time.monotonic() < until:
        time.sleep(0.001)
    return left


def owner(store) -> object:
    """Return who holds the lease."""
    entry = store.load("run").get("__lease__")
    return entry and codec.decode(entry.value)["owner"]


def test_fault_97_commit_soon_tells_and_the_next_commit_works(threads):
    store = MemoryStore()
    threads.stop()
    with Checkpointer("run", store) as cp:
        cp["a"] = {"n": 1}
        with pytest.raises(RuntimeError, match="can't start new thread"):
            cp.commit_soon()
        threads.go_on()
        cp.commit_soon()
        cp._commits.background.wait()
        assert codec.decode(store.load("run")["a"].value) == {"n": 1}
    assert not left_over("run")


def test_fault_97_a_lease_without_a_thread_is_let_go(threads):
    store = MemoryStore()
    threads.stop()
    with pytest.raises(RuntimeError, match="can't start new thread"), Checkpointer("run", store, exclusive=True):
        pass
    assert owner(store) is None
    threads.go_on()
    with Checkpointer("run", store, exclusive=True):
        assert owner(store) is not None
    assert owner(store) is None


@pytest.mark.parametrize("exclusive", [False, True])
def test_fault_97_asyncio_is_told_and_holds_nothing(threads, exclusive):
    store = MemoryStore()
    threads.stop()

    async def job():
        async with AsyncCheckpointer("run", store, exclusive=exclusive) as cp:
            cp["a"] = {"n": 1}

    with pytest.raises(RuntimeError, match="can't start new thread"):
        asyncio.run(job())
    assert owner(store) is None
    threads.go_on()
    asyncio.run(job())
    assert codec.decode(store.load("run")["a"].value) == {"n": 1}
    assert not left_over("run")


def test_fault_97_http_without_a_thread_is_told(api, threads):
    with closing(TrutoStore(api.url, api.token)) as store:
        threads.stop()
        with pytest.raises(RuntimeError, match="can't start new thread"):
            store.load("run")
        threads.go_on()
        assert store.load("run") == {}
        threads.stop()  # now it is the threads for many keys that cannot start
        with pytest.raises(RuntimeError, match="can't start new thread"):
            store.commit("run", dict.fromkeys("abcdef", "x"))
        threads.go_on()
        store.commit("run", dict.fromkeys("abcdef", "y"))
        assert {entry.value for entry in store.load("run").values()} == {"y"}


def test_fault_95_the_collector_is_on_wherever_it_comes():
    """At each instruction of the reading of rows in turn; Python 3.10 runs handlers before most of them."""
    rows = [("a", "v", "2024-05-01T10:00:00Z", "2024-05-01T10:00:00Z", None, 1)]
    before = sys.gettrace()
    for place in itertools.count():
        left = itertools.count(place, -1)

        def interrupt(frame, event, _arg, left=left):
            frame.f_trace_opcodes = frame.f_code.co_filename == row_module.__file__
            if event == "opcode" and next(left) == 0:
                raise KeyboardInterrupt
            return interrupt

        try:
            sys.settrace(interrupt)
            row_module.entries_by_key(rows)
            break  # past the last one
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
            on = gc.isenabled()
            gc.enable()
        assert on, f"off after an exception at instruction {place}"
    assert place > 20


# An event loop that is given up


def test_fault_95_an_abandoned_event_loop_leaves_nothing():
    """Its task is destroyed, and nobody can await anything any more."""
    store = MemoryStore()

    async def job():
        async with AsyncCheckpointer("run", store, exclusive=True) as cp:
            cp["a"] = {"n": 1}
            await cp.commit()
            loop.stop()
            cp["a"] = {"n": 2}
            await asyncio.sleep(60)

    loop = asyncio.new_event_loop()
    task = loop.create_task(job())
    loop.run_forever()
    loop.close()
    del task
    gc.collect()
    assert not left_over("run")
    assert owner(store) is None
    assert codec.decode(store.load("run")["a"].value) == {"n": 1}


def test_fault_95_an_answer_lost_by_the_event_loop_is_no_hang():
    """What ends `asyncio.run` may take the answer of a call with it; cancelling the task is enough to go on."""
    store, lost = MemoryStore(), threading.Event()

    async def job():
        loop = asyncio.get_running_loop()
        tell = loop.call_soon_threadsafe

        def lose(*_):
            loop.call_soon_threadsafe = tell
            lost.set()

        async with AsyncCheckpointer("run", store) as cp:
            cp["a"] = {"n": 1}
            loop.call_soon_threadsafe = lose
            await cp.commit()

    async def main():
        task = asyncio.ensure_future(job())
        await asyncio.to_thread(lost.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)

    asyncio.run(main())
    assert codec.decode(store.load("run")["a"].value) == {"n": 1}
    assert not left_over("run")
