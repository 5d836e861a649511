"""The SQLite store: files found in any state, other processes, crashes, and what SQLite says when it fails."""

from __future__ import annotations

import errno
import gc
import itertools
import logging
import multiprocessing
import os
import pwd
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import pytest

from checkpoint.entries import Change, Entry
from checkpoint.errors import Conflict, CorruptState, StoreError, StoreUnavailable, ValueTooLarge
from checkpoint.stores import retrying, sqlite_file, sqlite_tables
from checkpoint.stores.sqlite import SQLiteStore
from checkpoint.stores.sqlite_file import journal_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIXED, VULNERABLE = (3, 51, 3), (3, 40, 1)
KEPT = "and was left unchanged: replace it by a good copy, or move it away to start over"
CANNOT_BE_OPENED = "cannot be opened: it and its folder must exist and be writable"

as_a_user = pytest.mark.skipif(os.geteuid() == 0, reason="root is denied nothing")
in_parallel = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path)
    yield store
    store.close()


@pytest.fixture
def impatient(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path, deadline=0.2)
    yield store
    store.close()


def connection_of(store: SQLiteStore) -> sqlite3.Connection:
    store.load("job")
    assert store._connection is not None
    return store._connection


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def values(store: SQLiteStore) -> dict[str, str]:
    return {key: entry.value for key, entry in store.load("job").items()}


def load(path: Path) -> dict[str, str]:
    with closing(SQLiteStore(path)) as store:
        return values(store)


def commit(path: Path, key: str) -> None:
    with closing(SQLiteStore(path)) as store:
        store.commit("job", {key: "1"})


def make(path: Path, keys: int = 100) -> bytes:
    with closing(SQLiteStore(path)) as store:
        store.commit("job", {f"key {number}": "value" * 20 for number in range(keys)})
    Path(f"{path}-journal").unlink(missing_ok=True)
    return path.read_bytes()


def in_children(count: int, work: Callable[[int], object]) -> None:
    """Run the work in so many forked processes, which begin together."""
    barrier = in_parallel.Barrier(count)

    def begin(number: int) -> None:
        barrier.wait(30)
        work(number)

    children = [in_parallel.Process(target=begin, args=(number,)) for number in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * count


def gave_up(path: Path, error: StoreError) -> str:
    """Return how the last attempt ended, as the error of an operation that gave up tells it."""
    assert isinstance(error, StoreUnavailable)
    found = re.fullmatch(rf"{re.escape(str(path))}: gave up after \d+ attempts? in \d+\.\d s: (.*)", str(error))
    assert found
    return found[1]


# What it is called


def test_the_url_names_a_relative_or_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    urls = ("sqlite:///state.db", "sqlite:////var/state.db", "sqlite:///a%20b/%C3%A9%3F%2523.db")
    assert [repr(SQLiteStore.from_url(url)) for url in urls] == [
        f"SQLiteStore('{tmp_path}/state.db')",
        "SQLiteStore('/var/state.db')",
        f"SQLiteStore('{tmp_path}/a b/é?%23.db')",
    ]


@pytest.mark.parametrize(
    "url",
    [
        *("sqlite:", "sqlite://", "sqlite:///", "sqlite://host/state.db", "sqlite:state.db", "sqlite:/state.db"),
        *("sqlite:///state.db#1", "state.db", ""),
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        SQLiteStore.from_url(url)
    assert str(caught.value) == (
        f"a SQLite store's URL must be sqlite:///relative.db or sqlite:////absolute.db, not {url!r}"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have no such names")
def test_the_url_reaches_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///a%20b%3Fmode%3Dro.db", "sqlite:///%2523.db", "sqlite:///%FF.db"):
        with closing(SQLiteStore.from_url(url)) as store:
            assert store.load("job") == {}
    assert sorted(os.fsencode(found.name) for found in tmp_path.iterdir()) == [b"%23.db", b"a b?mode=ro.db", b"\xff.db"]


@pytest.mark.parametrize("create", [SQLiteStore, lambda path: SQLiteStore.from_url("sqlite:///a%00b")])
def test_a_path_holds_no_nul(create: Callable[[str], SQLiteStore]) -> None:
    with pytest.raises(ValueError, match="NUL") as caught:
        create("a\0b")
    assert str(caught.value) == "a path must not hold a NUL: 'a\\x00b'"


def test_a_relative_path_is_that_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("state.db")
    monkeypatch.chdir("/")
    store.commit("job", {"a": "1"})
    store.close()
    assert load(tmp_path / "state.db") == {"a": "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
def test_without_a_path_it_is_in_the_user_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path}/not/yet")
    store = SQLiteStore()
    assert repr(store) == f"SQLiteStore('{tmp_path}/not/yet/checkpoint/state.db')"
    assert store.load("job") == {}
    store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
def test_without_a_user_state_folder_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path}/file")
    with pytest.raises(StoreError) as caught:
        SQLiteStore()
    assert str(caught.value) == (
        f"the user state folder cannot be created ([Errno 20] Not a directory: '{tmp_path}/file/checkpoint'): "
        "pass a store, or set CHECKPOINT_STORE"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
def test_fault_40_without_a_home_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "nowhere")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(StoreError, match=r"home.*: pass a store, or set CHECKPOINT_STORE$"):
        SQLiteStore()
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_was_not_found_is_no_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_state_path", lambda name: Path("~/.local/state") / name)
    with pytest.raises(StoreError) as caught:
        SQLiteStore()
    assert str(caught.value) == (
        "this user has no home folder (~/.local/state/checkpoint): pass a store, or set CHECKPOINT_STORE"
    )
    assert list(tmp_path.iterdir()) == []


def test_platformdirs_is_imported_only_for_the_user_state_folder() -> None:
    script = "import sys, checkpoint.stores.sqlite as s; s.SQLiteStore('x'); assert 'platformdirs' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# Journal


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 6, 23), "truncate"),  # no WAL yet
        ((3, 7, 0), "truncate"),
        ((3, 40, 1), "truncate"),
        ((3, 44, 5), "truncate"),
        ((3, 44, 6), "wal"),
        ((3, 45, 0), "truncate"),
        ((3, 50, 6), "truncate"),
        ((3, 50, 7), "wal"),
        ((3, 51, 0), "truncate"),
        ((3, 51, 2), "truncate"),
        ((3, 51, 3), "wal"),
        ((3, 52, 0), "wal"),
        ((4, 0, 0), "wal"),
    ],
)
def test_wal_is_chosen_where_sqlite_is_safe_with_it(version: tuple[int, int, int], mode: str) -> None:
    assert journal_mode(version) == mode


