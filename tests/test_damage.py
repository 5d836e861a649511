"""Stores whose rows and objects somebody else has changed: each field, each wrong value, each call."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest
from freezegun import freeze_time

from checkpoint import Checkpointer, Entry, codec
from checkpoint.entries import LEASE_KEY, RUN_KEY
from checkpoint.errors import CheckpointError, Conflict, CorruptState, Locked, StoreError
from checkpoint.run.lease import LeaseState, lease_state, unlock
from checkpoint.stores.rows import refuse_rows
from checkpoint.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from checkpoint import Store
    from checkpoint.stores.objects import ObjectStore
    from checkpoint.stores.postgres import PostgresStore

NOW = "2024-05-01T10:00:00.000Z"


def calls(store: Any) -> dict[str, Callable[[], object]]:
    """Return what may be asked of a store, by what it is called."""
    asked: dict[str, Callable[[], object]] = {
        "load": lambda: store.load("job"),
        "read": lambda: store.read("job", ["a", "b"]),
        "commit": lambda: store.commit("job", {"a": "3"}),
        "compare": lambda: store.commit("job", {"c": "1"}, {"a": Entry("a", "2", NOW, NOW, "run", 2), "c": None}),
        "delete": lambda: store.commit("job", {"a": None}),
        "other": lambda: store.commit("other", {"a": "1"}),
        "namespaces": store.namespaces,
    }
    if hasattr(store, "history"):
        asked |= {
            "history": lambda: store.history("job"),
            "history of a": lambda: store.history("job", "a"),
            "latest": lambda: store.history("job", limit=1),
        }
    return asked


def failures(store: Any) -> dict[str, CheckpointError]:
    """Make every call, and return what found damage; anything but a `CheckpointError` comes out."""
    found: dict[str, CheckpointError] = {}
    for name, call in calls(store).items():
        try:
            call()
        except CheckpointError as error:
            if not isinstance(error, Conflict):  # which is right of the key that was changed
                found[name] = error
    return found


# SQLite

UNDECODABLE = "CAST(x'61ff' AS TEXT)"
WRONG = ("NULL", "x'61ff'", "x'61'", UNDECODABLE, "'x'", "''", "-1", "0", "1.5", "9223372036854775807", "9e999")
COLUMNS = {
    "checkpoint_schema": ("version", "readable_from", "release"),
    "checkpoint_namespaces": ("state_key", "version", "keep", "keep_days"),
    "checkpoint_entries": ("state_key", "key", "value", "created_at", "updated_at", "sync_job_run_id", "version"),
    "checkpoint_changes": (
        *("state_key", "key", "version", "at", "run_id", "host", "process", "reason", "changed_by", "before", "after"),
    ),
}
UNIQUE = {
    "checkpoint_namespaces": "state_key",
    "checkpoint_entries": "state_key, key",
    "checkpoint_changes": "state_key, key, version",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store's file whose tables take any value."""
    path = tmp_path / "state.db"
    with closing(SQLiteStore(path, keep=1)) as store, freeze_time(NOW):
        for changes in ({"a": "1"}, {"a": "2", "b": "1"}):
            store.commit("job", changes, run_id="run")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for table, columns in COLUMNS.items():
            keys = [
                name for name in ("state_key", "key", "version") if name in columns and table != "checkpoint_schema"
            ]
            unique = {"checkpoint_entries": keys[:2], "checkpoint_namespaces": keys[:1], "checkpoint_changes": keys}
            primary = f", PRIMARY KEY ({', '.join(unique[table])})" if table in unique else ""
            connection.execute(f"ALTER TABLE {table} RENAME TO former")
            connection.execute(f"CREATE TABLE {table} ({', '.join(columns)}{primary})")
            connection.execute(f"INSERT INTO {table} SELECT {', '.join(columns)} FROM former")
            connection.execute("DROP TABLE former")
    return path


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, columns in COLUMNS.items() for column in columns]
)
def test_fault_41_a_damaged_column_is_an_error_of_ours(file: Path, table: str, column: str) -> None:
    whole = file.read_bytes()
    for wrong in WRONG:
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute(f"UPDATE {table} SET {column} = {wrong} WHERE rowid = (SELECT max(rowid) FROM {table})")
        with closing(SQLiteStore(file, keep=1)) as store:
            found = failures(store)
            for error in found.values():
                assert type(error) in {CorruptState, StoreError}
                assert str(file) in str(error)
        file.write_bytes(whole)
        with closing(SQLiteStore(file, keep=1)) as store:
            assert {key: entry.value for key, entry in store.load("job").items()} == {"a": "2", "b": "1"}
            assert failures(store) == {}
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("column", "wrong", "said"),
    [
        ("value", "x'61'", "its value is bytes, not text"),
        ("value", "NULL", "its value is missing, not text"),
        ("value", "5", "its value is the number 5, not text"),
        ("value", UNDECODABLE, "its value is text that is not UTF-8, not text"),
        ("created_at", "1.5", "its created_at is the number 1.5, not text"),
        ("updated_at", UNDECODABLE, "its updated_at is text that is not UTF-8, not text"),
        ("sync_job_run_id", "x'61'", "its run is bytes, not text or nothing"),
        ("version", "'x'", "its version is other text, not a version"),
        ("version", "-1", "its version is the number -1, not a version"),
    ],
)
def test_fault_41_a_damaged_entry_is_named_and_kept(file: Path, column: str, wrong: str, said: str) -> None:
    of_job = " WHERE state_key = 'job' AND key = 'a'"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(f"UPDATE checkpoint_entries SET {column} = {wrong}{of_job}")
        before = connection.execute(f"SELECT CAST({column} AS BLOB) FROM checkpoint_entries{of_job}").fetchall()
        with closing(SQLiteStore(file)) as store:
            found = failures(store)
            with pytest.raises(CorruptState), Checkpointer("job", store):
                pass
            with closing(sqlite3.connect(file, isolation_level=None)) as joined, pytest.raises(CorruptState):
                SQLiteStore(connection=joined).load("job")
        assert connection.execute(f"SELECT CAST({column} AS BLOB) FROM checkpoint_entries{of_job}").fetchall() == before
    assert found.keys() == {"load", "read", "commit", "compare", "delete"}
    for error in found.values():
        assert type(error) is CorruptState
        assert (error.state_key, error.key, error.where) == ("job", "a", str(file))
        assert str(error) == (
            f"the stored row of 'a' in 'job' is damaged ({said}), and was left unchanged: repair "
            f"or delete it in {file}, "
            "or restore a backup"
        )


