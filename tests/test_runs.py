"""Runs: how one is called, and the list of those that are recorded."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from checkpoint import (
    AsyncCheckpointer,
    Checkpointer,
    MemoryStore,
    Run,
    SQLiteStore,
    StateMissing,
    StoreError,
    StoreUnavailable,
    codec,
)
from checkpoint.run import runs

pytestmark = pytest.mark.usefixtures("recorded")

A = {"at": "a"}
AIRFLOW = dict(zip(runs.AIRFLOW, ("dag", "task", "scheduled__2024", "2"), strict=True))


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "state.db")
    yield store
    store.close()


def listed(store):
    with Checkpointer("run", store, record_run=False) as cp:
        return cp.runs()


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ("mine", {"CHECKPOINT_RUN_ID": "of the environment"}, "mine"),
        (None, {"CHECKPOINT_RUN_ID": "of the environment", **AIRFLOW}, "of the environment"),
        (None, AIRFLOW, "dag/task/scheduled__2024/2"),
        (None, {"CHECKPOINT_RUN_ID": "", "AIRFLOW_CTX_DAG_ID": "dag"}, "dag"),
    ],
)
def test_what_a_run_is_called(monkeypatch, given, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = MemoryStore()
    with Checkpointer("run", store, run_id=given) as cp:
        cp["a"] = A
        assert cp.run_id == expected
    assert store.load("run")["a"].sync_job_run_id == expected


def test_without_a_name_each_run_has_its_own():
    assert len({Checkpointer("run", MemoryStore()).run_id for _ in range(3)}) == 3


@pytest.mark.parametrize("run_id", ["", "a\0b", "\ud800", 7])
def test_what_no_run_is_called(run_id):
    with pytest.raises((TypeError, ValueError), match="run_id"):
        Checkpointer("run", MemoryStore(), run_id=run_id)


def test_a_run_is_recorded_when_it_begins_and_when_it_ends(store):
    rows = [{"at": number} for number in (1, 5, 7)]
    with Checkpointer("run", store, run_id="one") as cp:
        [going] = listed(store)
        assert (going.run_id, going.ended, going.outcome, going.process > 0) == ("one", None, None, True)
        cp.commit()
        stream = cp.incremental("s", "at", row_order="asc", initial_value=5)
        stream.filter(rows)
        for member in "xy":
            cp.incremental(member, "at", row_order="asc", group="g").filter(rows)
        cp.commit()
    [done] = listed(store)
    assert done == Run(
        "one", going.host, going.process, going.started, done.ended, "done", None, 1,
        {
            "s": {"seen": 3, "delivered": 2, "dropped": 1, "late": 1},
            "g": {"seen": 6, "delivered": 6, "dropped": 0, "late": 0},
        },
    )  # fmt: skip
    assert done.ended >= done.started


@pytest.mark.parametrize(
    ("error", "outcome", "name"), [(None, "done", None), (ZeroDivisionError(), "failed", "ZeroDivisionError")]
)
def test_the_outcome_is_recorded(store, error, outcome, name):
    try:
        with Checkpointer("run", store):
            if error:
                raise error
    except ZeroDivisionError:
        pass
    assert [(run.outcome, run.error) for run in listed(store)] == [(outcome, name)]


def test_a_run_that_was_asked_to_stop_has_stopped(store):
    with Checkpointer("run", store, stop_signals=(signal.SIGTERM,)):
        signal.raise_signal(signal.SIGTERM)
    assert [run.outcome for run in listed(store)] == ["stopped"]


def test_a_commit_that_fails_at_the_end_is_the_outcome(store):
    with pytest.raises(TypeError), Checkpointer("run", store) as cp:
        cp["a"] = A
        cp["a"]["at"] = {1}
    assert [(run.outcome, run.error) for run in listed(store)] == [("failed", "TypeError")]


def test_runs_are_listed_the_last_first_and_paired(store):
    with Checkpointer("run", store, run_id="outer"):
        for name in ("one", "two"):
            with Checkpointer("run", store, run_id=name):
                pass
    killed = Checkpointer("run", store, run_id="killed").__enter__()
    assert {run.run_id: run.outcome for run in listed(store)} == {
        "killed": None,
        "two": "done",
        "one": "done",
        "outer": "done",
    }
    killed.__exit__(None, None, None)


def test_a_run_is_no_key_and_no_change_of_one(store):
    with Checkpointer("run", store) as cp:
        assert (dict(cp), cp.history(), cp.changed) == ({}, [], set())
    with pytest.raises(StateMissing), Checkpointer("run", store, missing="raise"):
        pass
    with Checkpointer("run", store) as cp:
        cp["a"] = A
    assert [change.key for change in Checkpointer("run", store).__enter__().history()] == ["a"]


def test_records_never_conflict(store):
    with Checkpointer("run", store) as one, Checkpointer("run", store) as two:
        one["a"] = two["b"] = A
    assert len(listed(store)) == 2


def test_off_is_off_and_on_is_the_default(tmp_path):
    store = MemoryStore()
    with Checkpointer("run", store, record_run=False):
        pass
    assert store.load("run") == {}
    assert inspect.signature(Checkpointer).parameters["record_run"].default is True
    connection = sqlite3.connect(tmp_path / "sink.db", isolation_level=None)
    with Checkpointer("run", SQLiteStore(connection=connection)) as cp:
        assert cp.runs() == []
    connection.close()


class Broken(MemoryStore):
    """A store that fails to write the record of a run."""

    error: StoreError | None = StoreError("disk on fire")

    def commit(self, state_key, changes, base={}, **more):
        if "__run__" in changes and self.error is not None:
            raise self.error
        return super().commit(state_key, changes, base, **more)


def test_a_record_that_cannot_be_written_is_one_warning(caplog):
    store = Broken()
    with caplog.at_level(logging.WARNING, "checkpoint"), Checkpointer("run", store) as cp:
        cp["a"] = A
    assert caplog.messages == ["'run': the run was not recorded: disk on fire"]
    assert set(store.load("run")) == {"a"}


def test_a_store_that_is_down_is_not_asked_again_at_the_end(caplog):
    store = Broken()
    store.error = None
    with pytest.raises(StoreUnavailable), Checkpointer("run", store):
        raise StoreUnavailable("down")
    assert caplog.messages == ["'run': the end of the run was not recorded: down"]


def test_what_a_later_release_recorded_is_left_out(store):
    for value in (
        {"run_id": 7},
        {"new": "form"},
        {"run_id": "r", "started": "2024", "host": "h", "process": 1, "x": 1},
    ):
        store.commit("run", {"__run__": codec.encode(value)})
    assert [run.run_id for run in listed(store)] == ["r"]


def test_the_forked_child_does_not_end_the_run(tmp_path):
    job = f"""
