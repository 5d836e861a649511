"""`checkpoint init`, `doctor`, `unlock` and `reshard`: setup and repair."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from contextlib import closing, suppress
from datetime import datetime, timezone
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from checkpoint.cli import screen
from checkpoint.cli.options import (
    as_json,
    confirm,
    dry_run,
    missing,
    namespace,
    opened,
    reading,
    store_option,
    using,
    yes,
)
from checkpoint.cli.sentences import say_how_to_free
from checkpoint.errors import CheckpointError, Conflict, CorruptState, Unauthorized
from checkpoint.overview import words
from checkpoint.overview.freshness import Holder, lease_in
from checkpoint.overview.namespaces import nothing
from checkpoint.run import lease, resharding
from checkpoint.stores.base import Atomic, HasTables, ListsNamespaces, TellsFacts, TellsTime, history_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from checkpoint.entries import Entry
    from checkpoint.overview.freshness import Released
    from checkpoint.stores.base import Store

LOOKS = 5
"""Loads whose median is the latency, where they are quick."""

DEADLINE, PATIENCE = 2.8, 0.9
"""Seconds one load may take, and seconds after which no further load begins."""

LIMIT, LEAST = 4.0, 2.0
"""Seconds after the start of the process at which the checks end, whatever the store does, so that the process ends
within 5. On a machine where it starts slowly, the checks still have at least the second number.
"""

_WITH_DEADLINE = ("http", "https", "server+http", "server+https", "postgres", "postgresql", "s3", "gs", "az", "sqlite")

SKEW = 60.0
"""Seconds by which two clocks may differ before one is called wrong; streams allow five minutes."""

NAMESPACE = "__doctor__"
"""The namespace of the checks: always read, written only with `--write`."""


class Check(NamedTuple):
    """One check and its result."""

    name: str
    good: bool | None
    """None: neither good nor wrong, only a fact about the store."""
    said: str


_JUDGED = {True: "ok", False: "WRONG", None: "-"}


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Print the SQL for a database administrator; change nothing.")
@click.option(
    "--role",
    default="checkpoint",
    show_default=True,
    help="The role of the jobs, to which the SQL grants what they need.",
)
@store_option()
def init(*, only_print: bool, role: str, url: str | None) -> None:
    """Create or upgrade the tables of a store.

    Jobs create missing tables themselves, if their role may; they never change existing ones, which other jobs may
    use. Running it again changes nothing.

    Example: checkpoint init --print --store postgresql://db/state
    """
    with using(url) as store:
        if not isinstance(store, HasTables):
            screen.say(f"{store!r} needs no init: jobs create what is missing.")
        elif only_print:
            click.echo(store.ddl(role), nl=False)  # not wrapped: it goes into a file
        else:
            store.init()
            screen.say(f"The tables of {store!r} are ready.")


@click.command()
@click.option("--write", is_flag=True, help=f"Also write to the namespace {NAMESPACE}, and delete it again.")
@as_json
@store_option()
def doctor(*, write: bool, as_json: bool, url: str | None) -> None:
    """Check whether the store can be used.

    It checks the connection, the token, response times and the clock, and names the versions in use. It only reads,
    and ends within 5 seconds. With --write it also checks that changes by other writers are noticed, and that keys
    with a slash arrive unchanged. Exits with 1 if something is wrong.

    Example: checkpoint doctor --store sqlite:///state.db
    """
    checks: list[Check] = []
    checking = _checks(url, write=True) if write else _until(_moment(), _checks(_hurried(url), write=False))
    for check in checking:
        checks.append(check)
        if not as_json:  # shown at once: an unreachable store takes a minute to fail
            screen.say(f"{_JUDGED[check.good]:5}  {check.name:12}  {check.said}")
    healthy = all(check.good is not False for check in checks)
    if as_json:
        told = [{"check": check.name, "good": check.good, "said": check.said} for check in checks]
        screen.document({"healthy": healthy, "checks": told})
    sys.exit(0 if healthy else 1)


def _moment() -> float:
    """Return when the checks end, by the monotonic clock."""
    now = time.monotonic()
    began = click.get_current_context().obj  # None: called by a program, whose start time is irrelevant
    return max((began if isinstance(began, float) else now) + LIMIT, now + LEAST)


def _until(moment: float, checks: Iterator[Check]) -> Iterator[Check]:
    """Yield checks as a thread makes them; abandon the thread when the store does not answer in time.

    Stores from other packages may ignore deadlines.
    """
    made: SimpleQueue[Check | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            for check in checks:
                made.put(check)
            made.put(None)
        except BaseException as error:  # noqa: BLE001 - raised where the checks are read
            made.put(error)

    began = time.monotonic()
    Thread(target=work, name="checkpoint-doctor", daemon=True).start()
    while True:
        try:
            found = made.get(timeout=max(0.0, moment - time.monotonic()))
        except Empty:
            yield Check("reach", False, f"no answer in {time.monotonic() - began:.1f} s")
            return
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        yield found


def _checks(url: str | None, *, write: bool) -> Iterator[Check]:
    from importlib.metadata import version  # slow to import, like statistics

    yield Check("checkpoint", True, f"{version('checkpoint-store')}, Python {platform.python_version()}")
    try:
        store = opened(url)
    except (CheckpointError, click.ClickException) as error:
        yield Check("store", False, str(error))
        return
    with closing(store):
        yield Check("store", True, repr(store))
        if said := missing(store):
            yield Check("reach", False, said)
            return
        try:
            yield from _looks(store)
            if write:
                yield from _writes(store)
        except Unauthorized as error:
            yield Check("token", False, str(error))
        except CheckpointError as error:
            yield Check("reach", False, str(error))


def _hurried(url: str | None) -> str | None:
    """Return the URL with a short timeout, unless the URL sets one."""
    url = os.environ.get("CHECKPOINT_STORE") if url is None else url
    if url is None or url != url.strip() or "deadline=" in url or url.partition("://")[0] not in _WITH_DEADLINE:
        return url
    return f"{url}{'&' if '?' in url else '?'}deadline={DEADLINE}"


def _looks(store: Store) -> Iterator[Check]:
    with _Warnings() as warnings:
        times = [_time_of_load(store)]  # the first load opens connections
        while len(times) <= LOOKS and sum(times) < PATIENCE:
            times.append(_time_of_load(store))
    yield _judged_times(times[1:] or times)
    for said in dict.fromkeys(warnings.said):
        yield Check("warning", None, said)
    if sum(times) < PATIENCE:
        yield from _facts(store)
    else:
        yield Check("slow", None, "further checks were skipped, to end within 5 s")


def _facts(store: Store) -> Iterator[Check]:
    """Return what the store reports about itself, if it answers quickly."""
    if not isinstance(store, Atomic):
        store.commit(NAMESPACE, {}, {"missing": None})  # reads one key, and rejects a 404 that the API did not send
        yield Check("missing", True, "a missing key is told apart from a wrong address")
    if isinstance(store, TellsTime):
        asked = datetime.now(timezone.utc)
        told = store.clock()
        between = asked + (datetime.now(timezone.utc) - asked) / 2
        yield judged_clock((told - between).total_seconds())
    if isinstance(store, TellsFacts):
        for name, fact in store.facts().items():
            yield Check(name, True, fact)
    lists, keeps = isinstance(store, ListsNamespaces), history_of(store) is not None
    yield Check("namespaces", lists or None, "can be listed" if lists else "cannot be listed")
    yield Check("history", keeps or None, "kept" if keeps else "not kept")


def _judged_times(times: list[float]) -> Check:
    """Judge how fast the store answers."""
    from statistics import median

    milliseconds = median(times) * 1000
    shown = f"in {milliseconds:.1f} ms" if milliseconds >= 0.1 else "within 0.1 ms"
    return Check("reach", True, f"answers {shown} (median of {len(times)})")


class _Warnings(logging.Handler):
    """Collects the library's warnings meanwhile, such as an address that may be wrong."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.said.append(record.getMessage())

    def __enter__(self) -> Self:
        logging.getLogger("checkpoint").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("checkpoint").removeHandler(self)


