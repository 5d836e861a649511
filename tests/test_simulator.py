"""Several runs over one fake store, network and clock, schedule by schedule; `simulator/__init__.py` says how.

`CHECKPOINT_SIMULATOR_SCHEDULES=200000` makes it at least that many over the tests together, and
`CHECKPOINT_SIMULATOR_PROCESSES=2` gives them to two processes; the number done is printed with `-s`. Random ones begin
at the seed `CHECKPOINT_SIMULATOR_SEED` (0). A failure prints the shortest schedule found.
"""

from __future__ import annotations

import itertools
import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from simulator.jobs import Plan, RunPlan
from simulator.parts import Part, do_all
from simulator.search import at_random, every, replay

from checkpoint.errors import Conflict
from checkpoint.run import claims, doubts, flush
from checkpoint.stores import memory, threads, truto
from checkpoint.stores.base import holds, unchanged

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEDULES = int(os.environ.get("CHECKPOINT_SIMULATOR_SCHEDULES", "1000"))
SEED = int(os.environ.get("CHECKPOINT_SIMULATOR_SEED", "0"))
PROCESSES = int(os.environ.get("CHECKPOINT_SIMULATOR_PROCESSES", "1"))
LONG = 100_000
"""Schedules from which on nothing is sampled that can be done whole."""
SEEDS_A_PART = 500

# An exception that comes in a finaliser is one that Python ignores, whatever is done.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# Three operations each; leaving commits once more.
JOBS = (
    ("set a", "commit", "set a"),
    ("set a", "soon", "delete a"),
    ("member m", "commit", "drop m"),
    ("page s", "commit", "page s"),
    ("count count", "count count", "count count"),
)
PAIRS = list(itertools.combinations_with_replacement(JOBS, 2))


def check(name: str, parts: Iterable[Part]) -> None:
    """Run parts, and print how many schedules there were; fail with the shortest form of the first that goes wrong."""
    began, number, ended = time.perf_counter(), 0, True
    for done in do_all(parts, PROCESSES):
        number, ended = number + done.schedules, ended and done.ended
        if done.wrong is not None:
            pytest.fail(done.wrong, pytrace=False)
    print(f"{name}: {number} schedules{', all' if ended else ''}, {time.perf_counter() - began:.0f} s")


def pairs(store: str, faults: int) -> Iterable[Plan]:
    """Return the plans of all pairs of jobs, the second in another number of shards."""
    for one, other in PAIRS:
        if store != "api" or JOBS[-1] not in {one, other}:  # the API cannot refuse a lost update
            yield Plan(store, (RunPlan(one), RunPlan(other, shards=2)), faults)


def found(plan: Plan, what: str) -> str:
    """Return what the first schedule that goes wrong is told, and say how long it took to find."""
    began = time.perf_counter()
    for number, outcome in enumerate(every(plan), start=1):
        if outcome.wrong:
            print(f"{what}: found after {number} schedules, {time.perf_counter() - began:.2f} s: {outcome}")
            return outcome.wrong[0]
    return "nothing"


# Schedules


def test_a_schedule_repeats_itself():
    """The plan and the choices are all that a schedule depends on."""
    for seed in range(40):
        first, again = at_random(seed), at_random(seed)
        if first.plan.store == "api":
            continue  # its pool of threads may take turns otherwise; the list of choices is repeated all the same
        assert again.choices.trail == first.choices.trail
        assert replay(first.plan, first.choices.numbers()).choices.numbers() == first.choices.numbers()


@pytest.mark.parametrize("store", ["atomic", "server", "api"])
def test_two_runs_in_every_order(store):
    """All schedules in which nothing fails; over the API, where two runs make more than 100 000, the first ones."""
    most = None if SCHEDULES >= LONG and store == "atomic" else SCHEDULES // 40
    check(f"{store}, every order", [Part(plan, most) for plan in pairs(store, 0)])


