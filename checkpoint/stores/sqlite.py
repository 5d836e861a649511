"""A store in one SQLite file: the default, for runs that share a machine."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from threading import RLock, get_ident
from typing import TYPE_CHECKING
from urllib.parse import unquote
from weakref import WeakSet

from checkpoint.errors import StoreError, StoreUnavailable, ValueTooLarge
from checkpoint.stores.base import Entry, Receipt, check_base, check_changes, check_name, utc_now

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

SCHEMA_VERSION = 1
"""Of our tables, kept in one of them: `PRAGMA user_version` belongs to whoever else uses the file."""

TIMEOUT = 60.0
"""Seconds to wait for other connections."""

_SCHEMA = (
    "CREATE TABLE checkpoint_schema (version INTEGER NOT NULL)",
    f"INSERT INTO checkpoint_schema VALUES ({SCHEMA_VERSION})",  # noqa: S608 - our own number
    "CREATE TABLE checkpoint_namespaces (state_key TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE checkpoint_entries (
        state_key TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL, sync_job_run_id TEXT, version INTEGER NOT NULL, PRIMARY KEY (state_key, key)
    ) WITHOUT ROWID""",
)

# REPLACE of rows computed here instead of RETURNING, which came with SQLite 3.35: systems in support link older ones.
_LOAD = """SELECT key, value, created_at, updated_at, sync_job_run_id, version
    FROM checkpoint_entries WHERE state_key = ?"""
_WRITE = "REPLACE INTO checkpoint_entries VALUES (?, ?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM checkpoint_entries WHERE state_key = ? AND key = ?"
_LAST = "SELECT version FROM checkpoint_namespaces WHERE state_key = ?"
_COUNT = "REPLACE INTO checkpoint_namespaces VALUES (?, ?)"

_CHUNK = 500  # keys in one statement; older SQLite takes 999 parameters (sqlite.org/limits.html)


class SQLiteStore:
    """Namespaces in one SQLite file: atomic commits with compare-and-swap, on disk (fsync) when they return.

    The file may hold other tables; ours begin with `checkpoint_`. Without a path it is `state.db` in the platform's
    user state folder, which is created; the folder of a path must exist.

    Raises:
        StoreError: there is no user state folder, or it cannot be created.

    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = (_default_path() if path is None else Path(path)).absolute()
        if "\0" in str(self._path):
            raise ValueError(f"a path must not hold a NUL: {path!r}")
        self._connection: sqlite3.Connection | None = None
        self._lock = RLock()
        _stores.add(self)

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self._path)!r})"

    @classmethod
    def from_url(cls, url: str) -> SQLiteStore:
        """Return the store of `sqlite:///relative.db` or `sqlite:////absolute.db`; the path is percent-decoded."""
        path = url.removeprefix("sqlite:///")
        if path in {url, ""} or "?" in path or "#" in path:
            raise ValueError(f"a SQLite store's URL is sqlite:///relative.db or sqlite:////absolute.db, not {url!r}")
        return cls(unquote(path, errors="surrogateescape"))

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`."""
        check_name("state_key", state_key)
        with self._connected() as connection, closing(_execute(connection, _LOAD, (state_key,))) as rows:
            return {row[0]: Entry._make(row) for row in rows}

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
    ) -> Receipt:
        """Write the changed keys, all or none; see `Store.commit`."""
        check_changes(state_key, changes)
        with self._connected() as connection, _transaction(connection):
            stored = _read(connection, state_key, [*{**base, **changes}])
            check_base(state_key, changes, base, stored)
            if not changes:
                return Receipt()
            last = connection.execute(_LAST, (state_key,)).fetchone()
            now, version = utc_now(), last[0] + 1 if last else 1
            written = {
                key: Entry(key, value, stored[key].created_at if key in stored else now, now, run_id, version)
                for key, value in changes.items()
                if value is not None
            }
            deleted = [(state_key, key) for key in changes if key not in written and key in stored]
            rows = [(state_key, e.key, e.value, e.created_at, now, run_id, version) for e in written.values()]
            try:
                connection.executemany(_WRITE, rows)
            except (sqlite3.DataError, OverflowError) as error:  # past SQLITE_MAX_LENGTH, past what a C int counts
                largest = max(written.values(), key=lambda entry: len(entry.value))
                raise ValueTooLarge(largest.key, len(largest.value.encode())) from error
            connection.executemany(_DELETE, deleted)
            connection.execute(_COUNT, (state_key, version))
        return Receipt(written)

    def close(self) -> None:
        """Close the connection of this process; the next use opens it again."""
        with self._lock, _translated(self._path):
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _connected(self) -> Generator[sqlite3.Connection]:
        with self._lock, _translated(self._path):
            if self._connection is None:
                self._connection = _open(self._path)
            yield self._connection


