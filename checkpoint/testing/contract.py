"""The contract of `Store` as tests to inherit."""
# ruff: noqa: D102, S101 - what a test tests its name says, and what follows is tests

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import SkipTest

from checkpoint.entries import Change, Entry
from checkpoint.errors import Conflict
from checkpoint.stores.base import KEEP, Atomic, KeepsHistory, ListsNamespaces, Store, host

if TYPE_CHECKING:
    from collections.abc import Callable


class StoreContract:
    """The contract of `Store` as tests: inherit it, and give it a fixture `store` that returns an empty one.

        class TestMyStore(StoreContract):
            compares_and_swaps = False

            @pytest.fixture
            def store(self):
                return MyStore()

    The class attributes say what a store promises beyond the contract, and how much of it a test may ask for.
    """

    atomic = True
    """All keys of a commit are seen at once, or none: the store says so itself (`Atomic`)."""
    compares_and_swaps = True
    """Of two writers that know the same entry one gets a `Conflict`."""
    versions = True
    """Entries have versions."""
    records_runs = True
    """Entries keep the `run_id` of the commit that wrote them."""
    many = 1_000
    """Keys of a large commit."""
    large = 1_000_000
    """Characters of a large value."""
    long_state_keys = True
    """A state_key may have thousands of characters."""
    keep = KEEP
    """Commits of a namespace that the store remembers, where it keeps history."""

    def reopen(self, store: Store) -> Store:
        """Return the state of a store as the next process finds it; override it where that is another object."""
        store.close()
        return store

    def test_a_store_is_a_store(self, store: Store) -> None:
        assert isinstance(store, Store)

    def test_an_unknown_namespace_is_empty(self, store: Store) -> None:
        assert store.load("job") == {}

    def test_what_was_written_is_loaded(self, store: Store) -> None:
        receipt = store.commit("job", {"a": "1", "b": "2"})
        assert _values(store) == {"a": "1", "b": "2"}
        assert receipt.entries == store.load("job")
        assert [entry.key for entry in receipt.entries.values()] == ["a", "b"]

    def test_keys_and_values_may_be_of_a_class_derived_from_str(self, store: Store) -> None:
        class Key(str, Enum):
            A = "a"

        class Value(str):
            __slots__ = ()

        base = store.commit("job", {Key.A: Value("1")}).entries
        assert _values(store) == {"a": "1"}
        store.commit("job", {Key.A: Value("2")}, {Key.A: base["a"]}, run_id=Value("run-1"))
        assert _values(store) == {"a": "2"}
        store.commit("job", {Key.A: None})
        assert store.load("job") == {}

    def test_an_entry_tells_when_it_was_written_and_by_which_run(self, store: Store) -> None:
        entry = store.commit("job", {"a": "1"}, run_id="run-1").entries["a"]
        assert entry.created_at is None or _TIME.fullmatch(entry.created_at)
        assert entry.updated_at == entry.created_at
        assert entry.sync_job_run_id == ("run-1" if self.records_runs else None)
        assert store.commit("job", {"a": "2"}).entries["a"].sync_job_run_id is None

    def test_an_update_keeps_the_time_of_creation(self, store: Store) -> None:
        first = store.commit("job", {"a": "1"}).entries["a"]
        receipt = store.commit("job", {"a": "2"}, {"a": first})
        assert receipt.entries == store.load("job")
        assert receipt.entries["a"].value == "2"
        assert receipt.entries["a"].created_at == first.created_at
        assert (receipt.entries["a"].updated_at or "") >= (first.updated_at or "")

    def test_only_the_changed_keys_are_touched(self, store: Store) -> None:
        before = store.commit("job", {"a": "1", "b": "1", "c": "1"}, run_id="run-1").entries
        receipt = store.commit("job", {"b": "2", "c": None}, before, run_id="run-2")
        assert store.load("job") == {"a": before["a"], "b": receipt.entries["b"]}
        assert list(receipt.entries) == ["b"]

    def test_none_deletes_and_a_missing_key_is_no_error(self, store: Store) -> None:
        store.commit("job", {"a": "1", "b": "1"})
        assert store.commit("job", {"a": None, "missing": None}).entries == {}
        assert store.commit("unknown", {"missing": None}).entries == {}
        assert _values(store) == {"b": "1"}
        assert _values(store, "unknown") == {}

    def test_a_deleted_key_can_be_written_again(self, store: Store) -> None:
        store.commit("job", {"a": "1"})
        store.commit("job", {"a": None})
        store.commit("job", {"a": "2"}, {"a": None})
        assert _values(store) == {"a": "2"}

    def test_an_empty_commit_changes_nothing(self, store: Store) -> None:
        before = store.commit("job", {"a": "1"}).entries
        assert store.commit("job", {}).entries == {}
        assert store.commit("job", {}, before).entries == {}
        assert store.load("job") == before
        assert store.commit("unknown", {}).entries == {}

    def test_a_loaded_namespace_is_the_callers_own(self, store: Store) -> None:
        store.commit("job", {"a": "1"})
        store.load("job").clear()
        assert _values(store) == {"a": "1"}

    def test_namespaces_are_separate(self, store: Store) -> None:
        first = store.commit("job", {"a": "1"}).entries
        store.commit("job-2", {"a": "2"}, {"a": None})
        store.commit("JOB", {"a": "3"}, {"a": None})
        store.commit("job-2", {"a": None})
        assert store.load("job") == first
        assert _values(store, "job-2") == {}
        assert _values(store, "JOB") == {"a": "3"}

    def test_any_text_is_a_key_and_none_is_taken_for_another(self, store: Store) -> None:
        written = {name: f"value {number}" for number, name in enumerate(_NAMES)}
        store.commit("job", written)
        assert _values(store) == written
        loaded = store.load("job")
        updated = {name: value + ", updated" for name, value in written.items()}
        store.commit("job", updated, loaded)
        assert _values(store) == updated
        left = dict(list(updated.items())[::2])
        store.commit("job", {name: None for name in updated if name not in left}, store.load("job"))
        assert _values(store) == left

    def test_any_text_is_a_state_key_and_none_is_taken_for_another(self, store: Store) -> None:
        names = [name for name in _NAMES if self.long_state_keys or len(name) < 100]
        for number, name in enumerate(names):
            store.commit(name, {"a": f"value {number}"}, {"a": None})
        for number, name in enumerate(names):
            assert _values(store, name) == {"a": f"value {number}"}

    def test_any_text_is_a_value(self, store: Store) -> None:
        written = {f"key {number}": value for number, value in enumerate((*_VALUES, "x" * self.large))}
        receipt = store.commit("job", written)
        assert {key: entry.value for key, entry in receipt.entries.items()} == written
        assert _values(store) == written

    def test_bad_names_are_refused_and_nothing_is_written(self, store: Store) -> None:
        before = store.commit("job", {"good": "1"}).entries
        for name in _BAD_NAMES:
            kind = ValueError if isinstance(name, str) else TypeError
            _raised(kind, store.load, name)
            _raised(kind, store.commit, name, {"good": "2"})
            _raised(kind, store.commit, name, {})
            _raised(kind, store.commit, "job", {name: "2"})
            _raised(kind, store.commit, "job", {name: None})
            _raised(kind, store.commit, "job", {"good": "2", "other": "2", name: "2"})
        assert store.load("job") == before

    def test_bad_values_are_refused_and_nothing_is_written(self, store: Store) -> None:
        before = store.commit("job", {"good": "1"}).entries
        for value in (1, 1.5, True, b"1", {"a": 1}, ["1"], "\ud800"):
            kind = ValueError if isinstance(value, str) else TypeError
            _raised(kind, store.commit, "job", {"bad": value})
            _raised(kind, store.commit, "job", {"good": "2", "other": "2", "bad": value})
        assert store.load("job") == before

    def test_what_is_stored_as_expected_is_replaced(self, store: Store) -> None:
        base = store.commit("job", {"a": "1", "b": "1"}).entries
        base = store.commit("job", {"a": "2", "new": "1"}, {**base, "new": None, "absent": None}).entries
        store.commit("job", {"a": None, "new": "2"}, base)
        assert _values(store) == {"b": "1", "new": "2"}

    def test_a_key_changed_elsewhere_is_a_conflict_and_nothing_is_written(self, store: Store) -> None:
        base = store.commit("job", {"a": "1", "b": "1"}).entries
        theirs = store.commit("job", {"b": "theirs"}).entries["b"]
        after = store.load("job")
        for ours in ("ours", None):
            conflict = _raised(Conflict, store.commit, "job", {"a": "ours", "b": ours, "c": "ours"}, base)
            assert conflict.args == ("job", "b", base["b"], theirs)
        assert store.load("job") == after

    def test_a_key_created_elsewhere_is_a_conflict(self, store: Store) -> None:
        theirs = store.commit("job", {"a": "theirs"}).entries["a"]
        conflict = _raised(Conflict, store.commit, "job", {"a": "ours", "b": "ours"}, {"a": None, "b": None})
        assert conflict.args == ("job", "a", None, theirs)
        assert store.load("job") == {"a": theirs}

    def test_a_key_deleted_elsewhere_is_a_conflict(self, store: Store) -> None:
        base = store.commit("job", {"a": "1"}).entries
        store.commit("job", {"a": None})
        conflict = _raised(Conflict, store.commit, "job", {"a": "ours", "b": "ours"}, base)
        assert conflict.args == ("job", "a", base["a"], None)
        assert store.load("job") == {}

    def test_a_key_that_is_not_changed_is_compared_too(self, store: Store) -> None:
        base = store.commit("job", {"guard": "1"}).entries
        store.commit("job", {"a": "1"}, {**base, "absent": None})
        theirs = store.commit("job", {"guard": "2"}).entries["guard"]
        conflict = _raised(Conflict, store.commit, "job", {"a": "2"}, base)
        assert conflict.args == ("job", "guard", base["guard"], theirs)
        assert _raised(Conflict, store.commit, "job", {}, base).args == conflict.args
        assert _raised(Conflict, store.commit, "job", {"a": "2"}, {"guard": None}).found == theirs
        assert _values(store) == {"a": "1", "guard": "2"}

    def test_a_key_that_is_not_named_is_not_checked(self, store: Store) -> None:
        base = store.commit("job", {"a": "1", "b": "1"}).entries
        store.commit("job", {"a": "theirs", "b": "theirs"})
        store.commit("job", {"a": "ours"})
        store.commit("job", {"a": "ours again"}, {"c": None})
        assert _values(store) == {"a": "ours again", "b": "theirs"}
        assert _raised(Conflict, store.commit, "job", {"b": "ours"}, base).key in {"a", "b"}

    def test_what_is_stored_already_is_no_conflict(self, store: Store) -> None:
        base = store.commit("job", {"a": "1", "b": "1"}).entries
        store.commit("job", {"a": "same", "b": None, "c": "same"})
        store.commit("job", {"a": "same", "b": None, "c": "same"}, {**base, "c": None})
        assert _values(store) == {"a": "same", "c": "same"}

    def test_an_entry_without_a_version_is_compared_by_value(self, store: Store) -> None:
        store.commit("job", {"a": "1"})
        store.commit("job", {"a": "2"}, {"a": Entry("a", "1")})
        _raised(Conflict, store.commit, "job", {"a": "3"}, {"a": Entry("a", "1")})
        assert _values(store) == {"a": "2"}

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
            _raised(Conflict, store.commit, "job", {key: "ours"}, {key: base[key]})

    def test_many_keys_in_one_commit(self, store: Store) -> None:
        written = {f"key {number}": str(number) for number in range(self.many)}
        base = store.commit("job", written, dict.fromkeys(written)).entries
        assert store.load("job") == base
        last = f"key {self.many - 1}"
        theirs = store.commit("job", {last: "theirs"}).entries[last]
        conflict = _raised(Conflict, store.commit, "job", dict.fromkeys(written, "ours"), base)
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

        def count(worker: int) -> None:
            for _ in range(10):
                written = False
                while not written:
                    entry = store.load("job").get("count")
                    number = int(entry.value.split()[0]) + 1 if entry else 1
                    with suppress(Conflict):
                        # No two workers write the same text: one that finds its own there is told of no conflict.
                        store.commit("job", {"count": f"{number} by {worker}"}, {"count": entry})
                        written = True

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(count, range(4)))
        assert store.load("job")["count"].value.startswith("40 by ")

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

    def test_history_tells_what_each_commit_did_to_each_key(self, store: Store) -> None:
        history = _history(store)
        entries = [
            store.commit("job", {"b": "1", "a": "1"}, run_id="run-1").entries["a"],
            store.commit("job", {"a": "2"}).entries["a"],
            store.commit("job", {"c": "1", "a": None}, run_id="run-3").entries["c"],
            store.commit("job", {"a": "4"}, run_id="run-4").entries["a"],
        ]
        store.commit("other", {"a": "elsewhere"})
        told: list[tuple[Any, ...]] = [
            (entry.version, "", entry.sync_job_run_id, host(), os.getpid()) for entry in entries
        ]
        assert [change._replace(at="") for change in history("job")] == [
            Change("a", None, "4", *told[3]),
            Change("a", "2", None, *told[2]),
            Change("c", None, "1", *told[2]),
            Change("a", "1", "2", *told[1]),
            Change("a", None, "1", *told[0]),
            Change("b", None, "1", *told[0]),
        ]
        times = [change.at for change in history("job")]
        assert times == sorted(times, reverse=True)
        assert all(map(_TIME.fullmatch, times))
        assert [change.run_id for change in history("job")] == ["run-4", "run-3", "run-3", None, "run-1", "run-1"]
        assert [(change.before, change.after) for change in history("other")] == [(None, "elsewhere")]
        assert history("unknown") == []

    def test_history_of_one_key_and_of_a_limited_length(self, store: Store) -> None:
        history = _history(store)
        for number in range(4):
            store.commit("job", {"a": f"a{number}", "b": f"b{number}"})
        everything = history("job")
        assert [(change.key, change.after) for change in everything] == [
            (key, f"{key}{number}") for number in (3, 2, 1, 0) for key in ("a", "b")
        ]
        assert history("job", "b") == everything[1::2]
        assert history("job", "missing") == []
        for limit in (0, 1, 3, 8, 9):
            assert history("job", limit=limit) == everything[:limit]
            assert history("job", "b", limit=limit) == everything[1::2][:limit]

    def test_history_carries_every_name_and_value(self, store: Store) -> None:
        history = _history(store)
        written = dict(zip((name for name in _NAMES if not name.startswith("__")), _VALUES * 9, strict=False))
        store.commit("job", written)
        store.commit("job", dict.fromkeys(written, ""))
        assert {change.key: change.before for change in history("job", limit=len(written))} == written
        assert {change.key: change.after for change in history("job")[len(written) :]} == written
        store.commit("job", {"a": "x" * self.large})
        store.commit("job", {"a": None})
        assert [len(change.before or "") for change in history("job", "a")][:2] == [self.large, 0]

    def test_what_changes_nothing_leaves_no_record(self, store: Store) -> None:
        history = _history(store)
        base = store.commit("job", {"a": "1"}).entries
        before = history("job")
        store.commit("job", {})
        store.commit("job", {}, base)
        store.commit("job", {"missing": None})
        _raised(Conflict, store.commit, "job", {"a": "2", "b": "2"}, {"a": None})
        _raised(ValueError, store.commit, "job", {"a": "2", "": "2"})
        assert history("job") == before
        store.commit("job", {"a": "2", "missing": None})
        assert [(change.key, change.before, change.after) for change in history("job", limit=1)] == [("a", "1", "2")]
        assert history("job")[1:] == before

    def test_reserved_keys_leave_no_trace_and_push_nothing_out(self, store: Store) -> None:
        history = _history(store)
        store.commit("job", {"a": "1", "__lease__": "0"})
        before = history("job")
        assert [change.key for change in before] == ["a"]
        for number in range(self.keep + 1):
            store.commit("job", {"__lease__": str(number)})
        store.commit("job", {"__lease__": None})
        assert history("job") == before
        assert history("job", "__lease__") == []

    def test_history_is_bounded(self, store: Store) -> None:
        history = _history(store)
        store.commit("other", {"a": "1"})
        for number in range(self.keep + 3):
            store.commit("job", {"a": str(number), "b": str(number)})
        values = [str(number) for number in range(self.keep + 2, 1, -1)]
        assert [change.after for change in history("job", "a")] == values[:-1]
        assert [change.before for change in history("job", "b")] == values[1:]
        assert len(history("other")) == 1

    def test_an_old_value_written_again_is_a_commit_like_any_other(self, store: Store) -> None:
        history = _history(store)
        for value in ("1", "2", None):
            store.commit("job", {"a": value})
        past = history("job")
        restored = store.commit("job", {"a": past[-1].after}, {"a": None}, run_id="restoring").entries["a"]
        assert restored.value == "1"
        assert history("job")[1:] == past
        newest = history("job")[0]
        assert newest[:3] == ("a", None, "1")
        assert (newest.version, newest.run_id) == (restored.version, "restoring")
        store.commit("job", {"a": "1"})
        assert [(change.before, change.after) for change in history("job", limit=2)] == [("1", "1"), (None, "1")]

    def test_bad_questions_to_history_are_refused(self, store: Store) -> None:
        history = _history(store)
        for name in _BAD_NAMES:
            kind = ValueError if isinstance(name, str) else TypeError
            _raised(kind, history, name)
            if name is not None:
                _raised(kind, history, "job", name)
        for limit, kind in ((-1, ValueError), ("1", TypeError), (1.0, TypeError), (True, TypeError)):
            _raised(kind, partial(history, limit=limit), "job")

    def test_the_next_process_finds_the_history(self, store: Store) -> None:
        history = _history(store)
        for value in ("1", "2"):
            store.commit("job", {"a": value}, run_id="run-1")
        before = history("job")
        again = self.reopen(store)
        assert _history(again)("job") == before
        again.commit("job", {"a": "3"})
        assert _history(again)("job")[1:] == before
        again.close()

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


