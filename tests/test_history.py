"""History where its bound is chosen: a number of commits, an age, none; and what the file holds of it."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from contextlib import closing
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import pytest
from freezegun import freeze_time

from checkpoint.entries import Change
from checkpoint.errors import StoreError
from checkpoint.stores.base import host
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Create = Any  # Callable[..., MemoryStore | SQLiteStore]


@pytest.fixture(params=["sqlite"])
def create(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., MemoryStore | SQLiteStore]]:
    """Return a constructor of stores that takes `keep`; those of SQLite are of one file."""
    opened: list[MemoryStore | SQLiteStore] = []

    def new(**options: Any) -> MemoryStore | SQLiteStore:
        store = MemoryStore(**options) if request.param == "memory" else SQLiteStore(tmp_path / "state.db", **options)
        opened.append(store)
        return store

    yield new
    for store in opened:
        store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def told(store: MemoryStore | SQLiteStore, key: str | None = None) -> list[tuple[str, str | None, str | None]]:
    return [(change.key, change.before, change.after) for change in store.history("job", key)]


def write(store: MemoryStore | SQLiteStore, *values: str | None) -> None:
    for value in values:
        store.commit("job", {"a": value})


def rows(path: Path) -> list[tuple[int, int, int, int]]:
    """Return number, version, `first`, and whether history tells of it, of each row."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT number, version, first, at IS NOT NULL FROM checkpoint_commits ORDER BY number, version"
        ).fetchall()


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (-1, "keep must be a number of commits from 0 on, not -1"),
        (
            timedelta(0),
            "keep must be an age greater than 0, not datetime.timedelta(0); to keep no history: 0",
        ),
        (
            timedelta(days=-1),
            "keep must be an age greater than 0, not datetime.timedelta(days=-1); to keep no history: 0",
        ),
        (1.5, "keep must be a number of commits or a timedelta, not float"),
        ("100", "keep must be a number of commits or a timedelta, not str"),
        (True, "keep must be a number of commits or a timedelta, not bool"),
        (None, "keep must be a number of commits or a timedelta, not NoneType"),
    ],
)
def test_what_bounds_no_history_is_refused(create: Create, keep: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        create(keep=keep)
    assert str(caught.value) == said
    assert isinstance(caught.value, ValueError) == isinstance(keep, (int, timedelta)) or keep is True


def test_a_change_tells_when_where_and_by_whom(create: Create) -> None:
    store = create()
    with freeze_time("2024-05-01T10:00:00.123456Z"):
        store.commit("job", {"a": "1"}, run_id="run-1")
    assert store.history("job") == [
        Change("a", None, "1", 1, "2024-05-01T10:00:00.123Z", "run-1", host(), os.getpid()),
    ]
    assert host()


@pytest.mark.parametrize("keep", [1, 2, 5, 16, 17, 40])
def test_the_last_commits_are_kept(create: Create, keep: int) -> None:
    store = create(keep=keep)
    for number in range(60):
        write(store, str(number))
        expected = [str(value) for value in range(number, -1, -1)][:keep]
        assert [change.after for change in store.history("job")] == expected


def test_no_history_is_kept_where_none_is_wanted(create: Create) -> None:
    store = create(keep=0)
    write(store, "1", "2", None, "3")
    assert told(store) == []
    assert store.load("job")["a"].version == 4


def test_a_commit_older_than_the_age_is_dropped_by_the_next(create: Create) -> None:
    store = create(keep=timedelta(days=2))
    with freeze_time("2024-05-01T00:00:00Z") as clock:
        for day in range(40):
            clock.tick(timedelta(days=1))
            write(store, str(day))
            assert [change.after for change in store.history("job")] == [
                str(value) for value in range(day, max(day - 3, -1), -1)
            ]
        clock.tick(timedelta(days=30))
        assert len(store.history("job")) == 3
        write(store, "last")
        assert told(store) == [("a", "39", "last")]


@pytest.mark.parametrize("keep", [0, timedelta(hours=1)])
def test_the_librarys_own_keys_push_nothing_out(tmp_path: Path, keep: int | timedelta) -> None:
    with freeze_time("2024-05-01T00:00:00Z") as clock:
        with closing(SQLiteStore(tmp_path / "state.db")) as store:
            write(store, "1", "2")
        clock.tick(timedelta(hours=2))
        with closing(SQLiteStore(tmp_path / "state.db", keep=keep)) as store:
            for changes in ({"__lease__": "1"}, {"b": None}):
                store.commit("job", changes)
                assert told(store) == [("a", "1", "2"), ("a", None, "1")]
            write(store, "3")
            assert told(store) == ([("a", "2", "3")] if keep else [])


def test_of_an_age_too_the_librarys_own_keys_push_nothing_out(create: Create) -> None:
    store = create(keep=timedelta(hours=1))
    with freeze_time("2024-05-01T00:00:00Z") as clock:
        write(store, "1", "2")
        clock.tick(timedelta(hours=2))
        for changes in ({"__lease__": "1"}, {"b": None}):
            store.commit("job", changes)
            assert told(store) == [("a", "1", "2"), ("a", None, "1")]
        write(store, "3")
        assert told(store) == [("a", "2", "3")]


def test_the_greatest_age_keeps_all(create: Create) -> None:
    store = create(keep=timedelta.max)
    write(store, *map(str, range(130)))
    assert len(store.history("job")) == 130


def test_a_clock_that_goes_back_loses_no_history(create: Create) -> None:
    store = create(keep=timedelta(hours=1))
    with freeze_time("2024-05-02T00:00:00Z") as clock:
        write(store, "1")
        clock.move_to("2024-05-01T00:00:00Z")
        write(store, "2", "3")
        assert told(store) == [("a", "2", "3"), ("a", "1", "2"), ("a", None, "1")]


def test_every_namespace_has_a_bound_of_its_own(create: Create) -> None:
    store = create(keep=20)
    store.commit("other", {"a": "1"})
    write(store, *map(str, range(50)))
    assert len(store.history("job")) == 20
    assert len(store.history("other")) == 1


def test_commits_of_several_threads_are_told_in_order(create: Create) -> None:
    store = create()

    def work(number: int) -> None:
        for turn in range(5):
            store.commit("job", {f"key {number}": str(turn)})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [change.version for change in store.history("job")] == list(range(20, 0, -1))
    for number in range(4):
        assert [change.after for change in store.history("job", f"key {number}")] == ["4", "3", "2", "1", "0"]


def test_keys_and_values_may_be_of_classes_derived_from_str(create: Create) -> None:
    class Key(str, Enum):
        A = "a"

    class Value(str):
        __slots__ = ()

    store = create()
    store.commit("job", {Key.A: Value("1")})
    store.commit("job", {Key.A: Value("2")})
    assert told(store) == told(store, "a") == [("a", "1", "2"), ("a", None, "1")]


# In the file


def test_history_that_was_damaged_is_an_error(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        write(store, "1")
        store._connected().execute("UPDATE checkpoint_commits SET before = '{'")
        with pytest.raises(StoreError) as caught:
            store.history("job")
        assert str(caught.value).startswith(f"{path} is not a usable checkpoint database (its history: ")
        write(store, "2")
        assert store.load("job")["a"].value == "2"


def test_another_bound_takes_effect_with_the_next_commit(path: Path) -> None:
    def then(keep: int, value: str) -> list[str | None]:
        with closing(SQLiteStore(path, keep=keep)) as store:
            write(store, value)
            return [change.after for change in store.history("job")]

    for value in range(10):
        then(100, str(value))
    assert then(5, "10") == ["10", "9", "8", "7", "6"]
    assert then(100, "11") == ["11", "10", "9", "8", "7", "6"]
    assert then(0, "12") == []
    assert then(100, "13") == ["13"]
    with closing(SQLiteStore(path, keep=1)) as store:
        assert told(store) == [("a", "12", "13")]


def test_who_only_reads_sees_all_that_is_kept(path: Path) -> None:
    with closing(SQLiteStore(path)) as store, closing(SQLiteStore(path, keep=0)) as reader:
        write(store, "1", "2")
        assert told(reader) == [("a", "1", "2"), ("a", None, "1")]


def test_a_commit_without_history_between_others_is_not_told_as_theirs(path: Path) -> None:
    with closing(SQLiteStore(path)) as store, closing(SQLiteStore(path, keep=0)) as silent:
        write(store, "1", "2")
        write(silent, "3")
        assert told(store) == []
        write(store, "4")
        assert told(store) == [("a", "3", "4")]


@pytest.mark.parametrize("keep", [0, 3, timedelta(hours=1)])
def test_the_file_is_bounded_too(path: Path, keep: int | timedelta) -> None:
    with closing(SQLiteStore(path, keep=keep)) as store, freeze_time("2024-05-01T10:00:00Z") as clock:
        for number in range(80):
            clock.tick(timedelta(minutes=20))
            write(store, str(number))
            assert number % 10 != 9 or len(rows(path)) <= 20
    assert rows(path)[-1][1] == 80


def test_what_history_does_not_tell_of_takes_one_row(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        store.commit("job", {"__lease__": "0"})
        assert rows(path) == [(0, 1, 1, 0)]
        write(store, "1")
        assert rows(path) == [(1, 2, 1, 1)]
        for number in range(20):
            store.commit("job", {"__lease__": str(number)})
        assert rows(path) == [(1, 2, 1, 1), (1, 22, 1, 0)]
        write(store, "2")
        assert rows(path) == [(1, 2, 1, 1), (2, 23, 1, 1)]
        assert told(store) == [("a", "1", "2"), ("a", None, "1")]
        assert store.commit("job", {"a": None, "__lease__": None}).entries == {}
        assert store.commit("job", {"a": "3"}).entries["a"].version == 25


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Connection.setlimit came with Python 3.11")
def test_history_begins_again_after_a_commit_too_large_for_it(path: Path) -> None:
    large = {key: key * 60_000 for key in ("a", "b")}
    with closing(SQLiteStore(path)) as store:
        store.commit("job", {"a": "1"})
        store.commit("job", large)
        store._connected().setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        store.commit("job", {"a": "2", "b": "2"})
        assert told(store) == []
        assert {entry.version for entry in store.load("job").values()} == {3}
        write(store, "3")
        assert told(store) == [("a", "2", "3")]


def test_a_commit_that_fails_is_not_told(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        write(store, "1")
        (pages,) = store._connected().execute("PRAGMA page_count").fetchone()
        store._connected().execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="full"):
            store.commit("job", {"a": "2", "b": "x" * 100_000})
        assert told(store) == [("a", None, "1")]
