"""Processes that work in one namespace at the same time.

`CHECKPOINT_TOGETHER_SECONDS=30` is the long form; what was counted is printed with `-s`.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from checkpoint import Checkpointer

if TYPE_CHECKING:
    from collections.abc import Iterable

SECONDS = float(os.environ.get("CHECKPOINT_TOGETHER_SECONDS", "2"))
SEED = int(os.environ.get("CHECKPOINT_SIMULATOR_SEED", "0"))
JOB = Path(__file__).with_name("run_counting.py")


@pytest.fixture(params=["sqlite", "postgres", "objects"])
def url(request, tmp_path) -> str:
    """The URL of a store that compares and swaps."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return request.getfixturevalue({"postgres": "postgres_url", "objects": "s3"}[request.param])


def start(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, JOB, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read(jobs: Iterable[subprocess.Popen[str]]) -> list[str]:
    told = [(job.communicate(timeout=60 + 4 * SECONDS), job.returncode) for job in jobs]
    assert [code for _, code in told] == [0] * len(told), told
    return [out for (out, _), _ in told]


def one_line(job: subprocess.Popen[str]) -> str:
    assert job.stdout is not None
    return job.stdout.readline()


def rest(job: subprocess.Popen[str]) -> tuple[list[str], str]:
    """Return the whole lines that a killed process had still written, and its errors."""
    with job:
        assert job.stdout is not None
        assert job.stderr is not None
        return job.stdout.read().split("\n")[:-1], job.stderr.read()


def test_fault_78_eight_processes_count_exactly(url):
    told = [json.loads(out) for out in read([start("count", url, SECONDS) for _ in range(8)])]
    counted, unknown = sum(one["counted"] for one in told), sum(one["unknown"] for one in told)
    with Checkpointer("shared", url) as cp:
        stored = cp["count"]["n"]
    print(f"{url[:8]}: {counted} counted, {sum(one['conflicts'] for one in told)} conflicts, {unknown} unknown")
    assert counted > 8
    assert counted <= stored <= counted + unknown
    assert unknown == 0


def served(path: Path, port: int) -> subprocess.Popen[str]:
    """Start a server over a file, and return once it listens."""
    command = [sys.executable, "-m", "checkpoint", "serve", "--store", f"sqlite:///{path}", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert one_line(server).startswith("Listening on ")
    return server


def test_eight_processes_count_while_the_server_is_killed(tmp_path, monkeypatch):
    """Through our own server, which is killed again and again: what was lost on the way is read back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("CHECKPOINT_SERVER_TOKEN", "secret")
    monkeypatch.setenv("CHECKPOINT_TOKEN", "secret")
    path, kills, until = tmp_path / "state.db", 0, time.monotonic() + SECONDS
    server = served(path, port)
    jobs = [start("count", f"server+http://127.0.0.1:{port}", SECONDS) for _ in range(8)]
    try:
        while not kills or time.monotonic() < until:
            time.sleep(3.0)  # a moment, not an event, is what kills a process
            server.kill()
            server.communicate()
            kills += 1
            server = served(path, port)
        told = [json.loads(out) for out in read(jobs)]
    finally:
        server.kill()
        server.communicate()
    counted, unknown = sum(one["counted"] for one in told), sum(one["unknown"] for one in told)
    with Checkpointer("shared", f"sqlite:///{path}") as cp:
        stored, history = cp["count"]["n"], cp.history("count")
    conflicts = sum(one["conflicts"] for one in told)
    print(f"killed {kills} times: {counted} counted, {conflicts} conflicts, {unknown} unknown")
    assert counted >= 8
    assert counted <= stored <= counted + unknown
    numbers = [change.cursor_after["n"] for change in history]
    assert numbers == list(range(stored, stored - len(numbers), -1))


def test_twenty_processes_share_a_group_and_are_killed(tmp_path):
    """Each has members of its own: nothing that was acknowledged is lost, and no run is in another one's way."""
    url, dice = f"sqlite:///{tmp_path / 'state.db'}", random.Random(SEED)
    until, rounds, kills = time.monotonic() + SECONDS, 0, 0
    stored = {f"run{number}": 0 for number in range(20)}
    while rounds == 0 or time.monotonic() < until:
        rounds += 1
        jobs = {name: start("members", url, name, 120) for name in stored}
        told = {name: [one_line(job)] for name, job in jobs.items()}  # each has begun
        moments = {name: time.monotonic() + dice.uniform(0, 1.5) for name in stored}
        for name, job in sorted(jobs.items(), key=lambda one: moments[one[0]]):
            time.sleep(max(0.0, moments[name] - time.monotonic()))  # a moment, not an event, is what kills a process
            kills += job.poll() is None
            job.kill()
            lines, error = rest(job)
            assert "Traceback" not in error, f"seed {SEED}: {error}"  # that it waits for the file is no fault
            stored[name] = max(int(line) for line in [*told[name], *lines])
        with Checkpointer("shared", url) as cp:
            group = cp.group("accounts")
            for name, number in stored.items():
                found = {group.get(f"{name}-{member}", {"n": 0})["n"] for member in range(3)}
                assert len(found) == 1, f"seed {SEED}: {name} is torn: {found}"
                assert found.pop() in {number, number + 1}, f"seed {SEED}: {name} was told {number}"
    print(f"{rounds} rounds of 20 processes, {kills} killed, {sum(stored.values())} commits")
    assert kills == 20 * rounds
