"""How groups are stored: an entry a member, or packed with a head; what version 1 stored; several runs at once."""

from __future__ import annotations

import itertools
import logging
from contextlib import closing, suppress
from zlib import crc32

import pytest

from checkpoint import (
    Checkpointer,
    CommitUnknown,
    Conflict,
    CorruptState,
    Locked,
    MemoryStore,
    PartialCommit,
    TrutoStore,
    codec,
)
from checkpoint.run.resharding import reshard
from checkpoint.stores.base import Atomic

A, B, C = {"at": "a"}, {"at": "b"}, {"at": "c"}
MEMBERS = {f"account-{number}": {"at": number} for number in range(40)}
HEAD = {"members": "entries"}


def decoded(store, state_key="run"):
    return {key: codec.decode(entry.value) for key, entry in store.load(state_key).items()}


def seed(store, **values):
    store.commit("run", {key: codec.encode(value) for key, value in values.items()})


def members(store, name="g"):
    with Checkpointer("run", store) as cp:
        return dict(cp.group(name))


def packed(content, shards, name="g"):
    """Return the entries of a packed group; shards without members are left out."""
    entries = {f"__group__.{name}": {"shards": shards}}
    for member, cursor in content.items():
        entries.setdefault(f"__group__.{name}.{crc32(member.encode()) % shards:02d}", {})[member] = cursor
    return entries


def version_1(content, shards, name="g"):
    """Return the entries that version 1 stored a group in."""
    if shards == 1:
        return {name: content}
    entries = {f"{name}.{shards:02d}-{index:02d}": {} for index in range(shards)}
    for member, cursor in content.items():
        entries[f"{name}.{shards:02d}-{crc32(member.encode()) % shards:02d}"][member] = cursor
    return entries


class Killed(BaseException):
    """What a kill between two requests is to the job: nothing after it runs."""


class PerKey:
    """A store that writes key by key, in any order, and dies after some writes; without versions, as the HTTP API."""

    def __init__(self, left=None, order=1):
        self.inner, self.left, self.order, self.whole = MemoryStore(), left, order, True
        self.writes: list[str] = []

    def load(self, state_key):
        return {key: entry._replace(version=None) for key, entry in self.inner.load(state_key).items()}

    def commit(self, state_key, changes, base={}, *, run_id=None):
        stored = self.load(state_key)
        for key, expected in base.items():
            found = stored.get(key)
            same = (found.value if found else None) == (expected.value if expected else None)
            if not same and not (key in changes and (found.value if found else None) == changes[key]):
                raise Conflict(state_key, key, expected, found)
        entries = {}
        for key, value in list(changes.items())[:: self.order]:
            if self.left == 0:
                self.whole = False
                raise Killed
            self.left = None if self.left is None else self.left - 1
            self.writes.append(key)
            entries.update(self.inner.commit(state_key, {key: value}, run_id=run_id).entries)
        return type(self.inner.commit(state_key, {}))(
            {key: entry._replace(version=None) for key, entry in entries.items()}
        )

    def close(self):
        pass


# An entry a member


def test_on_an_atomic_store_a_member_is_an_entry():
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        group = cp.group("crm", shards=7)
        group["a/b"] = A
        group["c"] = B
        assert (cp.changed, group.shards, repr(group)) == ({"crm"}, None, "Group('crm')")
        assert set(cp.commit().keys) == {"__group__.crm", "__group__.crm/a/b", "__group__.crm/c"}
        group["c"]["at"] = "c"
        assert cp.commit().keys == ("__group__.crm/c",)
        del group["a/b"]
        assert cp.commit().keys == ("__group__.crm/a/b",)
        assert cp.commit().keys == ()
        assert (dict(cp), dict(group)) == ({}, {"c": C})
    assert decoded(store) == {"__group__.crm": HEAD, "__group__.crm/c": C}


def test_members_of_different_runs_never_conflict():
    store = MemoryStore()
    with Checkpointer("run", store) as one, Checkpointer("run", store) as two:
        one.group("g")["a"] = A
        two.group("g", shards=4)["b"] = B
        one.commit()
        two.commit()
        one.group("g")["c"] = C
    assert decoded(store) == {"__group__.g": HEAD, "__group__.g/a": A, "__group__.g/b": B, "__group__.g/c": C}


