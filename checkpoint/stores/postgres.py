"""A store in a PostgreSQL database, for runs on several machines."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, TypeVar

from checkpoint.entries import GROUP_PREFIX, RESERVED, Change, Entry, Receipt, head_key
from checkpoint.errors import CommitUnknown, StoreError, StoreUnavailable, ValueTooLarge
from checkpoint.stores import postgres_tables as tables
from checkpoint.stores.base import check_base, check_changes, check_name, entries_of, utc_now
from checkpoint.stores.history import (
    KEEP,
    KEEP_DAYS,
    change_of,
    check_keep,
    check_question,
    forgotten,
    replaced_values,
    writer_of,
)
from checkpoint.stores.postgres_connections import (
    READING,
    WRITING,
    CommitUnanswered,
    JoinedTransaction,
    Server,
    Waiting,
    in_transaction,
    parsed,
    psycopg,
    translated,
)
from checkpoint.stores.postgres_tables import ENTRIES, HISTORY, Statements
from checkpoint.stores.retrying import DEADLINE, Again, Deadline, Operation, Policy
from checkpoint.stores.rows import CHANGE, MAX_VERSION, check_row, entries_by_key, refuse_rows
from checkpoint.stores.urls import check_seconds, options, positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from checkpoint.entries import Writer

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("checkpoint")

MAX_VALUE = 128_000_000
"""Bytes of a value. Sending takes libpq a time that grows with the square of it, on a Unix socket 10 s for 100 MB."""

_BATCH = 64_000_000  # bytes of values in one statement

_OPTIONS: dict[str, Callable[[str], Any]] = {"schema": str, "deadline": positive, "keep": int, "keep_days": int}


class PostgresStore:
    """Namespaces in a PostgreSQL database: atomic commits with compare-and-swap, and their history.

    Args:
        dsn: a connection string of libpq, `postgresql://user@host/database` or `host=… dbname=…`; what it leaves out,
            and all of it where it is None, comes from libpq's environment (`PGHOST`, `PGPASSWORD`, …). A URL may name
            options of the store too: `?schema=name&deadline=180&keep=50&keep_days=365`. Of several hosts the one that
            takes writes is used.
        connection: a connection of the caller's own, instead. A commit joins the transaction that is open there: it
            is seen by others when the caller commits, and undone when the caller rolls back. Where psycopg begins
            transactions by itself (autocommit off, its default), a commit begins one if none is open, for the
            caller's `connection.commit()` to end; in autocommit mode it must be inside `connection.transaction()`.
            Nothing is tried again, and the caller's time-outs hold.
        password: called at each connect for the password, where it changes (IAM tokens, Vault).
        schema: the PostgreSQL schema of the tables, `checkpoint_…`; None: the URL's, else `public`, whatever the
            search path. The first commit makes the tables that are missing, for which the role needs CREATE; where
            they exist it never does (see `init` and `ddl`).
        keep: how many changes of each key the history keeps whatever their age; 0: none is kept. None: 100.
        keep_days: for how many days it keeps the last change of each day beyond them. None: 90.
        deadline: seconds for one load or commit, restarts of the server and waits for other writers included.
            None: 60.

    Any number of threads may use a store; each call takes a connection of its own. Connections are fit for PgBouncer's
    transaction mode.

    Raises:
        ValueError, TypeError: the connection string (its text is not shown) or an option is not one; both a
            connection string and a connection were given, or what is no connection.

    """

    atomic = True

    def __init__(
        self,
        dsn: str | None = None,
        *,
        connection: psycopg.Connection[Any] | None = None,
        password: Callable[[], str] | None = None,
        schema: str | None = None,
        keep: int | None = None,
        keep_days: int | None = None,
        deadline: float | None = None,
    ) -> None:
        both = dsn is not None and connection is not None
        self._joined, self._schema = connection, schema or "public"
        found = parsed(dsn)
        self._server = Server(found.params, password)
        query, complaint = found.query, found.complaint
        del dsn, found  # so that no rendered traceback shows its password
        if both:
            raise TypeError("pass either a connection string or a connection, not both")
        if not isinstance(connection, psycopg.Connection | None):
            raise TypeError(f"connection must be a psycopg.Connection, not {type(connection).__name__}")
        if password is not None and not callable(password):  # pyright: ignore[reportUnnecessaryComparison] - as above
            raise TypeError(
                "password must be a function that returns the password; a fixed password belongs into the URL"
            )
        if complaint:
            raise ValueError(complaint)
        given = {"schema": schema, "keep": keep, "keep_days": keep_days, "deadline": deadline}
        defaults = {"schema": "public", "keep": KEEP, "keep_days": KEEP_DAYS, "deadline": DEADLINE}
        named, _ = options(query, _OPTIONS)
        chosen: dict[str, Any] = {
            **defaults,
            **named,
            **{name: value for name, value in given.items() if value is not None},
        }
        _check_schema(chosen["schema"])
        check_keep(chosen["keep"], chosen["keep_days"])
        self._schema = chosen["schema"]
        self._keep: tuple[int, int] = chosen["keep"], chosen["keep_days"]
        self._deadline = check_seconds("deadline", chosen["deadline"])
        self._tables: frozenset[str] = frozenset()  # ours that were found; looked for again until all are there
        self._had_tables = False  # whether there were some: then that there are none is no fresh start
        self._warned = False  # that no history is kept

    @property
    def deadline(self) -> float:
        """Seconds for one load or commit; see `HasDeadline`."""
        return self._deadline

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
        return self._joined is not None and in_transaction(self._joined)

    def load(self, state_key: str) -> dict[str, Entry]:
        """Return every entry of a namespace; see `Store.load`.

        Raises:
            StoreError: row-level security may hide the namespace.

        """
        check_name("state_key", state_key)
        digest = _sha256(state_key)

        unseen = False

        def ask(statements: Statements) -> list[Any]:
            nonlocal unseen
            rows = statements(tables.LOAD, namespace=digest)
            if not rows:  # there is nothing, or it is hidden
                if statements(tables.VERSION, namespace=digest):
                    tables.check_visible(statements, ENTRIES)
                else:
                    unseen = tables.is_guarded(statements, "checkpoint_namespaces")
            return rows

        def check(waiting: Waiting) -> None:
            with self._unit(READING if self.joined else WRITING, waiting) as statements:
                tables.check_absent(statements, state_key, digest)

        rows = self._ask(ask)
        if unseen:
            self._retry(check)
        return _entries(rows, state_key, self._schema)

    def read(self, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of these keys, as far as they exist; see `ReadsKeys.read`."""
        check_name("state_key", state_key)
        wanted = {*keys}
        for key in wanted:
            check_name("key", key)
        digests = [_sha256(key) for key in wanted]
        rows = self._ask(lambda ask: ask(tables.READ, namespace=_sha256(state_key), digests=digests))
        return _entries(rows, state_key, self._schema)

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
            ValueTooLarge: a value is longer than 128 MB.
            RuntimeError: no transaction is open on the caller's connection.

        """
        check_changes(state_key, changes, run_id)
        author = writer_of(reasons, writer)
        commit = _DatabaseCommit(
            state_key, changes, base, run_id, dict(reasons), author, self._keep, self._warn_of_history
        )
        try:
            return self._retry(lambda waiting: commit.attempt(self._unit(WRITING, waiting)))
        except StoreError as error:
            if commit.unanswered is None:
                raise
            unknown = CommitUnknown(state_key, changes)
            unknown.unsettled = frozenset(changes)
            raise unknown from error

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold a key; see `ListsNamespaces.namespaces`."""
        return sorted(state_key for (state_key,) in self._ask(lambda ask: ask(tables.NAMESPACES)))

    def history(self, state_key: str, key: str | None = None, *, limit: int | None = None) -> list[Change]:
        """Return what was changed; see `KeepsHistory.history`."""
        check_question(state_key, key, limit)
        values = {
            "namespace": _sha256(state_key),
            "digest": None if key is None else _sha256(key),
            "members": None if key is None else f"{head_key(key)}/",
            "reserved": RESERVED,
            "groups": GROUP_PREFIX,
            "limit": None if limit is None else min(limit, 1 << 62),
        }

        def ask(statements: Statements) -> list[Any]:
            question = tables.past(statements)
            return statements(question, **values) if question else []

        rows = [(name, _utf8(old), _utf8(new), *rest) for name, old, new, *rest in self._ask(ask)]
        for row in rows:
            check_row(tables.place(self._schema, HISTORY), state_key, row, CHANGE)
        return [*map(change_of, rows)]

    def init(self) -> None:
        """Create the tables, or migrate those of an earlier release; calling it twice is allowed.

        Raises:
            Unauthorized: the role may not.

        """

        def attempt(waiting: Waiting) -> None:
            with self._unit(WRITING, waiting, making=True) as statements:
                tables.install(statements)

        self._retry(attempt)

    def ddl(self, role: str = "checkpoint") -> str:
        """Return the SQL that creates the tables and grants their use to a role, for a database administrator."""
        return tables.script(self._schema, role)

    def close(self) -> None:
        """Close the idle connections of this process, and the next use opens another; leave the caller's alone."""
        self._server.close()

    def _ask(self, question: Callable[[Statements], list[Any]]) -> list[Any]:
        """Return the rows that answer a question; none where our tables do not exist."""

        def attempt(waiting: Waiting) -> list[Any]:
            with self._unit(READING, waiting) as statements:
                return question(statements) if statements.tables else []

        return self._retry(attempt)

    def _retry(self, attempt: Callable[[Waiting], T]) -> T:
        """Call until it succeeds or the deadline ends; once where the transaction is the caller's.

        Raises:
            StoreUnavailable: it did not succeed, and nothing was written by an attempt that was answered.

        """
        operation, deadline = Operation(self._name), Deadline(self._deadline)
        policy = Policy(first=0.05, longest=2.0, attempts=1 if self.joined else None)
        try:
            return operation.retry(lambda: attempt(Waiting(operation, deadline)), deadline, policy)
        except Again as last:
            error, cause = operation.gave_up(deadline, last), last.__cause__
            if self.joined:
                error = StoreUnavailable(f"{self._name}: {last}: roll back, and run the whole transaction again")
        raise error from cause  # out here it keeps no context, which would hold the password

    @property
    def _name(self) -> str:
        return "PostgreSQL, on the caller's connection" if self.joined else f"PostgreSQL ({self._server.name})"

    def _unit(self, mode: str, waiting: Waiting, *, making: bool = False) -> _Unit:
        joined = self._joined
        lent = self._server.transaction(mode, waiting) if joined is None else JoinedTransaction(joined, mode)
        return _Unit(self, lent, making=making)

    def _found(self, statements: Statements, *, making: bool, had_tables: bool) -> frozenset[str]:
        """Return which of our tables exist.

        Args:
            statements: of a transaction.
            making: whether those that are missing are made.
            had_tables: whether the store had used some when the transaction began.

        Raises:
            StoreError: some were dropped, or all of them that this store has used.

        """
        known = self._tables or tables.found(statements, making=making)
        if had_tables and not (known or making):
            raise StoreError(
                f"all checkpoint tables in the PostgreSQL schema {self._schema!r} are gone since this store used them: "
                "restore them from a backup, or run `checkpoint init`, which creates empty ones"
            )
        return known

    def _warn_of_history(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s: history and reasons are not kept, because the table %s is missing, and this role may not create "
                "it: run `checkpoint init` once as a role that may",
                self._name, HISTORY, extra={"checkpoint_event": "no_history"},
            )  # fmt: skip


