"""`checkpoint plot`: a position over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from checkpoint.cli import screen
from checkpoint.cli.options import as_json, cursor_format, key, member_or_word, namespace, reading, store_option
from checkpoint.errors import printable
from checkpoint.overview import chart, words
from checkpoint.overview.namespaces import Name, Namespace
from checkpoint.overview.past import changes_of, check_known
from checkpoint.overview.plotted import drawn_field, panels, plotted, standing_until
from checkpoint.overview.positions import epoch_hint

if TYPE_CHECKING:
    from checkpoint.entries import Change


@click.command()
@namespace
@key
@member_or_word
@click.option(
    "--field", metavar="NAME", help="The field of the cursor to draw. Default: the only one that can be drawn."
)
@cursor_format
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write an image to FILE.svg or FILE.png.",
)
@as_json
@store_option()
def plot(
    namespace: str,
    key: str,
    *,
    member: str | None,
    field: str | None,
    cursor_format: str | None,
    out: Path | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Draw a key's position over time, and its lag.

    The plot begins where the history begins, and ends now. Lag is how far the position is behind the clock: it
    grows while the position stands still. Lag needs a position that is a time, or a number whose cursor format a
    run has recorded or --cursor-format gives. Text is drawn in its sort order. A position more than a day ahead of
    the clock is cut off there, and a note says so.

    Example: checkpoint plot crm_acme contacts --out contacts.svg
    """
    if out is not None and out.suffix.lower() not in {".svg", ".png"}:
        raise click.UsageError(f"{out} is neither SVG nor PNG: give --out a name that ends in .svg or .png")
    name = Name(key, member)
    with reading(url) as store:
        there = Namespace(store, namespace)
        changes, form = _changes_drawn(there, name), there.form_of(name, cursor_format)
    steps = plotted(changes, drawn_field(changes, name, form) if field is None else field, form)
    if not steps:
        raise click.ClickException(f"the history of {name.quoted} in {namespace!r} has no position to draw")
    title = printable(f"{namespace} {name.said}")
    if as_json:
        screen.document([step.fields() for step in steps])
        return
    if form is None and steps[-1].kind == "number" and (hint := epoch_hint(steps[-1].position)):
        screen.warn(f"{steps[-1].position} is drawn as a number{hint}")
    drawn = panels(steps, standing_until(changes, steps))
    if out is not None:
        screen.write_file(out, _image(out, chart.svg(title, drawn)))
        screen.say(f"{words.count(len(steps), 'commit')} of {title} drawn in {out}.")
    else:
        screen.write_line(chart.text(title, drawn, min(screen.width(), 120)))


def _image(out: Path, svg: str) -> bytes:
    if out.suffix.lower() == ".svg":
        return svg.encode()
    from checkpoint.cli.png import png  # most plots do not need it

    try:
        return png(svg)
    except ImportError as error:
        raise click.ClickException(str(error)) from error


def _changes_drawn(there: Namespace, name: Name) -> list[Change]:
    """Return the changes of one cursor, newest first, or end with the error that it is unknown."""
    if name.member is None and name.key in there.groups and name not in there.names:
        raise click.ClickException(there.absent(name.key))
    changes = [change for change in changes_of(there, *name) if (change.key, change.member) == name]
    check_known(there, changes, *name)
    return changes
