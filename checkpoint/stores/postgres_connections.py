"""Connections to a PostgreSQL server: the connection string, the idle connections of a process, what an error means."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakSet

from checkpoint.errors import StoreError, StoreUnavailable, Unauthorized
from checkpoint.stores.retrying import Again, monotonic
from checkpoint.stores.threads import start_thread

try:
    import psycopg as psycopg  # noqa: PLC0414 - the store takes it from here, past the sentence below
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import PipelineStatus, TransactionStatus
    from psycopg.rows import tuple_row
except ImportError as _missing:
    raise ImportError(
        f"PostgresStore needs psycopg ({_missing}): pip install 'checkpoint-store[postgres]'"
    ) from _missing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from psycopg.abc import PQGen

    from checkpoint.stores.retrying import Deadline, Operation

T = TypeVar("T")

ANSWER = 10.0
"""Seconds to connect to one host, and to begin a transaction."""

ABANDONED = 30
"""Seconds after which the server ends a transaction of ours that sends nothing more: it locks its namespace."""

READING, WRITING = "READ ONLY", "READ WRITE"
"""Modes of a transaction."""

OPTIONS = ("schema", "deadline", "keep", "keep_days")
"""Options of the store that may stand in its URL; libpq does not get them."""

_BEGIN = """BEGIN ISOLATION LEVEL READ COMMITTED {mode};
    SET LOCAL statement_timeout = {left}; SET LOCAL lock_timeout = {left};
    SET LOCAL idle_in_transaction_session_timeout = {abandoned}"""

_SHOWN = ("service", "host", "hostaddr", "port", "dbname", "user")  # of a connection string, in names


class CommitUnanswered(Again):
    """An attempt whose COMMIT was sent, and whose answer was never seen."""


class Waiting(NamedTuple):
    """The operation that a transaction belongs to, which logs long waits, and its deadline."""

    operation: Operation
    deadline: Deadline

    def tell(self) -> None:
        """Log that the answer takes long."""
        self.operation.tell(self.deadline, "no answer yet, others may hold its locks")


class Server:
    """A server, and the idle connections of each process to it; no repr, error or pickle has the password.

    `password` is asked at each connect; None: the parameters and libpq's environment say it.
    """

    def __init__(self, params: Mapping[str, Any], password: Callable[[], str] | None = None) -> None:
        named = (params.get(name) or os.environ.get(f"PG{name.upper()}") or "" for name in ("host", "hostaddr"))
        self._hosts = max(str(hosts).count(",") + 1 for hosts in named)
        # Of several hosts the one that takes writes: after a failover the first one may be a standby.
        several = (
            {"target_session_attrs": "read-write"}
            if self._hosts > 1 and "PGTARGETSESSIONATTRS" not in os.environ
            else {}
        )
        self._params = {"fallback_application_name": "checkpoint", **several, **params, "client_encoding": "utf8"}
        self._password = password
        self._idle: dict[int, deque[Connection]] = {}  # by process: a child leaves its parent's alone
        self.name: str = " ".join(f"{key}={params[key]}" for key in _SHOWN if key in params)

    def __repr__(self) -> str:
        return f"Server({self.name!r})"

    def __reduce__(self) -> str:
        raise TypeError(
            "a PostgresStore cannot be pickled, because it holds connections and a password: open one in each process"
        )

    def transaction(self, mode: str, waiting: Waiting) -> Transaction:
        """Return a transaction to be entered."""
        return Transaction(self, mode, waiting)

    def close(self) -> None:
        """Close the idle connections of this process."""
        idle = self._idle.pop(os.getpid(), deque[Connection]())
        while idle:
            idle.pop().close()

    def take(self, waiting: Waiting) -> Connection:
        """Return an idle connection, or a new one.

        Raises:
            Again, StoreError: no connection could be made.

        """
        try:
            return self._idle.setdefault(os.getpid(), deque()).pop()
        except IndexError:
            return self._connect(waiting)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next transaction; if it is unusable, close it and the idle ones."""
        if connection.info.transaction_status == TransactionStatus.IDLE and not connection.stale:
            self._idle.setdefault(os.getpid(), deque()).append(connection)
        else:
            connection.close()
            self.close()  # what ended this one may have ended those

    def _connect(self, waiting: Waiting) -> Connection:
        secret = {} if self._password is None else {"password": _asked(self._password)}
        try:
            connection = _in_time(self._opening(secret, waiting.deadline.left()), waiting)
        except psycopg.Error as error:
            # Its `pgconn` and its traceback hold the password: neither it nor a context that is it goes any further.
            failure = _refused(error, f"PostgreSQL ({self.name})", secret.get("password", ""))
            cause = psycopg.OperationalError(said(error).replace(secret.get("password") or "\0", "***"))
        else:
            if connection is None:
                raise Again("no connection was made in time")
            _connections.add(connection)
            return connection
        finally:
            secret.clear()
        raise failure from cause

    def _opening(self, secret: Mapping[str, str], seconds: float) -> Callable[[], Connection]:
        """Return a function that opens a connection; rendered tracebacks do not show what a function holds."""
        # PostgreSQL's own time-out is in whole seconds, from 2 on, and for each address.
        timeout = max(2, round(min(ANSWER, seconds / self._hosts)))
        conninfo = make_conninfo(**{**self._params, **secret}, connect_timeout=timeout)
        return lambda: Connection.connect(conninfo, autocommit=True, prepare_threshold=None)


