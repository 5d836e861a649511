"""Windows of a stream: backfills in any order, and what of them is stored."""

from __future__ import annotations

import asyncio
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta, timezone

import pytest
from freezegun import freeze_time

from checkpoint import AsyncCheckpointer, Checkpointer
from checkpoint.codec import decode, encode
from checkpoint.stores.memory import MemoryStore

DAY = timedelta(days=1)


def stored(store):
    entry = store.load("run").get("s")
    return None if entry is None else decode(entry.value)


def rows(*ats):
    return [{"id": index, "at": at} for index, at in enumerate(ats)]


def spans(windows):
    return [(window.start, window.end) for window in windows]


def whole(rows_of, page):
    """Read a window, or a stream, whose source has one page."""
    return [record for found in rows_of.pages([page]) for record in found]


@pytest.fixture
def memory():
    return MemoryStore()


def read(inc, numbers, step, until, skip=()):
    """Read windows; those in `skip` fail."""
    found = []
    for index, window in enumerate(inc.windows(step, until=until)):
        try:
            with window:
                found += whole(window, rows(*numbers))
                if index in skip:
                    raise OSError
        except OSError:
            pass
    return [record["at"] for record in found]


def test_windows_are_half_open_and_end_at_until_exactly(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0, end_value=10)
        assert spans(inc.windows(4)) == [(0, 4), (4, 8), (8, 10)]
        assert spans(cp.incremental("s", "at", initial_value=0).windows(5, until=10)) == [(0, 5), (5, 10)]
        assert spans(cp.incremental("s", "at", initial_value=10).windows(5, until=10)) == []
        inc = cp.incremental("s", "at", initial_value=0)
        [first, second] = inc.windows(5, until=10)
        with second, first:
            assert whole(second, rows(4, 5, 9, 10)) == [rows(4, 5)[1], rows(4, 5, 9)[2]]
            assert [*first.track(rows(-1, 0, 4, 5))] == [rows(-1, 0)[1], rows(-1, 0, 4)[2]]
            assert [*first.pages([rows(1), rows(5)])] == [rows(1)]
            assert [first.observe(record) for record in rows(-1, 0, 5)] == [False, True, False]
    assert stored(memory) == {"at": 10}


@pytest.mark.parametrize(
    ("start", "step", "until", "ends"),
    [
        ("2024-01-31", "month", "2024-05-01", ["2024-02-29", "2024-03-31", "2024-04-30", "2024-05-01"]),
        (date(2023, 12, 1), "month", date(2024, 2, 1), [date(2024, 1, 1), date(2024, 2, 1)]),
        ("2024-02-28T00:00:00Z", DAY, "2024-03-01T12:00:00Z",
         ["2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z", "2024-03-01T12:00:00Z"]),
        (0.0, 0.5, 1.25, [0.5, 1.0, 1.25]),
        ("2024-02-28T00:00:00Z", timedelta.max, "2024-03-01T00:00:00Z", ["2024-03-01T00:00:00Z"]),
        (0, float("inf"), 5, [5]),
    ],
)  # fmt: skip
def test_steps(memory, start, step, until, ends):
    with Checkpointer("run", memory) as cp:
        windows = list(cp.incremental("s", "at", initial_value=start, timezone="UTC").windows(step, until=until))
        assert [window.end for window in windows] == ends
        assert [window.start for window in windows] == [start, *ends[:-1]]


def test_the_end_must_not_lie_in_the_future(memory):
    with freeze_time("2024-05-01T10:00:00Z"), Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value="2024-01-01T00:00:00Z")
        with pytest.raises(ValueError, match="is in the future"):
            inc.windows(DAY, until="2024-05-01T12:01:01+02:00")
        assert spans(inc.windows(timedelta(days=365), until="2024-05-01T12:00:00+02:00")) == [
            ("2024-01-01T00:00:00Z", "2024-05-01T12:00:00+02:00")
        ]


@pytest.mark.parametrize(
    ("options", "step", "until"),
    [({}, 1, 5), ({"initial_value": 0}, 1, None), ({"initial_value": 0}, 0, 5), ({"initial_value": 0}, -1, 5),
     ({"initial_value": 0}, "week", 5), ({"initial_value": 0}, DAY, 5), ({"initial_value": 0}, "month", 5),
     ({"initial_value": 0}, 1, "x"), ({"initial_value": 0, "end_value": 4}, 1, 5)],
)  # fmt: skip
def test_bad_windows(memory, options, step, until):
    with Checkpointer("run", memory) as cp, pytest.raises((TypeError, ValueError)):
        cp.incremental("s", "at", **options).windows(step, until=until)


def test_the_position_is_the_end_of_the_first_contiguous_run(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0)
        windows = list(inc.windows(10, until=50))
        for index, expected in (
            (3, {"windows": [[30, 40]]}),
            (1, {"windows": [[10, 20], [30, 40]]}),
            (0, {"at": 20, "windows": [[30, 40]]}),
            (2, {"at": 40}),
        ):
            windows[index].finish()
            cp.commit()
            assert stored(memory) == expected


