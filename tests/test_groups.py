"""Groups: the mapping, and the streams in it; how they are stored is in test_groups_stored."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from checkpoint import (
    AsyncCheckpointer,
    Checkpointer,
    MemoryStore,
    codec,
)
from checkpoint.run.groups import Group

if TYPE_CHECKING:
    from checkpoint import Store

A, B, C = {"at": "a"}, {"at": "b"}, {"at": "c"}
MEMBERS = {f"account-{number}": {"at": number} for number in range(40)}


def stored(store: Store, state_key: str = "run") -> dict[str, dict]:
    return {key: codec.decode(entry.value) for key, entry in store.load(state_key).items()}


def members(store: Store, shards: int, name: str = "g") -> dict[str, dict]:
    with Checkpointer("run", store) as cp:
        return dict(cp.group(name, shards))


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


@pytest.mark.parametrize("way", [Group.setdefault, lambda group, member, _: group[member]], ids=["setdefault", "item"])
def test_fault_74_a_member_changed_in_place_is_stored(store, way):
    with Checkpointer("run", store) as cp:
        group = cp.group("g", shards=2)
        group["old"] = {"at": 0}
        cp.commit()
        for member in ("old", "new") if way is Group.setdefault else ("old",):
            way(group, member, {"at": 0})["at"] = 1
        assert cp.changed == {"g"}
        assert cp.commit()
        way(group, "old", {"at": 0})["at"] = {"nested": [1]}
        cp.commit()
        way(group, "old", {"at": 0})["at"]["nested"].append(2)  # in place, and in the depth
    assert members(store, 2)["old"] == {"at": {"nested": [1, 2]}}
    assert members(store, 2).get("new") == ({"at": 1} if way is Group.setdefault else None)


def test_a_member_spoilt_in_place_is_refused_unsent(store):
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


@pytest.mark.parametrize(
    ("shards", "error"), [(0, ValueError), (1001, ValueError), (True, TypeError), ("4", TypeError)]
)
def test_a_wrong_number_of_shards_is_refused(shards, error):
    with Checkpointer("run", MemoryStore()) as cp, pytest.raises(error, match="shards must be"):
        cp.group("g", shards)


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


# Streams in a group


def test_a_stream_keeps_its_cursor_as_a_member(store):
    rows = [{"id": number, "at": f"2024-05-{number:02d}T00:00:00Z"} for number in range(1, 10)]
    with Checkpointer("run", store) as cp:
        cp.group("crm", shards=4)
        for account in ("a", "b"):
            stream = cp.incremental(account, "at", group="crm", row_order="asc")
            assert stream.filter(rows) == rows
    with Checkpointer("run", store) as cp:
        assert dict(cp.group("crm", 4)) == {"a": {"at": "2024-05-09T00:00:00Z"}, "b": {"at": "2024-05-09T00:00:00Z"}}
        assert cp.incremental("a", "at", group="crm").start_value == "2024-05-09T00:00:00Z"


def test_a_stream_opens_its_group_as_it_is_stored(store):
    with Checkpointer("run", store) as cp:
        cp.group("crm", shards=4)["a"] = {"at": 5}
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("a", "at", group="crm", row_order="asc")
        assert stream.start_value == 5
        stream.filter([{"at": 7}])
    assert members(store, 4, "crm") == {"a": {"at": 7}}


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
        with pytest.raises(ValueError, match="nor a live stream"):
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


def test_what_was_spoilt_in_place_has_changed():
    with Checkpointer("run", MemoryStore()) as cp:
        group = cp.group("g")
        group["a"] = A
        group["a"]["at"] = {1}
        assert cp.changed == {"g"}
        group["a"] = B


def test_a_member_stream_that_was_read_keeps_few_objects():
    """The garbage collector looks at all of them again and again: a run may open thousands."""
    rows = [{"id": n, "at": f"2024-05-01T10:00:0{n}Z"} for n in range(3)]
    with Checkpointer("run", MemoryStore()) as cp:
        accounts = cp.group("accounts")

        def read(numbers):
            for number in numbers:
                stream = cp.incremental(str(number), "at", row_order="asc", primary_key="id", group=accounts)
                with stream:
                    assert [*stream.pages([rows])] == [rows]
                cp.commit(stream)
            gc.collect()
            return len(gc.get_objects())

        before = read(range(100))
        assert (read(range(100, 300)) - before) / 200 < 36


def test_later_rows_of_a_read_stream_have_quick_keys():
    rows = [{"id": n, "at": f"2024-05-01T10:00:0{n}Z"} for n in range(3)]
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        span = stream._scan.range
        for row in rows:
            tracked = stream.track([row])
            assert next(tracked) == row
            assert span.key != span._next_key
            assert [*map(span.key, [row["at"] for row in rows])] == [span.scale.key(row["at"]) for row in rows]
            assert [*tracked] == []
            assert span.key == span._next_key
