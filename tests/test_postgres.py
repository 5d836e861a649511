"""The PostgreSQL store: servers that stop, answers that are lost, other writers, and the caller's transactions."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from freezegun import freeze_time
from postgres_server import NOBODY, guarded

psycopg = pytest.importorskip("psycopg")

from psycopg.conninfo import conninfo_to_dict  # noqa: E402 - after importorskip
from psycopg.pq import TransactionStatus  # noqa: E402 - after importorskip
from psycopg.rows import dict_row  # noqa: E402 - after importorskip

from checkpoint import Checkpointer, open_store  # noqa: E402 - after importorskip
from checkpoint.copying import copy, move, plan  # noqa: E402 - after importorskip
from checkpoint.errors import (  # noqa: E402 - after importorskip
    CommitUnknown,
    Conflict,
    StoreError,
    StoreUnavailable,
    Unauthorized,
    ValueTooLarge,
)
from checkpoint.stores import postgres as module  # noqa: E402 - after importorskip
from checkpoint.stores import postgres_connections as connections  # noqa: E402 - after importorskip
from checkpoint.stores.base import JoinsTransactions  # noqa: E402 - after importorskip
from checkpoint.stores.postgres import PostgresStore  # noqa: E402 - after importorskip
from checkpoint.stores.retrying import Deadline, Operation, monotonic  # noqa: E402 - after importorskip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from postgres_server import PostgresServer

IDLE, OPEN, FAILED = TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR
SECRET = "hunter2-hunter2"
SECONDS = float(os.environ.get("CHECKPOINT_TEST_SECONDS", "2"))  # of the counting processes

in_parallel = multiprocessing.get_context("fork")


@pytest.fixture
def schema(postgres_url: str) -> str:
    return postgres_url.rpartition("=")[2]


@pytest.fixture
def plain_url(postgres_url: str) -> str:
    """The URL as libpq takes it."""
    return postgres_url[: -len("?schema=" + postgres_url.rpartition("=")[2])]


@pytest.fixture
def other(plain_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody else, in autocommit mode."""
    with psycopg.connect(plain_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE", 1.0)


def values(store: PostgresStore, state_key: str = "job") -> dict[str, str]:
    return {key: entry.value for key, entry in store.load(state_key).items()}


def backends(store: PostgresStore) -> list[int]:
    """Return the server's process ids of a store's idle connections."""
    return [connection.info.backend_pid for connection in store._server._idle.get(os.getpid(), ())]


def in_children(count: int, work: Callable[[int], object]) -> None:
    """Run the work in so many forked processes, which begin together."""
    barrier = in_parallel.Barrier(count)

    def begin(number: int) -> None:
        barrier.wait(60)
        work(number)

    children = [in_parallel.Process(target=begin, args=(number,)) for number in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * count


# What it is called


def test_url_and_dsn_name_the_server_and_hide_the_password() -> None:
    url = f"postgresql://me:{SECRET}?schema=@db.example:5433/app?schema=s%20x&sslmode=require"
    name = "host=db.example port=5433 dbname=app user=me"
    assert repr(PostgresStore(url)) == f"PostgresStore('{name}', schema='s x')"
    assert repr(PostgresStore(url, schema="mine")) == f"PostgresStore('{name}', schema='mine')"
    assert repr(PostgresStore(f"host=db.example password={SECRET}")) == (
        "PostgresStore('host=db.example', schema='public')"
    )
    assert (
        repr(open_store(url)) == repr(open_store(url.replace("postgresql:", "postgres:"))) == repr(PostgresStore(url))
    )


def test_without_a_connection_string_libpqs_environment_counts(
    postgres_url: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = conninfo_to_dict(postgres_url.partition("?schema=")[0].partition("&schema=")[0])
    for name, variable in (("host", "PGHOST"), ("port", "PGPORT"), ("user", "PGUSER"), ("dbname", "PGDATABASE")):
        if name in params:
            monkeypatch.setenv(variable, str(params[name]))
    if "password" in params:
        monkeypatch.setenv("PGPASSWORD", str(params["password"]))
    with closing(PostgresStore(schema=schema)) as store:
        store.commit("job", {"a": "1"})
        assert repr(store) == f"PostgresStore('', schema='{schema}')"
    with closing(PostgresStore(postgres_url)) as store:
        assert values(store) == {"a": "1"}


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://me:p@{SECRET}@host/db",
        f"postgresql://me:p/{SECRET}@host/db",
        f"postgresql://me:{SECRET}%zz@host/db",
        f"postgresql://me:p?@{SECRET}@host/db",
        f"postgresql://host?x={SECRET}",
        f"postgresql://me:{SECRET}/db",
        f"host=db password=a {SECRET}",
        SECRET,
    ],
)
def test_an_unreadable_dsn_is_refused_and_not_shown(dsn: str) -> None:
    with pytest.raises(ValueError, match="it is not shown here") as caught:
        PostgresStore(dsn)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    shown.stack[:] = shown.stack[1:]  # the first frame is this test's own, and knows the secret
    assert SECRET not in "".join(shown.format())


@pytest.mark.parametrize("name", ["", "x" * 64, "é" * 32, "a\0b"])
def test_a_schema_has_a_name_that_postgresql_keeps_whole(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a PostgreSQL schema must have 1 to 63 bytes"):
        PostgresStore(schema=name)


@pytest.mark.parametrize("name", ['a"b', "a%b", "a%sb", "A B", "select", "é" * 31])
def test_any_schema_name_is_kept_whole(postgres_url: str, plain_url: str, name: str, other: Any) -> None:
    with closing(PostgresStore(plain_url, schema=name)) as store:
        store.commit("job", {"a": "1"})
        assert values(store) == {"a": "1"}
        assert [change.after for change in store.history("job")] == ["1"]
    (found,) = other.execute("SELECT count(*) FROM pg_tables WHERE schemaname = %s", [name]).fetchone()
    other.execute(psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(psycopg.sql.Identifier(name)))
    assert found == 4


def test_it_is_made_of_one_thing_or_the_other(other: Any) -> None:
    with pytest.raises(TypeError, match="a connection string or a connection, not both"):
        PostgresStore("host=x", connection=other)
    with pytest.raises(TypeError, match=r"must be a psycopg.Connection, not object"):
        PostgresStore(connection=object())
    with pytest.raises(ValueError, match="keep must be 0 or more"):
        PostgresStore(keep=-1)


def test_without_psycopg_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['psycopg'] = None; import checkpoint; checkpoint.open_store('postgresql://host')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.splitlines()[-1].startswith("ImportError: PostgresStore needs psycopg (")
    assert done.stderr.endswith("): pip install 'checkpoint-store[postgres]'\n")


# Its tables


def test_a_load_makes_no_tables(postgres: PostgresStore, other: Any, schema: str) -> None:
    assert (postgres.load("job"), postgres.history("job"), postgres.namespaces()) == ({}, [], [])
    assert postgres.commit("job", {}, {"a": None}).entries == {}
    with pytest.raises(Conflict):
        postgres.commit("job", {}, {"a": postgres.commit("other", {"a": "1"}).entries["a"]})
    assert other.execute("SELECT count(*) FROM pg_namespace WHERE nspname = %s", [schema]).fetchone() == (1,)


def test_eight_processes_make_the_tables_at_once(postgres_url: str, postgres: PostgresStore) -> None:
    def work(number: int) -> None:
        PostgresStore(postgres_url).commit("job", {f"child {number}": "1"})

    in_children(8, work)
    assert len(postgres.load("job")) == 8


def test_fault_41_a_newer_schema_is_refused_and_kept(postgres_url: str, other: Any, schema: str) -> None:
    with closing(PostgresStore(postgres_url)) as store:
        store.commit("job", {"a": "1"})
    other.execute(f"UPDATE {schema}.checkpoint_schema SET version = 9, readable_from = 9, release = '0.7'")
    with closing(PostgresStore(postgres_url)) as store:
        for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "2"})):
            with pytest.raises(StoreError) as caught:
                call()
            assert str(caught.value) == (
                f"the checkpoint tables in the PostgreSQL schema '{schema}' have format 9, which needs a "
                "release that knows format 9, and this one knows 2: upgrade checkpoint-store to 0.7; the tables were "
                "left unchanged"
            )
        other.execute(f"UPDATE {schema}.checkpoint_schema SET readable_from = 2")
        assert values(store) == {"a": "1"}


