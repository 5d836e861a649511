"""Faults of feeding a stream: ceilings, order, finishing, fetch, who holds rows, and what is told. See README.md."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone

import pytest
from freezegun import freeze_time

from checkpoint import AsyncCheckpointer, Checkpointer, Conflict, CorruptState, CursorRegressed, CursorStuck
from checkpoint.codec import decode, encode
from checkpoint.stores.memory import MemoryStore

NOW = "2024-05-01T10:00:00Z"
UTC = timezone.utc


def rows(*ats, first=0):
    return [{"id": index, "at": at} for index, at in enumerate(ats, first)]


def stored(store, key="s"):
    entry = store.load("run").get(key)
    return None if entry is None else decode(entry.value)


def read(feeding, *batches):
    return [record for page in feeding.pages(batches) for record in page]


def events(caplog, level=logging.WARNING):
    return [
        record.checkpoint_event for record in caplog.records if record.levelno >= level and record.name == "checkpoint"
    ]


@pytest.fixture
def memory():
    return MemoryStore()


# Ceilings


@pytest.mark.parametrize("order", ["asc", "desc", None])
@pytest.mark.parametrize(
    ("near", "far", "options"),
    [
        ("2024-04-30T10:00:00", "2099-01-01T00:00:00", {}),
        ("2024-04-30", "9999-12-31", {}),
        (date(2024, 4, 30), date(2099, 1, 1), {}),
        (datetime(2024, 4, 30), datetime(9999, 12, 31), {}),
        (1714471200, 4070908800, {"cursor_format": "epoch_s"}),
        ("2024-04-30T10:00:00Z", "2099-01-01T00:00:00Z", {}),
    ],
)
def test_fault_56_a_far_future_row_is_never_the_position(memory, order, near, far, options):
    options = {**options, "row_order": order, "primary_key": "id"}
    if order is None:
        options["timezone"] = "UTC"
    page = rows(near, far)
    with freeze_time(NOW), Checkpointer("run", memory) as cp:
        assert read(cp.incremental("s", "at", **options), page[::-1] if order == "desc" else page)
    assert stored(memory)["at"] == (near.isoformat() if hasattr(near, "isoformat") else near)
    with freeze_time(NOW), Checkpointer("run", memory) as cp:  # it does not come twice
        assert read(cp.incremental("s", "at", **options), page[::-1] if order == "desc" else page) == []
        changed = {**page[1], "name": "new"}
        assert read(cp.incremental("s", "at", **options), [changed]) == [changed]


def test_fault_56_rows_above_the_ceiling_alone_come_once(memory):
    page = rows("2099-01-01T00:00:00Z")
    for expected in (page, []):
        with freeze_time(NOW), Checkpointer("run", memory) as cp:
            assert read(cp.incremental("s", "at", primary_key="id"), page) == expected
    assert "at" not in stored(memory)


@pytest.mark.parametrize("value", ["2024-05-01T09:00:00", "2024-04-30", date(2024, 4, 30), datetime(2024, 4, 30)])
def test_fault_55_unsorted_without_a_zone_is_refused(memory, value):
    with freeze_time(NOW), Checkpointer("run", memory) as cp:
        for use in (
            lambda: cp.incremental("s", "at", initial_value=value),
            lambda: cp.incremental("s", "at").filter(rows(value)),
        ):
            with pytest.raises(ValueError, match="timezone='UTC'"):
                use()
        assert read(cp.incremental("s", "at", end_value=value, row_order=None), rows(value)) == []
        assert read(cp.incremental("s", "at", timezone="UTC"), rows(value)) == rows(value)


@pytest.mark.parametrize(
    ("start", "until", "options"),
    [
        ("2024-04-01T00:00:00Z", "2024-05-02T00:00:00Z", {}),
        ("2024-04-01", "2024-05-02", {"timezone": "UTC"}),
        ("2024-04-01T00:00:00", "2024-05-01T10:02:00", {"timezone": "UTC"}),
        (1711929600, 1714644000, {"cursor_format": "epoch_s"}),
    ],
)
def test_fault_57_windows_end_in_the_past(memory, start, until, options):
    with freeze_time(NOW), Checkpointer("run", memory) as cp:
        step = timedelta(days=1)
        with pytest.raises(ValueError, match="in the future"):
            cp.incremental("s", "at", initial_value=start, **options).windows(step, until=until)
    with freeze_time("2024-06-01"), Checkpointer("run", memory) as cp:
        assert list(cp.incremental("s", "at", initial_value=start, **options).windows(step, until=until))


def test_fault_57_windows_of_a_clock_that_nobody_named(memory):
    with Checkpointer("run", memory) as cp, pytest.raises(ValueError, match="timezone='UTC'"):
        cp.incremental("s", "at", initial_value="2024-01-01", row_order="asc").windows(timedelta(1), until="2024-02-01")


def test_fault_58_a_client_whose_clock_is_ahead_loses_nothing(memory):
    def at(second):
        return (datetime(2024, 5, 1, 10, tzinfo=UTC) + timedelta(seconds=second)).isoformat()

    changed = {"id": 1, "at": at(5)}
    with freeze_time("2024-05-01T10:00:20Z"), Checkpointer("run", memory) as cp:  # the source's clock says 10:00:00
        inc = cp.incremental("s", "at", primary_key="id")
        before = {"id": 0, "at": at(-3600)}
        # Row 1 changes after it was read, and row 2 a little later, before it is.
        assert len(read(inc, [before, {"id": 1, "at": at(-20)}], [{"id": 2, "at": at(10)}])) == 3
    with freeze_time("2024-05-01T11:00:00Z"), Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", primary_key="id")
        assert read(inc, [before, changed, {"id": 2, "at": at(10)}]) == [changed]


# Order


@pytest.mark.parametrize("how", ["pages", "track", "fetch"])
@pytest.mark.parametrize("ats", [(20, 19, 2, 18), (1, 2, 3)])
def test_fault_60_newest_first_that_is_not_is_regressed(memory, how, ats):
    memory.commit("run", {"s": encode({"at": 0})})
    page = rows(*ats)
    with pytest.raises(CursorRegressed, match="did not move"), Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="desc")
        if how == "pages":
            list(inc.pages([page[:2], page[2:]]))
        elif how == "track":
            list(inc.track(page))
        else:
            list(inc.fetch(lambda at: (page[:2], 1) if at is None else (page[2:], None)))
    assert stored(memory) == {"at": 0}


def test_fault_60_an_offset_that_moved_on_is_read(memory):
    pages = [[{"id": n, "at": n} for n in ats] for ats in ((9, 8, 7), (8, 7, 6), (6, 5))]
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="desc", primary_key="id")
        assert [record["at"] for record in read(inc, *pages)] == [9, 8, 7, 6, 5]
        assert inc.stats.dropped == 3
    assert stored(memory)["at"] == 9


@pytest.mark.parametrize("how", ["pages", "track", "fetch"])
def test_fault_61_out_of_order_across_pages_is_regressed(memory, how):
    page = rows(1, 5, 3)
    with pytest.raises(CursorRegressed) as caught, Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        if how == "pages":
            list(inc.pages([page[:2], page[2:]]))
        elif how == "track":
            list(inc.track(page))
        else:
            list(inc.fetch(lambda at: (page[:2], 1) if at is None else (page[2:], None)))
    assert (caught.value.last, caught.value.new) == (5, 3)


def test_fault_62_following_the_text_loses_nothing(memory):
    source = rows(1, 5, 3, 7)
    sink = []
    text = r"3 came after 5.*rewind to 3 or earlier"
    with pytest.raises(CursorRegressed, match=text) as caught, Checkpointer("run", memory) as cp:
        for page in cp.incremental("s", "at", row_order="asc").pages([source[:2], source[2:]]):
            sink += page
            cp.commit()
    assert stored(memory) == {"at": 5}
    with Checkpointer("run", memory) as cp:
        cp.incremental("s", "at", row_order="asc").rewind(caught.value.new, "as the error says")
    with Checkpointer("run", memory) as cp:
        sink += read(cp.incremental("s", "at"), source)
    assert {record["at"] for record in sink} == {1, 3, 5, 7}


# Finishing


@pytest.mark.parametrize("order", [None, "desc"])
@pytest.mark.parametrize("how", ["filter", "observe"])
def test_fault_63_what_a_break_may_have_cut_is_not_finished(memory, caplog, order, how):
    with Checkpointer("run", memory) as cp, cp.incremental("s", "at", row_order=order) as inc:
        for record in rows(3, 2, 1):
            inc.filter([record]) if how == "filter" else inc.observe(record)
            break
    assert stored(memory) is None
    assert events(caplog) == ["unfinished"]
    assert "call finish()" in caplog.text


def test_fault_63_a_window_that_was_not_fed_is_not_finished(memory, caplog):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", initial_value=0)
        for window in inc.windows(5, until=10):
            with window:
                continue
    assert stored(memory) is None
    assert events(caplog) == ["unfinished"]
    with Checkpointer("run", memory) as cp:
        first, second = cp.incremental("s", "at", initial_value=0).windows(5, until=10)
        with first:
            read(first)  # exhausted, and without rows
        second.finish()  # read elsewhere
    assert stored(memory) == {"at": 10}


def test_fault_63_a_window_is_finished_by_other_machines(memory):
    with Checkpointer("run", memory) as cp, ThreadPoolExecutor(3) as pool:
        inc = cp.incremental("s", "at", initial_value=0)
        jobs = {pool.submit(range, window.start, window.end): window for window in inc.windows(10, until=100)}
        for job, window in jobs.items():
            job.result()
            window.finish()
            cp.commit(inc)
        assert stored(memory) == {"at": 100}
    with pytest.raises(RuntimeError):
        window.finish()


# fetch


def asked_again(source, size):
    def page(since):
        found = [record for record in source if since is None or record["at"] >= since][:size]
        return found, found[-1]["at"] if len(found) == size else None

    return page


@pytest.mark.parametrize("size", [2, 3])
def test_fault_64_a_tie_as_large_as_a_page_is_stuck(memory, size):
    source = rows(1, 2, 2, 2, 2, 3)
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", primary_key="id")
        with pytest.raises(CursorStuck) as caught:
            list(inc.fetch(asked_again(source, size)))
        assert (caught.value.key, caught.value.at) == ("s", 2)
        unkeyed = cp.incremental("t", "at", row_order="asc")
        with pytest.raises(CursorStuck):
            list(unkeyed.fetch(asked_again(source, size)))


@pytest.mark.parametrize("rows_of", [rows(), rows(1, 2)], ids=["nothing", "old rows"])
@pytest.mark.parametrize("circle", [["a"], ["a", "b"], ["a", "b", "c"]], ids=len)
def test_fault_64_pages_that_lead_in_a_circle_are_stuck(memory, rows_of, circle):
    """Such as those of a filter that counts seconds, asked from a second before the last row's time."""
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", primary_key="id")
        asked = []

        def page(at):
            asked.append(at)
            assert len(asked) < 20
            return rows_of, following.get(at, "a")

        with pytest.raises(CursorStuck):
            list(inc.fetch(page))
        assert len(asked) <= 1 + 2 * len(circle)


