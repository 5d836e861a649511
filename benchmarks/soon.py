"""How long the job's loop waits for setting a cursor and `commit_soon`, at 50 ms of latency.

The loop's peer is the write that it would wait for.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from array import array
from contextlib import ExitStack, closing
from pathlib import Path

from flush import LOOP, encoded
from harness import OURS, Case, case, fail, main, peer
from served import NAMESPACE, TOKEN, server, streams

from checkpoint import Checkpointer
from checkpoint.codec import encode
from checkpoint.stores.truto import TrutoStore

MEGABYTE = 2**20
FLAT = 4.0


def cases(quick: bool) -> list[Case]:
    """Measure the calls one by one, and what the process grows by meanwhile."""
    calls = 5_000 if quick else 100_000
    with ExitStack() as stack:
        url = stack.enter_context(server(0.05, streams(1)))
        store = stack.enter_context(closing(TrutoStore(url, TOKEN)))
        waits, grown = ours(store, calls)
        if store.load(NAMESPACE)["stream_000000"].value != encoded_compactly(calls - 1):
            fail("the last value is not the one that is stored")
        seconds = {OURS: waits, **inline(url)}
    goal = (
        "≤ 50 µs, memory flat, the last value stored",
        lambda figures: figures[OURS].median <= 50e-6 and grown <= FLAT,
    )
    return [case(f"{calls:,} calls, 50 ms", seconds, goal, {OURS: {"MB grown": round(grown, 1)}})]


def ours(store: TrutoStore, calls: int) -> tuple[array[float], float]:
    """Return the waits in seconds, and the megabytes that the process grew by after the first tenth."""
    waits = array("d", bytes(8 * calls))
    before = 0.0
    with Checkpointer(NAMESPACE, store) as cp:
        for number in range(calls):
            if number == calls // 10:
                before = resident()
            started = time.perf_counter()
            cp["stream_000000"] = {"id": number, "updated_at": "2024-05-01T10:00:00Z"}
            cp.commit_soon()
            waits[number] = time.perf_counter() - started
        return waits, resident() - before


def inline(url: str) -> dict[str, list[float]]:
    """Return the seconds of the writes that a loop waits for."""
    with peer("requests"):
        import requests  # a peer that may be missing

        def patch(number: int) -> float:
            started = time.perf_counter()
            requests.patch(
                f"{url}/sync-job-run-state/stream_000000",
                headers={"Authorization": f"Bearer {TOKEN}"},
                params={"state_key": NAMESPACE},
                json={"value": encoded({"id": number})},
            ).raise_for_status()
            return time.perf_counter() - started

        return {LOOP: [patch(number) for number in itertools.islice(itertools.count(), 20)]}
    return {}


def encoded_compactly(number: int) -> str:
    return encode({"id": number, "updated_at": "2024-05-01T10:00:00Z"})


def resident() -> float:
    """Return the megabytes that the process holds; where the system does not tell, at the most so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (MEGABYTE if sys.platform == "darwin" else 1024)
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


if __name__ == "__main__":
    main(__file__, __doc__, cases, ["requests"])
