"""The contract of `Store`, kept by every store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from freezegun import freeze_time

from checkpoint import Entry
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.objects import ObjectStore
from checkpoint.stores.server import ServerStore
from checkpoint.stores.sqlite import SQLiteStore
from checkpoint.testing import ApiServer, StoreContract

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from checkpoint import Store
    from checkpoint.stores.postgres import PostgresStore
    from checkpoint.stores.truto import TrutoStore


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SQLiteStore]:
        self.path = tmp_path / "state.db"
        store = SQLiteStore(self.path)
        yield store
        store.close()

    def reopen(self, store: Store) -> SQLiteStore:
        store.close()
        return SQLiteStore(self.path)


class TestObjectStore(StoreContract):
    long_state_keys = False

    @pytest.fixture
    def store(self, objects: ObjectStore) -> ObjectStore:
        return objects

    def reopen(self, store: Store) -> ObjectStore:
        store.close()
        return ObjectStore(repr(store).split("'")[1])


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def store(self, postgres: PostgresStore, postgres_url: str) -> PostgresStore:
        self.url = postgres_url
        return postgres

    def reopen(self, store: Store) -> PostgresStore:
        store.close()
        return type(store)(self.url)


class TestServerStore(StoreContract):
    by = None  # the token of the test's server has no name

    @pytest.fixture
    def store(self, server: ServerStore) -> ServerStore:
        return server

    def reopen(self, store: Store) -> ServerStore:
        store.close()
        return store


class TestServerStoreOverPostgres(TestServerStore):
    @pytest.fixture
    def store(self, postgres: PostgresStore) -> Iterator[ServerStore]:
        with ApiServer(postgres) as api:
            store = ServerStore(api.url, api.token)
            yield store
            store.close()


class TestServerStoreOverObjects(TestServerStore):
    long_state_keys = False

    @pytest.fixture
    def store(self, objects: ObjectStore) -> Iterator[ServerStore]:
        with ApiServer(objects) as api:
            store = ServerStore(api.url, api.token)
            store.load("job")  # which tells that there is no history
            yield store
            store.close()


class TestTrutoStore(StoreContract):
    atomic = compares_and_swaps = versions = records_runs = False
    many = 200  # a commit of more would wait for the rate of a token

    @pytest.fixture
    def store(self, truto: TrutoStore) -> TrutoStore:
        return truto


class TestTrutoStoreOverPages(TestTrutoStore):
    """A list of several pages, in no order, with stale duplicates; writes that echo nothing."""

    @pytest.fixture
    def store(self, api: ApiServer, truto: TrutoStore) -> TrutoStore:
        api.set(
            page_size=50, empty_page=True, shuffled=True, duplicates=True, unknown_namespace=404, delete_missing=200
        )
        return truto


@pytest.mark.parametrize(
    ("run_id", "said"),
    [
        (5, "run_id must be a str, not int"),
        ("a\0b", "run_id must not hold a NUL"),
        ("\ud800", "run_id must not hold lone surrogates"),
    ],
)
def test_a_run_id_that_is_no_text_is_refused(every_store: Store, run_id: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        every_store.commit("job", {"a": "1"}, run_id=run_id)
    assert str(caught.value) == said
    assert every_store.load("job") == {}


def test_entries_tell_the_time_of_each_write(store: Store) -> None:
    with freeze_time("2024-05-01T10:00:00.123456Z") as clock:
        store.commit("job", {"a": "1", "b": "1"})
        clock.move_to("2024-05-02T10:00:00Z")
        store.commit("job", {"a": "2"})
    first, second = "2024-05-01T10:00:00.123Z", "2024-05-02T10:00:00.000Z"
    times = {key: (entry.created_at, entry.updated_at) for key, entry in store.load("job").items()}
    assert times == {"a": (first, second), "b": (first, first)}


@pytest.mark.parametrize("store", ["memory", "objects", "postgres", "sqlite"], indirect=True)
def test_versions_of_a_namespace_come_from_one_counter(store: Store) -> None:
    with freeze_time("2024-05-01T10:00:00Z"):
        store.commit("job", {"a": "1", "b": "1"}, run_id="run-1")
        store.commit("other", {"a": "1"})
        store.commit("job", {"b": None})
        store.commit("job", {})
        store.commit("job", {"b": "2"}, run_id="run-2")
    now = "2024-05-01T10:00:00.000Z"
    assert store.load("job") == {
        "a": Entry("a", "1", now, now, "run-1", 1),
        "b": Entry("b", "2", now, now, "run-2", 3),
    }
    assert store.load("other") == {"a": Entry("a", "1", now, now, None, 1)}


class NeverMatching(MemoryStore):
    """A store whose versions are others each time they are looked at."""

    count = 0

    def load(self, state_key):
        self.count += 1
        entries = super().load(state_key)
        return {key: entry._replace(version=1_000 * self.count + entry.version) for key, entry in entries.items()}


class Renewing(MemoryStore):
    """A store that forgets when an entry was created."""

    def load(self, state_key):
        return {key: entry._replace(created_at=entry.updated_at) for key, entry in super().load(state_key).items()}

    def commit(self, *args, **options):
        receipt = super().commit(*args, **options)
        entries = {key: entry._replace(created_at=entry.updated_at) for key, entry in receipt.entries.items()}
        return receipt._replace(entries=entries)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (NeverMatching, StoreContract.test_what_was_written_is_loaded),
        (NeverMatching, StoreContract.test_no_update_of_several_threads_is_lost),
        (Renewing, StoreContract.test_an_update_keeps_the_time_of_creation),
    ],
)
def test_the_contract_finds_a_broken_store_and_ends(broken, test):
    with pytest.raises(AssertionError):
        test(StoreContract(), broken())
    test(StoreContract(), MemoryStore())
