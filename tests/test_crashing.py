"""Crashing and resuming users' connectors: good ones pass, and each way of losing rows is found."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing, suppress

import pytest

from checkpoint import AsyncCheckpointer, Checkpointer, SQLiteStore
from checkpoint.testing.crashing import Attempt, Crashes, crash_and_resume

ROWS = [{"id": n, "updated_at": f"2024-05-01T10:00:{n // 3:02}Z", "tags": ["x", {"n": n}]} for n in range(12)]
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
BOTH = pytest.mark.parametrize("kill", [False, pytest.param(True, marks=FORKS)])


def pages(since, size=4):
    rows = [row for row in ROWS if row["updated_at"] >= since]
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def stream(cp):
    return cp.incremental(
        "contacts", "updated_at", row_order="asc", primary_key="id", initial_value="2024-05-01T00:00:00Z"
    )


def good(run: Attempt) -> None:
    with Checkpointer("crm", run.store) as cp:
        contacts = stream(cp)
        for page in contacts.pages(run.records(pages(contacts.start_value))):
            run.write(page)
            cp.commit()


@BOTH
@pytest.mark.parametrize("store", ["sqlite:///{folder}/state.db", "memory://{unique}", "{server}", "server+{server}"])
def test_a_good_job_passes_at_every_point(tmp_path, store, kill):
    if kill and store.startswith("memory"):
        pytest.skip("refused, see below")
    # 3 pages and the end, 3 writes and 3 commits with two sides each; the page in hand may come twice
    assert crash_and_resume(good, tmp_path, store=store, kill=kill) == Crashes(points=16, twice=4)


@pytest.mark.parametrize("variable", ["TRUTO_API_TOKEN", "CHECKPOINT_TOKEN"])
def test_the_token_of_the_server_is_taken_back(tmp_path, monkeypatch, variable):
    for before in ("mine", None):
        monkeypatch.setenv(variable, "mine")
        if before is None:
            monkeypatch.delenv(variable)
        crash_and_resume(good, tmp_path / str(before), store="{server}", limit=1)
        assert os.environ.get(variable) == before


def test_fewer_points_are_spread_over_all(tmp_path):
    assert crash_and_resume(good, tmp_path / "few", limit=4) == Crashes(points=4, twice=4)
    names = {path.name for path in (tmp_path / "few").iterdir()}
    assert len(names) == 5
    crash_and_resume(good, tmp_path / "again", limit=4)
    assert {path.name for path in (tmp_path / "again").iterdir()} == names


def test_a_wrong_job_of_many_rows_is_found_by_few_points(tmp_path):
    """The 1050 points repeat after 105: a fixed step would only meet records."""
    many = [
        {"id": number, "updated_at": f"2024-05-01T{number // 60:02}:{number % 60:02}:00Z"} for number in range(1000)
    ]

    def job(run):
        with Checkpointer("crm", run.store) as cp:
            contacts = stream(cp)
            rows = [row for row in many if row["updated_at"] >= contacts.start_value]
            for page in contacts.pages(list(run.records(rows[at : at + 100])) for at in range(0, len(rows), 100)):
                cp.commit()
                run.write(page)

    with pytest.raises(AssertionError, match="crashed after commit 1 .* lost 100 of 1000 rows"):
        crash_and_resume(job, tmp_path)


@BOTH
def test_a_commit_before_the_sink_has_the_rows_is_found(tmp_path, kill):
    def job(run):
        with Checkpointer("crm", run.store) as cp:
            contacts = stream(cp)
            for page in contacts.pages(run.records(pages(contacts.start_value))):
                cp.commit()
                run.write(page)

    with pytest.raises(AssertionError) as caught:
        crash_and_resume(job, tmp_path, kill=kill)
    assert str(caught.value) == (
        "crashed after commit 1 (point 3 of 16) and resumed, the job lost 4 of 12 rows: "
        f"{ROWS[0]!r}, {ROWS[1]!r}, {ROWS[2]!r} and 1 more"
    )


def commits_in_finally(run: Attempt) -> None:
    with Checkpointer("crm", run.store) as cp:
        contacts = stream(cp)
        for page in contacts.pages(run.records(pages(contacts.start_value))):
            try:
                run.write(page)
            finally:
                cp.commit()


def test_a_commit_in_finally_is_found(tmp_path):
    with pytest.raises(AssertionError) as caught:
        crash_and_resume(commits_in_finally, tmp_path)
    assert str(caught.value) == (
        "crashed before write 1 (point 2 of 16) and resumed, the job lost 4 of 12 rows: "
        f"{ROWS[0]!r}, {ROWS[1]!r}, {ROWS[2]!r} and 1 more"
    )


@FORKS
def test_what_is_killed_runs_no_finally(tmp_path):
    assert crash_and_resume(commits_in_finally, tmp_path, kill=True) == Crashes(points=16, twice=4)


def test_a_job_that_swallows_its_crash_dies_where_it_reads_on(tmp_path):
    read = []

    def job(run):
        read.append(0)
        with Checkpointer("crm", run.store) as cp:
            contacts = stream(cp)
            for page in contacts.pages(run.records(pages(contacts.start_value))):
                read[-1] += 1
                with suppress(BaseException):
                    run.write(page)
                cp.commit()

    with pytest.raises(
        AssertionError, match=r"^crashed before write 1 \(point 2 of 16\) and resumed, the job lost 4 of"
    ):
        crash_and_resume(job, tmp_path)
    assert read[:4] == [3, 0, 3, 1]  # whole; crashed before record 1, resumed; crashed before write 1


def test_a_job_that_writes_its_rows_as_it_dies_is_good(tmp_path):
    def job(run):
        buffer = []
        with Checkpointer("crm", run.store) as cp:
            contacts = stream(cp)
            rows = run.records(row for page in pages(contacts.start_value) for row in page)
            try:
                buffer.extend(contacts.track(rows))
            finally:
                run.write(buffer)
                cp.commit()

    assert crash_and_resume(job, tmp_path) == Crashes(points=17, twice=12)


def test_a_sink_of_the_jobs_own_is_read_by_rows(tmp_path):
    """Exactly once: the cursor is in the sink's database, and in its transactions."""

    def job(run):
        with closing(sqlite3.connect(run.folder / "sink.db", isolation_level=None)) as sink:
            sink.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER, updated_at TEXT)")
            with Checkpointer("crm", run.watch(SQLiteStore(connection=sink))) as cp:
                contacts = stream(cp)
                for page in contacts.pages(run.records(pages(contacts.start_value))):
                    sink.execute("BEGIN")
                    run.mark("begun")
                    sink.executemany("INSERT INTO rows VALUES (?, ?)", [(row["id"], row["updated_at"]) for row in page])
                    cp.commit()
                    sink.execute("COMMIT")

    def rows(run):
        with closing(sqlite3.connect(run.folder / "sink.db")) as sink:
            return sink.execute("SELECT * FROM rows").fetchall()

    assert crash_and_resume(job, tmp_path, rows=rows, kill=hasattr(os, "fork")) == Crashes(points=13, twice=0)