def test_the_member_that_another_run_changed_is_named():
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        group.update(a=A, b=B)
        cp.commit()
        store.commit("run", {"__group__.g/b": codec.encode(C), "__group__.g/new": codec.encode(A)})
        group.update(a=C, b=A)
        with pytest.raises(Conflict, match="'b' of the group 'g' in 'run' was changed by another writer") as caught:
            cp.commit()
        assert (caught.value.key, caught.value.member) == ("g", "b")
        cp.discard()
        assert dict(group) == {"a": A, "b": C, "new": A}
        group["b"] = B
    assert members(store) == {"a": A, "b": B, "new": A}


def test_a_member_that_is_no_cursor_harms_only_who_reads_it():
    store = MemoryStore()
    seed(store, **{"__group__.g": HEAD, "__group__.g/a": A})
    store.commit("run", {"__group__.g/x": "opaque!"})
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        assert (set(group), group["a"]) == ({"a", "x"}, A)
        with pytest.raises(CorruptState, match="the value of 'x' of the group 'g' in 'run' is not a cursor"):
            group["x"]
        group["x"] = B
    assert members(store) == {"a": A, "x": B}


def test_a_group_commits_only_what_changed_of_many():
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        group.update({str(number): {"at": number} for number in range(2_000)})
        cp.commit()
        assert sum(cursor["at"] for cursor in group.values()) == 1_999_000  # all of them were read
        group["7"]["at"] = 70
        assert cp.commit().keys == ("__group__.g/7",)


# Packed


def test_on_the_api_members_are_packed_and_the_head_comes_first(api, truto):
    with Checkpointer("run", truto) as cp:
        group = cp.group("crm", shards=4)
        group.update(MEMBERS)
        assert len(cp.commit().keys) == 5
        group["account-3"] = A
        assert cp.commit().keys == (f"__group__.crm.{crc32(b'account-3') % 4:02d}",)
        assert (group.shards, repr(group), cp.commit().keys) == (4, "Group('crm', shards=4)", ())
    assert decoded(truto) == packed({**MEMBERS, "account-3": A}, 4, "crm")
    written = [call for call in api.requests if call.method != "GET"]
    assert [call.method for call in written] == ["POST"] * 5 + ["PATCH"]


def test_shards_are_16_where_nothing_is_said():
    store = PerKey()
    with Checkpointer("run", store) as cp:
        cp.group("g").update(MEMBERS)
    assert store.writes[0] == "__group__.g"
    assert decoded(store) == packed(MEMBERS, 16)


def test_fault_77_the_stored_number_of_shards_counts(caplog):
    store = PerKey()
    with Checkpointer("run", store) as cp:
        cp.group("g", 4).update(MEMBERS)
    with caplog.at_level(logging.WARNING, "checkpoint"), Checkpointer("run", store) as cp:
        for shards in (None, 4):
            assert cp.group("g", shards).shards == 4
        assert caplog.messages == []
        group = cp.group("g", 8)
        group["account-3"] = A
    assert caplog.messages == [
        "'run': the group 'g' is stored in 4 shards, not 8: `checkpoint reshard run g --shards 8` changes that"
    ]
    assert decoded(store) == packed({**MEMBERS, "account-3": A}, 4)


@pytest.mark.parametrize("kind", [PerKey, MemoryStore])
@pytest.mark.parametrize("old", [None, 1, 4])
def test_fault_77_two_runs_that_create_it_differently(kind, old):
    """Nothing that was acknowledged is lost; who comes second is told, and goes on after a discard."""
    store = kind()
    if old:
        seed(store, **version_1(MEMBERS, old))
    wanted = dict(MEMBERS) if old else {}
    with Checkpointer("run", store) as one, Checkpointer("run", store) as two:
        first, second = one.group("g", 4), two.group("g", 8)
        first["one"] = A
        one.commit()
        second["two"] = B
        if kind is PerKey or old:
            with pytest.raises(Conflict) as caught:
                two.commit()
            assert caught.value.key == "g"
            two.discard()
            second["two"] = B
        two.commit()
        two.reload()
        assert dict(second) == {**wanted, "one": A, "two": B}
        assert second.shards == (4 if kind is PerKey else None)
    assert members(store) == {**wanted, "one": A, "two": B}