def test_a_role_that_may_only_read_loads(postgres: PostgresStore, postgres_url: str, other: Any, schema: str) -> None:
    postgres.commit("job", {"a": "1"})
    role = f"reader_{schema}"
    other.execute(f"CREATE ROLE {role} LOGIN")
    try:
        other.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        other.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
        with closing(PostgresStore(f"{postgres_url}&user={role}")) as store:
            assert values(store) == {"a": "1"}
            with pytest.raises(Unauthorized, match="permission denied for table checkpoint_namespaces"):
                store.commit("job", {"a": "2"})
        with closing(PostgresStore(f"{postgres_url}_new&user={role}")) as store:
            assert values(store) == {}
            with pytest.raises(Unauthorized, match="permission denied for database"):
                store.commit("job", {"a": "2"})
    finally:
        other.execute(f"DROP OWNED BY {role}")
        other.execute(f"DROP ROLE {role}")
    assert values(postgres) == {"a": "1"}


def test_a_database_that_cannot_hold_any_text_is_refused(plain_url: str, other: Any, schema: str) -> None:
    other.execute(f"CREATE DATABASE {schema} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with closing(PostgresStore(f"{plain_url}{'&' if '?' in plain_url else '?'}dbname={schema}")) as store:
            assert values(store) == {}
            with pytest.raises(StoreError, match="the database has the encoding LATIN1") as caught:
                store.commit("job", {"a": "1"})
            assert type(caught.value) is StoreError
    finally:
        other.execute(f"DROP DATABASE {schema}")


def test_the_defaults_of_the_server_do_not_matter(postgres_url: str, plain_url: str, other: Any, schema: str) -> None:
    options = "-c default_transaction_isolation=serializable -c default_transaction_read_only=on -c search_path=x"
    url = f"{postgres_url}&options={options.replace(' ', '%20').replace('=', '%3D')}%20-c%20statement_timeout%3D1"
    with closing(PostgresStore(url)) as store:
        store.commit("job", {"a": "1", "b": "é"}, run_id="run")
        assert values(store) == {"a": "1", "b": "é"}
        with ThreadPoolExecutor() as pool, psycopg.connect(plain_url) as holder:
            holder.execute(f"UPDATE {schema}.checkpoint_namespaces SET version = 7")
            committing = pool.submit(store.commit, "job", {"a": "2"})
            waiting(other, schema)
            holder.commit()
            receipt = committing.result(60)
        assert (receipt.entries["a"].version, receipt.retries) == (8, 0)


# Names and values


def test_keys_are_of_any_length(postgres: PostgresStore) -> None:
    rng = random.Random(1)
    names = ["".join(rng.choices("abcdefghij日本語", k=20_000)) for _ in range(2)]
    for name in names:
        postgres.commit(name, dict.fromkeys(names, name[:9]))
    for name in names:
        assert values(postgres, name) == dict.fromkeys(names, name[:9])
    assert postgres.namespaces() == sorted(names)


def test_a_commit_in_many_statements_is_one(postgres: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 10)
    base = postgres.commit("job", {f"key {number}": "x" * number for number in range(20)}).entries
    assert postgres.load("job") == base
    assert {entry.version for entry in base.values()} == {1}
    postgres.commit("job", {**dict.fromkeys(base, "y" * 9), "key 3": None}, base)
    assert values(postgres) == {key: "y" * 9 for key in base if key != "key 3"}
    assert len(postgres.history("job")) == 40


def test_a_value_too_large_is_refused_and_nothing_written(
    postgres: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_VALUE", 10)
    postgres.commit("job", {"a": "é" * 5})
    with pytest.raises(ValueTooLarge) as caught:
        postgres.commit("job", {"a": "1", "b": "é" * 5 + "x"})
    assert caught.value.args == ("b", 11)
    assert values(postgres) == {"a": "é" * 5}


# History


def test_fault_90_a_busy_key_leaves_a_quiet_one_its_history(postgres_url: str) -> None:
    with closing(PostgresStore(postgres_url)) as store, freeze_time("2024-05-01T10:00:00Z") as clock:
        store.commit("job", {"quiet": "1"})
        for number in range(540):
            clock.tick(60)
            store.commit("job", {"busy": str(number)})
        busy = store.history("job", "busy")
        assert [change.after for change in store.history("job", "quiet")] == ["1"]
        assert [change.after for change in busy[:100]] == [str(number) for number in range(539, 439, -1)]
        assert [change.at[11:16] for change in busy[100:]] == [f"{hour}:59" for hour in range(16, 9, -1)]
        clock.move_to("2024-05-10T12:00:00Z")
        store.commit("job", {"busy": "later"})
        assert [change.at[:16] for change in store.history("job", "busy")[100:]] == []


def test_a_change_of_a_day_stays_for_keep_days(postgres_url: str) -> None:
    with closing(PostgresStore(f"{postgres_url}&keep=1&keep_days=2")) as store:
        for now in ("01T10:00", "01T11:00", "05T10:00", "06T10:00", "06T11:00", "06T12:00"):
            with freeze_time(f"2024-05-{now}:00Z"):
                store.commit("job", {"a": now})
        assert [change.after for change in store.history("job")] == ["06T12:00", "06T11:00", "06T10:00", "05T10:00"]


def test_what_is_no_longer_kept_leaves_the_tables(postgres_url: str, other: Any, schema: str) -> None:
    def rows() -> int:
        return int(other.execute(f"SELECT count(*) FROM {schema}.checkpoint_history").fetchone()[0])

    def commit(keep: int) -> None:
        with closing(PostgresStore(postgres_url, keep=keep, keep_days=0)) as store:
            store.commit("job", {"a": "1", "b": "1"})

    for keep, left in ((5, 2), (5, 4), (5, 6), (2, 4), (0, 0), (1, 2)):
        commit(keep)
        assert rows() == left


# Servers and connections that end


def test_a_server_restart_between_two_calls_is_not_noticed(
    postgres_server: PostgresServer, postgres: PostgresStore
) -> None:
    base = postgres.commit("job", {"a": "1"}).entries
    for mode in ("immediate", "fast"):
        postgres_server.stop(mode)
        postgres_server.start()
        assert postgres.load("job") == base
        base = postgres.commit("job", {"a": mode}, base).entries
    assert (base["a"].value, base["a"].version) == ("fast", 3)


def test_a_server_that_comes_back_is_waited_for(postgres_server: PostgresServer, postgres: PostgresStore) -> None:
    postgres.commit("job", {"a": "1"})
    postgres_server.stop()
    with ThreadPoolExecutor() as pool:
        committing = pool.submit(postgres.commit, "job", {"a": "2"})
        postgres_server.start()
        receipt = committing.result(60)
    assert receipt.entries == postgres.load("job")
    assert (receipt.requests, receipt.retries) == (receipt.retries + 1, receipt.requests - 1)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stays_away_is_unavailable(tmp_path: Path) -> None:
    store = PostgresStore(f"host={tmp_path} user=me password={SECRET}")
    for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "1"})):
        with pytest.raises(StoreUnavailable, match=r"gave up after \d+ attempts in \d.\d s: .*No such file") as caught:
            call()
        assert str(caught.value).startswith(f"PostgreSQL (host={tmp_path} user=me): gave up after ")


