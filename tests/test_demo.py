"""`checkpoint demo` in a small size: what it syncs, what its screen says, what it leaves behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click
import pytest
from test_cli import ENVIRONMENT, command

from checkpoint.cli import demo

if TYPE_CHECKING:
    from pathlib import Path

    from checkpoint.testing import ApiServer

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SCREEN = f"""\
Syncing 120 files of Python {PYTHON}'s standard library, 3 a page

                           rows      rows            came
  sync                in source   written   pages   twice   missing   seconds
 ─────────────────────────────────────────────────────────────────────────────
  full sync                 120       120      40       0         0       0.0
  nothing changed           120         0       0       0         0       0.0
  touched: 2                120         2       1       0         0       0.0
  killed in page 20         120        60      20       0        60       0.0
  started again             120        63      22       3         0       0.0

No row is missing. What came twice was the page in hand when the sync was
killed: it was in the sink, but not yet committed.
"""


def screen(text: str) -> str:
    """The screen without what differs from run to run."""
    return re.sub(r"\d+\.\d$", "0.0", re.sub(r" +$", "", text, flags=re.MULTILINE), flags=re.MULTILINE)


def names(folder: Path) -> set[str]:
    return {found.name for found in folder.iterdir()}


@pytest.mark.parametrize("arguments", [(), ("--serve",)])
def test_the_screen(arguments):
    done = command("demo", "--limit", "120", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert screen(done.stdout) == SCREEN


@pytest.mark.parametrize("limit", ["1", "2", "41"])
def test_a_very_small_one_works_too(limit):
    done = command("demo", "--limit", limit)
    assert (done.returncode, done.stderr) == (0, "")


def test_any_store_is_used_and_left_as_it_was(api: ApiServer):
    done = command("demo", "--limit", "20", CHECKPOINT_STORE=api.url, TRUTO_API_TOKEN=api.token)
    assert (done.returncode, done.stderr) == (0, "")
    used = {call.state_key for call in api.requests}
    assert len(used) == 2
    assert [api.store.load(state_key) for state_key in used] == [{}, {}]


def test_memory_is_refused_with_a_sentence():
    done = command("demo", "--store", "memory://x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: a memory store dies with the process that the demo kills: use another store, or add --serve\n"
    )


def test_keep_leaves_source_sinks_and_state(tmp_path: Path):
    done = command("demo", "--limit", "20", "--keep", str(tmp_path / "kept"))
    assert (done.returncode, done.stderr) == (0, "")
    assert {"source", "sink.db", "sink-killed.db", "state.db"} <= names(tmp_path / "kept")

    done = command("demo", "--limit", "20", "--keep", str(tmp_path / "kept"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"Error: Invalid value for --keep: {tmp_path / 'kept'} is not empty"


def test_a_terminated_demo_leaves_nothing_behind(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-m", "checkpoint.cli", "demo", "--serve"],
        env={**ENVIRONMENT, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline().startswith("Syncing")
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    # Python warns where the signal ends a listing of a folder before it has a name to be closed by.
    said = "" if stderr.startswith("Exception ignored in: <posix.ScandirIterator") else stderr
    assert (process.returncode, said, names(tmp_path)) == (143, "", set())


class LossySink(demo.Sink):
    """Loses one row of every page."""

    def write(self, page: list[demo.SourceFile]) -> None:
        super().write(page[1:])


class StaleSink(demo.Sink):
    """Keeps the first version of every row."""

    def write(self, page: list[demo.SourceFile]) -> None:
        known = {row.path for row in self.rows()}
        super().write([row for row in page if row.path not in known])


@pytest.mark.parametrize(
    ("sink_type", "phases"),
    [
        (LossySink, "full sync, nothing changed, touched: 1, started again"),
        (StaleSink, "touched: 1"),
    ],
)
def test_a_row_missing_or_wrong_ends_with_1(sink_type, phases, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("CHECKPOINT_STORE", "")  # put back afterwards: the demo sets it
    assert demo.perform(None, 100, tmp_path / "scratch", serve=False, sink_type=sink_type) == 1
    assert f"Failed: source and sink differ after {phases}." in capsys.readouterr().out


def test_a_child_that_ends_by_itself_is_an_error(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "print(3)"], stdin=-1, stdout=-1, text=True)
    with pytest.raises(demo.StoreError, match="ended before"):
        demo.kill(child, demo.Meter(lambda _: None), page=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> demo.Source:
    return demo.mirror(tmp_path_factory.mktemp("source"), 100)


def test_the_source_answers_in_order_and_includes_the_boundary(source: demo.Source):
    rows = [row for page in source.pages(None) for row in page]
    assert rows == sorted(source.rows(), key=lambda row: (row.updated_at, row.path))
    boundary = rows[50].updated_at
    assert [row for page in source.pages(boundary) for row in page] == [
        row for row in rows if row.updated_at >= boundary
    ]


def test_rows_of_the_source_share_times_to_the_nanosecond(source: demo.Source):
    times = [row.updated_at for row in source.rows()]
    assert times[:8] == ["2023-11-14T22:13:20.123456789Z"] * 7 + ["2023-11-14T23:13:20.123456790Z"]
    assert len(set(times)) == 15


def test_the_sink_counts_what_comes_again(source: demo.Source, tmp_path: Path):
    told: list[int] = []
    first, second, *_ = source.rows()
    with closing(demo.Sink(tmp_path / "sink.db", told.append)) as sink:
        sink.write([first, second])
        sink.reset()
        sink.write([first, second._replace(updated_at="2099-01-01T00:00:00.000000000Z")])
        assert (sink.counts(), told) == ((2, 1), [2, 2])


def test_without_a_library_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(click.ClickException, match="nothing to sync"):
        demo.mirror(tmp_path / "source", None)