def test_a_shard_that_another_run_changed_names_the_member():
    store = PerKey()
    with Checkpointer("run", store) as cp, Checkpointer("run", store) as other:
        group = cp.group("g", 1)
        group.update(a=A, b=A, c=A)
        cp.commit()
        other.reload()
        other.group("g").update(b=B, c=B)
        other.commit()
        group["a"] = C
        with pytest.raises(Conflict) as caught:
            cp.commit()
        assert (caught.value.key, caught.value.member) == ("g", "b")
        cp.discard()
        assert dict(group) == {"a": A, "b": B, "c": B}
        group["a"] = C
    assert members(store) == {"a": C, "b": B, "c": B}


@pytest.mark.parametrize("on_conflict", ["raise", "overwrite"])
def test_fault_77_a_group_made_with_other_shards_conflicts(on_conflict):
    """Also to a run that overwrites: its head would hide the members of the other."""
    store = PerKey()
    with Checkpointer("run", store, on_conflict=on_conflict) as cp:
        group = cp.group("g", 2)
        group["mine"] = A
        with Checkpointer("run", store) as other:
            other.group("g", 1).update(MEMBERS)
        with pytest.raises(Conflict):
            cp.commit()
        cp.discard()
        group["mine"] = A
    assert members(store) == {**MEMBERS, "mine": A}


@pytest.mark.parametrize("on_conflict", ["raise", "overwrite"])
def test_fault_77_a_head_that_another_run_changed_is_a_conflict(on_conflict):
    """Written before or after a shard: what is written by another number of shards must not be taken for stored."""
    store = PerKey()
    with Checkpointer("run", store, on_conflict=on_conflict) as cp:
        group = cp.group("g", 2)
        group.update(MEMBERS)
        cp.commit()
        store.commit("run", {key: codec.encode(value) for key, value in packed(MEMBERS, 3).items()})
        group["account-3"] = A
        with pytest.raises(Conflict):
            cp.commit()
        cp.discard()
        assert (group.shards, dict(group)) == (3, MEMBERS)
        group["account-3"] = A
    assert members(store) == {**MEMBERS, "account-3": A}


def test_fault_77_overwriting_keeps_members_packed_beside():
    """A run that overwrites replaces the members that it changed, not what another run packed with them."""
    store = PerKey()
    with Checkpointer("run", store, on_conflict="overwrite") as cp:
        group = cp.group("g", 1)
        group.update(both=A, mine=A, dropped=A, theirs=A, gone=A, same=A)
        cp.commit()
        with Checkpointer("run", store) as other:
            others = other.group("g")
            others.update(both=B, theirs=B, new=B)
            del others["gone"]
        group.update(both=C, mine=C)
        del group["dropped"]
        cp.commit()
        wanted = {"both": C, "mine": C, "theirs": B, "new": B, "same": A}
        assert dict(group) == members(store) == wanted
        group["mine"] = A
    assert members(store) == {**wanted, "mine": A}


def test_fault_77_overwriting_takes_back_unanswered_writes():
    """A member set in a write that was lost, and then set back, is one that the run changes."""

    class Lossy(PerKey):
        loses = False

        def commit(self, state_key, changes, base={}, *, run_id=None):
            receipt = super().commit(state_key, changes, base, run_id=run_id)
            if self.loses:
                self.loses = False
                raise CommitUnknown(state_key, changes)
            return receipt

    store = Lossy()
    with Checkpointer("run", store, on_conflict="overwrite") as cp:
        group = cp.group("g", 1)
        group.update(a=A, b=A)
        cp.commit()
        group["a"] = B
        store.loses = True
        with pytest.raises(CommitUnknown):
            cp.commit()
        with Checkpointer("run", store) as other:
            assert other.group("g")["a"] == B
            other.group("g")["b"] = C
        group["a"] = A
    assert members(store) == {"a": A, "b": C}


def test_shards_without_a_head_are_damage_and_no_fresh_start():
    store = PerKey()
    entries = packed(MEMBERS, 2)
    del entries["__group__.g"]
    seed(store, **entries)
    with Checkpointer("run", store) as cp, pytest.raises(CorruptState, match="has 2 shards, but no head"):
        cp.group("g")
    assert decoded(store) == entries