def test_killed_backends_are_replaced(postgres: PostgresStore, other: Any) -> None:
    base = postgres.commit("job", {"a": "1"}).entries
    server, time = postgres._server, connections.Waiting(Operation("PostgreSQL"), Deadline(60.0))
    for number in range(2, 5):
        for connection in [server.take(time) for _ in range(3)]:
            server.give_back(connection)
        assert len(backends(postgres)) == 3
        for pid in backends(postgres):
            other.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
        receipt = postgres.commit("job", {"a": str(number)}, base)
        base = receipt.entries
        assert (receipt.retries, base["a"].version) == (1, number)
    assert values(postgres) == {"a": "4"}


def waiting(other: Any, schema: str) -> int:
    """Wait until a statement waits for the lock of a namespace; return its process id."""
    pause = threading.Event()
    for _ in range(6_000):
        row = other.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s", [f"%{schema}%"]
        ).fetchone()
        if row:
            return row[0]
        pause.wait(0.01)
    raise AssertionError("nobody waits")


@contextmanager
def held(connection: Any, schema: str) -> Iterator[None]:
    """Hold the lock of every namespace."""
    with connection.transaction():
        connection.execute(f"SELECT * FROM {schema}.checkpoint_namespaces FOR UPDATE")
        yield


@pytest.mark.parametrize("end", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_commit_that_is_ended_while_it_waits_is_made_again(
    postgres: PostgresStore, plain_url: str, other: Any, schema: str, end: str
) -> None:
    base = postgres.commit("job", {"a": "1"}).entries
    with ThreadPoolExecutor() as pool, psycopg.connect(plain_url) as holder:
        with held(holder, schema):
            committing = pool.submit(postgres.commit, "job", {"a": "2"}, base)
            first = waiting(other, schema)
            other.execute(f"SELECT {end}(%s)", [first])
            while end == "pg_terminate_backend" and waiting(other, schema) == first:
                pass
        receipt = committing.result(60)
    assert (receipt.entries["a"].value, receipt.entries["a"].version, receipt.retries > 0) == ("2", 2, True)


@pytest.mark.usefixtures("impatient")
def test_a_namespace_held_for_too_long_is_unavailable(postgres: PostgresStore, plain_url: str, schema: str) -> None:
    base = postgres.commit("job", {"a": "1"}).entries
    with psycopg.connect(plain_url) as holder, held(holder, schema):
        with pytest.raises(StoreUnavailable, match="gave up after .*: canceling statement due to"):
            postgres.commit("job", {"a": "2"}, base)
        assert postgres.load("job") == base
    assert postgres.commit("job", {"a": "2"}, base).entries == postgres.load("job")


def test_fault_45_ctrl_c_ends_a_commit_that_waits(
    postgres: PostgresStore, plain_url: str, other: Any, schema: str
) -> None:
    base = postgres.commit("job", {"a": "1"}).entries

    def interrupt() -> None:
        waiting(other, schema)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with psycopg.connect(plain_url) as holder, held(holder, schema):
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            postgres.commit("job", {"a": "2"}, base)
        thread.join()
    assert postgres.load("job") == base
    assert postgres.commit("job", {"a": "3"}, base).entries["a"].version == 2


FAIL = """
    CREATE SEQUENCE {schema}.tries;
    CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('{schema}.tries') <= 2 THEN RAISE 'try again' USING ERRCODE = '{code}'; END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER fail AFTER INSERT OR UPDATE ON {schema}.checkpoint_entries
        DEFERRABLE INITIALLY {when} FOR EACH ROW EXECUTE FUNCTION {schema}.fail()"""


@pytest.mark.parametrize("when", ["IMMEDIATE", "DEFERRED"])
@pytest.mark.parametrize("code", ["40001", "40P01", "53200", "55P03", "57014", "08006", "25006"])
def test_what_passes_by_itself_is_tried_again(
    postgres: PostgresStore, other: Any, schema: str, code: str, when: str
) -> None:
    base = postgres.commit("job", {"a": "1"}).entries
    other.execute(FAIL.format(schema=schema, code=code, when=when))
    receipt = postgres.commit("job", {"a": "2"}, base)
    assert (receipt.retries, receipt.entries) == (2, postgres.load("job"))
    assert [change.after for change in postgres.history("job")] == ["2", "1"]


def test_what_ends_one_idle_connection_costs_one_attempt(postgres: PostgresStore, other: Any) -> None:
    """A restart ends them all: each of them would be an attempt of its own, with a pause before the next."""
    base = postgres.commit("job", {"a": "1"}).entries
    waiting = connections.Waiting(Operation("the server"), Deadline(60))
    for connection in [postgres._server.take(waiting) for _ in range(5)]:
        postgres._server.give_back(connection)
    ended = backends(postgres)
    assert len(ended) == 5
    for process in ended:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [process])
    assert postgres.commit("job", {"a": "2"}, base).retries == 1


