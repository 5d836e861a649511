"""What the logger `checkpoint` says of a run: one line per load and one per commit, and no value or token."""

from __future__ import annotations

import logging

import pytest
from freezegun import freeze_time

from checkpoint import Checkpointer, Conflict, SQLiteStore, TrutoStore
from checkpoint.testing import Answer, Drop, Hook

A, B = {"at": "secret value 1"}, {"at": "secret value 2"}


@pytest.fixture
def log(caplog):
    """The lines so far, with their levels; taken from the log."""
    caplog.set_level(logging.DEBUG, "checkpoint")

    def log():
        lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "checkpoint"]
        assert not any("secret" in line for _, line in lines)
        caplog.clear()
        return lines

    return log


def test_of_a_file(log, tmp_path):
    path = tmp_path / "state.db"
    with freeze_time("2024-05-01") as clock, SQLiteStoreThatTakes(clock, path, 0.25) as store:
        with Checkpointer("run", store) as cp:
            assert log() == [("INFO", f"'run': 0 keys in SQLiteStore({str(path)!r}), loaded in 0.250 s")]
            cp["a"] = cp["b"] = A
            cp.commit()
            assert log() == [("DEBUG", "'run': committed 2 keys, 0 requests, 0 retries, 0.250 s")]
            cp.commit()
            assert log() == []
            del cp["a"]
        assert log() == [("DEBUG", "'run': committed 1 keys, 0 requests, 0 retries, 0.250 s")]
