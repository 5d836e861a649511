"""`SQLiteStore(connection=)`: commits inside the caller's own transaction, on connections of every kind."""

from __future__ import annotations

import sqlite3
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from checkpoint.entries import Entry
from checkpoint.errors import Conflict, StoreError, StoreUnavailable, ValueTooLarge
from checkpoint.stores.base import JoinsTransactions
from checkpoint.stores.sqlite import SQLiteStore
from checkpoint.testing import StoreContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from checkpoint import Receipt
    from checkpoint.entries import Writer

OLD = Path(__file__).parent / "data" / "sqlite-schema-1.db"

NO_TRANSACTION = (
    "no transaction is open on the store's connection: begin one before the rows are written "
    "(connection.execute('BEGIN')), commit the checkpoint in it, then commit the transaction"
)


# Modes: arguments of sqlite3.connect, and what opens a transaction there, if it is not open always.
MODES: dict[str, tuple[dict[str, Any], str | None]] = {
    "explicit": ({"isolation_level": None}, "BEGIN"),
    "explicit immediate": ({"isolation_level": None}, "BEGIN IMMEDIATE"),
    "implicit": ({}, "INSERT INTO sink VALUES ('of the transaction')"),
    "implicit exclusive": ({"isolation_level": "EXCLUSIVE"}, "INSERT INTO sink VALUES ('of the transaction')"),
    "explicit in implicit": ({}, "BEGIN"),
}
if sys.version_info >= (3, 12):
    MODES["autocommit"] = ({"autocommit": True}, "BEGIN")
    MODES["no autocommit"] = ({"autocommit": False}, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "sink.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE sink (line)")
    return path


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def connection(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, **MODES[mode][0])
    yield connection
    connection.close()


@pytest.fixture
def begin(connection: sqlite3.Connection, mode: str) -> Callable[[], None]:
    statement = MODES[mode][1]

    def run() -> None:
        if statement is not None:
            connection.execute(statement)
        assert connection.in_transaction

    return run


@pytest.fixture
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def values(store: SQLiteStore) -> dict[str, str]:
    return {key: entry.value for key, entry in store.load("job").items()}


def tables(connection: sqlite3.Connection) -> set[str]:
    return {
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE 'checkpoint%' AND type = 'table'"
        )
    }


def end(connection: sqlite3.Connection, statement: str) -> None:
    """Commit or roll back as a caller in this mode would."""
    if getattr(connection, "autocommit", None) is True:
        connection.execute(statement)
    elif statement == "COMMIT":
        connection.commit()
    else:
        connection.rollback()


class Committing(SQLiteStore):
    """Each commit in a transaction of its own, as the contract takes it."""

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
        if self._joined is None:  # opened again, from its file
            return super().commit(state_key, changes, base, run_id=run_id, reasons=reasons, writer=writer)
        self._joined.execute("BEGIN IMMEDIATE")
        try:
            receipt = super().commit(state_key, changes, base, run_id=run_id, reasons=reasons, writer=writer)
        except BaseException:
            assert self._joined.in_transaction
            self._joined.execute("COMMIT")  # whatever a failed commit left there would be seen
            raise
        self._joined.execute("COMMIT")
        return receipt


class TestSQLiteStoreInTheCallersTransactions(StoreContract):
    @pytest.fixture
    def store(self, path: Path, plain: sqlite3.Connection) -> Committing:
        self.path = path
        return Committing(connection=plain)

    def reopen(self, store: Any) -> SQLiteStore:
        return SQLiteStore(self.path)

    @pytest.mark.skip(reason="a connection belongs to one thread")
    def test_no_update_of_several_threads_is_lost(self) -> None: ...

    @pytest.mark.skip(reason="a connection belongs to one thread")
    def test_a_commit_is_seen_as_a_whole(self) -> None: ...


# What it is given