@pytest.mark.parametrize(("code", "same"), [("40001", True), ("25006", False)])
def test_a_connection_that_turns_out_read_only_is_not_used_again(
    postgres: PostgresStore, other: Any, schema: str, code: str, same: bool
) -> None:
    """It leads to a standby, whatever stands between; the next one may lead to the primary."""
    base = postgres.commit("job", {"a": "1"}).entries
    before = backends(postgres)
    other.execute(FAIL.format(schema=schema, code=code, when="IMMEDIATE"))
    postgres.commit("job", {"a": "2"}, base)
    assert (backends(postgres) == before) is same


@pytest.mark.parametrize("code", ["53100", "53400", "XX000", "XX001", "58030", "22003", "P0001"])
def test_a_failure_that_will_not_pass_is_told_at_once(
    postgres: PostgresStore, other: Any, schema: str, code: str
) -> None:
    base = postgres.commit("job", {"a": "1"}).entries
    other.execute(FAIL.format(schema=schema, code=code, when="DEFERRED"))
    with pytest.raises(StoreError, match="failed: try again") as caught:
        postgres.commit("job", {"a": "2"}, base)
    assert type(caught.value) is StoreError
    assert postgres.load("job") == base


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_the_history_never_has_more_than_it_keeps(postgres: PostgresStore, postgres_url: str, keep: int) -> None:
    with closing(PostgresStore(postgres_url, keep=keep)) as store, freeze_time("2024-05-01T10:30:00Z"):
        for number in range(1, 7):
            store.commit("job", {"a": str(number)})
            told = [change.after for change in postgres.history("job")]
            assert told == [str(number - back) for back in range(min(number, keep))]


# Answers that are lost


def message(kind: bytes, body: bytes) -> bytes:
    """Return a message of PostgreSQL's protocol."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


FATAL = message(b"E", b"SFATAL\0VFATAL\0C58000\0Mthe server went away\0\0") + message(b"Z", b"I")
"""What a pooler answers whose server went away in the middle of a statement, and which keeps the client."""


class Proxy:
    """TCP between a store and the server; `on_commit` says what becomes of the next COMMITs.

    "drop": it never gets to the server, and both ends are closed; "leave": the server's end stays open; "cut": it gets
    there, and instead of the answer the store's end is closed; "silence": instead of the answer comes nothing; "fatal":
    instead of the answer comes FATAL, and both ends stay open.
    """

    def __init__(self, target: str) -> None:
        self.on_commit: deque[str] = deque()
        self.refuse_after = False
        self._target = target
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in [self._listener, *self._sockets]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                self._sockets += [client, server]
                muted, answered = threading.Event(), threading.Event()
                for work in (self._up, self._down):
                    threading.Thread(target=work, args=(client, server, muted, answered), daemon=True).start()

    def _up(
        self, client: socket.socket, server: socket.socket, muted: threading.Event, answered: threading.Event
    ) -> None:
        keep = False
        with suppress(OSError):
            while data := client.recv(65_536):
                fate = self.on_commit.popleft() if b"COMMIT\0" in data and self.on_commit else ""
                if fate in {"drop", "leave"}:
                    keep = fate == "leave"
                    break
                if fate:
                    muted.set()
                server.sendall(data)
                if fate in {"cut", "fatal"}:
                    assert answered.wait(60)
                if fate == "cut":
                    break
                if fate == "fatal":
                    muted.clear()
                    client.sendall(FATAL)
        if self.refuse_after and muted.is_set():
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in (client,) if keep else (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _down(
        self, client: socket.socket, server: socket.socket, muted: threading.Event, answered: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                if muted.is_set():
                    answered.set()
                else:
                    client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[Proxy]:
    proxy = Proxy(f"{postgres_server.home}/.s.PGSQL.5432")
    yield proxy
    proxy.close()


@pytest.fixture
def through(proxy: Proxy, schema: str) -> Iterator[PostgresStore]:
    """A store through the proxy."""
    url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?sslmode=disable&gssencmode=disable&schema={schema}"
    store = PostgresStore(url)
    yield store
    store.close()


def before_connecting(store: PostgresStore, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a call each time before the store connects."""
    connect = connections.Server._connect

    def after_call(server: Any, waiting: Any) -> Any:
        if server is store._server:
            call()
        return connect(server, waiting)

    monkeypatch.setattr(connections.Server, "_connect", after_call)


