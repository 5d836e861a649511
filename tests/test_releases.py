"""State that release 0.1 stored, read and gone on with: `data/release-0.1.db` was written by its wheel.

Its job set plain keys, read two streams and three of ten windows, wrote two groups (in four entries, and in one), and
took and released the lease.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from checkpoint import Checkpointer, SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checkpoint import Store

KEPT = Path(__file__).parent / "data" / "release-0.1.db"


@pytest.fixture(params=["file", "postgres", "objects", "truto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The file itself; and its values in each of the other stores."""
    path = tmp_path / "state.db"
    shutil.copyfile(KEPT, path)
    with closing(SQLiteStore(path)) as kept:
        if request.param == "file":
            yield kept
            return
        values = {key: entry.value for key, entry in kept.load("job").items()}
    store = request.getfixturevalue(request.param)
    store.commit("job", values)
    yield store


def hour(number: int) -> str:
    return f"2024-05-01T{number:02d}:00:00Z"


def test_keys_are_read(store):
    with Checkpointer("job", store) as cp:
        assert {key: cp[key] for key in ("plain", "ticks", "leased")} == {
            "plain": {"by": "0.1.0", "phase": "p1"}, "ticks": {"n": 1}, "leased": {"by": "0.1.0", "phase": "p1"},
        }  # fmt: skip


def test_a_stream_goes_on_and_knows_its_boundary_rows(store):
    with Checkpointer("job", store) as cp:
        stream = cp.incremental("s_asc", "at", initial_value=hour(8), row_order="asc", primary_key="id")
        assert stream.start_value == hour(10)
        page = [{"id": "x10", "at": hour(10)}, {"id": "new", "at": hour(10)}, {"id": "x11", "at": hour(11)}]
        assert [*stream.pages([page])] == [page[1:]]
    with Checkpointer("job", store) as cp:
        assert cp["s_asc"]["at"] == hour(11)


def test_windows_that_are_finished_are_not_cut_again(store):
    with Checkpointer("job", store) as cp:
        stream = cp.incremental("w", "at", initial_value="2024-05-01T00:00:00Z", end_value="2024-05-11T00:00:00Z")
        starts = [window.start[8:10] for window in stream.windows(timedelta(days=1))]
        assert starts == ["02", "04", "05", "06", "07", "08", "09", "10"]


@pytest.mark.parametrize("name", ["g", "h"])
def test_a_group_is_read_and_moved(store, name):
    members = {"m-p1": {"by": "0.1.0"}, "shared": {"n": 1}}
    with Checkpointer("job", store) as cp:
        group = cp.group(name)
        assert dict(group) == members
        group["new"] = {"n": 2}
    with Checkpointer("job", store) as cp:
        assert dict(cp.group(name)) == {**members, "new": {"n": 2}}
    assert not [key for key in store.load("job") if key.partition(".")[0] == name]


def test_the_lease_is_free(store):
    with Checkpointer("job", store, exclusive=True) as cp:
        cp["leased"] = {"by": "us"}


def test_the_history_of_a_file_is_read_and_kept(tmp_path):
    shutil.copyfile(KEPT, path := tmp_path / "state.db")
    with closing(SQLiteStore(path)) as store, Checkpointer("job", store) as cp:
        before = cp.history()
        assert [(change.key, change.cursor_after) for change in before if change.key == "ticks"] == [
            ("ticks", {"n": 1})
        ]
        cp["ticks"] = {"n": 2}
        cp.commit()
        assert [change.cursor_after for change in cp.history("ticks")] == [{"n": 2}, {"n": 1}]
        assert len(cp.history()) == len(before) + 1
