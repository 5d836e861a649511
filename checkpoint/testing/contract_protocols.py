"""The part of the store contract about abilities that only some stores have; see `checkpoint.testing.StoreContract`."""
# ruff: noqa: D102, S101 - these are tests, and a test's name says what it tests

from __future__ import annotations

from unittest import SkipTest

from checkpoint.stores.base import Atomic, ListsNamespaces, ReadsKeys, Store
from checkpoint.testing.contract_history import HistoryContract
from checkpoint.testing.contract_parts import BAD_NAMES, NAMES, raised


class ProtocolsContract(HistoryContract):
    """The contracts of `ReadsKeys`, `Atomic` and `ListsNamespaces` as tests, each skipped for other stores."""

    atomic = True
    """Readers see all keys of a commit or none. The store must then be an `Atomic`."""

    def test_some_keys_are_read(self, store: Store) -> None:
        if not isinstance(store, ReadsKeys):
            raise SkipTest("this store reads whole namespaces")
        assert store.read("job", ["a"]) == {}
        names = [name for name in NAMES if name != "a"]
        entries = store.commit("job", dict.fromkeys(["a", *names], "1"), run_id="run-1").entries
        assert store.read("job", ["a", "missing"]) == {"a": entries["a"]}
        assert store.read("job", iter(names)) == {name: entries[name] for name in names}
        assert store.read("job", ["a", "a"]) == {"a": entries["a"]}
        assert store.read("job", []) == store.read("other", ["a"]) == {}
        store.commit("job", {"a": None})
        assert store.read("job", ["a"]) == {}
        for name in BAD_NAMES:
            kind = ValueError if isinstance(name, str) else TypeError
            raised(kind, store.read, name, ["a"])
            raised(kind, store.read, "job", ["a", name])

    def test_the_store_says_itself_that_it_is_atomic(self, store: Store) -> None:
        assert getattr(store, "atomic", None) is (True if self.atomic else None)
        assert isinstance(store, Atomic) == self.atomic

    def test_the_namespaces_that_hold_a_key_are_listed(self, store: Store) -> None:
        if not isinstance(store, ListsNamespaces):
            raise SkipTest("this store does not list its namespaces")
        assert store.namespaces() == []
        for state_key in ("job b", "job/a", "Job", "é", "日本", "job", "emptied"):
            store.commit(state_key, {"a": "1", "b": "1"})
        store.commit("emptied", {"a": None, "b": None})
        store.commit("job", {"a": None})
        store.commit("never filled", {"a": None})
        store.commit("nothing changed", {})
        assert store.load("only loaded") == {}
        assert store.namespaces() == ["Job", "job", "job b", "job/a", "é", "日本"]
        store.commit("emptied", {"a": "2"})
        store.commit("job", {"b": None})
        assert store.namespaces() == ["Job", "emptied", "job b", "job/a", "é", "日本"]