@pytest.mark.parametrize("store", ["atomic", "server", "api"])
def test_two_runs_in_every_order_with_one_fault(store):
    """All schedules in which one thing goes wrong, wherever it may; of each pair at most the first ones."""
    check(f"{store}, one fault", [Part(plan, SCHEDULES // 80) for plan in pairs(store, 1)])


def test_random_runs():
    seeds = range(SEED, SEED + SCHEDULES // 2)
    check(f"random, from seed {SEED}", [Part(seeds=part) for part in parts_of(seeds)])


def parts_of(seeds: range) -> Iterable[range]:
    return (seeds[at : at + SEEDS_A_PART] for at in range(0, len(seeds), SEEDS_A_PART))


# The faults it was made to find, each with its repair taken out


def test_fault_77_is_found_without_the_head(monkeypatch):
    """Two runs create one group with different numbers of shards on the API."""
    base = flush.Flush._base
    monkeypatch.setattr(
        flush.Flush,
        "_base",
        lambda self, watched: {key: e for key, e in base(self, watched).items() if key != "__group__.g"},
    )
    plan = Plan("api", (RunPlan(("member p", "commit"), shards=1), RunPlan(("member q", "commit"), shards=2)), faults=0)
    assert "'g/" in found(plan, "row 77")


def test_fault_78_is_found_without_true_compare_and_swap(monkeypatch):
    """What is to be written anyway is taken for no difference, as version 1 did."""

    def check_base(state_key, changes, base, stored):
        for key, entry in base.items():
            if not unchanged(entry, stored.get(key)) and not (key in changes and holds(stored.get(key), changes[key])):
                raise Conflict(state_key, key, entry, stored.get(key))

    monkeypatch.setattr(memory, "check_base", check_base)
    plan = Plan("atomic", (RunPlan(("count count",)), RunPlan(("count count",))), faults=0)
    assert found(plan, "row 78") == "2 counted, and 1 stored"


def test_fault_79_is_found_without_certain_reads(monkeypatch):
    """A list that shows what is to be written stands for the write."""
    doubtful = truto._is_doubtful

    def trusting(key, changes, expected, listed, seen):
        return doubtful(key, {}, expected, listed, seen) and not (key in changes and holds(listed, changes[key]))

    monkeypatch.setattr(truto, "_is_doubtful", trusting)
    steps = ("set a", "set b", "commit", "set a", "set b", "commit", "back a", "back b", "commit")
    assert "was told" in found(Plan("api", (RunPlan(steps),), faults=1), "row 79")


def test_fault_80_is_found_without_an_end_of_doubt(monkeypatch):
    """A value of a run's own that was never answered is recognised for ever, whoever wrote it."""
    monkeypatch.setattr(
        doubts.Doubts,
        "is_own",
        lambda self, key, entry: key in self._by_key and entry is not None and entry.value in self._by_key[key].sent,
    )
    job = ("set a", "commit", "set a", "commit", "rest 200", "set a", "commit")
    plan = Plan("atomic", (RunPlan(job), RunPlan(("rest 150", "revert a", "commit"), overwrite=True)), faults=1)
    assert "which it never knew" in found(plan, "row 80")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asks the exception tables of 3.11")
def test_fault_95_is_found_with_locks_in_python(monkeypatch):
    """A lock taken by a method in Python, not by a C-level `with`, is left held by an exception between the two."""

    class Leaking:
        def __init__(self):
            self._lock = threading.RLock()

        def __enter__(self):
            self._lock.acquire()
            return self

        def __exit__(self, *_):
            self._lock.release()

    init = claims.Claims.__init__

    def with_leaking_lock(self, *args, **options):
        init(self, *args, **options)
        self.lock = Leaking()

    monkeypatch.setattr(claims.Claims, "__init__", with_leaking_lock)
    first = next(wrong for wrong in map(interrupted, range(1, 2000)) if wrong)
    assert first.startswith(("never ends", "a lock is left held"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asks the exception tables of 3.11")
def test_fault_95_an_exception_at_each_place():
    """A handler raises at each place of a run where CPython runs handlers, one schedule a place."""
    step = 1 if SCHEDULES >= LONG else 23
    places = range(1 + SEED % step, 4000, step)
    wrong = {place: told for place in places if (told := interrupted(place))}
    assert not wrong


def test_fault_95_a_page_that_was_not_handed_out_is_not_claimed():
    step = 1 if SCHEDULES >= LONG else 5
    places = range(1 + SEED % step, 1200, step)
    plans = {place: RunPlan(("page s", "page s", "set a"), bytecodes=place) for place in places}
    told = {place: replay(Plan("atomic", (plan,), faults=0)) for place, plan in plans.items()}
    assert [str(outcome) for outcome in told.values() if outcome.wrong] == []


def test_fault_97_a_lease_without_its_thread_is_let_go():
    """Also where an exception comes while entering lets go of everything."""
    step = 1 if SCHEDULES >= LONG else 3
    plans = [RunPlan((), exclusive=True, bytecodes=place) for place in range(120 + SEED % step, 360, step)]
    told = [replay(Plan("atomic", (plan,), faults=1), [0, 0, 1]) for plan in plans]
    assert [str(outcome) for outcome in told if outcome.wrong] == []


def interrupted(place: int) -> str | None:
    """Return what goes wrong when a handler raises at this place of a run with all sorts of commits."""
    ops = ("set a", "soon", "member m", "commit", "page s", "flush", "set b")
    outcome = replay(
        Plan("atomic", (RunPlan(ops, exclusive=True, stubborn=place % 2 == 0, bytecodes=place),), faults=0)
    )
    return str(outcome) if outcome.wrong else None


def test_fault_97_is_found_where_a_thread_is_kept_too_early(monkeypatch):
    """A thread that was not started is joined, and what could not start it is not told."""

    def submit(self, call):
        if self._running is None:
            calls = queue.SimpleQueue()
            thread = threading.Thread(target=threads._run_calls, args=[calls], name=self._name, daemon=True)
            self._running = calls, thread
            thread.start()
        self._running[0].put(call)

    monkeypatch.setattr(threads.Worker, "submit", submit)
    plan = Plan("atomic", (RunPlan(("set a", "soon", "set b", "soon")),), faults=1)
    assert found(plan, "row 97").startswith("never ends")
