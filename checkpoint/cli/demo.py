"""`checkpoint demo`: a real incremental sync, interrupted for real.

The source is a folder of files that answers in pages, like an API; the sink is a table in SQLite. `sync` is the job, as
a user would write it; the rest of the file prepares the source and the sink, and counts.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import click

from checkpoint.cli.options import opened, store_option
from checkpoint.errors import StoreError
from checkpoint.run.checkpointer import Checkpointer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import FrameType

    from rich.console import Console
    from rich.progress import Progress

    from checkpoint.stores.base import Store


def sync(state_key: str, store: Store | None, source: Source, sink: Sink) -> None:
    """Bring the sink up to date: the whole job."""
    with Checkpointer(state_key, store) as cp:
        files = cp.incremental("files", attrgetter("updated_at"), primary_key=attrgetter("path"), row_order="asc")
        for page in files.pages(source.pages(updated_since=files.start_value)):
            sink.write(page)  # without the rows already delivered
            cp.commit()  # only now that the sink has the page


# The source and the sink


class SourceFile(NamedTuple):
    """A file as the source reports it; rows sort by time, then by path."""

    updated_at: str
    """ISO 8601 in UTC with nine decimals, so that the texts sort like the instants."""
    path: str
    size: int
    sha256: str


class Source:
    """A folder that answers like an API: sorted rows in pages, from `updated_since` inclusive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pages(self, updated_since: str | None) -> Iterator[list[SourceFile]]:
        """Yield the rows updated at that time or later; None means all."""
        rows = [row for row in self.rows() if updated_since is None or row.updated_at >= updated_since]
        size = self.page_size()
        for first in range(0, len(rows), size):
            yield rows[first : first + size]

    def page_size(self) -> int:
        """Return the page size that splits a full sync into about forty pages."""
        return max(1, len(self.files()) // 40)

    def rows(self) -> list[SourceFile]:
        """Return all rows, sorted."""
        return sorted(self._row(file) for file in self.files())

    def files(self) -> list[Path]:
        """Return the files behind the rows."""
        return sorted(file for file in self.folder.rglob("*") if file.is_file())

    def _row(self, file: Path) -> SourceFile:
        stat = file.stat()
        seconds, nanoseconds = divmod(stat.st_mtime_ns, 10**9)
        updated_at = f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
        path = file.relative_to(self.folder).as_posix()
        return SourceFile(updated_at, path, stat.st_size, sha256(file.read_bytes()).hexdigest())


class Sink:
    """A table with one row per path, which counts the rows it gets; calls `told` with the size of each stored page."""

    def __init__(self, file: Path, told: Callable[[int], None]) -> None:
        self._told = told
        self._db = sqlite3.connect(file)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, updated_at TEXT, size INTEGER, sha256 TEXT,"
            " written INTEGER DEFAULT 1, again INTEGER DEFAULT 0)"
        )

    def write(self, page: list[SourceFile]) -> None:
        """Store a page; an unchanged row that is already stored counts as a repeat."""
        with self._db:
            self._db.executemany(
                "INSERT INTO files (updated_at, path, size, sha256) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (path) DO UPDATE SET written = written + 1,"
                " again = again + (excluded.updated_at = updated_at AND excluded.sha256 = sha256),"
                " updated_at = excluded.updated_at, size = excluded.size, sha256 = excluded.sha256",
                page,
            )
        self._told(len(page))

    def rows(self) -> list[SourceFile]:
        """Return the stored rows."""
        return [SourceFile(*row) for row in self._db.execute("SELECT updated_at, path, size, sha256 FROM files")]

    def counts(self) -> tuple[int, int]:
        """Return how many rows came since the last reset, and how many of them were repeats."""
        written, again = self._db.execute("SELECT TOTAL(written), TOTAL(again) FROM files").fetchone()
        return int(written), int(again)

    def reset(self) -> None:
        """Restart the counts at zero."""
        with self._db:
            self._db.execute("UPDATE files SET written = 0, again = 0")

    def close(self) -> None:
        """Close the file."""
        self._db.close()


# The phases


class Phase(NamedTuple):
    """The result of one sync: a line of the table."""

    name: str
    source: int
    written: int
    pages: int
    again: int
    missing: int
    """Rows missing from the sink, or different from the source."""
    seconds: float
    good: bool
    """Whether the new and missing rows are exactly the expected ones, and the repeats within the limit."""


