"""PostgreSQL as databases are run: a standby that is promoted, row-level security, roles without CREATE, init."""

from __future__ import annotations

import gc
import socket
import threading
import traceback
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from click.testing import CliRunner
from postgres_server import PostgresServer

psycopg = pytest.importorskip("psycopg")

from checkpoint import Checkpointer, open_store  # noqa: E402 - after importorskip
from checkpoint.cli.command import checkpoint as command  # noqa: E402 - after importorskip
from checkpoint.errors import Conflict, StoreError, StoreUnavailable, Unauthorized  # noqa: E402 - after importorskip
from checkpoint.stores.postgres import PostgresStore  # noqa: E402 - after importorskip
from checkpoint.stores.retrying import monotonic  # noqa: E402 - after importorskip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def schema(postgres_url: str) -> str:
    return postgres_url.rpartition("=")[2]


@pytest.fixture
def admin(postgres_url: str, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the database's owner, in autocommit mode."""
    with psycopg.connect(postgres_url[: -len(f"?schema={schema}")], autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(admin: Any, schema: str) -> Iterator[str]:
    name = f"job_{schema}"
    admin.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    with suppress(psycopg.Error):
        admin.execute(f"DROP OWNED BY {name}")
    admin.execute(f"DROP ROLE {name}")


def grant(admin: Any, schema: str, role: str) -> None:
    tables = "checkpoint_namespaces, checkpoint_entries, checkpoint_history, checkpoint_schema".replace(
        "checkpoint_", f"{schema}.checkpoint_"
    )
    admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {role}")


# A standby


@pytest.fixture
def cluster() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    if PostgresServer.missing():
        pytest.skip(PostgresServer.missing())
    primary = PostgresServer()
    try:
        standby = primary.standby()
        try:
            yield primary, standby
        finally:
            with suppress(AssertionError):
                standby.stop()
            standby.close()
    finally:
        with suppress(AssertionError):
            primary.stop()
        primary.close()


def test_fault_84_a_standby_that_is_promoted_is_written_to(
    cluster: tuple[PostgresServer, PostgresServer], caplog: pytest.LogCaptureFixture
) -> None:
    primary, standby = cluster
    with closing(PostgresStore(primary.url)) as store:
        store.commit("job", {"a": "1"})
    with closing(PostgresStore(standby.url)) as store:
        until(lambda: "a" in store.load("job"))  # a standby may be read
        hasty = PostgresStore(standby.url, deadline=1)
        with pytest.raises(StoreUnavailable, match="gave up after .* is a standby: name the primary"):
            hasty.commit("job", {"a": "2"})
        hasty.close()
        promoting = threading.Timer(1.0, lambda: (primary.stop(), standby.promote()))
        promoting.start()
        receipt = store.commit("job", {"a": "2"})
        promoting.join()
        assert receipt.retries > 0
        assert store.load("job")["a"].value == "2"
    assert all("password" not in record.getMessage() for record in caplog.records)


def test_fault_84_of_several_hosts_the_primary_is_used(cluster: tuple[PostgresServer, PostgresServer]) -> None:
    primary, standby = cluster
    url = f"postgresql://postgres@/postgres?host={standby.home},{primary.home}"
    with closing(PostgresStore(url)) as store:
        store.commit("job", {"a": "1"})
        primary.stop("fast")
        standby.promote()
        assert store.commit("job", {"a": "2"}).entries["a"].version == 2


def until(met: Callable[[], bool]) -> None:
    """Wait for the standby to follow, 30 s at most."""
    event = threading.Event()
    for _ in range(300):
        if met():
            return
        event.wait(0.1)
    raise AssertionError("it did not come to be")


# Row-level security


@pytest.mark.parametrize("table", ["checkpoint_schema", "checkpoint_namespaces", "checkpoint_entries"])
def test_fault_85_rows_hidden_by_a_policy_are_not_absent(
    postgres: PostgresStore, postgres_url: str, admin: Any, schema: str, role: str, table: str
) -> None:
    postgres.commit("job", {"a": "1"})
    grant(admin, schema, role)
    admin.execute(f"ALTER TABLE {schema}.{table} ENABLE ROW LEVEL SECURITY")
    with closing(PostgresStore(f"{postgres_url}&user={role}")) as store:
        with pytest.raises(StoreError, match=f"row-level security hides rows of {table}"):
            store.load("job")
        with pytest.raises(StoreError, match="row-level security"), Checkpointer("job", store) as cp:
            cp["a"] = {"at": 2}
        with pytest.raises(StoreError, match="row-level security"):
            store.commit("job", {"a": "2"})
    assert postgres.load("job")["a"].value == "1"


def test_fault_85_a_policy_that_shows_a_role_its_own_is_no_fault(
    postgres: PostgresStore, postgres_url: str, admin: Any, schema: str, role: str
) -> None:
    postgres.commit("job", {"a": "1"})
    postgres.commit("other", {"a": "1"})
    grant(admin, schema, role)
    admin.execute(f"ALTER TABLE {schema}.checkpoint_namespaces ENABLE ROW LEVEL SECURITY")
    admin.execute(f"CREATE POLICY own ON {schema}.checkpoint_namespaces TO {role} USING (state_key LIKE 'job%')")
    with closing(PostgresStore(f"{postgres_url}&user={role}")) as store:
        base = store.load("job")
        assert store.commit("job", {"a": "2"}, base).entries["a"].version == 2
        with pytest.raises(StoreError, match="row-level security"):
            store.load("other")
        with pytest.raises(StoreError, match="row-level security"):
            store.commit("other", {"a": "2"})
        store.commit("job 2", {"a": "1"}, {"a": None})
        assert store.load("job 2")["a"].value == "1"


@pytest.mark.parametrize("joined", [False, True])
def test_fault_85_under_such_a_policy_a_new_job_begins(
    postgres: PostgresStore, postgres_url: str, admin: Any, schema: str, role: str, *, joined: bool
) -> None:
    postgres.commit("other", {"a": "1"})
    grant(admin, schema, role)
    admin.execute(f"ALTER TABLE {schema}.checkpoint_namespaces ENABLE ROW LEVEL SECURITY")
    admin.execute(f"CREATE POLICY own ON {schema}.checkpoint_namespaces TO {role} USING (state_key LIKE 'job%')")
    with psycopg.connect(postgres_url.partition("schema=")[0].rstrip("?&"), user=role) as connection:
        store = (
            PostgresStore(connection=connection, schema=schema)
            if joined
            else PostgresStore(f"{postgres_url}&user={role}")
        )
        assert store.load("job") == {}
        assert admin.execute(f"SELECT state_key FROM {schema}.checkpoint_namespaces").fetchall() == [("other",)]
        for hidden in ("other", "another"):  # which it may not make either
            with pytest.raises(StoreError, match="row-level security hides rows of checkpoint_namespaces"):
                store.load(hidden)
        with Checkpointer("job", store) as cp:
            cp["a"] = {"at": 1}
        connection.commit()
        store.close()
    assert postgres.load("job").keys() >= {"a"}


# Roles, URLs, init


def test_fault_86_without_create_it_works_where_the_tables_are(
    postgres: PostgresStore, postgres_url: str, admin: Any, schema: str, role: str
) -> None:
    postgres.commit("job", {"a": "1"})
    grant(admin, schema, role)
    with closing(PostgresStore(f"{postgres_url}&user={role}")) as store:
        store.commit("job", {"a": "2"}, store.load("job"))
        assert [change.after for change in store.history("job")] == ["2", "1"]


def test_fault_86_without_create_and_tables_it_says_what_to_run(postgres_url: str, role: str) -> None:
    store = PostgresStore(f"{postgres_url}_new&user={role}")
    with pytest.raises(Unauthorized, match="`checkpoint init` once as a role that may.*`checkpoint init --print`"):
        store.commit("job", {"a": "1"})
    store.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://host/db?sslmod=require", "the unknown parameter 'sslmod'"),
        ("postgresql+psycopg2://me:hunter2@host/db", r"driver after a plus sign.*write postgresql://"),
        ("postgresql://host/db?deadline=soon", "deadline='soon' in the store's URL cannot be read"),
        ("postgresql://host/db?keep=-1", "keep must be 0 or more, not -1"),
        ("postgresql://host/db?keep=1&keep=2", "'keep' occurs twice"),
    ],
)
def test_fault_86_a_url_that_is_refused_says_what_to_write(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_init_makes_the_tables_and_prints_them(postgres_url: str, admin: Any, schema: str, role: str) -> None:
    printed = CliRunner().invoke(command, ["init", "--print", "--role", role, "--store", postgres_url])
    assert printed.exit_code == 0
    admin.execute(printed.output)
    with closing(PostgresStore(f"{postgres_url}&user={role}")) as store:
        store.commit("job", {"a": "1"})
        assert len(store.history("job")) == 1
    for _ in range(2):
        ready = CliRunner().invoke(command, ["init", "--store", postgres_url])
        assert (ready.exit_code, "are ready." in ready.output) == (0, True)
    assert admin.execute(f"SELECT count(*) FROM {schema}.checkpoint_entries").fetchone() == (1,)


def test_the_password_is_asked_at_each_connect(
    postgres: PostgresStore, postgres_url: str, admin: Any, schema: str
) -> None:
    postgres.commit("job", {"b": "1"})
    role = f"locked_{schema}"
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first-secret' SUPERUSER")
    asked = iter(["wrong-secret", "first-secret", "second-secret"])
    try:
        with closing(PostgresStore(f"{postgres_url}&user={role}", password=lambda: next(asked))) as store:
            with pytest.raises(Unauthorized, match="password authentication failed") as caught:
                store.load("job")
            assert "wrong-secret" not in str(caught.value) + repr(store)
            store.commit("job", {"a": "1"})
            admin.execute(f"ALTER ROLE {role} PASSWORD 'second-secret'")
            store.close()
            assert store.load("job")["a"].value == "1"
        store = PostgresStore(postgres_url, password=lambda: str(1 / 0))
        with pytest.raises(Unauthorized, match=r"gives the password failed \(ZeroDivisionError\)"):
            store.load("job")
    finally:
        admin.execute(f"DROP ROLE {role}")


# Tables of release 0.1


def test_tables_of_release_0_1_are_used_and_brought_up_to_date(postgres_url: str, admin: Any, schema: str) -> None:
    make_tables_of_0_1(admin, schema)
    with closing(PostgresStore(postgres_url)) as store:
        base = store.load("job")
        assert base["a"].value == "2"
        assert [(change.before, change.after) for change in store.history("job")] == [("1", "2"), (None, "1")]
        store.commit("job", {"a": "3"}, base)
        assert [change.after for change in store.history("job")] == ["3", "2", "1"]
        assert admin.execute(f"SELECT version FROM {schema}.checkpoint_schema").fetchone() == (1,)
        before = store.history("job")
        store.init()
        assert store.history("job") == before
        assert store.commit("job", {"a": "4"}).entries["a"].version == 4
    found = admin.execute(f"SELECT to_jsonb(s) FROM {schema}.checkpoint_schema s").fetchone()
    assert found == ({"version": 2, "readable_from": 2, "release": "0.2"},)


def make_tables_of_0_1(admin: Any, schema: str) -> None:
    """Make what release 0.1 left after two commits to one key."""
    digest = "sha256('{}')"
    admin.execute(f"""
        CREATE SCHEMA {schema};
        SET search_path TO {schema};
        CREATE TABLE checkpoint_schema (version integer NOT NULL);
        INSERT INTO checkpoint_schema VALUES (1);
        CREATE TABLE checkpoint_namespaces (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, digest bytea NOT NULL UNIQUE, state_key text NOT NULL,
            version bigint NOT NULL, token bytea NOT NULL);
        CREATE TABLE checkpoint_entries (
            namespace bigint NOT NULL, digest bytea NOT NULL, key text NOT NULL, value bytea NOT NULL,
            created_at text NOT NULL, updated_at text NOT NULL, sync_job_run_id text, version bigint NOT NULL,
            PRIMARY KEY (namespace, digest));
        CREATE TABLE checkpoint_commits (
            namespace bigint NOT NULL, version bigint NOT NULL, token bytea NOT NULL, at text NOT NULL, run_id text,
            host text NOT NULL, process bigint NOT NULL, PRIMARY KEY (namespace, version));
        CREATE TABLE checkpoint_changes (
            namespace bigint NOT NULL, version bigint NOT NULL, digest bytea NOT NULL, key text NOT NULL,
            before bytea, after bytea, PRIMARY KEY (namespace, version, digest));
        INSERT INTO checkpoint_namespaces (digest, state_key, version, token)
            VALUES ({digest.format("job")}, 'job', 2, 'token 2');
        INSERT INTO checkpoint_entries VALUES (1, {digest.format("a")}, 'a', '2', '2024-05-01T10:00:00.000Z',
            '2024-05-02T10:00:00.000Z', 'run-2', 2);
        INSERT INTO checkpoint_commits VALUES (1, 1, 'token 1', '2024-05-01T10:00:00.000Z', 'run-1', 'host', 1),
            (1, 2, 'token 2', '2024-05-02T10:00:00.000Z', 'run-2', 'host', 1);
        INSERT INTO checkpoint_changes VALUES (1, 1, {digest.format("a")}, 'a', NULL, '1'),
            (1, 2, {digest.format("a")}, 'a', '1', '2');
        RESET search_path""")


# Tables that are gone


@pytest.mark.parametrize("table", ["schema", "namespaces", "entries"])
def test_a_table_dropped_under_a_running_job_is_named(
    postgres: PostgresStore, postgres_url: str, admin: Any, schema: str, table: str
) -> None:
    base = postgres.commit("job", {"a": "1"}).entries
    admin.execute(f"DROP TABLE {schema}.checkpoint_{table}")
    fresh = PostgresStore(postgres_url)
    advice = ", or run `checkpoint init`, which creates an empty one"
    anew = "; to start over, drop the other checkpoint tables too, and run `checkpoint init`"
    said = (
        f'the PostgreSQL table "{schema}".checkpoint_{table} is missing with everything that it held: '
        f"restore it from a backup{advice if table == 'entries' else anew}"
    )
    for store in (fresh, postgres) if table != "schema" else (fresh,):  # which is read once
        for call in (store.load, lambda name: store.commit(name, {"a": "2"}, base)):  # noqa: B023 - called here
            with pytest.raises(StoreError) as caught:
                call("job")
            assert (type(caught.value), str(caught.value)) == (StoreError, said)
    if table != "entries":
        with pytest.raises(StoreError, match="is missing"):
            fresh.init()
        for each in ("schema", "namespaces", "entries", "history"):  # as the sentence says
            admin.execute(f"DROP TABLE IF EXISTS {schema}.checkpoint_{each}")
    fresh.init()
    assert fresh.load("job") == {}
    fresh.commit("job", {"a": "2"})
    assert postgres.load("job") == fresh.load("job") != base
    fresh.close()


def test_tables_that_are_all_gone_are_no_fresh_start(postgres: PostgresStore, admin: Any, schema: str) -> None:
    base = postgres.commit("job", {"a": "1"}).entries
    admin.execute(f"DROP SCHEMA {schema} CASCADE")
    for call in (
        lambda: postgres.load("job"),
        lambda: postgres.commit("job", {"a": "2"}, base),
        lambda: postgres.commit("job", {"a": "2"}),
        postgres.namespaces,
        lambda: postgres.history("job"),
    ):
        with pytest.raises(
            StoreError, match="all checkpoint tables in .* are gone since this store used them: restore"
        ):
            call()
    postgres.init()
    assert postgres.load("job") == {}
    with pytest.raises(Conflict):
        postgres.commit("job", {"a": "2"}, base)


def test_tables_of_others_are_not_ours(postgres_url: str, admin: Any, schema: str) -> None:
    admin.execute(f"CREATE SCHEMA {schema}")
    admin.execute(f"CREATE TABLE {schema}.checkpoint_blobs (thread_id text)")
    with closing(PostgresStore(postgres_url)) as store:
        assert store.load("job") == {}
        store.commit("job", {"a": "1"})
        assert store.load("job")["a"].value == "1"


# Deadlines


@pytest.fixture
def silent() -> Iterator[int]:
    """A port at which every address of 127.0.0.0/8 takes connections and says nothing."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        yield listener.getsockname()[1]


MANY = ",".join(f"127.0.0.{number}" for number in range(1, 41))


@pytest.mark.parametrize(
    "hosts", ["host=127.0.0.1", f"host={MANY}", f"hostaddr={MANY}"], ids=["1", "40", "40 addresses"]
)
@pytest.mark.parametrize("deadline", [0.3, 1.2])
def test_fault_91_silent_servers_end_with_the_deadline(silent: int, hosts: str, deadline: float) -> None:
    with closing(PostgresStore(f"{hosts} port={silent} user=me password=hunter2-hunter2", deadline=deadline)) as store:
        for call in (lambda: store.load("job"), lambda: store.commit("job", {"a": "1"})):
            began = monotonic()
            with pytest.raises(
                StoreUnavailable, match=r"gave up after 1 attempt in .* s: no connection was made in time"
            ) as caught:
                call()
            assert deadline <= monotonic() - began < deadline + 1
            shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
            assert "hunter2-hunter2" not in "".join(shown.format())


@pytest.mark.parametrize("deadline", [1.0, 2.4])
def test_fault_91_a_silent_server_is_left_no_connection(deadline: float) -> None:
    """The attempt ends after two seconds, by itself or under the deadline; no garbage is collected."""
    gc.disable()
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            store = PostgresStore(f"postgresql://u@127.0.0.1:{server.getsockname()[1]}/x?deadline={deadline}")
            with pytest.raises(StoreUnavailable):
                store.load("job")
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                while connection.recv(1_000):
                    pass
    finally:
        gc.enable()


def test_fault_91_a_slow_name_lookup_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, asked = threading.Event(), threading.Event()

    def look_up(*_: object, **__: object) -> NoReturn:
        asked.set()
        answered.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        with closing(PostgresStore("postgresql://me@db.example/app", deadline=0.5)) as store:
            began = monotonic()
            with pytest.raises(StoreUnavailable, match="no connection was made in time"):
                store.load("job")
            assert monotonic() - began < 1.5
            assert asked.is_set()
    finally:
        answered.set()


def test_hosts_of_the_environment_count_as_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "a.example,b.example")
    assert PostgresStore("user=me")._server._params["target_session_attrs"] == "read-write"
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "any")
    assert "target_session_attrs" not in PostgresStore("user=me")._server._params
