"""Rows and cursor in one transaction of the caller's: both are there or neither is."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from checkpoint import AsyncCheckpointer, Checkpointer, Commit, Conflict, SQLiteStore, codec

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B, C = {"at": 1}, {"at": 2}, {"at": 3}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sink.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE rows (id INTEGER)")
        yield connection


def stored(path: Path) -> dict[str, dict]:
    """What another connection finds."""
    with closing(SQLiteStore(path)) as store:
        return {key: codec.decode(entry.value) for key, entry in store.load("run").items()}


def run(connection: sqlite3.Connection, **options) -> Checkpointer:
    return Checkpointer("run", SQLiteStore(connection=connection), **options)


def test_a_commit_is_seen_when_the_caller_commits(connection, path):
    with run(connection) as cp:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO rows VALUES (1)")
        cp["a"] = A
        assert cp.commit().keys == ("a",)
        assert stored(path) == {}
        connection.execute("COMMIT")
        assert stored(path) == {"a": A}
    assert connection.execute("SELECT * FROM rows").fetchall() == [(1,)]


def test_without_a_transaction_nothing_is_committed(connection, path):
    with run(connection) as cp:
        assert cp.commit() == Commit()
        cp["a"] = A
        with pytest.raises(RuntimeError) as caught:
            cp.commit()
        assert str(caught.value) == (
            "no transaction is open on the connection, so 'a' cannot be committed: begin one, write the rows and call "
            "commit() in it"
        )
        assert not connection.in_transaction
        connection.execute("BEGIN")
        assert cp.commit().keys == ("a",)
        connection.execute("COMMIT")
    assert stored(path) == {"a": A}


def test_leaving_with_changes_and_no_transaction_names_the_keys(connection, path):
    with pytest.raises(RuntimeError, match="so 'a', 'b' cannot be committed"), run(connection) as cp:
        cp["b"] = cp["a"] = A
    assert stored(path) == {}


def test_leaving_in_a_transaction_commits_into_it(connection, path):
    connection.execute("BEGIN")
    with run(connection) as cp:
        cp["a"] = A
    assert connection.in_transaction
    connection.execute("COMMIT")
    assert stored(path) == {"a": A}


def test_leaving_by_an_exception_writes_nothing(connection, path):
    connection.execute("BEGIN")
    with pytest.raises(ZeroDivisionError), run(connection) as cp:
        cp["a"] = A
        1 / 0
    connection.execute("COMMIT")
    assert stored(path) == {}


@pytest.mark.parametrize("discard", [True, False], ids=["discard", "no discard"])
def test_fault_39_after_a_rollback_rows_and_cursor_go_in_again(connection, path, discard):
    with run(connection) as cp:
        connection.execute("BEGIN")
        cp["a"] = A
        cp.commit()
        connection.execute("COMMIT")
        for again in (False, True):
            connection.execute("BEGIN")
            connection.execute("INSERT INTO rows VALUES (2)")
            cp["a"] = B
            assert cp.commit().keys == ("a",)
            if again:
                connection.execute("COMMIT")
            else:
                connection.execute("ROLLBACK")
                if discard:
                    cp.discard()
                    assert cp["a"] == A
    assert connection.execute("SELECT * FROM rows").fetchall() == [(2,)]
    assert stored(path) == {"a": B}


def test_a_changed_cursor_is_written_again_after_rollback(connection, path):
    with run(connection) as cp:
        cp["a"] = {"at": 0}
        for end in ("ROLLBACK", "ROLLBACK", "COMMIT"):
            connection.execute("BEGIN")
            cp["a"]["at"] = 7
            assert cp.commit().keys == ("a",)
            connection.execute(end)
    assert stored(path) == {"a": {"at": 7}}


def test_a_stream_goes_back_with_discard(connection, path):
    rows = [{"at": 1}, {"at": 2}]
    with run(connection) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        connection.execute("BEGIN")
        assert stream.filter(rows) == rows
        cp.commit()
        connection.execute("ROLLBACK")
        cp.discard()
        assert stream.start_value is None
        connection.execute("BEGIN")
        assert stream.filter(rows) == rows
        cp.commit()
        connection.execute("COMMIT")
    assert stored(path) == {"s": {"at": 2}}


@pytest.mark.parametrize("group", [None, "g"])
def test_a_stream_does_not_pass_rows_that_were_rolled_back(connection, path, group):
    with run(connection) as cp:
        stream = cp.incremental("s", "at", row_order="asc", group=group)
        for end in ("ROLLBACK", "COMMIT"):  # the same rows may go in again
            connection.execute("BEGIN")
            assert stream.filter([{"at": 1}]) == [{"at": 1}]
            assert cp.commit()
            connection.execute(end)
        connection.execute("BEGIN")
        assert stream.filter([{"at": 2}]) == [{"at": 2}]
        assert cp.commit()
        connection.execute("ROLLBACK")
        assert stream.filter([{"at": 3}]) == [{"at": 3}]
        connection.execute("BEGIN")
        for _ in range(2):
            with pytest.raises(RuntimeError) as caught:
                cp.commit()
            what = "'s'" if group is None else "'s' of the group 'g'"
            assert str(caught.value) == (
                f"the transaction in which {what} was last committed was rolled back, together with its rows: "
                "call cp.discard(), and ask the source again from start_value"
            )
        cp.discard()
        assert stream.start_value == 1
        assert stream.filter([{"at": 2}, {"at": 3}]) == [{"at": 2}, {"at": 3}]
        assert cp.commit()
        connection.execute("COMMIT")
    assert stored(path) == (
        {"s": {"at": 3}} if group is None else {"__group__.g": {"members": "entries"}, "__group__.g/s": {"at": 3}}
    )


def test_a_group_is_joined_too(connection, path):
    with run(connection) as cp:
        group = cp.group("g", shards=2)
        for end in ("ROLLBACK", "COMMIT"):
            connection.execute("BEGIN")
            group["x"] = A
            assert "__group__.g/x" in cp.commit().keys
            connection.execute(end)
            cp.discard()
    assert set(stored(path)) == {"__group__.g", "__group__.g/x"}


def test_a_rollback_over_several_commits_is_seen(connection, path):
    with run(connection) as cp:
        connection.execute("BEGIN")
        for number in range(5):
            cp["a"] = {"at": number}
            cp.commit()
        connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        cp["a"] = {"at": 4}
        assert cp.commit().keys == ("a",)
        assert cp.commit() == Commit()
        connection.execute("COMMIT")
    assert stored(path) == {"a": {"at": 4}}


def test_a_foreign_write_is_a_conflict_inside_a_transaction(connection, path):
    with run(connection) as cp:
        connection.execute("BEGIN")
        cp["a"] = A
        cp.commit()
        connection.execute("COMMIT")
        with closing(SQLiteStore(path)) as other:
            other.commit("run", {"a": codec.encode(C)})
        connection.execute("BEGIN")
        connection.execute("INSERT INTO rows VALUES (1)")
        cp["a"] = B
        with pytest.raises(Conflict) as caught:
            cp.commit()
        assert caught.value.key == "a"
        assert connection.in_transaction
        cp.discard()
        assert cp["a"] == C
        connection.execute("COMMIT")
    assert connection.execute("SELECT * FROM rows").fetchall() == [(1,)]
    assert stored(path) == {"a": C}


def test_what_needs_a_transaction_of_its_own_is_refused(connection):
    store = SQLiteStore(connection=connection)
    for options in ({"min_interval": 1.0}, {"exclusive": True}):
        with pytest.raises(ValueError, match="leave out exclusive and min_interval"):
            Checkpointer("run", store, **options)
    with pytest.raises(ValueError, match="use a Checkpointer"):
        AsyncCheckpointer("run", store)
    with Checkpointer("run", store) as cp, pytest.raises(ValueError, match=r"use commit\(\)"):
        cp.commit_soon()


def test_history_is_part_of_the_transaction(connection):
    with run(connection, run_id="r") as cp:
        for end in ("ROLLBACK", "COMMIT"):
            connection.execute("BEGIN")
            cp["a"] = A
            cp.commit()
            connection.execute(end)
            cp.discard()
        assert [(change.key, change.before, change.run_id) for change in cp.history()] == [("a", None, "r")]


# Runs a recipe of docs/howto again and again, each time killed at another of the statements that its connection
# executes, and then once more to its end; compares the sink with the truth.
SWEEP = """
import os, signal, sqlite3, sys
from checkpoint import Checkpointer

