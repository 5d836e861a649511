"""The file of the SQLite store: replaced, gone, another program's, on odd file systems, and left by an interruption."""

from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from freezegun import freeze_time

from checkpoint import Checkpointer
from checkpoint.errors import Conflict, StoreError, StoreUnavailable
from checkpoint.stores import open_store
from checkpoint.stores.base import KeepsHistory
from checkpoint.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIXED, VULNERABLE = (3, 51, 3), (3, 40, 1)
in_parallel = multiprocessing.get_context("fork")
with_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path)
    yield store
    store.close()


def values(store: SQLiteStore) -> dict[str, str]:
    return {key: entry.value for key, entry in store.load("job").items()}


def write(path: Path, **changes: str) -> None:
    with closing(SQLiteStore(path)) as other:
        other.commit("job", changes)


def load(path: Path) -> dict[str, str]:
    with closing(SQLiteStore(path)) as other:
        return values(other)


def back_up(path: Path) -> Path:
    return Path(shutil.copyfile(path, path.with_suffix(".backup")))


def gone(path: Path) -> str:
    return (
        f"{path} is gone: it was deleted or renamed since this store opened it; put it back, or start the "
        "process again to begin with a new file"
    )


# Replaced, or gone


def test_fault_88_a_replaced_file_is_opened_again(path: Path, store: SQLiteStore) -> None:
    store.commit("job", {"a": "1"})
    backup = back_up(path)
    store.commit("job", {"a": "2", "b": "1"})
    backup.replace(path)
    assert values(store) == {"a": "1"}
    assert store.commit("job", {"a": "3"}).entries["a"].version == 2
    assert load(path) == {"a": "3"}


