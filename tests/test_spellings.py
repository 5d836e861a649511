"""`cursor_format`: what values are read as, how they compare, and how they are spelled again."""

from __future__ import annotations

import locale
import random
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from email.utils import format_datetime, parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import Checkpointer, CursorExpired, CursorFormat
from checkpoint.codec import decode
from checkpoint.stores.memory import MemoryStore
from checkpoint.streams.keys import Clock
from checkpoint.streams.patterns import Pattern
from checkpoint.streams.spellings import formats_for
from checkpoint.streams.values import Scale

UTC = timezone.utc
LSN = CursorFormat(
    parse=lambda text: int(text.split("/")[0], 16) << 32 | int(text.split("/")[1], 16),
    format=lambda number: f"{number >> 32:X}/{number & 0xFFFFFFFF:X}",
)
MAIL = CursorFormat(parsedate_to_datetime, format_datetime)


def scale(cursor_format, zone=None):
    return Scale("here", zone, {}, cursor_format)


# What they are


@pytest.mark.parametrize(
    ("cursor_format", "values"),
    [
        ("number", ["-12.50", "-3", 0, "9", "10", 10.5, Decimal("10.75"), "11", "1" * 5_000]),
        ("text", ["", "0", "10", "9", "A", "a", "ä"][1:]),
        ("epoch_s", [-1, "0", 0.5, "1714557600", "1714557600.123456", "1714557600.1234567890123", 1714557601]),
        ("epoch_ms", ["1714557600123", 1714557600123.5, "1714557600124"]),
        ("epoch_ns", ["1714557600123456788", 1714557600123456789, "1714557600123456789.5"]),
        ("%m/%d/%Y", ["12/31/2024", "1/2/2025", "01/03/2025", "9/1/2025", "10/1/2025"]),
        ("%d.%m.%y %H:%M", ["31.12.69 23:59", "01.01.70 00:00", "01.01.68 00:00"]),
        ("%I:%M:%S %p %b %d %Y", ["12:30:00 AM Feb 01 2024", "1:00:00 am feb 1 2024", "12:00:00 PM FEB 01 2024"]),
        ("%Y-%m-%dT%H:%M:%S%z", ["2024-05-01T10:00:00+0200", "2024-05-01T08:30:00Z", "2024-05-01T08:31:00-00:00"]),
        ("%Y%m%d%H%M%S.%f", ["20240501100000.1", "20240501100000.12", "20240501100000.120001"]),
        ("%G-W%V-%u", ["2024-W52-7", "2025-W01-1", "2025-W01-2"]), ("%Y %j", ["2024 366", "2025 001"]),
        ("%Y %U %w", ["2024 00 1", "2024 01 0"]), ("%Y %W %a", ["2024 01 Mon", "2024 01 Tue"]),
        (LSN, ["0/9", "0/A", "0/10", "9/FFFFFF00", "10/0"]),
        (MAIL, ["Wed, 01 May 2024 10:00:00 +0200", "Wed, 01 May 2024 08:30:00 -0000", "Thu, 02 May 2024 00:00:00 GMT"]),
    ],
)  # fmt: skip
def test_values_are_in_this_order(cursor_format, values):
    of = scale(cursor_format, "UTC")
    slow = [of.key_of(value) for value in values]
    assert slow == sorted(slow)
    assert len({*slow}) == len(values)
    quick = [*map(of.begin(values[0]), values)]
    assert quick == [of.key_of(value) for value in values] == sorted(quick)


@pytest.mark.parametrize(
    ("cursor_format", "values"),
    [
        ("number", ["x", " 5", "1e5", "1_000", "٣", "0x10", "NaN", "5.", ".5", "--5"]),
        ("number", [float("inf"), Decimal("Infinity")]),
        ("epoch_s", ["2024-05-01", "1.7e9", "now", float("inf"), "1714557600Z"]),
        ("%m/%d/%Y", ["2025-12-31", "13/01/2025", "02/30/2025", "1/2/25", "12/31/2025 ", "٣/1/2025"]),
        ("%H:%M %Y-%m-%d", ["24:00 2024-05-01", "10:60 2024-05-01"]),
        ("%Y %j", ["2023 366"]), ("%G-W%V-%u", ["2023-W53-1"]),
        (LSN, ["x", "10", "G/0"]), (MAIL, ["yesterday"]),
    ],
)  # fmt: skip
def test_what_a_format_does_not_read_is_named(cursor_format, values):
    for value in values:
        with pytest.raises(ValueError, match="here: .*cursor_format") as caught:
            scale(cursor_format).key(value)
        assert repr(value)[:20] in str(caught.value)


