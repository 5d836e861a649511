"""The command `checkpoint` and its group of verbs."""

from __future__ import annotations

import signal
from typing import Any

import click
import rich as _  # noqa: F401 - the verbs import it late; its absence is told before any of them runs

from checkpoint.cli import (
    care,
    change,
    demo,
    history,
    look,
    moving,
    plot,
    restore,
    rewind,
    runs,
    serve,
    singer,
    status,
    ui,
)
from checkpoint.cli.options import store_option
from checkpoint.cli.sentences import sentence_of
from checkpoint.errors import CheckpointError

INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C: the one a shell reports for a program ended by that signal."""


TROUBLE = {"diff": 2, "status": status.UNKNOWN}
"""The exit status of errors in verbs where 1 is an answer, such as "different" or "stale"."""


class Trouble(click.ClickException):
    """An error of a verb with an exit status of its own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click declares it on the class, and reads it of the error


class Verbs(click.Group):
    """A group of verbs: an error is one sentence and exit status 1; the help lists verbs in the order of addition."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb that the arguments name."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click exits silently
        except KeyboardInterrupt:
            click.echo("\nAborted!", err=True)
            ctx.exit(INTERRUPTED)
        except click.ClickException as error:
            raise _ended(ctx, error) from error.__cause__
        except (CheckpointError, OSError) as error:
            raise _ended(ctx, click.ClickException(sentence_of(error))) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the help."""
        return list(self.commands)


def _ended(ctx: click.Context, error: click.ClickException) -> click.ClickException:
    """Return an error with its verb's exit status for errors."""
    code = TROUBLE.get(ctx.invoked_subcommand or "", 1)
    return Trouble(error.message, code) if error.exit_code == 1 != code else error


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Exit status: 0 success; 1 an error, or `diff`, `doctor` or `status` found
something; 2 the command line is wrong, or `diff` failed; 3 `status` cannot
tell.

\b
Completion, for bash (likewise zsh, fish):
eval "$(_CHECKPOINT_COMPLETE=bash_source checkpoint)"
""",
)
@click.version_option(package_name="checkpoint-store", message="checkpoint %(version)s")
@store_option()
def checkpoint(url: str | None) -> None:
    """Inspect and repair the checkpoints of incremental syncs.

    A store holds namespaces, one for each job. A namespace holds a cursor under each key, with the position from
    which the next run reads on. A key may be a group, which holds a cursor for each of its members.

    Begin with `checkpoint list` and `checkpoint status`. A sync to try it on: `checkpoint demo`.
    """


VERBS = (
    look.list_,
    look.get,
    change.set_,
    change.merge,
    change.edit,
    change.clear,
    status.status,
    runs.runs,
    history.history,
    history.diff,
    rewind.rewind,
    restore.restore,
    plot.plot,
    moving.copy,
    moving.move,
    moving.export,
    moving.import_,
    care.init,
    care.doctor,
    care.reshard,
    care.unlock,
    singer.singer_run,
    ui.ui,
    serve.serve,
    serve.token,
    demo.demo,
    demo.demo_child,
)
verb: click.Command
for verb in VERBS:
    checkpoint.add_command(verb)
