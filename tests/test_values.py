"""Cursor values: what they compare as, how they are spelled, and how they move."""

from __future__ import annotations

import math
import random
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.streams.keys import moment_of
from checkpoint.streams.values import Scale, clock, is_missing_value, wire

UTC = timezone.utc
BERLIN = ZoneInfo("Europe/Berlin")
WALL = datetime(2024, 5, 1, 10)


def key(value, zone=None):
    scale = Scale("here", zone)
    return scale.kind, scale.key(value), scale.kind


def keys(*values, zone=None):
    scale = Scale("here", zone)
    scale.settle(*values)
    return [scale.key(value) for value in values]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, "number"), (1.5, "number"), (Decimal("1.5"), "number"), (2**70, "number"),
        (WALL, "wall"), (date(2024, 5, 1), "wall"), ("2024-05-01T10:00", "wall"), ("2024-05-01 10:00:00.5", "wall"),
        (WALL.replace(tzinfo=UTC), "instant"), ("2024-05-01T10:00Z", "instant"), ("2024-05-01T10:00:00+02", "instant"),
        ("2024-05-01T10:00:00-0230", "instant"), ("2024-05-01T10:00:00.123456789012+02:00", "instant"),
        ("2024-05-01", "wall"), ("2024-05-01T24:00:00Z", "instant"), ("2024-05-01T10:00:00z", "instant"),
        ("2024-05-01T10:00:00 Z", "instant"), ("2024-05-01 10:00:00 UTC", "instant"),
        ("2024-05-01T10:00UTC", "instant"), ("2024-05-01T10:00:00,5 +0200", "instant"),
        ("2024-05-01t10:00:00-03", "instant"),
    ],
)  # fmt: skip
def test_kinds(value, kind):
    assert key(value)[2] == kind


@pytest.mark.parametrize(
    "value",
    [
        "2024-02-30T10:00:00Z", "2024-05-01T24:00:01Z", "\u0662024-05-01T10:00:00Z", "2024-05-01T10:00:00+24:00",
        "2024-05-01T25:00:00Z", "20240501T100000Z", "2024-W18-3", "12", "v1.9", "9/FFFFFF00", "2024-05",
    ],
)  # fmt: skip
def test_fault_52_text_that_does_not_say_what_it_is(value):
    with pytest.raises(
        ValueError, match="here: .* is text without a known format, so it cannot be compared. Say what it is: "
    ) as caught:
        key(value)
    assert str(caught.value).endswith("or a CursorFormat(parse, format)")


@pytest.mark.parametrize(
    ("value", "sorts"),
    [("v1.9", True), ("2024-05", True), ("12", False), ("12/31/2025", False), ("May 1, 2024", False)],
)
def test_fault_52_text_is_advised_where_it_may_sort(value, sorts):
    with pytest.raises(ValueError, match="without a known format") as caught:
        key(value)
    assert ("cursor_format='text'" in str(caught.value)) is sorts


@pytest.mark.parametrize("value", [True, b"x", [1], {}, object(), timedelta(1), 1j])
def test_what_is_no_value(value):
    with pytest.raises(TypeError, match="here: "):
        key(value)


@pytest.mark.parametrize("value", [math.inf, Decimal("-Infinity")])
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match="here: "):
        key(value)


@pytest.mark.parametrize("first", [1, 1.5, Decimal(1), "2024-05-01", "2024-05-01T10:00:00Z", WALL, WALL.date()])
@pytest.mark.parametrize("value", [None, math.nan, Decimal("NaN"), Decimal("sNaN"), ""])
def test_a_missing_value_has_no_key(value, first):
    scale = Scale("here")
    assert not scale.begin(value)
    assert scale.key(value) is None
    assert scale.begin(first)(value) is None


@given(
    st.lists(
        st.one_of(
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.decimals(allow_nan=False, allow_infinity=False),
        ),
        min_size=2,
    )
)
def test_numbers_compare_exactly(values):
    assert sorted(values, key=Fraction) == sorted(values, key=lambda value: keys(0, value)[1])


