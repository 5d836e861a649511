"""The command `checkpoint`, which the verbs hang from."""

from __future__ import annotations

from typing import Any

import click
import rich as _  # noqa: F401 - the verbs import it late; its absence is told before any of them runs

from checkpoint.cli import demo, serve, singer
from checkpoint.errors import CheckpointError


class Verbs(click.Group):
    """Verbs whose errors are one sentence and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb that the arguments name."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly
        except (CheckpointError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="checkpoint-store", message="checkpoint %(version)s")
def checkpoint() -> None:
    """Checkpoints of incremental syncs: where a job stopped, and how far it is safely past.

    Try it first: checkpoint demo
    """


for verb in (demo.demo, demo.demo_child, serve.serve, singer.singer_run):
    checkpoint.add_command(verb)
