"""The HTTP store beside that of an older checkout: a commit's wall time and CPU, and lines of code.

Each checkout has a process of its own, which is asked in turn. Warm: one client, whose connections are open; cold: a
new client, over TLS, whose one connection was opened by loading the state.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cold
import harness
from harness import OURS, Case, case, fail, main
from served import NAMESPACE, TOKEN, server, streams

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

BEFORE = "version 1"
PACKAGES = ("httpcore", "httpcore2", "httpx", "httpx2", "h2")
WARM = {50: (100, 20, 5, 1), 5: (100, 20, 1), 0: (100, 20, 1)}
"""Milliseconds of latency: how many keys are changed."""
WORKER = """
import itertools, json, sys, time
from contextlib import ExitStack
from checkpoint import Checkpointer, TrutoStore

namespace, token = sys.argv[1:]
numbers = itertools.count(1)
stack, kept = ExitStack(), {}

def opened(url, stack):
    store = TrutoStore(url, token, rate=(1_000_000, 1.0))
    stack.callback(store.close)
    return stack.enter_context(Checkpointer(namespace, store))

def measured(cp, count):
    cursor = {"id": f"{next(numbers)}-{time.time_ns()}", "updated_at": "2024-05-01T10:00:00Z"}
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        cp[f"stream_{number:06}"] = cursor
    commit = cp.commit()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert len(commit.keys) == count and not commit.retries, commit
    return {"wall": wall, "cpu": cpu, "requests": commit.requests}

for line in sys.stdin:
    order = json.loads(line)
    if order["cold"]:
        with ExitStack() as once:
            told = measured(opened(order["url"], once), order["count"])
    else:
        if order["url"] not in kept:
            stack.close()
            kept = {order["url"]: opened(order["url"], stack)}
        kept[order["url"]].reload()  # the other checkout writes the same keys
        told = measured(kept[order["url"]], order["count"])
    files = [module.__file__ for name, module in sys.modules.items() if name.startswith("checkpoint.stores.")]
    print(json.dumps({**told, "lines": sum(len(open(file).readlines()) for file in files)}), flush=True)
stack.close()
"""
"""`lines` are those of the modules of `checkpoint.stores` that a commit over HTTP has imported."""


@contextmanager
def worker(checkout: Path) -> Generator[Any]:
    """Start a process that commits with a checkout's library; what asks it for one commit."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-W", "ignore", "-c", WORKER, NAMESPACE, TOKEN]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(url: str, count: int, is_cold: bool) -> dict[str, float]:
            print(json.dumps({"url": url, "count": count, "cold": is_cold}), file=process.stdin, flush=True)
            told = process.stdout.readline() if process.stdout else ""
            return json.loads(told) if told else fail(f"the library of {checkout} did not commit")

        yield ask
        process.stdin.close()


def cases(quick: bool) -> list[Case]:
    """Measure both checkouts, or this one alone, in each condition."""
    found: list[Case] = []
    for latency, counts in WARM.items():
        with server(latency / 1000, streams(max(counts))) as url:
            found += measured(url, counts, f"{latency} ms", 2 if quick else 15, is_cold=False)
    for protocols, name in (("h2 http/1.1", "HTTP/2"), ("http/1.1", "HTTP/1.1")):
        with cold.server(protocols) as url:
            found += measured(url, cold.COUNTS, f"cold, TLS, {name}, 50 ms", 2 if quick else 9, is_cold=True)
    return found


def measured(url: str, counts: tuple[int, ...], condition: str, rounds: int, *, is_cold: bool) -> list[Case]:
    """Ask both in turn; a case for the wall time, and one for the CPU."""
    found: list[Case] = []
    with ExitStack() as stack:
        checkouts = {OURS: Path(__file__).parent.parent}
        if harness.settings.before is not None:
            checkouts[BEFORE] = harness.settings.before
        asks: dict[str, Callable[[str, int, bool], dict[str, float]]] = {
            name: stack.enter_context(worker(checkout)) for name, checkout in checkouts.items()
        }
        for count in counts:
            told: dict[str, list[dict[str, float]]] = {name: [] for name in asks}
            for number in range(rounds + 1):
                for name, ask in asks.items():
                    one = ask(url, count, is_cold)
                    if number:  # the first one warms up
                        told[name].append(one)
            for what in ("wall", "cpu"):
                times = {name: [one[what] for one in every] for name, every in told.items()}
                more = {
                    name: {"requests": every[-1]["requests"], "lines": every[-1]["lines"]}
                    for name, every in told.items()
                }
                keys = f"{count} key{'s' if count > 1 else ''}"
                found.append(case(f"{keys}, {condition}, {what}", times, counts=more))
            print(f"{found[-1].name} done", file=sys.stderr)
    return found


if __name__ == "__main__":
    main(__file__, __doc__, cases, PACKAGES, before=True)
