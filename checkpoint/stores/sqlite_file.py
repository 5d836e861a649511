"""The file of `checkpoint.stores.sqlite`: created whole or not at all, opened, and recognised if it was replaced."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from checkpoint.errors import StoreError, is_of_handler
from checkpoint.stores import sqlite_tables
from checkpoint.stores.retrying import SILENCE, Again, Deadline, Operation, Policy, monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

logger: logging.Logger = logging.getLogger("checkpoint")

T = TypeVar("T")

READING = ("BEGIN", "PRAGMA schema_version")
"""Statements that begin a reading transaction. BEGIN alone takes no lock, the PRAGMA does: waiting happens there."""

WRITING = ("BEGIN IMMEDIATE",)
"""Statements that begin a writing transaction."""

BUSY = 5
"""The result code of SQLite where another connection holds a lock (sqlite.org/rescode.html#busy)."""

Identity: TypeAlias = "tuple[int, int]"
"""A file's device and inode: they stay what they are when it is written or renamed."""


class Patience:
    """How long one operation waits for other connections, in all its statements together."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._began = monotonic()
        self._waiting: tuple[Operation, Deadline] | None = None  # made when there is something to wait for
        self._has_locks = False  # whether the file system was found to have them

    def execute(self, cursor: sqlite3.Cursor, sql: str) -> None:
        """Execute a statement, again and again while other connections hold the file.

        Raises:
            StoreUnavailable: they did so to the end.

        """
        try:
            cursor.execute(sql)
        except sqlite3.Error as error:
            if code_of(error) != BUSY:
                raise
            self.call(lambda: _once(cursor, sql))

    def call(self, attempt: Callable[[], T]) -> T:
        """Call until it no longer raises `Again`."""
        if self._waiting is None:
            self._waiting = Operation(str(self._path)), Deadline(self._seconds)
            self._waiting[1].at = self._began + self._seconds
        operation, deadline = self._waiting

        def next_attempt() -> T:
            try:
                return attempt()
            except Again:
                if not self._has_locks and deadline.used() > SILENCE:
                    _check_locks(self._path)
                    self._has_locks = True
                raise

        return operation.call(next_attempt, deadline, _POLICY)


# SQLite's own wait for a lock cannot be interrupted: it is kept short, and repeated.
_SHORT = 0.05
_POLICY = Policy(first=0.01, longest=0.05)


def _once(cursor: sqlite3.Cursor, sql: str) -> None:
    try:
        cursor.execute(sql)
    except sqlite3.Error as error:
        if code_of(error) != BUSY:
            raise
        raise Again("other connections keep it locked, and nothing was written") from error


def _check_locks(path: Path) -> None:
    """Refuse a file system without file locks: SQLite would call the file locked for ever.

    The lock is on a file of its own: closing another descriptor of the database would end the locks on that.
    """
    if os.name == "nt":
        return
    import fcntl  # not on Windows

    probe = Path(f"{path}.{os.urandom(8).hex()}.lock")
    try:
        descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except PermissionError:
        return  # a folder in which nothing can be written
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise StoreError(
                f"{path} is on a file system without file locks ({error.strerror}), where runs could overwrite each "
                "other's commits: put it on a local disk, or mount the folder with locks"
            ) from error
    finally:
        os.close(descriptor)
        _remove(probe)


def transact(
    connection: sqlite3.Connection, patience: Patience, begin: tuple[str, ...], work: Callable[[sqlite3.Cursor], T]
) -> T:
    """Return what the work returns, done in a transaction of its own; when it raises, that is still open."""
    cursor = connection.cursor()
    try:
        for statement in begin:
            patience.execute(cursor, statement)
        result = work(cursor)
        patience.execute(cursor, "COMMIT")
        return result
    finally:
        cursor.close()  # or else a traceback that refers to it keeps its statement, and with it a lock


class File:
    """The database file of a store.

    Once it was opened it is never created again: `_identity` is then set, and a missing file is an error.
    """

    def __init__(self, path: Path, *, private: bool) -> None:
        self.path = path
        self._private = private
        self._identity: Identity | None = None  # of the file that was opened last; None: none was yet
        self._log: Identity | None = None  # of its write-ahead log, where it had one then

    def is_the_opened_one(self) -> bool:
        """Tell whether the file that was opened last is still in its place.

        Raises:
            StoreError: nothing is there.

        """
        found = _identity_of(self.path)
        if found is None:
            raise self._gone()
        return found == self._identity

    def open(self, patience: Patience) -> sqlite3.Connection:
        """Return a connection to the file, which is created where there was none yet.

        Raises:
            StoreError: it is not one of ours, or it is gone.

        """
        while True:
            found = _identity_of(self.path)
            if found is None:
                if self._identity is not None:
                    raise self._gone()
                _create(self.path, patience, private=self._private)
                continue
            if self._identity not in {None, found}:
                self._check_log()
            connection = patience.call(lambda: _open_existing(self.path, patience))
            if _identity_of(self.path) == found:  # or else another took its place meanwhile
                self._identity, self._log = found, _identity_of(_log_of(self.path))
                return connection
            connection.close()

    def end_log(self, connection: sqlite3.Connection) -> None:
        """End the write-ahead log of a file that another has replaced, unless others use it."""
        if self._log is not None and _identity_of(_log_of(self.path)) == self._log:
            with suppress(sqlite3.OperationalError):  # locked by them
                connection.execute("PRAGMA journal_mode = DELETE")

    def _check_log(self) -> None:
        # SQLite would write the changes in the log of the former file into this one.
        log = _log_of(self.path)
        if self._log is not None and _identity_of(log) == self._log:
            raise StoreError(
                f"{self.path} was replaced, and {log.name}, the log of the earlier file, is still in use: end the "
                "other processes that use it, remove that log, and replace the file again"
            )

    def _gone(self) -> StoreError:
        return StoreError(
            f"{self.path} is gone: it was deleted or renamed since this store opened it; put it back, or start the "
            "process again to begin with a new file"
        )


def _identity_of(path: Path) -> Identity | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - half as expensive as Path.stat, and done for each operation
    except FileNotFoundError as error:
        if error.errno is None or is_of_handler(error):
            raise
        return None
    if S_ISDIR(found.st_mode):
        raise StoreError(f"{path} is a folder: name a file in it, such as {path / 'state.db'}")
    return found.st_dev, found.st_ino


def _log_of(path: Path) -> Path:
    # Beside the file, not beside a link to it. Strict: otherwise it swallows an OSError that a signal handler raises.
    return Path(f"{path.resolve(strict=True)}-wal")


def _remove(path: Path) -> None:
    """Remove a temporary file; it does no harm if it stays."""
    try:
        path.unlink()
    except OSError as error:
        if error.errno is None or is_of_handler(error):
            raise


def absolute(path: Path) -> Path:
    """Return a path that stays the same when the current folder changes.

    Raises:
        StoreError: it is relative, and the current folder was deleted.

    """
    try:
        return path.absolute()
    except OSError as error:
        if error.errno is None or is_of_handler(error):
            raise
        raise StoreError(
            f"the path {str(path)!r} is relative, and the current folder cannot be found ({error.strerror}): "
            "pass an absolute path, or start in a folder that exists"
        ) from error


def default_path() -> Path:
    """Return the default path of a store, in a folder that only this user can enter.

    Raises:
        StoreError: there is no user state folder, or it cannot be created.

    """
    import platformdirs  # costs milliseconds, and most stores are given a path

    advice = "pass a store, or set CHECKPOINT_STORE"
    try:
        folder = platformdirs.user_state_path("checkpoint")
        if folder.is_absolute():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return folder / "state.db"
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and (error.errno is None or is_of_handler(error)):
            raise
        raise StoreError(f"the user state folder cannot be created ({error}): {advice}") from error
    raise StoreError(f"this user has no home folder ({folder}): {advice}")  # older platformdirs say so with a "~"


def journal_mode(version: tuple[int, int, int]) -> str:
    """Return the journal mode for new files: `wal` where this version of SQLite is safe with it, else `truncate`.

    From 3.7.0 to 3.51.2 two connections in WAL mode can corrupt the file, backports aside (sqlite.org/wal.html,
    "The WAL-Reset Bug").

    Of the rollback journals, truncating costs 0.75 ms a commit where deleting costs 0.9 and overwriting 1.0, and is as
    durable: the truncated journal is synced before the commit returns (sqlite.org/releaselog/3_8_8.html).
    """
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    return "wal" if fixed else "truncate"


def code_of(error: sqlite3.Error) -> int:
    """Return the primary result code of an error (sqlite.org/rescode.html); 1 if it has none."""
    code: int | None = getattr(error, "sqlite_errorcode", None)  # Python tells it from 3.11 on
    if code is not None:
        return code & 0xFF
    return next((code for code, words in WORDS.items() if words in str(error)), 1)


WORDS = {
    BUSY: "database is locked",
    6: "database table is locked",
    8: "readonly database",
    10: "disk I/O error",
    11: "malformed",
    13: "disk is full",
    14: "unable to open",
    15: "locking protocol",
    26: "file is not a database",
}
"""SQLite's own words for the result codes that we know."""


def _open_existing(path: Path, patience: Patience) -> sqlite3.Connection:
    """Return a connection to an existing file, checked, and in the modes that we use.

    Raises:
        Again: others keep it in WAL mode.

    """
    # SQLite must not create the file here: an empty one cannot be told from a damaged one.
    connection = _connect(f"{path.as_uri()}?mode=rw")
    try:
        ours = transact(connection, patience, READING, lambda cursor: _check_database(cursor, path))
        if _set_modes(connection, ours=ours):
            return connection
    except BaseException:
        connection.close()
        raise
    # Closed while waiting: two that convert a file at once are in each other's way until one lets go.
    connection.close()
    raise Again(
        f"it is in WAL mode, in which SQLite {sqlite3.sqlite_version} may corrupt it (sqlite.org/wal.html, the "
        "WAL-reset bug), and other connections keep it in that mode: close them, or use SQLite 3.51.3 or later"
    )


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=_SHORT, isolation_level=None, check_same_thread=False)


