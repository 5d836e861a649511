"""Members of packed groups beside runs that overwrite, move a group of version 1, or pack it anew."""

from __future__ import annotations

import pytest

from checkpoint import Checkpointer, CommitUnknown, Conflict
from checkpoint.run import resharding
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import Answer


def members(store):
    with Checkpointer("run", store) as cp:
        return {member: dict(cursor) for member, cursor in cp.group("g").items()}


def set_member(store, member, at):
    with Checkpointer("run", store) as cp:
        cp.group("g")[member] = {"at": at}
        assert cp.commit()


@pytest.fixture
def packed(truto):
    with Checkpointer("run", truto) as cp:
        cp.group("g", shards=1).update({"a": {"at": 1}, "b": {"at": 1}})
    return truto


def test_a_lost_answer_takes_no_other_runs_member_back(api, packed):
    impatient = TrutoStore(api.url, api.token, timeout=0.5, deadline=1.5)
    with Checkpointer("run", impatient, on_conflict="overwrite") as cp:
        group = cp.group("g")
        group["a"] = {"at": 2}
        sent = []

        def is_lost(call):  # the first PATCH never arrives, and nothing can be read after it
            sent.extend([call] if call.method == "PATCH" else [])
            return bool(sent) and not healed

        healed = []
        api.script(Answer(504), match=is_lost, forever=True)
        with pytest.raises(CommitUnknown):
            cp.commit()
        healed.append(True)
        set_member(packed, "b", 5)
        cp.commit()
        set_member(packed, "b", 6)
        group["a"] = {"at": 3}
        cp.commit()
    impatient.close()
    assert members(packed) == {"a": {"at": 3}, "b": {"at": 6}}


def test_a_stream_that_was_not_fed_takes_no_member_back(packed):
    with Checkpointer("run", packed, on_conflict="overwrite") as cp:
        fed, idle = (cp.incremental(key, "at", row_order="asc", group="g") for key in ("a", "b"))
        cp.commit()
        set_member(packed, "b", 5)
        fed.filter([{"at": 2}])
        cp.commit()
        assert idle.start_value == 1
    assert members(packed) == {"a": {"at": 2}, "b": {"at": 5}}


def test_moving_a_group_of_version_1_takes_no_member_back(store):
    with Checkpointer("run", store) as cp:
        cp["g"] = {"a": {"at": 1}, "b": {"at": 1}}
    with Checkpointer("run", store, on_conflict="overwrite") as cp:
        group = cp.group("g", shards=1)
        set_member(store, "b", 5)
        group["a"] = {"at": 2}
        try:
            cp.commit()
        except Conflict:  # where the store compares
            cp.discard()
    assert members(store)["b"] == {"at": 5}


@pytest.mark.parametrize("step", [0, 1, 2])
def test_packing_anew_overwrites_no_commit(packed, monkeypatch, step):
    write, steps = resharding._write_differing, []

    def after_another_run(*args):
        steps.append(args)
        if len(steps) == step + 1:
            set_member(packed, "b", 2)
        write(*args)

    monkeypatch.setattr(resharding, "_write_differing", after_another_run)
    with pytest.raises(Conflict):
        resharding.reshard(packed, "run", "g", 3)
    assert members(packed) == {"a": {"at": 1}, "b": {"at": 2}}
