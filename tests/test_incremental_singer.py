"""The same streams through the Singer SDK's bookmarks, as far as the features meet."""

from __future__ import annotations

import logging
import random
from datetime import datetime, timedelta, timezone

import pytest

from checkpoint import Checkpointer, CursorRegressed
from checkpoint.codec import decode
from checkpoint.stores.memory import MemoryStore

state = pytest.importorskip("singer_sdk.helpers._state", reason="singer-sdk is not installed")

pytestmark = pytest.mark.filterwarnings("default")

START = datetime(2024, 5, 1, tzinfo=timezone.utc)
SPELLINGS = {
    "int": int,
    "zulu": lambda n: f"2024-05-01T10:{n:02}:00Z",
    "datetime": lambda n: START + timedelta(minutes=n),
}


class Theirs:
    """A bookmark of one stream over several runs, as a tap of the SDK keeps it."""

    def __init__(self, *, in_order):
        logging.getLogger("singer_sdk").setLevel(logging.ERROR)
        self.in_order, self.bookmark = in_order, {}

    def run(self, rows):
        for row in rows:
            state.increment_state(
                self.bookmark, latest_record=row, replication_key="at", is_sorted=self.in_order, check_sorted=True
            )
        state.finalize_state_progress_markers(self.bookmark)
        return self.bookmark.get("replication_key_value")


def ours(store, rows, order):
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", row_order=order)
        list(stream.pages([rows]))
    entry = store.load("run").get("s")
    return entry and decode(entry.value)["at"]


@pytest.mark.parametrize("order", ["asc", None])
@pytest.mark.parametrize("kind", SPELLINGS)
@pytest.mark.parametrize("seed", range(20))
def test_both_keep_the_same_bookmark(kind, order, seed):
    rng, spell = random.Random(seed), SPELLINGS[kind]
    store, theirs, top = MemoryStore(), Theirs(in_order=order == "asc"), 0
    for _ in range(4):
        rows = []
        for _ in range(rng.randrange(8)):
            top += rng.randrange(2)
            rows.append({"id": rng.random(), "at": spell(top)})
        if order is None:
            rng.shuffle(rows)
        found = theirs.run(rows)
        kept = ours(store, rows, order)
        if kind == "datetime" and kept is not None:  # the same instant, with other digits
            kept, found = datetime.fromisoformat(kept), datetime.fromisoformat(found)
        assert kept == found


def test_both_refuse_rows_out_of_order():
    rows = [{"id": 1, "at": 2}, {"id": 2, "at": 1}]
    with pytest.raises(state.InvalidStreamSortException):
        Theirs(in_order=True).run(rows)
    with pytest.raises(CursorRegressed):
        ours(MemoryStore(), rows, "asc")


def test_offsets_are_instants_here():
    """The SDK compares text: the earlier instant stays its bookmark, and the later one is refused."""
    rows = [{"id": 1, "at": "2024-05-01T12:00:00+02:00"}, {"id": 2, "at": "2024-05-01T10:30:00+00:00"}]
    assert ours(MemoryStore(), rows, "asc") == "2024-05-01T10:30:00+00:00"
    with pytest.raises(state.InvalidStreamSortException):
        Theirs(in_order=True).run(rows)


def test_a_row_of_the_far_future_is_no_bookmark_here():
    rows = [{"id": 1, "at": "2024-05-01T10:00:00Z"}, {"id": 2, "at": "2099-01-01T00:00:00Z"}]
    assert ours(MemoryStore(), rows, "asc") == "2024-05-01T10:00:00Z"
    assert Theirs(in_order=True).run(rows) == "2099-01-01T00:00:00Z"