def test_a_path_and_a_connection_are_refused(tmp_path: Path, plain: sqlite3.Connection) -> None:
    with pytest.raises(TypeError) as caught:
        SQLiteStore(tmp_path / "state.db", connection=plain)
    assert str(caught.value) == "pass either a path or a connection, not both"
    with pytest.raises(TypeError) as caught:
        SQLiteStore(connection=plain.cursor())
    assert str(caught.value) == "connection must be a sqlite3.Connection, not Cursor"


def test_it_says_that_it_joins(plain: sqlite3.Connection, tmp_path: Path) -> None:
    joined, own = SQLiteStore(connection=plain), SQLiteStore(tmp_path / "state.db")
    assert repr(joined) == f"SQLiteStore(connection={plain!r})"
    assert isinstance(joined, JoinsTransactions)
    assert isinstance(own, JoinsTransactions)
    assert (joined.joined, joined.in_transaction) == (True, False)
    assert (own.joined, own.in_transaction) == (False, False)
    plain.execute("BEGIN")
    assert joined.in_transaction


def test_some_keys_are_read(path: Path, plain: sqlite3.Connection) -> None:
    with closing(SQLiteStore(path)) as own:
        entries = own.commit("job", {f"key {number}": str(number) for number in range(1_200)}).entries
        own.commit("other", {"key 1": "elsewhere"})
        some = {key: entry for key, entry in entries.items() if entry.value.endswith("7")}
        joined = SQLiteStore(connection=plain)
        for store in (own, joined):
            assert store.read("job", [*some, "missing", *some]) == some
            assert store.read("job", iter(entries)) == entries
            assert store.read("job", []) == store.read("unknown", ["key 1"]) == {}
            with pytest.raises(TypeError, match="key must be a str"):
                store.read("job", [1])
            with pytest.raises(ValueError, match="state_key"):
                store.read("", ["a"])
        plain.execute("BEGIN")
        joined.commit("job", {"key 1": "mine"})
        assert joined.read("job", ["key 1"])["key 1"].value == "mine"
        assert own.read("job", ["key 1"])["key 1"].value == "1"
        plain.execute("ROLLBACK")
        assert joined.read("job", ["key 1"]) == own.read("job", ["key 1"])


# In the transaction


def test_rows_and_cursor_are_seen_together_or_not_at_all(
    path: Path, connection: sqlite3.Connection, begin: Callable[[], None]
) -> None:
    store = SQLiteStore(connection=connection)
    with closing(SQLiteStore(path)) as other, closing(sqlite3.connect(path, isolation_level=None)) as seen:
        for ending, number in (("ROLLBACK", 0), ("COMMIT", 1), ("ROLLBACK", 1), ("COMMIT", 2)):
            begin()
            connection.execute("INSERT INTO sink VALUES ('row')")
            store.commit("job", {"a": str(number + (ending == "ROLLBACK"))})
            assert connection.in_transaction
            end(connection, ending)
            assert seen.execute("SELECT count(*) FROM sink WHERE line = 'row'").fetchall() == [(number,)]
            assert {key: entry.value for key, entry in other.load("job").items()} == (
                {"a": str(number)} if number else {}
            )
            if connection.in_transaction:
                end(connection, "ROLLBACK")


def test_without_a_transaction_nothing_is_written(path: Path) -> None:
    for options in ({}, {"isolation_level": None}, *([{"autocommit": True}] if sys.version_info >= (3, 12) else [])):
        with closing(sqlite3.connect(path, **options)) as connection:
            for changes in ({"a": "1"}, {}):
                with pytest.raises(RuntimeError) as caught:
                    SQLiteStore(connection=connection).commit("job", changes)
                assert str(caught.value) == NO_TRANSACTION
            assert not connection.in_transaction
            assert tables(connection) == set()


def test_reading_leaves_the_connection_as_it_was(
    connection: sqlite3.Connection, begin: Callable[[], None], mode: str
) -> None:
    store = SQLiteStore(connection=connection)

    def read() -> tuple[Any, ...]:
        return (store.load("job"), store.read("job", ["a"]), store.namespaces(), store.history("job"))

    always = MODES[mode][1] is None
    assert read() == ({}, {}, [], [])
    assert connection.in_transaction == always
    assert tables(connection) == set()
    begin()
    assert read() == ({}, {}, [], [])
    assert connection.in_transaction
    connection.execute("INSERT INTO sink VALUES ('kept')")
    store.commit("job", {"a": "1"})
    assert [len(found) for found in read()] == [1, 1, 1, 1]
    assert connection.in_transaction
    end(connection, "COMMIT")
    assert [len(found) for found in read()] == [1, 1, 1, 1]
    assert connection.in_transaction == always


