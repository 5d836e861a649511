"""A committing process is killed at every system call that writes, and between any two requests.

`CHECKPOINT_KILL_POINTS=1000` makes it at least that many points; the number is printed with `-s`. After each the parent
looks: nothing is torn, nothing that was acknowledged is lost.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from checkpoint import Checkpointer, SQLiteStore, TrutoStore, codec
from checkpoint.testing import ApiServer, Hook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POINTS = int(os.environ.get("CHECKPOINT_KILL_POINTS", "60"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Forks a child for every line it reads, which waits for a signal, commits, and notes what was acknowledged.
ZYGOTE = """
import json, os, signal, sys, traceback
import checkpoint.stores.http, checkpoint.stores.service, checkpoint.stores.truto, checkpoint.stores.sqlite
from checkpoint import Checkpointer, Group, Incremental, TrutoStore

def job(url, token, commits, acks, shards):
    store = TrutoStore(url, token) if token else url
    with Checkpointer("run", store) as cp:
        group = cp.group("g", shards)
        begin = cp["a"]["n"] + 1 if "a" in cp else 1
        for n in range(begin, begin + commits):
            cp["a"] = {"n": n}
            cp["b"] = {"n": n, "filler": "x" * (n * 331 % 2000)}
            for member in "uvwxyz":
                group[member] = {"n": n}
            cp.commit()
            os.write(acks, b"%d\\n" % n)

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if not pid:
        try:
            signal.sigwait({signal.SIGUSR1})
            acks = os.open(order["acks"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            job(order["url"], order["token"], order["commits"], acks, order["shards"])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Zygote:
    """Starts children that commit, at the cost of a fork each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, url: str, *, commits: int, token: str = "", shards: int = 2) -> Child:
        self.count += 1
        child = Child(self, self.folder / f"acks-{self.count}")
        order = {
            "url": url, "token": token, "commits": commits, "shards": shards, "acks": str(child.acks_path),
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        child.pid = int(self.line())
        return child

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.communicate()


class Child:
    """One process that commits."""

    pid: int

    def __init__(self, zygote: Zygote, acks: Path) -> None:
        self.zygote, self.acks_path = zygote, acks

    def go(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Return the exit code, minus the signal that ended it."""
        return int(self.zygote.line())

    def acknowledged(self) -> int:
        """Return the number of the last commit that was told to be done."""
        if not self.acks_path.exists():
            return 0
        lines = self.acks_path.read_bytes().split(b"\n")
        self.acks_path.unlink()
        return max((int(line) for line in lines[:-1]), default=0)


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path)
    yield zygote
    zygote.close()


def settle(api: ApiServer) -> None:
    """Wait until the server is done with what a killed client had sent."""
    for _ in range(2_000):
        if not api._transports and all(call.status is not None for call in api.requests):
            return
        threading.Event().wait(0.005)


CALLS = ("pwrite64", "write", "fsync", "fdatasync", "ftruncate", "unlink", "link", "openat")


def traced(child: Child, call: str, number: int) -> subprocess.Popen[str] | None:
    """Let strace kill a child at its n-th call of one kind; None where tracing is not allowed."""
    rule = f"inject={call}:signal=SIGKILL:when={number}"
    tracer = subprocess.Popen(
        ["strace", "-f", "-e", f"trace={call}", "-e", rule, "-p", str(child.pid), "-o", os.devnull],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert tracer.stderr is not None
    if "attached" in tracer.stderr.readline():
        return tracer
    tracer.communicate()
    return None


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_fault_37_sqlite_is_whole_wherever_its_writer_is_killed(tmp_path: Path, zygote: Zygote):
    wanted = POINTS * 7 // 10
    points = torn = lost = 0
    for call in CALLS:
        for number in range(1, wanted // 2 + 2):
            path = tmp_path / f"{call}-{number}.db"
            child = zygote.start(f"sqlite:///{path}", commits=max(2, wanted // 18))
            tracer = traced(child, call, number)
            child.go()
            code = child.wait()
            if tracer is None:
                pytest.skip("tracing is not allowed here")
            tracer.communicate()
            acknowledged = child.acknowledged()
            assert code in (0, -signal.SIGKILL)
            found = []
            if path.exists():
                with closing(SQLiteStore(path)) as store:
                    loaded = store.load("run")
                found = [codec.decode(loaded[key].value)["n"] for key in ("a", "b") if key in loaded]
                found += [codec.decode(loaded[key].value)["n"] for key in loaded if key.startswith("__group__.g/")]
            torn += len(set(found)) > 1 or len(found) not in (0, 8)
            lost += max(found, default=0) < acknowledged
            for file in tmp_path.glob(f"{path.name}*"):
                file.unlink()
            if code == 0:
                break
            points += 1
    print(f"SQLite: {points} kill points, {torn} torn, {lost} acknowledged and lost")
    assert points >= wanted
    assert (torn, lost) == (0, 0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_fault_37_each_key_is_whole_between_two_requests(when: str, zygote: Zygote):
    wanted = POINTS * 15 // 100
    points = torn = lost = 0
    with ApiServer() as api:
        for number in range(1, 10_000):
            api.clear()
            api.store.commit("run", dict.fromkeys(api.store.load("run")))
            child = zygote.start(api.url, token=api.token, commits=wanted // 4 + 1)
            api.script(*[None] * (number - 1), Hook(**{when: child.kill}))
            child.go()
            code = child.wait()
            settle(api)
            acknowledged = child.acknowledged()
            assert code in (0, -signal.SIGKILL)
            loaded = api.store.load("run")
            found = {key: codec.decode(entry.value) for key, entry in loaded.items()}
            plain = [found[key]["n"] for key in ("a", "b") if key in found]
            shards = [
                [cursor["n"] for cursor in found[key].values()]
                for key in sorted(found)
                if key.startswith("__group__.g.")
            ]
            said = plain + [shard[0] for shard in shards if shard]
            torn += any(len(set(shard)) > 1 for shard in shards) or not set(said) <= {acknowledged, acknowledged + 1}
            lost += acknowledged > 0 and (len(said) < 4 or min(said) < acknowledged)
            store = TrutoStore(api.url, api.token)
            with closing(store), Checkpointer("run", store) as cp:
                torn += set(cp.group("g", 2)) - set("uvwxyz") != set()
            if code == 0:
                break
            points += 1
    print(f"HTTP, killed {when} a request is done: {points} kill points, {torn} torn, {lost} lost")
    assert points >= wanted
    assert (torn, lost) == (0, 0)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_fault_37_a_moving_group_loses_no_member(before: int, after: int, when: str, zygote: Zygote):
    members = {member: {"n": 5} for member in "uvwxyz"}
    points = 0
    with ApiServer() as api:
        for number in range(1, 10_000):
            api.clear()
            api.store.commit("run", dict.fromkeys(api.store.load("run")))
            store = TrutoStore(api.url, api.token)
            with closing(store):
                with Checkpointer("run", store) as cp:
                    cp.group("g", before).update(members)
                child = zygote.start(api.url, token=api.token, commits=1, shards=after)
                api.clear()
                api.script(*[None] * (number - 1), Hook(**{when: child.kill}))
                child.go()
                code = child.wait()
                store.close()
                settle(api)
                api.clear()
                for shards in (after, before):
                    with Checkpointer("run", store) as cp:
                        found = dict(cp.group("g", shards))
                        assert found.keys() == members.keys()
                        assert all(cursor in ({"n": 5}, {"n": 1}) for cursor in found.values())
            if code == 0:
                break
            points += 1
    print(f"a group moving from {before} to {after}, killed {when}: {points} kill points, no member lost")
    assert points > before + after
