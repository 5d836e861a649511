"""A store in a PostgreSQL database, for runs on several machines; the only import of psycopg."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from contextlib import contextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote
from weakref import WeakSet

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from checkpoint.entries import Change, Entry, Receipt
from checkpoint.errors import CommitUnknown, StoreError, StoreUnavailable, Unauthorized, ValueTooLarge
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

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import PipelineStatus, TransactionStatus
    from psycopg.rows import tuple_row
except ImportError as missing:
    raise ImportError(f"PostgresStore needs psycopg ({missing}): pip install 'checkpoint-store[postgres]'") from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from psycopg.abc import PQGen

T = TypeVar("T")

DEADLINE = 60.0
"""Seconds for one load or commit, with everything that is tried again."""

ANSWER = 10.0
"""Seconds of them to connect to one host, and to begin a transaction."""

SILENCE = 30
"""Seconds after which the server ends a transaction of ours that says nothing more: it holds its namespace."""

MAX_VALUE = 128_000_000
"""Bytes of a value. Sending takes libpq a time that grows with the square of it, on a Unix socket 10 s for 100 MB."""

_BATCH = 64_000_000  # bytes of values in one statement

# Keys may be longer than an index takes (2,704 bytes): their SHA-256 is indexed. Values are the bytes of their UTF-8:
# PostgreSQL's text holds no NUL; `convert_from(value, 'UTF8')` shows them. A token names the commit that wrote a row.
_STEPS = (
    (
        "CREATE TABLE {schema}.checkpoint_schema (version integer NOT NULL)",
        "INSERT INTO {schema}.checkpoint_schema VALUES (1)",
        """CREATE TABLE {schema}.checkpoint_namespaces (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, digest bytea NOT NULL UNIQUE, state_key text NOT NULL,
            version bigint NOT NULL, token bytea NOT NULL
        )""",
        """CREATE TABLE {schema}.checkpoint_entries (
            namespace bigint NOT NULL, digest bytea NOT NULL, key text NOT NULL, value bytea NOT NULL,
            created_at text NOT NULL, updated_at text NOT NULL, sync_job_run_id text, version bigint NOT NULL,
            PRIMARY KEY (namespace, digest)
        )""",
        """CREATE TABLE {schema}.checkpoint_commits (
            namespace bigint NOT NULL, version bigint NOT NULL, token bytea NOT NULL, at text NOT NULL, run_id text,
            host text NOT NULL, process bigint NOT NULL, PRIMARY KEY (namespace, version)
        )""",
        """CREATE TABLE {schema}.checkpoint_changes (
            namespace bigint NOT NULL, version bigint NOT NULL, digest bytea NOT NULL, key text NOT NULL,
            before bytea, after bytea, PRIMARY KEY (namespace, version, digest)
        )""",
        # Not compressed: that takes seconds for each 10 MB.
        "ALTER TABLE {schema}.checkpoint_entries ALTER value SET STORAGE EXTERNAL",
        """ALTER TABLE {schema}.checkpoint_changes
            ALTER before SET STORAGE EXTERNAL, ALTER after SET STORAGE EXTERNAL""",
    ),
)
"""What makes each version of our tables out of the one before it, from none on."""

SCHEMA_VERSION = len(_STEPS)
"""Of our tables, kept in one of them."""

_BEGIN = """BEGIN ISOLATION LEVEL READ COMMITTED {mode};
    SET LOCAL statement_timeout = {left}; SET LOCAL lock_timeout = {left};
    SET LOCAL idle_in_transaction_session_timeout = {silence}"""
_READING, _WRITING = "READ ONLY", "READ WRITE"

_HAS_TABLES = """SELECT 1 FROM pg_catalog.pg_tables
    WHERE schemaname = %(schema)s AND tablename = 'checkpoint_schema'"""
_HAS_SCHEMA = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s"
_VERSION = "SELECT max(version) FROM {schema}.checkpoint_schema"
# Held until the transaction ends, as PgBouncer needs it: of several that create or migrate, one does.
_ALONE = "SELECT pg_advisory_xact_lock(7161374129025417316)"
_ENCODING = "SELECT pg_catalog.current_setting('server_encoding')"

_LOAD = """SELECT entry.key, entry.value, entry.created_at, entry.updated_at, entry.sync_job_run_id, entry.version
    FROM {schema}.checkpoint_entries entry JOIN {schema}.checkpoint_namespaces namespace ON namespace.id = namespace
    WHERE namespace.digest = %(namespace)s"""
_READ = _LOAD + " AND entry.digest = ANY(%(digests)b::bytea[])"
# A row of its own is what the writers of a namespace wait for: one after the other, they read what the last one left.
_LOCK = """SELECT id, version, token FROM {schema}.checkpoint_namespaces
    WHERE digest = %(digest)s FOR UPDATE"""
_ADD = """INSERT INTO {schema}.checkpoint_namespaces (digest, state_key, version, token)
    VALUES (%(digest)s, %(state_key)s, 0, '') ON CONFLICT DO NOTHING"""
_LANDED = """SELECT 1 FROM {schema}.checkpoint_commits WHERE namespace = %(namespace)s AND token = %(token)s"""
_WRITE = """WITH given AS (
        SELECT * FROM unnest(%(digests)b::bytea[], %(keys)b::text[], %(values)b::bytea[], %(told)b::boolean[])
            AS given (digest, key, value, told)
    ), told AS (
        INSERT INTO {schema}.checkpoint_changes
        SELECT %(namespace)s, %(version)s, given.digest, given.key, entry.value, given.value
        FROM given LEFT JOIN {schema}.checkpoint_entries entry
            ON entry.namespace = %(namespace)s AND entry.digest = given.digest
        WHERE given.told
    ), deleted AS (
        DELETE FROM {schema}.checkpoint_entries entry USING given
        WHERE entry.namespace = %(namespace)s AND entry.digest = given.digest AND given.value IS NULL
    )
    INSERT INTO {schema}.checkpoint_entries AS entry
    SELECT %(namespace)s, digest, key, value, %(now)s, %(now)s, %(run_id)s, %(version)s
    FROM given WHERE value IS NOT NULL
    ON CONFLICT (namespace, digest) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at,
        sync_job_run_id = excluded.sync_job_run_id, version = excluded.version"""
_COUNT = """UPDATE {schema}.checkpoint_namespaces SET version = %(version)s, token = %(token)s
    WHERE id = %(namespace)s"""
_TELL = """INSERT INTO {schema}.checkpoint_commits
    VALUES (%(namespace)s, %(version)s, %(token)s, %(now)s, %(run_id)s, %(host)s, %(process)s)"""
_FORGET = """WITH forgotten AS (
        DELETE FROM {schema}.checkpoint_commits WHERE namespace = %(namespace)s AND {old} RETURNING version
    )
    DELETE FROM {schema}.checkpoint_changes
    WHERE namespace = %(namespace)s AND version IN (SELECT version FROM forgotten)"""
# All before the oldest that is to stay: clocks of several hosts are not in order, and a gap would be a wrong history.
_OLD = """version < (
    SELECT min(version) FROM {schema}.checkpoint_commits WHERE namespace = %(namespace)s AND at >= %(since)s)"""
_TOO_MANY = """version <= (
    SELECT version FROM {schema}.checkpoint_commits WHERE namespace = %(namespace)s
    ORDER BY version DESC OFFSET %(keep)s LIMIT 1)"""
_HISTORY = """SELECT key, before, after, version, at, run_id, host, process
    FROM {schema}.checkpoint_changes change JOIN {schema}.checkpoint_commits commit USING (namespace, version)
    WHERE namespace = (SELECT id FROM {schema}.checkpoint_namespaces WHERE digest = %(namespace)s)
        AND (%(digest)s::bytea IS NULL OR digest = %(digest)s)
    ORDER BY version DESC, key COLLATE "C" LIMIT %(limit)s::bigint"""
_NAMESPACES = """SELECT state_key FROM {schema}.checkpoint_namespaces namespace
    WHERE EXISTS (SELECT FROM {schema}.checkpoint_entries WHERE namespace = namespace.id)"""


class PostgresStore:
    """Namespaces in a PostgreSQL database: atomic commits with compare-and-swap, and their history.

    Args:
        dsn: a connection string of libpq, `postgresql://user@host/database` or `host=… dbname=…`; what it leaves out,
            and all of it where it is None, comes from libpq's environment (`PGHOST`, `PGPASSWORD`, …). A URL may name
            the schema, too: `?schema=name`.
        connection: a connection of the caller's own, instead. A commit joins the transaction that is open there: it
            is seen by others when the caller commits, and undone when the caller rolls back. Where psycopg begins
            transactions by itself (autocommit off, its default), a commit begins one if none is open, for the
            caller's `connection.commit()` to end; in autocommit mode it must be inside `connection.transaction()`.
            Nothing is tried again, and the caller's time-outs hold.
        schema: the PostgreSQL schema of the tables, `checkpoint_…`; None: `public`, whatever the search path. The
            first commit creates what is missing.
        keep: what bounds the history of each namespace: a number of commits (0: none is kept) or an age.

    Any number of threads may use a store; each call takes a connection of its own. Connections are fit for PgBouncer's
    transaction mode. A load or commit takes 60 s at most, restarts of the server and waits for other writers included.

    Raises:
        ValueError, TypeError: the connection string (its text is not shown), the schema or `keep` is not one; both a
            connection string and a connection were given, or what is no connection.

    """

    atomic = True

    def __init__(
        self,
        dsn: str | None = None,
        *,
        connection: psycopg.Connection[Any] | None = None,
        schema: str | None = None,
        keep: int | timedelta = KEEP,
    ) -> None:
        both = dsn is not None and connection is not None
        self._server, named, complaint = _parsed(dsn)
        del dsn  # so that no rendered traceback shows its password
        self._joined = connection
        self._schema = schema if schema is not None else named
        self._keep = keep
        self._current = False  # whether our tables were found to be there, as this release makes them
        if both:
            raise TypeError("a store has a connection string or a connection, not both")
        if not isinstance(connection, psycopg.Connection | None):
            raise TypeError(f"connection must be a psycopg.Connection, not {type(connection).__name__}")
        if complaint:
            raise ValueError(complaint)
        _check_schema(self._schema)
        check_keep(keep)

    def __repr__(self) -> str:
        what = f"connection={self._joined!r}" if self.joined else repr(self._server.name)
        return f"PostgresStore({what}, schema={self._schema!r})"

    @property
    def joined(self) -> bool:
        """Whether commits join the transactions of a connection of the caller's own."""
        return self._joined is not None

    @property
    def in_transaction(self) -> bool:
        """Whether the caller's connection has a transaction open, or begins one by itself."""
        if self._joined is None or self._joined.closed:
            return False
        return not self._joined.autocommit or self._joined.info.transaction_status != TransactionStatus.IDLE

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`."""
        check_name("state_key", state_key)
        return _entries(self._ask(_LOAD, namespace=_digest(state_key)))

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys, as far as they exist; see `JoinsTransactions.read`."""
        check_name("state_key", state_key)
        wanted = {*keys}
        for key in wanted:
            check_name("key", key)
        return _entries(self._ask(_READ, namespace=_digest(state_key), digests=[_digest(key) for key in wanted]))

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
            ValueTooLarge: a value is longer than 128 MB.
            RuntimeError: no transaction is open on the caller's connection.

        """
        check_changes(state_key, changes, run_id)
        commit = _Commit(state_key, changes, base, run_id, self._keep)
        try:
            return self._retry(lambda until: commit.attempt(self._unit(_WRITING, until)))
        except StoreError as error:
            if commit.unanswered is None:
                raise
            unknown = CommitUnknown(state_key, changes)
            unknown.unsettled = frozenset(changes)
            raise unknown from error

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold a key; see `ListsNamespaces.namespaces`."""
        return sorted(state_key for (state_key,) in self._ask(_NAMESPACES))

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what was changed; see `KeepsHistory.history`."""
        check_history(state_key, key, limit)
        digest = None if key is None else _digest(key)
        most = None if limit is None else min(limit, 1 << 62)
        rows = self._ask(_HISTORY, namespace=_digest(state_key), digest=digest, limit=most)
        return [Change(name, _text(old), _text(new), *told) for name, old, new, *told in rows]

    def close(self) -> None:
        """Close the idle connections of this process, and the next use opens another; leave the caller's alone."""
        self._server.close()

    def _ask(self, sql: str, **values: Any) -> list[Any]:
        """Return the rows that answer a question; none where our tables do not exist."""

        def attempt(until: float) -> list[Any]:
            with self._unit(_READING, until) as statements:
                return statements(sql, **values) if statements.version else []

        return self._retry(attempt)

    def _retry(self, attempt: Callable[[float], T]) -> T:
        """Call until it succeeds or the deadline ends; once where the transaction is the caller's.

        Raises:
            StoreUnavailable: it did not succeed, and nothing was written by an attempt that was answered.

        """
        began = monotonic()
        until = began + DEADLINE

        def ended(state: RetryCallState) -> bool:
            return self.joined or monotonic() + state.upcoming_sleep >= until

        policy = Retrying(
            retry=retry_if_exception_type(_Again),
            wait=wait_random_exponential(multiplier=0.05, max=2.0),
            stop=ended,
            reraise=True,
        )
        try:
            return policy(attempt, until)
        except _Again as again:
            attempts, cause = policy.statistics["attempt_number"], again.__cause__
            text = (
                f"gave up after {attempts} attempt{'s' if attempts > 1 else ''} in {monotonic() - began:.1f} s: {again}"
            )
            if self.joined:
                text = f"{again}: roll back, and run the whole transaction again"
        raise StoreUnavailable(f"{self._name}: {text}") from cause  # out here it keeps no context: see _Server._connect

    @property
    def _name(self) -> str:
        return "PostgreSQL, on the caller's connection" if self.joined else f"PostgreSQL ({self._server.name})"

    @contextmanager
    def _unit(self, mode: str, until: float) -> Generator[_Statements]:
        """Lend statements in a transaction: one of their own, or a part of the caller's.

        Raises:
            _Again: it failed for now, and nothing of it was written, or as `_Unanswered`.
            StoreError: it failed for good.

        """
        try:
            with self._transaction(mode, until) as cursor:
                statements = _Statements(cursor, self._schema)
                statements.version = SCHEMA_VERSION if self._current else _found(statements)
                self._current = not self.joined and statements.version == SCHEMA_VERSION
                yield statements
        except psycopg.Error as error:
            raise _judged(error, self._name) from error

    @contextmanager
    def _transaction(self, mode: str, until: float) -> Generator[psycopg.Cursor[tuple[Any, ...]]]:
        if self._joined is None:
            with self._server.transaction(mode, until) as cursor:
                yield cursor
            return
        _check_usable(self._joined)
        with _begun(self._joined, mode), self._joined.transaction():
            # Whatever the caller has set for its own cursors does not count.
            yield psycopg.Cursor(self._joined, row_factory=tuple_row)


class _Again(Exception):
    """An attempt that failed for now; nothing of it was written."""


class _Unanswered(_Again):
    """One of which COMMIT was sent, and the answer never seen."""


class _Statements:
    """Executes our statements on a cursor; nothing of it stays on the server when the transaction has ended."""

    version = 0
    """Of our tables in this database; 0: there are none."""

    def __init__(self, cursor: psycopg.Cursor[tuple[Any, ...]], schema: str) -> None:
        self.schema = schema
        self._cursor = cursor
        self._quoted = '"{}"'.format(schema.replace('"', '""').replace("%", "%%"))

    def __call__(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        query = sql.replace("{schema}", self._quoted).encode()
        self._cursor.execute(query, values, prepare=False, binary=True)
        return self._cursor.fetchall() if self._cursor.description else []


class _Commit:
    """One commit, in as many attempts as it takes; its token tells a later one whether an earlier one landed."""

    def __init__(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None],
        run_id: str | None,
        keep: int | timedelta,
    ) -> None:
        self._state_key = state_key
        self._changes = changes
        self._values = {key: None if value is None else value.encode() for key, value in changes.items()}
        self._base = base
        self._run_id = run_id
        self._keep = keep
        self._token = token_bytes(16)
        self._attempts = 0
        self.unanswered: Receipt | None = None
        """Of an attempt that may have landed."""
        for key, data in self._values.items():
            if data is not None and len(data) > MAX_VALUE:
                raise ValueTooLarge(key, len(data))

    def attempt(self, unit: AbstractContextManager[_Statements]) -> Receipt:
        """Write it in a transaction, unless an earlier attempt landed."""
        receipt = None
        self._attempts += 1
        try:
            with unit as statements:
                receipt = self._write(statements)
        except _Unanswered:
            self.unanswered = receipt
            raise
        self.unanswered = None
        return receipt

    def _write(self, statements: _Statements) -> Receipt:
        if not self._changes:
            check_base(self._state_key, {}, self._base, _stored(statements, self._state_key, self._base))
            return Receipt()
        if statements.version < SCHEMA_VERSION:
            _update(statements)
        namespace, last, token = self._lock(statements)
        if self.unanswered is not None and (
            token == self._token or statements(_LANDED, namespace=namespace, token=self._token)
        ):
            return self.unanswered
        # Whoever holds the row knows that no earlier attempt is under way. One that landed and left no trace, because
        # another writer replaced all of it since, finds that writer in the base.
        self.unanswered = None
        stored = _stored(statements, self._state_key, {**self._base, **self._changes})
        check_base(self._state_key, self._changes, self._base, stored)
        now, version = utc_now(), last + 1
        past = before(self._changes, stored)
        common = {"namespace": namespace, "version": version, "now": now, "run_id": self._run_id, "token": self._token}
        for keys in self._batches():
            statements(
                _WRITE,
                digests=[_digest(key) for key in keys],
                keys=keys,
                values=[self._values[key] for key in keys],
                told=[bool(self._keep) and key in past for key in keys],
                **common,
            )
        statements(_COUNT, **common)
        if past:
            self._tell(statements, common)
        entries = {
            key: Entry(key, value, stored[key].created_at if key in stored else now, now, self._run_id, version)
            for key, value in self._changes.items()
            if value is not None
        }
        return Receipt(entries, self._attempts, self._attempts - 1)

    def _lock(self, statements: _Statements) -> tuple[int, int, bytes]:
        """Return the namespace's id, its last version and that one's token, and keep other writers out."""
        digest = _digest(self._state_key)
        rows = statements(_LOCK, digest=digest)
        if not rows:
            statements(_ADD, digest=digest, state_key=self._state_key)
            rows = statements(_LOCK, digest=digest)
        namespace, last, token = rows[0]
        return namespace, last, token

    def _batches(self) -> Iterator[list[str]]:
        keys: list[str] = []
        size = 0
        for key, data in self._values.items():
            more = len(data or b"")
            if keys and size + more > _BATCH:
                yield keys
                keys, size = [], 0
            keys.append(key)
            size += more
        yield keys

    def _tell(self, statements: _Statements, common: dict[str, Any]) -> None:
        """Add the commit to history, and take away what that is not to keep."""
        if self._keep:
            statements(_TELL, host=host(), process=os.getpid(), **common)
        if isinstance(self._keep, timedelta):
            statements(_FORGET.replace("{old}", _OLD), since=kept_since(self._keep), **common)
        else:
            statements(_FORGET.replace("{old}", _TOO_MANY), keep=self._keep, **common)


def _digest(name: str) -> bytes:
    return sha256(name.encode()).digest()


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode()


def _entries(rows: Iterable[tuple[Any, ...]]) -> dict[str, Entry]:
    return {key: Entry(key, value.decode(), *rest) for key, value, *rest in rows}


def _stored(statements: _Statements, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of these keys, as far as they exist."""
    if not statements.version:
        return {}
    return _entries(statements(_READ, namespace=_digest(state_key), digests=[_digest(key) for key in keys]))


def _found(statements: _Statements) -> int:
    """Return the version of our tables in the database; 0: there are none.

    Raises:
        StoreError: it is not one that this release knows.

    """
    if not statements(_HAS_TABLES, schema=statements.schema):
        return 0
    version: int | None = statements(_VERSION)[0][0]
    if version is None or version > SCHEMA_VERSION:
        raise StoreError(
            f"the checkpoint tables in the PostgreSQL schema {statements.schema!r} have schema version {version}, and "
            f"this release knows version {SCHEMA_VERSION}: upgrade checkpoint-store; they are kept as they are"
        )
    return version


def _update(statements: _Statements) -> None:
    """Make our tables, or bring them up to date, unless another does: they are there when its transaction ends.

    Raises:
        StoreError: the database cannot hold any text.

    """
    statements(_ALONE)
    statements.version = _found(statements)
    if not statements.version:
        encoding = statements(_ENCODING)[0][0]
        if encoding != "UTF8":
            raise StoreError(f"the database has the encoding {encoding}, which not every key fits: use one with UTF8")
        if not statements(_HAS_SCHEMA, schema=statements.schema):
            statements("CREATE SCHEMA {schema}")
    for step in _STEPS[statements.version :]:
        for statement in step:
            statements(statement)
    statements.version = SCHEMA_VERSION


def monotonic(_read: Callable[[], float] = time.monotonic) -> float:
    """Return the seconds of the real monotonic clock: before a test's frozen one no deadline would ever pass."""
    return _read()


class _Server:
    """A server, and the idle connections of each process to it; no repr, error or pickle has the password."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = {"fallback_application_name": "checkpoint", **params, "client_encoding": "utf8"}
        self._hosts = len(str(params.get("host", "")).split(","))
        self._idle: dict[int, deque[_Connection]] = {}
        self.name = " ".join(f"{key}={params[key]}" for key in _SHOWN if key in params)

    def __repr__(self) -> str:
        return f"_Server({self.name!r})"

    def __reduce__(self) -> str:
        raise TypeError("a PostgresStore is not pickled: it holds connections and a password")

    @contextmanager
    def transaction(self, mode: str, until: float) -> Generator[psycopg.Cursor[tuple[Any, ...]]]:
        """Lend a cursor in a transaction, which ends with it.

        Raises:
            _Unanswered: COMMIT was sent, and its answer never seen.
            _Again, StoreError: there is no connection to be had.

        """
        with self._lent(until) as connection:
            begun = monotonic()
            connection.until = min(until, begun + ANSWER)
            # The server stops a little earlier than this side does: it can say what it was waiting for.
            left = max(1, round((until - begun) * 950))
            connection.execute(_BEGIN.format(mode=mode, left=left, silence=SILENCE * 1000).encode())
            connection.until = until
            try:
                yield psycopg.Cursor(connection, row_factory=tuple_row)
            except Exception:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise
            try:
                connection.execute("COMMIT")
            except psycopg.Error as error:
                if connection.closed or error.diag.severity_nonlocalized != "ERROR":
                    raise _Unanswered(_said(error)) from error
                raise

    def close(self) -> None:
        """Close the idle connections of this process."""
        idle = self._idle.pop(os.getpid(), deque[_Connection]())
        while idle:
            idle.pop().close()

    @contextmanager
    def _lent(self, until: float) -> Generator[_Connection]:
        idle = self._idle.setdefault(os.getpid(), deque())
        try:
            connection = idle.pop()
        except IndexError:
            connection = self._connect(until)
        try:
            yield connection
        finally:
            if connection.info.transaction_status == TransactionStatus.IDLE:
                idle.append(connection)
            else:
                connection.close()
                self.close()  # what ended this one may have ended those

    def _connect(self, until: float) -> _Connection:
        # PostgreSQL's own time-out is in whole seconds, from 2 on, and for each host.
        timeout = max(2, round(min(ANSWER, (until - monotonic()) / self._hosts)))
        try:
            connection = _Connection.connect(
                make_conninfo(**self._params, connect_timeout=timeout), autocommit=True, prepare_threshold=None
            )
            _connections.add(connection)
            return connection
        except psycopg.Error as error:
            # Its `pgconn` and its traceback hold the password: neither it nor a context that is it goes any further.
            failure = _refused(error, f"PostgreSQL ({self.name})")
            cause = psycopg.OperationalError(_said(error))
        raise failure from cause


_SHOWN = ("service", "host", "hostaddr", "port", "dbname", "user")  # of a connection string, in names


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for no answer past a moment, whatever becomes of the server and the network."""

    until = float("inf")

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        return super().wait(self._bounded(gen), *args, **kwargs)

    def _bounded(self, gen: PQGen[T]) -> PQGen[T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # psycopg comes back ten times a second, ready or not
                wanted = gen.send(ready)
                if not ready and monotonic() > self.until:
                    raise psycopg.OperationalError("the server did not answer in time")
        except StopIteration as end:
            result: T = end.value
            return result

    def __del__(self, *_: Any) -> None:
        """Say nothing: a store need not be closed, and libpq ends the connection, if it was made in this process."""


_connections: WeakSet[_Connection] = WeakSet()


def _after_fork() -> None:
    """Let go of the parent's sockets, without a word to the server: else they would outlive the parent here."""
    for connection in list(_connections):
        with suppress(psycopg.Error, OSError):
            os.close(connection.fileno())
    _connections.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _parsed(dsn: str | None) -> tuple[_Server, str, str]:
    """Return the server that a connection string names, the schema if it names one, and what is wrong with it."""
    text, schema = dsn or "", "public"
    if text.startswith(("postgresql://", "postgres://")):
        start = text.index("://") + 3
        if "@" in text[start:].partition("/")[0]:  # libpq: up to the first one, credentials hold anything but a slash
            start = text.index("@", start) + 1
        address, _, query = text[start:].partition("?")
        if "@" in address:
            return _Server({}), schema, _ESCAPE
        parts = [part for part in query.split("&") if part]
        schema = next((unquote(part[7:]) for part in parts if part.startswith("schema=")), schema)
        query = "&".join(part for part in parts if not part.startswith("schema="))
        text = f"{text[:start]}{address}?{query}"
    try:
        params = conninfo_to_dict(text)
    except (psycopg.Error, ValueError):  # whose text may quote a part of the password
        return _Server({}), schema, _UNREADABLE
    if not all(port.isdecimal() for port in str(params.get("port", "")).split(",") if port):
        return _Server({}), schema, _ESCAPE
    return _Server({key: value for key, value in params.items() if key != "connect_timeout"}), schema, ""


_UNREADABLE = (
    "this is no connection string that libpq can read (it is not shown here): "
    "postgresql://user:password@host:5432/database, or host=… dbname=…"
)
_ESCAPE = (
    "the URL of the database cannot be read (it is not shown here): "
    "the characters @ : / ? # % of user and password must be percent-encoded"
)


def _check_schema(schema: str) -> None:
    if not 0 < len(schema.encode()) < 64 or "\0" in schema:  # NAMEDATALEN
        raise ValueError(f"a PostgreSQL schema has a name of 1 to 63 bytes, without NUL, not {schema!r}")


def _check_usable(connection: psycopg.Connection[Any]) -> None:
    """Refuse a connection of the caller's on which nothing can be done.

    Raises:
        RuntimeError: the connection is not in a state to be used.
        StoreUnavailable: its transaction has failed already.

    """
    status = connection.info.transaction_status
    if connection.closed and not connection.broken:
        raise RuntimeError("the store's connection is closed")
    if status == TransactionStatus.ACTIVE or connection.pgconn.pipeline_status != PipelineStatus.OFF:
        raise RuntimeError("the store's connection is busy: let the statement or the pipeline end first")
    if status == TransactionStatus.INERROR:
        raise StoreUnavailable("the transaction on the store's connection has failed: roll it back")
    if not connection.closed and connection.info.encoding != "utf-8":
        raise RuntimeError(f"the store's connection must have the client encoding UTF8, not {connection.info.encoding}")


@contextmanager
def _begun(connection: psycopg.Connection[Any], mode: str) -> Generator[None]:
    """Begin, to write, the transaction that psycopg would with the caller's next statement; not if nothing comes of it.

    Raises:
        RuntimeError: no transaction is open, and none is begun by itself.

    """
    if mode == _READING or connection.info.transaction_status != TransactionStatus.IDLE:
        yield
        return
    if connection.autocommit:
        raise RuntimeError(_NO_TRANSACTION)
    try:
        connection.execute("SELECT 1")
        yield
    except BaseException:
        with suppress(psycopg.Error):
            connection.rollback()
        raise


_NO_TRANSACTION = (
    "no transaction is open on the store's connection: begin one before the rows are written "
    "(with connection.transaction()), and commit the checkpoint in it"
)


def _judged(error: psycopg.Error, name: str) -> Exception:
    """Return what a failed statement means: an error of this library, or `_Again`."""
    said, state = _said(error), error.sqlstate or ""
    lost = not state and isinstance(error, psycopg.OperationalError)
    if lost or state[:2] in _PASSING or state in _PASSING:
        return _Again(said)
    if state[:2] == "28" or state == "42501":
        return Unauthorized(f"{name} refused it: {said}")
    return StoreError(f"{name} failed: {said}")


# postgresql.org/docs/current/errcodes-appendix.html: connections, rollbacks (serialization, deadlock), shutdowns and
# cancellations (time-outs); then lock and idle time-outs, and too many connections.
_PASSING = {"08", "40", "57", "55P03", "25P03", "25P04", "53300"}


def _refused(error: psycopg.Error, name: str) -> Exception:
    """Return what a failed connection means; libpq tells it in words alone."""
    said = _said(error)
    if _DENIED.search(said):
        return Unauthorized(f"{name} refused the login: {said}")
    if _HOPELESS.search(said) or not isinstance(error, psycopg.OperationalError):
        return StoreError(f"{name} cannot be used: {said}")
    return _Again(said)


_DENIED = re.compile(
    r"authentication failed|no password supplied|no pg_hba.conf entry|role .* does not exist"
    r"|is not permitted to log in|permission denied for database"
)
_HOPELESS = re.compile(r"database .* does not exist|no such database|certificate|does not support SSL|invalid .* value")


def _said(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