class _Unit(AbstractContextManager["Statements"]):
    """Statements in a transaction: one of their own, or a part of the caller's.

    Raises:
        Again: it failed for now, and nothing of it was written, or as `CommitUnanswered`.
        StoreError: it failed for good.

    """

    def __init__(
        self,
        store: PostgresStore,
        lent: AbstractContextManager[psycopg.Cursor[tuple[Any, ...]]],
        *,
        making: bool = False,
    ) -> None:
        self._store = store
        self._lent = lent
        self._making = making  # tables that are missing
        self._had_tables = store._had_tables  # noqa: SLF001 - the store's own; another thread may make them meanwhile
        self._statements: Statements | None = None

    def __enter__(self) -> Statements:
        store = self._store
        try:
            cursor = self._lent.__enter__()
        except psycopg.Error as error:
            raise self._judged(error) from error
        try:
            self._statements = statements = Statements(cursor, store._schema)  # noqa: SLF001 - likewise
            tables = store._found(statements, making=self._making, had_tables=self._had_tables)  # noqa: SLF001 - likewise
            statements.tables = tables
            return statements
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._lent.__exit__(kind, error, traceback)
        except psycopg.Error as failed:
            raise self._judged(failed) from failed
        if isinstance(error, psycopg.Error):
            raise self._judged(error) from error
        if error is None and self._statements is not None and not self._store.joined:
            complete = HISTORY in self._statements.tables
            self._store._had_tables |= bool(self._statements.tables)  # noqa: SLF001 - likewise
            self._store._tables = self._statements.tables if complete else frozenset()  # noqa: SLF001 - likewise

    def _judged(self, error: psycopg.Error) -> Exception:
        if isinstance(error, psycopg.errors.UndefinedTable):  # migrated or dropped: the next attempt looks
            self._store._tables = frozenset()  # noqa: SLF001 - likewise
            return Again(" ".join(str(error).split()))
        return translated(error, self._store._name)  # noqa: SLF001 - likewise