class Api:
    rows = [{"id": n, "updated_at": f"2024-05-01T10:00:{n // 3:02}Z"} for n in range(12)]

    def contacts(self, updated_since):
        rows = [row for row in self.rows if row["updated_at"] >= updated_since]
        return (rows[first : first + 5] for first in range(0, len(rows), 5))

def job(stop):
    statements = 0

    def count(statement):
        nonlocal statements
        statements += 1
        if statements == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    def connect_and_count(*args, connect=sqlite3.connect, **kwargs):
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(count)
        return connection

    sqlite3.connect = connect_and_count
    exec(sys.argv[1], {"Checkpointer": Checkpointer, "api": Api()})

def run(stop):
    pid = os.fork()
    if not pid:
        job(stop)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

points = 0
while True:
    os.mkdir(f"{points}")
    os.chdir(f"{points}")
    if run(points + 1) == 0:
        break
    points += 1
    assert run(0) == 0
    sink = sqlite3.connect("warehouse.db")
    found = sorted(sink.execute("SELECT id FROM contacts").fetchall())
    sink.close()
    assert found == [(n,) for n in range(12)], found
    os.chdir("..")
print(f"{points} kill points, 0 missing, 0 twice")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_recipe_killed_at_every_statement_has_each_row_once(tmp_path: Path):
    """Exactly once: the rows of the sink and the cursor are of one transaction."""
    page = (Path(__file__).parent.parent / "docs" / "howto" / "recipes.md").read_text("utf-8")
    code = page.partition("## Exactly once, into SQLite")[2].partition("```python")[2].partition("```")[0]
    swept = subprocess.run(
        [sys.executable, "-c", SWEEP, code], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300
    )
    print(swept.stdout)
    points, _, outcome = swept.stdout.partition(" ")
    assert outcome == "kill points, 0 missing, 0 twice\n"
    assert int(points) > 30