_Error = TypeVar("_Error", bound=BaseException)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

_NAMES = (
    *(
        "a",
        "A",
        "a b",
        " a",
        "a/b",
        "a%2Fb",
        "a%2fb",
        "a%252Fb",
        "a?b=c",
        "a#b",
        "a%",
        "a;b",
        "a:b",
        "a@b",
        "a+b",
        "a&b",
    ),
    *("a=b", "a\\b", "a'b", 'a"b', "*", "_", "%", "...", "./a", "../a", "/", "//", "null", "0", "__a", "a.16-00"),
    *(
        "é",
        "e\u0301",
        "ß",
        "ẞ",
        "日本語",
        "😀",
        "👩‍👩‍👧",
        "\u200b",
        "\u2028",
        "\ufeff",
        "\U0010ffff",
        "x" * 2_000,
        "é" * 2_000,
    ),
)

_VALUES = ("", " ", "null", "{}", "a\nb", "\r\n", "\x00", "a\x00b", "'", '"', "\\", "é", "😀", "\u2028", "\ufffd")

_BAD_NAMES: tuple[Any, ...] = (
    "",
    ".",
    "..",
    "a\n",
    "\x00",
    "a\x00b",
    "\x1f",
    "\x7f",
    "\x85",
    "\ud800",
    None,
    1,
    b"a",
    ("a",),
)


def _values(store: Store, state_key: str = "job") -> dict[str, str]:
    return {key: entry.value for key, entry in store.load(state_key).items()}


def _history(store: Store) -> Callable[..., list[Change]]:
    if not isinstance(store, KeepsHistory):
        raise SkipTest("this store keeps no history")
    return store.history


def _raised(kind: type[_Error], call: Callable[..., Any], *arguments: Any) -> _Error:
    """Call, and return the error that came of it; the contract needs no pytest."""
    try:
        call(*arguments)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised by {arguments!r}")