@pytest.mark.parametrize("fate", ["drop", "cut"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_commit_whose_answer_is_lost_lands_once(
    proxy: Proxy, through: PostgresStore, postgres: PostgresStore, fate: str, times: int
) -> None:
    base = through.commit("job", {"a": "1", "gone": "1"}).entries
    proxy.on_commit.extend([fate] * times)
    receipt = through.commit("job", {"a": "2", "gone": None, "new": "1"}, {**base, "new": None}, run_id="run")
    assert not proxy.on_commit or fate == "cut"  # after a COMMIT that landed there is one more, of the look
    assert receipt.entries == postgres.load("job")
    assert {entry.version for entry in receipt.entries.values()} == {2}
    assert len(postgres.history("job")) == 5


def test_a_commit_that_is_answered_with_fatal_lands_once(
    proxy: Proxy, through: PostgresStore, postgres: PostgresStore
) -> None:
    base = through.commit("job", {"a": "1"}).entries
    proxy.on_commit.append("fatal")
    receipt = through.commit("job", {"a": "2"}, base)
    assert receipt.entries == postgres.load("job")
    assert (receipt.entries["a"].version, len(postgres.history("job"))) == (2, 2)


@pytest.mark.parametrize("history", [True, False])
def test_an_unanswered_commit_that_did_not_land_is_made_again(
    proxy: Proxy, through: PostgresStore, postgres: PostgresStore, history: bool
) -> None:
    """The key to delete is not there, as if the attempt had landed."""
    through._keep = (100 if history else 0), 90
    through.commit("job", {"other": "1"})
    proxy.on_commit.append("drop")
    through.commit("job", {"gone": None, "a": "1"}, {"gone": None, "a": None})
    assert values(postgres) == {"other": "1", "a": "1"}


@pytest.mark.parametrize("theirs", ["theirs", None])
def test_a_traceless_commit_overwritten_in_part_is_a_conflict(
    proxy: Proxy,
    through: PostgresStore,
    postgres: PostgresStore,
    theirs: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without history nobody can tell that it had landed before."""
    through._keep = 0, 90
    base = through.commit("job", {"a": "1", "b": "1"}).entries
    proxy.on_commit.append("cut")
    before_connecting(through, lambda: postgres.commit("job", {"b": theirs}), monkeypatch)
    with pytest.raises(Conflict):
        through.commit("job", {"a": "2", "b": "2"}, base)
    assert values(postgres) == {key: value for key, value in {"a": "2", "b": theirs}.items() if value is not None}


def test_the_first_commit_of_all_lands_once_too(proxy: Proxy, through: PostgresStore, postgres: PostgresStore) -> None:
    proxy.on_commit.extend(["cut", "drop", "drop"])
    assert through.commit("job", {"a": "1"}, {"a": None}).entries == postgres.load("job")
    assert len(postgres.history("job")) == 1


@pytest.mark.parametrize(("keep", "changes"), [(100, {"__lease__": "2"}), (100, {"__lease__": None}), (0, {"a": "2"})])
def test_a_traceless_commit_whose_answer_is_lost_lands_once(
    proxy: Proxy, through: PostgresStore, keep: int, changes: dict[str, str | None]
) -> None:
    through._keep = keep, 90
    base = through.commit("job", {"a": "1", "__lease__": "1"}).entries
    proxy.on_commit.append("cut")
    receipt = through.commit("job", changes, base)
    assert receipt.entries == {key: entry for key, entry in through.load("job").items() if entry.version == 2}
    assert through.commit("job", {"b": "1"}).entries["b"].version == 3


@pytest.mark.parametrize("theirs", [{"b": "theirs"}, {"a": "theirs"}, {"a": None}])
def test_a_commit_whose_answer_is_lost_is_known_under_later_ones(
    proxy: Proxy,
    through: PostgresStore,
    postgres: PostgresStore,
    theirs: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = through.commit("job", {"a": "1"}).entries
    proxy.on_commit.append("cut")
    before_connecting(through, lambda: postgres.commit("job", theirs), monkeypatch)
    receipt = through.commit("job", {"a": "2"}, base)
    assert (receipt.entries["a"].value, receipt.entries["a"].version) == ("2", 2)
    assert values(postgres) == {key: value for key, value in {"a": "2", **theirs}.items() if value is not None}


@pytest.mark.usefixtures("impatient")
def test_a_commit_whose_answer_nobody_can_have_is_unknown(
    proxy: Proxy, through: PostgresStore, postgres: PostgresStore
) -> None:
    base = through.commit("job", {"a": "1"}).entries
    proxy.on_commit.append("cut")
    proxy.refuse_after = True
    with pytest.raises(CommitUnknown, match="gave up after .* attempts") as caught:
        through.commit("job", {"a": "2", "b": "1"}, base)
    assert (caught.value.keys, caught.value.unsettled) == (("a", "b"), {"a", "b"})
    assert values(postgres) == {"a": "2", "b": "1"}
    with pytest.raises(Conflict):
        postgres.commit("job", {"a": "2", "b": "1"}, {**base, "b": None})


def test_a_commit_found_not_to_have_landed_is_not_unknown(
    proxy: Proxy, through: PostgresStore, postgres: PostgresStore, other: Any, schema: str
) -> None:
    base = through.commit("job", {"a": "1"}).entries
    other.execute(FAIL.format(schema=schema, code="53100", when="IMMEDIATE"))
    other.execute(f"ALTER SEQUENCE {schema}.tries MINVALUE -9 INCREMENT -1 RESTART 3")  # the second try fails
    proxy.on_commit.append("drop")
    with pytest.raises(StoreError, match="failed: try again") as caught:
        through.commit("job", {"a": "2"}, base)
    assert type(caught.value) is StoreError
    assert postgres.load("job") == base


def test_a_server_that_falls_silent_ends_with_the_deadline(
    proxy: Proxy, through: PostgresStore, postgres: PostgresStore
) -> None:
    base = through.commit("job", {"a": "1"}).entries
    through._deadline = 1.5
    proxy.on_commit.append("silence")
    with pytest.raises(CommitUnknown, match="the server did not answer in time"):
        through.commit("job", {"a": "2"}, base)
    assert values(postgres) == {"a": "2"}
    proxy.on_commit.append("silence")
    with pytest.raises(StoreUnavailable, match="the server did not answer in time"):
        through.load("job")


def test_a_connection_that_comes_after_the_deadline_is_ended(
    proxy: Proxy, other: Any, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, look_up = threading.Event(), socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        asked.wait(60)
        return look_up(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    url = f"host=localhost port={proxy.port} user=postgres dbname=postgres application_name={schema}"
    with (
        closing(PostgresStore(url, deadline=0.3)) as store,
        pytest.raises(StoreUnavailable, match="no connection was made in"),
    ):
        store.load("job")
    connecting = next(thread for thread in threading.enumerate() if thread.name == "checkpoint-connect")
    asked.set()
    connecting.join(60)
    assert len(proxy._sockets) == 2
    mine = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s"
    for _ in range(1_000):
        if not other.execute(mine, [schema]).fetchall():
            break
    else:
        pytest.fail("it is still there")


def test_a_transaction_left_behind_is_ended_by_the_server(
    proxy: Proxy, through: PostgresStore, postgres: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = through.commit("job", {"a": "1"}).entries
    monkeypatch.setattr(connections, "ABANDONED", 1)
    proxy.on_commit.append("leave")
    receipt = through.commit("job", {"a": "2"}, base)
    assert receipt.entries == postgres.load("job")
    assert receipt.entries["a"].version == 2


# Other processes


def test_fault_42_eight_processes_count_without_a_lost_update(
    postgres_url: str, postgres: PostgresStore, tmp_path: Path
) -> None:
    postgres.commit("job", {f"counter {number}": "0" for number in range(3)})

    def work(number: int) -> None:
        store, rng, done, conflicts = PostgresStore(postgres_url), random.Random(number), 0, 0
        until = monotonic() + SECONDS
        entries = store.load("job")
        while monotonic() < until:
            key = f"counter {rng.randrange(3)}"
            try:
                count = int(entries[key].value.split()[0]) + 1
                # No two processes write the same text: one that finds its own there is told of no conflict.
                entries.update(store.commit("job", {key: f"{count} by {number}"}, {key: entries[key]}).entries)
                done += 1
            except Conflict:
                conflicts += 1
                entries = store.load("job")
        (tmp_path / str(number)).write_text(f"{done} {conflicts}")

    in_children(8, work)
    done, conflicts = (sum(int(path.read_text().split()[column]) for path in tmp_path.iterdir()) for column in (0, 1))
    assert sum(int(value.split()[0]) for value in values(postgres).values()) == done > 0
    logging.getLogger("tests").info("8 processes, %g s: %d increments, %d conflicts", SECONDS, done, conflicts)


def test_fault_43_each_forked_process_has_own_connections(postgres: PostgresStore, other: Any) -> None:
    postgres.commit("job", {"a": "1"})
    (mine,) = backends(postgres)
    (inherited,) = postgres._server._idle[os.getpid()]
    shared = os.fstat(inherited.fileno())

    def work(number: int) -> None:
        for fd in range(1024):
            with suppress(OSError):
                assert not os.path.samestat(os.fstat(fd), shared)
        postgres.commit("job", {f"child {number}": "1"})
        assert mine not in backends(postgres)
        postgres.close()

    in_children(2, work)
    postgres.commit("job", {"b": "1"})
    assert backends(postgres) == [mine]
    assert set(postgres.load("job")) == {"a", "b", "child 0", "child 1"}


def test_a_conflict_costs_no_connection(postgres: PostgresStore) -> None:
    postgres.commit("job", {"a": "1"})
    before = backends(postgres)
    with pytest.raises(Conflict):
        postgres.commit("job", {"a": "2"}, {"a": None})
    assert backends(postgres) == before


def test_several_threads_share_a_store(postgres: PostgresStore) -> None:
    def work(number: int) -> None:
        for count in range(10):
            postgres.commit(f"job {number}", {"a": str(count)})
            assert values(postgres, f"job {number}") == {"a": str(count)}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(postgres.namespaces()) == 8
    assert 1 <= len(backends(postgres)) <= 8
    postgres.close()
    assert backends(postgres) == []
    assert values(postgres, "job 1") == {"a": "9"}


# PgBouncer


@pytest.fixture(scope="module")
def bouncer(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a PgBouncer in transaction mode with fewer connections than clients."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    home = Path(tempfile.mkdtemp(prefix="pgb-", dir="/tmp"))
    (home / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={postgres_server.home} port=5432 user=postgres\n"
        f"[pgbouncer]\nunix_socket_dir = {home}\nlisten_port = 6432\nauth_type = any\npool_mode = transaction\n"
        "default_pool_size = 2\nserver_check_delay = 0\n"
    )
    user = NOBODY if os.geteuid() == 0 else None
    if user is not None:
        os.chown(home, NOBODY, NOBODY)
    process = guarded(
        *("sh", "-c", '"$0" "$1" & cat > /dev/null; kill $!; wait', program, str(home / "pgbouncer.ini")),
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    yield f"postgresql://postgres@/postgres?host={home}&port=6432"
    process.stdin.close()
    process.wait(60)
    shutil.rmtree(home)


def test_pgbouncer_in_transaction_mode(bouncer: str, postgres: PostgresStore, other: Any, schema: str) -> None:
    url = f"{bouncer}&schema={schema}"

    def work(number: int) -> None:
        store, done = PostgresStore(url), 0
        while done < 10:
            entry = store.load("job").get("count")
            count = int(entry.value.split()[0]) + 1 if entry else 1
            with suppress(Conflict):
                store.commit("job", {"count": f"{count} by {number}"}, {"count": entry})
                done += 1

    in_children(4, work)
    assert values(postgres)["count"].startswith("40 by ")
    with closing(PostgresStore(url)) as store:
        assert len(store.history("job")) == 40
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'checkpoint'")
        assert store.commit("job", {"count": "done"}).entries == store.load("job")
        with psycopg.connect(bouncer) as shared:  # nothing of ours stays on the server's connection
            assert shared.execute("SHOW statement_timeout").fetchone() == ("0",)
            assert shared.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


# Secrets


@pytest.fixture
def locked(postgres_server: PostgresServer, other: Any, schema: str) -> Iterator[str]:
    """The URL, without the user, of a database with the role `locked`, which needs SECRET."""
    other.execute(f"CREATE ROLE locked_{schema} LOGIN PASSWORD '{SECRET}'")
    other.execute(f"CREATE SCHEMA {schema} AUTHORIZATION locked_{schema}")
    yield f"@/postgres?host={postgres_server.home}&schema={schema}"
    other.execute(f"DROP OWNED BY locked_{schema}")
    other.execute(f"DROP ROLE locked_{schema}")


def everything_shown(error: BaseException) -> str:
    """Return what a logger with every local variable, and a curious reader, see of an error."""
    shown, seen = [], [error]
    for each in seen:
        seen += [more for more in (each.__cause__, each.__context__) if more is not None and more not in seen]
        frames = traceback.TracebackException.from_exception(each, capture_locals=True)
        frames.stack[:] = [frame for frame in frames.stack if "/test_postgres.py" not in frame.filename]
        shown += [*frames.format(chain=False), repr(each), repr(vars(each))]
        with suppress(TypeError):
            shown.append(repr(pickle.dumps(each)))
    return "\n".join(shown)


@pytest.mark.usefixtures("impatient")
def test_the_password_is_nowhere_to_be_seen(
    locked: str, schema: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    user = f"locked_{schema}"
    store = PostgresStore(f"postgresql://{user}:{SECRET}{locked}")
    shown = [repr(store), repr(vars(store)), repr(store._server)]
    assert store.commit("job", {"a": "1"}).entries == store.load("job")
    with pytest.raises(TypeError, match="a PostgresStore cannot be pickled"):
        pickle.dumps(store)
    store.close()
    away = f"postgresql://{user}:{SECRET}@/postgres?host={tmp_path}"
    for url, kind, text in (
        (f"postgresql://{user}:{SECRET}x{locked}", Unauthorized, "password authentication failed for user"),
        (f"postgresql://{user}{locked}", Unauthorized, "no password supplied"),
        (f"postgresql://nobody_{schema}:{SECRET}{locked}", Unauthorized, "does not exist"),
        (f"postgresql://{user}:{SECRET}{locked.replace('/postgres?', '/nowhere?')}", StoreError, "does not exist"),
        (f"postgresql://{user}:{SECRET}{locked}&sslmode=verify-nothing", StoreError, "invalid sslmode value"),
        (away, StoreUnavailable, "No such file"),
    ):
        with closing(PostgresStore(url)) as store, pytest.raises(kind, match=text) as caught:
            store.load("job")
        assert type(caught.value) is kind
        shown.append(everything_shown(caught.value))
    wrong = f"postgresql://{user}:{SECRET}x{locked}"
    calls: list[Callable[[], object]] = [
        lambda: open_store(f"postgresql://{user}:{SECRET}/@{locked}"),
        lambda: Checkpointer("job", wrong).__enter__(),
        lambda: plan(wrong, "memory://copied"),
        lambda: copy(wrong, "memory://copied"),
        lambda: move("memory://copied", wrong, "job"),
    ]
    for call in calls:
        with pytest.raises((ValueError, Unauthorized)) as caught:
            call()
        shown.append(everything_shown(caught.value))
    assert SECRET not in "\n".join([*shown, caplog.text])


# The caller's transactions


def joined(connection: Any, schema: str) -> PostgresStore:
    return PostgresStore(connection=connection, schema=schema)


@pytest.fixture(params=["implicit", "explicit"])
def connection(request: pytest.FixtureRequest, plain_url: str) -> Iterator[Any]:
    """The caller's connection: with psycopg's own transactions, or in autocommit mode; its rows are dicts."""
    with psycopg.connect(plain_url, autocommit=request.param == "explicit", row_factory=dict_row) as connection:
        connection.cursor_factory = psycopg.ClientCursor
        yield connection


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


@pytest.fixture
def sink(other: Any, postgres: PostgresStore, schema: str) -> Callable[[], list[int]]:
    """A table of the caller's, and what others see in it."""
    other.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    other.execute(f"CREATE TABLE {schema}.sink (id integer PRIMARY KEY)")
    return lambda: [number for (number,) in other.execute(f"SELECT id FROM {schema}.sink ORDER BY id")]


def test_rows_and_cursor_become_visible_together(
    connection: Any, schema: str, postgres: PostgresStore, sink: Callable[[], list[int]]
) -> None:
    store = joined(connection, schema)
    assert isinstance(store, JoinsTransactions)
    assert store.joined
    for number in (1, 2):
        with transaction(connection):
            connection.execute(f"INSERT INTO {schema}.sink VALUES ({number})")
            assert store.in_transaction
            receipt = store.commit("job", {"a": str(number)}, run_id="run")
            assert store.load("job") == receipt.entries == store.read("job", ["a", "missing"])
            assert (sink(), values(postgres)) == (([1], {"a": "1"}) if number == 2 else ([], {}))
        assert (sink(), postgres.load("job")) == ([*range(1, number + 1)], receipt.entries)
    store.close()
    assert connection.execute("SELECT 1 AS one").fetchone() == {"one": 1}


def test_fault_39_a_rollback_takes_rows_and_cursor_back(
    connection: Any, schema: str, postgres: PostgresStore, sink: Callable[[], list[int]]
) -> None:
    store = joined(connection, schema)
    for _ in range(2):  # the first time, the tables go as well
        with pytest.raises(ZeroDivisionError), transaction(connection):
            connection.execute(f"INSERT INTO {schema}.sink VALUES (1)")
            store.commit("job", {"a": "1"}, {"a": None})
            store.commit("job", {"b": "1"})
            1 / 0
        assert (sink(), store.load("job"), values(postgres)) == ([], {}, {})
    with transaction(connection):
        connection.execute(f"INSERT INTO {schema}.sink VALUES (1)")
        receipt = store.commit("job", {"a": "1"}, {"a": None})
    assert (sink(), postgres.load("job")) == ([1], receipt.entries)
    assert receipt.entries["a"].version == 1


def test_a_savepoint_takes_back_what_was_committed_in_it(
    connection: Any, schema: str, postgres: PostgresStore, sink: Callable[[], list[int]]
) -> None:
    store = joined(connection, schema)
    with transaction(connection):
        first = store.commit("job", {"a": "1"}).entries
        with pytest.raises(ZeroDivisionError), connection.transaction():
            connection.execute(f"INSERT INTO {schema}.sink VALUES (1)")
            store.commit("job", {"a": "2"}, first)
            1 / 0
        assert store.load("job") == first
        with connection.transaction():
            connection.execute(f"INSERT INTO {schema}.sink VALUES (2)")
            second = store.commit("job", {"a": "3"}, first).entries
    assert (sink(), postgres.load("job")) == ([2], second)


def test_a_conflict_leaves_the_transaction_usable(
    connection: Any, schema: str, postgres: PostgresStore, sink: Callable[[], list[int]]
) -> None:
    store = joined(connection, schema)
    base = postgres.commit("job", {"a": "1"}).entries
    theirs = postgres.commit("job", {"a": "theirs"}).entries
    with transaction(connection):
        connection.execute(f"INSERT INTO {schema}.sink VALUES (1)")
        with pytest.raises(Conflict) as caught:
            store.commit("job", {"a": "ours", "b": "ours"}, base)
        assert caught.value.args == ("job", "a", base["a"], theirs["a"])
        postgres.commit("job", {"c": "no lock is left"})
        connection.execute(f"INSERT INTO {schema}.sink VALUES (2)")
        ours = store.commit("job", {"a": "ours"}, theirs).entries
    assert sink() == [1, 2]
    assert postgres.load("job")["a"] == ours["a"]


def test_a_failure_of_ours_leaves_the_transaction_usable(
    connection: Any, schema: str, postgres: PostgresStore, other: Any, sink: Callable[[], list[int]]
) -> None:
    store = joined(connection, schema)
    base = postgres.commit("job", {"a": "1"}).entries
    other.execute(FAIL.format(schema=schema, code="40001", when="IMMEDIATE"))
    with transaction(connection):
        connection.execute(f"INSERT INTO {schema}.sink VALUES (1)")
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="try again .*: roll back, and run the whole transaction again"):
                store.commit("job", {"a": "2"}, base)
        with pytest.raises(ValueTooLarge), pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "MAX_VALUE", 0)
            store.commit("job", {"a": "2"}, base)
        store.commit("job", {"a": "3"}, base)
    assert (sink(), values(postgres)) == ([1], {"a": "3"})


def test_an_error_of_the_callers_own_makes_ours_clear(
    connection: Any, schema: str, postgres: PostgresStore, sink: Callable[[], list[int]]
) -> None:
    store = joined(connection, schema)
    base = postgres.commit("job", {"a": "1"}).entries
    with pytest.raises(psycopg.errors.SyntaxError), transaction(connection):
        connection.execute(f"INSERT INTO {schema}.sink VALUES (1)")
        try:
            connection.execute("SELEKT")
        finally:
            assert store.in_transaction
            for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "2"}, base)):
                with pytest.raises(StoreUnavailable, match="has failed: roll it back"):
                    call()
            assert connection.info.transaction_status == FAILED
    assert (sink(), store.load("job")) == ([], base)