@pytest.mark.parametrize(
    ("cursor_format", "value"),
    [
        ("number", True), ("number", date(2024, 5, 1)), ("number", datetime(2024, 5, 1, tzinfo=UTC)), ("text", 5),
        ("text", datetime(2024, 5, 1, tzinfo=UTC)), ("epoch_s", [1]), ("epoch_s", True), ("%Y-%m", 202405),
        (CursorFormat(lambda value: value), "x"), (CursorFormat(lambda _: None), "x"), (LSN, b"0/1"),
        (CursorFormat(lambda _: True), "x"),
    ],
)  # fmt: skip
def test_what_is_of_another_type_is_refused(cursor_format, value):
    with pytest.raises(TypeError, match="here: "):
        scale(cursor_format).key(value)


@pytest.mark.parametrize("cursor_format", ["epoch_s", "number", "text", "%Y-%m-%d", LSN])
@pytest.mark.parametrize("value", [None, "", float("nan"), Decimal("NaN")])
def test_a_missing_value_is_missing_in_every_format(cursor_format, value):
    of = scale(cursor_format)
    assert of.key(value) is None
    first = {"%Y-%m-%d": "2024-05-01", LSN: "0/1"}.get(cursor_format, "1")
    assert of.begin(first)(value) is None


@pytest.mark.parametrize(
    ("cursor_format", "error", "says"),
    [
        ("epoch", ValueError, "must be 'epoch_s', 'epoch_ms', 'epoch_us', 'epoch_ns', 'number', 'text', a pattern"),
        ("", ValueError, "must be"), ("iso", ValueError, "must be"), (5, TypeError, "not 5"),
        (lambda value: value, TypeError, "CursorFormat"), ("%d.%m.", ValueError, "has no year"),
        ("%H:%M", ValueError, "has no year"), ("%Y-%m-%d %H:%M %Z", ValueError, "%Z is not supported"),
        ("%Y-%Q", ValueError, "has no %Q"), ("%Y-%", ValueError, "has no %"), ("%s", ValueError, "has no %s"),
        ("%Y %Y", ValueError, "twice"), ("%d%%", ValueError, "no year"), ("%V %u", ValueError, "no year"),
    ],
)  # fmt: skip
def test_what_is_no_format(cursor_format, error, says):
    with pytest.raises(error, match=says):
        scale(cursor_format)


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "", "../../etc/passwd", "UTC\0"])
def test_an_unknown_time_zone(zone):
    with pytest.raises(ValueError, match="there is no time zone"):
        Scale("here", zone)
    with pytest.raises(TypeError, match="timezone must be a tzinfo or a name"):
        Scale("here", 5)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("9", "cursor_format='number'"), ("0", "cursor_format='number'"), ("1714557600", "cursor_format='epoch_s'"),
        ("1714557600.123456", "cursor_format='epoch_s'"), ("1714557600123", "cursor_format='epoch_ms'"),
        ("20240501", "cursor_format='%Y%m%d'"), ("20240501100000", "cursor_format='%Y%m%d%H%M%S'"),
        ("98765432", "cursor_format='number'"), ("9999999999", "cursor_format='number'"),
        ("12/31/2025", "cursor_format='%m/%d/%Y'"), ("31/12/2025", "cursor_format='%d/%m/%Y'"),
        ("Wed, 01 May 2024 10:00:00 GMT", "cursor_format='%a, %d %b %Y %H:%M:%S GMT', timezone='UTC'"),
        ("Wed, 01 May 2024 10:00:00 +0200", "cursor_format='%a, %d %b %Y %H:%M:%S %z'"),
        ("20240501T100000Z", "cursor_format='%Y%m%dT%H%M%SZ', timezone='UTC'"),
        ("2024-W18-3", "cursor_format='%G-W%V-%u'"),
        ("v1.9", "cursor_format='text' (by code point)"), ("9/FFFFFF00", "cursor_format='text' (by code point)"),
    ],
)  # fmt: skip
def test_fault_52_the_formats_that_would_read_a_text_are_named(text, named):
    assert formats_for(text)[0] == named
    with pytest.raises(ValueError, match="without a known format") as caught:
        Scale("here").key(text)
    assert named in str(caught.value)
    for name in formats_for(text)[:-2]:
        options = eval(f"dict({name})")
        assert Scale("here", options.get("timezone"), {}, options["cursor_format"]).key(text) is not None