@pytest.mark.parametrize("wrong", ["x'6a6f62'", "NULL", "5"])
def test_fault_41_a_namespace_without_a_name_is_no_new_one(file: Path, wrong: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(f"UPDATE checkpoint_entries SET state_key = {wrong}")
    said = "checkpoint database .in checkpoint_entries, the state_key of a row is not text"
    with closing(SQLiteStore(file)) as store:
        for call in (lambda: store.load("job"), store.namespaces):
            with pytest.raises(StoreError, match=said):
                call()


@pytest.mark.parametrize("wrong", ["0", "-1", "'x'", "NULL"])
def test_fault_41_a_form_that_is_none_is_no_fresh_start(file: Path, wrong: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(f"UPDATE checkpoint_schema SET version = {wrong}")
    with closing(SQLiteStore(file)) as store:
        for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "1"})):
            with pytest.raises(StoreError, match="its tables do not say which form they have"):
                call()


def test_fault_41_a_commit_does_not_end_at_damaged_history(file: Path) -> None:
    """It keeps what it cannot judge, and whoever reads the history is told."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("UPDATE checkpoint_changes SET at = x'00', host = 5")
    with closing(SQLiteStore(file, keep=1)) as store:
        for number in range(4):
            store.commit("job", {"a": f"again {number}"})
        with pytest.raises(CorruptState, match="in its history, the time is bytes, not a time"):
            store.history("job", "a")


def test_fault_41_rows_that_were_called_damaged_are_never_none(file: Path) -> None:
    """As where somebody repairs a row between the look that finds it damaged and the one that names it."""
    with closing(SQLiteStore(file)) as store:
        [*rows] = store.load("job").values()
    with pytest.raises(StoreError, match="was damaged a moment ago, and no longer is: try again"):
        refuse_rows(str(file), "job", rows)


# PostgreSQL


BYTES, TEXT, NUMBER, MAYBE = (
    ("'\\xff'", "''"),
    ("''", "'x'", "E'\\u0001'"),
    ("-1", "0", "9223372036854775807"),
    ("NULL", "''"),
)
POSTGRES = {
    "checkpoint_schema": {"version": NUMBER, "readable_from": (*NUMBER, "NULL"), "release": MAYBE},
    "checkpoint_namespaces": {"digest": BYTES, "state_key": TEXT, "version": NUMBER, "token": BYTES},
    "checkpoint_entries": {
        "namespace": NUMBER,
        "digest": BYTES,
        "key": TEXT,
        "value": BYTES,
        "created_at": TEXT,
        "updated_at": TEXT,
        "sync_job_run_id": MAYBE,
        "version": NUMBER,
    },
    "checkpoint_history": {
        "namespace": NUMBER,
        "digest": BYTES,
        "version": NUMBER,
        "key": TEXT,
        "before": BYTES,
        "after": BYTES,
        "at": TEXT,
        "run_id": MAYBE,
        "host": TEXT,
        "process": NUMBER,
        "reason": MAYBE,
        "written_by": MAYBE,
        "token": BYTES,
    },
}


@pytest.fixture
def database(postgres: PostgresStore, postgres_url: str) -> Iterator[tuple[Any, str]]:
    """A connection to a store's database, and the schema of its tables, which hold two commits."""
    import psycopg

    plain, _, schema = postgres_url.rpartition("schema=")
    with freeze_time(NOW):
        for changes in ({"a": "1"}, {"a": "2", "b": "1"}):
            postgres.commit("job", changes, run_id="run")
    with psycopg.connect(plain.rstrip("?&"), autocommit=True) as connection:
        yield connection, schema


