"""Flushing 100 changed keys to the state API, beside other ways to send 100 requests.

All contestants change every key in every round, and are measured from the new cursors to the last answer.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from floor import sockets
from harness import OURS, Case, compare, fail, main, peer
from served import NAMESPACE, TOKEN, server, streams

from checkpoint import Checkpointer
from checkpoint.stores.truto import CONCURRENCY, TrutoStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint.stores.base import Store

    Run = Callable[[], float]

LOOP = "requests.patch loop"
OVERWRITE = f"{OURS}, overwrite"
GOALS = {50: 24, 5: 12, 0: 2}
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PARAMS = {"state_key": NAMESPACE}
PACKAGES = (
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "requests",
    "aiohttp",
    "truto-python-sdk",
    "uvicorn",
    "httptools",
    "uvloop",
)


def cases(quick: bool) -> list[Case]:
    """Measure at three latencies."""
    rounds = {50: 1} if quick else {50: 3, 5: 5, 0: 5}
    return [flush(latency, 20 if quick else 100, count) for latency, count in rounds.items()]


def flush(latency: int, count: int, rounds: int) -> Case:
    """Measure at so many milliseconds of latency."""
    with ExitStack() as stack:
        url = stack.enter_context(server(latency / 1000, streams(count)))
        keys = [f"stream_{number:06}" for number in range(count)]
        rest = Rest()
        contestants = {
            OURS: committing(stack, TrutoStore(url, TOKEN), keys, rest),
            OVERWRITE: committing(stack, TrutoStore(url, TOKEN), keys, rest, on_conflict="overwrite"),
            **peers(stack, url, keys),
            f"{CONCURRENCY} raw sockets (floor)": sockets(url, keys, CONCURRENCY),
        }
        times = GOALS[latency]
        goal = (f"≥ {times} × as fast as the {LOOP}", lambda figures: figures[LOOP].ratio >= times)
        return compare(f"{count} keys, {latency} ms", rounds, contestants, goal if LOOP in contestants else None)


class Rest:
    """Our own limit is 500 requests in 10 s: a round that waited for it would measure the wait."""

    def __init__(self, *, free: bool = False) -> None:
        self._free = free  # of any limit
        self._until = 0.0

    def take(self, requests: int) -> None:
        """Wait until so many requests go at once."""
        if self._free:
            return
        time.sleep(max(0.0, self._until - time.monotonic()))
        self._until = max(self._until, time.monotonic()) + requests * 10 / 500 * 1.5


def committing(
    stack: ExitStack, store: Store, keys: list[str], rest: Rest, counts: dict[str, float] | None = None, **options: Any
) -> Run:
    """Return a round of a run that changes all of these keys and commits; it counts its requests."""
    stack.callback(store.close)
    cp = stack.enter_context(Checkpointer(NAMESPACE, store, **options))
    numbers = itertools.count(1)

    def run() -> float:
        cp.reload()  # the other contestants write the same keys
        rest.take(len(keys) + 2)
        cursor = fresh(numbers)
        started = time.perf_counter()
        for key in keys:
            cp[key] = cursor
        commit = cp.commit()
        seconds = time.perf_counter() - started
        if len(commit.keys) != len(keys) or commit.retries:
            fail(f"not the flush that was meant: {commit}")
        if counts is not None:
            counts["requests"] = commit.requests
        return seconds

    return run


def peers(stack: ExitStack, url: str, keys: list[str]) -> dict[str, Run]:
    """Return the peers that are installed."""
    found: dict[str, Run] = {}
    urls = {key: f"{url}/sync-job-run-state/{key}" for key in keys}
    with peer("requests"):
        import requests  # each peer may be missing

        session = stack.enter_context(requests.Session())
        found[LOOP] = one_by_one(urls, lambda to, body: requests.patch(to, headers=HEADERS, params=PARAMS, json=body))
        found["requests.Session"] = one_by_one(
            urls, lambda to, body: session.patch(to, headers=HEADERS, params=PARAMS, json=body)
        )
    with peer("httpx"):
        import httpx

        client = stack.enter_context(httpx.Client(headers=HEADERS, params=PARAMS))
        found["httpx.Client"] = one_by_one(urls, lambda to, body: client.patch(to, json=body))
    with peer("truto-python-sdk"):
        found["truto-python-sdk"] = vendor(stack, url, keys)
    with peer("aiohttp"):
        found[f"aiohttp, {CONCURRENCY} connections"] = aio(stack, urls)
    return found


def one_by_one(urls: dict[str, str], patch: Callable[[str, dict[str, str]], Any]) -> Run:
    numbers = itertools.count(1)

    def run() -> float:
        cursor = fresh(numbers)
        started = time.perf_counter()
        for url in urls.values():
            patch(url, {"value": encoded(cursor)}).raise_for_status()
        return time.perf_counter() - started

    return run


def vendor(stack: ExitStack, url: str, keys: list[str]) -> Run:
    """Return the vendor's SDK, which opens a session for each call."""
    from truto_python_sdk import TrutoApi

    api, runner, numbers = TrutoApi(TOKEN, url), stack.enter_context(Loop()), itertools.count(1)

    async def send() -> float:
        cursor = fresh(numbers)
        started = time.perf_counter()
        for key in keys:  # the SDK has no resource for this call: its own way of sending is all it lends
            await api._patch(f"sync-job-run-state/{key}", data={"value": encoded(cursor)}, params=PARAMS)  # noqa: SLF001 - see above
        return time.perf_counter() - started

    return lambda: runner.run(send())


def aio(stack: ExitStack, urls: dict[str, str]) -> Run:
    """Return aiohttp with one session kept, all requests gathered."""
    import aiohttp

    loop, numbers = stack.enter_context(Loop()), itertools.count(1)

    async def opened() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=HEADERS, connector=aiohttp.TCPConnector(limit=CONCURRENCY))

    session = loop.run(opened())
    stack.callback(lambda: loop.run(session.close()))

    async def patch(url: str, cursor: dict[str, Any]) -> None:
        async with session.patch(url, params=PARAMS, json={"value": encoded(cursor)}) as response:
            response.raise_for_status()
            await response.read()

    async def send() -> float:
        cursor = fresh(numbers)
        started = time.perf_counter()
        await asyncio.gather(*(patch(url, cursor) for url in urls.values()))
        return time.perf_counter() - started

    return lambda: loop.run(send())


class Loop:
    """An event loop that is kept between rounds."""

    def __enter__(self) -> Loop:  # noqa: PYI034 - no subclasses
        self._loop = asyncio.new_event_loop()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.close()

    def run(self, coroutine: Any) -> Any:  # noqa: D102 - what it says
        return self._loop.run_until_complete(coroutine)


def fresh(numbers: itertools.count[int]) -> dict[str, Any]:
    """Return a cursor that no contestant has stored: two of the same are not sent twice by ours."""
    return {"id": f"{next(numbers)}-{time.time_ns()}", "updated_at": "2024-05-01T10:00:00Z"}


def encoded(cursor: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(cursor).encode()).decode()


if __name__ == "__main__":
    main(__file__, __doc__, cases, PACKAGES)
