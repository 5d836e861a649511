"""Streams in jobs: sinks that fail, several streams, threads, tasks, forks, and consumers that read ahead."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Barrier

import pytest

from checkpoint import AsyncCheckpointer, Checkpointer, Conflict, CorruptState, CursorExpired
from checkpoint.codec import decode, encode
from checkpoint.stores.memory import MemoryStore


@pytest.fixture
def memory():
    return MemoryStore()


def rows(*ats):
    return [{"id": index, "at": at} for index, at in enumerate(ats)]


def stored(store):
    return {key: decode(entry.value) for key, entry in store.load("run").items()}


class Sink:
    """A sink whose writes fail as they are told to, half-way."""

    def __init__(self, *failures):
        self.rows = []
        self.failures = list(failures)

    def write(self, batch):
        if self.failures and self.failures.pop(0):
            raise OSError("the sink is full")
        self.rows += batch


def test_a_page_whose_write_failed_is_handed_out_again_whole(memory):
    page, sink = rows(1, 2, 2), Sink(True, False)
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", primary_key="id")
        for _ in range(2):
            try:
                sink.write(inc.filter(page))
                cp.commit()
            except OSError:
                assert stored(memory) == {}
        assert sink.rows == page
    assert stored(memory)["s"]["at"] == 2
    with Checkpointer("run", memory) as cp:
        assert cp.incremental("s", "at", row_order="asc", primary_key="id").filter(page[1:]) == []


def test_a_job_that_dies_of_its_sink_is_handed_the_page_again(memory):
    page = rows(1, 2, 3)
    for attempt in range(2):
        sink = Sink(False, attempt == 0)
        try:
            with Checkpointer("run", memory) as cp:
                inc = cp.incremental("s", "at", row_order="asc", primary_key="id")
                for batch in inc.pages([page[:2], page[2:]]):
                    sink.write(batch)
                    cp.commit()
        except OSError:
            assert stored(memory)["s"]["at"] == 2
    assert sink.rows == page[2:]


def test_a_page_in_which_one_row_is_bad_is_fed_again_without_it(memory):
    page = rows(1, "yesterday", 3)
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        with pytest.raises(ValueError, match="'s', 'at': 'yesterday'"):
            inc.filter(page)
        cp.commit()
        assert stored(memory) == {}
        assert inc.filter([page[0], page[2]]) == [page[0], page[2]]
    assert stored(memory) == {"s": {"at": 3}}


def test_pages_and_track_cover_what_came_before_a_bad_row(memory):
    with Checkpointer("run", memory) as cp:
        paged = cp.incremental("paged", "at", row_order="asc")
        found = paged.pages([rows(1, 2), rows(3, True), rows(4)])
        assert next(found) == rows(1, 2)
        with pytest.raises(TypeError, match="bool"):
            next(found)
        tracked = cp.incremental("tracked", "at", row_order="asc")
        records = tracked.track(rows(1, 2, True, 4))
        assert [next(records), next(records)] == rows(1, 2)
        with pytest.raises(TypeError, match="bool"):
            next(records)
    assert stored(memory) == {"paged": {"at": 2}, "tracked": {"at": 2}}


def test_of_two_streams_in_a_run_one_may_fail(memory):
    with Checkpointer("run", memory) as cp:
        for key in ("bad", "good"):
            try:
                with cp.incremental(key, "at") as inc:
                    for batch in inc.pages([rows(1), rows(2)]):
                        if key == "bad" and batch == rows(2):
                            raise OSError
                        cp.commit(inc)
            except OSError:
                assert not inc.live
    assert stored(memory) == {"good": {"at": 2}}


def test_interleaved_streams_are_claimed_one_by_one(memory):
    with Checkpointer("run", memory) as cp:
        one, two = (cp.incremental(key, "at", row_order="asc") for key in ("one", "two"))
        for first, second in zip(one.pages([rows(1), rows(2)]), two.pages([rows(5), rows(6)]), strict=True):
            assert (len(first), len(second)) == (1, 1)
            cp.commit(one)
        assert stored(memory) == {"one": {"at": 2}}
        cp.commit(two)
        assert stored(memory) == {"one": {"at": 2}, "two": {"at": 6}}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("primary", [None, "id"])
def test_a_commit_in_the_middle_of_a_track_loop(memory, listed, primary):
    """Wherever the run dies, the next one is handed what was not covered, and nothing that was."""
    count = 2_500
    page = rows(*(number // 2 for number in range(count)))
    for stop in (0, 1, 999, 1_000, 1_001, 1_999, 2_499):
        store = MemoryStore()
        with pytest.raises(OSError), Checkpointer("run", store) as cp:
            inc = cp.incremental("s", "at", row_order="asc", primary_key=primary)
            for index, _ in enumerate(inc.track(page if listed else iter(page))):
                if index == stop:
                    cp.commit()
                    raise OSError
        with Checkpointer("run", store) as cp:
            inc = cp.incremental("s", "at", row_order="asc", primary_key=primary)
            start = inc.start_value
            assert start == (None if stop == 0 else (stop - 1) // 2)
            found = list(inc.track([row for row in page if start is None or row["at"] >= start]))
        assert found == (page[stop:] if primary else [row for row in page if row["at"] >= (start or 0)])


def test_threads_commit_single_streams(memory):
    """Each thread has a stream of its own; what one commits says nothing of the others."""
    met = Barrier(4, timeout=60)
    with Checkpointer("run", memory) as cp:

        def work(number):
            inc = cp.incremental(f"s{number}", "at", row_order="asc", primary_key="id")
            found = 0
            for batch in inc.pages([rows(*range(start, start + 10)) for start in range(0, 200, 10)]):
                found += len(batch)
                assert cp.commit(inc).keys == (f"s{number}",)
            met.wait()
            inc.filter(rows(1_000 + number))  # and no commit: the run claims it when it is left
            met.wait()
            return found, cp[f"s{number}"]["at"]

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(4))) == [(200, 199)] * 4
        assert {key: cursor["at"] for key, cursor in stored(memory).items()} == dict.fromkeys(
            ["s0", "s1", "s2", "s3"], 199
        )
    assert {key: cursor["at"] for key, cursor in stored(memory).items()} == {f"s{n}": 1_000 + n for n in range(4)}


def test_tasks_commit_single_streams(memory):
    async def source(number):
        for at in range(number, number + 50):
            await asyncio.sleep(0)
            yield {"id": at, "at": at}

    async def job():
        async with AsyncCheckpointer("run", memory) as cp:

            async def work(number):
                inc = cp.incremental(f"s{number}", "at", row_order="asc")
                async for record in inc.track(source(number)):
                    if record["at"] % 10 == 9:
                        await cp.commit(inc)
                        assert cp[f"s{number}"] == {"at": record["at"] - 1}

            await asyncio.gather(*map(work, range(0, 40, 10)))

    asyncio.run(job())
    assert stored(memory) == {f"s{number}": {"at": number + 49} for number in range(0, 40, 10)}


def test_a_cancelled_task_leaves_its_stream_at_the_last_claim(memory):
    async def endless():
        at = 0
        while True:
            at += 1
            yield {"at": at}
            await asyncio.sleep(0)

    async def job():
        async with AsyncCheckpointer("run", memory) as cp:

            async def work():
                with cp.incremental("s", "at", row_order="asc") as inc:
                    async for record in inc.track(endless()):
                        if record["at"] == 5:
                            await cp.commit(inc)
                            reached.set()

            reached = asyncio.Event()
            task = asyncio.create_task(work())
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(job())
    assert stored(memory) == {"s": {"at": 4}}


@pytest.mark.parametrize("listed", [True, False])
def test_a_reader_ahead_is_taken_to_have_all_but_the_last(memory, listed):
    """`track` cannot see a buffer: such a job commits when its buffer is written."""
    page = rows(*range(10))
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        records = inc.track(page if listed else iter(page))
        while buffer := list(islice(records, 4)):
            cp.commit()  # too early by three records
            assert stored(memory)["s"] == {"at": buffer[-1]["at"] - 1 if len(buffer) == 4 else 9}


def test_observe_lets_a_job_that_reads_ahead_say_when(memory):
    page, buffer = rows(*range(10)), []
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        for record in page:
            buffer.append(record)
            if len(buffer) == 4:
                written = [one for one in buffer if inc.observe(one)]
                buffer.clear()
                cp.commit()
                assert stored(memory)["s"] == {"at": written[-1]["at"]}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["filter", "track", "windows"])
def test_a_forked_child_claims_nothing_the_parent_took(tmp_path, how):
    take = {
        "filter": "inc.filter(rows(2, 3))",
        "track": "tracked = inc.track(rows(2, 3, 4)); next(tracked); next(tracked)",
        "windows": "windows = list(inc.windows(5, until=11))\n    with windows[0]: windows[0].filter(rows(2, 3))",
    }[how]
    job = f"""
