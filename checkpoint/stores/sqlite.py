"""A store in one SQLite file: the default, for runs that share a machine."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from itertools import chain, islice
from pathlib import Path
from secrets import token_hex
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote
from weakref import WeakSet

import orjson

from checkpoint.entries import Change, Entry, Receipt
from checkpoint.errors import Conflict, StoreError, StoreUnavailable, ValueTooLarge
from checkpoint.stores.base import (
    KEEP,
    before,
    check_base,
    check_changes,
    check_history,
    check_keep,
    check_name,
    host,
    kept_since,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

logger = logging.getLogger("checkpoint")

TIMEOUT = 60.0
"""Seconds to wait for other connections."""

SILENCE = 3.0
"""Seconds of them after which it says so."""

SCHEMA_VERSION = 2
"""Of our tables, kept in one of them: `PRAGMA user_version` belongs to whoever else uses the file."""

# Every statement names `main`: the caller's connection may have temporary tables and other files attached.
#
# The commits are the latest of each namespace, numbered without gaps, so that what is past `keep` is a range and
# nothing is counted. `before` is a JSON object: the keys it changed, and the values they had; what they got is in the
# next row that names them, else in the entries. What comes before `first`, as the newest row has it, is history no
# more. A commit that history does not tell of has the number of the last that it does, and no `at`; only the newest row
# may be of one. Versions go on from the newest row.
_COMMITS = """CREATE TABLE main.checkpoint_commits (
    state_key TEXT NOT NULL, number INTEGER NOT NULL, version INTEGER NOT NULL, first INTEGER NOT NULL,
    at TEXT, run_id TEXT, host TEXT, process INTEGER, before TEXT, PRIMARY KEY (state_key, number, version)
) WITHOUT ROWID"""
_TABLES = (
    "CREATE TABLE main.checkpoint_schema (version INTEGER NOT NULL)",
    f"INSERT INTO main.checkpoint_schema VALUES ({SCHEMA_VERSION})",  # noqa: S608 - our own number
    """CREATE TABLE main.checkpoint_entries (
        state_key TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL, sync_job_run_id TEXT, version INTEGER NOT NULL, PRIMARY KEY (state_key, key)
    ) WITHOUT ROWID""",
    _COMMITS,
)
_MIGRATIONS = {
    1: (
        _COMMITS,
        """INSERT INTO main.checkpoint_commits (state_key, number, version, first)
            SELECT state_key, 0, version, 1 FROM main.checkpoint_namespaces""",
        "DROP TABLE main.checkpoint_namespaces",
        "UPDATE main.checkpoint_schema SET version = 2",
    ),
}
"""What takes our tables from a version to the next."""

# REPLACE of rows computed here instead of RETURNING, which came with SQLite 3.35: systems in support link older ones.
_SCHEMA = "SELECT max(version) FROM main.checkpoint_schema"
_OURS = "SELECT 1 FROM main.sqlite_master WHERE name = 'checkpoint_entries'"
_LOAD = """SELECT key, value, created_at, updated_at, sync_job_run_id, version
    FROM main.checkpoint_entries WHERE state_key = ?"""
_WRITE = "REPLACE INTO main.checkpoint_entries VALUES (?, ?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM main.checkpoint_entries WHERE state_key = ? AND key = ?"
_LAST = """SELECT number, version, first, at IS NULL FROM main.checkpoint_commits
    WHERE state_key = ? ORDER BY number DESC, version DESC LIMIT 1"""
_COUNT = "INSERT INTO main.checkpoint_commits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UNCOUNT = "DELETE FROM main.checkpoint_commits WHERE state_key = ? AND number = ? AND version = ?"
_FORGET = "DELETE FROM main.checkpoint_commits WHERE state_key = ? AND number < ? AND version < ?"
_YOUNG = """SELECT number FROM main.checkpoint_commits
    WHERE state_key = ? AND number >= ? AND at >= ? ORDER BY number LIMIT 1"""
_HISTORY = """SELECT before, version, at, run_id, host, process FROM main.checkpoint_commits
    WHERE state_key = ? AND at IS NOT NULL AND number >= (
        SELECT first FROM main.checkpoint_commits WHERE state_key = ? ORDER BY number DESC, version DESC LIMIT 1)
    ORDER BY number DESC"""
# From one to the next: DISTINCT would read every entry.
_NAMESPACES = """WITH RECURSIVE named(state_key) AS (
        SELECT min(state_key) FROM main.checkpoint_entries
        UNION ALL
        SELECT (SELECT min(state_key) FROM main.checkpoint_entries WHERE state_key > named.state_key)
        FROM named WHERE named.state_key IS NOT NULL
    ) SELECT state_key FROM named WHERE state_key IS NOT NULL"""

_BATCH = 16  # commits that leave the file together: the page they are on is another than the newest one's
_CHUNK = 500  # keys in one statement; older SQLite takes 999 parameters (sqlite.org/limits.html)


class SQLiteStore:
    """Namespaces in one SQLite database: atomic commits with compare-and-swap, and their history.

    With a path a commit is on disk (fsync) when it returns. Without one the file is `state.db` in the platform's user
    state folder, which is created; the folder of a path must exist.

    With a connection of the caller's own a commit joins the transaction that is open there: it is durable, and seen by
    others, when the caller commits, and undone when the caller rolls back. Nothing of the connection is changed or
    closed; it must be used in its own thread. Where our tables are missing, a load finds nothing and creates nothing,
    and a commit creates them inside the transaction.

    The database may hold other tables; ours begin with `checkpoint_`. A file of an earlier release is read as it is;
    the first commit brings its tables up to date.

    `keep` bounds the history of each namespace: a number of commits (0: none is kept) or an age. What a commit
    replaced stays in the file for so long.

    Raises:
        ValueError, TypeError: `keep` is neither; both a path and a connection were given, or what is no connection.
        StoreError: there is no user state folder, or it cannot be created.

    """

    atomic = True

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        connection: sqlite3.Connection | None = None,
        keep: int | timedelta = KEEP,
    ) -> None:
        check_keep(keep)
        self._keep = keep
        self._joined = connection
        self._connection: sqlite3.Connection | None = None
        self._lock = RLock()
        if connection is None:
            self._path = (_default_path() if path is None else Path(path)).absolute()
            self._patience = _Patience(str(self._path))  # of the operation under way, as the lock is held for one
            if "\0" in str(self._path):
                raise ValueError(f"a path must not hold a NUL: {path!r}")
            _stores.add(self)
        elif path is not None:
            raise TypeError("a store has a path or a connection, not both")
        elif not isinstance(connection, sqlite3.Connection):
            raise TypeError(f"connection must be a sqlite3.Connection, not {type(connection).__name__}")

    def __repr__(self) -> str:
        return (
            f"SQLiteStore({str(self._path)!r})" if self._joined is None else f"SQLiteStore(connection={self._joined!r})"
        )

    @classmethod
    def from_url(cls, url: str) -> SQLiteStore:
        """Return the store of `sqlite:///relative.db` or `sqlite:////absolute.db`; the path is percent-decoded."""
        path = url.removeprefix("sqlite:///")
        if path in {url, ""} or "?" in path or "#" in path:
            raise ValueError(f"a SQLite store's URL is sqlite:///relative.db or sqlite:////absolute.db, not {url!r}")
        return cls(unquote(path, errors="surrogateescape"))

    @property
    def path(self) -> Path | None:
        """The file, which is created when it is first used; None where the connection is the caller's own."""
        return self._path if self._joined is None else None

    @property
    def joined(self) -> bool:
        """Whether commits join the transactions of a connection of the caller's own."""
        return self._joined is not None

    @property
    def in_transaction(self) -> bool:
        """Whether the caller's connection has a transaction open."""
        if self._joined is None:
            return False
        with _translated(self._name, joined=True):
            return self._joined.in_transaction

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`."""
        check_name("state_key", state_key)
        with self._unit(*_READING) as (cursor, version):
            return _entries(cursor.execute(_LOAD, (state_key,))) if version else {}

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys, as far as they exist; see `JoinsTransactions.read`."""
        check_name("state_key", state_key)
        keys = {*keys}
        for key in keys:
            check_name("key", key)
        with self._unit(*_READING) as (cursor, version):
            return _read(cursor, state_key, keys) if version else {}

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
    ) -> Receipt:
        """Write the changed keys, all or none; see `Store.commit`.

        Raises:
            RuntimeError: no transaction is open on the caller's connection.

        """
        check_changes(state_key, changes, run_id)
        if self.joined and not self.in_transaction:
            raise RuntimeError(_NO_TRANSACTION)
        with self._unit("BEGIN IMMEDIATE") as (cursor, schema):
            stored = _read(cursor, state_key, {**base, **changes}) if schema else {}
            check_base(state_key, changes, base, stored)
            if not changes:
                return Receipt()
            _update(cursor, schema)
            last: _Last = cursor.execute(_LAST, (state_key,)).fetchone() or (0, 0, 1, 0)
            now, version = utc_now(), last[1] + 1
            written = {
                key: Entry(key, value, stored[key].created_at if key in stored else now, now, run_id, version)
                for key, value in changes.items()
                if value is not None
            }
            _write(cursor, state_key, written)
            deleted = [(state_key, key) for key in changes if key not in written and key in stored]
            if deleted:
                cursor.executemany(_DELETE, deleted)
            past = before(changes, stored)
            told = (now, run_id, host(), os.getpid(), _dumps(past)) if past and self._keep else None
            _count(cursor, state_key, last, told, self._keep if past else KEEP)  # nothing to tell pushes nothing out
        return Receipt(written)

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold a key; see `ListsNamespaces.namespaces`."""
        with self._unit(*_READING) as (cursor, version):
            # In Python's order: that of the database is another where its encoding is UTF-16.
            return sorted(state_key for (state_key,) in cursor.execute(_NAMESPACES)) if version else []

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what was changed; see `KeepsHistory.history`."""
        check_history(state_key, key, limit)
        with self._unit(*_READING) as (cursor, version):
            if version < _WITH_HISTORY:
                return []
            commits = _commits(cursor, state_key, key, limit)
            stored = _read(cursor, state_key, {changed for past, _ in commits for changed in past})
            return list(islice(_changes(commits, stored), limit))

    def facts(self) -> dict[str, str]:
        """Return SQLite's version, the journal mode, and the file's size; see `TellsFacts.facts`."""
        with self._unit(*_READING) as (cursor, version):
            (mode,) = cursor.execute("PRAGMA main.journal_mode").fetchone()
            (pages,) = cursor.execute("PRAGMA main.page_count").fetchone()
            (size,) = cursor.execute("PRAGMA main.page_size").fetchone()
        return {
            "SQLite": sqlite3.sqlite_version,
            "journal mode": mode,
            "file": f"{pages * size:,} bytes, schema version {version}",
        }

    def close(self) -> None:
        """Close the connection of this process, and the next use opens it again; do nothing to one of the caller's."""
        if self._joined is not None:
            return
        with self._lock, _translated(self._name):
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @property
    def _name(self) -> str:
        return str(self._path) if self._joined is None else "the connection's database"

    @contextmanager
    def _unit(self, *begin: str) -> Generator[tuple[sqlite3.Cursor, int]]:
        """Yield a cursor for statements that belong together, and the version of our tables; 0: there are none.

        They are a transaction begun so, or a part of the caller's.
        """
        if self._joined is None:
            with self._lock, _translated(self._name):
                patience = self._patience = _Patience(self._name)
                with _transaction(self._connected(), patience, *begin) as cursor:
                    yield cursor, _version(cursor, self._name)
        else:
            with _translated(self._name, joined=True), _part(self._joined) as cursor:
                yield cursor, _version(cursor, self._name)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _open(self._path, self._patience)
        return self._connection


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
    import platformdirs  # costs milliseconds, and most stores are given a path

    advice = "pass a store, or set CHECKPOINT_STORE"
    try:
        folder = platformdirs.user_state_path("checkpoint")
        if folder.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
            return folder / "state.db"
    except (OSError, RuntimeError) as error:
        raise StoreError(f"the user state folder cannot be created ({error}): {advice}") from error
    raise StoreError(f"this user has no home folder ({folder}): {advice}")  # older platformdirs say so with a "~"


class _Patience:
    """That of one operation with other connections, which it tells of once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._silent = True

    def is_over(self, began: float) -> bool:
        """Tell whether a wait that began then (monotonic seconds) took too long."""
        waited = time.monotonic() - began
        if waited > SILENCE and self._silent:
            self._silent = False
            logger.warning("waiting up to %.0f s for other connections that hold %s", TIMEOUT, self._name)
        return waited > TIMEOUT


def _open(path: Path, patience: _Patience) -> sqlite3.Connection:
    """Open a store's file, and create it where it does not exist."""
    if not path.exists():
        _create(path, patience)
    elif path.is_dir():
        raise StoreError(f"{path} is a folder: name a file in it, such as {path / 'state.db'}")
    began = time.monotonic()
    while True:
        # An existing file only: SQLite creates a missing one with no bytes, which could be a damaged one.
        connection = _connect(f"{path.as_uri()}?mode=rw")
        try:
            if _prepare(connection, path, patience):
                return connection
        except BaseException:
            connection.close()
            raise
        # Closed while waiting: two that convert a file at once are in each other's way until one lets go.
        connection.close()
        if patience.is_over(began):
            raise StoreError(
                f"{path} is in WAL mode, which SQLite {sqlite3.sqlite_version} may corrupt (sqlite.org/wal.html, the "
                "WAL-reset bug), and other connections keep it so: close them, or use SQLite 3.51.3 or later"
            )
        time.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - a jitter, not a secret


def _connect(uri: str) -> sqlite3.Connection:
    # SQLite's own wait for a lock cannot be interrupted: it is kept short, and _execute repeats it.
    return sqlite3.connect(uri, uri=True, timeout=0.05, isolation_level=None, check_same_thread=False)


def _prepare(connection: sqlite3.Connection, path: Path, patience: _Patience) -> bool:
    """Check the file, and set the modes; False: others keep it in WAL mode."""
    with _transaction(connection, patience, *_READING) as cursor:
        _version(cursor, str(path))
        _check_whole(connection, path)
    return _set_modes(connection)


def _version(cursor: sqlite3.Cursor, name: str) -> int:
    """Return the version of our tables; 0: there are none."""
    try:
        version: int | None = cursor.execute(_SCHEMA).fetchone()[0]
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error) or cursor.execute(_OURS).fetchone():
            raise
        return 0
    if version is None or version > SCHEMA_VERSION:
        raise StoreError(
            f"{name} has schema version {version}, and this release knows version {SCHEMA_VERSION}: "
            "upgrade checkpoint-store; the file is kept as it is"
        )
    return version


def _update(cursor: sqlite3.Cursor, version: int) -> None:
    """Take our tables from a version to the latest; 0: create them."""
    if version == SCHEMA_VERSION:
        return
    steps = (_MIGRATIONS[step] for step in range(version, SCHEMA_VERSION)) if version else (_TABLES,)
    for statement in chain.from_iterable(steps):
        cursor.execute(statement)


def _check_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse an empty file, and one cut off in its last page: SQLite would take the missing bytes for zeros."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    page_size = connection.execute("PRAGMA page_size").fetchone()[0]
    with suppress(FileNotFoundError):
        if Path(f"{path}-wal").stat().st_size:
            return  # pages may be there that the file has not got yet
    size = path.stat().st_size
    if not 0 < pages * page_size <= size:
        raise StoreError(_UNUSABLE.format(path=path, said="it was cut off" if size else "it is empty"))


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


def _create(path: Path, patience: _Patience) -> None:
    """Put a new database in place, whole or not at all; where somebody else was first, theirs stays."""
    if not path.parent.is_dir():
        raise StoreError(f"{path} cannot be created: its folder does not exist")
    temporary = Path(f"{path}.{token_hex(8)}.new")
    try:
        with closing(_connect(temporary.as_uri())) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("PRAGMA fullfsync = 1")
            with _transaction(connection, patience, "BEGIN IMMEDIATE") as cursor:
                _update(cursor, 0)
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
                import fcntl  # not on Windows

                fcntl.flock(folder, fcntl.LOCK_EX)  # let go by the kernel, whatever ends this process
                if not os.path.lexists(path):
                    temporary.rename(path)
        os.fsync(folder)
    finally:
        os.close(folder)


_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # man 2 link


@contextmanager
def _transaction(connection: sqlite3.Connection, patience: _Patience, *begin: str) -> Generator[sqlite3.Cursor]:
    """Yield a cursor for a transaction of our own, which waits for other connections."""
    cursor = connection.cursor()
    try:
        for statement in begin:
            _execute(cursor, statement, patience)
        yield cursor
        _execute(cursor, "COMMIT", patience)
    except BaseException:
        if connection.in_transaction:
            cursor.execute("ROLLBACK")
        raise


@contextmanager
def _part(connection: sqlite3.Connection) -> Generator[sqlite3.Cursor]:
    """Yield a cursor for a part of the caller's transaction, undone alone; without one it is a transaction itself."""
    cursor = sqlite3.Cursor(connection)  # connection.cursor() would take over the caller's row_factory
    text_factory, connection.text_factory = connection.text_factory, str
    try:
        cursor.execute("SAVEPOINT checkpoint_store")
        try:
            yield cursor
        except BaseException as error:
            if connection.in_transaction:  # some errors end all of it (sqlite.org/lang_transaction.html, 3)
                # Found before anything is written; and where tables are new, undoing would abort the caller's queries.
                if not isinstance(error, Conflict):
                    cursor.execute("ROLLBACK TO checkpoint_store")
                cursor.execute("RELEASE checkpoint_store")
            raise
        cursor.execute("RELEASE checkpoint_store")
    finally:
        connection.text_factory = text_factory


def _execute(cursor: sqlite3.Cursor, sql: str, patience: _Patience) -> None:
    """Execute a statement, again and again while other connections hold the file."""
    began: float | None = None
    while True:
        try:
            cursor.execute(sql)
            return
        except sqlite3.Error as error:  # noqa: PERF203 - this loop is there to try again
            began = time.monotonic() if began is None else began
            if _code(error) != _BUSY or patience.is_over(began):
                raise


def _write(cursor: sqlite3.Cursor, state_key: str, written: Mapping[str, Entry]) -> None:
    try:
        cursor.executemany(_WRITE, [(state_key, *entry) for entry in written.values()])
    except (sqlite3.DataError, OverflowError) as error:  # past SQLITE_MAX_LENGTH, past what a C int counts
        largest = max(written.values(), key=lambda entry: len(entry.value))
        raise ValueTooLarge(largest.key, len(largest.value.encode())) from error


def _dumps(past: Mapping[str, str | None]) -> str:
    return orjson.dumps(past, option=orjson.OPT_NON_STR_KEYS).decode()  # a key may be of a class derived from str


_Last: TypeAlias = "tuple[int, int, int, int]"
"""The newest row of a namespace: its number, version and `first`, and whether history does not tell of it."""

_Told: TypeAlias = "tuple[str, str | None, str, int, str]"
"""What history tells of a commit: time, run, host, process, and the JSON of what it found."""


def _count(cursor: sqlite3.Cursor, state_key: str, last: _Last, told: _Told | None, keep: int | timedelta) -> None:
    """Add a commit to those of its namespace, and take away what it is not to keep."""
    number, version, first, passing = last
    if told is not None:
        try:
            first = _first(cursor, state_key, number + 1, first, keep)
            cursor.execute(_COUNT, (state_key, number + 1, version + 1, first, *told))
        except (sqlite3.DataError, OverflowError):
            told, keep = None, 0  # more than a row can hold: history begins again, for with a gap it would be wrong
    if told is None:
        first = first if keep else number + 1
        cursor.execute(_COUNT, (state_key, number, version + 1, first, None, None, None, None, None))
    if passing:
        cursor.execute(_UNCOUNT, (state_key, number, version))
    if first // _BATCH > last[2] // _BATCH:
        cursor.execute(_FORGET, (state_key, first, version + 1))


def _first(cursor: sqlite3.Cursor, state_key: str, number: int, first: int, keep: int | timedelta) -> int:
    """Return the number of the oldest commit that stays in history when the one of this number is added."""
    if not isinstance(keep, timedelta):
        return max(first, number - keep + 1)
    young = cursor.execute(_YOUNG, (state_key, first, kept_since(keep))).fetchone()
    return young[0] if young else number


def _read(cursor: sqlite3.Cursor, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of these keys, as far as they exist."""
    stored: dict[str, Entry] = {}
    wanted = [*keys]
    for start in range(0, len(wanted), _CHUNK):
        some = wanted[start : start + _CHUNK]
        stored |= _entries(cursor.execute(f"{_LOAD} AND key IN ({','.join('?' * len(some))})", (state_key, *some)))
    return stored


def _entries(rows: Iterable[tuple[Any, ...]]) -> dict[str, Entry]:
    """Return the entries of rows of `_LOAD` by their key, fast: there may be hundreds of thousands."""
    collecting = gc.isenabled()
    gc.disable()  # entries are in no cycles, and looking for some takes a sixth of the time
    try:
        return {row[0]: Entry._make(row) for row in rows}
    finally:
        if collecting:
            gc.enable()


_Commit: TypeAlias = "tuple[Mapping[str, str | None], list[Any]]"
"""What it found under the keys it changed; its version, time, run, host and process."""


def _commits(cursor: sqlite3.Cursor, state_key: str, key: str | None, limit: int | None) -> list[_Commit]:
    """Return the latest commits, newest first, until they changed as much as is asked for."""
    commits: list[_Commit] = []
    changes = 0
    for text, *told in cursor.execute(_HISTORY, (state_key, state_key)):
        if limit is not None and changes >= limit:
            break
        past: dict[str, str | None] = orjson.loads(text)
        if key is not None:
            past = {key: past[key]} if key in past else {}
        commits.append((past, told))
        changes += len(past)
    return commits


def _changes(commits: Iterable[_Commit], stored: Mapping[str, Entry]) -> Iterator[Change]:
    """Walk back from what is stored: what a commit found is what the one before it left."""
    after: dict[str, str | None] = {key: entry.value for key, entry in stored.items()}
    for past, told in commits:
        for key, value in past.items():
            yield Change(key, value, after.get(key), *told)
            after[key] = value


_WITH_HISTORY = 2  # the version of our tables
_READING = ("BEGIN", "PRAGMA schema_version")  # a BEGIN waits for nobody: what reads first does
_NO_TRANSACTION = (
    "no transaction is open on the store's connection: begin one before the rows are written "
    "(connection.execute('BEGIN')), commit the checkpoint in it, then commit the transaction"
)
_BUSY = 5
_UNUSABLE = (
    "{path} is not a usable checkpoint database ({said}); it is kept as it is: "
    "put a good copy in its place, or move it away to start over"
)
# Primary result code: SQLite's own words for it (sqlite.org/rescode.html), and ours.
_FAILURES: dict[int, tuple[str, type[StoreError], str]] = {
    _BUSY: ("database is locked", StoreUnavailable, "other connections kept {path} locked: nothing was written"),
    6: (
        "database table is locked",
        StoreUnavailable,
        "another cursor of the connection holds a table of {path}, and nothing was written: read it to its end first",
    ),
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
def _translated(name: str, *, joined: bool = False) -> Generator[None]:
    """Raise this library's errors for those of SQLite and of the file system."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{name} cannot be used: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise StoreError(_UNUSABLE.format(path=name, said=f"its history: {error}")) from error
    except sqlite3.ProgrammingError as error:
        if not joined:
            raise StoreError(f"{name}: {error}") from error
        raise RuntimeError(
            f"a store uses its connection in that one's thread, and while it is open: {error}"
        ) from error
    except sqlite3.Error as error:
        _, kind, text = _FAILURES.get(_code(error), ("", StoreError, "{path}: {said}"))
        raise kind(text.format(path=name, said=error)) from error


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
        store._lock.release()  # noqa: SLF001 - as above


def _after_fork_in_child() -> None:
    _forking.clear()
    for store in _stores:
        store._lock = RLock()  # noqa: SLF001 - as above


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
