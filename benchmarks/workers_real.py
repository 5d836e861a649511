"""Real runs beside `workers.py`: processes that commit to real stores behind a line with latency.

python benchmarks/workers_real.py member STORE NAME READ PARTS RATE    one worker, told to go by a line of its input
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness import fail
from places import Place, bucket, place, reached
from served import TOKEN, server
from workers import NAMES, SHAPES, Crowd, Seen, simulate

from checkpoint import Checkpointer
from checkpoint.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

HERE = Path(__file__).parent
NAMESPACE = "crowd"
WITHIN = 0.25
WORKERS = (1, 2, 4, 8)
CHECKED = {
    "postgres": Crowd("postgres", read=1.0, latency=0.08),
    "s3": Crowd("s3", read=1.0, latency=0.2),
    "server": Crowd("server", read=2.0, latency=0.5),
    "truto": Crowd("truto", read=0.4, latency=0.2, rate=(40, 4.0)),
}
"""What is waited for is long beside what a busy machine adds."""
SECONDS = 12.0
"""About so long a run is to take."""


@contextmanager
def line(latency: float, there: str, here: str, trips: Callable[[int], object]) -> Generator[str]:
    """Put a line with latency before a server; yield the address to use, and tell the round trips at the end."""
    command = [sys.executable, str(HERE / "line.py"), str(latency), there, here]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            said, _ = process.communicate()  # ends its input
            trips(int(said))


@contextmanager
def far(crowd: Crowd, folder: Path, trips: Callable[[int], object] = lambda _: None) -> Generator[Place]:
    """Run a store that is so far away; at the end tell how many round trips there were."""
    with ExitStack() as stack:
        if crowd.store == "truto":
            url = stack.enter_context(server(crowd.latency, {}, crowd.rate))
            yield Place(url, {"TRUTO_API_TOKEN": TOKEN})
            return
        near = stack.enter_context(place(crowd.store, folder))
        if crowd.store == "postgres":
            home = near.url.rpartition("host=")[2]
            stack.enter_context(line(crowd.latency, f"{home}/.s.PGSQL.5432", f"{folder}/.s.PGSQL.5432", trips))
            yield Place(near.url.replace(home, str(folder)), {})
        elif crowd.store == "s3":
            there = urlsplit(near.environment["AWS_ENDPOINT_URL"]).netloc
            port = stack.enter_context(line(crowd.latency, there, "127.0.0.1:0", trips))
            yield bucket(f"http://127.0.0.1:{port}")
        else:
            parts = urlsplit(near.url)
            port = stack.enter_context(line(crowd.latency, parts.netloc, "127.0.0.1:0", trips))
            yield Place(f"{parts.scheme}://127.0.0.1:{port}", near.environment)


def run(crowd: Crowd, parts: int) -> Seen:
    """Run workers over a real store until so many accounts or windows are committed."""
    with (
        tempfile.TemporaryDirectory(prefix="crowd-", dir="/tmp") as name,
        far(crowd, Path(name)) as made,
        reached(made),
    ):
        return members(crowd, made, parts) if crowd.shape == "members" else windows(crowd, made, parts)


def members(crowd: Crowd, made: Place, parts: int) -> Seen:
    """Let each worker commit its part of the accounts, in a process of its own."""
    each = parts // crowd.workers
    limit, period = crowd.rate
    rate = f"{max(1, limit // crowd.workers)}/{period:g}"
    with ExitStack() as stack:
        jobs: list[subprocess.Popen[str]] = []
        for number in range(crowd.workers):
            command = [sys.executable, __file__, "member", made.url, f"run-{number}", str(crowd.read), str(each), rate]
            job = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            jobs.append(job)
        for job in jobs:
            told(job)
        time.sleep(crowd.rate[1] if crowd.store == "truto" else 0)  # the token is idle, as in the simulation
        started = time.monotonic()
        for job in jobs:
            tell(job)
        found = [json.loads(told(job)) for job in jobs]
        seconds = max(one["ended"] for one in found) - started
    requests, retries = (sum(one[name] for one in found) for name in ("requests", "retries"))
    return Seen(each * crowd.workers, seconds, each * crowd.workers, requests, retries)


def told(job: subprocess.Popen[str]) -> str:
    assert job.stdout is not None
    return job.stdout.readline() or fail("a worker ended")


def tell(job: subprocess.Popen[str]) -> None:
    assert job.stdin is not None
    job.stdin.write("go\n")
    job.stdin.flush()


def member(url: str, name: str, read: str, parts: str, rate: str) -> None:
    """Commit accounts of this worker's own, once told to."""
    store = open_store(f"{url}?rate={rate}" if url.startswith("http") else url)
    requests = retries = 0
    with Checkpointer(NAMESPACE, store, record_run=False) as cp:
        keys = cp if url.startswith("http") else cp.group("accounts")  # packed members of several runs would conflict
        keys[name] = {"at": 0}
        cp.commit()
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(int(parts)):
            time.sleep(float(read))
            keys[name] = {"at": number + 1}
            commit = cp.commit()
            requests += commit.requests
            retries += commit.retries
        print(json.dumps({"ended": time.monotonic(), "requests": requests, "retries": retries}), flush=True)
    store.close()