def test_fault_88_a_file_replaced_while_it_is_opened_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit lands in the file that is there when it begins, not in the one that was."""
    write(path, a="1")
    backup, connect = back_up(path), sqlite3.connect

    def connect_and_replace(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        monkeypatch.setattr(sqlite3, "connect", connect)
        opened = connect(*args, **kwargs)
        backup.replace(path)
        return opened

    with closing(SQLiteStore(path)) as store:
        monkeypatch.setattr(sqlite3, "connect", connect_and_replace)
        store.commit("job", {"b": "2"})
        assert sqlite3.connect is connect
    assert load(path) == {"a": "1", "b": "2"}


def test_fault_88_the_first_thing_after_it_may_be_a_commit(path: Path, store: SQLiteStore) -> None:
    store.commit("job", {"a": "1"})
    backup = back_up(path)
    store.commit("job", {"a": "2"})
    backup.replace(path)
    store.commit("job", {"b": "1"})
    assert load(path) == values(store) == {"a": "1", "b": "1"}


def test_fault_88_what_was_known_and_is_not_there_is_a_conflict(path: Path) -> None:
    with closing(SQLiteStore(path)) as store, Checkpointer("job", store) as cp:
        cp["a"] = {"at": 1}
    backup = back_up(path)
    with pytest.raises(Conflict) as caught, Checkpointer("job", f"sqlite:///{path}") as cp:
        cp["b"] = {"at": 1}
        cp.commit()
        backup.replace(path)
        cp["b"] = {"at": 2}
        cp.commit()
    assert (caught.value.key, caught.value.found) == ("b", None)
    with closing(SQLiteStore(path)) as store:
        assert list(store.load("job")) == ["a"]


def test_fault_88_a_version_that_is_counted_again_is_a_conflict(path: Path, store: SQLiteStore) -> None:
    with freeze_time("2024-05-01T10:00:00Z") as clock:
        store.commit("job", {"a": "1"})
        backup = back_up(path)
        known = store.commit("job", {"a": "2"}).entries
        backup.replace(path)
        clock.tick(1)
        theirs = store.commit("job", {"a": "2"}, run_id="theirs").entries["a"]
    assert theirs.version == known["a"].version
    with pytest.raises(Conflict) as caught:
        store.commit("job", {"a": "3"}, known)
    assert caught.value.found == theirs


@pytest.mark.parametrize("how", ["deleted", "renamed", "closed", "forked"])
def test_fault_88_a_file_that_is_gone_is_no_new_one(path: Path, store: SQLiteStore, how: str) -> None:
    def refused() -> None:
        for call in (
            lambda: store.load("job"),
            lambda: store.read("job", ["a"]),
            lambda: store.commit("job", {"a": "2"}),
            lambda: store.history("job"),
            store.namespaces,
        ):
            with pytest.raises(StoreError) as caught:
                call()
            assert str(caught.value) == gone(path)
        assert not path.exists()

    store.commit("job", {"a": "1"})
    if how == "closed":
        store.close()
    elsewhere = path.rename(path.with_suffix(".elsewhere"))
    if how == "forked":
        child = in_parallel.Process(target=refused)
        child.start()
        child.join(30)
        assert child.exitcode == 0
    else:
        refused()
    if how == "renamed":
        elsewhere.rename(path)
        store.commit("job", {"b": "1"})
        assert values(store) == {"a": "1", "b": "1"}


def test_fault_88_a_file_behind_a_link_that_was_turned_is_opened(tmp_path: Path) -> None:
    write(tmp_path / "blue.db", a="blue")
    write(tmp_path / "green.db", a="green")
    link = tmp_path / "state.db"
    link.symlink_to("blue.db")
    with closing(SQLiteStore(link)) as store:
        assert values(store) == {"a": "blue"}
        link.unlink()
        link.symlink_to("green.db")
        assert values(store) == {"a": "green"}


def test_fault_88_in_wal_mode_a_restore_is_not_undone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", FIXED)
    write(path, a="1")
    backup = back_up(path)
    with closing(SQLiteStore(path)) as store:
        store.commit("job", {"a": "2"})
        assert store.facts()["journal mode"] == "wal"
        backup.replace(path)
        assert values(store) == {"a": "1"}
        store.commit("job", {"b": "1"})
    assert load(path) == {"a": "1", "b": "1"}


def test_fault_88_a_log_of_the_former_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", FIXED)
    write(path, a="1")
    backup = back_up(path)
    with closing(SQLiteStore(path)) as store, closing(SQLiteStore(path)) as other:
        store.commit("job", {"a": "2"})
        assert values(other) == {"a": "2"}
        restored = backup.read_bytes()
        backup.replace(path)
        with pytest.raises(StoreError) as caught:
            store.load("job")
        assert str(caught.value) == (
            f"{path} was replaced, and state.db-wal, the log of the earlier file, is still in use: end the other "
            "processes that use it, remove that log, and replace the file again"
        )
        assert path.read_bytes() == restored
        assert values(other) == {"a": "1"}  # alone with it now, it ends the log
        store.commit("job", {"b": "1"})
    assert load(path) == {"a": "1", "b": "1"}


# Another program's


@pytest.fixture
def theirs(path: Path) -> Iterator[sqlite3.Connection]:
    """Return the connection of another program that keeps its database in WAL mode."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE theirs (line)")
        connection.execute("INSERT INTO theirs VALUES ('1')")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        yield connection


