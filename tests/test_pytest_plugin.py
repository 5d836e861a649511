"""The fixtures that a connector's author gets by installing the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

CONNECTOR = """
import os, pytest
from checkpoint import Checkpointer

ROWS = [{"id": n, "updated_at": f"2024-05-01T10:00:{n // 3:02}Z"} for n in range(12)]

def pages(since):
    rows = [row for row in ROWS if row["updated_at"] >= since]
    return [rows[first : first + 4] for first in range(0, len(rows), 4)]

def contacts(cp):
    return cp.incremental(
        "contacts", "updated_at", row_order="asc", primary_key="id", initial_value="2024-05-01T00:00:00Z"
    )

def good(run):
    with Checkpointer("crm", run.store) as cp:
        stream = contacts(cp)
        for page in stream.pages(run.records(pages(stream.start_value))):
            run.write(page)
            cp.commit()

def commits_too_soon(run):
    with Checkpointer("crm", run.store) as cp:
        stream = contacts(cp)
        for page in stream.pages(run.records(pages(stream.start_value))):
            cp.commit()
            run.write(page)

def commits_in_finally(run):
    with Checkpointer("crm", run.store) as cp:
        stream = contacts(cp)
        for page in stream.pages(run.records(pages(stream.start_value))):
            try:
                run.write(page)
            finally:
                cp.commit()
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run a test file in a new process, in which all fixtures come from installed packages."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.delenv("TRUTO_API_TOKEN", raising=False)
    slow = [f"-pno:{name}" for name in ("schemathesis", "hypothesispytest", "randomly", "cacheprovider")]

    def run(code):
        pytester.makepyfile(CONNECTOR + code)
        return pytester.runpytest_subprocess("--tb=short", *slow, timeout=120)

    return run


def test_a_connector_that_loses_rows_fails_and_says_where(run):
    done = run("""
def test_good(crash_and_resume):
    assert crash_and_resume(good) == crash_and_resume(good, limit=None) == (16, 4)
    assert crash_and_resume(good, store="{server}") == (16, 4)

def test_too_soon(crash_and_resume):
    crash_and_resume(commits_too_soon)

def test_in_finally(crash_and_resume):
    crash_and_resume(commits_in_finally)
""")
    done.assert_outcomes(passed=1, failed=2)
    said = [line.strip() for line in done.outlines if line.startswith("E ")]
    page = str([{"id": n, "updated_at": "2024-05-01T10:00:00Z"} for n in range(3)])[1:-1] + " and 1 more"
    assert said == [
        f"E   AssertionError: crashed {place} and resumed, the job lost 4 of 12 rows: {page}"
        for place in ("after commit 1 (point 3 of 16)", "before write 1 (point 2 of 16)")
    ]


def test_unconfigured_store_is_a_file_and_the_server_runs(run):
    done = run("""
def test_it_is_empty_at_first(checkpoint_store):
    assert type(checkpoint_store).__name__ == "SQLiteStore"
    assert checkpoint_store.load("crm") == {}
    checkpoint_store.commit("crm", {"a": "1"})

test_it_is_empty_again = test_it_is_empty_at_first

def test_server(checkpoint_server):
    assert os.environ["TRUTO_API_TOKEN"] == checkpoint_server.token
    with Checkpointer("crm", checkpoint_server.url) as cp:
        cp["a"] = {"id": 1}
    assert [call.method for call in checkpoint_server.requests] == ["GET", "GET", "POST"]

def test_its_token_is_gone():
    assert not {"TRUTO_API_TOKEN", "CHECKPOINT_TOKEN"} & os.environ.keys()

@pytest.mark.parametrize("checkpoint_store", ["memory://{unique}", "{server}"], indirect=True)
def test_a_parameter_names_the_store(checkpoint_store, checkpoint_server):
    with Checkpointer("crm", checkpoint_store) as cp:
        cp["a"] = {"id": 1}
    over_http = type(checkpoint_store).__name__ == "TrutoStore"
    assert len(checkpoint_server.store.load("crm")) == over_http
""")
    done.assert_outcomes(passed=6)


@pytest.mark.parametrize(
    ("url", "name"),
    [("memory://{unique}", "MemoryStore"), ("{server}", "TrutoStore"), ("server+{server}", "ServerStore")],
)
def test_the_configuration_names_the_store(run, pytester, url, name):
    pytester.makeini(f"[pytest]\ncheckpoint_store = {url}\n")
    done = run(f"""
def test_it_is_empty_at_first(checkpoint_store):
    assert type(checkpoint_store).__name__ == "{name}"
    assert checkpoint_store.load("crm") == {{}}
    checkpoint_store.commit("crm", {{"a": "1"}})

test_it_is_empty_again = test_it_is_empty_at_first

def test_crashes(crash_and_resume):
    def job(run):
        assert type(run.store).__name__ == "{name}"
        good(run)

    assert crash_and_resume(job) == (16, 4)
""")
    done.assert_outcomes(passed=3)


def test_a_session_that_uses_no_fixture_loads_nothing_of_it():
    code = (
        "import sys, checkpoint.testing.pytest_plugin; "
        "print(*sorted(n for n in sys.modules if n.startswith('checkpoint')))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)
    assert printed.stdout.split() == ["checkpoint", "checkpoint.testing", "checkpoint.testing.pytest_plugin"]
