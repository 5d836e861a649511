"""The Checkpointer as a mapping and as a run, over every store."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from freezegun import freeze_time

from checkpoint import (
    Checkpointer,
    Commit,
    CommitUnknown,
    Conflict,
    CorruptState,
    StateMissing,
    StoreError,
    StoreUnavailable,
)
from checkpoint.codec import decode, encode
from checkpoint.run.holders import caller
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.threads import Worker
from checkpoint.stores.truto import TrutoStore

A, B, C = {"at": 1}, {"at": 2}, {"at": 3}


def stored(store, state_key="run"):
    return {key: decode(entry.value) for key, entry in store.load(state_key).items()}


def seed(store, **cursors):
    store.commit("run", {key: encode(cursor) for key, cursor in cursors.items()})


class SlowStore(MemoryStore):
    """A store whose commits wait for a go, and fail when they are told to."""

    def __init__(self):
        super().__init__()
        self.begun, self.go = Event(), Event()
        self.batches = []
        self.error = None

    def commit(self, state_key, changes, base={}, *, run_id=None):
        self.batches.append(dict(changes))
        self.begun.set()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return super().commit(state_key, changes, base, run_id=run_id)


# The mapping


def test_is_a_mutable_mapping(store):
    seed(store, a=A)
    with Checkpointer("run", store) as cp:
        assert isinstance(cp, MutableMapping)
        assert dict(cp) == {"a": A}
        cp["b"] = B
        cp.update({"c": C})
        assert (list(cp), len(cp), "a" in cp, "z" in cp, 1 in cp) == (["a", "b", "c"], 3, True, False, False)
        assert cp.get("z") is None
        assert cp.get("a") == A
        assert cp.pop("a") == A
        assert cp.pop("a", None) is None
        assert cp.popitem() in [("b", B), ("c", C)]
        with pytest.raises(KeyError, match="z"):
            cp["z"]
        with pytest.raises(KeyError, match="z"):
            del cp["z"]
        with pytest.raises(KeyError):
            cp[1]
        cp.clear()
        assert (dict(cp), bool(cp)) == ({}, False)
    assert stored(store) == {}


@pytest.mark.parametrize(("before", "after"), [(1, 1.0), (1, True), (0, False), (1.0, True), (0.0, -0.0)])
def test_equality_is_that_of_canonical_json(store, before, after):
    seed(store, a={"at": before})
    with Checkpointer("run", store) as cp:
        cp["a"] = {"at": after}
        assert cp.changed == {"a"}
    assert repr(stored(store)["a"]["at"]) == repr(after)


@pytest.mark.parametrize(
    "value",
    ["eyJiIjogMiwgICJhIjogMX0=", "eyJiIjoyLCJhIjoxfQ", "eyJiIjoyLC\nJhIjoxfQ=="],
    ids=["white space", "unpadded", "wrapped"],
)
def test_another_formatting_or_key_order_is_no_change(store, value):
    store.commit("run", {"a": value})
    with Checkpointer("run", store) as cp:
        assert cp["a"] == {"a": 1, "b": 2}
        assert cp.raw["a"] == value
        cp["a"] = {"a": 1, "b": 2}
        assert cp.changed == set()
        assert not cp.commit()
    assert store.load("run")["a"].value == value


def test_an_opaque_value_harms_only_who_reads_it_as_a_cursor(store):
    store.commit("run", {"since": "2024-05-01T10:00:00Z", "a": encode(A)})
    with Checkpointer("run", store) as cp:
        assert (list(cp), len(cp), "since" in cp) == (["a", "since"], 2, True) or list(cp) == ["since", "a"]
        assert cp.raw["since"] == "2024-05-01T10:00:00Z"
        with pytest.raises(CorruptState) as caught:
            cp["since"]
        assert (caught.value.state_key, caught.value.key, caught.value.value) == (
            "run",
            "since",
            "2024-05-01T10:00:00Z",
        )
        assert str(caught.value) == (
            "the value of 'since' in 'run' is not a cursor (it is not base64), and was left unchanged: "
            "read it with cp.raw['since'], or set the key to replace it"
        )
        cp["a"] = B
        assert cp.commit().keys == ("a",)
        del cp["since"]
    assert stored(store) == {"a": B}


def test_raw_is_the_namespace_as_value_strings(store):
    seed(store, a=A)
    with Checkpointer("run", store) as cp:
        cp.raw["since"] = "2024-05-01"
        cp["b"] = B
        assert dict(cp.raw) == {"a": encode(A), "since": "2024-05-01", "b": encode(B)}
        assert len(cp.raw) == 3
        assert cp.commit().keys == ("since", "b")
        cp.raw["since"] = "2024-05-01"
        assert not cp.commit()
        del cp.raw["a"]
        with pytest.raises(KeyError):
            cp.raw["a"]
        with pytest.raises(TypeError, match="must be a str, not dict"):
            cp.raw["since"] = A
    assert {key: entry.value for key, entry in store.load("run").items()} == {"since": "2024-05-01", "b": encode(B)}


def test_reserved_keys_are_hidden_and_refused(store):
    store.commit("run", {"__lease__": "x", "a": encode(A)})
    with Checkpointer("run", store) as cp:
        assert (list(cp), len(cp), "__lease__" in cp, list(cp.raw)) == (["a"], 1, False, ["a"])
        for mapping in (cp, cp.raw):
            with pytest.raises(KeyError):
                mapping["__lease__"]
        with pytest.raises(ValueError, match="keys beginning with __ are reserved: '__lease__'"):
            cp["__lease__"] = A
        with pytest.raises(ValueError, match="reserved"):
            cp.raw["__x"] = "1"
        cp.clear()
    assert list(store.load("run")) == ["__lease__"]


@pytest.mark.parametrize(("cursor", "kind"), [([], "list"), (None, "NoneType"), ("e30=", "str")])
def test_what_is_no_dict_is_no_cursor(store, cursor, kind):
    with Checkpointer("run", store) as cp:
        cp["a"] = A
        with pytest.raises(TypeError, match=f"a cursor is a dict, not {kind}"):
            cp["a"] = cursor
    assert stored(store) == {"a": A}


# Committing


def test_commit_sends_what_changed_and_only_that(store):
    seed(store, **{f"k{n}": {"n": n} for n in range(20)})
    before = store.load("run")
    with Checkpointer("run", store) as cp:
        assert not cp.commit()
        cp["k7"] = {"n": 70}
        cp["k8"] = {"n": 8}
        commit = cp.commit()
        assert (commit.keys, bool(commit), commit.seconds > 0) == (("k7",), True, True)
        assert cp.commit() == Commit()
    after = store.load("run")
    assert {key for key in after if after[key] != before[key]} == {"k7"}


def test_commit_only_does_that_one_alone(store):
    with Checkpointer("run", store) as cp:
        cp["a"], cp["b"] = A, B
        assert cp.commit("b", "nothing").keys == ("b",)
        assert stored(store) == {"b": B}
        assert cp.changed == {"a"}


def test_deleting_is_a_change(store):
    seed(store, a=A, b=B)
    with Checkpointer("run", store) as cp:
        del cp["a"]
        assert cp.changed == {"a"}
        assert cp.commit().keys == ("a",)
        assert (cp.entry("a"), cp.get("a")) == (None, None)
        cp["a"] = C
    assert stored(store) == {"a": C, "b": B}


def test_entry_is_what_the_store_is_known_to_hold(store):
    with Checkpointer("run", store) as cp:
        cp["a"] = A
        assert cp.entry("a") is None
        cp.commit()
        assert cp.entry("a") == store.load("run")["a"]
        cp["a"] = B
        assert cp.entry("a").value == encode(A)


def test_run_id_is_recorded(tmp_path):
    store = MemoryStore()
    with Checkpointer("run", store, run_id="5a0e") as cp:
        cp["a"] = A
    assert store.load("run")["a"].sync_job_run_id == "5a0e"


def test_a_second_writer_gets_a_conflict(store):
    seed(store, a=A)
    with Checkpointer("run", store) as one, Checkpointer("run", store) as two:
        one["a"], two["a"], two["b"] = B, C, C
        one.commit()
        with pytest.raises(Conflict) as caught:
            two.commit()
        assert (caught.value.state_key, caught.value.key) == ("run", "a")
        assert (caught.value.expected.value, caught.value.found.value) == (encode(A), encode(B))
        assert stored(store) == {"a": B}
        assert two.changed == {"a", "b"}
        with pytest.raises(Conflict):
            two.commit()
        two.discard()
        assert (two["a"], two.changed) == (B, set())
        two["a"] = C
        two.commit()
    assert stored(store) == {"a": C}


def test_a_conflict_over_a_deleted_and_a_created_key(store):
    seed(store, a=A)
    with Checkpointer("run", store) as one, Checkpointer("run", store) as two:
        del one["a"]
        one["b"] = B
        one.commit()
        two["a"] = C
        with pytest.raises(Conflict, match="'a' in 'run' was deleted by another writer after this run") as caught:
            two.commit()
        assert caught.value.found is None
        two.discard()
        assert "a" not in two
        two["b"] = C
        with pytest.raises(Conflict, match="'b' in 'run' was created by another writer at 20") as caught:
            two.commit()
        assert caught.value.expected is None
        two.discard()
        assert two["b"] == B


def test_fault_78_writing_what_another_run_stored_is_a_conflict(store):
    """Versions are compared, so two runs that count to the same number are told; the HTTP API has no versions."""
    with Checkpointer("run", store) as one, Checkpointer("run", store) as two:
        one["a"] = two["a"] = A
        one.commit()
        if isinstance(store, TrutoStore):
            two.commit()
        else:
            with pytest.raises(Conflict):
                two.commit()
            two.discard()
        two["a"] = B
        two.commit()
    assert stored(store) == {"a": B}


def test_overwrite_takes_no_notice_of_other_writers(store):
    seed(store, a=A, b=A, d=A)
    with Checkpointer("run", store) as one, Checkpointer("run", store, on_conflict="overwrite") as two:
        del one["a"]
        one["b"] = B
        one["c"] = B
        del one["d"]
        one.commit()
        two["a"] = two["b"] = two["c"] = C
        del two["d"]
        two.commit()
    assert stored(store) == {"a": C, "b": C, "c": C}


def test_discard_goes_back_to_what_was_committed(store):
    seed(store, a=A, b=B)
    with Checkpointer("run", store) as cp:
        cp["a"] = B
        cp.commit()
        cp["a"] = C
        cp["n"] = C
        del cp["b"]
        cp.discard()
        assert (dict(cp), cp.changed) == ({"a": B, "b": B}, set())


def test_reload_lists_again(store):
    seed(store, a=A)
    with Checkpointer("run", store) as cp:
        cp["a"] = C
        seed(store, a=B, b=B)
        cp.reload()
        assert (dict(cp), cp.changed) == ({"a": B, "b": B}, set())
        cp["a"] = C
    assert stored(store) == {"a": C, "b": B}


# Entering and leaving


def test_leaving_cleanly_commits(store):
    with Checkpointer("run", store) as cp:
        cp["a"] = A
    assert stored(store) == {"a": A}


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_leaving_by_an_exception_drops_what_was_not_committed(store, error):
    with pytest.raises(error), Checkpointer("run", store) as cp:
        cp["a"] = A
        cp.commit()
        cp["a"] = B
        raise error
    assert stored(store) == {"a": A}


def test_leaving_by_an_exception_sends_what_was_held_back(store):
    with pytest.raises(ZeroDivisionError), Checkpointer("run", store, min_interval=60) as cp:
        cp["a"] = A
        assert cp.commit()
        cp["a"] = B
        assert cp.commit() == Commit()
        cp["a"] = C
        raise ZeroDivisionError
    assert stored(store) == {"a": B}


def test_a_store_given_is_left_open_and_one_opened_is_closed(tmp_path):
    url = f"sqlite:///{tmp_path}/state.db"
    with Checkpointer("run", url) as cp:
        cp["a"] = A
    with Checkpointer("run", url, missing="raise") as cp:
        assert dict(cp) == {"a": A}
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        cp["a"] = A
    assert stored(store) == {"a": A}


def test_the_store_defaults_to_environment_then_state_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("CHECKPOINT_STORE", f"sqlite:///{tmp_path}/mine.db")
    with Checkpointer("run") as cp:
        cp["a"] = A
    assert (tmp_path / "mine.db").exists()
    assert not (tmp_path / "checkpoint").exists()
    monkeypatch.delenv("CHECKPOINT_STORE")
    with caplog.at_level(logging.INFO, "checkpoint"), Checkpointer("run") as cp:
        assert dict(cp) == {}
    (message,) = [one.getMessage() for one in caplog.records if one.levelno == logging.INFO]
    assert message.startswith("'run': loaded keys=0 seconds=")
    assert message.endswith(f" store=SQLiteStore('{tmp_path}/checkpoint/state.db')")


def test_missing_state_can_be_refused(store):
    with pytest.raises(StateMissing) as caught, Checkpointer("run", store, missing="raise"):
        pass
    assert str(caught.value) == (
        f"nothing is stored under 'run' in {store!r}: check state_key and store, or pass missing='new' to start over"
    )
    seed(store, a=A)
    with Checkpointer("run", store, missing="raise") as cp:
        assert dict(cp) == {"a": A}


def test_it_is_used_once_and_inside_its_block(store):
    cp = Checkpointer("run", store)
    for use in (lambda: cp["a"], lambda: len(cp), cp.commit, cp.commit_soon, cp.flush, cp.discard, cp.reload):
        with pytest.raises(
            RuntimeError, match="use a Checkpointer inside its with block: this one has not been entered"
        ):
            use()
    with cp:
        cp["a"] = A
        with pytest.raises(RuntimeError, match="entered only once"):
            cp.__enter__()
        assert cp["a"] == A
    for use in (lambda: cp.update(a=A), lambda: cp.raw["a"], lambda: cp.changed, cp.commit):
        with pytest.raises(RuntimeError, match="this one has ended"):
            use()
    with pytest.raises(RuntimeError, match="entered only once"), cp:
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"on_conflict": "ignore"}, ValueError, "on_conflict must be 'raise' or 'overwrite', not 'ignore'"),
        ({"missing": "ok"}, ValueError, "missing must be 'new' or 'raise', not 'ok'"),
        ({"min_interval": -1}, ValueError, "min_interval must be seconds, 0 or more, not -1"),
        ({"min_interval": float("nan")}, ValueError, "min_interval must be"),
        ({"min_interval": "1"}, ValueError, "min_interval must be seconds, 0 or more, not '1'"),
        ({"on_conflict": []}, ValueError, "on_conflict must be 'raise' or 'overwrite', not []"),
        ({"stop_signals": 15}, TypeError, "stop_signals must be several signals, such as (signal.SIGTERM,), not 15"),
        ({"stop_signals": (9,)}, ValueError, "stop_signals: a process cannot handle SIGKILL"),
        ({"store": 7}, TypeError, "store must be a Store, a URL such as 'sqlite:///state.db', or None, not int"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, error, text):
    with pytest.raises(error, match=re.escape(text)):
        Checkpointer("run", **arguments)


def test_fault_49_no_destructor_or_interpreter_exit_commits(tmp_path):
    url = f"sqlite:///{tmp_path}/state.db"
    abandoned = f"""
