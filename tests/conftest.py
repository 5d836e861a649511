"""Every store, and the API's server, for the tests that must hold whatever the state is kept in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, Request, build_opener

import freezegun
import pytest
from hypothesis import settings
from postgres_server import PostgresServer

from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.server import ServerStore
from checkpoint.stores.sqlite import SQLiteStore
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import ApiServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checkpoint import Store
    from checkpoint.stores.postgres import PostgresStore

# `pytest --hypothesis-profile=long` looks longer.
settings.register_profile("short", deadline=None, database=None)
settings.register_profile("long", settings.get_profile("short"), max_examples=20_000)
settings.load_profile("short")

# psycopg waits for connections by the clock, and with a frozen one for ever. The others have hundreds of modules, which
# each freezing would look through; none calls ours.
MANY = ("numpy", "opentelemetry", "pandas", "playwright", "polars", "pygments", "schemathesis", "sqlalchemy")
freezegun.configure(extend_ignore_list=["psycopg", *MANY])

# Its compiled part keeps the class of the first time that it makes, and would refuse every other after a frozen one.
with suppress(ImportError):
    from obstore.store import MemoryStore as Objects

    objects = Objects()
    objects.put("first", b"")
    objects.head("first")["last_modified"]

# Screens are compared without colors, in this process and in those that it starts.
os.environ.pop("FORCE_COLOR", None)

# A shell's job in the background ignores SIGINT, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def truto(api: ApiServer) -> Iterator[TrutoStore]:
    store = TrutoStore(api.url, api.token, timeout=5, deadline=10)
    yield store
    store.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerStore]:
    """A store behind our own server, over a SQLite file."""
    behind = SQLiteStore(tmp_path / "behind.db")
    with ApiServer(behind) as api:
        store = ServerStore(api.url, api.token, timeout=5, deadline=10)
        yield store
        store.close()
    behind.close()


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store in memory, which the command takes where nothing else is given; 80 columns wide."""
    url = f"memory://{token_hex(8)}"
    for name in ("TRUTO_API_TOKEN", "VISUAL", "EDITOR", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CHECKPOINT_STORE", url)
    monkeypatch.setenv("COLUMNS", "80")
    return url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Yield the URL of a process that serves S3."""
    for module in ("obstore", "moto", "flask", "flask_cors"):
        pytest.importorskip(module)
    script = Path(__file__).with_name("s3_server.py")
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.stdin.close()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a new, empty bucket, reached by the environment's variables."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    variables = {"ENDPOINT_URL": s3_server, "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    for name, value in {**variables, "ACCESS_KEY_ID": "test-key-id", "SECRET_ACCESS_KEY": "test-secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    name = f"bucket-{token_hex(8)}"
    put = Request(f"{s3_server}/{name}", method="PUT")
    build_opener(ProxyHandler({})).open(put, timeout=30).close()
    return f"s3://{name}"


@pytest.fixture
def objects(s3: str) -> Iterator[Store]:
    from checkpoint import ObjectStore

    store = ObjectStore(f"{s3}/some/prefix")
    yield store
    store.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server of this run; where $CHECKPOINT_TEST_POSTGRES names another, tests that stop one are skipped."""
    if os.environ.get("CHECKPOINT_TEST_POSTGRES"):
        pytest.skip("CHECKPOINT_TEST_POSTGRES names a server that is not this test's to stop")
    if reason := PostgresServer.missing():
        pytest.skip(reason)
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a PostgreSQL database, with a schema that no other test uses; it does not exist yet."""
    psycopg = pytest.importorskip("psycopg")
    url = os.environ.get("CHECKPOINT_TEST_POSTGRES") or request.getfixturevalue("postgres_server").url
    schema = f"checkpoint_{token_hex(6)}"
    yield f"{url}{'&' if '?' in url else '?'}schema={schema}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The connection string of an empty database."""
    import psycopg

    server = postgres_url.partition("schema=")[0].rstrip("?&")
    name = f"checkpoint_{token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield psycopg.conninfo.make_conninfo(server, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[PostgresStore]:
    from checkpoint.stores.postgres import PostgresStore

    store = PostgresStore(postgres_url)
    store.load("job")  # connected before a test freezes the clocks by which psycopg gives up
    yield store
    store.close()


def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param in {"objects", "postgres", "server", "truto"}:
        yield request.getfixturevalue(request.param)
        return
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "state.db")
    yield store
    store.close()


@pytest.fixture(params=["memory", "server", "sqlite", "truto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of each sort: in memory, in a file, behind our own server, and one that writes key by key."""
    yield from opened(request, tmp_path)


@pytest.fixture(params=["memory", "objects", "postgres", "server", "sqlite", "truto"])
def every_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Every store."""
    yield from opened(request, tmp_path)


@pytest.fixture(autouse=True)
def unrecorded(request, monkeypatch):
    """Do not record runs, where a test does not ask for it: most tests count what a store holds and each commit."""
    if "recorded" not in request.fixturenames:
        from checkpoint import Checkpointer

        monkeypatch.setitem(Checkpointer.__init__.__kwdefaults__, "record_run", False)


@pytest.fixture
def recorded():
    """Record runs, as outside of these tests."""
