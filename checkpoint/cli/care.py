"""`checkpoint doctor` and `checkpoint unlock`: when something is wrong."""

from __future__ import annotations

import platform
import sys
import time
from contextlib import closing, suppress
from datetime import datetime, timezone
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import click

from checkpoint.cli import screen
from checkpoint.cli.options import as_json, confirm, dry_run, missing, namespace, reading, store_option, yes
from checkpoint.errors import CheckpointError, CorruptState, Unauthorized
from checkpoint.run import lease
from checkpoint.stores import open_store
from checkpoint.stores.base import KeepsHistory, ListsNamespaces, TellsFacts, TellsTime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checkpoint.stores.base import Store

LOOKS = 5
"""Loads that the latency is the median of."""

SKEW = 60.0
"""Seconds that two clocks may differ before it is called wrong; streams allow for five minutes."""

NAMESPACE = "checkpoint doctor"
"""The namespace that is read, and never written."""


class Check(NamedTuple):
    """What was looked at, and what was seen."""

    name: str
    good: bool | None
    """None: neither good nor wrong, but what the store is like."""
    said: str


_JUDGED = {True: "ok", False: "WRONG", None: "-"}


@click.command()
@as_json
@store_option()
def doctor(*, as_json: bool, url: str | None) -> None:
    """Look whether the store can be used.

    Can it be reached, is the token good, how long does it take, is the clock right, which versions are at work. Only
    reads. Exits with 1 where something is wrong.
    """
    checks: list[Check] = []
    for check in _checks(url):
        checks.append(check)
        if not as_json:  # told at once: a store that cannot be reached takes a minute to say so
            screen.say(f"{_JUDGED[check.good]:5}  {check.name:12}  {check.said}")
    healthy = all(check.good is not False for check in checks)
    if as_json:
        told = [{"check": check.name, "good": check.good, "said": check.said} for check in checks]
        screen.document({"healthy": healthy, "checks": told})
    sys.exit(0 if healthy else 1)


def _checks(url: str | None) -> Iterator[Check]:
    yield Check("checkpoint", True, f"{version('checkpoint-store')}, Python {platform.python_version()}")
    try:
        store = open_store(url)
    except (CheckpointError, ValueError) as error:
        yield Check("store", False, str(error))
        return
    with closing(store):
        yield Check("store", True, repr(store))
        if said := missing(store):
            yield Check("reach", False, said)
            return
        try:
            yield from _looks(store)
        except Unauthorized as error:
            yield Check("token", False, str(error))
        except CheckpointError as error:
            yield Check("reach", False, str(error))


def _looks(store: Store) -> Iterator[Check]:
    store.load(NAMESPACE)  # connections are opened by the first
    times = [_time_of_load(store) for _ in range(LOOKS)]
    yield Check("reach", True, f"answers in {median(times) * 1000:.1f} ms (median of {LOOKS})")
    if isinstance(store, TellsTime):
        asked = datetime.now(timezone.utc)
        told = store.clock()
        between = asked + (datetime.now(timezone.utc) - asked) / 2
        yield judged_clock((told - between).total_seconds())
    if isinstance(store, TellsFacts):
        for name, fact in store.facts().items():
            yield Check(name, True, fact)
    lists, keeps = isinstance(store, ListsNamespaces), isinstance(store, KeepsHistory)
    yield Check("namespaces", lists or None, "can be listed" if lists else "cannot be listed")
    yield Check("history", keeps or None, "kept" if keeps else "not kept")


def _time_of_load(store: Store) -> float:
    began = time.perf_counter()
    store.load(NAMESPACE)
    return time.perf_counter() - began


def judged_clock(skew: float) -> Check:
    """Judge by how many seconds the store's clock is ahead of ours."""
    if abs(skew) < SKEW:
        # The store tells whole seconds.
        return Check("clock", True, "as the store's, to the second" if abs(skew) < 2 else f"{abs(skew):.0f} s apart")
    which = "behind" if skew > 0 else "ahead of"
    return Check("clock", False, f"{screen.span(abs(skew))} {which} the store's: set this machine's clock")


@click.command()
@namespace
@yes
@dry_run
@as_json
@store_option()
def unlock(namespace: str, *, yes: bool, dry_run: bool, as_json: bool, url: str | None) -> None:
    """Release the lease that an exclusive run left behind.

    A run that dies lets its lease go by itself, after 15 seconds. One that is alive commits nothing more where the
    store compares and swaps: stop it first.
    """
    with reading(url) as store:
        held = _held(store, namespace)
        if held.owner is not None and not dry_run:
            confirm(f"{namespace!r} is held by {_holder_said(held)}. Release it?", sure=yes)
            with suppress(CorruptState):  # it is replaced all the same
                held = lease.unlock(store, namespace)
    if as_json:
        screen.document({"namespace": namespace, "dry_run": dry_run, "owner": held.owner, "since": held.since})
    elif held.owner is None:
        screen.say(f"{namespace!r} is not held.")
    else:
        screen.say(f"{namespace!r} {'is' if dry_run else 'was'} held by {_holder_said(held)}.")


def _holder_said(held: lease.Holder) -> str:
    return f"{held.owner} since {held.since}" if held.since else f"{held.owner}"


def _held(store: Store, namespace: str) -> lease.Holder:
    entry = store.load(namespace).get(lease.KEY)
    try:
        return lease.holder(namespace, entry)
    except CorruptState:
        return lease.Holder("something that is no lease", None, 0, 0)
