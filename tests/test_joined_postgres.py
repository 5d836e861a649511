"""Rows and cursor in one transaction of the caller's, in PostgreSQL: both are there or neither is."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from checkpoint import AsyncCheckpointer, Checkpointer, Commit, Conflict, codec

psycopg = pytest.importorskip("psycopg")

from checkpoint import PostgresStore  # noqa: E402 - it needs psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

A, B, C = {"at": 1}, {"at": 2}, {"at": 3}


@pytest.fixture(params=["implicit", "autocommit"])
def connection(request: pytest.FixtureRequest, postgres_database: str) -> Iterator[Any]:
    """The caller's connection: with psycopg's own transactions, or in autocommit mode."""
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE rows (id integer)")
    with psycopg.connect(postgres_database, autocommit=request.param == "autocommit") as connection:
        yield connection


@pytest.fixture
def stored(postgres_database: str) -> Callable[[], tuple[dict[str, dict], list[int]]]:
    """What another connection finds: cursors and rows."""

    def stored() -> tuple[dict[str, dict], list[int]]:
        with (
            psycopg.connect(postgres_database, autocommit=True) as other,
            closing(PostgresStore(connection=other)) as store,
        ):
            cursors = {key: codec.decode(entry.value) for key, entry in store.load("run").items()}
            return cursors, [number for (number,) in other.execute("SELECT id FROM rows ORDER BY id")]

    return stored


@contextmanager
def transaction(connection: Any) -> Iterator[None]:
    """A transaction of the caller's, as each mode has it."""
    if connection.autocommit:
        with connection.transaction():
            yield
        return
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def run(connection: Any, **options) -> Checkpointer:
    return Checkpointer("run", PostgresStore(connection=connection), **options)


def insert(connection: Any, number: int) -> None:
    connection.execute("INSERT INTO rows VALUES (%s)", [number])


def test_a_commit_is_seen_when_the_caller_commits(connection, stored):
    with run(connection) as cp:
        with transaction(connection):
            insert(connection, 1)
            cp["a"] = A
            assert cp.commit().keys == ("a",)
            assert stored() == ({}, [])
        assert stored() == ({"a": A}, [1])


def test_autocommit_without_a_transaction_commits_nothing(postgres_database):
    with psycopg.connect(postgres_database, autocommit=True) as connection, run(connection) as cp:
        assert cp.commit() == Commit()
        cp["a"] = A
        with pytest.raises(RuntimeError, match=r"^no transaction is open on the connection"):
            cp.commit()
        with connection.transaction():
            assert cp.commit().keys == ("a",)
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        with pytest.raises(RuntimeError, match="so 'b', 'c' cannot be committed"), run(connection) as cp:
            cp["c"] = cp["b"] = A
        with run(connection) as cp:
            assert dict(cp) == {"a": A}


def test_leaving_in_a_transaction_commits_into_it(connection, stored):
    with transaction(connection):
        with run(connection) as cp:
            insert(connection, 1)
            cp["a"] = A
        assert stored() == ({}, [])
    assert stored() == ({"a": A}, [1])


def test_leaving_by_an_exception_writes_no_cursor(connection, stored):
    with transaction(connection):
        insert(connection, 1)
        with pytest.raises(ZeroDivisionError), run(connection) as cp:
            cp["a"] = A
            1 / 0
    assert stored() == ({}, [1])


@pytest.mark.parametrize("discard", [True, False], ids=["discard", "no discard"])
def test_after_a_rollback_the_same_rows_and_cursor_go_in_again(connection, stored, discard):
    with run(connection) as cp:
        with transaction(connection):
            cp["a"] = A
            cp.commit()
        with pytest.raises(ZeroDivisionError), transaction(connection):
            insert(connection, 2)
            cp["a"] = B
            assert cp.commit().keys == ("a",)
            1 / 0
        assert stored() == ({"a": A}, [])
        if discard:
            cp.discard()
            assert cp["a"] == A
        with transaction(connection):
            insert(connection, 2)
            cp["a"] = B
            assert cp.commit().keys == ("a",)
    assert stored() == ({"a": B}, [2])


def test_a_savepoint_rolled_back_takes_its_commit_back(connection, stored):
    with run(connection) as cp, transaction(connection):
        cp["a"] = A
        cp.commit()
        with pytest.raises(ZeroDivisionError), connection.transaction():
            insert(connection, 1)
            cp["a"] = B
            cp.commit()
            1 / 0
        cp.discard()
        assert cp["a"] == A
        with connection.transaction():
            insert(connection, 2)
            cp["a"] = C
            assert cp.commit().keys == ("a",)
    assert stored() == ({"a": C}, [2])