class _DatabaseCommit:
    """One commit and its attempts; by its token a later attempt finds out whether an earlier one landed."""

    def __init__(
        self,
        state_key: str,
        changes: Mapping[str, str | None],
        base: Mapping[str, Entry | None],
        run_id: str | None,
        reasons: dict[str, str],
        writer: Writer,
        keep: tuple[int, int],
        warn: Callable[[], None],
    ) -> None:
        self._state_key = state_key
        self._changes = changes
        self._values = {key: None if value is None else value.encode() for key, value in changes.items()}
        self._base = base
        self._run_id = run_id
        self._reasons = reasons
        self._writer = writer
        self._keep = keep
        self._warn = warn
        self._token = token_bytes(16)
        self._attempts = 0
        self.unanswered: Receipt | None = None
        """Receipt of an attempt whose answer was lost, so that it may have landed; None: there is none."""
        for key, data in self._values.items():
            if data is not None and len(data) > MAX_VALUE:
                raise ValueTooLarge(key, len(data))

    def attempt(self, unit: _Unit) -> Receipt:
        """Write it in a transaction, unless an earlier attempt landed."""
        receipt = None
        self._attempts += 1
        try:
            with unit as statements:
                receipt = self._write(statements)
        except CommitUnanswered:
            self.unanswered = receipt
            raise
        self.unanswered = None
        return receipt

    def _write(self, statements: Statements) -> Receipt:
        if not self._changes:
            check_base(self._state_key, {}, self._base, _stored(statements, self._state_key, self._base))
            return Receipt()
        if not statements.tables:
            tables.make_missing(statements)
        namespace, last, token = self._lock(statements)
        stored = _stored(statements, self._state_key, {**self._base, **self._changes})
        if self.unanswered is not None and self._landed(statements, namespace, token, stored):
            return self.unanswered
        # The lock on the row means that no earlier attempt is still running. If one landed and another writer has
        # replaced all of it since, the comparison with the base finds that writer.
        self.unanswered = None
        check_base(self._state_key, self._changes, self._base, stored)
        now, version = utc_now(), last + 1
        common = {"namespace": namespace, "version": version, "now": now, "run_id": self._run_id, "token": self._token}
        self._record(statements, stored, common)
        for keys in self._batches(self._values):
            statements(tables.WRITE, **self._columns(keys), **common)
        statements(tables.COUNT, **common)
        entries = entries_of(self._changes, stored, now, self._run_id, version)
        return Receipt(entries, self._attempts, self._attempts - 1)

    def _lock(self, statements: Statements) -> tuple[int, int, bytes]:
        """Return the namespace's id, its last version and that one's token, and keep other writers out."""
        digest = _sha256(self._state_key)
        rows = statements(tables.LOCK, digest=digest)
        if not rows:
            statements(tables.ADD, digest=digest, state_key=self._state_key)
            rows = statements(tables.LOCK, digest=digest)
        if not rows:  # there is one, which keeps ours out and does not show itself
            tables.check_visible(statements, "checkpoint_namespaces")
        namespace, last, token = rows[0]
        if not 0 <= last <= MAX_VERSION:
            where = tables.place(statements.schema, "checkpoint_namespaces")
            raise StoreError(
                f"{where} is damaged: the version of {self._state_key!r} cannot be counted up; "
                "repair it, or restore a backup"
            )
        return namespace, last, token

    def _landed(self, statements: Statements, namespace: int, token: bytes, stored: Mapping[str, Entry]) -> bool:
        """Tell whether the attempt whose answer was lost was applied."""
        written: Mapping[str, Entry] = self.unanswered.entries if self.unanswered is not None else {}
        if token == self._token or all(stored.get(key) == written.get(key) for key in self._changes):
            return True
        digests = [_sha256(key) for key in self._values]
        asked = {"namespace": namespace, "digests": digests, "token": self._token}
        return HISTORY in statements.tables and bool(statements(tables.LANDED, **asked))

    def _record(self, statements: Statements, stored: Mapping[str, Entry], common: dict[str, Any]) -> None:
        """Add the commit to the history of its keys, and drop changes that are no longer kept."""
        keep, _ = self._keep
        recorded = replaced_values(self._changes, stored)
        if not recorded or not (HISTORY in statements.tables or (keep and self._make_history(statements))):
            return
        by = self._writer._asdict()
        for keys in self._batches(recorded) if keep else ():
            columns = {**self._columns(keys), "reasons": [self._reasons.get(key) for key in keys]}
            statements(tables.RECORD, **columns, **by, **common)
        self._forget(statements, common["namespace"], [_sha256(key) for key in recorded])

    def _forget(self, statements: Statements, namespace: int, digests: list[bytes]) -> None:
        """Drop the changes of these keys that are no longer kept."""
        keep, keep_days = self._keep
        every = statements(tables.TIMES, namespace=namespace, digests=digests, keep=keep)
        gone = [
            (digest, version)
            for digest, times in groupby(every, itemgetter(0))
            for version in forgotten([(version, at) for _, version, at in times], keep, keep_days)
        ]
        if gone:
            digests, versions = map(list, zip(*gone, strict=True))
            statements(tables.FORGET, namespace=namespace, digests=digests, versions=versions)

    def _make_history(self, statements: Statements) -> bool:
        """Create the history table beside tables of release 0.1, if the role may."""
        try:
            with statements.savepoint():
                tables.make_missing(statements)
            return True
        except psycopg.errors.InsufficientPrivilege:
            self._warn()
            return False

    def _columns(self, keys: list[str]) -> dict[str, list[Any]]:
        return {
            "digests": [_sha256(key) for key in keys],
            "keys": keys,
            "values": [self._values[key] for key in keys],
        }

    def _batches(self, wanted: Iterable[str]) -> Iterator[list[str]]:
        """Yield the keys in parts whose values fit a statement."""
        keys: list[str] = []
        size = 0
        for key in wanted:
            more = len(self._values[key] or b"")
            if keys and size + more > _BATCH:
                yield keys
                keys, size = [], 0
            keys.append(key)
            size += more
        yield keys


def _sha256(name: str) -> bytes:
    return sha256(name.encode()).digest()


def _utf8(data: bytes | None) -> str | bytes | None:
    """Return a value; its bytes where they are not UTF-8, for the error."""
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return data


def _entries(rows: list[tuple[Any, ...]], state_key: str, schema: str) -> dict[str, Entry]:
    """Return the entries of rows of `LOAD` by their key.

    Raises:
        CorruptState: one is damaged.

    """
    entries = entries_by_key((key, _utf8(value), *rest) for key, value, *rest in rows)
    if entries is None:
        refuse_rows(
            tables.place(schema, ENTRIES), state_key, [(key, _utf8(value), *rest) for key, value, *rest in rows]
        )
    return entries


def _stored(statements: Statements, state_key: str, keys: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of these keys, as far as they exist."""
    if not statements.tables:
        return {}
    rows = statements(tables.READ, namespace=_sha256(state_key), digests=[_sha256(key) for key in keys])
    return _entries(rows, state_key, statements.schema)


def _check_schema(schema: str) -> None:
    if not 0 < len(schema.encode()) < 64 or "\0" in schema:
        raise ValueError(f"the name of a PostgreSQL schema must have 1 to 63 bytes, without NUL, not {schema!r}")
