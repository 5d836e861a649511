"""Eight processes and eight threads count in one store for as long as `CHECKPOINT_SOAK_SECONDS` says.

No count is lost, and nothing is left over: no connection, thread, file descriptor or memory. What was done is printed
with `-s`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from checkpoint import Checkpointer, codec
from checkpoint.testing import Answer, ApiServer, Drop, Pass

SECONDS = float(os.environ.get("CHECKPOINT_SOAK_SECONDS", "1"))
ROUNDS = 2 if SECONDS < 10 else 4
PROCESSES = THREADS = 8

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")

# Counts in rounds, each with new threads on one store; the first is for what stays for good.
COUNTING = """
import gc, json, os, sys, threading, time
from collections import Counter
from checkpoint import Checkpointer, CommitUnknown, Conflict, PartialCommit, StoreUnavailable, TrutoStore, open_store

order = json.loads(sys.argv[1])
page = os.sysconf("SC_PAGE_SIZE")

def connect():
    if order["token"]:
        return TrutoStore(order["url"], order["token"], rate=(10**6, 1.0))
    return open_store(order["url"])

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * page

def settled(cp, told):
    '''Commit until the store says how it ended; False: another writer was first.'''
    while True:
        try:
            cp.commit()
            return True
        except Conflict:
            told["conflicts"] += 1
            return False
        except (CommitUnknown, PartialCommit, StoreUnavailable):
            told["failures"] += 1

def count(store, thread, until, told):
    writer = f"{os.getpid()}-{thread}"
    key = writer if order["token"] else "n"
    while True:  # once at least, however late it starts: the first round is for what stays
        try:
            with Checkpointer("run", store) as cp:
                for _ in range(5):
                    cp[key] = {"n": cp.get(key, {"n": 0})["n"] + 1, "by": writer}
                    if not settled(cp, told):
                        cp.discard()
                        break
                    told[key] += 1
        except StoreUnavailable:
            told["failures"] += 1
        if time.monotonic() >= until:
            return

def round_of(store, told):
    until = time.monotonic() + order["seconds"] / order["rounds"]
    tolds = [Counter() for _ in range(order["threads"])]
    threads = [
        threading.Thread(target=count, args=(store, number, until, one)) for number, one in enumerate(tolds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in tolds:
        told.update(one)

told, measured = Counter(), []
store = connect()
for number in range(order["rounds"]):
    round_of(store, told)
    opened = descriptors()
    store.close()
    gc.collect()
    measured.append({
        "open": opened, "closed": descriptors(), "threads": [thread.name for thread in threading.enumerate()],
        "resident": resident(),
    })
print(json.dumps({"told": told, "measured": measured}))
"""


def soak(url: str, token: str = "") -> Counter[str]:
    """Count in eight processes, and in eight threads of another; return what they were told, counts by their key."""
    orders = [{"url": url, "token": token, "seconds": SECONDS, "rounds": ROUNDS, "threads": 1}] * PROCESSES
    orders.append({**orders[0], "threads": THREADS})
    children = [
        subprocess.Popen([sys.executable, "-c", COUNTING, json.dumps(order)], stdout=subprocess.PIPE)
        for order in orders
    ]
    outputs = [child.communicate(timeout=120 + 10 * SECONDS)[0] for child in children]
    assert [child.returncode for child in children] == [0] * len(children)
    told: Counter[str] = Counter()
    for order, output in zip(orders, outputs, strict=True):
        found = json.loads(output)
        told.update(found["told"])
        first, *others = found["measured"]
        for later in others:
            assert later["closed"] == first["closed"]
            assert later["threads"] == ["MainThread"]
            assert later["open"] - later["closed"] <= 4 * order["threads"] + 4
            assert later["resident"] - first["resident"] < 16_000_000
    return told


def show(where: str, told: Counter[str]) -> None:
    counted = sum(told.values()) - told["conflicts"] - told["failures"]
    print(f"{where}: {counted} counted, {told['conflicts']} conflicts, {told['failures']} failures, none lost")


def test_no_count_of_processes_and_threads_on_one_file_is_lost(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/state.db"
    told = soak(url)
    with Checkpointer("run", url) as cp:
        assert cp["n"]["n"] == told["n"] > 0
    assert told["failures"] == 0
    show("SQLite", told)


def test_no_count_is_lost_over_a_failing_service():
    """Over HTTP nobody can compare and swap, so each writer has a key of its own."""
    dice = random.Random(0)
    faults = [Answer(503), Answer(502, applied=True), Drop(), Drop(applied=True), Drop(applied=True, reset=True)]

    async def one_in_five(exchange) -> None:
        await (dice.choice(faults) if dice.random() < 0.2 else Pass())(exchange)

    with ApiServer() as api:
        api.script(one_in_five, forever=True)
        told = soak(api.url, api.token)
        assert api._transports == {}
        stored = {key: codec.decode(entry.value)["n"] for key, entry in api.store.load("run").items()}
    assert stored == {key: count for key, count in told.items() if key not in {"conflicts", "failures"}}
    assert sum(stored.values()) > 0
    show("HTTP", told)
