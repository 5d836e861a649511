"""The recipes, as they are written, against an HTTP source on the loopback."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import urlopen

import pytest

from checkpoint import Checkpointer
from checkpoint.run import lease
from checkpoint.testing import ApiServer

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "recipes.md"
RECIPES = PAGE.read_text("utf-8")
BLOCKS = re.findall(r"^## ([^\n]*)\n|^```python\n(.*?)^```", RECIPES, re.DOTALL | re.MULTILINE)


IMPORTS = next(code for heading, code in BLOCKS if code)
"""What stands above the first recipe."""


def recipe(title, index=0):
    """Return a block of the section with this title."""
    current, found = "", []
    for heading, code in BLOCKS:
        current = heading or current
        if code and current == title:
            found.append(code)
    return compile(found[index], f"recipes.md, {title}", "exec")


def stamp(number):
    return f"20{23 + number // 100:02}-{number // 10 % 10 + 1:02}-{number % 10 + 1:02}T10:00:00Z"


TABLES = {
    "contacts": [{"id": n, "updated_at": stamp(n // 7)} for n in range(100)],
    "deals": [{"id": n, "updated_at": stamp(n * 37 % 100 // 7)} for n in range(100)],
    "tickets": [{"id": n, "updated_at": stamp(n)} for n in range(120)],
    "notes": [{"id": n} for n in range(45)],
    "events": [{"id": n} for n in range(1, 60)],
    "log": [{"id": n, "lsn": n // 3} for n in range(30, 90)],
    "orders": [{"id": n, "account": f"account-{n % 7}", "updated_at": stamp(n // 7 // 3)} for n in range(150)],
}
PAGE = 10


class Source(BaseHTTPRequestHandler):
    """Rows of a table, filtered by what the query says, a page at a time."""

    def do_GET(self):
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        rows = self.server.tables[url.path[1:]]
        for name, keep in {
            "updated_since": lambda row, value: row["updated_at"] >= value,
            "updated_before": lambda row, value: row["updated_at"] < value,
            "account": lambda row, value: row["account"] == value,
            "after_id": lambda row, value: row["id"] > int(value),
            "since": lambda row, value: row["lsn"] >= int(value),
        }.items():
            if name in query:
                rows = [row for row in rows if keep(row, query[name])]
        at = int(query.get("page", query.get("after", 0)))
        more = at + PAGE < len(rows)
        body = json.dumps({"rows": rows[at : at + PAGE], "next": str(at + PAGE) if more else None}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Api:
    """A connector's client, as small as it gets."""

    def __init__(self, url, tables):
        self.url, self.tables, self.asked = url, tables, []

    def get(self, path, **query):
        query = {name: value for name, value in query.items() if value is not None}
        self.asked.append((path, query))
        with urlopen(f"{self.url}/{path}?{urlencode(query)}") as answer:
            return json.load(answer)

    def pages(self, path, **query):
        page = "0"
        while page is not None:
            answer = self.get(path, page=page, **query)
            yield answer["rows"]
            page = answer["next"]

    def contacts(self, **query):
        return self.pages("contacts", **query)

    def contacts_page(self, **query):
        return self.get("contacts", **query)["rows"]

    def deals(self, **query):
        return self.pages("deals", **query)

    def tickets(self, **query):
        return self.pages("tickets", **query)

    def events(self, **query):
        return self.pages("events", **query)

    def accounts(self):
        return sorted({row["account"] for row in self.tables["orders"]})

    def orders(self, **query):
        return self.pages("orders", **query)

    def notes(self, after):
        return self.get("notes", after=after)

    def changes(self, since):
        return (row for page in self.pages("log", since=since) for row in page)

    def oldest_lsn(self):
        return self.tables["log"][0]["lsn"]

    def snapshot(self):
        return [row for page in self.pages("log") for row in page]


class Sink:
    """Takes rows, and fails when it was told to."""

    def __init__(self):
        self.rows, self.room = [], None

    def write(self, rows):
        if self.room is not None and len(self.rows) + len(rows) > self.room:
            raise OSError("the sink is full")
        self.rows += rows

    def replace(self, rows):
        self.rows = list(rows)

    @property
    def counts(self):
        return Counter(json.dumps(row) for row in self.rows)