@pytest.mark.parametrize("value", [None, codec.encode({"members": "entries"})])
def test_a_damaged_head_is_mended_as_its_error_says(value):
    """The mapping and `raw` do not hold it; the statement in the text does it, with the value or None."""
    store = MemoryStore()
    seed(store, **{"__group__.g": {"shards": "many"}, "__group__.g/a": A})
    with Checkpointer("run", store) as cp, pytest.raises(CorruptState) as caught:
        cp.group("g")
    assert caught.value.key == "__group__.g"
    statement = "store.commit('run', {'__group__.g': value})"
    assert str(caught.value).endswith(f": restore its value with {statement}, or delete it with None as value")
    eval(statement, {"store": store, "value": value})
    assert members(store) == {"a": A}


def test_a_damaged_shard_harms_only_who_reads_it():
    store = PerKey()
    seed(store, **packed(MEMBERS, 2))
    store.commit("run", {"__group__.g.01": "bare text"})
    good = [member for member in MEMBERS if crc32(member.encode()) % 2 == 0]
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        assert [group[member] for member in good] == [MEMBERS[member] for member in good]
        with pytest.raises(CorruptState) as caught:
            len(group)
        assert caught.value.key == "__group__.g.01"
    assert store.load("run")["__group__.g.01"].value == "bare text"


def test_an_item_that_is_no_object_stays_as_it_is():
    store = PerKey()
    seed(store, **{"__group__.g": {"shards": 1}, "__group__.g.00": {"a": 5, "b": B}})
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        assert ("a" in group, group["b"]) == (True, B)
        with pytest.raises(CorruptState):
            group["a"]
        group["b"] = C
    assert decoded(store)["__group__.g.00"] == {"a": 5, "b": C}
    with Checkpointer("run", store) as cp:
        cp.group("g")["a"] = A
    assert members(store) == {"a": A, "b": C}


@pytest.mark.parametrize(("first", "second"), [("g", "g.00"), ("g.00", "g"), ("g", "g.15")])
def test_groups_that_would_share_an_entry_are_refused(first, second):
    for known in (True, False):
        store = PerKey()
        with Checkpointer("run", store) as cp:
            cp.group(first, 16).update(MEMBERS)
            if known:
                cp.commit()
            with pytest.raises(ValueError, match="would share entries with another group"):
                cp.group(second)
                cp.commit()
    with Checkpointer("run", MemoryStore()) as cp:
        cp.group(first)["x"] = A
        cp.group(second)["x"] = B
        cp.commit()
        assert (dict(cp.group(first)), dict(cp.group(second))) == ({"x": A}, {"x": B})


def test_ten_thousand_members_are_a_few_writes(api):
    with closing(TrutoStore(api.url, api.token)) as store, Checkpointer("run", store) as cp:
        group = cp.group("g", 64)
        group.update({f"partition-{number}": {"at": number} for number in range(10_000)})
        cp.commit()
        before = len(api.requests)
        for member in group:
            group[member]["at"] += 1
        assert len(cp.commit().keys) == 64
        assert [call.method for call in api.requests[before:] if call.method != "GET"] == ["PATCH"] * 64


def test_what_is_stored_counts_on_another_kind_of_store():
    """Entries that were copied as they are, from one kind of store to the other."""
    store = MemoryStore()
    seed(store, **packed(MEMBERS, 3))
    with Checkpointer("run", store) as cp:
        group = cp.group("g", 9)
        assert (group.shards, dict(group)) == (3, MEMBERS)
        group["account-3"] = A
    assert decoded(store) == packed({**MEMBERS, "account-3": A}, 3)
    store = PerKey()
    seed(store, **{"__group__.g": HEAD, "__group__.g/a": A})
    with Checkpointer("run", store) as cp:
        cp.group("g")["b"] = B
    assert decoded(store) == {"__group__.g": HEAD, "__group__.g/a": A, "__group__.g/b": B}


# Version 1


@pytest.mark.parametrize("old", [1, 2, 16])
def test_what_version_1_stored_is_read_and_moved(store, old):
    seed(store, other=A, **version_1(MEMBERS, old))
    before = decoded(store)
    with Checkpointer("run", store) as cp:
        assert set(cp) == {"other", *version_1(MEMBERS, old)}  # until it is opened
        group = cp.group("g")
        assert (dict(group), set(cp)) == (MEMBERS, {"other"})
        assert cp.commit().keys == ()
    assert decoded(store) == before
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        group["account-3"] = A
        del group["account-4"]
        cp.commit()
        assert cp.commit().keys == ()
    wanted = {**MEMBERS, "account-3": A}
    del wanted["account-4"]
    assert members(store) == wanted
    assert not [key for key in store.load("run") if key.startswith("g")]
    if isinstance(store, Atomic):
        assert len(store.load("run")) == 39 + 2