def test_a_snapshot_older_than_the_last_commit_cannot_write(
    connection: Any, schema: str, postgres: PostgresStore
) -> None:
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    store = joined(connection, schema)
    base = postgres.commit("job", {"a": "1"}).entries
    with transaction(connection):
        connection.execute("SELECT 1")
        assert store.load("job") == base
        postgres.commit("job", {"a": "theirs"})
        assert store.load("job") == base
        with pytest.raises(StoreUnavailable, match="could not serialize access.* run the whole transaction again"):
            store.commit("job", {"a": "ours"}, base)
    assert values(postgres) == {"a": "theirs"}


def test_reading_leaves_the_connection_as_it_was(connection: Any, schema: str, postgres: PostgresStore) -> None:
    store = joined(connection, schema)
    calls: list[Callable[[], object]] = [
        lambda: store.load("job"),
        lambda: store.read("job", ["a"]),
        lambda: store.history("job"),
        store.namespaces,
    ]
    for _ in range(2):
        for call in calls:
            call()
            assert connection.info.transaction_status == IDLE
        with transaction(connection):
            connection.execute("SELECT 1")
            for call in calls:
                call()
                assert connection.info.transaction_status == OPEN
        postgres.commit("job", {"a": "1"})
    assert connection.row_factory is dict_row