def _writes(store: Store) -> Iterator[Check]:
    """Write to a separate namespace, and delete it afterwards."""
    slashes = {"a/b": "1", "a%2Fb": "2", "a/./b": "3"}
    try:
        first = store.commit(NAMESPACE, {"probe": "1"}).entries.get("probe") or store.load(NAMESPACE)["probe"]
        store.commit(NAMESPACE, {"probe": "2"})
        noticed = all(_is_conflict(store, base) for base in (first, None))
        said = "a change by another writer is noticed" if noticed else "a change by another writer is NOT noticed"
        yield Check("compare", noticed, said)
        store.commit(NAMESPACE, slashes)
        found = {key: entry.value for key, entry in store.load(NAMESPACE).items() if key in slashes}
        said = "arrive as they are" if found == slashes else "do not arrive: something in between rewrites paths"
        yield Check("slashes", found == slashes, f"keys with a slash {said}")
    finally:
        store.commit(NAMESPACE, dict.fromkeys(["probe", *slashes]))


def _is_conflict(store: Store, base: Entry | None) -> bool:
    """Tell whether the store refuses a commit on this base."""
    try:
        store.commit(NAMESPACE, {"probe": "3"}, {"probe": base})
    except Conflict:
        return True
    return False


def _time_of_load(store: Store) -> float:
    began = time.perf_counter()
    store.load(NAMESPACE)
    return time.perf_counter() - began


