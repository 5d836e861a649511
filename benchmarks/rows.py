"""What a stream costs per row, over the bare loop, in processor time: every kind of row and value, fed in every way."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from time import process_time
from typing import TYPE_CHECKING, Any

import harness
from harness import OURS, Case, case, fail, main, peer, spell

from checkpoint import Checkpointer
from checkpoint.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from harness import Figures

PAGE = 1_000
FIELD = "updated_at"
LOOP = "hand-written loop"
BEFORE = "version 1"
HEADLINES = ("plain", "mixed offsets", "primary key", "unsorted")
"""The shapes that the project's README shows."""
PEERS = (LOOP, "dlt", "singer-sdk")
SINGER = 510e-9
"""What the Singer SDK took on the machine on which the goals were set."""
LIMITS = {"pages": 300e-9, "filter": 300e-9, "track": 450e-9, "observe": 450e-9}
REMEMBERING = 650e-9
"""With a primary key or a lookback."""
AWAITED = 650e-9
"""Of `async for` over `track`, over the bare `async for`."""
CALLED = 1_000e-9
"""Beside the time of `CursorFormat`'s own functions."""
START = datetime(1980, 5, 1, tzinfo=timezone.utc)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
ZONES = [timezone(timedelta(hours=hours)) for hours in (2, 0, -5, 9)]


@dataclass
class Attributes:
    """A row with attributes."""

    id: int
    updated_at: str
    name: str


def at(number: int) -> datetime:
    return START + timedelta(seconds=number)


def zulu(number: int) -> str:
    return at(number).isoformat().replace("+00:00", "Z")


def digits(number: int) -> str:
    """Spell an instant with none, three or six digits of a fraction."""
    return zulu(number)[:-1] + ("", ".500", ".123456")[number % 3] + "Z"


def lsn(number: int) -> str:
    return f"{number >> 16:X}/{number << 16 & 0xFFFFFFFF:X}"


def read_lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def write_lsn(number: int) -> str:
    return f"{number >> 32:X}/{number & 0xFFFFFFFF:X}"


def own_format() -> Any:
    from checkpoint import CursorFormat

    return CursorFormat(read_lsn, write_lsn)


def same(value: Any) -> Any:
    return value


