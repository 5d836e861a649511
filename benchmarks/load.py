"""Loading a namespace of 100 000 keys, beside decoding all of it at once, and beside only fetching it.

Each load runs in a process of its own, which says how long it took and how much memory it took at the most.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from harness import OURS, Case, chosen, compare, main, within
from served import NAMESPACE, TOKEN, server, streams

from checkpoint.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREPARED = """
import base64, json, sqlite3, sys, time, tracemalloc
import orjson
from checkpoint import Checkpointer
from checkpoint.stores import open_store
from checkpoint.stores.truto import TrutoStore
where, namespace, token = sys.argv[1:4]
if sys.argv[4] == "memory":
    tracemalloc.start()
started = time.perf_counter()
"""
MEASURED = """
seconds = time.perf_counter() - started
assert count == int(sys.argv[5]), count
print(json.dumps([seconds, tracemalloc.get_traced_memory()[1] / 1e6]))
"""
ROWS = """
connection = sqlite3.connect(where)
rows = connection.execute("SELECT * FROM checkpoint_entries WHERE state_key = ?", (namespace,)).fetchall()
"""
LIST = """
import httpx
started = time.perf_counter()
headers = {"Authorization": "Bearer " + token}
answer = httpx.get(where + "/sync-job-run-state", params={"state_key": namespace}, headers=headers, timeout=60)
listed = orjson.loads(answer.content)["result"]
"""
EAGER = "eager orjson"
SQLITE = {
    OURS: """
store = open_store("sqlite:///" + where)
cp = Checkpointer(namespace, store, record_run=False).__enter__()
count = len(cp)
""",
    EAGER: ROWS + "loaded = {row[1]: orjson.loads(base64.b64decode(row[2])) for row in rows}; count = len(loaded)",
    "raw sqlite3 fetchall": ROWS + "count = len(rows)",
}
HTTP = {
    OURS: "store = TrutoStore(where, token); cp = Checkpointer(namespace, store).__enter__(); count = len(cp)",
    EAGER: LIST
    + "loaded = {e['key']: orjson.loads(base64.b64decode(e['value'])) for e in listed}; count = len(loaded)",
    "httpx and orjson, no cursors": LIST + "count = len(listed)",
}


def cases(quick: bool) -> list[Case]:
    """Measure from a file and over HTTP, in which the server's part is the same for all."""
    keys, rounds = (5_000, 1) if quick else (100_000, 5)
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        path = Path(folder) / "state.db"
        with closing(SQLiteStore(path)) as store:
            store.commit(NAMESPACE, streams(keys))
        found = [loads(f"{keys:,} keys from SQLite", SQLITE, str(path), keys, rounds)]
    with server(0.0, streams(keys)) as url:
        return [*found, loads(f"{keys:,} keys over HTTP", HTTP, url, keys, rounds)]


def loads(name: str, contestants: Mapping[str, str], where: str, keys: int, rounds: int) -> Case:
    memory: dict[str, dict[str, float]] = defaultdict(dict)

    def child(code: str, what: str) -> tuple[float, float]:
        command = [sys.executable, "-c", PREPARED + code + MEASURED, where, NAMESPACE, TOKEN, what, str(keys)]
        seconds, megabytes = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return seconds, megabytes

    def contestant(code: str) -> Callable[[], float]:
        return lambda: child(code, "time")[0]

    for label, code in contestants.items():
        if not chosen(label):
            continue
        memory[label]["peak MB"] = round(child(code, "memory")[1], 1)
    said, quick_enough = within(0.15, EAGER, 0.206)
    goal = (f"{said}; ≤ 85 MB", lambda figures: quick_enough(figures) and memory[OURS]["peak MB"] <= 85)
    runs = {label: contestant(code) for label, code in contestants.items()}
    return compare(name, rounds, runs, goal if contestants is SQLITE else None, memory)


if __name__ == "__main__":
    main(__file__, __doc__, cases, ["httpx", "orjson"])
