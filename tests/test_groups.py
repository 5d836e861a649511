"""Groups: many cursors in one entry, or in a few."""

from __future__ import annotations

import itertools
import logging
from contextlib import closing
from typing import TYPE_CHECKING
from zlib import crc32

import pytest

from checkpoint import (
    AsyncCheckpointer,
    Checkpointer,
    CommitUnknown,
    Conflict,
    CorruptState,
    MemoryStore,
    PartialCommit,
    codec,
)
from checkpoint.run.groups import entries_of, laid_out, shards_of
from checkpoint.stores.truto import TrutoStore

if TYPE_CHECKING:
    from checkpoint import Store

A, B, C = {"at": "a"}, {"at": "b"}, {"at": "c"}
MEMBERS = {f"account-{number}": {"at": number} for number in range(40)}


def stored(store: Store, state_key: str = "run") -> dict[str, dict]:
    return {key: codec.decode(entry.value) for key, entry in store.load(state_key).items()}


def members(store: Store, shards: int, name: str = "g") -> dict[str, dict]:
    with Checkpointer("run", store) as cp:
        return dict(cp.group(name, shards))


def test_one_shard_is_one_entry_of_plain_json(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("crm")
        group["a"] = A
        group["b"] = B
        assert cp.changed == {"crm"}
        assert cp.commit().keys == ("crm",)
        assert cp.changed == set()
    assert stored(store) == {"crm": {"a": A, "b": B}}
    assert members(store, 1, "crm") == {"a": A, "b": B}


def test_several_shards_are_several_entries_and_all_of_them_exist(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("crm", shards=16)
        group["acme"] = A
        cp.commit()
    index = crc32(b"acme") % 16
    assert stored(store) == {f"crm.16-{at:02d}": {"acme": A} if at == index else {} for at in range(16)}


def test_a_commit_sends_only_the_shards_that_changed(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g", shards=8)
        group.update(MEMBERS)
        assert len(cp.commit().keys) == 8
        group["account-3"] = A
        assert cp.commit().keys == (f"g.08-{crc32(b'account-3') % 8:02d}",)
        assert cp.commit().keys == ()
        group["account-3"] = {"at": "a"}
        assert cp.commit().keys == ()
    assert members(store, 8) == {**MEMBERS, "account-3": A}


def test_an_empty_group_that_was_only_opened_writes_nothing(store):
    with Checkpointer("run", store) as cp:
        assert dict(cp.group("g", shards=4)) == {}
        assert cp.commit().keys == ()
    assert store.load("run") == {}


def test_it_is_a_mutable_mapping():
    with Checkpointer("run", MemoryStore()) as cp:
        group = cp.group("g", shards=4)
        group.update(MEMBERS)
        assert (len(group), set(group), "account-1" in group, "z" in group, 1 in group) == (
            40, set(MEMBERS), True, False, False,
        )  # fmt: skip
        assert group.pop("account-1") == {"at": 1}
        assert group.pop("account-1", None) is None
        assert group.get("account-1") is None
        assert group.setdefault("account-1", A) == A
        for missing in (group.__getitem__, group.__delitem__):
            with pytest.raises(KeyError, match="z"):
                missing("z")
        with pytest.raises(TypeError, match="a member must be a str, not int"):
            group[1] = A
        with pytest.raises(ValueError, match="lone surrogates"):
            group["\ud800"] = A
        with pytest.raises(TypeError, match="keys must be str"):
            group["a"] = {1: 2}
        group.clear()
        assert (len(group), dict(group)) == (0, {})


def test_what_is_set_is_copied_and_what_is_read_is_live(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g", shards=4)
        mine = {"at": "a"}
        group["x"] = mine
        mine["at"] = "changed"
        assert group["x"] == A
        cp.commit()
        group["x"]["at"] = "b"
        assert cp.changed == {"g"}
        assert len(cp.commit().keys) == 1
        group["x"]["at"] = "c"
    assert members(store, 4) == {"x": C}


def test_a_member_spoilt_in_place_is_refused_before_anything_is_sent(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g", shards=4)
        group["x"] = A
        cp["other"] = A
        group["x"]["at"] = {1, 2}
        with pytest.raises(TypeError, match="set"):
            cp.commit()
        assert store.load("run") == {}
        group["x"] = B
    assert members(store, 4) == {"x": B}


def test_a_deleted_member_is_gone_and_its_shard_stays(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g", shards=2)
        group["x"] = A
        cp.commit()
        del group["x"]
        assert ("x" in group, len(group)) == (False, 0)
        assert len(cp.commit().keys) == 1
    assert stored(store) == {"g.02-00": {}, "g.02-01": {}}


def test_its_entries_are_no_keys_of_the_mapping(store):
    with Checkpointer("run", store) as cp:
        cp["own"] = A
        group = cp.group("g", shards=2)
        group["x"] = A
        cp.commit()
        assert (dict(cp), len(cp), "g" in cp, "g.02-00" in cp, "g.02-00" in cp.raw) == (
            {"own": A},
            1,
            False,
            False,
            False,
        )
        for key in ("g", "g.02-00", "g.16-07"):
            with pytest.raises(KeyError):
                cp[key]
            for refused in (lambda key=key: cp.update({key: A}), lambda key=key: cp.incremental(key, "at")):
                with pytest.raises(ValueError, match="holds the group 'g'"):
                    refused()
        cp["g.1-0"] = cp["g.2-02"] = cp["gg"] = B
        assert set(cp) == {"own", "g.1-0", "g.2-02", "gg"}


def test_opening_it_again_detaches_the_earlier_one():
    with Checkpointer("run", MemoryStore()) as cp:
        earlier = cp.group("g")
        earlier["x"] = A
        group = cp.group("g")
        assert dict(group) == {}
        with pytest.raises(RuntimeError, match="opened again, or its run has ended"):
            earlier["x"] = A
        with pytest.raises(ValueError, match="not a live group"):
            cp.commit(earlier)
    with pytest.raises(RuntimeError, match="its run has ended"):
        group["x"] = A


@pytest.mark.parametrize(
    ("shards", "error"), [(0, ValueError), (1001, ValueError), (True, TypeError), ("4", TypeError)]
)
def test_a_wrong_number_of_shards_is_refused(shards, error):
    with Checkpointer("run", MemoryStore()) as cp, pytest.raises(error, match="shards must be"):
        cp.group("g", shards)


def test_members_of_one_name_are_apart_from_keys_set_before(store):
    with Checkpointer("run", store) as cp:
        cp["g"] = {"x": A}
        assert dict(cp.group("g")) == {"x": A}
    assert stored(store) == {"g": {"x": A}}


def test_discard_takes_it_back_to_the_last_claim(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g", shards=4)
        group["x"] = A
        cp.commit()
        group["x"]["at"] = "changed"
        group["y"] = B
        cp.discard()
        assert dict(group) == {"x": A}
        assert cp.commit().keys == ()


def test_a_conflict_is_one_of_the_entry_and_discard_adopts_what_was_found(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        group["x"] = A
        cp.commit()
        store.commit("run", {"g": codec.encode({"x": B, "y": B})})
        group["x"] = C
        with pytest.raises(Conflict) as caught:
            cp.commit()
        assert caught.value.key == "g"
        cp.discard()
        assert dict(group) == {"x": B, "y": B}
        group["x"] = C
    assert members(store, 1) == {"x": C, "y": B}


def test_an_exception_keeps_what_was_committed(store):
    with pytest.raises(ZeroDivisionError), Checkpointer("run", store) as cp:
        group = cp.group("g", shards=2)
        group["x"] = A
        cp.commit()
        group["x"] = B
        1 / 0
    assert members(store, 2) == {"x": A}


def test_commit_soon_takes_it_along(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g", shards=2)
        for number in range(50):
            group["x"] = {"at": number}
            cp.commit_soon()
        cp.flush()
        assert members(store, 2) == {"x": {"at": 49}}


def test_a_commit_may_name_it(store):
    with Checkpointer("run", store) as cp:
        one, two = cp.group("one"), cp.group("two")
        one["x"] = two["x"] = A
        cp["key"] = A
        assert cp.commit("one").keys == ("one",)
        assert cp.commit(two, "key").keys in {("two", "key"), ("key", "two")}


# Streams in a group


def test_a_stream_keeps_its_cursor_as_a_member(store):
    rows = [{"id": number, "at": f"2024-05-{number:02d}"} for number in range(1, 10)]
    with Checkpointer("run", store) as cp:
        cp.group("crm", shards=4)
        for account in ("a", "b"):
            stream = cp.incremental(account, "at", group="crm", row_order="asc")
            assert stream.filter(rows) == rows
    with Checkpointer("run", store) as cp:
        assert dict(cp.group("crm", 4)) == {"a": {"at": "2024-05-09"}, "b": {"at": "2024-05-09"}}
        assert cp.incremental("a", "at", group="crm").start_value == "2024-05-09"


def test_a_stream_opens_its_group_as_it_is_stored(store):
    with Checkpointer("run", store) as cp:
        cp.group("crm", shards=4)["a"] = {"at": 5}
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("a", "at", group="crm", row_order="asc")
        assert stream.start_value == 5
        stream.filter([{"at": 7}])
    assert members(store, 4, "crm") == {"a": {"at": 7}}


def test_a_commit_of_one_stream_sends_the_others_as_last_claimed(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("crm")
        a, b = (cp.incremental(key, "at", group=group, row_order="asc") for key in "ab")
        group["plain"] = A
        a.filter([{"at": 1}])
        b.filter([{"at": 1}])
        cp.commit(a)
        assert stored(store) == {"crm": {"a": {"at": 1}}}
        a.filter([{"at": 2}])
        cp.commit(b)
        assert stored(store) == {"crm": {"a": {"at": 1}, "b": {"at": 1}}}
        cp.commit(group)
        assert stored(store) == {"crm": {"a": {"at": 2}, "b": {"at": 1}, "plain": A}}


def test_a_held_member_reads_as_its_last_claim_and_is_not_set(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("crm")
        stream = cp.incremental("a", "at", group=group, row_order="asc")
        stream.filter([{"at": 1}])
        assert "a" not in group
        cp.commit()
        stream.filter([{"at": 2}])
        assert group["a"] == {"at": 1}
        group["a"]["at"] = 99  # a copy
        assert group["a"] == {"at": 1}
        for refused in (lambda: group.update(a=A), lambda: group.pop("a")):
            with pytest.raises(ValueError, match="'a' of 'crm' is held by a live stream"):
                refused()
        cp.discard()
        assert stream.start_value == 1
        again = cp.incremental("a", "at", group=group)
        assert (stream.live, again.live) == (False, True)
        with pytest.raises(ValueError, match="not a live stream"):
            cp.commit(stream)


def test_a_group_of_another_run_is_refused():
    with Checkpointer("run", MemoryStore()) as cp, Checkpointer("run", MemoryStore()) as other:
        with pytest.raises(ValueError, match="not a live group of this run"):
            cp.incremental("a", "at", group=other.group("g"))
        with pytest.raises(ValueError, match="not a live group of this run"):
            cp.commit(other.group("g"))


async def group_in_async(store: Store) -> None:
    async with AsyncCheckpointer("run", store) as cp:
        group = cp.group("g", 2)
        group["x"] = A
        stream = cp.incremental("y", "at", group=group, row_order="asc")
        assert [row async for row in stream.track(_async([{"at": 1}]))] == [{"at": 1}]
        await cp.commit(group)
        assert dict(group) == {"x": A, "y": {"at": 1}}


async def _async(rows):
    for row in rows:
        yield row


def test_it_works_with_asyncio(store):
    import asyncio

    asyncio.run(group_in_async(store))
    assert members(store, 2) == {"x": A, "y": {"at": 1}}


# Another number of shards


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (4, 16), (16, 3)])
def test_opened_with_another_number_of_shards_it_moves(store, before, after):
    with Checkpointer("run", store) as cp:
        cp.group("g", before).update(MEMBERS)
    with Checkpointer("run", store) as cp:
        group = cp.group("g", after)
        assert dict(group) == MEMBERS
        group["account-3"] = A
        cp.commit()
        assert cp.commit().keys == ()
    assert set(store.load("run")) == set(entries_of("g", after))
    assert members(store, after) == {**MEMBERS, "account-3": A}


def test_it_moves_also_where_nothing_else_changed(store):
    with Checkpointer("run", store) as cp:
        cp.group("g", 2).update(MEMBERS)
    with Checkpointer("run", store) as cp:
        cp.group("g", 3)
    assert set(store.load("run")) == set(entries_of("g", 3))
    assert members(store, 3) == MEMBERS


def test_a_missing_entry_is_corrupt_and_named(store):
    with Checkpointer("run", store) as cp:
        cp.group("g", 4).update(MEMBERS)
    kept = stored(store)
    del kept["g.04-02"]
    store.commit("run", {"g.04-02": None})
    with Checkpointer("run", store) as cp:
        for shards in (4, 1, 8):
            with pytest.raises(CorruptState) as caught:
                cp.group("g", shards)
            assert (caught.value.key, caught.value.value) == ("g.04-02", None)
            assert str(caught.value) == (
                "'g.04-02' is missing in 'run' (the group 'g' is stored in 4 entries, and is missing g.04-02); what is "
                "there is kept as it is: put the missing entries back, or delete the others to start over"
            )
    assert stored(store) == kept


def test_an_entry_that_is_no_cursor_harms_only_who_reads_its_members(store):
    with Checkpointer("run", store) as cp:
        cp.group("g", 2).update(MEMBERS)
    store.commit("run", {"g.02-01": "bare text"})
    good = [member for member in MEMBERS if crc32(member.encode()) % 2 == 0]
    bad = next(member for member in MEMBERS if crc32(member.encode()) % 2 == 1)
    with Checkpointer("run", store) as cp:
        group = cp.group("g", 2)
        assert [group[member] for member in good] == [MEMBERS[member] for member in good]
        for reading in (lambda: group[bad], lambda: len(group), lambda: group.update({bad: A}) or cp.commit()):
            with pytest.raises(CorruptState) as caught:
                reading()
            assert caught.value.key == "g.02-01"
        cp.discard()
    assert store.load("run")["g.02-01"].value == "bare text"


def test_a_member_that_is_no_object_harms_only_who_reads_it(store):
    store.commit("run", {"g": codec.encode({"a": 5, "b": B})})
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        assert group["b"] == B
        with pytest.raises(CorruptState, match="its member 'a' is no object"):
            group["a"]
        group["b"] = C
    assert stored(store) == {"g": {"a": 5, "b": C}}


class Killed(BaseException):
    """What a kill between two requests is to the job: nothing after it runs."""


@pytest.mark.parametrize(("before", "after"), [(0, 3), (1, 3), (3, 1), (3, 2)])
def test_cut_between_any_two_writes_of_a_move_no_member_is_lost(before, after):
    """Every subset of a step may have landed when the process dies: each prefix of the steps, and half of a step."""
    start: dict[str, str] = {}
    if before:
        start = laid_out("run", "g", before, {"g": codec.encode(MEMBERS)}, key_by_key=True)
    for cut in itertools.count():
        store = PerKey(cut)
        store.inner.commit("run", start)
        try:
            with Checkpointer("run", store) as cp:
                group = cp.group("g", after)
                group["account-3"] = A
                cp.commit()
        except Killed:
            pass
        store.left = None
        seen = [members(store, shards) for shards in (after, before or after)]
        for found in seen:
            wanted = MEMBERS if before else {}
            assert found in (wanted, {**wanted, "account-3": A})
        if store.whole:
            assert seen[0] == {**(MEMBERS if before else {}), "account-3": A}
            assert cut >= after
            return


class PerKey:
    """A store that writes key by key, in no order, and dies after some writes; without versions, as the HTTP API is."""

    def __init__(self, left: int, order: int = 1) -> None:
        self.order = order
        self.inner = MemoryStore()
        self.left: int | None = left
        self.whole = True

    def load(self, state_key):
        return {key: entry._replace(version=None) for key, entry in self.inner.load(state_key).items()}

    def commit(self, state_key, changes, base={}, *, run_id=None):
        receipt = None
        entries = {}
        for key, value in list(changes.items())[:: self.order]:
            if self.left == 0:
                self.whole = False
                raise Killed
            self.left = None if self.left is None else self.left - 1
            receipt = self.inner.commit(state_key, {key: value}, run_id=run_id)
            entries.update(receipt.entries)
        assert receipt is not None
        return receipt._replace(entries=entries)

    def close(self):
        pass


def test_the_first_commit_writes_each_entry_once(api, truto):
    with Checkpointer("run", truto) as cp:
        group = cp.group("g", 64)
        for number in range(1_000):
            group[f"account-{number}"] = {"at": number}
        cp.commit()
    assert [call.method for call in api.requests if call.method != "GET"] == ["POST"] * 64


def test_a_first_commit_that_was_cut_off_goes_on(api, truto, caplog):
    with Checkpointer("run", truto) as cp:
        cp.group("g", 4).update(MEMBERS)
    truto.commit("run", {"g.04-03": None, "g.04-01": None})
    left = {member for member in MEMBERS if crc32(member.encode()) % 4 in (0, 2)}
    with caplog.at_level(logging.WARNING, "checkpoint"), Checkpointer("run", truto) as cp:
        group = cp.group("g", 4)
        assert set(group) == left
        group.update(MEMBERS)
    assert caplog.messages == ["'run': the first commit of the group 'g' was cut off; what it left counts"]
    assert members(truto, 4) == MEMBERS


def test_ten_thousand_members_are_a_few_writes(api):
    with closing(TrutoStore(api.url, api.token)) as store, Checkpointer("run", store) as cp:
        group = cp.group("g", 64)
        group.update({f"partition-{number}": {"at": number} for number in range(10_000)})
        cp.commit()
        before = len(api.requests)
        for member in group:
            group[member]["at"] += 1
        commit = cp.commit()
        assert len(commit.keys) == 64
        assert [call.method for call in api.requests[before:] if call.method != "GET"] == ["PATCH"] * 64


def test_which_keys_are_entries():
    told = {
        key: shards_of("g", key) for key in ("g", "g.16-00", "g.16-15", "g.16-16", "g.01-00", "g.1-0", "h", "g.x-y")
    }
    assert told == {"g": 1, "g.16-00": 16, "g.16-15": 16, "g.16-16": 0, "g.01-00": 0, "g.1-0": 0, "h": 0, "g.x-y": 0}
    assert entries_of("g", 100)[-1] == "g.100-99"
    assert shards_of("g", "g.100-99") == 100


def test_where_one_stream_of_a_group_cannot_go_back_the_others_do(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("crm")
        a, b = (cp.incremental(key, "at", group=group, row_order="asc") for key in "ab")
        for stream in (a, b):
            stream.filter([{"at": 1}])
        cp.commit()
        b.filter([{"at": 2}])
        store.commit("run", {"crm": codec.encode({"a": 5, "b": {"at": 1}})})
        with pytest.raises(CorruptState, match="its member 'a' is no object"):
            cp.reload()
        assert (a.live, b.live) == (False, True)
        assert b.filter([{"at": 2}]) == [{"at": 2}]
    assert stored(store) == {"crm": {"a": 5, "b": {"at": 2}}}


def test_a_group_that_cannot_go_back_commits_nothing_more(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g", shards=2)
        group.update(MEMBERS)
        cp.commit()
        for member in MEMBERS:
            group[member]["at"] = "changed"
        store.commit("run", {"g.02-00": None})
        with pytest.raises(Conflict):
            cp.commit()
        with pytest.raises(CorruptState, match="'g.02-00' is missing"):
            cp.discard()
        assert not group.live
    assert set(store.load("run")) == {"g.02-01"}


def test_a_commit_of_one_stream_leaves_a_deleted_member_deleted(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        group["x"] = A
        stream = cp.incremental("s", "at", group=group, row_order="asc")
        cp.commit()
        del group["x"]
        stream.filter([{"at": 1}])
        cp.commit(stream)
        assert ("x" in group, cp.changed) == (False, {"g"})
    assert stored(store) == {"g": {"s": {"at": 1}}}


@pytest.mark.parametrize("order", [1, -1])
def test_a_first_commit_that_was_cut_off_may_move_and_be_cut_off_again(order):
    start = laid_out("run", "g", 4, {"g": codec.encode(MEMBERS)}, key_by_key=True)
    del start["g.04-03"], start["g.04-01"]
    left = {member: cursor for member, cursor in MEMBERS.items() if crc32(member.encode()) % 4 in (0, 2)}
    for cut in itertools.count():
        store = PerKey(cut, order)
        store.inner.commit("run", start)
        try:
            with Checkpointer("run", store) as cp:
                cp.group("g", 2)
        except Killed:
            pass
        store.left = None
        assert [members(store, shards) for shards in (2, 4, 1)] == [left] * 3
        if store.whole:
            break
    assert set(store.load("run")) == {"g"}


class Unanswered(PerKey):
    """The same, whose write of one key is not answered, once, and ends the step."""

    def __init__(self, key: str) -> None:
        super().__init__(-1)
        self.key = key

    def commit(self, state_key, changes, base={}, *, run_id=None):
        receipt = super().commit(state_key, changes, base, run_id=run_id)
        if self.key not in changes:
            return receipt
        self.key = ""
        raise CommitUnknown(state_key, changes)


@pytest.mark.parametrize("order", [1, -1])
def test_a_first_commit_that_failed_is_one_in_another_layout_too(order):
    for cut in itertools.count():
        store = Unanswered("g.02-00")
        store.order = order
        try:
            with Checkpointer("run", store) as cp:
                cp.group("g", 2).update(MEMBERS)
                with pytest.raises(CommitUnknown):
                    cp.commit()
                group = cp.group("g", 3)
                group["account-3"] = A
                store.inner.commit("run", {"g.02-00": None})  # it had not landed
                store.left = cut
                cp.commit()
        except Killed:
            pass
        store.left = None
        assert members(store, 3).keys() <= MEMBERS.keys()
        if store.whole:
            assert set(store.load("run")) == {"g.03-00", "g.03-01", "g.03-02"}
            return


def test_a_move_writes_each_entry_once(api, truto):
    with Checkpointer("run", truto) as cp:
        cp.group("g", 8).update(MEMBERS)
    before = len(api.requests)
    with Checkpointer("run", truto) as cp:
        cp.group("g", 5)
    methods = [call.method for call in api.requests[before:] if call.method != "GET"]
    assert methods == ["POST"] * 5 + ["DELETE"] * 8


def test_moving_back_after_an_unknown_deletion_loses_no_member():
    store = Unanswered("g.02-01")
    store.inner.commit("run", laid_out("run", "g", 2, {"g": codec.encode(MEMBERS)}, key_by_key=True))
    with Checkpointer("run", store) as cp:
        cp.group("g", 3)
        with pytest.raises(PartialCommit):
            cp.commit()
        cp.group("g", 2)
        cp.commit()
        assert {"g.02-00", "g.02-01"} == set(store.load("run"))
    assert members(store, 2) == MEMBERS


def test_what_was_claimed_for_one_layout_is_sent_as_that_although_the_group_was_opened_in_another():
    for cut in itertools.count():
        store = PerKey(-1)
        store.inner.commit("run", laid_out("run", "g", 2, {"g": codec.encode(MEMBERS)}, key_by_key=True))
        try:
            with Checkpointer("run", store, min_interval=3600) as cp:
                cp["a"] = A
                cp.commit()
                cp.group("g", 3)
                assert not cp.commit()
                cp.group("g", 2)  # which no commit has claimed
                store.left = cut
                cp.flush()
        except Killed:
            pass
        store.left = None
        assert members(store, 1) == MEMBERS
        if store.whole:
            return


def test_a_member_that_was_set_before_a_stream_was_opened_for_it_stays_set(store):
    with Checkpointer("run", store) as cp:
        group = cp.group("g")
        group["s"] = {"at": 1}
        handed = group["s"]
        stream = cp.incremental("s", "at", group=group, row_order="asc")
        handed["at"] = group["s"]["at"] = 7
        assert (stream.start_value, group["s"], cp.changed) == (1, {"at": 1}, {"g"})
        with pytest.raises(ZeroDivisionError), stream:
            raise ZeroDivisionError
        assert group["s"] == {"at": 1}
    assert stored(store) == {"g": {"s": {"at": 1}}}


def test_what_was_spoilt_in_place_has_changed():
    with Checkpointer("run", MemoryStore()) as cp:
        group = cp.group("g")
        group["a"] = A
        group["a"]["at"] = {1}
        assert cp.changed == {"g"}
        group["a"] = B


def test_a_stream_of_a_group_is_not_committed_by_its_name_alone(store):
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("contacts", "at", group="crm", row_order="asc")
        stream.filter([{"at": 1}])
        with pytest.raises(
            ValueError, match="'contacts' is a member of the group 'crm': commit the stream, or the group"
        ):
            cp.commit("contacts")
        cp["contacts"] = A
        assert cp.commit("contacts").keys == ("contacts",)
        assert cp.commit("never set").keys == ()
        assert cp.commit(stream).keys == ("crm",)


@pytest.mark.parametrize(("first", "second"), [("g", "g.16-00"), ("g.16-00", "g")])
def test_groups_that_would_share_an_entry_are_refused(first, second):
    with Checkpointer("run", MemoryStore()) as cp:
        group = cp.group(first, 16)
        with pytest.raises(ValueError, match="would share entries with the group"):
            cp.group(second)
        assert group.live