from checkpoint import Checkpointer
cp = Checkpointer("run", {url!r}, min_interval=60).__enter__()
cp["a"] = {{"at": 1}}
cp.commit()
cp["a"] = {{"at": 2}}
cp.commit()
cp["a"] = {{"at": 3}}
cp.commit_soon()
for key in "bc":  # the first of them is collected, the second ends with the interpreter
    cp = Checkpointer("run", {url!r}).__enter__()
    cp[key] = {{"at": 1}}
"""
    subprocess.run([sys.executable, "-c", abandoned], check=True, timeout=30)
    with Checkpointer("run", url) as cp:
        assert dict(cp) == {"a": A}


def test_fault_49_an_abandoned_generator_commits_nothing():
    store = MemoryStore()

    def job():
        with Checkpointer("run", store) as cp:
            for at in range(1, 9):
                cp["a"] = {"at": at}
                yield
                cp.commit()

    rows = job()
    next(rows), next(rows), next(rows)
    del rows
    gc.collect()
    assert stored(store) == {"a": B}


# Intervals, signals, threads, background


def test_commits_closer_together_than_min_interval_are_held_back():
    store = MemoryStore()
    with freeze_time("2024-05-01") as clock, Checkpointer("run", store, min_interval=10) as cp:
        cp["a"] = A
        assert cp.commit().keys == ("a",)
        cp["a"] = B
        assert cp.commit() == Commit()
        assert (cp["a"], cp.changed) == (B, {"a"})
        clock.tick(9.9)
        cp["b"] = B
        assert cp.commit() == Commit()
        cp.commit_soon()
        assert stored(store) == {"a": A}
        clock.tick(0.2)
        assert cp.commit().keys == ("a", "b")
        cp["a"] = C
        cp.commit()
        cp.flush()
        assert stored(store) == {"a": C, "b": B}


def test_fault_46_one_stop_signal_asks_and_a_second_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    with Checkpointer("run", MemoryStore(), stop_signals=(signal.SIGTERM,)) as cp:
        assert cp.stopping is False
        os.kill(os.getpid(), signal.SIGTERM)
        assert cp.stopping is True
        with pytest.raises(KeyboardInterrupt, match="second SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_stop_signals_are_for_the_main_thread():
    errors = []

    def run():
        try:
            with Checkpointer("run", MemoryStore(), stop_signals=(signal.SIGTERM,)):
                pass
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == ["stop_signals work only in the main thread: leave them out, or run the job there"]


def test_flush_after_the_block_is_an_error():
    with Checkpointer("run", MemoryStore()) as cp:
        cp["a"] = A
        cp.commit_soon()
    with pytest.raises(RuntimeError, match="has ended"):
        cp.flush()


def test_commit_soon_returns_at_once_and_coalesces():
    store = SlowStore()
    with Checkpointer("run", store) as cp:
        cp["a"] = {"at": 0}
        cp.commit_soon()
        assert store.begun.wait(10)
        for at in range(1, 1000):
            cp["a"]["at"] = at
            cp.commit_soon()
        cp["a"]["at"] = 1000  # live state, never queued
        assert cp.entry("a") is None
        store.go.set()
        cp.flush()
        assert decode(cp.entry("a").value) == {"at": 999}
        assert [decode(batch["a"]) for batch in store.batches] == [{"at": 0}, {"at": 999}]
        cp.discard()
        assert cp["a"] == {"at": 999}
    assert stored(store) == {"a": {"at": 999}}


def test_fault_95_flush_sees_a_signal_that_another_thread_got():
    """It does not end the main thread's wait, and is noticed all the same."""

    class Interrupting(SlowStore):
        def commit(self, *args, **named):
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            return super().commit(*args, **named)

    store = Interrupting()
    released = threading.Timer(20, store.go.set)
    released.start()
    with Checkpointer("run", store) as cp:
        cp["a"] = {"at": 0}
        with pytest.raises(KeyboardInterrupt):  # it may come before the wait begins
            cp.commit_soon()
            cp.flush()
        assert not store.go.is_set()
        store.go.set()
    released.cancel()
    assert stored(store) == {"a": {"at": 0}}