@pytest.mark.parametrize(("version", "mode"), [(FIXED, "wal"), (VULNERABLE, "truncate")])
def test_a_new_file_is_in_the_chosen_mode_and_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], mode: str
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    with closing(SQLiteStore(path)) as store:
        connection = connection_of(store)
        pragmas = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "fullfsync")
        }
    assert pragmas == {"journal_mode": mode, "synchronous": 3, "fullfsync": 1}


@pytest.mark.parametrize(("found", "mode"), [("wal", "wal"), ("delete", "truncate")])
def test_a_fixed_version_keeps_the_mode_it_finds(
    path: Path, monkeypatch: pytest.MonkeyPatch, found: str, mode: str
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", FIXED)
    make(path)
    with closing(connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {found}")
    with closing(SQLiteStore(path)) as store:
        connection = connection_of(store)
        assert connection.execute("PRAGMA journal_mode").fetchone() == (mode,)
        assert len(store.load("job")) == 100


def test_a_vulnerable_version_takes_a_file_out_of_wal_mode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", VULNERABLE)
    make(path)
    with closing(connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("UPDATE checkpoint_entries SET value = 'in the log'")
    assert set(load(path).values()) == {"in the log"}
    commit(path, "a")
    assert path.read_bytes()[18:20] == b"\1\1"  # sqlite.org/fileformat.html: 1 is rollback, 2 is WAL


def test_a_file_that_others_keep_in_wal_mode_is_refused(
    path: Path, impatient: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", VULNERABLE)
    make(path)
    with closing(connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("SELECT * FROM checkpoint_entries").fetchall()
        with pytest.raises(StoreError) as caught:
            impatient.load("job")
    assert gave_up(path, caught.value) == (
        f"it is in WAL mode, in which SQLite {sqlite3.sqlite_version} may corrupt it (sqlite.org/wal.html, the "
        "WAL-reset bug), and other connections keep it in that mode: close them, or use SQLite 3.51.3 or later"
    )
    assert len(impatient.load("job")) == 100


def test_a_file_in_wal_mode_is_waited_for(path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", VULNERABLE)
    make(path)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("SELECT * FROM checkpoint_entries").fetchall()
    closing_it = threading.Timer(0.2, other.close)
    closing_it.start()
    assert len(store.load("job")) == 100
    closing_it.join()


def test_eight_processes_take_a_file_out_of_wal_mode_at_once(path: Path) -> None:
    make(path)
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    in_children(8, lambda number: commit(path, f"child {number}"))
    assert len(load(path)) == 108


# Files found


def refused(path: Path, reason: str) -> None:
    """Neither reading nor writing takes the file for a store, or changes it or anything beside it."""
    before, beside = path.read_bytes(), sorted(path.parent.iterdir())
    for call in (lambda: load(path), lambda: commit(path, "a")):
        with pytest.raises(StoreError) as caught:
            call()
        assert str(caught.value) == f"{path} is not a usable checkpoint database ({reason}), {KEPT}"
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == beside


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\n", "it was cut off"),
        (b"{}", "file is not a database"),
        (b"garbage" * 5_000, "file is not a database"),
        (bytes(4096), "file is not a database"),
        (bytes(100_000), "file is not a database"),
    ],
)
def test_fault_41_an_empty_file_and_garbage_are_no_fresh_start(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    refused(path, reason)


def test_fault_41_a_file_cut_off_anywhere_is_no_fresh_start(path: Path) -> None:
    whole = make(path)
    lengths = {
        1,
        15,
        16,
        17,
        99,
        100,
        101,
        511,
        512,
        513,
        *range(4096, len(whole), 4096),
        *range(700, len(whole), 1999),
    }
    said = {"file is not a database", "database disk image is malformed", "it was cut off"}
    for length in sorted({*lengths, len(whole) - 1}):
        path.write_bytes(whole[:length])
        for _ in range(2):
            with pytest.raises(StoreError) as caught:
                load(path)
            assert str(caught.value) in {f"{path} is not a usable checkpoint database ({s}), {KEPT}" for s in said}
        assert path.read_bytes() == whole[:length]


def test_a_damaged_page_is_an_error_when_it_is_read(path: Path) -> None:
    whole = make(path)
    path.write_bytes(whole[:16_384] + b"\xff" * (len(whole) - 16_384))
    refused(path, "database disk image is malformed")


def test_fault_41_a_form_for_later_releases_is_refused(path: Path) -> None:
    make(path)
    with closing(connect(path)) as connection:
        connection.execute("UPDATE checkpoint_schema SET version = 5, readable_from = 4, release = '0.4'")
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            commit(path, "a")
        assert str(caught.value) == (
            f"{path} has form 5, which needs a release that knows form 4 (checkpoint-store 0.4 or later), and this "
            "one knows form 3: upgrade checkpoint-store; the file was left unchanged"
        )
    assert path.read_bytes() == before


def test_a_later_form_that_this_release_can_read_is_used(path: Path) -> None:
    make(path, keys=1)
    with closing(connect(path)) as connection:
        connection.execute("UPDATE checkpoint_schema SET version = 5, readable_from = 3, release = '0.2'")
        connection.execute("CREATE TABLE checkpoint_later (id)")
        for table in ("schema", "entries", "namespaces", "changes"):
            connection.execute(f"ALTER TABLE checkpoint_{table} ADD COLUMN later TEXT")
        connection.execute("UPDATE checkpoint_entries SET later = 'kept'")
    with closing(SQLiteStore(path)) as store:
        assert values(store) == {"key 0": "value" * 20}
        store.commit("job", {"a": "1"})
        store.commit("job", {"a": "2"})
        assert values(store)["a"] == "2"
        assert [change.before for change in store.history("job", "a")] == ["1", None]
    with closing(connect(path)) as connection:
        assert connection.execute("SELECT version, readable_from FROM checkpoint_schema").fetchall() == [(5, 3)]
        assert connection.execute("SELECT later FROM checkpoint_entries WHERE key = 'key 0'").fetchone() == ("kept",)


def test_a_database_of_somebody_else_gets_our_tables(path: Path) -> None:
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")
        connection.execute("CREATE TABLE entries (id)")
    with closing(SQLiteStore(path)) as store:
        before = path.read_bytes()
        assert (store.load("job"), store.namespaces(), store.history("job"), store.read("job", "a")) == ({}, [], [], {})
        assert path.read_bytes() == before
        store.commit("job", {"a": "1"})
    with closing(connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        assert tables(path) == {*NEW_TABLES, "entries"}
    assert load(path) == {"a": "1"}


def test_eight_processes_add_our_tables_at_once(path: Path) -> None:
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE entries (id)")
    in_children(8, lambda number: commit(path, f"child {number}"))
    assert len(load(path)) == 8


def test_tables_that_another_adds_meanwhile_are_used(path: Path, store: SQLiteStore) -> None:
    with closing(connect(path)) as other:
        other.execute("CREATE TABLE entries (id)")
        other.execute("BEGIN IMMEDIATE")
        for statement in sqlite_tables._TABLES:
            other.execute(statement)
        other.execute("INSERT INTO checkpoint_entries VALUES ('job', 'theirs', '1', '', '', NULL, 1)")
        thread = threading.Thread(target=store.commit, args=("job", {"ours": "1"}))
        thread.start()
        time.sleep(0.2)  # it waits for the lock, having seen no tables
        other.execute("COMMIT")
    thread.join()
    assert values(store) == {"ours": "1", "theirs": "1"}


# Files of an earlier release


OLD = Path(__file__).parent / "data" / "sqlite-schema-1.db"
OLD_2 = OLD.with_name("sqlite-schema-2.db")
OLD_TABLES = {"checkpoint_entries", "checkpoint_namespaces", "checkpoint_schema"}
OLD_2_TABLES = {"checkpoint_commits", "checkpoint_entries", "checkpoint_schema"}
NEW_TABLES = {*OLD_TABLES, "checkpoint_changes"}
OLD_ENTRIES = {
    "sync_job": {
        "contacts": Entry(
            "contacts",
            "eyJ1cGRhdGVkX2F0IjoiMjAyNC0wNS0wMlQwMDowMDowMFoifQ==",
            "2024-05-01T10:00:00.000Z",
            "2024-05-02T10:00:00.000Z",
            "run-2",
            2,
        ),
        "deals": Entry(
            "deals",
            "eyJ1cGRhdGVkX2F0IjoiMjAyNC0wNC0zMFQwMDowMDowMFoifQ==",
            "2024-05-01T10:00:00.000Z",
            "2024-05-01T10:00:00.000Z",
            "run-1",
            1,
        ),
        "plain": Entry(
            "plain", "2024-05-02T10:00:00Z", "2024-05-02T10:00:00.000Z", "2024-05-02T10:00:00.000Z", None, 3
        ),
    },
    "café": {"日本": Entry("日本", "1", "2024-05-02T10:00:00.000Z", "2024-05-02T10:00:00.000Z", "run-3", 1)},
}


@pytest.fixture
def old(path: Path) -> Path:
    shutil.copyfile(OLD, path)
    return path


def contents(store: SQLiteStore) -> dict[str, dict[str, Entry]]:
    return {state_key: store.load(state_key) for state_key in store.namespaces()}


def tables(path: Path) -> set[str]:
    with closing(connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_an_old_file_is_read_as_it_is(old: Path, store: SQLiteStore) -> None:
    assert contents(store) == OLD_ENTRIES
    assert store.read("sync_job", ["plain", "gone"]) == {"plain": OLD_ENTRIES["sync_job"]["plain"]}
    assert store.history("sync_job") == []
    with pytest.raises(Conflict):
        store.commit("sync_job", {"plain": "ours"}, {"plain": None})
    assert store.commit("sync_job", {}).entries == {}
    store.close()
    assert old.read_bytes() == OLD.read_bytes()


def test_the_first_commit_brings_an_old_file_up_to_date(old: Path, store: SQLiteStore) -> None:
    base = store.load("sync_job")
    written = store.commit("sync_job", {"plain": "2"}, base, run_id="run-4").entries["plain"]
    assert (written.version, written.created_at) == (4, base["plain"].created_at)
    assert tables(old) == NEW_TABLES
    assert contents(store) == {**OLD_ENTRIES, "sync_job": {**base, "plain": written}}
    assert [change[:4] for change in store.history("sync_job")] == [("plain", "2024-05-02T10:00:00Z", "2", 4)]
    assert store.commit("café", {"日本": None, "a": "1"}).entries["a"].version == 2
    assert store.commit("emptied", {"a": "2"}).entries["a"].version == 3
    assert store.commit("new", {"a": "1"}).entries["a"].version == 1
    assert [(change.before, change.after) for change in store.history("café", "日本")] == [("1", None)]
    with closing(connect(old)) as connection:
        assert connection.execute("SELECT * FROM checkpoint_schema").fetchall() == [(3, 3, "0.2")]


@pytest.fixture
def old_2(path: Path) -> Path:
    shutil.copyfile(OLD_2, path)
    return path


NOON = "2024-05-02T10:00:00.000Z"
FIRST = "eyJ1cGRhdGVkX2F0IjoiMjAyNC0wNS0wMVQwMDowMDowMFoifQ=="
SECOND = "eyJ1cGRhdGVkX2F0IjoiMjAyNC0wNS0wMlQwMDowMDowMFoifQ=="
DEALS = "eyJ1cGRhdGVkX2F0IjoiMjAyNC0wNC0zMFQwMDowMDowMFoifQ=="
OLD_2_HISTORY = [
    Change("gone", "1", None, 4, NOON, "run-3", "host-1", 7),
    Change("gone", None, "1", 3, NOON, None, "host-1", 7),
    Change("plain", None, "2024-05-02T10:00:00Z", 3, NOON, None, "host-1", 7),
    Change("contacts", FIRST, SECOND, 2, NOON, "run-2", "host-1", 7),
    Change("contacts", None, FIRST, 1, "2024-05-01T10:00:00.000Z", "run-1", "host-1", 7),
    Change("deals", None, DEALS, 1, "2024-05-01T10:00:00.000Z", "run-1", "host-1", 7),
]


def test_a_file_of_form_2_is_read_as_it_is(old_2: Path, store: SQLiteStore) -> None:
    assert store.namespaces() == ["café", "leased only", "silent", "sync_job"]
    assert store.history("sync_job") == OLD_2_HISTORY
    assert store.history("sync_job", "contacts") == OLD_2_HISTORY[3:5]
    assert store.history("sync_job", limit=2) == OLD_2_HISTORY[:2]
    assert store.history("emptied") == [
        Change("a", "1", None, 2, NOON, None, "host-1", 7),
        Change("a", None, "1", 1, NOON, None, "host-1", 7),
    ]
    assert store.history("silent") == [Change("a", "2", "3", 3, NOON, None, "host-1", 7)]
    assert store.load("sync_job")["__lease__"].version == 5
    store.close()
    assert old_2.read_bytes() == OLD_2.read_bytes()


def test_the_first_commit_brings_a_file_of_form_2_up_to_date(old_2: Path, store: SQLiteStore) -> None:
    before = contents(store)
    written = store.commit("sync_job", {"plain": "2"}, before["sync_job"], run_id="run-4").entries["plain"]
    assert written.version == 6
    assert tables(old_2) == NEW_TABLES
    assert contents(store) == {**before, "sync_job": {**before["sync_job"], "plain": written}}
    told = store.history("sync_job")
    assert told[0][:4] == ("plain", "2024-05-02T10:00:00Z", "2", 6)
    assert told[1:] == OLD_2_HISTORY
    assert store.commit("emptied", {"a": "2"}).entries["a"].version == 3
    assert store.commit("leased only", {"a": "1"}).entries["a"].version == 2
    assert [change.before for change in store.history("silent")] == ["2"]


def test_a_file_of_form_2_with_a_damaged_history_is_kept(old_2: Path, store: SQLiteStore) -> None:
    with closing(connect(old_2)) as connection:
        connection.execute("UPDATE checkpoint_commits SET before = '{' WHERE state_key = 'sync_job' AND version = 2")
    for call in (lambda: store.history("sync_job"), lambda: store.commit("café", {"a": "1"})):
        with pytest.raises(StoreError, match="is not a usable checkpoint database .its history"):
            call()
    assert tables(old_2) == OLD_2_TABLES
    assert set(store.load("sync_job")) == {"__lease__", "contacts", "deals", "plain"}


@as_a_user
def test_an_old_file_that_cannot_be_written_is_read(old: Path, store: SQLiteStore) -> None:
    old.chmod(0o400)
    assert contents(store) == OLD_ENTRIES
    with pytest.raises(StoreError) as caught:
        store.commit("sync_job", {"plain": "2"})
    assert str(caught.value) == (
        f"{old} cannot be written (attempt to write a readonly database): it and its folder must be writable"
    )


def test_eight_processes_bring_an_old_file_up_to_date_at_once(old: Path, store: SQLiteStore) -> None:
    in_children(8, lambda number: store.commit("sync_job", {f"child {number}": "1"}))
    entries = store.load("sync_job")
    assert sorted(entry.version for key, entry in entries.items() if key.startswith("child")) == list(range(4, 12))
    assert {key: entries[key] for key in OLD_ENTRIES["sync_job"]} == OLD_ENTRIES["sync_job"]
    assert [change.version for change in store.history("sync_job")] == list(range(11, 3, -1))


def whole(path: Path) -> int:
    """Assert that a file holds all of before or all of after its migration, and works; return how many tables moved."""
    found = tables(path)
    assert found in (OLD_TABLES, NEW_TABLES)
    with closing(SQLiteStore(path)) as store:
        entries = store.load("sync_job")
        written = entries.pop("new", None)
        assert entries == OLD_ENTRIES["sync_job"]
        assert (written is not None) == (found == NEW_TABLES)
        assert store.commit("sync_job", {"next": "1"}).entries["next"].version == (5 if written else 4)
        assert store.load("café") == OLD_ENTRIES["café"]
        assert connection_of(store).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return found == NEW_TABLES


def test_a_migration_killed_anywhere_leaves_a_whole_file(old: Path) -> None:
    def child(number: int) -> None:
        store = SQLiteStore(old)
        counter = itertools.count(1)
        connection_of(store).set_progress_handler(
            lambda: os.kill(os.getpid(), signal.SIGKILL) if next(counter) == number else None, 1
        )
        store.commit("sync_job", {"new": "1"})

    killed, number = 0, 1
    while True:
        shutil.copyfile(OLD, old)
        process = in_parallel.Process(target=child, args=(number,))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        assert not whole(old)
        number += 11
    assert killed > 20
    assert whole(old)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_migration_killed_at_any_write_leaves_a_whole_file(old: Path) -> None:
    script = (
        "import sys; from checkpoint.stores.sqlite import SQLiteStore\n"
        "SQLiteStore(sys.argv[1]).commit('sync_job', {'new': '1'})\n"
    )
    calls = "pwrite64,fdatasync,fsync,ftruncate,unlink"
    outcomes = set()
    for number in itertools.count(1, 4):
        shutil.copyfile(OLD, old)
        inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={calls}:signal=KILL:when={number}"]
        done = subprocess.run([*inject, "-e", f"trace={calls}", sys.executable, "-c", script, str(old)], check=False)
        assert done.returncode in {0, -signal.SIGKILL}
        outcomes.add((done.returncode, whole(old)))
        if done.returncode == 0:
            break
    assert (-signal.SIGKILL, 0) in outcomes
    assert (0, 1) in outcomes


def test_a_link_to_nothing_is_an_error(path: Path) -> None:
    path.symlink_to("missing.db")
    with pytest.raises(StoreError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path} is a link to missing.db, which does not exist: pass the path of that file to create it, or "
        "remove the link"
    )
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_folder_is_not_created(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "state.db"
    with pytest.raises(StoreError) as caught:
        load(path)
    assert str(caught.value) == f"{path} cannot be created, because its folder does not exist: create the folder"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path} is a folder: name a file in it, such as {tmp_path}/state.db"


@as_a_user
def test_fault_40_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "state.db"
    folder.chmod(0o500)
    with pytest.raises(StoreError) as caught:
        load(path)
    assert str(caught.value) == f"{path} {CANNOT_BE_OPENED}"
    folder.chmod(0o700)
    make(path)
    folder.chmod(0o500)
    with pytest.raises(StoreError) as caught:
        commit(path, "a")
    assert str(caught.value) == (
        f"{path} cannot be written (attempt to write a readonly database): it and its folder must be writable"
    )
    assert len(load(path)) == 100
    folder.chmod(0)
    with pytest.raises(StoreError) as caught:
        load(path)
    assert str(caught.value) in {f"{path} {said}" for said in ("cannot be used: Permission denied", CANNOT_BE_OPENED)}
    folder.chmod(0o700)


@as_a_user
def test_a_read_only_file_is_read(path: Path) -> None:
    make(path)
    path.chmod(0o400)
    assert len(load(path)) == 100
    with pytest.raises(StoreError) as caught:
        commit(path, "a")
    assert str(caught.value) == (
        f"{path} cannot be written (attempt to write a readonly database): it and its folder must be writable"
    )


# Creation


def test_creation_leaves_nothing_beside_the_file(path: Path, store: SQLiteStore) -> None:
    assert store.load("job") == {}
    store.close()
    assert list(path.parent.iterdir()) == [path]


def test_eight_processes_create_one_file(path: Path, store: SQLiteStore) -> None:
    in_children(8, lambda number: commit(path, f"child {number}"))
    assert values(store) == {f"child {number}": "1" for number in range(8)}
    assert sorted(entry.version for entry in store.load("job").values()) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {other.name for other in path.parent.iterdir()} <= {"state.db", "state.db-journal"}


def test_without_hard_links_it_is_renamed_into_place(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    store.commit("job", {"a": "1"})
    assert values(store) == {"a": "1"}


def test_without_hard_links_the_file_of_another_stays(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        shutil.copy(source, target)
        with closing(connect(path)) as other:
            other.execute("INSERT INTO checkpoint_entries VALUES ('job', 'theirs', '1', '', '', NULL, 1)")
        raise OSError(errno.ENOTSUP, "Not supported")

    monkeypatch.setattr(os, "link", link)
    assert values(store) == {"theirs": "1"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_creation_leaves_nothing(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", link)
        with pytest.raises(StoreError) as caught:
            store.load("job")
    assert str(caught.value) == f"{path} cannot be used: {os.strerror(code)}"
    assert list(path.parent.iterdir()) == []
    assert store.load("job") == {}


# Other processes


def test_fault_42_no_update_of_eight_processes_is_lost(store: SQLiteStore) -> None:
    def count(worker: int) -> None:
        for _ in range(15):
            written = False
            while not written:
                entry = store.load("job").get("count")
                number = int(entry.value.split()[0]) + 1 if entry else 1
                with suppress(Conflict):
                    store.commit("job", {"count": f"{number} by {worker}"}, {"count": entry})
                    written = True

    in_children(8, count)
    entry = store.load("job")["count"]
    assert (int(entry.value.split()[0]), entry.version) == (120, 120)


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_file_that_stays_locked_is_unavailable(path: Path, impatient: SQLiteStore, begin: str) -> None:
    store = impatient
    store.commit("job", {"a": "1"})
    with closing(connect(path)) as other:
        other.execute(begin)
        with pytest.raises(StoreUnavailable) as caught:
            store.commit("job", {"a": "2"})
    assert gave_up(path, caught.value) == "other connections keep it locked, and nothing was written"
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    store.commit("job", {"a": "3"})
    assert values(store) == {"a": "3"}


def test_a_wait_for_others_is_told_of_once(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.commit("job", {"a": "1"})
    monkeypatch.setattr(retrying, "SILENCE", 0.1)
    monkeypatch.setattr(sqlite_file, "SILENCE", 0.1)
    with (
        closing(connect(path)) as writer,
        closing(connect(path)) as reader,
        caplog.at_level(logging.INFO, "checkpoint"),
    ):
        writer.execute("BEGIN IMMEDIATE")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM checkpoint_entries").fetchone()
        thread = threading.Thread(target=store.commit, args=("job", {"a": "2"}))
        thread.start()
        time.sleep(0.4)
        writer.execute("ROLLBACK")
        time.sleep(0.4)
        reader.execute("ROLLBACK")
        thread.join()
    assert caplog.messages == [
        (
            f"{path}: no usable answer yet, trying for up to 60 s: other connections keep it locked, and nothing "
            "was written"
        )
    ]
    assert values(store) == {"a": "2"}
    assert [found.name for found in path.parent.iterdir() if found.name.endswith(".lock")] == []


def test_a_reader_that_stays_only_delays_the_commit(path: Path, impatient: SQLiteStore) -> None:
    store = impatient
    store.commit("job", {"a": "1"})
    with closing(connect(path)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM checkpoint_entries").fetchall()
        if journal_mode(sqlite3.sqlite_version_info) == "truncate":
            with pytest.raises(StoreUnavailable):
                store.commit("job", {"a": "2"})
            assert values(store) == {"a": "1"}
    store.commit("job", {"a": "3"})
    assert values(store) == {"a": "3"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_fault_45_waiting_for_a_lock_can_be_interrupted(path: Path, store: SQLiteStore) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    store.load("job")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with closing(connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            signal.setitimer(signal.ITIMER_REAL, 0.1, 0.5)  # once more, should it come where Python ignores it
            with pytest.raises(KeyboardInterrupt):
                store.commit("job", {"a": "1"})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    store.commit("job", {"a": "2"})
    assert values(store) == {"a": "2"}


def test_fault_45_an_interrupted_commit_is_rolled_back(path: Path, store: SQLiteStore) -> None:
    class Interrupting(dict[str, None]):
        def items(self):
            assert store._connection is not None
            assert store._connection.in_transaction
            raise KeyboardInterrupt

    store.commit("job", {"a": "1"})
    with pytest.raises(KeyboardInterrupt):
        store.commit("job", {"a": "2"}, Interrupting(a=None))
    assert values(store) == {"a": "1"}
    with closing(SQLiteStore(path)) as other:
        other.commit("job", {"a": "3"})


def test_fault_43_parent_and_child_use_it_after_a_fork(path: Path, store: SQLiteStore) -> None:
    store.commit("job", {"parent": "1"})

    def child(number: int) -> None:
        assert store.load("job")["parent"].value == "1"
        for turn in range(10):
            store.commit("job", {f"child {number}": str(turn)})

    in_children(2, child)
    store.commit("job", {"parent": "2"})
    assert values(store) == {"parent": "2", "child 0": "9", "child 1": "9"}
    assert max(entry.version for entry in store.load("job").values()) == 22


def test_fault_43_a_child_gets_no_connection_and_no_lock(store: SQLiteStore) -> None:
    def child(number: int) -> None:
        assert store._connection is None
        thread = threading.Thread(target=store.load, args=("job",), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    store.load("job")
    in_children(1, child)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_amid_other_threads_commits_harms_nothing(path: Path, store: SQLiteStore) -> None:
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            store.commit("job", {"parent": str(turn), "again": str(turn)})
            turn += 1
            os.sched_yield()

    def child(number: int) -> None:
        for _ in range(5):
            loaded = store.load("job")
            assert loaded["parent"].value == loaded["again"].value
            store.commit("job", {f"child {number}": "1"})

    store.commit("job", {"parent": "", "again": ""})
    thread = threading.Thread(target=write)
    thread.start()
    for number in range(10):
        pid = os.fork()
        if pid == 0:
            try:
                child(number)
            finally:
                os._exit(0 if sys.exc_info() == (None, None, None) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    thread.join()
    assert {f"child {number}" for number in range(10)} <= set(values(store))
    assert connection_of(store).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_fault_37_what_was_acknowledged_outlives_the_kill(path: Path) -> None:
    script = (
        "import sys; from checkpoint.stores.sqlite import SQLiteStore\n"
        "store = SQLiteStore(sys.argv[1])\n"
        "for number in range(1_000_000):\n"
        "    store.commit('job', {f'key {number % 10}': str(number), 'last': str(number)})\n"
        "    print(number, flush=True)\n"
    )
    for turn in range(3):
        command = [sys.executable, "-c", script, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            lines = iter(child.stdout)
            acknowledged = [int(next(lines)) for _ in range(20 + turn)][-1]
            child.kill()
            acknowledged = max([acknowledged, *map(int, lines)])
        with closing(SQLiteStore(path)) as store:
            found = values(store)
            last = int(found["last"])
            assert last in {acknowledged, acknowledged + 1}
            assert found[f"key {last % 10}"] == found["last"]
            assert connection_of(store).execute("PRAGMA integrity_check").fetchone() == ("ok",)


# What SQLite says


def test_fault_40_a_full_disk_keeps_what_was_there(path: Path, store: SQLiteStore) -> None:
    store.commit("job", {"a": "1"})
    (pages,) = connection_of(store).execute("PRAGMA page_count").fetchone()
    connection_of(store).execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError) as caught:
        store.commit("job", {"a": "2", "b": "x" * 100_000})
    assert str(caught.value) == f"the disk of {path} is full, and nothing was written: make room, then try again"
    store.commit("job", {"b": "3"}, {"b": None})
    assert values(store) == {"a": "1", "b": "3"}


def test_fault_40_a_disk_that_fails_keeps_what_was_there(path: Path, store: SQLiteStore) -> None:
    store.commit("job", {"a": "1"})

    def child(number: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, resource.RLIM_INFINITY))
        with pytest.raises(StoreError) as caught:
            store.commit("job", {"a": "2", "b": "x" * 100_000})
        assert str(caught.value) == (
            f"{path} could not be read or written (disk I/O error): check the disk, then try again"
        )
        assert values(store) == {"a": "1"}

    in_children(1, child)
    assert values(store) == {"a": "1"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Connection.setlimit came with Python 3.11")
def test_a_value_past_the_limit_of_sqlite_is_named(store: SQLiteStore) -> None:
    store.commit("job", {"a": "1"})
    connection_of(store).setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
    with pytest.raises(ValueTooLarge) as caught:
        store.commit("job", {"a": "2", "b": "é" * 60_000, "c": "3"})
    assert caught.value.args == ("b", 120_000)
    assert values(store) == {"a": "1"}


def test_a_file_that_was_taken_away_acknowledges_nothing(path: Path, store: SQLiteStore) -> None:
    store.commit("job", {"a": "1"})
    path.unlink()
    with pytest.raises(StoreError) as caught:
        store.commit("job", {"a": "2"})
    assert str(caught.value) == (
        f"{path} is gone: it was deleted or renamed since this store opened it; put it back, or start the "
        "process again to begin with a new file"
    )
    assert not path.exists()


def test_missing_tables_are_an_error_not_a_fresh_start(path: Path) -> None:
    make(path)
    with closing(connect(path)) as connection:
        connection.execute("DROP TABLE checkpoint_entries")
    with pytest.raises(StoreError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: no such table: main.checkpoint_entries"


def test_tables_without_a_version_are_no_fresh_start(path: Path) -> None:
    make(path)
    with closing(connect(path)) as connection:
        connection.execute("DELETE FROM checkpoint_schema")
    with pytest.raises(StoreError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path} is not a usable checkpoint database (its tables do not say which form they have), {KEPT}"
    )
    with closing(connect(path)) as connection:
        connection.execute("DROP TABLE checkpoint_schema")
    for call in (lambda: load(path), lambda: commit(path, "a")):
        with pytest.raises(StoreError) as caught:
            call()
        assert str(caught.value) == f"{path}: no such table: main.checkpoint_schema"


def test_it_can_be_used_again_after_it_was_closed(store: SQLiteStore) -> None:
    store.close()
    store.commit("job", {"a": "1"})
    store.close()
    store.close()
    assert values(store) == {"a": "1"}


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(path: Path, enabled: bool) -> None:
    with closing(SQLiteStore(path)) as store:
        store.commit("job", {"a": "1"})
        (gc.enable if enabled else gc.disable)()
        try:
            assert values(store) == {"a": "1"}
            assert gc.isenabled() == enabled
            connection_of(store).execute("UPDATE checkpoint_entries SET value = CAST(x'ff' AS TEXT)")
            with pytest.raises(CorruptState, match="its value is text that is not UTF-8"):
                store.load("job")
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


def test_threads_that_wait_for_each_other_share_no_longer_wait(path: Path) -> None:
    """The deadline of each begins when it is called, not when the others let go of the store."""
    with closing(SQLiteStore(path)) as before:
        before.commit("run", {"a": "x"})
    with (
        closing(SQLiteStore(path, deadline=1.0)) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        waited: list[float] = []

        def commit() -> None:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                store.commit("run", {"b": "x"})
            waited.append(time.monotonic() - began)

        threads = [threading.Thread(target=commit) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(waited) == 6
    assert max(waited) < 4  # one after the other they take six seconds