def _check_database(cursor: sqlite3.Cursor, path: Path) -> bool:
    """Refuse what is not a whole database; tell whether it is ours alone."""
    sqlite_tables.form_of(cursor, str(path))
    _check_whole(cursor, path)
    return sqlite_tables.is_ours_alone(cursor)


def _check_whole(cursor: sqlite3.Cursor, path: Path) -> None:
    """Refuse an empty file, and one cut off in its last page: SQLite would take the missing bytes for zeros."""
    pages = cursor.execute("PRAGMA page_count").fetchone()[0]
    page_size = cursor.execute("PRAGMA page_size").fetchone()[0]
    with suppress(FileNotFoundError):
        if _log_of(path).stat().st_size:
            return  # pages may be there that the file has not got yet
    size = path.stat().st_size
    if not 0 < pages * page_size <= size:
        said = "it was cut off" if size else "it is empty"
        raise StoreError(sqlite_tables.UNUSABLE.format(path=path, said=said))


def _set_modes(connection: sqlite3.Connection, *, ours: bool) -> bool:
    """Set how a connection writes; False: others keep the file in WAL mode.

    The journal mode is a property of the file. One that holds other tables too is another program's, and keeps its own.
    """
    # EXTRA is FULL, and where a journal is deleted the folder is synced too; fullfsync is for macOS alone
    # (sqlite.org/pragma.html#pragma_synchronous, #pragma_fullfsync).
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("PRAGMA fullfsync = 1")
    found = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if found == "wal" and (not ours or journal_mode(sqlite3.sqlite_version_info) == "wal"):
        return True
    # A file found in rollback mode is never switched to WAL: others may have it open with a version that WAL harms.
    try:
        connection.execute("PRAGMA journal_mode = TRUNCATE")
    except sqlite3.Error as error:
        if code_of(error) != BUSY:
            raise
        return False
    return True


