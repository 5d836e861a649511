"""Sources as they are in the world, over loopback sockets, and jobs of the guide that are killed while reading them.

`Source` serves tables that change while they are read: ties, late commits, rate limits, caps, tokens that expire, pages
that shift. `Runner` runs a job's code in a process of its own, over and over, and kills it where it is told to.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from bisect import bisect_left, insort
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
CAP = 10_000


def blocks(page):
    """Return the Python blocks of a page of the guide."""
    return re.findall(r"^```python\n(.*?)^```", (GUIDE / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def seconds(micros):
    return (EPOCH + timedelta(microseconds=micros)).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise(micros):
    """Spell an instant with as many digits as it needs, in one of several zones, as some sources do."""
    zone = timezone(timedelta(hours=micros % 3 - 1))
    return (EPOCH + timedelta(microseconds=micros)).astimezone(zone).isoformat()


def instant(text):
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (moment - EPOCH) // timedelta(microseconds=1)


class Table:
    """Rows by id: a version, the instant of its last change in microseconds, and an account."""

    def __init__(self, rng, count, grain=1_000_000, ties=7):
        self.rng, self.grain = rng, grain
        self.lock = threading.RLock()
        self.latest, self.crowd = 0, 0
        self.rows = {}
        begin = instant("2024-03-01T00:00:00Z")
        for number in range(count):
            self.rows[number] = (1, begin + number // ties * ties * 360_000_000)
        self.order = sorted((at, number, version) for number, (version, at) in self.rows.items())

    def now(self, count=1):
        """Return the time for so many rows; no more than 60 have the same, so that a page holds them."""
        now = max(time.time_ns() // 1000 // self.grain * self.grain, self.latest)
        if now > self.latest:
            self.crowd = 0
        elif self.crowd + count > 60:
            now, self.crowd = now + self.grain, 0
        self.latest, self.crowd = now, self.crowd + count
        return now

    def change(self, most=4):
        """Change some rows, add some; now and then many at one instant."""
        rng = self.rng
        with self.lock:
            count = most * 10 if rng.random() < 0.05 else rng.randrange(most + 1)
            now = self.now(count)
            for _ in range(count):
                number = len(self.rows) if rng.random() < 0.3 else rng.randrange(len(self.rows))
                version, before = self.rows.get(number, (0, None))
                if before is not None:
                    del self.order[bisect_left(self.order, (before, number))]
                self.rows[number] = (version + 1, now)
                insort(self.order, (now, number, version + 1))

    def sorted(self, since=0, before=1 << 62):
        with self.lock:
            return self.order[bisect_left(self.order, (since,)) : bisect_left(self.order, (before,))]

    def truth(self):
        with self.lock:
            return {number: version for number, (version, _) in self.rows.items()}


class Source:
    """Serves tables; what each path does is one method."""

    def __init__(self, seed=0, count=600, *, changing=True, limited=True):
        self.rng = random.Random(seed)
        self.table = Table(self.rng, count)
        self.millis = Table(self.rng, count, grain=1_000, ties=1)
        self.changing, self.limited = changing, limited
        self.snapshots = {}
        self.forgotten = 0  # delta tokens before this one are not known any more
        self.log = [(10**20 - 300 + n, n % 40) for n in range(count)]  # (sequence, key); the digits grow by one
        self.changes = [(number, 1) for number in range(count)]  # of the delta feed; version None: deleted
        self.served = 0
        self.heard = lambda: None
        self.lock = threading.RLock()

    def __enter__(self):
        source = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                self.respond(dict(parse_qsl(urlsplit(self.path).query)))

            def do_POST(self):
                self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def respond(self, query):
                with source.lock:
                    status, body = source.answer(urlsplit(self.path).path, query)
                data = json.dumps(body).encode()
                with suppress(ConnectionError):
                    self.send_response(status)
                    if status == 429:
                        self.send_header("Retry-After", "0")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                source.heard()

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):  # a client that was killed
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path, query):
        self.served += 1
        if self.limited and self.rng.random() < 0.07:
            return 429, {"error": "slow down"}
        if self.changing:
            self.table.change()
            self.millis.change()
            self.append()
        return self.route(path, query)

    def route(self, path, query):
        """Answer a request, with a status and a body."""
        return getattr(self, f"get_{path.strip('/').replace('/', '_')}")(**query)

    # Sorted by time, with page tokens that are keys; and the same for a range.

    def get_contacts(self, updated_since=None, page_token=None, until=1 << 62, size=60):
        rows = self.table.sorted(instant(updated_since) if updated_since else 0, until)
        if page_token:
            at, number = map(int, page_token.split("."))
            rows = rows[bisect_left(rows, (at, number + 1)) :]
        more = len(rows) > size
        rows = rows[:size]
        return 200, {"rows": [self.row(row) for row in rows], "next": f"{rows[-1][0]}.{rows[-1][1]}" if more else None}

    def get_tickets(self, updated_from, updated_before, page_token=None):
        return self.get_contacts(updated_from, page_token, instant(updated_before))

    def row(self, row, spell=seconds):
        at, number, version = row
        return {"id": number, "version": version, "updated_at": spell(at), "name": f"name {number}"}

    # Page tokens over a list that was made when the reading began, in no order; rows are as they are when read.

    def get_deals(self, updated_since, page_token=None, size=50):
        if page_token is None:
            ids = [number for _, number, _ in self.table.sorted(instant(updated_since))]
            self.rng.shuffle(ids)
            page_token = f"{len(self.snapshots)}x.0"
            self.snapshots[f"{len(self.snapshots)}x"] = ids
        name, _, offset = page_token.partition(".")
        if name not in self.snapshots:
            return 410, {"error": "expired"}
        ids, offset = self.snapshots[name], int(offset)
        found = [(self.table.rows[number][1], number, self.table.rows[number][0]) for number in ids]
        rows = [self.row(row, precise) for row in found[offset : offset + size]]
        more = offset + size < len(ids)
        return 200, {"rows": rows, "next": f"{name}.{offset + size}" if more else None}

    # Newest first, by page numbers: pages shift while rows change.

    def get_issues(self, sort, direction, page, size=50):
        assert (sort, direction) == ("updated", "desc")
        newest = len(self.table.order) - (int(page) - 1) * size
        rows = self.table.order[max(newest - size, 0) : max(newest, 0)][::-1]
        return 200, {"rows": [self.row(row) for row in rows]}

    # Asked again for each page.

    def get_notes(self, updated_since, limit):
        rows = self.table.sorted(instant(updated_since))[: min(int(limit), 100)]
        return 200, {"rows": [self.row(row) for row in rows]}

    # A search by offset that ends after 10 000 results; times are milliseconds as text.

    def get_search(self, modified_gte, sort, after, limit):
        after, limit = int(after), int(limit)
        if after + limit > CAP or limit > 200:
            return 400, {"error": "paging is limited to 10000 results"}
        rows = self.millis.sorted(int(modified_gte) * 1000)[after : after + limit]
        return 200, {
            "rows": [{"id": number, "version": version, sort: str(at // 1000)} for at, number, version in rows]
        }

    # The same as HubSpot has it: the fields of a row lie in `properties`, and times are ISO text in answers.

    def get_crm_v3_objects_contacts_search(self, filterGroups, sorts, properties, limit, after):  # noqa: N803 - theirs
        [[condition], [order]] = filterGroups[0]["filters"], sorts
        assert (condition["operator"], order["direction"]) == ("GTE", "ASCENDING")
        assert condition["propertyName"] == order["propertyName"] == "lastmodifieddate"
        after = int(after)
        if after + limit > CAP or limit > 200:
            return 400, {"message": "paging is limited to 10000 results"}
        found = self.millis.sorted(int(condition["value"]) * 1000)
        results = []
        for at, number, version in found[after : after + limit]:
            time = (EPOCH + timedelta(microseconds=at)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            have = {"lastmodifieddate": time, "email": f"{number}@example.com", "version": version}
            results.append({"id": str(number), "properties": {name: have[name] for name in properties}})
        return 200, {"total": len(found), "results": results}

    # Partitions.

    def get_accounts(self):
        return 200, {"rows": [f"account/{number}" for number in range(7)]}

    def get_orders(self, account, updated_since, limit):
        rows = [row for row in self.table.sorted(instant(updated_since)) if f"account/{row[1] % 7}" == account]
        return 200, {"rows": [self.row(row) for row in rows[: int(limit)]]}

    # A delta feed with tombstones, and a log that is cut.

    def append(self):
        """Change something in the feed and in the log."""
        for _ in range(self.rng.randrange(3)):
            number = self.rng.randrange(len(self.changes))
            version = None if self.rng.random() < 0.1 else len(self.changes)
            self.changes.append((number, version))
        for _ in range(self.rng.randrange(3)):
            self.log.append((self.log[-1][0] + self.rng.randrange(1, 5), self.rng.randrange(40)))

    def get_messages_delta(self, token="full0", size=40):
        full, at = token.startswith("full"), int(token.removeprefix("full"))
        if not full and at < self.forgotten:
            return 410, {"error": "resync required"}
        current = dict(self.changes)
        part = self.changes[at : at + size]
        value = [
            {"id": number, "@removed": {}} if current[number] is None else {"id": number, "version": current[number]}
            for number in dict(part)
        ]
        end = at + len(part)
        more = end < len(self.changes)
        link = f"{self.url}/messages/delta?{urlencode({'token': f'full{end}' if full and more else end})}"
        return 200, {"value": value, "@odata.nextLink" if more else "@odata.deltaLink": link}

    def cut(self, count):
        """Let the log forget its oldest changes."""
        self.log = self.log[count:]

    def get_log(self):
        return 200, {"oldest": str(self.log[0][0]), "newest": str(self.log[-1][0])}

    def get_changes(self, since, size=30):
        rows = [entry for entry in self.log if entry[0] >= int(since)][:size]
        following = str(rows[-1][0]) if len(rows) == size else None
        return 200, {"rows": [{"sequence": str(at), "key": key} for at, key in rows], "next": following}

    def get_snapshot(self):
        return 200, {"rows": [{"key": key, "sequence": str(at)} for key, at in self.log_truth().items()]}

    def log_truth(self):
        return {key: at for at, key in self.log}

    def feed_truth(self):
        return {number: version for number, version in dict(self.changes).items() if version is not None}


class Database:
    """A SQLite source: rows get their time when they are written, and are seen when their transaction commits."""

    def __init__(self, path, seed=0, count=600):
        self.rng = random.Random(seed)
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
        self.lock = threading.Lock()
        self.execute("PRAGMA journal_mode=wal")
        self.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, version INTEGER, updated_at TEXT)")
        self.execute("CREATE INDEX by_time ON orders (updated_at, id)")
        table = Table(self.rng, count, ties=1_000)  # one UPDATE gave them the same time: as many as are remembered
        self.connection.executemany(
            "INSERT INTO orders VALUES (?, ?, ?)", [(n, v, seconds(at)) for n, (v, at) in table.rows.items()]
        )
        self.changing = True

    def execute(self, *statement):
        return self.connection.execute(*statement).fetchall()

    def change(self):
        """Write some rows, and commit what was written the time before: transactions take a while."""
        with self.lock:
            if self.connection.in_transaction:
                self.execute("COMMIT")
            if not self.changing:
                return
            self.execute("BEGIN IMMEDIATE")
            for _ in range(self.rng.randrange(6)):
                now = seconds(time.time_ns() // 1000)
                self.execute(
                    "INSERT INTO orders VALUES (?, 1, ?) ON CONFLICT (id) DO UPDATE "
                    "SET version = version + 1, updated_at = excluded.updated_at",
                    [self.rng.randrange(700), now],
                )

    def truth(self):
        return dict(self.execute("SELECT id, version FROM orders"))


class Runner:
    """Runs jobs in processes forked from one that has imported everything, and says how each ended."""

    def __init__(self, folder, source_url, code):
        self.folder, self.code = folder, code
        read, write = os.pipe()
        environment = {**os.environ, "SOURCE_URL": source_url, "PYTHONWARNINGS": "default"}
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("guide_job.py"), str(write)],
            cwd=folder, env=environment, pass_fds=[write], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.close(write)
        self.pid, self.kill_at, self.delay, self.events = None, None, 0.0, 0
        self.heard = lambda: None
        self._lock = threading.Lock()
        self._ticks = os.fdopen(read, "rb", buffering=0)
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def _listen(self):
        with self._ticks:
            while self._ticks.read(1):
                self.event()
                self.heard()

    def event(self):
        """A request was answered or a page written: the process may have to die soon after."""
        with self._lock:
            self.events += 1
            if self.kill_at is not None and self.events == self.kill_at:
                threading.Timer(self.delay, self._kill, [self.pid]).start()

    def _kill(self, pid):
        with self._lock:
            if self.pid == pid:
                os.kill(pid, signal.SIGKILL)

    def run(self, *, kill_at=None, delay=0.0, later=0.0, die_after=0):
        """Run the job once; return True where it came to its end, False where it was killed.

        `kill_at` counts requests and writes, `delay` is seconds after it; `later` moves the job's clock; `die_after`
        rows have been written the job kills itself, before it commits.
        """
        with self._lock:
            self.kill_at, self.delay, self.events, self.pid = kill_at, delay, 0, None
            command = {"code": self.code, "later": later, "die_after": die_after}
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            self.pid = int(self.process.stdout.readline())
        status = int(self.process.stdout.readline())
        with self._lock:
            self.pid = None
            self.process.stdin.write("reap\n")
            self.process.stdin.flush()
        if status == -signal.SIGKILL:
            return False
        if status:
            raise AssertionError((self.folder / "error.txt").read_text())
        return True

    def warnings(self):
        """Return the WARNINGs of all runs."""
        path = self.folder / "warnings.txt"
        return path.read_text().splitlines() if path.exists() else []

    def written(self):
        """Return the rows written by all runs, in order, as (id, version)."""
        path = self.folder / "sink.jsonl"
        rows = []
        for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
            if line.endswith("\n"):  # else the process died in the middle of it
                rows += map(tuple, json.loads(line))
        return rows
