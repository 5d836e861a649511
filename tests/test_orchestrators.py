"""The recipes for what starts jobs, as they are written, against an HTTP source on the loopback."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from recipes import TABLES, Job, Page, expected, source

from checkpoint import Checkpointer
from checkpoint.run import lease

RECIPES = Page("orchestrators.md")


@pytest.fixture
def job(tmp_path):
    with source() as api:
        yield Job(RECIPES, api, f"sqlite:///{tmp_path}/state.db")


def test_from_cron(job, monkeypatch, caplog):
    title = "From cron"
    job.dies_and_goes_on(title, [15, 37])
    assert job.sink.counts == expected(TABLES["contacts"])
    with Checkpointer("crm", job.store) as cp:
        del cp["contacts"]
    job.sink.rows.clear()
    write = job.sink.write

    def write_and_stop(rows):
        write(rows)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(job.sink, "write", write_and_stop)
    for written in (10, 17):  # a page each, the second without the three rows that were there already
        job(title)
        assert len(job.sink.rows) == written
    monkeypatch.undo()
    job(title)
    assert job.sink.counts == expected(TABLES["contacts"])
    for name, seconds in {"TIME": 0.6, "BEAT": 0.1, "LOOK": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    with Checkpointer("crm", job.store, exclusive=True), pytest.raises(SystemExit) as left:
        job(title)
    assert str(left.value).startswith("not started: 'crm' has been held by ")


def fails_twice(job, rooms):
    """Make the sink fail once for each number of rows."""
    write = job.sink.write

    def fill_up(page):
        job.sink.room = rooms[-1] if rooms else None
        try:
            write(page)
        except OSError:
            rooms.pop()
            raise

    job.sink.write = fill_up


@pytest.mark.filterwarnings("ignore:::dagster")
def test_in_dagster(job):
    dagster = pytest.importorskip("dagster", reason="dagster is not installed")
    title, rooms = "As a Dagster asset", [37, 15]
    fails_twice(job, rooms)
    done = dagster.materialize([job(title)["contacts"]])
    assert done.success
    assert len([event for event in done.all_events if event.event_type_value == "STEP_RESTARTED"]) == 2
    assert rooms == []
    assert job.sink.counts == expected(TABLES["contacts"])
    with Checkpointer("crm", job.store) as cp:
        assert cp["contacts"]["updated_at"] == TABLES["contacts"][-1]["updated_at"]
        assert {change.run_id for change in cp.history("contacts")} == {done.run_id}
    for published in (TABLES["contacts"][-1]["updated_at"],) * 2:
        (event,) = done.asset_materializations_for_node("contacts")
        assert event.metadata["position"].value == published
        done = dagster.materialize([job(title)["contacts"]])  # with nothing new


@pytest.mark.filterwarnings("ignore")  # Prefect's own, and those of what it is made of
def test_in_prefect(job, tmp_path, monkeypatch):
    if find_spec("prefect") is None:
        pytest.skip("needs Prefect, which `nox -s prefect` installs")
    for name, value in {
        "HOME": str(tmp_path),
        "SERVER_ANALYTICS_ENABLED": "false",
        "LOGGING_TO_API_ENABLED": "0",
    }.items():
        monkeypatch.setenv(f"PREFECT_{name}", value)
    from prefect.testing.utilities import prefect_test_harness

    title, rooms = "As a Prefect flow", [37, 15]
    fails_twice(job, rooms)
    with prefect_test_harness(server_startup_timeout=300):  # a server of Prefect's, on the loopback
        state = job(title)["crm"](return_state=True)
    assert state.is_completed()
    assert rooms == []
    assert job.sink.counts == expected(TABLES["contacts"])
    with Checkpointer("crm", job.store) as cp:
        assert {change.run_id for change in cp.history("contacts")} == {str(state.state_details.flow_run_id)}


def test_every_recipe_is_run():
    tested = "".join(
        (Path(__file__).parent / name).read_text() for name in ("test_orchestrators.py", "test_airflow.py")
    )
    assert {title for title in RECIPES.titles if f'"{title}"' not in tested} == set()