def test_a_stream_and_a_group_go_back_with_discard(connection, stored):
    rows = [{"at": 1}, {"at": 2}]
    with run(connection) as cp:
        stream, group = cp.incremental("s", "at", row_order="asc"), cp.group("g")
        with pytest.raises(ZeroDivisionError), transaction(connection):
            assert stream.filter(rows) == rows
            group["x"] = A
            assert set(cp.commit().keys) == {"s", "__group__.g", "__group__.g/x"}
            1 / 0
        cp.discard()
        assert (stream.start_value, dict(group)) == (None, {})
        with transaction(connection):
            assert stream.filter(rows) == rows
            group["x"] = B
            cp.commit()
    assert stored() == (
        {"s": {"at": 2}, "__group__.g": {"members": "entries"}, "__group__.g/x": B},
        [],
    )


def test_a_foreign_write_is_a_conflict_inside_a_transaction(connection, stored, postgres_database):
    with run(connection) as cp:
        with transaction(connection):
            cp["a"] = A
            cp.commit()
        with psycopg.connect(postgres_database) as other:
            PostgresStore(connection=other).commit("run", {"a": codec.encode(C)})
        with transaction(connection):
            insert(connection, 1)
            cp["a"] = B
            with pytest.raises(Conflict) as caught:
                cp.commit()
            assert caught.value.key == "a"
            insert(connection, 2)
            cp.discard()
            assert cp["a"] == C
            cp["a"] = B
            assert cp.commit().keys == ("a",)
    assert stored() == ({"a": B}, [1, 2])


def test_what_needs_a_transaction_of_its_own_is_refused(connection):
    store = PostgresStore(connection=connection)
    for options in ({"min_interval": 1.0}, {"exclusive": True}):
        with pytest.raises(ValueError, match="leave out exclusive and min_interval"):
            Checkpointer("run", store, **options)
    with pytest.raises(ValueError, match="use a Checkpointer"):
        AsyncCheckpointer("run", store)
    with Checkpointer("run", store) as cp, pytest.raises(ValueError, match=r"use commit\(\)"):
        cp.commit_soon()


# Runs a recipe of docs/howto again and again, each time killed before another of the exchanges that its connection
# has with the server, or after the last one, and then once more to its end; compares the sink with the truth.
SWEEP = """
import os, signal, sys
import psycopg
import checkpoint.stores.postgres
from checkpoint import Checkpointer

class Api:
    rows = [{"id": n, "updated_at": f"2024-05-01T10:00:{n // 3:02}Z"} for n in range(20)]

    def contacts(self, updated_since):
        rows = [row for row in self.rows if row["updated_at"] >= updated_since]
        return (rows[first : first + 7] for first in range(0, len(rows), 7))

def job(stop):
    passed = 0

    def reach():
        nonlocal passed
        passed += 1
        if passed == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    class Connection(psycopg.Connection):
        def wait(self, *args, **kwargs):
            reach()
            return super().wait(*args, **kwargs)

    psycopg.connect = Connection.connect
    exec(sys.argv[1], {"Checkpointer": Checkpointer, "api": Api(), "WAREHOUSE": sys.argv[2]})
    reach()

def run(stop):
    pid = os.fork()
    if not pid:
        try:
            job(stop)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def on_the_server(statement):
    with psycopg.connect(sys.argv[2], autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None

GONE = (
    "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid != pg_backend_pid()"
)
connect, points = psycopg.connect, 0
while run(points + 1) == -signal.SIGKILL:
    points += 1
    on_the_server(GONE)  # the server notices a client that is gone when it next reads from it
    assert run(0) == 0
    found = on_the_server("SELECT id FROM contacts ORDER BY id")
    assert found == [(n,) for n in range(20)], (points, found)
    on_the_server("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
assert on_the_server("SELECT id FROM contacts ORDER BY id") == [(n,) for n in range(20)]
print(f"{points} kill points, 0 missing, 0 twice")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_recipe_killed_anywhere_has_each_row_once(postgres_database: str):
    """Exactly once: the rows of the sink and the cursor are of one transaction."""
    page = (Path(__file__).parent.parent / "docs" / "howto" / "recipes.md").read_text("utf-8")
    code = page.partition("## Exactly once, into PostgreSQL")[2].partition("```python")[2].partition("```")[0]
    swept = subprocess.run(
        [sys.executable, "-c", SWEEP, code, postgres_database],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    print(swept.stdout)
    points, _, outcome = swept.stdout.partition(" ")
    assert outcome == "kill points, 0 missing, 0 twice\n"
    assert int(points) > 50