def test_a_stream_reads_what_version_1_stored(store):
    seed(store, **version_1({"s": {"at": 5}, "t": {"at": 1}}, 2))
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", group="g", row_order="asc")
        assert stream.start_value == 5
        stream.filter([{"at": 7}])
        cp.commit(stream)
    assert members(store) == {"s": {"at": 7}, "t": {"at": 1}}


@pytest.mark.parametrize("old", [1, 3])
@pytest.mark.parametrize("order", [1, -1])
def test_fault_37_killed_in_a_move_no_member_is_lost(old, order):
    """Between any two writes: the old entries count until the head is written, and then the new ones do."""
    for cut in itertools.count():
        store = PerKey(None, order)
        seed(store.inner, **version_1(MEMBERS, old))
        store.left = cut
        try:
            with Checkpointer("run", store) as cp:
                cp.group("g", 4)["account-3"] = A
                cp.commit()
        except Killed:
            pass
        store.left = None
        found = members(store)
        assert found in (MEMBERS, {**MEMBERS, "account-3": A})
        with Checkpointer("run", store) as cp:  # in any number of shards it goes on
            cp.group("g", 3)["account-5"] = B
        assert members(store) == {**found, "account-5": B}
        assert not [key for key in store.load("run") if key.startswith("g")]
        if store.whole:
            return


@pytest.mark.parametrize("order", [1, -1])
def test_fault_37_killed_when_it_is_created_no_shard_is_torn(order):
    for cut in itertools.count():
        store = PerKey(cut, order)
        try:
            with Checkpointer("run", store) as cp:
                cp.group("g", 3).update(MEMBERS)
        except Killed:
            pass
        store.left = None
        found = members(store)
        assert all(MEMBERS[member] == cursor for member, cursor in found.items())
        if store.whole:
            assert found == MEMBERS
            return


def test_fault_77_layouts_of_version_1_beside_each_other():
    """Two runs of version 1 wrote them; each holds members that the other does not."""
    store = MemoryStore()
    seed(store, **version_1({"a": A, "b": A}, 2))
    seed(store, **version_1({"b": B, "c": B}, 3))
    assert members(store) == {"a": A, "b": B, "c": B}
    with Checkpointer("run", store) as cp:
        cp.group("g")["d"] = C
    assert members(store) == {"a": A, "b": B, "c": B, "d": C}
    assert not [key for key in store.load("run") if key.startswith("g")]


def test_a_missing_entry_of_version_1_is_named(store):
    seed(store, **version_1(MEMBERS, 4))
    store.commit("run", {"g.04-02": None})
    kept = decoded(store)
    with Checkpointer("run", store) as cp, pytest.raises(CorruptState) as caught:
        cp.group("g")
    assert (caught.value.key, caught.value.value) == ("g.04-02", None)
    assert decoded(store) == kept


def test_a_first_commit_of_version_1_that_was_cut_off_counts():
    store = PerKey()
    entries = version_1(MEMBERS, 4)
    del entries["g.04-03"], entries["g.04-01"]
    seed(store, **entries)
    left = {member: cursor for member, cursor in MEMBERS.items() if crc32(member.encode()) % 4 in (0, 2)}
    assert members(store) == left


@pytest.mark.parametrize("cursor", [{"updated_at": "2024-05-01"}, {"a": A, "n": 1}])
def test_a_group_over_a_plain_cursor_is_refused(store, cursor):
    seed(store, g=cursor)
    with Checkpointer("run", store) as cp:
        with pytest.raises(ValueError, match="'g' in 'run' holds a cursor, not a group"):
            cp.group("g")
        with pytest.raises(ValueError, match="holds a cursor"):
            cp.incremental("s", "at", group="g")
        assert cp["g"] == cursor


def test_an_empty_object_is_either():
    store = MemoryStore()
    seed(store, g={})
    with Checkpointer("run", store) as cp:
        assert cp["g"] == {}
        assert dict(cp.group("g")) == {}


# Keys of the mapping, and streams


