"""Threads that take turns, locks that know who waits for them, and a clock that moves only when all wait."""

from __future__ import annotations

import _thread
import concurrent.futures.thread
import dis
import queue
import sys
import threading
import time
from collections import deque
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .choices import Choices

STEPS = 4_000
"""Turns after which a schedule is taken for one that never ends."""

_real_lock = _thread.allocate_lock
_real_thread = _thread.start_new_thread
_real_monotonic = time.monotonic
_real_sleep = time.sleep


class Killed(BaseException):
    """Ends the threads of a run that was killed, and all at the end of a schedule."""


class Interruption(Exception):
    """What a signal handler raises in the main thread of a run."""


class Process:
    """What is stopped, killed and interrupted together: the threads of one run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.main: Task | None = None
        """Its main thread: the one in which signal handlers run."""
        self.killed = False
        self.stopped_until = float("-inf")
        self.bytecodes: int | None = None
        """After so many places where CPython runs signal handlers one raises; None: never."""
        self.interruptible = False
        self.served: list[int] = []
        """The moments at which its calls and requests were served."""


class _Seat:
    """A real thread, which runs one task after the other: to start one for each takes longer than most schedules."""

    def __init__(self) -> None:
        self.turn = _real_lock()
        self.turn.acquire()
        self.body: Callable[[], None] = lambda: None
        begun = _real_lock()
        begun.acquire()
        self.ident = _real_thread(self._sit, (begun,))
        begun.acquire()

    def _sit(self, begun: _thread.LockType) -> None:
        begun.release()
        while True:
            self.turn.acquire()
            self.body()


_free_seats: list[_Seat] = []


class Task:
    """A thread of the clockwork; it is what `threading.current_thread` returns in it."""

    daemon = True

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name
        self.seat = _free_seats.pop() if _free_seats else _Seat()
        self.ident = self.seat.ident
        self.ready: Callable[[], bool] | None = None  # None: it does not wait
        self.wake = float("inf")
        self.error: BaseException | None = None  # what ended it

    @property
    def main(self) -> bool:
        """Whether it is the main thread of its process."""
        return self.process.main is self


class Clockwork:
    """One schedule's threads, locks and time."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.now = 1_000.0
        self.current: Task | None = None
        self.tasks: list[Task] = []
        self.locks: WeakSet[Lock] = WeakSet()
        """Those that somebody can still take: a lock may be held to its end by what is gone, as a signal is."""
        self.threads_made = 0
        self.not_started = 0
        """How many threads could not be started."""
        self.hung: list[str] = []
        """What each thread waited for when nobody could go on."""
        self.crashes: list[BaseException] = []
        """What ended threads that should not have ended so."""
        self._over = _real_lock()
        self._over.acquire()
        self._steps = 0

    # From outside

    def run(self, mains: Iterable[tuple[Process, Callable[[], None]]]) -> None:
        """Run these as the main threads of their processes, and whatever threads they start, to the end of all."""
        for process, main in mains:
            process.main = Task(process, f"{process.name} main")
            self._begin(process.main, main)
        with Installed(self):
            self.current = self.tasks[0]
            self.current.seat.turn.release()
            self._over.acquire()
            self.current = None

    def mine(self) -> Task | None:
        """Return the task that calls; None where it is no thread of this clockwork."""
        task = self.current
        return task if task is not None and task.ident == _thread.get_ident() else None

    # What tasks do

    def point(self) -> None:
        """Let another task go on, of any process, or none: something is about to happen that others see."""
        if (task := self.mine()) is not None:
            task.ready, task.wake = None, float("inf")
            self._pass_on(task, seen=True)

    def wait(self, ready: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until something is so; False: the time is over first. A main thread may be interrupted."""
        task = self.mine()
        if task is None:
            return True
        task.ready, task.wake = ready, float("inf") if seconds is None else self.now + max(0.0, seconds)
        may = task.main and task.process.interruptible and not task.process.killed
        if may and self.choices.fault(("wait", "interrupt")) == "interrupt":
            task.ready, task.process.interruptible = None, False
            raise Interruption("while it waited")
        self._pass_on(task)
        task.ready = None
        return ready()

    def sleep(self, seconds: float) -> None:
        """Wait for the clock alone."""
        self.wait(lambda: False, seconds)

    def stop(self, process: Process, seconds: float) -> None:
        """Stop all threads of a process for some time, as SIGSTOP does."""
        process.stopped_until = self.now + seconds
        self.point()

    def kill(self, process: Process) -> None:
        """End all threads of a process where they are."""
        process.killed = True
        self.point()

    def start(self, process: Process, name: str, body: Callable[[], None]) -> Task:
        """Start a thread, or fail to."""
        if self.choices.fault(("start", "no thread")) == "no thread":
            self.not_started += 1
            raise RuntimeError("can't start new thread")
        task = Task(process, name)
        self._begin(task, body)
        if (me := self.mine()) is not None:
            me.ready, me.wake = None, float("inf")
            self._pass_on(me)
        return task

    # How turns are passed on

    def _begin(self, task: Task, body: Callable[[], None]) -> None:
        def thread() -> None:
            try:
                if not task.process.killed:
                    if task.main and task.process.bytecodes is not None:
                        sys.settrace(_Interrupter(task.process))
                    body()
            except BaseException as error:  # noqa: BLE001 - a thread ends as it ends
                task.error = error
            finally:
                sys.settrace(None)
            self.tasks.remove(task)
            if task.error is not None and not isinstance(task.error, Killed):
                self.crashes.append(task.error)
            task.seat.body = lambda: None  # what it holds goes with the task
            _free_seats.append(task.seat)
            self._next(None, task.process)

        task.seat.body = thread
        self.tasks.append(task)

    def _pass_on(self, task: Task, *, seen: bool = False) -> None:
        if not task.process.killed:
            self._next(task, None if seen else task.process)
        if task.process.killed:
            task.ready = None
            raise Killed

    def _next(self, task: Task | None, process: Process | None) -> None:
        """Give the turn to a task that can go on; return when `task` has it again.

        What the threads of a process do between two points no other process sees. So it makes no difference when they
        do it, and a `process` that is between two points goes on as long as one of its threads can.
        """
        self._steps += 1
        while not (able := [one for one in self.tasks if self._able(one)]):
            times = [max(one.wake, one.process.stopped_until) for one in self.tasks]
            times += [one.process.stopped_until for one in self.tasks if one.process.stopped_until > self.now]
            moment = min(times, default=float("inf"))
            if moment == float("inf"):
                break
            self.now = moment
        if self._steps > STEPS and able:
            able = []
        if not able:
            if self.tasks and not self.hung:
                does = "waits" if self._steps <= STEPS else "goes on"
                self.hung = [f"{one.name} {does}" for one in self.tasks]
            for one in self.tasks:
                one.process.killed = True
            able = self.tasks[:1]
            if not able:
                self._over.release()
                return
        able = [one for one in able if one.process is process] or able
        if task in able:
            able.remove(task)
            able.insert(0, task)
        chosen = able[self.choices.turn(len(able))] if not self.hung else able[0]
        if chosen is task:
            return
        self.current = chosen
        chosen.seat.turn.release()
        if task is not None:
            task.seat.turn.acquire()

    def _able(self, task: Task) -> bool:
        if task.process.killed:
            return True
        if task.process.stopped_until > self.now:
            return False
        return task.ready is None or self.now >= task.wake or task.ready()


# What the library finds in the place of locks, threads and clocks

_clockwork: Clockwork | None = None


class Lock:
    """`threading.Lock`."""

    _again = False

    def __init__(self) -> None:
        assert _clockwork is not None
        self._clockwork = _clockwork
        self.owner: Task | bool | None = None
        self.count = 0
        _clockwork.locks.add(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = self._clockwork.mine() or False
        if self._again and self.owner is me:
            self.count += 1
            return True
        if self.owner is not None and (
            not blocking or not self._clockwork.wait(self._free, None if timeout < 0 else timeout)
        ):
            return False
        self.owner, self.count = me, 1
        return True

    def release(self) -> None:
        if self.owner is None:
            raise RuntimeError("release unlocked lock")
        self.count -= 1
        if not self.count:
            self.owner = None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def locked(self) -> bool:
        return self.owner is not None

    def _free(self) -> bool:
        return self.owner is None


class RLock(Lock):
    """`threading.RLock`; the last three are what `threading.Condition` needs of one."""

    _again = True

    def _is_owned(self) -> bool:
        return self.owner is not None and self.owner is (self._clockwork.mine() or False)

    def _release_save(self) -> int:
        count, self.count, self.owner = self.count, 0, None
        return count

    def _acquire_restore(self, count: int) -> None:
        self.acquire()
        self.count = count


class _Signal(Lock):
    """The lock with which a `threading.Condition` wakes one waiter; it ends held, and that is all right."""

    def __init__(self) -> None:
        super().__init__()
        self._clockwork.locks.discard(self)


class Thread:
    """`threading.Thread`, as much of it as is used."""

    def __init__(
        self, group: None = None, target: Any = None, name: str = "thread", args: Any = (), kwargs: Any = None, *,
        daemon: bool | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.daemon = bool(daemon)
        self._call = lambda: target(*args, **(kwargs or {}))
        self._task: Task | None = None
        assert _clockwork is not None
        self._number = _clockwork.threads_made = _clockwork.threads_made + 1

    def __hash__(self) -> int:
        return self._number  # so that a set of them has the same order each time

    def start(self) -> None:
        me = _clockwork.mine() if _clockwork is not None else None
        assert _clockwork is not None
        assert me is not None
        self._task = _clockwork.start(me.process, f"{me.process.name} {self.name}", self.run)

    def run(self) -> None:
        self._call()

    def join(self, timeout: float | None = None) -> None:
        task, clockwork = self._task, _clockwork
        if task is None:
            raise RuntimeError("cannot join thread before it is started")
        if clockwork is not None and task in clockwork.tasks:
            clockwork.wait(lambda: task not in clockwork.tasks, timeout)

    def is_alive(self) -> bool:
        return _clockwork is not None and self._task in _clockwork.tasks

    @property
    def ident(self) -> int | None:
        return self._task.ident if self._task is not None else None


class SimpleQueue:
    """`queue.SimpleQueue`, which is written in C: nothing interrupts it half-way."""

    def __init__(self) -> None:
        assert _clockwork is not None
        self._clockwork = _clockwork
        self._items: deque[Any] = deque()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self._items.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self._items and not (block and self._clockwork.wait(lambda: bool(self._items), timeout)):
            raise queue.Empty
        return self._items.popleft()

    def put_nowait(self, item: Any) -> None:
        self._items.append(item)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


def _seconds() -> float:
    return _clockwork.now if _clockwork is not None and _clockwork.mine() is not None else _real_monotonic()


def _sleep(seconds: float) -> None:
    if _clockwork is not None and _clockwork.mine() is not None:
        _clockwork.sleep(seconds)
    else:
        _real_sleep(seconds)


def _start_raw(call: Callable[..., object], args: tuple[Any, ...]) -> int:
    """Be `_thread.start_new_thread`."""
    thread = Thread(target=call, args=args, name="raw thread")
    thread.start()
    return thread.ident or 0


def _either(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes ours for the clockwork's threads, and the real thing for all others."""

    def make(*args: Any, **kwargs: Any) -> Any:
        if _clockwork is None or _clockwork.mine() is None:
            return theirs(*args, **kwargs)
        return ours(*args, **kwargs)

    return make


class Installed:
    """Puts the clockwork in the place of the standard library's threads and clocks.

    What a module of the library has imported by its name (`from threading import Lock`) is found by what it is.
    """

    _names = (
        (threading, "Lock", _either(Lock, threading.Lock)),
        (threading, "RLock", _either(RLock, threading.RLock)),
        (threading, "_allocate_lock", _either(_Signal, _thread.allocate_lock)),
        (threading, "Thread", _either(Thread, threading.Thread)),
        (threading, "current_thread", _either(lambda: _clockwork.mine(), threading.current_thread)),  # noqa: PLW0108 - another one each time
        (threading, "main_thread", _either(lambda: _clockwork.mine().process.main, threading.main_thread)),
        (_thread, "start_new_thread", _either(_start_raw, _thread.start_new_thread)),
        (threading, "_time", _seconds),
        (queue, "SimpleQueue", _either(SimpleQueue, queue.SimpleQueue)),
        # One for the whole process, and held while a thread is started; each of our runs is a process of its own.
        (concurrent.futures.thread, "_global_shutdown_lock", nullcontext()),
        (time, "monotonic", _seconds),
        (time, "sleep", _sleep),
    )

    def __init__(self, clockwork: Clockwork) -> None:
        self._clockwork = clockwork

    def __enter__(self) -> None:
        global _clockwork  # noqa: PLW0603 - as the names that it stands for
        _clockwork = self._clockwork
        self._were = [(module, name, vars(module)[name], ours) for module, name, ours in self._names]
        for module, name, _, ours in (*self._were, *_imported()):
            setattr(module, name, ours)

    def __exit__(self, *_: object) -> None:
        global _clockwork  # noqa: PLW0603 - as above
        for module, name, real, _ours in (*self._were, *_imported()):
            setattr(module, name, real)
        _clockwork = None


@cache
def _imported() -> list[tuple[ModuleType, str, Any, Any]]:
    """Return what the library's modules have of these by names of their own."""
    reals = {id(vars(module)[name]): ours for module, name, ours in Installed._names}
    found = []
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and module.__name__.partition(".")[0] == "checkpoint":
            for name, value in list(vars(module).items()):
                if name == "monotonic":
                    found.append((module, name, value, _seconds))
                elif id(value) in reals:
                    found.append((module, name, value, reals[id(value)]))
    return found


# Exceptions between two bytecodes


class _Interrupter:
    """A trace function that raises at the nth place where CPython would run a signal handler."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._left = process.bytecodes or 0

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        if not _traced(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._opcode

    def _opcode(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "opcode" and self._process.interruptible and frame.f_lasti in _places(frame.f_code):
            self._left -= 1
            if self._left == 0:
                self._process.bytecodes, self._process.interruptible = None, False
                raise Interruption(f"at {frame.f_code.co_name}:{frame.f_lineno}")
        return self._opcode


@cache
def _traced(filename: str) -> bool:
    module = filename.replace("\\", "/")
    stdlib = ("/contextlib.py", "/threading.py", "/futures/_base.py", "/futures/thread.py")
    return "/checkpoint/" in module or module.endswith((*stdlib, "/test_simulator.py"))


@cache
def _places(code: Any) -> frozenset[int]:
    """Return the offsets at which handlers run: where a function begins, a loop turns, and after each call.

    CPython raises what a handler raises in the call itself; a trace function can do so only before the next
    instruction. Where these two are not inside the same `try` or `with` the place is left out.
    """
    table = dis._parse_exception_table(code)

    def caught_at(offset: int) -> int | None:
        return next((entry.target for entry in table if entry.start <= offset < entry.end), None)

    places, call = set(), None
    for instruction in dis.get_instructions(code):
        name, offset = instruction.opname, instruction.offset
        if name == "RESUME" or "JUMP_BACKWARD" in name or (call is not None and caught_at(call) == caught_at(offset)):
            places.add(offset)
        call = offset if name.startswith("CALL") else None
    return frozenset(places)