def test_commit_soon_flushes_again_after_a_very_quick_flush(monkeypatch):
    """One that has run before `submit` returns is not taken for one that is still to come."""
    submit = Worker.submit
    monkeypatch.setattr(Worker, "submit", lambda worker, call: (submit(worker, call), worker.drain()))
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        for cursor in (A, B):
            cp["a"] = cursor
            cp.commit_soon()
            assert stored(store) == {"a": cursor}


@pytest.mark.parametrize("raiser", ["commit", "commit_soon", "flush", "exit"])
def test_a_background_failure_is_never_lost(raiser):
    store = SlowStore()
    store.go.set()
    with pytest.raises(StoreError, match="disk on fire"), Checkpointer("run", store) as cp:
        cp["a"] = A
        store.error = StoreError("disk on fire")
        cp.commit_soon()
        cp._commits.background.wait()
        assert cp.changed == {"a"}
        store.error = None
        if raiser != "exit":
            getattr(cp, raiser)()
    assert stored(store) == ({"a": A} if raiser == "exit" else {})


def test_a_key_of_a_failed_background_commit_stays_changed():
    store = SlowStore()
    store.go.set()
    with Checkpointer("run", store) as cp:
        cp["a"] = A
        store.error = StoreError("disk on fire")
        cp.commit_soon()
        with pytest.raises(StoreError):
            cp.flush()
        store.error = None
        cp["b"] = B
        assert cp.commit("b").keys == ("b",)
        assert cp.changed == {"a"}
        assert cp.commit().keys == ("a",)


