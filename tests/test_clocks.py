"""Clocks: whose they are, what lies in the future, and hours that are shown twice."""

from __future__ import annotations

import random
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time

from checkpoint import Checkpointer
from checkpoint.codec import decode
from checkpoint.stores.memory import MemoryStore

UTC = timezone.utc
NOW = datetime(2024, 5, 1, 10, tzinfo=UTC)


SPELLINGS = {
    "epoch_s": (lambda moment: int(moment.timestamp()), {"cursor_format": "epoch_s"}),
    "epoch_ms": (lambda moment: str(int(moment.timestamp() * 1_000)), {"cursor_format": "epoch_ms"}),
    "epoch_us": (lambda moment: f"{int(moment.timestamp())}.000100", {"cursor_format": "epoch_s"}),
    "epoch_ns": (lambda moment: int(moment.timestamp()) * 10**9, {"cursor_format": "epoch_ns"}),
    "naive": (lambda moment: moment.replace(tzinfo=None), {"timezone": "UTC"}),
    "naive text": (lambda moment: moment.replace(tzinfo=None).isoformat(" "), {"timezone": "UTC"}),
    "naive pattern": (
        lambda moment: moment.strftime("%m/%d/%Y %H:%M:%S"), {"cursor_format": "%m/%d/%Y %H:%M:%S", "timezone": "UTC"}
    ),
    "pattern": (lambda moment: moment.strftime("%d %b %Y %H:%M:%S %z"), {"cursor_format": "%d %b %Y %H:%M:%S %z"}),
    "date": (lambda moment: moment.date(), {"timezone": "UTC"}),
    "date text": (lambda moment: moment.date().isoformat(), {"timezone": "UTC"}),
    "iso": (lambda moment: moment.isoformat(), {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPELLINGS)
@pytest.mark.parametrize("key", [None, "id"])
def test_fault_54_a_row_that_changes_after_it_was_read(kind, key):
    """Row 1 is handed out and changes, then row 2 changes and is handed out: the position must not pass row 1."""
    spell, options = SPELLINGS[kind]
    store, got = MemoryStore(), []
    with freeze_time(NOW) as clock, Checkpointer("run", store) as cp:

        def pages():
            yield [{"id": 1, "at": spell(NOW - timedelta(minutes=30)), "version": 1}]
            clock.tick(20)
            yield [{"id": 2, "at": spell(NOW + timedelta(seconds=20)), "version": 2}]

        for page in cp.incremental("s", "at", primary_key=key, **options).pages(pages()):
            got += [(row["id"], row["version"]) for row in page]
            cp.commit()
    with freeze_time(NOW + timedelta(hours=1)), Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", primary_key=key, **options)
        scale = stream._scan.range.new_scale()
        changed = [{"id": n, "at": spell(NOW + timedelta(seconds=10 * n)), "version": 2} for n in (1, 2)]
        start = stream.start_value
        asked = [row for row in changed if start is None or scale.key_of(row["at"]) >= scale.key_of(start)]
        for page in stream.pages([asked]):
            got += [(row["id"], row["version"]) for row in page]
    assert (1, 2) in got
    if key and "date" not in kind:
        assert sorted(got) == [(1, 1), (1, 2), (2, 2)]


WITHOUT_ZONE = {
    "naive": datetime(2024, 5, 1, 9), "text": "2024-05-01T09:00:00", "date": date(2024, 5, 1), "day": "2024-05-01",
    "pattern": "05/01/2024",
}  # fmt: skip


def options_of(kind, **options):
    return options | ({"cursor_format": "%m/%d/%Y"} if kind == "pattern" else {})


@pytest.mark.parametrize("kind", WITHOUT_ZONE)
@pytest.mark.parametrize("how", ["pages", "track", "initial_value", "stored"])
def test_fault_55_without_a_zone_an_unsorted_stream_is_refused(kind, how):
    value, store = WITHOUT_ZONE[kind], MemoryStore()
    options = options_of(kind, initial_value=value if how == "initial_value" else None)
    if how == "stored":
        with Checkpointer("run", store) as cp:
            cp["s"] = {"at": value.isoformat() if isinstance(value, date) else value}
    with Checkpointer("run", store) as cp:
        with pytest.raises(ValueError, match="pass its time zone, such as timezone='UTC'"):
            stream = cp.incremental("s", "at", **options)
            row = {"id": 1, "at": value}
            [*(stream.track([row]) if how == "track" else stream.pages([[row]]))]
        for right in ({"timezone": "UTC"}, {"end_value": value}, {"row_order": "asc"}, {"row_order": "desc"}):
            stream = cp.incremental("s", "at", **options, **right)
            delivered = [*stream.pages([[{"id": 1, "at": value}]])]
            assert delivered == ([] if "end_value" in right else [[{"id": 1, "at": value}]])
        cp.discard()


FUTURE = {
    "naive": ([datetime(2024, 5, 1, 9), datetime(2099, 1, 1), datetime(9999, 12, 31)], {}),
    "text": (["2024-05-01T09:00:00", "2099-01-01T00:00:00", "9999-12-31T00:00:00"], {}),
    "day": (["2024-04-30", "2099-01-01", "9999-12-31"], {}),
    "date": ([date(2024, 4, 30), date(2099, 1, 1), date.max], {}),
    "pattern": (["04/30/2024", "01/01/2099", "12/31/9999"], {"cursor_format": "%m/%d/%Y"}),
    "epoch": ([1714553999, 4070908800, 253402214400], {"cursor_format": "epoch_s"}),
    "epoch text": (["1714553999000", "4070908800000", "253402214400000"], {"cursor_format": "epoch_ms"}),
    "aware": (["2024-05-01T09:00:00Z", "2099-01-01T00:00:00Z", "9999-12-31T00:00:00Z"], {}),
}


@pytest.mark.parametrize("kind", FUTURE)
@pytest.mark.parametrize("order", [None, "asc", "desc"])
def test_fault_56_a_row_of_the_future_is_never_the_position(kind, order):
    values, options = FUTURE[kind]
    if order is None:
        options = options | {"timezone": "UTC"}
    rows = [{"id": place, "at": value} for place, value in enumerate(values)]
    rows = rows[::-1] if order == "desc" else rows
    store = MemoryStore()
    for expected in ([*range(3)], []):
        with freeze_time(NOW), Checkpointer("run", store) as cp:
            stream = cp.incremental("s", "at", primary_key="id", row_order=order, **options)
            assert sorted(row["id"] for page in stream.pages([rows]) for row in page) == expected
        first = values[0]
        assert decode(store.load("run")["s"].value)["at"] == (first.isoformat() if isinstance(first, date) else first)


WINDOWED = {
    "naive": (datetime(2024, 4, 1), datetime(2024, 5, 2), {}),
    "text": ("2024-04-01T00:00:00", "2024-05-02T00:00:00", {}),
    "day": ("2024-04-01", "2024-05-03", {}),
    "date": (date(2024, 4, 1), date(2024, 5, 3), {}),
    "epoch": (1711929600, 1714608000, {"cursor_format": "epoch_s"}),
    "pattern": ("04/01/2024", "05/03/2024", {"cursor_format": "%m/%d/%Y"}),
    "aware": ("2024-04-01T00:00:00Z", "2024-05-02T00:00:00Z", {}),
}


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_fault_57_windows_do_not_reach_into_the_future(kind, zone):
    start, until, options = WINDOWED[kind]
    with (
        freeze_time(NOW),
        Checkpointer("run", MemoryStore()) as cp,
        pytest.raises(ValueError, match="future|pass its time zone"),
    ):
        stream = cp.incremental("s", "at", initial_value=start, timezone=zone, **options)
        [*stream.windows(timedelta(days=7), until=until)]


# The repeated hour

ZONES = {
    "Europe/Berlin": datetime(2024, 10, 26, 22, tzinfo=UTC), "America/New_York": datetime(2024, 11, 3, 3, tzinfo=UTC),
    "Australia/Lord_Howe": datetime(2024, 4, 6, 12, tzinfo=UTC), "Asia/Kolkata": datetime(2024, 4, 6, 12, tzinfo=UTC),
}  # fmt: skip
WALLS = {
    "text": (lambda wall: wall.isoformat(), {}), "datetime": (lambda wall: wall, {}),
    "pattern": (lambda wall: wall.strftime("%Y/%m/%d %H:%M:%S"), {"cursor_format": "%Y/%m/%d %H:%M:%S"}),
}  # fmt: skip


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("kind", WALLS)
@pytest.mark.parametrize("order", [None, "asc", "desc"])
@pytest.mark.parametrize("key", [None, "id"])
def test_fault_59_no_row_of_the_repeated_hour_is_lost(zone, kind, order, key):
    """A row every ten minutes through the change of the clocks, and a run every half hour or so."""
    rng = random.Random(f"{zone} {kind} {order} {key}")
    spell, options = WALLS[kind]
    begin, store, got = ZONES[zone], MemoryStore(), []
    rows = []
    for index in range(36):
        at = begin + timedelta(minutes=10 * index)
        wall = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)
        rows.append((at, {"id": index, "at": spell(wall)}))
    now = begin
    with freeze_time(now) as clock:
        while now < begin + timedelta(hours=8):
            now += timedelta(minutes=rng.choice([20, 30, 45]), seconds=rng.randrange(60))
            clock.move_to(now)
            with Checkpointer("run", store) as cp:
                stream = cp.incremental("s", "at", timezone=zone, row_order=order, primary_key=key, **options)
                start = stream.start_value
                if kind == "datetime" and isinstance(start, str):
                    start = datetime.fromisoformat(start)
                there = [row for at, row in rows if at <= now and (start is None or row["at"] >= start)]
                if order:
                    there.sort(key=lambda row: row["at"], reverse=order == "desc")
                for page in stream.pages(there[first : first + 4] for first in range(0, len(there), 4)):
                    got += [row["id"] for row in page]
                    cp.commit()
    assert sorted({*got}) == [*range(36)]
    if key:
        assert len(got) == 36


@pytest.mark.parametrize("position", ["2024-10-27T02:00:00", "2024-10-27T02:40:00"])
def test_fault_59_an_open_range_is_asked_from_before_the_hour(position):
    """The source leaves out rows at `start_value` itself, and the second pass may begin with one."""
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        cp["s"] = {"at": position}
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", timezone="Europe/Berlin", range_start="open", row_order="asc")
        assert stream.start_value == "2024-10-27T01:59:59"
        row = {"id": 1, "at": "2024-10-27T02:00:00"}
        assert [*stream.pages([[row]])] == [[row]]


def test_a_zone_without_a_repeated_hour_asks_from_position():
    store = MemoryStore()
    repeated, after, before = (f"2024-10-27T{clock}" for clock in ("02:50:00", "03:00:00", "01:59:59"))
    for zone in ("Europe/Berlin", "Asia/Kolkata", "UTC"):
        for position in (repeated, after, before):
            with Checkpointer("run", store) as cp:
                cp["s"] = {"at": position}
            with Checkpointer("run", store) as cp:
                found = cp.incremental("s", "at", timezone=zone).start_value
            is_asked_before = position == repeated and zone == "Europe/Berlin"
            assert found == ("2024-10-27T02:00:00" if is_asked_before else position)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_fault_59_the_order_inside_a_repeated_hour_is_not_judged(order):
    """A source that sorts by the true time shows the hour twice, and is sorted."""
    shown = [f"2024-10-27 02:{minute:02}:00" for _ in range(2) for minute in range(0, 60, 10)]
    rows = [{"id": number, "at": at} for number, at in enumerate(shown)]
    if order == "desc":
        rows.reverse()
    with Checkpointer("run", MemoryStore()) as cp:
        inc = cp.incremental("s", "at", row_order=order, timezone="Europe/Berlin", primary_key="id")
        assert [row for page in inc.pages([rows[:7], rows[7:]]) for row in page] == rows
