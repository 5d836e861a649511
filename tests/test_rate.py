"""The pace of requests, as plain arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.stores.rate import Rate, Trip, retry_after, simulate

DATE = "Wed, 01 May 2024 10:00:00 GMT"


def test_bursts_within_the_window_go_at_once():
    pace = Rate(3, 10.0)
    for _ in range(3):
        assert pace.window(100.0) == 0
        pace.take(100.0)
    assert pace.window(100.0) == 10
    assert pace.window(104.0) == 6
    assert pace.window(110.0) == 0


def test_a_request_counts_from_its_answer():
    pace = Rate(1, 10.0)
    pace.take(100.0).at = 103.0
    assert pace.window(110.0) == 3


def test_of_two_rates_the_lower_counts():
    pace = Rate(5, 10.0)
    for at in range(5):
        pace.take(100.0 + at)
    pace.tighten(10, 10.0)
    assert (pace.limit, pace.window(104.0)) == (5, 6)
    pace.tighten(2, 10.0)
    assert (pace.limit, pace.window(104.0), pace.window(114.0)) == (2, 9, 0)


def test_the_gate_stays_shut_for_the_longest_pause():
    pace = Rate(3, 10.0)
    assert pace.gate(100.0) == 0
    pace.shut(105.0)
    pace.shut(102.0)
    assert pace.gate(100.0) == 5
    assert pace.gate(106.0) == 0


@pytest.mark.parametrize(
    ("sent", "requests", "seconds"),
    [(0, 500, 0), (0, 501, 10), (0, 1000, 10), (0, 1001, 20), (400, 101, 10), (0, 0, 0)],
)
def test_the_forecast_is_when_the_last_may_go(sent, requests, seconds):
    pace = Rate(500, 10.0)
    for _ in range(sent):
        pace.take(100.0)
    assert pace.forecast(100.0, requests) == seconds


@given(st.integers(1, 5), st.floats(0.5, 20), st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3)), max_size=60))
def test_never_more_than_the_limit_in_any_period(limit, period, gaps):
    pace, now, counted = Rate(limit, period), 0.0, []
    for gap, answered_after in gaps:
        now += gap
        now += pace.window(now)
        slot = pace.take(now)
        slot.at = now + answered_after
        counted.append(now)
    for first, beyond in zip(counted, counted[limit:], strict=False):
        assert beyond - first >= period - 1e-6


def test_a_simulated_flush_goes_in_rounds_of_the_concurrency():
    trips = simulate(Rate(500, 10.0), 5, concurrency=2, latency=0.5, start=1.0)
    assert trips == [Trip(1.0, 1.5), Trip(1.0, 1.5), Trip(1.5, 2.0), Trip(1.5, 2.0), Trip(2.0, 2.5)]
    assert simulate(Rate(500, 10.0), 100, concurrency=32, latency=0.05)[-1].answered == pytest.approx(0.2)
    assert simulate(Rate(500, 10.0), 0, concurrency=32, latency=0.05) == []


def test_a_simulated_flush_works_on_one_request_at_a_time():
    trips = simulate(Rate(500, 10.0), 5, concurrency=2, latency=2.0, work=0.5)
    assert trips == [Trip(0.0, 2.5), Trip(0.5, 3.0), Trip(2.5, 5.0), Trip(3.0, 5.5), Trip(5.0, 7.5)]
    trips = simulate(Rate(500, 10.0), 3, concurrency=3, latency=0.0, work=0.5, start=1.0)
    assert trips == [Trip(1.0, 1.5), Trip(1.5, 2.0), Trip(2.0, 2.5)]


def test_a_simulated_flush_hands_its_pace_to_the_next():
    pace = Rate(3, 10.0)
    assert simulate(pace, 4, concurrency=8, latency=1.0) == [*[Trip(0.0, 1.0)] * 3, Trip(11.0, 12.0)]
    assert [trip.sent for trip in simulate(pace, 3, concurrency=8, latency=1.0, start=13.0)] == [13.0, 13.0, 22.0]
    pace = Rate(3, 10.0)
    pace.shut(2.0)
    assert simulate(pace, 1, concurrency=1, latency=0.5) == [Trip(2.0, 2.5)]


@given(st.integers(1, 6), st.floats(0.5, 20), st.integers(1, 5), st.floats(0, 3), st.integers(0, 40))
def test_a_simulated_flush_never_exceeds_rate_or_concurrency(limit, period, concurrency, latency, requests):
    trips = simulate(Rate(limit, period), requests, concurrency=concurrency, latency=latency)
    assert len(trips) == requests
    for first, beyond in zip(trips, trips[limit:], strict=False):
        assert beyond.sent - first.answered >= period - 1e-6
    for first, beyond in zip(trips, trips[concurrency:], strict=False):
        assert beyond.sent >= first.answered - 1e-6


@pytest.mark.parametrize(
    ("header", "date", "seconds"),
    [
        (None, None, None),
        ("7", None, 7.0),
        ("0", None, 0.0),
        ("-7", None, None),
        ("9" * 400, None, 1e9),
        *((text, None, None) for text in ("nan", "inf", "1e400", "1.5", "+7", "7 s", "٣")),
        *((text, None, 7.0) for text in ("7 ", " 7", "7\t", "0007")),
        ("-0", None, None),
        ("soon", None, None),
        ("Wed May  1 10:00:07 2024", DATE, 7.0),
        ("Wednesday, 01-May-24 10:00:07 GMT", DATE, 7.0),
        ("Wed May  1 09:59:59 2024", DATE, None),
        ("", None, None),
        ("Wed, 01 May 2024 10:00:07 GMT", DATE, 7.0),
        ("Wed, 01 May 2024 09:59:59 GMT", DATE, None),
        ("Wed, 01 May 2024 10:00:07 GMT", None, None),
        ("Wed, 01 May 2024 10:00:07 GMT", "yesterday", None),
        ("0 Jan  10:00:00 99999999999 GMT", DATE, None),
    ],
)
def test_retry_after(header, date, seconds):
    assert retry_after(header, date) == seconds
