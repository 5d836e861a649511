"""A run against a plain dict model, one random step after the other, over every store.

`CHECKPOINT_MODEL_STEPS=100000` makes it that many steps over all stores together; the number done is printed with `-s`.
A failure prints the steps that led to it, as few as there are, and the seed that repeats it.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from checkpoint import (
    Checkpointer,
    CommitUnknown,
    Conflict,
    MemoryStore,
    PartialCommit,
    ServerStore,
    SQLiteStore,
    TrutoStore,
    codec,
)
from checkpoint.stores.base import KeepsHistory
from checkpoint.testing import ApiServer, Drop

if TYPE_CHECKING:
    from checkpoint import Store

STEPS = int(os.environ.get("CHECKPOINT_MODEL_STEPS", "3000"))
SHARE = {"memory": 0.42, "sqlite": 0.2, "truto": 0.1, "network": 0.1, "server": 0.05, "server network": 0.05}
SHARE |= {"postgres": 0.05, "objects": 0.03}
A_RUN = 50
NAMESPACE = "run"
STREAM = "s"

keys = st.sampled_from(["a", "b", "c"])
members = st.sampled_from(["m", "n", "o"])
# In one order of their keys: stores compare texts, and another spelling of the same cursor is another one to them.
cursors = st.dictionaries(
    st.sampled_from(["x", "y"]), st.sampled_from([0, 1, 1.0, True, "t", None, [1], 2**70]), max_size=2
).map(lambda cursor: dict(sorted(cursor.items())))
shards = st.sampled_from([1, 2, 3])

done: Counter[str] = Counter()
numbers = itertools.count(1)


def canonical(cursors: dict[str, Any]) -> dict[str, bytes]:
    """Cursors as they compare: 1, 1.0 and True differ."""
    return {key: codec.canonical(cursor) for key, cursor in cursors.items()}


class Model(RuleBasedStateMachine):
    """One run, another writer, and what both should find."""

    name = "memory"
    versions = True

    def open_store(self):
        return MemoryStore()

    def close_store(self):
        self.store.close()

    @initialize()
    def begin(self):
        self.store = self.open_store()
        self.namespace = f"{NAMESPACE}-{next(numbers)}"
        self.stored: dict[str, dict] = {}
        self.group_stored: dict[str, dict] = {}
        self.shards: int | None = None
        self.enter()

    def enter(self):
        self.cp = Checkpointer(self.namespace, self.store)
        self.cp.__enter__()
        self.known, self.view = dict(self.stored), dict(self.stored)
        self.touched: set[str] = set()  # by the other writer, since this run knew them
        self.group, self.group_view = None, dict(self.group_stored)
        self.stream, self.handed = None, None

    def teardown(self):
        if hasattr(self, "store"):
            self.cp.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
            self.close_store()

    # What the job does

    @rule(key=keys, cursor=cursors)
    def set(self, key, cursor):
        done[self.name] += 1
        self.cp[key] = cursor
        self.view[key] = cursor

    @rule(key=keys, value=st.integers(0, 3))
    def mutate_in_place(self, key, value):
        done[self.name] += 1
        if key in self.view:
            self.cp[key]["z"] = value
            self.view[key] = {**self.view[key], "z": value}

    @rule(key=keys)
    def delete(self, key):
        done[self.name] += 1
        if key in self.view:
            del self.cp[key]
            del self.view[key]

    @rule(count=shards)
    def open_group(self, count):
        done[self.name] += 1
        self.group, self.shards = self.cp.group("g", count), count
        self.group_view = dict(self.group_stored)

    @precondition(lambda self: getattr(self, "group", None) is not None)
    @rule(member=members, cursor=cursors)
    def set_member(self, member, cursor):
        done[self.name] += 1
        self.group[member] = cursor
        self.group_view[member] = cursor

    @precondition(lambda self: getattr(self, "group", None) is not None)
    @rule(member=members, value=st.integers(0, 3))
    def mutate_member(self, member, value):
        done[self.name] += 1
        if member in self.group_view:
            self.group[member]["z"] = value
            self.group_view[member] = {**self.group_view[member], "z": value}

    @precondition(lambda self: getattr(self, "group", None) is not None)
    @rule(member=members)
    def delete_member(self, member):
        done[self.name] += 1
        if member in self.group_view:
            del self.group[member]
            del self.group_view[member]

    @rule()
    def open_stream(self):
        """Beside the keys that are set: its key is set by commits alone."""
        done[self.name] += 1
        self.stream = self.cp.incremental(STREAM, "n", row_order="asc")
        self.handed = None

    @precondition(lambda self: getattr(self, "stream", None) is not None)
    @rule(steps=st.lists(st.integers(0, 2), min_size=1, max_size=3), how=st.sampled_from(["filter", "pages", "track"]))
    def feed(self, steps, how):
        """Rows in order, read to their end: the position does not pass a reading that was broken off."""
        done[self.name] += 1
        last = self.handed if self.handed is not None else self.view.get(STREAM, {"n": 0})["n"]
        rows = [{"n": number} for number in itertools.accumulate(steps, initial=last)][1:]
        if how == "filter":
            self.stream.filter(rows)
        elif how == "pages":
            assert [*self.stream.pages([rows])] == [rows]
        else:
            assert [*self.stream.track(rows)] == rows
        self.handed = rows[-1]["n"]

    # Committing

    def claim_stream(self):
        if self.handed is not None:
            self.view[STREAM], self.handed = {"n": self.handed}, None

    def conflicts(self, changed):
        return {
            key
            for key in changed
            if (
                key in self.touched and {key} & {*self.stored, *self.known}  # what came and went again left nothing
                if self.versions
                else not same(self.stored.get(key), self.known.get(key))
                and not same(self.stored.get(key), self.view.get(key))
            )
        }

    def changed(self, only=None):
        return {key for key in only or {*self.view, *self.known} if not same(self.view.get(key), self.known.get(key))}

    def took(self, changed, *, group):
        for key in changed:
            self.touched.discard(key)
            for layer in (self.stored, self.known):
                layer.pop(key, None)
                if key in self.view:
                    layer[key] = self.view[key]
        if group and self.group is not None:
            self.group_stored = dict(self.group_view)

    def try_to(self, commit, only=None):
        """Commit; where another writer was first, see that nothing was written, and adopt it. Return which it was."""
        if only is None or STREAM in only:
            self.claim_stream()
        changed = self.changed(only)
        conflicts = self.conflicts(changed)
        if not conflicts:
            commit()
            self.took(changed, group=only is None)
            return True
        with pytest.raises(Conflict) as caught:
            commit()
        assert caught.value.key in conflicts
        self.nothing_was_written()
        self.cp.discard()
        found = caught.value.key
        self.touched.discard(found)
        self.known.pop(found, None)
        if found in self.stored:
            self.known[found] = self.stored[found]
        self.view, self.handed = dict(self.known), None
        self.group_view = dict(self.group_stored)
        return False

    @rule()
    def commit(self):
        done[self.name] += 1
        self.try_to(self.cp.commit)

    @rule(key=keys)
    def commit_one(self, key):
        done[self.name] += 1
        self.try_to(lambda: self.cp.commit(key), {key})

    @precondition(lambda self: getattr(self, "stream", None) is not None)
    @rule()
    def commit_stream(self):
        done[self.name] += 1
        self.try_to(lambda: self.cp.commit(self.stream), {STREAM})

    @rule()
    def commit_soon(self):
        done[self.name] += 1

        def soon():
            self.cp.commit_soon()
            self.cp.flush()

        self.try_to(soon)

    @rule()
    def commit_again(self):
        done[self.name] += 1
        if self.try_to(self.cp.commit):
            assert self.cp.commit().keys == ()

    @rule(key=keys, at=st.integers(0, 9))
    def restore(self, key, at):
        """History leads, change by change, to what is stored; an old value comes back as a commit of its key."""
        done[self.name] += 1
        if not isinstance(self.store, KeepsHistory):
            return
        history = self.cp.history(key)
        values = [change.after for change in history]
        assert [change.before for change in history] == [*values[1:], *([None] if values else [])]
        decoded = [None if value is None else codec.decode(value) for value in values]
        assert same(decoded[0] if decoded else None, self.stored.get(key))
        if history:
            at %= len(history)
            self.view.pop(key, None)
            if decoded[at] is not None:
                self.view[key] = decoded[at]
            self.try_to(lambda: self.cp.restore(key, history[at].version), {key})

    @rule()
    def discard(self):
        done[self.name] += 1
        self.cp.discard()
        self.view, self.group_view, self.handed = dict(self.known), dict(self.group_stored), None

    @rule()
    def reload(self):
        done[self.name] += 1
        self.cp.reload()
        self.known, self.view = dict(self.stored), dict(self.stored)
        self.touched, self.group_view, self.handed = set(), dict(self.group_stored), None

    # What happens to the job

    @rule(key=keys, cursor=st.none() | cursors)
    def another_writer(self, key, cursor):
        done[self.name] += 1
        if cursor is not None or key in self.stored:
            self.store.commit(self.namespace, {key: None if cursor is None else codec.encode(cursor)})
            self.touched.add(key)
            self.stored.pop(key, None)
            if cursor is not None:
                self.stored[key] = cursor

    @rule()
    def leave_and_come_back(self):
        done[self.name] += 1
        self.claim_stream()
        changed = self.changed()
        if self.conflicts(changed):
            with pytest.raises(Conflict):
                self.cp.__exit__(None, None, None)
            self.nothing_was_written()
        else:
            self.cp.__exit__(None, None, None)
            self.took(changed, group=True)
        self.enter()

    @rule()
    def crash_and_come_back(self):
        done[self.name] += 1
        self.cp.__exit__(ValueError, ValueError(), None)
        self.nothing_was_written()
        self.enter()

    # What always holds

    def nothing_was_written(self):
        assert canonical(self.read_store()) == canonical(self.stored)

    def read_store(self) -> dict[str, dict]:
        loaded = self.store.load(self.namespace)
        return {key: codec.decode(entry.value) for key, entry in loaded.items() if not key.startswith("__")}

    @invariant()
    def each_layer_is_in_a_legal_state(self):
        if hasattr(self, "store"):
            self.cp._layers.check()

    @invariant()
    def the_mapping_is_as_the_job_left_it(self):
        if not hasattr(self, "store"):
            return
        hidden = {} if self.group is not None else {key: self.cp[key] for key in self.cp if key.startswith("g")}
        assert canonical({key: self.cp[key] for key in self.cp if key not in hidden}) == canonical(self.view)
        if self.group is not None:
            assert canonical(dict(self.group)) == canonical(self.group_view)

    @invariant()
    def the_store_is_as_it_was_committed(self):
        if hasattr(self, "store"):
            self.nothing_was_written()


def same(one: dict | None, other: dict | None) -> bool:
    if one is None or other is None:
        return one is other
    return codec.canonical(one) == codec.canonical(other)


class SQLiteModel(Model):
    name = "sqlite"

    def open_store(self):
        self.folder = tempfile.TemporaryDirectory()
        return SQLiteStore(Path(self.folder.name) / "state.db")

    def close_store(self):
        self.store.close()
        self.folder.cleanup()


class TrutoModel(Model):
    name = "truto"
    versions = False
    server: ApiServer

    def open_store(self):
        return TrutoStore(self.server.url, self.server.token, rate=(10**6, 1.0))


class ServerModel(Model):
    """Over our own server, which has versions."""

    name = "server"
    server: ApiServer

    def open_store(self):
        return ServerStore(self.server.url, self.server.token)


class SharedModel(Model):
    """Runs on one server, one after the other."""

    shared: Store

    def open_store(self):
        return self.shared

    def close_store(self):
        pass


class NetworkModel(RuleBasedStateMachine):
    """One run over a network that loses, delays, repeats and reorders what it carries."""

    name = "network"
    server: ApiServer

    @initialize()
    def begin(self):
        self.server.clear()
        self.server.store.commit(NAMESPACE, dict.fromkeys(self.server.store.load(NAMESPACE)))
        self.store = self.open_store()
        self.cp = Checkpointer(NAMESPACE, self.store)
        self.cp.__enter__()
        self.view: dict[str, dict] = {}
        self.delayed: list[Any] = []
        self.ever: dict[str, list[dict | None]] = {}

    def open_store(self):
        return TrutoStore(self.server.url, self.server.token, rate=(10**6, 1.0))

    def teardown(self):
        if hasattr(self, "store"):
            self.server.clear()
            self.cp.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
            self.store.close()

    @rule(key=keys, cursor=cursors)
    def set(self, key, cursor):
        done[self.name] += 1
        self.cp[key] = cursor
        self.view[key] = cursor

    @rule(key=keys)
    def delete(self, key):
        done[self.name] += 1
        if key in self.view:
            del self.cp[key]
            del self.view[key]

    @rule(applied=st.booleans(), method=st.sampled_from(["GET", "POST", "PATCH", "DELETE"]))
    def lose_an_answer(self, applied, method):
        done[self.name] += 1
        self.server.script(Drop(applied=applied), method=method)

    @rule(method=st.sampled_from(["POST", "PATCH", "DELETE"]), twice=st.booleans())
    def hold_a_write_back(self, method, twice):
        """It is taken for lost, or is done and kept to be done again; it arrives later."""
        done[self.name] += 1

        async def held(exchange):
            if twice:
                await exchange.apply()
            await exchange.end("reset")
            self.delayed.append(exchange)

        self.server.script(held, method=method)

    @rule(at=st.integers(0, 9))
    def a_held_write_arrives(self, at):
        done[self.name] += 1
        if self.delayed:
            exchange = self.delayed.pop(at % len(self.delayed))
            self.server._in_loop(exchange.apply())

    @rule()
    def commit(self):
        """Whatever the network does, a commit that returns has stored what it says; one that fails can be repeated."""
        done[self.name] += 1
        changed = self.cp.changed
        for key in changed:
            self.ever.setdefault(key, [None]).append(self.view.get(key))
        for _ in range(20):
            try:
                self.cp.commit()
                break
            except (CommitUnknown, PartialCommit) as error:
                pending = set(error.keys if isinstance(error, CommitUnknown) else error.pending)
                assert pending <= changed
                assert pending <= self.cp.changed
        assert self.cp.changed == set()
        truth = {key: codec.decode(entry.value) for key, entry in self.server.store.load(NAMESPACE).items()}
        assert {key: same(truth.get(key), self.view.get(key)) for key in changed} == dict.fromkeys(changed, True)

    @invariant()
    def each_layer_is_in_a_legal_state(self):
        if hasattr(self, "store"):
            self.cp._layers.check()

    @invariant()
    def nothing_is_stored_that_was_not_said(self):
        if hasattr(self, "store"):
            for key, entry in self.server.store.load(NAMESPACE).items():
                assert any(same(codec.decode(entry.value), said) for said in self.ever.get(key, ()))


class ServerNetworkModel(NetworkModel):
    """The same in front of our own server: a commit is one POST, and is read back by one POST or GET."""

    name = "server network"

    def open_store(self):
        return ServerStore(self.server.url, self.server.token)


def run(model: type[Model | NetworkModel]) -> None:
    steps = int(STEPS * SHARE[model.name])
    profile = settings(
        max_examples=max(1, steps // A_RUN),
        stateful_step_count=A_RUN,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(model, settings=profile)
    print(f"{model.name}: {done[model.name]} steps")


@pytest.mark.parametrize("model", [Model, SQLiteModel], ids=lambda model: model.name)
def test_a_run_is_a_dict_that_is_stored(model):
    run(model)


@pytest.mark.parametrize(
    "model", [TrutoModel, NetworkModel, ServerModel, ServerNetworkModel], ids=lambda model: model.name
)
def test_a_run_over_http_is_too(model):
    with ApiServer() as server:
        model.server = server
        run(model)


@pytest.mark.parametrize("name", ["objects", "postgres"])
def test_a_run_on_a_server_is_too(name, request):
    run(type(name, (SharedModel,), {"name": name, "shared": request.getfixturevalue(name)}))
