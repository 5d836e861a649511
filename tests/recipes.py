"""What the recipes of docs/howto take from their surroundings: a source over HTTP on the loopback, and a sink."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import urlopen

import pytest

HOWTO = Path(__file__).parent.parent / "docs" / "howto"


class Page:
    """A page whose sections each have one block or more, the first of which is what all of them import."""

    def __init__(self, name):
        self.name = name
        text = (HOWTO / name).read_text("utf-8")
        self._blocks = re.findall(r"^## ([^\n]*)\n|^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        self.titles = {heading for heading, _ in self._blocks if heading}
        self.imports = next(code for _, code in self._blocks if code)

    def recipe(self, title, index=0):
        """Return a block of the section with this title."""
        current, found = "", []
        for heading, code in self._blocks:
            current = heading or current
            if code and current == title:
                found.append(code)
        return found[index]


def stamp(number):
    return f"20{23 + number // 100:02}-{number // 10 % 10 + 1:02}-{number % 10 + 1:02}T10:00:00Z"


TABLES = {
    "contacts": [{"id": n, "updated_at": stamp(n // 7)} for n in range(100)],
    "deals": [{"id": n, "updated_at": stamp(n * 37 % 100 // 7)} for n in range(100)],
    "tickets": [{"id": n, "updated_at": stamp(n)} for n in range(120)],
    "notes": [{"id": n} for n in range(45)],
    "events": [{"id": n} for n in range(1, 60)],
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

    def table(self, name, **query):
        return self.pages(name, **query)

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


class Sink:
    """Takes rows, and fails when it was told to."""

    def __init__(self):
        self.rows, self.room = [], None

    def write(self, rows):
        if self.room is not None and len(self.rows) + len(rows) > self.room:
            raise OSError("the sink is full")
        self.rows += rows

    @property
    def counts(self):
        return Counter(json.dumps(row) for row in self.rows)


@contextmanager
def source():
    """Serve the tables; yield the client of them."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
    server.tables = {name: list(rows) for name, rows in TABLES.items()}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Api(f"http://127.0.0.1:{server.server_port}", server.tables)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Job:
    """Runs the recipes of a page: `job(title)`; the sink, the source and the store are attributes."""

    def __init__(self, page, api, store):
        self.page, self.api, self.store, self.sink = page, api, store, Sink()

    def __call__(self, title, index=0, **more):
        names = {"api": self.api, "sink": self.sink, "STORE": self.store, **more}
        exec(self.page.imports, names)
        exec(compile(self.page.recipe(title, index), f"{self.page.name}, {title}", "exec"), names)
        return names

    def dies_and_goes_on(self, title, rooms, index=0):
        for room in rooms:
            self.sink.room = room
            with pytest.raises(OSError, match="the sink is full"):
                self(title, index)
        self.sink.room = None
        self(title, index)


def expected(*tables):
    return Counter(json.dumps(row) for rows in tables for row in rows)


class FileSink:
    """Appends rows to a file; at $SINK_ROOM rows it kills its process, or fails where $SINK_FULL says `raise`."""

    def __init__(self, path):
        self.path = Path(path)

    @property
    def rows(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    @property
    def counts(self):
        return Counter(map(json.dumps, self.rows))

    def write(self, rows):
        if len(self.rows) + len(rows) > float(os.environ.get("SINK_ROOM", "inf")):
            if os.environ.get("SINK_FULL") == "raise":
                raise OSError("the sink is full")
            os.kill(os.getpid(), signal.SIGKILL)
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