def test_an_exception_and_a_failing_flush_are_both_told(caplog):
    store = SlowStore()
    store.go.set()
    with pytest.raises(ZeroDivisionError) as caught, Checkpointer("run", store, min_interval=60) as cp:
        cp["a"] = A
        cp.commit()
        cp["a"] = B
        cp.commit()
        store.error = StoreError("disk on fire")
        raise ZeroDivisionError
    note = "checkpoint: 'run' was not committed either: disk on fire"
    assert caught.value.__notes__ == [note]
    assert caplog.messages == [note]


def test_a_spoilt_cursor_lets_the_held_back_commit_out():
    store = MemoryStore()
    with pytest.raises(TypeError, match="keys must be str"), Checkpointer("run", store, min_interval=60) as cp:
        cp["a"] = A
        cp.commit()
        cp["a"] = B
        cp.commit()
        cp["a"][1] = 2
    assert stored(store) == {"a": B}


def test_fault_44_sixteen_threads_on_one_checkpointer(store):
    def work(name):
        for at in range(30):
            cp[f"{name}.{at}"] = B
            assert f"{name}.{at}" in [*cp]
            assert f"{name}.{at}" in cp.changed
            del cp[f"{name}.{at}"]
        for at in range(12):  # with the looks, less than the rate of a token
            cp[name] = {"at": at}
            cp.commit(name)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # wherever it can, one thread breaks into another
    try:
        with Checkpointer("run", store) as cp, ThreadPoolExecutor(16) as threads:
            assert list(threads.map(work, [f"t{n}" for n in range(16)])) == [None] * 16
            assert cp.changed == set()
    finally:
        sys.setswitchinterval(interval)
    assert stored(store) == {f"t{n}": {"at": 11} for n in range(16)}


