"""What went wrong, as the commands say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checkpoint.cli import screen
from checkpoint.entries import GROUP_PREFIX
from checkpoint.errors import Conflict, CorruptState, command_line
from checkpoint.neighbours.copying import said_of

if TYPE_CHECKING:
    from collections.abc import Iterable


def sentence_of(error: Exception) -> str:
    """Return what went wrong, with what to do at a prompt where the error names what to do in a program."""
    if isinstance(error, Conflict):
        what = "deleted" if error.found is None else "created" if error.expected is None else "changed"
        found = error.found
        when = f" at {found.updated_at}" if found is not None and found.updated_at else ""
        run = f" (run {found.sync_job_run_id})" if found is not None and found.sync_job_run_id else ""
        name = said_of(error.key) if error.member is None else f"{error.member!r} of {error.key!r}"
        return (
            f"{name} in {error.state_key!r} was {what} by another writer{when}{run} meanwhile, and left alone: "
            "look at it, then try again"
        )
    if isinstance(error, CorruptState) and error.where is None:
        if error.key.startswith(GROUP_PREFIX):
            look = f"`{command_line('get', [error.state_key, error.key], ['--raw'])}`"
            return f"{said_of(error.key)} in {error.state_key!r} cannot be read ({error.__cause__}): see {look}"
        return (
            f"{error.key!r} in {error.state_key!r} holds no cursor ({error.__cause__}): --raw reads and sets it as text"
        )
    return str(error)


def tell(errors: Iterable[Exception]) -> None:
    """Say what went wrong beside what a verb shows, in a line for each error."""
    for error in errors:
        screen.warn(f"Error: {sentence_of(error)}")