@pytest.mark.parametrize("writing", [False, True])
def test_fault_89_a_look_leaves_another_programs_database_alone(
    path: Path, theirs: sqlite3.Connection, writing: bool
) -> None:
    if writing:
        theirs.execute("BEGIN IMMEDIATE")
        theirs.execute("INSERT INTO theirs VALUES ('2')")
    before = path.read_bytes()
    began = time.monotonic()
    command = [sys.executable, "-m", "checkpoint", "list", "--store", f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert time.monotonic() - began < 10
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes() == before
    assert theirs.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("version", [FIXED, VULNERABLE])
def test_fault_89_a_commit_too_keeps_its_journal_mode(
    path: Path, theirs: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    with closing(SQLiteStore(path, deadline=5)) as store:
        assert store.load("job") == {}
        store.commit("job", {"a": "1"})
        assert store.facts()["journal mode"] == "wal"
        assert values(store) == {"a": "1"}
    theirs.execute("INSERT INTO theirs VALUES ('2')")
    assert theirs.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# File systems


@with_strace
def test_fault_40_a_file_system_without_locks_is_named(path: Path, tmp_path: Path) -> None:
    """`fcntl` answers ENOLCK, which SQLite takes for a lock of somebody else."""
    write(path, a="1")
    script = (
        "import sys, time; from checkpoint.errors import StoreError; from checkpoint.stores.sqlite import SQLiteStore\n"
        "began = time.monotonic()\n"
        "try: SQLiteStore(sys.argv[1]).load('job')\n"
        "except StoreError as error: print(error)\n"
        "assert time.monotonic() - began < 30\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    log = tmp_path / "calls"
    subprocess.run(["strace", "-qq", "-o", str(log), "-e", "trace=fcntl", *command], check=True, timeout=60)
    first = next(number for number, line in enumerate(log.read_text().splitlines(), 1) if "F_SETLK" in line)
    log.unlink()
    inject = ["-e", "trace=fcntl", "-e", f"inject=fcntl:error=ENOLCK:when={first}+"]
    done = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", *inject, *command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == (
        f"{path} is on a file system without file locks (No locks available), where runs could overwrite each "
        "other's commits: put it on a local disk, or mount the folder with locks\n"
    )
    assert {found.name for found in path.parent.iterdir()} <= {"state.db", "state.db-journal"}


@pytest.mark.parametrize(("code", "created"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_fault_40_a_folder_that_cannot_be_synced(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, code: int, created: bool
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    if created:
        store.commit("job", {"a": "1"})
        assert values(store) == {"a": "1"}
        return
    with pytest.raises(StoreError) as caught:
        store.load("job")
    assert str(caught.value) == f"{path} cannot be used: {os.strerror(code)}"


def test_a_link_to_a_file_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its journal or log is beside the file, not beside the link."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", FIXED)
    folder = tmp_path / "disk"
    folder.mkdir()
    write(folder / "real.db", a="1")
    link = tmp_path / "state.db"
    link.symlink_to(folder / "real.db")
    with closing(SQLiteStore(folder / "real.db")) as busy:
        busy.commit("job", {f"key {number}": "x" * 1_000 for number in range(100)})  # in the log alone
        write(link, b="1")
        assert len(load(link)) == 102
    assert sorted(found.name for found in tmp_path.iterdir()) == ["disk", "state.db"]
    assert [found.name for found in folder.iterdir()] == ["real.db"]


# For whom it is


@pytest.fixture
def no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    marks = {Path("/.dockerenv"), Path("/run/.containerenv")}
    monkeypatch.setattr(Path, "exists", lambda path: path not in marks and exists(path))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
@pytest.mark.parametrize("version", [FIXED, VULNERABLE])
def test_the_default_folder_and_its_files_are_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "not" / "yet"))
    before = os.umask(0o022)
    try:
        with closing(SQLiteStore()) as store:
            store.commit("job", {"a": "1"})
            assert store.path is not None
            assert mode(store.path.parent) == 0o700
            assert {mode(found) for found in store.path.parent.iterdir()} == {0o600}
        write(tmp_path / "elsewhere.db", a="1")
        assert mode(tmp_path / "elsewhere.db") == 0o644
        os.umask(0o007)
        write(tmp_path / "shared.db", a="1")
        assert mode(tmp_path / "shared.db") == 0o660
    finally:
        os.umask(before)


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
@pytest.mark.usefixtures("no_container")
def test_a_default_file_made_in_a_container_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def use() -> None:
        with closing(SQLiteStore()) as store:
            store.commit("job", {"a": "1"})

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "outside"))
    use()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    use()
    write(tmp_path / "named.db", a="1")
    assert caplog.messages == []
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "inside"))
    use()
    use()
    created = tmp_path / "inside" / "checkpoint" / "state.db"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            f"{created} was created inside a container, and is lost with it: set CHECKPOINT_STORE to a store outside",
        )
    ]


# Interrupted


class Interrupted(BaseException):
    pass


@pytest.fixture
def interrupting() -> Iterator[Callable[[float, type[BaseException]], None]]:
    """Return a function that has a signal handler raise an error after so many seconds."""

    def handler(number: int, frame: object) -> None:
        raise kinds[-1]

    def arm(seconds: float, kind: type[BaseException] = Interrupted) -> None:
        kinds.append(kind)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again, should the first one be ignored

    kinds: list[type[BaseException]] = []
    before = signal.signal(signal.SIGALRM, handler)
    yield arm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# Raised inside a destructor or a callback of the interpreter, an error is ignored there, whatever we do.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("wal", [False, True])
