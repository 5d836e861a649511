"""`checkpoint singer-run`: run a Singer tap and target, with their state in a namespace."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

import click

from checkpoint.cli.options import checked, complete_namespace, opened, store_option
from checkpoint.neighbours import documents as formats
from checkpoint.run.checkpointer import Checkpointer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import FrameType

    from typing_extensions import Self

GRACE = 10.0
"""Seconds between telling a process to end and killing it."""


def words_of(_ctx: click.Context, param: click.Parameter, value: str) -> list[str]:
    """Split a command line into words, as a shell does."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} cannot be split into words: {error}.") from error
    if not words:
        raise click.BadParameter("the command is empty.")
    if param.name == "tap" and any(word.partition("=")[0] == "--state" for word in words):
        raise click.BadParameter("leave --state out: singer-run adds it.")
    return words


@click.command("singer-run")
@click.argument("job", callback=checked, shell_complete=complete_namespace)
@click.option(
    "--tap", metavar="COMMAND", required=True, callback=words_of, help='The tap, such as "tap-x --config tap.json".'
)
@click.option(
    "--target",
    metavar="COMMAND",
    required=True,
    callback=words_of,
    help="The target, which gets the output of the tap.",
)
@click.option(
    "--full-refresh",
    is_flag=True,
    help="Give the tap no state. The stored state stays until the target writes a new one.",
)
@store_option("a SQLite file in your state folder")
def singer_run(*, job: str, tap: list[str], target: list[str], full_refresh: bool, url: str | None) -> None:
    """Run a Singer tap and target, from where JOB stopped.

    JOB is a namespace. Its state, if there is any, is given to the tap as --state. Each STATE that the target
    writes to its standard output is committed, and nothing else: rows that the target has not confirmed come again
    with the next run. A STATE without streams does not replace one that has some.

    SIGTERM, SIGINT and SIGHUP go to the tap, so that the target can finish its work; a second signal goes to both.

    Exits with 0 if both succeeded and every STATE is committed; with 1 if the state could not be read or committed;
    otherwise with the status of the target, or else of the tap. After a signal it exits with 128 and the number of
    the signal.

    Example: checkpoint singer-run crm --tap "tap-x -c x.json" --target target-y
    """
    store = opened(url)
    try:
        with Checkpointer(job, store) as cp, Pipeline() as pipeline, state_file(cp, given=not full_refresh) as state:
            pipeline.start([*tap, *state], target)
            refused = [commit(cp, line, number) for number, line in enumerate(pipeline.lines(), 1)].count(False)
            statuses = pipeline.wait()
    finally:
        store.close()
    end(pipeline.signals, list(zip((target[0], tap[0]), statuses, strict=True)), refused)


@contextmanager
def state_file(cp: Checkpointer, *, given: bool) -> Generator[list[str]]:
    """Yield the arguments that give a tap its state; empty if there is no state."""
    if not (given and cp):
        yield []
        return
    try:
        document = formats.dump(cp, "singer")
    except ValueError as error:
        raise click.ClickException(f"what {cp.state_key!r} holds is not a Singer state: {error}") from error
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:  # readable by this user only
        file = Path(folder, "state.json")
        file.write_text(json.dumps(document), "utf-8")
        yield ["--state", str(file)]


def commit(cp: Checkpointer, line: bytes, number: int) -> bool:
    """Commit the STATE in a line of the target's output; if it is invalid, report that and return False."""
    try:
        cursors = formats.load(json.loads(line), "singer")
    except (ValueError, RecursionError) as error:
        click.echo(
            f"Error: line {number} of the target's output is not a STATE, and was not committed: {error}", err=True
        )
        return False
    if (formats.streams(cp) and not formats.streams(cursors)) or (cp and not cursors):
        click.echo(f"Line {number} of the target's output names no stream, so it does not replace the state.", err=True)
        return True
    for key in cp.keys() - cursors.keys():
        del cp[key]
    cp.update(cursors)
    cp.commit()
    return True


def end(signals: list[int], statuses: list[tuple[str, int]], refused: int) -> None:
    """Exit with the pipeline's status; `statuses` has the target's first, then the tap's."""
    for name, status in statuses:
        if status and not signals:
            fail(f"{name} {ending(status)}", status if status > 0 else 128 - status)
    if signals:
        fail(f"stopped by {signal.Signals(signals[0]).name}", 128 + signals[0])
    if refused:
        fail("the target wrote lines that are not STATE", 1)


def fail(sentence: str, status: int) -> NoReturn:
    """Exit with this status."""
    click.echo(f"Error: {sentence}; what the target had confirmed is committed", err=True)
    raise click.exceptions.Exit(status)


def ending(status: int) -> str:
    """Return the words for how a process ended."""
    names = {each.value: each.name for each in signal.Signals}  # only the first and last real-time signals have names
    return f"ended with status {status}" if status > 0 else f"was ended by {names.get(-status, f'signal {-status}')}"


class Pipeline:
    """Two processes joined by a pipe; a context manager that ends both.

    Each leads its own session: signals from the terminal reach only this process, which passes them on.
    """

    signals: list[int]
    """The signals received, in order."""

    def __init__(self) -> None:
        self.signals = []
        self._processes: list[subprocess.Popen[bytes]] = []  # first the target, then the tap
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                self._stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for process in reversed(self._processes):
                self._end(process)
                if process.stdout is not None:
                    process.stdout.close()

    def start(self, tap: list[str], target: list[str]) -> None:
        """Start both, the target first, so that the tap reads nothing before its output has a reader."""
        source, sink = os.pipe()
        try:
            self._start(target, stdin=source, stdout=subprocess.PIPE)
            os.close(source)
            source = -1
            self._start(tap, stdin=subprocess.DEVNULL, stdout=sink)
        finally:
            # Close our ends of the pipe, so that tap and target each notice when the other is gone.
            for descriptor in (source, sink):
                if descriptor >= 0:
                    os.close(descriptor)
        self._pass_on()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that the target writes, without blank ones, until it ends."""
        output: IO[bytes] | None = self._processes[0].stdout
        return (line for line in output or () if line.strip())

    def wait(self) -> tuple[int, int]:
        """Wait until both have ended; return the statuses of target and tap."""
        target, tap = self._processes
        if target.wait():
            self._end(tap)  # its output has no reader, but it notices only at its next write
        return target.returncode, tap.wait()

    def _start(self, command: list[str], *, stdin: int, stdout: int) -> None:
        try:
            process = subprocess.Popen(command, stdin=stdin, stdout=stdout, start_new_session=True)  # noqa: S603 - the user's
        except OSError as error:
            raise click.ClickException(f"{command[0]} cannot be started: {error}") from error
        self._processes.append(process)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.signals.append(number)
        self._pass_on()

    def _pass_on(self) -> None:
        if self.signals and len(self._processes) > 1:
            target, tap = self._processes
            for process in (tap, target) if len(self.signals) > 1 else (tap,):
                _send(process, self.signals[-1])

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            _send(process, signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                _send(process, signal.SIGKILL)
                process.wait()


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
