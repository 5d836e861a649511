"""Meltano's state in our stores: its own command in a project of its own, and what its backends promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from checkpoint import Checkpointer, CorruptState, formats
from checkpoint.stores import open_store
from checkpoint.testing import ApiServer

pytest.importorskip("meltano", reason="needs the extra meltano")

from meltano.core.state_store.base import (
    MeltanoState,
    StateIDLockedError,
    UnsupportedStateBackendURIError,
)

from checkpoint.neighbours.meltano import CheckpointStateStoreManager


@pytest.fixture(params=["sqlite", "http", "server", "postgres"])
def uri(request, tmp_path, monkeypatch):
    """Yield a `state_backend.uri` whose store outlives the processes of a test."""
    if request.param == "sqlite":
        yield f"checkpoint+sqlite:///{tmp_path}/state.db"
    elif request.param == "http":
        with ApiServer() as server:
            monkeypatch.setenv("TRUTO_API_TOKEN", server.token)
            yield f"checkpoint+{server.url}"
    elif request.param == "server":
        with ApiServer() as server:
            monkeypatch.setenv("CHECKPOINT_TOKEN", server.token)
            yield f"checkpoint+server+{server.url}"
    else:
        yield f"checkpoint+{request.getfixturevalue('postgres_url')}"


@pytest.fixture
def manager(uri):
    with CheckpointStateStoreManager(uri=uri, lock_timeout_seconds=10, lock_retry_seconds=1) as manager:
        yield manager
        manager.clear_all()


def bookmarks(**streams):
    return {"singer_state": {"bookmarks": {name: {"at": at} for name, at in streams.items()}}}


def completed(state_id, **streams):
    return MeltanoState(state_id, completed_state=bookmarks(**streams), partial_state={})


def partial(state_id, **streams):
    return MeltanoState(state_id, completed_state={}, partial_state=bookmarks(**streams))


def stored(manager):
    return {state.state_id: state.to_dict() for state in manager.get_all()}


# Meltano's command, as often as is asked: most of what it takes is importing it.
COMMANDS = """
import io, json, sys
from contextlib import redirect_stdout
from meltano.cli import cli
for line in sys.stdin:
    with redirect_stdout(io.StringIO()) as printed:
        cli.main(["--log-level=error", "state", *json.loads(line)], standalone_mode=False)
    print(json.dumps(printed.getvalue().splitlines()), flush=True)
