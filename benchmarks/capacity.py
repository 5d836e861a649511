"""What a run would cost, simulated with the library's own planner and without a network.

    python benchmarks/capacity.py --streams 20 --partitions 500 --interval 60 --latency 0.05 --rate 500/10

prints, for plain keys, one group a stream and a sharded group a stream: requests per hour, seconds per commit, the
share of the rate limit used, and the bytes sent and received. `--plot FILE` draws 10 to 10 000 000 partitions instead;
`--verify` holds the simulation against real runs on a loopback server.

Every partition changes between two commits, unless `--changed` says how many of a stream's do. Entries exist already:
a first commit creates them, and writes the last entry of a sharded group after the others. What is not simulated:
bandwidth, other users of the token, and retries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from plots import Line, lines
from served import NAMESPACE, TOKEN, server

from checkpoint import Checkpointer, codec
from checkpoint.run import forms
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.rate import Rate, simulate
from checkpoint.stores.truto import CONCURRENCY, ENTRIES_PER_GET, TrutoStore

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS = 0
"""Instead of a number of shards: every partition has a key of its own."""
HOUR = 3600.0
AT_ONCE = 20_000
"""Requests of one commit that are simulated: the pace repeats itself, and what is beyond goes on at the same."""
TOO_LARGE = 16 * 2**20
"""Bytes of an entry that a service is not to be given."""
ANSWER = 200
"""Bytes of an entry's other fields in an answer."""


@dataclass(frozen=True)
class Job:
    """What is to be kept, how often, and over what line."""

    streams: int = 1
    partitions: int = 1
    """Of each stream."""
    changed: int | None = None
    """Partitions of a stream that change between two commits; None: all."""
    interval: float = 60.0
    """Seconds from the start of a commit to the next; where one takes longer, the next follows at once."""
    latency: float = 0.05
    """Seconds of a request."""
    rate: tuple[int, float] = (500, 10.0)
    """Requests in any so many seconds."""
    concurrency: int = CONCURRENCY
    """Requests at once."""
    work: float = 0.0
    """Seconds of the job's processor that a request takes, one request at a time."""


@dataclass(frozen=True)
class Cost:
    """What a job comes to."""

    entries: int
    """In the namespace."""
    requests: int
    """Of one commit."""
    seconds: float
    """That one commit takes, the first one of an idle token."""
    requests_per_hour: float
    rate_used: float
    """Of the rate limit, 0 to 1."""
    sent: float
    """Bytes of one commit's writes."""
    received: float
    """Bytes of the look before them."""


def cost(job: Job, shards: int) -> Cost:
    """Return what a job costs with a group of so many shards a stream; `KEYS`: with plain keys."""
    entries = job.streams * entries_of_stream(job, shards)
    written = job.streams * touched(job, shards)
    looks = written if looks_one_by_one(written, entries) else 1
    pace = Rate(*job.rate)
    seconds = commit(job, pace, looks, written)
    per_hour = commits_per_hour(job, pace, seconds, looks, written) * (looks + written)
    size = entry_size(job, shards)
    return Cost(
        entries,
        looks + written,
        seconds,
        per_hour,
        per_hour / (job.rate[0] / job.rate[1] * HOUR),
        written * size,
        (written if looks > 1 or written == 1 else entries) * (size + ANSWER),
    )


def entries_of_stream(job: Job, shards: int) -> int:
    return job.partitions if shards == KEYS else shards + 1  # and the head


def touched(job: Job, shards: int) -> int:
    """Return the entries of a stream that a commit changes."""
    changed = job.partitions if job.changed is None else min(job.changed, job.partitions)
    if shards == KEYS:
        return changed
    some = min(changed, 100 * shards)  # of so many members hardly a shard is without one
    return len({forms.index_of(member(number), shards) for number in range(some)})


def looks_one_by_one(written: int, entries: int) -> bool:
    """Tell whether a commit looks at each key it changes, and not at a list, as `TrutoStore` does."""
    return written <= 1 + entries // ENTRIES_PER_GET


def commit(job: Job, pace: Rate, looks: int, writes: int, start: float = 0.0) -> float:
    """Return the seconds from the start of a commit to its last answer; the pace counts its requests."""
    looked = answered(job, pace, looks, start)
    return answered(job, pace, writes, looked) - start