def test_fault_95_nothing_is_held_wherever_it_is_interrupted(
    path: Path,
    interrupting: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    wal: bool,
) -> None:
    """An error is raised at a random bytecode of loads, commits, conflicts and openings, 600 times."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", FIXED if wal else VULNERABLE)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    write(path, a="0", b="0")
    errors: list[BaseException] = []  # kept, with the frames that they refer to
    with (
        closing(SQLiteStore(path, deadline=5, keep=3)) as store,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other,
    ):
        for number in count():
            if len(errors) == 600:
                break
            assert number < 20_000
            try:
                interrupting(chance.uniform(1e-6, 1e-3))
                if chance.random() < 0.2:
                    store.close()
                known = store.load("job")
                store.commit("job", {"a": str(number), "b": str(number)}, {"a": known["a"]})
                with suppress(Conflict):
                    store.commit("job", {"a": "never"}, {"a": known["a"]})
                store.history("job", "a")
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted as error:
                signal.setitimer(signal.ITIMER_REAL, 0)
                errors.append(error)
                other.execute("BEGIN IMMEDIATE")  # nobody holds the file, before the store is used again
                other.execute("ROLLBACK")
                found = store.load("job")
                assert found["a"].value == found["b"].value != "never"
        errors.clear()
        gc.collect()  # connections that were lost half open, while their warnings are ignored


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_fault_95_a_lock_is_free_for_other_threads_after_it(
    store: SQLiteStore, interrupting: Callable[[float], None]
) -> None:
    store.commit("job", {"a": "1"})
    for _ in range(200):
        with suppress(Interrupted):
            interrupting(random.uniform(1e-6, 3e-4))
            while True:
                store.load("job")
        signal.setitimer(signal.ITIMER_REAL, 0)
    thread = threading.Thread(target=store.commit, args=("job", {"a": "2"}), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert values(store) == {"a": "2"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_fault_96_a_timeout_that_a_handler_raises_comes_out(
    path: Path, store: SQLiteStore, interrupting: Callable[[float, type[BaseException]], None]
) -> None:
    store.commit("job", {"a": "1"})
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        interrupting(0.2, TimeoutError)
        with pytest.raises(TimeoutError):
            store.commit("job", {"a": "2"})
    signal.setitimer(signal.ITIMER_REAL, 0)
    for _ in range(50):
        with pytest.raises(TimeoutError):
            interrupting(random.uniform(1e-6, 5e-4), TimeoutError)
            while True:
                store.load("job")
        signal.setitimer(signal.ITIMER_REAL, 0)
    store.commit("job", {"a": "3"})
    assert values(store) == {"a": "3"}


def test_fault_96_a_missing_file_of_a_handlers_comes_out(
    store: SQLiteStore, interrupting: Callable[[float, type[BaseException]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is not the store's own file, which is neither an error of its own nor made anew."""
    store.commit("job", {"a": "1"})
    interrupting(60, FileNotFoundError)

    def stat(*args: Any, real: Callable[..., Any] = os.stat, **more: Any) -> Any:
        signal.raise_signal(signal.SIGALRM)
        return real(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError):
        patch.setattr(os, "stat", stat)
        store.load("job")
    assert values(store) == {"a": "1"}


# Options in its URL