def iso(text: str) -> datetime:
    """Read a time as a careful loop would (Python 3.10 does not read `Z`)."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@dataclass(frozen=True)
class Shape:
    """One way in which a stream is opened and fed."""

    name: str
    value: Callable[[int], Any] = zulu
    options: dict[str, Any] = field(default_factory=dict)
    by_hand: Callable[[Any], Any] = same
    """How a careful loop makes values of this kind comparable."""
    cursor: Any = FIELD
    row: Callable[[int, Any], Any] = lambda number, value: {"id": number, FIELD: value, "name": "somebody"}
    read: Callable[[Any], Any] = lambda row: row[FIELD]
    generator: bool = False
    backwards: bool = False
    hows: tuple[str, ...] = tuple(LIMITS)
    own: Callable[[Any], Any] | None = None
    """What the job brings and is not ours: its time is taken off."""
    older: bool = True
    """Whether version 1 has it, too."""

    def opened(self) -> dict[str, Any]:
        """Return the arguments after the cursor field."""
        return {name: given() if callable(given) else given for name, given in self.options.items()}

    def make(self, count: int) -> list[Any]:
        """Return so many rows."""
        rows = [self.row(number, self.value(number)) for number in range(count)]
        return rows[::-1] if self.backwards else rows

    def limit(self, how: str) -> float:
        """Return the seconds that a row may take."""
        if self.own is not None:
            return CALLED
        if self.name == "async" and how == "track":
            return AWAITED
        return REMEMBERING if {"primary_key", "lookback"} & set(self.options) else LIMITS[how]


def epoch(scale: int) -> Callable[[int], int]:
    return lambda number: (at(number) - EPOCH) // timedelta(seconds=1) * scale


ASC = {"row_order": "asc"}
SHAPES = [
    Shape("plain", options=ASC),
    Shape("generator", options=ASC, generator=True),
    Shape("open range", options={**ASC, "range_start": "open"}),
    Shape("mixed fraction digits", digits, ASC, iso),
    Shape("one offset", lambda number: at(number).astimezone(ZONES[0]).isoformat(), ASC, iso),
    Shape("mixed offsets", lambda number: at(number).astimezone(ZONES[number % 4]).isoformat(), ASC, iso),
    Shape("a row each two hours", lambda number: zulu(number * 7_200 + number % 3_600), ASC, iso),
    Shape("the same, one offset", lambda number: at(number * 7_200).astimezone(ZONES[0]).isoformat(), ASC, iso),
    Shape("microseconds, all different", lambda number: f"{zulu(number)[:-1]}.{number * 7_919 % 10**6:06}Z", ASC, iso),
    Shape("nanoseconds", lambda number: f"{zulu(number)[:-1]}.{number * 7_919 % 10**9 + 1:09}Z", ASC,
          lambda text: (datetime.fromisoformat(text[:26]), text[26:])),
    Shape("as PostgreSQL writes it", lambda number: str(at(number)), ASC, iso),
    Shape("minutes", lambda number: f"{at(number * 60):%Y-%m-%dT%H:%MZ}", ASC, iso),
    Shape("naive text, time zone", lambda number: zulu(number)[:-1], {**ASC, "timezone": "Europe/Berlin"}, iso),
    Shape("aware datetimes", at, ASC),
    Shape("naive datetimes", lambda number: at(number).replace(tzinfo=None), ASC),
    Shape("dates", lambda number: date(2000, 1, 1) + timedelta(days=number // 100), ASC),
    Shape("integers", same, ASC),
    Shape("decimals", Decimal, ASC),
    Shape("epoch_s", epoch(1), {**ASC, "cursor_format": "epoch_s"}, older=False),
    Shape("epoch_s, text with fraction", lambda n: f"{epoch(1)(n)}.{n % 1000:06}", {**ASC, "cursor_format": "epoch_s"},
          float, older=False),
    Shape("epoch_ms, text", lambda n: str(epoch(1_000)(n)), {**ASC, "cursor_format": "epoch_ms"}, int, older=False),
    Shape("epoch_us", epoch(1_000_000), {**ASC, "cursor_format": "epoch_us"}, older=False),
    Shape("epoch_ns", epoch(1_000_000_000), {**ASC, "cursor_format": "epoch_ns"}, older=False),
    Shape("number, text", str, {**ASC, "cursor_format": "number"}, int, older=False),
    Shape("text", lambda n: f"01HWT3V7M{n:017}", {**ASC, "cursor_format": "text"}, older=False),
    Shape("pattern", lambda n: at(n).strftime("%m/%d/%Y %H:%M:%S"),
          {**ASC, "cursor_format": "%m/%d/%Y %H:%M:%S", "timezone": "UTC"},
          lambda text: datetime.strptime(text, "%m/%d/%Y %H:%M:%S"), older=False),  # noqa: DTZ007 - the source's clock
    Shape("CursorFormat (LSN)", lsn, {**ASC, "cursor_format": own_format}, read_lsn, own=read_lsn, older=False),
    Shape("dotted path", options=ASC, cursor=f"data.{FIELD}", row=lambda n, value: {"id": n, "data": {FIELD: value}},
          read=lambda row: row["data"][FIELD]),
    Shape("callable", options=ASC, cursor=lambda row: row[FIELD]),
    Shape("attributes", options=ASC, row=lambda n, value: Attributes(n, value, "somebody"),
          read=lambda row: row.updated_at, older=False),
    Shape("unsorted"),
    Shape("newest first", options={"row_order": "desc"}, backwards=True),
    Shape("primary key", options={**ASC, "primary_key": "id"}),
    Shape("primary key, unsorted", options={"primary_key": "id"}),
    Shape("lookback", options={**ASC, "primary_key": "id", "lookback": lambda: timedelta(minutes=10)}),
    Shape("async", options=ASC, hows=("pages", "track")),
]  # fmt: skip


def feeder(shape: Shape, how: str, stream: Any, rows: list[Any]) -> Callable[[], None]:
    """Return what feeds a stream once."""
    pages = [rows[index : index + PAGE] for index in range(0, len(rows), PAGE)]

    def some() -> Iterable[Any]:
        return (row for row in rows) if shape.generator else rows

    def batches() -> Iterator[Any]:
        return ((row for row in page) if shape.generator else page for page in pages)

    def track() -> None:
        for _ in stream.track(some()):
            pass

    def read() -> None:
        for _ in stream.pages(batches()):
            pass

    def filter_() -> None:
        for page in batches():
            stream.filter(page)

    def observe() -> None:
        for row in some():
            stream.observe(row)

    return {"pages": read, "filter": filter_, "track": track, "observe": observe}[how]


def ours(shape: Shape, how: str, rows: list[Any]) -> float:
    """Return seconds per row over the bare loop."""
    begun = process_time()
    for _ in (row for row in rows) if shape.generator else rows:
        pass
    bare = process_time() - begun
    if shape.own is not None:
        begun = process_time()
        for _ in map(shape.own, map(shape.read, rows)):
            pass
        bare = process_time() - begun
    with Checkpointer("bench", MemoryStore()) as cp:
        stream = cp.incremental("rows", shape.cursor, **shape.opened())
        if shape.name == "async":
            return asyncio.run(ours_async(how, stream, rows))
        feed = feeder(shape, how, stream, rows)
        begun = process_time()
        feed()
        took = process_time() - begun
        stream.unfinished()
        if stream.stats.delivered != len(rows):
            fail(f"{shape.name}, {how}: {stream.stats}")
    return max(1e-9, (took - bare) / len(rows))


async def ours_async(how: str, stream: Any, rows: list[Any]) -> float:
    async def some() -> AsyncIterator[Any]:
        for row in rows:
            yield row

    async def batches() -> AsyncIterator[Any]:
        for index in range(0, len(rows), PAGE):
            yield rows[index : index + PAGE]

    begun = process_time()
    async for _ in some() if how == "track" else batches():
        pass
    bare = process_time() - begun
    begun = process_time()
    async for _ in stream.track(some()) if how == "track" else stream.pages(batches()):
        pass
    took = process_time() - begun
    stream.unfinished()
    return max(1e-9, (took - bare) / len(rows))


def timed(rows: list[Any], feed: Callable[[], Any]) -> float:
    """Return what feeding takes a row over the bare loop."""
    begun = process_time()
    for _ in rows:
        pass
    bare = process_time() - begun
    begun = process_time()
    feed()
    return max(1e-9, (process_time() - begun - bare) / len(rows))


def by_hand(shape: Shape, rows: list[Any]) -> float:
    """Do what a job without any library does: keep the largest value, made comparable with care."""
    read, comparable = shape.read, shape.by_hand

    def feed() -> None:
        largest = None
        for row in rows:
            key = comparable(read(row))
            if largest is None or key > largest:
                largest = key

    return timed(rows, feed)


def dlt(shape: Shape, rows: list[Any]) -> float:
    from dlt.extract.incremental.transform import JsonIncremental

    biggest = min if shape.backwards else max
    key = shape.options.get("primary_key", ())
    step = JsonIncremental("rows", shape.cursor, None, None, None, biggest, key, set())

    def feed() -> None:
        for row in rows:
            step(row)

    return timed(rows, feed)


def singer(shape: Shape, rows: list[Any]) -> float:
    from singer_sdk.helpers._state import increment_state

    logging.getLogger("singer_sdk").setLevel(logging.ERROR)

    state: dict[str, Any] = {}
    in_order = shape.options.get("row_order") == "asc"

    def feed() -> None:
        for row in rows:
            increment_state(state, latest_record=row, replication_key=FIELD, is_sorted=in_order, check_sorted=in_order)

    return timed(rows, feed)


def contestants(shape: Shape, rows: list[Any]) -> dict[str, Callable[[], float]]:
    """Return the peers that can do it."""
    found: dict[str, Callable[[], float]] = {LOOP: partial(by_hand, shape, rows)}
    for name, run, able in (
        ("dlt", dlt, isinstance(shape.cursor, str)),
        ("singer-sdk", singer, shape.cursor == FIELD),
    ):
        with peer(name):
            if able and isinstance(rows[0], dict) and takes(run, shape, rows):
                found[name] = partial(run, shape, rows)
    return found


def takes(run: Callable[[Shape, list[Any]], float], shape: Shape, rows: list[Any]) -> bool:
    """Tell whether a peer takes such values."""
    try:
        run(shape, rows)
    except ImportError:
        raise
    except Exception:  # noqa: BLE001 - each peer has its own
        return False
    return True


def goal(shape: Shape, how: str) -> tuple[str, Callable[[Any], bool]]:
    """Return the limit, also as a part of the Singer SDK's time; and that no library is faster."""
    limit = shape.limit(how)

    def met(figures: dict[str, Figures]) -> bool:
        singers = figures.get("singer-sdk")
        fast = figures[OURS].median <= limit or (singers is not None and singers.ratio >= SINGER / limit)
        return fast and all(figures[name].ratio >= 1 for name in ("dlt", "singer-sdk") if name in figures)

    beside = " beside its own time" if shape.own is not None else ""
    return f"≤ {spell(limit)}{beside}, or {limit / SINGER:.2f} × singer-sdk; not slower than dlt or singer-sdk", met


