"""Our own server: 100 changed keys in one request, one key beside many, eight clients, and a server that is killed.

The vendor's API and the loop of requests write to the same server, in the same rounds.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import served
from flush import LOOP, Rest, committing, fresh, one_by_one
from harness import OURS, Case, case, chosen, compare, main, peer, settings
from served import NAMESPACE, TOKEN, streams

from checkpoint import Checkpointer
from checkpoint.codec import encode
from checkpoint.errors import CheckpointError, CommitUnknown, Conflict
from checkpoint.stores.server import ServerStore
from checkpoint.stores.truto import TrutoStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from checkpoint.stores.base import Store

    Run = Callable[[], float]

VENDOR = "the vendor's API"
GOALS = {50: 60, 5: 60, 0: 40}
FEW, MANY = 10, 50_000
BATCH = 200
CLIENTS = 8
PACKAGES = ("fastapi", "httpx", "httpx2", "requests", "starlette", "uvicorn", "httptools", "uvloop")


def cases(quick: bool) -> list[Case]:
    """Measure at three latencies; beside few keys and many; eight clients; and eight that count while it is killed."""
    many, seconds, every = (1_000, 2.0, 1.0) if quick else (MANY, settings.seconds, 3.0)
    rounds = {50: 1} if quick else {50: 3, 5: 5, 0: 9}
    measured = [flush(latency, 20 if quick else 100, count) for latency, count in rounds.items()]
    return [*measured, *beside(many, 5 if quick else 50), clients(seconds), killed(seconds, every)]


def flush(latency: int, count: int, rounds: int) -> Case:
    """Measure a commit of so many changed keys, at so many milliseconds of latency."""
    with ExitStack() as stack:
        url = stack.enter_context(served.server(latency / 1000, streams(count)))
        keys = [*streams(count)]
        requests = {OURS: {"requests": 0.0}, VENDOR: {"requests": 0.0}}
        contestants = {
            OURS: committing(stack, ServerStore(url, TOKEN), keys, Rest(free=True), requests[OURS], record_run=False),
            VENDOR: committing(stack, TrutoStore(url, TOKEN), keys, Rest(), requests[VENDOR], record_run=False),
        }
        with peer("requests"):
            import requests as library  # it may be missing

            headers, params = {"Authorization": f"Bearer {TOKEN}"}, {"state_key": NAMESPACE}
            urls = {key: f"{url}/sync-job-run-state/{key}" for key in keys}
            contestants[LOOP] = one_by_one(
                urls, lambda to, body: library.patch(to, headers=headers, params=params, json=body)
            )
            requests[LOOP] = {"requests": float(count)}
        times, name = GOALS[latency], f"own server, {count} keys, {latency} ms"
        goal = (f"≥ {times} × as fast as the {LOOP}", lambda figures: figures[LOOP].ratio >= times)
        wanted = LOOP in contestants and count >= 100  # fewer keys cannot be so many times as fast
        return compare(name, rounds, contestants, goal if wanted else None, requests)


def beside(many: int, rounds: int) -> list[Case]:
    """Measure what a request for one key, and a commit of some, cost beside few keys and many, over a SQLite file."""
    with ExitStack() as stack:
        places: dict[int, tuple[ServerStore, TrutoStore]] = {}
        for size in (FEW, many):
            url = stack.enter_context(served.server(0.0, streams(size), file=True))
            places[size] = ServerStore(url, TOKEN), TrutoStore(url, TOKEN, rate=(10**6, 1.0))
            for store in places[size]:
                stack.callback(store.close)
        (few, few_vendor), (lots, lots_vendor) = places[FEW], places[many]
        one = {
            OURS: timed(lambda: lots.read(NAMESPACE, ["stream_000003"])),
            f"beside {FEW}": timed(lambda: few.read(NAMESPACE, ["stream_000003"])),
            f"{VENDOR} (GET)": timed(lambda: lots_vendor.commit(NAMESPACE, {}, {"none": None})),
            f"{VENDOR} (GET), beside {FEW}": timed(lambda: few_vendor.commit(NAMESPACE, {}, {"none": None})),
        }
        twice = (f"≤ 2 × beside {FEW}", lambda figures: figures[f"beside {FEW}"].ratio >= 0.5)
        read = compare(f"one key read beside {many:,}", rounds, one, twice if chosen(f"beside {FEW}") else None)
        batch = {OURS: writing(lots), f"beside {FEW}": writing(few)}
        second = ("≤ 1 s", lambda figures: figures[OURS].median <= 1)
        return [read, compare(f"{BATCH} keys committed beside {many:,}", max(2, rounds // 10), batch, second)]


def timed(call: Callable[[], object]) -> Run:
    """Return a round of one call."""

    def run() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return run


def writing(store: Store) -> Run:
    """Return a round of a commit of some new values, each on the base of the last one."""
    base: Mapping[str, Any] = {}
    numbers = itertools.count(1)

    def run() -> float:
        nonlocal base
        values = {f"written_{key}": encode(fresh(numbers)) for key in range(BATCH)}
        started = time.perf_counter()
        base = store.commit(NAMESPACE, values, base or dict.fromkeys(values)).entries
        return time.perf_counter() - started

    return run


def clients(seconds: float) -> Case:
    """Measure eight processes that commit again and again, each in a namespace of its own, over a SQLite file."""
    with served.server(0.0, {}, file=True) as url:
        context = multiprocessing.get_context("spawn")
        with context.Pool(CLIENTS) as pool:
            told = pool.starmap(one_client, [(url, f"client {number}", seconds) for number in range(CLIENTS)])
    times = [each for one, _ in told for each in one]
    errors = sum(failed for _, failed in told)
    counts = {OURS: {"requests/s": round(len(times) / seconds, 1), "errors": float(errors)}}
    said = (f"no errors in {seconds:g} s", lambda _: errors == 0)
    return case(f"{CLIENTS} clients, a commit after the other", {OURS: times}, said, counts)


def one_client(url: str, namespace: str, seconds: float) -> tuple[list[float], int]:
    """Commit for so many seconds; return what each commit took, and how many failed."""
    times: list[float] = []
    errors = 0
    with closing(ServerStore(url, TOKEN)) as store, Checkpointer(namespace, store) as cp:
        until = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            cp["stream"] = {"id": len(times), "process": os.getpid()}
            try:
                cp.commit()
            except CheckpointError:
                errors += 1
            times.append(time.perf_counter() - started)
    return times, errors


def killed(seconds: float, every: float) -> Case:
    """Measure eight processes that count in one key, while the server is killed and started again."""
    with served.killed() as (url, path, kill), multiprocessing.get_context("spawn").Pool(CLIENTS) as pool:
        told = pool.starmap_async(one_counter, [(url, seconds)] * CLIENTS)
        kills = 0
        while not told.ready():
            told.wait(every)
            kill()
            kills += 1
        counters = told.get()
        with Checkpointer(NAMESPACE, f"sqlite:///{path}") as cp:
            stored = cp["count"]["n"]
    times = [each for one, _ in counters for each in one]
    unknown = sum(one for _, one in counters)
    figures = {"kills": kills, "counted": len(times), "stored": stored, "unknown": unknown}
    said = ("each count is stored once", lambda _: len(times) <= stored <= len(times) + unknown)
    name = f"{CLIENTS} count in one key, killed each {every:g} s"
    return case(name, {OURS: times}, said, {OURS: {what: float(number) for what, number in figures.items()}})


def one_counter(url: str, seconds: float) -> tuple[list[float], int]:
    """Count for so many seconds; return what each count took, tries included, and how many have an unknown outcome."""
    times: list[float] = []
    unknown = 0
    with closing(ServerStore(url, TOKEN)) as store, Checkpointer(NAMESPACE, store) as cp:
        until = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            if count(cp):
                times.append(time.perf_counter() - started)
            else:
                unknown += 1
    return times, unknown


def count(cp: Checkpointer) -> bool:
    """Add one, to what others have counted meanwhile too; tell whether that is certain."""
    while True:
        cp["count"] = {"n": cp.get("count", {"n": 0})["n"] + 1}
        try:
            cp.commit()
        except Conflict:
            cp.discard()
        except CommitUnknown:
            cp.reload()
            return False
        else:
            return True


if __name__ == "__main__":
    main(__file__, __doc__, cases, PACKAGES, seconds=60.0)