def journal_mode(version: tuple[int, int, int]) -> str:
    """Return the journal mode for new files: `wal` where this version of SQLite is safe with it, else `truncate`.

    From 3.7.0 to 3.51.2 two connections in WAL mode can corrupt the file, backports aside (sqlite.org/wal.html,
    "The WAL-Reset Bug").

    Of the rollback journals, truncating costs 0.75 ms a commit where deleting costs 0.9 and overwriting 1.0, and is as
    durable: the truncated journal is synced before the commit returns (sqlite.org/releaselog/3_8_8.html).
    """
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    return "wal" if fixed else "truncate"


def _default_path() -> Path:
    import platformdirs  # noqa: PLC0415 - costs milliseconds, and most stores are given a path

    advice = "pass a store, or set CHECKPOINT_STORE"
    try:
        folder = platformdirs.user_state_path("checkpoint")
        if folder.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
            return folder / "state.db"
    except (OSError, RuntimeError) as error:
        raise StoreError(f"the user state folder cannot be created ({error}): {advice}") from error
    raise StoreError(f"this user has no home folder ({folder}): {advice}")  # older platformdirs say so with a "~"


def _open(path: Path) -> sqlite3.Connection:
    """Open a store's file, and create it where it does not exist."""
    if not path.exists():
        _create(path)
    deadline = time.monotonic() + TIMEOUT
    while True:
        # An existing file only: SQLite creates a missing one with no bytes, which could be a damaged one.
        connection = _connect(f"{path.as_uri()}?mode=rw")
        try:
            if _prepare(connection, path):
                return connection
        except BaseException:
            connection.close()
            raise
        # Closed while waiting: two that convert a file at once are in each other's way until one lets go.
        connection.close()
        if time.monotonic() > deadline:
            raise StoreError(
                f"{path} is in WAL mode, which SQLite {sqlite3.sqlite_version} may corrupt (sqlite.org/wal.html, the "
                "WAL-reset bug), and other connections keep it so: close them, or use SQLite 3.51.3 or later"
            )
        time.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - a jitter, not a secret


def _connect(uri: str) -> sqlite3.Connection:
    # SQLite's own wait for a lock cannot be interrupted: it is kept short, and _execute repeats it.
    return sqlite3.connect(uri, uri=True, timeout=0.05, isolation_level=None, check_same_thread=False)


def _prepare(connection: sqlite3.Connection, path: Path) -> bool:
    """Check the file, set the modes, add our tables where they are missing; False: others keep it in WAL mode."""
    with _transaction(connection, "BEGIN"):
        ours = _has_tables(connection, path)
        _check_whole(connection, path)
    if not _set_modes(connection):
        return False
    if not ours:
        with _transaction(connection):
            if not _has_tables(connection, path):
                _add_tables(connection)
    return True


def _has_tables(connection: sqlite3.Connection, path: Path) -> bool:
    if not _execute(connection, "SELECT 1 FROM sqlite_master WHERE name = 'checkpoint_schema'").fetchone():
        return False
    version = connection.execute("SELECT max(version) FROM checkpoint_schema").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, and this release knows version {SCHEMA_VERSION}: "
            "upgrade checkpoint-store; the file is kept as it is"
        )
    return True


def _check_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse an empty file, and one cut off in its last page: SQLite would take the missing bytes for zeros."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    page_size = connection.execute("PRAGMA page_size").fetchone()[0]
    with suppress(FileNotFoundError):
        if Path(f"{path}-wal").stat().st_size:
            return  # pages may be there that the file has not got yet
    if not 0 < pages * page_size <= path.stat().st_size:
        raise StoreError(_UNUSABLE.format(path=path, said="it was cut off"))


