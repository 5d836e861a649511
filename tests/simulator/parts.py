"""Parts of a long search, which may be given to several processes."""

from __future__ import annotations

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from .search import at_random, every, shortest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .jobs import Plan
    from .search import Outcome


class Part(NamedTuple):
    """Schedules of one plan, or of random plans."""

    plan: Plan | None = None
    """All schedules of it, at most `most`; None: random ones."""
    most: int | None = None
    seeds: range = range(0)
    """Of the random ones."""


class Done(NamedTuple):
    """What came of a part."""

    schedules: int
    ended: bool
    """Whether these were all: of a plan, there are no others."""
    wrong: str | None
    """The shortest form of the first schedule that went wrong."""


def do(part: Part) -> Done:
    """Run the schedules of a part, to the first that goes wrong."""
    number = 0
    outcomes = iter(every(part.plan) if part.plan is not None else map(at_random, part.seeds))
    for outcome in itertools.islice(outcomes, part.most):
        number += 1
        if outcome.wrong:
            return Done(number, False, str(_brief(outcome)))
    return Done(number, part.most is None or number < part.most, None)


def do_all(parts: Iterable[Part], processes: int) -> Iterator[Done]:
    """Run parts, in so many processes; 1: in this one."""
    if processes == 1:
        yield from map(do, parts)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(do, parts)


def _brief(outcome: Outcome) -> Outcome:
    try:
        return shortest(outcome)
    except Exception:  # noqa: BLE001 - the schedule as it was found is worth more than why it could not be shortened
        return outcome