def _create(path: Path, patience: Patience, *, private: bool) -> None:
    """Create the database file, whole or not at all; if another process was first, its file stays."""
    if path.is_symlink():
        raise StoreError(
            f"{path} is a link to {path.readlink()}, which does not exist: pass the path of that file to create it, or "
            "remove the link"
        )
    if not path.parent.is_dir():
        raise StoreError(f"{path} cannot be created, because its folder does not exist: create the folder")
    temporary = Path(f"{path}.{os.urandom(8).hex()}.new")
    try:
        # Its journal and log get the mode of the file; SQLite's own would be 0644 whatever the umask lets a group do.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
        with closing(_connect(temporary.as_uri())) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("PRAGMA fullfsync = 1")
            transact(connection, patience, WRITING, lambda cursor: sqlite_tables.bring_up_to_date(cursor, 0))
            if journal_mode(sqlite3.sqlite_version_info) == "wal":
                connection.execute("PRAGMA journal_mode = WAL")
        created = _publish(temporary, path)
    finally:
        for leftover in (temporary, Path(f"{temporary}-journal")):
            _remove(leftover)
    if created and private and _in_container():
        logger.warning(
            "%s was created inside a container, and is lost with it: set CHECKPOINT_STORE to a store outside", path,
            extra={"checkpoint_event": "in_container"},
        )  # fmt: skip


def _in_container() -> bool:
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(mark.exists() for mark in marks)


def _publish(temporary: Path, path: Path) -> bool:
    """Give a file its name and make the name durable; False: the name was taken."""
    if os.name == "nt":  # a rename never replaces there, and folders cannot be synced
        with suppress(FileExistsError):
            temporary.rename(path)
            return True
        return False
    folder = _open_folder(path.parent)
    try:
        created = _give_name(temporary, path, folder)
        if folder is not None:
            _sync(folder)
        return created
    finally:
        if folder is not None:
            os.close(folder)


def _give_name(temporary: Path, path: Path, folder: int | None) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    else:
        return True
    if folder is not None:
        import fcntl  # not on Windows

        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # let go by the kernel, whatever ends this process
        except OSError as error:  # without locks too the file is only renamed where there is none
            if error.errno not in _NO_LOCKS:
                raise
    if os.path.lexists(path):
        return False
    temporary.rename(path)
    return True


def _open_folder(folder: Path) -> int | None:
    """Return a descriptor of a folder; None: it may be written and entered, but not read, and cannot be synced."""
    try:
        return os.open(folder, os.O_RDONLY)
    except PermissionError:
        return None


def _sync(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # man 2 link
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # man 2 fcntl, man 2 flock
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS}  # man 2 fsync: special files
