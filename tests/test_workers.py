"""What `benchmarks/workers.py` simulates is what several workers of a store really do."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import workers
import workers_real
from workers import Crowd

from checkpoint import Checkpointer


@pytest.mark.parametrize(("store", "trips"), [(store, workers.TRIPS[store]) for store in ("postgres", "s3", "server")])
def test_a_commit_makes_as_many_round_trips(store, trips, tmp_path):
    """As many times its client waits for an answer: seen on the line between them."""
    counted = []
    for commits in (2, 6):
        with (
            workers_real.far(Crowd(store, latency=0.0), tmp_path, counted.append) as made,
            workers_real.reached(made),
            Checkpointer("crowd", made.url) as cp,
        ):
            for number in range(commits):
                cp.group("accounts")["a"] = {"at": number}
                cp.commit()
    assert counted[1] - counted[0] == pytest.approx(4 * trips, abs=1)  # PostgreSQL's goodbye is seen in time, or not


def test_two_real_runs_are_not_faster_than_simulated():
    crowd = Crowd("postgres", workers=2, read=0.1, latency=0.04)
    said, real = workers.simulate(crowd, 6), workers_real.run(crowd, 6)
    assert (real.parts, real.commits) == (6, 6)
    assert said.seconds * 0.95 <= real.seconds


def pace(**options):
    return workers.steady(Crowd(**{"read": 0.5, "latency": 0.05, **options})).pace


@pytest.mark.parametrize("store", workers.TRIPS)
def test_one_worker_waits_for_its_source_and_its_commits(store):
    trips = workers.TRIPS[store]
    assert pace(store=store, workers=1, rate=(10_000, 1.0)) == pytest.approx(1 / (0.5 + 0.05 * trips), rel=0.02)


@pytest.mark.parametrize(
    ("store", "options", "most"),
    [
        ("postgres", {}, 1 / 0.3),  # six trips under the lock
        ("s3", {}, 1 / 0.05),  # from the object read to the object put
        ("server", {"work": 0.01}, 100),
        ("sqlite", {"work": 0.01, "latency": 0}, 100),
        ("truto", {}, 25),  # 500 requests in 10 seconds, two a commit
    ],
)
def test_no_number_of_workers_does_more(store, options, most):
    found = pace(store=store, workers=256, **options)
    assert most * 0.5 < found <= most * 1.1


def test_windows_are_bounded_by_one_runs_commits():
    crowd = {"store": "postgres", "workers": 64}
    assert pace(**crowd, shape="windows") == pytest.approx(1 / 0.4, rel=0.05)
    assert pace(**crowd, shape="windows, commit_soon") > 60


def test_a_lone_worker_never_repeats_a_put_and_many_do():
    seen = [workers.steady(Crowd("s3", workers=number, read=0.5, latency=0.05)) for number in (1, 32)]
    assert seen[0].repeated == 0
    assert seen[1].repeated > seen[1].commits / 2
    assert seen[1].requests == 2 * (seen[1].commits + seen[1].repeated) or seen[1].requests > 2 * seen[1].parts


def test_the_knee_is_where_twice_as_many_do_little_more():
    crowd = Crowd("postgres", read=0.5, latency=0.05)
    bend = workers.knee(crowd)
    some, before = (workers.steady(replace(crowd, workers=number)).pace for number in (bend, bend // 2))
    assert (bend, some < 1.25 * before) == (4, False)


def test_the_knees_are_those_of_this_code():
    """`python benchmarks/workers.py --show` puts them there anew; a bucket's pauses are what changed last."""
    shown = json.loads(workers.FOUND.read_text("utf-8"))["knees"]
    (row,) = [row for row in shown if (row["store"], row["latency"]) == ("s3", 0.05)]
    assert workers.knee_there(Crowd("s3", latency=0.05)) == row


def test_the_page_shows_what_was_found():
    found = json.loads(workers.FOUND.read_text("utf-8"))
    page = workers.PAGE.read_text("utf-8")
    for (begin, end), shown in ((workers.KNEES, workers.knees_shown(found["knees"])),
                                (workers.RUNS, workers.runs_shown(found["runs"]))):  # fmt: skip
        assert page.partition(begin)[2].partition(end)[0] == shown
    assert {row["within"] for row in found["runs"]} == {True}
    assert {(row["store"], row["workers"]) for row in found["runs"]} >= {
        (store, number) for store in workers_real.CHECKED for number in workers_real.WORKERS
    }
