"""`checkpoint singer-run` with a tap and a target from the package registry, against a source on the loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from checkpoint import Checkpointer
from checkpoint.stores import open_store

TAP, TARGET = shutil.which("tap-rest-api-msdk"), shutil.which("target-jsonl")
pytestmark = pytest.mark.skipif(not (TAP and TARGET), reason="tap-rest-api-msdk or target-jsonl is not on the PATH")


class Source(ThreadingHTTPServer):
    """Rows sorted by `updated_at`, ten a page; `held` is a page that is announced, and answered once it is released."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Page)
        self.rows = []
        self.held = None
        self.since = []  # what each page was asked with
        self.asked, self.released = Event(), Event()

    def grow(self, count):
        first = len(self.rows)
        self.rows += [
            {"id": n, "updated_at": f"2024-05-01T{n // 60:02}:{n % 60:02}:00Z"} for n in range(first, first + count)
        ]


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)
        page, since = int(query.get("page", ["0"])[0]), query.get("since", [""])[0]
        self.server.since.append(since)
        if page == self.server.held:
            self.server.asked.set()
            self.server.released.wait(60)
        rows = [row for row in self.server.rows if row["updated_at"] >= since]
        found, rest = rows[page * 10 : page * 10 + 10], rows[page * 10 + 10 :]
        body = json.dumps({"rows": found, "next": page + 1 if rest else None}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def source():
    with Source() as source:
        thread = Thread(target=source.serve_forever)
        thread.start()
        yield source
        source.released.set()
        source.shutdown()
        thread.join()


@pytest.fixture
def command(source, tmp_path):
    stream = {
        "name": "orders",
        "path": "/orders",
        "primary_keys": ["id"],
        "replication_key": "updated_at",
        "records_path": "$.rows[*]",
        "source_search_field": "since",
        "source_search_query": "$last_run_date",
        "schema": {
            "type": "object",
            "properties": {"id": {"type": "integer"}, "updated_at": {"type": "string", "format": "date-time"}},
        },
    }
    url = f"http://127.0.0.1:{source.server_port}"
    (tmp_path / "tap.json").write_text(
        json.dumps({"api_url": url, "next_page_token_path": "$.next", "streams": [stream]})
    )
    (tmp_path / "target.json").write_text(json.dumps({"destination_path": str(tmp_path), "do_timestamp_file": False}))
    return [
        *(sys.executable, "-m", "checkpoint.cli", "singer-run", "crm", "--store", f"sqlite:///{tmp_path}/state.db"),
        *("--tap", f"{TAP} --config {tmp_path}/tap.json", "--target", f"{TARGET} --config {tmp_path}/target.json"),
    ]


def state(folder: Path):
    with closing(open_store(f"sqlite:///{folder}/state.db")) as store, Checkpointer("crm", store) as cp:
        return dict(cp)


def rows(folder: Path):
    return [json.loads(line) for line in (folder / "orders.jsonl").read_text().splitlines()]


def child(process, program):
    """Return the id of the process that runs a program for another."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if program in Path(f"/proc/{pid}/cmdline").read_text())


@pytest.mark.parametrize("killed", ["tap", "target", "run"])
def test_nothing_is_missing_after_a_kill_in_the_middle(source, command, tmp_path, killed):
    source.grow(35)
    first = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    stored = state(tmp_path)
    assert stored["orders"]["replication_key_value"] == source.rows[-1]["updated_at"]
    assert rows(tmp_path) == source.rows
    assert set(source.since) == {""}
    source.since.clear()

    source.grow(40)
    source.held = 2
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as second:
        assert source.asked.wait(120)
        pids = {"tap": TAP, "target": TARGET}
        os.kill(child(second, pids[killed]) if killed in pids else second.pid, signal.SIGKILL)
        if killed != "tap":
            source.released.set()  # the tap goes on, and finds nobody to write to
        second.communicate(timeout=120)  # until nobody holds its output any more
    assert second.returncode == (128 + signal.SIGKILL if killed in pids else -signal.SIGKILL)
    assert state(tmp_path) == stored

    source.released.set()
    third = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (third.returncode, third.stdout) == (0, ""), third.stderr
    assert {row["id"] for row in rows(tmp_path)} == {row["id"] for row in source.rows}
    assert state(tmp_path)["orders"]["replication_key_value"] == source.rows[-1]["updated_at"]
    assert "" not in source.since