def answered(job: Job, pace: Rate, requests: int, start: float) -> float:
    """Return when the last of so many requests is answered."""
    some = min(requests, AT_ONCE)
    trips = simulate(pace, some, concurrency=job.concurrency, latency=job.latency, start=start, work=job.work)
    last = trips[-1].answered
    if requests > some:
        half = trips[some // 2 - 1].answered
        last += (requests - some) * (last - half) / (some - some // 2)
    return last


def commits_per_hour(job: Job, pace: Rate, first: float, looks: int, writes: int) -> float:
    """Return how many commits end in an hour; a commit of an hour and more counts as a part."""
    if first >= HOUR / 10:
        return HOUR / max(first, job.interval)
    count, start, seconds = 1, max(first, job.interval), first
    while start < HOUR and count < 1000:
        seconds = commit(job, pace, looks, writes, start)
        start += max(seconds, job.interval)
        count += 1
    return count * HOUR / start


def entry_size(job: Job, shards: int) -> float:
    """Return the bytes of a write's body."""
    members = 1 if shards == KEYS else max(1.0, job.partitions / shards)
    some = {member(number): cursor(number) for number in range(min(1_000, round(members)))}
    value = codec.encode(cursor(0) if shards == KEYS else some)
    return len(orjson.dumps({"value": value})) * (1.0 if shards == KEYS else members / len(some))


def member(number: int) -> str:
    return f"account_{number:08}"


def cursor(number: int) -> dict[str, Any]:
    return {"id": number, "updated_at": "2024-05-01T10:00:00Z"}


# Against a real run


def measure(job: Job, shards: int, rounds: int = 1) -> tuple[int, list[float]]:
    """Return the requests of one commit, and its seconds in each round, on a server that keeps the latency.

    The server enforces the rate: a request too many fails the run.
    """
    prepared = MemoryStore()
    with Checkpointer(NAMESPACE, KeyByKey(prepared)) as cp:  # the entries exist already, as the API would hold them
        change(cp, job, shards, job.partitions, 0)
    entries = {key: entry.value for key, entry in prepared.load(NAMESPACE).items()}
    with server(job.latency, entries, job.rate) as url:
        store = TrutoStore(url, TOKEN, rate=job.rate, concurrency=job.concurrency)
        seconds: list[float] = []
        with Checkpointer(NAMESPACE, store) as cp:
            for number in range(1, rounds + 1):
                change(cp, job, shards, job.partitions if job.changed is None else job.changed, number)
                time.sleep(job.rate[1] + 0.1)  # the token is idle, as in the simulation
                started = time.perf_counter()
                commit = cp.commit()
                seconds.append(time.perf_counter() - started)
                if commit.retries:
                    raise SystemExit("capacity: the server refused a request")
        store.close()
    return commit.requests, seconds


class KeyByKey:
    """A store that does not say that it is atomic, so that groups are packed as over the API."""

    def __init__(self, store: MemoryStore) -> None:
        self.load, self.commit, self.close = store.load, store.commit, store.close


def change(cp: Checkpointer, job: Job, shards: int, partitions: int, number: int) -> None:
    """Set the cursors of so many partitions of each stream."""
    for stream in range(job.streams):
        group = None if shards == KEYS else cp.group(f"stream_{stream}", shards=shards)
        for partition in range(partitions):
            if group is None:
                cp[f"stream_{stream}.{member(partition)}"] = cursor(number)
            else:
                group[member(partition)] = cursor(number)


CHECKED = {
    "100 keys, 50 ms": (Job(partitions=100, rate=(500, 2.0)), KEYS),
    "100 keys, 200 ms": (Job(partitions=100, latency=0.2, rate=(500, 2.0)), KEYS),
    "10 changed of 20 000 keys": (Job(partitions=20_000, changed=10, latency=0.5, rate=(10_000, 2.0)), KEYS),
    "600 keys, rate 200 per 2 s": (Job(partitions=600, rate=(200, 2.0)), KEYS),
    "10 000 partitions, one group": (Job(partitions=10_000, latency=1.0, rate=(500, 2.0)), 1),
    "10 000 partitions, 64 shards": (Job(partitions=10_000, latency=1.0, rate=(500, 2.0)), 64),
    "5 streams, 16 shards each": (Job(streams=5, partitions=500, latency=0.2, rate=(500, 2.0)), 16),
}
WITHIN = 0.15
WORK = 0.0005
"""Seconds of a processor that a request takes, about: an HTTP client's in Python."""


def verify(rounds: int) -> list[dict[str, Any]]:
    """Hold the simulation, with the work of a request that a run without latency shows, against real runs."""
    rows: list[dict[str, Any]] = []
    requests, seconds = measure(Job(partitions=100, latency=0.0, rate=(500, 0.5)), KEYS, 2 * rounds + 1)
    work = statistics.median(seconds) / requests  # of this machine
    print(f"{'100 keys, no latency':<32}{work * 1e3:.2f} ms of work a request")
    for name, (job, shards) in CHECKED.items():
        said = cost(replace(job, work=work), shards)
        requests, seconds = measure(job, shards, rounds)
        real = statistics.median(seconds)
        rows.append(
            {
                "name": name,
                "simulated": {"requests": said.requests, "seconds": said.seconds},
                "real": {"requests": requests, "seconds": real},
                "difference": real / said.seconds - 1,
                "within": requests == said.requests and abs(real / said.seconds - 1) <= WITHIN,
            }
        )
        print(
            f"{name:<32}simulated {said.requests:>6} requests {said.seconds:>8.3f} s   "
            f"real {requests:>6} requests {real:>8.3f} s   {real / said.seconds - 1:>+7.1%}"
        )
    return rows


# Pictures and the command line


def plot(job: Job, shards: int, path: Path) -> None:
    """Draw the seconds of a commit over 10 to 10 000 000 partitions; a line ends where its entries are too large."""
    sizes = [10**power * step for power in range(1, 7) for step in (1, 3)] + [10**7]
    jobs = [replace(job, partitions=size) for size in sizes]
    layouts = {"a key each": KEYS, "one group": 1, f"a group of {shards} shards": shards}
    drawn: Sequence[Line] = [
        Line(
            name,
            [
                (sized.partitions, cost(sized, layout).seconds)
                for sized in jobs
                if entry_size(sized, layout) <= TOO_LARGE
            ],
        )
        for name, layout in layouts.items()
    ]
    said = f"{job.latency * 1000:g} ms, {job.rate[0]} requests per {job.rate[1]:g} s, all partitions changed"
    path.write_text(lines(f"Seconds per commit, simulated ({said})", "partitions", "seconds", drawn))


def table(job: Job, shards: int) -> str:
    heads = "".join(
        f"{head:>12}" for head in ("entries", "requests", "s/commit", "requests/h", "of rate", "MB sent", "MB read")
    )
    rows = [f"{'':<22}{heads}"]
    for name, layout in {"a key each": KEYS, "one group": 1, f"{shards} shards": shards}.items():
        found = cost(job, layout)
        rows.append(
            f"{name:<22}{found.entries:>12,}{found.requests:>12,}{found.seconds:>12,.3f}{found.requests_per_hour:>12,.0f}"
            f"{found.rate_used:>12.1%}{found.sent / 1e6:>12.3f}{found.received / 1e6:>12.3f}"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--partitions", type=int, default=10_000, help="of each stream")
    parser.add_argument("--changed", type=int, help="of each stream's, between two commits; all by default")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds from a commit to the next")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds of a request")
    parser.add_argument("--rate", default="500/10", help="requests/seconds")
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, help="requests at once")
    parser.add_argument("--work", type=float, default=WORK, help="seconds of the job's processor for a request")
    parser.add_argument("--shards", type=int, default=64, help="of a sharded group")
    parser.add_argument("--plot", type=Path, help="SVG file to draw")
    parser.add_argument("--verify", type=Path, nargs="?", const=Path("-"), help="JSON file for what was compared")
    parser.add_argument("--rounds", type=int, default=3, help="of each real run")
    options = parser.parse_args()
    limit, _, period = options.rate.partition("/")
    job = Job(
        options.streams,
        options.partitions,
        options.changed,
        options.interval,
        options.latency,
        (int(limit), float(period or 1)),
        options.concurrency,
        options.work,
    )
    if options.verify is not None:
        rows = verify(options.rounds)
        if options.verify != Path("-"):
            options.verify.write_text(json.dumps({"within": WITHIN, "runs": rows}, indent=2) + "\n")
        if not all(row["within"] for row in rows):
            raise SystemExit(f"not within {WITHIN:.0%}")
    elif options.plot is not None:
        plot(job, options.shards, options.plot)
    else:
        print(table(job, options.shards))


if __name__ == "__main__":
    main()
