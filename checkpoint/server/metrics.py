"""Answer `/metrics` for Prometheus, by namespace and never by member.

How fresh the namespaces are is looked up when somebody asks, and then kept for `FRESH` seconds. A lookup takes at most
`SECONDS`. Namespaces that it did not reach keep their earlier values, and come first the next time. Ages and lags are
kept as moments, so that they grow between two lookups.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from checkpoint.errors import CheckpointError
from checkpoint.overview.freshness import runs_of, summary_of
from checkpoint.overview.moments import instant
from checkpoint.overview.namespaces import Namespace
from checkpoint.stores.base import ListsNamespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from checkpoint.stores.base import Store

CONTENT_TYPE = CONTENT_TYPE_LATEST

FRESH = 5.0
"""Seconds for which the values that were found are used again."""

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""HTTP methods that have a label of their own. Clients may send any others, and each label would be kept in memory."""

SECONDS = 5.0
"""Seconds for one lookup of the namespaces."""

_GAUGES = {
    "checkpoint_keys": "Keys and members of groups.",
    "checkpoint_slowest_age_seconds": "The largest age of its keys.",
    "checkpoint_slowest_lag_seconds": "The largest lag of its keys.",
    "checkpoint_last_run_end_timestamp_seconds": "When the last run ended.",
    "checkpoint_last_success_timestamp_seconds": "When the last run ended that did not fail and was not stopped.",
    "checkpoint_last_run_failed": "Whether the last run that ended had failed.",
}


class Found(NamedTuple):
    """What was found of a namespace; None: nothing is known, or no position is an instant."""

    at: float
    """The time of the lookup, by the monotonic clock."""
    keys: int
    age: float | None
    lag: float | None
    ended: float | None
    succeeded: float | None
    failed: bool | None

    def samples(self, now: float) -> Iterator[float | None]:
        """Yield the values of the gauges, in their order."""
        since = now - self.at
        yield self.keys
        yield None if self.age is None else self.age + since
        yield None if self.lag is None else self.lag + since
        yield self.ended
        yield self.succeeded
        yield self.failed


class Lookup:
    """The freshness of a store's namespaces, looked up when somebody asks."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._looked: float | None = None
        self._found: dict[str, Found] = {}

    def found(self) -> dict[str, Found]:
        """Return what is known of each namespace; empty if the store cannot list them.

        Raises:
            StoreError: the store refused or failed.

        """
        with self._lock:  # one lookup at a time; those who wait get its result
            if self._looked is None or self._clock() - self._looked >= FRESH:
                self._look()
                self._looked = self._clock()
            return self._found

    def _look(self) -> None:
        if not isinstance(self._store, ListsNamespaces):
            return
        until = self._clock() + SECONDS
        names, before = self._store.namespaces(), self._found
        found = {name: before[name] for name in names if name in before}
        for name in sorted(names, key=lambda name: found[name].at if name in found else 0.0):
            if self._clock() >= until:
                break
            try:
                seen = self._find(name)
            except CheckpointError:  # there is no number for what cannot be read; the errors of requests show it
                seen = None
            found.pop(name, None)
            if seen is not None:
                found[name] = seen
        self._found = found

    def _find(self, name: str) -> Found | None:
        there = Namespace(self._store, name)
        summary = summary_of(there)
        last = there.run
        if summary is None:  # no keys, but there may have been a run that found nothing
            keys, age, lag = 0, None, None
            if last is None:
                return None
        else:
            keys, age, lag = summary.keys, summary.age, summary.lag
        runs = [] if last is None else [last] if last.outcome == "done" else runs_of(there)
        ended = sorted((run for run in runs if run.ended is not None), key=lambda run: run.ended or "", reverse=True)
        succeeded = next((run for run in ended if run.outcome == "done"), None)
        return Found(
            self._clock(),
            keys,
            age,
            lag,
            _timestamp(ended[0].ended) if ended else None,
            _timestamp(succeeded.ended) if succeeded else None,
            ended[0].outcome == "failed" if ended else None,
        )


class Metrics:
    """Counters of requests, and the freshness of the namespaces.

    `folder` is where several workers share their counters.
    """

    def __init__(self, store: Store, folder: str | None = None) -> None:
        self._lookup = Lookup(store)
        self._registry = CollectorRegistry()
        if folder is not None:
            # As prometheus-client does if the variable is set before it is imported.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]  # it has no types
            multiprocess.MultiProcessCollector(self._registry, folder)  # type: ignore[no-untyped-call]  # it has no types
        registry = None if folder is not None else self._registry
        self._commits = Counter("checkpoint_commits", "Commits that landed.", registry=registry)
        self._conflicts = Counter("checkpoint_conflicts", "Commits refused for a conflict.", registry=registry)
        self._seconds = Histogram(
            "checkpoint_request_seconds", "Seconds for each request.", ("method", "path", "status"), registry=registry
        )

    def observe(self, method: str, path: str, status: int, seconds: float, *, commits: bool) -> None:
        """Count a request; `path` is that of its route, and `commits` says whether the route commits."""
        self._seconds.labels(method if method in METHODS else "other", path, str(status)).observe(seconds)
        if commits and status < 300:
            self._commits.inc()
        elif commits and status == 409:
            self._conflicts.inc()

    def text(self, readable: Callable[[Iterable[str]], list[str]]) -> bytes:
        """Return all metrics in Prometheus's text format, for the namespaces that may be read.

        Raises:
            StoreError: the store refused or failed.

        """
        found, now = self._lookup.found(), time.monotonic()
        registry = CollectorRegistry()
        registry.register(_Told([(name, found[name].samples(now)) for name in readable(found)], self._registry))
        return generate_latest(registry)


class _Told:
    """A collector of the freshness of some namespaces, and of the counters."""

    def __init__(self, rows: list[tuple[str, Iterator[float | None]]], counted: CollectorRegistry) -> None:
        self._rows = rows
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        gauges = [GaugeMetricFamily(name, told, labels=["namespace"]) for name, told in _GAUGES.items()]
        for namespace, samples in self._rows:
            for gauge, sample in zip(gauges, samples, strict=True):
                if sample is not None:
                    gauge.add_metric([namespace], sample)
        yield from gauges
        for metric in self._counted.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def _timestamp(moment: str | None) -> float | None:
    then = instant(moment)
    return None if then is None else then.timestamp()
