"""Which schedules are run, and the shortest form of one that goes wrong."""

from __future__ import annotations

import logging
import random
import sys
from typing import TYPE_CHECKING, NamedTuple

from .choices import Choices
from .clockwork import Clockwork
from .jobs import Job, Plan, RunPlan
from .verdict import violations
from .world import World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPS = ("set a", "set b", "back a", "delete a", "member m", "member n", "drop m", "page s", "count count", "revert a")
ENDS = ("commit", "commit", "soon", "flush", "discard", "rest 20", "rest 200")


class Outcome(NamedTuple):
    """What came of one schedule."""

    plan: Plan
    choices: Choices
    wrong: list[str]
    reached: bool
    """Whether each exception between bytecodes came: its run was long enough."""

    def __str__(self) -> str:
        return f"{'; '.join(self.wrong)}\n  replay({self.plan!r}, {self.choices.numbers()})"


def replay(plan: Plan, given: Sequence[int] = (), dice: random.Random | None = None, often: float = 0.15) -> Outcome:
    """Run one schedule."""
    choices = Choices(given, faults=plan.faults, random=dice, often=often)
    clockwork = Clockwork(choices)
    world = World(clockwork, plan.store)
    jobs = [Job(world, name, run) for name, run in zip("ABC", plan.runs, strict=False)]
    random.seed(7)  # the jitter of the retry policy
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        clockwork.run([(job.process, job.main) for job in jobs])
        wrong = list(violations(clockwork, world, jobs))
    finally:
        logging.disable(disabled)
    wrong += [f"a thread died of {error!r}" for error in clockwork.crashes]
    return Outcome(plan, choices, wrong, all(job.process.bytecodes is None for job in jobs))


def every(plan: Plan) -> Iterator[Outcome]:
    """Run all schedules of a plan, those with the fewest special choices at the end first."""
    given: list[int] = []
    while True:
        outcome = replay(plan, given)
        yield outcome
        trail = outcome.choices.trail
        while trail and trail[-1].chosen == trail[-1].options - 1:
            trail.pop()
        if not trail:
            return
        given = [choice.chosen for choice in trail[:-1]] + [trail[-1].chosen + 1]


def at_random(seed: int) -> Outcome:
    """Run a random schedule of a random plan; the seed is all it depends on."""
    dice = random.Random(seed)
    return replay(a_plan(dice), dice=dice, often=dice.choice((0.03, 0.1, 0.3)))


def a_plan(dice: random.Random) -> Plan:
    """Make up a plan."""
    store = dice.choice(("atomic", "atomic", "server", "api"))
    runs = tuple(_a_run(dice, store) for _ in range(dice.choice((1, 2, 2, 2, 3))))
    return Plan(store, runs, faults=dice.choice((0, 1, 1, 2, 3)))


def _a_run(dice: random.Random, store: str) -> RunPlan:
    ops: list[str] = []
    for _ in range(dice.randint(1, 3)):
        ops += [dice.choice(OPS[:-2] if store == "api" else OPS), *dice.sample(ENDS, dice.randint(0, 2))]
    return RunPlan(
        tuple(ops),
        exclusive=dice.random() < 0.25,
        overwrite=dice.random() < 0.1,
        shards=dice.choice((1, 2)),
        record=dice.random() < 0.2,
        stubborn=dice.random() < 0.7,
        bytecodes=dice.randint(1, 1500) if dice.random() < 0.05 and sys.version_info >= (3, 11) else None,
    )


def shortest(outcome: Outcome) -> Outcome:
    """Take away runs, operations and choices as long as it goes wrong."""
    best = outcome
    given: list[int] = best.choices.numbers()
    improved = True
    while improved:
        improved = False
        for plan, numbers in _smaller(best.plan, given):
            tried = replay(plan, numbers)
            if tried.wrong and _size(tried) < _size(best):
                best, given, improved = tried, tried.choices.numbers(), True
                break
    return best


def _size(outcome: Outcome) -> tuple[int, int, int]:
    runs = outcome.plan.runs
    numbers = outcome.choices.numbers()
    options = sum(run.exclusive + run.overwrite + run.record + (run.bytecodes is not None) for run in runs)
    return sum(len(run.ops) + 1 for run in runs) + options + outcome.plan.faults, len(numbers), sum(numbers)


def _smaller(plan: Plan, numbers: list[int]) -> Iterator[tuple[Plan, list[int]]]:
    for at, run in enumerate(plan.runs):
        if len(plan.runs) > 1:
            yield plan._replace(runs=plan.runs[:at] + plan.runs[at + 1 :]), numbers
        simpler = [run._replace(ops=run.ops[:op] + run.ops[op + 1 :]) for op in range(len(run.ops))]
        simpler += [
            run._replace(exclusive=False), run._replace(overwrite=False), run._replace(record=False),
            run._replace(bytecodes=None),
        ]  # fmt: skip
        for one in simpler:
            if one != run:
                yield plan._replace(runs=(*plan.runs[:at], one, *plan.runs[at + 1 :])), numbers
    if plan.faults:
        yield plan._replace(faults=plan.faults - 1), numbers
    for at, number in enumerate(numbers):
        if number:
            yield plan, [*numbers[:at], 0, *numbers[at + 1 :]]
        yield plan, [*numbers[:at], *numbers[at + 1 :]]
    for at, number in enumerate(numbers):
        for less in range(1, number):
            yield plan, [*numbers[:at], less, *numbers[at + 1 :]]
