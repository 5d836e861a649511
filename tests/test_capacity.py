"""What `benchmarks/capacity.py` simulates is what a commit over HTTP really does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import capacity
from capacity import KEYS, Job


@pytest.mark.parametrize(
    ("job", "shards", "requests"),
    [
        (Job(partitions=40), KEYS, 41),
        (Job(partitions=40), 1, 2),
        (Job(partitions=400), 16, 17),
        (Job(partitions=2, streams=3), 16, 7),
        (Job(partitions=2_000, changed=3), KEYS, 6),
        (Job(partitions=2_000, changed=4), KEYS, 5),
        (Job(partitions=50), KEYS, 51),
    ],
    ids=str,
)
def test_a_commit_sends_as_many_requests_as_simulated(job, shards, requests):
    job = capacity.replace(job, latency=0.1, rate=(20_000, 0.5))
    said = capacity.cost(job, shards)
    real, (seconds,) = capacity.measure(job, shards)
    assert (said.requests, real) == (requests, requests)
    assert said.seconds * 0.99 <= seconds


def test_a_commit_waits_for_the_rate_as_simulated():
    job = Job(partitions=25, latency=0.1, rate=(10, 0.5), concurrency=4)
    said = capacity.cost(job, KEYS)
    requests, (seconds,) = capacity.measure(job, KEYS)
    assert requests == said.requests == 26
    assert said.seconds == pytest.approx(1.5)
    assert said.seconds * 0.99 <= seconds


@pytest.mark.parametrize(
    ("shards", "requests", "seconds"), [(KEYS, 10_001, 201.05), (1, 2, 0.1), (64, 65, 0.15)], ids=["keys", "1", "64"]
)
def test_ten_thousand_partitions(shards, requests, seconds):
    found = capacity.cost(Job(partitions=10_000), shards)
    assert found.requests == requests
    assert found.seconds == pytest.approx(seconds)


def test_what_is_more_than_an_hours_requests_goes_on_at_the_rate():
    found = capacity.cost(Job(partitions=10_000_000), KEYS)
    assert found.seconds == pytest.approx(10_000_000 / 50, rel=0.01)
    assert found.requests_per_hour == pytest.approx(180_000, rel=0.01)
    assert found.rate_used == pytest.approx(1, abs=0.01)


def test_a_group_leaves_nearly_all_of_the_rate_to_the_job():
    found = capacity.cost(Job(partitions=10_000, interval=60), 64)
    assert found.requests_per_hour == 60 * 65
    assert found.rate_used == pytest.approx(60 * 65 / 180_000)


def test_the_picture_holds_a_line_for_each_layout(tmp_path):
    capacity.plot(Job(), 64, tmp_path / "capacity.svg")
    drawn = (tmp_path / "capacity.svg").read_text("utf-8")
    assert drawn.count("<polyline") == 3
    assert "a group of 64 shards" in drawn
