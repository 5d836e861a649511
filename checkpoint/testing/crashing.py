"""Kill a connector at every place where it could die, run it again, and see which rows are missing or come twice.

The pytest fixture `crash_and_resume` uses it. Without pytest, pass it an empty folder.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import AsyncIterable
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast, overload

from checkpoint.entries import RUN_KEY
from checkpoint.stores import open_store
from checkpoint.testing.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Hashable, Iterable, Iterator, Mapping
    from pathlib import Path

    from checkpoint.entries import Receipt
    from checkpoint.stores.base import Store

T = TypeVar("T")
StoreT = TypeVar("StoreT", bound="Store")

STORE = "sqlite:///{folder}/state.db"
"""The default store."""

TOKEN_VARIABLES = ("TRUTO_API_TOKEN", "CHECKPOINT_TOKEN")

_SHOWN = 3  # rows in a message
LAST = "after the last record"
"""The name of the crash point at the end of a source."""


class Crash(BaseException):
    """Ends a job at a crash point; not an `Exception`, so that the job's own error handling does not catch it."""


class Crashes(NamedTuple):
    """The result of crashing and resuming a job."""

    points: int
    """How often the job was crashed, each time at another point."""
    twice: int
    """How many rows came twice, in the worst case."""


class Attempt:
    """One run of a job under test: its store, its sink, a folder for its files, and its crash points.

    The crash points are: before each item of `records` and after the last one, before and after each `write`, before
    and after each commit of `store`, and each `mark`.
    """

    def __init__(self, folder: Path, url: str, *, point: int | None = None, kill: bool = False) -> None:
        self.folder = folder
        """A folder for the job's own files, such as a sink's database. The resumed run gets the same folder."""
        self.url = url
        """The URL of the store, for a job that opens it itself. Then `watch` makes its commits crash points."""
        self.places: list[str] = []
        """The crash points that were reached, each as a text."""
        self.crashed: str | None = None
        """The crash point where the job was crashed. None: it was not crashed (yet)."""
        self._point = point
        self._kill = kill
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """The store. It is opened at the first use, and closed after the run."""
        with self._lock:
            if self._store is None:
                self._store = self.watch(open_store(self.url))
            return self._store

    def watch(self, store: StoreT) -> StoreT:
        """Make the commits of a store crash points, and return the store; for a store that the job opens itself."""
        commit, marked = store.commit, self._marking("commit", store.commit)

        def watched(state_key: str, changes: Mapping[str, str | None], *args: Any, **named: Any) -> Receipt:
            # The record of a run claims no rows: nothing is lost with it.
            return (commit if set(changes) == {RUN_KEY} else marked)(state_key, changes, *args, **named)

        store.commit = watched  # type: ignore[method-assign]  # the job's own store, watched
        return store

    @overload
    def records(self, source: Iterable[T]) -> Iterator[T]: ...
    @overload
    def records(self, source: AsyncIterable[T]) -> AsyncIterator[T]: ...
    def records(self, source: Iterable[T] | AsyncIterable[T]) -> Iterator[T] | AsyncIterator[T]:
        """Yield the items of a source, rows or pages; the job may die before each item and at the end."""
        if isinstance(source, AsyncIterable):
            return self._records_async(source)
        return self._records(source)

    def write(self, rows: Iterable[Any]) -> None:
        """Write rows to a file, which survives the crash; rows must be picklable.

        Use it if the job's own sink need not be tested. Otherwise pass `rows` to `crash_and_resume`.
        """
        self._marking("write", self._write)(list(rows))

    def mark(self, place: str) -> None:
        """Make this place a crash point, such as between two statements of a sink."""
        self._reach(f"at {place!r} number {self._number(place)}")

    def written(self) -> list[Any]:
        """Return the rows that `write` has written so far, by the crashed run too."""
        rows: list[Any] = []
        path = self._sink
        if path.exists():
            with path.open("rb") as file:
                while file.peek(1):
                    rows += pickle.load(file)  # noqa: S301 - written by this test
        return rows

    def close(self) -> None:
        """Close the store, if it was opened."""
        if self._store is not None:
            self._store.close()

    @property
    def _sink(self) -> Path:
        return self.folder / "written.pickle"

    def _write(self, rows: list[Any]) -> None:
        with self._sink.open("ab") as file:
            file.write(pickle.dumps(rows))

    def _records(self, source: Iterable[T]) -> Iterator[T]:
        for item in source:
            self._reach(f"before record {self._number('record')}", again=True)
            yield item
        self._reach(LAST, again=True)

    async def _records_async(self, source: AsyncIterable[T]) -> AsyncIterator[T]:
        async for item in source:
            self._reach(f"before record {self._number('record')}", again=True)
            yield item
        self._reach(LAST, again=True)

    def _marking(self, name: str, call: Callable[..., T]) -> Callable[..., T]:
        @wraps(call)
        def marked(*args: Any, **kwargs: Any) -> T:
            number = self._number(name)
            self._reach(f"before {name} {number}")
            result = call(*args, **kwargs)
            self._reach(f"after {name} {number}")
            return result

        return marked

    def _number(self, name: str) -> int:
        with self._lock:
            self._counts[name] += 1
            return self._counts[name]

    def _reach(self, place: str, *, again: bool = False) -> None:
        """Pass a crash point; if it is the chosen one, the job dies here.

        A job that catches its crash and goes on dies `again` when it reads. It may write and commit, as a `finally`
        does.
        """
        with self._lock:
            if self.crashed is None:
                self.places.append(place)
                if len(self.places) != self._point:
                    return
                self.crashed = place
                if self._kill:
                    os.kill(os.getpid(), signal.SIGKILL)
            elif not again:
                return
        raise Crash(self.crashed)


