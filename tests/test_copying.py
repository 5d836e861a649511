"""Namespaces copied and moved between stores of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from checkpoint import Conflict, MemoryStore, SQLiteStore, StoreError
from checkpoint.codec import encode
from checkpoint.copying import Copy, copy, move, plan
from checkpoint.neighbours import copying

if TYPE_CHECKING:
    from collections.abc import Mapping

    from checkpoint import Entry, Store
    from checkpoint.stores.truto import TrutoStore
    from checkpoint.testing import ApiServer

VALUES = {
    "contacts": encode({"updated_at": "2024-05-01T10:00:00Z"}),
    "spaced": "eyJhIjogMX0=",  # {"a": 1}, with a space
    "opaque": "2024-05-01T00:00:00.000Z\n",
    "empty": "",
}


@pytest.fixture
def source() -> MemoryStore:
    store = MemoryStore()
    store.commit("job", {**VALUES, "__lease__": "held"}, run_id="run-1")
    return store


def values(store: Store, state_key: str = "job") -> dict[str, str]:
    return {key: entry.value for key, entry in store.load(state_key).items()}


def test_values_arrive_in_every_store_as_they_are(source: MemoryStore, store: Store) -> None:
    assert copy(source, store, "job") == [Copy("job", "job", tuple(VALUES), (), ())]
    assert values(store) == VALUES
    assert values(source) == {**VALUES, "__lease__": "held"}


def test_a_copy_comes_out_of_every_store_as_it_went_in(store: Store) -> None:
    target = MemoryStore()
    store.commit("job", VALUES)
    copy(store, target, "job", name="other")
    assert values(target, "other") == VALUES
    assert target.namespaces() == ["other"]


def test_a_move_leaves_only_the_librarys_own_keys(store: Store) -> None:
    target = MemoryStore()
    store.commit("job", {**VALUES, "__lease__": "held"})
    assert [each.total for each in move(store, target, "job")] == [len(VALUES)]
    assert values(target) == VALUES
    assert values(store) == {"__lease__": "held"}


def test_stores_are_opened_by_url_and_all_namespaces_copied(tmp_path) -> None:
    first, second = (f"sqlite:///{tmp_path}/{name}.db" for name in ("first", "second"))
    store = SQLiteStore(tmp_path / "first.db")
    for name in ("b", "a", "only-ours"):
        store.commit(name, {"__lease__": "held"} if name == "only-ours" else {"key": name})
    assert copy(first, second) == [Copy("a", "a", ("key",), (), ()), Copy("b", "b", ("key",), (), ())]
    copied = SQLiteStore(tmp_path / "second.db")
    assert {name: values(copied, name) for name in copied.namespaces()} == {"a": {"key": "a"}, "b": {"key": "b"}}
    assert move(first, second) == [Copy("a", "a", (), (), ("key",)), Copy("b", "b", (), (), ("key",))]
    assert store.namespaces() == ["only-ours"]
    store.close()
    copied.close()


def test_what_is_there_is_not_written_again(source: MemoryStore) -> None:
    target = MemoryStore()
    target.commit("job", {"contacts": VALUES["contacts"], "of the target": "1"}, run_id="earlier")
    rest = ("spaced", "opaque", "empty")
    assert copy(source, target, "job") == [Copy("job", "job", rest, (), ("contacts",))]
    assert values(target) == {**VALUES, "of the target": "1"}
    assert target.load("job")["contacts"].sync_job_run_id == "earlier"
    before = target.load("job")
    assert copy(source, target, "job") == [Copy("job", "job", (), (), tuple(VALUES))]
    assert target.load("job") == before


def test_what_differs_is_refused_before_anything_is_written(source: MemoryStore) -> None:
    target = MemoryStore()
    source.commit("a namespace before", {"key": "1"})
    target.commit("job", {"contacts": "other", "spaced": "other"})
    for carry in (copy, move):
        with pytest.raises(ValueError, match="^the target has another value for 'contacts' in 'job' and 1 more, so"):
            carry(source, target)
    assert target.namespaces() == ["job"]
    assert values(target) == {"contacts": "other", "spaced": "other"}
    assert copy(source, target, "job", overwrite=True) == [
        Copy("job", "job", ("opaque", "empty"), ("contacts", "spaced"), ())
    ]
    assert values(target) == VALUES


def test_a_plan_writes_nothing(source: MemoryStore) -> None:
    target = MemoryStore()
    target.commit("job", {"contacts": "other", "empty": ""})
    before = target.load("job")
    assert plan(source, target) == [Copy("job", "job", ("spaced", "opaque"), ("contacts",), ("empty",))]
    assert target.load("job") == before


def test_a_store_that_lists_no_namespaces_is_copied_one_by_one(truto: TrutoStore, api: ApiServer) -> None:
    with pytest.raises(ValueError, match=f"^TrutoStore\\('{api.url}'\\) cannot list its namespaces: name one$"):
        copy(truto, MemoryStore())
    assert api.requests == []


def test_one_name_is_for_one_namespace(source: MemoryStore) -> None:
    with pytest.raises(ValueError, match="^name is for one namespace: pass its state_key too$"):
        copy(source, MemoryStore(), name="other")


def test_a_store_that_writes_key_by_key_gets_bounded_commits(
    source: MemoryStore, truto: TrutoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK", 3)
    truto.commit("job", {"empty": ""})
    source.commit("job", {"fifth": "5"})
    seen: list[tuple[int, int, str]] = []
    copy(source, truto, "job", progress=lambda *told: seen.append(told))
    assert seen == [(1, 5, "job"), (4, 5, "job"), (5, 5, "job")]
    assert values(truto) == {**VALUES, "fifth": "5"}


def test_progress_counts_the_keys_of_all_namespaces(source: MemoryStore, tmp_path) -> None:
    source.commit("a", {"1": "1", "2": "2"})
    seen: list[tuple[int, int, str]] = []
    store = SQLiteStore(tmp_path / "state.db")
    copy(source, store, progress=lambda *told: seen.append(told))
    store.close()
    assert seen == [(2, 6, "a"), (6, 6, "job")]


def test_a_copy_broken_off_goes_on(source: MemoryStore, truto: TrutoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK", 3)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(source, truto, "job", progress=stop)
    assert len(values(truto)) == 3
    assert [len(each.new) for each in copy(source, truto, "job")] == [1]
    assert values(truto) == VALUES


def test_what_changed_at_the_source_meanwhile_is_not_deleted(store: Store) -> None:
    store.commit("job", VALUES)
    target = MemoryStore()
    with pytest.raises(Conflict) as caught:
        move(store, target, "job", progress=lambda *_: store.commit("job", {"contacts": "newer"}) and None)
    assert caught.value.key == "contacts"
    assert values(store) == {**VALUES, "contacts": "newer"}
    assert values(target) == VALUES


def test_what_appears_at_the_target_meanwhile_is_not_overwritten(source: MemoryStore) -> None:
    target = MemoryStore()
    source.commit("a", {"key": "1"})

    def interfere(_done: int, _total: int, state_key: str) -> None:
        if state_key == "a":
            target.commit("job", {"contacts": "of another"})

    with pytest.raises(ValueError, match="^the target has another value for 'contacts' in 'job', so"):
        copy(source, target, progress=interfere)
    assert values(target) == {"contacts": "of another"}


@pytest.mark.parametrize("way", ["the same store", "the same file", "a link"])
def test_a_move_onto_itself_deletes_nothing(way: str, tmp_path) -> None:
    store = SQLiteStore(tmp_path / "state.db")
    store.commit("job", VALUES)
    (tmp_path / "link").symlink_to(tmp_path)
    other: Store | str = {
        "the same store": store,
        "the same file": f"sqlite:///{tmp_path}/state.db",
        "a link": f"sqlite:///{tmp_path}/link/state.db",
    }[way]
    with pytest.raises(ValueError, match="^source and target of 'job' are the same place: choose another name$"):
        move(store, other, "job")
    assert values(store) == VALUES
    assert [each.name for each in move(store, other, "job", name="other")] == ["other"]
    assert (values(store), values(store, "other")) == ({}, VALUES)
    store.close()


class Forgetful(MemoryStore):
    """A store that confirms a commit and does not keep it."""

    def load(self, state_key: str) -> dict[str, Entry]:
        return {key: entry for key, entry in super().load(state_key).items() if key != "spaced"}


def test_what_did_not_arrive_is_an_error_and_stays_put(source: MemoryStore) -> None:
    with pytest.raises(StoreError, match="^'spaced' in 'job' is not what was written to "):
        move(source, Forgetful(), "job")
    assert values(source) == {**VALUES, "__lease__": "held"}


@pytest.mark.parametrize("arguments", [{"state_key": ""}, {"state_key": "job", "name": ".."}])
def test_bad_names_are_refused(source: MemoryStore, arguments: Mapping[str, str]) -> None:
    with pytest.raises(ValueError, match="must not be"):
        copy(source, MemoryStore(), **arguments)
