"""What the logger `checkpoint` says of a run: one line per load and one per commit, and no value or token."""

from __future__ import annotations

import ast
import logging
import re
from contextlib import closing
from pathlib import Path

import pytest
from freezegun import freeze_time

from checkpoint import Checkpointer, Conflict, SQLiteStore
from checkpoint.codec import encode
from checkpoint.streams import telling
from checkpoint.testing import Answer, Hook

A, B = {"at": "secret value 1"}, {"at": "secret value 2"}


@pytest.fixture
def log(caplog):
    """The lines since the last call, with their levels."""
    caplog.set_level(logging.DEBUG, "checkpoint")

    def log():
        lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "checkpoint"]
        assert "secret" not in caplog.text
        assert encode(A) not in caplog.text
        caplog.clear()
        return lines

    return log


def test_a_run_in_a_file(log, tmp_path):
    def seen():
        return [(level, re.sub(r"seconds=\d+\.\d{3}\b", "seconds=S", line)) for level, line in log()]

    path = tmp_path / "state.db"
    with closing(SQLiteStore(path)) as store:
        with Checkpointer("run", store) as cp:
            assert seen() == [("INFO", f"'run': loaded keys=0 seconds=S store=SQLiteStore({str(path)!r})")]
            cp["a"] = cp["b"] = A
            cp.commit()
            assert seen() == [("DEBUG", "'run': committed keys=2 requests=0 retries=0 seconds=S")]
            cp.commit()
            assert seen() == []
            cp["a"] = B
            cp.commit_soon()
            cp.flush()
            assert seen() == [("DEBUG", "'run': committed keys=1 requests=0 retries=0 seconds=S")]
            del cp["b"]
        assert seen() == [("DEBUG", "'run': committed keys=1 requests=0 retries=0 seconds=S")]


def test_a_run_over_http_with_retries_and_the_time_that_passed(log, api, truto):
    with freeze_time("2024-05-01") as clock:
        slow = Hook(before=lambda: clock.tick(0.25))
        api.script(Answer(503), slow, method="GET")
        with Checkpointer("run", truto) as cp:
            assert log() == [
                ("DEBUG", "'run': listed keys=0 requests=2 retries=1 seconds=0.250"),
                ("INFO", f"'run': loaded keys=0 seconds=0.250 store=TrutoStore({api.url!r})"),
            ]
            api.script(Answer(429, headers={"Retry-After": "0"}), slow, method="POST")
            cp["a"] = A
            commit = cp.commit()
        assert (commit.requests, commit.retries) == (3, 1)
        assert log() == [("DEBUG", "'run': committed keys=1 requests=3 retries=1 seconds=0.250")]


def test_a_commit_that_fails_is_an_error_and_no_line(log, tmp_path):
    path = tmp_path / "state.db"
    with closing(SQLiteStore(path)) as store, pytest.raises(Conflict), Checkpointer("run", store) as cp:
        cp["a"] = A
        store.commit("run", {"a": encode(B)})
        log()
        cp.commit()
    assert log() == []


def test_nothing_is_shown_unless_it_is_asked_for(api, truto, capfd):
    with Checkpointer("run", truto) as cp:
        cp["a"] = A
    assert capfd.readouterr() == ("", "")


# Records for programs

ROOT = Path(__file__).parent.parent


def events_in(path):
    """Return the events of the logger's calls in a file, None for one that has none."""
    tree = ast.parse(path.read_text("utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.unparse(function)
            calls = re.findall(r"logger\.(?:debug|info|warning|error|exception|log)\(.*", text)
            for call in calls:
                words = re.findall(r"'checkpoint_event': '(\w+)'|_fields\('(\w+)'", text)
                yield {event for pair in words for event in pair if event} if "extra=" in call else None


def test_every_line_has_an_event_that_the_docs_tell():
    page = (ROOT / "docs/reference/logging.md").read_text("utf-8")
    described = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    found = set(re.findall(r"^    ([a-z_]+) +(?:INFO|WARNING) ", telling.__doc__, re.MULTILINE))
    for path in (ROOT / "checkpoint").rglob("*.py"):
        if "cli" not in path.parts and path.name != "telling.py":
            for events in events_in(path):
                assert events, path
                found |= events
    assert found == described - {"checkpoint_event"}  # the heading


def test_records_have_fields(caplog, tmp_path):
    caplog.set_level(logging.DEBUG, "checkpoint")
    with closing(SQLiteStore(tmp_path / "state.db")) as store, Checkpointer("run", store) as cp:
        cp["a"] = A
    told = [
        {name: value for name, value in vars(record).items() if name.startswith("checkpoint_")}
        for record in caplog.records
    ]
    assert [each.pop("checkpoint_seconds") >= 0 for each in told] == [True, True]
    assert told == [
        {"checkpoint_event": "loaded", "checkpoint_namespace": "run", "checkpoint_keys": 0},
        {
            "checkpoint_event": "committed",
            "checkpoint_namespace": "run",
            "checkpoint_keys": 1,
            "checkpoint_requests": 0,
            "checkpoint_retries": 0,
        },
    ]