def judged_clock(skew: float) -> Check:
    """Judge the store's clock by how many seconds it is ahead of ours."""
    if abs(skew) < SKEW:
        # The store reports whole seconds.
        return Check(
            "clock",
            True,
            "agrees with the store's to the second" if abs(skew) < 2 else f"{abs(skew):.0f} s apart from the store's",
        )
    which = "behind" if skew > 0 else "ahead of"
    return Check("clock", False, f"{words.span(abs(skew))} {which} the store's: set this machine's clock")


@click.command()
@namespace
@yes
@dry_run
@as_json
@store_option()
def unlock(namespace: str, *, yes: bool, dry_run: bool, as_json: bool, url: str | None) -> None:
    """Release the lease that an exclusive run left behind.

    It shows who holds the lease, since when, and whether that run is alive, and asks. Nobody has to release the
    lease of a dead run: the next run takes it over after it has seen no renewal for 15 seconds, unless the job says
    otherwise. Stop a run that is alive first: --yes releases its lease too, and on stores with compare-and-swap its
    next commit then ends with LeaseLost. On the HTTP API it goes on.

    Example: checkpoint unlock crm_acme
    """
    with reading(url) as store:
        entries = store.load(namespace)
        if not entries:
            raise click.ClickException(nothing(store, namespace))
        entry = entries.get(lease.KEY)
        holder, is_held = lease_in(namespace, entry), _is_held(namespace, entry)
        if not as_json:
            for sentence in _holding_said(namespace, holder, is_held=is_held):
                screen.say_wrapped(sentence)
            if dry_run:
                say_how_to_free(store, namespace, holder)
        if is_held and not dry_run:
            confirm(f"Release the lease of {namespace!r}?", sure=yes)
            with suppress(CorruptState):  # it is replaced anyway
                lease.unlock(store, namespace)
    if as_json:
        told: dict[str, Any] = dict.fromkeys(("owner", "since", "renewed", "probably_dead"))
        told |= holder.fields() if isinstance(holder, Holder) else {"owner": _NO_LEASE if is_held else None}
        screen.document({"namespace": namespace, "dry_run": dry_run, **told})
    elif is_held:
        screen.say("Nothing was written." if dry_run else f"The lease of {namespace!r} is released.")


_NO_LEASE = "something that is not a lease"


def _is_held(namespace: str, entry: Entry | None) -> bool:
    """Tell whether there is something to release: a held lease, or a value that is not a lease."""
    try:
        return lease.lease_state(namespace, entry).owner is not None
    except CorruptState:
        return True


def _holding_said(namespace: str, found: Holder | Released | None, *, is_held: bool) -> list[str]:
    if found is not None:
        return found.sentences(namespace)
    return [f"{namespace!r} is held by {_NO_LEASE}." if is_held else f"{namespace!r} is not held."]


@click.command()
@namespace
@click.argument("name")
@click.option("--shards", type=int, required=True, help="The number of entries to pack the members into.")
@as_json
@store_option()
def reshard(namespace: str, name: str, *, shards: int, as_json: bool, url: str | None) -> None:
    """Pack a group into another number of shards.

    For groups on the HTTP API only, where a shard is an entry with many members; elsewhere each member has its own
    entry. It holds the lease of the namespace while it works. If it was interrupted, run it again: no member is
    lost.

    Example: checkpoint reshard crm_acme accounts --shards 16
    """
    with reading(url) as store:
        if not store.load(namespace):
            raise click.ClickException(nothing(store, namespace))
        try:
            before, members = resharding.reshard(store, namespace, name, shards)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
    if as_json:
        told = {"namespace": namespace, "group": name, "before": before, "shards": shards, "members": members}
        screen.document(told)
    else:
        screen.say(f"{name!r} in {namespace!r}: {members:,} members, {before} shards before, {shards} now.")
