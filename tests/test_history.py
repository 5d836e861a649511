"""History over hours and days, where its bounds are chosen, and what the file holds of it."""

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

from checkpoint import codec
from checkpoint.entries import Change, member_key
from checkpoint.errors import StoreError
from checkpoint.stores.base import host
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Create = Any  # Callable[..., MemoryStore | SQLiteStore]


@pytest.fixture(params=["memory", "sqlite"])
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


@pytest.mark.parametrize("what", ["keep", "keep_days"])
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (-1, "must be 0 or more, not -1"),
        (1.5, "must be an int, not float"),
        ("100", "must be an int, not str"),
        (True, "must be an int, not bool"),
        (None, "must be an int, not NoneType"),
    ],
)
def test_what_bounds_no_history_is_refused(create: Create, what: str, number: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        create(**{what: number})
    assert str(caught.value) == f"{what} {said}"
    assert isinstance(caught.value, ValueError) == (number == -1)


def test_a_change_tells_when_where_and_by_whom(create: Create) -> None:
    store = create()
    with freeze_time("2024-05-01T10:00:00.123456Z"):
        store.commit("job", {"a": "1"}, run_id="run-1")
    assert store.history("job") == [
        Change("a", None, "1", 1, "2024-05-01T10:00:00.123Z", "run-1", host(), os.getpid()),
    ]
    assert host()


@pytest.mark.parametrize("keep", [1, 2, 5, 40])
def test_the_last_changes_of_an_hour_are_kept(create: Create, keep: int) -> None:
    store = create(keep=keep)
    with freeze_time("2024-05-01T10:00:00Z") as clock:
        for number in range(60):
            clock.tick(timedelta(seconds=1))
            write(store, str(number))
            expected = [str(value) for value in range(number, -1, -1)][:keep]
            assert [change.after for change in store.history("job")] == expected


def test_no_history_is_kept_where_none_is_wanted(create: Create) -> None:
    store = create(keep=0)
    write(store, "1", "2", None, "3")
    assert told(store) == []
    assert store.load("job")["a"].version == 4


def after_at(store: MemoryStore | SQLiteStore, key: str, moment: str) -> tuple[str | None, str]:
    """Return what is known of a key at a moment: its newest kept value by then, and when it got that."""
    change = next(change for change in store.history("job", key) if change.at <= moment)
    return change.after, change.at


def test_fault_90_a_busy_key_drops_nothing_of_a_quiet_one(create: Create) -> None:
    store = create()
    with freeze_time("2024-05-01T10:00:00Z") as clock:
        for number in range(540):
            clock.tick(timedelta(minutes=4))
            store.commit("job", {"busy": str(number)} if number % 180 else {"busy": str(number), "quiet": str(number)})
        assert [change.after for change in store.history("job", "quiet")] == ["360", "180", "0"]
        # 540 commits in 36 hours: the last of each hour, and the 100 newest of all.
        busy = [(change.after, change.at) for change in store.history("job", "busy")]
        assert [after for after, _ in busy[:100]] == [str(number) for number in range(539, 439, -1)]
        hours = [at[:13] for _, at in busy[100:]]
        assert len(hours) == len(set(hours)) == 29
        assert {minute for _, at in busy[100:] if (minute := at[14:16]) not in {"56", "59"}} <= {"56"}


def test_fault_90_a_commit_every_2_s_reaches_back_for_hours(create: Create) -> None:
    store = create()
    with freeze_time("2024-05-01T06:00:00Z") as clock:
        for number in range(4_800):
            store.commit("job", {"busy": str(number)})
            clock.tick(timedelta(seconds=2))
        # "Before the deploy at 8:00": the last commit of the hour before.
        assert after_at(store, "busy", "2024-05-01T08:00:00.000Z") == ("3599", "2024-05-01T07:59:58.000Z")
        assert after_at(store, "busy", "2024-05-01T07:30:00.000Z") == ("1799", "2024-05-01T06:59:58.000Z")
        assert len(store.history("job")) == 102


def test_fault_90_of_older_changes_the_last_of_each_day_stays(create: Create) -> None:
    store = create(keep=3, keep_days=20)
    with freeze_time("2024-05-01T00:00:00Z") as clock:
        for _ in range(30 * 12):
            clock.tick(timedelta(hours=1))
            write(store, clock().isoformat(), clock().isoformat() + " again")
            clock.tick(timedelta(hours=1))
            write(store, clock().isoformat())
        now = clock()
        kept = [change.at for change in store.history("job")]
    assert kept[0] == "2024-05-31T00:00:00.000Z"
    hourly = [at for at in kept[3:] if at >= (now - timedelta(days=3)).isoformat()]
    assert len(hourly) == 71  # 72 hours and the present one, the newest two of which are among the last three changes
    assert len({at[:13] for at in hourly}) == 71
    daily = kept[3 + 71 :]
    assert [at[:10] for at in daily] == [f"2024-05-{day}" for day in range(27, 10, -1)]
    assert all("T23:" in at for at in daily)


def test_every_namespace_has_a_bound_of_its_own(create: Create) -> None:
    store = create(keep=20)
    with freeze_time("2024-05-01T00:00:00Z"):
        store.commit("other", {"a": "1"})
        write(store, *map(str, range(50)))
    assert len(store.history("job")) == 20
    assert len(store.history("other")) == 1


@pytest.mark.parametrize("keep", [1, 4])
def test_a_clock_that_goes_back_bounds_the_history_all_the_same(create: Create, keep: int) -> None:
    """Two hosts whose clocks are an hour apart commit in turn."""
    store = create(keep=keep)
    with freeze_time("2024-05-02T00:00:00Z") as clock:
        for number in range(40):
            clock.move_to(f"2024-05-02T0{1 + number % 2}:00:00Z")
            write(store, str(number))
        assert [change.after for change in store.history("job")][:keep] == [str(39 - back) for back in range(keep)]
        assert len(store.history("job")) <= keep + 2


def test_another_bound_takes_effect_with_the_next_commit(path: Path) -> None:
    def then(keep: int, value: str) -> list[str | None]:
        with closing(SQLiteStore(path, keep=keep)) as store:
            write(store, value)
            return [change.after for change in store.history("job")]

    with freeze_time("2024-05-01T10:00:00Z"):
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


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM checkpoint_changes").fetchone()
        return count


@pytest.mark.parametrize("keep", [0, 3])
def test_the_file_is_bounded_too(path: Path, keep: int) -> None:
    with closing(SQLiteStore(path, keep=keep, keep_days=0)) as store, freeze_time("2024-05-01T10:00:00Z") as clock:
        for number in range(80):
            clock.tick(timedelta(minutes=20))
            write(store, str(number))
            assert rows(path) <= keep * 1.5  # what is dropped may wait for another change


def test_the_file_stops_growing(path: Path) -> None:
    sizes: list[int] = []
    with closing(SQLiteStore(path, keep=20)) as store, freeze_time("2024-05-01T10:00:00Z"):
        for number in range(240):
            store.commit("job", {"a": f"{number:0300}", "b" if number % 2 else "c": str(number)})
            sizes.append(path.stat().st_size)
        assert len(store.history("job", "a")) == len(store.history("job", "b")) == 20
    assert sizes[-1] <= sizes[60] * 1.3


def test_what_a_commit_adds_grows_with_what_it_changes(path: Path) -> None:
    """A group of 2 000 members, one of which is changed by each commit."""
    cursor = codec.encode({"updated_at": "2024-05-01T10:00:00.000000+00:00"})
    members = [member_key("crm", f"member {number}") for number in range(2_000)]
    with closing(SQLiteStore(path)) as store:
        store.commit("job", dict.fromkeys(members, cursor))
        for warm in range(50):
            store.commit("job", {members[warm]: cursor})
        before = path.stat().st_size
        for number in range(200):
            store.commit("job", {members[number]: cursor})
    assert (path.stat().st_size - before) / 200 <= 2_048


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Connection.setlimit came with Python 3.11")
def test_a_change_too_large_for_the_history_is_left_out_of_it(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        store.commit("job", {"a": "1", "b": "b" * 60_000})
        store._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        store.commit("job", {"a": "2", "b": "c" * 60_000})
        assert [(change.key, change.after[:1]) for change in store.history("job")] == [
            ("a", "2"),
            ("a", "1"),
            ("b", "b"),
        ]
        write(store, "3")
        assert told(store, "a")[0] == ("a", "2", "3")


def test_a_commit_that_fails_is_not_told(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        write(store, "1")
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="full"):
            store.commit("job", {"a": "2", "b": "x" * 100_000})
        assert told(store) == [("a", None, "1")]


def test_a_store_in_memory_tells_of_what_is_kept_at_every_commit():
    """Those that are not kept are dropped now and then; the history never shows them."""
    store = MemoryStore(keep=10, keep_days=0)
    for number in range(1, 600):
        store.commit("run", {"a": str(number)})
        if number in {11, 255, 256, 257, 599}:
            assert [change.after for change in store.history("run", "a")][:10] == [
                str(number - before) for before in range(10)
            ]
            assert len(store.history("run", "a")) <= 11


def test_the_memory_store_drops_what_its_history_does_not_keep():
    store = MemoryStore(keep=1, keep_days=0)
    with freeze_time("2024-05-01T10:00:00Z"):
        for number in range(600):
            store.commit("job", {"a": str(number)})
    assert len(store._namespaces["job"]["a"].changes) <= 256
    assert len(store.history("job")) == 1