import os
from checkpoint import Checkpointer
with Checkpointer("run", "sqlite:///{tmp_path}/state.db", run_id="parent") as cp:
    if os.fork():
        os.wait()
        os._exit(0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", job], check=True, timeout=30)
    with closing(SQLiteStore(tmp_path / "state.db")) as store:
        assert [(run.run_id, run.ended) for run in listed(store)] == [("parent", None)]


def test_it_works_with_asyncio(store):
    async def job():
        async with AsyncCheckpointer("run", store, run_id="async") as cp:
            cp["a"] = A
            await cp.commit()
            return [run.run_id for run in await cp.runs()], cp.run_id

    assert asyncio.run(job()) == (["async"], "async")
    assert [run.outcome for run in listed(store)] == ["done"]


def test_the_reason_of_a_rewind_is_kept_in_the_history(store):
    with Checkpointer("run", store) as cp:
        for group in (None, "g"):
            stream = cp.incremental("s", "at", row_order="asc", group=group)
            stream.filter([{"at": 5}])
            cp.commit(stream)
            stream.rewind(2, "rows came late")
            cp.commit(stream)
            stream.filter([{"at": 6}])
            cp.commit(stream)
        assert [(change.member, change.reason) for change in cp.history()] == [
            ("s", None), ("s", "rows came late"), ("s", None), (None, None), (None, "rows came late"), (None, None),
        ]  # fmt: skip


# What is known of streams


def known(store):
    return runs.Known.of(store.load("run").get("__run__"))


def read_to_the_end(cp, key, at, **options):
    for _ in cp.incremental(key, "at", row_order="asc", **options).pages([[{"at": at}]]):
        pass


def test_a_record_tells_the_formats_of_streams(store):
    with Checkpointer("run", store) as cp:
        read_to_the_end(cp, "epochs", 1_714_557_600, cursor_format="epoch_s")
        read_to_the_end(cp, "other", 7, cursor_format="number")
        read_to_the_end(cp, "member", "01/02/2024", cursor_format="%d/%m/%Y", group="g")
    formats = {"epochs": "epoch_s", "other": "number", "g": "%d/%m/%Y"}
    assert known(store).formats == formats
    with Checkpointer("run", store) as cp:
        assert known(store).formats == formats  # of a run that is still going
        read_to_the_end(cp, "other", 8)
    assert known(store).formats == {"epochs": "epoch_s", "g": "%d/%m/%Y"}


def test_a_record_tells_when_a_stream_was_read_to_its_end(store):
    with Checkpointer("run", store) as cp:
        read_to_the_end(cp, "s", 1)
        cp.incremental("left", "at", row_order="asc").filter([{"at": 1}])
    [first] = listed(store)
    with pytest.raises(ZeroDivisionError), Checkpointer("run", store) as cp:
        read_to_the_end(cp, "left", 2)
        raise ZeroDivisionError
    assert known(store).reads == {"s": {"at": first.ended}}
    assert (known(store).read_at("s"), known(store).read_at("left")) == (first.ended, None)


def test_a_record_tells_which_members_were_read(store):
    for read, told in (("abc", {"but": []}), ("ab", {"but": ["c"]}), ("a", {"only": ["a"]})):
        with Checkpointer("run", store) as cp:
            for member in read:
                read_to_the_end(cp, member, 1, group="g")
        ended = listed(store)[0].ended
        assert known(store).reads == {"g": {"at": ended, **told}}
        assert [known(store).read_at("g", member) for member in "abc"] == [
            ended if member in read else None for member in "abc"
        ]
    assert known(store).read_at("g") is None  # a key of that name
    many = {str(number) for number in range(2 * runs.MOST_NAMED + 2)}
    assert runs.members_read({each for each in many if int(each) % 2}, many) is None
    assert runs.members_read(set(), many) is None


@pytest.mark.parametrize(
    "value",
    [
        "no cursor",
        codec.encode({"formats": 1, "reads": []}),
        codec.encode({"formats": {"s": 1}, "reads": {"s": 1, "t": {"at": 1}}}),
        codec.encode({"formats": {"s": None}, "reads": {"s": {"only": ["a"]}}}),
    ],
)
def test_a_record_that_cannot_be_read_tells_nothing(value, store):
    store.commit("run", {"__run__": value})
    assert known(store) == runs.Known({}, {})
    with Checkpointer("run", store):
        pass


def test_a_record_of_version_1_is_read(store):
    rows = {"seen": 3, "delivered": 2, "dropped": 1, "late": 0}
    run = {"run_id": "r", "host": "h", "process": 1, "started": "2024-05-01T10:00:00Z", "ended": "2024-05-01T10:01:00Z",
           "outcome": "done", "error": None, "commits": 1, "streams": {"s": rows, "t": rows},
           "read": ["s"]}  # fmt: skip
    reads = {"s": {"at": run["ended"]}, "g": {"at": run["ended"], "only": ["a"]}}
    store.commit("run", {"__run__": codec.encode(run | {"formats": {"s": "epoch_s"}, "reads": reads})})
    assert listed(store) == [Run(**run)._replace(read=("s",))]
    assert known(store) == runs.Known({"s": "epoch_s"}, reads)
    with Checkpointer("run", store) as cp:
        cp["s"], cp.group("g")["a"] = A, A
        assert known(store) == runs.Known({"s": "epoch_s"}, reads)


def test_a_record_costs_a_few_bytes_a_stream(store):
    for _ in range(2):
        with Checkpointer("run", store) as cp:
            for number in range(500):
                cp.incremental(f"{number:04}", "at", row_order="asc").filter([])
                read_to_the_end(cp, f"read-{number:04}", number)
    [run, _] = listed(store)
    assert len(run.streams) == 1_000
    assert run.streams["0007"] == {"seen": 0, "delivered": 0, "dropped": 0, "late": 0}
    assert len(run.read) == 500
    record = codec.decode(store.load("run")["__run__"].value)
    assert (record["streams"]["0007"], record["streams"]["read-0007"]) == ([], [1, 1])
    begun, ended = (len(change.after) for change in store.history("run", "__run__")[1::-1])
    assert begun < 500 * 24
    assert ended < 500 * 60


def test_what_is_known_of_a_stream_goes_with_its_key(store):
    with Checkpointer("run", store) as cp:
        for key in ("left", "gone"):
            read_to_the_end(cp, key, 1_714_557_600, cursor_format="epoch_s")
        read_to_the_end(cp, "member", 1_714_557_600, cursor_format="epoch_s", group="g")
    with Checkpointer("run", store) as cp:
        del cp["gone"]
    assert known(store).formats == {"left": "epoch_s", "g": "epoch_s"}
    assert known(store).reads.keys() == {"left", "g"}