def _in_time(opening: Callable[[], Connection], waiting: Waiting) -> Connection | None:
    """Return a new connection; None: the deadline ended, and the thread that opens it is left alone.

    Nothing else ends a name lookup, and a name may stand for any number of addresses, each tried for its own time.

    Raises:
        psycopg.Error: it was refused.
        RuntimeError: the thread cannot be started.

    """
    operation, deadline = waiting
    answers: SimpleQueue[Connection | BaseException] = SimpleQueue()
    start_thread(threading.Thread(target=_answer, args=(opening, answers), name="checkpoint-connect", daemon=True))
    while (left := deadline.left()) > 0:
        try:
            answer = answers.get(timeout=min(left, 1.0, max(0.001, operation.quiet(deadline))))
        except Empty:
            operation.tell(deadline, "the server does not answer yet")
            continue
        if isinstance(answer, Connection):
            return answer
        try:
            raise answer
        finally:
            del answer  # whose traceback leads to this frame: its socket would stay open until the next collection
    return None  # a connection that is there later is collected, which ends it


def _answer(opening: Callable[[], Connection], answers: SimpleQueue[Connection | BaseException]) -> None:
    try:
        answers.put(opening())
    except BaseException as error:  # noqa: BLE001 - raised by whoever waits for it
        answers.put(error.with_traceback(None))  # whose frames lead back to it, and hold the password


def _asked(password: Callable[[], str]) -> str:
    """Return the password that the caller's function returns now."""
    try:
        found = password()
    except Exception as error:
        raise Unauthorized(f"the function that gives the password failed ({type(error).__name__})") from error
    if not isinstance(found, str):
        raise TypeError(f"the function that gives the password must return a str, not {type(found).__name__}")
    return found


class Transaction:
    """A transaction on a connection that is lent for it; entering returns a cursor.

    Raises:
        CommitUnanswered: at the end, COMMIT was sent and its answer never seen.
        Again, StoreError: at the beginning, no connection could be made.

    """

    def __init__(self, server: Server, mode: str, waiting: Waiting) -> None:
        self._server = server
        self._mode = mode
        self._waiting = waiting
        self._until = waiting.deadline.at
        self._connection: Connection | None = None

    def __enter__(self) -> psycopg.Cursor[tuple[Any, ...]]:
        self._connection = connection = self._server.take(self._waiting)
        begun = monotonic()
        connection.tell = self._waiting.tell
        connection.until = min(self._until, begun + ANSWER)
        # The server stops a little earlier than this side does: it can say what it was waiting for.
        left = max(1, round((self._until - begun) * 950))
        try:
            connection.execute(_BEGIN.format(mode=self._mode, left=left, abandoned=ABANDONED * 1000).encode())
        except psycopg.errors.FeatureNotSupported as error:  # READ WRITE during recovery
            connection.stale = True
            self._let_go(error)
            raise Again(f"{said(error)}{_STANDBY}") from error
        except BaseException as error:
            self._let_go(error)
            raise
        connection.until = self._until
        return psycopg.Cursor(connection, row_factory=tuple_row)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        connection = self._connection
        if connection is None:
            return
        if error is not None:
            if isinstance(error, Exception):  # anything else interrupted it: the connection is thrown away as it is
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
            self._let_go(error)
            return
        try:
            connection.execute("COMMIT")
        except psycopg.Error as failed:
            self._let_go(failed)
            if connection.closed or failed.diag.severity_nonlocalized != "ERROR":
                raise CommitUnanswered(said(failed)) from failed
            raise
        except BaseException as interrupted:
            self._let_go(interrupted)
            raise
        self._let_go(None)

    def _let_go(self, error: BaseException | None) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) or not isinstance(error, Exception | None):
            connection.stale = True
        self._server.give_back(connection)


