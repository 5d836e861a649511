"""`checkpoint singer-run`, with a tap and a target of a few lines, as processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from checkpoint import Checkpointer
from checkpoint.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
SCRIPTS = Path(__file__).parent / "singer"


class Job:
    """A tap and a target with their files, run by the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = f"sqlite:///{folder}/state.db"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CHECKPOINT_", "TRUTO_"))},
            "COLUMNS": "80",
            "PYTHONWARNINGS": "error",
            "TMPDIR": str(folder / "tmp"),
        }
        (folder / "tmp").mkdir()
        os.mkfifo(folder / "go")
        self._go = os.open(folder / "go", os.O_RDWR)  # for reading too: opening it waits for nobody

    def command(self, *options, tap=None, target=None, rows=55):
        tap = {"rows": rows, "calls": str(self.folder / "calls"), "go": str(self.folder / "go"), **(tap or {})}
        target = {"rows": str(self.folder / "rows"), **(target or {})}
        for name, config in (("tap", tap), ("target", target)):
            (self.folder / f"{name}.json").write_text(json.dumps(config))
        words = [
            shlex.join([sys.executable, str(SCRIPTS / f"{name}.py"), "--config", str(self.folder / f"{name}.json")])
            for name in ("tap", "target")
        ]
        return [
            *(sys.executable, "-m", "checkpoint.cli", "singer-run", "job", "--store", self.store),
            *("--tap", words[0], "--target", words[1], *options),
        ]

    def run(self, *options, **configs):
        done = subprocess.run(
            self.command(*options, **configs),
            env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert list((self.folder / "tmp").iterdir()) == []
        assert done.stdout == ""
        return done.returncode, done.stderr

    @contextmanager
    def start(self, **configs):
        with subprocess.Popen(
            # A shell's job in the background would ignore SIGINT.
            [sys.executable, "-c", DEFAULT_SIGINT, *self.command(**configs)],
            env=self.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()
                self.go()

    def go(self):
        os.write(self._go, b"!")

    def close(self):
        os.close(self._go)

    @property
    def rows(self):
        return [int(line) for line in (self.folder / "rows").read_text().splitlines()]

    @property
    def calls(self):
        return (self.folder / "calls").read_text().splitlines()

    @property
    def state(self):
        with closing(open_store(self.store)) as store, Checkpointer("job", store) as cp:
            return dict(cp)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with closing(Job(tmp_path)) as job:
        yield job


def at(row):
    return {"orders": {"id": row, "pad": ""}, "$singer": {"currently_syncing": "orders"}}


def document(row):
    return json.dumps({"currently_syncing": "orders", "bookmarks": {"orders": {"id": row, "pad": ""}}})


def said(process):
    """Return the process id in the next line that a tap or target says."""
    return int(re.search(r"\d+", process.stderr.readline())[0])


def gone(pid):
    """Tell whether a process is gone, or waits for nobody but the init process."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "checkpoint.cli", "singer-run", "--help"],
        env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert (
        done.stdout
        == """\
Usage: checkpoint singer-run [OPTIONS] JOB

  Run a Singer tap and target, from where JOB stopped.

  JOB is a namespace. Its state, if there is any, is given to the tap as
  --state. Each STATE that the target writes to its standard output is
  committed, and nothing else: rows that the target has not confirmed come
  again with the next run. A STATE without streams does not replace one that
  has some.

  SIGTERM, SIGINT and SIGHUP go to the tap, so that the target can finish its
  work; a second signal goes to both.

  Exits with 0 if both succeeded and every STATE is committed; with 1 if the
  state could not be read or committed; otherwise with the status of the
  target, or else of the tap. After a signal it exits with 128 and the number
  of the signal.

  Example: checkpoint singer-run crm --tap "tap-x -c x.json" --target target-y

Options:
  --tap COMMAND     The tap, such as "tap-x --config tap.json".  [required]
  --target COMMAND  The target, which gets the output of the tap.  [required]
  --full-refresh    Give the tap no state. The stored state stays until the
                    target writes a new one.
  --store URL       The store: sqlite:///state.db, https://api.truto.one …
                    Default: $CHECKPOINT_STORE, else a SQLite file in your
                    state folder.
  -h, --help        Show this message and exit.
"""
    )


@pytest.mark.parametrize("kept", ["sqlite", "http"])
def test_the_next_run_goes_on_where_the_last_one_stopped(job, kept, api):
    if kept == "http":
        job.store = api.url
        os.environ["TRUTO_API_TOKEN"] = job.environment["TRUTO_API_TOKEN"] = api.token
    try:
        assert job.run() == (0, "")
        assert (job.rows, job.state) == ([*range(1, 56)], at(55))
        assert job.run(rows=58) == (0, "")
        assert (job.rows, job.state) == ([*range(1, 59)], at(58))
    finally:
        os.environ.pop("TRUTO_API_TOKEN", None)
    assert [json.loads(call) if call != "no state" else call for call in job.calls] == [
        "no state",
        json.loads(document(55)),
    ]


@pytest.mark.parametrize("killed", ["tap", "target"])
def test_nothing_is_missing_after_one_of_them_was_killed(job, killed):
    status, stderr = job.run(**{killed: {"kill": 37}})
    assert status == 128 + signal.SIGKILL
    assert stderr.splitlines()[-1] == (
        f"Error: {sys.executable} was ended by SIGKILL; what the target had confirmed is committed"
    )
    assert job.state == at(30)
    assert job.run() == (0, "")
    assert (sorted(set(job.rows)), job.state) == ([*range(1, 56)], at(55))
    assert len(job.rows) <= 55 + 10


def test_nothing_is_missing_after_the_run_itself_was_killed(job):
    with job.start(tap={"hold": 37}) as process:
        said(process)
        process.kill()
        job.go()  # the next STATE has no reader: both end by it
        process.stderr.read()  # until nobody holds it any more
    assert job.state in ({}, at(10), at(20), at(30))
    (job.folder / "tmp").rename(job.folder / "left")  # nobody could tidy up
    (job.folder / "tmp").mkdir()
    assert job.run() == (0, "")
    assert (sorted(set(job.rows)), job.state) == ([*range(1, 56)], at(55))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_tap_and_the_target_finishes(job, number):
    with job.start(tap={"hold": 37}) as process:
        tap = said(process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (128 + number, "")
    assert stderr.splitlines()[-1] == (f"Error: stopped by {number.name}; what the target had confirmed is committed")
    assert gone(tap)
    assert (job.rows, job.state) == ([*range(1, 37)], at(30))
    assert job.run() == (0, "")
    assert (sorted(set(job.rows)), job.state) == ([*range(1, 56)], at(55))


def test_a_second_signal_ends_the_target_too(job):
    with job.start(tap={"hold": 37}, target={"wait": True}) as process:
        tap = said(process)
        process.send_signal(signal.SIGTERM)
        target = said(process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, gone(tap), gone(target), job.state) == (143, True, True, at(30))
    assert stderr == "Error: stopped by SIGTERM; what the target had confirmed is committed\n"


@pytest.mark.parametrize(
    ("tap", "target", "status", "committed"),
    [
        ({"end": 37, "status": 3}, {}, 3, at(30)),
        ({}, {"end": 37, "status": 4}, 4, at(30)),
        ({"end": 37, "status": 3}, {"end": 36, "status": 4}, 4, at(30)),
        ({"hold": 38}, {"end": 37, "status": 4}, 4, at(30)),
    ],
)
def test_it_ends_as_they_ended(job, tap, target, status, committed):
    done, stderr = job.run(tap=tap, target=target)
    assert (done, job.state) == (status, committed)
    assert stderr.splitlines()[-1] == (
        f"Error: {sys.executable} ended with status {status}; what the target had confirmed is committed"
    )


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no real-time signals here")
def test_a_signal_without_a_name_is_told_by_its_number(job):
    number = signal.SIGRTMIN + 1
    code = f"import os; os.kill(os.getpid(), {number})"
    done, stderr = job.run("--tap", shlex.join([sys.executable, "-c", code]))
    assert (done, stderr) == (
        128 + number,
        f"Error: {sys.executable} was ended by signal {number}; what the target had confirmed is committed\n",
    )


def test_large_states_and_rows_flow(job):
    assert job.run(rows=400, tap={"pad": 200_000, "width": 20_000}) == (0, "")
    assert (job.rows, job.state["orders"]["id"]) == ([*range(1, 401)], 400)


@pytest.mark.parametrize("rows", [55, 40])
def test_what_is_no_state_is_told_and_not_committed(job, rows):
    refused = {
        "{": "Expecting property name enclosed in double quotes: line 2 column 1 (char 2)",
        '{"type": "STATE", "value": {}}': "the document is a STATE message: pass its 'value'",
        '{"bookmarks": {"orders": {"id": NaN}}}': (
            "the document is not JSON: the document['bookmarks']['orders']['id'] is nan, which JSON cannot represent"
        ),
    }
    assert job.run(rows=10) == (0, "")
    status, stderr = job.run(rows=rows, tap={"states": dict(zip(("20", "30", "40"), refused, strict=True))})
    assert (status, stderr.splitlines()) == (
        1,
        [
            *(
                f"Error: line {number} of the target's output is not a STATE, and was not committed: {reason}"
                for number, reason in enumerate(refused.values(), 1)
            ),
            "Error: the target wrote lines that are not STATE; what the target had confirmed is committed",
        ],
    )
    assert job.state == at(55 if rows == 55 else 10)


def test_a_state_without_streams_replaces_no_full_one(job):
    states = {"30": {}, "40": {"bookmarks": {}}, "50": {"currently_syncing": "orders"}}
    assert job.run(rows=50, tap={"states": states}) == (
        0,
        "".join(
            f"Line {number} of the target's output names no stream, so it does not replace the state.\n"
            for number in (3, 4, 5)
        ),
    )
    assert job.state == at(20)


def test_streams_that_the_state_no_longer_names_are_deleted(job):
    assert job.run(tap={"states": {"55": {"bookmarks": {"people": {"id": 1}}}}}) == (0, "")
    assert job.state == {"people": {"id": 1}}


def test_a_full_refresh_keeps_the_stored_state_until_another(job):
    assert job.run() == (0, "")
    assert job.run("--full-refresh", tap={"end": 5, "status": 3})[0] == 3
    assert job.state == at(55)
    assert job.run("--full-refresh", tap={"end": 45, "status": 3})[0] == 3
    assert (job.calls, job.state) == (["no state"] * 3, at(40))


def test_a_job_run_twice_is_a_conflict_and_both_end(job):
    with job.start(tap={"hold": 37}) as process:
        tap = said(process)
        with closing(open_store(job.store)) as store, Checkpointer("job", store, on_conflict="overwrite") as cp:
            cp["orders"] = {"id": 99}
        job.go()
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    assert re.fullmatch(r"Error: 'orders' in 'job' was \w+ meanwhile by another writer .*\n", stderr)
    assert gone(tap)
    assert job.state["orders"] == {"id": 99}


def test_a_stored_value_that_is_no_state_is_told_first(job):
    with closing(open_store(job.store)) as store, Checkpointer("job", store) as cp:
        cp["$airbyte"] = {}
    sentence = "'$airbyte' holds no stream, and a singer document has no place for it: delete it first"
    assert job.run() == (1, f"Error: what 'job' holds is not a Singer state: {sentence}\n")
    assert not (job.folder / "calls").exists()


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--tap", "a 'b"], 2, "Invalid value for '--tap': \"a 'b\" cannot be split into words: No closing quotation."),
        (["--target", " "], 2, "Invalid value for '--target': the command is empty."),
        (["--tap", "tap-x --state=s.json"], 2, "Invalid value for '--tap': leave --state out: singer-run adds it."),
        (["--tap", "./none"], 1, "./none cannot be started: [Errno 2] No such file or directory: './none'"),
        (["--target", "./none"], 1, "./none cannot be started: [Errno 2] No such file or directory: './none'"),
    ],
)
def test_a_command_that_cannot_be_run_is_told(job, options, status, sentence):
    done, stderr = job.run(*options)
    assert (done, stderr.splitlines()[-1]) == (status, f"Error: {sentence}")
    assert not (job.folder / "calls").exists()
