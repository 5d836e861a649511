"""What grows with the number of keys, streams, windows, ties and members: each at a size and at half of it.

Beside the time stands the CPU that this process took: what a commit waits for the disk is the difference.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

import harness
from harness import OURS, Case, case, main

from checkpoint import Checkpointer
from checkpoint.codec import encode
from checkpoint.stores.memory import MemoryStore
from checkpoint.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness import Figures

BEFORE = "version 1"
CPU = f"{OURS}, CPU"
HALF = "half as many"
START = datetime(2015, 1, 1, tzinfo=timezone.utc)
BEGIN = START.isoformat()
HOUR = timedelta(hours=1)


class Took(NamedTuple):
    """Seconds, those of the CPU among them, and bytes that a file grew by."""

    wall: float
    cpu: float
    bytes: float = 0.0

    def each(self, count: int) -> Took:
        """Return what one of so many took."""
        return Took(*(what / count for what in self))


class Watch:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._wall, self._cpu = perf_counter(), process_time()

    def took(self) -> Took:
        """Return what it took until now."""
        return Took(perf_counter() - self._wall, process_time() - self._cpu)


def unchanged(count: int) -> Took:
    """Commit after all keys were read and none changed; seconds a key."""
    store = MemoryStore()
    store.commit("bench", {f"key/{n}": encode({"updated_at": n}) for n in range(count)})
    with Checkpointer("bench", store) as cp:
        for key in cp:
            cp[key]
        watch = Watch()
        cp.commit()
        return watch.took().each(count)


def members(count: int) -> Took:
    """Open, feed and commit streams that are members of one group, one by one."""
    rows = [{"id": n, "updated_at": f"2024-05-01T10:00:{n:02}Z"} for n in range(5)]
    watch = Watch()
    with Checkpointer("bench", MemoryStore()) as cp:
        accounts = cp.group("accounts", shards=64)
        for number in range(count):
            changes = cp.incremental(
                f"account/{number}", "updated_at", group=accounts, row_order="asc", primary_key="id",
                initial_value="1970-01-01T00:00:00Z",
            )  # fmt: skip
            with changes:
                for _ in changes.pages([rows]):
                    pass
            cp.commit(changes)
    return watch.took()


def windowed(cp: Checkpointer, count: int) -> tuple[Any, list[Any]]:
    """Open a stream cut into windows."""
    stream = cp.incremental("rows", "updated_at", initial_value=BEGIN)
    return stream, list(stream.windows(HOUR, until=(START + HOUR * count).isoformat()))


def finish(window: Any) -> None:
    """Read a window without rows."""
    with window:
        for _ in window.pages([]):
            pass


def islands(count: int) -> Took:
    """Finish half of the windows, here and there; open the stream again and cut the rest."""
    store = MemoryStore()
    watch = Watch()
    with Checkpointer("bench", store) as cp:
        stream, windows = windowed(cp, count)
        for window in random.Random(1).sample(windows[1:], count // 2):
            finish(window)
        cp.commit(stream)
    with Checkpointer("bench", store) as cp:
        _, left = windowed(cp, count)
        assert len(left) == count - count // 2, len(left)
    return watch.took()


def one_by_one(count: int) -> Took:
    """Finish windows in random order, a commit after each."""
    watch = Watch()
    with Checkpointer("bench", MemoryStore()) as cp:
        stream, windows = windowed(cp, count)
        for window in random.Random(1).sample(windows, count):
            finish(window)
            cp.commit(stream)
    return watch.took()


def tie(count: int) -> Took:
    """Read rows of one instant, all of them remembered, in 30 pages with a commit each."""
    rows = [{"id": n, "updated_at": "2024-05-01T10:00:00Z"} for n in range(count)]
    size = count // 30
    logging.getLogger("checkpoint").setLevel(logging.ERROR)  # such a cursor is large, and it says so
    watch = Watch()
    with Checkpointer("bench", MemoryStore()) as cp:
        stream = cp.incremental("rows", "updated_at", row_order="asc", primary_key="id", max_seen=count)
        for _ in stream.pages(rows[index : index + size] for index in range(0, count, size)):
            cp.commit()
    return watch.took()


def one_member(count: int) -> Took:
    """Commit one member of a group in a SQLite file, after all were read; the median of ten."""
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteStore(Path(folder) / "state.db")
        with Checkpointer("bench", store) as cp:
            cp.group("accounts").update({f"account/{n}": {"updated_at": n} for n in range(count)})
        times: list[Took] = []
        with Checkpointer("bench", store) as cp:
            accounts = cp.group("accounts")
            for member in accounts:
                accounts[member]
            for number in range(10):
                accounts[f"account/{number}"] = {"updated_at": -number - 1}
                watch = Watch()
                cp.commit()
                times.append(watch.took())
        store.close()
    return sorted(times)[5]


def sized(folder: str) -> int:
    """Return the bytes of the files in a folder."""
    return sum(file.stat().st_size for file in Path(folder).iterdir())


def history(count: int) -> Took:
    """Commit one of 2,000 members of a group in a SQLite file again and again; what one commit took, bytes too."""
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteStore(Path(folder) / "state.db")
        with Checkpointer("bench", store) as cp:
            accounts = cp.group("accounts")
            accounts.update({f"account/{n}": {"updated_at": f"2024-05-01T10:00:00.{n:06}Z"} for n in range(2_000)})
            cp.commit()
            size, watch = sized(folder), Watch()
            for number in range(count):
                accounts["account/7"] = {"updated_at": f"2024-05-02T10:00:00.{number:06}Z"}
                cp.commit()
            took = watch.took()._replace(bytes=float(sized(folder) - size))
        store.close()
    return took.each(count)


GOALS: dict[str, tuple[Callable[[int], Took], int, float, bool]] = {
    "commit() after N keys were read, a key": (unchanged, 100_000, 0.25e-6, False),
    "member streams, one by one": (members, 10_000, 3.0, True),
    "windows with random islands": (islands, 3_000, 1.0, True),
    "windows committed one by one": (one_by_one, 1_000, 1.0, True),
    "rows at one instant, a commit a page": (tie, 30_000, 1.0, True),
    "one member of N committed, SQLite": (one_member, 100_000, 10e-3, False),
    "a commit of one of 2,000 members, SQLite": (history, 540, 10e-3, False),
}
"""What is run, how many of it, the seconds it may take, and whether it is to grow no faster than its number."""


def alone(name: str, count: int) -> float:
    """Measure one of them, for another process whose `checkpoint` is an older one."""
    return GOALS[name][0](count).wall


def cases(quick: bool) -> list[Case]:
    """Measure each at its size and at half of it."""
    found: list[Case] = []
    for name, (run, size, limit, linear) in GOALS.items():
        count = size // 50 if quick else size
        times: dict[str, list[float]] = {OURS: [], CPU: [], HALF: []}
        added = 0.0
        for number in range(2 if quick else 4):
            halved, whole = run(count // 2), run(count)
            if number:
                times[HALF].append(halved.wall)
                times[OURS].append(whole.wall)
                times[CPU].append(whole.cpu)
                added = whole.bytes
        if harness.settings.before is not None:
            times[BEFORE] = [harness.alone("scale", f"alone({name!r}, {count})")]

        def met(figures: Mapping[str, Figures], limit: float = limit, linear: bool = linear) -> bool:
            return figures[OURS].median <= limit and (not linear or figures[HALF].ratio >= 0.4)

        said = f"≤ {harness.spell(limit)}{', linear' if linear else ''}"
        counts = {OURS: {"bytes": round(added)}} if added else None
        found.append(case(f"{count:,} {name}" if linear else f"{name}: {count:,}", times, (said, met), counts))
        print(f"{found[-1].name}: {harness.spell(found[-1].figures[OURS].median)}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main(__file__, __doc__, cases, before=True)
