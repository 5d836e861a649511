"""The part of the store contract that is about history; see `checkpoint.testing.StoreContract`."""
# ruff: noqa: D102, S101 - these are tests, and a test's name says what it tests

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from unittest import SkipTest

from checkpoint import codec
from checkpoint.entries import RUN_KEY, Change, Writer, head_key, member_key
from checkpoint.errors import Conflict
from checkpoint.stores import base
from checkpoint.stores.base import KeepsHistory, Store, host
from checkpoint.stores.history import KEEP
from checkpoint.testing.contract_parts import BAD_NAMES, NAMES, TIME, VALUES, raised

if TYPE_CHECKING:
    from collections.abc import Callable


class HistoryContract:
    """The contract of `KeepsHistory` as tests, which are skipped if the store keeps no history."""

    large = 1_000_000
    """The number of characters in a large value."""
    by: str | None = "ops"
    """The name that the history shows for a commit by `ops`. Over a server it is the name of the token."""
    keep = KEEP
    """The number of changes of a key that the store keeps, whatever their age."""

    def reopen(self, store: Store) -> Store:
        """Return the store as the next process would open it; override this if that is a new object."""
        store.close()
        return store

    def test_history_tells_what_each_commit_did_to_each_key(self, store: Store) -> None:
        history = history_or_skip(store)
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
        assert all(map(TIME.fullmatch, times))
        assert [change.run_id for change in history("job")] == ["run-4", "run-3", "run-3", None, "run-1", "run-1"]
        assert [(change.before, change.after) for change in history("other")] == [(None, "elsewhere")]
        assert history("unknown") == []

    def test_history_of_one_key_and_of_a_limited_length(self, store: Store) -> None:
        history = history_or_skip(store)
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
        history = history_or_skip(store)
        written = dict(zip((name for name in NAMES if not name.startswith("__")), VALUES * 9, strict=False))
        store.commit("job", written)
        store.commit("job", dict.fromkeys(written, ""))
        assert {change.key: change.before for change in history("job", limit=len(written))} == written
        assert {change.key: change.after for change in history("job")[len(written) :]} == written
        store.commit("job", {"a": "x" * self.large})
        store.commit("job", {"a": None})
        assert [len(change.before or "") for change in history("job", "a")][:2] == [self.large, 0]

    def test_what_changes_nothing_leaves_no_record(self, store: Store) -> None:
        history = history_or_skip(store)
        base = store.commit("job", {"a": "1"}).entries
        before = history("job")
        store.commit("job", {})
        store.commit("job", {}, base)
        store.commit("job", {"missing": None})
        raised(Conflict, store.commit, "job", {"a": "2", "b": "2"}, {"a": None})
        raised(ValueError, store.commit, "job", {"a": "2", "": "2"})
        assert history("job") == before
        store.commit("job", {"a": "2", "missing": None})
        assert [(change.key, change.before, change.after) for change in history("job", limit=1)] == [("a", "1", "2")]
        assert history("job")[1:] == before

    def test_reserved_keys_leave_no_trace(self, store: Store) -> None:
        history = history_or_skip(store)
        store.commit("job", {"a": "1", "__lease__": "0"})
        before = history("job")
        assert [change.key for change in before] == ["a"]
        for key in ("__lease__", "__move__", "__doctor__"):
            store.commit("job", {key: "1"})
            store.commit("job", {key: "2"})
            store.commit("job", {key: None})
            assert history("job", key) == []
        assert history("job") == before

    def test_runs_have_a_history_that_is_asked_for_by_name(self, store: Store) -> None:
        history = history_or_skip(store)
        store.commit("job", {RUN_KEY: "began", "a": "1"}, run_id="run-1")
        store.commit("job", {RUN_KEY: "ended"}, run_id="run-1")
        assert [(change.key, change.before, change.after) for change in history("job", RUN_KEY)] == [
            (RUN_KEY, "began", "ended"),
            (RUN_KEY, None, "began"),
        ]
        assert [change.key for change in history("job")] == ["a"]

    def test_members_of_a_group_have_a_history_each(self, store: Store) -> None:
        history = history_or_skip(store)
        one, other = member_key("crm", "a/b"), member_key("c%/d", "é")
        store.commit("job", {head_key("crm"): "head", one: "1", member_key("crm", "c"): "1"})
        store.commit("job", {one: "2", other: "1", "crm": "a plain key", "crmx": "1"})
        store.commit("job", {one: None})
        told = [(change.key, change.member, change.before, change.after) for change in history("job")]
        assert told == [
            ("crm", "a/b", "2", None),
            ("c%/d", "é", None, "1"),
            ("crm", "a/b", "1", "2"),
            ("crm", None, None, "a plain key"),
            ("crmx", None, None, "1"),
            ("crm", "a/b", None, "1"),
            ("crm", "c", None, "1"),
        ]
        assert [(change.member, change.after) for change in history("job", "crm")] == [
            ("a/b", None),
            ("a/b", "2"),
            (None, "a plain key"),
            ("a/b", "1"),
            ("c", "1"),
        ]
        assert [change.member for change in history("job", "crm", limit=3)] == ["a/b", "a/b", None]
        assert [change.after for change in history("job", one)] == [None, "2", "1"]
        assert [change.member for change in history("job", "c%/d")] == ["é"]
        assert [(change.key, change.after) for change in history("job", head_key("crm"))] == [(head_key("crm"), "head")]

    def test_history_tells_why_and_who(self, store: Store) -> None:
        history = history_or_skip(store)
        commit = store.commit if isinstance(store, KeepsHistory) else None
        assert commit is not None
        member = member_key("crm", "a")
        changes, reasons = {"a": "1", "b": "1", member: "1"}, {"a": "a reason, “é”", member: "another"}
        commit("job", changes, reasons=reasons, writer=Writer("elsewhere", 7, "ops"))
        commit("job", {"a": "2"})
        told = {
            (change.key, change.member, change.version): (change.reason, change.host, change.process, change.by)
            for change in history("job")
        }
        nobody = None if self.by == "ops" else self.by
        assert told == {
            ("a", None, 1): ("a reason, “é”", "elsewhere", 7, self.by),
            ("b", None, 1): (None, "elsewhere", 7, self.by),
            ("crm", "a", 1): ("another", "elsewhere", 7, self.by),
            ("a", None, 2): (None, host(), os.getpid(), nobody),
        }
        bad: tuple[tuple[dict[str, Any], type[Exception]], ...] = (
            ({"reasons": {"a": 1}}, TypeError),
            ({"reasons": {"a": "\0"}}, ValueError),
            ({"reasons": {"a": "\ud800"}}, ValueError),
            ({"writer": Writer("\0", 7)}, ValueError),
            ({"writer": Writer("elsewhere", cast("Any", "7"))}, TypeError),
            ({"writer": Writer("elsewhere", -1)}, ValueError),
            ({"writer": Writer("elsewhere", 7, cast("Any", 1))}, TypeError),
            ({"writer": Writer("elsewhere", 7, "\0")}, ValueError),
        )
        for arguments, kind in bad:
            raised(kind, partial(commit, **arguments), "job", {"a": "3"})
        assert len(history("job")) == 4

    def test_history_tells_the_cursors(self, store: Store) -> None:
        history = history_or_skip(store)
        for value in (codec.encode({"a": 1}), "opaque", None):
            store.commit("job", {"a": value})
        assert [(change.cursor_before, change.cursor_after) for change in history("job")] == [
            (None, None),
            ({"a": 1}, None),
            (None, {"a": 1}),
        ]

    def test_history_is_bounded_for_each_key_alone(self, store: Store) -> None:
        history = history_or_skip(store)
        store.commit("job", {"quiet": "1"}, run_id="run-1")
        written = [str(number) for number in range(self.keep + 5)]
        for number in written:
            store.commit("job", {"a": number, "b": number})
        # One more if an hour has ended meanwhile, because the last change of an hour is kept.
        for key in ("a", "b"):
            told = history("job", key)
            assert len(told) in {self.keep, self.keep + 1}
            kept = told[: self.keep]
            assert [change.after for change in kept] == written[: -self.keep - 1 : -1]
            assert [change.before for change in kept] == written[-2 : -self.keep - 2 : -1]
        assert [(change.after, change.run_id) for change in history("job", "quiet")] == [("1", "run-1")]
        store.commit("job", {"quiet": "2"})
        assert [change.before for change in history("job", "quiet")] == ["1", None]

    def test_an_old_value_written_again_is_a_commit_like_any_other(self, store: Store) -> None:
        history = history_or_skip(store)
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
        history = history_or_skip(store)
        for name in BAD_NAMES:
            kind = ValueError if isinstance(name, str) else TypeError
            raised(kind, history, name)
            if name is not None:
                raised(kind, history, "job", name)
        for limit, kind in ((-1, ValueError), ("1", TypeError), (1.0, TypeError), (True, TypeError)):
            raised(kind, partial(history, limit=limit), "job")

    def test_the_next_process_finds_the_history(self, store: Store) -> None:
        history = history_or_skip(store)
        for value in ("1", "2"):
            store.commit("job", {"a": value}, run_id="run-1")
        before = history("job")
        again = self.reopen(store)
        assert history_or_skip(again)("job") == before
        again.commit("job", {"a": "3"})
        assert history_or_skip(again)("job")[1:] == before
        again.close()


def history_or_skip(store: Store) -> Callable[..., list[Change]]:
    """Return a store's `history`, or skip the test."""
    keeping = base.history_of(store)
    if keeping is None:
        raise SkipTest("this store keeps no history")
    return keeping.history