def alone(count: int, rounds: int) -> dict[str, list[float]]:
    """Measure only ours, for another process whose `checkpoint` is an older one."""
    found: dict[str, list[float]] = {}
    for shape in SHAPES:
        if shape.older:
            rows = shape.make(count)
            for how in shape.hows:
                found[f"{shape.name}, {how}"] = [ours(shape, how, rows) for _ in range(rounds)]
    return found


def cases(quick: bool) -> list[Case]:
    """Measure every shape, fed in every way; then tables, and the first page of a stream."""
    count, rounds = (20_000, 2) if quick else (100_000, 7)
    older: dict[str, list[float]] = {}
    if harness.settings.before is not None:
        older = harness.alone("rows", f"alone({min(count, 50_000)}, {min(rounds, 3)})")
    found: list[Case] = []
    for shape in SHAPES:
        rows = shape.make(count)
        peers = contestants(shape, rows)
        runs = {how: partial(ours, shape, how, rows) for how in shape.hows}
        seconds = interleaved({**runs, **peers}, rounds)
        for how in shape.hows:
            name = f"{shape.name}, {how}"
            times = {OURS: seconds[how], **{other: seconds[other] for other in peers}}
            if name in older:
                times[BEFORE] = older[name]
            found.append(case(name, times, goal(shape, how), headline=shape.name in HEADLINES))
    return [*found, *first_pages(quick), *tables(quick)]


