"""10 000 partitions, all changed, in a group of 64 shards, under a rate that the server enforces.

One key for each partition is not sent but simulated: it takes minutes.
"""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack

from harness import OURS, Case, case, fail, main

from checkpoint import Checkpointer
from checkpoint.stores.rate import Rate, simulate
from checkpoint.stores.truto import CONCURRENCY, TrutoStore
from checkpoint.testing import ApiServer

RATE = (500, 10.0)
LATENCY = 0.05
SHARDS = 64
ONE_EACH = "one key a partition, simulated"


def cases(quick: bool) -> list[Case]:
    """Measure at 50 ms; the server counts the requests and what it answered."""
    partitions, rounds = 10_000, 2 if quick else 9
    seconds: list[float] = []
    writes = refused = 0
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer(latency=LATENCY, rate=RATE))
        store = TrutoStore(server.url, server.token)
        stack.callback(store.close)
        cp = stack.enter_context(Checkpointer("sync_job", store))
        group = cp.group("accounts", shards=SHARDS)
        for number in itertools.count():
            for partition in range(partitions):
                group[f"account_{partition}"] = {"id": number, "updated_at": "2024-05-01T10:00:00Z"}
            server.clear()
            started = time.perf_counter()
            commit = cp.commit()
            if number:  # the first one creates the entries
                seconds.append(time.perf_counter() - started)
            sent = server.requests
            writes = max(writes, sum(call.method != "GET" for call in sent))
            refused += sum(call.status == 429 for call in sent)
            if len(commit.keys) != SHARDS + (number == 0):  # the head is written once
                fail(f"not the commit that was meant: {commit}")
            if len(seconds) == rounds:
                break
            time.sleep(SHARDS * RATE[1] / RATE[0] * 1.1)  # a round that waited for the rate would measure the wait
    each = simulate(Rate(*RATE), partitions, concurrency=CONCURRENCY, latency=LATENCY)[-1].answered
    counts = {OURS: {"writes": writes, "status 429": refused}, ONE_EACH: {"writes": partitions}}
    return [
        case(
            f"{partitions:,} partitions, 50 ms",
            {OURS: seconds, ONE_EACH: [each]},
            (
                "≤ 65 writes, no 429, ≤ 2 s",
                lambda figures: writes <= SHARDS + 1 and not refused and figures[OURS].median <= 2,
            ),
            counts,
        )
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cases)