def test_fault_64_a_place_may_come_again_after_new_rows(memory):
    """A queue that is asked for more in the same way each time."""
    source = [rows(1, 2), [], rows(3), [], rows(4), []]
    places = ["a", "b", "a", "b", "a", None]
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        pages = zip(source, places, strict=True)
        assert [row["at"] for page in inc.fetch(lambda at: next(pages)) for row in page] == [1, 2, 3, 4]


@pytest.mark.parametrize("after", ["last page", "reading", "end"])
@pytest.mark.parametrize("order", [None, "desc"])
def test_fault_63_a_run_that_fails_after_its_last_page(memory, order, after):
    """It repeats at most that page: another stream may fail, and an unsorted position moves at the end alone."""
    source, asked = rows(*range(1, 31))[:: -1 if order else 1], []

    def page(at):
        asked.append(at)
        at = at or 0
        return source[at : at + 10], at + 10 if at < 20 else None

    def sync():
        with Checkpointer("job", memory) as cp:
            found = []
            stream = cp.incremental("s", "at", initial_value=0, row_order=order)
            for some in stream.fetch(page):
                found += some
                cp.commit()
            if after != "last page":
                cp.commit()
            if after != "end" and not failed:
                failed.append(1)
                raise ZeroDivisionError
        return found

    failed = []
    if after != "end":
        with pytest.raises(ZeroDivisionError):
            sync()
        assert (asked, memory.load("job")["s"] is not None) == ([None, 10, 20], True)
        asked.clear()
        assert sync() == source[20:]
        assert asked == [20]
        asked.clear()
    else:
        assert sync() == source
        asked.clear()
    sync()
    assert asked[0] is None
    assert "resume" not in decode(memory.load("job")["s"].value)


