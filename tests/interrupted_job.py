"""A job into which a signal handler raises at random moments, again and again; run by `test_interruption.py`.

    python interrupted_job.py '{"scenario": "sqlite", "url": …, "token": …, "times": 100, "seed": 0}'

After each exception it looks for what was left behind. It prints one JSON object: how many exceptions came, and what
was wrong, each with the number of its round; the seed and that number repeat the delay, though not the place.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import logging
import os
import random
import signal
import sqlite3
import sys
import threading
import time
import traceback
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from checkpoint import AsyncCheckpointer, Checkpointer, SQLiteStore, TrutoStore, codec

if TYPE_CHECKING:
    from collections.abc import Callable

HANG = 25.0
"""Seconds after which a round counts as a hang: the job is ended, and its threads are shown."""

NAMESPACE = "job"
OF_A_RUN = (f"checkpoint {NAMESPACE}", f"checkpoint lease {NAMESPACE}")
"""What the names of a run's threads begin with."""


class SoftTimeLimit(Exception):
    """What a task runner raises."""


class Stop(BaseException):
    """What some program raises to be stopped by."""


KINDS = (SoftTimeLimit, Stop, KeyboardInterrupt, TimeoutError, ConnectionError, OSError)


class Alarm:
    """Raises once, from a signal handler, so many seconds from now."""

    def __init__(self, *, in_our_code: bool) -> None:
        self._in_our_code = in_our_code
        self._armed = False
        self._kind: type[BaseException] = SoftTimeLimit
        self.raised: BaseException | None = None
        self.ignored = 0
        """Those that came where Python cannot raise, such as in a finaliser."""
        signal.signal(signal.SIGALRM, self._ring)
        sys.unraisablehook = self._unraisable

    def set(self, seconds: float, kind: type[BaseException]) -> None:
        self.raised, self._kind, self._armed = None, kind, True
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))

    def off(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, _number, frame) -> None:
        if not self._armed:
            return
        if self._in_our_code and not _ours(frame):
            signal.setitimer(signal.ITIMER_REAL, 30e-6)  # asyncio's own loop survives no exception: a little later
            return
        self._armed = False
        self.raised = self._kind("from a signal handler")
        raise self.raised

    def _unraisable(self, what) -> None:
        if what.exc_value is self.raised:
            self.ignored += 1
            self.raised = None
        else:
            sys.__unraisablehook__(what)


def _ours(frame) -> bool:
    while frame is not None:
        if f"{os.sep}checkpoint{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


class Job:
    """One scenario, over one store that lives as long as the process."""

    def __init__(self, scenario: str, url: str, token: str) -> None:
        self.exclusive = "exclusive" in scenario
        self.is_async = "async" in scenario
        self.path = url if "http" not in scenario else None
        self.store = SQLiteStore(url) if self.path else TrutoStore(url, token, rate=(10**6, 1.0))
        self.alarm = Alarm(in_our_code=self.is_async)
        self.count = 0

    def work(self, *, stubborn: bool) -> None:
        """Enter, commit in each way there is, leave."""
        if self.is_async:
            asyncio.run(self._work_async(stubborn=stubborn))
            return
        with Checkpointer(NAMESPACE, self.store, exclusive=self.exclusive) as cp:
            for step in (cp.commit, cp.commit_soon, cp.flush, cp.commit):
                self.count += 1
                try:
                    cp["a"] = cp["b"] = cp["c"] = {"n": self.count}
                    step()
                except KINDS:
                    if not stubborn:
                        raise
                    cp["a"] = cp["b"] = cp["c"] = {"n": self.count}
                    cp.commit()

    async def _work_async(self, *, stubborn: bool) -> None:
        async with AsyncCheckpointer(NAMESPACE, self.store, exclusive=self.exclusive) as cp:

            async def soon() -> None:
                cp.commit_soon()

            for step in (cp.commit, soon, cp.flush, cp.commit):
                self.count += 1
                try:
                    cp["a"] = cp["b"] = cp["c"] = {"n": self.count}
                    await step()
                except KINDS:
                    if not stubborn:
                        raise
                    cp["a"] = cp["b"] = cp["c"] = {"n": self.count}
                    await cp.commit()

    def left_over(self) -> list[str]:
        """Say what a round has left behind, and see that the next operation works."""
        wrong = []
        gc.collect()
        until = time.monotonic() + 5
        while (names := self._threads()) and time.monotonic() < until:
            time.sleep(0.001)
        if names:
            wrong.append(f"threads: {names}")
        entries = self.store.load(NAMESPACE)
        lease = entries.get("__lease__")
        if lease is not None and codec.decode(lease.value)["owner"] is not None:
            wrong.append("the lease")
            self.store.commit(NAMESPACE, {"__lease__": None})
        if self.path:
            with closing(sqlite3.connect(self.path, timeout=0, isolation_level=None)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                    other.execute("ROLLBACK")
                except sqlite3.OperationalError as error:
                    wrong.append(f"a transaction: {error}")
        self.count += 1
        with Checkpointer(NAMESPACE, self.store, exclusive=self.exclusive) as cp:
            cp["a"] = {"n": self.count}
            cp.commit()
        if codec.decode(self.store.load(NAMESPACE)["a"].value) != {"n": self.count}:
            wrong.append("the next commit is not stored")
        return wrong

    def _threads(self) -> list[str]:
        return [name for one in threading.enumerate() if (name := one.name).startswith(OF_A_RUN)]


def main(scenario: str, url: str, token: str, times: int, seed: int) -> None:
    logging.disable(logging.CRITICAL)
    dice = random.Random(f"{seed} {scenario}")
    job = Job(scenario, url, token)
    faulthandler.enable()
    job.work(stubborn=False)  # the first one imports
    takes = min(_seconds(lambda: job.work(stubborn=False)) for _ in range(3))
    came, wrong, files = 0, [], 0
    for number in range(times):
        faulthandler.dump_traceback_later(HANG, exit=True)
        kind = dice.choice(KINDS)
        caught = None
        delay, stubborn = dice.uniform(0, takes), dice.random() < 0.5
        try:
            try:
                job.alarm.set(delay, kind)
                job.work(stubborn=stubborn)
            finally:
                job.alarm.off()
        except BaseException as error:  # noqa: BLE001 - looked at below
            caught = error
        raised = job.alarm.raised
        came += raised is not None
        if caught is not None and caught is not raised:
            wrong.append(f"round {number}: {caught!r} came out of {raised!r}")
        if raised is not None and caught is None and not stubborn:
            passed = "".join(traceback.format_tb(raised.__traceback__))
            wrong.append(f"round {number}: {raised!r} was swallowed:\n{passed}")
        caught = raised = job.alarm.raised = None
        wrong += [f"round {number}: left {what}" for what in job.left_over()]
        if number == min(30, times // 2):
            files = _files()
    if _files() > files + 8:
        wrong.append(f"{_files() - files} files or sockets more than after 30 rounds")
    faulthandler.dump_traceback_later(HANG, exit=True)
    job.store.close()
    if names := [one.name for one in threading.enumerate() if one.name.startswith("checkpoint")]:
        wrong.append(f"threads after the store was closed: {names}")
    print(json.dumps({"came": came, "ignored": job.alarm.ignored, "wrong": wrong}), flush=True)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _files() -> int:
    with suppress(FileNotFoundError):
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers are enough
    return 0


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