def test_tables_come_and_go_with_the_transaction(connection: sqlite3.Connection, begin: Callable[[], None]) -> None:
    store = SQLiteStore(connection=connection)
    begin()
    store.commit("job", {})
    with pytest.raises(Conflict):
        store.commit("job", {"a": "1"}, {"a": Entry("a", "0")})
    assert tables(connection) == set()
    store.commit("job", {"a": "1"})
    assert tables(connection) == NEW_TABLES
    end(connection, "ROLLBACK")
    assert tables(connection) == set()
    assert store.load("job") == {}
    if connection.in_transaction:
        end(connection, "ROLLBACK")
    begin()
    assert store.commit("job", {"a": "1"}).entries["a"].version == 1
    end(connection, "COMMIT")
    assert values(store) == {"a": "1"}


def test_a_commit_rolled_back_to_a_savepoint_is_undone(
    connection: sqlite3.Connection, begin: Callable[[], None]
) -> None:
    store = SQLiteStore(connection=connection)
    begin()
    store.commit("job", {"a": "1"})
    connection.execute("SAVEPOINT ours")
    connection.execute("SAVEPOINT checkpoint_store")  # the caller's, though it is called as the store's own
    store.commit("job", {"a": "2"})
    with pytest.raises(Conflict):
        store.commit("job", {"a": "3"}, {"a": None})
    connection.execute("INSERT INTO sink VALUES ('undone')")
    assert values(store) == {"a": "2"}
    connection.execute("ROLLBACK TO checkpoint_store")
    connection.execute("RELEASE checkpoint_store")
    assert values(store) == {"a": "1"}
    assert [change.after for change in store.history("job")] == ["1"]
    store.commit("job", {"a": "4"})
    connection.execute("RELEASE ours")
    end(connection, "COMMIT")
    assert values(store) == {"a": "4"}
    assert connection.execute("SELECT * FROM sink WHERE line = 'undone'").fetchall() == []


def test_a_transaction_that_a_savepoint_began_is_one(plain: sqlite3.Connection) -> None:
    store = SQLiteStore(connection=plain)
    plain.execute("SAVEPOINT outer")
    store.commit("job", {"a": "1"})
    assert plain.in_transaction
    plain.execute("RELEASE outer")
    assert not plain.in_transaction
    assert values(store) == {"a": "1"}


def test_a_conflict_leaves_the_transaction_open_and_whole(
    path: Path, connection: sqlite3.Connection, begin: Callable[[], None]
) -> None:
    with closing(SQLiteStore(path)) as other:
        theirs = other.commit("job", {"a": "theirs"}).entries["a"]
    store = SQLiteStore(connection=connection)
    begin()
    connection.execute("INSERT INTO sink VALUES ('row')")
    with pytest.raises(Conflict) as caught:
        store.commit("job", {"new": "1", "a": "ours"}, {"new": None, "a": None})
    assert caught.value.args == ("job", "a", None, theirs)
    store.commit("job", {"b": "1"})
    end(connection, "COMMIT")
    assert values(store) == {"a": "theirs", "b": "1"}
    assert connection.execute("SELECT count(*) FROM sink WHERE line = 'row'").fetchone()[0] == 1