def test_fault_64_page_and_place_travel_together(memory):
    """A fetch that is killed goes on where its last committed page ended, and asks for no page before it."""
    source, sink, asked = rows(*range(20)), [], []

    def page(at):
        asked.append(at)
        first = at or 0
        return source[first : first + 3], first + 3 if first + 3 < 20 else None

    for _ in range(20):
        try:
            with Checkpointer("run", memory) as cp:
                for index, found in enumerate(cp.incremental("s", "at", primary_key="id").fetch(page)):
                    if index == 2:
                        raise OSError
                    sink += found
                    cp.commit()
                break
        except OSError:
            pass
    assert [record["id"] for record in sink] == list(range(20))
    assert len(asked) == 7 + 3
    assert (stored(memory)["at"], "resume" in stored(memory)) == (19, False)


@pytest.mark.parametrize("change", [{"initial_value": 1}, {"end_value": 99}])
def test_fault_64_a_place_of_another_range_is_not_used(memory, caplog, change):
    def page(at):
        return rows(*range(3, 6)), 7 if at is None else None

    with pytest.raises(OSError), Checkpointer("run", memory) as cp:
        for _ in cp.incremental("s", "at", initial_value=0).fetch(page):
            cp.commit()
            raise OSError
    assert stored(memory)["resume"]["at"] == 7
    caplog.clear()
    asked = []
    with Checkpointer("run", memory) as cp:
        list(
            cp.incremental("s", "at", **{"initial_value": 0, **change}).fetch(
                lambda at: (asked.append(at), ([], None))[1]
            )
        )
    assert asked == [None]
    assert "resume_dropped" in events(caplog)


ASKED = {
    "number": (lambda n: n, {"initial_value": 0}),
    "nothing": (lambda n: n, {}),
    "text": (lambda n: f"2024-05-01T10:00:{n:02}Z", {"initial_value": "2024-05-01T00:00:00Z"}),
    "time": (lambda n: datetime(2024, 5, 1, 10, 0, n, tzinfo=UTC), {"initial_value": datetime(2024, 5, 1, tzinfo=UTC)}),
    "epoch": (
        lambda n: 1_714_557_600_000 + n,
        {"initial_value": datetime(2024, 5, 1, tzinfo=UTC), "cursor_format": "epoch_ms"},
    ),
    "open": (lambda n: n, {"initial_value": -1, "range_start": "open"}),
}


def bound_to_its_question(source, asked, kind):
    """Return what pages a source by places that are worth nothing beside another start: offsets, or tokens."""

    def answer(at, start):
        first, question = (0, str(start)) if at is None else at
        if kind == "token" and question != str(start):
            raise ValueError("400: page_token belongs to another query")
        asked.append((first, start))
        found = [row for row in source if start is None or row["at"] >= start][first:]
        return found[:3], [first + 3, question] if len(found) > 3 else None

    return answer