@pytest.mark.parametrize("primary_key", ["id", lambda row: row["id"]])
def test_rows_that_differ_at_each_run_are_told_by_their_key(tmp_path, primary_key):
    runs = []

    def job(run):
        runs.append(run)
        with Checkpointer("crm", run.store) as cp:
            contacts = stream(cp)
            for page in contacts.pages(run.records(pages(contacts.start_value))):
                run.write({**row, "loaded_in": len(runs)} for row in page)
                cp.commit()

    assert crash_and_resume(job, tmp_path / "key", primary_key=primary_key) == Crashes(points=16, twice=4)
    with pytest.raises(AssertionError, match="the job lost 12 of 12 rows"):
        crash_and_resume(job, tmp_path / "row")


def test_asyncio(tmp_path):
    async def source(since):
        for page in pages(since):
            await asyncio.sleep(0)
            yield page

    async def main(run):
        async with AsyncCheckpointer("crm", run.store) as cp:
            contacts = stream(cp)
            async for page in contacts.pages(run.records(source(contacts.start_value))):
                run.write(page)
                await cp.commit()

    assert crash_and_resume(lambda run: asyncio.run(main(run)), tmp_path) == Crashes(points=16, twice=4)


def test_commits_in_the_background(tmp_path):
    def job(run):
        with Checkpointer("crm", run.store) as cp:
            contacts = stream(cp)
            for page in contacts.pages(run.records(pages(contacts.start_value))):
                run.write(page)
                cp.commit_soon()

    assert crash_and_resume(job, tmp_path).twice <= 12


@BOTH
def test_a_job_that_fails_by_itself_says_so(tmp_path, kill, capfd):
    def job(run):
        if run.folder.name != "whole":
            raise ValueError("no more")
        good(run)

    failure = AssertionError if kill else ValueError
    with pytest.raises(failure) as caught:
        crash_and_resume(job, tmp_path, kill=kill)
    if kill:
        assert str(caught.value) == "the job failed before its crash point: its process ended with 1"
        assert "ValueError: no more" in capfd.readouterr().err


def test_a_job_that_cannot_be_resumed_says_where(tmp_path):
    def job(run):
        if len(run.written()) == 4:
            raise ValueError("the sink is not empty")
        good(run)

    with pytest.raises(AssertionError) as caught:
        crash_and_resume(job, tmp_path)
    assert str(caught.value) == "crashed after write 1, the job could not be resumed"
    assert str(caught.value.__cause__) == "the sink is not empty"


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (lambda run: None, "the job wrote no rows: pass them to run.write, or pass rows= to read them from your sink"),
        (
            lambda run: run._write([1]),
            "the job passed no crash point: read through run.records, and use run.store",
        ),
    ],
)
def test_a_job_that_does_nothing_proves_nothing(tmp_path, job, said):
    with pytest.raises(AssertionError) as caught:
        crash_and_resume(job, tmp_path)
    assert str(caught.value) == said


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        crash_and_resume(good, tmp_path, limit=0)
    with pytest.raises(ValueError, match="a store outside of the process"):
        crash_and_resume(good, tmp_path, kill=True, store="memory://{unique}")
    assert list(tmp_path.iterdir()) == []