def test_zero_may_be_the_start_of_times_too():
    assert formats_for("0")[:3] == ["cursor_format='number'", "cursor_format='epoch_s'", "cursor_format='epoch_ms'"]


# Patterns


DIRECTIVES = [
    "%Y-%m-%d", "%m/%d/%y", "%d %b %Y", "%d %B %Y", "%Y%m%d", "%Y-%j", "%G-W%V-%u", "%A, %d %B %Y", "%Y-%m",
    "%Y W%W %a", "%Y %U %w", "%x", "%d.%m.%Y %%",
]  # fmt: skip
CLOCKS = [
    "",
    " %H:%M",
    "T%H:%M:%S",
    " %H:%M:%S.%f",
    " %I:%M:%S %p",
    " %X",
    "T%H%M%S%z",
    " %H:%M:%S %z",
    " %p %I",
    " %M",
]


@given(
    st.sampled_from(DIRECTIVES), st.sampled_from(CLOCKS),
    st.datetimes(datetime(1970, 1, 4), datetime(2068, 12, 27)), st.integers(-720, 840), st.booleans(),
)  # fmt: skip
def test_patterns_read_what_strptime_does(day, clock, moment, minutes, upper):
    pattern = day + clock
    if "%z" in pattern:
        moment = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    text = moment.strftime(pattern)
    text = text.upper() if upper else text
    wanted = datetime.strptime(text, pattern)  # noqa: DTZ007 - as the pattern says
    of = Scale("here", None, {}, pattern)
    [key] = [Scale("here").key(wanted)]
    assert of.key(text) == key
    assert Pattern(pattern, Clock(None)).read(text) == Scale("here")._read(wanted)


@given(st.sampled_from(DIRECTIVES), st.sampled_from(CLOCKS), st.datetimes(datetime(1970, 1, 4), datetime(2068, 12, 27)))
def test_patterns_spell_what_they_read(day, clock, moment):
    pattern = day + clock
    text = moment.replace(tzinfo=UTC if "%z" in pattern else None).strftime(pattern)
    of = Scale("here", None, {}, pattern)
    assert of.spell(of.key(text), text) == text
    assert of.key(of.spell(of.key(text), None)) == of.key(text)


def test_names_are_english_whatever_the_locale_is():
    before = locale.setlocale(locale.LC_TIME)
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C"):
        try:
            locale.setlocale(locale.LC_TIME, name)
        except locale.Error:
            continue
        break
    try:
        of = scale("%a, %d %B %Y", "UTC")
        assert of.shift("Wed, 01 May 2024", timedelta(days=62), -1) == "Thu, 29 February 2024"
    finally:
        locale.setlocale(locale.LC_TIME, before)


# Quick keys


