"""The engine by which every store tries again."""

from __future__ import annotations

import logging
import time

import pytest
from freezegun import freeze_time

from checkpoint import StoreUnavailable
from checkpoint.run import lease
from checkpoint.stores import retrying
from checkpoint.stores.network import Loop
from checkpoint.stores.retrying import Again, Deadline, Operation, Policy

QUICK = Policy(first=0.001, longest=0.001)


class Failing:
    """An attempt that fails so many times and then succeeds."""

    def __init__(self, failures):
        self.failures = failures
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls <= len(self.failures):
            raise self.failures[self.calls - 1]
        return "done"


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, "checkpoint")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("clock", [retrying.monotonic, lease.monotonic, Loop._monotonic])
def test_fault_47_deadlines_go_by_the_monotonic_clock(clock):
    """Not by the one on the wall; a frozen one does not show that, for these are read before it is frozen."""
    assert abs(clock() - time.monotonic()) < 10


def test_what_may_pass_is_tried_again_and_counted():
    operation, deadline, attempt = Operation("the store"), Deadline(10), Failing([Again("busy"), Again("busy")])
    assert operation.call(attempt, deadline, QUICK) == "done"
    assert (attempt.calls, operation.retries, deadline.attempts) == (3, 2, 3)


def test_what_is_final_comes_out_at_once():
    operation, attempt = Operation("the store"), Failing([Again("busy"), TimeoutError("of a signal handler")])
    with pytest.raises(TimeoutError, match="of a signal handler"):
        operation.call(attempt, Deadline(10), QUICK)
    assert attempt.calls == 2


def test_fault_91_the_text_counts_the_attempts_and_the_seconds():
    attempt, began = Failing([Again(f"failure {n}") for n in range(1_000)]), time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        Operation("the store").call(attempt, Deadline(0.3), Policy(first=0.05, longest=0.1))
    took = time.monotonic() - began
    text = str(caught.value)
    assert text.startswith(f"the store: gave up after {attempt.calls} attempts in 0.")
    assert text.endswith(f" s: failure {attempt.calls - 1}")
    assert 0.05 < took < 0.6
    assert attempt.calls > 3  # the deadline ended it, and nothing before


def test_attempts_may_be_bounded():
    attempt = Failing([Again("busy")] * 9)
    with pytest.raises(StoreUnavailable, match=r"the store: gave up after 3 attempts in 0\.0 s: busy"):
        Operation("the store").call(attempt, Deadline(10), Policy(first=0.001, attempts=3))


def test_a_pause_past_the_deadline_ends_it_at_once():
    attempt = Failing([Again("busy", pause=11)])
    with pytest.raises(StoreUnavailable, match=r"gave up after 1 attempt in 0\.0 s"):
        Operation("the store").call(attempt, Deadline(10))


def test_the_pause_asked_for_is_kept():
    began = time.monotonic()
    assert Operation("the store").call(Failing([Again("busy", pause=0.2)]), Deadline(10), QUICK) == "done"
    assert time.monotonic() - began >= 0.2


def test_a_stopped_operation_waits_for_nothing():
    operation = Operation("the store")
    operation.stop()
    with pytest.raises(StoreUnavailable, match="gave up after 1 attempt"):
        operation.call(Failing([Again("busy", pause=5)]), Deadline(10))


def test_the_cause_is_the_last_attempts_own():
    last = Again("busy")
    last.__cause__ = OSError("the reason")
    with pytest.raises(StoreUnavailable) as caught:
        Operation("the store").call(Failing([last] * 2), Deadline(10), Policy(first=0.001, attempts=2))
    assert (repr(caught.value.__cause__), caught.value.__context__) == ("OSError('the reason')", None)


def test_a_wait_of_three_seconds_is_told_once(told):
    operation, deadline = Operation("the store"), Deadline(60)
    operation.tell(deadline, "busy")
    operation.tell(deadline, "busy", pause=1)
    assert told() == []
    assert 2 < operation.quiet(deadline) <= 3
    operation.tell(deadline, "busy", pause=3)
    operation.tell(deadline, "busy", pause=3)
    assert told() == ["the store: no usable answer yet, trying for up to 60 s: busy"]
    assert operation.quiet(deadline) == float("inf")


def test_a_pause_about_to_pass_three_seconds_is_told(told, monkeypatch):
    monkeypatch.setattr(retrying, "SILENCE", 0.01)
    Operation("the store").call(Failing([Again("busy", pause=0.02)]), Deadline(10), QUICK)
    assert told() == ["the store: no usable answer yet, trying for up to 10 s: busy"]


def test_a_frozen_clock_stops_no_deadline():
    with freeze_time("2031-01-01"), pytest.raises(StoreUnavailable):
        Operation("the store").call(Failing([Again("busy")] * 1_000), Deadline(0.1), QUICK)


def test_things_that_go_on_at_once_end_at_one_time():
    deadline = Deadline(10)
    deadline.at += 5
    other = deadline.same()
    other.at += 1
    assert (other.began, other.seconds, other.at - deadline.at) == (deadline.began, 10, 1)