@pytest.mark.parametrize("values", ASKED)
@pytest.mark.parametrize("kind", ["offset", "token"])
@pytest.mark.parametrize("early", [False, True])
def test_fault_64_a_place_goes_with_its_own_question(memory, caplog, values, kind, early):
    """Of an ascending stream the position moves on; the place counts rows of the question that it began with."""
    spell, options = ASKED[values]
    source = [{"id": index, "at": spell(index // 2)} for index in range(40)]
    sink, asked = [], []
    answer = bound_to_its_question(source, asked, kind)
    for _ in range(40):
        try:
            with Checkpointer("run", memory) as cp:
                inc = cp.incremental("s", "at", row_order="asc", primary_key="id", **options)
                start = inc.start_value
                pages = inc.fetch(lambda at, start=start, inc=inc: answer(at, start if early else inc.start_value))
                for index, found in enumerate(pages):
                    if index == 2:
                        raise OSError
                    sink += [record["id"] for record in found]
                    cp.commit()
                assert inc.stats.late == 0
                break
        except OSError:
            pass
    assert sink == [record["id"] for record in source]
    assert len(asked) <= 14 + 7
    assert events(caplog) == []
    assert "resume" not in stored(memory)
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", primary_key="id", **options)
        assert str(inc.start_value) == str(source[-1]["at"]) or values == "time"
        assert list(inc.pages([source[-2:]])) == []


def test_fault_64_a_place_in_a_repeated_hour_is_not_used(memory):
    """Rows of the hour's second pass came behind it, and the reading goes on after that hour."""
    place = {"at": "page 9", "field": "at", "start": "2024-10-27T01:00:00", "high": "2024-10-27T02:40:00"}
    memory.commit("run", {"s": encode({"at": "2024-10-27T02:40:00", "resume": place})})
    asked = []
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", timezone="Europe/Berlin")
        assert inc.start_value == "2024-10-27T02:00:00"
        list(inc.fetch(lambda at: (asked.append(at), ([], None))[1]))
    assert asked == [None]


def test_rows_of_the_question_of_a_place_are_known(memory, caplog):
    """A job that reads a stored ascending question again gets none of its rows twice, and forgets the place."""
    place = {"at": 3, "field": "at", "start": 10, "high": 14}
    memory.commit("run", {"s": encode({"at": 14, "resume": place})})
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", initial_value=0)
        assert inc.start_value == 10
        assert [w.start for w in inc.windows(5, until=20)] == [14, 19]
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", initial_value=0)
        assert read(inc, rows(8, 10, 13)) == []
        assert (inc.stats.seen, inc.stats.dropped, inc.stats.late) == (3, 3, 1)
    assert stored(memory) == {"at": 14}
    assert events(caplog) == []
    memory.commit("run", {"s": encode({"at": 14, "resume": place})})
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc", end_value=99)
        assert inc.start_value == 14
        inc.rewind(by=0, reason="the place is refused")
        assert inc.start_value == 14


def test_a_resumed_run_says_so(memory, caplog):
    """Members of a group are told of together, at the end; another range is told of in the same way."""
    caplog.set_level(logging.INFO, "checkpoint")

    def page(at):
        return rows(*range(3)), 7 if at is None else None

    def run(keys, group, stop=False, **options):
        caplog.clear()
        with Checkpointer("run", memory) as cp:
            for key in keys:
                for _ in cp.incremental(key, "at", group=group, **options).fetch(page):
                    cp.commit()
                    if stop:
                        break
        found = [record for record in caplog.records if record.name == "checkpoint"]
        return [
            (record.checkpoint_event, record.checkpoint_stream, record.levelname, record.getMessage())
            for record in found
            if getattr(record, "checkpoint_event", "") in ("resumed", "resume_dropped")
        ]

    assert run("s", None, stop=True) == []
    goes_on = "continues where an earlier fetch() was interrupted"
    assert run("s", None) == [("resumed", "s", "INFO", f"'s': {goes_on}")]
    assert run("abc", "g", stop=True) == []
    assert run("ab", "g") == [("resumed", "g", "INFO", f"'g': {goes_on} (2 of 2 members: 'a', 'b')")]
    [dropped] = run("cd", "g", end_value=99)
    assert dropped[:3] == ("resume_dropped", "g", "WARNING")
    assert "another end_value" in dropped[3]
    assert dropped[3].endswith("(1 of 2 members: 'c')")


def test_a_tie_past_max_seen_is_told_once_for_a_group(memory, caplog):
    with Checkpointer("run", memory) as cp:
        for key in "abc":
            read(cp.incremental(key, "at", row_order="asc", primary_key="id", max_seen=2, group="g"), rows(1, 1, 1))
        cp.commit()
        cp.commit()
    assert events(caplog) == ["many_at_once"]
    assert "more than 2 rows" in caplog.text
    assert "(3 of 3 members" in caplog.text


JUDGED = [
    ({"row_order": "up"}, "row_order"), ({"range_start": "ajar"}, "range_start"), ({"max_seen": -1}, "max_seen"),
    ({"on_cursor_value_missing": 1}, "on_cursor_value_missing"), ({"primary_key": 3}, "primary_key"),
    ({"lookback": "1h"}, "lookback"), ({"version_fields": "etag"}, "version_fields"),
    ({"timezone": "Mars/Base"}, "timezone"), ({"timezone": 3}, "timezone"),
    ({"cursor_format": "nope"}, "cursor_format"), ({"cursor_format": 5}, "cursor_format"),
    ({"cursor_format": "%d"}, "cursor_format"),
    ({"initial_value": "1.2.2024"}, "initial_value"), ({"initial_value": True}, "initial_value"),
    ({"initial_value": float("nan")}, "initial_value"), ({"initial_value": [1]}, "initial_value"),
    ({"initial_value": 5, "cursor_format": "text"}, "initial_value"),
    ({"initial_value": 5, "end_value": "x", "cursor_format": "number"}, "end_value"),
    ({"oldest_available": "q", "cursor_format": "number"}, "oldest_available"),
    ({"initial_value": "2024-05-01", "cursor_format": "%d.%m.%Y"}, "initial_value"),
    ({"initial_value": datetime(2024, 5, 1), "cursor_format": "epoch_s"}, "initial_value"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "argument"), JUDGED)
def test_an_argument_that_is_wrong_is_named_at_opening(memory, options, argument):
    with Checkpointer("run", memory) as cp:
        with pytest.raises((TypeError, ValueError)) as caught:
            cp.incremental("deals", "at", **options)
        assert "'deals'" in str(caught.value)
        assert argument in str(caught.value)
    assert memory.load("run") == {}


@pytest.mark.parametrize("argument", ["initial_value", "end_value", "oldest_available"])
@pytest.mark.parametrize("unit", ["epoch_s", "epoch_ms", "epoch_us", "epoch_ns"])
def test_iso_text_beside_an_epoch_is_told_how_to_write(memory, argument, unit):
    with Checkpointer("run", memory) as cp, pytest.raises(ValueError, match=argument) as caught:
        cp.incremental("deals", "at", cursor_format=unit, **{argument: "1970-01-01T00:00:00Z"})
    assert f"write {argument}='0' or an aware datetime" in str(caught.value)


@pytest.mark.parametrize("order", [None, "desc"])
@pytest.mark.parametrize("options", [{}, {"lookback": 2}, {"version_fields": ["id"]}])
def test_rows_at_the_top_of_an_interrupted_reading_stay_known(memory, order, options):
    """Once it is completed they are at the position, and do not come again."""
    source = rows(1, 2, 3, 4, 5, 5, 6, 6)
    source.sort(key=lambda record: record["at"], reverse=order == "desc")
    if order is None:
        source = source[4:] + source[:4]
    sink = []

    def page(at):
        first = at or 0
        return source[first : first + 2], first + 2 if first + 2 < len(source) else None

    for kill in (1, 1, 1, 99, 99):
        try:
            with Checkpointer("run", memory) as cp:
                inc = cp.incremental("s", "at", primary_key="id", row_order=order, cursor_format="number", **options)
                for index, found in enumerate(inc.fetch(page)):
                    sink += [record["id"] for record in found]
                    cp.commit()
                    if index + 1 == kill:
                        raise OSError
        except OSError:
            pass
    assert sorted(sink) == list(range(8))
    assert stored(memory)["at"] == 6


@pytest.mark.parametrize("order", ["asc", None, "desc"])
def test_a_fetch_without_rows_commits_beside_a_stored_decimal(memory, order):
    """Text that is a number is a Decimal of ours, where no row came that would say so."""
    place = {"at": 1, "field": "at", "start": "10", "high": "12"}
    for cursor, at in (({"at": "10"}, "10"), ({"at": "10", "resume": place}, "12")):
        store = MemoryStore()
        store.commit("run", {"s": encode(cursor)})
        with Checkpointer("run", store) as cp:
            assert list(cp.incremental("s", "at", row_order=order, primary_key="id").fetch(lambda _: ([], None))) == []
        assert stored(store) == {"at": at}


def test_rewinding_by_nothing_forgets_the_question_too(memory):
    place = {"at": 3, "field": "at", "start": 10, "high": 14}
    memory.commit("run", {"s": encode({"at": 14, "resume": place})})
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        inc.rewind(by=0, reason="the source refuses it")
        assert inc.start_value == 14
    assert stored(memory) == {"at": 14}


def test_a_rewind_by_nothing_forgets_only_the_place(memory):
    memory.commit("run", {"s": encode({"at": 5, "resume": {"at": "t", "field": "at", "start": 5, "high": 9}})})
    for by in (0, timedelta(0)):
        asked = []
        with Checkpointer("run", memory) as cp:
            inc = cp.incremental("s", "at")
            inc.rewind(by=by, reason="the token has expired")
            list(inc.fetch(lambda at, asked=asked: (asked.append(at), ([], None))[1]))
        assert asked == [None]
        assert stored(memory) == {"at": 5}
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at")
        inc.rewind(by=2, reason="again")
        assert inc.start_value == 3
        with pytest.raises(ValueError, match="only goes back"):
            inc.rewind(by=-1, reason="forwards")
        inc.unfinished()
    assert stored(memory) == {"at": 3}


def test_a_resumed_newest_first_reading_ends_at_its_first_top(memory):
    """Rows that came on top while it was interrupted come with the next run, and none is lost."""
    source, sink = list(range(1, 10)), set()

    def page(offset):
        newest = sorted(source, reverse=True)
        found = newest[offset or 0 : (offset or 0) + 3]
        return [{"id": n, "at": n} for n in found], (offset or 0) + 3 if found else None

    for run in range(12):
        try:
            with Checkpointer("run", memory) as cp:
                for index, found in enumerate(
                    cp.incremental("s", "at", primary_key="id", row_order="desc").fetch(page)
                ):
                    sink |= {record["id"] for record in found}
                    cp.commit()
                    if index == 1 and run < 6:
                        raise OSError
        except OSError:
            source += range(max(source) + 1, max(source) + 5)
    assert sink == set(source)
    assert stored(memory)["at"] == max(source)


def test_a_cursor_that_moves_to_the_top_costs_a_run_and_no_row(memory):
    """Newest first, after the id of the last row: that row changes, and another one just before it."""
    table, sink, regressed = {number: number for number in range(1, 10)}, {}, 0

    def page(after):
        newest = sorted(((at, number) for number, at in table.items()), reverse=True)
        first = 0 if after is None else [number for _, number in newest].index(after) + 1
        found = [{"id": number, "at": at} for at, number in newest[first : first + 3]]
        return found, found[-1]["id"] if first + 3 < len(newest) else None

    for _ in range(4):
        try:
            with Checkpointer("run", memory) as cp:
                for found in cp.incremental("s", "at", primary_key="id", row_order="desc").fetch(page):
                    sink |= {record["id"]: record["at"] for record in found}
                    cp.commit()
                    if table[7] == 7:
                        table |= {2: 10, 7: 11}
        except CursorRegressed:
            regressed += 1
    assert sink == table
    assert regressed == 1
    assert stored(memory)["at"] == 11


def test_more_new_rows_than_a_page_meanwhile_are_not_lost(memory):
    source, sink = list(range(1, 10)), set()

    def page(offset):
        found = sorted(source, reverse=True)[offset or 0 : (offset or 0) + 3]
        return [{"id": n, "at": n} for n in found], (offset or 0) + 3 if found else None

    for run in range(3):
        try:
            with Checkpointer("run", memory) as cp:
                for found in cp.incremental("s", "at", primary_key="id", row_order="desc").fetch(page):
                    sink |= {record["id"] for record in found}
                    cp.commit()
                    if run == 0:
                        raise OSError
        except OSError:
            source += range(10, 22)  # the page that it goes on with begins among these
    assert sink == set(source)


def test_a_coroutine_function_gives_an_async_iterator(memory):
    async def page(at):
        await asyncio.sleep(0)
        return rows(at or 0, (at or 0) + 1), (at or 0) + 2 if (at or 0) < 4 else None

    async def job():
        async with AsyncCheckpointer("run", memory) as cp:
            inc = cp.incremental("s", "at")
            found = []
            async for page_ in inc.fetch(page):
                found += page_
                await cp.commit()
            return found

    assert [record["at"] for record in asyncio.run(job())] == list(range(6))
    assert stored(memory) == {"at": 5}


@pytest.mark.parametrize("answer", [None, [], ([],), ([], {1, 2}), ([], float("nan"))])
def test_what_page_must_not_return(memory, answer):
    with Checkpointer("run", memory) as cp, pytest.raises((TypeError, ValueError), match="'s'"):
        list(cp.incremental("s", "at").fetch(lambda _: answer))


@pytest.mark.parametrize("seed", range(60))
def test_fetch_over_changing_sources_misses_nothing(seed):
    """A small model: three kinds of source, rows that change and arrive while they are read, and crashes."""
    rng = random.Random(seed)
    memory, sink, table = MemoryStore(), set(), {}
    clock = 1_000
    kind = rng.choice(["ask again", "newest", "keyset"])  # in no order, numbers have no clock: see the worlds
    order = "desc" if kind == "newest" else "asc"

    def touch(count):
        nonlocal clock
        for _ in range(count):
            clock += 1
            table[rng.randrange(30)] = clock

    def page(at):
        touch(rng.choice([0, 0, 1, 2]))
        known = sorted((value, key) for key, value in table.items())
        start = inc.start_value or 0
        if kind == "ask again":
            found = [one for one in known if one[0] >= (at or start)][:4]
            place = found[-1][0] if len(found) == 4 else None
        elif kind == "keyset":
            found = [one for one in known if (list(one) > at if at else one[0] >= start)][:4]
            place = list(found[-1]) if len(found) == 4 else None
        else:
            found = [one for one in known[::-1] if one[0] >= start and (at is None or one[0] <= at)][:4]
            place = found[-1][0] if len(found) == 4 else None
        return [{"id": key, "at": value} for value, key in found], place

    touch(25)
    for run in range(40):
        try:
            with Checkpointer("run", memory) as cp:
                inc = cp.incremental("s", "at", primary_key="id", row_order=order)
                for index, found in enumerate(inc.fetch(page)):
                    sink |= {(record["id"], record["at"]) for record in found}
                    if rng.random() < 0.8:
                        cp.commit()
                    if run < 30 and index == rng.randrange(4):
                        raise OSError
        except OSError:
            pass
    assert {*table.items()} <= sink


# Stored state, and streams after their run


@pytest.mark.parametrize(
    "cursor",
    [
        {"at": 1, "windows": 5}, {"at": 1, "windows": [[1]]}, {"at": 1, "windows": [[1, None]]}, {"at": None},
        {"at": [1]}, {"at": {}}, {"at": "NaN"}, {"at": ""}, {"at": True}, {"at": 1, "seen": 3},
        {"at": 1, "seen": {"at": 1, "rows": [3]}}, {"at": 1, "seen": {"at": 1, "rows": [], "ahead": {"rows": []}}},
        {"at": 1, "resume": 5}, {"at": 1, "resume": {"at": None, "field": "at"}},
        {"at": 1, "resume": {"at": 3, "field": "at", "start": [1]}},
    ],
)  # fmt: skip
def test_fault_72_state_of_a_wrong_shape_is_corrupt_at_opening(memory, cursor):
    memory.commit("run", {"s": encode(cursor)})
    before = memory.load("run")
    with Checkpointer("run", memory) as cp, pytest.raises(CorruptState, match="'s'"):
        cp.incremental("s", "at")
    assert memory.load("run") == before


def test_fault_73_a_stream_used_after_its_run_is_refused(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        cut = cp.incremental("w", "at", initial_value=0)
        inc.filter(rows(1, 2))
        records = inc.track(rows(3))
        [window] = cut.windows(5, until=5)
    for use in (
        lambda: inc.filter(rows(3)), lambda: inc.observe(rows(3)[0]), lambda: list(inc.pages([rows(3)])),
        lambda: list(inc.track(rows(3))), lambda: next(records), lambda: list(inc.fetch(lambda _: ([], None))),
        inc.finish, lambda: inc.rewind(0, "x"), window.__enter__, window.finish, lambda: window.filter(rows(1)),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            use()
    assert (inc.stats.delivered, inc.last_value, inc.start_value, inc.end_value) == (2, 2, None, None)


# Who holds a reading


def test_fault_75_a_commit_claims_what_its_caller_holds(memory):
    """The consumer of a queue commits while the thread that fills it has a page in hand."""
    filled, drained = threading.Event(), threading.Event()
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")

        def fill():
            for _ in inc.pages([rows(1, 2), rows(3)]):
                filled.set()
                drained.wait()

        thread = threading.Thread(target=fill)
        thread.start()
        filled.wait()
        cp.commit()
        cp.commit_soon()
        cp.flush()
        assert stored(memory) is None
        for name in (inc, "s"):
            with pytest.raises(RuntimeError, match="read ahead"):
                cp.commit(name)
        drained.set()
        thread.join()
        cp.commit(inc)  # a finished job's stream may be committed by anybody
        assert stored(memory) == {"at": 3}


def test_fault_75_rows_held_elsewhere_at_the_end_are_told(memory, caplog):
    taken, over = threading.Event(), threading.Event()

    def work():
        next(iter(inc.pages([rows(1), rows(2)])))
        pages.append(inc.pages([rows(1), rows(2)]))
        next(pages[0])
        taken.set()
        over.wait()

    pages = []
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        thread = threading.Thread(target=work)
        thread.start()
        taken.wait()
    over.set()
    thread.join()
    assert stored(memory) is None
    assert events(caplog) == ["held_elsewhere"]


def interrupting(at, looks=1):
    """Return a primary key during which a signal comes, at so many looks at the row with this cursor value."""
    left = looks

    def key(row):
        nonlocal left
        left -= row["at"] == at
        if not left:
            left = -1
            raise KeyboardInterrupt
        return row["id"]

    return key


@pytest.mark.parametrize("feed", ["pages", "filter", "fetch"])
def test_fault_95_rows_not_handed_out_are_not_claimed(memory, caplog, feed):
    """An exception of a signal handler may come after rows were covered and before the job has them."""
    feeds = {
        "pages": lambda batch: list(inc.pages([batch])),
        "filter": lambda batch: [inc.filter(batch)],
        "fetch": lambda batch: list(inc.fetch(lambda _: (batch, None))),
    }
    with Checkpointer("run", memory) as cp:
        key = interrupting(4, 2 if feed == "fetch" else 1)  # the first look tells repeats, before anything is covered
        inc = cp.incremental("s", "at", row_order="asc", primary_key=key, version_fields=("id",))
        assert feeds[feed](rows(1, 2)) == [rows(1, 2)]
        cp.commit()
        with pytest.raises(KeyboardInterrupt):
            feeds[feed](rows(3, 4))
        cp.commit()
        assert (stored(memory)["at"], events(caplog)) == (2, ["torn"])
        with pytest.raises(RuntimeError, match=r"'s' was interrupted while it delivered rows: call cp.discard\(\)"):
            feeds[feed](rows(5))
        cp.discard()
        assert feeds[feed](rows(3, 5)) == [rows(3, 5)]
    assert stored(memory)["at"] == 5


def test_fault_95_a_window_not_handed_out_whole_is_not_finished(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental(
            "s", "at", initial_value=0, end_value=20, primary_key=interrupting(3), version_fields=("id",)
        )
        first, second = inc.windows(10)
        with first:
            list(first.pages([rows(1)]))
            with pytest.raises(KeyboardInterrupt):
                first.filter(rows(3))
            with pytest.raises(RuntimeError, match="was interrupted"):
                first.finish()
        with second:
            list(second.pages([rows(12)]))
    assert stored(memory) == {"windows": [[10, 20]]}


def test_fault_75_a_pool_whose_threads_outlive_their_jobs(memory):
    with Checkpointer("run", memory) as cp, ThreadPoolExecutor(2) as pool:
        whole = cp.incremental("whole", "at", row_order="asc")
        cut = cp.incremental("cut", "at", row_order="asc")
        left = cp.incremental("left", "at", row_order="asc")

        def broken():
            for _ in cut.pages([rows(1), rows(2)]):
                break

        def entered():
            with left:
                next(iter(left.pages([rows(1), rows(2)])))

        pool.submit(read, whole, rows(1), rows(2)).result()
        pool.submit(broken).result()
        pool.submit(entered).result()
        cp.commit()
        assert (stored(memory, "whole"), stored(memory, "cut"), stored(memory, "left")) == ({"at": 2}, None, {"at": 1})
        with pytest.raises(RuntimeError, match="'cut'"):
            cp.commit(cut)
    assert stored(memory, "cut") == {"at": 1}  # the pool's threads have ended


def test_fault_75_a_thread_that_has_ended_holds_nothing(memory):
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="asc")
        kept = []
        thread = threading.Thread(target=lambda: (kept.append(inc.pages([rows(1), rows(2)])), next(kept[0])))
        thread.start()
        thread.join()
        cp.commit(inc)
        assert stored(memory) == {"at": 1}


def test_fault_75_who_reads_on_after_the_block_holds_the_rows(memory):
    with Checkpointer("run", memory) as cp, ThreadPoolExecutor(1) as pool:
        inc = cp.incremental("s", "at", row_order="asc")
        reading = inc.track(rows(1, 2, 3, 4))
        with inc:
            next(reading)
        assert [next(reading)["at"] for _ in range(3)] == [2, 3, 4]
        pool.submit(cp.commit).result()
        assert stored(memory) is None
        cp.commit()
        assert stored(memory) == {"at": 3}


def test_fault_75_of_tasks_the_caller_of_commit_counts(memory):
    async def job():
        async with AsyncCheckpointer("run", memory) as cp:
            one, two = (cp.incremental(key, "at", row_order="asc") for key in ("one", "two"))
            in_hand, go_on = asyncio.Event(), asyncio.Event()

            async def other():
                for _ in two.pages([rows(1), rows(2)]):
                    in_hand.set()
                    await go_on.wait()

            task = asyncio.create_task(other())
            await in_hand.wait()
            for _ in one.pages([rows(5)]):
                await asyncio.wait_for(cp.commit(), 5)  # a wrapper's task runs it
                assert (stored(memory, "one"), stored(memory, "two")) == ({"at": 5}, None)
                with pytest.raises(RuntimeError, match="'two'"):
                    await cp.commit(two)
            go_on.set()
            await task
            await cp.commit(two)
            assert stored(memory, "two") == {"at": 2}

    asyncio.run(job())


# Told, not silent


def test_fault_65_an_interval_that_is_run_again_is_told(memory, caplog):
    memory.commit("run", {"s": encode({"at": 10})})
    with Checkpointer("run", memory) as cp:
        assert read(cp.incremental("s", "at", end_value=5), rows(3)) == []
    assert "no_range" in events(caplog)
    assert "rewind" in caplog.text


def test_fault_76_rows_that_are_all_late_are_told(memory, caplog):
    memory.commit("run", {key: encode({"at": NOW}) for key in ("all", "fresh", "some")})
    with Checkpointer("run", memory) as cp:
        read(cp.incremental("all", "at"), rows("2024-04-01T10:00:00Z", "2024-04-02T10:00:00Z"))
        read(cp.incremental("fresh", "at"), rows("2024-05-01T09:00:00Z"))
        read(cp.incremental("some", "at"), rows("2024-04-01T10:00:00Z", NOW))
    assert [(record.checkpoint_event, record.checkpoint_stream) for record in caplog.records] == [("all_late", "all")]


def test_fault_76_rows_that_are_all_in_the_future_are_told(memory, caplog):
    with freeze_time(NOW), Checkpointer("run", memory) as cp:
        for order in ("asc", None):
            read(cp.incremental(f"s{order}", "at", row_order=order), rows("2024-05-01T10:06:00Z"))
            read(cp.incremental(f"t{order}", "at", row_order=order), rows("2024-05-01T09:58:00Z"))
    assert [(record.checkpoint_event, record.checkpoint_stream) for record in caplog.records] == [
        ("all_ahead", "sasc"), ("all_ahead", "sNone"),
    ]  # fmt: skip


@pytest.mark.parametrize("meant", ["unfinished", "stopping", "exception", "resume", None])
def test_fault_76_an_unfinished_stream_is_told(memory, caplog, meant):
    caplog.set_level(logging.INFO, "checkpoint")
    try:
        with Checkpointer("run", memory, stop_signals=[signal.SIGUSR1]) as cp:
            inc = cp.incremental("s", "at")
            if meant == "resume":
                for _ in inc.fetch(lambda at: (rows(1), (at or 0) + 1)):
                    cp.commit()
                    break
            else:
                next(iter(inc.pages([rows(1), rows(2)])))
            if meant == "unfinished":
                inc.unfinished()
            elif meant == "stopping":
                signal.raise_signal(signal.SIGUSR1)
            elif meant == "exception":
                raise OSError
    except OSError:
        pass
    [told] = [record for record in caplog.records if getattr(record, "checkpoint_event", "") == "unfinished"]
    assert told.levelno == (logging.INFO if meant else logging.WARNING)


def test_fault_54_numbers_that_look_like_times_are_told(memory, caplog):
    with freeze_time(NOW), Checkpointer("run", memory) as cp:
        for unit in (1, 10**3, 10**6, 10**9):
            read(cp.incremental(f"s{unit}", "at"), rows(1714550000 * unit))
            read(cp.incremental(f"asc{unit}", "at", row_order="asc"), rows(1714550000 * unit))
        read(cp.incremental("number", "at", cursor_format="number"), rows(1714550000))
        read(cp.incremental("old", "at"), rows(1004550000))
    assert [(record.checkpoint_event, record.checkpoint_stream) for record in caplog.records] == [
        ("maybe_epoch", f"s{unit}") for unit in (1, 10**3, 10**6, 10**9)
    ]


def test_fault_54_another_unit_of_epochs_is_named(memory, caplog):
    units = {"epoch_s": 1, "epoch_ms": 10**3, "epoch_us": 10**6, "epoch_ns": 10**9}
    with freeze_time(NOW), Checkpointer("run", memory) as cp:
        for order in (None, "asc", "desc"):
            for given in units:
                for meant, factor in units.items():
                    name = f"{order} {given} {meant}"
                    stream = cp.incremental(name, "at", cursor_format=given, row_order=order, initial_value=0)
                    read(stream, rows(str(1714550000 * factor)))
    told = {record.checkpoint_stream: record.getMessage() for record in caplog.records}
    assert {record.checkpoint_event for record in caplog.records} == {"other_epoch"}
    assert sorted(told) == sorted(
        f"{order} {given} {meant}"
        for order in (None, "asc", "desc")
        for given in units
        for meant in units
        if given != meant
    )
    assert all(f"did you mean cursor_format='{name.split()[2]}'?" in text for name, text in told.items())


def test_fault_54_another_unit_is_told_before_it_is_stored(memory, caplog):
    with freeze_time(NOW), Checkpointer("run", memory) as cp:
        stream = cp.incremental("rows", "at", cursor_format="epoch_ms", row_order="asc", initial_value=0)
        assert list(stream.pages([rows(1714550000)])) == [rows(1714550000)]
        memory.commit("run", {"rows": encode({"at": 1})})  # so that the commit finds it, and stores nothing
        with pytest.raises(Conflict):
            cp.commit()
        assert [record.checkpoint_event for record in caplog.records] == ["other_epoch"]
        cp.discard()


def test_fault_54_windows_of_another_unit_are_told(memory, caplog):
    with freeze_time(NOW), Checkpointer("run", memory) as cp:
        stream = cp.incremental("rows", "at", cursor_format="epoch_s", initial_value=1704067200_000)
        assert list(stream.windows(timedelta(days=1), until=datetime(2024, 1, 20, tzinfo=timezone.utc))) == []
    assert [record.checkpoint_event for record in caplog.records] == ["other_epoch"]


def test_fault_54_bounds_in_another_unit_name_it(memory):
    with freeze_time(NOW), Checkpointer("run", memory) as cp:
        stream = cp.incremental("s", "at", cursor_format="epoch_s", initial_value=1714000000)
        with pytest.raises(ValueError, match=r"is in the future: cursor_format='epoch_s' .* mean 'epoch_ms'\?"):
            list(stream.windows(timedelta(days=1), until=1714500000000))


def test_a_field_that_is_nested_is_named_by_its_path(memory):
    with Checkpointer("run", memory) as cp:
        stream = cp.incremental("s", "at")
        nested = {"id": 1, "meta": {"at": None, "x.y": {"at": "2024-05-01"}, "times": {"at": "2024-05-01"}}}
        with pytest.raises(ValueError, match="'meta.times.at', so use that as cursor_field, or pass"):
            list(stream.pages([[nested]]))
        with pytest.raises(ValueError, match="row 0 of the batch.: filter it out, or pass"):
            list(cp.incremental("t", "at").pages([[{"id": 1, "meta": {"bt": 1}}]]))


def test_members_of_a_group_are_told_of_together(memory, caplog):
    caplog.set_level(logging.INFO, "checkpoint")
    with Checkpointer("run", memory) as cp:
        for member in range(20):
            inc = cp.incremental(f"m{member}", "at", group="crm")
            inc.filter(rows(1))
    told = [record for record in caplog.records if hasattr(record, "checkpoint_stream")]
    assert [(record.checkpoint_event, record.checkpoint_stream, record.levelname) for record in told] == [
        ("unfinished", "crm", "WARNING"), ("run_ended", "crm", "INFO"),
    ]  # fmt: skip
    assert (told[1].checkpoint_seen, told[1].checkpoint_delivered) == (20, 20)


def test_a_stream_ends_with_one_line(memory, caplog):
    caplog.set_level(logging.INFO, "checkpoint")
    with Checkpointer("run", memory) as cp:
        read(cp.incremental("s", "at", initial_value=2), rows(1, 2, 3))
        cp.commit()
    [told] = [record for record in caplog.records if hasattr(record, "checkpoint_stream")]
    assert told.getMessage() == "'s': seen=3 delivered=2 dropped=1 late=1 commits=2"
    fields = {name: value for name, value in vars(told).items() if name.startswith("checkpoint_")}
    assert fields == {
        "checkpoint_event": "run_ended", "checkpoint_stream": "s", "checkpoint_seen": 3, "checkpoint_delivered": 2,
        "checkpoint_dropped": 1, "checkpoint_late": 1, "checkpoint_commits": 2,
    }  # fmt: skip


@pytest.mark.parametrize("order", ["asc", "desc", None])
@pytest.mark.parametrize("how", ["pages", "track", "fetch", "filter"])
def test_a_healthy_job_is_warned_of_nothing(memory, caplog, order, how):
    start = datetime(2024, 5, 1, 10, tzinfo=UTC)
    with freeze_time(start) as clock:
        for run in range(50):
            clock.move_to(start + timedelta(hours=run))
            with Checkpointer("run", memory) as cp:
                inc = cp.incremental("s", "at", row_order=order, primary_key="id", initial_value="2024-01-01T00:00:00Z")
                page = [
                    {"id": minute, "at": (start + timedelta(hours=run, minutes=-minute)).strftime("%Y-%m-%dT%H:%M:%SZ")}
                    for minute in range(0, 90, 15)
                ]
                page = [] if run % 7 == 3 else page if order == "desc" else page[::-1]
                if how == "pages":
                    read(inc, page[:3], page[3:])
                elif how == "track":
                    list(inc.track(page))
                elif how == "fetch":
                    list(inc.fetch(lambda at, page=page: (page[:3], 1) if at is None else (page[3:], None)))
                else:
                    inc.filter(page)
                    inc.finish()
                assert "position=" in repr(inc)
    assert events(caplog) == []


def test_fault_60_no_new_row_follows_a_late_one_of_a_page(memory):
    """A pinned row does not end a reading whose page goes on with newer ones."""
    with Checkpointer("run", memory) as cp:
        list(cp.incremental("s", "at", row_order="desc").pages([rows(10)]))
    with Checkpointer("run", memory) as cp:
        inc = cp.incremental("s", "at", row_order="desc")
        with pytest.raises(CursorRegressed, match="18 came after 2"):
            list(inc.pages([rows(20, 19, 2, 18), rows(17, 10)]))
    assert stored(memory)["at"] == 10


def test_fault_64_a_place_keeps_its_ceiling_without_rows(memory):
    """Else rows that changed while the first part was read would be passed."""
    pages = {None: (rows(5), "next"), "next": (rows(6), None)}

    def read(broken):
        with Checkpointer("run", memory) as cp:
            inc = cp.incremental("s", "at", cursor_format="epoch_s")

            def page(at):
                if broken:
                    raise ConnectionError
                return pages[at]

            with suppress(ConnectionError):
                for _ in inc.fetch(page):
                    cp.commit()
                    break

    read(broken=False)
    ceiling = stored(memory)["resume"]["ceiling"]
    read(broken=True)
    assert stored(memory)["resume"]["ceiling"] == ceiling


def test_fault_64_bounds_spelled_otherwise_are_the_same_question(memory):
    asked = []

    def page(at):
        asked.append(at)
        return [{"at": str(1_714_557_600 + len(asked))}], len(asked)

    for _ in range(2):
        with Checkpointer("run", memory) as cp:
            start = datetime(2024, 1, 1, tzinfo=timezone.utc)
            for _ in cp.incremental("s", "at", cursor_format="epoch_s", initial_value=start).fetch(page):
                cp.commit()
                break
    assert asked == [None, 1]
