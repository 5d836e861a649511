"""Several runs over one fake store, network and clock, schedule by schedule; `simulator/__init__.py` says how.

`CHECKPOINT_SIMULATOR_SCHEDULES=200000` makes it at least that many over the tests together; the number done is printed
with `-s`. Random ones begin at the seed `CHECKPOINT_SIMULATOR_SEED` (0). A failure prints the shortest schedule found.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from simulator.jobs import Plan, RunPlan
from simulator.search import at_random, every, replay, shortest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simulator.search import Outcome

SCHEDULES = int(os.environ.get("CHECKPOINT_SIMULATOR_SCHEDULES", "2000"))
SEED = int(os.environ.get("CHECKPOINT_SIMULATOR_SEED", "0"))
SHARE = {"pairs": 0.6, "random": 0.4}

done: Counter[str] = Counter()

# Three operations each; leaving commits once more.
JOBS = (
    ("set a", "commit", "set a"),
    ("set a", "soon", "delete a"),
    ("member m", "commit", "member m"),
    ("member n", "soon", "drop n"),
    ("page s", "commit", "page s"),
)


def check(outcomes: Iterable[Outcome], what: str, most: int) -> None:
    """Run so many schedules at most, and fail with the shortest form of the first that goes wrong."""
    for outcome in itertools.islice(outcomes, most):
        done[what] += 1
        if outcome.wrong:
            pytest.fail(str(shortest(outcome)), pytrace=False)
    print(f"{what}: {done[what]} schedules")


def test_a_schedule_repeats_itself():
    """The plan and the choices are all that a schedule depends on."""
    for seed in range(20):
        first, again = at_random(seed), at_random(seed)
        assert again.choices.trail == first.choices.trail
        assert replay(first.plan, first.choices.numbers()).choices.numbers() == first.choices.numbers()


def test_two_runs_of_one_key_in_every_order():
    plan = Plan("atomic", (RunPlan(("set a", "commit", "set a")), RunPlan(("set a", "commit", "set a"))), faults=0)
    check(every(plan), "every order", SCHEDULES)