def test_its_name_and_entries_are_no_keys_of_the_mapping(store):
    with Checkpointer("run", store) as cp:
        cp["own"] = A
        group = cp.group("g", shards=2)
        group["x"] = A
        cp.commit()
        assert (dict(cp), len(cp), "g" in cp, "g" in cp.raw) == ({"own": A}, 1, False, False)
        for refused in (lambda: cp.update(g=A), lambda: cp.incremental("g", "at"), lambda: cp.restore("g", 1)):
            with pytest.raises(ValueError, match="stores the group 'g'"):
                refused()
        cp["set"] = A
        with pytest.raises(ValueError, match="is a key of this run"):
            cp.group("set")
    with Checkpointer("run", store) as cp, pytest.raises(ValueError, match="'g' is the name of a group"):
        cp["g"] = A


def test_opening_it_again_detaches_the_earlier_one():
    with Checkpointer("run", MemoryStore()) as cp:
        earlier = cp.group("g")
        earlier["x"] = A
        stream = cp.incremental("s", "at", group=earlier)
        group = cp.group("g")
        assert (dict(group), stream.live) == ({}, False)
        with pytest.raises(RuntimeError, match="opened again, or its run has ended"):
            earlier["x"] = A
        with pytest.raises(ValueError, match="not a live group"):
            cp.commit(earlier)
    with pytest.raises(RuntimeError, match="its run has ended"):
        group["x"] = A


def test_a_commit_may_name_groups_members_and_keys(store):
    with Checkpointer("run", store) as cp:
        one, two = cp.group("one", 1), cp.group("two", 1)
        one["x"] = two["x"] = cp["key"] = A
        stream = cp.incremental("s", "at", group=two, row_order="asc")
        stream.filter([{"at": 1}])
        cp.commit("one")
        assert cp.changed == {"two", "key"}
        with pytest.raises(ValueError, match="'s' is a member of the group 'two': commit the stream, or the group"):
            cp.commit("s")
        cp.commit(stream)
        assert cp.changed == {"two", "key"}
        cp.commit(two, "key")
        assert cp.changed == set()
    assert (members(store, "one"), members(store, "two")) == ({"x": A}, {"s": {"at": 1}, "x": A})