def column(rng, shape):
    """Draw the values of a column of one shape, now and then of another spelling."""
    moment = datetime(2024, rng.choice([3, 10]), rng.choice([27, 31]), tzinfo=UTC) + timedelta(
        seconds=rng.randrange(86_400), microseconds=rng.choice([0, 500_000, 123_456])
    )
    seconds = int(moment.timestamp())
    zone = timezone(timedelta(minutes=rng.choice([0, 60, 330])))
    return {
        "epoch_s": lambda: rng.choice([str(seconds), f"{seconds}.5", seconds, seconds + 0.25, Decimal(seconds)]),
        "epoch_us": lambda: rng.choice([f"{seconds}000001", seconds * 1_000_000]),
        "number": lambda: rng.choice(
            [str(rng.randrange(-20, 20)), f"{rng.randrange(20)}.50", rng.randrange(20), "007"]
        ),
        "text": lambda: rng.choice("abcÄ") * rng.randrange(1, 4),
        "%m/%d/%Y %I:%M:%S %p": lambda: moment.strftime("%m/%d/%Y %I:%M:%S ") + rng.choice(["AM", "pm"]),
        "%d.%m.%Y %H:%M": lambda: f"{moment.day}.{moment.month}.{moment.year} {moment.hour}:{moment.minute:02}",
        "%Y%m%dT%H%M%S%z": lambda: moment.astimezone(zone).strftime("%Y%m%dT%H%M%S%z"),
        "%Y/%m/%d %H:%M:%S.%f": lambda: moment.strftime("%Y/%m/%d %H:%M:%S.%f")[: rng.choice([26, 23, 21])],
        "%a %b %d %H:%M:%S %Y": lambda: moment.strftime("%a %b %d %H:%M:%S %Y"),
    }[shape]()


