"""`checkpoint runs`: the runs of a namespace, and how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from checkpoint.cli import screen
from checkpoint.cli.options import as_json, namespace, reading, store_option
from checkpoint.entries import RUN_KEY
from checkpoint.overview import words
from checkpoint.overview.moments import instant
from checkpoint.overview.namespaces import Namespace, nothing
from checkpoint.overview.past import fields_of, keeping
from checkpoint.run.runs import recorded

if TYPE_CHECKING:
    from checkpoint.run.runs import Run


@click.command()
@namespace
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show at most N runs.", metavar="N"
)
@click.option("--streams", "by_stream", is_flag=True, help="Show the rows of each stream, and of each group.")
@as_json
@store_option()
def runs(namespace: str, *, limit: int, by_stream: bool, as_json: bool, url: str | None) -> None:
    """List the runs of a namespace, the latest first.

    When each began, how long it took, how it ended, its commits, and the rows that its streams saw and delivered. A run
    without an end is still going, or was killed; what it did is not recorded.
    """
    with reading(url) as store:
        found = recorded(keeping(store).history(namespace, RUN_KEY))[:limit]
        if not found and not (there := Namespace(store, namespace)).names:
            raise click.ClickException(nothing(there.store, namespace))
    if as_json:
        screen.document([fields_of(run) for run in found])
    elif found and by_stream:
        right = ("seen", "delivered", "dropped", "late")
        rows = [row for run in found for row in _stream_rows(run)]
        screen.show_table(("began", "ended", "stream", *right, "run"), rows, wide="run", right=right)
    elif found:
        columns = ("began", "took", "ended", "commits", "seen", "delivered", "run")
        right = ("took", "commits", "seen", "delivered")
        screen.show_table(columns, [_run_row(run) for run in found], wide="run", right=right)
        for name in dict.fromkeys(run.error for run in found if run.error is not None):
            screen.say(f"{name}: {words.some([run.run_id for run in found if run.error == name])}")
        if any(run.ended is None for run in found):
            screen.say("no end: still going, or killed.")
    else:
        screen.say(f"No runs of {namespace!r} are recorded in {store!r}.")


def _stream_rows(run: Run) -> list[tuple[str, ...]]:
    """Return a line for each stream of a run; of a run without an end nothing is known of them."""
    began, outcome = run.started[:16].replace("T", " "), run.outcome or "no end"
    streams = [
        (name, *(f"{rows.get(what, 0):,}" for what in ("seen", "delivered", "dropped", "late")))
        for name, rows in run.streams.items()
    ]
    return [(began, outcome, *stream, run.run_id) for stream in streams or [("-",) * 5]]


def _run_row(run: Run) -> tuple[str, ...]:
    began, ended = instant(run.started), instant(run.ended)
    took = "-" if began is None or ended is None else words.span((ended - began).total_seconds())
    outcome = run.outcome or "no end"
    rows = [f"{sum(stream.get(what, 0) for stream in run.streams.values()):,}" for what in ("seen", "delivered")]
    did = (f"{run.commits:,}", *rows) if run.ended is not None else ("-",) * 3
    return run.started[:16].replace("T", " "), took, outcome, *did, run.run_id