def test_an_error_in_the_middle_leaves_no_half_of_a_commit(
    connection: sqlite3.Connection, begin: Callable[[], None], mode: str
) -> None:
    store = SQLiteStore(connection=connection)
    begin()
    store.commit("job", {"a": "1"})
    end(connection, "COMMIT")
    connection.execute(
        "CREATE TRIGGER refusing BEFORE INSERT ON checkpoint_changes BEGIN SELECT RAISE(ABORT, 'no more'); END"
    )
    if MODES[mode][1] is None:
        end(connection, "COMMIT")
    begin()
    connection.execute("INSERT INTO sink VALUES ('row')")
    with pytest.raises(StoreError) as caught:
        store.commit("job", {"a": "2", "b": "2"})
    assert str(caught.value) == "the connection's database: no more"
    assert connection.in_transaction
    assert values(store) == {"a": "1"}
    end(connection, "COMMIT")
    assert values(store) == {"a": "1"}
    assert connection.execute("SELECT count(*) FROM sink WHERE line = 'row'").fetchone()[0] == 1


def test_a_full_disk_leaves_no_half_of_a_commit(plain: sqlite3.Connection) -> None:
    store = SQLiteStore(connection=plain)
    plain.execute("BEGIN")
    store.commit("job", {"a": "1"})
    plain.execute("COMMIT")
    (pages,) = plain.execute("PRAGMA page_count").fetchone()
    plain.execute(f"PRAGMA max_page_count = {pages}")
    plain.execute("BEGIN")
    plain.execute("INSERT INTO sink VALUES ('row')")
    with pytest.raises(StoreError) as caught:
        store.commit("job", {"a": "2", "b": "x" * 100_000})
    assert str(caught.value) == (
        "the disk of the connection's database is full, and nothing was written: make room, then try again"
    )
    assert values(store) == {"a": "1"}
    if plain.in_transaction:
        plain.execute("COMMIT")
    assert values(store) == {"a": "1"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Connection.setlimit came with Python 3.11")
def test_a_value_past_the_limit_leaves_the_transaction_open(plain: sqlite3.Connection) -> None:
    store = SQLiteStore(connection=plain)
    plain.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
    plain.execute("BEGIN")
    with pytest.raises(ValueTooLarge) as caught:
        store.commit("job", {"a": "1", "b": "x" * 200_000})
    assert caught.value.args == ("b", 200_000)
    store.commit("job", {"a": "2"})
    plain.execute("COMMIT")
    assert values(store) == {"a": "2"}


def test_a_commit_between_the_rows_of_a_query(connection: sqlite3.Connection, begin: Callable[[], None]) -> None:
    begin()
    connection.executemany("INSERT INTO sink VALUES (?)", [(f"row {number}",) for number in range(1_000)])
    store = SQLiteStore(connection=connection)
    rows = connection.execute("SELECT line FROM sink WHERE line LIKE 'row%' ORDER BY rowid")
    seen = []
    for number, (line,) in enumerate(rows):
        seen.append(line)
        if number % 300 == 0:
            store.commit("job", {"a": line})
            with pytest.raises(Conflict):
                store.commit("job", {"a": "1"}, {"a": None})
            assert values(store) == {"a": line}
    assert seen == [f"row {number}" for number in range(1_000)]


def test_a_file_that_others_write_is_unavailable(path: Path) -> None:
    with (
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        store = SQLiteStore(connection=connection)
        connection.execute("BEGIN")
        store.load("job")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable) as caught:
            store.commit("job", {"a": "1"})
        assert str(caught.value) == "other connections kept the connection's database locked: nothing was written"
        assert connection.in_transaction
        other.execute("ROLLBACK")
        store.commit("job", {"a": "2"})
        connection.execute("COMMIT")
        assert values(store) == {"a": "2"}


# The connection


def test_the_callers_factories_do_not_matter_and_stay(
    connection: sqlite3.Connection, begin: Callable[[], None]
) -> None:
    connection.row_factory = factory = lambda cursor, row: {"row": row}
    connection.text_factory = bytes
    level = connection.isolation_level
    store = SQLiteStore(connection=connection)
    begin()
    entry = store.commit("job", {"é": "日本"}, run_id="run-1").entries["é"]
    with pytest.raises(Conflict) as caught:
        store.commit("job", {"é": "2"}, {"é": None})
    assert caught.value.found == entry
    assert store.load("job") == store.read("job", ["é"]) == {"é": entry}
    assert store.namespaces() == ["job"]
    assert [change[:3] for change in store.history("job")] == [("é", None, "日本")]
    assert connection.row_factory is factory
    assert connection.text_factory is bytes
    assert connection.isolation_level == level
    assert connection.execute("SELECT 'x'").fetchone() == {"row": (b"x",)}


def test_the_callers_connection_class_does_not_matter(path: Path) -> None:
    class Theirs(sqlite3.Connection):
        def cursor(self, *arguments: Any) -> Any:
            raise AssertionError("theirs")

        execute = executemany = executescript = commit = rollback = cursor

    with closing(sqlite3.connect(path, isolation_level=None, factory=Theirs)) as connection:
        store = SQLiteStore(connection=connection)
        sqlite3.Cursor(connection).execute("BEGIN")
        store.commit("job", {"a": "1"})
        sqlite3.Cursor(connection).execute("COMMIT")
        assert values(store) == {"a": "1"}


def test_its_pragmas_are_the_callers_own(plain: sqlite3.Connection) -> None:
    def pragmas() -> list[Any]:
        names = ("journal_mode", "synchronous", "fullfsync", "busy_timeout", "cache_size", "mmap_size", "foreign_keys")
        return [plain.execute(f"PRAGMA {name}").fetchone() for name in names]

    plain.execute("PRAGMA synchronous = OFF")
    plain.execute("PRAGMA journal_mode = PERSIST")
    before = pragmas()
    store = SQLiteStore(connection=plain)
    plain.execute("BEGIN")
    store.commit("job", {"a": "1"})
    plain.execute("COMMIT")
    store.load("job")
    store.close()
    assert pragmas() == before


def test_closing_the_store_does_nothing_to_it(plain: sqlite3.Connection) -> None:
    store = SQLiteStore(connection=plain)
    plain.execute("BEGIN")
    store.commit("job", {"a": "1"})
    store.close()
    store.close()
    assert plain.in_transaction
    plain.execute("COMMIT")
    assert values(store) == {"a": "1"}


def test_a_temporary_or_attached_table_is_not_ours(path: Path, plain: sqlite3.Connection, tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "other.db")) as other:
        other.commit("job", {"a": "of the other file"})
    plain.execute("ATTACH ? AS other", (str(tmp_path / "other.db"),))
    store = SQLiteStore(connection=plain)
    assert store.load("job") == {}
    plain.execute("CREATE TEMPORARY TABLE checkpoint_entries (state_key, key)")
    plain.execute("BEGIN")
    store.commit("job", {"a": "1"})
    plain.execute("COMMIT")
    assert values(store) == {"a": "1"}
    with closing(SQLiteStore(path)) as own, closing(SQLiteStore(tmp_path / "other.db")) as other:
        assert values(own) == {"a": "1"}
        assert values(other) == {"a": "of the other file"}


