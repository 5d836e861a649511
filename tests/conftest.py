"""Every store, and the API's server, for the tests that must hold whatever the state is kept in."""

from __future__ import annotations

import os
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest
from postgres_server import PostgresServer

from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.sqlite import SQLiteStore
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import ApiServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from checkpoint import Store
    from checkpoint.stores.postgres import PostgresStore


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def truto(api: ApiServer) -> Iterator[TrutoStore]:
    store = TrutoStore(api.url, api.token, timeout=5, deadline=10)
    yield store
    store.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server of this run; where $CHECKPOINT_TEST_POSTGRES names another, tests that stop one are skipped."""
    if reason := PostgresServer.missing():
        pytest.skip(reason)
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a PostgreSQL database, with a schema that no other test uses; it does not exist yet."""
    url = os.environ.get("CHECKPOINT_TEST_POSTGRES") or request.getfixturevalue("postgres_server").url
    psycopg = pytest.importorskip("psycopg")
    schema = f"checkpoint_{token_hex(6)}"
    yield f"{url}{'&' if '?' in url else '?'}schema={schema}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[PostgresStore]:
    from checkpoint.stores.postgres import PostgresStore

    store = PostgresStore(postgres_url)
    yield store
    store.close()


@pytest.fixture(params=["memory", "sqlite", "postgres", "truto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param in {"postgres", "truto"}:
        yield request.getfixturevalue(request.param)
        return
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "state.db")
    yield store
    store.close()
