"""The recipes, as they are written, against an HTTP source on the loopback."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from recipes import TABLES, Job, Page, expected, source, stamp

from checkpoint import Checkpointer
from checkpoint.testing import ApiServer

RECIPES = Page("recipes.md")


@pytest.fixture
def job(tmp_path):
    with source() as api:
        yield Job(RECIPES, api, f"sqlite:///{tmp_path}/state.db")


def test_sorted_with_ties(job):
    title = "An API with `updated_since`, sorted"
    job.dies_and_goes_on(title, [15, 37, 60])
    assert job.sink.counts == expected(TABLES["contacts"])
    job(title)
    assert job.sink.counts == expected(TABLES["contacts"])
    new = [{"id": 1000, "updated_at": stamp(99 // 7)}, {"id": 3, "updated_at": stamp(50)}]
    job.api.tables["contacts"] += new
    job(title)
    assert job.sink.counts == expected(TABLES["contacts"], new)


def test_with_a_progress_bar(job, capsys):
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    title = "An API with `updated_since`, sorted"
    job(title, 1)
    assert job.sink.counts == expected(TABLES["contacts"])
    assert "100it" in capsys.readouterr().err
    job(title, 1)
    assert job.sink.counts == expected(TABLES["contacts"])


def test_several_tables_in_one_run(job):
    rows = TABLES["contacts"] + TABLES["orders"]
    job.dies_and_goes_on("Several tables in one run", [15, 120])
    assert job.sink.counts == expected(rows)
    job("Several tables in one run")
    assert job.sink.counts == expected(rows)


def test_page_by_time(job):
    title = "An API asked again for each page"
    job.dies_and_goes_on(title, [15, 37])
    assert job.sink.counts == expected(TABLES["contacts"])
    job(title)
    new = [{"id": 1000, "updated_at": stamp(99 // 7)}, {"id": 3, "updated_at": stamp(50)}]
    job.api.tables["contacts"] += new
    job(title)
    assert job.sink.counts == expected(TABLES["contacts"], new)
    assert {"page" in query for _, query in job.api.asked} == {False}


def test_in_no_order(job):
    title = "An API in no order"
    job.dies_and_goes_on(title, [25])
    assert set(job.sink.counts) == set(expected(TABLES["deals"]))
    before = job.sink.counts
    job(title)
    assert job.sink.counts == before


def test_without_a_stream(job):
    job.dies_and_goes_on("Without a stream", [25])
    assert set(job.sink.counts) == set(expected(TABLES["contacts"]))
    before = len(job.sink.rows)
    job("Without a stream")
    assert [row["id"] for row in job.sink.rows[before:]] == [98, 99]


def test_page_tokens(job):
    job.dies_and_goes_on("Opaque page tokens", [25, 35])
    assert job.sink.counts == expected(TABLES["notes"])


def test_ids(job):
    job.dies_and_goes_on("Ids that only grow", [25])
    assert set(job.sink.counts) == set(expected(TABLES["events"]))
    job.api.asked.clear()
    job("Ids that only grow")
    assert job.api.asked == [("events", {"page": "0", "after_id": 59})]


def test_the_namespace_of_a_sync_job(job, monkeypatch, capsys):
    with ApiServer() as server:
        monkeypatch.setenv("TRUTO_API_TOKEN", server.token)
        before = server.store.commit("sync_job_123", {"previous_run_date": "2024-06-30T10:00:00.000Z", "x": "not JSON"})
        job("The namespace of a Truto sync job", STORE=server.url)
        after = {key: entry.value for key, entry in server.store.load("sync_job_123").items()}
    assert after == {"previous_run_date": "2024-05-01T00:00:00.000Z", "x": "not JSON"}
    at = before.entries["x"].updated_at
    assert capsys.readouterr().out == f"previous_run_date 2024-06-30T10:00:00.000Z {at}\nx not JSON {at}\n"


def test_by_account(job):
    title = "Partitioned by account, in a group"
    job.dies_and_goes_on(title, [35, 90])
    assert set(job.sink.counts) == set(expected(TABLES["orders"]))
    assert set(job.sink.counts.values()) == {1, 2}  # an account that was cut off is read again from its last commit
    before = job.sink.counts
    job.api.tables["orders"] += [{"id": 1000, "account": "account-3", "updated_at": stamp(99)}]
    job(title)
    assert job.sink.counts == before + expected([{"id": 1000, "account": "account-3", "updated_at": stamp(99)}])
    with Checkpointer("crm", job.store) as cp:
        accounts = cp.group("accounts", 64)
        assert accounts["account-3"]["updated_at"] == stamp(99)
        assert len(accounts) == 7


def test_exactly_once(job, tmp_path, monkeypatch):
    """Killed at every statement in tests/test_joined.py."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        job("Exactly once, into SQLite")
    with closing(sqlite3.connect("warehouse.db")) as sink:
        rows = sink.execute("SELECT id, updated_at FROM contacts ORDER BY id").fetchall()
    assert rows == [(row["id"], row["updated_at"]) for row in TABLES["contacts"]]


def test_exactly_once_rolls_back_and_goes_on(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = {"id": [], "updated_at": stamp(50 // 7)}  # what SQLite does not take
    job.api.tables["contacts"].insert(50, bad)
    with closing(sqlite3.connect("warehouse.db", isolation_level=None)) as warehouse:
        monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: warehouse)
        with pytest.raises(sqlite3.Error):
            job("Exactly once, into SQLite")
        assert not warehouse.in_transaction
        assert warehouse.execute("SELECT count(*), max(id) FROM contacts").fetchone() == (50, 49)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    job.api.tables["contacts"].remove(bad)
    job("Exactly once, into SQLite")
    with closing(sqlite3.connect("warehouse.db")) as sink:
        rows = sink.execute("SELECT id, updated_at FROM contacts ORDER BY id").fetchall()
    assert rows == [(row["id"], row["updated_at"]) for row in TABLES["contacts"]]


def test_exactly_once_into_postgresql(job, postgres_database):
    """Killed at every exchange with the server in tests/test_joined_postgres.py."""
    import psycopg

    for _ in range(2):
        job("Exactly once, into PostgreSQL", WAREHOUSE=postgres_database)
    with psycopg.connect(postgres_database) as sink:
        rows = sink.execute("SELECT id, updated_at FROM contacts ORDER BY id").fetchall()
    assert rows == [(row["id"], row["updated_at"]) for row in TABLES["contacts"]]


def test_backfill_by_month(job):
    title = "A parallel backfill by month"
    job.dies_and_goes_on(title, [20, 40])
    until = [row for row in TABLES["tickets"] if row["updated_at"] < "2024-03-15"]
    assert set(job.sink.counts) == set(expected(until))
    job.api.asked.clear()
    job(title)
    assert job.api.asked == []
    with Checkpointer("crm", job.store) as cp:
        assert cp["tickets"] == {"updated_at": "2024-03-15T00:00:00Z"}


def test_every_recipe_is_run():
    tested = Path(__file__).read_text()
    assert {title for title in RECIPES.titles if f'"{title}"' not in tested} == set()