def crash_and_resume(
    job: Callable[[Attempt], object],
    folder: Path,
    *,
    rows: Callable[[Attempt], Iterable[Any]] = Attempt.written,
    primary_key: str | Callable[[Any], Hashable] | None = None,
    store: str = STORE,
    kill: bool = False,
    limit: int | None = 100,
) -> Crashes:
    """Crash a job at one point after another, resume it each time, and compare its rows with those of a whole run.

    The job is first run to its end, which gives the expected rows. Then, for each crash point, it is run with an empty
    store and folder until it dies there, and once more to its end. It must read the same source each time.

    Args:
        job: A function that runs the connector once. It gets an `Attempt`, opens a `Checkpointer` on its `store`, reads
            through its `records`, and writes.
        folder: An empty folder for the files of all runs.
        rows: A function of the `Attempt` that returns the rows of the job's own sink. Default: the rows that the job
            gave to `run.write`.
        primary_key: What identifies a row: a name, or a function of the row. None: the whole row.
        store: The URL of the store. In it `{folder}` stands for the run's folder, `{unique}` for a text that is used
            once, and `{server}` for the URL of an `ApiServer` that runs meanwhile: `{server}` alone is the Truto API,
            `server+{server}` the API of `checkpoint serve`. Its token is in `$TRUTO_API_TOKEN` and `$CHECKPOINT_TOKEN`.
        kill: False: the crash is a `BaseException`, so `finally` and `with` run as at Ctrl-C. True: the job runs in a
            forked process, which is killed with SIGKILL, so nothing runs. This needs `fork`, and a store and a sink
            outside of the process.
        limit: How many points are tried at most. Points around writes, commits and marks come first, then records,
            which are chosen at random, but the same ones each time. None: all points.

    Raises:
        AssertionError: rows are missing, the job writes no rows, or it reaches no crash point.
        ValueError: a limit below 1; `kill` with a store in memory, or on a system that cannot fork.

    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if kill and (store.startswith("memory:") or not hasattr(os, "fork")):
        raise ValueError("kill=True needs a system that forks, and a store outside of the process")

    trial = _Trial(job, folder, rows, primary_key, store, kill)
    truth, places = trial.whole()
    points = _chosen(places, limit or len(places))
    return Crashes(len(points), max(trial.crash(point, truth, places) for point in points))


def _chosen(places: list[str], limit: int) -> list[int]:
    """Return the numbers of the points to crash at, counted from 1."""
    dice = random.Random(len(places))  # noqa: S311 - a fixed step might always meet the same part of a page
    numbers = range(1, len(places) + 1)
    records = [number for number in numbers if places[number - 1] == LAST or " record " in places[number - 1]]
    others = sorted({*numbers}.difference(records))
    count = min(len(places), limit)
    most = min(len(others), max(count - len(records), -(-count * 3 // 4)))
    return sorted((*_spread(others, most, dice), *_spread(records, count - most, dice)))


def _spread(numbers: list[int], count: int, dice: random.Random) -> list[int]:
    """Divide the numbers into `count` equal parts, and return one number of each part."""
    ends = [index * len(numbers) // count for index in range(count + 1)] if count else []
    return [dice.choice(numbers[begin:end]) for begin, end in pairwise(ends)]


class _Trial(NamedTuple):
    """The job, and the arguments that all of its runs share."""

    job: Callable[[Attempt], object]
    folder: Path
    rows: Callable[[Attempt], Iterable[Any]]
    primary_key: str | Callable[[Any], Hashable] | None
    store: str
    kill: bool

    def whole(self) -> tuple[dict[Hashable, list[Any]], list[str]]:
        """Run the job to its end; return its rows by their identity, and its crash points.

        Raises:
            AssertionError: there are no rows, or no crash points.

        """
        with _place(self.folder / "whole", self.store) as url:
            run = Attempt(self.folder / "whole", url)
            _attempt(self.job, run)
            truth = self._delivered(run)
        if not truth:
            raise AssertionError(
                "the job wrote no rows: pass them to run.write, or pass rows= to read them from your sink"
            )
        if not run.places:
            raise AssertionError("the job passed no crash point: read through run.records, and use run.store")
        return truth, run.places

    def crash(self, point: int, truth: dict[Hashable, list[Any]], places: list[str]) -> int:
        """Crash the job at a point, resume it, and return how many rows came twice.

        Raises:
            AssertionError: rows are missing, or the job could not be resumed.

        """
        place = self.folder / f"crash-{point}"
        with _place(place, self.store) as url:
            crashed = Attempt(place, url, point=point, kill=self.kill)
            (_run_and_kill if self.kill else _attempt)(self.job, crashed)
            resumed = Attempt(place, url)
            try:
                _attempt(self.job, resumed)
            except Exception as error:
                raise AssertionError(f"crashed {places[point - 1]}, the job could not be resumed") from error
            found = self._delivered(resumed)
        where = f"crashed {crashed.crashed or places[point - 1]} (point {point} of {len(places)}) and resumed"
        return _check_rows(truth, found, where)

    def _delivered(self, run: Attempt) -> dict[Hashable, list[Any]]:
        found: dict[Hashable, list[Any]] = {}
        for row in self.rows(run):
            found.setdefault(_told_apart_by(row, self.primary_key), []).append(row)
        return found


def _check_rows(truth: dict[Hashable, list[Any]], found: dict[Hashable, list[Any]], where: str) -> int:
    """Return how many rows came twice.

    Raises:
        AssertionError: rows of a whole run are missing.

    """
    missing = [row for key, rows in truth.items() for row in rows[len(found.get(key, ())) :]]
    if missing:
        of = sum(map(len, truth.values()))
        raise AssertionError(f"{where}, the job lost {len(missing)} of {of} rows: {_first_rows(missing)}")
    return sum(max(0, len(rows) - len(truth.get(key, ()))) for key, rows in found.items())


def fill(template: str, folder: Path, server: str) -> str:
    """Return the URL of an empty store from a template; see `store` of `crash_and_resume`."""
    fields = {"{folder}": str(folder), "{unique}": token_hex(8), "{server}": server}
    for name, value in fields.items():
        template = template.replace(name, value)
    return template


@contextmanager
def _place(folder: Path, template: str) -> Generator[str]:
    """Make a folder, and yield the URL of an empty store; if it needs a server, one runs meanwhile."""
    folder.mkdir(parents=True)
    if "{server}" not in template:
        yield fill(template, folder, "")
        return
    before = {name: os.environ[name] for name in TOKEN_VARIABLES if name in os.environ}
    with ApiServer() as server:
        os.environ.update(dict.fromkeys(TOKEN_VARIABLES, server.token))
        try:
            yield fill(template, folder, server.url)
        finally:
            for name in TOKEN_VARIABLES:
                del os.environ[name]
            os.environ.update(before)


def _attempt(job: Callable[[Attempt], object], run: Attempt) -> None:
    """Run a job in this process, to its end or to its crash point."""
    try:
        job(run)
    except BaseException:
        if run.crashed is None:
            raise
    finally:
        run.close()


def _run_and_kill(job: Callable[[Attempt], object], run: Attempt) -> None:
    """Run a job in a forked process, to its end or to its crash point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a test may have threads; the child does not use them
        pid = os.fork()
    if not pid:
        try:
            _attempt(job, run)
        except BaseException:  # noqa: BLE001 - the child must not return into the parent's code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in {0, -signal.SIGKILL}:
        raise AssertionError(f"the job failed before its crash point: its process ended with {code}")


def _told_apart_by(row: Any, primary_key: str | Callable[[Any], Hashable] | None) -> Hashable:
    if primary_key is None:
        return _frozen(row)
    return _frozen(row[primary_key] if isinstance(primary_key, str) else primary_key(row))


def _frozen(value: object) -> Hashable:
    """Return a hashable value; equal rows have equal values."""
    if isinstance(value, dict):
        return frozenset((key, _frozen(item)) for key, item in cast("dict[object, object]", value).items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in cast("Iterable[object]", value))
    return value


def _first_rows(rows: list[Any]) -> str:
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return ", ".join(map(repr, rows[:_SHOWN])) + more