@dataclass
class Meter:
    """Counts the pages of a phase, and moves the progress bar."""

    advance: Callable[[int], None]
    pages: int = 0

    def page(self, rows: int) -> None:
        """Count a page with this number of rows."""
        self.pages += 1
        self.advance(rows)


def play(scratch: Path, store: Store, source: Source, meter: Meter, sink_type: type[Sink] = Sink) -> Iterator[Phase]:
    """Sync five times, one of them ended by SIGKILL, and measure each time."""
    count, size = len(source.files()), source.page_size()
    with namespace(store) as name, closing(sink_type(scratch / "sink.db", meter.page)) as sink:
        stage = Stage(source, sink, meter)
        yield stage.measure("full sync", lambda: sync(name, store, source, sink), new=count)
        yield stage.measure("nothing changed", lambda: sync(name, store, source, sink), new=0)
        touched = touch(source.files()[::100])
        yield stage.measure(f"touched: {touched}", lambda: sync(name, store, source, sink), new=touched)
    file = scratch / "sink-killed.db"
    with namespace(store) as name, closing(sink_type(file, meter.page)) as sink:
        stage = Stage(source, sink, meter)
        page = -(-count // size) // 2 or 1
        done = min(page * size, count)
        yield stage.measure(
            f"killed in page {page}",
            lambda: kill(spawn("demo-child", name, str(source.folder), str(file)), meter, page),
            new=done,
            missing=count - done,
        )
        yield stage.measure("started again", lambda: sync(name, store, source, sink), new=count - done, most=size)


@dataclass
class Stage:
    """A source and its sink, compared after each sync."""

    source: Source
    sink: Sink
    meter: Meter

    def measure(self, name: str, run: Callable[[], None], *, new: int, missing: int = 0, most: int = 0) -> Phase:
        """Run a sync and measure it; expects exactly `new` and `missing` rows, and at `most` this many repeats."""
        self.sink.reset()
        self.meter.pages = 0
        started = time.monotonic()
        run()
        seconds = time.monotonic() - started
        written, again = self.sink.counts()
        truth = set(self.source.rows())
        wrong = len({row.path for row in truth.symmetric_difference(self.sink.rows())})
        good = (written, wrong) == (new + again, missing) and again <= most
        return Phase(name, len(truth), written, self.meter.pages, again, wrong, seconds, good)


def kill(child: subprocess.Popen[str], meter: Meter, page: int) -> None:
    """Let a sync advance page by page, and kill it once the sink has that page and the store does not."""
    with suppress(BrokenPipeError), child:
        assert child.stdin and child.stdout  # noqa: PT018, S101 - pipes, both
        for line in child.stdout:
            meter.page(int(line))
            if meter.pages == page:
                child.kill()
                return
            print("go on", file=child.stdin, flush=True)
    raise StoreError("the sync ended before it could be killed")


@click.command(hidden=True)
@click.argument("state_key")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
def demo_child(state_key: str, folder: Path, file: Path) -> None:
    """Sync, telling the parent of each page, and go on when it answers."""

    def told(rows: int) -> None:
        click.echo(rows)
        if not sys.stdin.readline():
            sys.exit(1)  # the parent is gone

    with closing(Sink(file, told)) as sink:
        sync(state_key, None, Source(folder), sink)


# Preparation

LARGEST = 200_000
"""The size in bytes up to which files are copied: only the number of rows matters."""

OTHERS = {"site-packages", "dist-packages", "__pycache__"}
"""Folders beside the library that are not part of it."""


def mirror(folder: Path, limit: int | None) -> Source:
    """Copy files of the standard library, with new times: seven files share each one, as in real sources.

    The original times are those of Python's installation: all within a few seconds.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(_files(library))[:limit]
    if not files:
        raise click.ClickException(f"there is nothing to sync: no standard library in {library}")
    for number, file in enumerate(files):
        copy = folder / file.relative_to(library)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        nanoseconds = 1_700_000_000_123_456_789 + number // 7 * 3_600_000_000_001
        os.utime(copy, ns=(nanoseconds, nanoseconds))
    return Source(folder)


def _files(library: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in OTHERS]
        for file in (Path(folder, name) for name in names):
            if file.is_file() and os.access(file, os.R_OK) and file.stat().st_size <= LARGEST:
                yield file


def touch(files: list[Path]) -> int:
    """Set the times of files to now; return how many."""
    for file in files:
        os.utime(file)
    return len(files)


@contextmanager
def namespace(store: Store) -> Generator[str]:
    """Yield an unused namespace, and empty it afterwards."""
    state_key = f"demo-{secrets.token_hex(6)}"
    try:
        yield state_key
    finally:
        with Checkpointer(state_key, store) as cp:
            cp.clear()


@contextmanager
def served(url: str) -> Generator[str]:
    """Run `checkpoint serve` over a store; yield the server's URL."""
    token = secrets.token_urlsafe()
    with spawn("serve", "--port", "0", CHECKPOINT_STORE=url, CHECKPOINT_SERVER_TOKEN=token) as server:
        assert server.stdout  # noqa: S101 - a pipe
        try:
            line = server.stdout.readline()
            if not line:
                raise StoreError("checkpoint serve did not start")
            os.environ["TRUTO_API_TOKEN"] = token
            yield line.split()[-1]
        finally:
            server.terminate()


def spawn(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a verb in a new process; secrets go into its environment, which process listings do not show."""
    return subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "checkpoint.cli", *arguments],
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# The screen


@click.command()
@store_option("a SQLite file that is deleted afterwards")
@click.option(
    "--serve", is_flag=True, help="Sync over HTTP: start `checkpoint serve` over the store, and sync through it."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Sync N files instead of all.")
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Work in DIR, and keep it."
)
def demo(url: str | None, serve: bool, limit: int | None, keep: Path | None) -> None:
    """Run a real incremental sync, kill it halfway, start it again.

    It copies files of Python's standard library into a scratch folder, and syncs the copy into a SQLite table: in
    full, with nothing changed, and with some files touched. Then it starts over in a process that it kills with
    SIGKILL halfway, and starts that again. After each sync it compares source and sink, and it exits with 1 if a
    row is missing or wrong.

    Example: checkpoint demo --limit 500
    """
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(perform(url, limit, keep, serve=serve))


def perform(url: str | None, limit: int | None, keep: Path | None, *, serve: bool, sink_type: type[Sink] = Sink) -> int:
    """Run the whole demo on the screen; return the exit status."""
    # Before anything is shown or started: a signal during an import leaves a file open.
    from rich.console import Console  # only this verb needs rich
    from rich.progress import Progress

    console = Console(highlight=False)
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    if url and url.startswith("memory:") and not serve:
        raise click.ClickException(
            "a memory store dies with the process that the demo kills: use another store, or add --serve"
        )
    with ExitStack() as stack:
        scratch = _folder(keep) if keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = url or f"sqlite:///{quote(str(scratch.absolute() / 'state.db'))}"
        url = stack.enter_context(served(url)) if serve else url
        os.environ["CHECKPOINT_STORE"] = url  # for the child that is killed
        store = stack.enter_context(closing(opened(url)))
        source = mirror(scratch / "source", limit)
        python = ".".join(platform.python_version_tuple()[:2])
        rows, size = len(source.files()), source.page_size()
        console.print(f"Syncing {rows:,} files of Python {python}'s standard library, {size} a page")
        phases = _watch(progress, rows, lambda meter: play(scratch, store, source, meter, sink_type))
    return _show(console, phases)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)  # by an exception, so that processes and files are cleaned up


def _folder(keep: Path) -> Path:
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise click.BadParameter(f"{keep} is not empty", param_hint="--keep")
    return keep


def _watch(progress: Progress, rows: int, begin: Callable[[Meter], Iterator[Phase]]) -> list[Phase]:
    """Run the phases, with a progress bar if the output is a terminal."""
    with progress:
        task = progress.add_task("", total=rows * 2)
        return list(begin(Meter(lambda count: progress.advance(task, count))))


def _show(console: Console, phases: list[Phase]) -> int:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("sync", no_wrap=True)
    for title in ("rows in source", "rows written", "pages", "came twice", "missing", "seconds"):
        table.add_column(title.replace(" ", "\n", 1), justify="right")
    for phase in phases:
        numbers = (phase.source, phase.written, phase.pages, phase.again, phase.missing)
        style = None if phase.good else "bold red"
        table.add_row(phase.name, *(f"{number:,}" for number in numbers), f"{phase.seconds:.1f}", style=style)
    console.print(table)
    bad = [phase.name for phase in phases if not phase.good]
    if bad:
        console.print(f"Failed: source and sink differ after {', '.join(bad)}.", style="bold red")
        return 1
    console.print(
        "No row is missing. What came twice was the page in hand when the sync was killed: it was in the sink, but not "
        "yet committed."
    )
    return 0