def test_a_commit_of_one_thread_hides_no_failure_of_another():
    store = SlowStore()
    outcomes = {}

    def commit(cp, key):
        try:
            outcomes[key] = cp.commit(key).keys
        except StoreError as error:
            outcomes[key] = str(error)

    with Checkpointer("run", store) as cp:
        cp["a"] = A
        first = threading.Thread(target=commit, args=(cp, "a"))
        first.start()
        assert store.begun.wait(10)
        cp["b"] = B
        second = threading.Thread(target=commit, args=(cp, "b"))
        second.start()
        store.error = StoreError("disk on fire")
        store.go.set()
        first.join()
        second.join()
        assert outcomes == {"a": "disk on fire", "b": "disk on fire"}
        store.error = None
    assert stored(store) == {"a": A, "b": B}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fault_43_a_forked_child_commits_nothing_of_its_parent(tmp_path):
    job = f"""
import os, sys
from checkpoint import Checkpointer
with Checkpointer("run", "sqlite:///{tmp_path}/state.db", min_interval=60) as cp:
    cp["a"] = {{"at": 1}}
    cp.commit()
    cp["a"] = {{"at": 2}}
    cp.commit()
    if os.fork():
        assert os.wait()[1] == 0
        os._exit(0)  # the parent dies before it could send what it holds back
    assert cp["a"] == {{"at": 2}}
    cp["child"] = {{"at": 3}}
    cp.flush()
    cp["late"] = {{"at": 4}}
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", job], check=True, timeout=30)
    with Checkpointer("run", f"sqlite:///{tmp_path}/state.db") as cp:
        assert dict(cp) == {"a": A, "child": C, "late": {"at": 4}}


# After a failure


class FaultyStore(MemoryStore):
    """A store that fails as it is told to, after it has written or without."""

    def __init__(self):
        super().__init__()
        self.errors = []
        self.batches = []
        self.closed = False

    def commit(self, state_key, changes, base={}, *, run_id=None):
        self.batches.append(dict(changes))
        applied, error = self.errors.pop(0) if self.errors else (True, None)
        if applied:
            receipt = super().commit(state_key, changes, base, run_id=run_id)
        if error is not None:
            raise error
        return receipt

    def close(self):
        self.closed = True


def unknown(*keys):
    return CommitUnknown("run", keys)


@pytest.mark.parametrize("background", [False, True])
def test_going_back_after_an_unknown_write_is_sent(background):
    store = FaultyStore()
    seed(store, a=A)
    store.batches.clear()
    store.errors = [(True, unknown("a", "new"))]
    with Checkpointer("run", store) as cp:
        cp["a"] = cp["new"] = B
        if background:
            cp.commit_soon()
            cp._commits.background.wait()
        with pytest.raises(CommitUnknown):
            cp.commit()
        cp["a"] = A
        del cp["new"]
        assert cp.changed == {"a", "new"}
        assert set(cp.commit().keys) == {"a", "new"}
    assert stored(store) == {"a": A}


def test_going_back_after_discarding_an_unknown_write_is_sent():
    store = FaultyStore()
    seed(store, a=A)
    store.errors = [(True, unknown("a"))]
    with Checkpointer("run", store) as cp:
        cp["a"] = B
        with pytest.raises(CommitUnknown):
            cp.commit()
        cp.discard()
        assert cp["a"] == A
        assert cp.changed == set()
        cp["a"] = A
        assert cp.commit().keys == ("a",)
    assert stored(store) == {"a": A}


def test_nothing_written_leaves_no_value_of_ours_to_accept():
    store = FaultyStore()
    seed(store, a=A)
    store.errors = [(False, StoreUnavailable("down"))]
    with Checkpointer("run", store) as cp:
        cp["a"] = B
        with pytest.raises(StoreUnavailable):
            cp.commit()
        seed(store, a=B)  # another run, with the very same value
        cp["a"] = C
        with pytest.raises(Conflict):
            cp.commit()
        cp.discard()


def test_a_failed_commit_is_resent_despite_min_interval():
    store = FaultyStore()
    with Checkpointer("run", store, min_interval=3600) as cp:
        cp["a"] = A
        store.errors = [(False, StoreUnavailable("down"))]
        with pytest.raises(StoreUnavailable):
            cp.commit()
        assert cp.commit().keys == ("a",)
        cp["a"] = B
        assert cp.commit() == Commit()
        store.errors = [(False, StoreUnavailable("down"))]
        with pytest.raises(StoreUnavailable):
            cp.flush()
        assert cp.commit() == Commit()
        cp.flush()
        assert stored(store) == {"a": B}


def test_flush_sends_again_what_failed_in_the_background():
    store = FaultyStore()
    store.errors = [(False, StoreUnavailable("down"))]
    with Checkpointer("run", store) as cp:
        cp["a"] = A
        cp.commit_soon()
        with pytest.raises(StoreUnavailable):
            cp.flush()
        cp.flush()
        assert (stored(store), cp.changed) == ({"a": A}, set())


def test_a_held_back_conflict_does_not_block_later_commits(store):
    seed(store, a=A, b=A)
    with Checkpointer("run", store, min_interval=3600) as cp:
        cp["z"] = A
        cp.commit()
        cp["a"] = B
        assert cp.commit("a") == Commit()
        seed(store, a=C)
        cp._commits.interval.flushed_at = float("-inf")
        cp["b"] = B
        with pytest.raises(Conflict):
            cp.commit("b")
        cp._commits.interval.flushed_at = float("-inf")
        assert cp.commit("b").keys == ("b",)
        cp.discard()
    assert stored(store) == {"a": C, "b": B, "z": A}


def test_keys_committed_by_name_in_turn_all_get_out(store):
    with freeze_time("2024-05-01") as clock, Checkpointer("run", store, min_interval=10) as cp:
        for number in range(12):
            for key in ("a", "b"):
                cp[key] = {"n": number}
                cp.commit(key)
            clock.tick(3)
        assert set(stored(store)) == {"a", "b"}


def test_a_later_background_failure_is_told_with_the_first():
    store = FaultyStore()
    store.errors = [(False, StoreError("first")), (False, StoreError("second"))]
    with Checkpointer("run", store) as cp:
        cp["a"] = A
        cp.commit_soon()
        cp._commits.background.wait()
        cp["b"] = B
        cp._layers.claim((), caller())
        cp._commits.background.worker.submit(cp._commits.background._run)
        cp._commits.background.wait()
        with pytest.raises(StoreError, match="first") as caught:
            cp.commit()
        assert caught.value.__notes__ == ["checkpoint: 'run' failed again: second"]


def test_a_background_failure_is_noted_on_the_blocks_exception():
    store = FaultyStore()
    store.errors = [(False, StoreError("disk on fire"))]
    with pytest.raises(ZeroDivisionError) as caught, Checkpointer("run", store) as cp:
        cp["a"] = A
        cp.commit_soon()
        cp._commits.background.wait()
        raise ZeroDivisionError
    assert caught.value.__notes__ == ["checkpoint: 'run' was not committed either: disk on fire"]


def test_only_its_own_store_is_closed_after_the_last_write(monkeypatch):
    store = FaultyStore()
    with Checkpointer("run", store):
        pass
    assert store.closed is False
    monkeypatch.setattr("checkpoint.run.block.open_store", lambda url: store)
    with Checkpointer("run", "fake://") as cp:
        cp["a"] = A
        cp.commit_soon()
    assert (store.closed, stored(store)) == (True, {"a": A})


def test_a_store_that_cannot_close_leaves_no_handler_or_run(monkeypatch):
    class Unclosable(MemoryStore):
        def close(self):
            raise StoreError("cannot close")

    monkeypatch.setattr("checkpoint.run.block.open_store", lambda url: Unclosable())
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoreError, match="cannot close"), Checkpointer("run", "x://", stop_signals=[15]) as cp:
        pass
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(RuntimeError, match="this one has ended"):
        cp.commit()


def test_reserved_entries_alone_are_no_state(store):
    store.commit("run", {"__lease__": "x"})
    with pytest.raises(StateMissing), Checkpointer("run", store, missing="raise"):
        pass


def test_reading_a_key_that_was_set_raw_keeps_its_spelling(store):
    spaced = "eyJhdCI6IDF9"  # {"at": 1}
    seed(store, a=A)
    with Checkpointer("run", store) as cp:
        cp.raw["a"] = cp.raw["new"] = spaced
        assert cp["a"] == cp["new"] == A
        assert cp.changed == {"a", "new"}
        assert cp.raw["a"] == spaced
    assert {entry.value for entry in store.load("run").values()} == {spaced}


def test_a_cursor_spoilt_in_place_can_be_deleted(store):
    seed(store, a=A, b=A)
    with Checkpointer("run", store) as cp:
        cp["a"][1] = cp["b"][1] = 2
        assert "a" in cp
        assert cp.changed == {"a", "b"}
        del cp["a"]
        cp.clear()
    assert stored(store) == {}


def test_reload_keeps_the_base_of_what_is_held_back():
    store = MemoryStore()
    seed(store, a=A)
    with Checkpointer("run", store, min_interval=3600) as cp:
        cp["z"] = A
        cp.commit()
        cp["a"] = B
        cp.commit()
        seed(store, a=C)
        cp.reload()
        assert cp["a"] == B
        with pytest.raises(Conflict):
            cp.flush()
        cp.discard()
        assert cp["a"] == C


@pytest.mark.parametrize("signals", [["SIGTERM"], [signal.SIGTERM, 10_000]])
def test_what_is_no_signal_is_refused_at_construction(signals):
    with pytest.raises(ValueError, match="is not a valid Signals"):
        Checkpointer("run", stop_signals=signals)


def test_an_exit_that_cannot_claim_sends_earlier_claims(store):
    store.commit("run", {"g": "opaque!"})
    with pytest.raises(CorruptState), Checkpointer("run", store, min_interval=3600) as cp:
        cp["z"] = A
        cp.commit()
        cp["a"] = A
        assert cp.commit() == Commit()
        cp.group("g")["x"] = A
    assert store.load("run")["g"].value == "opaque!"
    assert decode(store.load("run")["a"].value) == A


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_send_what_was_in_doubt(tmp_path):
    store = FaultyStore()
    store.errors = [(False, StoreError("no idea"))]
    with pytest.raises(StoreError, match="no idea"), Checkpointer("run", store) as cp:
        cp["a"] = A
        try:
            cp.commit()
        except StoreError:
            cp._layers.claims.forked()  # as in the child
            assert cp.changed == set()
            assert cp.commit() == Commit()
            raise


def test_setting_a_key_back_to_the_stored_value_is_no_change(store):
    store.commit("run", {"a": "eyAieCI6IDEgfQ=="})  # { "x": 1 }
    with Checkpointer("run", store) as cp:
        for number in (2, 1):
            cp["a"] = {"x": number}
            assert cp["a"] == {"x": number}
        assert cp.changed == set()
        assert cp.commit() == Commit()


def test_a_stop_signal_named_twice_is_let_go_of():
    before = signal.getsignal(signal.SIGTERM)
    with Checkpointer("run", MemoryStore(), stop_signals=(signal.SIGTERM, signal.SIGTERM)):
        pass
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stream_that_cannot_go_back_commits_nothing_more(store):
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        stream.filter([{"at": 1}])
        cp.commit()
        stream.filter([{"at": 50}])
        store.commit("run", {"s": "opaque!"})
        with pytest.raises(Conflict):
            cp.commit()
        with pytest.raises(CorruptState):
            cp.discard()
        assert not stream.live
    assert store.load("run")["s"].value == "opaque!"


def test_a_waiting_claim_keeps_its_base_in_a_conflict(store):
    seed(store, a=A)
    with freeze_time("2024-05-01"), Checkpointer("run", store, min_interval=10) as cp:
        seed(store, a=C)
        cp["a"] = B
        with pytest.raises(Conflict):
            cp.commit()
        cp["b"] = B
        assert cp.commit("b").keys == ("b",)
        cp["a"] = {"at": 9}
        assert not cp.commit("a")
        cp.discard()
        assert cp["a"] == {"at": 9}
        with pytest.raises(Conflict):
            cp.flush()
        cp.discard()
        assert cp["a"] == C
    assert stored(store) == {"a": C, "b": B}


def test_a_late_background_failure_is_noted_on_the_exception(monkeypatch):
    store, stopping = FaultyStore(), Event()
    store.errors = [(False, StoreError("disk on fire"))]
    drain = Worker.drain
    monkeypatch.setattr(Worker, "drain", lambda worker: (stopping.set(), drain(worker)))
    with pytest.raises(ZeroDivisionError) as caught, Checkpointer("run", store) as cp:
        flush = cp._commits.background._flush

        def slow():
            try:
                return flush()
            except StoreError:
                assert stopping.wait(10)
                raise

        monkeypatch.setattr(cp._commits.background, "_flush", slow)
        cp["a"] = A
        cp.commit_soon()
        while not cp._layers.claims.failed:
            Event().wait(0.001)
        raise ZeroDivisionError
    assert caught.value.__notes__ == ["checkpoint: 'run' was not committed either: disk on fire"]


def test_restoring_what_a_stream_or_group_holds_is_refused(memory_history):
    store = memory_history
    with Checkpointer("run", store) as cp:
        cp.group("g", 2)["a"] = A
        cp.incremental("s", "at", row_order="asc").filter([{"at": 3}])
        for key in ("g", "s"):
            with pytest.raises(ValueError, match="stores the group|held by a live stream"):
                cp.restore(key, store.history("run", key)[0].version)
        assert stored(store) == {}
        cp.discard()


@pytest.fixture
def memory_history():
    """Return a store in which two keys were deleted."""
    store = MemoryStore()
    seed(store, g=A, s=A)
    store.commit("run", {"g": None, "s": None})
    return store


def test_clearing_is_all_or_nothing():
    store = MemoryStore()
    seed(store, a=A, b=B)
    with Checkpointer("run", store) as cp:
        cp.incremental("b", "at")
        with pytest.raises(ValueError, match="'b' is held by a live stream"):
            cp.clear()
        assert dict(cp) == {"a": A, "b": B}


def test_a_commit_of_what_is_neither_key_nor_stream_is_refused():
    with Checkpointer("run", MemoryStore()) as cp:
        cp["a"] = A
        for what in (7, None, ["a"]):
            with pytest.raises(ValueError, match="is neither a key nor a live stream of this run"):
                cp.commit(what)
        assert cp.changed == {"a"}


def test_a_namespace_of_groups_alone_is_not_missing():
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        cp.group("accounts")["a"] = {"at": 1}
    with Checkpointer("run", store, missing="raise") as cp:
        assert [*cp.group("accounts")] == ["a"]


def test_a_group_and_a_key_of_another_type_are_named():
    with Checkpointer("run", MemoryStore()) as cp:
        with pytest.raises(TypeError, match="group must be a Group of this run, or its name, not 5"):
            cp.incremental("s", "at", group=5)
        with pytest.raises(TypeError, match="key must be a str"):
            cp.restore(5, 1)