MOMENTS = st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29))
OFFSETS = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def spelled(moment, style):
    text = moment.isoformat(timespec="microseconds")
    return {
        "iso": moment.isoformat(), "space": text.replace("T", " "), "full": text,
        "nanos": text[:26] + "000" + text[26:],
        "zulu": moment.astimezone(UTC).isoformat().replace("+00:00", "Z"), "datetime": moment,
        "compact": text[:-3] + text[-2:],
    }[style]  # fmt: skip


STYLES = st.sampled_from(["iso", "space", "nanos", "full", "zulu", "datetime", "compact"])


@given(MOMENTS, OFFSETS, STYLES, MOMENTS, OFFSETS, STYLES)
def test_instants_compare_whatever_their_spelling(one, offset, style, two, offset_two, style_two):
    one, two = one.replace(tzinfo=offset), two.replace(tzinfo=offset_two)
    first, second = keys(spelled(one, style), spelled(two, style_two))
    assert (first < second, first == second) == (one < two, one == two)


def test_digits_beyond_those_of_datetime_count():
    values = [f"2024-05-01T10:00:00.{digits}Z" for digits in ("1", "10", "1000000001", "100000001", "11")]
    assert keys(*values)[0] == keys(*values)[1]
    assert sorted(values, key=lambda value: keys(value)[0])[-3:] == [values[2], values[3], values[4]]


def test_a_naive_value_is_an_instant_where_the_zone_is_stated():
    assert (
        keys("2024-07-01T10:00:00", "2024-07-01T08:00:00Z", zone="Europe/Berlin")[0] == keys("2024-07-01T08:00:00Z")[0]
    )
    assert keys("2024-01-01T10:00:00", zone=BERLIN) == keys("2024-01-01T09:00:00Z")
    assert keys(date(2024, 1, 1), zone=UTC) == keys("2024-01-01T00:00:00Z")
    assert keys("2024-10-27T02:30:00", zone=BERLIN) == keys("2024-10-27T00:30:00Z")  # of two, the earlier


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, "2024-05-01"), ("2024-05-01T10:00:00Z", 1.5), (WALL, 5), (Decimal(1), WALL)],
)
def test_kinds_that_do_not_compare(one, other):
    with pytest.raises(TypeError, match="here: .* cannot be compared with"):
        keys(one, other)


@pytest.mark.parametrize(("number", "unit"), [(1714557600, "epoch_s"), (1714557600000, "epoch_ms"), (5, None)])
def test_a_number_beside_a_time_may_count_since_1970(number, unit):
    with pytest.raises(TypeError) as caught:
        keys("2024-01-01T00:00:00Z", number)
    advice = "" if unit is None else f": if it is a time, write cursor_format={unit!r}"
    assert str(caught.value).endswith(f"cannot be compared with '2024-01-01T00:00:00Z' (str){advice}")


@pytest.mark.parametrize("naive", [WALL, "2024-05-01T10:00:00", date(2024, 5, 1), "2024-05-01"])
def test_naive_and_aware(naive):
    with pytest.raises(TypeError, match="pass the time zone of the first, such as timezone='UTC'"):
        keys("2024-05-01T10:00:00Z", naive)


def test_days_are_midnights_and_read_beside_times():
    assert keys(WALL, date(2024, 5, 1), "2024-05-01")[1:] == keys(datetime(2024, 5, 1)) * 2


# Spelling


@given(MOMENTS, OFFSETS, STYLES)
def test_a_value_is_spelled_as_another(moment, offset, style):
    value = spelled(moment.replace(tzinfo=offset), style)
    scale = Scale("here")
    assert scale.spell(scale.key(value), value) == value


@pytest.mark.parametrize(
    ("value", "like", "expected"),
    [
        (2.7, 1, 2), (-2.7, 1, -3), (7, Decimal("0.10"), Decimal("7.00")),
        (Decimal("2.75"), Decimal("0.1"), Decimal("2.75")),
        (2**60 + 1, 1.0, float(2**60)), (Fraction(1, 3), Decimal(1), Decimal("0." + "3" * 100)),
    ],
)  # fmt: skip
def test_numbers_are_converted_downwards(value, like, expected):
    scale = Scale("here")
    scale.key(1)
    found = scale.spell(value, like)
    assert (found, type(found), str(found)) == (expected, type(expected), str(expected))