def windows(crowd: Crowd, made: Place, parts: int) -> Seen:
    """Read windows in threads, and commit them in this run."""
    limit, period = crowd.rate
    url = f"{made.url}?rate={limit}/{period:g}" if crowd.store == "truto" else made.url
    with Checkpointer(NAMESPACE, url, record_run=False) as cp, ThreadPoolExecutor(crowd.workers) as pool:
        stream = cp.incremental("s", "at", initial_value=0)
        stream_windows = list(stream.windows(1, until=parts))
        cp["other"] = {"at": 0}
        cp.commit("other")
        time.sleep(period if crowd.store == "truto" else 0)
        seen, started = Seen(parts), time.monotonic()
        jobs = {pool.submit(time.sleep, crowd.read): window for window in stream_windows}
        for job in as_completed(jobs):
            jobs.pop(job).finish()
            if crowd.shape == "windows":
                commit = cp.commit(stream)
                seen.commits += 1
                seen.requests += commit.requests
            else:
                cp.commit_soon(stream)
        cp.flush()
        seen.seconds = time.monotonic() - started
    return seen


def verify(stores: Sequence[str], path: Path) -> None:
    """Hold the simulation against runs of 1, 2, 4 and 8 workers."""
    kept: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    rows: list[dict[str, Any]] = kept.get("runs", [])
    for store in stores:
        if store not in CHECKED:
            continue
        for shape in SHAPES[:2]:
            crowd = replace(CHECKED[store], shape=shape)
            work = max(0.0, 1 / run(replace(crowd, workers=1, latency=0.0, read=0.0), 20).pace)
            for workers in WORKERS:
                rows = [row for row in rows if (row["store"], row["shape"], row["workers"]) != (store, shape, workers)]
                rows.append(beside(replace(crowd, workers=workers, work=work)))
                path.write_text(json.dumps({**kept, "within": WITHIN, "runs": rows}, indent=2) + "\n", "utf-8")
    if not all(row["within"] for row in rows):
        sys.exit(f"not within {WITHIN:.0%}")


def beside(crowd: Crowd) -> dict[str, Any]:
    """Simulate a crowd, and run it."""
    parts = crowd.workers * max(2, round(SECONDS * simulate(crowd, 50 * crowd.workers).pace / crowd.workers))
    said, real = simulate(crowd, parts), run(crowd, parts)
    off = real.pace / said.pace - 1
    print(
        f"{NAMES[crowd.store]:<18}{crowd.shape:<10}{crowd.workers:>3} workers   simulated {said.pace:>6.2f} a second   "
        f"real {real.pace:>6.2f} a second   {off:>+7.1%}",
        flush=True,
    )
    return {
        "store": crowd.store, "shape": crowd.shape, "workers": crowd.workers, "parts": parts, "read": crowd.read,
        "latency": crowd.latency, "work": crowd.work, "simulated": asdict(replace(said, ends=[])),
        "real": asdict(replace(real, ends=[])), "difference": off, "within": abs(off) <= WITHIN,
    }  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("TRUTO_API_TOKEN", TOKEN)
    {"member": member}[sys.argv[1]](*sys.argv[2:])