@pytest.mark.parametrize("table", [*POSTGRES])
def test_fault_41_a_damaged_field_is_an_error_of_ours(postgres_url: str, database: tuple[Any, str], table: str) -> None:
    from checkpoint.stores.postgres import PostgresStore

    connection, schema = database
    place = f"{schema}.{table}"
    connection.execute(f"CREATE TABLE {schema}.whole AS SELECT * FROM {place}")
    store = PostgresStore(postgres_url, keep=1)
    for column, wrongs in POSTGRES[table].items():
        for wrong in wrongs:
            key = " AND key = 'a'" if table in {"checkpoint_entries", "checkpoint_history"} else ""
            last = f"SELECT max(version) FROM {place} WHERE true{key}"
            value = f"{wrong}::int" if table == "checkpoint_schema" and wrong == "-1" else wrong
            with suppress(Exception):  # out of range for an integer
                connection.execute(f"UPDATE {place} SET {column} = {value} WHERE version = ({last}){key}")
            for error in failures(store).values():
                assert type(error) in {CorruptState, StoreError}
            with connection.transaction():
                connection.execute(f"DELETE FROM {place}")
                connection.execute(f"INSERT INTO {place} OVERRIDING SYSTEM VALUE SELECT * FROM {schema}.whole")
    assert store.load("job")
    store.close()


def test_fault_41_bytes_that_are_no_text_are_named(postgres: PostgresStore, database: tuple[Any, str]) -> None:
    connection, schema = database
    connection.execute(f"UPDATE {schema}.checkpoint_entries SET value = '\\xff' WHERE key = 'a'")
    connection.execute(f"UPDATE {schema}.checkpoint_history SET after = '\\xff' WHERE key = 'b'")
    found = failures(postgres)
    assert found.keys() == {"load", "read", "commit", "compare", "delete", "history"}
    where = f'the PostgreSQL table "{schema}".checkpoint_entries'
    for name in ("load", "read", "commit", "compare", "delete"):
        error = found[name]
        assert isinstance(error, CorruptState)
        assert (error.state_key, error.key, error.value, error.where) == ("job", "a", None, where)
        assert "its value is bytes, not text" in str(error)
    assert isinstance(found["history"], CorruptState)
    assert found["history"].key == "b"


def test_fault_41_a_version_that_cannot_grow_is_an_error(postgres: PostgresStore, database: tuple[Any, str]) -> None:
    connection, schema = database
    for version in ((1 << 63) - 1, -1):
        connection.execute(f"UPDATE {schema}.checkpoint_namespaces SET version = {version}")
        with pytest.raises(
            StoreError, match="checkpoint_namespaces is damaged: the version of 'job' cannot be counted up"
        ):
            postgres.commit("job", {"a": "3"})


# Buckets

ANYTHING: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    2**63 - 1,
    2**64 - 1,
    10**40,
    "",
    "x",
    [],
    ["x"],
    {},
    {"x": None},
    ...,
)
DOCUMENT = ("format", "state_key", "version", "commits", "entries")
ENTRY = ("value", "created_at", "updated_at", "sync_job_run_id", "version")


