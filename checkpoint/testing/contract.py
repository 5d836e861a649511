"""The contract of `Store`, as tests to inherit."""
# ruff: noqa: D102, S101 - these are tests, and a test's name says what it tests

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from time import monotonic
from unittest import SkipTest

from checkpoint.entries import Entry
from checkpoint.errors import Conflict
from checkpoint.stores.base import Store
from checkpoint.testing.contract_parts import BAD_NAMES, NAMES, TIME, VALUES, raised, values_of
from checkpoint.testing.contract_protocols import ProtocolsContract


class StoreContract(ProtocolsContract):
    """The contract of `Store` as tests: inherit it, and add a fixture `store` that returns an empty store.

        class TestMyStore(StoreContract):
            compares_and_swaps = False

            @pytest.fixture
            def store(self):
                return MyStore()

    The class attributes say what the store promises beyond the contract, and the limits of what tests may write.
    """

    compares_and_swaps = True
    """If two writers know the same entry and both write it, one of them gets a `Conflict`."""
    versions = True
    """Entries have versions."""
    records_runs = True
    """Entries keep the `run_id` of the commit that wrote them."""
    many = 1_000
    """The number of keys in a large commit."""
    long_state_keys = True
    """A `state_key` may have thousands of characters."""

    def test_a_store_is_a_store(self, store: Store) -> None:
        assert isinstance(store, Store)

    def test_an_unknown_namespace_is_empty(self, store: Store) -> None:
        assert store.load("job") == {}

    def test_what_was_written_is_loaded(self, store: Store) -> None:
        receipt = store.commit("job", {"a": "1", "b": "2"})
        assert values_of(store) == {"a": "1", "b": "2"}
        assert receipt.entries == store.load("job")
        assert [entry.key for entry in receipt.entries.values()] == ["a", "b"]

    def test_keys_and_values_may_be_of_a_class_derived_from_str(self, store: Store) -> None:
        class Key(str, Enum):
            A = "a"

        class Value(str):
            __slots__ = ()

        base = store.commit("job", {Key.A: Value("1")}).entries
        assert values_of(store) == {"a": "1"}
        store.commit("job", {Key.A: Value("2")}, {Key.A: base["a"]}, run_id=Value("run-1"))
        assert values_of(store) == {"a": "2"}
        store.commit("job", {Key.A: None})
        assert store.load("job") == {}

    def test_an_entry_tells_when_it_was_written_and_by_which_run(self, store: Store) -> None:
        entry = store.commit("job", {"a": "1"}, run_id="run-1").entries["a"]
        assert entry.created_at is None or TIME.fullmatch(entry.created_at)
        assert entry.updated_at == entry.created_at
        assert entry.sync_job_run_id == ("run-1" if self.records_runs else None)
        assert store.commit("job", {"a": "2"}).entries["a"].sync_job_run_id is None

    def test_an_update_keeps_the_time_of_creation(self, store: Store) -> None:
        first = last = store.commit("job", {"a": "1"}).entries["a"]
        assert (first.created_at is None) == (first.updated_at is None)
        until = monotonic() + 5
        # Until the store's clock shows another time: within one tick a new `created_at` would equal the old one.
        while first.updated_at is not None and last.updated_at == first.updated_at:
            assert monotonic() < until, "updated_at stays what it was for 5 s of updates"
            receipt = store.commit("job", {"a": "2"}, {"a": last})
            assert receipt.entries == store.load("job")
            last = receipt.entries["a"]
            assert last.value == "2"
        assert last.created_at == first.created_at
        assert (last.updated_at or "") >= (first.updated_at or "")

    def test_only_the_changed_keys_are_touched(self, store: Store) -> None:
        before = store.commit("job", {"a": "1", "b": "1", "c": "1"}, run_id="run-1").entries
        receipt = store.commit("job", {"b": "2", "c": None}, before, run_id="run-2")
        assert store.load("job") == {"a": before["a"], "b": receipt.entries["b"]}
        assert list(receipt.entries) == ["b"]

    def test_none_deletes_and_a_missing_key_is_no_error(self, store: Store) -> None:
        store.commit("job", {"a": "1", "b": "1"})
        assert store.commit("job", {"a": None, "missing": None}).entries == {}
        assert store.commit("unknown", {"missing": None}).entries == {}
        assert values_of(store) == {"b": "1"}
        assert values_of(store, "unknown") == {}

    def test_a_deleted_key_can_be_written_again(self, store: Store) -> None:
        store.commit("job", {"a": "1"})
        store.commit("job", {"a": None})
        store.commit("job", {"a": "2"}, {"a": None})
        assert values_of(store) == {"a": "2"}

    def test_an_empty_commit_changes_nothing(self, store: Store) -> None:
        before = store.commit("job", {"a": "1"}).entries
        assert store.commit("job", {}).entries == {}
        assert store.commit("job", {}, before).entries == {}
        assert store.load("job") == before
        assert store.commit("unknown", {}).entries == {}

    def test_a_loaded_namespace_is_the_callers_own(self, store: Store) -> None:
        store.commit("job", {"a": "1"})
        store.load("job").clear()
        assert values_of(store) == {"a": "1"}

    def test_namespaces_are_separate(self, store: Store) -> None:
        first = store.commit("job", {"a": "1"}).entries
        store.commit("job-2", {"a": "2"}, {"a": None})
        store.commit("JOB", {"a": "3"}, {"a": None})
        store.commit("job-2", {"a": None})
        assert store.load("job") == first
        assert values_of(store, "job-2") == {}
        assert values_of(store, "JOB") == {"a": "3"}

    def test_any_text_is_a_key_and_none_is_taken_for_another(self, store: Store) -> None:
        written = {name: f"value {number}" for number, name in enumerate(NAMES)}
        store.commit("job", written)
        assert values_of(store) == written
        loaded = store.load("job")
        updated = {name: value + ", updated" for name, value in written.items()}
        store.commit("job", updated, loaded)
        assert values_of(store) == updated
        left = dict(list(updated.items())[::2])
        store.commit("job", {name: None for name in updated if name not in left}, store.load("job"))
        assert values_of(store) == left

    def test_any_text_is_a_state_key_and_none_is_taken_for_another(self, store: Store) -> None:
        names = [name for name in NAMES if self.long_state_keys or len(name) < 100]
        for number, name in enumerate(names):
            store.commit(name, {"a": f"value {number}"}, {"a": None})
        for number, name in enumerate(names):
            assert values_of(store, name) == {"a": f"value {number}"}

    def test_any_text_is_a_value(self, store: Store) -> None:
        written = {f"key {number}": value for number, value in enumerate((*VALUES, "x" * self.large))}
        receipt = store.commit("job", written)
        assert {key: entry.value for key, entry in receipt.entries.items()} == written
        assert values_of(store) == written

    def test_bad_names_are_refused_and_nothing_is_written(self, store: Store) -> None:
        before = store.commit("job", {"good": "1"}).entries
        for name in BAD_NAMES:
            kind = ValueError if isinstance(name, str) else TypeError
            raised(kind, store.load, name)
            raised(kind, store.commit, name, {"good": "2"})
            raised(kind, store.commit, name, {})
            raised(kind, store.commit, "job", {name: "2"})
            raised(kind, store.commit, "job", {name: None})
            raised(kind, store.commit, "job", {"good": "2", "other": "2", name: "2"})
        assert store.load("job") == before

    def test_bad_values_are_refused_and_nothing_is_written(self, store: Store) -> None:
        before = store.commit("job", {"good": "1"}).entries
        for value in (1, 1.5, True, b"1", {"a": 1}, ["1"], "\ud800"):
            kind = ValueError if isinstance(value, str) else TypeError
            raised(kind, store.commit, "job", {"bad": value})
            raised(kind, store.commit, "job", {"good": "2", "other": "2", "bad": value})
        assert store.load("job") == before

    def test_what_is_stored_as_expected_is_replaced(self, store: Store) -> None:
        base = store.commit("job", {"a": "1", "b": "1"}).entries
        base = store.commit("job", {"a": "2", "new": "1"}, {**base, "new": None, "absent": None}).entries
        store.commit("job", {"a": None, "new": "2"}, base)
        assert values_of(store) == {"b": "1", "new": "2"}

    def test_a_key_changed_elsewhere_conflicts_and_writes_nothing(self, store: Store) -> None:
        base = store.commit("job", {"a": "1", "b": "1"}).entries
        theirs = store.commit("job", {"b": "theirs"}).entries["b"]
        after = store.load("job")
        for ours in ("ours", None):
            conflict = raised(Conflict, store.commit, "job", {"a": "ours", "b": ours, "c": "ours"}, base)
            assert conflict.args == ("job", "b", base["b"], theirs)
        assert store.load("job") == after

    def test_a_key_created_elsewhere_is_a_conflict(self, store: Store) -> None:
        theirs = store.commit("job", {"a": "theirs"}).entries["a"]
        conflict = raised(Conflict, store.commit, "job", {"a": "ours", "b": "ours"}, {"a": None, "b": None})
        assert conflict.args == ("job", "a", None, theirs)
        assert store.load("job") == {"a": theirs}

    def test_a_key_deleted_elsewhere_is_a_conflict(self, store: Store) -> None:
        base = store.commit("job", {"a": "1"}).entries
        store.commit("job", {"a": None})
        conflict = raised(Conflict, store.commit, "job", {"a": "ours", "b": "ours"}, base)
        assert conflict.args == ("job", "a", base["a"], None)
        assert store.load("job") == {}

    def test_a_key_that_is_not_changed_is_compared_too(self, store: Store) -> None:
        base = store.commit("job", {"guard": "1"}).entries
        store.commit("job", {"a": "1"}, {**base, "absent": None})
        theirs = store.commit("job", {"guard": "2"}).entries["guard"]
        conflict = raised(Conflict, store.commit, "job", {"a": "2"}, base)
        assert conflict.args == ("job", "guard", base["guard"], theirs)
        assert raised(Conflict, store.commit, "job", {}, base).args == conflict.args
        assert raised(Conflict, store.commit, "job", {"a": "2"}, {"guard": None}).found == theirs
        assert values_of(store) == {"a": "1", "guard": "2"}

    def test_a_key_that_is_not_named_is_not_checked(self, store: Store) -> None:
        base = store.commit("job", {"a": "1", "b": "1"}).entries
        store.commit("job", {"a": "theirs", "b": "theirs"})
        store.commit("job", {"a": "ours"})
        store.commit("job", {"a": "ours again"}, {"c": None})
        assert values_of(store) == {"a": "ours again", "b": "theirs"}
        assert raised(Conflict, store.commit, "job", {"b": "ours"}, base).key in {"a", "b"}

    def test_what_is_stored_already_conflicts_with_versions(self, store: Store) -> None:
        base = store.commit("job", {"a": "1", "b": "1"}).entries
        store.commit("job", {"a": "same", "b": None, "c": "same"})
        after = store.load("job")
        if not self.versions:
            store.commit("job", {"a": "same", "b": None, "c": "same"}, {**base, "c": None})
            assert values_of(store) == {"a": "same", "c": "same"}
            return
        for key, value, known in (("a", "same", base["a"]), ("b", None, base["b"]), ("c", "same", None)):
            conflict = raised(Conflict, store.commit, "job", {key: value}, {key: known})
            assert conflict.args == ("job", key, known, after.get(key))
        assert store.load("job") == after

    def test_an_entry_of_another_time_is_another_one(self, store: Store) -> None:
        if not self.versions:
            raise SkipTest("this store keeps no versions")
        entry = store.commit("job", {"a": "1"}, run_id="run-1").entries["a"]
        # After a restored backup, versions are used again: the same version and value, written at another time.
        restored = entry._replace(updated_at="2020-01-01T00:00:00.000Z")
        for value in ("1", "2", None):
            conflict = raised(Conflict, store.commit, "job", {"a": value}, {"a": restored})
            assert conflict.args == ("job", "a", restored, entry)
        assert conflict.found is not None
        assert conflict.found.sync_job_run_id == ("run-1" if self.records_runs else None)
        assert store.load("job") == {"a": entry}

    def test_an_entry_without_a_version_is_compared_by_value(self, store: Store) -> None:
        store.commit("job", {"a": "1"})
        store.commit("job", {"a": "2"}, {"a": Entry("a", "1")})
        raised(Conflict, store.commit, "job", {"a": "3"}, {"a": Entry("a", "1")})
        assert values_of(store) == {"a": "2"}

    def test_versions_grow_and_are_never_used_again(self, store: Store) -> None:
        if not self.versions:
            assert store.commit("job", {"a": "1"}).entries["a"].version is None
            raise SkipTest("this store keeps no versions")
        seen = [0]
        for changes in ({"a": "1", "b": "1"}, {"a": "1"}, {"a": None}, {"a": "1"}, {"a": None, "b": None}, {"b": "1"}):
            receipt = store.commit("job", changes)
            for version in {entry.version for entry in receipt.entries.values()}:
                assert version is not None
                seen.append(version)
        assert seen == sorted(set(seen))
        assert len(seen) == 5

    def test_a_value_that_was_changed_and_changed_back_is_a_conflict(self, store: Store) -> None:
        if not self.versions:
            raise SkipTest("this store keeps no versions")
        base = store.commit("job", {"a": "1", "b": "1"}).entries
        store.commit("job", {"a": "2", "b": None})
        store.commit("job", {"a": "1", "b": "1"})
        for key in base:
            raised(Conflict, store.commit, "job", {key: "ours"}, {key: base[key]})

    def test_many_keys_in_one_commit(self, store: Store) -> None:
        written = {f"key {number}": str(number) for number in range(self.many)}
        base = store.commit("job", written, dict.fromkeys(written)).entries
        assert store.load("job") == base
        last = f"key {self.many - 1}"
        theirs = store.commit("job", {last: "theirs"}).entries[last]
        conflict = raised(Conflict, store.commit, "job", dict.fromkeys(written, "ours"), base)
        assert conflict.args == ("job", last, base[last], theirs)
        assert store.load("job") == {**base, last: theirs}
        store.commit("job", dict.fromkeys(written), {**base, last: theirs})
        assert store.load("job") == {}

    def test_a_commit_is_seen_as_a_whole(self, store: Store) -> None:
        if not self.atomic:
            raise SkipTest("this store writes key by key")
        keys = [f"key {number}" for number in range(20)]

        def write() -> None:
            for number in range(50):
                store.commit("job", dict.fromkeys(keys, str(number)))

        with ThreadPoolExecutor() as pool:
            writing = pool.submit(write)
            while not writing.done():
                assert len({entry.value for entry in store.load("job").values()}) <= 1
            writing.result()

    def test_no_update_of_several_threads_is_lost(self, store: Store) -> None:
        if not self.compares_and_swaps:
            raise SkipTest("this store detects other writers, and cannot prevent them")
        workers, rounds = 4, 10

        def add_one() -> None:
            # Each conflict means that another worker has added 1, so their number is limited.
            for _ in range(workers * rounds):
                entry = store.load("job").get("count")
                with suppress(Conflict):
                    store.commit("job", {"count": str(int(entry.value) + 1 if entry else 1)}, {"count": entry})
                    return
            raise AssertionError("a commit conflicts with what was loaded, though nobody has written since")

        def work(_worker: int) -> None:
            for _ in range(rounds):
                add_one()

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
        assert store.load("job")["count"].value == str(workers * rounds)

    def test_the_next_process_finds_the_state(self, store: Store) -> None:
        entries = store.commit("job", {"a": "1"}, run_id="run-1").entries
        again = self.reopen(store)
        assert again.load("job") == entries
        assert again.commit("job", {"a": "2"}, entries).entries == again.load("job")
        again.close()

    def test_closing_twice_is_no_error(self, store: Store) -> None:
        store.commit("job", {"a": "1"})
        store.close()
        store.close()