def test_the_next_run_skips_islands_and_cuts_at_their_edges(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0)
        assert read(inc, range(50), 10, 50, skip=[1, 3]) == list(range(50))
    assert stored(memory) == {"at": 10, "windows": [[20, 30], [40, 50]]}
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0)
        assert spans(inc.windows(15, until=60)) == [(10, 20), (30, 40), (50, 55), (55, 60)]
        inc = cp.incremental("s", "at", initial_value=0)
        assert read(inc, range(60), 15, 60) == [*range(10, 20), *range(30, 40), *range(50, 60)]
    assert stored(memory) == {"at": 60}


@pytest.mark.parametrize("how", ["exception", "unexhausted", "stopping"])
def test_a_window_that_is_not_finished_is_read_again(memory, how):
    with Checkpointer("run", memory, stop_signals=[signal.SIGUSR1]) as cp:
        inc = cp.incremental("s", "at", initial_value=0)
        [window] = inc.windows(10, until=10)
        if how == "exception":
            with pytest.raises(OSError), window:
                whole(window, rows(1))
                raise OSError
        elif how == "unexhausted":
            with window:
                next(window.track(rows(1, 2)))
        else:
            signal.raise_signal(signal.SIGUSR1)
            with window:
                whole(window, rows(1))
        cp.commit()
        assert stored(memory) is None
        if how != "stopping":
            with window:
                assert whole(window, rows(1)) == rows(1)
    assert stored(memory) == (None if how == "stopping" else {"at": 10})


def test_windows_are_fed_in_their_block_the_stream_never(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0)
        [window] = inc.windows(10, until=10)
        with pytest.raises(RuntimeError, match="feed a window inside its with block"):
            window.filter(rows(1))
        for use in (
            lambda: inc.filter(rows(1)),
            lambda: inc.observe(rows(1)[0]),
            lambda: list(inc.track([])),
            inc.finish,
        ):
            with pytest.raises(RuntimeError, match="cut into windows"):
                use()
        window.finish()
        again = cp.incremental("s", "at", initial_value=0)
        assert again.start_value == 0  # not committed yet
        with pytest.raises(RuntimeError, match="opened again"), window:
            pass


def test_going_on_row_by_row(memory):
    memory.commit("run", {"s": encode({"at": 10, "windows": [[20, 30], [40, 50]]})})
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        assert len(inc.filter(rows(10, 19, 25))) == 3  # rather twice than not at all
        cp.commit()
        assert stored(memory) == {"at": 25, "windows": [[20, 30], [40, 50]]}
        inc.filter(rows(35))
        cp.commit()
        assert stored(memory) == {"at": 35, "windows": [[40, 50]]}
        inc.filter(rows(60))
    assert stored(memory) == {"at": 60}


def test_windows_begin_at_the_position_less_the_lookback(memory):
    with Checkpointer("run", memory) as cp:
        whole(cp.incremental("s", "at", primary_key="id", lookback=3), rows(5, 8, 10))
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", primary_key="id", lookback=3)
        first, *rest = inc.windows(5, until=20)
        assert (first.start, first.end) == (7, 12)
        with first:
            assert [record["at"] for record in whole(first, [*rows(5, 8, 10), {"id": 9, "at": 11}])] == [11]
        cp.commit()
        cursor = stored(memory)
        assert (cursor["at"], cursor["seen"]["at"], len(cursor["seen"]["rows"])) == (12, 12, 2)  # of 10 and 11
        rest[-1].finish()
    assert stored(memory) == {**cursor, "windows": [[17, 20]]}


def test_rows_of_windows_inside_the_lookback_are_remembered(memory):
    page = rows(*range(20))
    options = {"primary_key": "id", "lookback": 4, "initial_value": 0}
    with Checkpointer("run", memory) as cp:
        windows = list(cp.incremental("s", "at", **options).windows(5, until=20))
        for window in (windows[3], windows[0], windows[2]):
            with window:
                assert len(whole(window, page)) == 5
        with pytest.raises(OSError), windows[1]:
            whole(windows[1], page)
            raise OSError
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", **options)
        windows = list(inc.windows(5, until=20))
        assert spans(windows) == [(1, 6), (6, 10)]
        for window in windows:
            with window:
                assert whole(window, page) == page[max(window.start, 5) : window.end]
        cp.commit()
        assert (stored(memory)["at"], "windows" in stored(memory)) == (20, False)
    late = {"id": 99, "at": 17}
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", **options)
        assert inc.start_value == 16
        assert [record["id"] for record in whole(inc, [*page, late])] == [
            16,
            17,
            18,
            19,
            99,
        ]  # an earlier run's windows
    with Checkpointer("run", memory) as cp:
        assert cp.incremental("s", "at", **options).filter([*page, late]) == []