def test_a_database_in_another_encoding(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "utf16.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        store = SQLiteStore(connection=connection)
        connection.execute("BEGIN")
        for state_key in ("job", "Ā", "ÿ", "a", "😀", "\ufb00"):
            store.commit(state_key, {"é": "😀\x00", "a": "1"})
        connection.execute("COMMIT")
        assert store.namespaces() == sorted(["job", "Ā", "ÿ", "a", "😀", "\ufb00"])
        assert values(store) == {"é": "😀\x00", "a": "1"}


def test_a_database_in_memory(plain: sqlite3.Connection) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        store = SQLiteStore(connection=connection)
        connection.execute("BEGIN")
        store.commit("job", {"a": "1"})
        connection.execute("COMMIT")
        assert values(store) == {"a": "1"}


@contextmanager
def in_a_thread() -> Iterator[Callable[[Callable[[], object]], RuntimeError]]:
    def run(call: Callable[[], object]) -> RuntimeError:
        raised: list[RuntimeError] = []

        def work() -> None:
            try:
                call()
            except RuntimeError as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return raised[0]

    yield run


def test_another_thread_is_told_what_is_wrong(plain: sqlite3.Connection) -> None:
    store = SQLiteStore(connection=plain)
    plain.execute("BEGIN")
    with in_a_thread() as run:
        for call in (
            lambda: store.load("job"),
            lambda: store.commit("job", {"a": "1"}),
            lambda: store.read("job", ["a"]),
            store.namespaces,
            lambda: store.history("job"),
        ):
            error = run(call)
            assert type(error) is RuntimeError
            assert str(error).startswith(
                "use a store in the thread of its connection, and while the connection is open: SQLite objects "
                "created in a"
            )
            assert isinstance(error.__cause__, sqlite3.ProgrammingError)
    store.commit("job", {"a": "2"})
    plain.execute("COMMIT")
    assert values(store) == {"a": "2"}


def test_a_connection_that_threads_may_share_is_shared(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        store = SQLiteStore(connection=connection)
        connection.execute("BEGIN")
        thread = threading.Thread(target=store.commit, args=("job", {"a": "1"}))
        thread.start()
        thread.join()
        connection.execute("COMMIT")
        assert values(store) == {"a": "1"}


def test_a_closed_connection_is_told(path: Path) -> None:
    connection = sqlite3.connect(path)
    store = SQLiteStore(connection=connection)
    connection.close()
    for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "1"}), lambda: store.in_transaction):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value) == (
            "use a store in the thread of its connection, and while the connection is open: "
            "Cannot operate on a closed database."
        )


