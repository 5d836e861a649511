"""`checkpoint runs`: the runs of a namespace, and how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from checkpoint.cli import screen
from checkpoint.cli.options import as_json, namespace, reading, store_option
from checkpoint.cli.sentences import say_what_changed
from checkpoint.entries import LEASE_KEY, RUN_KEY
from checkpoint.overview import words
from checkpoint.overview.freshness import NO_END, WHY_NO_END, how_far, lease_in
from checkpoint.overview.moments import instant
from checkpoint.overview.namespaces import nothing
from checkpoint.overview.past import keeping, run_fields
from checkpoint.run.runs import recorded

if TYPE_CHECKING:
    from checkpoint.overview.freshness import Ended, Holder, Released
    from checkpoint.run.runs import Run


_BEGAN = "began (UTC)"


@click.command()
@namespace
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show at most N runs.", metavar="N"
)
@click.option("--streams", "by_stream", is_flag=True, help="Show the rows of each stream and each group.")
@as_json
@store_option()
def runs(namespace: str, *, limit: int, by_stream: bool, as_json: bool, url: str | None) -> None:
    """List the runs of a namespace, newest first.

    For each run: when it began, how long it took, how it ended, its commits, and the rows that its streams saw and
    delivered. Commits and rows are recorded when a run ends. A run without an end is still running, or was killed;
    if it is exclusive, its lease shows which.

    Example: checkpoint runs crm_acme --streams
    """
    with reading(url) as store:
        found = recorded(keeping(store).history(namespace, RUN_KEY))[:limit]
        entries = store.load(namespace)
        if not found and not entries:
            raise click.ClickException(nothing(store, namespace))
    lease = lease_in(namespace, entries.get(LEASE_KEY))
    states: list[Ended] = [how_far(run, lease) for run in found]
    if as_json:
        screen.document([run_fields(run) for run in found])
    elif not found:
        screen.say(f"No runs of {namespace!r} are recorded in {store!r}.")
    else:
        columns: tuple[str, ...]
        if by_stream:
            right = ("seen", "delivered", "dropped", "late")
            rows = [row for run, state in zip(found, states, strict=True) for row in _stream_rows(run, state)]
            columns = (_BEGAN, "ended", "stream", *right, "run")
        else:
            columns = (_BEGAN, "took", "ended", "commits", "seen", "delivered", "run")
            right = ("took", "commits", "seen", "delivered")
            rows = [_run_row(run, state) for run, state in zip(found, states, strict=True)]
        screen.show_table(columns, rows, wide="run", right=right, whole=(_BEGAN, "ended"))
        for sentence in (*_errors_said(found), *_no_end_said(found, states, lease)):
            screen.say_wrapped(sentence)
        if found[0].outcome == "failed":
            say_what_changed(store, namespace, found[0])


def _errors_said(runs: list[Run]) -> list[str]:
    """Return lines that say which runs ended with which error."""
    by_error: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if run.error is not None:
            by_error.setdefault((run.outcome or "ended", run.error), []).append(run.run_id)
    return [
        f"{_runs_named(ids)} {outcome} with {error}; the message is in the job's log."
        for (outcome, error), ids in by_error.items()
    ]


def _runs_named(ids: list[str]) -> str:
    return f"{'Run' if len(ids) == 1 else 'Runs'} {words.first(ids)}"


def _no_end_said(runs: list[Run], states: list[Ended], lease: Holder | Released | None) -> list[str]:
    """Return what is known about the runs without an end."""
    by_state: dict[Ended, list[str]] = {}
    for run, state in zip(runs, states, strict=True):
        if state != "ended":
            by_state.setdefault(state, []).append(run.run_id)
    ago = words.age(None if lease is None else lease.renewed)
    return [f"{_runs_named(ids)}: {WHY_NO_END[state].format(ago)}." for state, ids in by_state.items()]


def _stream_rows(run: Run, state: Ended) -> list[tuple[str, ...]]:
    """Return a line for each stream of a run; a run without an end has recorded none."""
    began, outcome = run.started[:16].replace("T", " "), _outcome(run, state)
    streams = [
        (name, *(f"{rows.get(what, 0):,}" for what in ("seen", "delivered", "dropped", "late")))
        for name, rows in run.streams.items()
    ]
    return [(began, outcome, *stream, run.run_id) for stream in streams or [("-",) * 5]]


def _run_row(run: Run, state: Ended) -> tuple[str, ...]:
    began, ended = instant(run.started), instant(run.ended)
    took = "-" if began is None or ended is None else words.span((ended - began).total_seconds())
    rows = [f"{sum(stream.get(what, 0) for stream in run.streams.values()):,}" for what in ("seen", "delivered")]
    did = (f"{run.commits:,}", *rows) if run.ended is not None else ("-",) * 3
    return run.started[:16].replace("T", " "), took, _outcome(run, state), *did, run.run_id


def _outcome(run: Run, state: Ended) -> str:
    return run.outcome or NO_END.get(state, "-")