class JoinedTransaction:
    """A part of the caller's transaction, rolled back alone where it fails; entering returns a cursor.

    To write it begins, where none is open, the transaction that psycopg would with the caller's next statement.

    Raises:
        RuntimeError: no transaction is open, and none is begun by itself; the connection cannot be used.

    """

    def __init__(self, connection: psycopg.Connection[Any], mode: str) -> None:
        self._connection = connection
        self._mode = mode
        self._begun = False
        self._part: Any = None

    def __enter__(self) -> psycopg.Cursor[tuple[Any, ...]]:
        connection = self._connection
        check_usable(connection)
        if self._mode == WRITING and connection.info.transaction_status == TransactionStatus.IDLE:
            if connection.autocommit:
                raise RuntimeError(_NO_TRANSACTION)
            connection.execute("SELECT 1")
            self._begun = True
        self._part = connection.transaction()
        try:
            self._part.__enter__()
        except BaseException:
            self._take_back()
            raise
        # Whatever the caller has set for its own cursors does not count.
        return psycopg.Cursor(connection, row_factory=tuple_row)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._part.__exit__(kind, error, traceback)
        except BaseException:
            self._take_back()
            raise
        if error is not None:
            self._take_back()

    def _take_back(self) -> None:
        """End a transaction that was begun for a part that failed: nothing of the caller's is in it."""
        if self._begun:
            with suppress(psycopg.Error):
                self._connection.rollback()


def in_transaction(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether a connection has a transaction open, or begins one by itself."""
    if connection.closed:
        return False
    return not connection.autocommit or connection.info.transaction_status != TransactionStatus.IDLE


def check_usable(connection: psycopg.Connection[Any]) -> None:
    """Refuse a connection of the caller that cannot be used.

    Raises:
        RuntimeError: the connection is not in a state to be used.
        StoreUnavailable: its transaction has failed already.

    """
    status = connection.info.transaction_status
    if connection.closed and not connection.broken:
        raise RuntimeError("the store's connection is closed")
    if status == TransactionStatus.ACTIVE or connection.pgconn.pipeline_status != PipelineStatus.OFF:
        raise RuntimeError("the store's connection is busy: finish the statement or the pipeline first")
    if status == TransactionStatus.INERROR:
        raise StoreUnavailable("the transaction on the store's connection has failed: roll it back")
    if not connection.closed and connection.info.encoding != "utf-8":
        raise RuntimeError(f"the store's connection must have the client encoding UTF8, not {connection.info.encoding}")


_NO_TRANSACTION = (
    "no transaction is open on the store's connection: begin one before the rows are written "
    "(with connection.transaction()), and commit the checkpoint in it"
)


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for answers only until a given time, even if the server or the network is gone."""

    until: float = float("inf")
    tell: Callable[[], object] = staticmethod(lambda: None)
    """Called now and then while there is no answer."""
    stale = False
    """Whether it must not be used again, because it leads to a standby or was interrupted."""

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Wait as psycopg does, until `until` at most."""
        return super().wait(self._bounded(gen), *args, **kwargs)

    def _bounded(self, gen: PQGen[T]) -> PQGen[T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # psycopg comes back ten times a second, ready or not
                wanted = gen.send(ready)
                if not ready:
                    self.tell()
                    if monotonic() > self.until:
                        raise psycopg.OperationalError("the server did not answer in time")
        except StopIteration as end:
            result: T = end.value
            return result

    def __del__(self, *_: Any) -> None:
        """Say nothing: a store need not be closed, and libpq ends the connection, if it was made in this process."""


_connections: WeakSet[Connection] = WeakSet()


def _close_inherited() -> None:
    """Close the parent's sockets, without a word to the server: else they would outlive the parent here."""
    for connection in list(_connections):
        with suppress(psycopg.Error, OSError):
            os.close(connection.fileno())
    _connections.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


class Parsed(NamedTuple):
    """A connection string, taken apart."""

    params: dict[str, Any] = {}  # noqa: RUF012 - never changed
    """For libpq; the password is among them."""
    query: str = ""
    """The part of a URL's query that is the store's own."""
    complaint: str = ""
    """What is wrong with it, without its text; empty: nothing."""


def parsed(dsn: str | None) -> Parsed:
    """Take a connection string apart; nothing is raised here, where a traceback would show the password."""
    text = dsn or ""
    found = re.match(r"postgres(?:ql)?(\+\w*)?://", text)
    if found is None:
        return _by_libpq(text, "")
    login, address, query = _split(text, found.end())
    if found[1] or "@" in address:
        return Parsed(complaint=_DIALECT if found[1] else _ESCAPE)
    ours: list[str] = []
    theirs: list[str] = []
    for part in filter(None, query.split("&")):
        name = part.partition("=")[0]
        if name not in _KNOWN and name not in OPTIONS:
            return Parsed(complaint=_unknown(name))
        (ours if name in OPTIONS else theirs).append(part)
    return _by_libpq(f"{login}{address}?{'&'.join(theirs)}", "&".join(ours))


def _split(url: str, start: int) -> tuple[str, str, str]:
    """Return a URL up to its credentials' end, its address, and its query; the scheme ends at `start`."""
    if "@" in url[start:].partition("/")[0]:  # libpq: up to the first one, credentials hold anything but a slash
        start = url.index("@", start) + 1
    address, _, query = url[start:].partition("?")
    return url[:start], address, query


def _by_libpq(text: str, query: str) -> Parsed:
    """Take apart what libpq reads; `query` is the store's own part."""
    try:
        params: dict[str, Any] = conninfo_to_dict(text)
    except (psycopg.Error, ValueError):  # whose text may quote a part of the password
        return Parsed(complaint=_UNREADABLE)
    if not all(port.isdecimal() for port in str(params.get("port", "")).split(",") if port):
        return Parsed(complaint=_ESCAPE)
    params.pop("connect_timeout", None)
    return Parsed(params, query)


# Parameters that the libpq in use knows, and `ssl=true`, which it takes from JDBC's URLs.
_KNOWN = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} | {"ssl"}


