"""A store in one SQLite file: the default, for runs that share a machine."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from itertools import islice
from pathlib import Path
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import unquote
from weakref import WeakSet

from checkpoint.entries import Change, Entry, Receipt
from checkpoint.errors import CheckpointError, Conflict, StoreError, StoreUnavailable, is_of_handler
from checkpoint.stores import sqlite_tables as tables
from checkpoint.stores.base import check_base, check_changes, check_name, entries_of, utc_now
from checkpoint.stores.history import KEEP, KEEP_DAYS, check_keep, check_question, replaced_values, writer_of
from checkpoint.stores.retrying import DEADLINE
from checkpoint.stores.sqlite_file import (
    BUSY,
    READING,
    WRITING,
    File,
    Patience,
    absolute,
    code_of,
    default_path,
    transact,
)
from checkpoint.stores.urls import check_seconds, positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from checkpoint.entries import Writer

T = TypeVar("T")


class SQLiteStore:
    """Namespaces in one SQLite database: atomic commits with compare-and-swap, and the history of each key.

    With a path a commit is on disk (fsync) when it returns. Without one the file is `state.db` in the platform's user
    state folder; both are created, for this user alone. The folder of a path must exist. A file that was replaced
    since it was last used is opened again; one that is gone is an error, not a new file.

    With a connection of the caller's own a commit joins the transaction that is open there: it is durable, and seen by
    others, when the caller commits, and undone when the caller rolls back. Nothing of the connection is changed or
    closed; it must be used in its own thread. Where our tables are missing, a load finds nothing and creates nothing,
    and a commit creates them inside the transaction.

    The database may hold other tables, and then keeps its journal mode; our tables begin with `checkpoint_`. A file of
    release 0.1 is read as it is; the first commit brings its tables up to date, and 0.1 refuses it from then on.

    Args:
        path: the file.
        connection: a connection of the caller's own, instead.
        keep: changes of a key that its history keeps whatever their age; 0: no history is kept.
        keep_days: days for which the last change of each day is kept beyond them, see `checkpoint.stores.history`.
        deadline: seconds for one load or commit to wait for other connections.

    Raises:
        ValueError, TypeError: a number is none or out of range; both a path and a connection were given, or what is no
            connection.
        StoreError: there is no user state folder, or it cannot be created; the path is relative to a folder that is
            gone.

    """

    atomic = True
    URL_OPTIONS: ClassVar[Mapping[str, Callable[[str], Any]]] = {"deadline": positive, "keep": int, "keep_days": int}

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        connection: sqlite3.Connection | None = None,
        keep: int = KEEP,
        keep_days: int = KEEP_DAYS,
        deadline: float = DEADLINE,
    ) -> None:
        check_keep(keep, keep_days)
        deadline = check_seconds("deadline", deadline)
        self._bound, self._deadline = (keep, keep_days), deadline
        self._joined = connection
        self._connection: sqlite3.Connection | None = None
        self._lock = RLock()
        if connection is None:
            self._path = default_path() if path is None else absolute(Path(path))
            if "\0" in str(self._path):
                raise ValueError(f"a path must not hold a NUL: {path!r}")
            self._file = File(self._path, private=path is None)
            _stores.add(self)
        elif path is not None:
            raise TypeError("pass either a path or a connection, not both")
        elif not isinstance(connection, sqlite3.Connection):
            raise TypeError(f"connection must be a sqlite3.Connection, not {type(connection).__name__}")

    @property
    def deadline(self) -> float:
        """Seconds for one load or commit; see `HasDeadline`."""
        return self._deadline

    def __repr__(self) -> str:
        return (
            f"SQLiteStore({str(self._path)!r})" if self._joined is None else f"SQLiteStore(connection={self._joined!r})"
        )

    @classmethod
    def from_url(cls, url: str, **options: Any) -> SQLiteStore:
        """Return the store of `sqlite:///relative.db` or `sqlite:////absolute.db`; the path is percent-decoded."""
        path = url.removeprefix("sqlite:///")
        if path in {url, ""} or "?" in path or "#" in path:
            raise ValueError(
                f"a SQLite store's URL must be sqlite:///relative.db or sqlite:////absolute.db, not {url!r}"
            )
        return cls(unquote(path, errors="surrogateescape"), **options)

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
        with _Translated(self._name, joined=True):
            return self._joined.in_transaction

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`."""
        check_name("state_key", state_key)
        return self._run(READING, lambda cursor, form: tables.load_entries(cursor, state_key) if form else {})

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys, as far as they exist; see `ReadsKeys.read`."""
        check_name("state_key", state_key)
        wanted = {*keys}
        for key in wanted:
            check_name("key", key)
        return self._run(READING, lambda cursor, form: tables.read_entries(cursor, state_key, wanted) if form else {})

    def commit(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None] = {},
        *,
        run_id: str | None = None,
        reasons: Mapping[str, str] = {},
        writer: Writer | None = None,
    ) -> Receipt:
        """Write the changed keys, all or none; see `KeepsHistory.commit`.

        Raises:
            RuntimeError: no transaction is open on the caller's connection.

        """
        return self._run(WRITING, self._committing(state_key, changes, base, run_id, reasons, writer))

    def replace(self, state_key: str, key: str, value: str, *, run_id: str | None = None, reason: str = "") -> Receipt:
        """Write a value in place of the damaged row of a key; see `ReplacesRows.replace`."""
        write = self._committing(state_key, {key: value}, {}, run_id, {key: reason} if reason else {}, None)

        def work(cursor: sqlite3.Cursor, form: int) -> Receipt:
            tables.delete_damaged(cursor, state_key, key)
            return write(cursor, form)

        return self._run(WRITING, work)

    def _committing(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None],
        run_id: str | None,
        reasons: Mapping[str, str],
        writer: Writer | None,
    ) -> Callable[[sqlite3.Cursor, int], Receipt]:
        """Check a commit, and return what does it in a transaction."""
        check_changes(state_key, changes, run_id)
        author = writer_of(reasons, writer)
        if self.joined and not self.in_transaction:
            raise RuntimeError(_NO_TRANSACTION)

        def work(cursor: sqlite3.Cursor, form: int) -> Receipt:
            stored = tables.read_entries(cursor, state_key, {**base, **changes}) if form else {}
            check_base(state_key, changes, base, stored)
            if not changes:
                return Receipt()
            if form != tables.FORMAT:
                tables.bring_up_to_date(cursor, form)
            now = utc_now()
            version, may_wait = tables.count_commit(cursor, state_key, self._bound)
            written = entries_of(changes, stored, now, run_id, version)
            tables.write_entries(cursor, state_key, written, changes.keys() & stored.keys() - written.keys())
            past = [
                (
                    key,
                    before,
                    changes[key],
                    version,
                    now,
                    run_id,
                    author.host,
                    author.process,
                    reasons.get(key),
                    author.by,
                )
                for key, before in replaced_values(changes, stored).items()
            ]
            tables.add_to_history(cursor, state_key, past, stored, self._bound, may_wait=may_wait)
            return Receipt(written)

        return work

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold a key; see `ListsNamespaces.namespaces`."""
        return self._run(READING, lambda cursor, form: tables.list_namespaces(cursor) if form else [])

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what was changed; see `KeepsHistory.history`."""
        check_question(state_key, key, limit)
        return self._run(
            READING, lambda cursor, form: list(islice(tables.history(cursor, form, state_key, key), limit))
        )

    def facts(self) -> dict[str, str]:
        """Return SQLite's version, the journal mode, and the file's size; see `TellsFacts.facts`."""

        def work(cursor: sqlite3.Cursor, form: int) -> dict[str, str]:
            (mode,) = cursor.execute("PRAGMA main.journal_mode").fetchone()
            (pages,) = cursor.execute("PRAGMA main.page_count").fetchone()
            (size,) = cursor.execute("PRAGMA main.page_size").fetchone()
            return {
                "SQLite": sqlite3.sqlite_version,
                "journal mode": mode,
                "file": f"{pages * size:,} bytes, schema version {form}",
            }

        return self._run(READING, work)

    def close(self) -> None:
        """Close the connection of this process, and the next use opens it again; do nothing to one of the caller's."""
        if self._joined is not None:
            return
        with self._lock, _Translated(self._name):
            self._drop()

    @property
    def _name(self) -> str:
        return str(self._path) if self._joined is None else "the connection's database"

    def _run(self, begin: tuple[str, ...], work: Callable[[sqlite3.Cursor, int], T]) -> T:
        """Return what the work returns, given a cursor and the form of our tables; 0: there are none.

        It is done in a transaction begun so, or in a part of the caller's. Whatever interrupts it, no transaction and
        no lock is left.
        """
        name = self._name

        def with_form(cursor: sqlite3.Cursor) -> T:
            return work(cursor, tables.form_of(cursor, name))

        if self._joined is not None:
            with _Translated(name, joined=True):
                return _join(self._joined, with_form)
        patience = Patience(self._path, self._deadline)  # which waits for other threads too
        with self._lock, _Translated(name):
            try:
                return transact(self._connected(patience), patience, begin, with_form)
            except Conflict:
                if self._connection is not None:
                    self._connection.rollback()
                raise
            except BaseException:
                self._drop()  # with its transaction; the next operation opens another
                raise

    def _connected(self, patience: Patience) -> sqlite3.Connection:
        connection = self._connection
        if connection is not None and not connection.in_transaction:  # or else an interruption left it
            if self._file.is_the_opened_one():
                return connection
            self._file.end_log(connection)
        self._drop()
        connection = self._connection = self._file.open(patience)
        return connection

    def _drop(self) -> None:
        """End the transaction, and close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                with suppress(sqlite3.Error):
                    connection.rollback()  # closing alone does not, as long as a traceback refers to one of its cursors
            finally:
                connection.close()


def _join(connection: sqlite3.Connection, work: Callable[[sqlite3.Cursor], T]) -> T:
    """Return what the work returns, done in a part of the caller's transaction, or in one where none is open.

    When it raises, that part alone is undone.
    """
    cursor = sqlite3.Cursor(connection)  # connection.cursor() would take over the caller's row_factory
    text_factory = connection.text_factory
    try:
        connection.text_factory = str
        cursor.execute("SAVEPOINT checkpoint_store")
        result = work(cursor)
        cursor.execute("RELEASE checkpoint_store")
    except BaseException as error:
        if connection.in_transaction:  # some errors end all of it (sqlite.org/lang_transaction.html, 3)
            with suppress(sqlite3.OperationalError):  # interrupted before there was one, or after
                # Found before anything is written; and where tables are new, undoing would abort the caller's queries.
                if not isinstance(error, Conflict):
                    cursor.execute("ROLLBACK TO checkpoint_store")
                cursor.execute("RELEASE checkpoint_store")
        raise
    else:
        return result
    finally:
        connection.text_factory = text_factory


_NO_TRANSACTION = (
    "no transaction is open on the store's connection: begin one before the rows are written "
    "(connection.execute('BEGIN')), commit the checkpoint in it, then commit the transaction"
)
# By primary result code (sqlite.org/rescode.html).
_FAILURES: dict[int, tuple[type[StoreError], str]] = {
    BUSY: (StoreUnavailable, "other connections kept {path} locked: nothing was written"),
    6: (
        StoreUnavailable,
        "another cursor of the connection uses a table of {path}, and nothing was written: read that cursor to its end",
    ),
    8: (StoreError, "{path} cannot be written ({said}): it and its folder must be writable"),
    10: (StoreError, "{path} could not be read or written ({said}): check the disk, then try again"),
    11: (StoreError, tables.UNUSABLE),
    13: (StoreError, "the disk of {path} is full, and nothing was written: make room, then try again"),
    14: (StoreError, "{path} cannot be opened: it and its folder must exist and be writable"),
    15: (StoreUnavailable, "other connections kept {path} locked: nothing was written"),
    26: (StoreError, tables.UNUSABLE),
}


class _Translated:
    """Raises this library's errors for those of SQLite and of the file system; everything else comes out as it is."""

    __slots__ = ("_joined", "_name")

    def __init__(self, name: str, *, joined: bool = False) -> None:
        self._name = name
        self._joined = joined

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error):
            raise self._of_sqlite(error) from error
        # One without a number is the job's own too: of a handler that is none any more.
        if isinstance(error, OSError) and error.errno is not None and not is_of_handler(error):
            raise StoreError(f"{self._name} cannot be used: {error.strerror}") from error

    def _of_sqlite(self, error: sqlite3.Error) -> CheckpointError | RuntimeError:
        if isinstance(error, sqlite3.ProgrammingError) and self._joined:
            return RuntimeError(
                f"use a store in the thread of its connection, and while the connection is open: {error}"
            )
        kind, text = _FAILURES.get(code_of(error), (StoreError, "{path}: {said}"))
        if isinstance(error, sqlite3.ProgrammingError):
            kind, text = StoreError, "{path}: {said}"
        said = str(error)
        if column := tables.undecodable(error):
            text, said = tables.UNUSABLE, f"the {column} of a row is not UTF-8"
        return kind(text.format(path=self._name, said=said))


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