def test_a_commit_of_one_stream_leaves_the_others(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("crm", 1)
        a, b = (cp.incremental(key, "at", group=group, row_order="asc") for key in "ab")
        group["plain"] = A
        a.filter([{"at": 1}])
        b.filter([{"at": 1}])
        cp.commit(a)
        with Checkpointer("run", store) as other:
            assert dict(other.group("crm")) == {"a": {"at": 1}}
        a.filter([{"at": 2}])
        cp.commit(b)
        with Checkpointer("run", store) as other:
            assert dict(other.group("crm")) == {"a": {"at": 1}, "b": {"at": 1}}
        cp.commit(group)
    assert members(store, "crm") == {"a": {"at": 2}, "b": {"at": 1}, "plain": A}


def test_where_one_stream_cannot_go_back_the_others_do():
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        group = cp.group("crm")
        a, b = (cp.incremental(key, "at", group=group, row_order="asc") for key in "ab")
        for stream in (a, b):
            stream.filter([{"at": 1}])
        cp.commit()
        b.filter([{"at": 2}])
        store.commit("run", {"__group__.crm/a": "opaque!"})
        with pytest.raises(CorruptState, match="'a' of the group 'crm'"):
            cp.reload()
        assert (a.live, b.live) == (False, True)
        assert b.filter([{"at": 2}]) == [{"at": 2}]
    assert codec.decode(store.load("run")["__group__.crm/b"].value) == {"at": 2}


def test_a_group_that_cannot_go_back_commits_nothing_more():
    store = PerKey()
    with Checkpointer("run", store) as cp:
        group = cp.group("g", 2)
        group.update(MEMBERS)
        cp.commit()
        stream = cp.incremental("s", "at", group=group)
        store.commit("run", {"__group__.g": "opaque!"})
        group["account-3"] = A
        with pytest.raises(Conflict):
            cp.commit()
        with pytest.raises(CorruptState):
            cp.discard()
        assert (group.live, stream.live) == (False, False)
    assert store.load("run")["__group__.g"].value == "opaque!"


def test_a_failed_commit_of_a_new_group_goes_out_with_the_next():
    """The head and the shards belong together: a later commit of one member must not leave them behind."""

    class Down(PerKey):
        down = True

        def commit(self, state_key, changes, base={}, *, run_id=None):
            if self.down:
                raise CommitUnknown(state_key, changes)
            return super().commit(state_key, changes, base, run_id=run_id)

    store = Down()
    with Checkpointer("run", store) as cp:
        group = cp.group("g", 2)
        group.update(MEMBERS)
        with pytest.raises((CommitUnknown, PartialCommit)):
            cp.commit()
        store.down = False
        stream = cp.incremental("s", "at", group=group, row_order="asc")
        stream.filter([{"at": 1}])
        cp.commit(stream)
        assert cp.changed == set()
    assert members(store) == {**MEMBERS, "s": {"at": 1}}
    assert store.writes[0] == "__group__.g"


def test_opening_and_committing_ten_thousand_streams_is_linear():
    """Counted, not timed: the calls of Python functions for one stream do not grow with the streams before it."""
    import sys

    def calls(number):
        count = 0

        def profile(_frame, event, _arg):
            nonlocal count
            count += event == "call"

        with Checkpointer("run", MemoryStore()) as cp:
            group = cp.group("g")
            for at in range(number):
                if at == number - 1:
                    sys.setprofile(profile)
                stream = cp.incremental(f"s{at}", "at", group=group, row_order="asc")
                with stream:
                    for _ in stream.pages([[{"at": 1}]]):
                        pass
                cp.commit(stream)
            sys.setprofile(None)
        return count

    assert calls(1_000) < calls(3) * 1.5


# checkpoint reshard


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("before", "after"), [(2, 5), (5, 2), (3, 3), (1, 4)])
def test_fault_37_killed_in_a_reshard_no_member_is_lost(before, after, order):
    for cut in itertools.count():
        store = PerKey(None, order)
        seed(store, **packed(MEMBERS, before))
        store.left = cut
        with suppress(Killed):
            assert reshard(store, "run", "g", after) == (before, 40)
        store.left = None
        store.inner.commit("run", {"__lease__": None})  # of the one that was killed; it ends by itself
        with Checkpointer("run", store) as cp:
            group = cp.group("g")
            assert (dict(group), len(group)) == (MEMBERS, 40)
            assert group.shards in (before, after)
            group["account-3"] = A  # in either number of shards
            del group["account-4"]
        wanted = {**MEMBERS, "account-3": A}
        del wanted["account-4"]
        assert members(store) == wanted
        assert reshard(store, "run", "g", after)[1] == 39
        found = decoded(store)
        found.pop("__lease__")
        assert {key: value for key, value in found.items() if value} == packed(wanted, after)
        if store.whole:
            return


def test_reshard_says_what_it_cannot_do(store):
    for shards in (0, 1_001):
        with pytest.raises(ValueError, match="shards must be from 1 to 1000"):
            reshard(store, "run", "g", shards)
    with pytest.raises(ValueError, match="there is no group 'g' in 'run'"):
        reshard(store, "run", "g", 2)
    seed(store, **{"__group__.g": HEAD, "__group__.g/a": A})
    with pytest.raises(ValueError, match="has one entry per member"):
        reshard(store, "run", "g", 2)
    assert "__lease__" not in store.load("run")


def test_reshard_waits_for_the_lease():
    store = PerKey()
    seed(store, **packed(MEMBERS, 2))
    with Checkpointer("run", store, exclusive=1.0), pytest.raises(Locked):
        reshard(store, "run", "g", 3)
    assert reshard(store, "run", "g", 3) == (2, 40)
    assert members(store) == MEMBERS


@pytest.mark.parametrize("shards", [1, 4])
def test_entries_of_version_1_beside_a_moved_group_are_told(caplog, shards):
    """A job of release 0.1 does not know the head, finds its group empty, and starts over in entries of its own."""
    store = MemoryStore()
    seed(store, **version_1(MEMBERS, shards))
    with Checkpointer("run", store) as cp:
        cp.group("g")["mine"] = A
    with Checkpointer("run", store) as cp:
        assert cp.group("g")["mine"] == A
    assert caplog.messages == []
    seed(store, **version_1({"theirs": B}, shards))
    with Checkpointer("run", store) as cp:
        assert dict(cp.group("g")) == {**MEMBERS, "mine": A}
    beside = "'g'" if shards == 1 else "'g.04-00', 'g.04-01', 'g.04-02', 'g.04-03'"
    told = f"'run': a job of release 0.1 stores the group 'g' in entries of its own ({beside}), apart from this one"
    assert caplog.messages == [f"{told}: stop that job, and delete these entries"]
