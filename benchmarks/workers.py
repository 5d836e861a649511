"""Workers that commit to one store at once, simulated: how many commits a second, and from which number on no more.

    python benchmarks/workers.py --latency 0.05 --read 0.5      a table over stores and numbers of workers
    python benchmarks/workers.py --verify                       beside real runs of 1, 2, 4 and 8 workers
    python benchmarks/workers.py --show                         both, on the page

Two shapes. Members: each worker is a run of its own in one group, reads an account, commits it, and takes the next.
Windows: workers read, and one run commits each finished window (`commit`), or all that are finished (`commit_soon`).

A commit is what the store's protocol makes it. The vendor's API: a look and a write, at the rate of the token, which
the workers share. PostgreSQL: eight round trips, the last six under the lock of the namespace's row. A bucket: the
object is read and put on condition, again where another worker's put came first, with a pause after two. Our server:
one round trip, one commit at a time. What is not simulated: bandwidth, and the sizes of namespaces.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness import RESULTS
from table import put

from checkpoint.stores.objects import CROWDED, IN_A_ROW, PAUSE
from checkpoint.stores.rate import Rate

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeAlias

Shape: TypeAlias = Literal["members", "windows", "windows, commit_soon"]
SHAPES: tuple[Shape, ...] = ("members", "windows", "windows, commit_soon")
TRIPS = {"sqlite": 0, "postgres": 8, "s3": 2, "server": 1, "truto": 2}
"""Round trips of one commit that nobody is in the way of."""
LOCKED = {"postgres": 6, "server": 0, "sqlite": 0}
"""Of these, the trips under a lock of the whole namespace."""
FIRST, LONGEST = 0.05, PAUSE
"""Limits of the pauses of a bucket's commit."""


@dataclass(frozen=True)
class Crowd:
    """Who commits what, where."""

    store: str = "postgres"
    workers: int = 8
    read: float = 0.5
    """Seconds that the source takes for an account, or a window."""
    latency: float = 0.05
    """Seconds of a round trip to the store."""
    work: float = 0.0
    """Seconds of a commit in which no other one goes on, besides the round trips: of a disk, or a shared processor."""
    rate: tuple[int, float] = (500, 10.0)
    """Of the token of the vendor's API: requests in so many seconds, shared out among the workers."""
    shape: Shape = "members"


@dataclass
class Seen:
    """What a simulation or a run came to."""

    parts: int = 0
    """Accounts, or windows."""
    seconds: float = 0.0
    commits: int = 0
    requests: int = 0
    """Round trips to the store."""
    repeated: int = 0
    """Commits that had to begin anew because another one came first."""
    ends: list[float] = field(default_factory=list)

    @property
    def pace(self) -> float:
        """Accounts or windows a second."""
        return self.parts / self.seconds


Steps: TypeAlias = "Generator[float | Lock, None, None]"


class Lock:
    """Held by so many at once; who waits gets it in turn."""

    def __init__(self, room: int = 1) -> None:
        self.room = room
        self.waiting: deque[Steps] = deque()


