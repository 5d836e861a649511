"""What a stream costs per record, over the bare loop, beside dlt's Incremental and the Singer SDK's bookmark."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from time import perf_counter
from typing import TYPE_CHECKING, Any

from harness import OURS, Case, compare, main, peer, within

from checkpoint import Checkpointer
from checkpoint.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 1_000
FIELD = "updated_at"
NAIVE = "largest string (floor)"
GOALS = {"track": 100e-9, "filter": 80e-9, "observe": 150e-9}
"""Seconds per record, without a primary key."""
WITH_KEY = 250e-9
SINGER = 485e-9
"""What the Singer SDK took where these were set."""


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
    """Return the seconds per row that feeding took beyond looping over the rows."""
    begun = perf_counter()
    for _ in rows:
        pass
    bare = perf_counter() - begun
    begun = perf_counter()
    feed()
    return max(1e-9, (perf_counter() - begun - bare) / len(rows))


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
    from dlt.extract.incremental.transform import JsonIncremental  # a peer that may be missing

    def run() -> float:
        step = JsonIncremental("rows", FIELD, None, None, None, max, key or (), set())

        def feed() -> None:
            for row in rows:
                step(row)

        return over_the_bare_loop(rows, feed)

    return run


def singer(rows: list[dict[str, Any]]) -> Callable[[], float]:
    from singer_sdk.helpers._state import increment_state  # what its streams call per record

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
    with peer("dlt"):
        found["dlt"] = dlt(rows, key)
    with peer("singer-sdk"):
        found["singer-sdk"] = singer(rows)
    return found


def naive(rows: list[dict[str, Any]]) -> Callable[[], float]:
    """Return what a job without any of this does: keep the largest value, as text."""

    def run() -> float:
        def feed() -> None:
            largest = ""
            for row in rows:
                value = row[FIELD]
                if value > largest:  # noqa: PLR1730 - faster than max
                    largest = value

        return over_the_bare_loop(rows, feed)

    return run


def cases(quick: bool) -> list[Case]:
    """Measure without and with a primary key, per record."""
    rows = make(20_000 if quick else 1_000_000)
    rounds = 2 if quick else 5
    found: list[Case] = []
    for kind, key, order in (("", None, "asc"), (", primary key", "id", "asc"), (", unsorted", None, None)):
        others = {NAIVE: naive(rows), **peers(rows, key)}
        for how, most in GOALS.items():
            found.append(
                compare(
                    how + kind,
                    rounds,
                    {OURS: ours(rows, how, primary_key=key, row_order=order), **others},
                    within(most if key is None else WITH_KEY, "singer-sdk", SINGER),
                )
            )
    return found


if __name__ == "__main__":
    main(__file__, __doc__, cases, ["dlt", "singer-sdk"])
