"""Incremental: every sentence of its contract."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from types import ModuleType
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time

from checkpoint import (
    AsyncCheckpointer,
    Checkpointer,
    Conflict,
    CorruptState,
    CursorExpired,
    CursorRegressed,
    StoreUnavailable,
)
from checkpoint.codec import decode, encode
from checkpoint.stores.memory import MemoryStore
from checkpoint.streams import paging
from checkpoint.streams.incremental import Incremental, Stats
from checkpoint.streams.reading import Scan
from checkpoint.streams.values import Scale

EPOCH = "1970-01-01T00:00:00Z"
UTC = timezone.utc


def row(at, id=0, **more):
    return {"id": id, "at": at, **more}


def rows(*ats):
    return [row(at, index) for index, at in enumerate(ats)]


def stored(store, key="s"):
    entry = store.load("run").get(key)
    return None if entry is None else decode(entry.value)


def at(store):
    cursor = stored(store)
    return None if cursor is None else cursor["at"]


def seed(store, **cursors):
    store.commit("run", {key: encode(cursor) for key, cursor in cursors.items()})


def feed(inc, how, batch):
    """Feed one batch, and return what was handed out."""
    if how == "pages":
        return [record for page in inc.pages([batch]) for record in page]
    if how == "filter":
        return inc.filter(batch)
    if how == "track":
        return list(inc.track(batch))
    if how == "iter":
        return list(inc.track(iter(batch)))
    return [record for record in batch if inc.observe(record)]


def feed_whole(inc, how, batch):
    """Feed one batch, which is all that the source has."""
    found = feed(inc, how, batch)
    inc.finish()
    return found


def read(inc, page):
    """Read a source of one page to its end."""
    return [record for found in inc.pages([page]) for record in found]


HOWS = ["pages", "filter", "track", "iter", "observe"]


@pytest.fixture
def memory():
    return MemoryStore()


@pytest.fixture
def cp(memory):
    with Checkpointer("run", memory) as cp:
        yield cp


# Feeding


@pytest.mark.parametrize("how", HOWS)
def test_rows_outside_the_range_drop_and_earlier_are_late(memory, how):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=10, end_value=20)
        assert feed_whole(inc, how, rows(10, 9, 15, 20, 19, 25, 3)) == [row(10, 0), row(15, 2), row(19, 4)]
        assert (inc.stats, inc.last_value) == (Stats(seen=7, delivered=3, dropped=4, late=2), 19)
    assert stored(memory) == {"at": 19}


def test_pages_leave_empty_ones_out(cp):
    inc = cp.incremental("s", "at", initial_value=10)
    assert list(inc.pages([rows(1, 2), rows(11, 1), [], (row(n) for n in (12, 13))])) == [
        [row(11)], [row(12), row(13)],
    ]  # fmt: skip


def test_async_iterables_give_async_iterators(memory):
    async def source(items):
        for item in items:
            yield item

    async def job():
        async with AsyncCheckpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", initial_value=2, row_order="asc")
            assert isinstance(inc, Incremental)
            assert [page async for page in inc.pages(source([rows(1, 2), rows(1), rows(3)]))] == [
                [row(2, 1)], [row(3)],
            ]  # fmt: skip
            assert [record async for record in inc.track(source(rows(3, 4)))] == rows(3, 4)
            await cp.commit(inc)
            assert cp["s"] == {"at": 4}
            assert [page for page in inc.pages([rows(5)])] == [rows(5)]  # noqa: C416 - plain iterables as well

    asyncio.run(job())
    assert at(memory) == 5


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("order", [None, "asc", "desc"])
def test_rows_remembered_when_the_stream_was_opened_are_dropped(memory, how, order):
    page = rows(1, 2, 2)
    for expected in (page, []):
        with Checkpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", primary_key="id", row_order=order)
            batch = [record for record in page if inc.start_value is None or record["at"] >= inc.start_value]
            found = feed_whole(inc, how, batch[::-1] if order == "desc" else batch)
            assert sorted(found, key=lambda record: record["id"]) == expected
    changed = [row(2, 1, name="new"), row(2, 2)]
    with Checkpointer("run", memory) as cp:
        assert feed_whole(cp.incremental("s", "at", primary_key="id", row_order=order), how, changed) == changed[:1]


@pytest.mark.parametrize("order", [None, "asc"])
@pytest.mark.parametrize("how", HOWS)
def test_a_page_fed_twice_in_one_run_is_handed_out_twice(cp, how, order):
    inc = cp.incremental("s", "at", primary_key="id", row_order=order)
    page = rows(1, 2, 2)
    assert feed(inc, how, page) == page
    assert feed(inc, how, page) == page
    cp.commit()
    assert feed(inc, how, page[1:]) == page[1:]


@pytest.mark.parametrize("bad", [{"id": 9}, row(True), row("x"), row(float("nan")), row([1])])
def test_a_batch_is_all_or_nothing(memory, bad):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        assert inc.filter(rows(1)) == rows(1)
        with pytest.raises((TypeError, ValueError)):
            inc.filter([row(2), row(3), bad])
        assert (inc.stats, inc.last_value) == (Stats(1, 1, 0, 0), 1)
        cp.commit()
        assert at(memory) == 1
        assert inc.filter([row(2), row(3)]) == [row(2), row(3)]
    assert at(memory) == 3


@pytest.mark.parametrize("bad", [{"id": 9}, row(None)])
def test_a_row_without_a_cursor_value(memory, bad):
    with Checkpointer("run", memory) as cp:
        for choice, found in (("include", [row(1), bad, row(2)]), ("exclude", [row(1), row(2)])):
            inc = cp.incremental("s", "at", on_cursor_value_missing=choice)
            assert [inc.filter([row(1), bad, row(2)]), list(inc.track([row(1), bad, row(2)]))] == [found, found]
        inc = cp.incremental("s", "at")
        with pytest.raises(ValueError, match=r"'s': a row has no 'at' \(row 1 of the batch\)"):
            inc.filter([row(1), bad, row(2)])
        with pytest.raises(ValueError, match="on_cursor_value_missing='include' or 'exclude'"):
            inc.observe(bad)


def test_a_claim_covers_pages_and_tracked_rows_before_in_hand(memory):
    for how in HOWS:
        seed(memory, s={"at": 0})
        with Checkpointer("run", memory, on_conflict="overwrite") as cp:
            inc = cp.incremental("s", "at", row_order="asc", initial_value=0)
            covered = []
            if how == "pages":
                for _ in inc.pages([rows(1, 2), rows(3, 4)]):
                    cp.commit()
                    covered.append(at(memory))
                assert covered == [2, 4]
            elif how == "filter":
                inc.filter(rows(1, 2))
                cp.commit()
                assert at(memory) == 2
            elif how == "observe":
                for record in rows(1, 2):
                    inc.observe(record)
                    cp.commit()
                    covered.append(at(memory))
                assert covered == [1, 2]
            else:
                for _ in inc.track(rows(1, 2, 3) if how == "track" else iter(rows(1, 2, 3))):
                    cp.commit()
                    covered.append(at(memory))
                assert covered == [0, 1, 2]


# Position


def test_asc_is_the_highest_value_handed_out(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        inc.filter(rows(1, 5, 5))
        cp.commit()
        assert at(memory) == 5


@pytest.mark.parametrize("how", HOWS)
def test_asc_below_what_the_run_claimed_is_regressed(cp, how):
    inc = cp.incremental("s", "at", row_order="asc")
    feed(inc, how, rows(1, 5))
    cp.commit()
    with pytest.raises(CursorRegressed) as caught:
        feed(inc, how, [row(4)])
    assert (caught.value.key, caught.value.last, caught.value.new) == ("s", 5, 4)


@pytest.mark.parametrize("how", ["pages", "filter"])
def test_asc_a_page_out_of_order_is_regressed(cp, how):
    inc = cp.incremental("s", "at", row_order="asc")
    feed(inc, how, rows(1, 2, 3))
    with pytest.raises(CursorRegressed):
        feed(inc, how, rows(4, 6, 5))


def test_asc_open_waits_for_a_larger_value_or_the_end(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", range_start="open")
        inc.filter(rows(1, 2))
        cp.commit()
        assert at(memory) == 1
        inc.filter(rows(2, 2))
        cp.commit()
        assert at(memory) == 1
        for _ in inc.track(rows(2, 3)):
            cp.commit()
        assert at(memory) == 2
        inc.finish()
    assert at(memory) == 3


@pytest.mark.parametrize("order", [None, "desc"])
@pytest.mark.parametrize("end", ["finish", "block", "checkpointer"])
def test_an_unsorted_position_moves_when_the_stream_is_finished(memory, order, end):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order=order)
        inc.filter(rows(3, 2))
        cp.commit()
        assert at(memory) is None
        if end == "finish":
            inc.finish()
        elif end == "block":
            with inc:
                read(inc, rows(1))
        else:
            read(inc, rows(1))
        if end != "checkpointer":
            cp.commit()
            assert at(memory) == 3
    assert at(memory) == 3


@pytest.mark.parametrize("how", ["track", "iter", "pages"])
def test_it_is_unfinished_while_a_reading_is_not_exhausted(memory, how):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at")
        with inc:
            for _ in inc.pages([rows(1), rows(2)]) if how == "pages" else inc.track(rows(1, 2)):
                break
    assert at(memory) is None


def test_unfinished_keeps_the_position(memory):
    with Checkpointer("run", memory) as cp, cp.incremental("s", "at") as inc:
        for batch in (rows(1), rows(2)):
            inc.filter(batch)
            inc.unfinished()
            break
    assert at(memory) is None


def test_a_stream_left_while_stopping_is_not_finished(memory):
    with Checkpointer("run", memory, stop_signals=[signal.SIGUSR1]) as cp:
        with cp.incremental("before", "at") as inc:
            read(inc, rows(1))
        signal.raise_signal(signal.SIGUSR1)
        assert cp.stopping
        with cp.incremental("s", "at") as inc:
            read(inc, rows(1))
        read(cp.incremental("t", "at"), rows(1))
        cp.incremental("sorted", "at", row_order="asc").filter(rows(1))
    assert [stored(memory, key) for key in ("before", "s", "t", "sorted")] == [{"at": 1}, None, None, {"at": 1}]


@pytest.mark.parametrize("how", ["track", "iter", "pages"])
def test_desc_ends_at_the_first_row_before_the_start(memory, how):
    seed(memory, s={"at": 5})
    asked = []

    def source():
        for value in (9, 7, 5, 4, 3):
            asked.append(value)
            yield row(value) if how != "pages" else [row(value)]

    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="desc")
        found = list(inc.pages(source()) if how == "pages" else inc.track(source()))
        assert found == [row(n) if how != "pages" else [row(n)] for n in (9, 7, 5)]
    assert asked == [9, 7, 5, 4]
    assert at(memory) == 9


@pytest.mark.parametrize("how", HOWS)
def test_asc_ceiling_is_the_moment_of_the_claim_and_five_minutes(memory, how):
    with freeze_time("2024-05-01T10:00:00Z") as clock, Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", primary_key="id")
        page = rows("2024-05-01T10:00:00Z", "2024-05-01T10:05:00Z", "2024-05-01T10:06:00Z", "2099-01-01T00:00:00Z")
        assert feed(inc, how, page) == page
        assert inc.last_value == "2099-01-01T00:00:00Z"
        cp.commit()
        assert at(memory) == "2024-05-01T10:05:00Z"
        clock.tick(60)
        cp.commit()
        assert at(memory) == "2024-05-01T10:06:00Z"
    assert len(stored(memory)["seen"]["rows"]) == 1


@pytest.mark.parametrize("how", HOWS)
def test_fault_58_unsorted_ceiling_is_opening_less_5_minutes(memory, how):
    with freeze_time("2024-05-01T10:00:00Z") as clock, Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at")
        clock.tick(3600)
        page = rows("2024-05-01T09:56:00Z", "2024-05-01T09:00:00Z", "2024-05-01T11:55:00+02:00", "2099-01-01T00:00:00Z")
        assert feed_whole(inc, how, page) == page
    assert at(memory) == "2024-05-01T11:55:00+02:00"


def test_end_value_is_the_ceiling_and_clockless_have_none(memory):
    with freeze_time("2024-05-01"), Checkpointer("run", memory) as cp:
        read(cp.incremental("s", "at", end_value="2100-01-01T00:00:00Z"), rows("2099-01-01T00:00:00Z"))
        read(cp.incremental("n", "at"), rows(10**12))
        read(cp.incremental("zoned", "at", timezone="UTC"), rows("2024-04-01T00:00:00", "2099-01-01T00:00:00"))
    assert [stored(memory, key)["at"] for key in ("s", "n", "zoned")] == [
        "2099-01-01T00:00:00Z", 10**12, "2024-04-01T00:00:00",
    ]  # fmt: skip


def test_start_value_is_position_less_lookback_to_the_initial(memory):
    with Checkpointer("run", memory) as cp:
        assert cp.incremental("s", "at").start_value is None
        assert cp.incremental("s", "at", initial_value=3).start_value == 3
        assert cp.incremental("s", "at", initial_value=3, lookback=2).start_value == 3
    seed(memory, s={"at": 10})
    with Checkpointer("run", memory) as cp:
        assert cp.incremental("s", "at", lookback=2).start_value == 8
        assert cp.incremental("s", "at", initial_value=9, lookback=2).start_value == 9
        assert cp.incremental("s", "at", initial_value=99, lookback=2).start_value == 10  # the stored position wins
        assert cp.incremental("s", "at", initial_value=0).start_value == 10


def test_an_end_value_behind_the_position_keeps_it(memory):
    seed(memory, s={"at": 10})
    with Checkpointer("run", memory) as cp:
        assert cp.incremental("s", "at", end_value=5).filter(rows(4, 5, 6, 10, 11)) == []
    assert at(memory) == 10


def test_an_expired_position_is_an_error_and_the_job_chooses(memory):
    seed(memory, s={"at": "2024-05-01T10:00:00Z"})
    with Checkpointer("run", memory) as cp:
        with pytest.raises(CursorExpired) as caught:
            cp.incremental("s", "at", oldest_available="2024-05-01T12:30:00+02:00")
        assert (caught.value.key, caught.value.position) == ("s", "2024-05-01T10:00:00Z")
        assert caught.value.oldest == "2024-05-01T12:30:00+02:00"
        edge = cp.incremental("s", "at", oldest_available="2024-05-01T10:00:00Z", lookback=timedelta(days=1))
        assert edge.start_value == "2024-05-01T10:00:00Z"
        edge.detach()
        del cp["s"]
        assert cp.incremental("s", "at", oldest_available="2024-05-02T00:00:00Z").start_value is None


def test_nothing_handed_out_stores_nothing(memory):
    with Checkpointer("run", memory) as cp:
        cp.incremental("s", "at", initial_value=1).filter([])
        assert not cp.commit()
    assert memory.load("run") == {}
    seed(memory, s={"at": 10, "note": "kept"})
    before = memory.load("run")
    with Checkpointer("run", memory) as cp:
        cp.incremental("s", "at", primary_key="id").filter(rows(3))
    assert memory.load("run") == before


def test_rewind_and_reset_are_the_explicit_ways_back(memory, caplog):
    seed(memory, s={"at": 10})
    with Checkpointer("run", memory) as cp, caplog.at_level(logging.INFO, "checkpoint"):
        inc = cp.incremental("s", "at", initial_value=0)
        with pytest.raises(ValueError, match="only goes back"):
            inc.rewind(11, "forwards")
        inc.rewind(5, "bad rows")
        assert inc.start_value == 5
        cp.commit()
        assert stored(memory) == {"at": 5}
        inc.reset("once more")
        assert (inc.start_value, cp["s"]) == (0, {"at": 5})
        cp.commit()
        assert stored(memory) is None
        read(inc, rows(3))
    assert at(memory) == 3
    assert caplog.messages[-2:] == ["'s': rewound: bad rows", "'s': reset: once more"]


def test_an_abandoned_track_holds_a_sorted_position(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        for record in inc.track(rows(1, 2, 3)):
            if record["at"] == 2:
                break
        inc.filter(rows(5))
        cp.commit()
        assert at(memory) == 1
        inc.filter(rows(2, 3, 5, 6))
        cp.commit()
        assert at(memory) == 6


@pytest.mark.parametrize("how", HOWS)
def test_the_position_never_goes_back(memory, how):
    seed(memory, s={"at": 10})
    for order in (None, "asc", "desc"):
        with Checkpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", lookback=5, row_order=order)
            assert feed(inc, how, rows(7)) == rows(7)
        assert at(memory) == 10


@pytest.mark.parametrize("listed", [True, False])
def test_a_track_that_goes_on_holds_the_position_again(memory, listed):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        page = rows(1, 1, 1, 4)
        records = inc.track(page if listed else iter(page))
        assert [next(records), next(records)] == page[:2]
        assert inc.filter(rows(1, 9)) == rows(1, 9)
        assert next(records) == page[2]
        cp.commit()
        assert at(memory) == 1  # the row at 4 is not handed out


@pytest.mark.parametrize("listed", [True, False])
def test_a_row_after_finish_takes_it_back(memory, listed):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at")
        page = rows(5, 4, 3, 2)
        records = inc.track(page if listed else iter(page))
        assert [next(records), next(records)] == page[:2]
        inc.finish()
        assert next(records) == page[2]
        cp.commit()
        assert at(memory) is None
        assert list(records) == page[3:]
    assert at(memory) == 5


@pytest.mark.parametrize("listed", [True, False])
def test_a_row_behind_the_claim_regresses_a_track_too(memory, listed):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        records = inc.track(rows(1, 2, 3) if listed else iter(rows(1, 2, 3)))
        assert [next(records), next(records)] == rows(1, 2)
        assert list(inc.pages([rows(2, 7)])) == [rows(2, 7)]
        cp.commit()
        assert at(memory) == 7
        with pytest.raises(CursorRegressed):
            next(records)


@pytest.mark.parametrize("how", ["filter", "observe", "pages"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_track_beside_others_keeps_memory_of_higher_rows(memory, how, listed):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", primary_key="id")
        page = rows(1, 2, 3, 4, 5)
        records = inc.track(page if listed else iter(page))
        assert [next(records), next(records), next(records)] == page[:3]
        assert feed(inc, how, [row(9, 77)]) == [row(9, 77)]
        assert list(records) == page[3:]
    assert (at(memory), len(stored(memory)["seen"]["rows"])) == (9, 1)
    with Checkpointer("run", memory) as cp:
        assert cp.incremental("s", "at", primary_key="id").filter([row(9, 77)]) == []


def test_of_rows_above_the_ceiling_the_lowest_count_first(memory):
    with freeze_time("2024-05-01T10:00:00Z") as clock, Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        for value in ("2099-01-01T00:00:00Z", "2024-05-01T10:06:00Z"):
            assert inc.observe(row(value))
        cp.commit()
        assert at(memory) is None
        clock.tick(60)
        cp.commit()
        assert at(memory) == "2024-05-01T10:06:00Z"


def test_async_loops_end_where_plain_ones_do(memory):
    seed(memory, s={"at": 5})
    asked = []

    async def source(values):
        for value in values:
            asked.append(value)
            yield value

    async def job():
        async with AsyncCheckpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", row_order="desc")
            assert [record async for record in inc.track(source(rows(9, 7, 4, 3)))] == rows(9, 7)
            assert [page async for page in inc.pages(source([rows(8, 5), rows(4), rows(3)]))] == [rows(8, 5)]
            assert asked == [*rows(9, 7, 4), rows(8, 5), rows(4)]
            tracked = inc.track(source(rows(6, 5)))
            assert await anext(tracked) == row(6)
            inc.finish()
            await cp.commit(inc)
            assert cp["s"] == {"at": 9}
            inc.rewind(5, "once more")
            with pytest.raises(RuntimeError, match="went back"):
                await anext(tracked)

    asyncio.run(job())


# Values


@pytest.mark.parametrize(
    ("values", "highest"),
    [
        ([1, 2.5, Decimal("2.500000000000000000001"), Decimal(-3)], "2.500000000000000000001"),
        ([2**60, float(2**60), 2**60 + 1], 2**60 + 1),
        ([date(2024, 2, 29), date(2023, 12, 31)], "2024-02-29"),
        ([datetime(2024, 1, 1), datetime(2023, 1, 1)], "2024-01-01T00:00:00"),
        (["2024-05-01T10:00:00+02:00", "2024-05-01T09:00:00Z"], "2024-05-01T09:00:00Z"),
        (["2024-05-01T10:00:00.123456789Z", "2024-05-01T10:00:00.12345678Z"], "2024-05-01T10:00:00.123456789Z"),
        (["2024-05-01 10:00:00.5Z", "2024-05-01T10:00Z"], "2024-05-01 10:00:00.5Z"),
        (["a9", "a10", "B"], "a9"),
    ],
)
@pytest.mark.parametrize("how", HOWS)
def test_values_compare_by_meaning_and_store_as_they_came(memory, values, highest, how):
    for batch in (values, values[::-1]):
        store = MemoryStore()
        with Checkpointer("run", store) as cp:
            options = {"cursor_format": "text"} if "a9" in batch else {"timezone": "UTC"}
            feed_whole(cp.incremental("s", "at", **options), how, rows(*batch))
        assert (at(store), type(at(store))) == (highest, type(highest))


def test_naive_against_aware_says_how_to_state_the_zone(cp):
    inc = cp.incremental("s", "at", initial_value=EPOCH)
    with pytest.raises(TypeError, match=r"'s', 'at': .* has no time zone .*timezone='UTC'"):
        inc.filter(rows("2024-05-01T10:00:00"))
    inc = cp.incremental("s", "at", initial_value=EPOCH, timezone="Europe/Berlin")
    assert inc.filter(rows("1970-01-01T00:59:59", "1970-01-01T01:00:00")) == [row("1970-01-01T01:00:00", 1)]
    with pytest.raises(TypeError, match="timezone="):
        cp.incremental("t", "at", initial_value=EPOCH, end_value=datetime(2024, 1, 1))


def test_values_that_do_not_compare_are_named_as_what_they_are(memory):
    seed(memory, s={"at": "2024-05-01"})
    zone = "pass the time zone of the first, such as timezone='UTC' or timezone='Europe/Berlin'"
    with Checkpointer("run", memory) as cp:
        with pytest.raises(TypeError) as caught:
            cp.incremental("s", "at", initial_value=EPOCH)
        assert str(caught.value) == (
            f"'s', 'at': the stored position '2024-05-01' has no time zone and initial_value {EPOCH!r} has one: {zone}"
        )
        with pytest.raises(TypeError) as caught:
            cp.incremental("t", "at", initial_value=EPOCH, end_value="2024-05-01T10:00:00")
        assert str(caught.value) == (
            f"'t', 'at': end_value '2024-05-01T10:00:00' has no time zone and initial_value {EPOCH!r} has one: {zone}"
        )
        with pytest.raises(TypeError) as caught:
            cp.incremental("s", "at", row_order="asc").filter(rows("2024-05-01T10:00:00Z"))
        assert str(caught.value) == (
            "'s', 'at': the stored position '2024-05-01' has no time zone and '2024-05-01T10:00:00Z' has one: " + zone
        )
        with pytest.raises(TypeError) as caught:
            cp.incremental("t", "at", initial_value=5).filter(rows("2024-05-01"))
        assert str(caught.value) == "'t', 'at': '2024-05-01' (str) cannot be compared with initial_value 5 (int)"


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("batch", "shown"),
    [
        ({"id": 1, "at": EPOCH}, "str ('id')"),
        (["id", "at"], "str ('id')"),
        ([(1, EPOCH)], f"tuple ((1, {EPOCH!r}))"),
        ([[row(EPOCH)]], f"list ([{{'at': {EPOCH!r}, 'id': 0}}])"),
        ([None], "NoneType (None)"),
    ],
)
def test_what_is_no_row_is_said_to_be_none(cp, how, warm, batch, shown):
    inc = cp.incremental("s", "at")
    if warm:  # a lane is open, through which none of this passes
        inc.filter(rows("2024-05-01T10:00:00Z"))
    with pytest.raises(TypeError) as caught:
        feed(inc, how, batch)
    assert str(caught.value) == (
        f"'s': a {shown} has no key, column or attribute 'at': pages() takes batches of rows, "
        "filter() one batch, track() rows and observe() one row; for rows of another kind, pass a callable"
    )
    assert inc.stats.seen == warm
    inc.unfinished()


def test_rows_that_are_no_mappings_are_read_by_a_callable(cp):
    inc = cp.incremental("s", lambda row: row[1], initial_value=EPOCH)
    assert inc.filter([(1, EPOCH)]) == [(1, EPOCH)]
    inc = cp.incremental("t", lambda row: row["at"])
    with pytest.raises(TypeError, match="tuple indices must be integers"):
        inc.filter([(1, EPOCH)])


@pytest.mark.parametrize(("initial", "bad"), [(1, EPOCH), (EPOCH, 1), (1.0, date(2024, 1, 1))])
def test_kinds_that_do_not_compare_say_which_and_where(cp, initial, bad):
    inc = cp.incremental("s", "at", initial_value=initial)
    with pytest.raises(TypeError, match="'s', 'at': .* cannot be compared with"):
        inc.observe(row(bad))


def test_start_value_has_the_type_of_initial_value(memory):
    berlin = ZoneInfo("Europe/Berlin")
    for position, initial, expected in (
        (
            "2024-05-01T10:00:00.123456789Z",
            datetime(1970, 1, 1, tzinfo=UTC),
            datetime(2024, 5, 1, 10, 0, 0, 123456, UTC),
        ),
        ("2024-05-01T10:00:00Z", datetime(1970, 1, 1, tzinfo=berlin), datetime(2024, 5, 1, 12, tzinfo=berlin)),
        ("2024-05-01T10:00:00", date(1970, 1, 1), date(2024, 5, 1)),
        ("2024-05-01", date(1970, 1, 1), date(2024, 5, 1)),
        ("12.75", 0, 12),
        ("-12.25", 0, -13),
        ("12.50", Decimal(0), Decimal("12.50")),
        (2**53 + 1, 0.0, float(2**53)),
        ("2024-05-01T10:00:00Z", EPOCH, "2024-05-01T10:00:00Z"),
    ):
        seed(memory, s={"at": position})
        with Checkpointer("run", memory) as cp:
            start = cp.incremental("s", "at", initial_value=initial, row_order="asc").start_value
            assert (start, type(start)) == (expected, type(expected))


def test_a_stored_string_is_read_in_the_type_of_the_rows(memory):
    for position, page, found in (
        ("12.50", [Decimal("12.4"), Decimal("12.6"), 13], 2),
        ("2024-05-01", [date(2024, 4, 30), date(2024, 5, 1)], 1),
        ("2024-05-01T10:00:00+00:00", [datetime(2024, 5, 1, 9, tzinfo=UTC), datetime(2024, 5, 1, 10, tzinfo=UTC)], 1),
        ("12.50", ["12.4", "12.6", "13"], 2),
    ):
        seed(memory, s={"at": position})
        options = {"cursor_format": "number"} if isinstance(page[0], str) else {"timezone": "UTC"}
        with Checkpointer("run", memory) as cp:
            assert len(read(cp.incremental("s", "at", **options), rows(*page))) == found


@pytest.mark.parametrize(
    ("position", "lookback", "start"),
    [
        ("2024-03-01T00:00:00.000000001Z", timedelta(days=1), "2024-02-29T00:00:00.000000001Z"),
        ("2024-01-01T00:30:00+05:30", timedelta(hours=1), "2023-12-31T23:30:00+05:30"),
        ("2024-01-01T00:00Z", timedelta(seconds=1), "2023-12-31T23:59Z"),
        ("2024-01-01 00:00:00.10Z", timedelta(milliseconds=1), "2024-01-01 00:00:00.09Z"),
        ("2024-03-01", timedelta(days=1), "2024-02-29"),
        (10, 2.5, 7),
    ],
)
def test_lookback_keeps_offset_digits_and_z(memory, position, lookback, start):
    seed(memory, s={"at": position})
    with Checkpointer("run", memory) as cp:
        assert cp.incremental("s", "at", lookback=lookback, row_order="asc").start_value == start


# Boundary rows


@pytest.mark.parametrize("primary", ["id", ["id", "org"], ["id", "nested.org"], lambda record: (record["id"],)])
def test_boundary_rows_are_remembered_by_any_primary_key(memory, primary):
    page = [{"id": n, "org": 1, "nested": {"org": 2}, "at": 7} for n in range(3)]
    with Checkpointer("run", memory) as cp:
        assert len(read(cp.incremental("s", "at", primary_key=primary), page)) == 3
    with Checkpointer("run", memory) as cp:
        assert read(cp.incremental("s", "at", primary_key=primary), page) == []


def test_digests_are_stable_across_processes(memory):
    with Checkpointer("run", memory) as cp:
        read(cp.incremental("s", "at", primary_key="id"), [{"at": 1, "id": "x", "set": {"a", "b"}, "big": 2**70}])
    code = (
        "from checkpoint import Checkpointer; from checkpoint.stores.memory import MemoryStore\n"
        "from checkpoint.codec import decode; import json; store = MemoryStore()\n"
        "with Checkpointer('run', store) as cp:\n"
        "    stream = cp.incremental('s', 'at', primary_key='id')\n"
        "    list(stream.pages([[{'big': 2**70, 'set': {'b', 'a'}, 'id': 'x', 'at': 1}]]))\n"
        "print(json.dumps(decode(store.load('run')['s'].value)))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(told.stdout) == stored(memory)


def test_rows_inside_the_lookback_are_remembered_too(memory):
    page = rows(1, 5, 8, 10)
    with Checkpointer("run", memory) as cp:
        read(cp.incremental("s", "at", primary_key="id", lookback=3), page)
    assert len(stored(memory)["seen"]["rows"]) == 2
    late = row(8, 99)
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", primary_key="id", lookback=3)
        assert (inc.start_value, read(inc, [*page, late])) == (7, [late])
    assert len(stored(memory)["seen"]["rows"]) == 3
    with Checkpointer("run", memory) as cp:
        assert read(cp.incremental("s", "at", primary_key="id", lookback=3), [*page, late]) == []


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("initial", "page"),
    [
        (date(2024, 1, 1), ["2024-05-01T10:00:00Z", "2024-05-01T11:00:00Z"]),
        (date(2024, 1, 1), [datetime(2024, 5, 1, 10, tzinfo=UTC), datetime(2024, 5, 1, 11, tzinfo=UTC)]),
        (datetime(2024, 1, 1, tzinfo=UTC), ["2024-05-01T10:00:00.000000000Z", "2024-05-01T10:00:00.000000001Z"]),
        (0, [Decimal("7.1"), Decimal("7.2")]),
    ],
)
def test_rows_that_a_rounded_start_asks_for_again_are_remembered(memory, how, initial, page):
    for expected in (rows(*page), []):
        with Checkpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", primary_key="id", initial_value=initial, timezone="UTC")
            assert feed_whole(inc, how, rows(*page)) == expected


def test_memory_of_another_position_is_ignored(memory):
    with Checkpointer("run", memory) as cp:
        read(cp.incremental("s", "at", primary_key="id"), rows(1, 2))
    cursor = stored(memory)
    seed(memory, s={**cursor, "at": 1})  # moved by hand
    with Checkpointer("run", memory) as cp:
        assert read(cp.incremental("s", "at", primary_key="id"), rows(1, 2)) == rows(1, 2)


@pytest.mark.parametrize("how", HOWS)
def test_past_max_seen_one_warning_and_duplicates(memory, caplog, how):
    page = rows(*[7] * 10)
    for run in range(2):
        with Checkpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", primary_key="id", max_seen=4, row_order="asc")
            assert len(feed(inc, how, page)) == (10 if run == 0 else 6)
            cp.commit()
            cp.commit()
    assert len(stored(memory)["seen"]["rows"]) == 4
    assert caplog.messages[0].startswith("'s': more than 4 rows are at its position")
    assert len(caplog.messages) == 2  # one a run


def test_the_memory_shrinks_when_the_position_moves(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", primary_key="id", row_order="asc")
        inc.filter(rows(*[7] * 10))
        cp.commit()
        assert len(stored(memory)["seen"]["rows"]) == 10
        inc.filter(rows(8))
    assert len(stored(memory)["seen"]["rows"]) == 1


def test_rows_changed_in_place_are_remembered_as_they_came(memory):
    for how in HOWS:
        store = MemoryStore()
        for expected in (2, 0):
            with Checkpointer("run", store) as cp:
                inc = cp.incremental("s", "at", primary_key="id", row_order="asc")
                page = rows(7, 7)
                found = 0
                for record in feed(inc, how, page) if how in ("pages", "filter", "observe") else inc.track(page):
                    record["loaded"] = True
                    found += 1
                assert found == expected


def test_wire_format_is_a_plain_dict(memory):
    with Checkpointer("run", memory) as cp:
        read(cp.incremental("a", "updated_at"), [{"updated_at": "2024-05-01T10:00:00Z"}])
        read(cp.incremental("b", lambda record: record["n"]), [{"n": 5}])
        read(cp.incremental("c", "meta.at"), [{"meta": {"at": 5}}, {"meta.at": 6}])
    assert [stored(memory, key) for key in "abc"] == [
        {"updated_at": "2024-05-01T10:00:00Z"},
        {"cursor": 5},
        {"meta.at": 6},
    ]


# Changes of mind


def test_another_cursor_field_than_stored_is_an_error(memory):
    seed(memory, s={"updated_at": 5})
    with Checkpointer("run", memory) as cp:
        with pytest.raises(ValueError, match="'s' is stored with 'updated_at', not with 'at'"):
            cp.incremental("s", "at")
        cp["s"] = {"at": 5}
        assert cp.incremental("s", "at").start_value == 5


def test_another_primary_key_hands_boundary_rows_out_once_more(memory):
    page = [{"id": n, "uuid": f"u{n}", "at": 7} for n in range(2)]
    for primary, expected in (("id", 2), ("uuid", 2), ("uuid", 0)):
        with Checkpointer("run", memory) as cp:
            assert len(read(cp.incremental("s", "at", primary_key=primary), page)) == expected


def test_a_changed_kind_of_value_is_an_error(memory):
    seed(memory, s={"at": 5})
    with Checkpointer("run", memory) as cp:
        with pytest.raises(TypeError, match="'s', 'at': the stored position 5 "):
            cp.incremental("s", "at", initial_value=EPOCH)
        inc = cp.incremental("s", "at")
        with pytest.raises(TypeError, match="cannot be compared"):
            inc.filter(rows("2024-05-01T10:00:00Z"))


@pytest.mark.parametrize("order", [None, "asc", "desc"])
def test_another_row_order_goes_on_from_the_same_position(memory, order):
    seed(memory, s={"at": 5})
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order=order)
        assert inc.start_value == 5
        found = rows(9, 7, 5) if order == "desc" else rows(5, 7, 9)
        assert read(inc, found) == found
    assert at(memory) == 9


def test_a_primary_key_given_later_and_taken_away_again(memory):
    page = rows(7, 7)
    for primary, expected in ((None, 2), ("id", 2), ("id", 0), (None, 2), ("id", 0)):
        with Checkpointer("run", memory) as cp:
            assert len(read(cp.incremental("s", "at", primary_key=primary), page)) == expected


def test_a_later_lookback_repeats_rows_before_the_position(memory):
    page = rows(5, 8, 10)
    for lookback, expected in ((None, page), (3, page[1:2]), (3, []), (None, [])):
        with Checkpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", primary_key="id", lookback=lookback)
            assert read(inc, [one for one in page if inc.start_value is None or one["at"] >= inc.start_value]) == (
                expected
            )


def test_rewind_and_reset_forget_boundary_rows_and_windows(memory):
    for change in (lambda inc: inc.rewind(10, "bad rows"), lambda inc: inc.reset("bad rows")):
        with Checkpointer("run", memory) as cp:
            read(cp.incremental("s", "at", primary_key="id"), rows(10))
        seed(memory, s={**stored(memory), "windows": [[20, 30]]})
        with Checkpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", primary_key="id", initial_value=0)
            change(inc)
            assert read(inc, rows(10)) == rows(10)
            inc.unfinished()
            cp.commit()
            assert set(stored(memory) or {}) <= {"at", "seen"}
            cp.incremental("s", "at", primary_key="id", initial_value=0).reset("for the next one")


def test_a_rewind_is_what_the_next_windows_begin_at(memory):
    seed(memory, s={"at": 10, "windows": [[20, 30]]})
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0)
        inc.rewind(5, "bad rows")
        assert [(window.start, window.end) for window in inc.windows(10, until=30)] == [(5, 15), (15, 25), (25, 30)]
    assert stored(memory) == {"at": 5}


@pytest.mark.parametrize(
    "bad",
    [
        {"row_order": "up"}, {"range_start": "half"}, {"on_cursor_value_missing": "drop"}, {"max_seen": -1},
        {"lookback": timedelta(-1)}, {"initial_value": True}, {"end_value": float("nan")},
    ],
)  # fmt: skip
def test_bad_arguments(cp, bad):
    with pytest.raises((TypeError, ValueError)):
        cp.incremental("s", "at", **bad)
    assert cp.incremental("s", "at").live


@pytest.mark.parametrize("field", ["", "seen", "windows", 5])
def test_bad_cursor_fields(cp, field):
    with pytest.raises((TypeError, ValueError), match="cursor_field"):
        cp.incremental("s", field)


# With the Checkpointer


def test_an_exception_takes_the_stream_back_and_detaches_it(memory):
    with Checkpointer("run", memory) as cp:
        good = cp.incremental("good", "at", row_order="asc")
        good.filter(rows(1))
        inc = cp.incremental("s", "at", row_order="asc")
        with pytest.raises(KeyError), inc:
            inc.filter(rows(1))
            cp.commit(inc)
            inc.filter(rows(2))
            raise KeyError
        with pytest.raises(RuntimeError, match="'s' is detached"):
            inc.filter(rows(2))
        with pytest.raises(ValueError, match="nor a live stream"):
            cp.commit(inc)
    assert (stored(memory), stored(memory, "good")) == ({"at": 1}, {"at": 1})


def test_leaving_the_run_by_an_exception_claims_nothing(memory):
    with pytest.raises(KeyError), Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        inc.filter(rows(1))
        cp.commit()
        inc.filter(rows(2))
        raise KeyError
    assert at(memory) == 1
    with pytest.raises(RuntimeError):
        inc.filter(rows(2))


def test_a_held_key_reads_as_its_last_claim_and_cannot_be_set(memory):
    seed(memory, s={"at": 1})
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        inc.filter(rows(5))
        assert (cp["s"], cp.changed) == ({"at": 1}, set())
        cp["s"]["at"] = 77  # a copy
        cp.commit_soon()
        assert cp["s"] == {"at": 5}
        for change in (
            lambda: cp.update(s={"at": 9}), lambda: cp.pop("s"), cp.clear, lambda: cp.raw.update(s="x"),
            lambda: cp.raw.pop("s"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="'s' is held by a live stream"):
                change()
    assert stored(memory) == {"at": 5}


def test_opening_again_detaches_the_earlier_one(memory):
    with Checkpointer("run", memory) as cp:
        first = cp.incremental("s", "at", row_order="asc")
        first.filter(rows(5))
        second = cp.incremental("s", "at", row_order="asc")
        assert (first.live, second.live, second.start_value) == (False, True, None)
        with pytest.raises(RuntimeError, match="detached"):
            first.filter(rows(6))
    assert stored(memory) is None


def test_a_stream_starts_from_what_the_job_set(memory):
    seed(memory, s={"at": 1})
    with Checkpointer("run", memory) as cp:
        cp["s"] = cursor = {"at": 3}
        held = cp["s"]
        inc = cp.incremental("s", "at", row_order="asc")
        held["at"] = cursor["at"] = 99
        assert (inc.start_value, cp["s"]) == (3, {"at": 3})
        assert cp.commit().keys == ("s",)
    assert stored(memory) == {"at": 3}
    with Checkpointer("run", memory) as cp:
        del cp["s"]
        assert cp.incremental("s", "at").start_value is None
    assert stored(memory) is None


def test_commit_of_one_stream_leaves_the_others(memory):
    with Checkpointer("run", memory) as cp:
        one, two = (cp.incremental(key, "at", row_order="asc") for key in ("one", "two"))
        one.filter(rows(1))
        two.filter(rows(1))
        assert cp.commit(one).keys == ("one",)
        assert cp.commit("two").keys == ("two",)
        assert not cp.commit(one, two)


def test_commit_soon_claims_at_the_call(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        inc.filter(rows(1))
        cp.commit_soon(inc)
        inc.filter(rows(2))
        cp.flush()
        assert at(memory) == 1


def test_discard_takes_streams_back_to_the_last_claim(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", primary_key="id")
        inc.filter(rows(1, 2))
        cp.commit()
        tracked = inc.track([row(3), row(4)])
        next(tracked)
        cp.discard()
        with pytest.raises(RuntimeError, match="went back"):
            next(tracked)
        assert inc.start_value == 2
        assert inc.filter([row(2, 1), row(3)]) == [row(3)]
    assert at(memory) == 3


@pytest.mark.parametrize("how", HOWS)
def test_discard_forgets_the_row_in_hand(memory, how):
    """A row that was in hand when the stream went back is not remembered as delivered."""
    if how not in ("track", "iter"):
        pytest.skip("no row in hand")
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", primary_key="id")
        tracked = inc.track(rows(1, 2, 2, 2) if how == "track" else iter(rows(1, 2, 2, 2)))
        [next(tracked) for _ in range(3)]
        cp.commit()
        cp.discard()
        with pytest.raises(RuntimeError):
            next(tracked)
        assert inc.filter(rows(1, 2, 2, 2)[1:]) == rows(1, 2, 2, 2)[2:]


def test_after_a_conflict_discard_adopts_what_was_found(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        inc.filter(rows(5))
        seed(memory, s={"at": 3})
        with pytest.raises(Conflict):
            cp.commit()
        inc.filter(rows(6))
        cp.discard()
        assert (cp["s"], inc.start_value) == ({"at": 3}, 3)
        assert inc.filter(rows(2, 4)) == [row(4, 1)]
    assert at(memory) == 4


def test_reload_takes_streams_to_what_is_stored(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        inc.filter(rows(5))
        seed(memory, s={"at": 7})
        cp.reload()
        assert inc.start_value == 7


class Failing(MemoryStore):
    error = None

    def commit(self, state_key, changes, base={}, *, run_id=None):
        if self.error is not None:
            raise self.error
        return super().commit(state_key, changes, base, run_id=run_id)


def test_after_a_failed_commit_the_next_one_sends_the_claim():
    memory = Failing()
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        inc.filter(rows(5))
        memory.error = StoreUnavailable("gone")
        with pytest.raises(StoreUnavailable):
            cp.commit(inc)
        memory.error = None
        assert cp.commit(inc).keys == ("s",)
        assert at(memory) == 5
        inc.filter(rows(6))
        memory.error = StoreUnavailable("gone")
        with pytest.raises(StoreUnavailable):
            cp.commit()
        memory.error = None
        cp.discard()
        assert inc.start_value == 5
    assert at(memory) == 5


def test_a_sink_that_fails_is_retried_with_the_same_page(memory):
    written, failures = [], iter([True, False, False])
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        for page in inc.pages([rows(1, 2), rows(3)]):
            while next(failures):
                pass
            written += page
            cp.commit()
    assert written == [*rows(1, 2), *rows(3)]
    assert at(memory) == 3


def test_corrupt_state_is_no_fresh_start(memory):
    memory.commit("run", {"s": "2024-05-01", "empty": encode({})})
    with Checkpointer("run", memory) as cp:
        with pytest.raises(CorruptState):
            cp.incremental("s", "at")
        with pytest.raises(ValueError, match="stored with no field"):
            cp.incremental("empty", "at")


def test_a_failing_source_leaves_a_sorted_stream_at_its_claim(memory):
    def source():
        yield rows(1, 2)
        raise OSError

    with pytest.raises(OSError), Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        for _ in inc.pages(source()):
            cp.commit()
    assert at(memory) == 2


def test_streams_import_no_store_and_the_package_no_streams():
    code = "import sys, checkpoint; print('checkpoint.streams.incremental' in sys.modules, 'pyarrow' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["False", "False"]


# Rows that pass unjudged get the answers of those that are judged


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("order", [None, "asc"])
@pytest.mark.parametrize("seed_", range(40))
def test_rows_that_pass_get_the_answers_of_judged_ones(monkeypatch, how, order, seed_):
    import random

    rng = random.Random(seed_)
    spell = rng.choice(
        [
            lambda n: (datetime(2024, 5, 1, tzinfo=UTC) + timedelta(seconds=n)).isoformat().replace("+00:00", "Z"),
            lambda n: (datetime(2024, 5, 1, tzinfo=UTC) + timedelta(seconds=n)).isoformat(" "),
            lambda n: f"2024-05-01T{n % 24:02}:00:00{rng.choice(['Z', '+01:00', '-02:00', ''][:3])}",
            lambda n: n, lambda n: n / 4, lambda n: Decimal(n) / 8, lambda n: f"x{n:04}",
            lambda n: n if n % 2 else float(n), lambda n: date(2024, 5, 1) + timedelta(n),
            lambda n: datetime(2024, 5, 1, tzinfo=UTC) + timedelta(seconds=n),
        ]
    )  # fmt: skip
    numbers = [rng.randrange(60) for _ in range(120)]
    if order == "asc":
        numbers.sort()
    page = rows(*map(spell, numbers))
    cursor_format = "text" if page[0]["at"] in [f"x{n:04}" for n in numbers] else None
    if order == "asc":
        scale = Scale("x", None, {}, cursor_format)
        page.sort(key=lambda record: scale.key(record["at"]))
    options = {
        "primary_key": rng.choice([None, "id"]), "row_order": order, "end_value": rng.choice([None, page[-20]["at"]]),
        "initial_value": rng.choice([None, page[9]["at"]]), "cursor_format": cursor_format, "timezone": "UTC",
    }  # fmt: skip
    size = rng.choice([1, 7, 50])
    answers = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(paging, "_passing", lambda *_: None)
            monkeypatch.setattr(Scan, "_open", lambda *_: None)
        store, found = MemoryStore(), []
        for _ in range(2):
            with Checkpointer("run", store) as cp:
                inc = cp.incremental("s", "at", **options)
                for index in range(0, len(page), size):
                    found += feed(inc, how, page[index : index + size])
                    cp.commit()
                found.append((inc.stats, inc.last_value))
            found.append(stored(store))
        answers.append(found)
    assert answers[0] == answers[1]


def test_a_thread_may_import_asyncio_meanwhile(monkeypatch):
    """The module is there before it has its functions."""
    monkeypatch.setitem(sys.modules, "asyncio", ModuleType("asyncio"))
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", row_order="asc")
        assert list(stream.pages([[{"at": 1}]])) == [[{"at": 1}]]


@pytest.mark.parametrize("row_order", ["asc", "desc"])
def test_a_second_commit_of_one_stream_changes_nothing(memory, row_order):
    rows = [{"id": number, "at": at} for number, at in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 3))]
    rows = rows if row_order == "asc" else rows[::-1]
    for lookback in (None, 1):
        with Checkpointer("run", memory) as cp:
            stream = cp.incremental(
                f"{row_order}{lookback}", "at", initial_value=0, primary_key="id", row_order=row_order,
                lookback=lookback, max_seen=4,
            )  # fmt: skip
            with stream:
                for _ in stream.pages([rows]):
                    pass
            assert cp.commit(stream)
            assert not cp.commit(stream)


def test_a_reading_with_a_row_to_come_counts_as_read():
    store = MemoryStore()
    now = datetime.now(timezone.utc)
    with Checkpointer("run", store, record_run=True) as cp:
        stream = cp.incremental("s", "at", initial_value=now - timedelta(days=1), row_order="asc")
        with stream:
            for _ in stream.pages([[{"at": now - timedelta(hours=2)}, {"at": now + timedelta(hours=1)}]]):
                pass
    with Checkpointer("run", store, record_run=False) as cp:
        assert [*cp.runs()[0].read] == ["s"]


@pytest.mark.parametrize(("by", "error"), [(float("inf"), TypeError), (float("nan"), TypeError), ("x", TypeError),
                                           ([], TypeError), ("", TypeError), (True, TypeError)])  # fmt: skip
def test_rewind_judges_how_far_and_why_before_it_goes(memory, by, error):
    with Checkpointer("run", memory) as cp:
        stream = cp.incremental("s", "at", initial_value=0, row_order="asc")
        read(stream, rows(1, 2, 3))
        cp.commit()
        with pytest.raises(error):
            stream.rewind(by=by, reason="why")
        for reason, kind in ((5, TypeError), ("a\0", ValueError), ("\ud800", ValueError)):
            with pytest.raises(kind, match="reason"):
                stream.rewind(1, reason=reason)
            with pytest.raises(kind, match="reason"):
                stream.reset(reason=reason)
        for step in (None, True, float("nan")):
            with pytest.raises(ValueError, match="step must be"):
                stream.windows(step, until=9)
        assert not cp.commit()