# Files of other releases


NEW_TABLES = {"checkpoint_changes", "checkpoint_entries", "checkpoint_namespaces", "checkpoint_schema"}


def old(tmp_path: Path, kept: Path = OLD) -> Path:
    path = tmp_path / "old.db"
    path.write_bytes(kept.read_bytes())
    return path


def test_an_old_file_is_upgraded_in_the_callers_transaction(tmp_path: Path) -> None:
    path = old(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        store = SQLiteStore(connection=connection)
        before = store.load("sync_job")
        assert store.history("sync_job") == []
        for ending in ("ROLLBACK", "COMMIT"):
            assert tables(connection) == {"checkpoint_entries", "checkpoint_namespaces", "checkpoint_schema"}
            connection.execute("BEGIN")
            assert store.commit("sync_job", {"deals": "1"}).entries["deals"].version == 4
            connection.execute(ending)
        assert tables(connection) == NEW_TABLES
        assert {key: entry.value for key, entry in store.load("sync_job").items()} == {
            **{key: entry.value for key, entry in before.items()},
            "deals": "1",
        }


def test_a_cursor_in_the_way_of_a_migration_is_told(tmp_path: Path) -> None:
    path = old(tmp_path, OLD.with_name("sqlite-schema-2.db"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        store = SQLiteStore(connection=connection)
        connection.execute("BEGIN")
        rows = connection.execute("SELECT key FROM checkpoint_entries WHERE state_key = 'sync_job'")
        assert next(rows) == ("__lease__",)
        with pytest.raises(StoreUnavailable) as caught:
            store.commit("sync_job", {"deals": "1"})
        assert str(caught.value) == (
            "another cursor of the connection uses a table of the connection's database, and nothing was written: "
            "read that cursor to its end"
        )
        rows.close()
        store.commit("sync_job", {"deals": "1"})
        connection.execute("COMMIT")
        assert store.load("sync_job")["deals"].value == "1"


def test_a_newer_schema_is_refused_and_the_transaction_stays(plain: sqlite3.Connection) -> None:
    store = SQLiteStore(connection=plain)
    plain.execute("BEGIN")
    store.commit("job", {"a": "1"})
    plain.execute("UPDATE checkpoint_schema SET version = 4, readable_from = 4, release = '0.3'")
    for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "2"})):
        with pytest.raises(StoreError) as caught:
            call()
        assert str(caught.value) == (
            "the connection's database has form 4, which needs a release that knows form 4 (checkpoint-store 0.3 or "
            "later), and this one knows form 3: upgrade checkpoint-store; the file was left unchanged"
        )
    assert plain.in_transaction
