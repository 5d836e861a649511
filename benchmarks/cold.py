"""The first commit of a job over TLS, 50 ms away: HTTP/1.1 and HTTP/2, beside other clients.

Each round has a new client, whose one connection was opened by loading the state; measured is what follows: a look at
what is stored, and a PATCH for each key. hypercorn serves, behind a proxy that holds every byte back for 25 ms.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flush import HEADERS, PARAMS, Loop, encoded, fresh
from harness import OURS, Case, compare, fail, main, peer
from served import NAMESPACE, TOKEN, streams

from checkpoint import Checkpointer
from checkpoint.stores.truto import CONCURRENCY, TrutoStore

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    Run = Callable[[], float]

DELAY = 0.025
COUNTS = (1, 5, 20, 100)
GOALS = {5: 0.125, 20: 0.140}
PACKAGES = ("httpx", "httpx2", "h2", "hypercorn", "requests", "aiohttp")
SERVER = """
import asyncio, json, sys
from hypercorn.asyncio import serve
from hypercorn.config import Config
from checkpoint.server import Switches, create_app
from checkpoint.stores.memory import MemoryStore
namespace, token, delay, certfile, keyfile, protocols, entries = sys.argv[1:]
store = MemoryStore()
store.commit(namespace, json.loads(entries))
app = create_app(store, token, Switches(in_threads=False))

async def carry(reader, writer, delay):
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue()
    async def deliver():
        while True:
            at, piece = await pieces.get()
            await asyncio.sleep(max(0, at - loop.time()))
            if not piece:
                writer.close()
                return
            writer.write(piece)
    delivering = asyncio.create_task(deliver())
    piece = b"-"
    while piece:
        try:
            piece = await reader.read(65536)
        except ConnectionError:
            piece = b""
        pieces.put_nowait((loop.time() + delay, piece))
    await delivering

async def main():
    config = Config()
    config.bind, config.certfile, config.keyfile = ["127.0.0.1:0"], certfile, keyfile
    config.alpn_protocols, config.accesslog, config.errorlog = protocols.split(), None, None
    sockets = config.create_sockets()
    config.create_sockets = lambda: sockets
    sockets.secure_sockets[0].listen(200)
    behind = sockets.secure_sockets[0].getsockname()[1]

    async def accepted(reader, writer):
        onward = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(carry(reader, onward[1], float(delay)), carry(onward[0], writer, float(delay)))

    proxy = await asyncio.start_server(accepted, "127.0.0.1", 0, backlog=200)
    print(proxy.sockets[0].getsockname()[1], flush=True)
    await serve(app, config, shutdown_trigger=asyncio.Event().wait)