"""


@pytest.fixture
def state(uri, tmp_path):
    """Yield what runs `meltano state` with some arguments and returns the lines it prints."""
    (tmp_path / "meltano.yml").write_text("version: 1\nsend_anonymous_usage_stats: false\nproject_id: test\n")
    environment = {**os.environ, "MELTANO_STATE_BACKEND_URI": uri, "NO_COLOR": "1"}
    with (
        (tmp_path / "errors").open("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", COMMANDS],
            cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as process,
    ):  # fmt: skip

        def run(*arguments):
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            printed = process.stdout.readline()
            assert printed, (tmp_path / "errors").read_text()
            return json.loads(printed)

        yield run


def test_the_state_commands(state, uri):
    state("set", "--force", "dev:tap-to-target", json.dumps(bookmarks(orders=1, people=1)))
    state("merge", "dev:tap-to-target", json.dumps(bookmarks(orders=2)))
    assert json.loads(*state("get", "dev:tap-to-target")) == bookmarks(orders=2, people=1)
    state("copy", "--force", "dev:tap-to-target", "copied")
    state("move", "--force", "copied", "moved")
    assert state("list") == ["dev:tap-to-target", "moved"]
    assert state("list", "--pattern", "dev:*") == ["dev:tap-to-target"]
    exported = {
        "dev:tap-to-target": {"completed": bookmarks(orders=1, people=1), "partial": bookmarks(orders=2)},
        "moved": {"completed": bookmarks(orders=2, people=1), "partial": {}},
    }
    assert json.loads(*state("export")) == exported
    with Checkpointer("meltano", uri.removeprefix("checkpoint+")) as cp:
        assert formats.dump(cp, "json") == exported
    state("clear", "--force", "moved")
    assert state("list") == ["dev:tap-to-target"]
    state("clear", "--force", "--all")
    assert state("list") == []


def test_completed_state_replaces_and_partial_state_is_merged(manager):
    manager.update(partial("job", a=1))
    manager.update(partial("job", b=1))
    assert stored(manager) == {"job": {"completed": {}, "partial": bookmarks(a=1, b=1)}}
    manager.update(completed("job", c=1))
    assert stored(manager) == {"job": {"completed": bookmarks(c=1), "partial": {}}}
    manager.update(partial("job", c=2))
    assert stored(manager) == {"job": {"completed": bookmarks(c=1), "partial": bookmarks(c=2)}}
    assert json.loads(manager.get("job").json_merged()) == bookmarks(c=2)
    manager.clear("job")
    assert (manager.get("job"), stored(manager)) == (None, {})
    manager.clear("job")


def test_partial_state_set_by_two_runs_loses_neither(manager, uri):
    manager.set(completed("job", a=1))
    with CheckpointStateStoreManager(uri=uri) as other:
        ours = manager.get("job")
        other.update(partial("job", b=1))
        ours.merge_partial(partial("job", c=1))
        manager.set(ours)
        assert stored(other) == {"job": {"completed": bookmarks(a=1), "partial": bookmarks(b=1, c=1)}}
        ours = manager.get("job")
        other.clear("job")
        ours.merge_partial(partial("job", d=1))
        manager.set(ours)
        assert stored(other) == {"job": {"completed": {}, "partial": bookmarks(d=1)}}


def test_state_changed_otherwise_keeps_what_another_run_wrote(manager, uri):
    manager.set(completed("job", a=1))
    ours = manager.get("job")
    ours.completed_state = bookmarks(a=2)
    manager.set(ours)
    ours.completed_state = bookmarks(a=3)
    manager.set(ours)
    with CheckpointStateStoreManager(uri=uri) as other:
        other.set(completed("job", a=9))
    ours.completed_state = bookmarks(a=4)
    with pytest.raises(StateIDLockedError, match="'job' in '.*' was changed by another writer"):
        manager.set(ours)
    assert stored(manager) == {"job": {"completed": bookmarks(a=9), "partial": {}}}


@pytest.mark.parametrize("uri", ["sqlite", "postgres"], indirect=True)  # HTTP can only look, and then write
def test_no_merge_of_many_at_once_is_lost(uri, manager):
    def merge(number):
        with CheckpointStateStoreManager(uri=uri) as own:
            for step in range(5):
                own.update(partial("job", **{f"stream{number}": step}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(merge, range(8)))
    assert stored(manager) == {"job": {"completed": {}, "partial": bookmarks(**{f"stream{n}": 4 for n in range(8)})}}


@pytest.mark.parametrize("uri", ["sqlite", "http"], indirect=True)
def test_any_text_is_a_state_id(manager):
    ids = ["", "..", "__lease__", "$singer", "%41", "a/b?c#d", "dev:tap-to-target:suffix", "ä\n", "[x]"]
    assert manager.set_all(completed(state_id, a=number) for number, state_id in enumerate(ids)) == len(ids)
    assert list(manager.get_state_ids()) == sorted(ids, key=formats.key_of)
    assert {state_id: manager.get(state_id).completed_state for state_id in ids} == {
        state_id: bookmarks(a=number) for number, state_id in enumerate(ids)
    }
    assert list(manager.get_state_ids("dev:*suffix")) == ["dev:tap-to-target:suffix"]
    assert manager.clear_all() == len(ids)
    assert stored(manager) == {}


@pytest.mark.parametrize("uri", ["sqlite"], indirect=True)
def test_a_merge_while_ids_are_iterated_finds_what_others_wrote(uri, manager):
    manager.set(completed("job", a=1))
    for state_id in manager.get_state_ids():
        with CheckpointStateStoreManager(uri=uri) as other:
            other.set(partial("job", b=2))
        manager.set(partial(state_id, c=3))
    assert stored(manager) == {"job": {"completed": bookmarks(a=1), "partial": bookmarks(b=2, c=3)}}


def test_a_list_is_asked_for_once(tmp_path, monkeypatch):
    with ApiServer() as server:
        monkeypatch.setenv("TRUTO_API_TOKEN", server.token)
        with CheckpointStateStoreManager(uri=f"checkpoint+{server.url}") as manager:
            manager.set_all(completed(f"job{number}", a=1) for number in range(5))
            before = len(server.requests)
            assert len(stored(manager)) == 5
            assert len(server.requests) == before + 1
            assert manager.get("job1").completed_state == bookmarks(a=1)
            assert len(server.requests) == before + 2


def test_the_namespace_is_what_follows_the_hash(tmp_path):
    url = f"sqlite:///{tmp_path}/state.db"
    for name in ("crm", "a b/c"):
        with CheckpointStateStoreManager(uri=f"checkpoint+{url}#{name.replace(' ', '%20')}") as manager:
            manager.set(completed("job", a=1))
        with Checkpointer(name, url) as cp:
            assert dict(cp) == {"job": {"completed": bookmarks(a=1), "partial": {}}}


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("checkpoint+nosuch://x", "state_backend.uri: no store opens 'nosuch://x'"),
        ("checkpoint+memory://x#..", "state_backend.uri: its namespace must not be '..'"),
    ],
)
def test_a_bad_uri_is_told(uri, sentence):
    with pytest.raises(UnsupportedStateBackendURIError, match=sentence.replace(".", r"\.")):
        CheckpointStateStoreManager(uri=uri)


@pytest.mark.parametrize("value", ["", "bm90IGpzb24=", "eyJjb21wbGV0ZWQiOiA3fQ=="])
def test_what_is_no_state_is_told_and_kept(tmp_path, value):
    url = f"sqlite:///{tmp_path}/state.db"
    store = open_store(url)
    store.commit("meltano", {"job": value})
    with CheckpointStateStoreManager(uri=f"checkpoint+{url}") as manager:
        with pytest.raises(CorruptState):
            manager.update(partial("job", a=1))
        assert store.load("meltano")["job"].value == value
        manager.update(completed("job", a=1))
        assert stored(manager) == {"job": {"completed": bookmarks(a=1), "partial": {}}}
    store.close()


def test_null_parts_are_empty_ones(tmp_path):
    with CheckpointStateStoreManager(uri=f"checkpoint+sqlite:///{tmp_path}/state.db") as manager:
        manager.set_all([MeltanoState("job")])
        manager.update(partial("job", a=1))
        assert stored(manager) == {"job": {"completed": {}, "partial": bookmarks(a=1)}}
