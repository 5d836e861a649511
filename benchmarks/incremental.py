"""What a stream costs per record, over the bare loop, beside dlt's Incremental and the Singer SDK's bookmark."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from harness import OURS, compare, options, report

from checkpoint import Checkpointer
from checkpoint.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 1_000
FIELD = "updated_at"


def make(count: int) -> list[dict[str, Any]]:
    """Return rows a second apart, in order."""
    return [
        {
            "id": number,
            FIELD: (datetime(2024, 5, 1, tzinfo=timezone.utc) + timedelta(seconds=number))
            .isoformat()
            .replace("+00:00", "Z"),
            "name": "somebody",
        }
        for number in range(count)
    ]


def over_the_bare_loop(rows: list[dict[str, Any]], feed: Callable[[], None]) -> float:
    """Return the seconds that feeding took beyond looping over the rows."""
    begun = perf_counter()
    for _ in rows:
        pass
    bare = perf_counter() - begun
    begun = perf_counter()
    feed()
    return perf_counter() - begun - bare


def ours(rows: list[dict[str, Any]], how: str, **opened: Any) -> Callable[[], float]:
    pages = [rows[index : index + PAGE] for index in range(0, len(rows), PAGE)]

    def run() -> float:
        with Checkpointer("bench", MemoryStore()) as cp:
            stream = cp.incremental("rows", FIELD, **opened)

            def track() -> None:
                for _ in stream.track(rows):
                    pass

            def filter_() -> None:
                for page in pages:
                    stream.filter(page)

            def observe() -> None:
                for row in rows:
                    stream.observe(row)

            return over_the_bare_loop(rows, {"track": track, "filter": filter_, "observe": observe}[how])

    return run


def dlt(rows: list[dict[str, Any]], key: str | None) -> Callable[[], float]:
    from dlt.extract.incremental.transform import JsonIncremental  # noqa: PLC0415 - a peer that may be missing

    def run() -> float:
        step = JsonIncremental("rows", FIELD, None, None, None, max, key or (), set())

        def feed() -> None:
            for row in rows:
                step(row)

        return over_the_bare_loop(rows, feed)

    return run


def singer(rows: list[dict[str, Any]]) -> Callable[[], float]:
    from singer_sdk.helpers._state import increment_state  # noqa: PLC0415 - what its streams call per record

    def run() -> float:
        state: dict[str, Any] = {}

        def feed() -> None:
            for row in rows:
                increment_state(state, latest_record=row, replication_key=FIELD, is_sorted=True, check_sorted=True)

        return over_the_bare_loop(rows, feed)

    return run


def peers(rows: list[dict[str, Any]], key: str | None) -> dict[str, Callable[[], float]]:
    """Return the peers that are installed."""
    found: dict[str, Callable[[], float]] = {}
    for name, peer in {"dlt": lambda: dlt(rows, key), "singer-sdk": lambda: singer(rows)}.items():
        try:
            found[name] = peer()
        except ImportError as missing:  # noqa: PERF203 - each peer may be missing
            print(f"without {name}: {missing}")
    return found


def main() -> None:
    quick = options(__doc__ or "").quick
    count, rounds = (20_000, 2) if quick else (1_000_000, 7)
    rows = make(count)
    cases = []
    kinds = {
        "": (None, "asc"),
        ", primary key": ("id", "asc"),
        ", unsorted": (None, None),
        ", unsorted, key": ("id", None),
    }
    for kind, (key, order) in kinds.items():
        others = peers(rows, key)
        for how in ("track", "filter", "observe"):
            mine = ours(rows, how, primary_key=key, row_order=order)
            cases.append(compare(how + kind, rounds, {OURS: mine, **others}, lambda mine, peer: peer / mine))
    report("incremental", "times ours", cases, ["checkpoint-store", "dlt", "singer-sdk"], write=not quick)
    print(f"\nnanoseconds per record, over the bare loop, of {count:,} records")
    for case in cases:
        for contestant, figures in case.figures.items():
            print(
                f"{case.name:<26}{contestant:<22}"
                f"{figures.median / count * 1e9:>10.0f}{figures.min / count * 1e9:>10.0f}"
            )


if __name__ == "__main__":
    main()
