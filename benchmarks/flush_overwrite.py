"""The flush of `flush.py` at 50 ms without the look at other writers: `on_conflict="overwrite"`."""

from __future__ import annotations

from contextlib import ExitStack

from flush import PEER, cursor, ours, server, theirs
from harness import OURS, Case, compare, options, report

from checkpoint import Checkpointer
from checkpoint.stores.truto import TrutoStore


def main() -> None:
    """Measure at 50 ms of latency."""
    quick = options(__doc__).quick
    keys = [f"stream_{number:03}" for number in range(10 if quick else 100)]
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
    case = flush(keys, 3 if quick else 9)
    report("flush_overwrite", "peer's median / ours: above 1, ours is faster", [case], packages, write=not quick)


def flush(keys: list[str], rounds: int) -> Case:
    """Measure so many rounds."""
    with ExitStack() as stack:
        url, token = stack.enter_context(server(0.05))
        store = TrutoStore(url, token)
        stack.callback(store.close)
        with Checkpointer("theirs", store) as cp:
            cp.update({key: cursor(0) for key in keys})
        cp = stack.enter_context(Checkpointer("ours", store, on_conflict="overwrite"))
        contestants = {OURS: ours(cp, keys), PEER: theirs(url, token, keys)}
        name = f"{len(keys)} keys, 50 ms, no look"
        return compare(name, rounds, contestants, lambda ours, peer: peer / ours)


if __name__ == "__main__":
    main()
