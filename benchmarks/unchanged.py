"""A commit after which nothing is different, beside sending every cursor again."""

from __future__ import annotations

import time
from contextlib import ExitStack

from flush import encoded
from harness import OURS, Case, compare, main

from checkpoint import Checkpointer
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import ApiServer

RESENDING = "TrutoStore.commit of all keys"


def cases(quick: bool) -> list[Case]:
    """Measure at 5 ms; the server counts the requests."""
    keys = [f"stream_{number:03}" for number in range(100)]
    rounds = 2 if quick else 5
    cursor = {"id": 7, "updated_at": "2024-05-01T10:00:00Z"}
    requests: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer(latency=0.005))
        store = TrutoStore(server.url, server.token, rate=(1_000_000, 1.0))
        stack.callback(store.close)
        cp = stack.enter_context(Checkpointer("sync_job", store))
        cp.update(dict.fromkeys(keys, cursor))
        cp.commit()

        def ours() -> float:
            server.clear()
            started = time.perf_counter()
            cp.update({key: dict(cursor) for key in keys})
            cp.commit()
            seconds = time.perf_counter() - started
            requests[OURS] = {"requests": len(server.requests)}
            return seconds

        def resent() -> float:
            server.clear()
            started = time.perf_counter()
            store.commit("sync_job", {key: encoded(cursor) for key in keys})
            seconds = time.perf_counter() - started
            requests[RESENDING] = {"requests": len(server.requests)}
            return seconds

        goal = ("0 requests", lambda _: requests[OURS]["requests"] == 0)
        return [compare("100 keys, nothing changed", rounds, {OURS: ours, RESENDING: resent}, goal, requests)]


if __name__ == "__main__":
    main(__file__, __doc__, cases)