def test_windows_of_other_spellings_are_remembered_together(memory):
    """What makes keys is chosen for each window by its first row: `Z`, an offset, nanoseconds."""
    options = {"primary_key": "id", "lookback": timedelta(days=2), "initial_value": "2024-05-01T00:00:00Z"}
    until = "2024-05-04T00:00:00Z"
    ats = ["2024-05-01T10:00:00Z", "2024-05-02T12:00:00+02:00", "2024-05-03T10:00:00.123456789Z"]
    page = [{"id": number, "at": at} for number, at in enumerate(ats)]
    with Checkpointer("run", memory) as cp:
        for window in cp.incremental("s", "at", **options).windows(timedelta(days=1), until):
            with window:
                own = [row for row in page if row["at"][:10] == window.start[:10]]
                assert [*window.pages([own])] == [own]
    with Checkpointer("run", memory) as cp:
        stream = cp.incremental("s", "at", **options)
        assert stream.start_value == "2024-05-02T00:00:00Z"
        assert [*stream.pages([page[1:]])] == []


def test_windows_from_a_day_hold_times(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value="2024-05-01", timezone="UTC")
        times = rows("2024-05-01T23:59:59Z", "2024-05-02T00:00:00Z")
        for window, found in zip(inc.windows(DAY, until="2024-05-03"), (times[:1], times[1:]), strict=True):
            with window:
                assert whole(window, times) == found
    assert stored(memory) == {"at": "2024-05-03"}


def test_a_reading_ends_where_the_stream_is_cut_into_windows(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0)
        for records in (inc.track(rows(1, 2, 3)), inc.track(iter(rows(1, 2, 3))), inc.pages([rows(1), rows(2)])):
            next(records)
            [window] = inc.windows(10, until=10)
            with pytest.raises(RuntimeError, match="cut into windows"):
                next(records)
            cp.discard()
            with pytest.raises(RuntimeError, match="cut new windows"), window:
                pass


def test_a_window_left_after_going_back_is_not_remembered(memory):
    options = {"primary_key": "id", "lookback": 5, "initial_value": 0}
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", **options)
        [window] = inc.windows(10, until=10)
        with window:
            assert whole(window, rows(*range(10))) == rows(*range(10))
            cp.discard()
        whole(inc, rows(7))
    assert (stored(memory)["at"], len(stored(memory)["seen"]["rows"])) == (7, 1)


def test_typed_starts(memory):
    utc = timezone.utc
    memory.commit(
        "run",
        {"s": encode({"at": "2024-01-01T00:00:00Z", "windows": [["2024-01-03T00:00:00Z", "2024-01-04T00:00:00Z"]]})},
    )
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=datetime(2020, 1, 1, tzinfo=utc))
        days = [datetime(2024, 1, day, tzinfo=utc) for day in range(1, 6)]
        assert spans(inc.windows(2 * DAY, until=days[4])) == [(days[0], days[2]), (days[3], days[4])]


def test_windows_in_threads(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0)

        def work(window):
            with window:
                return [record["at"] for record in window.track(rows(*range(1000)))]

        with ThreadPoolExecutor(4) as pool:
            found = [at for ats in pool.map(work, inc.windows(37, until=1000)) for at in ats]
        assert found == list(range(1000))
        assert (inc.stats.delivered, inc.last_value) == (1000, 999)
    assert stored(memory) == {"at": 1000}


def test_windows_in_tasks(memory):
    async def source(batch):
        for record in batch:
            yield record

    async def job():
        async with AsyncCheckpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", initial_value=0)

            async def work(window):
                with window:
                    return [record["at"] async for record in window.track(source(rows(*range(100))))]

            found = await asyncio.gather(*map(work, inc.windows(7, until=100)))
            assert [n for part in found for n in part] == list(range(100))
            await cp.commit(inc)

    asyncio.run(job())
    assert stored(memory) == {"at": 100}


@pytest.mark.parametrize("seed", range(200))
def test_random_backfills_read_everything(seed):
    """At least once, whatever fails; and exactly once what was finished and committed."""
    rng = random.Random(seed)
    memory, finished, read_ = MemoryStore(), set(), []
    for attempt in range(6):
        step, until = rng.randrange(3, 40), 100
        with Checkpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", initial_value=0)
            windows = list(inc.windows(step, until=until))
            rng.shuffle(windows)
            for window in windows:
                try:
                    with window:
                        found = [record["at"] for record in whole(window, rows(*range(120)))]
                        read_ += found
                        assert not finished & set(found)
                        if attempt < 5 and rng.random() < 0.5:
                            raise OSError
                    finished.update(found)
                except OSError:
                    pass
                if rng.random() < 0.3:
                    cp.commit()
    assert set(read_) == set(range(100))
    assert stored(memory) == {"at": 100}


def test_discard_forgets_windows_that_were_not_committed(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0)
        first, second = inc.windows(5, until=10)
        first.finish()
        cp.commit()
        with second:
            second.finish()
            cp.discard()
        assert inc.start_value == 5
        assert spans(inc.windows(5, until=10)) == [(5, 10)]
    assert stored(memory) == {"at": 5}


def test_a_window_that_is_entered_is_not_entered_again():
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", initial_value=0, end_value=10)
        (window,) = stream.windows(10)
        with window, pytest.raises(RuntimeError, match="is already entered"), window:
            pass
