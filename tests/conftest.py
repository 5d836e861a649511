"""Every store, and the API's server, for the tests that must hold whatever the state is kept in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.sqlite import SQLiteStore
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import ApiServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from checkpoint import Store

# `pytest --hypothesis-profile=long` looks longer.
settings.register_profile("short", deadline=None, database=None)
settings.register_profile("long", settings.get_profile("short"), max_examples=20_000)
settings.load_profile("short")


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def truto(api: ApiServer) -> Iterator[TrutoStore]:
    store = TrutoStore(api.url, api.token, timeout=5, deadline=10)
    yield store
    store.close()


@pytest.fixture(params=["memory", "sqlite", "truto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "truto":
        yield request.getfixturevalue("truto")
        return
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "state.db")
    yield store
    store.close()
