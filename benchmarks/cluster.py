"""Backfills and groups on a cluster whose workers are killed: what is missing afterwards, and what was read twice.

    python benchmarks/cluster.py                              what is installed here, over every store
    python benchmarks/cluster.py --engines spark --stores s3

The jobs are those of `docs/howto/cluster.md`, as they stand there. Workers and drivers are killed with SIGKILL at
random while they read; a job that ends before it is done is run again, as cron would. Then the sink is compared with
what the source holds. `results/cluster.json` keeps a line for each engine and store, and the page shows them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from harness import RESULTS
from places import KINDS, place, reached

from checkpoint import Checkpointer, open_store
from checkpoint.stores.base import ListsNamespaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from places import Place
    from typing_extensions import Self

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "howto" / "cluster.md"
BEGIN, END = "<!-- cluster: from benchmarks/results -->\n", "<!-- end of cluster -->\n"
FIRST, UNTIL = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
EPOCH = datetime(2024, 1, 1, tzinfo=timezone.utc)
YEAR = 366 * 86_400
ACCOUNTS = "Thousands of accounts"
ENGINES = {
    "processes": "Processes", "dask": "Dask", "spark": "Spark",
    "accounts": ACCOUNTS, "accounts-parts": "In a bucket", "accounts-dask": "On Dask", "accounts-spark": "On Spark",
}  # fmt: skip
"""The jobs, and the headings under which they stand."""
NEEDS = {"dask": "distributed", "spark": "pyspark", "accounts-dask": "distributed", "accounts-spark": "pyspark"}
GOES_ON = ("BrokenProcessPool", "KilledWorker", "Job aborted due to stage failure", "CancelledError")
"""How an engine says that it cannot go on without a worker: the job is run again. Anything else is a fault."""
TIMEOUT = 600
PAGE_SIZE = 50
"""Rows of a page, of a range of time."""


@dataclass(frozen=True)
class Size:
    """How much there is to do, and how much goes wrong."""

    rows: int = 21_960
    """Of the year that is filled; as many again lie behind it, and must not be read."""
    step: str = "days=1"
    accounts: int = 10_000
    """Each has two rows."""
    chunk: int = 250
    """Accounts of one task."""
    workers_killed: int = 5
    drivers_killed: int = 1
    workers: int = 8
    """Of the accounts; a backfill has four."""
    latency: float = 0.02
    """Seconds that the source takes for a request."""


@dataclass(frozen=True)
class Found:
    """One job over one store, after everything was read."""

    engine: str
    store: str
    rows: int
    parts: int
    """Windows, or accounts."""
    runs: int
    workers_killed: int
    drivers_killed: int
    missing: int
    foreign: int
    """Rows that lie outside the range, or that nobody has."""
    twice: int
    seconds: float


class Source:
    """Serves rows sorted by time, a page at a time, over a socket; and tells at each request whose it is."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.heard: Callable[[int], None] = lambda _process: None
        self.served = 0
        self.windows: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        step = YEAR / size.rows
        self._tickets = [(stamp(number // 3 * 3 * step), number) for number in range(2 * size.rows)]

    def __enter__(self) -> Self:
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(source.size.latency)
                url = urlsplit(self.path)
                body = json.dumps(source.answer(url.path, dict(parse_qsl(url.query)))).encode()
                with suppress(ConnectionError):  # who asked was killed
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                source.hear(int(self.headers["X-Process"]))

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:  # a client that was killed
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def hear(self, process: int) -> None:
        """Count a request of a process that was answered."""
        with self._lock:
            self.served += 1
            self.heard(process)

    def answer(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        """Return what a request is answered."""
        if path == "/accounts":
            return {"accounts": [f"account-{number}" for number in range(self.size.accounts)]}
        if path == "/orders":
            return self.orders(**query)
        return self.tickets(**query)

    def tickets(self, updated_from: str, updated_before: str, page_token: str = "0") -> dict[str, Any]:
        """Answer with a page of the rows of a range."""
        with self._lock:
            self.windows.add((updated_from, updated_before))
        first = bisect_left(self._tickets, (updated_from,)) + int(page_token)
        end = bisect_left(self._tickets, (updated_before,))
        rows = [{"id": number, "updated_at": at} for at, number in self._tickets[first : min(first + PAGE_SIZE, end)]]
        return {"rows": rows, "next": str(int(page_token) + PAGE_SIZE) if first + PAGE_SIZE < end else None}

    def orders(self, account: str, updated_since: str, page_token: str = "0") -> dict[str, Any]:
        """Answer with the two orders of an account, a page each."""
        number = int(account.rpartition("-")[2])
        both = [(2 * number + index, stamp((number % 1000) * 60 + index)) for index in range(2)]
        rows = [{"id": id_, "updated_at": at} for id_, at in both if at >= updated_since]
        at = int(page_token)
        return {"rows": rows[at : at + 1], "next": str(at + 1) if at + 1 < len(rows) else None}

    def truth(self, engine: str) -> set[int]:
        """Return the ids of all rows that are to be read, found by looking at each row."""
        if engine.startswith("accounts"):
            return {2 * number + index for number in range(self.size.accounts) for index in range(2)}
        return {number for at, number in self._tickets if FIRST <= at < UNTIL}


def stamp(seconds: float) -> str:
    return (EPOCH + timedelta(seconds=int(seconds))).strftime("%Y-%m-%dT%H:%M:%SZ")


class Cluster:
    """Runs a job until it is done, and kills who works for it."""

    def __init__(self, engine: str, made: Place, folder: Path, size: Size, seed: int) -> None:
        self.engine, self.made, self.folder, self.size = engine, made, folder, size
        self.dice = random.Random(f"{engine} {seed}")
        self.workers_killed = self.drivers_killed = self.runs = 0
        self.accounts = engine.startswith("accounts")
        (folder / "job.py").write_text(code(engine, size))
        (folder / "sink").mkdir()
        requests = size.accounts * 2 if self.accounts else size.rows // PAGE_SIZE
        total = size.workers_killed + size.drivers_killed
        moments = sorted(self.dice.sample(range(5, max(requests * 3 // 4, total + 6)), total))
        victims = ["driver"] * size.drivers_killed + ["worker"] * size.workers_killed
        self.dice.shuffle(victims)
        self._due = list(zip(moments, victims, strict=True))
        self._driver = 0

    def run(self) -> Found:
        """Run the job as often as it takes, and compare."""
        with Source(self.size) as source, reached(self.made):
            started = time.monotonic()
            source.heard = lambda process: self._hear(source.served, process)
            while not self._once(source.address):
                if self.runs > 50:
                    raise SystemExit("cluster: the job does not come to its end")
            seconds = time.monotonic() - started
            truth, written = source.truth(self.engine), self._written()
            self._check()
            return Found(
                self.engine,
                self.made.url.partition(":")[0],
                len(truth),
                self.size.accounts if self.accounts else len(source.windows),
                self.runs,
                self.workers_killed,
                self.drivers_killed,
                len(truth - written.keys()),
                len(written.keys() - truth),
                written.total() - len(written),
                round(seconds, 1),
            )

    def _once(self, address: str) -> bool:
        """Run the job once; return True where it came to its end."""
        self.runs += 1
        environment = {
            **os.environ,
            "CLUSTER_STORE": self.made.url,
            "CLUSTER_SOURCE": address,
            "CLUSTER_SINK": str(self.folder / "sink"),
            "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        with (self.folder / f"output-{self.runs}").open("w+") as output:
            driver = subprocess.Popen(
                [sys.executable, "job.py"], cwd=self.folder, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self._driver = driver.pid
            try:
                status = driver.wait(TIMEOUT)
            finally:
                self._driver = 0
                end_session(driver.pid)  # workers that a killed driver left behind
            output.seek(0)
            said = output.read()
        if status in {0, -signal.SIGKILL}:
            return status == 0
        if "Conflict" in said or not any(word in said for word in GOES_ON):
            raise SystemExit(f"cluster: the job failed with {status}:\n{said[-4000:]}")
        return False

    def _hear(self, served: int, process: int) -> None:
        """Kill whoever asked, or its driver, where that is due; the answer is on its way."""
        if not self._due or served < self._due[0][0] or not self._driver or process == self._driver:
            return
        _, victim = self._due.pop(0)
        with suppress(ProcessLookupError):
            if victim == "driver":
                os.kill(self._driver, signal.SIGKILL)
                self.drivers_killed += 1
            elif process in in_session(self._driver):
                os.kill(process, signal.SIGKILL)
                self.workers_killed += 1

    def _written(self) -> Counter[int]:
        """Return how often each row was written."""
        found: Counter[int] = Counter()
        for path in (self.folder / "sink").iterdir():
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):  # else its process died in the middle of it
                    found.update(json.loads(line))
        return found

    def _check(self) -> None:
        """See that the stored state says what was done."""
        if not self.accounts:
            with Checkpointer("crm", self.made.url, record_run=False) as cp:
                if cp["tickets"] != {"updated_at": UNTIL}:
                    raise SystemExit(f"cluster: {cp['tickets']} is stored")
            return
        members = 0
        with closing(open_store(self.made.url)) as store:
            assert isinstance(store, ListsNamespaces)
            for namespace in store.namespaces():
                with Checkpointer(namespace, store, record_run=False) as cp:
                    members += len(cp.group("orders"))
        if members != self.size.accounts:
            raise SystemExit(f"cluster: {members} members are stored")


def code(engine: str, size: Size) -> str:
    """Return a job of the page, after what it imports."""
    block = blocks(ENGINES[engine])[0]
    before = blocks("A backfill in windows")[0]
    if engine in NEEDS and engine.startswith("accounts"):
        before = blocks(ACCOUNTS)[0].partition("\n\n\nif ")[0]  # what it imports, and `sync`
    before, block = (text.replace("days=1", size.step).replace("250", str(size.chunk)) for text in (before, block))
    for eight in ("(8,", "n_workers=8", "[8,"):
        block = block.replace(eight, eight.replace("8", str(size.workers)))
    block = block.replace("range(40)", f"range({-(-size.accounts // size.chunk)})")
    return f"from cluster_client import STORE, get, pages, sink\n\n\n{before}\n\n{block}"


def blocks(heading: str) -> list[str]:
    """Return the code that stands under a heading of the page."""
    _, _, below = PAGE.read_text("utf-8").partition(f"# {heading}\n")
    below = re.split(r"^#+ [A-Z]", below, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^```python\n(.*?)^```", below, re.DOTALL | re.MULTILINE)


def in_session(leader: int) -> set[int]:
    """Return the processes of a session, which children belong to whatever their group is."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.add(int(path.parent.name))
    return found


def end_session(leader: int) -> None:
    """Kill what is left of a session."""
    while left := in_session(leader):
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def measure(engine: str, kind: str, size: Size, seed: int = 0) -> Found:
    """Run a job over a new store."""
    with tempfile.TemporaryDirectory() as folder, place(kind, Path(folder)) as made:
        return Cluster(engine, made, Path(folder), size, seed).run()


HEADS = ("engine", "store", "rows", "windows, or accounts", "runs", "workers killed", "drivers killed", "missing",
         "read twice", "seconds")  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [f"| {' | '.join(HEADS)} |", f"|---|---|{'--:|' * (len(HEADS) - 2)}"]
    for row in results["runs"]:
        cells = [row["engine"], row["store"], *(f"{row[name]:,}" for name in NUMBERS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


NUMBERS = ("rows", "parts", "runs", "workers_killed", "drivers_killed", "missing", "twice", "seconds")


def write(found: list[Found], folder: Path = RESULTS) -> None:
    """Put new lines in the place of those of the same engine and store, and show them all."""
    path = folder / "cluster.json"
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    fresh = {(row.engine, row.store): asdict(row) for row in found}
    rows = {(row["engine"], row["store"]): row for row in known} | fresh
    order = sorted(rows, key=lambda key: ([*ENGINES].index(key[0]), key[1]))
    results = {"runs": [rows[key] for key in order]}
    path.write_text(json.dumps(results, indent=2) + "\n")
    if folder != RESULTS:
        return
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(results) + END + rest.partition(END)[2], "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    there = [name for name in ENGINES if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES], default=there)
    parser.add_argument("--stores", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--table", action="store_true", help="measure nothing, and show what is there")
    options = parser.parse_args()
    if options.table:
        write([])
    for engine in [] if options.table else options.engines:
        for kind in options.stores:
            if engine == "accounts-parts" and kind != "s3":
                continue  # what only a bucket is slow without
            found = measure(engine, kind, Size(step="days=3") if engine == "spark" else Size(), options.seed)
            print(" ".join(f"{name}={value}" for name, value in asdict(found).items()), flush=True)
            write([found], options.results)
            if found.missing or found.foreign:
                raise SystemExit("cluster: rows are missing, or too many")


if __name__ == "__main__":
    main()