@pytest.fixture
def stored(objects: ObjectStore) -> tuple[ObjectStore, dict[str, Any], Callable[[Any], None]]:
    """A store, the document of its namespace, and what puts another one in its place."""
    import obstore

    with freeze_time(NOW):
        for changes in ({"a": "1"}, {"a": "2", "b": "1"}):
            objects.commit("job", changes, run_id="run")
    bucket = objects._opened()._store

    def put(document: Any) -> None:
        obstore.put(bucket, "some/prefix/job.json", json.dumps(document).encode())

    return objects, json.loads(bytes(obstore.get(bucket, "some/prefix/job.json").bytes())), put


def without(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not ...}


@pytest.mark.parametrize("field", DOCUMENT)
def test_fault_41_a_damaged_document_is_an_error_of_ours(stored: Any, field: str) -> None:
    store, whole, put = stored
    for wrong in ANYTHING:
        put(without(whole | {field: wrong}))
        for error in failures(store).values():
            assert type(error) in {CorruptState, StoreError}
            assert "/job.json" in str(error)
    put(whole)
    assert store.load("job").keys() == {"a", "b"}


@pytest.mark.parametrize("field", ENTRY)
def test_fault_41_a_damaged_entry_of_an_object_is_named(stored: Any, field: str) -> None:
    store, whole, put = stored
    entry = whole["entries"]["a"]
    for wrong in [wrong for wrong in ANYTHING if not fits(field, wrong)]:
        put(whole | {"entries": whole["entries"] | {"a": without(entry | {field: wrong})}})
        found = failures(store)
        assert found.keys() == {"load", "read", "commit", "compare", "delete"}
        for error in found.values():
            assert type(error) is CorruptState
            assert (error.state_key, error.key) == ("job", "a")
            assert error.where.endswith("/some/prefix/job.json")
            assert error.where in str(error)
    for wrong in (None, [], "x", 5, entry | {"more": 1}):
        put(whole | {"entries": whole["entries"] | {"a": wrong}})
        with pytest.raises(CorruptState, match="the stored row of 'a' in 'job' is damaged"):
            store.load("job")
    put(whole)
    assert store.load("job")["a"].value == "2"


def fits(field: str, value: object) -> bool:
    """Tell whether a value is one that the field may have."""
    if field == "version":
        return type(value) is int and 0 < value <= 2
    return isinstance(value, str) or (field == "sync_job_run_id" and value is None)


# Leases and runs, in any store


@pytest.mark.parametrize("field", LeaseState._fields)
def test_fault_41_a_damaged_lease_is_an_error_of_ours(field: str) -> None:
    whole = LeaseState("owner", NOW, 1, 1)._asdict()
    for wrong in (*ANYTHING, 10**400, 1e308, "\x1b"):
        entry = Entry(LEASE_KEY, codec.encode(without(whole | {field: wrong})))
        with suppress(CorruptState):
            lease = lease_state("job", entry)
            assert lease.seconds / 3 > 0
            assert str(Locked("job", lease.owner or "", lease.since or ""))


@pytest.mark.parametrize("field", [*LeaseState._fields[:5], "all"])
def test_fault_41_a_damaged_lease_can_be_released(field: str, store: Store) -> None:
    whole = LeaseState("owner", NOW, 1, 1)._asdict()
    store.commit("job", {LEASE_KEY: "x" if field == "all" else codec.encode(whole | {field: []}), "a": "1"})
    with pytest.raises(CorruptState):
        Checkpointer("job", store, exclusive=True).__enter__()
    with pytest.raises(CorruptState):
        unlock(store, "job")
    assert lease_state("job", store.load("job")[LEASE_KEY]).owner is None


@pytest.mark.usefixtures("recorded")
def test_fault_41_a_damaged_record_of_a_run_is_left_out(tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        with Checkpointer("job", store) as cp:
            cp["a"] = {"x": 1}
        whole = codec.decode(store.load("job")[RUN_KEY].value)
        for field in whole:
            for wrong in (*ANYTHING, 10**400):
                store.commit("job", {RUN_KEY: codec.encode(without(whole | {field: wrong}))})
                with Checkpointer("job", store) as cp:
                    assert cp.runs()
                    assert cp.history() is not None