def interleaved(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run each once a round, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = run()
            if number:  # the first one warms
                seconds[name].append(took)
    return seconds


LATER = "later pages"
TWICE = "at most 2 × the later ones", lambda figures: figures[LATER].ratio >= 0.5


def first_pages(quick: bool) -> list[Case]:
    """Compare the first page of a stream with the later ones."""
    rows = SHAPES[0].make(PAGE * 10)
    pages = [rows[index : index + PAGE] for index in range(0, len(rows), PAGE)]
    first: list[float] = []
    later: list[float] = []
    for _ in range(10 if quick else 200):
        with Checkpointer("bench", MemoryStore()) as cp:
            stream = cp.incremental("rows", FIELD, row_order="asc")
            times: list[float] = []
            for page in pages:
                begun = process_time()
                stream.filter(page)
                times.append((process_time() - begun) / PAGE)
            first.append(times[0])
            later += times[1:]
    return [case("first page of 1,000 rows", {OURS: first, LATER: later}, TWICE)]


def tables(quick: bool) -> list[Case]:
    """Feed pyarrow tables of text and of timestamps, beside pyarrow's own filter."""
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
    except ImportError as error:
        harness.missing["pyarrow"] = str(error)
        return []
    count, rounds = (10_000, 2) if quick else (1_000_000, 7)
    found: list[Case] = []
    for name, values in (("text", [zulu(n) for n in range(count)]), ("timestamps", [at(n) for n in range(count)])):
        table = pa.table({"id": range(count), FIELD: values})
        batches = [table.slice(index, 10_000) for index in range(0, count, 10_000)]
        low = values[0]

        def stream(batches: list[Any] = batches) -> float:
            with Checkpointer("bench", MemoryStore()) as cp:
                inc = cp.incremental("rows", FIELD, row_order="asc")
                begun = process_time()
                for _ in inc.pages(batches):
                    pass
                took = process_time() - begun
                inc.unfinished()
            return took / count

        def by_pyarrow(batches: list[Any] = batches, low: Any = low) -> float:
            begun = process_time()
            for batch in batches:
                column = batch[FIELD]
                pc.max(column)
                batch.filter(pc.greater_equal(column, pa.scalar(low, column.type)))
            return (process_time() - begun) / count

        first: list[float] = []
        later: list[float] = []
        for _ in range(rounds):
            with Checkpointer("bench", MemoryStore()) as cp:
                inc = cp.incremental("rows", FIELD, row_order="asc")
                times: list[float] = []
                for batch in batches[:10]:
                    begun = process_time()
                    inc.filter(batch)
                    times.append((process_time() - begun) / len(batch))
                first.append(times[0])
                later += times[1:] or times
        found.append(case(f"first table of {name}", {OURS: first, LATER: later}, TWICE))
        seconds = interleaved({OURS: stream, "pyarrow, filter and max": by_pyarrow}, rounds)
        found.append(case(f"Arrow {name}, pages of 10,000", seconds, ("≤ 300 ns", lambda f: f[OURS].median <= 300e-9)))
    return found


if __name__ == "__main__":
    main(__file__, __doc__, cases, ["dlt", "singer-sdk", "pyarrow"], before=True)
