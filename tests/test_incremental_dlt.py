"""The same streams through dlt's JsonIncremental, as far as the features meet."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone

import pytest

from checkpoint import Checkpointer
from checkpoint.codec import decode
from checkpoint.stores.memory import MemoryStore

transform = pytest.importorskip("dlt.extract.incremental.transform", reason="dlt is not installed")

pytestmark = pytest.mark.filterwarnings("default")

START = datetime(2024, 5, 1, tzinfo=timezone.utc)
SPELLINGS = {
    "int": int,
    "zulu": lambda n: f"2024-05-01T10:{n:02}:00Z",
    "datetime": lambda n: START + timedelta(minutes=n),
}


class Theirs:
    """One dlt cursor over several runs: what its Incremental keeps in its state."""

    def __init__(self, initial, end):
        self.initial, self.end, self.last, self.hashes = initial, end, initial, set()

    def run(self, rows):
        step = transform.JsonIncremental(
            "rows", "at", self.initial, self.last, self.end, max, "id", self.hashes, "include", None,
        )  # fmt: skip
        found = []
        for row in rows:
            kept, _, _ = step(row)
            if kept is not None:
                found.append(kept)
        self.hashes = {step.compute_unique_value(row, "id") for row in step.last_rows} | step.unique_hashes
        self.last = step.last_value
        return found


def ours(store, rows, **options):
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", primary_key="id", on_cursor_value_missing="include", **options)
        found = stream.filter(rows)
        stream.finish()  # a filter alone does not tell that this was all
        return found


@pytest.mark.parametrize("kind", SPELLINGS)
@pytest.mark.parametrize("seed", range(40))
def test_both_hand_out_the_same(kind, seed):
    rng = random.Random(seed)
    spell = SPELLINGS[kind]
    store, theirs = MemoryStore(), Theirs(spell(5), None)
    rows = []
    for _ in range(4):
        top = max((row["n"] for row in rows), default=5)
        for _ in range(rng.randrange(8)):
            number = rng.randrange(0, 5) if rng.random() < 0.2 else min(top + rng.randrange(4), 59)
            rows.append({"id": len(rows), "n": number, "at": spell(number)})
        page = rng.sample(rows, len(rows))
        assert ours(store, page, initial_value=spell(5)) == theirs.run(page)
    if theirs.hashes:
        assert decode(store.load("run")["s"].value)["at"] == (
            theirs.last.isoformat() if kind == "datetime" else theirs.last
        )


def test_a_changed_row_at_the_boundary_is_handed_out_here():
    """dlt tells rows apart by the key alone, and drops a change that kept its cursor value: a lost update."""
    store, theirs = MemoryStore(), Theirs(0, None)
    first, changed = [{"id": 1, "at": 5, "name": "a"}], [{"id": 1, "at": 5, "name": "b"}]
    assert (ours(store, first), theirs.run(first)) == (first, first)
    assert (ours(store, changed), theirs.run(changed)) == (changed, [])


def test_offsets_are_instants_here():
    """dlt compares text: it takes the earlier instant for the later, and drops what came between."""
    store, theirs = MemoryStore(), Theirs("1970-01-01T00:00:00+00:00", None)
    first = [{"id": 1, "at": "2024-05-01T12:00:00+02:00"}]
    later = [{"id": 2, "at": "2024-05-01T10:30:00+00:00"}]
    assert (ours(store, first), theirs.run(first)) == (first, first)
    assert (ours(store, later), theirs.run(later)) == (later, [])


def test_a_row_of_the_far_future_does_not_end_the_stream_here():
    """dlt's cursor follows the highest row, and drops all that come after it in time."""
    store, theirs = MemoryStore(), Theirs("1970-01-01T00:00:00Z", None)
    first = [{"id": 1, "at": "2024-05-01T10:00:00Z"}, {"id": 2, "at": "2099-01-01T00:00:00Z"}]
    later = [{"id": 3, "at": "2024-05-01T11:00:00Z"}]
    assert (ours(store, first), theirs.run(first)) == (first, first)
    assert (ours(store, later), theirs.run(later)) == (later, [])


def test_an_end_value_keeps_the_position_here():
    """dlt keeps no state beside an end value; here what was read is known."""
    store, theirs = MemoryStore(), Theirs(0, 10)
    page = [{"id": n, "at": n} for n in (3, 9, 10, 11)]
    assert ours(store, page, initial_value=0, end_value=10) == theirs.run(page) == page[:2]
    assert decode(store.load("run")["s"].value)["at"] == 9