@pytest.mark.skipif(sys.platform == "win32", reason="a folder that somebody is in cannot be deleted there")
def test_a_relative_path_needs_the_current_folder(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for opened in (lambda: SQLiteStore("state.db"), lambda: open_store("sqlite:///state.db")):
        with pytest.raises(StoreError) as caught:
            opened()
        assert str(caught.value) == (
            "the path 'state.db' is relative, and the current folder cannot be found (No such file or directory): "
            "pass an absolute path, or start in a folder that exists"
        )
    with closing(SQLiteStore(path)) as store:  # an absolute one does not
        store.commit("job", {"a": "1"})
        assert values(store) == {"a": "1"}


@pytest.mark.parametrize("scheme", ["sqlite", "memory"])
def test_options_stand_in_the_url(tmp_path: Path, scheme: str) -> None:
    place = f"sqlite:///{tmp_path}/a%20b.db" if scheme == "sqlite" else f"memory://{tmp_path}"
    with closing(open_store(f"{place}?keep=2&keep_days=0")) as store:
        with freeze_time("2024-05-01T10:00:00Z") as clock:
            for number in range(5):
                clock.tick(86_400)
                store.commit("job", {"a": str(number)})
        assert isinstance(store, KeepsHistory)
        assert [change.after for change in store.history("job")] == ["4", "3"]
    for bad in ("keep=-1", "keep=x", "keep_days=1.5", "keep=1&keep=2"):
        with pytest.raises(ValueError, match="keep|URL"):
            open_store(f"{place}/bad?{bad}")


def test_the_deadline_stands_in_the_url(path: Path) -> None:
    write(path, a="1")
    with closing(open_store(f"sqlite:///{path}?deadline=0.2")) as store, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.load("job")
        assert time.monotonic() - began < 20
    for bad in ("0", "-1", "inf", "nan", "soon"):
        with pytest.raises(ValueError, match="deadline"):
            open_store(f"sqlite:///{path}?deadline={bad}")


# Several processes


def test_fault_78_eight_processes_count_in_one_key(store: SQLiteStore) -> None:
    def add(number: int) -> None:
        for _ in range(15):
            while True:
                entry = store.load("job").get("count")
                try:
                    store.commit("job", {"count": str(int(entry.value) + 1 if entry else 1)}, {"count": entry})
                except Conflict:
                    continue
                break

    children = [in_parallel.Process(target=add, args=(number,)) for number in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 8
    assert store.load("job")["count"].value == "120"


def test_fault_78_who_writes_what_another_just_wrote_conflicts(store: SQLiteStore) -> None:
    base = store.commit("job", {"count": "1"}).entries
    store.commit("job", {"count": "2"}, base)
    with pytest.raises(Conflict):
        store.commit("job", {"count": "2"}, base)


# Two releases over one file


@pytest.fixture(scope="session")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package as it was before form 3, the last of release 0.1."""
    folder = tmp_path_factory.mktemp("old")
    repository = Path(__file__).parent.parent
    archive = subprocess.run(
        ["git", "archive", "ec72e3c", "checkpoint"], cwd=repository, capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip("the checkout does not reach back so far")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def test_a_job_of_release_0_1_beside_this_one_works_or_refuses(path: Path, old_code: Path) -> None:
    job = (
        "import sys; from checkpoint import Checkpointer, CheckpointError\n"
        "try:\n"
        "    with Checkpointer('job', f'sqlite:///{sys.argv[1]}') as cp:\n"
        "        print(dict(cp)); cp['a'] = {'n': cp.get('a', {'n': 0})['n'] + 1}\n"
        "        for line in sys.stdin: cp['b'] = {'line': line.strip()}; cp.commit(); print('ok', flush=True)\n"
        "except CheckpointError as error: print(error)\n"
    )

    def old(*lines: str) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(old_code)}
        command = [sys.executable, "-P", "-c", job, str(path)] if sys.version_info >= (3, 11) else []
        if not command:
            pytest.skip("without -P the present package comes first")
        done = subprocess.run(
            command, input="\n".join(lines), env=environment, capture_output=True, text=True, check=True, cwd="/"
        )
        return done.stdout.splitlines()

    assert old("1") == ["{}", "ok"]
    with Checkpointer("job", f"sqlite:///{path}") as cp:
        assert dict(cp) == {"a": {"n": 1}, "b": {"line": "1"}}
        assert [change.key for change in cp.history()] == ["a", "b"]
    assert old() == ["{'a': {'n': 1}, 'b': {'line': '1'}}"]  # nothing was written, so the form is what it was
    with Checkpointer("job", f"sqlite:///{path}") as cp:
        cp["a"] = {"n": 5}
    before = path.read_bytes()
    (refusal,) = old()
    assert refusal == (
        f"{path} has schema version 3, and this release knows version 2: upgrade checkpoint-store; the file is kept as "
        "it is"
    )
    assert path.read_bytes() == before
    with Checkpointer("job", f"sqlite:///{path}") as cp:
        assert dict(cp) == {"a": {"n": 5}, "b": {"line": "1"}}
        assert [change.cursor_after for change in cp.history("a")] == [{"n": 5}, {"n": 2}, {"n": 1}]