@pytest.mark.parametrize(
    ("value", "like", "expected"),
    [
        ("2024-05-01T10:00:59.999999999Z", "2024-01-01T00:00Z", "2024-05-01T10:00Z"),
        ("2024-05-01T10:00:59.999999999Z", "2024-01-01T00:00:00+05:30", "2024-05-01T15:30:59+05:30"),
        (
            "2024-05-01T10:00:59.999999999Z",
            datetime(2024, 1, 1, tzinfo=UTC),
            datetime(2024, 5, 1, 10, 0, 59, 999999, UTC),
        ),
        ("2024-05-01T23:00:00Z", date(2024, 1, 1), date(2024, 5, 2)),
        ("2024-05-01T23:00:00Z", "2024-01-01 00:00", "2024-05-02 01:00"),
        ("2024-05-01T23:00:00Z", WALL, datetime(2024, 5, 2, 1)),
    ],
)
def test_instants_are_converted_downwards(value, like, expected):
    scale = Scale("here", BERLIN)
    assert scale.spell(scale.key(value), like) == expected


# Moving


@given(MOMENTS, OFFSETS, STYLES, st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650)))
def test_shifting_is_exact_and_keeps_the_spelling(moment, offset, style, step):
    moment = moment.replace(tzinfo=offset)
    value = spelled(moment, style)
    scale = Scale("here")
    at = scale.key(value)
    moved = scale.shift(value, step, -1)
    if isinstance(moved, str):
        assert len(moved) == len(value) or moved.startswith("0001")
        assert moved[19:20] == value[19:20]
    try:
        expected = moment.astimezone(UTC) - step
    except OverflowError:
        return
    [wanted] = keys(expected)
    assert scale.key(moved) <= wanted <= at
    if step.microseconds == 0 or style not in ("iso", "zulu"):
        assert scale.key(moved) == wanted


@pytest.mark.parametrize(
    ("value", "step", "moved"),
    [
        ("2024-03-01T00:00:00Z", timedelta(days=1), "2024-02-29T00:00:00Z"),
        ("2023-03-01T00:00:00Z", timedelta(days=1), "2023-02-28T00:00:00Z"),
        ("2024-01-01T00:00:00.000000000Z", timedelta(microseconds=1), "2023-12-31T23:59:59.999999000Z"),
        ("0001-01-01T05:00:00+05:00", timedelta(days=1), "0001-01-01T00:00:00+05:00"),
        (datetime(1, 1, 1, tzinfo=UTC), timedelta(days=1), datetime(1, 1, 1, tzinfo=UTC)),
        (datetime(2024, 3, 31, 12, tzinfo=BERLIN), timedelta(days=1), datetime(2024, 3, 30, 11, tzinfo=BERLIN)),
        ("2024-03-31", timedelta(hours=1), "2024-03-30"),
        (date(2024, 3, 1), timedelta(days=1), date(2024, 2, 29)),
        (10, 3, 7), (10, 0.5, 9), (1.5, 1, 0.5), (Decimal("1.50"), Decimal("0.125"), Decimal("1.375")),
    ],
)  # fmt: skip
def test_shifting_back(value, step, moved):
    found = Scale("here").shift(value, step, -1)
    assert (found, type(found)) == (moved, type(moved))


@pytest.mark.parametrize(("value", "step"), [(5, timedelta(1)), (WALL, 5), ("2024-05-01", 1)])
def test_what_does_not_move(value, step):
    with pytest.raises(TypeError, match="cannot be moved"):
        Scale("here").shift(value, step)


def test_past_the_last_year():
    with pytest.raises(OverflowError, match="lies after the year 9999"):
        Scale("here").shift("9999-12-31T00:00:00Z", timedelta(days=2))


@pytest.mark.parametrize(
    ("value", "count", "moved"),
    [
        ("2024-01-31T10:00:00.5+02:00", 1, "2024-02-29T10:00:00.5+02:00"),
        ("2023-01-31", 1, "2023-02-28"), ("2024-12-15T00:00Z", 1, "2025-01-15T00:00Z"),
        (date(2024, 10, 31), 16, date(2026, 2, 28)),
        (datetime(2024, 3, 1, tzinfo=BERLIN), 1, datetime(2024, 4, 1, tzinfo=BERLIN)),
    ],
)  # fmt: skip
def test_months_are_those_of_the_calendar(value, count, moved):
    assert Scale("here").months(value, count) == moved