@pytest.fixture
def job(tmp_path):
    """Run a recipe: `job(title)`; its sink and source are attributes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
    server.tables = {name: list(rows) for name, rows in TABLES.items()}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    api, sink = Api(f"http://127.0.0.1:{server.server_port}", server.tables), Sink()
    store = f"sqlite:///{tmp_path}/state.db"

    def run(title, index=0, **more):
        names = {"api": api, "sink": sink, "STORE": store, **more}
        exec(IMPORTS, names)
        exec(recipe(title, index), names)
        return names

    run.api, run.sink, run.store = api, sink, store
    yield run
    server.shutdown()
    thread.join()
    server.server_close()


def expected(*tables):
    return Counter(json.dumps(row) for rows in tables for row in rows)


def dies_and_goes_on(job, title, rooms, index=0):
    for room in rooms:
        job.sink.room = room
        with pytest.raises(OSError, match="the sink is full"):
            job(title, index)
    job.sink.room = None
    job(title, index)


def test_sorted_with_ties(job):
    title = "An API with `updated_since`, sorted"
    dies_and_goes_on(job, title, [15, 37, 60])
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


def test_page_by_time(job):
    title = "An API asked again for each page"
    dies_and_goes_on(job, title, [15, 37])
    assert job.sink.counts == expected(TABLES["contacts"])
    job(title)
    new = [{"id": 1000, "updated_at": stamp(99 // 7)}, {"id": 3, "updated_at": stamp(50)}]
    job.api.tables["contacts"] += new
    job(title)
    assert job.sink.counts == expected(TABLES["contacts"], new)
    assert {"page" in query for _, query in job.api.asked} == {False}


def test_in_no_order(job):
    title = "An API in no order"
    dies_and_goes_on(job, title, [25])
    assert set(job.sink.counts) == set(expected(TABLES["deals"]))
    before = job.sink.counts
    job(title)
    assert job.sink.counts == before


def test_without_a_stream(job):
    dies_and_goes_on(job, "Without a stream", [25])
    assert set(job.sink.counts) == set(expected(TABLES["contacts"]))
    before = len(job.sink.rows)
    job("Without a stream")
    assert [row["id"] for row in job.sink.rows[before:]] == [98, 99]


def test_page_tokens(job):
    dies_and_goes_on(job, "Opaque page tokens", [25, 35])
    assert job.sink.counts == expected(TABLES["notes"])


def test_ids(job):
    dies_and_goes_on(job, "Ids that only grow", [25])
    assert set(job.sink.counts) == set(expected(TABLES["events"]))
    job.api.asked.clear()
    job("Ids that only grow")
    assert job.api.asked == [("events", {"page": "0", "after_id": 59})]


def test_log_position(job):
    title = "The log position of change data capture"
    dies_and_goes_on(job, title, [20])
    assert set(job.sink.counts) == set(expected(TABLES["log"]))
    del job.api.tables["log"][:-1]  # what was read is kept no longer
    job.api.tables["log"] += [{"id": 200, "lsn": 60}]
    job(title)
    assert {"id": 200, "lsn": 60} in job.sink.rows
    job.api.tables["log"][:] = [{"id": 300, "lsn": 70}]
    job(title)
    assert job.sink.rows == [{"id": 300, "lsn": 70}] * 2  # the snapshot, and the log from its beginning


def test_from_cron(job, monkeypatch, caplog):
    title = "From cron"
    dies_and_goes_on(job, title, [15, 37])
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
    assert str(left.value).startswith("not started: 'crm' is held by ")


@pytest.mark.filterwarnings("ignore:::dagster")
def test_in_dagster(job):
    dagster = pytest.importorskip("dagster", reason="dagster is not installed")
    title, rooms, write = "As a Dagster asset", [37, 15], job.sink.write

    def fill_up_twice(rows):
        job.sink.room = rooms[-1] if rooms else None
        try:
            write(rows)
        except OSError:
            rooms.pop()
            raise

    job.sink.write = fill_up_twice
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
    dies_and_goes_on(job, title, [35, 90])
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
    dies_and_goes_on(job, title, [20, 40])
    until = [row for row in TABLES["tickets"] if row["updated_at"] < "2024-03-15"]
    assert set(job.sink.counts) == set(expected(until))
    job.api.asked.clear()
    job(title)
    assert job.api.asked == []
    with Checkpointer("crm", job.store) as cp:
        assert cp["tickets"] == {"updated_at": "2024-03-15T00:00:00Z"}


def test_every_recipe_is_run():
    titles = {heading for heading, _ in BLOCKS if heading}
    tested = Path(__file__).read_text()
    assert {title for title in titles if f'"{title}"' not in tested} == set()