import os
from checkpoint import Checkpointer
rows = lambda *ats: [{{"id": at, "at": at}} for at in ats]
with Checkpointer("run", "sqlite:///{tmp_path}/state.db") as cp:
    inc = cp.incremental("s", "at", row_order="asc", initial_value=0)
    inc.filter(rows(1))
    cp.commit()
    {take}
    if os.fork():
        assert os.wait()[1] == 0
        os._exit(0)  # the parent dies before it could deliver what it took
    assert inc.start_value == (0 if {how == "windows"} and cp["s"]["at"] != 1 else 1) and cp["s"] == {{"at": 1}}
    assert inc.stats.delivered
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", job], check=True, timeout=60)
    with Checkpointer("run", f"sqlite:///{tmp_path}/state.db") as cp:
        assert cp["s"] == {"at": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_with_the_stream(tmp_path):
    job = f"""
import os
from checkpoint import Checkpointer
with Checkpointer("run", "sqlite:///{tmp_path}/state.db") as cp:
    inc = cp.incremental("s", "at", row_order="asc")
    inc.filter([{{"at": 1}}])
    if os.fork():
        assert os.wait()[1] == 0
        os._exit(0)
    assert inc.filter([{{"at": 1}}, {{"at": 2}}]) == [{{"at": 1}}, {{"at": 2}}]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", job], check=True, timeout=60)
    with Checkpointer("run", f"sqlite:///{tmp_path}/state.db") as cp:
        assert cp["s"] == {"at": 2}


@pytest.mark.parametrize("way", ["discard", "reload"])
@pytest.mark.parametrize(
    ("foreign", "error"),
    [
        ("not a cursor", CorruptState), (encode({"other": 1}), ValueError), (encode({"at": True}), CorruptState),
        (encode({"at": -1}), CursorExpired),
    ],
)  # fmt: skip
def test_one_stream_that_cannot_go_back_stops_no_other(memory, way, foreign, error):
    with Checkpointer("run", memory) as cp:
        streams = [cp.incremental(key, "at", row_order="asc", oldest_available=0) for key in ("a", "b", "c")]
        for inc in streams:
            inc.filter(rows(5))
        cp.commit()
        for inc in streams:
            inc.filter(rows(9))
        memory.commit("run", {"b": foreign})
        if way == "discard":
            with pytest.raises(Conflict):
                cp.commit()
        with pytest.raises(error, match="'b'"):
            cp.discard() if way == "discard" else cp.reload()
        assert [inc.start_value for inc in (streams[0], streams[2])] == [5, 5]
        assert [inc.filter(rows(6)) for inc in (streams[0], streams[2])] == [rows(6)] * 2
        streams[1].detach()
    assert {key: entry.value for key, entry in memory.load("run").items()} == {
        "a": encode({"at": 6}), "b": foreign, "c": encode({"at": 6}),
    }  # fmt: skip


def test_a_stream_is_finished_by_every_block_of_its_own(memory):
    with Checkpointer("run", memory) as cp:
        stream = cp.incremental("s", "at", initial_value=0)
        for at in (1, 2):
            with stream:
                list(stream.pages([rows(at)]))
            cp.commit()
            assert stored(memory) == {"s": {"at": at}}


@pytest.mark.parametrize("own", [True, False])
def test_a_stream_that_went_back_is_finished_again(memory, own):
    memory.commit("run", {"s": encode({"at": 0})})
    with Checkpointer("run", memory) as cp:
        stream = cp.incremental("s", "at")
        with stream:
            list(stream.pages([rows(1)]))
        memory.commit("run", {"s": encode({"at": -5})})
        with pytest.raises(Conflict):
            cp.commit()
        cp.discard()
        assert stream.start_value == -5
        if own:
            with stream:
                list(stream.pages([rows(2)]))
        else:
            list(stream.pages([rows(2)]))
    assert stored(memory) == {"s": {"at": 2}}


# Rows that appear late: what docs/guide/sorted.md says that a lookback has to cover


DELAY = 20


def late_rows_missed(seed, lookback, *, pinned):
    """Run a job over rows that appear up to `DELAY` late, about as fast as it reads; return how many it missed."""
    rng, store, now, longest, got = random.Random(seed), MemoryStore(), 5, 0, set()
    rows = [{"id": number, "at": number // 2} for number in range(1_000)]
    seen_from = {row["id"]: row["at"] + rng.randrange(DELAY + 1) for row in rows}

    def page(place):
        nonlocal now
        now += rng.randrange(1, 4)
        since = place or [start, -1]
        there = [row for row in rows if seen_from[row["id"]] <= now and [row["at"], row["id"]] > since][:4]
        return there, [there[-1]["at"], there[-1]["id"]] if len(there) == 4 else None

    while now < 2_000:  # all rows are there after 520
        begun = now
        with Checkpointer("run", store) as cp:
            inc = cp.incremental(
                "s", "at", initial_value=0, row_order="asc", primary_key="id", lookback=lookback,
                end_value=begun if pinned else None,
            )  # fmt: skip
            start = inc.start_value
            for found in inc.fetch(page):
                got.update(row["id"] for row in found)
                cp.commit()
        longest = max(longest, now - begun)
        now += rng.randrange(1, 10) if now < 900 else 500
    return len({row["id"] for row in rows} - got), longest


def test_a_lookback_covers_the_delay_and_the_run():
    missed, longest = zip(*(late_rows_missed(seed, DELAY, pinned=False) for seed in range(4)), strict=True)
    assert max(missed) > 0
    assert max(late_rows_missed(seed, DELAY + max(longest) + 1, pinned=False)[0] for seed in range(4)) == 0


def test_a_run_that_ends_where_it_began_needs_the_delay_alone():
    assert max(late_rows_missed(seed, DELAY + 1, pinned=True)[0] for seed in range(4)) == 0