def _unknown(name: str) -> str:
    if re.fullmatch(r"[a-z_]{2,40}", name) is None:  # it may be a piece of a password that was not encoded
        return _UNREADABLE
    return (
        f"the URL of the database has the unknown parameter {name!r}; this store has the parameters "
        f"{', '.join(OPTIONS)}, and libpq those such as sslmode, options, application_name, target_session_attrs"
    )


_UNREADABLE = (
    "libpq cannot read this connection string (it is not shown here): "
    "write postgresql://user:password@host:5432/database, or host=… dbname=…"
)
_ESCAPE = (
    "the URL of the database cannot be read (it is not shown here): "
    "percent-encode the characters @ : / ? # % in the user and the password"
)
_DIALECT = (
    "the URL of the database names a driver after a plus sign, as SQLAlchemy's URLs do (it is not shown here): "
    "write postgresql://user:password@host:5432/database"
)


def translated(error: psycopg.Error, name: str) -> Exception:
    """Return what a failed statement means: an error of this library, or `Again`."""
    text, state = said(error), error.sqlstate or ""
    lost = not state and isinstance(error, psycopg.OperationalError)
    ended = error.diag.severity_nonlocalized in {"FATAL", "PANIC"}  # the connection too
    if lost or ended or state[:2] in _PASSING or state in _PASSING:
        return Again(f"{text}{_STANDBY}" if state == "25006" else text)
    if state == "42501" and "row-level security" in text:
        return Unauthorized(f"{name} refused it: {text}; add a row-level security policy that lets this role write")
    if state[:2] == "28" or state == "42501":
        return Unauthorized(f"{name} refused it: {text}{_GRANTS if state == '42501' else ''}")
    return StoreError(f"{name} failed: {text}")


# postgresql.org/docs/current/errcodes-appendix.html: connections, rollbacks (serialization, deadlock), shutdowns and
# cancellations (time-outs); then lock and idle time-outs, no memory or no lock to be had, too many connections, and
# writes on a standby. Not a full disk, a damaged table or an internal error: they wait for a person.
_PASSING = {"08", "40", "57", "55P03", "25P03", "25P04", "53200", "53300", "25006"}
_GRANTS = (
    "; run `checkpoint init` once as a role that may create the tables, or give a database administrator the SQL that "
    "`checkpoint init --print` writes: the tables, and the grants that a role needs to run jobs"
)
_STANDBY = " (the server is a standby: name the primary, or several hosts and target_session_attrs=read-write)"


def _refused(error: psycopg.Error, name: str, password: str) -> Exception:
    """Return what a failed connection means; libpq says it in words alone."""
    text = said(error).replace(password or "\0", "***")
    if _DENIED.search(text):
        return Unauthorized(f"{name} refused the login: {text}")
    if _HOPELESS.search(text) or not isinstance(error, psycopg.OperationalError):
        return StoreError(f"{name} cannot be used: {text}")
    return Again(text)


_DENIED = re.compile(
    r"authentication failed|no password supplied|no pg_hba.conf entry|pg_hba.conf rejects|role .* does not exist"
    r"|is not permitted to log in|permission denied for database"
)
_HOPELESS = re.compile(
    r"database .* does not exist|no such database|certificate|private key|does not support SSL|invalid .* value"
)


def said(error: psycopg.Error) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split())