SHAPES = [
    "epoch_s", "epoch_us", "number", "text", "%m/%d/%Y %I:%M:%S %p", "%d.%m.%Y %H:%M", "%Y%m%dT%H%M%S%z",
    "%Y/%m/%d %H:%M:%S.%f", "%a %b %d %H:%M:%S %Y",
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe"])
def test_quick_keys_of_formats_agree_with_slow_ones(shape, zone):
    rng = random.Random(f"{shape} {zone}")
    of = scale(shape, zone)
    quick = of.begin(column(rng, shape))
    exact = scale(shape, zone)
    before = None
    for _ in range(2_000):
        value = column(rng, shape)
        key, now = quick(value), (of.key_of(value), exact._exact(value))
        assert key == now[0], value
        if before is not None:
            assert (key < before[0], key == before[0]) == (now[1] < before[1], now[1] == before[1]), value
        before = key, now[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_quick_keys_of_formats_refuse_what_slow_ones_do(shape):
    rng = random.Random(shape)
    of = scale(shape)
    quick = of.begin(column(rng, shape))
    for _ in range(300):
        value = str(column(rng, shape))
        place = rng.randrange(len(value))
        broken = value[:place] + rng.choice(["", "x", "٣", " ", "9", ":", value[place] * 2]) + value[place + 1 :]
        try:
            wanted = scale(shape).key(broken)
        except ValueError:
            with pytest.raises(ValueError, match="here: "):
                quick(broken)
        else:
            assert quick(broken) == wanted or not broken


def test_a_failing_parse_is_named_and_values_keep_their_keys():
    of = scale(CursorFormat(lambda text: {"a": 1, "b": 2.5, "c": "2024-05-01T10:00:00Z"}[text]))
    quick = of.begin("a")
    assert [quick("a"), quick("b")] == [1, 2.5]
    with pytest.raises(ValueError, match=r"here: the parse function of cursor_format failed on 'x': KeyError\('x'\)"):
        quick("x")
    with pytest.raises(TypeError, match=r"here: 'c' .* cannot be compared with 'a'"):
        quick("c")


# Moving


@pytest.mark.parametrize(
    ("cursor_format", "value", "step", "moved"),
    [
        ("epoch_s", 1714557600, timedelta(hours=1), 1714554000),
        ("epoch_s", "1714557600", timedelta(days=1), "1714471200"),
        ("epoch_s", "1714557600.123456", timedelta(microseconds=1), "1714557600.123455"),
        ("epoch_s", 1714557600.5, timedelta(seconds=1), 1714557599.5),
        ("epoch_ms", "1714557600123", timedelta(microseconds=1), "1714557600122"),
        ("epoch_ns", Decimal(1714557600123456789), timedelta(microseconds=1), Decimal(1714557600123455789)),
        ("number", "10", 1, "9"), ("number", "0100", 1, "0099"), ("number", "-1.50", 0.25, "-1.75"),
        ("number", "0", 1, "-1"), ("number", "1" + "0" * 5_000, 1, "9" * 5_000), ("number", 10, 3, 7),
        ("number", "10", 0.5, "9"), ("%m/%d/%Y", "03/01/2024", timedelta(days=1), "02/29/2024"),
        ("%m/%d/%Y", "3/1/2024", timedelta(hours=1), "2/29/2024"),
        ("%d %b %Y %H:%M:%S %z", "01 May 2024 00:00:00 +0200", timedelta(seconds=1), "30 Apr 2024 23:59:59 +0200"),
        ("%I:%M %p %Y-%m-%d", "12:00 pm 2024-05-01", timedelta(minutes=1), "11:59 am 2024-05-01"),
        ("%Y-%m-%dT%H:%M:%S.%f", "2024-05-01T00:00:00.000", timedelta(milliseconds=1), "2024-04-30T23:59:59.999"),
        ("%Y-%m-%d", "0001-01-01", timedelta(days=5), "0001-01-01"),
        (LSN, "10/0", 256, "F/FFFFFF00"),
        (MAIL, "Wed, 01 May 2024 10:00:00 +0200", timedelta(hours=11), "Tue, 30 Apr 2024 23:00:00 +0200"),
    ],
)  # fmt: skip
def test_values_are_moved_in_their_own_spelling(cursor_format, value, step, moved):
    found = scale(cursor_format).shift(value, step, -1)
    assert (found, type(found)) == (moved, type(moved))


@pytest.mark.parametrize(
    ("cursor_format", "value", "moved"),
    [
        ("epoch_s", 1706695200, 1709200800), ("epoch_ms", "1706695200123", "1709200800123"),
        ("%m/%d/%Y", "01/31/2024", "02/29/2024"),
        ("%H:%M %d.%m.%Y %z", "00:30 31.01.2024 +0200", "00:30 29.02.2024 +0200"),
        (MAIL, "Wed, 31 Jan 2024 10:00:00 +0000", "Thu, 29 Feb 2024 10:00:00 +0000"),
    ],
)  # fmt: skip
def test_months_of_formats_are_those_of_the_calendar(cursor_format, value, moved):
    assert scale(cursor_format).months(value, 1) == moved


@pytest.mark.parametrize(
    ("cursor_format", "value", "step"),
    [
        ("epoch_s", 5, 5), ("number", "5", timedelta(1)), ("text", "a", 1), ("%Y-%m", "2024-05", 1),
        (LSN, "0/1", timedelta(1)),
        (CursorFormat(lambda text: int(text, 16)), "ff", 1), (CursorFormat(int, hex), "9", timedelta(1)),
    ],
)  # fmt: skip
def test_what_does_not_move_says_so(cursor_format, value, step):
    with pytest.raises(TypeError, match="cannot be moved by|has no format|without a format"):
        scale(cursor_format).shift(value, step, -1)
    if cursor_format == "text":
        with pytest.raises(TypeError, match="by months"):
            scale(cursor_format).months(value, 1)


@pytest.mark.parametrize(
    ("cursor_format", "spelled"),
    [
        ("epoch_s", 1714557600), ("epoch_ms", 1714557600000), ("%m/%d/%Y %H:%M", "05/01/2024 12:00"),
        ("%m/%d/%Y %H:%M %z", "05/01/2024 10:00 +0000"), (MAIL, "Wed, 01 May 2024 10:00:00 +0000"),
        ("%Y-%m-%d", "2024-05-01"), (None, datetime(2024, 5, 1, 10, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_an_aware_datetime_is_spelled_as_the_source_does(cursor_format, spelled):
    of = scale(cursor_format, "Europe/Berlin")
    assert of.spelled(datetime(2024, 5, 1, 10, tzinfo=UTC)) == spelled


def test_an_epoch_is_spelled_as_text_where_rows_show_text():
    of = scale("epoch_ms")
    assert of.spelled(datetime(2024, 5, 1, 10, tzinfo=UTC), "1714557600123") == "1714557600000"
    assert scale("epoch_s").spelled(datetime(2024, 5, 1, 10, tzinfo=UTC), "1.50") == "1714557600.00"


# Faults


STORED = "1970-01-01T00:00:00Z"


def run(store, batches, **options):
    """Read pages in one run, each committed; return the ids that were handed out."""
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", **options)
        found = []
        for rows in stream.pages(batches):
            found += [row["id"] for row in rows]
            cp.commit()
        return found


def rows_of(*values):
    return [{"id": index, "at": value} for index, value in enumerate(values)]


@pytest.mark.parametrize("order", [None, "asc", "desc"])
@pytest.mark.parametrize(
    ("cursor_format", "values"),
    [
        ("number", ["9", "10", "11"]), ("epoch_s", ["999999999", "1000000000", "1714557600"]),
        ("%m/%d/%Y", ["12/31/2024", "01/02/2025", "11/01/2025"]),
        ("%d.%m.%Y", ["31.01.2025", "01.02.2025", "02.02.2025"]),
        ("%d %b %Y %H:%M:%S GMT", ["01 May 2024 10:00:00 GMT", "02 May 2024 00:00:00 GMT", "01 Jun 2024 00:00:00 GMT"]),
        (CursorFormat(lambda text: int(text.split(".")[1])), ["v1.9", "v1.10", "v1.11"]), (LSN, ["0/9", "0/A", "0/10"]),
    ],
)  # fmt: skip
def test_fault_51_text_is_refused_and_right_with_a_format(cursor_format, values, order):
    refused, store = MemoryStore(), MemoryStore()
    for rows in (rows_of(*values), rows_of(*values[1:])):
        with pytest.raises(ValueError, match="'s', 'at': .* is text without a known format, so it cannot be compared"):
            run(refused, [rows], row_order=order)
    assert refused.load("run") == {}
    options = {"cursor_format": cursor_format, "timezone": "UTC", "row_order": order, "primary_key": "id"}
    assert run(store, [rows_of(values[0])], **options) == [0]
    assert decode(store.load("run")["s"].value)["at"] == values[0]
    rest = rows_of(*values)[::-1] if order == "desc" else rows_of(*values)
    assert sorted(run(store, [rest], **options)) == [1, 2]
    assert decode(store.load("run")["s"].value)["at"] == values[2]
    assert run(store, [rows_of(values[0], values[1])[::-1] if order == "desc" else [], rows_of()], **options) == []


@pytest.mark.parametrize("argument", ["initial_value", "end_value"])
@pytest.mark.parametrize("text", ["9", "12/31/2025", "v1.9", "now"])
def test_fault_52_text_bounds_are_refused_at_opening(argument, text):
    with (
        Checkpointer("run", MemoryStore()) as cp,
        pytest.raises(ValueError, match=f"{argument} '{text}' is text"),
    ):
        cp.incremental("s", "at", **{argument: text})


def test_fault_52_stored_text_fails_at_opening_a_number_later():
    store = MemoryStore()
    for stored, page in (("v1.9", None), ("9", "10")):
        with Checkpointer("run", store) as cp:
            cp.discard()
            cp["s"] = {"at": stored}
        with Checkpointer("run", store) as cp:
            if page is None:
                with pytest.raises(ValueError, match="the stored position 'v1.9' is text"):
                    cp.incremental("s", "at")
            else:
                stream = cp.incremental("s", "at")
                with pytest.raises(ValueError, match="'10' is text .* cursor_format='number'"):
                    stream.filter(rows_of(page))
                stream = cp.incremental("s", "at")
                assert (
                    stream.filter(rows_of(Decimal("8.5"), Decimal("9.5")))
                    == rows_of(Decimal("8.5"), Decimal("9.5"))[1:]
                )


def test_fault_53_log_positions_expire_and_come_in_order():
    store = MemoryStore()
    options = {"cursor_format": LSN, "row_order": "asc"}
    assert run(store, [rows_of("0/9", "0/A", "0/10")], **options) == [0, 1, 2]
    with Checkpointer("run", store) as cp:
        cp["s"] = {"at": "9/FFFFFF00"}
    with Checkpointer("run", store) as cp:
        with pytest.raises(CursorExpired) as caught:
            cp.incremental("s", "at", oldest_available="10/0", **options)
        assert (caught.value.position, caught.value.oldest) == ("9/FFFFFF00", "10/0")
        stream = cp.incremental("s", "at", oldest_available="9/0", lookback=256, **options)
        assert stream.start_value == "9/FFFFFE00"


@pytest.mark.parametrize("policy", ["raise", "include", "exclude"])
@pytest.mark.parametrize("name", ["None", "nan", "Decimal", "empty", "pandas.NaT", "pandas.NA", "numpy.NaT"])
@pytest.mark.parametrize("first", [True, False])
def test_fault_66_missing_values_go_by_the_policy(policy, name, first):
    values = {"None": None, "nan": float("nan"), "Decimal": Decimal("NaN"), "empty": ""}
    if "." in name:
        pandas = pytest.importorskip("pandas")
        import numpy as np

        values = {"pandas.NaT": pandas.NaT, "pandas.NA": pandas.NA, "numpy.NaT": np.datetime64("NaT", "ns")}
    is_number = name in ("nan", "Decimal")
    there = 5 if is_number else datetime(2024, 5, 1, tzinfo=UTC)
    page = rows_of(*((values[name], there) if first else (there, values[name])))
    store = MemoryStore()
    for how in ("pages", "track"):
        with Checkpointer(how, store) as cp:
            stream = cp.incremental("s", "at", on_cursor_value_missing=policy)
            feed = (lambda: [*stream.track(page)]) if how == "track" else (lambda: [*stream.pages([page])])  # noqa: B023 - called in this turn of the loop
            if policy == "raise":
                with pytest.raises(ValueError, match="a row has no 'at'"):
                    feed()
                stream.unfinished()
                continue
            feed()
            assert stream.stats.delivered == (2 if policy == "include" else 1)
            assert stream.last_value == there
        assert decode(store.load(how)["s"].value) == {"at": there if is_number else there.isoformat()}


@pytest.mark.parametrize(
    "options",
    [
        {"initial_value": STORED, "lookback": 3}, {"initial_value": 5, "lookback": timedelta(1)},
        {"initial_value": 5, "lookback": "1h"}, {"end_value": STORED, "lookback": 1.5},
        {"initial_value": datetime(2024, 5, 1, tzinfo=UTC), "lookback": Decimal(1)},
        {"lookback": "1h"}, {"lookback": True},
        {"cursor_format": "epoch_s", "lookback": 3600}, {"cursor_format": "number", "lookback": timedelta(1)},
        {"cursor_format": "text", "lookback": 1},
        {"cursor_format": "%m/%d/%Y", "initial_value": "01/01/2025", "lookback": 1, "row_order": "asc"},
        {"cursor_format": CursorFormat(int), "initial_value": "5", "lookback": 1},
    ],
)  # fmt: skip
def test_fault_69_a_lookback_that_does_not_go_with_the_values(options):
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        with pytest.raises(TypeError, match="lookback"):
            cp.incremental("s", "at", **options)
        cp.incremental("s", "at", **(options | {"lookback": None}))


@pytest.mark.parametrize(
    ("stored", "lookback"), [(5, timedelta(1)), (STORED, 3), ("2024-05-01", 3), (1.5, timedelta(1))]
)
def test_fault_69_a_lookback_that_does_not_go_with_the_position(stored, lookback):
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        cp["s"] = {"at": stored}
    with Checkpointer("run", store) as cp, pytest.raises(TypeError, match="lookback"):
        cp.incremental("s", "at", lookback=lookback)


@pytest.mark.parametrize(("first", "lookback"), [(1714557600, timedelta(1)), (STORED, 3), (date(2024, 5, 1), 3)])
def test_fault_69_a_lookback_that_does_not_go_with_the_first_row(first, lookback):
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", lookback=lookback)
        with pytest.raises(TypeError, match="lookback"):
            stream.filter(rows_of(first))
        assert stream.stats.seen == 0


@pytest.mark.parametrize(
    ("stored", "initial"),
    [(5, STORED), ("9", STORED), (STORED, 5), (1.5, "2024-05-01"), ("2024-05-01T10:00:00", STORED)],
)
def test_fault_70_a_stored_position_of_another_kind(stored, initial):
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        cp["s"] = {"at": stored}
    with Checkpointer("run", store) as cp, pytest.raises((TypeError, ValueError), match="the stored position"):
        cp.incremental("s", "at", initial_value=initial)


def test_a_step_is_no_value_to_parse():
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", cursor_format=LSN, lookback=3)
        assert stream.filter(rows_of("0/9")) == rows_of("0/9")


def test_fault_70_a_renamed_field():
    store = MemoryStore()
    with Checkpointer("run", store) as cp:
        cp["s"] = {"updated_at": STORED}
    with (
        Checkpointer("run", store) as cp,
        pytest.raises(ValueError, match="stored with 'updated_at', not with"),
    ):
        cp.incremental("s", "modified")


# Through a stream


@pytest.mark.parametrize(
    ("cursor_format", "first", "then", "lookback", "start"),
    [
        ("epoch_s", 1714557600, 1714560000, timedelta(hours=1), 1714556400),
        ("epoch_s", "1714557600", "1714560000", timedelta(hours=1), "1714556400"),
        ("epoch_ms", "1714557600000", "1714560000000", timedelta(seconds=1), "1714559999000"),
        ("number", "9", "10", 2, "8"), ("%m/%d/%Y", "05/01/2024", "06/01/2024", timedelta(days=2), "05/30/2024"),
        (
            MAIL, "Wed, 01 May 2024 10:00:00 +0000", "Wed, 01 May 2024 12:00:00 +0000", timedelta(hours=1),
            "Wed, 01 May 2024 11:00:00 +0000",
        ),
    ],
)  # fmt: skip
def test_the_next_start_is_spelled_as_the_source_does(cursor_format, first, then, lookback, start):
    store = MemoryStore()
    options = {"cursor_format": cursor_format, "lookback": lookback, "timezone": "UTC"}
    initial = "5" if cursor_format == "number" else datetime(2024, 5, 1, tzinfo=UTC)
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", initial_value=initial, **options)
        [*stream.pages([rows_of(first, then)])]
        assert stream.stats.delivered == 2
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("s", "at", initial_value=initial, **options)
        assert (stream.start_value, type(stream.start_value)) == (start, type(start))


def test_an_aware_start_is_a_number_until_rows_show_text():
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", cursor_format="epoch_ms", initial_value=datetime(2024, 5, 1, tzinfo=UTC))
        assert stream.start_value == 1714521600000
        stream.filter(rows_of("1714521600001"))
        assert stream.start_value == "1714521600000"


def test_windows_of_formats_are_spelled_as_the_source_does():
    with Checkpointer("run", MemoryStore()) as cp:
        stream = cp.incremental("s", "at", cursor_format="epoch_s", initial_value="1714521600")
        assert [(w.start, w.end) for w in stream.windows(timedelta(hours=12), until="1714600000")] == [
            ("1714521600", "1714564800"), ("1714564800", "1714600000"),
        ]  # fmt: skip
        stream = cp.incremental("t", "at", cursor_format="%d.%m.%Y", timezone="UTC", initial_value="31.01.2024")
        assert [w.end for w in stream.windows("month", until="15.03.2024")] == ["29.02.2024", "15.03.2024"]
        stream = cp.incremental("u", "at", cursor_format=CursorFormat(lambda text: int(text, 16)), initial_value="0")
        with pytest.raises(TypeError, match="needs a format function"):
            stream.windows(16, until="ff")


@pytest.mark.parametrize("moved", ["lookback", "step", "by"])
def test_a_format_that_cannot_write_is_named_with_its_stream(moved):
    """What needs moved values says which argument of which stream needs the second function, and it helps."""

    def use(cursor_format):
        with Checkpointer("run", MemoryStore()) as cp:
            options = {"cursor_format": cursor_format, "row_order": "asc"}
            if moved == "lookback":
                cp.incremental("s", "at", lookback=1, initial_value="a", **options)
            elif moved == "step":
                list(cp.incremental("s", "at", initial_value="a", **options).windows(4, until="ff"))
            else:
                cp["s"] = {"at": "ff"}
                cp.incremental("s", "at", **options).rewind(by=1, reason="why")

    with pytest.raises(TypeError) as caught:
        use(CursorFormat(lambda text: int(text, 16)))
    said = f"'s', 'at': {moved} needs a format function, which writes moved values: CursorFormat(parse, format)"
    assert str(caught.value) == said
    use(CursorFormat(lambda text: int(text, 16), lambda number: format(number, "x")))