class World:
    """A clock, and what happens at its moments."""

    def __init__(self, crowd: Crowd, seed: int) -> None:
        self.crowd, self.now, self.seen = crowd, 0.0, Seen()
        self.dice = random.Random(seed)
        self.row, self.processor = Lock(), Lock()
        self.version = 0
        limit, period = crowd.rate
        writers = crowd.workers if crowd.shape == "members" else 1
        self.paces = [Rate(max(1, limit // writers), period) for _ in range(writers)]
        self._due: list[tuple[float, int, Steps]] = []
        self._count = count()

    def start(self, steps: Steps) -> None:
        """Let something happen from now on."""
        heapq.heappush(self._due, (self.now, next(self._count), steps))

    def run(self, parts: int) -> Seen:
        """Let time pass until so many parts are committed."""
        while self.seen.parts < parts and self._due:
            self.now, _, steps = heapq.heappop(self._due)
            self._go_on(steps)
        self.seen.seconds = self.now
        return self.seen

    def free(self, lock: Lock) -> None:
        """Let go of a lock."""
        if lock.waiting:
            self.start(lock.waiting.popleft())
        else:
            lock.room += 1

    def _go_on(self, steps: Steps) -> None:
        for wait in steps:
            if isinstance(wait, Lock):
                if wait.room:
                    wait.room -= 1
                    continue
                wait.waiting.append(steps)
            else:
                heapq.heappush(self._due, (self.now + wait, next(self._count), steps))
            return

    # One commit

    def commit(self, worker: int) -> Steps:
        """Take the steps of one commit."""
        seen, crowd = self.seen, self.crowd
        seen.commits += 1
        yield self.processor
        yield crowd.work
        self.free(self.processor)
        if crowd.store == "truto":
            yield from self.paced(worker)
        elif crowd.store == "s3":
            yield from self.swapped()
        else:
            yield from self.locked()

    def paced(self, worker: int) -> Steps:
        """Look and write, each where the rate has room for it."""
        pace = self.paces[worker]
        for _ in range(TRIPS["truto"]):
            while wait := pace.window(self.now):
                yield wait
            slot = pace.take(self.now)
            yield self.crowd.latency
            slot.at = self.now
            self.seen.requests += 1

    def locked(self) -> Steps:
        """Write under a lock, whose last trip ends where the store is."""
        trips, held = TRIPS[self.crowd.store], LOCKED[self.crowd.store]
        yield self.crowd.latency * max(0.0, trips - held - 0.5)
        yield self.row
        yield self.crowd.latency * held
        self.free(self.row)
        yield self.crowd.latency / 2 if trips else 0.0
        self.seen.requests += trips

    def swapped(self) -> Steps:
        """Read, and put on the condition that nobody has meanwhile; after two puts in vain, look and pause."""
        half, limit = self.crowd.latency / 2, FIRST
        began, refused = self.now, 0
        while True:
            yield half
            found = self.version
            if refused == IN_A_ROW:
                self.seen.requests += 1
                yield half
                yield self.dice.uniform(0, min(limit, CROWDED * (self.now - began)))
                limit = min(2 * limit, LONGEST)
                began, refused = self.now, 0
                continue
            yield 2 * half
            self.seen.requests += TRIPS["s3"]
            if self.version == found:
                break
            self.seen.repeated += 1
            refused += 1
            yield half
        self.version += 1
        yield half


def simulate(crowd: Crowd, parts: int, seed: int = 0) -> Seen:
    """Return what so many accounts or windows take."""
    world = World(crowd, seed)
    left, finished, idle = [parts], [0], Lock(0)

    def member(worker: int) -> Steps:
        while True:
            yield crowd.read
            yield from world.commit(worker)
            world.seen.parts += 1

    def reader() -> Steps:
        while left[0]:
            left[0] -= 1
            yield crowd.read
            finished[0] += 1
            world.free(idle)

    def driver() -> Steps:
        while True:
            yield idle
            said = finished[0] if crowd.shape == "windows, commit_soon" else 1
            if said:
                finished[0] -= said
                yield from world.commit(0)
                world.seen.parts += said

    for worker in range(crowd.workers):
        world.start(member(worker) if crowd.shape == "members" else reader())
    if crowd.shape != "members":
        world.start(driver())
    return world.run(parts)


MOST = 1024
"""Workers, of which a knee is looked for."""


def knee(crowd: Crowd, most: int = MOST) -> int:
    """Return the number of workers from which on twice as many do less than a quarter more."""
    workers = 1
    while workers < most:
        some, more = (steady(replace(crowd, workers=number)) for number in (workers, 2 * workers))
        if more.pace < 1.25 * some.pace:
            return workers
        workers *= 2
    return most


def steady(crowd: Crowd) -> Seen:
    """Return what a crowd comes to once it is going."""
    return simulate(crowd, max(200, 20 * crowd.workers))


# On the command line and the page


NAMES = {"sqlite": "SQLite", "server": "our server", "s3": "S3", "postgres": "PostgreSQL", "truto": "the Truto API"}
WORK = {"sqlite": 0.002, "server": 0.002, "s3": 0.0, "postgres": 0.001, "truto": 0.0}
"""Seconds of a commit in which nobody else commits, besides the round trips: what was seen on a quiet machine."""
LATENCIES = (0.001, 0.05)
"""In one network, and from far away."""


def knees(crowd: Crowd) -> list[dict[str, Any]]:
    """Return where the knee is of each store, near and far, and what goes on there."""
    return [
        knee_there(replace(crowd, store=store, latency=latency, work=work))
        for latency in LATENCIES
        for store, work in WORK.items()
        if store != "sqlite" or latency == LATENCIES[0]  # it is where its workers are
    ]


def knee_there(crowd: Crowd) -> dict[str, Any]:
    """Return where the knee of a store is, so far away, and what goes on there."""
    bend = knee(crowd)
    there = steady(replace(crowd, workers=bend))
    return {
        "store": crowd.store,
        "latency": crowd.latency,
        "knee": bend,
        "pace": round(there.pace, 1),
        "requests": round(there.requests / there.seconds),
        "repeated": round(there.repeated / there.commits, 2),
        "windows": knee(replace(crowd, shape="windows")),
        "windows_soon": knee(replace(crowd, shape="windows, commit_soon")),
    }


def knees_shown(rows: list[dict[str, Any]]) -> str:
    """Return the knees as Markdown."""
    heads = ("store", "round trip", "members: knee", "accounts a second there", "requests a second", "puts again",
             "windows: knee", "with `commit_soon`")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'--:|' * (len(heads) - 2)}"]
    for row in rows:
        bends = [f"{row[name]:,}" if row[name] < MOST else f"over {MOST:,}" for name in
                 ("knee", "windows", "windows_soon")]  # fmt: skip
        away = "local" if row["store"] == "sqlite" else f"{row['latency'] * 1000:g} ms"
        asked = "–" if row["store"] == "sqlite" else f"{row['requests']:,}"
        again = f"{row['repeated']:.0%}" if row["store"] == "s3" else "–"
        cells = [NAMES[row["store"]], away, bends[0], f"{row['pace']:,}", asked, again, *bends[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def runs_shown(rows: list[dict[str, Any]]) -> str:
    """Return the real runs beside the simulated ones as Markdown."""
    heads = ("store", "round trip", "shape", "workers", "simulated, a second", "real", "difference", "puts again")
    lines = [f"| {' | '.join(heads)} |", f"|---|---|---|{'--:|' * (len(heads) - 3)}"]
    for row in sorted(rows, key=lambda row: ([*NAMES].index(row["store"]), row["shape"], row["workers"])):
        paces = [row[which]["parts"] / row[which]["seconds"] for which in ("simulated", "real")]
        again = f"{row['simulated']['repeated']}, {row['real']['repeated']}" if row["store"] == "s3" else "–"
        cells = [NAMES[row["store"]], f"{row['latency'] * 1000:g} ms", row["shape"], f"{row['workers']}",
                 *(f"{pace:.2f}" for pace in paces), f"{row['difference']:+.1%}", again]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


PAGE = Path(__file__).parent.parent / "docs" / "operating" / "capacity.md"
FOUND = RESULTS / "workers.json"
KNEES = ("<!-- knees: from benchmarks/results -->\n", "<!-- end of knees -->\n")
RUNS = ("<!-- runs: from benchmarks/results -->\n", "<!-- end of runs -->\n")


def show() -> None:
    """Simulate the knees anew, and put them and the runs into the page."""
    results = json.loads(FOUND.read_text("utf-8"))
    results["knees"] = knees(Crowd())
    FOUND.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    put(PAGE, *KNEES, knees_shown(results["knees"]))
    put(PAGE, *RUNS, runs_shown(results["runs"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--read", type=float, default=0.5, help="seconds of an account, or of a window")
    parser.add_argument("--latency", type=float, default=0.001, help="seconds of a round trip to the store")
    parser.add_argument("--rate", default="500/10", help="of the token of the Truto API: requests/seconds")
    parser.add_argument("--shape", choices=SHAPES, default="members")
    parser.add_argument("--stores", nargs="+", choices=[*NAMES], default=[*NAMES])
    parser.add_argument("--verify", type=Path, nargs="?", const=FOUND, help="hold it against real runs, kept in a file")
    parser.add_argument("--show", action="store_true", help="put both into docs/operating/capacity.md")
    options = parser.parse_args()
    if options.show:
        show()
        return
    if options.verify is not None:
        from workers_real import verify

        verify(options.stores, options.verify)
        return
    limit, _, period = options.rate.partition("/")
    crowd = Crowd(read=options.read, latency=options.latency, rate=(int(limit), float(period)), shape=options.shape)
    print(f"{'accounts or windows a second':<28}{''.join(f'{number:>9}' for number in options.workers)}     knee")
    for store in options.stores:
        here = replace(crowd, store=store, work=WORK[store])
        paces = [steady(replace(here, workers=number)).pace for number in options.workers]
        print(f"{NAMES[store]:<28}{''.join(f'{pace:>9.1f}' for pace in paces)}{knee(here):>9}")


if __name__ == "__main__":
    main()