asyncio.run(main())
"""


def cases(quick: bool) -> list[Case]:
    """Measure both protocols with each number of keys."""
    found: list[Case] = []
    for protocols, name in (("h2 http/1.1", "HTTP/2"), ("http/1.1", "HTTP/1.1")):
        with server(protocols) as url:
            found += [cold(url, name, count, 2 if quick else 9) for count in COUNTS]
    return found


@contextmanager
def server(protocols: str) -> Generator[str]:
    """Serve the API over TLS, from another process, 25 ms away; its URL."""
    import trustme  # only this script needs it

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
        certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
        os.environ["SSL_CERT_FILE"] = os.environ["REQUESTS_CA_BUNDLE"] = str(folder / "ca.pem")
        import json

        files = [str(folder / "cert.pem"), str(folder / "key.pem")]
        entries = json.dumps(streams(max(COUNTS)))
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            SERVER,
            NAMESPACE,
            TOKEN,
            str(DELAY),
            *files,
            protocols,
            entries,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                port = process.stdout.readline().strip() if process.stdout else ""
                if not port:
                    fail("the server did not start")
                yield f"https://127.0.0.1:{port}"
            finally:
                process.kill()


def cold(url: str, protocol: str, count: int, rounds: int) -> Case:
    """Measure the first commit of so many keys."""
    keys = [f"stream_{number:06}" for number in range(count)]
    numbers = itertools.count(1)
    with ExitStack() as stack:
        contestants = {OURS: lambda: ours(url, keys, fresh(numbers)), **peers(stack, url, keys, numbers, protocol)}
        goal = None
        if protocol == "HTTP/2" and count in GOALS:
            limit = GOALS[count]
            goal = (f"≤ {limit * 1000:.0f} ms", lambda figures: figures[OURS].median <= limit)
        named = f"{count} key{'s' if count > 1 else ''}"
        return compare(f"{protocol}, {named}, {2 * DELAY * 1000:.0f} ms", rounds, contestants, goal)


def ours(url: str, keys: list[str], cursor: dict[str, Any]) -> float:
    store = TrutoStore(url, TOKEN, rate=(1_000_000, 1.0))
    try:
        with Checkpointer(NAMESPACE, store) as cp:
            started = time.perf_counter()
            for key in keys:
                cp[key] = cursor
            commit = cp.commit()
            seconds = time.perf_counter() - started
            if len(commit.keys) != len(keys) or commit.retries:
                fail(f"not the commit that was meant: {commit}")
            return seconds
    finally:
        store.close()


def peers(stack: ExitStack, url: str, keys: list[str], numbers: itertools.count[int], protocol: str) -> dict[str, Run]:
    """Return the peers that are installed."""
    found: dict[str, Run] = {}
    base = f"{url}/sync-job-run-state"
    loop = stack.enter_context(Loop())

    def timed(look: Callable[[], Any], send: Callable[[str, dict[str, str]], Any], every: Callable[..., Any]) -> float:
        look()
        body = {"value": encoded(fresh(numbers))}
        started = time.perf_counter()
        look()
        every(lambda key: send(f"{base}/{key}", body))
        return time.perf_counter() - started

    with peer("requests"):
        import requests  # each peer may be missing

        def with_requests() -> float:
            with requests.Session() as session, ThreadPoolExecutor(CONCURRENCY) as pool:
                adapter = requests.adapters.HTTPAdapter(pool_maxsize=CONCURRENCY)
                session.mount("https://", adapter)
                session.headers.update(HEADERS)
                return timed(
                    lambda: session.get(base, params=PARAMS).raise_for_status(),
                    lambda to, body: session.patch(to, params=PARAMS, json=body).raise_for_status(),
                    lambda send: list(pool.map(send, keys)),
                )

        found[f"requests, {CONCURRENCY} threads"] = with_requests
    with peer("httpx"):
        import httpx  # as above

        async def with_httpx() -> float:
            limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
            client = httpx.AsyncClient(http2=protocol == "HTTP/2", headers=HEADERS, params=PARAMS, limits=limits)
            async with client:
                (await client.get(base)).raise_for_status()
                body = {"value": encoded(fresh(numbers))}
                started = time.perf_counter()
                (await client.get(base)).raise_for_status()
                await asyncio.gather(*(client.patch(f"{base}/{key}", json=body) for key in keys))
                return time.perf_counter() - started

        found["httpx.AsyncClient"] = lambda: loop.run(with_httpx())
    with peer("aiohttp"):
        import aiohttp  # as above

        async def with_aiohttp() -> float:
            context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
            connector = aiohttp.TCPConnector(limit=CONCURRENCY, ssl=context)
            async with aiohttp.ClientSession(headers=HEADERS, connector=connector) as session:

                async def ask(method: str, to: str, body: dict[str, str] | None = None) -> None:
                    async with session.request(method, to, params=PARAMS, json=body) as response:
                        response.raise_for_status()
                        await response.read()

                await ask("GET", base)
                body = {"value": encoded(fresh(numbers))}
                started = time.perf_counter()
                await ask("GET", base)
                await asyncio.gather(*(ask("PATCH", f"{base}/{key}", body) for key in keys))
                return time.perf_counter() - started

        found["aiohttp (HTTP/1.1)"] = lambda: loop.run(with_aiohttp())
    return found


if __name__ == "__main__":
    main(__file__, __doc__, cases, PACKAGES)