def _add_tables(connection: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        connection.execute(statement)


def _set_modes(connection: sqlite3.Connection) -> bool:
    # EXTRA is FULL, and where a journal is deleted the folder is synced too; fullfsync is for macOS alone
    # (sqlite.org/pragma.html#pragma_synchronous, #pragma_fullfsync).
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("PRAGMA fullfsync = 1")
    # A file found in rollback mode is never switched to WAL: others may have it open with a version that WAL harms.
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == journal_mode(sqlite3.sqlite_version_info) == "wal":
        return True
    try:
        connection.execute("PRAGMA journal_mode = TRUNCATE")
    except sqlite3.Error as error:
        if _code(error) != _BUSY:
            raise
        return False
    return True


def _create(path: Path) -> None:
    """Put a new database in place, whole or not at all; where somebody else was first, theirs stays."""
    if not path.parent.is_dir():
        raise StoreError(f"{path} cannot be created: its folder does not exist")
    temporary = Path(f"{path}.{token_hex(8)}.new")
    try:
        with closing(_connect(temporary.as_uri())) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("PRAGMA fullfsync = 1")
            with _transaction(connection):
                _add_tables(connection)
            if journal_mode(sqlite3.sqlite_version_info) == "wal":
                connection.execute("PRAGMA journal_mode = WAL")
        _publish(temporary, path)
    finally:
        for leftover in (temporary, Path(f"{temporary}-journal")):
            with suppress(OSError):  # nothing reads it, should it stay
                leftover.unlink()


def _publish(temporary: Path, path: Path) -> None:
    """Give a file its name unless the name is taken, and make the name durable."""
    if os.name == "nt":  # a rename never replaces there, and folders cannot be synced
        with suppress(FileExistsError):
            temporary.rename(path)
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(FileExistsError):
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                import fcntl  # noqa: PLC0415 - not on Windows

                fcntl.flock(folder, fcntl.LOCK_EX)  # let go by the kernel, whatever ends this process
                if not os.path.lexists(path):
                    temporary.rename(path)
        os.fsync(folder)
    finally:
        os.close(folder)


_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # man 2 link


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Generator[None]:
    try:
        _execute(connection, begin)
        yield
        _execute(connection, "COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _execute(connection: sqlite3.Connection, sql: str, parameters: tuple[str, ...] = ()) -> sqlite3.Cursor:
    """Execute a statement, again and again while other connections hold the file."""
    deadline = 0.0
    while True:
        try:
            return connection.execute(sql, parameters)
        except sqlite3.Error as error:  # noqa: PERF203 - this loop is there to try again
            deadline = deadline or time.monotonic() + TIMEOUT
            if _code(error) != _BUSY or time.monotonic() > deadline:
                raise


def _read(connection: sqlite3.Connection, state_key: str, keys: list[str]) -> dict[str, Entry]:
    """Return the entries of these keys, as far as they exist."""
    stored: dict[str, Entry] = {}
    for start in range(0, len(keys), _CHUNK):
        some = keys[start : start + _CHUNK]
        rows = connection.execute(f"{_LOAD} AND key IN ({','.join('?' * len(some))})", (state_key, *some))
        stored.update((row[0], Entry._make(row)) for row in rows)
    return stored


_BUSY = 5
_UNUSABLE = (
    "{path} is not a usable checkpoint database ({said}); it is kept as it is: "
    "put a good copy in its place, or move it away to start over"
)
# Primary result code: SQLite's own words for it (sqlite.org/rescode.html), and ours.
_FAILURES: dict[int, tuple[str, type[StoreError], str]] = {
    _BUSY: ("database is locked", StoreUnavailable, "other connections kept {path} locked: nothing was written"),
    6: ("database table is locked", StoreUnavailable, "other connections kept {path} locked: nothing was written"),
    8: ("readonly database", StoreError, "{path} cannot be written ({said}): it and its folder must be writable"),
    10: ("disk I/O error", StoreError, "{path} could not be read or written ({said}): check the disk, then try again"),
    11: ("malformed", StoreError, _UNUSABLE),
    13: ("disk is full", StoreError, "the disk of {path} is full, and nothing was written: make room, then try again"),
    14: ("unable to open", StoreError, "{path} cannot be opened: it and its folder must exist and be writable"),
    15: ("locking protocol", StoreUnavailable, "other connections kept {path} locked: nothing was written"),
    26: ("file is not a database", StoreError, _UNUSABLE),
}


def _code(error: sqlite3.Error) -> int:
    code: int | None = getattr(error, "sqlite_errorcode", None)  # Python tells it from 3.11 on
    if code is not None:
        return code & 0xFF
    return next((code for code, (words, *_) in _FAILURES.items() if words in str(error)), 1)


@contextmanager
def _translated(path: Path) -> Generator[None]:
    """Raise this library's errors for those of SQLite and of the file system."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be used: {error.strerror}") from error
    except sqlite3.Error as error:
        _, kind, text = _FAILURES.get(_code(error), ("", StoreError, "{path}: {said}"))
        raise kind(text.format(path=path, said=error)) from error


_stores: WeakSet[SQLiteStore] = WeakSet()
_forking: dict[int, list[SQLiteStore]] = {}


def _before_fork() -> None:
    """Close every connection, waiting for commits under way.

    A connection must not be carried into another process, where even closing it would undo the parent's locks and
    transactions (sqlite.org/howtocorrupt.html, 2.6). Both sides open their own when they need it.
    """
    stores = _forking[get_ident()] = sorted(_stores, key=id)  # one order for all threads: no two wait for each other
    for store in stores:
        store._lock.acquire()  # noqa: SLF001 - the store's own hooks
        with suppress(StoreError):
            store.close()


def _after_fork_in_parent() -> None:
    for store in _forking.pop(get_ident(), ()):
        store._lock.release()  # noqa: SLF001


def _after_fork_in_child() -> None:
    _forking.clear()
    for store in _stores:
        store._lock = RLock()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