@pytest.mark.parametrize("value", [5, Decimal(1), 1.5])
def test_what_has_no_months(value):
    with pytest.raises(TypeError, match="cannot be moved by months"):
        Scale("here").months(value, 1)


# Quick keys


ZONES = [None, UTC, BERLIN, ZoneInfo("Asia/Kolkata"), ZoneInfo("Australia/Lord_Howe")]
ENDS = ["", "Z", "z", " UTC", "+02:00", "+0530", "-08", " -03:30", "+00:00"]
POINTS = ["", "", ".5", ".500", ".123456", ".123456789", ",25", ".0"]


def moment(rng):
    """Draw a time of one of few days, near a change of the clocks or the ends of the calendar."""
    day = rng.choice(["2024-05-01", "2024-10-27", "2024-03-31", "2024-04-07", "0001-01-01", "9999-12-31", "2016-12-31"])
    clock = f"{rng.randrange(24):02}:{rng.choice([0, 1, 29, 30, 59]):02}"
    return day, clock, f":{rng.choice([0, 1, 59]):02}" if rng.random() < 0.9 else ""


def drawn(rng, shape):
    """Draw a value of a column of one shape, or now and then of another."""
    if rng.random() < 0.02:
        shape = rng.choice([shape, "int", "text aware", "text naive", "datetime aware", "date", "day", None])
    if shape in ("int", "float", "decimal"):
        number = rng.randrange(-50, 50)
        return {"int": number, "float": number / 4, "decimal": Decimal(number) / 8}[rng.choice([shape, "int", shape])]
    if shape is None or shape.startswith("hours"):
        return rng.choice([None, "", math.nan]) if shape is None else drawn_of_few_hours(rng, shape)
    day, clock, seconds = moment(rng)
    if shape in ("date", "day"):
        return date.fromisoformat(day) if shape == "date" else day
    if shape.startswith("text"):
        end = "" if shape == "text naive" else rng.choice(ENDS[1:])
        if rng.random() < 0.01:
            clock, seconds = rng.choice(["24:00", "23:59"]), rng.choice(["", ":00", ":60"])
        return f"{day}{rng.choice('TTT ')}{clock}{seconds}{rng.choice(POINTS) if seconds else ''}{end}"
    value = datetime.fromisoformat(f"{day}T{clock}{seconds or ':00'}").replace(microsecond=rng.choice([0, 500_000, 1]))
    if shape == "datetime aware":
        return value.replace(tzinfo=rng.choice([UTC, UTC, BERLIN, timezone(timedelta(hours=2))]), fold=rng.randrange(2))
    return value.replace(fold=rng.randrange(2))


def drawn_of_few_hours(rng, shape):
    """Draw a time as text of one of few hours, mostly with one zone and one number of digits."""
    zone = "" if "naive" in shape else rng.choice(["+02:00"] * 6 + ["Z", "+05:30", "-03:00"])
    point = f".{rng.randrange(10**9):09}"[: rng.choice([8, 4])] if "digits" in shape else ""
    point = point if rng.random() < 0.9 else rng.choice(POINTS)
    separator = "T" if rng.random() < 0.99 else " "
    clock = f"{rng.randrange(4):02}:{rng.randrange(60):02}:{rng.randrange(60):02}"
    return f"2024-{rng.choice(['10-27', '10-06'])}{separator}{clock}{point}{zone}"


def outcome(compare):
    try:
        return compare()
    except (TypeError, ValueError) as error:
        return type(error), str(error)


@pytest.mark.parametrize(
    "shape",
    [
        "int", "float", "decimal", "text aware", "text naive", "datetime aware", "datetime naive", "date", "day",
        "hours", "hours naive", "hours digits", "hours naive digits",
    ],
)  # fmt: skip
@pytest.mark.parametrize("zone", ZONES, ids=str)
def test_quick_keys_compare_as_exact_values_do(shape, zone):
    """Each of 65 columns compares 3 000 pairs, 195 000 in all, with values of other shapes among them."""
    rng = random.Random(f"{shape} {zone}")
    scale, exact = Scale("here", zone), Scale("here", zone)
    first = drawn(rng, shape) or 0
    quick = scale.begin(first) or scale.key
    assert quick(first) == scale.key(first)
    before, wanted = quick(first), exact._exact(first)
    for _ in range(3_000):
        value = drawn(rng, shape)
        key = outcome(lambda: quick(value))  # noqa: B023 - called at once
        if isinstance(key, tuple):
            assert key == outcome(lambda: exact.key(value))  # noqa: B023 - as above
        elif is_missing_value(value):
            assert key is None
        else:
            now = exact._exact(value)
            assert (key < before, key == before, key > before) == (now < wanted, now == wanted, now > wanted), value
            assert key == scale.key_of(value)
            assert hash(key) == hash(scale.key_of(value))
            before, wanted = key, now