def test_in_autocommit_mode_a_commit_needs_a_transaction(plain_url: str, schema: str, postgres: PostgresStore) -> None:
    with psycopg.connect(plain_url, autocommit=True) as connection:
        store = joined(connection, schema)
        assert not store.in_transaction
        with pytest.raises(RuntimeError, match=r"no transaction is open .*\(with connection.transaction\(\)\)"):
            store.commit("job", {"a": "1"})
        assert connection.info.transaction_status == IDLE
        connection.execute("BEGIN")
        assert store.in_transaction
        store.commit("job", {"a": "1"})
        assert values(postgres) == {}
        connection.execute("COMMIT")
    assert values(postgres) == {"a": "1"}


def test_a_commit_begins_the_transaction_that_psycopg_would(
    plain_url: str, schema: str, postgres: PostgresStore
) -> None:
    with psycopg.connect(plain_url) as connection:
        store = joined(connection, schema)
        assert store.in_transaction
        base = store.commit("job", {"a": "1"}).entries
        assert (connection.info.transaction_status, values(postgres)) == (OPEN, {})
        connection.commit()
        assert postgres.load("job") == base
        postgres.commit("job", {"a": "theirs"})
        with pytest.raises(Conflict):
            store.commit("job", {"a": "2"}, base)
        assert connection.info.transaction_status == IDLE
        store.commit("job", {"b": "2"})
        connection.rollback()
    assert values(postgres) == {"a": "theirs"}


