"""Flushing 100 changed keys to the state API, against the loop of the vendor's reference.

The server is a process of its own, so that it shares no interpreter lock with what is measured. Both contestants change
every key in every round, and are measured from the new cursors to the last answer.
"""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import requests
from harness import OURS, Case, compare, fail, options, report

from checkpoint import Checkpointer
from checkpoint.stores.truto import TrutoStore

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

PEER = "requests.patch loop"
TOKEN = "a-token"
SERVER = """
import sys
from functools import partial
from checkpoint.server import Options, serve
from checkpoint.stores.memory import MemoryStore
options = Options(latency=float(sys.argv[1]), in_threads=False)
serve(MemoryStore(), sys.argv[2], port=0, options=options, ready=partial(print, flush=True))
"""


def main() -> None:
    """Measure at three latencies."""
    quick = options(__doc__).quick
    keys = [f"stream_{number:03}" for number in range(10 if quick else 100)]
    rounds = {50: 3, 5: 3, 0: 3} if quick else {50: 9, 5: 25, 0: 25}
    cases = [flush(latency, keys, count) for latency, count in rounds.items()]
    packages = [
        "checkpoint-store",
        "httpcore",
        "httpcore2",
        "httpx",
        "httpx2",
        "requests",
        "uvicorn",
        "httptools",
        "uvloop",
    ]
    report("flush", "peer's median / ours: above 1, ours is faster", cases, packages, write=not quick)


def flush(latency: int, keys: list[str], rounds: int) -> Case:
    """Measure at so many milliseconds of latency."""
    with ExitStack() as stack:
        url, token = stack.enter_context(server(latency / 1000))
        store = TrutoStore(url, token)
        stack.callback(store.close)
        with Checkpointer("theirs", store) as cp:
            cp.update({key: cursor(0) for key in keys})
        cp = stack.enter_context(Checkpointer("ours", store))
        contestants = {OURS: ours(cp, keys), PEER: theirs(url, token, keys)}
        return compare(f"{len(keys)} keys, {latency} ms", rounds, contestants, lambda ours, peer: peer / ours)


def ours(cp: Checkpointer, keys: list[str]) -> Callable[[], float]:
    """Return a round of ours."""
    numbers = itertools.count(1)

    def run() -> float:
        # Our own limit is 500 requests in 10 s: a round that waited for it would measure the wait.
        time.sleep(len(keys) * 10 / 500 * 1.1)
        number = next(numbers)
        started = time.perf_counter()
        for key in keys:
            cp[key] = cursor(number)
        commit = cp.commit()
        seconds = time.perf_counter() - started
        if len(commit.keys) != len(keys) or commit.retries:
            fail(f"not the flush that was meant: {commit}")
        return seconds

    return run


def theirs(url: str, token: str, keys: list[str]) -> Callable[[], float]:
    """Return a round of the reference's loop."""
    numbers = itertools.count(1)
    headers = {"Authorization": f"Bearer {token}"}

    def run() -> float:
        number = next(numbers)
        started = time.perf_counter()
        for key in keys:
            value = base64.b64encode(json.dumps(cursor(number)).encode()).decode()
            requests.patch(
                f"{url}/sync-job-run-state/{key}",
                headers=headers,
                params={"state_key": "theirs"},
                json={"value": value},
            ).raise_for_status()
        return time.perf_counter() - started

    return run


def cursor(number: int) -> dict[str, Any]:
    return {"id": str(number), "updated_at": "2024-05-01T10:00:00Z"}


@contextmanager
def server(latency: float) -> Generator[tuple[str, str]]:
    """Serve the state API from another process; its URL and token."""
    command = [sys.executable, "-c", SERVER, str(latency), TOKEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip() if process.stdout else ""
        if not url:
            fail("the server did not start")
        yield url, TOKEN
        process.terminate()


if __name__ == "__main__":
    main()