@given(st.lists(st.tuples(MOMENTS, OFFSETS, STYLES), min_size=2, max_size=8))
def test_quick_keys_agree_with_slow_ones(values):
    values = [spelled(moment.replace(tzinfo=offset), style) for moment, offset, style in values]
    scale = Scale("here")
    quick = scale.begin(values[0])
    assert [quick(value) for value in values] == [scale.key_of(value) for value in values]
    assert [scale._form.moment(quick(value)) for value in values] == [scale._exact(value) for value in values]


def test_the_wire_keeps_every_digit():
    values = [5, 1.5, Decimal("1.50"), date(2024, 5, 1), WALL, "2024-05-01T10:00:00.500Z", 2**70]
    assert list(map(wire, values)) == [
        5, 1.5, "1.50", "2024-05-01", "2024-05-01T10:00:00", "2024-05-01T10:00:00.500Z", 2**70,
    ]  # fmt: skip


def test_the_clock_is_the_key_of_now():
    before, now, after = datetime.now(UTC), clock(), datetime.now(UTC)
    assert moment_of(before) <= now <= moment_of(after)


BROKEN = "0123456789-+:.,TZz Wtx\x00\u0663"


def test_fault_52_quick_keys_refuse_the_text_that_slow_ones_do():
    """Python parses more than we read, such as any character after the seconds: 2 000 broken times."""
    rng = random.Random(52)
    firsts = ["2024-05-01T10:00:00Z", "2024-05-01T10:00:00.5Z", "2024-05-01 10:00:00+02:00", "2024-05-01T10:00:00"]
    firsts += ["2024-05-01T10:00Z", "2024-05-01T10:00:00.123456789Z", "2024-05-01T10:00:00.123-0500"]
    for number in range(2_000):
        first = firsts[number % len(firsts)]
        scale = Scale("here", rng.choice([None, "Europe/Berlin"]))
        quick = scale.begin(first)
        for _ in range(number % 20):
            quick(first)  # whose hour is then remembered
        slow = Scale("here", scale._clock.zone)
        slow.settle(first)
        slow._form = scale._form
        text = list(rng.choice(firsts))
        for _ in range(rng.randint(1, 2)):
            place = rng.randrange(len(text))
            text[place : place + rng.randint(0, 1)] = rng.choice(["", *BROKEN])
        value = "".join(text)
        assert read_or_refuse(quick, value) == read_or_refuse(slow.key, value), (first, value)


def read_or_refuse(key_of, value):
    try:
        return key_of(value)
    except (TypeError, ValueError) as error:
        return type(error)


@pytest.mark.parametrize(("zone", "broken"), [("Z", "2024-05-01T10:00,59Z"), ("+02:00", "2024-05-01T10:00-01+02:00")])
def test_fault_52_text_of_an_hour_that_was_seen_is_no_exception(zone, broken):
    scale = Scale("here")
    quick = scale.begin(f"2024-05-01T10:00:00{zone}")
    for minute in range(60):
        assert quick(f"2024-05-01T10:{minute:02}:00{zone}")
    with pytest.raises(ValueError, match="without a known format"):
        quick(broken)


@pytest.mark.parametrize(
    ("value", "named"), [(1_714_557_600_000, "epoch_ms"), (1_714_557_600, "epoch_s"), (7, "epoch_s")]
)
def test_a_length_of_time_names_the_format_of_the_values(value, named):
    scale = Scale("here", known={"a row": value})
    scale.settle(value)
    with pytest.raises(TypeError, match=f"or a timedelta with a cursor_format such as '{named}'"):
        scale.check_step("lookback", timedelta(minutes=10))