def test_a_backend_that_ends_before_a_commit_is_our_error(plain_url: str, schema: str, other: Any) -> None:
    with closing(psycopg.connect(plain_url)) as connection:
        store = joined(connection, schema)
        other.execute("SELECT pg_terminate_backend(%s, 30000)", [connection.info.backend_pid])
        with pytest.raises(StoreUnavailable, match="on the caller's connection: .*: roll back, and run the whole"):
            store.commit("job", {"a": "1"})


def test_a_connection_that_cannot_be_used_says_why(plain_url: str, schema: str, other: Any) -> None:
    connection = psycopg.connect(plain_url)
    store = joined(connection, schema)

    def refused(kind: type[Exception], text: str) -> None:
        for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "1"})):
            with pytest.raises(kind, match=text):
                call()

    with connection.pipeline():
        refused(RuntimeError, "is busy: finish the statement or the pipeline first")
    connection.execute("SET client_encoding = 'LATIN1'")
    refused(RuntimeError, "must have the client encoding UTF8, not iso8859-1")
    connection.rollback()
    other.execute("SELECT pg_terminate_backend(%s, 30000)", [connection.info.backend_pid])
    refused(StoreUnavailable, "on the caller's connection: .*: roll back, and run the whole transaction again")
    assert not store.in_transaction
    connection.close()
    with psycopg.connect(plain_url) as connection:
        store = joined(connection, schema)
    refused(RuntimeError, "the store's connection is closed")
