"""Connectors killed at every place where they could die, and run again: what is missing, what comes twice.

The pytest fixture `crash_and_resume` is made of it; elsewhere it is called with a folder of its own.
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
"""The store of a test that names none."""

TOKEN_VARIABLES = ("TRUTO_API_TOKEN", "CHECKPOINT_TOKEN")

_SHOWN = 3  # rows in a message
LAST = "after the last record"
"""The crash point that each end of a source is."""


class Crash(BaseException):
    """What ends a job at a chosen point; no `Exception`, so that a job's own error handling does not see it."""


class Crashes(NamedTuple):
    """What came of a job that was crashed and resumed."""

    points: int
    """How many times it was, each time at another point."""
    twice: int
    """Rows that came twice after the worst of them."""


class Attempt:
    """One run of a job under test: where its state, its rows and its files go, and where it may die.

    Possible crash points are: before each item of `records` and after the last one, before and after each `write`,
    before and after each commit of `store`, and each `mark`.
    """

    def __init__(self, folder: Path, url: str, *, point: int | None = None, kill: bool = False) -> None:
        self.folder = folder
        """A folder for files of the job's own, such as a sink's database; the run that resumes finds them again."""
        self.url = url
        """The URL of the store, for a job that opens it itself; its commits are crash points where it is watched."""
        self.places: list[str] = []
        """The crash points that were reached, in words."""
        self.crashed: str | None = None
        """The one where it was crashed, None: nowhere (yet)."""
        self._point = point
        self._kill = kill
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """The store, opened when it is first asked for, and closed after the run."""
        with self._lock:
            if self._store is None:
                self._store = self.watch(open_store(self.url))
            return self._store

    def watch(self, store: StoreT) -> StoreT:
        """Make the commits of a store crash points, and return it: for one that the job opens itself."""
        commit, marked = store.commit, self._marking("commit", store.commit)

        def watched(state_key: str, changes: Mapping[str, str | None], *args: Any, **named: Any) -> Receipt:
            # The record of a run claims no rows: where it is lost nothing is.
            return (commit if set(changes) == {RUN_KEY} else marked)(state_key, changes, *args, **named)

        store.commit = watched  # type: ignore[method-assign]  # the job's own store, watched
        return store

    @overload
    def records(self, source: Iterable[T]) -> Iterator[T]: ...
    @overload
    def records(self, source: AsyncIterable[T]) -> AsyncIterator[T]: ...
    def records(self, source: Iterable[T] | AsyncIterable[T]) -> Iterator[T] | AsyncIterator[T]:
        """Yield what a source yields, rows or pages; the job may die before each and at the end."""
        if isinstance(source, AsyncIterable):
            return self._records_async(source)
        return self._records(source)

    def write(self, rows: Iterable[Any]) -> None:
        """Write rows to a sink that keeps them in a file; they must pickle. Reaches the disk's cache before it returns.

        For a job whose own sink is not what is tested; see `rows` of `crash_and_resume` otherwise.
        """
        self._marking("write", self._write)(list(rows))

    def mark(self, place: str) -> None:
        """Name a place where the job may die, such as between two of a sink's statements."""
        self._reach(f"at {place!r} number {self._number(place)}")

    def written(self) -> list[Any]:
        """Return the rows that `write` has written so far, in all runs."""
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
        """Come to a place where the job dies if it was chosen.

        One that goes on after its crash dies `again` where it reads; writing and committing are let pass, as a
        `finally` may do so.
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

    `job(run)` gets an `Attempt`, and is run: once to its end, for the truth; then for each crash point, with an empty
    store and folder, until it dies there, and once more to its end. It must read the same source each time.

    Args:
        job: A whole run of the connector, from opening a `Checkpointer` on `run.store` to its end.
        folder: An empty folder for the files of all runs.
        rows: Returns what the job's own sink holds; without it, what the job gave to `run.write`.
        primary_key: What tells whether two rows are the same: a name, or a callable of the row. None: the whole row.
        store: The URL of the store, in which `{folder}` stands for the run's folder, `{unique}` for a text that is used
            once, and `{server}` for the URL of an `ApiServer` that runs meanwhile: `{server}` alone is the Truto API,
            `server+{server}` the API of `checkpoint serve`. Its token is in `$TRUTO_API_TOKEN` and `$CHECKPOINT_TOKEN`.
        kill: False: the point raises a `BaseException`, so that `finally` and `with` do what they do at Ctrl-C. True:
            the job runs in a forked process, which SIGKILL ends, so that nothing does. Needs `fork`, and a store and a
            sink outside of the process.
        limit: Of more points than this, so many are taken: those around writes, commits and marks first, then records,
            spread by chance, the same ones each time. None: all.

    Raises:
        AssertionError: rows are missing; the job writes none, or reaches no point where it could die.
        ValueError: a limit below 1, or `kill` with a store in memory, or where processes cannot fork.

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
    dice = random.Random(len(places))  # noqa: S311 - a step of fixed length might always meet the same part of a page
    numbers = range(1, len(places) + 1)
    records = [number for number in numbers if places[number - 1] == LAST or " record " in places[number - 1]]
    others = sorted({*numbers}.difference(records))
    count = min(len(places), limit)
    most = min(len(others), max(count - len(records), -(-count * 3 // 4)))
    return sorted((*_spread(others, most, dice), *_spread(records, count - most, dice)))


def _spread(numbers: list[int], count: int, dice: random.Random) -> list[int]:
    """Return one number of each of so many parts of the same length."""
    ends = [index * len(numbers) // count for index in range(count + 1)] if count else []
    return [dice.choice(numbers[begin:end]) for begin, end in pairwise(ends)]


class _Trial(NamedTuple):
    """The job, and what its runs have in common."""

    job: Callable[[Attempt], object]
    folder: Path
    rows: Callable[[Attempt], Iterable[Any]]
    primary_key: str | Callable[[Any], Hashable] | None
    store: str
    kill: bool

    def whole(self) -> tuple[dict[Hashable, list[Any]], list[str]]:
        """Run the job to its end; return its rows by what tells them apart, and the places where it could die.

        Raises:
            AssertionError: there are no rows, or no such places.

        """
        with _place(self.folder / "whole", self.store) as url:
            run = Attempt(self.folder / "whole", url)
            _attempt(self.job, run)
            truth = self._delivered(run)
        if not truth:
            raise AssertionError(
                "the job wrote no rows: give them to run.write, or tell by rows= how to read them back"
            )
        if not run.places:
            raise AssertionError("the job passed no point where it could die: read through run.records, open run.store")
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
    """Return the URL of an empty store: a template with its fields filled in, see `store` of `crash_and_resume`."""
    fields = {"{folder}": str(folder), "{unique}": token_hex(8), "{server}": server}
    for name, value in fields.items():
        template = template.replace(name, value)
    return template


@contextmanager
def _place(folder: Path, template: str) -> Generator[str]:
    """Make a folder, and yield the URL of an empty store; a server that it needs runs meanwhile."""
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
    """Run a job in a process of its own, to its end or to its crash point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a test may have threads; the child does not use them
        pid = os.fork()
    if not pid:
        try:
            _attempt(job, run)
        except BaseException:  # noqa: BLE001 - the parent's frames must not go on in the child
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
    """Return something hashable that equals that of another row where the rows are equal."""
    if isinstance(value, dict):
        return frozenset((key, _frozen(item)) for key, item in cast("dict[object, object]", value).items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in cast("Iterable[object]", value))
    return value


def _first_rows(rows: list[Any]) -> str:
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return ", ".join(map(repr, rows[:_SHOWN])) + more
